//! Blocks of header fields that a client over HTTP/2 leaves open (RFC 9113, section 4.3).
//!
//! A block in one frame is a request as soon as the frame is there. One that goes on in further frames is decoded while
//! it arrives, and until it ends nobody but hyper knows of it: a client that never ends it occupies some 200 KiB. So it
//! takes a place. Few clients need more than a frame, which holds 16 KiB.

use std::sync::Arc;

use tokio::{
    io::AsyncRead,
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
};
use tokio_util::io::InspectReader;

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The frames of which blocks are made, and their flag that ends one (RFC 9113, section 6).
const HEADERS: u8 = 1;
const PUSH_PROMISE: u8 = 5;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// The stream of one connection, with its open block counted: it takes one of `places`. If there is none, `refused` is
/// notified.
pub(super) fn watch<S: AsyncRead>(
    stream: S,
    places: Arc<Semaphore>,
    refused: Arc<Notify>,
) -> InspectReader<S, impl FnMut(&[u8]) + Send + use<S>> {
    let mut input = Input::Preface(0);
    let mut place: Option<OwnedSemaphorePermit> = None;
    InspectReader::new(stream, move |bytes: &[u8]| {
        input.read(bytes, |is_open| {
            if !is_open {
                place = None;
            } else if place.is_none() {
                match places.clone().try_acquire_owned() {
                    Ok(taken) => place = Some(taken),
                    Err(_) => refused.notify_one(),
                }
            }
        });
    })
}

/// Where in the client's bytes the next one is.
enum Input {
    /// After as many bytes of the preface.
    Preface(usize),
    /// After as many bytes of a frame's head: length, type, flags and the stream's id (RFC 9113, section 4.1).
    Head([u8; 9], usize),
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
                        24 => Self::Head([0; 9], 0),
                        next => Self::Preface(next),
                    };
                }
                Self::Head(head, at) => {
                    bytes = rest;
                    head[*at] = *first;
                    *at += 1;
                    if let ([high, middle, low, kind, flags, ..], 9) = (*head, *at) {
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
                        *self = Self::Head([0; 9], 0);
                    }
                }
            }
        }
    }
}
