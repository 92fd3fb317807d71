//! Lines of JSON: the ones that `tracing_subscriber` writes with `flatten_event`, at less than half of its cost, and of an
//! error what is behind it, too. `tracing_subscriber` keeps the fields of a span as a text that it parses again, and looks
//! at every piece that it writes whether it is UTF-8; a request has a span and a line, whatever else becomes of it.

use std::{error::Error, fmt};

use serde::Serialize;
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    span::Record,
};
use tracing_subscriber::{
    field::RecordFields,
    fmt::{
        FmtContext, FormatEvent, FormatFields, FormattedFields,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    registry::LookupSpan,
};

use crate::chain::chain;

/// Room for most lines, so that they do not grow bit by bit.
const LINE_BYTES: usize = 512;

/// The format: `timestamp`, `level`, the event's fields, `target`, and `span`, with the name and the fields of the
/// innermost one.
#[derive(Clone, Copy, Debug)]
pub(super) struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut timestamp = String::new();
        SystemTime.format_time(&mut Writer::new(&mut timestamp))?;
        let metadata = event.metadata();
        let mut line = Members(Vec::with_capacity(LINE_BYTES));
        line.add("timestamp", &timestamp);
        line.add("level", metadata.level().as_str());
        event.record(&mut line);
        line.add("target", metadata.target());
        writer.write_char('{')?;
        writer.write_str(line.as_str())?;
        let span = event.parent().and_then(|id| context.span(id)).or_else(|| context.lookup_current());
        if let Some(span) = span {
            let mut name = Members::default();
            name.add("name", span.name());
            writer.write_str(r#","span":{"#)?;
            if let Some(fields) = span.extensions().get::<FormattedFields<N>>().filter(|it| !it.is_empty()) {
                writer.write_str(fields)?;
                writer.write_char(',')?;
            }
            writer.write_str(name.as_str())?;
            writer.write_char('}')?;
        }
        writer.write_str("}\n")
    }
}

/// A span's fields are kept as members without their braces.
impl<'writer> FormatFields<'writer> for JsonLines {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut members = Members::default();
        fields.record(&mut members);
        writer.write_str(members.as_str())
    }

    fn add_fields(&self, current: &'writer mut FormattedFields<Self>, fields: &Record<'_>) -> fmt::Result {
        let mut members = Members(std::mem::take(&mut current.fields).into_bytes());
        fields.record(&mut members);
        current.fields.push_str(members.as_str());
        Ok(())
    }
}

/// Members of a JSON object, without its braces.
#[derive(Default)]
struct Members(Vec<u8>);

impl Members {
    /// One more; none, when the value has no JSON form.
    fn add(&mut self, name: &str, value: &(impl Serialize + ?Sized)) {
        let Self(json) = self;
        let end = json.len();
        if end > 0 {
            json.push(b',');
        }
        let written = serde_json::to_writer(&mut *json, name).and_then(|()| {
            json.push(b':');
            serde_json::to_writer(&mut *json, value)
        });
        if written.is_err() {
            json.truncate(end);
        }
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("JSON is UTF-8")
    }
}

impl Visit for Members {
    /// With everything behind it, in one text.
    fn record_error(&mut self, field: &Field, error: &(dyn Error + 'static)) {
        self.add(field.name(), &chain(error));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field.name(), &format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field.name(), value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field.name(), &value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field.name(), &value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field.name(), &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field.name(), &value);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use serde_json::Value;
    use tracing::{field, subscriber::with_default};
    use tracing_subscriber::{Layer, Registry, fmt::MakeWriter, layer::SubscriberExt};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Lines {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    impl Lines {
        fn told(&self) -> Vec<Value> {
            let bytes = self.0.lock().unwrap().clone();
            let lines = String::from_utf8(bytes).unwrap();
            let mut lines: Vec<Value> =
                lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            for line in &mut lines {
                assert!(line["timestamp"].take().is_string());
            }
            lines
        }
    }

    #[test]
    fn lines_are_those_that_tracing_subscriber_writes() {
        let (ours, theirs) = (Lines::default(), Lines::default());
        let layer = || tracing_subscriber::fmt::layer::<Registry>();
        let json = layer().json().flatten_event(true).with_span_list(false).with_writer(theirs.clone());
        let lines = layer().event_format(JsonLines).fmt_fields(JsonLines).with_writer(ours.clone());
        with_default(tracing_subscriber::registry().with(json.and_then(lines)), || {
            tracing::info!("alone");
            tracing::warn!(text = "a \"b\" \\ \n\u{1}\u{7f} ü 🦀", "said: {}", "\"\r\n");
            let none: Option<&str> = None;
            let (some, quote) = (Some("x\"y"), '"');
            tracing::error!(one = 1, less = -1, half = 0.5, no = f64::NAN, yes = true, none, ?some, %quote);
            let outer = tracing::info_span!("outer", hidden = 1);
            let inner = tracing::info_span!("a \"span\"", id = "x\ny", later = field::Empty, count = 7);
            let _outer = outer.entered();
            tracing::info_span!("bare").in_scope(|| tracing::info!("within"));
            inner.record("later", "now");
            inner.in_scope(|| tracing::info!(error = &fmt::Error as &dyn std::error::Error, "within"));
            tracing::info!(parent: &inner, "below");
            tracing::info!(parent: None, "nowhere");
        });
        let (ours, theirs) = (ours.told(), theirs.told());
        assert_eq!(ours.len(), 7);
        assert_eq!(ours, theirs);
    }

    #[test]
    fn an_error_comes_with_what_is_behind_it() {
        #[derive(Debug, thiserror::Error)]
        #[error("{text}")]
        struct Fault {
            text: &'static str,
            source: Option<Box<Fault>>,
        }
        let root = Fault { text: "connection \"refused\"", source: None };
        let cause = Fault { text: "the database cannot be reached", source: Some(Box::new(root)) };
        let error = Fault { text: "no revocations", source: Some(Box::new(cause)) };

        let lines = Lines::default();
        let layer =
            tracing_subscriber::fmt::layer::<Registry>().event_format(JsonLines).fmt_fields(JsonLines);
        with_default(tracing_subscriber::registry().with(layer.with_writer(lines.clone())), || {
            tracing::warn!(error = crate::chain::cause(&error), "polling goes on");
        });
        let told = lines.told();
        assert_eq!(
            told[0]["error"],
            "no revocations: the database cannot be reached: connection \"refused\""
        );
    }
}
