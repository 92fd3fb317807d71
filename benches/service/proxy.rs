//! nginx asking `/auth/verify` about each request, compared with the same nginx asking something that only says 200.

use std::{
    env, fs,
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    bench::{Bench, Goal::AtLeast},
    load::{self, Same, bearer, get},
    process::{Service, database, free_address},
};

/// Connections of the clients.
const CONNECTIONS: usize = 32;

pub(crate) fn measure(bench: &mut Bench) {
    let Some(program) = nginx() else {
        bench.say("NOT measured: nginx, which is not installed (Debian: `apt-get install nginx-light`)");
        return;
    };
    let service = Service::start(&database(), &[]);
    let field = bearer(&service.token_of_new("alice"));
    let nginx = Nginx::start(program, service.address);
    let once = |path: &str| {
        load::run(nginx.address, bench.short_turn(), &mut [Same(&get(path, &field)); CONNECTIONS]).rate
    };
    once("/gatepass");
    let what = "requests/s of nginx that asks /auth/verify";
    let [ours, upstream, inside] = bench.in_short_turns(
        what,
        [&mut || once("/gatepass"), &mut || once("/upstream"), &mut || once("/inside")],
    );
    bench.ratio(what, &ours, ("a connection to nginx, which says 200", &upstream), AtLeast(0.9));
    bench.ratio(what, &ours, ("nobody, says 200", &inside), AtLeast(0.9));
}

/// Looks for nginx on `PATH`, which `make bench` sets.
fn nginx() -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|dir| dir.join("nginx")).find(|file| file.is_file())
}

/// A running nginx, and its directory; both end when dropped.
struct Nginx {
    child: Child,
    address: SocketAddr,
    dir: PathBuf,
}

impl Nginx {
    /// Starts one with a location for each that it may ask. What it protects is in its memory.
    fn start(program: PathBuf, gatepass: SocketAddr) -> Self {
        let (address, constant) = (free_address(), free_address());
        let dir = env::temp_dir().join(format!("gatepass-bench-nginx-{}", address.port()));
        fs::create_dir(&dir).expect("a new directory");
        let path = dir.to_str().expect("a plain path");
        // As docs/forward-auth.md has it.
        let asking = |name: &str, answer: &str| {
            format!(
                "location = /{name} {{ auth_request /_{name}; empty_gif; }}
                 location = /_{name} {{ internal; {answer} }}"
            )
        };
        let upstream = |name: &str, path: &str| {
            format!(
                r#"proxy_pass http://{name}{path};
                 proxy_http_version 1.1;
                 proxy_pass_request_body off;
                 proxy_set_header Content-Length "";
                 proxy_set_header Connection "";
                 proxy_set_header X-Forwarded-For $remote_addr;"#
            )
        };
        let config = format!(
            "daemon off; worker_processes auto; pid {path}/pid; error_log {path}/error.log warn;
             events {{}}
             http {{
                 access_log off;
                 keepalive_requests 100000000;
                 client_body_temp_path {path}/body; proxy_temp_path {path}/proxy; fastcgi_temp_path {path}/fastcgi;
                 uwsgi_temp_path {path}/uwsgi; scgi_temp_path {path}/scgi;
                 upstream gatepass {{ server {gatepass}; keepalive 32; }}
                 upstream constant {{ server {constant}; keepalive 32; }}
                 server {{ listen {constant}; return 200; }}
                 server {{ listen {address}; {} {} {} }}
             }}",
            asking("gatepass", &upstream("gatepass", "/auth/verify")),
            asking("upstream", &upstream("constant", "/")),
            asking("inside", "return 200;"),
        );
        let file = dir.join("nginx.conf");
        fs::write(&file, config).expect("a file");
        let child = Command::new(program)
            .arg("-p")
            .arg(&dir)
            .arg("-e")
            .arg(dir.join("error.log"))
            .arg("-c")
            .arg(file)
            .stdin(Stdio::null())
            .spawn()
            .expect("nginx runs");
        let mut nginx = Self { child, address, dir };
        while TcpStream::connect(address).is_err() {
            let ended = nginx.child.try_wait().expect("a child");
            assert!(ended.is_none(), "nginx does not start: {ended:?}");
            thread::sleep(Duration::from_millis(1));
        }
        nginx
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Not killed, or its workers would live on.
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}
