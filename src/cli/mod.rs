//! The command line: one file for each subcommand, thin over `account`, `store` and `config`.
//!
//! Results go to standard output, everything else to standard error. Exit codes: 0 done, 1 failed, 2 wrong use.

mod client;
mod config;
mod database;
mod db;
mod devdata;
mod development_key;
mod doctor;
mod export;
mod health;
mod history;
mod import;
mod key;
mod migrate;
mod open_files;
mod password_input;
pub mod serve;
mod setup;
mod token;
mod user;

use std::{error::Error, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};
use tokio::signal::unix::SignalKind;

use crate::{
    account::{self, FieldError},
    chain,
};

/// What a subcommand fails with: printed with everything behind it.
type Failure = Box<dyn Error + Send + Sync>;

/// A failure that the log has already, with everything behind it.
#[derive(Debug, thiserror::Error)]
#[error("the log says why")]
struct Logged;

/// The command was used wrongly: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct WrongUse(&'static str);

/// Ended by a signal, after what had to be done first.
#[derive(Debug, thiserror::Error)]
#[error("called off")]
struct Interrupted(SignalKind);

/// Token authentication: users and sessions in Postgres, PASETO tokens, one binary.
#[derive(Debug, Parser)]
#[command(
    version,
    max_term_width = 100,
    after_help = "\
Start:    gatepass serve          (in development it brings a Postgres of its own)
Settings: gatepass config         (all of them, and where each comes from)
Trouble:  gatepass doctor         (what is wrong, and what to do about it)"
)]
struct Cli {
    /// Read settings from FILE instead of ./app.env; the environment stays above it
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service
    Serve,
    /// Show the settings in force and where each comes from
    Config(config::Args),
    /// Change or show the version of the database's schema
    #[command(subcommand)]
    Migrate(migrate::Command),
    /// Prepare the database: its roles
    #[command(subcommand)]
    Db(db::Command),
    /// Look after users
    #[command(subcommand)]
    User(user::Command),
    /// Look after the services that may ask about tokens
    #[command(subcommand)]
    Client(client::Command),
    /// Look after the keys that tokens are made with
    #[command(subcommand)]
    Key(key::Command),
    /// Show what was changed, by whom; seal that, and see whether it was tampered with
    History(history::Args),
    /// Import users, with their password hashes, from a file or another Postgres
    Import(import::Args),
    /// Write all users, as `import` reads them
    Export(export::Args),
    /// Make data for developers: made up, or a masked sample of real ones
    #[command(subcommand)]
    Devdata(devdata::Command),
    /// Look into tokens
    #[command(subcommand)]
    Token(token::Command),
    /// Look at settings, certificate, database, keys and more, and say what to do
    ///
    /// Looks at what `gatepass serve` would run with, and changes nothing. One line for each finding: how bad it is (ok;
    /// note, good to know; warning, works and will not always; problem, does not work), what it is about, what there is,
    /// and what to do about it.
    Doctor(doctor::Args),
    /// Print the OpenAPI document
    Openapi,
    /// Ask a running service whether it is alive; for container health checks
    Health(health::Args),
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    let result = runtime.block_on(run(cli));
    // A look-up of a name, say, that nobody waits for any more may take as long as it likes; dropped, it would be waited for.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&*error),
    }
}

async fn run(cli: Cli) -> Result<(), Failure> {
    let config_file = cli.config;
    match cli.command {
        Command::Serve => serve::run(config_file).await,
        Command::Config(args) => config::run(config_file, &args).await,
        Command::Migrate(command) => migrate::run(config_file, command).await,
        Command::Db(command) => db::run(config_file, command).await,
        Command::User(command) => user::run(config_file, command).await,
        Command::Client(command) => client::run(config_file, command).await,
        Command::Key(command) => key::run(config_file, command).await,
        Command::History(args) => history::run(config_file, args).await,
        Command::Import(args) => import::run(config_file, args).await,
        Command::Export(args) => export::run(config_file, args).await,
        Command::Devdata(command) => devdata::run(config_file, command).await,
        Command::Token(command) => token::run(config_file, command).await,
        Command::Doctor(args) => doctor::run(config_file, &args).await,
        Command::Openapi => print(&crate::http::document()),
        Command::Health(args) => health::run(config_file, &args).await,
    }
}

/// Writes to standard output; a reader that has gone, such as `head`, is no failure.
fn print(text: &str) -> Result<(), Failure> {
    use std::io::{ErrorKind, Write};

    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Writes a line to standard error. That nobody reads it is no reason to fail.
fn say(line: &str) {
    use std::io::Write;

    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Writes a value as indented JSON.
fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// A time that somebody wrote, as in RFC 3339; in UTC, which is how the database is told it.
fn time(text: &str) -> Result<OffsetDateTime, String> {
    let at = OffsetDateTime::parse(text, &Rfc3339)
        .map_err(|error| format!("not a time as in RFC 3339: {error}"))?;
    at.checked_to_offset(UtcOffset::UTC).ok_or_else(|| "lies after the year 9999".into())
}

/// A time for people: RFC 3339, to the second.
fn seconds(at: OffsetDateTime) -> String {
    at.truncate_to_second().format(&Rfc3339).unwrap_or_default()
}

/// Lists what is wrong with each field, or says what to do first.
fn explain(failure: Failure) -> Failure {
    match failure.downcast_ref::<account::Error>() {
        Some(account::Error::Invalid(errors)) => {
            let line = |error: &FieldError| format!("{} {}", error.field, error.message);
            errors.iter().map(line).collect::<Vec<_>>().join("; ").into()
        }
        Some(error @ account::Error::LastAdmin) => format!(
            "{error}: give another one the role `{}` first (`gatepass user set-role`)",
            account::ADMIN_ROLE
        )
        .into(),
        _ => failure,
    }
}

fn fail(error: &(dyn Error + 'static)) -> ExitCode {
    if error.is::<Logged>() {
        return ExitCode::FAILURE;
    }
    say(&format!("gatepass: {error}"));
    for error in chain::behind(error) {
        say(&format!("  because: {error}"));
    }
    if let Some(Interrupted(signal)) = error.downcast_ref() {
        // As shells tell of a program that a signal ended.
        return u8::try_from(128 + signal.as_raw_value()).map_or(ExitCode::FAILURE, ExitCode::from);
    }
    if error.is::<WrongUse>() { ExitCode::from(2) } else { ExitCode::FAILURE }
}
