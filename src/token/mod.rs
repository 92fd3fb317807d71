//! Tokens: what they say ([`Claims`]), how they are made ([`Issuer`]) and how they are checked ([`Verifier`]).
//!
//! This module is pure: it has no clock and does no I/O. The current time is a parameter of every call that needs it;
//! only the nonce of a v4.local token is drawn from the system, by `pasetors` itself.
//!
//! Each format has its own file. A key knows the one format it is for, and a [`Verifier`] is made from keys. Nothing in
//! a token ever decides how the token is checked: the format's fixed prefix and the key id only select among the keys
//! that the operator configured, and anything that does not fit one of them exactly is refused. A new format is one
//! more variant of [`SigningKey`] and [`VerifyingKey`]; callers do not change.
//!
//! ```
//! use gatepass::token::{Issuer, Lifetime, Party, Subject, SymmetricKey, Verifier};
//! use time::{Duration, OffsetDateTime};
//! use uuid::Uuid;
//!
//! let key: SymmetricKey = "k4.local.cHFyc3R1dnd4eXp7fH1-f4CBgoOEhYaHiImKi4yNjo8".parse()?;
//! let party = Party { issuer: "gatepass".into(), audience: "gatepass".into() };
//! let issuer = Issuer::new(key.clone(), party.clone());
//! let verifier = Verifier::new([key], party);
//!
//! let now = OffsetDateTime::UNIX_EPOCH;
//! let subject = Subject {
//!     user_id: Uuid::from_u128(1),
//!     session_id: Uuid::from_u128(2),
//!     username: "alice".into(),
//!     roles: vec![],
//! };
//! let token = issuer.issue(subject, Uuid::from_u128(3), Lifetime { now, expires_at: now + Duration::minutes(15) })?;
//!
//! assert_eq!(verifier.verify(token.expose(), now)?.username, "alice");
//! assert!(verifier.verify(token.expose(), now + Duration::minutes(15)).is_err());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod cache;
mod claims;
#[cfg(feature = "server")]
pub mod client_secret;
mod error;
mod format;
mod issuer;
mod json;
mod jwk;
mod jwt;
mod key;
mod key_pair;
mod paseto_footer;
mod paseto_local;
mod paseto_public;
mod published;
#[cfg(feature = "server")]
pub mod refresh;
mod revocations;
#[cfg(feature = "server")]
pub mod ring;
mod silence;
#[cfg(test)]
mod vectors;
mod verifier;
mod wrap;

pub use claims::{Claims, InvalidClaims, Lifetime, Party, Subject};
pub use error::{IssueError, Rejection};
pub use format::{Format, KeyPairFormat, SharedFormat, SignatureAlgorithm, UnknownFormat};
pub use issuer::{AccessToken, Issuer, SigningKey};
pub use jwt::Hs256Key;
pub use key::{InvalidKey, KeyId, SymmetricKey};
pub use key_pair::{KeyPair, PublicKey};
pub use published::{InvalidKeySet, KeyStatus, jwks, paserks, read_jwks, read_paserks};
pub use revocations::{RevocationCount, Revocations, UserRoles};
pub use verifier::{Check, Inspection, Sighting, Verifier, VerifyingKey};
// Only the service stores private keys, but fuzz/ builds tests/forge.rs without it.
pub use wrap::WrappingKey;

/// The maximum length of a token in bytes, 8 KiB. Longer ones are refused unread.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;
