//! Postgres servers that belong to a single test, on loopback, so that it can encrypt, copy and kill them; and an
//! address in front of them that can be moved from one to another, as a cloud moves it in a failover.

use std::{
    fs,
    fs::Permissions,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Stdio,
    sync::LazyLock,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    sync::watch,
    task::JoinHandle,
    time::sleep,
};

use crate::process::{Port, is_root, until};

/// Where the server programs are.
static BIN: LazyLock<PathBuf> = LazyLock::new(|| {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/ensure-postgres");
    let output = std::process::Command::new(script).arg("--print-bindir").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().into()
});

/// Postgres and pgbouncer refuse to run as root. If we are root, this is the user and group that they run as instead.
pub fn other_user() -> Option<(u32, u32)> {
    if !is_root() {
        return None;
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let find = |name: &str| {
        let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
        let fields: Vec<_> = line.split(':').collect();
        Some((fields[2].parse().unwrap(), fields[3].parse().unwrap()))
    };
    Some(find("postgres").or_else(|| find("nobody")).unwrap())
}

/// A directory owned by that user.
pub fn directory() -> TempDir {
    let dir = TempDir::with_prefix("gatepass-pg-").unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o700)).unwrap();
    if let Some((user, group)) = other_user() {
        chown(dir.path(), Some(user), Some(group)).unwrap();
    }
    dir
}

/// Writes a file that only that user can read.
pub fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    if let Some((user, group)) = other_user() {
        chown(path, Some(user), Some(group)).unwrap();
    }
}

/// A program that runs as that user, with nothing of our environment but `PATH`.
pub fn command(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("LC_ALL", "C").current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    if let Some((user, group)) = other_user() {
        command.uid(user).gid(group);
    }
    command
}

/// Runs openssl in `dir`.
pub async fn openssl(dir: &Path, args: &str) {
    let output = Command::new("openssl").args(args.split(' ')).current_dir(dir).output().await.unwrap();
    assert!(output.status.success(), "{args}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Makes a self-signed certificate `{name}.crt`, with its key `{name}.key`.
pub async fn self_signed(dir: &Path, name: &str) {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(dir, &format!("req -x509 {key} -keyout {name}.key -out {name}.crt -days 2 -subj /CN={name}"))
        .await;
}

/// A running server. It ends when this is dropped.
pub struct Server {
    dir: TempDir,
    pub port: u16,
    _port: Port,
    child: Child,
}

impl Server {
    /// Starts a new one with these additional settings; `prepare` may put files into its data directory.
    pub async fn new(settings: &str, prepare: impl FnOnce(&Path)) -> Self {
        let dir = directory();
        let data = dir.path().join("data");
        run(command(BIN.join("initdb")).arg("-D").arg(&data).args(["-U", "postgres", "-A", "trust"]).args([
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
        ]))
        .await;
        prepare(&data);
        let text = format!(
            "listen_addresses = '127.0.0.1'\nunix_socket_directories = '..'\nmax_wal_senders = 4\n\
             synchronous_commit = local\nfull_page_writes = off\n{settings}\n"
        );
        write(&data.join("postgresql.auto.conf"), &text);
        Self::start(dir).await
    }

    async fn start(dir: TempDir) -> Self {
        let reserved = Port::reserve();
        let port = reserved.address().port();
        let child = Self::spawn(&dir, port);
        let server = Self { dir, port, _port: reserved, child };
        server.is_up().await;
        server
    }

    fn spawn(dir: &TempDir, port: u16) -> Child {
        let log = fs::File::options().create(true).append(true).open(dir.path().join("log")).unwrap();
        command(BIN.join("postgres"))
            .arg("-D")
            .arg(dir.path().join("data"))
            .args(["-p", &port.to_string()])
            .stderr(log)
            .spawn()
            .unwrap()
    }

    async fn is_up(&self) {
        until("the server is up", async || PgConnection::connect(&self.socket_url()).await.is_ok()).await;
    }

    /// Stops it, with `SIGINT` for a fast shutdown or `SIGQUIT` for an immediate one, and starts it again after
    /// `pause`.
    pub async fn restart(&mut self, signal: Signal, pause: Duration) {
        let pid = Pid::from_raw(self.child.id().unwrap().try_into().unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
        self.child.wait().await.unwrap();
        sleep(pause).await;
        self.child = Self::spawn(&self.dir, self.port);
        self.is_up().await;
    }

    /// One that speaks TLS, with the `server.crt` and `server.key` of `dir`.
    pub async fn encrypted(dir: &Path) -> Self {
        let certificate = ["server.crt", "server.key"];
        let files = certificate.map(|name| (name, fs::read_to_string(dir.join(name)).unwrap()));
        Self::new("ssl = on", |data| {
            for (name, text) in files {
                write(&data.join(name), &text);
            }
        })
        .await
    }

    /// A synchronous standby of this server: a commit here is answered only once the standby has it.
    pub async fn standby(&self) -> Self {
        let dir = directory();
        let port = self.port.to_string();
        run(command(BIN.join("pg_basebackup"))
            .arg("-D")
            .arg(dir.path().join("data"))
            .args(["-h", "127.0.0.1", "-p", &port, "-U", "postgres"])
            .args(["--checkpoint=fast", "--no-sync", "--write-recovery-conf"]))
        .await;
        let standby = Self::start(dir).await;
        self.run("ALTER SYSTEM SET synchronous_standby_names = '*'").await;
        self.run("ALTER SYSTEM SET synchronous_commit = on").await;
        self.run("SELECT pg_reload_conf()").await;
        let mut conn = self.connect().await;
        until("the standby is synchronous", async || {
            let state = "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE sync_state = 'sync')
                         AND current_setting('synchronous_commit') = 'on'";
            sqlx::query_scalar(state).fetch_one(&mut conn).await.unwrap()
        })
        .await;
        standby
    }

    /// Promotes this standby to a primary.
    pub async fn promote(&self) {
        self.run("SELECT pg_promote()").await;
    }

    /// Kills it with `SIGKILL`; all of its processes end.
    pub async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    pub async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url()).await.unwrap()
    }

    pub async fn run(&self, sql: &'static str) {
        sqlx::raw_sql(sql).execute(&mut self.connect().await).await.unwrap();
    }

    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres?sslmode=prefer", self.port)
    }

    /// The URL of its Unix socket, which nobody else can take while it is down.
    pub fn socket_url(&self) -> String {
        let dir = self.dir.path().to_str().unwrap().replace('/', "%2F");
        format!("postgres://postgres@localhost:{}/postgres?host={dir}", self.port)
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }
}

async fn run(command: &mut Command) {
    let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// An address, and what is behind it at the moment.
pub struct Address {
    address: SocketAddr,
    behind: watch::Sender<Behind>,
    task: JoinHandle<()>,
}

#[derive(Clone, Copy, Debug)]
struct Behind {
    port: u16,
    /// How often the connections through it were left hanging: neither end hears from the other again, not even that it
    /// has closed.
    cuts: u32,
}

impl Address {
    pub async fn of(server: &Server) -> Self {
        Self::at(Ipv4Addr::LOCALHOST.into(), server).await.unwrap()
    }

    /// On this address of the machine, if the machine has it.
    pub async fn at(ip: IpAddr, server: &Server) -> io::Result<Self> {
        let listener = TcpListener::bind((ip, 0)).await?;
        let address = listener.local_addr()?;
        let behind = watch::Sender::new(Behind { port: server.port, cuts: 0 });
        let watched = behind.subscribe();
        let task = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                tokio::spawn(pass(client, watched.clone()));
            }
        });
        Ok(Self { address, behind, task })
    }

    /// From now on new connections go to `server`.
    pub fn turn_to(&self, server: &Server) {
        self.turn_to_port(server.port);
    }

    /// From now on new connections go to this port of 127.0.0.1. If nobody listens there, they are accepted and closed.
    pub fn turn_to_port(&self, port: u16) {
        self.behind.send_modify(|behind| behind.port = port);
    }

    /// Leaves all connections hanging, as if the other machine had lost its power.
    pub fn cut(&self) {
        self.behind.send_modify(|behind| behind.cuts += 1);
    }

    pub fn url(&self) -> String {
        format!("postgres://postgres@{}/postgres", self.address)
    }
}

impl Drop for Address {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(mut client: TcpStream, mut behind: watch::Receiver<Behind>) {
    let began = *behind.borrow();
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", began.port)).await else { return };
    let is_cut = async { behind.wait_for(|now| now.cuts != began.cuts).await.is_ok() };
    let is_cut = tokio::select! {
        _ = copy_bidirectional(&mut client, &mut server) => false,
        is_cut = is_cut => is_cut,
    };
    if is_cut {
        std::future::pending::<()>().await;
    }
}
