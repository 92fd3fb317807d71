//! Made-up people and their sessions. The same seed makes the same ones, and a larger number begins with those of a
//! smaller.

use std::{
    fmt::{Display, Write},
    net::Ipv6Addr,
};

use chacha20::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::ADMIN;
use crate::{
    hex, random,
    store::devdata::{
        names::{AGENTS, FAMILIES, Family},
        seed::{PERSON_COLUMNS, SESSION_COLUMNS},
    },
};

/// How long before `now` the first users came.
const YEARS: Duration = Duration::days(730);
/// The longest life of a session, its life without renewal, and the life of its access tokens: the service's defaults.
const SESSION: Duration = Duration::days(30);
const REFRESH: Duration = Duration::hours(24);
const ACCESS: Duration = Duration::minutes(15);

/// Reserved for documentation (RFC 2606, RFC 5737, RFC 3849): they belong to nobody.
const DOMAINS: [&str; 3] = ["example.com", "example.org", "example.net"];
const NETWORKS: [&str; 3] = ["192.0.2", "198.51.100", "203.0.113"];

/// How many sessions a user has: one of these numbers, picked at random.
const SESSIONS: [u32; 10] = [0, 0, 0, 0, 1, 1, 1, 2, 3, 5];

/// A generator of people.
pub(super) struct People<'a> {
    rng: ChaCha20Rng,
    now: OffsetDateTime,
    password_hash: &'a str,
    count: u64,
}

/// What was made up, as lines for `COPY`.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) users: String,
    pub(super) sessions: String,
}

/// The generator of this seed.
pub(super) fn rng(seed: u64) -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(seed)
}

impl<'a> People<'a> {
    pub(super) fn new(rng: ChaCha20Rng, now: OffsetDateTime, password_hash: &'a str) -> Self {
        Self { rng, now, password_hash, count: 0 }
    }

    /// The next `count` people.
    pub(super) fn next(&mut self, count: u64) -> Batch {
        let mut batch = Batch::default();
        for _ in 0..count {
            self.person(&mut batch);
        }
        batch
    }

    fn person(&mut self, batch: &mut Batch) {
        let number = self.count;
        self.count += 1;
        // The first one is the administrator, who has been there from the beginning.
        let is_first = number == 0;
        let age = if is_first { YEARS } else { self.up_to(YEARS) };
        let created_at = self.now - age;
        let id = random::uuid_v7(created_at, &mut self.rng);
        let language = self.one_of(FAMILIES);
        let (given, given_latin) = *self.one_of(language.given);
        let (surname, surname_latin) = *self.one_of(language.surnames);
        let full_name = match *language {
            _ if self.one_in(20) => "\\N".to_owned(),
            Family { surname_first: true, .. } => format!("{surname} {given}"),
            Family { .. } => format!("{given} {surname}"),
        };
        let username =
            if is_first { ADMIN.to_owned() } else { format!("{given_latin}.{surname_latin}{number}") };
        let email = format!("{username}@{}", self.one_of(&DOMAINS));
        let roles = match self.below(1000) {
            _ if is_first => "{admin}",
            0 => "{admin}",
            1..50 => "{editor}",
            50..60 => "{editor,support}",
            _ => "{}",
        };
        let is_verified = is_first || !self.one_in(8);
        let disabled_at = (!is_first && self.one_in(50)).then(|| self.now - self.up_to(age));
        let fields: [&dyn Display; PERSON_COLUMNS.len()] = [
            &id,
            &username,
            &email,
            &full_name,
            &self.password_hash,
            &roles,
            &is_verified,
            &disabled_at.is_some(),
            &created_at,
            &created_at,
            &disabled_at.unwrap_or(created_at),
        ];
        line(&mut batch.users, &fields);
        for _ in 0..*self.one_of(&SESSIONS) {
            self.session(id, created_at, disabled_at, batch);
        }
    }

    fn session(
        &mut self,
        user_id: Uuid,
        since: OffsetDateTime,
        disabled_at: Option<OffsetDateTime>,
        batch: &mut Batch,
    ) {
        // A disabled user begins no session.
        let until = disabled_at.unwrap_or(self.now);
        let created_at = until - self.up_to(SESSION.min(until - since));
        let expires_at = created_at + SESSION;
        let generation = self.below(30);
        let renewed_at: OffsetDateTime = created_at + (until - created_at) * generation / 30;
        let last_used_at: OffsetDateTime = renewed_at + self.up_to(ACCESS.min(until - renewed_at));
        let (ended_at, reason) = match (disabled_at, self.below(4)) {
            (Some(at), _) => (at.to_string(), "user_disabled"),
            (None, 0) => (last_used_at.to_string(), *self.one_of(&["logout", "logout", "revoked"])),
            (None, _) => ("\\N".to_owned(), "\\N"),
        };
        let address = if self.one_in(3) {
            let network = random::bytes(&mut self.rng);
            Ipv6Addr::new(0x2001, 0xdb8, u16::from_be_bytes(network), 0, 0, 0, 0, 1).to_string()
        } else {
            format!("{}.{}", self.one_of(&NETWORKS), 1 + self.below(254))
        };
        let agent = self.one_of(AGENTS);
        let fields: [&dyn Display; SESSION_COLUMNS.len()] = [
            &random::uuid_v7(created_at, &mut self.rng),
            &user_id,
            &generation,
            // The backslash is doubled for `COPY`.
            &format!("\\\\x{}", hex::encode(&random::bytes::<32>(&mut self.rng))),
            agent,
            &address,
            &created_at,
            &renewed_at,
            &last_used_at,
            &self.one_in(2),
            &(renewed_at + REFRESH).min(expires_at),
            &(renewed_at + ACCESS).min(expires_at),
            &expires_at,
            &ended_at,
            &reason,
        ];
        line(&mut batch.sessions, &fields);
    }

    /// A whole number of seconds, at least 0 and less than `most`; 0 if that is 0.
    fn up_to(&mut self, most: Duration) -> Duration {
        let seconds = u64::try_from(most.whole_seconds()).unwrap_or(0).max(1);
        Duration::seconds((self.rng.next_u64() % seconds).cast_signed())
    }

    fn below(&mut self, n: u32) -> i32 {
        (self.rng.next_u32() % n).cast_signed()
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.below(n) == 0
    }

    fn one_of<'t, T>(&mut self, all: &'t [T]) -> &'t T {
        &all[self.rng.next_u32() as usize % all.len()]
    }
}

/// A line for `COPY`. Nothing that is made up here has a character that needs a backslash.
fn line(text: &mut String, fields: &[&dyn Display]) {
    for (number, field) in fields.iter().enumerate() {
        let end = if number + 1 < fields.len() { '\t' } else { '\n' };
        // Writing to a string cannot fail.
        let _ = write!(text, "{field}{end}");
    }
}
