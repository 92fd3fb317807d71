//! Checking access tokens.

use std::{fmt, sync::Arc, time::Duration};

use arc_swap::{ArcSwap, Guard};
use time::OffsetDateTime;

use super::{
    MAX_TOKEN_BYTES,
    cache::VerifiedTokens,
    claims::{Claims, Party, Unchecked},
    error::Rejection,
    format::{Format, SharedFormat},
    issuer::SigningKey,
    jwt::{self, Hs256Key},
    key::{KeyId, SymmetricKey},
    key_pair::{Public, PublicKey},
    paseto_local, paseto_public,
    silence::Silence,
};

/// How far the issuer's clock may be ahead of ours, for `nbf` and `iat`. There is no such leeway for expiry.
const LEEWAY: time::Duration = time::Duration::seconds(30);

/// A key that tokens are checked with. It is for one format.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum VerifyingKey {
    /// PASETO v4.local.
    V4Local(SymmetricKey),
    /// JWT with HS256.
    Hs256(Hs256Key),
    /// Signed, in the key's format.
    Public(PublicKey),
}

impl VerifyingKey {
    /// The key for tokens of `format` under the root key.
    pub fn shared(format: SharedFormat, root: &SymmetricKey) -> Self {
        SigningKey::shared(format, root).into()
    }

    /// The format of the tokens that it checks.
    pub fn format(&self) -> Format {
        match self {
            Self::V4Local(_) => SharedFormat::V4Local.into(),
            Self::Hs256(_) => SharedFormat::Hs256.into(),
            Self::Public(key) => key.format().into(),
        }
    }
}

impl From<SymmetricKey> for VerifyingKey {
    fn from(key: SymmetricKey) -> Self {
        Self::V4Local(key)
    }
}

impl From<Hs256Key> for VerifyingKey {
    fn from(key: Hs256Key) -> Self {
        Self::Hs256(key)
    }
}

impl From<PublicKey> for VerifyingKey {
    fn from(key: PublicKey) -> Self {
        Self::Public(key)
    }
}

/// The key that checks the tokens that the signing key makes.
impl From<SigningKey> for VerifyingKey {
    fn from(key: SigningKey) -> Self {
        match key {
            SigningKey::V4Local(key) => Self::V4Local(key),
            SigningKey::Hs256(key) => Self::Hs256(key),
            SigningKey::Pair(pair) => Self::Public(pair.public_key().clone()),
        }
    }
}

/// Checks access tokens against a set of keys, one issuer and one audience.
///
/// A token that passes is remembered, in bounded memory, so that the next check costs a lookup. Its times are checked
/// every time. When the keys are replaced, all tokens are forgotten.
pub struct Verifier {
    party: Party,
    trusted: ArcSwap<Trusted>,
    /// How long nothing has been heard about which public keys are good.
    silence: Silence,
}

/// Whether this verifier has accepted a token before, as far as it remembers: its memory is bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sighting {
    /// Not as far as it remembers.
    First,
    /// It has.
    Again,
}

/// The keys, by the shape of the tokens that they check, and the tokens that they have verified so far.
struct Trusted {
    local: Vec<(KeyId, SymmetricKey)>,
    public: Vec<(KeyId, paseto_public::PublicKey)>,
    jwt: Vec<(KeyId, jwt::VerifyingKey)>,
    verified: VerifiedTokens,
}

impl Trusted {
    fn new<K: Into<VerifyingKey>>(keys: impl IntoIterator<Item = K>) -> Self {
        let mut trusted =
            Self { local: Vec::new(), public: Vec::new(), jwt: Vec::new(), verified: VerifiedTokens::new() };
        for key in keys {
            match key.into() {
                VerifyingKey::V4Local(key) => trusted.local.push((key.id(), key)),
                VerifyingKey::Hs256(key) => {
                    trusted.jwt.push((key.id().clone(), jwt::VerifyingKey::Hs256(key)));
                }
                VerifyingKey::Public(key) => {
                    let id = key.id().clone();
                    match key.key {
                        Public::V4Public(key) => trusted.public.push((id, key)),
                        Public::Jwt(key) => trusted.jwt.push((id, jwt::VerifyingKey::Public(key))),
                    }
                }
            }
        }
        trusted
    }
}

/// The key with this name. There is one at most: a name is a hash of its key, and a key has one format.
fn find<'k, K>(keys: &'k [(KeyId, K)], kid: &str) -> Result<&'k K, Rejection> {
    keys.iter().find(|(id, _)| id.as_str() == kid).map(|(_, key)| key).ok_or(Rejection::UnknownKey)
}

/// An authentic token: its claims, and whether its `typ` is that of an access token.
struct Opened {
    claims: Unchecked,
    is_typed: bool,
}

/// A check of an authentic token's claims, with the check's name.
type ClaimCheck = (Check, fn(&Opened, &Party, OffsetDateTime) -> Result<(), Rejection>);

const CLAIM_CHECKS: [ClaimCheck; 6] = [
    (Check::Use, |token, _, _| is(token.claims.is_access(), Rejection::WrongUse)),
    (Check::Type, |token, _, _| is(token.is_typed, Rejection::WrongType)),
    (Check::Issuer, |token, party, _| is(token.claims.issuer() == party.issuer, Rejection::WrongIssuer)),
    (Check::Audience, |token, party, _| {
        is(token.claims.audience() == party.audience, Rejection::WrongAudience)
    }),
    (Check::Beginning, |token, _, now| has_begun(token.claims.beginning(), now)),
    (Check::End, |token, _, now| has_not_ended(token.claims.end(), now)),
];

fn is(condition: bool, otherwise: Rejection) -> Result<(), Rejection> {
    if condition { Ok(()) } else { Err(otherwise) }
}

fn has_begun(times: [OffsetDateTime; 2], now: OffsetDateTime) -> Result<(), Rejection> {
    // The leeway is added to `now`: a token's time may be the last one possible, to which nothing can be added.
    let latest = now + LEEWAY;
    is(times.into_iter().all(|time| time <= latest), Rejection::NotYetValid)
}

fn has_not_ended(expires_at: OffsetDateTime, now: OffsetDateTime) -> Result<(), Rejection> {
    is(now < expires_at, Rejection::Expired)
}

impl Verifier {
    /// A verifier that accepts tokens made with one of `keys`, from `party.issuer`, for `party.audience`.
    pub fn new<K: Into<VerifyingKey>>(keys: impl IntoIterator<Item = K>, party: Party) -> Self {
        let silence = Silence::new(Duration::MAX);
        Self { party, trusted: ArcSwap::from_pointee(Trusted::new(keys)), silence }
    }

    /// Refuses tokens of public keys when [`heard`](Self::heard) was last called longer than `max_silence` ago, since a
    /// public key may have been retired in the meantime. Tokens of shared keys, which the operator has set, are not
    /// affected.
    #[must_use]
    pub fn with_max_silence(self, max_silence: Duration) -> Self {
        Self { silence: Silence::new(max_silence), ..self }
    }

    /// Notes that the public keys that are set here were the good ones at `at`, which is measured as in
    /// [`Revocations::heard`](super::Revocations::heard).
    pub fn heard(&self, at: Duration) {
        self.silence.heard(at);
    }

    /// For how long nothing has been heard about which public keys are good; [`Duration::MAX`] if nothing ever has.
    pub fn silence(&self, at: Duration) -> Duration {
        self.silence.length(at)
    }

    /// The [`silence`](Self::silence), if it is longer than it may be.
    pub fn staleness(&self, at: Duration) -> Option<Duration> {
        self.silence.excess(at)
    }

    /// Accepts tokens of these keys and no others from now on. This also applies to tokens that have been accepted
    /// before.
    pub fn set_keys<K: Into<VerifyingKey>>(&self, keys: impl IntoIterator<Item = K>) {
        self.trusted.store(Arc::new(Trusted::new(keys)));
    }

    /// The claims of `token`, if it is authentic, from this issuer, for this audience, and valid at `now`.
    ///
    /// The checks, in this order: size, shape, key known and of this format, tag or signature, strict JSON with every
    /// claim, `token_use`, `typ` of a JWT, issuer, audience, `nbf` and `iat` (30 s of leeway), `exp` (none), ids.
    ///
    /// It does not say how long ago the public keys were [`heard`](Self::heard) of: with
    /// [`with_max_silence`](Self::with_max_silence), use [`sight`](Self::sight).
    ///
    /// # Errors
    ///
    /// The first check that failed.
    pub fn verify(&self, token: &str, now: OffsetDateTime) -> Result<Arc<Claims>, Rejection> {
        self.sight(token, now, Duration::ZERO, |_| Ok(())).map(|(claims, _)| claims)
    }

    /// Like [`verify`](Self::verify), with one more `check`. Also says whether the token has been accepted before; a
    /// token that `check` refuses does not count as accepted. The token's key must be known to be good at `at`, by the
    /// clock of [`heard`](Self::heard).
    ///
    /// # Errors
    ///
    /// The first check that failed. [`Rejection::RevocationsUnknown`] comes before all but the first few.
    pub fn sight(
        &self,
        token: &str,
        now: OffsetDateTime,
        at: Duration,
        check: impl FnOnce(&Claims) -> Result<(), Rejection>,
    ) -> Result<(Arc<Claims>, Sighting), Rejection> {
        let trusted = self.trusted(token, at)?;
        let digest = trusted.verified.digest(token);
        if let Some(claims) = trusted.verified.get(&digest) {
            has_begun([claims.not_before, claims.issued_at], now)?;
            has_not_ended(claims.expires_at, now)?;
            check(&claims)?;
            return Ok((claims, Sighting::Again));
        }
        let opened = open(&trusted, token)?;
        for (_, run) in CLAIM_CHECKS {
            run(&opened, &self.party, now)?;
        }
        let claims = Arc::new(opened.claims.into_claims().ok_or(Rejection::InvalidSubject)?);
        check(&claims)?;
        trusted.verified.insert(digest, claims.clone(), now);
        Ok((claims, Sighting::First))
    }

    /// The claims of a token that is valid at `now`, or was until it expired. It says whose token it is, for a holder
    /// who wants to give it up.
    ///
    /// # Errors
    ///
    /// As for [`sight`](Self::sight), except that `exp` is not checked.
    pub fn recognize(&self, token: &str, now: OffsetDateTime, at: Duration) -> Result<Claims, Rejection> {
        let opened = open(&*self.trusted(token, at)?, token)?;
        for (_, run) in CLAIM_CHECKS.iter().filter(|(check, _)| *check != Check::End) {
            run(&opened, &self.party, now)?;
        }
        opened.claims.into_claims().ok_or(Rejection::InvalidSubject)
    }

    /// The keys and remembered tokens that may vouch for `token` at `at`.
    fn trusted(&self, token: &str, at: Duration) -> Result<Guard<Arc<Trusted>>, Rejection> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Rejection::TooLong);
        }
        let trusted = self.trusted.load();
        // Before the remembered tokens are looked up: the key that vouched for them may be gone.
        if self.staleness(at).is_some() {
            is_of_shared_key(&trusted, token)?;
        }
        Ok(trusted)
    }

    /// About how many tokens are remembered.
    pub fn remembered(&self) -> u64 {
        self.trusted.load().verified.len()
    }

    /// Reports what each check of [`verify`](Self::verify) finds, for people who want to know why a token is refused.
    pub fn inspect(&self, token: &str, now: OffsetDateTime) -> Inspection {
        let is_short = token.len() <= MAX_TOKEN_BYTES;
        let (kid, payload) = if is_short { look_into(token) } else { (None, None) };
        let mut findings = Vec::new();
        let opened = if is_short { open(&self.trusted.load(), token) } else { Err(Rejection::TooLong) };
        let failed = opened.as_ref().err().map(|rejection| (Check::of(rejection), *rejection));
        for check in Check::OPENING {
            match failed {
                Some((at, rejection)) if at == check => {
                    findings.push((check, Err(rejection)));
                    break;
                }
                _ => findings.push((check, Ok(()))),
            }
        }
        let mut claims = None;
        if let Ok(opened) = opened {
            for (check, run) in CLAIM_CHECKS {
                findings.push((check, run(&opened, &self.party, now)));
            }
            claims = opened.claims.into_claims();
            findings.push((Check::Ids, is(claims.is_some(), Rejection::InvalidSubject)));
        }
        Inspection { kid, payload, claims, findings }
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let trusted = self.trusted.load();
        let ids = trusted.local.iter().map(|(id, _)| id);
        let ids =
            ids.chain(trusted.public.iter().map(|(id, _)| id)).chain(trusted.jwt.iter().map(|(id, _)| id));
        let ids: Vec<_> = ids.collect();
        f.debug_struct("Verifier").field("party", &self.party).field("keys", &ids).finish()
    }
}

/// The claims of a token that one of the keys vouches for.
///
/// The fixed beginning of a PASETO says which keys may have made it; anything else can only be a JWT. The key alone
/// determines what its tokens look like and by which algorithm they are checked.
fn open(trusted: &Trusted, token: &str) -> Result<Opened, Rejection> {
    if token.starts_with(paseto_local::HEADER) {
        let sealed = paseto_local::Sealed::parse(token)?;
        let json = sealed.decrypt(find(&trusted.local, sealed.kid()?)?)?;
        Ok(Opened { claims: Unchecked::from_paseto_json(&json)?, is_typed: true })
    } else if token.starts_with(paseto_public::HEADER) {
        let signed = paseto_public::Signed::parse(token)?;
        let json = signed.verify(find(&trusted.public, signed.kid()?)?)?;
        Ok(Opened { claims: Unchecked::from_paseto_json(&json)?, is_typed: true })
    } else {
        let signed = jwt::Signed::parse(token)?;
        let (json, typ) = signed.verify(find(&trusted.jwt, signed.kid())?)?;
        Ok(Opened { claims: Unchecked::from_jwt_json(json)?, is_typed: typ == Some(jwt::TYPE) })
    }
}

/// Refuses a token whose key was not set by the operator: at the moment it is not known whether such a key is still
/// good, nor whether there are new ones.
fn is_of_shared_key(trusted: &Trusted, token: &str) -> Result<(), Rejection> {
    if token.starts_with(paseto_local::HEADER) {
        return Ok(());
    }
    if !token.starts_with(paseto_public::HEADER) {
        let signed = jwt::Signed::parse(token)?;
        if let Ok(jwt::VerifyingKey::Hs256(_)) = find(&trusted.jwt, signed.kid()) {
            return Ok(());
        }
    }
    Err(Rejection::RevocationsUnknown)
}

/// The key's name and the content of a token, unchecked, as far as they can be read without a key.
fn look_into(token: &str) -> (Option<String>, Option<String>) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    let kid = |kid: Result<&str, Rejection>| kid.ok().map(str::to_owned);
    if let Ok(sealed) = paseto_local::Sealed::parse(token) {
        (kid(sealed.kid()), None)
    } else if let Ok(signed) = paseto_public::Signed::parse(token) {
        (kid(signed.kid()), text(signed.untrusted_payload()))
    } else if let Ok(signed) = jwt::Signed::parse(token) {
        (Some(signed.kid().to_owned()), text(signed.untrusted_payload()))
    } else {
        (None, None)
    }
}

/// What an inspection found out about a token.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// The key that the token names. Anyone can write that.
    pub kid: Option<String>,
    /// What the token says, if it can be read without a key. Anyone can write that, too; only [`claims`](Self::claims)
    /// are authentic.
    pub payload: Option<String>,
    /// The token's claims, if one of our keys vouches for them. This does not mean that the token is accepted.
    pub claims: Option<Claims>,
    /// The checks in their order, with what each found. If the token cannot be opened, the list ends there.
    pub findings: Vec<(Check, Result<(), Rejection>)>,
}

/// One of the checks of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Check {
    /// Not longer than [`MAX_TOKEN_BYTES`].
    Size,
    /// In the shape of one of the formats.
    Shape,
    /// Of a key that is ours and of the token's format.
    Key,
    /// The tag or the signature.
    Signature,
    /// Strict JSON with every claim.
    Json,
    /// `token_use`
    Use,
    /// `typ` of a JWT.
    Type,
    /// `iss`
    Issuer,
    /// `aud`
    Audience,
    /// `nbf` and `iat`
    Beginning,
    /// `exp`
    End,
    /// `sub`, `sid` and `jti`
    Ids,
    /// The session has not ended, and the user has the token's roles.
    Revocation,
}

impl Check {
    /// Every check, in the order in which they are made.
    pub const ALL: [Self; 13] = [
        Self::Size,
        Self::Shape,
        Self::Key,
        Self::Signature,
        Self::Json,
        Self::Use,
        Self::Type,
        Self::Issuer,
        Self::Audience,
        Self::Beginning,
        Self::End,
        Self::Ids,
        Self::Revocation,
    ];

    /// The checks that come before the claims can be read.
    const OPENING: [Self; 5] = [Self::Size, Self::Shape, Self::Key, Self::Signature, Self::Json];

    /// The check that refuses with this rejection.
    fn of(rejection: &Rejection) -> Self {
        match rejection {
            Rejection::TooLong => Self::Size,
            Rejection::Malformed => Self::Shape,
            Rejection::UnknownKey | Rejection::WrongAlgorithm => Self::Key,
            Rejection::Forged => Self::Signature,
            Rejection::Claims(_) => Self::Json,
            Rejection::WrongUse => Self::Use,
            Rejection::WrongType => Self::Type,
            Rejection::WrongIssuer => Self::Issuer,
            Rejection::WrongAudience => Self::Audience,
            Rejection::NotYetValid => Self::Beginning,
            Rejection::Expired => Self::End,
            Rejection::InvalidSubject => Self::Ids,
            Rejection::SessionEnded | Rejection::RolesChanged | Rejection::RevocationsUnknown => {
                Self::Revocation
            }
        }
    }

    /// What the check looks at, in a few words.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Size => "at most 8 KiB",
            Self::Shape => "shape of PASETO v4.local, v4.public or JWT",
            Self::Key => "key known, and of this format",
            Self::Signature => "tag or signature",
            Self::Json => "JSON with every claim, once",
            Self::Use => "token_use",
            Self::Type => "typ",
            Self::Issuer => "iss",
            Self::Audience => "aud",
            Self::Beginning => "nbf, iat",
            Self::End => "exp",
            Self::Ids => "sub, sid, jti",
            Self::Revocation => "session and roles as they are now",
        }
    }
}

#[cfg(test)]
mod tests {
    use time::Duration;
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
            *claims,
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
            good.replace(r#","token_use":"access""#, ""),
            good.replace(r#""roles":["admin"]"#, r#""roles":"admin""#),
            good.replace(r#""roles":["admin"]"#, r#""roles":null"#),
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
        let refresh = good.replace(r#""token_use":"access""#, r#""token_use":"refresh""#);
        assert_eq!(verifier.verify(&seal(&refresh), NOW), Err(Rejection::WrongUse));
        let subject = good.replace("00000000-0000-0000-0000-000000000001", "alice");
        assert_eq!(verifier.verify(&seal(&subject), NOW), Err(Rejection::InvalidSubject));
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
