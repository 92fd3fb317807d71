//! Data for developers: made up ([`seed`]), or a sample of real data, masked before it leaves its server.
//!
//! | file | what is in it |
//! |---|---|
//! | `people` | made-up people and sessions, from a seed |
//! | `transfer` | [`sample`] and [`load`] |
//! | `directory` | what a sample looks like on disk |
//! | `dump` | the schema, by `pg_dump` |
//!
//! What is masked, and how, is in [`store::devdata`](crate::store::devdata), where the SQL is.

mod directory;
mod dump;
mod people;
mod transfer;

use std::{io, num::NonZeroUsize, path::PathBuf, time::Duration};

use time::OffsetDateTime;

use self::people::People;
pub use self::{
    directory::{Entry, Manifest},
    transfer::{load, sample},
};
pub use crate::store::devdata::{masks::Key, sample::Wanted};
use crate::{
    password::{HashedPassword, Params, Password, Peppers, Pool, PoolError, PoolSettings, StartError},
    random,
    store::{
        PgConnection,
        devdata::{self as store, seed::Seeding},
    },
};

/// The password of everybody whom this module makes up or masks. It is no secret.
pub const PASSWORD: &str = "made-up-for-developers";

/// The username of the first made-up user, who has the role `admin`.
pub const ADMIN: &str = "admin";

/// The salt of the one password hash that all masked users get. The password is no secret.
const SALT: [u8; 16] = *b"for developers..";
/// How many people are made up and written at once.
const BATCH: u64 = 10_000;
/// How long one password hash may take.
const HASH_DEADLINE: Duration = Duration::from_secs(60);

/// Why there is no data.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database, or what is in it.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The one password could not be hashed.
    #[error("the password could not be hashed")]
    Start(#[from] StartError),
    /// The one password could not be hashed.
    #[error("the password could not be hashed")]
    Hash(#[from] PoolError),
    /// A file of a sample could not be read or written.
    #[error("{}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// A sample needs a directory of its own.
    #[error("{}: the directory is not empty", .0.display())]
    DirectoryNotEmpty(PathBuf),
    /// A file is not what was written.
    #[error("{}: not what was written: it is damaged or was changed", .0.display())]
    Damaged(PathBuf),
    /// One of the files of a sample is missing.
    #[error("the sample has no {0}")]
    Incomplete(String),
    /// A sample has the format of another version.
    #[error("the sample has the format {0}, which this version does not know")]
    Format(u32),
    /// The number of rows that came out is not the number that went in.
    #[error("{file}: {rows} rows, which is not what the manifest says")]
    Rows {
        /// The file.
        file: String,
        /// How many rows it has.
        rows: u64,
    },
    /// The condition holds for no user.
    #[error("no user matches")]
    Nobody,
    /// The client programs of Postgres are not installed.
    #[error("pg_dump is not installed: install the Postgres client programs")]
    NoProgram,
    /// `pg_dump` could not be run.
    #[error("pg_dump could not be run")]
    Program(#[source] io::Error),
    /// `pg_dump` failed.
    #[error("pg_dump failed: {0}")]
    Dump(String),
}

/// How many rows were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Seeded {
    /// Users.
    pub users: u64,
    /// Their sessions.
    pub sessions: u64,
    /// The rows of the history about both.
    pub history: u64,
}

/// Makes up `users` people who came within the two years before `now`, with their sessions and their history, in an
/// empty database. The same `seed`, `now` and `params` make the same rows. `progress` is called with the number of
/// users so far.
///
/// All of them have one hash of [`PASSWORD`]: a salt for each would take an hour for a million users, and hide nothing.
///
/// # Errors
///
/// Any [`Error`]; then nothing has changed.
pub async fn seed(
    conn: &mut PgConnection,
    users: u64,
    seed: u64,
    now: OffsetDateTime,
    params: Params,
    mut progress: impl FnMut(u64),
) -> Result<Seeded, Error> {
    let mut rng = people::rng(seed);
    let hash = hash(params, random::bytes(&mut rng)).await?;
    let mut people = People::new(rng, now, hash.as_str());
    let mut seeding = Seeding::begin(conn).await?;
    let mut made = Seeded { users: 0, sessions: 0, history: 0 };
    while made.users < users {
        let batch = people.next(BATCH.min(users - made.users));
        made.users += seeding.users(&batch.users).await?;
        made.sessions += seeding.sessions(&batch.sessions).await?;
        progress(made.users);
    }
    made.history = seeding.finish(&seed.to_string(), now).await?;
    Ok(made)
}

/// Masks a restored copy of a real database in place. The copy is at `place`. Returns how many users there are.
///
/// # Errors
///
/// Any [`Error`], also when nothing says that it is a copy; then nothing has changed.
pub async fn mask(conn: &mut PgConnection, place: &str, key: &Key, params: Params) -> Result<u64, Error> {
    let hash = hash(params, SALT).await?;
    Ok(store::mask::mask(conn, place, key, hash.as_str()).await?)
}

/// The hash of [`PASSWORD`], without a pepper: the service that it is for may have any pepper or none, and accepts it
/// in either case.
async fn hash(params: Params, salt: [u8; 16]) -> Result<HashedPassword, Error> {
    let threads = NonZeroUsize::MIN;
    let settings =
        PoolSettings { threads, queue: 1, params, peppers: Peppers::default(), deadline: HASH_DEADLINE };
    Ok(Pool::new(settings)?.hash(&Password::new(PASSWORD), salt).await?)
}
