//! Checks of the signing keys.

use time::{Duration, OffsetDateTime};

use super::{Finding, Level, failed, seconds};
use crate::{
    clock::Clock,
    keys::{self, Policy, Stored},
    store::{PgPool, signing_keys::SigningKey},
    token::{
        KeyId, KeyStatus,
        ring::{self, RingKey},
    },
};

/// How late a rotation may be.
const ROTATION_GRACE: Duration = Duration::DAY;
/// A key whose last tokens expire within this time is reported.
const SOON: Duration = Duration::HOUR;
/// What NIST SP 800-57 demands of signatures from 2031 on; until then 112 bits are enough.
const SECURITY_BITS: u32 = 128;

pub(super) async fn ring(policy: &Policy, db: &PgPool) -> Result<Vec<Finding>, keys::Error> {
    let now = Clock::system().now();
    let mut findings: Vec<_> =
        keys::unopenable(policy, db).await?.iter().map(|error| failed("keys", error)).collect();
    let stored = keys::list(db).await?;
    findings.extend(heads(policy, &stored, now));
    for (key, root) in &stored.keys {
        findings.extend(single(policy, key, root.as_ref(), now));
    }
    // Nobody needs a key that is gone.
    let unreadable = stored.unreadable.iter().filter(|(row, _)| keys::status(row, now).is_some());
    findings.extend(unreadable.map(|(_, error)| match error {
        // Expected while an update is rolled out or rolled back.
        keys::Error::UnknownFormat { .. } => Finding::note("keys", error.to_string()),
        _ => failed("keys", error),
    }));
    if findings.iter().all(|finding| finding.level == Level::Ok || finding.level == Level::Note) {
        findings.insert(0, Finding::ok("keys", "every key opens"));
    }
    Ok(findings)
}

/// Whether each format has the keys that it needs.
fn heads(policy: &Policy, stored: &Stored, now: OffsetDateTime) -> Vec<Finding> {
    let keys: Vec<_> = stored.keys.iter().map(|(key, _)| key.clone()).collect();
    let mut findings = Vec::new();
    for format in policy.key_pair_formats() {
        // A key that cannot be read exists all the same, and is reported as unreadable.
        let has = |status| {
            let broken = |(row, _): &(SigningKey, _)| {
                row.format == format.name() && keys::status(row, now) == Some(status)
            };
            ring::key(&keys, format, status, now).is_some() || stored.unreadable.iter().any(broken)
        };
        if !has(KeyStatus::Active) && !has(KeyStatus::Next) {
            let note = format!("there are none for {format} yet");
            findings.push(Finding::note("keys", note).advise("`gatepass serve` makes them"));
        } else if !has(KeyStatus::Next) || !has(KeyStatus::Active) {
            let which = if has(KeyStatus::Active) { "next" } else { "active" };
            findings.push(
                Finding::problem("keys", format!("the ring of {format} has no {which} key"))
                    .advise("start the service again: it makes the one that is missing"),
            );
        }
        let Some((active, _)) = ring::heads(&keys, format, now) else { continue };
        let since = active.activated_at.unwrap_or(active.published_at);
        // Only the format of new tokens is rotated.
        if policy.format == format.into() && now - since > policy.schedule.interval + ROTATION_GRACE {
            let message = format!(
                "{} is old: it has been signing since {}, longer than KEY_ROTATION_INTERVAL plus a day",
                active.id(),
                seconds(since)
            );
            findings.push(
                Finding::warning("keys", message)
                    .advise("a running service replaces it; without one, run `gatepass key rotate`"),
            );
        }
    }
    findings
}

fn single(policy: &Policy, key: &RingKey, root: Option<&KeyId>, now: OffsetDateTime) -> Vec<Finding> {
    let mut findings = Vec::new();
    let id = key.id();
    let Some(status) = key.status(now) else { return findings };
    let accepted = |root: &&KeyId| policy.roots_accepted.iter().any(|accepted| accepted.id() == **root);
    if root.is_some_and(|root| *root != policy.root.id()) && root.as_ref().is_some_and(accepted) {
        let message = format!("{id} is wrapped under a root key of TOKEN_SYMMETRIC_KEYS_ACCEPTED");
        findings.push(
            Finding::warning("keys", message)
                .advise("run `gatepass key rewrap` before you remove the former key"),
        );
    }
    if key.public.security_bits() < SECURITY_BITS {
        let message = format!("{id} has {} bits of security: enough until 2030", key.public.security_bits());
        let advice = "sooner or later choose EdDSA or ES256 as JWT_ALGORITHM";
        findings.push(Finding::note("keys", message).advise(advice));
    }
    if let (KeyStatus::Retiring, Some(until)) = (status, key.verifies_until)
        && until < now + SOON
    {
        let message = format!("{id} is about to go: it verifies until {}", seconds(until));
        findings.push(Finding::note("keys", message));
    }
    findings
}
