//! Table `login_attempts`: who has failed how often of late, as one time for each key (the generic cell rate algorithm,
//! ITU-T I.371). Whose key it is, the database cannot tell.
//!
//! Whoever locks several rows, or is about to insert them, does so in one order, and nobody waits in a circle: devices by
//! their keys, then accounts by theirs, then the address, which is what many have in common and is so held the shortest.

use std::{num::NonZeroU32, time::Duration};

use sqlx::{PgConnection, postgres::types::PgInterval};
use time::OffsetDateTime;

use super::Error;

/// Whose attempts are counted.
pub type Key = [u8; 16];

/// At most so many attempts in such a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many.
    pub count: NonZeroU32,
    /// In what time.
    pub per: Duration,
}

impl Rate {
    /// The bucket that keeps `key` to this rate.
    pub fn bucket(self, key: Key) -> Bucket {
        // In whole microseconds, which is what Postgres counts in.
        let spacing = Duration::from_micros(
            u64::try_from(self.per.as_micros() / u128::from(self.count.get())).unwrap_or(u64::MAX).max(1),
        );
        Bucket { key, spacing, span: spacing.saturating_mul(self.count.get()) }
    }
}

/// A bucket: how fast its places become free, and how long all of them take.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    /// Whose.
    pub key: Key,
    /// In what time one place becomes free.
    pub spacing: Duration,
    /// In what time all of them do.
    pub span: Duration,
}

/// The account that somebody tries, and the device that they try it from, known or not.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    /// The key of the account, which is that of a bucket.
    pub account: Key,
    /// The key of account and device; when that is known, it is used in place of the account's.
    pub device: Key,
}

/// What an attempt needs one place of each of.
#[derive(Clone, Debug)]
pub struct Places {
    /// Whose places: an account before an address.
    pub buckets: Vec<Bucket>,
    /// Whose stands in for the account's, if it is known.
    pub device: Option<Device>,
}

/// What came of an attempt to take places.
#[derive(Debug)]
pub struct Taken {
    /// `None`: one place of each bucket is taken. Else none is, and at that time there will be one of each.
    pub again_at: Option<OffsetDateTime>,
    /// Whether the device is known, and its places are what counts.
    pub is_device_known: bool,
}

/// Buckets, as the statements have them.
pub(super) struct Columns {
    pub(super) keys: Vec<Vec<u8>>,
    pub(super) spacings: Vec<PgInterval>,
    pub(super) spans: Vec<PgInterval>,
}

impl Columns {
    pub(super) fn new(buckets: &[Bucket]) -> Self {
        Self {
            keys: buckets.iter().map(|bucket| bucket.key.to_vec()).collect(),
            spacings: buckets.iter().map(|bucket| interval(bucket.spacing)).collect(),
            spans: buckets.iter().map(|bucket| interval(bucket.span)).collect(),
        }
    }
}

/// Takes one of each of these places, or none at all.
///
/// # Errors
///
/// When the database fails.
pub async fn take(
    conn: &mut PgConnection,
    Places { buckets, device }: &Places,
    now: OffsetDateTime,
) -> Result<Taken, Error> {
    let Columns { keys, spacings, spans } = Columns::new(buckets);
    let taken = sqlx::query_as!(
        Taken,
        r#"SELECT again_at, is_device_known AS "is_device_known!"
           FROM take_login_attempt($1, $2, $3, $4, $5, $6)"#,
        now,
        &keys,
        &spacings,
        &spans,
        device.as_ref().map(|device| &device.account[..]),
        device.as_ref().map(|device| &device.device[..]),
    );
    Ok(taken.fetch_one(conn).await?)
}

/// Gives one place of each bucket back.
///
/// # Errors
///
/// When the database fails.
pub async fn give_back(conn: &mut PgConnection, buckets: &[Bucket]) -> Result<(), Error> {
    let Columns { keys, spacings, .. } = Columns::new(buckets);
    sqlx::query!(
        "WITH locked AS MATERIALIZED (
             SELECT key, spacing FROM login_attempts
             JOIN unnest($1::bytea[], $2::interval[]) WITH ORDINALITY AS bucket (key, spacing, place) USING (key)
             ORDER BY place
             FOR UPDATE OF login_attempts
         )
         UPDATE login_attempts SET free_at = free_at - locked.spacing FROM locked WHERE login_attempts.key = locked.key",
        &keys,
        &spacings,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// The failures of an account by a name that it is about to lose.
#[derive(Clone, Copy, Debug)]
pub struct Renaming {
    /// Under the name that it has.
    pub from: Key,
    /// Under the one that it gets.
    pub to: Bucket,
}

/// Takes the failures along to the other name, in the transaction that gives it, and one more: an attempt that has looked
/// up the former name and waits here counts there alone. The bucket gets no fuller than full; what a clock that is ahead
/// has written counts as little as in `take_login_attempt`, and by one that is behind nothing is taken away.
///
/// # Errors
///
/// When the database fails.
pub(super) async fn rename(
    conn: &mut PgConnection,
    Renaming { from, to }: &Renaming,
    now: OffsetDateTime,
) -> Result<(), Error> {
    sqlx::query!(
        "INSERT INTO login_attempts (key, free_at, expires_at)
         SELECT key, $2, $2 FROM unnest($1::bytea[]) AS key ORDER BY key
         ON CONFLICT (key) DO UPDATE SET free_at = login_attempts.free_at",
        &[from.to_vec(), to.key.to_vec()],
        now,
    )
    .execute(&mut *conn)
    .await?;
    sqlx::query!(
        "WITH both_names AS (
             SELECT least(greatest(max(free_at), $3) + $4::interval, $3 + $5::interval) AS free_at FROM login_attempts
             WHERE key IN ($1, $2) AND free_at <= $3 + $5::interval + interval '30 seconds'
         )
         UPDATE login_attempts SET
             free_at = greatest(login_attempts.free_at, both_names.free_at),
             expires_at = greatest(expires_at, both_names.free_at)
         FROM both_names WHERE key = $2",
        &from[..],
        &to.key[..],
        now,
        interval(to.spacing),
        interval(to.span),
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// What somebody is forgiven who has succeeded; by default nothing.
#[derive(Clone, Debug, Default)]
pub struct Forgiveness {
    /// Gets one place back.
    pub address: Option<Bucket>,
    /// All attempts on them are forgotten.
    pub accounts: Vec<Key>,
    /// Are known, with no attempts of theirs.
    pub devices: Vec<Key>,
    /// Until when they are known.
    pub known_until: Option<OffsetDateTime>,
}

/// A statement that forgives what its parameters $1 to $6 say, if `$succeeded`, its first `WITH` queries, leave a row in
/// the one that is called `succeeded`. Then it gives back what `$result` selects.
macro_rules! forgiving {
    ($succeeded:tt, $result:tt, $forgiveness:expr, $now:expr $(, $parameter:expr)* $(,)?) => {
        sqlx::query!(
            "WITH " + $succeeded + ", known AS (
                 INSERT INTO login_attempts (key, free_at, expires_at)
                 SELECT device, $5, $6 FROM succeeded, unnest($4::bytea[]) AS device ORDER BY device
                 ON CONFLICT (key) DO UPDATE SET free_at = excluded.free_at, expires_at = excluded.expires_at
                 RETURNING key
             ), all_known AS MATERIALIZED (
                 SELECT count(*) FROM known HAVING EXISTS (SELECT FROM succeeded)
             ), locked AS MATERIALIZED (
                 SELECT key FROM login_attempts, all_known WHERE key = ANY($3::bytea[])
                 ORDER BY key
                 FOR UPDATE OF login_attempts
             ), all_locked AS MATERIALIZED (
                 SELECT FROM all_known, (SELECT count(*) FROM locked) AS accounts
             ), forgotten AS (
                 DELETE FROM login_attempts USING all_locked WHERE key = ANY($3::bytea[])
             ), given_back AS (
                 UPDATE login_attempts SET free_at = free_at - $2::interval FROM all_locked WHERE key = $1
             )
             " + $result,
            $forgiveness.address.as_ref().map(|address| &address.key[..]),
            $forgiveness.address.map(|address| $crate::store::login_attempts::interval(address.spacing)),
            &$forgiveness.accounts.iter().map(|key| key.to_vec()).collect::<Vec<_>>(),
            &$forgiveness.devices.iter().map(|key| key.to_vec()).collect::<Vec<_>>(),
            $now,
            $forgiveness.known_until
            $(, $parameter)*
        )
    };
}
pub(super) use forgiving;

/// Somebody has succeeded.
///
/// # Errors
///
/// When the database fails.
pub async fn forgive(
    conn: &mut PgConnection,
    forgiveness: &Forgiveness,
    now: OffsetDateTime,
) -> Result<(), Error> {
    forgiving!("succeeded AS (SELECT)", "SELECT FROM succeeded", forgiveness, now).execute(conn).await?;
    Ok(())
}

/// Deletes at most `limit` rows that nobody needs at `now`; how many rows that was. 0 also when somebody else is at it.
///
/// # Errors
///
/// When the database fails.
pub async fn delete_expired(conn: &mut PgConnection, now: OffsetDateTime, limit: i64) -> Result<u64, Error> {
    let done = sqlx::query!(
        "DELETE FROM login_attempts WHERE key IN (
             SELECT key FROM login_attempts WHERE expires_at < $1 ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED
         )",
        now,
        limit,
    );
    Ok(done.execute(conn).await?.rows_affected())
}

pub(super) fn interval(time: Duration) -> PgInterval {
    PgInterval { months: 0, days: 0, microseconds: i64::try_from(time.as_micros()).unwrap_or(i64::MAX) }
}
