//! What is known of access tokens that are refused although they have not expired: in memory, for a look-up with each
//! request.
//!
//! Two kinds of things revoke a token: its session has ended, or its user has other roles since. Of roles the present ones
//! are held, not the time of the change: a token is outdated when it says others, whatever the clocks of those who made
//! the token and changed the roles.
//!
//! An ended session takes 20 bytes and its place in a hash table, 24 to 48 bytes in all, until the last of its access
//! tokens has expired.
//!
//! Who does not hear any more of what is revoked must not go on as if nothing were: [`Revocations::check`] refuses every
//! token when [`heard`](Revocations::heard) was last called too long ago. That time is one that only goes forward, not the
//! wall clock, so that setting a clock makes nobody stale, or fresh.

use std::{
    collections::HashMap,
    mem,
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use time::OffsetDateTime;
use uuid::Uuid;

use super::{Claims, Rejection, silence::Silence};

/// Among so many locks the sessions are spread, so that whoever writes keeps few readers waiting.
const SHARDS: usize = 64;

/// Sessions that have ended and users whose roles have changed, as far as access tokens of theirs may be alive.
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
    /// Until when each is kept, in seconds since 1970.
    sessions: [RwLock<HashMap<Uuid, u32>>; SHARDS],
    users: RwLock<UserRoles>,
    silence: Silence,
}

/// The roles of users, as far as they have changed. A further one than that in [`Revocations`] collects what is told anew,
/// for [`replace_roles`](Revocations::replace_roles).
#[derive(Debug, Default)]
pub struct UserRoles(HashMap<Uuid, PresentRoles>);

#[derive(Debug)]
struct PresentRoles {
    roles: Box<[String]>,
    change: i64,
    until: u32,
}

/// How much is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RevocationCount {
    /// Ended sessions.
    pub sessions: usize,
    /// Users whose roles have changed.
    pub users: usize,
    /// What the table of sessions takes, in bytes.
    pub session_bytes: usize,
}

impl Revocations {
    /// Nothing is revoked, and nothing has been heard yet. After `max_silence` without hearing anything every token is
    /// refused.
    pub fn new(max_silence: Duration) -> Self {
        Self {
            sessions: std::array::from_fn(|_| RwLock::default()),
            users: RwLock::default(),
            silence: Silence::new(max_silence),
        }
    }

    /// From now on tokens of this session are refused. `expires_at` is when the last of them expires.
    pub fn end_session(&self, session_id: Uuid, expires_at: OffsetDateTime) {
        let until = seconds(expires_at);
        write(self.shard(session_id)).insert(session_id, until);
    }

    /// From now on tokens of this user are refused unless they have just these roles; as [`UserRoles::change`].
    pub fn change_roles(&self, user_id: Uuid, roles: Vec<String>, change: i64, expires_at: OffsetDateTime) {
        write(&self.users).change(user_id, roles, change, expires_at);
    }

    /// In one step, takes these for all that is known of roles, once a database that may count the changes anew has told
    /// every one of them. Until then what was known stays, so that nobody has former roles back meanwhile.
    pub fn replace_roles(&self, roles: UserRoles) {
        // The former ones go when nobody waits for the lock any more.
        let _former = mem::replace(&mut *write(&self.users), roles);
    }

    /// Everything that was revoked until `at` is in here now. `at` is measured from any moment, by a clock that only goes
    /// forward.
    pub fn heard(&self, at: Duration) {
        self.silence.heard(at);
    }

    /// For how long nothing has been heard at `at`; [`Duration::MAX`]: never yet.
    pub fn silence(&self, at: Duration) -> Duration {
        self.silence.length(at)
    }

    /// How long that may be.
    pub fn max_silence(&self) -> Duration {
        self.silence.max()
    }

    /// The [`silence`](Self::silence), when it is longer than it may be.
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

    /// Forgets what concerns no token that is alive at `now`.
    pub fn forget_expired(&self, now: OffsetDateTime) {
        // Down, where `seconds` goes up: what lasts for a part of this second is alive.
        let now = u32::try_from(now.unix_timestamp().max(0)).unwrap_or(u32::MAX);
        for shard in &self.sessions {
            forget(&mut write(shard), |until| *until > now);
        }
        forget(&mut write(&self.users).0, |present| present.until > now);
    }

    /// How much is held.
    pub fn count(&self) -> RevocationCount {
        let mut count = RevocationCount { sessions: 0, users: read(&self.users).0.len(), session_bytes: 0 };
        for shard in &self.sessions {
            let shard = read(shard);
            count.sessions += shard.len();
            // A table is a power of two of places, of which seven in eight are used, and has a byte besides for each.
            let places = (shard.capacity() * 8 / 7).next_power_of_two();
            count.session_bytes += places * (size_of::<(Uuid, u32)>() + 1);
        }
        count
    }

    /// The last bits of a UUIDv7 are random.
    fn shard(&self, session_id: Uuid) -> &RwLock<HashMap<Uuid, u32>> {
        &self.sessions[usize::from(session_id.as_bytes()[15]) % SHARDS]
    }
}

impl UserRoles {
    /// The user has just these roles. Of two changes the one with the higher number is the later. `expires_at` is when the
    /// last token with other roles expires.
    pub fn change(&mut self, user_id: Uuid, roles: Vec<String>, change: i64, expires_at: OffsetDateTime) {
        if self.0.get(&user_id).is_none_or(|known| known.change <= change) {
            let roles = PresentRoles { roles: roles.into(), change, until: seconds(expires_at) };
            self.0.insert(user_id, roles);
        }
    }
}

fn forget<V>(map: &mut HashMap<Uuid, V>, mut keep: impl FnMut(&V) -> bool) {
    map.retain(|_, value| keep(value));
    // What a flood has taken is given back, in steps that leave room for the next.
    if map.len() < map.capacity() / 4 {
        map.shrink_to(map.len() * 2);
    }
}

/// Nothing in here panics while it holds a lock.
fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// Whole seconds since 1970; a part of one counts as one.
fn seconds(at: OffsetDateTime) -> u32 {
    let whole = at.unix_timestamp() + i64::from(at.nanosecond() > 0);
    u32::try_from(whole.max(0)).unwrap_or(u32::MAX)
}
