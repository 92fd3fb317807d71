//! What the service tells its operators: logs on standard error, one event a line, and [`traces`].

mod json;
mod pretty;
mod stderr;
pub mod traces;

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    env,
    io::{self, IsTerminal},
    panic,
};

use tracing::{Metadata, Subscriber, field::display};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterExt, filter_fn},
    fmt,
    layer::SubscriberExt,
    registry::LookupSpan,
    util::SubscriberInitExt,
};

use self::{json::JsonLines, pretty::PrettyLines, stderr::Stderr, traces::Traces};

/// The span whose fields are in every line that is logged within a request. All other spans are for [`traces`] only, so
/// that no step of a request takes the place of the request in a line.
pub const REQUEST: &str = "request";

/// The format of the log's lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line, for machines.
    Json,
    /// For people at a terminal.
    Pretty,
}

/// A filter that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the log filter cannot be read")]
pub struct InvalidFilter(#[from] tracing_subscriber::filter::ParseError);

/// Sends events that pass `filter` (the syntax of `RUST_LOG`) to standard error, and spans to `traces`. A second call
/// changes nothing.
///
/// # Errors
///
/// When `filter` cannot be read.
pub fn init(format: LogFormat, filter: &str, traces: Option<&Traces>) -> Result<(), InvalidFilter> {
    let filter = EnvFilter::builder().parse(filter)?;
    let registry = tracing_subscriber::registry();
    // Not `with(None)`, with which every span of a trace would be made for nobody.
    let done = match traces {
        Some(traces) => registry.with(traces.layer()).with(lines(format, filter)).try_init(),
        None => registry.with(lines(format, filter)).try_init(),
    };
    // Only tests initialise twice.
    if let Err(error) = done {
        tracing::debug!(%error, "logging was initialised before");
    }
    Ok(())
}

/// What `ask` finds out about the log (by `tracing::enabled!`) if the log has this filter.
///
/// # Errors
///
/// When `filter` cannot be read.
pub fn where_logged<T>(filter: &str, ask: impl FnOnce() -> T) -> Result<T, InvalidFilter> {
    let filter = EnvFilter::builder().parse(filter)?;
    Ok(tracing::subscriber::with_default(tracing_subscriber::registry().with(filter), ask))
}

/// Whether output to `stream` may be coloured: it is a terminal, and `NO_COLOR` is not set (no-color.org).
pub fn is_coloured(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Makes every panic from now on an event like any other: one line, in the same format as the others, with the place
/// where it occurred. `RUST_BACKTRACE` adds a backtrace.
pub fn log_panics() {
    panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(display);
        let backtrace = Backtrace::capture();
        let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| display(backtrace));
        let message = panic.payload_as_str().unwrap_or("it does not say why");
        tracing::error!(place, backtrace, "panicked: {message}");
    }));
}

/// The layer that writes the events that pass `filter`.
fn lines<S>(format: LogFormat, filter: EnvFilter) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let layer = fmt::layer().with_writer(|| Stderr);
    let filter = filter.and(filter_fn(is_logged));
    match format {
        LogFormat::Json => layer.event_format(JsonLines).fmt_fields(JsonLines).with_filter(filter).boxed(),
        LogFormat::Pretty => {
            let layer = layer.event_format(PrettyLines).fmt_fields(PrettyLines);
            layer.with_ansi(is_coloured(&io::stderr())).with_filter(filter).boxed()
        }
    }
}

/// Lets events through, and also queries whether an event would be logged, which are neither span nor event.
fn is_logged(metadata: &Metadata<'_>) -> bool {
    !metadata.is_span() || metadata.name() == REQUEST
}

#[cfg(test)]
mod tests {
    use std::{
        process::{Command, Stdio},
        sync::{Arc, Mutex},
        thread,
    };

    use super::*;

    /// What is logged, in memory.
    #[derive(Clone, Default)]
    pub(super) struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl fmt::MakeWriter<'_> for Lines {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    impl Lines {
        pub(super) fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    /// The environment variable that tells the process that runs [`victim`] what to do.
    const VICTIM: &str = "GATEPASS_TEST_LOG";

    /// Not a test: the next ones run it.
    #[test]
    fn victim() {
        let Some(does) = env::var_os(VICTIM) else { return };
        init(LogFormat::Json, "info", None).unwrap();
        log_panics();
        if does == "panic" {
            thread::spawn(|| panic!("in two\nlines")).join().unwrap_err();
            return;
        }
        thread::scope(|scope| {
            for thread in 0..THREADS {
                // Some are longer than a pipe takes at once, and longer than it holds.
                let length = move |line| if line % 10 == thread { 70_000 } else { 10 + line };
                let log = move || {
                    (0..LINES).for_each(|line| tracing::info!(thread, line, text = "x".repeat(length(line))));
                };
                scope.spawn(log);
            }
        });
    }

    /// For the victim that logs much.
    const THREADS: usize = 4;
    const LINES: usize = 200;

    /// What a victim logs that does this.
    fn logged(does: &str) -> String {
        let (_, module) = module_path!().split_once("::").unwrap();
        let output = Command::new(env::current_exe().unwrap())
            .args([&format!("{module}::victim"), "--exact", "--nocapture"])
            .env(VICTIM, does)
            .env_remove("RUST_BACKTRACE")
            .stdout(Stdio::null())
            .output()
            .unwrap();
        String::from_utf8(output.stderr).unwrap()
    }

    #[test]
    fn lines_of_many_threads_are_whole_and_in_order_for_each_thread() {
        let log = logged("much");
        let mut next = [0; THREADS];
        for line in log.lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
            let thread = usize::try_from(line["thread"].as_u64().unwrap()).unwrap();
            assert_eq!(line["line"], next[thread]);
            next[thread] += 1;
        }
        assert_eq!(next, [LINES; THREADS]);
    }

    #[test]
    fn a_panic_is_one_line_that_says_where() {
        let log = logged("panic");
        let line: serde_json::Value = serde_json::from_str(&log).unwrap_or_else(|_| panic!("{log}"));
        assert_eq!((&line["level"], &line["message"]), (&"ERROR".into(), &"panicked: in two\nlines".into()));
        assert!(line["place"].as_str().unwrap().starts_with("src/telemetry/mod.rs:"), "{log}");
    }
}
