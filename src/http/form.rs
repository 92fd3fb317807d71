//! Reading forms, in which OAuth sends its requests: like axum's `Form`, but every fault is a [`Problem`].

use axum::extract::{FromRequest, Request};
use serde::de::DeserializeOwned;

use super::{App, Problem, body};

/// The media type of a form.
pub(super) const MEDIA_TYPE: &str = "application/x-www-form-urlencoded";

/// A request's body, read from a form. Parameters that the route does not know are ignored (RFC 6749, section 3.2).
///
/// 415 for another media type, 413 over the limit, 408 if it does not arrive in time, 400 if it is not a form, or a
/// parameter is missing or repeated.
pub(super) struct Form<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<App> for Form<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        if body::media_type(request.headers()).as_deref() != Some(MEDIA_TYPE) {
            return Err(Problem::unsupported_media_type(MEDIA_TYPE));
        }
        let body = body::read(request, app, Problem::invalid_request).await?;
        parse(&body).map(Self)
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    if !is_encoded(body) {
        return Err(Problem::invalid_request(
            "The body is not a form: a `%` lacks its two hexadecimal digits.",
        ));
    }
    serde_urlencoded::from_bytes(body).map_err(|error| {
        // It names parameters, and never a value: the routes take only strings, and any value is one.
        Problem::invalid_request(format!("The form is not what this route takes: {error}."))
    })
}

/// Whether every `%` has its two digits. The parser would take one without them literally.
fn is_encoded(body: &[u8]) -> bool {
    let mut after = body.split(|byte| *byte == b'%').skip(1);
    after.all(|after| after.len() >= 2 && after[..2].iter().all(u8::is_ascii_hexdigit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    struct Body {
        token: String,
        #[serde(rename = "token_type_hint")]
        hint: Option<String>,
    }

    #[test]
    fn parameters_are_decoded_and_unknown_ones_passed_over() {
        for (body, token, hint) in [
            ("token=a", "a", None),
            ("token=", "", None),
            ("token", "", None),
            ("&&token=a&", "a", None),
            ("token=a%2Bb+c%3d&token_type_hint=access_token", "a+b c=", Some("access_token")),
            ("x=1&x=2&%74oken=a&client_id=b", "a", None),
            ("token=%C3%A4", "ä", None),
            ("token=a=b;c", "a=b;c", None),
            // Not UTF-8, and so nobody's token.
            ("token=%ff", "\u{fffd}", None),
        ] {
            let got = parse::<Body>(body.as_bytes()).unwrap();
            assert_eq!((&*got.token, got.hint.as_deref()), (token, hint), "{body}");
        }
    }

    #[test]
    fn a_fault_says_what_is_wrong_and_repeats_no_value() {
        for (body, about) in [
            ("", "token"),
            ("tokn=secret", "token"),
            ("Token=secret", "token"),
            ("{\"token\":\"secret\"}", "token"),
            ("token=secret&token=secret", "token"),
            ("token=secret&token_type_hint=a&token_type_hint=b", "token_type_hint"),
            ("token=secret%", "`%`"),
            ("token=secret%2", "`%`"),
            ("token=secret%zz", "`%`"),
            ("token=secret%%41", "`%`"),
            ("%=1&token=secret", "`%`"),
        ] {
            let problem = parse::<Body>(body.as_bytes()).unwrap_err();
            assert_eq!(problem.code(), "invalid_request", "{body}");
            let text = format!("{problem:?}");
            assert!(text.contains(about) && !text.contains("secret"), "{body}: {text}");
        }
    }
}
