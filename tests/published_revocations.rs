//! Services that verify tokens by themselves learn what is revoked, from whichever replica they ask: everything at
//! first, then each revocation as it happens. Nothing that commits late or between two pages is skipped; a cursor that
//! no longer means anything gets everything again; and clients that wait hold up nobody.

use std::{
    sync::Arc,
    time::{Duration as StdDuration, Instant},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rustix::process::{Pid, kill_process};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use time::Duration;
use tokio::{
    task::JoinHandle,
    time::{advance, pause, resume, sleep, timeout},
};

use crate::{
    app::{Answer, App, PASSWORD, set_up},
    postgres::Server,
    process::{Home, Signal, until},
};

type Client = (String, String);

/// Longer than anything that does not wait takes.
const SOON: StdDuration = StdDuration::from_secs(15);

async fn ask(app: &App, client: &Client, query: &str) -> Answer {
    app.get(&format!("/revocations{query}")).client(client).send().await
}

/// What was revoked since the answer `feed`, without waiting.
async fn since(app: &App, client: &Client, feed: &Value) -> Value {
    ask(app, client, &format!("?wait=0&since={}", text(&feed["next"]))).await.expect(200)
}

/// The first answer after `feed` with nothing new. What commits while an answer is made is in the next one once more.
async fn end(app: &App, client: &Client, mut feed: Value) -> Value {
    loop {
        feed = since(app, client, &feed).await;
        if feed["revocations"] == json!([]) {
            return feed;
        }
    }
}

/// What was revoked since the answer `feed`, once there is something.
fn wait(app: &Arc<App>, client: &Client, feed: &Value) -> JoinHandle<Answer> {
    wait_as(app, client, feed, "")
}

/// The same, with more parameters.
fn wait_as(app: &Arc<App>, client: &Client, feed: &Value, more: &str) -> JoinHandle<Answer> {
    let (app, client) = (app.clone(), client.clone());
    let query = format!("?since={}{more}", text(&feed["next"]));
    tokio::spawn(async move { ask(&app, &client, &query).await })
}

/// Waits until that many requests wait for news.
async fn waiting(app: &App, count: usize) {
    until("they wait", async || app.state().feed.readers() == count).await;
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn sessions(feed: &Value) -> Vec<&str> {
    let entries = feed["revocations"].as_array().unwrap().iter();
    entries.filter_map(|entry| entry.get("session_id")).map(text).collect()
}

async fn log_out(app: &App, login: &Value) {
    app.post("/users/logout").bearer(login).send().await.expect(204);
}

async fn alice_and_a_client() -> (Arc<App>, Client) {
    let app = App::new().await;
    app.register("alice").await;
    let client = app.client("orders").await;
    (Arc::new(app), client)
}

const END: &str = "UPDATE sessions SET ended_at = created_at, end_reason = 'revoked' WHERE id = $1::uuid AND ended_at IS NULL";

#[tokio::test]
async fn the_first_answer_has_every_revocation_that_affects_live_tokens() {
    let (app, client) = alice_and_a_client().await;
    let nothing = ask(&app, &client, "").await;
    assert_eq!(nothing.header("cache-control"), "no-store");
    let nothing = nothing.expect(200);
    assert_eq!(nothing, json!({ "revocations": [], "next": nothing["next"], "more": false, "reset": true }));

    let old = app.login("alice").await;
    log_out(&app, &old).await;
    // Revocations are kept for an hour beyond the last token, for services whose clock is wrong.
    app.clock.advance(Duration::minutes(74));
    let (gone, changed) = (app.login("alice").await, app.login("alice").await);
    log_out(&app, &gone).await;
    let set_roles = "UPDATE users SET roles = $2 WHERE id = $1::uuid";
    for roles in [&["support"][..], &["admin", "support"]] {
        let user_id = text(&changed["user"]["id"]);
        sqlx::query(set_roles).bind(user_id).bind(roles).execute(&app.db).await.unwrap();
    }
    let all = ask(&app, &client, "").await.expect(200);
    let entries = all["revocations"].as_array().unwrap();
    assert_eq!(entries.len(), 4, "{all}");
    let session = |login: &Value| json!({ "session_id": login["session_id"], "expires_at": login["access_token_expires_at"] });
    assert_eq!(entries[..2], [session(&old), session(&gone)]);
    for (entry, roles) in entries[2..].iter().zip([json!(["support"]), json!(["admin", "support"])]) {
        let (change, expires_at) = (&entry["change"], &entry["expires_at"]);
        let expected = json!({ "user_id": changed["user"]["id"], "roles": roles, "change": change, "expires_at": expires_at });
        assert_eq!(*entry, expected);
        assert!(change.is_i64());
    }
    assert!(entries[2]["change"].as_i64() < entries[3]["change"].as_i64(), "{all}");

    app.clock.advance(Duration::minutes(2));
    assert_eq!(sessions(&ask(&app, &client, "").await.expect(200)), [text(&gone["session_id"])]);
}

#[tokio::test]
async fn new_revocations_arrive_as_soon_as_they_happen() {
    let (app, client) = alice_and_a_client().await;
    let other = Arc::new(app.replica(&[]).await);
    let mut feed = ask(&app, &client, "").await.expect(200);
    // Each time from another replica, as behind a load balancer.
    for (here, there) in [(&app, &other), (&other, &app), (&app, &other)] {
        feed = end(here, &client, feed).await;
        let login = app.login("alice").await;
        let answers = [wait(here, &client, &feed), wait(there, &client, &feed)];
        waiting(here, 1).await;
        waiting(there, 1).await;
        assert!(answers.iter().all(|answer| !answer.is_finished()));
        let began = Instant::now();
        log_out(here, &login).await;
        // As it does when it is notified.
        there.hear().await;
        for answer in answers {
            let answer = timeout(SOON, answer).await.unwrap().unwrap().expect(200);
            assert_eq!(sessions(&answer), [text(&login["session_id"])]);
            feed = answer;
        }
        println!("from the logout to the answers: {:?}", began.elapsed());
    }
    // A client that comes late gets everything at once.
    let late = ask(&other, &client, "").await.expect(200);
    assert_eq!(sessions(&late).len(), 3);
}

#[tokio::test]
async fn waiting_without_news_ends_in_time_with_an_empty_answer() {
    let (app, client) = alice_and_a_client().await;
    for (more, expected) in [("", 25), ("&wait=30", 30)] {
        let feed = ask(&app, &client, "").await.expect(200);
        let (expected, began) = (StdDuration::from_secs(expected), tokio::time::Instant::now());
        let answer = wait_as(&app, &client, &feed, more);
        let answer = tokio::spawn(async move { (answer.await.unwrap(), began.elapsed()) });
        waiting(&app, 1).await;
        // And no further: the last answer is read from the database, for which such seconds are only milliseconds.
        while began.elapsed() < expected {
            pause();
            advance(StdDuration::from_secs(1)).await;
            resume();
            // For whatever it does then.
            sleep(StdDuration::from_millis(20)).await;
        }
        let (answer, waited) = timeout(SOON, answer).await.unwrap().unwrap();
        assert!((expected..expected + SOON).contains(&waited), "{more}: {waited:?}");
        let answer = answer.expect(200);
        assert_eq!(answer["revocations"], json!([]));
        assert_eq!(since(&app, &client, &answer).await["revocations"], json!([]));
    }
}

#[tokio::test]
async fn a_stopping_service_answers_waiting_clients_at_once() {
    let (app, client) = alice_and_a_client().await;
    let feed = ask(&app, &client, "").await.expect(200);
    let answer = wait(&app, &client, &feed);
    waiting(&app, 1).await;
    app.state().stop();
    let answer = timeout(SOON, answer).await.unwrap().unwrap().expect(200);
    assert_eq!(answer["revocations"], json!([]));
    // Nor does a request that comes afterwards wait.
    timeout(SOON, wait(&app, &client, &answer)).await.unwrap().unwrap().expect(200);
}

#[tokio::test]
async fn a_process_told_to_stop_answers_waiting_clients_and_exits() {
    let app = App::new().await;
    let (id, secret) = app.client("orders").await;
    let home = Home::new();
    let mut service = home.serve(&[("DB_SOURCE", &*app.database_url)]).await;
    let http = reqwest::Client::new();
    let ask = |query: &str| {
        http.get(service.url(&format!("/revocations{query}"))).basic_auth(&id, Some(&secret)).send()
    };
    let feed: Value = ask("").await.unwrap().json().await.unwrap();
    let waiting = tokio::spawn(ask(&format!("?since={}", text(&feed["next"]))));
    // Once this request has been answered, the earlier one has arrived, too.
    ask("?wait=0").await.unwrap();
    let began = Instant::now();
    service.signal(Signal::TERM);
    service.logged("stopped").await;
    assert_eq!(waiting.await.unwrap().unwrap().status().as_u16(), 200);
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    let ended = service.end().await.expect(0);
    assert!(!ended.stderr.contains("cut off"), "{}", ended.stderr);
}

#[tokio::test]
async fn revocations_that_commit_late_are_not_skipped() {
    let (app, client) = alice_and_a_client().await;
    let other = app.replica(&[]).await;
    let (first, second) = (app.login("alice").await, app.login("alice").await);
    let feed = ask(&app, &client, "").await.expect(200);

    let mut psql = PgConnection::connect(&app.database_url).await.unwrap();
    let mut slow = psql.begin().await.unwrap();
    sqlx::query(END).bind(text(&first["session_id"])).execute(&mut *slow).await.unwrap();
    log_out(&app, &second).await;
    let feed = since(&other, &client, &feed).await;
    assert_eq!(sessions(&feed), [text(&second["session_id"])]);
    let feed = since(&app, &client, &feed).await;
    assert_eq!(sessions(&feed), [""; 0]);

    let answer = wait(&app, &client, &feed);
    waiting(&app, 1).await;
    slow.commit().await.unwrap();
    app.hear().await;
    let answer = timeout(SOON, answer).await.unwrap().unwrap().expect(200);
    assert_eq!(sessions(&answer), [text(&first["session_id"])]);
    assert_eq!(sessions(&since(&other, &client, &feed).await), [text(&first["session_id"])]);
}

#[tokio::test]
async fn many_revocations_come_in_pages_and_none_is_lost() {
    const FLOOD: &str = "INSERT INTO revocations (session_id, expires_at)
                         SELECT gen_random_uuid(), created_at + interval '1 hour'
                         FROM sessions, generate_series(1, 6000) LIMIT 6000";
    let (app, client) = alice_and_a_client().await;
    let (early, late) = (app.login("alice").await, app.login("alice").await);
    let empty = ask(&app, &client, "").await.expect(200);
    let mut psql = PgConnection::connect(&app.database_url).await.unwrap();
    let mut slow = psql.begin().await.unwrap();
    sqlx::query(END).bind(text(&early["session_id"])).execute(&mut *slow).await.unwrap();
    for _ in 0..2 {
        sqlx::query(FLOOD).execute(&app.db).await.unwrap();
    }

    for begin in [ask(&app, &client, "").await.expect(200), since(&app, &client, &empty).await] {
        let other = app.replica(&[]).await;
        let mut pages = vec![begin];
        while pages.last().unwrap()["more"] == true {
            let last = pages.last().unwrap();
            // This does not wait, although it may.
            let next = ask(&other, &client, &format!("?since={}", text(&last["next"]))).await.expect(200);
            pages.push(next);
        }
        let lengths: Vec<_> = pages.iter().map(|page| sessions(page).len()).collect();
        assert_eq!(lengths, [5_000, 5_000, 2_000]);
        assert!(pages[1..].iter().all(|page| page["reset"] == false));
        let all: std::collections::BTreeSet<_> = pages.iter().flat_map(sessions).collect();
        assert_eq!(all.len(), 12_000);
    }

    // From an earlier transaction than all of them, committed after the first page, which is past it.
    let first = ask(&app, &client, "").await.expect(200);
    slow.commit().await.unwrap();
    log_out(&app, &late).await;
    let (mut feed, mut all) = (first.clone(), Vec::new());
    while feed["more"] == true {
        feed = since(&app, &client, &feed).await;
        all.extend(sessions(&feed).into_iter().map(str::to_owned));
    }
    let rest = since(&app, &client, &feed).await;
    all.extend(sessions(&rest).into_iter().map(str::to_owned));
    for login in [&early, &late] {
        assert!(all.iter().any(|id| id == text(&login["session_id"])));
    }
    assert_eq!(sessions(&since(&app, &client, &rest).await), [""; 0]);
}

/// The cursor of an answer, with something in it replaced.
fn altered(feed: &Value, alter: impl FnOnce(String) -> String) -> Value {
    let json = String::from_utf8(URL_SAFE_NO_PAD.decode(text(&feed["next"])).unwrap()).unwrap();
    json!({ "next": URL_SAFE_NO_PAD.encode(alter(json)) })
}

#[tokio::test]
async fn a_cursor_from_a_former_server_restarts_from_the_beginning() {
    let (app, client) = alice_and_a_client().await;
    let feed = ask(&app, &client, "").await.expect(200);
    // From a release that did not notice crashes.
    let older = altered(&feed, |json| {
        let (before, _) = json.split_once(",\"statistics_began_at\"").unwrap();
        format!("{before}}}}}")
    });
    let former = altered(&feed, |json| {
        let (before, started_at) = json.split_once("\"server_started_at\":").unwrap();
        format!("{before}\"server_started_at\":1{}", &started_at[1..].replacen(['2', '3', '4'], "5", 1))
    });
    assert_ne!(former["next"], feed["next"]);
    // When there is nothing, the answer says so without waiting.
    let nothing = timeout(SOON, wait(&app, &client, &former)).await.unwrap().unwrap().expect(200);
    assert_eq!((&nothing["revocations"], &nothing["reset"]), (&json!([]), &json!(true)));

    let gone = app.login("alice").await;
    log_out(&app, &gone).await;
    for (cursor, reset) in [(&feed, false), (&former, true), (&older, true)] {
        let answer = since(&app, &client, cursor).await;
        assert_eq!(sessions(&answer), [text(&gone["session_id"])]);
        assert_eq!(answer["reset"], reset);
    }
}

/// A Postgres backend dies and the server recovers: it gives out transaction numbers again that never reached its disk.
#[tokio::test]
async fn revocations_after_a_crash_arrive_despite_reused_transaction_ids() {
    const BURN: &str =
        "DO $$ BEGIN FOR i IN 1..1000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$";
    const NEXT: &str = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint";
    let server = Server::new("wal_writer_delay = 10s", |_| {}).await;
    set_up(&server.url()).await;
    let app = App::over(server.url(), &[]).await;
    app.register("alice").await;
    let (client, login) = (app.client("orders").await, app.login("alice").await);
    let feed = loop {
        let (mut conn, mut witness) = (server.connect().await, server.connect().await);
        sqlx::raw_sql("SET synchronous_commit = off").execute(&mut conn).await.unwrap();
        sqlx::raw_sql(BURN).execute(&mut conn).await.unwrap();
        until("the feed is read", async || app.state().feed.hear().await.is_ok()).await;
        let feed = ask(&app, &client, "").await.expect(200);
        let before: i64 = sqlx::query_scalar(NEXT).fetch_one(&mut conn).await.unwrap();
        let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut conn).await.unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        until("all are thrown out", async || witness.ping().await.is_err()).await;
        until("the server has recovered", async || PgConnection::connect(&server.url()).await.is_ok()).await;
        let next: i64 = sqlx::query_scalar(NEXT).fetch_one(&mut server.connect().await).await.unwrap();
        // Unless the server wrote to its disk in between, which it does every ten seconds.
        if next + 100 < before {
            break feed;
        }
    };
    sqlx::query(END).bind(text(&login["session_id"])).execute(&mut server.connect().await).await.unwrap();
    until("the feed is read again", async || app.state().feed.hear().await.is_ok()).await;
    app.get("/users/me").bearer(&login).send().await.expect_problem(401, "session_revoked");
    let news = since(&app, &client, &feed).await;
    assert_eq!((sessions(&news), &news["reset"]), (vec![text(&login["session_id"])], &json!(true)));
}

#[tokio::test]
async fn an_invalid_query_is_refused_with_the_reason() {
    let (app, client) = alice_and_a_client().await;
    let next = ask(&app, &client, "").await.expect(200)["next"].clone();
    let next = text(&next);
    let forged = altered(&json!({ "next": next }), |json| json.replace("snapshot\":\"", "snapshot\":\";"));
    assert_ne!(forged["next"], next);
    for (query, field) in [
        ("?since=", "since"),
        ("?since=x", "since"),
        ("?since=0", "since"),
        ("?since=2026-01-02T03:04:05Z", "since"),
        (&format!("?since={}", &next[1..]), "since"),
        (&format!("?since={}", text(&forged["next"])), "since"),
        (&format!("?since={}", "A".repeat(30_000)), "since"),
        ("?wait=", "wait"),
        ("?wait=-1", "wait"),
        ("?wait=31", "wait"),
        ("?wait=1.5", "wait"),
        ("?wait=10s", "wait"),
        ("?wait=99999999999999999999", "wait"),
        ("?wait=1&wait=1", "wait"),
        (&format!("?since={next}&since={next}"), "since"),
        ("?until=x", "until"),
        ("?%ff=%00", "\u{fffd}"),
    ] {
        let problem = ask(&app, &client, query).await.expect_problem(422, "validation_failed");
        assert_eq!(problem["errors"][0]["field"], field, "{query}: {problem}");
    }
    for (query, code, detail) in [
        ("?since=x", "invalid", "`since` needs to be the `next` of an answer."),
        ("?wait=10s", "invalid", "`wait` needs to be a number of seconds from 0 to 30."),
        ("?wait=31", "out_of_range", "`wait` needs to be a number of seconds from 0 to 30."),
    ] {
        let problem = ask(&app, &client, query).await.expect_problem(422, "validation_failed");
        assert_eq!((&problem["errors"][0]["code"], &problem["detail"]), (&code.into(), &detail.into()));
    }
    for query in ["?wait=0", "?wait=30", ""] {
        ask(&app, &client, query).await.expect(200);
    }
    // Credentials are checked first.
    app.get("/revocations?since=x").send().await.expect_problem(401, "invalid_client");
    let nobody = (client.0.clone(), format!("{}x", client.1));
    ask(&app, &nobody, "").await.expect_problem(401, "invalid_client");
    sqlx::query("DELETE FROM clients").execute(&app.db).await.unwrap();
    ask(&app, &client, "").await.expect_problem(401, "invalid_client");
}

/// The rows of a restored database have transaction numbers that its new server has not reached yet.
#[tokio::test]
async fn revocations_restored_from_another_server_are_reported_only_once() {
    let (before, client) = alice_and_a_client().await;
    let gone = before.login("alice").await;
    let restored = "
        INSERT INTO revocations (xid, session_id, expires_at)
        SELECT (pg_current_xact_id()::text::bigint + 1000000)::text::xid8, id, access_expires_at
        FROM sessions WHERE id = $1::uuid";
    before.sql(restored, &gone["session_id"]).await;
    // A replica starts on the restored database.
    let app = before.replica(&[]).await;
    app.get("/users/me").bearer(&gone).send().await.expect_problem(401, "session_revoked");
    let mut feed = ask(&app, &client, "").await.expect(200);
    assert_eq!(sessions(&feed), [text(&gone["session_id"])]);
    for _ in 0..2 {
        let news = app.state().feed.news();
        app.hear().await;
        assert!(!news.has_changed().unwrap(), "those who wait are woken for nothing");
        feed = since(&app, &client, &feed).await;
        assert_eq!(feed["revocations"], json!([]));
    }
    // New revocations come all the same.
    let login = app.login("alice").await;
    log_out(&app, &login).await;
    assert_eq!(sessions(&since(&app, &client, &feed).await), [text(&login["session_id"])]);
}

#[tokio::test]
async fn a_thousand_wait_and_hold_up_nobody() {
    let (app, client) = alice_and_a_client().await;
    let (gone, feed) = (app.login("alice").await, ask(&app, &client, "").await.expect(200));
    // Not all at once, or the last would wait too long for the database connection that checks their secret.
    let mut answers = Vec::new();
    while answers.len() < 1_000 {
        answers.extend((0..100).map(|_| wait_as(&app, &client, &feed, "&wait=30")));
        waiting(&app, answers.len()).await;
    }

    let turned_away = ask(&app, &client, "?wait=0").await;
    assert_eq!(turned_away.header("retry-after"), "1");
    turned_away.expect_problem(503, "overloaded");
    // The eight connections of the pool are free for other requests.
    for _ in 0..8 {
        timeout(SOON, app.try_login("alice", PASSWORD)).await.unwrap().expect(200);
    }

    let began = Instant::now();
    log_out(&app, &gone).await;
    for answer in answers {
        let answer = timeout(SOON, answer).await.unwrap().unwrap().expect(200);
        assert_eq!(sessions(&answer), [text(&gone["session_id"])]);
    }
    println!("a thousand told in {:?}", began.elapsed());
    ask(&app, &client, "").await.expect(200);
}

#[tokio::test]
async fn without_the_database_clients_get_an_error_and_not_an_empty_answer() {
    let (app, client) = alice_and_a_client().await;
    let feed = ask(&app, &client, "").await.expect(200);
    let answer = wait(&app, &client, &feed);
    waiting(&app, 1).await;
    app.lose_database().await;
    app.state().stop();
    let answer = timeout(SOON, answer).await.unwrap().unwrap();
    answer.expect_problem(503, "database_unavailable");
}
