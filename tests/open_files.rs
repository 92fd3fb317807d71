//! Clients that send one request and then stay silent: however few files the system lets the service open, other
//! clients are still answered, and so are operators.

use std::{path::Path, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    app::{KEY, database},
    process::{Home, Invocation, Port, Process, QUICK, Signal},
};

/// Less than the service waits for any client.
const AT_ONCE: Duration = Duration::from_secs(8);
const REQUEST: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";

/// `gatepass ARGS…` with these limits on open files.
fn limited(home: &Home, soft: u32, hard: u32, args: &[&str]) -> Invocation {
    let script = format!(r#"ulimit -n {hard} && ulimit -Sn {soft} && exec "$0" "$@""#);
    let shell = home.program(Path::new("sh")).arg("-c").arg(&script).arg(env!("CARGO_BIN_EXE_gatepass"));
    args.iter().fold(shell, |shell, arg| shell.arg(arg)).env("TOKEN_SYMMETRIC_KEY", KEY)
}

struct Service {
    process: Process,
    ops: Port,
}

impl Service {
    async fn start(home: &Home, soft: u32, hard: u32, environment: &[(&str, &str)]) -> Self {
        let ops = Port::reserve();
        let address = ops.address().to_string();
        let addresses = [("HTTP_SERVER_ADDRESS", "127.0.0.1:0"), ("OPS_SERVER_ADDRESS", &*address)];
        let service = limited(home, soft, hard, &["serve"]).envs(&QUICK).envs(&addresses).envs(environment);
        Self { process: service.start().serving().await, ops }
    }

    /// `size` clients that each send a request at once, of which the first `served` have their answer.
    async fn crowd(&self, size: usize, served: usize) -> Vec<TcpStream> {
        let mut crowd = Vec::new();
        for _ in 0..size {
            let mut client = TcpStream::connect(self.process.address()).await.unwrap();
            client.write_all(REQUEST).await.unwrap();
            crowd.push(client);
        }
        for client in &mut crowd[..served] {
            let mut status = [0; 12];
            timeout(AT_ONCE, client.read_exact(&mut status)).await.expect("no answer").unwrap();
            assert_eq!(&status, b"HTTP/1.1 200");
        }
        crowd
    }

    async fn metric(&self, name: &str) -> u64 {
        let url = format!("http://{}/metrics", self.ops.address());
        let scrape = async { reqwest::get(url).await.unwrap().text().await.unwrap() };
        let scrape = timeout(AT_ONCE, scrape).await.expect("operators are not answered");
        let line = scrape.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }
}

#[tokio::test]
async fn the_file_limit_is_raised_but_embedded_postgres_keeps_the_old_one() {
    let home = Home::new();
    let service = Service::start(&home, 128, 1024, &[]).await;
    let _crowd = service.crowd(200, 200).await;
    assert_eq!(timeout(AT_ONCE, service.process.get("/readyz")).await.unwrap().0, 200);
    let log = service.process.stderr();
    assert!(log.contains("823 connections at most") && log.contains("hard limit to 10201"), "{log}");
    #[cfg(target_os = "linux")]
    {
        use std::fs;

        assert_eq!(service.metric("process_max_fds").await, 1024);
        assert_eq!(service.metric(r#"gatepass_http_places_max{kind="connection"}"#).await, 823);
        assert!(service.metric(r#"gatepass_http_places{kind="connection"}"#).await >= 200);
        let postmaster = fs::read_to_string(home.path(".gatepass/postgres/postmaster.pid")).unwrap();
        let pid = postmaster.lines().next().unwrap();
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        assert_eq!(files.split_whitespace().collect::<Vec<_>>()[3..5], ["128", "1024"], "{files}");
    }
    service.process.stop(Signal::TERM).await.expect(0);
}

#[tokio::test]
async fn idle_clients_make_room_before_file_descriptors_run_out() {
    let (home, url) = (Home::new(), database().await);
    let service = Service::start(&home, 256, 256, &[("DB_SOURCE", &url)]).await;
    let _crowd = service.crowd(300, 128).await;
    #[cfg(target_os = "linux")]
    assert!(service.metric("process_open_fds").await < 200);
    // This client comes after all of them, and is answered as soon as the service stops waiting for them.
    assert_eq!(service.process.get("/healthz").await.0, 200);
    let log = service.process.stop(Signal::TERM).await.expect(0).stderr;
    assert!(!log.contains("no connection could be accepted"), "{log}");
}

#[tokio::test]
async fn doctor_says_how_many_connections_fit() {
    let (home, url) = (Home::new(), database().await);
    let ended = limited(&home, 128, 1024, &["doctor"]).env("DB_SOURCE", &url).run().await.expect(0);
    let line = ended.stdout.lines().find(|line| line.contains("  files  ")).unwrap();
    assert!(line.starts_with("warning") && line.contains("823 connections at most"), "{line}");
    assert!(line.contains("LimitNOFILE="), "{line}");
}
