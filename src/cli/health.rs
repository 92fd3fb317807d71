//! `gatepass health`: for container health checks, where there is no curl.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use http_body_util::{BodyExt, Empty};
use hyper::{Request, StatusCode, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use super::{Failure, print, setup};
use crate::{terminal::plain_lines, tls::probe};

const PATIENCE: Duration = Duration::from_secs(5);

/// Ask a running service whether it is alive.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Ask whether it is ready for requests, including its database
    #[arg(long)]
    ready: bool,
    /// Ask this address instead of HTTP_SERVER_ADDRESS
    #[arg(long, value_name = "IP:PORT")]
    address: Option<SocketAddr>,
    /// Use TLS for that address; without --address, TLS_CERT_FILE decides. The certificate is not checked
    #[arg(long, requires = "address")]
    tls: bool,
}

pub(super) async fn run(config_file: Option<PathBuf>, args: &Args) -> Result<(), Failure> {
    let (mut address, tls) = match args.address {
        Some(address) => (address, args.tls),
        None => {
            let settings = setup::load_without_secret(config_file)?;
            (settings.http_server_address, setup::tls_files(&settings).is_some())
        }
    };
    if address.ip().is_unspecified() {
        // A service that listens on every address also listens on the loopback address.
        address.set_ip(if address.is_ipv4() {
            [127, 0, 0, 1].into()
        } else {
            [0, 0, 0, 0, 0, 0, 0, 1].into()
        });
    }
    let path = if args.ready { "/readyz" } else { "/healthz" };
    let (status, body) = tokio::time::timeout(PATIENCE, get(address, tls, path))
        .await
        .map_err(|_| format!("{address} gave no answer within {} s", PATIENCE.as_secs()))?
        .map_err(|error| {
            let is_foreign = error.downcast_ref().is_some_and(hyper::Error::is_parse);
            let hint = match (is_foreign && !tls, args.address) {
                (false, _) => String::new(),
                (true, Some(_)) => "; does it speak TLS? then add --tls".to_owned(),
                (true, None) => format!("; does it speak TLS? then ask with --address {address} --tls"),
            };
            format!("{address} does not answer: {error}{hint}")
        })?;
    if !status.is_success() {
        return Err(format!("{address}{path} says {status}: {body}").into());
    }
    print(&format!("{}\n", plain_lines(&body)))
}

async fn get(address: SocketAddr, tls: bool, path: &str) -> Result<(StatusCode, String), Failure> {
    let stream = TcpStream::connect(address).await?;
    if tls {
        ask(probe::connect(stream, address.ip()).await?, address, path).await
    } else {
        ask(stream, address, path).await
    }
}

async fn ask(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    address: SocketAddr,
    path: &str,
) -> Result<(StatusCode, String), Failure> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::get(path).header("host", address.to_string()).body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    connection.abort();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}
