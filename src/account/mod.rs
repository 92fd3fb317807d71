//! The use cases: register, log in, read and change a profile, and so on, with one file for each group of them.
//! This module joins `token`, `password` and `store`, and knows nothing of HTTP.
//!
//! The caller passes in the time and the source of randomness.

mod activity;
mod admin;
mod clean_up;
mod clients;
mod ending;
pub mod export;
mod fields;
mod history;
pub mod import;
mod legacy;
mod login;
mod own;
mod personal;
pub mod private_file;
mod profile;
mod registration;
mod renewal;
mod seals;
mod throttle;

use std::{sync::Arc, time::Duration};

use time::OffsetDateTime;
use tokio::time::{Instant, timeout_at};

use self::personal::Exports;
pub use self::{
    activity::Activity,
    admin::{Page, Position, Search, UserChange},
    clean_up::{CleanUp, Cleaned},
    clients::{Client, Clients},
    fields::{Email, FieldError, FullName, Roles, Username},
    history::{Entry, History, HistoryPage, Wanted},
    login::{Caller, Login, Tokens},
    personal::PersonalData,
    registration::Registration,
    seals::{Head, Problem, Verification, unlogged_heads},
    throttle::{KNOWN_FOR, Throttle},
};
pub use crate::store::users::User;
pub use crate::store::{
    Actor, Cause,
    sessions::{Overview, Stored},
};
use crate::{
    legacy::Legacy,
    metrics::{HashJobs, Metrics},
    password::{self, PoolError},
    revocation::Feed,
    store::{
        self, Access, PgConnection, PgPool, Unique,
        migrations::{self, Schema},
    },
    token::{IssueError, Issuer, refresh::RefreshKeys},
};

/// The role that lets its holders administer users.
pub const ADMIN_ROLE: &str = "admin";

/// The operator's settings for accounts.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Whether anyone may register.
    pub registration_open: bool,
    /// The rules for a new password.
    pub password_rules: password::Rules,
    /// How long an access token is valid.
    pub access_token_duration: Duration,
    /// How long a session lasts without renewal.
    pub refresh_token_duration: Duration,
    /// How long a session lasts at most.
    pub session_duration: Duration,
    /// How long the refresh token just replaced may be presented again, even if its successor is already in use.
    pub refresh_reuse_interval: Duration,
}

impl Policy {
    /// When a refresh token made at `now` expires, unless it is used before: in whole seconds, as in the tokens, and
    /// never after its session.
    fn refresh_expires_at(&self, now: OffsetDateTime, session_ends: OffsetDateTime) -> OffsetDateTime {
        (now.truncate_to_second() + self.refresh_token_duration).min(session_ends)
    }

    /// When an access token made at `now` expires, by the same rules.
    fn access_expires_at(&self, now: OffsetDateTime, session_ends: OffsetDateTime) -> OffsetDateTime {
        (now.truncate_to_second() + self.access_token_duration).min(session_ends)
    }
}

/// What the use cases work with.
#[derive(Debug)]
pub struct Parts {
    /// The database.
    pub db: PgPool,
    /// Hashes passwords.
    pub passwords: password::Pool,
    /// Makes access tokens.
    pub issuer: Arc<Issuer>,
    /// Makes refresh tokens.
    pub refresh_keys: RefreshKeys,
    /// Limits how often someone may fail.
    pub throttle: Throttle,
    /// The old system that users may still come from.
    pub legacy: Option<Legacy>,
    /// With a feed, this replica already refuses what a use case has revoked by the time the use case returns.
    pub feed: Option<Feed>,
    /// With this, a renewal sees that the tokens of the last one were used on this replica, so that its answer was not
    /// lost.
    pub activity: Option<Activity>,
    /// The metrics.
    pub metrics: Metrics,
    /// The operator's settings.
    pub policy: Policy,
}

/// The use cases, over one database. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Accounts {
    parts: Arc<Parts>,
    exports: Exports,
    cause: Cause,
}

/// Why a use case failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The fields that break a rule; never empty.
    #[error("{} field(s) are invalid", .0.len())]
    Invalid(Vec<FieldError>),
    /// The username belongs to another user.
    #[error("the username is taken")]
    UsernameTaken,
    /// The address belongs to another user.
    #[error("the e-mail address is taken")]
    EmailTaken,
    /// The operator has closed registration.
    #[error("registration is closed")]
    RegistrationClosed,
    /// Unknown user, wrong password or disabled user, with no way to tell which.
    #[error("the credentials are not right")]
    InvalidCredentials,
    /// The user whose session the bearer token belongs to has been disabled or deleted.
    #[error("the user has been disabled or deleted")]
    UserGone,
    /// The session of the refresh token was ended.
    #[error("the session was ended")]
    SessionEnded,
    /// Not a refresh token of this service, or one of a session that is no longer stored.
    #[error("the refresh token is not valid")]
    InvalidRefreshToken,
    /// The refresh token was used before; the session has ended for that reason.
    #[error("the refresh token was used before")]
    RefreshTokenReused,
    /// The session was not renewed in time, or has lasted as long as a session may.
    #[error("the session has expired")]
    SessionExpired,
    /// Concurrent changes to the same row kept getting in the way.
    #[error("concurrent changes to the same row kept getting in the way")]
    Contended,
    /// There is no such user.
    #[error("there is no such user")]
    NoSuchUser,
    /// The text is one user's username and looks like another user's id.
    #[error(
        "that is one user's username and looks like another user's id: give the e-mail address or the user's own id"
    )]
    AmbiguousUser,
    /// No one would be left to administer users.
    #[error("the user is the last administrator who is not disabled")]
    LastAdmin,
    /// The administrator who wants this is none any more.
    #[error("the user is not an administrator any more")]
    NotAdministrator,
    /// The user has no such session, or it has ended.
    #[error("there is no such session")]
    NoSuchSession,
    /// Another client has this name.
    #[error("the client's name is taken")]
    ClientNameTaken,
    /// There is no such client.
    #[error("there is no such client")]
    NoSuchClient,
    /// Unknown client or wrong secret, with no way to tell which.
    #[error("the client's credentials are not right")]
    InvalidClient,
    /// Too many failures for this account or from this address.
    #[error("too many attempts")]
    TooManyAttempts {
        /// How long until the next attempt is admitted; none is before then.
        retry_after: Duration,
    },
    /// This replica is already exporting this user's data, or has as many exports under way as it may.
    #[error("an export is under way")]
    ExportUnderWay,
    /// More password hashes are asked for than the machine can compute.
    #[error("too many passwords to hash at once")]
    Overloaded {
        /// How long until it may be worth trying again.
        retry_after: Duration,
    },
    /// A password could not be hashed, through a fault of the service.
    #[error("the password hasher failed")]
    Hasher,
    /// A token could not be made.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// The database cannot be reached, has no free connection, takes no writes, or others were changing the same rows
    /// again and again. The same call may succeed later.
    #[error("the database is unavailable at the moment")]
    Unavailable(#[source] sqlx::Error),
    /// A fault of the service or of the schema.
    #[error("the database refused a statement")]
    Store(#[source] sqlx::Error),
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::Taken(Unique::Username) => Self::UsernameTaken,
            store::Error::Taken(Unique::Email) => Self::EmailTaken,
            // Only imports and users taken over from the old system have an external id; both look again.
            store::Error::Taken(Unique::ExternalId) => Self::Contended,
            store::Error::Taken(Unique::ClientName) => Self::ClientNameTaken,
            store::Error::LastAdmin => Self::LastAdmin,
            store::Error::NotAdministrator => Self::NotAdministrator,
            store::Error::Unavailable(cause) | store::Error::Conflict(cause) => Self::Unavailable(cause),
            store::Error::Failed(cause) => Self::Store(cause),
        }
    }
}

impl From<PoolError> for Error {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Overloaded { retry_after } => Self::Overloaded { retry_after },
            PoolError::Failed => Self::Hasher,
        }
    }
}

/// Cuts a page down to `limit` rows. One more was asked for, to know whether there is a next page: it begins after the
/// row that is returned.
fn cut<T>(page: &mut Vec<T>, limit: u32) -> Option<&T> {
    let has_more = page.len() > limit as usize;
    page.truncate(limit as usize);
    page.last().filter(|_| has_more)
}

/// Why requests cannot be served. The message may be shown to anyone; the cause is for the log.
#[derive(Debug, thiserror::Error)]
pub enum Unready {
    /// The database has not answered in time, or all connections are in use.
    #[error("database: no answer in time")]
    Silent,
    /// The database refuses us, or cannot be reached.
    #[error("database: not reachable")]
    Database(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The database answers but takes no writes.
    #[error("database: takes no writes")]
    ReadOnly,
    /// This many migrations are yet to be applied.
    #[error("schema: {0} migration(s) pending")]
    Pending(usize),
    /// This migration was applied with a different text.
    #[error("schema: migration {0:06} differs")]
    Changed(i64),
    /// A later release has removed something that this one needs.
    #[error("schema: at migration {version:06}, for releases that know {oldest:06}: run a later release")]
    LeftBehind {
        /// The last migration that was applied.
        version: i64,
        /// The migration that a release must know to run on this schema.
        oldest: i64,
    },
    /// Another release has brought the schema to this migration without applying all of this release's.
    #[error("schema: at migration {0:06} of another release, and some of this one's are missing")]
    Foreign(i64),
    /// The service's role has lost a privilege.
    #[error("schema: the applied migrations cannot be read")]
    Hidden(#[source] migrations::Error),
    /// Tokens cannot be made.
    #[error("keys: the signing key cannot be opened")]
    NoKey,
}

impl Accounts {
    /// Builds the use cases.
    pub fn new(parts: Parts) -> Self {
        Self { parts: Arc::new(parts), exports: Exports::default(), cause: Cause::default() }
    }

    /// How many password hashes are queued and running, and how many may be at once.
    pub fn hash_jobs(&self) -> HashJobs {
        HashJobs {
            queued: self.parts.passwords.queued(),
            running: self.parts.passwords.running(),
            max: self.parts.passwords.capacity(),
        }
    }

    /// The fewest characters that a new password may have.
    pub fn password_min_length(&self) -> usize {
        self.parts.policy.password_rules.min_length
    }

    /// The throttle.
    pub fn throttle(&self) -> &Throttle {
        &self.parts.throttle
    }

    /// The same use cases on behalf of `cause`, which the history records.
    #[must_use]
    pub fn caused_by(&self, cause: Cause) -> Self {
        Self { cause, ..self.clone() }
    }

    /// Checks that there is a key to sign tokens with, and that the database answers within `patience`, takes writes
    /// and has the schema that the use cases need.
    ///
    /// # Errors
    ///
    /// Why it is not ready.
    pub async fn ready(&self, patience: Duration) -> Result<(), Unready> {
        if !self.parts.issuer.has_key() {
            return Err(Unready::NoKey);
        }
        let end = Instant::now() + patience;
        // The pool has this patience too, since only the pool knows what it has waited for.
        let db = &self.parts.db;
        let mut conn = db.acquire_within(patience).await.map_err(|error| match error {
            store::Error::Unavailable(sqlx::Error::PoolTimedOut) => {
                db.failure().map_or(Unready::Silent, |why| Unready::Database(why.into()))
            }
            // Its own words would only repeat those of `Unready::Database`.
            store::Error::Unavailable(error) => Unready::Database(error.into()),
            error => Unready::Database(error.into()),
        })?;
        timeout_at(end, fitness(&mut conn)).await.unwrap_or(Err(Unready::Silent))
    }
}

/// Checks that the database takes writes and has the schema.
async fn fitness(conn: &mut PgConnection) -> Result<(), Unready> {
    // Asked each time: the server can become read-only while the connection stays open.
    match store::access(conn).await {
        Ok(Access::Full) => {}
        Ok(Access::ReadOnly | Access::Standby) => return Err(Unready::ReadOnly),
        Err(error) => return Err(Unready::Database(error.into())),
    }
    match migrations::check(conn).await {
        // During a rolling update the older release sees a newer schema, and continues to serve.
        Ok(Schema::Current | Schema::Newer(_)) => Ok(()),
        Err(migrations::Error::Pending(count)) => Err(Unready::Pending(count)),
        Err(migrations::Error::Changed(version)) => Err(Unready::Changed(version)),
        Err(migrations::Error::LeftBehind { version, oldest }) => {
            Err(Unready::LeftBehind { version, oldest })
        }
        Err(migrations::Error::Newer(version)) => Err(Unready::Foreign(version)),
        Err(error @ migrations::Error::MayNotLook { .. }) => Err(Unready::Hidden(error)),
        Err(error) => Err(Unready::Database(error.into())),
    }
}
