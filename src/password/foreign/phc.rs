//! The PHC string format of foreign hashes: `$name$key=value,…$salt`, followed by a digest. These have a parser of
//! their own, since their salts may be longer than the format allows.
//! <https://github.com/P-H-C/phc-string-format/blob/master/phc-sf-spec.md>

use std::str::FromStr;

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};

use crate::password::BASE64;

/// A PHC string without its digest.
pub(super) struct Phc<'a> {
    pub(super) name: &'a str,
    parameters: &'a str,
    pub(super) salt: Vec<u8>,
}

impl<'a> Phc<'a> {
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.strip_prefix('$')?.split('$');
        let (name, parameters, salt) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() {
            return None;
        }
        Some(Self { name, parameters, salt: decode(salt)? })
    }

    /// The value of a parameter.
    pub(super) fn get(&self, key: &str) -> Option<&'a str> {
        self.parameters.split(',').find_map(|item| item.strip_prefix(key)?.strip_prefix('='))
    }

    /// The value of a numeric parameter.
    pub(super) fn number<T: FromStr>(&self, key: &str) -> Option<T> {
        number(self.get(key)?)
    }

    /// The parameters if they are a single number without a key, as passlib writes them.
    pub(super) fn bare_number<T: FromStr>(&self) -> Option<T> {
        number(self.parameters)
    }
}

/// Reads a number of decimal digits, without a sign.
pub(super) fn number<T: FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Reads base64, also with the `.` that passlib writes for `+`.
pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    BASE64.decode(text.replace('.', "+")).ok()
}

pub(super) fn encode(bytes: &[u8]) -> String {
    STANDARD_NO_PAD.encode(bytes)
}
