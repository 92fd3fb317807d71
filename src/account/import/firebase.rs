//! Firebase Authentication: `firebase auth:export users.json --format=json`. The hashes need the project's parameters
//! (console: Authentication, ⋮, Password hash parameters). <https://firebase.google.com/docs/cli/auth>

use super::{Draft, Rules, object::Object};
use crate::password::foreign::{FirebaseProject, Imported, Refused};

pub(super) fn draft(object: &mut Object<'_>, rules: &Rules) -> Draft {
    let salt = object.text("salt");
    let hash = object.text("passwordHash").filter(|hash| !hash.is_empty());
    let password = hash.map(|hash| match &rules.firebase {
        Some(project) => Imported::firebase(project, &hash, salt.as_deref().unwrap_or_default()),
        None => {
            object.refuse(
                "passwordHash",
                "no_parameters",
                "needs the project's parameters: --hash-config FILE",
            );
            Err(Refused::NoPassword)
        }
    });
    Draft {
        external_id: object.id("localId"),
        email: object.text("email"),
        full_name: object.text("displayName"),
        is_email_verified: object.flag("emailVerified"),
        disabled: object.flag("disabled"),
        created_at: object.milliseconds("createdAt"),
        password_changed_at: object.milliseconds("passwordUpdatedAt"),
        password,
        ..Draft::default()
    }
    .with_username()
}

/// Reads the parameters as the console shows them, or as JSON: names and values, with any punctuation between them.
///
/// # Errors
///
/// What is missing, or why the parameters are not valid.
pub fn hash_config(text: &str) -> Result<FirebaseProject, String> {
    let between = |c: char| c.is_whitespace() || "{},:\"'".contains(c);
    let mut words = text.split(between).filter(|word| !word.is_empty());
    let (mut key, mut separator, mut rounds, mut mem_cost) = (None, None, None, None);
    while let Some(word) = words.next() {
        match word {
            "base64_signer_key" | "signerKey" => key = words.next(),
            "base64_salt_separator" | "saltSeparator" => separator = words.next(),
            "rounds" => rounds = words.next().and_then(|number| number.parse().ok()),
            "mem_cost" | "memoryCost" => mem_cost = words.next().and_then(|number| number.parse().ok()),
            _ => {}
        }
    }
    let missing = |name: &str| format!("{name} is missing or has no valid value");
    FirebaseProject::new(
        key.ok_or_else(|| missing("base64_signer_key"))?,
        separator.ok_or_else(|| missing("base64_salt_separator"))?,
        rounds.ok_or_else(|| missing("rounds"))?,
        mem_cost.ok_or_else(|| missing("mem_cost"))?,
    )
    .map_err(|refused| refused.to_string())
}
