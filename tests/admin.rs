//! Administration of users: lists stay complete while users come and go, a search costs the same among a million users,
//! a change is made completely or not at all, and an administrator is always left, whoever races whom.

use std::{
    convert::Infallible,
    fs,
    path::Path,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Instant,
};

use axum::{
    body::{Body, Bytes, HttpBody},
    http::Method,
};
use hyper::body::Frame;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use time::Duration;
use tokio::{sync::oneshot, task::JoinSet, time::timeout};

use crate::{
    app::{Answer, App, PASSWORD, Story},
    process::{is_drill, until},
};

/// Inserts users by hand. Their ids and usernames ascend with their numbers. Every second one is a `member`, every
/// thousandth an `auditor`, and the address of every third begins differently from the username.
async fn make_users(app: &App, numbers: impl Iterator<Item = i32>) {
    let make = "
        INSERT INTO users
            (id, username, email, roles, is_email_verified, disabled, password_changed_at, created_at, updated_at)
        SELECT
            ('01940000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid,
            'user' || lpad(n::text, 7, '0'),
            CASE WHEN n % 3 = 0 THEN 'mail' ELSE 'user' END || lpad(n::text, 7, '0') || '@example.com',
            CASE WHEN n % 1000 = 1 THEN '{auditor}' WHEN n % 2 = 0 THEN '{member}' ELSE '{}' END::text[],
            false, false, now(), now(), now()
        FROM unnest($1::int[]) AS n";
    // A connection without the service's statement timeout: a million users take a while.
    let mut conn = PgConnection::connect(&app.database_url).await.unwrap();
    sqlx::query(make).bind(numbers.collect::<Vec<_>>()).execute(&mut conn).await.unwrap();
    sqlx::raw_sql("ANALYZE users").execute(&mut conn).await.unwrap();
}

async fn list(app: &App, login: &Value, query: &str) -> Answer {
    app.get(&format!("/admin/users{query}")).bearer(login).send().await
}

async fn patch(app: &App, login: &Value, user: &Value, change: Value) -> Answer {
    let path = format!("/admin/users/{}", user["id"].as_str().unwrap());
    app.patch(&path).bearer(login).json(&change).send().await
}

async fn delete(app: &App, login: &Value, user: &Value) -> Answer {
    let path = format!("/admin/users/{}", user["id"].as_str().unwrap());
    app.request(Method::DELETE, &path).bearer(login).send().await
}

fn usernames(page: &Value) -> Vec<&str> {
    page["users"].as_array().unwrap().iter().map(|user| user["username"].as_str().unwrap()).collect()
}

/// How many administrators are not disabled.
async fn admins(app: &App) -> i64 {
    let count = "SELECT count(*) FROM users WHERE 'admin' = ANY(roles) AND NOT disabled";
    sqlx::query_scalar(count).fetch_one(&app.db).await.unwrap()
}

#[tokio::test]
async fn a_list_shows_users_as_they_are_oldest_first() {
    let app = App::new().await;
    let root = app.login_admin("root").await;
    app.clock.advance(Duration::seconds(1));
    let alice = app.register("alice").await;
    app.clock.advance(Duration::seconds(1));
    let bob = app.register("bob").await;
    let answer = list(&app, &root, "").await;
    assert_eq!(answer.header("cache-control"), "no-store");
    let all = json!({"users": [root["user"], alice, bob], "next_cursor": null});
    assert_eq!(answer.expect(200), all);
    // A limit of exactly as many as there are returns them all, and no cursor.
    assert_eq!(list(&app, &root, "?limit=3").await.expect(200), all);
    // An empty form field searches for nothing.
    assert_eq!(list(&app, &root, "?query=").await.expect(200), all);
    assert_eq!(list(&app, &root, "?query=%20").await.expect(200), all);
    make_users(&app, 1..=300).await;
    assert_eq!(usernames(&list(&app, &root, "").await.expect(200)).len(), 50);
    assert_eq!(usernames(&list(&app, &root, "?limit=200").await.expect(200)).len(), 200);
}

#[tokio::test]
async fn every_remaining_user_is_listed_once_while_others_come_and_go() {
    let number = |name: &str| -> i32 { name.trim_start_matches("user").parse().unwrap() };
    for (search, finds) in [
        ("", (|_| true) as fn(i32) -> bool),
        ("&role=member", |_| true),
        ("&query=user", |_| true),
        ("&query=USER0", |_| true),
        ("&query=user&role=member", |_| true),
        // These match the address alone.
        ("&query=mail", |n| n % 3 == 0),
        ("&query=mail&role=member", |n| n % 3 == 0),
    ] {
        let app = App::new().await;
        let numbers = (1000..1600).step_by(10);
        make_users(&app, numbers.clone()).await;
        let mut stay: Vec<_> = numbers.filter(|n| finds(*n)).collect();
        let root = app.login_admin("root").await;
        let mut seen = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = list(&app, &root, &format!("?limit=7{search}{cursor}")).await.expect(200);
            let names = usernames(&page);
            assert!(names.len() <= 7, "{search}: {names:?}");
            seen.extend(names.into_iter().filter(|name| *name != "root").map(number));
            let Some(next) = page["next_cursor"].as_str() else { break };
            cursor = format!("&cursor={next}");

            // The last user on this page, after whom the next page begins, is deleted; so is one on a later page.
            let last = *seen.last().unwrap();
            let later = last + 90;
            stay.retain(|n| *n != later);
            let leave = "DELETE FROM users WHERE username = any(ARRAY[$1, $2])";
            let names = [last, later].map(|n| format!("user{n:07}"));
            sqlx::query(leave).bind(&names[0]).bind(&names[1]).execute(&app.db).await.unwrap();
            // One user is added before the cursor, and one after it.
            make_users(&app, [last - 6, last + 6].into_iter()).await;
        }
        assert!(seen.is_sorted_by(|a, b| a < b), "{search}: {seen:?}");
        let missed: Vec<_> = stay.iter().filter(|n| !seen.contains(n)).collect();
        assert!(missed.is_empty() && seen.len() >= stay.len(), "{search}: without {missed:?}: {seen:?}");
        assert!(stay.len() > 15, "{search}: {stay:?}");
    }
}

#[tokio::test]
async fn a_search_matches_literal_prefixes_of_usernames_and_addresses() {
    let app = App::new().await;
    let root = app.login_admin("root").await;
    for (username, email) in [
        ("Alice", "liddell@example.com"),
        ("alice_b", "ALB@Example.com"),
        ("al-fred", "%percent@example.com"),
        ("bob", "alice.b@example.com"),
        ("b_b", "underscore@example.com"),
        ("bxb", "Élise@Exämple.com"),
        ("carol", "o'hara@example.com"),
        ("...", "*@example.com"),
    ] {
        let body = json!({"username": username, "email": email, "password": PASSWORD});
        app.post("/users").json(&body).send().await.expect(201);
    }
    for (query, expected) in [
        // Ordered by what matched: al-fred, alb@…, alice, alice.b@…, alice_b; each user once.
        ("al", &["al-fred", "Alice", "bob", "alice_b"][..]),
        ("alb", &["alice_b"]),
        ("ALICE", &["Alice", "bob", "alice_b"]),
        ("  alice\t", &["Alice", "bob", "alice_b"]),
        ("alice_", &["alice_b"]),
        ("alice.", &["bob"]),
        ("b_", &["b_b"]),
        ("b%", &[]),
        ("%", &["al-fred"]),
        ("_", &[]),
        ("\\", &[]),
        ("b\\_", &[]),
        ("*", &["..."]),
        (".", &["..."]),
        (".*", &[]),
        ("^", &[]),
        ("o'h", &["carol"]),
        ("' OR 1=1 --", &[]),
        ("élise@exä", &["bxb"]),
        ("E\u{301}LISE@EXA\u{308}", &["bxb"]),
        ("elise", &[]),
        ("LIDDELL@EXAMPLE.COM", &["Alice"]),
        ("liddell@example.comm", &[]),
        ("lice", &[]),
        ("\u{10ffff}", &[]),
        ("\u{fffd}", &[]),
        (&"a".repeat(254), &[]),
    ] {
        let parameters = serde_urlencoded::to_string([("query", query)]).unwrap();
        let page = list(&app, &root, &format!("?{parameters}")).await.expect(200);
        assert_eq!(usernames(&page), expected, "{query:?}");
        // Pages of one return the same users.
        let mut one_by_one = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = list(&app, &root, &format!("?{parameters}&limit=1{cursor}")).await.expect(200);
            one_by_one.extend(usernames(&page).into_iter().map(str::to_owned));
            let Some(next) = page["next_cursor"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        assert_eq!(one_by_one, expected, "{query:?}");
    }
    assert_eq!(usernames(&list(&app, &root, "?role=admin").await.expect(200)), ["root"]);
    assert_eq!(usernames(&list(&app, &root, "?role=admin&query=RO").await.expect(200)), ["root"]);
    assert_eq!(usernames(&list(&app, &root, "?role=admin&query=al").await.expect(200)), [""; 0]);
    for role in ["adm", "administrator", "support"] {
        assert_eq!(usernames(&list(&app, &root, &format!("?role={role}")).await.expect(200)), [""; 0]);
    }
}

#[tokio::test]
async fn an_invalid_list_parameter_is_named() {
    let app = App::new().await;
    let root = app.login_admin("root").await;
    make_users(&app, 1..=3).await;
    let cursor = async |query: &str| {
        let page = list(&app, &root, query).await.expect(200);
        page["next_cursor"].as_str().unwrap().to_owned()
    };
    let of_all = cursor("?limit=1").await;
    let of_search = cursor("?limit=1&query=user").await;
    let long = "a".repeat(255);
    for (query, faults) in [
        ("limit=0", &[("limit", "out_of_range")][..]),
        ("limit=201", &[("limit", "out_of_range")]),
        ("limit=4294967295", &[("limit", "out_of_range")]),
        ("limit=4294967296", &[("limit", "invalid")]),
        ("limit=-1", &[("limit", "invalid")]),
        ("limit=", &[("limit", "invalid")]),
        ("limit=1.5", &[("limit", "invalid")]),
        ("limit=ten", &[("limit", "invalid")]),
        ("limit=1&limit=1", &[("limit", "duplicate_field")]),
        ("cursor=", &[("cursor", "invalid")]),
        ("cursor=alice", &[("cursor", "invalid")]),
        ("cursor=01940000-0000-7000-8000-000000000001", &[("cursor", "invalid")]),
        ("cursor=%00", &[("cursor", "invalid")]),
        ("cursor=x&limit=0", &[("limit", "out_of_range"), ("cursor", "invalid")]),
        (&format!("cursor={}", &of_all[1..]), &[("cursor", "invalid")]),
        (&format!("cursor={of_all}&query=user"), &[("cursor", "invalid")]),
        (&format!("cursor={of_search}"), &[("cursor", "invalid")]),
        ("query=a%00b", &[("query", "invalid_characters")]),
        ("query=a%0Ab", &[("query", "invalid_characters")]),
        (&format!("query={long}"), &[("query", "too_long")]),
        ("query=a&query=b", &[("query", "duplicate_field")]),
        ("role=", &[("role", "invalid_role")]),
        ("role=Admin", &[("role", "invalid_role")]),
        ("role=a,b", &[("role", "invalid_role")]),
        ("role=%00", &[("role", "invalid_role")]),
        (&format!("role={long}&query={long}"), &[("query", "too_long"), ("role", "invalid_role")]),
        ("name=alice", &[("name", "unknown_field")]),
        ("offset=10", &[("offset", "unknown_field")]),
    ] {
        let problem = list(&app, &root, &format!("?{query}")).await.expect_problem(422, "validation_failed");
        let errors = problem["errors"].as_array().unwrap().iter();
        let got: Vec<_> =
            errors.map(|error| (error["field"].as_str().unwrap(), error["code"].as_str().unwrap())).collect();
        assert_eq!(got, faults, "{query}");
    }
    // The page that holds the last match has no cursor.
    let after_last = list(&app, &root, "?limit=1&query=user0000003").await.expect(200);
    assert_eq!(after_last["next_cursor"], Value::Null);
}

#[tokio::test]
async fn a_change_is_made_all_at_once_or_not_at_all() {
    let app = App::new().await;
    let root = app.login_admin("root").await;
    let alice = app.register("alice").await;
    app.register("bob").await;
    app.sql("UPDATE users SET is_email_verified = true WHERE id = $1::uuid", &alice["id"]).await;
    let mut expected = alice.clone();
    expected["is_email_verified"] = true.into();
    let shown = async || list(&app, &root, "?query=alice").await.expect(200)["users"][0].clone();

    for change in [
        json!({"full_name": "Mallory", "roles": ["support"], "disabled": true, "email": "BOB@example.com"}),
        json!({"email": "bob@example.com"}),
    ] {
        patch(&app, &root, &alice, change).await.expect_problem(409, "email_taken");
    }
    let wrong = json!({"full_name": "a\tb", "roles": ["ok", "Bad"], "disabled": true, "email": "nowhere"});
    let problem = patch(&app, &root, &alice, wrong).await.expect_problem(422, "validation_failed");
    let fields: Vec<_> = problem["errors"].as_array().unwrap().iter().map(|error| &error["field"]).collect();
    assert_eq!(fields, ["email", "full_name", "roles[1]"]);
    for change in
        [json!({"roles": null}), json!({"disabled": null}), json!({"email": null}), json!({"username": "x"})]
    {
        patch(&app, &root, &alice, change).await.expect_problem(422, "validation_failed");
    }
    assert_eq!(shown().await, expected, "nothing of all that");

    for (change, fields) in [
        (json!({}), json!({})),
        (json!({"roles": ["support", "audit", "audit"]}), json!({"roles": ["audit", "support"]})),
        (json!({"full_name": " Alice Liddell "}), json!({"full_name": "Alice Liddell"})),
        (json!({"disabled": true}), json!({"disabled": true})),
        // A disabled user can still be changed.
        (json!({"full_name": null, "roles": []}), json!({"full_name": null, "roles": []})),
        (json!({"email": "Alice@Example.com"}), json!({"email": "Alice@Example.com"})),
        (
            json!({"full_name": "A", "roles": ["support"], "disabled": false, "email": "alice@example.org"}),
            json!({
                "full_name": "A", "roles": ["support"], "disabled": false, "email": "alice@example.org",
                "is_email_verified": false,
            }),
        ),
    ] {
        for (field, value) in fields.as_object().unwrap() {
            expected[field] = value.clone();
        }
        let answer = patch(&app, &root, &alice, change.clone()).await;
        assert_eq!(answer.header("cache-control"), "no-store");
        assert_eq!(answer.expect(200), expected, "{change}");
        assert_eq!(shown().await, expected, "{change}");
    }
    assert_eq!(app.login("alice@example.org").await["user"], expected);
}

#[tokio::test]
async fn an_administrators_change_takes_effect_at_once() {
    let app = App::new().await;
    let replica = app.replica(&[]).await;
    let root = app.login_admin("root").await;
    let user = app.register("alice").await;
    let alice = app.login("alice").await;
    let me = async |login: &Value| app.get("/users/me").bearer(login).send().await;

    // Other roles: the token is outdated, but the session continues.
    patch(&app, &root, &user, json!({"roles": ["support"]})).await.expect(200);
    me(&alice).await.expect_problem(401, "token_outdated");
    let alice = app.renew(&alice).await.expect(200);
    assert_eq!(me(&alice).await.expect(200)["roles"], json!(["support"]));
    // With the same roles, and changes only to other fields, the token stays valid.
    patch(&app, &root, &user, json!({"roles": ["support"], "full_name": "Alice", "disabled": false}))
        .await
        .expect(200);
    me(&alice).await.expect(200);

    // Disabled, and enabled again: the session stays ended.
    patch(&app, &root, &user, json!({"disabled": true})).await.expect(200);
    me(&alice).await.expect_problem(401, "session_revoked");
    replica.state().feed.hear().await.unwrap();
    replica.get("/users/me").bearer(&alice).send().await.expect_problem(401, "session_revoked");
    app.try_login("alice", PASSWORD).await.expect_problem(401, "invalid_credentials");
    patch(&app, &root, &user, json!({"disabled": false})).await.expect(200);
    me(&alice).await.expect_problem(401, "session_revoked");

    // Deleted.
    let alice = app.login("alice").await;
    let answer = delete(&app, &root, &user).await;
    assert_eq!(answer.body, "");
    answer.expect(204);
    me(&alice).await.expect_problem(401, "session_revoked");
    let problem = delete(&app, &root, &user).await.expect_problem(404, "not_found");
    assert_eq!(problem["detail"], "There is no such user.");
    patch(&app, &root, &user, json!({})).await.expect_problem(404, "not_found");
    assert_eq!(usernames(&list(&app, &root, "").await.expect(200)), ["root"]);
    // The name is free again.
    app.register("alice").await;
}

/// Every request that administrators make, about the user with this id. Some are invalid, but only an administrator is
/// told why.
fn requests(app: &App, id: &Value) -> Vec<crate::app::Story> {
    let user = format!("/admin/users/{}", id.as_str().unwrap());
    vec![
        app.get("/admin/users"),
        app.get("/admin/users?limit=0&nope"),
        app.get(&user),
        app.get("/admin/users/nobody"),
        app.patch(&user).json(&json!({"roles": ["admin"]})),
        app.patch(&user).json(&json!({"nope": 1})),
        app.patch(&user).body("{"),
        app.request(Method::DELETE, &user),
        app.request(Method::DELETE, &format!("{user}/sessions")),
    ]
}

#[tokio::test]
async fn only_current_administrators_may_administer_users() {
    let app = App::new().await;
    let replica = app.replica(&[]).await;
    let root = app.login_admin("root").await;
    let former = app.login_admin("former").await;
    let alice = app.register("alice").await;
    patch(&app, &root, &alice, json!({"roles": ["administrator", "support"]})).await.expect(200);
    let login = app.login("alice").await;
    for id in [&alice["id"], &root["user"]["id"]] {
        for request in requests(&app, id) {
            request.bearer(&login).send().await.expect_problem(403, "forbidden");
        }
    }

    list(&replica, &former, "").await.expect(200);
    patch(&app, &root, &former["user"], json!({"roles": []})).await.expect(200);
    for request in requests(&app, &alice["id"]) {
        request.bearer(&former).send().await.expect_problem(401, "token_outdated");
    }
    // A replica that has not heard of the change yet accepts the token, and asks the database.
    for request in requests(&replica, &alice["id"]) {
        request.bearer(&former).send().await.expect_problem(403, "forbidden");
    }
    let renewed = app.renew(&former).await.expect(200);
    for request in requests(&app, &alice["id"]) {
        request.bearer(&renewed).send().await.expect_problem(403, "forbidden");
    }
    assert_eq!(usernames(&list(&app, &root, "?query=alice").await.expect(200)), ["alice"]);
}

/// A body that says when the service waits for it, and arrives when it is sent.
struct HeldBack {
    is_awaited: Option<oneshot::Sender<()>>,
    body: Option<oneshot::Receiver<String>>,
}

impl HttpBody for HeldBack {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(is_awaited) = self.is_awaited.take() {
            is_awaited.send(()).unwrap();
        }
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let body = ready!(Pin::new(body).poll(context)).unwrap();
        self.body = None;
        Poll::Ready(Some(Ok(Frame::data(body.into()))))
    }
}

/// Begins a request, and lets its body arrive after `meanwhile`.
async fn held_back(story: Story, body: &Value, meanwhile: impl Future<Output = Answer>) -> Answer {
    let ((is_awaited, awaited), (arrive, arriving)) = (oneshot::channel(), oneshot::channel());
    let story = story.header("content-type", "application/json");
    let story = story.body(Body::new(HeldBack { is_awaited: Some(is_awaited), body: Some(arriving) }));
    let meanwhile = async {
        awaited.await.unwrap();
        assert!(meanwhile.await.status.is_success());
        arrive.send(body.to_string()).unwrap();
    };
    tokio::join!(story.send(), meanwhile).0
}

#[tokio::test]
async fn a_request_that_holds_back_its_body_has_no_rights_that_were_lost_meanwhile() {
    let app = App::new().await;
    let anna = app.login_admin("anna").await;
    let mallory = app.login_admin("mallory").await;
    let path = format!("/admin/users/{}", mallory["user"]["id"].as_str().unwrap());
    let back = json!({ "roles": ["admin"], "disabled": false });
    for (change, code) in
        [(json!({ "roles": [] }), "token_outdated"), (json!({ "disabled": true }), "session_revoked")]
    {
        patch(&app, &anna, &mallory["user"], back.clone()).await.expect(200);
        let mallory = app.login("mallory").await;
        let meanwhile = patch(&app, &anna, &mallory["user"], change);
        let answer = held_back(app.patch(&path).bearer(&mallory), &back, meanwhile).await;
        answer.expect_problem(401, code);
    }

    app.register("olga").await;
    let (owner, thief) = (app.login("olga").await, app.login("olga").await);
    let theirs = json!({ "email": "thief@example.net" });
    let all = app.request(Method::DELETE, "/sessions").bearer(&owner).send();
    let answer = held_back(app.patch("/users/me").bearer(&thief), &theirs, all).await;
    answer.expect_problem(401, "session_revoked");
    // A body that only takes its time is as good as any.
    let nothing = app.get("/healthz").send();
    held_back(app.patch("/users/me").bearer(&owner), &json!({ "full_name": "Olga" }), nothing)
        .await
        .expect(200);
}

/// A removal that nobody has heard of yet: the request is admitted, and waits with the rows that it wants.
#[tokio::test]
async fn what_an_administrator_has_under_way_is_not_done_once_they_are_none() {
    let app = App::new().await;
    app.login_admin("root").await;
    let alice = app.register("alice").await;
    let session = app.login("alice").await;
    let record = json!({"username": "eve", "email": "eve@example.com", "roles": ["admin"]});
    let (removals, back) = (
        [
            "UPDATE users SET roles = '{}' WHERE id = $1::uuid",
            "UPDATE users SET disabled = true WHERE id = $1::uuid",
            "DELETE FROM users WHERE id = $1::uuid",
        ],
        json!({"roles": ["admin"], "disabled": false}),
    );
    for (i, removal) in removals.into_iter().enumerate() {
        let path = |id: &Value| format!("/admin/users/{}", id.as_str().unwrap());
        let alice = path(&alice["id"]);
        for (j, (method, at, body)) in [
            (Method::PATCH, None, Some(&back)),
            (Method::PATCH, Some(alice.clone()), Some(&back)),
            (Method::DELETE, Some(alice.clone()), None),
            (Method::DELETE, Some(format!("{alice}/sessions")), None),
            (Method::PUT, Some("/admin/users/by-external-id/17".to_owned()), Some(&record)),
        ]
        .into_iter()
        .enumerate()
        {
            let mallory = app.login_admin(&format!("mallory-{i}-{j}")).await;
            let id = &mallory["user"]["id"];
            let mut by_hand = app.db.begin().await.unwrap();
            sqlx::query(removal).bind(id.as_str().unwrap()).execute(&mut *by_hand).await.unwrap();
            let mut request = app.request(method, &at.unwrap_or_else(|| path(id))).bearer(&mallory);
            if let Some(body) = body {
                request = request.json(body);
            }
            let ends = async {
                somebody_waits(&app).await;
                by_hand.commit().await.unwrap();
            };
            let (answer, ()) = tokio::join!(request.send(), ends);
            answer.expect_problem(403, "forbidden");
        }
    }
    assert_eq!(admins(&app).await, 1, "root");
    app.get("/users/me").bearer(&session).send().await.expect(200);
    let count = "SELECT count(*) FROM users WHERE username = 'eve'";
    assert_eq!(sqlx::query_scalar::<_, i64>(count).fetch_one(&app.db).await.unwrap(), 0);
}

#[tokio::test]
async fn the_last_administrator_stays() {
    let app = App::new().await;
    let root = app.login_admin("root").await;
    let other = app.login_admin("other").await;
    let alice = app.register("alice").await;
    // Neither a disabled administrator nor a user with a similarly named role counts.
    patch(&app, &root, &other["user"], json!({"disabled": true})).await.expect(200);
    patch(&app, &root, &alice, json!({"roles": ["administrator", "admin2"]})).await.expect(200);

    let refused = async || {
        for change in [
            json!({"roles": []}),
            json!({"roles": ["support"]}),
            json!({"disabled": true}),
            json!({"disabled": true, "roles": ["admin"]}),
            json!({"full_name": "Root", "email": "new@example.com", "roles": ["administrator"]}),
        ] {
            let problem = patch(&app, &root, &root["user"], change).await.expect_problem(409, "last_admin");
            assert!(problem["detail"].as_str().unwrap().contains("last enabled administrator"), "{problem}");
        }
        delete(&app, &root, &root["user"]).await.expect_problem(409, "last_admin");
        let own = app.post("/users/me/delete").bearer(&root).json(&json!({"password": PASSWORD}));
        own.send().await.expect_problem(409, "last_admin");
        // The database refuses it by hand, too.
        for statement in [
            "UPDATE users SET disabled = true",
            "UPDATE users SET roles = '{}' WHERE username = 'root'",
            "UPDATE users SET roles = array_remove(roles, 'admin'), full_name = 'x'",
            "DELETE FROM users",
            "DELETE FROM users WHERE username = 'root'",
            "WITH gone AS (DELETE FROM users RETURNING 1) SELECT count(*) FROM gone",
            // In this order the second statement comes too late.
            "DO $$ BEGIN
                UPDATE users SET disabled = true WHERE username = 'root';
                UPDATE users SET disabled = false WHERE username = 'other';
             END $$",
        ] {
            let error = sqlx::query(statement).execute(&app.db).await.unwrap_err();
            let constraint = error.as_database_error().and_then(|error| error.constraint());
            assert_eq!(constraint, Some("users_last_admin"), "{statement}: {error}");
        }
        // Nothing has changed, and no session has ended.
        app.get("/users/me").bearer(&root).send().await.expect(200) == root["user"] && admins(&app).await == 1
    };
    assert!(refused().await);

    // They may make any change that leaves them an enabled administrator.
    for change in [
        json!({"full_name": "Root"}),
        json!({"disabled": false, "roles": ["admin"]}),
        json!({"full_name": null}),
    ] {
        patch(&app, &root, &root["user"], change).await.expect(200);
    }
    // A disabled administrator does not count, and may be demoted or deleted.
    patch(&app, &root, &other["user"], json!({"roles": ["support"]})).await.expect(200);
    patch(&app, &root, &other["user"], json!({"roles": ["admin"]})).await.expect(200);
    delete(&app, &root, &other["user"]).await.expect(204);
    assert!(refused().await);

    // Once there is another administrator, the first may go; then the other is the last.
    patch(&app, &root, &alice, json!({"roles": ["admin"]})).await.expect(200);
    let alice = app.login("alice").await;
    patch(&app, &root, &root["user"], json!({"roles": []})).await.expect(200);
    list(&app, &root, "").await.expect_problem(401, "token_outdated");
    patch(&app, &alice, &alice["user"], json!({"disabled": true})).await.expect_problem(409, "last_admin");
    // By hand it works in this order: first the new administrator, then the old.
    let in_order = "DO $$ BEGIN
        UPDATE users SET roles = '{admin}' WHERE username = 'root';
        DELETE FROM users WHERE username = 'alice';
     END $$";
    sqlx::raw_sql(in_order).execute(&app.db).await.unwrap();
    assert_eq!(admins(&app).await, 1);
}

#[tokio::test]
async fn a_service_that_never_had_an_administrator_needs_none() {
    let app = App::new().await;
    let alice = app.register("alice").await;
    app.register("bob").await;
    app.sql("UPDATE users SET disabled = true WHERE id = $1::uuid", &alice["id"]).await;
    app.sql("UPDATE users SET roles = '{support}' WHERE id = $1::uuid", &alice["id"]).await;
    app.sql("DELETE FROM users WHERE id = $1::uuid", &alice["id"]).await;
    let bob = app.login("bob").await;
    let own = app.post("/users/me/delete").bearer(&bob).json(&json!({"password": PASSWORD}));
    own.send().await.expect(204);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn administrators_who_remove_each_other_at_once_leave_at_least_one() {
    let app = App::new().await;
    let replicas = [app.replica(&[]).await, app.replica(&[]).await];
    let mut refused = 0;
    for round in 0..12 {
        let mut crowd = JoinSet::new();
        let mut logins = Vec::new();
        for name in ["a", "b", "c", "d"] {
            logins.push(app.login_admin(&format!("{name}-{round}")).await);
        }
        // Nobody from an earlier round is an administrator any more.
        let before = "UPDATE users SET roles = '{}' WHERE username NOT LIKE '%-' || $1::text";
        sqlx::query(before).bind(round.to_string()).execute(&app.db).await.unwrap();
        assert_eq!(admins(&app).await, 4);
        for i in 0..4 {
            // Each removes another one, or themselves, in one of the ways there are.
            let replica = &replicas[i % 2];
            let victim = &logins[(i + round % 3) % 4]["user"];
            let path = format!("/admin/users/{}", victim["id"].as_str().unwrap());
            let request = match (i + round) % 4 {
                0 => replica.patch(&path).json(&json!({"roles": ["support"]})),
                1 => replica.patch(&path).json(&json!({"disabled": true})),
                2 => replica.request(Method::DELETE, &path),
                _ => replica.post("/users/me/delete").json(&json!({"password": PASSWORD})),
            };
            crowd.spawn(request.bearer(&logins[i]).send());
        }
        for answer in crowd.join_all().await {
            match answer.status.as_u16() {
                200 | 204 => {}
                // By then the sender is no administrator any more, or one of the two is gone.
                401 | 403 | 404 => {}
                _ => {
                    answer.expect_problem(409, "last_admin");
                    refused += 1;
                }
            }
        }
        assert!(admins(&app).await >= 1, "round {round}");
    }
    assert!(refused > 0, "the race was never a close one");
}

/// Waits until a connection to the app's database waits for a lock.
async fn somebody_waits(app: &App) {
    let waiting = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
    until("somebody waits", async || {
        sqlx::query_scalar::<_, i64>(waiting).fetch_one(&app.db).await.unwrap() > 0
    })
    .await;
}

#[tokio::test]
async fn removing_an_administrator_waits_only_for_another_such_removal() {
    let app = App::new().await;
    let root = app.login_admin("root").await;
    app.login_admin("other").await;
    let alice = app.register("alice").await;
    let demote_other = "UPDATE users SET roles = '{}' WHERE username = 'other'";
    for commits in [false, true] {
        let mut by_hand = app.db.begin().await.unwrap();
        sqlx::query(demote_other).execute(&mut *by_hand).await.unwrap();

        // Everything else proceeds: other users are changed, disabled and deleted, and the administrator who is left
        // changes their own profile and logs in.
        let meanwhile = async {
            patch(&app, &root, &alice, json!({"roles": ["support"], "disabled": true})).await.expect(200);
            patch(&app, &root, &alice, json!({"roles": [], "disabled": false})).await.expect(200);
            patch(&app, &root, &root["user"], json!({"full_name": "Root", "roles": ["admin"]}))
                .await
                .expect(200);
            let bob = app.register("bob").await;
            delete(&app, &root, &bob).await.expect(204);
            app.login("root").await;
        };
        timeout(std::time::Duration::from_secs(10), meanwhile).await.expect("nobody waits");

        let ends = async {
            somebody_waits(&app).await;
            if commits { by_hand.commit().await.unwrap() } else { by_hand.rollback().await.unwrap() }
        };
        let (answer, ()) =
            tokio::join!(patch(&app, &root, &root["user"], json!({"roles": ["admin2"]})), ends);
        if commits {
            answer.expect_problem(409, "last_admin");
        } else {
            answer.expect(200);
            app.sql("UPDATE users SET roles = '{admin}' WHERE id = $1::uuid", &root["user"]["id"]).await;
            app.state().feed.hear().await.unwrap();
        }
        assert_eq!(admins(&app).await, if commits { 1 } else { 2 });
    }
}

/// A program that reports every change of its users is one administrator.
#[tokio::test]
async fn an_administrators_changes_do_not_wait_for_each_other() {
    let app = App::new().await;
    let root = app.login_admin("root").await;
    let (alice, bob) = (app.register("alice").await, app.register("bob").await);
    let mut by_hand = app.db.begin().await.unwrap();
    let lock = "SELECT FROM users WHERE username = 'alice' FOR UPDATE";
    sqlx::query(lock).execute(&mut *by_hand).await.unwrap();
    let meanwhile = async {
        somebody_waits(&app).await;
        for name in ["Bob", "Robert"] {
            patch(&app, &root, &bob, json!({"full_name": name})).await.expect(200);
        }
        app.login("root").await;
        by_hand.commit().await.unwrap();
    };
    let (answer, ()) = tokio::join!(patch(&app, &root, &alice, json!({"full_name": "Alice"})), meanwhile);
    answer.expect(200);
}

#[tokio::test]
async fn the_last_administrator_cannot_be_removed_from_an_older_snapshot() {
    for isolation in ["REPEATABLE READ", "SERIALIZABLE"] {
        for take in [
            "UPDATE users SET roles = '{}' WHERE username = 'root'",
            "UPDATE users SET disabled = true WHERE username = 'root'",
            "DELETE FROM users WHERE username = 'root'",
        ] {
            let app = App::new().await;
            app.login_admin("root").await;
            let other = app.login_admin("other").await;
            let mut by_hand = PgConnection::connect(&app.database_url).await.unwrap();
            let mut transaction = by_hand
                .begin_with(AssertSqlSafe(format!("BEGIN ISOLATION LEVEL {isolation}")))
                .await
                .unwrap();
            let count = "SELECT count(*) FROM users WHERE 'admin' = ANY(roles)";
            assert_eq!(sqlx::query_scalar::<_, i64>(count).fetch_one(&mut *transaction).await.unwrap(), 2);
            delete(&app, &other, &other["user"]).await.expect(204);
            // Its snapshot still shows both of them.
            let error = sqlx::query(take).execute(&mut *transaction).await.unwrap_err();
            let code = error.as_database_error().and_then(|error| error.code()).map(|code| code.into_owned());
            assert_eq!(code.as_deref(), Some("40001"), "{isolation}: {take}: {error}");
            transaction.rollback().await.unwrap();
            assert_eq!(admins(&app).await, 1);
        }
    }
}

/// What one of the code's queries costs: its plan, and how many database pages it read.
pub async fn explain(conn: &mut PgConnection, query: &str, values: &str) -> (Value, u64) {
    let sql = format!(
        "SET plan_cache_mode = force_custom_plan; PREPARE query AS {query};
         EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE query({values})"
    );
    let row = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(&mut *conn).await.unwrap();
    sqlx::raw_sql("DEALLOCATE query").execute(&mut *conn).await.unwrap();
    let plan: Value = sqlx::Row::get(row.last().unwrap(), 0);
    let plan = plan[0]["Plan"].clone();
    let pages =
        ["Shared Hit Blocks", "Shared Read Blocks"].map(|name| plan[name].as_u64().unwrap()).iter().sum();
    (plan, pages)
}

/// The node types of a plan.
fn nodes(plan: &Value) -> Vec<String> {
    let mut kinds = vec![plan["Node Type"].as_str().unwrap().to_owned()];
    kinds.extend(plan["Plans"].as_array().into_iter().flatten().flat_map(nodes));
    kinds
}

/// The code's queries that contain all of `parts`.
pub fn queries(parts: &[&str]) -> Vec<String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(".sqlx");
    let read =
        |file: fs::DirEntry| -> Value { serde_json::from_slice(&fs::read(file.path()).unwrap()).unwrap() };
    let all = fs::read_dir(directory)
        .unwrap()
        .map(|file| read(file.unwrap())["query"].as_str().unwrap().to_owned());
    all.filter(|query| parts.iter().all(|part| query.contains(part))).collect()
}

#[tokio::test]
async fn every_search_for_users_uses_an_index() {
    let app = App::new().await;
    let is_full = is_drill();
    let count = if is_full { 1_000_000 } else { 30_000 };
    make_users(&app, 1..=count).await;
    // Until it is vacuumed, the GIN index keeps its latest changes in a pending list, which every scan reads.
    let mut conn = PgConnection::connect(&app.database_url).await.unwrap();
    sqlx::raw_sql("VACUUM ANALYZE users").execute(&mut conn).await.unwrap();
    // The first call on a connection also reads what planning needs.
    let plan = "SELECT FROM attempt_login(now(), '{}', '{}', '{}', NULL, NULL, NULL)";
    sqlx::raw_sql(plan).execute(&mut conn).await.unwrap();
    let nil = "'00000000-0000-0000-0000-000000000000'";
    let late = format!("'01940000-0000-7000-8000-{:012x}'", count - 100);
    for (parts, values, number) in [
        // Lookups of one user.
        (&["created_at", "FROM users WHERE id = $1"][..], nil.to_owned(), 2),
        (&["FROM users", "username_key = lower($1"], "'User0000007'".to_owned(), 1),
        (&["FROM users", "email_key = lower(normalize($1"], "'User0000007@Example.com'".to_owned(), 1),
        // Lists.
        (&["FROM users", "ORDER BY id LIMIT $3"], format!("{nil}, NULL, 51"), 1),
        (&["FROM users", "ORDER BY id LIMIT $3"], format!("{late}, NULL, 51"), 1),
        (&["FROM users", "ORDER BY id LIMIT $3"], format!("{nil}, 'member', 51"), 1),
        (&["FROM users", "ORDER BY id LIMIT $3"], format!("{late}, 'member', 51"), 1),
        (&["FROM users", "ORDER BY id LIMIT $3"], format!("{nil}, 'auditor', 51"), 1),
        (&["FROM users", "ORDER BY id LIMIT $3"], format!("{nil}, 'nobody', 51"), 1),
        // Searches.
        (&["FROM users", "ORDER BY username_key"], "'user', NULL, NULL, 51".to_owned(), 1),
        (&["FROM users", "ORDER BY username_key"], "'u', 'user0000500', NULL, 51".to_owned(), 1),
        (&["FROM users", "ORDER BY username_key"], "'USER00029', NULL, 'member', 51".to_owned(), 1),
        (&["FROM users", "ORDER BY username_key"], "'user', NULL, 'auditor', 51".to_owned(), 1),
        (&["FROM users", "ORDER BY username_key"], "'zoe', NULL, NULL, 51".to_owned(), 1),
        (&["FROM users", "ORDER BY email_key"], "'user', NULL, NULL, 51, 'user0000051'".to_owned(), 1),
        (
            &["FROM users", "ORDER BY email_key"],
            "'user', 'user0009000', NULL, 51, 'user0009051'".to_owned(),
            1,
        ),
        (&["FROM users", "ORDER BY email_key"], "'user', NULL, 'member', 51, 'user0000102'".to_owned(), 1),
        (&["FROM users", "ORDER BY email_key"], "'MAIL', NULL, NULL, 51, NULL".to_owned(), 1),
        (
            &["FROM users", "ORDER BY email_key"],
            "'mail', 'mail0009000@example.com', 'member', 51, NULL".to_owned(),
            1,
        ),
        (&["FROM users", "ORDER BY email_key"], "'zoe', NULL, NULL, 51, NULL".to_owned(), 1),
    ] {
        let found = queries(parts);
        assert_eq!(found.len(), number, "{parts:?}: {found:#?}");
        for query in found {
            let (plan, pages) = explain(&mut conn, &query, &values).await;
            let nodes = nodes(&plan);
            if is_full {
                println!("{values}: {pages} pages, {} ms: {nodes:?}", plan["Actual Total Time"]);
            }
            assert!(nodes.iter().any(|kind| kind.contains("Index")), "{query}\n{values}: {plan:#}");
            assert!(!nodes.iter().any(|kind| kind.contains("Seq Scan")), "{query}\n{values}: {plan:#}");
            // A scan of the whole table reads more than ten pages for every thousand users.
            assert!(pages < 20 + count as u64 / 100, "{query}\n{values}: {pages} pages: {plan:#}");
        }
    }
    // A login looks up its user in a function, whose plans are not shown.
    let [login] = &queries(&["attempt_login", "username"])[..] else { panic!("one query") };
    for names in ["'User0000007', NULL", "NULL, 'User0000007@Example.com'"] {
        let values = format!("now(), '{{}}', '{{}}', '{{}}', NULL, NULL, {names}");
        let (plan, pages) = explain(&mut conn, login, &values).await;
        assert!(pages < 20, "{pages} pages: {plan:#}");
    }

    let root = app.login_admin("root").await;
    for query in [
        "",
        "?limit=200",
        "?role=member",
        "?role=auditor",
        "?role=admin",
        "?role=nobody",
        "?query=u",
        "?query=user",
        "?query=mail",
        "?query=user00099",
        "?query=m&role=member",
        "?query=user&role=auditor",
        "?query=zoe",
    ] {
        let mut path = query.to_owned();
        for page in 1..=3 {
            let began = Instant::now();
            let answer = list(&app, &root, &path).await.expect(200);
            if is_full {
                println!(
                    "{query} page {page}: {} users in {:.1?}",
                    usernames(&answer).len(),
                    began.elapsed()
                );
            }
            let Some(next) = answer["next_cursor"].as_str() else { break };
            path = format!("{query}{}cursor={next}", if query.is_empty() { "?" } else { "&" });
        }
    }
}
