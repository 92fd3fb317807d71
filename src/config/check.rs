//! Checks that involve more than one setting, and what production refuses.
//!
//! Anything unsafe prevents the start in production, and is a warning in development.

use std::{fs::File, time::Duration};

use secrecy::ExposeSecret;

use super::{
    db_source::{self, Fitness, fitness_for_iam},
    entropy::weakness,
    parse::{self, KEY_ADVICE, PEPPER_ADVICE},
    reader::Reader,
    settings::EXAMPLE_KEY,
    values::{DbPooler, Environment, Settings},
};
use crate::{
    password::{OWASP_MINIMUM, ParamsError},
    store::Source,
    token::{Format, SymmetricKey},
};

/// Checks the settings against one another, and reports problems to the reader.
pub(super) fn check(settings: &Settings, reader: &mut Reader) {
    database(settings, reader);
    origins(settings, reader);
    proxies(settings, reader);
    tls(settings, reader);
    symmetric_key(settings, reader);
    algorithm(settings, reader);
    issuer(settings, reader);
    durations(settings, reader);
    history(settings, reader);
    argon2(settings, reader);
    pepper(settings, reader);
    legacy_login(settings, reader);
    aws(settings, reader);
}

/// Refuses in production, warns in development.
fn is_unsafe(settings: &Settings, reader: &mut Reader, name: &str, message: &str) {
    match settings.environment {
        Environment::Production => reader.problem(name, message),
        Environment::Development => reader.warning(name, &format!("{message} (production refuses this)")),
    }
}

fn database(settings: &Settings, reader: &mut Reader) {
    database_tls(settings, reader);
    let is_pooled = settings.db_pooler == DbPooler::Transaction;
    if is_pooled && settings.migrate_on_start && settings.migration_db_source.is_none() {
        // Migrations hold a session-level advisory lock.
        let message = "DB_POOLER=transaction: migrations need a connection that bypasses the pooler; set it to the \
                       database itself, or MIGRATE_ON_START=false";
        reader.problem("MIGRATION_DB_SOURCE", message);
    }
    if settings.db_source.is_some() || !reader.is_sound(&["DB_SOURCE"]) {
        return;
    }
    if settings.environment == Environment::Production {
        let example = "postgres://gatepass:PASSWORD@localhost:5432/gatepass";
        reader.problem("DB_SOURCE", format!("production needs a database, for example {example}"));
    } else if settings.migration_db_source.is_some() {
        // Without DB_SOURCE, development uses a Postgres of its own, but the migrations would go somewhere else.
        reader.problem("MIGRATION_DB_SOURCE", "DB_SOURCE is not set; set both, or neither");
    } else if settings.master_db_source.is_some() {
        reader.problem("MASTER_DB_SOURCE", "DB_SOURCE is not set; set both, or neither");
    }
}

/// Networks belong to others: whoever can impersonate the server there would get the password, and every hash.
fn database_tls(settings: &Settings, reader: &mut Reader) {
    let sources = [
        ("DB_SOURCE", &settings.db_source),
        ("MIGRATION_DB_SOURCE", &settings.migration_db_source),
        ("MASTER_DB_SOURCE", &settings.master_db_source),
    ];
    for (name, source) in sources {
        let Some(url) = source else { continue };
        for file in db_source::files(url.expose_secret()) {
            if let Err(error) = File::open(&file) {
                reader.problem(
                    name,
                    format!("the file {} that it names cannot be read: {error}", file.display()),
                );
            }
        }
        // A URL that cannot be read has been reported already.
        let is_exposed = Source::new(url).is_ok_and(|source| !source.is_private());
        if is_exposed && settings.environment == Environment::Production {
            let message = "the database is on another machine, and its identity is not verified; add \
                           sslmode=verify-full&sslrootcert=FILE (docs/database.md)";
            reader.warning(name, message);
        }
    }
}

/// The database enforces this too: somebody with the service's password must not be able to erase the last month.
fn history(settings: &Settings, reader: &mut Reader) {
    const MINIMUM: Duration = Duration::from_secs(30 * 24 * 3600);

    if settings.history_retention.is_some_and(|retention| retention < MINIMUM) {
        reader.problem("HISTORY_RETENTION", "needs at least 30d");
    }
}

/// No cookie is involved, so this gives no site more than its visitors give it. But whoever wrote it in production has
/// not thought of who may call.
fn origins(settings: &Settings, reader: &mut Reader) {
    if settings.allowed_origins.iter().any(|origin| origin == "*") {
        let message = "a wildcard lets every site call in its visitors' names; expected a list of origins";
        is_unsafe(settings, reader, "ALLOWED_ORIGINS", message);
    }
}

fn proxies(settings: &Settings, reader: &mut Reader) {
    if settings.trusted_proxies.iter().any(|network| network.prefix_len() == 0) {
        reader
            .warning("TRUSTED_PROXIES", "a network of all addresses lets every client forge its own address");
    }
}

/// The contents of the files are checked when they are needed: few commands need them, and not every user may read the
/// key.
fn tls(settings: &Settings, reader: &mut Reader) {
    match (&settings.tls_cert_file, &settings.tls_key_file) {
        (Some(_), None) => {
            reader.problem("TLS_KEY_FILE", "TLS_CERT_FILE is set; set both, or neither");
        }
        (None, Some(_)) => {
            reader.problem("TLS_CERT_FILE", "TLS_KEY_FILE is set; set both, or neither");
        }
        _ => {}
    }
}

fn symmetric_key(settings: &Settings, reader: &mut Reader) {
    const NAME: &str = "TOKEN_SYMMETRIC_KEY";
    const ACCEPTED: &str = "TOKEN_SYMMETRIC_KEYS_ACCEPTED";

    // Whoever knows an accepted key can make tokens just as with the current one.
    for key in &settings.token_symmetric_keys_accepted {
        strong(key, ACCEPTED, settings, reader);
    }
    if !reader.is_sound(&[NAME]) {
        return;
    }
    let Some(key) = &settings.token_symmetric_key else {
        // Development makes a key of its own, which needs no warning.
        if settings.environment == Environment::Production {
            reader.problem(NAME, format!("production needs a key; {KEY_ADVICE}"));
        }
        return;
    };
    strong(key, NAME, settings, reader);
}

fn strong(key: &SymmetricKey, name: &str, settings: &Settings, reader: &mut Reader) {
    if key.as_bytes() == EXAMPLE_KEY.as_bytes() {
        let message = format!("this is the example's key, which everybody knows; {KEY_ADVICE}");
        is_unsafe(settings, reader, name, &message);
    } else if let Some(weakness) = weakness(key.as_bytes()) {
        is_unsafe(settings, reader, name, &format!("the key {}; {KEY_ADVICE}", weakness.describe()));
    }
}

/// An algorithm without `jwt` changes nothing, and whoever set it meant it to.
fn algorithm(settings: &Settings, reader: &mut Reader) {
    const NAME: &str = "JWT_ALGORITHM";

    let is_read = reader.is_sound(&[NAME, "TOKEN_FORMAT", "TOKEN_FORMAT_ACCEPTED"]);
    let has_jwt = settings.formats_accepted().into_iter().chain([settings.format()]);
    let has_jwt = has_jwt.into_iter().any(|format| format.jwt_algorithm().is_some());
    if reader.is_given(NAME) && is_read && !has_jwt {
        let message =
            format!("has no effect with {}; did you mean TOKEN_FORMAT=jwt?", reader.describe("TOKEN_FORMAT"));
        reader.warning(NAME, &message);
    }
}

/// Verifiers find published keys by the issuer (RFC 8414), so it has to be a URL.
fn issuer(settings: &Settings, reader: &mut Reader) {
    // The accepted formats too: changing the issuer later would refuse every token of the former issuer.
    let is_published = settings.formats_accepted().into_iter().chain([settings.format()]);
    let is_published = is_published.into_iter().any(|format| matches!(format, Format::KeyPair(_)));
    let is_url = parse::url(&settings.token_issuer).is_ok_and(|url| !url.contains('?'));
    if is_published && !is_url && settings.environment == Environment::Production {
        let message =
            "a format with published keys needs a URL as issuer, for example https://auth.example.com";
        reader.problem("TOKEN_ISSUER", message);
    }
}

fn durations(settings: &Settings, reader: &mut Reader) {
    const SESSION: &str = "SESSION_DURATION";
    // A default longer than the session is cut to the session's end when tokens are made. An explicit value longer than
    // the session is a mistake.
    let mut within_session = |name: &str, duration: Duration| {
        let is_wish = reader.is_given(name) && reader.is_sound(&[name, SESSION]);
        if is_wish && duration > settings.session_duration {
            let message = format!("{} is longer than {}", reader.describe(name), reader.describe(SESSION));
            reader.problem(name, message);
        }
    };
    within_session("ACCESS_TOKEN_DURATION", settings.access_token_duration);
    within_session("REFRESH_TOKEN_DURATION", settings.refresh_token_duration);

    const ROTATION: &str = "KEY_ROTATION_INTERVAL";
    let is_wish = reader.is_given(ROTATION) && reader.is_sound(&[ROTATION, "ACCESS_TOKEN_DURATION"]);
    if is_wish && settings.key_rotation_interval < settings.access_token_duration {
        let message = format!(
            "shorter than {}: several retired keys are published at any time",
            reader.describe("ACCESS_TOKEN_DURATION")
        );
        reader.warning(ROTATION, &message);
    }
}

fn pepper(settings: &Settings, reader: &mut Reader) {
    // A pepper has at least 32 bytes, and checking the first 32 is enough.
    let start = |secret: &[u8]| secret.first_chunk().and_then(weakness);
    if let Some(weakness) = settings.password_pepper.secrets().find_map(start) {
        let message = format!("a pepper {}; {PEPPER_ADVICE}", weakness.describe());
        is_unsafe(settings, reader, "PASSWORD_PEPPER", &message);
    }
}

fn legacy_login(settings: &Settings, reader: &mut Reader) {
    if settings.legacy_login_url.as_ref().is_some_and(|url| url.expose_secret().starts_with("http:")) {
        let message = "passwords would travel without TLS; expected https://";
        is_unsafe(settings, reader, "LEGACY_LOGIN_URL", message);
    }
}

fn aws(settings: &Settings, reader: &mut Reader) {
    const IAM: &str = "DB_IAM_AUTH";

    let is_plain = |url: &String| url.starts_with("http://");
    if settings.secrets_manager_secret_id.is_some()
        && settings.aws_endpoint_url.as_ref().is_some_and(is_plain)
    {
        let message = "the secret would travel without TLS; expected https://";
        is_unsafe(settings, reader, "AWS_ENDPOINT_URL", message);
    }
    if !settings.db_iam_auth {
        return;
    }
    if !cfg!(feature = "aws") {
        reader.problem(IAM, "this build has no AWS support (feature `aws`)");
    }
    if settings.db_source.is_none() && reader.is_sound(&["DB_SOURCE"]) {
        reader.problem(IAM, "needs DB_SOURCE, the database to log in to");
    }
    let sources =
        [("DB_SOURCE", &settings.db_source), ("MIGRATION_DB_SOURCE", &settings.migration_db_source)];
    for (name, source) in sources {
        let Some(source) = source else { continue };
        match fitness_for_iam(source.expose_secret()) {
            Fitness::Unfit(why) => reader.problem(name, format!("{IAM} is true: {why}")),
            Fitness::Unverified => {
                let message = "whoever impersonates the database gets a token that is valid for 15 minutes; \
                               sslmode=verify-full with sslrootcert prevents that";
                reader.warning(name, message);
            }
            Fitness::Fit => {}
        }
    }
}

fn argon2(settings: &Settings, reader: &mut Reader) {
    const MEMORY: &str = "ARGON2_MEMORY_KIB";
    const ITERATIONS: &str = "ARGON2_ITERATIONS";
    const PARALLELISM: &str = "ARGON2_PARALLELISM";

    if !reader.is_sound(&[MEMORY, ITERATIONS, PARALLELISM]) {
        return;
    }
    match settings.argon2.check() {
        Err(ParamsError::TooLittle) => {
            let (lanes, least) = (reader.describe(PARALLELISM), 8 * settings.argon2.parallelism);
            reader.problem(MEMORY, format!("{lanes} needs at least 8 KiB a lane, {least} in all"));
        }
        Err(ParamsError::TooMuch) => {
            let message = format!("times {} is more than one login may cost", reader.describe(ITERATIONS));
            reader.problem(MEMORY, message);
        }
        Ok(()) if !settings.argon2.reaches_owasp_minimum() => {
            let message = format!(
                "{} with {} is below OWASP's minimum; take {}",
                reader.describe(MEMORY),
                reader.describe(ITERATIONS),
                OWASP_MINIMUM.iter().map(|(m, t)| format!("{m} with {t}")).collect::<Vec<_>>().join(", ")
            );
            is_unsafe(settings, reader, MEMORY, &message);
        }
        Ok(()) => {}
    }
}
