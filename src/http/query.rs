//! Reading query strings: like axum's `Query`, with every fault a [`Problem`] that says what is wrong and where.

use axum::{extract::FromRequestParts, http::request};
use serde::de::DeserializeOwned;

use super::{App, Problem};
use crate::account::FieldError;

/// The parameters behind the `?` of an address. 422 for one that the route does not know, that is given more than once, or
/// whose value does not fit.
pub(super) struct Query<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<App> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut request::Parts, _: &App) -> Result<Self, Problem> {
        parse(parts.uri.query().unwrap_or_default()).map(Self)
    }
}

fn parse<T: DeserializeOwned>(query: &str) -> Result<T, Problem> {
    let pairs = serde_urlencoded::Deserializer::new(form_urlencoded::parse(query.as_bytes()));
    serde_path_to_error::deserialize(pairs).map_err(|error| {
        let text = error.inner().to_string();
        // serde tells the kind of a fault only by its sentence; the sentences are stable (`serde::de::Error`).
        let quoted = || text.split('`').nth(1).unwrap_or_default().to_owned();
        Problem::invalid(vec![if text.starts_with("unknown field") {
            FieldError::new(quoted(), "unknown_field", "is not a parameter of this request")
        } else if text.starts_with("duplicate field") {
            FieldError::new(quoted(), "duplicate_field", "is given more than once")
        } else {
            FieldError::new(error.path().to_string(), "invalid", "has a value that does not fit")
        }])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Parameters {
        name: Option<String>,
        #[serde(default)]
        limit: u32,
    }

    #[test]
    fn parameters_are_decoded() {
        for (query, name, limit) in [
            ("", None, 0),
            ("&", None, 0),
            ("name", Some(""), 0),
            ("name=a%2Bb+c%3d&limit=7", Some("a+b c="), 7),
            ("%6eame=%C3%A4", Some("ä"), 0),
            ("name=%ff", Some("\u{fffd}"), 0),
            ("name=100%", Some("100%"), 0),
        ] {
            let got = parse::<Parameters>(query).unwrap();
            assert_eq!((got.name.as_deref(), got.limit), (name, limit), "{query}");
        }
    }

    #[test]
    fn a_fault_is_named_with_its_parameter() {
        for (query, field, code) in [
            ("nmae=a", "nmae", "unknown_field"),
            ("Name=a", "Name", "unknown_field"),
            ("name=a&limit=1&name=b", "name", "duplicate_field"),
            ("limit=1&limit=1", "limit", "duplicate_field"),
            ("limit=", "limit", "invalid"),
            ("limit=-1", "limit", "invalid"),
            ("limit=4294967296", "limit", "invalid"),
            ("limit=ten", "limit", "invalid"),
        ] {
            let got = format!("{:?}", parse::<Parameters>(query).unwrap_err());
            assert!(got.contains(&format!("field: \"{field}\", code: \"{code}\"")), "{query}: {got}");
        }
    }
}
