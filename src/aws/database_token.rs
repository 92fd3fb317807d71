//! Tokens for RDS: the database accepts, as a password, a presigned URL (SigV4) without its scheme.

use std::{iter, time::Duration};

use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign},
    sign::v4::SigningParams,
};
use secrecy::SecretString;
use time::OffsetDateTime;

use super::Error;

/// How long RDS accepts a token.
pub const LIFE: Duration = Duration::from_secs(15 * 60);

/// The token with which `user` may connect to `host:port` until [`LIFE`] after `now`, or until the credentials expire.
/// It is made on this machine, without a request to AWS.
///
/// `host` must be the name that RDS gave the database: the name is signed too, and RDS refuses an alias or an address.
///
/// # Errors
///
/// [`Error::Unsigned`] when `host` is not a valid host.
pub fn database_token(
    credentials: &Credentials,
    region: &str,
    (host, port, user): (&str, u16, &str),
    now: OffsetDateTime,
) -> Result<SecretString, Error> {
    let unsigned = |error: &(dyn std::error::Error + 'static)| Error::Unsigned(super::one_line(error));
    let identity = credentials.clone().into();
    let mut settings = SigningSettings::default();
    settings.signature_location = SignatureLocation::QueryParams;
    settings.expires_in = Some(LIFE);
    let params = SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("rds-db")
        .time(now.into())
        .settings(settings)
        .build()
        .map_err(|error| unsigned(&error))?
        .into();
    let mut token = format!("{host}:{port}/?Action=connect&DBUser={}", encoded(user));
    let request =
        SignableRequest::new("GET", format!("https://{token}"), iter::empty(), SignableBody::Bytes(&[]))
            .map_err(|error| unsigned(&error))?;
    let (signed, signature) = sign(request, &params).map_err(|error| unsigned(&error))?.into_parts();
    // The signature comes last, as in AWS's other libraries.
    let others = signed.params().iter().filter(|(name, _)| *name != SIGNATURE);
    for (name, value) in others.map(|(name, value)| (*name, &**value)).chain([(SIGNATURE, &*signature)]) {
        token += &format!("&{name}={}", encoded(value));
    }
    Ok(token.into())
}

const SIGNATURE: &str = "X-Amz-Signature";

/// Encodes a text for a query as SigV4 requires: percent-encodes everything except RFC 3986's unreserved characters.
fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(byte.into());
        } else {
            encoded += &format!("%{byte:02X}");
        }
    }
    encoded
}
