//! Files with personal data, which nobody but their owner may read. A path may as well name what is no regular file, as
//! `/dev/null` or `/dev/stdout` is: that is written to, and stays what it is.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, ErrorKind, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process,
};

/// Removes the file of an earlier run; where a link leads to it, empties it.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    if found.is_symlink() {
        if fs::metadata(path).is_ok_and(|target| target.is_file()) {
            OpenOptions::new().write(true).truncate(true).open(path)?;
        }
        return Ok(());
    }
    // For a directory it fails, now rather than when there is something to write.
    if found.is_file() || found.is_dir() { fs::remove_file(path) } else { Ok(()) }
}

/// Makes or empties a file.
///
/// # Errors
///
/// The system's.
pub(super) fn make(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path)?;
    // It may have been there.
    if is_regular(&file)? {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(file)
}

/// A file in the making. It has its name once it is whole; until then there is what was there before. Where the path leads
/// to a device or a pipe, or by a link elsewhere, that is written to.
#[derive(Debug)]
pub struct Draft {
    file: File,
    /// Where it lies meanwhile, and where it belongs.
    places: Option<(PathBuf, PathBuf)>,
}

impl Draft {
    /// Begins to write.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn begin(path: &Path) -> io::Result<Self> {
        let is_replaced = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => true,
            found => found?.is_file(),
        };
        let Some(name) = path.file_name().filter(|_| is_replaced) else {
            return Ok(Self { file: make(path)?, places: None });
        };
        let mut name = name.to_owned();
        name.push(format!(".{}.part", process::id()));
        let aside = path.with_file_name(name);
        Ok(Self { file: make(&aside)?, places: Some((aside, path.to_owned())) })
    }

    /// Gives it its name, when it is on the disk.
    ///
    /// # Errors
    ///
    /// The system's. What was there before stays.
    pub fn finish(mut self) -> io::Result<()> {
        sync(&self.file)?;
        if let Some((aside, path)) = &self.places {
            fs::rename(aside, path)?;
            let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            File::open(directory.unwrap_or(Path::new(".")))?.sync_all()?;
            self.places = None;
        }
        Ok(())
    }
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some((aside, _)) = &self.places {
            // If it stays, it is nobody else's to read.
            let _ = fs::remove_file(aside);
        }
    }
}

/// Whether it is on a disk, and not a device or a pipe.
pub(super) fn is_regular(file: &File) -> io::Result<bool> {
    Ok(file.metadata()?.is_file())
}

/// Sees to it that what was written is on the disk, if that is where it goes.
///
/// # Errors
///
/// The system's.
pub(super) fn sync(file: &File) -> io::Result<()> {
    if is_regular(file)? { file.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::symlink, process::Command};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_regular_file_is_made_anew_and_its_owners_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rejects");
        remove(&path).unwrap();
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let mut file = make(&path).unwrap();
        file.write_all(b"new").unwrap();
        sync(&file).unwrap();
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), mode(&path)), ("new", 0o600));

        let link = directory.path().join("link");
        symlink(&path, &link).unwrap();
        remove(&link).unwrap();
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), link.is_symlink()), ("", true));
        remove(&path).unwrap();
        assert!(!path.exists());
        assert!(remove(directory.path()).is_err());
    }

    #[test]
    fn a_draft_has_its_name_once_it_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("export");
        fs::write(&path, "old").unwrap();
        let names = || fs::read_dir(directory.path()).unwrap().count();

        let mut draft = Draft::begin(&path).unwrap();
        draft.write_all(b"half").unwrap();
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), names()), ("old", 2));
        drop(draft);
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), names()), ("old", 1));

        let mut draft = Draft::begin(&path).unwrap();
        draft.write_all(b"new").unwrap();
        draft.finish().unwrap();
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), mode(&path)), ("new", 0o600));

        let link = directory.path().join("link");
        symlink(&path, &link).unwrap();
        let mut draft = Draft::begin(&link).unwrap();
        draft.write_all(b"by a link").unwrap();
        draft.finish().unwrap();
        assert!(link.is_symlink());
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), names()), ("by a link", 2));
        Draft::begin(directory.path()).unwrap_err();
    }

    #[test]
    fn what_is_no_regular_file_is_written_to_and_stays_what_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        assert!(Command::new("mkfifo").args(["-m", "644"]).arg(&path).status().unwrap().success());
        remove(&path).unwrap();
        // Somebody who reads, so that it can be opened.
        let _reader = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let mut file = make(&path).unwrap();
        file.write_all(b"new").unwrap();
        sync(&file).unwrap();
        Draft::begin(&path).unwrap().finish().unwrap();
        assert_eq!((path.exists(), mode(&path)), (true, 0o644));

        let link = directory.path().join("null");
        symlink("/dev/null", &link).unwrap();
        let before = mode(Path::new("/dev/null"));
        remove(&link).unwrap();
        sync(&make(&link).unwrap()).unwrap();
        assert_eq!((link.is_symlink(), mode(Path::new("/dev/null"))), (true, before));
    }
}
