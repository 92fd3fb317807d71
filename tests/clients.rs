//! A service with a client's credentials learns what an access token says, and about anything else only that it is not
//! active. A deleted client is refused at once. Whoever holds a token can end its session.

use std::collections::BTreeSet;

use aws_lc_rs::digest;
use gatepass::token::{Issuer, Lifetime, Party, Subject, SymmetricKey};
use serde_json::{Value, json};
use time::Duration;
use uuid::Uuid;

use crate::{
    app::{Answer, App, KEY, START},
    process::{Ended, Home},
};

const OTHER_KEY: &str = "k4.local.cHFyc3R1dnd4eXp7fH1-f4CBgoOEhYaHiImKi4yNjo8";

type Client = (String, String);

async fn introspect(app: &App, client: &Client, token: &str) -> Answer {
    app.post("/tokens/introspect").client(client).form(&[("token", token)]).send().await
}

async fn revoke(app: &App, token: &str) {
    let answer = app.post("/tokens/revoke").form(&[("token", token)]).send().await;
    assert_eq!((answer.status.as_u16(), &*answer.body), (200, ""), "{token}");
    assert_eq!(answer.header("cache-control"), "no-store");
}

fn access(tokens: &Value) -> &str {
    tokens["access_token"].as_str().unwrap()
}

fn refresh(tokens: &Value) -> &str {
    tokens["refresh_token"].as_str().unwrap()
}

/// When and why a session ended.
async fn end_of(app: &App, tokens: &Value) -> Option<(time::OffsetDateTime, String)> {
    let id: Uuid = tokens["session_id"].as_str().unwrap().parse().unwrap();
    let end: (Option<time::OffsetDateTime>, Option<String>) =
        sqlx::query_as("SELECT ended_at, end_reason FROM sessions WHERE id = $1")
            .bind(id)
            .fetch_one(&app.db)
            .await
            .unwrap();
    end.0.zip(end.1)
}

async fn alice_and_a_client() -> (App, Value, Client) {
    let app = App::new().await;
    app.register("alice").await;
    let (login, client) = (app.login("alice").await, app.client("orders").await);
    (app, login, client)
}

/// `gatepass ARGS…` on the database of `app`.
async fn gatepass(app: &App, args: &[&str]) -> Ended {
    Home::new().gatepass(args).env("DB_SOURCE", &app.database_url).run().await
}

#[tokio::test]
async fn a_client_from_creation_to_deletion() {
    let app = App::new().await;
    let other = app.replica(&[]).await;
    app.register("alice").await;
    let alice = app.login("alice").await;

    let made = gatepass(&app, &["client", "create", "orders", "--json"]).await.json();
    let (id, secret) = (made["client_id"].as_str().unwrap(), made["client_secret"].as_str().unwrap());
    assert_eq!(made, json!({ "client_id": id, "client_secret": secret }));
    assert_eq!(id.parse::<Uuid>().unwrap().get_version_num(), 7);
    assert!(secret.starts_with("gps_") && secret.len() == 47, "{secret}");
    let orders = (id.to_owned(), secret.to_owned());
    for app in [&app, &other] {
        assert_eq!(introspect(app, &orders, access(&alice)).await.expect(200)["active"], true);
    }

    let text = gatepass(&app, &["client", "create", "billing"]).await.expect(0);
    let words: Vec<_> = text.stdout.split_whitespace().collect();
    let ["client_id", id, "client_secret", secret] = words[..] else { panic!("{}", text.stdout) };
    assert!(text.stderr.contains("this once"), "{}", text.stderr);
    let billing = (id.to_owned(), secret.to_owned());
    assert_eq!(introspect(&app, &billing, access(&alice)).await.expect(200)["active"], true);

    let list = gatepass(&app, &["client", "list", "--json"]).await.expect(0);
    assert!(!list.stdout.contains("gps_"), "{}", list.stdout);
    let list = list.json();
    for (i, (client, name)) in [(&orders, "orders"), (&billing, "billing")].into_iter().enumerate() {
        let created_at = &list[i]["created_at"];
        assert_eq!(list[i], json!({ "client_id": client.0, "name": name, "created_at": created_at }));
        time::OffsetDateTime::parse(
            created_at.as_str().unwrap(),
            &time::format_description::well_known::Rfc3339,
        )
        .unwrap();
    }
    let table = gatepass(&app, &["client", "list"]).await.expect(0).stdout;
    assert_eq!(table.lines().count(), 3, "{table}");
    assert!(table.contains(&orders.0) && table.contains("billing"), "{table}");

    for (id_or_name, name, client) in [("orders", "orders", &orders), (&*billing.0, "billing", &billing)] {
        let said = gatepass(&app, &["client", "delete", id_or_name]).await.expect(0).stdout;
        assert_eq!(said, format!("{name} is deleted\n"));
        for app in [&app, &other] {
            introspect(app, client, access(&alice)).await.expect_problem(401, "invalid_client");
        }
        gatepass(&app, &["client", "delete", id_or_name]).await.fails(1, &["there is no such client"]);
    }
    assert_eq!(gatepass(&app, &["client", "list", "--json"]).await.json(), json!([]));
    // The name is free again, for another client.
    let again = gatepass(&app, &["client", "create", "orders", "--json"]).await.json();
    assert_ne!(again["client_id"], made["client_id"]);
    introspect(&app, &orders, access(&alice)).await.expect_problem(401, "invalid_client");
}

#[tokio::test]
async fn the_client_commands_report_what_is_wrong() {
    let app = App::new().await;
    app.client("orders").await;
    gatepass(&app, &["client", "create", "orders"]).await.fails(1, &["the client's name is taken"]);
    for (name, what) in [
        ("", "needs 1 to 32 characters"),
        (&*"x".repeat(33), "needs 1 to 32 characters"),
        ("orders api", "needs a letter or digit first"),
    ] {
        gatepass(&app, &["client", "create", name]).await.fails(1, &["name", what]);
    }
    for nobody in ["", "Orders", "billing", "019aa3f0-5b7c-7c3e-9d0a-3f2a1b4c5d6e", "' OR true --"] {
        gatepass(&app, &["client", "delete", nobody]).await.fails(1, &["there is no such client"]);
    }
    for wrong in
        [&["client"][..], &["client", "create"], &["client", "delete"], &["client", "show", "orders"]]
    {
        gatepass(&app, wrong).await.fails(2, &["Usage: gatepass client"]);
    }
    assert_eq!(gatepass(&app, &["client", "list", "--json"]).await.json().as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn the_database_has_only_the_hash_of_a_client_secret() {
    let app = App::new().await;
    let (_, secret) = app.client("orders").await;
    let (row, hash): (String, Vec<u8>) =
        sqlx::query_as("SELECT clients::text, secret_hash FROM clients").fetch_one(&app.db).await.unwrap();
    assert_eq!(hash, digest::digest(&digest::SHA256, secret.as_bytes()).as_ref());
    assert!(!row.contains(&secret[4..16]), "{row}");
}

#[tokio::test]
async fn introspection_of_an_active_token_returns_all_its_claims() {
    for settings in [
        &[][..],
        &[("TOKEN_FORMAT", "v4.public"), ("TOKEN_ISSUER", "https://auth.example.com")],
        &[("TOKEN_FORMAT", "jwt"), ("JWT_ALGORITHM", "ES256"), ("TOKEN_AUDIENCE", "shop")],
    ] {
        let app = App::with(settings).await;
        let client = app.client("orders").await;
        let user = app.register("Alice").await;
        app.sql("UPDATE users SET roles = '{admin,billing:read}' WHERE id = $1::uuid", &user["id"]).await;
        let login = app.login("alice").await;
        let answer = introspect(&app, &client, access(&login)).await;
        assert_eq!(answer.header("cache-control"), "no-store");
        assert_eq!(answer.header("content-type"), "application/json");
        let said = answer.expect(200);
        let setting =
            |name| settings.iter().find(|(known, _)| *known == name).map_or("gatepass", |(_, value)| value);
        let begun = START.unix_timestamp();
        assert_eq!(
            said,
            json!({
                "active": true,
                "sub": user["id"],
                "username": "Alice",
                "scope": "admin billing:read",
                "sid": login["session_id"],
                "jti": said["jti"],
                "iss": setting("TOKEN_ISSUER"),
                "aud": setting("TOKEN_AUDIENCE"),
                "iat": begun,
                "nbf": begun,
                "exp": begun + 900,
                "token_type": "Bearer",
            })
        );
        said["jti"].as_str().unwrap().parse::<Uuid>().unwrap();

        // Neither the hint nor unknown parameters make a difference.
        for hint in ["access_token", "refresh_token", "", "nonsense"] {
            let parameters = [("token_type_hint", hint), ("x", "1"), ("token", access(&login)), ("x", "2")];
            let answer = app.post("/tokens/introspect").client(&client).form(&parameters).send().await;
            assert_eq!(answer.expect(200), said, "{hint}");
        }
    }
}

#[tokio::test]
async fn a_user_without_roles_has_an_empty_scope() {
    let (app, login, client) = alice_and_a_client().await;
    assert_eq!(introspect(&app, &client, access(&login)).await.expect(200)["scope"], "");
}

#[tokio::test]
async fn introspection_of_anything_else_says_only_that_it_is_not_active() {
    let (app, login, client) = alice_and_a_client().await;
    let issue = |key: &str, issuer: &str, audience: &str, begins: Duration| {
        let key: SymmetricKey = key.parse().unwrap();
        let subject = Subject {
            user_id: login["user"]["id"].as_str().unwrap().parse().unwrap(),
            session_id: login["session_id"].as_str().unwrap().parse().unwrap(),
            username: "alice".into(),
            roles: vec!["admin".into()],
        };
        let party = Party { issuer: issuer.into(), audience: audience.into() };
        let now = START + begins;
        let lifetime = Lifetime { now, expires_at: now + Duration::minutes(15) };
        Issuer::new(key, party).issue(subject, Uuid::from_u128(7), lifetime).unwrap().expose().to_owned()
    };
    let good = access(&login);
    let public = app.replica(&[("TOKEN_FORMAT", "v4.public")]).await;
    let jwt = app.replica(&[("TOKEN_FORMAT", "jwt")]).await;
    let (public, jwt) = (public.login("alice").await, jwt.login("alice").await);
    let none = Duration::ZERO;
    let mut altered = good.to_owned().into_bytes();
    altered[40] = if altered[40] == b'A' { b'B' } else { b'A' };
    let altered = String::from_utf8(altered).unwrap();
    assert_eq!(
        introspect(&app, &client, &issue(KEY, "gatepass", "gatepass", none)).await.expect(200)["active"],
        true
    );

    let tokens = [
        "",
        " ",
        "garbage",
        "null",
        "v4.local.",
        "gpr_",
        "\0",
        "ä\u{fffd}",
        refresh(&login),
        &client.0,
        &client.1,
        KEY,
        &format!("{good} "),
        &format!(" {good}"),
        &format!("{good}="),
        &format!("Bearer {good}"),
        &good[..good.len() - 1],
        &good.to_uppercase(),
        &altered,
        access(&public),
        access(&jwt),
        "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9.",
        &issue(OTHER_KEY, "gatepass", "gatepass", none),
        &issue(KEY, "https://elsewhere.example", "gatepass", none),
        &issue(KEY, "gatepass", "elsewhere", none),
        &issue(KEY, "gatepass", "gatepass", Duration::hours(1)),
        &issue(KEY, "gatepass", "gatepass", -Duration::hours(1)),
        &format!("v4.local.{}", "A".repeat(9 * 1024)),
        &"a".repeat(60 * 1024),
    ];
    for token in tokens {
        let answer = introspect(&app, &client, token).await;
        assert_eq!((answer.status.as_u16(), &*answer.body), (200, r#"{"active":false}"#), "{token}");
        assert_eq!(answer.header("cache-control"), "no-store");
    }
    assert_eq!(introspect(&app, &client, good).await.expect(200)["active"], true);
    app.clock.advance(Duration::minutes(15));
    assert_eq!(introspect(&app, &client, good).await.expect(200), json!({ "active": false }));
}

#[tokio::test]
async fn a_token_that_was_introspected_counts_as_received() {
    let (app, login, client) = alice_and_a_client().await;
    let renewed = app.renew(&login).await.expect(200);
    // A service asks about it, so its caller has received the renewal's answer; gatepass's own routes need not see the
    // token.
    assert_eq!(introspect(&app, &client, access(&renewed)).await.expect(200)["active"], true);
    app.get("/users/me").bearer(&renewed).send().await.expect(200);
    app.state().activity.flush().await.unwrap();
    app.clock.advance(Duration::seconds(10));
    app.renew(&login).await.expect_problem(401, "refresh_token_reused");
}

#[tokio::test]
async fn whoever_holds_a_token_can_end_its_session() {
    let (app, login, client) = alice_and_a_client().await;
    let other = app.replica(&[]).await;
    let kept = app.login("alice").await;

    revoke(&app, access(&login)).await;
    assert_eq!(end_of(&app, &login).await, Some((START, "revoked".to_owned())));
    other.renew(&login).await.expect_problem(401, "session_revoked");

    let login = app.login("alice").await;
    revoke(&other, refresh(&login)).await;
    assert_eq!(end_of(&app, &login).await.unwrap().1, "revoked");

    // A token of an earlier generation is just as authentic.
    let first = app.login("alice").await;
    let second = app.renew(&first).await.expect(200);
    let third = app.renew(&second).await.expect(200);
    revoke(&app, refresh(&first)).await;
    assert_eq!(end_of(&app, &first).await.unwrap().1, "revoked");
    app.renew(&third).await.expect_problem(401, "session_revoked");

    // It works as well with a client's credentials, with the hint of another kind, and with a bearer token.
    let login = app.login("alice").await;
    let parameters = [("token", refresh(&login)), ("token_type_hint", "access_token")];
    let request = app.post("/tokens/revoke").client(&client).form(&parameters);
    assert_eq!(request.send().await.status.as_u16(), 200);
    assert_eq!(end_of(&app, &login).await.unwrap().1, "revoked");
    let login = app.login("alice").await;
    let request = app.post("/tokens/revoke").bearer(&login).form(&[("token", access(&login))]);
    assert_eq!(request.send().await.status.as_u16(), 200);
    assert_eq!(end_of(&app, &login).await.unwrap().1, "revoked");

    assert_eq!(end_of(&app, &kept).await, None);
    app.renew(&kept).await.expect(200);
}

#[tokio::test]
async fn a_session_ends_once_and_keeps_its_reason() {
    let (app, login, _) = alice_and_a_client().await;
    revoke(&app, refresh(&login)).await;
    app.clock.advance(Duration::minutes(1));
    for token in [refresh(&login), access(&login)] {
        revoke(&app, token).await;
        assert_eq!(end_of(&app, &login).await, Some((START, "revoked".to_owned())));
    }

    let copied = app.login("alice").await;
    let renewed = app.renew(&copied).await.expect(200);
    let again = app.renew(&renewed).await.expect(200);
    app.renew(&copied).await.expect_problem(401, "refresh_token_reused");
    revoke(&app, refresh(&again)).await;
    assert_eq!(end_of(&app, &copied).await.unwrap().1, "refresh_token_reused");
}

#[tokio::test]
async fn revoking_an_invalid_token_ends_no_session_and_is_answered_the_same() {
    let (app, login, client) = alice_and_a_client().await;
    let stranger = app.replica_with_key(OTHER_KEY, &[]).await;
    let foreign = stranger.login("alice").await;
    let mut altered: Vec<_> = [6, 27, 31, 60]
        .map(|i| {
            let mut token = refresh(&login).to_owned().into_bytes();
            token[i] = if token[i] == b'A' { b'B' } else { b'A' };
            String::from_utf8(token).unwrap()
        })
        .into();
    altered.push(refresh(&login).to_uppercase());
    altered.push(format!("{} ", refresh(&login)));
    altered.push(format!("{}A", access(&login)));
    let unknown = ["", "garbage", "gpr_", "gpr_AAAA", &client.1, KEY, access(&foreign), refresh(&foreign)];
    for token in unknown.into_iter().chain(altered.iter().map(String::as_str)) {
        revoke(&app, token).await;
    }
    for tokens in [&login, &foreign] {
        assert_eq!(end_of(&app, tokens).await, None);
    }

    // Nor does a request with a client's wrong secret.
    let wrong = (client.0, OTHER_KEY.to_owned());
    let parameters = [("token", refresh(&login))];
    let answer = app.post("/tokens/revoke").client(&wrong).form(&parameters).send().await;
    answer.expect_problem(401, "invalid_client");
    assert_eq!(end_of(&app, &login).await, None);

    // The session is deleted along with its user.
    app.sql("DELETE FROM users WHERE id = $1::uuid", &login["user"]["id"]).await;
    revoke(&app, refresh(&login)).await;
}

#[tokio::test]
async fn an_access_token_that_has_expired_still_ends_its_session() {
    let (app, login, _) = alice_and_a_client().await;
    app.clock.advance(Duration::minutes(16));
    app.get("/users/me").bearer(&login).send().await.expect_problem(401, "token_expired");
    revoke(&app, access(&login)).await;
    let (_, reason) = end_of(&app, &login).await.unwrap();
    assert_eq!(reason, "revoked");
    app.renew(&login).await.expect_problem(401, "session_revoked");
}

#[tokio::test]
async fn simultaneous_revocations_and_renewals_leave_the_session_ended() {
    let (app, login, _) = alice_and_a_client().await;
    let app = std::sync::Arc::new(app);
    let requests = (0..32).map(|i| {
        let (app, login) = (app.clone(), login.clone());
        tokio::spawn(async move {
            if i % 2 == 0 {
                revoke(&app, refresh(&login)).await;
                200
            } else {
                app.renew(&login).await.status.as_u16()
            }
        })
    });
    let mut statuses = BTreeSet::new();
    for request in requests.collect::<Vec<_>>() {
        statuses.insert(request.await.unwrap());
    }
    assert!(statuses.is_subset(&BTreeSet::from([200, 401])), "{statuses:?}");
    assert_eq!(end_of(&app, &login).await.unwrap().1, "revoked");
    app.renew(&login).await.expect_problem(401, "session_revoked");
}
