//! Bearer checks: `/auth/verify` compared with the same server's `/healthz`, which gets the same header fields.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use gatepass::token::{Issuer, Lifetime, Party, Subject, SymmetricKey};
use serde_json::Value;
use uuid::Uuid;

use crate::{
    bench::{
        Bench,
        Goal::{AtLeast, AtMost},
        median,
    },
    load::{self, Client, Same, bearer, expect, get},
    process::{KEY, Service, database, text},
};

/// Connections of the clients.
const CONNECTIONS: usize = 32;

/// The settings of each format.
const FORMATS: [(&str, &[(&str, &str)]); 7] = [
    ("v4.local", &[]),
    ("v4.public", &[("TOKEN_FORMAT", "v4.public")]),
    ("EdDSA", &[("TOKEN_FORMAT", "jwt")]),
    ("ES256", &[("TOKEN_FORMAT", "jwt"), ("JWT_ALGORITHM", "ES256")]),
    ("RS256", &[("TOKEN_FORMAT", "jwt"), ("JWT_ALGORITHM", "RS256")]),
    ("PS256", &[("TOKEN_FORMAT", "jwt"), ("JWT_ALGORITHM", "PS256")]),
    ("HS256", &[("TOKEN_FORMAT", "jwt"), ("JWT_ALGORITHM", "HS256")]),
];

/// Checks of one token, for each format.
pub(crate) fn seen(bench: &mut Bench) {
    for (name, settings) in FORMATS {
        let service = Service::start(&database(), settings);
        let field = bearer(&service.token_of_new("alice"));
        let (check, health) = (get("/auth/verify", &field), get("/healthz", &field));
        let once = |request: &[u8]| {
            let before = service.processor_times();
            let outcome = load::run(service.address, bench.short_turn(), &mut [Same(request); CONNECTIONS]);
            let since = |(thread, time): (_, Duration)| {
                time.saturating_sub(before.get(&thread).copied().unwrap_or_default())
            };
            let used: Duration = service.processor_times().into_iter().map(since).sum();
            let used = used.as_secs_f64() * 1e6 / outcome.answers as f64;
            [outcome.rate, used, outcome.percentile(99.0)]
        };
        once(&check);
        let what = format!("checks/s, {name}, token seen before");
        let [ours, limits] = bench.in_short_turns(&what, [&mut || once(&check), &mut || once(&health)]);
        let figures = |values: &[[f64; 3]], which: usize| {
            values.iter().map(|figures| figures[which]).collect::<Vec<_>>()
        };
        bench.ratio(&what, &figures(&ours, 0), ("/healthz", &figures(&limits, 0)), AtLeast(0.9));
        let what = format!("the server's processor time for one, {name}, µs");
        bench.ratio(&what, &figures(&ours, 1), ("/healthz", &figures(&limits, 1)), AtMost(1.3));
        if settings.is_empty() {
            bench.note(&format!("p99 of a check at that load, {name}, µs"), median(figures(&ours, 2)));
        }
    }
}

/// Checks of tokens that the service has never seen.
pub(crate) fn fresh(bench: &mut Bench) {
    let service = Service::start(&database(), &[]);
    service.register("alice");
    let user = service.log_in("alice");
    let health = get("/healthz", &bearer(&text(&user["access_token"])));
    // The limit's turn comes first, and tells how many tokens are enough, whatever has disturbed it.
    let tokens = AtomicUsize::new(10_000);
    let mut limit = || {
        let outcome = load::run(service.address, bench.short_turn(), &mut [Same(&health); CONNECTIONS]);
        tokens.fetch_max(3 * outcome.answers, Ordering::Relaxed);
        outcome.rate
    };
    let mut ours = || {
        let requests = requests(tokens.load(Ordering::Relaxed), &user);
        let next = AtomicUsize::new(0);
        let mut clients = [(); CONNECTIONS].map(|()| Unseen { requests: &requests, next: &next });
        load::run(service.address, bench.short_turn(), &mut clients).rate
    };
    let what = "checks/s, v4.local, every token new";
    let [limits, rates] = bench.in_short_turns(what, [&mut limit, &mut ours]);
    bench.ratio(what, &rates, ("/healthz", &limits), AtLeast(0.5));
}

/// Sends the next of the requests that nobody has sent yet.
struct Unseen<'a> {
    requests: &'a [Vec<u8>],
    next: &'a AtomicUsize,
}

impl Client for Unseen<'_> {
    fn ask(&mut self, buffer: &mut Vec<u8>) {
        let request = self.requests.get(self.next.fetch_add(1, Ordering::Relaxed));
        buffer.extend_from_slice(request.expect("more tokens than can be asked about"));
    }

    fn hear(&mut self, status: u16, body: &[u8]) {
        expect(200, status, body);
    }
}

/// Checks of this many tokens, made the way the service makes them.
fn requests(count: usize, user: &Value) -> Vec<Vec<u8>> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let all: Vec<_> =
            (0..threads).map(|_| scope.spawn(move || some_requests(count.div_ceil(threads), user))).collect();
        all.into_iter().flat_map(|some| some.join().expect("no panic")).collect()
    })
}

#[expect(clippy::disallowed_methods, reason = "no part of the service: it has a clock")]
fn some_requests(count: usize, user: &Value) -> Vec<Vec<u8>> {
    let party = Party { issuer: "gatepass".into(), audience: "gatepass".into() };
    let issuer = Issuer::new(KEY.parse::<SymmetricKey>().expect("a key"), party);
    let id = |value: &Value| value.as_str().and_then(|text| text.parse::<Uuid>().ok()).expect("an id");
    let subject = Subject {
        user_id: id(&user["user"]["id"]),
        session_id: id(&user["session_id"]),
        username: "alice".into(),
        roles: Vec::new(),
    };
    let now = time::OffsetDateTime::now_utc();
    let lifetime = Lifetime { now, expires_at: now + Duration::from_secs(900) };
    let token =
        |number| issuer.issue(subject.clone(), Uuid::from_u128(number), lifetime).expect("randomness");
    (0..count).map(|number| get("/auth/verify", &bearer(token(number as u128).expose()))).collect()
}
