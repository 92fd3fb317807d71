//! One user as another system has changed them: `PUT /admin/users/by-external-id/{id}`. The rules are those for a line
//! of a file.

use rand_core::CryptoRng;
use serde::Serialize;
use serde_json::{Map, Value};
use time::OffsetDateTime;

use super::{
    Object, Original, Rules,
    merge::{Denied, Done, MAX_CONFLICTS, Ready, write},
    own,
};
use crate::{
    account::{Accounts, Error, User},
    password::foreign::Imported,
    random,
    store::{self, imports, users},
};

/// What was done with the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The user is new.
    Created,
    /// The user existed and was changed.
    Updated,
    /// The user existed and stays the same: the record is not newer, or says nothing new.
    Unchanged,
}

impl Accounts {
    /// Makes the user with the id `external_id` in another system match `record`, which is in this service's own
    /// format. Creates the user, or changes an existing one as an import does. The record may give the role `admin`.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] with everything that breaks a rule, [`Error::UsernameTaken`], [`Error::EmailTaken`],
    /// [`Error::LastAdmin`], [`Error::NotAdministrator`]; [`Error::Overloaded`] when there is no room to wrap a fast
    /// hash. If a record is refused for its address, its roles and `disabled` are still taken over.
    pub async fn put(
        &self,
        external_id: &str,
        mut record: Map<String, Value>,
        now: OffsetDateTime,
        rng: &mut impl CryptoRng,
    ) -> Result<(User, Outcome), Error> {
        let given = record.insert("external_id".to_owned(), external_id.into());
        let (peppers, params) = (self.parts.passwords.peppers().clone(), *self.parts.passwords.params());
        let rules = Rules::ours(peppers, Some(params), true, now);
        let mut object = Object::new(&record, false);
        if given.is_some_and(|given| !given.is_null() && given != external_id) {
            object.refuse("external_id", "mismatch", "differs from the one in the URL");
        }
        let draft = own::draft(&mut object, &rules);
        let mut user = Box::new(draft.check(object, &rules).map_err(Error::Invalid)?);
        let password = match user.password.take() {
            Some(Imported::Keep(hash)) => Some(hash),
            Some(Imported::Wrap(fast)) => Some(self.parts.passwords.wrap(fast, random::bytes(rng)).await?),
            None => None,
        };
        let id = random::uuid_v7(user.created_at, rng);
        let ready = Ready { id, number: 1, original: Original::Object(record), user, password };
        let mut attempts = 0;
        let put = loop {
            match self.put_once(external_id, &ready, now).await {
                // Another request was first with one of the names, perhaps with this very user.
                Err(store::Error::Taken(_) | store::Error::Conflict(_)) if attempts < MAX_CONFLICTS => {
                    attempts += 1;
                }
                done => break done?,
            }
        };
        if matches!(put, Ok((_, Outcome::Updated)) | Err(Error::EmailTaken)) {
            self.tell_revocations().await;
        }
        let (user, outcome) = put?;
        tracing::info!(user_id = %user.id, ?outcome, "user put by external id");
        Ok((user, outcome))
    }

    async fn put_once(
        &self,
        external_id: &str,
        ready: &Ready,
        now: OffsetDateTime,
    ) -> Result<Result<(User, Outcome), Error>, store::Error> {
        let mut conn = self.parts.db.acquire().await?;
        let mut transaction = imports::begin_one(&mut conn, external_id, &self.cause).await?;
        let done = write(&mut transaction, std::slice::from_ref(ready), None, now, &self.cause).await?;
        if let Some((_, denied)) = done.refused.first() {
            imports::end(transaction, true).await?;
            return Ok(Err(match denied {
                Denied::UsernameTaken => Error::UsernameTaken,
                Denied::EmailTaken => Error::EmailTaken,
                Denied::LastAdmin => Error::LastAdmin,
            }));
        }
        let outcome = match done {
            Done { created, .. } if !created.is_empty() => Outcome::Created,
            Done { updated: 1, .. } => Outcome::Updated,
            Done { .. } => Outcome::Unchanged,
        };
        let Some(user) = users::by_external_id(&mut transaction, external_id).await? else {
            return Ok(Err(Error::Contended));
        };
        imports::end(transaction, true).await?;
        Ok(Ok((user, outcome)))
    }
}
