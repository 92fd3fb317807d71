//! bcrypt: `$2b$12$<22 characters of salt><31 of digest>`, with its variants, and Django's, which hashes the password
//! first.
//!
//! bcrypt sees only 72 bytes of a password, so a longer one is as good as its beginning until the hash is replaced.

use std::fmt;

use base64::{
    Engine,
    alphabet::BCRYPT,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::{
    Function, Hash, Length, Refused,
    phc::{self, Phc},
};
use crate::hex;

const NAME: &str = "bcrypt";

/// The greatest cost: about a second. Each further step doubles the time.
const MAX_COST: u32 = 14;

/// The least cost with which a hash may be kept as it is.
const SLOW_COST: u32 = 8;

/// How many bytes of a password bcrypt sees.
const SEEN: usize = 72;

/// 16 and 23 bytes leave unused bits in base64, which not all writers set to zero.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &BCRYPT,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone)
        .with_decode_allow_trailing_bits(true),
);

/// bcrypt with its cost and salt.
pub(super) struct Bcrypt {
    key: Key,
    cost: u32,
    salt: [u8; 16],
}

/// What happens to the password before bcrypt sees it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Key {
    /// Nothing: `2b`, and also `2y` and `2a`, which differ from it only in bytes that do not occur in UTF-8, and in
    /// passwords of more than 255 bytes.
    Plain,
    /// Its bytes are taken as signed: `2x`, a bug in `crypt_blowfish` before 1.1 (CVE-2011-2483).
    Signed,
    /// It is replaced by its SHA-256 in hexadecimal: Django's `bcrypt_sha256`.
    Sha256,
}

impl Bcrypt {
    fn new(key: Key, cost: u32, salt: &[u8]) -> Result<Self, Refused> {
        let salt = salt.try_into().map_err(|_| Refused::Malformed(NAME))?;
        match cost {
            4..=MAX_COST => Ok(Self { key, cost, salt }),
            0..4 => Err(Refused::Malformed(NAME)),
            _ => Err(Refused::TooCostly(NAME)),
        }
    }

    pub(super) fn of_phc(phc: &Phc<'_>) -> Result<Self, Refused> {
        let key = match phc.get("k") {
            Some("plain") => Key::Plain,
            Some("signed") => Key::Signed,
            Some("sha256") => Key::Sha256,
            _ => return Err(Refused::Malformed(NAME)),
        };
        Self::new(key, phc.number("c").ok_or(Refused::Malformed(NAME))?, &phc.salt)
    }
}

impl fmt::Display for Bcrypt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = match self.key {
            Key::Plain => "plain",
            Key::Signed => "signed",
            Key::Sha256 => "sha256",
        };
        write!(f, "$bcrypt$k={key},c={}${}", self.cost, phc::encode(&self.salt))
    }
}

impl Function for Bcrypt {
    fn name(&self) -> &'static str {
        NAME
    }

    fn length(&self) -> Length {
        Length::Exactly(23)
    }

    fn compute(&self, password: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let hashed;
        let key = match self.key {
            Key::Plain | Key::Signed => password,
            Key::Sha256 => {
                hashed = Zeroizing::new(hex::encode(&Sha256::digest(password)));
                hashed.as_bytes()
            }
        };
        let key = Zeroizing::new(key.iter().copied().chain([0]).take(SEEN).collect::<Vec<_>>());
        let digest = match self.key {
            Key::Signed => ::bcrypt::bcrypt(self.cost, self.salt, &*signed(&key)),
            Key::Plain | Key::Sha256 => ::bcrypt::bcrypt(self.cost, self.salt, &key),
        };
        // In C a password ends at its first NUL, and bcrypt repeats it: "a" and "a\0a" would be the same.
        let is_possible = self.key == Key::Sha256 || !password.contains(&0);
        is_possible.then(|| Zeroizing::new(digest[..23].to_vec()))
    }

    fn is_slow(&self) -> bool {
        self.cost >= SLOW_COST
    }
}

/// The key that gives correct bcrypt the words that the faulty one makes of `key`. A word consists of four successive
/// bytes, but in the faulty one a byte of 0x80 or above sets all bits before it.
fn signed(key: &[u8]) -> Zeroizing<[u8; SEEN]> {
    let mut bytes = key.iter().copied().cycle();
    let mut words = Zeroizing::new([0; SEEN]);
    for word in words.as_chunks_mut::<4>().0 {
        let value =
            bytes.by_ref().take(4).fold(0, |word: i32, byte| word << 8 | i32::from(byte.cast_signed()));
        *word = value.to_be_bytes();
    }
    words
}

/// `$2b$…`
pub(super) fn parse(text: &str) -> Result<Hash, Refused> {
    parse_with(text, None)
}

/// Django's `bcrypt_sha256$$2b$…`, from the second `$` on.
pub(super) fn parse_sha256(text: &str) -> Result<Hash, Refused> {
    parse_with(text, Some(Key::Sha256))
}

fn parse_with(text: &str, key: Option<Key>) -> Result<Hash, Refused> {
    let parsed = || {
        let (version, rest) = text.strip_prefix('$')?.split_once('$')?;
        let (cost, rest) = rest.split_once('$')?;
        let cost = phc::number(cost).filter(|_| cost.len() == 2)?;
        let key = match (version, key) {
            ("2a" | "2b" | "2y", None) => Key::Plain,
            ("2x", None) => Key::Signed,
            ("2a" | "2b" | "2y", Some(key)) => key,
            _ => return None,
        };
        Some((key, cost, rest))
    };
    let (key, cost, rest) = parsed().ok_or(Refused::Malformed(NAME))?;
    if cost > MAX_COST {
        return Err(Refused::TooCostly(NAME));
    }
    let (salt, digest) = rest.split_at_checked(22).ok_or(Refused::Malformed(NAME))?;
    let decode = |text| BASE64.decode(text).map_err(|_| Refused::Malformed(NAME));
    Hash::new(Box::new(Bcrypt::new(key, cost, &decode(salt)?)?), decode(digest)?)
}
