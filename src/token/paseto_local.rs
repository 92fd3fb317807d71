//! PASETO v4.local: XChaCha20 and keyed BLAKE2b, through `pasetors`. The footer is `{"kid":"k4.lid.…"}`; there is no
//! implicit assertion, so that any PASETO library that has the key can read our tokens.

use pasetors::{
    Local,
    token::UntrustedToken,
    version4::{LocalToken, V4},
};

use super::{
    error::{IssueError, Rejection},
    key::{KeyId, SymmetricKey},
    paseto_footer,
};

/// The fixed beginning of every token of this format.
pub(super) const HEADER: &str = "v4.local.";

/// Encrypts `message` under `key`, with the key's id in the footer.
pub(super) fn encrypt(key: &SymmetricKey, id: &KeyId, message: &[u8]) -> Result<String, IssueError> {
    LocalToken::encrypt(&key.paseto(), message, Some(&paseto_footer::write(id)), None)
        .map_err(|_| IssueError::Failed)
}

/// A well-formed token of this format whose content has not been authenticated yet.
pub(super) struct Sealed(UntrustedToken<Local, V4>);

impl Sealed {
    pub(super) fn parse(token: &str) -> Result<Self, Rejection> {
        UntrustedToken::try_from(token).map(Self).map_err(|_| Rejection::Malformed)
    }

    /// The key id that the footer names. It may only be used to look up a configured key.
    pub(super) fn kid(&self) -> Result<&str, Rejection> {
        paseto_footer::kid(self.0.untrusted_footer())
    }

    /// Checks the tag and decrypts. The whole token is authenticated, footer included.
    pub(super) fn decrypt(&self, key: &SymmetricKey) -> Result<Vec<u8>, Rejection> {
        let trusted =
            LocalToken::decrypt(&key.paseto(), &self.0, None, None).map_err(|_| Rejection::Forged)?;
        Ok(trusted.payload().as_bytes().to_vec())
    }
}

#[cfg(test)]
mod tests {
    //! The official vectors ([`vectors`]) of v4.local, `k4.local` and `k4.lid`, through our own [`Sealed`] and
    //! [`SymmetricKey`]. We accept only tokens without an implicit assertion, so every vector that has one must fail,
    //! as must tokens of another version or purpose. Our [`encrypt`] draws its own nonce, so no vector applies to what
    //! it makes.

    use secrecy::ExposeSecret;
    use serde_json::Value;

    use super::*;
    use crate::token::vectors::{self, text};

    fn key(vector: &Value) -> Option<SymmetricKey> {
        vectors::bytes(vector, "key")?.try_into().ok().map(SymmetricKey::from_bytes)
    }

    #[test]
    fn tokens() {
        for vector in vectors::read("v4.json") {
            let (name, token) = (&vector["name"], text(&vector, "token"));
            let opened = Sealed::parse(token).and_then(|sealed| {
                let key = key(&vector).ok_or(Rejection::UnknownKey)?;
                Ok((sealed.0.untrusted_footer().to_vec(), sealed.decrypt(&key)?))
            });
            if vector["expect-fail"] == true || vector["implicit-assertion"] != "" || key(&vector).is_none() {
                assert!(opened.is_err(), "{name}");
            } else {
                let (footer, message) = opened.unwrap();
                assert_eq!(footer, text(&vector, "footer").as_bytes(), "{name}");
                assert_eq!(message, text(&vector, "payload").as_bytes(), "{name}");
            }
        }
    }

    #[test]
    fn keys_and_their_ids() {
        for vector in vectors::read("k4.local.json") {
            let read = text(&vector, "paserk").parse::<SymmetricKey>();
            if vector["expect-fail"] == true {
                assert!(read.is_err(), "{vector}");
            } else {
                assert_eq!(read.unwrap().as_bytes(), key(&vector).unwrap().as_bytes(), "{vector}");
                let written = key(&vector).unwrap().to_paserk();
                assert_eq!(written.expose_secret(), text(&vector, "paserk"));
            }
        }
        for vector in vectors::read("k4.lid.json") {
            let id = key(&vector).map(|key| key.id().as_str().to_owned());
            assert_eq!(id.as_deref(), vector["paserk"].as_str(), "{vector}");
        }
    }
}
