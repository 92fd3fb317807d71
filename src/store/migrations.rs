//! The schema's versions: embedded in the binary, applied and undone here.

use std::{collections::HashMap, time::Duration};

use sqlx::migrate::{MigrateError, Migrator};
use time::OffsetDateTime;

use super::{PgConnection, error::has_code, roles};
use crate::chain;

static MIGRATOR: Migrator = Migrator { locking: false, ..sqlx::migrate!() };

/// The advisory lock that is held while migrating: "gatepass" in ASCII.
const LOCK: i64 = i64::from_be_bytes(*b"gatepass");
/// Its lower half, as `pg_locks` shows it.
const LOCK_OBJID: u32 = u32::from_be_bytes(*b"pass");
const LOCK_POLL: Duration = Duration::from_millis(100);
/// How long a replica waits for another that migrates before it gives up.
const LOCK_PATIENCE: Duration = Duration::from_secs(300);

/// How many times to try what did not get its locks, each time after a rest in which the others get through.
pub(super) const LOCK_ATTEMPTS: u32 = 30;
pub(super) const LOCK_REST: Duration = Duration::from_secs(1);

/// How long a migration in a transaction, or [`roles::set_up()`], waits for a lock. While it waits, everybody else who
/// needs the table queues up behind it.
///
/// At first for less than `deadlock_timeout`, so that in a deadlock with a request it is the migration that gives way.
/// Then for longer, since Postgres takes that long to cancel an autovacuum which is in the way.
pub(super) fn lock_timeout(attempt: u32) -> &'static str {
    if attempt <= LOCK_ATTEMPTS / 3 { "500ms" } else { "2s" }
}

/// Why the schema is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database knows a migration that the binary does not.
    #[error(
        "the database is at migration {0:06}, which this gatepass does not know: a newer version has migrated it. \
         Run that version, or undo the migration with it (`gatepass migrate down`)"
    )]
    Newer(i64),
    /// The schema no longer has something that the binary needs.
    #[error(
        "the database is at migration {version:06} and serves releases that know migration {oldest:06}, which this one \
         does not: run a later release, or undo the migrations with it (`gatepass migrate down`)"
    )]
    LeftBehind {
        /// The last migration that was applied.
        version: i64,
        /// The oldest one that a binary has to know.
        oldest: i64,
    },
    /// A migration was applied with a different text from the one in the binary.
    #[error(
        "migration {0:06} was changed after it was applied to this database: its text in the binary is \
         different. Run the version that applied it, and make changes in a new migration"
    )]
    Changed(i64),
    /// Migrations are pending and may not be applied.
    #[error("the database lacks {0} migration(s): run `gatepass migrate up`, or set MIGRATE_ON_START=true")]
    Pending(usize),
    /// The schema belongs to the role made for that, and this is not it.
    #[error(
        "{0} may not change the schema, which belongs to {owner}: set MIGRATION_DB_SOURCE to the URL of {owner}, \
         or of a member of it",
        owner = roles::OWNER
    )]
    NotOwner(String),
    /// The role lacks a privilege to see what was applied. That does not mean that nothing was.
    #[error(
        "{user} may not see which migrations were applied: it lacks {privilege}. `gatepass migrate up` as {owner} \
         grants it to the service's role; for any other role, the schema's owner must `GRANT {privilege} TO {user}`",
        owner = roles::OWNER
    )]
    MayNotLook {
        /// The role that is logged in.
        user: String,
        /// As in `GRANT`.
        privilege: &'static str,
    },
    /// A migration was refused, and the role lacks the right to create a schema, which one of them needs.
    #[error(
        "a migration was refused and rolled back: {user} may not create schemas in the database {database}. Have its \
         owner `GRANT CREATE ON DATABASE {database} TO {user}`, or create the roles with `gatepass db setup`, and \
         migrate again"
    )]
    MayNotMakeSchemas {
        /// The role that migrates.
        user: String,
        /// The database.
        database: String,
    },
    /// Somebody else has held the lock for longer than a migration may take.
    #[error(
        "another session has been migrating this database for {} s; `SELECT pid, state, phase, query FROM pg_locks \
         JOIN pg_stat_activity AS session USING (pid) LEFT JOIN pg_stat_progress_create_index USING (pid) \
         WHERE locktype = 'advisory' AND objid = {} AND session.datname = current_database()`, run as the schema's \
         owner, shows it. If it has a `phase`, it is building an index, perhaps for a process that is gone: wait for \
         it, and migrate again. If nobody is at work there any more: `SELECT pg_terminate_backend(pid)`",
        LOCK_PATIENCE.as_secs(),
        LOCK_OBJID
    )]
    Locked,
    /// A migration failed and was rolled back.
    #[error("a migration failed and was rolled back")]
    Failed(#[source] MigrateError),
    /// A migration that runs without a transaction failed.
    #[error(
        "a migration without a transaction failed, and what it has done is not rolled back: migrate again, which does \
         the rest or says what has to be removed first"
    )]
    Unfinished(#[source] MigrateError),
    /// An index was begun and not completed: `IF NOT EXISTS` would take it for the one to be created.
    #[error(
        "the index {index} is invalid: its build was cut off, and no query uses it. (Or it is being built right now: \
         then wait.) Run `DROP INDEX CONCURRENTLY {index}` as the schema's owner (MIGRATION_DB_SOURCE, where that is \
         set), and migrate again"
    )]
    InvalidIndex {
        /// Its full name, quoted where necessary.
        index: String,
    },
    /// The database failed.
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
}

impl From<MigrateError> for Error {
    fn from(error: MigrateError) -> Self {
        match error {
            MigrateError::VersionMissing(version) => Self::Newer(version),
            MigrateError::VersionMismatch(version) => Self::Changed(version),
            other => Self::Failed(other),
        }
    }
}

/// One migration, in the binary, in the database, or in both.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Status {
    /// Its number.
    pub version: i64,
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: State,
    /// When it was applied.
    #[serde(with = "time::serde::rfc3339::option")]
    pub applied_at: Option<OffsetDateTime>,
}

/// The state of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// In the database with the same text as in the binary.
    Applied,
    /// In the binary only.
    Pending,
    /// In the database with a different text from the one in the binary.
    Changed,
    /// In the database only.
    Unknown,
}

/// Every migration that the binary or the database knows, in order. Changes nothing.
///
/// # Errors
///
/// [`Error::MayNotLook`], or when the database fails.
pub async fn status(conn: &mut PgConnection) -> Result<Vec<Status>, Error> {
    status_of(&MIGRATOR, conn).await
}

async fn status_of(migrator: &Migrator, conn: &mut PgConnection) -> Result<Vec<Status>, Error> {
    let mut applied = applied(conn).await?;
    let mut all: Vec<Status> = migrator
        .iter()
        .filter(|migration| migration.migration_type.is_up_migration())
        .map(|migration| {
            let row = applied.remove(&migration.version);
            Status {
                version: migration.version,
                name: migration.description.to_string(),
                state: match &row {
                    None => State::Pending,
                    Some(row) if *row.checksum == *migration.checksum => State::Applied,
                    Some(_) => State::Changed,
                },
                applied_at: row.map(|row| row.installed_on),
            }
        })
        .collect();
    all.extend(applied.into_values().map(|row| Status {
        version: row.version,
        name: row.description,
        state: State::Unknown,
        applied_at: Some(row.installed_on),
    }));
    all.sort_by_key(|status| status.version);
    Ok(all)
}

/// A schema with everything that the binary needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schema {
    /// The binary's own.
    Current,
    /// A later release's, up to this migration, with everything that the binary still needs (docs/migrations.md).
    Newer(i64),
}

/// Whether the schema has all of the binary's migrations.
///
/// # Errors
///
/// [`Error::Changed`] or [`Error::Pending`] when it has not; [`Error::Newer`] when it lacks some and has others that
/// the binary does not know; [`Error::LeftBehind`], [`Error::MayNotLook`].
pub async fn check(conn: &mut PgConnection) -> Result<Schema, Error> {
    let all = status(conn).await?;
    match all.iter().filter(|status| status.state == State::Pending).count() {
        0 => match refuse_foreign(&all) {
            Ok(()) => Ok(Schema::Current),
            Err(Error::Newer(version)) => newer(conn, version).await,
            Err(error) => Err(error),
        },
        pending => refuse_foreign(&all).and(Err(Error::Pending(pending))),
    }
}

/// As [`check`], where a later release's schema is not accepted.
///
/// # Errors
///
/// As [`check`], and [`Error::Newer`].
pub async fn require_current(conn: &mut PgConnection) -> Result<(), Error> {
    match check(conn).await? {
        Schema::Current => Ok(()),
        Schema::Newer(version) => Err(Error::Newer(version)),
    }
}

/// A schema that a later release has brought to `version`, if it still serves this release.
async fn newer(conn: &mut PgConnection, version: i64) -> Result<Schema, Error> {
    let oldest = sqlx::query_scalar!(r#"SELECT oldest_schema_served() AS "oldest!""#).fetch_one(conn).await?;
    let is_known = MIGRATOR.iter().any(|migration| migration.version >= oldest);
    if is_known { Ok(Schema::Newer(version)) } else { Err(Error::LeftBehind { version, oldest }) }
}

/// Whether [`up`] has anything to do: migrations are pending, or the roles lack rights that they should have.
///
/// # Errors
///
/// When the database fails.
pub async fn is_due(conn: &mut PgConnection) -> Result<bool, Error> {
    match check(conn).await {
        Err(Error::Pending(_)) => Ok(true),
        Ok(Schema::Current) => Ok(roles::deviate(conn).await?),
        // Nothing can be done about it here; the caller finds it out.
        Ok(Schema::Newer(_)) | Err(_) => Ok(false),
    }
}

/// Whether the role that is logged in may apply migrations with [`up`].
///
/// # Errors
///
/// [`Error::NotOwner`] when it may not, or when the database fails.
pub async fn may_apply(conn: &mut PgConnection) -> Result<(), Error> {
    roles::needs_owner(conn).await.map(drop)
}

/// What [`up`] has done.
#[derive(Debug)]
pub struct Done {
    /// The migrations that it applied.
    pub applied: Vec<Status>,
    /// The rights of the roles; looked at only if it applied none.
    pub rights: Rights,
}

/// Whether the roles have the rights that they should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// They have, or there are no such roles.
    Right,
    /// They had not, and have now.
    Restored,
    /// They have not, and whoever is logged in may not change that.
    Wrong,
}

/// Applies the next `limit` pending migrations, or all of them. Each runs in a transaction of its own, unless its first
/// line is `-- no-transaction`, and comes with the grants that the roles need from then on. When none is pending, only
/// the grants are repaired.
///
/// Any number of processes may call this at once: one migrates, the others wait for it and find nothing left to do.
///
/// # Errors
///
/// When the database is newer, when a migration was changed or failed, or when the lock could not be had.
pub async fn up(conn: &mut PgConnection, limit: Option<usize>) -> Result<Done, Error> {
    up_with(&MIGRATOR, conn, limit).await
}

/// As [`up`], with migrations other than the binary's: a test's own.
///
/// # Errors
///
/// As [`up`].
pub async fn up_with(
    migrator: &Migrator,
    conn: &mut PgConnection,
    limit: Option<usize>,
) -> Result<Done, Error> {
    locked(conn, async |conn| {
        let before = status_of(migrator, conn).await?;
        refuse_foreign(&before)?;
        let waiting = before.iter().filter(|status| status.state == State::Pending);
        let versions: Vec<_> =
            waiting.take(limit.unwrap_or(usize::MAX)).map(|status| status.version).collect();
        if versions.is_empty() {
            return Ok(Done { applied: Vec::new(), rights: roles::repair(conn).await? });
        }
        run_all(migrator, conn, Way::Up, &versions).await?;
        let after = status_of(migrator, conn).await?;
        Ok(Done { applied: changed(&before, after), rights: Rights::Right })
    })
    .await
}

/// Undoes the last `count` migrations, newest first, and returns those that it undid.
///
/// # Errors
///
/// As [`up`].
pub async fn down(conn: &mut PgConnection, count: usize) -> Result<Vec<Status>, Error> {
    down_with(&MIGRATOR, conn, count).await
}

/// As [`down`], with migrations other than the binary's: a test's own.
///
/// # Errors
///
/// As [`down`].
pub async fn down_with(
    migrator: &Migrator,
    conn: &mut PgConnection,
    count: usize,
) -> Result<Vec<Status>, Error> {
    locked(conn, async |conn| {
        let before = status_of(migrator, conn).await?;
        let applied = before.iter().rev().filter(|status| status.state == State::Applied);
        let versions: Vec<_> = applied.take(count).map(|status| status.version).collect();
        run_all(migrator, conn, Way::Down, &versions).await?;
        let after = status_of(migrator, conn).await?;
        Ok(changed(&before, after))
    })
    .await
}

/// Refuses changed migrations first, and then unknown ones; the error names the last of them.
fn refuse_foreign(all: &[Status]) -> Result<(), Error> {
    let find = |state| all.iter().rfind(|status| status.state == state).map(|status| status.version);
    if let Some(version) = find(State::Changed) {
        Err(Error::Changed(version))
    } else if let Some(version) = find(State::Unknown) {
        Err(Error::Newer(version))
    } else {
        Ok(())
    }
}

fn changed(before: &[Status], after: Vec<Status>) -> Vec<Status> {
    after
        .into_iter()
        .filter(|now| before.iter().any(|then| then.version == now.version && then.state != now.state))
        .collect()
}

/// Runs `work` while holding the lock. The lock is polled and not waited for inside Postgres: a waiting session holds a
/// snapshot, and `CREATE INDEX CONCURRENTLY` in the session that has the lock would wait for that one.
pub(super) async fn locked<T, E: From<Error>>(
    conn: &mut PgConnection,
    work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, E>,
) -> Result<T, E> {
    let mut patience = LOCK_PATIENCE;
    while !sqlx::query_scalar!(r#"SELECT pg_try_advisory_lock($1) AS "held!""#, LOCK)
        .fetch_one(&mut *conn)
        .await
        .map_err(Error::from)?
    {
        patience = patience.checked_sub(LOCK_POLL).ok_or(Error::Locked)?;
        tokio::time::sleep(LOCK_POLL).await;
    }
    let result = work(&mut *conn).await;
    // The lock goes with the connection in any case; a failure to release it must not hide the result.
    if let Err(error) = sqlx::query_scalar!(r#"SELECT pg_advisory_unlock($1) AS "released!""#, LOCK)
        .fetch_one(&mut *conn)
        .await
    {
        tracing::warn!(error = chain::cause(&error), "the migration lock could not be released");
    }
    result
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

/// Applies or undoes migrations. Where there are roles, it does so as the owner of the schema.
async fn run_all(
    migrator: &Migrator,
    conn: &mut PgConnection,
    way: Way,
    versions: &[i64],
) -> Result<(), Error> {
    let is_owner = roles::become_owner(conn).await?;
    keep_notices(conn).await?;
    let mut done = Ok(());
    for &version in versions {
        let step = Step { migrator, way, version, is_owner };
        done = if step.has_no_transaction() {
            step.outside_transaction(conn).await
        } else {
            step.politely(conn).await
        };
        if done.is_err() {
            break;
        }
    }
    // The first failure is the one to report.
    let as_before = async {
        set_lock_timeout(conn, "0").await?;
        if is_owner { roles::be_oneself(conn).await } else { Ok(()) }
    };
    let as_before = as_before.await.map_err(Error::from);
    done.and(as_before)
}

/// One migration to apply or undo.
struct Step<'m> {
    migrator: &'m Migrator,
    way: Way,
    version: i64,
    /// Whether the owner of the schema runs it, who also sets the grants that follow from it.
    is_owner: bool,
}

impl Step<'_> {
    fn has_no_transaction(&self) -> bool {
        self.migrator.iter().any(|migration| {
            let is_up = migration.migration_type.is_up_migration();
            migration.version == self.version && is_up == (self.way == Way::Up) && migration.no_tx
        })
    }

    /// Runs it in a transaction, without making anybody wait long: if it does not get a lock soon, it is rolled back,
    /// lets the others through, and is tried again.
    async fn politely(&self, conn: &mut PgConnection) -> Result<(), Error> {
        let mut attempt = 1;
        loop {
            set_lock_timeout(conn, lock_timeout(attempt)).await?;
            match self.in_transaction(conn).await {
                Ok(()) => return Ok(()),
                Err(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _))
                    if is_locked_out(&error) && attempt < LOCK_ATTEMPTS =>
                {
                    tracing::info!(attempt, "a migration is waiting for a lock on a table");
                    attempt += 1;
                    tokio::time::sleep(LOCK_REST).await;
                }
                Err(error) => return Err(explained(conn, error).await?),
            }
        }
    }

    /// Runs it and sets the grants: both or neither.
    async fn in_transaction(&self, conn: &mut PgConnection) -> Result<(), MigrateError> {
        if !self.is_owner {
            return self.run(conn).await;
        }
        let mut transaction = super::begin_alone(conn).await?;
        self.run(&mut transaction).await?;
        roles::grant(&mut transaction).await?;
        Ok(transaction.commit().await?)
    }

    /// Runs it without a transaction, such as `CREATE INDEX CONCURRENTLY`. It waits for transactions that began before
    /// it for as long as they take, which keeps nobody from reading and writing. If it were given up meanwhile, it
    /// would leave an invalid index, and on the next try `IF NOT EXISTS` would accept that one.
    async fn outside_transaction(&self, conn: &mut PgConnection) -> Result<(), Error> {
        if self.way == Way::Up
            && let Some(index) = invalid_index(conn).await?
        {
            return Err(Error::InvalidIndex { index });
        }
        set_lock_timeout(conn, "0").await?;
        tracing::info!(
            version = self.version,
            "a migration may have to wait for all transactions that began before it"
        );
        self.run(conn).await.map_err(|error| match error.into() {
            Error::Failed(error) => Error::Unfinished(error),
            other => other,
        })?;
        if self.is_owner {
            roles::grant(conn).await?;
        }
        Ok(())
    }

    async fn run(&self, conn: &mut PgConnection) -> Result<(), MigrateError> {
        match self.way {
            Way::Up => self.migrator.run_direct(Some(self.version), conn, false).await,
            Way::Down => self.migrator.undo(conn, self.version - 1).await,
        }
    }
}

/// The full name of an invalid index on a table of ours. The index of a partitioned table does not count: it is invalid
/// until each partition has its own.
async fn invalid_index(conn: &mut PgConnection) -> Result<Option<String>, sqlx::Error> {
    let tables: Vec<_> = roles::TABLES.iter().map(|table| table.name.to_owned()).collect();
    sqlx::query_scalar!(
        r#"SELECT format('%I.%I', nspname, class.relname) AS "name!"
           FROM pg_index
           JOIN pg_class AS class ON class.oid = indexrelid AND class.relkind = 'i'
           JOIN pg_namespace ON pg_namespace.oid = class.relnamespace AND nspname = 'public'
           JOIN pg_class AS owner ON owner.oid = coalesce(pg_partition_root(indrelid), indrelid)
           WHERE NOT indisvalid AND owner.relname = ANY ($1) ORDER BY 1 LIMIT 1"#,
        &tables
    )
    .fetch_optional(conn)
    .await
}

/// Why a migration failed, explained in full if the role that migrates lacks a right that a migration needs.
async fn explained(conn: &mut PgConnection, error: MigrateError) -> Result<Error, sqlx::Error> {
    if !matches!(&error, MigrateError::ExecuteMigration(error, _) if is_not_privileged(error)) {
        return Ok(error.into());
    }
    let who = sqlx::query!(
        r#"SELECT current_user::text AS "user!", current_database()::text AS "database!",
               has_database_privilege(current_database(), 'CREATE') AS "may!""#
    )
    .fetch_one(conn)
    .await?;
    if who.may {
        return Ok(error.into());
    }
    Ok(Error::MayNotMakeSchemas { user: who.user, database: who.database })
}

/// `insufficient_privilege`.
pub(super) fn is_not_privileged(error: &sqlx::Error) -> bool {
    has_code(error, &["42501"])
}

async fn set_lock_timeout(conn: &mut PgConnection, timeout: &str) -> Result<(), sqlx::Error> {
    sqlx::query_scalar!("SELECT set_config('lock_timeout', $1, false)", timeout).fetch_one(conn).await?;
    Ok(())
}

/// Silences notices: before each migration, sqlx creates its table if it is missing, and each time Postgres says that
/// the table exists.
async fn keep_notices(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query_scalar!("SELECT set_config('client_min_messages', 'warning', false)").fetch_one(conn).await?;
    Ok(())
}

/// The statement of the newest migration that creates this trigger.
pub(super) fn trigger(name: &str) -> Option<&'static str> {
    let ups = MIGRATOR.iter().rev().filter(|migration| migration.migration_type.is_up_migration());
    let statements = ups.flat_map(|migration| migration.sql.as_str().split_inclusive(';'));
    let creates = |statement: &str| {
        let mut words = statement.split_whitespace();
        words.by_ref().find(|word| *word == "TRIGGER").is_some() && words.next() == Some(name)
    };
    statements
        .filter_map(|statement| statement.find("CREATE ").map(|start| &statement[start..]))
        .find(|statement| creates(statement))
}

/// `lock_not_available`, or `deadlock_detected`.
pub(super) fn is_locked_out(error: &sqlx::Error) -> bool {
    has_code(error, &["55P03", "40P01"])
}

#[derive(sqlx::FromRow)]
struct Applied {
    version: i64,
    description: String,
    checksum: Vec<u8>,
    installed_on: OffsetDateTime,
}

async fn applied(conn: &mut PgConnection) -> Result<HashMap<i64, Applied>, Error> {
    let there = sqlx::query!(
        r#"SELECT current_user::text AS "user!", to_regclass('_sqlx_migrations') IS NOT NULL AS "exists!",
               EXISTS (
                   SELECT FROM pg_namespace WHERE nspname = 'public' AND NOT has_schema_privilege(oid, 'USAGE')
               ) AS "is_hidden!""#
    )
    .fetch_one(&mut *conn)
    .await?;
    if !there.exists {
        return if there.is_hidden {
            Err(Error::MayNotLook { user: there.user, privilege: "USAGE ON SCHEMA public" })
        } else {
            Ok(HashMap::new())
        };
    }
    #[expect(clippy::disallowed_methods, reason = "the table is sqlx's own: no migration of ours makes it")]
    let rows = sqlx::query_as("SELECT version, description, checksum, installed_on FROM _sqlx_migrations")
        .fetch_all(conn)
        .await;
    let rows: Vec<Applied> = rows.map_err(|error| {
        if is_not_privileged(&error) {
            Error::MayNotLook { user: there.user, privilege: "SELECT ON _sqlx_migrations" }
        } else {
            error.into()
        }
    })?;
    Ok(rows.into_iter().map(|row| (row.version, row)).collect())
}
