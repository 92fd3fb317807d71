//! Other people's libraries agree with us about our tokens, in every format. PyJWT finds its key in our JWK set and
//! pyseto in our PASERKs; both read every claim and the footer or header as we meant them, and refuse the token when any
//! one byte of it is another. joserfc (RFC 7638) and pyseto (PASERK) compute the very names that we give our keys. And
//! what they make, with keys that they made themselves and with our shared secrets, passes our verifier.
//!
//! They run in one Python for all formats. `make test` installs it (`scripts/other-libraries`) and names it in
//! `GATEPASS_TEST_PYTHON`. Without that these tests fail in CI, and elsewhere say that they have not run.

use std::{
    env,
    io::{self, Write},
    process::{Command, Stdio},
    sync::{Arc, LazyLock},
};

use gatepass::{
    clock::Clock,
    token::{
        Format, Hs256Key, Issuer, KeyPair, KeyStatus, Lifetime, Party, PublicKey, SharedFormat, SigningKey,
        Subject, SymmetricKey, Verifier, VerifyingKey, jwks, paserks,
    },
};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};
use uuid::Uuid;

use crate::app::KEY;

const PYTHON: &str = "GATEPASS_TEST_PYTHON";
const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/other_libraries/read_and_make.py");

/// What was asked of the libraries, and what they answered.
struct Exchange {
    now: OffsetDateTime,
    /// Our key for each format.
    keys: Vec<(Format, SigningKey)>,
    answer: Value,
}

static EXCHANGE: LazyLock<Option<Exchange>> = LazyLock::new(exchange);

fn exchange() -> Option<Exchange> {
    let Some(python) = env::var_os(PYTHON).filter(|path| !path.is_empty()) else {
        assert!(env::var_os("CI").is_none(), "{PYTHON} names no Python: `make test` sets it");
        // Not by a macro: those are captured while a test passes.
        let _ = writeln!(
            io::stderr(),
            "\nNOT tested: that other libraries read our tokens. {PYTHON} names no Python; `make test` sets it."
        );
        return None;
    };

    // The libraries go by the machine's clock.
    let now = Clock::system().now().truncate_to_second();
    let keys: Vec<_> = Format::ALL.into_iter().map(|format| (format, signing_key(format))).collect();
    let tokens: serde_json::Map<_, _> =
        keys.iter().map(|(format, key)| (format.to_string(), issue(key, now).into())).collect();
    let public: Vec<&PublicKey> = keys
        .iter()
        .filter_map(|(_, key)| match key {
            SigningKey::Pair(pair) => Some(pair.public_key()),
            _ => None,
        })
        .collect();
    let question = json!({
        "issuer": party().issuer,
        "audience": party().audience,
        "jwks": jwks(public.iter().copied()),
        "paserks": paserks(public.iter().map(|key| (*key, KeyStatus::Active))),
        "hs256": *Hs256Key::new(&root()).to_jwk(),
        "local": root().to_paserk().expose_secret(),
        "tokens": tokens,
        "claims": claims(now, |time| time.unix_timestamp().into()),
    });
    Some(Exchange { now, keys, answer: ask(&python, &question) })
}

fn ask(python: &std::ffi::OsStr, question: &Value) -> Value {
    let mut child = Command::new(python)
        .arg(PROGRAM)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap_or_else(|error| panic!("{PYTHON} {python:?}: {error}"));
    child.stdin.take().unwrap().write_all(question.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{PROGRAM}: {}", output.status);
    serde_json::from_slice(&output.stdout).unwrap()
}

fn root() -> SymmetricKey {
    KEY.parse().unwrap()
}

fn signing_key(format: Format) -> SigningKey {
    match format {
        Format::Shared(format) => SigningKey::shared(format, &root()),
        Format::KeyPair(format) => Arc::new(KeyPair::generate(format).unwrap()).into(),
    }
}

fn party() -> Party {
    Party { issuer: "https://id.example".into(), audience: "api".into() }
}

fn subject() -> Subject {
    Subject {
        user_id: Uuid::from_u128(1),
        session_id: Uuid::from_u128(2),
        username: "Ålice \"🦀\"".into(),
        roles: vec!["admin".into(), "auditor".into()],
    }
}

fn issue(key: &SigningKey, now: OffsetDateTime) -> String {
    let lifetime = Lifetime { now, expires_at: now + Duration::minutes(15) };
    let token = Issuer::new(key.clone(), party()).issue(subject(), Uuid::from_u128(3), lifetime).unwrap();
    token.expose().to_owned()
}

/// The claims that a token made at `now` has, with its times in the way of its format.
fn claims(now: OffsetDateTime, time: fn(OffsetDateTime) -> Value) -> Value {
    json!({
        "iss": "https://id.example",
        "sub": "00000000-0000-0000-0000-000000000001",
        "aud": "api",
        "iat": time(now),
        "nbf": time(now),
        "exp": time(now + Duration::minutes(15)),
        "jti": "00000000-0000-0000-0000-000000000003",
        "sid": "00000000-0000-0000-0000-000000000002",
        "username": "Ålice \"🦀\"",
        "roles": ["admin", "auditor"],
        "token_use": "access",
    })
}

#[test]
fn they_read_every_claim_of_our_tokens() {
    let Some(Exchange { now, keys, answer }) = &*EXCHANGE else { return };
    for (format, key) in keys {
        let (name, id) = (format.name(), key.id());
        let (header, claims) = match name.strip_prefix("jwt:") {
            Some(alg) => (
                json!({ "typ": "at+jwt", "alg": alg, "kid": id.as_str() }),
                claims(*now, |time| time.unix_timestamp().into()),
            ),
            None => {
                (json!({ "kid": id.as_str() }), claims(*now, |time| time.format(&Rfc3339).unwrap().into()))
            }
        };
        assert_eq!(answer["read"][name], json!({ "header": header, "claims": claims }), "{name}");
    }
}

#[test]
fn they_refuse_our_tokens_when_any_byte_is_another() {
    let Some(Exchange { keys, answer, .. }) = &*EXCHANGE else { return };
    for (format, _) in keys {
        // Pairs of the part and the byte in it.
        assert_eq!(answer["altered"][format.name()], json!([]), "{format}");
    }
}

#[test]
fn they_give_our_keys_the_names_that_we_give_them() {
    let Some(Exchange { keys, answer, .. }) = &*EXCHANGE else { return };
    for (format, key) in keys {
        assert_eq!(answer["names"][format.name()], key.id().as_str(), "{format}");
    }
}

#[test]
fn our_verifier_accepts_what_they_make() {
    let Some(Exchange { now, answer, .. }) = &*EXCHANGE else { return };
    for format in Format::ALL {
        let made = &answer["made"][format.name()];
        let key: VerifyingKey = match format {
            Format::Shared(SharedFormat::V4Local) => root().into(),
            Format::Shared(SharedFormat::Hs256) => Hs256Key::new(&root()).into(),
            Format::KeyPair(_) => made["public"].as_str().unwrap().parse::<PublicKey>().unwrap().into(),
        };
        assert_eq!(key.format(), format);
        let verifier = Verifier::new([key], party());
        let read = verifier
            .verify(made["token"].as_str().unwrap(), *now)
            .unwrap_or_else(|rejection| panic!("{format}: {rejection}"));
        // The same as in a token of our own.
        let root = root();
        let own = Verifier::new([root.clone()], party()).verify(&issue(&root.into(), *now), *now);
        assert_eq!(read, own.unwrap(), "{format}");
    }
}
