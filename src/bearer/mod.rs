//! The way from `Authorization: Bearer …` (RFC 6750) to [`Claims`]: a tower layer for gatepass's own routes and for any
//! other service on tower.
//!
//! A request whose token is accepted continues with `Arc<Claims>` among its extensions, and with [`Sighting::First`] if
//! this process has not seen the token before. Any other request is answered here and never reaches the inner service.
//!
//! [`Claims`]: crate::token::Claims
//! [`Sighting::First`]: crate::token::Sighting::First
//!
//! ```
//! use std::sync::Arc;
//!
//! use axum::{Extension, Router, body::Body, http::{Request, StatusCode}, routing::get};
//! use gatepass::{bearer::BearerLayer, token::{Claims, Party, SymmetricKey, Verifier}};
//! use tower::ServiceExt;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! async fn hello(Extension(claims): Extension<Arc<Claims>>) -> String {
//!     format!("hello {}", claims.username)
//! }
//!
//! // The key that gatepass runs with, from the environment of this service.
//! let key: SymmetricKey = "k4.local.cHFyc3R1dnd4eXp7fH1-f4CBgoOEhYaHiImKi4yNjo8".parse()?;
//! let verifier = Verifier::new([key], Party { issuer: "gatepass".into(), audience: "gatepass".into() });
//!
//! let app: Router = Router::new().route("/hello", get(hello)).layer(BearerLayer::new(verifier));
//!
//! let answer = app.oneshot(Request::get("/hello").body(Body::empty())?).await?;
//! assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
//! assert_eq!(answer.headers()["www-authenticate"], "Bearer");
//! # Ok(())
//! # }
//! ```
//!
//! With keys that gatepass publishes (`v4.public`, `jwt`), a service does not need to store a key: use `RemoteKeys`
//! (feature `remote`) in place of the verifier. It fetches the keys and follows their rotation. With that feature the
//! layer also logs why it refuses a request, as `tracing` events at debug level; see [`BearerLayer::with_answer`].
//!
//! The layer above accepts a token until it expires. To refuse a token as soon as its session ends, use
//! `follow_revocations` from the same feature; see [`BearerLayer::with_revocations`].

#[cfg(feature = "remote")]
mod remote;
mod service;
mod source;

use std::sync::Arc;

use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
};

#[cfg(feature = "remote")]
pub use self::remote::{DocumentError, RemoteError, RemoteKeys, follow_revocations};
pub use self::{
    service::{BearerService, ResponseFuture},
    source::Source,
};
use crate::{
    clock::Clock,
    token::{Rejection, Revocations},
};

/// A tower layer that wraps a service in a [`BearerService`].
#[derive(Clone, Debug)]
pub struct BearerLayer<R = DefaultAnswer> {
    source: Source,
    revocations: Option<Arc<Revocations>>,
    clock: Clock,
    answer: R,
}

impl BearerLayer {
    /// A layer that accepts the tokens that `source` accepts: a [`Verifier`] or, with the feature `remote`,
    /// `RemoteKeys`. It uses the machine's clock, and answers all other requests with [`DefaultAnswer`].
    ///
    /// [`Verifier`]: crate::token::Verifier
    pub fn new(source: impl Into<Source>) -> Self {
        Self { source: source.into(), revocations: None, clock: Clock::system(), answer: DefaultAnswer }
    }
}

impl<R> BearerLayer<R> {
    /// Also refuses tokens that `revocations` revoke. Services other than gatepass get these from `follow_revocations`
    /// (feature `remote`). Without revocations a token is valid until it expires, even if its session has ended. With
    /// revocations that have not been [`heard`](Revocations::heard) of yet, or for too long, every token is refused
    /// with 503 `revocations_stale`.
    #[must_use]
    pub fn with_revocations(self, revocations: Arc<Revocations>) -> Self {
        Self { revocations: Some(revocations), ..self }
    }

    /// Takes the time from `clock` instead of the machine's clock.
    #[must_use]
    pub fn with_clock(self, clock: Clock) -> Self {
        Self { clock, ..self }
    }

    /// Answers refused requests with `answer`. This is for services that have their own error format, or that want to
    /// know why a token was refused: the client learns no more than [`Refusal::code`] says.
    ///
    /// ```
    /// use axum::{Router, response::IntoResponse, routing::get};
    /// use gatepass::{bearer::BearerLayer, token::{Party, SymmetricKey, Verifier}};
    ///
    /// # let key: SymmetricKey = "k4.local.cHFyc3R1dnd4eXp7fH1-f4CBgoOEhYaHiImKi4yNjo8".parse()?;
    /// # let verifier = Verifier::new([key], Party { issuer: "gatepass".into(), audience: "gatepass".into() });
    /// let layer = BearerLayer::new(verifier).with_answer(|refusal| {
    ///     tracing::info!(%refusal, "a request was refused");
    ///     let mut response = (refusal.status(), refusal.code()).into_response();
    ///     response.headers_mut().extend(refusal.headers());
    ///     response
    /// });
    /// let app: Router = Router::new().route("/hello", get(async || "hello")).layer(layer);
    /// # Ok::<(), gatepass::token::InvalidKey>(())
    /// ```
    #[must_use]
    pub fn with_answer<B, A: Fn(Refusal) -> Response<B>>(self, answer: A) -> BearerLayer<A> {
        BearerLayer { source: self.source, revocations: self.revocations, clock: self.clock, answer }
    }
}

impl<S, R: Clone> tower_layer::Layer<S> for BearerLayer<R> {
    type Service = BearerService<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        BearerService::new(inner, Arc::new(self.clone()))
    }
}

/// Makes the response to a request without an acceptable token. Implemented by [`DefaultAnswer`] and by the closures
/// that [`with_answer`](BearerLayer::with_answer) takes.
pub trait Answer<B> {
    /// Makes the response, whose header fields should include [`Refusal::headers`].
    fn answer(&self, refusal: Refusal) -> Response<B>;
}

impl<B, F: Fn(Refusal) -> Response<B>> Answer<B> for F {
    fn answer(&self, refusal: Refusal) -> Response<B> {
        self(refusal)
    }
}

/// Answers with the challenge of RFC 6750 and a problem document (RFC 9457).
#[derive(Clone, Copy, Debug, Default)]
pub struct DefaultAnswer;

impl<B: From<String>> Answer<B> for DefaultAnswer {
    fn answer(&self, refusal: Refusal) -> Response<B> {
        let status = refusal.status();
        let body = serde_json::json!({
            "type": "about:blank",
            "title": status.canonical_reason(),
            "status": status.as_u16(),
            "code": refusal.code(),
            "detail": refusal.detail(),
        });
        let mut response = Response::new(B::from(body.to_string()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        for (name, value) in refusal.headers() {
            headers.insert(name, value);
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The request has no bearer token.
    #[error("the request has no bearer token")]
    Missing,
    /// There is more than one `Authorization` field, or one that is not a `Bearer` credential of RFC 6750.
    #[error("the Authorization field is not one bearer token")]
    Unreadable,
    /// The request has a token, which was not accepted.
    #[error(transparent)]
    Token(#[from] Rejection),
}

impl Refusal {
    /// The status to answer with: 401, or 503 while it is not known what has been revoked.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Token(Rejection::RevocationsUnknown) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Missing | Self::Unreadable | Self::Token(_) => StatusCode::UNAUTHORIZED,
        }
    }

    /// The stable code of this refusal: `missing_token`, `invalid_token`, `token_expired`, `session_revoked`,
    /// `token_outdated` or `revocations_stale`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing => "missing_token",
            Self::Token(Rejection::Expired) => "token_expired",
            Self::Token(Rejection::SessionEnded) => "session_revoked",
            Self::Token(Rejection::RolesChanged) => "token_outdated",
            Self::Token(Rejection::RevocationsUnknown) => "revocations_stale",
            Self::Unreadable | Self::Token(_) => "invalid_token",
        }
    }

    /// A sentence for the person who reads the answer. Which check failed is for the log only, except where the token's
    /// holder may know it.
    pub fn detail(&self) -> &'static str {
        match self {
            Self::Missing => "This request needs the header `Authorization: Bearer <access token>`.",
            Self::Token(Rejection::Expired) => "The access token has expired.",
            Self::Token(Rejection::SessionEnded) => "The session has ended; log in again.",
            Self::Token(Rejection::RolesChanged) => {
                "The user's roles have changed since the access token was made; renew it."
            }
            Self::Token(Rejection::RevocationsUnknown) => {
                "At the moment it is not known what has been revoked, so the access token is not accepted."
            }
            Self::Unreadable | Self::Token(_) => "The access token is not valid here.",
        }
    }

    /// The header fields to answer with: `WWW-Authenticate` (RFC 6750, section 3), which has no parameters when there
    /// was no token at all, or `Retry-After` with 503.
    pub fn headers(&self) -> impl Iterator<Item = (HeaderName, HeaderValue)> + use<> {
        let (name, value) = match self {
            Self::Missing => (WWW_AUTHENTICATE, "Bearer"),
            Self::Token(Rejection::Expired) => (
                WWW_AUTHENTICATE,
                r#"Bearer error="invalid_token", error_description="The access token has expired""#,
            ),
            Self::Token(Rejection::SessionEnded) => (
                WWW_AUTHENTICATE,
                r#"Bearer error="invalid_token", error_description="The session has ended""#,
            ),
            Self::Token(Rejection::RolesChanged) => (
                WWW_AUTHENTICATE,
                r#"Bearer error="invalid_token", error_description="The roles have changed; renew the token""#,
            ),
            Self::Token(Rejection::RevocationsUnknown) => (RETRY_AFTER, "1"),
            Self::Unreadable | Self::Token(_) => (
                WWW_AUTHENTICATE,
                r#"Bearer error="invalid_token", error_description="The access token is not valid here""#,
            ),
        };
        std::iter::once((name, HeaderValue::from_static(value)))
    }
}

/// The token in `Authorization: Bearer TOKEN`; the scheme is case-insensitive (RFC 9110, section 11.1).
pub(crate) fn bearer_token(headers: &HeaderMap) -> Result<&str, Refusal> {
    let mut fields = headers.get_all(AUTHORIZATION).iter();
    let field = fields.next().ok_or(Refusal::Missing)?;
    if fields.next().is_some() {
        return Err(Refusal::Unreadable);
    }
    let credentials = field.to_str().map_err(|_| Refusal::Unreadable)?;
    let (scheme, token) = credentials.split_once(' ').unwrap_or((credentials, ""));
    if !scheme.eq_ignore_ascii_case("bearer") {
        // Credentials of another kind: of bearer tokens the request has none.
        return Err(Refusal::Missing);
    }
    let token = token.trim_matches(' ');
    if token.is_empty() { Err(Refusal::Unreadable) } else { Ok(token) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_bearer_token_is_read_and_other_headers_are_classified() {
        let cases: &[(&[&str], Result<&str, Refusal>)] = &[
            (&[], Err(Refusal::Missing)),
            (&["Bearer abc"], Ok("abc")),
            (&["bEARER abc"], Ok("abc")),
            (&["Bearer   abc "], Ok("abc")),
            (&["Basic abc"], Err(Refusal::Missing)),
            (&["Bearerabc"], Err(Refusal::Missing)),
            (&["Bearer"], Err(Refusal::Unreadable)),
            (&["Bearer "], Err(Refusal::Unreadable)),
            (&["Bearer abc", "Bearer abc"], Err(Refusal::Unreadable)),
            (&["Basic abc", "Bearer abc"], Err(Refusal::Unreadable)),
        ];
        for (fields, expected) in cases {
            let mut headers = HeaderMap::new();
            for field in *fields {
                headers.append(AUTHORIZATION, HeaderValue::from_str(field).unwrap());
            }
            assert_eq!(bearer_token(&headers), *expected, "{fields:?}");
        }
        let mut headers = HeaderMap::new();
        headers.append(AUTHORIZATION, HeaderValue::from_bytes(b"Bearer \xff").unwrap());
        assert_eq!(bearer_token(&headers), Err(Refusal::Unreadable));
    }
}
