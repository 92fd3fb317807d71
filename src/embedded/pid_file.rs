//! `postmaster.pid` and the socket's lock file, which name a server's process; and whether that process is a server.

use std::{
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use rustix::{
    io::Errno,
    process::{Pid, test_kill_process},
};

use super::error::{Result, io_error};

/// The names of the server's program.
const SERVER_NAMES: [&str; 2] = ["postgres", "postmaster"];

/// What a server reports in `postmaster.pid`, which it writes as it starts and removes as its last act.
pub(super) struct PidFile {
    pub(super) pid: Pid,
    /// The data directory, as given to the server.
    pub(super) data: PathBuf,
    /// Where its socket is. While it does not listen yet, and where there is no socket, the data directory itself.
    pub(super) run: PathBuf,
    /// Whether it accepts sessions, as it reports itself. If it is killed, this report outlives it.
    pub(super) ready: bool,
}

impl PidFile {
    pub(super) fn path(data: &Path) -> PathBuf {
        data.join("postmaster.pid")
    }

    /// `None` if there is no file, or if it is not complete (yet).
    pub(super) fn read(data: &Path) -> Option<PidFile> {
        let bytes = fs::read(Self::path(data)).ok()?;
        let mut lines = bytes.split(|&byte| byte == b'\n').map(OsStr::from_bytes);
        let pid = parse_pid(lines.next()?)?;
        let opened = PathBuf::from(lines.next()?);
        // Lines 3 and 4: when it started, the port.
        let run = opened.join(lines.nth(2)?);
        let run = if run.starts_with(&opened) { fs::canonicalize(&run).unwrap_or(run) } else { run };
        // Lines 6 and 7: the network address, the shared memory.
        let ready = lines.nth(2).is_some_and(|status| status.as_bytes().starts_with(b"ready"));
        Some(PidFile { pid, data: opened, run, ready })
    }
}

/// The process id in the first line of a Postgres lock file. A negative number is a server in single-user mode.
fn parse_pid(line: &OsStr) -> Option<Pid> {
    line.to_str()?.trim().trim_start_matches('-').parse().ok().and_then(Pid::from_raw)
}

/// Removes a Postgres lock file that names a process which is not a Postgres.
///
/// Postgres itself recognises a lock file as stale if no process has that id. After a crash of the machine, though, or
/// in a new container, any process may have got the id, and then Postgres refuses to start.
pub(super) fn remove_if_stale(file: &Path) -> Result<()> {
    let Ok(bytes) = fs::read(file) else { return Ok(()) };
    let line = bytes.split(|&byte| byte == b'\n').next().unwrap_or_default();
    match parse_pid(OsStr::from_bytes(line)) {
        Some(pid) if exists(pid) && !is_postgres(pid) => {
            fs::remove_file(file).map_err(io_error("remove", file))
        }
        _ => Ok(()),
    }
}

fn exists(pid: Pid) -> bool {
    test_kill_process(pid) != Err(Errno::SRCH)
}

/// Whether that process is a live Postgres: not a zombie of one, and not something else that has its id now.
pub(super) fn is_postgres(pid: Pid) -> bool {
    if !exists(pid) {
        return false;
    }
    let number = pid.as_raw_pid().to_string();
    // Linux: `4711 (postgres) S …`.
    if let Ok(stat) = fs::read_to_string(format!("/proc/{number}/stat")) {
        let (name, rest) = stat.rsplit_once(')').unwrap_or_default();
        let (_, name) = name.split_once('(').unwrap_or_default();
        return SERVER_NAMES.contains(&name) && !rest.trim_start().starts_with('Z');
    }
    // Others: `S /opt/…/postgres`.
    let ps = std::process::Command::new("ps").args(["-o", "stat=", "-o", "comm=", "-p", &number]).output();
    ps.is_ok_and(|output| {
        let line = String::from_utf8_lossy(&output.stdout);
        let (stat, program) = line.trim().split_once(' ').unwrap_or_default();
        let name = program.trim_start().rsplit('/').next().unwrap_or_default();
        SERVER_NAMES.contains(&name) && !stat.starts_with('Z')
    })
}
