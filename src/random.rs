//! Where randomness comes from. Everything below the edge takes `rng: &mut impl CryptoRng`; only the edge calls
//! [`system`].

use getrandom::SysRng;
use rand_core::{CryptoRng, UnwrapErr};
use time::OffsetDateTime;
use uuid::Uuid;

/// The operating system's generator.
///
/// Drawing from it panics when the system has no randomness to give, which on a running kernel does not happen; to go
/// on with anything weaker would be worse.
pub fn system() -> impl CryptoRng {
    UnwrapErr(SysRng)
}

/// `N` random bytes.
pub fn bytes<const N: usize>(rng: &mut impl CryptoRng) -> [u8; N] {
    let mut bytes = [0; N];
    rng.fill_bytes(&mut bytes);
    bytes
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
    let millis = u64::try_from(now.unix_timestamp_nanos() / 1_000_000).unwrap_or(0);
    uuid::Builder::from_unix_timestamp_millis(millis, &bytes(rng)).into_uuid()
}
