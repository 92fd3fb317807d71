//! What the body extractors share: finding out whether a body is of their kind, and reading it.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::Request,
    http::{
        HeaderMap,
        header::{CONTENT_ENCODING, CONTENT_TYPE},
        request::Parts,
    },
};
use http_body_util::{BodyExt, LengthLimitError};
use tokio::{sync::Semaphore, time::timeout};

use super::{App, Problem};
use crate::token::Claims;

/// A request is large if its head and body have more bytes than this: 8 KiB. Few with a body are.
const LARGE_BYTES: usize = 8 * 1024;

/// The media type that a request names for its body, in lower case and without parameters.
pub(super) fn media_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    Some(value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
}

/// The whole body. 415 if it is compressed, 413 over the limit, 408 if it does not arrive in time, `broken` if only a
/// part of it arrives, 401 if the request's access token has become invalid by then, 503 if the request is large and
/// too many such are arriving.
pub(super) async fn read(
    request: Request,
    app: &App,
    broken: fn(&'static str) -> Problem,
) -> Result<Vec<u8>, Problem> {
    let coding = request.headers().get(CONTENT_ENCODING);
    if coding.is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Err(Problem::unsupported_encoding());
    }
    let (head, body) = request.into_parts();
    let body = timeout(app.places.limits.body_read, collect(&head, body, &app.places.large_requests, broken))
        .await
        .map_err(|_| Problem::request_timeout())??;
    // A client that holds back the last byte would otherwise use rights that it has lost since.
    if head.extensions.get::<Arc<Claims>>().is_some() {
        app.check_again(&head.headers)?;
    }
    Ok(body)
}

/// Copies what has arrived: a piece of it, even a single byte, keeps alive the whole buffer that it was read into. A
/// large request takes one of `places`, or there could be as many in memory as there may be connections.
async fn collect(
    head: &Parts,
    mut body: Body,
    places: &Semaphore,
    broken: fn(&'static str) -> Problem,
) -> Result<Vec<u8>, Problem> {
    let head_bytes = length(head);
    let mut whole = Vec::new();
    let mut place = None;
    let mut make_room = |bytes| -> Result<(), Problem> {
        if head_bytes + bytes > LARGE_BYTES && place.is_none() {
            let taken = places.try_acquire().map_err(|_| {
                Problem::crowded("There are more large requests than can be served at the moment.")
            })?;
            place = Some(taken);
        }
        Ok(())
    };
    make_room(0)?;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| match std::error::Error::source(&error) {
            Some(source) if source.is::<LengthLimitError>() => Problem::too_large(),
            _ => broken("The request's body did not arrive whole."),
        })?;
        let Ok(piece) = frame.into_data() else { continue };
        make_room(whole.len() + piece.len())?;
        whole.extend_from_slice(&piece);
    }
    Ok(whole)
}

/// How many bytes of a request's head are kept, roughly.
fn length(head: &Parts) -> usize {
    let fields = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len());
    head.uri.path_and_query().map_or(0, |path| path.as_str().len()) + fields.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        task::{Context, Poll},
    };

    use axum::body::{Bytes, HttpBody};
    use hyper::body::Frame;

    use super::*;

    /// A body that arrives byte by byte, each in a buffer of its own.
    struct Drip {
        left: usize,
        buffer: Arc<[u8; 1]>,
    }

    struct Buffer(Arc<[u8; 1]>);

    impl AsRef<[u8]> for Buffer {
        fn as_ref(&self) -> &[u8] {
            &*self.0
        }
    }

    impl HttpBody for Drip {
        type Data = Bytes;
        type Error = axum::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
            assert_eq!(Arc::strong_count(&self.buffer), 1, "somebody keeps a buffer");
            let Some(left) = self.left.checked_sub(1) else { return Poll::Ready(None) };
            self.left = left;
            let buffer = Buffer(Arc::clone(&self.buffer));
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_owner(buffer)))))
        }
    }

    #[tokio::test]
    async fn a_received_byte_does_not_keep_its_buffer_alive() {
        let drip = Drip { left: 1000, buffer: Arc::new(*b"x") };
        let (head, ()) = Request::new(()).into_parts();
        let whole = collect(&head, Body::new(drip), &Semaphore::new(0), Problem::malformed).await;
        assert_eq!(whole.unwrap(), [b'x'; 1000]);
    }
}
