//! Logins compared with what limits them, the password hash; and what they cost everybody else.

use std::{
    num::NonZeroUsize,
    thread,
    time::{Duration, Instant},
};

use crate::{
    bench::{
        Bench,
        Goal::{AtLeast, AtMost},
    },
    hashing::{self, Hasher, ITERATIONS, MEMORY_KIB},
    load::{self, Client, Connection, Same, bearer, expect, get, percentile},
    process::{PASSWORD, Service, database, login, text},
    start::memory_bound_mib,
};

/// How many callers log in at the same time in a storm, each to their own account.
const CALLERS: usize = 60;

fn cores() -> usize {
    thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

/// Logins on all cores, compared with hashes alone on as many threads.
pub(crate) fn logins(bench: &mut Bench) {
    let service = Service::start(&database(), &[]);
    let requests: Vec<_> = (0..2 * cores()).map(|number| format!("user{number}")).collect();
    for name in &requests {
        service.register(name);
    }
    let requests: Vec<_> = requests.iter().map(|name| login(name)).collect();
    // Some password is always waiting for its turn.
    let mut clients: Vec<_> = requests.iter().map(|request| Same(request)).collect();
    let turn = bench.turn() * 2;
    load::run(service.address, turn / 4, &mut clients);
    let [ours, alone, plain, one, one_plain] = bench.in_turns(
        "logins",
        [
            &mut || load::run(service.address, turn, &mut clients).rate,
            &mut || hashes(hashing::gatepass, cores(), turn),
            &mut || hashes(hashing::plain, cores(), turn),
            &mut || hashes(hashing::gatepass, 1, turn),
            &mut || hashes(hashing::plain, 1, turn),
        ],
    );
    let per_thread = |rates: &[f64]| rates.iter().map(|rate| rate / cores() as f64).collect::<Vec<_>>();
    bench.ratio("logins/s", &ours, ("our hash alone, as many threads", &alone), AtLeast(0.95));
    bench.ratio("logins/s", &ours, ("argon2 crate's hash alone, as many threads", &plain), AtLeast(0.95));
    let limit = ("argon2 crate's hash", &*per_thread(&plain));
    bench.ratio("hashes/s for each thread, all at work", &per_thread(&alone), limit, AtLeast(1.25));
    bench.ratio("hashes/s of one thread", &one, ("argon2 crate's hash", &one_plain), AtLeast(1.25));
}

/// Hashes per second on this many threads, with the same niceness as the service's.
pub(crate) fn hashes(hasher: fn(u32, u32) -> Hasher, threads: usize, time: Duration) -> f64 {
    let on_one_thread = || {
        rustix::process::setpriority_process(None, 10).expect("may be nice");
        let mut hash = hasher(MEMORY_KIB, ITERATIONS);
        hash(b"warm", &[0; 16]);
        let (start, mut count) = (Instant::now(), 0);
        while start.elapsed() < time {
            hash(PASSWORD.as_bytes(), &[7; 16]);
            count += 1;
        }
        f64::from(count) / start.elapsed().as_secs_f64()
    };
    thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(on_one_thread)).collect();
        all.into_iter().map(|one| one.join().expect("no panic")).sum()
    })
}

/// A caller that logs in again and again, or is told to come back later.
struct Caller<'a>(&'a [u8]);

impl Client for Caller<'_> {
    fn ask(&mut self, buffer: &mut Vec<u8>) {
        buffer.extend_from_slice(self.0);
    }

    fn hear(&mut self, status: u16, body: &[u8]) {
        if status != 503 {
            expect(200, status, body);
        }
    }
}

/// A bearer check while logins take all that they can get, compared with one in peace.
pub(crate) fn storm(bench: &mut Bench) {
    let database = database();
    let names: Vec<_> = (0..CALLERS).map(|number| format!("caller{number}")).collect();
    // In another process: the check of a new password loads its dictionaries.
    let registering = Service::start(&database, &[]);
    names.iter().for_each(|name| registering.register(name));
    drop(registering);
    let service = Service::start(&database, &[]);
    let check = get("/auth/verify", &bearer(&text(&service.log_in(&names[0])["access_token"])));
    let requests: Vec<_> = names.iter().map(|name| login(name)).collect();
    let (turn, lead) = (bench.turn() * 2, Duration::from_millis(200));
    let in_storm = || {
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut callers: Vec<_> = requests.iter().map(|request| Caller(request)).collect();
                load::run(service.address, turn + 2 * lead, &mut callers);
            });
            thread::sleep(lead);
            worst(&service, &check, turn)
        })
    };
    let what = "p99 of a bearer check in a storm of logins, µs";
    let [peace, storm] = bench.in_turns(what, [&mut || worst(&service, &check, turn), &mut || in_storm()]);
    bench.ratio(what, &storm, ("in peace", &peace), AtMost(5.0));
    bench.bound("peak memory in the storm, MiB", service.memory_mib("VmHWM"), AtMost(memory_bound_mib()));
}

/// The 99th percentile of requests made one after the other, with pauses, in microseconds.
fn worst(service: &Service, request: &[u8], time: Duration) -> f64 {
    let mut connection = Connection::open(service.address);
    let (begun, mut times) = (Instant::now(), Vec::new());
    while begun.elapsed() < time {
        thread::sleep(Duration::from_millis(1));
        let start = Instant::now();
        let (status, body) = connection.ask(request);
        times.push(start.elapsed().as_secs_f64() * 1e6);
        expect(200, status, body);
    }
    times.sort_by(f64::total_cmp);
    percentile(&times, 99.0)
}
