//! Settings: `app.env`, a secret of AWS Secrets Manager, the environment and files of secrets become one checked value,
//! or a list of everything that is wrong with them.
//!
//! [`load`] does all of it where there is no secret; where one is named, [`gather`] says which. This room reads the files
//! that it is told of and nothing else: the environment, the number of cores and the text of the secret are its caller's
//! to pass.
//!
//! 1. [`layers`] puts the sources on one another: defaults, then `app.env` or the file that `--config` names (its
//!    syntax is [`app_env`]'s), then the secret ([`secret`]), then the environment, then files that `NAME_FILE` names.
//!    An empty value is one that is not set.
//! 2. [`reader`] and [`values`] turn each text into a typed value, by [`parse`], [`duration`] and [`db_source`].
//! 3. [`check`] holds the values against one another, and against what production demands ([`entropy`] of the key).
//! 4. [`report`] tells what is in force and where it came from.
//!
//! [`settings`] is the table of all settings; [`document`] makes `app.env.example` and the README's table from it.

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
/// Everything that is wrong with them, at once; also that they name a secret, for which [`gather`] is there.
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

/// Reads the file and the environment, and checks nothing yet.
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
            // What cannot be read, reading all the settings will tell.
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

/// What file and environment set, to which a secret may have to be added.
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
    /// There is none.
    None,
    Named {
        origin: String,
        place: SecretPlace,
    },
    Read(layers::Layer),
    /// It could not be had, which has been told or will be.
    Failed,
    /// Nobody wants what it says.
    LeftOut,
}

/// Where the secret is.
#[derive(Clone, Debug)]
pub struct SecretPlace {
    /// Name or ARN.
    pub id: String,
    /// The AWS region; when not given, that of the machine.
    pub region: Option<String>,
    /// Whom to call in place of AWS.
    pub endpoint_url: Option<String>,
}

impl Gathered {
    /// The secret that is to be added, if one is named.
    pub fn secret(&self) -> Option<SecretPlace> {
        match &self.secret {
            Secret::Named { place, .. } => Some(place.clone()),
            _ => None,
        }
    }

    /// Adds the text of the secret, or why it could not be had.
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

    /// Leaves the secret out. Then the settings are not held against one another, nor what production demands against
    /// them: what is missing may be in the secret.
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
    /// Everything that is wrong with them, at once; also that a secret is named and was not added.
    pub fn check(self) -> Result<Loaded, ConfigErrors> {
        let Self { working_dir, cores, file, secret, environment, mut findings } = self;
        let (secret, is_whole) = match secret {
            Secret::None => (layers::Layer::default(), true),
            Secret::Read(layer) => (layer, true),
            Secret::Failed | Secret::LeftOut => (layers::Layer::default(), false),
            Secret::Named { origin, .. } => {
                findings.problem(secret::ID, origin, "nobody has read the secret");
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
