//! The keys of a running gatepass: fetched from its well-known addresses, and kept fresh.
//!
//! One task does all the fetching, on schedule and when a token names a key that is not held. So there is never more
//! than one fetch at a time, and all requests that need its outcome wait for the same one. Keys are published before
//! they sign, so the schedule alone finds them in time; the fetch for an unknown key is for unscheduled rotations.

use std::{collections::HashSet, fmt, sync::Arc, time::Duration};

use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{AGE, CACHE_CONTROL, ETAG, IF_NONE_MATCH},
};
use reqwest::{Client, Url};
use time::OffsetDateTime;
use tokio::{
    sync::{Semaphore, watch},
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};

use super::{DocumentError, Gatepass, RemoteError, body, pause, random};
use crate::{
    chain,
    token::{
        Claims, InvalidKeySet, KeyId, KeyPairFormat, Party, PublicKey, Rejection, Verifier, VerifyingKey,
        read_jwks, read_paserks,
    },
};

/// The bounds of `Cache-Control: max-age`, and the value used without one.
const MIN_AGE: Duration = Duration::from_secs(5);
const MAX_AGE: Duration = Duration::from_secs(60 * 60);
const DEFAULT_AGE: Duration = Duration::from_secs(60);

/// The pause after a failed fetch. It doubles with each failure in a row, from the first value up to the second.
const PAUSES: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(60)];

/// The minimum time from the start of one fetch to the start of another that a token asks for.
const ON_DEMAND_INTERVAL: Duration = Duration::from_secs(10);
/// How long a request waits for the keys, and how many requests may wait at once; any more are refused immediately.
const MAX_WAIT: Duration = Duration::from_secs(3);
const MAX_WAITING: usize = 1_000;

/// The limit for each of the two documents.
const MAX_DOCUMENT_BYTES: usize = 256 * 1024;

/// The public keys of a running gatepass, for [`BearerLayer::new`](crate::bearer::BearerLayer::new).
///
/// ```no_run
/// use std::sync::Arc;
///
/// use axum::{Extension, Router, routing::get};
/// use gatepass::{bearer::{BearerLayer, RemoteKeys}, token::{Claims, Party}};
///
/// # async fn app() -> Result<Router, Box<dyn std::error::Error>> {
/// async fn hello(Extension(claims): Extension<Arc<Claims>>) -> String {
///     format!("hello {}", claims.username)
/// }
///
/// let issuer = "https://auth.example.com";
/// let keys = RemoteKeys::connect(issuer, Party { issuer: issuer.into(), audience: "gatepass".into() }).await?;
///
/// let app: Router = Router::new().route("/hello", get(hello)).layer(BearerLayer::new(keys));
/// # Ok(app)
/// # }
/// ```
///
/// A task fetches the documents again when their `max-age` is over (5 s to 1 h; 60 s when they have none), until the
/// last clone of this is dropped. When a fetch fails, the keys that are held stay in use for as long as necessary, and
/// the task tries again after 5 s, later after up to 60 s; each failure is logged as a warning. A fetch counts only if
/// it gets both documents in full. They must also have at least one key in them, unless this service was
/// [given](Self::connect_with) a key.
///
/// A request whose token has an unknown key waits for a fetch, 3 s at most, and the token is checked again. All such
/// requests wait for the same fetch, and no fetch for them begins within 10 s of the start of the last, whatever that
/// was for. Until then, or while 1000 requests wait already, tokens of unknown keys are refused at once. Tokens of
/// known keys never wait.
#[derive(Clone)]
pub struct RemoteKeys(Arc<Shared>);

struct Shared {
    verifier: Arc<Verifier>,
    base: String,
    fetches: Arc<watch::Sender<Fetches>>,
    places: Arc<Semaphore>,
    task: JoinHandle<()>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How many fetches there have been. If more were begun than ended, one is running or about to run.
#[derive(Debug)]
struct Fetches {
    begun: u64,
    ended: u64,
    last_began: Instant,
}

impl Fetches {
    fn is_on(&self) -> bool {
        self.begun > self.ended
    }

    fn begin(&mut self, now: Instant) {
        self.begun += 1;
        self.last_began = now;
    }
}

impl RemoteKeys {
    /// Fetches the keys from `/.well-known/jwks.json` and `/.well-known/paserk.json` under `base`, and follows them
    /// from then on. Tokens are accepted from `party.issuer`, for `party.audience`. `base` is most often the issuer,
    /// but may be another address of the same gatepass.
    ///
    /// `base` is an `https` address, or an `http` address of this machine. Certificates are checked as the operating
    /// system does (`SSL_CERT_FILE` and `SSL_CERT_DIR` on Linux); `HTTPS_PROXY` and `NO_PROXY` are respected, and
    /// redirects are not followed.
    ///
    /// # Errors
    ///
    /// [`RemoteError::Address`] when `base` is no such address; [`RemoteError::Client`]; when the first fetch fails,
    /// [`RemoteError::Document`] or [`RemoteError::NoKeys`], since a service without keys could only refuse everybody.
    /// After these two, a service that starts before gatepass does may call this again.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with time and I/O.
    pub async fn connect(base: &str, party: Party) -> Result<Self, RemoteError> {
        Self::connect_with(base, party, [] as [VerifyingKey; 0]).await
    }

    /// Like [`connect`](Self::connect), with keys that this service was given. They are accepted in addition to the
    /// published ones, for as long as this lives. Use this while gatepass moves from a shared key to published ones, or
    /// back, and does not publish any yet, or no longer does.
    ///
    /// ```no_run
    /// use gatepass::{bearer::RemoteKeys, token::{Party, SymmetricKey}};
    ///
    /// # async fn keys() -> Result<RemoteKeys, Box<dyn std::error::Error>> {
    /// let issuer = "https://auth.example.com";
    /// let party = Party { issuer: issuer.into(), audience: "gatepass".into() };
    /// let shared: SymmetricKey = std::env::var("GATEPASS_KEY")?.parse()?;
    /// let keys = RemoteKeys::connect_with(issuer, party, [shared]).await?;
    /// # Ok(keys)
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`connect`](Self::connect), but if a key is given, it is no error for gatepass to publish none.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with time and I/O.
    pub async fn connect_with<K: Into<VerifyingKey>>(
        base: &str,
        party: Party,
        given: impl IntoIterator<Item = K>,
    ) -> Result<Self, RemoteError> {
        let given: Vec<_> = given.into_iter().map(Into::into).collect();
        let began = Instant::now();
        let mut remote = Remote::new(base, given.is_empty())?;
        let fetched = remote.fetch().await?;
        let ids = ids(&fetched.keys);
        let verifier = Arc::new(Verifier::new(with_given(&given, fetched.keys), party));
        let fetches = Arc::new(watch::Sender::new(Fetches { begun: 1, ended: 1, last_began: began }));
        let base = remote.gatepass.base.clone();
        let follower = Follower { remote, given, ids, verifier: verifier.clone(), fetches: fetches.clone() };
        let task = tokio::spawn(follower.run(began + fetched.fresh_for));
        let places = Arc::new(Semaphore::new(MAX_WAITING));
        Ok(Self(Arc::new(Shared { verifier, base, fetches, places, task })))
    }

    /// The claims of `token`, checked as in [`Verifier::verify`] with the keys that are held at the moment. Use it for
    /// tokens that do not come as a request through the layer. It makes no request and waits for none: only the layer
    /// checks for revocations, and has the keys fetched early for a token that names an unknown one.
    ///
    /// # Errors
    ///
    /// The first check that failed.
    pub fn verify(&self, token: &str, now: OffsetDateTime) -> Result<Arc<Claims>, Rejection> {
        self.verifier().verify(token, now)
    }

    /// Checks tokens with the keys that are held at the moment. Not public, since anyone who has it can set its keys.
    pub(in crate::bearer) fn verifier(&self) -> &Verifier {
        &self.0.verifier
    }

    /// What to wait for when a token names a key that is not held: the fetch that is running, or a new one. `None` if
    /// it is too early for a new one, or too many requests wait already.
    pub(in crate::bearer) fn refresh(&self) -> Option<impl Future<Output = ()> + Send + 'static> {
        // Nothing is fetched any more once the runtime on which `connect` was called is gone.
        if self.0.task.is_finished() {
            return None;
        }
        let place = self.0.places.clone().try_acquire_owned().ok()?;
        let now = Instant::now();
        let mut fetches = self.0.fetches.subscribe();
        let mut awaited = None;
        self.0.fetches.send_if_modified(|fetches| {
            let begins = !fetches.is_on() && now >= fetches.last_began + ON_DEMAND_INTERVAL;
            if begins {
                fetches.begin(now);
            }
            awaited = fetches.is_on().then_some(fetches.begun);
            begins
        });
        let awaited = awaited?;
        Some(async move {
            let _place = place;
            // Whatever the outcome, the token is checked again.
            let _ = timeout(MAX_WAIT, fetches.wait_for(|fetches| fetches.ended >= awaited)).await;
        })
    }
}

impl fmt::Debug for RemoteKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteKeys").field("base", &self.0.base).field("verifier", &self.0.verifier).finish()
    }
}

/// The task that keeps a verifier's keys fresh.
struct Follower {
    remote: Remote,
    /// The keys that this service was given, which stay whatever is published.
    given: Vec<VerifyingKey>,
    /// The published keys that the verifier has.
    ids: HashSet<(KeyId, KeyPairFormat)>,
    verifier: Arc<Verifier>,
    fetches: Arc<watch::Sender<Fetches>>,
}

impl Follower {
    async fn run(mut self, mut next: Instant) {
        let mut asked = self.fetches.subscribe();
        let mut failures = 0;
        loop {
            // Early if a token asks for it. We hold the sender, so waiting cannot fail.
            let _ = timeout_at(next, asked.wait_for(Fetches::is_on)).await;
            let began = Instant::now();
            self.fetches.send_if_modified(|fetches| {
                let begins = !fetches.is_on();
                if begins {
                    fetches.begin(began);
                }
                begins
            });
            next = match self.remote.fetch().await {
                Ok(fetched) => {
                    failures = 0;
                    self.take(fetched.keys);
                    began + fetched.fresh_for
                }
                Err(error) => {
                    failures += 1;
                    let pause = pause(failures, PAUSES, random());
                    tracing::warn!(
                        error = chain::cause(&error),
                        failures,
                        retry_in_s = pause.as_secs_f32(),
                        "gatepass's keys could not be fetched; those that are held stay"
                    );
                    Instant::now() + pause
                }
            };
            self.fetches.send_modify(|fetches| fetches.ended = fetches.begun);
        }
    }

    /// Hands the keys to the verifier if they have changed: setting them empties its cache of checked tokens.
    fn take(&mut self, keys: Vec<PublicKey>) {
        let ids = ids(&keys);
        if ids != self.ids {
            tracing::info!(keys = ids.len(), "gatepass's keys have changed");
            self.verifier.set_keys(with_given(&self.given, keys));
            self.ids = ids;
        }
    }
}

fn with_given(given: &[VerifyingKey], published: Vec<PublicKey>) -> impl Iterator<Item = VerifyingKey> {
    given.iter().cloned().chain(published.into_iter().map(Into::into))
}

fn ids(keys: &[PublicKey]) -> HashSet<(KeyId, KeyPairFormat)> {
    keys.iter().map(|key| (key.id().clone(), key.format())).collect()
}

/// A gatepass to fetch keys from.
struct Remote {
    gatepass: Gatepass,
    documents: [Document; 2],
    /// Whether documents without keys count as a failure, because there would be no key at all.
    needs_keys: bool,
}

/// One of the documents, and what was last in it.
struct Document {
    url: Url,
    read: fn(&[u8]) -> Result<Vec<PublicKey>, InvalidKeySet>,
    held: Option<Held>,
}

#[derive(Clone)]
struct Held {
    keys: Vec<PublicKey>,
    etag: Option<HeaderValue>,
}

struct Fetched {
    keys: Vec<PublicKey>,
    fresh_for: Duration,
}

impl Remote {
    fn new(base: &str, needs_keys: bool) -> Result<Self, RemoteError> {
        let gatepass = Gatepass::new(base)?;
        let document = |name, read| {
            Ok(Document { url: gatepass.url(&format!("/.well-known/{name}"))?, read, held: None })
        };
        let documents = [document("jwks.json", read_jwks as _)?, document("paserk.json", read_paserks as _)?];
        Ok(Self { gatepass, documents, needs_keys })
    }

    /// Fetches both documents or neither, so that no key is lost when gatepass moves from one format to another.
    async fn fetch(&mut self) -> Result<Fetched, RemoteError> {
        let mut fresh_for = MAX_AGE;
        let mut held = Vec::new();
        for document in &self.documents {
            let (now_held, document_fresh_for) = document.fetch(&self.gatepass.client).await?;
            fresh_for = fresh_for.min(document_fresh_for);
            held.push(now_held);
        }
        let keys: Vec<_> = held.iter().flat_map(|held| held.keys.iter().cloned()).collect();
        if keys.is_empty() && self.needs_keys {
            return Err(RemoteError::NoKeys(self.gatepass.base.clone()));
        }
        for (document, held) in self.documents.iter_mut().zip(held) {
            document.held = Some(held);
        }
        Ok(Fetched { keys, fresh_for })
    }
}

impl Document {
    /// What the document holds now, and for how long that is fresh.
    async fn fetch(&self, client: &Client) -> Result<(Held, Duration), RemoteError> {
        let failed = |reason| RemoteError::Document { url: self.url.to_string(), reason };
        let mut request = client.get(self.url.clone());
        let etag = self.held.as_ref().and_then(|held| held.etag.as_ref());
        if let Some(etag) = etag {
            request = request.header(IF_NONE_MATCH, etag);
        }
        let response = request.send().await.map_err(|error| failed(error.into()))?;
        let fresh_for = fresh_for(response.headers());
        let held = match (response.status(), &self.held) {
            (StatusCode::OK, _) => {
                let etag = response.headers().get(ETAG).cloned();
                let body = body(response, MAX_DOCUMENT_BYTES).await.map_err(failed)?;
                let keys = (self.read)(&body).map_err(|error| failed(error.into()))?;
                Held { keys, etag }
            }
            (StatusCode::NOT_MODIFIED, Some(held)) if etag.is_some() => held.clone(),
            (status, _) => return Err(failed(DocumentError::Status(status))),
        };
        Ok((held, fresh_for))
    }
}

/// How long a document is fresh: its `max-age` minus the age it reached in caches on the way (RFC 9111, section 4.2),
/// within bounds.
fn fresh_for(headers: &HeaderMap) -> Duration {
    let directives = headers.get_all(CACHE_CONTROL).iter().filter_map(|field| field.to_str().ok());
    let max_age = directives.flat_map(|field| field.split(',')).find_map(|directive| {
        let (name, seconds) = directive.trim().split_once('=')?;
        if !name.eq_ignore_ascii_case("max-age") {
            return None;
        }
        // A number too large to parse is still a large one.
        let seconds = seconds.trim_matches('"');
        let is_number = !seconds.is_empty() && seconds.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| Duration::from_secs(seconds.parse().unwrap_or(u64::MAX)))
    });
    let age = headers.get(AGE).and_then(|field| field.to_str().ok()?.parse().ok()).unwrap_or_default();
    let fresh_for = max_age.map_or(DEFAULT_AGE, |max_age| max_age.saturating_sub(Duration::from_secs(age)));
    fresh_for.clamp(MIN_AGE, MAX_AGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_documents_are_below_the_base() {
        let remote = Remote::new("http://localhost:8080/login/", true).unwrap();
        assert_eq!(
            remote.documents.map(|document| document.url.to_string()),
            ["jwks", "paserk"].map(|name| format!("http://localhost:8080/login/.well-known/{name}.json"))
        );
    }

    #[test]
    fn freshness_follows_the_response_headers_within_bounds() {
        for (cache_control, age, expected) in [
            ("public, max-age=300", None, 300),
            ("Max-Age=\"300\"", None, 300),
            ("public, max-age=300", Some("100"), 200),
            ("max-age=300", Some("400"), 5),
            ("max-age=300", Some("x"), 300),
            ("max-age=0", None, 5),
            ("max-age=86400", None, 3600),
            ("max-age=99999999999999999999999", None, 3600),
            ("s-maxage=300", None, 60),
            ("max-age=-1", None, 60),
            ("max-age=", None, 60),
            ("", None, 60),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(CACHE_CONTROL, HeaderValue::from_static(cache_control));
            if let Some(age) = age {
                headers.insert(AGE, HeaderValue::from_static(age));
            }
            assert_eq!(fresh_for(&headers).as_secs(), expected, "{cache_control} {age:?}");
        }
        assert_eq!(fresh_for(&HeaderMap::new()), DEFAULT_AGE);
    }
}
