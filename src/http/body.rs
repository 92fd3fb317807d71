//! What the extractors of bodies share: whether a body is of their kind, and reading it.

use axum::{
    body::Bytes,
    extract::Request,
    http::{HeaderMap, header::CONTENT_TYPE},
};
use http_body_util::{BodyExt, LengthLimitError};

use super::{App, Problem};

/// The media type that a request names for its body, in lower case and without parameters.
pub(super) fn media_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    Some(value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
}

/// The whole body. 413 over the limit, 408 when it does not arrive, `broken` when only a part of it does.
pub(super) async fn read(
    request: Request,
    app: &App,
    broken: fn(&'static str) -> Problem,
) -> Result<Bytes, Problem> {
    let collected = tokio::time::timeout(app.limits().body_read, request.into_body().collect())
        .await
        .map_err(|_| Problem::request_timeout())?
        .map_err(|error| match std::error::Error::source(&error) {
            Some(source) if source.is::<LengthLimitError>() => Problem::too_large(),
            _ => broken("The request's body did not arrive whole."),
        })?;
    Ok(collected.to_bytes())
}
