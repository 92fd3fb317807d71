//! `/sessions`: where a user is logged in, and the end of it.

use std::{net::IpAddr, sync::Arc};

use axum::{Extension, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{App, Problem, admin::Id, query::Query};
use crate::{
    account::{Cause, Overview},
    token::Claims,
};

/// A session as its owner sees it.
#[derive(Serialize, ToSchema)]
#[schema(as = Session)]
pub(super) struct SessionBody {
    /// UUIDv7.
    #[schema(example = "019aa3f0-6c1d-7d2a-8b40-51c2d3e4f506")]
    id: Uuid,
    /// When the user logged in.
    #[schema(example = "2026-01-02T03:04:05.678901Z")]
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    /// When it was last seen: the last login, renewal or first use of an access token.
    #[schema(example = "2026-01-02T03:04:05.678901Z")]
    #[serde(with = "time::serde::rfc3339")]
    last_used_at: OffsetDateTime,
    /// When it ends however busy it is.
    #[schema(example = "2026-02-01T03:04:05Z")]
    #[serde(with = "time::serde::rfc3339")]
    expires_at: OffsetDateTime,
    /// What the client called itself at the login or the last renewal.
    #[schema(example = "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0")]
    user_agent: Option<String>,
    /// Where that came from.
    #[schema(value_type = Option<String>, example = "203.0.113.7")]
    client_ip: Option<IpAddr>,
    /// Whether it is the session of the token that asks.
    #[schema(example = true)]
    current: bool,
}

impl SessionBody {
    pub(super) fn new(session: Overview, current: Uuid) -> Self {
        Self {
            current: session.id == current,
            id: session.id,
            created_at: session.created_at,
            last_used_at: session.last_used_at,
            expires_at: session.expires_at,
            user_agent: session.user_agent,
            client_ip: session.client_ip.map(|ip| ip.addr()),
        }
    }
}

/// The sessions of a user.
#[derive(Serialize, ToSchema)]
pub(super) struct Sessions {
    /// Those that go on, the last used first; of very many the first thousand.
    sessions: Vec<SessionBody>,
}

/// Where the user is logged in.
#[utoipa::path(
    get, path = "/sessions", tag = "sessions", security(("bearer" = [])),
    responses((status = 200, description = "The user's sessions.", body = Sessions)),
)]
pub(super) async fn list_sessions(
    State(app): State<App>,
    Extension(claims): Extension<Arc<Claims>>,
) -> Result<axum::Json<Sessions>, Problem> {
    let sessions = app.accounts.sessions(claims.user_id, app.clock.now()).await?;
    let body = |session| SessionBody::new(session, claims.session_id);
    Ok(axum::Json(Sessions { sessions: sessions.into_iter().map(body).collect() }))
}

/// End one of the user's sessions; also the one that asks.
#[utoipa::path(
    delete, path = "/sessions/{id}", tag = "sessions", security(("bearer" = [])),
    params(("id" = Uuid, Path, description = "The session's id.")),
    responses(
        (status = 204, description = "It has ended, and its tokens are refused."),
        (status = 404, description = "`not_found`: no session of the user's that goes on."),
    ),
)]
pub(super) async fn end(
    State(app): State<App>,
    Extension(claims): Extension<Arc<Claims>>,
    cause: Cause,
    Id(id): Id,
) -> Result<StatusCode, Problem> {
    app.accounts.caused_by(cause).revoke_session(claims.user_id, id, app.clock.now()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Which sessions to end.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct WhichToEnd {
    /// Also the one that asks.
    #[serde(default)]
    all: bool,
}

/// Log the user out everywhere else.
#[utoipa::path(
    delete, path = "/sessions", tag = "sessions", security(("bearer" = [])),
    params(WhichToEnd),
    responses(
        (status = 204, description = "They have ended, and their tokens are refused."),
        (status = 422, description = "`validation_failed`: `all` is neither `true` nor `false`, or there is another parameter."),
    ),
)]
pub(super) async fn end_others(
    State(app): State<App>,
    Extension(claims): Extension<Arc<Claims>>,
    cause: Cause,
    Query(WhichToEnd { all }): Query<WhichToEnd>,
) -> Result<StatusCode, Problem> {
    let keep = (!all).then_some(claims.session_id);
    app.accounts.caused_by(cause).revoke_sessions(claims.user_id, keep, app.clock.now()).await?;
    Ok(StatusCode::NO_CONTENT)
}
