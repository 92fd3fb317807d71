//! Reads a JSON document that contains a list of users somewhere, user by user. The end of a value is found from
//! brackets and strings alone, so a user who cannot be read costs only that user.

use std::{io::BufRead, ops::Range};

use super::{
    ReadError, Record, Rules,
    json::Fields,
    reader::{MAX_RECORD, Take},
};

/// The longest stretch between one user and the next, in bytes: room for everything else in a Keycloak realm.
const MAX_BETWEEN: usize = 64 << 20;

/// Takes a user: the text, its range of bytes, and the line on which it begins. `false` to stop.
type TakeUser<'a> = dyn FnMut(&[u8], Range<u64>, u64) -> Result<bool, ReadError> + 'a;

/// Reads lists of users, objects with such a list at `users`, and single users, in any sequence, so that refused
/// records can be mended and imported again.
pub(super) fn read(input: impl BufRead, rules: &Rules, take: &mut Take<'_>) -> Result<(), ReadError> {
    let (mut number, mut has_user) = (0, false);
    let mut user = |text: &[u8], bytes: Range<u64>, line: u64| {
        number += 1;
        let record = match serde_json::from_slice::<Fields>(text) {
            Ok(fields) => Record::of_object(number, fields, rules),
            // A quotation mark may be missing, so that this is many users, none of whom may be lost.
            Err(_) if text.len() > MAX_RECORD => {
                return Err(ReadError::Document { problem: "no JSON in more than 1 MiB", line, column: 1 });
            }
            Err(error) => {
                let at = format!("on line {}", line + error.line() as u64 - 1);
                Some(Record::not_json(number, text, &error, &at))
            }
        };
        has_user |= record.is_some();
        Ok(record.is_none_or(|record| take(record, bytes)))
    };
    let mut document = Document { input, at: 0, line: 1, line_at: 0, text: Vec::new() };
    while let Some(first) = document.peek()? {
        let goes_on = match first {
            b'[' => document.list(&mut user)?,
            b'{' => document.object(&mut user)?,
            _ => return Err(document.broken("expected a list of users")),
        };
        if !goes_on {
            break;
        }
    }
    match rules.left_out.lock().models() {
        // An import of the wrong dump must not pass for one of nobody.
        Some(models) if !has_user => Err(ReadError::NoUser(models)),
        _ => Ok(()),
    }
}

struct Document<R> {
    input: R,
    /// How many bytes have been read.
    at: u64,
    /// The current line, and where it begins.
    line: u64,
    line_at: u64,
    /// What has been read since this was last cleared.
    text: Vec<u8>,
}

impl<R: BufRead> Document<R> {
    fn broken(&self, problem: &'static str) -> ReadError {
        ReadError::Document { problem, line: self.line, column: self.at - self.line_at + 1 }
    }

    /// Reads bytes as long as they are `wanted`. `false` if the document ended before an unwanted one.
    fn read_while(&mut self, mut wanted: impl FnMut(u8) -> bool) -> Result<bool, ReadError> {
        loop {
            let buffer = self.input.fill_buf()?;
            if buffer.is_empty() {
                return Ok(false);
            }
            let end = buffer.iter().position(|&byte| !wanted(byte));
            let read = &buffer[..end.unwrap_or(buffer.len())];
            for (place, _) in (self.at..).zip(read).filter(|(_, byte)| **byte == b'\n') {
                self.line += 1;
                self.line_at = place + 1;
            }
            self.text.extend_from_slice(read);
            let count = read.len();
            self.at += count as u64;
            self.input.consume(count);
            if self.text.len() > MAX_BETWEEN {
                return Err(self.broken("one record is too long"));
            }
            if end.is_some() {
                return Ok(true);
            }
        }
    }

    /// The next byte that is not a blank, without reading it. `None` at the end.
    fn peek(&mut self) -> Result<Option<u8>, ReadError> {
        self.read_while(|byte| byte.is_ascii_whitespace())?;
        Ok(self.input.fill_buf()?.first().copied())
    }

    /// Reads what [`peek`](Self::peek) has shown.
    fn step(&mut self) -> Result<(), ReadError> {
        let mut is_first = true;
        self.read_while(|_| std::mem::take(&mut is_first)).map(drop)
    }

    /// Reads a value, as far as brackets and strings delimit one.
    fn value(&mut self) -> Result<(), ReadError> {
        let (mut depth, mut is_string, mut is_escaped, mut is_done) = (0_usize, false, false, false);
        let before = self.at;
        let is_ended = self.read_while(|byte| {
            let is_between = matches!(byte, b',' | b':' | b']' | b'}') || byte.is_ascii_whitespace();
            if is_done || depth == 0 && !is_string && is_between {
                return false;
            }
            match byte {
                _ if is_escaped => is_escaped = false,
                b'\\' if is_string => is_escaped = true,
                b'"' => is_string = !is_string,
                _ if is_string => {}
                b'[' | b'{' => depth += 1,
                b']' | b'}' => depth -= 1,
                _ => {}
            }
            is_done = depth == 0 && !is_string && matches!(byte, b'"' | b']' | b'}');
            true
        })?;
        if !is_ended && !is_done {
            return Err(self.broken("unexpected end of the file"));
        }
        if self.at == before { Err(self.broken("expected a value")) } else { Ok(()) }
    }

    /// Reads a list of users.
    fn list(&mut self, take: &mut TakeUser<'_>) -> Result<bool, ReadError> {
        self.step()?;
        if self.peek()? == Some(b']') {
            return self.step().map(|()| true);
        }
        loop {
            self.peek()?;
            self.text.clear();
            let (from, line) = (self.at, self.line);
            self.value()?;
            if !take(&self.text, from..self.at, line)? {
                return Ok(false);
            }
            match self.peek()? {
                Some(b',') => self.step()?,
                Some(b']') => return self.step().map(|()| true),
                _ => return Err(self.broken("expected a comma or the end of the list")),
            }
        }
    }

    /// Reads an object with a list of users, or a single user.
    fn object(&mut self, take: &mut TakeUser<'_>) -> Result<bool, ReadError> {
        self.text.clear();
        let (from, line) = (self.at, self.line);
        self.step()?;
        let (mut is_list, mut next) = (false, self.peek()?);
        while next != Some(b'}') {
            let name = self.text.len();
            self.value()?;
            let is_users =
                serde_json::from_slice::<String>(&self.text[name..]).is_ok_and(|name| name == "users");
            if self.peek()? != Some(b':') {
                return Err(self.broken("expected a colon"));
            }
            self.step()?;
            match self.peek()? {
                Some(b'[') if is_users => {
                    is_list = true;
                    if !self.list(take)? {
                        return Ok(false);
                    }
                }
                _ if is_users => return Err(self.broken("expected a list of users")),
                _ => self.value()?,
            }
            if is_list {
                self.text.clear();
            }
            next = self.peek()?;
            match next {
                Some(b',') => {
                    self.step()?;
                    next = self.peek()?;
                }
                Some(b'}') => {}
                _ => return Err(self.broken("expected a comma or the end of the object")),
            }
        }
        self.step()?;
        if is_list { Ok(true) } else { take(&self.text, from..self.at, line) }
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use time::macros::datetime;

    use super::*;
    use crate::{
        account::import::{Format, reader::Original, rejects},
        password::Peppers,
    };

    /// A user's number, and the reason and the text of one who could not be read.
    type Told = (u64, Option<(String, String)>);

    /// What is reported about users, and how reading ends. Checks that each text is where it is said to be.
    fn users(document: &[u8], capacity: usize) -> (Vec<Told>, Result<(), ReadError>) {
        let now = datetime!(2026-01-02 03:04:05 UTC);
        let rules = Rules { format: Format::Firebase, ..Rules::ours(Peppers::default(), None, false, now) };
        let (mut told, mut end) = (Vec::new(), 0);
        let mut take = |record: Record, bytes: Range<u64>| {
            assert!(end <= bytes.start && bytes.start < bytes.end, "{bytes:?}");
            end = bytes.end;
            let text = &document[bytes.start as usize..bytes.end as usize];
            assert!(text.starts_with(b"{") == text.ends_with(b"}"), "{bytes:?}");
            let refused = match (record.user, record.original) {
                (Err(errors), Original::Text(original)) => {
                    assert_eq!(original, String::from_utf8_lossy(text));
                    Some((rejects::reason(&errors), original))
                }
                (user, _) => {
                    assert!(user.is_ok(), "{user:?}");
                    None
                }
            };
            told.push((record.number, refused));
            true
        };
        let read = read(BufReader::with_capacity(capacity, document), &rules, &mut take);
        (told, read)
    }

    fn user(id: u32) -> String {
        format!(r#"{{"localId": "{id}", "email": "u{id}@example.com", "displayName": "\"[{{\\"}}"#)
    }

    #[test]
    fn an_unreadable_user_is_rejected_without_affecting_the_others() {
        let deep = format!("{{\"a\": {}{}}}", "[".repeat(200), "]".repeat(200));
        let table: [(&[u8], &str); 9] = [
            (b"{\"localId\": \"\xff\"}", "invalid unicode code point"),
            (br#"{"localId": "\ud83d"}"#, "unexpected end of hex escape"),
            (deep.as_bytes(), "recursion limit exceeded"),
            (b"{\"localId\": \"\n\"}", "control character"),
            (br#"{"localId" "1"}"#, "expected `:`"),
            (br#"{"localId": 1,}"#, "trailing comma"),
            (br#"{"a": [}}"#, "expected value"),
            (b"null", "invalid type: null"),
            (br#""}]""#, "invalid type: string"),
        ];
        for (broken, expected) in table {
            let [one, two] = [user(1), user(2)];
            for (before, after) in [("[", "]"), ("{\"a\": [{\"users\": 1}],\n\"users\":[", "],\"b\":null}")] {
                let parts = [
                    before.as_bytes(),
                    one.as_bytes(),
                    b",\n",
                    broken,
                    b" ,",
                    two.as_bytes(),
                    after.as_bytes(),
                ];
                let document = parts.concat();
                for capacity in [1, 7, 1 << 16] {
                    let (told, read) = users(&document, capacity);
                    read.unwrap();
                    let [(1, None), (2, Some((reason, _))), (3, None)] = &told[..] else {
                        panic!("{told:?}")
                    };
                    assert!(reason.contains(expected), "{reason}");
                    let line = 2 + before.matches('\n').count();
                    assert!(
                        broken.contains(&b'\n') || reason.contains(&format!(" on line {line} ")),
                        "{reason}"
                    );
                }
            }
        }
    }

    #[test]
    fn lists_and_single_users_may_follow_one_another_in_a_document() {
        let document =
            format!("{}\n[]{{}}[{}, {}]{{\"users\":[]}}\n{{\"localId\":1,}}", user(1), user(2), user(3));
        let (told, read) = users(document.replace("{}", "").as_bytes(), 16);
        read.unwrap();
        let refused: Vec<_> = told.iter().map(|(number, refused)| (*number, refused.is_some())).collect();
        assert_eq!(refused, [(1, false), (2, false), (3, false), (4, true)]);
        assert!(users(b" \n", 16).1.is_ok());
    }

    #[test]
    fn reading_stops_at_broken_structure_but_keeps_the_users_before_it() {
        let one = user(1);
        let long = "x".repeat(MAX_RECORD);
        let table = [
            (format!("[\n{one}\n 1]"), "expected a comma or the end of the list at line 3 column 2"),
            (format!("[{one},]"), "expected a value at line 1"),
            (format!("[{one},\n\n {{\"a\": [1, "), "unexpected end of the file at line 3 column 12"),
            (format!("[{one}"), "expected a comma or the end of the list"),
            (format!("{{\"users\": [{one}], \"users\": 1}}"), "expected a list of users"),
            (format!("{{\"users\": [{one}] 1}}"), "expected a comma or the end of the object"),
            (format!("{{\"users\": [{one}], 1}}"), "expected a colon"),
            (format!("{one} users"), "expected a list of users"),
            // A quotation mark is missing.
            (
                format!("[{one},\n{{\"a\": \"}}, {{\"b\": \"{long}\"}}]\"}}]"),
                "no JSON in more than 1 MiB at line 2",
            ),
        ];
        for (document, expected) in table {
            let (told, read) = users(document.as_bytes(), 1 << 10);
            assert_eq!(told, [(1, None)], "{expected}");
            let problem = read.unwrap_err().to_string();
            assert!(problem.contains(expected), "{problem}");
        }
        // A readable record may be that long.
        let (told, read) =
            users(format!("[{{\"email\": \"a@example.com\", \"a\": \"{long}\"}}]").as_bytes(), 1 << 16);
        read.unwrap();
        assert_eq!(told.len(), 1);
    }
}
