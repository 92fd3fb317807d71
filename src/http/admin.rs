//! `/admin`: users, for those who have the role `admin`.

use std::sync::Arc;

use axum::{
    Extension,
    extract::{Path, State, rejection::PathRejection},
    http::StatusCode,
};
use uuid::Uuid;

use super::{App, Problem, UserBody};
use crate::{account::ADMIN_ROLE, token::Claims};

/// Look at a user.
#[utoipa::path(
    get, path = "/admin/users/{id}", tag = "admin", security(("bearer" = [])),
    params(("id" = Uuid, Path, description = "The user's id.")),
    responses(
        (status = 200, description = "The user.", body = UserBody),
        (status = 403, description = "`forbidden`: the caller is no administrator."),
        (status = 404, description = "`not_found`: there is no such user."),
    ),
)]
pub(super) async fn user(
    State(app): State<App>,
    Extension(claims): Extension<Arc<Claims>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<axum::Json<UserBody>, Problem> {
    let id = administered(&app, &claims, id).await?;
    Ok(axum::Json(app.accounts().by_id(id).await?.into()))
}

/// Log a user out everywhere.
#[utoipa::path(
    delete, path = "/admin/users/{id}/sessions", tag = "admin", security(("bearer" = [])),
    params(("id" = Uuid, Path, description = "The user's id.")),
    responses(
        (status = 204, description = "The user's sessions have ended, and their tokens are refused."),
        (status = 403, description = "`forbidden`: the caller is no administrator."),
        (status = 404, description = "`not_found`: there is no such user."),
    ),
)]
pub(super) async fn end_sessions(
    State(app): State<App>,
    Extension(claims): Extension<Arc<Claims>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, Problem> {
    let id = administered(&app, &claims, id).await?;
    let user = app.accounts().by_id(id).await?;
    app.accounts().revoke_sessions(user.id, None, app.clock().now()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The user whom an administrator names.
async fn administered(
    app: &App,
    caller: &Claims,
    id: Result<Path<String>, PathRejection>,
) -> Result<Uuid, Problem> {
    // The roles of the token are those at login; what the database says now decides.
    let caller = app.accounts().profile(caller.user_id).await?;
    if !caller.roles.iter().any(|role| role == ADMIN_ROLE) {
        return Err(Problem::forbidden(ADMIN_ROLE));
    }
    // What is no id names nobody.
    let Path(id) = id.map_err(|_| Problem::not_found())?;
    Uuid::parse_str(&id).map_err(|_| Problem::not_found())
}
