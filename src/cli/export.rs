//! `gatepass export`: writes all users, in the format that `gatepass import` reads.

use std::{
    io::{self, BufWriter, ErrorKind, IntoInnerError},
    path::PathBuf,
};

use tokio::signal::unix::{SignalKind, signal};

use super::{Failure, Interrupted, database, say, setup};
use crate::account::{
    export::{ExportError, export},
    private_file::NewFile,
};

/// What to export, and where to.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Include password hashes: whoever has them can try to guess the passwords
    #[arg(long)]
    hashes: bool,
    /// Write to FILE, which nobody else may read, instead of standard output
    ///
    /// The export is written to FILE.part and replaces FILE only when it is complete. Where that is impossible (FILE is
    /// a link, a device or a mount, or no file can be created beside it), FILE is overwritten in place.
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
                // The reader has gone away, as `head` does.
                Err(ExportError::Write(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
                done => Ok(done.map(drop)?),
            };
        };
        let named = |error: io::Error| format!("{}: {error}", path.display());
        let file = NewFile::begin(path).map_err(named)?;
        let is_aside = file.is_aside();
        let mut out = BufWriter::new(file);
        let count = tokio::select! {
            count = export(&mut conn, args.hashes, &mut out) => count?,
            // Otherwise the default action applies: we would not notice a signal while a pipe that nobody reads blocks
            // us.
            why = interrupted(), if is_aside => return Err(why),
        };
        out.into_inner().map_err(IntoInnerError::into_error).and_then(NewFile::finish).map_err(named)?;
        say(&format!("{count} user(s) written to {}", path.display()));
        Ok(())
    })
    .await
}

/// Waits for a signal to end. The unfinished file beside FILE has to be removed first.
async fn interrupted() -> Failure {
    let (interrupt, terminate) = (SignalKind::interrupt(), SignalKind::terminate());
    let (mut interrupted, mut terminated) = match (signal(interrupt), signal(terminate)) {
        (Ok(interrupted), Ok(terminated)) => (interrupted, terminated),
        (Err(error), _) | (_, Err(error)) => return error.into(),
    };
    Interrupted(tokio::select! {
        _ = interrupted.recv() => interrupt,
        _ = terminated.recv() => terminate,
    })
    .into()
}
