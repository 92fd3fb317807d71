//! Starts the server, and reports why it did not start.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    os::unix::ffi::{OsStrExt, OsStringExt},
};

use rustix::process::Pid;
use tokio::time::{Instant, sleep};

use super::{
    error::{EmbeddedError, Result, io_error},
    patience::{PATIENCE, POLL},
    pid_file::{PidFile, remove_if_stale},
    place::Place,
    programs::Programs,
    server::Server,
    socket::{self, PORT},
    user::{give, open_file},
};

/// Starts the server and waits until it answers. If this is dropped before then (an error, a Ctrl-C), the server is
/// told to stop again.
pub(super) async fn launch(place: &Place, programs: &Programs) -> Result<Server> {
    remove_if_stale(&socket::lock_file(&place.run))?;

    let log = open_file(&place.log, OpenOptions::new().read(true).append(true))?;
    give(&log, &place.log, place.user)?;
    let log_start = log.metadata().map_err(io_error("read", &place.log))?.len();
    let copy = || log.try_clone().map_err(io_error("open", &place.log));

    let mut postgres = programs.command("postgres", place.user);
    postgres.arg("-D").arg(&place.data).args(["-p", &PORT.to_string(), "-c", "listen_addresses="]);
    postgres.arg("-c").arg(socket_setting(place)).args(["-c", "unix_socket_permissions=0700"]);
    postgres.args(["-c", "max_connections=100"]);
    // Logs go to the file that was opened here, whatever postgresql.conf says: it is used to explain a failed start.
    postgres.args(["-c", "log_destination=stderr", "-c", "logging_collector=off"]);
    postgres.stdout(copy()?).stderr(copy()?);
    let mut server = Server::spawn(&mut postgres, &place.data).map_err(programs.run_error("postgres"))?;

    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = server.try_wait().map_err(programs.run_error("postgres"))? {
            let tail = tail(&log, log_start);
            return Err(EmbeddedError::Exited { status, log: place.log.clone(), tail });
        }
        // The pid file tells our server from another one on the same socket, about which ours is going to complain. A
        // server that is asked before it reports itself ready would log a complaint.
        let pid = server.pid();
        if PidFile::read(&place.data).is_some_and(|file| file.ready && Some(file.pid) == pid)
            && socket::answers(&place.run).await
        {
            tracing::debug!(pid = pid.map(Pid::as_raw_pid), "Postgres runs on {}", place.data.display());
            return Ok(server);
        }
        if Instant::now() > deadline {
            let tail = tail(&log, log_start);
            return Err(EmbeddedError::Slow { log: place.log.clone(), tail });
        }
        sleep(POLL).await;
    }
}

/// The setting that puts the socket into `run`.
///
/// Where possible, the path is relative to the data directory, which the server never leaves. If the state directory is
/// removed under a server and created anew by another, the old server then cannot remove the new one's socket by name
/// when it ends.
fn socket_setting(place: &Place) -> OsString {
    let mut setting = b"unix_socket_directories=".to_vec();
    if place.data.parent().is_some_and(|base| base.join("run") == place.run) {
        setting.extend(b"../run");
    } else {
        // The setting is a list, in which quotes keep a space from being a separator; a quote is doubled.
        setting.push(b'"');
        for &byte in place.run.as_os_str().as_bytes() {
            setting.push(byte);
            if byte == b'"' {
                setting.push(byte);
            }
        }
        setting.push(b'"');
    }
    OsString::from_vec(setting)
}

/// The last lines that were logged since the log was `start` bytes long.
fn tail(mut log: &File, start: u64) -> String {
    let mut read = || -> io::Result<Vec<u8>> {
        let end = log.metadata()?.len();
        log.seek(SeekFrom::Start(start.max(end.saturating_sub(8 << 10))))?;
        let mut bytes = Vec::new();
        log.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = match read() {
        Ok(bytes) => bytes,
        Err(error) => return format!("(it cannot be read: {error})"),
    };
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
