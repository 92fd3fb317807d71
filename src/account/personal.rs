//! A user's export of everything that is stored about them (GDPR, articles 15 and 20). It is read page by page, so that
//! neither a long history nor a slow reader ties up memory or a connection.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Semaphore, SemaphorePermit};
use uuid::Uuid;

use super::{Accounts, Error, User};
use crate::store::{
    history::{self, Entry, Filter},
    sessions::{self, Stored},
    users::{self, Particulars},
};

/// How many rows are in memory at once.
const PAGE: usize = 100;
/// How many exports one replica has under way at most: each holds some pages in memory for as long as its reader takes.
const MAX_EXPORTS: usize = 64;
/// How many of them may query the database at once, since other requests need it too.
const MAX_QUERIES: usize = 2;

/// The exports under way.
#[derive(Clone, Debug)]
pub(super) struct Exports(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    users: Mutex<HashSet<Uuid>>,
    queries: Semaphore,
}

impl Default for Exports {
    fn default() -> Self {
        Self(Arc::new(Inner { users: Mutex::default(), queries: Semaphore::new(MAX_QUERIES) }))
    }
}

impl Exports {
    fn users(&self) -> MutexGuard<'_, HashSet<Uuid>> {
        // Each change is a single call, so a panic cannot leave one half done.
        self.0.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // The only error is that the semaphore is closed, and it never is.
        self.0.queries.acquire().await.ok()
    }

    /// Takes a place for a user's export. Each user has at most one export at a time.
    fn take(&self, user_id: Uuid) -> Option<Place> {
        let mut users = self.users();
        let is_taken = users.len() < MAX_EXPORTS && users.insert(user_id);
        is_taken.then(|| Place { exports: self.clone(), user_id })
    }
}

/// One of the places for exports; given back when dropped.
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

/// What is stored about a user. Each page is read when it is asked for and shows the state at that time. Changes made
/// after the first page of the history was read are not included.
#[derive(Debug)]
pub struct PersonalData {
    accounts: Accounts,
    place: Place,
    /// The user.
    pub user: User,
    /// The user's data that others are not shown.
    pub particulars: Particulars,
    sessions_after: Option<Uuid>,
    changes_before: Option<i64>,
}

impl Accounts {
    /// Begins an export for the user of a bearer token.
    ///
    /// # Errors
    ///
    /// [`Error::ExportUnderWay`] when this replica is already at an export of theirs, or at as many exports as it may;
    /// [`Error::UserGone`] when the user has been disabled or deleted.
    pub async fn personal_data(&self, user_id: Uuid) -> Result<PersonalData, Error> {
        let place = self.exports.take(user_id).ok_or(Error::ExportUnderWay)?;
        let user = self.profile(user_id).await?;
        let db = &self.parts.db;
        let particulars = db.read(async |mut conn| users::particulars(&mut conn, user_id).await).await?;
        Ok(PersonalData {
            accounts: self.clone(),
            place,
            user,
            particulars: particulars.ok_or(Error::UserGone)?,
            sessions_after: Some(Uuid::nil()),
            changes_before: Some(i64::MAX),
        })
    }
}

impl PersonalData {
    /// The next page of sessions, oldest first, including ended ones. Empty after the last page.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn sessions(&mut self) -> Result<Vec<Stored>, Error> {
        let Some(after) = self.sessions_after else { return Ok(Vec::new()) };
        let _turn = self.place.exports.turn().await;
        let (db, user_id) = (&self.accounts.parts.db, self.user.id);
        let reading =
            db.read(async |mut conn| sessions::stored(&mut conn, user_id, after, PAGE as i64).await);
        let page = reading.await?;
        self.sessions_after = page.last().filter(|_| page.len() == PAGE).map(|last| last.overview.id);
        Ok(page)
    }

    /// The next page of the account's history, newest first. Empty after the last page.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn changes(&mut self) -> Result<Vec<Entry>, Error> {
        let Some(before) = self.changes_before else { return Ok(Vec::new()) };
        let filter = Filter { user_id: Some(self.user.id), before_id: Some(before), ..Filter::default() };
        let _turn = self.place.exports.turn().await;
        let db = &self.accounts.parts.db;
        let page = db.read(async |mut conn| history::page(&mut conn, &filter, PAGE as i64).await).await?;
        self.changes_before = page.last().filter(|_| page.len() == PAGE).map(|last| last.id);
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_are_limited_to_one_per_user_and_a_few_overall() {
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
