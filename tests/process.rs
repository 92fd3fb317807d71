//! The real binary, run as a person or a supervisor runs it: in a directory of its own, with an environment of its own.
//!
//! ```ignore
//! let home = Home::new();
//! let service = home.serve(&[("DB_SOURCE", &database().await)]).await;
//! assert_eq!(service.get("/readyz").await.0, 200);
//! service.stop(Signal::TERM).await.expect(0);
//! ```

use std::{
    env, fs,
    fs::{File, Permissions},
    io::Write,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

pub use rustix::process::Signal;
use rustix::process::{Pid, geteuid, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::AsyncWriteExt,
    net::TcpSocket,
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

/// How long anything here may take before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(60);

/// Settings with which password hashes cost nothing, which only development accepts, and stories may fail to log in as
/// often as they like.
pub const QUICK: [(&str, &str); 6] = [
    ("LOGIN_ATTEMPTS_PER_ACCOUNT", "100000/15m"),
    ("LOGIN_ATTEMPTS_PER_IP", "100000/15m"),
    ("ARGON2_MEMORY_KIB", "8"),
    ("ARGON2_ITERATIONS", "1"),
    ("ARGON2_PARALLELISM", "1"),
    ("PASSWORD_HASH_THREADS", "2"),
];

/// Free ports for a service.
pub const ANY_PORT: [(&str, &str); 2] =
    [("HTTP_SERVER_ADDRESS", "127.0.0.1:0"), ("OPS_SERVER_ADDRESS", "127.0.0.1:0")];

/// Whether a test has the machine to itself, and time for its long form, as in `make drill`.
pub fn is_drill() -> bool {
    env::var_os("GATEPASS_DRILL").is_some_and(|form| form == "full")
}

/// How long something that is promised within `promised` may take: four times as long, because all the other tests run
/// at the same time, unless this is the drill.
pub fn allowed(promised: Duration) -> Duration {
    if is_drill() { promised } else { 4 * promised }
}

/// Waits until `condition` holds.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// A port of 127.0.0.1, reserved for a program that we start: bound, but not listening.
pub struct Port(TcpSocket);

impl Port {
    pub fn reserve() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        // The program can then bind it, too, since every server asks for the same.
        socket.set_reuseaddr(true).unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        Self(socket)
    }

    pub fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }
}

/// Writes a program, from its bytes or a script's text, that can be run at once. Another process writes it: a file that
/// we have open for writing is also open in every child that other tests fork meanwhile, until it calls exec, and such
/// a file cannot be run ("Text file busy").
pub fn make_program(path: &Path, contents: &[u8]) {
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", r#"cat > "$0" && chmod 755 "$0""#]).arg(path).stdin(Stdio::piped());
    let mut shell = shell.spawn().unwrap();
    shell.stdin.take().unwrap().write_all(contents).unwrap();
    assert!(shell.wait().unwrap().success());
}

/// A working directory to run the binary in. When it is dropped, a Postgres that was left in it is ended.
pub struct Home {
    /// The directory around it, for output, and for the binary if that had to be copied.
    around: TempDir,
    dir: PathBuf,
    binary: PathBuf,
    /// The user and group that the binary runs as, if not ours.
    user: Option<(u32, u32)>,
    runs: AtomicU32,
}

impl Home {
    /// Owned by us, and open to others.
    pub fn new() -> Self {
        Self::below(0o755)
    }

    /// Owned by us, below a directory that is closed to others.
    pub fn closed() -> Self {
        Self::below(0o700)
    }

    fn below(mode: u32) -> Self {
        let around = TempDir::with_prefix("gatepass-test-").unwrap();
        fs::set_permissions(around.path(), Permissions::from_mode(mode)).unwrap();
        let dir = around.path().join("home");
        fs::create_dir(&dir).unwrap();
        let binary = env!("CARGO_BIN_EXE_gatepass").into();
        Self { around, dir, binary, user: None, runs: AtomicU32::new(0) }
    }

    /// Owned by the user `nobody`, who then runs the binary. Only root can make one; otherwise we are an ordinary user
    /// ourselves.
    pub fn of_nobody() -> Option<Self> {
        if !is_root() {
            return None;
        }
        let passwd = fs::read_to_string("/etc/passwd").unwrap();
        let nobody = passwd.lines().find(|line| line.starts_with("nobody:"));
        let nobody: Vec<_> = nobody.expect("a user nobody").split(':').collect();
        let user = (nobody[2].parse().unwrap(), nobody[3].parse().unwrap());
        let mut home = Self::new();
        // The build may be in a directory that is closed to others.
        let binary = home.around.path().join("gatepass");
        if fs::hard_link(&home.binary, &binary).is_err() {
            make_program(&binary, &fs::read(&home.binary).unwrap());
        }
        chown(&home.dir, Some(user.0), Some(user.1)).unwrap();
        home.binary = binary;
        home.user = Some(user);
        Some(home)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Writes a file; returns its path.
    pub fn write(&self, name: &str, text: &str) -> String {
        fs::write(self.path(name), text).unwrap();
        self.path(name).to_str().unwrap().to_owned()
    }

    /// `gatepass ARGS…`, with nothing of our environment but `PATH` and `TMPDIR`.
    pub fn gatepass(&self, args: &[&str]) -> Invocation {
        let mut invocation = self.program(&self.binary);
        invocation.command.args(args);
        invocation
    }

    /// Another program in the same place.
    pub fn program(&self, program: &Path) -> Invocation {
        let mut command = Command::new(program);
        command.env_clear().current_dir(&self.dir).kill_on_drop(true);
        for name in ["PATH", "TMPDIR"] {
            if let Some(value) = env::var_os(name) {
                command.env(name, value);
            }
        }
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        let run = self.runs.fetch_add(1, Ordering::Relaxed);
        let output = |name: &str| self.around.path().join(format!("{name}.{run}"));
        Invocation { command, stdin: String::new(), stdout: output("stdout"), stderr: output("stderr") }
    }

    /// `sh -c SCRIPT`, with the path of `gatepass` in `$0`.
    pub fn shell(&self, script: &str) -> Invocation {
        let mut invocation = self.program(Path::new("sh"));
        invocation.command.args(["-c", script]).arg(&self.binary);
        invocation
    }

    /// `gatepass serve` on a free port with quick passwords, serving.
    pub async fn serve(&self, environment: &[(&str, &str)]) -> Process {
        self.start(environment).serving().await
    }

    /// As [`serve`](Self::serve), without waiting until it serves.
    pub fn start(&self, environment: &[(&str, &str)]) -> Process {
        self.gatepass(&["serve"]).envs(&ANY_PORT).envs(&QUICK).envs(environment).start()
    }

    /// The arguments of every process that has to do with this directory.
    pub fn processes(&self) -> Vec<String> {
        let output =
            std::process::Command::new("ps").args(["-A", "-ww", "-o", "pid=,args="]).output().unwrap();
        let mut places = vec![fs::canonicalize(&self.dir).unwrap().to_str().unwrap().to_owned()];
        if let Ok(data) = fs::canonicalize(self.path(".gatepass/postgres")) {
            places.push(data.to_str().unwrap().to_owned());
        }
        let all = String::from_utf8_lossy(&output.stdout).into_owned();
        all.lines()
            .filter(|line| places.iter().any(|place| line.contains(place.as_str())))
            .map(str::to_owned)
            .collect()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let link = self.path(".gatepass/postgres");
        let Ok(data) = fs::canonicalize(&link) else { return };
        // Only a test that failed leaves it running.
        if let Ok(file) = fs::read_to_string(data.join("postmaster.pid"))
            && let Some(pid) = file.lines().next().and_then(|line| line.trim().parse().ok())
            && let Some(pid) = Pid::from_raw(pid)
        {
            let _ = kill_process(pid, Signal::QUIT);
        }
        // Root's data may be somewhere else.
        if link.is_symlink() {
            let _ = fs::remove_dir_all(data.parent().unwrap());
        }
    }
}

pub fn is_root() -> bool {
    geteuid().is_root()
}

/// A command in the making.
pub struct Invocation {
    command: Command,
    stdin: String,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Invocation {
    pub fn arg(mut self, arg: &str) -> Self {
        self.command.arg(arg);
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    pub fn envs(mut self, more: &[(&str, &str)]) -> Self {
        self.command.envs(more.iter().copied());
        self
    }

    pub fn stdin(mut self, text: &str) -> Self {
        self.stdin = text.to_owned();
        self
    }

    pub fn start(mut self) -> Process {
        let Self { stdout, stderr, .. } = self;
        self.command.stdin(Stdio::piped());
        self.command.stdout(File::create(&stdout).unwrap()).stderr(File::create(&stderr).unwrap());
        let child = self.command.spawn().unwrap();
        let pid = Pid::from_raw(child.id().unwrap().try_into().unwrap()).unwrap();
        Process { child, pid, stdout, stderr, http: reqwest::Client::new() }
    }

    /// Runs it to its end.
    pub async fn run(self) -> Ended {
        let stdin = self.stdin.clone();
        let mut process = self.start();
        // A program may end without reading its input; then the write fails, which is fine.
        let _ = process.child.stdin.take().unwrap().write_all(stdin.as_bytes()).await;
        process.end().await
    }
}

/// A running program.
pub struct Process {
    child: Child,
    pid: Pid,
    stdout: PathBuf,
    stderr: PathBuf,
    http: reqwest::Client,
}

impl Process {
    pub fn stdout(&self) -> String {
        String::from_utf8(fs::read(&self.stdout).unwrap()).unwrap()
    }

    pub fn stderr(&self) -> String {
        String::from_utf8(fs::read(&self.stderr).unwrap()).unwrap()
    }

    pub async fn write(&mut self, text: &str) {
        let stdin = self.child.stdin.as_mut().unwrap();
        stdin.write_all(text.as_bytes()).await.unwrap();
        stdin.flush().await.unwrap();
    }

    /// Waits until standard error holds `text`.
    pub async fn logged(&mut self, text: &str) {
        until(text, async || {
            let log = self.stderr();
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none() || log.contains(text), "ended with {ended:?}\n{log}");
            log.contains(text)
        })
        .await;
    }

    /// Waits until it serves.
    pub async fn serving(mut self) -> Self {
        self.logged("serving").await;
        until("the address is logged", async || self.find_address().is_some()).await;
        self
    }

    /// `127.0.0.1:PORT`, as it logged it.
    pub fn address(&self) -> String {
        self.find_address().unwrap()
    }

    fn find_address(&self) -> Option<String> {
        let log = self.stderr();
        // Whole lines only.
        let (log, _) = log.rsplit_once('\n')?;
        let line = log.lines().find(|line| line.contains("serving"))?;
        let (_, rest) = line.split_once("address")?;
        let address = rest.trim_start_matches(|c: char| !c.is_ascii_digit());
        Some(address.split(|c: char| !c.is_ascii_digit() && !".:".contains(c)).next()?.to_owned())
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address())
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        self.get_as("", path).await
    }

    /// With an access token.
    pub async fn get_as(&self, token: &str, path: &str) -> (u16, Value) {
        let answer = self.http.get(self.url(path)).bearer_auth(token).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    pub async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let answer = self.http.post(self.url(path)).json(body).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Its resident memory in bytes: `VmRSS`.
    #[cfg(target_os = "linux")]
    pub fn resident_bytes(&self) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid.as_raw_pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
    }

    /// Whether a `SIGSTOP` has reached every thread. Only Linux can tell; elsewhere this is taken for granted.
    pub fn is_stopped(&self) -> bool {
        let Ok(threads) = fs::read_dir(format!("/proc/{}/task", self.pid.as_raw_pid())) else { return true };
        threads.flatten().all(|thread| {
            let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
            status.lines().any(|line| line.starts_with("State:\tT"))
        })
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).unwrap();
    }

    /// Sends a signal and waits for the process to end.
    pub async fn stop(self, signal: Signal) -> Ended {
        self.signal(signal);
        self.end().await
    }

    /// Waits for the process to end.
    pub async fn end(self) -> Ended {
        self.end_within(PATIENCE).await
    }

    /// As [`end`](Self::end), for a program that takes long.
    pub async fn end_within(mut self, patience: Duration) -> Ended {
        drop(self.child.stdin.take());
        let Ok(status) = timeout(patience, self.child.wait()).await else {
            panic!("does not end\n{}{}", self.stdout(), self.stderr())
        };
        Ended { code: status.unwrap().code(), stdout: self.stdout(), stderr: self.stderr() }
    }
}

/// What a program leaves when it ends.
#[derive(Debug)]
pub struct Ended {
    /// `None` if a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}\n{}", self.stdout, self.stderr);
        self
    }

    /// Checks that it failed with exit code `code`, said all of `parts` on standard error and nothing on standard
    /// output, and did not panic.
    #[track_caller]
    pub fn fails(self, code: i32, parts: &[&str]) -> Self {
        let ended = self.expect(code);
        assert_eq!(ended.stdout, "", "{}", ended.stderr);
        assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
        for part in parts {
            assert!(ended.stderr.contains(part), "{part:?} is not in:\n{}", ended.stderr);
        }
        ended
    }

    /// The standard output, as JSON, of a program that succeeded.
    #[track_caller]
    pub fn json(self) -> Value {
        let ended = self.expect(0);
        serde_json::from_str(&ended.stdout).unwrap()
    }
}
