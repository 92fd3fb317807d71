//! Room for what clients over HTTP/2 have sent.
//!
//! It may stay in memory for as long as the connection lasts: the table of header fields to come back to (RFC 7541,
//! section 2.3.2) keeps the whole buffer that a field came in. So each piece of what a client sends takes a place. When
//! few are free, [`super::server`] tells those who hold some to go. A client that finds none is told at once, and takes
//! a few from a reserve: enough to send what it has begun, and to connect again. One that goes on all the same has to
//! wait.

use std::{
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::PollSemaphore;

use super::{Places, signals::Signals};

/// How many bytes take a place. They may occupy five times as many, since a small field may keep a buffer of 4 KiB into
/// which it was decoded, and one of 8 KiB that it came in.
const PIECE: usize = 8 * 1024;
/// How many places a connection takes at most. The table has room for 107 fields (`:path: /` counts as 38 of its 4096
/// bytes), each of which keeps the block that it came in. That is a frame of 16 KiB,
const MAX: usize = 107 * 16 * 1024 / PIECE;
/// or seven of them, the most that h2 takes, once a block has come in several.
const MAX_OF_LONG_BLOCKS: usize = 7 * MAX;
/// How many of them may come from the reserve.
const MAX_RESERVED: usize = 8;

/// The places that one connection takes.
pub(super) struct Pieces {
    free: PollSemaphore,
    reserve: Arc<Semaphore>,
    taken: Option<OwnedSemaphorePermit>,
    reserved: Option<OwnedSemaphorePermit>,
    /// How many bytes the client has sent, as far as they take places.
    bytes: usize,
    max: usize,
}

impl Pieces {
    pub(super) fn new(places: &Places) -> Self {
        Self {
            free: PollSemaphore::new(places.http2_pieces.clone()),
            reserve: places.http2_reserve.clone(),
            taken: None,
            reserved: None,
            bytes: 0,
            max: MAX,
        }
    }

    /// The client has sent a block of header fields in several frames.
    pub(super) fn come_in_long_blocks(&mut self) {
        self.max = MAX_OF_LONG_BLOCKS;
    }

    /// The client has sent so many bytes.
    pub(super) fn add(&mut self, bytes: usize) {
        self.bytes = (self.bytes + bytes).min(self.max * PIECE);
    }

    /// Waits for places for what the client has sent.
    pub(super) fn poll_places(&mut self, context: &mut Context<'_>, signals: &Signals) -> Poll<()> {
        loop {
            let (taken, reserved) = (count(self.taken.as_ref()), count(self.reserved.as_ref()));
            if taken + reserved >= self.bytes / PIECE {
                return Poll::Ready(());
            }
            signals.keeps.notify_one();
            if let Ok(place) = self.free.clone_inner().try_acquire_owned() {
                add(&mut self.taken, place);
                continue;
            }
            signals.goes.notify_one();
            if reserved < MAX_RESERVED
                && let Ok(place) = self.reserve.clone().try_acquire_owned()
            {
                add(&mut self.reserved, place);
            } else {
                let place = ready!(self.free.poll_acquire(context)).expect("the semaphore is never closed");
                add(&mut self.taken, place);
            }
        }
    }
}

fn count(places: Option<&OwnedSemaphorePermit>) -> usize {
    places.map_or(0, OwnedSemaphorePermit::num_permits)
}

fn add(places: &mut Option<OwnedSemaphorePermit>, more: OwnedSemaphorePermit) {
    match places {
        Some(places) => places.merge(more),
        places => *places = Some(more),
    }
}
