//! TLS for deployments without an ingress: TLS 1.2 and 1.3 with rustls, and a certificate that is reloaded when its
//! files change.
//!
//! The files are read in full every two seconds, so any replacement is noticed (an editor, certbot's links, Kubernetes'
//! `..data`), on every kind of file system. Since the two files change one after the other, new contents are used only
//! if they are still the same at the next look. A pair that cannot be served leaves the former one in place, is logged
//! once, and shows in the metrics until there is a better one.
//!
//! Sessions are resumed from memory, only by the process that began them. No data is accepted before the handshake is
//! complete (no 0-RTT), since it could be replayed.

mod certificate;
mod der;
pub mod probe;

use std::{
    fmt, io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use time::OffsetDateTime;
use tokio::{net::TcpStream, task::spawn_blocking};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, ServerConfig,
        server::{ClientHello, ResolvesServerCert},
        sign::CertifiedKey,
    },
    server::TlsStream,
};

pub use self::certificate::{Certificate, Contents, Error, Files};
use crate::{clock::Clock, metrics::Metrics};

/// How often the files are read.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often an expired certificate is logged.
const TELL_EVERY: time::Duration = time::Duration::HOUR;

/// Accepts TLS handshakes with the certificate from the files. Cheap to clone; all clones share one state.
#[derive(Clone)]
pub struct Tls(Arc<Inner>);

struct Inner {
    files: Files,
    acceptor: TlsAcceptor,
    served: Arc<Served>,
    seen: Mutex<Seen>,
}

/// The certificate for the next handshake.
#[derive(Debug)]
struct Served(ArcSwap<Certificate>);

/// Fingerprints of what the files contained.
#[derive(Default)]
struct Seen {
    served: Vec<u8>,
    at_last_look: Vec<u8>,
    refused: Vec<u8>,
    /// When the expiry of the served certificate was last logged.
    expiry_told: Option<OffsetDateTime>,
}

impl Seen {
    /// Whether to log `now` that the served certificate has expired.
    fn is_expiry_news(&mut self, not_after: OffsetDateTime, now: OffsetDateTime) -> bool {
        if now < not_after {
            self.expiry_told = None;
            return false;
        }
        let is_news = self.expiry_told.is_none_or(|at| now >= at + TELL_EVERY);
        if is_news {
            self.expiry_told = Some(now);
        }
        is_news
    }
}

impl Tls {
    /// Reads the certificate, to be served from `now` on.
    ///
    /// # Errors
    ///
    /// When the files do not contain a pair that may be served.
    pub fn open(files: Files, now: OffsetDateTime) -> Result<Self, Error> {
        let contents = files.read()?;
        let served = Arc::new(Served(ArcSwap::from_pointee(files.parse(&contents, now)?)));
        let mut config = ServerConfig::builder_with_provider(Arc::new(certificate::provider()))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .expect("the provider has cipher suites for both")
            .with_no_client_auth()
            .with_cert_resolver(served.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let seen = Mutex::new(Seen { served: contents.fingerprint(), ..Seen::default() });
        Ok(Self(Arc::new(Inner { files, acceptor: Arc::new(config).into(), served, seen })))
    }

    /// The certificate that is served.
    pub fn certificate(&self) -> Arc<Certificate> {
        self.0.served.0.load_full()
    }

    /// Accepts a client's handshake. The caller has to limit how long that may take.
    ///
    /// # Errors
    ///
    /// When the client does not speak TLS, or no version or cipher suite that is supported here.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        self.0.acceptor.accept(stream).await
    }

    /// Reads the files, and serves a new pair if the last look found the same one.
    pub fn look(&self, now: OffsetDateTime, metrics: &Metrics) {
        let Inner { files, served, seen, .. } = &*self.0;
        let contents = files.read();
        let fingerprint = match &contents {
            Ok(contents) => contents.fingerprint(),
            Err(error) => error.to_string().into_bytes(),
        };
        // Consistent after every step, so also after a panic.
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut seen.at_last_look, fingerprint.clone());
        if fingerprint == seen.served {
            seen.refused.clear();
            metrics.set_certificate_reloaded(true);
        } else if fingerprint == before {
            match contents.and_then(|contents| files.parse(&contents, now)) {
                Ok(certificate) => {
                    tracing::info!(not_after = %certificate.not_after, "a new certificate is served from now on");
                    served.0.store(Arc::new(certificate));
                    seen.served = fingerprint;
                    seen.refused.clear();
                    metrics.set_certificate_reloaded(true);
                }
                // Tried again at each look, since a certificate may become valid later, but logged once.
                Err(error) if seen.refused != fingerprint => {
                    tracing::error!(%error, "the certificate in the files cannot be served: the former certificate stays in use");
                    seen.refused = fingerprint;
                    metrics.set_certificate_reloaded(false);
                }
                Err(_) => {}
            }
        }
        let not_after = self.certificate().not_after;
        if seen.is_expiry_news(not_after, now) {
            tracing::error!(%not_after, "the certificate has expired: clients refuse it");
        }
        metrics.set_certificate_expiry(not_after);
    }

    /// Reads the files every two seconds, for as long as it is polled.
    pub async fn follow(&self, clock: &Clock, metrics: &Metrics) {
        let mut ticks = crate::clock::every(LOOK_EVERY);
        loop {
            ticks.tick().await;
            let (tls, now, metrics) = (self.clone(), clock.now(), metrics.clone());
            // Reading may block on a slow file system.
            if let Err(error) = spawn_blocking(move || tls.look(now, &metrics)).await {
                tracing::error!(%error, "the certificate could not be looked at");
            }
        }
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tls").field(&self.0.files).finish()
    }
}

impl ResolvesServerCert for Served {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load().key.clone())
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn an_expired_certificate_is_reported_hourly_until_it_is_replaced() {
        let (mut seen, end) = (Seen::default(), datetime!(2026-03-01 12:00 UTC));
        let mut told =
            |not_after, seconds| seen.is_expiry_news(not_after, end + Duration::from_secs(seconds));
        assert!(!told(end + TELL_EVERY, 0));
        assert!(told(end, 0));
        assert!(!told(end, 2));
        assert!(!told(end, 3598));
        assert!(told(end, 3600));
        assert!(!told(end + 2 * TELL_EVERY, 3602));
        assert!(told(end + 2 * TELL_EVERY, 7200));
    }
}
