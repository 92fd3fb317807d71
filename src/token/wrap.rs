//! Private keys at rest: AES-256-GCM under a key derived from the root key, bound to the format and the name of the key
//! that is wrapped.
//!
//! PASERK's wrapping (`k4.secret-wrap.pie`) covers only PASETO keys, not those for JWTs; this one serves all formats.

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use zeroize::Zeroizing;

use super::{
    format::KeyPairFormat,
    key::{InvalidKey, KeyId, SymmetricKey},
    key_pair::KeyPair,
};

/// The first byte of a wrapped key, which says what the rest is.
const VERSION: u8 = 1;

/// Wraps private keys under a key derived from the root key for that purpose alone.
pub struct WrappingKey {
    key: RandomizedNonceKey,
    root: KeyId,
}

impl WrappingKey {
    /// The wrapping key derived from `root`.
    pub fn new(root: &SymmetricKey) -> Self {
        let derived = root.derive("signing key wrapping v1");
        let key = RandomizedNonceKey::new(&AES_256_GCM, derived.as_bytes())
            .expect("AES-256-GCM takes any key of 32 bytes");
        Self { key, root: root.id() }
    }

    /// The name of the root key, `k4.lid.…`.
    pub fn root(&self) -> &KeyId {
        &self.root
    }

    /// Encrypts the private key of `pair`. The result is a version byte, a nonce of 12 bytes, and the ciphertext with
    /// its tag.
    ///
    /// # Errors
    ///
    /// Only when the system has no randomness for a nonce.
    pub fn wrap(&self, pair: &KeyPair) -> Result<Vec<u8>, InvalidKey> {
        let mut sealed = Zeroizing::new(pair.to_private_bytes()?.to_vec());
        let nonce = self
            .key
            .seal_in_place_append_tag(associated(pair.format(), pair.id()), &mut *sealed)
            .map_err(|_| InvalidKey::Private)?;
        Ok([&[VERSION], &nonce.as_ref()[..], &sealed[..]].concat())
    }

    /// Opens the key pair of this format and name that [`wrap`](Self::wrap) wrapped under the same root.
    ///
    /// # Errors
    ///
    /// When the key was wrapped under another root or for another format or name, or the data has been changed since.
    pub fn unwrap(&self, format: KeyPairFormat, id: &KeyId, wrapped: &[u8]) -> Result<KeyPair, InvalidKey> {
        let (&[VERSION], rest) = wrapped.split_first_chunk().ok_or(InvalidKey::Wrapped)? else {
            return Err(InvalidKey::Wrapped);
        };
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>().ok_or(InvalidKey::Wrapped)?;
        let mut opened = Zeroizing::new(sealed.to_vec());
        let private = self
            .key
            .open_in_place(Nonce::assume_unique_for_key(*nonce), associated(format, id), &mut opened)
            .map_err(|_| InvalidKey::Wrapped)?;
        let pair = KeyPair::from_private_bytes(format, private)?;
        if pair.id() == id { Ok(pair) } else { Err(InvalidKey::Wrapped) }
    }
}

impl std::fmt::Debug for WrappingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WrappingKey({})", self.root)
    }
}

/// What the ciphertext is bound to. No format's name contains the separator.
fn associated(format: KeyPairFormat, id: &KeyId) -> Aad<Vec<u8>> {
    Aad::from(format!("gatepass signing key\0{format}\0{id}").into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::SignatureAlgorithm;

    #[test]
    fn a_wrapped_key_opens_only_with_its_root_key_format_and_id() {
        let key = WrappingKey::new(&SymmetricKey::from_bytes([1; 32]));
        let es256 = KeyPairFormat::Jwt(SignatureAlgorithm::Es256);
        let pair = KeyPair::generate(es256).unwrap();
        let wrapped = key.wrap(&pair).unwrap();
        assert_eq!(key.unwrap(es256, pair.id(), &wrapped).unwrap().id(), pair.id());
        // A fresh nonce each time.
        assert_ne!(key.wrap(&pair).unwrap(), wrapped);

        let other = KeyPair::generate(es256).unwrap();
        assert!(key.unwrap(es256, other.id(), &wrapped).is_err());
        assert!(key.unwrap(KeyPairFormat::V4Public, pair.id(), &wrapped).is_err());
        let other = WrappingKey::new(&SymmetricKey::from_bytes([2; 32]));
        assert!(other.unwrap(es256, pair.id(), &wrapped).is_err());
        for i in 0..wrapped.len() {
            let mut altered = wrapped.clone();
            altered[i] ^= 1;
            assert!(key.unwrap(es256, pair.id(), &altered).is_err(), "byte {i}");
            assert!(key.unwrap(es256, pair.id(), &wrapped[..i]).is_err(), "cut at {i}");
        }
    }

    #[test]
    fn the_private_key_is_not_visible_in_the_wrapped_key() {
        let key = WrappingKey::new(&SymmetricKey::from_bytes([1; 32]));
        let pair = KeyPair::generate(KeyPairFormat::V4Public).unwrap();
        let (private, wrapped) = (pair.to_private_bytes().unwrap(), key.wrap(&pair).unwrap());
        assert!(!wrapped.windows(8).any(|window| private.windows(8).any(|secret| secret == window)));
    }
}
