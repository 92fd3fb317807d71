//! Settings: `app.env`, the environment and files of secrets become one checked value, or a list of everything that is
//! wrong with them.
//!
//! [`load`] does all of it. It reads the files that it is told of and nothing else: the environment and the number of
//! cores are its caller's to pass.
//!
//! 1. [`layers`] puts the sources on one another: defaults, then `app.env` or the file that `--config` names (its
//!    syntax is [`app_env`]'s), then the environment, then files that `NAME_FILE` names. An empty value is one that is
//!    not set.
//! 2. [`reader`] and [`values`] turn each text into a typed value, by [`parse`], [`duration`] and [`db_source`].
//! 3. [`check`] holds the values against one another, and against what production demands ([`entropy`] of the key).
//! 4. [`report`] tells what is in force and where it came from.
//!
//! [`settings`] is the table of all settings; [`document`] makes `app.env.example` and the README's table from it.
//!
//! # A later change that puts a setting in force
//!
//! Use its value, and delete its `support:` line in [`SETTINGS`].

mod app_env;
mod check;
mod db_source;
mod document;
mod duration;
mod entropy;
mod error;
mod layers;
mod parse;
mod reader;
mod report;
mod settings;
#[cfg(test)]
mod tests;
mod values;

use std::{ffi::OsString, path::PathBuf};

pub use document::{app_env_example, settings_table_markdown};
pub use duration::Rate;
pub use error::{ConfigErrors, Problem};
pub use report::ReportLine;
pub use settings::{DefaultValue, EXAMPLE_KEY, SETTINGS, Setting, Support, Why};
pub use values::{
    AcceptedFormat, Argon2Cost, DbPooler, Environment, JwtAlgorithm, LogFormat, Registration, Settings,
    TokenFormat,
};

/// Where [`load`] looks for settings.
#[derive(Clone, Debug)]
pub struct Sources<E> {
    /// The directory that `app.env` is in, if it is there, and that relative paths start from.
    pub working_dir: PathBuf,
    /// A file in place of `app.env`, which has to exist.
    pub config_file: Option<PathBuf>,
    /// The environment's variables, such as [`std::env::vars_os`].
    pub environment: E,
    /// How many cores the process may use, such as [`std::thread::available_parallelism`].
    pub cores: usize,
}

/// Settings that may be used.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// What is allowed, and yet should be known. To be logged.
    pub warnings: Vec<String>,
    /// Every setting with its value and its origin, for people to read.
    pub report: Vec<ReportLine>,
}

/// Loads and checks all settings.
///
/// # Errors
///
/// Everything that is wrong with them, at once.
///
/// ```
/// use gatepass::config::{Sources, load};
///
/// let working_dir = std::env::temp_dir().join("no app.env here");
/// let environment = [("HTTP_SERVER_ADDRESS", "127.0.0.1:3000"), ("ACCESS_TOKEN_DURATION", "5m")];
/// let loaded = load(Sources { working_dir, config_file: None, environment, cores: 2 })?;
/// assert_eq!(loaded.settings.http_server_address.port(), 3000);
///
/// let working_dir = std::env::temp_dir().join("no app.env here");
/// let environment = [("HTTP_SERVER_ADDRESS", "here"), ("ACCESS_TOKEN_DURATION", "5 minutes")];
/// let errors = load(Sources { working_dir, config_file: None, environment, cores: 2 }).unwrap_err();
/// assert_eq!(errors.0.len(), 2);
/// # Ok::<(), gatepass::config::ConfigErrors>(())
/// ```
pub fn load<E, K, V>(sources: Sources<E>) -> Result<Loaded, ConfigErrors>
where
    E: IntoIterator<Item = (K, V)>,
    K: Into<OsString>,
    V: Into<OsString>,
{
    let Sources { working_dir, config_file, environment, cores } = sources;
    let mut findings = error::Findings::default();

    let file = layers::file(&working_dir, config_file.as_deref(), &mut findings);
    let environment = layers::environment(environment, &mut findings);
    let mut given = layers::merge([layers::defaults(cores), file, environment]);
    layers::secret_files(&mut given, &working_dir, &mut findings);

    let mut reader = reader::Reader::new(given, findings, cores);
    let settings = Settings::read(&mut reader);
    check::check(&settings, &mut reader);

    let (given, findings) = reader.finish();
    if !findings.problems.is_empty() {
        return Err(ConfigErrors(findings.problems));
    }
    Ok(Loaded { settings, warnings: findings.warnings, report: report::report(&given) })
}
