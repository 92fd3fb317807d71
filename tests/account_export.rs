//! A user's export holds everything that is stored about them: every session and every change, however many, but no
//! hash and no token. A user has one export at a time, and an export that breaks off does not look complete.

use axum::{
    body::Body,
    http::{Method, Request, Response},
};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use time::Duration;
use tower::ServiceExt;

use crate::{
    app::{App, PASSWORD},
    process::until,
};

/// Inserts more sessions than fit on one page, and the changes that come with them.
async fn log_in_often(app: &App, user: &Value) {
    let insert = "INSERT INTO sessions (id, user_id, refresh_generation, refresh_salt, user_agent, client_ip, created_at,
                      renewed_at, is_confirmed, last_used_at, refresh_expires_at, expires_at, access_expires_at)
                  SELECT ('01940000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, $1::uuid, 0,
                      decode(repeat('5a', 32), 'hex'), 'Agent ' || n, '192.0.2.7', t, t, false, t, t + '1 day',
                      t + '30 days', t + '15 minutes'
                  FROM generate_series(1, 900) AS n, LATERAL (SELECT timestamptz '2025-12-01 00:00Z' AS t) AS times";
    app.sql(insert, &user["id"]).await;
}

/// Begins an export, whose body nobody reads yet.
async fn begin(app: &App, login: &Value) -> Response<Body> {
    let token = login["access_token"].as_str().unwrap();
    let request = Request::get("/users/me/export").header("authorization", format!("Bearer {token}"));
    app.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
}

#[tokio::test]
async fn an_export_holds_all_stored_data_but_no_secret() {
    let app = App::new().await;
    let root = app.login_admin("root").await;
    let bob = app.register("bob").await;
    let body = json!({ "username": "alice", "email": "alice@example.com", "full_name": "Alice \"\u{e4}\"" });
    let put = app.request(Method::PUT, "/admin/users/by-external-id/auth0%7C17").bearer(&root).json(&body);
    let alice = put.send().await.expect(201);
    // Alice gets Bob's password, whose hash is at hand.
    app.sql(
        "UPDATE users SET password_hash = (SELECT password_hash FROM users WHERE id = $1::uuid) WHERE username = 'alice'",
        &bob["id"],
    )
    .await;
    let ended = app
        .post("/users/login")
        .header("user-agent", "Old Browser")
        .json(&json!({ "username": "alice", "password": PASSWORD }))
        .send()
        .await
        .expect(200);
    app.clock.advance(Duration::minutes(1));
    app.post("/users/logout").bearer(&ended).send().await.expect(204);
    let login = app.login("alice").await;

    let answer = app.get("/users/me/export").bearer(&login).send().await;
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(answer.header("cache-control"), "no-store");
    assert_eq!(
        answer.header("content-disposition"),
        "attachment; filename=\"gatepass-export-alice-2026-01-02.json\""
    );
    let text = answer.body.clone();
    let export = answer.expect(200);
    assert_eq!(export["exported_at"], "2026-01-02T03:05:05.678901Z");
    let mut user = app.get("/users/me").bearer(&login).send().await.expect(200);
    user["external_id"] = "auth0|17".into();
    user["updated_at"] = export["user"]["updated_at"].clone();
    assert_eq!(export["user"], user);
    assert_eq!(user["id"], alice["id"]);

    let [first, second] = &export["sessions"].as_array().unwrap()[..] else { panic!("{export}") };
    assert_eq!(first["id"], ended["session_id"]);
    assert_eq!(first["user_agent"], "Old Browser");
    assert_eq!(first["client_ip"], "192.0.2.1");
    assert_eq!((&first["end_reason"], &first["current"]), (&json!("logout"), &json!(false)));
    assert_eq!(first["ended_at"], "2026-01-02T03:05:05.678901Z");
    assert_eq!((&second["ended_at"], &second["current"]), (&Value::Null, &json!(true)));
    let history = app.get("/users/me/history?limit=200").bearer(&login).send().await.expect(200);
    assert_eq!(export["history"], history["changes"]);

    let hash: String = sqlx::query_scalar("SELECT password_hash FROM users WHERE username = 'alice'")
        .fetch_one(&app.db)
        .await
        .unwrap();
    let salts: Vec<String> = sqlx::query_scalar("SELECT encode(refresh_salt, 'hex') FROM sessions")
        .fetch_all(&app.db)
        .await
        .unwrap();
    let tokens = ["access_token", "refresh_token"].map(|name| login[name].as_str().unwrap().to_owned());
    for secret in salts.iter().chain([&hash]).chain(&tokens) {
        assert!(!text.contains(secret.as_str()), "{secret}");
    }
    assert!(!text.contains("$argon2") && !text.contains("bob") && !text.contains("root"), "{text}");
}

#[tokio::test]
async fn a_large_export_misses_nothing_and_repeats_nothing() {
    let app = App::new().await;
    let alice = app.register("alice").await;
    log_in_often(&app, &alice).await;
    let login = app.login("alice").await;
    let export = app.get("/users/me/export").bearer(&login).send().await.expect(200);
    for (list, table) in [("sessions", "sessions"), ("history", "history")] {
        let count = format!("SELECT count(*) FROM {table} WHERE user_id = $1::uuid");
        let count: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(count))
            .bind(alice["id"].as_str().unwrap())
            .fetch_one(&app.db)
            .await
            .unwrap();
        let list = export[list].as_array().unwrap();
        assert!(count > 900 && list.len() as i64 == count, "{table}: {} of {count}", list.len());
    }
    let ids: Vec<_> =
        export["sessions"].as_array().unwrap().iter().map(|session| session["id"].as_str()).collect();
    assert!(ids.is_sorted());
    assert!(ids.windows(2).all(|two| two[0] != two[1]));
}

#[tokio::test]
async fn a_user_has_one_export_at_a_time_and_a_slow_one_keeps_no_transaction_open() {
    let app = App::new().await;
    let alice = app.register("alice").await;
    log_in_often(&app, &alice).await;
    let login = app.login("alice").await;
    app.register("bob").await;
    let bob = app.login("bob").await;

    let slow = begin(&app, &login).await;
    assert_eq!(slow.status().as_u16(), 200);
    let refused = app.get("/users/me/export").bearer(&login).send().await;
    assert_ne!(refused.header("retry-after"), "");
    refused.expect_problem(429, "export_under_way");
    app.get("/users/me/export").bearer(&bob).send().await.expect(200);
    let held = "SELECT count(*) FROM pg_stat_activity
                WHERE datname = current_database() AND state LIKE 'idle in transaction%'";
    until("it waits for its reader", async || {
        sqlx::query_scalar::<_, i64>(held).fetch_one(&app.db).await.unwrap() == 0
    })
    .await;
    // Read to its end, the export is complete, and makes room for another.
    let body = slow.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["sessions"].as_array().unwrap().len(), 901);
    let slow = begin(&app, &login).await;
    assert_eq!(slow.status().as_u16(), 200);
    // So does an export whose reader has gone away.
    drop(slow);
    until("there is room", async || {
        app.get("/users/me/export").bearer(&login).send().await.status.as_u16() == 200
    })
    .await;
}

#[tokio::test]
async fn an_export_that_breaks_off_does_not_look_complete() {
    let app = App::new().await;
    let alice = app.register("alice").await;
    log_in_often(&app, &alice).await;
    let login = app.login("alice").await;
    let export = begin(&app, &login).await;
    app.lose_database().await;
    assert!(export.into_body().collect().await.is_err());
    app.get("/users/me/export").bearer(&login).send().await.expect_problem(503, "database_unavailable");
}

#[tokio::test]
async fn an_export_ends_with_its_session() {
    let app = App::new().await;
    let alice = app.register("alice").await;
    log_in_often(&app, &alice).await;
    let (owner, thief) = (app.login("alice").await, app.login("alice").await);
    let export = begin(&app, &thief).await;
    app.request(Method::DELETE, "/sessions").bearer(&owner).send().await.expect(204);
    assert!(export.into_body().collect().await.is_err());
    app.get("/users/me/export").bearer(&owner).send().await.expect(200);
}
