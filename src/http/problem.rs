//! Every error that a client sees: problem documents (RFC 9457), made here and nowhere else.
//!
//! A handler's error becomes a response without a body that carries the [`Problem`] in its extensions. [`render`]
//! writes the document once the request id is known, and logs the problem: a server fault at error with its cause, any
//! other 5xx at warn, a client fault at debug; `/readyz` logs its reasons itself. The client never sees a cause.

use std::{borrow::Cow, error::Error, sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{
        HeaderName, HeaderValue, Response, StatusCode,
        header::{ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
    },
    response::IntoResponse,
};
use serde::Serialize;
use utoipa::ToSchema;

use super::request_id::RequestId;
use crate::{
    account::{self, FieldError},
    bearer::Refusal,
    chain::chain,
    token::{IssueError, Rejection},
};

/// An error as the client gets it, and what only the log needs.
#[derive(Clone, Debug)]
pub struct Problem(Box<Parts>);

#[derive(Clone, Debug)]
struct Parts {
    status: StatusCode,
    code: &'static str,
    detail: Cow<'static, str>,
    errors: Vec<FieldError>,
    reasons: Vec<String>,
    headers: Vec<(HeaderName, HeaderValue)>,
    cause: Option<Arc<dyn Error + Send + Sync>>,
}

impl Problem {
    /// A problem of this status; `code` is the stable word that programs match on.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Parts {
            status,
            code,
            detail: detail.into(),
            errors: Vec::new(),
            reasons: Vec::new(),
            headers: Vec::new(),
            cause: None,
        }))
    }

    /// The stable word that programs match on.
    pub fn code(&self) -> &'static str {
        self.0.code
    }

    /// 422 with what is wrong with each field.
    pub fn invalid(errors: Vec<FieldError>) -> Self {
        let detail = match &errors[..] {
            [one] => format!("`{}` {}.", one.field, one.message),
            many => format!("{} fields are not valid.", many.len()),
        };
        let mut problem = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "validation_failed", detail);
        problem.0.errors = errors;
        problem
    }

    /// 404.
    pub fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "There is nothing here.")
    }

    /// 405; the router adds `Allow`.
    pub fn method_not_allowed() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "This route does not take that method; see the header `Allow`.",
        )
    }

    /// 400, with what is wrong with the body.
    pub fn malformed(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed_json", detail)
    }

    /// 400, with what is wrong with the form (RFC 6749, section 5.2).
    pub fn invalid_request(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", detail)
    }

    /// 415, with the media type that the route takes.
    pub fn unsupported_media_type(expected: &str) -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            format!("This route takes `Content-Type: {expected}`."),
        )
    }

    /// 415, the body is compressed. `Accept-Encoding` tells a 415 for this from one for the media type (RFC 9110,
    /// section 15.5.16).
    pub fn unsupported_encoding() -> Self {
        let detail = "The body may not be compressed: this service takes no `Content-Encoding`.";
        let mut problem = Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail);
        problem.0.headers.push((ACCEPT_ENCODING, HeaderValue::from_static("identity")));
        problem
    }

    /// 408, the body did not arrive.
    pub fn request_timeout() -> Self {
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            "request_timeout",
            "The request's body did not arrive in time.",
        )
    }

    /// 413.
    pub fn too_large() -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            format!("The request's body is larger than {} KiB.", super::MAX_BODY_BYTES / 1024),
        )
    }

    /// 403, a role is missing.
    pub fn forbidden(role: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", format!("This needs the role `{role}`."))
    }

    /// 503, with the reasons.
    pub fn not_ready(reasons: Vec<String>) -> Self {
        let mut problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", "Not ready for requests.");
        problem.0.reasons = reasons;
        problem.retry_after(Duration::from_secs(1))
    }

    /// 503, the database is unreachable, has no free connection or accepts no writes.
    pub fn database_unavailable() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "database_unavailable",
            "The database is unavailable at the moment.",
        )
        .retry_after(Duration::from_secs(1))
    }

    /// 503, there are too many at once, as `detail` says.
    pub fn crowded(detail: &'static str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", detail).retry_after(Duration::from_secs(1))
    }

    /// 503, the handler took too long.
    pub fn timeout() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "timeout", "The request took too long and was abandoned.")
            .retry_after(Duration::from_secs(1))
    }

    /// 500, with a cause for the log only.
    pub fn fault(cause: impl Error + Send + Sync + 'static) -> Self {
        let detail = "Something went wrong here; the log has it under this request id.";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", detail).caused_by(cause)
    }

    /// The problem as the client gets it.
    pub(super) fn document<'a>(&'a self, request_id: &'a RequestId) -> ProblemDocument<'a> {
        ProblemDocument {
            kind: "about:blank",
            title: self.0.status.canonical_reason().unwrap_or("Error"),
            status: self.0.status.as_u16(),
            detail: &self.0.detail,
            code: self.0.code,
            request_id: request_id.as_str(),
            errors: &self.0.errors,
            reasons: &self.0.reasons,
        }
    }

    fn caused_by(mut self, cause: impl Error + Send + Sync + 'static) -> Self {
        self.0.cause = Some(Arc::new(cause));
        self
    }

    fn retry_after(self, after: Duration) -> Self {
        // Rounded up: a client that waits exactly as long as it is told must not be early.
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        self.header(RETRY_AFTER, HeaderValue::from(seconds.max(1)))
    }

    fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.push((name, value));
        self
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let mut problem = Self::new(refusal.status(), refusal.code(), refusal.detail());
        problem.0.headers.extend(refusal.headers());
        // A server fault is logged where it occurs; this is only its consequence.
        if refusal.status().is_server_error() { problem } else { problem.caused_by(refusal) }
    }
}

impl From<account::Error> for Problem {
    fn from(error: account::Error) -> Self {
        use StatusCode as S;
        use account::Error as E;
        let (status, code, detail) = match error {
            E::Invalid(errors) => return Self::invalid(errors),
            E::UsernameTaken => (S::CONFLICT, "username_taken", "Another user has this username."),
            E::EmailTaken => (S::CONFLICT, "email_taken", "Another user has this address."),
            E::NotAdministrator => return Self::forbidden(account::ADMIN_ROLE),
            E::LastAdmin => (
                S::CONFLICT,
                "last_admin",
                "The last enabled administrator can be neither disabled, demoted nor deleted.",
            ),
            E::RegistrationClosed => (
                S::FORBIDDEN,
                "registration_closed",
                "Users cannot register themselves here; an administrator creates them.",
            ),
            E::InvalidCredentials => {
                (S::UNAUTHORIZED, "invalid_credentials", "The username or the password is wrong.")
            }
            E::UserGone => return Refusal::from(Rejection::SessionEnded).into(),
            E::InvalidRefreshToken => {
                (S::UNAUTHORIZED, "invalid_refresh_token", "The refresh token is not valid here.")
            }
            E::RefreshTokenReused => (
                S::UNAUTHORIZED,
                "refresh_token_reused",
                "The refresh token was used before, so its session has been ended; log in again.",
            ),
            E::SessionEnded => (S::UNAUTHORIZED, "session_revoked", "The session was ended; log in again."),
            E::SessionExpired => {
                (S::UNAUTHORIZED, "session_expired", "The session has expired; log in again.")
            }
            E::InvalidClient => {
                let detail = "This needs the `client_id` and `client_secret` of a client, as HTTP Basic.";
                return Self::new(S::UNAUTHORIZED, "invalid_client", detail)
                    .header(WWW_AUTHENTICATE, HeaderValue::from_static(r#"Basic realm="gatepass""#));
            }
            E::NoSuchUser => (S::NOT_FOUND, "not_found", "There is no such user."),
            E::NoSuchSession => (S::NOT_FOUND, "not_found", "There is no such session."),
            E::TooManyAttempts { retry_after } => {
                let detail = "Too many attempts have failed; wait as long as `Retry-After` says.";
                return Self::new(S::TOO_MANY_REQUESTS, "too_many_attempts", detail).retry_after(retry_after);
            }
            E::ExportUnderWay => {
                let detail = "You already have an export under way, or the service has as many as it allows at once; \
                              wait for one to end.";
                return Self::new(S::TOO_MANY_REQUESTS, "export_under_way", detail)
                    .retry_after(Duration::from_secs(1));
            }
            E::Overloaded { retry_after } => {
                let detail = "There are more logins than can be served at the moment.";
                return Self::new(S::SERVICE_UNAVAILABLE, "overloaded", detail).retry_after(retry_after);
            }
            // Others keep changing the row, or the keys have not been read from the database for too long.
            E::Unavailable(_) | E::Contended | E::Issue(IssueError::KeysUnknown) => {
                return Self::database_unavailable().caused_by(error);
            }
            // The last three are for the command line alone.
            E::Store(_)
            | E::Issue(_)
            | E::Hasher
            | E::AmbiguousUser
            | E::ClientNameTaken
            | E::NoSuchClient => return Self::fault(error),
        };
        Self::new(status, code, detail)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response<Body> {
        let mut response = self.0.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// A problem document (RFC 9457, media type `application/problem+json`).
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub(super) struct ProblemDocument<'a> {
    /// Always `about:blank`: `code` says what the problem is.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The HTTP status in words.
    title: &'a str,
    /// The HTTP status code.
    status: u16,
    /// An explanation for people.
    detail: &'a str,
    /// The stable word for programs to match on.
    code: &'a str,
    /// The request's id, as in the service's log.
    request_id: &'a str,
    /// With 422: what is wrong with each field. If a field is missing, unknown, given twice or of the wrong type, only
    /// the first of these; otherwise everything that is wrong.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    errors: &'a [FieldError],
    /// With `not_ready`: why the service is not ready.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    reasons: &'a [String],
}

/// Writes the document of a response that carries a [`Problem`], and turns every bare error status that a layer or the
/// router answered into one.
pub(super) fn render(response: &mut Response<Body>, request_id: &RequestId) {
    let status = response.status();
    if !status.is_client_error() && !status.is_server_error() {
        return;
    }
    let problem = response.extensions_mut().remove::<Problem>().unwrap_or_else(|| match status {
        StatusCode::NOT_FOUND => Problem::not_found(),
        StatusCode::METHOD_NOT_ALLOWED => Problem::method_not_allowed(),
        StatusCode::PAYLOAD_TOO_LARGE => Problem::too_large(),
        status if status.is_client_error() => {
            Problem::new(status, "bad_request", "The request is not valid.")
        }
        status => Problem::new(status, "internal_error", "Something went wrong here."),
    });
    log(&problem);

    let body =
        serde_json::to_vec(&problem.document(request_id)).expect("strings and numbers have a JSON form");
    *response.status_mut() = problem.0.status;
    response.headers_mut().remove(CONTENT_LENGTH);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    for (name, value) in &problem.0.headers {
        response.headers_mut().insert(name, value.clone());
    }
    *response.body_mut() = Body::from(body);
    // For the request's log line.
    response.extensions_mut().insert(problem);
}

fn log(problem: &Problem) {
    let cause = problem.0.cause.as_ref().map(|cause| chain(&**cause)).unwrap_or_default();
    if problem.0.status.is_server_error() && problem.0.cause.is_some() {
        tracing::error!(code = problem.0.code, cause, "server fault");
    } else if problem.0.status.is_server_error() && problem.0.reasons.is_empty() {
        tracing::warn!(code = problem.0.code, detail = %problem.0.detail, "not served");
    } else {
        tracing::debug!(code = problem.0.code, detail = %problem.0.detail, cause, "refused");
    }
}
