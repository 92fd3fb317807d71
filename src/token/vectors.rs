//! The official test vectors of PASETO and PASERK. They are not in this repository: the environment variable
//! `PASETO_VECTORS` names a copy of `paseto-standard/test-vectors`. Without it the tests that use them have nothing to
//! run, and say so.

use std::{
    env, fs,
    io::{self, Write},
    path::Path,
    sync::Once,
};

use serde_json::Value;

/// The vectors in `file`; none if there is no copy of them.
pub(super) fn read(file: &str) -> Vec<Value> {
    static SAY: Once = Once::new();

    let Some(directory) = env::var_os("PASETO_VECTORS").filter(|directory| !directory.is_empty()) else {
        SAY.call_once(|| {
            // Not with a macro: the output of macros is captured while a test passes.
            let _ = writeln!(
                io::stderr(),
                "\nskipped: the official PASETO vectors. PASETO_VECTORS names no copy of them: see CONTRIBUTING.md."
            );
        });
        return Vec::new();
    };
    // A clone has the PASERK vectors in a separate directory; a plain copy of the files may not.
    let directory = Path::new(&directory);
    let paserk = directory.join("PASERK").join(file);
    let path = if paserk.exists() { paserk } else { directory.join(file) };
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut document: Value = serde_json::from_str(&text).unwrap();
    match document["tests"].take() {
        Value::Array(tests) if !tests.is_empty() => tests,
        other => panic!("{file}: {other}"),
    }
}

/// The text of a member.
#[track_caller]
pub(super) fn text<'v>(vector: &'v Value, member: &str) -> &'v str {
    vector[member].as_str().unwrap_or_else(|| panic!("no {member}: {vector}"))
}

/// The bytes of a hexadecimal member; `None` if the vector does not have it.
pub(super) fn bytes(vector: &Value, member: &str) -> Option<Vec<u8>> {
    let hex = vector[member].as_str()?;
    Some((0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect())
}
