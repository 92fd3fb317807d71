//! The settings as typed values: what the rest of the service is given.

use std::{net::SocketAddr, num::NonZeroUsize, path::PathBuf, sync::Arc, time::Duration};

use ipnet::IpNet;
use secrecy::SecretString;

use super::{
    db_source::db_source,
    duration::{duration, rate},
    parse::{self, Word, list, number, word},
    reader::Reader,
};
use crate::{
    password::{Params, Peppers, breached::BreachedFile},
    store::login_attempts::Rate,
    telemetry::LogFormat,
    token::{Format, SymmetricKey},
};

const MAX_HASH_THREADS: NonZeroUsize = NonZeroUsize::new(1024).expect("it is not zero");

/// Every setting, checked. Secrets print nothing, so `Debug` is safe to use.
///
/// [`SETTINGS`](super::SETTINGS) has the purpose and the default of each, under the same name in capitals.
#[derive(Clone, Debug)]
#[expect(
    missing_docs,
    reason = "the table of settings has a line about each, and a second one would drift from it"
)]
pub struct Settings {
    pub environment: Environment,
    pub log_format: LogFormat,
    pub rust_log: String,
    pub otel_exporter_otlp_endpoint: Option<String>,
    pub otel_traces_sampler_arg: f64,

    pub db_source: Option<SecretString>,
    pub migration_db_source: Option<SecretString>,
    pub master_db_source: Option<SecretString>,
    pub db_max_connections: u32,
    pub db_pooler: DbPooler,
    pub db_iam_auth: bool,
    pub migrate_on_start: bool,
    pub history_retention: Option<Duration>,

    pub http_server_address: SocketAddr,
    pub ops_server_address: SocketAddr,
    /// In the form in which browsers send them.
    pub allowed_origins: Vec<String>,
    pub trusted_proxies: Vec<IpNet>,
    pub tls_cert_file: Option<PathBuf>,
    pub tls_key_file: Option<PathBuf>,

    pub token_symmetric_key: Option<SymmetricKey>,
    pub token_symmetric_keys_accepted: Vec<SymmetricKey>,
    /// `None` means JWT with `jwt_algorithm`, here and in `token_format_accepted`.
    pub token_format: Option<Format>,
    pub token_format_accepted: Vec<Option<Format>>,
    pub jwt_algorithm: Format,
    pub token_issuer: String,
    pub token_audience: String,
    pub access_token_duration: Duration,
    pub refresh_token_duration: Duration,
    pub session_duration: Duration,
    pub refresh_reuse_interval: Duration,
    pub key_rotation_interval: Duration,
    pub revocation_max_staleness: Duration,
    /// `SESSION_RETENTION`
    pub session_retention: Duration,

    pub registration: Registration,
    pub argon2: Params,
    pub password_hash_threads: NonZeroUsize,
    pub password_hash_queue: usize,
    /// In characters.
    pub password_min_length: usize,
    pub password_pepper: Peppers,
    pub password_breached_file: Option<Arc<BreachedFile>>,
    pub login_attempts_per_account: Rate,
    pub login_attempts_per_ip: Rate,
    pub legacy_login_url: Option<SecretString>,

    pub secrets_manager_secret_id: Option<String>,
    pub aws_region: Option<String>,
    pub aws_endpoint_url: Option<String>,
}

impl Settings {
    /// Reads every setting. If one is wrong, the reader remembers the problem and the value here is its default.
    pub(super) fn read(from: &mut Reader) -> Self {
        let environment = from.value("ENVIRONMENT", word);
        Self {
            environment,
            log_format: from.optional("LOG_FORMAT", word).unwrap_or(match environment {
                Environment::Development => LogFormat::Pretty,
                Environment::Production => LogFormat::Json,
            }),
            rust_log: from.value("RUST_LOG", parse::log_filter),
            otel_exporter_otlp_endpoint: from.optional("OTEL_EXPORTER_OTLP_ENDPOINT", parse::url),
            otel_traces_sampler_arg: from.value("OTEL_TRACES_SAMPLER_ARG", parse::share),

            db_source: from.optional("DB_SOURCE", db_source),
            migration_db_source: from.optional("MIGRATION_DB_SOURCE", db_source),
            master_db_source: from.optional("MASTER_DB_SOURCE", db_source),
            db_max_connections: from.value("DB_MAX_CONNECTIONS", number(1..=1000)),
            db_pooler: from.value("DB_POOLER", word),
            db_iam_auth: from.value("DB_IAM_AUTH", word),
            migrate_on_start: from.value("MIGRATE_ON_START", word),
            history_retention: from.optional("HISTORY_RETENTION", duration),

            http_server_address: from.value("HTTP_SERVER_ADDRESS", parse::socket_address),
            ops_server_address: from.value("OPS_SERVER_ADDRESS", parse::socket_address),
            allowed_origins: from.optional("ALLOWED_ORIGINS", list(parse::origin)).unwrap_or_default(),
            trusted_proxies: from.optional("TRUSTED_PROXIES", list(parse::network)).unwrap_or_default(),
            tls_cert_file: from.optional("TLS_CERT_FILE", parse::path),
            tls_key_file: from.optional("TLS_KEY_FILE", parse::path),

            token_symmetric_key: from.optional("TOKEN_SYMMETRIC_KEY", parse::symmetric_key),
            token_symmetric_keys_accepted: from
                .optional("TOKEN_SYMMETRIC_KEYS_ACCEPTED", list(parse::symmetric_key))
                .unwrap_or_default(),
            token_format: from.value("TOKEN_FORMAT", parse::token_format),
            token_format_accepted: from
                .optional("TOKEN_FORMAT_ACCEPTED", list(parse::accepted_format))
                .unwrap_or_default(),
            jwt_algorithm: from.value("JWT_ALGORITHM", parse::jwt_algorithm),
            token_issuer: from.value("TOKEN_ISSUER", parse::name),
            token_audience: from.value("TOKEN_AUDIENCE", parse::name),
            access_token_duration: from.value("ACCESS_TOKEN_DURATION", duration),
            refresh_token_duration: from.value("REFRESH_TOKEN_DURATION", duration),
            session_duration: from.value("SESSION_DURATION", duration),
            refresh_reuse_interval: from.value("REFRESH_REUSE_INTERVAL", duration),
            key_rotation_interval: from.value("KEY_ROTATION_INTERVAL", duration),
            revocation_max_staleness: from.value("REVOCATION_MAX_STALENESS", duration),
            session_retention: from.value("SESSION_RETENTION", duration),

            registration: from.value("REGISTRATION", word),
            argon2: Params {
                memory_kib: from.value("ARGON2_MEMORY_KIB", number(8..=1024 * 1024)),
                iterations: from.value("ARGON2_ITERATIONS", number(1..=64)),
                parallelism: from.value("ARGON2_PARALLELISM", number(1..=64)),
            },
            password_hash_threads: from
                .value("PASSWORD_HASH_THREADS", number(NonZeroUsize::MIN..=MAX_HASH_THREADS)),
            password_hash_queue: from.value("PASSWORD_HASH_QUEUE", number(1..=100_000)),
            password_min_length: from.value("PASSWORD_MIN_LENGTH", number(8..=64)),
            password_pepper: from.optional("PASSWORD_PEPPER", parse::peppers).unwrap_or_default(),
            password_breached_file: from.optional("PASSWORD_BREACHED_FILE", parse::breached_file),
            login_attempts_per_account: from.value("LOGIN_ATTEMPTS_PER_ACCOUNT", rate),
            login_attempts_per_ip: from.value("LOGIN_ATTEMPTS_PER_IP", rate),
            legacy_login_url: from.optional("LEGACY_LOGIN_URL", parse::login_url),

            secrets_manager_secret_id: from.optional("SECRETS_MANAGER_SECRET_ID", parse::name),
            aws_region: from.optional("AWS_REGION", parse::name),
            aws_endpoint_url: from.optional("AWS_ENDPOINT_URL", parse::url),
        }
    }
}

impl Settings {
    /// The format of new access tokens.
    pub fn format(&self) -> Format {
        self.token_format.unwrap_or(self.jwt_algorithm)
    }

    /// The further formats that are accepted.
    pub fn formats_accepted(&self) -> Vec<Format> {
        self.token_format_accepted.iter().map(|format| format.unwrap_or(self.jwt_algorithm)).collect()
    }
}

/// Declares a setting that is one of a few words, once for the type and once for its reader.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl Word for $name {
            const WORDS: &'static [(&'static str, Self)] = &[$(($word, Self::$variant),)+];
        }
    };
}

words! {
    /// Where the service runs, and therefore how strict it is.
    Environment {
        /// On a developer's machine: unsafe settings cause a warning.
        Development = "development",
        /// In production: unsafe settings are refused.
        Production = "production",
    }
}

impl Word for LogFormat {
    const WORDS: &'static [(&'static str, Self)] = &[("json", Self::Json), ("pretty", Self::Pretty)];
}

words! {
    /// How a pooler between the service and Postgres hands out its connections.
    DbPooler {
        /// For as long as the service holds the connection, which works like having no pooler.
        Session = "session",
        /// For one transaction.
        Transaction = "transaction",
    }
}

words! {
    /// Who may register.
    Registration {
        /// Anyone.
        Open = "open",
        /// Nobody; administrators create the accounts.
        Closed = "closed",
    }
}
