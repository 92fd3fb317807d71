//! Introspection clients: services that may introspect tokens. Operators create and delete them.

use std::net::IpAddr;

use rand_core::CryptoRng;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    Cause, Error, FieldError,
    throttle::{Kind, Throttle},
};
pub use crate::store::clients::Client;
use crate::{
    random,
    store::{PgPool, clients},
    token::client_secret::{self, ClientSecret},
};

/// Requires 1 to 32 of `a-z A-Z 0-9 _ . -`, beginning with a letter or digit. A name cannot be mistaken for an id,
/// which is longer.
fn check_name(name: &str) -> Result<(), FieldError> {
    let refuse = |code, message| Err(FieldError::new("name", code, message));
    match name.chars().count() {
        0 => refuse("too_short", "needs 1 to 32 characters"),
        33.. => refuse("too_long", "needs 1 to 32 characters"),
        _ if !name.starts_with(|c: char| c.is_ascii_alphanumeric())
            || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b)) =>
        {
            refuse(
                "invalid_characters",
                "needs a letter or digit first, then a-z, A-Z, 0-9, `_`, `.` and `-`",
            )
        }
        _ => Ok(()),
    }
}

/// The introspection clients, over one database.
#[derive(Clone, Debug)]
pub struct Clients {
    db: PgPool,
    cause: Cause,
}

impl Clients {
    /// The clients in `db`.
    pub fn new(db: PgPool) -> Self {
        Self { db, cause: Cause::default() }
    }

    /// The same clients, with changes made on behalf of `cause`, which the history records.
    #[must_use]
    pub fn caused_by(self, cause: Cause) -> Self {
        Self { cause, ..self }
    }

    /// Creates a client. Its secret is returned here and cannot be retrieved later.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`], [`Error::ClientNameTaken`].
    pub async fn create(
        &self,
        name: &str,
        now: OffsetDateTime,
        rng: &mut impl CryptoRng,
    ) -> Result<(Client, ClientSecret), Error> {
        check_name(name).map_err(|error| Error::Invalid(vec![error]))?;
        let secret = ClientSecret::from_bytes(random::bytes(rng));
        let client = Client { id: random::uuid_v7(now, rng), name: name.to_owned(), created_at: now };
        let (hash, cause) = (secret.hash(), &self.cause);
        self.db.write(async |mut conn| clients::insert(&mut conn, &client, &hash, cause).await).await?;
        tracing::info!(client_id = %client.id, "client created");
        Ok((client, secret))
    }

    /// All clients, oldest first.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list(&self) -> Result<Vec<Client>, Error> {
        Ok(self.db.read(async |mut conn| clients::all(&mut conn).await).await?)
    }

    /// Deletes the client with this id or name; its next request is refused by every replica.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchClient`].
    pub async fn delete(&self, id_or_name: &str) -> Result<Client, Error> {
        let id = id_or_name.parse::<uuid::fmt::Hyphenated>().ok().map(Uuid::from);
        let cause = &self.cause;
        let deleting =
            self.db.write(async |mut conn| clients::delete(&mut conn, id, id_or_name, cause).await);
        let client = deleting.await?.ok_or(Error::NoSuchClient)?;
        tracing::info!(client_id = %client.id, "client deleted");
        Ok(client)
    }

    /// Checks that `secret` belongs to the client `id`. The client is read anew each time, so a deleted client is
    /// unknown at once. The cost is one lookup by primary key and one SHA-256, also for an unknown client. `throttle`
    /// counts a failure for the address `ip`, never for the client, since others could then lock the client out.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidClient`], the same for an unknown client and a wrong secret, replaced by
    /// [`Error::TooManyAttempts`] after too many of these.
    pub async fn authenticate(
        &self,
        id: Uuid,
        secret: &str,
        throttle: &Throttle,
        ip: Option<IpAddr>,
        now: OffsetDateTime,
    ) -> Result<(), Error> {
        let stored = self.db.read(async |mut conn| clients::secret_hash(&mut conn, id).await).await?;
        if client_secret::is_secret(secret, stored.as_ref()) {
            Ok(())
        } else {
            Err(throttle.count(Kind::Client, ip, Error::InvalidClient, now).await)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for name in ["a", "7", "orders", "Orders.api_v2-eu", &"x".repeat(32)] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        for (name, code) in [
            ("", "too_short"),
            (&*"x".repeat(33), "too_long"),
            ("019aa3f0-5b7c-7c3e-9d0a-3f2a1b4c5d6e", "too_long"),
            ("-orders", "invalid_characters"),
            (".orders", "invalid_characters"),
            ("orders api", "invalid_characters"),
            ("orders:api", "invalid_characters"),
            ("örders", "invalid_characters"),
            ("orders\n", "invalid_characters"),
        ] {
            assert_eq!(check_name(name).unwrap_err().code, code, "{name:?}");
        }
    }
}
