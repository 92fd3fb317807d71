//! Access tokens that are refused although they have not expired: held in memory, for a lookup on every request.
//!
//! A token is revoked in one of two ways: its session has ended, or its user's roles have changed since. For roles, the
//! current ones are held, not the time of the change: a token with other roles is outdated, whatever the clocks said
//! where the token was made and where the roles were changed.
//!
//! An ended session takes 20 bytes and its place in a hash table, 24 to 48 bytes in all, until the last of its access
//! tokens has expired.
//!
//! A service that no longer hears of revocations must not carry on as if there were none: [`Revocations::check`]
//! refuses every token if [`heard`](Revocations::heard) was last called too long ago. This is measured on a monotonic
//! clock, not the wall clock, so setting a clock makes nothing stale, or fresh.

use std::{
    collections::HashMap,
    mem,
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use time::OffsetDateTime;
use uuid::Uuid;

use super::{Claims, Rejection, silence::Silence};

/// The number of locks over which the sessions are spread, so that a writer keeps few readers waiting.
const SHARDS: usize = 64;

/// Sessions that have ended and users whose roles have changed, for as long as access tokens of theirs may be alive.
///
/// ```
/// use std::time::Duration;
/// use gatepass::token::{Rejection, Revocations};
/// # use gatepass::token::Claims;
/// # use time::OffsetDateTime;
/// # use uuid::Uuid;
/// # let now = OffsetDateTime::UNIX_EPOCH;
/// # let claims = Claims {
/// #     issuer: "gatepass".into(), user_id: Uuid::from_u128(1), audience: "gatepass".into(), issued_at: now,
/// #     not_before: now, expires_at: now + Duration::from_secs(900), token_id: Uuid::from_u128(2),
/// #     session_id: Uuid::from_u128(3), username: "alice".into(), roles: vec![],
/// # };
///
/// let revocations = Revocations::new(Duration::from_secs(60));
/// let at = Duration::ZERO;
/// assert_eq!(revocations.check(&claims, at), Err(Rejection::RevocationsUnknown));
///
/// revocations.heard(at);
/// assert_eq!(revocations.check(&claims, at), Ok(()));
///
/// revocations.end_session(claims.session_id, claims.expires_at);
/// assert_eq!(revocations.check(&claims, at), Err(Rejection::SessionEnded));
/// ```
#[derive(Debug)]
pub struct Revocations {
    /// Ended sessions, and until when each is kept, in seconds since 1970.
    sessions: [RwLock<HashMap<Uuid, u32>>; SHARDS],
    users: RwLock<UserRoles>,
    silence: Silence,
}

/// The roles of users whose roles have changed. Besides the one inside [`Revocations`], a separate one collects the
/// roles when they are all loaded again, for [`replace_roles`](Revocations::replace_roles).
#[derive(Debug, Default)]
pub struct UserRoles(HashMap<Uuid, PresentRoles>);

#[derive(Debug)]
struct PresentRoles {
    roles: Box<[String]>,
    change: i64,
    until: u32,
}

/// How many entries are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RevocationCount {
    /// Ended sessions.
    pub sessions: usize,
    /// Users whose roles have changed.
    pub users: usize,
    /// What the table of sessions takes, in bytes.
    pub session_bytes: usize,
}

impl Revocations {
    /// An empty set, for which [`heard`](Self::heard) has not been called yet. Every token is refused until the first
    /// such call, and whenever the last one is longer ago than `max_silence`.
    pub fn new(max_silence: Duration) -> Self {
        Self {
            sessions: std::array::from_fn(|_| RwLock::default()),
            users: RwLock::default(),
            silence: Silence::new(max_silence),
        }
    }

    /// Refuses tokens of this session from now on. `expires_at` is when the last of them expires.
    pub fn end_session(&self, session_id: Uuid, expires_at: OffsetDateTime) {
        let until = seconds(expires_at);
        write(self.shard(session_id)).insert(session_id, until);
    }

    /// Refuses tokens of this user from now on unless they have exactly these roles, in the same order, as for
    /// [`UserRoles::change`].
    pub fn change_roles(&self, user_id: Uuid, roles: Vec<String>, change: i64, expires_at: OffsetDateTime) {
        write(&self.users).change(user_id, roles, change, expires_at);
    }

    /// Replaces all known roles by these, in one step. Use it when all roles have been loaded from a database that may
    /// number the changes anew. Until then the known roles stay, so that nobody gets former roles back in the meantime.
    pub fn replace_roles(&self, roles: UserRoles) {
        // The former roles are dropped after the lock is released, so that nobody waits for that.
        let _former = mem::replace(&mut *write(&self.users), roles);
    }

    /// Notes that everything that was revoked before `at` is in here now. `at` is the time since some fixed moment, by
    /// a monotonic clock.
    pub fn heard(&self, at: Duration) {
        self.silence.heard(at);
    }

    /// For how long nothing has been heard at `at`; [`Duration::MAX`] if nothing ever has.
    pub fn silence(&self, at: Duration) -> Duration {
        self.silence.length(at)
    }

    /// How long the [`silence`](Self::silence) may be.
    pub fn max_silence(&self) -> Duration {
        self.silence.max()
    }

    /// The [`silence`](Self::silence), if it is longer than it may be.
    pub fn staleness(&self, at: Duration) -> Option<Duration> {
        self.silence.excess(at)
    }

    /// Whether a token with these claims may be accepted at `at`, by the clock of [`heard`](Self::heard).
    ///
    /// # Errors
    ///
    /// [`Rejection::RevocationsUnknown`], [`Rejection::SessionEnded`], [`Rejection::RolesChanged`].
    pub fn check(&self, claims: &Claims, at: Duration) -> Result<(), Rejection> {
        if read(self.shard(claims.session_id)).contains_key(&claims.session_id) {
            return Err(Rejection::SessionEnded);
        }
        if self.staleness(at).is_some() {
            return Err(Rejection::RevocationsUnknown);
        }
        match read(&self.users).0.get(&claims.user_id) {
            Some(present) if *present.roles != *claims.roles => Err(Rejection::RolesChanged),
            _ => Ok(()),
        }
    }

    /// Drops all entries that concern only tokens that have expired at `now`.
    pub fn forget_expired(&self, now: OffsetDateTime) {
        // Rounded down, whereas `seconds` rounds up: an entry that lasts for part of this second is kept.
        let now = u32::try_from(now.unix_timestamp().max(0)).unwrap_or(u32::MAX);
        for shard in &self.sessions {
            forget(&mut write(shard), |until| *until > now);
        }
        forget(&mut write(&self.users).0, |present| present.until > now);
    }

    /// How many entries are held, and how much memory the sessions take.
    pub fn count(&self) -> RevocationCount {
        let mut count = RevocationCount { sessions: 0, users: read(&self.users).0.len(), session_bytes: 0 };
        for shard in &self.sessions {
            let shard = read(shard);
            count.sessions += shard.len();
            // The number of places in a table is a power of two. Seven in eight may be used, and each takes one more
            // byte.
            let places = (shard.capacity() * 8 / 7).next_power_of_two();
            count.session_bytes += places * (size_of::<(Uuid, u32)>() + 1);
        }
        count
    }

    /// The shard of a session, by the last bits of its UUIDv7, which are random.
    fn shard(&self, session_id: Uuid) -> &RwLock<HashMap<Uuid, u32>> {
        &self.sessions[usize::from(session_id.as_bytes()[15]) % SHARDS]
    }
}

impl UserRoles {
    /// Notes that the user has exactly these roles, in the same order as in their tokens. Of two changes, the one with
    /// the higher number is the later one. `expires_at` is when the last token with other roles expires.
    pub fn change(&mut self, user_id: Uuid, roles: Vec<String>, change: i64, expires_at: OffsetDateTime) {
        if self.0.get(&user_id).is_none_or(|known| known.change <= change) {
            let roles = PresentRoles { roles: roles.into(), change, until: seconds(expires_at) };
            self.0.insert(user_id, roles);
        }
    }
}

fn forget<V>(map: &mut HashMap<Uuid, V>, mut keep: impl FnMut(&V) -> bool) {
    map.retain(|_, value| keep(value));
    // Give back the memory that a flood has taken, in steps that leave room for more.
    if map.len() < map.capacity() / 4 {
        map.shrink_to(map.len() * 2);
    }
}

/// Poisoning is ignored: nothing in here panics while it holds a lock.
fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// Whole seconds since 1970, rounded up.
fn seconds(at: OffsetDateTime) -> u32 {
    let whole = at.unix_timestamp() + i64::from(at.nanosecond() > 0);
    u32::try_from(whole.max(0)).unwrap_or(u32::MAX)
}
