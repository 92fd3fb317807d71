//! How soon a session that ended on one replica is refused by another.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    bench::{Bench, Goal::AtMost},
    load::{Connection, bearer, expect, get, percentile, post},
    process::{QUICK, Service, database, text},
};

pub(crate) fn measure(bench: &mut Bench) {
    let database = database();
    let one = Service::start(&database, &QUICK);
    one.register("alice");

    let times = delays(bench, &one, &Service::start(&database, &QUICK), bench.size(200, 3));
    bench.bound("a revocation's way to another replica, p50, ms", percentile(&times, 50.0), AtMost(10.0));
    bench.bound("a revocation's way to another replica, p99, ms", percentile(&times, 99.0), AtMost(100.0));

    // Behind such a pooler, no notifications arrive.
    let deaf = [&QUICK[..], &[("DB_POOLER", "transaction"), ("MIGRATION_DB_SOURCE", &database)]].concat();
    let times = delays(bench, &one, &Service::start(&database, &deaf), bench.size(30, 2));
    bench.bound("by polling alone, the longest, ms", percentile(&times, 100.0), AtMost(1000.0));
}

/// From the answer to a logout on `one` to the first refusal by the `other`, in milliseconds, sorted.
fn delays(bench: &Bench, one: &Service, other: &Service, count: usize) -> Vec<f64> {
    let (mut here, mut there) = (Connection::open(one.address), Connection::open(other.address));
    let mut times: Vec<_> = (1..=count)
        .map(|number| {
            bench.doing(&format!("a revocation's way to another replica, {number} of {count}"));
            let token = bearer(&text(&one.log_in("alice")["access_token"]));
            let check = get("/auth/verify", &token);
            let (status, body) = there.ask(&check);
            expect(200, status, body);
            let (status, body) = here.ask(&post("/users/logout", &token, ""));
            expect(204, status, body);
            let start = Instant::now();
            while there.ask(&check).0 != 401 {
                thread::sleep(Duration::from_micros(100));
            }
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times
}
