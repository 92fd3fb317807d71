//! A certificate chain with its private key, from two PEM files.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use aws_lc_rs::digest::{SHA256, digest};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio_rustls::rustls::{
    self, InconsistentKeys,
    client::verify_server_name,
    crypto::CryptoProvider,
    pki_types::{
        CertificateDer, PrivateKeyDer, ServerName,
        pem::{self, PemObject},
    },
    server::ParsedCertificate,
    sign::CertifiedKey,
};
use zeroize::Zeroizing;

use super::der;
use crate::path::shown;

/// The names of the settings, for messages.
const CERTIFICATE: &str = "TLS_CERT_FILE";
const KEY: &str = "TLS_KEY_FILE";

/// The largest file accepted: no client would want to be sent a longer chain.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// Where the certificate and its key are.
#[derive(Clone, Debug)]
pub struct Files {
    /// The chain in PEM: the service's own certificate, then each one that signed the one before.
    pub certificate: PathBuf,
    /// The private key in PEM: PKCS#8, PKCS#1 or SEC1, without a passphrase.
    pub key: PathBuf,
}

/// What is wrong with the files.
#[derive(Debug, thiserror::Error)]
#[error("{}: {fault}", place(setting, path))]
pub struct Error {
    setting: &'static str,
    path: PathBuf,
    fault: Fault,
}

fn place(setting: &str, path: &Path) -> String {
    match shown(path, Path::new("")) {
        Some(path) => format!("{setting}={path}"),
        None => format!("{setting}, which looks like the contents of a file and not like its path"),
    }
}

#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("cannot be read: {0}")]
    Io(io::Error),
    #[error("the file is empty")]
    Empty,
    #[error("the file is larger than 64 KiB")]
    TooLarge,
    #[error("expected PEM, with a line `-----BEGIN CERTIFICATE-----`")]
    NoCertificate,
    #[error("expected PEM, with a line `-----BEGIN PRIVATE KEY-----`")]
    NoKey,
    #[error("the key has a passphrase; remove it (`openssl pkey`)")]
    Encrypted,
    #[error("expected PEM: {0}")]
    Pem(pem::Error),
    #[error("certificate {0} in the file is not a valid X.509 certificate")]
    Malformed(usize),
    #[error("the certificate is not valid before {}", rfc3339(*.0))]
    NotYetValid(OffsetDateTime),
    #[error("the certificate has expired: it was valid until {}", rfc3339(*.0))]
    Expired(OffsetDateTime),
    #[error("this is not the key of the certificate in {CERTIFICATE}")]
    Mismatch,
    #[error("expected an RSA, ECDSA (P-256, P-384, P-521) or Ed25519 key: {0}")]
    Unusable(rustls::Error),
}

impl Files {
    /// The current contents of the files.
    ///
    /// # Errors
    ///
    /// When one of them cannot be read, is empty or far too large.
    pub fn read(&self) -> Result<Contents, Error> {
        let read = |setting, path: &Path| {
            contents(path).map_err(|fault| Error { setting, path: path.to_owned(), fault })
        };
        Ok(Contents { certificate: read(CERTIFICATE, &self.certificate)?, key: read(KEY, &self.key)? })
    }

    /// The certificate in `contents`, if it may be served at `now`.
    ///
    /// # Errors
    ///
    /// When there is no certificate, when the key does not belong to it, or when it is not valid at that time.
    pub fn parse(&self, contents: &Contents, now: OffsetDateTime) -> Result<Certificate, Error> {
        let certificate = |fault| Error { setting: CERTIFICATE, path: self.certificate.clone(), fault };
        let key = |fault| Error { setting: KEY, path: self.key.clone(), fault };

        let chain = chain(&contents.certificate).map_err(certificate)?;
        let mut links = Vec::new();
        for (i, der) in chain.iter().enumerate() {
            links.push(der::certificate(der).ok_or_else(|| certificate(Fault::Malformed(i + 1)))?);
        }
        let own = links.first().ok_or_else(|| certificate(Fault::NoCertificate))?;
        let (not_before, not_after) = (own.not_before, own.not_after);
        let is_ordered = links.windows(2).all(|pair| pair[0].issuer == pair[1].subject);
        let is_self_signed = own.issuer == own.subject;
        if now < not_before {
            return Err(certificate(Fault::NotYetValid(not_before)));
        }
        if now >= not_after {
            return Err(certificate(Fault::Expired(not_after)));
        }
        let length = chain.len();
        let signing = certified(chain, &contents.key).map_err(key)?;
        Ok(Certificate { key: Arc::new(signing), not_after, length, is_ordered, is_self_signed })
    }

    /// Whether users other than the key's owner and group may read it.
    pub fn is_key_open(&self) -> bool {
        fs::metadata(&self.key).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0)
    }
}

/// The bytes of both files, wiped when dropped. That includes the certificate's file, since someone may have put the
/// key into it.
pub struct Contents {
    certificate: Zeroizing<Vec<u8>>,
    key: Zeroizing<Vec<u8>>,
}

impl Contents {
    /// A fingerprint that tells contents apart, so that they need not be kept.
    pub(super) fn fingerprint(&self) -> Vec<u8> {
        let digests = [&self.certificate, &self.key].map(|bytes| digest(&SHA256, bytes));
        digests.iter().flat_map(AsRef::as_ref).copied().collect()
    }
}

/// A chain and its key, valid when they were read.
#[derive(Clone, Debug)]
pub struct Certificate {
    pub(super) key: Arc<CertifiedKey>,
    /// When it expires.
    pub not_after: OffsetDateTime,
    /// The number of certificates in the chain.
    pub length: usize,
    /// Whether each certificate of the chain was issued by the one after it.
    pub is_ordered: bool,
    /// Whether the certificate names itself as its issuer.
    pub is_self_signed: bool,
}

impl Certificate {
    /// Whether clients that connect to `host`, a name or an address, accept it for that host.
    pub fn is_for(&self, host: &str) -> bool {
        let Ok(host) = ServerName::try_from(host) else { return false };
        let own = self.key.end_entity_cert().and_then(ParsedCertificate::try_from);
        own.is_ok_and(|own| verify_server_name(&own, &host).is_ok())
    }
}

fn contents(path: &Path) -> Result<Zeroizing<Vec<u8>>, Fault> {
    // Never reallocated, which would leave an unwiped copy of a key in memory.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_FILE_BYTES as usize + 1));
    File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes))
        .map_err(Fault::Io)?;
    match bytes.len() as u64 {
        0 => Err(Fault::Empty),
        1..=MAX_FILE_BYTES => Ok(bytes),
        _ => Err(Fault::TooLarge),
    }
}

fn chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Fault> {
    CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(Fault::Pem)
}

fn certified(chain: Vec<CertificateDer<'static>>, pem: &[u8]) -> Result<CertifiedKey, Fault> {
    let key = PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        pem::Error::NoItemsFound if is_encrypted(pem) => Fault::Encrypted,
        pem::Error::NoItemsFound => Fault::NoKey,
        error => Fault::Pem(error),
    })?;
    CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => Fault::Mismatch,
        error => Fault::Unusable(error),
    })
}

fn rfc3339(at: OffsetDateTime) -> String {
    // No certificate has a year with more than four digits.
    at.format(&Rfc3339).unwrap_or_default()
}

fn is_encrypted(pem: &[u8]) -> bool {
    const MARK: &[u8] = b"ENCRYPTED";
    pem.windows(MARK.len()).any(|window| window == MARK)
}

pub(super) fn provider() -> CryptoProvider {
    rustls::crypto::aws_lc_rs::default_provider()
}
