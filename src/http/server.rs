//! The accept loop: connections in, responses out, with TLS or without, and a shutdown that loses no request.
//!
//! If a connection closes just as a client, usually a proxy, sends a request on it, the client cannot know whether the
//! request was carried out, and sends it again only if that does no harm. The service therefore shuts down in steps,
//! none of which closes a connection that a request may be on its way to:
//!
//! 1. [`Phase::Leaving`]: new connections are accepted and all requests served, over HTTP/1 with `Connection: close`. A
//!    client that speaks HTTP/2 is told to go (`GOAWAY`), which by the protocol loses nothing.
//! 2. [`Phase::Closing`]: on Linux the system completes no new connection, and those that it has completed are
//!    accepted. A client that comes later is refused before it has sent anything, and turns to another replica.
//! 3. The listener closes. Requests in flight are finished, and a client that has connected but not yet sent a request
//!    has a second to do so. Connections that have been idle all along are closed: proxies that are set up as
//!    docs/rolling-updates.md says do not keep an idle connection as long as [`Phase::Leaving`] lasts.
//!
//! A malformed or oversized head is not a request: it is answered with a bare 400 or 431, by hyper or, if it has too
//! many fields over HTTP/2, here. These are the only errors that clients get without a problem document.

use std::{
    convert::Infallible,
    fmt::Display,
    future::pending,
    io::{self, ErrorKind},
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::ConnectInfo,
    http::{
        HeaderValue, Response, StatusCode, Version,
        header::{CONNECTION, CONTENT_LENGTH, ORIGIN, STRICT_TRANSPORT_SECURITY},
    },
    response::IntoResponse,
};
use hyper::{Request, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, SetOnce, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};
use tower::ServiceExt;

use super::{
    Limits, Places,
    frames::Watched,
    patience::Patience,
    request_id,
    signals::Signals,
    streams::{Answer, Making, Place, Streams},
};
use crate::tls::Tls;

/// How long to wait before trying again when no connection can be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// The largest request head, in bytes: as nginx has it by default. Over HTTP/2 each field counts as 32 bytes more (RFC
/// 9113, section 6.5.2).
const MAX_HEAD_BYTES: usize = 32 * 1024;
/// How much of its answers a client may have yet to be sent before the service gives the kernel more, in bytes.
#[cfg(target_os = "linux")]
const NOT_SENT: u32 = 16 * 1024;
/// How much of a request's body over HTTP/2 a client may send before a handler reads it, in bytes.
const STREAM_WINDOW: u32 = 16 * 1024;
/// hyper's own limit over HTTP/1. Setting it there would make hyper fill a list of that many fields for every request.
const MAX_HEADER_FIELDS: usize = 100;
/// How long the last connections may take to complete: the third packet of their handshake is on its way.
const LAST_ARRIVALS: Duration = Duration::from_millis(250);
/// How long a client that has connected may take to send a request when the service shuts down.
const FIRST_REQUEST: Duration = Duration::from_secs(1);
/// For two years, as the browsers' preload lists ask for. Not for subdomains, of which we know nothing.
const HSTS: HeaderValue = HeaderValue::from_static("max-age=63072000");

/// How far the service has come on its way to shutting down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It serves.
    Serving,
    /// It serves, and tells clients to go elsewhere.
    Leaving,
    /// It accepts no more connections, and finishes the requests that it has.
    Closing,
}

/// Serves `router` on `listener`, over `tls` if given, until `phase` is [`Phase::Closing`] or its sender is gone. Then
/// lets requests in flight finish for at most [`Limits::drain`](super::Limits::drain), and returns whether all of them
/// did.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    tls: Option<Tls>,
    places: Arc<Places>,
    mut phase: watch::Receiver<Phase>,
) -> bool {
    let drain = places.limits.drain;
    let server = Server::new(router, tls, places, phase.clone());
    let mut connections = Connections { open: JoinSet::new() };
    let was_leaving = async {
        let left = phase
            .wait_for(|phase| *phase != Phase::Serving)
            .await
            .is_ok_and(|phase| *phase == Phase::Leaving);
        closing(&mut phase).await;
        left
    };
    // A service that skips `Leaving`, as on Ctrl-C, stops at once.
    if connections.take(&listener, &server, was_leaving).await && refuse_connections(&listener) {
        connections.take(&listener, &server, sleep(LAST_ARRIVALS)).await;
    }
    drop(listener);
    let all_finished = timeout(drain, connections.ended()).await.is_ok();
    connections.open.shutdown().await;
    all_finished
}

/// Waits until the service is closing, or the sender of the phase is gone.
async fn closing(phase: &mut watch::Receiver<Phase>) {
    let _ = phase.wait_for(|phase| *phase == Phase::Closing).await;
}

/// Makes the system complete only connections that are half open already: it drops packets that would begin one (SYN
/// without ACK). Their sender tries again after a second, and is then refused. Without this, a connection that is
/// completed just before the listener closes would be reset, and what was sent on it lost. Returns whether it worked.
#[cfg(target_os = "linux")]
fn refuse_connections(listener: &TcpListener) -> bool {
    use socket2::SockFilter;

    // Classic BPF, over a packet from its TCP header on. Byte 13 of that holds the flags: SYN is 2, ACK is 16.
    let only_half_open = [
        SockFilter::new(0x30, 0, 0, 13),     // load that byte
        SockFilter::new(0x54, 0, 0, 2 | 16), // keep both flags
        SockFilter::new(0x15, 0, 1, 2),      // SYN alone?
        SockFilter::new(0x06, 0, 0, 0),      // then drop it
        SockFilter::new(0x06, 0, 0, u32::MAX),
    ];
    match SockRef::from(listener).attach_filter(&only_half_open) {
        Ok(()) => true,
        Err(error) => {
            tracing::debug!(%error, "SO_ATTACH_FILTER");
            false
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn refuse_connections(_: &TcpListener) -> bool {
    false
}

/// The open connections.
struct Connections {
    open: JoinSet<()>,
}

impl Connections {
    /// Accepts connections until `end` resolves, and returns what it gives.
    async fn take<T>(&mut self, listener: &TcpListener, server: &Server, end: impl Future<Output = T>) -> T {
        let mut end = pin!(end);
        loop {
            // With every place taken, new connections wait in the system's queue.
            let accepted = async {
                let free = server.places.connections.clone();
                let place = free.acquire_owned().await.expect("the semaphore is never closed");
                (place, listener.accept().await)
            };
            tokio::select! {
                (place, accepted) = accepted => match accepted {
                    Ok((stream, peer)) => {
                        self.open.spawn(server.clone().connection(stream, peer, place));
                    }
                    Err(error) if is_of_the_peer(&error) => tracing::debug!(%error, "gone before it was accepted"),
                    Err(error) => {
                        // Out of file descriptors, or of memory. It passes.
                        tracing::warn!(%error, "no connection could be accepted");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                // Removes ended connections from the set.
                Some(_) = self.open.join_next() => {}
                ended = &mut end => return ended,
            }
        }
    }

    /// Waits until all of them have ended.
    async fn ended(&mut self) {
        while self.open.join_next().await.is_some() {}
    }
}

/// Sets the options of a connection's socket.
fn set_up(stream: &TcpStream, limits: &Limits) -> io::Result<()> {
    let socket = SockRef::from(stream);
    // Answers are small and complete; waiting to fill a packet would only delay them.
    socket.set_tcp_nodelay(true)?;
    #[cfg(target_os = "linux")]
    {
        // hyper waits for ever for a client that asks and does not read; the kernel need not.
        socket.set_tcp_user_timeout(Some(limits.stalled_write))?;
        // Or a PING would wait behind all of an answer that the link is slow to take.
        socket.set_tcp_notsent_lowat(NOT_SENT)?;
    }
    Ok(())
}

/// Whether a connection has ended before it was accepted.
fn is_of_the_peer(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset)
}

/// Marks a request that found no place, and is to be refused.
#[derive(Clone, Copy)]
pub(super) struct NoPlace;

#[derive(Clone)]
struct Server {
    builder: auto::Builder<TokioExecutor>,
    router: Router,
    tls: Option<Tls>,
    phase: watch::Receiver<Phase>,
    places: Arc<Places>,
}

impl Server {
    fn new(router: Router, tls: Option<Tls>, places: Arc<Places>, phase: watch::Receiver<Phase>) -> Self {
        let limits = &places.limits;
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            // From the end of a request. `Patience` refines this.
            .header_read_timeout(limits.idle)
            .max_buf_size(MAX_HEAD_BYTES);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(limits.header_read)
            .keep_alive_timeout(limits.stalled_write)
            .max_concurrent_streams(32)
            .initial_stream_window_size(STREAM_WINDOW)
            .max_header_list_size(MAX_HEAD_BYTES as u32);
        Self { builder, router, tls, phase, places }
    }

    /// Serves one connection until it ends. The TLS handshake takes a place like any connection, and shares the
    /// deadline of the first request: a silent client is cut off.
    async fn connection(self, stream: TcpStream, peer: SocketAddr, _place: OwnedSemaphorePermit) {
        if let Err(error) = set_up(&stream, &self.places.limits) {
            tracing::debug!(%error, "socket options");
        }
        let deadline = Instant::now() + self.places.limits.header_read;
        let patience = Patience::new(self.places.clone());
        let Some(tls) = &self.tls else { return self.converse(stream, peer, patience, deadline).await };
        let handshake = tokio::select! {
            handshake = timeout_at(deadline, tls.accept(stream)) => handshake,
            () = self.patience_at_the_end() => return,
        };
        match handshake {
            // Boxed: otherwise connections without TLS would reserve room for it, too.
            Ok(Ok(stream)) => Box::pin(self.converse(stream, peer, patience, deadline)).await,
            Ok(Err(error)) => tracing::debug!(%error, "no TLS handshake"),
            Err(_) => tracing::debug!("no TLS handshake in time"),
        }
    }

    /// Answers the requests on one connection, the first of which must come before the deadline.
    async fn converse(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        peer: SocketAddr,
        patience: Patience,
        deadline: Instant,
    ) {
        let conversation = Arc::new(Conversation {
            router: self.router.clone(),
            phase: self.phase.clone(),
            peer,
            is_secure: self.tls.is_some(),
            patience,
            places: self.places.clone(),
            asked: SetOnce::new(),
            streams: Arc::default(),
        });
        let signals = Signals::new();
        let stream = Watched::new(stream, &self.places, signals.clone());
        let stream = TokioIo::new(conversation.patience.listen(stream));
        let mut builder = self.builder.clone();
        builder.http1().timer(conversation.patience.clone());
        let service = service_fn({
            let conversation = conversation.clone();
            move |request| conversation.clone().answer(request)
        });
        let mut connection = pin!(builder.serve_connection(stream, service));
        let mut cut_off = pin!(async {
            tokio::select! {
                // hyper's own limits begin once it knows the protocol; until then only this one applies.
                Err(_) = timeout_at(deadline, conversation.asked.wait()) => {}
                () = signals.lacks_block.notified() => tracing::debug!("no place for it"),
            }
        });
        let mut room_is_needed = pin!(self.until_room_is_needed(&conversation, &signals));
        let has_room = tokio::select! {
            ended = signals.turns(connection.as_mut()) => return note(ended),
            () = &mut cut_off => return,
            () = self.until_time_to_go(&conversation) => true,
            () = self.until_idle(&conversation) => true,
            () = &mut room_is_needed => false,
        };
        connection.as_mut().graceful_shutdown();
        tokio::select! {
            ended = signals.turns(connection) => note(ended),
            () = cut_off => {}
            // Answers that the client does not take keep the connection open, and it may well answer pings.
            () = self.until_stalled(&conversation) => {}
            // A client may also keep it open by asking on, or by taking a byte now and then.
            () = async {
                if has_room {
                    room_is_needed.await;
                }
                sleep(self.places.limits.stalled_write).await;
            } => {}
        }
    }

    /// Waits until, over HTTP/2, nothing has been asked and no answer taken for as long as a connection may be idle.
    /// HTTP/1 has its own limit, in `patience`.
    async fn until_idle(&self, conversation: &Conversation) {
        conversation.speaks_http2().await;
        let mut since = Instant::now();
        loop {
            if !conversation.streams.rest_for(self.places.limits.header_read).await {
                since = Instant::now();
            } else if since.elapsed() >= self.places.limits.idle || self.places.has_few_connections() {
                return;
            }
        }
    }

    /// Waits until, over HTTP/2, the client has found no place for what it has sent, or takes places, for that or for
    /// its requests, while few are left for others.
    async fn until_room_is_needed(&self, conversation: &Conversation, signals: &Signals) {
        conversation.speaks_http2().await;
        let takes_too_much = async {
            loop {
                sleep(self.places.limits.header_read).await;
                if signals.has_pieces() && self.places.has_few_http2_pieces()
                    || conversation.streams.have_places() && self.places.has_few_connections()
                {
                    return;
                }
            }
        };
        tokio::select! {
            () = signals.lacks_piece.notified() => {}
            () = takes_too_much => {}
        }
    }

    /// Waits until, over HTTP/2, a client has taken nothing of its answers for as long as it may.
    async fn until_stalled(&self, conversation: &Conversation) {
        conversation.speaks_http2().await;
        while !conversation.streams.rest_for(self.places.limits.stalled_write).await {}
    }

    /// Waits until a connection may end without losing a request.
    async fn until_time_to_go(&self, conversation: &Conversation) {
        let mut phase = self.phase.clone();
        let _ = phase.wait_for(|phase| *phase != Phase::Serving).await;
        tokio::select! {
            version = conversation.asked.wait() => if *version < Version::HTTP_2 {
                closing(&mut phase).await;
            },
            () = self.patience_at_the_end() => {}
        }
    }

    /// Waits until the service is closing, and clients that have not sent a request yet have had their time to do so.
    async fn patience_at_the_end(&self) {
        closing(&mut self.phase.clone()).await;
        sleep(FIRST_REQUEST).await;
    }
}

fn note(ended: Result<(), impl Display>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended early");
    }
}

/// What it takes to refuse a request that found no place: who asks for what, under which id. It is copied, since any
/// part of a head may keep the whole of it in memory, and left out if it is long.
fn without_place<B>(request: &Request<B>) -> Request<Body> {
    let is_short = |bytes: &[u8]| bytes.len() <= 256;

    let mut rest = Request::new(Body::empty());
    if is_short(request.method().as_str().as_bytes()) {
        *rest.method_mut() = request.method().clone();
    }
    *rest.version_mut() = request.version();
    let path = Some(request.uri().path()).filter(|path| is_short(path.as_bytes()));
    if let Some(Ok(path)) = path.map(str::parse) {
        *rest.uri_mut() = path;
    }
    for name in [request_id::NAME, ORIGIN] {
        let value = request.headers().get(&name).filter(|value| is_short(value.as_bytes()));
        if let Some(Ok(value)) = value.map(|value| HeaderValue::from_bytes(value.as_bytes())) {
            rest.headers_mut().insert(name, value);
        }
    }
    rest.extensions_mut().insert(NoPlace);
    rest
}

/// What the requests on one connection share.
struct Conversation {
    router: Router,
    phase: watch::Receiver<Phase>,
    peer: SocketAddr,
    is_secure: bool,
    patience: Patience,
    places: Arc<Places>,
    /// The version of HTTP, once there has been a request.
    asked: SetOnce<Version>,
    /// Over HTTP/1 nobody looks at them.
    streams: Arc<Streams>,
}

impl Conversation {
    /// Waits until there has been a request over HTTP/2.
    async fn speaks_http2(&self) {
        if *self.asked.wait().await < Version::HTTP_2 {
            pending::<()>().await;
        }
    }

    /// Answers a request, which counts as asked from this call on, before the answer is first polled. The answer waits
    /// for its turn, and hundreds of connections may come before it. So a request to be refused is let go of here.
    fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response<Answer>, Infallible>> {
        let version = request.version();
        // Set by the first request: all requests on a connection have the same version.
        let _ = self.asked.set(version);
        let streams = (version >= Version::HTTP_2).then(|| self.streams.clone());
        let making = streams.clone().map(Making::begin);
        let mut place = None;
        // hyper counts the fields over HTTP/1 only. Over HTTP/2 a field may take one byte to send, and a hundred here
        // for as long as the answer takes.
        let request = if request.headers().len() > MAX_HEADER_FIELDS {
            None
        } else if streams.is_some() {
            // A request takes about as much memory as a connection, and so one of its places. The one request at a time
            // that there is over HTTP/1 has its connection's.
            place = self.places.take_for_request().map(|place| Arc::new(Place::take(place, &self.streams)));
            Some(if place.is_some() { request.map(Body::new) } else { without_place(&request) })
        } else {
            Some(request.map(Body::new))
        };
        async move {
            let _making = making;
            let mut response = match request {
                Some(mut request) => {
                    request.extensions_mut().insert(ConnectInfo(self.peer));
                    self.router.clone().oneshot(request).await.unwrap_or_else(|never| match never {})
                }
                None => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE.into_response(),
            };
            self.complete(version, &mut response);
            Ok(response.map(|body| Answer { body, streams, place }))
        }
    }

    /// Gives a response the header fields that its connection requires, and takes away what it must not have.
    fn complete(&self, version: Version, response: &mut Response<Body>) {
        if self.is_secure {
            response.headers_mut().insert(STRICT_TRANSPORT_SECURITY, HSTS);
        }
        // axum says that an empty body is 0 bytes long, which these must not say (RFC 9110, section 8.6). Over HTTP/1
        // hyper removes it.
        if matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            response.headers_mut().remove(CONTENT_LENGTH);
        }
        // HTTP/2 has GOAWAY.
        if version < Version::HTTP_2 && *self.phase.borrow() != Phase::Serving {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use http_body_util::{BodyExt, Empty};
    use hyper::{body::Bytes, client::conn::http2};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
        task::JoinHandle,
    };

    use super::*;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    const PLACES: u32 = 20;
    /// The length of `/large`, and how much of it a client over HTTP/2 takes at a time.
    const LARGE: usize = 20_000;
    const WINDOW: u32 = 500;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    /// One connection, and the places that the others leave.
    struct Client {
        stream: DuplexStream,
        places: Arc<Places>,
        phase: watch::Sender<Phase>,
    }

    impl Client {
        fn new() -> Self {
            Self::with(&places(1), 1024)
        }

        /// As many bytes may be on their way as `room`.
        fn with(places: &Arc<Places>, room: usize) -> Self {
            let limits = places.limits;
            assert_eq!((limits.header_read, limits.idle), (seconds(10), seconds(100)));
            let (phase, says) = watch::channel(Phase::Serving);
            let router = Router::new()
                .route("/", get(async || "yes").post(async || "no"))
                .route("/large", get(async || vec![b'x'; LARGE]));
            let server = Server::new(router, None, places.clone(), says);
            let patience = Patience::new(places.clone());
            let (stream, other_end) = duplex(room);
            let deadline = Instant::now() + limits.header_read;
            tokio::spawn(async move {
                server.converse(other_end, SocketAddr::from(([127, 0, 0, 1], 1)), patience, deadline).await;
            });
            Self { stream, places: places.clone(), phase }
        }

        async fn send(&mut self, bytes: &[u8]) {
            self.stream.write_all(bytes).await.unwrap();
        }

        async fn ask(&mut self) {
            self.send(REQUEST).await;
            self.answered().await;
        }

        async fn answered(&mut self) {
            let mut answer = Vec::new();
            while !answer.ends_with(b"\r\n\r\nyes") {
                assert_ne!(self.stream.read_buf(&mut answer).await.unwrap(), 0, "{answer:?}");
            }
        }

        /// How many seconds it takes until the service closes.
        async fn closed_after(&mut self) -> u64 {
            let began = Instant::now();
            let mut more = Vec::new();
            self.stream.read_to_end(&mut more).await.unwrap();
            assert_eq!(String::from_utf8_lossy(&more), "");
            // The timer is up to a millisecond late.
            (began.elapsed() + Duration::from_millis(1)).as_secs()
        }

        /// Leaves this many places free.
        fn fill(&self, free: u32) -> OwnedSemaphorePermit {
            self.places.connections.clone().try_acquire_many_owned(PLACES - free).unwrap()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_may_be_idle_for_longer_than_proxies_keep_theirs() {
        let mut client = Client::new();
        for pause in [0, 9, 11, 60, 75, 90, 99] {
            sleep(seconds(pause)).await;
            client.ask().await;
        }
        assert_eq!(client.closed_after().await, 100);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_never_completes_a_request_is_disconnected() {
        assert_eq!(Client::new().closed_after().await, 10);
        let mut client = Client::new();
        sleep(seconds(5)).await;
        client.send(&REQUEST[..3]).await;
        assert_eq!(client.closed_after().await, 5);
    }

    /// As many as hyper reads to tell the versions of HTTP apart, and fewer.
    #[tokio::test(start_paused = true)]
    async fn the_beginning_of_a_head_does_not_hold_up_a_stop() {
        for (bytes, closed_after) in [(0, 1), (1, 9), (24, 9), (25, 9)] {
            let mut client = Client::new();
            let request = [REQUEST.trim_ascii_end(), b"\r\nAccept: */*"].concat();
            client.send(&request[..bytes]).await;
            sleep(seconds(1)).await;
            client.phase.send_replace(Phase::Closing);
            assert_eq!(client.closed_after().await, closed_after, "{bytes} bytes");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn later_request_heads_have_the_same_time_limit_as_the_first() {
        for pause in [1, 50, 99] {
            let mut client = Client::new();
            client.ask().await;
            sleep(seconds(pause)).await;
            for byte in &REQUEST[..3] {
                client.send(&[*byte]).await;
                sleep(seconds(3)).await;
            }
            assert_eq!(client.closed_after().await, 1, "after {pause} s");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_but_timely_head_is_answered_and_restarts_the_idle_time() {
        let mut client = Client::new();
        client.ask().await;
        sleep(seconds(99)).await;
        client.send(&REQUEST[..9]).await;
        sleep(seconds(9)).await;
        client.send(&REQUEST[9..]).await;
        client.answered().await;
        assert_eq!(client.closed_after().await, 100);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pipelined_partial_request_gets_no_more_time_than_an_idle_client() {
        let mut client = Client::new();
        client.send(&[REQUEST, &REQUEST[..9]].concat()).await;
        client.answered().await;
        assert_eq!(client.closed_after().await, 100);

        let mut client = Client::new();
        client.send(&[REQUEST, &REQUEST[..9]].concat()).await;
        client.answered().await;
        sleep(seconds(20)).await;
        client.send(&REQUEST[9..10]).await;
        assert_eq!(client.closed_after().await, 10);
    }

    #[tokio::test(start_paused = true)]
    async fn an_unread_body_does_not_count_as_the_start_of_a_request_head() {
        let mut client = Client::new();
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n1").await;
        let mut answer = Vec::new();
        while !answer.ends_with(b"no") {
            assert_ne!(client.stream.read_buf(&mut answer).await.unwrap(), 0);
        }
        assert_eq!(client.closed_after().await, 100);
    }

    #[tokio::test(start_paused = true)]
    async fn idle_connections_are_closed_when_places_are_scarce() {
        let mut client = Client::new();
        client.ask().await;
        let _others = client.fill(2);
        assert_eq!(client.closed_after().await, 10);

        // Even one that has been idle before.
        let mut client = Client::new();
        client.ask().await;
        sleep(seconds(35)).await;
        let _others = client.fill(0);
        assert_eq!(client.closed_after().await, 5);

        // One that asks is left alone.
        let mut client = Client::new();
        let _others = client.fill(0);
        for _ in 0..5 {
            client.ask().await;
            sleep(seconds(9)).await;
        }

        let mut client = Client::new();
        let _others = client.fill(3);
        client.ask().await;
        assert_eq!(client.closed_after().await, 100);
    }

    const PIECES: usize = 375;
    const RESERVE: usize = 125;

    fn places(blocks: usize) -> Arc<Places> {
        let connections = PLACES as usize;
        Places::new(Limits {
            connections,
            http2_blocks: blocks,
            http2_pieces: PIECES,
            http2_reserve: RESERVE,
            ..Limits::default()
        })
    }

    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
    }

    /// A client that never ends a block occupies memory that nothing else limits.
    #[tokio::test(start_paused = true)]
    async fn an_open_block_of_header_fields_needs_a_place() {
        // `GET http://a/`, by the static table but for the last: RFC 7541, section 6.
        let request = b"\x82\x86\x84\x41\x01a";
        // A field without an index, its name `x`, and some of its value's 16 511 bytes.
        let unfinished = [b"\x00\x01x\x7f\x80\x80\x01", &[b'a'; 9000][..]].concat();
        let whole = frame(1, 5, 1, request);
        let (open, goes_on) =
            (frame(1, 1, 3, &[&request[..], &unfinished].concat()), frame(9, 0, 3, &[b'a'; 5000]));
        for before in [&whole[..], &[]] {
            let block = [before, &open, &goes_on].concat();
            let places = places(1);
            let mut client = Client::with(&places, 1024);
            client.send(&[HTTP_2, &block].concat()).await;
            sleep(seconds(1)).await;
            assert_eq!(places.http2_blocks.available_permits(), 0);

            // Nothing else needs the place: neither a request, nor one that arrives in pieces.
            let mut other = Client::with(&places, 1024);
            let in_pieces = frame(1, 5, 5, &[&request[..], &b"\x00\x01x\x00".repeat(50)].concat());
            other.send(&[HTTP_2, &whole].concat()).await;
            for byte in &in_pieces {
                other.send(&[*byte]).await;
            }
            let mut answers = Vec::new();
            while answers.windows(3).filter(|bytes| bytes == b"yes").count() < 2 {
                assert_ne!(other.stream.read_buf(&mut answers).await.unwrap(), 0);
            }

            let mut late = Client::with(&places, 1024);
            let _ = late.stream.write_all(&[HTTP_2, &block].concat()).await;
            timeout(seconds(1), late.stream.read_to_end(&mut answers)).await.unwrap().unwrap();

            // The end of the block gives the place back, as the end of the connection does.
            client.send(&frame(9, 4, 3, &[b'a'; 16_511 - 14_000])).await;
            timeout(seconds(1), places.http2_blocks.acquire()).await.unwrap().unwrap().forget();
            places.http2_blocks.add_permits(1);
        }
    }

    const HTTP_2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";

    /// As clients do that have not heard yet how many there may be.
    #[tokio::test(start_paused = true)]
    async fn a_hundred_requests_at_once_do_not_end_the_connection() {
        let mut client = Client::with(&places(0), 64 * 1024);
        let requests = (0..100).flat_map(|stream| frame(1, 5, 2 * stream + 1, b"\x82\x86\x84\x41\x01a"));
        client.send(&[HTTP_2, &requests.collect::<Vec<_>>()].concat()).await;
        sleep(seconds(1)).await;
        client.send(&frame(1, 5, 201, b"\x82\x86\x84\x41\x01a")).await;
        let mut answers = Vec::new();
        let _ = timeout(seconds(1), client.stream.read_to_end(&mut answers)).await.unwrap_err();
        let (mut answered, mut refused, mut last) = (0, 0, 0);
        let mut rest = &answers[..];
        while let [_, middle, low, kind, _, _, _, _, stream, more @ ..] = rest {
            let (payload, next) = more.split_at(usize::from(*middle) * 256 + usize::from(*low));
            match kind {
                1 => answered += 1,
                3 if payload == [0, 0, 0, 7] => refused += 1,
                _ => {}
            }
            last = if *kind == 1 { *stream } else { last };
            rest = next;
        }
        assert_eq!((answered + refused, last), (101, 201), "{answered} answered, {refused} refused");
        assert!(refused > 0, "{answered} answered");
    }

    /// They are refused one by one, and a few at a time, whatever comes with them.
    #[tokio::test(start_paused = true)]
    async fn requests_that_break_the_protocol_do_not_keep_others_from_being_answered() {
        let mut client = Client::with(&places(0), 64 * 1024);
        // With a field `connection`: RFC 9113, section 8.2.2.
        let malformed = frame(1, 5, 1, b"\x82\x86\x84\x41\x01a\x00\x0aconnection\x00");
        let mut requests = malformed.repeat(900);
        for (request, stream) in requests.chunks_mut(malformed.len()).zip((1_u32..).step_by(2)) {
            request[5..9].copy_from_slice(&stream.to_be_bytes());
        }
        let mut good = frame(1, 5, 0, b"\x82\x86\x84\x41\x01a");
        good[5..9].copy_from_slice(&1801_u32.to_be_bytes());
        client.send(&[HTTP_2, &requests, &good].concat()).await;
        let mut answers = Vec::new();
        while !answers.ends_with(b"yes") {
            assert_ne!(client.stream.read_buf(&mut answers).await.unwrap(), 0, "{answers:?}");
        }
    }

    /// What they have sent may stay in memory. Told to go, a client loses nothing.
    #[tokio::test(start_paused = true)]
    async fn clients_over_http2_that_have_sent_much_make_room() {
        let places = places(1);
        let mut first = Asker::begin(&places).await;
        for _ in 0..400 {
            assert!(first.ask().await);
        }
        let free = || places.http2_pieces.available_permits();
        assert_eq!(free(), PIECES - 214);
        sleep(seconds(60)).await;
        assert!(first.ask().await);

        let mut second = Asker::begin(&places).await;
        let mut small = Asker::begin(&places).await;
        assert!(small.ask().await);
        let others = places.http2_pieces.clone().try_acquire_many_owned(100).unwrap();
        for _ in 0..30 {
            assert!(second.ask().await);
        }
        for asker in [&mut first, &mut second] {
            assert!(asker.ask().await);
        }
        sleep(seconds(11)).await;
        for asker in [&mut first, &mut second] {
            assert!(!asker.ask().await);
        }
        assert!(small.ask().await);
        drop(others);
        assert!(free() >= PIECES - 1);
    }

    /// It has what is left of its answers, but not for ever.
    #[tokio::test(start_paused = true)]
    async fn a_client_over_http2_that_does_not_make_room_is_cut_off() {
        // What h2 sends with it.
        const ASKS_WHETHER_TO_GO: [u8; 8] = [0x0b, 0x7b, 0xa2, 0xf0, 0x8b, 0x9b, 0xfe, 0x54];
        let request = |stream| frame(1, 5, stream, b"\x82\x86\x84\x41\x01a");
        // The second one is told to go because it is idle.
        for (idle, cut_off) in [(0, 40), (37, 150)] {
            let places = places(1);
            let _others = places.http2_pieces.clone().try_acquire_many_owned(350).unwrap();
            let mut client = Client::with(&places, 64 * 1024);
            client.send(&[HTTP_2, &request(1)].concat()).await;
            let mut asks = async || {
                for turn in 0_u8.. {
                    // It answers each ping late, and not that which asks whether it knows that it is to go.
                    sleep(seconds(3)).await;
                    let mut bytes = vec![0; 4096];
                    let read = timeout(Duration::from_millis(1), client.stream.read(&mut bytes)).await;
                    let bytes = match read {
                        Ok(Ok(0) | Err(_)) => return,
                        Ok(Ok(read)) => &bytes[..read],
                        Err(_) => &[],
                    };
                    for ping in bytes.windows(17).filter(|bytes| bytes.starts_with(b"\0\0\x08\x06\0")) {
                        if ping[9..] != ASKS_WHETHER_TO_GO {
                            let _ = client.stream.write_all(&frame(6, 1, 0, &ping[9..])).await;
                        }
                    }
                    if turn == idle {
                        let _ = client.stream.write_all(&frame(99, 0, 0, &[0; 1024]).repeat(40)).await;
                    }
                    if turn >= idle {
                        let _ = client.stream.write_all(&request(3 + 2 * (turn - idle))).await;
                    }
                }
            };
            let began = Instant::now();
            timeout(seconds(200), asks()).await.unwrap();
            let took = began.elapsed().as_secs();
            assert!((cut_off..cut_off + 10).contains(&took), "{took}");
            assert_eq!(places.http2_pieces.available_permits(), 25);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_over_http2_that_finds_no_place_ends_what_it_has_begun_and_comes_again() {
        let places = places(1);
        let others = places.http2_pieces.clone().try_acquire_many_owned(PIECES as u32).unwrap();
        for _ in 0..100 {
            let mut client = Asker::begin(&places).await;
            assert!(client.ask().await && client.ask().await);
            sleep(seconds(1)).await;
            assert!(!client.ask().await);
        }
        assert_eq!(places.http2_reserve.available_permits(), RESERVE);

        // Without the reserve the next thing that it sends has to wait.
        let reserve = places.http2_reserve.clone().try_acquire_many_owned(RESERVE as u32).unwrap();
        let mut client = Client::with(&places, 64 * 1024);
        client.send(&[HTTP_2, &frame(99, 0, 0, &[0; 9000])].concat()).await;
        sleep(seconds(1)).await;
        client.send(&frame(1, 5, 1, b"\x82\x86\x84\x41\x01a")).await;
        let mut answers = Vec::new();
        timeout(seconds(5), client.stream.read_to_end(&mut answers)).await.unwrap_err();
        assert!(!answers.ends_with(b"yes"));
        drop((others, reserve));
        while !answers.windows(3).any(|bytes| bytes == b"yes") {
            assert_ne!(client.stream.read_buf(&mut answers).await.unwrap(), 0);
        }
    }

    /// A client over HTTP/2 that asks, each time with some 7 KiB.
    struct Asker {
        sender: http2::SendRequest<Empty<Bytes>>,
        _phase: watch::Sender<Phase>,
    }

    impl Asker {
        async fn begin(places: &Arc<Places>) -> Self {
            let client = Client::with(places, 64 * 1024);
            let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .handshake(TokioIo::new(client.stream))
                .await
                .unwrap();
            tokio::spawn(connection);
            Self { sender, _phase: client.phase }
        }

        /// Whether the connection takes one more request. If so, it is answered.
        async fn ask(&mut self) -> bool {
            if self.sender.ready().await.is_err() {
                return false;
            }
            let mut value = HeaderValue::try_from("x".repeat(8192)).unwrap();
            // It is sent anew each time.
            value.set_sensitive(true);
            let request = Request::builder().uri("http://a/").header("a", value).body(Empty::new());
            let answer = self.sender.send_request(request.unwrap()).await.unwrap();
            assert_eq!(answer.status().as_u16(), 200);
            true
        }
    }

    #[test]
    fn a_refusal_keeps_nothing_long() {
        let request = Request::post("http://a/users?q=1")
            .header("x-request-id", "an-id")
            .header("origin", "https://a.example")
            .header("cookie", "a")
            .body(());
        let rest = without_place(&request.unwrap());
        assert_eq!((rest.method().as_str(), rest.uri().to_string()), ("POST", "/users".to_owned()));
        assert_eq!(
            (&rest.headers()["x-request-id"], &rest.headers()["origin"]),
            (&"an-id".parse().unwrap(), &"https://a.example".parse().unwrap())
        );
        assert_eq!(rest.headers().len(), 2);
        assert!(rest.extensions().get::<NoPlace>().is_some());

        let long = "a".repeat(257);
        let request = Request::builder()
            .method(long.as_str())
            .uri(format!("/{long}"))
            .header("x-request-id", &long)
            .header("origin", &long)
            .body(());
        let rest = without_place(&request.unwrap());
        assert_eq!((rest.method().as_str(), rest.uri().path(), rest.headers().len()), ("GET", "/", 0));
    }

    /// An answer over HTTP/2, which is taken when the client says so.
    struct Download {
        body: Incoming,
        connection: JoinHandle<Instant>,
        _sender: http2::SendRequest<Empty<Bytes>>,
        _phase: watch::Sender<Phase>,
    }

    impl Download {
        /// Nothing of it is taken beyond the first window.
        async fn begin(client: Client, path: &str, window: u32) -> Self {
            let (mut sender, connection) = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .initial_stream_window_size(window)
                .handshake(TokioIo::new(client.stream))
                .await
                .unwrap();
            let connection = tokio::spawn(async move {
                let _ = connection.await;
                Instant::now()
            });
            let request = Request::builder().uri(format!("http://a{path}")).body(Empty::new()).unwrap();
            let answer = sender.send_request(request).await.unwrap();
            assert_eq!(answer.status().as_u16(), 200);
            Self { body: answer.into_body(), connection, _sender: sender, _phase: client.phase }
        }

        /// Takes at least this many bytes, some every `pause` seconds.
        async fn take(&mut self, bytes: usize, pause: u64) {
            let mut taken = 0;
            while taken < bytes {
                sleep(seconds(pause)).await;
                let frame = self.body.frame().await.unwrap();
                let frame = frame.unwrap_or_else(|error| panic!("{error} after {taken} bytes"));
                taken += frame.into_data().unwrap().len();
            }
        }

        /// How long it takes from now until the service closes.
        async fn closed_after(self) -> Duration {
            let began = Instant::now();
            self.connection.await.unwrap() - began
        }
    }

    /// The service looks every ten seconds.
    fn assert_took(took: Duration, expected: u64) {
        assert!((expected..expected + 11).contains(&took.as_secs()), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn http2_has_the_same_idle_limit_and_unread_responses_expire() {
        // Depending on how much the client takes at first.
        for (path, window, closed_after) in [("/", 65_535, 100), ("/", 0, 130), ("/large", WINDOW, 130)] {
            let download = Download::begin(Client::new(), path, window).await;
            assert_took(download.closed_after().await, closed_after);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_that_is_read_slowly_over_http2_is_not_cut_off() {
        // How long the client takes the first time, and from then on.
        for (free, first, pause) in [
            // Never idle.
            (PLACES, 60, 60),
            (0, 4, 4),
            // Told to go, and not stalled.
            (PLACES, 109, 29),
            (0, 14, 29),
        ] {
            let client = Client::new();
            let _others = client.fill(free);
            let began = Instant::now();
            let mut download = Download::begin(client, "/large", WINDOW).await;
            download.take(1, first).await;
            download.take(LARGE - WINDOW as usize, pause).await;
            assert!(began.elapsed() > seconds(140), "{:?}", began.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_over_http2_keeps_its_place_until_its_last_byte_is_taken() {
        let client = Client::new();
        let places = client.places.clone();
        let free = || places.connections.available_permits();
        assert_eq!(free(), PLACES as usize);
        let mut download = Download::begin(client, "/large", WINDOW).await;
        download.take(LARGE / 2, 1).await;
        assert_eq!(free(), PLACES as usize - 1);
        download.take(LARGE / 2 - WINDOW as usize, 1).await;
        assert_eq!(free(), PLACES as usize - 1);
        while download.body.frame().await.is_some() {}
        assert_eq!(free(), PLACES as usize);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_responses_over_http2_make_room_when_places_are_scarce() {
        let client = Client::new();
        let places = client.places.clone();
        let mut download = Download::begin(client, "/large", WINDOW).await;
        download.take(WINDOW as usize * 10, 7).await;
        let others = places.connections.clone().try_acquire_many_owned(PLACES - 1).unwrap();
        let began = Instant::now();
        while let Some(Ok(_)) = download.body.frame().await {
            sleep(seconds(7)).await;
        }
        assert_took(download.connection.await.unwrap() - began, 30);
        drop(others);
        assert_eq!(places.connections.available_permits(), PLACES as usize);
    }

    #[tokio::test(start_paused = true)]
    async fn an_abandoned_http2_response_does_not_hold_its_connection() {
        for (free, closed_after) in [(PLACES, 130), (0, 40)] {
            let client = Client::new();
            let _others = client.fill(free);
            let mut download = Download::begin(client, "/large", WINDOW).await;
            download.take(LARGE / 2, 4).await;
            assert_took(download.closed_after().await, closed_after);
        }
    }
}
