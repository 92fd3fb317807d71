//! How long the service waits for a client between two requests: over HTTP/1 here, over HTTP/2 in [`super::server`].
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
//!
//! [`Limits::idle`]: super::Limits::idle
//! [`Limits::header_read`]: super::Limits::header_read

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
use tokio::{io::AsyncRead, time};
use tokio_util::io::InspectReader;

use super::Places;

/// The timer of one connection.
#[derive(Clone)]
pub(super) struct Patience {
    places: Arc<Places>,
    /// How often something has come in. It wraps around: all that matters is whether it has changed.
    reads: Arc<AtomicUsize>,
}

impl Patience {
    /// For a connection that holds one of `places`.
    pub(super) fn new(places: Arc<Places>) -> Self {
        Self { places, reads: Arc::default() }
    }

    /// The connection's stream, with each read counted.
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
}

impl Timer for Patience {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    /// The deadline is that of an idle client.
    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        let deadline = time::Instant::from(deadline);
        Box::pin(Wait {
            look: time::sleep_until(deadline.min(time::Instant::now() + self.places.limits.header_read)),
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
        let header_read = this.patience.places.limits.header_read;
        if this.idle_until.is_some() && this.patience.reads() != *this.reads {
            *this.idle_until = None;
            this.look.as_mut().reset(time::Instant::now() + header_read);
        }
        loop {
            ready!(this.look.as_mut().poll(context));
            let now = time::Instant::now();
            match *this.idle_until {
                Some(deadline) if now < deadline && !this.patience.places.has_few_connections() => {
                    this.look.as_mut().reset(deadline.min(now + header_read));
                }
                _ => return Poll::Ready(()),
            }
        }
    }
}

impl Sleep for Wait {}
