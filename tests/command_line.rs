//! The command line: what an administrator types, what it does, and what it says when something is wrong. The exit code
//! is 0 for success, 1 for failure and 2 for wrong usage; results go to standard output, all else to standard error.

use std::{fs, path::Path};

use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use crate::{
    app::{KEY, PASSWORD, database, empty_database},
    process::{Ended, Home, Process, QUICK, Signal, until},
};

/// An administrator's working directory, with a migrated database.
struct Desk {
    home: Home,
    url: String,
}

impl Desk {
    async fn new() -> Self {
        Self { home: Home::new(), url: database().await }
    }

    fn environment(&self) -> [(&str, &str); 2] {
        [("DB_SOURCE", &self.url), ("TOKEN_SYMMETRIC_KEY", KEY)]
    }

    /// `gatepass ARGS…` with `stdin`.
    async fn run_with(&self, args: &[&str], stdin: &str) -> Ended {
        self.home.gatepass(args).envs(&QUICK).envs(&self.environment()).stdin(stdin).run().await
    }

    async fn run(&self, args: &[&str]) -> Ended {
        self.run_with(args, "").await
    }

    /// Creates a user with [`PASSWORD`] and an address at example.com.
    async fn create(&self, username: &str) -> Value {
        let email = format!("{username}@example.com");
        let args = ["user", "create", username, "--email", &email, "--password-stdin", "--json"];
        self.run_with(&args, &format!("{PASSWORD}\n")).await.json()
    }
}

/// The status of a login.
async fn log_in(service: &Process, username: &str, password: &str) -> u16 {
    service.post("/users/login", &json!({"username": username, "password": password})).await.0
}

#[tokio::test]
async fn every_command_has_help() {
    let home = Home::new();
    let mut waiting = vec![vec![]];
    let mut seen = 0;
    while let Some(command) = waiting.pop() {
        let args = [&command[..], &["--help".to_owned()]].concat();
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let ended = home.gatepass(&args).run().await.expect(0);
        let help = ended.stdout;
        assert!(help.contains("Usage: gatepass") && ended.stderr.is_empty(), "{args:?}: {help}");
        assert!(
            help.lines().next().is_some_and(|about| about.len() > 10),
            "{args:?} says what it does: {help}"
        );
        seen += 1;
        let commands = help.split("Commands:\n").nth(1).unwrap_or_default();
        for line in commands.lines().take_while(|line| !line.is_empty()) {
            let (name, about) = line.trim().split_once(' ').unwrap_or((line, ""));
            assert!(!about.trim().is_empty(), "{command:?} {name} has a line about it");
            if name != "help" {
                waiting.push([&command[..], &[name.to_owned()]].concat());
            }
        }
    }
    assert!(seen >= 19, "{seen} commands were found");
    let version = home.gatepass(&["--version"]).run().await.expect(0);
    assert_eq!(version.stdout, format!("gatepass {}\n", env!("CARGO_PKG_VERSION")));
}

#[tokio::test]
async fn wrong_use_is_2() {
    let desk = Desk::new().await;
    let create = ["user", "create", "alice", "--email", "alice@example.com"];
    for (args, hint) in [
        (&[][..], "Usage: gatepass"),
        (&["srve"], "serve"),
        (&["user", "frobnicate"], "frobnicate"),
        (&["serve", "now"], "now"),
        (&["migrate", "down", "all"], "all"),
        (&["migrate", "up", "-1"], "-1"),
        (&["migrate", "new", "Add Phones"], "a-z, 0-9 and _"),
        (&["migrate", "new", "../up"], "a-z, 0-9 and _"),
        (&["user", "list", "--limit", "0"], "--limit"),
        (&["user", "list", "--after", "alice"], "--after"),
        (&["user", "list", "--after", "01940000-0000-7000-8000-000000000001", "--query", "a"], "--query"),
        (&["user", "set-role", "alice"], "<ROLES>"),
        (&["user", "set-role", "alice", "admin", "--none"], "--none"),
        (&["config", "--json", "--example"], "--example"),
        (&["health", "--address", "localhost"], "--address"),
        // Everyone on the machine could see a password there.
        (&[&create[..], &["--password", "x"]].concat(), "--password"),
        (&[&create[..], &["--password-stdin=x"]].concat(), "--password-stdin"),
        // There is no terminal.
        (&create, "use --password-stdin"),
    ] {
        desk.run(args).await.fails(2, &[hint]);
    }
    desk.create("alice").await;
    desk.run(&["user", "set-password", "alice"]).await.fails(2, &["use --password-stdin"]);
}

#[tokio::test]
async fn a_user_from_creation_to_deletion() {
    let desk = Desk::new().await;
    let args = [
        "user",
        "create",
        "Alice",
        "--email",
        "Alice@Example.com",
        "--full-name",
        "Alice Liddell",
        "--role",
        "support",
        "--role",
        "auditor",
        "--password-stdin",
        "--json",
    ];
    let alice = desk.run_with(&args, &format!("{PASSWORD}\r\n")).await.json();
    assert_eq!(
        alice,
        json!({
            "id": alice["id"],
            "username": "Alice",
            "email": "Alice@Example.com",
            "full_name": "Alice Liddell",
            "roles": ["auditor", "support"],
            "is_email_verified": false,
            "disabled": false,
            "password_changed_at": alice["created_at"],
            "created_at": alice["created_at"],
        })
    );
    let bob = desk.create("bob").await;
    assert_eq!(desk.run(&["user", "list", "--json"]).await.json(), json!([alice, bob]));
    assert_eq!(desk.run(&["user", "list", "--json", "--limit", "1"]).await.json(), json!([alice]));
    let after = ["user", "list", "--json", "--after", alice["id"].as_str().unwrap()];
    assert_eq!(desk.run(&after).await.json(), json!([bob]));
    for (args, expected) in [
        (&["--query", "ALICE"][..], json!([alice])),
        (&["--query", "alice@"], json!([alice])),
        (&["--query", "%"], json!([])),
        (&["--role", "auditor"], json!([alice])),
        (&["--role", "admin"], json!([])),
        (&["--query", "b", "--role", "auditor"], json!([])),
    ] {
        assert_eq!(
            desk.run(&[&["user", "list", "--json"], args].concat()).await.json(),
            expected,
            "{args:?}"
        );
    }
    let table = desk.run(&["user", "list"]).await.expect(0).stdout;
    assert_eq!(table.lines().count(), 3, "{table}");
    assert!(table.lines().nth(1).unwrap().contains("Alice@Example.com"), "{table}");

    // By username and address in any case, and by id.
    for name in ["aLICE", "ALICE@example.com", alice["id"].as_str().unwrap()] {
        assert_eq!(desk.run(&["user", "show", name, "--json"]).await.json(), alice, "{name}");
    }
    let shown = desk.run(&["user", "show", "alice"]).await.expect(0).stdout;
    for part in ["Alice Liddell", "auditor support", "enabled", "(not verified)"] {
        assert!(shown.contains(part), "{shown}");
    }

    // Each of these takes effect in the running service at once.
    let service = desk.home.serve(&desk.environment()).await;
    assert_eq!(log_in(&service, "alice", PASSWORD).await, 200);

    let new = "another-horse-battery-10";
    desk.run_with(&["user", "set-password", "alice", "--password-stdin"], new).await.expect(0);
    assert_eq!(log_in(&service, "alice", PASSWORD).await, 401);
    assert_eq!(log_in(&service, "alice", new).await, 200);

    let disabled = desk.run(&["user", "disable", "alice@example.com"]).await.expect(0).stdout;
    assert_eq!(disabled, "Alice is disabled\n");
    assert_eq!(log_in(&service, "alice", new).await, 401);
    assert_eq!(desk.run(&["user", "show", "alice", "--json"]).await.json()["disabled"], true);
    desk.run(&["user", "enable", alice["id"].as_str().unwrap()]).await.expect(0);
    assert_eq!(log_in(&service, "alice", new).await, 200);

    // The user has exactly the roles given.
    let set = async |args: &[&str]| {
        desk.run(&[&["user", "set-role", "alice"], args].concat()).await.expect(0).stdout
    };
    assert_eq!(
        set(&["billing:read", "auditor", "auditor"]).await,
        "Alice: auditor, support -> auditor, billing:read\n"
    );
    let roles = async || desk.run(&["user", "show", "alice", "--json"]).await.json()["roles"].clone();
    assert_eq!(roles().await, json!(["auditor", "billing:read"]));
    assert_eq!(set(&["support"]).await, "Alice: auditor, billing:read -> support\n");
    assert_eq!(set(&["--none"]).await, "Alice: support -> no roles\n");
    assert_eq!(set(&["--none"]).await, "Alice has no roles\n");
    assert_eq!(roles().await, json!([]));

    desk.run(&["user", "delete", "alice", "--yes"]).await.expect(0);
    assert_eq!(log_in(&service, "alice", new).await, 401);
    desk.run(&["user", "show", "alice"]).await.fails(1, &["there is no such user"]);
    assert_eq!(desk.run(&["user", "list", "--json"]).await.json(), json!([bob]));
}

#[tokio::test]
async fn columns_stay_aligned_however_long_a_name_is() {
    let desk = Desk::new().await;
    desk.create("bob").await;
    desk.create("a-username-that-is-longer-than-most-are-and-still-a-valid-one").await;
    let table = desk.run(&["user", "list"]).await.expect(0).stdout;
    for columns in [["STATE", "enabled", "enabled"], ["ROLES", "-", "-"]] {
        let starts = |line: &str, column: &str| line.find(&format!("  {column}"));
        let starts: Vec<_> = table.lines().zip(columns).map(|(line, column)| starts(line, column)).collect();
        assert!(starts[0].is_some() && starts.iter().all(|start| *start == starts[0]), "{starts:?}\n{table}");
    }
}

#[tokio::test]
async fn a_user_is_made_even_when_registration_is_closed() {
    let desk = Desk::new().await;
    let args = ["user", "create", "alice", "--email", "alice@example.com", "--password-stdin"];
    let run = desk.home.gatepass(&args).envs(&QUICK).envs(&desk.environment()).env("REGISTRATION", "closed");
    run.stdin(PASSWORD).run().await.expect(0);
    let service = desk.home.serve(&[&desk.environment()[..], &[("REGISTRATION", "closed")]].concat()).await;
    assert_eq!(log_in(&service, "alice", PASSWORD).await, 200);
}

#[tokio::test]
async fn a_failed_command_says_why_in_one_line() {
    let desk = Desk::new().await;
    desk.create("alice").await;
    let create = async |username: &str, email: &str, more: &[&str], password: &str| {
        let args = [&["user", "create", username, "--email", email, "--password-stdin"], more].concat();
        desk.run_with(&args, password).await
    };
    create("ALICE", "other@example.com", &[], PASSWORD).await.fails(1, &["the username is taken"]);
    create("other", "ALICE@example.com", &[], PASSWORD).await.fails(1, &["the e-mail address is taken"]);
    create("bob", "bob@example.com", &[], "password").await.fails(1, &["password", "most common"]);
    create("bob", "bob@example.com", &[], "x").await.fails(1, &["password", "at least 8"]);
    create("bob", "bob@example.com", &[], "").await.fails(1, &["password"]);
    create("bob", "bob@example.com", &["--role", "Admin"], PASSWORD).await.fails(1, &["roles[0]"]);
    // Everything that is wrong is reported at once.
    let wrong = create("a b", "nowhere", &["--full-name", "a\tb"], "x").await;
    wrong.fails(1, &["username may hold", "email is not", "full_name may hold", "password"]);

    for command in ["show", "disable", "enable", "delete"] {
        for name in ["nobody", "nobody@example.com", "01940000-0000-7000-8000-000000000001", "no body", ""] {
            let said = format!("there is no such user: {name}");
            desk.run(&["user", command, name]).await.fails(1, &[&said]);
        }
    }
    desk.run(&["user", "set-role", "nobody", "admin"]).await.fails(1, &["there is no such user"]);
    desk.run(&["user", "set-role", "alice", "Admin"]).await.fails(1, &["roles[0]"]);
    desk.run(&["user", "list", "--role", "Admin"]).await.fails(1, &["role is not a valid role name"]);
    desk.run(&["user", "list", "--query", &"a".repeat(255)])
        .await
        .fails(1, &["query may have at most 254 bytes"]);
    let set = ["user", "set-password", "alice", "--password-stdin"];
    desk.run_with(&set, "alice@example.com").await.fails(1, &["password", "your own name or address"]);
    let unchanged = desk.home.serve(&desk.environment()).await;
    assert_eq!(log_in(&unchanged, "alice", PASSWORD).await, 200);

    // None of these created anything.
    assert_eq!(desk.run(&["user", "list", "--json"]).await.json().as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_username_that_is_another_users_id_selects_neither_user() {
    let desk = Desk::new().await;
    let bob = desk.create("bob").await["id"].as_str().unwrap().to_owned();
    // Such a name is allowed, as any name is; but showing it to an operator must not get Bob locked out.
    let mallory = desk.create(&bob).await;
    for command in [&["user", "disable", &bob][..], &["user", "show", &bob], &["history", "--user", &bob]] {
        desk.run(command).await.fails(1, &["looks like another user's id", "e-mail address"]);
    }
    let show = async |name: &str| desk.run(&["user", "show", name, "--json"]).await.json();
    assert_eq!(show("bob").await["disabled"], false);
    desk.run(&["user", "disable", mallory["id"].as_str().unwrap()]).await.expect(0);
    assert_eq!(show(mallory["email"].as_str().unwrap()).await["disabled"], true);
    // Nobody has this id, or has it any longer.
    let gone = "01940000-0000-7000-8000-00000000000a";
    desk.run(&["user", "show", gone]).await.fails(1, &["no such user"]);
    desk.run(&["history", "--user", gone]).await.expect(0);
}

#[tokio::test]
async fn removing_the_last_administrator_is_refused_with_advice() {
    let desk = Desk::new().await;
    desk.create("root").await;
    desk.create("alice").await;
    desk.run(&["user", "set-role", "root", "admin"]).await.expect(0);
    let takes = [&["disable", "root"][..], &["set-role", "root", "--none"], &["delete", "root", "--yes"]];
    for take in takes {
        let hints =
            ["the last administrator", "give another one the role `admin` first (`gatepass user set-role`)"];
        desk.run(&[&["user"], take].concat()).await.fails(1, &hints);
    }
    assert_eq!(desk.run(&["user", "show", "root", "--json"]).await.json()["roles"], json!(["admin"]));
    desk.run(&["user", "set-role", "alice", "admin"]).await.expect(0);
    for take in takes {
        desk.run(&[&["user"], take].concat()).await.expect(0);
    }
    desk.run(&["user", "disable", "alice"]).await.fails(1, &["the last administrator"]);
}

#[tokio::test]
async fn a_database_without_the_schema_is_left_as_it_is() {
    let desk = Desk { home: Home::new(), url: empty_database().await };
    desk.run(&["user", "list"]).await.fails(1, &["lacks", "`gatepass migrate up`"]);
    let mut conn = PgConnection::connect(&desk.url).await.unwrap();
    let tables: i64 =
        sqlx::query_scalar("SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace")
            .fetch_one(&mut conn)
            .await
            .unwrap();
    assert_eq!(tables, 0);
}

#[tokio::test]
async fn config_shows_what_is_in_force_and_where_it_came_from() {
    let home = Home::new();
    home.write("app.env", "# mine\nTOKEN_ISSUER=me\nREGISTRATION=closed\nTOKEN_SYMMETRIC_KEY=hunter2-hunter2-hunter2-hunter2-\n");
    let db = home.write("db", "postgres://gatepass:hunter2@db.example.com/gatepass\n");
    let environment = [("REGISTRATION", "open"), ("DB_SOURCE_FILE", &*db)];
    let ended = home.gatepass(&["config"]).envs(&environment).run().await.expect(0);
    for line in [
        "TOKEN_ISSUER=me  # app.env:2",
        "REGISTRATION=open  # environment",
        "TOKEN_SYMMETRIC_KEY=********  # app.env:4",
        &format!("DB_SOURCE=postgres://gatepass:********@db.example.com/gatepass  # DB_SOURCE_FILE={db}"),
        "TOKEN_AUDIENCE=gatepass  # default",
    ] {
        assert!(ended.stdout.lines().any(|shown| shown == line), "{line} is not in:\n{}", ended.stdout);
    }
    assert!(ended.stderr.contains("warning: TOKEN_SYMMETRIC_KEY (app.env:4)"), "{}", ended.stderr);
    assert!(!ended.stdout.contains("hunter2") && !ended.stderr.contains("hunter2"), "{ended:?}");

    let ended = home.gatepass(&["config", "--json"]).envs(&environment).run().await;
    assert!(!ended.stdout.contains("hunter2"), "{ended:?}");
    let report = ended.json();
    let of =
        |name: &str| report.as_array().unwrap().iter().find(|line| line["name"] == name).unwrap().clone();
    assert_eq!(
        (&of("TOKEN_ISSUER")["value"], &of("TOKEN_ISSUER")["origin"]),
        (&json!("me"), &json!("app.env:2"))
    );
    assert_eq!(of("TOKEN_SYMMETRIC_KEY")["value"], "********");
    assert_eq!(of("TOKEN_AUDIENCE")["default"], true);
    assert_eq!(of("PASSWORD_PEPPER")["value"], Value::Null);
    // The command only reads.
    assert!(!home.path(".gatepass").exists());
}

#[tokio::test]
async fn config_warns_of_an_unverified_database_wherever_its_host_is_named() {
    let home = Home::new();
    let key = home.gatepass(&["key", "generate"]).run().await.expect(0).stdout;
    let production = [("ENVIRONMENT", "production"), ("TOKEN_SYMMETRIC_KEY", key.trim_end())];
    // A URL without a host leaves the host to libpq's variables, as sqlx reads them.
    for (environment, is_warned) in [
        (&[("DB_SOURCE", "postgres:///gatepass"), ("PGHOST", "10.1.2.3")][..], true),
        (&[("DB_SOURCE", "postgres:///gatepass"), ("PGHOST", "/run/pg"), ("PGHOSTADDR", "10.1.2.3")], true),
        (
            &[("DB_SOURCE", "postgres:///gatepass"), ("PGHOST", "10.1.2.3"), ("PGSSLMODE", "verify-full")],
            false,
        ),
        (&[("DB_SOURCE", "postgres:///gatepass"), ("PGHOST", "/run/pg")], false),
        (&[("DB_SOURCE", "postgres:///gatepass")], false),
        (&[("DB_SOURCE", "postgres://localhost/gatepass"), ("PGHOST", "10.1.2.3")], false),
    ] {
        let run = home.gatepass(&["config"]).envs(&production).envs(environment).run();
        let ended = run.await.expect(0);
        let warning = "DB_SOURCE (environment): the database is on another machine";
        assert_eq!(ended.stderr.contains(warning), is_warned, "{environment:?}: {}", ended.stderr);
    }
}

#[tokio::test]
async fn the_example_is_the_file_in_the_repository_and_can_be_used_as_it_is() {
    let home = Home::new();
    let example = home.gatepass(&["config", "--example"]).run().await.expect(0).stdout;
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("app.env.example");
    assert_eq!(example, fs::read_to_string(file).unwrap());
    home.write("app.env", &example);
    let ended = home.gatepass(&["config"]).run().await.expect(0);
    assert_eq!(ended.stderr, "", "no warnings either");
    assert!(ended.stdout.contains("ENVIRONMENT=development  # app.env:"), "{}", ended.stdout);
}

#[tokio::test]
async fn every_problem_in_app_env_is_reported_at_once_with_its_line() {
    let home = Home::new();
    let app_env = "TOKEN_ISUER=x\nREGISTRATION=maybe\nTOKEN_SYMMETRIC_KEY=hunter2\nwhat is this\nACCESS_TOKEN_DURATION=15\n";
    let file = home.write("app.env", app_env);
    let expected = [
        "gatepass: the configuration has 5 problems:",
        "TOKEN_ISUER (app.env:1): there is no such setting; did you mean TOKEN_ISSUER?",
        "REGISTRATION (app.env:2)",
        "TOKEN_SYMMETRIC_KEY (app.env:3)",
        "app.env:4",
        "ACCESS_TOKEN_DURATION (app.env:5)",
    ];
    for command in [&["serve"][..], &["config"], &["migrate", "up"], &["user", "list"], &["health"]] {
        let ended = home.gatepass(command).run().await.fails(1, &expected);
        assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
    }
    // The same file by name, from another directory; then a file that does not exist.
    let elsewhere = Home::new();
    let ended = elsewhere.gatepass(&["--config", &file, "config"]).run().await;
    ended.fails(1, &["5 problems", &format!("REGISTRATION ({file}:2)")]);
    for command in [&["--config", "missing.env", "serve"][..], &["config", "--config", "missing.env"]] {
        let ended = elsewhere.gatepass(command).run().await;
        ended.fails(1, &["missing.env: cannot be read: No such file"]);
    }
    assert!(!elsewhere.path(".gatepass").exists());
}

#[tokio::test]
async fn openapi_prints_the_document_in_the_repository() {
    let home = Home::new();
    let printed = home.gatepass(&["openapi"]).run().await.expect(0).stdout;
    let document: Value = serde_json::from_str(&printed).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json");
    assert!(printed == fs::read_to_string(file).unwrap(), "docs/openapi.json differs: gatepass openapi > it");
}

#[tokio::test]
async fn migrate_changes_the_schema_and_reports_each_step() {
    let desk = Desk { home: Home::new(), url: empty_database().await };
    let status = async || desk.run(&["migrate", "status", "--json"]).await.json().as_array().unwrap().clone();
    let states = async || status().await.iter().map(|line| line["state"].clone()).collect::<Vec<_>>();
    let all = status().await.len();
    assert!(all >= 2);
    assert_eq!(
        status().await[0],
        json!({"version": 1, "name": "users", "state": "pending", "applied_at": null})
    );

    let up = desk.run(&["migrate", "up", "1"]).await.expect(0).stdout;
    assert_eq!(up, "applied 000001 users\n");
    assert_eq!(states().await[..2], ["applied", "pending"]);
    assert!(status().await[0]["applied_at"].as_str().unwrap().ends_with('Z'));
    let up = desk.run(&["migrate", "up"]).await.expect(0).stdout;
    assert_eq!(up.lines().count(), all - 1, "{up}");
    assert!(states().await.iter().all(|state| state == "applied"));
    assert_eq!(desk.run(&["migrate", "up"]).await.expect(0).stdout, "nothing to do\n");

    let lines = desk.run(&["migrate", "status"]).await.expect(0).stdout;
    assert!(lines.starts_with("000001  users"), "{lines}");

    // Without a number, the last one is undone.
    let down = desk.run(&["migrate", "down"]).await.expect(0).stdout;
    assert!(down.starts_with(&format!("undone {all:06} ")) && down.lines().count() == 1, "{down}");
    desk.run(&["migrate", "up"]).await.expect(0);
    desk.run(&["migrate", "down", &all.to_string()]).await.expect(0);
    assert!(states().await.iter().all(|state| state == "pending"));
    assert_eq!(desk.run(&["migrate", "down"]).await.expect(0).stdout, "nothing to do\n");
    desk.run(&["migrate", "up"]).await.expect(0);
    // The largest number there is.
    desk.run(&["migrate", "down", &usize::MAX.to_string()]).await.expect(0);
    assert!(states().await.iter().all(|state| state == "pending"));
}

#[tokio::test]
async fn migrate_new_writes_the_next_pair() {
    let home = Home::new();
    home.gatepass(&["migrate", "new", "add_phones"])
        .run()
        .await
        .fails(1, &["migrations", "gatepass's source"]);
    fs::create_dir(home.path("migrations")).unwrap();
    for file in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), home.path("migrations").join(file.file_name())).unwrap();
    }
    let next = fs::read_dir(home.path("migrations")).unwrap().count() / 2 + 1;
    for (number, name) in [(next, "add_phones"), (next + 1, "drop_phones")] {
        let printed = home.gatepass(&["migrate", "new", name]).run().await.expect(0).stdout;
        let files = ["up", "down"].map(|direction| format!("migrations/{number:06}_{name}.{direction}.sql"));
        assert_eq!(printed, format!("{}\n{}\n", files[0], files[1]));
        for file in files {
            assert!(fs::read_to_string(home.path(&file)).unwrap().starts_with("-- "), "{file}");
        }
    }
}

/// `gatepass ARGS…` at a terminal, if there is a `script` that can provide one.
async fn at_a_terminal(desk: &Desk, args: &str) -> Option<Process> {
    let version = std::process::Command::new("script").arg("--version").output().ok()?;
    if !String::from_utf8_lossy(&version.stdout).contains("util-linux") {
        println!("skipped: no `script` of util-linux here");
        return None;
    }
    let command = format!("tty >terminal; exec {} {args}", env!("CARGO_BIN_EXE_gatepass"));
    let script = desk.home.program(Path::new("script")).arg("-qec").arg(&command).arg("/dev/null");
    Some(script.envs(&QUICK).envs(&desk.environment()).start())
}

/// Waits for the question, and until the terminal no longer echoes what is typed; then types the answer.
async fn answer_hidden(process: &mut Process, desk: &Desk, question: &str, answer: &str) {
    until(question, async || process.stdout().contains(question)).await;
    let terminal = fs::read_to_string(desk.home.path("terminal")).unwrap();
    until("the terminal is silent", async || {
        let stty = std::process::Command::new("stty").args(["-a", "-F", terminal.trim()]).output().unwrap();
        String::from_utf8_lossy(&stty.stdout).split_whitespace().any(|word| word == "-echo")
    })
    .await;
    process.write(&format!("{answer}\n")).await;
}

#[tokio::test]
async fn a_password_is_asked_for_twice_and_not_shown() {
    let desk = Desk::new().await;
    let create = "user create alice --email alice@example.com --json";
    for (again, code) in [("something else", 1), (PASSWORD, 0)] {
        let Some(mut process) = at_a_terminal(&desk, create).await else { return };
        answer_hidden(&mut process, &desk, "Password: ", PASSWORD).await;
        answer_hidden(&mut process, &desk, "Again: ", again).await;
        // Standard error is the terminal, too.
        let ended = process.end().await.expect(code);
        assert_eq!(ended.stdout.contains("the two passwords differ"), code == 1, "{}", ended.stdout);
        assert!(!ended.stdout.contains(PASSWORD), "{}", ended.stdout);
    }
    let service = desk.home.serve(&desk.environment()).await;
    assert_eq!(log_in(&service, "alice", PASSWORD).await, 200);
    service.stop(Signal::TERM).await.expect(0);
}

#[tokio::test]
async fn a_deletion_is_confirmed_by_name_at_a_terminal() {
    let desk = Desk::new().await;
    desk.create("alice").await;
    for (answer, code, outcome, left) in
        [("yes", 1, "nothing deleted", 1), ("alice", 0, "alice is deleted", 0)]
    {
        let Some(mut process) = at_a_terminal(&desk, "user delete alice").await else { return };
        let question = "Delete alice <alice@example.com> for good? Type the username: ";
        until(question, async || process.stdout().contains(question)).await;
        process.write(&format!("{answer}\n")).await;
        let ended = process.end().await.expect(code);
        assert!(ended.stdout.contains(outcome), "{}", ended.stdout);
        assert_eq!(desk.run(&["user", "list", "--json"]).await.json().as_array().unwrap().len(), left);
    }
}

#[tokio::test]
async fn a_working_directory_that_is_gone_is_told_as_such() {
    let home = Home::new();
    let gone = r#"mkdir gone && cd gone && rmdir ../gone && exec "$0" serve"#;
    let shell = home.program(Path::new("sh")).arg("-c").arg(gone).arg(env!("CARGO_BIN_EXE_gatepass"));
    shell.run().await.fails(1, &["working directory", "No such file or directory", "deleted?"]);
}

#[tokio::test]
async fn key_generate_prints_a_key_that_production_takes() {
    let home = Home::new();
    let key = home.gatepass(&["key", "generate"]).run().await.expect(0).stdout;
    let other = home.gatepass(&["key", "generate"]).run().await.expect(0).stdout;
    assert!(key.starts_with("k4.local.") && key.ends_with('\n') && key != other, "{key}");
    let production = [
        ("ENVIRONMENT", "production"),
        ("DB_SOURCE", "postgres://localhost/gatepass"),
        ("TOKEN_SYMMETRIC_KEY", key.trim_end()),
    ];
    home.gatepass(&["config"]).envs(&production).run().await.expect(0);

    let json = home.gatepass(&["key", "generate", "--json"]).run().await.expect(0).json();
    let key: gatepass::token::SymmetricKey = json["key"].as_str().unwrap().parse().unwrap();
    assert_eq!(json["kid"], key.id().as_str());
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_command_does_its_work_even_if_stderr_cannot_be_written() {
    let desk = Desk::new().await;
    let run = async |command: &str| {
        let shell = desk.home.shell(&format!("exec \"$0\" {command} 2>/dev/full"));
        shell.envs(&QUICK).envs(&desk.environment()).run().await
    };
    let line = json!({ "username": "alice", "email": "alice@example.com", "roles": ["no role"] });
    desk.home.write("users.jsonl", &format!("{line}\nnothing\n"));
    let imported = run("import users.jsonl").await.expect(1);
    assert!(imported.stdout.ends_with("2 rejected\n"), "{}", imported.stdout);
    run("export --output users").await.expect(0);
    run("user show nobody").await.expect(1);
    run("client create proxy").await.expect(0);
}
