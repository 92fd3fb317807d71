//! What the service tells its operators: logs, one event a line, to standard error.

use std::io::{self, IsTerminal};

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line, for machines.
    Json,
    /// For people at a terminal.
    Pretty,
}

/// A filter that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("RUST_LOG: {0}")]
pub struct InvalidFilter(#[from] tracing_subscriber::filter::ParseError);

/// Sends events that pass `filter` (the syntax of `RUST_LOG`) to standard error. A second call changes nothing.
///
/// # Errors
///
/// When `filter` cannot be read.
pub fn init(format: LogFormat, filter: &str) -> Result<(), InvalidFilter> {
    let filter = EnvFilter::builder().parse(filter)?;
    let layer = fmt::layer().with_writer(io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    let done = match format {
        LogFormat::Json => registry.with(layer.json().flatten_event(true).with_span_list(false)).try_init(),
        LogFormat::Pretty => {
            let colours = io::stderr().is_terminal();
            registry.with(layer.compact().with_ansi(colours).with_target(false)).try_init()
        }
    };
    // Only tests initialise twice.
    if let Err(error) = done {
        tracing::debug!(%error, "logging was initialised before");
    }
    Ok(())
}
