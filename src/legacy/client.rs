//! The HTTP request to the old system, and what its answer means.

use std::{fmt, time::Duration};

use http::{
    HeaderValue, StatusCode,
    header::{ACCEPT, CONTENT_TYPE},
};
use reqwest::{Response, Url, redirect, retry};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::password::Password;

/// The longest answer accepted, in bytes: 64 KiB. A user takes a few hundred bytes.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

pub(super) struct Client {
    http: reqwest::Client,
    /// Includes the user and the password, which reqwest turns into the `Authorization` header.
    url: Url,
    traceparent: fn() -> Option<HeaderValue>,
}

/// Why the old system cannot be asked at all.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A request cannot be sent to that URL.
    #[error("LEGACY_LOGIN_URL is not a URL that a password can be sent to")]
    Address,
    /// The HTTP client could not be made, most often because the machine has no root certificates.
    #[error("the HTTP client for the old system could not be made")]
    Client(#[source] reqwest::Error),
}

/// Why there is no answer that can be understood. No message contains any part of the URL or of the answer.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// No request could be made.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// No complete answer in time.
    #[error("no complete answer")]
    Transport(#[source] reqwest::Error),
    /// A status that means neither a user nor no user. Redirects are not followed.
    #[error("answered with {0}")]
    Status(StatusCode),
    /// Longer than any user.
    #[error("answered with more than {MAX_ANSWER_BYTES} bytes")]
    TooLong,
    /// Not a JSON object.
    #[error("answered with 200 and no JSON object")]
    NoObject,
}

impl Fault {
    /// Whether it means that the old system does not work. An error about a single request (400, 422, …) does not:
    /// otherwise anyone who found out how to cause one could lock everyone else out.
    pub(super) fn is_down(&self) -> bool {
        match self {
            Self::Status(status) => !status.is_client_error() || *status == StatusCode::TOO_MANY_REQUESTS,
            Self::Client(_) | Self::Transport(_) | Self::TooLong | Self::NoObject => true,
        }
    }
}

impl From<reqwest::Error> for Fault {
    fn from(error: reqwest::Error) -> Self {
        Self::Transport(error.without_url())
    }
}

pub(super) enum Reply {
    User(Map<String, Value>),
    Nobody,
}

/// The name and the password, as typed.
#[derive(Serialize)]
struct Question<'a> {
    username: &'a str,
    password: &'a str,
}

impl Client {
    /// Verifies certificates as the operating system does (`SSL_CERT_FILE` and `SSL_CERT_DIR` on Linux), and honours
    /// `HTTPS_PROXY` and `NO_PROXY`, as `bearer::RemoteKeys` does.
    pub(super) fn new(
        url: &SecretString,
        patience: Duration,
        traceparent: fn() -> Option<HeaderValue>,
    ) -> Result<Self, ClientError> {
        let url = Url::parse(url.expose_secret()).map_err(|_| ClientError::Address)?;
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("gatepass/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .timeout(patience)
            // A pooled connection may be one that the server is about to close. That would fail a login, and no one
            // would send it again.
            .pool_max_idle_per_host(0);
        if url.scheme() == "http" {
            // Plain HTTP is used only within this machine, and needs no certificates.
            builder = builder.no_proxy().tls_certs_only([]);
        }
        let http = builder.build().map_err(|error| ClientError::Client(error.without_url()))?;
        Ok(Self { http, url, traceparent })
    }

    pub(super) async fn ask(
        &self,
        username: &str,
        password: &Password,
        request_id: Option<&str>,
    ) -> Result<Reply, Fault> {
        let question = Question { username, password: password.as_typed() };
        let question = serde_json::to_vec(&question).map_err(|_| Fault::NoObject)?;
        let mut request = self.http.post(self.url.clone());
        if let Some(id) = request_id {
            request = request.header("x-request-id", id);
        }
        if let Some(traceparent) = (self.traceparent)() {
            request = request.header("traceparent", traceparent);
        }
        let request = request
            .header(ACCEPT, HeaderValue::from_static("application/json"))
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(question);
        let response = request.send().await?;
        match response.status() {
            StatusCode::OK => {
                let user = serde_json::from_slice(&body(response).await?).map_err(|_| Fault::NoObject)?;
                Ok(Reply::User(user))
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => Ok(Reply::Nobody),
            status => Err(Fault::Status(status)),
        }
    }

    pub(super) async fn probe(&self) -> Result<StatusCode, Fault> {
        let mut url = self.url.clone();
        let anonymous = url.set_username("").and_then(|()| url.set_password(None));
        anonymous.map_err(|()| ClientError::Address)?;
        Ok(self.http.request(http::Method::OPTIONS, url).send().await?.status())
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client([redacted])")
    }
}

async fn body(mut response: Response) -> Result<Vec<u8>, Fault> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(Fault::TooLong);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_caused_by_one_request_do_not_count_as_an_outage() {
        for (status, is_down) in [
            (301, true),
            (400, false),
            (405, false),
            (413, false),
            (422, false),
            (429, true),
            (500, true),
            (503, true),
            (204, true),
        ] {
            let fault = Fault::Status(StatusCode::from_u16(status).unwrap());
            assert_eq!(fault.is_down(), is_down, "{status}");
        }
    }

    #[test]
    fn the_client_never_reveals_its_address() {
        let client = |url: &str| Client::new(&url.into(), Duration::from_secs(1), || None);
        let shown = format!("{:?}", client("http://me:hunter2@127.0.0.1/login").unwrap());
        let error = client("hunter2").unwrap_err();
        assert!(matches!(error, ClientError::Address));
        assert!(!format!("{shown} {error:?} {error}").contains("hunter2"));
    }
}
