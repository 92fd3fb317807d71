//! The service as a process of its own, what it uses, and databases for it.

use std::{
    collections::HashMap,
    env,
    ffi::OsString,
    fs,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::load::{self, Connection};

/// The symmetric key of every service here.
pub(crate) const KEY: &str = "k4.local.THpDE3G_ozb_4dDQB4o8Ihzf8TtdgrDbUuGwmrIDr-c";

/// Everybody's password here.
pub(crate) const PASSWORD: &str = "a quiet river at noon";

/// Makes password hashes cost nothing, for measurements that are not about them.
pub(crate) const QUICK: [(&str, &str); 2] = [("ARGON2_MEMORY_KIB", "8"), ("ARGON2_ITERATIONS", "1")];

const PATIENCE: Duration = Duration::from_secs(60);

/// The service's binary, as `make bench` built it.
pub(crate) fn binary() -> PathBuf {
    env::var_os("GATEPASS").expect("run by make bench").into()
}

/// A running `gatepass serve` with the default settings, except for the limits on failed logins; killed when dropped.
/// It logs each request, though nobody reads the log.
pub(crate) struct Service {
    child: Child,
    pub(crate) address: SocketAddr,
    /// From the start of the process until it was ready.
    pub(crate) started: Duration,
}

impl Service {
    /// Starts one on `database`, with more settings or none, and waits until it is ready.
    pub(crate) fn start(database: &str, settings: &[(&str, &str)]) -> Self {
        let address = free_address();
        let mut command = Command::new(binary());
        command
            .arg("serve")
            .current_dir(env::temp_dir())
            .env_clear()
            .env("DB_SOURCE", database)
            .env("TOKEN_SYMMETRIC_KEY", KEY)
            .env("HTTP_SERVER_ADDRESS", address.to_string())
            .env("OPS_SERVER_ADDRESS", free_address().to_string())
            .env("LOG_FORMAT", "json")
            .env("LOGIN_ATTEMPTS_PER_ACCOUNT", "1000000/1m")
            .env("LOGIN_ATTEMPTS_PER_IP", "1000000/1m")
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let start = Instant::now();
        let child = command.spawn().expect("the service was built");
        let mut service = Self { child, address, started: Duration::ZERO };
        let ready = load::get("/readyz", "");
        while Connection::try_open(address).is_none_or(|mut connection| connection.ask(&ready).0 != 200) {
            let ended = service.child.try_wait().expect("a child");
            assert!(ended.is_none() && start.elapsed() < PATIENCE, "not ready ({ended:?}): {command:?}");
            thread::sleep(Duration::from_micros(500));
        }
        service.started = start.elapsed();
        service
    }

    /// Sends one request, and returns the JSON of its answer, or null if it has none.
    pub(crate) fn call(&self, request: &[u8], status: u16) -> Value {
        let mut connection = Connection::open(self.address);
        let (answered, body) = connection.ask(request);
        load::expect(status, answered, body);
        serde_json::from_slice(body).unwrap_or_default()
    }

    /// Registers a user, who may then log in.
    pub(crate) fn register(&self, username: &str) {
        let user = format!(
            r#"{{"username":"{username}","email":"{username}@example.com","password":"{PASSWORD}"}}"#
        );
        self.call(&load::post("/users", "", &user), 201);
    }

    /// The answer to a login.
    pub(crate) fn log_in(&self, username: &str) -> Value {
        self.call(&login(username), 200)
    }

    /// The access token of a new user.
    pub(crate) fn token_of_new(&self, username: &str) -> String {
        self.register(username);
        text(&self.log_in(username)["access_token"])
    }

    /// The processor time that it has used, over all the threads that it still has.
    pub(crate) fn processor_time(&self) -> Duration {
        self.processor_times().into_values().sum()
    }

    /// The same by thread. Idle threads end now and then, and their time is lost.
    pub(crate) fn processor_times(&self) -> HashMap<OsString, Duration> {
        let threads = fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("Linux, and it runs");
        let times = threads.flatten().filter_map(|thread| {
            let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
            let nanoseconds = text.split(' ').next()?.parse().ok()?;
            Some((thread.file_name(), Duration::from_nanos(nanoseconds)))
        });
        times.collect()
    }

    /// A line of `/proc/…/status`, such as `VmRSS` or `VmHWM`, in MiB.
    pub(crate) fn memory_mib(&self, line: &str) -> f64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("Linux, and it runs");
        let line = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':'));
        let kib = line.expect("the line is there").trim().trim_end_matches(" kB");
        kib.parse::<f64>().expect("a number") / 1024.0
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The request of a login.
pub(crate) fn login(username: &str) -> Vec<u8> {
    load::post("/users/login", "", &format!(r#"{{"username":"{username}","password":"{PASSWORD}"}}"#))
}

/// The text of a JSON string.
pub(crate) fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

/// An address with a port that nobody listens on.
pub(crate) fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address")
}

/// The URL of a new, empty database.
pub(crate) fn database() -> String {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let name = format!("bench{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let server = server();
    sql(&server, &format!("CREATE DATABASE {name}"));
    server.replacen("/postgres?", &format!("/{name}?"), 1)
}

/// The URL of the server that `scripts/with-postgres` started.
pub(crate) fn server() -> String {
    env::var("DATABASE_URL").expect("run by scripts/with-postgres, as make bench does")
}

/// The result of the statements, as psql prints it without headings.
pub(crate) fn sql(database: &str, statements: &str) -> String {
    let psql = Command::new("psql").args([database, "-v", "ON_ERROR_STOP=1", "-XAtqc", statements]).output();
    let done = psql.expect("psql is there");
    assert!(done.status.success(), "{statements}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).expect("text").trim().to_owned()
}
