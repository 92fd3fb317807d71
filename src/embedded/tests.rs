//! Real servers in real directories: owners, guests, orphans, and what goes wrong between them.

use std::{
    fs::{DirBuilder, Permissions},
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown, lchown, symlink},
    process::{Output, Stdio},
    time::Duration,
};

use tokio::{
    process::{Child, Command},
    task::JoinSet,
};

use super::{pid_file::is_postgres, *};
use crate::not_tested::are_root;

/// Set in a process that a test starts in order to kill it: the state directory in which it starts a server.
const VICTIM: &str = "GATEPASS_TEST_EMBEDDED_VICTIM";

/// A directory that the server's user can pass through, like a project's.
fn project() -> tempfile::TempDir {
    let mode = Permissions::from_mode(0o755);
    tempfile::Builder::new().prefix("gatepass-").permissions(mode).tempdir().unwrap()
}

async fn psql(url: &str, sql: &str) -> Output {
    let mut psql = Programs::installed().await[0].command("psql", None);
    psql.args([url, "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql]).output().await.unwrap()
}

async fn sql(embedded: &Embedded, sql: &str) -> String {
    let output = psql(embedded.url(), sql).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o777
}

fn half_made(state: &Path) -> usize {
    let entries = fs::read_dir(state).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().contains(".new-")).count()
}

/// Runs [`victim`] in a process of its own.
fn start_victim(state: &Path) -> Child {
    let (_, module) = module_path!().split_once("::").unwrap();
    Command::new(std::env::current_exe().unwrap())
        .args([&format!("{module}::victim"), "--exact", "--nocapture"])
        .env(VICTIM, state)
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// Not a test: what [`start_victim`] runs.
#[tokio::test]
async fn victim() {
    if let Some(state) = std::env::var_os(VICTIM) {
        let _embedded = Embedded::start(Path::new(&state)).await.unwrap();
        sleep(Duration::from_secs(60)).await;
    }
}

async fn until(mut condition: impl FnMut() -> bool) {
    for _ in 0..1500 {
        if condition() {
            return;
        }
        sleep(POLL).await;
    }
    panic!("not within 15 seconds");
}

#[tokio::test]
async fn data_survives_restarts_and_a_guest_does_not_stop_the_server() {
    let project = project();
    let state = project.path().join(".gatepass");
    let owner = Embedded::start(&state).await.unwrap();
    assert_eq!(
        sql(&owner, "CREATE TABLE kept AS SELECT 42 AS answer; SELECT current_user").await,
        "gatepass"
    );
    let settings = "SELECT current_setting('listen_addresses'), current_setting('server_encoding'), \
                    current_setting('fsync'), current_database()";
    assert_eq!(sql(&owner, settings).await, "|UTF8|on|gatepass");
    assert_eq!((mode(owner.data_dir()), mode(&state.join("run"))), (0o700, 0o700));
    assert_eq!((mode(&state.join("postgres.log")), mode(&state) & 0o007), (0o600, 0));

    let guest = Embedded::start(&state).await.unwrap();
    assert!(guest.server.is_none());
    assert_eq!((guest.url(), guest.data_dir()), (owner.url(), owner.data_dir()));
    guest.stop().await.unwrap();
    assert_eq!(sql(&owner, "SELECT answer FROM kept").await, "42");

    let url = owner.url().to_owned();
    owner.stop().await.unwrap();
    assert!(!psql(&url, "SELECT 1").await.status.success());

    let again = Embedded::start(&state).await.unwrap();
    assert_eq!(again.url(), url);
    assert_eq!(sql(&again, "SELECT answer FROM kept").await, "42");

    // It was dropped, so it is shutting down when the next one comes.
    drop(again);
    let again = Embedded::start(&state).await.unwrap();
    assert_eq!(sql(&again, "SELECT answer FROM kept").await, "42");
    again.stop().await.unwrap();
}

#[tokio::test]
async fn the_last_to_leave_stops_the_server() {
    let project = project();
    let state = project.path().join(".gatepass");
    let owner = Embedded::start(&state).await.unwrap();
    let pid = owner.server.as_ref().unwrap().pid().unwrap();
    let (first, second) = (Embedded::start(&state).await.unwrap(), Embedded::start(&state).await.unwrap());
    owner.stop().await.unwrap();
    assert_eq!(sql(&first, "SELECT 1").await, "1");

    // Whoever comes now takes the server over, and leaves it running too.
    let next = Embedded::start(&state).await.unwrap();
    assert_eq!(next.server.as_ref().unwrap().pid(), Some(pid));
    next.stop().await.unwrap();
    first.stop().await.unwrap();
    assert_eq!(sql(&second, "SELECT 1").await, "1");
    second.stop().await.unwrap();
    assert!(!state.join("postgres/postmaster.pid").exists());
    until(|| !is_postgres(pid)).await;

    // All leave at once: one that checks while another is about to go does not rely on that one.
    for _ in 0..10 {
        let owner = Embedded::start(&state).await.unwrap();
        let pid = owner.server.as_ref().unwrap().pid().unwrap();
        let mut leaving = JoinSet::new();
        for _ in 0..3 {
            let guest = Embedded::start(&state).await.unwrap();
            leaving.spawn(guest.stop());
        }
        leaving.spawn(owner.stop());
        leaving.join_all().await.into_iter().for_each(Result::unwrap);
        until(|| !is_postgres(pid)).await;
    }
}

#[tokio::test]
async fn an_orphan_is_taken_over_and_stopped() {
    let project = project();
    let state = project.path().join(".gatepass");
    let mut victim = start_victim(&state);
    until(|| PidFile::read(&state.join("postgres")).is_some_and(|file| file.ready)).await;
    victim.kill().await.unwrap();

    let orphan = PidFile::read(&state.join("postgres")).unwrap().pid;
    let embedded = Embedded::start(&state).await.unwrap();
    assert_eq!(embedded.server.as_ref().unwrap().pid(), Some(orphan));
    sql(&embedded, "SELECT 1").await;
    embedded.stop().await.unwrap();
    assert!(!state.join("postgres/postmaster.pid").exists());
    // Removing that file is the server's last act, and it still takes a moment.
    until(|| !is_postgres(orphan)).await;
}

#[tokio::test]
async fn a_start_killed_in_the_middle_does_no_harm() {
    let project = project();
    let state = project.path().join(".gatepass");
    let mut victim = start_victim(&state);
    until(|| half_made(&state) > 0).await;
    victim.kill().await.unwrap();
    assert!(!state.join("postgres").exists());

    // The first start may find an initdb that has outlived its parent; the second finds it gone.
    Embedded::start(&state).await.unwrap().stop().await.unwrap();
    let embedded = Embedded::start(&state).await.unwrap();
    sql(&embedded, "SELECT 1").await;
    assert_eq!(half_made(&state), 0);
    embedded.stop().await.unwrap();
}

#[tokio::test]
async fn whoever_waits_for_the_lock_becomes_the_owner() {
    let project = project();
    let state = project.path().join(".gatepass");
    DirBuilder::new().mode(0o700).create(&state).unwrap();
    let path = state.join("postgres.lock");
    let other = Lock { file: File::create(&path).unwrap(), path };
    assert!(other.take().unwrap());
    let waiting = tokio::spawn({
        let state = state.clone();
        async move { Embedded::start(&state).await }
    });
    sleep(Duration::from_millis(100)).await;
    assert!(!state.join("run").exists());
    drop(other);
    let embedded = waiting.await.unwrap().unwrap();
    assert!(embedded.server.is_some());

    // The state directory is removed under the server. Another one starts anew, and the first takes nothing along when
    // it ends.
    fs::remove_dir_all(&state).unwrap();
    let anew = Embedded::start(&state).await.unwrap();
    embedded.stop().await.unwrap();
    sql(&anew, "SELECT 1").await;
    anew.stop().await.unwrap();
}

#[tokio::test]
async fn a_crash_does_not_prevent_a_start_and_a_bad_edit_is_reported() {
    let project = project();
    let state = project.path().join(".gatepass");
    let embedded = Embedded::start(&state).await.unwrap();
    let pid_file = embedded.data_dir().join("postmaster.pid");
    let socket_lock = state.join("run/.s.PGSQL.5432.lock");
    let left = [fs::read_to_string(&pid_file).unwrap(), fs::read_to_string(&socket_lock).unwrap()];
    let data = embedded.data_dir().to_owned();
    embedded.stop().await.unwrap();

    // After a crash of the machine, another process (this one) has the server's id.
    for (file, text) in [&pid_file, &socket_lock].into_iter().zip(left) {
        let (_, rest) = text.split_once('\n').unwrap();
        fs::write(file, format!("{}\n{rest}", std::process::id())).unwrap();
    }
    let embedded = Embedded::start(&state).await.unwrap();
    sql(&embedded, "SELECT 1").await;
    embedded.stop().await.unwrap();

    let conf = data.join("postgresql.conf");
    let good = fs::read_to_string(&conf).unwrap();
    fs::write(&conf, format!("{good}nonsense = 1\n")).unwrap();
    let error = Embedded::start(&state).await.unwrap_err();
    assert!(
        matches!(error, EmbeddedError::Exited { .. }) && error.to_string().contains("nonsense"),
        "{error}"
    );

    fs::write(data.join("PG_VERSION"), "9\n").unwrap();
    let error = Embedded::start(&state).await.unwrap_err().to_string();
    let installed = Programs::installed().await[0].major.to_string();
    assert!(error.contains("made by Postgres 9") && error.contains(&installed), "{error}");

    fs::remove_file(data.join("PG_VERSION")).unwrap();
    let error = Embedded::start(&state).await.unwrap_err();
    assert!(matches!(error, EmbeddedError::NotACluster { .. }), "{error}");
}

#[tokio::test]
async fn a_path_unsuitable_for_a_socket_moves_the_socket_elsewhere() {
    let project = project();
    let long = project.path().join("a, \"b\" 'c' %41 é/".repeat(6));
    DirBuilder::new().recursive(true).mode(0o755).create(&long).unwrap();
    let embedded = Embedded::start(&long.join(".gatepass")).await.unwrap();
    assert_eq!(sql(&embedded, "SELECT 1").await, "1");
    let run = PidFile::read(embedded.data_dir()).unwrap().run;
    assert!(!run.starts_with(project.path()) && mode(&run) == 0o700, "{}", run.display());
    embedded.stop().await.unwrap();
    fs::remove_dir(&run).unwrap();

    // What somebody else put there first is refused.
    symlink(project.path(), &run).unwrap();
    let error = Embedded::start(&long.join(".gatepass")).await.unwrap_err();
    fs::remove_file(&run).unwrap();
    assert!(matches!(error, EmbeddedError::NotOurs { .. }), "{error}");
}

#[tokio::test]
async fn root_keeps_the_data_elsewhere_if_it_must() {
    if !are_root("where root keeps the data") {
        return;
    }
    let project = project();
    fs::set_permissions(project.path(), Permissions::from_mode(0o700)).unwrap();
    let state = project.path().join(".gatepass");
    let embedded = Embedded::start(&state).await.unwrap();
    let data = embedded.data_dir().to_owned();
    let base = data.parent().unwrap().to_owned();
    assert!(base.starts_with("/var/lib/gatepass"));
    assert_eq!(fs::read_link(state.join("postgres")).unwrap(), data);
    sql(&embedded, "CREATE TABLE kept (); SELECT FROM kept").await;
    embedded.stop().await.unwrap();

    let embedded = Embedded::start(&state).await.unwrap();
    sql(&embedded, "SELECT FROM kept").await;

    // Removing the state directory means a new beginning here too, even under a running server.
    fs::remove_dir_all(&state).unwrap();
    let anew = Embedded::start(&state).await.unwrap();
    assert!(!psql(anew.url(), "SELECT FROM kept").await.status.success());
    assert!(base.join("postgres.old/PG_VERSION").exists());
    anew.stop().await.unwrap();
    embedded.stop().await.unwrap();
    fs::remove_dir_all(base).unwrap();
}

/// What the owner of the state directory may put there to make root write to something elsewhere, or give it away.
#[tokio::test]
async fn root_is_not_led_astray() {
    if !are_root("that root is not led astray") {
        return;
    }
    const NOBODY: u32 = 65534;
    let project = project();
    let root = |name: &str| project.path().join(name);
    let state = root("state");
    DirBuilder::new().mode(0o755).create(&state).unwrap();
    chown(&state, Some(NOBODY), Some(NOBODY)).unwrap();
    let planted = |target: &Path, link: &Path| {
        symlink(target, link).unwrap();
        lchown(link, Some(NOBODY), Some(NOBODY)).unwrap();
    };
    let refused = async |state: &Path, path: &Path| {
        let error = Embedded::start(state).await.unwrap_err();
        assert!(
            matches!(error, EmbeddedError::NotOurs { .. } | EmbeddedError::NotPlain { .. }),
            "{}: {error}",
            path.display()
        );
        assert!(error.to_string().starts_with(path.to_str().unwrap()), "{error}");
    };
    let untouched = |path: &Path| {
        let meta = fs::metadata(path).unwrap();
        assert_eq!((meta.uid(), meta.mode() & 0o777), (0, 0o700), "{}", path.display());
    };

    let secret = root("secret");
    fs::write(&secret, "kept").unwrap();
    fs::set_permissions(&secret, Permissions::from_mode(0o700)).unwrap();
    let closed = root("closed");
    DirBuilder::new().mode(0o700).create(&closed).unwrap();
    fs::write(closed.join("file"), "").unwrap();

    // The state directory itself.
    planted(&closed, &root("link"));
    refused(&root("link"), &root("link")).await;
    // The lock first, then the directory of the socket; the log only when there is a cluster.
    for name in ["postgres.lock", "run", "postgres.log"] {
        let path = state.join(name);
        // An earlier start may have got far enough to create it.
        let _ = fs::remove_dir(&path);
        for target in [&secret, &closed, &root("missing")] {
            planted(target, &path);
            refused(&state, &path).await;
            fs::remove_file(&path).unwrap();
        }
        fs::hard_link(&secret, &path).unwrap();
        refused(&state, &path).await;
        fs::remove_file(&path).unwrap();
        // Something of root's, moved there.
        let moved = if name == "run" { &closed } else { &secret };
        fs::rename(moved, &path).unwrap();
        refused(&state, &path).await;
        fs::rename(&path, moved).unwrap();
        assert!(!root("missing").exists());
    }

    // The data, and a cluster in the making.
    let data = state.join("postgres");
    fs::rename(&data, root("data")).unwrap();
    for target in [&closed, &root("missing")] {
        planted(target, &data);
        refused(&state, &data).await;
        fs::remove_file(&data).unwrap();
    }
    fs::rename(root("data"), &data).unwrap();
    planted(&closed, &state.join("postgres.new-1"));

    // A link of their own to something of their own is their business; so is everything else that belongs to them.
    planted(&state, &root("own"));
    let embedded = Embedded::start(&root("own")).await.unwrap();
    assert_eq!(half_made(&state), 0);
    for name in ["postgres", "postgres.lock", "postgres.log", "run"] {
        assert_eq!(fs::symlink_metadata(state.join(name)).unwrap().uid(), NOBODY, "{name}");
    }
    embedded.stop().await.unwrap();

    untouched(&secret);
    untouched(&closed);
    assert_eq!(fs::read_to_string(&secret).unwrap(), "kept");
    assert!(closed.join("file").exists());
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_postgres_is_known_by_its_whole_name() {
    let project = project();
    for (name, is_one) in [("postgres", true), ("postmaster", true), ("postgres_export", false)] {
        let program = project.path().join(name);
        // The process is named after the link. The program, which may be several in one, goes by the argument.
        symlink("/bin/sleep", &program).unwrap();
        let mut child = Command::new(&program).arg0("sleep").arg("60").kill_on_drop(true).spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
        assert_eq!(is_postgres(pid), is_one, "{name}");
        child.kill().await.unwrap();
        assert!(!is_postgres(pid));
    }
}

/// A process that another user runs is not stopped because the data names it.
#[tokio::test]
async fn a_pid_file_cannot_point_root_at_another_users_postgres() {
    const NOBODY: u32 = 65534;
    if !are_root("that root stops nobody else's Postgres") {
        return;
    }
    let (ours, theirs) = (project(), project());
    let victim = Embedded::start(&ours.path().join(".gatepass")).await.unwrap();
    let data = theirs.path().join(".gatepass/postgres");
    fs::create_dir_all(&data).unwrap();
    let named = fs::read_to_string(victim.data_dir().join("postmaster.pid")).unwrap();
    let lines: Vec<&str> = named.lines().collect();
    fs::write(
        data.join("postmaster.pid"),
        format!("{}\n{}\n{}\n", lines[0], data.display(), lines[2..].join("\n")),
    )
    .unwrap();
    for path in [&data, data.parent().unwrap()] {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let error = super::server::Server::adopt(&data).await.unwrap_err();
    assert!(matches!(error, EmbeddedError::NotOurs { uid: NOBODY, .. }), "{error}");
    assert_eq!(sql(&victim, "SELECT 1").await, "1");
    victim.stop().await.unwrap();
}
