//! Reading query strings: like axum's `Query`, but every fault is a [`Problem`] that says what is wrong and where.

use std::{fmt::Display, ops::RangeInclusive};

use axum::{extract::FromRequestParts, http::request};
use serde::de::DeserializeOwned;

use super::{App, Problem, json::by_sentence};
use crate::account::FieldError;

/// How many entries a page has by default.
const PAGE_SIZE: u32 = 50;
/// How many it may have at most.
const MAX_PAGE_SIZE: u32 = 200;

/// The parameters in the query string. 422 for one that the route does not know, that is given more than once, or whose
/// value does not fit.
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
        let fault = by_sentence(&error.inner().to_string(), "is not a parameter of this request");
        let misfit = || FieldError::new(error.path().to_string(), "invalid", "has an invalid value");
        Problem::invalid(vec![fault.unwrap_or_else(misfit)])
    })
}

/// Reads parameters, and collects what is wrong with them.
#[derive(Default)]
pub(super) struct Faults(Vec<FieldError>);

impl Faults {
    /// What `parse` makes of a parameter, if given. `None` is a fault: the parameter `needs to be` what `needed` says.
    pub(super) fn read<T>(
        &mut self,
        field: &str,
        text: Option<&str>,
        needed: impl Display,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let value = parse(text?);
        if value.is_none() {
            self.add(field, "invalid", needed);
        }
        value
    }

    /// A number in `range`; `what` is `a number`, perhaps with a unit.
    pub(super) fn number(
        &mut self,
        field: &str,
        text: Option<&str>,
        what: &str,
        range: RangeInclusive<u32>,
    ) -> Option<u32> {
        let needed = format!("{what} from {} to {}", range.start(), range.end());
        let number = self.read(field, text, &needed, |text| text.parse().ok())?;
        let fits = range.contains(&number);
        if !fits {
            self.add(field, "out_of_range", needed);
        }
        fits.then_some(number)
    }

    /// How many entries the page should have: the parameter `limit`.
    pub(super) fn limit(&mut self, text: Option<&str>) -> u32 {
        self.number("limit", text, "a number", 1..=MAX_PAGE_SIZE).unwrap_or(PAGE_SIZE)
    }

    /// `Ok` if nothing was wrong, otherwise a 422 with everything that was.
    pub(super) fn check(self) -> Result<(), Problem> {
        if self.0.is_empty() { Ok(()) } else { Err(Problem::invalid(self.0)) }
    }

    fn add(&mut self, field: &str, code: &'static str, needed: impl Display) {
        self.0.push(FieldError::new(field, code, format!("needs to be {needed}")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::RequestId;

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

    #[test]
    fn a_fault_says_what_the_value_needs_to_be() {
        let said = |text| {
            let mut faults = Faults::default();
            faults.limit(Some(text));
            let problem = faults.check().unwrap_err();
            let document = serde_json::to_value(problem.document(&RequestId::sample())).unwrap();
            (document["detail"].clone(), document["errors"][0]["code"].clone())
        };
        let detail = "`limit` needs to be a number from 1 to 200.";
        for (text, code) in
            [("0", "out_of_range"), ("201", "out_of_range"), ("-1", "invalid"), ("", "invalid")]
        {
            assert_eq!(said(text), (detail.into(), code.into()), "{text}");
        }
    }

    #[test]
    fn missing_parameters_get_their_defaults_without_an_error() {
        let mut faults = Faults::default();
        assert_eq!(faults.limit(None), PAGE_SIZE);
        assert_eq!(faults.limit(Some("200")), MAX_PAGE_SIZE);
        assert_eq!(faults.number("wait", Some("0"), "a number", 0..=30), Some(0));
        faults.check().unwrap();
    }
}
