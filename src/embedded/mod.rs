//! A Postgres of gatepass's own, for development: `git clone`, `cargo run`, and there is a database.
//!
//! The server programs come from the machine; the cluster lives in the state directory (`.gatepass`) and listens on
//! a Unix socket that only its user can reach, never on the network. Not for production: there, set `DB_SOURCE`.
//!
//! ```text
//! .gatepass/               0700 (as root: 0710, so that the server's user can pass through); guests lock it
//!   postgres.lock          held (flock) by the gatepass process that owns the server
//!   postgres.log           what the server says, 0600
//!   postgres/              the data; a symlink where the server's user cannot come here
//!   postgres.new-<pid>/    a cluster in the making; renamed when it is whole, removed when found half-made
//!   run/                   the socket; in the temporary directory where this path is too long for a socket
//! ```
//!
//! # Who owns the server
//!
//! The process that holds the lock does. The lock is released when that process ends, in whatever way, and the server
//! does not inherit it.
//!
//! | lock | server | [`Embedded::start`] |
//! |---|---|---|
//! | free | not running | starts it, and owns it |
//! | free | running: its gatepass was killed | takes it over, and owns it |
//! | free | starting up or shutting down | waits for the outcome, then one of the above |
//! | held | running | is a guest: uses it |
//! | held | not yet running | waits for it, or for the lock |
//!
//! Guests hold a second lock, on the state directory, in shared mode. The last process to leave stops the server. An
//! owner with guests leaves it running, as an owner that is killed does, and a guest that finds the first lock free
//! takes the server over. Nobody becomes a guest of a server that is being stopped, since stopping it takes the second
//! lock in exclusive mode.
//!
//! # As root
//!
//! Postgres refuses to run as root, so root runs it as the user who owns the data, or else the state directory, or else
//! as `postgres`, or else as `nobody`. Where that user cannot reach the state directory (`/root` is closed to others),
//! the data goes to `/var/lib/gatepass/<hash of the path>/`.
//!
//! Other users may own the state directory, or the directory it is in, and put there what they like. Therefore root
//!
//! * follows a symlink (`.gatepass` itself, `postgres`) only if it belongs to root, or leads to something that belongs
//!   to its creator;
//! * opens the lock and the log through no symlink, and only if they are regular files with a single name;
//! * gives away (chown) only what belongs to root and is empty: a file or directory as root has just created it;
//! * lets the server write only to a log that belongs to the server's user.
//!
//! Anything else is refused with a message that names it. Owner, kind and emptiness are read from the open file or
//! directory, so replacing it meanwhile does not help. Symlinks are checked by name, which stops planted ones, but not
//! a race. What root removes or renames (stale lock files, half-made clusters of the server's user, data moved aside),
//! it does without following a symlink at that name.
//!
//! # Files
//!
//! Each file imports only from those after it: this one; `cluster` and `launch`; `place`; `server` and `programs`;
//! `pid_file`, `socket` and `user`; `error`; `patience`.
//!
//! File system calls here are blocking: they are short, and nothing is being served yet.

mod cluster;
mod error;
mod launch;
mod patience;
mod pid_file;
mod place;
mod programs;
mod server;
mod socket;
#[cfg(test)]
mod tests;
mod user;

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    path::{Path, PathBuf},
};

use rustix::process::Pid;
use tokio::time::{Instant, sleep};

pub use self::error::EmbeddedError;
use self::{
    error::{Result, io_error},
    patience::{PATIENCE, POLL},
    pid_file::PidFile,
    place::Place,
    programs::Programs,
    server::Server,
    user::{User, check_link, create_private, give, open_file},
};

/// The path of the program `name` from the newest Postgres installed here that has it.
pub async fn program(name: &str) -> Option<PathBuf> {
    let newest = Programs::with(name, name).await.into_iter().max_by_key(|programs| programs.major)?;
    Some(newest.path(name))
}

/// A running Postgres with a database `gatepass` in it, empty or used; the [module](self) says who owns it.
///
/// End it with [`stop`](Self::stop). If it is dropped without that (a panic), it tells the server to shut down and does
/// not wait. If the process is killed without even that, the server goes on running, and the next
/// [`start`](Self::start) takes it over. Both are safe for the data.
#[derive(Debug)]
pub struct Embedded {
    url: String,
    data_dir: PathBuf,
    is_new: bool,
    /// `None` for a guest.
    server: Option<Server>,
    /// The owner's lock. It comes after the server because fields are dropped in this order.
    lock: Lock,
    /// The lock on the state directory, which guests share.
    guests: Lock,
}

impl Embedded {
    /// Makes sure that a server runs on the data in `state_dir`. The directory is created if missing (0700; its parent
    /// must exist); the data is created the first time, with an empty database `gatepass` and a superuser of that name.
    ///
    /// Takes about a second the first time and a tenth of a second afterwards. Must be called in a Tokio runtime with
    /// I/O and time enabled.
    ///
    /// # Errors
    ///
    /// Any [`EmbeddedError`]: no Postgres is installed, or only another version; the directory is not ours to write;
    /// the server does not start or does not answer. Nothing half-made is left that a later start would trip over.
    pub async fn start(state_dir: &Path) -> Result<Embedded> {
        create_private(state_dir)?;
        check_link(state_dir)?;
        // The same directory must be the same string for every caller: names are derived from its hash.
        let state = fs::canonicalize(state_dir).map_err(io_error("open", state_dir))?;
        let lock_path = state.join("postgres.lock");
        let lock = Lock { file: open_file(&lock_path, OpenOptions::new().write(true))?, path: lock_path };
        let file = File::open(&state).map_err(io_error("open", &state))?;
        let guests = Lock { file, path: state.clone() };

        let deadline = Instant::now() + PATIENCE;
        loop {
            if lock.take()? {
                return Self::own(&state, lock, guests).await;
            }
            if guests.share()? {
                if let Some(found) = PidFile::read(&state.join("postgres"))
                    && socket::answers(&found.run).await
                {
                    tracing::info!(
                        pid = found.pid.as_raw_pid(),
                        "using the Postgres of another gatepass on {}",
                        state.display()
                    );
                    let (url, data_dir) = (socket::url(&found.run), found.data);
                    return Ok(Embedded { url, data_dir, is_new: false, server: None, lock, guests });
                }
                guests.give_back();
            }
            if Instant::now() > deadline {
                return Err(EmbeddedError::Held { lock: lock.path.clone() });
            }
            sleep(POLL).await;
        }
    }

    /// Whether this machine has what [`start`](Self::start) needs to create the data in `state_dir`: server programs,
    /// and a user to run them as. Creates nothing.
    ///
    /// # Errors
    ///
    /// What `start` would fail with.
    pub async fn check(state_dir: &Path) -> Result<()> {
        check_link(state_dir)?;
        let data = state_dir.join("postgres");
        User::for_server(state_dir, &data)?;
        Programs::choose(Programs::installed().await, &data).map(drop)
    }

    /// As [`start`](Self::start), for the holder of the lock.
    async fn own(state: &Path, lock: Lock, guests: Lock) -> Result<Embedded> {
        let place = Place::settle(state).await?;
        give(&lock.file, &lock.path, place.user)?;
        let mut is_new = false;
        let (server, run) = match Server::adopt(&place.data).await? {
            Some((server, run)) => {
                let pid = server.pid().map(Pid::as_raw_pid);
                tracing::info!(pid, "taking over the Postgres that an earlier gatepass left running");
                (server, run)
            }
            None => {
                cluster::sweep(&place);
                let programs = Programs::choose(Programs::installed().await, &place.data)?;
                if !place.data.join("PG_VERSION").exists() {
                    is_new = true;
                    cluster::make(&place, &programs).await?;
                }
                (launch::launch(&place, &programs).await?, place.run)
            }
        };
        Ok(Embedded {
            url: socket::url(&run),
            data_dir: place.data,
            is_new,
            server: Some(server),
            lock,
            guests,
        })
    }

    /// The URL of the database, in the form that sqlx, `psql` and everything based on libpq understand:
    /// `postgres:///gatepass?host=%2F…%2Frun&port=5432&user=gatepass&sslmode=disable`. It needs no password.
    ///
    /// The port and the TLS mode are in it because `PGPORT` and `PGSSLMODE`, set for another server, would apply
    /// otherwise.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The directory that really holds the data: not a symlink.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Whether there was no data yet, so that this start has created it.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// Stops the server if nobody else uses it, and waits until it is gone: as a rule well under a second, at most 15
    /// seconds. Open connections are closed.
    ///
    /// # Errors
    ///
    /// [`EmbeddedError::StillRunning`] if the server has not ended by then.
    pub async fn stop(self) -> Result<()> {
        let Self { data_dir, mut server, lock, guests, .. } = self;
        guests.give_back();
        loop {
            let owned = match server.take() {
                Some(server) => server,
                // The owner will see that we are gone.
                None if !lock.take()? => return Ok(()),
                None => match Server::adopt(&data_dir).await? {
                    Some((server, _)) => server,
                    None => return Ok(()),
                },
            };
            if guests.take()? {
                return owned.stop().await;
            }
            owned.leave();
            lock.give_back();
            // Whoever is still there will find the lock free. Whoever left since we looked may have found it held.
            if !guests.take()? {
                return Ok(());
            }
            guests.give_back();
        }
    }
}

/// A file's lock ends when the last copy of its descriptor is closed. A child that another thread is spawning at that
/// moment has a copy until it executes its program, so the lock is released explicitly.
#[derive(Debug)]
struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock in exclusive mode; `false` if somebody else holds it in either mode.
    fn take(&self) -> Result<bool> {
        self.is_had(self.file.try_lock())
    }

    /// Takes the lock in shared mode; `false` if somebody else holds it in exclusive mode.
    fn share(&self) -> Result<bool> {
        self.is_had(self.file.try_lock_shared())
    }

    fn is_had(&self, tried: std::result::Result<(), TryLockError>) -> Result<bool> {
        match tried {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(io_error("lock", &self.path)(error)),
        }
    }

    fn give_back(&self) {
        let _ = self.file.unlock();
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.give_back();
    }
}
