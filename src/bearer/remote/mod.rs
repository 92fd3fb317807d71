//! A running gatepass, as another service sees it: its published keys and its revocations.

mod keys;
mod revocations;

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use http::StatusCode;
use reqwest::{Client, Response, Url};

pub use self::{keys::RemoteKeys, revocations::follow_revocations};
use crate::{loopback::is_this_machine, token::InvalidKeySet};

/// How long fetching a document may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections are kept for the next of several documents, not until the next fetch: by then a middlebox may have
/// dropped them.
const IDLE_TIMEOUT: Duration = Duration::from_secs(2);

/// Where gatepass is, and the client to reach it with: `https`, or `http` to this machine.
#[derive(Clone)]
struct Gatepass {
    base: String,
    client: Client,
}

impl Gatepass {
    fn new(base: &str) -> Result<Self, RemoteError> {
        let url = Url::parse(base).ok().filter(is_acceptable).ok_or(RemoteError::Address)?;
        Ok(Self { base: url.as_str().trim_end_matches('/').to_owned(), client: client(&url)? })
    }

    /// The address of `path`, which begins with a slash.
    fn url(&self, path: &str) -> Result<Url, RemoteError> {
        Url::parse(&format!("{}{path}", self.base)).map_err(|_| RemoteError::Address)
    }
}

fn client(url: &Url) -> Result<Client, RemoteError> {
    let mut builder = Client::builder()
        .user_agent(concat!("gatepass/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .timeout(REQUEST_TIMEOUT)
        .pool_idle_timeout(IDLE_TIMEOUT);
    if url.scheme() == "http" {
        // What is unencrypted stays on this machine, and needs no certificates.
        builder = builder.no_proxy().tls_certs_only([]);
    }
    builder.build().map_err(|error| RemoteError::Client(error.into()))
}

/// Whether answers from this address can be trusted to come from it.
fn is_acceptable(base: &Url) -> bool {
    let host = base.host_str().unwrap_or_default();
    let is_encrypted = base.scheme() == "https";
    (is_encrypted || base.scheme() == "http" && is_this_machine(host))
        && base.username().is_empty()
        && base.password().is_none()
        && base.query().is_none()
        && base.fragment().is_none()
}

/// The body, unless it has more than `limit` bytes.
async fn body(mut response: Response, limit: usize) -> Result<Vec<u8>, DocumentError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > limit {
            return Err(DocumentError::TooLong { limit });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// How long to wait after this many failures in a row, from the first of `pauses`, twice as long each time, up to the
/// second: half of that for certain and a part of the rest that depends on `random`, so that not all services come back
/// at once.
fn pause(failures: u32, [first, longest]: [Duration; 2], random: u64) -> Duration {
    let doublings = failures.saturating_sub(1).min(8);
    let half = longest.min(first * 2_u32.pow(doublings)) / 2;
    half + half.mul_f64((random >> 11) as f64 / (1_u64 << 53) as f64)
}

fn random() -> u64 {
    RandomState::new().hash_one(())
}

/// Why something could not be fetched from a gatepass.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// The address is not one that can be trusted.
    #[error(
        "not an address of a gatepass: expected https://…, or http:// to this machine, without user, query or #"
    )]
    Address,
    /// The HTTP client could not be made, most often because the system has no certificates.
    #[error("the HTTP client for gatepass could not be made")]
    Client(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A document could not be fetched.
    #[error("{url} could not be fetched")]
    Document {
        /// The document's address.
        url: String,
        /// Why it could not be fetched.
        #[source]
        reason: DocumentError,
    },
    /// The documents are fine, but hold no key that can be used here.
    #[error(
        "{0} publishes no keys for the formats known here; does it run with TOKEN_FORMAT=v4.public, or jwt with a key \
         pair?"
    )]
    NoKeys(String),
}

/// Why a document could not be fetched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DocumentError {
    /// No answer, or only part of one, came in time.
    #[error("no complete answer")]
    Transport(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The status was neither 200 nor, for a document that is held already, 304. Redirects are not followed.
    #[error("answered with {0}")]
    Status(StatusCode),
    /// The document is too long.
    #[error("longer than {limit} bytes")]
    TooLong {
        /// How long it may be, in bytes.
        limit: usize,
    },
    /// The document is not a key set of the expected kind.
    #[error(transparent)]
    Unreadable(#[from] InvalidKeySet),
    /// The document is not a list of revocations.
    #[error("not a list of revocations")]
    NoRevocations(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<reqwest::Error> for DocumentError {
    /// Converts without the address, which [`RemoteError::Document`] has.
    fn from(error: reqwest::Error) -> Self {
        Self::Transport(error.without_url().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_pauses_grow_up_to_a_limit_with_jitter() {
        let pause = |failures, random| {
            let pauses = [Duration::from_millis(500), Duration::from_secs(8)];
            super::pause(failures, pauses, random).as_millis()
        };
        for (failures, most) in [(1, 500), (2, 1_000), (3, 2_000), (4, 4_000), (5, 8_000), (u32::MAX, 8_000)]
        {
            assert_eq!(pause(failures, 0), most / 2);
            assert_eq!(pause(failures, 1 << 63), most * 3 / 4);
            assert!((most - 1..=most).contains(&pause(failures, u64::MAX)));
        }
    }

    #[test]
    fn keys_are_fetched_only_over_https_or_from_localhost() {
        for (base, is_fine) in [
            ("https://auth.example.com", true),
            ("https://auth.example.com:8443/login/", true),
            ("http://localhost:8080", true),
            ("http://127.0.0.1:8080", true),
            ("http://127.8.8.8", true),
            ("http://[::1]:8080", true),
            ("http://auth.example.com", false),
            ("http://10.0.0.1", false),
            ("http://[::2]", false),
            ("http://localhost.example.com", false),
            ("http://127.0.0.1.example.com", false),
            ("http://localhost@example.com", false),
            ("https://me:secret@auth.example.com", false),
            ("https://auth.example.com?a=b", false),
            ("https://auth.example.com#a", false),
            ("ftp://localhost", false),
            ("file:///etc/passwd", false),
            ("gatepass", false),
            ("", false),
        ] {
            assert_eq!(Url::parse(base).is_ok_and(|base| is_acceptable(&base)), is_fine, "{base}");
        }
        let gatepass = Gatepass::new("http://localhost:8080/login/").unwrap();
        let url = gatepass.url("/revocations").unwrap();
        assert_eq!(url.as_str(), "http://localhost:8080/login/revocations");
    }
}
