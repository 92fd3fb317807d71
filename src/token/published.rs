//! The documents in which gatepass publishes its keys: written here, and read by services that check its tokens.

use serde::{Deserialize, Serialize};

use super::{jwk::Jwk, key::InvalidKey, key_pair::PublicKey};

/// What a published key does at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyStatus {
    /// It will sign later, and is published in advance so that everyone has it by then.
    Next,
    /// It signs.
    Active,
    /// It no longer signs, but tokens that it has signed are still valid.
    Retiring,
}

impl KeyStatus {
    /// The status as written in the documents.
    pub fn name(self) -> &'static str {
        match self {
            Self::Next => "next",
            Self::Active => "active",
            Self::Retiring => "retiring",
        }
    }
}

#[derive(Serialize)]
struct JwkSet {
    keys: Vec<Jwk>,
}

/// The keys for JWTs among `keys`, as a JWK set (RFC 7517, section 5).
pub fn jwks<'k>(keys: impl IntoIterator<Item = &'k PublicKey>) -> String {
    let set = JwkSet { keys: keys.into_iter().filter_map(PublicKey::to_jwk).collect() };
    serde_json::to_string(&set).expect("structs of strings have a JSON form")
}

/// Reads a JWK set. Keys of kinds that are not ours are ignored (RFC 7517, section 5).
///
/// # Errors
///
/// When the text is not a JWK set.
///
/// ```
/// let keys = gatepass::token::read_jwks(br#"{"keys":[{"kty":"EC","crv":"secp256k1","kid":"other"}]}"#)?;
/// assert!(keys.is_empty());
/// # Ok::<(), gatepass::token::InvalidKeySet>(())
/// ```
pub fn read_jwks(json: &[u8]) -> Result<Vec<PublicKey>, InvalidKeySet> {
    read(json, |value| PublicKey::from_jwk(serde_json::from_value(value).map_err(|_| InvalidKey::Jwk)?))
}

#[derive(Serialize, Deserialize)]
struct Paserk {
    kid: String,
    paserk: String,
    status: KeyStatus,
}

#[derive(Serialize)]
struct PaserkSet {
    keys: Vec<Paserk>,
}

/// The keys for PASETOs among `keys`, as `{"keys":[{"kid","paserk","status"}]}`.
pub fn paserks<'k>(keys: impl IntoIterator<Item = (&'k PublicKey, KeyStatus)>) -> String {
    let paserk = |(key, status): (&PublicKey, _)| {
        Some(Paserk { kid: key.id().to_string(), paserk: key.to_paserk()?, status })
    };
    let set = PaserkSet { keys: keys.into_iter().filter_map(paserk).collect() };
    serde_json::to_string(&set).expect("structs of strings have a JSON form")
}

/// Reads what [`paserks`] wrote. Keys of kinds that are not ours are ignored.
///
/// # Errors
///
/// When the text is not such a set.
pub fn read_paserks(json: &[u8]) -> Result<Vec<PublicKey>, InvalidKeySet> {
    read(json, |value| {
        let entry: Paserk = serde_json::from_value(value).map_err(|_| InvalidKey::PublicPaserk)?;
        let key: PublicKey = entry.paserk.parse()?;
        if key.id().as_str() == entry.kid { Ok(key) } else { Err(InvalidKey::PublicPaserk) }
    })
}

fn read(
    json: &[u8],
    key: impl Fn(serde_json::Value) -> Result<PublicKey, InvalidKey>,
) -> Result<Vec<PublicKey>, InvalidKeySet> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<serde_json::Value>,
    }
    let set: Set = serde_json::from_slice(json).map_err(|_| InvalidKeySet)?;
    Ok(set.keys.into_iter().filter_map(|value| key(value).ok()).collect())
}

/// The text is not a set of keys.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a set of keys: expected JSON with a member `keys`")]
pub struct InvalidKeySet;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::{Format, KeyPair};

    #[test]
    fn each_published_document_is_read_back_with_the_keys_of_its_kind() {
        let pairs = Format::ALL.into_iter().filter_map(|format| match format {
            Format::KeyPair(format) => Some(KeyPair::generate(format).unwrap()),
            Format::Shared(_) => None,
        });
        let keys: Vec<_> = pairs.map(|pair| pair.public_key().clone()).collect();
        let ids = |keys: &[PublicKey]| keys.iter().map(|key| key.id().clone()).collect::<Vec<_>>();

        let paserks =
            read_paserks(paserks(keys.iter().map(|key| (key, KeyStatus::Active))).as_bytes()).unwrap();
        let jwks = read_jwks(jwks(&keys).as_bytes()).unwrap();
        assert_eq!([ids(&paserks), ids(&jwks)].concat(), ids(&keys));
    }

    #[test]
    fn text_that_is_not_a_key_set_is_refused() {
        for text in ["", "{}", "[]", r#"{"keys":{}}"#, "<html>"] {
            assert_eq!(read_jwks(text.as_bytes()).unwrap_err(), InvalidKeySet);
            assert_eq!(read_paserks(text.as_bytes()).unwrap_err(), InvalidKeySet);
        }
    }
}
