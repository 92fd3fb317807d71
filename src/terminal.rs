//! Texts of others, as they may be shown to people: on a terminal or in a line of the log. Whoever writes such a text
//! may want it to hide, forge or reorder what is around it.

/// Escapes every character that could control a terminal, break the line, or be invisible or reverse the direction of
/// the text.
pub(crate) fn plain(text: &str) -> String {
    escaped(text, is_odd)
}

/// As [`plain`], for a text in which line breaks are meant.
pub(crate) fn plain_lines(text: &str) -> String {
    escaped(text, |c| c != '\n' && is_odd(c))
}

/// As [`plain`], of at most this many characters of the text.
pub(crate) fn plain_start(text: &str, length: usize) -> String {
    match text.char_indices().nth(length) {
        Some((end, _)) => format!("{}…", plain(&text[..end])),
        None => plain(text),
    }
}

fn escaped(text: &str, is_escaped: impl Fn(char) -> bool) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_escaped(c) { shown.extend(c.escape_unicode()) } else { shown.push(c) }
    }
    shown
}

/// Control characters, line separators, and those format characters of Unicode that are not seen.
pub(crate) fn is_odd(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_controls_the_terminal_or_reverses_itself() {
        assert_eq!(plain("a\u{1b}[2J\nb\u{202e}é"), "a\\u{1b}[2J\\u{a}b\\u{202e}é");
        // The 8-bit form of ESC [, a mark, an isolate, a tag.
        assert_eq!(plain("\u{9b}\u{61c}\u{2067}\u{e0041}"), "\\u{9b}\\u{61c}\\u{2067}\\u{e0041}");
        for text in ["Zoë O'Neill", "\"a\\b\"", "नमस्ते", "محمد", "e\u{301}"] {
            assert_eq!(plain(text), text);
        }
    }

    #[test]
    fn line_breaks_that_are_meant_remain() {
        assert_eq!(plain_lines("a\nb\r\u{1b}_"), "a\nb\\u{d}\\u{1b}_");
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(plain_start("é\nü", 3), "é\\u{a}ü");
        assert_eq!(plain_start("é\nü", 2), "é\\u{a}…");
    }
}
