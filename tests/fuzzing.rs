//! What the fuzz targets (`fuzz/`) do with an input, and what must hold afterwards. The keys and the honest tokens are
//! fixed in `fuzzing.json`; they were made for this alone, and are public.

use std::{collections::HashMap, sync::LazyLock};

use base64::{Engine, engine::general_purpose::STANDARD};
use gatepass::token::{Claims, Format, MAX_TOKEN_BYTES, Party, Rejection, SymmetricKey, Verifier};
use serde_json::Value;
use time::{Duration, OffsetDateTime, macros::datetime};

use crate::forge::Forge;

pub const NOW: OffsetDateTime = datetime!(2026-01-02 03:04:05 UTC);

pub fn party() -> Party {
    Party { issuer: "https://id.example".into(), audience: "api".into() }
}

/// A format with its fixed key, and the tokens that were made with it.
pub struct Bench {
    pub forge: Forge,
    verifier: Verifier,
    pub honest: Vec<String>,
}

static BENCHES: LazyLock<HashMap<&'static str, Bench>> = LazyLock::new(|| {
    let known: Value = serde_json::from_str(include_str!("fuzzing.json")).unwrap();
    let bench = |format: Format| {
        let known = &known[format.name()];
        let forge = match format {
            Format::Shared(format) => Forge::shared(format, &SymmetricKey::from_bytes([1; 32])),
            Format::KeyPair(_) => Forge::pair(
                known["public"].as_str().unwrap().parse().unwrap(),
                &STANDARD.decode(known["private"].as_str().unwrap()).unwrap(),
            ),
        };
        let honest = known["tokens"].as_array().unwrap();
        let honest: Vec<_> = honest.iter().map(|token| token.as_str().unwrap().to_owned()).collect();
        let verifier = Verifier::new([forge.verifying.clone()], party());
        for token in &honest {
            verifier.verify(token, NOW).expect("an honest token passes");
        }
        (format.name(), Bench { forge, verifier, honest })
    };
    Format::ALL.into_iter().map(bench).collect()
});

pub fn bench(format: &str) -> &'static Bench {
    &BENCHES[format]
}

/// Takes any text for a token: what passes is one of the tokens that were made, byte for byte.
pub fn token(format: &str, input: &[u8]) {
    let Ok(token) = str::from_utf8(input) else { return };
    let bench = bench(format);
    let Some(claims) = bench.verify(token) else { return };
    if format == "jwt:ES256" {
        // An ECDSA signature (r, s) has a twin (r, n - s) that anyone can make, so only the claims are compared.
        let mut honest = bench.honest.iter().filter_map(|token| bench.verify(token));
        assert!(honest.any(|honest| honest == claims), "{claims:?}");
    } else {
        assert!(bench.honest.iter().any(|honest| honest == token), "{token}");
    }
}

/// The first byte selects a format, and the rest is signed as claims with that format's key: what passes has the right
/// claims.
pub fn claims(input: &[u8]) {
    let Some((bench, claims)) = select(input) else { return };
    let token = bench.forge.seal(claims);
    if let Some(found) = bench.verify(&token) {
        // In an unknown member, a number may be too large and a list too deep for a `Value`.
        let Ok(written) = serde_json::from_slice::<Value>(claims) else {
            serde_json::from_slice::<serde::de::IgnoredAny>(claims).expect("what passes is JSON");
            return;
        };
        for (name, found) in [
            ("iss", "https://id.example"),
            ("aud", "api"),
            ("token_use", "access"),
            ("sub", &*found.user_id.to_string()),
            ("sid", &*found.session_id.to_string()),
            ("jti", &*found.token_id.to_string()),
            ("username", &*found.username),
        ] {
            assert_eq!(written[name], found, "{name}");
        }
        assert_eq!(written["roles"], Value::from(found.roles.clone()));
    }
}

/// The first byte selects a format, and the rest is the header of a JWT or the footer of a PASETO, signed with the
/// right key: what passes is the honest one, apart from white space and the order of its members.
pub fn envelope(input: &[u8]) {
    let Some((bench, envelope)) = select(input) else { return };
    let Ok(envelope) = str::from_utf8(envelope) else { return };
    let claims = if bench.forge.is_jwt() {
        r#"{"iss":"https://id.example","sub":"00000000-0000-0000-0000-000000000001","aud":"api","iat":1767323045,"nbf":1767323045,"exp":1767323945,"jti":"00000000-0000-0000-0000-000000000003","sid":"00000000-0000-0000-0000-000000000002","username":"a","roles":[],"token_use":"access"}"#
    } else {
        r#"{"iss":"https://id.example","sub":"00000000-0000-0000-0000-000000000001","aud":"api","iat":"2026-01-02T03:04:05Z","nbf":"2026-01-02T03:04:05Z","exp":"2026-01-02T03:19:05Z","jti":"00000000-0000-0000-0000-000000000003","sid":"00000000-0000-0000-0000-000000000002","username":"a","roles":[],"token_use":"access"}"#
    };
    if bench.verify(&bench.forge.seal_in(envelope, claims)).is_some() {
        let found: Value = serde_json::from_str(envelope).expect("what passes is JSON");
        let honest: Value = serde_json::from_str(&bench.forge.envelope()).unwrap();
        assert_eq!(found, honest);
    }
}

fn select(input: &[u8]) -> Option<(&'static Bench, &[u8])> {
    let (first, rest) = input.split_first()?;
    let format = Format::ALL[usize::from(*first) % Format::ALL.len()];
    // pasetors makes no token of an empty message.
    (!rest.is_empty()).then_some((bench(format.name()), rest))
}

impl Bench {
    /// The claims, if it passes. Asserts what must hold whether it does or not.
    fn verify(&self, token: &str) -> Option<Claims> {
        let verdict = self.verifier.verify(token, NOW);
        let inspection = self.verifier.inspect(token, NOW);
        let failed = inspection.findings.iter().find_map(|(_, found)| found.err());
        assert_eq!(verdict.as_ref().err(), failed.as_ref(), "both ways of looking agree");
        let claims = Claims::clone(&*verdict.ok()?);
        assert_eq!(Some(&claims), inspection.claims.as_ref());
        assert_eq!(inspection.kid.as_deref(), Some(&*self.forge.kid));
        assert!(token.len() <= MAX_TOKEN_BYTES);
        assert_eq!((&*claims.issuer, &*claims.audience), ("https://id.example", "api"));
        assert!(NOW < claims.expires_at);
        assert!(
            claims.not_before <= NOW + Duration::seconds(30)
                && claims.issued_at <= NOW + Duration::seconds(30)
        );
        // By now the verifier remembers the token. The last moment of the calendar cannot be `now`.
        if claims.expires_at < datetime!(9999-01-01 00:00 UTC) {
            assert_eq!(self.verifier.verify(token, claims.expires_at), Err(Rejection::Expired));
        }
        Some(claims)
    }
}
