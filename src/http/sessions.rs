//! `/sessions`: where a user is logged in, and logging out there.

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
    /// When it was last seen: the latest login, renewal or first use of an access token.
    #[schema(example = "2026-01-02T03:04:05.678901Z")]
    #[serde(with = "time::serde::rfc3339")]
    last_used_at: OffsetDateTime,
    /// When it ends, however active it is.
    #[schema(example = "2026-02-01T03:04:05Z")]
    #[serde(with = "time::serde::rfc3339")]
    expires_at: OffsetDateTime,
    /// The client's `User-Agent` at the login or the last renewal.
    #[schema(example = "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0")]
    user_agent: Option<String>,
    /// The address that this login or renewal came from.
    #[schema(value_type = Option<String>, example = "203.0.113.7")]
    client_ip: Option<IpAddr>,
    /// Whether this request was made with a token of this session.
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
    /// The live ones, most recently used first, up to a thousand.
    sessions: Vec<SessionBody>,
}

/// List the sessions in which the user is logged in.
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

/// End one of the user's sessions. It may be the current one.
#[utoipa::path(
    delete, path = "/sessions/{id}", tag = "sessions", security(("bearer" = [])),
    params(("id" = Uuid, Path, description = "The session's id.")),
    responses(
        (status = 204, description = "The session has ended, and its tokens are refused."),
        (status = 404, description = "`not_found`: the user has no live session with this id."),
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
    /// Whether to end the current session as well.
    #[serde(default)]
    all: bool,
}

/// Log the user out everywhere else.
#[utoipa::path(
    delete, path = "/sessions", tag = "sessions", security(("bearer" = [])),
    params(WhichToEnd),
    responses(
        (status = 204, description = "The sessions have ended, and their tokens are refused."),
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
