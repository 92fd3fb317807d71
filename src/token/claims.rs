//! The claims of an access token, and how they are read strictly.

use std::borrow::Cow;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use time::OffsetDateTime;
use uuid::Uuid;

use super::json;

/// The issuer and the audience of tokens: claims `iss` and `aud`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Party {
    /// `iss`: the service that issues.
    pub issuer: String,
    /// `aud`: the services that should accept the tokens.
    pub audience: String,
}

/// The user and the session that a token stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// `sub`: the user's id.
    pub user_id: Uuid,
    /// `sid`: the id of the session that the login began.
    pub session_id: Uuid,
    /// `username`, as the user wrote it.
    pub username: String,
    /// `roles`: each once, in ascending order, as [`Revocations`](super::Revocations) compares them.
    pub roles: Vec<String>,
}

/// The time in which a token is valid, in whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// `iat` and `nbf`.
    pub now: OffsetDateTime,
    /// `exp`: the first moment at which the token is refused.
    pub expires_at: OffsetDateTime,
}

/// The checked claims of an access token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// `iss`.
    pub issuer: String,
    /// `sub`: the user's id.
    pub user_id: Uuid,
    /// `aud`.
    pub audience: String,
    /// `iat`.
    pub issued_at: OffsetDateTime,
    /// `nbf`.
    pub not_before: OffsetDateTime,
    /// `exp`: the first moment at which the token is refused.
    pub expires_at: OffsetDateTime,
    /// `jti`: the token's own id.
    pub token_id: Uuid,
    /// `sid`: the session's id.
    pub session_id: Uuid,
    /// `username`, as the user wrote it.
    pub username: String,
    /// `roles`: each once, in ascending order, as [`Revocations`](super::Revocations) compares them.
    pub roles: Vec<String>,
}

impl Claims {
    /// Whether the token's user has `role`.
    pub fn has_role(&self, role: &str) -> bool {
        self.roles.iter().any(|r| r == role)
    }

    /// The claims as the JSON of a PASETO, with RFC 3339 times.
    pub(super) fn to_paseto_json(&self) -> Vec<u8> {
        self.to_json(Rfc3339)
    }

    /// The claims as the JSON of a JWT, with times in seconds since 1970.
    pub(super) fn to_jwt_json(&self) -> Vec<u8> {
        self.to_json(NumericDate)
    }

    fn to_json<T: Serialize>(&self, time: fn(OffsetDateTime) -> T) -> Vec<u8> {
        let wire = Wire {
            iss: Cow::Borrowed(&*self.issuer),
            sub: self.user_id.to_string().into(),
            aud: Cow::Borrowed(&*self.audience),
            iat: time(self.issued_at),
            nbf: time(self.not_before),
            exp: time(self.expires_at),
            jti: self.token_id.to_string().into(),
            sid: self.session_id.to_string().into(),
            username: Cow::Borrowed(&*self.username),
            roles: Cow::Borrowed(&*self.roles),
            token_use: Cow::Borrowed(ACCESS),
        };
        serde_json::to_vec(&wire).expect("strings, UUIDs and times of this millennium have a JSON form")
    }
}

/// The `token_use` of access tokens.
const ACCESS: &str = "access";

/// An authentic message that has every claim, each once and of its type, but whose values are not checked yet.
#[derive(Debug)]
pub(super) struct Unchecked(Wire<'static, OffsetDateTime>);

impl Unchecked {
    /// Reads the JSON of a PASETO. Unknown claims, which a later version may add, are ignored.
    pub(super) fn from_paseto_json(json: &[u8]) -> Result<Self, InvalidClaims> {
        Self::from_json(json, |Rfc3339(time)| time)
    }

    /// Reads the JSON of a JWT. Unknown claims, which a later version may add, are ignored.
    pub(super) fn from_jwt_json(json: &[u8]) -> Result<Self, InvalidClaims> {
        Self::from_json(json, |NumericDate(time)| time)
    }

    fn from_json<T: DeserializeOwned>(
        json: &[u8],
        time: fn(T) -> OffsetDateTime,
    ) -> Result<Self, InvalidClaims> {
        let wire: Wire<'static, T> = json::object(json).ok_or(InvalidClaims)?;
        Ok(Self(Wire {
            iss: wire.iss,
            sub: wire.sub,
            aud: wire.aud,
            iat: time(wire.iat),
            nbf: time(wire.nbf),
            exp: time(wire.exp),
            jti: wire.jti,
            sid: wire.sid,
            username: wire.username,
            roles: wire.roles,
            token_use: wire.token_use,
        }))
    }

    pub(super) fn is_access(&self) -> bool {
        self.0.token_use == ACCESS
    }

    pub(super) fn issuer(&self) -> &str {
        &self.0.iss
    }

    pub(super) fn audience(&self) -> &str {
        &self.0.aud
    }

    /// `nbf` and `iat`.
    pub(super) fn beginning(&self) -> [OffsetDateTime; 2] {
        [self.0.nbf, self.0.iat]
    }

    /// `exp`.
    pub(super) fn end(&self) -> OffsetDateTime {
        self.0.exp
    }

    /// The claims with their ids as UUIDs; `None` if one of the ids is not a UUID.
    pub(super) fn into_claims(self) -> Option<Claims> {
        let Self(wire) = self;
        Some(Claims {
            user_id: uuid(&wire.sub)?,
            token_id: uuid(&wire.jti)?,
            session_id: uuid(&wire.sid)?,
            issuer: wire.iss.into_owned(),
            audience: wire.aud.into_owned(),
            issued_at: wire.iat,
            not_before: wire.nbf,
            expires_at: wire.exp,
            username: wire.username.into_owned(),
            roles: wire.roles.into_owned(),
        })
    }
}

/// Reads a UUID in the only form in which we write it: with hyphens and in lower case.
fn uuid(text: &str) -> Option<Uuid> {
    let uuid = Uuid::try_parse(text).ok()?;
    (*uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()) == *text).then_some(uuid)
}

/// An authentic token whose claims are not those of an access token.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("the claims are not those of an access token")]
pub struct InvalidClaims;

/// The claims as they are in the JSON. serde refuses duplicate members.
#[derive(Debug, Serialize, Deserialize)]
struct Wire<'a, T> {
    iss: Cow<'a, str>,
    sub: Cow<'a, str>,
    aud: Cow<'a, str>,
    iat: T,
    nbf: T,
    exp: T,
    jti: Cow<'a, str>,
    sid: Cow<'a, str>,
    username: Cow<'a, str>,
    roles: Cow<'a, [String]>,
    token_use: Cow<'a, str>,
}

#[derive(Serialize, Deserialize)]
struct Rfc3339(#[serde(with = "time::serde::rfc3339")] OffsetDateTime);

/// Whole seconds since 1970 (RFC 7519, section 2).
#[derive(Serialize, Deserialize)]
struct NumericDate(#[serde(with = "time::serde::timestamp")] OffsetDateTime);
