//! Table `history` and those that belong to it: what was changed, by whom, and the seals that reveal what was done to
//! those records afterwards. Triggers write the rows, so that a change made by hand is recorded too. [`Actor`] and
//! [`Cause`] tell them who acts.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Error, PoolConnection};

/// Who changes something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Actor {
    /// A user, with a bearer token or by a login.
    User(Uuid),
    /// A user who changes others, and may only as long as they are an administrator: each change looks again.
    Administrator(Uuid),
    /// An operator at the command line, by their operating system user name.
    CommandLine(String),
    /// The service itself.
    Service,
}

/// Who changes something, and in which request. Every statement that changes a table with a history takes one and sets
/// it for its own transaction (`caused_by`), which costs no extra round trip.
#[derive(Clone, Debug, Default)]
pub struct Cause {
    actor: Option<String>,
    administrator: Option<Uuid>,
    request_id: Option<String>,
}

impl Cause {
    /// This actor, if one is known, in this request, if it is one.
    pub fn new(actor: Option<&Actor>, request_id: Option<String>) -> Self {
        let administrator = match actor {
            Some(Actor::Administrator(id)) => Some(*id),
            _ => None,
        };
        Self { actor: actor.map(Actor::text), administrator, request_id }
    }

    /// The service itself.
    pub fn service() -> Self {
        Self::new(Some(&Actor::Service), None)
    }

    /// The same request, with `actor`.
    #[must_use]
    pub fn by(&self, actor: &Actor) -> Self {
        Self::new(Some(actor), self.request_id.clone())
    }

    /// The user, unless an actor is named already.
    #[must_use]
    pub fn or_user(&self, id: Uuid) -> Self {
        if self.actor.is_some() { self.clone() } else { self.by(&Actor::User(id)) }
    }

    /// The actor, as stored in the table.
    pub(super) fn actor(&self) -> Option<&str> {
        self.actor.as_deref()
    }

    /// The actor, if they have to be an administrator still.
    pub(super) fn administrator(&self) -> Option<Uuid> {
        self.administrator
    }

    /// The request's id, as stored in the table.
    pub fn request_id(&self) -> Option<&str> {
        self.request_id.as_deref()
    }
}

impl Actor {
    fn text(&self) -> String {
        match self {
            Self::User(id) | Self::Administrator(id) => id.to_string(),
            Self::CommandLine(name) => format!("cli:{name}"),
            Self::Service => "service".to_owned(),
        }
    }
}

/// A row, with its personal data for as long as the user exists.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Rises with each row.
    pub id: i64,
    /// The table that was changed.
    pub table_name: String,
    /// `INSERT`, `UPDATE`, `DELETE`, `TRUNCATE` or `DROP`.
    pub operation: String,
    /// The changed row.
    pub row_id: Option<String>,
    /// The user whose account it is about.
    pub user_id: Option<Uuid>,
    /// `{before, after, hidden?}`.
    pub changed_data: serde_json::Value,
    /// `{before, after}`.
    pub personal: Option<serde_json::Value>,
    /// By the database's clock.
    pub changed_at: OffsetDateTime,
    /// The [`Actor`] as stored; `None`: none was named.
    pub actor: Option<String>,
    /// The request that asked for it.
    pub request_id: Option<String>,
    /// The role that was logged in to the database.
    pub database_user: String,
}

/// Which rows to select.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter<'a> {
    /// About the account of this user.
    pub user_id: Option<Uuid>,
    /// Of this table.
    pub table_name: Option<&'a str>,
    /// Older than the row of this id.
    pub before_id: Option<i64>,
}

/// At most `limit` rows, newest first.
///
/// # Errors
///
/// When the database fails.
pub async fn page(conn: &mut PgConnection, filter: &Filter<'_>, limit: i64) -> Result<Vec<Entry>, Error> {
    // Each filter has an index of its own, which one condition for all of them would hide from the planner. Personal
    // data beside a row that never had any was put there by somebody, and no seal covers it.
    macro_rules! select {
        ($condition:tt $(, $parameter:expr)*) => {
            sqlx::query_as!(
                Entry,
                r#"SELECT history.id, table_name, operation, row_id, history.user_id, history.changed_data,
                          personal.changed_data AS "personal?", changed_at, actor, request_id, database_user
                   FROM history LEFT JOIN history_personal AS personal
                       ON history_id = history.id AND personal_hash IS NOT NULL
                   WHERE history.id < $1 AND "#
                    + $condition
                    + " ORDER BY history.id DESC LIMIT $2",
                filter.before_id.unwrap_or(i64::MAX),
                limit
                $(, $parameter)*
            )
            .fetch_all(conn)
            .await?
        };
    }
    Ok(match (filter.user_id, filter.table_name) {
        (Some(user_id), table_name) => {
            select!("history.user_id = $3 AND table_name = coalesce($4, table_name)", user_id, table_name)
        }
        (None, Some(table_name)) => select!("table_name = $3", table_name),
        (None, None) => select!("true"),
    })
}

/// A row as a seal covers it.
#[derive(Debug)]
pub struct Sealable {
    /// Rises with each row.
    pub id: i64,
    /// The table that was changed.
    pub table_name: String,
    /// What was done.
    pub operation: String,
    /// The changed row.
    pub row_id: Option<String>,
    /// The user whose account it is about.
    pub user_id: Option<Uuid>,
    /// The text of the `jsonb`, whose order and spacing Postgres keeps the same.
    pub changed_data: String,
    /// SHA-256 of the salt and the personal data.
    pub personal_hash: Option<Vec<u8>>,
    /// By the database's clock.
    pub changed_at: OffsetDateTime,
    /// The [`Actor`] as stored.
    pub actor: Option<String>,
    /// The request that asked for it.
    pub request_id: Option<String>,
    /// The role that was logged in to the database.
    pub database_user: String,
}

/// A seal.
#[derive(Clone, Debug)]
pub struct Seal {
    /// Its place in the chain, from 1 on.
    pub number: i64,
    /// The rows that it seals, in order; none if they are more than was asked for.
    pub ids: Vec<i64>,
    /// SHA-256 of each of them, 32 bytes each; `None`: they were dropped with their month.
    pub row_hashes: Option<Vec<u8>>,
    /// SHA-256 of `row_hashes`.
    pub rows_hash: [u8; 32],
    /// SHA-256 of the previous seal's hash, the number, the time and `rows_hash`.
    pub hash: [u8; 32],
    /// By the database's clock.
    pub sealed_at: OffsetDateTime,
}

/// What the next seal has to follow on from.
#[derive(Clone, Copy, Debug)]
pub struct Previous {
    /// The number of the last seal; 0 if there is none.
    pub number: i64,
    /// Its hash; zeros if there is none.
    pub hash: [u8; 32],
    /// When the new seal is made, by the database's clock.
    pub now: OffsetDateTime,
}

/// Seals at most `limit` of the rows that wait for a seal, those with the lowest ids, with the seal that `make` makes
/// for them, in one transaction. `None` when no row waits, or when somebody else holds the lock.
///
/// # Errors
///
/// When the database fails; then nothing has changed.
pub async fn seal(
    conn: &mut PoolConnection,
    limit: i64,
    make: impl FnOnce(&Previous, &[Sealable]) -> Seal,
) -> Result<Option<Seal>, Error> {
    let mut transaction = conn.begin().await?;
    // A statement of its own, so that the next ones see what the previous holder of the lock left.
    let lock = sqlx::query_scalar!(r#"SELECT pg_try_advisory_xact_lock($1) AS "held!""#, LOCK);
    if !lock.fetch_one(&mut *transaction).await? {
        return Ok(None);
    }
    let previous = sqlx::query_as!(
        Previous,
        r#"SELECT coalesce(max(number), 0) AS "number!", now() AS "now!",
                  coalesce(
                      (SELECT hash FROM history_seals ORDER BY number DESC LIMIT 1), decode(repeat('00', 32), 'hex')
                  ) AS "hash!: [u8; 32]"
           FROM history_seals"#,
    );
    let previous = previous.fetch_one(&mut *transaction).await?;
    let rows = waiting(&mut transaction, limit).await?.rows;
    if rows.is_empty() {
        return Ok(None);
    }
    let seal = make(&previous, &rows);
    sqlx::query!(
        "INSERT INTO history_seals (number, ids, row_hashes, rows_hash, hash, sealed_at)
         SELECT $1, range_agg(int8range(id, id, '[]')), $3, $4, $5, $6 FROM unnest($2::bigint[]) AS id",
        seal.number,
        &seal.ids,
        seal.row_hashes.as_deref(),
        &seal.rows_hash[..],
        &seal.hash[..],
        seal.sealed_at,
    )
    .execute(&mut *transaction)
    .await?;
    sqlx::query!("DELETE FROM history_unsealed WHERE id = ANY ($1)", &seal.ids)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(Some(seal))
}

/// The number and the hash of the last seal, if there is one.
///
/// # Errors
///
/// When the database fails, or when the hash is not 32 bytes long.
pub async fn last_seal(conn: &mut PgConnection) -> Result<Option<(i64, [u8; 32])>, Error> {
    let last = sqlx::query!(
        r#"SELECT number, hash AS "hash: [u8; 32]" FROM history_seals ORDER BY number DESC LIMIT 1"#
    );
    Ok(last.fetch_optional(conn).await?.map(|seal| (seal.number, seal.hash)))
}

/// The rows that wait for a seal.
#[derive(Debug, Default)]
struct Waiting {
    /// The first of them, in order; empty if none waits.
    rows: Vec<Sealable>,
    /// Whether rows that waited before or among these are missing: they were deleted. Their ids go on waiting, so that
    /// somebody finds out.
    has_losses: bool,
}

/// The first rows that wait for a seal. They are looked up by id: statistics on `history_unsealed` are never right, and
/// a join planned from them would scan the whole history.
async fn waiting(conn: &mut PgConnection, limit: i64) -> Result<Waiting, Error> {
    let mut found = Waiting::default();
    let mut after = 0;
    loop {
        let ids = sqlx::query_scalar!(
            "SELECT id FROM history_unsealed WHERE id > $1 ORDER BY id LIMIT $2",
            after,
            limit,
        );
        let ids = ids.fetch_all(&mut *conn).await?;
        let Some(last) = ids.last() else { return Ok(found) };
        found.rows = rows(conn, &ids).await?;
        found.has_losses |= ids.iter().any(|id| found.rows.binary_search_by_key(id, |row| row.id).is_err());
        if !found.rows.is_empty() {
            return Ok(found);
        }
        after = *last;
    }
}

/// The rows with these ids, in order.
async fn rows(conn: &mut PgConnection, ids: &[i64]) -> Result<Vec<Sealable>, Error> {
    let rows = sqlx::query_as!(
        Sealable,
        r#"SELECT id, table_name, operation, row_id, user_id, changed_data::text AS "changed_data!", personal_hash,
                  changed_at, actor, request_id, database_user
           FROM history WHERE id = ANY ($1) ORDER BY id, changed_at"#,
        ids,
    );
    Ok(rows.fetch_all(conn).await?)
}

/// The advisory lock for sealing the history or dropping a month of it: "history" in ASCII.
const LOCK: i64 = i64::from_be_bytes(*b"\0history");

/// A view of the whole history as it is at one moment.
#[derive(Debug)]
pub struct Inspection<'c>(sqlx::Transaction<'c, sqlx::Postgres>);

/// Begins an [`Inspection`].
///
/// # Errors
///
/// When the database fails.
pub async fn inspect(conn: &mut PgConnection) -> Result<Inspection<'_>, Error> {
    Ok(Inspection(super::snapshot(conn).await?))
}

/// The personal data of a row.
#[derive(Debug)]
pub struct Personal {
    /// The row of the history.
    pub history_id: i64,
    /// The user; the data is deleted with them.
    pub user_id: Uuid,
    /// Random.
    pub salt: Uuid,
    /// The text of the `jsonb`.
    pub changed_data: String,
}

impl Inspection<'_> {
    /// At most `limit` seals after the one with this number, in order. One that covers more than `rows` rows is without
    /// their ids: whoever has the service's password may have added it, and billions of ids would fill the disk.
    ///
    /// # Errors
    ///
    /// When the database fails, or when a hash is not 32 bytes long.
    pub async fn seals(&mut self, after: i64, limit: i64, rows: i64) -> Result<Vec<Seal>, Error> {
        let seals = sqlx::query_as!(
            Seal,
            r#"SELECT number, rows_hash AS "rows_hash: [u8; 32]", hash AS "hash: [u8; 32]", sealed_at,
                      CASE WHEN octet_length(row_hashes) > 32 * $3::bigint THEN ''::bytea ELSE row_hashes END AS row_hashes,
                      CASE WHEN NOT lower_inf(ids) AND NOT upper_inf(ids)
                          AND (SELECT sum(upper(range)::numeric - lower(range)) FROM unnest(ids) AS range) <= $3
                      THEN ARRAY(
                          SELECT generate_series(lower(range), upper(range) - 1) FROM unnest(ids) AS range ORDER BY 1
                      ) ELSE '{}' END AS "ids!"
               FROM history_seals WHERE number > $1 ORDER BY number LIMIT $2"#,
            after,
            limit,
            rows,
        );
        Ok(seals.fetch_all(&mut *self.0).await?)
    }

    /// The rows with these ids, in order.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn rows(&mut self, ids: &[i64]) -> Result<Vec<Sealable>, Error> {
        rows(&mut self.0, ids).await
    }

    /// The personal data of the rows with these ids.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn personal(&mut self, ids: &[i64]) -> Result<Vec<Personal>, Error> {
        let personal = sqlx::query_as!(
            Personal,
            r#"SELECT history_id, user_id, salt, changed_data::text AS "changed_data!" FROM history_personal
               WHERE history_id = ANY ($1)"#,
            ids,
        );
        Ok(personal.fetch_all(&mut *self.0).await?)
    }

    /// Those of these users who were deleted, according to the history.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn gone(&mut self, users: &[Uuid]) -> Result<Vec<Uuid>, Error> {
        let gone = sqlx::query_scalar!(
            r#"SELECT person AS "person!" FROM unnest($1::uuid[]) AS person
               WHERE EXISTS (
                   SELECT FROM history WHERE user_id = person AND table_name = 'users' AND operation = 'DELETE'
               ) OR EXISTS (SELECT FROM history WHERE table_name = 'users' AND operation = 'TRUNCATE')"#,
            users,
        );
        Ok(gone.fetch_all(&mut *self.0).await?)
    }

    /// The ids that were dropped with their months, as ranges: the first id, and the one after the last.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn given_up(&mut self) -> Result<Vec<(i64, i64)>, Error> {
        let ranges = sqlx::query!(
            r#"SELECT lower(range) AS "first!", upper(range) AS "end!"
               FROM history, unnest((changed_data -> 'before' ->> 'ids')::int8multirange) AS range
               WHERE table_name = 'history' AND operation = 'DROP' ORDER BY 1"#,
        );
        let ranges = ranges.fetch_all(&mut *self.0).await?;
        Ok(ranges.into_iter().map(|range| (range.first, range.end)).collect())
    }

    /// The ids of at most `limit` rows that no seal covers and that do not wait for one.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn strangers(&mut self, limit: i64) -> Result<Vec<i64>, Error> {
        let ids = sqlx::query_scalar!(
            "SELECT id FROM history
             WHERE NOT id <@ (SELECT coalesce(range_agg(range), '{}') FROM history_seals, unnest(ids) AS range)
                 AND NOT EXISTS (SELECT FROM history_unsealed WHERE history_unsealed.id = history.id)
             ORDER BY id LIMIT $1",
            limit,
        );
        Ok(ids.fetch_all(&mut *self.0).await?)
    }

    /// How many rows wait for a seal.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn unsealed(&mut self) -> Result<i64, Error> {
        let count = sqlx::query_scalar!(r#"SELECT count(*) AS "count!" FROM history_unsealed"#);
        Ok(count.fetch_one(&mut *self.0).await?)
    }

    /// The ids of at most `limit` rows that wait for a seal but are missing.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn lost_before_seal(&mut self, limit: i64) -> Result<Vec<i64>, Error> {
        let ids = sqlx::query_scalar!(
            "SELECT id FROM history_unsealed
             WHERE NOT EXISTS (SELECT FROM history WHERE history.id = history_unsealed.id) ORDER BY id LIMIT $1",
            limit,
        );
        Ok(ids.fetch_all(&mut *self.0).await?)
    }
}

/// How far the sealing has got, as far as can be told without reading the whole history.
#[derive(Clone, Copy, Debug)]
pub struct Backlog {
    /// When the oldest row that waits for a seal was written; `None` if none waits.
    pub since: Option<OffsetDateTime>,
    /// Whether rows were deleted before they were sealed.
    pub has_losses: bool,
}

/// What is left to seal.
///
/// # Errors
///
/// When the database fails.
pub async fn backlog(conn: &mut PgConnection) -> Result<Backlog, Error> {
    let found = waiting(conn, BACKLOG).await?;
    let since = found.rows.first().map(|row| row.changed_at);
    Ok(Backlog { since, has_losses: found.has_losses })
}

/// If the database is set to let changes through when they cannot be recorded: the statement that ends that.
///
/// # Errors
///
/// When the database fails.
pub async fn lenient(conn: &mut PgConnection) -> Result<Option<String>, Error> {
    // The same condition as in the trigger.
    let lenient = sqlx::query_scalar!(
        r#"SELECT format('ALTER DATABASE %I RESET gatepass.history', database.datname) AS "statement!"
           FROM pg_db_role_setting AS setting JOIN pg_database AS database ON database.oid = setting.setdatabase
           WHERE database.datname = current_database() AND setting.setrole = 0
             AND 'gatepass.history=lenient' = ANY(setting.setconfig)"#
    );
    Ok(lenient.fetch_optional(conn).await?)
}

/// How many of the rows that wait are looked at together.
const BACKLOG: i64 = 100;

/// Creates the missing partitions of this month and the next two, and of months whose rows are in the default
/// partition. Returns how many.
///
/// # Errors
///
/// When the database fails, also because somebody reads the history for longer than this may wait.
pub async fn prepare(conn: &mut PgConnection) -> Result<i32, Error> {
    let made = sqlx::query_scalar!(r#"SELECT prepare_history() AS "made!""#);
    Ok(made.fetch_one(conn).await?)
}

/// Drops the oldest month if it ended before `before` and is sealed, and returns the name of its partition. `None` when
/// it is not so, or when somebody else holds the lock. The last 30 days always stay.
///
/// # Errors
///
/// When the database fails, also because somebody reads the history for longer than this may wait.
pub async fn drop_month(
    conn: &mut PoolConnection,
    before: OffsetDateTime,
    cause: &Cause,
) -> Result<Option<String>, Error> {
    let mut transaction = conn.begin().await?;
    // All personal data of the month is deleted with it, which may take a while.
    let begun = sqlx::query_scalar!(
        r#"SELECT caused_by($2, $3) AND set_config('statement_timeout', '10min', true) IS NOT NULL
               AND pg_try_advisory_xact_lock($1) AS "held!""#,
        LOCK,
        cause.actor(),
        cause.request_id(),
    );
    if !begun.fetch_one(&mut *transaction).await? {
        return Ok(None);
    }
    let dropped = sqlx::query_scalar!("SELECT drop_history($1)", before).fetch_one(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(dropped)
}
