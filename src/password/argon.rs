//! Argon2 (RFC 9106): one password, one hash, and the text in which it is stored.
//!
//! [`compute`](super::compute) does the computation, in [`Memory`] of ours. `benches/` compares its speed and its
//! outputs with those of others. On a machine with two cores, on one or on both at once, the speeds relative to plain
//! use of the argon2 crate, which takes fresh memory for each hash, are:
//!
//! - ours: 2.0 to 2.25;
//! - the crate in the same memory: 1.3 to 1.6;
//! - libsodium: 1.0 to 1.15. Its arithmetic is fast as well, but its interface takes no memory from the caller: it maps
//!   and unmaps its own for each hash, and the system spends the gain on pages.

use std::{fmt, time::Instant};

use argon2::{
    Algorithm, Error, Version,
    password_hash::phc::{Output, PasswordHash, Salt},
};

use super::{
    compute::Inputs,
    memory::Memory,
    pepper::{self, Pepper, Peppers},
};

/// The most memory that one hash may take, ours or a stored one's: 1 GiB.
const MAX_MEMORY_KIB: u32 = 1 << 20;

/// The most memory times iterations. With the most memory, that is four iterations: libsodium's "sensitive", the most
/// expensive setting in common use, which takes seconds. A stored hash that demands more would occupy a thread for
/// longer than anybody waits.
const MAX_WORK_KIB: u64 = 4 << 20;

/// The least memory times iterations.
const MIN_WORK_KIB: u64 = 8;

/// The most lanes. They are computed one after the other, so they cost nothing; this is only a sanity check.
const MAX_PARALLELISM: u32 = 64;

pub(super) const SALT_BYTES: usize = 16;
const OUTPUT_BYTES: usize = 32;

/// What an Argon2 hash costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    /// Memory in KiB (`m`).
    pub memory_kib: u32,
    /// Passes over the memory (`t`).
    pub iterations: u32,
    /// Lanes (`p`).
    pub parallelism: u32,
}

/// Why a hash cannot be made with these [`Params`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParamsError {
    /// Less than Argon2 is defined for.
    #[error("Argon2 needs at least one iteration, one lane, and 8 KiB of memory for each lane")]
    TooLittle,
    /// More than one login may cost.
    #[error(
        "at most {MAX_MEMORY_KIB} KiB of memory, {MAX_WORK_KIB} KiB times iterations, and {MAX_PARALLELISM} lanes"
    )]
    TooMuch,
}

impl Params {
    /// Checks whether hashes can be made with these.
    ///
    /// # Errors
    ///
    /// When they are outside what Argon2 is defined for, or beyond what one login may cost. OWASP's minimum is not
    /// checked: weak parameters are right in a test.
    pub fn check(&self) -> Result<(), ParamsError> {
        self.for_argon2().map(|_| ())
    }

    pub(super) fn for_argon2(&self) -> Result<argon2::Params, ParamsError> {
        let is_wide = self.parallelism > MAX_PARALLELISM;
        if self.memory_kib > MAX_MEMORY_KIB || is_wide || self.work() > MAX_WORK_KIB {
            return Err(ParamsError::TooMuch);
        }
        argon2::Params::new(self.memory_kib, self.iterations, self.parallelism, None)
            .map_err(|_| ParamsError::TooLittle)
    }

    /// What determines a hash's time: memory in KiB times passes.
    pub(super) fn work(&self) -> u64 {
        u64::from(self.memory_kib) * u64::from(self.iterations)
    }

    /// Parameters that cost as much as these minus what was spent, in KiB times passes, and take no more memory; `None`
    /// if nothing is left.
    pub(super) fn less(&self, spent: u64) -> Option<Self> {
        let missing = self.work().checked_sub(spent).filter(|&missing| missing >= MIN_WORK_KIB)?;
        let iterations = missing.div_ceil(u64::from(self.memory_kib));
        let memory_kib = (missing / iterations).max(MIN_WORK_KIB);
        Some(Self {
            memory_kib: u32::try_from(memory_kib).ok()?,
            iterations: u32::try_from(iterations).ok()?,
            parallelism: 1,
        })
    }
}

/// Why a stored hash could not be used. It says nothing about the content, so it may be logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Not a PHC string, or not one that Argon2 could have made.
    #[error("the stored password hash is malformed")]
    Format,
    /// A PHC or crypt string of another algorithm, or another version of Argon2.
    #[error("the stored password hash is of an unknown algorithm")]
    Algorithm,
    /// Parameters beyond what one login may cost.
    #[error("the stored password hash has parameters beyond the limit")]
    TooCostly,
    /// Made with a pepper that is not among ours.
    #[error("the stored password hash was made with a pepper that PASSWORD_PEPPER does not hold")]
    Pepper,
    /// A fast hash as another system stores it. Somebody has put it there by hand: an import would have wrapped it.
    #[error("the stored password hash is a fast one that was not wrapped when it was imported")]
    Unwrapped,
}

/// The prefix of every Argon2 hash, ours or not.
pub(super) const PREFIX: &str = "$argon2";

/// A parsed Argon2 hash. `Display` is its PHC string.
#[derive(Clone, Copy)]
pub(super) struct Stored<'a> {
    algorithm: Algorithm,
    version: Version,
    pub(super) params: Params,
    pepper: Option<&'a Pepper>,
    salt: Salt,
    pub(super) output: Output,
}

impl<'a> Stored<'a> {
    /// A hash like those made now, with no output yet.
    pub(super) fn blank(params: &Params, pepper: Option<&'a Pepper>, salt: [u8; SALT_BYTES]) -> Self {
        Self {
            algorithm: Algorithm::Argon2id,
            version: Version::V0x13,
            params: *params,
            pepper,
            salt: Salt::new(&salt).expect("salts of 8 to 48 bytes are valid"),
            output: Output::new(&[0; OUTPUT_BYTES]).expect("outputs of 10 to 64 bytes are valid"),
        }
    }

    pub(super) fn parse(text: &str, peppers: &'a Peppers) -> Result<Self, Unreadable> {
        let name =
            text.strip_prefix('$').and_then(|rest| rest.split('$').next()).ok_or(Unreadable::Format)?;
        let algorithm = Algorithm::new(name).map_err(|_| Unreadable::Algorithm)?;
        let phc = PasswordHash::new(text).map_err(|_| Unreadable::Format)?;
        let version = match phc.version {
            // A string from before versions were written (reference implementation, `decode_string`).
            None => Version::V0x10,
            Some(number) => Version::try_from(number).map_err(|_| Unreadable::Algorithm)?,
        };
        let number = |name| phc.params.get_decimal(name).ok_or(Unreadable::Format);
        let params = Params { memory_kib: number("m")?, iterations: number("t")?, parallelism: number("p")? };
        // They must be in this order, followed at most by the name of a pepper: nobody has associated data.
        let rest = phc.params.as_str().strip_prefix(&params.to_string()).ok_or(Unreadable::Format)?;
        params.check().map_err(|error| match error {
            ParamsError::TooLittle => Unreadable::Format,
            ParamsError::TooMuch => Unreadable::TooCostly,
        })?;
        let (Some(salt), Some(output)) = (phc.salt, phc.hash) else { return Err(Unreadable::Format) };
        let pepper = match rest {
            "" => None,
            rest => {
                let name = rest.strip_prefix(",keyid=").and_then(pepper::name_of);
                let name = name.ok_or(Unreadable::Format)?;
                Some(peppers.find(&name).ok_or(Unreadable::Pepper)?)
            }
        };
        Ok(Self { algorithm, version, params, pepper, salt, output })
    }

    /// Computes the output for this input. This is the only place where Argon2 runs.
    pub(super) fn compute(&self, input: &[u8], memory: &mut Memory) -> Result<Output, Error> {
        let params = self.params.for_argon2().map_err(|_| Error::MemoryTooMuch)?;
        let blocks = params.block_count();
        let inputs = Inputs {
            algorithm: self.algorithm,
            version: self.version,
            params,
            secret: self.pepper.map_or(&[], Pepper::secret),
            password: input,
            salt: &self.salt,
        };
        let mut bytes = [0; Output::MAX_LENGTH];
        let output = &mut bytes[..self.output.len()];
        #[cfg(test)]
        {
            memory.computed += self.params.work();
        }
        let begun = Instant::now();
        memory.with(blocks, |blocks| inputs.hash_into(output, blocks))??;
        memory.pace.note(self.params.work(), begun.elapsed());
        Output::new(output).map_err(|_| Error::OutputTooLong)
    }

    /// Whether a new hash would be made in the same way as this one.
    pub(super) fn is_like_new(&self, params: &Params, peppers: &Peppers) -> bool {
        self.algorithm == Algorithm::Argon2id
            && self.version == Version::V0x13
            && self.params == *params
            && self.pepper.map(Pepper::name) == peppers.newest().map(Pepper::name)
            && self.salt.len() == SALT_BYTES
            && self.output.len() == OUTPUT_BYTES
    }
}

impl fmt::Display for Stored<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { algorithm, version, params, pepper, salt, output } = self;
        write!(f, "${algorithm}$v={}${params}", u32::from(*version))?;
        if let Some(pepper) = pepper {
            write!(f, ",keyid={}", pepper::key_id(pepper.name()))?;
        }
        write!(f, "${salt}${output}")
    }
}

impl fmt::Display for Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "m={},t={},p={}", self.memory_kib, self.iterations, self.parallelism)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn params_for_the_remaining_work_match_it_closely() {
        let current = Params { memory_kib: 19456, iterations: 2, parallelism: 1 };
        for (memory_kib, iterations) in
            [(8, 1), (4096, 3), (7168, 5), (9216, 4), (12288, 3), (19456, 1), (38904, 1)]
        {
            let spent = Params { memory_kib, iterations, parallelism: 1 };
            let missing = current.less(spent.work()).unwrap();
            assert!(missing.check().is_ok() && missing.memory_kib <= current.memory_kib, "{missing}");
            let off = current.work().abs_diff(spent.work() + missing.work());
            assert!(off < 8, "{spent}: {off} KiB");
        }
        for (memory_kib, iterations) in [(19456, 2), (38905, 1), (47104, 1)] {
            assert_eq!(current.less(Params { memory_kib, iterations, parallelism: 1 }.work()), None);
        }
    }

    #[test]
    fn params_have_bounds() {
        let table = [
            ((19456, 2, 1), Ok(())),
            ((8, 1, 1), Ok(())),
            ((1 << 20, 4, 4), Ok(())),
            ((7, 1, 1), Err(ParamsError::TooLittle)),
            ((31, 1, 4), Err(ParamsError::TooLittle)),
            ((8, 0, 1), Err(ParamsError::TooLittle)),
            ((8, 1, 0), Err(ParamsError::TooLittle)),
            (((1 << 20) + 1, 1, 1), Err(ParamsError::TooMuch)),
            ((1 << 20, 5, 1), Err(ParamsError::TooMuch)),
            ((u32::MAX, u32::MAX, u32::MAX), Err(ParamsError::TooMuch)),
        ];
        for ((memory_kib, iterations, parallelism), expected) in table {
            let params = Params { memory_kib, iterations, parallelism };
            assert_eq!(params.check(), expected, "{params}");
        }
    }
}
