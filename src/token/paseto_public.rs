//! PASETO v4.public: Ed25519, by `pasetors`. The footer is `{"kid":"k4.pid.…"}`; there is no implicit assertion, so that
//! any PASETO library that has the public key can check our tokens.

use pasetors::{
    Public,
    keys::{AsymmetricKeyPair, AsymmetricPublicKey, AsymmetricSecretKey, Generate},
    paserk::{FormatAsPaserk, Id},
    token::UntrustedToken,
    version4::{PublicToken, V4},
};

use super::{
    error::{IssueError, Rejection},
    key::{InvalidKey, KeyId},
    paseto_footer,
};

/// The fixed beginning of every token of this format.
pub(super) const HEADER: &str = PublicToken::HEADER;

/// A public key for this format and no other.
#[derive(Clone, Debug)]
pub(super) struct PublicKey(AsymmetricPublicKey<V4>);

impl PublicKey {
    /// Reads PASERK `k4.public.…`.
    pub(super) fn from_paserk(text: &str) -> Result<Self, InvalidKey> {
        AsymmetricPublicKey::try_from(text).map(Self).map_err(|_| InvalidKey::PublicPaserk)
    }

    /// The key as PASERK `k4.public.…`.
    pub(super) fn to_paserk(&self) -> String {
        let mut text = String::new();
        self.0.fmt(&mut text).expect("writing to a String does not fail");
        text
    }

    /// The key's name, PASERK `k4.pid.…`.
    pub(super) fn id(&self) -> KeyId {
        KeyId::from_paserk_id(&Id::from(&self.0))
    }
}

/// A private key for this format and no other. Wiped on drop.
pub(super) struct SecretKey(AsymmetricSecretKey<V4>);

impl SecretKey {
    /// A new key, from the system's randomness.
    pub(super) fn generate() -> Result<Self, InvalidKey> {
        AsymmetricKeyPair::generate().map(|pair| Self(pair.secret)).map_err(|_| InvalidKey::Private)
    }

    /// Reads seed and public key, 64 bytes.
    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidKey> {
        // pasetors panics at a seed of nothing but zeros.
        if bytes.len() != 64 || bytes[..32].iter().all(|&byte| byte == 0) {
            return Err(InvalidKey::Private);
        }
        AsymmetricSecretKey::from(bytes).map(Self).map_err(|_| InvalidKey::Private)
    }

    /// Seed and public key, 64 bytes.
    pub(super) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    pub(super) fn public_key(&self) -> PublicKey {
        PublicKey((&self.0).try_into().expect("a secret key of v4 ends with its public key"))
    }

    /// Signs `message`, with the key's id in the footer.
    pub(super) fn sign(&self, id: &KeyId, message: &[u8]) -> Result<String, IssueError> {
        PublicToken::sign(&self.0, message, Some(&paseto_footer::write(id)), None).map_err(|_| IssueError)
    }
}

/// A token of this format whose shape is right and whose content nobody has vouched for yet.
pub(super) struct Signed(UntrustedToken<Public, V4>);

impl Signed {
    pub(super) fn parse(token: &str) -> Result<Self, Rejection> {
        UntrustedToken::try_from(token).map(Self).map_err(|_| Rejection::Malformed)
    }

    /// The key id that the footer names. Its only use is to look among the configured keys.
    pub(super) fn kid(&self) -> Result<&str, Rejection> {
        paseto_footer::kid(self.0.untrusted_footer())
    }

    /// What the token says, unchecked: for people who look into one, and for nothing else.
    pub(super) fn untrusted_payload(&self) -> &[u8] {
        self.0.untrusted_payload()
    }

    /// Checks the signature. The whole token is signed, footer included.
    pub(super) fn verify(&self, key: &PublicKey) -> Result<Vec<u8>, Rejection> {
        let trusted = PublicToken::verify(&key.0, &self.0, None, None).map_err(|_| Rejection::Forged)?;
        Ok(trusted.payload().as_bytes().to_vec())
    }
}
