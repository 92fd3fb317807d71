//! AWS: the secret that contains settings, and the tokens with which the service logs in to RDS.
//!
//! Credentials come from where the official SDK looks for them: the environment, the shared profile, a web identity
//! (IRSA), a container's endpoint (EKS Pod Identity, ECS), the instance (IMDSv2). SSO and credential processes are
//! meant for people's own machines and are not built in; `aws configure export-credentials --format env` exports such
//! credentials.
//!
//! This module is built only with the feature `aws`; without it, `absent.rs` takes its place.

mod database_token;
pub mod login;

use std::time::Duration;

use aws_config::{BehaviorVersion, Region, SdkConfig, retry::RetryConfig, timeout::TimeoutConfig};
use aws_credential_types::{
    Credentials,
    provider::{ProvideCredentials, SharedCredentialsProvider, error::CredentialsError},
};
use aws_sdk_secretsmanager::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
    operation::get_secret_value::{GetSecretValueError, GetSecretValueOutput},
};
use secrecy::SecretString;

pub use database_token::{LIFE, database_token};

use crate::chain::chain;

/// How long any operation here may take, including its retries.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long one attempt may take.
const ATTEMPT_PATIENCE: Duration = Duration::from_secs(5);
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);
const ATTEMPTS: u32 = 3;

/// Why AWS did not give what it was asked for. No message contains a secret.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither the settings nor the machine give a region.
    #[error("the region is not known; set AWS_REGION")]
    NoRegion,
    /// This machine has no credentials.
    #[error(
        "there are no AWS credentials: not in the environment, a profile, a web identity, a container or an instance"
    )]
    NoCredentials,
    /// There is a source of credentials, but it could not provide them.
    #[error("the AWS credentials cannot be used: {0}")]
    Credentials(String),
    /// No secret has that name or ARN, or none that we may know of.
    #[error("there is no such secret in {region}")]
    NoSuchSecret {
        /// Where it was looked for.
        region: String,
    },
    /// The secret is not text.
    #[error("the secret is binary; expected text, a JSON object of settings")]
    Binary,
    /// AWS answered with an error.
    #[error("AWS refuses: {0}")]
    Refused(String),
    /// There was no answer.
    #[error("AWS cannot be reached in {region}; check AWS_REGION, AWS_ENDPOINT_URL and the network: {cause}")]
    Unreachable {
        /// The region that was called.
        region: String,
        /// What happened on the way.
        cause: String,
    },
    /// A token cannot be made for the host and the user.
    #[error("no token can be made for that host and user: {0}")]
    Unsigned(String),
}

/// AWS in one region, with the credentials for it.
#[derive(Clone, Debug)]
pub struct Aws {
    config: SdkConfig,
    region: String,
    credentials: SharedCredentialsProvider,
}

impl Aws {
    /// AWS in `region`, or in the one that the machine is in, called at `endpoint_url` if that is given. No AWS service
    /// is called yet.
    ///
    /// # Errors
    ///
    /// [`Error::NoRegion`].
    pub async fn new(region: Option<&str>, endpoint_url: Option<&str>) -> Result<Self, Error> {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_PATIENCE)
            .operation_attempt_timeout(ATTEMPT_PATIENCE)
            .operation_timeout(PATIENCE)
            .build();
        let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
            .timeout_config(timeouts);
        if let Some(region) = region {
            loader = loader.region(Region::new(region.to_owned()));
        }
        if let Some(url) = endpoint_url {
            loader = loader.endpoint_url(url);
        }
        let config = loader.load().await;
        // An empty variable counts as unset.
        let region = config.region().map(Region::to_string).filter(|region| !region.is_empty());
        let region = region.ok_or(Error::NoRegion)?;
        let credentials = config.credentials_provider().ok_or(Error::NoCredentials)?;
        Ok(Self { config, region, credentials })
    }

    /// AWS in `region`, with these credentials.
    pub fn with_credentials(region: &str, credentials: impl ProvideCredentials + 'static) -> Self {
        let credentials = SharedCredentialsProvider::new(credentials);
        let config = SdkConfig::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .region(Region::new(region.to_owned()))
            .credentials_provider(credentials.clone())
            .build();
        Self { config, region: region.to_owned(), credentials }
    }

    /// The current version (`AWSCURRENT`) of a secret, named by its name or ARN.
    ///
    /// # Errors
    ///
    /// When the secret cannot be read, or is not text.
    pub async fn secret(&self, id: &str) -> Result<SecretString, Error> {
        // Fetched separately, so that an error with the credentials is distinct from one with the secret.
        let credentials = self.credentials().await?;
        let config = aws_sdk_secretsmanager::config::Builder::from(&self.config)
            .credentials_provider(credentials)
            .build();
        let request = aws_sdk_secretsmanager::Client::from_conf(config).get_secret_value().secret_id(id);
        let secret: GetSecretValueOutput = request.send().await.map_err(|error| self.failed(&error))?;
        secret.secret_string.map(SecretString::from).ok_or(Error::Binary)
    }

    /// The current credentials.
    async fn credentials(&self) -> Result<Credentials, Error> {
        match tokio::time::timeout(PATIENCE, self.credentials.provide_credentials()).await {
            Ok(Ok(credentials)) => Ok(credentials),
            Ok(Err(CredentialsError::CredentialsNotLoaded(_))) => Err(Error::NoCredentials),
            Ok(Err(error)) => Err(Error::Credentials(one_line(&error))),
            Err(_) => Err(Error::Credentials(format!("no answer within {} s", PATIENCE.as_secs()))),
        }
    }

    fn failed(&self, error: &SdkError<GetSecretValueError, HttpResponse>) -> Error {
        let region = self.region.clone();
        match error {
            SdkError::ServiceError(answer) if answer.err().is_resource_not_found_exception() => {
                Error::NoSuchSecret { region }
            }
            SdkError::ServiceError(answer) => {
                let error = answer.err();
                let code = error.code().unwrap_or("an error without a name");
                Error::Refused(format!("{code}: {}", error.message().unwrap_or("no reason given")))
            }
            error => Error::Unreachable { region, cause: one_line(error) },
        }
    }
}

/// An error and its sources on one line.
fn one_line(error: &(dyn std::error::Error + 'static)) -> String {
    chain(error).replace('\n', " ")
}
