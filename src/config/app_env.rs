//! The syntax of `app.env`: lines of `NAME=value`, as in dotenv files.
//!
//! - Blank lines and lines that begin with `#` are skipped; `export ` before a name is allowed.
//! - A bare value ends with its line or at the first `#` after whitespace; whitespace around it is not part of it.
//! - `'single quotes'` keep everything as it is. In `"double quotes"`, `\n`, `\t`, `\\` and `\"` stand for a line feed,
//!   a tab, a backslash and a quote. A value cannot continue on another line.
//! - `$` is an ordinary character. Other readers expand variables, which silently corrupts a password with a `$` in it.
//! - CRLF line ends and a byte order mark at the start are tolerated.
//!
//! Error messages do not quote the line: it may hold a secret.

/// A line that sets something.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line<'a> {
    /// Which line of the file it is, counted from 1.
    pub(super) number: usize,
    pub(super) name: &'a str,
    pub(super) value: String,
}

/// A line that cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed<'a> {
    /// Which line of the file it is, counted from 1.
    pub(super) number: usize,
    /// The name on the line, if that much could be read.
    pub(super) name: Option<&'a str>,
    /// What is wrong.
    pub(super) message: &'static str,
}

/// Reads every line of `text` that is neither blank nor a comment.
pub(super) fn lines(text: &str) -> impl Iterator<Item = Result<Line<'_>, Malformed<'_>>> {
    text.strip_prefix('\u{feff}').unwrap_or(text).split('\n').enumerate().filter_map(|(index, text)| {
        let (number, text) = (index + 1, text.trim());
        if text.is_empty() || text.starts_with('#') {
            return None;
        }
        let Some((name, rest)) = assignment(text) else {
            return Some(Err(Malformed { number, name: None, message: "expected NAME=value" }));
        };
        Some(match value(rest) {
            Ok(value) => Ok(Line { number, name, value }),
            Err(message) => Err(Malformed { number, name: Some(name), message }),
        })
    })
}

/// Splits `export NAME=rest`.
fn assignment(line: &str) -> Option<(&str, &str)> {
    let line = match line.strip_prefix("export") {
        Some(rest) if rest.starts_with([' ', '\t']) => rest.trim_start(),
        _ => line,
    };
    let (name, rest) = line.split_once('=')?;
    let name = name.trim_end();
    // No setting's name has dots or dashes, but names with them deserve a better answer than "not a name".
    let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'));
    is_name.then_some((name, rest))
}

/// The value in what follows the `=`.
fn value(rest: &str) -> Result<String, &'static str> {
    let start = rest.trim_start();
    if let Some(quoted) = start.strip_prefix('\'') {
        let (value, rest) = quoted.split_once('\'').ok_or("the closing ' is missing")?;
        return end_of_line(rest).map(|()| value.into());
    }
    if let Some(quoted) = start.strip_prefix('"') {
        let (value, rest) = double_quoted(quoted)?;
        return end_of_line(rest).map(|()| value);
    }
    let comment = rest.match_indices('#').find(|&(at, _)| rest[..at].ends_with(char::is_whitespace));
    Ok(comment.map_or(rest, |(at, _)| &rest[..at]).trim().into())
}

/// The text up to the closing quote, and what follows the quote.
fn double_quoted(quoted: &str) -> Result<(String, &str), &'static str> {
    let mut value = String::new();
    let mut chars = quoted.chars();
    loop {
        value.push(match chars.next() {
            None => return Err("the closing \" is missing"),
            Some('"') => return Ok((value, chars.as_str())),
            Some('\\') => match chars.next() {
                Some('n') => '\n',
                Some('t') => '\t',
                Some(escaped @ ('\\' | '"')) => escaped,
                _ => return Err(r#"in double quotes a backslash begins \n, \t, \\ or \"; use single quotes to keep it"#),
            },
            Some(other) => other,
        });
    }
}

/// Only a comment may follow a closing quote.
fn end_of_line(rest: &str) -> Result<(), &'static str> {
    let after = rest.trim_start();
    if after.is_empty() || (after.starts_with('#') && after.len() < rest.len()) {
        return Ok(());
    }
    Err("there is text after the closing quote")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn only(text: &str) -> (&str, String) {
        let mut lines = lines(text);
        let line = lines.next().unwrap().unwrap();
        assert_eq!(lines.next(), None);
        (line.name, line.value)
    }

    #[test]
    fn values() {
        for (text, value) in [
            ("A=b", "b"),
            ("A=", ""),
            ("A= ", ""),
            ("  A = b  ", "b"),
            ("export A=b", "b"),
            ("export\tA=b", "b"),
            ("A=b\r\n", "b"),
            ("\u{feff}A=b", "b"),
            ("A=b c", "b c"),
            ("A=b=c", "b=c"),
            ("A=b # comment", "b"),
            ("A=b\t# comment", "b"),
            ("A= # comment", ""),
            ("A=b#c", "b#c"),
            ("A=#b", "#b"),
            ("A=b#c #d", "b#c"),
            ("A=b\"c'd", "b\"c'd"),
            (r"A=b\n", r"b\n"),
            ("A=pa$$word${HOME}$(id)`id`", "pa$$word${HOME}$(id)`id`"),
            ("A=\"pa$$word\"", "pa$$word"),
            ("A='b # c'", "b # c"),
            ("A=' b '", " b "),
            (r"A='\n\'", r"\n\"),
            ("A=''", ""),
            ("A='b' # comment", "b"),
            (r#"A="b # c""#, "b # c"),
            (r#"A="\n\t\\\"""#, "\n\t\\\""),
            (r#"A = "b"  # comment"#, "b"),
            ("A=grüße", "grüße"),
        ] {
            assert_eq!(only(text), ("A", value.into()), "{text:?}");
        }
        assert_eq!(only("export=b"), ("export", "b".into()));
    }

    #[test]
    fn what_cannot_be_read() {
        for (text, name, message) in [
            ("secret", None, "expected NAME=value"),
            ("export A", None, "expected NAME=value"),
            ("=secret", None, "expected NAME=value"),
            ("postgres://u:secret@h/d?a=b", None, "expected NAME=value"),
            ("1A=secret", None, "expected NAME=value"),
            ("A B=secret", None, "expected NAME=value"),
            ("A='secret", Some("A"), "the closing ' is missing"),
            ("A=\"secret", Some("A"), "the closing \" is missing"),
            (r#"A="secret\""#, Some("A"), "the closing \" is missing"),
            ("A='secret'x", Some("A"), "there is text after the closing quote"),
            ("A='secret'#x", Some("A"), "there is text after the closing quote"),
            ("A=\"secret\" x", Some("A"), "there is text after the closing quote"),
        ] {
            let text = format!("# one\n\n{text}\nB=c");
            let read: Vec<_> = lines(&text).collect();
            assert_eq!(read[0], Err(Malformed { number: 3, name, message }), "{text}");
            assert_eq!(read[1], Ok(Line { number: 4, name: "B", value: "c".into() }), "{text}");
        }
        for escape in [r"\x", r"\$", r"\"] {
            let text = format!("A=\"{escape}");
            assert!(lines(&text).next().unwrap().is_err(), "{text}");
        }
    }

    fn double_quote(value: &str) -> String {
        let escaped =
            value.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n").replace('\t', r"\t");
        format!("\"{escaped}\"")
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_without_a_panic(text in "\\PC*|[ -~\n\r\t\"'\\\\#=]*") {
            for line in lines(&text) {
                let _ = line;
            }
        }

        #[test]
        fn quoted_values_come_back(value in "(\\PC|[\n\t\"'\\\\#=$ ])*", comment in "( # [a-z\"']*)?") {
            let text = format!("A={}{comment}\r\n", double_quote(&value));
            prop_assert_eq!(only(&text), ("A", value.clone()));
            if !value.contains(['\'', '\n']) {
                let text = format!("A='{value}'{comment}");
                prop_assert_eq!(only(&text), ("A", value));
            }
        }
    }
}
