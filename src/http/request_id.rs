//! `x-request-id`: taken from the request when it is sane, else made; on every response and in every line of the log.

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Response},
    middleware::Next,
};

use super::App;
use crate::random;

const NAME: HeaderName = HeaderName::from_static("x-request-id");

/// The id of one request: at most 128 letters that need no escaping in a log or a header.
#[derive(Clone, Debug, Default)]
pub struct RequestId(String);

impl RequestId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// For examples.
    pub(super) fn sample() -> Self {
        Self("019aa3f0-5b7c-7c3e-9d0a-3f2a1b4c5d6e".to_owned())
    }

    fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let mut fields = headers.get_all(NAME).iter();
        let id = fields.next()?.to_str().ok()?;
        let sane = (1..=128).contains(&id.len())
            && fields.next().is_none()
            && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:/+=@~".contains(&b));
        sane.then(|| Self(id.to_owned()))
    }
}

/// Gives the request its id, and the response too.
pub(super) async fn assign(State(app): State<App>, mut request: Request, next: Next) -> Response<Body> {
    let id = RequestId::from_headers(request.headers())
        .unwrap_or_else(|| RequestId(random::uuid_v7(app.clock().now(), &mut random::system()).to_string()));
    let value = HeaderValue::from_str(id.as_str()).expect("an id has no letters that a header may not hold");
    request.extensions_mut().insert(id);
    let mut response = next.run(request).await;
    response.headers_mut().insert(NAME, value);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_sane_id_is_taken_over() {
        let taken = |fields: &[&str]| {
            let mut headers = HeaderMap::new();
            for field in fields {
                headers.append(NAME, HeaderValue::from_str(field).unwrap());
            }
            RequestId::from_headers(&headers).map(|id| id.0)
        };
        for id in ["a", "019aa3f0-5b7c-7c3e-9d0a-3f2a1b4c5d6e", "Root=1-67891233-abcdef", &"x".repeat(128)] {
            assert_eq!(taken(&[id]).as_deref(), Some(id));
        }
        for id in ["", "a b", "a\"b", "<script>", "${jndi:ldap://x}", "é", &"x".repeat(129)] {
            assert_eq!(taken(&[id]), None, "{id}");
        }
        assert_eq!(taken(&["a", "b"]), None);
    }
}
