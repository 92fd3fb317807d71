//! The user that the server runs as, and what has to belong to that user: programs, directories, files.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::Path,
    process::Stdio,
};

use rustix::{
    fs::{Dir, OFlags},
    process::geteuid,
};
use tokio::process::Command;

use super::error::{EmbeddedError, Result, io_error, run_error};

/// The user that root runs the server as.
#[derive(Clone, Copy)]
pub(super) struct User {
    pub(super) uid: u32,
    gid: u32,
}

impl User {
    /// `None` if we are not root. Otherwise the owner of the data, if there is any; else the owner of the state
    /// directory, unless that is root or has no name; else `postgres`; else `nobody`.
    pub(super) fn for_server(state: &Path, data: &Path) -> Result<Option<User>> {
        if !geteuid().is_root() {
            return Ok(None);
        }
        let owner = |path: &Path| {
            let meta = fs::metadata(path).ok().filter(|meta| meta.uid() != 0)?;
            Some(User { uid: meta.uid(), gid: meta.gid() })
        };
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let named = |wanted| accounts(&passwd).find(|(name, _)| *name == wanted).map(|(_, user)| user);
        let found = owner(data)
            // initdb requires its user to have a name.
            .or_else(|| owner(state).filter(|owner| accounts(&passwd).any(|(_, user)| user.uid == owner.uid)))
            .or_else(|| named("postgres"))
            .or_else(|| named("nobody"));
        found.map(Some).ok_or(EmbeddedError::NoUser)
    }

    /// Whether this user can pass through the state directory. If only permission for the user's group was missing, it
    /// is given first.
    pub(super) async fn admitted_to(self, state: &Path) -> Result<bool> {
        if self.reaches(state).await? {
            return Ok(true);
        }
        let directory = open_dir(state)?;
        let meta = directory.metadata().map_err(io_error("read", state))?;
        let parent = state.parent().unwrap_or(state);
        if meta.uid() == self.uid || !self.reaches(parent).await? {
            return Ok(false);
        }
        fchown(&directory, None, Some(self.gid)).map_err(io_error("change the group of", state))?;
        let mode = meta.mode() & 0o700 | 0o010;
        directory
            .set_permissions(Permissions::from_mode(mode))
            .map_err(io_error("change the mode of", state))?;
        self.reaches(state).await
    }

    /// Makes this user the owner of the file.
    fn own(self, file: &File, path: &Path) -> Result<()> {
        fchown(file, Some(self.uid), Some(self.gid)).map_err(io_error("change the owner of", path))
    }

    /// Asks the system, which takes more into account than mode bits.
    async fn reaches(self, directory: &Path) -> Result<bool> {
        let mut shell = command(Path::new("/bin/sh"), Some(self));
        shell.args(["-c", "cd -- \"$1\"", "sh"]).arg(directory).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(shell.status().await.map_err(run_error("/bin/sh".into()))?.success())
    }
}

/// Names and ids from the text of `/etc/passwd`.
fn accounts(passwd: &str) -> impl Iterator<Item = (&str, User)> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        Some((name, User { uid, gid }))
    })
}

/// A program to be run as `user`. It does not get the terminal's Ctrl-C (gatepass does, and stops what it started), and
/// it is killed with the future that waits for it.
pub(super) fn command(program: &Path, user: Option<User>) -> Command {
    let mut command = Command::new(program);
    // Nothing from our environment is passed on: it may hold secrets, and the programs read PGPORT, PGDATA and the
    // like. With TZ set, initdb does not search the time zones for the machine's; with LC_ALL, Postgres on macOS does
    // not stumble over the locale.
    command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    command.env("LC_ALL", "C").env("TZ", "UTC");
    // Another user may be unable to reach our directory.
    command.current_dir("/").stdin(Stdio::null()).process_group(0).kill_on_drop(true);
    if let Some(User { uid, gid }) = user {
        command.uid(uid).gid(gid);
    }
    command
}

/// The user id that programs run with as `user`.
pub(super) fn uid_of(user: Option<User>) -> u32 {
    user.map_or_else(|| geteuid().as_raw(), |user| user.uid)
}

/// Creates the directory, closed to others, unless something is there already.
pub(super) fn create_private(path: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(io_error("create", path)(error)),
        _ => Ok(()),
    }
}

/// Creates the directory if it is missing, and makes sure that it is a directory, belongs to the user, and is closed to
/// others.
pub(super) fn private_dir(path: &Path, user: Option<User>) -> Result<()> {
    create_private(path)?;
    let uid = uid_of(user);
    let not_ours = || EmbeddedError::NotOurs { what: "directory", path: path.to_owned(), uid };
    // Checks the entry itself: behind a symlink in /tmp may be anything.
    if !fs::symlink_metadata(path).map_err(io_error("read", path))?.is_dir() {
        return Err(not_ours());
    }
    let directory = open_dir(path)?;
    let meta = || directory.metadata().map_err(io_error("read", path));
    if let Some(user) = user
        && meta()?.uid() == 0
        && is_empty(&directory).map_err(io_error("read", path))?
    {
        user.own(&directory, path)?;
    }
    let meta = meta()?;
    if meta.uid() != uid {
        return Err(not_ours());
    }
    if meta.mode() & 0o777 != 0o700 {
        directory
            .set_permissions(Permissions::from_mode(0o700))
            .map_err(io_error("change the mode of", path))?;
    }
    Ok(())
}

/// Opens the directory, so that replacing its name cannot redirect what is done with it to another one.
fn open_dir(path: &Path) -> Result<File> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW;
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(flags.bits().cast_signed());
    options.open(path).map_err(io_error("open", path))
}

fn is_empty(directory: &File) -> io::Result<bool> {
    for entry in Dir::read_from(directory)? {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Opens a file in the state directory; if it is missing, it is created, closed to others. Refuses a symlink, and a
/// file with several names: it may be another file that somebody wants written to.
pub(super) fn open_file(path: &Path, options: &mut OpenOptions) -> Result<File> {
    // NONBLOCK: opening a FIFO would wait for its other end.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let opened = options.create(true).mode(0o600).custom_flags(flags.bits().cast_signed()).open(path);
    let meta = match &opened {
        Ok(file) => file.metadata(),
        Err(_) => fs::symlink_metadata(path),
    };
    if meta.is_ok_and(|meta| !meta.is_file() || meta.nlink() != 1) {
        return Err(EmbeddedError::NotPlain { path: path.to_owned() });
    }
    opened.map_err(io_error("open", path))
}

/// Gives a file that root has created to the server's user, who may be the one to start gatepass next time. Refuses a
/// file that neither belongs to that user nor is as root creates it: empty.
pub(super) fn give(file: &File, path: &Path, user: Option<User>) -> Result<()> {
    let Some(user) = user else { return Ok(()) };
    let meta = file.metadata().map_err(io_error("read", path))?;
    match meta.uid() {
        uid if uid == user.uid => Ok(()),
        0 if meta.len() == 0 => user.own(file, path),
        _ => Err(EmbeddedError::NotOurs { what: "file", path: path.to_owned(), uid: user.uid }),
    }
}

/// As root, refuses a symlink that another user created to something that is not theirs.
pub(super) fn check_link(path: &Path) -> Result<()> {
    let Ok(link) = fs::symlink_metadata(path) else { return Ok(()) };
    if !geteuid().is_root() || !link.is_symlink() || link.uid() == 0 {
        return Ok(());
    }
    match fs::metadata(path) {
        Ok(target) if target.uid() == link.uid() => Ok(()),
        _ => Err(EmbeddedError::NotOurs {
            what: "symlink to something",
            path: path.to_owned(),
            uid: link.uid(),
        }),
    }
}
