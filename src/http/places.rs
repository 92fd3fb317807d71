//! Room for what clients make the service hold: connections, and what has arrived on them.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Limits;
use crate::metrics::PlaceUse;

/// Places of each kind, as many as [`Limits`] says.
#[derive(Debug)]
pub struct Places {
    /// How many there are, and how long requests may take.
    pub limits: Limits,
    pub(super) connections: Arc<Semaphore>,
    pub(super) large_requests: Arc<Semaphore>,
    pub(super) http2_blocks: Arc<Semaphore>,
    pub(super) http2_pieces: Arc<Semaphore>,
    /// For clients that find none of the pieces.
    pub(super) http2_reserve: Arc<Semaphore>,
}

impl Places {
    /// All of them free.
    pub fn new(limits: Limits) -> Arc<Self> {
        let Limits { connections, large_requests, http2_blocks, http2_pieces, http2_reserve, .. } = limits;
        let free = |count| Arc::new(Semaphore::new(count));
        Arc::new(Self {
            limits,
            connections: free(connections),
            large_requests: free(large_requests),
            http2_blocks: free(http2_blocks),
            http2_pieces: free(http2_pieces),
            http2_reserve: free(http2_reserve),
        })
    }

    /// One of the places of connections, for a request, unless few are free: those are for connections, or a few of
    /// these with many requests each would shut everybody out.
    pub(super) fn take_for_request(&self) -> Option<OwnedSemaphorePermit> {
        if self.has_few_connections() { None } else { self.connections.clone().try_acquire_owned().ok() }
    }

    /// Whether so few connections are left that clients have to go that could stay otherwise.
    pub(super) fn has_few_connections(&self) -> bool {
        self.connections.available_permits() <= self.limits.connections / 10
    }

    /// Whether so few pieces are left that clients which have taken some have to go.
    pub(super) fn has_few_http2_pieces(&self) -> bool {
        self.http2_pieces.available_permits() <= self.limits.http2_pieces / 10
    }

    /// How many are taken of each kind but the reserve, and how many there are.
    pub(super) fn in_use(&self) -> Vec<PlaceUse> {
        let (limits, free) = (&self.limits, |places: &Semaphore| places.available_permits());
        [
            ("connection", free(&self.connections), limits.connections),
            ("large_request", free(&self.large_requests), limits.large_requests),
            ("http2_block", free(&self.http2_blocks), limits.http2_blocks),
            ("http2_piece", free(&self.http2_pieces), limits.http2_pieces),
        ]
        .map(|(kind, free, max)| PlaceUse { kind, taken: max.saturating_sub(free), max })
        .into()
    }
}
