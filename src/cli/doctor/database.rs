//! Checks of the database, and of what it holds.

use time::Duration;

use super::{Failure, Finding, Level, failed, hashes::hashes, ring::ring, seconds, setup};
use crate::{
    account,
    cli::database::{self, As, ClockSkew, Database},
    clock::Clock,
    config::{DbPooler, Environment, Settings},
    embedded::Embedded,
    keys::Policy,
    store::{
        self, Access, Blocker, PgConnection,
        history::{self, Backlog},
        migrations::{self, Schema},
        revocations,
        roles::{self, Privilege, Privileges, Standing},
        triggers::{self, Idle},
    },
    telemetry,
};

/// How far this machine's clock and the database's may be apart.
const CLOCK_TOLERANCE: Duration = Duration::SECOND;
/// How long a notification may take.
const NOTIFICATION_PATIENCE: std::time::Duration = std::time::Duration::from_secs(2);
/// How long a change in the history may wait to be sealed.
const SEAL_PATIENCE: Duration = Duration::minutes(5);

pub(super) async fn database(settings: &Settings, policy: &Policy) -> Vec<Finding> {
    match setup::has_database(settings) {
        Ok(true) => {}
        Ok(false) => {
            let possible = async {
                setup::check_state_dir("DB_SOURCE")?;
                Ok::<_, Failure>(Embedded::check(&setup::state_dir()?).await?)
            };
            return vec![match possible.await {
                Ok(()) => Finding::note(
                    "database",
                    "there is none yet: `gatepass serve` makes one of its own, since DB_SOURCE is not set",
                ),
                Err(error) => failed("database", &*error),
            }];
        }
        Err(error) => return vec![failed("database", &*error)],
    }
    let database = match Database::open(settings).await {
        Ok(database) => database,
        Err(error) => return vec![failed("database", &*error)],
    };
    let mut findings = on_database(&database, settings, policy).await;
    if let Err(error) = database.close().await {
        findings.push(failed("database", &*error));
    }
    findings
}

async fn on_database(database: &Database, settings: &Settings, policy: &Policy) -> Vec<Finding> {
    let begun = std::time::Instant::now();
    let mut conn = match database.connection(As::Service).await {
        Ok(conn) => conn,
        Err(error) => return vec![failed("database", &*error)],
    };
    let connected = begun.elapsed();
    let mut findings = Vec::new();
    match clock(&mut conn).await {
        Ok((latency, finding)) => {
            let message = format!(
                "{} is there: connected in {} ms, answers in {} ms",
                database.place(),
                connected.as_millis(),
                latency.whole_milliseconds()
            );
            findings.push(Finding::ok("database", message));
            findings.push(finding);
        }
        Err(error) => findings.push(failed("database", &error)),
    }
    findings.extend(writes(&mut conn).await);
    let locks = locks(&mut conn).await;
    let is_locked = !locks.is_empty();
    findings.extend(locks);
    match database.check_pooler(settings.db_pooler).await {
        Ok(None) => {}
        Ok(Some(warning)) => findings.push(Finding::warning("database", warning)),
        Err(error) => findings.push(failed("database", &*error)),
    }
    findings.extend(plain_text(database, settings, &mut conn).await);
    match schema(database, settings).await {
        Ok(Schema::Current) => findings.push(Finding::ok("schema", "current")),
        Ok(Schema::Newer(version)) => {
            let message = format!("at migration {version:06}, of a later release than this");
            findings
                .push(Finding::note("schema", message).advise(
                    "it still serves this one: finish the update, or undo it with the later release",
                ));
        }
        Err(error) => {
            let mut finding = failed("schema", &*error);
            if settings.migrate_on_start
                && matches!(error.downcast_ref(), Some(migrations::Error::Pending(_)))
            {
                finding = Finding::note("schema", "migrations are waiting")
                    .advise(
                        "`gatepass serve` applies them when it starts, since MIGRATE_ON_START is true; replicas that are \
                         running already are not ready until one is restarted",
                    );
            }
            findings.push(finding);
            return findings;
        }
    }
    if database.embedded().is_some() {
        // On a developer's machine, the one role of our own Postgres does everything.
        findings.push(Finding::ok("roles", "one for everything, in a Postgres of gatepass's own"));
    } else {
        let found = roles(&mut conn, settings).await;
        findings.extend(found.unwrap_or_else(|error| vec![failed("roles", &error)]));
    }
    if policy.has_ring() {
        let db = database.pool(1);
        let found = ring(policy, &db).await;
        database::close(&db).await;
        findings.extend(found.unwrap_or_else(|error| vec![failed("keys", &error)]));
    } else {
        findings.push(Finding::ok("keys", "shared, from the configuration"));
    }
    findings.push(guards(&mut conn).await);
    if settings.db_pooler == DbPooler::Session {
        findings.push(feed(database).await);
    }
    findings.extend(revoked(&mut conn).await);
    findings.extend(seals(&mut conn, settings).await);
    // Whoever waits for the table already is reported above, and need not be waited for.
    if !is_locked {
        let found = hashes(&mut conn, &settings.password_pepper).await;
        findings.extend(found.unwrap_or_else(|error| vec![failed("password", &error)]));
    }
    findings
}

/// Whether anything can be written.
async fn writes(conn: &mut PgConnection) -> Option<Finding> {
    const AREA: &str = "database";

    match store::access(conn).await {
        Ok(Access::Full) => None,
        Ok(Access::ReadOnly) => Some(
            Finding::problem(AREA, "the database takes no writes: default_transaction_read_only is on")
                .advise(
                    "is its disk full? some hosts set that then, and undo it when there is room; otherwise RESET it \
                     where it is set: ALTER SYSTEM, DATABASE or ROLE (`\\drds` in psql)",
                ),
        ),
        Ok(Access::Standby) => Some(
            Finding::problem(AREA, store::STANDBY)
                .advise("promote it, or have DB_SOURCE lead to the primary"),
        ),
        Err(error) => Some(failed(AREA, &error)),
    }
}

/// The sessions that keep the service waiting for a lock.
async fn locks(conn: &mut PgConnection) -> Vec<Finding> {
    const AREA: &str = "database";

    let blockers = match store::blockers(conn).await {
        Ok(blockers) => blockers,
        Err(error) => return vec![failed(AREA, &error)],
    };
    let finding = |Blocker { pid, role, application, waiting, seconds }| {
        let whose = match (role, application) {
            (Some(role), Some(application)) => format!(" of {role} ({application})"),
            (Some(role), None) => format!(" of {role}"),
            (None, _) => String::new(),
        };
        let message = format!(
            "{waiting} statement(s) of the service have been waiting for a lock, for up to {seconds:.0} s: the session \
             {pid}{whose} holds it"
        );
        Finding::problem(AREA, message).advise(format!(
            "end that session: `SELECT pg_terminate_backend({pid})`, as its role or the master user"
        ))
    };
    blockers.into_iter().map(finding).collect()
}

/// Whether others can listen in on the connection.
async fn plain_text(database: &Database, settings: &Settings, conn: &mut PgConnection) -> Option<Finding> {
    let level = Level::risk(settings.environment);
    match store::is_encrypted(conn).await {
        Ok(false) if !database.is_local() => Some(
            Finding::new("database", level, "the connection is not encrypted, and leaves this machine")
                .advise(
                    "say `sslmode=verify-full&sslrootcert=…` in DB_SOURCE, and switch `ssl` on in Postgres",
                ),
        ),
        Ok(_) => None,
        Err(error) => Some(failed("database", &error)),
    }
}

/// Whether revocations reach the other replicas at once.
async fn feed(database: &Database) -> Finding {
    const AREA: &str = "feed";

    // One connection listens and one notifies, as between replicas.
    let db = database.pool(2);
    let begun = std::time::Instant::now();
    let heard = revocations::is_heard(&db, NOTIFICATION_PATIENCE).await;
    let took = begun.elapsed().as_millis();
    database::close(&db).await;
    match heard {
        Ok(true) => Finding::ok(AREA, format!("notifications come through (in {took} ms)")),
        Ok(false) => {
            let message =
                "no notification comes through: revocations reach other replicas half a second later";
            Finding::warning(AREA, message)
                .advise("let DB_SOURCE bypass the pooler, or set the pooler to session mode")
        }
        Err(error) => failed(AREA, &error),
    }
}

/// Whether the revocations can be read, all of which a replica does when it starts.
async fn revoked(conn: &mut PgConnection) -> Option<Finding> {
    const PAGE: i64 = 10_000;

    let read = async {
        let now = store::now(conn).await?;
        let mut after = None;
        loop {
            let page = revocations::page(conn, None, after, now, PAGE).await?;
            after = match page.last() {
                Some(last) => Some(last.place()),
                None => return Ok::<_, store::Error>(()),
            };
        }
    };
    read.await.err().map(|error| failed("feed", &error))
}

/// Whether the triggers fire by which replicas hear of a change and rules are kept. `seals` looks at the history's.
async fn guards(conn: &mut PgConnection) -> Finding {
    const AREA: &str = "triggers";

    match triggers::idle(conn).await {
        Ok(mut idle) => {
            idle.retain(|trigger| !trigger.is_historian());
            if idle.is_empty() {
                Finding::ok(AREA, "all there")
            } else {
                Finding::problem(AREA, triggers::harm(&idle)).advise(to_mend(&idle))
            }
        }
        Err(error) => failed(AREA, &error),
    }
}

/// What makes triggers fire again.
fn to_mend(idle: &[Idle]) -> String {
    let statements = idle.iter().map(|trigger| &*trigger.mend).collect::<Vec<_>>().join("; ");
    format!("as the owner: {statements}")
}

/// Whether every change gets into the history, somebody seals it, and the log keeps the heads of the seals.
async fn seals(conn: &mut PgConnection, settings: &Settings) -> Vec<Finding> {
    const AREA: &str = "history";

    let look = async {
        let now = store::now(conn).await?;
        let lenient = history::lenient(conn).await?;
        let idle = triggers::idle(conn).await?;
        Ok::<_, store::Error>((now, lenient, idle, history::backlog(conn).await?))
    };
    let (now, lenient, mut idle, Backlog { since, has_losses }) = match look.await {
        Ok(found) => found,
        Err(error) => return vec![failed(AREA, &error)],
    };
    let mut findings = Vec::new();
    if let Some(statement) = lenient {
        let message = "gatepass.history is lenient: a change that cannot be recorded happens all the same";
        findings.push(
            Finding::warning(AREA, message)
                .advise(format!("once that is fixed, as the role that set it: {statement}")),
        );
    }
    idle.retain(Idle::is_historian);
    if !idle.is_empty() {
        let message = "triggers that write it are disabled or gone: changes are not recorded";
        let advice = format!("once that is fixed, {}", to_mend(&idle));
        findings.push(Finding::warning(AREA, message).advise(advice));
    }
    match telemetry::where_logged(&settings.rust_log, account::unlogged_heads) {
        Ok(None) => {}
        Ok(Some(warning)) => findings.push(Finding::warning(AREA, warning)),
        Err(error) => findings.push(failed(AREA, &error)),
    }
    if has_losses {
        let finding = Finding::warning(
            AREA,
            "changes that were waiting for their seal are gone: somebody deleted them",
        );
        findings.push(
            finding.advise("`gatepass history verify` names them; docs/history.md says what to do then"),
        );
    }
    if let Some(since) = since.filter(|since| now - *since > SEAL_PATIENCE) {
        let finding = Finding::warning(
            AREA,
            format!("changes have been waiting for their seal since {}", seconds(since)),
        );
        findings.push(finding.advise(
            "a running service seals every minute: start one, or look into its log; `gatepass history seal` seals \
             them at once",
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(AREA, "sealed; `gatepass history verify` checks all of it"));
    }
    findings
}

/// Whether the schema is as it should be and, where `serve` would migrate it, whether `serve` may.
async fn schema(database: &Database, settings: &Settings) -> Result<Schema, Failure> {
    let mut conn = database.connection(As::Migrator).await?;
    let found = migrations::check(&mut conn).await;
    if settings.migrate_on_start && matches!(found, Err(migrations::Error::Pending(_))) {
        migrations::may_apply(&mut conn).await?;
    }
    Ok(found?)
}

/// Whether the service's role may do what it has to, and nothing else.
async fn roles(conn: &mut PgConnection, settings: &Settings) -> Result<Vec<Finding>, sqlx::Error> {
    const AREA: &str = "roles";

    let Standing { user, is_superuser, administers, owns_tables } = roles::standing(conn).await?;
    let level = Level::risk(settings.environment);
    let held = Privileges::held(conn, &user).await?;
    let wanted = Privileges::of_app();
    let missing = wanted.beyond(&held);
    if !missing.is_empty() {
        let message = format!("{user} may not do what the service has to: {}", listed(&missing));
        // To any other role, a migration does not give what the service needs.
        let advice = if user == roles::APP && roles::owns_schema(conn).await? {
            format!(
                "run `gatepass migrate up` as {}, or `gatepass db setup` as the master user",
                roles::OWNER
            )
        } else {
            "run `gatepass db setup` as the master user".to_owned()
        };
        return Ok(vec![Finding::problem(AREA, message).advise(advice)]);
    }
    let excess = held.beyond(&wanted);
    let more = if is_superuser {
        "is a superuser: it may change everything, the history too".to_owned()
    } else if owns_tables {
        "owns the tables, or is a member of their owner: it may change the schema, and the history".to_owned()
    } else if !excess.is_empty() {
        format!("may do more than it has to: {}", listed(&excess))
    } else if administers {
        "may create roles or databases, replicate, or bypass row-level security".to_owned()
    } else {
        let message = format!("{user} may do what the service has to, and nothing else");
        let mut findings = vec![Finding::ok(AREA, message)];
        if user == roles::APP && !roles::owns_schema(conn).await? {
            let message = format!("the schema does not belong to {}: a restored database?", roles::OWNER);
            findings.push(
                Finding::warning(AREA, message)
                    .advise("run `gatepass db setup`, or the next migration belongs to whoever runs it"),
            );
        }
        if settings.environment == Environment::Production {
            findings.extend(roles::members(conn).await?.into_iter().map(|member| {
                let message = format!("{member} may log in and is a member of {}", roles::OWNER);
                Finding::new(AREA, level, message).advise(format!(
                    "when nothing logs in as it any more: REVOKE {} FROM \"{member}\"",
                    roles::OWNER
                ))
            }));
        }
        return Ok(findings);
    };
    Ok(vec![Finding::new(AREA, level, format!("{user} {more}")).advise(format!(
        "create the roles with `gatepass db setup`, and have DB_SOURCE log in as {}",
        roles::APP
    ))])
}

/// Lists the first few.
fn listed(privileges: &[&Privilege]) -> String {
    const SHOWN: usize = 5;

    let mut shown: Vec<_> = privileges.iter().take(SHOWN).map(ToString::to_string).collect();
    if privileges.len() > SHOWN {
        shown.push(format!("{} more", privileges.len() - SHOWN));
    }
    shown.join(", ")
}

/// How long the database takes to answer, and whether its clock agrees.
async fn clock(conn: &mut PgConnection) -> Result<(Duration, Finding), store::Error> {
    let skew = ClockSkew::measure(conn, &Clock::system()).await?;
    let finding = if skew.apart() > CLOCK_TOLERANCE {
        Finding::warning("clock", skew.to_string())
            .advise(
                "synchronise both with NTP: replicas that differ by more than REFRESH_REUSE_INTERVAL take a second \
                 tab for a thief, and from 30 s on refuse each other's tokens",
            )
    } else {
        Finding::ok("clock", "the database agrees to within a second")
    };
    Ok((skew.latency, finding))
}
