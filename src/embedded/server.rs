//! The server in the hands of the process that owns it: found or started, and stopped.

use std::{
    fs, io, mem,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use super::{
    error::{EmbeddedError, Result},
    patience::{PATIENCE, POLL},
    pid_file::{PidFile, is_postgres, remove_if_stale},
    socket,
};

/// If it is dropped without [`stop`](Self::stop) or [`leave`](Self::leave), the server is told to shut down, without
/// waiting.
#[derive(Debug)]
pub(super) struct Server {
    process: Process,
    data: PathBuf,
}

#[derive(Debug)]
enum Process {
    /// Started here.
    Child(Child),
    /// Found running after its parent died.
    Adopted(Pid),
}

/// The owner of the data, if the process belongs to somebody else: a user who can write there could name somebody
/// else's process in `postmaster.pid`, for root to stop. Where there is no `/proc`, the file is taken on trust.
fn foreign_owner(pid: Pid, data: &Path) -> Option<u32> {
    let process = fs::metadata(format!("/proc/{}", pid.as_raw_pid())).ok()?.uid();
    let owner = fs::metadata(data).ok()?.uid();
    (process != owner).then_some(owner)
}

impl Server {
    /// The server that has the data open, once it answers, and where its socket is; `None` if there is none, or if it
    /// has ended meanwhile. For the holder of the lock: nobody else owns the server.
    pub(super) async fn adopt(data: &Path) -> Result<Option<(Server, PathBuf)>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let Some(found) = PidFile::read(data) else { return Ok(None) };
            let pid = found.pid.as_raw_pid();
            if !is_postgres(found.pid) {
                remove_if_stale(&PidFile::path(data))?;
                return Ok(None);
            }
            if let Some(uid) = foreign_owner(found.pid, data) {
                return Err(EmbeddedError::NotOurs { what: "pid file", path: PidFile::path(data), uid });
            }
            if fs::canonicalize(&found.data).ok() != fs::canonicalize(data).ok() {
                return Err(EmbeddedError::Displaced { pid, data: data.to_owned(), origin: found.data });
            }
            if socket::answers(&found.run).await {
                let server = Server { process: Process::Adopted(found.pid), data: data.to_owned() };
                return Ok(Some((server, found.run)));
            }
            if Instant::now() > deadline {
                return Err(EmbeddedError::Mute { pid, data: data.to_owned() });
            }
            sleep(POLL).await;
        }
    }

    /// Starts the program. When dropped, it is not killed but told to stop.
    pub(super) fn spawn(program: &mut Command, data: &Path) -> io::Result<Server> {
        let child = program.kill_on_drop(false).spawn()?;
        Ok(Server { process: Process::Child(child), data: data.to_owned() })
    }

    /// How the process ended, if it was started here and has ended.
    pub(super) fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        match &mut self.process {
            Process::Child(child) => child.try_wait(),
            Process::Adopted(_) => Ok(None),
        }
    }

    /// The id of the process, unless it is known to be gone.
    pub(super) fn pid(&self) -> Option<Pid> {
        match &self.process {
            Process::Child(child) => child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw),
            // By now another process may have that id. It is the server only as long as the server's own file says so.
            Process::Adopted(pid) => PidFile::read(&self.data)
                .is_some_and(|file| file.pid == *pid && is_postgres(*pid))
                .then_some(*pid),
        }
    }

    /// Resolves when the process is gone.
    async fn gone(&mut self) {
        if let Process::Child(child) = &mut self.process {
            // An error would mean that it was waited for before.
            let _ = child.wait().await;
            return;
        }
        while self.pid().is_some() {
            sleep(POLL).await;
        }
    }

    /// Leaves it running for others who use it.
    pub(super) fn leave(self) {
        mem::forget(self);
    }

    pub(super) async fn stop(mut self) -> Result<()> {
        // SIGINT is a fast shutdown, with a checkpoint; SIGQUIT an immediate one, with recovery at the next start.
        for (signal, patience) in [(Signal::INT, 10), (Signal::QUIT, 5)] {
            let Some(pid) = self.pid() else { break };
            tracing::debug!(pid = pid.as_raw_pid(), ?signal, "stopping Postgres");
            // This fails only if the process is gone, which the next line finds out.
            let _ = kill_process(pid, signal);
            if timeout(Duration::from_secs(patience), self.gone()).await.is_ok() {
                break;
            }
        }
        match self.pid() {
            Some(pid) => Err(EmbeddedError::StillRunning { pid: pid.as_raw_pid(), data: self.data.clone() }),
            None => Ok(()),
        }
    }
}

impl Drop for Server {
    /// After [`stop`](Server::stop) there is nothing left to signal; without it, this is the best that can be done.
    fn drop(&mut self) {
        if let Some(pid) = self.pid() {
            let _ = kill_process(pid, Signal::INT);
        }
    }
}
