//! Reads settings one by one by name, and keeps in mind what was wrong with them.

use super::{
    error::Findings,
    layers::Given,
    settings::{DefaultValue, Setting, setting},
};

/// What was given, and what has been found out about it.
pub(super) struct Reader {
    given: Given,
    findings: Findings,
    cores: usize,
}

impl Reader {
    pub(super) fn new(given: Given, findings: Findings, cores: usize) -> Self {
        Self { given, findings, cores }
    }

    /// Reads a setting that has a default. A value that cannot be read is a problem, and the default stands in for it
    /// so that reading goes on and all problems are found at once.
    pub(super) fn value<T>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> T {
        self.optional(name, &parse).unwrap_or_else(|| {
            let default = setting(name).default.text(self.cores).expect("only for settings with a default");
            parse(&default).expect("a test reads every default")
        })
    }

    /// Reads a setting that may be missing.
    pub(super) fn optional<T>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let setting = setting(name);
        let value = self.given.get(name)?;
        match parse(&value.text) {
            Ok(parsed) => Some(parsed),
            Err(expected) => {
                let message = explain(setting, &value.text, &expected);
                self.findings.problem(name, &value.origin, message);
                None
            }
        }
    }

    /// Whether every one of these was read without a problem, so that they may be held against one another.
    pub(super) fn is_sound(&self, names: &[&str]) -> bool {
        names.iter().all(|name| self.findings.is_sound(name))
    }

    /// Whether somebody set it.
    pub(super) fn is_given(&self, name: &str) -> bool {
        self.given.get(name).is_some_and(|value| !value.is_default())
    }

    /// A problem with a setting whose value could be read.
    pub(super) fn problem(&mut self, name: &str, message: impl Into<String>) {
        self.findings.problem(name, self.given.origin(name), message);
    }

    /// Something about a setting that its owner should know.
    pub(super) fn warning(&mut self, name: &str, message: &str) {
        self.findings.warning(name, &self.given.origin(name), message);
    }

    /// A setting that is not secret with its value and where that came from, to be named in a message.
    pub(super) fn describe(&self, name: &str) -> String {
        let text = self.given.get(name).map_or("", |value| &value.text);
        format!("{name} ({text}, {})", self.given.origin(name))
    }

    /// What was given, and what has been found.
    pub(super) fn finish(self) -> (Given, Findings) {
        (self.given, self.findings)
    }
}

/// Puts the value, when it may be shown, before what is expected, and an example after it.
fn explain(setting: &Setting, text: &str, expected: &str) -> String {
    if setting.secret {
        return expected.into();
    }
    // An address with a user in it may hold a password even where none belongs.
    let hides_password = text.contains("://") && text.contains('@');
    let shown = if hides_password { String::new() } else { format!("{:?}: ", shorten(text)) };
    let example = match setting.default {
        DefaultValue::Text(default) => Some(default),
        _ => setting.example,
    };
    let example = example.map(|example| format!(", for example {example}")).unwrap_or_default();
    format!("{shown}{expected}{example}")
}

/// The beginning of a text that is too long to be quoted.
fn shorten(text: &str) -> std::borrow::Cow<'_, str> {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]).into(),
        None => text.into(),
    }
}
