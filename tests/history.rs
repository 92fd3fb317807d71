//! Every change is in the history with who made it, whoever that was and however they made it. The history never holds
//! a secret, and of a deleted user it keeps only ids. If it cannot be written nothing is changed, unless the operator
//! wants it otherwise. Whatever is done to it afterwards is found and named.

use gatepass::{
    account::{History, Problem, Verification},
    store::roles,
};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use time::Duration;

use crate::{
    app::{App, KEY, PASSWORD, as_role, database, nobody_is_connected},
    process::{Ended, Home, Signal, until},
};

const OTHER_PASSWORD: &str = "another-horse-battery-10";

/// Each change in one line: table, operation, actor.
async fn lines(app: &App) -> Vec<String> {
    let rows = sqlx::query_as::<_, (String, String, Option<String>)>(
        "SELECT table_name, operation, actor FROM history ORDER BY id",
    );
    let rows = rows.fetch_all(&app.db).await.unwrap();
    rows.into_iter()
        .map(|(table, operation, actor)| format!("{table} {operation} {}", actor.as_deref().unwrap_or("-")))
        .collect()
}

async fn own(app: &App, login: &Value) -> Vec<Value> {
    let page = app.get("/users/me/history").bearer(login).send().await.expect(200);
    page["changes"].as_array().unwrap().clone()
}

async fn execute(app: &App, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&app.db).await.unwrap();
}

async fn verify(app: &App) -> Verification {
    app.state().history.verify(None).await.unwrap()
}

async fn seal(app: &App) -> u64 {
    app.state().history.seal().await.unwrap().0
}

/// `gatepass ARGS…` on the database of `app`, run by a user called olga.
async fn gatepass(app: &App, args: &[&str], stdin: &str) -> Ended {
    let home = Home::new();
    let invocation = home.gatepass(args).env("DB_SOURCE", &app.database_url).env("USER", "olga");
    invocation.envs(&crate::process::QUICK).stdin(stdin).run().await
}

async fn change_password(app: &App, login: &Value) {
    let body = json!({ "current_password": PASSWORD, "new_password": OTHER_PASSWORD });
    app.request(axum::http::Method::PUT, "/users/me/password")
        .bearer(login)
        .json(&body)
        .send()
        .await
        .expect(204);
}

#[tokio::test]
async fn a_user_sees_what_happened_to_their_account_and_to_no_other() {
    let app = App::new().await;
    let alice = app.register("alice").await;
    app.register("bob").await;
    let laptop = app
        .post("/users/login")
        .header("user-agent", "laptop")
        .json(&json!({ "username": "alice", "password": PASSWORD }))
        .send()
        .await
        .expect(200);
    let phone = app.login("alice").await;
    let bob = app.login("bob").await;
    app.patch("/users/me")
        .bearer(&laptop)
        .json(&json!({ "full_name": "Alice Liddell" }))
        .send()
        .await
        .expect(200);
    // Neither a renewal nor a use is an event.
    app.renew(&phone).await.expect(200);
    app.get("/users/me").bearer(&laptop).send().await.expect(200);
    app.state().activity.flush().await.unwrap();
    app.clock.advance(Duration::minutes(1));
    change_password(&app, &laptop).await;

    let seen = own(&app, &laptop).await;
    let told: Vec<_> = seen
        .iter()
        .map(|change| {
            format!("{} {} {}", change["table"], change["operation"], change["by"]).replace('"', "")
        })
        .collect();
    assert_eq!(
        told,
        [
            "sessions UPDATE me",
            "users UPDATE me",
            "users UPDATE me",
            "sessions INSERT me",
            "sessions INSERT me",
            "users INSERT me"
        ]
    );
    assert_eq!(seen[0]["id"], phone["session_id"]);
    assert_eq!(seen[0]["after"]["end_reason"], "password_changed");
    assert_eq!(seen[1]["hidden"], json!(["password_hash"]));
    assert_eq!(seen[1]["after"].as_object().unwrap().keys().collect::<Vec<_>>(), ["password_changed_at"]);
    assert_eq!(seen[2]["before"], json!({ "full_name": null }));
    assert_eq!(seen[2]["after"], json!({ "full_name": "Alice Liddell" }));
    assert_eq!(seen[4]["after"]["user_agent"], "laptop");
    assert_eq!(seen[4]["after"]["client_ip"], "192.0.2.1");
    assert_eq!((&seen[5]["id"], &seen[5]["before"]), (&alice["id"], &Value::Null));
    assert_eq!(seen[5]["after"]["username"], "alice");
    assert_eq!(own(&app, &bob).await.len(), 2);

    // Page by page, the changes are the same.
    let mut pages = Vec::new();
    let mut cursor = Value::Null;
    loop {
        let cursor_now = cursor.as_str().map(|cursor| format!("&cursor={cursor}")).unwrap_or_default();
        let path = format!("/users/me/history?limit=4{cursor_now}");
        let page = app.get(&path).bearer(&laptop).send().await.expect(200);
        pages.extend(page["changes"].as_array().unwrap().clone());
        cursor = page["next_cursor"].clone();
        if cursor.is_null() {
            break;
        }
    }
    assert_eq!(pages, seen);
    for query in
        ["cursor=x", "cursor=-1", "cursor=0", "limit=0", "limit=201", "limit=x", "user=1", "limit=1&limit=2"]
    {
        app.get(&format!("/users/me/history?{query}"))
            .bearer(&laptop)
            .send()
            .await
            .expect_problem(422, "validation_failed");
    }
    // The message follows the parameter's name.
    for (query, detail, codes) in [
        ("limit=0", "`limit` needs to be a number from 1 to 200.", &["out_of_range"][..]),
        ("limit=x", "`limit` needs to be a number from 1 to 200.", &["invalid"]),
        ("cursor=0", "`cursor` needs to be the `next_cursor` of a page.", &["invalid"]),
        ("limit=201&cursor=x", "2 fields are not valid.", &["invalid", "out_of_range"]),
    ] {
        let answer = app.get(&format!("/users/me/history?{query}")).bearer(&laptop).send().await;
        let problem = answer.expect_problem(422, "validation_failed");
        assert_eq!(problem["detail"], detail, "{query}");
        let errors = problem["errors"].as_array().unwrap().iter();
        assert_eq!(errors.map(|error| error["code"].as_str().unwrap()).collect::<Vec<_>>(), codes, "{query}");
    }
}

#[tokio::test]
async fn an_administrator_sees_everything_with_who_did_it() {
    let app = App::new().await;
    let root = app.login_admin("root").await;
    let alice = app.register("alice").await;
    app.login("alice").await;
    let bob = app.register("bob").await;
    let path = format!("/admin/users/{}/sessions", alice["id"].as_str().unwrap());
    let request_id = "the-one-request";
    let end = app.request(axum::http::Method::DELETE, &path).bearer(&root).header("x-request-id", request_id);
    end.send().await.expect(204);

    let of = async |query: &str| {
        let page = app.get(&format!("/admin/history?{query}")).bearer(&root).send().await.expect(200);
        page["changes"].as_array().unwrap().clone()
    };
    let about_alice = of(&format!("user={}", alice["id"].as_str().unwrap())).await;
    assert_eq!(about_alice.len(), 3);
    assert_eq!(about_alice[0]["actor"], root["user"]["id"]);
    assert_eq!(about_alice[0]["request_id"], request_id);
    assert_eq!(about_alice[0]["after"]["end_reason"], "revoked");
    assert_eq!(about_alice[1]["actor"], alice["id"]);
    assert!(about_alice.iter().all(|change| change["user_id"] == alice["id"]));
    // This one was made by hand, in `login_admin`, which does not say by whom.
    let by_hand = of("table=users").await.into_iter().find(|change| change["operation"] == "UPDATE").unwrap();
    assert_eq!((&by_hand["actor"], &by_hand["request_id"]), (&Value::Null, &Value::Null));
    assert_eq!(by_hand["after"], json!({ "roles": ["admin"] }));
    assert_eq!(of("table=sessions").await.len(), 3);
    assert_eq!(of(&format!("table=sessions&user={}", bob["id"].as_str().unwrap())).await.len(), 0);
    assert_eq!(of("since=2020-01-02T03:04:05Z").await.len(), 7);
    assert_eq!(of("since=2120-01-02T03:04:05Z").await.len(), 0);
    assert_eq!(of("since=0000-01-01T00:00:00%2B23:59").await.len(), 7);
    for (query, detail) in [
        ("user=alice", "`user` needs to be a user's id."),
        (
            "table=revocations",
            "`table` needs to be `users`, `sessions`, `signing_keys`, `clients` or `history`.",
        ),
        ("since=yesterday", "`since` needs to be a time as in RFC 3339."),
        // In UTC it would be in the year 10000.
        ("since=9999-12-31T23:59:59-23:59", "`since` needs to be a time as in RFC 3339."),
        ("cursor=x", "`cursor` needs to be the `next_cursor` of a page."),
        ("limit=0", "`limit` needs to be a number from 1 to 200."),
        ("x=1", "`x` is not a parameter of this request."),
    ] {
        let answer = app.get(&format!("/admin/history?{query}")).bearer(&root).send().await;
        assert_eq!(answer.expect_problem(422, "validation_failed")["detail"], detail, "{query}");
    }
    let bob = app.login("bob").await;
    app.get("/admin/history").bearer(&bob).send().await.expect_problem(403, "forbidden");

    // The user is told what the administrator did, but not who the administrator is.
    let alice = app.login("alice").await;
    let seen = own(&app, &alice).await;
    assert_eq!(seen[1]["by"], "administrator");
    assert!(!json!(seen).to_string().contains(root["user"]["id"].as_str().unwrap()));
}

#[tokio::test]
async fn changes_name_the_command_line_or_the_service_as_their_author() {
    let app = App::with(&[("TOKEN_FORMAT", "v4.public")]).await;
    assert_eq!(lines(&app).await, ["signing_keys INSERT service"; 2]);
    gatepass(&app, &["user", "create", "alice", "--email", "a@example.com", "--password-stdin"], PASSWORD)
        .await
        .expect(0);
    gatepass(&app, &["client", "create", "orders"], "").await.expect(0);
    app.login("alice").await;
    gatepass(&app, &["user", "disable", "alice"], "").await.expect(0);
    gatepass(&app, &["client", "delete", "orders"], "").await.expect(0);
    gatepass(&app, &["user", "delete", "alice"], "").await.expect(0);
    let told = lines(&app).await.split_off(2);
    assert!(told[2].starts_with("sessions INSERT 0"), "{told:?}");
    let by_olga: Vec<_> = told.iter().filter_map(|line| line.strip_suffix(" cli:olga")).collect();
    assert_eq!(
        by_olga,
        [
            "users INSERT",
            "clients INSERT",
            "sessions UPDATE",
            "users UPDATE",
            "clients DELETE",
            "users DELETE"
        ]
    );

    let shown = gatepass(&app, &["history", "--json", "--table", "clients"], "").await.json();
    assert_eq!(shown[1]["after"]["name"], "orders");
    assert_eq!(shown[0]["actor"], "cli:olga");
    let shown = gatepass(&app, &["history"], "").await.expect(0).stdout;
    assert_eq!(shown.lines().count(), 10, "{shown}");
    assert!(shown.contains("password_hash") || shown.contains("roles"), "{shown}");
    for line in shown.lines().skip(1) {
        let columns: Vec<_> = line.split_whitespace().skip(6).collect();
        assert!(columns.is_sorted() && !columns.is_empty(), "{line}");
    }
    gatepass(&app, &["history", "--user", "alice"], "").await.fails(1, &["there is no such user"]);
    gatepass(&app, &["history", "--table", "revocations"], "").await.fails(2, &["possible values"]);
    let late = ["history", "--since", "9999-12-31T23:59:59-23:59"];
    gatepass(&app, &late, "").await.fails(2, &["--since", "after the year 9999"]);
}

/// What somebody has stored cannot do anything to the terminal of whoever reads it.
#[tokio::test]
async fn no_stored_text_controls_the_terminal_of_a_reader() {
    let app = App::new().await;
    let backwards = "Alice \u{202e}nimda\u{202c}";
    app.register("alice").await;
    let login = app.login("alice").await;
    let name = json!({ "full_name": backwards });
    app.patch("/users/me").bearer(&login).json(&name).send().await.expect(200);
    // It clears the line before, and opens a string that ends nowhere.
    execute(
        &app,
        r"BEGIN;
          SELECT caused_by(E'cli:\u001b[1A\u001b[2K\n\u001b_', NULL);
          UPDATE users SET disabled = true;
          COMMIT",
    )
    .await;
    let shown = gatepass(&app, &["history"], "").await.expect(0).stdout;
    assert!(shown.contains(r"cli:\u{1b}[1A\u{1b}[2K\u{a}\u{1b}_"), "{shown}");
    let changes = gatepass(&app, &["history", "--json"], "").await.json();
    assert_eq!(shown.lines().count(), 1 + changes.as_array().unwrap().len(), "{shown}");
    assert_eq!(changes[0]["actor"], "cli:\u{1b}[1A\u{1b}[2K\n\u{1b}_");

    let user = gatepass(&app, &["user", "show", "alice"], "").await.expect(0).stdout;
    assert!(user.contains(r"full name   Alice \u{202e}nimda\u{202c}"), "{user}");
    assert!(!format!("{shown}{user}").contains(['\u{1b}', '\u{202e}']), "{shown}{user}");
    let user = gatepass(&app, &["user", "show", "alice", "--json"], "").await.json();
    assert_eq!(user["full_name"], backwards);
}

#[tokio::test]
async fn changes_made_by_hand_are_recorded_too() {
    let app = App::new().await;
    let alice = app.register("alice").await;
    app.client("orders").await;
    let login = app.login("alice").await;
    app.login("alice").await;
    let before = lines(&app).await.len();
    app.sql("UPDATE users SET password_hash = 'x' WHERE id = $1::uuid", &alice["id"]).await;
    app.sql("UPDATE users SET updated_at = now() WHERE id = $1::uuid", &alice["id"]).await;
    app.sql("DELETE FROM sessions WHERE id = $1::uuid", &login["session_id"]).await;
    app.sql(
        "UPDATE sessions SET ended_at = now(), end_reason = 'logout' WHERE user_id = $1::uuid",
        &alice["id"],
    )
    .await;
    app.sql("UPDATE sessions SET ended_at = NULL, end_reason = NULL WHERE user_id = $1::uuid", &alice["id"])
        .await;
    execute(&app, "UPDATE clients SET secret_hash = decode(repeat('00', 32), 'hex')").await;
    app.sql("DELETE FROM users WHERE id = $1::uuid", &alice["id"]).await;
    execute(&app, "TRUNCATE clients; TRUNCATE users CASCADE").await;
    assert_eq!(
        lines(&app).await.split_off(before),
        [
            "users UPDATE -",
            "sessions DELETE -",
            "sessions UPDATE -",
            "sessions UPDATE -",
            "clients UPDATE -",
            "users DELETE -",
            "sessions DELETE -",
            "clients TRUNCATE -",
            "users TRUNCATE -",
            "sessions TRUNCATE -",
        ]
    );
    let hidden: Vec<Value> = sqlx::query_scalar(
        "SELECT changed_data -> 'hidden' FROM history WHERE changed_data ? 'hidden' ORDER BY id",
    )
    .fetch_all(&app.db)
    .await
    .unwrap();
    assert_eq!(hidden, [json!(["password_hash"]), json!(["secret_hash"])]);
}

/// Everything in the history and the tables that belong to it, as text.
async fn whole_history(app: &App) -> String {
    let rows = sqlx::query_scalar::<_, String>(
        "SELECT history::text FROM history UNION ALL SELECT history_personal::text FROM history_personal
         UNION ALL SELECT history_seals::text FROM history_seals",
    );
    rows.fetch_all(&app.db).await.unwrap().join("\n")
}

#[tokio::test]
async fn no_secret_is_ever_in_the_history() {
    let app = App::with(&[("TOKEN_FORMAT", "v4.public")]).await;
    app.login_admin("root").await;
    app.register("alice").await;
    let (_, secret) = app.client("orders").await;
    let mut secrets = vec![
        secret,
        PASSWORD.to_owned(),
        OTHER_PASSWORD.to_owned(),
        "gpr_".to_owned(),
        "v4.public.".to_owned(),
    ];
    // Notes what the columns that hold secrets contain at this moment.
    let note = async |secrets: &mut Vec<String>| {
        for sql in [
            "SELECT password_hash FROM users WHERE password_hash IS NOT NULL",
            "SELECT encode(refresh_salt, 'hex') FROM sessions",
            "SELECT encode(secret_hash, 'hex') FROM clients",
            "SELECT encode(wrapped_key, 'hex') FROM signing_keys WHERE wrapped_key IS NOT NULL",
        ] {
            let values: Vec<String> = sqlx::query_scalar(sql).fetch_all(&app.db).await.unwrap();
            assert!(!values.is_empty(), "{sql}");
            secrets.extend(values);
        }
    };
    note(&mut secrets).await;
    let alice = app.login("alice").await;
    let renewed = app.renew(&alice).await.expect(200);
    change_password(&app, &renewed).await;
    note(&mut secrets).await;
    app.post("/users/logout").bearer(&renewed).send().await.expect(204);
    for table in ["users", "sessions", "clients", "signing_keys"] {
        execute(&app, &format!("UPDATE {table} SET id = id")).await;
    }
    app.clock.advance(Duration::days(40));
    app.state().keys.rotate(app.clock.now()).await.unwrap();
    note(&mut secrets).await;
    execute(&app, "DELETE FROM signing_keys; DELETE FROM clients; DELETE FROM users WHERE roles = '{}'")
        .await;
    seal(&app).await;
    let all = whole_history(&app).await;
    assert!(all.lines().count() > 20, "{all}");
    for secret in secrets {
        assert!(!all.contains(&secret), "{secret} is in the history");
    }
}

#[tokio::test]
async fn only_ids_of_a_deleted_user_remain_and_the_seals_hold() {
    let app = App::new().await;
    let alice = app.register("alice").await;
    app.register("bob").await;
    let login = app.login("alice").await;
    app.patch("/users/me")
        .bearer(&login)
        .json(&json!({ "full_name": "Alice Liddell" }))
        .send()
        .await
        .expect(200);
    seal(&app).await;
    app.patch("/users/me")
        .bearer(&login)
        .json(&json!({ "email": "liddell@example.com" }))
        .send()
        .await
        .expect(200);
    app.post("/users/me/delete")
        .bearer(&login)
        .json(&json!({ "password": PASSWORD }))
        .send()
        .await
        .expect(204);
    let all = whole_history(&app).await;
    assert!(all.contains(alice["id"].as_str().unwrap()) && all.contains("bob"));
    for personal in ["alice", "Liddell", "liddell", "192.0.2.1"] {
        assert!(!all.contains(personal), "{personal}: {all}");
    }
    let found = verify(&app).await;
    assert_eq!((found.rows, found.unsealed, &*found.problems), (4, 3, &[][..]));
    seal(&app).await;
    assert_eq!(verify(&app).await.problems, []);
    // The personal data of a user who is still there may not go that way.
    execute(&app, "DELETE FROM history_personal").await;
    assert!(matches!(verify(&app).await.problems[..], [Problem::PersonalMissing { .. }]));
}

#[tokio::test]
async fn a_change_that_cannot_be_recorded_fails_unless_history_is_lenient() {
    let app = App::new().await;
    app.register("alice").await;
    let login = app.login("alice").await;
    // Nowhere to write to: neither this month nor a default.
    execute(&app, "ALTER TABLE history RENAME TO history_gone").await;
    let change = json!({ "full_name": "Alice Liddell" });
    app.patch("/users/me").bearer(&login).json(&change).send().await.expect_problem(500, "internal_error");
    app.try_login("alice", PASSWORD).await.expect_problem(500, "internal_error");
    assert_eq!(app.get("/users/me").bearer(&login).send().await.expect(200)["full_name"], Value::Null);

    // A session's own setting does not count, only the one that the database's owner makes.
    let by_hand = "SET gatepass.history = 'lenient'; UPDATE users SET full_name = 'Mallory'";
    sqlx::raw_sql(by_hand).execute(&app.db).await.unwrap_err();

    let name: String = sqlx::query_scalar("SELECT current_database()").fetch_one(&app.db).await.unwrap();
    execute(&app, &format!(r#"ALTER DATABASE "{name}" SET gatepass.history = 'lenient'"#)).await;
    let lenient = app.replica(&[]).await;
    lenient.patch("/users/me").bearer(&login).json(&change).send().await.expect(200);
    lenient.login("alice").await;
    execute(&app, "ALTER TABLE history_gone RENAME TO history").await;
    let before = lines(&app).await.len();
    lenient.patch("/users/me").bearer(&login).json(&json!({ "full_name": null })).send().await.expect(200);
    assert_eq!(lines(&app).await.len(), before + 1);
}

#[tokio::test]
async fn a_locked_history_prevents_no_login_where_it_is_lenient() {
    let app = App::new().await;
    let user = app.register("alice").await;
    let sessions = "INSERT INTO sessions (id, user_id, refresh_generation, refresh_salt, created_at, renewed_at,
                        is_confirmed, last_used_at, refresh_expires_at, expires_at, access_expires_at)
                    SELECT ('01940000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, $1::uuid, 0,
                        decode(repeat('00', 32), 'hex'), t, t, false, t, t + '1 day', t + '30 days', t + '15 minutes'
                    FROM generate_series(1, 300) AS n, LATERAL (SELECT timestamptz '2026-01-02 00:00Z' AS t) AS times";
    app.sql(sessions, &user["id"]).await;
    let name: String = sqlx::query_scalar("SELECT current_database()").fetch_one(&app.db).await.unwrap();
    execute(&app, &format!(r#"ALTER DATABASE "{name}" SET gatepass.history = 'lenient'"#)).await;
    let before = lines(&app).await.len();
    let mut holder = PgConnection::connect(&app.database_url).await.unwrap();
    let mut lock = holder.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE history").execute(&mut *lock).await.unwrap();
    let login = app.login("alice").await;
    // This changes hundreds of rows in one statement, which has no more time than any other.
    app.request(axum::http::Method::DELETE, "/sessions").bearer(&login).send().await.expect(204);
    lock.rollback().await.unwrap();
    assert_eq!(lines(&app).await.len(), before);
    app.login("alice").await;
    assert_eq!(lines(&app).await.len(), before + 1);

    // Personal data goes with the user, or the user stays.
    execute(&app, "ALTER TABLE history_personal RENAME TO history_personal_gone").await;
    let delete = async || {
        let body = json!({ "password": PASSWORD });
        app.post("/users/me/delete").bearer(&login).json(&body).send().await
    };
    delete().await.expect_problem(500, "internal_error");
    execute(&app, "ALTER TABLE history_personal_gone RENAME TO history_personal").await;
    delete().await.expect(204);
    assert!(!whole_history(&app).await.contains("alice"));
}

#[tokio::test]
async fn a_role_that_may_only_serve_writes_history_and_cannot_change_it() {
    let app = App::new().await;
    app.register("alice").await;
    let name: String = sqlx::query_scalar("SELECT current_database()").fetch_one(&app.db).await.unwrap();
    let role = format!("{name}_app");
    execute(&app, &format!(r#"CREATE ROLE "{role}"; GRANT USAGE ON SCHEMA public TO "{role}"; GRANT SELECT, UPDATE ON users TO "{role}"; GRANT TEMP ON DATABASE "{name}" TO "{role}""#)).await;
    let mut conn = PgConnection::connect(&app.database_url).await.unwrap();
    let sql = |sql: &str| AssertSqlSafe(sql.to_owned());
    sqlx::raw_sql(sql(&format!(r#"SET ROLE "{role}""#))).execute(&mut conn).await.unwrap();
    sqlx::raw_sql("UPDATE users SET full_name = 'Alice'").execute(&mut conn).await.unwrap();
    // A temporary table of the same name does not divert it.
    sqlx::raw_sql("CREATE TEMP TABLE history_unsealed (id bigint)").execute(&mut conn).await.unwrap();
    sqlx::raw_sql("UPDATE users SET full_name = 'Alice Liddell'").execute(&mut conn).await.unwrap();
    assert_eq!(lines(&app).await.len(), 3);
    seal(&app).await;
    assert_eq!(verify(&app).await.rows, 3);
    for forbidden in [
        "DELETE FROM history",
        "UPDATE history SET actor = NULL",
        "INSERT INTO history (table_name) VALUES ('x')",
        "SELECT drop_history(now())",
        "SELECT prepare_history()",
        "CREATE TRIGGER forge AFTER INSERT ON history_unsealed FOR EACH ROW
         EXECUTE FUNCTION record_change('{}', '{}', '{}')",
        "CREATE TRIGGER forge AFTER DELETE ON history_unsealed FOR EACH ROW EXECUTE FUNCTION forget_person()",
        "SELECT write_history('users', 'INSERT', NULL, '{}', '{}', '{}', '{}')",
    ] {
        let refused = sqlx::raw_sql(forbidden).execute(&mut conn).await.unwrap_err().to_string();
        assert!(refused.contains("permission denied"), "{forbidden}: {refused}");
    }
    sqlx::raw_sql("RESET ROLE").execute(&mut conn).await.unwrap();
    execute(&app, &format!(r#"DROP OWNED BY "{role}"; DROP ROLE "{role}""#)).await;
}

/// An app with 20 rows in two seals, and the rows' ids.
async fn with_sealed_history() -> (App, Vec<i64>) {
    let app = App::new().await;
    for batch in 0..2 {
        for user in 0..10 {
            app.register(&format!("user-{batch}-{user}")).await;
        }
        assert_eq!(seal(&app).await, 10);
    }
    let ids = sqlx::query_scalar("SELECT id FROM history ORDER BY id").fetch_all(&app.db).await.unwrap();
    let found = verify(&app).await;
    assert_eq!((found.seals, found.rows, found.unsealed, &*found.problems), (2, 20, 0, &[][..]));
    (app, ids)
}

#[tokio::test]
async fn every_kind_of_tampering_is_found_and_named() {
    let (app, ids) = with_sealed_history().await;
    let [a, b] = [ids[3], ids[14]];
    // Nothing in this change is personal.
    execute(&app, "UPDATE users SET roles = '{support}' WHERE username = 'user-0-0'").await;
    assert_eq!(seal(&app).await, 1);
    let c: i64 = sqlx::query_scalar("SELECT max(id) FROM history").fetch_one(&app.db).await.unwrap();
    for (what, sql, expected) in [
        ("actor", format!("UPDATE history SET actor = 'x' WHERE id = {a}"), vec![Problem::Altered { row: a }]),
        ("time", format!("UPDATE history SET changed_at = changed_at + interval '1 us' WHERE id = {a}"), vec![Problem::Altered { row: a }]),
        ("data", format!("UPDATE history SET changed_data = jsonb_set(changed_data, '{{after,roles}}', '[\"admin\"]') WHERE id = {b}"), vec![Problem::Altered { row: b }]),
        ("deleted", format!("DELETE FROM history WHERE id = {b}"), vec![Problem::Missing { row: b }]),
        ("first deleted", format!("DELETE FROM history WHERE id = {}", ids[0]), vec![Problem::Missing { row: ids[0] }]),
        ("last deleted", format!("DELETE FROM history WHERE id = {}", ids[19]), vec![Problem::Missing { row: ids[19] }]),
        (
            "swapped",
            format!(
                "UPDATE history SET (row_id, user_id) = (other.row_id, other.user_id) FROM history AS other
                 WHERE (history.id, other.id) IN (({a}, {b}), ({b}, {a}))"
            ),
            vec![Problem::Altered { row: a }, Problem::Altered { row: b }],
        ),
        ("renumbered", format!("UPDATE history SET id = 999999 WHERE id = {a}"), vec![Problem::Missing { row: a }, Problem::Inserted { row: 999_999 }]),
        (
            "inserted",
            "INSERT INTO history (id, table_name, operation, changed_data, changed_at, database_user)
             VALUES (888888, 'users', 'INSERT', '{}', now(), 'x')".into(),
            vec![Problem::Inserted { row: 888_888 }],
        ),
        (
            "inserted by the side of another",
            format!(
                "INSERT INTO history (id, table_name, operation, changed_data, changed_at, database_user)
                 VALUES ({a}, 'users', 'INSERT', '{{}}', now() + interval '1 day', 'x')"
            ),
            vec![Problem::Inserted { row: a }],
        ),
        ("personal", format!("UPDATE history_personal SET changed_data = '{{}}' WHERE history_id = {a}"), vec![Problem::PersonalAltered { row: a }]),
        ("personal gone", format!("DELETE FROM history_personal WHERE history_id = {a}"), vec![Problem::PersonalMissing { row: a }]),
        ("personal of somebody else", format!("UPDATE history_personal SET user_id = gen_random_uuid() WHERE history_id = {a}"), vec![Problem::PersonalAltered { row: a }]),
        (
            "personal of what is not",
            format!(
                "INSERT INTO history_personal (history_id, user_id, salt, changed_data)
                 SELECT id, user_id, gen_random_uuid(), '{{}}' FROM history WHERE id = {c}"
            ),
            vec![Problem::PersonalAltered { row: c }],
        ),
        ("seal", "UPDATE history_seals SET sealed_at = now() WHERE number = 1".into(), vec![Problem::SealAltered { seal: 1 }]),
        (
            "row and its hash",
            format!(
                "UPDATE history SET actor = 'x' WHERE id = {a};
                 UPDATE history_seals SET row_hashes = set_byte(row_hashes, 100, get_byte(row_hashes, 100) # 1) WHERE number = 1"
            ),
            vec![Problem::SealAltered { seal: 1 }],
        ),
        ("rows unknown", "UPDATE history_seals SET row_hashes = NULL WHERE number = 2; DELETE FROM history WHERE id > 0".into(), vec![]),
        ("first seal gone", "DELETE FROM history_seals WHERE number = 1".into(), vec![Problem::SealMissing { seal: 1 }]),
    ] {
        // What is right is kept as a copy, so that each case starts from it.
        let mut conn = PgConnection::connect(&app.database_url).await.unwrap();
        let undo = "DROP SCHEMA IF EXISTS kept CASCADE; CREATE SCHEMA kept;
            CREATE TABLE kept.history AS SELECT * FROM history; CREATE TABLE kept.personal AS SELECT * FROM history_personal;
            CREATE TABLE kept.seals AS SELECT * FROM history_seals;";
        sqlx::raw_sql(undo).execute(&mut conn).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut conn).await.unwrap();
        let problems = verify(&app).await.problems;
        if expected.is_empty() {
            assert!(!problems.is_empty(), "{what}");
        } else {
            assert!(problems.starts_with(&expected), "{what}: {problems:?}");
        }
        let redo = "DELETE FROM history; INSERT INTO history SELECT * FROM kept.history;
            DELETE FROM history_personal; INSERT INTO history_personal SELECT * FROM kept.personal;
            DELETE FROM history_seals; INSERT INTO history_seals SELECT * FROM kept.seals;";
        sqlx::raw_sql(redo).execute(&mut conn).await.unwrap();
        assert_eq!(verify(&app).await.problems, [], "{what}");
    }
}

/// Whoever has the service's password can add a false seal, and no more harm comes of it than that it is found.
#[tokio::test]
async fn no_false_seal_ends_the_sealing_or_keeps_the_verification_busy() {
    let (app, ids) = with_sealed_history().await;
    let role = as_role(&app.database_url, roles::APP);
    let mut conn = PgConnection::connect(&role).await.unwrap();
    let seal_of = |number: i64, ids: &str, hashes: &str| {
        AssertSqlSafe(format!(
            "INSERT INTO public.history_seals (number, ids, row_hashes, rows_hash, hash, sealed_at)
             SELECT {number}, '{ids}', {hashes}, sha256(''), sha256(''), now()"
        ))
    };
    // Nor is anybody deceived by a table of the same name that has the number before, or by how dates are read.
    for divert in [
        "RESET ALL",
        "SET search_path = pg_temp, public; CREATE TEMP TABLE history_seals AS SELECT 6 AS number;
         SET datestyle = 'SQL, DMY'; SET timezone = 'Asia/Tokyo'",
    ] {
        sqlx::raw_sql(divert).execute(&mut conn).await.unwrap();
        for (number, ids, refused) in [
            (i64::MAX, "{[1,2)}", "the number after the last"),
            (7, "{[1,2)}", "the number after the last"),
            (3, "{[1000000,4000000000)}", "at most 1000 rows"),
            (3, "{[1,2),[1000000,1001000)}", "at most 1000 rows"),
            (3, "{[-9000000000000000000,9000000000000000000)}", "at most 1000 rows"),
            (3, "{(,5)}", "at most 1000 rows"),
            (3, "{[5,)}", "at most 1000 rows"),
        ] {
            let sql = seal_of(number, ids, "NULL");
            let error = sqlx::raw_sql(sql).execute(&mut conn).await.unwrap_err().to_string();
            assert!(error.contains(refused), "{number} {ids}: {error}");
        }
        // No program has a value for these: whoever read such a seal would end there.
        for time in
            ["infinity", "-infinity", "294270-01-01", "10000-01-01 00:00Z", "1969-12-31 23:59:59.999999Z"]
        {
            let sql = AssertSqlSafe(format!(
                "INSERT INTO public.history_seals (number, ids, row_hashes, rows_hash, hash, sealed_at)
                 SELECT 3, '{{[1000000,1000001)}}', NULL, sha256(''), sha256(''), '{time}'"
            ));
            let error = sqlx::raw_sql(sql).execute(&mut conn).await.unwrap_err().to_string();
            assert!(error.contains("between 1970 and 9999"), "{time}: {error}");
        }
    }
    sqlx::raw_sql(seal_of(3, "{[1000000,1001000)}", "NULL")).execute(&mut conn).await.unwrap();
    assert_eq!(verify(&app).await.problems, [Problem::SealAltered { seal: 3 }]);
    app.register("alice").await;
    assert_eq!(seal(&app).await, 1);
    let found = verify(&app).await;
    assert_eq!((found.seals, found.rows, found.unsealed), (4, ids.len() as u64 + 1, 0));

    // From before there was a check. To number the rows would take more of the disk than this.
    execute(
        &app,
        "DO $$ BEGIN
             EXECUTE format('ALTER DATABASE %I SET temp_file_limit = 1024', current_database());
         END $$;
         ALTER TABLE history_seals DISABLE TRIGGER history_seals_check",
    )
    .await;
    for (number, ids, hashes) in [
        (5, "{[1000000,4000000000)}", "NULL"),
        (6, "{(,5)}", "sha256('')"),
        (7, "{[2000000,2000001)}", "decode(repeat('00', 32 * 1001), 'hex')"),
    ] {
        sqlx::raw_sql(seal_of(number, ids, hashes)).execute(&mut conn).await.unwrap();
    }
    let verified = gatepass(&app, &["history", "verify", "--json"], "").await.expect(1);
    let verified: Value = serde_json::from_str(&verified.stdout).unwrap();
    let altered = [3, 5, 6, 7].map(|seal| json!({ "what": "seal_altered", "seal": seal }));
    assert_eq!(verified["problems"], json!(altered));
    // Nothing can follow on this one, and that is said.
    sqlx::raw_sql(seal_of(i64::MAX, "{[3000000,3000001)}", "NULL")).execute(&mut conn).await.unwrap();
    app.register("bob").await;
    gatepass(&app, &["history", "seal"], "").await.fails(1, &["history_seals_pkey"]);
}

#[tokio::test]
async fn forged_personal_data_does_not_change_what_a_row_says() {
    let app = App::new().await;
    let root = app.login_admin("root").await;
    execute(
        &app,
        r#"INSERT INTO history_personal (history_id, user_id, salt, changed_data)
           SELECT id, user_id, gen_random_uuid(), '{"before": {"email": "forged"}, "after": {"roles": ["forged"]}}'
           FROM history WHERE personal_hash IS NULL;
           UPDATE history_personal AS personal
           SET changed_data = jsonb_set(personal.changed_data, '{after,roles}', '["forged"]')
           FROM history WHERE history.id = history_id AND table_name = 'users'"#,
    )
    .await;
    for path in ["/admin/history", "/users/me/history", "/users/me/export"] {
        let answer = app.get(path).bearer(&root).send().await.body;
        assert!(answer.contains("root@example.com") && !answer.contains("forged"), "{path}: {answer}");
    }
    let shown = gatepass(&app, &["history", "--json"], "").await.expect(0).stdout;
    assert!(shown.contains("root@example.com") && !shown.contains("forged"), "{shown}");
}

#[tokio::test]
async fn a_chain_that_was_cut_off_is_found_with_a_head_from_the_log() {
    let (app, _) = with_sealed_history().await;
    let head = verify(&app).await.head.unwrap();
    let found = gatepass(&app, &["history", "verify", "--head", &head.hash(), "--json"], "").await.json();
    assert_eq!((&found["rows"], &found["problems"]), (&json!(20), &json!([])));
    assert_eq!(found["head"], json!({ "seal": 2, "hash": head.hash() }));

    // Deletes the last seal and all its rows, as if they had never been; the database itself does not show that.
    execute(&app, "DELETE FROM history WHERE id <@ (SELECT ids FROM history_seals WHERE number = 2); DELETE FROM history_seals WHERE number = 2").await;
    assert_eq!(verify(&app).await.problems, []);
    app.register("later").await;
    seal(&app).await;
    assert_eq!(verify(&app).await.problems, []);
    assert_eq!(app.state().history.verify(Some(head.hash)).await.unwrap().problems, [Problem::HeadUnknown]);
    let ended = gatepass(&app, &["history", "verify", "--head", &head.hash()], "").await;
    assert!(ended.expect(1).stderr.contains("the history is not what was sealed"));
    for head in ["abc", &"+f".repeat(32), &"0".repeat(66)] {
        let ended = gatepass(&app, &["history", "verify", "--head", head], "").await;
        ended.fails(2, &["64 hexadecimal digits"]);
    }
}

#[tokio::test]
async fn a_row_deleted_before_sealing_stays_missing_and_delays_no_other() {
    let app = App::new().await;
    app.register("alice").await;
    app.register("bob").await;
    let row: i64 =
        sqlx::query_scalar("DELETE FROM history WHERE id = (SELECT min(id) FROM history) RETURNING id")
            .fetch_one(&app.db)
            .await
            .unwrap();
    assert_eq!(verify(&app).await.problems, [Problem::Missing { row }]);
    assert_eq!(seal(&app).await, 1);
    assert_eq!(seal(&app).await, 0);
    assert_eq!(verify(&app).await.problems, [Problem::Missing { row }]);
}

#[tokio::test]
async fn the_service_seals_by_itself_and_logs_the_head() {
    let app = App::new().await;
    app.register("alice").await;
    let home = Home::new();
    let mut service = home.serve(&[("DB_SOURCE", &app.database_url), ("TOKEN_SYMMETRIC_KEY", KEY)]).await;
    service.logged("history sealed").await;
    let found = verify(&app).await;
    assert_eq!((found.seals, found.rows, found.unsealed), (1, 1, 0));
    assert!(service.stderr().contains(&found.head.unwrap().hash()), "{}", service.stderr());
    assert!(!service.stderr().contains("RUST_LOG"), "{}", service.stderr());
    let said = gatepass(&app, &["history", "seal"], "").await.expect(0).stdout;
    assert_eq!(said, "nothing to seal\n");
    let said = gatepass(&app, &["history", "seal", "--json"], "").await.expect(0).json();
    assert_eq!(said, json!({ "rows": 0, "head": found.head }));
    app.register("bob").await;
    let said = gatepass(&app, &["history", "seal"], "").await.expect(0).stdout;
    let head = verify(&app).await.head.unwrap();
    assert_eq!(said, format!("1 row(s) sealed; seal 2 has the hash {}\n", head.hash()));
}

#[tokio::test]
async fn the_service_warns_if_the_log_filter_hides_the_seals() {
    let app = App::new().await;
    app.register("alice").await;
    let home = Home::new();
    let start = |log, more: &[(&str, &str)]| {
        let settings = [("DB_SOURCE", &*app.database_url), ("TOKEN_SYMMETRIC_KEY", KEY), ("RUST_LOG", log)];
        home.start(&[&settings[..], more].concat())
    };
    let told = "RUST_LOG keeps the seals of the history out of the log";
    // Traces carry what the log leaves out, but do not count as a log.
    for more in [&[][..], &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")]] {
        let mut service = start("warn", more);
        service.logged(told).await;
        let log = service.stop(Signal::TERM).await.expect(0).stderr;
        assert!(log.matches(told).count() == 1 && !log.contains("history sealed"), "{log}");
    }
    // The services above may have sealed what there was.
    app.register("bob").await;
    let mut service = start("warn,gatepass::account::seals=info", &[]);
    service.logged("history sealed").await;
    assert!(!service.stderr().contains(told), "{}", service.stderr());
}

#[tokio::test]
async fn rows_committed_late_are_sealed_and_simultaneous_sealers_miss_none() {
    let app = App::new().await;
    let alice = app.register("alice").await;
    let mut late = PgConnection::connect(&app.database_url).await.unwrap();
    let mut late = late.begin().await.unwrap();
    sqlx::query("UPDATE users SET full_name = 'Late' WHERE id = $1::uuid")
        .bind(alice["id"].as_str())
        .execute(&mut *late)
        .await
        .unwrap();
    app.register("bob").await;
    assert_eq!(seal(&app).await, 2);
    assert_eq!(verify(&app).await.unsealed, 0);
    late.commit().await.unwrap();
    let found = verify(&app).await;
    assert_eq!((found.rows, found.unsealed, &*found.problems), (2, 1, &[][..]));
    assert_eq!(seal(&app).await, 1);

    for user in 0..40 {
        app.register(&format!("user-{user}")).await;
    }
    let replica = app.replica(&[]).await;
    let (one, other) = tokio::join!(seal(&app), seal(&replica));
    assert_eq!(one + other, 40);
    let found = verify(&app).await;
    assert_eq!((found.rows, found.unsealed, &*found.problems), (43, 0, &[][..]));
    assert_eq!(seal(&app).await, 0);
}

#[tokio::test]
async fn a_sealer_that_dies_leaves_nothing_half_done() {
    let app = App::new().await;
    app.register("alice").await;
    // The sealer stops at its last step, since it cannot write the seal, and is then cut off.
    let mut conn = PgConnection::connect(&app.database_url).await.unwrap();
    let mut lock = conn.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE history_seals IN SHARE MODE").execute(&mut *lock).await.unwrap();
    let history = app.state().history.clone();
    let sealing = tokio::spawn(async move { history.seal().await });
    until("it waits to write", async || {
        let cut: Vec<bool> = sqlx::query_scalar(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
             WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%history_seals%'",
        )
        .fetch_all(&app.db)
        .await
        .unwrap();
        !cut.is_empty()
    })
    .await;
    sealing.await.unwrap().unwrap_err();
    lock.rollback().await.unwrap();
    let found = verify(&app).await;
    assert_eq!((found.seals, found.unsealed, &*found.problems), (0, 1, &[][..]));
    assert_eq!(seal(&app).await, 1);
    assert_eq!(verify(&app).await.problems, []);
}

#[tokio::test]
async fn months_are_created_ahead_and_dropped_whole_once_they_are_sealed() {
    let app = App::new().await;
    let history = History::new(app.pool(), app.pool(), Some(std::time::Duration::from_hours(24 * 365)));
    app.register("alice").await;
    let login = app.login("alice").await;
    // As if these had been written two and three years ago.
    for (ago, rows) in [("3 years", 4), ("2 years", 3)] {
        execute(
            &app,
            &format!(
                "WITH old AS (
                     INSERT INTO history (table_name, operation, user_id, changed_data, changed_at, database_user)
                     SELECT 'users', 'UPDATE', '{}', '{{}}', now() - interval '{ago}', 'x' FROM generate_series(1, {rows})
                     RETURNING id
                 ) INSERT INTO history_unsealed SELECT id FROM old",
                login["user"]["id"].as_str().unwrap()
            ),
        )
        .await;
    }
    let now = app.clock.now().max(time::OffsetDateTime::from(std::time::SystemTime::now()));
    // The schema, and with it its months, may be from the month before.
    let ahead: Vec<String> = sqlx::query_scalar(
        "SELECT 'history_' || to_char(now() AT TIME ZONE 'UTC' + n * interval '1 month', 'YYYY_MM')
         FROM generate_series(0, 2) AS n",
    )
    .fetch_all(&app.db)
    .await
    .unwrap();
    // A month that is not sealed stays.
    assert_eq!(history.keep_up(now).await.unwrap(), [""; 0]);
    let partitions = async || -> Vec<String> {
        let names = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'history'::regclass";
        sqlx::query_scalar(names).fetch_all(&app.db).await.unwrap()
    };
    let made = partitions().await;
    assert!(ahead.iter().all(|month| made.contains(month)), "{made:?}");
    let in_default: i64 =
        sqlx::query_scalar("SELECT count(*) FROM history_default").fetch_one(&app.db).await.unwrap();
    assert_eq!(in_default, 0);
    assert_eq!(seal(&app).await, 9);
    assert_eq!(verify(&app).await.problems, []);
    let mut gone = history.keep_up(now - Duration::days(540)).await.unwrap();
    assert_eq!(gone.len(), 1);
    gone.extend(history.keep_up(now).await.unwrap());
    assert_eq!(gone.len(), 2);
    assert_eq!(history.keep_up(now).await.unwrap(), [""; 0]);
    let left = partitions().await;
    for month in made {
        assert_ne!(left.contains(&month), gone.contains(&month), "{month}: {left:?}");
    }
    let found = verify(&app).await;
    assert_eq!((found.rows, found.given_up, found.unsealed, &*found.problems), (2, 7, 2, &[][..]));
    seal(&app).await;
    assert_eq!(verify(&app).await.problems, []);
    // The last month is never given up.
    let all = History::new(app.pool(), app.pool(), Some(std::time::Duration::ZERO));
    assert_eq!(all.keep_up(now + Duration::days(4000)).await.unwrap(), [""; 0]);
    // Rows that are deleted without a record of it are still found to be missing.
    execute(&app, "DELETE FROM history WHERE operation = 'INSERT' AND table_name = 'sessions'").await;
    assert!(matches!(verify(&app).await.problems[..], [Problem::Missing { .. }]));
}

#[tokio::test]
async fn changes_made_while_a_month_is_created_are_recorded() {
    let app = App::new().await;
    // As if nobody had made months for a long time.
    execute(
        &app,
        r"DO $$
          DECLARE
              partition regclass;
          BEGIN
              FOR partition IN SELECT oid FROM pg_class WHERE relname ~ '^history_\d{4}_\d\d$' AND relkind = 'r' LOOP
                  EXECUTE 'DROP TABLE ' || partition;
              END LOOP;
          END $$",
    )
    .await;
    app.register("alice").await;
    let mut conn = PgConnection::connect(&app.database_url).await.unwrap();
    let mut preparing = conn.begin().await.unwrap();
    let made: i32 = sqlx::query_scalar("SELECT prepare_history()").fetch_one(&mut *preparing).await.unwrap();
    assert_eq!(made, 3);
    let prepare = async {
        until("both wait for the default partition", async || {
            let waits = "SELECT count(*) = 2 FROM pg_locks
                         WHERE relation = 'history_default'::regclass AND NOT granted";
            sqlx::query_scalar(waits).fetch_one(&app.db).await.unwrap()
        })
        .await;
        preparing.commit().await.unwrap();
    };
    tokio::join!(app.login("alice"), app.register("bob"), prepare);
    assert_eq!(lines(&app).await.len(), 3);
    seal(&app).await;
    assert_eq!(verify(&app).await.problems, []);
}

#[tokio::test]
async fn reading_the_history_uses_an_index() {
    let app = App::new().await;
    execute(
        &app,
        "INSERT INTO history (table_name, operation, user_id, changed_data, changed_at, database_user)
         SELECT CASE WHEN n % 1000 = 0 THEN 'clients' ELSE 'sessions' END, 'INSERT', gen_random_uuid(), '{}', now(), 'x'
         FROM generate_series(1, 20000) AS n;
         ANALYZE history",
    )
    .await;
    for condition in
        ["history.user_id = '019aa3f0-5b7c-7c3e-9d0a-3f2a1b4c5d6e'", "table_name = 'clients'", "true"]
    {
        let sql = format!(
            "EXPLAIN SELECT * FROM history LEFT JOIN history_personal ON history_id = history.id
             WHERE history.id < 15000 AND {condition} ORDER BY history.id DESC LIMIT 50"
        );
        let plan = sqlx::query(AssertSqlSafe(sql)).fetch_all(&app.db).await.unwrap();
        let plan = plan.iter().map(|row| row.get::<String, _>(0)).collect::<Vec<_>>().join("\n");
        let month: String = sqlx::query_scalar("SELECT 'history_' || to_char(now(), 'YYYY_MM')")
            .fetch_one(&app.db)
            .await
            .unwrap();
        assert!(!plan.contains(&format!("Seq Scan on {month}")), "{condition}\n{plan}");
    }
}

#[tokio::test]
async fn reading_recent_history_reads_only_recent_rows() {
    let url = database().await;
    let mut conn = PgConnection::connect(&url).await.unwrap();
    // One row per second, the last of them now.
    let rows = "INSERT INTO history (table_name, operation, user_id, changed_data, changed_at, database_user)
                SELECT CASE WHEN n % 100 = 0 THEN 'clients' ELSE 'sessions' END, 'INSERT', gen_random_uuid(), '{}',
                    now() - (200000 - n) * interval '1 second', 'x'
                FROM generate_series(1, 200000) AS n;
                ANALYZE history";
    sqlx::raw_sql(rows).execute(&mut conn).await.unwrap();
    conn.close().await.unwrap();
    // Postgres counts what a connection has read by the time it ends.
    nobody_is_connected(&url).await;
    let app = App::over(url, &[]).await;
    let mut conn = PgConnection::connect(&app.database_url).await.unwrap();
    let read = async |conn: &mut PgConnection| -> i64 {
        let blocks = "SELECT sum(idx_blks_read + idx_blks_hit)::bigint FROM pg_statio_user_indexes
                      WHERE relname ~ '^history_(default|\\d)'";
        sqlx::query_scalar(blocks).fetch_one(conn).await.unwrap()
    };
    let before = read(&mut conn).await;
    let root = app.login_admin("root").await;
    let of_row = async |back: i64, what: &str| -> String {
        let sql = format!("SELECT to_json({what}) #>> '{{}}' FROM history WHERE id = $1");
        sqlx::query_scalar(AssertSqlSafe(sql)).bind(200_000 - back).fetch_one(&app.db).await.unwrap()
    };
    let since = of_row(29, "changed_at AT TIME ZONE 'UTC'").await;
    // This row took its number a minute ago, but its time only now.
    execute(&app, "UPDATE history SET changed_at = changed_at + interval '1 minute' WHERE id = 199940").await;

    let pages = async |query: &str| -> Vec<usize> {
        let mut pages = Vec::new();
        let mut cursor = String::new();
        loop {
            let path = format!("/admin/history?since={since}Z&limit=50{query}{cursor}");
            let page = app.get(&path).bearer(&root).send().await.expect(200);
            pages.push(page["changes"].as_array().unwrap().len());
            let Some(next) = page["next_cursor"].as_str() else { return pages };
            cursor = format!("&cursor={next}");
        }
    };
    // root came afterwards: three rows. The second page is read to find late rows; a third one is not.
    assert_eq!(pages("").await, [33, 1]);
    assert_eq!(pages("&table=clients").await, [1]);
    assert_eq!(pages(&format!("&user={}", root["user"]["id"].as_str().unwrap())).await, [3]);
    app.lose_database().await;
    app.db.close().await;
    until("what was read is counted", async || {
        let own = "SELECT count(*) = 0 FROM pg_stat_activity
                   WHERE datname = current_database() AND application_name = 'gatepass'";
        sqlx::query_scalar(own).fetch_one(&mut conn).await.unwrap()
    })
    .await;
    let read = read(&mut conn).await - before;
    // It read less than one whole index.
    let all: i64 = sqlx::query_scalar(
        "SELECT sum(pg_relation_size(indexrelid) / current_setting('block_size')::bigint)::bigint
         FROM pg_stat_user_indexes WHERE indexrelname ~ '^history_(default|\\d.*)_pkey'",
    )
    .fetch_one(&mut conn)
    .await
    .unwrap();
    assert!((10..all).contains(&read), "{read} blocks of indexes were read, where all have {all}");

    let since = format!("{since}Z");
    let shown = gatepass(&app, &["history", "--json", "--limit", "50", "--since", &since], "").await.json();
    assert_eq!(shown.as_array().unwrap().len(), 34);
    let shown = gatepass(&app, &["history", "--json", "--limit", "34", "--since", &since], "").await.json();
    assert_eq!(shown.as_array().unwrap().len(), 34);
}
