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
    /// Whether a turn has begun of whoever reads and writes.
    has_turn: AtomicBool,
    /// The connection is to end, for want of a place for an open block.
    pub(super) ends: Notify,
    /// It takes places for what the client has sent.
    pub(super) keeps: Notify,
    /// The client is to go elsewhere, for want of such places.
    pub(super) goes: Notify,
}

impl Signals {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            has_turn: AtomicBool::new(true),
            ends: Notify::new(),
            keeps: Notify::new(),
            goes: Notify::new(),
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

    /// Whether a turn has begun since the previous call.
    pub(super) fn has_begun(&self) -> bool {
        self.has_turn.swap(false, Ordering::Relaxed)
    }
}
