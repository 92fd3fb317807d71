//! Passwords: which ones are accepted, how they are stored, and the threads that compute their hashes.
//!
//! Pure except for its threads: no clock except the monotonic one that times the queue, no randomness except the salt
//! that the caller passes, no database.
//!
//! The path of a password:
//!
//! 1. `http` makes a [`Password`] of the text in the request: normalised, wiped when dropped, never printed.
//! 2. A *new* one is checked against the [`rules`], by [`Pool::check`].
//! 3. [`Pool::hash`] waits for its turn on one of a few dedicated threads and returns a [`HashedPassword`], the text
//!    that `store` keeps.
//! 4. At login, [`Pool::verify`] does the same work whether or not there is such a user, and returns a [`Verdict`].
//!
//! Hashes of other systems come in through [`foreign`].
//!
//! Argon2id and the rules run only on the [`Pool`]'s threads. An async thread only makes a [`Password`], which takes a
//! tenth of a millisecond at worst, however long the text is.

mod argon;
pub mod breached;
mod compute;
pub mod foreign;
mod measure;
mod memory;
mod pepper;
mod pool;
mod recipe;
pub mod rules;

use std::fmt;

use base64::{
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use secrecy::{ExposeSecret, SecretString};
use unicode_normalization::UnicodeNormalization;

pub use argon::{Params, ParamsError, Unreadable};
pub use measure::{OWASP_MINIMUM, measure, recommend};
pub use pepper::{PepperError, Peppers, key_id};
pub use pool::{Pool, PoolError, PoolSettings, StartError};
pub use recipe::Verdict;
pub use rules::{MAX_LENGTH, Refusal, Rules};

/// With padding or without, since writers differ.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A password in the clear, for no longer than necessary: wiped from memory when dropped, redacted by `Debug`.
///
/// It is NFKC-normalised (NIST SP 800-63B-4, section 3.1.1.2), because one keyboard sends `é` as one code point and
/// another as two, and nobody can see the difference. It is never truncated.
///
/// ```
/// use gatepass::password::Password;
///
/// let password = Password::new("ﬁve cafe\u{301}s");
/// assert_eq!(password.length(), "five cafés".chars().count());
/// assert_eq!(format!("{password:?}"), "Password([redacted])");
/// ```
#[derive(Clone)]
pub struct Password {
    normalized: SecretString,
    /// What was typed, if that differs: other systems have hashed it without normalising it.
    typed: Option<SecretString>,
}

impl Password {
    /// Takes what somebody typed. A text that would be too long for a password even after normalisation is not
    /// normalised, since that takes longest for the longest texts: it can only be refused, by its
    /// [length](Self::length).
    pub fn new(typed: &str) -> Self {
        if typed.chars().nth(MAX_TYPED).is_some() {
            return Self { normalized: typed.into(), typed: None };
        }
        // Counted first, so that the text is written once into memory of its final size: a string that grows leaves
        // copies of the password behind in memory that nobody wipes.
        let mut text = String::with_capacity(typed.nfkc().map(char::len_utf8).sum());
        text.extend(typed.nfkc());
        let is_other = text != typed;
        Self { normalized: text.into(), typed: is_other.then(|| typed.into()) }
    }

    /// The length in Unicode characters, after normalisation: what the bounds in [`rules`] count.
    pub fn length(&self) -> usize {
        self.expose().chars().count()
    }

    fn expose(&self) -> &str {
        self.normalized.expose_secret()
    }

    /// What was typed, for the system that users come from, which may not normalise.
    pub(crate) fn as_typed(&self) -> &str {
        self.typed().unwrap_or_else(|| self.expose())
    }

    /// What was typed, if that differs.
    fn typed(&self) -> Option<&str> {
        self.typed.as_ref().map(ExposeSecret::expose_secret)
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password([redacted])")
    }
}

/// The most memory, in bytes, that all verifications together may take beyond their threads' own, and therefore the
/// most for each hash of another system. 129 MiB: the largest of OWASP's choices for scrypt takes 128 MiB, and some KiB
/// for its blocks.
const MAX_BORROWED: u64 = 129 << 20;

/// The most characters that a text may have before normalisation if it is to be a password after it.
///
/// Normalisation shortens a text where it composes characters, but never more than four into one: the canonical
/// decomposition of a character has at most four (UAX 15 section 9, table of expansion factors).
const MAX_TYPED: usize = 4 * MAX_LENGTH;

/// A hashed password as the store keeps it: a PHC string, `$argon2id$v=19$m=…,t=…,p=…$salt$hash`, or a hash that came
/// from another system and has not been replaced yet ([`foreign`]).
///
/// `Debug` is redacted: whoever has a hash can try to guess the password, so it does not belong in a log.
#[derive(Clone, PartialEq, Eq)]
pub struct HashedPassword(String);

impl HashedPassword {
    /// Takes any text from the store. One that cannot be read shows when it is verified ([`Verdict::Unreadable`]),
    /// where it can be reported.
    pub fn from_stored(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text to store.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether anybody could log in with it, if these are the service's peppers. Computes nothing.
    ///
    /// # Errors
    ///
    /// Why not.
    pub fn check(&self, peppers: &Peppers) -> Result<(), Unreadable> {
        recipe::check(&self.0, peppers)
    }

    /// The name of the pepper that it says it was made with, which is no secret.
    pub fn pepper_name(&self) -> Option<String> {
        pepper::named_in(&self.0)
    }
}

impl fmt::Debug for HashedPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashedPassword([redacted])")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equivalent_unicode_spellings_are_the_same_password() {
        let table = [
            ("caf\u{e9}", "cafe\u{301}", "composed and decomposed"),
            ("\u{fb01}ve", "five", "ligature"),
            ("\u{ff21}\u{ff22}\u{ff23}", "ABC", "full width"),
            ("a\u{a0}b", "a b", "no-break space"),
            ("\u{2163}", "IV", "Roman numeral"),
            ("\u{d55c}", "\u{1112}\u{1161}\u{11ab}", "Hangul syllable and letters"),
            ("a\u{323}\u{307}", "a\u{307}\u{323}", "order of accents"),
        ];
        for (one, other, what) in table {
            assert_eq!(Password::new(one).expose(), Password::new(other).expose(), "{what}");
        }
        assert_ne!(Password::new("Secret").expose(), Password::new("secret").expose(), "case counts");
        assert_ne!(Password::new(" secret").expose(), Password::new("secret").expose(), "spaces count");
    }

    #[test]
    fn length_counts_characters_after_normalisation() {
        let table = [("", 0), ("abc", 3), ("\u{fb01}", 2), ("e\u{301}", 1), ("😀😀", 2), ("\u{fdfa}", 18)];
        for (text, length) in table {
            assert_eq!(Password::new(text).length(), length, "{text:?}");
        }
    }

    #[test]
    fn no_text_that_may_be_a_password_is_too_long_to_normalise() {
        // One of the characters with the longest decomposition: four into one.
        let typed = "\u{3b1}\u{313}\u{300}\u{345}";
        let password = Password::new(&typed.repeat(MAX_LENGTH));
        assert_eq!((typed.chars().count(), password.length()), (4, MAX_LENGTH));
        assert!(Password::new(&typed.repeat(MAX_LENGTH + 1)).length() > MAX_LENGTH);
        // No character has a longer one.
        for c in '\0'..=char::MAX {
            assert!(c.nfd().count() <= 4, "{c:?}");
        }
    }

    #[test]
    fn debug_shows_nothing() {
        let secret = "correct horse";
        assert!(!format!("{:?}", Password::new(secret)).contains("horse"));
        assert!(!format!("{:?}", HashedPassword::from_stored(secret)).contains("horse"));
    }
}
