//! `/revocations`: what has been revoked, for services that verify access tokens themselves.

use std::time::Duration;

use axum::extract::State;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{
    App, Problem,
    client_auth::AuthenticatedClient,
    query::{Faults, Query},
};
use crate::{
    account,
    bearer::Refusal,
    revocation::{Cursor, PublishError, Revocation},
    token::Rejection,
};

/// Where requests may wait for news.
pub(super) const PATH: &str = "/revocations";
/// How long they may wait, on top of `Limits::handler`.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(MAX_WAIT_SECONDS as u64);
const MAX_WAIT_SECONDS: u32 = 30;
/// How long they wait by default: proxies and clients that give up after 30 s are common.
const WAIT_SECONDS: u32 = 25;

/// Since when, and for how long.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Since {
    /// The `next` of the previous answer. Without it, you get everything that concerns tokens which may still be valid.
    since: Option<String>,
    /// How many seconds to wait if there is nothing new: 0 to 30; by default 25.
    #[param(value_type = Option<u64>, minimum = 0, maximum = 30, default = 25, example = 25)]
    wait: Option<String>,
}

/// What has been revoked.
#[derive(Serialize, ToSchema)]
pub(super) struct Revocations {
    /// At most 5000. Some may have been in an earlier answer.
    revocations: Vec<RevocationBody>,
    /// The `since` of the next request, whichever replica that goes to.
    #[schema(
        example = "eyJQYXN0Ijp7InNuYXBzaG90IjoiNzMxOjczMToiLCJzZXJ2ZXJfc3RhcnRlZF9hdCI6MTc2NzMyMzA0NTY3ODkwMX19"
    )]
    next: String,
    /// Whether this answer was cut off at its maximum size, so that the next request is answered at once. As long as it
    /// is true, you do not know everything yet.
    #[schema(example = false)]
    more: bool,
    /// Whether this answer starts over with everything that concerns tokens which may still be valid: there was no
    /// `since`, or the database has failed over or restarted. `change` may have started over too: keep the new entries
    /// apart from what you know about users, and replace that with them once an answer has `more` false.
    #[schema(example = false)]
    reset: bool,
}

/// One revocation.
#[derive(Serialize, ToSchema)]
#[schema(as = Revocation)]
#[serde(untagged)]
pub(super) enum RevocationBody {
    Session(EndedSession),
    User(ChangedRoles),
}

/// A session that has ended: its access tokens are refused as `session_revoked`.
#[derive(Serialize, ToSchema)]
pub(super) struct EndedSession {
    /// The session's id.
    #[schema(example = "019aa3f0-6c1d-7d2a-8b40-51c2d3e4f506")]
    session_id: Uuid,
    /// When the last of its access tokens expires. After that, and any leeway that you allow, you can forget the
    /// session.
    #[schema(example = "2026-01-02T03:19:05Z")]
    #[serde(with = "time::serde::rfc3339")]
    expires_at: OffsetDateTime,
}

/// A user whose roles have changed: access tokens whose roles are not exactly these are refused as `token_outdated`.
#[derive(Serialize, ToSchema)]
pub(super) struct ChangedRoles {
    /// The user's id.
    #[schema(example = "019aa3f0-5b7c-7c3e-9d0a-3f2a1b4c5d6e")]
    user_id: Uuid,
    /// The user's roles since the change, sorted.
    #[schema(example = json!(["admin", "support"]))]
    roles: Vec<String>,
    /// Of two changes to one user, the one with the higher number is the later, in whatever order they arrive, unless
    /// there was a `reset` between them.
    #[schema(example = 42)]
    change: i64,
    /// When the last access token with other roles expires. After that, and any leeway that you allow, you can
    /// forget the change.
    #[schema(example = "2026-01-02T03:19:05Z")]
    #[serde(with = "time::serde::rfc3339")]
    expires_at: OffsetDateTime,
}

impl RevocationBody {
    fn new(row: Revocation) -> Option<Self> {
        let Revocation { id: change, session_id, user_id, roles, expires_at, .. } = row;
        let user = || {
            Some(Self::User(ChangedRoles {
                user_id: user_id?,
                roles: roles.unwrap_or_default(),
                change,
                expires_at,
            }))
        };
        session_id.map(|session_id| Self::Session(EndedSession { session_id, expires_at })).or_else(user)
    }
}

/// Follow what is revoked.
///
/// For services that verify access tokens themselves, and yet refuse those of a session that has ended. Ask without
/// `since`, keep what you get until its `expires_at`, and ask again with `next` as `since`, for ever.
///
/// The answer comes as soon as there is something new, at the latest when `wait` is over, and holds everything that was
/// revoked before the request was sent. After a failover or restart of the database, you get everything once more, with
/// `reset`. A service that no longer gets answers should soon stop accepting tokens.
#[utoipa::path(
    get, path = "/revocations", tag = "tokens", security(("client" = [])),
    params(Since),
    responses(
        (status = 200, description = "What has been revoked since.", body = Revocations),
        (
            status = 422,
            description = "`validation_failed`: `since` is not the `next` of an answer, `wait` is not a number up to 30, or there is another parameter.",
        ),
    ),
)]
pub(super) async fn list_revocations(
    State(app): State<App>,
    _client: AuthenticatedClient,
    Query(since): Query<Since>,
) -> Result<axum::Json<Revocations>, Problem> {
    let (cursor, wait) = read(since)?;
    let page = app.publisher.after(cursor, wait, app.stopped()).await?;
    Ok(axum::Json(Revocations {
        revocations: page.rows.into_iter().filter_map(RevocationBody::new).collect(),
        next: page.next.to_string(),
        more: page.more,
        reset: page.reset,
    }))
}

fn read(Since { since, wait }: Since) -> Result<(Option<Cursor>, Duration), Problem> {
    let mut faults = Faults::default();
    let cursor = faults.read("since", since.as_deref(), "the `next` of an answer", |text| text.parse().ok());
    let wait = faults.number("wait", wait.as_deref(), "a number of seconds", 0..=MAX_WAIT_SECONDS);
    faults.check()?;
    Ok((cursor, Duration::from_secs(wait.unwrap_or(WAIT_SECONDS).into())))
}

impl From<PublishError> for Problem {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Stale => Refusal::Token(Rejection::RevocationsUnknown).into(),
            PublishError::Crowded => {
                Self::crowded("Too many services are waiting for revocations at the moment.")
            }
            PublishError::Store(error) => account::Error::from(error).into(),
        }
    }
}
