//! How long things may take.

use std::time::Duration;

/// How long a server may take to answer, whoever started it.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);

/// How long between two looks at a server that is expected to change.
pub(super) const POLL: Duration = Duration::from_millis(10);
