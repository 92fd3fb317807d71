//! `gatepass client`: the services that may ask about tokens.

use std::path::PathBuf;

use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;

use super::{Failure, database, explain, print, print_json, print_line, say, seconds, setup, table};
use crate::{
    account::{Client, Clients},
    clock::Clock,
    random,
    store::PgPool,
};

/// Manage introspection clients: services that ask gatepass about tokens, with an id and a secret.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Create a client and print its id and its secret, which is shown only this once
    Create {
        /// The client's name: 1 to 32 characters of a-z A-Z 0-9 _ . -
        name: String,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// List clients, oldest first; never their secrets
    List {
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Delete a client; its next request is refused
    Delete {
        /// Id or name
        client: String,
    },
}

pub(super) async fn run(config_file: Option<PathBuf>, command: Command) -> Result<(), Failure> {
    let settings = setup::begin(config_file).await?;
    let clients = |db: &PgPool| Clients::new(db.clone()).caused_by(setup::operator());
    database::on_pool(&settings, async |db| execute(&clients(db), command).await).await
}

async fn execute(clients: &Clients, command: Command) -> Result<(), Failure> {
    match command {
        Command::Create { name, json } => {
            let now = Clock::system().now();
            let created = clients.create(&name, now, &mut random::system()).await;
            let (client, secret) = created.map_err(|error| explain(error.into()))?;
            if json {
                return print_json(&json!({ "client_id": client.id, "client_secret": secret.expose() }));
            }
            print(&format!("client_id      {}\nclient_secret  {}\n", client.id, secret.expose()))?;
            say("note: the secret is shown only this once; gatepass stores only its hash");
            Ok(())
        }
        Command::List { json } => {
            let clients = clients.list().await?;
            if json {
                return print_json(&clients.iter().map(entry).collect::<Result<Vec<_>, _>>()?);
            }
            print(&table(["ID", "NAME", "CREATED"], clients.iter().map(cells)))
        }
        Command::Delete { client } => {
            let client = clients.delete(&client).await?;
            print_line(&format!("{} is deleted", client.name))
        }
    }
}

fn entry(client: &Client) -> Result<Value, time::error::Format> {
    let created_at = client.created_at.format(&Rfc3339)?;
    Ok(json!({ "client_id": client.id, "name": client.name, "created_at": created_at }))
}

fn cells(client: &Client) -> [String; 3] {
    [client.id.to_string(), client.name.clone(), seconds(client.created_at)]
}
