//! TLS in the service: which versions and protocols it speaks and which it does not, what it does with clients that say
//! something else or nothing, and when it takes up a new certificate while it serves, and when not.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::body::Body;
use gatepass::{
    clock::Clock,
    http::{Limits, Phase, Places, server},
    metrics::{Exposition, Metrics, Observation},
    tls::{Files, Tls},
};
use http_body_util::BodyExt;
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::Command,
    sync::watch,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, ProtocolVersion, RootCertStore, SupportedProtocolVersion,
        crypto::aws_lc_rs,
        version::{TLS12, TLS13},
    },
};

use crate::{
    app::{App, KEY, START, database},
    certificate::{Authority, Issued, pem},
    process::{Home, Process, Signal, until},
};

/// Longer than anything here takes, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(8);

/// Where a certificate and its key are kept.
struct Place(TempDir);

impl Place {
    fn with(issued: &Issued) -> Self {
        let place = Self(TempDir::with_prefix("gatepass-tls-").unwrap());
        place.put(&issued.certificate_pem(), &issued.key_pem());
        place
    }

    fn put(&self, certificate: &str, key: &str) {
        fs::write(self.path("tls.crt"), certificate).unwrap();
        fs::write(self.path("tls.key"), key).unwrap();
        fs::set_permissions(self.path("tls.key"), fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn files(&self) -> Files {
        Files { certificate: self.path("tls.crt").into(), key: self.path("tls.key").into() }
    }

    /// As the settings name it.
    fn settings(&self) -> [(&'static str, String); 2] {
        [("TLS_CERT_FILE", self.path("tls.crt")), ("TLS_KEY_FILE", self.path("tls.key"))]
    }
}

/// The service with TLS, listening on a socket.
struct Served {
    address: SocketAddr,
    _phase: watch::Sender<Phase>,
}

async fn serve(app: &App, tls: &Tls, limits: Limits) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (phase, says) = watch::channel(Phase::Serving);
    tokio::spawn(server::serve(listener, app.router.clone(), Some(tls.clone()), Places::new(limits), says));
    Served { address, _phase: phase }
}

/// A client with these versions and protocols that trusts one authority.
fn client(
    authority: &Authority,
    versions: &[&'static SupportedProtocolVersion],
    alpn: &[&str],
) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate.clone().into()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

async fn connect(client: &TlsConnector, address: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    client.connect("localhost".try_into().unwrap(), stream).await
}

/// Sends a request on a new connection, over the protocol that was negotiated.
async fn get(client: &TlsConnector, address: SocketAddr, path: &str) -> io::Result<Response<Incoming>> {
    let stream = connect(client, address).await?;
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let (stream, request) = (TokioIo::new(stream), Request::get(format!("https://localhost{path}")));
    let request = request.header("host", "localhost").body(Body::empty()).unwrap();
    let answer = if is_http2 {
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream)
            .await
            .map_err(io::Error::other)?;
        tokio::spawn(connection);
        sender.send_request(request).await
    } else {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(stream).await.map_err(io::Error::other)?;
        tokio::spawn(connection);
        sender.send_request(request).await
    };
    answer.map_err(io::Error::other)
}

/// The certificate that the server presents.
async fn shown(client: &TlsConnector, address: SocketAddr) -> Vec<u8> {
    let stream = connect(client, address).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

fn now() -> OffsetDateTime {
    Clock::system().now()
}

#[tokio::test]
async fn both_versions_and_both_protocols_are_spoken() {
    let app = App::new().await;
    let authority = Authority::new("gatepass test", now());
    let place = Place::with(&authority.issue_at(now()));
    let tls = Tls::open(place.files(), now()).unwrap();
    let served = serve(&app, &tls, Limits::default()).await;
    for (version, is) in [(&TLS12, ProtocolVersion::TLSv1_2), (&TLS13, ProtocolVersion::TLSv1_3)] {
        for (offered, agreed) in
            [(&["h2", "http/1.1"][..], Some("h2")), (&["http/1.1"], Some("http/1.1")), (&[], None)]
        {
            let client = client(&authority, &[version], offered);
            let stream = connect(&client, served.address).await.unwrap();
            let session = stream.get_ref().1;
            assert_eq!(session.protocol_version(), Some(is));
            assert_eq!(session.alpn_protocol(), agreed.map(str::as_bytes));
            let answer = get(&client, served.address, "/users/me").await.unwrap();
            assert_eq!(answer.status().as_u16(), 401, "{is:?} {agreed:?}");
            assert_eq!(answer.headers()["strict-transport-security"], "max-age=63072000");
            assert!(answer.headers().contains_key("x-request-id"));
            assert!(!answer.headers().contains_key("connection"));
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            assert!(String::from_utf8_lossy(&body).contains("missing_token"));
        }
    }
    // A protocol that is not spoken here, and a client that trusts another authority.
    let refused = connect(&client(&authority, &[&TLS13], &["h3"]), served.address).await.unwrap_err();
    assert!(refused.to_string().contains("NoApplicationProtocol"), "{refused}");
    let stranger = client(&Authority::new("somebody else", now()), &[&TLS13], &[]);
    connect(&stranger, served.address).await.unwrap_err();
    get(&client(&authority, &[&TLS13], &[]), served.address, "/healthz").await.unwrap();

    // Without TLS there is no HSTS.
    let answer = app.get("/healthz").send().await;
    assert_eq!(answer.header("strict-transport-security"), "");
}

/// What arrives until the other side closes, and how long that took.
async fn rest(mut stream: TcpStream) -> (Vec<u8>, Duration) {
    let began = Instant::now();
    let mut bytes = Vec::new();
    let closed = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("the connection stays open");
    if let Err(error) = closed {
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
    (bytes, began.elapsed())
}

/// A ClientHello that offers nothing later than this version: 3.1 is TLS 1.0, 3.2 is TLS 1.1, 3.0 is SSL 3.
fn hello(minor: u8) -> Vec<u8> {
    let mut body = vec![3, minor];
    body.extend([7; 32]); // random
    body.push(0); // no session
    body.extend([0, 4, 0xc0, 0x0a, 0x00, 0x2f]); // ECDHE-ECDSA-AES256-SHA, RSA-AES128-SHA
    body.extend([1, 0]); // no compression
    body.extend([0, 8, 0, 13, 0, 4, 0, 2, 4, 3]); // signature_algorithms: ECDSA with SHA-256
    let handshake = [&[1, 0, 0, body.len() as u8], &body[..]].concat();
    [&[0x16, 3, 1, 0, handshake.len() as u8], &handshake[..]].concat()
}

#[tokio::test]
async fn older_tls_and_plain_text_are_refused_at_once() {
    let app = App::new().await;
    let authority = Authority::new("gatepass test", now());
    let place = Place::with(&authority.issue_at(now()));
    let tls = Tls::open(place.files(), now()).unwrap();
    let served = serve(&app, &tls, Limits::default()).await;
    let plain = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec();
    let no_alert = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    for (said, old) in [
        (hello(2), true),
        (hello(1), true),
        (hello(0), true),
        (plain, false),
        (no_alert, false),
        (vec![0; 64], false),
    ] {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        stream.write_all(&said).await.unwrap();
        let (answer, took) = rest(stream).await;
        assert!(took < Duration::from_secs(2), "{took:?}");
        // An alert at most; protocol_version (70) for clients that know only an older version.
        assert!(answer.is_empty() || (answer[0] == 0x15 && answer.len() == 7), "{answer:?}");
        assert!(!old || answer.last() == Some(&70), "{answer:?}");
    }
    get(&client(&authority, &[&TLS13], &["h2"]), served.address, "/healthz").await.unwrap();
}

#[tokio::test]
async fn a_client_silent_during_or_after_the_handshake_is_disconnected() {
    let app = App::new().await;
    let authority = Authority::new("gatepass test", now());
    let place = Place::with(&authority.issue_at(now()));
    let tls = Tls::open(place.files(), now()).unwrap();
    let limits = Limits { header_read: Duration::from_millis(300), connections: 4, ..Limits::default() };
    let served = serve(&app, &tls, limits).await;
    let mut silent = JoinSet::new();
    // More of them than there are places, so that the last are only accepted once the first are gone.
    for said in [&[][..], &[0x16], &hello(2)[..20], &hello(2)[..5], &[], &[0x16, 3], &[]] {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        stream.write_all(said).await.unwrap();
        silent.spawn(rest(stream));
    }
    let client = client(&authority, &[&TLS13], &["http/1.1"]);
    let answer = timeout(PATIENCE, get(&client, served.address, "/healthz")).await.unwrap().unwrap();
    assert_eq!(answer.status().as_u16(), 200);
    silent.join_all().await;
    // A complete handshake, and then nothing.
    let mut stream = connect(&client, served.address).await.unwrap();
    let mut byte = [0];
    let read = timeout(PATIENCE, stream.read(&mut byte)).await.expect("the connection stays open");
    assert_eq!(read.unwrap_or(0), 0);
}

/// The value of a metric without labels.
fn metric(metrics: &Metrics, name: &str) -> Option<i64> {
    let scrape = metrics.scrape(&Observation::default(), Exposition::OpenMetrics);
    let line = scrape.lines().find(|line| line.starts_with(name))?;
    Some(line.rsplit(' ').next().unwrap().parse().unwrap())
}

/// Looks as often as it takes to be sure.
fn look(tls: &Tls, now: OffsetDateTime, metrics: &Metrics) -> OffsetDateTime {
    for _ in 0..2 {
        tls.look(now, metrics);
    }
    tls.certificate().not_after
}

#[tokio::test]
async fn a_new_certificate_replaces_the_old_one_only_if_it_is_valid() {
    const EXPIRY: &str = "gatepass_tls_certificate_expiry_timestamp_seconds";
    const RELOAD: &str = "gatepass_tls_certificate_last_reload_successful";
    let authority = Authority::new("gatepass test", START);
    let days = |from: i64, to: i64| {
        authority.issue(START + time::Duration::days(from), START + time::Duration::days(to))
    };
    let first = days(-1, 30);
    let place = Place::with(&first);
    let metrics = Metrics::new();
    assert_eq!(metric(&metrics, EXPIRY), None, "nothing is said without TLS");
    let tls = Tls::open(place.files(), START).unwrap();
    let of_first = look(&tls, START, &metrics);
    assert_eq!(of_first.unix_timestamp(), (START + time::Duration::days(30)).unix_timestamp());
    assert_eq!(metric(&metrics, EXPIRY), Some(of_first.unix_timestamp()));
    assert_eq!(metric(&metrics, RELOAD), Some(1));

    // Half of the pair is written when the files are looked at.
    let second = days(-1, 60);
    place.put(&second.certificate_pem(), &first.key_pem());
    tls.look(START, &metrics);
    assert_eq!(metric(&metrics, RELOAD), Some(1));
    place.put(&second.certificate_pem(), &second.key_pem());
    tls.look(START, &metrics);
    assert_eq!(tls.certificate().not_after, of_first);
    tls.look(START, &metrics);
    let of_second = tls.certificate().not_after;
    assert_eq!(of_second.unix_timestamp(), (START + time::Duration::days(60)).unix_timestamp());
    assert_eq!(metric(&metrics, EXPIRY), Some(of_second.unix_timestamp()));

    let (expired, early, other) = (days(-60, -1), days(1, 90), days(-1, 90));
    let (certificate, key) = (other.certificate_pem(), other.key_pem());
    let encrypted = pem("ENCRYPTED PRIVATE KEY", b"...");
    for (bad_certificate, bad_key) in [
        (&*certificate, &*second.key_pem()),
        (&certificate, ""),
        ("", &key),
        (&certificate, &certificate),
        (&key, &key),
        (&certificate[..certificate.len() / 2], &key),
        (&certificate, &key[..key.len() / 2]),
        (&certificate, &encrypted),
        ("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n", &key),
        (&expired.certificate_pem(), &expired.key_pem()),
        (&early.certificate_pem(), &early.key_pem()),
    ] {
        place.put(bad_certificate, bad_key);
        assert_eq!(look(&tls, START, &metrics), of_second, "{bad_certificate}{bad_key}");
        assert_eq!(metric(&metrics, RELOAD), Some(0), "{bad_certificate}{bad_key}");
        assert_eq!(metric(&metrics, EXPIRY), Some(of_second.unix_timestamp()));
    }
    // The last one was not valid yet, and is good the next day.
    let tomorrow = START + time::Duration::days(1);
    assert_eq!(
        look(&tls, tomorrow, &metrics).unix_timestamp(),
        (START + time::Duration::days(90)).unix_timestamp()
    );
    assert_eq!(metric(&metrics, RELOAD), Some(1));
    let of_early = tls.certificate().not_after;

    // Gone and back, twice: the same fault is reported again.
    for _ in 0..2 {
        fs::remove_file(place.path("tls.key")).unwrap();
        assert_eq!(look(&tls, tomorrow, &metrics), of_early);
        assert_eq!(metric(&metrics, RELOAD), Some(0));
        place.put(&early.certificate_pem(), &early.key_pem());
        assert_eq!(look(&tls, tomorrow, &metrics), of_early);
        assert_eq!(metric(&metrics, RELOAD), Some(1));
    }
}

#[test]
fn invalid_tls_files_are_reported_by_setting_name() {
    let authority = Authority::new("gatepass test", START);
    let good = authority.issue_at(START);
    let (certificate, key) = (good.certificate_pem(), good.key_pem());
    let expired = authority.issue(START - time::Duration::days(90), START);
    let early = authority.issue(START + time::Duration::SECOND, START + time::Duration::days(90));
    let large = "#".repeat(70_000);
    let broken = format!("{certificate}-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n");
    for (certificate, key, setting, said) in [
        ("", &*key, "TLS_CERT_FILE", "the file is empty"),
        (&*certificate, "", "TLS_KEY_FILE", "the file is empty"),
        (&large, &key, "TLS_CERT_FILE", "larger than 64 KiB"),
        ("hello", &key, "TLS_CERT_FILE", "BEGIN CERTIFICATE"),
        (&key, &key, "TLS_CERT_FILE", "BEGIN CERTIFICATE"),
        (&certificate, &certificate, "TLS_KEY_FILE", "BEGIN PRIVATE KEY"),
        (&certificate[..99], &key, "TLS_CERT_FILE", "expected PEM"),
        (&broken, &key, "TLS_CERT_FILE", "certificate 2 "),
        (&certificate, &pem("ENCRYPTED PRIVATE KEY", b"..."), "TLS_KEY_FILE", "passphrase"),
        (&certificate, &pem("PRIVATE KEY", b"..."), "TLS_KEY_FILE", "expected an RSA"),
        (
            &certificate,
            &authority.issue_at(START).key_pem(),
            "TLS_KEY_FILE",
            "not the key of the certificate",
        ),
        (&expired.certificate_pem(), &expired.key_pem(), "TLS_CERT_FILE", "valid until 2026-01-02T03:04:05Z"),
        (
            &early.certificate_pem(),
            &early.key_pem(),
            "TLS_CERT_FILE",
            "not valid before 2026-01-02T03:04:06Z",
        ),
    ] {
        let place = Place::with(&good);
        place.put(certificate, key);
        let error = Tls::open(place.files(), START).unwrap_err().to_string();
        let file = if setting == "TLS_CERT_FILE" { "tls.crt" } else { "tls.key" };
        assert!(error.starts_with(&format!("{setting}={}: ", place.path(file))), "{error}");
        assert!(error.contains(said), "{said}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
    let place = Place::with(&good);
    fs::remove_file(place.path("tls.crt")).unwrap();
    let error = Tls::open(place.files(), START).unwrap_err().to_string();
    assert!(error.contains("TLS_CERT_FILE=") && error.contains("cannot be read: No such file"), "{error}");

    // The key itself where its path belongs.
    place.put(&certificate, &key);
    let files = Files { key: key.into(), ..place.files() };
    let error = Tls::open(files, START).unwrap_err().to_string();
    assert!(error.starts_with("TLS_KEY_FILE, which looks like the contents of a file"), "{error}");
}

#[tokio::test]
async fn certificates_are_replaced_under_load_and_no_request_fails() {
    let app = App::new().await;
    let authority = Authority::new("gatepass test", now());
    let place = Place::with(&authority.issue_at(now()));
    let metrics = Metrics::new();
    let tls = Tls::open(place.files(), now()).unwrap();
    let served = serve(&app, &tls, Limits::default()).await;
    let (address, done) = (served.address, Arc::new(AtomicBool::new(false)));
    let answered = Arc::new(AtomicUsize::new(0));

    let mut load = JoinSet::new();
    for i in 0..4 {
        let client = client(&authority, &[&TLS12, &TLS13], if i % 2 == 0 { &["h2"] } else { &["http/1.1"] });
        let (done, answered) = (done.clone(), answered.clone());
        load.spawn(async move {
            while !done.load(Ordering::Relaxed) {
                let answer = get(&client, address, "/healthz").await.unwrap();
                assert_eq!(answer.status().as_u16(), 200);
                answer.into_body().collect().await.unwrap();
                answered.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    // A connection that outlives all of the replacements.
    let plain = client(&authority, &[&TLS13], &[]);
    let stream = TokioIo::new(connect(&plain, address).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
    tokio::spawn(connection);

    for _ in 0..10 {
        let next = authority.issue_at(now());
        place.put(&next.certificate_pem(), &next.key_pem());
        look(&tls, now(), &metrics);
        // A new client, since one that was here before may resume its session with the former certificate.
        assert_eq!(shown(&client(&authority, &[&TLS13], &[]), address).await, next.certificate);
        let before = answered.load(Ordering::Relaxed);
        until("some more requests", async || answered.load(Ordering::Relaxed) >= before + 8).await;
        let request = Request::get("/healthz").header("host", "localhost").body(Body::empty()).unwrap();
        let answer = sender.send_request(request).await.unwrap();
        assert_eq!(answer.status().as_u16(), 200);
        answer.into_body().collect().await.unwrap();
    }
    done.store(true, Ordering::Relaxed);
    load.join_all().await;
}

async fn start(home: &Home, url: &str, place: &Place, more: &[(&str, &str)]) -> Process {
    let [certificate, key] = place.settings();
    let ours = [
        ("DB_SOURCE", url),
        ("TOKEN_SYMMETRIC_KEY", KEY),
        (certificate.0, &*certificate.1),
        (key.0, &*key.1),
    ];
    home.serve(&[&ours[..], more].concat()).await
}

/// Lays out a secret as Kubernetes does: the names are symlinks into `..data`, a symlink that is replaced.
fn lay_out(directory: &Path, version: &str, issued: &Issued) {
    fs::create_dir(directory.join(version)).unwrap();
    fs::write(directory.join(version).join("tls.crt"), issued.certificate_pem()).unwrap();
    fs::write(directory.join(version).join("tls.key"), issued.key_pem()).unwrap();
    symlink(version, directory.join("..data_tmp")).unwrap();
    fs::rename(directory.join("..data_tmp"), directory.join("..data")).unwrap();
    for name in ["tls.crt", "tls.key"] {
        if !directory.join(name).is_symlink() {
            symlink(Path::new("..data").join(name), directory.join(name)).unwrap();
        }
    }
}

#[tokio::test]
async fn the_process_serves_a_secret_that_kubernetes_replaces() {
    let (home, url) = (Home::new(), database().await);
    let authority = Authority::new("gatepass test", now());
    let (first, second) = (authority.issue_at(now()), authority.issue_at(now()));
    let place = Place(TempDir::with_prefix("gatepass-tls-").unwrap());
    lay_out(place.0.path(), "..2026_01", &first);
    let mut service = start(&home, &url, &place, &[]).await;
    assert!(service.stdout().contains("at https://"), "{}", service.stdout());
    // Kubernetes lets everybody read a secret's files unless told otherwise.
    service.logged("every user of this machine may read the key").await;
    let address: SocketAddr = service.address().parse().unwrap();
    let client = client(&authority, &[&TLS13], &["h2"]);
    assert_eq!(shown(&client, address).await, first.certificate);

    lay_out(place.0.path(), "..2026_02", &second);
    service.logged("a new certificate is served").await;
    assert_eq!(shown(&client, address).await, second.certificate);
    fs::write(place.0.path().join("..2026_02/tls.crt"), "").unwrap();
    service.logged("the former certificate stays").await;
    service.logged("TLS_CERT_FILE=").await;
    assert_eq!(shown(&client, address).await, second.certificate);

    // From the same machine, at an address that is in no certificate.
    let [certificate, key] = place.settings();
    let health = |args: &[&str]| {
        home.gatepass(&[&["health"], args].concat())
            .env("HTTP_SERVER_ADDRESS", &format!("0.0.0.0:{}", address.port()))
            .env("TLS_CERT_FILE", &certificate.1)
            .env("TLS_KEY_FILE", &key.1)
            .run()
    };
    assert_eq!(health(&[]).await.json()["status"], "ok");
    assert_eq!(health(&["--ready"]).await.json()["status"], "ready");
    let by_hand = service.address();
    assert_eq!(health(&["--address", &by_hand, "--tls"]).await.json()["status"], "ok");
    health(&["--address", &by_hand])
        .await
        .fails(1, &["does not answer", "does it speak TLS? then add --tls"]);
    let plain = home.gatepass(&["health"]).env("HTTP_SERVER_ADDRESS", &by_hand).run().await;
    plain.fails(1, &[&format!("does it speak TLS? then ask with --address {by_hand} --tls")]);
    health(&["--tls"]).await.fails(2, &["--address"]);
    service.stop(Signal::TERM).await.expect(0);
    health(&[]).await.fails(1, &["does not answer"]);
}

#[tokio::test]
async fn the_process_does_not_start_with_half_a_certificate() {
    let home = Home::new();
    let authority = Authority::new("gatepass test", now());
    let place = Place::with(&authority.issue_at(now()));
    let [certificate, key] = place.settings();
    let serve = |settings: &[(&str, &str)]| {
        home.gatepass(&["serve"]).env("HTTP_SERVER_ADDRESS", "127.0.0.1:0").envs(settings).run()
    };
    let half = serve(&[("TLS_CERT_FILE", &certificate.1)]).await;
    half.fails(1, &["TLS_KEY_FILE (not set): TLS_CERT_FILE is set; set both, or neither"]);
    let half = serve(&[("TLS_KEY_FILE", &key.1)]).await;
    half.fails(1, &["TLS_CERT_FILE (not set): TLS_KEY_FILE is set; set both, or neither"]);
    let mixed = serve(&[("TLS_CERT_FILE", &certificate.1), ("TLS_KEY_FILE", &certificate.1)]).await;
    mixed.fails(1, &["TLS_KEY_FILE=", "expected PEM, with a line `-----BEGIN PRIVATE KEY-----`"]);
    let missing = serve(&[("TLS_CERT_FILE", "certs/tls.crt"), ("TLS_KEY_FILE", "certs/tls.key")]).await;
    missing.fails(1, &["TLS_CERT_FILE=certs/tls.crt: cannot be read: No such file"]);
    let pasted =
        [("TLS_CERT_FILE", &*certificate.1), ("TLS_KEY_FILE", "-----BEGIN PRIVATE KEY-----\nhunter2")];
    let pasted = serve(&pasted).await.fails(1, &["TLS_KEY_FILE, which looks like the contents of a file"]);
    assert!(!pasted.stderr.contains("hunter2"), "{}", pasted.stderr);
    assert!(!home.path(".gatepass").exists(), "no database of our own was made first");
}

/// OpenSSL reads a certificate in its own way, and so does curl.
#[tokio::test]
async fn curl_speaks_both_versions_and_both_protocols() {
    let app = App::new().await;
    let authority = Authority::new("gatepass test", now());
    let place = Place::with(&authority.issue_at(now()));
    fs::write(place.path("ca.crt"), pem("CERTIFICATE", &authority.certificate)).unwrap();
    let tls = Tls::open(place.files(), now()).unwrap();
    let served = serve(&app, &tls, Limits::default()).await;
    for (version, protocol, shown) in [
        ("1.2", "--http1.1", "1.1"),
        ("1.2", "--http2", "2"),
        ("1.3", "--http1.1", "1.1"),
        ("1.3", "--http2", "2"),
    ] {
        let output = Command::new("curl")
            .args([
                "-sS",
                "--cacert",
                &place.path("ca.crt"),
                "--tls-max",
                version,
                &format!("--tlsv{version}"),
                protocol,
            ])
            .args(["-o", "/dev/null", "-w", "%{http_version} %{response_code}"])
            .arg(format!("https://localhost:{}/healthz", served.address.port()))
            .stdin(Stdio::null())
            .output()
            .await
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(said, format!("{shown} 200"), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
