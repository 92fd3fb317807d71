//! `gatepass export`: writes users to a file, in the format of an import.

use std::io::{self, Write};

use uuid::Uuid;

use super::Error;
use crate::store::{PgConnection, export};

/// How many users are read at once.
const PAGE: i64 = 1000;

/// Why an export has stopped.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Writing failed.
    #[error("the export cannot be written")]
    Write(#[from] io::Error),
    /// The database failed.
    #[error(transparent)]
    Account(#[from] Error),
}

/// Writes all users as they are at this moment, oldest first, one JSON object per line. Returns how many.
///
/// # Errors
///
/// [`ExportError`].
pub async fn export(conn: &mut PgConnection, hashes: bool, mut out: impl Write) -> Result<u64, ExportError> {
    let mut users = export::begin(conn).await.map_err(Error::from)?;
    let (mut after, mut count) = (Uuid::nil(), 0);
    loop {
        let page = users.page(after, PAGE, hashes).await.map_err(Error::from)?;
        let Some(last) = page.last() else { break };
        after = last.id;
        count += page.len() as u64;
        for user in &page {
            serde_json::to_writer(&mut out, user).map_err(io::Error::from)?;
            out.write_all(b"\n")?;
        }
    }
    out.flush()?;
    Ok(count)
}
