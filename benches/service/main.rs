//! What the service does, as ratios to a limit that is measured beside it, in turns and in the same run: `make bench`.
//!
//! Everything runs on one machine and shares its cores, those who ask as well, so that only ratios mean something. What
//! is to be reached stands beside each; a line that misses it says so, and is no failure: machines are noisy. An answer
//! that is not the expected one is.

mod bench;
mod checks;
#[path = "../hashing.rs"]
mod hashing;
mod load;
mod logins;
mod process;
mod revocation;
mod start;

use std::env;

use bench::Bench;

/// What can be measured by itself, in the order in which all is.
const SECTIONS: &[(&str, fn(&mut Bench))] = &[
    ("logins", logins::logins),
    ("checks", checks::seen),
    ("fresh", checks::fresh),
    ("storm", logins::storm),
    ("revocation", revocation::measure),
    ("start", start::measure),
];

fn main() {
    let (mut only, mut is_smoke) = (String::new(), false);
    for argument in env::args().skip(1) {
        match argument.as_str() {
            "--smoke" => is_smoke = true,
            name => name.clone_into(&mut only),
        }
    }
    let sections: Vec<_> = SECTIONS.iter().filter(|(name, _)| only.is_empty() || only == *name).collect();
    assert!(!sections.is_empty(), "no section {only}: {:?}", SECTIONS.iter().map(|(name, _)| name));
    let mut bench = Bench::new(is_smoke);
    for (_, measure) in sections {
        measure(&mut bench);
    }
    bench.finish();
}
