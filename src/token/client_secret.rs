//! Secrets of introspection clients: `gps_` and 32 random bytes in unpadded base64url.
//!
//! A secret is kept as its SHA-256. A slow hash is for what people think up: these are 256 bits to guess, which no number
//! of tries comes near, and a slow hash would be paid at every introspection. The prefix is there for programs that look
//! for secrets where none should be.

use aws_lc_rs::{constant_time, digest};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use secrecy::{ExposeSecret, SecretString};

const PREFIX: &str = "gps_";

/// What is kept of a secret: its SHA-256.
pub type SecretHash = [u8; 32];

/// The secret of a client just made. `Debug` does not show it, memory is wiped on drop.
#[derive(Debug)]
pub struct ClientSecret(SecretString);

impl ClientSecret {
    /// Takes 32 bytes, which have to come from a cryptographic generator.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        let mut text = PREFIX.to_owned();
        // At once, for what grows later leaves a copy behind.
        text.reserve_exact(43);
        URL_SAFE_NO_PAD.encode_string(bytes, &mut text);
        Self(text.into())
    }

    /// The secret itself, for whoever made the client and nowhere else.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// What to keep of it.
    pub fn hash(&self) -> SecretHash {
        hash(self.expose())
    }
}

/// Whether `presented` is the secret that `stored` was made from. Takes the same time whichever it is, and where there is
/// nothing stored.
pub fn is_secret(presented: &str, stored: Option<&SecretHash>) -> bool {
    // Of nothing that anybody knows.
    const NOBODYS: SecretHash = [0; 32];
    let is_same =
        constant_time::verify_slices_are_equal(&hash(presented), stored.unwrap_or(&NOBODYS)).is_ok();
    is_same & stored.is_some()
}

fn hash(secret: &str) -> SecretHash {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, secret.as_bytes()).as_ref());
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_known_by_its_hash_alone() {
        let secret = ClientSecret::from_bytes([7; 32]);
        assert_eq!(secret.expose(), "gps_BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc");
        let kept = secret.hash();
        assert!(is_secret(secret.expose(), Some(&kept)));
        for other in ["", "gps_", &secret.expose()[4..], &format!("{}=", secret.expose())] {
            assert!(!is_secret(other, Some(&kept)), "{other}");
        }
        assert!(!is_secret(ClientSecret::from_bytes([8; 32]).expose(), Some(&kept)));
        assert!(!is_secret(secret.expose(), None));
        assert!(!is_secret("", None));
    }

    #[test]
    fn debug_shows_nothing() {
        let shown = format!("{:?}", ClientSecret::from_bytes([7; 32]));
        assert!(!shown.contains("BwcH"), "{shown}");
    }
}
