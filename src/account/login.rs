//! A login: from a name and a password to a session and its tokens.
//!
//! An unknown user, a wrong password and a disabled user all take the same path: one place of the
//! [throttle](super::throttle), one lookup, one password hash, one answer. If the operator has raised the cost of a
//! hash, users who have not logged in since still take the same time, to within a tenth; so do users who came from
//! another system with a cheaper hash. A stored hash that costs more than new ones takes longer, and no extra work is
//! done for other users, but every refusal then waits as long ([`password::Pool::verify`]). With an old system that may
//! know the user, every refusal also waits until that system would have answered ([`legacy`](super::legacy)).

use std::net::IpAddr;

use rand_core::CryptoRng;
use time::OffsetDateTime;
use tokio::time::{Instant, sleep_until};
use tracing::{Instrument, info_span};
use uuid::Uuid;

use super::{
    Accounts, Actor, Email, Error, User, Username,
    own::is_match,
    throttle::{Attempt, Kind},
};
use crate::{
    chain,
    password::{self, HashedPassword, Password},
    random,
    store::{
        self,
        sessions::{self, NewSession},
        users::{self, Credentials, Name},
    },
    token::{
        AccessToken, Lifetime, Subject,
        refresh::{RefreshToken, Salt},
    },
};

/// What is known of the caller, stored with the session so that its owner can recognise it.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// The client's address.
    pub ip: Option<IpAddr>,
    /// The `User-Agent` that the client sent.
    pub user_agent: Option<String>,
}

/// A new session, with everything that its owner receives.
#[derive(Debug)]
pub struct Login {
    /// Its first tokens.
    pub tokens: Tokens,
    /// The owner.
    pub user: User,
}

/// The tokens that a login or a renewal returns.
#[derive(Debug)]
pub struct Tokens {
    /// The session's id.
    pub session_id: Uuid,
    /// Authenticates requests.
    pub access_token: AccessToken,
    /// Renews the session.
    pub refresh_token: RefreshToken,
    /// When the refresh token expires, unless it is used before.
    pub refresh_token_expires_at: OffsetDateTime,
}

impl Accounts {
    /// Logs a user in by username or e-mail address.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidCredentials`], the same for an unknown user, a wrong password and a disabled user;
    /// [`Error::TooManyAttempts`], [`Error::Overloaded`].
    pub async fn login(
        &self,
        username: &str,
        password: &Password,
        caller: &Caller,
        now: OffsetDateTime,
        rng: &mut impl CryptoRng,
    ) -> Result<Login, Error> {
        // First of all: a storm of logins that hashing cannot keep up with must not reach the database.
        self.parts.passwords.check_room()?;
        let (attempt, found) = self.attempt(username, caller, now).instrument(info_span!("throttle")).await?;
        let begun = Instant::now();
        let login = self.try_login((&attempt, found), username, password, caller, now, rng).await;
        if let (Err(Error::InvalidCredentials), Some(legacy)) = (&login, &self.parts.legacy) {
            sleep_until(begun + legacy.shortest_refusal()).await;
        }
        if let Err(failure) = &login {
            self.parts.throttle.settle(attempt, failure).instrument(info_span!("settle")).await;
        }
        login
    }

    /// Takes the throttle's places and looks up the user in one statement. The connection goes back to the pool before
    /// the hash, which takes far longer.
    async fn attempt(
        &self,
        username: &str,
        caller: &Caller,
        now: OffsetDateTime,
    ) -> Result<(Attempt, Option<Credentials>), Error> {
        let places = self.parts.throttle.places(username, caller.ip);
        // Retried, since a statement run by hand may get in its way. At worst, a retry takes one place more.
        let attempt = async || {
            self.parts
                .db
                .read(async |mut conn| users::attempt(&mut conn, &places, name(username), now).await)
                .await
        };
        let (taken, found) = store::retrying(attempt).await?;
        Ok((self.parts.throttle.admitted(Kind::Login, places, &taken, now)?, found))
    }

    async fn try_login(
        &self,
        (attempt, found): (&Attempt, Option<Credentials>),
        username: &str,
        password: &Password,
        caller: &Caller,
        now: OffsetDateTime,
        rng: &mut impl CryptoRng,
    ) -> Result<Login, Error> {
        let stranger = self.stranger(username, name(username), found.as_ref(), password);
        // A disabled user is treated as unknown: not even the right password takes another path.
        let (user, stored) = match found.filter(|found| !found.user.disabled) {
            Some(credentials) => (Some(credentials.user), credentials.password_hash),
            None => (None, None),
        };
        // No password is longer than `MAX_LENGTH`, and hashing a longer one would cost more with its length.
        let salt = random::bytes(rng);
        let verify = async {
            match password.length() {
                0..=password::MAX_LENGTH => {
                    self.parts.passwords.verify_and_renew(password, stored.as_ref(), salt).await
                }
                _ => self.parts.passwords.verify_and_renew(&Password::new(""), None, salt).await,
            }
        };
        // Run together with the hash, so that a stranger with the right password does not wait for one after the other.
        let ask = async {
            match &stranger {
                Some(stranger) => Ok(Some((stranger, self.ask_about(stranger).await))),
                None => Ok(None),
            }
        };
        let ((verdict, renewed), answered) = tokio::try_join!(verify, ask)?;
        if let Some((stranger, answer)) = answered {
            // Rare, so boxed: otherwise the future of every login would have room for it.
            let user = Box::pin(self.take_over(stranger, answer, now, rng)).await?;
            let user = user.ok_or(Error::InvalidCredentials)?;
            return self.begin_session(attempt, user, caller, now, rng).await;
        }
        let user = user.filter(|user| is_match(verdict, user.id)).ok_or(Error::InvalidCredentials)?;
        if let (Some(old), Some(new)) = (&stored, &renewed) {
            self.upgrade_hash(user.id, old, new).await;
        }
        self.begin_session(attempt, user, caller, now, rng).await
    }

    async fn begin_session(
        &self,
        attempt: &Attempt,
        user: User,
        caller: &Caller,
        now: OffsetDateTime,
        rng: &mut impl CryptoRng,
    ) -> Result<Login, Error> {
        let session_id = random::uuid_v7(now, rng);
        let refresh_salt = random::bytes(rng);
        // Whole seconds, as tokens have them.
        let expires_at = now.truncate_to_second() + self.parts.policy.session_duration;
        let refresh_expires_at = self.parts.policy.refresh_expires_at(now, expires_at);
        let access_expires_at = self.parts.policy.access_expires_at(now, expires_at);

        let session = NewSession {
            id: session_id,
            user_id: user.id,
            password_changed_at: user.password_changed_at,
            refresh_salt: &refresh_salt,
            user_agent: caller.user_agent.as_deref(),
            client_ip: caller.ip,
            now,
            refresh_expires_at,
            expires_at,
            access_expires_at,
        };
        // Returns the current username and roles: those read before the hash may have changed.
        let forgiveness = &self.parts.throttle.forgiveness(Some(attempt), &user, caller.ip, now);
        let (db, cause) = (&self.parts.db, &self.cause.or_user(user.id));
        let inserting =
            db.write(async |mut conn| sessions::insert(&mut conn, &session, forgiveness, cause).await);
        let owner = inserting.await?.ok_or(Error::InvalidCredentials)?;
        let user = User { username: owner.username, roles: owner.roles, ..user };
        let subject = Subject {
            user_id: user.id,
            session_id,
            username: user.username.clone(),
            roles: user.roles.clone(),
        };
        let lifetime = Lifetime { now, expires_at: access_expires_at };
        let tokens = self.tokens(subject, (0, &refresh_salt), lifetime, refresh_expires_at, rng)?;
        tracing::info!(user_id = %user.id, %session_id, "logged in");
        // It reads all of the user's sessions, so only one login in 64 does it: at random, so that no one can predict
        // which.
        if session_id.as_bytes()[15].is_multiple_of(64) {
            Box::pin(self.end_surplus(user.id, now)).await;
        }
        Ok(Login { tokens, user })
    }

    /// The tokens of one generation of a session, whose refresh tokens are made with `salt`.
    pub(super) fn tokens(
        &self,
        subject: Subject,
        (generation, salt): (u32, &Salt),
        lifetime: Lifetime,
        refresh_token_expires_at: OffsetDateTime,
        rng: &mut impl CryptoRng,
    ) -> Result<Tokens, Error> {
        let session_id = subject.session_id;
        let token_id = random::token_id(lifetime.now, generation, rng);
        let access_token = self.parts.issuer.issue(subject, token_id, lifetime)?;
        let refresh_token = self.parts.refresh_keys.token(session_id, generation, salt);
        Ok(Tokens { session_id, access_token, refresh_token, refresh_token_expires_at })
    }

    /// Replaces a hash that has older parameters or comes from another system. If that fails, the login still succeeds.
    async fn upgrade_hash(&self, id: Uuid, old: &HashedPassword, new: &HashedPassword) {
        let cause = self.cause.by(&Actor::Service);
        let db = &self.parts.db;
        let upgrade =
            db.write(async |mut conn| users::upgrade_password_hash(&mut conn, id, old, new, &cause).await);
        if let Err(error) = upgrade.await {
            tracing::warn!(user_id = %id, error = chain::cause(&error), "an outdated password hash could not be replaced");
        }
    }
}

/// What `text` names: an address if it contains an `@`, which no username does, and otherwise a username. `None` if no
/// user can have that name. An address is checked only against what the table has always required: the rules for a new
/// one may be stricter than those that a stored one was accepted under.
pub(super) fn name(text: &str) -> Option<Name<'_>> {
    if text.contains('@') {
        let can_be_there = text.len() <= Email::MAX_BYTES && !text.contains(char::is_control);
        can_be_there.then_some(Name::Email(text))
    } else {
        Username::parse(text).is_ok().then_some(Name::Username(text))
    }
}
