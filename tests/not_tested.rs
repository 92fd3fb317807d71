//! What a machine lacks for a test, said where it is seen, and at the end of `.ci/run`. The library's tests have this file,
//! too.

use std::{
    env,
    ffi::OsString,
    fs::OpenOptions,
    io::{self, Write},
};

/// The program that a variable of `make test` names, or nothing; then that `what` has not been tested has been said.
pub fn named_by(variable: &str, what: &str) -> Option<OsString> {
    let program = env::var_os(variable).filter(|path| !path.is_empty());
    if program.is_none() {
        not_tested(what, &format!("{variable} names no program; `make test` sets it"));
    }
    program
}

/// Says that something has not been tested, for want of a program. In CI that is a failure.
pub fn not_tested(what: &str, why: &str) {
    assert!(env::var_os("CI").is_none(), "{what}: {why}");
    cannot_be_tested(what, why);
}

/// Whether we are root. If not, that `what` has not been tested has been said.
pub fn are_root(what: &str) -> bool {
    let are = rustix::process::geteuid().is_root();
    if !are {
        cannot_be_tested(what, "only root can try it");
    }
    are
}

/// Says that something has not been tested which this machine does not let us test, in CI, too.
pub fn cannot_be_tested(what: &str, why: &str) {
    // Not by a macro: those are captured while a test passes.
    let _ = writeln!(io::stderr(), "\nNOT tested: {what}. {why}.");
    if let Some(list) = env::var_os("NOT_CHECKED").filter(|path| !path.is_empty()) {
        let mut list = OpenOptions::new().append(true).open(list).unwrap();
        list.write_all(format!("{what} NOT tested: {why}\n").as_bytes()).unwrap();
    }
}
