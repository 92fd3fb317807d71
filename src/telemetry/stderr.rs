//! Standard error without the lock of [`std::io::Stderr`]: a thread that the kernel takes off its core in the middle of a
//! line would have every request wait that has one to write.

use std::{
    io::{self, Write},
    sync::{PoisonError, RwLock},
};

/// What the kernel takes whole, and lets nothing come between, also in a pipe (`PIPE_BUF`, by POSIX at least 512).
const WHOLE: usize = if cfg!(target_os = "linux") { 4096 } else { 512 };

/// Held alone by who writes more than that, and together by all others.
static LONG: RwLock<()> = RwLock::new(());

/// Standard error, for who writes a line at a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stderr;

impl Write for Stderr {
    /// Writes all of a line.
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
