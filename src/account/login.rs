//! A login: from a name and a password to a session and its tokens.
//!
//! A user that does not exist, a wrong password and a disabled user take the same way: one look-up, one password hash,
//! one answer, and before all that one place of the [throttle](super::throttle). Where the operator has raised the cost of
//! a hash, those who have not logged in since cost the same to within a tenth; so do those who came with a cheaper one of
//! another system. Where a hash costs more, nobody else pays for it, but everybody's refusal waits as long
//! ([`password::Pool::verify`]). So it does where there is an old system that may know the user ([`legacy`](super::legacy)).

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
    token::{AccessToken, Lifetime, Subject, refresh::RefreshToken},
};

/// Who asks, as far as the connection tells: kept with the session so that its owner can recognise it.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// The client's address.
    pub ip: Option<IpAddr>,
    /// What the client calls itself.
    pub user_agent: Option<String>,
}

/// A session just begun, with everything its owner gets.
#[derive(Debug)]
pub struct Login {
    /// Its first tokens.
    pub tokens: Tokens,
    /// Whose session it is.
    pub user: User,
}

/// What a login gives, and each renewal.
#[derive(Debug)]
pub struct Tokens {
    /// The session's id.
    pub session_id: Uuid,
    /// For requests.
    pub access_token: AccessToken,
    /// For renewal.
    pub refresh_token: RefreshToken,
    /// When the refresh token ends unless it is used before.
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
        // Before the database is asked: a storm that the hashes cannot keep up with is not to reach it.
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

    /// Takes the places of the throttle and looks up the user, in one statement. The connection goes back to the pool
    /// before the hash, which takes far longer.
    async fn attempt(
        &self,
        username: &str,
        caller: &Caller,
        now: OffsetDateTime,
    ) -> Result<(Attempt, Option<Credentials>), Error> {
        let places = self.parts.throttle.places(username, caller.ip);
        // A statement by hand may be in its way. At worst it takes a place more.
        let attempt = async || {
            self.parts
                .db
                .asking(async |mut conn| users::attempt(&mut conn, &places, name(username), now).await)
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
        // A disabled user is nobody here: not even the right password takes another way.
        let (user, stored) = match found.filter(|found| !found.user.disabled) {
            Some(credentials) => (Some(credentials.user), credentials.password_hash),
            None => (None, None),
        };
        // Nobody's password is that long, and the longer it is the more it would cost to say so.
        let salt = random::bytes(rng);
        let verify = async {
            match password.length() {
                0..=password::MAX_LENGTH => {
                    self.parts.passwords.verify_and_renew(password, stored.as_ref(), salt).await
                }
                _ => self.parts.passwords.verify_and_renew(&Password::new(""), None, salt).await,
            }
        };
        // At once, so that a stranger with the right password does not wait for both.
        let ask = async {
            match &stranger {
                Some(stranger) => Ok(Some((stranger, self.ask_about(stranger).await))),
                None => Ok(None),
            }
        };
        let ((verdict, renewed), answered) = tokio::try_join!(verify, ask)?;
        if let Some((stranger, answer)) = answered {
            // Seldom; in a box, or every login would have room for it.
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
        // With the name and the roles of this moment: those that were read before the hash may have changed.
        let forgiveness = &self.parts.throttle.forgiveness(Some(attempt), &user, caller.ip, now);
        let (session, cause) = (&session, &self.cause.or_user(user.id));
        let insert = async || {
            sessions::insert(&mut *self.parts.db.acquire().await?, session, forgiveness, cause).await
        };
        let owner = store::retrying(insert).await?.ok_or(Error::InvalidCredentials)?;
        let user = User { username: owner.username, roles: owner.roles, ..user };
        let subject = Subject {
            user_id: user.id,
            session_id,
            username: user.username.clone(),
            roles: user.roles.clone(),
        };
        let lifetime = Lifetime { now, expires_at: access_expires_at };
        let access_token = self.parts.issuer.issue(subject, random::token_id(now, 0, rng), lifetime)?;
        tracing::info!(user_id = %user.id, %session_id, "logged in");
        // One login of 64, by chance, which nobody can time: it reads all of the user's sessions.
        if session_id.as_bytes()[15].is_multiple_of(64) {
            Box::pin(self.end_surplus(user.id, now)).await;
        }
        let tokens = Tokens {
            session_id,
            access_token,
            refresh_token: self.parts.refresh_keys.token(session_id, 0, &refresh_salt),
            refresh_token_expires_at: refresh_expires_at,
        };
        Ok(Login { tokens, user })
    }

    /// Replaces a hash of older parameters, or of another system. The login does not depend on it.
    async fn upgrade_hash(&self, id: Uuid, old: &HashedPassword, new: &HashedPassword) {
        let cause = self.cause.by(&Actor::Service);
        let upgrade = async {
            users::upgrade_password_hash(&mut *self.parts.db.acquire().await?, id, old, new, &cause).await
        };
        if let Err(error) = upgrade.await {
            tracing::warn!(user_id = %id, error = chain::cause(&error), "an outdated password hash could not be replaced");
        }
    }
}

/// What `text` names: an address when it has an `@`, which no username has. `None` when nobody can have that name. Of an
/// address that is what the table has ever taken: the rules for a new one may be stricter than those it was taken by.
pub(super) fn name(text: &str) -> Option<Name<'_>> {
    if text.contains('@') {
        let can_be_there = text.len() <= Email::MAX_BYTES && !text.contains(char::is_control);
        can_be_there.then_some(Name::Email(text))
    } else {
        Username::parse(text).is_ok().then_some(Name::Username(text))
    }
}
