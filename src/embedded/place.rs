//! The directories: where the data, the socket and the log are, in the state directory or elsewhere.

use std::{
    fs::{self, DirBuilder},
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, symlink},
    },
    path::{Path, PathBuf},
};

use super::{
    error::{Result, io_error},
    server::Server,
    socket,
    user::{User, check_link, private_dir, uid_of},
};

/// Where root keeps the data of state directories that the server's user cannot reach.
const ELSEWHERE: &str = "/var/lib/gatepass";

/// Where everything is, and the user that the server runs as.
pub(super) struct Place {
    pub(super) data: PathBuf,
    pub(super) run: PathBuf,
    pub(super) log: PathBuf,
    /// `None`: our own user.
    pub(super) user: Option<User>,
}

impl Place {
    /// Decides where everything goes, and creates the directories that the server expects there. For the holder of the
    /// lock.
    pub(super) async fn settle(state: &Path) -> Result<Place> {
        let link = state.join("postgres");
        check_link(&link)?;
        let user = User::for_server(state, &link)?;
        let mut target = fs::read_link(&link).ok().map(|target| state.join(target));

        let mut base = state.to_owned();
        if let Some(user) = user
            && !user.admitted_to(state).await?
        {
            base = elsewhere(state, user)?;
            if target.is_none() && !link.exists() {
                let data = base.join("postgres");
                put_aside(&data).await?;
                symlink(&data, &link).map_err(io_error("create the symlink", &link))?;
                tracing::info!(
                    "user {} cannot reach {}, so the data goes to {}",
                    user.uid,
                    state.display(),
                    data.display()
                );
                target = Some(data);
            }
        }
        let data = target.unwrap_or(link);
        let data = fs::canonicalize(&data).unwrap_or(data);
        let run = run_dir(&base, state, user);
        private_dir(&run, user)?;
        Ok(Place { data, run, log: state.join("postgres.log"), user })
    }
}

/// Where the socket goes: `run` in `base`, or if it does not fit there, a directory in the temporary directory.
fn run_dir(base: &Path, state: &Path, user: Option<User>) -> PathBuf {
    let name = format!("gatepass-{}-{}", uid_of(user), path_hash(state));
    // Root's TMPDIR may be closed to the server's user.
    let temp = if user.is_some() { PathBuf::from("/tmp") } else { std::env::temp_dir() };
    [base.join("run"), temp.join(&name)]
        .into_iter()
        .find(|run| socket::fits(run))
        .unwrap_or_else(|| Path::new("/tmp").join(name))
}

/// Creates the directory that stands in for a state directory that `user` cannot reach.
fn elsewhere(state: &Path, user: User) -> Result<PathBuf> {
    let root = Path::new(ELSEWHERE);
    DirBuilder::new().recursive(true).mode(0o711).create(root).map_err(io_error("create", root))?;
    let base = root.join(path_hash(state));
    private_dir(&base, Some(user))?;
    Ok(base)
}

/// Moves away data that no state directory points to any more: its state directory was removed, to begin with an empty
/// database. The last such data is kept, in case that was not the intention.
async fn put_aside(data: &Path) -> Result<()> {
    if !data.exists() {
        return Ok(());
    }
    if let Some((server, _)) = Server::adopt(data).await? {
        server.stop().await?;
    }
    let old = data.with_extension("old");
    if old.exists() {
        fs::remove_dir_all(&old).map_err(io_error("remove", &old))?;
    }
    fs::rename(data, &old).map_err(io_error("move aside", data))?;
    tracing::info!("moved the data of a state directory that was removed to {}", old.display());
    Ok(())
}

/// A name of 16 characters for things that belong to a path but are kept elsewhere. The hash is FNV-1a, since that of
/// the standard library may change with its version.
fn path_hash(path: &Path) -> String {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    format!("{:016x}", path.as_os_str().as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, step))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_goes_where_it_fits() {
        for (path, in_place) in [("/a b/é%41+&\"'", true), ("/a,b", false), ("/a".repeat(42).as_str(), false)]
        {
            assert_eq!(run_dir(Path::new(path), Path::new(path), None).starts_with(path), in_place, "{path}");
        }
    }
}
