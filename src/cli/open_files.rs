//! How many files the process may have open, and so how many connections it may take: each is one.
//!
//! Of the two limits that the system has, the soft one is in force, and often 1024, for the sake of programs that use
//! `select`. A process may raise it to the hard one, which tends to be far higher.

use std::fmt;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::http::Limits;

/// Connections for the feed of revocations, besides the one that listens: one that reads, what was revoked and, in turn
/// with that, which keys are good. Nobody else has it, so that nothing keeps a revocation or a leaked key's end waiting.
pub(super) const FEED_CONNECTIONS: u32 = 1;
/// Connections for what else goes on beside requests: the history may hold one for long, and everything else takes
/// turns with the other.
pub(super) const BACKGROUND_CONNECTIONS: u32 = 2;
/// How many operators' connections may be open.
pub(super) const OPS_CONNECTIONS: usize = 64;
/// The runtime's own, the log, what is read for a moment, the collector of traces, and the old system.
const OTHERS: u64 = 128;

/// The limit of open files, and what the service would use.
#[derive(Clone, Copy, Debug)]
pub(super) struct OpenFiles {
    limit: u64,
    /// For whatever is no client's connection.
    reserve: u64,
}

impl OpenFiles {
    /// The limit that a service with so many connections for requests to the database would raise its own to.
    pub(super) fn look(db_max_connections: u32) -> Self {
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        let (soft, hard) = (current.unwrap_or(u64::MAX), maximum.unwrap_or(u64::MAX));
        // One more connection listens to the database.
        let database = u64::from(db_max_connections + BACKGROUND_CONNECTIONS + FEED_CONNECTIONS + 1);
        let reserve = database + OPS_CONNECTIONS as u64 + OTHERS;
        let needed = Limits::default().connections as u64 + reserve;
        Self { limit: soft.max(hard.min(needed)), reserve }
    }

    /// As [`look`](Self::look), and raises the limit. Programs that are started later inherit it.
    pub(super) fn raise(db_max_connections: u32) -> Self {
        let wanted = Self::look(db_max_connections);
        let now = getrlimit(Resource::Nofile);
        let Some(soft) = now.current.filter(|soft| *soft < wanted.limit) else { return wanted };
        match setrlimit(Resource::Nofile, Rlimit { current: Some(wanted.limit), ..now }) {
            Ok(()) => wanted,
            Err(error) => {
                tracing::warn!(%error, "the limit of open files could not be raised");
                Self { limit: soft, ..wanted }
            }
        }
    }

    /// How many connections of clients fit: those that are wanted, or what the reserve leaves. It is given at most half,
    /// or a very low limit would leave nothing.
    pub(super) fn connections(self) -> usize {
        let left = self.limit.saturating_sub(self.reserve).max(self.limit / 2);
        Limits::default().connections.min(usize::try_from(left).unwrap_or(usize::MAX))
    }

    /// What to do when fewer fit than are wanted.
    pub(super) fn advice(self) -> Option<String> {
        let wanted = Limits::default().connections;
        (self.connections() < wanted).then(|| {
            format!(
                "for {wanted}, raise the hard limit to {}: LimitNOFILE= with systemd, --ulimit nofile= with docker, \
                 ulimit -Hn in a shell",
                wanted as u64 + self.reserve
            )
        })
    }
}

impl fmt::Display for OpenFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let connections = self.connections();
        match self.limit {
            u64::MAX => write!(f, "{connections} connections at most: the limit of open files is none"),
            limit => write!(f, "{connections} connections at most: {limit} files may be open"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_to_the_rest() {
        for (limit, connections, is_enough) in [
            (u64::MAX, 10_000, true),
            (10_200, 10_000, true),
            (10_199, 9_999, false),
            (1024, 824, false),
            (256, 128, false),
            (2, 1, false),
        ] {
            let files = OpenFiles { limit, reserve: 200 };
            assert_eq!((files.connections(), files.advice().is_none()), (connections, is_enough), "{limit}");
        }
        assert!(OpenFiles { limit: 1024, reserve: 200 }.advice().unwrap().contains("hard limit to 10200"));
    }
}
