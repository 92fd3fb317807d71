//! Room for what clients over HTTP/2 have sent.
//!
//! It may stay in memory for as long as the connection lasts: the table of header fields to come back to (RFC 7541,
//! section 2.3.2) keeps the whole buffer that a field came in. So each piece of what a client sends takes a place. When
//! few are free, [`super::server`] tells those who hold some to go. A client that finds none is told at once, and takes
//! a few from a reserve: enough to send what it has begun, and to connect again. One that goes on all the same has to
//! wait.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::PollSemaphore;

use super::{Places, signals::Signals};

/// How many bytes take a place. They may occupy five times as many, since a small field may keep a buffer of 4 KiB into
/// which it was decoded, and one of 8 KiB that it came in.
const PIECE: usize = 8 * 1024;
/// How many places a connection takes at most. The table has room for 107 fields (`:path: /` counts as 38 of its 4096
/// bytes), each of which may keep the frame of 16 KiB that it came in.
const MAX: usize = 107 * 16 * 1024 / PIECE;
/// The same once a block of header fields has come in several frames: a field may keep seven of them, the most that h2
/// accepts.
const MAX_OF_LONG_BLOCKS: usize = 7 * MAX;
/// How many places of a connection may come from the reserve.
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

    /// Counts bytes that the client has sent, as far as they take places.
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
            signals.take_pieces();
            if let Poll::Ready(place) = self.free.poll_acquire(context) {
                add(&mut self.taken, place.expect("the semaphore is never closed"));
                continue;
            }
            signals.lacks_piece.notify_one();
            if reserved == MAX_RESERVED {
                return Poll::Pending;
            }
            let Ok(place) = self.reserve.clone().try_acquire_owned() else { return Poll::Pending };
            add(&mut self.reserved, place);
            // Or it would still be in the queue, and get a place that it need not have.
            self.free = PollSemaphore::new(self.free.clone_inner());
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
