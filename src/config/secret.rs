//! The syntax of a secret that holds settings: one JSON object of names and texts, `{"DB_SOURCE": "postgres://…"}`.
//!
//! Error messages do not quote values: any of them may be a secret.

use std::{collections::HashSet, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::Value;

use super::{
    error::Findings,
    layers::{Layer, unknown},
    settings::{SETTINGS, setting},
};

/// The setting that names the secret.
pub(super) const ID: &str = "SECRETS_MANAGER_SECRET_ID";
pub(super) const REGION: &str = "AWS_REGION";
pub(super) const ENDPOINT_URL: &str = "AWS_ENDPOINT_URL";

/// The origin of what the secret sets.
const ORIGIN: &str = "Secrets Manager";

/// What the secret sets; `None` if it cannot be read at all. A secret setting whose `NAME_FILE` is in the environment
/// is left to that file.
pub(super) fn layer(text: &str, environment: &Layer, findings: &mut Findings) -> Option<Layer> {
    let mut layer = Layer::default();
    let entries = match serde_json::from_str::<Entries>(text) {
        Ok(Entries(entries)) => entries,
        // The error's own message may quote a value.
        Err(error) => {
            let (line, column) = (error.line(), error.column());
            let message = format!(
                "expected the secret to be a JSON object of names and texts; the error is at line {line}, column {column}"
            );
            findings.problem(ID, ORIGIN, message);
            return None;
        }
    };
    let mut seen = HashSet::new();
    for (name, value) in &entries {
        if [ID, REGION, ENDPOINT_URL].contains(&name.as_str()) {
            findings.problem(name, ORIGIN, "it says where the secret is, and so cannot be in it");
        } else if !SETTINGS.iter().any(|setting| setting.name == name) {
            match SETTINGS.iter().find(|setting| setting.file_name().as_ref() == Some(name)) {
                Some(setting) => {
                    let message = format!(
                        "a secret cannot name a file; put the value itself in it as {}",
                        setting.name
                    );
                    findings.problem(name, ORIGIN, message);
                }
                None => unknown(name, ORIGIN.into(), findings),
            }
        } else if !seen.insert(name) {
            findings.problem(name, ORIGIN, "it is there twice; keep one of the two");
        } else if let Value::String(text) = value {
            if !setting(name).file_name().is_some_and(|file| environment.sets(&file)) {
                layer.push(name, text, ORIGIN);
            }
        } else {
            findings.problem(name, ORIGIN, "expected a text in \"quotes\"");
        }
    }
    Some(layer)
}

/// The members of a JSON object in their order, including duplicates.
struct Entries(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }

        deserializer.deserialize_map(Members)
    }
}
