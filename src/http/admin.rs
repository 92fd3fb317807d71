//! `/admin`: users, for those who have the role `admin`.

use std::sync::Arc;

use axum::{
    Extension,
    extract::{Path, State, rejection::PathRejection},
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
    // The roles of the token are those at login; what the database says now decides.
    let caller = app.accounts().profile(claims.user_id).await?;
    if !caller.roles.iter().any(|role| role == ADMIN_ROLE) {
        return Err(Problem::forbidden(ADMIN_ROLE));
    }
    // What is no id names nobody.
    let Path(id) = id.map_err(|_| Problem::not_found())?;
    let id = Uuid::parse_str(&id).map_err(|_| Problem::not_found())?;
    Ok(axum::Json(app.accounts().by_id(id).await?.into()))
}
