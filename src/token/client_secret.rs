//! Secrets of introspection clients: `gps_` and 32 random bytes in unpadded base64url.
//!
//! A secret is stored as its SHA-256. Slow hashes are for passwords that people choose: these secrets have 256 random
//! bits, which nobody can guess, and a slow hash would have to be paid for at every introspection. The prefix is for
//! secret scanners.

use aws_lc_rs::{constant_time, digest};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use secrecy::{ExposeSecret, SecretString};

const PREFIX: &str = "gps_";

/// What is stored of a secret: its SHA-256.
pub type SecretHash = [u8; 32];

/// The secret of a new client. `Debug` does not show it, and memory is wiped on drop.
#[derive(Debug)]
pub struct ClientSecret(SecretString);

impl ClientSecret {
    /// Takes 32 bytes, which must come from a cryptographic random generator.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        let mut text = PREFIX.to_owned();
        // All at once: a string that grows later leaves a copy behind.
        text.reserve_exact(43);
        URL_SAFE_NO_PAD.encode_string(bytes, &mut text);
        Self(text.into())
    }

    /// The secret itself, to be shown only to whoever created the client.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// What to store of it.
    pub fn hash(&self) -> SecretHash {
        hash(self.expose())
    }
}

/// Whether `presented` is the secret that `stored` was made from. Takes the same time either way, and also if nothing
/// is stored.
pub fn is_secret(presented: &str, stored: Option<&SecretHash>) -> bool {
    // The hash of no known secret.
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
