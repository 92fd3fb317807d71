//! Keys for JWTs as JSON (RFC 7517), and their names, which are thumbprints (RFC 7638).

use aws_lc_rs::digest;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use super::key::{InvalidKey, KeyId};

/// A JSON Web Key with only the members that our algorithms have.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Jwk {
    #[serde(flatten)]
    pub(super) material: Material,
    pub(super) alg: String,
    #[serde(rename = "use")]
    pub(super) usage: Usage,
    pub(super) kid: String,
}

/// The key itself.
#[derive(Clone, Serialize, Deserialize)]
#[serde(tag = "kty")]
pub(super) enum Material {
    /// RFC 8037.
    #[serde(rename = "OKP")]
    OctetKeyPair { crv: String, x: String },
    /// RFC 7518, section 6.2.
    #[serde(rename = "EC")]
    EllipticCurve { crv: String, x: String, y: String },
    /// RFC 7518, section 6.3.
    #[serde(rename = "RSA")]
    Rsa { n: String, e: String },
    /// RFC 7518, section 6.4: a shared secret, which is never published.
    #[serde(rename = "oct")]
    Octets { k: String },
}

#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) enum Usage {
    #[serde(rename = "sig")]
    Signature,
}

impl Jwk {
    /// The key, named by its thumbprint.
    pub(super) fn new(material: Material, alg: &str) -> Self {
        let kid = material.thumbprint().as_str().to_owned();
        Self { material, alg: alg.to_owned(), usage: Usage::Signature, kid }
    }
}

impl Material {
    /// SHA-256 of the required members in the order of their names (RFC 7638, section 3).
    pub(super) fn thumbprint(&self) -> KeyId {
        let json = match self {
            Self::OctetKeyPair { crv, x } => {
                serde_json::json!({ "crv": crv, "kty": "OKP", "x": x })
            }
            Self::EllipticCurve { crv, x, y } => {
                serde_json::json!({ "crv": crv, "kty": "EC", "x": x, "y": y })
            }
            Self::Rsa { n, e } => serde_json::json!({ "e": e, "kty": "RSA", "n": n }),
            Self::Octets { k } => serde_json::json!({ "k": k, "kty": "oct" }),
        };
        // A serde_json map keeps its members sorted, or in the order above.
        let hash = digest::digest(&digest::SHA256, json.to_string().as_bytes());
        KeyId::from_thumbprint(encode(hash.as_ref()))
    }
}

pub(super) fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Decodes strict unpadded base64url, as JOSE requires.
pub(super) fn decode(text: &str) -> Result<Vec<u8>, InvalidKey> {
    URL_SAFE_NO_PAD.decode(text).map_err(|_| InvalidKey::Jwk)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7638, section 3.1, and RFC 8037, appendix A.3.
    #[test]
    fn thumbprints_are_those_of_the_rfcs() {
        let rsa = Material::Rsa {
            n: "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXj\
                BZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJ\
                ZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBni\
                Iqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
                .into(),
            e: "AQAB".into(),
        };
        assert_eq!(rsa.thumbprint().as_str(), "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs");
        let ed = Material::OctetKeyPair {
            crv: "Ed25519".into(),
            x: "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo".into(),
        };
        assert_eq!(ed.thumbprint().as_str(), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    }
}
