//! However a session ends, its access tokens are refused: at once by the replica that ended it, and elsewhere with the
//! next reading of the feed. So are tokens with roles that their user no longer has.
//!
//! - Nothing that commits late is skipped, and a lost notification or connection costs no more than a second.
//! - A replica that can no longer read the feed refuses everybody, and recovers by itself.
//! - Whatever clocks are set to, what is revoked stays revoked.
//! - No request reads the database for any of this, and a million ended sessions fit in memory.

use std::{
    fs::{self, File},
    sync::Arc,
    time::Instant,
};

use axum::http::Method;
use gatepass::{store::revocations, token::Revocations};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection, postgres::PgDatabaseError};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::{
    app::{self, App, PASSWORD, START},
    postgres::Server,
    process::{Home, Signal, allowed, is_drill, until},
};

const OTHER_PASSWORD: &str = "another-horse-battery-7";

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// Runs a statement past the service, like somebody with psql.
async fn by_hand(app: &App, statement: &'static str, id: &Value) {
    let mut psql = PgConnection::connect(&app.database_url).await.unwrap();
    sqlx::query(statement).bind(text(id)).execute(&mut psql).await.unwrap();
}

/// `gatepass ARGS…` on the database of `app`.
async fn gatepass(app: &App, args: &[&str]) {
    let home = Home::new();
    let invocation = home.gatepass(args).env("DB_SOURCE", &app.database_url);
    invocation.envs(&crate::process::QUICK).stdin(OTHER_PASSWORD).run().await.expect(0);
}

/// How alice's session `doomed` ends, while she has another one, `asking`.
#[derive(Clone, Copy, Debug)]
enum Way {
    Logout,
    OneById,
    Itself,
    Others,
    All,
    PasswordChange,
    Deletion,
    Administrator,
    Replay,
    RevokedByAccessToken,
    RevokedByRefreshToken,
    CommandRevokes,
    CommandDisables,
    CommandSetsPassword,
    CommandDeletes,
    DisabledByHand,
    EndedByHand,
    DeletedByHand,
    UserDeletedByHand,
}

use Way::*;

/// Those that go through a replica, which then refuses the session's tokens at once.
const HERE: [Way; 11] = [
    Logout,
    OneById,
    Itself,
    Others,
    All,
    PasswordChange,
    Deletion,
    Administrator,
    Replay,
    RevokedByAccessToken,
    RevokedByRefreshToken,
];
/// Those that every replica has to learn from the feed.
const ELSEWHERE: [Way; 8] = [
    CommandRevokes,
    CommandDisables,
    CommandSetsPassword,
    CommandDeletes,
    DisabledByHand,
    EndedByHand,
    DeletedByHand,
    UserDeletedByHand,
];

impl Way {
    async fn go(self, app: &App, root: &Value, asking: &Value, doomed: &Value) {
        let user_id = &doomed["user"]["id"];
        let revoke = |token: &Value| app.post("/tokens/revoke").form(&[("token", text(token))]);
        let delete = |path: &str, login: &Value| app.request(Method::DELETE, path).bearer(login);
        let one = format!("/sessions/{}", text(&doomed["session_id"]));
        let answer = match self {
            Logout => app.post("/users/logout").bearer(doomed).send().await,
            OneById => delete(&one, asking).send().await,
            Itself => delete(&one, doomed).send().await,
            Others => delete("/sessions", asking).send().await,
            All => delete("/sessions?all=true", asking).send().await,
            PasswordChange => {
                let body = json!({ "current_password": PASSWORD, "new_password": OTHER_PASSWORD });
                app.request(Method::PUT, "/users/me/password").bearer(asking).json(&body).send().await
            }
            Deletion => {
                app.post("/users/me/delete")
                    .bearer(asking)
                    .json(&json!({ "password": PASSWORD }))
                    .send()
                    .await
            }
            Administrator => delete(&format!("/admin/users/{}/sessions", text(user_id)), root).send().await,
            RevokedByAccessToken => revoke(&doomed["access_token"]).send().await,
            RevokedByRefreshToken => revoke(&doomed["refresh_token"]).send().await,
            Replay => {
                let renewed = app.renew(doomed).await.expect(200);
                app.renew(&renewed).await.expect(200);
                app.renew(doomed).await.expect_problem(401, "refresh_token_reused");
                return;
            }
            CommandRevokes => return gatepass(app, &["user", "revoke-sessions", "alice"]).await,
            CommandDisables => return gatepass(app, &["user", "disable", "alice"]).await,
            CommandSetsPassword => {
                return gatepass(app, &["user", "set-password", "alice", "--password-stdin"]).await;
            }
            CommandDeletes => return gatepass(app, &["user", "delete", "alice", "--yes"]).await,
            DisabledByHand => {
                return by_hand(app, "UPDATE users SET disabled = true WHERE id = $1::uuid", user_id).await;
            }
            EndedByHand => {
                let end = "UPDATE sessions SET ended_at = now(), end_reason = 'revoked' WHERE id = $1::uuid";
                return by_hand(app, end, &doomed["session_id"]).await;
            }
            DeletedByHand => {
                let delete = "DELETE FROM sessions WHERE id = $1::uuid";
                return by_hand(app, delete, &doomed["session_id"]).await;
            }
            UserDeletedByHand => {
                return by_hand(app, "DELETE FROM users WHERE id = $1::uuid", user_id).await;
            }
        };
        assert!(answer.status.is_success(), "{self:?}: {}", answer.body);
    }

    /// Whether the other session stays alive.
    fn spares_the_other(self) -> bool {
        matches!(
            self,
            Logout
                | OneById
                | Itself
                | Others
                | PasswordChange
                | Replay
                | RevokedByAccessToken
                | RevokedByRefreshToken
                | EndedByHand
                | DeletedByHand
        )
    }
}

fn refused(code: &str) -> (u16, String) {
    (401, code.to_owned())
}

fn accepted() -> (u16, String) {
    (200, String::new())
}

/// A replica whose clock shows the real time, which statements run by hand use.
async fn present() -> App {
    let app = App::new().await;
    app.clock.shift(OffsetDateTime::now_utc() - START);
    app
}

async fn ends(way: Way, is_here: bool) {
    let app = present().await;
    let other = app.replica(&[]).await;
    let client = app.client("orders").await;
    let root = app.login_admin("root").await;
    app.register("alice").await;
    let (asking, doomed) = (app.login("alice").await, app.login("alice").await);
    for replica in [&app, &other] {
        assert_eq!(replica.knock(&doomed).await, accepted(), "{way:?}");
        assert_eq!(replica.knock(&asking).await, accepted(), "{way:?}");
    }

    way.go(&app, &root, &asking, &doomed).await;
    if !is_here {
        app.hear().await;
    }
    assert_eq!(app.knock(&doomed).await, refused("session_revoked"), "{way:?}");
    // The other replica learns of it from the feed, and from nothing else.
    assert_eq!(other.knock(&doomed).await, accepted(), "{way:?}");
    other.hear().await;

    for replica in [&app, &other] {
        assert_eq!(replica.knock(&doomed).await, refused("session_revoked"), "{way:?}");
        let answer = replica.get("/users/me").bearer(&doomed).send().await;
        let challenge = r#"Bearer error="invalid_token", error_description="The session has ended""#;
        assert_eq!(answer.header("www-authenticate"), challenge, "{way:?}");
        answer.expect_problem(401, "session_revoked");
        let form = [("token", text(&doomed["access_token"]))];
        let said = replica.post("/tokens/introspect").client(&client).form(&form).send().await;
        assert_eq!(said.expect(200), json!({ "active": false }), "{way:?}");

        let expected = if way.spares_the_other() { accepted() } else { refused("session_revoked") };
        assert_eq!(replica.knock(&asking).await, expected, "{way:?}");
        assert_eq!(replica.knock(&root).await, accepted(), "{way:?}");
    }
    assert_eq!(other.renew(&doomed).await.status.as_u16(), 401, "{way:?}");
}

#[tokio::test]
async fn a_session_ended_here_is_refused_at_once_and_elsewhere_once_learned() {
    for way in HERE {
        ends(way, true).await;
    }
}

#[tokio::test]
async fn a_session_ended_outside_the_service_is_refused_once_that_is_learned() {
    for way in ELSEWHERE {
        ends(way, false).await;
    }
}

#[tokio::test]
async fn nobody_ends_the_session_of_another() {
    let app = App::new().await;
    for name in ["alice", "bob"] {
        app.register(name).await;
    }
    let (alice, bob) = (app.login("alice").await, app.login("bob").await);
    for id in
        [text(&bob["session_id"]), text(&bob["user"]["id"]), "019aa3f0-5b7c-7c3e-9d0a-3f2a1b4c5d6e", "x"]
    {
        let request = app.request(Method::DELETE, &format!("/sessions/{id}")).bearer(&alice);
        request.send().await.expect_problem(404, "not_found");
    }
    app.request(Method::DELETE, "/sessions?all=true").bearer(&alice).send().await.expect(204);
    assert_eq!(app.knock(&alice).await, refused("session_revoked"));
    assert_eq!(app.knock(&bob).await, accepted());
    // Nor is one ended twice.
    let (first, second) = (app.login("bob").await, app.login("bob").await);
    let path = format!("/sessions/{}", text(&first["session_id"]));
    app.request(Method::DELETE, &path).bearer(&second).send().await.expect(204);
    let answer = app.request(Method::DELETE, &path).bearer(&second).send().await;
    assert_eq!(answer.expect_problem(404, "not_found")["detail"], "There is no such session.");
    for (query, field) in [
        ("?all=yes", "all"),
        ("?all=", "all"),
        ("?all=true&all=true", "all"),
        ("?every=true", "every"),
        ("?all=true&x=1", "x"),
    ] {
        let request = app.request(Method::DELETE, &format!("/sessions{query}")).bearer(&second);
        let problem = request.send().await.expect_problem(422, "validation_failed");
        assert_eq!(problem["errors"][0]["field"], field, "{query}");
    }
    assert_eq!(app.knock(&second).await, accepted());
}

#[tokio::test]
async fn users_see_where_they_are_logged_in() {
    let app = App::new().await;
    for name in ["alice", "bob"] {
        app.register(name).await;
    }
    app.login("bob").await;
    let credentials = json!({ "username": "alice", "password": PASSWORD });
    let log_in = app.post("/users/login").json(&credentials).header("user-agent", "Phone/7");
    let phone = log_in.peer("198.51.100.7").send().await.expect(200);
    app.clock.advance(Duration::minutes(1));
    let desk = app.login("alice").await;
    app.clock.advance(Duration::minutes(1));
    let gone = app.login("alice").await;
    app.post("/users/logout").bearer(&gone).send().await.expect(204);

    let answer = app.get("/sessions").bearer(&desk).send().await;
    assert_eq!(answer.header("cache-control"), "no-store");
    let shown =
        |login: &Value, begun: &str, used: &str, ends: &str, agent: Value, ip: &str, current: bool| {
            json!({
                "id": login["session_id"], "created_at": begun, "last_used_at": used, "expires_at": ends,
                "user_agent": agent, "client_ip": ip, "current": current,
            })
        };
    let desk_shown = |current| {
        let (begun, ends) = ("2026-01-02T03:05:05.678901Z", "2026-02-01T03:05:05Z");
        shown(&desk, begun, begun, ends, Value::Null, "192.0.2.1", current)
    };
    let (begun, ends) = ("2026-01-02T03:04:05.678901Z", "2026-02-01T03:04:05Z");
    let phone_shown = shown(&phone, begun, begun, ends, "Phone/7".into(), "198.51.100.7", false);
    assert_eq!(answer.expect(200), json!({ "sessions": [desk_shown(true), phone_shown] }));

    // A renewal records where the session is now.
    let body = json!({ "refresh_token": phone["refresh_token"] });
    let renewal = app.post("/tokens/renew_access").json(&body).header("user-agent", "Phone/8");
    let phone = renewal.peer("2001:db8::7").send().await.expect(200);
    let used = "2026-01-02T03:06:05.678901Z";
    let phone_shown = shown(&phone, begun, used, ends, "Phone/8".into(), "2001:db8::7", true);
    let list = app.get("/sessions").bearer(&phone).send().await.expect(200);
    assert_eq!(list, json!({ "sessions": [phone_shown, desk_shown(false)] }));

    // Expired sessions are gone.
    app.clock.advance(Duration::hours(24));
    let today = app.login("alice").await;
    let list = app.get("/sessions").bearer(&today).send().await.expect(200);
    assert_eq!(list["sessions"].as_array().unwrap().len(), 1, "{list}");
}

#[tokio::test]
async fn a_session_whose_access_token_outlives_its_refresh_token_is_shown_and_can_be_ended() {
    let app = App::with(&[("ACCESS_TOKEN_DURATION", "12h"), ("REFRESH_TOKEN_DURATION", "1h")]).await;
    app.register("alice").await;
    let phone = app.login("alice").await;
    app.clock.advance(Duration::hours(2));
    app.renew(&phone).await.expect_problem(401, "session_expired");
    let desk = app.login("alice").await;
    let shown = async || {
        let list = app.get("/sessions").bearer(&desk).send().await.expect(200);
        list["sessions"].as_array().unwrap().iter().map(|session| session["id"].clone()).collect::<Vec<_>>()
    };

    // It cannot be renewed, but whoever has its access token is still in.
    app.get("/users/me").bearer(&phone).send().await.expect(200);
    assert_eq!(shown().await, [desk["session_id"].clone(), phone["session_id"].clone()]);

    let path = format!("/sessions/{}", phone["session_id"].as_str().unwrap());
    app.request(Method::DELETE, &path).bearer(&desk).send().await.expect(204);
    app.get("/users/me").bearer(&phone).send().await.expect_problem(401, "session_revoked");
    assert_eq!(shown().await, [desk["session_id"].clone()]);

    // A session whose tokens have all expired is gone.
    app.clock.advance(Duration::hours(11));
    let last = app.login("alice").await;
    app.clock.advance(Duration::hours(2));
    let list = app.get("/sessions").bearer(&last).send().await.expect(200);
    assert_eq!(list["sessions"].as_array().unwrap().len(), 1, "{list}");
}

#[tokio::test]
async fn a_token_with_former_roles_is_outdated_until_it_is_renewed() {
    const SET: &str = "UPDATE users SET roles = '{support}' WHERE id = $1::uuid";
    for by_command in [false, true] {
        let app = present().await;
        let other = app.replica(&[]).await;
        app.register("alice").await;
        app.register("bob").await;
        let (alice, bob) = (app.login("alice").await, app.login("bob").await);
        if by_command {
            gatepass(&app, &["user", "set-role", "alice", "support"]).await;
        } else {
            by_hand(&app, SET, &alice["user"]["id"]).await;
        }
        for replica in [&app, &other] {
            assert_eq!(replica.knock(&alice).await, accepted());
            replica.hear().await;
            assert_eq!(replica.knock(&alice).await, refused("token_outdated"));
            assert_eq!(replica.knock(&bob).await, accepted());
            let answer = replica.get("/users/me").bearer(&alice).send().await;
            let challenge = r#"Bearer error="invalid_token", error_description="The roles have changed; renew the token""#;
            assert_eq!(answer.header("www-authenticate"), challenge);
            answer.expect_problem(401, "token_outdated");
        }
        let renewed = other.renew(&alice).await.expect(200);
        for replica in [&app, &other] {
            assert_eq!(replica.knock(&renewed).await, accepted());
            assert_eq!(replica.knock(&alice).await, refused("token_outdated"));
        }
        // A new login has the current roles.
        assert_eq!(app.knock(&app.login("alice").await).await, accepted());
    }
}

#[tokio::test]
async fn restoring_former_roles_keeps_the_token_valid() {
    let app = present().await;
    app.register("alice").await;
    let alice = app.login("alice").await;
    let set = async |roles: &'static str| by_hand(&app, roles, &alice["user"]["id"]).await;
    set("UPDATE users SET roles = '{auditor}' WHERE id = $1::uuid").await;
    app.hear().await;
    assert_eq!(app.knock(&alice).await, refused("token_outdated"));
    let auditor = app.renew(&alice).await.expect(200);
    assert_eq!(app.knock(&auditor).await, accepted());

    // Set back, as one reading sees it; then changed and set back between two readings.
    set("UPDATE users SET roles = '{}' WHERE id = $1::uuid").await;
    app.hear().await;
    for _ in 0..2 {
        assert_eq!(app.knock(&alice).await, accepted());
        assert_eq!(app.knock(&auditor).await, refused("token_outdated"));
        set("UPDATE users SET roles = '{auditor}' WHERE id = $1::uuid").await;
        set("UPDATE users SET roles = '{support}' WHERE id = $1::uuid").await;
        set("UPDATE users SET roles = '{}' WHERE id = $1::uuid").await;
        app.hear().await;
    }
    // Setting the same roles again is no change.
    set("UPDATE users SET roles = '{}', full_name = 'Alice' WHERE id = $1::uuid").await;
    app.hear().await;
    assert_eq!(app.knock(&alice).await, accepted());
}

#[tokio::test]
async fn sessions_that_are_truncated_by_hand_are_over() {
    let app = present().await;
    app.register("alice").await;
    let alice = app.login("alice").await;
    sqlx::query("TRUNCATE sessions").execute(&app.db).await.unwrap();
    app.hear().await;
    assert_eq!(app.knock(&alice).await, refused("session_revoked"));
}

/// Up to then, the end of the session revokes its tokens.
#[tokio::test]
async fn a_sessions_last_token_is_not_made_to_expire_earlier() {
    let app = present().await;
    app.register("alice").await;
    let alice = app.login("alice").await;
    let lower =
        "UPDATE sessions SET access_expires_at = now(), refresh_expires_at = now() + interval '1 minute'";
    let refused = sqlx::query(lower).execute(&app.db).await.unwrap_err();
    let refused = refused.into_database_error().unwrap();
    assert_eq!(refused.constraint(), Some("sessions_access_not_earlier"), "{refused}");
    let hint = refused.downcast::<PgDatabaseError>().hint().unwrap().to_owned();
    assert!(hint.contains("set ended_at and end_reason"), "{hint}");
    app.hear().await;
    assert_eq!(app.knock(&alice).await, accepted());
}

/// As a rule of the team's own, which the service's triggers have to see the outcome of.
#[tokio::test]
async fn what_a_trigger_of_ones_own_changes_counts_as_well() {
    const RULE: &str =
        "CREATE FUNCTION rule() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN change; RETURN NEW; END $$;
                        CREATE TRIGGER rule BEFORE UPDATE ON place FOR EACH ROW EXECUTE FUNCTION rule()";
    for (place, change) in [
        ("sessions", "NEW.ended_at := now(); NEW.end_reason := 'revoked'"),
        ("users", "NEW.disabled := true"),
        ("users", "NEW.roles := '{support}'"),
    ] {
        let app = present().await;
        app.register("alice").await;
        let alice = app.login("alice").await;
        let rule = RULE.replace("change", change).replace("place", place);
        sqlx::raw_sql(AssertSqlSafe(rule)).execute(&app.db).await.unwrap();
        let harmless = if place == "users" { "full_name = 'Alice'" } else { "user_agent = 'b'" };
        let update = format!("UPDATE {place} SET {harmless}");
        sqlx::query(AssertSqlSafe(update)).execute(&app.db).await.unwrap();
        app.hear().await;
        assert_eq!(app.knock(&alice).await.0, 401, "{change}");
    }
}

/// As a table restored beside the real one, or a copy for a moment.
#[tokio::test]
async fn whoever_has_a_table_of_the_same_name_revokes_all_the_same() {
    const COPY: &str = "CREATE TEMP TABLE revocations AS TABLE public.revocations;
                        CREATE TEMP TABLE sessions AS TABLE public.sessions";
    for change in [
        "UPDATE public.sessions SET ended_at = now(), end_reason = 'revoked'",
        "DELETE FROM public.sessions",
        "TRUNCATE public.sessions",
        "UPDATE public.users SET disabled = true",
        "UPDATE public.users SET roles = '{support}'",
    ] {
        let app = present().await;
        app.register("alice").await;
        let alice = app.login("alice").await;
        let mut conn = PgConnection::connect(&app.database_url).await.unwrap();
        sqlx::raw_sql(COPY).execute(&mut conn).await.unwrap();
        sqlx::query(change).execute(&mut conn).await.unwrap();
        app.hear().await;
        assert_eq!(app.knock(&alice).await.0, 401, "{change}");
    }
}

const END: &str = "UPDATE sessions SET ended_at = now(), end_reason = 'revoked' WHERE id = $1::uuid";

#[tokio::test]
async fn a_revocation_in_a_slow_transaction_is_not_skipped() {
    let app = present().await;
    app.register("alice").await;
    let (first, second, third) =
        (app.login("alice").await, app.login("alice").await, app.login("alice").await);
    let mut slow = PgConnection::connect(&app.database_url).await.unwrap();
    let mut slow = slow.begin().await.unwrap();
    sqlx::query(END).bind(text(&first["session_id"])).execute(&mut *slow).await.unwrap();
    // Begun later, with a higher transaction number, and committed earlier.
    by_hand(&app, END, &second["session_id"]).await;
    for _ in 0..3 {
        app.hear().await;
        assert_eq!(app.knock(&first).await, accepted());
        assert_eq!(app.knock(&second).await, refused("session_revoked"));
    }
    slow.commit().await.unwrap();
    // Another one after it, so that the late one is not also the last.
    by_hand(&app, END, &third["session_id"]).await;
    app.hear().await;
    for login in [&first, &second, &third] {
        assert_eq!(app.knock(login).await, refused("session_revoked"));
    }
}

/// After a restart or a failover everything is read from the beginning; until that is done, what was known before
/// holds.
#[tokio::test]
async fn former_roles_stay_revoked_while_another_server_is_being_read() {
    const SET: &str = "UPDATE users SET roles = '{admin}' WHERE id = $1::uuid";
    const UNSET: &str = "UPDATE users SET roles = '{}' WHERE id = $1::uuid";
    // More than one statement reads, then a row that nobody can read, and all of it ahead of what is heard later.
    const FLOOD: &str = "INSERT INTO revocations (xid, session_id, expires_at)
                         SELECT '3', gen_random_uuid(), now() + interval '15 minutes' FROM generate_series(1, 10000)";
    const UNREADABLE: &str = "INSERT INTO revocations (xid, user_id, roles, expires_at)
                              SELECT '3', id, '{NULL}', now() + interval '15 minutes' FROM users WHERE id = $1::uuid";
    let mut server = Server::new("", |_| {}).await;
    app::set_up(&server.url()).await;
    let app = App::over(server.url(), &[]).await;
    app.clock.shift(OffsetDateTime::now_utc() - START);
    app.login_admin("root").await;
    for name in ["alice", "bob"] {
        app.register(name).await;
        app.sql(SET, &app.login(name).await["user"]["id"]).await;
    }
    let (alice, bob) = (app.login("alice").await, app.login("bob").await);
    app.sql(UNSET, &alice["user"]["id"]).await;
    app.hear().await;
    let outdated = refused("token_outdated");
    assert_eq!((app.knock(&alice).await, app.knock(&bob).await), (outdated.clone(), accepted()));

    // The new server has lost bob's change, which the replica had heard, and gives lower numbers to the next one.
    sqlx::query(FLOOD).execute(&app.db).await.unwrap();
    app.sql(UNREADABLE, &alice["user"]["id"]).await;
    app.sql("DELETE FROM revocations WHERE user_id = $1::uuid", &bob["user"]["id"]).await;
    server.run("ALTER TABLE revocations ALTER COLUMN id RESTART WITH 1").await;
    app.sql(UNSET, &bob["user"]["id"]).await;
    server.restart(rustix::process::Signal::INT, std::time::Duration::ZERO).await;

    // A reading that fails in the middle.
    let feed = &app.state().feed;
    until("it is read as far as that goes", async || {
        let error = feed.hear().await.unwrap_err().to_string();
        assert_eq!(app.knock(&alice).await, outdated, "{error}");
        feed.revocations().count().sessions == 10_000
    })
    .await;
    assert_eq!(app.knock(&alice).await, outdated);

    // A reading that is held up.
    let mut psql = server.connect().await;
    sqlx::query("DELETE FROM revocations WHERE roles = '{NULL}'").execute(&mut psql).await.unwrap();
    let mut lock = psql.begin().await.unwrap();
    sqlx::query("LOCK TABLE revocations IN ACCESS EXCLUSIVE MODE").execute(&mut *lock).await.unwrap();
    let reading = tokio::spawn({
        let feed = feed.clone();
        async move { feed.hear().await }
    });
    until("it waits", async || {
        let waits =
            "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'revocations'::regclass AND NOT granted)";
        sqlx::query_scalar(waits).fetch_one(&mut *lock).await.unwrap()
    })
    .await;
    assert_eq!(app.knock(&alice).await, outdated);
    lock.rollback().await.unwrap();
    reading.await.unwrap().unwrap();

    for login in [&alice, &bob] {
        assert_eq!(app.knock(login).await, outdated);
        let name = text(&login["user"]["username"]);
        assert_eq!(app.knock(&app.login(name).await).await, accepted(), "{name}");
    }
}

#[tokio::test]
async fn what_is_rolled_back_revokes_nothing() {
    let app = present().await;
    app.register("alice").await;
    let alice = app.login("alice").await;
    let mut psql = PgConnection::connect(&app.database_url).await.unwrap();
    let mut taken_back = psql.begin().await.unwrap();
    sqlx::query(END).bind(text(&alice["session_id"])).execute(&mut *taken_back).await.unwrap();
    app.hear().await;
    taken_back.rollback().await.unwrap();
    app.hear().await;
    assert_eq!(app.knock(&alice).await, accepted());
}

/// A replica that reads its feed as `serve` does.
struct Following {
    app: App,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Following {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Following {
    async fn start() -> Self {
        let app = present().await;
        app.register("alice").await;
        let feed = app.state().feed.clone();
        let following = Self { app, task: tokio::spawn(async move { feed.follow().await }) };
        following.listens().await;
        following
    }

    /// Waits until it has a connection that listens.
    async fn listens(&self) {
        until("it listens", async || {
            let listeners = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                             AND query LIKE 'LISTEN%'";
            let mut psql = PgConnection::connect(&self.app.database_url).await.unwrap();
            sqlx::query_scalar::<_, i64>(listeners).fetch_one(&mut psql).await.unwrap() > 0
        })
        .await;
    }

    /// Ends a session by hand; returns the time from the commit until it is refused.
    async fn measure(&self) -> std::time::Duration {
        let login = self.app.login("alice").await;
        assert_eq!(self.app.knock(&login).await, accepted());
        by_hand(&self.app, END, &login["session_id"]).await;
        let began = Instant::now();
        until("it is refused", async || self.app.knock(&login).await != accepted()).await;
        began.elapsed()
    }

    /// Ends the connections to this database for which `which` is true.
    async fn cut(&self, which: &'static str) {
        let mut psql = PgConnection::connect(&self.app.database_url).await.unwrap();
        let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                   WHERE datname = current_database() AND pid <> pg_backend_pid() AND ";
        let cut = sqlx::AssertSqlSafe(format!("{cut}{which}"));
        assert!(sqlx::query_scalar::<_, i64>(cut).fetch_one(&mut psql).await.unwrap() > 0, "{which}");
    }
}

const SECOND: std::time::Duration = std::time::Duration::from_secs(1);

#[tokio::test]
async fn a_notification_tells_at_once() {
    let following = Following::start().await;
    let mut took = Vec::new();
    for _ in 0..9 {
        took.push(following.measure().await);
    }
    took.sort();
    println!("from commit to refusal, notified: median {:?}, at most {:?}", took[4], took[8]);
    assert!(took[8] < allowed(SECOND), "{took:?}");
    // Polling alone, every half second, would take a quarter of a second on average.
    assert!(took[4] < std::time::Duration::from_millis(150), "{took:?}");
}

#[tokio::test]
async fn a_lost_notification_or_connection_costs_no_more_than_a_second() {
    let following = Following::start().await;
    for _ in 0..3 {
        following.cut("query LIKE 'LISTEN%'").await;
        let took = following.measure().await;
        println!("from commit to refusal, nobody listening: {took:?}");
        assert!(took < allowed(SECOND), "{took:?}");
        following.listens().await;
        assert!(following.measure().await < allowed(SECOND));
    }
    // All of its connections, including the one that reads the feed.
    for _ in 0..3 {
        let login = following.app.login("alice").await;
        following.cut("true").await;
        by_hand(&following.app, END, &login["session_id"]).await;
        let began = Instant::now();
        until("it is refused", async || following.app.knock(&login).await != accepted()).await;
        println!("from commit to refusal, all connections cut: {:?}", began.elapsed());
        assert!(began.elapsed() < allowed(2 * SECOND), "{:?}", began.elapsed());
        following.listens().await;
    }
    assert!(!following.task.is_finished());
}

#[tokio::test]
async fn a_bearer_request_reads_nothing_from_the_database() {
    let app = App::new().await;
    app.register("alice").await;
    let (alice, gone) = (app.login("alice").await, app.login("alice").await);
    app.post("/users/logout").bearer(&gone).send().await.expect(204);

    // Anything that reads one of these tables waits for this lock.
    let mut psql = PgConnection::connect(&app.database_url).await.unwrap();
    let mut lock = psql.begin().await.unwrap();
    let tables = "LOCK TABLE users, sessions, revocations, clients, signing_keys IN ACCESS EXCLUSIVE MODE";
    sqlx::query(tables).execute(&mut *lock).await.unwrap();
    let knocks = async {
        for _ in 0..100 {
            assert_eq!(app.knock(&alice).await, accepted());
            assert_eq!(app.knock(&gone).await, refused("session_revoked"));
            app.get("/users/me").bearer(&gone).send().await.expect_problem(401, "session_revoked");
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), knocks).await.expect("nobody waits");
    lock.rollback().await.unwrap();

    // And anything that wants a connection gets an error.
    app.lose_database().await;
    assert_eq!(app.knock(&alice).await, accepted());
    assert_eq!(app.knock(&gone).await, refused("session_revoked"));
    app.get("/users/me").bearer(&gone).send().await.expect_problem(401, "session_revoked");
    app.get("/users/me").bearer(&alice).send().await.expect_problem(503, "database_unavailable");
}

#[tokio::test]
async fn a_replica_with_stale_revocations_refuses_everyone_until_updated() {
    let app = App::with(&[("REVOCATION_MAX_STALENESS", "60s")]).await;
    let client = app.client("orders").await;
    app.register("alice").await;
    let (alice, gone) = (app.login("alice").await, app.login("alice").await);
    app.post("/users/logout").bearer(&gone).send().await.expect(204);

    app.clock.advance(Duration::seconds(60));
    assert_eq!(app.knock(&alice).await, accepted());
    app.get("/users/me").bearer(&alice).send().await.expect(200);
    app.get("/readyz").send().await.expect(200);

    app.clock.advance(Duration::seconds(1));
    let introspection =
        || app.post("/tokens/introspect").client(&client).form(&[("token", text(&alice["access_token"]))]);
    for story in
        [app.get("/users/me").bearer(&alice), introspection(), app.get("/revocations").client(&client)]
    {
        let answer = story.send().await;
        assert_eq!(answer.header("retry-after"), "1");
        assert_eq!(answer.header("www-authenticate"), "");
        answer.expect_problem(503, "revocations_stale");
    }
    let stale = app.door(&alice).send().await;
    assert_eq!((stale.status.as_u16(), stale.header("retry-after")), (503, "1"));
    // An ended session is still refused as ended, and an invalid token as invalid.
    app.get("/users/me").bearer(&gone).send().await.expect_problem(401, "session_revoked");
    app.get("/users/me").token("x").send().await.expect_problem(401, "invalid_token");
    let problem = app.get("/readyz").send().await.expect_problem(503, "not_ready");
    assert!(
        problem["reasons"].as_array().unwrap().contains(&json!("revocations: not read for 61 s")),
        "{problem}"
    );

    app.hear().await;
    assert_eq!(app.knock(&alice).await, accepted());
    introspection().send().await.expect(200);
    app.get("/readyz").send().await.expect(200);
}

#[tokio::test]
async fn setting_the_clock_causes_no_staleness_and_undoes_no_revocation() {
    let app = App::with(&[("REVOCATION_MAX_STALENESS", "60s")]).await;
    app.register("alice").await;
    let hour = Duration::hours(1);
    let feed = &app.state().feed;
    for by in [hour, -hour] {
        app.clock.shift(by);
        assert_eq!(feed.staleness(), None);
        app.clock.shift(-by);
        assert_eq!(feed.staleness(), None);
        let (alice, gone) = (app.login("alice").await, app.login("alice").await);
        app.post("/users/logout").bearer(&gone).send().await.expect(204);
        // There and back, with everything that a replica does meanwhile.
        for by in [by, -by] {
            app.clock.shift(by);
            app.hear().await;
            feed.revocations().forget_expired(app.clock.now());
            assert_ne!(app.knock(&gone).await, accepted(), "{by}");
        }
        assert_eq!(app.knock(&alice).await, accepted(), "{by}");
        assert_eq!(app.knock(&gone).await, refused("session_revoked"), "{by}");
    }

    // The clock is set, and then only time passes: the time that has passed is what counts.
    app.clock.shift(-hour);
    app.clock.advance(Duration::seconds(61));
    assert!(feed.staleness().is_some());
}

#[tokio::test]
async fn revocations_forgotten_by_a_fast_clock_are_read_again() {
    let app = App::new().await;
    app.register("alice").await;
    let gone = app.login("alice").await;
    app.post("/users/logout").bearer(&gone).send().await.expect(204);
    let revocations = app.state().feed.revocations();
    app.clock.shift(Duration::hours(1));
    app.hear().await;
    revocations.forget_expired(app.clock.now());
    assert_eq!(revocations.count().sessions, 0);
    // And a replica that starts while the clock is ahead.
    let other = app.try_replica(app::KEY, app.clock.clone(), &[]).await.unwrap();
    assert_eq!(other.state().feed.revocations().count().sessions, 0);
    app.clock.shift(-Duration::hours(1));
    for replica in [&app, &other] {
        replica.hear().await;
        assert_eq!(replica.knock(&gone).await, refused("session_revoked"));
    }
}

#[tokio::test]
async fn a_process_without_its_database_refuses_everyone_until_it_is_back() {
    let database_url = app::database().await;
    let home = Home::new();
    let service = home.serve(&[("DB_SOURCE", &*database_url), ("REVOCATION_MAX_STALENESS", "2s")]).await;
    let alice = json!({ "username": "alice", "email": "alice@example.com", "password": PASSWORD });
    assert_eq!(service.post("/users", &alice).await.0, 201);
    let credentials = json!({ "username": "alice", "password": PASSWORD });
    let (status, login) = service.post("/users/login", &credentials).await;
    assert_eq!(status, 200);
    let token = text(&login["access_token"]);
    assert_eq!(service.get_as(token, "/users/me").await.0, 200);

    let name = database_url.rsplit('/').next().unwrap().split('?').next().unwrap();
    app::admin(&format!(r#"ALTER DATABASE "{name}" ALLOW_CONNECTIONS false"#)).await;
    app::admin(&format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"))
        .await;
    let began = Instant::now();
    let mut codes = Vec::new();
    until("it is stale", async || {
        let (status, problem) = service.get_as(token, "/users/me").await;
        assert_eq!(status, 503, "{problem}");
        codes.push(text(&problem["code"]).to_owned());
        codes.last().unwrap() == "revocations_stale"
    })
    .await;
    println!("the database gone, everybody refused after {:?}", began.elapsed());
    assert_eq!(codes[0], "database_unavailable");
    let (_, ready) = service.get("/readyz").await;
    assert!(ready["reasons"].to_string().contains("revocations: not read for "), "{ready}");

    app::admin(&format!(r#"ALTER DATABASE "{name}" ALLOW_CONNECTIONS true"#)).await;
    let began = Instant::now();
    until("it is back", async || service.get_as(token, "/users/me").await.0 == 200).await;
    println!("the database back, accepted again after {:?}", began.elapsed());
    service.stop(Signal::TERM).await.expect(0);
}

/// The most memory that ended sessions may take: so many bytes for each, and so many in addition, whatever their
/// number.
const BYTES_EACH: usize = 48;
const BYTES_BESIDES: usize = 64 * 1024;

#[test]
fn revocations_are_kept_until_the_last_token_has_expired() {
    let revocations = Revocations::new(SECOND);
    // Tokens expire on a whole second.
    let end = START.truncate_to_second() + Duration::minutes(15);
    revocations.end_session(Uuid::from_u128(1), end);
    revocations.change_roles(Uuid::from_u128(2), vec![], 1, end);
    let known = |now| {
        revocations.forget_expired(now);
        let count = revocations.count();
        (count.sessions, count.users)
    };
    assert_eq!(known(end - Duration::milliseconds(1)), (1, 1));
    assert_eq!(known(end), (0, 0));
}

#[test]
fn an_ended_session_takes_48_bytes_at_most_and_gives_them_back() {
    let revocations = Revocations::new(SECOND);
    let mut count = 0;
    for i in 0..50_000_u32 {
        let id = u128::from(i) << 64 | (u128::from(i).wrapping_mul(0x9e37_79b9_7f4a_7c15) & 0xffff_ffff);
        revocations.end_session(Uuid::from_u128(id), START + Duration::minutes(15));
        count += 1;
        if count % 1_000 == 0 {
            let held = revocations.count();
            assert_eq!(held.sessions, count);
            assert!(held.session_bytes <= BYTES_EACH * count + BYTES_BESIDES, "{held:?}");
        }
    }
    println!("{:?}", revocations.count());
    revocations.forget_expired(START + Duration::minutes(15) + SECOND);
    let held = revocations.count();
    assert_eq!(held.sessions, 0);
    assert!(held.session_bytes <= BYTES_BESIDES, "{held:?}");
}

/// `make test` does it with ten thousand, `make drill` with a million.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_process_has_room_for_a_million_ended_sessions() {
    let sessions = if is_drill() { 1_000_000 } else { 10_000 };
    let database_url = app::database().await;
    let mut psql = PgConnection::connect(&database_url).await.unwrap();
    let home = Home::new();
    let service = home.serve(&[("DB_SOURCE", &*database_url)]).await;
    let alice = json!({ "username": "alice", "email": "alice@example.com", "password": PASSWORD });
    assert_eq!(service.post("/users", &alice).await.0, 201);
    let credentials = json!({ "username": "alice", "password": PASSWORD });
    let (_, kept) = service.post("/users/login", &credentials).await;
    let (_, gone) = service.post("/users/login", &credentials).await;
    let before = service.resident_bytes();

    // In one transaction with the session that is checked.
    let mut flood = psql.begin().await.unwrap();
    let rows = "INSERT INTO revocations (session_id, expires_at)
                SELECT gen_random_uuid(), now() + interval '15 minutes' FROM generate_series(1, $1)";
    sqlx::query(rows).bind(sessions).execute(&mut *flood).await.unwrap();
    sqlx::query(END).bind(text(&gone["session_id"])).execute(&mut *flood).await.unwrap();
    let began = Instant::now();
    flood.commit().await.unwrap();
    until("it is heard", async || {
        let (status, problem) = service.get_as(text(&gone["access_token"]), "/users/me").await;
        assert!(status == 200 || problem["code"] == "session_revoked", "{problem}");
        status == 401
    })
    .await;
    let heard_in = began.elapsed();
    // Requests are still served.
    assert_eq!(service.get_as(text(&kept["access_token"]), "/users/me").await.0, 200);
    let after = service.resident_bytes();
    let more = after.saturating_sub(before);
    println!("{sessions} ended sessions: heard in {heard_in:?}, {} KiB more", more / 1024);
    assert!(more <= 64 << 20, "{} MiB", more >> 20);

    // A process that starts loads them before it serves.
    let began = Instant::now();
    let second = home.serve(&[("DB_SOURCE", &*database_url)]).await;
    println!("a start with them: {:?}, {} KiB in all", began.elapsed(), second.resident_bytes() / 1024);
    assert_eq!(second.get_as(text(&gone["access_token"]), "/users/me").await.1["code"], "session_revoked");
    for service in [service, second] {
        service.stop(Signal::TERM).await.expect(0);
    }
}

/// As when a service is stopped right before its Postgres.
#[tokio::test]
async fn a_listener_that_is_dropped_and_then_loses_its_connection_warns_nobody() {
    let app = App::new().await;
    let home = Home::new();
    let log = home.write("log", "");
    let lines = tracing_subscriber::fmt().with_writer(Arc::new(File::create(&log).unwrap())).finish();
    let _here = tracing::subscriber::set_default(lines);
    let listener = revocations::listen(&app.pool()).await.unwrap();
    let tasks = tokio::runtime::Handle::current().metrics();
    let others = tasks.num_alive_tasks();
    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE datname = current_database() AND query LIKE 'LISTEN%'";
    assert_eq!(sqlx::raw_sql(kill).execute(&app.db).await.unwrap().rows_affected(), 1);
    drop(listener);
    until("the connection is given back", async || tasks.num_alive_tasks() <= others).await;
    assert_eq!(fs::read_to_string(&log).unwrap(), "");
}
