//! A secret that goes into every password hash and is not in the database: whoever has stolen the hashes cannot try a
//! single password without it.
//!
//! It is Argon2's own secret input (RFC 9106 section 3.1, `K`), so any library with the pepper computes the same hash,
//! and it costs nothing. Each pepper has a name, and a hash says which one it was made with: `keyid` in the PHC string
//! is the base64 of the name. So a new pepper can be put before an old one, and every hash moves to it at its owner's
//! next login.
//!
//! With `none` in first place, new hashes are made without a pepper while the others stay known. That is the first step
//! to a first pepper, which every replica has to know before any replica uses it, and the last step away from peppers.

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use zeroize::Zeroizing;

use super::BASE64;

/// The minimum length of a pepper, in bytes.
const MIN_BYTES: usize = 32;
/// The maximum length of a pepper, in bytes: a block of the underlying hash function, and more than anybody can guess.
const MAX_BYTES: usize = 128;
/// The longest name, in bytes: the PHC format allows 8 for `keyid`.
const MAX_NAME: usize = 8;

/// The peppers of a service, newest first; none by default.
///
/// ```
/// use gatepass::password::Peppers;
///
/// let peppers: Peppers = "2:cGVwcGVyIHR3byBpcyB0aGVzZSAzMiBieXRlcyBvZiA=".parse()?;
/// assert_eq!(format!("{peppers:?}"), "Peppers([\"2\"])");
/// # Ok::<(), gatepass::password::PepperError>(())
/// ```
#[derive(Clone, Default)]
pub struct Peppers {
    known: Vec<Pepper>,
    /// Whether new hashes are made without a pepper.
    is_none_first: bool,
}

#[derive(Clone)]
pub(super) struct Pepper {
    name: String,
    secret: Zeroizing<Vec<u8>>,
}

/// Why a text is not a list of peppers. It says nothing about the secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PepperError {
    /// One of them is not `name:base64`.
    #[error("expected NAME:BASE64, the newest or `none` first, separated by commas")]
    Format,
    /// A name is empty, too long, or has other characters.
    #[error("a pepper's name is 1 to {MAX_NAME} letters and digits")]
    Name,
    /// What follows the name is not base64.
    #[error("a pepper is base64 after its name and a colon")]
    Base64,
    /// Too short a secret can be guessed; one that is far too long is a mistake.
    #[error("a pepper is {MIN_BYTES} to {MAX_BYTES} bytes, as base64")]
    Length,
    /// It would be unclear which of the two a hash was made with.
    #[error("two peppers have the same name")]
    Twice,
}

impl Peppers {
    /// The pepper for new hashes, if there is one.
    pub(super) fn newest(&self) -> Option<&Pepper> {
        self.known.first().filter(|_| !self.is_none_first)
    }

    pub(super) fn find(&self, name: &str) -> Option<&Pepper> {
        self.known.iter().find(|pepper| pepper.name == name)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.known.len()
    }

    /// The secrets, for a check of whether they can be guessed.
    pub fn secrets(&self) -> impl Iterator<Item = &[u8]> {
        self.known.iter().map(Pepper::secret)
    }
}

impl Pepper {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn secret(&self) -> &[u8] {
        &self.secret
    }
}

/// The pepper's name as the `keyid` of a PHC string.
pub fn key_id(name: &str) -> String {
    STANDARD_NO_PAD.encode(name)
}

/// The name in a PHC string's `keyid`, if that holds one.
pub(super) fn name_of(key_id: &str) -> Option<String> {
    let name = String::from_utf8(STANDARD_NO_PAD.decode(key_id).ok()?).ok()?;
    is_name(&name).then_some(name)
}

/// The name of the pepper in a PHC string, or in a text that ends with one.
pub(super) fn named_in(text: &str) -> Option<String> {
    let (_, rest) = text.split_once(",keyid=")?;
    name_of(rest.split('$').next()?)
}

fn is_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric())
}

impl FromStr for Peppers {
    type Err = PepperError;

    fn from_str(text: &str) -> Result<Self, PepperError> {
        let mut peppers = Self::default();
        for (index, item) in text.split(',').enumerate() {
            if index == 0 && item.trim() == "none" {
                peppers.is_none_first = true;
                continue;
            }
            let (name, secret) = item.trim().split_once(':').ok_or(PepperError::Format)?;
            if !is_name(name) {
                return Err(PepperError::Name);
            }
            let secret = Zeroizing::new(BASE64.decode(secret).map_err(|_| PepperError::Base64)?);
            if !(MIN_BYTES..=MAX_BYTES).contains(&secret.len()) {
                return Err(PepperError::Length);
            }
            if peppers.find(name).is_some() {
                return Err(PepperError::Twice);
            }
            peppers.known.push(Pepper { name: name.to_owned(), secret });
        }
        Ok(peppers)
    }
}

impl fmt::Debug for Peppers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let none = self.is_none_first.then_some("none");
        let names = none.into_iter().chain(self.known.iter().map(Pepper::name));
        f.debug_tuple("Peppers").field(&names.collect::<Vec<_>>()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        let (long, short) = (BASE64.encode([1; 32]), BASE64.encode([1; 31]));
        let table = [
            (format!("1:{long}"), Ok(vec!["1"])),
            (format!("1:{}", long.trim_end_matches('=')), Ok(vec!["1"])),
            (format!("2026b:{long}, 1:{long}"), Ok(vec!["2026b", "1"])),
            (format!("1:{}", BASE64.encode([1; 128])), Ok(vec!["1"])),
            (format!("none, 1:{long}"), Ok(vec!["1"])),
            ("none".into(), Ok(vec![])),
            (format!("1:{long},none"), Err(PepperError::Format)),
            (String::new(), Err(PepperError::Format)),
            (long.clone(), Err(PepperError::Format)),
            (format!("1:{long},"), Err(PepperError::Format)),
            (format!(":{long}"), Err(PepperError::Name)),
            (format!("ninechars:{long}"), Err(PepperError::Name)),
            (format!("a-b:{long}"), Err(PepperError::Name)),
            (format!("1:{long}!"), Err(PepperError::Base64)),
            (format!("1:{long}:2"), Err(PepperError::Base64)),
            ("1:".into(), Err(PepperError::Length)),
            (format!("1:{short}"), Err(PepperError::Length)),
            (format!("1:{}", BASE64.encode([1; 129])), Err(PepperError::Length)),
            (format!("1:{long},1:{long}"), Err(PepperError::Twice)),
        ];
        for (text, expected) in table {
            let peppers = text.parse::<Peppers>();
            let names = peppers.as_ref().map(|all| all.known.iter().map(Pepper::name).collect::<Vec<_>>());
            assert_eq!(names.map_err(|error| *error), expected, "{text}");
        }
    }

    #[test]
    fn key_ids() {
        for name in ["1", "ab", "2026", "LongName"] {
            assert_eq!(name_of(&key_id(name)).as_deref(), Some(name));
        }
        for text in ["", "=", "MQ==", "M", "LQ", "YWJjZGVmZ2hp", "ä"] {
            assert_eq!(name_of(text), None, "{text}");
        }
        for (text, name) in [
            ("$argon2id$v=19$m=8,t=1,p=1,keyid=MQ$c2FsdA$aGFzaA", Some("1")),
            ("{wrapped}$argon2id$v=19$m=8,t=1,p=1,keyid=MjAyNg$c2FsdA$aGFzaA", Some("2026")),
            ("$argon2id$v=19$m=8,t=1,p=1$c2FsdA$aGFzaA", None),
            ("$argon2id$v=19$m=8,t=1,p=1,keyid=LQ$c2FsdA$aGFzaA", None),
        ] {
            assert_eq!(named_in(text).as_deref(), name, "{text}");
        }
    }

    #[test]
    fn debug_shows_names_alone() {
        let peppers: Peppers = format!("7:{}", BASE64.encode([b'x'; 40])).parse().unwrap();
        assert_eq!(format!("{peppers:?}"), "Peppers([\"7\"])");
    }
}
