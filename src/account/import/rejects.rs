//! The file of what was refused: each record as it came, with its number and the reason beside it, so that it can be
//! mended and fed again. It holds personal data and hashes; nobody but its owner may read it.

use std::{
    fs::{File, OpenOptions, Permissions},
    io::{self, Seek, SeekFrom, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::PathBuf,
};

use serde_json::{Map, Value};

use super::{
    FieldError,
    reader::{Layout, Original},
};

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
            match std::fs::remove_file(&rejects.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => return Ok(rejects),
            }
        }
        let file = OpenOptions::new().write(true).open(&rejects.path)?;
        if file.metadata()?.len() < bytes {
            return Err(io::Error::other("it is shorter than this import left it"));
        }
        file.set_len(bytes)?;
        rejects.file = Some(file);
        rejects.bytes = bytes;
        Ok(rejects)
    }

    /// How long the file is.
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
            None => {
                let file = OpenOptions::new()
                    .create(true)
                    .write(true)
                    .truncate(true)
                    .mode(0o600)
                    .open(&self.path)?;
                // It may have been there.
                file.set_permissions(Permissions::from_mode(0o600))?;
                self.file.insert(file)
            }
        };
        file.seek(SeekFrom::Start(self.bytes))?;
        file.write_all(&text)?;
        file.sync_data()?;
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
