//! `x-request-id`: taken from the request if it is sane, otherwise made here; on every response and in every log line.

use std::sync::Arc;

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue},
};
use uuid::Uuid;

use super::App;
use crate::random;

/// The header field.
pub(super) const NAME: HeaderName = HeaderName::from_static("x-request-id");

/// The id of one request: at most 128 characters that need no escaping in a log or a header.
#[derive(Clone, Debug)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// For examples.
    pub(super) fn sample() -> Self {
        Self("019aa3f0-5b7c-7c3e-9d0a-3f2a1b4c5d6e".into())
    }

    /// Gives the request its id, and puts it among the request's extensions.
    pub(super) fn assign(request: &mut Request, app: &App) -> Self {
        let id = Self::from_headers(request.headers()).unwrap_or_else(|| {
            let id = random::uuid_v7_from_stock(app.clock.now());
            Self((*id.hyphenated().encode_lower(&mut Uuid::encode_buffer())).into())
        });
        request.extensions_mut().insert(id.clone());
        id
    }

    /// Puts it on the response.
    pub(super) fn answer(&self, headers: &mut HeaderMap) {
        let value =
            HeaderValue::from_str(self.as_str()).expect("an id has no letters that a header may not hold");
        headers.insert(NAME, value);
    }

    fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let mut fields = headers.get_all(NAME).iter();
        let id = fields.next()?.to_str().ok()?;
        let sane = (1..=128).contains(&id.len())
            && fields.next().is_none()
            && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:/+=@~".contains(&b));
        sane.then(|| Self(id.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_well_formed_request_id_is_adopted() {
        let taken = |fields: &[&str]| {
            let mut headers = HeaderMap::new();
            for field in fields {
                headers.append(NAME, HeaderValue::from_str(field).unwrap());
            }
            RequestId::from_headers(&headers)
        };
        for id in ["a", "019aa3f0-5b7c-7c3e-9d0a-3f2a1b4c5d6e", "Root=1-67891233-abcdef", &"x".repeat(128)] {
            assert_eq!(taken(&[id]).unwrap().as_str(), id);
        }
        for id in ["", "a b", "a\"b", "<script>", "${jndi:ldap://x}", "é", &"x".repeat(129)] {
            assert!(taken(&[id]).is_none(), "{id}");
        }
        assert!(taken(&["a", "b"]).is_none());
    }
}
