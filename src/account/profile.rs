//! What users can see and change about themselves without their password.

use std::net::IpAddr;

use time::OffsetDateTime;
use uuid::Uuid;

use super::{Accounts, Email, Error, FieldError, FullName, User, throttle::Kind};
use crate::store::users::{self, Change, Whom};

impl Accounts {
    /// The user of a bearer token.
    ///
    /// # Errors
    ///
    /// [`Error::UserGone`] when the user has been disabled or deleted since the token was issued.
    pub async fn profile(&self, user_id: Uuid) -> Result<User, Error> {
        let user = self.parts.db.read(async |mut conn| users::by_id(&mut conn, user_id).await).await?;
        user.filter(|user| !user.disabled).ok_or(Error::UserGone)
    }

    /// Changes the profile of the user of a bearer token. `None` leaves a field as it is; `Some(None)` removes the
    /// name.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] with every field that breaks a rule, [`Error::EmailTaken`], [`Error::TooManyAttempts`] when
    /// the address is to change, [`Error::UserGone`].
    pub async fn update_profile(
        &self,
        user_id: Uuid,
        full_name: Option<Option<&str>>,
        email: Option<&str>,
        ip: Option<IpAddr>,
        now: OffsetDateTime,
    ) -> Result<User, Error> {
        let change = ProfileChange::parse(full_name, email).map_err(Error::Invalid)?;
        let (change, cause) = (change.as_change(), &self.cause);
        let db = &self.parts.db;
        let Some(email) = change.email else {
            let whom = Whom::Enabled(user_id);
            let updating =
                db.write(async |mut conn| users::update(&mut conn, whom, &change, now, cause).await);
            return updating.await?.ok_or(Error::UserGone);
        };
        // Like a registration, this can reveal that someone has the address.
        let attempt = self.parts.throttle.admit_from(Kind::Registration, ip, now).await?;
        let updating = db.write(async |mut conn| {
            let renaming = |from: &str, to: &str| self.parts.throttle.renaming(from, to);
            users::update_email(&mut conn, user_id, email, &change, renaming, now, cause).await
        });
        let updated = updating.await.map_err(Error::from);
        if !matches!(updated, Err(Error::EmailTaken)) {
            self.parts.throttle.give_back(attempt).await;
        }
        updated?.ok_or(Error::UserGone)
    }
}

/// Changes to a profile, checked. `None` leaves a field as it is.
#[derive(Debug, Default)]
pub(super) struct ProfileChange {
    full_name: Option<Option<FullName>>,
    email: Option<Email>,
}

impl ProfileChange {
    pub(super) fn parse(
        full_name: Option<Option<&str>>,
        email: Option<&str>,
    ) -> Result<Self, Vec<FieldError>> {
        let mut invalid = Vec::new();
        let mut note = |error| invalid.push(error);
        let email = email.and_then(|email| Email::parse(email).map_err(&mut note).ok());
        let full_name =
            full_name.and_then(|name| name.map_or(Ok(None), FullName::parse).map_err(&mut note).ok());
        if invalid.is_empty() { Ok(Self { full_name, email }) } else { Err(invalid) }
    }

    pub(super) fn as_change(&self) -> Change<'_> {
        Change {
            full_name: self.full_name.as_ref().map(|name| name.as_ref().map(FullName::as_str)),
            email: self.email.as_ref().map(Email::as_str),
            ..Change::default()
        }
    }
}
