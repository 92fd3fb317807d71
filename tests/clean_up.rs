//! Rows past their retention are deleted, and no others, in small batches and by one replica at a time.

use sqlx::PgConnection;
use time::Duration;

use crate::app::App;

async fn count(app: &App, table: &'static str) -> i64 {
    let sql = match table {
        "sessions" => "SELECT count(*) FROM sessions",
        _ => "SELECT count(*) FROM revocations",
    };
    sqlx::query_scalar(sql).fetch_one(&app.db).await.unwrap()
}

async fn clean_up(app: &App) -> (u64, u64) {
    let cleaned = app.state().clean_up.run(app.clock.now()).await.unwrap();
    (cleaned.sessions, cleaned.revocations)
}

#[tokio::test]
async fn a_session_is_deleted_its_retention_time_after_its_refresh_token_expires() {
    let app = App::with(&[("SESSION_RETENTION", "2d")]).await;
    app.register("alice").await;
    let idle = app.login("alice").await;
    app.clock.advance(Duration::hours(12));
    let busy = app.login("alice").await;
    let ended = app.login("alice").await;
    app.post("/users/logout").bearer(&ended).send().await.expect(204);

    // The refresh token expires after 24 hours, and the session is kept for two days after that.
    app.clock.advance(Duration::hours(59));
    assert_eq!(clean_up(&app).await.0, 0);
    app.renew(&idle).await.expect_problem(401, "session_expired");
    app.renew(&ended).await.expect_problem(401, "session_revoked");
    app.clock.advance(Duration::hours(1) + Duration::seconds(1));
    assert_eq!(clean_up(&app).await.0, 1);
    app.renew(&idle).await.expect_problem(401, "invalid_refresh_token");
    app.renew(&busy).await.expect_problem(401, "session_expired");
    app.clock.advance(Duration::hours(12));
    assert_eq!(clean_up(&app).await.0, 2);
    assert_eq!(count(&app, "sessions").await, 0);
    assert_eq!(clean_up(&app).await.0, 0);
}

#[tokio::test]
async fn revocations_are_deleted_a_day_after_their_tokens_expire() {
    let app = App::new().await;
    app.register("alice").await;
    let login = app.login("alice").await;
    app.post("/users/logout").bearer(&login).send().await.expect(204);
    app.clock.advance(Duration::minutes(15) + Duration::hours(24) - Duration::seconds(1));
    assert_eq!(clean_up(&app).await, (0, 0));
    app.clock.advance(Duration::seconds(1));
    assert_eq!(clean_up(&app).await, (0, 1));
    assert_eq!(count(&app, "revocations").await, 0);
}

#[tokio::test]
async fn abandoned_imports_are_deleted_after_thirty_days() {
    let app = App::new().await;
    let insert =
        "INSERT INTO imports (source_hash, source_name, created, updated, unchanged, rejected, rejects_bytes,
                      started_at, updated_at)
                  SELECT sha256(int8send(n)), 'users.jsonl', 1, 0, 0, 0, 0, $1 - n * interval '1 day',
                      $1 - n * interval '1 day'
                  FROM generate_series(0, 1500) AS n";
    sqlx::query(insert).bind(app.clock.now()).execute(&app.db).await.unwrap();
    let cleaned = app.state().clean_up.run(app.clock.now()).await.unwrap();
    // An import that is exactly thirty days old stays.
    assert_eq!(cleaned.imports, 1470);
    let cleaned = app.state().clean_up.run(app.clock.now()).await.unwrap();
    assert_eq!(cleaned.imports, 0);
}

#[tokio::test]
async fn many_rows_are_deleted_in_batches_without_notifying_any_replica() {
    let app = App::new().await;
    let user = app.register("alice").await;
    let insert = "INSERT INTO sessions (id, user_id, refresh_generation, refresh_salt, created_at, renewed_at,
                      is_confirmed, last_used_at, refresh_expires_at, expires_at, access_expires_at)
                  SELECT ('01940000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, $1::uuid, 0,
                      decode(repeat('00', 32), 'hex'), t, t, false, t, t + '1 day', t + '30 days', t + '15 minutes'
                  FROM generate_series(1, 5000) AS n,
                      LATERAL (SELECT timestamptz '2025-12-01 00:00Z' + n * interval '10 minutes' AS t) AS times";
    app.sql(insert, &user["id"]).await;
    // There is one every ten minutes, and some are still within their retention.
    let dead: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM sessions WHERE refresh_expires_at < timestamptz '2026-01-02 03:04:05.678901Z' - '7 days'::interval",
    )
    .fetch_one(&app.db)
    .await
    .unwrap();
    assert!((2000..4000).contains(&dead), "{dead}");
    // Counts the rows that each statement deletes, and so locks.
    let count_batches = "CREATE TABLE batches (size bigint NOT NULL);
        CREATE FUNCTION note_batch() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
        BEGIN INSERT INTO batches SELECT count(*) FROM gone; RETURN NULL; END $$;
        CREATE TRIGGER note_batch AFTER DELETE ON sessions REFERENCING OLD TABLE AS gone
        FOR EACH STATEMENT EXECUTE FUNCTION note_batch()";
    sqlx::raw_sql(count_batches).execute(&app.db).await.unwrap();
    assert_eq!(clean_up(&app).await, (dead.cast_unsigned(), 0));
    let (largest, all): (i64, i64) =
        sqlx::query_as("SELECT max(size), sum(size)::bigint FROM batches").fetch_one(&app.db).await.unwrap();
    assert_eq!(all, dead);
    assert!(largest <= 1000, "{largest} at once");
    assert_eq!(count(&app, "sessions").await, 5000 - dead);
    assert_eq!(count(&app, "revocations").await, 0);
}

#[tokio::test]
async fn only_one_replica_deletes_at_a_time_and_none_waits() {
    let app = App::new().await;
    app.register("alice").await;
    app.login("alice").await;
    app.clock.advance(Duration::days(9));

    // Another replica is in the middle of a batch.
    let mut other = app.db.begin().await.unwrap();
    let conn: &mut PgConnection = &mut other;
    let lock = i64::from_be_bytes(*b"sessions");
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(lock).execute(conn).await.unwrap();
    assert_eq!(clean_up(&app).await.0, 0);
    other.commit().await.unwrap();
    assert_eq!(clean_up(&app).await.0, 1);

    // Both at once.
    app.login("alice").await;
    let replica = app.replica(&[]).await;
    app.clock.advance(Duration::days(9));
    let (one, two) = tokio::join!(clean_up(&app), clean_up(&replica));
    assert_eq!(one.0 + two.0, 1);
}
