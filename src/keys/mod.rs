//! The keys of this service, on every replica: shared ones from the configuration, key pairs from Postgres.
//!
//! A format with published keys has a key ring in the table `signing_keys`; [`token::ring`] describes the life cycle of
//! its keys. [`Keys::open`] makes the ring if there is none; of many replicas that start together, one makes it.
//! [`Keys::follow`] reads the ring twice a second, so that every replica follows within a second what another replica
//! or the command line has done: it signs with a new key, or refuses the tokens of a leaked one. It also rotates the
//! keys when that is due, on whichever replica gets there first.
//!
//! A replica that cannot read the ring for `REVOCATION_MAX_STALENESS` refuses the tokens of its keys and makes none,
//! rather than guess. A single key that cannot be read is not used at all, and does not keep a replica from following
//! the others.
//!
//! Private keys are wrapped under the root key, `TOKEN_SYMMETRIC_KEY`. A root key that is being replaced stays among
//! `TOKEN_SYMMETRIC_KEYS_ACCEPTED` for a while, and a replica that starts with the new one rewraps what the old one had
//! wrapped. A ring that does not open under any of them stops the start: making another ring would refuse every token
//! there is.

mod making;
mod reading;
mod stored;

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use time::OffsetDateTime;
use tokio::{
    sync::{Mutex, Notify},
    time::Instant,
};
use tracing::field::display;

use self::{
    making::{Made, prepare},
    reading::{Reading, Ring, Unreadable, first_reading, read, signing_key, unwrap, verifying_keys},
};
use crate::{
    chain::{self, chain},
    clock::{self, Clock},
    metrics::KeyAge,
    store::{self, Cause, PgPool, signing_keys},
    token::{
        self, Format, InvalidKey, IssueError, Issuer, KeyPairFormat, KeyStatus, Party, SymmetricKey,
        Verifier,
        ring::{self, Schedule},
    },
};

pub use self::{
    making::Rewrapped,
    reading::status,
    stored::{Stored, list, retire, rewrap, unopenable, verifier},
};

/// How often the ring is read: twice within the second for which a leaked key may still be accepted.
const POLL: Duration = Duration::from_millis(500);
const _: () = assert!(2 * POLL.as_millis() <= ring::HEARD_WITHIN.as_millis());
/// How long one reading may take before it counts as failed.
const POLL_PATIENCE: Duration = Duration::from_secs(5);
/// How long a rotation or a rewrap may take, which may include making an RSA key on a busy machine.
const CHANGE_PATIENCE: Duration = Duration::from_secs(20);
/// How long to wait after a failed rotation before the next attempt.
const ROTATION_REST: Duration = Duration::from_secs(60);
/// How often, after the start, to look for keys wrapped under another root key: a replica that still had the former
/// configuration may have added to the ring in the meantime.
const REWRAP_EVERY: Duration = Duration::from_secs(3600);
/// How often in a row another replica may be faster before something else must be wrong.
const MAX_RACES: usize = 8;

/// The operator's decisions about keys.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The format of new tokens.
    pub format: Format,
    /// Further formats whose tokens are accepted.
    pub formats_accepted: Vec<Format>,
    /// The root key: the key of v4.local, and the key from which all others are derived or under which they are
    /// wrapped.
    pub root: SymmetricKey,
    /// Former or coming root keys: their tokens are accepted, and keys that they wrapped can be opened.
    pub roots_accepted: Vec<SymmetricKey>,
    /// The issuer and the audience of the tokens.
    pub party: Party,
    /// When key pairs are replaced.
    pub schedule: Schedule,
    /// The maximum lifetime of a token.
    pub token_life: Duration,
    /// How long this replica may accept and make tokens of the ring's keys without having read the ring.
    pub max_staleness: Duration,
    /// Who changes the ring, for the history.
    pub cause: Cause,
}

impl Policy {
    /// Every format whose tokens are accepted, that of new tokens first, without duplicates.
    pub fn formats(&self) -> Vec<Format> {
        let mut formats = vec![self.format];
        for format in &self.formats_accepted {
            if !formats.contains(format) {
                formats.push(*format);
            }
        }
        formats
    }

    /// Those formats whose keys are a ring in the database.
    pub fn key_pair_formats(&self) -> impl Iterator<Item = KeyPairFormat> {
        self.formats().into_iter().filter_map(|format| match format {
            Format::KeyPair(format) => Some(format),
            Format::Shared(_) => None,
        })
    }

    /// Whether any format's keys are a ring in the database.
    pub fn has_ring(&self) -> bool {
        self.key_pair_formats().next().is_some()
    }

    fn token_seconds(&self) -> i32 {
        i32::try_from(self.token_life.as_secs()).unwrap_or(i32::MAX).max(1)
    }

    /// The root keys, the present one first.
    pub fn roots(&self) -> impl Iterator<Item = &SymmetricKey> {
        std::iter::once(&self.root).chain(&self.roots_accepted)
    }
}

/// Why the keys cannot be used or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The private key is wrapped under a root key that is not configured here.
    #[error(
        "the signing key {id} is wrapped under the root key {root}, which is neither TOKEN_SYMMETRIC_KEY nor among \
         TOKEN_SYMMETRIC_KEYS_ACCEPTED. If the root key was replaced, put the former one there; if it is lost, \
         `gatepass key retire ID --now` for the next key and then for the active one makes new keys, and every token \
         of the former ones is refused"
    )]
    ForeignRoot {
        /// The signing key.
        id: String,
        /// The root key's name, `k4.lid.…`.
        root: String,
    },
    /// The key that signs does not open.
    #[error(
        "the signing key {id} does not open under TOKEN_SYMMETRIC_KEY or one of TOKEN_SYMMETRIC_KEYS_ACCEPTED; \
         `gatepass key list` says which root key it is wrapped under"
    )]
    Closed {
        /// The signing key.
        id: String,
    },
    /// A stored key is not what its row says.
    #[error(
        "the signing key {id} cannot be read; `gatepass key retire {id} --now` puts another in its place"
    )]
    Unreadable {
        /// The signing key.
        id: String,
        /// Why.
        source: InvalidKey,
    },
    /// A stored private key does not open, but the public key is sound.
    #[error(
        "the private part of the signing key {id} cannot be opened; `gatepass key retire {id}` puts another key in its \
         place, and refuses no token"
    )]
    Unopenable {
        /// The signing key.
        id: String,
        /// Why.
        source: InvalidKey,
    },
    /// The key was made by a later release, which may be running beside this one.
    #[error(
        "the signing key {id} is for {format}, which this release does not know: a later release made it"
    )]
    UnknownFormat {
        /// The signing key.
        id: String,
        /// The format that the key is for.
        format: String,
    },
    /// The system could not make a key.
    #[error("no key could be made")]
    Generate(#[source] InvalidKey),
    /// Keys of this format come from the configuration.
    #[error(
        "tokens of {0} are made with a key from the configuration: to replace it, see docs/key-rotation.md"
    )]
    Shared(Format),
    /// There is no ring, or it lacks an active or a next key.
    #[error("there are no signing keys for {0} yet: they are made when the service starts")]
    NoRing(KeyPairFormat),
    /// The next key is too young.
    #[error("the next key may be missing in published documents that are cached until {0}")]
    TooEarly(OffsetDateTime),
    /// There is no key with this name, or it is gone.
    #[error("there is no signing key {0} that could be retired; `gatepass key list` shows them")]
    NoSuchKey(String),
    /// Others kept changing the ring.
    #[error("concurrent changes to the ring kept getting in the way")]
    Contended,
    /// The database failed.
    #[error("the signing keys cannot be read or changed")]
    Store(#[from] store::Error),
}

/// The keys of this service.
#[derive(Clone, Debug)]
pub struct Keys(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// For changes to the ring, which may have to wait for a connection.
    db: PgPool,
    /// For reading the ring, which must not wait.
    readings: PgPool,
    /// Measures how much time has passed.
    clock: Clock,
    policy: Policy,
    issuer: Arc<Issuer>,
    verifier: Arc<Verifier>,
    ring: ArcSwap<Ring>,
    /// Held while the ring is read and put in force, so that an older reading never replaces a newer one.
    reading: Mutex<()>,
}

/// The public keys, as documents.
#[derive(Debug, PartialEq, Eq)]
pub struct Published {
    /// The JWK set (RFC 7517).
    pub jwks: String,
    /// `{"keys":[{"kid","paserk","status"}]}`
    pub paserks: String,
}

impl Default for Published {
    fn default() -> Self {
        Self { jwks: token::jwks([]), paserks: token::paserks([]) }
    }
}

impl Keys {
    /// Opens the keys that `policy` asks for, and makes and wraps those that are missing. The ring is read over a
    /// connection of `readings`: use that pool for nothing else, since every other user delays the retirement of a
    /// leaked key.
    ///
    /// # Errors
    ///
    /// [`Error::ForeignRoot`], or when the database fails. If all formats have shared keys, the database is not used.
    pub async fn open(
        policy: Policy,
        db: PgPool,
        readings: PgPool,
        clock: Clock,
        now: OffsetDateTime,
    ) -> Result<Self, Error> {
        let has_ring = policy.has_ring();
        let began_at = clock.elapsed();
        let ring = if has_ring {
            let mut conn = db.acquire().await?;
            prepare(&mut conn, &policy, now).await?;
            first_reading(&mut conn, &policy, now).await?
        } else {
            Ring::default()
        };
        let issuer = Issuer::new(signing_key(&policy, &ring, now)?, policy.party.clone());
        let max_silence = if has_ring { policy.max_staleness } else { Duration::MAX };
        let verifier = Verifier::new(verifying_keys(&policy, &ring, now), policy.party.clone())
            .with_max_silence(max_silence);
        verifier.heard(began_at);
        Ok(Self(Arc::new(Inner {
            db,
            readings,
            clock,
            policy,
            issuer: Arc::new(issuer),
            verifier: Arc::new(verifier),
            ring: ArcSwap::from_pointee(ring),
            reading: Mutex::new(()),
        })))
    }

    /// The issuer, which always makes tokens with the key that signs at the moment.
    pub fn issuer(&self) -> Arc<Issuer> {
        self.0.issuer.clone()
    }

    /// The verifier, which always checks tokens with the keys that are good at the moment.
    pub fn verifier(&self) -> Arc<Verifier> {
        self.0.verifier.clone()
    }

    /// The public keys, as documents.
    pub fn published(&self) -> Arc<Published> {
        self.0.ring.load().published.clone()
    }

    /// How long those documents may be cached.
    pub fn cached_for(&self) -> Duration {
        self.0.policy.schedule.cached_for()
    }

    /// How long ago the ring was last read; `None` if there is no ring.
    pub fn silence(&self) -> Option<Duration> {
        self.0.policy.has_ring().then(|| self.0.verifier.silence(self.0.clock.elapsed()))
    }

    /// How long ago the ring was last read, if that is longer than it may be: a key may have been retired since.
    pub fn staleness(&self) -> Option<Duration> {
        self.0.verifier.staleness(self.0.clock.elapsed())
    }

    /// How many keys of each format there are, by their status at `now`, and since when they have it. For a shared key,
    /// which signs or is accepted for as long as the configuration says so, that time is not known. Nor is it given for
    /// the active key of a format that new tokens do not have: it signs nothing, and is not rotated. A key that cannot
    /// be read counts as unreadable.
    pub fn ages(&self, now: OffsetDateTime) -> Vec<KeyAge> {
        let shared = self.0.policy.formats().into_iter().filter(|format| matches!(format, Format::Shared(_)));
        let count = self.0.policy.roots().count();
        let shared =
            shared.map(|format| KeyAge { format: format.to_string(), status: "shared", count, since: None });
        let mut ages: Vec<_> = shared.collect();
        let ring = self.0.ring.load();
        let mut add = |format: KeyPairFormat, status, since: Option<OffsetDateTime>| {
            let since = since.map(OffsetDateTime::unix_timestamp);
            match ages.iter_mut().find(|age| age.format == format.name() && age.status == status) {
                Some(age) => {
                    age.count += 1;
                    age.since = age.since.min(since);
                }
                None => ages.push(KeyAge { format: format.name().to_owned(), status, count: 1, since }),
            }
        };
        for key in &ring.keys {
            let signs = self.0.policy.format == key.public.format().into();
            let (status, since) = match key.status(now) {
                Some(KeyStatus::Next) => ("next", Some(key.published_at)),
                Some(KeyStatus::Active) if !signs => ("accepted", None),
                Some(KeyStatus::Active) => ("active", key.activated_at),
                Some(KeyStatus::Retiring) => ("retiring", key.retired_at),
                None => continue,
            };
            add(key.public.format(), status, since);
        }
        for key in &ring.unreadable {
            add(key.format, "unreadable", None);
        }
        ages
    }

    /// How long a published key signs.
    pub fn rotation_interval(&self) -> Duration {
        self.0.policy.schedule.interval
    }

    /// Rotates if that is due by the ring as it was last [`read`](Self::read).
    ///
    /// # Errors
    ///
    /// When the database fails, or the next key does not open as it is stored.
    pub async fn rotate_when_due(&self, now: OffsetDateTime) -> Result<(), Error> {
        let Format::KeyPair(format) = self.0.policy.format else { return Ok(()) };
        let ring = self.0.ring.load_full();
        // If the next key does not open here, leave it to other replicas to activate it.
        let is_due = ring.heads(format, now).is_ok_and(|(active, next)| {
            ring.pairs.contains_key(next.id()) && self.0.policy.schedule.is_due(active, next, now)
        });
        if is_due && self.promote(format, now).await? {
            self.read(now).await?;
        }
        Ok(())
    }

    /// Reads the ring and puts it in force. Returns what is wrong with single keys: the others are in force all the
    /// same, and no tokens are made if it is the key that signs.
    ///
    /// # Errors
    ///
    /// When the database fails: everything then stays as it is, until it is too old.
    pub async fn read(&self, now: OffsetDateTime) -> Result<Vec<Error>, Error> {
        let read = store::within(POLL_PATIENCE, self.try_to_read(now)).await;
        // Tokens of the key that signs would be refused, even here.
        if read.is_err() && self.staleness().is_some() && self.ring_format().is_ok() {
            self.0.issuer.withhold(IssueError::KeysUnknown);
        }
        read
    }

    async fn try_to_read(&self, now: OffsetDateTime) -> Result<Vec<Error>, Error> {
        let inner = &self.0;
        let _reading = inner.reading.lock().await;
        let began_at = inner.clock.elapsed();
        let mut conn = inner.readings.acquire().await?;
        let before = inner.ring.load_full();
        let Reading { ring, unopened } = read(&mut conn, &inner.policy, &before, now).await?;
        drop(conn);
        let ring = ring.map_or_else(|| before.clone(), Arc::new);
        // First, whatever the state of the private keys: a retired key must be refused, and a new one accepted before
        // it signs.
        if ring.statuses != before.statuses {
            inner.verifier.set_keys(verifying_keys(&inner.policy, &ring, now));
        }
        inner.verifier.heard(began_at);
        let mut faults = unopened;
        faults.extend(ring.unreadable.iter().map(Unreadable::error));
        match signing_key(&inner.policy, &ring, now) {
            Ok(key) => inner.issuer.set_key(key),
            Err(error) => {
                // The former key may have been retired because it leaked; its tokens would be refused everywhere.
                inner.issuer.withhold(IssueError::NoKey);
                // If there are faults, they are the reason.
                if faults.is_empty() {
                    faults.push(error);
                }
            }
        }
        if ring.statuses != before.statuses {
            self.log_change(&before, &ring);
        }
        inner.ring.store(ring);
        Ok(faults)
    }

    /// Logs the keys of each format whose keys have changed.
    fn log_change(&self, before: &Ring, ring: &Ring) {
        for format in self.0.policy.key_pair_formats() {
            let is_same = |ring: &Ring, other: &Ring| {
                ring.statuses.iter().filter(|key| key.1 == format).all(|key| other.statuses.contains(key))
            };
            if is_same(before, ring) && is_same(ring, before) {
                continue;
            }
            let ids = |status| {
                let keys = ring.statuses.iter().filter(|key| (key.1, key.2) == (format, status));
                let ids: Vec<_> = keys.map(|(id, ..)| id.as_str()).collect();
                (!ids.is_empty()).then(|| display(ids.join(",")))
            };
            tracing::info!(
                %format,
                active = ids(KeyStatus::Active),
                next = ids(KeyStatus::Next),
                retiring = ids(KeyStatus::Retiring),
                "signing keys changed"
            );
        }
    }

    /// Keeps the keys up to date for as long as it is polled.
    ///
    /// Nothing in here waits for ever, and readings wait for nothing else, so that the next retirement is noticed.
    pub async fn follow(&self) {
        if !self.0.policy.has_ring() {
            return std::future::pending().await;
        }
        let heard = Notify::new();
        tokio::join!(self.keep_reading(&heard), self.keep_changing(&heard));
    }

    async fn keep_reading(&self, heard: &Notify) {
        let mut ticks = clock::every(POLL);
        let mut was_heard = true;
        let mut known = Vec::new();
        loop {
            ticks.tick().await;
            let faults = match self.read(self.0.clock.now()).await {
                Ok(faults) => faults,
                Err(error) => {
                    // Log when failures begin and when they end, not twice a second.
                    if was_heard {
                        tracing::error!(error = chain::cause(&error), "the signing keys cannot be read");
                    }
                    was_heard = false;
                    continue;
                }
            };
            if !was_heard {
                tracing::info!("the signing keys can be read again");
            }
            was_heard = true;
            let faults: Vec<_> = faults.iter().map(|error| chain(error)).collect();
            for error in faults.iter().filter(|fault| !known.contains(*fault)) {
                tracing::error!(error, "a signing key cannot be used");
            }
            if faults.is_empty() && !known.is_empty() {
                tracing::info!("every signing key can be used again");
            }
            known = faults;
            heard.notify_one();
        }
    }

    /// Rotates when that is due, and rewraps, each time after the ring has been read.
    async fn keep_changing(&self, heard: &Notify) {
        let mut rotation_rests_until = Instant::now();
        let mut rewrapped = Instant::now();
        loop {
            heard.notified().await;
            if rotation_rests_until <= Instant::now()
                && let Err(error) =
                    store::within(CHANGE_PATIENCE, self.rotate_when_due(self.0.clock.now())).await
            {
                // Each attempt makes a key, which is too expensive twice a second.
                rotation_rests_until = Instant::now() + ROTATION_REST;
                tracing::error!(error = chain::cause(&error), "the signing keys could not be rotated");
            }
            if rewrapped.elapsed() >= REWRAP_EVERY {
                rewrapped = Instant::now();
                if let Err(error) = store::within(CHANGE_PATIENCE, self.rewrap()).await {
                    tracing::warn!(error = chain::cause(&error), "signing keys could not be rewrapped");
                }
            }
        }
    }

    /// Makes the next key sign from now on. The former key verifies its tokens until the last of them has expired.
    ///
    /// # Errors
    ///
    /// [`Error::TooEarly`] while a verifier may not know the next key yet, [`Error::Shared`], [`Error::NoRing`],
    /// [`Error::Unreadable`], [`Error::Unopenable`].
    pub async fn rotate(&self, now: OffsetDateTime) -> Result<(), Error> {
        let format = self.ring_format()?;
        for _ in 0..MAX_RACES {
            let ring = self.0.ring.load_full();
            let (active, next) = ring.heads(format, now)?;
            let ready_at = self.0.policy.schedule.ready_at(active, next);
            if now < ready_at {
                return Err(Error::TooEarly(ready_at));
            }
            let is_done = self.promote(format, now).await?;
            self.read(now).await?;
            if is_done {
                return Ok(());
            }
        }
        Err(Error::Contended)
    }

    fn ring_format(&self) -> Result<KeyPairFormat, Error> {
        match self.0.policy.format {
            Format::KeyPair(format) => Ok(format),
            Format::Shared(_) => Err(Error::Shared(self.0.policy.format)),
        }
    }

    /// Makes the next key active; `false` if the ring has been changed since it was read.
    async fn promote(&self, format: KeyPairFormat, now: OffsetDateTime) -> Result<bool, Error> {
        let ring = self.0.ring.load_full();
        let (active, next) = ring.heads(format, now)?;
        let new = Made::new(format, &self.0.policy).await?;
        let mut conn = self.0.db.acquire().await?;
        let (active, next) = (active.id(), next.id());
        // Check that it opens as it is stored now: it may have been opened here long ago, and if it no longer opens, no
        // replica could start with it as the active key.
        if let Some((wrapped, root)) = signing_keys::wrapped(&mut conn, next.as_str()).await? {
            unwrap(&self.0.policy, format, next.as_str(), &wrapped, &root)?;
        }
        let is_done = signing_keys::rotate(
            &mut conn,
            active.as_str(),
            next.as_str(),
            &new.row(),
            false,
            now,
            &self.0.policy.cause,
        )
        .await?;
        if is_done {
            tracing::info!(from = %active, to = %next, %format, "signing key rotated");
        }
        Ok(is_done)
    }

    async fn rewrap(&self) -> Result<(), Error> {
        let mut conn = self.0.db.acquire().await?;
        making::rewrap(&mut conn, &self.0.policy).await?.check(&self.0.policy)
    }
}
