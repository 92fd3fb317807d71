//! MD5, SHA-1 and SHA-2, computed once over a password and a salt, or as HMAC: LDAP's schemes, and digests that do not
//! say what they are. All are fast.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{EagerHash, Hmac, KeyInit, Mac};
use md5::Md5;
use sha1::Sha1;
use sha2::{Digest as Sha, Sha256, Sha384, Sha512};
use zeroize::Zeroizing;

use super::{
    Function, Hash, Length, MAX_SALT, Refused,
    phc::{self, Phc},
};
use crate::hex;

const NAME: &str = "digest";
const LDAP: &str = "LDAP";

/// The longest template, in bytes.
pub(super) const MAX_TEMPLATE: usize = 128;

const PASSWORD: &str = "{password}";
const SALT: &str = "{salt}";

/// A fast hash function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// 16 bytes.
    Md5,
    /// 20 bytes.
    Sha1,
    /// 32 bytes.
    Sha256,
    /// 48 bytes.
    Sha384,
    /// 64 bytes.
    Sha512,
}

impl Algorithm {
    /// All of them, for a list of valid names.
    pub const ALL: [Self; 5] = [Self::Md5, Self::Sha1, Self::Sha256, Self::Sha384, Self::Sha512];

    /// `md5`, `sha1`, …
    pub fn name(self) -> &'static str {
        match self {
            Self::Md5 => "md5",
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }

    /// The algorithm with this name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    fn length(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }
}

/// How hexadecimal digests were made, which they do not say themselves: everything except the salt of each.
#[derive(Debug)]
pub struct BareKind {
    /// The algorithm of the digests.
    pub algorithm: Algorithm,
    /// What was hashed: any text with `{password}` in it, and with `{salt}` if there is a salt. `{password}` by
    /// default.
    pub template: Option<String>,
    /// The key, if they are HMACs.
    pub key: Option<HmacKey>,
}

/// The key of HMACs. `Debug` shows nothing of it.
pub enum HmacKey {
    /// One key for all, of 1 to 128 bytes.
    Shared(Zeroizing<Vec<u8>>),
    /// The salt of each.
    Salt,
}

impl fmt::Debug for HmacKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shared(_) => "Shared([redacted])",
            Self::Salt => "Salt",
        })
    }
}

impl BareKind {
    /// `md5`, …, `hmac-sha512`.
    pub const NAMES: [&str; 10] = [
        "md5",
        "sha1",
        "sha256",
        "sha384",
        "sha512",
        "hmac-md5",
        "hmac-sha1",
        "hmac-sha256",
        "hmac-sha384",
        "hmac-sha512",
    ];

    /// The kind with this name; for an HMAC, the key is the salt.
    pub fn by_name(name: &str) -> Option<Self> {
        let (name, key) = match name.strip_prefix("hmac-") {
            Some(name) => (name, Some(HmacKey::Salt)),
            None => (name, None),
        };
        Some(Self { algorithm: Algorithm::by_name(name)?, template: None, key })
    }

    /// Whether digests can be made of this: it contains `{password}`, and is not too long. Whether it may contain
    /// `{salt}` depends on each user's salt.
    pub fn is_template(text: &str) -> bool {
        text.len() <= MAX_TEMPLATE && text.contains(PASSWORD)
    }

    /// Sets one key for all.
    ///
    /// # Errors
    ///
    /// [`Refused::Key`] if these are not HMACs, or the key is too short or too long.
    pub fn with_key(mut self, key: Zeroizing<Vec<u8>>) -> Result<Self, Refused> {
        if self.key.is_none() || key.is_empty() || key.len() > MAX_SALT {
            return Err(Refused::Key);
        }
        self.key = Some(HmacKey::Shared(key));
        Ok(self)
    }

    pub(super) fn hash(&self, text: &str, salt: &[u8]) -> Result<Hash, Refused> {
        let template = self.template.as_deref().unwrap_or(PASSWORD);
        let (key, salt) = match &self.key {
            None => (None, salt),
            Some(HmacKey::Shared(key)) => (Some(&key[..]), salt),
            Some(HmacKey::Salt) if salt.is_empty() => return Err(Refused::Key),
            // The salt is only the key, unless the template names it too.
            Some(HmacKey::Salt) => (Some(salt), if template.contains(SALT) { salt } else { &[] }),
        };
        let digest = Digest::new(self.algorithm, key, template, salt.to_vec())?;
        Hash::new(Box::new(digest), hex::decode(text).ok_or(Refused::Malformed(NAME))?)
    }
}

/// One digest, or one HMAC, of what the template makes of the password and the salt.
pub(super) struct Digest {
    algorithm: Algorithm,
    key: Option<Zeroizing<Vec<u8>>>,
    template: String,
    salt: Vec<u8>,
}

impl Digest {
    pub(super) fn new(
        algorithm: Algorithm,
        key: Option<&[u8]>,
        template: &str,
        salt: Vec<u8>,
    ) -> Result<Self, Refused> {
        if salt.len() > MAX_SALT || key.is_some_and(|key| key.len() > MAX_SALT) {
            return Err(Refused::Malformed(NAME));
        }
        let has_its_salt = template.contains(SALT) != salt.is_empty();
        if !BareKind::is_template(template) || !has_its_salt {
            return Err(Refused::Template);
        }
        let key = key.map(|key| Zeroizing::new(key.to_vec()));
        Ok(Self { algorithm, key, template: template.to_owned(), salt })
    }

    pub(super) fn of_phc(phc: &Phc<'_>) -> Result<Self, Refused> {
        let parsed = || {
            let key = match phc.get("key") {
                Some(key) => Some(phc::decode(key)?),
                None => None,
            };
            let template = String::from_utf8(phc::decode(phc.get("template")?)?).ok()?;
            Some((Algorithm::by_name(phc.get("of")?)?, key, template))
        };
        let (algorithm, key, template) = parsed().ok_or(Refused::Malformed(NAME))?;
        Self::new(algorithm, key.as_deref(), &template, phc.salt.clone())
    }

    fn compute_with<D: Sha + EagerHash>(&self, password: &[u8]) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(match &self.key {
            None => {
                let mut digest = D::new();
                self.feed(password, |part| Sha::update(&mut digest, part));
                digest.finalize().to_vec()
            }
            Some(key) => {
                let mut mac = <Hmac<D> as KeyInit>::new_from_slice(key).expect("an HMAC takes any key");
                self.feed(password, |part| Mac::update(&mut mac, part));
                mac.finalize().into_bytes().to_vec()
            }
        })
    }

    /// Hashes what the template makes, part by part: it is never in memory as a whole.
    fn feed(&self, password: &[u8], mut hash: impl FnMut(&[u8])) {
        for (index, between) in self.template.split(PASSWORD).enumerate() {
            if index > 0 {
                hash(password);
            }
            for (index, text) in between.split(SALT).enumerate() {
                if index > 0 {
                    hash(&self.salt);
                }
                hash(text.as_bytes());
            }
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let template = phc::encode(self.template.as_bytes());
        write!(f, "$digest$of={},template={template}", self.algorithm.name())?;
        if let Some(key) = &self.key {
            write!(f, ",key={}", phc::encode(key))?;
        }
        write!(f, "${}", phc::encode(&self.salt))
    }
}

impl Function for Digest {
    fn name(&self) -> &'static str {
        NAME
    }

    fn length(&self) -> Length {
        Length::Exactly(self.algorithm.length())
    }

    fn compute(&self, password: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        Some(match self.algorithm {
            Algorithm::Md5 => self.compute_with::<Md5>(password),
            Algorithm::Sha1 => self.compute_with::<Sha1>(password),
            Algorithm::Sha256 => self.compute_with::<Sha256>(password),
            Algorithm::Sha384 => self.compute_with::<Sha384>(password),
            Algorithm::Sha512 => self.compute_with::<Sha512>(password),
        })
    }

    fn is_slow(&self) -> bool {
        false
    }
}

/// `{SSHA}` and the like: base64 of the digest followed by the salt.
pub(super) fn parse_ldap(text: &str) -> Result<Hash, Refused> {
    let (scheme, rest) =
        text.strip_prefix('{').and_then(|text| text.split_once('}')).ok_or(Refused::Unknown)?;
    let (algorithm, is_salted) = match scheme.to_ascii_uppercase().as_str() {
        "MD5" => (Algorithm::Md5, false),
        "SMD5" => (Algorithm::Md5, true),
        "SHA" => (Algorithm::Sha1, false),
        "SSHA" => (Algorithm::Sha1, true),
        "SHA256" => (Algorithm::Sha256, false),
        "SSHA256" => (Algorithm::Sha256, true),
        "SHA384" => (Algorithm::Sha384, false),
        "SSHA384" => (Algorithm::Sha384, true),
        "SHA512" => (Algorithm::Sha512, false),
        "SSHA512" => (Algorithm::Sha512, true),
        _ => return Err(Refused::Unknown),
    };
    let mut digest = STANDARD.decode(rest).map_err(|_| Refused::Malformed(LDAP))?;
    if digest.len() < algorithm.length() {
        return Err(Refused::Malformed(LDAP));
    }
    let salt = digest.split_off(algorithm.length());
    if salt.is_empty() == is_salted {
        return Err(Refused::Malformed(LDAP));
    }
    let template = if is_salted { "{password}{salt}" } else { PASSWORD };
    Hash::new(Box::new(Digest::new(algorithm, None, template, salt)?), digest)
}
