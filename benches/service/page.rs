//! The tables in docs/benchmarks.md and docs/capacity.md, and the machine on which they were measured.

use std::{fs, process::Command, thread};

use crate::{
    bench::{Bench, Row, figure},
    process::{server, sql},
};

/// Replaces the figures in the pages with those of this run: the rows, and the capacity tables.
pub(crate) fn write(bench: &Bench) {
    let head = "| what | ours | against | its figure | ratio | to reach | reached |\n|---|--:|---|--:|--:|--:|---|\n";
    let rows: String = bench.rows.iter().map(line).collect();
    let machine = machine();
    put("benchmarks", &format!("{machine}\n\n{head}{rows}"));
    put("capacity", &format!("{machine}\n\n{}", bench.capacity));
    println!("docs/benchmarks.md and docs/capacity.md have these figures now.");
}

/// Puts `text` between the two comments with the page's name.
fn put(name: &str, text: &str) {
    let path = format!("{}/../docs/{name}.md", env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(&path).expect("the page is there");
    let (from, to) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
    let (before, rest) = page.split_once(&from).expect("the page has a place for it");
    let (_, after) = rest.split_once(&to).expect("and its end");
    fs::write(path, format!("{before}{from}\n{text}\n{to}{after}")).expect("the page can be written");
}

fn line(row: &Row) -> String {
    let (against, limit) = row
        .limit
        .as_ref()
        .map_or((String::from("–"), String::new()), |(against, limit)| (against.clone(), figure(*limit)));
    let ratio = row.ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
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
