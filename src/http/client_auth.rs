//! Introspection clients: HTTP Basic (RFC 7617) with `client_id` and `client_secret` (RFC 6749, section 2.3.1).
//!
//! That section requires both to be form-encoded first. Ours consist of characters that this leaves as they are.

use axum::{
    extract::{FromRequestParts, OptionalFromRequestParts},
    http::{HeaderMap, header::AUTHORIZATION, request::Parts},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::{App, Problem};
use crate::account::{Caller, Error};

/// The request comes from an introspection client: its credentials have been checked.
///
/// Otherwise 401 `invalid_client`, whatever is wrong: no credentials, several, unreadable ones, an unknown client, a
/// wrong secret. 429 `too_many_attempts` after many wrong ones from one address. As an `Option`, only the credentials
/// of a client are looked at: `None` if there are none.
pub(super) struct AuthenticatedClient;

impl FromRequestParts<App> for AuthenticatedClient {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let Credentials { id, secret } = credentials(&parts.headers).ok_or(Error::InvalidClient)?;
        let Caller { ip, .. } = Caller::from_request_parts(parts, app).await?;
        app.clients.authenticate(id, &secret, app.accounts.throttle(), ip, app.clock.now()).await?;
        Ok(Self)
    }
}

impl OptionalFromRequestParts<App> for AuthenticatedClient {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Option<Self>, Problem> {
        let fields = parts.headers.get_all(AUTHORIZATION);
        if !fields.iter().any(|field| basic(field.as_bytes()).is_some()) {
            return Ok(None);
        }
        <Self as FromRequestParts<App>>::from_request_parts(parts, app).await.map(Some)
    }
}

struct Credentials {
    id: Uuid,
    secret: Zeroizing<String>,
}

/// The credentials in the only `Authorization` field; `None` for anything else.
fn credentials(headers: &HeaderMap) -> Option<Credentials> {
    let mut fields = headers.get_all(AUTHORIZATION).iter();
    let (Some(field), None) = (fields.next(), fields.next()) else { return None };
    let encoded = basic(field.as_bytes())?.trim_ascii();
    let decoded = Zeroizing::new(STANDARD.decode(encoded).ok()?);
    let (id, secret) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    // No client has an id of another form, as any sender knows: then nothing is looked up.
    let id = id.parse::<uuid::fmt::Hyphenated>().ok()?;
    Some(Credentials { id: id.into(), secret: Zeroizing::new(secret.to_owned()) })
}

/// What follows the scheme `Basic`, whose case does not matter; `None` for another scheme.
fn basic(field: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = match field.iter().position(|byte| *byte == b' ') {
        Some(end) => field.split_at(end),
        None => (field, &[][..]),
    };
    scheme.eq_ignore_ascii_case(b"basic").then_some(rest)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    const ID: &str = "019aa3f0-5b7c-7c3e-9d0a-3f2a1b4c5d6e";

    fn read(fields: &[String]) -> Option<(String, String)> {
        let value = |field: &String| (AUTHORIZATION, HeaderValue::from_str(field).unwrap());
        let headers = fields.iter().map(value).fold(HeaderMap::new(), |mut headers, (name, value)| {
            headers.append(name, value);
            headers
        });
        credentials(&headers).map(|found| (found.id.to_string(), found.secret.to_string()))
    }

    #[test]
    fn one_basic_credential_is_read_and_nothing_else() {
        let encoded = |text: &str| STANDARD.encode(text);
        let good = encoded(&format!("{ID}:gps_a:b"));
        let found = Some((ID.to_owned(), "gps_a:b".to_owned()));
        for field in [format!("Basic {good}"), format!("bASIC {good}"), format!("Basic   {good} ")] {
            assert_eq!(read(std::slice::from_ref(&field)), found, "{field}");
        }
        let upper = format!("Basic {}", encoded(&format!("{}:gps_a:b", ID.to_uppercase())));
        assert_eq!(read(&[upper]), found);
        for fields in [
            vec![],
            vec![String::new()],
            vec!["Basic".to_owned()],
            vec!["Basic ".to_owned()],
            vec![good.clone()],
            vec![format!("Bearer {good}")],
            vec![format!("Basic{good}")],
            vec![format!("Basic {good} {good}")],
            vec![format!("Basic {ID}:gps_a")],
            vec![format!("Basic {}", encoded(ID))],
            vec![format!("Basic {}", encoded(":gps_a"))],
            vec![format!("Basic {}", encoded("orders:gps_a"))],
            vec![format!("Basic {}", encoded(&format!("{}:gps_a", ID.replace('-', ""))))],
            vec![format!("Basic {}", encoded(&format!("{{{ID}}}:gps_a")))],
            vec![format!("Basic {}", STANDARD.encode([ID.as_bytes(), b":\xff"].concat()))],
            vec![format!("Basic {}", encoded(&format!("{ID}:gps_")).trim_end_matches('='))],
            vec![format!("Basic {good}"), format!("Basic {good}")],
            vec![format!("Basic {good}"), "Bearer abc".to_owned()],
        ] {
            assert_eq!(read(&fields), None, "{fields:?}");
        }
    }
}
