//! Takes the place of AWS in a build without the feature `aws`: the same names, and nothing that could be called.
//!
//! The settings that would lead here are refused before (`config`).

use std::convert::Infallible;

use secrecy::SecretString;

/// This build has no AWS support.
#[derive(Debug, thiserror::Error)]
#[error("this build has no AWS support (feature `aws`)")]
pub struct Error;

/// AWS, of which there is none.
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

    /// Nobody has an [`Aws`] to call this on.
    ///
    /// # Errors
    ///
    /// None.
    pub async fn secret(&self, _id: &str) -> Result<SecretString, Error> {
        match self.0 {}
    }
}

/// Who would log in to RDS.
pub mod login {
    use time::OffsetDateTime;

    use super::{Aws, Error};
    use crate::{clock::Clock, metrics::Metrics, store::Source};

    /// A database that takes tokens for passwords.
    #[derive(Clone, Debug)]
    pub struct Login(Aws);

    /// The database with a token, and when that is to be renewed.
    #[derive(Debug)]
    pub struct Access {
        /// With a token for a password.
        pub source: Source,
        /// When a third of the token's life is left.
        pub renew_at: OffsetDateTime,
    }

    impl Login {
        /// Nobody has an [`Aws`] to make one of.
        pub fn new(aws: Aws, _source: Source) -> Self {
            Self(aws)
        }

        /// Nobody has a [`Login`] to call this on.
        ///
        /// # Errors
        ///
        /// None.
        pub async fn access(&self, _now: OffsetDateTime) -> Result<Access, Error> {
            match self.0.0 {}
        }

        /// Nobody has a [`Login`] to call this on.
        pub async fn keep(&self, _renew_at: OffsetDateTime, _clock: &Clock, _metrics: &Metrics) {
            match self.0.0 {}
        }
    }
}
