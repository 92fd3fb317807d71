//! The client's address: the peer of the connection, unless the peer is one of our own proxies.

use std::net::{IpAddr, SocketAddr};

use axum::{
    extract::{ConnectInfo, FromRequestParts},
    http::{Extensions, HeaderMap, HeaderName, HeaderValue, header::USER_AGENT, request::Parts},
};
use ipnet::IpNet;

use super::{App, Problem};
use crate::{account::Caller, terminal};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// How many elements of `X-Forwarded-For` are looked at; nobody has that many proxies in a row.
const MAX_PROXIES: usize = 64;

/// The longest `User-Agent` that is kept, in characters.
const MAX_USER_AGENT: usize = 512;

/// The address that a request came from: `peer`, unless that is in `trusted`; then the rightmost address in all
/// `X-Forwarded-For` fields together that is not in `trusted`. The client may have made up anything to the left of it.
///
/// An element that is empty or not an address ends the search: the proxy that wrote it is the last known one, and does
/// not vouch for anything to the left of it. The 64th element ends the search, too.
pub fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let mut client = peer.to_canonical();
    if !is_trusted(client, trusted) {
        return client;
    }
    let fields: Vec<&[u8]> = headers.get_all(X_FORWARDED_FOR).iter().map(HeaderValue::as_bytes).collect();
    let elements = fields.iter().rev().flat_map(|field| field.rsplit(|byte| *byte == b','));
    for element in elements.take(MAX_PROXIES) {
        let Some(ip) = parse(element.trim_ascii()) else { break };
        client = ip;
        if !is_trusted(ip, trusted) {
            break;
        }
    }
    client
}

/// Warns, once, that nobody told us of the proxy that wrote the field. Whoever calls may have written it too, so it is
/// not believed, and its value is not logged.
fn warn_of_unnamed_proxy(app: &App, headers: &HeaderMap) {
    if app.trusted_proxies.is_empty() && headers.contains_key(X_FORWARDED_FOR) {
        app.0.unnamed_proxy.call_once(|| {
            tracing::warn!(
                "X-Forwarded-For was sent, and TRUSTED_PROXIES is empty: if the service is behind a proxy, set \
                 TRUSTED_PROXIES to its address, or all clients share that address in the limits on failed logins \
                 (docs/throttling.md)"
            );
        });
    }
}

/// The peer of the connection that a request came on.
pub(super) fn peer(extensions: &Extensions) -> Option<IpAddr> {
    extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip())
}

/// Whether this is the address of one of our own proxies.
pub(super) fn is_trusted(ip: IpAddr, trusted: &[IpNet]) -> bool {
    let ip = ip.to_canonical();
    trusted.iter().any(|net| net.contains(&ip))
}

/// An address, with or without a port, and if IPv6 with or without brackets; IPv4-mapped IPv6 becomes IPv4. One with a
/// zone does not count: it means nothing on another machine.
fn parse(element: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(element).ok()?.trim_matches('"');
    if text.contains('%') {
        return None;
    }
    let bracketed = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    text.parse::<IpAddr>()
        .or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip()))
        .ok()
        .or_else(|| bracketed?.parse().ok())
        .map(|ip| ip.to_canonical())
}

/// The caller of a request, for the session that it may begin.
impl FromRequestParts<App> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        warn_of_unnamed_proxy(app, &parts.headers);
        let user_agent = parts.headers.get(USER_AGENT).map(|value| {
            let text = String::from_utf8_lossy(value.as_bytes());
            let shown: String = text.chars().filter(|c| !terminal::is_odd(*c)).collect();
            shown.trim().chars().take(MAX_USER_AGENT).collect::<String>()
        });
        Ok(Self {
            ip: peer(&parts.extensions)
                .map(|peer| client_address(peer, &parts.headers, &app.trusted_proxies)),
            user_agent: user_agent.filter(|agent| !agent.is_empty()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_is_the_rightmost_address_that_is_not_a_trusted_proxy() {
        let trusted: Vec<IpNet> = ["10.0.0.0/8", "fd00::/8"].iter().map(|net| net.parse().unwrap()).collect();
        let ours = vec!["10.0.0.2"; 63].join(",");
        let (just, too_many) = (format!("198.51.100.1,{ours}"), format!("198.51.100.1,10.0.0.3,{ours}"));
        let endless = "10.0.0.2,".repeat(7000);
        let cases: &[(&str, &[&str], &str)] = &[
            // The peer is not one of our proxies: its word counts for nothing.
            ("203.0.113.9", &["198.51.100.1"], "203.0.113.9"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.1"], "198.51.100.1"),
            // The client wrote the first, our proxy the last.
            ("10.0.0.1", &["1.2.3.4, 198.51.100.1"], "198.51.100.1"),
            ("10.0.0.1", &["1.2.3.4", "198.51.100.1"], "198.51.100.1"),
            ("10.0.0.1", &["1.2.3.4", "198.51.100.1, 10.0.0.7"], "198.51.100.1"),
            ("10.0.0.1", &["198.51.100.1,10.0.0.7 ,\t10.0.0.8"], "198.51.100.1"),
            // All are ours: the leftmost is the farthest that is known.
            ("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            ("10.0.0.1", &["198.51.100.1:4711"], "198.51.100.1"),
            ("10.0.0.1", &["[2001:db8::1]:4711"], "2001:db8::1"),
            ("10.0.0.1", &["[2001:db8::1]"], "2001:db8::1"),
            ("10.0.0.1", &["\"[2001:db8::1]:80\""], "2001:db8::1"),
            ("10.0.0.1", &["2001:db8::1"], "2001:db8::1"),
            ("10.0.0.1", &["::ffff:198.51.100.1"], "198.51.100.1"),
            ("::ffff:10.0.0.1", &["198.51.100.1"], "198.51.100.1"),
            ("fd00::1", &["2001:db8::1, ::ffff:10.1.1.1"], "2001:db8::1"),
            // Garbage ends the search at the proxy that passed it on.
            ("10.0.0.1", &["unknown"], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.1, garbage, 10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1", &["198.51.100.1,"], "10.0.0.1"),
            ("10.0.0.1", &[""], "10.0.0.1"),
            ("10.0.0.1", &["999.1.1.1"], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.1, , 10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1", &["198.51.100.1", ""], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.1 10.0.0.2"], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.1:"], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.1:65536"], "10.0.0.1"),
            ("10.0.0.1", &["[2001:db8::1"], "10.0.0.1"),
            ("10.0.0.1", &["[198.51.100.1"], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.0/24"], "10.0.0.1"),
            ("10.0.0.1", &["010.051.100.001"], "10.0.0.1"),
            ("10.0.0.1", &["unix:"], "10.0.0.1"),
            ("10.0.0.1", &["localhost"], "10.0.0.1"),
            ("10.0.0.1", &["fe80::1%eth0"], "10.0.0.1"),
            ("10.0.0.1", &["[fe80::1%5]:80"], "10.0.0.1"),
            // Garbage that the client wrote, in a field that our proxy continued.
            ("10.0.0.1", &["gärbage\t?, 198.51.100.1"], "198.51.100.1"),
            ("10.0.0.1", &["\"[::ffff:198.51.100.1]:80\""], "198.51.100.1"),
            ("10.0.0.1", &["[2001:DB8:0::1]:4711"], "2001:db8::1"),
            // As many proxies as there may be, and more.
            ("10.0.0.1", &[&just], "198.51.100.1"),
            ("10.0.0.1", &[&too_many], "10.0.0.3"),
            ("10.0.0.1", &[&endless, "10.0.0.2"], "10.0.0.2"),
        ];
        for (peer, fields, expected) in cases {
            let mut headers = HeaderMap::new();
            for field in *fields {
                headers.append(X_FORWARDED_FOR, HeaderValue::from_bytes(field.as_bytes()).unwrap());
            }
            let client = client_address(peer.parse().unwrap(), &headers, &trusted);
            assert_eq!(client, expected.parse::<IpAddr>().unwrap(), "{peer} {fields:?}");
        }
    }
}
