//! PBKDF2 (RFC 8018) with HMAC-SHA-1, SHA-256 and SHA-512: PHC strings, and those of passlib, Django and Keycloak.

use std::{fmt, num::NonZeroU32};

use aws_lc_rs::pbkdf2;
use zeroize::Zeroizing;

use super::{
    Function, Length, MAX_SALT, Refused,
    phc::{self, Phc},
};

const NAME: &str = "PBKDF2";

/// The most iterations: about a second. Django 5.2 uses a million.
const MAX_ITERATIONS: u32 = 2_000_000;

/// The fewest iterations with which a hash may be kept as it is.
const SLOW_ITERATIONS: u32 = 10_000;

/// How many bytes of a digest are compared: as many as all three functions give in one block. Each further block would
/// cost the iterations again, but only us, not an attacker.
const LENGTH: usize = 20;

/// PBKDF2 with its iterations and salt.
pub(super) struct Pbkdf2 {
    hash: Prf,
    iterations: NonZeroU32,
    salt: Vec<u8>,
}

/// The hash function within.
#[derive(Clone, Copy)]
pub(super) enum Prf {
    Sha1,
    Sha256,
    Sha512,
}

impl Prf {
    /// The function that has this name in PHC strings, passlib or Keycloak.
    pub(super) fn by_name(name: &str) -> Option<Self> {
        Some(match name {
            "pbkdf2" | "pbkdf2-sha1" => Self::Sha1,
            "pbkdf2-sha256" => Self::Sha256,
            "pbkdf2-sha512" => Self::Sha512,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "pbkdf2-sha1",
            Self::Sha256 => "pbkdf2-sha256",
            Self::Sha512 => "pbkdf2-sha512",
        }
    }
}

impl Pbkdf2 {
    pub(super) fn new(hash: Prf, iterations: u32, salt: Vec<u8>) -> Result<Self, Refused> {
        if iterations > MAX_ITERATIONS {
            return Err(Refused::TooCostly(NAME));
        }
        match NonZeroU32::new(iterations) {
            Some(iterations) if salt.len() <= MAX_SALT => Ok(Self { hash, iterations, salt }),
            _ => Err(Refused::Malformed(NAME)),
        }
    }

    pub(super) fn of_phc(phc: &Phc<'_>) -> Result<Self, Refused> {
        let hash = Prf::by_name(phc.name).ok_or(Refused::Unknown)?;
        let iterations = phc.number("i").or_else(|| phc.bare_number()).ok_or(Refused::Malformed(NAME))?;
        Self::new(hash, iterations, phc.salt.clone())
    }
}

impl fmt::Display for Pbkdf2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "${}$i={}${}", self.hash.name(), self.iterations, phc::encode(&self.salt))
    }
}

impl Function for Pbkdf2 {
    fn name(&self) -> &'static str {
        NAME
    }

    fn length(&self) -> Length {
        Length::AtLeast(LENGTH)
    }

    fn compute(&self, password: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let algorithm = match self.hash {
            Prf::Sha1 => pbkdf2::PBKDF2_HMAC_SHA1,
            Prf::Sha256 => pbkdf2::PBKDF2_HMAC_SHA256,
            Prf::Sha512 => pbkdf2::PBKDF2_HMAC_SHA512,
        };
        let mut digest = Zeroizing::new(vec![0; LENGTH]);
        pbkdf2::derive(algorithm, self.iterations, &self.salt, password, &mut digest);
        Some(digest)
    }

    fn is_slow(&self) -> bool {
        self.iterations.get() >= SLOW_ITERATIONS
    }
}
