//! How many files the process may have open, and so how many connections it may accept: each is an open file.
//!
//! The system has two limits. The soft limit is in force, and is often 1024 for the sake of programs that use `select`.
//! A process may raise it to the hard limit, which tends to be far higher.

use std::fmt;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::http::Limits;

/// Connections for the feed of revocations, besides the one that listens. Nothing else uses it, so nothing delays a
/// revocation.
pub(super) const FEED_CONNECTIONS: u32 = 1;
/// Connections for reading the ring of keys, if there is one: nothing delays the end of a leaked key either, and
/// somebody who locks the keys does not stop the feed.
pub(super) const KEYS_CONNECTIONS: u32 = 1;
/// Connections for other background work: the history may hold one for long, and everything else takes turns with the
/// other.
pub(super) const BACKGROUND_CONNECTIONS: u32 = 2;
/// How many connections of operators may be open.
pub(super) const OPS_CONNECTIONS: usize = 64;
/// Other open files: the runtime's own, the log, files read briefly, the trace collector, and the legacy system.
const OTHERS: u64 = 128;

/// The limit of open files, and what the service would use.
#[derive(Clone, Copy, Debug)]
pub(super) struct OpenFiles {
    limit: u64,
    /// For everything except clients' connections.
    reserve: u64,
}

impl OpenFiles {
    /// The limit to which a service would raise its own, given its connections to the database for requests.
    pub(super) fn look(db_max_connections: u32) -> Self {
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        let (soft, hard) = (current.unwrap_or(u64::MAX), maximum.unwrap_or(u64::MAX));
        // One more connection listens to the database.
        let background = BACKGROUND_CONNECTIONS + FEED_CONNECTIONS + KEYS_CONNECTIONS;
        let database = u64::from(db_max_connections + background + 1);
        let reserve = database + OPS_CONNECTIONS as u64 + OTHERS;
        let needed = Limits::default().connections as u64 + reserve;
        Self { limit: soft.max(hard.min(needed)), reserve }
    }

    /// Like [`look`](Self::look), but also raises the limit. Programs started later inherit it.
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

    /// How many connections of clients fit: as many as wanted, or what the reserve leaves. The reserve gets half of the
    /// limit at most, or a very low limit would leave nothing.
    pub(super) fn connections(self) -> usize {
        let left = self.limit.saturating_sub(self.reserve).max(self.limit / 2);
        Limits::default().connections.min(usize::try_from(left).unwrap_or(usize::MAX))
    }

    /// What to do if fewer fit than wanted.
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
            u64::MAX => write!(f, "{connections} connections at most: there is no limit on open files"),
            limit => write!(f, "{connections} connections at most: {limit} files may be open"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_connection_limit_reserves_files_for_everything_else() {
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
