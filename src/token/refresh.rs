//! Refresh tokens: `gpr_` and 52 bytes in unpadded base64url.
//!
//! A token consists of the session's id, the generation (how often the session has been renewed), and a MAC over both
//! and over a salt that only the session's row holds. Tokens are stored nowhere. A stolen table lacks the MAC key, and
//! a stolen key lacks the salt, so neither is enough to make a token. To forge one, 256 bits of MAC would have to be
//! guessed.

use std::fmt;

use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

use super::key::SymmetricKey;

/// What every refresh token begins with.
pub const PREFIX: &str = "gpr_";
const ID_BYTES: usize = 16;
const GENERATION_BYTES: usize = 4;
const MAC_BYTES: usize = 32;

/// The salt of one session, stored in its row.
pub type Salt = [u8; 32];

/// Makes and checks refresh tokens, with a key derived from the service's root key for that purpose alone.
#[derive(Clone)]
pub struct RefreshKey(hmac::Key);

impl RefreshKey {
    /// The key for refresh tokens under `root`.
    pub fn new(root: &SymmetricKey) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, root.derive("refresh token v1").as_bytes()))
    }

    /// The token of `session_id` in `generation`. The same input gives the same token.
    pub fn token(&self, session_id: Uuid, generation: u32, salt: &Salt) -> RefreshToken {
        let mut bytes = Vec::with_capacity(ID_BYTES + GENERATION_BYTES + MAC_BYTES);
        bytes.extend_from_slice(session_id.as_bytes());
        bytes.extend_from_slice(&generation.to_be_bytes());
        bytes.extend_from_slice(self.mac(session_id, generation, salt).as_ref());
        RefreshToken(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)).into())
    }

    /// Whether `presented` was made by [`token`](Self::token) for a session with this `salt`. In constant time.
    pub fn is_authentic(&self, presented: &Presented, salt: &Salt) -> bool {
        let message = message(presented.session_id, presented.generation, salt);
        hmac::verify(&self.0, &message, &presented.mac).is_ok()
    }

    fn mac(&self, session_id: Uuid, generation: u32, salt: &Salt) -> hmac::Tag {
        hmac::sign(&self.0, &message(session_id, generation, salt))
    }
}

/// The key that makes refresh tokens, and the keys of other refresh tokens that are still accepted.
#[derive(Clone, Debug)]
pub struct RefreshKeys {
    present: RefreshKey,
    accepted: Vec<RefreshKey>,
}

impl RefreshKeys {
    /// The keys under `root` and under former or coming roots.
    pub fn new<'r>(root: &SymmetricKey, accepted: impl IntoIterator<Item = &'r SymmetricKey>) -> Self {
        Self { present: RefreshKey::new(root), accepted: accepted.into_iter().map(RefreshKey::new).collect() }
    }

    /// See [`RefreshKey::token`].
    pub fn token(&self, session_id: Uuid, generation: u32, salt: &Salt) -> RefreshToken {
        self.present.token(session_id, generation, salt)
    }

    /// Whether `presented` was made with one of the keys. Each comparison takes constant time.
    pub fn is_authentic(&self, presented: &Presented, salt: &Salt) -> bool {
        std::iter::once(&self.present).chain(&self.accepted).any(|key| key.is_authentic(presented, salt))
    }
}

impl fmt::Debug for RefreshKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RefreshKey(…)")
    }
}

/// Every part has a fixed length, so that no two inputs give the same bytes.
fn message(session_id: Uuid, generation: u32, salt: &Salt) -> [u8; ID_BYTES + GENERATION_BYTES + 32] {
    let mut message = [0; ID_BYTES + GENERATION_BYTES + 32];
    message[..ID_BYTES].copy_from_slice(session_id.as_bytes());
    message[ID_BYTES..ID_BYTES + GENERATION_BYTES].copy_from_slice(&generation.to_be_bytes());
    message[ID_BYTES + GENERATION_BYTES..].copy_from_slice(salt);
    message
}

/// A new refresh token. `Debug` does not show it.
#[derive(Debug)]
pub struct RefreshToken(SecretString);

impl RefreshToken {
    /// The token itself, only for the answer to its owner.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

/// A token that someone presented: of the right shape, but not checked yet.
pub struct Presented {
    /// The session that it names.
    pub session_id: Uuid,
    /// The generation that it names.
    pub generation: u32,
    mac: [u8; MAC_BYTES],
}

impl Presented {
    /// Parses a refresh token; `None` for a text of any other shape.
    pub fn parse(token: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(token.strip_prefix(PREFIX)?).ok()?;
        let (id, rest) = bytes.split_first_chunk::<ID_BYTES>()?;
        let (generation, mac) = rest.split_first_chunk::<GENERATION_BYTES>()?;
        Some(Self {
            session_id: Uuid::from_bytes(*id),
            generation: u32::from_be_bytes(*generation),
            mac: mac.try_into().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_authentic_only_for_its_session_generation_salt_and_key() {
        let key = RefreshKey::new(&SymmetricKey::from_bytes([1; 32]));
        let (id, salt) = (Uuid::from_u128(7), [9; 32]);
        let token = key.token(id, 3, &salt);
        let presented = Presented::parse(token.expose()).unwrap();
        assert_eq!((presented.session_id, presented.generation), (id, 3));
        assert!(key.is_authentic(&presented, &salt));

        assert!(!key.is_authentic(&presented, &[8; 32]));
        assert!(!RefreshKey::new(&SymmetricKey::from_bytes([2; 32])).is_authentic(&presented, &salt));
        for (i, _) in token.expose().char_indices() {
            let mut altered = token.expose().to_owned();
            let letter = if altered.as_bytes()[i] == b'B' { "C" } else { "B" };
            altered.replace_range(i..=i, letter);
            if let Some(presented) = Presented::parse(&altered) {
                assert!(!key.is_authentic(&presented, &salt), "character {i}");
            }
        }
    }

    #[test]
    fn other_shapes_are_no_refresh_tokens() {
        let token = RefreshKey::new(&SymmetricKey::from_bytes([1; 32])).token(Uuid::nil(), 0, &[0; 32]);
        let token = token.expose();
        for other in
            ["", "gpr_", "gpr_AAAA", &token[4..], &format!("{token}A"), &format!("{token}="), &token[..70]]
        {
            assert!(Presented::parse(other).is_none(), "{other}");
        }
        assert_eq!(token.len(), 74);
    }
}
