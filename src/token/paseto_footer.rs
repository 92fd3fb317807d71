//! The footer of our PASETOs: `{"kid":"…"}`, and nothing else.

use serde::{Deserialize, Serialize};

use super::{error::Rejection, json, key::KeyId};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Footer<'a> {
    kid: &'a str,
}

pub(super) fn write(id: &KeyId) -> Vec<u8> {
    serde_json::to_vec(&Footer { kid: id.as_str() }).expect("a struct of one string has a JSON form")
}

/// The key id that a footer names. It is not authenticated, and may only be used to look up a configured key.
pub(super) fn kid(footer: &[u8]) -> Result<&str, Rejection> {
    json::object::<Footer<'_>>(footer).map(|footer| footer.kid).ok_or(Rejection::Malformed)
}
