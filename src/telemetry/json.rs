//! Log lines in JSON: those that `tracing_subscriber` writes with `flatten_event`, at less than half the cost, with the
//! fields of the span beside those of the event, so that a query for a request finds all of its lines, and with the
//! whole chain of causes of an error. `tracing_subscriber` keeps the fields of a span as text that it parses again, and
//! checks every piece that it writes for UTF-8. That matters because every request has a span and a line.

use std::{
    error::Error,
    fmt::{self, Write as _},
};

use serde::Serialize;
use serde_json::{Map, Value};
use time::OffsetDateTime;
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    span::Record,
};
use tracing_subscriber::{
    field::RecordFields,
    fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields, format::Writer},
    registry::LookupSpan,
};

use crate::{chain::chain, clock::Clock};

/// Room for most lines, so that their buffer does not grow bit by bit.
const LINE_BYTES: usize = 512;
/// The same for the fields of a span.
const FIELDS_BYTES: usize = 192;

/// The format: `timestamp`, `level`, the event's fields, `target`, and the fields of the innermost span. If both have a
/// field of the same name, the line has the event's.
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
        let metadata = event.metadata();
        let mut line = Members(Vec::with_capacity(LINE_BYTES));
        line.0.push(b'{');
        line.add_time("timestamp", Clock::system().now());
        line.add_text("level", metadata.level().as_str());
        event.record(&mut line);
        line.add_text("target", metadata.target());
        let span = event.parent().and_then(|id| context.span(id)).or_else(|| context.lookup_current());
        if let Some(span) = span
            && let Some(fields) = span.extensions().get::<FormattedFields<N>>()
        {
            let is_known = |field: Field| metadata.fields().field(field.name()).is_some();
            if span.metadata().fields().iter().any(is_known) {
                line.add_missing(fields);
            } else if !fields.is_empty() {
                line.0.push(b',');
                line.0.extend_from_slice(fields.as_bytes());
            }
        }
        line.0.extend_from_slice(b"}\n");
        writer.write_str(line.as_str())
    }
}

/// A span's fields are kept as members without their braces.
impl<'writer> FormatFields<'writer> for JsonLines {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut members = Members(Vec::with_capacity(FIELDS_BYTES));
        fields.record(&mut members);
        writer.write_str(members.as_str())
    }

    fn add_fields(&self, current: &'writer mut FormattedFields<Self>, fields: &Record<'_>) -> fmt::Result {
        let mut members = Members(Vec::with_capacity(FIELDS_BYTES));
        fields.record(&mut members);
        members.add_missing(&current.fields);
        current.fields.clear();
        current.fields.push_str(members.as_str());
        Ok(())
    }
}

/// Members of a JSON object, without its braces or after the first.
struct Members(Vec<u8>);

impl Members {
    /// Begins one more member. Its value must follow.
    fn begin(&mut self, name: &str) {
        if !matches!(self.0.last(), None | Some(b'{')) {
            self.0.push(b',');
        }
        self.push_text(name);
        self.0.push(b':');
    }

    /// Adds those `members`, in the same form, whose names are not here yet.
    fn add_missing(&mut self, members: &str) {
        let object = |members: &str| {
            let members = members.trim_start_matches('{');
            serde_json::from_str::<Map<String, Value>>(&format!("{{{members}}}")).unwrap_or_default()
        };
        let present = object(self.as_str());
        for (name, value) in object(members).iter().filter(|(name, _)| !present.contains_key(*name)) {
            self.add(name, value);
        }
    }

    /// Adds one more member, or none if the value has no JSON form.
    fn add(&mut self, name: &str, value: &impl Serialize) {
        let end = self.0.len();
        self.begin(name);
        if serde_json::to_writer(&mut self.0, value).is_err() {
            self.0.truncate(end);
        }
    }

    fn add_text(&mut self, name: &str, text: &str) {
        self.begin(name);
        self.push_text(text);
    }

    /// In the format of RFC 3339, to the microsecond.
    fn add_time(&mut self, name: &str, at: OffsetDateTime) {
        let ((year, month, day), (hour, minute, second, micro)) = (at.to_calendar_date(), at.to_hms_micro());
        let mut text = *b"\"0000-00-00T00:00:00.000000Z\"";
        for (mut number, mut place) in [
            (year.unsigned_abs(), 4),
            (u8::from(month).into(), 7),
            (day.into(), 10),
            (hour.into(), 13),
            (minute.into(), 16),
            (second.into(), 19),
            (micro, 26),
        ] {
            // From the last digit backwards.
            while number > 0 {
                text[place] += (number % 10) as u8;
                number /= 10;
                place -= 1;
            }
        }
        self.begin(name);
        self.0.extend_from_slice(&text);
    }

    fn push_text(&mut self, text: &str) {
        let Self(json) = self;
        // Nearly all texts are. This looks at the whole text, many bytes at a time; serde_json looks at one at a time.
        let is_plain =
            text.bytes().fold(true, |plain, byte| plain & (byte >= b' ') & (byte != b'"') & (byte != b'\\'));
        if is_plain {
            json.push(b'"');
            json.extend_from_slice(text.as_bytes());
            json.push(b'"');
        } else {
            serde_json::to_writer(json, text).expect("a text has a JSON form, and a Vec takes it");
        }
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("JSON is UTF-8")
    }
}

impl Visit for Members {
    /// With all its causes, in one text.
    fn record_error(&mut self, field: &Field, error: &(dyn Error + 'static)) {
        self.add_text(field.name(), &chain(error));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = String::new();
        if write!(text, "{value:?}").is_ok() {
            self.add_text(field.name(), &text);
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add_text(field.name(), value);
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
    use time::macros::datetime;
    use tracing::{field, subscriber::with_default};
    use tracing_subscriber::{Layer, Registry, layer::SubscriberExt};

    use super::{super::tests::Lines, *};

    /// The lines without their times.
    fn told(lines: &Lines) -> Vec<Value> {
        let text = lines.text();
        let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for line in &mut lines {
            assert!(line["timestamp"].take().is_string());
        }
        lines
    }

    /// The line with the fields of its span beside its own.
    fn flattened(mut line: Value) -> Value {
        let line_fields = line.as_object_mut().unwrap();
        if let Some(Value::Object(mut span)) = line_fields.remove("span") {
            span.remove("name");
            span.append(line_fields);
            *line_fields = span;
        }
        line
    }

    #[test]
    fn lines_match_those_of_tracing_subscriber() {
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
        let theirs: Vec<_> = told(&theirs).into_iter().map(flattened).collect();
        let ours = told(&ours);
        assert_eq!(ours.len(), 7);
        assert_eq!(ours, theirs);
    }

    #[test]
    fn a_name_is_in_a_line_once() {
        let lines = Lines::default();
        let layer =
            tracing_subscriber::fmt::layer::<Registry>().event_format(JsonLines).fmt_fields(JsonLines);
        with_default(tracing_subscriber::registry().with(layer.with_writer(lines.clone())), || {
            let span = tracing::info_span!("request", id = "span's", route = "{a}", count = 7, later = 0);
            span.record("later", 1);
            span.record("later", 2);
            let none: Option<&str> = None;
            span.in_scope(|| tracing::info!(id = "event's", count = none, "within"));
        });
        let line = lines.text();
        for name in ["id", "route", "count", "later"] {
            assert_eq!(line.matches(&format!("\"{name}\":")).count(), 1, "{name} in {line}");
        }
        let told = &told(&lines)[0];
        assert_eq!((&told["id"], &told["route"]), (&"event's".into(), &"{a}".into()));
        assert_eq!((&told["count"], &told["later"]), (&7.into(), &2.into()), "{told}");
    }

    #[test]
    fn a_time_is_as_rfc_3339_has_it() {
        for (at, text) in [
            (datetime!(2026-11-22 07:08:09.012345678 UTC), "2026-11-22T07:08:09.012345Z"),
            (datetime!(0042-01-01 00:00:00 UTC), "0042-01-01T00:00:00.000000Z"),
            (datetime!(9999-12-31 23:59:59.999999999 UTC), "9999-12-31T23:59:59.999999Z"),
        ] {
            let mut members = Members(Vec::new());
            members.add_time("at", at);
            assert_eq!(members.as_str(), format!(r#""at":"{text}""#));
        }
    }

    #[test]
    fn an_error_is_logged_with_its_causes() {
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
        let told = told(&lines);
        assert_eq!(
            told[0]["error"],
            "no revocations: the database cannot be reached: connection \"refused\""
        );
    }
}
