//! `gatepass devdata`: data for developers.

use std::{fs, path::PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use secrecy::SecretString;
use time::{Duration, OffsetDateTime};

use super::{Failure, database::Database, print, print_json, say, setup, time};
use crate::{
    clock::Clock,
    config::{Environment, Settings},
    devdata::{self, ADMIN, Key, Manifest, PASSWORD, Wanted},
    random,
    store::{self, Source},
};

/// When made-up people live by default. It is fixed, so that the same command makes the same rows on any day.
const NOW: &str = "2026-01-01T00:00:00Z";
/// How long a made-up session is good for after it was last used.
const SESSION: Duration = Duration::hours(24);

/// Make data for developers.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Fill an empty database with made-up users, their sessions and their history
    ///
    /// The same options make the same rows, except for the times of the seals. Every user has the password
    /// `made-up-for-developers`; the first one is `admin`.
    Seed {
        /// How many users
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
        users: u64,
        /// The seed of the random numbers: another one makes other people
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// The time at which their history ends; a session is good for 24 hours after it was last used
        #[arg(long, value_name = "TIME", value_parser = time, default_value = NOW)]
        now: OffsetDateTime,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Take users from a real database, with all their data, masked
    ///
    /// Names, addresses and browsers are masked on the server that has them, so that no clear value leaves it. Every
    /// user's password becomes `made-up-for-developers`. Needs a role that can only read, and pg_dump.
    Sample {
        /// The URL of the database; leave the password to PGPASSWORD or ~/.pgpass, since others can see arguments
        #[arg(long, value_name = "URL")]
        from: SecretString,
        /// How many users, spread evenly; without it, all that match --where
        #[arg(long, value_name = "N", required_unless_present = "condition", value_parser = clap::value_parser!(i64).range(1..))]
        users: Option<i64>,
        /// Only users who meet this SQL condition, such as "created_at > now() - interval '1 month'"
        #[arg(long = "where", value_name = "CONDITION")]
        condition: Option<String>,
        /// A file with a secret: the same secret makes the same masks in every sample. Without it, the masks are unique
        /// to this run
        #[arg(long, value_name = "FILE")]
        mask_key: Option<PathBuf>,
        /// Where to write the sample: a directory that is empty, or will be created
        directory: PathBuf,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Load a sample into an empty database
    ///
    /// The sample includes the schema, whose statements are run as they are: load only what you trust.
    Load {
        /// The directory of the sample
        directory: PathBuf,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Mask a restored copy of a real database in place
    ///
    /// This cannot be undone, so three things have to confirm that the database is a copy: a row in the table
    /// devdata.copy with the database's place, --only with a pattern that this place matches, and --this-is-a-copy. The
    /// place is HOST:PORT/DATABASE. Nobody else may be connected, and ENVIRONMENT must not be production.
    Mask {
        /// The pattern of a copy's place, such as "gatepass-dev-*"
        #[arg(long, value_name = "PATTERN", value_parser = pattern)]
        only: String,
        /// Confirm that this is a copy
        #[arg(long, required = true)]
        this_is_a_copy: bool,
        /// A file with a secret: the same secret makes the same masks every time. Without it, the masks are unique to
        /// this run
        #[arg(long, value_name = "FILE")]
        mask_key: Option<PathBuf>,
    },
}

/// Whether a text matches a pattern, in which `*` stands for anything.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    text.strip_prefix(first)
        .is_some_and(|text| (0..=text.len()).any(|at| text.get(at..).is_some_and(|text| matches(rest, text))))
}

/// Reads a pattern that does not match everything.
fn pattern(text: &str) -> Result<String, String> {
    let letters = text.chars().filter(|letter| letter.is_alphanumeric()).count();
    if letters < 3 { Err("needs three letters besides *".into()) } else { Ok(text.to_owned()) }
}

/// The minimum length of a secret in a file, in bytes: 128 bits in hexadecimal.
const MASK_KEY_LENGTH: usize = 32;

fn mask_key(file: Option<&PathBuf>) -> Result<Key, Failure> {
    let Some(file) = file else { return Ok(Key::new(&random::bytes::<32>(&mut random::system()))) };
    let secret = fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let secret = secret.trim_ascii();
    if secret.len() < MASK_KEY_LENGTH {
        return Err(format!("{}: needs at least {MASK_KEY_LENGTH} bytes", file.display()).into());
    }
    Ok(Key::new(secret))
}

pub(super) async fn run(config_file: Option<PathBuf>, command: Command) -> Result<(), Failure> {
    // The statements here are long and take long, as they should: no warnings about slow ones.
    let settings = setup::begin_with(config_file, "warn,sqlx::query=error").await?;
    let writes = !matches!(command, Command::Sample { .. });
    if writes && settings.environment == Environment::Production {
        return Err("ENVIRONMENT=production: there is no place for developers' data".into());
    }
    match command {
        Command::Seed { users, seed, now, json } => {
            let bar = bar(users);
            let made = on_database(&settings, true, async |conn| {
                let params = settings.argon2;
                Ok(devdata::seed(conn, users, seed, now, params, |done| bar.set_position(done)).await?)
            })
            .await?;
            bar.finish_and_clear();
            if json {
                return print_json(&made);
            }
            print(&format!(
                "{} users, {} sessions, {} rows of history; log in as {ADMIN}: everybody's password is {PASSWORD}\n",
                made.users, made.sessions, made.history
            ))?;
            if Clock::system().now() > now + SESSION {
                say(
                    "note: the sessions have expired, and a service deletes them (SESSION_RETENTION); with the time it \
                     is as --now, they are live",
                );
            }
            Ok(())
        }
        Command::Sample { from, users, condition, mask_key: key, directory, json } => {
            let source = Source::new(&from).map_err(|error| format!("--from: {error}"))?;
            let key = mask_key(key.as_ref())?;
            let wanted = Wanted { count: users, condition: condition.as_deref() };
            let params = settings.argon2;
            let manifest = devdata::sample(&source, &wanted, &directory, &key, params, note).await?;
            report(&manifest, json)
        }
        Command::Load { directory, json } => {
            let manifest =
                on_database(&settings, false, async |conn| Ok(devdata::load(conn, &directory, note).await?))
                    .await?;
            report(&manifest, json)
        }
        Command::Mask { only, this_is_a_copy: _, mask_key: key } => {
            let key = mask_key(key.as_ref())?;
            let database = Database::open(&settings).await?;
            let done = mask(&settings, &database, &only, &key).await;
            database.closing(done).await
        }
    }
}

async fn mask(settings: &Settings, database: &Database, only: &str, key: &Key) -> Result<(), Failure> {
    let place = database.migration_place();
    if !matches(only, &place) {
        return Err(format!("{place} is not what --only says: this might be production").into());
    }
    let mut conn = database.migration_connection().await?;
    let users = devdata::mask(&mut conn, &place, key, settings.argon2).await?;
    print(&format!("{users} users masked; everybody's password is {PASSWORD}\n"))
}

fn note(table: &str, rows: u64) {
    say(&format!("{table}: {rows} rows"));
}

/// What is in the sample, by table.
fn report(manifest: &Manifest, json: bool) -> Result<(), Failure> {
    if json {
        return print_json(manifest);
    }
    let users = manifest.files.iter().find(|entry| entry.file == "users.copy").and_then(|entry| entry.rows);
    print(&format!("{} users; everybody's password is {PASSWORD}\n", users.unwrap_or(0)))
}

/// Does `work` on a connection that may change the schema. With `migrated`, the schema has to be current, and is
/// brought up to date first where the Postgres is our own.
async fn on_database<T>(
    settings: &Settings,
    migrated: bool,
    work: impl AsyncFnOnce(&mut store::PgConnection) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let database = Database::open(settings).await?;
    let done = async {
        if migrated {
            database.migrate(database.embedded().is_some()).await?;
        }
        work(&mut database.migration_connection().await?).await
    }
    .await;
    database.closing(done).await
}

/// A progress bar, shown where standard error is a terminal.
fn bar(length: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {human_pos}/{human_len} {elapsed}, {eta} to go");
    // The template is a valid constant.
    ProgressBar::new(length).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_must_match_the_whole_database_address() {
        for (pattern, place, is_match) in [
            ("gatepass-dev-*", "gatepass-dev-3.example.com:5432/gatepass", true),
            ("*-dev-*/gatepass", "gatepass-dev-3.example.com:5432/gatepass", true),
            ("gatepass-dev-*", "gatepass.example.com:5432/gatepass-dev-1", false),
            ("*/gatepass", "host:5432/gatepass_production", false),
            ("host:5432/dev", "host:5432/dev", true),
            ("host:5432/dev", "host:5432/dev2", false),
        ] {
            assert_eq!(matches(pattern, place), is_match, "{pattern} {place}");
        }
        assert!(pattern("*").is_err() && pattern("*-*/*").is_err() && pattern("dev*").is_ok());
    }
}
