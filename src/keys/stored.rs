//! The keys as stored in the database, for the command line: whatever can be read of them, whether they open or not.

use time::OffsetDateTime;

use super::{
    Error, MAX_RACES, Policy, Rewrapped,
    making::{self, Made},
    reading::{Ring, format, live_ring, ring_key, status, unwrap, verifying_keys},
};
use crate::{
    store::{
        PgPool,
        signing_keys::{self, SigningKey as Row},
    },
    token::{KeyId, KeyStatus, Verifier, ring::RingKey},
};

/// Takes a key out of the ring as it is in `db` now, whatever the key's status, and whether or not it can be read or
/// its private part opened.
///
/// `at_once` is for a key that has leaked: its tokens are refused from now on. Otherwise an active key is rotated out
/// and goes on verifying what it has signed, except for one that cannot be read, which verifies nothing.
///
/// # Errors
///
/// [`Error::NoSuchKey`], [`Error::UnknownFormat`], [`Error::TooEarly`]. [`Error::Unreadable`] if the next key, which
/// would sign now, cannot be read; with `at_once` that key is replaced, too.
pub async fn retire(
    policy: &Policy,
    db: &PgPool,
    id: &str,
    at_once: bool,
    now: OffsetDateTime,
) -> Result<(), Error> {
    let mut conn = db.acquire().await?;
    for _ in 0..MAX_RACES {
        // All keys, because a clock that is ahead may take a key for gone that others still accept.
        let rows = signing_keys::all(&mut conn).await?;
        let row = rows.iter().find(|row| row.id == id).ok_or_else(|| Error::NoSuchKey(id.to_owned()))?;
        let format = format(row)?;
        let key = ring_key(row);
        let at_once = at_once || key.is_err();
        let is_done = match status(row, now) {
            Some(KeyStatus::Next) => {
                let new = Made::new(format, policy).await?;
                signing_keys::replace_next(&mut conn, id, &new.row(), now, &policy.cause).await?
            }
            Some(KeyStatus::Active) => {
                let is_next =
                    |row: &&Row| row.format == format.name() && status(row, now) == Some(KeyStatus::Next);
                let next = rows.iter().find(is_next).ok_or(Error::NoRing(format))?;
                match (key, ring_key(next)) {
                    // The next key cannot be read, so it must not sign; a leaked key cannot wait until it is replaced.
                    (_, Err(_)) if at_once => {
                        let new = Made::new(format, policy).await?;
                        signing_keys::replace_next(&mut conn, &next.id, &new.row(), now, &policy.cause)
                            .await?;
                        continue;
                    }
                    (_, Err(error)) => return Err(error),
                    // Skipped if at once: a leaked key is worse than a verifier that does not know the next one for a
                    // minute.
                    (Ok(active), Ok(next)) if !at_once => {
                        let ready_at = policy.schedule.ready_at(&active, &next);
                        if now < ready_at {
                            return Err(Error::TooEarly(ready_at));
                        }
                    }
                    _ => {}
                }
                let new = Made::new(format, policy).await?;
                signing_keys::rotate(&mut conn, id, &next.id, &new.row(), at_once, now, &policy.cause).await?
            }
            Some(KeyStatus::Retiring) if at_once => signing_keys::end(&mut conn, id, &policy.cause).await?,
            Some(KeyStatus::Retiring) => true,
            None if at_once && signing_keys::end(&mut conn, id, &policy.cause).await? => true,
            None => return Err(Error::NoSuchKey(id.to_owned())),
        };
        if is_done {
            tracing::info!(key = id, at_once, "signing key retired");
            return Ok(());
        }
    }
    Err(Error::Contended)
}

/// Rewraps, under the present root key, keys of every format that an accepted root key has wrapped.
///
/// # Errors
///
/// When the database fails.
pub async fn rewrap(policy: &Policy, db: &PgPool) -> Result<Rewrapped, Error> {
    making::rewrap(&mut db.acquire().await?, policy).await
}

/// Every key that there has been, oldest first.
#[derive(Debug, Default)]
pub struct Stored {
    /// The keys that can be read, with the root key under which each is wrapped.
    pub keys: Vec<(RingKey, Option<KeyId>)>,
    /// The keys that cannot be read, and why: [`Error::UnknownFormat`], [`Error::Unreadable`].
    pub unreadable: Vec<(Row, Error)>,
}

/// The stored keys, without their private parts.
///
/// # Errors
///
/// When the database fails.
pub async fn list(db: &PgPool) -> Result<Stored, Error> {
    let mut stored = Stored::default();
    for row in signing_keys::all(&mut *db.acquire().await?).await? {
        match ring_key(&row) {
            Ok(key) => stored.keys.push((key, row.wrapped_by.map(KeyId::from_stored))),
            Err(error) => stored.unreadable.push((row, error)),
        }
    }
    Ok(stored)
}

/// A verifier that checks tokens as the service does at `now`, for tools outside it. It makes no ring and opens no
/// private key. A `db` is needed if there are key pairs.
///
/// # Errors
///
/// When the database fails.
pub async fn verifier(policy: &Policy, db: Option<&PgPool>, now: OffsetDateTime) -> Result<Verifier, Error> {
    let mut ring = Ring::default();
    if let Some(db) = db {
        let mut conn = db.acquire().await?;
        (ring.keys, ring.unreadable) = live_ring(&mut conn, policy, now).await?;
    }
    Ok(Verifier::new(verifying_keys(policy, &ring, now), policy.party.clone()))
}

/// An error for each stored private key that no root key opens. Changes nothing. Keys of formats that this release does
/// not know are not tried.
///
/// # Errors
///
/// When the database fails.
pub async fn unopenable(policy: &Policy, db: &PgPool) -> Result<Vec<Error>, Error> {
    let mut conn = db.acquire().await?;
    let mut errors = Vec::new();
    for row in signing_keys::all(&mut conn).await? {
        let Ok(format) = format(&row) else { continue };
        let Some((wrapped, root)) = signing_keys::wrapped(&mut conn, &row.id).await? else { continue };
        errors.extend(unwrap(policy, format, &row.id, &wrapped, &root).err());
    }
    Ok(errors)
}
