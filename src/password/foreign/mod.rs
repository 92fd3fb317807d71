//! Password hashes of other systems: read when they are imported, verified at a login, and then replaced by our own.
//!
//! A hash consists of a [`Function`] of the password, with its salt and its cost, and the digest that it gave.
//! [`Function::is_slow`] decides how the hash is stored:
//!
//! - slow: stored as it came, or in a PHC string of ours if the other system stores it in pieces;
//! - fast: [wrapped](Wrapped). Argon2id is computed over the digest, and only the result is stored, with the function
//!   but without the digest. At a login both are computed, one after the other.
//!
//! Every function is checked against limits when it is read, from a file or from the database, so that no hash occupies
//! a thread for longer than two seconds or takes more memory than [`MAX_BORROWED`], unless our own hashes do. The
//! passwords tried are limited too ([`MAX_PASSWORD`]). `docs/foreign-hashes.md` lists all forms and limits.

mod bcrypt;
mod crypt;
mod digest;
mod django;
mod keycloak;
mod pbkdf2;
mod phc;
mod scrypt;

use std::fmt;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use zeroize::Zeroizing;

pub use digest::{Algorithm, BareKind, HmacKey};
pub use scrypt::FirebaseProject;

use self::phc::Phc;
use super::{
    HashedPassword, MAX_BORROWED, Params, Peppers, Unreadable,
    argon::{PREFIX, Stored},
};

/// The longest text of a hash, in bytes. The longest one intended, with a salt and a template of maximum length, takes
/// nearly all of it.
const MAX_TEXT: usize = 640;

/// The shortest digest in hexadecimal: MD5's.
const MIN_BARE: usize = 32;

/// The longest password that is tried, in bytes: as long as the longest one in ASCII that we accept. The time of most
/// functions grows with the password, that of `$6$` to five times the time for a short one. crypt(3) itself takes 511
/// bytes, and bcrypt sees 72.
const MAX_PASSWORD: usize = 256;

/// The longest salt, in bytes. Those in use have 8 to 64.
const MAX_SALT: usize = 128;

/// The prefix of our own hashes.
const OURS: &str = "$argon2id$";

/// The most memory that an imported Argon2 hash may take, in KiB: 128 MiB. That is less than our own parameters may
/// have, since an operator chooses ours, but anybody may have chosen these. Django uses 100 MiB, PHP and argon2-cffi 64
/// MiB, and Keycloak 7 MiB. A hash that takes no more than our own parameters, such as one of ours on its way back, is
/// computed in its thread's memory.
const MAX_IMPORTED_KIB: u32 = 128 << 10;

/// The most memory times passes of an imported Argon2 hash, in KiB: it takes a second. More is allowed if our own
/// parameters have more.
const MAX_IMPORTED_WORK_KIB: u64 = 1 << 20;

const _: () = assert!((MAX_IMPORTED_KIB as u64) << 10 <= MAX_BORROWED);

/// A foreign hash that has been read, and what to do with it.
#[derive(Debug)]
pub enum Imported {
    /// It is slow enough: store this.
    Keep(HashedPassword),
    /// It is fast: store what [`Pool::wrap`](super::Pool::wrap) makes of it.
    Wrap(FastHash),
}

/// Why a hash is not accepted. It says nothing about the hash's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Its form is not known.
    #[error("not a password hash of a known kind")]
    Unknown,
    /// A hexadecimal digest that does not say what it is: use [`Imported::of_kind`].
    #[error("hexadecimal that does not say which hash it is; `gatepass import --hash` takes it")]
    Bare,
    /// A text that says that nobody can log in with a password (`!`, `*`, or nothing).
    #[error("not a password hash, but the marker of an account without a password")]
    NoPassword,
    /// Its form is known, but it is malformed.
    #[error("a malformed {0} hash")]
    Malformed(&'static str),
    /// Its parameters are beyond what one login may cost.
    #[error("a {0} hash that costs more than one login may")]
    TooCostly(&'static str),
    /// One of our own hashes, from a service with another pepper.
    #[error("an Argon2 hash made with a pepper that PASSWORD_PEPPER does not hold")]
    Pepper,
    /// A template without a password, with a salt where there is none, without a salt where there is one, or too long.
    #[error(
        "a hash with an invalid template: it must contain {{password}}, and {{salt}} if and only if there is a salt, \
         in at most {} bytes",
        digest::MAX_TEMPLATE
    )]
    Template,
    /// An HMAC without a key, or a key for something else.
    #[error(
        "a hash with an invalid key: an HMAC needs one of 1 to {MAX_SALT} bytes (the salt, if no other is given), \
         any other hash none"
    )]
    Key,
}

/// How a foreign hash and a stored one compare, as far as that can be known without the password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Likeness {
    /// They are the same.
    Same,
    /// The stored hash may have been made from the foreign one, at a login or by wrapping, or from another password: it
    /// does not show which.
    Possible,
    /// They differ.
    Other,
}

/// A foreign hash that is too cheap to be stored as it is. `Debug` shows nothing of it.
pub struct FastHash(Hash);

impl Imported {
    /// Reads a hash that says what it is: PHC and crypt strings, Django's forms, LDAP's schemes.
    ///
    /// `peppers` are this service's, for its own hashes on their way back.
    ///
    /// # Errors
    ///
    /// [`Refused`].
    ///
    /// ```
    /// use gatepass::password::{Peppers, foreign::{Imported, Refused}};
    ///
    /// let read = |text| Imported::parse(text, &Peppers::default());
    /// let bcrypt = "$2b$12$EixZaYVK1fsbw1ZfbX3OXePaWxn96p36WQoeG6Lruj3vjPGga31lW";
    /// assert!(matches!(read(bcrypt), Ok(Imported::Keep(kept)) if kept.as_str() == bcrypt));
    /// assert!(matches!(read("{SSHA}VWbG6s3jSVi5IHhYR0Ihgc9ccFY0UVZz"), Ok(Imported::Wrap(_))));
    /// assert!(matches!(read("$2b$31$EixZaYVK1fsbw1ZfbX3OXe"), Err(Refused::TooCostly("bcrypt"))));
    /// ```
    pub fn parse(text: &str, peppers: &Peppers) -> Result<Self, Refused> {
        Self::parse_beside(text, peppers, None)
    }

    /// Like [`parse`](Self::parse), for a service whose own hashes have these parameters.
    fn parse_beside(text: &str, peppers: &Peppers, own: Option<&Params>) -> Result<Self, Refused> {
        if text.is_empty() {
            return Err(Refused::NoPassword);
        }
        let text = without_name(text);
        if text.starts_with(PREFIX) {
            check_argon2(text, peppers, own)?;
            return Ok(Self::Keep(HashedPassword(text.to_owned())));
        }
        // What an earlier import has made, on its way back.
        if let Some(wrapped) = Wrapped::parse(text) {
            let (_, argon2) = wrapped.map_err(|_| Refused::Malformed("wrapped"))?;
            check_argon2(argon2, peppers, own)?;
            return Ok(Self::Keep(HashedPassword(text.to_owned())));
        }
        if text.starts_with(['!', '*']) {
            return Err(Refused::NoPassword);
        }
        if text.len() >= MIN_BARE && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(Refused::Bare);
        }
        let hash = Hash::parse(text)?;
        Ok(if hash.function.is_slow() {
            Self::Keep(HashedPassword(text.to_owned()))
        } else {
            Self::Wrap(FastHash(hash))
        })
    }

    /// Reads a hash of Firebase Authentication, from a project with these parameters; hash and salt are in base64 as
    /// `firebase auth:export` writes them.
    ///
    /// # Errors
    ///
    /// [`Refused`].
    pub fn firebase(project: &FirebaseProject, hash: &str, salt: &str) -> Result<Self, Refused> {
        project.hash(hash, salt).map(Self::of)
    }

    /// Reads a hash of Keycloak, from the two JSON texts of a credential of the type `password`.
    ///
    /// # Errors
    ///
    /// [`Refused`].
    pub fn keycloak(credential_data: &str, secret_data: &str) -> Result<Self, Refused> {
        keycloak::read(credential_data, secret_data)
    }

    /// Reads a hash from a file whose hexadecimal digests are of this `kind`; `salt` is this digest's. A text that is
    /// not hexadecimal says itself what it is. Argon2 may cost as much as this service's `own` hashes.
    ///
    /// # Errors
    ///
    /// [`Refused`].
    pub fn of_kind(
        text: &str,
        kind: Option<&BareKind>,
        salt: &str,
        peppers: &Peppers,
        own: Option<&Params>,
    ) -> Result<Self, Refused> {
        match kind {
            Some(kind) if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                kind.hash(text, salt.as_bytes()).map(Self::of)
            }
            _ => Self::parse_beside(text, peppers, own),
        }
    }

    /// Compares it with what is stored.
    pub fn likeness(&self, stored: &HashedPassword) -> Likeness {
        let stored = stored.as_str();
        match self {
            Self::Keep(hash) if hash.as_str() == stored => Likeness::Same,
            _ if stored.starts_with(OURS) => Likeness::Possible,
            Self::Wrap(fast)
                if stored.strip_prefix(&fast.to_wrapped().0).is_some_and(|rest| rest.starts_with('$')) =>
            {
                Likeness::Possible
            }
            _ => Likeness::Other,
        }
    }

    fn of(hash: Hash) -> Self {
        if hash.function.is_slow() {
            Self::Keep(HashedPassword(hash.to_string()))
        } else {
            Self::Wrap(FastHash(hash))
        }
    }
}

impl fmt::Debug for FastHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FastHash([redacted])")
    }
}

impl FastHash {
    /// The beginning of the stored text, and the input of Argon2id.
    pub(super) fn to_wrapped(&self) -> (String, Zeroizing<Vec<u8>>) {
        let text = format!("{WRAPPED}{}", self.0.function);
        let input = argon2_input(&text, &self.0.digest);
        (text, input)
    }
}

/// Checks whether an Argon2 hash may be imported, if our own have these parameters.
fn check_argon2(text: &str, peppers: &Peppers, own: Option<&Params>) -> Result<(), Refused> {
    const NAME: &str = "Argon2";
    let stored = Stored::parse(text, peppers).map_err(|reason| match reason {
        Unreadable::TooCostly => Refused::TooCostly(NAME),
        Unreadable::Pepper => Refused::Pepper,
        Unreadable::Format | Unreadable::Algorithm | Unreadable::Unwrapped => Refused::Malformed(NAME),
    })?;
    let (own_kib, own_work_kib) = own.map_or((0, 0), |own| (own.memory_kib, own.work()));
    if stored.params.memory_kib > MAX_IMPORTED_KIB.max(own_kib)
        || stored.params.work() > MAX_IMPORTED_WORK_KIB.max(own_work_kib)
    {
        return Err(Refused::TooCostly(NAME));
    }
    Ok(())
}

/// The text without the prefix of two systems: LDAP's before a crypt string, and Django's before Argon2's PHC string.
fn without_name(text: &str) -> &str {
    match text.split_at_checked("{CRYPT}".len()) {
        Some((scheme, crypt)) if scheme.eq_ignore_ascii_case("{CRYPT}") => crypt,
        Some(("argon2$", _)) => &text["argon2".len()..],
        _ => text,
    }
}

/// What other systems compute from a password: an algorithm with its cost and salt. `Display` is the beginning of a PHC
/// string, `$name$parameters$salt`, which [`function`] reads.
trait Function: fmt::Display + Send + Sync {
    /// Its name in the message when a hash is refused.
    fn name(&self) -> &'static str;

    /// How long its digests are.
    fn length(&self) -> Length;

    /// The digest of a password; `None` if nobody can have that password.
    fn compute(&self, password: &[u8]) -> Option<Zeroizing<Vec<u8>>>;

    /// Whether a guess costs so much that the digest may be kept as it is.
    fn is_slow(&self) -> bool;

    /// How many bytes of memory it takes, if that is more than a few.
    fn memory(&self) -> u64 {
        0
    }
}

/// The digest of a password; `None` if it is too long for one.
fn digest_of(function: &dyn Function, password: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    if password.len() > MAX_PASSWORD { None } else { function.compute(password) }
}

/// The length of a digest, in bytes.
#[derive(Clone, Copy)]
enum Length {
    /// Exactly this many.
    Exactly(usize),
    /// At least this many. A longer digest begins with the shorter one of the same function, so only this many bytes
    /// are kept: the rest would cost us, but no attacker.
    AtLeast(usize),
}

/// A function, and the digest that it gave for the right password. `Display` is a PHC string.
pub(super) struct Hash {
    function: Box<dyn Function>,
    digest: Zeroizing<Vec<u8>>,
}

impl Hash {
    fn new(function: Box<dyn Function>, digest: Vec<u8>) -> Result<Self, Refused> {
        let mut digest = Zeroizing::new(digest);
        let length = match function.length() {
            Length::Exactly(length) => length,
            Length::AtLeast(length) => {
                digest.truncate(length);
                length
            }
        };
        if digest.len() != length {
            return Err(Refused::Malformed(function.name()));
        }
        Ok(Self { function, digest })
    }

    fn parse(text: &str) -> Result<Self, Refused> {
        if text.len() > MAX_TEXT || !text.is_ascii() {
            return Err(Refused::Unknown);
        }
        if text.starts_with('{') {
            return digest::parse_ldap(text);
        }
        let Some(rest) = text.strip_prefix("U$").or_else(|| text.strip_prefix('$')) else {
            return django::parse(text);
        };
        match rest.split('$').next() {
            Some("2a" | "2b" | "2x" | "2y") => bcrypt::parse(text),
            Some("1" | "apr1") => crypt::parse_md5(text),
            Some("5" | "6") => crypt::parse_sha(text),
            Some("P" | "H" | "S") => crypt::parse_phpass(text),
            Some("7") => scrypt::parse_crypt(text),
            _ => {
                let (recipe, digest) = text.rsplit_once('$').ok_or(Refused::Unknown)?;
                let function = function(recipe)?;
                let digest = phc::decode(digest).ok_or(Refused::Malformed(function.name()))?;
                Self::new(function, digest)
            }
        }
    }

    /// Reads the hash that is stored as this text.
    pub(super) fn stored(text: &str) -> Result<Self, Unreadable> {
        let hash = Self::parse(text).map_err(|refused| match refused {
            Refused::Unknown if text.starts_with('$') => Unreadable::Algorithm,
            refused => refused.into(),
        })?;
        if hash.function.is_slow() { Ok(hash) } else { Err(Unreadable::Unwrapped) }
    }

    /// Whether this is the password.
    pub(super) fn verify(&self, password: &[u8]) -> bool {
        digest_of(&*self.function, password)
            .is_some_and(|computed| verify_slices_are_equal(&computed, &self.digest).is_ok())
    }

    /// How many bytes [`verify`](Self::verify) takes.
    pub(super) fn memory(&self) -> u64 {
        self.function.memory()
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}${}", self.function, phc::encode(&self.digest))
    }
}

impl From<Refused> for Unreadable {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::TooCostly(_) => Self::TooCostly,
            Refused::Pepper => Self::Pepper,
            Refused::Unknown
            | Refused::Bare
            | Refused::NoPassword
            | Refused::Malformed(_)
            | Refused::Template
            | Refused::Key => Self::Format,
        }
    }
}

/// Reads a function from the text that it is displayed as.
fn function(text: &str) -> Result<Box<dyn Function>, Refused> {
    let phc = Phc::parse(text).ok_or(Refused::Unknown)?;
    Ok(match phc.name {
        "bcrypt" => Box::new(bcrypt::Bcrypt::of_phc(&phc)?),
        "digest" => Box::new(digest::Digest::of_phc(&phc)?),
        "firebase-scrypt" => Box::new(scrypt::Firebase::of_phc(&phc)?),
        "md5-crypt" => Box::new(crypt::Md5Crypt::of_phc(&phc)?),
        "phpass" => Box::new(crypt::Phpass::of_phc(&phc)?),
        "scrypt" => Box::new(scrypt::Scrypt::of_phc(&phc)?),
        "sha-crypt" => Box::new(crypt::ShaCrypt::of_phc(&phc)?),
        _ => Box::new(pbkdf2::Pbkdf2::of_phc(&phc)?),
    })
}

const WRAPPED: &str = "$wrapped";

/// The form in which a fast hash is stored: `$wrapped`, the function, and a PHC string of our Argon2id. The input of
/// Argon2id is the text before that string, followed by the function's digest of the password.
///
/// No kind of hash can be passed off as another. The digest, which may be known from the system that the hash came
/// from, does not work as a password: what is typed goes through the function first. And since the text is part of the
/// input, the Argon2id hash is valid for no other function, and for no password without one.
pub(super) struct Wrapped<'a> {
    text: &'a str,
    function: Box<dyn Function>,
}

impl<'a> Wrapped<'a> {
    /// Reads this and the PHC string that follows; `None` if the text is of another kind.
    pub(super) fn parse(text: &'a str) -> Option<Result<(Self, &'a str), Unreadable>> {
        let rest = text.strip_prefix(WRAPPED)?;
        let at = rest.rfind(PREFIX).unwrap_or(rest.len());
        let (recipe, argon2) = rest.split_at(at);
        let text = &text[..text.len() - argon2.len()];
        Some(match function(recipe) {
            Ok(function) => Ok((Self { text, function }, argon2)),
            Err(refused) => Err(refused.into()),
        })
    }

    /// The input of Argon2id for this password.
    pub(super) fn input(&self, password: &[u8]) -> Zeroizing<Vec<u8>> {
        let digest = digest_of(&*self.function, password);
        argon2_input(self.text, digest.as_deref().map_or(&[], Vec::as_slice))
    }

    /// How many bytes [`input`](Self::input) takes.
    pub(super) fn memory(&self) -> u64 {
        self.function.memory()
    }
}

/// The input of Argon2id. It is allocated only once, since it is as sensitive as the digest.
fn argon2_input(text: &str, digest: &[u8]) -> Zeroizing<Vec<u8>> {
    Zeroizing::new([text.as_bytes(), digest].concat())
}

#[cfg(test)]
mod tests;
