//! `gatepass export --output` writes a file that is complete or not there, wherever a file can be written. The partial
//! file beside it belongs to one writer, is removed with them, and is taken over from a writer that was killed. The
//! contents of an export are tested in tests/import.rs.

use std::{
    fs,
    fs::Permissions,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
};

use sqlx::AssertSqlSafe;

use crate::{
    app::{App, PASSWORD, as_role},
    not_tested::{are_root, cannot_be_tested},
    process::{Home, Invocation, Process, Signal, is_root, until},
};

struct Here {
    app: App,
    home: Home,
}

impl Here {
    /// With one user.
    async fn new() -> Self {
        let here = Self { app: App::new().await, home: Home::new() };
        here.app.register("alice").await;
        here
    }

    fn with_database(&self, invocation: Invocation) -> Invocation {
        invocation.env("DB_SOURCE", &as_role(&self.app.database_url, "gatepass_app"))
    }

    fn export(&self) -> Invocation {
        self.with_database(self.home.gatepass(&["export", "--output", "out.jsonl"]))
    }

    /// An export that has written nothing yet, since it waits for the lock that the test holds.
    async fn waiting(&self) -> Process {
        let process = self.export().start();
        let waits = "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database
                     WHERE NOT granted AND datname = current_database()";
        until("it waits", async || {
            sqlx::query_scalar::<_, i64>(AssertSqlSafe(waits)).fetch_one(&self.app.db).await.unwrap() == 1
        })
        .await;
        process
    }

    /// The file's contents, and the names of all other files.
    fn left(&self) -> (String, Vec<String>) {
        let entries = fs::read_dir(self.home.path(".")).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| name != "out.jsonl");
        (fs::read_to_string(self.home.path("out.jsonl")).unwrap(), names)
    }
}

#[tokio::test]
async fn a_cancelled_export_leaves_nothing_and_a_killed_one_blocks_nothing() {
    let here = Here::new().await;
    here.home.write("out.jsonl", "old");
    let old = ("old".to_owned(), Vec::new());
    let mut hold = here.app.db.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE users").execute(&mut *hold).await.unwrap();
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        here.waiting().await.stop(signal).await.fails(code, &["cancelled"]);
        assert_eq!(here.left(), old);
        // The server does not notice that nobody is listening any more.
        let end = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
        sqlx::raw_sql(end).execute(&here.app.db).await.unwrap();
    }

    // There is one writer at a time.
    let first = here.waiting().await;
    here.export().run().await.fails(1, &["out.jsonl.part: another process is writing it"]);
    assert_eq!(first.stop(Signal::KILL).await.code, None);
    assert_eq!(here.left(), ("old".to_owned(), vec!["out.jsonl.part".to_owned()]));
    hold.rollback().await.unwrap();
    here.export().run().await.expect(0);
    let (users, others) = here.left();
    assert!(users.contains("alice") && others.is_empty(), "{users} {others:?}");
}

/// Containers mount single files like this.
#[tokio::test]
async fn a_file_that_is_mounted_is_written_to() {
    let here = Here::new().await;
    here.home.write("out.jsonl", "old");
    let mount = r#"mount --bind out.jsonl out.jsonl"#;
    let options = if is_root() { "-m" } else { "-Urm" };
    let unshare = |script: &str| here.home.shell(&format!("exec unshare {options} sh -c '{script}' \"$0\""));
    if unshare(mount).run().await.code != Some(0) {
        return cannot_be_tested("a file that is mounted", "this machine does not let us mount one");
    }
    let export = unshare(&format!("{mount} && exec \"$0\" export --output out.jsonl"));
    here.with_database(export).run().await.expect(0);
    let (users, others) = here.left();
    assert!(users.contains("alice") && others.is_empty(), "{users} {others:?}");

    here.home.write("in.jsonl", "{\"username\":\"bob\",\"email\":\"bob@example.com\"}\n");
    let compare =
        unshare(&format!("{mount} && exec \"$0\" import in.jsonl --compare --differences out.jsonl"));
    here.with_database(compare).run().await.expect(1);
    let (differences, _) = here.left();
    assert!(differences.contains("missing") && !differences.contains("alice@"), "{differences}");
}

#[tokio::test]
async fn a_writable_file_in_a_read_only_directory_is_written() {
    // Root may write anywhere, and another user cannot reach the tests' database.
    let home = Home::of_nobody().unwrap_or_else(Home::new);
    let user = ["user", "create", "alice", "--email", "alice@example.com", "--password-stdin"];
    home.gatepass(&user).stdin(PASSWORD).run().await.expect(0);
    let closed = home.path("closed");
    fs::create_dir(&closed).unwrap();
    let path = home.write("closed/out.jsonl", "old");
    let theirs = home.write("closed/theirs.jsonl", "old");
    fs::set_permissions(&theirs, Permissions::from_mode(0o666)).unwrap();
    if is_root() {
        chown(&path, Some(fs::metadata(home.path(".")).unwrap().uid()), None).unwrap();
    }
    fs::set_permissions(&closed, Permissions::from_mode(0o555)).unwrap();

    home.gatepass(&["export", "--output", "closed/out.jsonl"]).run().await.expect(0);
    assert!(fs::read_to_string(&path).unwrap().contains("alice"));
    home.gatepass(&["export", "--output", "closed/other"]).run().await.fails(1, &["closed/other", "denied"]);
    home.write("in.jsonl", "{\"username\":\"bob\",\"email\":\"bob@example.com\"}\n");
    let compare = ["import", "in.jsonl", "--compare", "--differences", "closed/out.jsonl"];
    home.gatepass(&compare).run().await.expect(1);
    let differences = fs::read_to_string(&path).unwrap();
    assert!(differences.contains("missing") && !differences.contains("alice@"), "{differences}");
    if are_root("that an export leaves alone what another user owns") {
        // A file that cannot be made private is not emptied.
        home.gatepass(&["export", "--output", "closed/theirs.jsonl"]).run().await.fails(1, &["theirs.jsonl"]);
        assert_eq!(fs::read_to_string(&theirs).unwrap(), "old");
        // Nor is a file beside another user's partial file, since that user may be writing it.
        let path = home.write("mine.jsonl", "old");
        chown(&path, Some(fs::metadata(home.path(".")).unwrap().uid()), None).unwrap();
        fs::set_permissions(home.write("mine.jsonl.part", ""), Permissions::from_mode(0o600)).unwrap();
        let part = ["mine.jsonl.part", "denied"];
        home.gatepass(&["export", "--output", "mine.jsonl"]).run().await.fails(1, &part);
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
    }
    // Allows the directory to be removed.
    fs::set_permissions(&closed, Permissions::from_mode(0o755)).unwrap();
}
