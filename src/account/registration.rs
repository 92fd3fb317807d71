//! How users come to exist: they register themselves, or an operator creates them.

use std::net::IpAddr;

use rand_core::CryptoRng;
use time::OffsetDateTime;

use super::{Accounts, Email, Error, FullName, Roles, User, Username, throttle::Kind};
use crate::{
    password::Password,
    random,
    store::users::{self, NewUser},
};

/// What someone who registers enters, unchecked.
#[derive(Debug)]
pub struct Registration<'a> {
    /// See [`Username`].
    pub username: &'a str,
    /// See [`Email`].
    pub email: &'a str,
    /// See [`FullName`].
    pub full_name: Option<&'a str>,
    /// The password.
    pub password: &'a Password,
}

/// A [`Registration`] that has passed its check.
struct Valid<'a> {
    username: Username,
    email: Email,
    full_name: Option<FullName>,
    password: &'a Password,
}

impl Accounts {
    /// Registers a user, at their own request, from `ip`.
    ///
    /// # Errors
    ///
    /// [`Error::RegistrationClosed`], [`Error::TooManyAttempts`], or those of [`create`](Self::create).
    pub async fn register(
        &self,
        registration: &Registration<'_>,
        ip: Option<IpAddr>,
        now: OffsetDateTime,
        rng: &mut impl CryptoRng,
    ) -> Result<User, Error> {
        if !self.parts.policy.registration_open {
            return Err(Error::RegistrationClosed);
        }
        let valid = self.check(registration).await?;
        let attempt = self.parts.throttle.admit_from(Kind::Registration, ip, now).await?;
        let created = self.insert(&valid, &Roles::default(), now, rng).await;
        // Each of these reveals that someone has an account. The only other operation that does is a change of address.
        if !matches!(created, Err(Error::UsernameTaken | Error::EmailTaken)) {
            self.parts.throttle.give_back(attempt).await;
        }
        created
    }

    /// Creates a user, whether or not registration is open.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] with every field that breaks a rule, [`Error::UsernameTaken`], [`Error::EmailTaken`].
    pub async fn create(
        &self,
        registration: &Registration<'_>,
        roles: &Roles,
        now: OffsetDateTime,
        rng: &mut impl CryptoRng,
    ) -> Result<User, Error> {
        self.insert(&self.check(registration).await?, roles, now, rng).await
    }

    async fn check<'a>(&self, registration: &Registration<'a>) -> Result<Valid<'a>, Error> {
        let mut invalid = Vec::new();
        let mut note = |error| invalid.push(error);
        let username = Username::parse(registration.username).map_err(&mut note).ok();
        let email = Email::parse(registration.email).map_err(&mut note).ok();
        let full_name = registration.full_name.and_then(|name| FullName::parse(name).map_err(&mut note).ok());
        let full_name = full_name.flatten();
        // Only what has passed its own check, and so is short: searching the password for it takes time.
        let own = [
            username.as_ref().map_or("", Username::as_str),
            email.as_ref().map_or("", Email::as_str),
            full_name.as_ref().map_or("", FullName::as_str),
        ];
        self.check_password("password", registration.password, &own).await?.map_err(&mut note).ok();
        let (Some(username), Some(email), []) = (username, email, &invalid[..]) else {
            return Err(Error::Invalid(invalid));
        };
        Ok(Valid { username, email, full_name, password: registration.password })
    }

    async fn insert(
        &self,
        new: &Valid<'_>,
        roles: &Roles,
        now: OffsetDateTime,
        rng: &mut impl CryptoRng,
    ) -> Result<User, Error> {
        let password_hash = self.parts.passwords.hash(new.password, random::bytes(rng)).await?;
        let user = NewUser {
            id: random::uuid_v7(now, rng),
            external_id: None,
            username: new.username.as_str(),
            email: new.email.as_str(),
            full_name: new.full_name.as_ref().map(FullName::as_str),
            password_hash: Some(&password_hash),
            roles: roles.as_slice(),
            is_email_verified: false,
            disabled: false,
            password_changed_at: now,
            created_at: now,
            updated_at: now,
        };
        let cause = self.cause.or_user(user.id);
        let db = &self.parts.db;
        let user = db.write(async |mut conn| users::insert(&mut conn, &user, &cause).await).await?;
        tracing::info!(user_id = %user.id, "user created");
        Ok(user)
    }
}
