//! README.md is true: its session runs as written and gets the answers shown, its examples are the ones that compile,
//! and its table of settings is the code's.

use std::{env, fs, path::Path, process::Stdio};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::app::{self, KEY};

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");

fn readme() -> String {
    fs::read_to_string(PATH).unwrap()
}

/// The text between two markers.
fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    let (_, rest) = text.split_once(from).unwrap_or_else(|| panic!("no {from:?}"));
    rest.split_once(to).unwrap_or_else(|| panic!("no {to:?} after {from:?}")).0
}

#[test]
fn the_settings_table_in_the_readme_is_up_to_date() {
    const FROM: &str = "<!-- settings -->\n";
    const TO: &str = "<!-- /settings -->";

    let table = gatepass::config::settings_table_markdown();
    if env::var_os("UPDATE_EXPECT").is_some() {
        let old = readme();
        let stale = format!("{FROM}{}{TO}", between(&old, FROM, TO));
        fs::write(PATH, old.replace(&stale, &format!("{FROM}\n{table}\n{TO}"))).unwrap();
    }
    assert!(
        between(&readme(), FROM, TO).trim() == table.trim(),
        "README.md's table of settings is out of date: run this test with UPDATE_EXPECT=1 to rewrite it"
    );
}

#[test]
fn the_examples_in_the_readme_are_the_compiled_ones() {
    let readme = readme();
    let shown: Vec<&str> =
        readme.split("```rust\n").skip(1).map(|rest| rest.split_once("```\n").unwrap().0).collect();
    let sources = [
        ("src/bearer/mod.rs", "//! ```\n"),
        ("src/bearer/remote/keys.rs", "/// ```no_run\n"),
        ("src/bearer/remote/revocations.rs", "/// ```no_run\n"),
    ];
    assert_eq!(shown.len(), sources.len());
    for ((path, fence), shown) in sources.into_iter().zip(shown) {
        let source = fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap();
        // As rustdoc shows it: without the lines that it hides.
        let visible: Vec<&str> = between(&source, fence, "```\n")
            .lines()
            .map(|line| line.trim_start_matches("//!").trim_start_matches("///"))
            .map(|line| line.strip_prefix(' ').unwrap_or_default())
            .filter(|line| *line != "#" && !line.starts_with("# "))
            .collect();
        // Without what is left of the line with the closing fence.
        let visible = visible.split_last().unwrap().1;
        assert_eq!(
            shown.lines().collect::<Vec<_>>(),
            visible,
            "README.md's example differs from the one in {path}"
        );
    }
}

#[tokio::test]
async fn the_session_runs_as_it_is_written() {
    const NEXT: &str = "--- next ---";

    let readme = readme();
    // In the order of the page, since the later ones continue the earlier ones.
    let sessions = readme.split("<!-- session -->\n```console\n").skip(1);
    let sessions = sessions.map(|rest| rest.split_once("```\n<!-- /session -->").unwrap().0);
    let steps: Vec<_> = sessions.flat_map(steps).collect();
    assert!(steps.iter().filter(|step| step.shows.is_some()).count() >= 8, "{steps:#?}");

    let directory = tempfile::tempdir().unwrap();
    let database_url = app::database().await;
    let (_service, address) = serve(directory.path(), &database_url).await;
    let binaries = Path::new(env!("CARGO_BIN_EXE_gatepass")).parent().unwrap();
    let path = format!("{}:{}", binaries.display(), env::var("PATH").unwrap());
    // One shell for all of them, as for a reader, so that variables and files persist.
    let mut script = String::new();
    for step in &steps {
        script += &format!("{}\necho; echo '{NEXT}'\n", step.command.replace("localhost:8080", &address));
    }
    let shell = Command::new("bash")
        .args(["-eu", "-o", "pipefail", "-c", &script])
        .current_dir(&directory)
        .env("NO_PROXY", "*")
        .env("PATH", path)
        .env("DB_SOURCE", database_url)
        .stderr(Stdio::inherit())
        .output()
        .await
        .unwrap();
    let output = String::from_utf8(shell.stdout).unwrap();
    assert!(shell.status.success(), "{}\n{output}", shell.status);

    let outputs: Vec<&str> = output.split_terminator(&format!("\n{NEXT}\n")).collect();
    assert_eq!(outputs.len(), steps.len(), "{output}");
    for (Step { command, shows }, output) in steps.iter().zip(outputs) {
        let Some(shows) = shows else {
            assert_eq!(output, "", "{command} shows nothing in README.md");
            continue;
        };
        let real = Answer::parse(output);
        assert_eq!(shows.status, real.status, "{command}\n{output}");
        assert_eq!(constant(&shows.body), constant(&real.body), "{command}\n{output}");
        for field in &shows.fields {
            // Up to the id, where it has one.
            let field = field.split_inclusive("/users/").next().unwrap();
            assert!(real.fields.iter().any(|real| real.starts_with(field)), "{command}\n{field}\n{output}");
        }
    }
}

/// Starts the service on a free port; returns its address, too.
async fn serve(directory: &Path, database_url: &str) -> (Child, String) {
    let mut service = Command::new(env!("CARGO_BIN_EXE_gatepass"))
        .arg("serve")
        .current_dir(directory)
        .env_clear()
        .env("RUST_LOG", "error")
        .env("HTTP_SERVER_ADDRESS", "127.0.0.1:0")
        .env("DB_SOURCE", database_url)
        .env("TOKEN_SYMMETRIC_KEY", KEY)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(service.stdout.take().unwrap()).lines();
    while let Some(line) = lines.next_line().await.unwrap() {
        if let Some((_, rest)) = line.split_once(" is ready at http://") {
            return (service, rest.split('/').next().unwrap().to_owned());
        }
    }
    panic!("the service ended: {}", service.wait().await.unwrap());
}

/// A command, and the answer that README.md shows for it.
#[derive(Debug)]
struct Step {
    command: String,
    shows: Option<Answer>,
}

/// A command begins with `$ ` and continues after a `\` at the end of a line; its answer extends to the next command.
fn steps(session: &str) -> Vec<Step> {
    let step = |text: &str| {
        let mut end = 0;
        for line in text.split_inclusive('\n') {
            end += line.len();
            if !line.ends_with("\\\n") {
                break;
            }
        }
        let (command, shows) = text.split_at(end);
        let shows = Some(shows.trim()).filter(|shows| !shows.is_empty()).map(Answer::parse);
        assert_eq!(command.starts_with("curl "), shows.is_some(), "each curl shows its answer: {command}");
        Step { command: command.trim_end().to_owned(), shows }
    };
    let (before, commands) = session.split_once("$ ").unwrap();
    assert_eq!(before, "");
    commands.split("\n$ ").map(step).collect()
}

/// What `curl -i` prints.
#[derive(Debug)]
struct Answer {
    status: String,
    fields: Vec<String>,
    body: Value,
}

impl Answer {
    fn parse(text: &str) -> Self {
        let text = text.replace("\r\n", "\n");
        let (head, body) = text.split_once("\n\n").unwrap_or_else(|| panic!("no answer of curl -i: {text}"));
        let mut lines = head.lines().map(str::to_owned);
        let status = lines.next().unwrap();
        assert!(status.starts_with("HTTP/1.1 "), "{text}");
        let body = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {text}"));
        Self { status, fields: lines.collect(), body }
    }
}

/// The JSON without what differs each time: ids, times and tokens.
fn constant(json: &Value) -> Value {
    match json {
        Value::Object(members) => {
            let differs = |name: &str| {
                let ids = ["id", "request_id", "session_id", "sub", "sid", "jti"];
                let times = ["iat", "nbf", "exp"];
                let tokens = ["access_token", "refresh_token"];
                [&ids[..], &times, &tokens].concat().contains(&name) || name.ends_with("_at")
            };
            let member = |(name, value): (&String, &Value)| {
                (name.clone(), if differs(name) { Value::from("…") } else { constant(value) })
            };
            Value::Object(members.iter().map(member).collect())
        }
        Value::Array(items) => items.iter().map(constant).collect(),
        other => other.clone(),
    }
}
