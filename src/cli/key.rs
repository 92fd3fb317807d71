//! `gatepass key`: the keys that tokens are made with.

use secrecy::ExposeSecret;
use serde_json::json;

use super::{Failure, print, print_json};
use crate::{random, token::SymmetricKey};

/// Look after the keys that tokens are made with.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Print a new key for TOKEN_SYMMETRIC_KEY, as PASERK `k4.local.…`
    Generate {
        /// As JSON, with the key's id
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::Generate { json } => {
            let key = SymmetricKey::from_bytes(random::bytes(&mut random::system()));
            let paserk = key.to_paserk();
            if *json {
                return print_json(&json!({ "kid": key.id().as_str(), "key": paserk.expose_secret() }));
            }
            print(&format!("{}\n", paserk.expose_secret()))
        }
    }
}
