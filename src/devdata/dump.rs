//! The schema, from `pg_dump`.

use std::process::Stdio;

use tokio::process::Command;

use super::Error;
use crate::{embedded, store::Source};

/// The output of `pg_dump` for a section of the schema, as of `snapshot`. The password is passed in the environment,
/// where other users of the machine cannot see it.
pub(super) async fn section(source: &Source, snapshot: &str, section: &str) -> Result<Vec<u8>, Error> {
    let program = embedded::program("pg_dump").await.ok_or(Error::NoProgram)?;
    let output = Command::new(program)
        .args(["--schema-only", "--no-owner", "--no-privileges", "--schema=public", "--schema=masked"])
        .arg(format!("--section={section}"))
        .arg(format!("--snapshot={snapshot}"))
        .envs(source.libpq_environment())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(Error::Program)?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(Error::Dump(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}
