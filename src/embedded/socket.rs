//! The socket: its name, its URL, and whether a server answers on it.

use std::{
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

/// A part of the socket's name and no more: nothing listens on a network port.
pub(super) const PORT: u16 = 5432;

/// The longest path that a socket may have, in bytes: `sun_path` holds 104 on macOS and 108 on Linux.
const PATH_MAX: usize = 100;

fn path(run: &Path) -> PathBuf {
    run.join(format!(".s.PGSQL.{PORT}"))
}

/// The file beside the socket that names the server's process.
pub(super) fn lock_file(run: &Path) -> PathBuf {
    path(run).with_added_extension("lock")
}

/// Whether there can be a socket in `run`: its path must not be too long, and must not have a comma, which libpq takes
/// for the end of a host.
pub(super) fn fits(run: &Path) -> bool {
    path(run).as_os_str().len() <= PATH_MAX && !run.as_os_str().as_bytes().contains(&b',')
}

/// The URL of the database behind the socket in `run`.
pub(super) fn url(run: &Path) -> String {
    let escape = |&byte: &u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    let host: String = run.as_os_str().as_bytes().iter().map(escape).collect();
    format!("postgres:///gatepass?host={host}&port={PORT}&user=gatepass&sslmode=disable")
}

/// Whether a server accepts sessions on the socket in `run`. Begins one, and ends it as soon as the outcome is known.
pub(super) async fn answers(run: &Path) -> bool {
    let Ok(mut stream) = UnixStream::connect(path(run)).await else { return false };
    // StartupMessage: length, protocol 3.0, parameters; then Terminate, to be read once the session is established.
    let parameters = b"user\0gatepass\0database\0gatepass\0application_name\0gatepass start\0\0";
    let length = u32::try_from(8 + parameters.len()).unwrap_or_default().to_be_bytes();
    let message = [&length[..], &[0, 3, 0, 0], parameters, b"X\0\0\0\x04"].concat();
    let mut reply = Vec::new();
    let exchange = async {
        stream.write_all(&message).await?;
        stream.read_to_end(&mut reply).await
    };
    // Whatever has arrived by then counts, even if it was cut off.
    let _ = timeout(Duration::from_secs(1), exchange).await;
    match reply.first() {
        // AuthenticationOk.
        Some(b'R') => true,
        // ErrorResponse. Its field C is the code, of which only cannot_connect_now passes by itself. With any other
        // (too many connections, no such database) the server runs, and the session that meets the error has to deal
        // with it.
        Some(b'E') => !reply.windows(7).any(|field| field == b"C57P03\0"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_escapes_the_path() {
        assert_eq!(
            url(Path::new("/a b/é%+")).split('&').next(),
            Some("postgres:///gatepass?host=%2Fa%20b%2F%C3%A9%25%2B")
        );
    }
}
