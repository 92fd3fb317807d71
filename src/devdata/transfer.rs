//! A sample of real data: taken from one database, where it is masked, and loaded into another.

use std::path::Path;

use super::{
    Error, SALT,
    directory::{self, CONSTRAINTS, Manifest, Reader, SCHEMA},
    dump, hash,
};
use crate::{
    password::Params,
    store::{
        PgConnection, Source,
        devdata::{
            load::Loading,
            masks::Key,
            sample::{Part, Snapshot, Wanted},
        },
    },
};

/// Writes the chosen users of the database at `source`, and what belongs to them, into a directory, masked: see
/// [`store::devdata`](crate::store::devdata). Reads one snapshot, with a role that cannot write. `progress` is called
/// with each table and its number of rows.
///
/// # Errors
///
/// Any [`Error`]. What is in the directory is then no sample: it has no manifest.
pub async fn sample(
    source: &Source,
    wanted: &Wanted<'_>,
    directory: &Path,
    key: &Key,
    params: Params,
    mut progress: impl FnMut(&str, u64),
) -> Result<Manifest, Error> {
    let password_hash = hash(params, SALT).await?;
    let mut conn = source.connect().await.map_err(crate::store::devdata::Error::from)?;
    let mut snapshot = Snapshot::take(&mut conn, key, password_hash.as_str()).await?;
    if snapshot.choose(wanted).await? == 0 {
        return Err(Error::Nobody);
    }
    let mut new = directory::New::create(directory)?;
    let name = snapshot.name().await?;
    for (file, section) in [(SCHEMA, "pre-data"), (CONSTRAINTS, "post-data")] {
        let mut file = new.file(file)?;
        file.write(&dump::section(source, &name, section).await?)?;
        new.add(file, None)?;
    }
    for part in Part::all() {
        let mut file = new.file(&file_of(part))?;
        let rows = snapshot.copy(part, |lines| file.write(lines)).await?;
        new.add(file, Some(rows))?;
        progress(part.table(), rows);
    }
    new.finish()
}

/// Loads a sample into an empty database, all of it or nothing. The statements in it are run as they are: load only
/// what you trust. `progress` is called with each table and its number of rows.
///
/// # Errors
///
/// Any [`Error`]. Nothing has changed then.
pub async fn load(
    conn: &mut PgConnection,
    directory: &Path,
    mut progress: impl FnMut(&str, u64),
) -> Result<Manifest, Error> {
    let manifest = directory::read(directory)?;
    let mut loading = Loading::begin(conn).await?;
    loading.schema(&text(directory, &manifest, SCHEMA)?).await?;
    for part in Part::all() {
        let name = file_of(part);
        let entry = manifest.entry(&name)?;
        let mut reader = Reader::open(directory, &name)?;
        let rows = loading.copy(part, || reader.next()).await?;
        reader.check(entry)?;
        if Some(rows) != entry.rows {
            return Err(Error::Rows { file: name, rows });
        }
        progress(part.table(), rows);
    }
    loading.schema(&text(directory, &manifest, CONSTRAINTS)?).await?;
    loading.finish().await?;
    Ok(manifest)
}

fn file_of(part: Part) -> String {
    format!("{}.copy", part.table())
}

/// A part of the schema. None of it is run until all of it is known to be what was written.
fn text(directory: &Path, manifest: &Manifest, name: &str) -> Result<String, Error> {
    let mut reader = Reader::open(directory, name)?;
    let mut bytes = Vec::new();
    loop {
        let piece = reader.next()?;
        if piece.is_empty() {
            break;
        }
        bytes.extend(piece);
    }
    reader.check(manifest.entry(name)?)?;
    String::from_utf8(bytes).map_err(|_| Error::Damaged(directory.join(name)))
}
