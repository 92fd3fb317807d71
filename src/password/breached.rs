//! A local file of passwords that have been seen in breaches, searched in place.
//!
//! The file has the SHA-1 of one password per line, in hexadecimal, in ascending order. That is what the downloader of
//! Have I Been Pwned writes (`HASH:COUNT`; the count is ignored). A smaller file may hold only the first digits of
//! each, as from `cut -c1-16`. All lines have the same number of digits.
//!
//! Nothing is loaded: with a billion lines, a lookup reads about thirty of them. The password never leaves the process,
//! nor does any part of its hash.

use std::{
    cmp::Ordering,
    fs::File,
    io::{self, ErrorKind},
    os::unix::fs::FileExt,
    path::Path,
};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

use super::Password;

/// The minimum number of digits of a hash. With 12, and a billion lines, one good password in a quarter of a million is
/// refused because of another; with 16, none.
const MIN_DIGITS: usize = 12;
/// The digits of a SHA-1.
const MAX_DIGITS: usize = 40;
/// The longest line, including its line end: a SHA-1, a colon, and a 64-bit count.
const MAX_LINE: usize = 64;
/// How many lines are checked when the file is opened.
const SAMPLES: u64 = 256;

/// The opened file.
#[derive(Debug)]
pub struct BreachedFile {
    file: File,
    length: u64,
    /// How many digits of each hash the file has.
    digits: usize,
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BreachedFileError {
    /// It cannot be read.
    #[error("the file of breached passwords cannot be read: {0}")]
    Read(#[from] io::Error),
    /// It is empty.
    #[error("the file of breached passwords is empty")]
    Empty,
    /// It holds something other than hashes.
    #[error(
        "line at byte {0}: expected {MIN_DIGITS} to {MAX_DIGITS} hexadecimal digits, as many on every line"
    )]
    Line(u64),
    /// The lookup needs the hashes in order.
    #[error("line at byte {0}: the hashes are not in ascending order (sort the file)")]
    Order(u64),
}

/// A line of the file: where it begins, where the next one begins, and its hash in upper case.
struct Line {
    start: u64,
    next: u64,
    hash: Vec<u8>,
}

impl BreachedFile {
    /// Opens the file, and checks lines from all over it.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or one of these lines is not what it should be.
    pub fn open(path: &Path) -> Result<Self, BreachedFileError> {
        let file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::from(ErrorKind::InvalidInput).into());
        }
        let length = file.metadata()?.len();
        if length == 0 {
            return Err(BreachedFileError::Empty);
        }
        let mut file = Self { file, length, digits: 0 };
        file.digits = file.line_at(0)?.hash.len();
        let mut last: Option<Line> = None;
        for sample in 0..=SAMPLES {
            let position = u128::from(length - 1) * u128::from(sample) / u128::from(SAMPLES);
            let line = file.line_at(u64::try_from(position).unwrap_or(length - 1))?;
            if last.is_some_and(|last| last.start != line.start && last.hash > line.hash) {
                return Err(BreachedFileError::Order(line.start));
            }
            last = Some(line);
        }
        Ok(file)
    }

    /// Whether the password is in the file. It reads the file, so it does not belong on an async thread.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or a line read is malformed.
    pub fn contains(&self, password: &Password) -> Result<bool, BreachedFileError> {
        let digest = digest(&SHA1_FOR_LEGACY_USE_ONLY, password.expose().as_bytes());
        let mut sought: Vec<u8> = digest.as_ref().iter().flat_map(|byte| hexadecimal(*byte)).collect();
        sought.truncate(self.digits);
        // The line, if there is one, begins within these bounds.
        let (mut low, mut high) = (0, self.length);
        while low < high {
            let line = self.line_at(low + (high - low) / 2)?;
            match sought.cmp(&line.hash) {
                Ordering::Equal => return Ok(true),
                Ordering::Less => high = line.start,
                Ordering::Greater => low = line.next,
            }
        }
        Ok(false)
    }

    /// The line to which the byte at this position belongs.
    fn line_at(&self, position: u64) -> Result<Line, BreachedFileError> {
        let mut bytes = [0; 2 * MAX_LINE];
        let offset = position.saturating_sub(MAX_LINE as u64);
        let mut filled = 0;
        loop {
            match self.file.read_at(&mut bytes[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        let bytes = &bytes[..filled];
        let malformed = || BreachedFileError::Line(position);
        let within = usize::try_from(position - offset).unwrap_or(MAX_LINE);
        let before = bytes.get(..within).ok_or_else(malformed)?;
        let begin = match before.iter().rposition(|&byte| byte == b'\n') {
            Some(end_of_last) => end_of_last + 1,
            None if offset == 0 => 0,
            None => return Err(malformed()),
        };
        let rest = &bytes[begin..];
        let (line, next) = match rest.iter().position(|&byte| byte == b'\n') {
            Some(end) => (&rest[..end], offset + (begin + end + 1) as u64),
            None if offset + filled as u64 == self.length => (rest, self.length),
            None => return Err(malformed()),
        };
        let hash = line.split(|byte| b":\r".contains(byte)).next().unwrap_or_default();
        let is_hash = (MIN_DIGITS..=MAX_DIGITS).contains(&hash.len())
            && hash.iter().all(u8::is_ascii_hexdigit)
            && (self.digits == 0 || hash.len() == self.digits);
        if !is_hash {
            return Err(malformed());
        }
        Ok(Line { start: offset + begin as u64, next, hash: hash.to_ascii_uppercase() })
    }
}

/// A byte as two hexadecimal digits in upper case.
fn hexadecimal(byte: u8) -> [u8; 2] {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file_of(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    fn sha1(password: &str) -> String {
        let digest = digest(&SHA1_FOR_LEGACY_USE_ONLY, password.as_bytes());
        String::from_utf8(digest.as_ref().iter().flat_map(|byte| hexadecimal(*byte)).collect()).unwrap()
    }

    #[test]
    fn hash_is_sha1() {
        // FIPS 180-4's example.
        assert_eq!(sha1("abc"), "A9993E364706816ABA3E25717850C26C9CD0D89D");
    }

    #[test]
    fn exactly_the_hashes_in_the_file_are_found() {
        for count in [1, 2, 3, 7, 100] {
            let mut hashes: Vec<String> = (0..count).map(|i| sha1(&format!("seen {i}"))).collect();
            hashes.sort_unstable();
            let layouts: [fn(&str) -> String; 6] = [
                |hash| format!("{hash}:{}\r\n", hash.len() * 7919),
                |hash| format!("{hash}\n"),
                |hash| format!("{}\n", hash.to_lowercase()),
                |hash| format!("{}\n", &hash[..12]),
                |hash| format!("{}:1\n", &hash[..17]),
                |hash| format!("{hash}:18446744073709551615\r\n"),
            ];
            for layout in layouts {
                let text: String = hashes.iter().map(|hash| layout(hash)).collect();
                for text in [&*text, text.trim_end()] {
                    let at = file_of(text);
                    let file = BreachedFile::open(at.path()).unwrap();
                    for i in 0..count {
                        assert!(file.contains(&Password::new(&format!("seen {i}"))).unwrap(), "{i}");
                        assert!(!file.contains(&Password::new(&format!("unseen {i}"))).unwrap(), "{i}");
                    }
                }
            }
        }
    }

    #[test]
    fn invalid_breach_files_are_refused() {
        let (low, high) = ("0".repeat(40), "F".repeat(40));
        let table = [
            ("", "empty"),
            ("\n", "line at byte 0"),
            ("password\n", "line at byte 0"),
            (&*format!("{}\n", &low[..11]), "line at byte 0"),
            (&*format!("{low}0\n"), "line at byte 0"),
            (&*format!("{low}\n\n{high}\n"), "expected 12 to 40 hexadecimal digits"),
            (&*format!("{low}\n{}\n", &high[..16]), "expected 12 to 40 hexadecimal digits"),
            (&*format!("{low} {high}\n"), "line at byte 0"),
            (&*format!("{high}\n{low}\n"), "not in ascending order"),
            (&*format!("{low}:{}\n", "1".repeat(100)), "line at byte 0"),
            (&*"x".repeat(1000), "line at byte 0"),
        ];
        for (text, expected) in table {
            let error = BreachedFile::open(file_of(text).path()).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
        let nowhere = Path::new("/nonexistent/breached");
        assert!(matches!(BreachedFile::open(nowhere), Err(BreachedFileError::Read(_))));
        assert!(matches!(BreachedFile::open(&std::env::temp_dir()), Err(BreachedFileError::Read(_))));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn any_file_content_gives_an_answer_without_a_panic(text in "[0-9A-F:\r\n]{0,300}", password in any::<String>()) {
            if let Ok(file) = BreachedFile::open(file_of(&text).path()) {
                let _ = file.contains(&Password::new(&password));
            }
        }
    }
}
