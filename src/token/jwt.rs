//! JWT access tokens (RFC 7519) in JWS compact form (RFC 7515). The envelope is handled here, the cryptography by
//! `aws-lc-rs`.
//!
//! Their `typ` is that of RFC 9068, and they have all claims that it requires except `client_id`: a login is not an
//! OAuth flow, so there is no client to name.
//!
//! The header is exactly `{"typ":"at+jwt","alg":…,"kid":…}`. A header with any other member is not ours and is refused:
//! `crit` and `b64` change what a signature means, and `jwk`, `jku`, `x5u` and `x5c` would bring a key along. A key is
//! for one algorithm; `alg` is only compared with the key's algorithm, and chooses nothing.
//!
//! This module does not use a JWT library. Those decode the header and then pick a verifier by its `alg`, a code path
//! that must not exist here, and they parse the private key again for every token. Without that, only the few lines of
//! envelope below are left.

use std::{str::FromStr, sync::Arc};

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der},
    hmac,
    rand::SystemRandom,
    rsa::KeySize,
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ED25519, EcdsaKeyPair, Ed25519KeyPair,
        KeyPair as _, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256,
        RSA_PSS_2048_8192_SHA256, RSA_PSS_SHA256, RsaEncoding, RsaKeyPair, RsaPublicKeyComponents,
        VerificationAlgorithm,
    },
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{
    error::{IssueError, Rejection},
    format::SignatureAlgorithm,
    json,
    jwk::{self, Jwk, Material},
    key::{InvalidKey, KeyId, SymmetricKey},
};

/// `typ` of an access token (RFC 9068, section 2.1).
pub(super) const TYPE: &str = "at+jwt";

/// `alg` of tokens with a shared secret.
const HS256: &str = "HS256";

/// The size of the RSA keys that are made here. 2048 bits give 112 bits of security (NIST SP 800-57), for keys that
/// live for weeks and sign tokens that live for minutes.
const RSA_KEY_SIZE: KeySize = KeySize::Rsa2048;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    typ: Option<&'a str>,
    alg: &'a str,
    kid: &'a str,
}

/// A secret for HS256, derived from the root key for this purpose alone.
///
/// A service that checks tokens is given this secret, not the root key, and reads it from text:
///
/// ```
/// use gatepass::token::{Hs256Key, Party, Verifier};
///
/// // What `gatepass key show --jwt-hs256 --json` printed, from the environment of this service.
/// let key: Hs256Key = r#"{"kty":"oct","k":"_tA6wdcF7dmREtFpK6qgWJo_xn9anPOZt7bPG6RUbXM",
///     "alg":"HS256","use":"sig","kid":"9FVwC5n-nTa-I72qfh0Z_ktXJDVqfZxbHgx_E4LZ2aU"}"#.parse()?;
/// let verifier = Verifier::new([key], Party { issuer: "gatepass".into(), audience: "gatepass".into() });
/// # Ok::<(), gatepass::token::InvalidKey>(())
/// ```
#[derive(Clone)]
pub struct Hs256Key {
    secret: SymmetricKey,
    /// In an `Arc`, since it is large.
    key: Arc<hmac::Key>,
    id: KeyId,
}

impl Hs256Key {
    /// Derives the secret for HS256 from `root`, which is gatepass's `TOKEN_SYMMETRIC_KEY`. A secret that has been
    /// derived already comes as a JWK: [parse](Self::from_str) that instead.
    pub fn new(root: &SymmetricKey) -> Self {
        Self::from_secret(root.derive("JWT HS256 v1"))
    }

    fn from_secret(secret: SymmetricKey) -> Self {
        let key = Arc::new(hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()));
        let id = material(&secret).thumbprint();
        Self { secret, key, id }
    }

    /// The `kid` of its tokens, a thumbprint.
    pub fn id(&self) -> &KeyId {
        &self.id
    }

    /// The secret as a JWK, for services that check tokens with it. Whoever has it can also make tokens.
    pub fn to_jwk(&self) -> Zeroizing<String> {
        let jwk = Jwk::new(material(&self.secret), HS256);
        Zeroizing::new(serde_json::to_string(&jwk).expect("a struct of strings has a JSON form"))
    }
}

impl FromStr for Hs256Key {
    type Err = InvalidKey;

    /// Reads what [`to_jwk`](Self::to_jwk) wrote. The `kid` must be the key's thumbprint, so that no key can bear
    /// another's name.
    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        let jwk: Jwk = serde_json::from_str(text).map_err(|_| InvalidKey::SharedJwk)?;
        let Material::Octets { k } = jwk.material else { return Err(InvalidKey::SharedJwk) };
        let k = Zeroizing::new(k);
        let bytes = Zeroizing::new(jwk::decode(&k).map_err(|_| InvalidKey::SharedJwk)?);
        let bytes = bytes.as_slice().try_into().map_err(|_| InvalidKey::SharedJwk)?;
        let key = Self::from_secret(SymmetricKey::from_bytes(bytes));
        if jwk.alg == HS256 && key.id.as_str() == jwk.kid { Ok(key) } else { Err(InvalidKey::SharedJwk) }
    }
}

fn material(secret: &SymmetricKey) -> Material {
    Material::Octets { k: jwk::encode(secret.as_bytes()) }
}

impl std::fmt::Debug for Hs256Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hs256Key({})", self.id)
    }
}

/// A public key for one algorithm and no other.
#[derive(Clone)]
pub(super) struct PublicKey {
    algorithm: SignatureAlgorithm,
    key: ParsedPublicKey,
    material: Material,
}

impl PublicKey {
    fn new(algorithm: SignatureAlgorithm, material: Material) -> Result<Self, InvalidKey> {
        use SignatureAlgorithm as A;
        let (parameters, bytes): (&dyn VerificationAlgorithm, _) = match (algorithm, &material) {
            (A::EdDsa, Material::OctetKeyPair { crv, x }) if crv == "Ed25519" => (&ED25519, jwk::decode(x)?),
            (A::Es256, Material::EllipticCurve { crv, x, y }) if crv == "P-256" => {
                let (x, y) = (jwk::decode(x)?, jwk::decode(y)?);
                if x.len() != 32 || y.len() != 32 {
                    return Err(InvalidKey::Jwk);
                }
                // An uncompressed point (SEC 1, section 2.3.3).
                (&ECDSA_P256_SHA256_FIXED, [&[4], &x[..], &y[..]].concat())
            }
            (A::Rs256 | A::Ps256, Material::Rsa { n, e }) => {
                let components = RsaPublicKeyComponents { n: jwk::decode(n)?, e: jwk::decode(e)? };
                let der: PublicKeyX509Der<'_> = components.as_der().map_err(|_| InvalidKey::Jwk)?;
                let parameters = match algorithm {
                    A::Ps256 => &RSA_PSS_2048_8192_SHA256,
                    _ => &RSA_PKCS1_2048_8192_SHA256,
                };
                (parameters, der.as_ref().to_vec())
            }
            _ => return Err(InvalidKey::Jwk),
        };
        let key = ParsedPublicKey::new(parameters, bytes).map_err(|_| InvalidKey::Jwk)?;
        Ok(Self { algorithm, key, material })
    }

    /// Takes a key from a key set. The `kid` must be the key's thumbprint, so that no key can bear another's name.
    pub(super) fn from_jwk(jwk: Jwk) -> Result<Self, InvalidKey> {
        let mut algorithms = SignatureAlgorithm::ALL.into_iter();
        let algorithm = algorithms.find(|algorithm| algorithm.name() == jwk.alg).ok_or(InvalidKey::Jwk)?;
        let key = Self::new(algorithm, jwk.material)?;
        if key.id().as_str() == jwk.kid { Ok(key) } else { Err(InvalidKey::Jwk) }
    }

    pub(super) fn to_jwk(&self) -> Jwk {
        Jwk::new(self.material.clone(), self.algorithm.name())
    }

    pub(super) fn algorithm(&self) -> SignatureAlgorithm {
        self.algorithm
    }

    /// The key's name, a thumbprint.
    pub(super) fn id(&self) -> KeyId {
        self.material.thumbprint()
    }
}

impl std::fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PublicKey({} {})", self.algorithm.name(), self.id())
    }
}

/// A private key for one algorithm and no other.
pub(super) enum SecretKey {
    EdDsa(Ed25519KeyPair),
    Es256(EcdsaKeyPair),
    Rs256(RsaKeyPair),
    Ps256(RsaKeyPair),
}

impl SecretKey {
    /// A new key, from the randomness of `aws-lc-rs`. Making an RSA key takes a good part of a second.
    pub(super) fn generate(algorithm: SignatureAlgorithm) -> Result<Self, InvalidKey> {
        use SignatureAlgorithm as A;
        let key = match algorithm {
            A::EdDsa => Ed25519KeyPair::generate().map(Self::EdDsa),
            A::Es256 => EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map(Self::Es256),
            A::Rs256 => RsaKeyPair::generate(RSA_KEY_SIZE).map(Self::Rs256),
            A::Ps256 => RsaKeyPair::generate(RSA_KEY_SIZE).map(Self::Ps256),
        };
        key.map_err(|_| InvalidKey::Private)
    }

    /// Reads a key in PKCS #8.
    pub(super) fn from_pkcs8(algorithm: SignatureAlgorithm, der: &[u8]) -> Result<Self, InvalidKey> {
        use SignatureAlgorithm as A;
        let key = match algorithm {
            A::EdDsa => Ed25519KeyPair::from_pkcs8(der).map(Self::EdDsa),
            A::Es256 => EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der).map(Self::Es256),
            A::Rs256 => RsaKeyPair::from_pkcs8(der).map(Self::Rs256),
            A::Ps256 => RsaKeyPair::from_pkcs8(der).map(Self::Ps256),
        };
        key.map_err(|_| InvalidKey::Private)
    }

    /// The key in PKCS #8.
    pub(super) fn to_pkcs8(&self) -> Result<Zeroizing<Vec<u8>>, InvalidKey> {
        let der = match self {
            Self::EdDsa(key) => key.to_pkcs8().map(|der| der.as_ref().to_vec()),
            Self::Es256(key) => key.to_pkcs8v1().map(|der| der.as_ref().to_vec()),
            Self::Rs256(key) | Self::Ps256(key) => {
                AsDer::<Pkcs8V1Der<'_>>::as_der(key).map(|der| der.as_ref().to_vec())
            }
        };
        der.map(Zeroizing::new).map_err(|_| InvalidKey::Private)
    }

    pub(super) fn algorithm(&self) -> SignatureAlgorithm {
        match self {
            Self::EdDsa(_) => SignatureAlgorithm::EdDsa,
            Self::Es256(_) => SignatureAlgorithm::Es256,
            Self::Rs256(_) => SignatureAlgorithm::Rs256,
            Self::Ps256(_) => SignatureAlgorithm::Ps256,
        }
    }

    pub(super) fn public_key(&self) -> Result<PublicKey, InvalidKey> {
        let material = match self {
            Self::EdDsa(key) => {
                Material::OctetKeyPair { crv: "Ed25519".into(), x: jwk::encode(key.public_key().as_ref()) }
            }
            Self::Es256(key) => {
                // The byte for "uncompressed", then x and y.
                let point = key.public_key().as_ref();
                let (Some(x), Some(y)) = (point.get(1..33), point.get(33..65)) else {
                    return Err(InvalidKey::Private);
                };
                Material::EllipticCurve { crv: "P-256".into(), x: jwk::encode(x), y: jwk::encode(y) }
            }
            Self::Rs256(key) | Self::Ps256(key) => {
                let RsaPublicKeyComponents { n, e } = key.public_key().into();
                let (n, e): (Vec<u8>, Vec<u8>) = (n, e);
                Material::Rsa { n: jwk::encode(&n), e: jwk::encode(&e) }
            }
        };
        PublicKey::new(self.algorithm(), material)
    }

    /// Signs `claims`, and names the key in the header.
    pub(super) fn sign(&self, id: &KeyId, claims: &[u8]) -> Result<String, IssueError> {
        let mut token = envelope(self.algorithm().name(), id, claims);
        let signature = match self {
            Self::EdDsa(key) => {
                key.try_sign(token.as_bytes()).map_err(|_| IssueError::Failed)?.as_ref().to_vec()
            }
            Self::Es256(key) => key
                .sign(&SystemRandom::new(), token.as_bytes())
                .map_err(|_| IssueError::Failed)?
                .as_ref()
                .to_vec(),
            Self::Rs256(key) => rsa_signature(key, &RSA_PKCS1_SHA256, &token)?,
            Self::Ps256(key) => rsa_signature(key, &RSA_PSS_SHA256, &token)?,
        };
        append(&mut token, &signature);
        Ok(token)
    }
}

fn rsa_signature(
    key: &RsaKeyPair,
    padding: &'static dyn RsaEncoding,
    message: &str,
) -> Result<Vec<u8>, IssueError> {
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(padding, &SystemRandom::new(), message.as_bytes(), &mut signature)
        .map_err(|_| IssueError::Failed)?;
    Ok(signature)
}

/// Makes a token with a shared secret.
pub(super) fn sign_hs256(key: &Hs256Key, claims: &[u8]) -> String {
    let mut token = envelope(HS256, &key.id, claims);
    let tag = hmac::sign(&key.key, token.as_bytes());
    append(&mut token, tag.as_ref());
    token
}

/// Header and claims in the form in which they are signed.
fn envelope(alg: &str, id: &KeyId, claims: &[u8]) -> String {
    let header = Header { typ: Some(TYPE), alg, kid: id.as_str() };
    let header = serde_json::to_vec(&header).expect("a struct of strings has a JSON form");
    let mut message = URL_SAFE_NO_PAD.encode(header);
    message.push('.');
    URL_SAFE_NO_PAD.encode_string(claims, &mut message);
    message
}

fn append(token: &mut String, signature: &[u8]) {
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(signature, token);
}

/// A key to check tokens with.
#[derive(Clone, Debug)]
pub(super) enum VerifyingKey {
    Hs256(Hs256Key),
    Public(PublicKey),
}

impl VerifyingKey {
    fn algorithm(&self) -> &'static str {
        match self {
            Self::Hs256(_) => HS256,
            Self::Public(key) => key.algorithm.name(),
        }
    }

    fn is_signature(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            // In constant time.
            Self::Hs256(key) => hmac::verify(&key.key, message, signature).is_ok(),
            Self::Public(key) => key.key.verify_sig(message, signature).is_ok(),
        }
    }
}

/// A token of this shape whose content has not been authenticated yet.
pub(super) struct Signed<'t> {
    typ: Option<String>,
    alg: String,
    kid: String,
    /// Header and claims as they are in the token, which is what was signed.
    message: &'t str,
    claims: Vec<u8>,
    signature: Vec<u8>,
}

impl<'t> Signed<'t> {
    pub(super) fn parse(token: &'t str) -> Result<Self, Rejection> {
        let decode = |part| URL_SAFE_NO_PAD.decode(part).map_err(|_| Rejection::Malformed);
        let (message, signature) = token.rsplit_once('.').ok_or(Rejection::Malformed)?;
        let (header, claims) = message.split_once('.').ok_or(Rejection::Malformed)?;
        // A further full stop is outside the alphabet.
        let (header, claims, signature) = (decode(header)?, decode(claims)?, decode(signature)?);
        let Header { typ, alg, kid } = json::object(&header).ok_or(Rejection::Malformed)?;
        let (typ, alg, kid) = (typ.map(str::to_owned), alg.to_owned(), kid.to_owned());
        Ok(Self { typ, alg, kid, message, claims, signature })
    }

    /// The key id that the header names. It may only be used to look up a configured key.
    pub(super) fn kid(&self) -> &str {
        &self.kid
    }

    /// What the token says, unchecked: only for people who inspect a token.
    pub(super) fn untrusted_payload(&self) -> &[u8] {
        &self.claims
    }

    /// Checks the signature with the key's own algorithm, and returns the claims and the `typ`.
    pub(super) fn verify(&self, key: &VerifyingKey) -> Result<(&[u8], Option<&str>), Rejection> {
        if self.alg != key.algorithm() {
            return Err(Rejection::WrongAlgorithm);
        }
        if !key.is_signature(self.message.as_bytes(), &self.signature) {
            return Err(Rejection::Forged);
        }
        Ok((&self.claims, self.typ.as_deref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_key_is_read_back_from_its_text_and_others_are_refused() {
        let root = SymmetricKey::from_bytes([7; 32]);
        let key = Hs256Key::new(&root);
        let text = key.to_jwk();
        let read: Hs256Key = text.parse().unwrap();
        assert_eq!((read.id(), read.to_jwk()), (key.id(), key.to_jwk()));
        assert_eq!(format!("{read:?}"), format!("Hs256Key({})", key.id()));

        let k = jwk::encode(key.secret.as_bytes());
        let ed = SecretKey::generate(SignatureAlgorithm::EdDsa).unwrap().public_key().unwrap();
        for text in [
            "",
            "{}",
            &k,
            &text.replace("HS256", "HS512"),
            &text.replace("HS256", "none"),
            &text.replace(r#""use":"sig""#, r#""use":"enc""#),
            &text.replace(r#""kid":""#, r#""kid":"x"#),
            // The root itself, and a part of the key, both under the key's name.
            &text.replace(&k, &jwk::encode(root.as_bytes())),
            &text.replace(&k, &k[..40]),
            &serde_json::to_string(&ed.to_jwk()).unwrap(),
        ] {
            assert_eq!(text.parse::<Hs256Key>().unwrap_err(), InvalidKey::SharedJwk, "{text}");
        }
    }
}
