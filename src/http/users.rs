//! `/users`: registration, login, and the user's own account.

use std::sync::Arc;

use axum::{
    Extension,
    extract::State,
    http::{StatusCode, header::LOCATION},
    response::IntoResponse,
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{App, Problem, json::Json, tokens::Tokens};
use crate::{
    account::{self, Caller, Cause, Registration, User},
    metrics::LoginOutcome,
    password::Password,
    random,
    token::Claims,
};

/// A user, as seen by anybody who may see them at all.
#[derive(Serialize, ToSchema)]
#[schema(as = User)]
pub struct UserBody {
    /// UUIDv7.
    #[schema(example = "019aa3f0-5b7c-7c3e-9d0a-3f2a1b4c5d6e")]
    id: Uuid,
    /// As the user wrote it.
    #[schema(example = "alice")]
    username: String,
    /// As the user wrote it.
    #[schema(example = "alice@example.com", format = Email)]
    email: String,
    /// For display.
    #[schema(example = "Alice Liddell")]
    full_name: Option<String>,
    /// Sorted, without duplicates.
    #[schema(example = json!([]))]
    roles: Vec<String>,
    /// Whether the user has shown that the address is theirs.
    #[schema(example = false)]
    is_email_verified: bool,
    /// Whether the user is locked out.
    #[schema(example = false)]
    disabled: bool,
    /// When the current password was set.
    #[schema(example = "2026-01-02T03:04:05.678901Z")]
    #[serde(with = "time::serde::rfc3339")]
    password_changed_at: OffsetDateTime,
    /// When the user was created.
    #[schema(example = "2026-01-02T03:04:05.678901Z")]
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

impl From<User> for UserBody {
    fn from(user: User) -> Self {
        Self {
            id: user.id,
            username: user.username,
            email: user.email,
            full_name: user.full_name,
            roles: user.roles,
            is_email_verified: user.is_email_verified,
            disabled: user.disabled,
            password_changed_at: user.password_changed_at,
            created_at: user.created_at,
        }
    }
}

/// A user to register.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RegisterRequest {
    /// Letters, digits, `_`, `.` and `-`; unique regardless of case.
    #[schema(example = "alice", min_length = 3, max_length = 64, pattern = "^[A-Za-z0-9_.-]{3,64}$")]
    username: String,
    /// Unique regardless of case; at most 254 bytes. The Unicode and the ASCII form (`xn--…`) of a domain are not the
    /// same, nor are a letter and its compatibility form, such as full width.
    #[schema(example = "alice@example.com", format = Email, max_length = 254)]
    email: String,
    /// Any characters. Refused if it is common or made of the user's own data.
    #[schema(value_type = String, format = Password, example = "secret-horse-battery-9", min_length = 8, max_length = 256)]
    password: SecretString,
    /// For display.
    #[schema(example = "Alice Liddell", max_length = 256, pattern = r"^[^\u0000-\u001f\u007f-\u009f]*$")]
    full_name: Option<String>,
}

/// Register a user.
#[utoipa::path(
    post, path = "/users", tag = "users",
    request_body = RegisterRequest,
    responses(
        (status = 201, description = "The user.", body = UserBody, headers(
            ("Location" = String, description = "Where administrators find the user, relative to this address."),
        )),
        (status = 403, description = "`registration_closed`: users cannot register themselves here."),
        (status = 409, description = "`username_taken` or `email_taken`: another user has it."),
        (status = 429, description = "`too_many_attempts`: too many attempts from this address used a name or e-mail address that was taken. Try again after `Retry-After`."),
    ),
)]
pub(super) async fn register(
    State(app): State<App>,
    caller: Caller,
    cause: Cause,
    Json(body): Json<RegisterRequest>,
) -> Result<impl IntoResponse, Problem> {
    let password = Password::new(body.password.expose_secret());
    let registration = Registration {
        username: &body.username,
        email: &body.email,
        full_name: body.full_name.as_deref(),
        password: &password,
    };
    let (accounts, now) = (app.accounts.caused_by(cause), app.clock.now());
    let user = accounts.register(&registration, caller.ip, now, &mut random::system()).await?;
    // Relative to this route, wherever a proxy mounts it.
    let location = format!("admin/users/{}", user.id);
    Ok((StatusCode::CREATED, [(LOCATION, location)], axum::Json(UserBody::from(user))))
}

/// A name and a password.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LoginRequest {
    /// Username or e-mail address.
    #[schema(example = "alice")]
    username: String,
    /// The password.
    #[schema(value_type = String, format = Password, example = "secret-horse-battery-9")]
    password: SecretString,
}

/// A new session and its tokens.
#[derive(Serialize, ToSchema)]
pub(super) struct LoginResponse {
    #[serde(flatten)]
    tokens: Tokens,
    /// Who logged in.
    user: UserBody,
}

/// Log in: begin a session with a name and a password.
#[utoipa::path(
    post, path = "/users/login", tag = "users",
    request_body = LoginRequest,
    responses(
        (status = 200, description = "The session's tokens.", body = LoginResponse),
        (status = 401, description = "`invalid_credentials`: the user is unknown or disabled, or the password is wrong; the response never says which."),
        (status = 429, description = "`too_many_attempts`: too many failures with this name or from this address, whether or not the user exists. Try again after `Retry-After`."),
    ),
)]
pub(super) async fn log_in(
    State(app): State<App>,
    caller: Caller,
    cause: Cause,
    Json(body): Json<LoginRequest>,
) -> Result<axum::Json<LoginResponse>, Problem> {
    let password = Password::new(body.password.expose_secret());
    let now = app.clock.now();
    let accounts = app.accounts.caused_by(cause);
    let login = accounts.login(&body.username, &password, &caller, now, &mut random::system()).await;
    app.metrics.login(match &login {
        Ok(_) => LoginOutcome::Succeeded,
        Err(account::Error::InvalidCredentials) => LoginOutcome::Refused,
        Err(account::Error::TooManyAttempts { .. }) => LoginOutcome::Throttled,
        Err(account::Error::Overloaded { .. }) => LoginOutcome::Overloaded,
        Err(_) => LoginOutcome::Failed,
    });
    let login = login?;
    Ok(axum::Json(LoginResponse { tokens: Tokens::from(&login.tokens), user: login.user.into() }))
}

/// Get the user to whom the access token belongs.
#[utoipa::path(
    get, path = "/users/me", tag = "users", security(("bearer" = [])),
    responses((status = 200, description = "The user.", body = UserBody)),
)]
pub(super) async fn me(
    State(app): State<App>,
    Extension(claims): Extension<Arc<Claims>>,
) -> Result<axum::Json<UserBody>, Problem> {
    Ok(axum::Json(app.accounts.profile(claims.user_id).await?.into()))
}

/// What to change in the profile. A field that is left out stays as it is.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct UpdateMeRequest {
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

/// Distinguishes a field that is present from one that is absent: a present one must be of the field's type, so `null`
/// is accepted only if the type takes it.
pub(super) fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Change the user's own profile.
#[utoipa::path(
    patch, path = "/users/me", tag = "users", security(("bearer" = [])),
    request_body = UpdateMeRequest,
    responses(
        (status = 200, description = "The user as they are now.", body = UserBody),
        (status = 409, description = "`email_taken`: another user has it."),
        (status = 429, description = "`too_many_attempts`: too many attempts from this address used a name or e-mail address that was taken. Try again after `Retry-After`."),
    ),
)]
pub(super) async fn update_me(
    State(app): State<App>,
    Extension(claims): Extension<Arc<Claims>>,
    caller: Caller,
    cause: Cause,
    Json(body): Json<UpdateMeRequest>,
) -> Result<axum::Json<UserBody>, Problem> {
    let full_name = body.full_name.as_ref().map(Option::as_deref);
    let user = app
        .accounts
        .caused_by(cause)
        .update_profile(claims.user_id, full_name, body.email.as_deref(), caller.ip, app.clock.now())
        .await?;
    Ok(axum::Json(UserBody::from(user)))
}

/// Log out: end the current session.
#[utoipa::path(
    post, path = "/users/logout", tag = "users", security(("bearer" = [])),
    responses((status = 204, description = "The session has ended, and its tokens are refused.")),
)]
pub(super) async fn log_out(
    State(app): State<App>,
    Extension(claims): Extension<Arc<Claims>>,
    cause: Cause,
) -> Result<StatusCode, Problem> {
    app.accounts.caused_by(cause).log_out(claims.user_id, claims.session_id, app.clock.now()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The current password and the new one.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ChangePasswordRequest {
    /// The current password.
    #[schema(value_type = String, format = Password, example = "secret-horse-battery-9")]
    current_password: SecretString,
    /// Any characters. Refused if it is common or made of the user's own data.
    #[schema(value_type = String, format = Password, example = "another-horse-battery-10", min_length = 8, max_length = 256)]
    new_password: SecretString,
}

/// Change the user's own password. All their other sessions end.
#[utoipa::path(
    put, path = "/users/me/password", tag = "users", security(("bearer" = [])),
    request_body = ChangePasswordRequest,
    responses(
        (status = 204, description = "The password has been changed."),
        (status = 401, description = "`invalid_credentials`: the current password is wrong; or `missing_token`, `invalid_token`, `token_expired`, `session_revoked`, `token_outdated`."),
        (status = 429, description = "`too_many_attempts`: an attempt counts as a login, and too many have failed. Try again after `Retry-After`."),
    ),
)]
pub(super) async fn change_password(
    State(app): State<App>,
    Extension(claims): Extension<Arc<Claims>>,
    caller: Caller,
    cause: Cause,
    Json(body): Json<ChangePasswordRequest>,
) -> Result<StatusCode, Problem> {
    let current = Password::new(body.current_password.expose_secret());
    let new = Password::new(body.new_password.expose_secret());
    let session = (claims.user_id, claims.session_id);
    let now = app.clock.now();
    let accounts = app.accounts.caused_by(cause);
    accounts.change_password(session, &current, &new, caller.ip, now, &mut random::system()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The password, as confirmation.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DeleteMeRequest {
    /// The current password.
    #[schema(value_type = String, format = Password, example = "secret-horse-battery-9")]
    password: SecretString,
}

/// Delete the user's own account and its sessions for good.
#[utoipa::path(
    post, path = "/users/me/delete", tag = "users", security(("bearer" = [])),
    request_body = DeleteMeRequest,
    responses(
        (status = 204, description = "The user has been deleted, and their tokens are refused."),
        (status = 401, description = "`invalid_credentials`: the password is wrong; or `missing_token`, `invalid_token`, `token_expired`, `session_revoked`, `token_outdated`."),
        (status = 409, description = "`last_admin`: no other enabled user is an administrator."),
        (status = 429, description = "`too_many_attempts`: an attempt counts as a login, and too many have failed. Try again after `Retry-After`."),
    ),
)]
pub(super) async fn delete_me(
    State(app): State<App>,
    Extension(claims): Extension<Arc<Claims>>,
    caller: Caller,
    cause: Cause,
    Json(body): Json<DeleteMeRequest>,
) -> Result<StatusCode, Problem> {
    let password = Password::new(body.password.expose_secret());
    let accounts = app.accounts.caused_by(cause);
    accounts.delete_own(claims.user_id, &password, caller.ip, app.clock.now()).await?;
    Ok(StatusCode::NO_CONTENT)
}
