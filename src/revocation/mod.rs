//! The feed brings what was revoked from Postgres into the memory of every replica.
//!
//! Triggers write a row for each session that ends and each user whose roles change (`store::revocations`), and notify.
//! [`Feed::follow`] reads the new rows when it is notified, and twice a second in any case: a lost notification, or a
//! pooler that passes none on, costs half a second and nothing else. The replica that revokes something reads the feed
//! itself ([`Feed::hear`]) before it answers.
//!
//! Requests read only memory ([`Revocations`]). A replica that cannot read the feed for `REVOCATION_MAX_STALENESS`
//! refuses every bearer token rather than guess, and accepts tokens again after the next successful reading.
//!
//! Services that verify tokens themselves get the same rows from a [`Publisher`].
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

/// How often the feed is read without a notification: twice within the second that a revocation may take.
const POLL: Duration = Duration::from_millis(500);
/// How long one statement of a reading, or the wait for its connection, may take before it counts as failed. This does
/// not limit the whole reading: after a flood a reading may take longer, and if it were given up it would start over
/// each time and never finish.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait after losing the listening connection before opening another.
const LISTEN_REST: Duration = Duration::from_secs(1);
/// How many rows one statement reads.
const PAGE: i64 = 10_000;
/// How often expired entries are dropped.
const FORGET_EVERY: Duration = Duration::from_secs(10);
/// How far the wall clock may drift from the monotonic clock before it counts as set.
const CLOCK_TOLERANCE: time::Duration = time::Duration::seconds(1);

/// The feed of one replica.
#[derive(Clone, Debug)]
pub struct Feed(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    db: PgPool,
    /// Whether notifications can come through.
    listens: bool,
    clock: Clock,
    metrics: Metrics,
    revocations: Arc<Revocations>,
    /// How many readings have been asked for.
    wanted: AtomicU64,
    reading: Mutex<Reading>,
    /// Changes with each reading that brought something new.
    news: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Reading {
    /// Where the next reading begins; `None` means at the very beginning.
    since: Option<Position>,
    /// When the last reading began, by the monotonic clock.
    began_at: Option<Duration>,
    /// What the wall clock said then, minus what the monotonic clock said.
    clock_offset: Option<OffsetDateTime>,
    /// How many of the readings that were asked for have been served.
    served: u64,
}

impl Feed {
    /// A feed that has read nothing yet: until the first [`hear`](Self::hear), every token is refused. Set `listens`
    /// unless there is a pooler in transaction mode in between.
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

    /// The revocations that have been read.
    pub fn revocations(&self) -> &Arc<Revocations> {
        &self.0.revocations
    }

    /// For how long nothing has been read, if that is longer than it may be.
    pub fn staleness(&self) -> Option<Duration> {
        self.0.revocations.staleness(self.0.clock.elapsed())
    }

    /// Changes whenever something has been revoked.
    pub fn news(&self) -> watch::Receiver<()> {
        self.0.news.subscribe()
    }

    /// How many receivers wait for news at the moment.
    pub fn readers(&self) -> usize {
        self.0.news.receiver_count()
    }

    /// Reads everything that has been committed until now. Concurrent calls share readings: one reading serves all
    /// calls that came before it began.
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
        // If the clock was set, or the machine slept, entries that were skipped or dropped as expired may still count.
        let offset = now - began_at;
        let was_set = reading.clock_offset.is_some_and(|known| (offset - known).abs() > CLOCK_TOLERANCE);
        let mut conn = within(PATIENCE, db.acquire()).await?;
        let position = within(PATIENCE, revocations::position(&mut conn)).await?;
        // Another server, or this one after a crash, may have lost the last changes of roles and give their numbers to
        // others: the numbering starts over.
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
        // The previous reading did not see these rows, so they were committed after it began, which bounds the delay.
        // The first reading has no such bound.
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

    /// Keeps reading the feed for as long as this future is polled: on every notification, and twice a second in any
    /// case.
    pub async fn follow(&self) {
        let (notify, mut notified) = watch::channel(());
        let reading = async {
            let mut ticks = clock::every(POLL);
            let mut was_heard = true;
            let mut forgotten = Instant::now();
            loop {
                tokio::select! {
                    _ = ticks.tick() => {}
                    // Cannot fail: the sender lives as long as this loop.
                    _ = notified.changed() => {}
                }
                let heard = self.hear().await;
                // Log when failures begin and when they end, not twice a second.
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

    /// Passes every notification on, if notifications can come through.
    async fn listen(&self, notify: &watch::Sender<()>) {
        if !self.0.listens {
            return;
        }
        loop {
            let lost: Result<Infallible, store::Error> = async {
                let mut listener = revocations::listen(&self.0.db).await?;
                loop {
                    // Also right after connecting: there is no notification for what was revoked before that.
                    notify.send_replace(());
                    listener.notified().await?;
                }
            }
            .await;
            let Err(error) = lost;
            tracing::debug!(error = chain::cause(&error), "no notifications of revocations; polling goes on");
            sleep(LISTEN_REST).await;
        }
    }
}

/// Takes in what the row says. Roles go into `anew` if all of them are being loaded again.
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
