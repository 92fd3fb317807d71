//! The database of a command: finds it, waits for it, migrates it and closes it.

use std::{collections::HashSet, error::Error, fmt, io, path::PathBuf, time::Duration};

use secrecy::{ExposeSecret, SecretString};
use time::OffsetDateTime;
use tokio::time::{Instant, timeout};

use super::{
    Failure, say,
    setup::{self, state_dir},
};
use crate::{
    aws::{self, Aws, login::Login},
    chain,
    clock::Clock,
    config::{DbPooler, Environment, Loaded, Settings},
    embedded::Embedded,
    metrics::Metrics,
    store::{
        self, NoConnection, PgConnection, PgPool,
        migrations::{self, Schema},
        pooler::{self, Sharing},
    },
};

/// How long a database may take to come up before the start fails.
const DATABASE_PATIENCE: Duration = Duration::from_secs(30);
/// How long to wait at the end for connections to be returned.
const CLOSE_PATIENCE: Duration = Duration::from_secs(3);
/// How long a database may take to answer a connection attempt.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
const DATABASE_POLL: Duration = Duration::from_millis(250);
/// How long to leave the settings alone after they were read again: they may be a secret in AWS.
const REREAD_REST: Duration = Duration::from_secs(5);

/// Who logs in to the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum As {
    /// The service.
    Service,
    /// The role that may change the schema: the service's own, unless there is a separate one.
    Migrator,
}

/// The database, and the Postgres of our own behind it if there is one.
pub(super) struct Database {
    source: store::Source,
    migration_source: Option<store::Source>,
    master_source: Option<store::Source>,
    embedded: Option<Embedded>,
    /// Where the service logs in with a token: what renews it, and when to.
    renewal: Option<(Login, OffsetDateTime)>,
}

impl Database {
    /// As [`open_for_service`](Self::open_for_service), for every other command. One that is run in another directory
    /// than the service would see an empty database, and seem to have lost everything: says so if it is a new one.
    pub(super) async fn open(settings: &Settings) -> Result<Self, Failure> {
        let database = Self::open_for_service(settings).await?;
        if database.embedded().is_some_and(Embedded::is_new) {
            say(&format!(
                "note: there was no database in {}, so a new, empty one was made there; to use another, run this where \
                 `gatepass serve` runs, or set DB_SOURCE",
                state_dir()?.display()
            ));
        }
        Ok(database)
    }

    /// The database that the settings name; in development, when they name none, one of our own.
    pub(super) async fn open_for_service(settings: &Settings) -> Result<Self, Failure> {
        let (url, embedded) = match &settings.db_source {
            Some(url) => (url.clone(), None),
            None if settings.environment == Environment::Development => {
                let embedded = Embedded::start(&state_dir()?).await?;
                (SecretString::from(embedded.url()), Some(embedded))
            }
            // The check of the settings requires it in production. Never fall back, should that check change.
            None => return Err("DB_SOURCE is not set".into()),
        };
        let mut source = named(store::Source::new(&url), "DB_SOURCE")?;
        if settings.db_pooler == DbPooler::Transaction {
            source = source.shared();
        }
        let other = |url: &Option<SecretString>, key| {
            url.as_ref().map(|url| named(store::Source::new(url), key)).transpose()
        };
        let migration_source = other(&settings.migration_db_source, "MIGRATION_DB_SOURCE")?;
        let master_source = other(&settings.master_db_source, "MASTER_DB_SOURCE")?;
        let mut database = Self { source, migration_source, master_source, embedded, renewal: None };
        if settings.db_iam_auth {
            database.take_tokens(settings).await.map_err(|error| format!("DB_IAM_AUTH: {error}"))?;
        }
        Ok(database)
    }

    /// Lets the service and the migrations log in with IAM tokens. The role that makes roles has a password.
    async fn take_tokens(&mut self, settings: &Settings) -> Result<(), aws::Error> {
        let aws = Aws::new(settings.aws_region.as_deref(), settings.aws_endpoint_url.as_deref()).await?;
        let now = Clock::system().now();
        let login = Login::new(aws.clone(), self.source.clone());
        let access = login.access(now).await?;
        self.source = access.source;
        if let Some(source) = &mut self.migration_source {
            *source = Login::new(aws, source.clone()).access(now).await?.source;
        }
        self.renewal = Some((login, access.renew_at));
        Ok(())
    }

    /// Makes sure that the service's connections are handed out as `DB_POOLER` says. Returns a warning, if any.
    ///
    /// # Errors
    ///
    /// When statements would go to the wrong connection.
    pub(super) async fn check_pooler(&self, mode: DbPooler) -> Result<Option<&'static str>, Failure> {
        let found = pooler::sharing(&self.source).await.map_err(|error| self.unusable(error))?;
        match (mode, found) {
            (DbPooler::Session, Sharing::Session) => Ok(None),
            (DbPooler::Session, Sharing::Transaction | Sharing::Unprepared) => Err(
                "DB_SOURCE goes through a pooler that gives each transaction another connection: \
                 set DB_POOLER=transaction, or the pooler to session mode (docs/database.md)"
                    .into(),
            ),
            (DbPooler::Transaction, Sharing::Unprepared) => Err(
                "the pooler of DB_SOURCE does not keep prepared statements: in transaction mode it has to be \
                 pgbouncer 1.21 or later with max_prepared_statements above 0; set an older one to session mode, and \
                 DB_POOLER=session (docs/database.md)"
                    .into(),
            ),
            (DbPooler::Transaction, Sharing::Session) => Ok(Some(
                "DB_POOLER=transaction, but no pooler in transaction mode is found: without one, session is better",
            )),
            (DbPooler::Transaction, Sharing::Transaction) => {
                let mut conn = self.connection(As::Service).await?;
                let timeout = pooler::statement_timeout(&mut conn).await.map_err(|error| self.unusable(error))?;
                Ok((timeout == 0).then_some(
                    "no statement timeout is set: behind a pooler in transaction mode it has to be set on the role \
                     (ALTER ROLE … SET statement_timeout = '8s', docs/database.md)",
                ))
            }
        }
    }

    /// The Postgres of our own.
    pub(super) fn embedded(&self) -> Option<&Embedded> {
        self.embedded.as_ref()
    }

    /// Where the database is, for messages.
    pub(super) fn place(&self) -> String {
        self.source.place()
    }

    /// The place to which [`migration_connection`](Self::migration_connection) leads.
    pub(super) fn migration_place(&self) -> String {
        self.chosen(As::Migrator).0.place()
    }

    /// Whether the database is on this machine.
    pub(super) fn is_local(&self) -> bool {
        self.source.is_local()
    }

    /// A pool for the service. A caller that keeps it for more than a few minutes must poll its
    /// [`renewal`](Self::renewal).
    pub(super) fn pool(&self, max_connections: u32) -> PgPool {
        self.source.pool(max_connections)
    }

    /// What renews the token with which pools log in.
    pub(super) fn renewal(&self) -> Renewal {
        self.renewal
            .clone()
            .map_or(Renewal::Nothing, |(login, renew_at)| Renewal::Token(Box::new(login), renew_at))
    }

    /// The same, or if they log in with a password, what reads that again from the settings.
    pub(super) fn renewal_from(&self, config_file: Option<PathBuf>) -> Renewal {
        match self.renewal() {
            Renewal::Nothing => Renewal::Password(Box::new(self.source.clone()), config_file),
            token => token,
        }
    }

    /// A connection now, without waiting for a database that is not up yet.
    pub(super) async fn connection(&self, user: As) -> Result<PgConnection, Failure> {
        let (source, setting) = self.chosen(user);
        connect(source).await.map_err(|error| self.unreachable(source, setting, error))
    }

    fn chosen(&self, user: As) -> (&store::Source, &'static str) {
        match &self.migration_source {
            Some(source) if user == As::Migrator => (source, "MIGRATION_DB_SOURCE"),
            _ => (&self.source, "DB_SOURCE"),
        }
    }

    /// A connection of the role that may change the schema. Waits for a database that is just coming up.
    pub(super) async fn migration_connection(&self) -> Result<PgConnection, Failure> {
        self.patient_connection(As::Migrator).await
    }

    /// Like [`connection`](Self::connection), but waits for a database that is just coming up.
    async fn patient_connection(&self, user: As) -> Result<PgConnection, Failure> {
        let (source, setting) = self.chosen(user);
        let begun = Instant::now();
        let mut has_told = false;
        loop {
            let error = match connect(source).await {
                Ok(conn) => return Ok(conn),
                Err(error) => error,
            };
            if !store::may_pass(&error) {
                return Err(self.unreachable(source, setting, error));
            }
            let place = source.place();
            if !std::mem::replace(&mut has_told, true) {
                let patience = DATABASE_PATIENCE.as_secs();
                let error = chain::cause(&error);
                tracing::warn!(%place, error, "waiting for the database, for up to {patience} s");
            }
            if begun.elapsed() >= DATABASE_PATIENCE {
                return Err(self.unreachable(source, setting, error));
            }
            tokio::time::sleep(DATABASE_POLL).await;
        }
    }

    /// The error to report when the service's own connection fails.
    pub(super) fn unusable(&self, error: impl Into<store::Error>) -> Failure {
        match error.into() {
            store::Error::Unavailable(error) | store::Error::Failed(error) => {
                self.unreachable(&self.source, "DB_SOURCE", error)
            }
            error => error.into(),
        }
    }

    fn unreachable(&self, source: &store::Source, setting: &'static str, error: sqlx::Error) -> Failure {
        let takes_tokens = self.renewal.is_some() && setting != "MASTER_DB_SOURCE";
        Unreachable { place: source.place(), hint: hint(&error, setting, takes_tokens), source: error }.into()
    }

    /// A connection of the role that may create roles.
    pub(super) async fn master_connection(&self) -> Result<PgConnection, Failure> {
        let Some(master) = &self.master_source else { return self.patient_connection(As::Service).await };
        if master.database() != self.source.database() {
            return Err(format!(
                "MASTER_DB_SOURCE names the database {}, DB_SOURCE {}: name the same",
                master.database(),
                self.source.database()
            )
            .into());
        }
        connect(master).await.map_err(|error| self.unreachable(master, "MASTER_DB_SOURCE", error))
    }

    /// With `migrate`, brings the schema up to date; otherwise makes sure that it is, with the service's own role.
    pub(super) async fn migrate(&self, migrate: bool) -> Result<(), Failure> {
        let user = if migrate { As::Migrator } else { As::Service };
        let mut conn = self.patient_connection(user).await?;
        if migrate && migrations::is_due(&mut conn).await? {
            for status in migrations::up(&mut conn, None).await?.applied {
                tracing::info!("applied migration {:06} {}", status.version, status.name);
            }
        }
        if let Schema::Newer(version) = migrations::check(&mut conn).await? {
            tracing::warn!(
                "the database is at migration {version:06}, of a later release: finish the update, or undo it \
                 with that release"
            );
        }
        Ok(())
    }

    /// Stops the Postgres of our own, if there is one and we may stop it.
    pub(super) async fn close(self) -> Result<(), Failure> {
        match self.embedded {
            Some(embedded) => Ok(embedded.stop().await?),
            None => Ok(()),
        }
    }

    /// [`close`](Self::close)s after work that is `done`. If both fail, returns the work's failure.
    pub(super) async fn closing<T>(self, done: Result<T, Failure>) -> Result<T, Failure> {
        let closed = self.close().await;
        let done = done?;
        closed.map(|()| done)
    }
}

/// Connects to a database, which has to answer in time.
async fn connect(source: &store::Source) -> Result<PgConnection, sqlx::Error> {
    timeout(CONNECT_PATIENCE, source.connect()).await.unwrap_or_else(|_| {
        let message = format!("no answer within {} s", CONNECT_PATIENCE.as_secs());
        Err(sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, message)))
    })
}

/// How far this machine's clock is from the database's.
#[derive(Debug)]
pub(super) struct ClockSkew {
    /// How long the database took to answer.
    pub(super) latency: time::Duration,
    /// How far ahead the database's clock is, give or take half the latency.
    ahead: time::Duration,
}

impl ClockSkew {
    /// Asks the database.
    ///
    /// # Errors
    ///
    /// When it fails.
    pub(super) async fn measure(conn: &mut PgConnection, clock: &Clock) -> Result<Self, store::Error> {
        let before = clock.now();
        let there = store::now(conn).await?;
        let latency = clock.now() - before;
        // The database read its clock at some time between the two.
        let half: time::Duration = latency / 2;
        Ok(Self { latency, ahead: there - (before + half) })
    }

    /// How far apart the clocks are at least.
    pub(super) fn apart(&self) -> time::Duration {
        let half: time::Duration = self.latency / 2;
        (self.ahead.abs() - half).max(time::Duration::ZERO)
    }
}

impl fmt::Display for ClockSkew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let which = if self.ahead.is_positive() { "behind" } else { "ahead of" };
        write!(f, "this machine's is {:.1} s {which} the database's", self.ahead.abs().as_seconds_f64())
    }
}

/// What keeps the credentials fresh with which pools log in.
pub(super) enum Renewal {
    /// A token, and when to renew it.
    Token(Box<Login>, OffsetDateTime),
    /// A password, and the file with the settings that it came from.
    Password(Box<store::Source>, Option<PathBuf>),
    Nothing,
}

impl Renewal {
    /// Keeps the token or the password valid for as long as this is polled.
    pub(super) async fn keep(&self, clock: &Clock, metrics: &Metrics) {
        match self {
            Self::Token(login, renew_at) => login.keep(*renew_at, clock, metrics).await,
            Self::Password(source, config_file) => follow_password(source, config_file.as_ref()).await,
            Self::Nothing => std::future::pending().await,
        }
    }
}

/// Reads the settings again whenever the server refuses the password, which may have been replaced in both places.
async fn follow_password(source: &store::Source, config_file: Option<&PathBuf>) {
    let mut told = HashSet::new();
    loop {
        source.refused().await;
        match setup::load(config_file.cloned()).await {
            Ok(Loaded { settings: Settings { db_source: Some(url), .. }, .. }) => {
                if store::Source::new(&url).is_ok_and(|newer| source.take_password(&newer)) {
                    tracing::info!("DB_SOURCE has another password, which new connections use from now on");
                } else if let Some(to) = elsewhere(source, &url)
                    && told.insert(to.clone())
                {
                    let from = user_and_place(source);
                    tracing::warn!(from, to, "DB_SOURCE leads elsewhere now; restart to follow");
                }
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(
                error = &*error as &(dyn Error + 'static),
                "the database refuses the password, and the settings cannot be read again"
            ),
        }
        tokio::time::sleep(REREAD_REST).await;
    }
}

/// Where `url` leads, if that is not where `source` leads.
fn elsewhere(source: &store::Source, url: &SecretString) -> Option<String> {
    let newer = store::Source::new(url).ok().filter(|newer| !source.leads_to_the_same(newer))?;
    // In a password that is not percent-encoded, one of these characters passes for the end of the password, and what
    // comes after it for the host or the database.
    let is_plain = match url.expose_secret().splitn(3, '@').collect::<Vec<_>>()[..] {
        [before, _] => before.split_once("://").is_some_and(|(_, user)| !user.contains(['/', '?', '#'])),
        _ => false,
    };
    Some(if is_plain { user_and_place(&newer) } else { "a place that may contain a secret".to_owned() })
}

fn user_and_place(source: &store::Source) -> String {
    let (_, _, user) = source.server();
    format!("{user}@{}", source.place())
}

#[derive(Debug, thiserror::Error)]
#[error("the database at {place} cannot be used{hint}")]
struct Unreachable {
    place: String,
    hint: String,
    source: sqlx::Error,
}

/// What to do about an error, if that is known. `setting` is the one with the URL.
fn hint(error: &sqlx::Error, setting: &str, takes_tokens: bool) -> String {
    match store::no_connection(error) {
        Some(NoConnection::Tls) => format!(
            ": it has to speak TLS, with a certificate that bears the name of the host in {setting} and is signed by an \
             authority in the file that sslrootcert names; check these, and sslmode"
        ),
        Some(NoConnection::Silence) => format!(
            ": it takes the connection and does not answer: is Postgres stopped, overloaded, or something else on that \
             port? (Or a firewall drops the packets: check host and port in {setting})"
        ),
        Some(NoConnection::NoServer) => format!(": check host and port in {setting}, and that Postgres runs there"),
        Some(NoConnection::NoDatabase) => {
            format!(": it does not exist; create it (`createdb`) or correct {setting}")
        }
        Some(NoConnection::NotAuthenticated) if takes_tokens => format!(
            ": it does not let this user in; check user and host in {setting}, that the user has the role rds_iam, and that \
             the AWS credentials allow rds-db:connect"
        ),
        Some(NoConnection::NotAuthenticated) => {
            format!(": it does not let this user in; check user and password in {setting}")
        }
        Some(NoConnection::NotPrivileged) => {
            format!(": this user may not connect to it; check user and database in {setting}")
        }
        Some(NoConnection::TooMany) => ": all the connections it allows are in use; see in pg_stat_activity who \
            holds them, and compare max_connections and the CONNECTION LIMIT of database and role with what the \
            replicas need (docs/database.md)"
            .to_owned(),
        None => String::new(),
    }
}

fn named(result: Result<store::Source, store::InvalidUrl>, key: &str) -> Result<store::Source, Failure> {
    result.map_err(|error| format!("{key}: {error}").into())
}

/// Closes a pool without waiting forever for a database that does not answer.
pub(super) async fn close(db: &PgPool) {
    if timeout(CLOSE_PATIENCE, db.close()).await.is_err() {
        tracing::warn!("the database did not let go of its connections in time");
    }
}

/// Does `work` on the migrated database. If that is a Postgres of our own, it is started where necessary.
pub(super) async fn on_pool<T>(
    settings: &Settings,
    work: impl AsyncFnOnce(&PgPool) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let database = Database::open(settings).await?;
    // A developer's own database may be new. Migrating any other is not this command's task.
    let is_own = settings.environment == Environment::Development && database.embedded().is_some();
    let done = match database.migrate(is_own).await {
        Ok(()) => {
            let db = database.pool(1);
            let (renewal, clock, metrics) = (database.renewal(), Clock::system(), Metrics::new());
            let done = tokio::select! {
                done = work(&db) => done,
                () = renewal.keep(&clock, &metrics) => Err("the token for the database can no longer be renewed".into()),
            };
            close(&db).await;
            done
        }
        Err(error) => Err(error),
    };
    database.closing(done).await
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn connecting_to_a_database_that_never_answers_times_out() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("postgres://u:p@{}/d", silent.local_addr().unwrap());
        let source = store::Source::new(&url.into()).unwrap();
        let master_source = Some(source.clone());
        let database =
            Database { source, migration_source: None, master_source, embedded: None, renewal: None };
        let begun = Instant::now();
        for found in [
            database.connection(As::Service).await,
            database.master_connection().await,
            database.migration_connection().await,
        ] {
            let said = found.unwrap_err().to_string();
            assert!(
                said.contains("it takes the connection and does not answer: is Postgres stopped"),
                "{said}"
            );
        }
        let limit = DATABASE_PATIENCE + DATABASE_POLL + 3 * CONNECT_PATIENCE;
        assert!(begun.elapsed() <= limit, "{:?}", begun.elapsed());
    }

    #[test]
    fn where_a_url_leads_is_told_without_any_part_of_the_password() {
        let source = store::Source::new(&"postgres://u:p@db:5432/d".to_owned().into()).unwrap();
        for (url, expected) in [
            ("postgres://u:secret@db:5432/d?sslmode=require", None),
            ("postgres://u:secret@db/d", None),
            ("postgres://u:secret@other/d", Some("u@other:5432/d")),
            ("postgres://v:secret%40@db:5433/e", Some("v@db:5433/e")),
            ("postgres://u:secret@%2Frun%2Fpg/d", Some("u@/run/pg/d")),
            // sqlx takes the `1` for a port, and `secret@db` for a database.
            ("postgres://u:1/secret@db:5432/d", Some("a place that may contain a secret")),
            ("postgres://u:1?secret@db:5432/d", Some("a place that may contain a secret")),
            ("postgres://u:1#secret@db:5432/d", Some("a place that may contain a secret")),
            ("postgres://u:1@secret/2@db:5432/d", Some("a place that may contain a secret")),
        ] {
            assert_eq!(elsewhere(&source, &url.to_owned().into()).as_deref(), expected, "{url}");
        }
    }
}
