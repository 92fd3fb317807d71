//! What a connection and its stream tell each other.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::Notify;

/// Between a connection and its [`Watched`](super::frames::Watched) stream.
pub(super) struct Signals {
    /// Whether the connection has been polled since this was last asked.
    has_turn: AtomicBool,
    /// Whether places are taken for what the client has sent.
    has_pieces: AtomicBool,
    /// The client has found no such place.
    pub(super) lacks_piece: Notify,
    /// The client has found no place for an open block.
    pub(super) lacks_block: Notify,
}

impl Signals {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            has_turn: AtomicBool::new(true),
            has_pieces: AtomicBool::new(false),
            lacks_piece: Notify::new(),
            lacks_block: Notify::new(),
        })
    }

    /// Begins a turn each time that the future is polled.
    pub(super) async fn turns<F: Future>(&self, mut future: Pin<&mut F>) -> F::Output {
        poll_fn(|context| {
            self.begin();
            future.as_mut().poll(context)
        })
        .await
    }

    pub(super) fn begin(&self) {
        self.has_turn.store(true, Ordering::Relaxed);
    }

    pub(super) fn take_pieces(&self) {
        self.has_pieces.store(true, Ordering::Relaxed);
    }

    pub(super) fn has_pieces(&self) -> bool {
        self.has_pieces.load(Ordering::Relaxed)
    }

    /// Whether a turn has begun since the previous call.
    pub(super) fn has_begun(&self) -> bool {
        self.has_turn.swap(false, Ordering::Relaxed)
    }
}
