//! Tokens for RDS: what the database takes as a password is a URL, signed in advance (SigV4) and without its scheme.

use std::{iter, time::Duration};

use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign},
    sign::v4::SigningParams,
};
use secrecy::SecretString;
use time::OffsetDateTime;

use super::Error;

/// For how long RDS takes a token.
pub const LIFE: Duration = Duration::from_secs(15 * 60);

/// The token by which `user` may connect to `host:port` until [`LIFE`] after `now`, or until the credentials expire.
/// Made on this machine; nobody is asked.
///
/// `host` is the one that RDS gave the database: the name is signed too, and an alias or an address is refused.
///
/// # Errors
///
/// [`Error::Unsigned`] when `host` is none.
pub fn database_token(
    credentials: &Credentials,
    region: &str,
    (host, port, user): (&str, u16, &str),
    now: OffsetDateTime,
) -> Result<SecretString, Error> {
    let unsigned = |error: &dyn std::error::Error| Error::Unsigned(super::one_line(error));
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
    // The signature last, which is where AWS's other libraries have it.
    let others = signed.params().iter().filter(|(name, _)| *name != SIGNATURE);
    for (name, value) in others.map(|(name, value)| (*name, &**value)).chain([(SIGNATURE, &*signature)]) {
        token += &format!("&{name}={}", encoded(value));
    }
    Ok(token.into())
}

const SIGNATURE: &str = "X-Amz-Signature";

/// A text in a query, as SigV4 wants it: everything but RFC 3986's unreserved characters as %-codes.
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
