//! The source of randomness. Everything below the edge takes `rng: &mut impl CryptoRng`; only the edge calls
//! [`system`].

use std::{cell::RefCell, thread};

use getrandom::SysRng;
use rand_core::{CryptoRng, UnwrapErr};
use time::OffsetDateTime;
use uuid::Uuid;

/// The operating system's generator.
///
/// Drawing from it panics if the system has no randomness to give, which does not happen on a running kernel.
/// Continuing with anything weaker would be worse.
pub fn system() -> impl CryptoRng {
    UnwrapErr(SysRng)
}

/// Makes aws-lc gather the entropy for its own generator, which keys and TLS draw from, on a separate thread. It does
/// so once per process, from the processor's jitter, which takes tens of milliseconds. Otherwise the first caller to
/// draw would have to wait.
pub fn gather() {
    // If this or the thread fails, the first caller to draw gathers it, and waits.
    let gather = || aws_lc_rs::rand::fill(&mut [0]).is_ok();
    drop(thread::Builder::new().name("gatepass-entropy".into()).spawn(gather));
}

/// `N` random bytes.
pub fn bytes<const N: usize>(rng: &mut impl CryptoRng) -> [u8; N] {
    let mut bytes = [0; N];
    rng.fill_bytes(&mut bytes);
    bytes
}

/// The id of an access token that belongs to a session's `generation`: a UUIDv7 whose `rand_a` (RFC 9562, section 5.7)
/// is the generation's last 12 bits. So a token identifies the renewal that it came with, without a claim for it.
pub fn token_id(now: OffsetDateTime, generation: u32, rng: &mut impl CryptoRng) -> Uuid {
    let mut random: [u8; 10] = bytes(rng);
    let [.., high, low] = generation.to_be_bytes();
    random[..2].copy_from_slice(&[high & 0xf, low]);
    uuid::Builder::from_unix_timestamp_millis(millis(now), &random).into_uuid()
}

/// The last 12 bits of the generation that an access token's id was made for.
pub fn generation_of(token_id: Uuid) -> u16 {
    let [_, _, _, _, _, _, high, low, ..] = *token_id.as_bytes();
    u16::from_be_bytes([high & 0xf, low])
}

/// A UUIDv7 (RFC 9562, section 5.7): the millisecond of `now`, then 74 random bits.
///
/// ```
/// # let mut rng = gatepass::random::system();
/// use time::OffsetDateTime;
///
/// let id = gatepass::random::uuid_v7(OffsetDateTime::UNIX_EPOCH, &mut rng);
/// assert_eq!(id.get_version_num(), 7);
/// ```
pub fn uuid_v7(now: OffsetDateTime, rng: &mut impl CryptoRng) -> Uuid {
    uuid::Builder::from_unix_timestamp_millis(millis(now), &bytes(rng)).into_uuid()
}

/// A UUIDv7 that is not a secret, from randomness that each thread draws for many ids at once. Drawing it for each id
/// would be one of four system calls that a request makes.
pub fn uuid_v7_from_stock(now: OffsetDateTime) -> Uuid {
    const STOCK: usize = 64;
    thread_local! {
        static LEFT: RefCell<Vec<[u8; 10]>> = const { RefCell::new(Vec::new()) };
    }
    let random = LEFT.with_borrow_mut(|left| {
        if left.is_empty() {
            let drawn: [u8; 10 * STOCK] = bytes(&mut system());
            left.extend_from_slice(drawn.as_chunks().0);
        }
        left.pop().expect("some were drawn")
    });
    uuid::Builder::from_unix_timestamp_millis(millis(now), &random).into_uuid()
}

fn millis(at: OffsetDateTime) -> u64 {
    u64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique() {
        let now = OffsetDateTime::UNIX_EPOCH;
        let draw = move || (0..1000).map(|_| uuid_v7_from_stock(now)).collect::<Vec<_>>();
        let mut ids = [thread::spawn(draw).join().unwrap(), draw()].concat();
        assert!(ids.iter().all(|id| id.get_version_num() == 7));
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 2000);
    }

    #[test]
    fn a_token_id_contains_its_generation() {
        for generation in [0, 1, 255, 256, 4095, 4096, 4097, u32::MAX] {
            let id = token_id(OffsetDateTime::UNIX_EPOCH, generation, &mut system());
            assert_eq!(id.get_version_num(), 7);
            assert_eq!(u32::from(generation_of(id)), generation & 0xfff);
        }
    }
}
