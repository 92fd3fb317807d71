//! Keys as types: one 32-byte secret, its PASERK forms, and the keys derived from it.

use std::{fmt, str::FromStr};

use pasetors::{keys, paserk::FormatAsPaserk, paserk::Id, version4::V4};
use secrecy::SecretString;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// A 256-bit symmetric key: the key of PASETO v4.local, and the root from which other keys are derived.
///
/// It is parsed from a PASERK `k4.local.…` or from exactly 32 bytes of text. `Debug` shows nothing of it, and memory is
/// wiped on drop.
///
/// ```
/// use gatepass::token::SymmetricKey;
///
/// assert!("an ordinary text of 32 letters..".parse::<SymmetricKey>().is_ok());
/// assert!("too short".parse::<SymmetricKey>().is_err());
/// ```
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SymmetricKey([u8; Self::BYTES]);

impl SymmetricKey {
    /// The length of a key in bytes.
    pub const BYTES: usize = 32;

    /// Takes 32 bytes, which must come from a cryptographic random generator.
    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    /// The bytes of the key. They must not be printed, logged or compared with `==`.
    pub fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }

    /// The key as PASERK `k4.local.…`.
    pub fn to_paserk(&self) -> SecretString {
        let mut text = String::new();
        self.paseto().fmt(&mut text).expect("writing to a String does not fail");
        text.into()
    }

    /// The key's public name, `k4.lid.…`: a hash that reveals nothing about the key.
    pub fn id(&self) -> KeyId {
        KeyId::from_paserk_id(&Id::from(&self.paseto()))
    }

    /// Derives a 256-bit key for `purpose` alone (HKDF-SHA-256, RFC 5869). It reveals nothing about this key or about a
    /// key for another purpose.
    pub fn derive(&self, purpose: &str) -> Self {
        use aws_lc_rs::hkdf;

        let mut derived = [0; Self::BYTES];
        hkdf::Salt::new(hkdf::HKDF_SHA256, b"gatepass")
            .extract(&self.0)
            .expand(&[purpose.as_bytes()], hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut derived))
            .expect("32 bytes are within what HKDF-SHA-256 gives");
        Self(derived)
    }

    pub(super) fn paseto(&self) -> keys::SymmetricKey<V4> {
        keys::SymmetricKey::from(&self.0).expect("a v4 key is any 32 bytes")
    }
}

impl FromStr for SymmetricKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        // `k4.…` is always meant as a PASERK, never as 32 bytes of text.
        let bytes = if text.starts_with("k4.") {
            let key = keys::SymmetricKey::<V4>::try_from(text).map_err(|_| InvalidKey::Paserk)?;
            key.as_bytes().try_into()
        } else {
            text.as_bytes().try_into()
        };
        bytes.map(Self).map_err(|_| InvalidKey::Length(text.len()))
    }
}

impl fmt::Debug for SymmetricKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SymmetricKey(…)")
    }
}

/// Why a text or bytes are not a key. Reveals nothing of them except the length.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidKey {
    /// It begins like a PASERK, but is not a valid `k4.local.…`.
    #[error("not a valid PASERK of the form k4.local.…")]
    Paserk,
    /// It is neither a PASERK nor 32 bytes long.
    #[error("expected a PASERK k4.local.… or exactly 32 bytes of text, got {0} bytes")]
    Length(usize),
    /// It begins like a PASERK, but is not a valid `k4.public.…`.
    #[error("not a valid PASERK of the form k4.public.…")]
    PublicPaserk,
    /// It is not a JWK with one of our algorithms and its thumbprint as `kid`.
    #[error("not a public JWK for EdDSA, ES256, RS256 or PS256 with its thumbprint as kid")]
    Jwk,
    /// It is not a JWK for HS256 with its thumbprint as `kid`.
    #[error(
        "not a JWK for HS256 with its thumbprint as kid, as `gatepass key show --jwt-hs256 --json` prints it"
    )]
    SharedJwk,
    /// A private key could not be made or read.
    #[error("not a private key of its format")]
    Private,
    /// The wrapped private key could not be opened.
    #[error("the wrapped key does not open under this root key")]
    Wrapped,
}

/// The public name of a key, as it appears in a token's footer or header: a PASERK id (`k4.lid.…`, `k4.pid.…`) or the
/// thumbprint of a JWK (RFC 7638). It is a hash, which reveals nothing about the key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyId(String);

impl KeyId {
    pub(super) fn from_paserk_id(id: &Id) -> Self {
        let mut text = String::new();
        id.fmt(&mut text).expect("writing to a String does not fail");
        Self(text)
    }

    pub(super) fn from_thumbprint(text: String) -> Self {
        Self(text)
    }

    /// The name of a key that is stored somewhere. Whether there is such a key is not checked.
    pub fn from_stored(text: String) -> Self {
        Self(text)
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn a_key_is_a_paserk_or_32_bytes_and_nothing_else() {
        let paserk = "k4.local.cHFyc3R1dnd4eXp7fH1-f4CBgoOEhYaHiImKi4yNjo8";
        let key: SymmetricKey = paserk.parse().unwrap();
        assert_eq!(key.to_paserk().expose_secret(), paserk);
        assert_eq!(key.id().as_str(), "k4.lid.iVtYQDjr5gEijCSjJC3fQaJm7nCeQSeaty0Jixy8dbsk");

        for text in
            ["", "k4.local.", "k4.local.AAAA", "k4.public.cHFyc3R1dnd4eXp7fH1-f4CBgoOEhYaHiImKi4yNjo8"]
        {
            assert!(text.parse::<SymmetricKey>().is_err(), "{text}");
        }
        assert_eq!("x".repeat(31).parse::<SymmetricKey>().unwrap_err(), InvalidKey::Length(31));
        assert_eq!("x".repeat(33).parse::<SymmetricKey>().unwrap_err(), InvalidKey::Length(33));
        // Sixteen two-byte letters are 32 bytes.
        assert!("é".repeat(16).parse::<SymmetricKey>().is_ok());
    }

    #[test]
    fn debug_shows_nothing() {
        let key: SymmetricKey = "12345678901234567890123456789012".parse().unwrap();
        assert_eq!(format!("{key:?}"), "SymmetricKey(…)");
    }

    #[test]
    fn derived_keys_differ_by_purpose_and_from_their_root() {
        let key: SymmetricKey = "12345678901234567890123456789012".parse().unwrap();
        assert_ne!(key.derive("a").as_bytes(), key.derive("b").as_bytes());
        assert_ne!(key.derive("a").as_bytes(), key.as_bytes());
        assert_eq!(key.derive("a").as_bytes(), key.derive("a").as_bytes());
    }
}
