//! Keycloak's credentials of the type `password`: two JSON texts, `credentialData` with the algorithm and its cost, and
//! `secretData` with the salt and the digest.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;

use super::{
    Hash, Imported, Peppers, Refused,
    pbkdf2::{Pbkdf2, Prf},
    phc,
};

const NAME: &str = "Keycloak";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CredentialData {
    algorithm: String,
    hash_iterations: u32,
    #[serde(default)]
    additional_parameters: Parameters,
}

/// Argon2's parameters. Keycloak stores each as a list of texts.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Parameters {
    memory: Vec<String>,
    parallelism: Vec<String>,
    r#type: Vec<String>,
    version: Vec<String>,
}

#[derive(Deserialize)]
struct SecretData {
    value: String,
    salt: String,
}

pub(super) fn read(credential_data: &str, secret_data: &str) -> Result<Imported, Refused> {
    let malformed = Refused::Malformed(NAME);
    let data: CredentialData = serde_json::from_str(credential_data).map_err(|_| malformed)?;
    let secret: SecretData = serde_json::from_str(secret_data).map_err(|_| malformed)?;
    let decode = |text| STANDARD.decode(text).map_err(|_| malformed);
    let (salt, digest) = (decode(secret.salt)?, decode(secret.value)?);
    if data.algorithm == "argon2" {
        let text = data.to_argon2(&salt, &digest).ok_or(malformed)?;
        return Imported::parse(&text, &Peppers::default());
    }
    let hash = Prf::by_name(&data.algorithm).ok_or(Refused::Unknown)?;
    let function = Pbkdf2::new(hash, data.hash_iterations, salt)?;
    Hash::new(Box::new(function), digest).map(Imported::of)
}

impl CredentialData {
    fn to_argon2(&self, salt: &[u8], digest: &[u8]) -> Option<String> {
        let Parameters { memory, parallelism, r#type, version } = &self.additional_parameters;
        let version = match version.first()?.as_str() {
            "1.0" => 16,
            "1.3" => 19,
            _ => return None,
        };
        Some(format!(
            "$argon2{}$v={version}$m={},t={},p={}${}${}",
            r#type.first()?,
            memory.first()?,
            self.hash_iterations,
            parallelism.first()?,
            phc::encode(salt),
            phc::encode(digest),
        ))
    }
}
