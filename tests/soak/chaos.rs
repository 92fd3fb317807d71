//! What is done to the fleet while clients use it: its replicas are killed and stopped, its Postgres is restarted, its
//! connections are cut. Meanwhile an operator imports users, rotates keys, seals the history and verifies it against
//! its seals. Each replica that starts cleans up sessions.

use std::{fs, sync::atomic::Ordering::Relaxed, time::Duration};

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{
    clients::{Dice, Outcome},
    fleet::{ASLEEP, AWAY, Fleet, REPLICAS},
    record::Span,
};
use crate::process::Signal;

#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// A replica, by `kill -9`.
    Kill,
    /// A replica, by an orderly stop.
    Stop,
    /// Postgres, by a fast shutdown: clients are disconnected.
    RestartPostgres,
    /// Postgres, by an immediate shutdown: it recovers from its WAL.
    CrashPostgres,
    /// About half of the service's connections, at random.
    CutConnections,
    /// A replica and Postgres together.
    KillBoth,
    /// A replica stands still for longer than it may go without hearing of revocations.
    Freeze,
}

pub const FAULTS: &[Fault] = &[
    Fault::Kill,
    Fault::CrashPostgres,
    Fault::CutConnections,
    Fault::Stop,
    Fault::RestartPostgres,
    Fault::KillBoth,
    Fault::Freeze,
];

/// How much is done.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    pub lasts: Duration,
    pub clients: usize,
    /// Between two faults, in milliseconds: at least, and at most.
    pub pause: (usize, usize),
    pub faults: &'static [Fault],
    /// How long a revocation may take to reach the other replicas.
    pub lag: time::Duration,
}

/// Longer than `REVOCATION_MAX_STALENESS`.
const FREEZE: Duration = Duration::from_secs(4);

/// Causes each fault once, then any of them. The first replica is left alone after the first quarter, so that its
/// memory can be judged.
pub async fn rage(fleet: &Fleet, form: Form, seed: u64) {
    let mut dice = Dice::new(seed, 999);
    let began = Instant::now();
    let first = dice.below(form.faults.len());
    for turn in 0.. {
        sleep(dice.millis(form.pause.0, form.pause.1)).await;
        let is_first_round = turn < form.faults.len();
        if !is_first_round && began.elapsed() >= form.lasts {
            return;
        }
        let any = dice.below(form.faults.len());
        let fault = form.faults[if is_first_round { (first + turn) % form.faults.len() } else { any }];
        let is_early = began.elapsed() < form.lasts / 4;
        let place = if is_early { dice.below(REPLICAS) } else { 1 + dice.below(REPLICAS - 1) };
        let pause = dice.millis(0, if form.pause.1 > 5000 { 3000 } else { 300 });
        fleet.count(&format!("{fault:?}"));
        match fault {
            Fault::Kill => fleet.replace(place, Signal::KILL, sleep(pause)).await,
            Fault::Stop => fleet.replace(place, Signal::TERM, sleep(pause)).await,
            Fault::RestartPostgres => {
                fleet
                    .outage(AWAY, async { fleet.server.lock().await.restart(Signal::INT, pause).await })
                    .await;
            }
            Fault::CrashPostgres => {
                fleet
                    .outage(AWAY, async { fleet.server.lock().await.restart(Signal::QUIT, pause).await })
                    .await;
            }
            Fault::CutConnections => {
                let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                           WHERE application_name = 'gatepass' AND random() < 0.5";
                fleet
                    .outage(AWAY, async {
                        sqlx::query(cut).execute(&fleet.db).await.unwrap();
                    })
                    .await;
            }
            Fault::Freeze => fleet.outage(ASLEEP, fleet.freeze(place, FREEZE)).await,
            Fault::KillBoth => {
                fleet
                    .outage(AWAY, async {
                        let restart =
                            async { fleet.server.lock().await.restart(Signal::QUIT, Duration::ZERO).await };
                        fleet.replace(place, Signal::KILL, restart).await;
                    })
                    .await;
            }
        }
    }
}

/// How many users one import brings.
const BATCH: usize = 5;

/// Acts as the operator until the soak is over; returns which users were imported.
pub async fn operate(fleet: &Fleet, pause: (usize, usize), seed: u64) -> Outcome<Vec<String>> {
    let mut dice = Dice::new(seed, 998);
    let hash: String =
        sqlx::query_scalar("SELECT password_hash FROM users LIMIT 1").fetch_one(&fleet.db).await.unwrap();
    let mut imported = Vec::new();
    for turn in 0_usize.. {
        if fleet.is_over.load(Relaxed) {
            break;
        }
        match turn % 4 {
            0 => {
                let names: Vec<_> = (0..BATCH).map(|n| format!("import{turn}-{n}")).collect();
                let lines: String = names.iter().map(|name| user(name, &hash)).collect();
                let file = fleet.home.write(&format!("import{turn}.jsonl"), &lines);
                // Repeated until all of them are there.
                while run(fleet, &["import", &file, "--json"]).await?.is_none() {}
                fs::remove_file(file).unwrap();
                fleet.imported.lock().unwrap().extend(names.clone());
                imported.extend(names);
            }
            1 => {
                // It may have to wait its turn.
                tokio::select! {
                    done = run(fleet, &["key", "rotate"]) => { done?; }
                    () = is_over(fleet) => {}
                }
            }
            2 => {
                run(fleet, &["history", "seal", "--json"]).await?;
            }
            _ => {
                verify_history(fleet).await?;
            }
        }
        tokio::select! {
            () = sleep(dice.millis(pause.0, pause.1)) => {}
            () = is_over(fleet) => {}
        }
    }
    Ok(imported)
}

async fn is_over(fleet: &Fleet) {
    while !fleet.is_over.load(Relaxed) {
        sleep(Duration::from_millis(50)).await;
    }
}

fn user(name: &str, hash: &str) -> String {
    let user = json!({
        "external_id": name, "username": name, "email": format!("{name}@example.com"), "password_hash": hash,
    });
    format!("{user}\n")
}

/// Checks the history against its seals; `None` when the database was away.
pub async fn verify_history(fleet: &Fleet) -> Outcome<Option<Value>> {
    let found = run(fleet, &["history", "verify", "--json"]).await?;
    match &found {
        Some(found) if found["problems"] != json!([]) => Err(format!("the history is not sound: {found}")),
        _ => Ok(found),
    }
}

/// `gatepass ARGS…`; `None` when it failed because the database was away.
pub async fn run(fleet: &Fleet, args: &[&str]) -> Outcome<Option<Value>> {
    let sent = fleet.clock.now();
    let ended = fleet.home.gatepass(args).envs(&fleet.environment()).run().await;
    let span = Span { sent, answered: fleet.clock.now() };
    if ended.code == Some(0) {
        fleet.count(args[0]);
        return Ok(Some(serde_json::from_str(&ended.stdout).unwrap_or_default()));
    }
    if fleet.is_excused("database_unavailable", span) && !ended.stderr.contains("panicked") {
        fleet.count("commands that failed");
        return Ok(None);
    }
    Err(format!("gatepass {args:?} fails: {}{}", ended.stdout, ended.stderr))
}
