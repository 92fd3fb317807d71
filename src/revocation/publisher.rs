//! The feed for services that verify tokens themselves: in pages, each with a cursor that any replica understands.

use std::{str::FromStr, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use tokio::{pin, sync::Semaphore, time::sleep};

use super::{Feed, PATIENCE, Revocation};
use crate::store::{
    self, PgPool,
    revocations::{self, Place, Position},
};

/// The maximum number of rows in a page.
const PAGE: i64 = 5_000;
/// How many readers there may be at once, and how many of them may query the database at once. A revocation wakes all
/// of them, and they must leave connections for everyone else.
const MAX_READERS: usize = 1_000;
const MAX_READING: usize = 2;
/// How long a row is still given out after the last token that it concerns has expired, in case the reader's clock or
/// ours is wrong.
const CLOCK_ERROR: time::Duration = time::Duration::HOUR;

/// Gives external readers what was revoked.
///
/// Each page is read from the database, where all replicas see the same; the replica's own [`Feed`] only says when it
/// is worth looking. A reader that waits holds no connection.
#[derive(Debug)]
pub struct Publisher {
    feed: Feed,
    db: PgPool,
    places: Semaphore,
    reading: Semaphore,
}

/// A page for an external reader.
#[derive(Debug)]
pub struct Page {
    /// The rows, some of which the reader may have had before.
    pub rows: Vec<Revocation>,
    /// Where the next page begins.
    pub next: Cursor,
    /// Whether there are more rows already, revoked before this page was asked for.
    pub more: bool,
    /// Whether this page starts from the very beginning, and changes of roles may be numbered anew.
    pub reset: bool,
}

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// This replica does not hear of revocations, so waiting for one would be in vain.
    #[error("the revocations are stale")]
    Stale,
    /// The maximum number of readers are waiting already.
    #[error("too many readers")]
    Crowded,
    /// The database failed.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Publisher {
    /// A publisher that reads from `db` when `feed` has news.
    pub fn new(feed: Feed, db: PgPool) -> Self {
        Self { feed, db, places: Semaphore::new(MAX_READERS), reading: Semaphore::new(MAX_READING) }
    }

    /// What was revoked after `cursor`, at once if there is anything. Without a cursor, or with one from a server that
    /// is gone or has crashed since, that is everything that concerns live tokens. If there is nothing new, waits for
    /// news until `wait` is over or `cut_short` resolves. Everything that was committed before the call is in this page
    /// or comes with the next ones.
    ///
    /// # Errors
    ///
    /// See [`PublishError`].
    pub async fn after(
        &self,
        cursor: Option<Cursor>,
        wait: Duration,
        cut_short: impl Future<Output = ()>,
    ) -> Result<Page, PublishError> {
        if self.feed.staleness().is_some() {
            return Err(PublishError::Stale);
        }
        let _place = self.places.try_acquire().map_err(|_| PublishError::Crowded)?;
        // Subscribe before the first read, so that everything after it counts as news.
        let mut news = self.feed.news();
        let waits = cursor.is_some() && !wait.is_zero();
        let mut page = self.read(cursor).await?;
        let over = sleep(wait);
        pin!(over, cut_short);
        while waits && page.rows.is_empty() && !page.reset {
            let is_over = tokio::select! {
                Ok(()) = news.changed() => false,
                () = &mut over => true,
                () = &mut cut_short => true,
            };
            // Read at the end of the wait, too, so that an empty page means that there is nothing now.
            page = self.read(Some(page.next)).await?;
            if is_over {
                break;
            }
        }
        Ok(page)
    }

    async fn read(&self, cursor: Option<Cursor>) -> Result<Page, store::Error> {
        let _turn = self.reading.acquire().await.expect("the semaphore is never closed");
        store::within(PATIENCE, self.read_at_once(cursor)).await
    }

    async fn read_at_once(&self, cursor: Option<Cursor>) -> Result<Page, store::Error> {
        let mut conn = self.db.acquire().await?;
        let here = revocations::position(&mut conn).await?;
        let cursor = cursor.filter(|cursor| cursor.position().is_comparable(&here));
        let reset = cursor.is_none();
        let (since, until, after) = match cursor {
            None => (None, here, None),
            Some(Cursor::Past(since)) => (Some(since), here, None),
            Some(Cursor::Amid { since, until, after }) => (since, until, Some(after)),
        };
        let alive_at = self.feed.0.clock.now() - CLOCK_ERROR;
        let rows = revocations::page(&mut conn, since.as_ref(), after, alive_at, PAGE).await?;
        let is_full = rows.len() >= usize::try_from(PAGE).unwrap_or(usize::MAX);
        let next = match rows.last().filter(|_| is_full) {
            Some(last) => Cursor::Amid { since, until, after: last.place() },
            None => Cursor::Past(until),
        };
        Ok(Page { rows, next, more: is_full, reset })
    }
}

/// How far an external reader has come. Its text form is opaque to the reader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cursor {
    /// The reader knows everything that had been committed at this position.
    Past(Position),
    /// Of what was committed between the two positions, the reader knows the rows up to `after`.
    Amid {
        /// The first position; `None` means the very beginning.
        since: Option<Position>,
        /// The second position, which becomes the next `Past`.
        until: Position,
        /// The last row of the previous page.
        after: Place,
    },
}

impl Cursor {
    fn position(&self) -> &Position {
        match self {
            Self::Past(position) | Self::Amid { until: position, .. } => position,
        }
    }
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let json = serde_json::to_vec(self).map_err(|_| std::fmt::Error)?;
        f.write_str(&URL_SAFE_NO_PAD.encode(json))
    }
}

/// The text is not one of our cursors.
#[derive(Debug, thiserror::Error)]
#[error("not a cursor")]
pub struct InvalidCursor;

impl FromStr for Cursor {
    type Err = InvalidCursor;

    fn from_str(text: &str) -> Result<Self, InvalidCursor> {
        let json = URL_SAFE_NO_PAD.decode(text).map_err(|_| InvalidCursor)?;
        let cursor: Self = serde_json::from_slice(&json).map_err(|_| InvalidCursor)?;
        match &cursor {
            Self::Amid { after, .. } if after.xid < 0 => Err(InvalidCursor),
            _ => Ok(cursor),
        }
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;

    fn position(snapshot: &str) -> Position {
        let at = |micros| OffsetDateTime::UNIX_EPOCH + time::Duration::microseconds(micros);
        Position {
            snapshot: snapshot.to_owned().try_into().unwrap(),
            server_started_at: at(1_767_323_045_678_901),
            statistics_began_at: at(1_767_323_045_678_902),
        }
    }

    #[test]
    fn a_cursor_is_read_back_from_its_text() {
        let (since, until) = (position("731:735:733"), position("740:740:"));
        for cursor in [
            Cursor::Past(until.clone()),
            Cursor::Amid { since: None, until: until.clone(), after: Place { xid: 734, id: 1 } },
            Cursor::Amid { since: Some(since), until, after: Place { xid: 734, id: i64::MAX } },
        ] {
            let text = cursor.to_string();
            assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)), "{text}");
            assert_eq!(text.parse::<Cursor>().unwrap(), cursor);
        }
    }

    #[test]
    fn invalid_cursors_are_refused() {
        let good = Cursor::Past(position("731:735:733")).to_string();
        let json = String::from_utf8(URL_SAFE_NO_PAD.decode(&good).unwrap()).unwrap();
        let negative = Cursor::Amid { since: None, until: position("1:1:"), after: Place { xid: -1, id: 1 } };
        for text in [
            String::new(),
            "x".into(),
            format!("{good}="),
            good[1..].to_owned(),
            json.clone(),
            URL_SAFE_NO_PAD.encode("null"),
            URL_SAFE_NO_PAD.encode(json.replace("733", "736")),
            URL_SAFE_NO_PAD.encode(json.replace("Past", "Present")),
            negative.to_string(),
        ] {
            assert!(text.parse::<Cursor>().is_err(), "{text}");
        }
    }
}
