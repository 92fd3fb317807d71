//! `/tokens`: what holders of tokens do with them.

use axum::extract::State;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{App, Problem, json::Json};
use crate::{
    account::Caller,
    random,
    token::{AccessToken, refresh::RefreshToken},
};

/// A session's tokens.
#[derive(Serialize, ToSchema)]
pub(super) struct Tokens {
    /// The session.
    #[schema(example = "019aa3f0-6c1d-7d2a-8b40-51c2d3e4f506")]
    session_id: Uuid,
    /// For `Authorization: Bearer`.
    #[schema(example = "v4.local.2a9jQ…")]
    access_token: String,
    /// When the access token ends.
    #[schema(example = "2026-01-02T03:19:05Z")]
    #[serde(with = "time::serde::rfc3339")]
    access_token_expires_at: OffsetDateTime,
    /// For renewal; keep it as safe as a password.
    #[schema(example = "gpr_AZqj8F…")]
    refresh_token: String,
    /// When the refresh token ends unless it is used before.
    #[schema(example = "2026-01-03T03:04:05Z")]
    #[serde(with = "time::serde::rfc3339")]
    refresh_token_expires_at: OffsetDateTime,
    /// Always `Bearer` (RFC 6750).
    #[schema(example = "Bearer")]
    token_type: &'static str,
    /// Seconds until the access token ends (RFC 6749).
    #[schema(example = 900)]
    expires_in: i64,
}

impl Tokens {
    pub(super) fn new(
        session_id: Uuid,
        access: &AccessToken,
        refresh: &RefreshToken,
        refresh_token_expires_at: OffsetDateTime,
    ) -> Self {
        Self {
            session_id,
            access_token: access.expose().to_owned(),
            access_token_expires_at: access.expires_at,
            refresh_token: refresh.expose().to_owned(),
            refresh_token_expires_at,
            token_type: "Bearer",
            expires_in: (access.expires_at - access.issued_at).whole_seconds(),
        }
    }
}

/// A refresh token.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RenewRequest {
    /// The one that the login or the last renewal gave.
    #[schema(value_type = String, example = "gpr_AZqj8GwdfSqLQFHC0-T1BgAAAABDZ3lqYXJkIG9mIHRoZSByZWZyZXNoIHRva2VucyE")]
    refresh_token: SecretString,
}

/// Renew a session: its refresh token for a new one and a fresh access token.
///
/// An answer that got lost is no harm: the same refresh token may be sent again and gets the same successor, for a few
/// seconds in any case, and for as long as nothing of the answer has been used. A refresh token that is sent again later
/// than that has been copied by somebody: then the session ends.
#[utoipa::path(
    post, path = "/tokens/renew_access", tag = "tokens",
    request_body = RenewRequest,
    responses(
        (status = 200, description = "The session's new tokens.", body = Tokens),
        (
            status = 401,
            description = "`invalid_refresh_token`, `refresh_token_reused`, `session_revoked` or `session_expired`: log in again.",
        ),
    ),
)]
pub(super) async fn renew(
    State(app): State<App>,
    caller: Caller,
    Json(body): Json<RenewRequest>,
) -> Result<axum::Json<Tokens>, Problem> {
    let token = body.refresh_token.expose_secret();
    let renewed = app.accounts().renew(token, &caller, app.clock().now(), &mut random::system()).await?;
    Ok(axum::Json(Tokens::new(
        renewed.session_id,
        &renewed.access_token,
        &renewed.refresh_token,
        renewed.refresh_token_expires_at,
    )))
}
