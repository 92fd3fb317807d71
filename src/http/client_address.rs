//! The client's address: the peer of the connection, unless the peer is one of our own proxies.

use std::net::{IpAddr, SocketAddr};

use axum::{
    extract::{ConnectInfo, FromRequestParts},
    http::{HeaderMap, HeaderName, header::USER_AGENT, request::Parts},
};
use ipnet::IpNet;

use super::{App, Problem};
use crate::account::Caller;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The longest `User-Agent` that is kept, in characters.
const MAX_USER_AGENT: usize = 512;

/// The address that a request came from: `peer`, unless that is in `trusted`; then the rightmost address of all
/// `X-Forwarded-For` fields together that is not. What stands left of it the client may have made up.
///
/// An element that is no address ends the search: the proxy that wrote it is the last that is known.
pub fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let is_trusted = |ip: IpAddr| trusted.iter().any(|net| net.contains(&ip));
    let mut client = peer.to_canonical();
    if !is_trusted(client) {
        return client;
    }
    let fields: Vec<&str> =
        headers.get_all(X_FORWARDED_FOR).iter().map(|field| field.to_str().unwrap_or("?")).collect();
    for element in fields.iter().rev().flat_map(|field| field.rsplit(',')) {
        let Some(ip) = parse(element.trim()) else { break };
        client = ip;
        if !is_trusted(ip) {
            break;
        }
    }
    client
}

/// An address, with or without a port, an IPv6 one with or without brackets; IPv4-mapped IPv6 is IPv4.
fn parse(text: &str) -> Option<IpAddr> {
    let text = text.trim_matches('"');
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
        let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
        let user_agent = parts.headers.get(USER_AGENT).map(|value| {
            String::from_utf8_lossy(value.as_bytes()).trim().chars().take(MAX_USER_AGENT).collect::<String>()
        });
        Ok(Self {
            ip: peer.map(|peer| client_address(peer, &parts.headers, app.trusted_proxies())),
            user_agent: user_agent.filter(|agent| !agent.is_empty()),
        })
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn the_rightmost_address_that_no_trusted_proxy_has() {
        let trusted: Vec<IpNet> = ["10.0.0.0/8", "fd00::/8"].iter().map(|net| net.parse().unwrap()).collect();
        let cases: &[(&str, &[&str], &str)] = &[
            // The peer is no proxy of ours: its word counts for nothing.
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
        ];
        for (peer, fields, expected) in cases {
            let mut headers = HeaderMap::new();
            for field in *fields {
                headers.append(X_FORWARDED_FOR, HeaderValue::from_str(field).unwrap());
            }
            let client = client_address(peer.parse().unwrap(), &headers, &trusted);
            assert_eq!(client, expected.parse::<IpAddr>().unwrap(), "{peer} {fields:?}");
        }
    }
}
