//! `/admin`: user management, for users with the role `admin`.

use std::sync::Arc;

use axum::{
    Extension, RequestPartsExt,
    extract::{FromRequestParts, Path, State},
    http::{StatusCode, request},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{
    App, Problem, UserBody,
    json::Json,
    query::{Faults, Query},
    users::present,
};
use crate::{
    account::{ADMIN_ROLE, Actor, Cause, Position, Search, UserChange},
    token::Claims,
};

/// The caller is an administrator, and the cause of what they change. Handlers extract this before anything else, so
/// that nobody else learns anything.
pub(super) struct Administrator(pub(super) Cause);

impl FromRequestParts<App> for Administrator {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut request::Parts, app: &App) -> Result<Self, Problem> {
        let claims = parts.extract::<Extension<Arc<Claims>>>().await;
        let Extension(claims) = claims.map_err(Problem::fault)?;
        // The token has the roles of when it was issued; those in the database now decide. They may change before the
        // request has done its work, so a statement that changes something looks again (`caused_by`).
        let caller = app.accounts.profile(claims.user_id).await?;
        if !caller.roles.iter().any(|role| role == ADMIN_ROLE) {
            return Err(Problem::forbidden(ADMIN_ROLE));
        }
        let Ok(cause) = Cause::from_request_parts(parts, app).await;
        Ok(Self(cause.by(&Actor::Administrator(claims.user_id))))
    }
}

/// The id in a route's path. Anything that is not an id names nothing: 404.
pub(super) struct Id(pub(super) Uuid);

impl FromRequestParts<App> for Id {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut request::Parts, _: &App) -> Result<Self, Problem> {
        parts.extract().await.map(|Path(id)| Self(id)).map_err(|_| Problem::not_found())
    }
}

/// Which users to list.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct ListParameters {
    /// What the username or the e-mail address begins with, regardless of case; at most 254 bytes. There are no
    /// wildcards. With it, users are sorted by the username or address that matched; without it by age, oldest first.
    #[param(max_length = 254, example = "ali")]
    query: Option<String>,
    /// A role that the users have.
    #[param(example = "admin")]
    role: Option<String>,
    /// Where to continue: the `next_cursor` of the previous page, with the same `query` and `role`.
    #[param(example = "AAGao_BbfHw-nQo_KhtMXW4")]
    cursor: Option<String>,
    /// The maximum number of users.
    #[param(value_type = Option<u32>, minimum = 1, maximum = 200, default = 50)]
    limit: Option<String>,
}

/// A page of users.
#[derive(Serialize, ToSchema)]
pub(super) struct Users {
    /// The users.
    users: Vec<UserBody>,
    /// Where to continue; `null` if there are no more.
    #[schema(example = "AAGao_BbfHw-nQo_KhtMXW4")]
    next_cursor: Option<String>,
}

/// List users, page by page.
///
/// A user who does not change is on exactly one page, whoever is added or deleted meanwhile.
#[utoipa::path(
    get, path = "/admin/users", tag = "admin", security(("bearer" = [])),
    params(ListParameters),
    responses(
        (status = 200, description = "A page of users.", body = Users),
        (status = 403, description = "`forbidden`: the caller is not an administrator."),
        (status = 422, description = "`validation_failed`: `errors` says what is wrong with each parameter."),
    ),
)]
pub(super) async fn list_users(
    _: Administrator,
    State(app): State<App>,
    Query(parameters): Query<ListParameters>,
) -> Result<axum::Json<Users>, Problem> {
    let mut faults = Faults::default();
    let limit = faults.limit(parameters.limit.as_deref());
    let after =
        faults.read("cursor", parameters.cursor.as_deref(), "the `next_cursor` of a page", read_cursor);
    faults.check()?;
    let search = Search { query: parameters.query.as_deref(), role: parameters.role.as_deref() };
    let page = app.accounts.search(&search, after.as_ref(), limit).await?;
    Ok(axum::Json(Users {
        users: page.users.into_iter().map(UserBody::from).collect(),
        next_cursor: page.next.as_ref().map(write_cursor),
    }))
}

/// A position as clients get it: base64url of one byte for its kind, followed by its value.
fn write_cursor(position: &Position) -> String {
    let bytes = match position {
        Position::Id(id) => [&[0], &id.as_bytes()[..]].concat(),
        Position::Key(key) => [&[1], key.as_bytes()].concat(),
    };
    URL_SAFE_NO_PAD.encode(bytes)
}

fn read_cursor(text: &str) -> Option<Position> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    match bytes.split_first()? {
        (0, id) => Uuid::from_slice(id).ok().map(Position::Id),
        // Text in Postgres cannot hold a NUL, so no key does.
        (1, key) => std::str::from_utf8(key)
            .ok()
            .filter(|key| !key.contains('\0'))
            .map(|key| Position::Key(key.to_owned())),
        _ => None,
    }
}

/// Get a user.
#[utoipa::path(
    get, path = "/admin/users/{id}", tag = "admin", security(("bearer" = [])),
    params(("id" = Uuid, Path, description = "The user's id.")),
    responses(
        (status = 200, description = "The user.", body = UserBody),
        (status = 403, description = "`forbidden`: the caller is not an administrator."),
        (status = 404, description = "`not_found`: there is no such user."),
    ),
)]
pub(super) async fn user(
    _: Administrator,
    State(app): State<App>,
    Id(id): Id,
) -> Result<axum::Json<UserBody>, Problem> {
    Ok(axum::Json(app.accounts.by_id(id).await?.into()))
}

/// What to change about a user. A field that is left out stays as it is.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct UpdateUserRequest {
    /// All the roles of the user: at most 32, each a letter `a-z`, then up to 63 of `a-z 0-9 _ . : -`. Access tokens
    /// with other roles are refused from then on, and a renewal gives one with these.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Vec<String>, required = false, example = json!(["admin", "billing:read"]), max_items = 32)]
    roles: Option<Vec<String>>,
    /// Whether the user is locked out. Locking a user out ends their sessions.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = bool, required = false, example = false)]
    disabled: Option<bool>,
    /// For display; `null` removes it.
    #[serde(default, deserialize_with = "present")]
    #[schema(
        value_type = Option<String>,
        example = "Alice P. Liddell",
        max_length = 256,
        pattern = r"^[^\u0000-\u001f\u007f-\u009f]*$"
    )]
    full_name: Option<Option<String>>,
    /// At most 254 bytes. A different address is unverified until it is shown to be the user's.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = String, required = false, example = "alice@example.org", format = Email, max_length = 254)]
    email: Option<String>,
}

/// Change a user. If one of the changes is not possible, none is made.
#[utoipa::path(
    patch, path = "/admin/users/{id}", tag = "admin", security(("bearer" = [])),
    params(("id" = Uuid, Path, description = "The user's id.")),
    request_body = UpdateUserRequest,
    responses(
        (status = 200, description = "The user as they are now.", body = UserBody),
        (status = 403, description = "`forbidden`: the caller is not an administrator."),
        (status = 404, description = "`not_found`: there is no such user."),
        (status = 409, description = "`email_taken`: another user has it; or `last_admin`: no other enabled user is an administrator, so this one can be neither disabled nor demoted."),
    ),
)]
pub(super) async fn update_user(
    Administrator(cause): Administrator,
    State(app): State<App>,
    Id(id): Id,
    Json(body): Json<UpdateUserRequest>,
) -> Result<axum::Json<UserBody>, Problem> {
    let change = UserChange {
        full_name: body.full_name.as_ref().map(Option::as_deref),
        email: body.email.as_deref(),
        roles: body.roles.as_deref(),
        disabled: body.disabled,
    };
    let accounts = app.accounts.caused_by(cause);
    Ok(axum::Json(accounts.update(id, &change, app.clock.now()).await?.into()))
}

/// Delete a user and their sessions for good.
#[utoipa::path(
    delete, path = "/admin/users/{id}", tag = "admin", security(("bearer" = [])),
    params(("id" = Uuid, Path, description = "The user's id.")),
    responses(
        (status = 204, description = "The user has been deleted, and their tokens are refused."),
        (status = 403, description = "`forbidden`: the caller is not an administrator."),
        (status = 404, description = "`not_found`: there is no such user."),
        (status = 409, description = "`last_admin`: no other enabled user is an administrator."),
    ),
)]
pub(super) async fn delete_user(
    Administrator(cause): Administrator,
    State(app): State<App>,
    Id(id): Id,
) -> Result<StatusCode, Problem> {
    app.accounts.caused_by(cause).delete(id, app.clock.now()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Log a user out everywhere.
#[utoipa::path(
    delete, path = "/admin/users/{id}/sessions", tag = "admin", security(("bearer" = [])),
    params(("id" = Uuid, Path, description = "The user's id.")),
    responses(
        (status = 204, description = "The user's sessions have ended, and their tokens are refused."),
        (status = 403, description = "`forbidden`: the caller is not an administrator."),
        (status = 404, description = "`not_found`: there is no such user."),
    ),
)]
pub(super) async fn end_sessions(
    Administrator(cause): Administrator,
    State(app): State<App>,
    Id(id): Id,
) -> Result<StatusCode, Problem> {
    let user = app.accounts.by_id(id).await?;
    app.accounts.caused_by(cause).revoke_sessions(user.id, None, app.clock.now()).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_back_unchanged() {
        let id = Uuid::from_u128(0x019a_a3f0_5b7c_7c3e_9d0a_3f2a_1b4c_5d6e);
        for position in
            [Position::Id(id), Position::Key("alice".into()), Position::Key("élise@example.com".into())]
        {
            assert_eq!(read_cursor(&write_cursor(&position)), Some(position));
        }
        assert_eq!(write_cursor(&Position::Id(id)), "AAGao_BbfHw-nQo_KhtMXW4", "the documentation's");
    }

    #[test]
    fn malformed_cursors_are_refused() {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        for text in
            ["", "alice", "AAGao_BbfHw-nQo_KhtMXW4=", "%", "019aa3f0-5b7c-7c3e-9d0a-3f2a1b4c5d6e", "\0", "ä"]
                .map(str::to_owned)
                .into_iter()
                .chain([encode(&[0; 16]), encode(&[0; 18]), encode(&[2; 17]), encode(b"\x01\xff")])
                .chain([encode(b"\x01a\0b")])
        {
            assert_eq!(read_cursor(&text), None, "{text:?}");
        }
    }
}
