//! The throttle: limits how often anyone may fail.
//!
//! It counts failures for each account name and for each address. An attempt takes a place of both *before* it is known
//! whether the user exists and before anything is hashed, so a thousand attempts at once get no further than a thousand
//! in sequence. An attempt that turns out not to be a failure gives its place back. The counts are in Postgres, and
//! each decision is one statement, so it does not matter which replica is asked.
//!
//! | attempt | limited by | a success |
//! |---|---|---|
//! | login, password change, deletion | account name and address | forgives the device and the account, gives the address its place back |
//! | registration, a new e-mail address (failure: the name is taken) | address | gives its place back |
//! | renewal (failure: not a refresh token of this service) | address | does not consult the throttle |
//! | introspection, revocation, the feed (failure: wrong client secret) | address | does not consult the throttle |
//!
//! The last two take no place beforehand: their secrets have 256 bits, which no number of guesses will find. A valid
//! secret is accepted however often others at its address have failed, and costs no extra statement. Each of the four
//! has a bucket of its own at an address, so a broken client that keeps renewing does not block anyone's login.
//!
//! # The rate
//!
//! `10/15m` is a bucket with 10 places, one of which becomes free every 90 seconds (the generic cell rate algorithm).
//! It allows 10 failures at once, and 10 every 15 minutes in the long run. In the first 15 minutes after a pause it may
//! allow twice as many, as fixed windows of 15 minutes would at the end of one and the beginning of the next. In
//! return, the only state to keep is one time; a locked-out user waits 90 seconds rather than 15 minutes; and
//! `Retry-After` is exact: the time at which the next place becomes free. A refused attempt takes no place and prolongs
//! no one's wait.
//!
//! # No telling users apart
//!
//! An account is the name that was typed, without regard to case. No user is looked up for it, and an unknown name has
//! as many places as any other. Nor is one looked up for an attempt that is refused, which costs its sender nothing.
//!
//! A user's username and e-mail address are counted separately, so an attacker who knows both has twice the guesses. A
//! shared count would reveal more: after exhausting `alice`, a refusal of `alice@example.com` would show that both
//! belong to one user, and that this user exists. A success forgives both names, except at a known device, which took
//! no place of theirs: otherwise a program that logs in every minute would hand everyone else as many guesses.
//!
//! One thing cannot be hidden from an attacker *at the owner's address*. If the attacker has used up a name's places
//! from elsewhere and is then admitted at that address, someone has logged in under that name from there.
//!
//! A new e-mail address inherits the count of the old one. Otherwise anyone who had stolen an access token, which is
//! all it takes to change the address, would get new guesses with each address they think of.
//!
//! # No one locks an owner out for good
//!
//! Anyone who fails often enough under someone else's name uses up that name's places. Therefore a *device* that has
//! logged in before has its own places, as many as the account, and uses them instead. A device is an account name at
//! an address (for IPv6, at a /64). It is known for [`KNOWN_FOR`] after its last login, and the client has nothing to
//! send or keep. A cookie would be more exact, but this service sets none.
//!
//! A device is known to one user, and with one password. Otherwise anyone who once had the password, or an account of
//! that name that has since been deleted, could have logged in from thousands of networks, and would have that many
//! times the guesses at the next one. So a new password makes all devices unknown but the one that it was set on. Whose
//! password it is gets looked up only where somebody has logged in under that name, so it tells nobody else anything.
//!
//! Four cases remain:
//!
//! - An attacker behind the owner's own address can use up that device's places. The owner then has to log in from
//!   elsewhere.
//! - An owner under attack who has never logged in from their present address has to wait for a place, or continue with
//!   a session that they already have, since renewal asks for no password.
//! - An owner who has just been given a new password by an operator is in the same position, on all their devices. The
//!   operator can clear the count in the same breath, but an attacker who does not rest soon fills it again.
//! - A new e-mail address is known on no device until its owner has logged in, by either name.
//!
//! # What is kept
//!
//! For each name, address and device, the table has sixteen bytes of an HMAC whose key is not in the database, so it is
//! not a list of who logs in from where. A new root key resets all counts. The table is an ordinary logged one, so
//! that a crash or a failover neither resets the counts nor forgets the devices. A crash loses the attempts of the last
//! half second, which do not wait for the disk.

use std::{
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use aws_lc_rs::hmac;
use time::OffsetDateTime;

use super::{Error, User, fields::normalised};
/// The kinds of attempt that are counted for an address.
pub(super) use crate::metrics::ThrottledAttempt as Kind;
use crate::{
    chain,
    metrics::Metrics,
    store::{
        self, PgPool,
        login_attempts::{
            self, Bucket, Device, DeviceTag, Forgiveness, Key, PasswordOf, Places, Rate, Renaming, Taken,
        },
    },
    token::SymmetricKey,
};

/// How long a device is known after its last login: several times as long as most sessions last.
pub const KNOWN_FOR: time::Duration = time::Duration::days(90);
/// How long a request that is otherwise finished waits for its place to be given back.
const WRITE_OFF_PATIENCE: Duration = Duration::from_secs(1);

/// Counts failures in one database. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Throttle {
    db: PgPool,
    key: hmac::Key,
    per_account: Rate,
    per_address: Rate,
    metrics: Metrics,
}

/// An attempt that has taken its places and whose outcome is still open.
#[derive(Debug)]
#[must_use = "an attempt that is not settled counts as a failure"]
pub(super) struct Attempt {
    taken: Vec<Bucket>,
    /// Whether it took a known device's place instead of the account's.
    is_device_known: bool,
}

impl Throttle {
    /// Counts in `db`, under a key derived from `root` for this purpose only.
    pub fn new(
        db: PgPool,
        root: &SymmetricKey,
        per_account: Rate,
        per_address: Rate,
        metrics: Metrics,
    ) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, root.derive("login attempts v1").as_bytes());
        Self { db, key, per_account, per_address, metrics }
    }

    /// The places that a login as `name`, or an attempt that counts as a login, takes before it begins.
    pub(super) fn places(&self, name: &str, ip: Option<IpAddr>) -> Places {
        let account = self.account_key(name);
        let device = ip.map(|ip| Device { account, device: self.device(name, ip) });
        let address = ip.map(|ip| self.address(Kind::Login, ip));
        let buckets = [self.per_account.bucket(account)].into_iter().chain(address).collect();
        Places { buckets, device }
    }

    /// Admits an attempt of this user that counts as a login by username.
    ///
    /// # Errors
    ///
    /// [`Error::TooManyAttempts`] for this name or from this address.
    pub(super) async fn admit_login(
        &self,
        user: &User,
        ip: Option<IpAddr>,
        now: OffsetDateTime,
    ) -> Result<Attempt, Error> {
        let places = self.places(&user.username, ip);
        let taken = self.take(&places, Some(&user.username), now).await?;
        self.admitted(Kind::Login, places, &taken, now)
    }

    async fn take(
        &self,
        places: &Places,
        username: Option<&str>,
        now: OffsetDateTime,
    ) -> Result<Taken, Error> {
        let taking =
            self.db.write(async |mut conn| login_attempts::take(&mut conn, places, username, now).await);
        Ok(taking.await?)
    }

    /// The attempt that has taken these places.
    ///
    /// # Errors
    ///
    /// [`Error::TooManyAttempts`] when it did not get them.
    pub(super) fn admitted(
        &self,
        kind: Kind,
        Places { mut buckets, device }: Places,
        taken: &Taken,
        now: OffsetDateTime,
    ) -> Result<Attempt, Error> {
        if let Some(at) = taken.again_at {
            self.metrics.throttled(kind);
            return Err(Error::TooManyAttempts { retry_after: (at - now).try_into().unwrap_or_default() });
        }
        if taken.is_device_known
            && let Some(device) = device
            && let Some(account) = buckets.iter_mut().find(|bucket| bucket.key == device.account)
        {
            account.key = key_of(device.device);
        }
        Ok(Attempt { taken: buckets, is_device_known: taken.is_device_known })
    }

    /// Admits an attempt that is limited only by address.
    ///
    /// # Errors
    ///
    /// [`Error::TooManyAttempts`] from this address.
    pub(super) async fn admit_from(
        &self,
        kind: Kind,
        ip: Option<IpAddr>,
        now: OffsetDateTime,
    ) -> Result<Attempt, Error> {
        let buckets = ip.map(|ip| self.address(kind, ip)).into_iter().collect();
        let places = Places { buckets, device: None };
        let taken = self.take(&places, None, now).await?;
        self.admitted(kind, places, &taken, now)
    }

    /// Settles a failed login, or a failed attempt that counts as one: unless `failure` is a wrong credential, the
    /// attempt gives its places back.
    pub(super) async fn settle(&self, attempt: Attempt, failure: &Error) {
        match failure {
            Error::InvalidCredentials => {}
            // No password was tried, or the caller does not learn whether it was right.
            _ => self.give_back(attempt).await,
        }
    }

    /// What is forgiven of `user`, who has just proved their password in `attempt`; without an attempt, it is an
    /// operator who forgives.
    pub(super) fn forgiveness(
        &self,
        attempt: Option<&Attempt>,
        user: &User,
        ip: Option<IpAddr>,
        now: OffsetDateTime,
    ) -> Forgiveness {
        let names = [&*user.username, &*user.email];
        let accounts = match attempt {
            Some(Attempt { is_device_known: true, .. }) => Vec::new(),
            // Also the name that was typed, which by now may be neither of the two.
            _ => {
                let typed = attempt.and_then(|attempt| attempt.taken.first()).map(|account| account.key);
                names.into_iter().map(|name| self.account_key(name)).chain(typed).collect()
            }
        };
        Forgiveness {
            address: ip.map(|ip| self.address(Kind::Login, ip)),
            accounts,
            devices: self.devices(user, ip),
            known_until: Some(now + KNOWN_FOR),
        }
    }

    /// Forgives in a statement of its own.
    pub(super) async fn forgive(
        &self,
        attempt: Option<&Attempt>,
        user: &User,
        ip: Option<IpAddr>,
        now: OffsetDateTime,
    ) {
        self.apply(&self.forgiveness(attempt, user, ip, now), user, now).await;
    }

    /// Makes known the device on which the user has set a new password.
    pub(super) async fn keep_device(&self, user: &User, ip: Option<IpAddr>, now: OffsetDateTime) {
        let (devices, known_until) = (self.devices(user, ip), Some(now + KNOWN_FOR));
        self.apply(&Forgiveness { devices, known_until, ..Forgiveness::default() }, user, now).await;
    }

    async fn apply(&self, forgiveness: &Forgiveness, user: &User, now: OffsetDateTime) {
        let password = password_of(user);
        let forgiving = self
            .db
            .write(async |mut conn| login_attempts::forgive(&mut conn, forgiveness, password, now).await);
        write_off(forgiving).await;
    }

    /// Gives back the places of an attempt that was not a failure.
    pub(super) async fn give_back(&self, attempt: Attempt) {
        let giving_back =
            self.db.write(async |mut conn| login_attempts::give_back(&mut conn, &attempt.taken).await);
        write_off(giving_back).await;
    }

    /// How to carry the failures of an account's name over to the name that replaces it.
    pub(super) fn renaming(&self, from: &str, to: &str) -> Renaming {
        Renaming { from: self.account_key(from), to: self.per_account.bucket(self.account_key(to)) }
    }

    /// Counts a failure that took no place beforehand, and returns the error to answer with: [`Error::TooManyAttempts`]
    /// if there have been too many already, otherwise `failure`.
    pub(super) async fn count(
        &self,
        kind: Kind,
        ip: Option<IpAddr>,
        failure: Error,
        now: OffsetDateTime,
    ) -> Error {
        match self.admit_from(kind, ip, now).await {
            Ok(_counted) => failure,
            Err(error) => error,
        }
    }

    fn address(&self, kind: Kind, ip: IpAddr) -> Bucket {
        let purpose = match kind {
            Kind::Login => "login",
            Kind::Registration => "registration",
            Kind::Renewal => "renewal",
            Kind::Client => "client",
        };
        self.per_address.bucket(self.key(purpose, Some(ip), ""))
    }

    fn account_key(&self, name: &str) -> Key {
        self.key("account", None, &normalised(name))
    }

    fn device(&self, name: &str, ip: IpAddr) -> DeviceTag {
        self.tag("device", Some(ip), &normalised(name))
    }

    fn devices(&self, user: &User, ip: Option<IpAddr>) -> Vec<DeviceTag> {
        let names = [&*user.username, &*user.email];
        ip.map(|ip| names.map(|name| self.device(name, ip)).to_vec()).unwrap_or_default()
    }

    fn key(&self, purpose: &str, ip: Option<IpAddr>, name: &str) -> Key {
        key_of(self.tag(purpose, ip, name))
    }

    fn tag(&self, purpose: &str, ip: Option<IpAddr>, name: &str) -> [u8; 32] {
        let network = ip.map_or_else(String::new, |ip| network(ip).to_string());
        let mut tag = [0; 32];
        // Neither a purpose nor a network contains the separator.
        let full = hmac::sign(&self.key, format!("{purpose}\0{network}\0{name}").as_bytes());
        tag.copy_from_slice(full.as_ref());
        tag
    }
}

/// The first half.
fn key_of(tag: [u8; 32]) -> Key {
    let mut key = Key::default();
    key.copy_from_slice(&tag[..16]);
    key
}

fn password_of(user: &User) -> PasswordOf {
    PasswordOf { user_id: user.id, changed_at: user.password_changed_at }
}

/// Waits for `work`, which takes an attempt off the counts, but not for long: the answer does not depend on it, and
/// should not wait out a database that may have just failed the request itself. At worst the attempt counts as a
/// failure.
async fn write_off(work: impl Future<Output = Result<(), store::Error>>) {
    if let Err(error) = store::within(WRITE_OFF_PATIENCE, work).await {
        tracing::warn!(
            error = chain::cause(&error),
            "an attempt that was not a failure may still count as one"
        );
    }
}

/// The part of an address that belongs to one customer: all of an IPv4 address, the /64 of an IPv6 one.
fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        v4 @ IpAddr::V4(_) => v4,
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64)),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::store::Source;

    fn rate(count: u32, seconds: u64) -> Rate {
        Rate { count: NonZeroU32::new(count).unwrap(), per: Duration::from_secs(seconds) }
    }

    #[test]
    fn a_rate_becomes_a_number_of_places_freed_one_at_a_time() {
        for (rate, micros) in [
            (rate(10, 900), 90_000_000),
            (rate(100, 900), 9_000_000),
            (rate(1, 1), 1_000_000),
            (rate(7, 900), 128_571_428),
            // However high the rate, each attempt keeps its place for some time.
            (rate(u32::MAX, 1), 1),
        ] {
            let bucket = rate.bucket([0; 16]);
            assert_eq!(bucket.spacing, Duration::from_micros(micros), "{rate:?}");
            assert_eq!(bucket.span, bucket.spacing * rate.count.get(), "{rate:?}");
        }
    }

    #[test]
    fn addresses_are_grouped_by_ipv4_address_or_ipv6_64_prefix() {
        for (ip, expected) in [
            ("192.0.2.7", "192.0.2.7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            ("2001:db8:1:2::", "2001:db8:1:2::"),
            ("2001:db8:1:3::1", "2001:db8:1:3::"),
            ("::1", "::"),
        ] {
            assert_eq!(network(ip.parse().unwrap()), expected.parse::<IpAddr>().unwrap(), "{ip}");
        }
    }

    #[tokio::test]
    async fn spellings_of_one_name_share_a_key_and_different_names_do_not() {
        let db = Source::new(&"postgres://localhost/nowhere".to_owned().into()).unwrap().pool(1);
        let throttle = |root| {
            let root = SymmetricKey::from_bytes(root);
            Throttle::new(db.clone(), &root, rate(10, 900), rate(100, 900), Metrics::new())
        };
        let (one, other) = (throttle([1; 32]), throttle([2; 32]));
        for (name, same) in [
            ("alice", "ALICE"),
            ("alice@example.com", "Alice@EXAMPLE.com"),
            ("\u{e9}lise@example.com", "E\u{301}LISE@example.com"),
            (
                "\u{3c3}\u{3bf}\u{3c6}\u{3cc}\u{3c2}@example.com",
                "\u{3a3}\u{39f}\u{3a6}\u{38c}\u{3a3}@example.com",
            ),
        ] {
            assert_eq!(one.account_key(name), one.account_key(same), "{name}");
        }
        let ip = "192.0.2.7".parse().unwrap();
        let mut keys = vec![
            one.account_key("alice"),
            one.account_key("alice@example.com"),
            one.account_key(""),
            key_of(one.device("alice", ip)),
            key_of(one.device("alice", "192.0.2.8".parse().unwrap())),
            key_of(one.device("bob", ip)),
            one.address(Kind::Login, ip).key,
            one.address(Kind::Registration, ip).key,
            one.address(Kind::Renewal, ip).key,
            one.address(Kind::Client, ip).key,
            other.account_key("alice"),
        ];
        let count = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), count);
    }
}
