//! Tables of forgeries for every format, from the outside: real requests through the bearer layer, each with a token
//! that was never issued. The honest token passes before and after. A forger has everything but the private key; where
//! a table needs authentic tokens with odd content, the test signs them itself ([`crate::forge`]).

use std::sync::{Arc, LazyLock};

use axum::{
    Router,
    body::Body,
    http::{HeaderValue, Request, StatusCode},
    routing::get,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use gatepass::{
    bearer::BearerLayer,
    clock::Clock,
    token::{
        Format, Issuer, KeyPair, Lifetime, Party, Rejection, SharedFormat, SigningKey, Subject, SymmetricKey,
        Verifier, VerifyingKey,
    },
};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use time::{Duration, format_description::well_known::Rfc3339};
use tower::ServiceExt;
use uuid::Uuid;

use crate::{
    app::{App, KEY, START},
    forge::{Forge, Secret, Signature, encode, hs256, jwt, private_bytes},
    fuzzing,
};

/// A protected route of one format, and all that is needed to knock at it.
struct Door {
    forge: Forge,
    /// A key of the same format that nobody trusts.
    attacker: Forge,
    root: SymmetricKey,
    verifier: Arc<Verifier>,
    router: Router,
    honest: String,
}

static DOORS: LazyLock<Vec<Door>> = LazyLock::new(|| Format::ALL.into_iter().map(Door::new).collect());

fn party() -> Party {
    Party { issuer: "https://id.example".into(), audience: "api".into() }
}

fn subject() -> Subject {
    Subject {
        user_id: Uuid::from_u128(1),
        session_id: Uuid::from_u128(2),
        username: "Ålice".into(),
        roles: vec!["admin".into()],
    }
}

/// A new key of the format under `root`, and the forge that has its private half.
fn new_key(format: Format, root: &SymmetricKey) -> (SigningKey, Forge) {
    match format {
        Format::Shared(format) => (SigningKey::shared(format, root), Forge::shared(format, root)),
        Format::KeyPair(format) => {
            let pair = KeyPair::generate(format).unwrap();
            let forge = Forge::pair(pair.public_key().clone(), &private_bytes(&pair));
            (Arc::new(pair).into(), forge)
        }
    }
}

impl Door {
    fn new(format: Format) -> Self {
        let root = SymmetricKey::from_bytes([1; 32]);
        let (key, forge) = new_key(format, &root);
        let (_, attacker) = new_key(format, &SymmetricKey::from_bytes([2; 32]));
        let lifetime = Lifetime { now: START, expires_at: START + Duration::minutes(15) };
        let honest = Issuer::new(key, party())
            .issue(subject(), Uuid::from_u128(3), lifetime)
            .unwrap()
            .expose()
            .to_owned();
        let verifier = Arc::new(Verifier::new([forge.verifying.clone()], party()));
        let layer = BearerLayer::new(verifier.clone()).with_clock(Clock::fixed(START));
        let router = Router::new().route("/", get(async || "in")).layer(layer);
        Self { forge, attacker, root, verifier, router, honest }
    }

    /// Knocks with these `Authorization` fields, and returns the status and a problem's code.
    async fn knock(&self, fields: &[HeaderValue]) -> (u16, String) {
        let mut request = Request::get("/").body(Body::empty()).unwrap();
        for field in fields {
            request.headers_mut().append("authorization", field.clone());
        }
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        if status == StatusCode::OK {
            return (200, String::new());
        }
        let problem: Value = serde_json::from_slice(&body).unwrap();
        (status.as_u16(), problem["code"].as_str().unwrap().to_owned())
    }

    async fn lets_in(&self, token: &str) -> bool {
        self.knock(&[bearer(token).unwrap()]).await.0 == 200
    }

    /// Asserts that every token in the table is refused for one of the right reasons, and that the honest one passes
    /// before and after.
    async fn refuses<T: Into<String>>(
        &self,
        table: impl IntoIterator<Item = (T, String)>,
        why: &[Rejection],
    ) {
        assert!(self.lets_in(&self.honest).await, "{}: honest, before", self.forge.format);
        for (what, token) in table {
            let what = format!("{}: {}: {token:.400}", self.forge.format, what.into());
            let rejection = self.verifier.verify(&token, START).err();
            assert!(rejection.is_some_and(|found| why.contains(&found)), "{rejection:?} {what}");
            // A token that cannot be the value of a header field never gets into a request.
            let Some(field) = bearer(&token) else { continue };
            let code = if rejection == Some(Rejection::Expired) { "token_expired" } else { "invalid_token" };
            assert_eq!(self.knock(&[field]).await, (401, code.to_owned()), "{what}");
        }
        assert!(self.lets_in(&self.honest).await, "{}: honest, after", self.forge.format);
    }

    /// Why a JWT with another algorithm that names our key is refused.
    fn not_of_ours(&self) -> Rejection {
        if self.forge.is_jwt() { Rejection::WrongAlgorithm } else { Rejection::UnknownKey }
    }

    /// The honest token's claims, as JSON in its format.
    fn claims(&self) -> Value {
        json!({
            "iss": "https://id.example", "sub": Uuid::from_u128(1).to_string(), "aud": "api",
            "iat": self.time(0), "nbf": self.time(0), "exp": self.time(900),
            "jti": Uuid::from_u128(3).to_string(), "sid": Uuid::from_u128(2).to_string(),
            "username": "Ålice", "roles": ["admin"], "token_use": "access",
        })
    }

    /// The time `seconds` after the start.
    fn time(&self, seconds: i64) -> Value {
        let time = START.truncate_to_second() + Duration::seconds(seconds);
        if self.forge.is_jwt() { time.unix_timestamp().into() } else { time.format(&Rfc3339).unwrap().into() }
    }

    /// The honest claims with one of them replaced.
    fn claims_with(&self, name: &str, value: impl Into<Value>) -> String {
        let mut claims = self.claims();
        claims[name] = value.into();
        claims.to_string()
    }

    /// A table of the public key in all the forms in which people pass it around.
    fn public_key_texts(&self) -> Vec<(&'static str, Vec<u8>)> {
        let mut texts = Vec::new();
        if let VerifyingKey::Public(key) = &self.forge.verifying {
            let text = key.to_string();
            texts.push(("as it is published", text.clone().into_bytes()));
            if let Ok(jwk) = serde_json::from_str::<Value>(&text) {
                texts.push(("JWK, spaced out", serde_json::to_vec_pretty(&jwk).unwrap()));
                for member in ["x", "y", "n"] {
                    if let Some(text) = jwk[member].as_str() {
                        texts.push(("base64url of a member", text.as_bytes().to_vec()));
                        texts.push(("a member", crate::forge::decode(text)));
                    }
                }
            } else {
                let text = text.trim_start_matches("k4.public.");
                texts.push(("base64url", text.as_bytes().to_vec()));
                texts.push(("raw", crate::forge::decode(text)));
            }
        }
        if let Some((der, raw)) = self.forge.secret.public_der_and_raw() {
            let base64 = STANDARD.encode(&der);
            let lines: Vec<_> =
                base64.as_bytes().chunks(64).map(|line| str::from_utf8(line).unwrap()).collect();
            let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----", lines.join("\n"));
            texts.push(("PEM with a last newline", format!("{pem}\n").into_bytes()));
            texts.push(("PEM of Windows", format!("{pem}\n").replace('\n', "\r\n").into_bytes()));
            texts.push(("PEM", pem.into_bytes()));
            texts.push(("DER", der));
            texts.push(("base64 of DER", base64.into_bytes()));
            texts.push(("point or modulus", raw.clone()));
            texts.push(("point without its first byte", raw[1..].to_vec()));
            texts.push((
                "hexadecimal",
                raw.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into(),
            ));
        }
        texts
    }
}

fn bearer(token: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(&format!("Bearer {token}")).ok()
}

/// A JWT header with this `alg` and `kid`.
fn header(alg: &str, kid: &str) -> String {
    format!(r#"{{"typ":"at+jwt","alg":"{alg}","kid":"{kid}"}}"#)
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Why a token that was changed at random can be refused.
const TAMPERED: &[Rejection] =
    &[Rejection::Malformed, Rejection::UnknownKey, Rejection::WrongAlgorithm, Rejection::Forged];

#[tokio::test]
async fn a_token_that_is_altered_or_cut_anywhere_is_refused() {
    for door in &*DOORS {
        let token = &door.honest;
        let altered = (0..token.len()).map(|i| {
            let mut bytes = token.clone().into_bytes();
            bytes[i] = if bytes[i] == b'A' { b'B' } else { b'A' };
            (format!("character {i}"), String::from_utf8(bytes).unwrap())
        });
        let cut = (0..token.len()).map(|i| (format!("cut at {i}"), token[..i].to_owned()));
        let headless = (1..token.len()).step_by(7).map(|i| (format!("from {i} on"), token[i..].to_owned()));
        door.refuses(altered.chain(cut.skip(1)).chain(headless), TAMPERED).await;

        // The last character of a part may have bits that encode nothing.
        let ends = token.match_indices('.').map(|(end, _)| end).chain([token.len()]).map(|end| end - 1);
        let mut table = Vec::new();
        for end in ends {
            for &other in ALPHABET.iter().filter(|&&other| other != token.as_bytes()[end]) {
                let mut bytes = token.clone().into_bytes();
                bytes[end] = other;
                table.push((format!("the last of a part at {end}"), String::from_utf8(bytes).unwrap()));
            }
        }
        door.refuses(table, TAMPERED).await;
    }
}

#[tokio::test]
async fn a_token_has_one_spelling() {
    for door in &*DOORS {
        let token = &door.honest;
        let parts: Vec<_> = token.split('.').collect();
        let mut table = vec![
            ("upper case", token.to_uppercase()),
            ("lower case", token.to_lowercase()),
            ("twice", format!("{token}{token}")),
            ("twice, as parts", format!("{token}.{token}")),
            ("quoted", format!("\"{token}\"")),
            ("a list", format!("{token},{token}")),
            ("a further part", format!("{token}.AAAA")),
            ("a part before", format!("AAAA.{token}")),
            ("a full stop before", format!(".{token}")),
            ("a full stop after", format!("{token}.")),
            ("reversed", token.chars().rev().collect()),
            ("standard base64", format!("{}+/", &token[..token.len() - 2])),
            ("a byte order mark", format!("\u{feff}{token}")),
            ("full width", token.replacen('e', "ｅ", 1)),
        ];
        for space in [" ", "\t", "\n", "\r\n", "\0", "\u{a0}", "%20"] {
            table.push(("space inside", format!("{}{space}{}", &token[..20], &token[20..])));
            if space != " " {
                table.push(("space after", format!("{token}{space}")));
                table.push(("space before", format!("{space}{token}")));
            }
        }
        for i in 0..parts.len() {
            let with = |part: String| {
                let mut parts: Vec<_> = parts.iter().map(|part| (*part).to_owned()).collect();
                parts[i] = part;
                parts.join(".")
            };
            let without: Vec<_> = (0..parts.len()).filter(|&j| j != i).map(|j| parts[j]).collect();
            table.push(("a part is missing", without.join(".")));
            table.push(("a part is empty", with(String::new())));
            table.push(("a part is padded", with(format!("{}=", parts[i]))));
            table.push(("a part is padded", with(format!("{}==", parts[i]))));
            table.push(("a part is longer", with(format!("{}A", parts[i]))));
            table.push(("a part is longer", with(format!("{}AAAA", parts[i]))));
            table.push(("a part is there twice", with(format!("{0}.{0}", parts[i]))));
            table.push(("a part is another", with(parts[(i + 1) % parts.len()].to_owned())));
        }
        door.refuses(table, TAMPERED).await;
    }
}

#[tokio::test]
async fn another_key_under_our_key_id_makes_no_valid_token() {
    for door in &*DOORS {
        let claims = door.claims().to_string();
        assert!(door.lets_in(&door.forge.seal(&claims)).await, "{}", door.forge.format);
        let forged = door.attacker.seal_in(&door.forge.envelope(), &claims);
        door.refuses([("another key", forged)], &[Rejection::Forged]).await;
        door.refuses([("its own name", door.attacker.seal(&claims))], &[Rejection::UnknownKey]).await;
    }
}

#[tokio::test]
async fn a_token_of_one_format_opens_no_door_of_another() {
    for door in &*DOORS {
        for other in DOORS.iter().filter(|other| other.forge.format != door.forge.format) {
            let table = [
                ("as it is", other.honest.clone()),
                (
                    "under our key's name",
                    other.forge.seal_in(&door.forge.envelope(), other.claims().to_string()),
                ),
                ("with our claims", other.forge.seal_in(&door.forge.envelope(), door.claims().to_string())),
            ];
            door.refuses(table, TAMPERED).await;
        }
        let (_, rest) = door.honest.rsplit_once("v4.").unwrap_or(("", &door.honest));
        let (_, rest) = rest.split_once('.').unwrap();
        let relabelled = ["v4.local.", "v4.public.", "v3.local.", "v3.public.", "v2.local.", "v1.public."]
            .map(|label| (label, format!("{label}{rest}")))
            .into_iter()
            .filter(|(_, token)| *token != door.honest);
        door.refuses(relabelled, TAMPERED).await;
    }
}

#[tokio::test]
async fn the_bytes_of_a_key_for_one_format_do_not_work_for_another() {
    for door in &*DOORS {
        let claims = door.claims().to_string();
        let root = door.root.as_bytes();
        let derived = Forge::shared(SharedFormat::Hs256, &door.root);
        let Secret::Octets(derived) = derived.secret else { panic!("HS256 has a secret") };
        let mut table = Vec::new();
        for (what, secret) in [("the root", root.to_vec()), ("the derived key", derived)] {
            let as_paserk = SymmetricKey::from_bytes(secret.clone().try_into().unwrap());
            let paserk = paserk(&as_paserk);
            if door.forge.alg() != "HS256" || secret == root {
                let sign = |message: &[u8]| hs256(&secret, message);
                table.push((
                    format!("HMAC with {what}"),
                    jwt(&door.forge.envelope(), claims.as_bytes(), sign),
                ));
                table.push((
                    format!("HMAC with {what}, as HS256"),
                    jwt(&header("HS256", &door.forge.kid), claims.as_bytes(), sign),
                ));
                let sign = |message: &[u8]| hs256(paserk.as_bytes(), message);
                table.push((
                    format!("HMAC with the PASERK of {what}"),
                    jwt(&header("HS256", &door.forge.kid), claims.as_bytes(), sign),
                ));
            }
            if door.forge.format != Format::Shared(SharedFormat::V4Local) || secret != root {
                let local = Forge::shared(SharedFormat::V4Local, &as_paserk);
                let footer = format!(r#"{{"kid":"{}"}}"#, door.forge.kid);
                table.push((format!("v4.local with {what}"), local.seal_in(&footer, &claims)));
            }
        }
        door.refuses(table, TAMPERED).await;
    }
}

/// The PASERK of a key.
fn paserk(key: &SymmetricKey) -> String {
    format!("k4.local.{}", encode(key.as_bytes()))
}

#[tokio::test]
async fn no_spelling_of_none_is_an_algorithm() {
    for door in &*DOORS {
        let (claims, kid) = (door.claims().to_string(), &door.forge.kid);
        let mut table = Vec::new();
        let spellings =
            ["none", "None", "NONE", "nOnE", "", " none", "none ", "n\\u006fne", "null", "HS0", "*"];
        let headers = spellings.map(|alg| header(alg, kid)).into_iter().chain([
            format!(r#"{{"typ":"at+jwt","kid":"{kid}"}}"#),
            format!(r#"{{"typ":"at+jwt","alg":null,"kid":"{kid}"}}"#),
            format!(r#"{{"typ":"at+jwt","alg":false,"kid":"{kid}"}}"#),
            format!(r#"{{"typ":"at+jwt","alg":["{}"],"kid":"{kid}"}}"#, door.forge.alg()),
            format!(r#"{{"typ":"at+jwt","alg":{{}},"kid":"{kid}"}}"#),
            format!(r#"{{"typ":"at+jwt","ALG":"{}","kid":"{kid}"}}"#, door.forge.alg()),
        ]);
        for header in headers {
            for (what, signature) in
                [("empty", vec![]), ("zeros", vec![0; 64]), ("HMAC of no key", hs256(b"", b""))]
            {
                table.push((
                    format!("{header}, signature: {what}"),
                    jwt(&header, claims.as_bytes(), |_| signature),
                ));
            }
            table.push((header.clone(), format!("{}.{}", encode(&header), encode(&claims))));
            // Even the right signature does not help.
            if door.forge.is_jwt() {
                table.push((format!("{header}, signed"), door.forge.seal_in(&header, &claims)));
            }
        }
        // A JWT cannot name a PASETO's key.
        let why = [Rejection::Malformed, door.not_of_ours()];
        door.refuses(table, &why).await;

        // The right algorithm, and zeros for a signature.
        let empty = [0, 1, 32, 64, 256].map(|length| {
            (format!("{length} zeros"), jwt(&door.forge.envelope(), claims.as_bytes(), |_| vec![0; length]))
        });
        let why = if door.forge.is_jwt() { Rejection::Forged } else { Rejection::Malformed };
        door.refuses(empty, &[why]).await;
    }
}

#[tokio::test]
async fn a_public_key_is_no_secret_for_hs256() {
    for door in &*DOORS {
        let claims = door.claims().to_string();
        let mut table = Vec::new();
        for (what, secret) in door.public_key_texts() {
            for (name, header) in
                [("alg HS256", header("HS256", &door.forge.kid)), ("its own alg", door.forge.envelope())]
            {
                let forged = jwt(&header, claims.as_bytes(), |message| hs256(&secret, message));
                table.push((format!("HMAC with the public key, {what}, {name}"), forged));
            }
        }
        assert_eq!(table.is_empty(), matches!(door.forge.format, Format::Shared(_)));
        door.refuses(table, TAMPERED).await;
    }
}

#[tokio::test]
async fn the_header_does_not_choose_the_algorithm() {
    const ALGORITHMS: [&str; 13] = [
        "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS512", "ES256", "ES256K", "EdDSA",
        "Ed25519", "dir",
    ];
    for door in DOORS.iter().filter(|door| door.forge.is_jwt()) {
        let claims = door.claims().to_string();
        let own = door.forge.own_signature().unwrap();
        let mut table = Vec::new();
        for alg in ALGORITHMS.into_iter().filter(|alg| *alg != door.forge.alg()) {
            let header = header(alg, &door.forge.kid);
            table.push((format!("{alg}, signed by the right key"), door.forge.seal_in(&header, &claims)));
            for other in DOORS.iter().filter(|other| other.forge.alg() == alg) {
                table.push((
                    format!("{alg}, signed by a key for that"),
                    other.forge.seal_in(&header, &claims),
                ));
            }
        }
        for alg in [
            door.forge.alg().to_lowercase(),
            format!("{} ", door.forge.alg()),
            door.forge.alg().to_uppercase(),
        ] {
            if alg != door.forge.alg() {
                table.push((
                    format!("alg {alg:?}"),
                    door.forge.seal_in(&header(&alg, &door.forge.kid), &claims),
                ));
            }
        }
        door.refuses(table, &[Rejection::WrongAlgorithm]).await;

        // The same key with the other padding or the other form of signature.
        let other = match own {
            Signature::Rs256 => Signature::Ps256,
            Signature::Ps256 => Signature::Rs256,
            Signature::Es256 => Signature::Es256Der,
            _ => continue,
        };
        let forged =
            jwt(&door.forge.envelope(), claims.as_bytes(), |message| door.forge.secret.sign(other, message));
        door.refuses([(format!("{other:?}"), forged)], &[Rejection::Forged]).await;
    }
}

#[tokio::test]
async fn a_token_brings_no_key_along() {
    for door in &*DOORS {
        let (claims, kid, alg) = (door.claims().to_string(), &door.forge.kid, door.forge.alg());
        let attacker = match &door.attacker.verifying {
            VerifyingKey::Public(key) => key.to_string(),
            _ => format!(r#"{{"kty":"oct","k":"{}"}}"#, encode([2; 32])),
        };
        let jwk = if attacker.starts_with('{') { attacker } else { json!(attacker).to_string() };
        let der = door.attacker.secret.public_der_and_raw().map(|(der, _)| der).unwrap_or_default();
        let certificate = STANDARD.encode(der);
        let members = [
            format!(r#""jwk":{jwk}"#),
            format!(r#""jwks":{{"keys":[{jwk}]}}"#),
            format!(r#""x5c":["{certificate}"]"#),
            r#""jku":"https://attacker.example/jwks.json""#.to_owned(),
            r#""jku":"file:///dev/zero""#.to_owned(),
            r#""x5u":"https://attacker.example/cert.pem""#.to_owned(),
            format!(r#""x5t":"{}""#, encode([0; 20])),
            format!(r#""x5t#S256":"{}""#, encode([0; 32])),
            r#""wpk":"k4.local-wrap.pie.AAAA""#.to_owned(),
        ];
        let mut table = Vec::new();
        for member in members {
            for kid in [kid, &door.attacker.kid] {
                let envelope = if door.forge.is_jwt() {
                    format!(r#"{{"typ":"at+jwt","alg":"{alg}","kid":"{kid}",{member}}}"#)
                } else {
                    format!(r#"{{"kid":"{kid}",{member}}}"#)
                };
                table.push((
                    format!("{envelope}, of the attacker"),
                    door.attacker.seal_in(&envelope, &claims),
                ));
                table.push((format!("{envelope}, of ours"), door.forge.seal_in(&envelope, &claims)));
            }
        }
        door.refuses(table, &[Rejection::Malformed]).await;
    }
}

#[tokio::test]
async fn a_key_id_selects_one_of_our_keys_or_nothing() {
    for door in &*DOORS {
        let (claims, kid) = (door.claims().to_string(), &door.forge.kid);
        let with = |kid: &str| match door.forge.alg() {
            "" => format!(r#"{{"kid":{kid}}}"#),
            alg => format!(r#"{{"typ":"at+jwt","alg":"{alg}","kid":{kid}}}"#),
        };
        let sealed = |kid: &str| (format!("kid {kid:.200}"), door.forge.seal_in(&with(kid), &claims));
        assert!(door.lets_in(&sealed(&format!(r#""{kid}""#)).1).await, "{}", door.forge.format);

        let unknown = [
            "",
            " ",
            "../../etc/passwd",
            "../../../../../../dev/null",
            "' OR '1'='1",
            "x' UNION SELECT 'AAAA' --",
            "; DROP TABLE signing_keys",
            "| cat /etc/passwd",
            "%00",
            "https://attacker.example/key",
            "*",
            "0",
            "k4.lid.",
            "k4.pid.",
            "Ålice",
            &kid.to_lowercase(),
            &kid.to_uppercase(),
            &kid[1..],
            &kid[..kid.len() - 1],
            &format!("{kid} "),
            &format!(" {kid}"),
            &format!("{kid}="),
            &format!("{kid}{kid}"),
            &door.attacker.kid,
            &"A".repeat(5_000),
        ];
        door.refuses(unknown.map(|kid| sealed(&format!(r#""{kid}""#))), &[Rejection::UnknownKey]).await;

        let escaped = format!(r#""\u{:04x}{}""#, kid.as_bytes()[0], &kid[1..]);
        let malformed = [
            "null",
            "0",
            "true",
            "[]",
            "{}",
            "-1e400",
            &format!(r#"["{kid}"]"#),
            &format!(r#"{{"kid":"{kid}"}}"#),
            // A second spelling of the same kid.
            &escaped,
            "\"\\u0000\"",
            "\"\n\"",
            "\"\0\"",
            "\"\u{7f}\\n\"",
            "\"\\ud800\"",
            &format!(r#""{kid}","kid":"{kid}""#),
            &format!(r#""{kid}","kid":"{}""#, door.attacker.kid),
            &format!(r#""{}","kid":"{kid}""#, door.attacker.kid),
            "",
        ];
        door.refuses(malformed.map(sealed), &[Rejection::Malformed]).await;

        let missing = with("0").replace(r#","kid":0"#, "").replace(r#""kid":0"#, "");
        door.refuses([(&*missing, door.forge.seal_in(&missing, &claims))], &[Rejection::Malformed]).await;
        // A kid of 7 KB leaves no room for the claims; the length limit is checked first.
        let long = format!(r#""{}""#, "A".repeat(7_000));
        door.refuses([sealed(&long)], &[Rejection::TooLong]).await;
        let short = door.forge.seal_in(&with(&format!(r#""{}""#, "A".repeat(5_400))), "{}");
        assert!(short.len() <= gatepass::token::MAX_TOKEN_BYTES);
        door.refuses([("a kid of 5.4 KB", short)], &[Rejection::UnknownKey]).await;
    }
}

#[tokio::test]
async fn a_header_is_exactly_ours() {
    for door in &*DOORS {
        let claims = door.claims().to_string();
        let own = door.forge.envelope();
        let mut table = vec![
            ("not an object", "[]".to_owned()),
            ("nothing", String::new()),
            ("null", "null".to_owned()),
            ("a text", r#""kid""#.to_owned()),
            ("two", format!("{own}{own}")),
            ("something behind", format!("{own} x")),
            ("open", own.trim_end_matches('}').to_owned()),
            ("a trailing comma", own.replace('}', ",}")),
            ("single quotes", own.replace('"', "'")),
            ("a byte order mark", format!("\u{feff}{own}")),
            ("a comment", format!("/**/{own}")),
        ];
        for member in [
            r#""crit":["b64"]"#,
            r#""crit":["exp"]"#,
            r#""crit":[]"#,
            r#""b64":false"#,
            r#""b64":true"#,
            r#""b64":false,"crit":["b64"]"#,
            r#""zip":"DEF""#,
            r#""cty":"JWT""#,
            r#""enc":"A128GCM""#,
            r#""epk":{}"#,
            r#""p2c":2147483647"#,
            r#""iss":"https://id.example""#,
            r#""x":null"#,
        ] {
            table.push((member, own.replace('}', &format!(",{member}}}"))));
        }
        if door.forge.is_jwt() {
            let alg = door.forge.alg();
            table.push(("alg twice", own.replace('}', &format!(r#","alg":"{alg}"}}"#))));
            table.push(("alg twice, none last", own.replace('}', r#","alg":"none"}"#)));
            table.push(("alg twice, none first", own.replace('{', r#"{"alg":"none","#)));
            table.push(("typ twice", own.replace('{', r#"{"typ":"at+jwt","#)));
            table.push(("an array of its values", format!(r#"["at+jwt","{alg}","{}"]"#, door.forge.kid)));
        } else {
            table.push(("an array of its values", format!(r#"["{}"]"#, door.forge.kid)));
            table.push(("alg none", own.replace('}', r#","alg":"none"}"#)));
        }
        let sealed = table.into_iter().map(|(what, header)| (what, door.forge.seal_in(&header, &claims)));
        door.refuses(sealed, &[Rejection::Malformed]).await;

        // RFC 7797: under this header, the claims are signed unencoded.
        let header = own.replace('}', r#","b64":false,"crit":["b64"]}"#);
        if let Some(signature) = door.forge.own_signature() {
            let message = format!("{}.{claims}", encode(&header));
            let signature = encode(door.forge.secret.sign(signature, message.as_bytes()));
            let table = [
                ("claims detached", format!("{}..{signature}", encode(&header))),
                ("claims encoded", format!("{}.{}.{signature}", encode(&header), encode(&claims))),
                ("claims as they are", format!("{message}.{signature}")),
            ];
            door.refuses(table, &[Rejection::Malformed]).await;
        }
    }
}

#[tokio::test]
async fn only_at_jwt_is_the_type_of_an_access_token() {
    for door in DOORS.iter().filter(|door| door.forge.is_jwt()) {
        let claims = door.claims().to_string();
        let typed = |typ: &str| door.forge.envelope().replace(r#""typ":"at+jwt","#, typ);
        assert!(door.lets_in(&door.forge.seal_in(&typed(r#""typ":"at+jwt","#), &claims)).await);
        let table = [
            "",
            r#""typ":null,"#,
            r#""typ":"JWT","#,
            r#""typ":"jwt","#,
            r#""typ":"","#,
            r#""typ":"AT+JWT","#,
            r#""typ":"at+jwt ","#,
            r#""typ":"application/at+jwt","#,
            r#""typ":"rt+jwt","#,
            r#""typ":"dpop+jwt","#,
            r#""typ":"JOSE","#,
        ];
        let sealed = table.map(|typ| (typ, door.forge.seal_in(&typed(typ), &claims)));
        door.refuses(sealed, &[Rejection::WrongType]).await;
        let table = [r#""typ":1,"#, r#""typ":["at+jwt"],"#, r#""typ":"at+jwt","typ":"at+jwt","#];
        let sealed = table.map(|typ| (typ, door.forge.seal_in(&typed(typ), &claims)));
        door.refuses(sealed, &[Rejection::Malformed]).await;
    }
}

/// Faults in the order of the checks that find them. From outside, only an expired token can be told from the others:
/// `token_expired`.
#[tokio::test]
async fn a_token_with_two_faults_is_refused_by_the_earlier_check() {
    for door in &*DOORS {
        let faults = [
            ("roles", json!("admin"), NO_CLAIMS[0]),
            ("token_use", json!("refresh"), Rejection::WrongUse),
            // This one is in the header, not in the claims.
            ("typ", json!("JWT"), Rejection::WrongType),
            ("iss", json!("https://evil.example"), Rejection::WrongIssuer),
            ("aud", json!("web"), Rejection::WrongAudience),
            ("nbf", door.time(3600), Rejection::NotYetValid),
            ("exp", door.time(-1), Rejection::Expired),
            ("sub", json!("alice"), Rejection::InvalidSubject),
        ];
        // A PASETO has no type that could be wrong.
        let faults: Vec<_> =
            faults.into_iter().filter(|(name, ..)| *name != "typ" || door.forge.is_jwt()).collect();
        let seal = |forge: &Forge, faults: &[&(&str, Value, Rejection)]| {
            let (mut claims, mut envelope) = (door.claims(), door.forge.envelope());
            for (name, value, _) in faults {
                match *name {
                    "typ" => envelope = envelope.replace("at+jwt", value.as_str().unwrap()),
                    name => claims[name] = value.clone(),
                }
            }
            forge.seal_in(&envelope, claims.to_string())
        };
        for (i, earlier) in faults.iter().enumerate() {
            for later in &faults[i + 1..] {
                let what = format!("{} and {}", earlier.0, later.0);
                door.refuses([(what, seal(&door.forge, &[earlier, later]))], &[earlier.2]).await;
            }
            // Whose claims they are is checked before the claims.
            let what = format!("another key and {}", earlier.0);
            door.refuses([(what, seal(&door.attacker, &[earlier]))], &[Rejection::Forged]).await;
            let unknown =
                door.forge.seal_in(&door.attacker.envelope(), door.claims_with(earlier.0, earlier.1.clone()));
            door.refuses([(format!("an unknown key and {}", earlier.0), unknown)], &[Rejection::UnknownKey])
                .await;
        }
    }
}

const NO_CLAIMS: &[Rejection] = &[Rejection::Claims(gatepass::token::InvalidClaims)];

#[tokio::test]
async fn every_claim_must_occur_once_with_the_right_type() {
    for door in &*DOORS {
        let claims = door.claims();
        let text = claims.to_string();
        let mut table = Vec::new();
        for (name, value) in claims.as_object().unwrap() {
            let mut without = claims.clone();
            without.as_object_mut().unwrap().remove(name);
            table.push((format!("no {name}"), without.to_string()));
            table.push((format!("{name} twice"), text.replacen('{', &format!(r#"{{"{name}":{value},"#), 1)));
            table.push((
                format!("{name} twice, spelt in two ways"),
                text.replacen('{', &format!(r#"{{"\u{:04x}{}":{value},"#, name.as_bytes()[0], &name[1..]), 1),
            ));
            table.push((
                format!("{name} in upper case"),
                text.replace(&format!("\"{name}\":"), &format!("\"{}\":", name.to_uppercase())),
            ));
            let wrong =
                [json!(null), json!(true), json!(-1.5), json!({}), json!([[]]), json!([1]), json!([null])];
            for wrong in wrong {
                table.push((format!("{name} is {wrong}"), door.claims_with(name, wrong)));
            }
            if !value.is_array() {
                table.push((format!("{name} is a list"), door.claims_with(name, json!([value]))));
                table.push((format!("{name} is an empty list"), door.claims_with(name, json!([]))));
            }
            if !value.is_string() {
                table.push((format!("{name} is a text"), door.claims_with(name, value.to_string())));
            }
            if !value.is_number() {
                table.push((format!("{name} is a number"), door.claims_with(name, 1)));
            }
        }
        for name in ["iat", "nbf", "exp"] {
            let times: &[&str] = if door.forge.is_jwt() {
                &[
                    "1e9",
                    "1.0",
                    "-0.0",
                    "1767323045.5",
                    "9223372036854775808",
                    "1e400",
                    "253402300800",
                    "0x10",
                ]
            } else {
                &[
                    r#""""#,
                    r#""never""#,
                    r#""2026-01-02""#,
                    r#""2026-01-02T03:19:05""#,
                    r#""2026-13-02T03:19:05Z""#,
                    r#""2026-02-30T03:19:05Z""#,
                    r#""10000-01-02T03:19:05Z""#,
                    r#""-001-01-02T03:19:05Z""#,
                    r#"" 2026-01-02T03:19:05Z""#,
                    r#""2026-01-02T03:19:05Z ""#,
                    r#""2026-01-02T03:19:05+99:00""#,
                    r#""1767323945""#,
                ]
            };
            for time in times {
                let marked = door.claims_with(name, "MARK").replace(r#""MARK""#, time);
                table.push((format!("{name} is {time}"), marked));
            }
        }
        table.extend(
            [
                ("white space", " ".to_owned()),
                ("an empty object", "{}".to_owned()),
                ("a list", "[]".to_owned()),
                ("null", "null".to_owned()),
                ("a text", Value::from(&*text).to_string()),
                ("in a list", format!("[{text}]")),
                ("twice", format!("{text}{text}")),
                ("something behind", format!("{text}\0")),
                ("open", text.trim_end_matches('}').to_owned()),
                ("a byte order mark", format!("\u{feff}{text}")),
                ("a lone surrogate", text.replace("Ålice", "\\ud800")),
                ("a line break in a text", text.replace("Ålice", "A\nB")),
                ("NaN", text.replace("[\"admin\"]", "NaN")),
            ]
            .map(|(what, claims)| (what.to_owned(), claims)),
        );
        let ordered =
            ["iss", "sub", "aud", "iat", "nbf", "exp", "jti", "sid", "username", "roles", "token_use"];
        let values = Value::from(ordered.map(|name| claims[name].clone()).to_vec());
        table.push(("an array of the values".to_owned(), values.to_string()));

        assert!(door.lets_in(&door.forge.seal(&text)).await, "{}", door.forge.format);
        let sealed = table.into_iter().map(|(what, claims)| (what, door.forge.seal(claims)));
        door.refuses(sealed, NO_CLAIMS).await;

        let no_text = [text.as_bytes(), b"\xff"].concat();
        let broken = text
            .replace("Ålice", "A")
            .into_bytes()
            .iter()
            .map(|&b| if b == b'A' { 0xff } else { b })
            .collect::<Vec<_>>();
        // pasetors refuses a message that is not UTF-8 in the same way as a wrong tag.
        let why = [NO_CLAIMS[0], Rejection::Forged];
        door.refuses([("no UTF-8", door.forge.seal(no_text)), ("no UTF-8", door.forge.seal(broken))], &why)
            .await;
    }
}

#[tokio::test]
async fn deep_nesting_does_not_overflow_the_stack() {
    for door in &*DOORS {
        let claims = door.claims().to_string();
        let nested =
            |open: &str, close: &str, depth: usize| format!("{}{}", open.repeat(depth), close.repeat(depth));
        // 10 000 levels are 20 KB, over the limit. So as deep as the limit allows, within the claims and in their
        // place.
        let (mut inside, mut table) = (Vec::new(), Vec::new());
        for (open, close, depth) in
            [("[", "]", 2_000), ("{\"a\":", "}", 0), ("[", "", 4_000), ("[[[[[[[[", "", 500)]
        {
            let value = if depth == 0 {
                format!("{}1{}", open.repeat(600), close.repeat(600))
            } else {
                nested(open, close, depth)
            };
            table.push(("roles", claims.replace(r#"["admin"]"#, &value)));
            table.push(("instead of the claims", value.clone()));
            inside.push(claims.replacen('{', &format!(r#"{{"x":{value},"#), 1));
        }
        let sealed: Vec<_> =
            table.into_iter().map(|(what, claims)| (what, door.forge.seal(claims))).collect();
        assert!(sealed.iter().all(|(_, token)| token.len() <= gatepass::token::MAX_TOKEN_BYTES));
        door.refuses(sealed, NO_CLAIMS).await;
        // In an unknown claim, nesting is skipped without using the stack.
        for claims in &inside {
            let token = door.forge.seal(claims);
            assert!(token.len() <= gatepass::token::MAX_TOKEN_BYTES);
            let is_json = serde_json::from_str::<serde::de::IgnoredAny>(claims).is_ok();
            assert_eq!(door.lets_in(&token).await, is_json, "{}: {claims:.100}", door.forge.format);
        }
        // The header is read before any signature is checked.
        let header = door.forge.envelope().replace('}', &format!(r#","x":{}}}"#, nested("[", "]", 2_500)));
        let table = [
            ("header", door.attacker.seal_in(&header, "{}")),
            ("header", door.attacker.seal_in(&nested("[", "", 5_000), "{}")),
            ("header", door.attacker.seal_in(&nested("{\"kid\":", "", 800), "{}")),
        ];
        door.refuses(table, &[Rejection::Malformed]).await;
        let deep = nested("[", "]", 10_000);
        let table = [
            ("claims", door.forge.seal(claims.replace(r#"["admin"]"#, &deep))),
            ("claims", door.forge.seal(&deep)),
            ("header", door.forge.seal_in(&deep, &claims)),
        ];
        door.refuses(table, &[Rejection::TooLong]).await;
    }
}

#[tokio::test]
async fn every_claim_must_have_an_acceptable_value() {
    for door in &*DOORS {
        let is_jwt = door.forge.is_jwt();
        let last = if is_jwt { json!(253_402_300_799_i64) } else { json!("9999-12-31T23:59:59Z") };
        let before_1970 = if is_jwt { json!(-1) } else { json!("0000-01-01T00:00:00Z") };
        let mut table = vec![
            ("exp", door.time(0), Rejection::Expired),
            ("exp", door.time(-1), Rejection::Expired),
            ("exp", before_1970.clone(), Rejection::Expired),
            ("nbf", door.time(32), Rejection::NotYetValid),
            ("iat", door.time(32), Rejection::NotYetValid),
            ("nbf", last.clone(), Rejection::NotYetValid),
            ("iat", last.clone(), Rejection::NotYetValid),
        ];
        for other in [
            "",
            "https://id.example/",
            "https://ID.example",
            "http://id.example",
            "https://id.example\0",
            "id.example",
        ] {
            table.push(("iss", json!(other), Rejection::WrongIssuer));
        }
        for other in ["", "API", "api ", "api,web", "ap", "*"] {
            table.push(("aud", json!(other), Rejection::WrongAudience));
        }
        for other in ["", "refresh", "Access", "access ", "id", "session"] {
            table.push(("token_use", json!(other), Rejection::WrongUse));
        }
        for name in ["sub", "jti", "sid"] {
            for other in [
                "",
                "1",
                "alice",
                "00000000000000000000000000000001",
                "{00000000-0000-0000-0000-000000000001}",
                "urn:uuid:00000000-0000-0000-0000-000000000001",
                "00000000-0000-0000-0000-00000000000A",
                "00000000-0000-0000-0000-000000000001 ",
                "' OR 1=1 --",
            ] {
                table.push((name, json!(other), Rejection::InvalidSubject));
            }
        }
        for (name, value, why) in table {
            let token = door.forge.seal(door.claims_with(name, value.clone()));
            door.refuses([(format!("{name} is {value}"), token)], &[why]).await;
        }
        for (name, value) in [
            ("exp", last),
            ("iat", before_1970.clone()),
            ("nbf", before_1970),
            ("nbf", door.time(30)),
            ("exp", door.time(1)),
        ] {
            let token = door.forge.seal(door.claims_with(name, value.clone()));
            assert!(door.lets_in(&token).await, "{}: {name} is {value}", door.forge.format);
        }
    }
}

#[tokio::test]
async fn a_paseto_has_our_footer_and_no_implicit_assertion() {
    for door in DOORS.iter().filter(|door| !door.forge.is_jwt()) {
        let claims = door.claims().to_string();
        let (kid, own) = (&door.forge.kid, door.forge.envelope());
        let seal = |footer, implicit| door.forge.paseto(footer, claims.as_bytes(), implicit);
        assert!(door.lets_in(&seal(Some(&own), None)).await);
        let quoted = format!(r#""{kid}""#);
        let footers =
            [None, Some(""), Some("{}"), Some(kid.as_str()), Some(&quoted), Some("kid"), Some("\0")];
        let sealed = footers.map(|footer| (format!("footer {footer:?}"), seal(footer, None)));
        door.refuses(sealed, &[Rejection::Malformed]).await;

        let asserted = [&b"x"[..], b"\0", b"{}", claims.as_bytes()]
            .map(|text| ("asserted", seal(Some(&own), Some(text))));
        door.refuses(asserted, &[Rejection::Forged]).await;

        // Another footer on an honest token, and an honest footer on a token without one.
        let (body, _) = door.honest.rsplit_once('.').unwrap();
        let other = encode(format!(r#"{{"kid":"{kid}" }}"#));
        let table = [
            ("spaced out", format!("{body}.{other}")),
            ("footer added", format!("{}.{}", seal(None, None), encode(&own))),
        ];
        door.refuses(table, &[Rejection::Forged]).await;
        let unnamed = [("footer taken away", body.to_owned()), ("empty footer", format!("{body}."))];
        door.refuses(unnamed, &[Rejection::Malformed]).await;
    }
}

/// `a + b` of little-endian numbers.
fn add(a: &[u8], b: &[u8]) -> Vec<u8> {
    let mut carry = 0;
    a.iter()
        .zip(b)
        .map(|(a, b)| {
            let sum = u16::from(*a) + u16::from(*b) + carry;
            carry = sum >> 8;
            sum.to_le_bytes()[0]
        })
        .collect()
}

#[tokio::test]
async fn a_signature_has_one_form() {
    // The order of Ed25519's group, little-endian.
    const L: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    for door in &*DOORS {
        let parts: Vec<_> = door.honest.split('.').collect();
        let (at, payload) = if door.forge.is_jwt() {
            (2, Vec::new())
        } else {
            let mut bytes = crate::forge::decode(parts[2]);
            let signature = bytes.len() - if parts[1] == "local" { 32 } else { 64 };
            (2, bytes.drain(..signature).collect())
        };
        let signature = crate::forge::decode(parts[at])[payload.len()..].to_vec();
        let with = |signature: &[u8]| {
            let mut parts: Vec<_> = parts.iter().map(|part| (*part).to_owned()).collect();
            parts[at] = encode([&payload[..], signature].concat());
            parts.join(".")
        };
        assert_eq!(with(&signature), door.honest);
        let n = signature.len();
        let mut table = vec![
            ("nothing", vec![]),
            ("zeros", vec![0; n]),
            ("ones", vec![0xff; n]),
            ("one byte more", [&signature[..], &[0]].concat()),
            ("one byte before", [&[0], &signature[..]].concat()),
            ("one byte less", signature[..n - 1].to_vec()),
            ("the first half", signature[..n / 2].to_vec()),
            ("twice", signature.repeat(2)),
            ("reversed", signature.iter().rev().copied().collect()),
            ("halves exchanged", [&signature[n / 2..], &signature[..n / 2]].concat()),
        ];
        match door.forge.format.name() {
            "v4.public" | "jwt:EdDSA" => {
                let (r, s) = signature.split_at(32);
                table.push(("S + L", [r, &add(s, &L)].concat()));
                // Small order: the neutral element, whatever the key.
                table.push(("R of order one, S of zero", [&[1][..], &[0; 63]].concat()));
            }
            "jwt:ES256" => {
                table.push(("r and s of one", [&[0; 31][..], &[1], &[0; 31], &[1]].concat()));
                table.push(("r of zero", [&[0; 32][..], &signature[32..]].concat()));
                table.push(("s of zero", [&signature[..32], &[0; 32]].concat()));
            }
            _ => {}
        }
        let table = table.into_iter().map(|(what, signature)| (what, with(&signature)));
        door.refuses(table, &[Rejection::Forged, Rejection::Malformed]).await;
    }
}

#[tokio::test]
async fn anything_but_an_access_token_is_refused() {
    for door in &*DOORS {
        let refresh = format!("gpr_{}", encode([7; 52]));
        let table = [
            ("a refresh token", refresh.clone()),
            ("a refresh token in parts", format!("gpr_.{}.{}", encode("{}"), encode([7; 32]))),
            ("a client secret", format!("gps_{}", encode([7; 32]))),
            ("a session id", Uuid::from_u128(2).to_string()),
            ("Basic credentials", STANDARD.encode("alice:secret-horse-battery-9")),
            ("null", "null".to_owned()),
            ("undefined", "undefined".to_owned()),
            ("a full stop", ".".to_owned()),
            ("full stops", "..".to_owned()),
            ("five parts", "a.b.c.d.e".to_owned()),
            ("JSON", door.claims().to_string()),
            ("the header of a PASETO", "v4.local.".to_owned()),
            ("the header of a PASETO", "v4.public.".to_owned()),
            ("an empty PASETO", "v4.local.AA.AA".to_owned()),
            ("a short signature", "v4.public.AAAA.AAAA".to_owned()),
            ("8 KiB of full stops", ".".repeat(8_192)),
            ("8 KiB of letters", "A".repeat(8_192)),
        ];
        // Which reason it is depends on the order of pasetors' own checks.
        let why = [Rejection::Malformed, Rejection::UnknownKey, Rejection::Forged];
        door.refuses(table, &why).await;

        let long = door.claims_with("username", "A".repeat(8_192));
        let table = [
            ("8 KiB and a byte", "A".repeat(8_193)),
            ("authentic, and too long", door.forge.seal(long)),
            ("the honest one, and 8 KiB behind it", format!("{}{}", door.honest, "A".repeat(8_192))),
            ("64 KB", "A.".repeat(32_768)),
        ];
        door.refuses(table, &[Rejection::TooLong]).await;
    }
}

#[tokio::test]
async fn a_request_has_one_bearer_token_and_in_one_place() {
    for door in &*DOORS {
        let honest = &door.honest;
        let forged = door.attacker.seal_in(&door.forge.envelope(), door.claims().to_string());
        let own = format!("Bearer {honest}");
        let table: &[(&[&str], &str)] = &[
            (&[], "missing_token"),
            (&[""], "missing_token"),
            (&[honest], "missing_token"),
            (&[&format!("Basic {honest}")], "missing_token"),
            (&[&format!("Token {honest}")], "missing_token"),
            (&[&format!("Bearer{honest}")], "missing_token"),
            (&[&format!("Bearer\t{honest}")], "missing_token"),
            (&[&format!("Bearer:{honest}")], "missing_token"),
            (&["Bearer"], "invalid_token"),
            (&["Bearer "], "invalid_token"),
            (&[&format!("Bearer Bearer {honest}")], "invalid_token"),
            (&[&format!("Bearer {honest} {honest}")], "invalid_token"),
            (&[&format!("Bearer {honest}, Bearer {honest}")], "invalid_token"),
            (&[&format!("Bearer {forged} {honest}")], "invalid_token"),
            (&[&own, &own], "invalid_token"),
            (&[&own, &format!("Bearer {forged}")], "invalid_token"),
            (&[&format!("Bearer {forged}"), &own], "invalid_token"),
            (&[&own, "Basic YTpi"], "invalid_token"),
            (&["Basic YTpi", &own], "invalid_token"),
            (&["", &own], "invalid_token"),
        ];
        for (fields, code) in table {
            let values: Vec<_> = fields.iter().map(|field| HeaderValue::from_str(field).unwrap()).collect();
            assert_eq!(door.knock(&values).await, (401, (*code).to_owned()), "{fields:?}");
        }
        for own in [own.clone(), format!("bearer {honest}"), format!("BEARER   {honest} ")] {
            assert_eq!(door.knock(&[own.parse().unwrap()]).await.0, 200, "{own}");
        }
    }
}

/// The same for the whole service, in its default format.
#[tokio::test]
async fn the_service_lets_nothing_in_but_its_own_access_tokens() {
    let app = App::new().await;
    app.register("alice").await;
    let alice = app.login("alice").await;
    let me = || app.get("/users/me");
    me().bearer(&alice).send().await.expect(200);

    let token = alice["access_token"].as_str().unwrap();
    let refresh = alice["refresh_token"].as_str().unwrap();
    let root: SymmetricKey = KEY.parse().unwrap();
    let claims = json!({
        "iss": "gatepass", "sub": alice["user"]["id"], "aud": "gatepass",
        "iat": "2026-01-02T03:04:05Z", "nbf": "2026-01-02T03:04:05Z", "exp": "2026-01-02T03:19:05Z",
        "jti": Uuid::from_u128(3).to_string(), "sid": Uuid::from_u128(2).to_string(),
        "username": "alice", "roles": ["admin"], "token_use": "access",
    });
    let mut numeric = claims.clone();
    let begin = START.truncate_to_second().unix_timestamp();
    for (name, seconds) in [("iat", 0), ("nbf", 0), ("exp", 900)] {
        numeric[name] = (begin + seconds).into();
    }
    let shared = |format| Forge::shared(format, &root);
    let other = Forge::shared(SharedFormat::V4Local, &SymmetricKey::from_bytes([9; 32]));
    let ours = shared(SharedFormat::V4Local);
    let kid = &ours.kid;
    let table = [
        ("a refresh token", refresh.to_owned()),
        ("another key under the name of ours", other.seal_in(&ours.envelope(), claims.to_string())),
        ("HS256 under the service's own root", shared(SharedFormat::Hs256).seal(numeric.to_string())),
        (
            "HMAC with the root",
            jwt(&header("HS256", kid), numeric.to_string().as_bytes(), |m| hs256(root.as_bytes(), m)),
        ),
        (
            "HMAC with the PASERK",
            jwt(&header("HS256", kid), numeric.to_string().as_bytes(), |m| hs256(KEY.as_bytes(), m)),
        ),
        ("alg none", jwt(&header("none", kid), numeric.to_string().as_bytes(), |_| vec![])),
        ("another use", ours.seal(claims.to_string().replace(r#""access""#, r#""refresh""#))),
        ("another audience", ours.seal(claims.to_string().replace(r#""aud":"gatepass""#, r#""aud":"web""#))),
        (
            "an implicit assertion",
            ours.paseto(Some(&ours.envelope()), claims.to_string().as_bytes(), Some(b"x")),
        ),
        ("cut", token[..token.len() - 1].to_owned()),
        ("too long", format!("{token}{}", "A".repeat(8_192))),
    ];
    for (what, token) in table {
        let answer = me().token(&token).send().await;
        assert!(answer.header("www-authenticate").contains("invalid_token"), "{what}");
        let problem = answer.expect_problem(401, "invalid_token");
        assert_eq!(problem["detail"], "The access token is not valid here.", "{what}");
    }
    me().token(token).token(token).send().await.expect_problem(401, "invalid_token");
    me().bearer(&alice).send().await.expect(200);
}

/// Runs the fuzz targets over their corpus (`fuzz/`), without a fuzzer.
#[test]
fn the_fuzz_targets_hold_on_their_corpus() {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let replay = |target: &str, run: &dyn Fn(&[u8])| {
        let files: Vec<_> = std::fs::read_dir(corpus.join(target)).unwrap().collect();
        assert!(!files.is_empty(), "{target}");
        for file in files {
            run(&std::fs::read(file.unwrap().path()).unwrap());
        }
    };
    for format in Format::ALL {
        let name = format.name();
        let target = name.replace(['.', ':'], "_").to_lowercase();
        replay(&target, &|input| fuzzing::token(name, input));
        for honest in &fuzzing::bench(name).honest {
            fuzzing::token(name, honest.as_bytes());
        }
    }
    replay("claims", &fuzzing::claims);
    replay("envelope", &fuzzing::envelope);
}
