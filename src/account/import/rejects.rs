//! The file of refused records: each as it came, with its number and the reason, so that it can be mended and imported
//! again. It contains personal data and hashes; only its owner may read it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    os::unix::fs::MetadataExt,
    path::PathBuf,
};

use serde_json::{Map, Value};

use super::{
    FieldError, listed,
    reader::{Layout, Original},
    shown_name,
};
use crate::{account::private_file, terminal::plain_start};

/// Where refused records go.
#[derive(Debug)]
pub(super) struct Rejects {
    path: PathBuf,
    /// Created for the first refused record.
    file: Option<File>,
    bytes: u64,
    is_begun: bool,
}

impl Rejects {
    /// Will continue after the first `bytes` of the file: anything after them was never committed. Until something is
    /// [added](Self::add), the file is left alone, since it may belong to someone else who imports the same file.
    pub(super) fn new(path: PathBuf, bytes: u64) -> Self {
        Self { path, file: None, bytes, is_begun: false }
    }

    fn begin(&mut self) -> io::Result<()> {
        if self.bytes == 0 {
            // The records of an earlier run would pass for those of this one.
            return private_file::remove(&self.path);
        }
        let mut file = OpenOptions::new().write(true).open(&self.path)?;
        // "Remove it" would be bad advice: the import needs the file.
        private_file::check_owner(&file)?;
        if private_file::is_regular(&file)? {
            if file.metadata()?.len() < self.bytes {
                return Err(io::Error::other("it is shorter than this import left it"));
            }
            file.set_len(self.bytes)?;
            file.seek(SeekFrom::End(0))?;
        }
        self.file = Some(file);
        Ok(())
    }

    /// The length of the file, or how much was written if it is not a regular file.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds what [`lines`](Self::lines) has made, if anything, and syncs it to disk.
    pub(super) fn add(&mut self, lines: &[u8]) -> io::Result<()> {
        if !self.is_begun {
            self.begin()?;
            self.is_begun = true;
        }
        if let Some(file) = &self.file
            && private_file::is_regular(file)?
        {
            // An import of another file from the same place uses the same name for its rejects.
            let (ours, there) = (file.metadata()?, fs::metadata(&self.path)?);
            if (there.dev(), there.ino(), there.len()) != (ours.dev(), ours.ino(), self.bytes) {
                return Err(io::Error::other("somebody else has changed it meanwhile"));
            }
        }
        if lines.is_empty() {
            return Ok(());
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(private_file::make(&self.path)?),
        };
        file.write_all(lines)?;
        private_file::sync(file)?;
        self.bytes += lines.len() as u64;
        Ok(())
    }

    /// The lines of these records for the file.
    pub(super) fn lines(
        &self,
        layout: &Layout,
        refused: &[(u64, Original, Vec<FieldError>)],
    ) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        if refused.is_empty() {
            return Ok(text);
        }
        if self.bytes == 0
            && let Layout::Csv(columns) = layout
        {
            let columns = columns.iter().filter(|name| !is_note(name)).map(String::as_str);
            row(&mut text, columns.chain(["_line", "_reason"]).map(str::as_bytes))?;
        }
        for (number, original, errors) in refused {
            let reason = reason(errors);
            match (original, layout) {
                (Original::Row(cells), Layout::Csv(columns)) => {
                    // In a row of another length, there is no telling which cells are which.
                    let is_kept = |i: usize| !columns.get(i).is_some_and(|name| is_note(name));
                    let mut cells: Vec<_> =
                        (0..).zip(cells).filter(|(i, _)| is_kept(*i)).map(|(_, cell)| &cell[..]).collect();
                    let number = number.to_string();
                    cells.extend([number.as_bytes(), reason.as_bytes()]);
                    row(&mut text, cells.into_iter())?;
                }
                (Original::Object(fields), _) => {
                    let mut fields: Map<_, _> = fields
                        .iter()
                        .filter(|(name, _)| !is_note(name))
                        .map(|(name, value)| (name.clone(), value.clone()))
                        .collect();
                    note(&mut fields, *number, reason);
                    line(&mut text, &fields)?;
                }
                (Original::Text(broken), _) => {
                    let mut fields = Map::from_iter([("_text".to_owned(), Value::from(broken.as_str()))]);
                    note(&mut fields, *number, reason);
                    line(&mut text, &fields)?;
                }
                (Original::Row(_), Layout::Json) => {}
            }
        }
        Ok(text)
    }
}

/// Whether this is one of our notes on a record that is imported again.
fn is_note(name: &str) -> bool {
    ["_line", "_reason"].contains(&name)
}

fn note(fields: &mut Map<String, Value>, number: u64, reason: String) {
    fields.insert("_line".to_owned(), number.into());
    fields.insert("_reason".to_owned(), reason.into());
}

fn line(out: &mut Vec<u8>, fields: &Map<String, Value>) -> io::Result<()> {
    serde_json::to_writer(&mut *out, fields)?;
    out.push(b'\n');
    Ok(())
}

fn row<'a>(out: &mut Vec<u8>, cells: impl Iterator<Item = &'a [u8]>) -> io::Result<()> {
    let mut writer = csv::WriterBuilder::new().flexible(true).from_writer(out);
    writer.write_byte_record(&cells.collect())?;
    writer.flush()
}

/// What is wrong, in words: `email is not an e-mail address (invalid_email); …`. This gets to terminals and logs, and
/// the record has chosen the names, and how many there are.
pub(super) fn reason(errors: &[FieldError]) -> String {
    /// How many errors are named.
    const ERRORS: usize = 20;
    /// How many characters a message may have: more than any has that does not quote the record.
    const MESSAGE: usize = 300;

    let one = |FieldError { field, code, message }: &FieldError| {
        format!("{} {} ({code})", shown_name(field), plain_start(message, MESSAGE))
    };
    listed(errors.iter().map(one), ERRORS, "; ").unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::not_tested::are_root;

    fn refused() -> [(u64, Original, Vec<FieldError>); 1] {
        [(1, Original::Text("x".to_owned()), vec![FieldError::new("record", "unreadable", "is no JSON")])]
    }

    fn add(rejects: &mut Rejects) -> io::Result<()> {
        let lines = rejects.lines(&Layout::Json, &refused())?;
        rejects.add(&lines)
    }

    #[test]
    fn uncommitted_rejects_are_truncated_before_more_are_appended() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rejects");
        let mut rejects = Rejects::new(path.clone(), 0);
        add(&mut rejects).unwrap();
        let bytes = rejects.bytes();
        add(&mut rejects).unwrap();
        let whole = fs::read_to_string(&path).unwrap();
        assert_eq!(whole.len() as u64, 2 * bytes);

        let mut again = Rejects::new(path.clone(), bytes);
        assert_eq!(fs::read_to_string(&path).unwrap(), whole);
        add(&mut again).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), whole);
        add(&mut Rejects::new(path.clone(), 2 * bytes + 1)).unwrap_err();

        // An import of another file begins the rejects anew, and the first import must then fail.
        Rejects::new(path.clone(), 0).add(&[]).unwrap();
        assert!(!path.exists());
        again.add(&[]).unwrap_err();
        add(&mut Rejects::new(path, 0)).unwrap();
        add(&mut again).unwrap_err();
    }

    #[test]
    fn nothing_is_added_to_a_file_that_has_become_another_users() {
        if !are_root("that nothing is added to a file that has become another user's") {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rejects");
        let mut rejects = Rejects::new(path.clone(), 0);
        add(&mut rejects).unwrap();
        let whole = fs::read_to_string(&path).unwrap();
        std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
        let refused = add(&mut Rejects::new(path.clone(), rejects.bytes())).unwrap_err();
        assert_eq!(refused.to_string(), "it belongs to another user, who could read it");
        assert_eq!(fs::read_to_string(&path).unwrap(), whole);
    }

    #[test]
    fn a_reason_shows_what_a_record_says_escaped_and_cut() {
        let unknown = |name: &str| FieldError::new(name, "unknown_field", "is not a field of the format");
        assert_eq!(
            reason(&[unknown("\u{1b}[2K\r2 read"), unknown("roles\n")]),
            "\\u{1b}[2K\\u{d}2 read is not a field of the format (unknown_field); \
             roles\\u{a} is not a field of the format (unknown_field)"
        );
        let long = "x".repeat(1000);
        let errors = vec![FieldError::new(&long, "unreadable", &long); 1000];
        let told = reason(&errors);
        assert!(told.starts_with("xxx") && told.ends_with("; and 980 more"), "{told}");
        assert!(told.chars().count() < 20 * 400, "{}", told.len());
    }

    #[test]
    fn rejects_can_be_written_to_a_device_even_when_resuming() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("null");
        symlink("/dev/null", &path).unwrap();
        let mut bytes = 0;
        for _ in 0..2 {
            let mut rejects = Rejects::new(path.clone(), bytes);
            add(&mut rejects).unwrap();
            bytes = rejects.bytes();
        }
        assert!(bytes > 0 && path.is_symlink());
    }
}
