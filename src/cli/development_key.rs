//! The key that development makes for itself, once, and keeps in `.gatepass`.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;
use secrecy::{ExposeSecret, SecretString};

use super::Failure;
use crate::{random, token::SymmetricKey};

/// The key in this state directory, made now if there is none yet. `instead` names the settings that make the directory
/// unnecessary, for messages.
pub(super) fn read_or_make(state_dir: &Path, instead: &str) -> Result<SymmetricKey, Failure> {
    let path = path(state_dir);
    if fs::symlink_metadata(&path).is_err() {
        make(state_dir, &path, instead)?;
    }
    parse(&path)
}

/// The key in this state directory, if there is one.
pub(super) fn read(state_dir: &Path) -> Result<Option<SymmetricKey>, Failure> {
    let path = path(state_dir);
    match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => {
            Err(format!("cannot look for {}: {error}; is it another user's?", path.display()).into())
        }
        Ok(_) => parse(&path).map(Some),
    }
}

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("token_symmetric_key")
}

fn parse(path: &Path) -> Result<SymmetricKey, Failure> {
    let text = read_private(path)?;
    let key = text.expose_secret().trim_end().parse();
    key.map_err(|error| format!("{}: {error}; delete it to have a new one made", path.display()).into())
}

/// Writes the key to a draft and links it into place: if two processes do this at once, one of them makes the key, and
/// both read it whole.
fn make(state_dir: &Path, path: &Path, instead: &str) -> Result<(), Failure> {
    let directory = fs::DirBuilder::new().recursive(true).mode(0o700).create(state_dir);
    directory.map_err(|error| {
        format!("cannot create {}: {error}; set {instead} to do without it", state_dir.display())
    })?;
    let draft = state_dir.join(format!(".token_symmetric_key.{}", std::process::id()));
    let remove_draft = || match fs::remove_file(&draft) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    let key = SymmetricKey::from_bytes(random::bytes(&mut random::system()));
    let write = || {
        // An existing draft was left by a killed process, or is a trap: write to neither.
        remove_draft()?;
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        writeln!(file, "{}", key.to_paserk().expose_secret())?;
        file.sync_all()
    };
    let linked = write().and_then(|()| match fs::hard_link(&draft, path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    });
    let removed = remove_draft();
    linked.and(removed).map_err(|error| {
        format!(
            "cannot make a key in {}: {error}; is {} owned by another user? delete it, or set {instead}",
            path.display(),
            state_dir.display()
        )
        .into()
    })
}

/// The text of a file that is closed to other users and is no symlink: root may be in another user's directory.
fn read_private(path: &Path) -> Result<SecretString, Failure> {
    let place = path.display();
    // NONBLOCK: a FIFO would keep us waiting for its other end.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let opened = fs::OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path);
    let meta = match &opened {
        Ok(file) => file.metadata(),
        Err(_) => fs::symlink_metadata(path),
    };
    if meta.as_ref().is_ok_and(|meta| !meta.is_file()) {
        return Err(format!("{place} is not a regular file; delete it to have a new key made").into());
    }
    let unreadable = |error| {
        format!("cannot read {place}: {error}; owned by another user? delete it to have a new key made")
    };
    let mut file = opened.map_err(unreadable)?;
    if meta.map_err(unreadable)?.mode() & 0o077 != 0 {
        return Err(format!(
            "{place} is open to other users, who may know the key; delete it to have a new one made (or keep it: \
             `chmod 600 {place}`)"
        )
        .into());
    }
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(unreadable)?;
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn the_development_key_is_a_private_file_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join(".gatepass");
        let path = state.join("token_symmetric_key");
        let draft = state.join(format!(".token_symmetric_key.{}", std::process::id()));
        let elsewhere = directory.path().join("elsewhere");
        fs::write(&elsewhere, "kept").unwrap();
        fs::create_dir(&state).unwrap();

        // An error within the directory names the directory.
        fs::create_dir(&draft).unwrap();
        let error = read_or_make(&state, "ANOTHER").unwrap_err().to_string();
        assert!(error.contains(&format!("is {} owned by another user?", state.display())), "{error}");
        assert!(error.contains("or set ANOTHER"), "{error}");
        assert!(!error.contains(draft.to_str().unwrap()), "{error}");
        fs::remove_dir(&draft).unwrap();

        // A draft that someone has put there is not written through.
        symlink(&elsewhere, &draft).unwrap();
        let paserk = |key: SymmetricKey| key.to_paserk().expose_secret().to_owned();
        let key = paserk(read_or_make(&state, "ANOTHER").unwrap());
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "kept");
        assert!(fs::symlink_metadata(&draft).is_err());
        assert_eq!(fs::symlink_metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(paserk(read_or_make(&state, "ANOTHER").unwrap()), key);

        let refused = |why: &str| {
            let error = read_or_make(&state, "ANOTHER").unwrap_err().to_string();
            assert!(error.contains(why) && error.contains(path.to_str().unwrap()), "{error}");
            assert!(error.contains("delete it"), "{error}");
        };
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        refused("open to other users");
        fs::rename(&path, &elsewhere).unwrap();
        symlink(&elsewhere, &path).unwrap();
        refused("not a regular file");
        fs::remove_file(&elsewhere).unwrap();
        refused("not a regular file");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        refused("not a regular file");
    }
}
