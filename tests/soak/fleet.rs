//! Three replicas over one Postgres, what has been done to them, and what may explain an error.
//!
//! An answer may be missing where its replica was being killed or stopped, and a 503 may come while the database is
//! away. Every other error fails the soak, and is reported with its request.

use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use gatepass::clock::Clock;
use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use sqlx::PgPool;
use time::OffsetDateTime;
use tokio::time::{sleep, timeout};

use super::record::{Rules, Said, Span};
use crate::{
    postgres::Server,
    process::{Home, Process, Signal},
};

pub const REPLICAS: usize = 3;

/// Longer than the service takes to give up on a request.
const PATIENCE: Duration = Duration::from_secs(40);

/// One process. When it ends, another takes its place.
pub struct Replica {
    process: tokio::sync::Mutex<Option<Process>>,
    pub place: usize,
    url: String,
    pid: i32,
    /// Set just before it is told or forced to end.
    is_ending: AtomicBool,
    /// In bytes, once a second.
    pub memory: Mutex<Vec<usize>>,
}

/// What a replica may answer while the database is away.
pub const AWAY: &[&str] = &["database_unavailable", "revocations_stale", "timeout"];
/// What it may answer after it has been frozen.
pub const ASLEEP: &[&str] = &["revocations_stale"];

/// A time in which something keeps replicas from the database. They may answer 503 with one of `codes`.
#[derive(Clone, Copy, Debug)]
struct Outage {
    codes: &'static [&'static str],
    began: OffsetDateTime,
    ended: Option<OffsetDateTime>,
}

pub struct Fleet {
    pub home: Home,
    pub settings: Vec<(&'static str, String)>,
    pub server: tokio::sync::Mutex<Server>,
    /// The test's own connections, with every privilege.
    pub db: PgPool,
    pub rules: Rules,
    pub clock: Clock,
    began: OffsetDateTime,
    replicas: [Mutex<Option<Arc<Replica>>>; REPLICAS],
    /// Replicas that have ended, kept for their memory figures.
    pub former: Mutex<Vec<Arc<Replica>>>,
    outages: Mutex<Vec<Outage>>,
    /// What has been done, and which errors that caused.
    counts: Mutex<BTreeMap<String, u64>>,
    pub requests: AtomicU64,
    pub is_over: AtomicBool,
    /// Imported users whom no client has taken yet.
    pub imported: Mutex<Vec<String>>,
}

/// An answer, or why there is none.
#[derive(Debug)]
pub struct Answer {
    pub said: Said<Value>,
    pub span: Span,
    /// There was no connection, so nobody has seen the request.
    pub is_unheard: bool,
    /// What came and from where, for the story.
    pub told: String,
}

impl Fleet {
    pub fn new(
        home: Home,
        server: Server,
        db: PgPool,
        settings: Vec<(&'static str, String)>,
        rules: Rules,
    ) -> Self {
        let clock = Clock::system();
        Self {
            home,
            settings,
            server: server.into(),
            db,
            rules,
            began: clock.now(),
            clock,
            replicas: Default::default(),
            former: Mutex::default(),
            outages: Mutex::default(),
            counts: Mutex::default(),
            requests: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
            imported: Mutex::default(),
        }
    }

    pub fn environment(&self) -> Vec<(&str, &str)> {
        self.settings.iter().map(|(name, value)| (*name, value.as_str())).collect()
    }

    pub async fn start(&self, place: usize) {
        let process = self.home.serve(&self.environment()).await;
        let replica = Replica {
            place,
            url: process.url(""),
            pid: process.pid().as_raw_pid(),
            process: Some(process).into(),
            is_ending: AtomicBool::new(false),
            memory: Mutex::default(),
        };
        *self.replicas[place].lock().unwrap() = Some(replica.into());
    }

    /// Ends a replica, and starts another after `pause`. One that is killed has requests in flight, since it has
    /// answered none for a moment.
    pub async fn replace(&self, place: usize, signal: Signal, pause: impl Future<Output = ()>) {
        if signal == Signal::KILL {
            self.signal(place, Signal::STOP).await;
            sleep(Duration::from_millis(150)).await;
        }
        let replica = self.replicas[place].lock().unwrap().take().unwrap();
        replica.is_ending.store(true, Relaxed);
        let process = replica.process.lock().await.take().unwrap();
        let ended = process.stop(signal).await;
        let code = (signal == Signal::TERM).then_some(0);
        assert_eq!(ended.code, code, "{}", tail(&ended.stderr));
        assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
        self.former.lock().unwrap().push(replica);
        pause.await;
        self.start(place).await;
    }

    /// Freezes a replica for `pause`, in the middle of whatever it is doing.
    pub async fn freeze(&self, place: usize, pause: Duration) {
        self.signal(place, Signal::STOP).await;
        sleep(pause).await;
        self.signal(place, Signal::CONT).await;
    }

    async fn signal(&self, place: usize, signal: Signal) {
        let replica = self.replica(place).unwrap();
        replica.process.lock().await.as_ref().unwrap().signal(signal);
    }

    /// Ends all replicas.
    pub async fn stop(&self) {
        for place in 0..REPLICAS {
            let replica = self.replicas[place].lock().unwrap().take().unwrap();
            let ended = replica.process.lock().await.take().unwrap().stop(Signal::TERM).await.expect(0);
            assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
            self.former.lock().unwrap().push(replica);
        }
    }

    pub fn replica(&self, place: usize) -> Option<Arc<Replica>> {
        self.replicas[place].lock().unwrap().clone()
    }

    /// The replicas that are running.
    pub fn replicas(&self) -> Vec<Arc<Replica>> {
        (0..REPLICAS).filter_map(|place| self.replica(place)).collect()
    }

    /// Does `work`, which takes away the database, connections to it, or a replica's time. Until all replicas say that
    /// they are ready again, errors with one of `codes` are excused.
    pub async fn outage(&self, codes: &'static [&'static str], work: impl Future<Output = ()>) {
        self.outages.lock().unwrap().push(Outage { codes, began: self.clock.now(), ended: None });
        work.await;
        let http = Client::new();
        for replica in self.replicas() {
            crate::process::until("a replica is ready again", async || {
                let answer = http.get(format!("{}/readyz", replica.url)).send().await;
                replica.is_ending.load(Relaxed) || answer.is_ok_and(|answer| answer.status() == 200)
            })
            .await;
        }
        sleep(Duration::from_millis(300)).await;
        self.outages.lock().unwrap().last_mut().unwrap().ended = Some(self.clock.now());
    }

    /// Whether an outage explains a 503 with this code.
    pub fn is_excused(&self, code: &str, span: Span) -> bool {
        let outages = self.outages.lock().unwrap();
        outages
            .iter()
            .filter(|outage| outage.codes.contains(&code))
            .any(|outage| outage.began <= span.answered && outage.ended.is_none_or(|end| span.sent <= end))
    }

    /// Since when nothing has kept the replicas from hearing of each other.
    pub fn quiet_since(&self, span: Span) -> Option<OffsetDateTime> {
        let outages = self.outages.lock().unwrap();
        let before = outages.iter().rev().find(|outage| outage.began <= span.answered);
        before.map_or(Some(self.began), |outage| outage.ended.filter(|end| *end < span.sent))
    }

    pub fn count(&self, what: &str) {
        *self.counts.lock().unwrap().entry(what.to_owned()).or_default() += 1;
    }

    pub fn counted(&self) -> BTreeMap<String, u64> {
        self.counts.lock().unwrap().clone()
    }

    /// Sends a request to a replica; `Err` is an error that nothing explains.
    pub async fn ask(
        &self,
        replica: &Replica,
        http: &Client,
        request: &(dyn Fn(&Client, &str) -> RequestBuilder + Sync),
        patience: Option<Duration>,
    ) -> Result<Answer, String> {
        let sent = self.clock.now();
        self.requests.fetch_add(1, Relaxed);
        let request = request(http, &replica.url);
        let answer = timeout(patience.unwrap_or(PATIENCE), async {
            let answer = request.send().await?;
            let status = answer.status();
            let identity = answer.headers().get("x-auth-session").cloned();
            let roles = answer.headers().get("x-auth-roles").cloned();
            let body = answer.bytes().await?;
            let body = match identity {
                Some(session) => json!({
                    "session_id": session.to_str().unwrap(),
                    "roles": roles.unwrap().to_str().unwrap(),
                }),
                None => serde_json::from_slice(&body).unwrap_or(Value::Null),
            };
            Ok::<_, reqwest::Error>((status, body))
        })
        .await;
        let span = Span { sent, answered: self.clock.now() };
        let place = replica.place;
        let is_unheard = matches!(&answer, Ok(Err(error)) if error.is_connect());
        let (said, told) = match answer {
            Err(_) if patience.is_some() => {
                self.count("not waited for");
                (Said::Lost, "not waited for".to_owned())
            }
            Err(_) => return Err(format!("replica {place} does not answer within {PATIENCE:?}")),
            Ok(Err(error)) if replica.is_ending.load(Relaxed) => {
                self.count(if is_unheard { "refused at the end" } else { "cut off by an end" });
                (Said::Lost, format!("{error:?}"))
            }
            Ok(Err(error)) => return Err(format!("replica {place} was not being ended, and: {error:?}")),
            Ok(Ok((status, body))) => {
                let code = body["code"].as_str().unwrap_or_default().to_owned();
                let told = format!("{status} {code}");
                if status.is_success() {
                    (Said::Done(body), told)
                } else if status == StatusCode::SERVICE_UNAVAILABLE && self.is_excused(&code, span) {
                    self.count(&code);
                    (Said::Lost, told)
                } else if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS {
                    (Said::Refused(code), told)
                } else {
                    return Err(format!(
                        "replica {place} answers {status} {body}, and nothing was done to it"
                    ));
                }
            }
        };
        Ok(Answer { said, span, is_unheard, told: format!("{told} (replica {place})") })
    }

    /// Records how much memory each replica has.
    pub fn weigh(&self) {
        for replica in self.replicas() {
            if let Some(bytes) = resident_bytes(replica.pid) {
                replica.memory.lock().unwrap().push(bytes);
            }
        }
    }
}

/// `VmRSS`, in bytes; only Linux can tell.
fn resident_bytes(pid: i32) -> Option<usize> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<usize>().ok()? * 1024)
}

fn tail(text: &str) -> &str {
    &text[text.len().saturating_sub(4000)..]
}
