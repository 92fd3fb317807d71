//! `gatepass db`: the roles of the database.

use std::{collections::BTreeMap, path::PathBuf};

use secrecy::ExposeSecret;
use serde_json::json;

use super::{Failure, print, print_json, setup};
use crate::{
    random,
    store::roles::{self, Login, SetUp},
};

/// Prepare the database.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Make the roles: one that migrates, one that serves, one that only looks
    ///
    /// Logs in as MASTER_DB_SOURCE says, or without it as DB_SOURCE does: as somebody who may make roles and owns the
    /// database. What is there already stays as it is; tables of another owner are given to gatepass_owner. Prints what it
    /// did, and passwords that it has made, this once.
    Setup(SetupArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct SetupArgs {
    /// Let the roles log in with AWS IAM tokens, on RDS, and make no passwords
    #[arg(long, conflicts_with_all = ["no_passwords", "new_passwords"])]
    iam: bool,
    /// Make no passwords: the roles log in as pg_hba.conf says, or you set some by hand
    #[arg(long, conflicts_with = "new_passwords")]
    no_passwords: bool,
    /// Make new passwords also for roles that are there already
    #[arg(long)]
    new_passwords: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(config_file: Option<PathBuf>, command: Command) -> Result<(), Failure> {
    let Command::Setup(args) = command;
    let settings = setup::begin(config_file).await?;
    let database = setup::Database::open(&settings).await?;
    let done = set_up(&database, &args).await;
    done.and(database.close().await)
}

async fn set_up(database: &setup::Database, args: &SetupArgs) -> Result<(), Failure> {
    let login = match args {
        SetupArgs { iam: true, .. } => Login::Iam,
        SetupArgs { no_passwords: true, .. } => Login::Otherwise,
        SetupArgs { new_passwords, .. } => Login::Password { renew: *new_passwords },
    };
    let mut conn = database.master_connection().await?;
    let SetUp { steps, passwords } = roles::set_up(&mut conn, login, &mut random::system()).await?;
    if args.json {
        let passwords: BTreeMap<_, _> =
            passwords.iter().map(|(role, password)| (role, password.expose_secret())).collect();
        return print_json(&json!({ "steps": steps, "passwords": passwords }));
    }
    let mut text = String::new();
    for step in steps {
        text.push_str(&format!("{:<8}  {}\n", if step.changed { "done" } else { "already" }, step.what));
    }
    for (role, password) in &passwords {
        text.push_str(&format!("password  {role}  {}\n", password.expose_secret()));
    }
    print(&text)?;
    if !passwords.is_empty() {
        eprintln!("note: the passwords are shown this once; Postgres has only what checks them");
    }
    Ok(())
}
