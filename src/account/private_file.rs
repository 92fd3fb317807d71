//! Files with personal data, readable only by their owner. A path may also name something that is not a regular file,
//! such as `/dev/null` or `/dev/stdout`: that is written to, and is otherwise left unchanged.

use std::{
    fs::{self, File, Metadata, OpenOptions, Permissions, TryLockError},
    io::{self, ErrorKind, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rustix::{fs::OFlags, io::Errno, process::geteuid};

/// Removes the file of an earlier run. If `path` is a link to it, or the file cannot be removed, empties it instead.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    let empty = || OpenOptions::new().write(true).truncate(true).open(path).map(drop);
    if found.is_symlink() {
        return if fs::metadata(path).is_ok_and(|target| target.is_file()) { empty() } else { Ok(()) };
    }
    if found.is_file() {
        return match fs::remove_file(path) {
            Err(error) if is_fixed(&error) || error.kind() == ErrorKind::ResourceBusy => empty(),
            removed => removed,
        };
    }
    // For a directory this fails, and does so now rather than when there is something to write.
    if found.is_dir() { fs::remove_file(path) } else { Ok(()) }
}

/// Whether the error means that nothing can be created or removed there, although an existing file may still be
/// writable.
fn is_fixed(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem)
}

/// Creates or empties a file.
///
/// # Errors
///
/// Those of the system, or that the file is another user's: its content stays.
pub(super) fn make(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    // A file that we create is ours, whatever owner a file server reports.
    let file = match options.clone().create_new(true).open(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            // `create`, for a link to what is missing.
            let file = options.create(true).truncate(false).open(path)?;
            check_owner(&file).map_err(|error| io::Error::other(format!("{error}: remove it")))?;
            file
        }
        made => made?,
    };
    if is_regular(&file)? {
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.set_len(0)?;
    }
    Ok(file)
}

/// Refuses another user's file. Root can open it and take everybody else's permissions away, but its owner can give
/// them back, or has it open already.
///
/// # Errors
///
/// That it is another user's, and those of the system.
pub(super) fn check_owner(file: &File) -> io::Result<()> {
    let found = file.metadata()?;
    if found.is_file() && found.uid() != geteuid().as_raw() {
        return Err(io::Error::other("it belongs to another user, who could read it"));
    }
    Ok(())
}

/// A file being written. It is written beside its target as `NAME.part`, and takes its name once it is complete; until
/// then, a file already there stays as it was. The target is instead written in place if it is a device, a pipe or a
/// link, or if no file can be created beside it or take its place.
#[derive(Debug)]
pub struct NewFile {
    file: File,
    /// Where it is until it is complete, and where it belongs.
    places: Option<(PathBuf, PathBuf)>,
}

impl NewFile {
    /// Begins a file.
    ///
    /// # Errors
    ///
    /// Those of the system, or that someone else is writing the file.
    pub fn begin(path: &Path) -> io::Result<Self> {
        let found = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            found => Some(found?),
        };
        let in_place = || Ok(Self { file: make(path)?, places: None });
        let is_replaced = match &found {
            Some(found) => found.is_file() && !is_mount_point(path, found)?,
            None => true,
        };
        let Some(name) = path.file_name().filter(|_| is_replaced) else { return in_place() };
        let mut name = name.to_owned();
        name.push(".part");
        let aside = path.with_file_name(name);
        match make_aside(&aside) {
            Ok(file) => Ok(Self { file, places: Some((aside, path.to_owned())) }),
            // Not if the `.part` file exists: it belongs to another user, who may be writing it.
            Err(error) if found.is_some() && is_fixed(&error) && is_missing(&aside) => in_place(),
            Err(error) => Err(io::Error::new(error.kind(), format!("{}: {error}", aside.display()))),
        }
    }

    /// Whether it is being written beside its target, so that nothing is left of it if it is dropped.
    pub fn is_aside(&self) -> bool {
        self.places.is_some()
    }

    /// Syncs the file to disk and then gives it its name.
    ///
    /// # Errors
    ///
    /// Those of the system. A file that was there before stays.
    pub fn finish(mut self) -> io::Result<()> {
        sync(&self.file)?;
        if let Some((aside, path)) = &self.places {
            // A directory may be writable without being readable.
            let directory = File::open(directory(path)).ok();
            fs::rename(aside, path)?;
            // From here on, the `.part` file may be someone else's.
            self.places = None;
            if let Some(directory) = directory {
                directory.sync_all()?;
            }
        }
        Ok(())
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some((aside, _)) = &self.places {
            // Still locked, so it is this file. If it cannot be removed, no one else can read it, and the next writer
            // takes it over.
            let _ = fs::remove_file(aside);
        }
    }
}

/// Creates the `.part` file and locks it for as long as it is open. Takes over one left by a writer that was killed.
fn make_aside(path: &Path) -> io::Result<File> {
    // NONBLOCK: opening a pipe would otherwise wait for its other end.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut options = OpenOptions::new();
    options.create(true).write(true).mode(0o600).custom_flags(flags.bits().cast_signed());
    loop {
        // A file that we create is ours, whatever owner a file server reports.
        let (file, is_new) = match options.clone().create_new(true).open(path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => (options.open(path)?, false),
            made => (made?, true),
        };
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(io::Error::other("another process is writing it")),
            // Not every file server supports locks.
            Err(TryLockError::Error(error)) if !has_no_locks(&error) => return Err(error),
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        let found = file.metadata()?;
        match fs::symlink_metadata(path) {
            Ok(there) if (there.dev(), there.ino()) == (found.dev(), found.ino()) => {}
            // Its writer has finished in the meantime: what we opened has been renamed or removed.
            Ok(_) => continue,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        }
        // Others may have planted a file that they can read, or one that they want overwritten.
        let is_own = is_new || found.uid() == geteuid().as_raw();
        if !found.is_file() || found.nlink() != 1 || !is_own {
            return Err(io::Error::other("it is not a plain file of your own: remove it"));
        }
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.set_len(0)?;
        return Ok(file);
    }
}

/// Whether nothing is there, not even a dangling link.
fn is_missing(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

fn has_no_locks(error: &io::Error) -> bool {
    error.kind() == ErrorKind::Unsupported || error.raw_os_error() == Some(Errno::NOLCK.raw_os_error())
}

/// Whether something is mounted at this very path, as containers mount single files: then nothing can take its place.
fn is_mount_point(path: &Path, found: &Metadata) -> io::Result<bool> {
    let around = directory(path);
    #[cfg(target_os = "linux")]
    if let Some((here, around)) = mount_id(path).zip(mount_id(around)) {
        return Ok(here != around);
    }
    Ok(found.dev() != fs::metadata(around)?.dev())
}

/// The id of the mount that it belongs to, if the kernel (5.8 or later) reports it.
#[cfg(target_os = "linux")]
fn mount_id(path: &Path) -> Option<u64> {
    use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

    let found = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID).ok()?;
    (found.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some(found.stx_mnt_id)
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Whether it is on a disk, and not a device or a pipe.
pub(super) fn is_regular(file: &File) -> io::Result<bool> {
    Ok(file.metadata()?.is_file())
}

/// Syncs what was written to disk, if that is where it goes.
///
/// # Errors
///
/// Those of the system.
pub(super) fn sync(file: &File) -> io::Result<()> {
    if is_regular(file)? { file.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::symlink, process::Command};

    use super::*;
    use crate::not_tested::are_root;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_regular_file_is_recreated_with_access_for_its_owner_only() {
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
    fn a_new_file_gets_its_name_only_when_it_is_complete() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("export");
        fs::write(&path, "old").unwrap();
        let names = || fs::read_dir(directory.path()).unwrap().count();

        let mut file = NewFile::begin(&path).unwrap();
        file.write_all(b"half").unwrap();
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), names()), ("old", 2));
        drop(file);
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), names()), ("old", 1));

        let mut file = NewFile::begin(&path).unwrap();
        file.write_all(b"new").unwrap();
        file.finish().unwrap();
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), mode(&path)), ("new", 0o600));

        let link = directory.path().join("link");
        symlink(&path, &link).unwrap();
        let mut file = NewFile::begin(&link).unwrap();
        file.write_all(b"by a link").unwrap();
        file.finish().unwrap();
        assert!(link.is_symlink());
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), names()), ("by a link", 2));
        NewFile::begin(directory.path()).unwrap_err();
    }

    #[test]
    fn a_new_file_has_one_writer_and_the_next_takes_over_an_abandoned_draft() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("export");
        let part = directory.path().join("export.part");
        fs::write(&part, "left by one who was killed, and longer").unwrap();
        fs::set_permissions(&part, Permissions::from_mode(0o644)).unwrap();

        let mut first = NewFile::begin(&path).unwrap();
        assert_eq!(mode(&part), 0o600);
        first.write_all(b"first").unwrap();
        let refused = NewFile::begin(&path).unwrap_err().to_string();
        assert_eq!(refused, format!("{}: another process is writing it", part.display()));
        first.finish().unwrap();
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), part.exists()), ("first", false));
        let mut second = NewFile::begin(&path).unwrap();
        second.write_all(b"2nd").unwrap();
        second.finish().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "2nd");
    }

    /// Each writer keeps beginning files while others finish theirs or give up.
    #[test]
    fn drafts_of_many_are_never_mixed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("export");
        fs::write(&path, "0".repeat(1000)).unwrap();
        std::thread::scope(|scope| {
            for writer in ["1", "2", "3", "4"] {
                let path = &path;
                scope.spawn(move || {
                    let mut finished = 0;
                    while finished < 50 {
                        let Ok(mut file) = NewFile::begin(path) else { continue };
                        for _ in 0..10 {
                            file.write_all(writer.repeat(100).as_bytes()).unwrap();
                        }
                        finished += 1;
                        if finished % 3 > 0 {
                            file.finish().unwrap();
                        }
                        let text = fs::read_to_string(path).unwrap();
                        assert!(text.len() == 1000 && text == text[..1].repeat(1000), "{text}");
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_draft_is_not_written_into_a_planted_link_or_pipe() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("export");
        let part = directory.path().join("export.part");
        let victim = directory.path().join("victim");
        fs::write(&victim, "keep").unwrap();
        let refused = || {
            let refused = NewFile::begin(&path).unwrap_err().to_string();
            fs::remove_file(&part).unwrap();
            assert_eq!((fs::read_to_string(&victim).unwrap().as_str(), path.exists()), ("keep", false));
            refused
        };
        symlink(&victim, &part).unwrap();
        refused();
        fs::hard_link(&victim, &part).unwrap();
        assert!(refused().contains("not a plain file of your own"));
        assert!(Command::new("mkfifo").arg(&part).status().unwrap().success());
        refused();
        if geteuid().is_root() {
            fs::write(&part, "").unwrap();
            std::os::unix::fs::chown(&part, Some(65534), None).unwrap();
            assert!(refused().contains("not a plain file of your own"));
        }
    }

    #[test]
    fn nothing_is_written_to_another_users_file() {
        if !are_root("that nothing is written to another user's file") {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rejects");
        let link = directory.path().join("link");
        fs::write(&path, "theirs").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
        symlink(&path, &link).unwrap();
        for path in [&path, &link] {
            let refused = make(path).unwrap_err().to_string();
            assert_eq!(refused, "it belongs to another user, who could read it: remove it");
        }
        NewFile::begin(&link).unwrap_err();
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), mode(&path)), ("theirs", 0o644));
        // A link to a file that is not there yet makes it.
        fs::remove_file(&path).unwrap();
        make(&link).unwrap();
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn special_files_are_written_to_but_never_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        assert!(Command::new("mkfifo").args(["-m", "644"]).arg(&path).status().unwrap().success());
        remove(&path).unwrap();
        // A reader, so that the pipe can be opened for writing.
        let _reader = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let mut file = make(&path).unwrap();
        file.write_all(b"new").unwrap();
        sync(&file).unwrap();
        NewFile::begin(&path).unwrap().finish().unwrap();
        assert_eq!((path.exists(), mode(&path)), (true, 0o644));

        let link = directory.path().join("null");
        symlink("/dev/null", &link).unwrap();
        let before = mode(Path::new("/dev/null"));
        remove(&link).unwrap();
        sync(&make(&link).unwrap()).unwrap();
        assert_eq!((link.is_symlink(), mode(Path::new("/dev/null"))), (true, before));
    }
}
