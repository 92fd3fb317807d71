//! The table of settings: the one place that says which settings exist, what each is for, and what its default is. The
//! reader, `app.env.example`, the README's table and `gatepass config` are all made from it.

use std::{borrow::Cow, fmt};

/// The symmetric key that `app.env.example` shows. It is the well-known key of the course material, so production
/// refuses it.
pub const EXAMPLE_KEY: &str = "12345678901234567890123456789012";

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// The name, both in `app.env` and in the environment.
    pub name: &'static str,
    /// The heading under which `app.env.example` and the README show it.
    pub group: &'static str,
    /// What it is for, in one line.
    pub about: &'static str,
    /// Its value if it is not set.
    pub default: DefaultValue,
    /// A value to show if there is no default to show.
    pub example: Option<&'static str>,
    /// Whether the value is secret: it is never printed, and may be read from the file that `NAME_FILE` names.
    pub secret: bool,
}

/// Shown in place of a secret. Its length says nothing about the secret's.
pub(super) const MASK: &str = "********";

/// The value of a setting that is not set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultValue {
    /// Nothing.
    Unset,
    /// This text, as it would be written in `app.env`.
    Text(&'static str),
    /// The number of cores that the process may use.
    Cores,
}

impl Setting {
    /// The name of the setting that holds the path of a file with the value. Only secrets have one.
    pub fn file_name(&self) -> Option<String> {
        self.secret.then(|| format!("{}_FILE", self.name))
    }
}

impl DefaultValue {
    /// The value as text, on a machine with this many cores.
    pub fn text(self, cores: usize) -> Option<Cow<'static, str>> {
        match self {
            Self::Unset => None,
            Self::Text(text) => Some(text.into()),
            // Within the range that the setting itself allows.
            Self::Cores => Some(cores.clamp(1, 1024).to_string().into()),
        }
    }
}

impl fmt::Display for DefaultValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unset => "not set",
            Self::Text(text) => text,
            Self::Cores => "the cores",
        })
    }
}

/// The setting called `name`.
///
/// # Panics
///
/// If there is none: the names are in this room's code, and a test reads each of them.
pub(super) fn setting(name: &str) -> &'static Setting {
    SETTINGS
        .iter()
        .find(|setting| setting.name == name)
        .unwrap_or_else(|| panic!("the table of settings has no {name}"))
}

/// Every name allowed in `app.env`: the settings, and `NAME_FILE` for the secret ones.
pub(super) fn names() -> impl Iterator<Item = Cow<'static, str>> {
    SETTINGS.iter().flat_map(|setting| {
        std::iter::once(Cow::Borrowed(setting.name)).chain(setting.file_name().map(Cow::Owned))
    })
}

/// Names that people bring along from elsewhere, most of them from the course project's `app.env`, and what to do about
/// them. Similar spelling alone would suggest the wrong setting for these.
const FROM_ELSEWHERE: &[(&str, &str)] = &[
    ("DATABASE_URL", "here it is DB_SOURCE"),
    ("DB_DRIVER", "there is only Postgres; remove it"),
    ("EMAIL_SENDER_ADDRESS", "no mail is sent; remove it"),
    ("EMAIL_SENDER_NAME", "no mail is sent; remove it"),
    ("EMAIL_SENDER_PASSWORD", "no mail is sent; remove it"),
    ("GRPC_SERVER_ADDRESS", "there is no gRPC; remove it"),
    ("MIGRATION_URL", "the migrations are in the binary; remove it"),
    ("REDIS_ADDRESS", "no Redis is needed; remove it"),
    ("SERVER_ADDRESS", "here it is HTTP_SERVER_ADDRESS"),
];

/// What to say about a name that is not a setting's: the most similar one, if any is similar.
pub(super) fn advice(unknown: &str) -> Option<String> {
    let name = unknown.to_ascii_uppercase().replace(['-', '.'], "_");
    if let Some((_, advice)) = FROM_ELSEWHERE.iter().find(|(elsewhere, _)| *elsewhere == name) {
        return Some((*advice).into());
    }
    let likeness = |known: &str| strsim::normalized_damerau_levenshtein(&name, known);
    let nearest = names().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    // Below a half, more of the name would change than stay.
    (likeness(&nearest) >= 0.5).then(|| format!("did you mean {nearest}?"))
}

/// The setting that an environment variable was probably meant to be. Stricter than [`advice`], since most variables
/// are others': only a slip or two of the fingers count. With two slips, short names come too close to names that
/// others use, such as OpenSSL's `SSL_CERT_FILE` to `TLS_CERT_FILE`.
pub(super) fn misspelled(unknown: &str) -> Option<Cow<'static, str>> {
    const LONG: usize = 16;

    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if !unknown.chars().all(is_name) {
        return None;
    }
    let name = unknown.to_ascii_uppercase().replace(['-', '.'], "_");
    let slips = |known: &str| strsim::damerau_levenshtein(&name, known);
    let nearest = names().min_by_key(|known| slips(known))?;
    // With more behind it than a letter (`DB_SOURCE_2`, `AWS_REGION_1`), it is another name on purpose.
    let is_longer = name.strip_prefix(&*nearest).is_some_and(|rest| !rest.is_empty() && rest != "S");
    let allowed = if nearest.len() < LONG { 1 } else { 2 };
    (slips(&nearest) <= allowed && !is_longer).then_some(nearest)
}

const SERVICE: Setting = Setting {
    name: "",
    group: "Service",
    about: "",
    default: DefaultValue::Unset,
    example: None,
    secret: false,
};
const DATABASE: Setting = Setting { group: "Database", ..SERVICE };
const HTTP: Setting = Setting { group: "HTTP", ..SERVICE };
const TOKENS: Setting = Setting { group: "Tokens and sessions", ..SERVICE };
const PASSWORDS: Setting = Setting { group: "Passwords and accounts", ..SERVICE };
const CLOUD: Setting = Setting { group: "AWS", ..SERVICE };

/// Every setting, in the order in which settings are shown.
pub static SETTINGS: &[Setting] = &[
    Setting {
        name: "ENVIRONMENT",
        about: "`development` or `production`; production refuses to start with anything unsafe.",
        default: DefaultValue::Text("development"),
        ..SERVICE
    },
    Setting {
        name: "LOG_FORMAT",
        about: "`json` (one object per line) or `pretty` (for people); when not set, `pretty` in development, `json` in production.",
        example: Some("json"),
        ..SERVICE
    },
    Setting {
        name: "RUST_LOG",
        about: "What is logged: a level, or levels by module such as `info,gatepass=debug`.",
        default: DefaultValue::Text("info"),
        ..SERVICE
    },
    Setting {
        name: "OTEL_EXPORTER_OTLP_ENDPOINT",
        about: "Where to send traces: a collector that accepts OTLP over HTTP (docs/metrics.md); when not set, none are sent.",
        example: Some("http://localhost:4318"),
        ..SERVICE
    },
    Setting {
        name: "OTEL_TRACES_SAMPLER_ARG",
        about: "The fraction of requests that are traced, 0 to 1, regardless of what callers ask for.",
        default: DefaultValue::Text("1"),
        ..SERVICE
    },
    Setting {
        name: "DB_SOURCE",
        about: "Postgres URL; required in production. Without it, development starts a Postgres of its own.",
        example: Some("postgres://gatepass:PASSWORD@localhost:5432/gatepass"),
        secret: true,
        ..DATABASE
    },
    Setting {
        name: "MIGRATION_DB_SOURCE",
        about: "Postgres URL of the role that owns the schema, for migrations only; otherwise DB_SOURCE is used.",
        example: Some("postgres://gatepass_owner:PASSWORD@localhost:5432/gatepass"),
        secret: true,
        ..DATABASE
    },
    Setting {
        name: "MASTER_DB_SOURCE",
        about: "Postgres URL of a role that may create roles, for `gatepass db setup` only; otherwise DB_SOURCE is used.",
        example: Some("postgres://postgres:PASSWORD@localhost:5432/gatepass"),
        secret: true,
        ..DATABASE
    },
    Setting {
        name: "DB_MAX_CONNECTIONS",
        about: "Maximum number of connections for requests, 1 to 1000; up to five more serve background work.",
        default: DefaultValue::Text("4"),
        ..DATABASE
    },
    Setting {
        name: "DB_POOLER",
        about: "How a pooler in front of Postgres (pgbouncer) hands out connections: `session` or `transaction`.",
        default: DefaultValue::Text("session"),
        ..DATABASE
    },
    Setting {
        name: "DB_IAM_AUTH",
        about: "Log in to RDS with IAM tokens in place of a password: `true` or `false` (docs/aws.md).",
        default: DefaultValue::Text("false"),
        ..DATABASE
    },
    Setting {
        name: "MIGRATE_ON_START",
        about: "Bring the schema up to date before serving: `true` or `false`.",
        default: DefaultValue::Text("true"),
        ..DATABASE
    },
    Setting {
        name: "HISTORY_RETENTION",
        about: "How long the history of changes is kept, in whole months and at least 30d; forever when not set.",
        example: Some("365d"),
        ..DATABASE
    },
    Setting {
        name: "HTTP_SERVER_ADDRESS",
        about: "IP address and port to serve on.",
        default: DefaultValue::Text("0.0.0.0:8080"),
        ..HTTP
    },
    Setting {
        name: "OPS_SERVER_ADDRESS",
        about: "IP address and port for metrics, separate from the public one.",
        default: DefaultValue::Text("127.0.0.1:9090"),
        ..HTTP
    },
    Setting {
        name: "ALLOWED_ORIGINS",
        about: "Web origins from which browsers may call, separated by commas; none when not set. `*`, any origin, is for development only.",
        example: Some("https://app.example.com,http://localhost:3000"),
        ..HTTP
    },
    Setting {
        name: "TRUSTED_PROXIES",
        about: "Addresses or networks of proxies whose X-Forwarded-For and traceparent are trusted, separated by commas.",
        example: Some("10.0.0.0/8,192.168.1.10"),
        ..HTTP
    },
    Setting {
        name: "TLS_CERT_FILE",
        about: "PEM file with the certificate chain, to serve HTTPS without an ingress; read again when it changes (docs/tls.md).",
        example: Some("/etc/gatepass/tls.crt"),
        ..HTTP
    },
    Setting {
        name: "TLS_KEY_FILE",
        about: "PEM file with the certificate's private key, without a passphrase.",
        example: Some("/etc/gatepass/tls.key"),
        ..HTTP
    },
    Setting {
        name: "TOKEN_SYMMETRIC_KEY",
        about: "Secret behind all tokens: PASERK `k4.local.…` or exactly 32 bytes of text (`gatepass key generate`).",
        example: Some(EXAMPLE_KEY),
        secret: true,
        ..TOKENS
    },
    Setting {
        name: "TOKEN_SYMMETRIC_KEYS_ACCEPTED",
        about: "Older keys whose tokens are still accepted, separated by commas (a key that contains a comma has to be a PASERK).",
        example: Some("k4.local.cHFyc3R1dnd4eXp7fH1-f4CBgoOEhYaHiImKi4yNjo8"),
        secret: true,
        ..TOKENS
    },
    Setting {
        name: "TOKEN_FORMAT",
        about: "Format of access tokens: `v4.local`, `v4.public` or `jwt`.",
        default: DefaultValue::Text("v4.local"),
        ..TOKENS
    },
    Setting {
        name: "TOKEN_FORMAT_ACCEPTED",
        about: "Formats that are still accepted while moving to another, separated by commas; `jwt:ES256` names an algorithm.",
        example: Some("v4.local"),
        ..TOKENS
    },
    Setting {
        name: "JWT_ALGORITHM",
        about: "Algorithm of `jwt`: `EdDSA`, `ES256`, `RS256`, `PS256` or `HS256`.",
        default: DefaultValue::Text("EdDSA"),
        ..TOKENS
    },
    Setting {
        name: "TOKEN_ISSUER",
        about: "The `iss` of access tokens, and the only one accepted; a URL when the keys are published.",
        default: DefaultValue::Text("gatepass"),
        ..TOKENS
    },
    Setting {
        name: "TOKEN_AUDIENCE",
        about: "The `aud` of access tokens, and the only one accepted.",
        default: DefaultValue::Text("gatepass"),
        ..TOKENS
    },
    Setting {
        name: "ACCESS_TOKEN_DURATION",
        about: "How long an access token is valid.",
        default: DefaultValue::Text("15m"),
        ..TOKENS
    },
    Setting {
        name: "REFRESH_TOKEN_DURATION",
        about: "How long a session may be idle before it can no longer be renewed.",
        default: DefaultValue::Text("24h"),
        ..TOKENS
    },
    Setting {
        name: "SESSION_DURATION",
        about: "How long a session lasts at most, however active it is.",
        default: DefaultValue::Text("30d"),
        ..TOKENS
    },
    Setting {
        name: "REFRESH_REUSE_INTERVAL",
        about: "How long a refresh token may be presented again after it has been replaced.",
        default: DefaultValue::Text("10s"),
        ..TOKENS
    },
    Setting {
        name: "KEY_ROTATION_INTERVAL",
        about: "How long a published key signs before the next one takes over.",
        default: DefaultValue::Text("30d"),
        ..TOKENS
    },
    Setting {
        name: "REVOCATION_MAX_STALENESS",
        about: "How long a replica serves without news of ended sessions or retired keys before it refuses bearer tokens.",
        default: DefaultValue::Text("60s"),
        ..TOKENS
    },
    Setting {
        name: "SESSION_RETENTION",
        about: "How long sessions are kept in the database after their last refresh token has expired.",
        default: DefaultValue::Text("7d"),
        ..TOKENS
    },
    Setting {
        name: "REGISTRATION",
        about: "Who may register: `open` (anyone) or `closed` (nobody).",
        default: DefaultValue::Text("open"),
        ..PASSWORDS
    },
    Setting {
        name: "ARGON2_MEMORY_KIB",
        about: "Memory of one password hash in KiB (Argon2id's m); production demands OWASP's minimum.",
        default: DefaultValue::Text("19456"),
        ..PASSWORDS
    },
    Setting {
        name: "ARGON2_ITERATIONS",
        about: "Passes over that memory (Argon2id's t), 1 to 64.",
        default: DefaultValue::Text("2"),
        ..PASSWORDS
    },
    Setting {
        name: "ARGON2_PARALLELISM",
        about: "Lanes of one hash (Argon2id's p), 1 to 64.",
        default: DefaultValue::Text("1"),
        ..PASSWORDS
    },
    Setting {
        name: "PASSWORD_HASH_THREADS",
        about: "Number of hashes computed at the same time, each with its own memory.",
        default: DefaultValue::Cores,
        ..PASSWORDS
    },
    Setting {
        name: "PASSWORD_HASH_QUEUE",
        about: "Number of hashes that may wait for their turn; beyond that, logins get a 503 at once.",
        default: DefaultValue::Text("128"),
        ..PASSWORDS
    },
    Setting {
        name: "PASSWORD_MIN_LENGTH",
        about: "Minimum number of characters of a new password, 8 to 64.",
        default: DefaultValue::Text("8"),
        ..PASSWORDS
    },
    Setting {
        name: "PASSWORD_PEPPER",
        about: "Secrets that go into every password hash but are not in the database: `NAME:BASE64`, newest first (docs/passwords.md).",
        example: Some("1:cGVwcGVyIG9uZSBpcyB0aGVzZSAzMiBieXRlcyBvZiA"),
        secret: true,
        ..PASSWORDS
    },
    Setting {
        name: "PASSWORD_BREACHED_FILE",
        about: "File of passwords seen in breaches, refused as new ones: sorted SHA-1 in hexadecimal, or its first digits.",
        example: Some("/var/lib/gatepass/pwned-passwords.txt"),
        ..PASSWORDS
    },
    Setting {
        name: "LOGIN_ATTEMPTS_PER_ACCOUNT",
        about: "Failed logins allowed for one account name, as a count per time (docs/throttling.md).",
        default: DefaultValue::Text("10/15m"),
        ..PASSWORDS
    },
    Setting {
        name: "LOGIN_ATTEMPTS_PER_IP",
        about: "Failed logins allowed from one address (IPv6: one /64), as a count per time.",
        default: DefaultValue::Text("100/15m"),
        ..PASSWORDS
    },
    Setting {
        name: "LEGACY_LOGIN_URL",
        about: "HTTPS URL of the old system, which is asked about users unknown here (docs/legacy-login.md).",
        example: Some("https://old.example.com/login"),
        secret: true,
        ..PASSWORDS
    },
    Setting {
        name: "SECRETS_MANAGER_SECRET_ID",
        about: "Name or ARN of a secret in AWS Secrets Manager with settings, which override app.env (docs/aws.md).",
        example: Some("gatepass/production"),
        ..CLOUD
    },
    Setting {
        name: "AWS_REGION",
        about: "AWS region of the secret and the database.",
        example: Some("eu-central-1"),
        ..CLOUD
    },
    Setting {
        name: "AWS_ENDPOINT_URL",
        about: "URL to call in place of AWS, for tests.",
        example: Some("http://localhost:5000"),
        ..CLOUD
    },
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_setting_is_unique_and_has_a_description_and_an_example_or_default() {
        let names: Vec<_> = names().collect();
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
        for setting in SETTINGS {
            assert!(setting.about.ends_with('.') && !setting.about.contains('\n'), "{}", setting.name);
            assert!(
                setting.example.is_some() != (setting.default != DefaultValue::Unset),
                "{}",
                setting.name
            );
        }
    }

    #[test]
    fn settings_of_one_group_stand_together() {
        let mut groups: Vec<_> = SETTINGS.iter().map(|setting| setting.group).collect();
        groups.dedup();
        assert_eq!(groups.iter().collect::<HashSet<_>>().len(), groups.len());
    }

    #[test]
    fn an_unknown_setting_name_gets_a_suggestion() {
        for (wrong, right) in [
            ("db_source", "did you mean DB_SOURCE?"),
            ("DB_SORCE", "did you mean DB_SOURCE?"),
            ("db-source", "did you mean DB_SOURCE?"),
            ("DB_SOURCE_FIEL", "did you mean DB_SOURCE_FILE?"),
            ("TOKEN_SYMETRIC_KEY", "did you mean TOKEN_SYMMETRIC_KEY?"),
            ("ACCESS_TOKEN_TTL", "did you mean ACCESS_TOKEN_DURATION?"),
            ("ALLOWED_ORIGIN", "did you mean ALLOWED_ORIGINS?"),
            ("SERVER_ADDRESS", "here it is HTTP_SERVER_ADDRESS"),
            ("DATABASE_URL", "here it is DB_SOURCE"),
        ] {
            assert_eq!(advice(wrong).as_deref(), Some(right), "{wrong}");
        }
        for strange in ["X", "PATH", "SMTP_HOST"] {
            assert_eq!(advice(strange), None, "{strange}");
        }
    }

    #[test]
    fn only_what_is_nearly_a_settings_name_is_taken_for_one_in_the_environment() {
        for (wrong, right) in [
            ("REGISTRATON", "REGISTRATION"),
            ("ENVIRNOMENT", "ENVIRONMENT"),
            ("db_source", "DB_SOURCE"),
            ("DB_SORCE_FILE", "DB_SOURCE_FILE"),
            ("ALLOWED_ORIGIN", "ALLOWED_ORIGINS"),
            ("TOKEN_ISSUERS", "TOKEN_ISSUER"),
            ("TOKEN_SYMETRIC_KYE", "TOKEN_SYMMETRIC_KEY"),
        ] {
            assert_eq!(misspelled(wrong).as_deref(), Some(right), "{wrong}");
        }
        for theirs in "AWS_ACCESS_KEY_ID AWS_CONFIG_FILE AWS_DEFAULT_REGION AWS_ENDPOINT_URL_S3 AWS_ROLE_ARN \
            AWS_STS_REGIONAL_ENDPOINTS DATABASE_URL DB_HOST DB_PORT DB_SOURCE_2 DB_USER DB_USERNAME ENV \
            GATEPASS_SERVICE_HOST GATEPASS_SERVICE_PORT GATEPASS_PORT_8080_TCP_ADDR HOME HTTP_PROXY LOG_FILE \
            LOG_LEVEL NODE_ENV OTEL_EXPORTER_OTLP_HEADERS OTEL_EXPORTER_OTLP_PROTOCOL \
            OTEL_EXPORTER_OTLP_TRACES_ENDPOINT OTEL_TRACES_EXPORTER OTEL_TRACES_SAMPLER PATH PGHOST RUST_BACKTRACE \
            RUST_LIB_BACKTRACE RUST_LOG_STYLE SSL_CERT_DIR SSL_CERT_FILE SSL_KEY_FILE TERM TOKEN TZ \
            AWS_REGION_1 \x1bDB_SOURCE"
            .split_whitespace()
        {
            assert_eq!(misspelled(theirs), None, "{theirs}");
        }
    }
}
