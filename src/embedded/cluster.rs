//! Creates the cluster and the database in it, whole or not at all.

use std::{
    fs,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::PathBuf,
    process::{Output, Stdio},
};

use tokio::io::AsyncWriteExt;

use super::{
    error::{EmbeddedError, Result, io_error},
    place::Place,
    programs::Programs,
    user::{private_dir, uid_of},
};

/// What a cluster in the making has in its name between the name of the data directory and a process id.
const NEW: &str = ".new-";

/// Removes half-made clusters left by starts that were killed.
pub(super) fn sweep(place: &Place) {
    let (Some(base), Some(name)) = (place.data.parent(), place.data.file_name()) else { return };
    let Ok(entries) = fs::read_dir(base) else { return };
    let half_made = [name.as_bytes(), NEW.as_bytes()].concat();
    for entry in entries.flatten().filter(|entry| entry.file_name().as_bytes().starts_with(&half_made)) {
        // A start that was killed before the chown leaves an empty directory of root's. What another user's directory
        // contains is not ours to remove.
        let theirs = entry.metadata().is_ok_and(|meta| meta.uid() == uid_of(place.user));
        let remove = if theirs { fs::remove_dir_all } else { fs::remove_dir };
        // An initdb that has outlived its parent may still be writing there. The next start tries again.
        if let Err(error) = remove(entry.path()) {
            tracing::warn!("cannot remove the half-made cluster {}: {error}", entry.path().display());
        }
    }
}

/// Creates the cluster in a directory beside the data directory, and then renames it.
pub(super) async fn make(place: &Place, programs: &Programs) -> Result<()> {
    if fs::read_dir(&place.data).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(EmbeddedError::NotACluster { path: place.data.clone() });
    }
    tracing::info!("creating a Postgres {} cluster in {}", programs.major, place.data.display());
    let mut new = place.data.clone().into_os_string();
    new.push(format!("{NEW}{}", std::process::id()));
    let new = PathBuf::from(new);
    private_dir(&new, place.user)?;
    let check = |program, Output { status, stdout, stderr }: Output| {
        if status.success() {
            return Ok(());
        }
        let output = String::from_utf8_lossy(&[stdout, stderr].concat()).trim().to_owned();
        Err(EmbeddedError::Create { path: new.clone(), program, status, output })
    };

    // Not every system has C.UTF-8 (older macOS does not). There, plain C with UTF-8 text sorts the same.
    let mut result = Ok(());
    for locale in ["C.UTF-8", "C"] {
        let mut initdb = programs.command("initdb", place.user);
        initdb.arg("-D").arg(&new).args(["--username=gatepass", "--encoding=UTF8", "--no-sync"]);
        initdb.arg(format!("--locale={locale}")).args(["--auth-local=trust", "--auth-host=reject"]);
        result = check("initdb", initdb.output().await.map_err(programs.run_error("initdb"))?);
        if result.is_ok() {
            break;
        }
    }
    result?;

    // -F: no fsync, like --no-sync above. There is nothing to lose yet.
    let mut single = programs.command("postgres", place.user);
    single.args(["--single", "-F", "-c", "exit_on_error=on", "-D"]).arg(&new).arg("template1");
    single.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut single = single.spawn().map_err(programs.run_error("postgres"))?;
    if let Some(mut stdin) = single.stdin.take() {
        // A closed pipe means that it has failed, and its exit status will say so.
        let _ = stdin.write_all(b"CREATE DATABASE gatepass;\n").await;
    }
    let output = single.wait_with_output().await.map_err(programs.run_error("postgres"))?;
    check("postgres --single", output)?;

    fs::rename(&new, &place.data).map_err(io_error("move the new cluster to", &place.data))
}
