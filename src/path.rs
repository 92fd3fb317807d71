//! Which paths may be shown. A setting may by mistake contain a secret in place of a path, for example the key itself
//! as `TLS_KEY_FILE`, and messages may be kept in logs.

use std::path::{Component, Path};

/// The path as it was given, unless it looks like a secret: a URL, a key, several lines. What exists is a path whatever
/// it looks like, relative to `directory`, and so is what could be created in a directory that exists and is more than
/// the root or `directory` itself.
pub(crate) fn shown<'a>(path: &'a Path, directory: &Path) -> Option<&'a str> {
    let is_named = |parent: &&Path| parent.components().any(|part| matches!(part, Component::Normal(_)));
    let is_one = directory.join(path).exists()
        || path.parent().filter(is_named).is_some_and(|parent| directory.join(parent).is_dir());
    path.to_str().filter(|text| is_one || !may_be_secret(text))
}

/// Whether a text that should be a path may be one of the secrets that settings hold.
fn may_be_secret(text: &str) -> bool {
    /// A symmetric key may be given as plain text of this length.
    const KEY_BYTES: usize = 32;

    // What separates the name of a pepper from it, and the items of a list.
    let has_marks = text.contains(|c: char| c.is_control() || matches!(c, ':' | ',' | '='));
    let is_key = text.starts_with("k4.") || text.starts_with("-----BEGIN") || text.len() == KEY_BYTES;
    // Base64, in which slashes may be, or hexadecimal.
    let is_random = |part: &str| {
        let is_code = part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'_' | b'-'));
        part.len() >= 20 && is_code && part.contains(|c: char| c.is_ascii_digit())
    };
    has_marks || is_key || text.split('/').any(is_random)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_path_that_may_be_a_secret_is_not_shown() {
        let directory = tempfile::tempdir().unwrap();
        let shown = |path| shown(Path::new(path), directory.path());
        fs::create_dir(directory.path().join("sub")).unwrap();
        let missing = directory.path().join("missing");
        let long = "sub/thirty-two-bytes-of-a-path.p";
        for path in ["/", "..", "sub", "sub/missing.key", missing.to_str().unwrap(), long] {
            assert_eq!(shown(path), Some(path));
        }
        // Nothing of these exists.
        for path in ["missing.key", "certs/tls.crt", "/srv/secrets/gatepass-2026/db_source", "../missing"] {
            assert_eq!(shown(path), Some(path));
        }
        for secret in [
            "4f1c9e0b7a2d86355be0c83f19d7a64e",
            "thirty-two bytes of a plain text",
            "1:cGVwcGVyIG9uZSBpcyB0aGVzZSAzMiBieXRlcyBvZiA",
            "/9j4AAQSkZJRgABAQAAAQABAAD/2wBDAAUDBAQ=",
            "postgres://u:hunter2@h/d",
            "k4.local.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
            "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIAAA/AAA.A\n-----END PRIVATE KEY-----\n",
            "MC4CAQAwBQYDK2VwBCIEIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        ] {
            assert_eq!(shown(secret), None, "{secret}");
        }
    }
}
