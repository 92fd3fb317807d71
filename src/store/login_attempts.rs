//! Table `login_attempts`: recent failures, stored as one time per key (the generic cell rate algorithm, ITU-T I.371).
//! The database cannot tell whose key it is.
//!
//! Statements that lock several rows, or are about to insert them, do so in one order, so no two wait for each other:
//! devices by their keys, then accounts by theirs, then the address. Many attempts share an address, and this way its
//! row is held for the shortest time.

use std::{num::NonZeroU32, time::Duration};

use sqlx::{PgConnection, postgres::types::PgInterval};
use time::OffsetDateTime;
use uuid::Uuid;

use super::Error;

/// Whose attempts are counted.
pub type Key = [u8; 16];

/// A rate limit: at most `count` attempts in a time of `per`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many attempts.
    pub count: NonZeroU32,
    /// In what time.
    pub per: Duration,
}

impl Rate {
    /// The bucket that holds `key` to this rate.
    pub fn bucket(self, key: Key) -> Bucket {
        // In whole microseconds, the resolution of Postgres.
        let spacing = Duration::from_micros(
            u64::try_from(self.per.as_micros() / u128::from(self.count.get())).unwrap_or(u64::MAX).max(1),
        );
        Bucket { key, spacing, span: spacing.saturating_mul(self.count.get()) }
    }
}

/// A bucket of places, each good for one attempt: how fast they become free, and how long all of them take.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    /// Whose attempts it counts.
    pub key: Key,
    /// How long it takes for one place to become free.
    pub spacing: Duration,
    /// How long it takes for all of them.
    pub span: Duration,
}

/// The account that somebody tries to log in to, and the device that they try it from, known or not.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    /// The key of the account, which is that of a bucket.
    pub account: Key,
    /// Name and address. If it is known, its key is used in place of the account's.
    pub device: DeviceTag,
}

/// A name at an address: the [`Key`] under which it may be known, followed by what is mixed into the hash of the user
/// and the password that it is known for, so that the table does not say whose it is.
pub type DeviceTag = [u8; 32];

/// Which password a device is known for.
#[derive(Clone, Copy, Debug)]
pub struct PasswordOf {
    /// Whose it is.
    pub user_id: Uuid,
    /// When it was set.
    pub changed_at: OffsetDateTime,
}

/// The buckets of which an attempt needs one place each.
#[derive(Clone, Debug)]
pub struct Places {
    /// The buckets: an account's before an address's.
    pub buckets: Vec<Bucket>,
    /// The device that stands in for the account, if it is known.
    pub device: Option<Device>,
}

/// The result of an attempt to take places.
#[derive(Debug)]
pub struct Taken {
    /// `None`: one place of each bucket is taken. Otherwise none is, and this is when each will have one.
    pub again_at: Option<OffsetDateTime>,
    /// Whether the device is known, so that its places count instead of the account's.
    pub is_device_known: bool,
}

/// Buckets as columns, for the statements.
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

/// Takes one of each of these places, or none at all. The device is known if the user of that name has logged in from
/// it with the password that they have now.
///
/// # Errors
///
/// When the database fails.
pub async fn take(
    conn: &mut PgConnection,
    Places { buckets, device }: &Places,
    username: Option<&str>,
    now: OffsetDateTime,
) -> Result<Taken, Error> {
    let Columns { keys, spacings, spans } = Columns::new(buckets);
    let taken = sqlx::query_as!(
        Taken,
        r#"SELECT again_at, is_device_known AS "is_device_known!"
           FROM attempt_login($1, $2, $3, $4, $5, $6, lower($7 COLLATE "C") COLLATE "C")"#,
        now,
        &keys,
        &spacings,
        &spans,
        device.as_ref().map(|device| &device.account[..]),
        device.as_ref().map(|device| &device.device[..]),
        username,
    );
    Ok(taken.fetch_one(conn).await?)
}

/// Gives back one place of each bucket.
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

/// A change of the name under which an account's failures are counted.
#[derive(Clone, Copy, Debug)]
pub struct Renaming {
    /// The former name.
    pub from: Key,
    /// The new name.
    pub to: Bucket,
}

/// Copies the failures to the new name, in the transaction that assigns it, and locks both names before anything else
/// changes. An attempt under the former name is either among those that are copied, or waits here and then finds that
/// the name is nobody's. A time that a clock far ahead has written counts as nothing, as in `attempt_login`, and a
/// clock that is behind takes nothing away.
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
             SELECT least(greatest(max(free_at), $3), $3 + $4::interval) AS free_at FROM login_attempts
             WHERE key IN ($1, $2) AND free_at <= $3 + $4::interval + interval '30 seconds'
         )
         UPDATE login_attempts SET
             free_at = greatest(login_attempts.free_at, both_names.free_at),
             expires_at = greatest(expires_at, both_names.free_at)
         FROM both_names WHERE key = $2",
        &from[..],
        &to.key[..],
        now,
        interval(to.span),
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// What is forgiven somebody who has succeeded; by default, nothing.
#[derive(Clone, Debug, Default)]
pub struct Forgiveness {
    /// The bucket that gets one place back.
    pub address: Option<Bucket>,
    /// The accounts whose attempts are all forgotten.
    pub accounts: Vec<Key>,
    /// The devices that become known, with no attempts.
    pub devices: Vec<DeviceTag>,
    /// Until when the devices are known.
    pub known_until: Option<OffsetDateTime>,
}

/// A statement that forgives what its parameters $1 to $6 say if `$succeeded`, its first `WITH` queries, leaves a row
/// in the query named `succeeded`: the user, and when their password was set. It then returns what `$result` selects.
macro_rules! forgiving {
    ($succeeded:tt, $result:tt, $forgiveness:expr, $now:expr $(, $parameter:expr)* $(,)?) => {
        sqlx::query!(
            "WITH " + $succeeded + ", known AS (
                 INSERT INTO login_attempts (key, free_at, expires_at, known_for)
                 SELECT substr(device, 1, 16), $5, $6, login_of(device, user_id, password_changed_at)
                 FROM succeeded, unnest($4::bytea[]) AS device ORDER BY device
                 ON CONFLICT (key) DO UPDATE SET
                     free_at = excluded.free_at, expires_at = excluded.expires_at, known_for = excluded.known_for
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
            &$forgiveness.devices.iter().map(|device| device.to_vec()).collect::<Vec<_>>(),
            $now,
            $forgiveness.known_until
            $(, $parameter)*
        )
    };
}
pub(super) use forgiving;

/// Forgives somebody who has succeeded with this password.
///
/// # Errors
///
/// When the database fails.
pub async fn forgive(
    conn: &mut PgConnection,
    forgiveness: &Forgiveness,
    password: PasswordOf,
    now: OffsetDateTime,
) -> Result<(), Error> {
    let forgive = forgiving!(
        "succeeded AS (SELECT $7::uuid AS user_id, $8::timestamptz AS password_changed_at)",
        "SELECT FROM succeeded",
        forgiveness,
        now,
        password.user_id,
        password.changed_at,
    );
    forgive.execute(conn).await?;
    Ok(())
}

/// Deletes at most `limit` rows that nobody needs at `now`, and returns how many. Rows that somebody else has locked
/// are skipped, so 0 does not mean that none is left.
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
