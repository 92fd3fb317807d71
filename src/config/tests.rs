//! Loading as a whole: what wins, what is refused, what the messages say, and that no message ever contains a secret.

use std::{fs, path::Path, time::Duration};

use secrecy::ExposeSecret;
use tempfile::TempDir;

use super::*;

/// 128 random bits in hexadecimal, as the error messages advise.
const KEY: &str = "4f1c9e0b7a2d86355be0c83f19d7a64e";
const DB: &str = "postgres://gatepass:hunter2@db.example.com:5432/gatepass";

/// Loads from a directory with this `app.env` in it, and this environment.
fn load_both(app_env: &str, environment: &[(&str, &str)]) -> Result<Loaded, ConfigErrors> {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("app.env"), app_env).unwrap();
    load_in(dir.path(), environment)
}

fn load_in(dir: &Path, environment: &[(&str, &str)]) -> Result<Loaded, ConfigErrors> {
    let environment = environment.iter().copied();
    load(Sources { working_dir: dir.into(), config_file: None, environment, cores: 4 })
}

fn load_environment(environment: &[(&str, &str)]) -> Result<Loaded, ConfigErrors> {
    load_in(TempDir::new().unwrap().path(), environment)
}

/// Loads what production needs, and more.
fn load_production(more: &[(&str, &str)]) -> Result<Loaded, ConfigErrors> {
    let needed = [("ENVIRONMENT", "production"), ("DB_SOURCE", DB), ("TOKEN_SYMMETRIC_KEY", KEY)];
    load_environment(&[&needed, more].concat())
}

/// The only problem found, as it is displayed.
fn problem(loaded: Result<Loaded, ConfigErrors>) -> String {
    let errors = loaded.unwrap_err();
    assert_eq!(errors.0.len(), 1, "{errors:#?}");
    let problem = errors.0[0].to_string();
    assert_eq!(errors.to_string(), format!("the configuration has a problem: {problem}"));
    problem
}

fn line<'a>(loaded: &'a Loaded, name: &str) -> &'a ReportLine {
    loaded.report.iter().find(|line| line.name == name).unwrap()
}

#[test]
fn without_settings_it_is_a_development_service_with_the_documented_defaults() {
    let Loaded { settings, warnings, report } = load_environment(&[]).unwrap();
    assert_eq!(settings.environment, Environment::Development);
    assert!(settings.db_source.is_none() && settings.token_symmetric_key.is_none());
    assert_eq!(settings.http_server_address, "0.0.0.0:8080".parse().unwrap());
    assert_eq!(settings.ops_server_address, "127.0.0.1:9090".parse().unwrap());
    assert!(settings.allowed_origins.is_empty() && settings.trusted_proxies.is_empty());
    assert_eq!((settings.token_issuer.as_str(), settings.token_audience.as_str()), ("gatepass", "gatepass"));
    assert_eq!(settings.access_token_duration, Duration::from_secs(15 * 60));
    assert_eq!(settings.refresh_token_duration, Duration::from_secs(24 * 60 * 60));
    assert_eq!(settings.session_duration, Duration::from_secs(30 * 24 * 60 * 60));
    assert_eq!(
        settings.argon2,
        crate::password::Params { memory_kib: 19_456, iterations: 2, parallelism: 1 }
    );
    assert_eq!(settings.password_hash_threads.get(), 4);
    assert_eq!((settings.registration, settings.migrate_on_start), (Registration::Open, true));
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(report.len(), SETTINGS.len());
    assert!(report.iter().all(|line| line.default && line.origin == "default"));
}

#[test]
fn the_environment_overrides_app_env_and_app_env_overrides_defaults() {
    let app_env = "# mine\nTOKEN_ISSUER=file\nTOKEN_AUDIENCE=file\n";
    let loaded = load_both(app_env, &[("TOKEN_AUDIENCE", "environment"), ("HOME", "/root")]).unwrap();
    assert_eq!(loaded.settings.token_issuer, "file");
    assert_eq!(loaded.settings.token_audience, "environment");
    for (name, origin, default) in [
        ("TOKEN_ISSUER", "app.env:2", false),
        ("TOKEN_AUDIENCE", "environment", false),
        ("REGISTRATION", "default", true),
    ] {
        let line = line(&loaded, name);
        assert_eq!((line.origin.as_str(), line.default), (origin, default), "{name}");
    }
}

#[test]
fn an_empty_value_is_one_that_is_not_set() {
    let loaded = load_both("TOKEN_ISSUER=file\nDB_SOURCE=\nRUST_LOG=''\n", &[("TOKEN_ISSUER", "")]).unwrap();
    assert_eq!(loaded.settings.token_issuer, "file");
    assert_eq!(loaded.settings.rust_log, "info");
    assert!(loaded.settings.db_source.is_none());
}

#[test]
fn a_named_config_file_replaces_app_env_and_must_exist() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("app.env"), "TOKEN_ISSUER=app\n").unwrap();
    fs::write(dir.path().join("other.env"), "TOKEN_AUDIENCE=other\n").unwrap();
    let with = |file: &str| {
        let environment = [("REGISTRATION", "closed")];
        load(Sources {
            working_dir: dir.path().into(),
            config_file: Some(file.into()),
            environment,
            cores: 1,
        })
    };
    let loaded = with("other.env").unwrap();
    assert_eq!(
        (loaded.settings.token_issuer.as_str(), loaded.settings.token_audience.as_str()),
        ("gatepass", "other")
    );
    assert_eq!(line(&loaded, "TOKEN_AUDIENCE").origin, "other.env:1");
    assert!(problem(with("missing.env")).starts_with("missing.env: cannot be read: No such file"));
}

#[test]
fn every_bad_value_is_reported_at_once_by_name_and_origin() {
    let bad: &[(&str, &str)] = &[
        ("ENVIRONMENT", "prod"),
        ("LOG_FORMAT", "xml"),
        ("RUST_LOG", "gatepass=loud"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost"),
        ("OTEL_TRACES_SAMPLER_ARG", "10%"),
        ("DB_SOURCE", "mysql://hunter2"),
        ("MIGRATION_DB_SOURCE", "hunter2"),
        ("MASTER_DB_SOURCE", "hunter2"),
        ("DB_MAX_CONNECTIONS", "0"),
        ("DB_POOLER", "statement"),
        ("DB_IAM_AUTH", "yes"),
        ("MIGRATE_ON_START", "1"),
        ("HISTORY_RETENTION", "365"),
        ("HTTP_SERVER_ADDRESS", "localhost:8080"),
        ("OPS_SERVER_ADDRESS", ":9090"),
        ("ALLOWED_ORIGINS", "https://*.example.com"),
        ("TRUSTED_PROXIES", "10.0.0.0/8,proxy"),
        ("TOKEN_SYMMETRIC_KEY", "hunter2"),
        ("TOKEN_SYMMETRIC_KEYS_ACCEPTED", "hunter2,hunter2"),
        ("TOKEN_FORMAT", "v2.local"),
        ("TOKEN_FORMAT_ACCEPTED", "jwt,none"),
        ("JWT_ALGORITHM", "none"),
        ("TOKEN_ISSUER", "my issuer"),
        ("TOKEN_AUDIENCE", "my audience"),
        ("ACCESS_TOKEN_DURATION", "900"),
        ("REFRESH_TOKEN_DURATION", "0s"),
        ("SESSION_DURATION", "1y"),
        ("REFRESH_REUSE_INTERVAL", "500ms"),
        ("KEY_ROTATION_INTERVAL", "30 d"),
        ("REVOCATION_MAX_STALENESS", "-60s"),
        ("SESSION_RETENTION", "forever"),
        ("REGISTRATION", "invite"),
        ("ARGON2_MEMORY_KIB", "19 MiB"),
        ("ARGON2_ITERATIONS", "65"),
        ("ARGON2_PARALLELISM", "0"),
        ("PASSWORD_HASH_THREADS", "0"),
        ("PASSWORD_HASH_QUEUE", "many"),
        ("PASSWORD_MIN_LENGTH", "7"),
        ("PASSWORD_PEPPER", "hunter2"),
        ("PASSWORD_BREACHED_FILE", "/nonexistent/breached"),
        ("LOGIN_ATTEMPTS_PER_ACCOUNT", "10"),
        ("LOGIN_ATTEMPTS_PER_IP", "0/15m"),
        ("LEGACY_LOGIN_URL", "http://hunter2@old.example.com"),
        ("SECRETS_MANAGER_SECRET_ID", "a b"),
        ("AWS_REGION", "a b"),
        ("AWS_ENDPOINT_URL", "moto"),
    ];
    // These accept any text.
    let any = ["TLS_CERT_FILE", "TLS_KEY_FILE"];
    assert_eq!(bad.len() + any.len(), SETTINGS.len(), "a new setting needs its line here");

    let errors = load_environment(bad).unwrap_err();
    let named: Vec<_> = errors.0.iter().map(|problem| problem.key.as_deref().unwrap()).collect();
    assert_eq!(named, bad.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    assert!(errors.0.iter().all(|problem| problem.origin == "environment"));
    let list = errors.to_string();
    assert_eq!(list.lines().count(), 1 + bad.len(), "{list}");
    assert!(!list.contains("hunter2"), "{list}");
    insta::assert_snapshot!(list, @r##"
    the configuration has 46 problems:
      ENVIRONMENT (environment): "prod": expected development or production, for example development
      LOG_FORMAT (environment): "xml": expected json or pretty, for example json
      RUST_LOG (environment): "gatepass=loud": expected off, error, warn, info, debug or trace, alone or as MODULE=LEVEL, separated by commas, for example info
      OTEL_EXPORTER_OTLP_ENDPOINT (environment): "localhost": expected a URL without user and password, for example http://localhost:4318
      OTEL_TRACES_SAMPLER_ARG (environment): "10%": expected a number from 0 to 1, for example 1
      DB_SOURCE (environment): expected a URL that begins with postgres://, for example postgres://gatepass:PASSWORD@localhost:5432/gatepass
      MIGRATION_DB_SOURCE (environment): expected a URL that begins with postgres://, for example postgres://gatepass:PASSWORD@localhost:5432/gatepass
      MASTER_DB_SOURCE (environment): expected a URL that begins with postgres://, for example postgres://gatepass:PASSWORD@localhost:5432/gatepass
      DB_MAX_CONNECTIONS (environment): "0": expected a whole number from 1 to 1000, for example 4
      DB_POOLER (environment): "statement": expected session or transaction, for example session
      DB_IAM_AUTH (environment): "yes": expected true or false, for example false
      MIGRATE_ON_START (environment): "1": expected true or false, for example true
      HISTORY_RETENTION (environment): "365": expected a time as numbers with the units s, m, h or d, for example 365d
      HTTP_SERVER_ADDRESS (environment): "localhost:8080": expected an IP address and a port, for example 0.0.0.0:8080
      OPS_SERVER_ADDRESS (environment): ":9090": expected an IP address and a port, for example 127.0.0.1:9090
      ALLOWED_ORIGINS (environment): "https://*.example.com": a wildcard within an origin is not supported; expected a list of origins, for example https://app.example.com,http://localhost:3000
      TRUSTED_PROXIES (environment): "10.0.0.0/8,proxy": item 2 of 2: expected an IP address or a network, for example 10.0.0.0/8,192.168.1.10
      TOKEN_SYMMETRIC_KEY (environment): expected a PASERK k4.local.… or exactly 32 bytes of text, got 7 bytes; make one with `gatepass key generate`
      TOKEN_SYMMETRIC_KEYS_ACCEPTED (environment): item 1 of 2: expected a PASERK k4.local.… or exactly 32 bytes of text, got 7 bytes; make one with `gatepass key generate`
      TOKEN_FORMAT (environment): "v2.local": expected v4.local or v4.public or jwt, for example v4.local
      TOKEN_FORMAT_ACCEPTED (environment): "jwt,none": item 2 of 2: expected v4.local or v4.public or jwt or jwt:EdDSA or jwt:ES256 or jwt:RS256 or jwt:PS256 or jwt:HS256, for example v4.local
      JWT_ALGORITHM (environment): "none": expected EdDSA or ES256 or RS256 or PS256 or HS256, for example EdDSA
      TOKEN_ISSUER (environment): "my issuer": expected 1 to 255 characters without blanks, for example gatepass
      TOKEN_AUDIENCE (environment): "my audience": expected 1 to 255 characters without blanks, for example gatepass
      ACCESS_TOKEN_DURATION (environment): "900": expected a time as numbers with the units s, m, h or d, for example 15m
      REFRESH_TOKEN_DURATION (environment): "0s": expected a time longer than zero, for example 24h
      SESSION_DURATION (environment): "1y": expected a time as numbers with the units s, m, h or d, for example 30d
      REFRESH_REUSE_INTERVAL (environment): "500ms": expected a time as numbers with the units s, m, h or d, for example 10s
      KEY_ROTATION_INTERVAL (environment): "30 d": expected a time as numbers with the units s, m, h or d, for example 30d
      REVOCATION_MAX_STALENESS (environment): "-60s": expected a time as numbers with the units s, m, h or d, for example 60s
      SESSION_RETENTION (environment): "forever": expected a time as numbers with the units s, m, h or d, for example 7d
      REGISTRATION (environment): "invite": expected open or closed, for example open
      ARGON2_MEMORY_KIB (environment): "19 MiB": expected a whole number from 8 to 1048576, for example 19456
      ARGON2_ITERATIONS (environment): "65": expected a whole number from 1 to 64, for example 2
      ARGON2_PARALLELISM (environment): "0": expected a whole number from 1 to 64, for example 1
      PASSWORD_HASH_THREADS (environment): "0": expected a whole number from 1 to 1024
      PASSWORD_HASH_QUEUE (environment): "many": expected a whole number from 1 to 100000, for example 128
      PASSWORD_MIN_LENGTH (environment): "7": expected a whole number from 8 to 64, for example 8
      PASSWORD_PEPPER (environment): expected NAME:BASE64, the newest or `none` first, separated by commas; make one with `openssl rand -base64 32`
      PASSWORD_BREACHED_FILE (environment): "/nonexistent/breached": the file of breached passwords cannot be read: No such file or directory (os error 2), for example /var/lib/gatepass/pwned-passwords.txt
      LOGIN_ATTEMPTS_PER_ACCOUNT (environment): "10": expected a number, a slash and a time, for example 10/15m
      LOGIN_ATTEMPTS_PER_IP (environment): "0/15m": expected a whole number of at least 1 before the slash, for example 100/15m
      LEGACY_LOGIN_URL (environment): expected an https URL, for example https://old.example.com/login (http only to this machine); write %-codes for signs in its user and password
      SECRETS_MANAGER_SECRET_ID (environment): "a b": expected 1 to 255 characters without blanks, for example gatepass/production
      AWS_REGION (environment): "a b": expected 1 to 255 characters without blanks, for example eu-central-1
      AWS_ENDPOINT_URL (environment): "moto": expected a URL without user and password, for example http://localhost:5000
    "##);
}

#[test]
fn quoted_values_in_errors_stay_on_one_line_and_hide_passwords() {
    let message = problem(load_environment(&[("TOKEN_ISSUER", "a\nb")]));
    assert!(message.contains(r#""a\nb""#) && message.lines().count() == 1, "{message}");
    let message = problem(load_environment(&[("AWS_ENDPOINT_URL", "https://u:hunter2@example.com")]));
    assert!(!message.contains("hunter2"), "{message}");
    let message = problem(load_environment(&[("RUST_LOG", &format!("a={}", "é".repeat(1000)))]));
    assert!(message.contains("é…") && message.len() < 400, "{message}");
}

#[test]
fn errors_in_app_env_give_the_line_and_never_quote_it() {
    let app_env = "\
db_source=postgres://hunter2
LOG_FORMAT='hunter2
TOKEN_ISSUER=a
hunter2
TOKEN_ISSUER=b
GATE_COLOUR=hunter2
aHVudGVyMg==
TOKEN_SYMMETRIC_KEY=\"hunter2\\x\"
PASSWORD_PEPPER_FILE_=hunter2
REGISTRATION=closed
";
    let errors = load_both(app_env, &[]).unwrap_err().to_string();
    assert!(!errors.contains("hunter2") && !errors.contains("aHVud"), "{errors}");
    insta::assert_snapshot!(errors, @r##"
    the configuration has 8 problems:
      db_source (app.env:1): there is no such setting; did you mean DB_SOURCE?
      LOG_FORMAT (app.env:2): the closing ' is missing
      app.env:4: expected NAME=value
      TOKEN_ISSUER (app.env:5): it is set in line 3 already; keep one of the two
      GATE_COLOUR (app.env:6): there is no such setting, nor one with a similar name
      app.env:7: there is no setting of that name, nor one with a similar name
      TOKEN_SYMMETRIC_KEY (app.env:8): in double quotes a backslash begins \n, \t, \\ or \"; use single quotes to keep it
      PASSWORD_PEPPER_FILE_ (app.env:9): there is no such setting; did you mean PASSWORD_PEPPER_FILE?
    "##);
}

#[test]
fn a_misspelled_variable_of_the_environment_causes_a_warning_without_its_value() {
    let environment = [("REGISTRATON", "closed-hunter2"), ("RUST_LOG_STYLE", "never"), ("DB_HOST", "db")];
    let loaded = load_environment(&environment).unwrap();
    let expected = "REGISTRATON (environment): there is no such setting; did you mean REGISTRATION?";
    assert_eq!(loaded.warnings, [expected]);
    assert_eq!(loaded.settings.registration, Registration::Open);
}

#[test]
fn text_that_is_not_utf_8_is_reported_by_line_or_setting_name() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("app.env"), b"# one\nTOKEN_ISSUER=caf\xe9\nLOG_FORMAT=xml\n").unwrap();
    let errors = load_in(dir.path(), &[]).unwrap_err();
    assert_eq!(errors.0[0].to_string(), "app.env:2: expected text in UTF-8");
    assert_eq!(errors.0[1].key.as_deref(), Some("LOG_FORMAT"));

    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStringExt;
        let latin_1 = OsString::from_vec(b"caf\xe9".to_vec());
        let environment = [
            ("TOKEN_ISSUER".into(), latin_1.clone()),
            ("OTHER".into(), latin_1.clone()),
            (latin_1, "x".into()),
        ];
        let sources =
            Sources { working_dir: "/nonexistent".into(), config_file: None, environment, cores: 1 };
        assert_eq!(problem(load(sources)), "TOKEN_ISSUER (environment): expected text in UTF-8");
    }
}

#[test]
fn a_config_file_that_is_too_large_or_a_directory_is_refused() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("app.env"), "#".repeat(65 * 1024)).unwrap();
    assert_eq!(problem(load_in(dir.path(), &[])), "app.env: cannot be read: the file is larger than 64 KiB");
    fs::remove_file(dir.path().join("app.env")).unwrap();
    fs::create_dir(dir.path().join("app.env")).unwrap();
    assert!(problem(load_in(dir.path(), &[])).starts_with("app.env: cannot be read: "));
}

#[test]
fn secrets_may_be_in_files_of_their_own() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("key");
    fs::write(dir.path().join("db"), format!("{DB}\r\n")).unwrap();
    fs::write(&path, format!("{KEY}\n")).unwrap();
    let path = path.to_str().unwrap();
    fs::write(dir.path().join("app.env"), "DB_SOURCE_FILE=db\n").unwrap();
    let loaded =
        load_in(dir.path(), &[("TOKEN_SYMMETRIC_KEY_FILE", path), ("TOKEN_SYMMETRIC_KEY", "")]).unwrap();
    assert_eq!(loaded.settings.db_source.as_ref().unwrap().expose_secret(), DB);
    assert_eq!(loaded.settings.token_symmetric_key.as_ref().unwrap().as_bytes(), KEY.as_bytes());
    assert_eq!(line(&loaded, "DB_SOURCE").origin, "DB_SOURCE_FILE=db");
    assert_eq!(line(&loaded, "TOKEN_SYMMETRIC_KEY").origin, format!("TOKEN_SYMMETRIC_KEY_FILE={path}"));
    assert!(!line(&loaded, "TOKEN_SYMMETRIC_KEY").default);

    // One line feed comes from the editor. A second one is part of the key, and one byte too many.
    fs::write(path, format!("{KEY}\n\n")).unwrap();
    let message = problem(load_in(dir.path(), &[("TOKEN_SYMMETRIC_KEY_FILE", path)]));
    assert!(
        message.starts_with(&format!("TOKEN_SYMMETRIC_KEY (TOKEN_SYMMETRIC_KEY_FILE={path}): ")),
        "{message}"
    );
}

#[test]
fn a_secret_file_that_cannot_be_used_is_refused() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("empty.txt"), "\n").unwrap();
    fs::write(dir.path().join("large.txt"), "x".repeat(64 * 1024 + 1)).unwrap();
    fs::write(dir.path().join("latin1.txt"), b"\xe9").unwrap();
    for (path, why) in [
        ("/nonexistent/missing.txt", "cannot read /nonexistent/missing.txt: No such file"),
        ("missing.txt", "cannot read missing.txt: No such file"),
        ("empty.txt", "cannot read empty.txt: the file is empty"),
        ("large.txt", "cannot read large.txt: the file is larger than 64 KiB"),
        ("latin1.txt", "cannot read latin1.txt: expected text in UTF-8"),
        ("/", "cannot read /: Is a directory"),
        // The secret itself in place of its path.
        (DB, "expected the path of a file, and this looks like the secret itself"),
        (KEY, "expected the path of a file, and this looks like the secret itself"),
    ] {
        let message = problem(load_in(dir.path(), &[("DB_SOURCE_FILE", path)]));
        assert!(message.starts_with(&format!("DB_SOURCE_FILE (environment): {why}")), "{message}");
    }
    let missing = dir.path().join("missing.txt");
    let missing = missing.to_str().unwrap();
    let message = problem(load_in(dir.path(), &[("DB_SOURCE_FILE", missing)]));
    assert!(message.contains(&format!("cannot read {missing}: No such file")), "{message}");
}

#[test]
fn a_secret_given_twice_is_refused() {
    let message = problem(load_both(&format!("\nDB_SOURCE={DB}"), &[("DB_SOURCE_FILE", "/nonexistent")]));
    let expected =
        "DB_SOURCE (app.env:2): both this and DB_SOURCE_FILE (environment) are set; keep one of the two";
    assert_eq!(message, expected);
    // In production it is not also reported as missing.
    let message = problem(load_production(&[("TOKEN_SYMMETRIC_KEY_FILE", "/nonexistent")]));
    assert!(message.starts_with("TOKEN_SYMMETRIC_KEY (environment): both this and "), "{message}");
    // Nor is a secret reported as missing if its file cannot be read.
    let environment =
        [("ENVIRONMENT", "production"), ("DB_SOURCE", DB), ("TOKEN_SYMMETRIC_KEY_FILE", "/nonexistent")];
    assert!(problem(load_environment(&environment)).starts_with("TOKEN_SYMMETRIC_KEY_FILE (environment): "));
}

#[test]
fn production_needs_a_database_and_a_key() {
    let errors = load_environment(&[("ENVIRONMENT", "production")]).unwrap_err();
    let list: Vec<_> = errors.0.iter().map(ToString::to_string).collect();
    assert_eq!(
        list,
        [
            "DB_SOURCE (not set): production needs a database, for example \
             postgres://gatepass:PASSWORD@localhost:5432/gatepass",
            "TOKEN_SYMMETRIC_KEY (not set): production needs a key; make one with `gatepass key generate`",
        ]
    );
    let here = [("DB_SOURCE", "postgres://gatepass@localhost/gatepass")];
    assert!(load_production(&here).unwrap().warnings.is_empty());
}

#[test]
fn production_warns_about_a_remote_database_that_is_not_verified() {
    let elsewhere = [("DB_SOURCE", "postgres://u:hunter2@db.example.com/d?sslmode=require")];
    let warnings = load_production(&elsewhere).unwrap().warnings;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].starts_with("DB_SOURCE (environment): the database is on another machine"),
        "{warnings:?}"
    );
    assert!(warnings[0].contains("sslmode=verify-full") && !warnings[0].contains("hunter2"), "{warnings:?}");
    assert!(load_environment(&elsewhere).unwrap().warnings.is_empty());
    for name in ["MIGRATION_DB_SOURCE", "MASTER_DB_SOURCE"] {
        let here = ("DB_SOURCE", "postgres://gatepass@localhost/gatepass");
        let warnings = load_production(&[here, (name, elsewhere[0].1)]).unwrap().warnings;
        let expected = format!("{name} (environment): the database is on another machine");
        assert!(warnings.len() == 1 && warnings[0].starts_with(&expected), "{warnings:?}");
    }

    let url = "postgres://u@db.example.com/d?sslmode=verify-full&sslrootcert=%2Fnowhere%2Fca.pem";
    let message = problem(load_production(&[("DB_SOURCE", url)]));
    assert!(
        message.contains("the file /nowhere/ca.pem that it names cannot be read: No such file"),
        "{message}"
    );
}

#[test]
fn transaction_pooling_needs_a_direct_connection_for_migrations() {
    let pooler = [("DB_SOURCE", DB), ("DB_POOLER", "transaction")];
    let message = problem(load_environment(&pooler));
    assert!(message.starts_with("MIGRATION_DB_SOURCE (not set): DB_POOLER=transaction"), "{message}");
    for way in [("MIGRATION_DB_SOURCE", DB), ("MIGRATE_ON_START", "false")] {
        load_environment(&[pooler[0], pooler[1], way]).unwrap();
    }
}

#[test]
fn a_guessable_key_is_refused_in_production_and_warned_about_otherwise() {
    // The last one is the example's key as PASERK.
    let paserk = "k4.local.MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTI";
    for key in [EXAMPLE_KEY, "this-is-a-very-secret-key-000001", "00000000000000000000000000000000", paserk] {
        let environment = [("ENVIRONMENT", "production"), ("DB_SOURCE", DB), ("TOKEN_SYMMETRIC_KEY", key)];
        let message = problem(load_environment(&environment));
        assert!(message.starts_with("TOKEN_SYMMETRIC_KEY (environment): "), "{message}");
        assert!(
            message.ends_with("make one with `gatepass key generate`") && !message.contains(key),
            "{message}"
        );

        let warnings = load_environment(&environment[1..]).unwrap().warnings;
        assert_eq!(warnings, [format!("{message} (production refuses this)")]);
    }
    // Whoever guesses a key that is only accepted can make tokens all the same.
    let message = problem(load_production(&[("TOKEN_SYMMETRIC_KEYS_ACCEPTED", EXAMPLE_KEY)]));
    assert!(
        message.starts_with("TOKEN_SYMMETRIC_KEYS_ACCEPTED (environment): this is the example's"),
        "{message}"
    );
}

#[test]
fn any_origin_is_for_development_only() {
    let message = problem(load_production(&[("ALLOWED_ORIGINS", "https://a.example,*")]));
    assert!(message.contains("ALLOWED_ORIGINS") && message.contains("every site"), "{message}");
    let loaded = load_environment(&[("ALLOWED_ORIGINS", "*")]).unwrap();
    assert_eq!(loaded.settings.allowed_origins, ["*"]);
    assert!(loaded.warnings[0].contains("production refuses this"), "{:?}", loaded.warnings);
}

#[test]
fn published_formats_need_a_url_as_issuer_in_production() {
    for (format, algorithm, issuer, refused) in [
        ("v4.local", "EdDSA", "gatepass", false),
        ("v4.public", "EdDSA", "gatepass", true),
        ("v4.public", "EdDSA", "https://auth.example.com", false),
        ("jwt", "EdDSA", "gatepass", true),
        ("jwt", "RS256", "https://auth.example.com/?q", true),
        ("jwt", "HS256", "gatepass", false),
    ] {
        let more = [("TOKEN_FORMAT", format), ("JWT_ALGORITHM", algorithm), ("TOKEN_ISSUER", issuer)];
        let problems = load_production(&more).err().map(|errors| errors.0).unwrap_or_default();
        let is_refused = problems.iter().any(|problem| problem.key.as_deref() == Some("TOKEN_ISSUER"));
        assert_eq!(is_refused, refused, "{more:?}");
    }
}

#[test]
fn an_algorithm_without_jwt_causes_a_warning() {
    let warnings = |settings: &[(&str, &str)]| load_environment(settings).unwrap().warnings;
    let es256 = ("JWT_ALGORITHM", "ES256");
    let [warning] = &warnings(&[es256])[..] else { panic!("{:?}", warnings(&[es256])) };
    assert_eq!(
        warning,
        "JWT_ALGORITHM (environment): has no effect with TOKEN_FORMAT (v4.local, default); did you mean \
         TOKEN_FORMAT=jwt?"
    );
    assert_eq!(warnings(&[es256, ("TOKEN_FORMAT", "v4.public")]).len(), 1);
    for more in [("TOKEN_FORMAT", "jwt"), ("TOKEN_FORMAT_ACCEPTED", "jwt")] {
        assert_eq!(warnings(&[es256, more]), [""; 0], "{more:?}");
    }
    assert_eq!(warnings(&[]), [""; 0]);
}

#[test]
fn no_token_outlives_its_session() {
    let message = problem(load_both("SESSION_DURATION=12h", &[("REFRESH_TOKEN_DURATION", "24h")]));
    let expected = "REFRESH_TOKEN_DURATION (environment): REFRESH_TOKEN_DURATION (24h, environment) is longer than \
                    SESSION_DURATION (12h, app.env:1)";
    assert_eq!(message, expected);
    // A default is no explicit value.
    assert!(load_environment(&[("SESSION_DURATION", "12h")]).is_ok());
    let message = problem(load_environment(&[("ACCESS_TOKEN_DURATION", "31d")]));
    assert!(
        message.contains("ACCESS_TOKEN_DURATION (31d, environment) is longer than SESSION_DURATION (30d"),
        "{message}"
    );
    // Nothing is checked against a value that could not be read.
    assert!(
        problem(load_environment(&[("SESSION_DURATION", "soon"), ("ACCESS_TOKEN_DURATION", "31d")]))
            .contains("soon")
    );
    assert!(load_environment(&[("SESSION_DURATION", "1h"), ("REFRESH_TOKEN_DURATION", "1h")]).is_ok());
}

#[test]
fn argon2_costs_below_the_owasp_minimum_are_only_for_development() {
    for (memory, iterations, parallelism, enough) in [
        ("19456", "2", "1", true),
        ("47104", "1", "1", true),
        ("7168", "5", "1", true),
        ("262144", "3", "4", true),
        ("19455", "2", "1", false),
        ("47103", "1", "1", false),
        ("7167", "64", "1", false),
        ("8", "1", "1", false),
    ] {
        let cost = [
            ("ARGON2_MEMORY_KIB", memory),
            ("ARGON2_ITERATIONS", iterations),
            ("ARGON2_PARALLELISM", parallelism),
        ];
        assert_eq!(load_production(&cost).is_ok(), enough, "{cost:?}");
        assert_eq!(load_environment(&cost).unwrap().warnings.is_empty(), enough, "{cost:?}");
    }
    let message = problem(load_environment(&[("ARGON2_MEMORY_KIB", "31"), ("ARGON2_PARALLELISM", "4")]));
    assert!(
        message.contains("ARGON2_PARALLELISM (4, environment) needs at least 8 KiB a lane, 32 in all"),
        "{message}"
    );
}

#[test]
fn migration_sources_cannot_be_set_without_db_source() {
    for name in ["MIGRATION_DB_SOURCE", "MASTER_DB_SOURCE"] {
        let message = problem(load_environment(&[(name, DB)]));
        assert_eq!(message, format!("{name} (environment): DB_SOURCE is not set; set both, or neither"));
        assert!(load_environment(&[(name, DB), ("DB_SOURCE", DB)]).is_ok());
    }
}

#[test]
fn trusting_every_proxy_causes_a_warning() {
    for (networks, warned) in
        [("0.0.0.0/0", true), ("10.0.0.0/8,::/0", true), ("::ffff:0:0/96", true), ("10.0.0.0/8", false)]
    {
        assert_eq!(!load_environment(&[("TRUSTED_PROXIES", networks)]).unwrap().warnings.is_empty(), warned);
    }
}

#[test]
fn no_secret_is_ever_printed() {
    let mut environment = vec![("TOKEN_SYMMETRIC_KEY", KEY), ("TOKEN_SYMMETRIC_KEYS_ACCEPTED", KEY)];
    let migration = "postgres://owner@db.example.com/gatepass?password=hunter2&sslmode=require";
    environment.extend([("DB_SOURCE", DB), ("MIGRATION_DB_SOURCE", migration), ("MASTER_DB_SOURCE", DB)]);
    let loaded = load_environment(&environment).unwrap();
    let everything = format!("{loaded:?} {}", serde_json::to_string(&loaded.report).unwrap());
    for secret in [KEY, "hunter2"] {
        assert!(!everything.contains(secret), "{everything}");
    }
    for (name, value) in [
        ("TOKEN_SYMMETRIC_KEY", "********"),
        ("TOKEN_SYMMETRIC_KEYS_ACCEPTED", "********"),
        ("DB_SOURCE", "postgres://gatepass:********@db.example.com:5432/gatepass"),
        ("MASTER_DB_SOURCE", "postgres://gatepass:********@db.example.com:5432/gatepass"),
        ("MIGRATION_DB_SOURCE", "postgres://owner@db.example.com/gatepass?password=********&sslmode=require"),
    ] {
        assert_eq!(line(&loaded, name).value_masked.as_deref(), Some(value));
    }
    let json = serde_json::to_value(line(&loaded, "REGISTRATION")).unwrap();
    let expected = serde_json::json!(
        {"name": "REGISTRATION", "value": "open", "origin": "default", "default": true}
    );
    assert_eq!(json, expected);
    assert_eq!(line(&loaded, "REGISTRATION").to_string(), "REGISTRATION=open  # default");
}

#[test]
fn the_example_loads_both_as_written_and_fully_uncommented() {
    let example = app_env_example();
    let loaded = load_both(&example, &[]).unwrap();
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);

    let all: String = example
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(setting)
                if setting.split('=').next().is_some_and(|name| SETTINGS.iter().any(|s| s.name == name)) =>
            {
                format!("{setting}\n")
            }
            _ => format!("{line}\n"),
        })
        .collect();
    // Except the one that names a file: loading reads it, and no machine of ours has it.
    let all = all.replace("\nPASSWORD_BREACHED_FILE=", "\n# PASSWORD_BREACHED_FILE=");
    // And except the one that names a secret, which a caller has to read.
    let all = all.replace("\nSECRETS_MANAGER_SECRET_ID=", "\n# SECRETS_MANAGER_SECRET_ID=");
    let problems = load_both(&all, &[]).err().map(|errors| errors.0).unwrap_or_default();
    assert!(problems.is_empty(), "{problems:#?}");
}

#[test]
fn peppers() {
    let random = "RO1qnPi9qxt2iBVWLtBI7ODWHOmx5QBmCy0l1C0gp6s=";
    let zeros = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let pepper = format!("2:{random},1:{random}");
    let loaded = load_environment(&[("PASSWORD_PEPPER", &*pepper)]).unwrap();
    assert_eq!((loaded.settings.password_pepper.count(), loaded.warnings.len()), (2, 0));
    assert!(!format!("{loaded:?}").contains("RO1q"), "{loaded:?}");

    let weak = format!("2:{random},1:{zeros}");
    let loaded = load_environment(&[("PASSWORD_PEPPER", &*weak)]).unwrap();
    assert!(loaded.warnings.iter().any(|warning| warning.contains("a pepper repeats itself")), "{loaded:?}");

    // Half of a line is no pepper, and no message quotes it.
    for text in [random.to_owned(), format!("1:{}", &random[..20]), format!("2:{random},2:{random}")] {
        let errors = load_environment(&[("PASSWORD_PEPPER", &*text)]).unwrap_err().to_string();
        assert!(errors.contains("PASSWORD_PEPPER (environment)") && !errors.contains("RO1q"), "{errors}");
    }
}

#[test]
fn only_development_may_send_passwords_to_the_old_system_without_tls() {
    let url = [("LEGACY_LOGIN_URL", "https://me:hunter2@old.example.com/login")];
    let loaded = load_production(&url).unwrap();
    assert!(!format!("{loaded:?}").contains("hunter2"));
    assert_eq!(line(&loaded, "LEGACY_LOGIN_URL").value_masked.as_deref(), Some("********"));
    let plain = [("LEGACY_LOGIN_URL", "http://127.0.0.1:3000/login")];
    let expected = "LEGACY_LOGIN_URL (environment): passwords would travel without TLS; expected https://";
    assert_eq!(problem(load_production(&plain)), expected);
    let warnings = load_environment(&plain).unwrap().warnings;
    assert!(warnings.len() == 1 && warnings[0].starts_with(expected), "{warnings:?}");
}

#[test]
fn a_certificate_and_its_key_come_together() {
    let (certificate, key) = (("TLS_CERT_FILE", "/etc/tls.crt"), ("TLS_KEY_FILE", "/etc/tls.key"));
    let settings = load_environment(&[certificate, key]).unwrap().settings;
    assert!(settings.tls_cert_file.is_some() && settings.tls_key_file.is_some());
    for (given, missing) in [(certificate, "TLS_KEY_FILE"), (key, "TLS_CERT_FILE")] {
        let errors = load_environment(&[given]).unwrap_err();
        assert_eq!(errors.0.len(), 1);
        assert_eq!(errors.0[0].key.as_deref(), Some(missing));
        assert!(errors.0[0].message.contains("set both, or neither"), "{errors}");
    }
}

#[test]
fn a_key_given_in_place_of_its_path_is_masked() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("tls.crt"), "").unwrap();
    let key = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIAAA/AAA.A\n-----END PRIVATE KEY-----\n";
    let loaded = load_in(dir.path(), &[("TLS_CERT_FILE", "tls.crt"), ("TLS_KEY_FILE", key)]).unwrap();
    let shown = |name| line(&loaded, name).value_masked.as_deref();
    assert_eq!((shown("TLS_CERT_FILE"), shown("TLS_KEY_FILE")), (Some("tls.crt"), Some("********")));
}

/// Gathers with a secret named in the environment.
fn gather_with_secret(environment: &[(&str, &str)]) -> Gathered {
    let dir = TempDir::new().unwrap();
    let environment = [&[("SECRETS_MANAGER_SECRET_ID", "gatepass")], environment].concat();
    gather(Sources { working_dir: dir.path().into(), config_file: None, environment, cores: 4 })
}

#[test]
fn a_secrets_manager_secret_that_was_not_read_is_an_error() {
    let unread = "SECRETS_MANAGER_SECRET_ID (environment): the secret has not been read";
    assert_eq!(problem(gather_with_secret(&[]).check()), unread);
    assert_eq!(problem(load_environment(&[("SECRETS_MANAGER_SECRET_ID", "gatepass")])), unread);
    // The settings given count, and none that may be in the secret is reported as missing.
    let production = [("ENVIRONMENT", "production"), ("TOKEN_ISSUER", "me")];
    let loaded = gather_with_secret(&production).without_secret().check().unwrap();
    assert_eq!(loaded.settings.token_issuer, "me");
    let failed = |environment: &[(&str, &str)]| {
        let mut gathered = gather_with_secret(environment);
        gathered.add_secret(Err("it is gone".into()));
        gathered.check().unwrap_err().to_string()
    };
    let list = failed(&[("ENVIRONMENT", "production"), ("REGISTRATION", "maybe")]);
    assert_eq!(list.lines().count(), 3, "{list}");
    assert!(list.contains("SECRETS_MANAGER_SECRET_ID (environment): it is gone"), "{list}");
    // No caller is sent to an invalid place.
    for wrong in [("SECRETS_MANAGER_SECRET_ID", "a b"), ("AWS_REGION", "a b"), ("AWS_ENDPOINT_URL", "moto")] {
        let gathered = gather_with_secret(&[wrong]);
        assert!(gathered.secret().is_none());
        assert!(problem(gathered.check()).starts_with(wrong.0));
    }
}

#[test]
fn a_secrets_manager_secret_sets_settings_like_a_file() {
    let read = |text: &str| {
        let mut gathered = gather_with_secret(&[("TOKEN_AUDIENCE", "environment")]);
        gathered.add_secret(Ok(text.into()));
        gathered.check()
    };
    let loaded = read(r#"{"TOKEN_ISSUER": "secret", "TOKEN_AUDIENCE": "secret", "RUST_LOG": ""}"#).unwrap();
    assert_eq!(loaded.settings.token_issuer, "secret");
    assert_eq!(loaded.settings.token_audience, "environment");
    assert_eq!(line(&loaded, "TOKEN_ISSUER").origin, "Secrets Manager");
    assert_eq!(line(&loaded, "RUST_LOG").origin, "default");
    for text in [
        "",
        "hunter2",
        "\"hunter2\"",
        "[]",
        "null",
        "{\"hunter2\"",
        "{} hunter2",
        "{\"TOKEN_ISSUER\": hunter2}",
    ] {
        // In production, too, there is only one problem: nothing that the secret may hold is reported as missing.
        let mut gathered = gather_with_secret(&[("ENVIRONMENT", "production")]);
        gathered.add_secret(Ok(text.into()));
        let message = problem(gathered.check());
        assert!(message.contains("expected the secret to be a JSON object"), "{text}: {message}");
        assert!(!message.contains("hunter2"), "{message}");
    }
    for value in ["1", "true", "null", "[\"hunter2\"]", "{\"DB_SOURCE\": \"hunter2\"}"] {
        let expected = "TOKEN_ISSUER (Secrets Manager): expected a text in \"quotes\"";
        assert_eq!(problem(read(&format!("{{\"TOKEN_ISSUER\": {value}}}"))), expected);
    }
    let errors =
        read(r#"{"ENVIRONMENT": "production", "AWS_REGION": "x", "HUNTER2": "x"}"#).unwrap_err().to_string();
    for expected in ["DB_SOURCE (not set)", "TOKEN_SYMMETRIC_KEY (not set)", "AWS_REGION (Secrets Manager)"] {
        assert!(errors.contains(expected), "{errors}");
    }
    assert!(!errors.contains("HUNTER2"), "{errors}");
}

#[cfg(feature = "aws")]
#[test]
fn iam_authentication_needs_a_host_name_a_user_and_tls() {
    let iam = |source: &str, more: &[(&str, &str)]| {
        let iam = [("DB_IAM_AUTH", "true"), ("DB_SOURCE", source)];
        load_environment(&[&iam, more].concat())
    };
    const HOST: &str = "postgres://gatepass@db.abc.eu-central-1.rds.amazonaws.com:5432";
    let good = format!("{HOST}/gatepass?sslmode=verify-full&sslrootcert=/dev/null");
    assert!(iam(&good, &[]).unwrap().warnings.is_empty());
    for mode in ["require", "verify-ca"] {
        let warnings = iam(&format!("{HOST}/gatepass?sslmode={mode}"), &[]).unwrap().warnings;
        assert!(warnings.len() == 1 && warnings[0].contains("verify-full"), "{warnings:?}");
    }
    for (source, expected) in [
        (format!("{HOST}/gatepass"), "without TLS"),
        (format!("{HOST}/gatepass?sslmode=prefer"), "without TLS"),
        (format!("{HOST}/gatepass?sslmode=require&sslmode=disable"), "without TLS"),
        (good.replace("gatepass@", "gatepass:hunter2@"), "remove that"),
        (format!("{good}&password=hunter2"), "remove that"),
        (format!("{good}&host=/run/postgresql"), "before the /"),
        (good.replace("gatepass@", ""), "before the /"),
        (good.replace("db.abc.eu-central-1.rds.amazonaws.com", "10.0.0.7"), "the name that RDS gave"),
        (good.replace("db.abc.eu-central-1.rds.amazonaws.com", "[::1]"), "the name that RDS gave"),
        (good.replace("db.abc.eu-central-1.rds.amazonaws.com", "%2Frun"), "the name that RDS gave"),
    ] {
        let message = problem(iam(&source, &[]));
        assert!(message.starts_with("DB_SOURCE (environment): DB_IAM_AUTH is true: "), "{message}");
        assert!(message.contains(expected) && !message.contains("hunter2"), "{source}: {message}");
        let message = problem(iam(&good, &[("MIGRATION_DB_SOURCE", &source)]));
        assert!(message.starts_with("MIGRATION_DB_SOURCE (environment): DB_IAM_AUTH is true: "), "{message}");
    }
    assert!(problem(load_environment(&[("DB_IAM_AUTH", "true")])).contains("needs DB_SOURCE"));
    // None of this applies to a password.
    assert!(load_environment(&[("DB_SOURCE", DB)]).is_ok());
}

#[cfg(not(feature = "aws"))]
#[test]
fn iam_authentication_is_refused_in_a_build_without_aws() {
    let source = "postgres://gatepass@db.example.com/gatepass?sslmode=verify-full";
    let message = problem(load_environment(&[("DB_IAM_AUTH", "true"), ("DB_SOURCE", source)]));
    assert!(message.contains("this build has no AWS support"), "{message}");
}
