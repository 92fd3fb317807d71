//! The forge: a format's key with its private half, so that a test can sign what the service never would.
//!
//! It signs with `aws-lc-rs` and `pasetors` directly, and uses only gatepass's key types. `fuzz/` uses it, too.

use std::sync::Arc;

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey},
    encoding::{AsDer, PublicKeyX509Der},
    hmac,
    rand::SystemRandom,
    rsa,
    signature::{
        ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
        Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaEncoding, RsaKeyPair,
    },
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use gatepass::token::{
    Format, Hs256Key, KeyPair, KeyPairFormat, PublicKey, SharedFormat, SignatureAlgorithm, SymmetricKey,
    VerifyingKey, WrappingKey,
};
use pasetors::{
    keys::{AsymmetricSecretKey, SymmetricKey as PasetoKey},
    version4::{LocalToken, PublicToken, V4},
};
use serde_json::Value;

/// A format's key, private half and all.
pub struct Forge {
    pub format: Format,
    /// What the service verifies with.
    pub verifying: VerifyingKey,
    /// The key's name.
    pub kid: String,
    pub secret: Secret,
}

#[derive(Clone)]
pub enum Secret {
    /// For PASETO v4.local, or for HMAC with exactly these bytes.
    Octets(Vec<u8>),
    /// PASETO v4.public: seed and public key.
    V4Public(Vec<u8>),
    EdDsa(Arc<Ed25519KeyPair>),
    /// PKCS #8, since an `aws-lc-rs` key makes one form of signature only.
    P256(Vec<u8>),
    Rsa(Arc<RsaKeyPair>),
}

/// A way to sign a JWT, whatever its header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signature {
    Hs256,
    EdDsa,
    Es256,
    /// ES256 in the DER form of X.509, not in that of JOSE.
    Es256Der,
    Rs256,
    Ps256,
}

impl Forge {
    /// The forge of a format with a shared secret, which is derived from `root` as the format requires.
    pub fn shared(format: SharedFormat, root: &SymmetricKey) -> Self {
        let secret = match format {
            SharedFormat::V4Local => root.as_bytes().to_vec(),
            SharedFormat::Hs256 => {
                let jwk: Value = serde_json::from_str(&Hs256Key::new(root).to_jwk()).unwrap();
                decode(jwk["k"].as_str().unwrap())
            }
        };
        let kid = match format {
            SharedFormat::V4Local => root.id(),
            SharedFormat::Hs256 => Hs256Key::new(root).id().clone(),
        };
        let verifying = VerifyingKey::shared(format, root);
        Self { format: format.into(), verifying, kid: kid.to_string(), secret: Secret::Octets(secret) }
    }

    /// The forge of a key pair, from its private half: 64 bytes for v4.public, PKCS #8 for a JWT.
    pub fn pair(public: PublicKey, private: &[u8]) -> Self {
        use SignatureAlgorithm as A;
        let secret = match public.format() {
            KeyPairFormat::V4Public => Secret::V4Public(private.to_vec()),
            KeyPairFormat::Jwt(A::EdDsa) => {
                Secret::EdDsa(Arc::new(Ed25519KeyPair::from_pkcs8(private).unwrap()))
            }
            KeyPairFormat::Jwt(A::Es256) => Secret::P256(private.to_vec()),
            KeyPairFormat::Jwt(A::Rs256 | A::Ps256) => {
                Secret::Rsa(Arc::new(RsaKeyPair::from_pkcs8(private).unwrap()))
            }
        };
        let (format, kid) = (public.format().into(), public.id().to_string());
        Self { format, verifying: public.into(), kid, secret }
    }

    pub fn is_jwt(&self) -> bool {
        self.format.name().starts_with("jwt:")
    }

    /// The value of `alg`; empty for a PASETO.
    pub fn alg(&self) -> &'static str {
        self.format.name().strip_prefix("jwt:").unwrap_or_default()
    }

    /// The header of an honest JWT, or the footer of an honest PASETO.
    pub fn envelope(&self) -> String {
        if self.is_jwt() {
            format!(r#"{{"typ":"at+jwt","alg":"{}","kid":"{}"}}"#, self.alg(), self.kid)
        } else {
            format!(r#"{{"kid":"{}"}}"#, self.kid)
        }
    }

    /// A token of these bytes as claims, with the right key and in an honest envelope.
    pub fn seal(&self, claims: impl AsRef<[u8]>) -> String {
        self.seal_in(&self.envelope(), claims)
    }

    /// A token of these bytes as claims, with the right key, under this header or footer.
    pub fn seal_in(&self, envelope: &str, claims: impl AsRef<[u8]>) -> String {
        let Some(signature) = self.own_signature() else {
            return self.paseto(Some(envelope), claims.as_ref(), None);
        };
        jwt(envelope, claims.as_ref(), |message| self.secret.sign(signature, message))
    }

    /// A PASETO with any footer and implicit assertion.
    pub fn paseto(&self, footer: Option<&str>, claims: &[u8], implicit: Option<&[u8]>) -> String {
        let footer = footer.map(str::as_bytes);
        match &self.secret {
            Secret::Octets(bytes) => {
                let key = PasetoKey::<V4>::from(bytes).unwrap();
                LocalToken::encrypt(&key, claims, footer, implicit).unwrap()
            }
            Secret::V4Public(bytes) => {
                let key = AsymmetricSecretKey::<V4>::from(bytes).unwrap();
                PublicToken::sign(&key, claims, footer, implicit).unwrap()
            }
            _ => panic!("no key of a PASETO"),
        }
    }

    /// How this format signs; `None` for a PASETO.
    pub fn own_signature(&self) -> Option<Signature> {
        Some(match self.alg() {
            "HS256" => Signature::Hs256,
            "EdDSA" => Signature::EdDsa,
            "ES256" => Signature::Es256,
            "RS256" => Signature::Rs256,
            "PS256" => Signature::Ps256,
            _ => return None,
        })
    }
}

impl Secret {
    /// Signs with this key. No caller asks for a signature that this kind of key cannot make.
    pub fn sign(&self, signature: Signature, message: &[u8]) -> Vec<u8> {
        let es256 = |form: &'static EcdsaSigningAlgorithm, pkcs8: &[u8]| {
            let key = EcdsaKeyPair::from_pkcs8(form, pkcs8).unwrap();
            key.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec()
        };
        let rsa = |padding: &'static dyn RsaEncoding, key: &RsaKeyPair| {
            let mut bytes = vec![0; key.public_modulus_len()];
            key.sign(padding, &SystemRandom::new(), message, &mut bytes).unwrap();
            bytes
        };
        match (self, signature) {
            (Self::Octets(secret), Signature::Hs256) => hs256(secret, message),
            (Self::EdDsa(key), Signature::EdDsa) => key.sign(message).as_ref().to_vec(),
            (Self::P256(pkcs8), Signature::Es256) => es256(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8),
            (Self::P256(pkcs8), Signature::Es256Der) => es256(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8),
            (Self::Rsa(key), Signature::Rs256) => rsa(&RSA_PKCS1_SHA256, key),
            (Self::Rsa(key), Signature::Ps256) => rsa(&RSA_PSS_SHA256, key),
            (_, signature) => panic!("{signature:?} is not of this key"),
        }
    }

    /// The public key as SubjectPublicKeyInfo (X.509), and raw: the point, or `n`.
    pub fn public_der_and_raw(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        let (der, raw): (PublicKeyX509Der<'_>, _) = match self {
            Self::Octets(_) | Self::V4Public(_) => return None,
            Self::EdDsa(key) => (key.public_key().as_der().unwrap(), key.public_key().as_ref().to_vec()),
            Self::P256(pkcs8) => {
                let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8).unwrap();
                let raw = key.public_key().as_ref().to_vec();
                return Some((
                    AsDer::<PublicKeyX509Der<'_>>::as_der(key.public_key()).unwrap().as_ref().to_vec(),
                    raw,
                ));
            }
            Self::Rsa(key) => {
                let rsa::PublicKeyComponents { n, .. } = key.public_key().into();
                (key.public_key().as_der().unwrap(), n)
            }
        };
        Some((der.as_ref().to_vec(), raw))
    }
}

pub fn hs256(secret: &[u8], message: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message).as_ref().to_vec()
}

/// The private half of a key pair, unwrapped from its stored form.
pub fn private_bytes(pair: &KeyPair) -> Vec<u8> {
    let root = SymmetricKey::from_bytes([1; 32]);
    let wrapped = WrappingKey::new(&root).wrap(pair).unwrap();
    let key = root.derive("signing key wrapping v1");
    let key = RandomizedNonceKey::new(&AES_256_GCM, key.as_bytes()).unwrap();
    // The nonce follows a version byte.
    let nonce = Nonce::try_assume_unique_for_key(&wrapped[1..13]).unwrap();
    let bound = Aad::from(format!("gatepass signing key\0{}\0{}", pair.format(), pair.id()).into_bytes());
    let mut sealed = wrapped[13..].to_vec();
    key.open_in_place(nonce, bound, &mut sealed).unwrap().to_vec()
}

/// A JWT with this header and these claims, signed by `sign`.
pub fn jwt(header: &str, claims: &[u8], sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let message = format!("{}.{}", encode(header), encode(claims));
    let signature = sign(message.as_bytes());
    format!("{message}.{}", encode(signature))
}

pub fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

pub fn decode(text: &str) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(text).unwrap()
}
