//! Database URLs: checks them, and masks them so that they may be shown. What their parts mean is the store's business.

use std::{net::IpAddr, path::PathBuf};

use secrecy::SecretString;

use super::settings::MASK;
use crate::store;

/// Query parameters that hold no secret and help to recognise a database. Not even the names of others are shown: they
/// may be the rest of a password with an unescaped `&` in it.
const SHOWN: &[&str] = &[
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "port",
    "ssl-ca",
    "ssl-mode",
    "ssl-root-cert",
    "sslmode",
    "sslrootcert",
    "statement-cache-capacity",
    "user",
];

/// The other parameters that sqlx knows. It would log the name and the value of one that it does not know.
const HIDDEN: &[&str] = &["options", "password", "sslcert", "ssl-cert", "sslkey", "ssl-key"];

/// How the server's certificate is checked.
const SSL_MODES: &[&str] = &["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];

/// Checks a database URL, or says what is expected. The message never contains any part of the URL.
pub(super) fn db_source(text: &str) -> Result<SecretString, String> {
    let known = |name: &str| SHOWN.contains(&name) || HIDDEN.contains(&name) || name.starts_with("options[");
    let is_mode =
        |(name, value): &(&str, &str)| !matches!(*name, "sslmode" | "ssl-mode") || SSL_MODES.contains(value);
    match Parts::of(text) {
        Ok(parts) if !parts.query.iter().all(|(name, _)| known(name)) => Err(
            "a parameter after the ? is not one that a database URL has; a & in the password is written %26"
                .to_owned(),
        ),
        Ok(parts) if !parts.query.iter().all(is_mode) => {
            Err(format!("expected one of these as sslmode: {}", SSL_MODES.join(", ")))
        }
        Ok(_) => {
            let url = text.into();
            // Parsed here too, so that all problems with the settings are reported at once.
            store::Source::new(&url).map_err(|error| error.to_string())?;
            Ok(url)
        }
        Err(expected) => {
            Err(format!("{expected}, for example postgres://gatepass:PASSWORD@localhost:5432/gatepass"))
        }
    }
}

/// The URL, with its password and everything that might be one masked.
pub(super) fn masked(text: &str) -> String {
    let Ok(Parts { scheme, user, has_password, host, port, path, query }) = Parts::of(text) else {
        return MASK.into();
    };
    let mut shown = format!("{scheme}://");
    if let Some(user) = user {
        shown += user;
        if has_password {
            shown = shown + ":" + MASK;
        }
        shown += "@";
    }
    shown += host;
    if let Some(port) = port {
        shown = shown + ":" + port;
    }
    shown += path;
    for (index, (name, value)) in query.into_iter().enumerate() {
        shown += if index == 0 { "?" } else { "&" };
        shown += &match name {
            "password" => format!("password={MASK}"),
            _ if SHOWN.contains(&name) => format!("{name}={value}"),
            _ => MASK.into(),
        };
    }
    shown
}

/// The files with certificates and keys that a URL names.
pub(super) fn files(text: &str) -> Vec<PathBuf> {
    const NAMES: &[&str] =
        &["sslrootcert", "ssl-root-cert", "ssl-ca", "sslcert", "ssl-cert", "sslkey", "ssl-key"];

    let query = text.split_once('?').map_or("", |(_, query)| query);
    let named = form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| NAMES.contains(&name.as_ref()));
    // The value may also be the certificate itself.
    named
        .filter(|(_, value)| !value.starts_with("-----BEGIN"))
        .map(|(_, value)| value.as_ref().into())
        .collect()
}

/// Whether tokens for RDS can be used to log in to a database.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fitness {
    Fit,
    /// Nothing makes sure that it is the database that gets the token.
    Unverified,
    /// What has to change.
    Unfit(&'static str),
}

/// Checks that a URL has what tokens for RDS need: a user and an address, which are signed, and TLS, since a token is a
/// password.
pub(super) fn fitness_for_iam(text: &str) -> Fitness {
    // A URL that cannot be read has been reported already.
    let Ok(parts) = Parts::of(text) else { return Fitness::Fit };
    if parts.has_password || parts.value(&["password"]).is_some() {
        return Fitness::Unfit("a token takes the place of the password; remove that from the URL");
    }
    if parts.value(&["user", "host", "hostaddr", "port"]).is_some() || parts.user.is_none_or(str::is_empty) {
        return Fitness::Unfit(
            "expected user, host and port before the /, as in postgres://gatepass@HOST:5432/gatepass",
        );
    }
    if parts.host.is_empty() || parts.host.contains(['[', '%']) || parts.host.parse::<IpAddr>().is_ok() {
        return Fitness::Unfit(
            "expected the name that RDS gave the database as the host, since that is signed",
        );
    }
    match parts.value(&["sslmode", "ssl-mode"]) {
        Some("verify-full") => Fitness::Fit,
        Some("require" | "verify-ca") => Fitness::Unverified,
        _ => Fitness::Unfit(
            "the token may not travel without TLS; expected sslmode=verify-full with sslrootcert",
        ),
    }
}

/// The parts of a URL that are distinguished here. The password is left out.
struct Parts<'a> {
    scheme: &'a str,
    user: Option<&'a str>,
    has_password: bool,
    host: &'a str,
    port: Option<&'a str>,
    /// With its slash, if it has one.
    path: &'a str,
    query: Vec<(&'a str, &'a str)>,
}

impl<'a> Parts<'a> {
    /// Parses a URL as RFC 3986 does. A password with an unescaped `/`, `?` or `#` ends the authority too early and
    /// leaves the `@` after it. Such a URL is refused; otherwise the rest of the password would be shown as a path.
    fn of(text: &'a str) -> Result<Self, &'static str> {
        let Some((scheme @ ("postgres" | "postgresql"), rest)) = text.split_once("://") else {
            return Err("expected a URL that begins with postgres://");
        };
        if rest.contains(char::is_control) {
            return Err("expected a URL without line breaks and the like, at its end too");
        }
        if rest.contains('#') {
            return Err("expected a URL in which a # in the password is written %23");
        }
        let (authority, behind) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (path, query) = behind.split_once('?').unwrap_or((behind, ""));
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, authority),
        };
        let (host, port) = match host.rsplit_once(':') {
            // Not within an IPv6 address.
            Some((host, port)) if !port.contains(']') => (host, Some(port)),
            _ => (host, None),
        };
        if behind.contains('@') {
            return Err(
                "expected a URL in which @ / ? and : in the password are written %40 %2F %3F and %3A",
            );
        }
        if port.is_some_and(|port| port.parse::<u16>().is_err()) {
            return Err("expected a port from 1 to 65535 after the host and its colon");
        }
        let query: Option<Vec<_>> = query.split('&').filter(|pair| !pair.is_empty()).map(parameter).collect();
        Ok(Self {
            scheme,
            user: user.map(|user| user.split(':').next().unwrap_or(user)),
            has_password: user.is_some_and(|user| user.contains(':')),
            host,
            port,
            path,
            query: query
                .ok_or("expected a URL with name=value after the ?, and a ? in the password written %3F")?,
        })
    }

    /// The value of a parameter with any of these names: the last one given counts.
    fn value(&self, names: &[&str]) -> Option<&'a str> {
        self.query.iter().rfind(|(name, _)| names.contains(name)).map(|(_, value)| *value)
    }
}

/// Splits `name=value`.
fn parameter(pair: &str) -> Option<(&str, &str)> {
    let (name, value) = pair.split_once('=')?;
    let is_name =
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.[]".contains(&b));
    is_name.then_some((name, value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn database_urls_are_shown_with_the_password_masked() {
        for (url, shown) in [
            ("postgres://localhost", "postgres://localhost"),
            ("postgresql://u@h:5432/d", "postgresql://u@h:5432/d"),
            (
                "postgres://u:hunter2@h:5432/d?sslmode=require",
                "postgres://u:********@h:5432/d?sslmode=require",
            ),
            ("postgres://u:@h/d", "postgres://u:********@h/d"),
            ("postgres://u:hun:ter2@h/d", "postgres://u:********@h/d"),
            ("postgres://u:hun@ter2@h/d", "postgres://u:********@h/d"),
            ("postgres://u:hunter2@[::1]:5432/d", "postgres://u:********@[::1]:5432/d"),
            ("postgres://u:hunter2@[::1]/d", "postgres://u:********@[::1]/d"),
            ("postgres:///d?host=/run/pg&user=u", "postgres:///d?host=/run/pg&user=u"),
            (
                "postgres://h/d?user=u&password=hunter2&sslmode=require",
                "postgres://h/d?user=u&password=********&sslmode=require",
            ),
            ("postgres://h/d?options=-c%20a%3Dhunter2", "postgres://h/d?********"),
        ] {
            assert!(db_source(url).is_ok(), "{url}");
            assert_eq!(masked(url), shown);
        }
    }

    #[test]
    fn unknown_url_parameters_are_masked_as_possible_password_parts() {
        for url in [
            "postgres://h/d?passwd=hunter2",
            "postgres://u@h/d?password=12&ter2=hun",
            "postgres://h/d?Password=hunter2",
        ] {
            let expected = db_source(url).unwrap_err();
            assert!(expected.contains("%26") && !expected.contains("hun"), "{expected}");
            assert!(!masked(url).contains("hunter2"), "{url}");
        }
    }

    #[test]
    fn only_existing_tls_modes_are_accepted() {
        for mode in SSL_MODES {
            assert!(db_source(&format!("postgres://u@h/d?sslmode={mode}")).is_ok(), "{mode}");
        }
        for parameter in
            ["sslmode=on", "sslmode=verify_full", "ssl-mode=hunter2", "sslmode=", "sslmode=require&sslmode=1"]
        {
            let expected = db_source(&format!("postgres://u@h/d?{parameter}")).unwrap_err();
            assert!(expected.contains("sslmode") && expected.contains("verify-full"), "{expected}");
            assert!(!expected.contains("hunter2"), "{expected}");
        }
    }

    #[test]
    fn a_refused_database_url_is_masked_entirely() {
        for url in [
            "",
            "hunter2",
            "mysql://u:hunter2@h/d",
            "host=h password=hunter2",
            "postgres:u:hunter2@h/d",
            "postgres://u:hunter/2@h/d",
            "postgres://u:12/hunter2@h/d",
            "postgres://u:12/hunter2?a=@h/d",
            "postgres://u:@/hunter2@h/d",
            "postgres://u:12?hunter2@h/d",
            "postgres://u:12#hunter2@h/d",
            "postgres://u:hunter2@h:port/d",
            "postgres://u:hunter2@h:99999/d",
            "postgres://u:hunter2@h/d?hunter2",
            "postgres://u:hunter2@h/d\n",
        ] {
            assert_eq!(masked(url), MASK, "{url}");
            let message = db_source(url).unwrap_err();
            assert!(!message.contains("hunter") && message.contains("postgres://"), "{url}: {message}");
        }
    }

    #[test]
    fn a_url_that_the_store_cannot_parse_is_refused_without_quoting_it() {
        for url in [
            "postgres://u:hunter2%ff@h/d",
            "postgres://u:hunter2@h h/d",
            "postgres://u:hunter2@[::1/d",
            "postgres://u:hunter2@h/d?port=hunter2",
            "postgres://u:hunter2@h/d?hostaddr=hunter2",
            "postgres://u:hunter2@h/d?statement-cache-capacity=hunter2",
        ] {
            let message = db_source(url).unwrap_err();
            assert!(message.contains("postgres://") && !message.contains("hunter2"), "{url}: {message}");
        }
    }

    #[test]
    fn a_port_that_is_none_is_named_in_the_error() {
        for url in
            ["postgres://user@127.0.0.1:hunter2/d", "postgres://127.0.0.1:99999/d", "postgres://u:p@h:/d"]
        {
            let message = db_source(url).unwrap_err();
            assert!(message.contains("expected a port from 1 to 65535"), "{url}: {message}");
            assert!(!message.contains("hunter2") && !message.contains("%40"), "{url}: {message}");
        }
    }

    #[test]
    fn a_line_break_in_the_url_is_named_in_the_error() {
        let message = db_source("postgres://u:hunter2@h/d\n").unwrap_err();
        assert!(message.contains("line break") && !message.contains('#'), "{message}");
    }

    proptest! {
        #[test]
        fn a_password_is_never_shown(before in "[0-9/?#@:&= a-z%]{0,4}", after in "[0-9/?#@:&= a-z%]{0,4}") {
            for url in [
                format!("postgres://u:{before}hunter2{after}@host:5432/d?sslmode=require"),
                format!("postgres://u@host/d?password={before}hunter2{after}"),
            ] {
                let shown = masked(&url);
                prop_assert!(!shown.contains("hunter2"), "{url}: {shown}");
            }
        }
    }
}
