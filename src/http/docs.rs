//! `/openapi.json` and `/docs`: the service's description, and a page to read and try it. Everything that the page
//! loads comes from the binary.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State, rejection::PathRejection},
    http::{
        HeaderValue,
        header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE},
    },
    response::{Html, IntoResponse, Response},
    routing::get,
};

use super::{App, Problem};

const CACHE: HeaderValue = HeaderValue::from_static("public, max-age=300");
const PAGE_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

/// This description, in OpenAPI 3.1.
#[utoipa::path(
    get, path = "/openapi.json", tag = "docs",
    responses((status = 200, description = "The description.", body = Object, content_type = "application/json")),
)]
pub(super) async fn openapi_json(State(app): State<App>) -> impl IntoResponse {
    let headers = [(CONTENT_TYPE, HeaderValue::from_static("application/json")), (CACHE_CONTROL, CACHE)];
    (headers, app.description())
}

/// A page to read this description and try the service.
#[utoipa::path(
    get, path = "/docs", tag = "docs",
    responses((status = 200, description = "The page.", body = String, content_type = "text/html")),
)]
pub(super) async fn page() -> impl IntoResponse {
    ([(CONTENT_SECURITY_POLICY, PAGE_POLICY), (CACHE_CONTROL, CACHE)], Html(include_str!("docs/index.html")))
}

/// The page's scripts, styles and icon.
pub(super) fn assets() -> Router<App> {
    Router::new().route("/docs/{file}", get(asset))
}

/// A file that the page loads, made once and shared by every answer.
struct Asset {
    kind: HeaderValue,
    bytes: Bytes,
    is_gzipped: bool,
}

static ASSETS: LazyLock<HashMap<&'static str, Asset>> = LazyLock::new(|| {
    let own = [
        ("start.js", "text/javascript", include_str!("docs/start.js")),
        ("style.css", "text/css", include_str!("docs/style.css")),
    ];
    let own = own.map(|(name, kind, text)| {
        let (kind, bytes) = (HeaderValue::from_static(kind), Bytes::from_static(text.as_bytes()));
        (name, Asset { kind, bytes, is_gzipped: false })
    });
    // Only what the page asks for: the rest of Swagger UI's files is of no use here.
    let swagger =
        ["swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png"].into_iter().filter_map(|name| {
            let file =
                utoipa_swagger_ui::serve(name, Arc::new(utoipa_swagger_ui::Config::default())).ok()??;
            let kind = HeaderValue::from_str(&file.content_type).ok()?;
            let bytes = Bytes::from(file.bytes.into_owned());
            Some((name, Asset { kind, bytes, is_gzipped: file.gzpipped }))
        });
    own.into_iter().chain(swagger).collect()
});

async fn asset(file: Result<Path<String>, PathRejection>) -> Result<Response, Problem> {
    // What cannot be decoded names no file.
    let Path(file) = file.map_err(|_| Problem::not_found())?;
    let asset = ASSETS.get(file.as_str()).ok_or_else(Problem::not_found)?;
    let headers = [(CONTENT_TYPE, asset.kind.clone()), (CACHE_CONTROL, CACHE)];
    let mut response = (headers, asset.bytes.clone()).into_response();
    if asset.is_gzipped {
        // Every browser accepts it, and nobody else asks for these files.
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    Ok(response)
}
