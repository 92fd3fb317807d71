//! Where values come from, and which wins: the defaults, `app.env` over them, a secret in Secrets Manager over that,
//! the environment over all, and the files that `NAME_FILE` names for secrets.
//!
//! The `config` crate stacks the layers; its values remember their origin. In every layer an empty value counts as not
//! set, so it hides nothing beneath it.
//!
//! The crate keeps values as plain `String`s. When loading is done they are dropped, not wiped: the environment and the
//! file that they came from hold them in the clear anyway.

use std::{
    collections::HashMap,
    ffi::OsString,
    fmt,
    fs::File,
    io::{self, Read},
    path::Path,
};

use ::config::{Config, ConfigError, Map, Source, Value as ConfigValue};

use super::{
    app_env,
    error::Findings,
    settings::{SETTINGS, advice, misspelled, names},
};
use crate::path::shown;

/// The origin of a value that nobody set.
const DEFAULT: &str = "default";

/// Files larger than this are neither settings nor secrets.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// A setting's text, and where it came from.
pub(super) struct Value {
    pub(super) text: String,
    pub(super) origin: String,
}

impl Value {
    /// Whether nobody set it.
    pub(super) fn is_default(&self) -> bool {
        self.origin == DEFAULT
    }
}

/// The values of all settings that are set or have a default, by name.
pub(super) struct Given(HashMap<String, Value>);

impl Given {
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// Where a value came from, or that there is none.
    pub(super) fn origin(&self, name: &str) -> String {
        self.get(name).map_or_else(|| "not set".into(), |value| value.origin.clone())
    }
}

/// The values of one source.
#[derive(Clone, Default)]
pub(super) struct Layer(Vec<(String, ConfigValue)>);

impl Layer {
    pub(super) fn push(&mut self, name: &str, text: &str, origin: &str) {
        // Empty is not set.
        if !text.is_empty() {
            self.0.push((name.into(), ConfigValue::new(Some(&origin.to_owned()), text)));
        }
    }

    pub(super) fn sets(&self, name: &str) -> bool {
        self.0.iter().any(|(set, _)| set == name)
    }
}

impl fmt::Debug for Layer {
    /// Shows only the names: the values may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, ConfigValue>, ConfigError> {
        Ok(self.0.iter().cloned().collect())
    }
}

/// The default values of the settings.
pub(super) fn defaults(cores: usize) -> Layer {
    let mut layer = Layer::default();
    for setting in SETTINGS {
        if let Some(text) = setting.default.text(cores) {
            layer.push(setting.name, &text, DEFAULT);
        }
    }
    layer
}

/// What the environment sets. Variables that are not settings belong to others, and are ignored; one that is nearly a
/// setting causes a warning.
pub(super) fn environment<K, V>(variables: impl IntoIterator<Item = (K, V)>, findings: &mut Findings) -> Layer
where
    K: Into<OsString>,
    V: Into<OsString>,
{
    let mut layer = Layer::default();
    for (name, text) in variables {
        let Ok(name) = name.into().into_string() else { continue };
        if !names().any(|known| known == name) {
            if let Some(meant) = misspelled(&name) {
                let message = format!("there is no such setting; did you mean {meant}?");
                findings.warning(&name, "environment", &message);
            }
            continue;
        }
        match text.into().into_string() {
            Ok(text) => layer.push(&name, &text, "environment"),
            Err(_) => findings.problem(&name, "environment", "expected text in UTF-8"),
        }
    }
    layer
}

/// What a file sets: `config_file`, which must exist, or otherwise `app.env` in the working directory, which need not.
pub(super) fn file(working_dir: &Path, config_file: Option<&Path>, findings: &mut Findings) -> Layer {
    let path = config_file.unwrap_or(Path::new("app.env"));
    let shown = path.display().to_string();
    match read(&working_dir.join(path)) {
        Ok(bytes) => {
            if let Err(error) = str::from_utf8(&bytes) {
                let line = 1 + bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
                findings.unreadable(format!("{shown}:{line}"), "expected text in UTF-8");
            }
            // Read the lines all the same, to find the other problems too.
            lines(&shown, &String::from_utf8_lossy(&bytes), findings)
        }
        Err(error) if config_file.is_none() && error.kind() == io::ErrorKind::NotFound => Layer::default(),
        Err(error) => {
            findings.unreadable(shown, format!("cannot be read: {error}"));
            Layer::default()
        }
    }
}

/// What the lines of a file set.
fn lines(file: &str, text: &str, findings: &mut Findings) -> Layer {
    let mut layer = Layer::default();
    let mut seen = HashMap::new();
    for line in app_env::lines(text) {
        let (number, name) = match &line {
            Ok(line) => (line.number, Some(line.name)),
            Err(malformed) => (malformed.number, malformed.name),
        };
        let origin = format!("{file}:{number}");
        if let Some(name) = name {
            if !names().any(|known| known == name) {
                unknown(name, origin, findings);
                continue;
            }
            if let Some(first) = seen.insert(name, number) {
                findings.problem(
                    name,
                    origin,
                    format!("it is set in line {first} already; keep one of the two"),
                );
                continue;
            }
        }
        match (line, name) {
            (Ok(line), _) => layer.push(line.name, &line.value, &origin),
            (Err(malformed), Some(name)) => findings.problem(name, origin, malformed.message),
            (Err(malformed), None) => findings.unreadable(origin, malformed.message),
        }
    }
    layer
}

/// Reports a name that is not a setting's. It is quoted only if it looks like one: it may also be the tail of a secret
/// that was broken over two lines.
pub(super) fn unknown(name: &str, origin: String, findings: &mut Findings) {
    let looks_like_a_name = name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
    match advice(name) {
        Some(advice) => findings.problem(name, origin, format!("there is no such setting; {advice}")),
        None if looks_like_a_name && name.contains('_') => {
            findings.problem(name, origin, "there is no such setting, nor one with a similar name");
        }
        None => findings.unreadable(origin, "there is no setting of that name, nor one with a similar name"),
    }
}

/// Stacks the layers, the last one on top.
pub(super) fn merge(layers: impl IntoIterator<Item = Layer>) -> Given {
    let builder = layers.into_iter().fold(Config::builder(), |builder, layer| builder.add_source(layer));
    let merged = builder.build().and_then(|config| config.cache.into_table());
    let merged = merged.expect("a layer is held in memory, so that collecting it cannot fail");
    let value = |value: ConfigValue| {
        let origin = value.origin().unwrap_or_default().to_owned();
        Value { text: value.into_string().expect("a layer holds strings alone"), origin }
    };
    Given(merged.into_iter().map(|(name, merged)| (name, value(merged))).collect())
}

/// Reads the files that `NAME_FILE` names, and sets `NAME` to their contents.
pub(super) fn secret_files(given: &mut Given, working_dir: &Path, findings: &mut Findings) {
    for setting in SETTINGS {
        let Some(file_name) = setting.file_name() else { continue };
        let Some(path) = given.0.remove(&file_name) else { continue };
        if let Some(value) = given.get(setting.name) {
            let message = format!("both this and {file_name} ({}) are set; keep one of the two", path.origin);
            findings.problem(setting.name, &value.origin, message);
            continue;
        }
        match secret(&working_dir.join(&path.text)) {
            Ok(text) => {
                let origin = format!("{file_name}={}", path.text);
                given.0.insert(setting.name.into(), Value { text, origin });
            }
            Err(error) => {
                let message = match shown(Path::new(&path.text), working_dir) {
                    Some(shown) => format!("cannot read {shown}: {error}"),
                    None => "expected the path of a file, and this looks like the secret itself".into(),
                };
                findings.problem(&file_name, path.origin, message);
            }
        }
    }
}

/// The secret in a file. One line break at the end was added by an editor, and is not part of the secret.
fn secret(path: &Path) -> io::Result<String> {
    let text = String::from_utf8(read(path)?).map_err(|_| io::Error::other("expected text in UTF-8"))?;
    let text = text.strip_suffix('\n').map(|text| text.strip_suffix('\r').unwrap_or(text)).unwrap_or(&text);
    if text.is_empty() { Err(io::Error::other("the file is empty")) } else { Ok(text.into()) }
}

/// Reads a file that should be small.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other("the file is larger than 64 KiB"));
    }
    Ok(bytes)
}
