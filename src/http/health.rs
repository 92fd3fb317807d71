//! `/healthz` and `/readyz`: for load balancers and orchestrators.

use std::{collections::HashSet, error::Error, mem, sync::PoisonError, time::Duration};

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::{App, Problem};
use crate::{account::Unready, chain};

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
    let unready = app.accounts.ready(PATIENCE).await.err();
    reasons.extend(unready.as_ref().map(ToString::to_string));
    if let Some(silent) = app.keys.staleness() {
        reasons.push(format!("keys: not read for {} s", silent.as_secs()));
    }
    if let Some(silent) = app.feed.staleness() {
        reasons.push(match silent {
            Duration::MAX => "revocations: not read yet".to_owned(),
            silent => format!("revocations: not read for {} s", silent.as_secs()),
        });
    }
    log(&app, &reasons, unready);
    if reasons.is_empty() {
        Ok(axum::Json(Health { status: "ready" }))
    } else {
        Err(Problem::not_ready(reasons))
    }
}

/// Logs what is new, and not each time that somebody asks.
fn log(app: &App, reasons: &[String], unready: Option<Unready>) {
    let cause = unready.filter(|unready| unready.source().is_some()).map(|unready| chain::chain(&unready));
    let is_news = {
        let mut logged = app.0.unready.lock().unwrap_or_else(PoisonError::into_inner);
        is_news(&mut logged, reasons, cause.as_deref())
    };
    if !is_news {
        return;
    }
    if reasons.is_empty() {
        tracing::info!("ready again");
    } else {
        tracing::warn!(reasons = reasons.join("; "), error = cause.map(display), "not ready");
    }
}

/// Whether a reason or the cause is another than those in `logged`, or the service is ready again. During an outage
/// probes alternate between reasons. Digits are left out: that something has not been read for a second more is not
/// news.
fn is_news(logged: &mut HashSet<String>, reasons: &[String], cause: Option<&str>) -> bool {
    if reasons.is_empty() {
        return !mem::take(logged).is_empty();
    }
    let mut is_new = false;
    for text in reasons.iter().map(String::as_str).chain(cause) {
        is_new |= logged.insert(text.replace(|c: char| c.is_ascii_digit(), ""));
    }
    is_new
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_and_each_cause_is_logged_once_until_it_is_ready() {
        let mut logged = HashSet::new();
        let mut is_news = |reasons: &[&str], cause| {
            let reasons: Vec<_> = reasons.iter().map(|reason| (*reason).to_owned()).collect();
            is_news(&mut logged, &reasons, cause)
        };
        assert!(!is_news(&[], None));
        for _ in 0..2 {
            assert!(is_news(&["not reachable"], Some("refused")));
            assert!(is_news(&["no answer"], None));
            assert!(is_news(&["not reachable"], Some("a standby")));
            assert!(is_news(&["no answer", "not read for 3 s"], None));
            for _ in 0..2 {
                assert!(!is_news(&["not reachable", "not read for 42 s"], Some("refused")));
                assert!(!is_news(&["no answer"], None));
                assert!(!is_news(&["not reachable"], Some("a standby")));
            }
            assert!(is_news(&[], None));
            assert!(!is_news(&[], None));
        }
    }
}
