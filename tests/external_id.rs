//! While two systems run side by side, the old one reports every user who changes there, with
//! `PUT /admin/users/by-external-id/{id}`. The rules are those of the import, even when two requests report the same
//! user at the same moment.

use axum::http::Method;
use serde_json::{Value, json};
use sqlx::Connection;
use time::Duration;
use tokio::task::JoinSet;

use crate::{
    app::{Answer, App, Story},
    process::until,
};

/// Alice's password in the other system, and its hash there: one of the vectors of tests/foreign_hashes.rs.
const OLD_PASSWORD: &str = "пароль 密碼 🦀 02da6d9d";
const BCRYPT: &str = "$2y$08$19Gq6c13aVMyQ5QM/c3qFeR7H5V/6UzcigJrXYMaWBNIrvna/8UK.";
/// The password `secret` in an LDAP hash, which is too fast to be kept as it is.
const SSHA: &str = "{SSHA}VWbG6s3jSVi5IHhYR0Ihgc9ccFY0UVZz";

struct Bridge {
    app: App,
    root: Value,
}

impl Bridge {
    async fn new() -> Self {
        Self::with(&[]).await
    }

    async fn with(settings: &[(&str, &str)]) -> Self {
        let app = App::with(settings).await;
        let root = app.login_admin("root").await;
        Self { app, root }
    }

    fn request(&self, id: &str, body: &Value) -> Story {
        let path = format!("/admin/users/by-external-id/{id}");
        self.app.request(Method::PUT, &path).bearer(&self.root).json(body)
    }

    async fn put(&self, id: &str, body: &Value) -> Answer {
        self.request(id, body).send().await
    }

    /// Reports Alice, with more fields.
    async fn alice(&self, more: Value) -> Answer {
        let mut body = json!({
            "username": "alice", "email": "alice@example.com", "full_name": "Alice", "is_email_verified": true,
            "created_at": "2019-01-01T00:00:00Z", "updated_at": "2020-01-01T00:00:00Z", "password_hash": BCRYPT,
        });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.put("17", &body).await
    }

    async fn column(&self, name: &str, id: &str) -> Value {
        let row: Value = sqlx::query_scalar("SELECT to_jsonb(users) FROM users WHERE external_id = $1")
            .bind(id)
            .fetch_one(&self.app.db)
            .await
            .unwrap();
        row[name].clone()
    }

    async fn log_in(&self, password: &str) -> Answer {
        self.app.try_login("alice", password).await
    }
}

/// The errors of a 422, each as `field code`.
fn faults(answer: Answer) -> Vec<String> {
    let problem = answer.expect_problem(422, "validation_failed");
    let text = |error: &Value, name: &str| error[name].as_str().unwrap().to_owned();
    let errors = problem["errors"].as_array().unwrap().iter();
    errors.map(|error| format!("{} {}", text(error, "field"), text(error, "code"))).collect()
}

#[tokio::test]
async fn a_user_is_created_and_then_changed_only_by_newer_records() {
    let here = Bridge::new().await;
    let made = here.alice(json!({ "external_id": "17" })).await;
    let location = made.location("/admin/users/by-external-id/17");
    let made = made.expect(201);
    assert_eq!(made["outcome"], "created");
    assert_eq!(made["created_at"], "2019-01-01T00:00:00Z");
    assert_eq!(location, format!("/admin/users/{}", made["id"].as_str().unwrap()));
    let mut user = here.app.get(&location).bearer(&here.root).send().await.expect(200);
    user["outcome"] = "created".into();
    assert_eq!(user, made);
    assert_eq!(here.column("external_id", "17").await, "17");

    // As old as the last one, older, and without a date.
    for at in [json!("2020-01-01T00:00:00Z"), json!("2019-12-31T23:59:59Z"), Value::Null] {
        let answer = here.alice(json!({ "updated_at": at, "full_name": "Eve", "disabled": true })).await;
        assert_eq!(answer.header("location"), "");
        let same = answer.expect(200);
        assert_eq!((&same["outcome"], &same["full_name"]), (&json!("unchanged"), &json!("Alice")), "{at}");
        assert_eq!(same["disabled"], false);
    }
    // Newer, with nothing else changed.
    let same = here.alice(json!({ "updated_at": "2020-06-01T00:00:00Z" })).await.expect(200);
    assert_eq!(same["outcome"], "unchanged");
    // A record dated between the two comes too late.
    let late =
        here.alice(json!({ "updated_at": "2020-03-01T00:00:00Z", "full_name": "Eve" })).await.expect(200);
    assert_eq!((&late["outcome"], &late["full_name"]), (&json!("unchanged"), &json!("Alice")));
    here.log_in(OLD_PASSWORD).await.expect(200);
    // Newer. The username stays, and so does everything that the record does not say. A new address is not verified
    // until it is shown to be theirs.
    let newer = json!({
        "username": "alicia", "email": "alice@new.example", "updated_at": "2021-01-01T00:00:00Z", "full_name": null,
        "is_email_verified": null, "roles": ["admin", "support"], "password_hash": "!",
    });
    let changed = here.alice(newer).await.expect(200);
    assert_eq!(changed["outcome"], "updated");
    for (field, value) in [
        ("id", made["id"].clone()),
        ("username", json!("alice")),
        ("email", json!("alice@new.example")),
        ("full_name", json!("Alice")),
        ("is_email_verified", json!(false)),
        ("roles", json!(["admin", "support"])),
        ("created_at", json!("2019-01-01T00:00:00Z")),
    ] {
        assert_eq!(changed[field], value, "{field}");
    }
    here.log_in(OLD_PASSWORD).await.expect(200);

    // An administrator's change here is newer than any record that is dated before it.
    here.app.patch(&location).bearer(&here.root).json(&json!({ "full_name": "Al" })).send().await.expect(200);
    let older = here.alice(json!({ "updated_at": "2022-01-01T00:00:00Z" })).await.expect(200);
    assert_eq!((&older["outcome"], &older["full_name"]), (&json!("unchanged"), &json!("Al")));

    // The history names the administrator and the requests.
    let history = format!("/admin/history?table=users&user={}", made["id"].as_str().unwrap());
    let history = here.app.get(&history).bearer(&here.root).send().await.expect(200);
    // Except for the login, which has replaced the hash.
    let by_people = |change: &&Value| change["actor"] != "service";
    let changes: Vec<_> = history["changes"].as_array().unwrap().iter().filter(by_people).collect();
    assert_eq!(changes.len(), 3, "{history}");
    for change in changes {
        assert_eq!(change["actor"], here.root["user"]["id"], "{change}");
        assert!(change["request_id"].is_string());
    }
    assert!(!history.to_string().contains("$2y$"));
}

#[tokio::test]
async fn an_external_id_may_be_any_text_and_is_read_from_the_url() {
    let here = Bridge::new().await;
    let body = |i: usize| json!({ "username": format!("user{i}"), "email": format!("user{i}@example.com") });
    let long = "ü".repeat(256);
    for (i, (address, id)) in [
        ("auth0%7C5f%2F1", "auth0|5f/1"),
        ("a%20b+c", "a b+c"),
        ("%25", "%"),
        ("..%2f..", "../.."),
        ("%C3%A4", "ä"),
        ("sessions", "sessions"),
        (&"%C3%BC".repeat(256), &long),
    ]
    .into_iter()
    .enumerate()
    {
        let user = here.put(address, &body(i)).await.expect(201);
        assert_eq!(user["username"], format!("user{i}"));
        assert_eq!(here.column("id", id).await, user["id"], "{address}");
        let mut named = body(i);
        named["external_id"] = id.into();
        assert_eq!(here.put(address, &named).await.expect(200)["outcome"], "unchanged");
    }
    for (address, fault) in [
        ("a%00b", "external_id invalid_characters"),
        ("a%0Ab", "external_id invalid_characters"),
        ("%FF", "external_id invalid_characters"),
        (&"x".repeat(257), "external_id too_long"),
    ] {
        assert_eq!(faults(here.put(address, &body(99)).await), [fault], "{address}");
    }
    for other in ["", "18", " 17"] {
        let mut other_id = body(99);
        other_id["external_id"] = other.into();
        assert_eq!(faults(here.put("17", &other_id).await), ["external_id mismatch"], "{other}");
    }
    here.app
        .request(Method::PUT, "/admin/users/by-external-id/")
        .bearer(&here.root)
        .json(&body(99))
        .send()
        .await
        .expect_problem(404, "not_found");
}

#[tokio::test]
async fn all_invalid_fields_are_reported_at_once_and_nothing_changes() {
    let here = Bridge::new().await;
    let bad = json!({
        "username": "b b", "email": "nowhere", "full_name": "a\u{7}", "roles": ["Boss"], "created_at": "yesterday",
        "updated_at": "2999-01-01T00:00:00Z", "password_changed_at": "1969-01-01T00:00:00Z", "password_hash": "secret",
    });
    let told = faults(here.alice(bad).await);
    for fault in [
        "username invalid_characters",
        "email invalid_email",
        "full_name invalid_characters",
        "roles[0] invalid_role",
        "created_at invalid_type",
        "updated_at in_the_future",
        "password_changed_at too_early",
        "password_hash refused",
    ] {
        assert!(told.iter().any(|told| told == fault), "{fault}: {told:?}");
    }
    assert_eq!(told.len(), 8, "{told:?}");
    // Nothing says which algorithm the hexadecimal digest is of.
    let bare = here.alice(json!({ "password_hash": "5f4dcc3b5aa765d61d8327deb882cf99" })).await;
    let problem = bare.expect_problem(422, "validation_failed");
    let message = problem["errors"][0]["message"].as_str().unwrap();
    assert!(message.contains("hexadecimal") && message.contains("--hash"), "{message}");
    let costly = format!("$2y$31${}", &BCRYPT[7..]);
    assert_eq!(faults(here.alice(json!({ "password_hash": costly })).await), ["password_hash refused"]);
    assert_eq!(faults(here.alice(json!({ "salt": "x" })).await), ["salt unknown_field"]);
    let users: i64 = sqlx::query_scalar("SELECT count(*) FROM users").fetch_one(&here.app.db).await.unwrap();
    assert_eq!(users, 1);

    // Nobody but an administrator learns anything.
    here.app.register("bob").await;
    let bob = here.app.login("bob").await;
    let request = here.app.request(Method::PUT, "/admin/users/by-external-id/%00").bearer(&bob);
    request.json(&json!({})).send().await.expect_problem(403, "forbidden");
}

#[tokio::test]
async fn a_record_cannot_take_over_a_user_or_remove_the_last_administrator() {
    let here = Bridge::new().await;
    here.app.register("alice").await;
    // A user who registered here is not taken over.
    here.alice(json!({})).await.expect_problem(409, "username_taken");
    here.alice(json!({ "username": "alice2", "email": "ALICE@example.com" }))
        .await
        .expect_problem(409, "email_taken");
    here.alice(json!({ "username": "ALICE2", "email": "alice2@example.com" })).await.expect(201);
    here.alice(json!({ "email": "alice@example.com", "updated_at": "2021-01-01T00:00:00Z" }))
        .await
        .expect_problem(409, "email_taken");

    // The last administrator stays one.
    let root = json!({ "username": "boss", "email": "boss@example.com", "roles": ["admin"] });
    here.put("boss", &root).await.expect(201);
    sqlx::query("UPDATE users SET roles = '{}' WHERE username = 'root'").execute(&here.app.db).await.unwrap();
    let set = "UPDATE users SET external_id = $1 WHERE username = 'root'";
    sqlx::query(set).bind("root").execute(&here.app.db).await.unwrap();
    let long_ago =
        "UPDATE users SET roles = '{admin}', updated_at = '2020-01-01Z', administered_at = '2020-01-01Z'
                    WHERE username = 'root'";
    sqlx::query(long_ago).execute(&here.app.db).await.unwrap();
    sqlx::query("UPDATE users SET disabled = true WHERE username = 'boss'")
        .execute(&here.app.db)
        .await
        .unwrap();
    here.app.hear().await;
    let here = Bridge { root: here.app.login("root").await, ..here };
    for change in [json!({ "roles": [] }), json!({ "disabled": true })] {
        let mut body =
            json!({ "username": "root", "email": "root@example.com", "updated_at": "2021-01-01T00:00:00Z" });
        body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        here.put("root", &body).await.expect_problem(409, "last_admin");
    }
}

#[tokio::test]
async fn a_record_ends_sessions_and_outdates_tokens_as_other_changes_do() {
    let here = Bridge::new().await;
    here.alice(json!({})).await.expect(201);
    let me = async |login: &Value| here.app.get("/users/me").bearer(login).send().await;
    let login = here.log_in(OLD_PASSWORD).await.expect(200);
    let newer = json!({ "updated_at": "2020-02-01T00:00:00Z", "roles": ["support"], "password_hash": null });
    here.alice(newer).await.expect(200);
    me(&login).await.expect_problem(401, "token_outdated");

    // A login has replaced the hash, so there is no telling whether the record's hash is of another password.
    let login = here.log_in(OLD_PASSWORD).await.expect(200);
    assert!(here.column("password_hash", "17").await.as_str().unwrap().starts_with("$argon2id$"));
    let later = json!({ "updated_at": "2026-01-02T03:04:06Z", "password_hash": SSHA });
    assert_eq!(here.alice(later).await.expect(200)["outcome"], "updated");
    me(&login).await.expect_problem(401, "session_revoked");
    here.log_in(OLD_PASSWORD).await.expect_problem(401, "invalid_credentials");
    let kept = here.column("password_hash", "17").await;
    assert!(kept.as_str().unwrap().starts_with("$wrapped$digest$of=sha1"), "{kept}");

    here.app.clock.advance(Duration::minutes(1));
    here.alice(json!({ "updated_at": "2026-01-02T03:04:07Z" })).await.expect(200);
    let login = here.log_in(OLD_PASSWORD).await.expect(200);
    here.app.clock.advance(Duration::minutes(1));
    here.alice(json!({ "updated_at": "2026-01-02T03:06:05Z", "disabled": true })).await.expect(200);
    me(&login).await.expect_problem(401, "session_revoked");
    here.log_in(OLD_PASSWORD).await.expect_problem(401, "invalid_credentials");
}

#[tokio::test]
async fn a_repeated_record_from_a_fast_clock_undoes_nothing() {
    let here = Bridge::new().await;
    here.alice(json!({})).await.expect(201);
    let ahead = json!({ "updated_at": "2026-01-02T03:08:05Z", "full_name": "Al", "disabled": true });
    let made = here.alice(ahead.clone()).await.expect(200);
    assert_eq!((&made["outcome"], &made["disabled"]), (&json!("updated"), &json!(true)));

    here.app.clock.advance(Duration::minutes(1));
    let change = json!({ "disabled": false, "full_name": "Alice" });
    let path = format!("/admin/users/{}", made["id"].as_str().unwrap());
    here.app.patch(&path).bearer(&here.root).json(&change).send().await.expect(200);
    let again = here.alice(ahead).await.expect(200);
    for (field, value) in
        [("outcome", json!("unchanged")), ("disabled", json!(false)), ("full_name", json!("Alice"))]
    {
        assert_eq!(again[field], value, "{field}");
    }

    // The same holds for a password that is set here.
    let ahead = json!({ "updated_at": "2026-01-02T03:09:05Z" });
    here.alice(ahead.clone()).await.expect(200);
    let login = here.log_in(OLD_PASSWORD).await.expect(200);
    let passwords = json!({ "current_password": OLD_PASSWORD, "new_password": "another-horse-battery-10" });
    let request = here.app.request(Method::PUT, "/users/me/password").bearer(&login);
    request.json(&passwords).send().await.expect(204);
    let mut other = ahead;
    other["full_name"] = "Eve".into();
    assert_eq!(here.alice(other).await.expect(200)["outcome"], "unchanged");
    here.log_in("another-horse-battery-10").await.expect(200);
}

/// The other system's clock was ahead when it dated the record; a password that is set here afterwards still counts as
/// the later one.
#[tokio::test]
async fn a_record_dated_by_a_fast_clock_does_not_undo_a_password_set_here() {
    let here = Bridge::new().await;
    here.alice(json!({ "password_hash": SSHA })).await.expect(201);
    let ahead = json!({
        "updated_at": "2026-01-02T03:08:05Z", "password_changed_at": "2026-01-02T03:08:05Z", "password_hash": BCRYPT,
    });
    assert_eq!(here.alice(ahead.clone()).await.expect(200)["outcome"], "updated");
    let login = here.log_in(OLD_PASSWORD).await.expect(200);
    here.app.clock.advance(Duration::minutes(1));
    let passwords = json!({ "current_password": OLD_PASSWORD, "new_password": "another-horse-battery-10" });
    let request = here.app.request(Method::PUT, "/users/me/password").bearer(&login);
    request.json(&passwords).send().await.expect(204);
    assert_eq!(here.column("password_changed_at", "17").await, "2026-01-02T03:08:05.000001+00:00");

    // Something else has changed there; the record still has the old password.
    let mut later = ahead;
    later["updated_at"] = "2026-01-02T03:09:05Z".into();
    later["full_name"] = "Al".into();
    assert_eq!(here.alice(later).await.expect(200)["full_name"], "Al");
    here.app.get("/users/me").bearer(&login).send().await.expect(200);
    here.log_in(OLD_PASSWORD).await.expect_problem(401, "invalid_credentials");
    here.log_in("another-horse-battery-10").await.expect(200);
}

#[tokio::test]
async fn a_change_without_effect_outdates_no_record() {
    let here = Bridge::new().await;
    let path = here.alice(json!({})).await.location("/admin/users/by-external-id/17");
    let login = here.log_in(OLD_PASSWORD).await.expect(200);
    here.app.clock.advance(Duration::minutes(2));
    for body in [json!({}), json!({ "full_name": "Alice", "email": "alice@example.com" })] {
        let own = here.app.patch("/users/me").bearer(&login).json(&body).send().await.expect(200);
        assert_eq!(own, login["user"]);
    }
    for body in [json!({}), json!({ "roles": [], "disabled": false })] {
        here.app.patch(&path).bearer(&here.root).json(&body).send().await.expect(200);
    }
    let before = json!({ "updated_at": "2026-01-02T03:05:05Z", "full_name": "Al", "disabled": true });
    let changed = here.alice(before).await.expect(200);
    assert_eq!((&changed["full_name"], &changed["disabled"]), (&json!("Al"), &json!(true)));
    // The record says that the user was disabled before they logged in; even so, no session ends before it began.
    let sessions: Vec<bool> =
        sqlx::query_scalar("SELECT ended_at >= created_at FROM sessions WHERE user_id = $1::uuid")
            .bind(changed["id"].as_str())
            .fetch_all(&here.app.db)
            .await
            .unwrap();
    assert_eq!(sessions, [true]);
}

#[tokio::test]
async fn users_cannot_avoid_being_disabled_by_changing_their_profile() {
    let here = Bridge::new().await;
    let path = here.alice(json!({})).await.location("/admin/users/by-external-id/17");
    let login = here.log_in(OLD_PASSWORD).await.expect(200);
    here.app.clock.advance(Duration::minutes(2));
    let own = json!({ "full_name": "Alice L.", "email": "alice@new.example" });
    here.app.patch("/users/me").bearer(&login).json(&own).send().await.expect(200);

    let before = json!({ "updated_at": "2026-01-02T03:05:05Z", "roles": ["support"], "disabled": true });
    let changed = here.alice(before.clone()).await.expect(200);
    for (field, value) in [
        ("outcome", json!("updated")),
        ("disabled", json!(true)),
        ("roles", json!(["support"])),
        ("full_name", json!("Alice L.")),
        ("email", json!("alice@new.example")),
    ] {
        assert_eq!(changed[field], value, "{field}");
    }
    here.app.get("/users/me").bearer(&login).send().await.expect_problem(401, "session_revoked");
    assert_eq!(here.alice(before.clone()).await.expect(200)["outcome"], "unchanged");

    // An administrator's decision here does hold off older records.
    here.app.clock.advance(Duration::minutes(2));
    let enable = json!({ "disabled": false });
    here.app.patch(&path).bearer(&here.root).json(&enable).send().await.expect(200);
    for at in ["2026-01-02T03:05:05Z", "2026-01-02T03:06:05Z", "2026-01-02T03:08:05Z"] {
        let mut late = before.clone();
        late["updated_at"] = at.into();
        let late = here.alice(late).await.expect(200);
        assert_eq!((&late["outcome"], &late["disabled"]), (&json!("unchanged"), &json!(false)), "{at}");
    }
    let mut later = before;
    later["updated_at"] = "2026-01-02T03:08:06Z".into();
    assert_eq!(here.alice(later).await.expect(200)["disabled"], true);
}

/// The address that the other system has for a user may belong to someone else here by now.
#[tokio::test]
async fn a_taken_address_does_not_prevent_disabling_its_former_owner() {
    let here = Bridge::new().await;
    let path =
        here.alice(json!({ "roles": ["support", "boss"] })).await.location("/admin/users/by-external-id/17");
    let login = here.log_in(OLD_PASSWORD).await.expect(200);
    here.app.clock.advance(Duration::minutes(2));
    let own = json!({ "email": "a2@example.org" });
    here.app.patch("/users/me").bearer(&login).json(&own).send().await.expect(200);
    let friend =
        json!({ "username": "friend", "email": "alice@example.com", "password": "another-horse-battery-10" });
    here.app.post("/users").json(&friend).send().await.expect(201);
    let me = async || here.app.get("/users/me").bearer(&login).send().await;
    let now = async || here.app.get(&path).bearer(&here.root).send().await.expect(200);

    // From before she moved: everything that still applies is taken, and the address, which does not, is no conflict.
    let before = json!({ "updated_at": "2026-01-02T03:05:05Z", "roles": ["support"], "full_name": "Eve" });
    for outcome in ["updated", "unchanged"] {
        let changed = here.alice(before.clone()).await.expect(200);
        assert_eq!((&changed["outcome"], &changed["roles"]), (&json!(outcome), &json!(["support"])));
        assert_eq!((&changed["full_name"], &changed["email"]), (&json!("Alice"), &json!("a2@example.org")));
    }
    me().await.expect_problem(401, "token_outdated");
    let undated = here.alice(json!({ "updated_at": null, "disabled": true })).await.expect(200);
    assert_eq!((&undated["outcome"], &undated["disabled"]), (&json!("unchanged"), &json!(false)));

    // From after that: she is disabled and loses her roles, however often the record comes, though it is refused.
    let after = json!({
        "updated_at": "2026-01-02T03:07:05Z", "roles": [], "disabled": true, "full_name": "Eve", "password_hash": SSHA,
    });
    for _ in 0..2 {
        here.alice(after.clone()).await.expect_problem(409, "email_taken");
        let alice = now().await;
        assert_eq!((&alice["disabled"], &alice["roles"]), (&json!(true), &json!([])));
        assert_eq!((&alice["full_name"], &alice["email"]), (&json!("Alice"), &json!("a2@example.org")));
    }
    me().await.expect_problem(401, "session_revoked");
    // The refused part is not recorded as applied: with an address of her own, the record still counts as newer.
    let mut mended = after;
    mended["email"] = "alice@new.example".into();
    let alice = here.alice(mended).await.expect(200);
    assert_eq!((&alice["outcome"], &alice["full_name"]), (&json!("updated"), &json!("Eve")));

    // The only administrator is not disabled that way, either.
    let set =
        "UPDATE users SET external_id = 'root', updated_at = '2020-01-01Z', administered_at = '2020-01-01Z'
               WHERE username = 'root'";
    sqlx::query(set).execute(&here.app.db).await.unwrap();
    let root = json!({
        "username": "root", "email": "alice@example.com", "updated_at": "2021-01-01T00:00:00Z", "disabled": true,
    });
    here.put("root", &root).await.expect_problem(409, "last_admin");
    here.app.get("/users/me").bearer(&here.root).send().await.expect(200);
}

/// Also by hand, and by a release that does not know of the column.
#[tokio::test]
async fn every_change_of_roles_or_disabling_is_dated_whoever_makes_it() {
    let here = Bridge::new().await;
    here.alice(json!({ "updated_at": "2020-01-01T00:00:00Z" })).await.expect(201);
    let change = async |sql: &'static str| {
        sqlx::query(sql).execute(&here.app.db).await.unwrap();
        here.column("administered_at", "17").await
    };
    assert_eq!(here.column("administered_at", "17").await, Value::Null);
    let found = change("UPDATE users SET full_name = 'Al', updated_at = '2021-01-01Z'").await;
    assert_eq!(found, "2020-01-01T00:00:00+00:00");
    let found = change("UPDATE users SET roles = '{admin,x}', updated_at = '2022-01-01Z'").await;
    assert_eq!(found, "2022-01-01T00:00:00+00:00");
    change("UPDATE users SET disabled = true WHERE external_id = '17'").await;
    let is_now: bool = sqlx::query_scalar(
        "SELECT administered_at > now() - interval '1 minute' FROM users WHERE external_id = '17'",
    )
    .fetch_one(&here.app.db)
    .await
    .unwrap();
    assert!(is_now);

    // Where nothing is noted, updated_at counts, which a clock that is ahead may have put into the future.
    change("UPDATE users SET updated_at = now() + interval '4 minutes' WHERE external_id = '17'").await;
    let found = change("UPDATE users SET administered_at = NULL WHERE external_id = '17'").await;
    assert_eq!(found, Value::Null);
    let found = change("UPDATE users SET disabled = false WHERE external_id = '17'").await;
    assert_eq!(found, here.column("updated_at", "17").await);
}

/// Two addresses are the same here exactly when they are the same in an administrator's change.
#[tokio::test]
async fn an_address_stays_verified_only_if_nothing_but_its_case_changes() {
    let here = Bridge::new().await;
    let made = here.alice(json!({ "email": "Zoë@example.com" })).await.expect(201);
    let path = format!("/admin/users/{}", made["id"].as_str().unwrap());
    for (email, is_email_verified) in
        [("zoë@Example.com", true), ("ZOË@example.com", true), ("zoe@example.com", false)]
    {
        let patched = here.app.patch(&path).bearer(&here.root).json(&json!({ "email": email })).send().await;
        assert_eq!(patched.expect(200)["is_email_verified"], is_email_verified, "{email}");
        let reset =
            "UPDATE users SET email = 'Zoë@example.com', is_email_verified = true, updated_at = '2020-01-01'
                     WHERE external_id = '17'";
        sqlx::query(reset).execute(&here.app.db).await.unwrap();
        let newer =
            json!({ "email": email, "is_email_verified": null, "updated_at": "2021-01-01T00:00:00Z" });
        let put = here.alice(newer).await.expect(200);
        assert_eq!((&put["email"], &put["is_email_verified"]), (&json!(email), &json!(is_email_verified)));
    }
}

#[tokio::test]
async fn simultaneous_records_of_a_new_user_create_one_and_both_succeed() {
    let here = Bridge::new().await;
    // Both have found nobody, and are about to write.
    let mut hold = here.app.db.acquire().await.unwrap();
    let mut hold = hold.begin().await.unwrap();
    sqlx::query("LOCK TABLE users IN SHARE MODE").execute(&mut *hold).await.unwrap();
    let body =
        json!({ "username": "alice", "email": "alice@example.com", "updated_at": "2020-01-01T00:00:00Z" });
    let mut crowd = JoinSet::new();
    for _ in 0..2 {
        crowd.spawn(here.request("17", &body).send());
    }
    let waiting = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
    until("both wait", async || {
        sqlx::query_scalar::<_, i64>(waiting).fetch_one(&here.app.db).await.unwrap() == 2
    })
    .await;
    hold.rollback().await.unwrap();
    let answers = crowd.join_all().await;
    let mut statuses: Vec<_> = answers.iter().map(|answer| answer.status.as_u16()).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 201], "{answers:?}");
    let ids: Vec<Value> = answers
        .into_iter()
        .map(|answer| serde_json::from_str::<Value>(&answer.body).unwrap()["id"].clone())
        .collect();
    assert_eq!(ids[0], ids[1]);

    // The same with many, each with a different record: the newest one stays.
    for round in 0..5 {
        let mut crowd = JoinSet::new();
        for i in 0..6 {
            let body = json!({
                "username": format!("user{round}"), "email": format!("user{round}-{i}@example.com"),
                "updated_at": format!("2020-01-01T00:00:0{i}Z"),
            });
            crowd.spawn(here.request(&format!("x-{round}"), &body).send());
        }
        let answers = crowd.join_all().await;
        let made = answers.iter().filter(|answer| answer.status.as_u16() == 201).count();
        assert_eq!(made, 1, "{answers:?}");
        assert!(answers.iter().all(|answer| answer.status.is_success()), "{answers:?}");
        assert_eq!(here.column("email", &format!("x-{round}")).await, format!("user{round}-5@example.com"));
    }
}

#[tokio::test]
async fn fast_hashes_wait_their_turn_with_logins() {
    let here = Bridge::with(&[
        ("PASSWORD_HASH_THREADS", "1"),
        ("PASSWORD_HASH_QUEUE", "1"),
        ("ARGON2_MEMORY_KIB", "19456"),
        ("ARGON2_ITERATIONS", "8"),
    ])
    .await;
    let mut crowd = JoinSet::new();
    for i in 0..8 {
        let body = json!({
            "username": format!("user{i}"), "email": format!("user{i}@example.com"), "password_hash": SSHA,
        });
        crowd.spawn(here.request(&i.to_string(), &body).send());
    }
    let (made, turned_away): (Vec<_>, Vec<_>) =
        crowd.join_all().await.into_iter().partition(|answer| answer.status.as_u16() == 201);
    // One more may wait for the first one's hash; it is turned away, too, if that takes seconds beside all other tests.
    assert!(!made.is_empty() && turned_away.len() >= 2, "{} {}", made.len(), turned_away.len());
    for answer in turned_away {
        assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
        answer.expect_problem(503, "overloaded");
    }
    // A hash that is slow by itself needs no turn.
    here.alice(json!({})).await.expect(201);
}

/// The answer to what an abandoned request had asked the database reaches no other request.
#[tokio::test]
async fn an_abandoned_request_leaves_no_answer_for_the_next_ones() {
    let here = Bridge::new().await;
    let mut users = vec![("root", here.root.clone())];
    for name in ["bob", "carol"] {
        here.app.register(name).await;
        users.push((name, here.app.login(name).await));
    }
    let mut conn = here.app.db.acquire().await.unwrap();
    for round in 0..3 {
        // Someone takes the name at the same moment.
        let mut other = conn.begin().await.unwrap();
        sqlx::query(
            "INSERT INTO users (id, username, email, roles, is_email_verified, disabled, password_changed_at,
                                created_at, updated_at)
             SELECT overlay(gen_random_uuid()::text placing '7' from 15 for 1)::uuid, 'alice', 'alice@example.org', '{}',
                    false, false, now(), now(), now()",
        )
        .execute(&mut *other)
        .await
        .unwrap();
        let body = json!({ "username": "alice", "email": "alice@example.com", "created_at": "2019-01-01T00:00:00Z" });
        let put = tokio::spawn(here.request("17", &body).send());
        until("it waits", async || {
            let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'
                               AND pid IN (SELECT pid FROM pg_stat_activity WHERE datname = current_database())";
            sqlx::query_scalar::<_, i64>(waiting).fetch_one(&here.app.db).await.unwrap() == 1
        })
        .await;
        put.abort();
        assert!(put.await.unwrap_err().is_cancelled());
        other.rollback().await.unwrap();

        for (name, login) in &users {
            let full_name = format!("{name} {round}");
            let change = here.app.request(Method::PATCH, "/users/me").bearer(login);
            change.json(&json!({ "full_name": full_name })).send().await.expect(200);
            let me = here.app.get("/users/me").bearer(login).send().await.expect(200);
            assert_eq!((&me["username"], &me["full_name"]), (&json!(name), &json!(full_name)));
            let written: String = sqlx::query_scalar("SELECT full_name FROM users WHERE username = $1")
                .bind(name)
                .fetch_one(&here.app.db)
                .await
                .unwrap();
            assert_eq!(written, full_name);
        }
    }
}
