//! What a client over HTTP/2 makes the service hold before anybody has looked at a request.
//!
//! A block of header fields (RFC 9113, section 4.3) in one frame is a request as soon as the frame is there. One that
//! goes on in further frames is decoded while it arrives, and until it ends nobody but hyper knows of it: a client that
//! never ends it occupies some 200 KiB. So it takes a place. Few clients need more than a frame, which holds 16 KiB.
//!
//! hyper reads as long as there is something to read, and only then writes. Streams that break the protocol never reach
//! us either: hyper remembers each of them until it has written the refusal. A thousand of them at once would occupy
//! 700 KiB, of which it gives nothing back while the connection lasts. So it gets few frames in each turn, and no more
//! of them before everything is written.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore},
};

use super::{Places, pieces::Pieces, signals::Signals};

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The length of a frame's head: length, type, flags and the stream's id (RFC 9113, section 4.1).
const HEAD: usize = 9;
/// The frames of which blocks are made, and their flag that ends one (RFC 9113, section 6).
const HEADERS: u8 = 1;
const PUSH_PROMISE: u8 = 5;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
/// How many frames are read before everything that there is to write has been written.
const AHEAD: usize = 40;

/// The stream of one connection, its frames watched if it speaks HTTP/2.
pub(super) struct Watched<S> {
    stream: S,
    input: Input,
    blocks: Arc<Semaphore>,
    /// Its open block's place.
    block: Option<OwnedSemaphorePermit>,
    pieces: Pieces,
    signals: Arc<Signals>,
    /// How many frames have been read since the last turn that began with everything written.
    ahead: usize,
    /// Whether a flush has been the last thing in writing. hyper also flushes to make room, and then writes on.
    is_flushed: bool,
    /// Whether the reader has to wait for that, and the next turn.
    is_held: bool,
}

impl<S> Watched<S> {
    pub(super) fn new(stream: S, places: &Places, signals: Arc<Signals>) -> Self {
        Self {
            stream,
            input: Input::Preface(0),
            blocks: places.http2_blocks.clone(),
            block: None,
            pieces: Pieces::new(places),
            signals,
            ahead: 0,
            is_flushed: true,
            is_held: false,
        }
    }

    fn watch(&mut self, bytes: &[u8]) {
        let Self { input, blocks, block, pieces, signals, ahead, .. } = self;
        input.read(bytes, |kind, flags| {
            *ahead += 1;
            if !matches!(kind, HEADERS | PUSH_PROMISE | CONTINUATION) {
                return;
            }
            if kind == CONTINUATION {
                pieces.come_in_long_blocks();
            }
            if flags & END_HEADERS != 0 {
                *block = None;
            } else if block.is_none() {
                *block = blocks.clone().try_acquire_owned().ok();
                if block.is_none() {
                    signals.lacks_block.notify_one();
                }
            }
        });
        if !matches!(self.input, Input::Foreign) {
            self.pieces.add(bytes.len());
        }
    }

    /// How many bytes may be read now, so that no more than [`AHEAD`] frames are.
    fn allowed(&mut self) -> usize {
        if self.signals.has_begun() && self.is_flushed {
            self.ahead = 0;
        }
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
        let Self { pieces, signals, .. } = &mut *self;
        ready!(pieces.poll_places(context, signals));
        let allowed = self.allowed();
        if allowed == 0 {
            self.is_held = true;
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
        self.is_flushed = false;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.is_flushed = false;
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        self.is_flushed = true;
        if self.is_held {
            self.is_held = false;
            context.waker().wake_by_ref();
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
    /// Calls `frame` with the type and the flags of each.
    fn read(&mut self, mut bytes: &[u8], mut frame: impl FnMut(u8, u8)) {
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
                        frame(kind, flags);
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
    use std::task::Waker;

    use tokio::io::{DuplexStream, duplex};

    use super::*;
    use crate::http::Limits;

    const COUNT: usize = 10 * AHEAD;

    /// What hyper does with a connection on which a client has sent the same frame [`COUNT`] times.
    struct Hyper {
        stream: Watched<DuplexStream>,
        signals: Arc<Signals>,
        frame: Vec<u8>,
        read: usize,
        _client: DuplexStream,
    }

    impl Hyper {
        fn new(kind: u8, payload: &[u8]) -> Self {
            let frame =
                [&[0, 0, u8::try_from(payload.len()).unwrap(), kind, END_HEADERS, 0, 0, 0, 1], payload]
                    .concat();
            let (mut client, stream) = duplex(1024 * 1024);
            let bytes = [&PREFACE[..], &frame.repeat(COUNT)].concat();
            let mut context = Context::from_waker(Waker::noop());
            assert!(Pin::new(&mut client).poll_write(&mut context, &bytes).is_ready());
            let signals = Signals::new();
            let places = Places::new(Limits { http2_blocks: 0, ..Limits::default() });
            let stream = Watched::new(stream, &places, signals.clone());
            Self { stream, signals, frame, read: 0, _client: client }
        }

        /// Reads for as long as it can, so many bytes at a time. Returns how many frames have come in all.
        fn read(&mut self, at_once: usize) -> usize {
            let mut bytes = vec![0; at_once];
            loop {
                let mut buffer = ReadBuf::new(&mut bytes);
                let mut context = Context::from_waker(Waker::noop());
                match Pin::new(&mut self.stream).poll_read(&mut context, &mut buffer) {
                    Poll::Ready(read) => read.unwrap(),
                    Poll::Pending => return (self.read - PREFACE.len() - HEAD) / self.frame.len() + 1,
                }
                self.read += buffer.filled().len();
            }
        }

        fn write(&mut self) {
            let mut context = Context::from_waker(Waker::noop());
            assert!(Pin::new(&mut self.stream).poll_write(&mut context, b"a").is_ready());
        }

        fn flush(&mut self) {
            let mut context = Context::from_waker(Waker::noop());
            assert!(Pin::new(&mut self.stream).poll_flush(&mut context).is_ready());
        }
    }

    #[test]
    fn few_frames_are_read_in_each_turn() {
        // DATA, PRIORITY, and one that nobody knows.
        for kind in [HEADERS, 0, 2, 99] {
            for payload in [&b""[..], b"a", &[b'a'; 100]] {
                for at_once in [1, HEAD - 1, HEAD, HEAD + 1, 100_000] {
                    let mut hyper = Hyper::new(kind, payload);
                    for turn in 1..=10 {
                        hyper.signals.begin();
                        assert_eq!(hyper.read(at_once), turn * AHEAD, "{at_once} at once");
                        hyper.flush();
                        assert_eq!(hyper.read(at_once), turn * AHEAD, "{at_once} at once");
                    }
                }
            }
        }
    }

    #[test]
    fn no_more_is_read_before_everything_is_written() {
        let mut hyper = Hyper::new(HEADERS, b"");
        assert_eq!(hyper.read(1000), AHEAD);
        for _ in 0..3 {
            // To make room.
            hyper.flush();
            hyper.write();
            hyper.signals.begin();
            assert_eq!(hyper.read(1000), AHEAD);
        }
        hyper.flush();
        assert_eq!(hyper.read(1000), AHEAD);
        hyper.signals.begin();
        assert_eq!(hyper.read(1000), 2 * AHEAD);
    }
}
