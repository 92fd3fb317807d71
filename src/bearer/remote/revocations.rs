//! What a running gatepass revokes: followed with long polling, and held in memory.

use std::{
    pin::pin,
    sync::{Arc, Weak},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderValue, StatusCode, header::AUTHORIZATION};
use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use time::OffsetDateTime;
use tokio::time::{sleep, timeout};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::{DocumentError, Gatepass, RemoteError, body, pause, random};
use crate::{
    clock::Clock,
    token::{Revocations, UserRoles},
};

/// How long gatepass may keep a request waiting for news; less if `max_staleness` is short.
const MAX_WAIT: Duration = Duration::from_secs(25);
const MIN_WAIT: Duration = Duration::from_secs(1);
/// How much longer than that the answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The limit for an answer: 5000 entries, each with the maximum number of roles, take less.
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;

/// The pause after a failed request. It doubles with each failure in a row, from the first value up to the second.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(8)];
/// The pause before the next request when an answer without news came without waiting for any.
const IDLE_PAUSE: Duration = Duration::from_millis(200);

/// How often expired entries are dropped, and how often the clock is checked.
const FORGET_EVERY: Duration = Duration::from_secs(10);
const CLOCK_CHECK: Duration = Duration::from_secs(1);
/// How far the wall clock may drift from the monotonic clock before it counts as set.
const CLOCK_TOLERANCE: time::Duration = time::Duration::seconds(1);

/// Follows what a running gatepass revokes, for
/// [`BearerLayer::with_revocations`](crate::bearer::BearerLayer::with_revocations). Tokens of a session that has ended
/// are refused within a second, and so are tokens with roles that their user no longer has.
///
/// ```no_run
/// use std::time::Duration;
///
/// use axum::{Router, routing::get};
/// use gatepass::{bearer::{BearerLayer, RemoteKeys, follow_revocations}, token::Party};
///
/// # async fn app() -> Result<Router, Box<dyn std::error::Error>> {
/// let issuer = "https://auth.example.com";
/// let keys = RemoteKeys::connect(issuer, Party { issuer: issuer.into(), audience: "gatepass".into() }).await?;
///
/// // What `gatepass client create orders` printed.
/// let (id, secret) = (std::env::var("GATEPASS_CLIENT_ID")?.parse()?, std::env::var("GATEPASS_CLIENT_SECRET")?);
/// let revocations = follow_revocations(issuer, id, secret, Duration::from_secs(60)).await?;
///
/// let layer = BearerLayer::new(keys).with_revocations(revocations);
/// let app: Router = Router::new().route("/hello", get(async || "hello")).layer(layer);
/// # Ok(app)
/// # }
/// ```
///
/// This works with any source of keys, including a [`Verifier`](crate::token::Verifier) that was given its key.
///
/// When this function returns, everything that was revoked before the call is known. From then on a task keeps a
/// request to gatepass open (`GET /revocations`), which is answered when there is something new. When a request fails,
/// what is known stays, and the task tries again after half a second, later after up to 8 s; each failure is logged as
/// a warning. After `max_staleness` without an answer, every token is refused with 503 `revocations_stale` until
/// gatepass answers again. A minute gives gatepass time to restart; below ten seconds, one lost answer may be enough to
/// refuse tokens. The task ends within half a minute after the last clone of the `Arc` is dropped.
///
/// `base` is as for [`RemoteKeys::connect`](super::RemoteKeys::connect). The time comes from the machine's clock.
///
/// # Errors
///
/// [`RemoteError::Address`] when `base` is no such address, [`RemoteError::Client`], and [`RemoteError::Document`] when
/// the first load fails, as it does with credentials that belong to no client.
///
/// # Panics
///
/// Outside a tokio runtime with time and I/O.
pub async fn follow_revocations(
    base: &str,
    client_id: Uuid,
    client_secret: impl Into<SecretString>,
    max_staleness: Duration,
) -> Result<Arc<Revocations>, RemoteError> {
    let gatepass = Gatepass::new(base)?;
    let clock = Clock::system();
    let mut follower = Follower {
        url: gatepass.url("/revocations")?,
        gatepass,
        authorization: basic(client_id, &client_secret.into()),
        since: None,
        anew: None,
        clock,
    };
    let clock_offset = follower.clock_offset();
    let revocations = Arc::new(Revocations::new(max_staleness));
    follower.hear(&Arc::downgrade(&revocations), Duration::ZERO).await?;
    // A quarter, so that one lost answer is no reason to refuse anyone.
    let wait = (max_staleness / 4).clamp(MIN_WAIT, MAX_WAIT);
    tokio::spawn(follower.run(Arc::downgrade(&revocations), wait, clock_offset));
    Ok(revocations)
}

/// HTTP Basic credentials (RFC 7617). No `Debug` shows them.
fn basic(id: Uuid, secret: &SecretString) -> HeaderValue {
    let credentials = Zeroizing::new(format!("{id}:{}", secret.expose_secret()));
    let field = Zeroizing::new(format!("Basic {}", STANDARD.encode(&*credentials)));
    let mut field = HeaderValue::from_str(&field).expect("base64 is visible ASCII");
    field.set_sensitive(true);
    field
}

/// The task that follows the revocations.
struct Follower {
    gatepass: Gatepass,
    url: Url,
    authorization: HeaderValue,
    /// Where the next request begins; `None` means at the very beginning.
    since: Option<String>,
    /// The roles of users while everything is being loaded again: those that have come so far.
    anew: Option<UserRoles>,
    clock: Clock,
}

/// Whether an answer held anything new.
#[derive(PartialEq, Eq)]
enum Heard {
    News,
    Nothing,
}

impl Follower {
    async fn run(
        mut self,
        revocations: Weak<Revocations>,
        max_wait: Duration,
        mut clock_offset: OffsetDateTime,
    ) {
        let mut failures = 0;
        let mut forgotten_at = self.clock.elapsed();
        while revocations.strong_count() > 0 {
            let began_at = self.clock.elapsed();
            // After a failure, ask for an answer at once, even one without news.
            let wait = if failures == 0 { max_wait } else { Duration::ZERO };
            match self.hear_unless_clock_is_set(&revocations, wait, clock_offset).await {
                Some(Ok(heard)) => {
                    if failures > 0 {
                        tracing::info!("gatepass's revocations can be read again");
                    } else if heard == Heard::Nothing && self.clock.elapsed() - began_at < IDLE_PAUSE {
                        sleep(IDLE_PAUSE).await;
                    }
                    failures = 0;
                }
                Some(Err(error)) => {
                    failures += 1;
                    // This gatepass cannot read the cursor, whichever one gave it.
                    if let RemoteError::Document { reason: DocumentError::Status(status), .. } = &error
                        && *status == StatusCode::UNPROCESSABLE_ENTITY
                    {
                        self.since = None;
                    }
                    let pause = pause(failures, PAUSES, random());
                    warn(&error, failures, pause);
                    sleep(pause).await;
                }
                // Entries that were dropped as expired may still be in force: load everything again.
                None => {
                    self.since = None;
                    clock_offset = self.clock_offset();
                }
            }
            if self.clock.elapsed() - forgotten_at >= FORGET_EVERY {
                forgotten_at = self.clock.elapsed();
                if let Some(revocations) = revocations.upgrade() {
                    revocations.forget_expired(self.clock.now());
                }
            }
        }
    }

    /// What the wall clock says, minus what the monotonic clock says.
    fn clock_offset(&self) -> OffsetDateTime {
        self.clock.now() - self.clock.elapsed()
    }

    /// Like [`hear`](Self::hear); `None` if the wall clock no longer has this offset: it was set, or the machine has
    /// slept.
    async fn hear_unless_clock_is_set(
        &mut self,
        revocations: &Weak<Revocations>,
        wait: Duration,
        clock_offset: OffsetDateTime,
    ) -> Option<Result<Heard, RemoteError>> {
        let clock = self.clock.clone();
        let mut hearing = pin!(self.hear(revocations, wait));
        loop {
            let heard = timeout(CLOCK_CHECK, hearing.as_mut()).await;
            if (clock.now() - clock.elapsed() - clock_offset).abs() > CLOCK_TOLERANCE {
                return None;
            }
            if let Ok(heard) = heard {
                return Some(heard);
            }
        }
    }

    /// Takes in everything that was revoked before the call; if there is nothing new, waits this long for news.
    async fn hear(&mut self, revocations: &Weak<Revocations>, wait: Duration) -> Result<Heard, RemoteError> {
        let began_at = self.clock.elapsed();
        let mut heard = Heard::Nothing;
        let mut wait = wait;
        loop {
            let page = self.page(wait).await?;
            let Some(revocations) = revocations.upgrade() else { return Ok(Heard::Nothing) };
            if !page.revocations.is_empty() {
                heard = Heard::News;
            }
            // The roles known so far apply until all of the new ones have come.
            if page.reset {
                self.anew = Some(UserRoles::default());
            }
            for entry in page.revocations {
                match entry {
                    Entry::Session { session_id, expires_at } => {
                        revocations.end_session(session_id, expires_at);
                    }
                    Entry::User { user_id, roles, change, expires_at } => match &mut self.anew {
                        Some(anew) => anew.change(user_id, roles, change, expires_at),
                        None => revocations.change_roles(user_id, roles, change, expires_at),
                    },
                }
            }
            self.since = Some(page.next);
            if !page.more {
                if let Some(roles) = self.anew.take() {
                    revocations.replace_roles(roles);
                }
                revocations.heard(began_at);
                return Ok(heard);
            }
            wait = Duration::ZERO;
        }
    }

    fn address(&self, wait: Duration) -> Url {
        let mut url = self.url.clone();
        url.query_pairs_mut()
            .append_pair("wait", &wait.as_secs().to_string())
            .extend_pairs(self.since.as_ref().map(|since| ("since", since)));
        url
    }

    async fn page(&self, wait: Duration) -> Result<Page, RemoteError> {
        let failed = |reason| RemoteError::Document { url: self.url.to_string(), reason };
        let request = self.gatepass.client.get(self.address(wait)).header(AUTHORIZATION, &self.authorization);
        let response = request.timeout(wait + PATIENCE).send().await.map_err(|error| failed(error.into()))?;
        if response.status() != StatusCode::OK {
            return Err(failed(DocumentError::Status(response.status())));
        }
        let body = body(response, MAX_ANSWER_BYTES).await.map_err(failed)?;
        serde_json::from_slice(&body).map_err(|error| failed(DocumentError::NoRevocations(error.into())))
    }
}

/// An answer. An entry of an unknown kind makes all of it unreadable: it is better to accept nothing than something
/// that was revoked.
#[derive(Deserialize)]
struct Page {
    revocations: Vec<Entry>,
    next: String,
    more: bool,
    /// Missing in the answers of older versions of gatepass.
    #[serde(default)]
    reset: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Entry {
    Session {
        session_id: Uuid,
        #[serde(with = "time::serde::rfc3339")]
        expires_at: OffsetDateTime,
    },
    User {
        user_id: Uuid,
        roles: Vec<String>,
        change: i64,
        #[serde(with = "time::serde::rfc3339")]
        expires_at: OffsetDateTime,
    },
}

fn warn(error: &(dyn std::error::Error + 'static), failures: u32, pause: Duration) {
    let retry_in_s = pause.as_secs_f32();
    tracing::warn!(error, failures, retry_in_s, "gatepass's revocations could not be read");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A follower of a gatepass that never answers.
    async fn follower(clock: &Clock) -> (Follower, tokio::net::TcpListener) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gatepass = Gatepass::new(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let url = gatepass.url("/revocations").unwrap();
        let authorization = basic(Uuid::from_u128(7), &"gps_secret".into());
        (Follower { gatepass, url, authorization, since: None, anew: None, clock: clock.clone() }, listener)
    }

    #[tokio::test(start_paused = true)]
    async fn changing_the_clock_cuts_the_wait_short_but_passing_time_does_not() {
        for by in [time::Duration::HOUR, -time::Duration::HOUR] {
            let clock = Clock::fixed(OffsetDateTime::UNIX_EPOCH + time::Duration::DAY);
            let (mut follower, _listener) = follower(&clock).await;
            let offset = follower.clock_offset();
            let revocations = Arc::new(Revocations::new(MAX_WAIT));
            let known = Arc::downgrade(&revocations);

            clock.advance(time::Duration::HOUR);
            let heard = follower.hear_unless_clock_is_set(&known, Duration::ZERO, offset).await;
            assert!(matches!(heard, Some(Err(_))), "nobody answers");

            let hearing = follower.hear_unless_clock_is_set(&known, MAX_WAIT, offset);
            let (heard, ()) = tokio::join!(hearing, async {
                sleep(Duration::from_secs(5)).await;
                clock.shift(by);
            });
            assert!(heard.is_none(), "{by}");
        }
    }

    #[test]
    fn the_credentials_are_not_shown() {
        let field = basic(Uuid::from_u128(7), &"gps_secret".into());
        assert_eq!(
            field.to_str().unwrap(),
            format!("Basic {}", STANDARD.encode("00000000-0000-0000-0000-000000000007:gps_secret"))
        );
        assert_eq!(format!("{field:?}"), "Sensitive");
    }
}
