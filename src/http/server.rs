//! The accept loop: connections in, responses out, and an orderly end.
//!
//! What hyper refuses before there is a request (a malformed or oversized head) it answers by itself, with a bare 400 or
//! 431: the only responses of the service that are no problem documents.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, extract::ConnectInfo};
use hyper::{Request, body::Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};
use tower::{Service, ServiceExt};

use super::Limits;

/// How long to wait when the system gives no more connections, before asking again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// The largest request head, in bytes.
const MAX_HEAD_BYTES: usize = 64 * 1024;
const MAX_HEADER_FIELDS: usize = 100;

/// Serves `router` on `listener` until `stop` resolves; then takes no new connection, lets requests in flight finish for
/// at most `limits.drain`, and gives back whether all of them did.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    stop: impl Future<Output = ()>,
) -> bool {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_read)
        .max_headers(MAX_HEADER_FIELDS)
        .max_buf_size(MAX_HEAD_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(limits.header_read)
        .keep_alive_timeout(limits.header_read)
        .max_concurrent_streams(32)
        .max_header_list_size(MAX_HEAD_BYTES as u32);

    let server = Server { builder, router, limits, open: GracefulShutdown::new() };
    let mut connections = JoinSet::new();
    let places = Arc::new(Semaphore::new(limits.connections));
    let mut stop = pin!(stop);
    loop {
        // With every place taken, new connections wait in the system's queue.
        let accepted = async {
            let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
            (place, listener.accept().await)
        };
        tokio::select! {
            (place, accepted) = accepted => match accepted {
                Ok((stream, peer)) => {
                    connections.spawn(server.connection(stream, peer, place));
                }
                Err(error) => {
                    // Out of file descriptors, or a peer gone before it was taken: either passes.
                    tracing::warn!(%error, "no connection could be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            // Takes what has ended out of the set.
            Some(_) = connections.join_next() => {}
            () = &mut stop => break,
        }
    }
    drop(listener);
    let all_finished = tokio::time::timeout(limits.drain, server.open.shutdown()).await.is_ok();
    connections.shutdown().await;
    all_finished
}

struct Server {
    builder: auto::Builder<TokioExecutor>,
    router: Router,
    limits: Limits,
    open: GracefulShutdown,
}

impl Server {
    /// Serves one connection until it ends.
    fn connection(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        place: OwnedSemaphorePermit,
    ) -> impl Future<Output = ()> + use<> {
        // Answers are small and complete; waiting to fill a packet would only delay them.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY");
        }
        // hyper waits without end for a client that asks and does not read; the kernel need not.
        #[cfg(target_os = "linux")]
        {
            let millis = u32::try_from(self.limits.stalled_write.as_millis()).unwrap_or(u32::MAX);
            if let Err(error) = rustix::net::sockopt::set_tcp_user_timeout(&stream, millis) {
                tracing::debug!(%error, "TCP_USER_TIMEOUT");
            }
        }
        let has_asked = Arc::new(AtomicBool::new(false));
        let router = self.router.clone();
        let asked = has_asked.clone();
        let service = tower::service_fn(move |mut request: Request<Incoming>| {
            asked.store(true, Ordering::Relaxed);
            request.extensions_mut().insert(ConnectInfo(peer));
            let mut router = router.clone();
            async move {
                let response = match ServiceExt::<Request<Incoming>>::ready(&mut router).await {
                    Ok(router) => router.call(request).await,
                    Err(never) => Err(never),
                };
                Ok::<_, Infallible>(response.unwrap_or_else(|never| match never {}))
            }
        });
        let connection = self
            .builder
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
            .into_owned();
        let connection = self.open.watch(connection);
        let patience = self.limits.header_read;
        async move {
            let _place = place;
            let mut connection = pin!(connection);
            let ended = tokio::select! {
                ended = &mut connection => ended,
                () = tokio::time::sleep(patience) => {
                    // hyper's own limits begin once it knows the protocol; until then only this one holds.
                    if !has_asked.load(Ordering::Relaxed) {
                        return;
                    }
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "connection ended early");
            }
        }
    }
}
