//! `gatepass export`: all users, in the format that `gatepass import` reads.

use std::{
    io::{self, BufWriter, ErrorKind, IntoInnerError},
    path::PathBuf,
};

use super::{Failure, database, say, setup};
use crate::account::{
    export::{ExportError, export},
    private_file::Draft,
};

/// Write all users, one JSON object a line, as `gatepass import` reads them.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// With password hashes: whoever has them can guess at the passwords
    #[arg(long)]
    hashes: bool,
    /// Write to FILE, which nobody else may read, instead of standard output; what is there stays until all is written
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(super) async fn run(config_file: Option<PathBuf>, args: Args) -> Result<(), Failure> {
    let settings = setup::begin(config_file).await?;
    database::on_pool(&settings, async |db| {
        let mut conn = db.acquire().await?;
        let Some(path) = &args.output else {
            let out = BufWriter::new(io::stdout().lock());
            return match export(&mut conn, args.hashes, out).await {
                // A reader that has gone, such as `head`.
                Err(ExportError::Write(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
                done => Ok(done.map(drop)?),
            };
        };
        let named = |error: io::Error| format!("{}: {error}", path.display());
        let mut out = BufWriter::new(Draft::begin(path).map_err(named)?);
        let count = export(&mut conn, args.hashes, &mut out).await?;
        out.into_inner().map_err(IntoInnerError::into_error).and_then(Draft::finish).map_err(named)?;
        say(&format!("{count} user(s) written to {}", path.display()));
        Ok(())
    })
    .await
}
