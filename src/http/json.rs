//! Reading JSON bodies: like axum's `Json`, but every fault is a [`Problem`] that says what is wrong and where.

use axum::{
    extract::{FromRequest, Request},
    http::HeaderMap,
};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::error::Category;

use super::{App, Problem, body};
use crate::account::FieldError;

/// The media type of JSON.
pub(super) const MEDIA_TYPE: &str = "application/json";

/// How serde_json begins to say that a number is too large.
const OUT_OF_RANGE: &str = "number out of range";

/// A request's body, read from JSON.
///
/// 415 for another media type, 413 over the limit, 408 if it does not arrive in time, 400 if it is not JSON, 422 if it
/// does not have the shape that the route takes.
pub(super) struct Json<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<App> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        if !is_json(request.headers()) {
            return Err(Problem::unsupported_media_type(MEDIA_TYPE));
        }
        let body = body::read(request, app, Problem::malformed).await?;
        parse(&body).map(Self)
    }
}

/// `application/json` or a `+json` type, whatever its parameters.
fn is_json(headers: &HeaderMap) -> bool {
    body::media_type(headers).is_some_and(|essence| {
        essence == MEDIA_TYPE || (essence.starts_with("application/") && essence.ends_with("+json"))
    })
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    if body.is_empty() {
        return Err(Problem::malformed("The request has no body; this route takes a JSON object."));
    }
    // serde would also read a struct from an array of its fields' values.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(match serde_json::from_slice::<IgnoredAny>(body) {
            Ok(_) => Problem::invalid(vec![FieldError::new("body", "wrong_type", "needs to be an object")]),
            Err(error) => explain(String::new(), &error),
        });
    }
    let mut json = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        // A body that is not JSON is that first of all, whatever is wrong with the fields before the fault.
        let syntax = serde_json::from_slice::<IgnoredAny>(body).err().filter(is_syntax);
        match syntax {
            Some(syntax) => explain(String::new(), &syntax),
            None => explain(error.path().to_string(), error.inner()),
        }
    })?;
    json.end().map_err(|error| explain(String::new(), &error))?;
    Ok(value)
}

/// `1e999` is JSON, although serde_json does not categorise its being too large as `Data`.
fn is_syntax(error: &serde_json::Error) -> bool {
    error.classify() != Category::Data && !error.to_string().starts_with(OUT_OF_RANGE)
}

fn explain(path: String, error: &serde_json::Error) -> Problem {
    let text = error.to_string();
    let at = |field: String| if field.is_empty() || field == "." { "body".to_owned() } else { field };
    // No field takes numbers.
    if text.starts_with(OUT_OF_RANGE) {
        return Problem::invalid(vec![FieldError::new(at(path), "wrong_type", "may not be a number")]);
    }
    if is_syntax(error) {
        let (line, column) = (error.line(), error.column());
        return Problem::malformed(format!("The body is not JSON: fault at line {line}, column {column}."));
    }
    Problem::invalid(vec![if let Some(fault) = by_sentence(&text, "is not a field of this request") {
        fault
    } else if text.starts_with("missing field") {
        FieldError::new(quoted(&text), "required", "is required")
    } else if let Some(rest) = text.strip_prefix("invalid type: ") {
        // The last one: what comes before it is the client's own text.
        let expected = rest.rsplit_once(", expected ").and_then(|(_, rest)| rest.split(" at line").next());
        let expected = match expected {
            Some(expected) if !expected.contains("struct") => expected,
            _ => "an object",
        };
        FieldError::new(at(path), "wrong_type", format!("needs to be {expected}"))
    } else {
        FieldError::new(at(path), "invalid", "has an invalid value")
    }])
}

/// A fault in a name. Only serde's message tells which kind it is; the tests below notice if that changes.
pub(super) fn by_sentence(text: &str, unknown: &'static str) -> Option<FieldError> {
    if text.starts_with("unknown field") {
        Some(FieldError::new(quoted(text), "unknown_field", unknown))
    } else if text.starts_with("duplicate field") {
        Some(FieldError::new(quoted(text), "duplicate_field", "is given more than once"))
    } else {
        None
    }
}

fn quoted(text: &str) -> &str {
    text.split('`').nth(1).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderValue, header::CONTENT_TYPE};

    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only read from JSON")]
    struct Body {
        name: String,
        #[serde(default)]
        tags: Vec<String>,
    }

    #[test]
    fn a_fault_says_what_and_where() {
        for (body, expected) in [
            (&b""[..], "malformed_json"),
            (b"{", "malformed_json"),
            (b"{}x", "malformed_json"),
            (b"{\"nmae\":", "malformed_json"),
            (b"{\"nmae\":1,}", "malformed_json"),
            (b"{\"nmae\":1e999}", "unknown_field nmae"),
            (br#"{"name":"a"}x"#, "malformed_json"),
            (br#"{"name":"a"}{"name":"b"}"#, "malformed_json"),
            (b"\xef\xbb\xbf{}", "malformed_json"),
            (b"{\"name\":\"\xff\"}", "malformed_json"),
            (br#"{"name":"\ud800"}"#, "malformed_json"),
            (b"[]", "wrong_type body"),
            (br#" ["alice", []]"#, "wrong_type body"),
            (b"[", "malformed_json"),
            (b"null", "wrong_type body"),
            (b"{}", "required name"),
            (br#"{"name":null}"#, "wrong_type name"),
            (br#"{"name":1}"#, "wrong_type name"),
            (br#"{"name":"a","name":"b"}"#, "duplicate_field name"),
            (br#"{"name":"a","nmae":"b"}"#, "unknown_field nmae"),
            (br#"{"name":"a","tags":["x",1]}"#, "wrong_type tags[1]"),
            (br#"{"name":1e999}"#, "wrong_type name"),
            (br#"{"name":"a","tags":[-1e999]}"#, "wrong_type tags[0]"),
            (b"1e999", "wrong_type body"),
        ] {
            let problem = parse::<Body>(body).unwrap_err();
            let got = format!("{problem:?}");
            let (code, field) = expected.split_once(' ').unwrap_or((expected, ""));
            assert!(got.contains(&format!("code: \"{code}\"")), "{body:?}: {got}");
            assert!(got.contains(&format!("field: \"{field}\"")) || field.is_empty(), "{body:?}: {got}");
        }
        // Whatever words the client has used.
        let body = br#"{"name":"a","tags":"x, expected your password at line 1, expected a struct"}"#;
        let got = format!("{:?}", parse::<Body>(body).unwrap_err());
        assert!(got.contains("message: \"needs to be a sequence\""), "{got}");
        let deep = "[".repeat(50_000);
        assert!(parse::<serde_json::Value>(deep.as_bytes()).is_err());
    }

    #[test]
    fn media_types() {
        let json = |value: &str| {
            is_json(&HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_str(value).unwrap())]))
        };
        assert!(json("application/json"));
        assert!(json("Application/JSON; charset=utf-8"));
        assert!(json("application/vnd.api+json"));
        assert!(!json("text/json"));
        assert!(!json("application/x-www-form-urlencoded"));
        assert!(!json("application/jsonp"));
        assert!(!is_json(&HeaderMap::new()));
    }
}
