//! `/users/me/history` and `/admin/history`: what was changed, newest first.

use std::sync::Arc;

use axum::{Extension, extract::State};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{
    App, Problem,
    admin::Administrator,
    query::{Faults, Query},
};
use crate::{
    account::{Entry, Wanted},
    token::Claims,
};

/// Columns by name, before or after the change.
#[derive(Serialize, ToSchema)]
#[schema(as = ChangedColumns, value_type = Option<Object>, example = json!({ "full_name": "Alice Liddell" }))]
struct Columns(Option<Map<String, Value>>);

/// Personal and other columns together. If both name the same column, as no trigger does, the one that is not personal
/// counts.
fn columns(change: &Entry, when: &str) -> Columns {
    let mut all: Option<Map<String, Value>> = None;
    for data in change.personal.iter().chain([&change.changed_data]) {
        if let Some(Value::Object(columns)) = data.get(when) {
            all.get_or_insert_default().extend(columns.clone());
        }
    }
    Columns(all)
}

fn hidden(change: &Entry) -> Vec<String> {
    let names = change.changed_data.get("hidden").and_then(Value::as_array);
    names.into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned)).collect()
}

/// Who changed something about an account.
#[derive(Serialize, ToSchema)]
#[schema(as = ChangedBy)]
#[serde(rename_all = "snake_case")]
enum By {
    /// The user.
    Me,
    /// A user with the role `admin`.
    Administrator,
    /// Whoever runs the service, on its command line or in its database.
    Operator,
    /// The service itself.
    Service,
}

/// Something that happened to the user's own account.
#[derive(Serialize, ToSchema)]
pub(super) struct OwnChange {
    /// `users`: the account itself; `sessions`: a login or its end.
    #[schema(example = "users")]
    table: String,
    /// `INSERT`: it began; `UPDATE`: it changed or ended; `DELETE`: it was deleted.
    #[schema(example = "UPDATE")]
    operation: String,
    /// The id of the user or the session.
    #[schema(example = "019aa3f0-5b7c-7c3e-9d0a-3f2a1b4c5d6e")]
    id: Option<String>,
    /// The columns before; for an update, only those that changed.
    before: Columns,
    /// The columns after, likewise.
    after: Columns,
    /// Which other columns changed, whose values are shown to nobody.
    #[schema(example = json!(["password_hash"]))]
    hidden: Vec<String>,
    /// When it happened.
    #[schema(example = "2026-01-02T03:04:05.678901Z")]
    #[serde(with = "time::serde::rfc3339")]
    changed_at: OffsetDateTime,
    /// Who did it.
    by: By,
}

impl OwnChange {
    pub(super) fn new(change: Entry, me: Uuid) -> Self {
        let by = match change.actor.as_deref() {
            Some("service") => By::Service,
            Some(actor) => match Uuid::parse_str(actor) {
                Ok(id) if id == me => By::Me,
                Ok(_) => By::Administrator,
                Err(_) => By::Operator,
            },
            None => By::Operator,
        };
        Self {
            before: columns(&change, "before"),
            after: columns(&change, "after"),
            hidden: hidden(&change),
            table: change.table_name,
            operation: change.operation,
            id: change.row_id,
            changed_at: change.changed_at,
            by,
        }
    }
}

/// A page of what happened to the user's own account, newest first.
#[derive(Serialize, ToSchema)]
pub(super) struct OwnHistory {
    changes: Vec<OwnChange>,
    /// For the next page; `null` if this is the last.
    #[schema(example = "4711")]
    next_cursor: Option<String>,
}

/// Something that was changed.
#[derive(Serialize, ToSchema)]
#[schema(as = Change)]
pub struct ChangeBody {
    /// Increases with each change.
    #[schema(example = 4711)]
    id: i64,
    /// The table: `users`, `sessions`, `signing_keys`, `clients`, or `history` itself.
    #[schema(example = "users")]
    table: String,
    /// `INSERT`, `UPDATE`, `DELETE` or `TRUNCATE`; `DROP` when a month of the history was dropped.
    #[schema(example = "UPDATE")]
    operation: String,
    /// The row's id.
    #[schema(example = "019aa3f0-5b7c-7c3e-9d0a-3f2a1b4c5d6e")]
    row_id: Option<String>,
    /// The user whose account it is about.
    user_id: Option<Uuid>,
    /// The columns before; for an update, only those that changed.
    before: Columns,
    /// The columns after, likewise.
    after: Columns,
    /// Which other columns changed, whose values are shown to nobody.
    #[schema(example = json!(["password_hash"]))]
    hidden: Vec<String>,
    /// When it happened.
    #[schema(example = "2026-01-02T03:04:05.678901Z")]
    #[serde(with = "time::serde::rfc3339")]
    changed_at: OffsetDateTime,
    /// Who did it: a user's id, `cli:` and an operator's name, or `service`; `null` if nobody said, as by hand in psql.
    #[schema(example = "019aa3f0-5b7c-7c3e-9d0a-3f2a1b4c5d6e")]
    actor: Option<String>,
    /// The id of the request that asked for it.
    #[schema(example = "019aa3f0-7d2e-7e1f-8a0b-1c2d3e4f5061")]
    request_id: Option<String>,
    /// Who was logged in to the database.
    #[schema(example = "gatepass_app")]
    database_user: String,
}

impl From<Entry> for ChangeBody {
    fn from(change: Entry) -> Self {
        Self {
            before: columns(&change, "before"),
            after: columns(&change, "after"),
            hidden: hidden(&change),
            id: change.id,
            table: change.table_name,
            operation: change.operation,
            row_id: change.row_id,
            user_id: change.user_id,
            changed_at: change.changed_at,
            actor: change.actor,
            request_id: change.request_id,
            database_user: change.database_user,
        }
    }
}

/// A page of the history, newest first.
#[derive(Serialize, ToSchema)]
pub(super) struct HistoryPage {
    changes: Vec<ChangeBody>,
    /// For the next page; `null` if this is the last.
    #[schema(example = "4711")]
    next_cursor: Option<String>,
}

/// Which part of the user's own history.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct OwnQuery {
    /// The `next_cursor` of the previous page.
    cursor: Option<String>,
    /// The maximum number of changes, 1 to 200; by default 50.
    #[param(value_type = Option<u32>, minimum = 1, maximum = 200)]
    limit: Option<String>,
}

/// Which part of the history.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct AllQuery {
    /// Only changes to the account of this user, who may have been deleted.
    #[param(value_type = Option<Uuid>)]
    user: Option<String>,
    /// Only changes in this table: `users`, `sessions`, `signing_keys`, `clients` or `history`.
    table: Option<String>,
    /// Only changes at this time (RFC 3339) or later. A page may then hold fewer changes than `limit`, or none, without
    /// being the last: `next_cursor` tells.
    #[param(value_type = Option<String>, format = DateTime)]
    since: Option<String>,
    /// The `next_cursor` of the previous page.
    cursor: Option<String>,
    /// The maximum number of changes, 1 to 200; by default 50.
    #[param(value_type = Option<u32>, minimum = 1, maximum = 200)]
    limit: Option<String>,
}

fn cursor(faults: &mut Faults, text: Option<&str>) -> Option<i64> {
    faults.read("cursor", text, "the `next_cursor` of a page", |text| {
        text.parse().ok().filter(|cursor| *cursor > 0)
    })
}

/// List what happened to the user's own account: logins and their ends, changes to profile, password and roles.
#[utoipa::path(
    get, path = "/users/me/history", tag = "users", security(("bearer" = [])),
    params(OwnQuery),
    responses(
        (status = 200, description = "A page, newest first.", body = OwnHistory),
        (status = 422, description = "`validation_failed`: a parameter cannot be read."),
    ),
)]
pub(super) async fn own_history(
    State(app): State<App>,
    Extension(claims): Extension<Arc<Claims>>,
    Query(query): Query<OwnQuery>,
) -> Result<axum::Json<OwnHistory>, Problem> {
    let mut faults = Faults::default();
    let cursor = cursor(&mut faults, query.cursor.as_deref());
    let limit = faults.limit(query.limit.as_deref());
    faults.check()?;
    let wanted = Wanted { user_id: Some(claims.user_id), cursor, ..Wanted::default() };
    let page = app.history.page(&wanted, limit).await?;
    let changes = page.changes.into_iter().map(|change| OwnChange::new(change, claims.user_id)).collect();
    Ok(axum::Json(OwnHistory { changes, next_cursor: page.next_cursor.map(|id| id.to_string()) }))
}

/// List what was changed in users, sessions, keys and clients, and by whom.
#[utoipa::path(
    get, path = "/admin/history", tag = "admin", security(("bearer" = [])),
    params(AllQuery),
    responses(
        (status = 200, description = "A page, newest first.", body = HistoryPage),
        (status = 403, description = "`forbidden`: the caller is not an administrator."),
        (status = 422, description = "`validation_failed`: a parameter cannot be read."),
    ),
)]
pub(super) async fn whole_history(
    _: Administrator,
    State(app): State<App>,
    Query(query): Query<AllQuery>,
) -> Result<axum::Json<HistoryPage>, Problem> {
    let mut faults = Faults::default();
    let wanted = Wanted {
        user_id: faults.read("user", query.user.as_deref(), "a user's id", |text| Uuid::parse_str(text).ok()),
        table_name: faults.read(
            "table",
            query.table.as_deref(),
            "`users`, `sessions`, `signing_keys`, `clients` or `history`",
            |text| Wanted::TABLES.into_iter().find(|table| *table == text),
        ),
        since: faults.read("since", query.since.as_deref(), "a time as in RFC 3339", |text| {
            // It is compared in UTC, in which the very last times of other offsets do not exist.
            OffsetDateTime::parse(text, &Rfc3339).ok()?.checked_to_offset(UtcOffset::UTC)
        }),
        cursor: cursor(&mut faults, query.cursor.as_deref()),
    };
    let limit = faults.limit(query.limit.as_deref());
    faults.check()?;
    let page = app.history.page(&wanted, limit).await?;
    let next_cursor = page.next_cursor.map(|id| id.to_string());
    Ok(axum::Json(HistoryPage {
        changes: page.changes.into_iter().map(ChangeBody::from).collect(),
        next_cursor,
    }))
}
