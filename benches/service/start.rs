//! How soon the service is ready, and how much memory it takes.

use std::{thread, time::Duration};

use serde_json::Value;

use crate::{
    bench::{Bench, Goal::AtMost, median},
    hashing::MEMORY_KIB,
    load::{Connection, bearer, get},
    process::{Service, database, sql, text},
};

/// How much memory the service may take: what its hashes need, and a little more.
pub(crate) fn memory_bound_mib() -> f64 {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    threads as f64 * f64::from(MEMORY_KIB) / 1024.0 + 20.0
}

pub(crate) fn start(bench: &mut Bench) {
    bench.doing("starts");
    let database = database();
    // Makes the schema.
    drop(Service::start(&database, &[]));
    let starts = (0..bench.size(15, 1)).map(|_| Service::start(&database, &[]).started.as_secs_f64() * 1e3);
    bench.bound("start to ready, schema current, ms", median(starts), AtMost(100.0));
}

pub(crate) fn memory(bench: &mut Bench) {
    let database = database();
    let service = Service::start(&database, &[]);
    // The hashing threads take their memory while the service starts.
    thread::sleep(Duration::from_secs(1));
    let bound = memory_bound_mib();
    bench.bound("resident memory idle, MiB", service.memory_mib("VmRSS"), AtMost(bound));

    service.register("alice");
    bench.note("resident memory after the first registration, MiB", service.memory_mib("VmRSS"));

    let count = bench.size(1_000_000, 1_000);
    bench.doing("a million revocations");
    let (kept, gone) = (service.log_in("alice"), service.log_in("alice"));
    let field = |login: &Value| bearer(&text(&login["access_token"]));
    // The last revocation, which shows when all of them have been heard.
    let session = text(&gone["session_id"]);
    sql(
        &database,
        &format!(
            "BEGIN;
             INSERT INTO revocations (session_id, expires_at)
             SELECT gen_random_uuid(), now() + interval '15 minutes' FROM generate_series(1, {count});
             UPDATE sessions SET ended_at = now(), end_reason = 'revoked' WHERE id = '{session}';
             COMMIT"
        ),
    );
    let mut connection = Connection::open(service.address);
    while connection.ask(&get("/auth/verify", &field(&gone))).0 != 401 {
        thread::sleep(Duration::from_millis(5));
    }
    // The service still serves the others.
    service.call(&get("/auth/verify", &field(&kept)), 200);
    let what = format!("resident memory with {count} revocations, MiB");
    bench.bound(&what, service.memory_mib("VmRSS"), AtMost(bound + 64.0));
}
