//! `gatepass serve`: starts the service from its settings, and shuts it down in order.

use std::{error::Error, fs, future::pending, io, net::SocketAddr, path::PathBuf, pin::pin, time::Duration};

use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    Failure, Logged,
    database::{self, ClockSkew, Database, Renewal},
    open_files::{BACKGROUND_CONNECTIONS, FEED_CONNECTIONS, KEYS_CONNECTIONS, OPS_CONNECTIONS, OpenFiles},
    setup,
};
use crate::{
    account::{self, Accounts, Activity, Cause, CleanUp, Clients, History},
    chain,
    clock::Clock,
    config::{DbPooler, Environment, Loaded, Registration, Settings},
    http::{self, App, Limits, Parts, Phase, Places},
    keys::Keys,
    metrics::{Metrics, PoolUse, PoolWatch},
    random,
    revocation::{Feed, Publisher},
    store::{PgPool, Use, triggers},
    telemetry::{self, traces::Traces},
    tls::Tls,
    token::SymmetricKey,
};

/// In production, how long the service keeps serving after it was told to stop, so that a proxy can notice that
/// `/readyz` says no, and close its idle connections. In development, Ctrl-C should be quick.
const LEAVING: Duration = Duration::from_secs(5);
/// How long the last writes may take. They and the closing of the connections together take 5 s at most: a supervisor
/// does not wait longer because the database hangs.
const FLUSH_PATIENCE: Duration = Duration::from_secs(2);
/// How far apart this machine's clock and the database's may be without a warning: half the default of
/// `REFRESH_REUSE_INTERVAL`. Tokens tolerate 30 s.
const CLOCK_TOLERANCE: time::Duration = time::Duration::seconds(5);

pub(super) async fn run(config_file: Option<PathBuf>) -> Result<(), Failure> {
    // Runs while the settings are read and the database is opened.
    random::gather();
    let Loaded { settings, warnings, .. } = setup::load(config_file.clone()).await?;
    let endpoint = settings.otel_exporter_otlp_endpoint.as_deref();
    let traces =
        endpoint.map(|endpoint| Traces::new(endpoint, settings.otel_traces_sampler_arg)).transpose()?;
    let format = settings.log_format;
    telemetry::init(format, &settings.rust_log, traces.as_ref())?;
    telemetry::log_panics();
    let mut done = start(config_file, &settings, warnings).await;
    // For people, and if the log is silenced, the error is printed last, as by every other command.
    if format == telemetry::LogFormat::Json && tracing::enabled!(tracing::Level::ERROR) {
        done = done.map_err(|error| {
            tracing::error!(error = &*error as &(dyn Error + 'static), "the service ends");
            Logged.into()
        });
    }
    if let Some(traces) = traces {
        traces.finish().await;
    }
    done
}

async fn start(
    config_file: Option<PathBuf>,
    settings: &Settings,
    warnings: Vec<String>,
) -> Result<(), Failure> {
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    // Before anything else, so that no signal during the start is lost.
    let mut signals = Signals::new()?;
    // Before the database, so that a port in use is reported at once.
    let address = settings.http_server_address;
    let listener = TcpListener::bind(address)
        .await
        .map_err(|error| format!("HTTP_SERVER_ADDRESS={address}: cannot listen there: {error}"))?;

    let ops = ops_listener(settings).await?;
    let tls = tls(settings)?;

    let key = setup::symmetric_key(settings)?;
    let database = tokio::select! {
        database = Database::open_for_service(settings) => database?,
        name = signals.next() => return called_off(name),
    };
    let listeners = Listeners { service: listener, tls, ops };
    let served = serve(config_file, settings, &key, &database, listeners, &mut signals).await;
    database.closing(served).await
}

/// The listener for operators. A port in use is an error, except in development, where somebody may run two services
/// or have a Prometheus on that port.
async fn ops_listener(settings: &Settings) -> Result<Option<TcpListener>, Failure> {
    let address = settings.ops_server_address;
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if settings.environment == Environment::Development => {
            tracing::warn!("OPS_SERVER_ADDRESS={address}: cannot listen there: {error}; no metrics");
            Ok(None)
        }
        Err(error) => Err(format!("OPS_SERVER_ADDRESS={address}: cannot listen there: {error}").into()),
    }
}

/// The certificate, if the settings name one.
fn tls(settings: &Settings) -> Result<Option<Tls>, Failure> {
    let Some(files) = setup::tls_files(settings) else { return Ok(None) };
    if files.is_key_open() {
        tracing::warn!("TLS_KEY_FILE={}: every user of this machine may read the key", files.key.display());
    }
    Ok(Some(Tls::open(files, Clock::system().now())?))
}

/// Where requests come in.
struct Listeners {
    service: TcpListener,
    tls: Option<Tls>,
    ops: Option<TcpListener>,
}

async fn serve(
    config_file: Option<PathBuf>,
    settings: &Settings,
    key: &SymmetricKey,
    database: &Database,
    Listeners { service: listener, tls, ops }: Listeners,
    signals: &mut Signals,
) -> Result<(), Failure> {
    tokio::select! {
        migrated = database.migrate(settings.migrate_on_start) => migrated?,
        name = signals.next() => return called_off(name),
    }
    let clock = Clock::system();
    let requests = database.pool(settings.db_max_connections);
    check(database, &requests, settings.db_pooler, &clock).await?;
    let pools = Pools {
        requests,
        background: database.pool(BACKGROUND_CONNECTIONS),
        feed: database.pool(FEED_CONNECTIONS),
        keys: database.pool(KEYS_CONNECTIONS),
    };
    // Not before a Postgres of our own has started: it would inherit the limit, and has no use for it.
    let files = OpenFiles::raise(settings.db_max_connections);
    if let Some(advice) = files.advice() {
        tracing::warn!("{files}; {advice}");
    }
    let limits = Limits { connections: files.connections(), ..Limits::default() };
    let app = app(settings, key, pools.clone(), clock, limits).await?;
    app.feed.hear().await?;
    let address = listener.local_addr()?;
    tracing::info!(%address, database = database.place(), version = env!("CARGO_PKG_VERSION"), "serving");
    if settings.environment == Environment::Development {
        welcome(address, tls.is_some(), database, settings.registration);
    }

    let renewal = database.renewal_from(config_file);
    let mut following = tokio::spawn(work_beside(app.clone(), ops, tls.clone(), renewal));
    let router = http::router(app.clone());
    let mut serving = pin!(http::server::serve(listener, router, tls, app.places.clone(), app.phase()));
    let all_finished = tokio::select! {
        finished = &mut serving => finished,
        // These tasks never end by themselves. Without them a leaked key would stay good here; a supervisor should
        // restart the service.
        _ = &mut following => return Err("a background task has ended unexpectedly".into()),
        name = signals.next() => {
            tracing::info!("{name}: finishing requests in flight; a second signal cuts them off");
            let ending = async {
                if settings.environment == Environment::Production {
                    app.leave();
                    sleep(LEAVING).await;
                }
                app.stop();
            };
            tokio::select! {
                // The service keeps serving meanwhile.
                (finished, ()) = async { tokio::join!(&mut serving, ending) } => finished,
                _ = signals.next() => false,
            }
        }
    };
    if !all_finished {
        tracing::warn!("requests in flight were cut off");
    }
    following.abort();
    // Until this task has ended, it holds the sightings that it was writing.
    _ = following.await;
    flush(&app.activity).await;
    pools.close().await;
    tracing::info!("stopped");
    Ok(())
}

/// Makes sure that requests can use the database, to which the migrations may have connected by another URL, and warns
/// of what will not always work.
async fn check(database: &Database, db: &PgPool, pooler: DbPooler, clock: &Clock) -> Result<(), Failure> {
    if let Some(warning) = database.check_pooler(pooler).await? {
        tracing::warn!("{warning}");
    }
    let mut conn = db.acquire().await.map_err(|error| database.unusable(error))?;
    let mut idle = triggers::idle(&mut conn).await?;
    idle.retain(|trigger| !trigger.is_historian());
    if !idle.is_empty() {
        tracing::error!("triggers are {}; `gatepass doctor` says how to mend that", triggers::harm(&idle));
    }
    let skew = ClockSkew::measure(&mut conn, clock).await?;
    if skew.apart() > CLOCK_TOLERANCE {
        tracing::warn!(
            "the clocks differ: {skew}. Replicas then disagree about how long ago a session was renewed \
             (REFRESH_REUSE_INTERVAL) and, from 30 s on, refuse each other's tokens; synchronise all clocks with NTP"
        );
    }
    Ok(())
}

/// Everything besides the requests, for as long as this is polled.
async fn work_beside(app: App, ops: Option<TcpListener>, tls: Option<Tls>, renewal: Renewal) {
    let operators = async {
        if let Some(ops) = ops {
            let places = Places::new(Limits { connections: OPS_CONNECTIONS, ..app.places.limits });
            // Operators want to watch the shutdown, too.
            let (_to_the_end, phase) = watch::channel(Phase::Serving);
            http::server::serve(ops, http::ops_router(app.clone()), None, places, phase).await;
        }
    };
    let certificate = async {
        if let Some(tls) = tls {
            tls.follow(&app.clock, &app.metrics).await;
        }
    };
    tokio::join!(
        operators,
        certificate,
        app.feed.follow(),
        app.keys.follow(),
        app.activity.keep_writing(),
        app.clean_up.keep_clean(&app.clock),
        app.history.keep(&app.clock),
        renewal.keep(&app.clock, &app.metrics),
    );
}

/// Writes the last sightings of sessions.
async fn flush(activity: &Activity) {
    match timeout(FLUSH_PATIENCE, activity.flush()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(
                error = chain::cause(&error),
                "the last sightings of sessions could not be written"
            );
        }
        Err(_) => tracing::warn!("the last sightings of sessions could not be written in time"),
    }
}

fn called_off(signal: &str) -> Result<(), Failure> {
    tracing::info!("{signal}: start cancelled");
    Ok(())
}

/// The pools of connections to the database.
#[derive(Clone, Debug)]
pub struct Pools {
    /// For requests.
    pub requests: PgPool,
    /// For background work, so that no flood of requests keeps it waiting.
    pub background: PgPool,
    /// For the feed of revocations, so that nothing else keeps it waiting.
    pub feed: PgPool,
    /// For reading the keys, likewise.
    pub keys: PgPool,
}

impl Pools {
    async fn close(&self) {
        let Self { requests, background, feed, keys } = self;
        tokio::join!(
            database::close(requests),
            database::close(background),
            database::close(feed),
            database::close(keys)
        );
    }
}

/// Assembles the service according to `settings`, on the database of `pools`.
///
/// # Errors
///
/// When the threads or the memory for password hashes cannot be obtained, or the keys cannot be opened.
pub async fn app(
    settings: &Settings,
    key: &SymmetricKey,
    pools: Pools,
    clock: Clock,
    limits: Limits,
) -> Result<App, Failure> {
    let Pools { requests, background, feed, keys: readings } = pools;
    let policy = setup::key_policy(settings, key, Cause::service());
    let keys = Keys::open(policy, background.clone(), readings.clone(), clock.clone(), clock.now()).await?;
    let listens = settings.db_pooler == DbPooler::Session;
    let metrics = Metrics::new();
    let pools = [
        ("requests", requests.clone()),
        ("background", background.clone()),
        ("feed", feed.clone()),
        ("keys", readings),
    ];
    let pools = PoolWatch::new(move || pools.iter().map(|(name, pool)| pool_use(name, pool)).collect());
    let feed = Feed::new(feed, listens, clock.clone(), settings.revocation_max_staleness, metrics.clone());
    let (issuer, threads) = (keys.issuer(), settings.password_hash_threads);
    let legacy = setup::legacy(settings, limits.legacy_login, clock.clone(), metrics.clone())?;
    let parts = setup::account_parts(settings, key, issuer, requests.clone(), metrics.clone(), threads)?;
    let activity = Activity::new(background.clone());
    let parts =
        account::Parts { legacy, feed: Some(feed.clone()), activity: Some(activity.clone()), ..parts };
    Ok(App::new(Parts {
        accounts: Accounts::new(parts),
        clients: Clients::new(requests.clone()),
        keys,
        publisher: Publisher::new(feed.clone(), requests.clone()),
        feed,
        activity,
        clean_up: CleanUp::new(background.clone(), settings.session_retention),
        history: History::new(requests, background, settings.history_retention),
        metrics,
        pools,
        public_url: setup::public_url(settings),
        clock,
        trusted_proxies: settings.trusted_proxies.clone(),
        allowed_origins: settings.allowed_origins.clone(),
        places: Places::new(limits),
    }))
}

fn pool_use(pool: &'static str, connections: &PgPool) -> PoolUse {
    let Use { used, idle, max } = connections.in_use();
    PoolUse { pool, used, idle, max }
}

/// Tells somebody who has just started the service by hand what to do next.
fn welcome(address: SocketAddr, has_tls: bool, database: &Database, registration: Registration) {
    let scheme = if has_tls { "https" } else { "http" };
    let url = match address {
        any if any.ip().is_unspecified() => format!("{scheme}://localhost:{}", any.port()),
        one => format!("{scheme}://{one}"),
    };
    let data = match database.embedded() {
        Some(embedded) => format!("{}\n           psql '{}'", embedded.data_dir().display(), embedded.url()),
        None => database.place(),
    };
    let reach = if address.ip().is_unspecified() {
        let port = address.port();
        format!(
            "\n  Network  other machines can reach it, too; HTTP_SERVER_ADDRESS=127.0.0.1:{port} prevents that"
        )
    } else {
        String::new()
    };
    let (first, password) = match registration {
        Registration::Open => {
            let password = "secret-horse-battery-9";
            let register = format!(
                r#"Register, then log in:

  curl {url}/users -H 'content-type: application/json' \
    -d '{{"username":"alice","email":"alice@example.com","password":"{password}"}}'"#
            );
            (register, password)
        }
        Registration::Closed => {
            let create = "Registration is closed. Create a user, then log in:\n\n  \
                          gatepass user create alice --email alice@example.com";
            (create.to_owned(), "<the password that you gave>")
        }
    };
    let (bold, plain) = if telemetry::is_coloured(&io::stdout()) { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
    let text = format!(
        r#"
{bold}gatepass is ready{plain} at {url}/docs   (Ctrl-C stops it)

  Data     {data}{reach}

{first}

  curl {url}/users/login -H 'content-type: application/json' \
    -d '{{"username":"alice","password":"{password}"}}'

  curl {url}/users/me -H 'authorization: Bearer <the access_token of the answer>'
"#
    );
    // Serve even if nobody is there to read it.
    if let Err(error) = super::print(&text) {
        tracing::debug!(error, "no welcome");
    }
}

/// The signals that end the service. Whoever starts it may have it ignore SIGHUP, as `nohup` does.
struct Signals {
    hangup: Option<Signal>,
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        let hangup = SignalKind::hangup();
        Ok(Self {
            hangup: if is_ignored(hangup) { None } else { Some(signal(hangup)?) },
            // Handled even if ignored: a shell without job control makes its background processes ignore SIGINT, and
            // scripts send it all the same.
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits for the next one and gives its name.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            () = received(self.hangup.as_mut()) => "SIGHUP",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

async fn received(signal: Option<&mut Signal>) {
    match signal {
        Some(signal) => _ = signal.recv().await,
        None => pending().await,
    }
}

/// Whether the process was started with this signal ignored. Without `/proc`, finding out would take `unsafe`, and the
/// answer is no.
fn is_ignored(kind: SignalKind) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    ignored >> (kind.as_raw_value() - 1) & 1 == 1
}
