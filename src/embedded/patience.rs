//! How long things may take.

use std::time::Duration;

/// How long a server may take to answer, whoever started it.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);

/// How long to wait between two checks of a server whose state is expected to change.
pub(super) const POLL: Duration = Duration::from_millis(10);
