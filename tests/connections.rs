//! Connections to the database: there are no more of them than documented, they have the documented limits, and with
//! `verify-full` they are encrypted to the right server or not made at all.

use std::{
    fs,
    net::Ipv6Addr,
    pin::pin,
    task::{Context, Waker},
    time::{Duration, Instant},
};

use gatepass::store::{self, Source, imports};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::{task::JoinSet, time::sleep};

use crate::{
    app::{App, KEY, PASSWORD, database},
    not_tested::cannot_be_tested,
    postgres::{Address, Server, directory, openssl, self_signed, write},
    process::{Home, Process, Signal, allowed, until},
};

/// What docs/database.md promises of a replica with the default settings, and of one that also has key pairs.
const OF_A_REPLICA: i64 = 8;
const WITH_KEY_PAIRS: i64 = 9;

async fn register(service: &Process, username: &str) {
    let user = json!({
        "username": username, "email": format!("{username}@example.com"), "password": PASSWORD,
    });
    assert_eq!(service.post("/users", &user).await.0, 201);
}

/// Sends `size` logins at once, each followed by a renewal.
async fn crowd(service: &Process, size: usize) {
    let mut logins = JoinSet::new();
    for _ in 0..size {
        let (login, renewal) = (service.url("/users/login"), service.url("/tokens/renew_access"));
        logins.spawn(async move {
            let http = reqwest::Client::new();
            let body = json!({ "username": "alice", "password": PASSWORD });
            let answer = http.post(login).json(&body).send().await.unwrap();
            assert_eq!(answer.status(), 200);
            let tokens: serde_json::Value = answer.json().await.unwrap();
            let body = json!({ "refresh_token": tokens["refresh_token"] });
            assert_eq!(http.post(renewal).json(&body).send().await.unwrap().status(), 200);
        });
    }
    logins.join_all().await;
}

#[tokio::test]
async fn a_replica_opens_no_more_connections_than_documented_and_twelve_fit() {
    for (settings, at_most) in
        [(&[][..], OF_A_REPLICA), (&[("TOKEN_FORMAT_ACCEPTED", "v4.public")], WITH_KEY_PAIRS)]
    {
        let most = most_connections(settings).await;
        println!("connections: a replica had {most}");
        assert!((5..=at_most).contains(&most), "{most}");
    }
    // A Postgres with 100 connections reserves three of them for superusers.
    assert_eq!(((100 - 3) / OF_A_REPLICA, (100 - 3) / WITH_KEY_PAIRS), (12, 10));
}

/// How many connections a replica has at most, from start to end.
async fn most_connections(settings: &[(&str, &str)]) -> i64 {
    let url = database().await;
    let mut witness = PgConnection::connect(&url).await.unwrap();
    let watching = tokio::spawn(async move {
        let mut most = 0;
        let count = "SELECT count(*) FROM pg_stat_activity
                     WHERE datname = current_database() AND application_name = 'gatepass'";
        loop {
            let now: i64 = sqlx::query_scalar(count).fetch_one(&mut witness).await.unwrap();
            most = most.max(now);
            // The service has stopped.
            if most > 2 && now == 0 {
                return most;
            }
            sleep(Duration::from_millis(2)).await;
        }
    });
    let home = Home::new();
    let settings = [settings, &[("DB_SOURCE", &*url), ("TOKEN_SYMMETRIC_KEY", KEY)]].concat();
    let service = home.serve(&settings).await;
    register(&service, "alice").await;
    crowd(&service, 60).await;
    service.stop(Signal::TERM).await.expect(0);
    watching.await.unwrap()
}

/// Each has a connection of its own to be read over.
#[tokio::test]
async fn somebody_who_locks_the_signing_keys_does_not_hold_up_a_revocation() {
    let (home, url) = (Home::new(), database().await);
    let settings =
        [("DB_SOURCE", url.as_str()), ("TOKEN_SYMMETRIC_KEY", KEY), ("TOKEN_FORMAT_ACCEPTED", "v4.public")];
    let (one, other) = (home.serve(&settings).await, home.serve(&settings).await);
    register(&one, "alice").await;
    let (_, login) = one.post("/users/login", &json!({ "username": "alice", "password": PASSWORD })).await;
    let token = login["access_token"].as_str().unwrap();
    assert_eq!(other.get_as(token, "/users/me").await.0, 200);
    let mut psql = PgConnection::connect(&url).await.unwrap();
    let mut lock = psql.begin().await.unwrap();
    sqlx::query("LOCK TABLE signing_keys IN ACCESS EXCLUSIVE MODE").execute(&mut *lock).await.unwrap();
    let waiting = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
    until("both wait for the keys", async || {
        sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut *lock).await.unwrap() >= 2
    })
    .await;
    let began = Instant::now();
    let logout = reqwest::Client::new().post(one.url("/users/logout")).bearer_auth(token);
    assert_eq!(logout.send().await.unwrap().status(), 204);
    assert_eq!(one.get_as(token, "/users/me").await.0, 401);
    until("the other replica knows", async || other.get_as(token, "/users/me").await.0 == 401).await;
    assert!(began.elapsed() < allowed(Duration::from_secs(1)), "{:?}", began.elapsed());
    lock.rollback().await.unwrap();
}

#[tokio::test]
async fn no_request_holds_one_connection_while_waiting_for_another() {
    let (home, url) = (Home::new(), database().await);
    let environment =
        [("DB_SOURCE", url.as_str()), ("DB_MAX_CONNECTIONS", "1"), ("TOKEN_SYMMETRIC_KEY", KEY)];
    let service = home.serve(&environment).await;
    register(&service, "alice").await;
    crowd(&service, 20).await;
    service.stop(Signal::TERM).await.expect(0);
}

#[tokio::test]
async fn a_connection_has_limits_and_a_name() {
    let url = database().await;
    let show = async |url: &str, setting: &str| -> String {
        let pool = Source::new(&url.to_owned().into()).unwrap().pool(1);
        let mut conn = pool.acquire().await.unwrap();
        sqlx::query_scalar("SELECT current_setting($1)").bind(setting).fetch_one(&mut *conn).await.unwrap()
    };
    for (setting, value) in [
        ("statement_timeout", "8s"),
        ("idle_in_transaction_session_timeout", "15s"),
        ("application_name", "gatepass"),
    ] {
        assert_eq!(show(&url, setting).await, value, "{setting}");
    }
    let named = format!("{url}&application_name=blue");
    assert_eq!(show(&named, "application_name").await, "blue");
}

/// An import or an export of thousands of users may be slow, and an export may leave its connection idle meanwhile. But
/// an import that holds locks on users and has stalled is not waited for.
#[tokio::test]
async fn imports_and_exports_may_be_slow_but_a_stalled_import_is_cut_off() {
    let pool = Source::new(&database().await.into()).unwrap().pool(1);
    let mut conn = pool.acquire().await.unwrap();
    let limits =
        "SELECT current_setting('statement_timeout'), current_setting('idle_in_transaction_session_timeout')";
    let mut transaction = imports::begin(&mut conn).await.unwrap();
    let found: (String, String) = sqlx::query_as(limits).fetch_one(&mut *transaction).await.unwrap();
    assert_eq!(found, ("0".to_owned(), "15s".to_owned()));
    transaction.commit().await.unwrap();
    let mut transaction = store::snapshot(&mut conn).await.unwrap();
    let found: (String, String) = sqlx::query_as(limits).fetch_one(&mut *transaction).await.unwrap();
    assert_eq!(found, ("0".to_owned(), "0".to_owned()));
    transaction.commit().await.unwrap();
    let found: (String, String) = sqlx::query_as(limits).fetch_one(&mut *conn).await.unwrap();
    assert_eq!(found, ("8s".to_owned(), "15s".to_owned()));
}

/// For a moment after its use, a connection is lent again without a check; in that moment these are cut.
#[tokio::test]
async fn no_login_or_renewal_fails_because_its_connection_was_cut() {
    let app = App::new().await;
    app.register("alice").await;
    let cut = async || {
        let cut = "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity
                   WHERE datname = current_database() AND usename = 'gatepass_app'";
        let count: i64 = sqlx::query_scalar(cut).fetch_one(&app.db).await.unwrap();
        assert!(count > 0);
    };
    for _ in 0..3 {
        cut().await;
        let login = app.login("alice").await;
        cut().await;
        app.renew(&login).await.expect(200);
    }
}

/// A statement that may be retried waits for the pool's timeout once in all, not once per attempt: two timeouts are all
/// the time that a request has.
#[tokio::test]
async fn a_request_waits_for_an_absent_server_only_once() {
    /// What docs/database.md promises.
    const PATIENCE: Duration = Duration::from_secs(5);
    let mut server = Server::new("", |_| ()).await;
    let home = Home::new();
    let service = home.serve(&[("DB_SOURCE", &server.url()), ("TOKEN_SYMMETRIC_KEY", KEY)]).await;
    register(&service, "alice").await;
    let credentials = json!({ "username": "alice", "password": PASSWORD });
    let (status, login) = service.post("/users/login", &credentials).await;
    assert_eq!(status, 200, "{login}");
    let renewal = json!({ "refresh_token": login["refresh_token"] });

    server.kill().await;
    let stories = [("/users/login", credentials), ("/tokens/renew_access", renewal)];
    let mut requests = JoinSet::new();
    // Two of each, since one may be lent a connection that was alive a moment ago; and no more than there are
    // connections to open.
    for (path, body) in stories.clone().into_iter().chain(stories) {
        let request = reqwest::Client::new().post(service.url(path)).json(&body).send();
        let began = Instant::now();
        requests.spawn(async move {
            let answer = request.await.unwrap();
            let (status, elapsed) = (answer.status().as_u16(), began.elapsed());
            (path, status, answer.json::<serde_json::Value>().await.unwrap(), elapsed)
        });
    }
    for (path, status, problem, elapsed) in requests.join_all().await {
        assert_eq!((status, &problem["code"]), (503, &json!("database_unavailable")), "{path}: {problem}");
        assert!((PATIENCE..PATIENCE + Duration::from_secs(3)).contains(&elapsed), "{path}: {elapsed:?}");
    }
    let log = service.stop(Signal::TERM).await.stderr;
    assert!(log.contains("Connection refused"), "{log}");
}

#[tokio::test]
async fn abandoned_work_is_over_before_its_connection_is_reused() {
    let url = database().await;
    let pool = Source::new(&url.clone().into()).unwrap().pool(1);
    let mut conn = pool.acquire().await.unwrap();
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *conn).await.unwrap();
    let mut other = PgConnection::connect(&url).await.unwrap();
    let mut lock = other.begin().await.unwrap();
    let slow = "SELECT pg_advisory_xact_lock(1)";
    sqlx::query(slow).execute(&mut *lock).await.unwrap();
    let mut witness = PgConnection::connect(&url).await.unwrap();
    let waits = until("it waits for the lock", async || {
        let waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = $1 AND NOT granted)";
        sqlx::query_scalar(waits).bind(pid).fetch_one(&mut witness).await.unwrap()
    });
    tokio::select! {
        done = sqlx::query(slow).execute(&mut *conn) => panic!("{done:?}"),
        () = waits => {}
    }
    drop(conn);
    lock.rollback().await.unwrap();

    let mut conn = pool.acquire().await.unwrap();
    let mut transaction = conn.begin().await.unwrap();
    sqlx::query("CREATE TABLE given_up ()").execute(&mut *transaction).await.unwrap();
    drop(transaction);
    drop(conn);

    let mut conn = pool.acquire().await.unwrap();
    let found: (i32, bool) = sqlx::query_as("SELECT pg_backend_pid(), to_regclass('given_up') IS NOT NULL")
        .fetch_one(&mut *conn)
        .await
        .unwrap();
    assert_eq!(found, (pid, false));
    drop(conn);
    pool.close().await;
    assert!(matches!(pool.acquire().await, Err(store::Error::Unavailable(sqlx::Error::PoolClosed))));
}

/// Otherwise the connection's next user would work inside that transaction: told of success, and undone later.
#[tokio::test]
async fn a_transaction_abandoned_while_it_begins_is_ended() {
    let url = database().await;
    let pool = Source::new(&url.clone().into()).unwrap().pool(1);
    let mut conn = pool.acquire().await.unwrap();
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *conn).await.unwrap();
    {
        // Polled once: by then the server has hardly heard of it.
        let begin = pin!(conn.begin());
        drop(begin.poll(&mut Context::from_waker(Waker::noop())));
    }
    drop(conn);

    let mut conn = pool.acquire().await.unwrap();
    sqlx::query("CREATE TABLE made ()").execute(&mut *conn).await.unwrap();
    let same: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *conn).await.unwrap();
    assert_eq!(same, pid);
    let mut another = PgConnection::connect(&url).await.unwrap();
    let is_there: bool =
        sqlx::query_scalar("SELECT to_regclass('made') IS NOT NULL").fetch_one(&mut another).await.unwrap();
    assert!(is_there);
}

#[tokio::test]
async fn a_standby_is_not_used() {
    let primary = Server::new("", |_| ()).await;
    let standby = primary.standby().await;
    let pool = Source::new(&standby.url().into()).unwrap().pool(1);
    pool.acquire().await.unwrap_err();
    let doctor = Home::new().gatepass(&["doctor"]).env("DB_SOURCE", &standby.url()).run().await;
    assert!(doctor.code == Some(1) && doctor.stdout.contains("the server is a standby"), "{doctor:?}");
    standby.promote().await;
    pool.acquire().await.unwrap();
}

/// This is a setting of the server, which also affects connections that are already open.
#[tokio::test]
async fn a_read_only_database_still_serves_reads() {
    let server = Server::new("", |_| ()).await;
    let home = Home::new();
    let service = home.serve(&[("DB_SOURCE", &server.url()), ("TOKEN_SYMMETRIC_KEY", KEY)]).await;
    register(&service, "alice").await;
    let credentials = json!({ "username": "alice", "password": PASSWORD });
    let (_, login) = service.post("/users/login", &credentials).await;
    let me = async || service.get_as(login["access_token"].as_str().unwrap(), "/users/me").await.0;

    server.run("ALTER SYSTEM SET default_transaction_read_only = on").await;
    server.run("SELECT pg_reload_conf()").await;
    until("it is not ready", async || service.get("/readyz").await.0 == 503).await;
    assert_eq!(service.get("/readyz").await.1["reasons"], json!(["database: takes no writes"]));
    let (status, problem) = service.post("/users/login", &credentials).await;
    assert_eq!(
        (status, &problem["code"], me().await),
        (503, &json!("database_unavailable"), 200),
        "{problem}"
    );
    // The database is there, and the problem does not say otherwise.
    assert!(!problem["detail"].as_str().unwrap().contains("reach"), "{problem}");

    server.run("ALTER SYSTEM RESET default_transaction_read_only").await;
    server.run("SELECT pg_reload_conf()").await;
    until("it is ready", async || service.get("/readyz").await.0 == 200).await;
    assert_eq!((service.post("/users/login", &credentials).await.0, me().await), (200, 200));
    service.stop(Signal::TERM).await.expect(0);
}

/// No replica has to be restarted, whichever of the two comes first: the password in the file or the one in Postgres.
#[tokio::test]
async fn a_password_that_was_replaced_is_read_again() {
    let rules =
        "local all all trust\nhost all service 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n";
    let server = Server::new("", |data| write(&data.join("pg_hba.conf"), rules)).await;
    let url = |password: &str| format!("postgres://service:{password}@127.0.0.1:{}/postgres", server.port);
    let replace = async |password: &str| {
        let alter = format!("ALTER ROLE service PASSWORD '{password}'");
        sqlx::raw_sql(AssertSqlSafe(alter)).execute(&mut server.connect().await).await.unwrap();
        let sessions =
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'service'";
        server.run(sessions).await;
    };
    server.run("CREATE ROLE service LOGIN SUPERUSER PASSWORD 'one'").await;
    let home = Home::new();
    home.write("db", &url("one"));
    let mut service = home.serve(&[("DB_SOURCE_FILE", "db"), ("TOKEN_SYMMETRIC_KEY", KEY)]).await;
    register(&service, "alice").await;

    // Nobody notices when the file has it already.
    home.write("db", &url("two"));
    replace("two").await;
    let credentials = json!({ "username": "alice", "password": PASSWORD });
    assert_eq!(service.post("/users/login", &credentials).await.0, 200);
    until("it is ready", async || service.get("/readyz").await.0 == 200).await;
    service.logged("DB_SOURCE has another password").await;

    replace("three").await;
    until("the log has the reason", async || {
        service.get("/readyz").await.0 == 503
            && service
                .stderr()
                .lines()
                .any(|line| line.contains("not ready") && line.contains("password authentication failed"))
    })
    .await;
    // It does not move to another database by itself, and says so.
    home.write("db", &url("four").replace("/postgres", "/elsewhere"));
    service.logged("DB_SOURCE leads elsewhere now").await;
    home.write("db", &url("three"));
    until("it is ready again", async || service.get("/readyz").await.0 == 200).await;
    assert_eq!(service.post("/users/login", &credentials).await.0, 200);
    let log = service.stop(Signal::TERM).await.expect(0).stderr;
    assert_eq!(log.matches("DB_SOURCE has another password").count(), 2, "{log}");
    let place = format!("service@127.0.0.1:{}", server.port);
    let told = format!("from=\"{place}/postgres\" to=\"{place}/elsewhere\"");
    assert_eq!(log.matches(&told).count(), 1, "{log}");
    assert!(!["three", "four"].iter().any(|password| log.contains(password)), "{log}");
}

#[tokio::test]
async fn verify_full_takes_the_right_server_and_no_other() {
    let dir = directory();
    for name in ["ours", "other"] {
        self_signed(dir.path(), name).await;
    }
    fs::write(dir.path().join("names"), "subjectAltName = DNS:localhost, IP:::1\n").unwrap();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(dir.path(), &format!("req {key} -keyout server.key -out server.csr -subj /CN=localhost")).await;
    let sign = "x509 -req -in server.csr -CA ours.crt -CAkey ours.key -days 2 -out server.crt -extfile names";
    openssl(dir.path(), sign).await;
    let server = Server::encrypted(dir.path()).await;

    let home = Home::new();
    let roots = |name: &str| fs::read_to_string(dir.path().join(format!("{name}.crt"))).unwrap();
    let (ours, other) = (home.write("ours.pem", &roots("ours")), home.write("other.pem", &roots("other")));
    let nowhere = home.path("nowhere.pem").to_str().unwrap().to_owned();
    let url = |host: &str, root: &str| {
        format!("postgres://postgres@{host}:{}/postgres?sslmode=verify-full&sslrootcert={root}", server.port)
    };

    let migrate = |url: &str| {
        home.gatepass(&["migrate", "up"]).envs(&[("DB_SOURCE", url), ("TOKEN_SYMMETRIC_KEY", KEY)])
    };
    // The wrong authority, the wrong name, a file that is not there.
    for (host, root) in [("localhost", &other), ("127.0.0.1", &ours)] {
        migrate(&url(host, root)).run().await.fails(1, &["TLS", "certificate", "sslrootcert"]);
    }
    migrate(&url("localhost", &nowhere)).run().await.fails(1, &["DB_SOURCE", "nowhere.pem", "No such file"]);

    // An IPv6 address is verified like any name, where the machine has one.
    match Address::at(Ipv6Addr::LOCALHOST.into(), &server).await {
        Ok(address) => {
            let url = format!("{}?sslmode=verify-full&sslrootcert={ours}", address.url());
            migrate(&url).run().await.expect(0);
        }
        Err(error) => {
            cannot_be_tested("a database at [::1]", &format!("this machine has none: {error}"));
        }
    }

    let right = url("localhost", &ours);
    let service = home.serve(&[("DB_SOURCE", &right), ("TOKEN_SYMMETRIC_KEY", KEY)]).await;
    register(&service, "alice").await;
    let mut witness = server.connect().await;
    let plain = "SELECT count(*) FILTER (WHERE NOT ssl) AS plain, count(*) FILTER (WHERE ssl) AS encrypted
                 FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'gatepass'";
    until("those it keeps for itself are there, too", async || {
        let (plain, encrypted): (i64, i64) = sqlx::query_as(plain).fetch_one(&mut witness).await.unwrap();
        assert_eq!(plain, 0);
        encrypted >= 3
    })
    .await;
    service.stop(Signal::TERM).await.expect(0);

    // A server, or someone in its place, that wants to talk without TLS.
    server.run("ALTER SYSTEM SET ssl = off").await;
    server.run("SELECT pg_reload_conf()").await;
    until("it has no TLS", async || {
        let conn = PgConnection::connect(&format!("{}&sslmode=require", server.url())).await;
        conn.is_err()
    })
    .await;
    migrate(&right).run().await.fails(1, &["does not support TLS", "sslmode"]);
}
