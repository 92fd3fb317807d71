//! Standard error without the lock of [`std::io::Stderr`]. With the lock, a thread that the kernel preempts in the
//! middle of a line would keep every request waiting that has a line to write.

use std::{
    io::{self, Write},
    sync::{PoisonError, RwLock},
};

/// How many bytes the kernel writes atomically, even to a pipe (`PIPE_BUF`, by POSIX at least 512).
const WHOLE: usize = if cfg!(target_os = "linux") { 4096 } else { 512 };

/// Held exclusively while writing more than that, and shared by all other writers.
static LONG: RwLock<()> = RwLock::new(());

/// Standard error, for writers that write one line at a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stderr;

impl Write for Stderr {
    /// Writes a whole line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if line.len() <= WHOLE {
            let _together = LONG.read().unwrap_or_else(PoisonError::into_inner);
            Unlocked.write_all(line)?;
        } else {
            let _alone = LONG.write().unwrap_or_else(PoisonError::into_inner);
            Unlocked.write_all(line)?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Unlocked;

impl Write for Unlocked {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(io::stderr(), bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
