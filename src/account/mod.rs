//! The use cases: register, log in, look at and change one's own profile, …; one file for each group of them.
//! Joins `token`, `password` and `store`; knows no HTTP.
//!
//! Whoever calls passes the time and the randomness in.

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
        self, Access, PgPool, Unique,
        migrations::{self, Schema},
    },
    token::{IssueError, Issuer, refresh::RefreshKeys},
};

/// The role whose holders administer users.
pub const ADMIN_ROLE: &str = "admin";

/// What the operator decided about accounts.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Whether anyone may register.
    pub registration_open: bool,
    /// What a password has to be.
    pub password_rules: password::Rules,
    /// How long an access token is good.
    pub access_token_duration: Duration,
    /// How long a session lives without renewal.
    pub refresh_token_duration: Duration,
    /// How long a session lives at most.
    pub session_duration: Duration,
    /// How long the refresh token just replaced may be presented again, whatever has been seen since.
    pub refresh_reuse_interval: Duration,
}

impl Policy {
    /// When a refresh token ends that is made at `now`, unless it is used before: whole seconds, as tokens have them, and
    /// never after its session.
    fn refresh_expires_at(&self, now: OffsetDateTime, session_ends: OffsetDateTime) -> OffsetDateTime {
        (now.truncate_to_second() + self.refresh_token_duration).min(session_ends)
    }

    /// The same of an access token.
    fn access_expires_at(&self, now: OffsetDateTime, session_ends: OffsetDateTime) -> OffsetDateTime {
        (now.truncate_to_second() + self.access_token_duration).min(session_ends)
    }
}

/// What the use cases are made of.
#[derive(Debug)]
pub struct Parts {
    /// The database.
    pub db: PgPool,
    /// What hashes passwords.
    pub passwords: password::Pool,
    /// What makes access tokens.
    pub issuer: Arc<Issuer>,
    /// What makes refresh tokens.
    pub refresh_keys: RefreshKeys,
    /// How often somebody may fail.
    pub throttle: Throttle,
    /// A system that users may still come from.
    pub legacy: Option<Legacy>,
    /// With it, what is revoked here is refused here when the use case returns.
    pub feed: Option<Feed>,
    /// What is counted.
    pub metrics: Metrics,
    /// What the operator decided.
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
    /// Fields that break a rule; never empty.
    #[error("{} field(s) are invalid", .0.len())]
    Invalid(Vec<FieldError>),
    /// The username is another user's.
    #[error("the username is taken")]
    UsernameTaken,
    /// The address is another user's.
    #[error("the e-mail address is taken")]
    EmailTaken,
    /// The operator has closed registration.
    #[error("registration is closed")]
    RegistrationClosed,
    /// Unknown user, wrong password or disabled user: never told apart.
    #[error("the credentials are not right")]
    InvalidCredentials,
    /// The user that the bearer token's session belongs to is disabled or gone.
    #[error("the session has ended")]
    SessionRevoked,
    /// The session whose refresh token it is was ended.
    #[error("the session was ended")]
    SessionEnded,
    /// Not a refresh token of ours, or of a session that has been forgotten.
    #[error("the refresh token is not valid")]
    InvalidRefreshToken,
    /// A refresh token that was used before; the session has ended with it.
    #[error("the refresh token was used before")]
    RefreshTokenReused,
    /// The session was not renewed in time, or has lasted as long as a session may.
    #[error("the session has expired")]
    SessionExpired,
    /// Others have been changing the same row all the time.
    #[error("the session was changed by others, again and again")]
    Contended,
    /// There is no such user.
    #[error("there is no such user")]
    NoSuchUser,
    /// What names a user is one user's username and looks like the id of another.
    #[error("that is a username, and may be another user's id: say the e-mail address, or the user's own id")]
    AmbiguousUser,
    /// Nobody would be left who administers users.
    #[error("the user is the last administrator who is not disabled")]
    LastAdmin,
    /// The user has no such session, or it is over.
    #[error("there is no such session")]
    NoSuchSession,
    /// Another client has this name.
    #[error("the client's name is taken")]
    ClientNameTaken,
    /// There is no such client.
    #[error("there is no such client")]
    NoSuchClient,
    /// Unknown client or wrong secret: never told apart.
    #[error("the client's credentials are not right")]
    InvalidClient,
    /// Too many failures, of this account or from this address.
    #[error("too many attempts")]
    TooManyAttempts {
        /// When the next one is let in, and not before.
        retry_after: Duration,
    },
    /// This replica is giving the user what is stored of them already, or as many others as it may.
    #[error("an export is under way")]
    ExportUnderWay,
    /// More password hashes are wanted than the machine can do.
    #[error("too many passwords to hash at once")]
    Overloaded {
        /// When it may be worth trying again.
        retry_after: Duration,
    },
    /// A password could not be hashed, by a fault of ours.
    #[error("the password hasher failed")]
    Hasher,
    /// No token could be made.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// The database cannot be reached, has no connection free or takes no writes: the same call may succeed later.
    #[error("the database cannot do this at the moment")]
    Unavailable(#[source] sqlx::Error),
    /// A fault of ours or of the schema.
    #[error("the database refused a statement")]
    Store(#[source] sqlx::Error),
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::Taken(Unique::Username) => Self::UsernameTaken,
            store::Error::Taken(Unique::Email) => Self::EmailTaken,
            // Nobody but imports give one, and those look again.
            store::Error::Taken(Unique::ExternalId) => Self::Contended,
            store::Error::Taken(Unique::ClientName) => Self::ClientNameTaken,
            store::Error::LastAdmin => Self::LastAdmin,
            store::Error::Unavailable(cause) => Self::Unavailable(cause),
            store::Error::Conflict(cause) | store::Error::Failed(cause) => Self::Store(cause),
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

/// Why requests cannot be served. The message is for everybody; the cause is for the log.
#[derive(Debug, thiserror::Error)]
pub enum Unready {
    /// It does not answer.
    #[error("database: not reachable")]
    Database(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It answers, and takes no writes.
    #[error("database: takes no writes")]
    ReadOnly,
    /// This many migrations are waiting.
    #[error("schema: {0} migration(s) pending")]
    Pending(usize),
    /// This migration was applied from another text.
    #[error("schema: migration {0:06} differs")]
    Changed(i64),
    /// A later release has taken away what this one needs.
    #[error("schema: at migration {version:06}, for releases that know {oldest:06}: run a later release")]
    LeftBehind {
        /// The last migration that was applied.
        version: i64,
        /// The one to know.
        oldest: i64,
    },
    /// Another release has brought it to this migration, and not by way of this one's.
    #[error("schema: at migration {0:06} of another release, and some of this one's are missing")]
    Foreign(i64),
    /// The service's role has lost a right.
    #[error("schema: what was applied cannot be seen")]
    Hidden(#[source] migrations::Error),
    /// No tokens can be made.
    #[error("keys: the one that signs does not open")]
    NoKey,
}

impl Accounts {
    /// The use cases.
    pub fn new(parts: Parts) -> Self {
        Self { parts: Arc::new(parts), exports: Exports::default(), cause: Cause::default() }
    }

    /// Password hashes under way.
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

    /// How often somebody may fail.
    pub fn throttle(&self) -> &Throttle {
        &self.parts.throttle
    }

    /// The same use cases in somebody's name: the history says that they did it.
    #[must_use]
    pub fn caused_by(&self, cause: Cause) -> Self {
        Self { cause, ..self.clone() }
    }

    /// Whether there is a key to make tokens with, and the database answers, takes writes and has the schema that the use
    /// cases need.
    ///
    /// # Errors
    ///
    /// Why not.
    pub async fn ready(&self) -> Result<(), Unready> {
        if !self.parts.issuer.has_key() {
            return Err(Unready::NoKey);
        }
        let mut conn = self.parts.db.acquire().await.map_err(|error| Unready::Database(error.into()))?;
        // A setting of the server's changes with the connection open.
        match store::access(&mut conn).await {
            Ok(Access::Full) => {}
            Ok(Access::ReadOnly | Access::Standby) => return Err(Unready::ReadOnly),
            Err(error) => return Err(Unready::Database(error.into())),
        }
        match migrations::check(&mut conn).await {
            // A newer schema is what a rolling update looks like to the release before: it goes on serving.
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
}
