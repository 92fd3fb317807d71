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
//! Whoever holds the lock. It falls free with its holder, however that one ends, and the server does not inherit it.
//!
//! | lock | server | [`Embedded::start`] |
//! |---|---|---|
//! | free | not running | starts it, and owns it |
//! | free | running: its gatepass was killed | takes it over, and owns it |
//! | free | starting up or shutting down | waits for the outcome, then one of the above |
//! | held | running | is a guest: uses it |
//! | held | not yet running | waits for it, or for the lock |
//!
//! Guests have a share in a second lock, on the state directory. Whoever is the last to leave stops the server: an owner
//! who has guests leaves it running, as one that was killed does, and a guest who finds the first lock free takes the
//! server over. Nobody becomes a guest of a server that is being stopped, since that needs the whole of the second lock.
//!
//! # As root
//!
//! Postgres refuses to run as root, so root runs it as the user who owns the data, or else as `postgres`, or else as
//! `nobody`. Where that user cannot reach the state directory (`/root` is closed to others), the data goes to
//! `/var/lib/gatepass/<hash of the path>/`.
//!
//! Others may own the state directory, or the directory it is in, and put there what they like. So root
//!
//! * follows a symlink (`.gatepass` itself, `postgres`) only if it is root's, or leads to what belongs to its maker;
//! * opens the lock and the log through no symlink, and only if they are regular files with a single name;
//! * gives away (chown) only what root owns and what is empty: a file or directory as root has just made it;
//! * lets the server write only to a log that is the server's user's.
//!
//! Whatever else is there is refused with a message that names it. Owner, kind and emptiness are asked of the open
//! file or directory, so exchanging it meanwhile does not help; symlinks are asked by name, which stops planted ones,
//! not a race. What root removes or renames (stale lock files, half-made clusters of the server's user, data put
//! aside), it does without following a symlink at that name.
//!
//! # Files
//!
//! Each imports only from those below it: this one; `cluster` and `launch`; `place`; `server` and `programs`;
//! `pid_file`, `socket` and `user`; `error`; `patience`.
//!
//! File system calls here are the blocking ones: they are short, and nothing is being served yet.

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
    user::{check_link, create_private, give, open_file},
};

/// Where the newest program `name` of Postgres is that is installed here.
pub async fn program(name: &str) -> Option<PathBuf> {
    let newest = Programs::with(name, name).await.into_iter().max_by_key(|programs| programs.major)?;
    Some(newest.path(name))
}

/// A running Postgres with an empty or used database `gatepass` in it; see the [module](self) for whose it is.
///
/// End it with [`stop`](Self::stop). Dropped without that (a panic), it sends the server an order to shut down and
/// does not wait; killed without even that, it leaves the server running, and the next [`start`](Self::start) takes
/// that one over. Both are safe for the data.
#[derive(Debug)]
pub struct Embedded {
    url: String,
    data_dir: PathBuf,
    /// `None` for a guest.
    server: Option<Server>,
    /// The owner's. After the server, for fields are dropped in this order.
    lock: Lock,
    /// The state directory, in which guests have a share.
    guests: Lock,
}

impl Embedded {
    /// Sees to it that a server runs on the data in `state_dir` (made if missing, 0700; its parent must exist), made
    /// the first time with an empty database `gatepass` and a superuser of that name.
    ///
    /// Takes about a second the first time and a tenth of one afterwards. Must be called in a Tokio runtime with I/O
    /// and time enabled.
    ///
    /// # Errors
    ///
    /// Any [`EmbeddedError`]: no or other Postgres installed, the directory is not ours to write, the server does not
    /// start or answer. Nothing half-made is left that a later start would trip over.
    pub async fn start(state_dir: &Path) -> Result<Embedded> {
        create_private(state_dir)?;
        check_link(state_dir)?;
        // The same directory must be the same string from wherever it is called: its hash names things.
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
                    return Ok(Embedded { url, data_dir, server: None, lock, guests });
                }
                guests.give_back();
            }
            if Instant::now() > deadline {
                return Err(EmbeddedError::Held { lock: lock.path.clone() });
            }
            sleep(POLL).await;
        }
    }

    /// As [`start`](Self::start), for the holder of the lock.
    async fn own(state: &Path, lock: Lock, guests: Lock) -> Result<Embedded> {
        let place = Place::settle(state).await?;
        give(&lock.file, &lock.path, place.user)?;
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
                    cluster::make(&place, &programs).await?;
                }
                (launch::launch(&place, &programs).await?, place.run)
            }
        };
        Ok(Embedded { url: socket::url(&run), data_dir: place.data, server: Some(server), lock, guests })
    }

    /// Where the database is, as sqlx, `psql` and everything with libpq understand it:
    /// `postgres:///gatepass?host=%2F…%2Frun&port=5432&user=gatepass&sslmode=disable`. Needs no password.
    ///
    /// The port and the TLS mode are in it because `PGPORT` and `PGSSLMODE`, set for another server, would apply
    /// otherwise.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The directory the data is really in: no symlink.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Stops the server if nobody else uses it, and waits until it is gone: well under a second as a rule, 15 seconds at
    /// most. Open connections are closed.
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
                // Its owner will see that we are gone.
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
            // Whoever is still there will find the lock free. Whoever has left since we looked may have found it held.
            if !guests.take()? {
                return Ok(());
            }
            guests.give_back();
        }
    }
}

/// A file's lock ends when the last copy of its descriptor is closed; but a child that another thread is spawning at this
/// instant has a copy until it executes its program, so it is ended expressly.
#[derive(Debug)]
struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes it for ourselves; `false`: others have it.
    fn take(&self) -> Result<bool> {
        self.is_had(self.file.try_lock())
    }

    /// Takes a share in it; `false`: somebody has it for themselves.
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
