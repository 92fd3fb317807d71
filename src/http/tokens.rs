//! `/tokens`: what holders of tokens do with them, and what clients ask about them.

use std::sync::Arc;

use axum::{extract::State, http::StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::{
    ToSchema,
    openapi::{Object, ObjectBuilder, schema::Type},
};
use uuid::Uuid;

use super::{App, Problem, client_auth::AuthenticatedClient, form::Form, json::Json};
use crate::{
    account::{self, Caller, Cause},
    bearer::Refusal,
    random,
    token::{Claims, Rejection, Sighting},
};

/// A session's tokens.
#[derive(Serialize, ToSchema)]
pub(super) struct Tokens {
    /// The session's id.
    #[schema(example = "019aa3f0-6c1d-7d2a-8b40-51c2d3e4f506")]
    session_id: Uuid,
    /// To send as `Authorization: Bearer`.
    #[schema(example = "v4.local.2a9jQ…")]
    access_token: String,
    /// When the access token expires.
    #[schema(example = "2026-01-02T03:19:05Z")]
    #[serde(with = "time::serde::rfc3339")]
    access_token_expires_at: OffsetDateTime,
    /// For renewing the session. Keep it as safe as a password.
    #[schema(example = "gpr_AZqj8F…")]
    refresh_token: String,
    /// When the refresh token expires, unless it is used before.
    #[schema(example = "2026-01-03T03:04:05Z")]
    #[serde(with = "time::serde::rfc3339")]
    refresh_token_expires_at: OffsetDateTime,
    /// Always `Bearer` (RFC 6750).
    #[schema(example = "Bearer")]
    token_type: &'static str,
    /// Seconds until the access token expires (RFC 6749).
    #[schema(example = 900)]
    expires_in: i64,
}

impl From<&account::Tokens> for Tokens {
    fn from(tokens: &account::Tokens) -> Self {
        let access = &tokens.access_token;
        Self {
            session_id: tokens.session_id,
            access_token: access.expose().to_owned(),
            access_token_expires_at: access.expires_at,
            refresh_token: tokens.refresh_token.expose().to_owned(),
            refresh_token_expires_at: tokens.refresh_token_expires_at,
            token_type: "Bearer",
            expires_in: (access.expires_at - access.issued_at).whole_seconds(),
        }
    }
}

/// A refresh token.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RenewRequest {
    /// The one from the login or the last renewal.
    #[schema(value_type = String, example = "gpr_AZqj8GwdfSqLQFHC0-T1BgAAAABDZ3lqYXJkIG9mIHRoZSByZWZyZXNoIHRva2VucyE")]
    refresh_token: SecretString,
}

/// Renew a session: exchange its refresh token for a new one and a fresh access token.
///
/// A lost response does no harm: send the same refresh token again, and you get the same successor. This works for a
/// few seconds in any case, and after that for as long as nothing from the response has been used. A refresh token that
/// is sent again later than that counts as stolen, and the session ends.
#[utoipa::path(
    post, path = "/tokens/renew_access", tag = "tokens",
    request_body = RenewRequest,
    responses(
        (status = 200, description = "The session's new tokens.", body = Tokens),
        (
            status = 401,
            description = "`invalid_refresh_token`, `refresh_token_reused`, `session_revoked` or `session_expired`: log in again.",
        ),
        (
            status = 429,
            description = "`too_many_attempts`: this address has sent too many tokens that are not refresh tokens of this service. Try again after `Retry-After`.",
        ),
    ),
)]
pub(super) async fn renew(
    State(app): State<App>,
    caller: Caller,
    cause: Cause,
    Json(body): Json<RenewRequest>,
) -> Result<axum::Json<Tokens>, Problem> {
    let token = body.refresh_token.expose_secret();
    let accounts = app.accounts.caused_by(cause);
    let tokens = accounts.renew(token, &caller, app.clock.now(), &mut random::system()).await?;
    Ok(axum::Json(Tokens::from(&tokens)))
}

/// A token to introspect (RFC 7662, section 2.1) or to revoke (RFC 7009, section 2.1).
#[derive(Deserialize, ToSchema)]
pub(super) struct TokenRequest {
    /// The token.
    #[schema(value_type = String, example = "v4.local.2a9jQ…")]
    token: SecretString,
    /// What kind of token the client thinks it is. Not needed: the service can tell from the token itself.
    #[schema(example = "access_token")]
    #[expect(dead_code, reason = "clients send it, and nothing depends on it")]
    token_type_hint: Option<String>,
}

/// What the service says about a token (RFC 7662, section 2.2).
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum Introspection {
    Active(Box<ActiveToken>),
    Inactive(InactiveToken),
}

/// Anything except an access token that this service accepts now.
#[derive(Serialize, ToSchema)]
pub(super) struct InactiveToken {
    #[schema(schema_with = always::<false>)]
    active: bool,
}

/// An access token that this service accepts now.
#[derive(Serialize, ToSchema)]
pub(super) struct ActiveToken {
    #[schema(schema_with = always::<true>)]
    active: bool,
    /// The user's id.
    #[schema(example = "019aa3f0-5b7c-7c3e-9d0a-3f2a1b4c5d6e")]
    sub: Uuid,
    /// The user's name.
    #[schema(example = "alice")]
    username: String,
    /// The user's roles, separated by spaces; empty if there are none.
    #[schema(example = "admin support")]
    scope: String,
    /// The session's id.
    #[schema(example = "019aa3f0-6c1d-7d2a-8b40-51c2d3e4f506")]
    sid: Uuid,
    /// The token's own id.
    #[schema(example = "019aa3f0-6c1d-7000-9c3f-0d1e2f3a4b5c")]
    jti: Uuid,
    /// Who issued it.
    #[schema(example = "https://auth.example.com")]
    iss: String,
    /// Whom it is for.
    #[schema(example = "gatepass")]
    aud: String,
    /// When it was issued, in seconds since 1970.
    #[schema(example = 1_767_323_045)]
    iat: i64,
    /// When it becomes valid, in seconds since 1970.
    #[schema(example = 1_767_323_045)]
    nbf: i64,
    /// When it expires, in seconds since 1970.
    #[schema(example = 1_767_323_945)]
    exp: i64,
    /// Always `Bearer` (RFC 6750).
    #[schema(example = "Bearer")]
    token_type: &'static str,
}

/// A member with the same value in every document.
fn always<const VALUE: bool>() -> Object {
    ObjectBuilder::new().schema_type(Type::Boolean).enum_values(Some([VALUE])).build()
}

impl From<&Claims> for ActiveToken {
    fn from(claims: &Claims) -> Self {
        Self {
            active: true,
            sub: claims.user_id,
            username: claims.username.clone(),
            scope: claims.roles.join(" "),
            sid: claims.session_id,
            jti: claims.token_id,
            iss: claims.issuer.clone(),
            aud: claims.audience.clone(),
            iat: claims.issued_at.unix_timestamp(),
            nbf: claims.not_before.unix_timestamp(),
            exp: claims.expires_at.unix_timestamp(),
            token_type: "Bearer",
        }
    }
}

/// Introspect a token: ask whether it is active, and what it says (RFC 7662).
///
/// For services that do not verify access tokens themselves. Anything except an access token that this service accepts
/// now is inactive, and the response does not say why. A refresh token is never active here, since only this service
/// accepts it.
#[utoipa::path(
    post, path = "/tokens/introspect", tag = "tokens", security(("client" = [])),
    request_body(content = TokenRequest, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, description = "Whether the token is active, and what it says.", body = Introspection)),
)]
pub(super) async fn introspect(
    State(app): State<App>,
    _client: AuthenticatedClient,
    Form(body): Form<TokenRequest>,
) -> Result<axum::Json<Introspection>, Problem> {
    let claims = accepted(&app, body.token.expose_secret())?;
    Ok(axum::Json(match claims {
        Some(claims) => Introspection::Active(Box::new(ActiveToken::from(&*claims))),
        None => Introspection::Inactive(InactiveToken { active: false }),
    }))
}

/// Revoke a token, which ends its session (RFC 7009).
///
/// Whoever holds an access token or a refresh token of a session may end that session, with or without the credentials
/// of a client, even after the token has expired. The response is the same for a token that belongs to no session, or
/// to one that has already ended, and for an expired access token whose key is gone.
#[utoipa::path(
    post, path = "/tokens/revoke", tag = "tokens", security((), ("client" = [])),
    request_body(content = TokenRequest, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, description = "The token's session, if there was one, has ended.")),
)]
pub(super) async fn revoke(
    State(app): State<App>,
    _client: Option<AuthenticatedClient>,
    cause: Cause,
    Form(body): Form<TokenRequest>,
) -> Result<StatusCode, Problem> {
    let (token, now) = (body.token.expose_secret(), app.clock.now());
    // Even a revoked or expired token identifies its session, which may live on for a long time.
    let session = match app.keys.verifier().recognize(token, now, app.clock.elapsed()) {
        Ok(claims) => Some((claims.user_id, claims.session_id)),
        Err(unknown @ Rejection::RevocationsUnknown) => return Err(Refusal::Token(unknown).into()),
        Err(_) => app.accounts.session_of(token).await?,
    };
    if let Some((user_id, session_id)) = session {
        match app.accounts.caused_by(cause).revoke_session(user_id, session_id, now).await {
            Ok(()) | Err(account::Error::NoSuchSession) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(StatusCode::OK)
}

/// The claims of an access token that this service accepts now; `None` for anything else.
fn accepted(app: &App, token: &str) -> Result<Option<Arc<Claims>>, Problem> {
    let (claims, sighting) = match app.sight(token) {
        Ok(sighted) => sighted,
        Err(unknown @ Rejection::RevocationsUnknown) => return Err(Refusal::Token(unknown).into()),
        Err(_) => return Ok(None),
    };
    // The client got the token from its holder, who is using it; the bearer layer will not take it for new again.
    if sighting == Sighting::First {
        app.activity.note(&claims, app.clock.now());
    }
    Ok(Some(claims))
}
