//! `gatepass migrate`: the version of the database schema.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{Failure, database::Database, print, print_json, seconds, setup};
use crate::{
    config::DbPooler,
    store::migrations::{self, Done, Rights, State, Status},
    terminal::plain,
};

/// Apply, undo or list migrations of the database schema.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Apply pending migrations: the next N, or all
    Up {
        /// How many to apply
        n: Option<usize>,
    },
    /// Undo the last N migrations
    Down {
        /// How many to undo
        #[arg(default_value_t = 1)]
        n: usize,
    },
    /// List the migrations and the state of each
    Status {
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Create an empty migration in ./migrations, for developers of gatepass
    New {
        /// What the migration does, such as `add_phone_numbers`
        #[arg(value_parser = name)]
        name: String,
    },
}

fn name(text: &str) -> Result<String, String> {
    let good =
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if good { Ok(text.to_owned()) } else { Err("use a-z, 0-9 and _".into()) }
}

pub(super) async fn run(config_file: Option<PathBuf>, command: Command) -> Result<(), Failure> {
    if let Command::New { name } = command {
        return new(Path::new("migrations"), &name);
    }
    let settings = setup::begin(config_file).await?;
    let changes = !matches!(command, Command::Status { .. });
    if changes && settings.db_pooler == DbPooler::Transaction && settings.migration_db_source.is_none() {
        let error = "DB_POOLER=transaction: migrations need a connection that bypasses the pooler; set \
                     MIGRATION_DB_SOURCE to the database itself";
        return Err(error.into());
    }
    let database = Database::open(&settings).await?;
    let done = on(&database, command).await;
    database.closing(done).await
}

async fn on(database: &Database, command: Command) -> Result<(), Failure> {
    let mut conn = database.migration_connection().await?;
    match command {
        Command::Up { n } => match migrations::up(&mut conn, n).await? {
            Done { rights: Rights::Restored, .. } => print("restored the rights of the roles\n"),
            Done { rights: Rights::Wrong, .. } => print(
                "no migration to apply; the rights of the roles could not be restored: run `gatepass db setup`\n",
            ),
            Done { applied, rights: Rights::Right } => report("applied", &applied),
        },
        Command::Down { n } => report("undone", &migrations::down(&mut conn, n).await?),
        Command::Status { json: true } => print_json(&migrations::status(&mut conn).await?),
        Command::Status { json: false } => {
            let lines = migrations::status(&mut conn).await?.iter().map(line).collect::<String>();
            print(&lines)
        }
        // Needs no database; handled before one is opened.
        Command::New { .. } => Ok(()),
    }
}

fn report(what: &str, changed: &[Status]) -> Result<(), Failure> {
    let lines: String =
        changed.iter().map(|status| format!("{what} {:06} {}\n", status.version, status.name)).collect();
    print(if lines.is_empty() { "nothing to do\n" } else { &lines })
}

fn line(status: &Status) -> String {
    let state = match status.state {
        State::Applied => "applied",
        State::Pending => "pending",
        State::Changed => "CHANGED since it was applied",
        State::Unknown => "UNKNOWN to this version",
    };
    let at = status.applied_at.map(|at| format!("  {}", seconds(at))).unwrap_or_default();
    format!("{:06}  {:<24}  {state}{at}\n", status.version, plain(&status.name))
}

fn new(directory: &Path, name: &str) -> Result<(), Failure> {
    let files = fs::read_dir(directory)
        .map_err(|error| format!("{}: {error}; run this in gatepass's source", directory.display()))?;
    let numbers =
        files.filter_map(|file| file.ok()?.file_name().to_str()?.split('_').next()?.parse::<u32>().ok());
    let number = numbers.max().unwrap_or(0) + 1;
    for (direction, text) in [("up", "-- What changes.\n"), ("down", "-- What undoes it.\n")] {
        let path = directory.join(format!("{number:06}_{name}.{direction}.sql"));
        fs::write(&path, text)?;
        print(&format!("{}\n", path.display()))?;
    }
    Ok(())
}
