//! What is served to operators alone, at `OPS_SERVER_ADDRESS`: `/metrics`.

use axum::{Router, extract::State, http::header::CONTENT_TYPE, response::IntoResponse, routing::get};

use super::App;
use crate::metrics::MEDIA_TYPE;

/// The operators' routes.
pub fn router(app: App) -> Router {
    Router::new().route("/metrics", get(metrics)).with_state(app)
}

async fn metrics(State(app): State<App>) -> impl IntoResponse {
    let revocations = app.feed().revocations();
    app.metrics().set_revocations(revocations.count(), revocations.silence(app.clock().elapsed()));
    ([(CONTENT_TYPE, MEDIA_TYPE)], app.metrics().scrape())
}
