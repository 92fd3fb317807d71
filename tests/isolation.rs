//! What two transactions at once could do to each other, made to happen: those of docs/database.md for which no other file
//! has a story. And every test that it names is there.

use std::{error::Error as _, fs, path::Path};

use axum::http::Method;
use gatepass::store::{
    Cause, Source, history,
    login_attempts::Forgiveness,
    sessions::{self, NewSession, Sighting},
};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};
use time::Duration;
use uuid::Uuid;

use crate::{
    app::{App, PASSWORD, START, admin, database},
    process::until,
};

async fn connect(app: &App) -> PgConnection {
    PgConnection::connect(&app.database_url).await.unwrap()
}

/// How many wait for a lock.
async fn waiting(conn: &mut PgConnection) -> i64 {
    let waiting = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
    sqlx::query_scalar(waiting).fetch_one(conn).await.unwrap()
}

fn id(value: &Value) -> Uuid {
    value.as_str().unwrap().parse().unwrap()
}

#[test]
fn every_transaction_that_the_documentation_lists_has_a_test_that_is_there() {
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
}

#[tokio::test]
async fn a_login_that_is_under_way_when_the_password_changes_ends_with_the_other_sessions() {
    change_the_password_during_a_login(&App::new().await).await;
}

#[tokio::test]
async fn whatever_the_isolation_of_others_is_ours_is_read_committed() {
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

    // Behind a pooler it cannot be set, and is said.
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
    // The password was right; the session is there, and nobody sees it yet.
    let pool = app.pool();
    let mut login = pool.acquire().await.unwrap();
    let mut login = login.begin().await.unwrap();
    let session = NewSession {
        id: Uuid::from_u128(0x019a_a3f0_5b7c_7c3e_9d0a_0000_0000_0001),
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

    let passwords = json!({ "current_password": PASSWORD, "new_password": "another-horse-battery-10" });
    let change = app.request(Method::PUT, "/users/me/password").bearer(&own).json(&passwords).send();
    let mut conn = connect(app).await;
    let meanwhile = async {
        until("the change waits for the login", async || waiting(&mut conn).await > 0).await;
        login.commit().await.unwrap();
    };
    let (answer, ()) = tokio::join!(change, meanwhile);
    answer.expect(204);
    let reason: Option<String> = sqlx::query_scalar("SELECT end_reason FROM sessions WHERE id = $1")
        .bind(session.id)
        .fetch_one(&app.db)
        .await
        .unwrap();
    assert_eq!(reason.as_deref(), Some("password_changed"));
}

#[tokio::test]
async fn a_renewal_waits_for_roles_that_are_being_changed_however_long_and_has_those_of_then() {
    let app = App::new().await;
    app.login_admin("bob").await;
    let alice = app.login_admin("alice").await;
    let renew =
        || app.post("/tokens/renew_access").json(&json!({ "refresh_token": alice["refresh_token"] })).send();
    // Its successor, and then the same once more, good for longer.
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
        let (renewed, ()) = tokio::join!(renew(), meanwhile);
        let renewed = renewed.expect(200);
        let verified = app.get("/auth/verify?role=admin").bearer(&renewed).send().await;
        assert_eq!(verified.status, status, "from {from:?} to {to:?}");
        app.clock.advance(Duration::seconds(5));
    }
}

#[tokio::test]
async fn two_who_note_the_same_sessions_in_opposite_orders_do_not_wait_for_each_other() {
    let app = App::new().await;
    app.register("alice").await;
    let mut sightings = Vec::new();
    for _ in 0..3 {
        let session_id = id(&app.login("alice").await["session_id"]);
        sightings.push(Sighting { session_id, generation: 0, at: START + Duration::seconds(1) });
    }
    sightings.sort_by_key(|sighting| sighting.session_id);
    // Each has its first session, and waits for the one in the middle. Who gets that wants the other's next.
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
async fn who_verifies_the_history_sees_it_as_it_was_when_they_began() {
    let app = App::new().await;
    app.register("alice").await;
    app.state().history().seal().await.unwrap();
    let mut conn = connect(&app).await;
    let mut inspection = history::inspect(&mut conn).await.unwrap();
    let seals = inspection.seals(0, 10).await.unwrap();
    // Between two of its questions a month is given up, as it were, and more is sealed.
    sqlx::query("DELETE FROM history").execute(&app.db).await.unwrap();
    app.register("bob").await;
    app.state().history().seal().await.unwrap();
    let rows = inspection.rows(&seals[0].ids).await.unwrap();
    assert_eq!(rows.len(), seals[0].ids.len(), "what its seals have is not missing");
    assert_eq!(inspection.seals(seals[0].number, 10).await.unwrap().len(), 0);
    assert!(inspection.strangers(10).await.unwrap().is_empty());
}
