//! What the service achieves, as ratios to a limit that is measured in turn with it, in the same run: `make bench`.
//!
//! Everything, including the clients, runs on one machine and shares its cores, so only ratios mean something. Each
//! line shows its goal. A line that misses the goal says so, but is not a failure, because machines are noisy. An
//! answer other than the expected one is a failure.

mod bench;
mod build;
mod capacity;
mod checks;
#[path = "../hashing.rs"]
mod hashing;
mod load;
mod logins;
mod model;
mod page;
mod process;
mod proxy;
mod renewals;
mod revocation;
mod scale;
mod start;

use std::{env, process::ExitCode};

use bench::Bench;

/// A part that can be measured by itself: its name, and the function that measures it and adds its rows.
type Section = (&'static str, fn(&mut Bench));

/// In the order in which they are measured.
const SECTIONS: &[Section] = &[
    ("logins", logins::logins),
    ("checks", checks::seen),
    ("fresh", checks::fresh),
    ("nginx", proxy::measure),
    ("renewals", renewals::renewals),
    ("scale", scale::scale),
    ("storm", logins::storm),
    ("revocation", revocation::measure),
    ("capacity", capacity::measure),
    ("start", start::start),
    ("memory", start::memory),
    ("size", build::size),
    (COLD_BUILD, build::time),
];

/// Takes minutes, so it runs only if named, or for the page.
const COLD_BUILD: &str = "build";

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let (is_smoke, is_for_page) = (has("--smoke"), has("--write"));
    let only = arguments.iter().find(|argument| !argument.starts_with("--"));
    if is_for_page && (is_smoke || only.is_some()) {
        eprintln!("bench: the page has the figures of one whole run");
        return ExitCode::from(2);
    }
    let is_wanted = |name: &str| match only {
        Some(only) => name == only,
        None => name != COLD_BUILD || is_for_page,
    };
    let sections: Vec<_> = SECTIONS.iter().filter(|(name, _)| is_wanted(name)).collect();
    if sections.is_empty() {
        let names: Vec<_> = SECTIONS.iter().map(|(name, _)| *name).collect();
        eprintln!("bench: there is no section of that name; the sections are {}", names.join(", "));
        return ExitCode::from(2);
    }
    let mut bench = Bench::new(is_smoke);
    for (_, measure) in sections {
        measure(&mut bench);
    }
    bench.finish();
    let missed = bench.rows.iter().filter(|row| !row.is_reached()).count();
    match (is_smoke, missed) {
        (true, _) => println!("\nEverything works. The figures of so short a run mean nothing."),
        (false, 0) => println!("\nAll goals are reached."),
        (false, missed) => println!("\n{missed} of {} missed.", bench.rows.len()),
    }
    if is_for_page {
        page::write(&bench);
    }
    ExitCode::SUCCESS
}
