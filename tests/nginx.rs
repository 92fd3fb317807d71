//! A real nginx, run by the test as its own process. It is looked for on `PATH` and where Debian installs it; without
//! it a test fails in CI, and elsewhere reports that it has not run.

use std::{env, fs, path::PathBuf, process::Stdio};

use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::{not_tested::not_tested, process::until};

/// A running nginx, which serves on a Unix socket.
pub struct Nginx {
    dir: TempDir,
    _process: Child,
}

impl Nginx {
    /// Starts it with what goes into `http { … }`, which `site` returns, given what to `listen` on. `None` if there is
    /// no nginx.
    pub async fn start(what_for: &str, site: impl FnOnce(&str) -> String) -> Option<Self> {
        let paths = env::var_os("PATH").unwrap_or_default();
        let places = env::split_paths(&paths).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
        let Some(nginx) = places.map(|dir: PathBuf| dir.join("nginx")).find(|file| file.is_file()) else {
            not_tested(what_for, "nginx is not installed (Debian: `apt-get install nginx-light`)");
            return None;
        };
        let dir = TempDir::with_prefix("gatepass-nginx-").unwrap();
        let path = dir.path().to_str().unwrap();
        let site = site(&format!("listen unix:{path}/socket;"));
        let config = format!(
            "daemon off; master_process off; pid {path}/pid; error_log {path}/error.log warn;
             events {{}}
             http {{
                 access_log off;
                 client_body_temp_path {path}/body; proxy_temp_path {path}/proxy; fastcgi_temp_path {path}/fastcgi;
                 uwsgi_temp_path {path}/uwsgi; scgi_temp_path {path}/scgi;
                 {site}
             }}"
        );
        let file = dir.path().join("nginx.conf");
        fs::write(&file, config).unwrap();
        let log = dir.path().join("error.log");
        let mut process = Command::new(nginx)
            .arg("-p")
            .arg(dir.path())
            .arg("-e")
            .arg(&log)
            .arg("-c")
            .arg(file)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let socket = dir.path().join("socket");
        until("nginx listens", async || {
            let ended = process.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", fs::read_to_string(&log).unwrap_or_default());
            tokio::net::UnixStream::connect(&socket).await.is_ok()
        })
        .await;
        Some(Self { dir, _process: process })
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// Its error log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("error.log")).unwrap_or_default()
    }
}
