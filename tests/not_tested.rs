//! Reports what a machine lacks for a test, where that is seen, and at the end of `.ci/run`. The library's tests
//! include this file, too.

use std::{
    env,
    ffi::OsString,
    fs::OpenOptions,
    io::{self, Write},
};

/// The program that a variable of `make test` names. If it names none, this reports that `what` has not been tested.
pub fn named_by(variable: &str, what: &str) -> Option<OsString> {
    let program = env::var_os(variable).filter(|path| !path.is_empty());
    if program.is_none() {
        not_tested(what, &format!("{variable} names no program; `make test` sets it"));
    }
    program
}

/// Reports that something has not been tested because a program is missing. In CI that is a failure.
pub fn not_tested(what: &str, why: &str) {
    assert!(env::var_os("CI").is_none(), "{what}: {why}");
    cannot_be_tested(what, why);
}

/// Whether we are root. If not, this reports that `what` has not been tested.
pub fn are_root(what: &str) -> bool {
    let are = rustix::process::geteuid().is_root();
    if !are {
        cannot_be_tested(what, "only root can try it");
    }
    are
}

/// Reports that something has not been tested because this machine does not allow it. That is no failure, even in CI.
pub fn cannot_be_tested(what: &str, why: &str) {
    // Not with a macro, whose output is captured while a test passes.
    let _ = writeln!(io::stderr(), "\nNOT tested: {what}. {why}.");
    if let Some(list) = env::var_os("NOT_CHECKED").filter(|path| !path.is_empty()) {
        let mut list = OpenOptions::new().append(true).open(list).unwrap();
        list.write_all(format!("{what} NOT tested: {why}\n").as_bytes()).unwrap();
    }
}
