//! Unix crypt strings whose digest is in crypt's own base64: `$1$`, `$5$`, `$6$`, and phpass, WordPress's, phpBB's and
//! Drupal 7's.

use std::fmt;

use md5::{Digest, Md5};
use sha2::Sha512;
use zeroize::Zeroizing;

use super::{
    Function, Hash, Length, Refused,
    phc::{self, Phc},
};
use crate::hex;

const MD5_CRYPT: &str = "md5-crypt";
const SHA_CRYPT: &str = "sha-crypt";
const PHPASS: &str = "phpass";

const ALPHABET: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Reads a number in crypt's base64, lowest digit first.
pub(super) fn number(text: &str) -> Option<u32> {
    let digit = |c| u32::try_from(ALPHABET.iter().position(|&known| known == c)?).ok();
    text.bytes().rev().try_fold(0_u32, |value, c| value.checked_mul(64)?.checked_add(digit(c)?))
}

/// Reads bytes in crypt's base64: four characters are three bytes, lowest first. Unused bits are ignored.
pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || text.len() % 4 == 1 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    for at in (0..text.len()).step_by(4) {
        let group = &text[at..text.len().min(at + 4)];
        bytes.extend(&number(group)?.to_le_bytes()[..group.len() * 3 / 4]);
    }
    Some(bytes)
}

/// md5-crypt: FreeBSD's `$1$`, and Apache's `$apr1$`. A thousand rounds of MD5.
pub(super) struct Md5Crypt {
    is_apache: bool,
    salt: Vec<u8>,
}

impl Md5Crypt {
    fn new(is_apache: bool, salt: Vec<u8>) -> Result<Self, Refused> {
        if salt.len() > 8 {
            return Err(Refused::Malformed(MD5_CRYPT));
        }
        Ok(Self { is_apache, salt })
    }

    pub(super) fn of_phc(phc: &Phc<'_>) -> Result<Self, Refused> {
        match phc.get("v") {
            Some("1") => Self::new(false, phc.salt.clone()),
            Some("apr1") => Self::new(true, phc.salt.clone()),
            _ => Err(Refused::Malformed(MD5_CRYPT)),
        }
    }

    fn version(&self) -> &'static str {
        if self.is_apache { "apr1" } else { "1" }
    }
}

impl fmt::Display for Md5Crypt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "$md5-crypt$v={}${}", self.version(), phc::encode(&self.salt))
    }
}

impl Function for Md5Crypt {
    fn name(&self) -> &'static str {
        MD5_CRYPT
    }

    fn length(&self) -> Length {
        Length::Exactly(16)
    }

    /// Computes it as FreeBSD's `crypt_md5` does.
    fn compute(&self, password: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let salt = self.salt.as_slice();
        let inner = Md5::new().chain_update(password).chain_update(salt).chain_update(password).finalize();
        let mut outer = Md5::new()
            .chain_update(password)
            .chain_update(format!("${}$", self.version()))
            .chain_update(salt);
        for at in (0..password.len()).step_by(16) {
            outer.update(&inner[..16.min(password.len() - at)]);
        }
        let mut length = password.len();
        while length > 0 {
            // The password contributes its first byte, if it has one.
            outer.update(if length & 1 == 1 { &[0][..] } else { &password[..1] });
            length >>= 1;
        }
        let mut digest = outer.finalize();
        for round in 0..1000 {
            let is_odd = round % 2 == 1;
            let mut next = Md5::new();
            next.update(if is_odd { password } else { &digest });
            if round % 3 != 0 {
                next.update(salt);
            }
            if round % 7 != 0 {
                next.update(password);
            }
            next.update(if is_odd { &digest } else { password });
            digest = next.finalize();
        }
        // The order of the bytes in the text.
        const ORDER: [usize; 16] = [12, 6, 0, 13, 7, 1, 14, 8, 2, 15, 9, 3, 5, 10, 4, 11];
        Some(Zeroizing::new(ORDER.iter().map(|&at| digest[at]).collect()))
    }

    fn is_slow(&self) -> bool {
        false
    }
}

/// `$1$salt$…`
pub(super) fn parse_md5(text: &str) -> Result<Hash, Refused> {
    let parsed = || {
        let (version, rest) = text.strip_prefix('$')?.split_once('$')?;
        let (salt, digest) = rest.split_once('$')?;
        Some((version == "apr1", salt, decode(digest)?))
    };
    let (is_apache, salt, digest) = parsed().ok_or(Refused::Malformed(MD5_CRYPT))?;
    Hash::new(Box::new(Md5Crypt::new(is_apache, salt.into())?), digest)
}

/// The most rounds of SHA-crypt: a quarter of a second, and one second for the longest passwords. passlib uses 656 000.
const MAX_ROUNDS: u32 = 700_000;

/// The rounds if the text does not say, and the fewest with which a hash may be kept as it is.
const DEFAULT_ROUNDS: u32 = 5000;

/// `$5$` and `$6$`: <https://www.akkadia.org/drepper/SHA-crypt.txt>.
pub(super) struct ShaCrypt {
    is_sha512: bool,
    rounds: u32,
    salt: Vec<u8>,
}

impl ShaCrypt {
    fn new(is_sha512: bool, rounds: u32, salt: Vec<u8>) -> Result<Self, Refused> {
        if rounds > MAX_ROUNDS {
            return Err(Refused::TooCostly(SHA_CRYPT));
        }
        // crypt(3) never writes fewer rounds or more salt.
        if rounds < 1000 || salt.len() > 16 {
            return Err(Refused::Malformed(SHA_CRYPT));
        }
        Ok(Self { is_sha512, rounds, salt })
    }

    pub(super) fn of_phc(phc: &Phc<'_>) -> Result<Self, Refused> {
        let is_sha512 = match phc.get("v") {
            Some("5") => false,
            Some("6") => true,
            _ => return Err(Refused::Malformed(SHA_CRYPT)),
        };
        let rounds = phc.number("rounds").ok_or(Refused::Malformed(SHA_CRYPT))?;
        Self::new(is_sha512, rounds, phc.salt.clone())
    }
}

impl fmt::Display for ShaCrypt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = if self.is_sha512 { 6 } else { 5 };
        write!(f, "$sha-crypt$v={version},rounds={}${}", self.rounds, phc::encode(&self.salt))
    }
}

impl Function for ShaCrypt {
    fn name(&self) -> &'static str {
        SHA_CRYPT
    }

    fn length(&self) -> Length {
        Length::Exactly(if self.is_sha512 { 64 } else { 32 })
    }

    fn compute(&self, password: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let params = sha_crypt::Params::new(self.rounds).ok()?;
        Some(if self.is_sha512 {
            let digest = sha_crypt::sha512_crypt(password, &self.salt, params);
            as_written(&digest, [[2, 1, 0], [0, 2, 1], [1, 0, 2]])
        } else {
            let digest = sha_crypt::sha256_crypt(password, &self.salt, params);
            as_written(&digest, [[2, 1, 0], [1, 0, 2], [0, 2, 1]])
        })
    }

    fn is_slow(&self) -> bool {
        self.rounds >= DEFAULT_ROUNDS
    }
}

/// The bytes in the order in which the text has them: in groups of three, one byte from each third of the digest, where
/// the order of the thirds changes from group to group in a cycle of three; then the bytes that are left over.
fn as_written(digest: &[u8], orders: [[usize; 3]; 3]) -> Zeroizing<Vec<u8>> {
    let third = digest.len() / 3;
    let threes = (0..third).zip(orders.iter().cycle());
    let indices =
        threes.flat_map(|(at, order)| order.map(|of| at + of * third)).chain(3 * third..digest.len());
    Zeroizing::new(indices.map(|at| digest[at]).collect())
}

/// `$5$salt$…`, `$6$rounds=…$salt$…`
pub(super) fn parse_sha(text: &str) -> Result<Hash, Refused> {
    let parsed = || {
        let (version, rest) = text.strip_prefix('$')?.split_once('$')?;
        let (rounds, rest) = match rest.strip_prefix("rounds=") {
            Some(rest) => {
                let (rounds, rest) = rest.split_once('$')?;
                (phc::number(rounds)?, rest)
            }
            None => (DEFAULT_ROUNDS, rest),
        };
        let (salt, digest) = rest.split_once('$')?;
        Some((version == "6", rounds, salt, decode(digest)?))
    };
    let (is_sha512, rounds, salt, digest) = parsed().ok_or(Refused::Malformed(SHA_CRYPT))?;
    Hash::new(Box::new(ShaCrypt::new(is_sha512, rounds, salt.into())?), digest)
}

/// The most rounds of phpass, as a power of two: half a second, and little more for the longest passwords. Drupal uses
/// 15, WordPress 13.
const MAX_LOG_ROUNDS: u8 = 18;

/// The fewest rounds of SHA-512, as a power of two, with which a hash may be kept as it is.
const SLOW_LOG_ROUNDS: u8 = 14;

/// phpass's portable hash: MD5 (`$P$`, and phpBB's `$H$`) or, in Drupal 7, SHA-512 (`$S$`), over and over.
pub(super) struct Phpass {
    is_drupal: bool,
    /// Whether Drupal made it from an MD5 hash that it took over (`U$S$`): the password is first hashed to hexadecimal
    /// MD5.
    is_of_md5: bool,
    log_rounds: u8,
    salt: Vec<u8>,
}

impl Phpass {
    fn new(is_drupal: bool, is_of_md5: bool, log_rounds: u8, salt: Vec<u8>) -> Result<Self, Refused> {
        if log_rounds > MAX_LOG_ROUNDS {
            return Err(Refused::TooCostly(PHPASS));
        }
        if log_rounds < 7 || salt.len() != 8 {
            return Err(Refused::Malformed(PHPASS));
        }
        Ok(Self { is_drupal, is_of_md5, log_rounds, salt })
    }

    pub(super) fn of_phc(phc: &Phc<'_>) -> Result<Self, Refused> {
        let flag = |key| phc.number::<u8>(key).filter(|&flag| flag < 2).map(|flag| flag == 1);
        let parsed = || Some((flag("drupal")?, flag("md5")?, phc.number("ln")?));
        let (is_drupal, is_of_md5, log_rounds) = parsed().ok_or(Refused::Malformed(PHPASS))?;
        Self::new(is_drupal, is_of_md5, log_rounds, phc.salt.clone())
    }

    fn rounds<D: Digest>(&self, password: &[u8]) -> Zeroizing<Vec<u8>> {
        let mut digest = D::new().chain_update(&self.salt).chain_update(password).finalize();
        for _ in 0..1_u32 << self.log_rounds {
            digest = D::new().chain_update(&digest).chain_update(password).finalize();
        }
        Zeroizing::new(digest.to_vec())
    }
}

impl fmt::Display for Phpass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (drupal, md5) = (u8::from(self.is_drupal), u8::from(self.is_of_md5));
        write!(f, "$phpass$drupal={drupal},md5={md5},ln={}${}", self.log_rounds, phc::encode(&self.salt))
    }
}

impl Function for Phpass {
    fn name(&self) -> &'static str {
        PHPASS
    }

    fn length(&self) -> Length {
        Length::Exactly(if self.is_drupal { 32 } else { 16 })
    }

    fn compute(&self, password: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let hashed;
        let key = if self.is_of_md5 {
            hashed = Zeroizing::new(hex::encode(&Md5::digest(password)));
            hashed.as_bytes()
        } else {
            password
        };
        Some(if self.is_drupal {
            let mut digest = self.rounds::<Sha512>(key);
            // Drupal cuts off the text within the 33rd byte.
            digest.truncate(32);
            digest
        } else {
            self.rounds::<Md5>(key)
        })
    }

    fn is_slow(&self) -> bool {
        self.is_drupal && self.log_rounds >= SLOW_LOG_ROUNDS
    }
}

/// `$P$`, one character of log₂ of the rounds, eight of salt, 22 of digest; 43 in Drupal.
pub(super) fn parse_phpass(text: &str) -> Result<Hash, Refused> {
    let parsed = || {
        let (is_of_md5, rest) = match text.strip_prefix('U') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (kind, rest) = rest.strip_prefix('$')?.split_once('$')?;
        let (log_rounds, rest) = rest.split_at_checked(1)?;
        let (salt, digest) = rest.split_at_checked(8)?;
        let log_rounds = u8::try_from(number(log_rounds)?).ok()?;
        Some((kind == "S", is_of_md5, log_rounds, salt, decode(digest)?))
    };
    let (is_drupal, is_of_md5, log_rounds, salt, digest) = parsed().ok_or(Refused::Malformed(PHPASS))?;
    Hash::new(Box::new(Phpass::new(is_drupal, is_of_md5, log_rounds, salt.into())?), digest)
}
