//! What an access token says, and its strict reading.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

/// Who makes tokens and whom they are for: claims `iss` and `aud`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Party {
    /// `iss`: the service that issues.
    pub issuer: String,
    /// `aud`: the services that are meant to accept.
    pub audience: String,
}

/// Whom a token speaks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// `sub`: the user's id.
    pub user_id: Uuid,
    /// `sid`: the id of the session that the login began.
    pub session_id: Uuid,
    /// `username`, as the user wrote it.
    pub username: String,
    /// `roles`.
    pub roles: Vec<String>,
}

/// From when to when a token is good, in whole seconds.
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
    /// `roles`.
    pub roles: Vec<String>,
}

impl Claims {
    /// Whether the token's user has `role`.
    pub fn has_role(&self, role: &str) -> bool {
        self.roles.iter().any(|r| r == role)
    }

    /// The claims as the JSON of a PASETO, with RFC 3339 times.
    pub(super) fn to_paseto_json(&self) -> Vec<u8> {
        serde_json::to_vec(&PasetoClaims {
            iss: self.issuer.clone(),
            sub: self.user_id,
            aud: self.audience.clone(),
            iat: self.issued_at,
            nbf: self.not_before,
            exp: self.expires_at,
            jti: self.token_id,
            sid: self.session_id,
            username: self.username.clone(),
            roles: self.roles.clone(),
            token_use: TokenUse::Access,
        })
        .expect("strings, UUIDs and times of this millennium have a JSON form")
    }

    /// Reads the JSON of a PASETO. Every claim has to be there once and be of its type; claims that a later version may
    /// add are passed over.
    pub(super) fn from_paseto_json(json: &[u8]) -> Result<Self, InvalidClaims> {
        let claims: PasetoClaims = serde_json::from_slice(json).map_err(|_| InvalidClaims)?;
        let TokenUse::Access = claims.token_use;
        Ok(Self {
            issuer: claims.iss,
            user_id: claims.sub,
            audience: claims.aud,
            issued_at: claims.iat,
            not_before: claims.nbf,
            expires_at: claims.exp,
            token_id: claims.jti,
            session_id: claims.sid,
            username: claims.username,
            roles: claims.roles,
        })
    }
}

/// An authentic token whose claims are not those of an access token.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("the claims are not those of an access token")]
pub struct InvalidClaims;

#[derive(Serialize, Deserialize)]
struct PasetoClaims {
    iss: String,
    sub: Uuid,
    aud: String,
    #[serde(with = "time::serde::rfc3339")]
    iat: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    nbf: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    exp: OffsetDateTime,
    jti: Uuid,
    sid: Uuid,
    username: String,
    roles: Vec<String>,
    token_use: TokenUse,
}

/// `token_use`: only this value is an access token's.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum TokenUse {
    Access,
}
