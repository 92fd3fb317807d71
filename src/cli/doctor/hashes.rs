//! Checks of the stored password hashes.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::Finding;
use crate::{
    password::{Peppers, Unreadable, key_id},
    store::{self, PgConnection, users},
};

/// How many of the oldest users are looked at, and how many of the newest. A pepper that was lost is missing in all,
/// one that was removed too early in the oldest.
const LOOKED_AT: i64 = 500;
/// How many peppers are named.
const NAMED: usize = 5;

/// Whether the users can log in with the passwords that they have, as far as that shows without one.
pub(super) async fn hashes(conn: &mut PgConnection, peppers: &Peppers) -> Result<Vec<Finding>, store::Error> {
    const AREA: &str = "password";

    let hashes = users::some_password_hashes(conn, LOOKED_AT).await?;
    let count = hashes.len();
    let mut unknown = BTreeMap::<String, usize>::new();
    let mut broken = BTreeMap::<String, (usize, Uuid)>::new();
    for (id, hash) in hashes {
        match (hash.check(peppers), hash.pepper_name()) {
            (Ok(()), _) => {}
            (Err(Unreadable::Pepper), Some(name)) => *unknown.entry(name).or_default() += 1,
            (Err(reason), _) => broken.entry(reason.to_string()).or_insert((0, id)).0 += 1,
        }
    }
    let mut findings = Vec::new();
    if !unknown.is_empty() {
        let affected: usize = unknown.values().sum();
        let mut names: Vec<_> =
            unknown.keys().take(NAMED).map(|name| format!("{name} (keyid={})", key_id(name))).collect();
        if unknown.len() > NAMED {
            names.push(format!("{} more", unknown.len() - NAMED));
        }
        let message = format!(
            "{affected} of the {count} stored hashes looked at were made with a pepper that PASSWORD_PEPPER does not hold: \
             {}. Their users cannot log in",
            names.join(", ")
        );
        findings.push(Finding::problem(AREA, message).advise(
            "put it back, and restart the service; if it is lost for good, they need new passwords \
             (docs/passwords.md)",
        ));
    }
    for (reason, (affected, id)) in broken {
        let message =
            format!("{reason}: {affected} of the {count} looked at, one of them that of the user {id}");
        findings.push(Finding::warning(AREA, message).advise(
            "until such a user has a new password, they cannot log in: `gatepass user set-password`",
        ));
    }
    if findings.is_empty() {
        let message = match count {
            0 => "no password hash is stored yet".to_owned(),
            _ => format!(
                "nothing wrong with the {count} stored hashes looked at, of the oldest and newest users"
            ),
        };
        findings.push(Finding::ok(AREA, message));
    }
    Ok(findings)
}
