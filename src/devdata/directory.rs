//! A sample on disk: a directory that only its owner can read, with the schema, one file per table as `COPY` writes it,
//! and a manifest that lists the contents.
//!
//! ```text
//! manifest.json      the tables, how many rows each has, and the SHA-256 of every file
//! schema.sql         tables and functions
//! constraints.sql    keys, indexes and triggers: made after the rows are in
//! users.copy …       the rows
//! ```

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, BufWriter, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use aws_lc_rs::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use super::Error;
use crate::hex;

/// The version of the manifest's format.
const FORMAT: u32 = 1;
const MANIFEST: &str = "manifest.json";
pub(super) const SCHEMA: &str = "schema.sql";
pub(super) const CONSTRAINTS: &str = "constraints.sql";
/// How much of a file is read at once.
const CHUNK: usize = 1 << 20;

/// The contents of a sample.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    format: u32,
    /// The version of gatepass that wrote it.
    pub gatepass: String,
    /// Every file but the manifest.
    pub files: Vec<Entry>,
}

/// A file of a sample.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its name.
    pub file: String,
    /// How many rows it has, if it is a table's.
    pub rows: Option<u64>,
    /// In hexadecimal.
    pub sha256: String,
}

/// A sample that is being written.
pub(super) struct New {
    path: PathBuf,
    files: Vec<Entry>,
}

/// For `map_err`: what could not be done with which file.
fn io_error(path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::File { path, source }
}

impl New {
    /// Creates the directory, or uses an empty one.
    pub(super) fn create(path: &Path) -> Result<Self, Error> {
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if fs::read_dir(path).map_err(io_error(path))?.next().is_some() {
                    return Err(Error::DirectoryNotEmpty(path.to_owned()));
                }
            }
            made => made.map_err(io_error(path))?,
        }
        Ok(Self { path: path.to_owned(), files: Vec::new() })
    }

    /// Begins a file.
    pub(super) fn file(&self, name: &str) -> Result<NewFile, Error> {
        let path = self.path.join(name);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = BufWriter::new(file.map_err(io_error(&path))?);
        Ok(NewFile { path, name: name.to_owned(), file, hash: Context::new(&SHA256) })
    }

    /// Completes a file.
    pub(super) fn add(&mut self, mut file: NewFile, rows: Option<u64>) -> Result<(), Error> {
        file.file.flush().map_err(io_error(&file.path))?;
        self.files.push(Entry { file: file.name, rows, sha256: hex::encode(file.hash.finish().as_ref()) });
        Ok(())
    }

    /// Writes the manifest, which shows that the sample is complete.
    pub(super) fn finish(self) -> Result<Manifest, Error> {
        let manifest =
            Manifest { format: FORMAT, gatepass: env!("CARGO_PKG_VERSION").to_owned(), files: self.files };
        let path = self.path.join(MANIFEST);
        let text = serde_json::to_string_pretty(&manifest).map_err(|error| io_error(&path)(error.into()))?;
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        file.and_then(|mut file| writeln!(file, "{text}")).map_err(io_error(&path))?;
        Ok(manifest)
    }
}

/// A file that is being written.
pub(super) struct NewFile {
    path: PathBuf,
    name: String,
    file: BufWriter<File>,
    hash: Context,
}

impl NewFile {
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.hash.update(bytes);
        self.file.write_all(bytes).map_err(io_error(&self.path))
    }
}

/// Reads the manifest of a sample.
pub(super) fn read(path: &Path) -> Result<Manifest, Error> {
    let path = path.join(MANIFEST);
    let text = fs::read_to_string(&path).map_err(io_error(&path))?;
    let manifest: Manifest = serde_json::from_str(&text).map_err(|error| io_error(&path)(error.into()))?;
    if manifest.format == FORMAT { Ok(manifest) } else { Err(Error::Format(manifest.format)) }
}

/// A file of a sample, read piece by piece.
pub(super) struct Reader {
    path: PathBuf,
    file: File,
    hash: Context,
}

impl Manifest {
    /// The manifest's entry for the file of this name.
    pub(super) fn entry(&self, name: &str) -> Result<&Entry, Error> {
        let entry = self.files.iter().find(|entry| entry.file == name);
        entry.ok_or_else(|| Error::Incomplete(name.to_owned()))
    }
}

impl Reader {
    pub(super) fn open(directory: &Path, name: &str) -> Result<Self, Error> {
        let path = directory.join(name);
        let file = File::open(&path).map_err(io_error(&path))?;
        Ok(Self { path, file, hash: Context::new(&SHA256) })
    }

    /// The next piece; nothing at the end.
    pub(super) fn next(&mut self) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::with_capacity(CHUNK);
        let mut piece = Read::by_ref(&mut self.file).take(CHUNK as u64);
        piece.read_to_end(&mut bytes).map_err(io_error(&self.path))?;
        self.hash.update(&bytes);
        Ok(bytes)
    }

    /// Checks that everything that was read is what was written.
    pub(super) fn check(self, entry: &Entry) -> Result<(), Error> {
        let is_same = hex::encode(self.hash.finish().as_ref()) == entry.sha256;
        if is_same { Ok(()) } else { Err(Error::Damaged(self.path)) }
    }
}
