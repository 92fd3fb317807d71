//! Users who are still in the old system (`LEGACY_LOGIN_URL`): which of them it is asked about at a login, and how they
//! become users of this service. See docs/legacy-login.md for the whole story.
//!
//! The old system is asked about names that no user has here, and about users whom an import has created without a
//! password. It is never asked about a user who has a password here or is disabled here. Every refusal takes equally
//! long ([`Legacy::shortest_refusal`]), so the time does not reveal who was asked about. And every failure has the same
//! answer, so no one learns which names are unknown here while the old system does not answer.

use rand_core::CryptoRng;
use serde_json::{Map, Value};
use time::OffsetDateTime;

use super::{
    Accounts, Actor, Email, Error, User,
    fields::normalised,
    import::{self, Checked},
    own::is_match,
};
use crate::{
    legacy::{Answer, Legacy},
    metrics::LegacyOutcome,
    password::{self, Password},
    random,
    store::{
        self,
        sessions::Which,
        users::{self, Credentials, Name},
    },
};

/// Someone about whom to ask the old system.
pub(super) struct Stranger<'a> {
    legacy: &'a Legacy,
    typed: &'a str,
    name: Name<'a>,
    password: &'a Password,
    /// The user, if an import has created them without a password, and their id in the old system.
    imported: Option<(User, String)>,
}

/// Why a user of the old system is not taken over. No message contains a name or an address.
#[derive(Debug, thiserror::Error)]
enum Unfit {
    #[error("is disabled there")]
    Disabled,
    #[error("is not the user that was asked about")]
    Another,
    #[error("breaks a rule: {0}")]
    Invalid(String),
    #[error("has a name, an address or an external id that belongs to another user here")]
    Taken,
}

impl Accounts {
    /// Whom to ask the old system about. `None` if asking would not help, or if the user is not the old system's
    /// concern.
    pub(super) fn stranger<'a>(
        &'a self,
        typed: &'a str,
        name: Option<Name<'a>>,
        found: Option<&Credentials>,
        password: &'a Password,
    ) -> Option<Stranger<'a>> {
        let (legacy, name) = self.parts.legacy.as_ref().zip(name)?;
        // An old system that binds to an LDAP directory may take an empty password for a successful anonymous bind.
        if !(1..=password::MAX_LENGTH).contains(&password.length()) {
            return None;
        }
        let imported = match found {
            // A user taken over has to pass the rules for a new one.
            None if matches!(name, Name::Email(address) if Email::parse(address).is_err()) => return None,
            None => None,
            Some(Credentials { user, password_hash: None, external_id: Some(id) }) if !user.disabled => {
                Some((user.clone(), id.clone()))
            }
            Some(_) => return None,
        };
        Some(Stranger { legacy, typed, name, password, imported })
    }

    /// Asks the old system.
    pub(super) async fn ask_about(&self, stranger: &Stranger<'_>) -> Answer {
        stranger.legacy.ask(stranger.typed, stranger.password, self.cause.request_id()).await
    }

    /// Takes the user over, if the old system has answered that they are one of its own.
    pub(super) async fn take_over(
        &self,
        stranger: &Stranger<'_>,
        answer: Answer,
        now: OffsetDateTime,
        rng: &mut impl CryptoRng,
    ) -> Result<Option<User>, Error> {
        let (outcome, user) = match answer {
            Answer::Nobody => (LegacyOutcome::Refused, None),
            Answer::Failed => (LegacyOutcome::Failed, None),
            Answer::NotAsked => (LegacyOutcome::NotAsked, None),
            Answer::User(fields) => match self.make_ours(stranger, fields, now, rng).await? {
                Ok(user) => {
                    tracing::info!(user_id = %user.id, "taken over from the old system");
                    (LegacyOutcome::TakenOver, Some(user))
                }
                Err(Unfit::Disabled) => (LegacyOutcome::Refused, None),
                Err(reason) => {
                    tracing::warn!(%reason, "a user of the old system cannot be taken over");
                    (LegacyOutcome::Failed, None)
                }
            },
        };
        self.parts.metrics.legacy_login(outcome);
        Ok(user)
    }

    async fn make_ours(
        &self,
        stranger: &Stranger<'_>,
        fields: Map<String, Value>,
        now: OffsetDateTime,
        rng: &mut impl CryptoRng,
    ) -> Result<Result<User, Unfit>, Error> {
        let checked = match import::check_without_hash(fields, now) {
            Ok(checked) => checked,
            Err(reason) => return Ok(Err(Unfit::Invalid(reason))),
        };
        if let Err(unfit) = stranger.is(&checked) {
            return Ok(Err(unfit));
        }
        let hash = self.parts.passwords.hash(stranger.password, random::bytes(rng)).await?;
        // The service does this by itself, on the old system's word.
        let cause = self.cause.by(&Actor::Service);
        let db = &self.parts.db;
        let made = match &stranger.imported {
            Some((user, _)) => {
                let set_at = Some(user.password_changed_at);
                let ours = self.caused_by(cause);
                if ours.replace_password(user.id, &hash, set_at, Which::All, now).await?.is_some() {
                    let reading = db.read(async |mut conn| users::by_id(&mut conn, user.id).await);
                    Some(reading.await?.ok_or(Error::InvalidCredentials)?)
                } else {
                    None
                }
            }
            None => {
                let id = random::uuid_v7(checked.created_at, rng);
                let new = import::new_user(id, &checked, Some(&hash), now);
                match db.write(async |mut conn| users::insert(&mut conn, &new, &cause).await).await {
                    Ok(user) => Some(user),
                    Err(store::Error::Taken(_)) => None,
                    Err(error) => return Err(error.into()),
                }
            }
        };
        match made {
            Some(user) => Ok(Ok(user)),
            None => self.overtaken(stranger).await,
        }
    }

    /// Handles losing a race. If the winner was another request of the same user, they log in to the account that it
    /// made.
    async fn overtaken(&self, stranger: &Stranger<'_>) -> Result<Result<User, Unfit>, Error> {
        let reading =
            self.parts.db.read(async |mut conn| match users::by_name(&mut conn, stranger.name).await? {
                Some(user) => users::credentials(&mut conn, user.id).await,
                None => Ok(None),
            });
        let found = reading.await?;
        let Some(Credentials { user, password_hash: Some(stored), .. }) =
            found.filter(|found| !found.user.disabled)
        else {
            return Ok(Err(Unfit::Taken));
        };
        let verdict = self.parts.passwords.verify(stranger.password, Some(&stored)).await?;
        Ok(if is_match(verdict, user.id) { Ok(user) } else { Err(Unfit::Taken) })
    }
}

impl Stranger<'_> {
    /// Compares the user in the answer with the one who was asked about: a confused system must not hand out other
    /// people's accounts.
    fn is(&self, answered: &Checked) -> Result<(), Unfit> {
        let name = match (self.name, &self.imported) {
            (Name::Email(_), _) => answered.email.as_str(),
            // Such a user keeps the name that they have here; their external id identifies them in the old system.
            (Name::Username(_), Some((user, _))) if answered.is_username_made => &user.username,
            (Name::Username(_), _) => answered.username.as_str(),
        };
        if normalised(name) != normalised(self.typed) {
            return Err(Unfit::Another);
        }
        if let Some((_, external_id)) = &self.imported
            && answered.external_id.as_ref() != Some(external_id)
        {
            return Err(Unfit::Another);
        }
        if answered.disabled == Some(true) { Err(Unfit::Disabled) } else { Ok(()) }
    }
}
