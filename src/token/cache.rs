//! A cache of verified tokens, so that the next request with one of them costs a lookup.
//!
//! Only a token that passed every check is put in. It is stored under its MAC, made with a key of this process alone:
//! the time a lookup takes does not reveal how much of a token matches a stored one, and a memory dump shows no tokens
//! here. The caller checks the times again whenever it takes a token's claims out. A new key set comes with an empty
//! cache, so a retired key's tokens are gone with the key.
//!
//! Memory is bounded: an entry weighs what its claims take, at least [`ENTRY_BYTES`], and all entries together no more
//! than [`CAPACITY_BYTES`], so there are at most 80 000. When the cache is full, a new token gets in only if it has
//! been seen more often than the one it would replace (TinyLFU): a flood of tokens that are used once does not evict
//! those that are used all the time.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use aws_lc_rs::{hmac, rand::SystemRandom};
use moka::{Expiry, sync::Cache};
use time::OffsetDateTime;

use super::claims::Claims;

/// What all entries together may weigh, in bytes.
const CAPACITY_BYTES: u64 = 32 << 20;
/// What an entry weighs without its texts: the claims, the key, and the cache's own bookkeeping.
const ENTRY_BYTES: usize = 416;

type Digest = [u8; 32];

pub(super) struct VerifiedTokens {
    key: hmac::Key,
    entries: Cache<Digest, Entry>,
}

#[derive(Clone)]
struct Entry {
    claims: Arc<Claims>,
    /// The time from insertion to the token's expiry.
    remaining: Duration,
}

/// Drops entries when their token has expired, by the machine's monotonic clock. Whether a token is accepted is decided
/// by the caller's clock.
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

    /// The name under which `token` is stored.
    pub(super) fn digest(&self, token: &str) -> Digest {
        let tag = hmac::sign(&self.key, token.as_bytes());
        tag.as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    pub(super) fn get(&self, digest: &Digest) -> Option<Arc<Claims>> {
        self.entries.get(digest).map(|entry| entry.claims)
    }

    /// How many tokens there are. Recent insertions and expiries may not be counted yet.
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
    fn a_flood_neither_grows_the_cache_nor_evicts_tokens_in_use() {
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
    fn token_digests_differ_between_processes() {
        let (one, other) = (VerifiedTokens::new(), VerifiedTokens::new());
        assert_eq!(one.digest("token"), one.digest("token"));
        assert_ne!(one.digest("token"), other.digest("token"));
    }
}
