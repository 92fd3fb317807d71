//! A load over HTTP/1.1 on connections that stay open. No library stands between the socket and the clock, because the
//! clients share the cores with the server: a thread waits for all of its connections at once, and requests are made in
//! advance where possible.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    buffer::spare_capacity,
    event::epoll,
    time::{ClockId, Timespec, clock_gettime},
};

/// A client that asks on its own connection, and waits for each answer before the next request.
pub(crate) trait Client: Send {
    /// Writes the next request to `buffer`, which is empty.
    fn ask(&mut self, buffer: &mut Vec<u8>);

    /// Takes the answer.
    ///
    /// # Panics
    ///
    /// If it is not the expected one: failing fast is not being fast.
    fn hear(&mut self, status: u16, body: &[u8]);
}

/// Always the same request, to which the answer is a 200.
#[derive(Clone, Copy)]
pub(crate) struct Same<'a>(pub(crate) &'a [u8]);

impl Client for Same<'_> {
    fn ask(&mut self, buffer: &mut Vec<u8>) {
        buffer.extend_from_slice(self.0);
    }

    fn hear(&mut self, status: u16, body: &[u8]) {
        expect(200, status, body);
    }
}

/// # Panics
///
/// When the statuses differ.
pub(crate) fn expect(expected: u16, status: u16, body: &[u8]) {
    assert_eq!(status, expected, "{}", String::from_utf8_lossy(body));
}

/// The result of a load.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Answers per second, after the first tenth of the time.
    pub(crate) rate: f64,
    /// All answers, including those that came before or after the time in which the rate is counted.
    pub(crate) answers: usize,
    /// How long the counted ones took, in microseconds, sorted.
    pub(crate) times: Vec<f64>,
    /// The share of the time that the clients' busiest thread computed; close to 1, the clients are what was measured.
    pub(crate) busy: f64,
}

impl Outcome {
    /// The time that `percent` per cent of the answers did not exceed, in microseconds.
    pub(crate) fn percentile(&self, percent: f64) -> f64 {
        percentile(&self.times, percent)
    }
}

/// The value that `percent` per cent do not exceed.
pub(crate) fn percentile(sorted: &[f64], percent: f64) -> f64 {
    let last = sorted.len().saturating_sub(1) as f64;
    sorted.get((last * percent / 100.0) as usize).copied().unwrap_or(f64::NAN)
}

/// Lets all clients ask for `time`, each on a connection to `address`.
///
/// # Panics
///
/// If a client rejects an answer, or there is none.
pub(crate) fn run<C: Client>(address: SocketAddr, time: Duration, clients: &mut [C]) -> Outcome {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let own = clients.len().div_ceil(cores.div_ceil(4));
    let connections: Vec<_> = clients.iter().map(|_| Connection::open(address)).collect();
    let mut connections = connections.into_iter();
    let start = Instant::now();
    let begin = start + time / 10;
    let end = start + time;
    thread::scope(|scope| {
        let threads: Vec<_> = clients
            .chunks_mut(own)
            .map(|clients| {
                let clients = clients.iter_mut().zip(&mut connections).map(Asking::new).collect();
                scope.spawn(move || one_thread(clients, begin, end))
            })
            .collect();
        let mut outcome = Outcome { rate: 0.0, answers: 0, times: Vec::new(), busy: 0.0 };
        for thread in threads {
            let one = thread.join().expect("every answer is as expected");
            outcome.answers += one.answers;
            outcome.times.extend(one.times);
            outcome.busy = outcome.busy.max(one.busy);
        }
        outcome.rate = outcome.times.len() as f64 / (end - begin).as_secs_f64();
        outcome.times.sort_by(f64::total_cmp);
        outcome
    })
}

/// A client in the middle of a question.
struct Asking<'a, C> {
    client: &'a mut C,
    connection: Connection,
    since: Instant,
}

impl<'a, C: Client> Asking<'a, C> {
    fn new((client, connection): (&'a mut C, Connection)) -> Self {
        connection.stream.set_nonblocking(true).expect("a socket");
        Self { client, connection, since: Instant::now() }
    }

    fn ask(&mut self) {
        self.connection.buffer.clear();
        self.client.ask(&mut self.connection.buffer);
        self.since = Instant::now();
        // The previous answer has arrived, so the socket has room for a request.
        self.connection.stream.write_all(&self.connection.buffer).expect("the server listens");
        self.connection.buffer.clear();
    }
}

fn one_thread<C: Client>(mut all: Vec<Asking<'_, C>>, begin: Instant, end: Instant) -> Outcome {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("Linux");
    for (number, one) in all.iter_mut().enumerate() {
        let number = epoll::EventData::new_u64(number as u64);
        epoll::add(&epoll, &one.connection.stream, number, epoll::EventFlags::IN).expect("a socket");
        one.ask();
    }
    let (mut answers, mut times, mut waiting) = (0, Vec::new(), all.len());
    let (started, used) = (Instant::now(), processor_time());
    let mut events = Vec::with_capacity(all.len());
    let patience = Timespec { tv_sec: 60, tv_nsec: 0 };
    while waiting > 0 {
        epoll::wait(&epoll, spare_capacity(&mut events), Some(&patience)).expect("sockets");
        assert!(!events.is_empty(), "no answer for a minute");
        for event in events.drain(..) {
            let one = &mut all[event.data.u64() as usize];
            let Some((status, body)) = one.connection.receive() else { continue };
            let now = Instant::now();
            one.client.hear(status, body);
            answers += 1;
            if (begin..end).contains(&now) {
                times.push((now - one.since).as_secs_f64() * 1e6);
            }
            if now < end { one.ask() } else { waiting -= 1 }
        }
    }
    let busy = (processor_time() - used).as_secs_f64() / started.elapsed().as_secs_f64();
    Outcome { rate: 0.0, answers, times, busy }
}

/// The processor time that this thread has used.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).expect("below a second"))
}

/// One connection.
pub(crate) struct Connection {
    stream: TcpStream,
    /// For the request while it is written, then for the answer.
    buffer: Vec<u8>,
}

impl Connection {
    pub(crate) fn open(address: SocketAddr) -> Self {
        Self::try_open(address).expect("somebody listens")
    }

    pub(crate) fn try_open(address: SocketAddr) -> Option<Self> {
        let stream = TcpStream::connect(address).ok()?;
        stream.set_nodelay(true).ok()?;
        Some(Self { stream, buffer: Vec::with_capacity(16 << 10) })
    }

    /// Status and body of the answer to `request`.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub(crate) fn ask(&mut self, request: &[u8]) -> (u16, &[u8]) {
        self.stream.write_all(request).expect("the server listens");
        self.buffer.clear();
        // Parsed twice for the borrow checker: what is lent within the loop would stay lent.
        while answer(&self.buffer).is_none() {
            self.read();
        }
        answer(&self.buffer).expect("it is there")
    }

    /// Reads what has arrived. Returns status and body once the whole answer is there.
    fn receive(&mut self) -> Option<(u16, &[u8])> {
        self.read();
        answer(&self.buffer)
    }

    fn read(&mut self) {
        let had = self.buffer.len();
        // What is read at once: enough for every answer but a long list.
        self.buffer.resize(had + (8 << 10), 0);
        let read = match self.stream.read(&mut self.buffer[had..]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Ok(0) => panic!("the connection was closed"),
            read => read.expect("the server answers"),
        };
        self.buffer.truncate(had + read);
    }
}

/// Status and body, if `bytes` are a whole answer. An answer without `content-length` has no body.
fn answer(bytes: &[u8]) -> Option<(u16, &[u8])> {
    const NAME: &[u8] = b"content-length:";
    let end = bytes.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let (head, body) = (&bytes[..end], &bytes[end + 4..]);
    let number = |text: &[u8]| str::from_utf8(text).ok()?.trim().parse::<usize>().ok();
    let length = head
        .split(|&byte| byte == b'\n')
        .find(|line| line.len() > NAME.len() && line[..NAME.len()].eq_ignore_ascii_case(NAME))
        .map_or(0, |line| number(&line[NAME.len()..]).expect("a length"));
    let status = number(&head["HTTP/1.1 ".len()..][..3]).expect("a status");
    Some((u16::try_from(status).expect("three digits"), body.get(..length)?))
}

/// `GET path`, with further header field lines if there are any.
pub(crate) fn get(path: &str, fields: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{fields}\r\n").into_bytes()
}

/// `POST path` with a JSON text, and further header field lines if there are any.
pub(crate) fn post(path: &str, fields: &str, json: &str) -> Vec<u8> {
    let length = json.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\n{fields}content-type: application/json\r\n\
         content-length: {length}\r\n\r\n{json}"
    )
    .into_bytes()
}

/// The header field line with an access token.
pub(crate) fn bearer(token: &str) -> String {
    format!("authorization: Bearer {token}\r\n")
}
