//! Log lines for people at a terminal: those of `tracing_subscriber`'s compact format, without the name of the span,
//! which reads as if it were part of the message. Values may be texts of others, and those neither break a line nor
//! control the terminal: `tracing_subscriber` escapes less, and not everywhere.

use std::{error::Error, fmt};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
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

use crate::{
    chain::chain,
    terminal::{plain, plain_lines},
};

/// The format: time, level, message, the event's fields, and the fields of the innermost span.
#[derive(Clone, Copy, Debug)]
pub(super) struct PrettyLines;

impl<S, N> FormatEvent<S, N> for PrettyLines
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
        let is_coloured = writer.has_ansi_escapes();
        let (dim, plain) = if is_coloured { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
        let level = *event.metadata().level();
        let colour = match level {
            _ if !is_coloured => "",
            Level::ERROR => "\x1b[31m",
            Level::WARN => "\x1b[33m",
            Level::INFO => "\x1b[32m",
            Level::DEBUG => "\x1b[34m",
            Level::TRACE => "\x1b[35m",
        };
        writer.write_str(dim)?;
        SystemTime.format_time(&mut writer)?;
        write!(writer, "{plain} {colour}{level:>5}{plain} ")?;
        context.format_fields(writer.by_ref(), event)?;
        if let Some(span) = context.parent_span()
            && let Some(fields) = span.extensions().get::<FormattedFields<N>>()
            && !fields.is_empty()
        {
            write!(writer, " {dim}{fields}{plain}")?;
        }
        writeln!(writer)
    }
}

impl<'writer> FormatFields<'writer> for PrettyLines {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut values = Values { writer, has_any: false, done: Ok(()) };
        fields.record(&mut values);
        values.done
    }
}

/// The fields that have been written.
struct Values<'writer> {
    writer: Writer<'writer>,
    has_any: bool,
    done: fmt::Result,
}

impl Values<'_> {
    fn add(&mut self, field: &Field, value: &str) -> fmt::Result {
        if std::mem::replace(&mut self.has_any, true) {
            self.writer.write_char(' ')?;
        }
        let (italic, dim, end) =
            if self.writer.has_ansi_escapes() { ("\x1b[3m", "\x1b[2m", "\x1b[0m") } else { ("", "", "") };
        match field.name() {
            "message" => self.writer.write_str(&plain(value)),
            // The lines of a backtrace are ours, and not to be read on one.
            name @ "backtrace" => write!(self.writer, "{italic}{name}{end}{dim}={end}{}", plain_lines(value)),
            name => write!(self.writer, "{italic}{name}{end}{dim}={end}{}", plain(value)),
        }
    }
}

impl Visit for Values<'_> {
    /// With all its causes, in one text.
    fn record_error(&mut self, field: &Field, error: &(dyn Error + 'static)) {
        self.record_debug(field, &format_args!("{}", chain(error)));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if self.done.is_ok() {
            self.done = self.add(field, &format!("{value:?}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing::{info_span, subscriber::with_default};
    use tracing_subscriber::{Layer, Registry, fmt::layer, layer::SubscriberExt};

    use super::{super::tests::Lines, *};

    #[test]
    fn lines_match_the_compact_ones_but_for_the_span() {
        for is_coloured in [false, true] {
            let (ours, theirs) = (Lines::default(), Lines::default());
            let compact = layer::<Registry>().compact().with_target(false).with_ansi(is_coloured);
            let pretty = layer().event_format(PrettyLines).fmt_fields(PrettyLines).with_ansi(is_coloured);
            let layers = compact.with_writer(theirs.clone()).and_then(pretty.with_writer(ours.clone()));
            with_default(tracing_subscriber::registry().with(layers), || {
                tracing::trace!("alone");
                tracing::debug!(error = &fmt::Error as &dyn std::error::Error, "\u{1b}[31m");
                info_span!("bare").in_scope(|| tracing::warn!(text = "a \"b\"", "within"));
                info_span!("request", id = "x", route = "/").in_scope(|| {
                    tracing::info!(one = 1, "within");
                    tracing::error!(parent: None, "nowhere");
                });
            });
            // Each line without its time.
            let [ours, theirs] = [ours, theirs].map(|told| {
                // Ours are escaped in one way everywhere.
                let told = told.text().replace(r"\x1b", r"\u{1b}");
                let lines = told.lines().map(|line| line.split_once('Z').expect("a time").1.to_owned());
                lines.collect::<Vec<_>>()
            });
            assert_eq!(ours.len(), 5);
            for (ours, theirs) in ours.iter().zip(theirs) {
                let (bold, plain) = if is_coloured { ("\u{1b}[1m", "\u{1b}[0m") } else { ("", "") };
                let without = |name: &str| theirs.replace(&format!("{bold}{name}{plain}: "), "");
                assert!([without("bare"), without("request")].contains(ours), "{ours:?}, {theirs:?}");
                assert!(!ours.contains("bare") && !ours.contains("request"), "{ours:?}");
            }
        }
    }

    #[test]
    fn no_value_breaks_a_line_or_controls_the_terminal() {
        let lines = Lines::default();
        let layer = layer().event_format(PrettyLines).fmt_fields(PrettyLines).with_ansi(false);
        let evil = "x\u{1b}[31m\nforged\r\u{202e}";
        with_default(tracing_subscriber::registry().with(layer.with_writer(lines.clone())), || {
            info_span!("request", route = %evil, id = tracing::field::Empty).in_scope(|| {
                tracing::Span::current().record("id", evil);
                tracing::warn!(reason = %evil, text = evil, error = &std::io::Error::other(evil) as &dyn Error, "{evil}");
            });
        });
        let text = lines.text();
        assert_eq!(text.matches('\n').count(), 1, "{text:?}");
        assert_eq!(text.matches(r"x\u{1b}[31m\u{a}forged\u{d}\u{202e}").count(), 4, "{text:?}");
        assert_eq!(text.matches("forged").count(), 6, "{text:?}");
        assert!(!text.contains(['\u{1b}', '\r', '\u{202e}']), "{text:?}");
    }
}
