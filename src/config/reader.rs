//! Reads settings one by one, by name, and remembers what was wrong with them.

use super::{
    error::Findings,
    layers::Given,
    settings::{DefaultValue, Setting, setting},
};

/// The values given, and what was found wrong with them.
pub(super) struct Reader {
    given: Given,
    findings: Findings,
    cores: usize,
}

impl Reader {
    pub(super) fn new(given: Given, findings: Findings, cores: usize) -> Self {
        Self { given, findings, cores }
    }

    /// Reads a setting that has a default. A value that cannot be read is a problem; the default then takes its place,
    /// so that reading continues and all problems are found at once.
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

    /// Whether all of these were read without a problem, and so may be checked against one another.
    pub(super) fn is_sound(&self, names: &[&str]) -> bool {
        names.iter().all(|name| self.findings.is_sound(name))
    }

    /// Whether somebody set the setting, rather than leaving it at its default.
    pub(super) fn is_given(&self, name: &str) -> bool {
        self.given.get(name).is_some_and(|value| !value.is_default())
    }

    /// Reports a problem with a setting whose value could be read.
    pub(super) fn problem(&mut self, name: &str, message: impl Into<String>) {
        self.findings.problem(name, self.given.origin(name), message);
    }

    /// Reports something about a setting that its owner should know.
    pub(super) fn warning(&mut self, name: &str, message: &str) {
        self.findings.warning(name, &self.given.origin(name), message);
    }

    /// Describes a setting that is not secret for a message: its name, its value and where that came from.
    pub(super) fn describe(&self, name: &str) -> String {
        let text = self.given.get(name).map_or("", |value| &value.text);
        format!("{name} ({text}, {})", self.given.origin(name))
    }

    /// Returns the values given, and the findings.
    pub(super) fn finish(self) -> (Given, Findings) {
        (self.given, self.findings)
    }
}

/// Puts the value, if it may be shown, before what is expected, and an example after it.
fn explain(setting: &Setting, text: &str, expected: &str) -> String {
    if setting.secret {
        return expected.into();
    }
    // A URL with a user in it may hold a password, even where none belongs.
    let hides_password = text.contains("://") && text.contains('@');
    let shown = if hides_password { String::new() } else { format!("{:?}: ", shorten(text)) };
    let example = match setting.default {
        DefaultValue::Text(default) => Some(default),
        _ => setting.example,
    };
    let example = example.map(|example| format!(", for example {example}")).unwrap_or_default();
    format!("{shown}{expected}{example}")
}

/// The text, cut off if it is too long to quote.
fn shorten(text: &str) -> std::borrow::Cow<'_, str> {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]).into(),
        None => text.into(),
    }
}
