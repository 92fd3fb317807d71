//! Checking access tokens.

use time::{Duration, OffsetDateTime};

use super::{
    MAX_TOKEN_BYTES,
    claims::{Claims, Party},
    error::Rejection,
    key::{KeyId, SymmetricKey},
    paseto_local,
};

/// How far the issuer's clock may be ahead of ours, for `nbf` and `iat`. Expiry has no such grace.
const LEEWAY: Duration = Duration::seconds(30);

/// A key that tokens are checked with. Each variant is one format.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum VerifyingKey {
    /// PASETO v4.local.
    PasetoLocal(SymmetricKey),
}

impl From<SymmetricKey> for VerifyingKey {
    fn from(key: SymmetricKey) -> Self {
        Self::PasetoLocal(key)
    }
}

/// Checks access tokens against a fixed set of keys, one issuer and one audience.
#[derive(Clone, Debug)]
pub struct Verifier {
    local: Vec<(KeyId, SymmetricKey)>,
    party: Party,
}

impl Verifier {
    /// A verifier that accepts tokens made with one of `keys`, by `party.issuer`, for `party.audience`.
    pub fn new<K: Into<VerifyingKey>>(keys: impl IntoIterator<Item = K>, party: Party) -> Self {
        let mut local = Vec::new();
        for key in keys {
            match key.into() {
                VerifyingKey::PasetoLocal(key) => local.push((key.id(), key)),
            }
        }
        Self { local, party }
    }

    /// The claims of `token`, when it is authentic, of this issuer, for this audience, and good at `now`.
    ///
    /// The checks, in this order: size, shape, key known, tag, strict JSON with every claim of an access token, issuer,
    /// audience, `nbf` and `iat` (30 s of leeway), `exp` (none).
    ///
    /// # Errors
    ///
    /// The first check that failed.
    pub fn verify(&self, token: &str, now: OffsetDateTime) -> Result<Claims, Rejection> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Rejection::TooLong);
        }
        let json = if token.starts_with(paseto_local::HEADER) {
            let sealed = paseto_local::Sealed::parse(token)?;
            let kid = sealed.kid()?;
            let (_, key) =
                self.local.iter().find(|(id, _)| id.as_str() == kid).ok_or(Rejection::UnknownKey)?;
            sealed.decrypt(key)?
        } else {
            return Err(Rejection::Malformed);
        };
        let claims = Claims::from_paseto_json(&json)?;
        self.check(claims, now)
    }

    fn check(&self, claims: Claims, now: OffsetDateTime) -> Result<Claims, Rejection> {
        if claims.issuer != self.party.issuer {
            return Err(Rejection::WrongIssuer);
        }
        if claims.audience != self.party.audience {
            return Err(Rejection::WrongAudience);
        }
        if claims.not_before > now + LEEWAY || claims.issued_at > now + LEEWAY {
            return Err(Rejection::NotYetValid);
        }
        if claims.expires_at <= now {
            return Err(Rejection::Expired);
        }
        Ok(claims)
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;
    use uuid::Uuid;

    use super::*;
    use crate::token::{InvalidClaims, Issuer, Lifetime, Subject};

    const NOW: OffsetDateTime = datetime!(2026-01-02 03:04:05 UTC);

    fn party() -> Party {
        Party { issuer: "https://id.example".into(), audience: "api".into() }
    }

    fn key(byte: u8) -> SymmetricKey {
        SymmetricKey::from_bytes([byte; 32])
    }

    fn subject() -> Subject {
        Subject {
            user_id: Uuid::from_u128(1),
            session_id: Uuid::from_u128(2),
            username: "Ålice".into(),
            roles: vec!["admin".into()],
        }
    }

    fn issue(key: SymmetricKey, party: Party) -> String {
        let lifetime = Lifetime { now: NOW, expires_at: NOW + Duration::minutes(15) };
        let token = Issuer::new(key, party).issue(subject(), Uuid::from_u128(3), lifetime).unwrap();
        token.expose().to_owned()
    }

    #[test]
    fn what_is_issued_verifies_with_the_same_claims() {
        let claims = Verifier::new([key(1)], party()).verify(&issue(key(1), party()), NOW).unwrap();
        assert_eq!(
            claims,
            Claims {
                issuer: "https://id.example".into(),
                user_id: Uuid::from_u128(1),
                audience: "api".into(),
                issued_at: NOW,
                not_before: NOW,
                expires_at: NOW + Duration::minutes(15),
                token_id: Uuid::from_u128(3),
                session_id: Uuid::from_u128(2),
                username: "Ålice".into(),
                roles: vec!["admin".into()],
            }
        );
        assert!(claims.has_role("admin") && !claims.has_role("adm"));
    }

    #[test]
    fn the_clock_decides_with_leeway_for_the_beginning_and_none_for_the_end() {
        let verifier = Verifier::new([key(1)], party());
        let token = issue(key(1), party());
        let at = |seconds| verifier.verify(&token, NOW + Duration::seconds(seconds)).map(|_| ());
        assert_eq!(at(-31), Err(Rejection::NotYetValid));
        assert_eq!(at(-30), Ok(()));
        assert_eq!(at(15 * 60 - 1), Ok(()));
        assert_eq!(at(15 * 60), Err(Rejection::Expired));
    }

    #[test]
    fn an_older_key_is_accepted_while_it_is_configured() {
        let token = issue(key(1), party());
        assert!(Verifier::new([key(2), key(1)], party()).verify(&token, NOW).is_ok());
        assert_eq!(Verifier::new([key(2)], party()).verify(&token, NOW), Err(Rejection::UnknownKey));
    }

    #[test]
    fn another_issuer_or_audience_is_refused() {
        let verifier = Verifier::new([key(1)], party());
        let issuer = Party { issuer: "https://id.example/".into(), ..party() };
        let audience = Party { audience: "API".into(), ..party() };
        assert_eq!(verifier.verify(&issue(key(1), issuer), NOW), Err(Rejection::WrongIssuer));
        assert_eq!(verifier.verify(&issue(key(1), audience), NOW), Err(Rejection::WrongAudience));
    }

    #[test]
    fn every_changed_character_is_noticed() {
        let verifier = Verifier::new([key(1)], party());
        let token = issue(key(1), party());
        for i in 0..token.len() {
            let mut altered = token.clone().into_bytes();
            altered[i] = if altered[i] == b'A' { b'B' } else { b'A' };
            let altered = String::from_utf8(altered).unwrap();
            assert!(verifier.verify(&altered, NOW).is_err(), "character {i}");
            assert!(verifier.verify(&token[..i], NOW).is_err(), "cut at {i}");
        }
        for padded in [format!("{token}="), format!("{token}."), format!(" {token}"), format!("{token}\n")] {
            assert!(verifier.verify(&padded, NOW).is_err(), "{padded}");
        }
        assert_eq!(verifier.verify(&"v4.local.A".repeat(1000), NOW), Err(Rejection::TooLong));
    }

    #[test]
    fn an_authentic_message_that_is_no_access_token_is_refused() {
        let verifier = Verifier::new([key(1)], party());
        let good = String::from_utf8(verifier.verify(&issue(key(1), party()), NOW).unwrap().to_paseto_json())
            .unwrap();
        let seal = |json: &str| paseto_local::encrypt(&key(1), &key(1).id(), json.as_bytes()).unwrap();
        assert!(verifier.verify(&seal(&good), NOW).is_ok());

        let cases = [
            good.replace(r#""token_use":"access""#, r#""token_use":"refresh""#),
            good.replace(r#","token_use":"access""#, ""),
            good.replace(r#""roles":["admin"]"#, r#""roles":"admin""#),
            good.replace(r#""roles":["admin"]"#, r#""roles":null"#),
            good.replace("00000000-0000-0000-0000-000000000001", "alice"),
            good.replace("2026-01-02T03:19:05Z", "never"),
            good.replace(r#"{"iss""#, r#"{"sub":"00000000-0000-0000-0000-000000000009","iss""#),
            good.replace('}', ""),
            format!("{good}{good}"),
            "[]".to_owned(),
            "[".repeat(5_000),
        ];
        for json in cases {
            assert_eq!(verifier.verify(&seal(&json), NOW), Err(Rejection::Claims(InvalidClaims)), "{json}");
        }
    }

    #[test]
    fn the_footer_only_selects_a_configured_key() {
        let verifier = Verifier::new([key(1)], party());
        let json = verifier.verify(&issue(key(1), party()), NOW).unwrap().to_paseto_json();
        let sealed = |footer: Option<&[u8]>| {
            pasetors::version4::LocalToken::encrypt(&key(1).paseto(), &json, footer, None).unwrap()
        };
        let kid = key(1).id();
        for footer in [
            None,
            Some(&b"{}"[..]),
            Some(b"k4.lid"),
            Some(br#"{"kid":null}"#),
            Some(br#"{"kid":"../../etc/passwd"}"#),
            Some(br#"{"kid":"' OR 1=1 --"}"#),
            Some(format!(r#"{{"kid":"{kid}","kid":"{kid}"}}"#).as_bytes()),
            Some(format!(r#"{{"kid":"{kid}","alg":"none"}}"#).as_bytes()),
        ] {
            assert!(verifier.verify(&sealed(footer), NOW).is_err());
        }
        // Another key under the name of ours.
        let foreign = paseto_local::encrypt(&key(2), &kid, &json).unwrap();
        assert_eq!(verifier.verify(&foreign, NOW), Err(Rejection::Forged));
    }
}
