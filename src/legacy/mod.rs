//! The old system that users come from. It is asked over HTTP whether a name and a password belong to one of its users,
//! if they belong to no one here. docs/legacy-login.md specifies its answers; `account::legacy` acts on them.
//!
//! Three limits protect it, each separate for every replica: a rate limit ([`pace`]), at most [`PLACES`] requests at
//! once, and a pause after it has failed to answer ([`breaker`]).

mod breaker;
mod client;
mod pace;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::HeaderValue;
use secrecy::SecretString;
use serde_json::{Map, Value};
use tokio::sync::{Semaphore, SemaphorePermit};
use tracing::{Instrument, info_span};

pub use self::client::{ClientError, Fault};
use self::{
    breaker::{Breaker, Outcome, Permit, State},
    client::{Client, Reply},
    pace::Pace,
};
use crate::{chain, clock::Clock, metrics::Metrics, password::Password};

/// How many requests may be under way at once.
const PLACES: usize = 16;

/// How to ask the old system.
#[derive(Debug)]
pub struct Settings {
    /// `LEGACY_LOGIN_URL`. A user and a password in it are sent as HTTP Basic.
    pub url: SecretString,
    /// How long it may take to answer.
    pub patience: Duration,
    /// The W3C `traceparent` of the current span, for the old system to continue the trace.
    pub traceparent: fn() -> Option<HeaderValue>,
    /// Measures how much time has passed.
    pub clock: Clock,
    /// Where the state of the breaker is shown.
    pub metrics: Metrics,
}

/// The old system. Cheap to clone.
#[derive(Clone)]
pub struct Legacy(Arc<Inner>);

struct Inner {
    client: Client,
    patience: Duration,
    places: Semaphore,
    gate: Mutex<Gate>,
    clock: Clock,
    metrics: Metrics,
}

#[derive(Debug)]
struct Gate {
    breaker: Breaker,
    pace: Pace,
}

/// The outcome of asking.
#[derive(Debug)]
pub enum Answer {
    /// The name and the password belong to this user: a line of an import, unchecked.
    User(Map<String, Value>),
    /// They belong to no one.
    Nobody,
    /// There was no answer, or none that can be understood. The reason is in the log.
    Failed,
    /// The old system has too much to do, or does not answer, and was left alone.
    NotAsked,
}

impl Legacy {
    /// Makes the client. Sends nothing yet.
    ///
    /// # Errors
    ///
    /// When the URL is invalid, or the HTTP client cannot be made.
    pub fn new(settings: Settings) -> Result<Self, ClientError> {
        let Settings { url, patience, traceparent, clock, metrics } = settings;
        let client = Client::new(&url, patience, traceparent)?;
        let gate = Mutex::new(Gate { breaker: Breaker::new(), pace: Pace::default() });
        Ok(Self(Arc::new(Inner { client, patience, places: Semaphore::new(PLACES), gate, clock, metrics })))
    }

    /// How long a refused login takes at least, whether or not the old system was asked: a fifth longer than the old
    /// system may take to answer, to cover the work before and after.
    pub fn shortest_refusal(&self) -> Duration {
        self.0.patience * 6 / 5
    }

    /// Asks whether the name and the password, as typed, belong to a user.
    pub async fn ask(&self, username: &str, password: &Password, request_id: Option<&str>) -> Answer {
        let Some(mut turn) = self.0.turn() else {
            tracing::debug!("the old system is not asked");
            return Answer::NotAsked;
        };
        let asking = self.0.client.ask(username, password, request_id);
        let span = info_span!("ask the old system", otel.kind = "client", http.request.method = "POST");
        match asking.instrument(span).await {
            Ok(reply) => {
                turn.outcome = Outcome::Up;
                match reply {
                    Reply::User(user) => Answer::User(user),
                    Reply::Nobody => Answer::Nobody,
                }
            }
            Err(fault) => {
                turn.outcome = if fault.is_down() { Outcome::Down } else { Outcome::Up };
                tracing::warn!(
                    error = chain::cause(&fault),
                    "the old system could not tell whether there is such a user"
                );
                Answer::Failed
            }
        }
    }
}

impl fmt::Debug for Legacy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Legacy").field("gate", &*self.0.gate()).finish_non_exhaustive()
    }
}

/// Checks whether anything answers at `url`, without sending a password or our credentials. Returns the status.
///
/// # Errors
///
/// When nothing answers, or the wrong server does.
pub async fn probe(url: &SecretString, patience: Duration) -> Result<http::StatusCode, Fault> {
    Client::new(url, patience, || None)?.probe().await
}

impl Inner {
    fn gate(&self) -> MutexGuard<'_, Gate> {
        // Nothing panics while it is locked.
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The permission to ask now, if there is one.
    fn turn(&self) -> Option<Turn<'_>> {
        let place = self.places.try_acquire().ok()?;
        let mut gate = self.gate();
        let now = self.clock.elapsed();
        let permit = gate.pace.admit(now).then(|| gate.breaker.admit(now)).flatten()?;
        Some(Turn { inner: self, permit, outcome: Outcome::Unknown, _place: place })
    }
}

/// A request under way. Dropping it reports its outcome, even if no one waits for the answer any more.
struct Turn<'a> {
    inner: &'a Inner,
    permit: Permit,
    outcome: Outcome,
    _place: SemaphorePermit<'a>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let now = self.inner.clock.elapsed();
        // Apart, so that nobody waits for the gate while this is logged.
        let change = self.inner.gate().breaker.settle(self.permit, self.outcome, now);
        match change {
            None => {}
            Some(State::Open { .. }) => {
                self.inner.metrics.set_legacy_breaker_open(true);
                let seconds = breaker::PAUSE.as_secs();
                tracing::warn!(seconds, "the old system does not answer, and is left alone for a while");
            }
            Some(State::Closed { .. } | State::Trial) => {
                self.inner.metrics.set_legacy_breaker_open(false);
                tracing::info!("the old system answers again");
            }
        }
    }
}
