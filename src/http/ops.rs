//! What is served to operators only, at `OPS_SERVER_ADDRESS`: `/metrics`.

use axum::{
    Router,
    extract::{Request, State},
    http::{
        HeaderMap,
        header::{ACCEPT, CONTENT_TYPE},
    },
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::get,
};

use super::{App, Problem, RequestId, problem};
use crate::metrics::{Exposition, Observation};

/// The operators' routes.
pub fn router(app: App) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .fallback(async || Problem::not_found())
        .method_not_allowed_fallback(async || Problem::method_not_allowed())
        .layer(from_fn_with_state(app.clone(), identified))
        .with_state(app)
}

/// Adds the request id, and makes errors problem documents. Logs and counts no requests: nobody looks for scrapes
/// there.
async fn identified(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let id = RequestId::assign(&mut request, &app);
    let mut response = next.run(request).await;
    problem::render(&mut response, &id);
    id.answer(response.headers_mut());
    response
}

async fn metrics(State(app): State<App>, headers: HeaderMap) -> impl IntoResponse {
    let accept: Vec<_> = headers.get_all(ACCEPT).iter().filter_map(|field| field.to_str().ok()).collect();
    let exposition = Exposition::wanted(&accept.join(","));
    ([(CONTENT_TYPE, exposition.media_type())], app.metrics.scrape(&observation(&app), exposition))
}

fn observation(app: &App) -> Observation {
    let revocations = app.feed.revocations();
    Observation {
        verified_tokens: app.keys.verifier().remembered(),
        hash_jobs: app.accounts.hash_jobs(),
        revocations: revocations.count(),
        revocation_silence: revocations.silence(app.clock.elapsed()),
        revocation_max_silence: revocations.max_silence(),
        places: app.places.in_use(),
        pools: app.pools.look(),
        keys: app.keys.ages(app.clock.now()),
        key_silence: app.keys.silence(),
        key_rotation_interval: app.keys.rotation_interval(),
    }
}
