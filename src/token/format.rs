//! The formats of access tokens, as types. A key has a format; a token cannot choose one.

use std::{fmt, str::FromStr};

/// A format of access tokens, including the algorithm.
///
/// Its text form is that of `TOKEN_FORMAT_ACCEPTED`: `v4.local`, `v4.public`, `jwt:EdDSA`, …
///
/// ```
/// use gatepass::token::{Format, KeyPairFormat, SignatureAlgorithm};
///
/// assert_eq!("jwt:ES256".parse(), Ok(Format::KeyPair(KeyPairFormat::Jwt(SignatureAlgorithm::Es256))));
/// assert!("jwt:none".parse::<Format>().is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// Made and checked with one shared secret.
    Shared(SharedFormat),
    /// Signed with a private key, checked with a published one.
    KeyPair(KeyPairFormat),
}

/// A format whose tokens are made and checked with the same secret, which is shared through configuration only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SharedFormat {
    /// PASETO v4.local: encrypted with XChaCha20 and authenticated with keyed BLAKE2b.
    V4Local,
    /// JWT with HMAC and SHA-256 (RFC 7518, section 3.2).
    Hs256,
}

/// A format whose tokens are signed, so that the key that checks them can be public.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyPairFormat {
    /// PASETO v4.public: signed with Ed25519.
    V4Public,
    /// JWT.
    Jwt(SignatureAlgorithm),
}

/// The signature algorithm of a JWT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SignatureAlgorithm {
    /// Ed25519 (RFC 8037).
    EdDsa,
    /// ECDSA on P-256 with SHA-256 (RFC 7518, section 3.4).
    Es256,
    /// RSASSA-PKCS1-v1_5 with SHA-256 (RFC 7518, section 3.3).
    Rs256,
    /// RSASSA-PSS with SHA-256 (RFC 7518, section 3.5).
    Ps256,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 7] = [
        Self::Shared(SharedFormat::V4Local),
        Self::KeyPair(KeyPairFormat::V4Public),
        Self::KeyPair(KeyPairFormat::Jwt(SignatureAlgorithm::EdDsa)),
        Self::KeyPair(KeyPairFormat::Jwt(SignatureAlgorithm::Es256)),
        Self::KeyPair(KeyPairFormat::Jwt(SignatureAlgorithm::Rs256)),
        Self::KeyPair(KeyPairFormat::Jwt(SignatureAlgorithm::Ps256)),
        Self::Shared(SharedFormat::Hs256),
    ];

    /// The format's name, the same as its `Display`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Shared(SharedFormat::V4Local) => "v4.local",
            Self::Shared(SharedFormat::Hs256) => "jwt:HS256",
            Self::KeyPair(format) => format.name(),
        }
    }

    /// The value of `alg`, if this is a JWT.
    pub fn jwt_algorithm(self) -> Option<&'static str> {
        match self {
            Self::Shared(SharedFormat::Hs256) => Some("HS256"),
            Self::KeyPair(KeyPairFormat::Jwt(algorithm)) => Some(algorithm.name()),
            Self::Shared(SharedFormat::V4Local) | Self::KeyPair(KeyPairFormat::V4Public) => None,
        }
    }
}

impl KeyPairFormat {
    /// The format's name, the same as its `Display`.
    pub fn name(self) -> &'static str {
        match self {
            Self::V4Public => "v4.public",
            Self::Jwt(SignatureAlgorithm::EdDsa) => "jwt:EdDSA",
            Self::Jwt(SignatureAlgorithm::Es256) => "jwt:ES256",
            Self::Jwt(SignatureAlgorithm::Rs256) => "jwt:RS256",
            Self::Jwt(SignatureAlgorithm::Ps256) => "jwt:PS256",
        }
    }
}

impl SignatureAlgorithm {
    /// Every algorithm.
    pub const ALL: [Self; 4] = [Self::EdDsa, Self::Es256, Self::Rs256, Self::Ps256];

    /// The value of `alg` (RFC 7518, section 3.1).
    pub fn name(self) -> &'static str {
        match self {
            Self::EdDsa => "EdDSA",
            Self::Es256 => "ES256",
            Self::Rs256 => "RS256",
            Self::Ps256 => "PS256",
        }
    }
}

impl From<SharedFormat> for Format {
    fn from(format: SharedFormat) -> Self {
        Self::Shared(format)
    }
}

impl From<KeyPairFormat> for Format {
    fn from(format: KeyPairFormat) -> Self {
        Self::KeyPair(format)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for KeyPairFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        Self::ALL.into_iter().find(|format| format.name() == name).ok_or(UnknownFormat)
    }
}

impl FromStr for KeyPairFormat {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        match name.parse()? {
            Format::KeyPair(format) => Ok(format),
            Format::Shared(_) => Err(UnknownFormat),
        }
    }
}

/// A text that names no format.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a token format")]
pub struct UnknownFormat;
