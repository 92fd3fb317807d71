//! The file of what was refused: each record as it came, with its number and the reason beside it, so that it can be
//! mended and fed again. It holds personal data and hashes; nobody but its owner may read it.

use std::{
    fs::{File, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    path::PathBuf,
};

use serde_json::{Map, Value};

use super::{
    FieldError,
    reader::{Layout, Original},
};
use crate::account::private_file;

/// Where refused records go.
#[derive(Debug)]
pub(super) struct Rejects {
    path: PathBuf,
    /// Made when there is the first one.
    file: Option<File>,
    bytes: u64,
}

impl Rejects {
    /// Goes on behind the first `bytes` of what is there: what comes after them was never committed.
    pub(super) fn open(path: PathBuf, bytes: u64) -> io::Result<Self> {
        let mut rejects = Self { path, file: None, bytes: 0 };
        if bytes == 0 {
            // Those of a former run would pass for this one's.
            private_file::remove(&rejects.path)?;
            return Ok(rejects);
        }
        let mut file = OpenOptions::new().write(true).open(&rejects.path)?;
        if private_file::is_regular(&file)? {
            if file.metadata()?.len() < bytes {
                return Err(io::Error::other("it is shorter than this import left it"));
            }
            file.set_len(bytes)?;
            file.seek(SeekFrom::End(0))?;
        }
        rejects.file = Some(file);
        rejects.bytes = bytes;
        Ok(rejects)
    }

    /// How much is in the file, or was written where there is none to keep it.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds these, and sees to it that they are on the disk.
    pub(super) fn write(
        &mut self,
        layout: &Layout,
        refused: &[(u64, Original, Vec<FieldError>)],
    ) -> io::Result<()> {
        if refused.is_empty() {
            return Ok(());
        }
        let mut text = Vec::new();
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
                    // Of a row of another length nobody knows which cells are which.
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
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(private_file::make(&self.path)?),
        };
        file.write_all(&text)?;
        private_file::sync(file)?;
        self.bytes += text.len() as u64;
        Ok(())
    }
}

/// What we have written beside a record, when it comes again.
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

/// What is wrong, for people: `email is not an e-mail address (invalid_email); …`
pub(super) fn reason(errors: &[FieldError]) -> String {
    let one = |error: &FieldError| format!("{} {} ({})", error.field, error.message, error.code);
    errors.iter().map(one).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn refused() -> [(u64, Original, Vec<FieldError>); 1] {
        [(1, Original::Text("x".to_owned()), vec![FieldError::new("record", "unreadable", "is no JSON")])]
    }

    #[test]
    fn what_was_never_committed_is_cut_off_and_the_rest_comes_behind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rejects");
        let mut rejects = Rejects::open(path.clone(), 0).unwrap();
        rejects.write(&Layout::Json, &refused()).unwrap();
        let bytes = rejects.bytes();
        rejects.write(&Layout::Json, &refused()).unwrap();
        let whole = fs::read_to_string(&path).unwrap();
        assert_eq!(whole.len() as u64, 2 * bytes);

        let mut again = Rejects::open(path.clone(), bytes).unwrap();
        again.write(&Layout::Json, &refused()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), whole);
        assert!(Rejects::open(path, 2 * bytes + 1).is_err());
    }

    #[test]
    fn a_device_takes_them_and_stays_also_when_the_import_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("null");
        symlink("/dev/null", &path).unwrap();
        let mut bytes = 0;
        for _ in 0..2 {
            let mut rejects = Rejects::open(path.clone(), bytes).unwrap();
            rejects.write(&Layout::Json, &refused()).unwrap();
            bytes = rejects.bytes();
        }
        assert!(bytes > 0 && path.is_symlink());
    }
}
