//! `/admin/users/by-external-id`: the system that users come from creates and changes them here.

use axum::{
    RequestPartsExt,
    extract::{FromRequestParts, Path, State, rejection::PathRejection},
    http::{StatusCode, header::LOCATION, request},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{App, Problem, UserBody, admin::Administrator, json::Json};
use crate::{
    account::{FieldError, import::Outcome},
    random,
};

/// The id in the route's path, percent-decoded; the use case checks it against the rules.
pub(super) struct ExternalId(String);

impl FromRequestParts<App> for ExternalId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut request::Parts, _: &App) -> Result<Self, Problem> {
        let id: Result<Path<String>, PathRejection> = parts.extract().await;
        id.map(|Path(id)| Self(id)).map_err(|_| {
            Problem::invalid(vec![FieldError::new("external_id", "invalid_characters", "is not valid UTF-8")])
        })
    }
}

/// A user as another system has them: a line of `gatepass import`. A field that is left out or `null` stays as it is.
#[derive(Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ExternalUser {
    /// If given, the same as in the path.
    #[schema(example = "17", max_length = 256)]
    external_id: Option<String>,
    /// Letters, digits, `_`, `.` and `-`; unique regardless of case. An existing user keeps theirs.
    #[schema(example = "alice", min_length = 3, max_length = 64, pattern = "^[A-Za-z0-9_.-]{3,64}$")]
    username: String,
    /// Unique regardless of case; at most 254 bytes. A different address is unverified unless `is_email_verified` says
    /// otherwise.
    #[schema(example = "alice@example.com", format = Email, max_length = 254)]
    email: String,
    /// For display.
    #[schema(example = "Alice Liddell", max_length = 256, pattern = r"^[^\u0000-\u001f\u007f-\u009f]*$")]
    full_name: Option<String>,
    /// All the roles of the user: at most 32, each a letter `a-z`, then up to 63 of `a-z 0-9 _ . : -`.
    #[schema(example = json!(["support"]), max_items = 32)]
    roles: Option<Vec<String>>,
    /// Whether the user has shown that the address is theirs.
    #[schema(example = true)]
    is_email_verified: Option<bool>,
    /// Whether the user is locked out. Locking a user out ends their sessions.
    #[schema(example = false)]
    disabled: Option<bool>,
    /// When the user was created there (RFC 3339). If not given, now.
    #[schema(example = "2019-05-06T07:08:09Z", format = DateTime)]
    created_at: Option<String>,
    /// The time as of which this record is true. An existing user is changed only by a record that is later than their
    /// last change. For `roles` and `disabled`, what the user has changed themselves does not count as such a change.
    #[schema(example = "2025-01-01T00:00:00Z", format = DateTime)]
    updated_at: Option<String>,
    /// When the password was set.
    #[schema(example = "2019-05-06T07:08:09Z", format = DateTime)]
    password_changed_at: Option<String>,
    /// In one of the formats that `gatepass import` takes, except bare hexadecimal. A hash that is not the user's
    /// current one ends the user's sessions.
    #[schema(example = "$2b$12$EixZaYVK1fsbw1ZfbX3OXePaWxn96p36WQoeG6Lruj3vjPGga31lW")]
    password_hash: Option<String>,
}

/// The user as they are now.
#[derive(Serialize, ToSchema)]
pub(super) struct PutUser {
    #[serde(flatten)]
    user: UserBody,
    /// What the request has done.
    outcome: Outcome,
}

/// Create a user, or change them if the record is newer, by the id that they have in another system.
///
/// The rules are those of `gatepass import`. Send the same record as often as you like: only the first has an effect.
#[utoipa::path(
    put, path = "/admin/users/by-external-id/{id}", tag = "admin", security(("bearer" = [])),
    params(("id" = String, Path, description = "The user's id in the other system: 1 to 256 characters, percent-encoded.")),
    request_body = ExternalUser,
    responses(
        (status = 200, description = "The user existed: `outcome` is `updated` or `unchanged`.", body = PutUser),
        (status = 201, description = "The user is new.", body = PutUser, headers(
            ("Location" = String, description = "Where administrators find the user, relative to this address."),
        )),
        (status = 403, description = "`forbidden`: the caller is not an administrator."),
        (status = 409, description = "`username_taken` or `email_taken`: it belongs to a user other than the one this id names; for an existing user, `roles` and `disabled` have been applied all the same if the record is newer; or `last_admin`: no other enabled user is an administrator, so this one can be neither disabled nor demoted."),
    ),
)]
pub(super) async fn put(
    Administrator(cause): Administrator,
    State(app): State<App>,
    ExternalId(id): ExternalId,
    Json(body): Json<ExternalUser>,
) -> Result<Response, Problem> {
    let record = serde_json::to_value(&body).and_then(serde_json::from_value).map_err(Problem::fault)?;
    let accounts = app.accounts.caused_by(cause);
    let (user, outcome) = accounts.put(&id, record, app.clock.now(), &mut random::system()).await?;
    // Relative to this route, wherever a proxy mounts it.
    let location = format!("../{}", user.id);
    let body = axum::Json(PutUser { user: user.into(), outcome });
    Ok(match outcome {
        Outcome::Created => (StatusCode::CREATED, [(LOCATION, location)], body).into_response(),
        Outcome::Updated | Outcome::Unchanged => body.into_response(),
    })
}
