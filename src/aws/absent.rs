//! Replaces the AWS support in a build without the feature `aws`: the same names, with nothing that could be called.
//!
//! The settings that would lead here are refused earlier (`config`).

use std::convert::Infallible;

use secrecy::SecretString;

/// This build has no AWS support.
#[derive(Debug, thiserror::Error)]
#[error("this build has no AWS support (feature `aws`)")]
pub struct Error;

/// AWS, which this build does not have: the type has no values.
#[derive(Clone, Debug)]
pub struct Aws(Infallible);

impl Aws {
    /// Fails.
    ///
    /// # Errors
    ///
    /// Always.
    pub async fn new(_region: Option<&str>, _endpoint_url: Option<&str>) -> Result<Self, Error> {
        Err(Error)
    }

    /// Cannot be called: there is no [`Aws`].
    ///
    /// # Errors
    ///
    /// None.
    pub async fn secret(&self, _id: &str) -> Result<SecretString, Error> {
        match self.0 {}
    }
}

/// Replaces the logins to RDS.
pub mod login {
    use time::OffsetDateTime;

    use super::{Aws, Error};
    use crate::{clock::Clock, metrics::Metrics, store::Source};

    /// A database that accepts tokens as passwords.
    #[derive(Clone, Debug)]
    pub struct Login(Aws);

    /// The database with a token, and when to renew the token.
    #[derive(Debug)]
    pub struct Access {
        /// The database, with a token for a password.
        pub source: Source,
        /// When a third of the token's life is left.
        pub renew_at: OffsetDateTime,
    }

    impl Login {
        /// Cannot be called: there is no [`Aws`].
        pub fn new(aws: Aws, _source: Source) -> Self {
            Self(aws)
        }

        /// Cannot be called: there is no [`Login`].
        ///
        /// # Errors
        ///
        /// None.
        pub async fn access(&self, _now: OffsetDateTime) -> Result<Access, Error> {
            match self.0.0 {}
        }

        /// Cannot be called: there is no [`Login`].
        pub async fn keep(&self, _renew_at: OffsetDateTime, _clock: &Clock, _metrics: &Metrics) {
            match self.0.0 {}
        }
    }
}
