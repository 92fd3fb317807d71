//! PASETO v4.public: Ed25519, through `pasetors`. The footer is `{"kid":"k4.pid.…"}`; there is no implicit assertion,
//! so that any PASETO library that has the public key can check our tokens.

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
        // pasetors panics on a seed of all zeros.
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
        PublicToken::sign(&self.0, message, Some(&paseto_footer::write(id)), None)
            .map_err(|_| IssueError::Failed)
    }
}

/// A well-formed token of this format whose content has not been authenticated yet.
pub(super) struct Signed(UntrustedToken<Public, V4>);

impl Signed {
    pub(super) fn parse(token: &str) -> Result<Self, Rejection> {
        UntrustedToken::try_from(token).map(Self).map_err(|_| Rejection::Malformed)
    }

    /// The key id that the footer names. It may only be used to look up a configured key.
    pub(super) fn kid(&self) -> Result<&str, Rejection> {
        paseto_footer::kid(self.0.untrusted_footer())
    }

    /// What the token says, unchecked: only for people who inspect a token.
    pub(super) fn untrusted_payload(&self) -> &[u8] {
        self.0.untrusted_payload()
    }

    /// Checks the signature. The whole token is signed, footer included.
    pub(super) fn verify(&self, key: &PublicKey) -> Result<Vec<u8>, Rejection> {
        let trusted = PublicToken::verify(&key.0, &self.0, None, None).map_err(|_| Rejection::Forged)?;
        Ok(trusted.payload().as_bytes().to_vec())
    }
}

#[cfg(test)]
mod tests {
    //! The official vectors ([`vectors`]) that apply to the functions here.
    //!
    //! - `v4.json`: [`Signed`] reads the tokens, with the public key as a PASERK. Those with an implicit assertion must
    //!   fail, since we accept none, and so must v4.local and v3. Where the footer is a `kid`, the only footer that
    //!   [`SecretKey::sign`] writes, signing produces the same token byte for byte.
    //! - `k4.public.json`, `k4.pid.json`: [`PublicKey`], read from the PASERK. A key of the wrong length is given as
    //!   the PASERK that it would have.
    //! - `k4.secret.json`: [`SecretKey::from_bytes`], and the public key that it derives. We do not read or write
    //!   `k4.secret` as text. The all-zero seed, a valid key in the vectors, is refused here.

    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    use serde_json::Value;

    use super::*;
    use crate::token::vectors::{self, bytes, text};

    /// The key in `member`, of whatever length, read from its PASERK.
    fn public(vector: &Value, member: &str) -> Result<PublicKey, InvalidKey> {
        let key = bytes(vector, member).ok_or(InvalidKey::PublicPaserk)?;
        PublicKey::from_paserk(&format!("k4.public.{}", URL_SAFE_NO_PAD.encode(key)))
    }

    #[test]
    fn tokens() {
        let mut signed_again = 0;
        let vectors = vectors::read("v4.json");
        for vector in &vectors {
            let (name, token, footer) = (&vector["name"], text(vector, "token"), text(vector, "footer"));
            let key = public(vector, "public-key");
            let opened = Signed::parse(token).and_then(|signed| {
                let key = key.as_ref().map_err(|_| Rejection::UnknownKey)?;
                Ok((signed.0.untrusted_footer().to_vec(), signed.verify(key)?))
            });
            if vector["expect-fail"] == true || vector["implicit-assertion"] != "" || key.is_err() {
                assert!(opened.is_err(), "{name}");
                continue;
            }
            let payload = text(vector, "payload").as_bytes();
            assert_eq!(opened.unwrap(), (footer.as_bytes().to_vec(), payload.to_vec()), "{name}");

            let secret = SecretKey::from_bytes(&bytes(vector, "secret-key").unwrap()).unwrap();
            if let Ok(kid) = paseto_footer::kid(footer.as_bytes()) {
                let id = KeyId::from_stored(kid.to_owned());
                assert_eq!(secret.sign(&id, payload).unwrap(), token, "{name}");
                signed_again += 1;
            }
        }
        assert!(vectors.is_empty() || signed_again > 0);
    }

    #[test]
    fn public_keys_and_their_ids() {
        for vector in vectors::read("k4.public.json") {
            if vector["expect-fail"] == true {
                assert!(public(&vector, "key").is_err(), "{vector}");
                continue;
            }
            let read = PublicKey::from_paserk(text(&vector, "paserk")).unwrap();
            assert_eq!(read.0.as_bytes(), bytes(&vector, "key").unwrap(), "{vector}");
            assert_eq!(read.to_paserk(), text(&vector, "paserk"));
        }
        for vector in vectors::read("k4.pid.json") {
            let id = public(&vector, "key").map(|key| key.id().as_str().to_owned());
            assert_eq!(id.ok().as_deref(), vector["paserk"].as_str(), "{vector}");
        }
    }

    #[test]
    fn secret_keys() {
        for vector in vectors::read("k4.secret.json") {
            let key = bytes(&vector, "key").unwrap();
            let read = SecretKey::from_bytes(&key);
            if vector["expect-fail"] == true || key.starts_with(&[0; 32]) {
                assert!(read.is_err(), "{vector}");
                continue;
            }
            let read = read.unwrap();
            assert_eq!(read.as_bytes(), key, "{vector}");
            assert_eq!(read.public_key().0.as_bytes(), bytes(&vector, "public-key").unwrap(), "{vector}");
        }
    }
}
