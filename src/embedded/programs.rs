//! The server programs that are installed on this machine, and the choice between them.

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::process::Command;

use super::{
    error::{EmbeddedError, Result, run_error},
    user::{User, command},
};

/// Where packages put server programs outside `PATH`: a directory, and how the names in it begin. Each has a `bin`
/// below it.
const PROGRAM_HOMES: [(&str, &str); 5] = [
    ("/usr/lib/postgresql", ""),
    ("/usr", "pgsql-"),
    ("/opt/homebrew/opt", "postgresql@"),
    ("/usr/local/opt", "postgresql@"),
    ("/Applications/Postgres.app/Contents/Versions", ""),
];

/// The server programs of one installed Postgres.
#[derive(Debug)]
pub(super) struct Programs {
    bin: PathBuf,
    pub(super) major: u32,
}

impl Programs {
    /// All installed servers, those on `PATH` first.
    pub(super) async fn installed() -> Vec<Programs> {
        Self::with("initdb", "postgres").await
    }

    /// All installations that have `program`, with the version that the program `versioned` reports. Client programs
    /// may be installed without a server.
    pub(super) async fn with(program: &str, versioned: &str) -> Vec<Programs> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        // The links that packages put on PATH lead to a directory that has the other programs, too.
        let mut candidates: Vec<PathBuf> = std::env::split_paths(&path)
            .filter_map(|directory| {
                Some(fs::canonicalize(directory.join(program)).ok()?.parent()?.to_owned())
            })
            .collect();
        if let Ok(output) = Command::new("pg_config").arg("--bindir").stderr(Stdio::null()).output().await {
            candidates.push(PathBuf::from(OsStr::from_bytes(output.stdout.trim_ascii())));
        }
        for (home, prefix) in PROGRAM_HOMES {
            let entries = fs::read_dir(home).into_iter().flatten().flatten();
            let versions =
                entries.filter(|entry| entry.file_name().as_bytes().starts_with(prefix.as_bytes()));
            candidates.extend(versions.map(|entry| entry.path().join("bin")));
        }

        let mut installed: Vec<Programs> = Vec::new();
        for candidate in candidates {
            let Ok(bin) = fs::canonicalize(candidate) else { continue };
            if !bin.join(program).is_file() || installed.iter().any(|known| known.bin == bin) {
                continue;
            }
            // An installation that cannot report its version is of no use; another one may be.
            if let Ok(output) = command(&bin.join(versioned), None).arg("--version").output().await
                && let Some(major) =
                    String::from_utf8_lossy(&output.stdout).split("PostgreSQL) ").nth(1).and_then(major)
            {
                installed.push(Programs { bin, major });
            }
        }
        installed
    }

    /// The programs that can read the data; the newest ones if there is no data yet.
    pub(super) fn choose(installed: Vec<Programs>, data: &Path) -> Result<Programs> {
        let made_by = fs::read_to_string(data.join("PG_VERSION")).ok().as_deref().and_then(major);
        let mut versions: Vec<u32> = installed.iter().map(|programs| programs.major).collect();
        versions.sort_unstable();
        versions.dedup();
        let Some(newest) = versions.last() else { return Err(EmbeddedError::NotInstalled) };
        let wanted = made_by.unwrap_or(*newest);
        installed.into_iter().find(|programs| programs.major == wanted).ok_or_else(|| {
            EmbeddedError::OtherVersion {
                data: data.to_owned(),
                made_by: wanted,
                installed: versions.iter().map(u32::to_string).collect::<Vec<_>>().join(", "),
            }
        })
    }

    pub(super) fn path(&self, program: &str) -> PathBuf {
        self.bin.join(program)
    }

    pub(super) fn command(&self, program: &str, user: Option<User>) -> Command {
        command(&self.bin.join(program), user)
    }

    /// For `map_err`: `program` could not be run.
    pub(super) fn run_error(&self, program: &str) -> impl FnOnce(io::Error) -> EmbeddedError + use<> {
        run_error(self.bin.join(program))
    }
}

/// The number that a version (`15.4`, `17beta1`) begins with.
fn major(version: &str) -> Option<u32> {
    version.split(|character: char| !character.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_chosen_by_the_data() {
        let installed = || [15, 17, 16].map(|major| Programs { bin: PathBuf::new(), major }).into();
        let data = tempfile::tempdir().unwrap();
        assert_eq!(Programs::choose(installed(), data.path()).unwrap().major, 17);
        fs::write(data.path().join("PG_VERSION"), "16\n").unwrap();
        assert_eq!(Programs::choose(installed(), data.path()).unwrap().major, 16);
        fs::write(data.path().join("PG_VERSION"), "14\n").unwrap();
        let error = Programs::choose(installed(), data.path()).unwrap_err().to_string();
        assert!(error.contains("made by Postgres 14, and only Postgres 15, 16, 17 is installed"), "{error}");
        assert!(matches!(Programs::choose(Vec::new(), data.path()), Err(EmbeddedError::NotInstalled)));
        assert_eq!((major("17beta1"), major("9.6.2"), major("devel")), (Some(17), Some(9), None));
    }
}
