//! Makes tests/fuzzing.json, with new keys, and the corpus that the targets begin with:
//! `cargo run --manifest-path fuzz/Cargo.toml --example seeds`, in the root of the repository.

use std::{fs, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use gatepass::token::{Format, Issuer, KeyPair, Lifetime, Party, SigningKey, Subject, SymmetricKey};
use gatepass_fuzz::forge::{Forge, Signature, hs256, jwt, private_bytes};
use serde_json::{Map, Value, json};
use time::{Duration, OffsetDateTime, macros::datetime};
use uuid::Uuid;

const NOW: OffsetDateTime = datetime!(2026-01-02 03:04:05 UTC);

fn main() {
    let root = SymmetricKey::from_bytes([1; 32]);
    let mut known = Map::new();
    for (number, format) in Format::ALL.into_iter().enumerate() {
        let (key, forge, mut entry) = match format {
            Format::Shared(format) => {
                (SigningKey::shared(format, &root), Forge::shared(format, &root), json!({}))
            }
            Format::KeyPair(format) => {
                let pair = KeyPair::generate(format).unwrap();
                let (public, private) = (pair.public_key().clone(), private_bytes(&pair));
                let entry = json!({ "public": public.to_string(), "private": STANDARD.encode(&private) });
                (SigningKey::from(Arc::new(pair)), Forge::pair(public, &private), entry)
            }
        };
        let tokens = honest(key);
        seeds(number, &forge, &tokens);
        entry["tokens"] = json!(tokens);
        known.insert(format.name().into(), entry);
    }
    fs::write("tests/fuzzing.json", format!("{:#}\n", Value::from(known))).unwrap();
}

/// A plain token, and one of odd texts.
fn honest(key: SigningKey) -> Vec<String> {
    let issuer = Issuer::new(key, Party { issuer: "https://id.example".into(), audience: "api".into() });
    let lifetime = Lifetime { now: NOW, expires_at: NOW + Duration::minutes(15) };
    [("alice", vec![]), ("Ål\"\\\u{0}\u{202e}ice", vec!["admin".to_owned(), String::new()])]
        .into_iter()
        .map(|(username, roles)| {
            let (user_id, session_id) = (Uuid::from_u128(1), Uuid::from_u128(2));
            let subject = Subject { user_id, session_id, username: username.into(), roles };
            issuer.issue(subject, Uuid::from_u128(3), lifetime).unwrap().expose().to_owned()
        })
        .collect()
}

fn seeds(number: usize, forge: &Forge, tokens: &[String]) {
    let name = forge.format.name().replace(['.', ':'], "_").to_lowercase();
    let seed = |target: &str, name: &str, content: &[u8]| {
        let directory = format!("fuzz/corpus/{target}");
        fs::create_dir_all(&directory).unwrap();
        fs::write(format!("{directory}/{name}"), content).unwrap();
    };
    for (token, what) in tokens.iter().zip(["honest", "honest-odd"]) {
        seed(&name, what, token.as_bytes());
    }
    let times = if forge.is_jwt() {
        "1767323045,1767323945"
    } else {
        r#""2026-01-02T03:04:05Z","2026-01-02T03:19:05Z""#
    };
    let (begin, end) = times.split_once(',').unwrap();
    let claims = format!(
        r#"{{"iss":"https://id.example","sub":"00000000-0000-0000-0000-000000000001","aud":"api","iat":{begin},"nbf":{begin},"exp":{end},"jti":"00000000-0000-0000-0000-000000000003","sid":"00000000-0000-0000-0000-000000000002","username":"alice","roles":["admin"],"token_use":"access"}}"#
    );
    let own = forge.envelope();
    let forgeries = [
        ("expired", forge.seal(claims.replace(end, begin))),
        ("refresh", forge.seal(claims.replace(r#""access""#, r#""refresh""#))),
        ("kid-twice", forge.seal_in(&own.replace('}', &format!(r#","kid":"{}"}}"#, forge.kid)), &claims)),
        ("cut", tokens[0][..tokens[0].len() - 1].to_owned()),
        (
            "none",
            jwt(
                &format!(r#"{{"typ":"at+jwt","alg":"none","kid":"{}"}}"#, forge.kid),
                claims.as_bytes(),
                |_| vec![],
            ),
        ),
        ("hmac", jwt(&own, claims.as_bytes(), |message| hs256(forge.kid.as_bytes(), message))),
    ];
    for (what, token) in forgeries {
        seed(&name, what, token.as_bytes());
    }
    if forge.own_signature() == Some(Signature::Es256) {
        let der = jwt(&own, claims.as_bytes(), |message| forge.secret.sign(Signature::Es256Der, message));
        seed(&name, "der", der.as_bytes());
    }

    // The first byte selects the format: "1" is a multiple of seven.
    let first = b'1' + u8::try_from(number).unwrap();
    let numbered = |text: &str| [&[first], text.as_bytes()].concat();
    for (what, text) in [
        ("honest", claims.clone()),
        ("twice", claims.replacen('{', r#"{"aud":"web","#, 1)),
        ("array", r#"["https://id.example"]"#.to_owned()),
        ("unknown", claims.replacen('{', r#"{"x":[[[{"y":1e400}]]],"#, 1)),
        (
            "last",
            claims.replace(
                end,
                if forge.is_jwt() { "253402300799" } else { r#""9999-12-31T23:59:59.999999999-23:59""# },
            ),
        ),
    ] {
        seed("claims", &format!("{name}-{what}"), &numbered(&text));
    }
    for (what, text) in [
        ("honest", own.clone()),
        ("crit", own.replace('}', r#","crit":["b64"],"b64":false}"#)),
        ("kid", own.replace(&forge.kid, "../../etc/passwd")),
        ("array", format!(r#"["{}"]"#, forge.kid)),
        ("spaced", own.replace(':', " : ")),
    ] {
        seed("envelope", &format!("{name}-{what}"), &numbered(&text));
    }
}
