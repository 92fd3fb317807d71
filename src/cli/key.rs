//! `gatepass key`: the keys that tokens are made with.

use std::path::PathBuf;

use secrecy::ExposeSecret;
use serde::Serialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::signal::unix::{SignalKind, signal};

use super::{Failure, database, print, print_json, print_line, say, seconds, setup, table};
use crate::{
    clock::Clock,
    config::Settings,
    keys::{self, Error, Keys, Policy, Rewrapped, Stored},
    random,
    store::{self, PgPool, signing_keys},
    terminal::plain,
    token::{Format, Hs256Key, KeyId, KeyStatus, SharedFormat, SigningKey, SymmetricKey, ring::RingKey},
};

const NO_KEY: &str = "there is no key yet; `gatepass serve` makes one, since TOKEN_SYMMETRIC_KEY is not set \
    (`gatepass key generate` prints one to be set)";

/// Manage the keys that tokens are made with.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Print a new key for TOKEN_SYMMETRIC_KEY, as PASERK `k4.local.…`
    Generate {
        /// Print as JSON, with the key's id
        #[arg(long)]
        json: bool,
    },
    /// List the keys by id, and what each does; never the keys themselves
    ///
    /// Shared keys come from the configuration. The `active` one makes tokens; `accepted` ones only check them.
    ///
    /// Key pairs are stored in the database. The `next` one is published and will sign, the `active` one signs, a
    /// `retiring` one only verifies what it has signed, and one that is `gone` verifies nothing. An `unknown` one
    /// cannot be read by this release, and so verifies nothing either.
    List {
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the key that HS256 tokens are checked with
    ///
    /// It is derived from TOKEN_SYMMETRIC_KEY. WHOEVER HAS IT CAN MAKE TOKENS for any user, as well as check them: give
    /// it only to services that you trust as much as gatepass.
    Show {
        /// The HS256 key, in base64url like `k` in a JWK; with --json, the whole JWK
        #[arg(long, required = true)]
        jwt_hs256: bool,
        /// Print as a JWK (RFC 7517)
        #[arg(long)]
        json: bool,
    },
    /// Let the next key sign from now on
    ///
    /// The former key keeps verifying until the last of its tokens has expired, so no token is refused. The service
    /// rotates its keys itself every KEY_ROTATION_INTERVAL. If the next key has only just been published, this command
    /// waits, for a minute at most, until no cached copy of the published keys can lack it.
    Rotate {
        /// Print the keys as JSON
        #[arg(long)]
        json: bool,
    },
    /// Take a key out of the key ring, whatever it does now
    ///
    /// Without --now, an active key hands over to the next one as with `rotate`, and the tokens it has signed stay good
    /// until they expire.
    Retire {
        /// The key's id, as `gatepass key list` shows it
        // A thumbprint may begin with a hyphen.
        #[arg(allow_hyphen_values = true)]
        id: String,
        /// For a LEAKED key: every replica refuses its tokens within a second, and users renew theirs or log in again.
        /// A service that verifies tokens itself accepts them until it fetches the published keys again
        #[arg(long)]
        now: bool,
        /// Print the key as JSON
        #[arg(long)]
        json: bool,
    },
    /// Wrap the private keys in the database under TOKEN_SYMMETRIC_KEY
    ///
    /// Rewraps the keys that are still wrapped under a former root key, which must be in TOKEN_SYMMETRIC_KEYS_ACCEPTED.
    /// You may then remove the former key from there, once its own tokens have expired. The service does the same when
    /// it starts. The command fails, and names the keys, if any remain wrapped under another root key.
    Rewrap {
        /// Print the ids of the keys as JSON
        #[arg(long)]
        json: bool,
    },
}

pub(super) async fn run(config_file: Option<PathBuf>, command: Command) -> Result<(), Failure> {
    if let Command::Generate { json } = command {
        return generate(json);
    }
    let settings = setup::begin(config_file).await?;
    let is_look = matches!(command, Command::List { .. } | Command::Show { .. });
    let (policy, has_root) = if is_look {
        setup::present_key_policy(&settings)?
    } else {
        (setup::key_policy(&settings, &setup::symmetric_key(&settings)?, setup::operator()), true)
    };
    match command {
        Command::Generate { json } => generate(json),
        Command::Show { .. } if !has_root => Err(NO_KEY.into()),
        Command::Show { jwt_hs256: _, json } => show(&policy, json),
        Command::List { json } => {
            let shared = if has_root { shared(&policy) } else { Vec::new() };
            if !has_root {
                say(&format!("note: {NO_KEY}"));
            }
            list(&settings, &policy, &shared, json).await
        }
        Command::Rotate { json } => {
            // Before a database is needed, which such a service may not have.
            if matches!(policy.format, Format::Shared(_)) {
                return Err(Error::Shared(policy.format).into());
            }
            database::on_pool(&settings, async |db| rotate(&policy, db, json).await).await
        }
        Command::Retire { id, now, json } => {
            if let Some((format, _, _)) = shared(&policy).into_iter().find(|(_, kid, _)| kid.as_str() == id) {
                return Err(Error::Shared(format.into()).into());
            }
            database::on_pool(&settings, async |db| retire(&policy, db, &id, now, json).await).await
        }
        Command::Rewrap { json } => {
            database::on_pool(&settings, async |db| rewrap(&policy, db, json).await).await
        }
    }
}

fn generate(json: bool) -> Result<(), Failure> {
    let key = SymmetricKey::from_bytes(random::bytes(&mut random::system()));
    let paserk = key.to_paserk();
    if json {
        return print_json(&json!({ "kid": key.id().as_str(), "key": paserk.expose_secret() }));
    }
    print(&format!("{}\n", paserk.expose_secret()))
}

fn show(policy: &Policy, json: bool) -> Result<(), Failure> {
    let hs256 = Format::from(SharedFormat::Hs256);
    if !policy.formats().contains(&hs256) {
        say(&format!(
            "note: this service does not make or accept {hs256} tokens: that is TOKEN_FORMAT=jwt with \
             JWT_ALGORITHM=HS256, or {hs256} in TOKEN_FORMAT_ACCEPTED"
        ));
    }
    let jwk = Hs256Key::new(&policy.root).to_jwk();
    if json {
        return print(&format!("{}\n", *jwk));
    }
    let jwk: Value = serde_json::from_str(&jwk)?;
    print(&format!("{}\n", jwk["k"].as_str().ok_or("the key has no `k`")?))
}

/// One line of the list.
#[derive(Debug, Serialize)]
struct Entry {
    kid: String,
    format: String,
    status: &'static str,
    /// Where the key is kept.
    source: &'static str,
    #[serde(with = "time::serde::rfc3339::option")]
    published_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    activated_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    retired_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    verifies_until: Option<OffsetDateTime>,
    wrapped_by: Option<String>,
    /// What an operator should know about it.
    note: Option<String>,
}

impl Entry {
    fn shared(format: SharedFormat, kid: &KeyId, status: &'static str) -> Self {
        Self {
            kid: kid.to_string(),
            format: Format::from(format).to_string(),
            status,
            source: "configuration",
            published_at: None,
            activated_at: None,
            retired_at: None,
            verifies_until: None,
            wrapped_by: None,
            note: None,
        }
    }

    fn stored(policy: &Policy, key: &RingKey, root: Option<&KeyId>, now: OffsetDateTime) -> Self {
        let format = key.public.format();
        let status = key.status(now);
        let mut notes: Vec<&str> = Vec::new();
        match root {
            Some(root) if *root == policy.root.id() => {}
            Some(root) if policy.roots_accepted.iter().any(|accepted| accepted.id() == *root) => {
                notes
                    .push("wrapped under a root key of TOKEN_SYMMETRIC_KEYS_ACCEPTED: `gatepass key rewrap`");
            }
            Some(_) => notes.push("wrapped under a root key that is not in the configuration"),
            None => {}
        }
        if status.is_some() && !policy.formats().contains(&format.into()) {
            notes.push("its format is neither TOKEN_FORMAT nor accepted");
        } else if status == Some(KeyStatus::Active) && policy.format != format.into() {
            notes.push("of an accepted format: signs nothing");
        }
        Self {
            kid: key.id().to_string(),
            format: format.to_string(),
            status: status_name(status),
            source: "database",
            published_at: Some(key.published_at),
            activated_at: key.activated_at,
            retired_at: key.retired_at,
            verifies_until: key.verifies_until,
            wrapped_by: root.map(KeyId::to_string),
            note: (!notes.is_empty()).then(|| notes.join("; ")),
        }
    }

    fn unreadable(row: &signing_keys::SigningKey, error: &Error, now: OffsetDateTime) -> Self {
        let status = keys::status(row, now);
        let note = match (status, error) {
            // Nothing is left to be retired, which the error advises.
            (None, Error::Unreadable { source, .. }) => format!("cannot be read: {source}"),
            _ => error.to_string(),
        };
        Self {
            kid: row.id.clone(),
            format: row.format.clone(),
            status: if status.is_some() { "unknown" } else { "gone" },
            source: "database",
            published_at: Some(row.published_at),
            activated_at: row.activated_at,
            retired_at: row.retired_at,
            verifies_until: row.verifies_until,
            wrapped_by: row.wrapped_by.clone(),
            note: Some(note),
        }
    }

    /// Every stored key; those that cannot be read come last.
    fn all(policy: &Policy, Stored { keys, unreadable }: &Stored, now: OffsetDateTime) -> Vec<Self> {
        let readable = keys.iter().map(|(key, root)| Self::stored(policy, key, root.as_ref(), now));
        readable.chain(unreadable.iter().map(|(row, error)| Self::unreadable(row, error, now))).collect()
    }

    fn cells(&self) -> [String; 9] {
        let time = |at: Option<OffsetDateTime>| at.map_or_else(|| "-".to_owned(), seconds);
        let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        [
            self.kid.clone(),
            self.format.clone(),
            self.status.to_owned(),
            time(self.published_at),
            time(self.activated_at),
            time(self.retired_at),
            time(self.verifies_until),
            text(&self.wrapped_by),
            text(&self.note),
        ]
    }
}

fn status_name(status: Option<KeyStatus>) -> &'static str {
    status.map_or("gone", KeyStatus::name)
}

/// The keys in the configuration; the one for new tokens comes first.
fn shared(policy: &Policy) -> Vec<(SharedFormat, KeyId, &'static str)> {
    let mut keys = Vec::new();
    for format in policy.formats() {
        let Format::Shared(shared) = format else { continue };
        for (i, root) in policy.roots().enumerate() {
            let status = if i == 0 && format == policy.format { "active" } else { "accepted" };
            keys.push((shared, SigningKey::shared(shared, root).id(), status));
        }
    }
    keys
}

async fn list(
    settings: &Settings,
    policy: &Policy,
    shared: &[(SharedFormat, KeyId, &'static str)],
    json: bool,
) -> Result<(), Failure> {
    let mut entries: Vec<_> =
        shared.iter().map(|(format, kid, status)| Entry::shared(*format, kid, status)).collect();
    if policy.has_ring() && setup::has_database(settings)? {
        let stored = database::on_pool(settings, async |db| Ok(keys::list(db).await?)).await?;
        entries.extend(Entry::all(policy, &stored, Clock::system().now()));
    }
    if json {
        return print_json(&entries);
    }
    const TITLES: [&str; 9] = [
        "KID",
        "FORMAT",
        "STATUS",
        "PUBLISHED",
        "ACTIVATED",
        "RETIRED",
        "VERIFIES UNTIL",
        "WRAPPED BY",
        "NOTE",
    ];
    print(&table(TITLES, entries.iter().map(Entry::cells)))
}

/// Waits until the next key may sign.
async fn wait(policy: &Policy, until: OffsetDateTime, now: OffsetDateTime) -> Result<(), Failure> {
    let cached_for = policy.schedule.cached_for();
    let published = until - cached_for;
    let rest = until - now;
    // By a correct clock, the key cannot have been published in the future.
    if rest > cached_for + std::time::Duration::from_secs(5) {
        let message = format!(
            "the next key was published at {}, in the future by the database's clock: check that clock and the replicas'",
            seconds(published)
        );
        return Err(message.into());
    }
    let mut interrupt = signal(SignalKind::interrupt())?;
    let rest = rest.try_into().unwrap_or(std::time::Duration::ZERO);
    say(&format!(
        "the next key was published only at {}; published documents may be cached until {}: waiting {} s (Ctrl-C: \
         nothing has changed)",
        seconds(published),
        seconds(until),
        rest.as_secs() + 1
    ));
    tokio::select! {
        () = tokio::time::sleep(rest) => Ok(()),
        _ = interrupt.recv() => Err("cancelled: nothing has changed".into()),
    }
}

/// The time by the database's clock: every replica reads the times in the ring, and this command may run anywhere.
async fn time_of(db: &PgPool) -> Result<OffsetDateTime, Failure> {
    let mut conn = db.acquire().await?;
    Ok(store::now(&mut conn).await?)
}

/// The stored keys, with what each does.
async fn stored(policy: &Policy, db: &PgPool) -> Result<Vec<Entry>, Failure> {
    let now = time_of(db).await?;
    Ok(Entry::all(policy, &keys::list(db).await?, now))
}

/// The key of `format` in this status.
fn with<'e>(keys: &'e [Entry], format: &str, status: KeyStatus) -> Option<&'e Entry> {
    keys.iter().find(|key| key.format == format && key.status == status.name())
}

async fn rotate(policy: &Policy, db: &PgPool, json: bool) -> Result<(), Failure> {
    let format = policy.format.name();
    let ring = open(policy, db).await?;
    let kid = |keys: &[Entry], status| with(keys, format, status).map(|key| key.kid.clone());
    let before = kid(&stored(policy, db).await?, KeyStatus::Active);
    loop {
        let now = time_of(db).await?;
        match ring.rotate(now).await {
            Ok(()) => break,
            Err(Error::TooEarly(at)) => {
                // The service may have rotated meanwhile; once is enough.
                if kid(&stored(policy, db).await?, KeyStatus::Active) != before {
                    break;
                }
                wait(policy, at, now).await?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    let after = stored(policy, db).await?;
    let (active, next) = (kid(&after, KeyStatus::Active), kid(&after, KeyStatus::Next));
    if json {
        return print_json(&json!({ "format": format, "active": active, "next": next, "retired": before }));
    }
    let name = |kid: Option<String>| kid.map_or_else(|| "-".to_owned(), |kid| plain(&kid));
    let until = before.as_ref().and_then(|kid| after.iter().find(|key| key.kid == *kid)?.verifies_until);
    let until = until.map(|at| format!(" (verifies until {})", seconds(at))).unwrap_or_default();
    print(&format!(
        "signs now    {}\nbefore       {}{until}\npublished    {}, which is next\n",
        name(active),
        name(before),
        name(next)
    ))
}

async fn retire(policy: &Policy, db: &PgPool, id: &str, at_once: bool, json: bool) -> Result<(), Failure> {
    loop {
        let now = time_of(db).await?;
        match keys::retire(policy, db, id, at_once, now).await {
            Ok(()) => break,
            Err(Error::TooEarly(at)) => wait(policy, at, now).await?,
            Err(error) => return Err(error.into()),
        }
    }
    let keys = stored(policy, db).await?;
    let key = keys.iter().find(|key| key.kid == id).ok_or_else(|| Error::NoSuchKey(id.to_owned()))?;
    if json {
        return print_json(key);
    }
    let what = match key.verifies_until {
        Some(until) if key.status == KeyStatus::Retiring.name() => {
            format!("no longer signs; its tokens are valid until {}", seconds(until))
        }
        _ => "is gone: every replica refuses its tokens within a second".to_owned(),
    };
    let active = with(&keys, &key.format, KeyStatus::Active).map_or("-", |key| &key.kid);
    print_line(&format!("{id} {what}"))?;
    print_line(&format!("{active} signs {} now", key.format))
}

async fn rewrap(policy: &Policy, db: &PgPool, json: bool) -> Result<(), Failure> {
    let root = policy.root.id();
    let Rewrapped { done, left } = keys::rewrap(policy, db).await?;
    if left.is_empty() {
        // Makes the keys that are missing, as a start of the service does.
        open(policy, db).await?;
    }
    if json {
        let left: Vec<_> = left
            .iter()
            .map(|(row, error)| json!({ "kid": row.id, "root": row.wrapped_by, "why": error.to_string() }))
            .collect();
        let done: Vec<_> = done.iter().map(KeyId::as_str).collect();
        print_json(&json!({ "root": root.as_str(), "rewrapped": done, "left": left }))?;
    } else if done.is_empty() && left.is_empty() {
        print("nothing to do\n")?;
    } else {
        print(&done.iter().map(|kid| format!("rewrapped {kid}\n")).collect::<String>())?;
    }
    if left.is_empty() {
        return Ok(());
    }
    let line = |(row, error): &(signing_keys::SigningKey, Error)| {
        let signing_keys::SigningKey { id, wrapped_by, .. } = row;
        format!("\n{id}, under {}: {error}", wrapped_by.as_deref().unwrap_or("-"))
    };
    Err(format!("not rewrapped:{}", left.iter().map(line).collect::<String>()).into())
}

async fn open(policy: &Policy, db: &PgPool) -> Result<Keys, Failure> {
    let now = time_of(db).await?;
    Ok(Keys::open(policy.clone(), db.clone(), db.clone(), Clock::system(), now).await?)
}
