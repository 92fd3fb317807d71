//! Logins to RDS: a database, with tokens in place of its password.

use std::time::Duration;

use time::OffsetDateTime;

use super::{Aws, Error, LIFE, database_token};
use crate::{
    chain,
    clock::Clock,
    metrics::{DatabaseTokenOutcome, Metrics},
    store::Source,
};

/// How often to look at the clock.
const POLL: Duration = Duration::from_secs(1);
/// How long to leave AWS alone after a token could not be made.
const REST: Duration = Duration::from_secs(10);

/// A database that accepts tokens as passwords.
#[derive(Clone, Debug)]
pub struct Login {
    aws: Aws,
    source: Source,
}

/// The database with a token, and when to renew the token.
#[derive(Debug)]
pub struct Access {
    /// The database, with a token for a password.
    pub source: Source,
    /// When a third of the token's life is left.
    pub renew_at: OffsetDateTime,
}

impl Login {
    /// Logs in to `source` with the AWS identity of this service.
    pub fn new(aws: Aws, source: Source) -> Self {
        Self { aws, source }
    }

    /// The database with a token made now.
    ///
    /// # Errors
    ///
    /// When there are no credentials to sign with.
    pub async fn access(&self, now: OffsetDateTime) -> Result<Access, Error> {
        let Self { aws, source } = self;
        let credentials = aws.credentials().await?;
        let token = database_token(&credentials, &aws.region, source.server(), now)?;
        let life = match credentials.expiry() {
            Some(expires_at) => {
                LIFE.min((OffsetDateTime::from(expires_at) - now).try_into().unwrap_or_default())
            }
            None => LIFE,
        };
        Ok(Access { source: source.with_password(&token), renew_at: now + life * 2 / 3 })
    }

    /// Keeps a valid token in place for new connections of the source's pools, for as long as it is polled. Open
    /// connections are not affected: RDS checks a token only when it is used to connect.
    pub async fn keep(&self, mut renew_at: OffsetDateTime, clock: &Clock, metrics: &Metrics) {
        let mut ticks = crate::clock::every(POLL);
        let mut was_renewed = true;
        loop {
            ticks.tick().await;
            let now = clock.now();
            if now < renew_at {
                continue;
            }
            let renewed = self.access(now).await;
            metrics.database_token(match &renewed {
                Ok(_) => DatabaseTokenOutcome::Made,
                Err(_) => DatabaseTokenOutcome::Failed,
            });
            // Logs once when failures begin, and once when they end.
            match &renewed {
                Err(error) if was_renewed => {
                    tracing::error!(
                        error = chain::cause(error),
                        "no new token for the database, which will soon refuse new connections"
                    );
                }
                Ok(_) if !was_renewed => tracing::info!("there are tokens for the database again"),
                _ => {}
            }
            was_renewed = renewed.is_ok();
            renew_at = match renewed {
                // The credentials may be about to expire before their successors are available.
                Ok(access) => access.renew_at.max(now + REST),
                Err(_) => now + REST,
            };
        }
    }
}
