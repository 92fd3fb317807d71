//! Registration and login: from a name and a password to a token that opens the protected routes.

use serde_json::json;
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};

use crate::app::{App, PASSWORD, START};

#[tokio::test]
async fn register_log_in_and_call_a_protected_route() {
    let app = App::new().await;
    let body = json!({
        "username": "Alice", "email": "Alice@Example.com", "password": PASSWORD, "full_name": "Alice Liddell",
    });
    let answer = app.post("/users").json(&body).send().await;
    let location = answer.location("/users");
    assert_eq!(answer.header("cache-control"), "no-store");
    let user = answer.expect(201);
    assert_eq!(location, format!("/admin/users/{}", user["id"].as_str().unwrap()));
    assert_eq!(
        user,
        json!({
            "id": user["id"],
            "username": "Alice",
            "email": "Alice@Example.com",
            "full_name": "Alice Liddell",
            "roles": [],
            "is_email_verified": false,
            "disabled": false,
            "password_changed_at": "2026-01-02T03:04:05.678901Z",
            "created_at": "2026-01-02T03:04:05.678901Z",
        })
    );

    let answer = app.try_login("alice", PASSWORD).await;
    assert_eq!(answer.header("cache-control"), "no-store");
    let login = answer.expect(200);
    assert_eq!(login["user"], user);
    assert_eq!(login["token_type"], "Bearer");
    assert_eq!(login["expires_in"], 900);
    assert_eq!(login["access_token_expires_at"], "2026-01-02T03:19:05Z");
    assert!(login["access_token"].as_str().unwrap().starts_with("v4.local."));
    assert!(login["refresh_token"].as_str().unwrap().starts_with("gpr_"));
    let refresh_end =
        OffsetDateTime::parse(login["refresh_token_expires_at"].as_str().unwrap(), &Rfc3339).unwrap();
    assert_eq!(refresh_end, START.truncate_to_second() + Duration::hours(24));

    assert_eq!(app.get("/users/me").bearer(&login).send().await.expect(200), user);
}

#[tokio::test]
async fn log_in_by_username_or_address_in_any_case() {
    let app = App::new().await;
    app.register("Alice").await;
    for name in ["Alice", "aLICE", "alice@example.com", "ALICE@EXAMPLE.COM"] {
        let login = app.login(name).await;
        assert_eq!(login["user"]["username"], "Alice", "{name}");
    }
}

/// Such an address was set by hand, or dates from before the rules for new ones became as strict as they are.
#[tokio::test]
async fn log_in_by_an_address_that_would_be_refused_today() {
    let app = App::new().await;
    let alice = app.register("alice").await;
    for address in ["Alice@a_b.example", "alice@localhost", "\"alice@home\"@example.com"] {
        sqlx::query("UPDATE users SET email = $2 WHERE id = $1::uuid")
            .bind(alice["id"].as_str().unwrap())
            .bind(address)
            .execute(&app.db)
            .await
            .unwrap();
        assert_eq!(app.login(&address.to_uppercase()).await["user"]["id"], alice["id"], "{address}");
        let other = format!("x{address}");
        app.try_login(&other, PASSWORD).await.expect_problem(401, "invalid_credentials");
    }
    for nobody in ["@", "a@\0", "a\n@b", &format!("{}@b", "x".repeat(300)), &"@".repeat(9000)] {
        app.try_login(nobody, PASSWORD).await.expect_problem(401, "invalid_credentials");
    }
}

#[tokio::test]
async fn a_token_ends_when_it_says() {
    let app = App::new().await;
    app.register("alice").await;
    let alice = app.login("alice").await;
    app.clock.advance(Duration::minutes(15) - Duration::seconds(1));
    app.get("/users/me").bearer(&alice).send().await.expect(200);
    app.clock.advance(Duration::seconds(1));
    let answer = app.get("/users/me").bearer(&alice).send().await;
    assert!(answer.header("www-authenticate").starts_with(r#"Bearer error="invalid_token""#));
    answer.expect_problem(401, "token_expired");
}

/// Otherwise anyone who has a user's password could begin more sessions than one statement can end before its timeout.
#[tokio::test]
async fn too_many_sessions_end_the_least_recently_used_ones() {
    let app = App::new().await;
    app.register("alice").await;
    let first = app.login("alice").await;
    // Each was last used a second later than the one before, and the first one longest ago.
    sqlx::query(
        "INSERT INTO sessions
             (id, user_id, refresh_generation, refresh_salt, created_at, renewed_at, is_confirmed, last_used_at,
              refresh_expires_at, expires_at, access_expires_at)
         SELECT overlay(gen_random_uuid()::text PLACING '7' FROM 15 FOR 1)::uuid, user_id, 0, refresh_salt, created_at,
                renewed_at, false, last_used_at + n * interval '1 second', refresh_expires_at, expires_at, access_expires_at
         FROM sessions, generate_series(1, 4020) AS n",
    )
    .execute(&app.db)
    .await
    .unwrap();
    app.clock.advance(Duration::hours(2));
    let going_on = async || -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM sessions WHERE ended_at IS NULL")
            .fetch_one(&app.db)
            .await
            .unwrap()
    };
    // Only one login in 64, at random, counts the sessions.
    let mut logins = 0;
    let last = loop {
        let login = app.login("alice").await;
        logins += 1;
        if going_on().await <= 4000 {
            break login;
        }
        assert!(logins < 2000, "{} sessions", going_on().await);
    };
    assert_eq!(going_on().await, 4000);
    app.renew(&first).await.expect_problem(401, "session_revoked");
    app.renew(&last).await.expect(200);
}
