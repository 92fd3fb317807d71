//! Reads the ring from the database and opens its private keys.

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

/// The ring as it was last read, and what follows from it.
#[derive(Debug, Default)]
pub(super) struct Ring {
    /// The keys that can be read.
    pub(super) keys: Vec<RingKey>,
    /// The keys that cannot be read: each could be one whose tokens must be refused.
    pub(super) unreadable: Vec<Unreadable>,
    /// The private keys of the active and next keys.
    pub(super) pairs: HashMap<KeyId, Arc<KeyPair>>,
    /// The format and the status of each key when the ring was read. Only a change of these matters.
    pub(super) statuses: Vec<(KeyId, KeyPairFormat, KeyStatus)>,
    pub(super) published: Arc<Published>,
}

/// A key that is not what its row says, and so cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unreadable {
    pub(super) id: String,
    pub(super) format: KeyPairFormat,
    pub(super) why: InvalidKey,
}

impl Ring {
    /// The active and the next key of `format`, or why one of them is missing.
    pub(super) fn heads(
        &self,
        format: KeyPairFormat,
        now: OffsetDateTime,
    ) -> Result<(&RingKey, &RingKey), Error> {
        ring::heads(&self.keys, format, now).ok_or_else(|| self.gap(format))
    }

    /// Why a key of `format` is missing.
    fn gap(&self, format: KeyPairFormat) -> Error {
        let unreadable = self.unreadable.iter().find(|key| key.format == format);
        unreadable.map_or(Error::NoRing(format), Unreadable::error)
    }
}

impl Unreadable {
    pub(super) fn error(&self) -> Error {
        Error::Unreadable { id: self.id.clone(), source: self.why }
    }
}

/// The result of reading the ring.
pub(super) struct Reading {
    /// The new ring; `None` if nothing has changed.
    pub(super) ring: Option<Ring>,
    /// Private keys that do not open, which has no bearing on which tokens are good.
    pub(super) unopened: Vec<Error>,
}

/// Reads the ring at the start. The private key that signs must open. Another that does not open is no reason not to
/// serve, unless it is wrapped under a root key that is not configured here: a rollout should fail on that.
pub(super) async fn first_reading(
    conn: &mut PoolConnection,
    policy: &Policy,
    now: OffsetDateTime,
) -> Result<Ring, Error> {
    for _ in 0..MAX_RACES {
        let Reading { ring, unopened } = read(conn, policy, &Ring::default(), now).await?;
        let ring = ring.unwrap_or_default();
        let signs = signing_key(policy, &ring, now);
        let closed =
            unopened.into_iter().find(|it| signs.is_err() || matches!(it, Error::ForeignRoot { .. }));
        match (closed, signs) {
            (None, Ok(_)) => return Ok(ring),
            (Some(error), _) | (None, Err(error @ Error::Unreadable { .. })) => return Err(error),
            // The ring was rotated while it was read: read it again.
            (None, Err(_)) => {}
        }
    }
    Err(Error::Contended)
}

/// Reads the ring of the formats in force.
pub(super) async fn read(
    conn: &mut PoolConnection,
    policy: &Policy,
    before: &Ring,
    now: OffsetDateTime,
) -> Result<Reading, Error> {
    let (keys, unreadable) = live_ring(conn, policy, now).await?;
    let status = |key: &RingKey| Some((key.id().clone(), key.public.format(), key.status(now)?));
    let statuses: Vec<_> = keys.iter().filter_map(status).collect();
    let signs = |key: &&RingKey| matches!(key.status(now), Some(KeyStatus::Next | KeyStatus::Active));
    let is_whole = keys.iter().filter(signs).all(|key| before.pairs.contains_key(key.id()));
    if statuses == before.statuses && unreadable == before.unreadable && is_whole {
        return Ok(Reading { ring: None, unopened: Vec::new() });
    }
    let mut pairs = HashMap::new();
    let mut unopened = Vec::new();
    for key in keys.iter().filter(signs) {
        let id = key.id();
        if let Some(pair) = before.pairs.get(id) {
            pairs.insert(id.clone(), pair.clone());
        } else if let Some((wrapped, root)) = signing_keys::wrapped(conn, id.as_str()).await? {
            match unwrap(policy, key.public.format(), id.as_str(), &wrapped, &root) {
                Ok(pair) => drop(pairs.insert(id.clone(), Arc::new(pair))),
                Err(error) => unopened.push(error),
            }
        }
    }
    let status = |key: &RingKey| key.status(now);
    let published = Arc::new(Published {
        jwks: token::jwks(keys.iter().filter(|key| status(key).is_some()).map(|key| &key.public)),
        paserks: token::paserks(keys.iter().filter_map(|key| Some((&key.public, status(key)?)))),
    });
    Ok(Reading { ring: Some(Ring { keys, unreadable, pairs, statuses, published }), unopened })
}

/// The keys of the formats in force that are not gone and, separately, those that cannot be read. An unreadable key is
/// no reason not to follow the others.
pub(super) async fn live_ring(
    conn: &mut PoolConnection,
    policy: &Policy,
    now: OffsetDateTime,
) -> Result<(Vec<RingKey>, Vec<Unreadable>), Error> {
    let (mut keys, mut unreadable) = (Vec::new(), Vec::new());
    // Rows of other formats, which a later release may have made, are ignored.
    for row in signing_keys::live(conn, now).await?.iter().filter(|row| is_in_force(row, policy)) {
        match ring_key(row) {
            Ok(key) => keys.push(key),
            Err(_) if status(row, now).is_none() => {}
            Err(Error::Unreadable { id, source: why }) => {
                unreadable.push(Unreadable { id, format: format(row)?, why });
            }
            Err(error) => return Err(error),
        }
    }
    Ok((keys, unreadable))
}

/// The status at `now` of the key in this row, whether it can be read or not; `None` if it is gone.
pub fn status(row: &Row, now: OffsetDateTime) -> Option<KeyStatus> {
    ring::status(row.activated_at, row.retired_at, row.verifies_until, now)
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
    policy: &Policy,
    format: KeyPairFormat,
    id: &str,
    wrapped: &[u8],
    root: &str,
) -> Result<KeyPair, Error> {
    let key = policy
        .roots()
        .find(|key| key.id().as_str() == root)
        .ok_or_else(|| Error::ForeignRoot { id: id.to_owned(), root: root.to_owned() })?;
    WrappingKey::new(key)
        .unwrap(format, &KeyId::from_stored(id.to_owned()), wrapped)
        .map_err(|source| Error::Unopenable { id: id.to_owned(), source })
}

/// The key that new tokens are made with.
pub(super) fn signing_key(policy: &Policy, ring: &Ring, now: OffsetDateTime) -> Result<SigningKey, Error> {
    match policy.format {
        Format::Shared(format) => Ok(SigningKey::shared(format, &policy.root)),
        Format::KeyPair(format) => {
            // A missing next key does not matter here: it can be made while this one signs.
            let active = ring::key(&ring.keys, format, KeyStatus::Active, now);
            let active = active.ok_or_else(|| ring.gap(format))?;
            let pair = ring.pairs.get(active.id());
            let pair = pair.ok_or_else(|| Error::Closed { id: active.id().to_string() })?;
            Ok(SigningKey::Pair(pair.clone()))
        }
    }
}

/// The keys that tokens are checked with: the shared keys of every root, and every key of the rings that is not gone.
/// That includes the next key, since another replica may already know that it signs.
pub(super) fn verifying_keys(policy: &Policy, ring: &Ring, now: OffsetDateTime) -> Vec<VerifyingKey> {
    let shared = policy.formats().into_iter().filter_map(|format| match format {
        Format::Shared(format) => Some(format),
        Format::KeyPair(_) => None,
    });
    let shared = shared.flat_map(|format| policy.roots().map(move |root| VerifyingKey::shared(format, root)));
    let published = ring.keys.iter().filter(|key| key.status(now).is_some());
    shared.chain(published.map(|key| key.public.clone().into())).collect()
}
