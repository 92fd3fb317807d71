//! Making access tokens.

use std::{fmt, sync::Arc};

use arc_swap::ArcSwap;
use secrecy::{ExposeSecret, SecretString};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    claims::{Claims, Lifetime, Party, Subject},
    error::IssueError,
    format::{Format, SharedFormat},
    jwt::{self, Hs256Key},
    key::{KeyId, SymmetricKey},
    key_pair::KeyPair,
    paseto_local,
};

/// A key that tokens are made with. It is for one format, which is the format of its tokens.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SigningKey {
    /// PASETO v4.local.
    V4Local(SymmetricKey),
    /// JWT with HS256.
    Hs256(Hs256Key),
    /// Signed, in the key pair's format.
    Pair(Arc<KeyPair>),
}

impl SigningKey {
    /// The key for tokens of `format` under the root key.
    pub fn shared(format: SharedFormat, root: &SymmetricKey) -> Self {
        match format {
            SharedFormat::V4Local => Self::V4Local(root.clone()),
            SharedFormat::Hs256 => Self::Hs256(Hs256Key::new(root)),
        }
    }

    /// The format of its tokens.
    pub fn format(&self) -> Format {
        match self {
            Self::V4Local(_) => SharedFormat::V4Local.into(),
            Self::Hs256(_) => SharedFormat::Hs256.into(),
            Self::Pair(pair) => pair.format().into(),
        }
    }

    /// The key's name, as it appears in its tokens.
    pub fn id(&self) -> KeyId {
        match self {
            Self::V4Local(key) => key.id(),
            Self::Hs256(key) => key.id().clone(),
            Self::Pair(pair) => pair.id().clone(),
        }
    }
}

impl From<SymmetricKey> for SigningKey {
    fn from(key: SymmetricKey) -> Self {
        Self::V4Local(key)
    }
}

impl From<Hs256Key> for SigningKey {
    fn from(key: Hs256Key) -> Self {
        Self::Hs256(key)
    }
}

impl From<Arc<KeyPair>> for SigningKey {
    fn from(pair: Arc<KeyPair>) -> Self {
        Self::Pair(pair)
    }
}

/// Makes the access tokens of one issuer for one audience.
pub struct Issuer {
    party: Party,
    /// The key with its name, which is a hash, or the reason why no tokens can be made at the moment.
    key: ArcSwap<Result<(SigningKey, KeyId), IssueError>>,
}

impl Issuer {
    /// An issuer that makes tokens of the key's format.
    pub fn new(key: impl Into<SigningKey>, party: Party) -> Self {
        let key = key.into();
        let id = key.id();
        Self { party, key: ArcSwap::from_pointee(Ok((key, id))) }
    }

    /// The issuer and the audience of the tokens.
    pub fn party(&self) -> &Party {
        &self.party
    }

    /// Makes tokens with `key` from now on.
    pub fn set_key(&self, key: impl Into<SigningKey>) {
        let key = key.into();
        let id = key.id();
        self.key.store(Arc::new(Ok((key, id))));
    }

    /// Makes no more tokens, for this reason, until a key is set again.
    pub fn withhold(&self, why: IssueError) {
        self.key.store(Arc::new(Err(why)));
    }

    /// Whether there is a key to make tokens with, even if it is not known at the moment whether it is still good.
    pub fn has_key(&self) -> bool {
        !matches!(**self.key.load(), Err(IssueError::NoKey))
    }

    /// Makes a token for `subject`. Times are truncated to whole seconds, so that the answer to a login and the token
    /// agree.
    ///
    /// # Errors
    ///
    /// When there is no key at the moment, the system has no randomness, or a signature cannot be made.
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
        let held = self.key.load();
        let (key, id) = (**held).as_ref().map_err(|why| *why)?;
        let token = match key {
            SigningKey::V4Local(key) => paseto_local::encrypt(key, id, &claims.to_paseto_json())?,
            SigningKey::Hs256(key) => jwt::sign_hs256(key, &claims.to_jwt_json()),
            SigningKey::Pair(pair) => pair.sign(&claims)?,
        };
        Ok(AccessToken { token: token.into(), issued_at, expires_at })
    }
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issuer")
            .field("party", &self.party)
            .field("key", &(**self.key.load()).as_ref().map(|key| &key.1))
            .finish()
    }
}

/// A new token with the times that it carries. `Debug` does not show the token.
#[derive(Debug)]
pub struct AccessToken {
    token: SecretString,
    /// Its `iat`.
    pub issued_at: OffsetDateTime,
    /// Its `exp`.
    pub expires_at: OffsetDateTime,
}

impl AccessToken {
    /// The token itself, only for the answer to its owner.
    pub fn expose(&self) -> &str {
        self.token.expose_secret()
    }
}
