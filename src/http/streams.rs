//! Activity in the streams of an HTTP/2 connection, which tells whether the connection is idle. The counterpart for
//! HTTP/1 is [`patience`](super::patience).

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use hyper::body::{Body as HttpBody, Buf, Bytes, Frame, SizeHint};
use tokio::{sync::OwnedSemaphorePermit, time::sleep};

/// The activity in the streams of one HTTP/2 connection.
#[derive(Default)]
pub(super) struct Streams {
    /// How many answers are being made.
    making: AtomicUsize,
    /// How many requests have a place.
    places: AtomicUsize,
    /// Whether anything has been asked, answered or taken since the last look.
    has_moved: AtomicBool,
}

impl Streams {
    fn note(&self) {
        self.has_moved.store(true, Ordering::Relaxed);
    }

    /// Whether any request has a place.
    pub(super) fn have_places(&self) -> bool {
        self.places.load(Ordering::Relaxed) > 0
    }

    /// Waits for `period`. Returns whether nothing has moved since the previous call, and no answer is being made.
    pub(super) async fn rest_for(&self, period: Duration) -> bool {
        sleep(period).await;
        !self.has_moved.swap(false, Ordering::Relaxed) && self.making.load(Ordering::Relaxed) == 0
    }
}

/// A request's place.
pub(super) struct Place {
    streams: Arc<Streams>,
    _place: OwnedSemaphorePermit,
}

impl Place {
    pub(super) fn take(place: OwnedSemaphorePermit, streams: &Arc<Streams>) -> Self {
        streams.places.fetch_add(1, Ordering::Relaxed);
        Self { streams: streams.clone(), _place: place }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.streams.places.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An answer is being made, until this is dropped.
pub(super) struct Making(Arc<Streams>);

impl Making {
    pub(super) fn begin(streams: Arc<Streams>) -> Self {
        streams.making.fetch_add(1, Ordering::Relaxed);
        streams.note();
        Self(streams)
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        self.0.note();
        self.0.making.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The body of an answer, which notes each time that the client takes some of it.
pub(super) struct Answer {
    pub(super) body: Body,
    pub(super) streams: Option<Arc<Streams>>,
    /// The request's own, until all of the answer is taken.
    pub(super) place: Option<Arc<Place>>,
}

impl HttpBody for Answer {
    type Data = Piece;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        let piece = |bytes| Piece { bytes, streams: self.streams.clone(), _place: self.place.clone() };
        frame.map_ok(|frame| frame.map_data(piece))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A piece of a body. hyper holds the whole piece from when the client first takes some of it, perhaps for minutes. The
/// sign that the client is still taking it is that it shrinks, as the client's window and the socket allow.
pub(super) struct Piece {
    bytes: Bytes,
    streams: Option<Arc<Streams>>,
    _place: Option<Arc<Place>>,
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        if let Some(streams) = &self.streams {
            streams.note();
        }
    }
}
