//! What administrators do to users, over HTTP and on the command line: find, change, lock out, delete.
//!
//! No one can remove the last administrator who is not disabled: the database refuses it, whoever tries
//! ([`Error::LastAdmin`]).

use rand_core::CryptoRng;
use time::OffsetDateTime;
use tracing::field::display;
use uuid::Uuid;

use super::{Accounts, Email, Error, FieldError, Roles, User, cut, login, profile::ProfileChange};
use crate::{
    password::Password,
    store::{
        PgPool,
        sessions::Which,
        users::{self, Change, Found, Whom},
    },
};

/// Which users to look for; unchecked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Search<'a> {
    /// What the username or the e-mail address begins with, regardless of case. Blanks around it are trimmed; if
    /// nothing is left, every user matches.
    pub query: Option<&'a str>,
    /// A role that the users have.
    pub role: Option<&'a str>,
}

impl Search<'_> {
    /// The trimmed query and the role, checked.
    fn checked(&self) -> Result<(Option<&str>, Option<&str>), Vec<FieldError>> {
        let mut invalid = Vec::new();
        let query = self.query.map(str::trim).filter(|query| !query.is_empty());
        if query.is_some_and(|query| query.len() > Email::MAX_BYTES) {
            invalid.push(FieldError::new("query", "too_long", "may have at most 254 bytes"));
        } else if query.is_some_and(|query| query.contains(char::is_control)) {
            invalid.push(FieldError::new("query", "invalid_characters", "may hold no control characters"));
        }
        if self.role.is_some_and(|role| !Roles::is_name(role)) {
            invalid.push(FieldError::new("role", "invalid_role", "is not a valid role name"));
        }
        if invalid.is_empty() { Ok((query, self.role)) } else { Err(invalid) }
    }
}

/// The cursor at the end of a page. The next page begins after this user, even if the user is gone by then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Position {
    /// Without a query, users are ordered by id, which means by age.
    Id(Uuid),
    /// With a query, users are ordered by the username or address that matched, regardless of case.
    Key(String),
}

/// One page of the users that were found.
#[derive(Clone, Debug)]
pub struct Page {
    /// The users.
    pub users: Vec<User>,
    /// Where the next page begins; `None` if there is none.
    pub next: Option<Position>,
}

/// An administrator's changes to a user, unchecked. `None` leaves a field as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct UserChange<'a> {
    /// See [`FullName`](super::FullName); `Some(None)` removes the name.
    pub full_name: Option<Option<&'a str>>,
    /// See [`Email`].
    pub email: Option<&'a str>,
    /// See [`Roles`]. From then on, access tokens with other roles are refused.
    pub roles: Option<&'a [String]>,
    /// Whether the user is locked out, which ends the user's sessions.
    pub disabled: Option<bool>,
}

/// The user that an operator has named.
pub(super) enum Named {
    /// The user who has, or had, this id.
    Id(Uuid),
    /// The user with this username or address.
    User(User),
}

/// Resolves `name`, which may be an id, a username or an address. A username may look like the id of another user: then
/// neither user is taken for the other.
///
/// # Errors
///
/// [`Error::NoSuchUser`], [`Error::AmbiguousUser`].
pub(super) async fn named(db: &PgPool, name: &str) -> Result<Named, Error> {
    // Only the hyphenated form: no one would type the others.
    let id = name.parse::<uuid::fmt::Hyphenated>().ok().map(uuid::fmt::Hyphenated::into_uuid);
    let user = match login::name(name) {
        Some(name) => db.read(async |mut conn| users::by_name(&mut conn, name).await).await?,
        None => None,
    };
    match (id, user) {
        (Some(id), Some(user)) if user.id != id => Err(Error::AmbiguousUser),
        (_, Some(user)) => Ok(Named::User(user)),
        (Some(id), None) => Ok(Named::Id(id)),
        (None, None) => Err(Error::NoSuchUser),
    }
}

impl Accounts {
    /// The user with this id, username or address.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchUser`], [`Error::AmbiguousUser`].
    pub async fn find(&self, name: &str) -> Result<User, Error> {
        match named(&self.parts.db, name).await? {
            Named::Id(id) => self.by_id(id).await,
            Named::User(user) => Ok(user),
        }
    }

    /// The user with this id.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchUser`].
    pub async fn by_id(&self, id: Uuid) -> Result<User, Error> {
        let user = self.parts.db.read(async |mut conn| users::by_id(&mut conn, id).await).await?;
        user.ok_or(Error::NoSuchUser)
    }

    /// At most `limit` of the users who match `search`, beginning after `after`.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] about `query`, `role`, or a `cursor` that belongs to another search.
    pub async fn search(
        &self,
        search: &Search<'_>,
        after: Option<&Position>,
        limit: u32,
    ) -> Result<Page, Error> {
        let (query, role) = search.checked().map_err(Error::Invalid)?;
        let (id, key) = match after {
            None => (None, None),
            Some(Position::Id(id)) => (Some(*id), None),
            Some(Position::Key(key)) => (None, Some(&**key)),
        };
        let is_foreign = if query.is_some() { id.is_some() } else { key.is_some() };
        if is_foreign {
            let message = "belongs to another search; begin again without it";
            return Err(Error::Invalid(vec![FieldError::new("cursor", "invalid", message)]));
        }
        let db = &self.parts.db;
        let Some(query) = query else {
            let reading = db.read(async |mut conn| users::page(&mut conn, role, id, limit + 1).await);
            let mut users = reading.await?;
            let next = cut(&mut users, limit).map(|user| Position::Id(user.id));
            return Ok(Page { users, next });
        };
        let reading = db.read(async |mut conn| users::search(&mut conn, query, role, key, limit + 1).await);
        let mut found = reading.await?;
        let next = cut(&mut found, limit).map(|found| Position::Key(found.key.clone()));
        Ok(Page { users: found.into_iter().map(|Found { user, .. }| user).collect(), next })
    }

    /// Changes a user: either every change is made or none is.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] with every field that breaks a rule, [`Error::EmailTaken`], [`Error::LastAdmin`],
    /// [`Error::NoSuchUser`], [`Error::NotAdministrator`].
    pub async fn update(
        &self,
        id: Uuid,
        change: &UserChange<'_>,
        now: OffsetDateTime,
    ) -> Result<User, Error> {
        let mut invalid = Vec::new();
        let profile = ProfileChange::parse(change.full_name, change.email);
        let profile = profile.map_err(|errors| invalid.extend(errors)).unwrap_or_default();
        let roles = change.roles.map(Roles::parse).transpose();
        let roles = roles.map_err(|errors| invalid.extend(errors)).unwrap_or_default();
        if !invalid.is_empty() {
            return Err(Error::Invalid(invalid));
        }
        let change = Change {
            roles: roles.as_ref().map(Roles::as_slice),
            disabled: change.disabled,
            ..profile.as_change()
        };
        let whom = Whom::Any(id);
        let (db, cause) = (&self.parts.db, &self.cause);
        let updating = db.write(async |mut conn| users::update(&mut conn, whom, &change, now, cause).await);
        let user = updating.await?.ok_or(Error::NoSuchUser)?;
        if change.roles.is_some() || change.disabled.is_some() {
            self.tell_revocations().await;
        }
        let roles = change.roles.map(|roles| display(roles.join(",")));
        tracing::info!(user_id = %id, roles, disabled = change.disabled, "user changed");
        Ok(user)
    }

    /// Sets a user's password, which ends the user's sessions.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when the password breaks a rule, [`Error::NoSuchUser`].
    pub async fn set_password(
        &self,
        user: &User,
        password: &Password,
        now: OffsetDateTime,
        rng: &mut impl CryptoRng,
    ) -> Result<(), Error> {
        let hash = self.hash_new("password", password, user, rng).await?;
        self.replace_password(user.id, &hash, None, Which::All, now).await?.ok_or(Error::NoSuchUser)?;
        tracing::info!(user_id = %user.id, "password set");
        Ok(())
    }

    /// Forgets all failed logins under a user's names, so that the user may try again. The counts of addresses, and of
    /// devices that have logged in before, stay.
    pub async fn forgive(&self, user: &User, now: OffsetDateTime) {
        self.parts.throttle.forgive(None, user, None, now).await;
    }

    /// Deletes a user and the user's sessions.
    ///
    /// # Errors
    ///
    /// [`Error::LastAdmin`], [`Error::NoSuchUser`], [`Error::NotAdministrator`].
    pub async fn delete(&self, id: Uuid, now: OffsetDateTime) -> Result<(), Error> {
        if !self.remove(id, None, now).await? {
            return Err(Error::NoSuchUser);
        }
        tracing::info!(user_id = %id, "user deleted");
        Ok(())
    }
}
