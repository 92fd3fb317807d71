//! What the process uses, under the names that Prometheus's client libraries have agreed on. Linux only: elsewhere
//! these metrics stay at zero, which nobody takes for a running process.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::{Registry, Unit},
};

use super::Registrar;

pub(super) struct Series {
    cpu_seconds: Counter<f64, AtomicU64>,
    resident_bytes: Gauge,
    virtual_bytes: Gauge,
    open_fds: Gauge,
    max_fds: Gauge,
    threads: Gauge,
    started_at: Gauge<f64, AtomicU64>,
}

impl Series {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let mut registrar = Registrar(registry);
        Self {
            cpu_seconds: registrar.add_seconds("cpu", "CPU time that the process has used"),
            resident_bytes: registrar.add_in(
                Unit::Bytes,
                "resident_memory",
                "Memory of the process that is in RAM",
                Gauge::default(),
            ),
            virtual_bytes: registrar.add_in(
                Unit::Bytes,
                "virtual_memory",
                "Memory that the process has asked for, used or not",
                Gauge::default(),
            ),
            open_fds: registrar.add("open_fds", "File descriptors that are open"),
            max_fds: registrar.add("max_fds", "File descriptors that may be open"),
            threads: registrar.add("threads", "Threads of the process"),
            started_at: registrar.add_seconds("start_time", "When the process was started, in Unix time"),
        }
    }

    /// Reads the current values.
    pub(super) fn observe(&self) {
        #[cfg(target_os = "linux")]
        if let Some(seen) = linux::Seen::now() {
            // A counter only goes up, and so does CPU time.
            let used = seen.cpu_seconds - self.cpu_seconds.get();
            if used > 0.0 {
                self.cpu_seconds.inc_by(used);
            }
            self.resident_bytes.set(seen.resident_bytes);
            self.virtual_bytes.set(seen.virtual_bytes);
            self.open_fds.set(seen.open_fds);
            self.max_fds.set(seen.max_fds);
            self.threads.set(seen.threads);
            self.started_at.set(seen.started_at);
        }
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs;

    use rustix::{
        param::{clock_ticks_per_second, page_size},
        process::{Resource, getrlimit},
    };

    /// What proc(5) says about this process.
    pub(super) struct Seen {
        pub(super) cpu_seconds: f64,
        pub(super) resident_bytes: i64,
        pub(super) virtual_bytes: i64,
        pub(super) open_fds: i64,
        pub(super) max_fds: i64,
        pub(super) threads: i64,
        pub(super) started_at: f64,
    }

    impl Seen {
        pub(super) fn now() -> Option<Self> {
            let stat = fs::read_to_string("/proc/self/stat").ok()?;
            let machine = fs::read_to_string("/proc/stat").ok()?;
            let booted_at: f64 =
                machine.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
            // Reading the directory opens one itself.
            let open_fds = fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1);
            let max_fds = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
            Self::from_stat(&stat, booted_at, open_fds, max_fds)
        }

        /// From the line in `/proc/self/stat`. The program's name, in parentheses, may contain anything.
        pub(super) fn from_stat(stat: &str, booted_at: f64, open_fds: usize, max_fds: u64) -> Option<Self> {
            let (_, rest) = stat.rsplit_once(") ")?;
            let fields: Vec<i64> = rest.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect();
            // By their numbers in proc(5), the first two of which have been cut off.
            let field = |number: usize| fields.get(number - 3).copied();
            let seconds = |ticks: i64| ticks as f64 / clock_ticks_per_second() as f64;
            Some(Self {
                cpu_seconds: seconds(field(14)? + field(15)?),
                threads: field(20)?,
                started_at: booted_at + seconds(field(22)?),
                virtual_bytes: field(23)?,
                resident_bytes: field(24)?.saturating_mul(i64::try_from(page_size()).ok()?),
                open_fds: i64::try_from(open_fds).ok()?,
                max_fds: i64::try_from(max_fds).unwrap_or(i64::MAX),
            })
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_program_may_have_any_name() {
            let stat = "7 (gate) pass (1 2) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 9 0 1200 104857600 2048 \
                        18446744073709551615 1 1";
            let seen = Seen::from_stat(stat, 1000.0, 12, 1024).unwrap();
            let ticks = clock_ticks_per_second() as f64;
            assert_eq!(seen.cpu_seconds, 300.0 / ticks);
            assert_eq!(seen.started_at, 1000.0 + 1200.0 / ticks);
            assert_eq!((seen.threads, seen.virtual_bytes), (9, 104_857_600));
            assert_eq!(seen.resident_bytes, 2048 * i64::try_from(page_size()).unwrap());
            assert_eq!((seen.open_fds, seen.max_fds), (12, 1024));
        }

        #[test]
        fn this_process_is_seen() {
            let seen = Seen::now().unwrap();
            assert!(seen.resident_bytes > 1 << 20);
            assert!(seen.open_fds >= 3);
            assert!(seen.threads >= 1);
            // Since 2020, and not later than a second ago.
            assert!(seen.started_at > 1_577_836_800.0);
        }
    }
}
