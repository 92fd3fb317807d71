//! The two text formats of a scrape, and which of them a reader wants.

/// The text format of a scrape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposition {
    /// OpenMetrics 1.0, which Prometheus asks for.
    OpenMetrics,
    /// Prometheus's own older format, 0.0.4, which `promtool check metrics` and many other readers know.
    Prometheus,
}

impl Exposition {
    /// The one that a reader with this `Accept` wants.
    pub fn wanted(accept: &str) -> Self {
        let is_openmetrics = |range: &str| {
            let mut parts = range.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default();
            name.eq_ignore_ascii_case("application/openmetrics-text")
                && !parts.any(|part| part.trim_end_matches(['0', '.']) == "q=")
        };
        if accept.split(',').any(is_openmetrics) { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// Its media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// The text in this format, from the one in OpenMetrics. The older format names a counter like its samples, with
    /// `_total`, knows no info metrics and no units, and does not mark its end.
    pub(super) fn of_openmetrics(self, text: String) -> String {
        if self == Self::OpenMetrics {
            return text;
        }
        let mut older = String::with_capacity(text.len());
        let mut help = None;
        for line in text.lines() {
            let mut words = line.splitn(4, ' ');
            let word = [words.next(), words.next(), words.next(), words.next()];
            match word {
                // Written along with the type, which decides the name.
                [Some("#"), Some("HELP"), Some(_), about] => help = about,
                [Some("#"), Some("TYPE"), Some(name), Some(kind)] => {
                    let (suffix, kind) = match kind {
                        "counter" if name.ends_with("_total") => ("", kind),
                        "counter" => ("_total", kind),
                        "info" => ("_info", "gauge"),
                        _ => ("", kind),
                    };
                    let about = help.take().unwrap_or_default();
                    older += &format!("# HELP {name}{suffix} {about}\n# TYPE {name}{suffix} {kind}\n");
                }
                [Some("#"), ..] => {}
                _ => {
                    older += line;
                    older.push('\n');
                }
            }
        }
        older
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_gets_what_it_asks_for() {
        use Exposition::{OpenMetrics, Prometheus};
        for (accept, expected) in [
            ("", Prometheus),
            ("*/*", Prometheus),
            ("text/plain;version=0.0.4", Prometheus),
            ("application/openmetrics-text", OpenMetrics),
            ("Application/OpenMetrics-Text; version=1.0.0", OpenMetrics),
            // Prometheus 2.42's own.
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                 text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                OpenMetrics,
            ),
            ("application/openmetrics-text;q=0,text/plain", Prometheus),
            ("application/openmetrics-text;q=0.0", Prometheus),
        ] {
            assert_eq!(Exposition::wanted(accept), expected, "{accept}");
        }
    }

    #[test]
    fn the_prometheus_format_names_counters_by_their_samples() {
        let text = "# HELP a_requests Requests.\n# TYPE a_requests counter\na_requests_total{b=\"# c\"} 1\n\
                    # HELP a_build It.\n# TYPE a_build info\na_build_info{version=\"1\"} 1\n\
                    # HELP a_wait_seconds How long.\n# TYPE a_wait_seconds gauge\n# UNIT a_wait_seconds seconds\n\
                    a_wait_seconds 0.5\n# EOF\n";
        assert_eq!(
            Exposition::Prometheus.of_openmetrics(text.to_owned()),
            "# HELP a_requests_total Requests.\n# TYPE a_requests_total counter\na_requests_total{b=\"# c\"} 1\n\
             # HELP a_build_info It.\n# TYPE a_build_info gauge\na_build_info{version=\"1\"} 1\n\
             # HELP a_wait_seconds How long.\n# TYPE a_wait_seconds gauge\na_wait_seconds 0.5\n"
        );
        assert_eq!(Exposition::OpenMetrics.of_openmetrics(text.to_owned()), text);
    }
}
