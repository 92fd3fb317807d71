//! Turns a setting's text into its value. Each function takes the text as given, and returns the value or a message
//! that says what is expected; none quotes the text.

use std::{
    fmt::Display,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use http::{Uri, uri::Authority};
use ipnet::{IpNet, Ipv4Net};
use secrecy::SecretString;
use tracing_subscriber::EnvFilter;

use crate::{
    loopback::is_this_machine,
    password::{Peppers, breached::BreachedFile},
    token::{Format, KeyPairFormat, SharedFormat, SymmetricKey},
};

/// A value that is one of a few words.
pub(super) trait Word: Copy + 'static {
    /// Every word, with what it stands for.
    const WORDS: &'static [(&'static str, Self)];
}

/// One of a few words, spelled exactly like this.
pub(super) fn word<T: Word>(text: &str) -> Result<T, String> {
    one_of(T::WORDS.iter().copied(), text)
}

fn one_of<T>(words: impl Iterator<Item = (&'static str, T)> + Clone, text: &str) -> Result<T, String> {
    words.clone().find(|(word, _)| *word == text).map(|(_, value)| value).ok_or_else(|| {
        let words: Vec<_> = words.map(|(word, _)| word).collect();
        format!("expected {}", words.join(" or "))
    })
}

impl Word for bool {
    const WORDS: &'static [(&'static str, Self)] = &[("true", true), ("false", false)];
}

/// A whole number within a range.
pub(super) fn number<T>(range: RangeInclusive<T>) -> impl Fn(&str) -> Result<T, String>
where
    T: FromStr + PartialOrd + Display,
{
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| format!("expected a whole number from {} to {}", range.start(), range.end()))
    }
}

/// A share, from 0 to 1.
pub(super) fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "expected a number from 0 to 1".into())
}

/// Items separated by commas.
pub(super) fn list<T>(item: impl Fn(&str) -> Result<T, String>) -> impl Fn(&str) -> Result<Vec<T>, String> {
    move |text| {
        let items: Vec<_> = text.split(',').map(str::trim).collect();
        let count = items.len();
        let read = |(index, text): (usize, &str)| match item(text) {
            Err(expected) if count > 1 => Err(format!("item {} of {count}: {expected}", index + 1)),
            one => one,
        };
        items.into_iter().enumerate().map(read).collect()
    }
}

/// A text that machines compare: one word of visible characters.
pub(super) fn name(text: &str) -> Result<String, String> {
    let is_name =
        !text.is_empty() && text.len() <= 255 && text.chars().all(|c| !c.is_whitespace() && !c.is_control());
    if is_name { Ok(text.into()) } else { Err("expected 1 to 255 characters without blanks".into()) }
}

/// The path of a file. Whoever reads the file finds out whether it can be read.
pub(super) fn path(text: &str) -> Result<PathBuf, String> {
    Ok(text.into())
}

/// What to do about a key that is missing or unusable.
pub(super) const KEY_ADVICE: &str = "make one with `gatepass key generate`";

/// A key, as PASERK or 32 bytes of text.
pub(super) fn symmetric_key(text: &str) -> Result<SymmetricKey, String> {
    text.parse().map_err(|error: <SymmetricKey as FromStr>::Err| format!("{error}; {KEY_ADVICE}"))
}

/// The formats of new tokens. `None` means JWT with `JWT_ALGORITHM`.
const FORMATS: [(&str, Option<Format>); 3] = [
    ("v4.local", Some(Format::Shared(SharedFormat::V4Local))),
    ("v4.public", Some(Format::KeyPair(KeyPairFormat::V4Public))),
    ("jwt", None),
];

/// The format of new tokens; `None` for JWT with `JWT_ALGORITHM`.
pub(super) fn token_format(text: &str) -> Result<Option<Format>, String> {
    one_of(FORMATS.into_iter(), text)
}

/// A format that is still accepted: one of [`FORMATS`], or JWT with its algorithm.
pub(super) fn accepted_format(text: &str) -> Result<Option<Format>, String> {
    let jwts = Format::ALL.into_iter().filter(|format| format.jwt_algorithm().is_some());
    one_of(FORMATS.into_iter().chain(jwts.map(|format| (format.name(), Some(format)))), text)
}

/// The format of JWTs with one algorithm (RFC 7518, RFC 8037).
pub(super) fn jwt_algorithm(text: &str) -> Result<Format, String> {
    let words = Format::ALL.into_iter();
    one_of(words.filter_map(|format| Some((format.jwt_algorithm()?, format))), text)
}

/// What to do about a pepper that is unusable.
pub(super) const PEPPER_ADVICE: &str = "make one with `openssl rand -base64 32`";

/// Peppers, the newest first.
pub(super) fn peppers(text: &str) -> Result<Peppers, String> {
    text.parse().map_err(|error: <Peppers as FromStr>::Err| format!("{error}; {PEPPER_ADVICE}"))
}

/// The path of a file of breached passwords; opens the file.
pub(super) fn breached_file(text: &str) -> Result<Arc<BreachedFile>, String> {
    BreachedFile::open(Path::new(text)).map(Arc::new).map_err(|error| error.to_string())
}

/// An IP address with a port.
pub(super) fn socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "expected an IP address and a port".into())
}

/// A network, or a single address as a network of its own. IPv4-mapped IPv6 becomes IPv4, as in a peer's address.
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    let address = || text.parse::<IpAddr>().ok().map(IpNet::from);
    let net: IpNet =
        text.parse().ok().or_else(address).ok_or_else(|| "expected an IP address or a network".to_owned())?;
    let mapped = match net {
        IpNet::V6(net) => net.addr().to_ipv4_mapped().zip(net.prefix_len().checked_sub(96)),
        IpNet::V4(_) => None,
    };
    Ok(mapped.and_then(|(ip, length)| Ipv4Net::new(ip, length).ok()).map_or(net, IpNet::V4))
}

/// The levels of `tracing`, as `RUST_LOG` spells them.
const LEVELS: &[&str] = &["off", "error", "warn", "info", "debug", "trace", "0", "1", "2", "3", "4", "5"];

/// Directives for the log filter, as [`telemetry::init`](crate::telemetry::init) reads them. It takes any word that is
/// not a level for a module, and a filter for a module that does not exist silences the log. Here, therefore, a module
/// without a level must be `gatepass` or contain `::`.
pub(super) fn log_filter(text: &str) -> Result<String, String> {
    let is_level = |text: &str| LEVELS.iter().any(|level| text.eq_ignore_ascii_case(level));
    let is_module = |text: &str| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-:".contains(&b))
    };
    let is_right = |directive: &str| match directive.split_once('[') {
        // Spans and their fields have a syntax of their own.
        Some((module, _)) => module.is_empty() || is_module(module),
        None => match directive.rsplit_once('=') {
            Some((module, level)) => is_module(module) && is_level(level),
            None => {
                let is_known = directive == "gatepass" || directive.contains("::");
                is_level(directive) || is_module(directive) && is_known
            }
        },
    };
    if text.split(',').all(is_right) && EnvFilter::builder().parse(text).is_ok() {
        Ok(text.into())
    } else {
        Err("expected off, error, warn, info, debug or trace, alone or as MODULE=LEVEL, separated by commas"
            .into())
    }
}

/// An `http` or `https` address.
pub(super) fn url(text: &str) -> Result<String, String> {
    let is_right = |uri: &Uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && !text.contains('#')
            && uri.authority().is_some_and(|authority| host_and_port(authority).is_some())
    };
    match text.parse::<Uri>() {
        Ok(uri) if is_right(&uri) => Ok(text.into()),
        _ => Err("expected a URL without user and password".into()),
    }
}

/// The address to which passwords are sent: `https`, or `http` to this machine. It may hold a user and a password.
pub(super) fn login_url(text: &str) -> Result<SecretString, String> {
    let is_right = || {
        let uri: Uri = text.parse().ok()?;
        let (user, authority) = match uri.authority()?.as_str().rsplit_once('@') {
            Some((user, rest)) => (user, rest),
            None => ("", uri.authority()?.as_str()),
        };
        let authority = authority.parse().ok()?;
        let (host, _) = host_and_port(&authority)?;
        let is_private = match uri.scheme_str()? {
            "https" => true,
            "http" => is_this_machine(host),
            _ => false,
        };
        // A second `@` is an unescaped one in the password, which would end there too early.
        (is_private && !user.contains('@') && !text.contains('#')).then_some(())
    };
    match is_right() {
        Some(()) => Ok(text.into()),
        None => Err(
            "expected an https URL, for example https://old.example.com/login (http only to this machine); \
                     write %-codes for signs in its user and password"
                .into(),
        ),
    }
}

/// A web origin (RFC 6454) in the form in which browsers send it: in lower case, without the scheme's default port. `*`
/// stands for any, and for nothing less.
pub(super) fn origin(text: &str) -> Result<String, String> {
    if text == "*" {
        return Ok(text.into());
    }
    if text.contains('*') {
        return Err("a wildcard within an origin is not supported; expected a list of origins".into());
    }
    if text.eq_ignore_ascii_case("null") {
        return Err("null is the origin of every sandboxed page; expected a list of origins".into());
    }
    let expected = || "expected scheme://host or scheme://host:port, without a path".to_owned();
    let (scheme, rest) = text.split_once("://").ok_or_else(expected)?;
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    if !rest.is_ascii() {
        return Err("expected the host in its ASCII form (xn--…)".into());
    }
    let authority: Authority = rest.parse().map_err(|_| expected())?;
    let (host, port) = host_and_port(&authority).filter(|_| is_scheme).ok_or_else(expected)?;
    let (scheme, host) = (scheme.to_ascii_lowercase(), host.to_ascii_lowercase());
    Ok(match (scheme.as_str(), port) {
        (_, None) | ("http", Some(80)) | ("https", Some(443)) => format!("{scheme}://{host}"),
        (_, Some(port)) => format!("{scheme}://{host}:{port}"),
    })
}

/// The host and the port; `None` if there is anything else, such as a user or an invalid port.
fn host_and_port(authority: &Authority) -> Option<(&str, Option<u16>)> {
    let host = authority.host();
    let is_host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)),
    };
    let port = match authority.as_str().strip_prefix(host)? {
        "" => None,
        rest => Some(rest.strip_prefix(':')?.parse().ok().filter(|port| *port != 0)?),
    };
    is_host.then_some((host, port))
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn ipv4_mapped_networks_are_read_as_ipv4() {
        for (text, expected) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("192.0.2.7", "192.0.2.7/32"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:192.0.2.7", "192.0.2.7/32"),
            // These contain more than IPv4.
            ("::/0", "::/0"),
            ("::ffff:0:0/95", "::ffff:0:0/95"),
        ] {
            assert_eq!(network(text), Ok(expected.parse().unwrap()), "{text}");
        }
        for text in ["", "10.0.0.0/33", "10.0.0", "proxy"] {
            assert!(network(text).is_err(), "{text}");
        }
    }

    #[test]
    fn words_and_numbers() {
        assert_eq!(word("true"), Ok(true));
        for text in ["", "TRUE", "1", "yes", " true"] {
            assert_eq!(word::<bool>(text), Err("expected true or false".into()));
        }
        assert_eq!(number(1..=1000)("1000"), Ok(1000));
        for text in ["", "0", "1001", "-1", "1.0", "ten", "99999999999999999999"] {
            assert_eq!(
                number(1..=1000)(text),
                Err("expected a whole number from 1 to 1000".into()),
                "{text}"
            );
        }
        assert_eq!(share("0.25"), Ok(0.25));
        assert_eq!(share("1"), Ok(1.0));
        for text in ["", "-0.1", "1.1", "NaN", "inf", "1/4", "0,25"] {
            assert_eq!(share(text), Err("expected a number from 0 to 1".into()), "{text}");
        }
        assert_eq!(list(number(0..=9))("1, 2,3"), Ok(vec![1, 2, 3]));
        let expected = "item 2 of 2: expected a whole number from 0 to 9";
        assert_eq!(list(number(0..=9))("1,"), Err(expected.into()));
    }

    #[test]
    fn origins() {
        for (text, as_sent) in [
            ("https://app.example.com", "https://app.example.com"),
            ("HTTPS://App.Example.com:443", "https://app.example.com"),
            ("http://localhost:3000", "http://localhost:3000"),
            ("http://localhost:80", "http://localhost"),
            ("http://[::1]:8080", "http://[::1]:8080"),
            ("https://xn--bcher-kva.example", "https://xn--bcher-kva.example"),
            ("capacitor://localhost", "capacitor://localhost"),
            ("chrome-extension://abcdefgh", "chrome-extension://abcdefgh"),
            ("*", "*"),
        ] {
            assert_eq!(origin(text), Ok(as_sent.into()), "{text}");
        }
        for text in [
            "",
            "**",
            "https://*",
            "https://*.example.com",
            "null",
            "example.com",
            "example.com:80",
            "https://",
            "https://example.com/",
            "https://example.com/path",
            "https://example.com?q",
            "https://example.com#f",
            "https://user@example.com",
            "https://u:p@example.com",
            "https://example.com:",
            "https://example.com:x",
            "https://example.com:0",
            "https://example.com:65536",
            "https://bücher.example",
            "https://a b",
            "://example.com",
            "1s://example.com",
            "https://[::1",
            "https://[x]",
            "https:///",
            "//example.com",
            "https://a,https://b",
        ] {
            assert!(origin(text).is_err(), "{text}");
        }
    }

    #[test]
    fn urls() {
        for text in ["http://localhost:4318", "https://example.com/a/b?c=d", "https://[::1]/"] {
            assert_eq!(url(text), Ok(text.into()));
        }
        for text in [
            "",
            "example.com",
            "/a",
            "ftp://example.com",
            "https://u:p@example.com",
            "https://a#b",
            "https://a b",
        ] {
            assert!(url(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_login_url_needs_https_unless_it_is_local() {
        for text in [
            "https://old.example.com",
            "https://old.example.com:8443/a/login?b=c",
            "https://me:p%40ss@old.example.com/login",
            "https://me@old.example.com",
            "http://localhost:3000/login",
            "http://me:secret@127.0.0.1/login",
            "http://127.8.8.8",
            "http://[::1]:3000",
        ] {
            assert_eq!(login_url(text).unwrap().expose_secret(), text);
        }
        for text in [
            "",
            "hunter2",
            "/login",
            "ftp://old.example.com",
            "http://old.example.com",
            "http://10.0.0.1",
            "http://[::2]",
            "http://localhost.example.com",
            "http://127.0.0.1.example.com",
            "http://localhost@hunter2.example.com",
            "https://me:p@ss@old.example.com",
            "https://me:hunter2@",
            "https://old.example.com:0",
            "https://old.example.com#hunter2",
            "https://old.example.com/a b",
        ] {
            let expected = login_url(text).unwrap_err();
            assert!(expected.contains("https URL") && !expected.contains("hunter2"), "{text}: {expected}");
        }
    }

    #[test]
    fn networks() {
        assert_eq!(network("10.0.0.0/8"), Ok("10.0.0.0/8".parse().unwrap()));
        assert_eq!(network("10.1.2.3"), Ok("10.1.2.3/32".parse().unwrap()));
        assert_eq!(network("::1"), Ok("::1/128".parse().unwrap()));
        for text in ["", "10.0.0.0/33", "10.0.0", "localhost", "10.0.0.1:80", "*"] {
            assert!(network(text).is_err(), "{text}");
        }
    }

    #[test]
    fn log_filters() {
        for text in [
            "info",
            "INFO",
            "info,gatepass=debug",
            "warn,sqlx::query=off",
            "gatepass[span{a=b}]=trace",
            "error,[request]=debug",
            "gatepass",
            "info,sqlx::query",
            "0",
        ] {
            assert_eq!(log_filter(text), Ok(text.into()));
        }
        for text in [
            "warning",
            "verbose",
            "info ",
            "info gatepass=debug",
            "info, gatepass=debug",
            "info [request]=debug",
            "debug;x",
            "debug;x=info",
            "!!",
            "!!=info",
            "info,",
            "gatepass=loud",
            "info,gatepass=",
            "=info",
            "info\nx",
            "[request=info",
            "[request]=loud",
            "[{id=(}]=info",
        ] {
            assert!(log_filter(text).unwrap_err().contains("warn, info"), "{text}");
        }
    }
}
