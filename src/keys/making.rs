//! Makes key pairs and wraps them under the root key.

use time::OffsetDateTime;

use super::{
    Error, Policy,
    reading::{format, is_in_force, status, unwrap},
};
use crate::{
    chain,
    store::{
        PoolConnection,
        signing_keys::{self, NewKey, SigningKey as Row},
    },
    token::{InvalidKey, KeyId, KeyPair, KeyPairFormat, KeyStatus, WrappingKey},
};

/// Makes the rings that are missing, and makes sure that all of them open.
pub(super) async fn prepare(
    conn: &mut PoolConnection,
    policy: &Policy,
    now: OffsetDateTime,
) -> Result<(), Error> {
    let rows = signing_keys::live(conn, now).await?;
    for format in policy.key_pair_formats() {
        // Whether they can be read or not: one that cannot is replaced with `retire`.
        let has = |what| rows.iter().any(|row| row.format == format.name() && status(row, now) == Some(what));
        if has(KeyStatus::Active) && has(KeyStatus::Next) {
            continue;
        }
        let active = Made::new(format, policy).await?;
        let next = Made::new(format, policy).await?;
        if signing_keys::found(conn, format.name(), &active.row(), &next.row(), now, &policy.cause).await? {
            tracing::info!(%format, active = active.id(), next = next.id(), "signing keys made");
        }
    }
    let formats: Vec<_> = policy.key_pair_formats().map(|format| format.name().to_owned()).collect();
    signing_keys::note_token_life(conn, &formats, policy.token_seconds(), &policy.cause).await?;
    rewrap(conn, policy).await?.check(policy)
}

/// The result of rewrapping private keys.
#[derive(Debug, Default)]
pub struct Rewrapped {
    /// The keys that have been rewrapped under the present root key.
    pub done: Vec<KeyId>,
    /// The keys that are still wrapped under another root key, and why.
    pub left: Vec<(Row, Error)>,
}

impl Rewrapped {
    /// Fails if a key of a format in force is left.
    pub(super) fn check(self, policy: &Policy) -> Result<(), Error> {
        for (row, error) in self.left {
            if is_in_force(&row, policy) {
                return Err(error);
            }
            // The key is of a former format, or of one of a later release. It is not needed here, so it is no reason
            // not to start.
            tracing::warn!(
                error = chain::cause(&error),
                "private key not rewrapped: its format is not in force"
            );
        }
        Ok(())
    }
}

pub(super) async fn rewrap(conn: &mut PoolConnection, policy: &Policy) -> Result<Rewrapped, Error> {
    let mut rewrapped = Rewrapped::default();
    let present = WrappingKey::new(&policy.root);
    for row in signing_keys::all(conn).await? {
        if row.wrapped_by.as_deref().is_none_or(|root| root == present.root().as_str()) {
            continue;
        }
        let Some((wrapped, root)) = signing_keys::wrapped(conn, &row.id).await? else { continue };
        let pair = match format(&row).and_then(|format| unwrap(policy, format, &row.id, &wrapped, &root)) {
            Ok(pair) => pair,
            Err(error) => {
                rewrapped.left.push((row, error));
                continue;
            }
        };
        let wrapped = present.wrap(&pair).map_err(Error::Generate)?;
        let new_root = present.root();
        if signing_keys::rewrap(conn, &row.id, &root, &wrapped, new_root.as_str(), &policy.cause).await? {
            tracing::info!(key = row.id, from = root, to = %new_root, "signing key rewrapped");
            rewrapped.done.push(pair.id().clone());
        }
    }
    Ok(rewrapped)
}

/// A new key that is not stored yet.
pub(super) struct Made {
    pair: KeyPair,
    public_key: String,
    wrapped: Vec<u8>,
    root: KeyId,
    token_seconds: i32,
}

impl Made {
    pub(super) async fn new(format: KeyPairFormat, policy: &Policy) -> Result<Self, Error> {
        // Making an RSA key takes long enough to hold up other requests.
        let pair = tokio::task::spawn_blocking(move || KeyPair::generate(format))
            .await
            .unwrap_or(Err(InvalidKey::Private))
            .map_err(Error::Generate)?;
        Ok(Self {
            public_key: pair.public_key().to_string(),
            wrapped: WrappingKey::new(&policy.root).wrap(&pair).map_err(Error::Generate)?,
            root: policy.root.id(),
            token_seconds: policy.token_seconds(),
            pair,
        })
    }

    fn id(&self) -> &str {
        self.pair.id().as_str()
    }

    pub(super) fn row(&self) -> NewKey<'_> {
        NewKey {
            id: self.id(),
            public_key: &self.public_key,
            wrapped_key: &self.wrapped,
            wrapped_by: self.root.as_str(),
            token_seconds: self.token_seconds,
        }
    }
}
