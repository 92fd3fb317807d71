//! Django's `auth_user.password`: the name of a hasher, followed by that hasher's own format
//! (<https://docs.djangoproject.com/en/5.2/topics/auth/passwords/>). `argon2$…` is a PHC string after the name.

use base64::{Engine, engine::general_purpose::STANDARD};

use super::{
    Hash, Refused, bcrypt,
    digest::{Algorithm, Digest},
    pbkdf2::{Pbkdf2, Prf},
    phc,
    scrypt::Scrypt,
};
use crate::hex;

const NAME: &str = "Django";

/// `pbkdf2_sha256$…`, `scrypt$…`, `bcrypt_sha256$$2b$…`, …
pub(super) fn parse(text: &str) -> Result<Hash, Refused> {
    let (hasher, rest) = text.split_once('$').ok_or(Refused::Unknown)?;
    match hasher {
        "bcrypt" => bcrypt::parse(rest),
        "bcrypt_sha256" => bcrypt::parse_sha256(rest),
        "md5" => parse_digest(Algorithm::Md5, rest),
        "pbkdf2_sha1" => parse_pbkdf2(Prf::Sha1, rest),
        "pbkdf2_sha256" => parse_pbkdf2(Prf::Sha256, rest),
        "scrypt" => parse_scrypt(rest),
        "sha1" => parse_digest(Algorithm::Sha1, rest),
        _ => Err(Refused::Unknown),
    }
}

/// `iterations$salt$base64`
fn parse_pbkdf2(hash: Prf, text: &str) -> Result<Hash, Refused> {
    let [iterations, salt, digest] = fields(text)?;
    let iterations = phc::number(iterations).ok_or(Refused::Malformed(NAME))?;
    Hash::new(Box::new(Pbkdf2::new(hash, iterations, salt.into())?), base64(digest)?)
}

/// `N$salt$r$p$base64`
fn parse_scrypt(text: &str) -> Result<Hash, Refused> {
    let [n, salt, r, p, digest] = fields(text)?;
    let parsed = || Some((phc::number(n)?, phc::number(r)?, phc::number(p)?));
    let (n, r, p) = parsed().ok_or(Refused::Malformed(NAME))?;
    Hash::new(Box::new(Scrypt::new(n, r, p, salt.into())?), base64(digest)?)
}

/// `salt$hexadecimal`, the digest of the salt followed by the password.
fn parse_digest(algorithm: Algorithm, text: &str) -> Result<Hash, Refused> {
    let [salt, digest] = fields(text)?;
    let template = if salt.is_empty() { "{password}" } else { "{salt}{password}" };
    let digest = hex::decode(digest).ok_or(Refused::Malformed(NAME))?;
    Hash::new(Box::new(Digest::new(algorithm, None, template, salt.into())?), digest)
}

fn fields<const COUNT: usize>(text: &str) -> Result<[&str; COUNT], Refused> {
    let fields: Vec<&str> = text.split('$').collect();
    fields.try_into().map_err(|_| Refused::Malformed(NAME))
}

fn base64(text: &str) -> Result<Vec<u8>, Refused> {
    STANDARD.decode(text).map_err(|_| Refused::Malformed(NAME))
}
