//! Which paths may be shown. A setting may by mistake contain a secret in place of a path, for example the key itself
//! as `TLS_KEY_FILE`, and messages may be kept in logs.

use std::path::{Component, Path};

/// The path as it was given, if no secret can look like it: if something exists there, relative to `directory`, or if
/// at least its parent directory does and is more than the root or `directory` itself. Anything else may be a secret;
/// even a text in Base64 may begin with a slash.
pub(crate) fn shown<'a>(path: &'a Path, directory: &Path) -> Option<&'a str> {
    let is_named = |parent: &&Path| parent.components().any(|part| matches!(part, Component::Normal(_)));
    let is_one = directory.join(path).exists()
        || path.parent().filter(is_named).is_some_and(|parent| directory.join(parent).is_dir());
    path.to_str().filter(|_| is_one)
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
        for path in ["/", "..", "sub", "sub/missing.key", missing.to_str().unwrap()] {
            assert_eq!(shown(path), Some(path));
        }
        for secret in [
            "hunter2",
            "hunter.2/",
            "hunter/2",
            "/hunter2",
            "../hunter2",
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
