//! The service that [`BearerLayer`] makes, and its future.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::{Request, Response};
use tower_service::Service;

use super::{Answer, BearerLayer, authenticate};

/// Lets a request through to `S` with its claims, or answers it by `R`.
#[derive(Clone, Debug)]
pub struct BearerService<S, R> {
    inner: S,
    layer: BearerLayer<R>,
}

impl<S, R> BearerService<S, R> {
    pub(super) fn new(inner: S, layer: BearerLayer<R>) -> Self {
        Self { inner, layer }
    }
}

impl<S, R, B, C> Service<Request<B>> for BearerService<S, R>
where
    S: Service<Request<B>, Response = Response<C>>,
    R: Answer<C>,
{
    type Response = Response<C>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, C>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let layer = &self.layer;
        let kind = match authenticate(request.headers(), &layer.verifier, layer.clock.now()) {
            Ok(claims) => {
                request.extensions_mut().insert(claims);
                Kind::Inner { future: self.inner.call(request) }
            }
            Err(refusal) => Kind::Refused { response: Some(layer.answer.answer(refusal)) },
        };
        ResponseFuture { kind }
    }
}

pin_project_lite::pin_project! {
    /// The response of the service behind, or the refusal.
    pub struct ResponseFuture<F, C> {
        #[pin]
        kind: Kind<F, C>,
    }
}

pin_project_lite::pin_project! {
    #[project = Projected]
    enum Kind<F, C> {
        Inner {
            #[pin]
            future: F,
        },
        // The answer, until it is taken.
        Refused {
            response: Option<Response<C>>,
        },
    }
}

impl<F, C, E> Future for ResponseFuture<F, C>
where
    F: Future<Output = Result<Response<C>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        match self.project().kind.project() {
            Projected::Inner { future } => future.poll(cx),
            Projected::Refused { response } => {
                Poll::Ready(Ok(response.take().expect("a future is not polled after it is ready")))
            }
        }
    }
}
