//! What is served to operators alone, at `OPS_SERVER_ADDRESS`: `/metrics`.

use axum::{
    Router,
    extract::State,
    http::{
        HeaderMap,
        header::{ACCEPT, CONTENT_TYPE},
    },
    response::IntoResponse,
    routing::get,
};

use super::App;
use crate::metrics::{Exposition, Observation};

/// The operators' routes.
pub fn router(app: App) -> Router {
    Router::new().route("/metrics", get(metrics)).with_state(app)
}

async fn metrics(State(app): State<App>, headers: HeaderMap) -> impl IntoResponse {
    let accept: Vec<_> = headers.get_all(ACCEPT).iter().filter_map(|field| field.to_str().ok()).collect();
    let exposition = Exposition::wanted(&accept.join(","));
    app.metrics().observe(&observation(&app));
    ([(CONTENT_TYPE, exposition.media_type())], app.metrics().scrape(exposition))
}

fn observation(app: &App) -> Observation {
    let revocations = app.feed().revocations();
    Observation {
        verified_tokens: app.keys().verifier().remembered(),
        hash_jobs: app.accounts().hash_jobs(),
        revocations: revocations.count(),
        revocation_silence: revocations.silence(app.clock().elapsed()),
        revocation_max_silence: revocations.max_silence(),
        pools: app.0.pools.look(),
        keys: app.keys().ages(app.clock().now()),
        key_rotation_interval: app.keys().rotation_interval(),
    }
}
