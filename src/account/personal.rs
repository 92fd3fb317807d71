//! A user takes along all that is stored of them (GDPR, articles 15 and 20): page by page, so that neither a long history
//! nor a slow reader holds memory or a connection.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use uuid::Uuid;

use super::{Accounts, Error, User};
use crate::store::{
    history::{self, Entry, Filter},
    sessions::{self, Stored},
    users::{self, Particulars},
};

/// How many rows are in memory at once.
const PAGE: usize = 200;
/// How many exports there may be at once on one replica: each is at most one query after the other.
const MAX_EXPORTS: usize = 8;

/// Whose exports are under way.
#[derive(Clone, Debug, Default)]
pub(super) struct Exports(Arc<Mutex<HashSet<Uuid>>>);

impl Exports {
    fn users(&self) -> MutexGuard<'_, HashSet<Uuid>> {
        // Nothing is ever half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The place of a user, of whom there is one export at a time.
    fn take(&self, user_id: Uuid) -> Option<Place> {
        let mut users = self.users();
        let is_taken = users.len() < MAX_EXPORTS && users.insert(user_id);
        is_taken.then(|| Place { exports: self.clone(), user_id })
    }
}

/// Given back when dropped.
#[derive(Debug)]
struct Place {
    exports: Exports,
    user_id: Uuid,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.exports.users().remove(&self.user_id);
    }
}

/// What is stored of a user. Each page is read when it is asked for, and is as things are then; of the history there is
/// nothing that comes after its first page.
#[derive(Debug)]
pub struct PersonalData {
    accounts: Accounts,
    _place: Place,
    /// The user.
    pub user: User,
    /// What others do not get to see with them.
    pub particulars: Particulars,
    sessions_after: Option<Uuid>,
    changes_before: Option<i64>,
}

impl Accounts {
    /// Begins to give the user of a bearer token what is stored of them.
    ///
    /// # Errors
    ///
    /// [`Error::ExportUnderWay`] when this replica is at an export of theirs, or at as many as it may;
    /// [`Error::SessionRevoked`] when the user has been disabled or deleted.
    pub async fn personal_data(&self, user_id: Uuid) -> Result<PersonalData, Error> {
        let place = self.exports.take(user_id).ok_or(Error::ExportUnderWay)?;
        let user = self.profile(user_id).await?;
        let particulars = users::particulars(&mut *self.conn().await?, user_id).await?;
        Ok(PersonalData {
            accounts: self.clone(),
            _place: place,
            user,
            particulars: particulars.ok_or(Error::SessionRevoked)?,
            sessions_after: Some(Uuid::nil()),
            changes_before: Some(i64::MAX),
        })
    }
}

impl PersonalData {
    /// The next sessions, oldest first, ended ones too; none: those were all.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn sessions(&mut self) -> Result<Vec<Stored>, Error> {
        let Some(after) = self.sessions_after else { return Ok(Vec::new()) };
        let mut conn = self.accounts.conn().await?;
        let page = sessions::stored(&mut conn, self.user.id, after, PAGE as i64).await?;
        self.sessions_after = page.last().filter(|_| page.len() == PAGE).map(|last| last.overview.id);
        Ok(page)
    }

    /// What has happened to the account next, newest first; none: that was all.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn changes(&mut self) -> Result<Vec<Entry>, Error> {
        let Some(before) = self.changes_before else { return Ok(Vec::new()) };
        let filter = Filter { user_id: Some(self.user.id), before_id: Some(before), ..Filter::default() };
        let page = history::page(&mut *self.accounts.conn().await?, &filter, PAGE as i64).await?;
        self.changes_before = page.last().filter(|_| page.len() == PAGE).map(|last| last.id);
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_user_there_is_one_export_at_a_time_and_of_all_a_few() {
        let exports = Exports::default();
        let alice = exports.take(Uuid::from_u128(1)).unwrap();
        assert!(exports.take(Uuid::from_u128(1)).is_none());
        drop(alice);
        let mut all: Vec<_> =
            (0..MAX_EXPORTS as u128).map(|id| exports.take(Uuid::from_u128(id)).unwrap()).collect();
        assert!(exports.take(Uuid::from_u128(99)).is_none());
        all.pop();
        assert!(exports.take(Uuid::from_u128(99)).is_some());
    }
}
