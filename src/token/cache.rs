//! Tokens that have been verified, so that the next request with one of them costs a look-up.
//!
//! Only a token that passed every check is put in. It is kept under a MAC with a key of this process's own: nobody can
//! tell from how long a look-up takes how much of a token agrees with one that is stored, and a dump of memory shows no
//! tokens here. Whoever takes a token's claims out checks the time again; another key set comes with an empty cache, so
//! that a retired key's tokens are gone with the key.
//!
//! Memory is bounded: every entry weighs what its claims take, [`ENTRY_BYTES`] at least, and all of them together no more
//! than [`CAPACITY_BYTES`], so that there are 80 000 at most. When it is full, a newcomer has to be seen more often than
//! the one that it would take the place of (TinyLFU): a flood of tokens that are used once does not drive out those that
//! are used all the time.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use aws_lc_rs::{hmac, rand::SystemRandom};
use moka::{Expiry, sync::Cache};
use time::OffsetDateTime;

use super::claims::Claims;

/// What all entries together may weigh.
const CAPACITY_BYTES: u64 = 32 << 20;
/// What an entry weighs without its texts: the claims, the key, and the cache's own book-keeping.
const ENTRY_BYTES: usize = 416;

type Digest = [u8; 32];

pub(super) struct VerifiedTokens {
    key: hmac::Key,
    entries: Cache<Digest, Entry>,
}

#[derive(Clone)]
struct Entry {
    claims: Arc<Claims>,
    /// From the moment it was put in until it expires.
    remaining: Duration,
}

/// Lets entries go when their token has expired, by the machine's monotonic clock; the clock that decides whether a
/// token is accepted is the caller's.
struct AtExpiry;

impl Expiry<Digest, Entry> for AtExpiry {
    fn expire_after_create(&self, _: &Digest, entry: &Entry, _: Instant) -> Option<Duration> {
        Some(entry.remaining)
    }
}

impl VerifiedTokens {
    pub(super) fn new() -> Self {
        Self::with_capacity(CAPACITY_BYTES)
    }

    fn with_capacity(bytes: u64) -> Self {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .expect("a running kernel has 32 random bytes");
        let entries =
            Cache::builder().max_capacity(bytes).weigher(|_, entry| weight(entry)).expire_after(AtExpiry);
        Self { key, entries: entries.build() }
    }

    /// The name of `token` here.
    pub(super) fn digest(&self, token: &str) -> Digest {
        let tag = hmac::sign(&self.key, token.as_bytes());
        tag.as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    pub(super) fn get(&self, digest: &Digest) -> Option<Arc<Claims>> {
        self.entries.get(digest).map(|entry| entry.claims)
    }

    /// How many there are. What has just been put in or has expired may not be counted yet.
    pub(super) fn len(&self) -> u64 {
        self.entries.entry_count()
    }

    pub(super) fn insert(&self, digest: Digest, claims: Arc<Claims>, now: OffsetDateTime) {
        let remaining = (claims.expires_at - now).try_into().unwrap_or_default();
        self.entries.insert(digest, Entry { claims, remaining });
    }
}

fn weight(entry: &Entry) -> u32 {
    let claims = &entry.claims;
    let roles: usize = claims.roles.iter().map(|role| size_of::<String>() + role.len()).sum();
    let texts = claims.issuer.len() + claims.audience.len() + claims.username.len() + roles;
    u32::try_from(ENTRY_BYTES + texts).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn claims(roles: usize) -> Arc<Claims> {
        Arc::new(Claims {
            issuer: "gatepass".into(),
            user_id: Uuid::nil(),
            audience: "gatepass".into(),
            issued_at: NOW,
            not_before: NOW,
            expires_at: NOW + Duration::from_secs(900),
            token_id: Uuid::nil(),
            session_id: Uuid::nil(),
            username: "alice".into(),
            roles: vec!["x".repeat(64); roles],
        })
    }

    #[test]
    fn a_flood_neither_grows_it_nor_drives_out_what_is_in_use() {
        let cache = VerifiedTokens::with_capacity(64 << 10);
        let used: Vec<_> = (0..20).map(|i| cache.digest(&format!("used {i}"))).collect();
        for digest in &used {
            cache.insert(*digest, claims(0), NOW);
        }
        for i in 0..20_000 {
            if let Some(digest) = used.get(i % 40) {
                cache.get(digest);
            }
            let flood = cache.digest(&format!("flood {i}"));
            assert!(cache.get(&flood).is_none());
            cache.insert(flood, claims(i % 32), NOW);
        }
        cache.entries.run_pending_tasks();
        assert!(cache.entries.weighted_size() <= 64 << 10);
        let kept = used.iter().filter(|digest| cache.get(digest).is_some()).count();
        assert!(kept >= 18, "{kept} of 20");
    }

    #[test]
    fn another_process_names_a_token_otherwise() {
        let (one, other) = (VerifiedTokens::new(), VerifiedTokens::new());
        assert_eq!(one.digest("token"), one.digest("token"));
        assert_ne!(one.digest("token"), other.digest("token"));
    }
}
