//! The ring is read from the database, and its private keys opened.

use std::{collections::HashMap, sync::Arc};

use time::OffsetDateTime;

use super::{Error, MAX_RACES, Policy, Published};
use crate::{
    store::{
        PoolConnection,
        signing_keys::{self, SigningKey as Row},
    },
    token::{
        self, Format, InvalidKey, KeyId, KeyPair, KeyPairFormat, KeyStatus, PublicKey, SigningKey,
        VerifyingKey, WrappingKey,
        ring::{self, RingKey},
    },
};

/// The ring as it was last read, and what is made of it.
#[derive(Debug, Default)]
pub(super) struct Ring {
    pub(super) keys: Vec<RingKey>,
    /// The private keys of those that sign or will.
    pub(super) pairs: HashMap<KeyId, Arc<KeyPair>>,
    /// What each key did when it was read: only a change of this matters.
    pub(super) statuses: Vec<(KeyId, KeyStatus)>,
    pub(super) published: Arc<Published>,
}

/// The ring at the start, every key of it opened.
pub(super) async fn first_reading(
    conn: &mut PoolConnection,
    policy: &Policy,
    wrapping: &[WrappingKey],
    now: OffsetDateTime,
) -> Result<Ring, Error> {
    for _ in 0..MAX_RACES {
        match read(conn, policy, wrapping, &Ring::default(), now).await? {
            Some((_, Some(unopened))) => return Err(unopened),
            Some((ring, None)) if signing_key(policy, &ring, now).is_ok() => return Ok(ring),
            // Rotated while it was read.
            _ => {}
        }
    }
    Err(Error::Contended)
}

/// The ring of the formats in force; `None` when nothing has changed since `before`. With it comes the error of a private
/// key that does not open: which tokens are good does not depend on that.
pub(super) async fn read(
    conn: &mut PoolConnection,
    policy: &Policy,
    wrapping: &[WrappingKey],
    before: &Ring,
    now: OffsetDateTime,
) -> Result<Option<(Ring, Option<Error>)>, Error> {
    let keys = live_ring(conn, policy, now).await?;
    let statuses: Vec<_> = keys.iter().filter_map(|key| Some((key.id().clone(), key.status(now)?))).collect();
    let signs = |key: &&RingKey| matches!(key.status(now), Some(KeyStatus::Next | KeyStatus::Active));
    let is_whole = keys.iter().filter(signs).all(|key| before.pairs.contains_key(key.id()));
    if statuses == before.statuses && is_whole {
        return Ok(None);
    }
    let mut pairs = HashMap::new();
    let mut unopened = None;
    for key in keys.iter().filter(signs) {
        let id = key.id();
        if let Some(pair) = before.pairs.get(id) {
            pairs.insert(id.clone(), pair.clone());
        } else if let Some((wrapped, root)) = signing_keys::wrapped(conn, id.as_str()).await? {
            match unwrap(wrapping, key.public.format(), id.as_str(), &wrapped, &root) {
                Ok(pair) => drop(pairs.insert(id.clone(), Arc::new(pair))),
                Err(error) => drop(unopened.get_or_insert(error)),
            }
        }
    }
    let status = |key: &RingKey| key.status(now);
    let published = Arc::new(Published {
        jwks: token::jwks(keys.iter().filter(|key| status(key).is_some()).map(|key| &key.public)),
        paserks: token::paserks(keys.iter().filter_map(|key| Some((&key.public, status(key)?)))),
    });
    Ok(Some((Ring { keys, pairs, statuses, published }, unopened)))
}

/// The keys of the formats in force that are not gone.
pub(super) async fn live_ring(
    conn: &mut PoolConnection,
    policy: &Policy,
    now: OffsetDateTime,
) -> Result<Vec<RingKey>, Error> {
    let rows = signing_keys::live(conn, now).await?;
    // First: what stands in a row of another format, which a later release may have made, is none of our business.
    rows.iter().filter(|row| is_in_force(row, policy)).map(ring_key).collect()
}

pub(super) fn is_in_force(row: &Row, policy: &Policy) -> bool {
    policy.key_pair_formats().any(|format| format.name() == row.format)
}

pub(super) fn ring_key(row: &Row) -> Result<RingKey, Error> {
    let format = format(row)?;
    let unreadable = |source| Error::Unreadable { id: row.id.clone(), source };
    let public: PublicKey = row.public_key.parse().map_err(unreadable)?;
    if public.id().as_str() != row.id || public.format() != format {
        return Err(unreadable(InvalidKey::Jwk));
    }
    Ok(RingKey {
        public,
        published_at: row.published_at,
        activated_at: row.activated_at,
        retired_at: row.retired_at,
        verifies_until: row.verifies_until,
    })
}

pub(super) fn format(row: &Row) -> Result<KeyPairFormat, Error> {
    let unknown = |_| Error::UnknownFormat { id: row.id.clone(), format: row.format.clone() };
    row.format.parse().map_err(unknown)
}

pub(super) fn unwrap(
    wrapping: &[WrappingKey],
    format: KeyPairFormat,
    id: &str,
    wrapped: &[u8],
    root: &str,
) -> Result<KeyPair, Error> {
    let key = wrapping
        .iter()
        .find(|key| key.root().as_str() == root)
        .ok_or_else(|| Error::ForeignRoot { id: id.to_owned(), root: root.to_owned() })?;
    key.unwrap(format, &KeyId::from_stored(id.to_owned()), wrapped)
        .map_err(|source| Error::Unreadable { id: id.to_owned(), source })
}

/// What new tokens are made with.
pub(super) fn signing_key(policy: &Policy, ring: &Ring, now: OffsetDateTime) -> Result<SigningKey, Error> {
    match policy.format {
        Format::Shared(format) => Ok(SigningKey::shared(format, &policy.root)),
        Format::KeyPair(format) => {
            let (active, _) = ring::heads(&ring.keys, format, now).ok_or(Error::NoRing(format))?;
            let pair = ring.pairs.get(active.id());
            let pair = pair.ok_or_else(|| Error::Closed { id: active.id().to_string() })?;
            Ok(SigningKey::Pair(pair.clone()))
        }
    }
}

/// What tokens are checked with: shared keys of every root, and every key of the rings that is not gone. The next one
/// too: another replica may have heard earlier than this one that it signs.
pub(super) fn verifying_keys(policy: &Policy, ring: &Ring, now: OffsetDateTime) -> Vec<VerifyingKey> {
    let shared = policy.formats().into_iter().filter_map(|format| match format {
        Format::Shared(format) => Some(format),
        Format::KeyPair(_) => None,
    });
    let shared = shared.flat_map(|format| policy.roots().map(move |root| VerifyingKey::shared(format, root)));
    let published = ring.keys.iter().filter(|key| key.status(now).is_some());
    shared.chain(published.map(|key| key.public.clone().into())).collect()
}
