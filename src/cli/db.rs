//! `gatepass db`: the database's roles.

use std::{collections::BTreeMap, path::PathBuf};

use secrecy::ExposeSecret;
use serde_json::json;

use super::{Failure, database::Database, print, print_json, say, setup};
use crate::{
    config::DbPooler,
    random,
    store::roles::{self, Login, SetUp, Sharing},
    terminal::plain,
};

/// Prepare the database.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Create the roles: one to migrate, one to serve, one that may only read
    ///
    /// Logs in with MASTER_DB_SOURCE or, without it, DB_SOURCE, as a role that may create roles and owns the database.
    ///
    /// What is there already stays as it is, with one exception: what the migrations created under another owner is
    /// given to gatepass_owner. Nothing else may be in the schema.
    ///
    /// Prints what it did and the passwords it made, which are shown only this once.
    Setup(SetupArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct SetupArgs {
    /// Let the roles log in with AWS IAM tokens, on RDS; make no passwords
    #[arg(long, conflicts_with_all = ["no_passwords", "new_passwords"])]
    iam: bool,
    /// Make no passwords: pg_hba.conf decides how the roles log in, or you set passwords by hand
    #[arg(long, conflicts_with = "new_passwords")]
    no_passwords: bool,
    /// Make new passwords for existing roles too
    #[arg(long)]
    new_passwords: bool,
    /// Share the roles, and their passwords, with another gatepass in the same Postgres
    #[arg(long)]
    share_roles: bool,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(config_file: Option<PathBuf>, command: Command) -> Result<(), Failure> {
    let Command::Setup(args) = command;
    let settings = setup::begin(config_file).await?;
    if settings.db_pooler == DbPooler::Transaction && settings.master_db_source.is_none() {
        let error = "DB_POOLER=transaction: creating the roles needs a connection that bypasses the pooler; set \
                     MASTER_DB_SOURCE to the database itself";
        return Err(error.into());
    }
    let database = Database::open(&settings).await?;
    let done = set_up(&database, &args).await;
    database.closing(done).await
}

async fn set_up(database: &Database, args: &SetupArgs) -> Result<(), Failure> {
    let login = match args {
        SetupArgs { iam: true, .. } => Login::Iam,
        SetupArgs { no_passwords: true, .. } => Login::Otherwise,
        SetupArgs { new_passwords, .. } => Login::Password { renew: *new_passwords },
    };
    let sharing = if args.share_roles { Sharing::Allowed } else { Sharing::Refused };
    let mut conn = database.master_connection().await?;
    let SetUp { steps, passwords, members } =
        roles::set_up(&mut conn, login, sharing, &mut random::system()).await?;
    if args.json {
        let passwords: BTreeMap<_, _> =
            passwords.iter().map(|(role, password)| (role, password.expose_secret())).collect();
        return print_json(&json!({ "steps": steps, "passwords": passwords, "members": members }));
    }
    let mut text = String::new();
    for step in steps {
        text.push_str(&format!(
            "{:<8}  {}\n",
            if step.changed { "done" } else { "already" },
            plain(&step.what)
        ));
    }
    for (role, password) in &passwords {
        text.push_str(&format!("password  {role}  {}\n", password.expose_secret()));
    }
    for member in members {
        text.push_str(&format!(
            "next      when nothing logs in as {member} any more: REVOKE {} FROM \"{member}\"\n",
            roles::OWNER,
            member = plain(&member),
        ));
    }
    print(&text)?;
    if !passwords.is_empty() {
        say("note: the passwords are shown only this once; Postgres stores only what verifies them");
    }
    if args.new_passwords {
        say(
            "note: put the new passwords where the services find them, at once: those that read DB_SOURCE from a file or \
             a secret take it from there without a restart, others have to be restarted",
        );
    }
    Ok(())
}
