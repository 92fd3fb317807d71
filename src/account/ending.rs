//! How sessions are ended early, by their user or by an administrator, and what follows from it.

use std::time::Duration;

use time::OffsetDateTime;
use tracing::field::display;
use uuid::Uuid;

use super::{Accounts, Error, Overview};
use crate::{
    chain,
    store::{
        self,
        sessions::{self, EndReason, Which},
    },
    token::refresh::Presented,
};

/// How many sessions of a user are shown at most.
const MAX_SHOWN: i64 = 1000;
/// How many open sessions a user may have, approximately. Anyone who has a user's password could otherwise begin so
/// many that no statement could end them all within its timeout: neither a new password nor an administrator would get
/// rid of them.
const MAX_SESSIONS: i64 = 4000;
/// How long the answer to a revocation waits until this replica has read it back.
const READ_BACK_PATIENCE: Duration = Duration::from_secs(2);

impl Accounts {
    /// The open sessions of a user, those used last first, up to a thousand.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn sessions(&self, user_id: Uuid, now: OffsetDateTime) -> Result<Vec<Overview>, Error> {
        let db = &self.parts.db;
        let reading = db.read(async |mut conn| sessions::of_user(&mut conn, user_id, now, MAX_SHOWN).await);
        Ok(reading.await?)
    }

    /// Logs a user out of one session. A session that has already ended stays as it is.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn log_out(&self, user_id: Uuid, session_id: Uuid, now: OffsetDateTime) -> Result<(), Error> {
        self.end_sessions(user_id, Which::One(session_id), EndReason::Logout, now).await?;
        Ok(())
    }

    /// Ends one session of a user.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchSession`] when the session is not the user's or has ended.
    pub async fn revoke_session(
        &self,
        user_id: Uuid,
        session_id: Uuid,
        now: OffsetDateTime,
    ) -> Result<(), Error> {
        match self.end_sessions(user_id, Which::One(session_id), EndReason::Revoked, now).await? {
            0 => Err(Error::NoSuchSession),
            _ => Ok(()),
        }
    }

    /// The user and the session that an authentic refresh token belongs to, whatever its generation.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn session_of(&self, refresh_token: &str) -> Result<Option<(Uuid, Uuid)>, Error> {
        let Some(presented) = Presented::parse(refresh_token) else { return Ok(None) };
        let id = presented.session_id;
        let row = self.parts.db.read(async |mut conn| sessions::by_id(&mut conn, id).await).await?;
        let row = row.filter(|row| self.parts.refresh_keys.is_authentic(&presented, &row.refresh_salt));
        Ok(row.map(|row| (row.user_id, row.id)))
    }

    /// Ends all sessions of a user, or all but `keep`. Returns how many it ended.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn revoke_sessions(
        &self,
        user_id: Uuid,
        keep: Option<Uuid>,
        now: OffsetDateTime,
    ) -> Result<u64, Error> {
        self.end_sessions(user_id, keep.map_or(Which::All, Which::AllBut), EndReason::Revoked, now).await
    }

    /// Ends the sessions of a user beyond [`MAX_SESSIONS`]: those that have been unused for longest.
    pub(super) async fn end_surplus(&self, user_id: Uuid, now: OffsetDateTime) {
        if let Err(error) =
            self.end_sessions(user_id, Which::Beyond(MAX_SESSIONS), EndReason::Revoked, now).await
        {
            tracing::warn!(%user_id, error = chain::cause(&error), "a user's sessions could not be counted");
        }
    }

    async fn end_sessions(
        &self,
        user_id: Uuid,
        which: Which,
        reason: EndReason,
        now: OffsetDateTime,
    ) -> Result<u64, Error> {
        let (db, cause) = (&self.parts.db, self.cause.or_user(user_id));
        let ending =
            db.write(async |mut conn| sessions::end(&mut conn, user_id, which, reason, now, &cause).await);
        let ended = ending.await?;
        if ended > 0 {
            self.tell_revocations().await;
            let (session_id, kept) = match which {
                Which::One(id) | Which::OneAt(id, _) => (Some(display(id)), None),
                Which::AllBut(id) => (None, Some(display(id))),
                Which::All | Which::Beyond(_) => (None, None),
            };
            let reason = display(reason.as_str());
            tracing::info!(%user_id, session_id, kept, reason, ended, "sessions ended");
        }
        Ok(ended)
    }

    /// Makes this replica refuse what was just revoked. The revocation is committed, and the other replicas learn of it
    /// by themselves. So does this one, should the database be unavailable at this very moment.
    /// The client does not wait for that: it would be told that its request was abandoned.
    pub(super) async fn tell_revocations(&self) {
        if let Some(feed) = &self.parts.feed
            && let Err(error) = store::within(READ_BACK_PATIENCE, feed.hear()).await
        {
            tracing::warn!(error = chain::cause(&error), "what was revoked could not be read back at once");
        }
    }
}
