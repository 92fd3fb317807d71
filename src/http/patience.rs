//! How long a client is waited for between two requests: on HTTP/1 here, on HTTP/2 by [`super::server`].
//!
//! A proxy sends its next request on a connection that it has kept. If the service closes that connection at the same
//! moment, the proxy cannot know whether the request was carried out, and answers 502. So the service has to be the more
//! patient of the two ([`Limits::idle`]). A client that has begun to ask has [`Limits::header_read`] for the rest, as for
//! the first request on a connection, which [`super::server`] watches.
//!
//! Whoever asks once and then says nothing keeps a place for the longer time, and places are limited. While no more than a
//! tenth of them are free, clients that have been idle for [`Limits::header_read`] are let go: to hold every place costs an
//! attacker as much as if nobody were waited for any longer than that.
//!
//! hyper has one timer for all of this, which it sets when it begins to wait for a head and drops when it has one. Ours
//! tells by the bytes that have come in meanwhile whether a head has begun.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use hyper::rt::{Sleep, Timer};
use pin_project_lite::pin_project;
use tokio::{io::AsyncRead, sync::Semaphore, time};
use tokio_util::io::InspectReader;

use super::Limits;

/// The timer of one connection.
#[derive(Clone)]
pub(super) struct Patience {
    limits: Limits,
    places: Arc<Semaphore>,
    /// How often something has come in. It wraps around, and only whether it has changed matters.
    reads: Arc<AtomicUsize>,
}

impl Patience {
    /// For a connection that has one of `places`, of which there are as many as the limits say.
    pub(super) fn new(limits: Limits, places: Arc<Semaphore>) -> Self {
        Self { limits, places, reads: Arc::default() }
    }

    /// The connection's stream, listened to.
    pub(super) fn listen<S: AsyncRead>(
        &self,
        stream: S,
    ) -> InspectReader<S, impl FnMut(&[u8]) + Send + use<S>> {
        let reads = self.reads.clone();
        InspectReader::new(stream, move |_: &[u8]| {
            reads.fetch_add(1, Ordering::Relaxed);
        })
    }

    fn reads(&self) -> usize {
        self.reads.load(Ordering::Relaxed)
    }

    /// Whether so few places are free that whoever is idle has to go.
    pub(super) fn is_crowded(&self) -> bool {
        self.places.available_permits() <= self.limits.connections / 10
    }
}

impl Timer for Patience {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    /// The deadline is that of a client that is idle.
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
    /// Ends when the client is waited for no longer.
    struct Wait {
        // When the client is late, or it is time to see whether there are too many.
        #[pin]
        look: time::Sleep,
        // Nothing, once the head has begun.
        idle_until: Option<time::Instant>,
        // As many as there were at the beginning. What came before, together with the last request, has not been seen
        // here and counts as idle.
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
