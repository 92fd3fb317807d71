//! Argon2 (RFC 9106): one password, one hash, and the text it is kept as.

use std::fmt;

use argon2::{
    Algorithm, Argon2, Block, Error, Version,
    password_hash::phc::{Output, PasswordHash, Salt},
};
use zeroize::Zeroize;

use super::{HashedPassword, Password};

/// The most memory that one hash may take, ours or a stored one's: 1 GiB.
const MAX_MEMORY_KIB: u32 = 1 << 20;

/// The most memory times iterations. With the most memory that is four iterations, libsodium's "sensitive" and the
/// dearest setting in common use: seconds. A stored hash that demands more would hold a thread for longer than
/// anybody waits.
const MAX_WORK_KIB: u64 = 4 << 20;

/// The most lanes. They are computed one after the other, so they cost nothing; this is only sanity.
const MAX_PARALLELISM: u32 = 64;

const SALT_BYTES: usize = 16;
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
    /// Whether hashes can be made with these.
    ///
    /// # Errors
    ///
    /// When they are outside what Argon2 is defined for, or beyond what one login may cost. OWASP's minimum is not
    /// looked at: weak parameters are right in a test.
    pub fn check(&self) -> Result<(), ParamsError> {
        self.for_argon2().map(|_| ())
    }

    fn for_argon2(&self) -> Result<argon2::Params, ParamsError> {
        let work = u64::from(self.memory_kib) * u64::from(self.iterations);
        if self.memory_kib > MAX_MEMORY_KIB || self.parallelism > MAX_PARALLELISM || work > MAX_WORK_KIB {
            return Err(ParamsError::TooMuch);
        }
        argon2::Params::new(self.memory_kib, self.iterations, self.parallelism, None)
            .map_err(|_| ParamsError::TooLittle)
    }
}

/// What came of holding a password against a stored hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Another password, or no such user.
    NoMatch,
    /// This is the password.
    Match {
        /// The hash is of another algorithm or has other parameters than new ones get: make a new one while the
        /// password is at hand.
        outdated: bool,
    },
    /// Nobody can log in with what is stored. To the client it is [`Verdict::NoMatch`]; the operator should hear of it.
    Unreadable(Unreadable),
}

/// Why a stored hash could not be used. Tells nothing of its content, so that it may be logged.
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
}

/// Hashes a new password with Argon2id.
pub(super) fn hash(
    password: &Password,
    salt: [u8; SALT_BYTES],
    params: &Params,
    memory: &mut Memory,
) -> Result<HashedPassword, Error> {
    let mut new = Stored::blank(params, salt);
    new.output = new.compute(password, memory)?;
    Ok(HashedPassword(new.to_string()))
}

/// Holds a password against what is stored for the user, with the same work when there is no such user (`None`) or
/// nothing that can be read: who waits for the answer learns nothing.
pub(super) fn verify(
    password: &Password,
    stored: Option<&HashedPassword>,
    current: &Params,
    memory: &mut Memory,
) -> Result<Verdict, Error> {
    let stored = stored.map(|stored| Stored::parse(&stored.0)).transpose();
    let against = match stored {
        Ok(Some(stored)) => stored,
        Ok(None) | Err(_) => Stored::blank(current, [0; SALT_BYTES]),
    };
    let computed = against.compute(password, memory)?;
    Ok(match stored {
        Err(reason) => Verdict::Unreadable(reason),
        // `Output` compares in constant time.
        Ok(Some(stored)) if stored.output == computed => {
            Verdict::Match { outdated: !stored.is_like_new(current) }
        }
        Ok(_) => Verdict::NoMatch,
    })
}

/// An Argon2 hash, taken apart. `Display` is its PHC string.
#[derive(Clone, Copy)]
struct Stored {
    algorithm: Algorithm,
    version: Version,
    params: Params,
    salt: Salt,
    output: Output,
}

impl Stored {
    /// A hash as new ones are made, with no output yet.
    fn blank(params: &Params, salt: [u8; SALT_BYTES]) -> Self {
        Self {
            algorithm: Algorithm::Argon2id,
            version: Version::V0x13,
            params: *params,
            salt: Salt::new(&salt).expect("salts of 8 to 48 bytes are valid"),
            output: Output::new(&[0; OUTPUT_BYTES]).expect("outputs of 10 to 64 bytes are valid"),
        }
    }

    fn parse(text: &str) -> Result<Self, Unreadable> {
        let name =
            text.strip_prefix('$').and_then(|rest| rest.split('$').next()).ok_or(Unreadable::Format)?;
        let algorithm = Algorithm::new(name).map_err(|_| Unreadable::Algorithm)?;
        let phc = PasswordHash::new(text).map_err(|_| Unreadable::Format)?;
        let version = match phc.version {
            // Strings from before versions were written (reference implementation, `decode_string`).
            None => Version::V0x10,
            Some(number) => Version::try_from(number).map_err(|_| Unreadable::Algorithm)?,
        };
        let number = |name| phc.params.get_decimal(name).ok_or(Unreadable::Format);
        let params = Params { memory_kib: number("m")?, iterations: number("t")?, parallelism: number("p")? };
        // In this order, and nothing else: no key id and no associated data, which nobody has.
        if phc.params.as_str() != params.to_string() {
            return Err(Unreadable::Format);
        }
        params.check().map_err(|error| match error {
            ParamsError::TooLittle => Unreadable::Format,
            ParamsError::TooMuch => Unreadable::TooCostly,
        })?;
        let (Some(salt), Some(output)) = (phc.salt, phc.hash) else { return Err(Unreadable::Format) };
        Ok(Self { algorithm, version, params, salt, output })
    }

    /// The output for this password: the one place where Argon2 runs.
    fn compute(&self, password: &Password, memory: &mut Memory) -> Result<Output, Error> {
        let params = self.params.for_argon2().map_err(|_| Error::MemoryTooMuch)?;
        let blocks = params.block_count();
        let argon2 = Argon2::new(self.algorithm, self.version, params);
        let mut bytes = [0; Output::MAX_LENGTH];
        let output = &mut bytes[..self.output.len()];
        #[cfg(test)]
        memory.count(&self.params);
        memory.with(blocks, |blocks| {
            argon2.hash_password_into_with_memory(password.expose().as_bytes(), &self.salt, output, blocks)
        })??;
        Output::new(output).map_err(|_| Error::OutputTooLong)
    }

    fn is_like_new(&self, params: &Params) -> bool {
        self.algorithm == Algorithm::Argon2id
            && self.version == Version::V0x13
            && self.params == *params
            && self.salt.len() == SALT_BYTES
            && self.output.len() == OUTPUT_BYTES
    }
}

impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { algorithm, version, params, salt, output } = self;
        write!(f, "${algorithm}$v={}${params}${salt}${output}", u32::from(*version))
    }
}

impl fmt::Display for Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "m={},t={},p={}", self.memory_kib, self.iterations, self.parallelism)
    }
}

/// The memory in which one thread computes its hashes, one after the other: allocated once, so that a hash neither
/// asks the system for pages nor waits for them.
///
/// What a hash leaves in it would let a reader of it try passwords without paying for the memory, so it is wiped: by
/// the next hash, which writes over all of it in its first pass, or by [`Memory::wipe`] when there is no next one.
/// (That takes about a thirtieth of a hash's time at the default parameters, and nothing under load.)
pub(super) struct Memory {
    blocks: Vec<Block>,
    /// How many of the blocks, from the first, have been written since the last wipe.
    dirty: usize,
    #[cfg(test)]
    computed: u64,
}

impl Memory {
    /// Memory for hashes with these parameters.
    pub(super) fn new(params: &Params) -> Result<Self, Error> {
        Self::of_blocks(params.for_argon2().map_err(|_| Error::MemoryTooMuch)?.block_count())
    }

    fn of_blocks(count: usize) -> Result<Self, Error> {
        let mut blocks = Vec::new();
        blocks.try_reserve_exact(count).map_err(|_| Error::OutOfMemory)?;
        blocks.resize(count, Block::new());
        Ok(Self {
            blocks,
            dirty: 0,
            #[cfg(test)]
            computed: 0,
        })
    }

    /// Lends that many blocks. When there are not as many, as for a stored hash with greater parameters, they are
    /// allocated for this once, wiped and given back.
    fn with<T>(&mut self, count: usize, work: impl FnOnce(&mut [Block]) -> T) -> Result<T, Error> {
        match self.blocks.get_mut(..count) {
            Some(blocks) => {
                self.dirty = self.dirty.max(count);
                Ok(work(blocks))
            }
            None => Self::of_blocks(count)?.with(count, work),
        }
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.dirty > 0
    }

    pub(super) fn wipe(&mut self) {
        self.blocks[..self.dirty].iter_mut().for_each(Block::zeroize);
        self.dirty = 0;
    }

    #[cfg(test)]
    fn count(&mut self, params: &Params) {
        self.computed += u64::from(params.memory_kib) * u64::from(params.iterations);
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.wipe();
    }
}

#[cfg(test)]
mod tests {
    use argon2::{PasswordHasher, PasswordVerifier};
    use proptest::prelude::*;

    use super::*;

    const TINY: Params = Params { memory_kib: 8, iterations: 1, parallelism: 1 };

    fn memory() -> Memory {
        Memory::new(&TINY).unwrap()
    }

    /// The argon2 crate's own and plain use.
    fn plain(algorithm: Algorithm, version: Version, params: &Params, password: &str, salt: &[u8]) -> String {
        let argon2 = Argon2::new(algorithm, version, params.for_argon2().unwrap());
        argon2.hash_password_with_salt(password.as_bytes(), salt).unwrap().to_string()
    }

    fn verdict(password: &str, stored: &str) -> Verdict {
        let stored = HashedPassword::from_stored(stored);
        verify(&Password::new(password), Some(&stored), &TINY, &mut memory()).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Same text as the argon2 crate's own, from fresh memory and from what another hash has left behind; and
        /// each verifies the other's.
        #[test]
        fn agrees_with_plain_argon2(
            typed in any::<String>(),
            other in any::<String>(),
            salt in any::<[u8; 16]>(),
            memory_kib in 8u32..200,
            iterations in 1u32..4,
            parallelism in 1u32..4,
        ) {
            let memory_kib = memory_kib.max(8 * parallelism);
            let params = Params { memory_kib, iterations, parallelism };
            let password = Password::new(&typed);
            let expected = plain(Algorithm::Argon2id, Version::V0x13, &params, password.expose(), &salt);

            let mut memory = Memory::new(&params).unwrap();
            for _ in 0..2 {
                let ours = hash(&password, salt, &params, &mut memory).unwrap();
                prop_assert_eq!(ours.as_str(), &expected);
            }
            let stored = HashedPassword::from_stored(expected.clone());
            let verdict = |typed: &str, memory: &mut Memory| {
                verify(&Password::new(typed), Some(&stored), &params, memory).unwrap()
            };
            prop_assert_eq!(verdict(&typed, &mut memory), Verdict::Match { outdated: false });
            let is_same = Password::new(&other).expose() == password.expose();
            prop_assert_eq!(verdict(&other, &mut memory) != Verdict::NoMatch, is_same);

            let phc = PasswordHash::new(&expected).unwrap();
            prop_assert!(Argon2::default().verify_password(password.expose().as_bytes(), &phc).is_ok());
        }

        #[test]
        fn any_stored_text_is_only_a_verdict(text in any::<String>()) {
            let verdict = verdict("secret", &text);
            prop_assert!(matches!(verdict, Verdict::Unreadable(_)), "{:?}", verdict);
        }
    }

    #[test]
    fn outdated_when_a_new_one_would_be_made_otherwise() {
        let current = Params { memory_kib: 32, iterations: 2, parallelism: 1 };
        let (id, v19, salt) = (Algorithm::Argon2id, Version::V0x13, &[7; 16][..]);
        let table = [
            ("current", plain(id, v19, &current, "secret", salt), false),
            ("less memory", plain(id, v19, &Params { memory_kib: 16, ..current }, "secret", salt), true),
            ("more memory", plain(id, v19, &Params { memory_kib: 300, ..current }, "secret", salt), true),
            ("iterations", plain(id, v19, &Params { iterations: 1, ..current }, "secret", salt), true),
            ("lanes", plain(id, v19, &Params { parallelism: 3, ..current }, "secret", salt), true),
            ("argon2i", plain(Algorithm::Argon2i, v19, &current, "secret", salt), true),
            ("argon2d", plain(Algorithm::Argon2d, v19, &current, "secret", salt), true),
            ("version 16", plain(id, Version::V0x10, &current, "secret", salt), true),
            ("no version", plain(id, Version::V0x10, &current, "secret", salt).replace("v=16$", ""), true),
            ("salt", plain(id, v19, &current, "secret", &[7; 12]), true),
        ];
        // One memory for all, as on a thread: each finds what the one before has left.
        let mut memory = Memory::new(&current).unwrap();
        for (what, stored, outdated) in table {
            let stored = HashedPassword::from_stored(stored);
            let mut verdict =
                |password| verify(&Password::new(password), Some(&stored), &current, &mut memory).unwrap();
            assert_eq!(verdict("secret"), Verdict::Match { outdated }, "{what}");
            assert_eq!(verdict("Secret"), Verdict::NoMatch, "{what}");
        }
        assert_eq!(memory.blocks.len(), 32, "greater memory is given back");
    }

    #[test]
    fn unreadable_hashes() {
        use Unreadable::{Algorithm, Format, TooCostly};

        let good = hash(&Password::new("secret"), [7; 16], &TINY, &mut memory()).unwrap();
        let good = good.as_str();
        assert_eq!(verdict("secret", good), Verdict::Match { outdated: false });
        let parts: Vec<&str> = good.split('$').collect();
        let [_, _, _, _, salt, output] = parts[..] else { panic!("{good}") };
        let with = |params: &str| format!("$argon2id$v=19${params}${salt}${output}");
        let table = [
            (String::new(), Format),
            ("secret".into(), Format),
            ("*".into(), Format),
            ("5f4dcc3b5aa765d61d8327deb882cf99".into(), Format),
            ("{SSHA}aGVsbG8gd29ybGQgaGVsbG8gd29ybGQ=".into(), Format),
            ("pbkdf2_sha256$260000$salt$aGFzaA==".into(), Format),
            ("$".into(), Algorithm),
            ("$2b$12$EixZaYVK1fsbw1ZfbX3OXePaWxn96p36WQoeG6Lruj3vjPGga31lW".into(), Algorithm),
            ("$6$rounds=5000$usesomesillystring$abc".into(), Algorithm),
            ("$scrypt$ln=16,r=8,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNo".into(), Algorithm),
            (good.replace("argon2id", "argon2x"), Algorithm),
            (good.replace("argon2id", "Argon2id"), Algorithm),
            (good.replace("v=19", "v=18"), Algorithm),
            (good.replace("v=19", "v=019"), Format),
            (good.replace("v=19", "v=-19"), Format),
            (good.replace("v=19", "v="), Format),
            (good[1..].into(), Format),
            (format!(" {good}"), Format),
            (format!("{good}\n"), Format),
            (format!("{good}$"), Format),
            (format!("{good}="), Format),
            (format!("$argon2id$v=19$m=8,t=1,p=1${salt}"), Format),
            (format!("$argon2id$v=19$m=8,t=1,p=1${salt}$"), Format),
            ("$argon2id$v=19$m=8,t=1,p=1$$".into(), Format),
            (format!("$argon2id$v=19$m=8,t=1,p=1${salt}${}", &output[..8]), Format),
            (format!("$argon2id$v=19$m=8,t=1,p=1${salt}${}", "A".repeat(200)), Format),
            (format!("$argon2id$v=19$m=8,t=1,p=1${}${output}", &salt[..8]), Format),
            (format!("$argon2id$v=19$m=8,t=1,p=1$sa*t{salt}${output}"), Format),
            // The last letter holds bits beyond the last byte.
            (format!("{}B", &good[..good.len() - 1]), Format),
            (format!("$argon2id$v=19${salt}${output}"), Format),
            (with(""), Format),
            (with("m=8"), Format),
            (with("t=1,m=8,p=1"), Format),
            (with("m=8,t=1,p=1,p=1"), Format),
            (with("m=8,m=8,t=1,p=1"), Format),
            (with("m=8,t=1,p=1,data=AAAA"), Format),
            (with("m=8,t=1,p=1,keyid=AAAA"), Format),
            (with("m=08,t=1,p=1"), Format),
            (with("m=+8,t=1,p=1"), Format),
            (with("m=-8,t=1,p=1"), Format),
            (with("m=8,t=1,p=x"), Format),
            (with("m=0,t=1,p=1"), Format),
            (with("m=7,t=1,p=1"), Format),
            (with("m=15,t=1,p=2"), Format),
            (with("m=8,t=0,p=1"), Format),
            (with("m=8,t=1,p=0"), Format),
            (with("m=4294967296,t=1,p=1"), Format),
            (with("m=4294967295,t=4294967295,p=1"), TooCostly),
            (with("m=1048577,t=1,p=1"), TooCostly),
            (with("m=1048576,t=5,p=1"), TooCostly),
            (with("m=8,t=4294967295,p=1"), TooCostly),
            (with("m=1024,t=1,p=65"), TooCostly),
            (with("m=1024,t=1,p=16777216"), TooCostly),
        ];
        for (text, reason) in table {
            assert_eq!(verdict("secret", &text), Verdict::Unreadable(reason), "{text}");
        }
    }

    #[test]
    fn nobody_to_verify_costs_the_same() {
        let current = Params { memory_kib: 64, iterations: 3, parallelism: 2 };
        let mut memory = Memory::new(&current).unwrap();
        let stored = hash(&Password::new("secret"), [7; 16], &current, &mut memory).unwrap();
        let costly = HashedPassword::from_stored(stored.0.replace("m=64", "m=4194304"));
        let malformed = HashedPassword::from_stored("");
        let work = memory.computed;
        let table = [
            (Some(&stored), "secret", Verdict::Match { outdated: false }),
            (Some(&stored), "wrong", Verdict::NoMatch),
            (None, "secret", Verdict::NoMatch),
            (Some(&malformed), "secret", Verdict::Unreadable(Unreadable::Format)),
            (Some(&costly), "secret", Verdict::Unreadable(Unreadable::TooCostly)),
        ];
        for (stored, password, expected) in table {
            let before = memory.computed;
            let verdict = verify(&Password::new(password), stored, &current, &mut memory).unwrap();
            assert_eq!(verdict, expected);
            assert_eq!(memory.computed - before, work, "{expected:?}");
        }
    }

    #[test]
    fn one_password_in_two_spellings() {
        let stored = hash(&Password::new("cafe\u{301} \u{fb01}ve"), [7; 16], &TINY, &mut memory()).unwrap();
        assert_eq!(verdict("caf\u{e9} five", stored.as_str()), Verdict::Match { outdated: false });
    }

    #[test]
    fn known_answer() {
        // From argon2-cffi 25.1: `low_level.hash_secret(b"secret", bytes(range(16)), 2, 64, 1, 32, Type.ID)`.
        let params = Params { memory_kib: 64, iterations: 2, parallelism: 1 };
        let salt = std::array::from_fn(|i| u8::try_from(i).unwrap());
        let ours = hash(&Password::new("secret"), salt, &params, &mut memory()).unwrap();
        assert_eq!(
            ours.as_str(),
            "$argon2id$v=19$m=64,t=2,p=1$AAECAwQFBgcICQoLDA0ODw$fQXnu2lcRVW87PU7wSxCyjf7dkJaCTH9lUUs2L+PJMw"
        );
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

    #[test]
    fn wiped_memory_is_zero() {
        let params = Params { memory_kib: 64, iterations: 1, parallelism: 1 };
        let mut memory = Memory::new(&params).unwrap();
        let is_zero = |memory: &Memory| memory.blocks.iter().flat_map(AsRef::as_ref).all(|&word| word == 0);
        assert!(is_zero(&memory) && !memory.is_dirty());
        hash(&Password::new("secret"), [7; 16], &params, &mut memory).unwrap();
        // A smaller one after it does not hide what is left.
        hash(&Password::new("secret"), [7; 16], &TINY, &mut memory).unwrap();
        assert!(!is_zero(&memory) && memory.is_dirty());
        memory.wipe();
        assert!(is_zero(&memory) && !memory.is_dirty());
    }
}
