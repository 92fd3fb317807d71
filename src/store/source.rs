//! Where the database is, and connections to it.

use std::{io, str::FromStr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use secrecy::{ExposeSecret, SecretString};
use sqlx::{
    ConnectOptions, Connection,
    postgres::{PgConnectOptions, PgSslMode},
};
use tokio::sync::Notify;
use tracing::log::LevelFilter;

use super::{
    Error, PgConnection,
    error::{has_code, within},
    server::{Access, access},
};
use crate::loopback::is_this_machine;

/// A database URL that cannot be parsed. The error does not say which part: it might be a part of the password.
#[derive(Debug, thiserror::Error)]
#[error(
    "not a database URL such as postgres://user:password@host:5432/database; percent-encode special characters in the \
     password"
)]
pub struct InvalidUrl;

/// How long the server works on one statement of a pool's connection before it cancels it, waits for locks included.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(8);
/// How long the server leaves an idle transaction open: whoever began it is gone, or hangs.
const IDLE_IN_TRANSACTION_TIMEOUT: Duration = Duration::from_secs(15);
/// How long we wait for a statement to end. The server should have cancelled it before then; one that has vanished says
/// nothing at all.
const PATIENCE: Duration = STATEMENT_TIMEOUT.saturating_add(Duration::from_secs(2));

/// Waits for one statement of a pool's connection, but no longer than it may take. No socket reports that the other end
/// has vanished without a word (a host that lost power, a network that was cut); without this limit the wait would
/// never end.
///
/// # Errors
///
/// Those of `work`, or [`Error::Unavailable`].
pub async fn patiently<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    within(PATIENCE, work).await
}

/// Where the database is and who we are there. `Debug` does not show the password.
#[derive(Clone)]
pub struct Source {
    options: PgConnectOptions,
    /// With the latest password of this server's user.
    pub(super) newest: Arc<ArcSwap<PgConnectOptions>>,
    /// Told when that password is refused.
    refused: Arc<Notify>,
    is_shared: bool,
}

impl Source {
    /// Parses a `postgres://` URL.
    ///
    /// # Errors
    ///
    /// When the URL cannot be parsed. The message contains no part of it.
    pub fn new(url: &SecretString) -> Result<Self, InvalidUrl> {
        let mut options = PgConnectOptions::from_str(url.expose_secret())
            .map_err(|_| InvalidUrl)?
            // A pooler refuses parameters that it does not know, and the binary format makes no use of this one.
            .extra_float_digits(None)
            .log_statements(LevelFilter::Debug)
            .log_slow_statements(LevelFilter::Warn, Duration::from_secs(1));
        // A URL has an IPv6 address in brackets, and sqlx would look for a host by that name.
        if let Some(address) = options.get_host().strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            let address = address.to_owned();
            options = options.host(&address);
        }
        if options.get_application_name().is_none() {
            options = options.application_name("gatepass");
        }
        let newest = Arc::new(ArcSwap::from_pointee(options.clone()));
        Ok(Self { options, newest, refused: Arc::default(), is_shared: false })
    }

    /// The same database behind a pooler that gives each transaction whichever connection is free. Nothing is set on a
    /// connection then, since it would be set for others too.
    pub fn shared(self) -> Self {
        Self { is_shared: true, ..self }
    }

    /// One connection, for migrations and the command line.
    ///
    /// # Errors
    ///
    /// When the database cannot be reached or refuses us, or does not run transactions at the isolation level that we
    /// need.
    pub async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        let mut conn = self.connect_as_it_is().await?;
        if !self.is_shared {
            let set = sqlx::query!(
                "SELECT set_config('default_transaction_isolation', 'read committed', false) AS isolation,
                        set_config('row_security', 'off', false) AS row_security"
            );
            set.fetch_one(&mut conn).await?;
        }
        check(&mut conn).await?;
        Ok(conn)
    }

    /// A connection on which nothing is set: to a database that is not ours, or through a pooler of which nothing is
    /// known yet.
    pub(super) async fn connect_as_it_is(&self) -> Result<PgConnection, sqlx::Error> {
        PgConnection::connect_with(&self.options).await.map_err(opening)
    }

    /// Opens a connection for a pool.
    pub(super) async fn open(&self) -> Result<(PgConnection, Access), sqlx::Error> {
        let connected = PgConnection::connect_with(&self.newest.load()).await.map_err(opening);
        if connected.as_ref().is_err_and(is_refused) {
            self.refused.notify_one();
        }
        let mut conn = connected?;
        match prepare(&mut conn, self.is_shared).await? {
            Access::Standby => Err(sqlx::Error::Protocol(STANDBY.to_owned())),
            access => Ok((conn, access)),
        }
    }

    /// The same for Postgres's own programs, as the environment variables that libpq reads. They include the password.
    pub(crate) fn libpq_environment(&self) -> Vec<(&'static str, String)> {
        let options = &self.options;
        // For the options without a getter. Host and user have one, and are replaced here because sqlx cannot put every
        // host and user into a URL.
        let url = options.clone().host("localhost").username("user").to_url_lossy();
        let host = options.get_socket().map(|socket| socket.display().to_string());
        let mut environment = vec![
            ("PGHOST", host.unwrap_or_else(|| options.get_host().to_owned())),
            ("PGPORT", options.get_port().to_string()),
            ("PGUSER", options.get_username().to_owned()),
            ("PGDATABASE", self.database().to_owned()),
            ("PGAPPNAME", "gatepass".to_owned()),
        ];
        // Every character but letters and digits is percent-encoded, so a form decodes it as well as a URL does.
        if let Some(password) = url.password() {
            let password =
                form_urlencoded::parse(password.as_bytes()).map(|(password, _)| password.into_owned());
            environment.push(("PGPASSWORD", password.collect()));
        }
        for (name, value) in url.query_pairs() {
            match &*name {
                "sslmode" => environment.push(("PGSSLMODE", value.into_owned())),
                "sslrootcert" => environment.push(("PGSSLROOTCERT", value.into_owned())),
                "sslcert" => environment.push(("PGSSLCERT", value.into_owned())),
                "sslkey" => environment.push(("PGSSLKEY", value.into_owned())),
                _ => {}
            }
        }
        environment
    }

    /// The name of the database.
    pub fn database(&self) -> &str {
        self.options.get_database().unwrap_or(self.options.get_username())
    }

    /// Whether the server is on this machine, so that nobody can listen in between.
    pub fn is_local(&self) -> bool {
        let host = self.options.get_host();
        self.options.get_socket().is_some() || host.starts_with('/') || is_this_machine(host)
    }

    /// Whether nobody on a network can impersonate the server: it is on this machine, or its certificate is checked.
    pub fn is_private(&self) -> bool {
        self.is_local() || matches!(self.options.get_ssl_mode(), PgSslMode::VerifyFull)
    }

    /// The same with another password, which new connections of every pool use from now on. Open connections stay.
    #[must_use]
    pub fn with_password(&self, password: &SecretString) -> Self {
        let options = self.options.clone().password(password.expose_secret());
        self.newest.store(Arc::new(options.clone()));
        Self { options, ..self.clone() }
    }

    /// Waits until the server refuses the password to a pool. It may have been replaced.
    pub async fn refused(&self) {
        self.refused.notified().await;
    }

    /// Has new connections of every pool use the password of `other` from now on. Returns whether it is another one. A
    /// source that leads elsewhere changes nothing.
    pub fn take_password(&self, other: &Self) -> bool {
        let is_new = other.options.to_url_lossy() != self.newest.load().to_url_lossy();
        let is_taken = is_new && self.leads_to_the_same(other);
        if is_taken {
            self.newest.store(Arc::new(other.options.clone()));
        }
        is_taken
    }

    /// Whether `other` has the same server, user and database.
    pub fn leads_to_the_same(&self, other: &Self) -> bool {
        (other.server(), other.place()) == (self.server(), self.place())
    }

    /// Host, port and user.
    pub fn server(&self) -> (&str, u16, &str) {
        (self.options.get_host(), self.options.get_port(), self.options.get_username())
    }

    /// `host:port/database` or `socket directory/database`, for messages.
    pub fn place(&self) -> String {
        let options = &self.options;
        let database = self.database();
        match options.get_socket() {
            Some(directory) => format!("{}/{database}", directory.display()),
            None => match options.get_host() {
                address if address.contains(':') => format!("[{address}]:{}/{database}", options.get_port()),
                host => format!("{host}:{}/{database}", options.get_port()),
            },
        }
    }
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Source({})", self.place())
    }
}

/// Whether the server refused the password.
pub(super) fn is_refused(error: &sqlx::Error) -> bool {
    has_code(error, &["28P01"])
}

/// An error of opening a connection. sqlx takes it for an answer, a zero, when the connection is closed before the
/// server has said whether it speaks TLS. That is what a balancer without a server behind it does.
pub(super) fn opening(error: sqlx::Error) -> sqlx::Error {
    match error {
        sqlx::Error::Protocol(message)
            if message.starts_with("unexpected response from SSLRequest: 0x00") =>
        {
            let closed = "the connection was closed before the server answered";
            sqlx::Error::Io(io::Error::new(io::ErrorKind::UnexpectedEof, closed))
        }
        error => error,
    }
}

/// Makes a new connection fit for use. Settings are made here, not as startup parameters, which a pooler may refuse.
/// Rows that a policy hides from then on are an error (`row_security`): a session that ended unseen would go on.
async fn prepare(conn: &mut PgConnection, is_shared: bool) -> Result<Access, sqlx::Error> {
    if is_shared {
        check(conn).await?;
        return access(conn).await;
    }
    let millis = |duration: Duration| duration.as_millis().to_string();
    let set = sqlx::query!(
        r#"SELECT set_config('statement_timeout', $1, false) AS statement,
                  set_config('idle_in_transaction_session_timeout', $2, false) AS idle,
                  set_config('default_transaction_isolation', 'read committed', false) AS isolation,
                  set_config('row_security', 'off', false) AS row_security,
                  pg_is_in_recovery() AS "is_standby!",
                  current_setting('transaction_read_only')::bool AS "is_read_only!""#,
        millis(STATEMENT_TIMEOUT),
        millis(IDLE_IN_TRANSACTION_TIMEOUT),
    );
    let set = set.fetch_one(&mut *conn).await?;
    check(conn).await?;
    Ok(Access::of(set.is_standby, set.is_read_only))
}

/// Refuses a connection whose transactions do not run at `READ COMMITTED`, where the level cannot be set: at another
/// one, a session that begins while its user is being disabled would live on, and waiting for a row would end in an
/// error. One on which no trigger fires, which would end sessions without telling the replicas. And one from which rows
/// are hidden.
async fn check(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    let found = sqlx::query!(
        r#"SELECT current_setting('default_transaction_isolation') AS "level!",
                  current_setting('session_replication_role') AS "replication_role!",
                  (SELECT string_agg(relname, ', ' ORDER BY relname) FROM pg_class
                   WHERE relrowsecurity AND row_security_active(oid)) AS hidden"#
    );
    let found = found.fetch_one(conn).await?;
    if found.level != "read committed" {
        return Err(sqlx::Error::Protocol(format!(
            "transactions run at {} here, and would miss concurrent changes: behind a pooler in transaction mode the \
             isolation level has to be set on the role (ALTER ROLE … SET default_transaction_isolation = 'read \
             committed', docs/database.md)",
            found.level
        )));
    }
    if found.replication_role == "replica" {
        return Err(sqlx::Error::Protocol(
            "session_replication_role is replica: no trigger fires, and replicas would not hear of a session's end; \
             RESET it where it is set, ALTER SYSTEM, DATABASE or ROLE (`\\drds` in psql)"
                .to_owned(),
        ));
    }
    if let Some(tables) = found.hidden {
        return Err(sqlx::Error::Protocol(format!(
            "row-level security hides rows from this role, revocations perhaps: as the owner, ALTER TABLE … DISABLE ROW \
             LEVEL SECURITY on {tables}"
        )));
    }
    Ok(())
}

/// The error for a connection that leads to a standby.
pub const STANDBY: &str =
    "the server is a standby, which takes no writes: it has not been promoted, or the address is stale";

/// Whether a connection was not used because it leads to a standby.
pub(super) fn is_standby(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Protocol(message) if message == STANDBY)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::store::{NoConnection, may_pass, no_connection};

    /// As by a balancer without a server behind it, while another server takes over.
    #[tokio::test]
    async fn a_connection_that_is_closed_at_once_may_be_tried_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                // Once the client has asked; otherwise the connection might be reset.
                let (client, _) = listener.accept().await.unwrap();
                client.readable().await.unwrap();
                client.try_read(&mut [0; 1024]).unwrap();
            }
        });
        for mode in ["disable", "prefer", "require", "verify-full"] {
            let source = Source::new(&format!("postgres://u:p@{address}/d?sslmode={mode}").into()).unwrap();
            for error in [source.connect().await.unwrap_err(), source.open().await.unwrap_err()] {
                assert!(may_pass(&error), "{mode} {error}");
                assert_eq!(no_connection(&error), Some(NoConnection::NoServer), "{mode} {error}");
            }
        }
    }

    #[test]
    fn an_ipv6_address_is_bracketed_only_for_display() {
        let url = "postgres://u%2Fv:p@[2001:db8::1]:5433/d?sslmode=verify-full".to_owned();
        let source = Source::new(&url.into()).unwrap();
        assert_eq!(source.place(), "[2001:db8::1]:5433/d");
        assert_eq!(source.server(), ("2001:db8::1", 5433, "u/v"));
        assert!(!source.is_local());
        let environment = source.libpq_environment();
        for (name, value) in [
            ("PGHOST", "2001:db8::1"),
            ("PGPORT", "5433"),
            ("PGUSER", "u/v"),
            ("PGPASSWORD", "p"),
            ("PGSSLMODE", "verify-full"),
        ] {
            assert!(environment.contains(&(name, value.to_owned())), "{name} {environment:?}");
        }
        assert!(Source::new(&"postgres://u@[::1]/d".to_owned().into()).unwrap().is_local());
    }
    #[test]
    fn a_remote_database_counts_as_private_only_with_verify_full() {
        for (url, is_private) in [
            ("postgres:///d?host=/run/pg", true),
            ("postgres://u:p@%2Frun%2Fpg/d", true),
            ("postgres://u:p@localhost:5432/d", true),
            ("postgres://u:p@127.0.0.2/d", true),
            ("postgres://u:p@[::1]:5432/d", true),
            ("postgres://u:p@[::1]/d", true),
            ("postgres://u:p@db.example.com/d?sslmode=verify-full&sslrootcert=/ca.pem", true),
            ("postgres://u:p@db.example.com/d", false),
            ("postgres://u:p@[2001:db8::1]:5432/d", false),
            ("postgres://u:p@10.0.0.1:5432/d?sslmode=require", false),
            ("postgres://u:p@db.example.com/d?sslmode=verify-full&sslmode=prefer", false),
            ("postgres://localhost/d?host=db.example.com", false),
        ] {
            assert_eq!(Source::new(&url.to_owned().into()).unwrap().is_private(), is_private, "{url}");
        }
    }
}
