//! How soon the service is ready, and what memory it takes.

use std::thread;

use crate::{
    bench::{Bench, Goal::AtMost, median},
    hashing::MEMORY_KIB,
    process::{Service, database},
};

/// What memory the service may take: what its hashes need, and a little.
pub(crate) fn memory_bound_mib() -> f64 {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    threads as f64 * f64::from(MEMORY_KIB) / 1024.0 + 20.0
}

pub(crate) fn measure(bench: &mut Bench) {
    bench.doing("starts");
    let database = database();
    // The schema.
    drop(Service::start(&database, &[]));
    let starts = (0..bench.size(15, 1)).map(|_| Service::start(&database, &[]).started.as_secs_f64() * 1e3);
    bench.bound("start to ready, schema current, ms", median(starts), AtMost(100.0));
    let service = Service::start(&database, &[]);
    bench.bound("resident memory idle, MiB", service.memory_mib("VmRSS"), AtMost(memory_bound_mib()));
}
