//! The feed: what was revoked, from Postgres into the memory of every replica.
//!
//! Triggers write a row for each session that ends and each user whose roles change (`store::revocations`), and notify.
//! [`Feed::follow`] reads the new rows when it is notified, and twice a second in any case: a notification that gets lost,
//! or a pooler through which none comes, costs half a second and nothing else. The replica that revokes
//! something reads at once ([`Feed::hear`]), before it answers.
//!
//! A request reads memory alone ([`Revocations`]). A replica that cannot read the feed for `REVOCATION_MAX_STALENESS`
//! refuses every bearer token rather than guess, and takes them again with the next reading.
//!
//! Services that verify tokens by themselves get the same rows from a [`Publisher`].
//!
//! ```text
//! UPDATE sessions … ── trigger ──▶ revocations ──▶ Feed::hear ──▶ Revocations ◀── check ── every request
//!                          └─────── NOTIFY ─────────▲   ▲ twice a second
//! ```

mod publisher;

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use time::OffsetDateTime;
use tokio::{
    sync::{Mutex, watch},
    time::{Instant, sleep},
};

pub use self::publisher::{Cursor, InvalidCursor, Page, PublishError, Publisher};
pub use crate::store::revocations::Revocation;
use crate::{
    chain,
    clock::{self, Clock},
    metrics::Metrics,
    store::{
        self, PgPool,
        revocations::{self, Position},
        within,
    },
    token::{Revocations, UserRoles},
};

/// How often the feed is read without being notified. Twice within the second that a revocation may take.
const POLL: Duration = Duration::from_millis(500);
/// How long one statement of a reading, or the wait for its connection, may take before it counts as failed. Not the whole
/// reading: after a flood that may take longer, and given up it would have to begin anew, for ever.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long to leave a connection that listens alone after it was lost.
const LISTEN_REST: Duration = Duration::from_secs(1);
/// How many rows come with one statement.
const PAGE: i64 = 10_000;
/// How often what has expired is forgotten.
const FORGET_EVERY: Duration = Duration::from_secs(10);
/// How far the wall clock may run from the one that only goes forward before it counts as set.
const CLOCK_TOLERANCE: time::Duration = time::Duration::seconds(1);

/// The feed of one replica.
#[derive(Clone, Debug)]
pub struct Feed(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    db: PgPool,
    /// Whether there is a way for notifications.
    listens: bool,
    clock: Clock,
    metrics: Metrics,
    revocations: Arc<Revocations>,
    /// How often somebody has wanted a reading.
    wanted: AtomicU64,
    reading: Mutex<Reading>,
    /// Changes with each reading that brought something.
    news: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Reading {
    /// Where the next one begins; `None`: at the beginning of all.
    since: Option<Position>,
    /// When it began, by the clock that only goes forward.
    began_at: Option<Duration>,
    /// What the wall clock said, less what the one said that only goes forward.
    clock_offset: Option<OffsetDateTime>,
    /// How many of those who wanted a reading have got it.
    served: u64,
}

impl Feed {
    /// A feed that has read nothing yet: until the first [`hear`](Self::hear), every token is refused. It `listens` unless
    /// a pooler stands in between that gives each transaction another connection.
    pub fn new(db: PgPool, listens: bool, clock: Clock, max_staleness: Duration, metrics: Metrics) -> Self {
        Self(Arc::new(Inner {
            db,
            listens,
            clock,
            metrics,
            revocations: Arc::new(Revocations::new(max_staleness)),
            wanted: AtomicU64::new(0),
            reading: Mutex::default(),
            news: watch::Sender::default(),
        }))
    }

    /// What has been read.
    pub fn revocations(&self) -> &Arc<Revocations> {
        &self.0.revocations
    }

    /// For how long nothing has been read, when that is longer than it may be.
    pub fn staleness(&self) -> Option<Duration> {
        self.0.revocations.staleness(self.0.clock.elapsed())
    }

    /// Changes whenever something has been revoked.
    pub fn news(&self) -> watch::Receiver<()> {
        self.0.news.subscribe()
    }

    /// How many wait for news at the moment.
    pub fn readers(&self) -> usize {
        self.0.news.receiver_count()
    }

    /// Reads what has been committed until now. Of many who call at once, one reads for all that came before it began.
    ///
    /// # Errors
    ///
    /// When the database fails; what was known stays.
    pub async fn hear(&self) -> Result<(), store::Error> {
        let inner = &self.0;
        let ticket = inner.wanted.fetch_add(1, Ordering::SeqCst);
        let mut reading = inner.reading.lock().await;
        if ticket < reading.served {
            return Ok(());
        }
        let wanted = inner.wanted.load(Ordering::SeqCst);
        self.read(&mut reading).await?;
        reading.served = wanted;
        Ok(())
    }

    async fn read(&self, reading: &mut Reading) -> Result<(), store::Error> {
        let Inner { db, clock, metrics, revocations, news, .. } = &*self.0;
        let (now, began_at) = (clock.now(), clock.elapsed());
        // A clock that was set, or a machine that slept: what was passed over or forgotten as expired may not be.
        let offset = now - began_at;
        let was_set = reading.clock_offset.is_some_and(|known| (offset - known).abs() > CLOCK_TOLERANCE);
        let mut conn = within(PATIENCE, db.acquire()).await?;
        let position = within(PATIENCE, revocations::position(&mut conn)).await?;
        // Another server, or this one after a crash, may have lost the last changes of roles, and give their numbers again:
        // they count anew.
        let is_other_server = reading.since.as_ref().is_some_and(|since| !since.is_comparable(&position));
        let since = reading.since.as_ref().filter(|_| !was_set && !is_other_server);
        let mut anew = is_other_server.then(UserRoles::default);
        let mut last = None;
        let mut is_news = false;
        loop {
            let page = within(PATIENCE, revocations::page(&mut conn, since, last, now, PAGE)).await?;
            let is_last = page.len() < usize::try_from(PAGE).unwrap_or(usize::MAX);
            is_news |= !page.is_empty();
            last = page.last().map(Revocation::place);
            for row in page {
                take(revocations, anew.as_mut(), row);
            }
            if is_last {
                break;
            }
        }
        if let Some(roles) = anew {
            revocations.replace_roles(roles);
        }
        // What came now, the reading before did not see: it was committed later. (The first reading tells nothing.)
        if is_news && let Some(before) = reading.began_at {
            metrics.revocations_heard(clock.elapsed().saturating_sub(before));
        }
        *reading = Reading {
            since: Some(position),
            began_at: Some(began_at),
            clock_offset: Some(offset),
            ..*reading
        };
        revocations.heard(began_at);
        if is_news {
            news.send_replace(());
        }
        Ok(())
    }

    /// Reads the feed for as long as it is polled: when it is notified, and twice a second in any case.
    pub async fn follow(&self) {
        let (notify, mut notified) = watch::channel(());
        let reading = async {
            let mut ticks = clock::every(POLL);
            let mut was_heard = true;
            let mut forgotten = Instant::now();
            loop {
                tokio::select! {
                    _ = ticks.tick() => {}
                    // The sender lives as long as this does.
                    _ = notified.changed() => {}
                }
                let heard = self.hear().await;
                // Once when it begins and once when it ends, not twice a second.
                match &heard {
                    Err(error) if was_heard => {
                        tracing::error!(error = chain::cause(error), "the revocations cannot be read");
                    }
                    Ok(()) if !was_heard => tracing::info!("the revocations can be read again"),
                    _ => {}
                }
                was_heard = heard.is_ok();
                if forgotten.elapsed() >= FORGET_EVERY {
                    forgotten = Instant::now();
                    self.0.revocations.forget_expired(self.0.clock.now());
                }
            }
        };
        tokio::join!(self.listen(&notify), reading);
    }

    /// Passes every notification on, where they come.
    async fn listen(&self, notify: &watch::Sender<()>) {
        if !self.0.listens {
            return;
        }
        loop {
            let lost: Result<Infallible, store::Error> = async {
                let mut listener = revocations::listen(&self.0.db).await?;
                loop {
                    // At first too: what was revoked before, nobody tells.
                    notify.send_replace(());
                    listener.notified().await?;
                }
            }
            .await;
            let Err(error) = lost;
            tracing::debug!(%error, "no notifications of revocations; polling goes on");
            sleep(LISTEN_REST).await;
        }
    }
}

/// Takes what the row says; of roles into `anew`, where they are told anew.
fn take(revocations: &Revocations, anew: Option<&mut UserRoles>, row: Revocation) {
    if let Some(session_id) = row.session_id {
        revocations.end_session(session_id, row.expires_at);
    }
    if let Some(user_id) = row.user_id {
        let roles = row.roles.unwrap_or_default();
        match anew {
            Some(anew) => anew.change(user_id, roles, row.id, row.expires_at),
            None => revocations.change_roles(user_id, roles, row.id, row.expires_at),
        }
    }
}
