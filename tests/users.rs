//! Users: their own profile, who may register, what a login reveals and what it leaves behind, and what administrators
//! see.

use gatepass::store::{
    Cause,
    login_attempts::Forgiveness,
    sessions::{self, NewSession},
};
use serde_json::{Value, json};
use sqlx::Row;
use time::{Duration, OffsetDateTime};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::{
    app::{Answer, App, KEY, PASSWORD, START},
    process::until,
};

const OTHER_KEY: &str = "k4.local.AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

async fn me(app: &App, login: &Value) -> Value {
    app.get("/users/me").bearer(login).send().await.expect(200)
}

async fn patch_me(app: &App, login: &Value, change: Value) -> Answer {
    app.patch("/users/me").bearer(login).json(&change).send().await
}

#[tokio::test]
async fn a_profile_change_affects_only_the_given_fields() {
    let app = App::new().await;
    app.register("alice").await;
    let alice = app.login("alice").await;
    let mut expected = alice["user"].clone();

    for (change, field, value) in [
        (json!({"full_name": "Alice Liddell"}), "full_name", json!("Alice Liddell")),
        (json!({}), "full_name", json!("Alice Liddell")),
        (json!({"email": "liddell@example.org"}), "email", json!("liddell@example.org")),
        (json!({"full_name": null}), "full_name", Value::Null),
        (json!({"full_name": null}), "full_name", Value::Null),
        (json!({"full_name": "  A. P. Liddell "}), "full_name", json!("A. P. Liddell")),
        (json!({"full_name": " "}), "full_name", Value::Null),
    ] {
        expected[field] = value;
        let answer = patch_me(&app, &alice, change.clone()).await;
        assert_eq!(answer.header("cache-control"), "no-store");
        assert_eq!(answer.expect(200), expected, "{change}");
        assert_eq!(me(&app, &alice).await, expected, "{change}");
    }
    let both = json!({"full_name": "Alice", "email": "alice@example.com"});
    expected["full_name"] = json!("Alice");
    expected["email"] = json!("alice@example.com");
    assert_eq!(patch_me(&app, &alice, both).await.expect(200), expected);

    // An address cannot be removed, and what is not part of the profile cannot be changed here.
    let problem =
        patch_me(&app, &alice, json!({"email": null})).await.expect_problem(422, "validation_failed");
    assert_eq!(problem["errors"][0]["code"], "wrong_type");
    for field in ["username", "password", "roles", "disabled", "is_email_verified", "id", "created_at"] {
        let change = json!({"full_name": "Mallory", field: alice["user"][field]});
        let problem = patch_me(&app, &alice, change).await.expect_problem(422, "validation_failed");
        assert_eq!(problem["errors"][0]["code"], "unknown_field", "{field}");
    }
    assert_eq!(me(&app, &alice).await, expected);
    // The new address can log in, the old ones cannot.
    app.try_login("Alice@Example.com", PASSWORD).await.expect(200);
    app.try_login("liddell@example.org", PASSWORD).await.expect_problem(401, "invalid_credentials");
}

#[tokio::test]
async fn changing_an_address_unverifies_it_unless_only_its_case_changes() {
    let app = App::new().await;
    app.register("alice").await;
    let alice = app.login("alice").await;
    app.sql("UPDATE users SET is_email_verified = true WHERE id = $1::uuid", &alice["user"]["id"]).await;
    for (change, verified) in [
        (json!({"full_name": "Alice"}), true),
        (json!({"email": "alice@example.com"}), true),
        (json!({"email": "ALICE@Example.COM"}), true),
        (json!({"email": "alice@example.org"}), false),
        // Verified once is not verified for ever.
        (json!({"email": "alice@example.com"}), false),
    ] {
        let user = patch_me(&app, &alice, change.clone()).await.expect(200);
        assert_eq!(user["is_email_verified"], verified, "{change}");
        if let Some(email) = change.get("email") {
            assert_eq!(user["email"], *email);
        }
    }
}

#[tokio::test]
async fn an_address_is_the_same_however_its_accents_are_composed() {
    let app = App::new().await;
    for (username, email, other) in [
        ("composed", "jos\u{e9}@example.com", "JOSE\u{301}@example.com"),
        ("decomposed", "zoe\u{308}@exa\u{308}mple.com", "zo\u{eb}@EX\u{c4}mple.com"),
        ("indic", "हिन्दी@example.com", "हिन्दी@Example.com"),
        // Combining marks in another order.
        ("stacked", "q\u{323}\u{307}@example.com", "q\u{307}\u{323}@example.com"),
    ] {
        let register = async |username: &str, email: &str| {
            let body = json!({"username": username, "email": email, "password": PASSWORD});
            app.post("/users").json(&body).send().await
        };
        // As the user wrote it.
        assert_eq!(register(username, email).await.expect(201)["email"], email);
        register("other", other).await.expect_problem(409, "email_taken");
        for name in [email, other] {
            assert_eq!(app.try_login(name, PASSWORD).await.expect(200)["user"]["username"], username);
        }
    }
}

#[tokio::test]
async fn nobody_takes_the_name_or_address_of_another() {
    let app = App::new().await;
    app.register("alice").await;
    app.register("bob").await;
    let bob = app.login("bob").await;
    for (username, email, code) in [
        ("alice", "new@example.com", "username_taken"),
        ("aLiCe", "new@example.com", "username_taken"),
        ("carol", "alice@example.com", "email_taken"),
        ("carol", "ALICE@example.COM", "email_taken"),
    ] {
        let body = json!({"username": username, "email": email, "password": PASSWORD});
        app.post("/users").json(&body).send().await.expect_problem(409, code);
    }
    for email in ["alice@example.com", "Alice@EXAMPLE.com"] {
        let change = json!({"full_name": "Mallory", "email": email});
        patch_me(&app, &bob, change).await.expect_problem(409, "email_taken");
        // None of it was done.
        assert_eq!(me(&app, &bob).await, bob["user"]);
    }
}

#[tokio::test]
async fn a_live_token_of_a_user_who_is_locked_out_or_gone_is_refused() {
    for statement in
        ["UPDATE users SET disabled = true WHERE id = $1::uuid", "DELETE FROM users WHERE id = $1::uuid"]
    {
        let app = App::new().await;
        // One administrator has to stay.
        app.login_admin("root").await;
        let alice = app.login_admin("alice").await;
        app.sql(statement, &alice["user"]["id"]).await;
        let own = format!("/admin/users/{}", alice["user"]["id"].as_str().unwrap());
        for answer in [
            app.get("/users/me").bearer(&alice).send().await,
            patch_me(&app, &alice, json!({"full_name": "Alice"})).await,
            patch_me(&app, &alice, json!({})).await,
            app.get(&own).bearer(&alice).send().await,
        ] {
            assert!(answer.header("www-authenticate").starts_with(r#"Bearer error="invalid_token""#));
            answer.expect_problem(401, "session_revoked");
        }
        app.try_login("alice", PASSWORD).await.expect_problem(401, "invalid_credentials");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn only_one_of_many_simultaneous_registrations_of_a_name_succeeds() {
    let app = App::new().await;
    let replicas = [app.replica(&[]).await, app.replica(&[]).await];
    // Sixteen mixtures of upper and lower case.
    let cases = |name: &str, i: usize| -> String {
        let case = |(at, c): (usize, char)| if i >> at & 1 == 1 { c.to_ascii_uppercase() } else { c };
        name.chars().enumerate().map(case).collect()
    };
    for field in ["username", "email"] {
        let mut crowd = JoinSet::new();
        for i in 0..16 {
            let (username, email) = match field {
                "username" => (cases("alice", i), format!("{i}@example.com")),
                _ => (format!("user{i}"), cases("clara@example.com", i)),
            };
            let body = json!({"username": username, "email": email, "password": PASSWORD});
            crowd.spawn(replicas[i % 2].post("/users").json(&body).send());
        }
        let mut winners = Vec::new();
        for answer in crowd.join_all().await {
            match answer.status.as_u16() {
                201 => winners.push(answer.expect(201)),
                _ => drop(answer.expect_problem(409, &format!("{field}_taken"))),
            }
        }
        let [winner] = &winners[..] else { panic!("{field}: {winners:?}") };
        let name = winner[field].as_str().unwrap();
        assert_eq!(app.try_login(name, PASSWORD).await.expect(200)["user"], *winner);
    }
}

#[tokio::test]
async fn nobody_registers_where_registration_is_closed() {
    let app = App::with(&[("REGISTRATION", "closed")]).await;
    let body = json!({"username": "alice", "email": "alice@example.com", "password": PASSWORD});
    app.post("/users").json(&body).send().await.expect_problem(403, "registration_closed");
    // The answer is the same for a name that is taken or that nobody can have, so it reveals nothing.
    let body = json!({"username": "", "email": "", "password": ""});
    app.post("/users").json(&body).send().await.expect_problem(403, "registration_closed");
    let open = app.replica(&[]).await;
    open.register("alice").await;
    app.login("alice").await;
}

#[tokio::test]
async fn a_failed_login_does_not_tell_why_it_failed() {
    let app = App::new().await;
    app.register("alice").await;
    let bob = app.register("bob").await;
    app.sql("UPDATE users SET disabled = true WHERE id = $1::uuid", &bob["id"]).await;
    let carol = app.register("carol").await;
    app.sql("UPDATE users SET password_hash = NULL WHERE id = $1::uuid", &carol["id"]).await;
    let dave = app.register("dave").await;
    app.sql("UPDATE users SET password_hash = 'nonsense' WHERE id = $1::uuid", &dave["id"]).await;

    let long = "x".repeat(1000);
    let mut answers = Vec::new();
    for (username, password) in [
        ("alice", "wrong-horse-battery-9"),
        ("alice", ""),
        ("alice", &long),
        ("alice", &PASSWORD.to_uppercase()),
        ("alice", &format!("{PASSWORD} ")),
        ("alice@example.com", "wrong-horse-battery-9"),
        ("bob", PASSWORD),
        ("bob@example.com", PASSWORD),
        ("bob", "wrong-horse-battery-9"),
        ("carol", PASSWORD),
        ("carol", ""),
        ("dave", PASSWORD),
        ("dave", "nonsense"),
        ("nobody", PASSWORD),
        ("nobody@example.com", PASSWORD),
        ("", ""),
        (" alice", PASSWORD),
        ("al\0ice", PASSWORD),
        ("alice\0@example.com", PASSWORD),
        (&long, PASSWORD),
        ("%", PASSWORD),
        ("alic_", PASSWORD),
        ("' OR 1=1 --", PASSWORD),
    ] {
        let body = json!({"username": username, "password": password});
        let request = app.post("/users/login").header("x-request-id", "one-and-the-same").json(&body);
        let answer = request.send().await;
        answer.clone().expect_problem(401, "invalid_credentials");
        assert_eq!(
            answer.header("www-authenticate"),
            "",
            "no challenge: it is no bearer token that is missing"
        );
        answers.push(answer);
    }
    for answer in &answers {
        assert_eq!(answer.body, answers[0].body);
        assert_eq!(answer.headers, answers[0].headers);
    }
    app.login("alice").await;
    app.sql("UPDATE users SET disabled = false WHERE id = $1::uuid", &bob["id"]).await;
    app.login("bob").await;
}

struct Session {
    user_id: Uuid,
    user_agent: Option<String>,
    client_ip: Option<String>,
    times: [OffsetDateTime; 4],
}

async fn session(app: &App, login: &Value) -> Session {
    let row = sqlx::query(
        "SELECT user_id, user_agent, host(client_ip) AS client_ip,
                created_at, last_used_at, refresh_expires_at, expires_at
         FROM sessions WHERE id = $1::uuid",
    )
    .bind(login["session_id"].as_str().unwrap())
    .fetch_one(&app.db)
    .await
    .unwrap();
    Session {
        user_id: row.get("user_id"),
        user_agent: row.get("user_agent"),
        client_ip: row.get("client_ip"),
        times: ["created_at", "last_used_at", "refresh_expires_at", "expires_at"].map(|name| row.get(name)),
    }
}

#[tokio::test]
async fn a_login_records_the_address_and_device_of_its_session() {
    let app = App::with(&[("TRUSTED_PROXIES", "10.0.0.0/8,fd00::/8")]).await;
    let alice = app.register("alice").await;
    app.clock.advance(Duration::hours(1));
    let now = START + Duration::hours(1);

    let long = "ü".repeat(600);
    for (peer, forwarded, agent, client_ip, user_agent) in [
        ("192.0.2.7", &[][..], None, "192.0.2.7", None),
        ("192.0.2.7", &["198.51.100.1"], Some("curl/8.5.0"), "192.0.2.7", Some("curl/8.5.0")),
        ("10.0.0.1", &["198.51.100.1"], Some("  "), "198.51.100.1", None),
        (
            "10.0.0.1",
            &["1.2.3.4", "198.51.100.1, 10.9.9.9"],
            Some(&long),
            "198.51.100.1",
            Some(&long[..1024]),
        ),
        (
            "10.0.0.1",
            &["garbage"],
            Some("\u{9b}31m a\tb\u{202e}c\u{2066} \u{85}"),
            "10.0.0.1",
            Some("31m abc"),
        ),
        ("::ffff:192.0.2.7", &[], None, "192.0.2.7", None),
        ("2001:db8::7", &[], None, "2001:db8::7", None),
        ("fd00::1", &["2001:db8::9"], None, "2001:db8::9", None),
    ] {
        let mut request = app.post("/users/login").peer(peer);
        for field in forwarded {
            request = request.header("x-forwarded-for", *field);
        }
        if let Some(agent) = agent {
            request = request.header("user-agent", agent.as_bytes());
        }
        let body = json!({"username": "alice", "password": PASSWORD});
        let login = request.json(&body).send().await.expect(200);
        let session = session(&app, &login).await;
        assert_eq!(session.user_id.to_string(), alice["id"].as_str().unwrap());
        assert_eq!(session.client_ip.as_deref(), Some(client_ip), "{peer} {forwarded:?}");
        assert_eq!(session.user_agent.as_deref(), user_agent, "{peer}");
        // The ends are whole seconds, as tokens have them.
        let begun = now.truncate_to_second();
        assert_eq!(session.times, [now, now, begun + Duration::hours(24), begun + Duration::days(30)]);
    }
    // A failed login leaves none.
    app.try_login("alice", "wrong-horse-battery-9").await.expect_problem(401, "invalid_credentials");
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM sessions").fetch_one(&app.db).await.unwrap();
    assert_eq!(count, 8);
    // A user agent that is not UTF-8 is no reason to refuse a login.
    let body = json!({"username": "alice", "password": PASSWORD});
    let request = app.post("/users/login").header("user-agent", &b"caf\xe9"[..]).json(&body);
    let login = request.send().await.expect(200);
    assert_eq!(session(&app, &login).await.user_agent.as_deref(), Some("caf\u{fffd}"));
}

#[tokio::test]
async fn a_session_ends_when_the_settings_say() {
    let app = App::with(&[
        ("SESSION_DURATION", "10m"),
        ("REFRESH_TOKEN_DURATION", "5m"),
        ("ACCESS_TOKEN_DURATION", "5m"),
    ])
    .await;
    app.register("alice").await;
    let login = app.login("alice").await;
    assert_eq!(login["expires_in"], 300);
    let times = session(&app, &login).await.times;
    let begun = START.truncate_to_second();
    assert_eq!(times, [START, START, begun + Duration::minutes(5), begun + Duration::minutes(10)]);
}

#[tokio::test]
async fn a_token_of_the_older_key_goes_on_working_while_that_is_accepted() {
    let app = App::new().await;
    app.register("alice").await;
    let older = app.login("alice").await;

    let moved = app.replica_with_key(OTHER_KEY, &[("TOKEN_SYMMETRIC_KEYS_ACCEPTED", KEY)]).await;
    assert_eq!(me(&moved, &older).await, older["user"]);
    let newer = moved.login("alice").await;
    me(&moved, &newer).await;
    // A replica that does not know the new key yet accepts no token of it.
    app.get("/users/me").bearer(&newer).send().await.expect_problem(401, "invalid_token");

    let done = app.replica_with_key(OTHER_KEY, &[]).await;
    done.get("/users/me").bearer(&older).send().await.expect_problem(401, "invalid_token");
    me(&done, &newer).await;
}

#[tokio::test]
async fn a_token_of_another_issuer_or_for_another_audience_is_refused() {
    let app = App::new().await;
    app.register("alice").await;
    let login = app.login("alice").await;
    for other in [("TOKEN_ISSUER", "https://id.example"), ("TOKEN_AUDIENCE", "api")] {
        let replica = app.replica(&[other]).await;
        let foreign = replica.login("alice").await;
        me(&replica, &foreign).await;
        app.get("/users/me").bearer(&foreign).send().await.expect_problem(401, "invalid_token");
        replica.get("/users/me").bearer(&login).send().await.expect_problem(401, "invalid_token");
    }
}

#[tokio::test]
async fn a_hash_of_older_parameters_is_replaced_at_the_next_login() {
    let app = App::new().await;
    let user = app.register("alice").await;
    let hash = async || -> String {
        let query = sqlx::query_scalar("SELECT password_hash FROM users WHERE id = $1::uuid");
        query.bind(user["id"].as_str().unwrap()).fetch_one(&app.db).await.unwrap()
    };
    let first = hash().await;
    assert!(first.starts_with("$argon2id$v=19$m=8,t=1,p=1$"), "{first}");
    app.login("alice").await;
    assert_eq!(hash().await, first, "nothing has changed");

    let replica = app.replica(&[("ARGON2_ITERATIONS", "2")]).await;
    replica.try_login("alice", "wrong-horse-battery-9").await.expect_problem(401, "invalid_credentials");
    assert_eq!(hash().await, first, "a login with a wrong password must not change the hash");
    app.clock.advance(Duration::minutes(1));
    let login = replica.login("alice").await;
    assert_eq!(login["user"], user, "to the user it is the same password");
    let second = hash().await;
    assert!(second.starts_with("$argon2id$v=19$m=8,t=2,p=1$"), "{second}");
    replica.login("alice").await;
    assert_eq!(hash().await, second);
}

#[tokio::test]
async fn no_session_begins_for_a_user_who_changed_while_the_password_was_checked() {
    let app = App::new().await;
    let user = app.register("alice").await;
    let begin = async |number: u128| {
        let session = NewSession {
            id: Uuid::from_u128(0x019a_a3f0_5b7c_7c3e_9d0a_0000_0000_0000 + number),
            user_id: user["id"].as_str().unwrap().parse().unwrap(),
            password_changed_at: START,
            refresh_salt: &[7; 32],
            user_agent: None,
            client_ip: None,
            now: START,
            refresh_expires_at: START + Duration::hours(1),
            expires_at: START + Duration::hours(1),
            access_expires_at: START + Duration::minutes(15),
        };
        let nothing = Forgiveness::default();
        sessions::insert(&mut app.db.acquire().await.unwrap(), &session, &nothing, &Cause::default())
            .await
            .unwrap()
            .is_some()
    };
    assert!(begin(1).await);

    // The race itself: while somebody disables the user and ends the sessions, a login whose password was right a
    // moment ago waits for them, and then sees what they did.
    let mut administrator = app.db.begin().await.unwrap();
    sqlx::query("UPDATE users SET disabled = true").execute(&mut *administrator).await.unwrap();
    sqlx::query("DELETE FROM sessions").execute(&mut *administrator).await.unwrap();
    let waits = async {
        let waiting = "SELECT count(*) FROM pg_stat_activity
                       WHERE datname = current_database() AND wait_event_type = 'Lock'";
        until("the login waits", async || {
            sqlx::query_scalar::<_, i64>(waiting).fetch_one(&app.db).await.unwrap() > 0
        })
        .await;
        administrator.commit().await.unwrap();
    };
    let (began, ()) = tokio::join!(begin(6), waits);
    assert!(!began);

    app.sql("UPDATE users SET disabled = false WHERE id = $1::uuid", &user["id"]).await;
    assert!(begin(7).await);
    app.sql("UPDATE users SET disabled = true WHERE id = $1::uuid", &user["id"]).await;
    assert!(!begin(2).await);
    app.sql("UPDATE users SET disabled = false WHERE id = $1::uuid", &user["id"]).await;
    assert!(begin(3).await);
    let changed =
        "UPDATE users SET password_changed_at = password_changed_at + '1 microsecond' WHERE id = $1::uuid";
    app.sql(changed, &user["id"]).await;
    assert!(!begin(4).await);
    app.sql("DELETE FROM users WHERE id = $1::uuid", &user["id"]).await;
    assert!(!begin(5).await);
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM sessions").fetch_one(&app.db).await.unwrap();
    assert_eq!(count, 0, "the sessions went with the user");
}

#[tokio::test]
async fn administrators_look_at_users_and_nobody_else_does() {
    let app = App::new().await;
    let root = app.login_admin("root").await;
    let alice = app.register("alice").await;
    let bob = app.register("bob").await;
    app.sql("UPDATE users SET roles = '{administrator,adm,support}' WHERE id = $1::uuid", &bob["id"]).await;
    app.sql("UPDATE users SET disabled = true WHERE id = $1::uuid", &alice["id"]).await;
    let path = format!("/admin/users/{}", alice["id"].as_str().unwrap());

    let answer = app.get(&path).bearer(&root).send().await;
    assert_eq!(answer.header("cache-control"), "no-store");
    let mut expected = alice.clone();
    expected["disabled"] = true.into();
    assert_eq!(answer.expect(200), expected);
    let upper = path.replace("/admin/users/", "").to_uppercase();
    app.get(&format!("/admin/users/{upper}")).bearer(&root).send().await.expect(200);

    // Nobody else may, neither to learn who exists, nor to look at themselves.
    let login = app.login("bob").await;
    let own = format!("/admin/users/{}", bob["id"].as_str().unwrap());
    for path in [&*path, &own, "/admin/users/019aa3f0-5b7c-7c3e-9d0a-3f2a1b4c5d6e", "/admin/users/abc"] {
        let answer = app.get(path).bearer(&login).send().await;
        assert_eq!(answer.header("www-authenticate"), "");
        answer.expect_problem(403, "forbidden");
    }

    // The current roles count, not those at the login.
    app.sql("UPDATE users SET roles = '{admin}' WHERE id = $1::uuid", &bob["id"]).await;
    app.get(&path).bearer(&login).send().await.expect(200);
    app.sql("UPDATE users SET roles = '{}' WHERE id = $1::uuid", &root["user"]["id"]).await;
    app.get(&path).bearer(&root).send().await.expect_problem(403, "forbidden");
}
