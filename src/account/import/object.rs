//! One record of a file as its own system wrote it: names and values, read field by field. What cannot be read is
//! noted, so that everything wrong with a record is reported at once.

use serde_json::{Map, Value};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    FieldError,
    json::{Fields, is_repeated},
};

/// A record, and what is wrong with it.
pub(super) struct Object<'a> {
    fields: &'a Map<String, Value>,
    /// Whether every value is a string, as in CSV.
    is_text: bool,
    pub(super) errors: Vec<FieldError>,
}

impl<'a> Object<'a> {
    pub(super) fn new(fields: &'a Map<String, Value>, is_text: bool) -> Self {
        Self { fields, is_text, errors: Vec::new() }
    }

    /// Notes every field that is not one of these.
    pub(super) fn knows(&mut self, names: &[&str]) {
        let unknown = |name: &&String| !name.starts_with('_') && !names.contains(&name.as_str());
        let unknown: Vec<_> = self.fields.keys().filter(unknown).cloned().collect();
        for name in unknown {
            self.refuse(&name, "unknown_field", "is not a field of the format");
        }
    }

    pub(super) fn refuse(&mut self, field: &str, code: &'static str, message: &str) {
        self.errors.push(FieldError::new(field, code, message));
    }

    /// A value that is present and not null; in CSV, also not empty.
    pub(super) fn value(&self, name: &str) -> Option<&'a Value> {
        self.fields.get(name).filter(|value| match value {
            Value::Null => false,
            Value::String(text) => !(self.is_text && text.is_empty()),
            _ => true,
        })
    }

    /// An object within this one. In CSV it is JSON text, which may be `null`.
    pub(super) fn object(&mut self, name: &str) -> Option<Map<String, Value>> {
        match self.value(name)? {
            Value::Object(fields) => Some(fields.clone()),
            Value::String(text) if self.is_text && text == "null" => None,
            Value::String(text) if self.is_text => match serde_json::from_str(text) {
                Ok(Fields { fields, repeated }) => {
                    self.errors.extend(repeated.iter().map(|key| is_repeated(&format!("{name}.{key}"))));
                    Some(fields)
                }
                Err(_) => self.wrong(name, "is not a JSON object"),
            },
            _ => self.wrong(name, "is not a JSON object"),
        }
    }

    fn wrong<T>(&mut self, name: &str, message: &str) -> Option<T> {
        self.refuse(name, "invalid_type", message);
        None
    }

    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        match self.value(name)? {
            Value::String(text) => Some(text.clone()),
            _ => self.wrong(name, "is not a string"),
        }
    }

    /// An id: a string or an integer.
    pub(super) fn id(&mut self, name: &str) -> Option<String> {
        match self.value(name)? {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) if number.is_i64() || number.is_u64() => Some(number.to_string()),
            _ => self.wrong(name, "is neither a string nor an integer"),
        }
    }

    pub(super) fn flag(&mut self, name: &str) -> Option<bool> {
        match self.value(name)? {
            Value::Bool(flag) => Some(*flag),
            Value::String(text) if self.is_text => match text.to_ascii_lowercase().as_str() {
                "true" | "t" | "yes" | "1" => Some(true),
                "false" | "f" | "no" | "0" => Some(false),
                _ => self.wrong(name, "is neither true nor false"),
            },
            _ => self.wrong(name, "is neither true nor false"),
        }
    }

    /// A time in RFC 3339, or as Postgres writes it; UTC if it has no offset.
    pub(super) fn time(&mut self, name: &str) -> Option<OffsetDateTime> {
        let read = match self.value(name)? {
            Value::String(text) => read_time(text),
            _ => None,
        };
        read.or_else(|| self.wrong(name, "is not a time in RFC 3339"))
    }

    /// A time as MongoDB writes it: `{"$date": …}`.
    pub(super) fn mongo_time(&mut self, name: &str) -> Option<OffsetDateTime> {
        let read = match self.value(name)?.get("$date") {
            Some(Value::String(text)) => read_time(text),
            _ => None,
        };
        read.or_else(|| self.wrong(name, "is not a `$date` with a time in RFC 3339"))
    }

    /// A time in milliseconds since 1970, as a number or a string.
    pub(super) fn milliseconds(&mut self, name: &str) -> Option<OffsetDateTime> {
        let number = match self.value(name)? {
            Value::String(text) => text.parse().ok(),
            value => value.as_i64(),
        };
        number
            .and_then(at_millisecond)
            .or_else(|| self.wrong(name, "is not a time in milliseconds since 1970"))
    }

    /// A list of strings; in CSV, separated by blanks.
    pub(super) fn texts(&mut self, name: &str) -> Option<Vec<String>> {
        let value = self.value(name)?;
        let read = match value {
            Value::Array(values) => {
                values.iter().map(|value| value.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
            }
            Value::String(text) if self.is_text => Some(text.split_whitespace().map(str::to_owned).collect()),
            _ => None,
        };
        read.or_else(|| self.wrong(name, "is not a list of strings"))
    }
}

/// The time `ms` milliseconds after 1970.
pub(super) fn at_millisecond(ms: i64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000).ok()
}

/// Reads a time to the microsecond, the precision of Postgres.
fn read_time(text: &str) -> Option<OffsetDateTime> {
    let read = OffsetDateTime::parse(text, &Rfc3339).ok().or_else(|| {
        let (date, rest) = text.trim().split_at_checked(10)?;
        let rest = rest.strip_prefix([' ', 'T'])?;
        let (clock, offset) = rest.split_at(rest.find(['+', '-', 'Z']).unwrap_or(rest.len()));
        let offset = match offset.len() {
            0 => "Z".to_owned(),
            3 => format!("{offset}:00"),
            _ => offset.to_owned(),
        };
        OffsetDateTime::parse(&format!("{date}T{clock}{offset}"), &Rfc3339).ok()
    })?;
    Some(read.truncate_to_microsecond())
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn times_are_read_as_systems_write_them() {
        let at = datetime!(2026-01-02 03:04:05.678901 UTC);
        for text in [
            "2026-01-02T03:04:05.678901Z",
            "2026-01-02T03:04:05.6789019Z",
            "2026-01-02T04:04:05.678901+01:00",
            "2026-01-02 03:04:05.678901+00",
            "2026-01-02 05:34:05.678901+02:30",
            "2026-01-02 03:04:05.678901",
            "2026-01-02T03:04:05.678901",
        ] {
            assert_eq!(read_time(text), Some(at), "{text}");
        }
        for text in ["", "2026-01-02", "yesterday", "2026-13-02T03:04:05Z", "２０２６-01-02 03:04:05"] {
            assert_eq!(read_time(text), None, "{text}");
        }
    }
}
