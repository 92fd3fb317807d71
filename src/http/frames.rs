//! What a client over HTTP/2 makes the service hold before anybody has looked at a request.
//!
//! A block of header fields (RFC 9113, section 4.3) in one frame is a request as soon as the frame is there. One that
//! goes on in further frames is decoded while it arrives, and until it ends nobody but hyper knows of it: a client that
//! never ends it occupies some 200 KiB. So it takes a place. Few clients need more than a frame, which holds 16 KiB.
//!
//! hyper reads as long as there is something to read, and only then writes. A request that breaks the protocol is
//! nobody's but hyper's, too, which remembers it until it has written the refusal: a thousand of them at once would
//! occupy 700 KiB, of which hyper gives nothing back while the connection lasts. So it gets few requests at a time.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
};

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The length of a frame's head: length, type, flags and the stream's id (RFC 9113, section 4.1).
const HEAD: usize = 9;
/// The frames of which blocks are made, and their flag that ends one (RFC 9113, section 6).
const HEADERS: u8 = 1;
const PUSH_PROMISE: u8 = 5;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
/// How many of these frames are read before what is to be written has been.
const AHEAD: usize = 40;

/// The stream of one connection, its frames watched if it speaks HTTP/2.
pub(super) struct Watched<S> {
    stream: S,
    input: Input,
    /// Its open block's, one of `places`. If there is none, `refused` is notified.
    place: Option<OwnedSemaphorePermit>,
    places: Arc<Semaphore>,
    refused: Arc<Notify>,
    /// How many frames of blocks have been read since everything was written.
    ahead: usize,
    /// Whether the last attempt to read had to wait. hyper then writes all that it has.
    is_waiting: bool,
}

impl<S> Watched<S> {
    pub(super) fn new(stream: S, places: Arc<Semaphore>, refused: Arc<Notify>) -> Self {
        let input = Input::Preface(0);
        Self { stream, input, place: None, places, refused, ahead: 0, is_waiting: false }
    }

    fn watch(&mut self, bytes: &[u8]) {
        let Self { input, place, places, refused, ahead, .. } = self;
        input.read(bytes, |is_open| {
            *ahead += 1;
            if !is_open {
                *place = None;
            } else if place.is_none() {
                match places.clone().try_acquire_owned() {
                    Ok(taken) => *place = Some(taken),
                    Err(_) => refused.notify_one(),
                }
            }
        });
    }

    /// How many bytes may be read, so that no more than [`AHEAD`] frames of blocks are.
    fn allowed(&self) -> usize {
        let before_a_head = match self.input {
            Input::Preface(at) => PREFACE.len() - at,
            Input::Head(..) => 0,
            Input::Payload(left) => left,
            Input::Foreign => return usize::MAX,
        };
        match AHEAD.saturating_sub(self.ahead) {
            0 => 0,
            heads => before_a_head + heads * HEAD,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // `poll_flush` wakes the reader.
        let allowed = self.allowed();
        self.is_waiting = true;
        if allowed == 0 {
            return Poll::Pending;
        }
        let filled = buffer.filled().len();
        if allowed < buffer.remaining() {
            let mut part = ReadBuf::new(buffer.initialize_unfilled_to(allowed));
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut part))?;
            let read = part.filled().len();
            buffer.advance(read);
        } else {
            ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        }
        self.is_waiting = false;
        self.watch(&buffer.filled()[filled..]);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        // hyper also flushes to make room, while it reads, and has more to write then.
        if self.is_waiting {
            if self.ahead >= AHEAD {
                context.waker().wake_by_ref();
            }
            self.ahead = 0;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Where in the client's bytes the next one is.
enum Input {
    /// After as many bytes of the preface.
    Preface(usize),
    /// After as many bytes of a frame's head.
    Head([u8; HEAD], usize),
    /// Before as many bytes of a frame's payload.
    Payload(usize),
    /// This is not HTTP/2.
    Foreign,
}

impl Input {
    /// Calls `block` for each frame of a block with whether the block is open after it.
    fn read(&mut self, mut bytes: &[u8], mut block: impl FnMut(bool)) {
        while let [first, rest @ ..] = bytes {
            match self {
                Self::Foreign => return,
                Self::Preface(at) => {
                    bytes = rest;
                    *self = match *at + 1 {
                        _ if PREFACE[*at] != *first => Self::Foreign,
                        24 => Self::Head([0; HEAD], 0),
                        next => Self::Preface(next),
                    };
                }
                Self::Head(head, at) => {
                    bytes = rest;
                    head[*at] = *first;
                    *at += 1;
                    if let ([high, middle, low, kind, flags, ..], HEAD) = (*head, *at) {
                        if matches!(kind, HEADERS | PUSH_PROMISE | CONTINUATION) {
                            block(flags & END_HEADERS == 0);
                        }
                        *self = Self::Payload(u32::from_be_bytes([0, high, middle, low]) as usize);
                    }
                }
                Self::Payload(left) => {
                    let here = (*left).min(bytes.len());
                    bytes = &bytes[here..];
                    *left -= here;
                    if *left == 0 {
                        *self = Self::Head([0; HEAD], 0);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
        time::timeout,
    };

    use super::*;

    const COUNT: usize = 10 * AHEAD;

    /// A client that has sent the frame [`COUNT`] times, and the service's end.
    async fn send(frame: &[u8]) -> (DuplexStream, Watched<DuplexStream>) {
        let (mut client, service) = duplex(1024 * 1024);
        client.write_all(&[&PREFACE[..], &frame.repeat(COUNT)].concat()).await.unwrap();
        (client, Watched::new(service, Arc::new(Semaphore::new(0)), Arc::default()))
    }

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        [&[0, 0, u8::try_from(payload.len()).unwrap(), kind, END_HEADERS, 0, 0, 0, 1], payload].concat()
    }

    /// How many such frames have been begun each time that a reader who takes `at_once` bytes has to wait, and flushes.
    async fn begun(frame: &[u8], at_once: usize) -> Vec<usize> {
        let (_client, mut service) = send(frame).await;
        let (mut bytes, mut begun, mut read) = (vec![0; at_once], Vec::new(), 0);
        while begun.last() != Some(&COUNT) {
            while let Ok(more) = timeout(Duration::from_secs(1), service.read(&mut bytes)).await {
                read += more.unwrap();
            }
            begun.push((read - PREFACE.len() - HEAD) / frame.len() + 1);
            service.flush().await.unwrap();
        }
        begun
    }

    #[tokio::test(start_paused = true)]
    async fn few_requests_are_read_before_what_is_to_be_written_has_been() {
        for at_once in [1, HEAD - 1, HEAD, HEAD + 1, 100_000] {
            for payload in [&b""[..], b"a", &[b'a'; 100]] {
                let steps = (1..=10).map(|step| step * AHEAD).collect::<Vec<_>>();
                assert_eq!(begun(&frame(HEADERS, payload), at_once).await, steps, "{at_once} at once");
                // DATA.
                assert_eq!(begun(&frame(0, payload), at_once).await, [COUNT], "{at_once} at once");
            }
        }
    }

    /// To make room, while there is more to read, does not mean that all is written.
    #[tokio::test(start_paused = true)]
    async fn flushing_between_two_reads_lets_no_more_be_read() {
        let (_client, mut service) = send(&frame(HEADERS, b"")).await;
        let mut read = 0;
        while let Ok(more) = timeout(Duration::from_secs(1), service.read(&mut [0; 100])).await {
            read += more.unwrap();
            service.flush().await.unwrap();
        }
        assert_eq!((read - PREFACE.len()) / HEAD, AHEAD);
    }
}
