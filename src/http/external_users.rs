//! `/admin/users/by-external-id`: users as the system that they come from changes them.

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
    account::{Cause, FieldError, import::Outcome},
    random,
};

/// The id in the route's path, with its `%` codes read; the use case checks it against the rules.
pub(super) struct ExternalId(String);

impl FromRequestParts<App> for ExternalId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut request::Parts, _: &App) -> Result<Self, Problem> {
        let id: Result<Path<String>, PathRejection> = parts.extract().await;
        id.map(|Path(id)| Self(id)).map_err(|_| {
            Problem::invalid(vec![FieldError::new("external_id", "invalid_characters", "is not in UTF-8")])
        })
    }
}

/// A user as another system has them: a line of `gatepass import`. What is not there, or `null`, stays as it is.
#[derive(Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ExternalUser {
    /// If it is given, the same as in the address.
    #[schema(example = "17", max_length = 256)]
    external_id: Option<String>,
    /// Letters, digits, `_`, `.` and `-`; unique without regard to case. A user who is there keeps theirs.
    #[schema(example = "alice", min_length = 3, max_length = 64, pattern = "^[A-Za-z0-9_.-]{3,64}$")]
    username: String,
    /// Unique without regard to case; at most 254 bytes. Another one is unverified unless `is_email_verified` says
    /// otherwise.
    #[schema(example = "alice@example.com", format = Email, max_length = 254)]
    email: String,
    /// For display.
    #[schema(example = "Alice Liddell", max_length = 256, pattern = r"^[^\u0000-\u001f\u007f-\u009f]*$")]
    full_name: Option<String>,
    /// Exactly these: `a-z`, then up to 63 of `a-z 0-9 _ . : -`, at most 32.
    #[schema(example = json!(["support"]), max_items = 32)]
    roles: Option<Vec<String>>,
    /// Whether the user has shown that the address is theirs.
    #[schema(example = true)]
    is_email_verified: Option<bool>,
    /// Whether the user is locked out, which ends the user's sessions.
    #[schema(example = false)]
    disabled: Option<bool>,
    /// When the user was made there (RFC 3339); now, if it is not given.
    #[schema(example = "2019-05-06T07:08:09Z", format = DateTime)]
    created_at: Option<String>,
    /// As of when all this is so. A user who is there is changed only by a record that is later than their last change;
    /// what they have changed themselves does not count against `roles` and `disabled`.
    #[schema(example = "2025-01-01T00:00:00Z", format = DateTime)]
    updated_at: Option<String>,
    /// When the password was set.
    #[schema(example = "2019-05-06T07:08:09Z", format = DateTime)]
    password_changed_at: Option<String>,
    /// In one of the forms that `gatepass import` takes, except bare hexadecimal. One that is not the user's present one
    /// ends the user's sessions.
    #[schema(example = "$2b$12$EixZaYVK1fsbw1ZfbX3OXePaWxn96p36WQoeG6Lruj3vjPGga31lW")]
    password_hash: Option<String>,
}

/// The user as it is now.
#[derive(Serialize, ToSchema)]
pub(super) struct PutUser {
    #[serde(flatten)]
    user: UserBody,
    /// What has come of it.
    outcome: Outcome,
}

/// Make a user, or change them if the record is newer, as another system says, by the id that they have there.
///
/// The rules are those of `gatepass import`. Send the same record as often as you like: only the first has an effect.
#[utoipa::path(
    put, path = "/admin/users/by-external-id/{id}", tag = "admin", security(("bearer" = [])),
    params(("id" = String, Path, description = "Who the user is in the other system: 1 to 256 characters, percent-encoded.")),
    request_body = ExternalUser,
    responses(
        (status = 200, description = "The user was there: `outcome` is `updated`, or `unchanged`.", body = PutUser),
        (status = 201, description = "The user is new.", body = PutUser, headers(
            ("Location" = String, description = "Where administrators find the user, relative to this address."),
        )),
        (status = 403, description = "`forbidden`: the caller is no administrator."),
        (status = 409, description = "`username_taken` or `email_taken`: a user has it whom this id does not name; of a user who was there, `roles` and `disabled` have been taken all the same if the record is newer; or `last_admin`: nobody else is an administrator, so that this one can be neither disabled nor demoted."),
    ),
)]
pub(super) async fn put(
    _: Administrator,
    State(app): State<App>,
    cause: Cause,
    ExternalId(id): ExternalId,
    Json(body): Json<ExternalUser>,
) -> Result<Response, Problem> {
    let record = serde_json::to_value(&body).and_then(serde_json::from_value).map_err(Problem::fault)?;
    let accounts = app.accounts.caused_by(cause);
    let (user, outcome) = accounts.put(&id, record, app.clock.now(), &mut random::system()).await?;
    // Relative to this route, wherever a proxy has put it.
    let location = format!("../{}", user.id);
    let body = axum::Json(PutUser { user: user.into(), outcome });
    Ok(match outcome {
        Outcome::Created => (StatusCode::CREATED, [(LOCATION, location)], body).into_response(),
        Outcome::Updated | Outcome::Unchanged => body.into_response(),
    })
}
