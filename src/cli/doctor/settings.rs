//! Checks of the settings, and of what they name on this machine.

use std::path::PathBuf;

use time::Duration;

use super::{Args, Failure, Finding, OpenFiles, failed, seconds, setup};
use crate::{
    clock::Clock,
    config::{ConfigErrors, Environment, Registration, Settings},
    http::Limits,
    legacy,
    password::{self, Params},
};

/// How long before its expiry a certificate should have been renewed: those valid for ninety days have been by then.
const RENEWAL: Duration = Duration::days(14);

pub(super) async fn settings(config_file: Option<PathBuf>) -> (Option<Settings>, Vec<Finding>) {
    match setup::load(config_file).await {
        Ok(loaded) if loaded.warnings.is_empty() => {
            (Some(loaded.settings), vec![Finding::ok("settings", "nothing wrong with them")])
        }
        Ok(loaded) => {
            let warnings = loaded.warnings.into_iter();
            let findings = warnings.map(|warning| Finding::warning("settings", warning));
            (Some(loaded.settings), findings.collect())
        }
        Err(error) => match error.downcast_ref::<ConfigErrors>() {
            Some(ConfigErrors(problems)) => {
                let problems = problems.iter();
                let findings = problems.map(|problem| Finding::problem("settings", problem.to_string()));
                (None, findings.collect())
            }
            None => (None, vec![failed("settings", &*error)]),
        },
    }
}

/// Who may register.
pub(super) fn registration(settings: &Settings) -> Option<Finding> {
    let is_open = settings.registration == Registration::Open;
    (is_open && settings.environment == Environment::Production).then(|| {
        let note = "REGISTRATION is open: anybody can register, and no e-mail address is confirmed";
        Finding::note("settings", note).advise("unless that is intended, set REGISTRATION=closed")
    })
}

/// What a password hash costs here, and what it should.
pub(super) async fn passwords(settings: &Settings, args: &Args) -> Vec<Finding> {
    const AREA: &str = "password";

    let mut findings = Vec::new();
    let params = settings.argon2;
    let target = std::time::Duration::from_millis(args.hash_time.into());
    let memory_kib = args.hash_memory.map_or(params.memory_kib, |mib| mib * 1024);
    let (took, choice) = match recommend(params, target, memory_kib).await {
        Ok(measured) => measured,
        Err(error) => return vec![failed(AREA, &*error)],
    };
    let threads = settings.password_hash_threads;
    let message = format!(
        "a hash takes {} ms ({params}); {threads} at a time, in {} MiB altogether",
        took.as_millis(),
        threads.get() as u64 * u64::from(params.memory_kib) / 1024
    );
    let wish = format!("{} ms and {} MiB", args.hash_time, memory_kib / 1024);
    findings.push(if choice == params {
        Finding::ok(AREA, message)
    } else {
        let Params { memory_kib, iterations, parallelism } = choice;
        Finding::note(AREA, message).advise(format!(
            "for {wish}: ARGON2_MEMORY_KIB={memory_kib} ARGON2_ITERATIONS={iterations} \
             ARGON2_PARALLELISM={parallelism} (OWASP's minimum at least)"
        ))
    });
    let peppers = settings.password_pepper.count();
    if peppers > 1 {
        let note = format!("PASSWORD_PEPPER holds {peppers}: a rotation is not finished");
        findings.push(Finding::note(AREA, note).advise(
            "keep the older ones until no stored hash names them: users with such a hash cannot log in without them",
        ));
    }
    findings
}

/// How long a hash takes now, and the parameters that come closest to the target time without exceeding it, with that
/// much memory.
async fn recommend(
    params: Params,
    target: std::time::Duration,
    memory_kib: u32,
) -> Result<(std::time::Duration, Params), Failure> {
    let now = password::measure(params).await?;
    let pass = password::measure(Params { memory_kib, iterations: 1, parallelism: 1 }).await?;
    Ok((now, password::recommend(pass, memory_kib, target)))
}

/// What clients will think of the certificate.
pub(super) fn certificate(settings: &Settings) -> Vec<Finding> {
    const AREA: &str = "tls";

    let is_production = settings.environment == Environment::Production;
    let Some(files) = setup::tls_files(settings) else {
        let message = "none: the service speaks plain HTTP";
        return vec![if is_production {
            // Without its name, the limits on failed logins take the proxy for the only client.
            let naming =
                if settings.trusted_proxies.is_empty() { " and name it in TRUSTED_PROXIES" } else { "" };
            Finding::note(AREA, message).advise(format!(
                "put a proxy in front that speaks TLS{naming}, or set TLS_CERT_FILE and TLS_KEY_FILE"
            ))
        } else {
            Finding::ok(AREA, message)
        }];
    };
    let mut findings = Vec::new();
    if files.is_key_open() {
        let message = format!("TLS_KEY_FILE={}: every user of this machine may read it", files.key.display());
        findings.push(Finding::warning(AREA, message).advise(
            "take that right from others: `chmod o-r`; in Kubernetes, `defaultMode: 0440` for the secret's volume, and \
             `fsGroup: 65532` for the pod",
        ));
    }
    let now = Clock::system().now();
    let certificate = match files.read().and_then(|contents| files.parse(&contents, now)) {
        Ok(certificate) => certificate,
        Err(error) => {
            let advice = "a running service keeps the certificate it has; none starts with this one";
            findings.push(failed(AREA, &error).advise(advice));
            return findings;
        }
    };
    let (until, left) = (seconds(certificate.not_after), certificate.not_after - now);
    if left < RENEWAL {
        let message = format!("the certificate expires in {} days, on {until}", left.whole_days());
        findings.push(
            Finding::warning(AREA, message)
                .advise("renew it; the service reads the files again when they change, with no restart"),
        );
    }
    if !certificate.is_ordered {
        let message = "the certificates in TLS_CERT_FILE are not in order: some clients refuse such a chain";
        findings.push(
            Finding::warning(AREA, message)
                .advise("put the service's own first, then each one that signed the one before"),
        );
    }
    if certificate.is_self_signed {
        let message = "the certificate is signed by itself: clients have to be told to trust it";
        findings.push(Finding::note(AREA, message));
    } else if certificate.length == 1 {
        let message =
            "TLS_CERT_FILE holds one certificate: clients that do not know who signed it cannot check it";
        findings.push(Finding::note(AREA, message).advise("use the full chain, unless the signer is a root"));
    }
    if let Some(host) = public_host(settings)
        && !certificate.is_for(&host)
    {
        let message = format!("the certificate is not for {host}, which TOKEN_ISSUER names");
        findings.push(
            Finding::warning(AREA, message)
                .advise("get one with that name, unless a proxy with another certificate is in front"),
        );
    }
    if findings.is_empty() {
        let message = format!("the certificate is valid until {until}, {} days", left.whole_days());
        findings.push(Finding::ok(AREA, message));
    }
    findings
}

/// The host at which clients reach the service, if the issuer is its address.
fn public_host(settings: &Settings) -> Option<String> {
    let issuer: http::Uri = settings.token_issuer.parse().ok()?;
    let host = issuer.host().filter(|_| issuer.scheme_str() == Some("https"))?;
    Some(host.trim_matches(['[', ']']).to_owned())
}

/// Who can read the metrics.
pub(super) fn operators(settings: &Settings) -> Finding {
    let address = settings.ops_server_address;
    let message = format!("metrics at {address}/metrics");
    if address.ip().is_loopback() {
        Finding::ok("ops", format!("{message}, for this machine only"))
    } else {
        Finding::note("ops", format!("{message}, in plain HTTP and open to whoever can connect"))
            .advise("let nobody but Prometheus reach it")
    }
}

/// How many connections a service accepts when it is started with the same limits as this command.
pub(super) fn open_files(settings: &Settings) -> Finding {
    let files = OpenFiles::look(settings.db_max_connections);
    match files.advice() {
        Some(advice) => Finding::warning("files", files.to_string()).advise(advice),
        None => Finding::ok("files", files.to_string()),
    }
}

/// Whether the system that users may still come from is reachable. It is told neither a password nor who we are.
pub(super) async fn old_system(settings: &Settings) -> Option<Finding> {
    const AREA: &str = "legacy";

    let url = settings.legacy_login_url.as_ref()?;
    let patience = Limits::default().legacy_login;
    let begun = std::time::Instant::now();
    Some(match legacy::probe(url, patience).await {
        Ok(status) => {
            let took = begun.elapsed().as_millis();
            Finding::ok(AREA, format!("the old system is there: {status} after {took} ms"))
        }
        Err(error) => failed(AREA, &error).advise(
            "check LEGACY_LOGIN_URL, and the way there: users who are not here yet cannot log in meanwhile",
        ),
    })
}

/// Rotations that were begun and have to be finished.
pub(super) fn rotations_under_way(settings: &Settings) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !settings.token_symmetric_keys_accepted.is_empty() {
        let note = "TOKEN_SYMMETRIC_KEYS_ACCEPTED is set: the rotation of the root key is not finished";
        findings.push(Finding::note("keys", note).advise(
            "when every replica has the new key and the tokens of the former one have expired, empty it",
        ));
    }
    if !settings.token_format_accepted.is_empty() {
        let note = "TOKEN_FORMAT_ACCEPTED is set: tokens of further formats are accepted";
        let advice = "when the tokens of the former format have expired, empty it";
        findings.push(Finding::note("keys", note).advise(advice));
    }
    findings
}
