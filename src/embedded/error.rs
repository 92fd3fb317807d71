//! What can go wrong, and what to do about it.

use std::{
    io,
    path::{Path, PathBuf},
    process::ExitStatus,
};

use super::patience::PATIENCE;

pub(super) type Result<T, E = EmbeddedError> = std::result::Result<T, E>;

/// Why gatepass has no database of its own. Each message says what to do; setting `DB_SOURCE` is always a way out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmbeddedError {
    /// The file system refused an operation.
    #[error(
        "cannot {doing} {path}: {source}; make sure that this user may do that, or set DB_SOURCE to a Postgres of your \
         own"
    )]
    Io {
        /// What was tried, as a verb: `create`, `open`, …
        doing: &'static str,
        /// The path it was tried on.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    /// A program that should be there could not be run.
    #[error(
        "cannot run {program}: {source}; make sure that it is executable, or set DB_SOURCE to a Postgres of your own"
    )]
    Run {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    /// There are no Postgres server programs on this machine.
    #[error(
        "no Postgres server programs (initdb, postgres) on this machine: install them (Debian, Ubuntu: `apt-get \
         install postgresql`; macOS: `brew install postgresql@17`), or set DB_SOURCE to a Postgres that runs elsewhere"
    )]
    NotInstalled,

    /// The data was made by a major version of Postgres that is not installed. Other versions cannot read it.
    #[error(
        "the data in {data} was made by Postgres {made_by}, and only Postgres {installed} is installed: install \
         Postgres {made_by} (Debian, Ubuntu: `apt-get install postgresql-{made_by}`; macOS: `brew install \
         postgresql@{made_by}`) to keep the data, or remove {data} to begin with an empty database"
    )]
    OtherVersion {
        /// The data directory.
        data: PathBuf,
        /// The major version that made the data.
        made_by: u32,
        /// The major versions found on this machine, comma-separated.
        installed: String,
    },

    /// Something that is not a Postgres cluster is where the data should be.
    #[error("{path} is not a Postgres data directory (no PG_VERSION in it): move it away and start again")]
    NotACluster {
        /// Where the data should be.
        path: PathBuf,
    },

    /// `initdb` failed, or the creation of the database in the new cluster.
    #[error(
        "cannot create a Postgres cluster in {path}: {program} failed ({status}): {output}; fix that, or set DB_SOURCE \
         to a Postgres of your own"
    )]
    Create {
        /// Where the cluster was to be.
        path: PathBuf,
        /// The program that failed.
        program: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// Its output.
        output: String,
    },

    /// The server ended before it answered.
    #[error("Postgres exited while starting ({status}); the end of its log, {log}, says why:\n{tail}")]
    Exited {
        /// How it ended.
        status: ExitStatus,
        /// Its log.
        log: PathBuf,
        /// The last lines that it wrote there.
        tail: String,
    },

    /// The server was started but does not answer.
    #[error(
        "Postgres did not answer within {} seconds of its start; the end of its log, {log}:\n{tail}",
        PATIENCE.as_secs()
    )]
    Slow {
        /// Its log.
        log: PathBuf,
        /// The last lines that it wrote there.
        tail: String,
    },

    /// Another gatepass holds the lock, but its server does not answer.
    #[error(
        "another gatepass holds {lock}, and its Postgres did not answer within {} seconds: stop that gatepass, or look \
         into postgres.log beside the lock",
        PATIENCE.as_secs()
    )]
    Held {
        /// The lock.
        lock: PathBuf,
    },

    /// A server without an owner has the data open and does not answer; or its pid file outlived it and names another
    /// server.
    #[error(
        "a Postgres (process {pid}) seems to have {data} open, and did not answer within {} seconds: if `ps -fp {pid}` \
         shows that it runs on {data}, stop it with `kill -INT {pid}`; if not, remove {data}/postmaster.pid; then \
         start again",
        PATIENCE.as_secs()
    )]
    Mute {
        /// The server's process id.
        pid: i32,
        /// The data directory.
        data: PathBuf,
    },

    /// The data was copied or moved while a server had it open.
    #[error(
        "{data} was copied or moved from {origin} while a Postgres (process {pid}) had it open: stop that Postgres, \
         then, if it was copied, remove {data}/postmaster.pid; then start again"
    )]
    Displaced {
        /// The server's process id.
        pid: i32,
        /// The data directory.
        data: PathBuf,
        /// Where the server opened it.
        origin: PathBuf,
    },

    /// A directory or file that should belong to the server's user alone belongs to somebody else, or is not of that
    /// kind; or a symlink leads root to something that does not belong to the user who created it.
    #[error(
        "{path} is not a {what} of user {uid}, and may have been put there by someone else: remove it and start again"
    )]
    NotOurs {
        /// What it should be: `directory`, `file`, …
        what: &'static str,
        /// The path in question.
        path: PathBuf,
        /// The user id that should own it.
        uid: u32,
    },

    /// Something that should be a file is a symlink or the like, or has another name elsewhere.
    #[error(
        "{path} is not a regular file with a single name, and may have been put there by someone else: remove it and \
         start again"
    )]
    NotPlain {
        /// Where the file should be.
        path: PathBuf,
    },

    /// gatepass runs as root and finds no user to run Postgres as.
    #[error(
        "Postgres does not run as root, and /etc/passwd has neither a user `postgres` nor `nobody`: add one, run \
         gatepass as an ordinary user, or set DB_SOURCE to a Postgres of your own"
    )]
    NoUser,

    /// The server did not stop.
    #[error(
        "Postgres (process {pid}, data in {data}) was told to stop (SIGINT, SIGQUIT) but is still running: see \
         postgres.log, and `kill -KILL {pid}` if it hangs"
    )]
    StillRunning {
        /// The server's process id.
        pid: i32,
        /// The data directory.
        data: PathBuf,
    },
}

/// For `map_err`: the file system refused to do that to `path`.
pub(super) fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> EmbeddedError + use<> {
    let path = path.to_owned();
    move |source| EmbeddedError::Io { doing, path, source }
}

/// For `map_err`: `program` could not be run.
pub(super) fn run_error(program: PathBuf) -> impl FnOnce(io::Error) -> EmbeddedError {
    move |source| EmbeddedError::Run { program, source }
}
