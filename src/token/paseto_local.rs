//! PASETO v4.local: XChaCha20 and keyed BLAKE2b, by `pasetors`. The footer is `{"kid":"k4.lid.…"}`; there is no implicit
//! assertion, so that any PASETO library that has the key can read our tokens.

use pasetors::{
    Local,
    token::UntrustedToken,
    version4::{LocalToken, V4},
};
use serde::{Deserialize, Serialize};

use super::{
    error::{IssueError, Rejection},
    key::{KeyId, SymmetricKey},
};

/// The fixed beginning of every token of this format.
pub(super) const HEADER: &str = "v4.local.";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Footer<'a> {
    kid: &'a str,
}

/// Encrypts `message` under `key`, with the key's id in the footer.
pub(super) fn encrypt(key: &SymmetricKey, id: &KeyId, message: &[u8]) -> Result<String, IssueError> {
    let footer =
        serde_json::to_vec(&Footer { kid: id.as_str() }).expect("a struct of one string has a JSON form");
    LocalToken::encrypt(&key.paseto(), message, Some(&footer), None).map_err(|_| IssueError)
}

/// A token of this format whose shape is right and whose content nobody has vouched for yet.
pub(super) struct Sealed(UntrustedToken<Local, V4>);

impl Sealed {
    pub(super) fn parse(token: &str) -> Result<Self, Rejection> {
        UntrustedToken::try_from(token).map(Self).map_err(|_| Rejection::Malformed)
    }

    /// The key id that the footer names. Its only use is to look among the configured keys.
    pub(super) fn kid(&self) -> Result<&str, Rejection> {
        serde_json::from_slice::<Footer<'_>>(self.0.untrusted_footer())
            .map(|footer| footer.kid)
            .map_err(|_| Rejection::Malformed)
    }

    /// Checks the tag and decrypts. The whole token is authenticated, footer included.
    pub(super) fn decrypt(&self, key: &SymmetricKey) -> Result<Vec<u8>, Rejection> {
        let trusted =
            LocalToken::decrypt(&key.paseto(), &self.0, None, None).map_err(|_| Rejection::Forged)?;
        Ok(trusted.payload().as_bytes().to_vec())
    }
}
