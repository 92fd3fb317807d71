//! Keys on the command line: the `key` commands, `token inspect`, and what `doctor` says about keys, with the real
//! binary over a real Postgres. No key and no token is ever printed, except the key that `key show` is for.

use std::{
    fs::{self, DirBuilder},
    os::unix::fs::DirBuilderExt,
    sync::Arc,
};

use gatepass::token::{
    Format, Hs256Key, Issuer, KeyPair, KeyPairFormat, Lifetime, Party, SharedFormat, SigningKey, Subject,
    SymmetricKey,
};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};
use uuid::Uuid;

use crate::{
    app::{KEY, PASSWORD, as_role, database, empty_database},
    not_tested::are_root,
    process::{Ended, Home, Signal, until},
};

const OTHER_KEY: &str = "k4.local.cHFyc3R1dnd4eXp7fH1-f4CBgoOEhYaHiImKi4yNjo8";
/// Nobody listens there.
const AWAY: &str = "postgres://gatepass@127.0.0.1:1/gatepass";

/// An operator's working directory, with settings.
struct Desk {
    home: Home,
    settings: Vec<(&'static str, String)>,
}

impl Desk {
    /// With a migrated database.
    async fn new(settings: &[(&'static str, &str)]) -> Self {
        Self::on(&database().await, settings)
    }

    fn on(url: &str, settings: &[(&'static str, &str)]) -> Self {
        Self::without_database(&[&[("DB_SOURCE", url)], settings].concat())
    }

    fn without_database(settings: &[(&'static str, &str)]) -> Self {
        let mut desk = Self { home: Home::new(), settings: vec![("TOKEN_SYMMETRIC_KEY", KEY.to_owned())] };
        desk.set(settings);
        desk
    }

    fn set(&mut self, settings: &[(&'static str, &str)]) {
        self.settings.extend(settings.iter().map(|(name, value)| (*name, (*value).to_owned())));
    }

    fn environment(&self) -> Vec<(&str, &str)> {
        self.settings.iter().map(|(name, value)| (*name, value.as_str())).collect()
    }

    async fn run(&self, args: &[&str]) -> Ended {
        self.run_with(args, "").await
    }

    async fn run_with(&self, args: &[&str], stdin: &str) -> Ended {
        let run = self.home.gatepass(args).envs(&self.environment()).stdin(stdin).run();
        let ended = run.await;
        for output in [&ended.stdout, &ended.stderr] {
            assert!(!output.contains(KEY) && !output.contains(OTHER_KEY), "{output}");
            assert!(!output.contains("panicked"), "{output}");
        }
        ended
    }

    async fn keys(&self) -> Vec<Value> {
        self.run(&["key", "list", "--json"]).await.json().as_array().unwrap().clone()
    }

    /// The status of the key `kid`; "none" if it is not listed.
    async fn status(&self, kid: &str) -> String {
        let keys = self.keys().await;
        keys.iter().find(|key| key["kid"] == kid).map_or("none", |key| text(&key["status"])).to_owned()
    }

    async fn kid(&self, status: &str) -> String {
        let keys = self.keys().await;
        text(&keys.iter().find(|key| key["status"] == status).unwrap()["kid"]).to_owned()
    }

    /// The report of `doctor`, whatever its exit code.
    async fn doctor(&self) -> Value {
        serde_json::from_str(&self.run(&["doctor", "--json"]).await.stdout).unwrap()
    }

    async fn sql(&self, statement: &str) {
        let url = &self.settings.iter().find(|(name, _)| *name == "DB_SOURCE").unwrap().1;
        let mut conn = PgConnection::connect(url).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut conn).await.unwrap();
        conn.close().await.unwrap();
    }

    async fn inspect(&self, token: &str) -> (Option<i32>, Value) {
        let ended = self.run_with(&["token", "inspect", "-", "--json"], token).await;
        assert!(token.len() < 40 || !ended.stdout.contains(token), "{}", ended.stdout);
        (ended.code, serde_json::from_str(&ended.stdout).unwrap())
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

/// Asserts that `doctor` found something of this level that contains this text.
#[track_caller]
fn finds(doctor: &Value, level: &str, part: &str) {
    let findings = doctor["findings"].as_array().unwrap();
    let found =
        findings.iter().any(|finding| finding["level"] == level && finding.to_string().contains(part));
    assert!(found, "no {level} with {part:?} in {doctor:#}");
}

/// A token of `key`, issued `from` seconds from now and valid for `seconds`.
fn issue(key: impl Into<SigningKey>, from: i64, seconds: i64) -> String {
    #[expect(clippy::disallowed_methods, reason = "the binary goes by the wall clock")]
    let now = OffsetDateTime::now_utc() + Duration::seconds(from);
    let subject = Subject {
        user_id: Uuid::from_u128(1),
        session_id: Uuid::from_u128(2),
        username: "al\u{1b}[2Jice".into(),
        roles: vec!["admin".into()],
    };
    let party = Party { issuer: "gatepass".into(), audience: "gatepass".into() };
    let lifetime = Lifetime { now, expires_at: now + Duration::seconds(seconds) };
    Issuer::new(key, party).issue(subject, Uuid::from_u128(3), lifetime).unwrap().expose().to_owned()
}

fn root() -> SymmetricKey {
    KEY.parse().unwrap()
}

#[tokio::test]
async fn wrong_use_is_2() {
    let desk = Desk::without_database(&[]);
    for (args, hint) in [
        (&["key", "show"][..], "--jwt-hs256"),
        (&["key", "show", "--json"], "--jwt-hs256"),
        (&["key", "retire"], "<ID>"),
        (&["key", "retire", "--now"], "<ID>"),
        (&["key", "list", "all"], "all"),
        (&["key", "rotate", "now"], "now"),
        (&["token", "inspect"], "<TOKEN>"),
        (&["token", "inspect", "a", "b"], "'b'"),
        (&["doctor", "now"], "now"),
    ] {
        desk.run(args).await.fails(2, &[hint]);
    }
}

#[tokio::test]
async fn shared_keys_need_no_database() {
    let desk = Desk::without_database(&[
        ("DB_SOURCE", AWAY),
        ("TOKEN_FORMAT_ACCEPTED", "jwt:HS256"),
        ("TOKEN_SYMMETRIC_KEYS_ACCEPTED", OTHER_KEY),
    ]);
    let keys = desk.keys().await;
    let hs256 = Hs256Key::new(&root());
    let entry = |kid: &str, format: &str, status: &str| {
        json!({
            "kid": kid, "format": format, "status": status, "source": "configuration", "published_at": null,
            "activated_at": null, "retired_at": null, "verifies_until": null, "wrapped_by": null, "note": null,
        })
    };
    assert_eq!(keys.len(), 4);
    assert_eq!(keys[0], entry(root().id().as_str(), "v4.local", "active"));
    assert_eq!(keys[1]["status"], "accepted");
    assert_eq!(keys[2], entry(hs256.id().as_str(), "jwt:HS256", "accepted"));
    let table = desk.run(&["key", "list"]).await.expect(0).stdout;
    assert_eq!(table.lines().count(), 5, "{table}");
    assert!(table.lines().all(|line| line.trim_end() == line), "{table}");

    for args in [&["key", "rotate"][..], &["key", "retire", text(&keys[0]["kid"])]] {
        desk.run(args).await.fails(1, &["v4.local", "from the configuration"]);
    }
    // What a service that verifies HS256 is given.
    let jwk = desk.run(&["key", "show", "--jwt-hs256", "--json"]).await;
    assert_eq!(jwk.stderr, "");
    let jwk = jwk.json();
    assert_eq!(jwk, serde_json::from_str::<Value>(&hs256.to_jwk()).unwrap());
    assert_eq!((&jwk["kty"], &jwk["alg"], &jwk["kid"]), (&"oct".into(), &"HS256".into(), &keys[2]["kid"]));
    let k = desk.run(&["key", "show", "--jwt-hs256"]).await.expect(0).stdout;
    assert_eq!(k.trim_end(), text(&jwk["k"]));
    let other = Desk::without_database(&[]).run(&["key", "show", "--jwt-hs256"]).await.expect(0);
    assert_eq!(other.stdout, k);
    assert!(other.stderr.contains("TOKEN_FORMAT_ACCEPTED"), "{}", other.stderr);

    let help = desk.run(&["key", "show", "--help"]).await.expect(0).stdout;
    assert!(help.contains("CAN MAKE TOKENS"), "{help}");
}

#[tokio::test]
async fn keys_are_rotated_and_retired() {
    let desk = Desk::new(&[("TOKEN_FORMAT", "v4.public"), ("KEY_ROTATION_INTERVAL", "4s")]).await;
    // Looking at the keys makes none.
    assert!(desk.keys().await.is_empty());
    finds(&desk.doctor().await, "note", "there are none for v4.public yet");

    // Everybody knows the keys in the first documents, so the first rotation does not wait.
    let first = desk.run(&["key", "rotate", "--json"]).await;
    assert!(!first.stderr.contains("waiting"), "{}", first.stderr);
    let first = first.json();
    assert_eq!(first["format"], "v4.public");
    let keys = desk.keys().await;
    assert_eq!(keys.len(), 3);
    for (name, status) in [("retired", "retiring"), ("active", "active"), ("next", "next")] {
        assert_eq!(desk.status(text(&first[name])).await, status);
    }
    let active = keys.iter().find(|key| key["status"] == "active").unwrap();
    assert_eq!(active["source"], "database");
    assert_eq!(active["wrapped_by"], root().id().as_str());
    assert!(active["retired_at"].is_null() && active["note"].is_null());
    OffsetDateTime::parse(text(&active["activated_at"]), &Rfc3339).unwrap();

    // The key after those is new, so the second rotation waits.
    let second = desk.run(&["key", "rotate"]).await.expect(0);
    assert!(second.stderr.contains("waiting") && second.stderr.contains("Ctrl-C"), "{}", second.stderr);
    let line = second.stdout.lines().next().unwrap();
    assert!(line.starts_with("signs now") && line.ends_with(text(&first["next"])), "{}", second.stdout);

    // An operator who does not want to wait changes nothing.
    let before = desk.keys().await;
    let patient = [&desk.environment()[..], &[("KEY_ROTATION_INTERVAL", "30d")]].concat();
    let mut rotating = desk.home.gatepass(&["key", "rotate"]).envs(&patient).start();
    rotating.logged("waiting").await;
    rotating.stop(Signal::INT).await.fails(1, &["nothing has changed"]);
    assert_eq!(desk.keys().await, before);

    // An active key hands over, after a wait, and stays good for what it has signed.
    let active = desk.kid("active").await;
    let retired = desk.run(&["key", "retire", &active, "--json"]).await;
    assert_eq!(retired.json()["status"], "retiring");
    let again = desk.run(&["key", "retire", &active]).await.expect(0).stdout;
    assert!(again.contains("its tokens are valid until"), "{again}");
    // A leaked key does not stay good.
    let gone = desk.run(&["key", "retire", &active, "--now"]).await.expect(0).stdout;
    assert!(gone.contains("refuses its tokens within a second"), "{gone}");
    assert_eq!(desk.status(&active).await, "gone");
    desk.run(&["key", "retire", &active]).await.fails(1, &["no signing key", "`gatepass key list`"]);
    desk.run(&["key", "retire", "-x", "--now"]).await.fails(1, &["no signing key -x"]);
    desk.run(&["key", "retire", "--now", "-x"]).await.fails(1, &["no signing key -x"]);

    // The same goes for a next key and an active one, without a wait.
    for status in ["next", "active"] {
        let kid = desk.kid(status).await;
        let ended = desk.run(&["key", "retire", "--now", &kid]).await.expect(0);
        assert!(!ended.stderr.contains("waiting"), "{}", ended.stderr);
        assert_eq!(desk.status(&kid).await, "gone");
    }
    let table = desk.run(&["key", "list"]).await.expect(0).stdout;
    for status in ["next", "active", "retiring", "gone"] {
        assert!(table.contains(status), "{table}");
    }
    assert_eq!(desk.doctor().await["ok"], true);
}

#[tokio::test]
async fn a_running_service_follows_the_key_commands() {
    let desk = Desk::new(&[("TOKEN_FORMAT", "jwt"), ("JWT_ALGORITHM", "ES256")]).await;
    let mut service = desk.home.serve(&desk.environment()).await;
    let alice = json!({"username": "alice", "email": "alice@example.com", "password": PASSWORD});
    assert_eq!(service.post("/users", &alice).await.0, 201);
    let alice = json!({"username": "alice", "password": PASSWORD});
    let login = service.post("/users/login", &alice).await.1;
    let token = text(&login["access_token"]);

    let (code, report) = desk.inspect(&format!("Authorization: Bearer {token}\n")).await;
    assert_eq!(code, Some(0), "{report:#}");
    assert_eq!((&report["accepted"], &report["verified"]), (&true.into(), &true.into()));
    assert_eq!((&report["format"], &report["kind"]), (&"jwt:ES256".into(), &"access".into()));
    assert_eq!(report["kid"], desk.kid("active").await);
    assert_eq!(report["claims"]["username"], "alice");
    assert_eq!(
        (&report["session"]["state"], &report["session"]["user_disabled"]),
        (&"live".into(), &false.into())
    );
    let checks = report["checks"].as_array().unwrap();
    assert_eq!(checks.len(), 13);
    assert_eq!(checks[0], json!({"check": "size", "ok": true, "reason": null}));

    let (code, refresh) = desk.inspect(text(&login["refresh_token"])).await;
    assert_eq!((code, &refresh["kind"], &refresh["generation"]), (Some(1), &"refresh".into(), &0.into()));
    assert_eq!(refresh["session"]["id"], report["session"]["id"]);
    assert_eq!(refresh["session"]["state"], "live");
    let (code, cut) = desk.inspect(&text(&login["refresh_token"])[..50]).await;
    assert_eq!((code, &cut["kind"]), (Some(1), &"unknown".into()));

    desk.run(&["user", "set-role", "alice", "support"]).await.expect(0);
    let (code, report) = desk.inspect(token).await;
    assert_eq!((code, &report["checks"][12]["ok"]), (Some(1), &false.into()));
    until("the token is outdated", async || {
        service.get_as(token, "/users/me").await.1["code"] == "token_outdated"
    })
    .await;
    desk.run(&["user", "disable", "alice"]).await.expect(0);
    let (code, report) = desk.inspect(token).await;
    assert_eq!((code, &report["session"]["state"]), (Some(1), &"ended".into()));
    until("its session has ended", async || {
        service.get_as(token, "/users/me").await.1["code"] == "session_revoked"
    })
    .await;
    desk.sql("DELETE FROM sessions").await;
    assert_eq!(desk.inspect(token).await.1["session"]["state"], "ended");
    desk.run(&["user", "enable", "alice"]).await.expect(0);

    let login = service.post("/users/login", &alice).await.1;
    let token = text(&login["access_token"]);
    assert_eq!(service.get_as(token, "/users/me").await.0, 200);
    desk.sql("UPDATE sessions SET created_at = created_at - interval '99 days', refresh_expires_at = now()")
        .await;
    assert_eq!(desk.inspect(token).await.1["session"]["state"], "expired");
    let kid = desk.kid("active").await;
    desk.run(&["key", "retire", "--now", &kid]).await.expect(0);
    until("the token is refused", async || service.get_as(token, "/users/me").await.0 == 401).await;
    let (code, report) = desk.inspect(token).await;
    assert_eq!((code, &report["verified"]), (Some(1), &false.into()));
    assert_eq!(report["claims"]["username"], "alice");
    let [active, next] = [desk.kid("active").await, desk.kid("next").await];
    let line = format!("signing keys changed format=jwt:ES256 active={active} next={next}\n");
    service.logged(&line).await;
    let log = service.stderr();
    assert_eq!(log.matches("signing keys changed").count(), 1, "{log}");
}

#[tokio::test]
async fn keys_are_rewrapped_with_the_new_root_key() {
    let url = database().await;
    let settings = [("TOKEN_FORMAT", "v4.public")];
    let mut desk = Desk::on(&url, &settings);
    desk.run(&["key", "rotate"]).await.expect(0);
    assert_eq!(desk.run(&["key", "rewrap"]).await.expect(0).stdout, "nothing to do\n");
    let former = root().id().to_string();

    // The former root key is lost.
    desk.set(&[("TOKEN_SYMMETRIC_KEY", OTHER_KEY)]);
    let doctor = desk.doctor().await;
    finds(&doctor, "problem", "TOKEN_SYMMETRIC_KEYS_ACCEPTED");
    assert_eq!(doctor["ok"], false);
    desk.run(&["doctor"]).await.expect(1);
    let closed: Vec<_> = desk.keys().await.into_iter().filter(|key| !key["wrapped_by"].is_null()).collect();
    let [one, other] = [&closed[0], &closed[1]].map(|key| text(&key["kid"]));
    // Whether or not their format is in use: someone may think that the former root key is no longer needed.
    for format in ["v4.public", "v4.local"] {
        desk.set(&[("TOKEN_FORMAT", format)]);
        let told = [one, other, &former, "TOKEN_SYMMETRIC_KEYS_ACCEPTED"];
        desk.run(&["key", "rewrap"]).await.fails(1, &told);
        let ended = desk.run(&["key", "rewrap", "--json"]).await.expect(1);
        let told: Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!(told["rewrapped"], json!([]));
        let left = told["left"].as_array().unwrap();
        assert_eq!(left.len(), 2);
        assert!([one, other].iter().all(|kid| left.iter().any(|key| key["kid"] == **kid)), "{told}");
        assert!(left.iter().all(|key| key["root"] == *former), "{told}");
    }
    desk.set(&[("TOKEN_FORMAT", "v4.public")]);
    assert!(desk.keys().await.iter().any(|key| key["note"].to_string().contains("not in the configuration")));

    // The former root key is found again.
    desk.set(&[("TOKEN_SYMMETRIC_KEYS_ACCEPTED", KEY)]);
    let doctor = desk.doctor().await;
    finds(&doctor, "warning", "`gatepass key rewrap` before you remove");
    finds(&doctor, "note", "rotation of the root key is not finished");
    assert_eq!(doctor["ok"], true);
    let table = desk.run(&["key", "list"]).await.expect(0).stdout;
    assert!(table.contains("`gatepass key rewrap`") && table.contains(&former), "{table}");
    let stale: Vec<_> =
        desk.keys().await.into_iter().filter(|key| key["wrapped_by"] == former.as_str()).collect();
    assert_eq!(stale.len(), 2);

    let done = desk.run(&["key", "rewrap", "--json"]).await.json();
    assert_eq!(done["left"], json!([]));
    let mut kids: Vec<_> = done["rewrapped"].as_array().unwrap().iter().map(text).collect();
    let mut expected: Vec<_> = stale.iter().map(|key| text(&key["kid"])).collect();
    kids.sort_unstable();
    expected.sort_unstable();
    assert_eq!(kids, expected);
    assert!(
        desk.keys().await.iter().all(|key| key["note"].is_null() && key["wrapped_by"] != former.as_str())
    );
    assert_eq!(desk.run(&["key", "rewrap"]).await.expect(0).stdout, "nothing to do\n");
    desk.set(&[("TOKEN_SYMMETRIC_KEYS_ACCEPTED", "")]);
    let doctor = desk.doctor().await;
    // Only the findings about keys: those about settings call this root key weak.
    let keys: Vec<_> =
        doctor["findings"].as_array().unwrap().iter().filter(|f| f["area"] == "keys").collect();
    assert!(keys.iter().all(|found| ["ok", "note"].contains(&text(&found["level"]))), "{doctor:#}");

    // Keys whose root key is lost for good can be replaced.
    desk.set(&[("TOKEN_SYMMETRIC_KEY", KEY)]);
    let kid = desk.kid("active").await;
    desk.run(&["key", "retire", "--now", &kid]).await.expect(0);
    let kid = desk.kid("active").await;
    desk.run(&["key", "retire", "--now", &kid]).await.expect(0);
    assert_eq!(desk.doctor().await["ok"], true);

    // Where only shared formats are in use, what is left of a ring can be rewrapped, too.
    desk.set(&[
        ("TOKEN_FORMAT", "v4.local"),
        ("TOKEN_SYMMETRIC_KEY", OTHER_KEY),
        ("TOKEN_SYMMETRIC_KEYS_ACCEPTED", KEY),
    ]);
    let done = desk.run(&["key", "rewrap"]).await.expect(0).stdout;
    assert_eq!(done.lines().count(), 2, "{done}");
}

#[tokio::test]
async fn an_unreadable_key_is_shown_and_hinders_no_command() {
    let desk = Desk::new(&[("TOKEN_FORMAT", "v4.public")]).await;
    desk.run(&["key", "rotate"]).await.expect(0);
    desk.sql(
        "ALTER TABLE signing_keys DROP CONSTRAINT signing_keys_format_known;
         UPDATE signing_keys SET format = 'jwt:ES384' WHERE retired_at IS NOT NULL",
    )
    .await;
    let unknown = desk.kid("unknown").await;
    let keys = desk.keys().await;
    let shown = keys.iter().find(|key| key["kid"] == unknown).unwrap();
    assert_eq!(shown["format"], "jwt:ES384");
    assert!(text(&shown["note"]).contains("this release does not know"), "{shown}");
    let doctor = desk.doctor().await;
    finds(&doctor, "note", &unknown);
    assert_eq!(doctor["ok"], true, "{doctor:#}");
    desk.run(&["key", "retire", &unknown]).await.fails(1, &["jwt:ES384"]);
    let active = desk.kid("active").await;
    desk.run(&["key", "retire", &active, "--now"]).await.expect(0);
    assert_eq!(desk.status(&active).await, "gone");

    // A broken row, which should never occur.
    let active = desk.kid("active").await;
    desk.sql("UPDATE signing_keys SET public_key = 'x' WHERE activated_at IS NULL AND retired_at IS NULL")
        .await;
    finds(&desk.doctor().await, "problem", "cannot be read");
    assert_eq!(desk.status(&active).await, "active");
    let broken = desk.kid("unknown").await;
    assert_ne!(broken, active);
}

#[tokio::test]
async fn a_broken_key_can_be_replaced_and_keeps_no_leaked_key_alive() {
    let desk = Desk::new(&[("TOKEN_FORMAT", "v4.public")]).await;
    let mut service = desk.home.serve(&desk.environment()).await;
    let alice = json!({"username": "alice", "email": "alice@example.com", "password": PASSWORD});
    assert_eq!(service.post("/users", &alice).await.0, 201);
    let alice = json!({"username": "alice", "password": PASSWORD});
    desk.run(&["key", "rotate"]).await.expect(0);
    for (status, broken) in [
        ("retiring", "retired_at IS NOT NULL AND verifies_until > retired_at"),
        ("next", "activated_at IS NULL AND retired_at IS NULL"),
        ("active", "activated_at IS NOT NULL AND retired_at IS NULL"),
    ] {
        let active = desk.kid("active").await;
        let mut token = String::new();
        until("the active key signs", async || {
            token = text(&service.post("/users/login", &alice).await.1["access_token"]).to_owned();
            desk.inspect(&token).await.1["kid"] == *active
        })
        .await;
        let id = desk.kid(status).await;
        desk.sql(&format!("UPDATE signing_keys SET public_key = 'x' WHERE {broken}")).await;
        service.logged(&format!("the signing key {id} cannot be read")).await;
        finds(&desk.doctor().await, "problem", &format!("gatepass key retire {id} --now"));

        let gone = desk.run(&["key", "retire", "--now", &active]).await.expect(0).stdout;
        assert!(gone.contains("refuses its tokens within a second"), "{gone}");
        until("the token is refused", async || service.get_as(&token, "/users/me").await.0 == 401).await;
        assert_eq!(desk.status(&active).await, "gone");
        until("another key signs", async || service.post("/users/login", &alice).await.0 == 200).await;
        if status == "retiring" {
            assert_eq!(desk.status(&id).await, "unknown");
            desk.run(&["key", "retire", &id, "--json"]).await.expect(0);
        }
        assert_eq!(desk.status(&id).await, "gone");
        // It cannot be retired again, and nobody is advised to.
        desk.run(&["key", "retire", &id, "--now"]).await.fails(1, &["that could be retired"]);
        let keys = desk.keys().await;
        let note = text(&keys.iter().find(|key| key["kid"] == *id).unwrap()["note"]);
        assert!(note.contains("cannot be read") && !note.contains("retire"), "{note}");
        assert_eq!(desk.doctor().await["ok"], true);
    }
}

/// Not even the files that development makes for itself.
#[tokio::test]
async fn read_only_commands_create_nothing() {
    let home = Home::new();
    for settings in [&[][..], &[("TOKEN_FORMAT", "v4.public"), ("TOKEN_FORMAT_ACCEPTED", "jwt:HS256")]] {
        let look = async |args: &[&str]| home.gatepass(args).envs(settings).run().await;
        let list = look(&["key", "list", "--json"]).await;
        assert!(list.stderr.contains("there is no key yet; `gatepass serve` makes one"), "{}", list.stderr);
        assert_eq!(list.json(), json!([]));
        look(&["key", "show", "--jwt-hs256"])
            .await
            .fails(1, &["there is no key yet", "`gatepass key generate`"]);
        let seen = look(&["token", "inspect", &issue(root(), 0, 600)]).await.expect(1);
        assert!(seen.stdout.contains("key that is not accepted here"), "{}", seen.stdout);
        assert_eq!(seen.stderr.contains("there is no database yet"), !settings.is_empty(), "{}", seen.stderr);
        let made: Vec<_> = fs::read_dir(home.path(".")).unwrap().collect();
        assert!(made.is_empty(), "{made:?}");
    }
    // What is in a directory that cannot be read is not known.
    if !are_root("what another user is told of a directory that is not theirs") {
        return;
    }
    let home = Home::of_nobody().unwrap();
    DirBuilder::new().mode(0o700).create(home.path(".gatepass")).unwrap();
    for args in [&["key", "list"][..], &["key", "show", "--jwt-hs256"], &["token", "inspect", "x"]] {
        home.gatepass(args).run().await.fails(1, &[".gatepass", "is it another user's?"]);
    }
    let doctor = home.gatepass(&["doctor"]).run().await.expect(1).stdout;
    assert!(doctor.contains("is it another user's?"), "{doctor}");
}

#[tokio::test]
async fn token_inspect_reports_what_a_token_holds() {
    let desk = Desk::without_database(&[("TOKEN_FORMAT_ACCEPTED", "jwt:HS256")]);
    let good = issue(root(), 0, 600);
    let ended = desk.run(&["token", "inspect", &good]).await.expect(0);
    assert!(ended.stdout.contains("exp") && ended.stdout.contains("(in 9 min)"), "{}", ended.stdout);
    assert!(ended.stdout.contains("not asked for: DB_SOURCE is not set"), "{}", ended.stdout);
    assert!(!ended.stdout.contains('\u{1b}') && !ended.stdout.contains('✓'), "{}", ended.stdout);
    // The flag may stand on either side.
    for args in [["token", "inspect", "--json", &good], ["token", "inspect", &good, "--json"]] {
        assert_eq!(desk.run(&args).await.json()["claims"]["username"], "al\u{1b}[2Jice");
    }

    let expired = issue(Hs256Key::new(&root()), -780, 600);
    let ended = desk.run(&["token", "inspect", &expired]).await.expect(1);
    for part in ["jwt:HS256", "FAILED: the token has expired", "(3 min ago)"] {
        assert!(ended.stdout.contains(part), "{part:?}: {}", ended.stdout);
    }
    assert!(!ended.stdout.contains("UNVERIFIED") && ended.stderr.contains("refused: the token has expired"));

    // Claims that nobody vouches for are marked.
    let foreign = issue(Hs256Key::new(&OTHER_KEY.parse().unwrap()), 0, 600);
    let ended = desk.run(&["token", "inspect", &foreign]).await.expect(1);
    for part in ["UNVERIFIED", "key that is not accepted here", "not reached", "\\u{1b}"] {
        assert!(ended.stdout.contains(part), "{part:?}: {}", ended.stdout);
    }
    let hidden =
        desk.run(&["token", "inspect", &issue(OTHER_KEY.parse::<SymmetricKey>().unwrap(), 0, 9)]).await;
    assert!(hidden.expect(1).stdout.contains("encrypted, and no key here opens them"));
    let (code, forged) = desk.inspect(&format!("{}AAAA", &good[..good.len() - 4])).await;
    assert_eq!((code, &forged["accepted"]), (Some(1), &false.into()));

    // Cut off: what can still be read is shown as if it were whole.
    let whole = issue(Hs256Key::new(&root()), 0, 600);
    let (_, intact) = desk.inspect(&whole).await;
    for rest in [whole.len() - 5, whole.rfind('.').unwrap() + 1, whole.rfind('.').unwrap()] {
        let (code, cut) = desk.inspect(&whole[..rest]).await;
        assert_eq!((code, &cut["verified"], &cut["format"]), (Some(1), &false.into(), &"jwt:HS256".into()));
        assert!(text(&cut["hint"]).contains("was it cut off?"), "{cut}");
        for time in ["iat", "nbf", "exp"] {
            assert_eq!(cut["claims"][time], intact["claims"][time]);
        }
    }

    for (rubbish, hint) in [
        ("", "there is nothing"),
        ("gpr_", "refresh token"),
        ("-", "full stops"),
        ("--help", "full stops"),
        (r#"{"access_token":"v4.local.x"}"#, "`access_token` alone"),
        ("01940000-0000-7000-8000-000000000001", "UUID"),
        ("v2.local.AAAA", "version"),
        ("k4.lid.AAAA", "name"),
        ("eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIn0..a.b.c", "JWE"),
        ("v4.local.AA AA", "spaces"),
        ("\u{0}\u{1b}[2J.é.\u{202e}", ""),
        ("....", ""),
        ("v4.local.", ""),
        ("v4.public.", ""),
        ("eyJhbGciOiJub25lIn0.e30.", "names no key"),
        // {"alg":"RS256","kid":"a","x5t":"b"}
        ("eyJhbGciOiJSUzI1NiIsImtpZCI6ImEiLCJ4NXQiOiJiIn0.e30.AA", "more in it"),
        ("e30.e30.e30", ""),
        ("bnVsbA.bnVsbA.", ""),
        (&"A".repeat(9000), "longer"),
    ] {
        let (code, report) = desk.inspect(rubbish).await;
        assert_eq!((code, &report["accepted"]), (Some(1), &false.into()), "{rubbish:?}");
        let said = report["hint"].as_str().unwrap_or_default();
        assert!(said.contains(hint), "{rubbish:?}: {said}");
        let shown = desk.run_with(&["token", "inspect", "-"], rubbish).await.expect(1);
        assert!(!shown.stdout.contains(['\u{1b}', '\u{202e}']), "{rubbish:?}: {}", shown.stdout);
    }
    // A good token, and other settings than those of the service that made it.
    let elsewhere = Desk::without_database(&[("TOKEN_FORMAT_ACCEPTED", "jwt:HS256")]);
    let ring = issue(Arc::new(KeyPair::generate(KeyPairFormat::V4Public).unwrap()), 0, 600);
    let shown = elsewhere.run(&["token", "inspect", &ring]).await.expect(1).stdout;
    assert!(
        shown.contains("its format is v4.public") && shown.contains("is v4.local, jwt:HS256: "),
        "{shown}"
    );
    let (_, report) = Desk::without_database(&[]).inspect(&whole).await;
    assert!(text(&report["hint"]).contains("its format is jwt:HS256"), "{report}");
    // If someone mistakes the key for a token, it is not repeated.
    let (_, report) = desk.inspect(KEY).await;
    assert!(text(&report["hint"]).contains("KEY"), "{report}");
    assert_eq!(SigningKey::from(root()).format(), Format::Shared(SharedFormat::V4Local));
}

#[tokio::test]
async fn an_unreachable_database_is_reported() {
    let mut desk = Desk::on(AWAY, &[]);
    let (code, report) = desk.inspect(&issue(root(), 0, 600)).await;
    // The token is good, except for what the service would not know either.
    assert_eq!((code, &report["session"]["state"]), (Some(1), &"unknown".into()));
    assert!(text(&report["session"]["why_unknown"]).contains("127.0.0.1:1/gatepass"));
    let doctor = desk.doctor().await;
    assert_eq!(doctor["ok"], false);
    finds(&doctor, "ok", "settings");
    finds(&doctor, "problem", "check host and port in DB_SOURCE");
    desk.run(&["doctor"]).await.expect(1);

    desk.set(&[("TOKEN_FORMAT", "v4.public")]);
    desk.run(&["token", "inspect", "v4.public.AAAA"]).await.fails(1, &["DB_SOURCE"]);
}

#[tokio::test]
async fn doctor_says_what_to_do() {
    let desk = Desk::on(&as_role(&database().await, "gatepass_app"), &[]);
    let ended = desk.run(&["doctor"]).await.expect(0);
    assert_eq!(ended.stderr, "");
    for line in ended.stdout.lines() {
        // A machine may have time for more expensive hashes.
        assert!(line.starts_with("ok  ") || line.starts_with("note     password"), "{}", ended.stdout);
    }
    let doctor = desk.doctor().await;
    let areas: Vec<_> =
        doctor["findings"].as_array().unwrap().iter().map(|found| text(&found["area"])).collect();
    assert!(areas.starts_with(&["settings", "password"]) && areas.contains(&"keys"), "{areas:?}");
    assert!(doctor["findings"][0]["advice"].is_null());

    let empty = empty_database().await;
    let by_hand = Desk::on(&empty, &[("MIGRATE_ON_START", "false"), ("TOKEN_FORMAT", "v4.public")]);
    finds(&by_hand.doctor().await, "problem", "`gatepass migrate up`");
    by_hand.run(&["token", "inspect", "x"]).await.fails(1, &["`gatepass migrate up`"]);
    let at_start = Desk::on(&empty, &[("MIGRATE_ON_START", "true")]).doctor().await;
    finds(&at_start, "note", "MIGRATE_ON_START");
    assert_eq!(at_start["ok"], true);
    let doctor = Desk::on("x", &[("TOKEN_FORMAT", "jwx")]).doctor().await;
    finds(&doctor, "problem", "DB_SOURCE");
    finds(&doctor, "problem", "TOKEN_FORMAT");
    finds(&Desk::without_database(&[]).doctor().await, "note", "`gatepass serve` makes one");
    let weak = Desk::on(AWAY, &[("TOKEN_SYMMETRIC_KEY", "12345678901234567890123456789012")]);
    finds(&weak.doctor().await, "warning", "TOKEN_SYMMETRIC_KEY");

    let desk = Desk::new(&[("TOKEN_FORMAT", "v4.public"), ("TOKEN_FORMAT_ACCEPTED", "v4.local")]).await;
    desk.run(&["key", "rotate"]).await.expect(0);
    finds(&desk.doctor().await, "note", "TOKEN_FORMAT_ACCEPTED is set");
    finds(&desk.doctor().await, "note", "is about to go");
    desk.sql(
        "UPDATE signing_keys SET activated_at = now() - interval '32 days' WHERE activated_at IS NOT NULL AND retired_at IS NULL",
    )
    .await;
    finds(&desk.doctor().await, "warning", "is old");
    desk.sql("DELETE FROM signing_keys WHERE activated_at IS NULL").await;
    finds(&desk.doctor().await, "problem", "has no next key");
    // A start of the service does the same.
    desk.run(&["key", "rewrap"]).await.expect(0);
    assert_eq!(desk.doctor().await["ok"], true);
}
