//! The service that [`BearerLayer`] creates, and its future.

use std::{
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use tower_service::Service;

use super::{Answer, BearerLayer, Refusal, bearer_token, source::Refresh};
use crate::token::{Claims, Rejection, Sighting};

/// Passes a request on to `S` with its claims, or answers it with `R`.
///
/// `S` is cloned only for a request that has to wait for keys.
#[derive(Clone, Debug)]
pub struct BearerService<S, R> {
    inner: S,
    /// Shared by all clones: axum clones the service for every request.
    layer: Arc<BearerLayer<R>>,
}

impl<S, R> BearerService<S, R> {
    pub(super) fn new(inner: S, layer: Arc<BearerLayer<R>>) -> Self {
        Self { inner, layer }
    }

    /// Puts the claims of the request's token among its extensions.
    fn admit<B>(&self, request: &mut Request<B>) -> Result<(), Refusal> {
        let BearerLayer { source, clock, revocations, .. } = &*self.layer;
        let (now, at) = (clock.now(), clock.elapsed());
        let not_revoked = |claims: &Claims| match revocations {
            Some(revocations) => revocations.check(claims, at),
            None => Ok(()),
        };
        let token = bearer_token(request.headers())?;
        let (claims, sighting) = source.verifier().sight(token, now, at, not_revoked)?;
        request.extensions_mut().insert(claims);
        // Only for a first sighting: most tokens have been seen before, and an extension costs an allocation.
        if sighting == Sighting::First {
            request.extensions_mut().insert(sighting);
        }
        Ok(())
    }

    /// The answer to a refused request. Which check failed is not for the client, but may be logged.
    fn refuse<C>(&self, refusal: Refusal) -> Response<C>
    where
        R: Answer<C>,
    {
        #[cfg(feature = "remote")]
        tracing::debug!(%refusal, "a request without an acceptable token");
        self.layer.answer.answer(refusal)
    }

    /// What to wait for before the request is refused, if anything could change the outcome.
    fn refresh(&self, refusal: Refusal) -> Option<Refresh> {
        match refusal {
            Refusal::Token(Rejection::UnknownKey) => self.layer.source.refresh(),
            _ => None,
        }
    }
}

impl<S, R, B, C> Service<Request<B>> for BearerService<S, R>
where
    S: Service<Request<B>, Response = Response<C>> + Clone,
    R: Answer<C>,
{
    type Response = Response<C>;
    type Error = S::Error;
    type Future = ResponseFuture<S, R, B, C>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let kind = match self.admit(&mut request) {
            Ok(()) => Kind::Inner { future: self.inner.call(request) },
            Err(refusal) => match self.refresh(refusal) {
                Some(refresh) => {
                    // The service that was polled ready goes with the request; its clone has to be polled again.
                    let clone = self.inner.clone();
                    let service = Self::new(mem::replace(&mut self.inner, clone), self.layer.clone());
                    Kind::Waiting { waiting: Some(Box::new(Waiting { refresh, service, request })) }
                }
                None => Kind::Refused { response: Some(self.refuse(refusal)) },
            },
        };
        ResponseFuture { kind }
    }
}

pin_project_lite::pin_project! {
    /// The response of the inner service, or the refusal. If the token's key is unknown and keys can be fetched, it
    /// waits for them first.
    pub struct ResponseFuture<S, R, B, C>
    where
        S: Service<Request<B>>,
    {
        #[pin]
        kind: Kind<S, R, B, C>,
    }
}

pin_project_lite::pin_project! {
    #[project = Projected]
    enum Kind<S, R, B, C>
    where
        S: Service<Request<B>>,
    {
        Inner {
            #[pin]
            future: S::Future,
        },
        // The answer, until it is taken.
        Refused {
            response: Option<Response<C>>,
        },
        Waiting {
            waiting: Option<Box<Waiting<S, R, B>>>,
        },
    }
}

/// A request that waits for keys, and the service that continues with it.
struct Waiting<S, R, B> {
    refresh: Refresh,
    service: BearerService<S, R>,
    request: Request<B>,
}

impl<S, R, B, C> Future for ResponseFuture<S, R, B, C>
where
    S: Service<Request<B>, Response = Response<C>>,
    R: Answer<C>,
{
    type Output = Result<Response<C>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        const POLLED_AGAIN: &str = "a future is not polled after it is ready";

        let mut kind = self.project().kind;
        loop {
            let next = match kind.as_mut().project() {
                Projected::Inner { future } => return future.poll(cx),
                Projected::Refused { response } => {
                    return Poll::Ready(Ok(response.take().expect(POLLED_AGAIN)));
                }
                Projected::Waiting { waiting } => {
                    ready!(waiting.as_mut().expect(POLLED_AGAIN).refresh.as_mut().poll(cx));
                    let Waiting { mut service, mut request, .. } = *waiting.take().expect(POLLED_AGAIN);
                    match service.admit(&mut request) {
                        Ok(()) => Kind::Inner { future: service.inner.call(request) },
                        Err(refusal) => Kind::Refused { response: Some(service.refuse(refusal)) },
                    }
                }
            };
            kind.set(next);
        }
    }
}

#[cfg(test)]
#[cfg(feature = "remote")]
mod tests {
    use std::{
        convert::Infallible,
        future::{Ready, ready},
        io::{self, Write},
        sync::{Arc, Mutex},
    };

    use tower_layer::Layer as _;

    use super::*;
    use crate::token::{Issuer, Lifetime, Party, Subject, SymmetricKey, Verifier};

    /// The log of one test.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[derive(Clone)]
    struct Nobody;

    impl Service<Request<()>> for Nobody {
        type Response = Response<String>;
        type Error = Infallible;
        type Future = Ready<Result<Response<String>, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<()>) -> Self::Future {
            ready(Ok(Response::new(String::new())))
        }
    }

    #[test]
    fn the_log_gives_the_reason_but_the_client_does_not_see_it() {
        let party = |issuer: &str| Party { issuer: issuer.into(), audience: "gatepass".into() };
        let key = SymmetricKey::from_bytes([7; 32]);
        let subject = Subject {
            user_id: uuid::Uuid::from_u128(1),
            session_id: uuid::Uuid::from_u128(2),
            username: "alice".into(),
            roles: vec![],
        };
        let now = time::OffsetDateTime::UNIX_EPOCH;
        let lifetime = Lifetime { now, expires_at: now + time::Duration::MINUTE };
        let token = Issuer::new(key.clone(), party("https://id.example"))
            .issue(subject, uuid::Uuid::from_u128(3), lifetime)
            .unwrap();
        let verifier = Verifier::new([key], party("https://id.example/"));
        let layer = BearerLayer::new(verifier).with_clock(crate::clock::Clock::fixed(now));
        let request =
            Request::get("/").header("authorization", format!("Bearer {}", token.expose())).body(()).unwrap();

        let log = Log::default();
        let written = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_writer(move || written.clone())
            .finish();
        let answer = tracing::subscriber::with_default(subscriber, || {
            let mut response = Box::pin(layer.layer(Nobody).call(request));
            match response.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop())) {
                Poll::Ready(Ok(answer)) => answer,
                Poll::Pending => panic!("nobody is asked for keys"),
            }
        });
        let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        assert!(log.contains("the token is from another issuer") && !log.contains(token.expose()), "{log}");
        assert!(answer.body().contains("invalid_token") && !answer.body().contains("issuer"));
    }
}
