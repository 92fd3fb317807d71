//! What users do to their account with their password: change the password, or delete the account. Also the operations
//! behind both, which administrators use too.

use std::net::IpAddr;

use rand_core::CryptoRng;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Accounts, Error, FieldError, User};
use crate::{
    password::{self, HashedPassword, Password, Verdict},
    random,
    store::{
        sessions::Which,
        users::{self, Credentials},
    },
};

impl Accounts {
    /// Changes a user's own password, which ends all their sessions except `session_id`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidCredentials`] when `current` is not the password, [`Error::TooManyAttempts`] when that has
    /// happened too often; [`Error::Invalid`] when the new one breaks a rule; [`Error::UserGone`] when the user
    /// has been disabled or deleted.
    pub async fn change_password(
        &self,
        (user_id, session_id): (Uuid, Uuid),
        current: &Password,
        new: &Password,
        ip: Option<IpAddr>,
        now: OffsetDateTime,
        rng: &mut impl CryptoRng,
    ) -> Result<(), Error> {
        let user = self.confirm(user_id, current, ip, now).await?;
        let hash = self.hash_new("new_password", new, &user, rng).await?;
        let which = Which::AllBut(session_id);
        let set_at =
            self.replace_password(user_id, &hash, Some(user.password_changed_at), which, now).await?;
        let user = User { password_changed_at: set_at.ok_or(Error::InvalidCredentials)?, ..user };
        self.parts.throttle.keep_device(&user, ip, now).await;
        tracing::info!(%user_id, %session_id, "password changed");
        Ok(())
    }

    /// Deletes a user's own account and its sessions.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidCredentials`] when `password` is not the user's, [`Error::TooManyAttempts`] when that has
    /// happened too often; [`Error::UserGone`] when the user has been disabled or deleted; [`Error::LastAdmin`].
    pub async fn delete_own(
        &self,
        user_id: Uuid,
        password: &Password,
        ip: Option<IpAddr>,
        now: OffsetDateTime,
    ) -> Result<(), Error> {
        let user = self.confirm(user_id, password, ip, now).await?;
        if !self.remove(user_id, Some(user.password_changed_at), now).await? {
            return Err(Error::InvalidCredentials);
        }
        tracing::info!(%user_id, "user deleted by themselves");
        Ok(())
    }

    /// Has the user prove once more that they know the password. An attempt counts as a login by username, so a thief
    /// of an access token has no more guesses than anyone else.
    async fn confirm(
        &self,
        user_id: Uuid,
        password: &Password,
        ip: Option<IpAddr>,
        now: OffsetDateTime,
    ) -> Result<User, Error> {
        let found = self.parts.db.read(async |mut conn| users::credentials(&mut conn, user_id).await).await?;
        let credentials = found.filter(|found| !found.user.disabled).ok_or(Error::UserGone)?;
        let attempt = self.parts.throttle.admit_login(&credentials.user, ip, now).await?;
        let user = self.verify(credentials, password).await;
        match &user {
            Ok(user) => self.parts.throttle.forgive(Some(&attempt), user, ip, now).await,
            Err(failure) => self.parts.throttle.settle(attempt, failure).await,
        }
        user
    }

    async fn verify(&self, credentials: Credentials, password: &Password) -> Result<User, Error> {
        if password.length() > password::MAX_LENGTH {
            return Err(Error::InvalidCredentials);
        }
        let verdict = self.parts.passwords.verify(password, credentials.password_hash.as_ref()).await?;
        is_match(verdict, credentials.user.id).then_some(credentials.user).ok_or(Error::InvalidCredentials)
    }

    /// Checks and hashes a user's new password, which comes from `field` of the request.
    pub(super) async fn hash_new(
        &self,
        field: &str,
        password: &Password,
        user: &User,
        rng: &mut impl CryptoRng,
    ) -> Result<HashedPassword, Error> {
        let own = [&*user.username, &*user.email, user.full_name.as_deref().unwrap_or_default()];
        self.check_password(field, password, &own).await?.map_err(|error| Error::Invalid(vec![error]))?;
        Ok(self.parts.passwords.hash(password, random::bytes(rng)).await?)
    }

    /// Checks a new password, which comes from `field` of the request, against the rules. `own` is what else is known
    /// of its user.
    pub(super) async fn check_password(
        &self,
        field: &str,
        password: &Password,
        own: &[&str],
    ) -> Result<Result<(), FieldError>, Error> {
        let checked = self.parts.passwords.check(password, &self.parts.policy.password_rules, own).await?;
        Ok(checked.map_err(|refusal| FieldError::new(field, refusal.code(), refusal.message())))
    }

    /// Sets a password and ends sessions, if the present password is still the one of `changed_at`. Returns when it was
    /// set, `None` if it was not, or if there is no such user.
    pub(super) async fn replace_password(
        &self,
        id: Uuid,
        hash: &HashedPassword,
        changed_at: Option<OffsetDateTime>,
        end: Which,
        now: OffsetDateTime,
    ) -> Result<Option<OffsetDateTime>, Error> {
        let (db, cause) = (&self.parts.db, &self.cause);
        let setting = db.write(async |mut conn| {
            users::set_password(&mut conn, id, hash, changed_at, end, now, cause).await
        });
        let set_at = setting.await?;
        self.tell_revocations().await;
        Ok(set_at)
    }

    /// Deletes a user, if their password is still the one of `changed_at`. `false` if it is not, or if there is no such
    /// user.
    pub(super) async fn remove(
        &self,
        id: Uuid,
        changed_at: Option<OffsetDateTime>,
        now: OffsetDateTime,
    ) -> Result<bool, Error> {
        let (db, cause) = (&self.parts.db, &self.cause);
        let deleting = db.write(async |mut conn| users::delete(&mut conn, id, changed_at, now, cause).await);
        let is_done = deleting.await?;
        self.tell_revocations().await;
        Ok(is_done)
    }
}

/// Whether it was the user's password. Logs a stored hash that no one can log in with.
pub(super) fn is_match(verdict: Verdict, user_id: Uuid) -> bool {
    if let Verdict::Unreadable(reason) = verdict {
        tracing::error!(%user_id, %reason, "the stored password hash cannot be read");
    }
    matches!(verdict, Verdict::Match { .. })
}
