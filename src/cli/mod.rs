//! The command line: one file per subcommand, each a thin layer over `account`, `store` and `config`.
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
    terminal::{plain, plain_lines},
};

/// The error of a subcommand; it is printed with its whole chain of causes.
type Failure = Box<dyn Error + Send + Sync>;

/// A failure that has already been logged, with its whole chain of causes.
#[derive(Debug, thiserror::Error)]
#[error("the log says why")]
struct Logged;

/// The command was used wrongly: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct WrongUse(String);

/// Ended by a signal, after cleaning up.
#[derive(Debug, thiserror::Error)]
#[error("cancelled")]
struct Interrupted(SignalKind);

/// Token authentication: users and sessions in Postgres, PASETO tokens, one binary.
#[derive(Debug, Parser)]
#[command(
    version,
    max_term_width = 100,
    after_help = "\
Start:    gatepass serve          (in development it starts a Postgres of its own)
Settings: gatepass config         (all of them, and where each comes from)
Trouble:  gatepass doctor         (what is wrong, and what to do about it)"
)]
struct Cli {
    /// Read settings from FILE instead of ./app.env; environment variables still take precedence
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
    /// Apply, undo or list migrations of the database schema
    #[command(subcommand)]
    Migrate(migrate::Command),
    /// Prepare the database: create its roles
    #[command(subcommand)]
    Db(db::Command),
    /// Manage users
    #[command(subcommand)]
    User(user::Command),
    /// Manage the services that may ask about tokens
    #[command(subcommand)]
    Client(client::Command),
    /// Manage the keys that tokens are made with
    #[command(subcommand)]
    Key(key::Command),
    /// Show who changed what; seal the history, or check whether it was tampered with
    History(history::Args),
    /// Import users, with their password hashes, from a file or another Postgres
    ///
    /// docs/import.md describes the formats. An import that was stopped continues where it left off when you run it
    /// again with the same file and options. An import of a later file updates the users whose records in it are newer.
    ///
    /// Exit code 0: all users of the file are here; 1: some were refused, or the import failed; 2: wrong use.
    Import(import::Args),
    /// Export all users in the format that `import` reads
    ///
    /// Writes one JSON object per line.
    Export(export::Args),
    /// Make data for developers: made up, or a masked sample of real data
    #[command(subcommand)]
    Devdata(devdata::Command),
    /// Inspect tokens
    #[command(subcommand)]
    Token(token::Command),
    /// Check settings, certificate, database, keys and more, and say what to do
    ///
    /// Checks what `gatepass serve` would run with, and changes nothing. Prints one line per finding: its level, its
    /// area, what was found, and what to do about it.
    ///
    /// The levels are ok, note (good to know), warning (works, but will not always) and problem (does not work).
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
    // Dropping the runtime would wait for blocking work that nobody needs any more, such as a slow DNS lookup.
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

/// Writes to standard output. A reader that has gone away, as `head` does, is not a failure.
fn print(text: &str) -> Result<(), Failure> {
    use std::io::{ErrorKind, Write};

    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Writes one line to standard output, whatever is in the texts of others that it quotes.
fn print_line(line: &str) -> Result<(), Failure> {
    print(&format!("{}\n", plain(line)))
}

/// Writes a text to standard error. If nobody can read it, that is no reason to fail.
fn say(text: &str) {
    use std::io::Write;

    let _ = writeln!(std::io::stderr(), "{}", plain_lines(text));
}

/// Writes a value as indented JSON.
fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// Lays out a table with columns as wide as their contents, which may be texts of others.
fn table<const N: usize>(titles: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows = rows.map(|row| row.map(|cell| plain(&cell)));
    let rows: Vec<_> = std::iter::once(titles.map(str::to_owned)).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Reads a time as in RFC 3339, and converts it to UTC, in which the database gets it.
fn time(text: &str) -> Result<OffsetDateTime, String> {
    let at = OffsetDateTime::parse(text, &Rfc3339)
        .map_err(|error| format!("not a time as in RFC 3339: {error}"))?;
    at.checked_to_offset(UtcOffset::UTC).ok_or_else(|| "lies after the year 9999".into())
}

/// Formats a time for people: RFC 3339, to the second.
fn seconds(at: OffsetDateTime) -> String {
    at.truncate_to_second().format(&Rfc3339).unwrap_or_default()
}

/// Turns an account's error into a message that lists what is wrong with each field, or says what to do first.
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
    say(&format!("gatepass: {}", chain::texts(error).join("\n  because: ")));
    if let Some(Interrupted(signal)) = error.downcast_ref() {
        // The exit code by which shells report a program that was ended by a signal.
        return u8::try_from(128 + signal.as_raw_value()).map_or(ExitCode::FAILURE, ExitCode::from);
    }
    if error.is::<WrongUse>() { ExitCode::from(2) } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_of_a_table_can_neither_hide_a_row_nor_break_one() {
        let rows = ["alice", "\u{1b}[2K\r", "\u{1b}_", "b\no\u{202e}b"];
        let shown = table(["ACTOR", "N"], rows.into_iter().map(|text| [text.to_owned(), "1".to_owned()]));
        let lines = [
            "ACTOR             N",
            "alice             1",
            "\\u{1b}[2K\\u{d}    1",
            "\\u{1b}_           1",
            "b\\u{a}o\\u{202e}b  1",
        ];
        assert_eq!(shown.lines().collect::<Vec<_>>(), lines);
    }
}
