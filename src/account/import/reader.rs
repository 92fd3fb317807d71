//! From bytes to records, one at a time, whatever the size of the file: lines of JSON, rows of CSV, and JSON
//! [documents](super::document) that contain a list of users somewhere.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io::{self, BufRead, BufReader, Read},
    ops::Range,
    rc::Rc,
};

use csv::StringRecord;
use serde_json::{Map, Value};

use super::{Format, ReadError, Record, Rules, document, json::Fields, own};

/// The longest line or row, in bytes.
pub(super) const MAX_RECORD: usize = 1 << 20;

/// How much of a longer line is kept, in bytes: enough to find the line in the file.
const SHOWN: usize = 1 << 10;

/// A record as it is in the file.
#[derive(Clone, Debug)]
pub(super) enum Original {
    Object(Map<String, Value>),
    /// Text that should have been an object.
    Text(String),
    Row(Vec<Vec<u8>>),
}

/// The layout of the records in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    Json,
    /// With these columns.
    Csv(Vec<String>),
}

/// Takes a record and its range of bytes in the file. `false` to stop.
pub(super) type Take<'a> = dyn FnMut(Record, Range<u64>) -> bool + 'a;

/// Reads records and passes them to `take`, after passing the layout to `begin`.
pub(super) fn read(
    input: impl Read,
    rules: &Rules,
    begin: &mut dyn FnMut(Layout),
    take: &mut Take<'_>,
) -> Result<(), ReadError> {
    let mut input = BufReader::with_capacity(1 << 16, input);
    if input.fill_buf()?.starts_with(b"\xef\xbb\xbf") {
        input.consume(3);
    }
    // A query may well find nobody, but every file says something.
    if input.fill_buf()?.is_empty() && rules.format != Format::Database {
        return Err(ReadError::Empty);
    }
    let is_csv = match rules.format {
        Format::Csv => true,
        Format::Django | Format::Supabase => !starts_with(&mut input, b"[{")?,
        _ => false,
    };
    if is_csv {
        return rows(input, rules, begin, take);
    }
    begin(Layout::Json);
    let is_lines = match rules.format {
        Format::Jsonl | Format::Database => true,
        Format::Auth0 => !starts_with(&mut input, b"[")?,
        _ => false,
    };
    if is_lines { lines(input, rules, take) } else { document::read(input, rules, take) }
}

/// Whether the first byte that is not a blank is one of these. Consumes the blanks before it.
fn starts_with(input: &mut impl BufRead, bytes: &[u8]) -> io::Result<bool> {
    loop {
        let buffer = input.fill_buf()?;
        let Some(first) = buffer.first() else { return Ok(false) };
        if !first.is_ascii_whitespace() {
            return Ok(bytes.contains(first));
        }
        input.consume(1);
    }
}

fn lines(mut input: impl BufRead, rules: &Rules, take: &mut Take<'_>) -> Result<(), ReadError> {
    let (mut line, mut end) = (Vec::new(), 0);
    for number in 1.. {
        line.clear();
        let from = end;
        end += (&mut input).take(MAX_RECORD as u64 + 1).read_until(b'\n', &mut line)? as u64;
        if end == from {
            return Ok(());
        }
        let record = if line.len() > MAX_RECORD {
            if line.last() != Some(&b'\n') {
                end += input.skip_until(b'\n')? as u64;
            }
            line.truncate(SHOWN);
            let original = Original::Text(String::from_utf8_lossy(&line).into_owned());
            Some(Record::unreadable(number, original, "is longer than 1 MiB".to_owned()))
        } else {
            let text = line.trim_ascii();
            if text.is_empty() {
                continue;
            }
            match serde_json::from_slice::<Fields>(text) {
                Ok(row) => {
                    // All rows of a database have the same columns.
                    if rules.format == Format::Database && !own::is_course(&row.fields) {
                        row.fields.keys().try_for_each(|name| own::check_column(name))?;
                    }
                    Record::of_object(number, row, rules)
                }
                Err(error) => {
                    let at = format!("at column {}", error.column());
                    Some(Record::not_json(number, text, &error, &at))
                }
            }
        };
        if record.is_some_and(|record| !take(record, from..end)) {
            return Ok(());
        }
    }
    Ok(())
}

/// Counts the bytes read since the counter was last set to zero, and fails beyond its limit.
struct Bounded<R> {
    inner: R,
    since: Rc<Cell<usize>>,
    limit: usize,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.since.get() > self.limit {
            return Err(io::Error::other("one record is too long"));
        }
        let read = self.inner.read(buffer)?;
        self.since.set(self.since.get() + read);
        Ok(read)
    }
}

/// Where the lines of a file end, as far as the file has been read.
#[derive(Default)]
struct LineEnds {
    /// Each `\r` and `\n` not yet passed: its offset in the file, and whether it ends a line.
    ahead: VecDeque<(u64, bool)>,
    read: u64,
    /// How many lines have ended before those.
    lines: u64,
}

impl LineEnds {
    fn note(&mut self, bytes: &[u8]) {
        for (at, byte) in (self.read..).zip(bytes) {
            if matches!(byte, b'\r' | b'\n') {
                self.ahead.push_back((at, *byte == b'\n'));
            }
        }
        self.read += bytes.len() as u64;
    }

    fn pass_first(&mut self) {
        self.lines += u64::from(self.ahead.pop_front().is_some_and(|(_, is_end)| is_end));
    }

    /// The line of the row that the reader has begun to look for at `from`: the reader skips what is left of the line
    /// before, and empty lines.
    fn line_from(&mut self, mut from: u64) -> u64 {
        while self.ahead.front().is_some_and(|(at, _)| *at < from) {
            self.pass_first();
        }
        while self.ahead.front().is_some_and(|(at, _)| *at == from) {
            self.pass_first();
            from += 1;
        }
        self.lines + 1
    }
}

/// Notes where lines end. The CSV reader's own line count is for its current position, not for the beginning of a row.
struct Lined<R> {
    inner: R,
    ends: Rc<RefCell<LineEnds>>,
}

impl<R: Read> Read for Lined<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.ends.borrow_mut().note(&buffer[..read]);
        Ok(read)
    }
}

fn rows(
    input: impl Read,
    rules: &Rules,
    begin: &mut dyn FnMut(Layout),
    take: &mut Take<'_>,
) -> Result<(), ReadError> {
    let since = Rc::new(Cell::new(0));
    // The limit has room for the reader's buffer: what it reads ahead belongs to the next rows.
    let bounded = Bounded { inner: input, since: Rc::clone(&since), limit: MAX_RECORD + (1 << 16) };
    let ends = Rc::new(RefCell::new(LineEnds::default()));
    let lined = Lined { inner: bounded, ends: Rc::clone(&ends) };
    let mut reader = csv::ReaderBuilder::new().flexible(true).buffer_capacity(1 << 15).from_reader(lined);
    let columns: Vec<String> = reader.headers()?.iter().map(|name| name.trim().to_owned()).collect();
    if columns.is_empty() {
        return Err(ReadError::Empty);
    }
    if rules.format == Format::Csv {
        columns.iter().try_for_each(|name| own::check_column(name))?;
    }
    if let Some(twice) = columns.iter().enumerate().find(|(i, name)| columns[..*i].contains(name)) {
        return Err(ReadError::ColumnTwice(twice.1.clone()));
    }
    begin(Layout::Csv(columns.clone()));
    let mut row = csv::ByteRecord::new();
    loop {
        since.set(0);
        let from = reader.position().byte();
        if !reader.read_byte_record(&mut row)? {
            return Ok(());
        }
        let number = ends.borrow_mut().line_from(from);
        let original = || Original::Row(row.iter().map(<[u8]>::to_vec).collect());
        let record = match StringRecord::from_byte_record(row.clone()) {
            Err(_) => Record::unreadable(number, original(), "is not in UTF-8".to_owned()),
            Ok(text) if text.len() != columns.len() => {
                let message = format!("has {} columns, the heading {}", text.len(), columns.len());
                Record::unreadable(number, original(), message)
            }
            Ok(text) => {
                let cells = text.iter().map(|cell| Value::String(cell.to_owned()));
                let fields = columns.iter().cloned().zip(cells).collect();
                match Record::of_row(number, original(), &fields, rules) {
                    Some(record) => record,
                    None => continue,
                }
            }
        };
        if !take(record, from..reader.position().byte()) {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::password::Peppers;

    #[test]
    fn a_line_that_is_too_long_costs_that_line() {
        let rules = Rules::ours(Peppers::default(), None, false, datetime!(2026-01-02 03:04:05 UTC));
        let good = r#"{"username":"alice","email":"alice@example.com"}"#;
        // One that ends where reading stops, one that is longer, and one that never ends.
        let (just, long) = ("x".repeat(MAX_RECORD), "x".repeat(3 * MAX_RECORD));
        let text = format!("{good}\n{just}\n{good}\n{long}\n{good}\n{long}");
        let mut read = Vec::new();
        let mut take = |record: Record, _| {
            let kept = if let Original::Text(text) = &record.original { text.len() } else { 0 };
            read.push((record.number, record.user.is_ok(), kept));
            true
        };
        lines(text.as_bytes(), &rules, &mut take).unwrap();
        let (good, long) = (|number| (number, true, 0), |number| (number, false, SHOWN));
        assert_eq!(read, [good(1), long(2), good(3), long(4), good(5), long(6)]);
    }
    #[test]
    fn records_are_at_the_reported_byte_ranges() {
        let long = "x".repeat(MAX_RECORD + 2) + "\n";
        let csv = "username,email\nalice,a@example.com\n\nbob,\"b@\nexample\"\n";
        let table = [
            (Format::Jsonl, format!("{{}}\n\n {{}}\n{long}1"), &["{}\n", " {}\n", &long, "1"][..]),
            (Format::Csv, csv.to_owned(), &["alice,a@example.com\n", "\nbob,\"b@\nexample\"\n"]),
            (Format::Keycloak, "{\"users\": [{}, {\"a\": 1}]}".to_owned(), &["{}", "{\"a\": 1}"]),
        ];
        for (format, text, expected) in table {
            let rules = Rules {
                format,
                ..Rules::ours(Peppers::default(), None, false, datetime!(2026-01-02 03:04:05 UTC))
            };
            let mut read_as = Vec::new();
            let mut take = |_: Record, bytes: Range<u64>| {
                read_as.push(text[bytes.start as usize..bytes.end as usize].to_owned());
                true
            };
            read(text.as_bytes(), &rules, &mut |_| {}, &mut take).unwrap();
            assert_eq!(read_as, expected, "{format:?}");
        }
    }
}
