//! Private keys and their public keys, each for one format.

use std::{fmt, str::FromStr};

use zeroize::Zeroizing;

use super::{
    error::IssueError,
    format::{KeyPairFormat, SignatureAlgorithm},
    jwk::Jwk,
    jwt,
    key::{InvalidKey, KeyId},
    paseto_public,
};

/// A private key with its public key, for one format. It is wiped on drop, and `Debug` shows only its name.
pub struct KeyPair {
    secret: Secret,
    public: PublicKey,
}

enum Secret {
    V4Public(paseto_public::SecretKey),
    Jwt(jwt::SecretKey),
}

impl KeyPair {
    /// A new key for `format`, from the randomness of the libraries that will use it. Making an RSA key takes a good
    /// part of a second.
    ///
    /// # Errors
    ///
    /// When the system has no randomness.
    pub fn generate(format: KeyPairFormat) -> Result<Self, InvalidKey> {
        Self::new(match format {
            KeyPairFormat::V4Public => Secret::V4Public(paseto_public::SecretKey::generate()?),
            KeyPairFormat::Jwt(algorithm) => Secret::Jwt(jwt::SecretKey::generate(algorithm)?),
        })
    }

    fn new(secret: Secret) -> Result<Self, InvalidKey> {
        let public = match &secret {
            Secret::V4Public(key) => PublicKey::new(Public::V4Public(key.public_key())),
            Secret::Jwt(key) => PublicKey::new(Public::Jwt(key.public_key()?)),
        };
        Ok(Self { secret, public })
    }

    /// Reads what [`to_private_bytes`](Self::to_private_bytes) wrote.
    pub(super) fn from_private_bytes(format: KeyPairFormat, bytes: &[u8]) -> Result<Self, InvalidKey> {
        Self::new(match format {
            KeyPairFormat::V4Public => Secret::V4Public(paseto_public::SecretKey::from_bytes(bytes)?),
            KeyPairFormat::Jwt(algorithm) => Secret::Jwt(jwt::SecretKey::from_pkcs8(algorithm, bytes)?),
        })
    }

    /// The private key: seed and public key for PASETO, PKCS #8 for JWT. Only for wrapping.
    pub(super) fn to_private_bytes(&self) -> Result<Zeroizing<Vec<u8>>, InvalidKey> {
        match &self.secret {
            Secret::V4Public(key) => Ok(Zeroizing::new(key.as_bytes().to_vec())),
            Secret::Jwt(key) => key.to_pkcs8(),
        }
    }

    /// The public key, which checks the tokens of this key.
    pub fn public_key(&self) -> &PublicKey {
        &self.public
    }

    /// The key's name, as it appears in its tokens.
    pub fn id(&self) -> &KeyId {
        &self.public.id
    }

    /// The format of its tokens.
    pub fn format(&self) -> KeyPairFormat {
        self.public.format()
    }

    pub(super) fn sign(&self, claims: &super::Claims) -> Result<String, IssueError> {
        match &self.secret {
            Secret::V4Public(key) => key.sign(self.id(), &claims.to_paseto_json()),
            Secret::Jwt(key) => key.sign(self.id(), &claims.to_jwt_json()),
        }
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyPair({})", self.id())
    }
}

/// A public key for one format.
///
/// Its text form is a PASERK (`k4.public.…`), or a JWK (RFC 7517) whose `kid` is its thumbprint (RFC 7638).
///
/// ```
/// use gatepass::token::PublicKey;
///
/// let key: PublicKey = "k4.public.cHFyc3R1dnd4eXp7fH1-f4CBgoOEhYaHiImKi4yNjo8".parse()?;
/// assert!(key.id().as_str().starts_with("k4.pid."));
/// # Ok::<(), gatepass::token::InvalidKey>(())
/// ```
#[derive(Clone, Debug)]
pub struct PublicKey {
    id: KeyId,
    pub(super) key: Public,
}

#[derive(Clone, Debug)]
pub(super) enum Public {
    V4Public(paseto_public::PublicKey),
    Jwt(jwt::PublicKey),
}

impl PublicKey {
    fn new(key: Public) -> Self {
        let id = match &key {
            Public::V4Public(key) => key.id(),
            Public::Jwt(key) => key.id(),
        };
        Self { id, key }
    }

    pub(super) fn from_jwk(jwk: Jwk) -> Result<Self, InvalidKey> {
        Ok(Self::new(Public::Jwt(jwt::PublicKey::from_jwk(jwk)?)))
    }

    /// The key's name, as it appears in its tokens: `k4.pid.…`, or a thumbprint.
    pub fn id(&self) -> &KeyId {
        &self.id
    }

    /// The format of the tokens that it checks.
    pub fn format(&self) -> KeyPairFormat {
        match &self.key {
            Public::V4Public(_) => KeyPairFormat::V4Public,
            Public::Jwt(key) => KeyPairFormat::Jwt(key.algorithm()),
        }
    }

    /// The security strength of the key in bits (NIST SP 800-57, part 1, table 2).
    pub fn security_bits(&self) -> u32 {
        match self.format() {
            KeyPairFormat::Jwt(SignatureAlgorithm::Rs256 | SignatureAlgorithm::Ps256) => 112,
            KeyPairFormat::V4Public
            | KeyPairFormat::Jwt(SignatureAlgorithm::EdDsa | SignatureAlgorithm::Es256) => 128,
        }
    }

    /// The key as a JWK, if it is for JWTs.
    pub(super) fn to_jwk(&self) -> Option<Jwk> {
        match &self.key {
            Public::V4Public(_) => None,
            Public::Jwt(key) => Some(key.to_jwk()),
        }
    }

    /// The key as a PASERK, if it is for PASETOs.
    pub(super) fn to_paserk(&self) -> Option<String> {
        match &self.key {
            Public::V4Public(key) => Some(key.to_paserk()),
            Public::Jwt(_) => None,
        }
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.key {
            Public::V4Public(key) => f.write_str(&key.to_paserk()),
            Public::Jwt(key) => {
                let json = serde_json::to_string(&key.to_jwk()).map_err(|_| fmt::Error)?;
                f.write_str(&json)
            }
        }
    }
}

impl FromStr for PublicKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        if text.starts_with("k4.") {
            return paseto_public::PublicKey::from_paserk(text).map(|key| Self::new(Public::V4Public(key)));
        }
        Self::from_jwk(serde_json::from_str(text).map_err(|_| InvalidKey::Jwk)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::Format;

    fn formats() -> impl Iterator<Item = KeyPairFormat> {
        Format::ALL.into_iter().filter_map(|format| match format {
            Format::KeyPair(format) => Some(format),
            Format::Shared(_) => None,
        })
    }

    #[test]
    fn a_key_pair_is_read_back_from_its_bytes_and_its_text() {
        for format in formats() {
            let pair = KeyPair::generate(format).unwrap();
            assert_eq!(pair.format(), format);

            let bytes = pair.to_private_bytes().unwrap();
            let read = KeyPair::from_private_bytes(format, &bytes).unwrap();
            assert_eq!(read.id(), pair.id());
            assert_eq!(read.to_private_bytes().unwrap(), bytes);

            let text = pair.public_key().to_string();
            let public: PublicKey = text.parse().unwrap();
            assert_eq!((public.id(), public.format()), (pair.id(), format));
            assert_eq!(public.to_string(), text);
            assert!(!text.contains(r#""d":"#), "{text}");
        }
    }

    #[test]
    fn unsupported_public_keys_are_refused() {
        let rs256 = KeyPair::generate(KeyPairFormat::Jwt(SignatureAlgorithm::Rs256)).unwrap();
        let ed = KeyPair::generate(KeyPairFormat::Jwt(SignatureAlgorithm::EdDsa)).unwrap();
        let (rs256, ed) = (rs256.public_key().to_string(), ed.public_key().to_string());
        let shared = jwt::Hs256Key::new(&super::super::SymmetricKey::from_bytes([1; 32])).to_jwk();
        for text in [
            "",
            "{}",
            "k4.public.",
            "k4.local.cHFyc3R1dnd4eXp7fH1-f4CBgoOEhYaHiImKi4yNjo8",
            &rs256.replace("RS256", "RS512"),
            &rs256.replace("RS256", "EdDSA"),
            &rs256.replace("RS256", "none"),
            &rs256.replace("AQAB", "AQ"),
            &ed.replace("Ed25519", "X25519"),
            &ed.replace(r#""kid":""#, r#""kid":"x"#),
            &shared,
        ] {
            assert!(text.parse::<PublicKey>().is_err(), "{text}");
        }
    }

    #[test]
    fn debug_shows_the_name_alone() {
        for format in formats() {
            let pair = KeyPair::generate(format).unwrap();
            assert_eq!(format!("{pair:?}"), format!("KeyPair({})", pair.id()));
        }
    }
}
