//! From bytes to records, one at a time, whatever the size of the file: lines of JSON, rows of CSV, and documents of JSON
//! that hold a list of users somewhere.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io::{self, BufRead, BufReader, Read},
    rc::Rc,
};

use csv::StringRecord;
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::{Format, ReadError, Record, Rules, json::Fields};

/// The longest line or row, in bytes.
const MAX_RECORD: usize = 1 << 20;

/// How much is kept of a longer line, in bytes: enough to find it by.
const SHOWN: usize = 1 << 10;

/// The most of a document between one user and the next, in bytes: what else a realm of Keycloak holds.
const MAX_BETWEEN: usize = 64 << 20;

/// A record as it stands in the file.
#[derive(Clone, Debug)]
pub(super) enum Original {
    Object(Map<String, Value>),
    /// What should have been one.
    Text(String),
    Row(Vec<Vec<u8>>),
}

/// How the records stand in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    Json,
    /// With these columns.
    Csv(Vec<String>),
}

/// Reads records for `take`, until it returns `false`. Tells it the layout first.
pub(super) fn read(
    input: impl Read,
    rules: &Rules,
    begin: &mut dyn FnMut(Layout),
    take: &mut dyn FnMut(Record) -> bool,
) -> Result<(), ReadError> {
    let mut input = BufReader::with_capacity(1 << 16, input);
    if input.fill_buf()?.starts_with(b"\xef\xbb\xbf") {
        input.consume(3);
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
    if is_lines { lines(input, rules, take) } else { document(input, rules, take) }
}

/// Whether the first byte that is no blank is one of these. Blanks before it go.
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

fn lines(
    mut input: impl BufRead,
    rules: &Rules,
    take: &mut dyn FnMut(Record) -> bool,
) -> Result<(), ReadError> {
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        if (&mut input).take(MAX_RECORD as u64 + 1).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        if line.len() > MAX_RECORD {
            if line.last() != Some(&b'\n') {
                input.skip_until(b'\n')?;
            }
            line.truncate(SHOWN);
            let original = Original::Text(String::from_utf8_lossy(&line).into_owned());
            if !take(Record::unreadable(number, original, "is longer than 1 MiB".to_owned())) {
                return Ok(());
            }
            continue;
        }
        let text = line.trim_ascii();
        if text.is_empty() {
            continue;
        }
        let record = match serde_json::from_slice::<Fields>(text) {
            Ok(fields) => match Record::of_object(number, fields, rules) {
                Some(record) => record,
                None => continue,
            },
            Err(error) => {
                // Its message names a line, which is always the first one here.
                let message = error.to_string();
                let message = message.split(" at line ").next().unwrap_or_default();
                let message = format!("is no JSON object: {message} at column {}", error.column());
                Record::unreadable(
                    number,
                    Original::Text(String::from_utf8_lossy(text).into_owned()),
                    message,
                )
            }
        };
        if !take(record) {
            return Ok(());
        }
    }
    Ok(())
}

/// Counts what is read since the counter was last set to zero, and ends at its limit.
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

/// Where the lines of a file end, as far as it has been read ahead.
#[derive(Default)]
struct LineEnds {
    /// Each `\r` and `\n` that is not passed yet: its place in the file, and whether it ends a line.
    ahead: VecDeque<(u64, bool)>,
    read: u64,
    /// How many lines have ended before.
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

    /// The line on which the row stands that the reader has begun to look for at `from`: it passes over what is left of
    /// the line before, and over lines with nothing on them.
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

/// Notes where lines end. The reader's own count is of where it is, not of where a row begins.
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
    take: &mut dyn FnMut(Record) -> bool,
) -> Result<(), ReadError> {
    let since = Rc::new(Cell::new(0));
    // What it has read ahead belongs to the next rows.
    let bounded = Bounded { inner: input, since: Rc::clone(&since), limit: MAX_RECORD + (1 << 16) };
    let ends = Rc::new(RefCell::new(LineEnds::default()));
    let lined = Lined { inner: bounded, ends: Rc::clone(&ends) };
    let mut reader = csv::ReaderBuilder::new().flexible(true).buffer_capacity(1 << 15).from_reader(lined);
    let columns: Vec<String> = reader.headers()?.iter().map(|name| name.trim().to_owned()).collect();
    if rules.format == Format::Csv {
        let is_known = |name: &&String| name.starts_with('_') || super::own::FIELDS.contains(&name.as_str());
        if let Some(unknown) = columns.iter().find(|name| !is_known(name)) {
            return Err(ReadError::UnknownColumn(unknown.clone()));
        }
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
        if !take(record) {
            return Ok(());
        }
    }
}

fn document(input: impl Read, rules: &Rules, take: &mut dyn FnMut(Record) -> bool) -> Result<(), ReadError> {
    let since = Rc::new(Cell::new(0));
    let bounded = Bounded { inner: input, since: Rc::clone(&since), limit: MAX_BETWEEN };
    let mut document = serde_json::Deserializer::from_reader(BufReader::new(bounded));
    let (mut number, mut is_stopped) = (0, false);
    let mut take = |fields: Fields| {
        since.set(0);
        number += 1;
        is_stopped = Record::of_object(number, fields, rules).is_some_and(|record| !take(record));
        !is_stopped
    };
    // One after the other, so that what was refused can be mended and fed again.
    let mut read = Ok(());
    while read.is_ok() && document.end().is_err() {
        read = Users { take: &mut take, is_list: false }.deserialize(&mut document);
    }
    match read {
        Err(error) if !is_stopped => Err(error.into()),
        _ => Ok(()),
    }
}

/// A list of users, or a user, or an object with a list of them at `users`.
struct Users<'a> {
    take: &'a mut dyn FnMut(Fields) -> bool,
    is_list: bool,
}

impl<'de> DeserializeSeed<'de> for Users<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.is_list { deserializer.deserialize_seq(self) } else { deserializer.deserialize_any(self) }
    }
}

impl<'de> Visitor<'de> for Users<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list of users")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(fields) = list.next_element::<Fields>()? {
            if !(self.take)(fields) {
                return Err(A::Error::custom("stopped"));
            }
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut is_list = false;
        let mut fields = Fields::default();
        while let Some(name) = map.next_key::<String>()? {
            if name == "users" {
                is_list = true;
                fields = Fields::default();
                map.next_value_seed(Users { take: &mut *self.take, is_list: true })?;
            } else if is_list {
                map.next_value::<IgnoredAny>()?;
            } else {
                fields.read_value(name, &mut map)?;
            }
        }
        if is_list || (self.take)(fields) { Ok(()) } else { Err(A::Error::custom("stopped")) }
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
        // One that ends where reading it does, one that goes on, and one that never ends.
        let (just, long) = ("x".repeat(MAX_RECORD), "x".repeat(3 * MAX_RECORD));
        let text = format!("{good}\n{just}\n{good}\n{long}\n{good}\n{long}");
        let mut read = Vec::new();
        let mut take = |record: Record| {
            let kept = if let Original::Text(text) = &record.original { text.len() } else { 0 };
            read.push((record.number, record.user.is_ok(), kept));
            true
        };
        lines(text.as_bytes(), &rules, &mut take).unwrap();
        let (good, long) = (|number| (number, true, 0), |number| (number, false, SHOWN));
        assert_eq!(read, [good(1), long(2), good(3), long(4), good(5), long(6)]);
    }
}
