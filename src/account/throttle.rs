//! The throttle: how often somebody may fail.
//!
//! What is counted are failures, of each account name and of each address. An attempt takes a place of both *before* it is
//! known whether there is such a user and before anything is hashed, so that a thousand attempts at once get no further
//! than one after the other. What then turns out to be no failure gives its place back. The count is in Postgres, one
//! statement for each decision, so that it does not matter which replica is asked.
//!
//! | attempt | limited by | a success |
//! |---|---|---|
//! | login, change of password, deletion | account name, and address | forgives device and account, gives the address its place back |
//! | registration, a new e-mail address (failure: a name that is taken) | address | gives its place back |
//! | renewal (failure: no refresh token of ours) | address | never asks |
//! | introspection, revocation, the feed (failure: wrong client secret) | address | never asks |
//!
//! The last two take nothing beforehand: their secrets have 256 bits, and no number of guesses comes near. A good one is
//! good however much the others at its address have failed, and costs no statement. Each of the four has places of its
//! own at an address, so that a broken client that keeps renewing blocks nobody's login.
//!
//! # The rate
//!
//! `10/15m` is a bucket with 10 places, of which one becomes free each 90 seconds (generic cell rate algorithm): 10 failures
//! at once, and 10 in each 15 minutes in the long run; in the first 15 minutes after a pause there may be twice as many, as
//! there may with windows of 15 minutes, at the end of one and the beginning of the next. In return one time is all there is
//! to keep, whoever is locked out waits for 90 seconds rather than for 15 minutes, and `Retry-After` is exact: the time at
//! which the next place is free. What is refused takes no place, and makes nobody wait longer.
//!
//! # No telling users apart
//!
//! An account is what was typed as its name, without regard to case: nobody is looked up, and an unknown name has as many
//! places as any other. So the username and the e-mail address of one user are counted apart, and who knows both has twice
//! the guesses. One count for both would tell more: exhaust `alice`, and whether `alice@example.com` is refused says that
//! both are the same user, and that there is one. A success forgives both, but for one at a known device, which has taken
//! no place of theirs: a program that logs in each minute would hand as many guesses to everybody else.
//!
//! What known devices tell cannot be kept from an attacker *at the owner's address*: who has used up a name's places
//! elsewhere, and is then let in there, knows that somebody has logged in by that name from there.
//!
//! A new e-mail address takes along what has been counted of the former one, and one failure more. Who has stolen an access
//! token, which is all that it takes to change the address, would else have the guesses of as many names as they think of.
//!
//! # Nobody locks an owner out for good
//!
//! Who fails often enough, in somebody's name, uses up the places of that name. Therefore a *device* that has logged in
//! before has places of its own, as many, in place of the account's. A device is an account name at an address (IPv6: at a
//! /64), known for [`KNOWN_FOR`] after its last login; clients have nothing to send or keep. A cookie would be more exact,
//! and this service sets none. So an attacker behind the owner's own address can use up that device's places, and the
//! owner then logs in from elsewhere; and an owner under attack who has never logged in from where they are has to wait
//! for a place, or go on with a session that they have: renewal asks for no password.
//!
//! # What is kept
//!
//! Sixteen bytes of an HMAC for each name, address and device, under a key that the database does not have, so that the
//! table is no list of who logs in from where. With another root key all counts begin anew. The table is an ordinary one:
//! a crash or a failover must not hand out new guesses, nor forget the devices.

use std::{
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use aws_lc_rs::hmac;
use time::OffsetDateTime;

use super::{Error, User, fields::normalised};
/// What is tried at an address.
pub(super) use crate::metrics::ThrottledAttempt as Kind;
use crate::{
    chain,
    metrics::Metrics,
    store::{
        self, PgPool,
        login_attempts::{self, Bucket, Device, Forgiveness, Key, Places, Rate, Renaming, Taken},
    },
    token::SymmetricKey,
};

/// How long a device is known after its last login: a few times as long as most sessions last.
pub const KNOWN_FOR: time::Duration = time::Duration::days(90);
/// How long a request that is otherwise done waits for its attempt to be written off.
const WRITE_OFF_PATIENCE: Duration = Duration::from_secs(1);

/// Counts failures, over one database. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Throttle {
    db: PgPool,
    key: hmac::Key,
    per_account: Rate,
    per_address: Rate,
    metrics: Metrics,
}

/// An attempt that has its places, and has yet to turn out.
#[derive(Debug)]
#[must_use = "an attempt that is not settled counts as a failure"]
pub(super) struct Attempt {
    taken: Vec<Bucket>,
    /// Whether a known device's place stands in for the account's.
    is_device_known: bool,
}

impl Throttle {
    /// Counts in `db`, under a key derived from `root` for that alone.
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

    /// The places that a login by `name` takes before it begins; so does what counts as one.
    pub(super) fn places(&self, name: &str, ip: Option<IpAddr>) -> Places {
        let account = self.account_key(name);
        let device = ip.map(|ip| Device { account, device: self.device_key(name, ip) });
        let address = ip.map(|ip| self.address(Kind::Login, ip));
        let buckets = [self.per_account.bucket(account)].into_iter().chain(address).collect();
        Places { buckets, device }
    }

    /// Lets a login by `name` begin, or what counts as one.
    ///
    /// # Errors
    ///
    /// [`Error::TooManyAttempts`], of this name or from this address.
    pub(super) async fn admit_login(
        &self,
        name: &str,
        ip: Option<IpAddr>,
        now: OffsetDateTime,
    ) -> Result<Attempt, Error> {
        let places = self.places(name, ip);
        let taken = self.take(&places, now).await?;
        self.admitted(Kind::Login, places, &taken, now)
    }

    async fn take(&self, places: &Places, now: OffsetDateTime) -> Result<Taken, Error> {
        let take = async || login_attempts::take(&mut *self.db.acquire().await?, places, now).await;
        Ok(store::retrying(take).await?)
    }

    /// The attempt that has taken these places.
    ///
    /// # Errors
    ///
    /// [`Error::TooManyAttempts`] when it has not got them.
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
            account.key = device.device;
        }
        Ok(Attempt { taken: buckets, is_device_known: taken.is_device_known })
    }

    /// Lets an attempt begin that only its address limits.
    ///
    /// # Errors
    ///
    /// [`Error::TooManyAttempts`], from this address.
    pub(super) async fn admit_from(
        &self,
        kind: Kind,
        ip: Option<IpAddr>,
        now: OffsetDateTime,
    ) -> Result<Attempt, Error> {
        let buckets = ip.map(|ip| self.address(kind, ip)).into_iter().collect();
        let places = Places { buckets, device: None };
        let taken = self.take(&places, now).await?;
        self.admitted(kind, places, &taken, now)
    }

    /// Tells why an attempt to log in, or what counts as one, has come to nothing.
    pub(super) async fn settle(&self, attempt: Attempt, failure: &Error) {
        match failure {
            Error::InvalidCredentials => {}
            // No password was tried, or nobody hears whether it was right.
            _ => self.give_back(attempt).await,
        }
    }

    /// What `user` is forgiven, who has just shown their password in this `attempt`; or by an operator, without one.
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
            // With that of the name that was typed, which may be neither by now.
            _ => {
                let typed = attempt.and_then(|attempt| attempt.taken.first()).map(|account| account.key);
                names.into_iter().map(|name| self.account_key(name)).chain(typed).collect()
            }
        };
        Forgiveness {
            address: ip.map(|ip| self.address(Kind::Login, ip)),
            accounts,
            devices: ip.map(|ip| names.map(|name| self.device_key(name, ip)).to_vec()).unwrap_or_default(),
            known_until: Some(now + KNOWN_FOR),
        }
    }

    /// The same, where nothing else is to be done with it.
    pub(super) async fn forgive(
        &self,
        attempt: Option<&Attempt>,
        user: &User,
        ip: Option<IpAddr>,
        now: OffsetDateTime,
    ) {
        let forgiveness = &self.forgiveness(attempt, user, ip, now);
        let forgive =
            async || login_attempts::forgive(&mut *self.db.acquire().await?, forgiveness, now).await;
        write_off(store::retrying(forgive)).await;
    }

    /// It was no failure that counts.
    pub(super) async fn give_back(&self, attempt: Attempt) {
        let give_back =
            async || login_attempts::give_back(&mut *self.db.acquire().await?, &attempt.taken).await;
        write_off(store::retrying(give_back)).await;
    }

    /// What becomes of the failures by one name of an account when it gets another in its place.
    pub(super) fn renaming(&self, from: &str, to: &str) -> Renaming {
        Renaming { from: self.account_key(from), to: self.per_account.bucket(self.account_key(to)) }
    }

    /// Counts a failure that took no place beforehand; what to answer: [`Error::TooManyAttempts`] when there have been too
    /// many already, else `failure`.
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
        self.per_address.bucket(self.hash(purpose, Some(ip), ""))
    }

    fn account_key(&self, name: &str) -> Key {
        self.hash("account", None, &normalised(name))
    }

    fn device_key(&self, name: &str, ip: IpAddr) -> Key {
        self.hash("device", Some(ip), &normalised(name))
    }

    fn hash(&self, purpose: &str, ip: Option<IpAddr>, name: &str) -> Key {
        let network = ip.map_or_else(String::new, |ip| network(ip).to_string());
        let mut key = Key::default();
        // Neither a purpose nor a network has the separator in it.
        let tag = hmac::sign(&self.key, format!("{purpose}\0{network}\0{name}").as_bytes());
        key.copy_from_slice(&tag.as_ref()[..16]);
        key
    }
}

/// What somebody got does not depend on whether their attempt could be written off: they wait a little for it, not as long
/// as for a database that they have just been denied. At worst it counts.
async fn write_off(work: impl Future<Output = Result<(), store::Error>>) {
    if let Err(error) = store::within(WRITE_OFF_PATIENCE, work).await {
        tracing::warn!(error = chain::cause(&error), "an attempt that was no failure counts as one");
    }
}

/// The part of an address that one customer has to themselves: all of IPv4, /64 of IPv6.
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
    fn a_rate_is_so_many_places_of_which_one_becomes_free_at_a_time() {
        for (rate, micros) in [
            (rate(10, 900), 90_000_000),
            (rate(100, 900), 9_000_000),
            (rate(1, 1), 1_000_000),
            (rate(7, 900), 128_571_428),
            // However many: each keeps its place for a while.
            (rate(u32::MAX, 1), 1),
        ] {
            let bucket = rate.bucket([0; 16]);
            assert_eq!(bucket.spacing, Duration::from_micros(micros), "{rate:?}");
            assert_eq!(bucket.span, bucket.spacing * rate.count.get(), "{rate:?}");
        }
    }

    #[test]
    fn a_network_is_what_one_customer_has() {
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
    async fn names_of_one_user_are_one_and_no_two_keys_are() {
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
            one.device_key("alice", ip),
            one.device_key("alice", "192.0.2.8".parse().unwrap()),
            one.device_key("bob", ip),
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
