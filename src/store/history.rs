//! Table `history` and those that belong to it: what was changed, by whom, and the seals that show what was done to that
//! afterwards. The rows are written by triggers, so that a change made by hand is there too; here is who they say it was.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Error, PoolConnection};

/// Who changes something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Actor {
    /// A user, with a bearer token or by a login.
    User(Uuid),
    /// An operator at the command line, by the name that the operating system knows them by.
    CommandLine(String),
    /// The service by itself.
    Service,
}

/// Who changes something, and in which request. Every statement that changes what the history knows of takes one and
/// sets it for its own transaction (`caused_by`), so that no round trip is spent on it.
#[derive(Clone, Debug, Default)]
pub struct Cause {
    actor: Option<String>,
    request_id: Option<String>,
}

impl Cause {
    /// Somebody, in a request when it is one.
    pub fn new(actor: Option<&Actor>, request_id: Option<String>) -> Self {
        Self { actor: actor.map(Actor::text), request_id }
    }

    /// The service by itself.
    pub fn service() -> Self {
        Self::new(Some(&Actor::Service), None)
    }

    /// The same request, and `actor`.
    #[must_use]
    pub fn by(&self, actor: &Actor) -> Self {
        Self { actor: Some(actor.text()), request_id: self.request_id.clone() }
    }

    /// The user, where nobody else has been named.
    #[must_use]
    pub fn or_user(&self, id: Uuid) -> Self {
        if self.actor.is_some() { self.clone() } else { self.by(&Actor::User(id)) }
    }

    /// As it stands in the table.
    pub(super) fn actor(&self) -> Option<&str> {
        self.actor.as_deref()
    }

    /// The request's id, as it stands in the table.
    pub fn request_id(&self) -> Option<&str> {
        self.request_id.as_deref()
    }
}

impl Actor {
    fn text(&self) -> String {
        match self {
            Self::User(id) => id.to_string(),
            Self::CommandLine(name) => format!("cli:{name}"),
            Self::Service => "service".to_owned(),
        }
    }
}

/// A row, and what is personal of it as long as the user is there.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Rises with each row.
    pub id: i64,
    /// Where something changed.
    pub table_name: String,
    /// `INSERT`, `UPDATE`, `DELETE`, `TRUNCATE` or `DROP`.
    pub operation: String,
    /// The changed row.
    pub row_id: Option<String>,
    /// Whose account it is about.
    pub user_id: Option<Uuid>,
    /// `{before, after, hidden?}`.
    pub changed_data: serde_json::Value,
    /// `{before, after}`.
    pub personal: Option<serde_json::Value>,
    /// By the database's clock.
    pub changed_at: OffsetDateTime,
    /// Who, as an [`Actor`] is written; `None`: nobody said.
    pub actor: Option<String>,
    /// The request that asked for it.
    pub request_id: Option<String>,
    /// Who was logged in to the database.
    pub database_user: String,
}

/// Which rows.
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
    // Each has an index of its own, which a condition on all of them would hide. What stands beside a row that never had
    // anything personal, somebody has put there, and no seal covers it.
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
    /// Where something changed.
    pub table_name: String,
    /// What was done.
    pub operation: String,
    /// The changed row.
    pub row_id: Option<String>,
    /// Whose account it is about.
    pub user_id: Option<Uuid>,
    /// The text of `jsonb`, whose order and spacing Postgres keeps the same.
    pub changed_data: String,
    /// SHA-256 of salt and personal data.
    pub personal_hash: Option<Vec<u8>>,
    /// By the database's clock.
    pub changed_at: OffsetDateTime,
    /// Who.
    pub actor: Option<String>,
    /// In which request.
    pub request_id: Option<String>,
    /// Logged in as whom.
    pub database_user: String,
}

/// A seal.
#[derive(Clone, Debug)]
pub struct Seal {
    /// Its place in the chain, from 1 on.
    pub number: i64,
    /// The rows that it seals, in order.
    pub ids: Vec<i64>,
    /// SHA-256 of each of them, 32 bytes each; `None`: they were given up with their month.
    pub row_hashes: Option<Vec<u8>>,
    /// SHA-256 of `row_hashes`.
    pub rows_hash: [u8; 32],
    /// SHA-256 of the seal before and of all this.
    pub hash: [u8; 32],
    /// By the database's clock.
    pub sealed_at: OffsetDateTime,
}

/// What the next seal has to follow.
#[derive(Clone, Copy, Debug)]
pub struct Previous {
    /// The number of the last seal; 0: there is none.
    pub number: i64,
    /// Its hash; of none, zeros.
    pub hash: [u8; 32],
    /// When the new one is made, by the database's clock.
    pub now: OffsetDateTime,
}

/// Seals at most `limit` rows that wait, those with the lowest ids, by what `make` makes of them, in one transaction.
/// `None`: nothing waits, or somebody else is at it.
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
    // In a statement of its own: the next ones see what whoever had the lock before has left.
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

/// What waits for a seal.
#[derive(Debug, Default)]
struct Waiting {
    /// The first rows, in order; none: none waits.
    rows: Vec<Sealable>,
    /// Whether some that wait before or among these are not there: they were deleted. They go on waiting, so that somebody
    /// finds out.
    has_losses: bool,
}

/// The first rows that wait for a seal. By their ids and not by a join, which would make of statistics that are never right
/// a walk through the whole history.
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

/// The rows of these ids, in order.
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

/// The advisory lock of whoever seals the history or gives up a part of it: "history" in ASCII.
const LOCK: i64 = i64::from_be_bytes(*b"\0history");

/// A look at the whole history as it is at one moment.
#[derive(Debug)]
pub struct Inspection<'c>(sqlx::Transaction<'c, sqlx::Postgres>);

/// Begins one.
///
/// # Errors
///
/// When the database fails.
pub async fn inspect(conn: &mut PgConnection) -> Result<Inspection<'_>, Error> {
    Ok(Inspection(super::snapshot(conn).await?))
}

/// What is personal of a row.
#[derive(Debug)]
pub struct Personal {
    /// The row.
    pub history_id: i64,
    /// With whom it goes.
    pub user_id: Uuid,
    /// Random.
    pub salt: Uuid,
    /// The text of `jsonb`.
    pub changed_data: String,
}

impl Inspection<'_> {
    /// At most `limit` seals after the one of this number, in order.
    ///
    /// # Errors
    ///
    /// When the database fails, also on a hash of another length.
    pub async fn seals(&mut self, after: i64, limit: i64) -> Result<Vec<Seal>, Error> {
        let seals = sqlx::query_as!(
            Seal,
            r#"SELECT number, row_hashes, rows_hash AS "rows_hash: [u8; 32]", hash AS "hash: [u8; 32]", sealed_at,
                      ARRAY(
                          SELECT generate_series(lower(range), upper(range) - 1) FROM unnest(ids) AS range ORDER BY 1
                      ) AS "ids!"
               FROM history_seals WHERE number > $1 ORDER BY number LIMIT $2"#,
            after,
            limit,
        );
        Ok(seals.fetch_all(&mut *self.0).await?)
    }

    /// The rows of these ids, in order.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn rows(&mut self, ids: &[i64]) -> Result<Vec<Sealable>, Error> {
        rows(&mut self.0, ids).await
    }

    /// What is personal of the rows of these ids.
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

    /// Those of these users whose end the history tells of.
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

    /// The ids that were given up with their months, as ranges: the first, and the one after the last.
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

    /// At most `limit` rows that neither a seal has nor the next one will, by their ids.
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

    /// At most `limit` rows that wait for a seal and are not there, by their ids.
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

/// How the sealing goes, as far as that is seen without a look at the whole history.
#[derive(Clone, Copy, Debug)]
pub struct Backlog {
    /// When the oldest row was written that waits for a seal; `None`: none does.
    pub since: Option<OffsetDateTime>,
    /// Whether rows were deleted before their seal.
    pub has_losses: bool,
}

/// What the sealing has left.
///
/// # Errors
///
/// When the database fails.
pub async fn backlog(conn: &mut PgConnection) -> Result<Backlog, Error> {
    let found = waiting(conn, BACKLOG).await?;
    let since = found.rows.first().map(|row| row.changed_at);
    Ok(Backlog { since, has_losses: found.has_losses })
}

/// Where changes may go without a record because somebody has wanted it so, each by the statement that ends it.
#[derive(Debug)]
pub struct Gaps {
    /// The database is set to go on where the history cannot be written.
    pub lenient: Option<String>,
    /// Triggers that write the history are switched off.
    pub switched_off: Vec<String>,
}

/// What the history leaves out, and is meant to.
///
/// # Errors
///
/// When the database fails.
pub async fn gaps(conn: &mut PgConnection) -> Result<Gaps, Error> {
    // As the trigger asks.
    let lenient = sqlx::query_scalar!(
        r#"SELECT format('ALTER DATABASE %I RESET gatepass.history', database.datname) AS "statement!"
           FROM pg_db_role_setting AS setting JOIN pg_database AS database ON database.oid = setting.setdatabase
           WHERE database.datname = current_database() AND setting.setrole = 0
             AND 'gatepass.history=lenient' = ANY(setting.setconfig)"#
    );
    let lenient = lenient.fetch_optional(&mut *conn).await?;
    let switched_off = sqlx::query_scalar!(
        r#"SELECT format('ALTER TABLE %s ENABLE TRIGGER %I', tgrelid::regclass, tgname) AS "statement!"
           FROM pg_trigger
           WHERE tgfoid = to_regproc('record_change') AND tgenabled IN ('D', 'R')
           ORDER BY tgname"#
    );
    Ok(Gaps { lenient, switched_off: switched_off.fetch_all(conn).await? })
}

/// How many of those that wait are looked at together.
const BACKLOG: i64 = 100;

/// Makes the partitions of this month and the next two, where there are none; how many.
///
/// # Errors
///
/// When the database fails, also because somebody reads the history for longer than this may wait.
pub async fn prepare(conn: &mut PgConnection) -> Result<i32, Error> {
    let made = sqlx::query_scalar!(r#"SELECT prepare_history() AS "made!""#);
    Ok(made.fetch_one(conn).await?)
}

/// Gives up the oldest month that ended before `before`, and is sealed; its partition's name. `None`: there is none, or
/// somebody else is at it. The last 30 days stay in any case.
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
    // All that is personal of a month is deleted with it.
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
