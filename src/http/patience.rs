//! How long the service waits for a client between two requests: over HTTP/1 here, over HTTP/2 in [`super::server`].
//! And how much of a request may be in memory before a handler reads it: [`Arrived`].
//!
//! A proxy sends its next request on a connection that it has kept. If the service closes that connection at the same
//! moment, the proxy cannot know whether the request was carried out, and answers 502. So the service has to be the
//! more patient of the two ([`Limits::idle`]). A client that has begun a request has [`Limits::header_read`] for the
//! rest of its head, as for the first request on a connection, which [`super::server`] watches.
//!
//! A client that asks once and then stays silent keeps its place for the longer time, and places are limited. While no
//! more than a tenth of them are free, clients that have been idle for [`Limits::header_read`] are disconnected.
//! Holding every place then costs an attacker as much as if the service never waited any longer than that.
//!
//! hyper has one timer for all of this, which it sets when it begins to wait for a head and drops when it has one. Ours
//! tells from the bytes that have come in meanwhile whether a head has begun.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use hyper::rt::{Sleep, Timer};
use pin_project_lite::pin_project;
use tokio::{
    io::AsyncRead,
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time,
};
use tokio_util::io::InspectReader;

use super::Limits;

/// More than this since a request was last begun or answered, in bytes, is a large part of one: 8 KiB.
const LARGE_BYTES: usize = 8 * 1024;

/// The timer of one connection.
#[derive(Clone)]
pub(super) struct Patience {
    limits: Limits,
    places: Arc<Semaphore>,
    /// How often something has come in. It wraps around: all that matters is whether it has changed.
    reads: Arc<AtomicUsize>,
    arrived: Arc<Arrived>,
}

impl Patience {
    /// For a connection that holds one of `places`, and needs one of `large_places` to send a large part of a request.
    /// There are as many of each as `limits` says.
    pub(super) fn new(limits: Limits, places: Arc<Semaphore>, large_places: Arc<Semaphore>) -> Self {
        let arrived = Arrived {
            bytes: AtomicUsize::new(0),
            places: large_places,
            place: Mutex::default(),
            refused: Notify::new(),
        };
        Self { limits, places, reads: Arc::default(), arrived: Arc::new(arrived) }
    }

    /// The connection's stream, with each read counted.
    pub(super) fn listen<S: AsyncRead>(
        &self,
        stream: S,
    ) -> InspectReader<S, impl FnMut(&[u8]) + Send + use<S>> {
        let (reads, arrived) = (self.reads.clone(), self.arrived.clone());
        InspectReader::new(stream, move |bytes: &[u8]| {
            reads.fetch_add(1, Ordering::Relaxed);
            arrived.add(bytes.len());
        })
    }

    /// A request has begun or is answered.
    pub(super) fn restart(&self) {
        self.arrived.restart();
    }

    /// Waits until a large part of a request has arrived that there is no room for.
    pub(super) async fn overflow(&self) {
        self.arrived.refused.notified().await;
    }

    fn reads(&self) -> usize {
        self.reads.load(Ordering::Relaxed)
    }

    /// One more of the places, for a request, unless few are free: those are for connections, or a few of these with
    /// many requests each would shut everybody out.
    pub(super) fn take(&self) -> Option<OwnedSemaphorePermit> {
        if self.is_crowded() { None } else { self.places.clone().try_acquire_owned().ok() }
    }

    /// Whether so few places are free that idle clients have to go.
    pub(super) fn is_crowded(&self) -> bool {
        self.places.available_permits() <= self.limits.connections / 10
    }
}

/// How much has arrived on a connection since a request was last begun or answered on it. No handler has seen that, nor
/// has any limit of hyper's been reached: an unfinished head, trailers, or over HTTP/2 a block of header fields, which
/// takes 217 KiB in memory if it is made for that. So a large part takes a place, or the connection is closed.
struct Arrived {
    bytes: AtomicUsize,
    places: Arc<Semaphore>,
    place: Mutex<Option<OwnedSemaphorePermit>>,
    refused: Notify,
}

impl Arrived {
    fn add(&self, count: usize) {
        let before = self.bytes.fetch_add(count, Ordering::Relaxed);
        if before <= LARGE_BYTES && before + count > LARGE_BYTES {
            match self.places.clone().try_acquire_owned() {
                Ok(place) => self.set(Some(place)),
                Err(_) => self.refused.notify_one(),
            }
        }
    }

    fn restart(&self) {
        if self.bytes.swap(0, Ordering::Relaxed) > LARGE_BYTES {
            self.set(None);
        }
    }

    fn set(&self, place: Option<OwnedSemaphorePermit>) {
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = place;
    }
}

impl Timer for Patience {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    /// The deadline is that of an idle client.
    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        let deadline = time::Instant::from(deadline);
        Box::pin(Wait {
            look: time::sleep_until(deadline.min(time::Instant::now() + self.limits.header_read)),
            idle_until: Some(deadline),
            reads: self.reads(),
            patience: self.clone(),
        })
    }

    fn now(&self) -> Instant {
        time::Instant::now().into()
    }
}

pin_project! {
    /// Ends when the service waits for the client no longer.
    struct Wait {
        // When the client is late, or it is time to see whether places are few.
        #[pin]
        look: time::Sleep,
        // `None` once the head has begun.
        idle_until: Option<time::Instant>,
        // The count at the beginning. Bytes that came before, together with the last request, go unnoticed here: the
        // client counts as idle.
        reads: usize,
        patience: Patience,
    }
}

impl Future for Wait {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        let header_read = this.patience.limits.header_read;
        if this.idle_until.is_some() && this.patience.reads() != *this.reads {
            *this.idle_until = None;
            this.look.as_mut().reset(time::Instant::now() + header_read);
        }
        loop {
            ready!(this.look.as_mut().poll(context));
            let now = time::Instant::now();
            match *this.idle_until {
                Some(deadline) if now < deadline && !this.patience.is_crowded() => {
                    this.look.as_mut().reset(deadline.min(now + header_read));
                }
                _ => return Poll::Ready(()),
            }
        }
    }
}

impl Sleep for Wait {}
