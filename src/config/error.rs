//! What is wrong with a configuration, reported all at once.

use std::fmt;

use serde::Serialize;

use super::settings::setting;

/// Everything that is wrong with the settings. It is displayed on one line, or as a list with one line per problem, and
/// never contains a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(pub Vec<Problem>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0[..] {
            [problem] => write!(f, "the configuration has a problem: {problem}"),
            problems => {
                write!(f, "the configuration has {} problems:", problems.len())?;
                problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The setting's name, or that of `NAME_FILE`; `None` if a line or a whole file cannot be read.
    pub key: Option<String>,
    /// Where the value came from: `app.env:12`, `Secrets Manager`, `environment`, `not set`, …
    pub origin: String,
    /// What is expected.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, origin, message } = self;
        match key {
            Some(key) => write!(f, "{key} ({origin}): {message}"),
            None => write!(f, "{origin}: {message}"),
        }
    }
}

/// What has been found so far.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<String>,
}

impl Findings {
    pub(super) fn problem(&mut self, key: &str, origin: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Problem { key: Some(key.into()), origin: origin.into(), message: message.into() });
    }

    /// Reports a problem with a line or a file whose setting is not known.
    pub(super) fn unreadable(&mut self, origin: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Problem { key: None, origin: origin.into(), message: message.into() });
    }

    pub(super) fn warning(&mut self, key: &str, origin: &str, message: &str) {
        self.warnings.push(format!("{key} ({origin}): {message}"));
    }

    /// Whether nothing was found wrong with the setting, so that its value is the intended one.
    pub(super) fn is_sound(&self, name: &str) -> bool {
        let file_name = setting(name).file_name();
        !self.problems.iter().any(|problem| {
            problem.key.is_some() && (problem.key.as_deref() == Some(name) || problem.key == file_name)
        })
    }
}
