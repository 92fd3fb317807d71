//! scrypt (RFC 7914): PHC strings, crypt's `$7$`, Django's form, and Firebase's, which encrypts with the result.

use std::fmt;

use aws_lc_rs::{
    cipher::{AES_256, EncryptingKey, EncryptionContext, UnboundCipherKey},
    iv::FixedLength,
};
use zeroize::Zeroizing;

use super::{
    Function, Hash, Length, MAX_BORROWED, MAX_SALT, Refused, crypt,
    phc::{self, Phc},
};

const NAME: &str = "scrypt";
const FIREBASE: &str = "Firebase scrypt";

/// The greatest N·r·p: twice OWASP's, which takes half a second.
const MAX_WORK: u64 = 2 << 20;

/// The least memory, in bytes, as 128·N·r, with which a hash may be kept as it is: with less, attackers can make many
/// guesses in parallel.
const SLOW_MEMORY: u64 = 1 << 20;

/// How many bytes of a digest are compared. Longer digests begin with the same bytes, and are cut off.
const LENGTH: usize = 32;

/// The cost of scrypt.
#[derive(Clone, Copy)]
struct Cost {
    log_n: u8,
    r: u32,
    p: u32,
}

impl Cost {
    fn new(name: &'static str, log_n: u8, r: u32, p: u32) -> Result<Self, Refused> {
        let cost = Self { log_n, r, p };
        if !(1..32).contains(&log_n) || r == 0 || p == 0 {
            return Err(Refused::Malformed(name));
        }
        let work = cost.block_work().checked_mul(p.into());
        if cost.memory() > MAX_BORROWED || work.is_none_or(|work| work > MAX_WORK) {
            return Err(Refused::TooCostly(name));
        }
        Ok(cost)
    }

    /// N·r, less than 2⁶³.
    fn block_work(self) -> u64 {
        u64::from(self.r) << self.log_n
    }

    /// The memory that it takes, in bytes: N blocks for random access, p to begin with, and one to work in, of 128·r
    /// each.
    fn memory(self) -> u64 {
        let blocks = (1 << self.log_n) + u64::from(self.p) + 1;
        blocks.saturating_mul(128 * u64::from(self.r))
    }

    fn is_slow(self) -> bool {
        self.block_work().saturating_mul(128) >= SLOW_MEMORY
    }

    fn of_phc(name: &'static str, phc: &Phc<'_>) -> Result<Self, Refused> {
        let number = |key| phc.number(key).ok_or(Refused::Malformed(name));
        Self::new(name, phc.number("ln").ok_or(Refused::Malformed(name))?, number("r")?, number("p")?)
    }

    fn derive(self, password: &[u8], salt: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let mut digest = Zeroizing::new(vec![0; LENGTH]);
        let params = ::scrypt::Params::new(self.log_n, self.r, self.p).ok()?;
        ::scrypt::scrypt(password, salt, &params, &mut digest).ok()?;
        Some(digest)
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ln={},r={},p={}", self.log_n, self.r, self.p)
    }
}

/// scrypt with its cost and salt.
pub(super) struct Scrypt {
    cost: Cost,
    salt: Vec<u8>,
}

impl Scrypt {
    /// Takes N itself, which must be a power of two.
    pub(super) fn new(n: u64, r: u32, p: u32, salt: Vec<u8>) -> Result<Self, Refused> {
        let log_n = n.is_power_of_two().then(|| n.ilog2()).and_then(|log_n| u8::try_from(log_n).ok());
        Self::with(Cost::new(NAME, log_n.ok_or(Refused::Malformed(NAME))?, r, p)?, salt)
    }

    pub(super) fn of_phc(phc: &Phc<'_>) -> Result<Self, Refused> {
        Self::with(Cost::of_phc(NAME, phc)?, phc.salt.clone())
    }

    fn with(cost: Cost, salt: Vec<u8>) -> Result<Self, Refused> {
        if salt.len() > MAX_SALT {
            return Err(Refused::Malformed(NAME));
        }
        Ok(Self { cost, salt })
    }
}

impl fmt::Display for Scrypt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "$scrypt${}${}", self.cost, phc::encode(&self.salt))
    }
}

impl Function for Scrypt {
    fn name(&self) -> &'static str {
        NAME
    }

    fn length(&self) -> Length {
        Length::AtLeast(LENGTH)
    }

    fn compute(&self, password: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        self.cost.derive(password, &self.salt)
    }

    fn is_slow(&self) -> bool {
        self.cost.is_slow()
    }

    fn memory(&self) -> u64 {
        self.cost.memory()
    }
}

/// `$7$`, one character of log₂ N, five of r, five of p, the salt as it is, `$`, 43 of digest.
pub(super) fn parse_crypt(text: &str) -> Result<Hash, Refused> {
    let parsed = || {
        let (log_n, rest) = text.strip_prefix("$7$")?.split_at_checked(1)?;
        let (r, rest) = rest.split_at_checked(5)?;
        let (p, rest) = rest.split_at_checked(5)?;
        let (salt, digest) = rest.split_once('$')?;
        let log_n = u8::try_from(crypt::number(log_n)?).ok()?;
        Some((log_n, crypt::number(r)?, crypt::number(p)?, salt, crypt::decode(digest)?))
    };
    let (log_n, r, p, salt, digest) = parsed().ok_or(Refused::Malformed(NAME))?;
    let scrypt = Scrypt::with(Cost::new(NAME, log_n, r, p)?, salt.into())?;
    Hash::new(Box::new(scrypt), digest)
}

/// What all hashes of one Firebase project share, as the console and `firebase auth:export` show it (`hash_config`).
/// `Debug` shows nothing of it.
pub struct FirebaseProject {
    signer_key: Zeroizing<Vec<u8>>,
    salt_separator: Vec<u8>,
    rounds: u32,
    mem_cost: u8,
}

impl fmt::Debug for FirebaseProject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FirebaseProject([redacted])")
    }
}

impl FirebaseProject {
    /// Takes `base64_signer_key`, `base64_salt_separator`, `rounds` and `mem_cost`.
    ///
    /// # Errors
    ///
    /// When one is not base64, the key is shorter than 32 bytes, or the cost is beyond what one login may cost.
    pub fn new(signer_key: &str, salt_separator: &str, rounds: u32, mem_cost: u8) -> Result<Self, Refused> {
        Cost::new(FIREBASE, mem_cost, rounds, 1)?;
        let signer_key = Zeroizing::new(decode(signer_key)?);
        if signer_key.len() < LENGTH {
            return Err(Refused::Malformed(FIREBASE));
        }
        Ok(Self { signer_key, salt_separator: decode(salt_separator)?, rounds, mem_cost })
    }

    /// Makes a hash without the signer key. Firebase's digest is that key, encrypted in counter mode. Its XOR with the
    /// key is the key stream, which comes from the password and its salt alone, so the key need not be stored.
    pub(super) fn hash(&self, hash: &str, salt: &str) -> Result<Hash, Refused> {
        let mut salt = decode(salt)?;
        salt.extend(&self.salt_separator);
        let hash = decode(hash)?;
        if hash.len() != self.signer_key.len() {
            return Err(Refused::Malformed(FIREBASE));
        }
        let stream = hash.iter().zip(self.signer_key.iter()).map(|(a, b)| a ^ b).collect();
        Hash::new(
            Box::new(Firebase::with(Cost::new(FIREBASE, self.mem_cost, self.rounds, 1)?, salt)?),
            stream,
        )
    }
}

/// Reads base64 in either alphabet: the CLI writes one, the console the other.
fn decode(text: &str) -> Result<Vec<u8>, Refused> {
    phc::decode(&text.replace('-', "+").replace('_', "/")).ok_or(Refused::Malformed(FIREBASE))
}

/// The key stream of AES-256 in counter mode from zero, with the result of scrypt as its key.
pub(super) struct Firebase {
    cost: Cost,
    /// The user's salt followed by the project's separator.
    salt: Vec<u8>,
}

impl Firebase {
    pub(super) fn of_phc(phc: &Phc<'_>) -> Result<Self, Refused> {
        Self::with(Cost::of_phc(FIREBASE, phc)?, phc.salt.clone())
    }

    fn with(cost: Cost, salt: Vec<u8>) -> Result<Self, Refused> {
        if salt.len() > MAX_SALT {
            return Err(Refused::Malformed(FIREBASE));
        }
        Ok(Self { cost, salt })
    }
}

impl fmt::Display for Firebase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "$firebase-scrypt${}${}", self.cost, phc::encode(&self.salt))
    }
}

impl Function for Firebase {
    fn name(&self) -> &'static str {
        FIREBASE
    }

    fn length(&self) -> Length {
        Length::AtLeast(LENGTH)
    }

    fn compute(&self, password: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let key = self.cost.derive(password, &self.salt)?;
        let key = EncryptingKey::ctr(UnboundCipherKey::new(&AES_256, &key).ok()?).ok()?;
        let mut stream = Zeroizing::new(vec![0; LENGTH]);
        let from_zero = EncryptionContext::Iv128(FixedLength::from([0; 16]));
        key.less_safe_encrypt(&mut stream, from_zero).ok()?;
        Some(stream)
    }

    fn is_slow(&self) -> bool {
        self.cost.is_slow()
    }

    fn memory(&self) -> u64 {
        self.cost.memory()
    }
}
