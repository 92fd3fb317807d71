//! What `gatepass config` prints: every setting with the value in force, and where that came from.

use std::{fmt, path::Path};

use serde::Serialize;

use super::{
    db_source,
    layers::Given,
    settings::{MASK, SETTINGS, Setting},
};
use crate::path::shown;

/// One setting with the value in force. It is displayed as a line of `app.env` followed by its origin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReportLine {
    /// The setting's name.
    pub name: &'static str,
    /// Its value, with secrets masked; `None` if it is not set and has no default.
    #[serde(rename = "value")]
    pub value_masked: Option<String>,
    /// Where the value came from: `default`, `app.env:7`, `Secrets Manager`, `environment`,
    /// `TOKEN_SYMMETRIC_KEY_FILE=/path`.
    pub origin: String,
    /// Whether nobody set it.
    pub default: bool,
}

impl fmt::Display for ReportLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, value_masked, origin, .. } = self;
        write!(f, "{name}={}  # {origin}", value_masked.as_deref().unwrap_or_default())
    }
}

/// One line per setting, in the table's order.
pub(super) fn report(given: &Given, working_dir: &Path) -> Vec<ReportLine> {
    SETTINGS
        .iter()
        .map(|setting| {
            let value = given.get(setting.name);
            ReportLine {
                name: setting.name,
                value_masked: value.map(|value| masked(setting, &value.text, working_dir)),
                origin: value.map_or("default", |value| &value.origin).into(),
                default: value.is_none_or(|value| value.is_default()),
            }
        })
        .collect()
}

fn masked(setting: &Setting, text: &str, working_dir: &Path) -> String {
    match setting.name {
        // Which database is used is what an operator most wants to see.
        "DB_SOURCE" | "MIGRATION_DB_SOURCE" | "MASTER_DB_SOURCE" => db_source::masked(text),
        // The value may be the key itself.
        "TLS_CERT_FILE" | "TLS_KEY_FILE" if shown(Path::new(text), working_dir).is_none() => MASK.into(),
        _ if setting.secret => MASK.into(),
        _ => text.into(),
    }
}
