//! Settings: turns `app.env`, a secret in AWS Secrets Manager, the environment and files of secrets into one checked
//! value, or into a list of everything that is wrong with them.
//!
//! [`load`] does all of this unless a secret in Secrets Manager is named; if one is, [`gather`] says which. This room
//! reads the files it is given and nothing else: its caller passes the environment, the number of cores and the text of
//! the secret.
//!
//! 1. [`layers`] stacks the sources: defaults, then `app.env` or the file that `--config` names (in the syntax of
//!    [`app_env`]), then the secret ([`secret`]), then the environment, then the files that `NAME_FILE` names. An empty
//!    value counts as not set.
//! 2. [`reader`] and [`values`] turn each text into a typed value, with [`parse`], [`duration`] and [`db_source`].
//! 3. [`check`] checks the values against one another, and against what production demands ([`entropy`] of the key).
//! 4. [`report`] shows what is in force and where it came from.
//!
//! [`settings`] is the table of all settings; [`document`] generates `app.env.example` and the README's table from it.

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
mod secret;
mod settings;
#[cfg(test)]
mod tests;
mod values;

use std::{ffi::OsString, path::PathBuf};

use secrecy::{ExposeSecret, SecretString};

pub use document::{app_env_example, settings_table_markdown};
pub use error::{ConfigErrors, Problem};
pub use report::ReportLine;
pub use settings::{DefaultValue, EXAMPLE_KEY, SETTINGS, Setting};
pub use values::{DbPooler, Environment, Registration, Settings};

/// Where [`load`] looks for settings.
#[derive(Clone, Debug)]
pub struct Sources<E> {
    /// The directory that may contain `app.env`, and from which relative paths start.
    pub working_dir: PathBuf,
    /// A file to read in place of `app.env`; it must exist.
    pub config_file: Option<PathBuf>,
    /// The environment's variables, such as [`std::env::vars_os`].
    pub environment: E,
    /// How many cores the process may use, such as [`std::thread::available_parallelism`].
    pub cores: usize,
}

/// Settings that passed all checks.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// What is allowed but should be known; to be logged.
    pub warnings: Vec<String>,
    /// Every setting with its value and its origin, for people to read.
    pub report: Vec<ReportLine>,
}

/// Loads and checks all settings.
///
/// # Errors
///
/// Everything that is wrong with the settings, at once. Naming a secret in Secrets Manager is an error here too: for
/// that, use [`gather`].
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
    gather(sources).check()
}

/// Reads the file and the environment, without checking anything yet.
pub fn gather<E, K, V>(sources: Sources<E>) -> Gathered
where
    E: IntoIterator<Item = (K, V)>,
    K: Into<OsString>,
    V: Into<OsString>,
{
    let Sources { working_dir, config_file, environment, cores } = sources;
    let mut findings = error::Findings::default();
    let file = layers::file(&working_dir, config_file.as_deref(), &mut findings);
    let environment = layers::environment(environment, &mut findings);
    let outside = layers::merge([file.clone(), environment.clone()]);
    let secret = match outside.get(secret::ID) {
        Some(id) => {
            let text = |name| outside.get(name).map(|value| value.text.clone());
            let (region, endpoint_url) = (text(secret::REGION), text(secret::ENDPOINT_URL));
            // A value that cannot be read is reported when all the settings are read.
            let is_sound = parse::name(&id.text).is_ok()
                && region.as_deref().is_none_or(|region| parse::name(region).is_ok())
                && endpoint_url.as_deref().is_none_or(|url| parse::url(url).is_ok());
            let place = SecretPlace { id: id.text.clone(), region, endpoint_url };
            if is_sound { Secret::Named { origin: id.origin.clone(), place } } else { Secret::Failed }
        }
        None => Secret::None,
    };
    Gathered { working_dir, cores, file, secret, environment, findings }
}

/// What the file and the environment set. A secret may have to be added.
#[derive(Debug)]
pub struct Gathered {
    working_dir: PathBuf,
    cores: usize,
    file: layers::Layer,
    secret: Secret,
    environment: layers::Layer,
    findings: error::Findings,
}

/// The state of the secret that holds settings.
#[derive(Debug)]
enum Secret {
    /// No secret is named.
    None,
    Named {
        origin: String,
        place: SecretPlace,
    },
    Read(layers::Layer),
    /// It could not be read, which has been reported or will be.
    Failed,
    /// The caller does without it.
    LeftOut,
}

/// Where the secret is.
#[derive(Clone, Debug)]
pub struct SecretPlace {
    /// Its name or ARN.
    pub id: String,
    /// The AWS region; if not given, that of the machine.
    pub region: Option<String>,
    /// The address to call in place of AWS.
    pub endpoint_url: Option<String>,
}

impl Gathered {
    /// The secret to be added, if one is named.
    pub fn secret(&self) -> Option<SecretPlace> {
        match &self.secret {
            Secret::Named { place, .. } => Some(place.clone()),
            _ => None,
        }
    }

    /// Adds the text of the secret, or the reason why it could not be read.
    pub fn add_secret(&mut self, text: Result<SecretString, String>) {
        let Secret::Named { origin, .. } = &self.secret else { return };
        self.secret = match text {
            Ok(text) => secret::layer(text.expose_secret(), &self.environment, &mut self.findings)
                .map_or(Secret::Failed, Secret::Read),
            Err(why) => {
                self.findings.problem(secret::ID, origin, why);
                Secret::Failed
            }
        };
    }

    /// Leaves the secret out. The settings are then checked neither against one another nor against what production
    /// demands, since what is missing may be in the secret.
    #[must_use]
    pub fn without_secret(mut self) -> Self {
        if let Secret::Named { .. } = self.secret {
            self.secret = Secret::LeftOut;
        }
        self
    }

    /// Checks all settings.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with the settings, at once; also a secret that is named and was not added.
    pub fn check(self) -> Result<Loaded, ConfigErrors> {
        let Self { working_dir, cores, file, secret, environment, mut findings } = self;
        let (secret, is_whole) = match secret {
            Secret::None => (layers::Layer::default(), true),
            Secret::Read(layer) => (layer, true),
            Secret::Failed | Secret::LeftOut => (layers::Layer::default(), false),
            Secret::Named { origin, .. } => {
                findings.problem(secret::ID, origin, "the secret has not been read");
                (layers::Layer::default(), false)
            }
        };
        let mut given = layers::merge([layers::defaults(cores), file, secret, environment]);
        layers::secret_files(&mut given, &working_dir, &mut findings);

        let mut reader = reader::Reader::new(given, findings, cores);
        let settings = Settings::read(&mut reader);
        if is_whole {
            check::check(&settings, &mut reader);
        }

        let (given, findings) = reader.finish();
        if !findings.problems.is_empty() {
            return Err(ConfigErrors(findings.problems));
        }
        Ok(Loaded { settings, warnings: findings.warnings, report: report::report(&given, &working_dir) })
    }
}
