//! `gatepass history`: who changed what, and whether the history was tampered with.

use std::path::PathBuf;

use serde_json::json;
use time::OffsetDateTime;

use super::{Failure, database, print, print_json, seconds, setup, table, time};
use crate::{
    account::{Entry, Head, History, Verification, Wanted},
    hex,
    http::ChangeBody,
};

/// Show who changed what in users, sessions, keys and clients, newest first.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Only changes to this user's account; a username, an e-mail address, or an id, also that of a deleted user
    #[arg(long)]
    user: Option<String>,
    /// Only changes in this table
    #[arg(long, value_parser = Wanted::TABLES)]
    table: Option<String>,
    /// Only changes made at this time or later, such as 2026-01-02T03:04:05Z
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<OffsetDateTime>,
    /// Only changes older than the one with this id
    #[arg(long, value_name = "ID")]
    before: Option<i64>,
    /// Print at most this many
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Seal what has been recorded since the last seal, as the service does every minute
    Seal {
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Check whether anything was altered, deleted or inserted behind gatepass's back
    ///
    /// Exit code 0: the history is what was sealed; 1: it is not.
    Verify {
        /// The hash of a seal from the service's log; with it, the check also finds out whether the end of the history
        /// was cut off, or all of it made anew
        #[arg(long, value_name = "HASH", value_parser = hash)]
        head: Option<[u8; 32]>,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
}

fn hash(text: &str) -> Result<[u8; 32], String> {
    let bytes = hex::decode(text).and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| "needs 64 hexadecimal digits".into())
}

pub(super) async fn run(config_file: Option<PathBuf>, args: Args) -> Result<(), Failure> {
    let settings = setup::begin(config_file).await?;
    database::on_pool(&settings, async |db| {
        execute(&History::new(db.clone(), db.clone(), settings.history_retention), args).await
    })
    .await
}

async fn execute(history: &History, args: Args) -> Result<(), Failure> {
    match args.command {
        None => show(history, &args).await,
        Some(Command::Seal { json }) => {
            let (rows, head) = history.seal().await?;
            if json {
                let head = match head {
                    Some(head) => Some(head),
                    None => history.head().await?,
                };
                return print_json(&json!({ "rows": rows, "head": head }));
            }
            match head {
                Some(head) => print(&format!("{rows} row(s) sealed; {}\n", line(&head))),
                None => print("nothing to seal\n"),
            }
        }
        Some(Command::Verify { head, json }) => {
            let found = history.verify(head).await?;
            if json {
                print_json(&found)?;
            } else {
                print(&report(&found))?;
            }
            if found.problems.is_empty() { Ok(()) } else { Err("the history is not what was sealed".into()) }
        }
    }
}

async fn show(history: &History, args: &Args) -> Result<(), Failure> {
    let user_id = match &args.user {
        Some(name) => Some(history.user_id(name).await?),
        None => None,
    };
    let mut wanted =
        Wanted { user_id, table_name: args.table.as_deref(), since: args.since, cursor: args.before };
    let limit = args.limit as usize;
    let mut changes = Vec::new();
    loop {
        let page = history.page(&wanted, args.limit).await?;
        changes.extend(page.changes);
        wanted.cursor = page.next_cursor;
        if wanted.cursor.is_none() || changes.len() >= limit {
            break;
        }
    }
    changes.truncate(limit);
    if args.json {
        return print_json(&changes.into_iter().map(ChangeBody::from).collect::<Vec<_>>());
    }
    const TITLES: [&str; 7] = ["ID", "TIME", "TABLE", "WHAT", "ROW", "ACTOR", "COLUMNS"];
    print(&table(TITLES, changes.iter().map(cells)))
}

fn cells(change: &Entry) -> [String; 7] {
    let mut columns: Vec<&str> = Vec::new();
    for data in std::iter::once(&change.changed_data).chain(&change.personal) {
        // Both sides have the same names, where they have any.
        let names = ["after", "before"].iter().find_map(|when| data.get(when)?.as_object());
        columns.extend(names.into_iter().flat_map(|names| names.keys().map(String::as_str)));
        let hidden = data.get("hidden").and_then(|names| names.as_array());
        columns.extend(hidden.into_iter().flatten().filter_map(|name| name.as_str()));
    }
    columns.sort_unstable();
    [
        change.id.to_string(),
        seconds(change.changed_at),
        change.table_name.clone(),
        change.operation.clone(),
        change.row_id.clone().unwrap_or_else(|| "-".to_owned()),
        change.actor.clone().unwrap_or_else(|| format!("({})", change.database_user)),
        columns.join(" "),
    ]
}

fn line(head: &Head) -> String {
    format!("seal {} has the hash {}", head.seal, head.hash())
}

fn report(found: &Verification) -> String {
    let mut text = format!("{} row(s) are what {} seal(s) say\n", found.rows, found.seals);
    if found.given_up > 0 {
        text.push_str(&format!("{} row(s) were given up with their months\n", found.given_up));
    }
    text.push_str(&format!("{} row(s) are not sealed yet\n", found.unsealed));
    if let Some(head) = &found.head {
        text.push_str(&format!("{}\n", line(head)));
    }
    for problem in &found.problems {
        text.push_str(&format!("PROBLEM: {problem}\n"));
    }
    text
}
