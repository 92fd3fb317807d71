//! Users come from another system in a file, all of them, once each, with their passwords: whatever the format,
//! whatever is wrong with some lines, and however often the import is killed and run again. A comparison shows where
//! the two systems disagree, and the commands in docs/migrate-from.md work. Users also leave again in a file.

use std::{
    fs,
    num::NonZeroUsize,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use gatepass::{
    password::{Params, Password, Peppers, Pool, PoolSettings, Verdict},
    store::roles,
};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use time::OffsetDateTime;

use crate::{
    app::{App, PASSWORD, START, as_role, empty_database},
    process::{Ended, Home, Invocation, Process, QUICK, Signal, is_drill, until},
};

const BCRYPT: &str = "$2b$08$qZ9e3.J/1Zf8ZpAUCuK3HeQYVxdxTCio0r6MwOVn4oc4G3Z6Pj8C2";

/// A service, and an operator with files to import.
struct Move {
    app: App,
    home: Home,
}

impl Move {
    async fn new() -> Self {
        Self { app: App::new().await, home: Home::new() }
    }

    fn gatepass(&self, args: &[&str]) -> Invocation {
        let url = as_role(&self.app.database_url, roles::APP);
        self.home.gatepass(args).envs(&QUICK).env("DB_SOURCE", &url).env("USER", "olga")
    }

    /// `gatepass import ARGS…`
    async fn import(&self, args: &[&str]) -> Ended {
        // A million users take longer than anything else here may.
        let patience = Duration::from_secs(if is_drill() { 1800 } else { 60 });
        self.gatepass(&[&["import"], args].concat()).start().end_within(patience).await
    }

    /// `gatepass import ARGS…`, and its summary: `read, created, updated, unchanged, rejected`.
    async fn summary(&self, args: &[&str]) -> [u64; 5] {
        let ended = self.import(&[args, &["--json"]].concat()).await;
        let summary: Value = serde_json::from_str(&ended.stdout)
            .unwrap_or_else(|_| panic!("{}\n{}", ended.stdout, ended.stderr));
        let counts = ["read", "created", "updated", "unchanged", "rejected"];
        let counts = counts.map(|name| summary[name].as_u64().unwrap());
        assert_eq!(ended.code, Some(i32::from(counts[4] > 0)), "{}", ended.stderr);
        counts
    }

    async fn status(&self, username: &str, password: &str) -> u16 {
        self.app.try_login(username, password).await.status.as_u16()
    }

    async fn count(&self, sql: &str) -> i64 {
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&self.app.db).await.unwrap()
    }

    /// One row of `users` as JSON.
    async fn user(&self, username: &str) -> Value {
        sqlx::query_scalar("SELECT to_jsonb(users) FROM users WHERE username = $1")
            .bind(username)
            .fetch_one(&self.app.db)
            .await
            .unwrap()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.home.path(name)).unwrap()
    }
}

/// One of the hashes that other systems' libraries have made, and its password.
fn vector(what: &str) -> (Value, String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/foreign_hashes/vectors.json");
    let vectors: Vec<Value> = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let vector = vectors.into_iter().find(|vector| vector["what"] == what).unwrap();
    let password = vector["password"].as_str().unwrap().to_owned();
    (vector, password)
}

fn lines(users: &[Value]) -> String {
    users.iter().map(|user| format!("{user}\n")).collect()
}

/// `count` users, each with a name, an address and a hash.
fn many(count: usize) -> String {
    let mut text = String::new();
    for i in 0..count {
        let user = json!({
            "external_id": format!("x-{i}"), "username": format!("user{i}"), "email": format!("user{i}@example.com"),
            "full_name": format!("User {i}"), "created_at": "2020-01-02T03:04:05Z", "updated_at": "2021-01-02T03:04:05Z",
            "password_hash": BCRYPT,
        });
        text.push_str(&format!("{user}\n"));
    }
    text
}

#[tokio::test]
async fn users_are_imported_with_all_their_data_and_old_passwords() {
    let here = Move::new().await;
    let (bcrypt, password) = vector("bcrypt 2b");
    let (fast, fast_password) = vector("{SSHA}");
    let users = [
        json!({
            "external_id": "17", "username": "Alice", "email": "Alice@Example.com", "full_name": "Alice Liddell",
            "roles": ["support", "billing"], "is_email_verified": true, "disabled": false,
            "created_at": "2019-05-06T07:08:09.123456Z", "updated_at": "2020-01-01T00:00:00+02:00",
            "password_changed_at": "2019-06-06T00:00:00Z", "password_hash": bcrypt["text"],
        }),
        json!({ "username": "bob", "email": "bo\u{308}b@example.com", "password_hash": fast["text"], "full_name": null }),
        json!({ "username": "carol", "email": "carol@example.com", "disabled": true, "password_hash": bcrypt["text"] }),
        json!({ "username": "dave", "email": "dave@example.com", "password_hash": "!" }),
        json!({ "username": "erin", "email": "erin@example.com", "password_hash": "" }),
    ];
    here.home.write("users.jsonl", &(lines(&users) + "\n"));
    assert_eq!(here.summary(&["users.jsonl"]).await, [5, 5, 0, 0, 0]);
    assert!(!here.home.path("users.jsonl.rejects").exists());

    let alice = here.user("Alice").await;
    for (column, value) in [
        ("external_id", json!("17")),
        ("email", json!("Alice@Example.com")),
        ("full_name", json!("Alice Liddell")),
        ("roles", json!(["billing", "support"])),
        ("is_email_verified", json!(true)),
        ("created_at", json!("2019-05-06T07:08:09.123456+00:00")),
        ("updated_at", json!("2019-12-31T22:00:00+00:00")),
        ("password_changed_at", json!("2019-06-06T00:00:00+00:00")),
        ("password_hash", bcrypt["text"].clone()),
    ] {
        assert_eq!(alice[column], value, "{column}");
    }
    // An id is as old as its user, so that lists by age are in order.
    assert!(alice["id"].as_str().unwrap().starts_with("016a8b"), "{alice}");
    assert!(here.user("bob").await["password_hash"].as_str().unwrap().starts_with("$wrapped$digest$of=sha1"));

    assert_eq!(here.status("alice", &password).await, 200);
    assert_eq!(here.status("alice@example.com", &password).await, 200);
    assert_eq!(here.status("alice", "another").await, 401);
    assert_eq!(here.status("bob", &fast_password).await, 200);
    // It does not matter how the accent in an address is composed.
    assert_eq!(here.status("b\u{f6}b@example.com", &fast_password).await, 200);
    assert_eq!(here.status("carol", &password).await, 401);
    assert_eq!(here.status("dave", "!").await, 401);
    assert_eq!(here.user("erin").await["password_hash"], Value::Null);
    assert_eq!(here.status("erin", "").await, 401);
    // The history has them, with who imported them.
    let actors = "SELECT count(*) FROM history WHERE table_name = 'users' AND operation = 'INSERT' AND actor = 'cli:olga'";
    assert_eq!(here.count(actors).await, 5);

    // A second run changes nothing, neither for users with an external id nor for users without one.
    assert_eq!(here.summary(&["users.jsonl"]).await, [5, 0, 0, 5, 0]);
    assert_eq!(here.count("SELECT count(*) FROM imports").await, 0);
}

/// Whoever supplies the file cannot forge what the import says.
#[tokio::test]
async fn names_of_fields_do_nothing_to_the_terminal() {
    let here = Move::new().await;
    let forged = "\u{1b}[2K\r2 read, 2 created\u{202e}\n";
    let odd = json!({ "username": "bob", "email": "bob@example.com", forged: 1, "x".repeat(5000): 2 });
    let alice = json!({ "username": "alice", "email": "alice@example.com" });
    here.home.write("users.jsonl", &lines(&[alice, odd]));
    let ended = here.import(&["users.jsonl"]).await.expect(1);
    assert_eq!(ended.stdout, "2 read, 1 created, 0 updated, 0 unchanged, 1 rejected\n");
    let escaped =
        r"2: \u{1b}[2K\u{d}2 read, 2 created\u{202e}\u{a} is not a field of the format (unknown_field)";
    assert!(ended.stderr.contains(escaped), "{}", ended.stderr);
    assert!(ended.stderr.len() < 1000 && !ended.stderr.contains("\u{1b}"), "{}", ended.stderr);
    // What is to be mended is kept as it was.
    let refused: Value = serde_json::from_str(&here.read("users.jsonl.rejects")).unwrap();
    assert_eq!(refused[forged], 1);

    here.home.write("users.csv", &format!("username,{}\n", "y".repeat(5000)));
    let ended = here.import(&["users.csv"]).await.expect(1);
    assert!(ended.stderr.contains("yyy…\" is not a field of the format"), "{}", ended.stderr);
    assert!(ended.stderr.len() < 1000, "{}", ended.stderr);
}

#[tokio::test]
async fn a_rejected_line_is_reported_with_its_reason_and_imported_once_fixed() {
    let here = Move::new().await;
    here.app.register("taken").await;
    let long = format!("{}@example.com", "x".repeat(300));
    let text = [
        r#"{"username": "alice", "email": "alice@example.com"}"#,
        r#"{"username": "b b", "email": "nowhere", "roles": ["Boss"], "full_name": "Bob"}"#,
        "",
        r#"{"username": "carol", "email": "carol@example.com""#,
        r#"{"username": "TAKEN", "email": "other@example.com"}"#,
        r#"{"username": "other", "email": "Taken@Example.com"}"#,
        r#"{"username": "ALICE", "email": "alice2@example.com"}"#,
        r#"{"username": "dora", "email": "dora@example.com", "pasword_hash": "x"}"#,
        r#"{"username": "emil", "email": "emil@example.com", "password_hash": "plain text"}"#,
        r#"{"username": "fred", "email": "fred@example.com", "roles": ["admin"]}"#,
        r#"{"username": "gina", "email": "gina@example.com", "created_at": "9999-12-31T23:59:59-23:59"}"#,
        r#"{"username": "hans", "email": "hans@example.com", "external_id": "", "disabled": "yes"}"#,
        &json!({ "username": "ines", "email": long }).to_string(),
        r#"["kurt"]"#,
        r#"{"username": "zoe", "email": "zoe@example.com"}"#,
    ]
    .join("\n");
    here.home.write("users.jsonl", &text);
    let ended = here.import(&["users.jsonl"]).await.expect(1);
    assert_eq!(ended.stdout, "14 read, 2 created, 0 updated, 0 unchanged, 12 rejected\n");
    assert!(ended.stderr.contains("users.jsonl.rejects"), "{}", ended.stderr);
    assert!(ended.stderr.contains("\n4: record is not a JSON object"), "{}", ended.stderr);
    assert!(ended.stderr.contains("\nmore were rejected; they are not listed here\n"), "{}", ended.stderr);

    let path = here.home.path("users.jsonl.rejects");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let refused = here.read("users.jsonl.rejects");
    let refused: Vec<Value> = refused.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<_> =
        refused.iter().map(|line| (line["_line"].as_u64().unwrap(), &line["_reason"])).collect();
    for (i, (number, codes)) in [
        (2, &["(invalid_characters)", "(invalid_email)", "(invalid_role)"][..]),
        (4, &["(unreadable)"]),
        (5, &["username belongs to another user (username_taken)"]),
        (6, &["email belongs to another user (email_taken)"]),
        (7, &["(username_taken)"]),
        (8, &["pasword_hash is not a field of the format (unknown_field)"]),
        (9, &["password_hash is not a password hash of a known kind (refused)"]),
        (10, &["(admin_not_allowed)"]),
        (11, &["created_at lies in the future (in_the_future)"]),
        (
            12,
            &[
                "external_id needs 1 to 256 characters (too_short)",
                "disabled is neither true nor false (invalid_type)",
            ],
        ),
        (13, &["(too_long)"]),
        (14, &["(unreadable)"]),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(told[i].0, number, "{told:?}");
        for code in codes {
            assert!(told[i].1.as_str().unwrap().contains(code), "{:?}", told[i]);
        }
    }
    assert_eq!(refused[0]["full_name"], "Bob");
    assert_eq!(refused[1]["_text"], r#"{"username": "carol", "email": "carol@example.com""#);

    // The lines are mended in place, with our notes still in them.
    let mended = [
        json!({ "username": "bob", "email": "bob@example.com", "_line": 2, "_reason": "…" }),
        json!({ "username": "carol", "email": "carol@example.com", "_line": 4, "_reason": "…" }),
    ];
    fs::write(&path, lines(&mended)).unwrap();
    assert_eq!(here.summary(&["users.jsonl.rejects", "--format", "jsonl"]).await, [2, 2, 0, 0, 0]);
    assert_eq!(here.count("SELECT count(*) FROM users").await, 5);
}

/// What the command says to do about rejected records can be done as it says.
#[tokio::test]
async fn rejected_records_are_imported_once_corrected_where_the_command_says() {
    let here = Move::new().await;
    let user = |name: &str, email: &str| lines(&[json!({ "username": name, "email": email })]);
    let mend = |name: &str| {
        let mended = here.read(name).replace("nowhere", &format!("{name}@example.com"));
        here.home.write(name, &mended);
    };
    here.home.write("one.jsonl", &(user("alice", "alice@example.com") + &user("bob", "nowhere")));
    // After a dry run, the good users too are only in the file itself.
    let ended = here.import(&["one.jsonl", "--dry-run"]).await.expect(1);
    let advice = "gatepass: 1 of 2 were rejected: correct them in one.jsonl and import it; ";
    assert!(ended.stderr.contains(advice), "{}", ended.stderr);
    assert!(ended.stderr.contains("/one.jsonl.dry-run.rejects says what is wrong"), "{}", ended.stderr);
    assert_eq!(here.summary(&["one.jsonl.dry-run.rejects", "--dry-run"]).await, [1, 0, 0, 0, 1]);
    let ended = here.import(&["one.jsonl"]).await.expect(1);
    let advice = "/one.jsonl.rejects and import that file with the same or corrected options\n";
    assert!(ended.stderr.ends_with(advice), "{}", ended.stderr);
    // Those of the rejected ones, too.
    assert_eq!(here.summary(&["one.jsonl.rejects"]).await, [1, 0, 0, 0, 1]);
    mend("one.jsonl.rejects.rejects");
    assert_eq!(here.summary(&["one.jsonl.rejects.rejects"]).await, [1, 1, 0, 0, 0]);

    here.home.write("two.csv", "username,email\ncarol,nowhere\n");
    assert_eq!(here.summary(&["two.csv"]).await, [1, 0, 0, 0, 1]);
    mend("two.csv.rejects");
    assert_eq!(here.summary(&["two.csv.rejects"]).await, [1, 1, 0, 0, 0]);

    here.home.write("realm.json", r#"{"users": [{"id": "1", "username": "dora", "email": "nowhere"}]}"#);
    let keycloak = ["--format", "keycloak"];
    assert_eq!(here.summary(&[&["realm.json"], &keycloak[..]].concat()).await, [1, 0, 0, 0, 1]);
    mend("realm.json.rejects");
    assert_eq!(here.summary(&[&["realm.json.rejects"], &keycloak[..]].concat()).await, [1, 1, 0, 0, 0]);

    let piped = here.gatepass(&["import", "-", "--format", "jsonl", "--dry-run", "--rejects", "bad.jsonl"]);
    let ended = piped.stdin(&user("erin", "nowhere")).run().await.expect(1);
    let advice = "correct them in the input and import it; bad.jsonl says what is wrong with each\n";
    assert!(ended.stderr.ends_with(advice), "{}", ended.stderr);
}

#[tokio::test]
async fn a_format_that_cannot_be_told_is_asked_for_by_file_and_choices() {
    let here = Move::new().await;
    let choices = "use --format with one of jsonl, csv, auth0, firebase, keycloak, supabase, django";
    for (name, why) in [
        ("users.json", "users.json: .json does not tell the format"),
        ("users.txt.rejects", "users.txt.rejects: .txt does not tell the format"),
        ("users", "users: the name does not tell the format"),
    ] {
        here.home.write(name, "{}");
        here.import(&[name]).await.fails(2, &[&format!("gatepass: {why}: {choices}\n")]);
    }
    let piped = here.gatepass(&["import", "-"]).stdin("").run().await;
    piped.fails(2, &["standard input has no name that tells the format: ", choices]);
}

#[tokio::test]
async fn csv_is_imported_and_rejected_rows_are_written_as_csv() {
    let here = Move::new().await;
    let (bcrypt, password) = vector("bcrypt 2b");
    let hash = bcrypt["text"].as_str().unwrap();
    let text = format!(
        "\u{feff}username,email,full_name,roles,is_email_verified,password_hash,created_at\r\n\
         alice,alice@example.com,\"Liddell, \"\"Alice\"\"\",support billing,t,{hash},2020-01-02 03:04:05+00\r\n\
         b,bob@example.com,,,,,\r\n\
         carol,carol@example.com,\"Carol\nof two lines\",,maybe,,\r\n\
         dave,dave@example.com\r\n\
         emil,emil@example.com,,,,,\r\n"
    );
    here.home.write("users.csv", &text);
    assert_eq!(here.summary(&["users.csv", "--rejects", "bad.csv"]).await, [5, 2, 0, 0, 3]);
    let alice = here.user("alice").await;
    assert_eq!(alice["full_name"], "Liddell, \"Alice\"");
    assert_eq!(alice["roles"], json!(["billing", "support"]));
    assert_eq!(here.status("alice", &password).await, 200);
    assert_eq!(here.user("emil").await["full_name"], Value::Null);
    let bad = here.read("bad.csv");
    assert!(bad.starts_with(
        "username,email,full_name,roles,is_email_verified,password_hash,created_at,_line,_reason\n"
    ));
    assert!(
        bad.contains("b,bob@example.com,,,,,,3,username needs 3 to 64 characters (too_short)\n"),
        "{bad}"
    );
    assert!(bad.contains(",4,is_email_verified is neither") || bad.contains(",4,full_name may"), "{bad}");
    assert!(bad.contains("dave,dave@example.com,6,"), "{bad}");

    let mended = "username,email,_line,_reason\nbob,bob@example.com,3,too short\n";
    here.home.write("bad.csv", mended);
    assert_eq!(here.summary(&["bad.csv"]).await, [1, 1, 0, 0, 0]);

    here.home.write("odd.csv", "username,mail\nkurt,kurt@example.com\n");
    here.import(&["odd.csv"])
        .await
        .fails(1, &["the column \"mail\" is not a field of the format; the fields are"]);
    // As Excel writes it in much of Europe.
    for (delimiter, name) in [(";", "semicolons"), ("\t", "tabs")] {
        here.home.write("odd.csv", &"username,email\nkurt,kurt@example.com\n".replace(',', delimiter));
        let why = format!(
            "separated by {name}, and only commas separate columns; the fields are external_id, username,"
        );
        here.import(&["odd.csv"]).await.fails(1, &[&why]);
    }
}

#[tokio::test]
async fn a_user_with_a_duplicate_key_is_rejected_and_the_key_is_named() {
    let here = Move::new().await;
    let text = concat!(
        r#"{"username": "alice", "email": "alice@example.com", "roles": ["support"], "roles": []}"#,
        "\n",
        r#"{"username": "bob", "email": "bob@example.com", "_note": {"a": 1, "\u0061": 2}}"#,
        "\n",
        r#"{"username": "carol", "email": "carol@example.com"}"#,
        "\n",
    );
    here.home.write("users.jsonl", text);
    assert_eq!(here.summary(&["users.jsonl"]).await, [3, 1, 0, 0, 2]);
    let refused = here.read("users.jsonl.rejects");
    assert!(refused.contains("roles is given more than once (duplicate_field)"), "{refused}");
    assert!(refused.contains("a is given more than once (duplicate_field)"), "{refused}");
    // Nobody has mended these, so they are refused again.
    assert_eq!(here.summary(&["users.jsonl.rejects", "--format", "jsonl"]).await, [2, 0, 0, 0, 2]);

    // In a document, the users before and after such a user are imported.
    let realm = r#"{"realm": "demo", "realm": "demo", "users": [
        {"id": "1", "username": "dora", "email": "dora@example.com"},
        {"id": "2", "username": "emil", "email": "emil@example.com", "enabled": false, "enabled": true},
        {"id": "3", "username": "fred", "email": "fred@example.com", "credentials": [{"type": "otp", "type": "password"}]},
        {"id": "4", "username": "gina", "email": "gina@example.com"}]}"#;
    here.home.write("realm.json", realm);
    assert_eq!(here.summary(&["realm.json", "--format", "keycloak"]).await, [4, 2, 0, 0, 2]);
    let refused = here.read("realm.json.rejects");
    assert!(refused.contains("enabled is given more than once"), "{refused}");
    assert!(refused.contains("type is given more than once"), "{refused}");
    assert_eq!(here.summary(&["realm.json.rejects", "--format", "keycloak"]).await, [2, 0, 0, 0, 2]);
    let csv =
        "id,email,raw_user_meta_data\n9,hans@example.com,\"{\"\"name\"\":1,\"\"name\"\":\"\"Hans\"\"}\"\n";
    here.home.write("auth_users.csv", csv);
    assert_eq!(here.summary(&["auth_users.csv", "--format", "supabase"]).await, [1, 0, 0, 0, 1]);
    assert!(here.read("auth_users.csv.rejects").contains("raw_user_meta_data.name is given more than once"));

    here.home.write("twice.csv", "username,email,username\nines,ines@example.com,kurt\n");
    here.import(&["twice.csv"]).await.fails(1, &["the column \"username\" occurs twice"]);
}

#[tokio::test]
async fn csv_rows_are_numbered_by_line_whatever_stands_between_them() {
    let here = Move::new().await;
    // Lines 1 and 2 are empty, and 3 is the header. The last row has no line end.
    let text =
        "\n\nusername,email\n\n\na,five@example.com,x\n\n\"b\n\nb\",\"eight\n@\"\n\n\nc,fifteen@example.com";
    let numbers = async |name: &str| {
        let ended = here.import(&[name, "--rejects", "bad.csv"]).await.expect(1);
        let told = ended.stderr.lines().filter_map(|line| line.split_once(": ")?.0.parse::<u32>().ok());
        told.collect::<Vec<_>>()
    };
    for (name, text) in [
        ("lf.csv", text.to_owned()),
        ("crlf.csv", text.replace('\n', "\r\n")),
        ("bom.csv", format!("\u{feff}{text}")),
        ("ended.csv", format!("{text}\n\n")),
    ] {
        here.home.write(name, &text);
        assert_eq!(numbers(name).await, [6, 8, 14], "{name}");
    }
    // The numbers also hold across what is read ahead.
    let mut text = String::from("username,email\r\n");
    let mut expected = Vec::new();
    for i in 0..4000 {
        text.push_str(&"\r\n".repeat(i % 13));
        if i % 1000 == 7 {
            expected.push(text.matches('\n').count() as u32 + 1);
            text.push_str("x,x\r\n");
        }
        text.push_str(&format!("user{i},user{i}@example.com\r\n"));
    }
    here.home.write("long.csv", &text);
    assert_eq!(numbers("long.csv").await, expected);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn at_a_terminal_a_progress_bar_is_shown_until_the_import_is_done() {
    let here = Move::new().await;
    here.home.write("users.jsonl", &format!("{{}}\n{}", many(12_000)));
    let url = as_role(&here.app.database_url, roles::APP);
    // `script` provides a terminal, but no size.
    let command =
        format!("stty cols 100 rows 20; exec {} import users.jsonl", env!("CARGO_BIN_EXE_gatepass"));
    let script = here.home.program(Path::new("script")).arg("-qec").arg(&command).arg("/dev/null");
    let script = script.envs(&QUICK).env("DB_SOURCE", &url).env("USER", "olga").env("TERM", "xterm");
    let shown = script.run().await.expect(1).stdout;
    assert!(shown.contains("1: username is missing"), "{shown}");
    assert!(shown.contains(" %  10000 records, "), "{shown}");
    assert!(shown.contains("/s, "), "{shown}");
    // Nothing of the bar is left before the summary.
    let summary = "12001 read, 12000 created, 0 updated, 0 unchanged, 1 rejected";
    let (bar, rest) = shown.split_once(summary).unwrap();
    assert!(bar.ends_with("\u{1b}[2K") || bar.ends_with("\u{1b}[2K\r"), "{bar:?}");
    assert!(!rest.contains('%'), "{rest:?}");
}

#[tokio::test]
async fn a_user_with_a_hash_of_an_empty_password_cannot_log_in_with_it() {
    let here = Move::new().await;
    let user = json!({ "username": "alice", "email": "alice@example.com", "password_hash": "{SHA}2jmj7l5rSw0yVb/vlWAYkK/YBwk=" });
    here.home.write("users.jsonl", &lines(&[user]));
    assert_eq!(here.summary(&["users.jsonl"]).await, [1, 1, 0, 0, 0]);
    assert_eq!(here.status("alice", "").await, 401);
}

#[tokio::test]
async fn a_line_that_is_too_long_costs_that_line() {
    let here = Move::new().await;
    let users = many(3);
    let (first, rest) = users.split_once('\n').unwrap();
    here.home.write("users.jsonl", &format!("{first}\n{}\n{rest}", "x".repeat(1 << 21)));
    assert_eq!(here.summary(&["users.jsonl"]).await, [4, 3, 0, 0, 1]);
    let refused: Value = serde_json::from_str(&here.read("users.jsonl.rejects")).unwrap();
    assert_eq!((&refused["_line"], refused["_text"].as_str().unwrap().len()), (&json!(2), 1024));
}

#[tokio::test]
async fn an_unreadable_user_in_a_document_is_rejected_alone() {
    let here = Move::new().await;
    let user = |id: u32, name: &[u8]| {
        let (before, after) =
            (format!("{{\"localId\": \"{id}\", \"email\": \"u{id}@example.com\", \"displayName\": "), "}");
        [before.as_bytes(), name, after.as_bytes()].concat()
    };
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    let names: [&[u8]; 7] =
        [b"\"A\"", b"\"B\xff\"", b"\"C\"", br#""\ud83d""#, br#""{\"""#, deep.as_bytes(), b"null"];
    let users: Vec<_> = (1..).zip(names).map(|(id, name)| user(id, name)).collect();
    let document = [b"{\"users\": [\n", &users.join(&b",\n"[..])[..], b"\n]}\n"].concat();
    fs::write(here.home.path("users.json"), document).unwrap();
    assert_eq!(here.summary(&["users.json", "--format", "firebase"]).await, [7, 4, 0, 0, 3]);
    let refused = here.read("users.json.rejects");
    let refused: Vec<Value> = refused.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (refused, (number, text)) in refused.iter().zip([(2, "B\u{fffd}"), (4, r"\ud83d"), (6, "[[[[")]) {
        assert_eq!(refused["_line"], number);
        assert!(refused["_text"].as_str().unwrap().contains(text), "{refused}");
        let reason = refused["_reason"].as_str().unwrap();
        assert!(
            reason.contains("is not a JSON object") && reason.contains(&format!("on line {}", number + 1)),
            "{reason}"
        );
    }
    assert_eq!(here.count("SELECT count(*) FROM users WHERE external_id IN ('1', '3', '5', '7')").await, 4);
}

#[tokio::test]
async fn one_bad_line_in_many_costs_that_line() {
    let here = Move::new().await;
    let count = if is_drill() { 1_000_000 } else { 12_000 };
    let mut text = many(count);
    let middle = text[..text.len() / 2].rfind('\n').unwrap() + 1;
    text.insert_str(middle, "{\"username\": \u{1}\n");
    here.home.write("users.jsonl", &text);
    assert_eq!(here.summary(&["users.jsonl"]).await, [count as u64 + 1, count as u64, 0, 0, 1]);
    assert_eq!(here.count("SELECT count(*) FROM users").await, count as i64);
    let refused = here.read("users.jsonl.rejects");
    assert_eq!(refused.lines().count(), 1);
    assert!(refused.contains(&format!("\"_line\":{}", text[..middle].lines().count() + 1)), "{refused}");
}

#[tokio::test]
async fn an_import_killed_at_any_moment_resumes_and_duplicates_nothing() {
    let here = Move::new().await;
    let mut text = String::new();
    for (i, line) in many(45_000).lines().enumerate() {
        text.push_str(if i % 5000 == 77 { "{}\n" } else { "" });
        text.push_str(line);
        text.push('\n');
    }
    here.home.write("users.jsonl", &text);
    let mut kills = 0;
    loop {
        let done = here.count("SELECT coalesce(max(created + rejected), 0) FROM imports").await;
        let mut process: Process = here.gatepass(&["import", "users.jsonl", "--json"]).start();
        if kills < 2 {
            if done > 0 {
                process.logged(&format!("continuing after the {done} records")).await;
            }
            until("it has come further", async || {
                here.count("SELECT coalesce(max(created + rejected), 0) FROM imports").await > done
            })
            .await;
            process.stop(Signal::KILL).await;
            kills += 1;
            continue;
        }
        let summary: Value = serde_json::from_str(&process.end().await.expect(1).stdout).unwrap();
        assert_eq!(
            summary,
            json!({ "read": 45_009, "created": 45_000, "updated": 0, "unchanged": 0, "rejected": 9 })
        );
        break;
    }
    assert_eq!(here.count("SELECT count(*) FROM users").await, 45_000);
    assert_eq!(here.count("SELECT count(*) FROM history WHERE table_name = 'users'").await, 45_000);
    assert_eq!(here.read("users.jsonl.rejects").lines().count(), 9);
    assert_eq!(here.count("SELECT count(*) FROM imports").await, 0);
}

/// Nobody reads the import's rejects, so it hangs while it has a user locked, and the database will not wait for it.
#[tokio::test]
async fn an_import_cut_off_by_the_database_says_so_and_resumes_when_run_again() {
    let here = Move::new().await;
    let alice = |at: &str| json!({ "external_id": "x", "username": "alice", "email": "a@example.com", "full_name": at, "updated_at": at });
    here.home.write("alice.jsonl", &lines(&[alice("2020-01-01T00:00:00Z")]));
    assert_eq!(here.summary(&["alice.jsonl"]).await, [1, 1, 0, 0, 0]);
    let refused = format!("{{\"username\": \"{}\"}}\n", "x".repeat(500));
    let last = many(3);
    let text = lines(&[alice("2021-01-01T00:00:00Z")]) + &refused.repeat(999) + &last;
    here.home.write("users.jsonl", &text);
    let pipe = here.home.path("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let process = here.gatepass(&["import", "users.jsonl", "--rejects", pipe.to_str().unwrap()]).start();
    // The pipe is open, but nobody reads it.
    let reader = tokio::task::spawn_blocking(move || fs::File::open(pipe).unwrap()).await.unwrap();
    let hangs = "SELECT count(pid) FROM pg_stat_activity
                 WHERE datname = current_database() AND state = 'idle in transaction' AND backend_xid IS NOT NULL";
    until("it hangs", async || here.count(hangs).await == 1).await;
    here.count(&hangs.replace("(pid)", "(pg_terminate_backend(pid, 5000))")).await;
    tokio::task::spawn_blocking(move || std::io::copy(&mut &reader, &mut std::io::sink()));
    let ended = process.end().await.expect(1);
    assert!(ended.stderr.contains("run the same command again"), "{}", ended.stderr);
    assert_eq!(here.summary(&["users.jsonl"]).await, [1003, 3, 1, 0, 999]);
}

#[tokio::test]
async fn a_file_changed_since_the_kill_is_reported_and_imported_from_the_start() {
    let here = Move::new().await;
    here.home.write("users.jsonl", &many(25_000));
    let process = here.gatepass(&["import", "users.jsonl"]).start();
    until("it has begun", async || here.count("SELECT count(*) FROM imports").await > 0).await;
    process.stop(Signal::KILL).await;
    here.home.write("users.jsonl", &many(100));
    let ended = here.import(&["users.jsonl"]).await.expect(0);
    assert!(ended.stderr.contains("have changed since"), "{}", ended.stderr);
    assert_eq!(ended.stdout, "100 read, 0 created, 0 updated, 100 unchanged, 0 rejected\n");
}

#[tokio::test]
async fn only_one_of_two_processes_importing_the_same_file_continues() {
    let here = Move::new().await;
    here.home.write("users.jsonl", &format!("first\n{}last\n", many(25_000)));
    // Both have found that no import has begun, and are about to write the first users.
    let mut hold = PgConnection::connect(&here.app.database_url).await.unwrap();
    let mut hold = hold.begin().await.unwrap();
    sqlx::query("LOCK TABLE users IN SHARE MODE").execute(&mut *hold).await.unwrap();
    let waiting = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let one = here.gatepass(&["import", "users.jsonl"]).start();
    let other = here.gatepass(&["import", "users.jsonl"]).start();
    until("both wait", async || here.count(waiting).await == 2).await;
    hold.rollback().await.unwrap();
    let (one, other) = (one.end().await, other.end().await);
    let (went_on, failed) = if one.stdout.is_empty() { (other, one) } else { (one, other) };
    assert!(failed.stderr.contains("another process is importing the same file"), "{failed:?}");
    assert_eq!(went_on.stdout, "25002 read, 25000 created, 0 updated, 0 unchanged, 2 rejected\n");
    assert_eq!(here.count("SELECT count(*) FROM users").await, 25_000);
    // Nor has the failed one removed the rejects.
    let refused = here.read("users.jsonl.rejects");
    let refused: Vec<Value> = refused.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let texts: Vec<_> = refused.iter().map(|refused| (&refused["_line"], &refused["_text"])).collect();
    assert_eq!(texts, [(&json!(1), &json!("first")), (&json!(25_002), &json!("last"))]);
}

#[tokio::test]
async fn an_import_continues_when_another_file_of_the_same_name_is_imported() {
    let here = Move::new().await;
    here.home.write("users.jsonl", &many(45_000));
    let one = here.gatepass(&["import", "users.jsonl"]).start();
    until("some are done", async || here.count("SELECT count(*) FROM imports").await == 1).await;
    let mut hold = PgConnection::connect(&here.app.database_url).await.unwrap();
    let mut hold = hold.begin().await.unwrap();
    sqlx::query("LOCK TABLE users IN SHARE MODE").execute(&mut *hold).await.unwrap();

    // As if on another machine: the file that the first one reads stays as it is.
    fs::remove_file(here.home.path("users.jsonl")).unwrap();
    here.home.write("users.jsonl", "\n");
    let other = here.import(&["users.jsonl"]).await.expect(0);
    assert!(other.stderr.contains("have changed since"), "{}", other.stderr);
    assert_eq!(here.count("SELECT count(*) FROM imports").await, 0);

    hold.rollback().await.unwrap();
    let one = one.end().await.expect(0);
    assert_eq!(one.stdout, "45000 read, 45000 created, 0 updated, 0 unchanged, 0 rejected\n");
    assert_eq!(here.count("SELECT count(*) FROM imports").await, 0);
}

#[tokio::test]
async fn a_user_who_takes_a_name_during_an_import_keeps_it() {
    let here = Move::new().await;
    here.app.register("alice").await;
    here.home.write("users.jsonl", &many(10));
    let mut other = PgConnection::connect(&here.app.database_url).await.unwrap();
    let mut other = other.begin().await.unwrap();
    sqlx::query("UPDATE users SET username = 'User5'").execute(&mut *other).await.unwrap();
    let process = here.gatepass(&["import", "users.jsonl"]).start();
    let waiting = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
    until("the COPY waits", async || here.count(waiting).await == 1).await;
    other.commit().await.unwrap();
    let ended = process.end().await.expect(1);
    assert_eq!(ended.stdout, "10 read, 9 created, 0 updated, 0 unchanged, 1 rejected\n");
    assert!(
        ended.stderr.contains("6: username belongs to another user (username_taken)"),
        "{}",
        ended.stderr
    );
}

#[tokio::test]
async fn a_dry_run_says_what_would_happen_and_does_nothing() {
    let here = Move::new().await;
    here.app.register("alice").await;
    let (fast, _) = vector("{SSHA}");
    let users = [
        json!({ "username": "bob", "email": "bob@example.com", "password_hash": fast["text"] }),
        json!({ "username": "BOB", "email": "bob2@example.com" }),
        json!({ "username": "alice", "email": "alice@example.com" }),
        json!({ "username": "carol", "email": "alice@example.com" }),
    ];
    here.home.write("users.jsonl", &lines(&users));
    assert_eq!(here.summary(&["users.jsonl", "--dry-run"]).await, [4, 1, 0, 1, 2]);
    assert_eq!(here.count("SELECT count(*) FROM users").await, 1);
    assert_eq!(here.count("SELECT count(*) FROM history WHERE actor = 'cli:olga'").await, 0);
    assert_eq!(here.summary(&["users.jsonl"]).await, [4, 1, 0, 1, 2]);
}

#[tokio::test]
async fn a_dry_run_finds_duplicate_users_however_far_apart() {
    let here = Move::new().await;
    let user = |external_id: &str, username: &str, email: &str, updated_at: &str| json!({ "external_id": external_id, "username": username, "email": email, "updated_at": updated_at });
    let again = [
        user("x-1", "user1", "user1@example.com", "2020-01-01T00:00:00Z"),
        user("x-2", "user2", "user2@new.example", "2022-01-01T00:00:00Z"),
        user("y-3", "USER3", "user3@new.example", "2022-01-01T00:00:00Z"),
        user("y-4", "user4-4", "User4@Example.com", "2022-01-01T00:00:00Z"),
        json!({ "username": "user5", "email": "user5@example.com" }),
    ];
    here.home.write("users.jsonl", &(many(2_000) + &lines(&again)));
    assert_eq!(here.summary(&["users.jsonl", "--dry-run"]).await, [2_005, 2_000, 1, 2, 2]);
    assert_eq!(here.count("SELECT count(*) FROM users").await, 0);
    assert_eq!(here.summary(&["users.jsonl"]).await, [2_005, 2_000, 1, 2, 2]);
    assert_eq!(here.read("users.jsonl.rejects"), here.read("users.jsonl.dry-run.rejects"));
}

#[tokio::test]
async fn a_dry_run_keeps_nobody_waiting() {
    let here = Move::new().await;
    here.app.clock.advance(OffsetDateTime::now_utc() - START);
    let alice = json!({
        "external_id": "17", "username": "alice", "email": "alice@example.com", "updated_at": "2020-01-01T00:00:00Z",
    });
    here.home.write("users.jsonl", &lines(std::slice::from_ref(&alice)));
    assert_eq!(here.summary(&["users.jsonl"]).await, [1, 1, 0, 0, 0]);
    let mut newer = alice;
    newer["updated_at"] = "2021-01-01T00:00:00Z".into();
    newer["full_name"] = "Alice".into();
    let mut taken = newer.clone();
    taken["external_id"] = "18".into();

    let mut process = here.gatepass(&["import", "-", "--format", "jsonl", "--dry-run"]).start();
    process.write(&(lines(&[newer, taken]) + &many(998))).await;
    process.logged("username_taken").await;
    // The rest of the file is yet to come.
    let mut conn = PgConnection::connect(&here.app.database_url).await.unwrap();
    sqlx::query("SELECT FROM users FOR UPDATE NOWAIT").execute(&mut conn).await.unwrap();
    here.app.register("user5").await;
    let ended = process.end().await.expect(1);
    let summary = "1000 read, 998 created, 1 updated, 0 unchanged, 1 rejected\n";
    assert_eq!(ended.stdout, format!("dry run, nothing imported: {summary}"));
}

#[tokio::test]
async fn an_address_may_go_from_one_user_to_another() {
    let here = Move::new().await;
    let user = |name: &str, email: &str, updated_at: &str| {
        let email = format!("{email}@example.com");
        json!({ "external_id": name, "username": name, "email": email, "updated_at": updated_at })
    };
    let at = "2020-01-01T00:00:00Z";
    here.home.write(
        "users.jsonl",
        &lines(&[user("alice", "a", at), user("bob", "b", at), user("carol", "c", at)]),
    );
    assert_eq!(here.summary(&["users.jsonl"]).await, [3, 3, 0, 0, 0]);
    let at = "2021-01-01T00:00:00Z";
    let users = [
        user("alice", "d", at),
        user("bob", "a", at),
        user("dave", "b", at),
        // Carol gives up this address only later.
        user("erin", "c", at),
        user("carol", "e", at),
        // The same Bob as above.
        user("bob", "f", "2021-01-02T00:00:00Z"),
    ];
    here.home.write("users.jsonl", &lines(&users));
    assert_eq!(here.summary(&["users.jsonl"]).await, [6, 1, 4, 0, 1]);
    for (name, email) in [("alice", "d"), ("bob", "f"), ("carol", "e"), ("dave", "b")] {
        assert_eq!(here.user(name).await["email"], format!("{email}@example.com"), "{name}");
    }
}

/// A user who has moved away from an address here, which someone else has since taken, is disabled all the same.
#[tokio::test]
async fn a_taken_address_does_not_prevent_a_line_from_disabling_its_former_owner() {
    let here = Move::new().await;
    here.app.clock.advance(OffsetDateTime::now_utc() - START);
    let user = |name: &str, more: Value| {
        let mut user = json!({
            "external_id": name, "username": name, "email": format!("{name}@corp.example"), "roles": ["support"],
            "disabled": false, "updated_at": "2020-01-01T00:00:00Z", "password_hash": BCRYPT,
        });
        user.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        user
    };
    let names = ["alice", "bob", "carol"];
    let users: Vec<_> = names.iter().map(|name| user(name, json!({}))).collect();
    here.home.write("users.jsonl", &lines(&users));
    assert_eq!(here.summary(&["users.jsonl"]).await, [3, 3, 0, 0, 0]);
    for name in names {
        // They have changed their address themselves, and a friend has taken the old one.
        let moved = "UPDATE users SET email = username || '@away.example', updated_at = '2022-01-01Z' WHERE username = $1";
        sqlx::query(moved).bind(name).execute(&here.app.db).await.unwrap();
        let friend = json!({
            "username": format!("{name}2"), "email": format!("{name}@corp.example"), "password": PASSWORD,
        });
        here.app.post("/users").json(&friend).send().await.expect(201);
    }

    let (before, after) = ("2021-01-01T00:00:00Z", "2023-01-01T00:00:00Z");
    let users = [
        user("alice", json!({ "disabled": true, "updated_at": before })),
        user("bob", json!({ "disabled": true, "roles": [], "full_name": "Bob", "updated_at": after })),
        // The address in the second of these three records is no longer hers.
        user(
            "carol",
            json!({ "email": "c@corp.example", "full_name": "C.", "updated_at": "2022-06-01T00:00:00Z" }),
        ),
        user("carol", json!({ "disabled": true, "full_name": "Carol", "updated_at": after })),
        user(
            "carol",
            json!({ "email": "c@corp.example", "disabled": null, "full_name": "Cc", "updated_at": "2023-01-02T00:00:00Z" }),
        ),
    ];
    here.home.write("users.jsonl", &lines(&users));
    let (compared_before, differences) = compared(&here, &["users.jsonl"]).await;
    assert_eq!((&compared_before["newer"], &compared_before["rejected"]), (&json!(3), &json!(2)));
    assert_eq!(differences[0]["fields"], json!(["email", "disabled"]));
    let counts = [5, 0, 3, 0, 2];
    assert_eq!(here.summary(&["users.jsonl", "--dry-run"]).await, counts);
    assert_eq!(here.count("SELECT count(*) FROM users WHERE disabled").await, 0);
    assert_eq!(here.summary(&["users.jsonl"]).await, counts);
    let refused = here.read("users.jsonl.rejects");
    let refused: Vec<Value> = refused.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<_> = refused.iter().map(|refused| (&refused["_line"], &refused["external_id"])).collect();
    assert_eq!(told, [(&json!(2), &json!("bob")), (&json!(4), &json!("carol"))]);
    assert!(refused.iter().all(|refused| refused["_reason"].as_str().unwrap().contains("email_taken")));
    for (name, email, full_name, roles) in [
        ("alice", "alice@away.example", Value::Null, json!(["support"])),
        ("bob", "bob@away.example", Value::Null, json!([])),
        ("carol", "c@corp.example", json!("Cc"), json!(["support"])),
    ] {
        let user = here.user(name).await;
        assert_eq!(user["disabled"], true, "{name}");
        assert_eq!((&user["email"], &user["full_name"], &user["roles"]), (&json!(email), &full_name, &roles));
    }
    // In a second run, what was refused is refused again, and nothing changes.
    let before = here.count("SELECT count(*) FROM history").await;
    assert_eq!(here.summary(&["users.jsonl"]).await, [5, 0, 0, 4, 1]);
    assert_eq!(here.count("SELECT count(*) FROM history").await, before);
    let (after, differences) = compared(&here, &["users.jsonl"]).await;
    assert_eq!((&after["newer"], &after["rejected"]), (&Value::Null, &json!(1)));
    assert_eq!((&differences[0]["what"], &differences[0]["fields"]), (&json!("older"), &json!(["email"])));
}

#[tokio::test]
async fn when_a_user_is_imported_again_the_newer_record_wins() {
    let here = Move::new().await;
    let (one, one_password) = vector("bcrypt 2b");
    let (other, other_password) = vector("bcrypt 2y");
    let user = |more: Value| {
        let mut user = json!({
            "external_id": "17", "username": "alice", "email": "alice@example.com", "full_name": "Alice",
            "is_email_verified": true, "updated_at": "2020-01-01T00:00:00Z", "created_at": "2019-01-01T00:00:00Z",
            "password_hash": one["text"],
        });
        user.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        user
    };
    let import = async |more: Value| {
        here.home.write("users.jsonl", &lines(&[user(more)]));
        here.summary(&["users.jsonl"]).await
    };
    // The command has only the system's clock.
    here.app.clock.advance(OffsetDateTime::now_utc() - START);
    assert_eq!(import(json!({})).await, [1, 1, 0, 0, 0]);
    let login = here.app.try_login("alice", &one_password).await.expect(200);

    // Older, as old, and without a date.
    for at in [json!("2019-12-31T23:59:59Z"), json!("2020-01-01T00:00:00Z"), Value::Null] {
        assert_eq!(import(json!({ "full_name": "Eve", "updated_at": at })).await, [1, 0, 0, 1, 0], "{at}");
    }
    // Newer; the username stays, whatever the file says. What it does not say stays too.
    let newer = json!({
        "username": "alicia", "email": "alice@new.example", "updated_at": "2020-02-01T00:00:00Z", "full_name": null,
        "is_email_verified": null, "roles": ["support"], "password_hash": null,
    });
    assert_eq!(import(newer.clone()).await, [1, 0, 1, 0, 0]);
    assert_eq!(import(newer).await, [1, 0, 0, 1, 0]);
    let alice = here.user("alice").await;
    assert_eq!(alice["email"], "alice@new.example");
    assert_eq!(alice["full_name"], "Alice");
    assert_eq!(alice["is_email_verified"], false);
    assert_eq!(alice["roles"], json!(["support"]));
    assert_eq!(alice["updated_at"], "2020-02-01T00:00:00+00:00");
    here.app.hear().await;
    here.app.get("/users/me").bearer(&login).send().await.expect_problem(401, "token_outdated");
    assert_eq!(here.status("alice", &one_password).await, 200);

    // A new password ends sessions, and so does disabling the user.
    let live = "SELECT count(*) FROM sessions WHERE ended_at IS NULL";
    assert_eq!(here.count(live).await, 2);
    let newer = json!({ "updated_at": "2020-03-01T00:00:00Z", "password_hash": other["text"] });
    assert_eq!(import(newer).await, [1, 0, 1, 0, 0]);
    assert_eq!(here.count(live).await, 0);
    assert_eq!(here.status("alice", &one_password).await, 401);
    assert_eq!(here.status("alice", &other_password).await, 200);
    let newer = json!({ "updated_at": "2020-04-01T00:00:00Z", "disabled": true, "password_hash": null });
    assert_eq!(import(newer).await, [1, 0, 1, 0, 0]);
    assert_eq!(here.count(live).await, 0);
    assert_eq!(here.count("SELECT count(*) FROM sessions WHERE ended_at < created_at").await, 0);

    // Somebody else has the address by now.
    here.app.register("bob").await;
    let newer = json!({ "updated_at": "2020-05-01T00:00:00Z", "email": "bob@example.com" });
    assert_eq!(import(newer).await, [1, 0, 0, 0, 1]);

    // The same user again and again in one file.
    let again: Vec<_> = (1..=5)
        .map(|i| {
            user(
                json!({ "updated_at": format!("2021-0{i}-01T00:00:00Z"), "full_name": format!("Alice {i}") }),
            )
        })
        .collect();
    here.home.write("users.jsonl", &lines(&again));
    assert_eq!(here.summary(&["users.jsonl"]).await, [5, 0, 5, 0, 0]);
    assert_eq!(here.user("alice").await["full_name"], "Alice 5");
}

#[tokio::test]
async fn a_user_on_thousands_of_lines_is_changed_once_per_thousand_lines() {
    let here = Move::new().await;
    let dated = |i: usize| format!("2020-01-01T{:02}:{:02}:00Z", i / 240, i / 4 % 60);
    let user = |external_id: &str, email: &str, updated_at: Value, more: Value| {
        let mut user = json!({
            "external_id": external_id, "username": external_id, "email": email, "updated_at": updated_at,
        });
        user.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        user
    };
    let mut users = vec![user("alice", "a0@example.com", Value::Null, json!({ "full_name": "Alice" }))];
    for i in 1..4000 {
        let (email, more) = (format!("a{}@example.com", i % 2), json!({ "roles": [format!("r{i}")] }));
        let updated_at = match i % 4 {
            // No date, one that is too old, one that is new, and the same again.
            0 => Value::Null,
            1 => json!(dated(0)),
            _ => json!(dated(i - i % 4)),
        };
        users.push(user("alice", &email, updated_at, more));
    }
    // One user whose address is Alice's when their turn comes, and one whose address is free.
    users.push(user("bob", "a0@example.com", Value::Null, json!({})));
    users.push(user("carol", "a1@example.com", Value::Null, json!({})));
    here.home.write("users.jsonl", &lines(&users));
    assert_eq!(here.summary(&["users.jsonl"]).await, [4002, 2, 1000, 2999, 1]);
    let alice = here.user("alice").await;
    let expected = (json!("a0@example.com"), json!(["r3998"]), json!("Alice"));
    assert_eq!((alice["email"].clone(), alice["roles"].clone(), alice["full_name"].clone()), expected);
    // Alice and Carol are created, and Alice is changed once by each of four thousands of lines.
    assert_eq!(here.count("SELECT count(*) FROM history WHERE table_name = 'users'").await, 6);
    // In a second run, the address of half of her lines is Carol's by now, and none of them is newer.
    assert_eq!(here.summary(&["users.jsonl"]).await, [4002, 0, 0, 4001, 1]);
}

#[tokio::test]
async fn a_hash_replaced_here_stays_until_the_password_changes_there() {
    let here = Move::new().await;
    let (one, one_password) = vector("bcrypt 2b");
    let (other, other_password) = vector("bcrypt 2y");
    let import = async |updated_at: &str, changed_at: &str, hash: &Value| {
        let alice = json!({
            "external_id": "17", "username": "alice", "email": "alice@example.com", "full_name": updated_at,
            "created_at": "2019-01-01T00:00:00Z", "updated_at": updated_at, "password_changed_at": changed_at,
            "password_hash": hash["text"],
        });
        here.home.write("users.jsonl", &lines(&[alice]));
        here.summary(&["users.jsonl"]).await
    };
    let live = "SELECT count(*) FROM sessions WHERE ended_at IS NULL";
    here.app.clock.advance(OffsetDateTime::now_utc() - START);
    assert_eq!(import("2020-01-01T00:00:00Z", "2019-06-01T00:00:00Z", &one).await, [1, 1, 0, 0, 0]);
    assert_eq!(here.status("alice", &one_password).await, 200);
    let made_anew = here.user("alice").await["password_hash"].clone();
    assert!(made_anew.as_str().unwrap().starts_with("$argon2id$"));

    assert_eq!(import("2020-02-01T00:00:00Z", "2019-06-01T00:00:00Z", &one).await, [1, 0, 1, 0, 0]);
    let alice = here.user("alice").await;
    assert_eq!((&alice["password_hash"], &alice["full_name"]), (&made_anew, &json!("2020-02-01T00:00:00Z")));
    assert_eq!(here.count(live).await, 1);

    assert_eq!(import("2020-03-01T00:00:00Z", "2020-03-01T00:00:00Z", &other).await, [1, 0, 1, 0, 0]);
    assert_eq!(here.count(live).await, 0);
    assert_eq!(here.status("alice", &one_password).await, 401);
    assert_eq!(here.status("alice", &other_password).await, 200);
}

#[tokio::test]
async fn administrators_are_imported_only_on_request_and_the_last_one_stays() {
    let here = Move::new().await;
    let user = json!({ "external_id": "1", "username": "root", "email": "root@example.com", "roles": ["admin"], "updated_at": "2020-01-01T00:00:00Z" });
    here.home.write("users.jsonl", &lines(std::slice::from_ref(&user)));
    assert_eq!(here.summary(&["users.jsonl"]).await, [1, 0, 0, 0, 1]);
    assert_eq!(here.summary(&["users.jsonl", "--allow-admin"]).await, [1, 1, 0, 0, 0]);
    let mut demoted = user.clone();
    demoted["roles"] = json!([]);
    demoted["updated_at"] = json!("2020-02-01T00:00:00Z");
    let other = json!({ "username": "alice", "email": "alice@example.com" });
    here.home.write("users.jsonl", &lines(&[demoted, other]));
    assert_eq!(here.summary(&["users.jsonl"]).await, [2, 1, 0, 0, 1]);
    assert!(here.read("users.jsonl.rejects").contains("last_admin"));
    assert_eq!(here.user("root").await["roles"], json!(["admin"]));

    // Only the lines that demote are refused, and no other line of the same user.
    let at = |month: u8, more: Value| {
        let mut user = user.clone();
        user["updated_at"] = json!(format!("2021-0{month}-01T00:00:00Z"));
        user.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        user
    };
    let demoted = json!({ "roles": [], "full_name": "Nobody" });
    let users = [
        at(1, json!({ "full_name": "Root" })),
        at(2, demoted.clone()),
        at(3, json!({ "email": "root@new.example" })),
        at(4, demoted),
    ];
    here.home.write("users.jsonl", &lines(&users));
    assert_eq!(here.summary(&["users.jsonl", "--allow-admin"]).await, [4, 0, 2, 0, 2]);
    let root = here.user("root").await;
    assert_eq!((&root["full_name"], &root["email"]), (&json!("Root"), &json!("root@new.example")));
}

#[tokio::test]
async fn bare_digests_are_read_as_the_operator_says_and_wrapped() {
    let here = Move::new().await;
    let (sha1, password) = vector("sha1");
    let bare = &sha1["bare"];
    let user = json!({ "username": "alice", "email": "alice@example.com", "password_hash": bare["hash"], "salt": bare["salt"] });
    here.home.write("users.jsonl", &lines(&[user]));
    assert_eq!(here.summary(&["users.jsonl"]).await, [1, 0, 0, 0, 1]);
    let template = bare["template"].as_str().unwrap();
    let args = ["users.jsonl", "--hash", "sha1", "--hash-template", template];
    assert_eq!(here.summary(&args).await, [1, 1, 0, 0, 0]);
    assert!(here.user("alice").await["password_hash"].as_str().unwrap().starts_with("$wrapped$"));
    assert_eq!(here.status("alice", &password).await, 200);
    // This one fits no hash at all.
    for invalid in ["{salt}{pasword}", &"x".repeat(128)] {
        let args = ["nowhere.jsonl", "--hash", "sha1", "--hash-template", invalid];
        here.import(&args).await.fails(2, &["--hash-template", invalid, "it needs {password} in it"]);
    }
}

#[tokio::test]
async fn hmacs_are_keyed_from_a_file_or_by_their_own_salt() {
    let here = Move::new().await;
    // Made with Python's `hmac`, of "correct horse": with the key "a-key-of-all", and with the salt "sälz-17".
    let shared = "a1bd22970f2b5ae8657ffb901afd8ef3b0ae8e5a65bdbb83258a68639a4bfaf4";
    let salted = "34ab5a1f43020ae01247e72ed32f82886753c79235b72a3a6a3557979e13ce6d";
    let user = |name: &str, hash: &str, salt: Option<&str>| json!({ "username": name, "email": format!("{name}@example.com"), "password_hash": hash, "salt": salt });
    here.home.write("shared.jsonl", &lines(&[user("alice", shared, None)]));
    here.home.write("salted.jsonl", &lines(&[user("bob", salted, Some("sälz-17"))]));
    here.home.write("key", "a-key-of-all\n");
    here.home.write("long", &"x".repeat(129));
    let of = |name| ["--hash", "hmac-sha256", name];
    let with_key = |name, key| [&of(name)[..], &["--hash-key-file", key]].concat();
    assert_eq!(here.summary(&of("shared.jsonl")).await, [1, 0, 0, 0, 1]);
    assert!(here.read("shared.jsonl.rejects").contains("the salt, if no other is given"));
    assert_eq!(here.summary(&with_key("shared.jsonl", "key")).await, [1, 1, 0, 0, 0]);
    assert_eq!(here.summary(&of("salted.jsonl")).await, [1, 1, 0, 0, 0]);
    for name in ["alice", "bob"] {
        let stored = here.user(name).await["password_hash"].as_str().unwrap().to_owned();
        assert!(stored.starts_with("$wrapped$digest$of=sha256,"), "{stored}");
        assert_eq!(here.status(name, "wrong horse").await, 401);
        assert_eq!(here.status(name, "correct horse").await, 200);
    }
    here.import(&with_key("shared.jsonl", "long")).await.fails(1, &["--hash-key-file", "128"]);
    here.import(&with_key("shared.jsonl", "none")).await.fails(1, &["none"]);
    let no_hmac = ["shared.jsonl", "--hash", "sha256", "--hash-key-file", "key"];
    here.import(&no_hmac).await.fails(1, &["--hash-key-file"]);
}

#[tokio::test]
async fn exported_users_are_imported_elsewhere_unchanged() {
    let here = Move::new().await;
    let there = Move::new().await;
    here.app.register("alice").await;
    here.app.register("bob").await;
    let (fast, fast_password) = vector("{SSHA}");
    let user = json!({
        "external_id": "c\\N 17", "username": "carol", "email": "carol@example.com", "full_name": "Carol \\ \"C\" O'Hara",
        "roles": ["support"], "is_email_verified": true, "password_hash": fast["text"],
        "created_at": "2019-01-01T00:00:00.000001Z", "updated_at": "2020-01-01T00:00:00Z", "disabled": false,
    });
    here.home.write("users.jsonl", &lines(&[user]));
    assert_eq!(here.summary(&["users.jsonl"]).await, [1, 1, 0, 0, 0]);

    let without = here.gatepass(&["export"]).run().await.expect(0).stdout;
    assert_eq!(without.lines().count(), 3);
    assert!(!without.contains("password_hash") && !without.contains("argon2"), "{without}");
    let ended = here.gatepass(&["export", "--hashes", "--output", "out.jsonl"]).run().await.expect(0);
    assert_eq!(ended.stdout, "");
    let path = here.home.path("out.jsonl");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    there.home.write("in.jsonl", &here.read("out.jsonl"));
    assert_eq!(there.summary(&["in.jsonl"]).await, [3, 3, 0, 0, 0]);
    let again = there.gatepass(&["export", "--hashes"]).run().await.expect(0).stdout;
    let sorted = |text: &str| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&again), sorted(&here.read("out.jsonl")));
    for (username, password) in [("alice", PASSWORD), ("bob", PASSWORD), ("carol", &fast_password)] {
        assert_eq!(there.status(username, password).await, 200, "{username}");
    }
}

/// Our own hashes may take more memory than foreign ones.
#[tokio::test]
async fn expensive_hashes_move_to_a_service_whose_own_are_as_expensive() {
    let (here, there) = (Move::new().await, Move::new().await);
    let params = Params { memory_kib: 131_080, iterations: 1, parallelism: 1 };
    // Not those of a service: hashing threads yield to everything else, which in a run of all tests can take longer
    // than a request may.
    let passwords = Pool::new(PoolSettings {
        threads: NonZeroUsize::MIN,
        queue: 1,
        params,
        peppers: Peppers::default(),
        deadline: Duration::from_secs(600),
    })
    .unwrap();
    let password = Password::new(PASSWORD);
    let hash = passwords.hash(&password, [7; 16]).await.unwrap();
    here.app.register("alice").await;
    let expensive = "UPDATE users SET password_hash = $1 WHERE username = 'alice'";
    sqlx::query(expensive).bind(hash.as_str()).execute(&here.app.db).await.unwrap();
    let export = here.gatepass(&["export", "--hashes"]).run().await.expect(0).stdout;

    // Where our own hashes take less memory, this one takes more than a foreign hash may.
    there.home.write("users.jsonl", &export);
    assert_eq!(there.summary(&["users.jsonl"]).await, [1, 0, 0, 0, 1]);
    assert!(there.read("users.jsonl.rejects").contains("costs more than one login may"));
    let import = there.gatepass(&["import", "users.jsonl"]);
    import.env("ARGON2_MEMORY_KIB", "131080").run().await.expect(0);
    assert_eq!(there.user("alice").await["password_hash"], hash.as_str());
    let verdict = passwords.verify(&password, Some(&hash)).await.unwrap();
    assert_eq!(verdict, Verdict::Match { outdated: false });
}

#[tokio::test]
async fn users_of_auth0_log_in() {
    let here = Move::new().await;
    let (hash, password) = vector("bcrypt 2b");
    let users = [
        json!({
            "_id": { "$oid": "60425dc43519d90068f82973" }, "email": "alice@example.com", "email_verified": true,
            "passwordHash": hash["text"], "tenant": "t", "connection": "Username-Password-Authentication",
            "name": "Alice Liddell", "password_set_date": { "$date": "2021-03-05T16:32:52.973Z" },
        }),
        json!({
            "user_id": "auth0|2", "email": "bob@example.com", "username": "bobby", "blocked": true,
            "created_at": "2020-01-01T00:00:00.000Z", "updated_at": "2021-01-01T00:00:00.000Z", "name": "bob@example.com",
        }),
        json!({ "user_id": "sms|3", "phone_number": "+1" }),
    ];
    here.home.write("users.json", &lines(&users));
    assert_eq!(here.summary(&["users.json", "--format", "auth0"]).await, [3, 2, 0, 0, 1]);
    assert_eq!(here.status("alice@example.com", &password).await, 200);
    assert_eq!(here.count("SELECT count(*) FROM users WHERE username ~ '^alice-[0-9a-f]{8}$' AND external_id = 'auth0|60425dc43519d90068f82973' AND is_email_verified AND password_changed_at = '2021-03-05T16:32:52.973Z'").await, 1);
    let bob = here.user("bobby").await;
    assert_eq!((&bob["disabled"], &bob["full_name"]), (&json!(true), &Value::Null));
    // The same users as an array.
    here.home.write("users.json", &Value::from(users.to_vec()).to_string());
    assert_eq!(here.summary(&["users.json", "--format", "auth0"]).await, [3, 0, 0, 2, 1]);
    assert!(here.read("users.json.rejects").contains("sms|3"));

    // The file with hashes is undated. What changed there between the file and its import is still newer here.
    let blocked = json!({
        "user_id": "auth0|60425dc43519d90068f82973", "email": "alice@example.com", "blocked": true,
        "created_at": "2021-03-05T16:32:52.973Z", "updated_at": "2021-03-06T00:00:00.000Z",
    });
    here.home.write("changes.json", &lines(&[blocked]));
    let args = ["changes.json", "--format", "auth0"];
    assert_eq!(compared(&here, &args).await.0["newer"], 1);
    assert_eq!(here.summary(&args).await, [1, 0, 1, 0, 0]);
    assert_eq!(here.status("alice@example.com", &password).await, 401);
    let again = compared(&here, &args).await.0;
    assert_eq!((&again["same"], &again["older"]), (&json!(1), &Value::Null));
    assert_eq!(here.summary(&["users.json", "--format", "auth0"]).await, [3, 0, 0, 2, 1]);
}

#[tokio::test]
async fn users_of_firebase_log_in() {
    let here = Move::new().await;
    let (vector, password) = vector("Firebase");
    let hash = &vector["firebase"];
    let file = json!({ "users": [
        {
            "localId": "abc", "email": "alice@example.com", "emailVerified": true, "displayName": "Alice",
            "passwordHash": hash["hash"], "salt": hash["salt"], "createdAt": "1600000000000",
            "lastSignedInAt": "1600000000001", "providerUserInfo": [], "passwordUpdatedAt": 1600000000002_i64,
        },
        { "localId": "anonymous", "createdAt": "1600000000000" },
    ]});
    here.home.write("users.json", &format!("{file:#}"));
    let args = ["users.json", "--format", "firebase"];
    assert_eq!(here.summary(&args).await, [2, 0, 0, 0, 2]);
    assert!(here.read("users.json.rejects").contains("--hash-config"));
    let text = |name: &str| hash[name].as_str().unwrap();
    let config = format!(
        "hash_config {{\n  algorithm: SCRYPT,\n  base64_signer_key: {},\n  base64_salt_separator: {},\n  rounds: {},\n  \
         mem_cost: {},\n}}\n",
        text("signer_key"),
        text("salt_separator"),
        hash["rounds"],
        hash["mem_cost"]
    );
    here.home.write("hash_config", &config);
    // The rejects can be imported as they were written.
    let args = ["users.json.rejects", "--format", "firebase", "--hash-config", "hash_config"];
    assert_eq!(here.summary(&args).await, [2, 1, 0, 0, 1]);
    assert_eq!(here.status("alice@example.com", &password).await, 200);
    let external_ids = "SELECT count(*) FROM users WHERE external_id = 'abc' AND full_name = 'Alice' AND created_at = 'epoch'::timestamptz + interval '1600000000 s'";
    assert_eq!(here.count(external_ids).await, 1);
}

#[tokio::test]
async fn users_of_a_keycloak_realm_log_in() {
    let here = Move::new().await;
    let mut users = Vec::new();
    let mut passwords = Vec::new();
    for (i, what) in
        ["Keycloak pbkdf2", "Keycloak pbkdf2-sha256", "Keycloak pbkdf2-sha512", "Keycloak argon2"]
            .into_iter()
            .enumerate()
    {
        let (vector, password) = vector(what);
        let hash = &vector["keycloak"];
        users.push(json!({
            "id": format!("id-{i}"), "createdTimestamp": 1600000000000_i64, "username": format!("user{i}"), "enabled": true,
            "emailVerified": true, "firstName": "Given", "lastName": format!("Family {i}"), "email": format!("user{i}@example.com"),
            "credentials": [
                { "type": "otp", "secretData": "{}", "credentialData": "{}" },
                { "id": "c", "type": "password", "createdDate": 1600000000001_i64,
                  "secretData": hash["secret_data"], "credentialData": hash["credential_data"] },
            ],
            "realmRoles": ["default-roles-demo", "offline_access", "support", "App User", "ROLE_USER"],
            "requiredActions": [], "groups": [],
        }));
        passwords.push(password);
    }
    let realm = json!({
        "id": "demo", "realm": "demo", "roles": { "realm": [{ "name": "support" }] }, "users": users,
        "clients": [{ "clientId": "account" }], "zzz": { "users": [{ "username": "not one" }] },
    });
    here.home.write("realm.json", &format!("{realm:#}"));
    let ended = here.import(&["realm.json", "--format", "keycloak"]).await.expect(0);
    assert_eq!(ended.stdout, "4 read, 4 created, 0 updated, 0 unchanged, 0 rejected\n");
    assert!(
        ended
            .stderr
            .contains(r#"left out, since these are not valid role names here: "App User", "ROLE_USER""#)
    );
    let bare = ["realm.json", "--format", "keycloak", "--hash", "md5"];
    here.import(&bare).await.fails(2, &["--hash: the hashes of this format say what they are"]);
    for (i, password) in passwords.iter().enumerate() {
        assert_eq!(here.status(&format!("user{i}"), password).await, 200, "{i}");
    }
    let user = here.user("user2").await;
    assert_eq!((&user["roles"], &user["full_name"]), (&json!(["support"]), &json!("Given Family 2")));
}

#[tokio::test]
async fn users_of_supabase_log_in() {
    let here = Move::new().await;
    let (hash, password) = vector("bcrypt 2a");
    let hash = hash["text"].as_str().unwrap();
    let csv = format!(
        "instance_id,id,aud,role,email,encrypted_password,email_confirmed_at,raw_user_meta_data,created_at,updated_at,banned_until,deleted_at\n\
         0,9d7a,authenticated,authenticated,alice@example.com,{hash},2024-01-02 03:04:05.678901+00,\"{{\"\"full_name\"\": \"\"Alice\"\"}}\",\
         2024-01-02 03:04:05.678901+00,2024-01-03 03:04:05+00,,\n\
         0,9d7b,authenticated,authenticated,bob@example.com,{hash},,{{}},2024-01-02 03:04:05+00,2024-01-02 03:04:05+00,2999-01-01 00:00:00+00,\n\
         0,9d7c,authenticated,authenticated,gone@example.com,{hash},,{{}},2024-01-02 03:04:05+00,2024-01-02 03:04:05+00,,2024-01-03 00:00:00+00\n\
         0,9d7d,authenticated,authenticated,carol@example.com,,,null,2024-01-02 03:04:05+00,2024-01-02 03:04:05+00,,\n"
    );
    here.home.write("auth_users.csv", &csv);
    assert_eq!(here.summary(&["auth_users.csv", "--format", "supabase"]).await, [3, 3, 0, 0, 0]);
    assert_eq!(here.status("alice@example.com", &password).await, 200);
    assert_eq!(here.status("bob@example.com", &password).await, 401);
    let alice =
        "SELECT count(*) FROM users WHERE external_id = '9d7a' AND full_name = 'Alice' AND is_email_verified";
    assert_eq!(here.count(alice).await, 1);
    let row = json!([{
        "id": "9d7a", "email": "alice@new.example", "encrypted_password": hash, "email_confirmed_at": null,
        "raw_user_meta_data": { "name": "Alice L." }, "created_at": "2024-01-02T03:04:05.678901+00:00",
        "updated_at": "2024-02-03T03:04:05+00:00", "banned_until": null, "deleted_at": null,
    }]);
    here.home.write("auth_users.json", &row.to_string());
    assert_eq!(here.summary(&["auth_users.json", "--format", "supabase"]).await, [1, 0, 1, 0, 0]);
    assert_eq!(here.status("alice@new.example", &password).await, 200);
}

#[tokio::test]
async fn users_of_django_log_in() {
    let here = Move::new().await;
    let (pbkdf2, pbkdf2_password) = vector("django pbkdf2_sha256");
    let (sha1, sha1_password) = vector("django sha1");
    let fields = |username: &str, hash: &Value| {
        json!({
            "password": hash, "last_login": null, "is_superuser": true, "username": username, "first_name": "Given",
            "last_name": "Family", "email": format!("{username}@example.com"), "is_staff": true, "is_active": true,
            "date_joined": "2020-01-02T03:04:05.678Z", "groups": [1], "user_permissions": [],
        })
    };
    let dump = json!([
        { "model": "auth.group", "pk": 1, "fields": { "name": "staff", "permissions": [] } },
        { "model": "auth.user", "pk": 1, "fields": fields("alice", &pbkdf2["text"]) },
        { "model": "accounts.user", "pk": 2, "fields": fields("bob", &sha1["text"]) },
        { "model": "auth.user", "pk": 3, "fields": fields("carol", &json!("!unusable")) },
        { "model": "auth.user", "pk": 4, "fields": fields("dave+1", &json!("")) },
        // MD5 of "correct horse", by Django's hasher without a salt.
        { "model": "auth.user", "pk": 5, "fields": fields("emma", &json!("3cb4e732631f47e6eb961f34554b7cde")) },
    ]);
    here.home.write("dump.json", &format!("{dump:#}"));
    assert_eq!(here.summary(&["dump.json", "--format", "django"]).await, [5, 4, 0, 0, 1]);
    assert!(here.read("dump.json.rejects").contains("`gatepass import --hash` takes it"));
    assert_eq!(here.summary(&["dump.json", "--format", "django", "--hash", "md5"]).await, [5, 1, 0, 4, 0]);
    assert_eq!(here.status("emma", "correct horse").await, 200);
    assert_eq!(here.status("alice", &pbkdf2_password).await, 200);
    assert_eq!(here.status("bob", &sha1_password).await, 200);
    let alice = here.user("alice").await;
    assert_eq!((&alice["roles"], &alice["full_name"]), (&json!([]), &json!("Given Family")));
    assert_eq!(
        (&alice["external_id"], &alice["created_at"]),
        (&json!("1"), &json!("2020-01-02T03:04:05.678+00:00"))
    );

    let csv = format!(
        "id,password,last_login,is_superuser,username,first_name,last_name,email,is_staff,is_active,date_joined\n\
         7,{},,f,dora@example.com,,,dora@example.com,f,t,2020-01-02 03:04:05.678+00\n\
         8,{},,f,emil,,,,f,f,2020-01-02 03:04:05+00\n",
        pbkdf2["text"].as_str().unwrap(),
        pbkdf2["text"].as_str().unwrap()
    );
    here.home.write("auth_user.csv", &csv);
    assert_eq!(here.summary(&["auth_user.csv", "--format", "django"]).await, [2, 1, 0, 0, 1]);
    assert_eq!(here.status("dora@example.com", &pbkdf2_password).await, 200);
    assert!(here.read("auth_user.csv.rejects").contains("email is missing"));
}

/// A project may call its users anything, and other things users, so the fields tell who is one.
#[tokio::test]
async fn users_of_django_come_from_a_model_of_any_name_and_what_else_there_is_is_named() {
    let here = Move::new().await;
    let (hash, password) = vector("django pbkdf2_sha256");
    let record = |model: &str, pk: u32, fields: Value| json!({ "model": model, "pk": pk, "fields": fields });
    let others = [
        record(
            "organizations.organizationuser",
            1,
            json!({ "user": 1, "organization": 1, "is_admin": true }),
        ),
        record("members.profile", 1, json!({ "user": 1, "bio": "" })),
        record("members.profile", 2, json!({ "user": 2, "bio": "" })),
        record("members.profile", 3, json!({ "user": 3, "bio": "" })),
        record("account.emailaddress", 1, json!({ "user": 1, "email": "a@example.com", "verified": true })),
        record("socialaccount.socialaccount", 1, json!({ "user": 1, "uid": "x", "last_login": null })),
        record("axes.accesslog", 1, json!({ "username": "alice", "ip_address": "192.0.2.1" })),
    ];
    let users = [
        record(
            "members.member",
            1,
            json!({
                "password": hash["text"], "last_login": null, "username": "alice", "email": "alice@example.com",
            }),
        ),
        // No last_login: the model has dropped it.
        record("members.member", 2, json!({ "password": hash["text"], "email": "bob@example.com" })),
        // No password: somebody has removed a hash of an unknown form.
        record("members.member", 3, json!({ "last_login": null, "email": "carol@example.com" })),
        // Nothing that we could reach the user at.
        record("members.member", 4, json!({ "password": "!", "last_login": null, "phone": "+1" })),
    ];
    here.home.write("dump.json", &json!([&others[..], &users[..]].concat()).to_string());
    let left_out = "left out, since these are not users: account.emailaddress (1), axes.accesslog (1), \
                    members.profile (3), organizations.organizationuser (1), socialaccount.socialaccount (1)\n";
    let args = ["dump.json", "--format", "django"];
    let ended = here.import(&args).await.expect(1);
    assert!(ended.stderr.contains(left_out), "{}", ended.stderr);
    assert!(ended.stderr.contains("11: email is missing (missing)\n"), "{}", ended.stderr);
    assert_eq!(ended.stdout, "4 read, 3 created, 0 updated, 0 unchanged, 1 rejected\n");
    assert_eq!(here.status("alice", &password).await, 200);
    assert_eq!(here.status("bob@example.com", &password).await, 200);
    assert_eq!(here.user("alice").await["external_id"], "1");
    let compared = here.import(&[&args[..], &["--compare"]].concat()).await.expect(1);
    assert!(compared.stdout.starts_with("4 read, 3 same, "), "{}", compared.stdout);
    assert!(compared.stderr.contains(left_out), "{}", compared.stderr);

    // A dump without the users does not pass for one of nobody.
    here.home.write("others.json", &json!(others).to_string());
    for more in [&[][..], &["--dry-run"], &["--compare"]] {
        let ended = here.import(&[&["others.json", "--format", "django"], more].concat()).await;
        let problem = "gatepass: no record in the file is a user, only account.emailaddress (1), ";
        ended.fails(1, &[problem, "is the model that AUTH_USER_MODEL names in the dump?"]);
    }
}

/// Their username would be made of the address, so that is all an operator has to add.
#[tokio::test]
async fn users_of_other_systems_without_an_address_are_rejected_for_that_alone() {
    let here = Move::new().await;
    let fields = json!({ "password": "!", "last_login": null, "username": "emil@home", "email": "" });
    for (format, user) in [
        ("auth0", json!({ "user_id": "sms|1", "phone_number": "+1" })),
        ("firebase", json!({ "localId": "anonymous", "createdAt": "1600000000000" })),
        ("keycloak", json!({ "id": "1", "enabled": true })),
        ("supabase", json!({ "id": "1", "email": null, "phone": "1", "is_anonymous": true })),
        ("django", json!({ "model": "auth.user", "pk": 1, "fields": fields })),
    ] {
        here.home.write("users.json", &json!([user]).to_string());
        assert_eq!(here.summary(&["users.json", "--format", format]).await, [1, 0, 0, 0, 1], "{format}");
        let refused: Value = serde_json::from_str(&here.read("users.json.rejects")).unwrap();
        assert_eq!(refused["_reason"], "email is missing (missing)", "{format}");
    }
    // Where no username is made, both are missing.
    here.home.write("users.jsonl", "{}\n");
    assert_eq!(here.summary(&["users.jsonl"]).await, [1, 0, 0, 0, 1]);
    let reason = "username is missing (missing); email is missing (missing)";
    assert!(here.read("users.jsonl.rejects").contains(reason));
}

#[tokio::test]
async fn users_come_straight_from_another_postgres() {
    let here = Move::new().await;
    let (hash, password) = vector("bcrypt 2a");
    let url = empty_database().await;
    let mut conn = PgConnection::connect(&url).await.unwrap();
    let schema = format!(
        "CREATE TABLE users (
             username varchar PRIMARY KEY, hashed_password varchar NOT NULL, full_name varchar NOT NULL,
             email varchar UNIQUE NOT NULL, password_changed_at timestamptz NOT NULL DEFAULT '0001-01-01 00:00:00Z',
             created_at timestamptz NOT NULL DEFAULT now(), is_email_verified bool NOT NULL DEFAULT false,
             role varchar NOT NULL DEFAULT 'depositor'
         );
         INSERT INTO users (username, hashed_password, full_name, email)
         SELECT 'user' || i, '{hash}', E'The \\\\ \"' || i || E'\"\\n' , 'user' || i || '@example.com' FROM generate_series(1, 2500) AS i;
         CREATE TABLE people (id int, login text, mail text, hash text, shut bool);
         INSERT INTO people VALUES (1, 'alice', 'alice@example.com', '{hash}', false), (2, 'x', 'x@example.com', NULL, true)",
        hash = hash["text"].as_str().unwrap()
    );
    sqlx::raw_sql(AssertSqlSafe(schema)).execute(&mut conn).await.unwrap();
    assert_eq!(here.summary(&[&url]).await, [2500, 2500, 0, 0, 0]);
    assert_eq!(here.summary(&[&url]).await, [2500, 0, 0, 2500, 0]);
    assert_eq!(here.status("user2500", &password).await, 200);
    let user = here.user("user7").await;
    assert_eq!((&user["roles"], &user["full_name"]), (&json!(["depositor"]), &json!("The \\ \"7\"")));
    assert_eq!(user["password_changed_at"], user["created_at"]);

    let mapping = "SELECT id::text AS external_id, login AS username, mail AS email, hash AS password_hash,\n shut AS disabled FROM people -- all of them";
    here.home.write("people.sql", mapping);
    let args = [&url[..], "--mapping", "people.sql", "--rejects", "bad.jsonl"];
    assert_eq!(here.summary(&args).await, [2, 1, 0, 0, 1]);
    assert_eq!(here.status("alice", &password).await, 200);
    assert!(here.read("bad.jsonl").contains("too_short"));
    // The other database is only read.
    here.home.write("people.sql", "WITH gone AS (DELETE FROM people RETURNING *) SELECT * FROM gone");
    here.import(&[&url, "--mapping", "people.sql"]).await.fails(1, &[]);
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM people").fetch_one(&mut conn).await.unwrap();
    assert_eq!(left, 2);
}

/// Everything that another Postgres or a mapping gets wrong is reported once, with the server and the mapping's file,
/// and before any user is imported.
#[tokio::test]
async fn a_database_that_cannot_be_read_is_named_and_so_is_the_mapping() {
    let here = Move::new().await;
    let url = empty_database().await;
    let mut conn = PgConnection::connect(&url).await.unwrap();
    let people = "CREATE TABLE people (login text, mail text);
                  INSERT INTO people SELECT 'user' || i, 'user' || i || '@example.com' FROM generate_series(1, 3) AS i";
    sqlx::raw_sql(people).execute(&mut conn).await.unwrap();
    let nowhere = "postgres://reader:hunter2@127.0.0.1:1/app";
    let ended = here.import(&[nowhere]).await.fails(1, &[
        "gatepass: the users cannot be read\n  because: the table users cannot be read from the database 127.0.0.1:1/app\n",
        "  because: error communicating with database\n  because: Connection refused",
    ]);
    assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
    assert_eq!(ended.stderr.matches("refused").count(), 1, "{}", ended.stderr);
    for (query, why) in [
        ("SELECT login AS username,\n mail AS email\nFROM persons", "relation \"persons\" does not exist\n"),
        (
            "SELECT login AS username,\n people.mial AS email\nFROM people",
            "column people.mial does not exist (Perhaps you meant to reference the column \"people.mail\".)\n",
        ),
    ] {
        here.home.write("people.sql", query);
        let ended = here.import(&[&url, "--mapping", "people.sql"]).await;
        let ended =
            ended.fails(1, &["  because: what people.sql selects cannot be read from the database ", why]);
        assert_eq!(ended.stderr.matches("does not exist").count(), 1, "{}", ended.stderr);
        assert!(!ended.stderr.contains(" at line "), "{}", ended.stderr);
    }
    here.home.write("people.sql", "SELECT login AS username, mail FROM people");
    let unknown = "gatepass: the column \"mail\" is not a field of the format; the fields are external_id, username, email,";
    let ended = here.import(&[&url, "--mapping", "people.sql"]).await.fails(1, &[unknown]);
    assert_eq!(ended.stderr.matches("mail\"").count(), 1, "{}", ended.stderr);
    let ended = here.import(&[&url, "--mapping", "people.sql", "--compare"]).await;
    ended.fails(1, &[unknown]);
    assert_eq!(here.count("SELECT count(*) FROM users").await, 0);
}

/// A dump that has failed leaves an empty file, which is not one of nobody.
#[tokio::test]
async fn an_empty_file_is_an_error_but_an_empty_list_of_users_is_not() {
    let here = Move::new().await;
    here.home.write("users.jsonl", "{}\n");
    assert_eq!(here.summary(&["users.jsonl"]).await, [1, 0, 0, 0, 1]);
    for (name, format, text) in [
        ("users.jsonl", "jsonl", ""),
        ("users.csv", "csv", ""),
        ("users.csv", "csv", "\u{feff}\r\n\n"),
        ("auth_users.csv", "supabase", "\n"),
        ("auth_user.csv", "django", ""),
        ("auth0.json", "auth0", ""),
        ("firebase.json", "firebase", ""),
        ("keycloak.json", "keycloak", "\u{feff}"),
    ] {
        here.home.write(name, text);
        for more in [&[][..], &["--dry-run"], &["--compare"]] {
            let ended = here.import(&[&[name, "--format", format], more].concat()).await;
            ended.fails(1, &["gatepass: the file is empty: has the export failed?\n"]);
        }
    }
    // Nor does it take the place of the last file that was not empty.
    assert_eq!(here.read("users.jsonl.rejects").lines().count(), 1);
    let piped = here.gatepass(&["import", "-", "--format", "jsonl"]).stdin("");
    piped.run().await.fails(1, &["is empty"]);

    for (name, format, text) in [
        ("users.csv", "csv", "username,email\n"),
        ("auth0.json", "auth0", "[]"),
        ("firebase.json", "firebase", r#"{"users": []}"#),
        ("keycloak.json", "keycloak", r#"{"realm": "shop", "users": []}"#),
        ("django.json", "django", "[]"),
    ] {
        here.home.write(name, text);
        assert_eq!(here.summary(&[name, "--format", format]).await, [0; 5], "{name}");
    }
    // Nobody has changed in the other database.
    let url = empty_database().await;
    here.home.write("nobody.sql", "SELECT 'a' AS username, 'b' AS email WHERE false");
    assert_eq!(here.summary(&[&url, "--mapping", "nobody.sql"]).await, [0; 5]);
}

#[tokio::test]
async fn a_faulty_file_is_reported_and_the_users_before_the_fault_are_kept() {
    let here = Move::new().await;
    here.import(&["nowhere.jsonl"]).await.fails(1, &["nowhere.jsonl"]);
    here.home.write("users.txt", "");
    here.import(&["users.txt"]).await.fails(2, &["--format"]);
    here.home
        .write("cut.json", r#"{"users": [{"localId": "1", "email": "alice@example.com"}, {"localId": "2", "#);
    here.import(&["cut.json", "--format", "firebase"]).await.fails(1, &["line 1 column"]);
    here.import(&["cut.json", "--mapping", "people.sql"]).await.fails(2, &["--mapping is for postgres://"]);
    assert_eq!(here.count("SELECT count(*) FROM users").await, 1);
    // The import would read a pipe twice.
    let pipe = here.home.path("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    here.import(&["pipe", "--format", "jsonl"]).await.fails(1, &["pipe is not a regular file", "`-`"]);
    let directory = pipe.parent().unwrap().to_str().unwrap();
    here.import(&[directory, "--format", "jsonl"]).await.fails(1, &["is not a regular file"]);
    here.home
        .write("quote.csv", &format!("username,email\nkurt,kurt@example.com\nx,\"{}", "x\n".repeat(1 << 20)));
    here.import(&["quote.csv"]).await.fails(1, &["too long"]);
    assert_eq!(here.count("SELECT count(*) FROM users").await, 2);
    let piped = here.gatepass(&["import", "-", "--format", "csv", "--json"]);
    let piped = piped.stdin("username,email\nzoe,zoe@example.com\n").run().await.json();
    assert_eq!(piped["created"], 1);
}

/// `gatepass import --compare ARGS…`: the summary without its zeros, and the differences without their ids.
async fn compared(here: &Move, args: &[&str]) -> (Value, Vec<Value>) {
    let ended = here.import(&[args, &["--compare", "--json"]].concat()).await;
    let mut summary: Value =
        serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{}\n{}", ended.stdout, ended.stderr));
    let agrees = summary["same"] == summary["read"] && summary["gone"] == 0;
    assert_eq!(ended.code, Some(i32::from(!agrees)), "{}", ended.stderr);
    let keys: Vec<&str> = summary.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["fields", "gone", "missing", "newer", "older", "read", "rejected", "same", "undated"]);
    let fields: Vec<&str> = summary["fields"].as_object().unwrap().keys().map(String::as_str).collect();
    let all = ["disabled", "email", "full_name", "is_email_verified", "password_hash", "roles", "username"];
    assert_eq!(fields, all);
    summary["fields"].as_object_mut().unwrap().retain(|_, count| *count != 0);
    summary.as_object_mut().unwrap().retain(|_, count| *count != 0 && *count != json!({}));
    let path = here.home.path(&format!("{}.differences", args[0]));
    assert_eq!(path.exists(), !agrees);
    let mut differences: Vec<Value> = if agrees {
        Vec::new()
    } else {
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::read_to_string(&path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    for difference in &mut differences {
        let is_here = !["missing", "rejected"].contains(&difference["what"].as_str().unwrap());
        assert_eq!(difference.as_object_mut().unwrap().remove("id").is_some(), is_here, "{difference}");
    }
    (summary, differences)
}

#[tokio::test]
async fn a_comparison_reports_differences_and_changes_nothing() {
    let here = Move::new().await;
    let (one, _) = vector("bcrypt 2b");
    let (other, _) = vector("bcrypt 2y");
    let user = |i: u32, more: Value| {
        let mut user = json!({
            "external_id": format!("x-{i}"), "username": format!("user{i}"), "email": format!("user{i}@example.com"),
            "full_name": "Somebody", "roles": ["support"], "is_email_verified": true, "disabled": false,
            "created_at": "2019-01-01T00:00:00Z", "updated_at": "2020-01-01T00:00:00Z", "password_hash": one["text"],
        });
        user.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        user
    };
    let mut users: Vec<Value> = (0..9).map(|i| user(i, json!({}))).collect();
    here.home.write("users.jsonl", &lines(&users));
    assert_eq!(here.summary(&["users.jsonl"]).await, [9, 9, 0, 0, 0]);
    // A user who was never anywhere else is no difference.
    here.app.register("native").await;
    assert_eq!(compared(&here, &["users.jsonl"]).await, (json!({ "read": 9, "same": 9 }), Vec::new()));

    let newer = "2020-02-01T00:00:00Z";
    users[1] = user(1, json!({ "email": "new@example.com", "roles": [], "updated_at": newer }));
    users[2] = user(2, json!({ "username": "renamed", "full_name": "Else" }));
    users[3] = user(3, json!({ "password_hash": other["text"], "disabled": true, "updated_at": null }));
    users[4] = user(4, json!({ "email": "nowhere" }));
    users[5] = user(5, json!({ "email": "user6@example.com", "updated_at": newer }));
    users[6] = user(6, json!({ "username": "renamed6", "updated_at": newer }));
    // This record says less, and is newer without being different.
    users[7] = json!({
        "external_id": "x-7", "username": "user7", "email": "user7@example.com", "full_name": null, "updated_at": newer,
        "password_hash": "!",
    });
    users.remove(8);
    users.push(user(9, json!({})));
    users.push(json!({ "username": "native", "email": "native@example.com", "is_email_verified": true }));
    here.home.write("users.jsonl", &(lines(&users) + "{\n"));
    let before = here.count("SELECT count(*) FROM history").await;
    let (summary, differences) = compared(&here, &["users.jsonl"]).await;
    let expected = json!({
        "read": 11, "same": 2, "newer": 1, "older": 2, "undated": 2, "missing": 1, "rejected": 3, "gone": 1,
        "fields": {
            "username": 2, "email": 1, "full_name": 1, "password_hash": 1, "roles": 1, "disabled": 1,
            "is_email_verified": 1,
        },
    });
    assert_eq!(summary, expected);
    let told = |difference: &Value| {
        let reason = difference["_reason"].as_str().unwrap_or_default();
        let (_, code) = reason.rsplit_once('(').unwrap_or_default();
        let fields: Vec<_> = difference["fields"].as_array().into_iter().flatten().collect();
        json!([difference["what"], difference["_line"], difference["external_id"], fields, code])
    };
    let expected = json!([
        ["newer", 2, "x-1", ["email", "roles"], ""],
        ["older", 3, "x-2", ["username", "full_name"], ""],
        ["undated", 4, "x-3", ["password_hash", "disabled"], ""],
        ["rejected", 5, "x-4", [], "invalid_email)"],
        ["rejected", 6, "x-5", [], "email_taken)"],
        ["older", 7, "x-6", ["username"], ""],
        ["missing", 9, "x-9", [], ""],
        ["undated", 10, null, ["is_email_verified"], ""],
        ["rejected", 11, null, [], "unreadable)"],
        ["gone", null, "x-8", [], ""],
    ]);
    assert_eq!(Value::from(differences.iter().map(told).collect::<Vec<_>>()), expected);

    // People are shown numbers, and nothing about any user.
    let ended = here.import(&["users.jsonl", "--compare"]).await.expect(1);
    assert!(ended.stdout.starts_with(
        "11 read, 2 same, 1 newer, 2 older, 2 undated, 1 missing, 3 rejected; 1 gone\nusername differs in 2\n"
    ));
    assert!(
        !format!("{ended:?}").contains("example.com") && !format!("{ended:?}").contains("x-1"),
        "{ended:?}"
    );
    assert!(ended.stderr.contains("users.jsonl.differences"), "{}", ended.stderr);
    assert_eq!(here.count("SELECT count(*) FROM history").await, before);
    assert_eq!(here.count("SELECT count(*) FROM imports").await, 0);
    assert!(!here.home.path("users.jsonl.rejects").exists());

    // An import settles what it can.
    assert_eq!(here.summary(&["users.jsonl"]).await, [11, 1, 1, 6, 3]);
    let (summary, _) = compared(&here, &["users.jsonl"]).await;
    assert_eq!((&summary["newer"], &summary["missing"]), (&Value::Null, &Value::Null));

    let piped = here.gatepass(&["import", "-", "--format", "jsonl", "--compare"]).stdin(&lines(&users[..1]));
    let ended = piped.run().await.expect(1);
    assert!(ended.stderr.contains("--differences"), "{}", ended.stderr);
    here.import(&["users.jsonl", "--compare", "--dry-run"]).await.fails(2, &["--dry-run"]);
    here.import(&["users.jsonl", "--compare", "--rejects", "x"]).await.fails(2, &["--rejects"]);
    here.import(&["users.jsonl", "--differences", "x"]).await.fails(2, &["--compare"]);
    let into_itself = ["users.jsonl", "--compare", "--differences", "users.jsonl"];
    here.import(&into_itself).await.fails(1, &["--differences names the file itself"]);
    here.home.write("cut.json", r#"{"users": [{"localId": "#);
    here.import(&["cut.json", "--format", "firebase", "--compare"]).await.fails(1, &["not a valid document"]);
}

#[tokio::test]
async fn a_password_rehashed_or_changed_here_is_no_difference() {
    let here = Move::new().await;
    let (bcrypt, password) = vector("bcrypt 2b");
    let (fast, fast_password) = vector("{SSHA}");
    let (other, _) = vector("bcrypt 2y");
    let user = |i: u32, hash: &Value, times: Value| {
        let mut user = json!({
            "external_id": format!("x-{i}"), "username": format!("user{i}"), "email": format!("user{i}@example.com"),
            "created_at": "2019-01-01T00:00:00Z", "password_hash": hash["text"],
        });
        user.as_object_mut().unwrap().extend(times.as_object().unwrap().clone());
        user
    };
    let dated = json!({ "updated_at": "2020-01-01T00:00:00Z" });
    let exactly =
        json!({ "updated_at": "2020-01-01T00:00:00Z", "password_changed_at": "2019-06-01T00:00:00Z" });
    let undated = json!({});
    let same = [
        user(0, &bcrypt, dated.clone()),
        user(1, &bcrypt, exactly.clone()),
        user(2, &bcrypt, undated.clone()),
        user(3, &fast, dated.clone()),
        user(4, &fast, undated.clone()),
    ];
    let agreed = (json!({ "read": 5, "same": 5 }), Vec::new());
    here.home.write("users.jsonl", &lines(&same));
    assert_eq!(here.summary(&["users.jsonl"]).await, [5, 5, 0, 0, 0]);
    assert_eq!(compared(&here, &["users.jsonl"]).await, agreed);
    // A fast hash with another salt counts as another password, which even the wrapped hash shows.
    let (salted, _) = vector("{SMD5}");
    let mut others = same.clone();
    others[3] = user(3, &salted, dated.clone());
    here.home.write("users.jsonl", &lines(&others));
    assert_eq!(compared(&here, &["users.jsonl"]).await.0["older"], 1);

    for (i, password) in
        [&password, &password, &password, &fast_password, &fast_password].into_iter().enumerate()
    {
        assert_eq!(here.status(&format!("user{i}"), password).await, 200);
    }
    let made_anew = "SELECT count(*) FROM users WHERE password_hash LIKE '$argon2id$%'";
    assert_eq!(here.count(made_anew).await, 5);
    here.home.write("users.jsonl", &lines(&same));
    assert_eq!(compared(&here, &["users.jsonl"]).await, agreed);

    // The passwords have changed there since; the file says so, or cannot.
    let newer =
        json!({ "updated_at": "2020-02-01T00:00:00Z", "password_changed_at": "2020-02-01T00:00:00Z" });
    let others = [
        user(0, &other, json!({ "updated_at": "2020-02-01T00:00:00Z" })),
        user(1, &other, newer),
        user(2, &other, undated),
        user(3, &other, dated),
        user(4, &other, json!({ "password_changed_at": "2020-02-01T00:00:00Z" })),
    ];
    here.home.write("users.jsonl", &lines(&others));
    let (summary, _) = compared(&here, &["users.jsonl"]).await;
    let expected =
        json!({ "read": 5, "same": 2, "newer": 2, "undated": 1, "fields": { "password_hash": 3 } });
    assert_eq!(summary, expected);
    assert_eq!(here.summary(&["users.jsonl"]).await, [5, 0, 2, 3, 0]);
    assert_eq!(compared(&here, &["users.jsonl"]).await.0["newer"], Value::Null);
}

/// Others write while it reads: it holds no lock that they want, and sees one snapshot.
#[tokio::test]
async fn a_comparison_blocks_nobody() {
    let here = Move::new().await;
    here.home.write("users.jsonl", &many(3000));
    assert_eq!(here.summary(&["users.jsonl"]).await, [3000, 3000, 0, 0, 0]);
    let mut process = here.gatepass(&["import", "-", "--format", "jsonl", "--compare"]).start();
    let text = many(3000);
    let (begin, rest) = text.split_at(text.len() / 2);
    process.write(begin).await;
    let waits = "SELECT count(*) FROM pg_stat_activity
                 WHERE datname = current_database() AND state = 'idle in transaction' AND backend_xid IS NULL";
    until("it has begun to look", async || here.count(waits).await == 1).await;
    let mut hasty = here.app.db.acquire().await.unwrap();
    sqlx::raw_sql(
        "SET lock_timeout = '1s'; UPDATE users SET full_name = 'Else'; DELETE FROM users; TRUNCATE imports",
    )
    .execute(&mut *hasty)
    .await
    .unwrap();
    process.write(rest).await;
    let ended = process.end().await.expect(0);
    assert!(ended.stdout.starts_with("3000 read, 3000 same, 0 newer"), "{}", ended.stdout);
}

/// Runs every import command in docs/migrate-from.md on what its system writes.
#[tokio::test]
async fn the_import_commands_in_the_migration_guide_work() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/migrate-from.md");
    let page = fs::read_to_string(page).unwrap();
    let here = Move::new().await;
    let (bcrypt, password) = vector("bcrypt 2b");
    let (hash, (firebase, _), (keycloak, _)) =
        (&bcrypt["text"], vector("Firebase"), vector("Keycloak pbkdf2-sha256"));
    let (digest, _) = vector("sha1");
    let (firebase, keycloak, digest) = (&firebase["firebase"], &keycloak["keycloak"], &digest["bare"]);
    let config = json!({
        "base64_signer_key": firebase["signer_key"], "base64_salt_separator": firebase["salt_separator"],
        "rounds": firebase["rounds"], "mem_cost": firebase["mem_cost"],
    });
    let of_keycloak = |name: &str| {
        json!({ "realm": "shop", "users": [{
            "id": name, "username": name, "email": format!("{name}@example.com"), "enabled": true,
            "credentials": [{
                "type": "password", "secretData": keycloak["secret_data"],
                "credentialData": keycloak["credential_data"],
            }],
        }]})
    };
    for (name, text) in [
        ("auth0.json", json!({ "_id": { "$oid": "a" }, "email": "auth0@example.com", "passwordHash": hash }).to_string()),
        ("firebase.json", json!({ "users": [{
            "localId": "f", "email": "firebase@example.com", "passwordHash": firebase["hash"], "salt": firebase["salt"],
        }]}).to_string()),
        ("hash_config", config.to_string()),
        ("keycloak.json", format!("{:#}{:#}", of_keycloak("kit"), of_keycloak("kim"))),
        ("supabase.csv", format!(
            "id,email,encrypted_password,email_confirmed_at,raw_user_meta_data,created_at,updated_at,banned_until,deleted_at\n\
             s,supabase@example.com,{},,{{}},2024-01-02 03:04:05+00,2024-01-02 03:04:05+00,,\n",
            hash.as_str().unwrap()
        )),
        ("django.json", json!([{ "model": "auth.user", "pk": 1, "fields": {
            "username": "django", "email": "django@example.com", "password": hash, "is_active": true,
        }}]).to_string()),
        ("people.csv", format!(
            "external_id,username,email,password_hash\nc,people,people@example.com,{}\n", hash.as_str().unwrap()
        )),
        ("digests.csv", format!(
            "external_id,username,email,password_hash,salt\nd,digest,digest@example.com,{},{}\n",
            digest["hash"].as_str().unwrap(), digest["salt"].as_str().unwrap()
        )),
    ] {
        here.home.write(name, &text);
    }
    let url = empty_database().await;
    let schema = format!(
        "CREATE TABLE users (username text, hashed_password text, full_name text, email text, role text);
         INSERT INTO users VALUES ('course', '{hash}', 'Course', 'course@example.com', 'depositor');
         CREATE TABLE people (id int, login text, mail text, pw text, locked bool, changed timestamptz);
         INSERT INTO people VALUES (17, 'mapped', 'mapped@example.com', '{hash}', false, '2020-01-01')",
        hash = hash.as_str().unwrap()
    );
    let mut conn = PgConnection::connect(&url).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(schema)).execute(&mut conn).await.unwrap();
    let mapping = page.split_once("```sql people.sql\n").unwrap().1.split_once("```").unwrap().0;
    here.home.write("people.sql", mapping);

    let commands: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("gatepass import ")).collect();
    let mut imports = 0;
    for command in commands.into_iter().filter(|command| !command.contains(" --compare")) {
        let args = command.replace("postgres://reader@old.example.com/app", &url).replace('\'', "");
        let mut args: Vec<&str> = args.split_whitespace().collect();
        let [read, created, updated, unchanged, rejected] = here.summary(&args).await;
        assert_eq!((read > 0, created + unchanged, updated, rejected), (true, read, 0, 0), "{command}");
        imports += u64::from(created > 0);
        args.push("--compare");
        args.extend(["--differences", "differences.jsonl"]);
        let ended = here.import(&args).await;
        // The users of the other commands count as gone from there.
        assert!(ended.stdout.contains(&format!("{read} read, {read} same, 0 newer")), "{command} {ended:?}");
    }
    assert_eq!(imports, 9);
    assert_eq!(here.status("mapped", &password).await, 200);
    assert_eq!(here.status("course@example.com", &password).await, 200);
    for (name, what) in [
        ("django", "django pbkdf2_sha256"),
        ("mapped", "django bcrypt_sha256"),
        ("course", "Drupal 7 of Drupal 6 (npm drupal-hash)"),
    ] {
        let (hash, _) = vector(what);
        sqlx::query("UPDATE users SET password_hash = $2 WHERE username = $1")
            .bind(name)
            .bind(hash["text"].as_str().unwrap())
            .execute(&here.app.db)
            .await
            .unwrap();
    }
    let left = page.split_once("```sql\nSELECT substring").unwrap().1.split_once("```").unwrap().0;
    let left: Vec<(String, i64)> = sqlx::query_as(AssertSqlSafe(format!("SELECT substring{left}")))
        .fetch_all(&here.app.db)
        .await
        .unwrap();
    for kind in ["2b", "U", "bcrypt_sha256", "pbkdf2_sha256", "wrapped"] {
        assert!(left.iter().any(|(left, count)| left == kind && *count > 0), "{kind}: {left:?}");
    }
}

/// Our import and a bare `COPY` of the same rows into the same tables, one after the other in the same run.
#[tokio::test]
async fn a_million_users_are_imported_at_least_half_as_fast_as_by_a_bare_copy() {
    let here = Move::new().await;
    let count = if is_drill() { 1_000_000 } else { 20_000 };
    here.home.write("users.jsonl", &many(count));
    let started = Instant::now();
    let created = here.summary(&["users.jsonl"]).await[1];
    let ours = started.elapsed();
    assert_eq!(created, count as u64);
    let started = Instant::now();
    assert_eq!(compared(&here, &["users.jsonl"]).await.0["same"], count);
    println!("{count} users: compared in {:.1?}", started.elapsed());

    let there = Move::new().await;
    let columns = "id, external_id, username, email, full_name, password_hash, roles, is_email_verified, disabled, \
                   password_changed_at, created_at, updated_at";
    let mut from = PgConnection::connect(&here.app.database_url).await.unwrap();
    let rows: Vec<String> = sqlx::query_scalar(
        "SELECT array_to_string(ARRAY[id::text, external_id, username, email, full_name, password_hash, roles::text,
             is_email_verified::text, disabled::text, password_changed_at::text, created_at::text, updated_at::text], E'\\t')
         FROM users ORDER BY external_id",
    )
    .fetch_all(&mut from)
    .await
    .unwrap();
    let rows = rows.join("\n") + "\n";
    let mut to = PgConnection::connect(&as_role(&there.app.database_url, roles::APP)).await.unwrap();
    let started = Instant::now();
    let mut copy = to.copy_in_raw(&format!("COPY users ({columns}) FROM STDIN")).await.unwrap();
    for part in rows.as_bytes().chunks(1 << 16) {
        copy.send(part).await.unwrap();
    }
    copy.finish().await.unwrap();
    let bare = started.elapsed();
    assert_eq!(there.count("SELECT count(*) FROM users").await, count as i64);
    let ratio = bare.as_secs_f64() / ours.as_secs_f64();
    println!("{count} users: imported in {ours:.1?}, a bare COPY in {bare:.1?}: {ratio:.2} of its rate");
    if is_drill() {
        assert!(ratio >= 0.5, "{ratio}");
    }
}
