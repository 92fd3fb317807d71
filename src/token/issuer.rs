//! Making access tokens.

use secrecy::{ExposeSecret, SecretString};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    claims::{Claims, Lifetime, Party, Subject},
    error::IssueError,
    key::{KeyId, SymmetricKey},
    paseto_local,
};

/// A key that tokens are made with. Each variant is one format; a token's format is its key's.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SigningKey {
    /// PASETO v4.local.
    PasetoLocal(SymmetricKey),
}

impl From<SymmetricKey> for SigningKey {
    fn from(key: SymmetricKey) -> Self {
        Self::PasetoLocal(key)
    }
}

/// Makes the access tokens of one issuer for one audience.
#[derive(Clone, Debug)]
pub struct Issuer {
    key: SigningKey,
    key_id: KeyId,
    party: Party,
}

impl Issuer {
    /// An issuer that makes tokens of the key's format.
    pub fn new(key: impl Into<SigningKey>, party: Party) -> Self {
        let key = key.into();
        let key_id = match &key {
            SigningKey::PasetoLocal(key) => key.id(),
        };
        Self { key, key_id, party }
    }

    /// Makes a token for `subject`. Times are cut to whole seconds, so that the answer to a login and the token say the
    /// same.
    ///
    /// # Errors
    ///
    /// Only when the system has no randomness for a nonce.
    pub fn issue(
        &self,
        subject: Subject,
        token_id: Uuid,
        lifetime: Lifetime,
    ) -> Result<AccessToken, IssueError> {
        let issued_at = lifetime.now.truncate_to_second();
        let expires_at = lifetime.expires_at.truncate_to_second();
        let claims = Claims {
            issuer: self.party.issuer.clone(),
            user_id: subject.user_id,
            audience: self.party.audience.clone(),
            issued_at,
            not_before: issued_at,
            expires_at,
            token_id,
            session_id: subject.session_id,
            username: subject.username,
            roles: subject.roles,
        };
        let token = match &self.key {
            SigningKey::PasetoLocal(key) => {
                paseto_local::encrypt(key, &self.key_id, &claims.to_paseto_json())?
            }
        };
        Ok(AccessToken { token: token.into(), issued_at, expires_at })
    }
}

/// A token just made, with the times that it carries. `Debug` does not show the token.
#[derive(Debug)]
pub struct AccessToken {
    token: SecretString,
    /// Its `iat`.
    pub issued_at: OffsetDateTime,
    /// Its `exp`.
    pub expires_at: OffsetDateTime,
}

impl AccessToken {
    /// The token itself, for the answer to its owner and nowhere else.
    pub fn expose(&self) -> &str {
        self.token.expose_secret()
    }
}
