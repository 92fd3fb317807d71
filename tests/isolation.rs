//! Provokes what two concurrent transactions could do to each other, for those transactions in docs/database.md that no
//! other file tests. That page lists every transaction, and every test that it names exists.

use std::{
    collections::BTreeSet,
    error::Error as _,
    fs,
    path::{Path, PathBuf},
};

use axum::http::Method;
use gatepass::{
    account::History,
    random,
    store::{
        Cause, Source, history,
        login_attempts::Forgiveness,
        sessions::{self, NewSession, Sighting},
    },
};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};
use time::Duration;
use uuid::Uuid;

use crate::{
    app::{App, PASSWORD, START, Story, admin, database},
    process::until,
};

async fn connect(app: &App) -> PgConnection {
    PgConnection::connect(&app.database_url).await.unwrap()
}

/// How many connections wait for a lock.
async fn waiting(conn: &mut PgConnection) -> i64 {
    let waiting = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
    sqlx::query_scalar(waiting).fetch_one(conn).await.unwrap()
}

fn id(value: &Value) -> Uuid {
    value.as_str().unwrap().parse().unwrap()
}

#[test]
fn every_transaction_is_documented_with_a_test_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/database.md")).unwrap();
    let isolation = page.split("\n## ").find(|section| section.starts_with("Isolation\n")).unwrap();
    let rows: Vec<_> = isolation.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert!(rows.len() >= 10, "{rows:#?}");
    for row in rows {
        let tests = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        let names: Vec<_> = tests.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "{row}");
        for name in names {
            let (file, test) = name.split_once("::").unwrap_or_else(|| panic!("{name}: which file?"));
            let source = fs::read_to_string(root.join(format!("tests/{file}.rs"))).unwrap();
            assert!(source.contains(&format!("fn {test}(")), "{name} is not there");
        }
    }
    let missing: Vec<_> = transactions().into_iter().filter(|name| !isolation.contains(name)).collect();
    assert!(missing.is_empty(), "docs/database.md says nothing of the isolation of {missing:#?}");
}

/// Each function of the store that begins a transaction, in backticks as in docs/database.md: `users::delete`.
fn transactions() -> BTreeSet<String> {
    // The pool itself, and the check for a pooler, which asks which backend answers: these have no rows to lose.
    const OTHERS: [&str; 2] = ["pool::", "pooler::compare"];

    let store = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store");
    let mut found = BTreeSet::new();
    for (path, source) in sources(&store) {
        let module = path.strip_prefix(&store).unwrap().components().next().unwrap();
        let module = module.as_os_str().to_str().unwrap().trim_end_matches(".rs");
        let (mut function, mut is_public) = ("", false);
        for line in source.lines().map(str::trim).filter(|line| !line.starts_with("//")) {
            if let Some((before, rest)) = line.split_once("fn ") {
                function = rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap();
                is_public = before.contains("pub");
                continue;
            }
            let is_beginning = line.match_indices("begin").any(|(at, _)| {
                let rest = line[at..].trim_start_matches(|c: char| c.is_alphanumeric() || c == '_');
                rest.starts_with('(') && !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_')
            });
            // What a helper begins counts as begun by its callers.
            let is_helper = !is_public && function.starts_with("begin");
            let name = format!("{module}::{function}");
            if is_beginning && !is_helper && module != "mod" && !OTHERS.iter().any(|of| name.starts_with(of))
            {
                found.insert(format!("`{name}`"));
            }
        }
    }
    assert!(found.len() >= 15 && found.contains("`users::search`"), "{found:#?}");
    found
}

/// The source files below a directory.
fn sources(dir: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else {
            let source = fs::read_to_string(&path).unwrap();
            found.push((path, source));
        }
    }
    found
}

#[tokio::test]
async fn a_login_begun_before_a_password_change_ends_with_the_other_sessions() {
    change_the_password_during_a_login(&App::new().await).await;
}

#[tokio::test]
async fn our_transactions_are_read_committed_whatever_the_default() {
    let url = database().await;
    let options: PgConnectOptions = url.parse().unwrap();
    let name = options.get_database().unwrap();
    admin(&format!(r#"ALTER DATABASE "{name}" SET default_transaction_isolation = 'repeatable read'"#)).await;
    let level = "SHOW transaction_isolation";
    let mut conn = PgConnection::connect(&url).await.unwrap();
    let others: String = sqlx::query_scalar(level).fetch_one(&mut conn).await.unwrap();
    assert_eq!(others, "repeatable read");
    let source = Source::new(&url.clone().into()).unwrap();
    let ours: String =
        sqlx::query_scalar(level).fetch_one(&mut source.connect().await.unwrap()).await.unwrap();
    assert_eq!(ours, "read committed");
    change_the_password_during_a_login(&App::over(url, &[]).await).await;

    // Behind a pooler it cannot be set, which is reported.
    let source = source.shared();
    let direct = source.connect().await.unwrap_err();
    let pooled = source.pool(1).acquire().await.unwrap_err();
    for error in [direct.to_string(), pooled.source().unwrap().to_string()] {
        assert!(error.contains("run at repeatable read") && error.contains("ALTER ROLE"), "{error}");
    }
}

async fn change_the_password_during_a_login(app: &App) {
    let user = app.register("alice").await;
    let own = app.login("alice").await;
    let passwords = json!({ "current_password": PASSWORD, "new_password": "another-horse-battery-10" });
    let change = app.request(Method::PUT, "/users/me/password").bearer(&own).json(&passwords);
    let session = during_a_login(app, &user, change).await;
    let reason: Option<String> = sqlx::query_scalar("SELECT end_reason FROM sessions WHERE id = $1")
        .bind(session)
        .fetch_one(&app.db)
        .await
        .unwrap();
    assert_eq!(reason.as_deref(), Some("password_changed"));
}

#[tokio::test]
async fn a_login_begun_before_a_deletion_ends_with_the_other_sessions() {
    let app = App::new().await;
    let root = app.login_admin("root").await;
    for by_themselves in [false, true] {
        let user = app.register("alice").await;
        let own = app.login("alice").await;
        let deletion = if by_themselves {
            app.post("/users/me/delete").bearer(&own).json(&json!({ "password": PASSWORD }))
        } else {
            let path = format!("/admin/users/{}", user["id"].as_str().unwrap());
            app.request(Method::DELETE, &path).bearer(&root)
        };
        let session = during_a_login(&app, &user, deletion).await;
        let told: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM revocations WHERE session_id = $1)")
            .bind(session)
            .fetch_one(&app.db)
            .await
            .unwrap();
        assert!(told, "its access token goes on");
        let left: i64 = sqlx::query_scalar("SELECT count(*) FROM sessions WHERE user_id = $1")
            .bind(id(&user["id"]))
            .fetch_one(&app.db)
            .await
            .unwrap();
        assert_eq!(left, 0);
    }
}

/// Sends `change` while a login of the user has inserted its session and not committed it yet; returns the session's
/// id.
async fn during_a_login(app: &App, user: &Value, change: Story) -> Uuid {
    let pool = app.pool();
    let mut login = pool.acquire().await.unwrap();
    let mut login = login.begin().await.unwrap();
    let session = NewSession {
        id: random::uuid_v7(START, &mut random::system()),
        user_id: id(&user["id"]),
        password_changed_at: START,
        refresh_salt: &[7; 32],
        user_agent: None,
        client_ip: None,
        now: START,
        refresh_expires_at: START + Duration::hours(1),
        expires_at: START + Duration::hours(1),
        access_expires_at: START + Duration::minutes(15),
    };
    sessions::insert(&mut login, &session, &Forgiveness::default(), &Cause::default())
        .await
        .unwrap()
        .unwrap();
    let mut conn = connect(app).await;
    let meanwhile = async {
        until("the change waits for the login", async || waiting(&mut conn).await > 0).await;
        login.commit().await.unwrap();
    };
    let (answer, ()) = tokio::join!(change.send(), meanwhile);
    answer.expect(204);
    session.id
}

#[tokio::test]
async fn a_login_that_waits_for_a_change_of_address_no_longer_finds_the_user() {
    let app = App::with(&[("LOGIN_ATTEMPTS_PER_ACCOUNT", "10/15m")]).await;
    app.register("alice").await;
    let alice = app.login("alice").await;
    // The change has moved the count and waits for somebody who is about to take the same address.
    let mut conn = connect(&app).await;
    let mut other = conn.begin().await.unwrap();
    let insert = "INSERT INTO users (id, username, email, roles, is_email_verified, disabled, password_changed_at, created_at, updated_at)
                  SELECT $1, 'bob', 'new@example.com', '{}', false, false, now(), now(), now()";
    let bob = random::uuid_v7(START, &mut random::system());
    sqlx::query(insert).bind(bob).execute(&mut *other).await.unwrap();
    let change = app.patch("/users/me").bearer(&alice).json(&json!({ "email": "new@example.com" })).send();
    let mut looking = connect(&app).await;
    let log_in = |n: u8| {
        let body = json!({ "username": "alice@example.com", "password": PASSWORD });
        app.post("/users/login").peer(&format!("198.51.100.{n}")).json(&body).send()
    };
    let logins = async {
        until("the change waits", async || waiting(&mut looking).await == 1).await;
        let meanwhile = async {
            let mut looking = connect(&app).await;
            until("the logins wait", async || waiting(&mut looking).await == 3).await;
            other.rollback().await.unwrap();
        };
        let (one, two, ()) = tokio::join!(log_in(1), log_in(2), meanwhile);
        [one, two]
    };
    let (changed, refused) = tokio::join!(change, logins);
    changed.expect(200);
    for answer in refused {
        answer.expect_problem(401, "invalid_credentials");
    }
    // They were no guesses at the password, and nobody who has the new address pays for them.
    for n in 0..10 {
        let body = json!({ "username": "new@example.com", "password": "wrong-horse-battery-9" });
        let answer = app.post("/users/login").peer(&format!("203.0.113.{n}")).json(&body).send().await;
        answer.expect_problem(401, "invalid_credentials");
    }
}

#[tokio::test]
async fn a_waiting_record_is_compared_with_the_latest_state_of_its_user() {
    let app = App::new().await;
    let root = app.login_admin("root").await;
    let put = |full_name: &str, updated_at: &str| {
        let record = json!({
            "username": "alice", "email": "alice@example.com", "full_name": full_name, "updated_at": updated_at,
        });
        app.request(Method::PUT, "/admin/users/by-external-id/17").bearer(&root).json(&record).send()
    };
    put("Alice", "2020-01-01T00:00:00Z").await.expect(201);
    // Someone writes a newer record, and has not committed it yet.
    let mut newer = connect(&app).await;
    let mut newer = newer.begin().await.unwrap();
    sqlx::query(
        "UPDATE users SET full_name = 'Alice Newest', updated_at = '2022-01-01', administered_at = '2022-01-01'
         WHERE external_id = '17'",
    )
    .execute(&mut *newer)
    .await
    .unwrap();
    let mut conn = connect(&app).await;
    let meanwhile = async {
        until("the older one waits", async || waiting(&mut conn).await > 0).await;
        newer.commit().await.unwrap();
    };
    let (answer, ()) = tokio::join!(put("Alice Newer", "2021-01-01T00:00:00Z"), meanwhile);
    assert_eq!(answer.expect(200)["full_name"], "Alice Newest");
}

#[tokio::test]
async fn no_month_is_dropped_while_someone_works_on_the_history() {
    let app = App::new().await;
    let old = "WITH old AS (
                   INSERT INTO history (table_name, operation, changed_data, changed_at, database_user)
                   VALUES ('users', 'UPDATE', '{}', now() - interval '2 years', 'x') RETURNING id
               ) INSERT INTO history_unsealed SELECT id FROM old";
    sqlx::query(old).execute(&app.db).await.unwrap();
    let history = History::new(app.pool(), app.pool(), Some(std::time::Duration::from_hours(24 * 365)));
    let now = app.clock.now().max(time::OffsetDateTime::from(std::time::SystemTime::now()));
    assert_eq!(history.keep_up(now).await.unwrap(), [""; 0]);
    let seal = async || app.state().history.seal().await.unwrap().0;
    assert_eq!(seal().await, 1);
    app.register("alice").await;

    // Another replica is at work on the history, sealing it or giving up a month.
    let mut other = connect(&app).await;
    let mut other = other.begin().await.unwrap();
    let lock = sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(i64::from_be_bytes(*b"\0history"));
    lock.execute(&mut *other).await.unwrap();
    assert_eq!(history.keep_up(now).await.unwrap(), [""; 0]);
    assert_eq!(seal().await, 0);
    other.rollback().await.unwrap();
    assert_eq!(history.keep_up(now).await.unwrap().len(), 1);
    assert!(seal().await > 0);
}

#[tokio::test]
async fn a_renewal_waits_for_a_pending_change_of_roles_and_has_the_new_ones() {
    let app = App::new().await;
    app.login_admin("bob").await;
    let alice = app.login_admin("alice").await;
    // The first renewal makes the successor; the second gives the same one once more, good for longer.
    for (from, to, status) in [("admin", "", 403), ("", "admin", 200)] {
        let mut conn = connect(&app).await;
        let mut change = conn.begin().await.unwrap();
        let roles = sqlx::query("UPDATE users SET roles = string_to_array($1, ',') WHERE username = 'alice'");
        roles.bind(to).execute(&mut *change).await.unwrap();
        let mut looking = connect(&app).await;
        let meanwhile = async {
            until("the renewal waits", async || waiting(&mut looking).await > 0).await;
            change.commit().await.unwrap();
        };
        let (renewed, ()) = tokio::join!(app.renew(&alice), meanwhile);
        let renewed = renewed.expect(200);
        let verified = app.get("/auth/verify?role=admin").bearer(&renewed).send().await;
        assert_eq!(verified.status, status, "from {from:?} to {to:?}");
        app.clock.advance(Duration::seconds(5));
    }
}

#[tokio::test]
async fn noting_the_same_sessions_in_opposite_orders_causes_no_deadlock() {
    let app = App::new().await;
    app.register("alice").await;
    let mut sightings = Vec::new();
    for _ in 0..3 {
        let session_id = id(&app.login("alice").await["session_id"]);
        sightings.push(Sighting { session_id, generation: 0, at: START + Duration::seconds(1) });
    }
    sightings.sort_by_key(|sighting| sighting.session_id);
    // In opposite orders, each would hold its first session and wait for the middle one; whoever got that would then
    // wait for the other's first.
    let mut hold = connect(&app).await;
    let mut hold = hold.begin().await.unwrap();
    let lock = sqlx::query("SELECT FROM sessions WHERE id = $1 FOR UPDATE").bind(sightings[1].session_id);
    lock.execute(&mut *hold).await.unwrap();
    let backwards: Vec<_> = sightings.iter().rev().copied().collect();
    let (mut one, mut other, mut conn) = (connect(&app).await, connect(&app).await, connect(&app).await);
    let meanwhile = async {
        until("both wait", async || waiting(&mut conn).await == 2).await;
        hold.rollback().await.unwrap();
    };
    let (one, other, ()) = tokio::join!(
        sessions::note_sightings(&mut one, &sightings),
        sessions::note_sightings(&mut other, &backwards),
        meanwhile
    );
    one.unwrap();
    other.unwrap();
}

#[tokio::test]
async fn verifying_the_history_sees_it_as_it_was_at_the_beginning() {
    let app = App::new().await;
    app.register("alice").await;
    app.state().history.seal().await.unwrap();
    let mut conn = connect(&app).await;
    let mut inspection = history::inspect(&mut conn).await.unwrap();
    let seals = inspection.seals(0, 10, 1000).await.unwrap();
    // Between two of its queries rows go, as when a month is given up, and more is sealed.
    sqlx::query("DELETE FROM history").execute(&app.db).await.unwrap();
    app.register("bob").await;
    app.state().history.seal().await.unwrap();
    let rows = inspection.rows(&seals[0].ids).await.unwrap();
    assert_eq!(rows.len(), seals[0].ids.len(), "what its seals have is not missing");
    assert_eq!(inspection.seals(seals[0].number, 10, 1000).await.unwrap().len(), 0);
    assert!(inspection.strangers(10).await.unwrap().is_empty());
}
