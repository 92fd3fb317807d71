//! Whoever holds a session's current refresh token can renew it. A lost answer costs nobody their session, the use of a
//! copied token ends it, and a session that is over says why.

use std::sync::Arc;

use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use time::Duration;

use crate::{
    app::{App, KEY},
    process::until,
};

const OTHER_KEY: &str = "k4.local.cHFyc3R1dnd4eXp7fH1-f4CBgoOEhYaHiImKi4yNjo8";

async fn me(app: &App, tokens: &Value) -> u16 {
    app.get("/users/me").bearer(tokens).send().await.status.as_u16()
}

/// Uses the tokens of the last renewal, on a replica that then writes down what it has seen.
async fn confirm(app: &App, tokens: &Value) {
    assert_eq!(me(app, tokens).await, 200);
    app.state().activity.flush().await.unwrap();
}

async fn alice() -> (App, Value) {
    let app = App::new().await;
    app.register("alice").await;
    let login = app.login("alice").await;
    (app, login)
}

#[tokio::test]
async fn a_renewal_gives_new_tokens_of_the_same_session() {
    let (app, login) = alice().await;
    app.clock.advance(Duration::minutes(14));
    let answer = app.renew(&login).await;
    assert_eq!(answer.header("cache-control"), "no-store");
    let renewed = answer.expect(200);

    let names: Vec<_> = renewed.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = [
        "access_token",
        "access_token_expires_at",
        "expires_in",
        "refresh_token",
        "refresh_token_expires_at",
        "session_id",
        "token_type",
    ];
    assert_eq!(names, expected);
    assert_eq!(renewed["session_id"], login["session_id"]);
    assert_eq!(renewed["token_type"], "Bearer");
    assert_eq!(renewed["access_token_expires_at"], "2026-01-02T03:33:05Z");
    assert_eq!(renewed["refresh_token_expires_at"], "2026-01-03T03:18:05Z");
    assert_ne!(renewed["refresh_token"], login["refresh_token"]);
    assert_ne!(renewed["access_token"], login["access_token"]);

    // The former access token is good until it expires; a renewal ends nothing.
    assert_eq!(me(&app, &login).await, 200);
    app.clock.advance(Duration::minutes(2));
    assert_eq!(me(&app, &login).await, 401);
    assert_eq!(me(&app, &renewed).await, 200);
}

#[tokio::test]
async fn a_renewed_token_carries_the_current_roles() {
    let (app, login) = alice().await;
    app.sql("UPDATE users SET roles = '{admin}' WHERE id = $1::uuid", &login["user"]["id"]).await;
    let renewed = app.renew(&login).await.expect(200);
    let path = format!("/admin/users/{}", login["user"]["id"].as_str().unwrap());
    app.get(&path).bearer(&renewed).send().await.expect(200);
}

#[tokio::test]
async fn a_lost_answer_is_repeated_within_seconds_and_hours_later() {
    let (app, login) = alice().await;
    let lost = app.renew(&login).await.expect(200);
    let again = app.renew(&login).await.expect(200);
    assert_eq!(again["refresh_token"], lost["refresh_token"]);

    // No token of the answer has been used: the phone slept.
    app.clock.advance(Duration::hours(9));
    let morning = app.renew(&login).await.expect(200);
    assert_eq!(morning["refresh_token"], lost["refresh_token"]);
    assert_eq!(me(&app, &morning).await, 200);
    // Getting the answer again renews nothing; the next renewal does.
    assert_eq!(morning["refresh_token_expires_at"], lost["refresh_token_expires_at"]);
    app.renew(&morning).await.expect(200);
}

#[tokio::test]
async fn a_second_tab_gets_the_same_successor_though_the_first_has_used_it() {
    let (app, login) = alice().await;
    let first = app.renew(&login).await.expect(200);
    confirm(&app, &first).await;
    app.clock.advance(Duration::seconds(9));
    let second = app.renew(&login).await.expect(200);
    assert_eq!(second["refresh_token"], first["refresh_token"]);
}

#[tokio::test]
async fn a_copied_token_ends_the_session_for_both() {
    let (app, login) = alice().await;
    let renewed = app.renew(&login).await.expect(200);
    app.clock.advance(Duration::seconds(10));
    // Nobody has written this down yet.
    assert_eq!(me(&app, &renewed).await, 200);
    app.renew(&login).await.expect_problem(401, "refresh_token_reused");
    // The owner gets the same refusal, and nothing is left to renew.
    app.renew(&renewed).await.expect_problem(401, "refresh_token_reused");
    app.renew(&login).await.expect_problem(401, "refresh_token_reused");
}

#[tokio::test]
async fn using_the_former_access_token_does_not_confirm_the_renewal() {
    let (app, login) = alice().await;
    let lost = app.renew(&login).await.expect(200);
    confirm(&app, &login).await;
    app.clock.advance(Duration::minutes(5));
    let again = app.renew(&login).await.expect(200);
    assert_eq!(again["refresh_token"], lost["refresh_token"]);
}

#[tokio::test]
async fn using_a_token_on_another_replica_confirms_the_renewal() {
    let (app, login) = alice().await;
    let other = app.replica(&[]).await;
    let renewed = app.renew(&login).await.expect(200);
    confirm(&other, &renewed).await;
    app.clock.advance(Duration::minutes(5));
    app.renew(&login).await.expect_problem(401, "refresh_token_reused");
}

#[tokio::test]
async fn a_clock_that_was_an_hour_ahead_does_no_lasting_harm() {
    let (app, login) = alice().await;
    app.clock.shift(Duration::hours(1));
    let ahead = app.renew(&login).await.expect(200);
    confirm(&app, &ahead).await;
    app.clock.shift(Duration::hours(-1));
    // A use in the future counts as a use, and so does every use from now on.
    let renewed = app.renew(&ahead).await.expect(200);
    confirm(&app, &renewed).await;
    app.clock.advance(Duration::minutes(5));
    assert_eq!(me(&app, &renewed).await, 200);
    let third = app.renew(&renewed).await.expect(200);
    confirm(&app, &third).await;
    app.clock.advance(Duration::seconds(10));
    app.renew(&renewed).await.expect_problem(401, "refresh_token_reused");
    app.renew(&third).await.expect_problem(401, "refresh_token_reused");
}

#[tokio::test]
async fn use_is_written_once_for_each_token() {
    let (app, login) = alice().await;
    confirm(&app, &login).await;
    let version = async || -> (String, time::OffsetDateTime) {
        sqlx::query_as("SELECT xmin::text, last_used_at FROM sessions").fetch_one(&app.db).await.unwrap()
    };
    let first = version().await;
    app.clock.advance(Duration::minutes(3));
    for _ in 0..10 {
        confirm(&app, &login).await;
    }
    assert_eq!(version().await, first);
    let renewed = app.renew(&login).await.expect(200);
    app.clock.advance(Duration::minutes(1));
    confirm(&app, &renewed).await;
    assert_eq!(version().await.1, app.clock.now());
}

#[tokio::test]
async fn a_token_from_two_renewals_ago_counts_as_reused_at_any_time() {
    let (app, login) = alice().await;
    let second = app.renew(&login).await.expect(200);
    let third = app.renew(&second).await.expect(200);
    app.renew(&login).await.expect_problem(401, "refresh_token_reused");
    app.renew(&third).await.expect_problem(401, "refresh_token_reused");
}

/// Keeping the service from its database for a while does not make a copied token good again.
#[tokio::test]
async fn use_seen_while_the_database_was_away_is_recorded_later() {
    let (app, login) = alice().await;
    let renewed = app.renew(&login).await.expect(200);
    assert_eq!(me(&app, &renewed).await, 200);
    sqlx::query("ALTER TABLE sessions RENAME TO away").execute(&app.db).await.unwrap();
    app.state().activity.flush().await.unwrap_err();
    sqlx::query("ALTER TABLE away RENAME TO sessions").execute(&app.db).await.unwrap();
    app.state().activity.flush().await.unwrap();
    app.clock.advance(Duration::seconds(10));
    app.renew(&login).await.expect_problem(401, "refresh_token_reused");
}

/// A service that stops cuts off the write under way, and then writes one last time.
#[tokio::test]
async fn an_interrupted_write_of_use_is_repeated_the_next_time() {
    let (app, login) = alice().await;
    let renewed = app.renew(&login).await.expect(200);
    assert_eq!(me(&app, &renewed).await, 200);
    let mut hold = app.db.begin().await.unwrap();
    sqlx::query("SELECT FROM sessions FOR UPDATE").execute(&mut *hold).await.unwrap();
    let waiting =
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let waits = async || sqlx::query(waiting).fetch_all(&app.db).await.unwrap().len() == 1;
    tokio::select! {
        () = until("it waits for the session", waits) => {}
        _ = app.state().activity.flush() => panic!("nobody was in its way"),
    }
    let cut_off = format!("SELECT pg_terminate_backend(pid, 5000) FROM ({waiting}) AS waiting");
    sqlx::query(AssertSqlSafe(cut_off)).execute(&app.db).await.unwrap();
    hold.rollback().await.unwrap();
    app.state().activity.flush().await.unwrap();
    app.clock.advance(Duration::seconds(10));
    app.renew(&login).await.expect_problem(401, "refresh_token_reused");
}

#[tokio::test]
async fn operators_see_how_renewals_went() {
    let (app, login) = alice().await;
    let second = app.renew(&login).await.expect(200);
    app.renew(&login).await.expect(200);
    app.renew(&second).await.expect(200);
    app.renew(&login).await.expect_problem(401, "refresh_token_reused");
    app.renew(&second).await.expect_problem(401, "refresh_token_reused");
    let counts = app.scrape().await;
    for line in [
        r#"gatepass_renewals_total{outcome="rotated"} 2"#,
        r#"gatepass_renewals_total{outcome="repeated"} 1"#,
        r#"gatepass_renewals_total{outcome="reused"} 1"#,
        r#"gatepass_renewals_total{outcome="ended"} 1"#,
        r#"gatepass_logins_total{outcome="succeeded"} 1"#,
        r#"gatepass_http_requests_total{method="POST",route="/tokens/renew_access",status="401"} 2"#,
        r#"gatepass_revocations{kind="session"} 1"#,
        "gatepass_revocation_silence_seconds 0.0",
    ] {
        assert!(counts.lines().any(|found| found == line), "{line}\n{counts}");
    }
}

#[tokio::test]
async fn a_session_that_is_over_says_why() {
    let (app, login) = alice().await;
    app.sql("UPDATE users SET disabled = true WHERE id = $1::uuid", &login["user"]["id"]).await;
    app.renew(&login).await.expect_problem(401, "session_revoked");
    app.sql("UPDATE users SET disabled = false WHERE id = $1::uuid", &login["user"]["id"]).await;
    app.renew(&login).await.expect_problem(401, "session_revoked");

    for reason in ["logout", "revoked", "password_changed", "user_disabled"] {
        let login = app.login("alice").await;
        let id: uuid::Uuid = login["session_id"].as_str().unwrap().parse().unwrap();
        sqlx::query("UPDATE sessions SET ended_at = now(), end_reason = $2 WHERE id = $1")
            .bind(id)
            .bind(reason)
            .execute(&app.db)
            .await
            .unwrap();
        app.renew(&login).await.expect_problem(401, "session_revoked");
    }

    let idle = app.login("alice").await;
    app.clock.advance(Duration::hours(24));
    app.renew(&idle).await.expect_problem(401, "session_expired");
}

#[tokio::test]
async fn a_session_ends_however_busy_it_is() {
    let app = App::with(&[("SESSION_DURATION", "2h"), ("REFRESH_TOKEN_DURATION", "1h")]).await;
    app.register("alice").await;
    let mut tokens = app.login("alice").await;
    for _ in 0..3 {
        app.clock.advance(Duration::minutes(39));
        tokens = app.renew(&tokens).await.expect(200);
    }
    // 117 minutes in, neither token outlives the session.
    assert_eq!(tokens["access_token_expires_at"], "2026-01-02T05:04:05Z");
    assert_eq!(tokens["refresh_token_expires_at"], "2026-01-02T05:04:05Z");
    app.clock.advance(Duration::minutes(3));
    assert_eq!(me(&app, &tokens).await, 401);
    app.renew(&tokens).await.expect_problem(401, "session_expired");
}

#[tokio::test]
async fn an_invalid_refresh_token_is_refused_and_changes_nothing() {
    let (app, login) = alice().await;
    let good = login["refresh_token"].as_str().unwrap();
    let other = app.replica_with_key(OTHER_KEY, &[]).await;
    let mut guesses = vec![
        String::new(),
        "gpr_".to_owned(),
        login["access_token"].as_str().unwrap().to_owned(),
        good.to_uppercase(),
        format!("{good}="),
        format!(" {good}"),
        good[..good.len() - 1].to_owned(),
    ];
    for i in [5, 20, 28, 30, 40, good.len() - 2] {
        let mut altered = good.to_owned().into_bytes();
        altered[i] = if altered[i] == b'A' { b'B' } else { b'A' };
        guesses.push(String::from_utf8(altered).unwrap());
    }
    for guess in guesses {
        app.renew(&json!({ "refresh_token": guess })).await.expect_problem(401, "invalid_refresh_token");
    }
    other.renew(&login).await.expect_problem(401, "invalid_refresh_token");
    app.renew(&login).await.expect(200);
}

#[tokio::test]
async fn changing_the_root_key_ends_no_session_while_the_old_is_accepted() {
    let (app, login) = alice().await;
    let moved = app.replica_with_key(OTHER_KEY, &[("TOKEN_SYMMETRIC_KEYS_ACCEPTED", KEY)]).await;
    let still = app.replica_with_key(KEY, &[("TOKEN_SYMMETRIC_KEYS_ACCEPTED", OTHER_KEY)]).await;
    let one = moved.renew(&login).await.expect(200);
    let two = still.renew(&one).await.expect(200);
    // The same successor, derived with another key, is another text, and just as good.
    let again = moved.renew(&one).await.expect(200);
    assert_ne!(again["refresh_token"], two["refresh_token"]);
    let three = moved.renew(&two).await.expect(200);
    let done = app.replica_with_key(OTHER_KEY, &[]).await;
    done.renew(&three).await.expect(200);
}

#[tokio::test]
async fn concurrent_renewals_on_two_replicas_get_the_same_refresh_token() {
    let (app, mut tokens) = alice().await;
    let replicas = [Arc::new(app.replica(&[]).await), Arc::new(app.replica(&[]).await)];
    for _ in 0..20 {
        let renewals = (0..64).map(|i| {
            let (app, tokens) = (replicas[i % 2].clone(), tokens.clone());
            tokio::spawn(async move { app.renew(&tokens).await.expect(200) })
        });
        let mut answers = Vec::new();
        for renewal in renewals.collect::<Vec<_>>() {
            answers.push(renewal.await.unwrap());
        }
        assert!(answers.iter().all(|answer| answer["refresh_token"] == answers[0]["refresh_token"]));
        assert_eq!(me(&app, &answers[63]).await, 200);
        tokens = answers.swap_remove(17);
    }
    let generation: i32 =
        sqlx::query_scalar("SELECT refresh_generation FROM sessions").fetch_one(&app.db).await.unwrap();
    assert_eq!(generation, 20);
}
