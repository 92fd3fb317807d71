//! `/healthz` and `/readyz`: for load balancers and orchestrators.

use std::time::Duration;

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::{App, Problem};
use crate::chain;

/// How long the database may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// The state of the service.
#[derive(Serialize, ToSchema)]
pub(super) struct Health {
    /// `ok` or `ready`.
    #[schema(example = "ready")]
    status: &'static str,
}

/// Tell whether the process is alive. Nothing else is checked.
#[utoipa::path(
    get, path = "/healthz", tag = "health",
    responses((status = 200, description = "The process is alive.", body = Health)),
)]
pub(super) async fn alive() -> axum::Json<Health> {
    axum::Json(Health { status: "ok" })
}

/// Tell whether the service can serve requests.
///
/// It can if the database is reachable and writable, the schema is current, keys and revocations have been read, and
/// the service is not shutting down.
#[utoipa::path(
    get, path = "/readyz", tag = "health",
    responses(
        (status = 200, description = "Requests can be served.", body = Health),
        (status = 503, description = "`not_ready`: `reasons` says why."),
    ),
)]
pub(super) async fn ready(State(app): State<App>) -> Result<axum::Json<Health>, Problem> {
    let mut reasons = Vec::new();
    if app.is_stopping() {
        reasons.push("stopping".to_owned());
    }
    if let Err(reason) = database(&app).await {
        reasons.push(reason);
    }
    if let Some(silent) = app.keys.staleness() {
        reasons.push(format!("keys: not read for {} s", silent.as_secs()));
    }
    if let Some(silent) = app.feed.staleness() {
        reasons.push(match silent {
            Duration::MAX => "revocations: not read yet".to_owned(),
            silent => format!("revocations: not read for {} s", silent.as_secs()),
        });
    }
    if reasons.is_empty() {
        Ok(axum::Json(Health { status: "ready" }))
    } else {
        Err(Problem::not_ready(reasons))
    }
}

async fn database(app: &App) -> Result<(), String> {
    match tokio::time::timeout(PATIENCE, app.accounts.ready()).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(unready)) => {
            tracing::warn!(error = chain::cause(&unready), "not ready");
            Err(unready.to_string())
        }
        Err(_) => Err("database: no answer in time".to_owned()),
    }
}
