//! Connections, lent for a statement or two.
//!
//! sqlx's own pool pings the server when a connection is given back, without a time limit if nobody answers, and took
//! three round trips on top of each statement. Here a connection that answered a moment ago is lent again without a
//! ping ([`TRUSTED_FOR`]). Where that was too much trust, [`PgPool::read`] repeats work that may be done twice.
//!
//! A request may be given up at any moment. Whatever it was doing then ends here: whoever is lent its connection next
//! gets none of its answers and is in none of its transactions.

use std::{
    fmt, mem,
    ops::{Deref, DerefMut},
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};

use super::{
    Access, Error, Source, Transaction,
    source::{is_refused, is_standby},
};
use crate::chain;

/// How long a pool may take to give a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long after its last answer a connection counts as alive. This is long enough that a busy pool never asks, and
/// short enough that a connection that was cut while idle is seldom lent.
const TRUSTED_FOR: Duration = Duration::from_millis(500);
/// How long a connection may take to show that it is alive. After that, another takes its place.
const PING_PATIENCE: Duration = Duration::from_secs(1);
/// How long to wait between two attempts to connect.
const CONNECT_REST: Duration = Duration::from_millis(200);
/// How old a connection may get, so that no session at the server grows for ever, and an address that leads elsewhere
/// by now is left in time.
const MAX_AGE: Duration = Duration::from_secs(30 * 60);

/// At most `max` connections to one database, opened as they are needed. Cheap to clone.
#[derive(Clone)]
pub struct PgPool(Arc<Inner>);

struct Inner {
    source: Source,
    max: u32,
    /// One permit for each connection that is lent, being opened or being tested.
    places: Arc<Semaphore>,
    /// A stack: the connection used last is on top, so a pool with little use trusts that one instead of asking each in
    /// turn.
    idle: Mutex<Vec<Open>>,
    /// Why the last attempt to connect failed, in words, unless a connection has been had since.
    failure: ArcSwapOption<String>,
}

/// A connection, and what is known about it.
struct Open {
    conn: PgConnection,
    opened_at: Instant,
    /// `None`: it has to show that it is alive before it is lent again.
    trusted_until: Option<Instant>,
    /// What the connection allowed when it was opened.
    access: Access,
}

/// How a pool is used at the moment.
#[derive(Clone, Copy, Debug)]
pub struct Use {
    /// Connections that are lent, being opened or being tested.
    pub used: u32,
    /// Connections that are open and not in use.
    pub idle: u32,
    /// The most connections that there may be.
    pub max: u32,
}

impl Source {
    /// A pool of at most `max_connections` that connects when it is first used, with the latest password of this
    /// server's user.
    ///
    /// A statement that hangs, on a lock or a slow disk, is cancelled by the server, so it cannot hold its connection
    /// for ever. A connection that hangs is detected when it is taken or given back, and replaced. A connection to a
    /// standby, which takes no writes, is not used at all: after a failover, an address may lead to one for a while. A
    /// connection to a read-only database is used, since what it reads is true, but not kept: the next one may take
    /// writes again.
    pub fn pool(&self, max_connections: u32) -> PgPool {
        let places = Arc::new(Semaphore::new(max_connections as usize));
        PgPool(Arc::new(Inner {
            source: self.clone(),
            max: max_connections,
            places,
            idle: Mutex::default(),
            failure: ArcSwapOption::default(),
        }))
    }
}

impl PgPool {
    /// A connection that is alive, or was a moment ago. First come, first served.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] when the database refuses us; when it cannot be reached, or all connections are lent, for
    /// as long as one may wait; or when the pool is closed.
    pub async fn acquire(&self) -> Result<PoolConnection, Error> {
        self.acquire_within(ACQUIRE_TIMEOUT).await
    }

    /// As [`PgPool::acquire`], for somebody who waits no longer than `patience`, and wants to know why there was none.
    ///
    /// # Errors
    ///
    /// As there. The cause is [`sqlx::Error::PoolTimedOut`] only if there was no answer and no connection to be had.
    pub async fn acquire_within(&self, patience: Duration) -> Result<PoolConnection, Error> {
        let mut why = sqlx::Error::PoolTimedOut;
        let mut has_place = false;
        let found = async {
            let place = self.0.places.clone().acquire_owned().await.map_err(|_| sqlx::Error::PoolClosed)?;
            has_place = true;
            let open = match self.0.find().await {
                Some(open) => open,
                // Rare, so it is boxed: otherwise the future of every request would reserve room for it.
                None => Box::pin(self.0.connect(&mut why)).await?,
            };
            Ok(PoolConnection { lent: Some((open, place)), is_beginning: false, pool: self.0.clone() })
        };
        let found = timeout(patience, found).await;
        match (&found, &why) {
            (Ok(Ok(_)), _) => self.0.note_failure(None),
            // There is no answer any more, not even a refusal.
            (Err(_), sqlx::Error::PoolTimedOut) if has_place => self.0.note_failure(None),
            _ => {}
        }
        found.unwrap_or_else(|_| Err(why)).map_err(Error::Unavailable)
    }

    /// Why the last attempt to connect failed, in words, unless a connection has been had since. During an outage those
    /// who try to connect hold every place, and whoever waits for one in vain learns here why.
    pub fn failure(&self) -> Option<String> {
        self.0.failure.load().as_deref().cloned()
    }

    /// Does `work` with a connection, and once more with another if the first turns out to have ended; for work that
    /// may be done twice. A failure to get a connection is not retried: the pool has already tried for as long as
    /// anybody may wait.
    ///
    /// # Errors
    ///
    /// Those of `work`, or [`Error::Unavailable`].
    pub async fn read<T, W>(&self, mut work: impl FnMut(PoolConnection) -> W) -> Result<T, Error>
    where
        W: Future<Output = Result<T, Error>>,
    {
        match work(self.acquire().await?).await {
            Err(Error::Unavailable(error)) if super::error::has_ended(&error) => {
                tracing::debug!(error = chain::cause(&error), "asking once more");
                work(self.acquire().await?).await
            }
            done => done,
        }
    }

    /// Does `work` with a connection, and a few times more, each time with whichever is free, when others were changing
    /// the same rows.
    ///
    /// # Errors
    ///
    /// Those of `work`, or [`Error::Unavailable`].
    pub async fn write<T, W>(&self, work: impl Fn(PoolConnection) -> W) -> Result<T, Error>
    where
        W: Future<Output = Result<T, Error>>,
    {
        super::retrying(|| async { work(self.acquire().await?).await }).await
    }

    /// How the pool is used.
    pub fn in_use(&self) -> Use {
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let free = count(self.0.places.available_permits());
        Use { used: self.0.max.saturating_sub(free), idle: count(self.0.idle().len()), max: self.0.max }
    }

    /// Waits until every connection is given back, and closes them all. From then on none can be had.
    pub async fn close(&self) {
        let all = self.0.places.acquire_many(self.0.max).await;
        self.0.places.close();
        let idle = mem::take(&mut *self.0.idle());
        for open in idle {
            if let Err(error) = open.conn.close().await {
                tracing::debug!(error = chain::cause(&error), "a connection could not be closed");
            }
        }
        drop(all);
    }

    /// Where connections lead, with the current password.
    pub(super) fn options(&self) -> Arc<PgConnectOptions> {
        self.0.source.newest.load_full()
    }
}

impl fmt::Debug for PgPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PgPool({}, {:?})", self.0.source.place(), self.in_use())
    }
}

impl Inner {
    fn idle(&self) -> MutexGuard<'_, Vec<Open>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An idle connection that is alive.
    async fn find(&self) -> Option<Open> {
        loop {
            let mut open = self.idle().pop()?;
            if open.is_trusted() || open.is_alive().await {
                return Some(open);
            }
            self.trust_nobody();
        }
    }

    /// Opens another connection. Keeps trying where the failure may pass by itself, and leaves the last such error in
    /// `why`.
    async fn connect(&self, why: &mut sqlx::Error) -> Result<Open, sqlx::Error> {
        let mut was_refused = false;
        loop {
            let opened = self.source.open().await;
            if let Err(error) = &opened {
                self.note_failure(Some(chain::chain(error)));
            }
            match opened {
                Ok((conn, access)) => {
                    return Ok(Open { conn, opened_at: Instant::now(), trusted_until: None, access });
                }
                Err(error) if super::may_pass(&error) || is_standby(&error) => *why = error,
                // By the next attempt there may be a newer password.
                Err(error) if is_refused(&error) && !mem::replace(&mut was_refused, true) => *why = error,
                Err(error) => return Err(error),
            }
            sleep(CONNECT_REST).await;
        }
    }

    fn note_failure(&self, failure: Option<String>) {
        // Most of the time there was none and is none: then nothing is written that others read.
        if failure.is_some() || self.failure.load().is_some() {
            self.failure.store(failure.map(Arc::new));
        }
    }

    /// Whatever has happened to one connection may have happened to all.
    fn trust_nobody(&self) {
        for open in &mut *self.idle() {
            open.trusted_until = None;
        }
    }

    /// Takes back a connection that is alive and waits for nothing.
    fn take_back(&self, open: Open) {
        let is_good = open.opened_at.elapsed() < MAX_AGE && open.access == Access::Full;
        if is_good && !self.places.is_closed() {
            let trusted_until = Some(Instant::now() + TRUSTED_FOR);
            self.idle().push(Open { trusted_until, ..open });
        }
    }
}

impl Open {
    fn is_trusted(&self) -> bool {
        self.trusted_until.is_some_and(|end| Instant::now() < end)
    }

    async fn is_alive(&mut self) -> bool {
        matches!(timeout(PING_PATIENCE, self.conn.ping()).await, Ok(Ok(())))
    }

    /// Whether the answers that arrive belong to what is asked now, and the connection is in no transaction: one that
    /// was begun and given up is ended here.
    async fn is_in_step(&mut self) -> bool {
        static NUMBERS: AtomicI64 = AtomicI64::new(0);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let check = async {
            let mut transaction = super::begin_alone(&mut self.conn).await?;
            let asked = sqlx::query_scalar!(r#"SELECT $1::bigint AS "number!""#, number);
            let answer = asked.fetch_one(&mut *transaction).await?;
            transaction.rollback().await?;
            Ok::<_, sqlx::Error>(answer == number)
        };
        matches!(timeout(PING_PATIENCE, check).await, Ok(Ok(true)))
    }

    /// Whether everything that was asked has been answered to the end and nothing is left to be sent, without waiting
    /// for it. A request that was given up may leave a statement running, or a transaction to be rolled back.
    fn is_settled(&mut self) -> bool {
        let settled = pin!(self.conn.flush());
        matches!(settled.poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(())))
    }
}

/// A connection of a pool, given back when dropped.
pub struct PoolConnection {
    /// Until it is given back.
    lent: Option<(Open, OwnedSemaphorePermit)>,
    /// Whether a transaction may have begun that sqlx does not know of.
    is_beginning: bool,
    pool: Arc<Inner>,
}

impl PoolConnection {
    const LENT: &str = "only drop takes it away";

    /// Begins a transaction, which ends when it is dropped, even if that happens while it begins. sqlx alone would then
    /// leave it open, and what the next user of the connection does would never be committed.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn begin(&mut self) -> Result<Transaction<'_>, sqlx::Error> {
        self.begin_with("BEGIN").await
    }

    /// As [`PoolConnection::begin`], with a `BEGIN` that says more.
    ///
    /// # Errors
    ///
    /// When the database fails.
    #[expect(clippy::disallowed_methods, reason = "the one place that sees to what it leaves half way")]
    pub async fn begin_with(&mut self, begin: &'static str) -> Result<Transaction<'_>, sqlx::Error> {
        let (open, _) = self.lent.as_mut().expect(Self::LENT);
        self.is_beginning = true;
        let transaction = open.conn.begin_with(begin).await?;
        self.is_beginning = false;
        Ok(transaction)
    }
}

impl Deref for PoolConnection {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.lent.as_ref().expect(Self::LENT).0.conn
    }
}

impl DerefMut for PoolConnection {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.lent.as_mut().expect(Self::LENT).0.conn
    }
}

impl fmt::Debug for PoolConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PoolConnection({})", self.pool.source.place())
    }
}

impl Drop for PoolConnection {
    fn drop(&mut self) {
        let Some((mut open, place)) = self.lent.take() else { return };
        if !self.is_beginning && open.is_settled() {
            self.pool.take_back(open);
            return;
        }
        self.pool.trust_nobody();
        let pool = self.pool.clone();
        // The connection keeps its place meanwhile. One that hangs is dropped after a moment, and not closed: over TLS,
        // closing takes an answer.
        tokio::spawn(async move {
            if open.is_in_step().await {
                pool.take_back(open);
            }
            drop(place);
        });
    }
}
