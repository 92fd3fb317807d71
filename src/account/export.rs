//! Users go out by the file, in the format in which they come in: `gatepass export`.

use std::io::{self, Write};

use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use super::Error;
use crate::store::{
    PgConnection,
    export::{self, Leaving},
};

/// How many users are read at once.
const PAGE: i64 = 1000;

/// Why an export has stopped.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// What it is written to.
    #[error("the export cannot be written")]
    Write(#[from] io::Error),
    /// The database.
    #[error(transparent)]
    Account(#[from] Error),
}

/// A line of it.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    external_id: Option<&'a str>,
    username: &'a str,
    email: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    full_name: Option<&'a str>,
    roles: &'a [String],
    is_email_verified: bool,
    disabled: bool,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    updated_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    password_changed_at: OffsetDateTime,
    #[serde(skip_serializing_if = "Option::is_none")]
    password_hash: Option<&'a str>,
}

impl<'a> From<&'a Leaving> for Line<'a> {
    fn from(user: &'a Leaving) -> Self {
        Self {
            external_id: user.external_id.as_deref(),
            username: &user.username,
            email: &user.email,
            full_name: user.full_name.as_deref(),
            roles: &user.roles,
            is_email_verified: user.is_email_verified,
            disabled: user.disabled,
            created_at: user.created_at,
            updated_at: user.updated_at,
            password_changed_at: user.password_changed_at,
            password_hash: user.password_hash.as_deref(),
        }
    }
}

/// Writes all users as they are at this moment, oldest first, one JSON object a line; how many.
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
            serde_json::to_writer(&mut out, &Line::from(user)).map_err(io::Error::from)?;
            out.write_all(b"\n")?;
        }
    }
    out.flush()?;
    Ok(count)
}
