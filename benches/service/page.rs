//! The table of docs/benchmarks.md, and on what machine it was measured.

use std::{fs, process::Command, thread};

use crate::{
    bench::{Row, figure},
    process::{server, sql},
};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/benchmarks.md");
const FROM: &str = "<!-- benchmarks -->\n";
const TO: &str = "<!-- /benchmarks -->";

/// Puts the rows of this run in place of those that the page has.
pub(crate) fn write(rows: &[Row]) {
    let page = fs::read_to_string(PAGE).expect("the page is there");
    let (before, rest) = page.split_once(FROM).expect("the page has a place for the table");
    let (_, after) = rest.split_once(TO).expect("and its end");
    let table: String = rows.iter().map(line).collect();
    let head = "| what | ours | against | its figure | ratio | to reach | reached |\n|---|--:|---|--:|--:|--:|---|\n";
    let page = format!("{before}{FROM}\n{}\n\n{head}{table}\n{TO}{after}", machine());
    fs::write(PAGE, page).expect("the page can be written");
    println!("docs/benchmarks.md has these figures now.");
}

fn line(row: &Row) -> String {
    let (against, limit) = row
        .limit
        .as_ref()
        .map_or((String::from("–"), String::new()), |(against, limit)| (against.clone(), figure(*limit)));
    let ratio = row.ratio().map_or(String::new(), |ratio| format!("{ratio:.2}"));
    let goal = row.goal.map_or(String::new(), |goal| goal.to_string());
    let reached = match row.goal {
        None => "",
        Some(_) if row.is_reached() => "yes",
        Some(_) => "**no**",
    };
    format!("| {} | {} | {against} | {limit} | {ratio} | {goal} | {reached} |\n", row.what, figure(row.ours))
}

/// One sentence about when, on what and with what the figures were measured.
fn machine() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let processor = model.map_or("an unnamed processor", |(_, name)| name);
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let postgres = sql(&server(), "SHOW server_version");
    let rust = output("rustc", &["--version"]);
    let today = sql(&server(), "SELECT current_date");
    let commit = output("git", &["rev-parse", "--short=12", "HEAD"]);
    let changes = output("git", &["status", "--porcelain"]);
    let state = if changes.is_empty() { "" } else { " with changes that are not committed" };
    format!(
        "Measured on {today} at commit {commit}{state}: {processor}, {cores} cores, Linux {}, Postgres {postgres}, {rust}.",
        kernel.trim()
    )
}

fn output(program: &str, arguments: &[&str]) -> String {
    let done = Command::new(program).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    done.map(|done| String::from_utf8_lossy(&done.stdout).trim().to_owned()).unwrap_or_default()
}
