//! Other people's libraries agree with us about our tokens, in every format:
//!
//! - PyJWT finds its key in our JWK set, and pyseto in our PASERKs. Both read every claim and the header or footer as
//!   we meant them, and refuse the token when any one byte of it is changed.
//! - joserfc (RFC 7638) and pyseto (PASERK) compute the same names for our keys as we do.
//! - What they make, with keys that they made themselves and with our shared secrets, passes our verifier.
//! - The programs in docs/verify.md accept our tokens, and refuse those that are slightly off.
//!
//! One Python runs them all. `make test` installs it (`scripts/other-libraries`) and names it in
//! `GATEPASS_TEST_PYTHON`. Without it these tests fail in CI, and elsewhere report that they have not run.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs,
    io::Write,
    process::{Command, Stdio},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{Router, http::StatusCode, routing::get};
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
use tokio::net::TcpListener;
use uuid::Uuid;

use crate::{
    app::KEY,
    forge::{self, Forge},
    not_tested::named_by,
};

const PYTHON: &str = "GATEPASS_TEST_PYTHON";
const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/other_libraries/read_and_make.py");
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/verify.md");

/// What was asked of the libraries, and what they answered.
struct Exchange {
    now: OffsetDateTime,
    /// Our key for each format.
    keys: Vec<(Format, SigningKey)>,
    answer: Value,
}

static INSTALLED: LazyLock<Option<OsString>> =
    LazyLock::new(|| named_by(PYTHON, "that other libraries read our tokens"));
static EXCHANGE: LazyLock<Option<Exchange>> = LazyLock::new(exchange);

fn exchange() -> Option<Exchange> {
    let python = INSTALLED.as_ref()?;
    // The libraries read the machine's clock.
    let now = Clock::system().now().truncate_to_second();
    let keys: Vec<_> = Format::ALL.into_iter().map(|format| (format, signing_key(format))).collect();
    let tokens: serde_json::Map<_, _> =
        keys.iter().map(|(format, key)| (format.to_string(), issue(key, now).into())).collect();
    let (jwks, paserks) = documents(&keys);
    let question = json!({
        "issuer": party().issuer,
        "audience": party().audience,
        "jwks": jwks,
        "paserks": paserks,
        "hs256": *Hs256Key::new(&root()).to_jwk(),
        "local": root().to_paserk().expose_secret(),
        "tokens": tokens,
        "claims": claims(now, |time| time.unix_timestamp().into()),
    });
    Some(Exchange { now, keys, answer: ask(python, &question) })
}

fn pairs(keys: &[(Format, SigningKey)]) -> impl Iterator<Item = &Arc<KeyPair>> {
    keys.iter().filter_map(|(_, key)| match key {
        SigningKey::Pair(pair) => Some(pair),
        _ => None,
    })
}

/// The two documents in which the keys are published.
fn documents(keys: &[(Format, SigningKey)]) -> (String, String) {
    let public = || pairs(keys).map(|pair| pair.public_key());
    (jwks(public()), paserks(public().map(|key| (key, KeyStatus::Active))))
}

fn ask(python: &OsStr, question: &Value) -> Value {
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

/// The claims of a token made at `now`, with the times as its format writes them.
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
fn other_libraries_read_every_claim_of_our_tokens() {
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
fn other_libraries_refuse_our_tokens_after_any_change() {
    let Some(Exchange { keys, answer, .. }) = &*EXCHANGE else { return };
    for (format, _) in keys {
        // Pairs of a part and the byte changed in it.
        assert_eq!(answer["altered"][format.name()], json!([]), "{format}");
    }
}

#[test]
fn other_libraries_compute_the_same_ids_for_our_keys() {
    let Some(Exchange { keys, answer, .. }) = &*EXCHANGE else { return };
    for (format, key) in keys {
        assert_eq!(answer["names"][format.name()], key.id().as_str(), "{format}");
    }
}

#[test]
fn our_verifier_accepts_tokens_made_by_other_libraries() {
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

/// The code blocks of the page in `language`, in order.
fn blocks<'p>(page: &'p str, language: &str) -> Vec<&'p str> {
    let fence = format!("```{language}\n");
    page.split(&fence).skip(1).map(|rest| rest.split_once("```\n").unwrap().0).collect()
}

/// The kind of value that each member has.
fn kinds(json: &Value) -> BTreeMap<&str, &'static str> {
    let kind = |value: &Value| match value {
        Value::String(text) if OffsetDateTime::parse(text, &Rfc3339).is_ok() => "time",
        Value::String(_) => "string",
        Value::Number(_) => "number",
        Value::Array(_) => "list",
        _ => panic!("{value}"),
    };
    json.as_object().unwrap().iter().map(|(name, value)| (&**name, kind(value))).collect()
}

#[test]
fn the_documentation_shows_tokens_as_they_are() {
    let page = fs::read_to_string(PAGE).unwrap();
    let examples: Vec<Value> =
        blocks(&page, "json").into_iter().map(|json| serde_json::from_str(json).unwrap()).collect();
    let jwt = claims(OffsetDateTime::UNIX_EPOCH, |time| time.unix_timestamp().into());
    let paseto = claims(OffsetDateTime::UNIX_EPOCH, |time| time.format(&Rfc3339).unwrap().into());
    let real = [
        json!({ "typ": "at+jwt", "alg": "EdDSA", "kid": "" }),
        jwt.clone(),
        json!({ "kid": "k4.pid." }),
        paseto,
    ];
    assert_eq!(examples.iter().map(kinds).collect::<Vec<_>>(), real.iter().map(kinds).collect::<Vec<_>>());

    let (_, table) = page.split_once("|---|---|---|\n").unwrap();
    let rows = table.lines().take_while(|line| !line.is_empty());
    let names: BTreeMap<&str, ()> = rows.map(|row| (row.split('`').nth(1).unwrap(), ())).collect();
    assert!(names.keys().eq(kinds(&jwt).keys()), "{names:?}");
}

/// Prints what the program's `verify` returns for each token; `null` when it refuses the token as the page says it
/// does. Before each token, the clock moves by that many seconds.
const OUTCOMES: &str = r"
import json, sys, time

clock, moved = time.monotonic, 0
time.monotonic = lambda: clock() + moved

def outcome(seconds, token):
    global moved
    moved += seconds
    try:
        return verify(token)
    except ERRORS:
        return None

print(json.dumps([outcome(*step) for step in json.loads(sys.argv[1])]))
";

/// How a format writes times.
type Time = fn(OffsetDateTime) -> Value;

fn time_of(forge: &Forge) -> Time {
    match forge.is_jwt() {
        true => |time| time.unix_timestamp().into(),
        false => |time| time.format(&Rfc3339).unwrap().into(),
    }
}

/// The claims of a token that the documented programs accept from the gatepass at `base`.
fn good_claims(base: &str, now: OffsetDateTime, time: Time) -> Value {
    let mut claims = claims(now, time);
    claims["iss"] = json!(base);
    claims["aud"] = json!("gatepass");
    claims
}

/// What the page's program for this format makes of the tokens, each so many seconds after the one before, with the
/// keys of the gatepass at `base`.
async fn outcomes(python: &OsStr, forge: &Forge, base: &str, steps: &[(u32, &str)]) -> Vec<Value> {
    let page = fs::read_to_string(PAGE).unwrap();
    let [for_jwts, for_pasetos] = *blocks(&page, "python") else { panic!("two programs") };
    let (program, errors) = match forge.is_jwt() {
        true => (for_jwts, "jwt.PyJWTError"),
        false => (for_pasetos, "pyseto.PysetoError or ValueError"),
    };
    assert!(program.contains(errors), "the program says what it raises");
    let program = program.replace("https://auth.example.com", base).replace("EdDSA", forge.alg())
        + &OUTCOMES.replace("ERRORS", &format!("({})", errors.replace(" or", ",")));
    let output = tokio::process::Command::new(python)
        .args(["-c", &program, &json!(steps).to_string()])
        .env("NO_PROXY", "*")
        .stderr(Stdio::inherit())
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{}", forge.format);
    let outcomes: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(outcomes.len(), steps.len());
    outcomes
}

/// Serves on a free port; returns the address.
async fn serve(service: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async { axum::serve(listener, service).await });
    base
}

#[tokio::test]
async fn the_documented_programs_accept_our_tokens_and_refuse_others() {
    let (Some(python), Some(Exchange { now, keys, .. })) = (&*INSTALLED, &*EXCHANGE) else { return };
    let (jwks, paserks) = documents(keys);
    let service = Router::new()
        .route("/.well-known/jwks.json", get(async || jwks))
        .route("/.well-known/paserk.json", get(async || paserks));
    let base = serve(service).await;

    let forges: Vec<_> =
        pairs(keys).map(|pair| Forge::pair(pair.public_key().clone(), &forge::private_bytes(pair))).collect();
    for forge in &forges {
        let time = time_of(forge);
        let good = good_claims(&base, *now, time);
        let with = |name: &str, value: Option<Value>| {
            let mut claims = good.clone();
            claims.as_object_mut().unwrap().remove(name);
            if let Some(value) = value {
                claims[name] = value;
            }
            forge.seal(claims.to_string())
        };
        let token = forge.seal(good.to_string());
        let mut tokens = vec![
            token.clone(),
            with("iss", Some(json!(format!("{base}/")))),
            with("aud", Some(json!("orders"))),
            // Within the leeway for `nbf`.
            with("exp", Some(time(*now - Duration::SECOND))),
            with("nbf", Some(time(*now + Duration::HOUR))),
            with("token_use", Some(json!("refresh"))),
            "abc".to_owned(),
        ];
        tokens.extend(["iss", "aud", "exp", "nbf", "jti", "token_use"].map(|name| with(name, None)));
        if forge.is_jwt() {
            tokens.push(forge.seal_in(&forge.envelope().replace("at+jwt", "JWT"), good.to_string()));
        }
        // A token that another key of this format signed under the name of ours, and good tokens of the other published
        // formats.
        let Format::KeyPair(format) = forge.format else { unreachable!("they are pairs") };
        let stranger = KeyPair::generate(format).unwrap();
        let stranger = Forge::pair(stranger.public_key().clone(), &forge::private_bytes(&stranger));
        tokens.push(stranger.seal_in(&forge.envelope(), good.to_string()));
        let others = forges.iter().filter(|other| other.format != forge.format);
        tokens.extend(others.map(|other| other.seal(good.to_string())));

        let steps: Vec<_> = tokens.iter().map(|token| (0, &**token)).collect();
        let outcomes = outcomes(python, forge, &base, &steps).await;
        assert_eq!(outcomes[0], good, "{}", forge.format);
        for (outcome, token) in outcomes.iter().zip(&tokens).skip(1) {
            assert_eq!(*outcome, Value::Null, "{} {token}", forge.format);
        }
    }
}

#[tokio::test]
async fn the_documented_programs_follow_the_keys() {
    let (Some(python), Some(Exchange { now, keys, .. })) = (&*INSTALLED, &*EXCHANGE) else { return };
    for pair in pairs(keys) {
        let next = Arc::new(KeyPair::generate(pair.format()).unwrap());
        let [forge, next_forge] =
            [pair, &next].map(|pair| Forge::pair(pair.public_key().clone(), &forge::private_bytes(pair)));

        // The answers to the first requests for the keys: the second key comes, the first one goes, none can be had.
        let published = [vec![pair], vec![pair, &next], vec![&next], vec![]].map(|pairs| {
            let public = || pairs.iter().map(|pair| pair.public_key());
            match forge.is_jwt() {
                true => jwks(public()),
                false => paserks(public().map(|key| (key, KeyStatus::Active))),
            }
        });
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = asked.clone();
        let answer = async move || {
            let answer = published.get(counted.fetch_add(1, Ordering::Relaxed));
            answer.cloned().ok_or(StatusCode::SERVICE_UNAVAILABLE)
        };
        let base = serve(Router::new().fallback(answer)).await;

        let good = good_claims(&base, *now, time_of(&forge));
        let [old, new] = [&forge, &next_forge].map(|forge| forge.seal(good.to_string()));
        let story = [
            (0, &old, true),
            // Too soon to ask again.
            (1, &new, false),
            // The key is unknown: the second answer has it.
            (30, &new, true),
            (0, &old, true),
            // After a minute the third answer is due, in which the first key is gone.
            (61, &old, false),
            // The other answers have no keys: those at hand stay.
            (61, &new, true),
            (61, &new, true),
            (61, &new, true),
        ];
        let steps = story.map(|(seconds, token, _)| (seconds, &**token));
        let outcomes = outcomes(python, &forge, &base, &steps).await;
        let expected = story.map(|(.., is_good)| if is_good { good.clone() } else { Value::Null });
        assert_eq!(outcomes, expected, "{}", forge.format);
        assert_eq!(asked.load(Ordering::Relaxed), 6, "{}", forge.format);
    }
}
