//! The seals of the history: they make later tampering evident, even by the owner of the database.
//!
//! A seal covers a batch of rows. It holds the SHA-256 of each row, a hash of all of these, and a hash of that one
//! together with the previous seal. So a row that is altered, deleted or added to a batch is found and named, and no
//! seal can be replaced without replacing every later one. The owner of the database can do that too, from some seal to
//! the end, but cannot change the hash of a seal where it was logged. Each seal's hash is logged when the seal is made,
//! and [`History::verify`] can check the chain against one of them.
//!
//! Writers never wait for a seal. The transaction that writes a row also puts it in a queue, so a row that is committed
//! late is sealed late, whatever its id. Of several replicas one seals, and the others find nothing to do. Nothing
//! protects a row until it is sealed, which takes up to a minute.
//!
//! Personal data must be deleted with the user, and the seal must remain valid all the same. So names, addresses and
//! browsers are in a table of their own, next to a random salt. The row of the history, and therefore the seal, has
//! only the hash of both, which reveals nothing without the salt. Verification accepts that hash without the data if
//! the history also records that the user was deleted.
//!
//! A month past the operator's retention is dropped as a whole. That is an event of the history like any other, which
//! names the rows that are gone; their seals stay in the chain.

use std::collections::{HashMap, HashSet};

use aws_lc_rs::digest;
use tracing::Level;

use super::{Error, History};
use crate::{
    hex,
    store::history::{self, Inspection, Personal, Previous, Seal, Sealable},
};

/// How many rows one seal covers at most.
const BATCH: i64 = 1000;
/// How many seals are read at once.
const SEALS: i64 = 20;
/// How many problems are reported at most.
const MAX_PROBLEMS: usize = 100;

type Hash = [u8; 32];

/// The last seal of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Head {
    /// Its number.
    pub seal: i64,
    /// Its hash; serialised in hexadecimal.
    #[serde(serialize_with = "in_hex")]
    pub hash: Hash,
}

fn in_hex<S: serde::Serializer>(hash: &Hash, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex::encode(hash))
}

impl Head {
    /// The hash in hexadecimal.
    pub fn hash(&self) -> String {
        hex::encode(&self.hash)
    }
}

/// What is wrong with the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, thiserror::Error)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Problem {
    /// A row differs from what was sealed.
    #[error("row {row} was altered")]
    Altered {
        /// Its id.
        row: i64,
    },
    /// A row is gone.
    #[error("row {row} is missing")]
    Missing {
        /// Its id.
        row: i64,
    },
    /// A row is present that was not written in the usual way.
    #[error("row {row} was not inserted in the usual way")]
    Inserted {
        /// Its id.
        row: i64,
    },
    /// The personal data of a row differ from what was sealed, or are attributed to another user.
    #[error("the personal data of row {row} were altered")]
    PersonalAltered {
        /// Its id.
        row: i64,
    },
    /// The personal data of a row are gone, and the history does not record that the user was deleted.
    #[error("the personal data of row {row} are missing, and the user was not deleted")]
    PersonalMissing {
        /// Its id.
        row: i64,
    },
    /// A seal does not follow from the one before.
    #[error("seal {seal} was altered")]
    SealAltered {
        /// Its number.
        seal: i64,
    },
    /// A seal is gone.
    #[error("seal {seal} is missing")]
    SealMissing {
        /// Its number.
        seal: i64,
    },
    /// No seal has the hash that the caller gave.
    #[error("no seal has the hash that was given: the chain was truncated or rebuilt")]
    HeadUnknown,
}

/// The result of a verification.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Verification {
    /// Seals in the chain.
    pub seals: u64,
    /// Rows that match what was sealed.
    pub rows: u64,
    /// Sealed rows that were dropped with their month.
    pub given_up: u64,
    /// Rows that no seal protects yet.
    pub unsealed: u64,
    /// The last seal.
    pub head: Option<Head>,
    /// What is wrong, in the order in which it was found, up to a hundred problems.
    pub problems: Vec<Problem>,
}

/// The level at which each seal's head is logged.
const HEADS: Level = Level::INFO;

/// A warning if the log leaves out the heads. It is in this module because log filters can differ from module to
/// module.
pub fn unlogged_heads() -> Option<&'static str> {
    (!tracing::enabled!(HEADS)).then_some(concat!(
        "RUST_LOG keeps the seals of the history out of the log: whoever owns the database may then replace the history \
         and all of its seals, and nobody sees it. Add `",
        module_path!(),
        "=info` to it"
    ))
}

impl History {
    /// Seals the queued rows. Returns how many there were, and the last seal if there is a new one. If another replica
    /// holds the lock, leaves the rows to that one.
    ///
    /// # Errors
    ///
    /// When the database fails; what was sealed until then stays sealed.
    pub async fn seal(&self) -> Result<(u64, Option<Head>), Error> {
        let mut conn = self.background.acquire().await?;
        let mut sealed = (0, None);
        while let Some(seal) = history::seal(&mut conn, BATCH, next_seal).await? {
            let head = Head { seal: seal.number, hash: seal.hash };
            let rows = seal.ids.len();
            // In the log it is out of reach of the owner of the database.
            tracing::event!(HEADS, seal = head.seal, hash = head.hash(), rows, "history sealed");
            sealed = (sealed.0 + rows as u64, Some(head));
        }
        Ok(sealed)
    }

    /// The last seal, if there is one.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn head(&self) -> Result<Option<Head>, Error> {
        let last = history::last_seal(&mut *self.background.acquire().await?).await?;
        Ok(last.map(|(seal, hash)| Head { seal, hash }))
    }

    /// Checks the history against its seals, and the seals against `head`, the hash of a seal that was the last one
    /// when the hash was noted.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn verify(&self, head: Option<Hash>) -> Result<Verification, Error> {
        let mut conn = self.db.acquire().await?;
        let mut inspection = history::inspect(&mut conn).await?;
        let given_up = inspection.given_up().await?;
        let mut found = Verification::default();
        let mut previous = Head { seal: 0, hash: [0; 32] };
        let mut is_head_known = head.is_none();
        loop {
            let seals = inspection.seals(previous.seal, SEALS, BATCH).await?;
            if seals.is_empty() {
                break;
            }
            for seal in seals {
                if seal.number != previous.seal + 1 {
                    found.note(Problem::SealMissing { seal: previous.seal + 1 });
                } else if seal.hash != seal_hash(&previous.hash, &seal) {
                    found.note(Problem::SealAltered { seal: seal.number });
                }
                check(&mut inspection, &seal, &given_up, &mut found).await?;
                previous = Head { seal: seal.number, hash: seal.hash };
                is_head_known |= head == Some(seal.hash);
                found.seals += 1;
                found.head = Some(previous);
            }
        }
        if !is_head_known {
            found.note(Problem::HeadUnknown);
        }
        for row in inspection.strangers(MAX_PROBLEMS as i64).await? {
            found.note(Problem::Inserted { row });
        }
        for row in inspection.lost_before_seal(MAX_PROBLEMS as i64).await? {
            found.note(Problem::Missing { row });
        }
        found.unsealed = inspection.unsealed().await?.cast_unsigned();
        Ok(found)
    }
}

impl Verification {
    fn note(&mut self, problem: Problem) {
        // A seal may be wrong in more than one way.
        let is_known =
            matches!(problem, Problem::SealAltered { .. }) && self.problems.last() == Some(&problem);
        if self.problems.len() < MAX_PROBLEMS && !is_known {
            self.problems.push(problem);
        }
    }
}

/// Checks the rows of a seal against it.
async fn check(
    inspection: &mut Inspection<'_>,
    seal: &Seal,
    given_up: &[(i64, i64)],
    found: &mut Verification,
) -> Result<(), Error> {
    if seal.ids.is_empty() {
        // It covers more rows than any that this service makes.
        found.note(Problem::SealAltered { seal: seal.number });
        return Ok(());
    }
    let is_given_up = |id: i64| given_up.iter().any(|(first, end)| (*first..*end).contains(&id));
    let rows = inspection.rows(&seal.ids).await?;
    let Some(hashes) = &seal.row_hashes else {
        if !seal.ids.iter().all(|id| is_given_up(*id)) {
            found.note(Problem::SealAltered { seal: seal.number });
        }
        rows.iter().for_each(|row| found.note(Problem::Inserted { row: row.id }));
        found.given_up += seal.ids.len() as u64;
        return Ok(());
    };
    let (hashes, rest) = hashes.as_chunks::<32>();
    if !rest.is_empty()
        || hashes.len() != seal.ids.len()
        || sha256(&[hashes.as_flattened()]) != seal.rows_hash
    {
        found.note(Problem::SealAltered { seal: seal.number });
        return Ok(());
    }
    let mut sound = Vec::new();
    let mut rows = rows.into_iter().peekable();
    for (id, hash) in seal.ids.iter().zip(hashes) {
        match rows.next_if(|row| row.id == *id) {
            None if is_given_up(*id) => found.given_up += 1,
            None => found.note(Problem::Missing { row: *id }),
            Some(row) if row_hash(&row) != *hash => found.note(Problem::Altered { row: *id }),
            Some(row) => sound.push(row),
        }
        while rows.next_if(|row| row.id == *id).is_some() {
            found.note(Problem::Inserted { row: *id });
        }
    }
    found.rows += sound.len() as u64;
    check_personal(inspection, &sound, found).await
}

async fn check_personal(
    inspection: &mut Inspection<'_>,
    rows: &[Sealable],
    found: &mut Verification,
) -> Result<(), Error> {
    let ids: Vec<_> = rows.iter().map(|row| row.id).collect();
    let personal = inspection.personal(&ids).await?;
    let personal: HashMap<_, _> = personal.into_iter().map(|data| (data.history_id, data)).collect();
    let is_missing = |row: &&Sealable| row.personal_hash.is_some() && !personal.contains_key(&row.id);
    let users: HashSet<_> = rows.iter().filter(is_missing).filter_map(|row| row.user_id).collect();
    let gone = inspection.gone(&users.into_iter().collect::<Vec<_>>()).await?;
    for row in rows {
        let sealed = row.personal_hash.as_deref();
        match personal.get(&row.id) {
            // Under another user, the data would be deleted or kept when they should not be. Next to a row that had
            // none, they report something that no one did.
            Some(data) if sealed != Some(&personal_hash(data)[..]) || row.user_id != Some(data.user_id) => {
                found.note(Problem::PersonalAltered { row: row.id });
            }
            None if sealed.is_some() && !row.user_id.is_some_and(|user| gone.contains(&user)) => {
                found.note(Problem::PersonalMissing { row: row.id });
            }
            _ => {}
        }
    }
    Ok(())
}

/// The seal of these rows, following `previous`.
fn next_seal(previous: &Previous, rows: &[Sealable]) -> Seal {
    let row_hashes: Vec<u8> = rows.iter().flat_map(row_hash).collect();
    let seal = Seal {
        // If somebody has forged a seal with the last number that there can be, the insert fails: it is taken.
        number: previous.number.saturating_add(1),
        ids: rows.iter().map(|row| row.id).collect(),
        rows_hash: sha256(&[&row_hashes]),
        row_hashes: Some(row_hashes),
        hash: [0; 32],
        sealed_at: previous.now,
    };
    Seal { hash: seal_hash(&previous.hash, &seal), ..seal }
}

fn seal_hash(previous: &Hash, seal: &Seal) -> Hash {
    let micros = micros(seal.sealed_at);
    sha256(&[b"gatepass history seal v1", previous, &seal.number.to_be_bytes(), &micros, &seal.rows_hash])
}

/// The hash of every column, each preceded by its length so that nothing can move from one column to the next.
fn row_hash(row: &Sealable) -> Hash {
    let text = |text: &Option<String>| text.as_ref().map(|text| text.as_bytes().to_vec());
    let columns = [
        Some(row.id.to_be_bytes().to_vec()),
        Some(row.table_name.as_bytes().to_vec()),
        Some(row.operation.as_bytes().to_vec()),
        text(&row.row_id),
        row.user_id.map(|id| id.as_bytes().to_vec()),
        Some(row.changed_data.as_bytes().to_vec()),
        row.personal_hash.clone(),
        Some(micros(row.changed_at).to_vec()),
        text(&row.actor),
        text(&row.request_id),
        Some(row.database_user.as_bytes().to_vec()),
    ];
    let mut message = b"gatepass history row v1".to_vec();
    for column in columns {
        // `u64::MAX` stands for a null: no column is that long.
        let length = column.as_ref().map_or(u64::MAX, |column| column.len() as u64);
        message.extend(length.to_be_bytes());
        message.extend(column.unwrap_or_default());
    }
    sha256(&[&message])
}

/// The hash that the trigger computes when it writes the row.
fn personal_hash(personal: &Personal) -> Hash {
    sha256(&[personal.salt.as_bytes(), personal.changed_data.as_bytes()])
}

/// Microseconds since 1970, the precision of Postgres.
fn micros(at: time::OffsetDateTime) -> [u8; 16] {
    (at.unix_timestamp_nanos() / 1000).to_be_bytes()
}

fn sha256(parts: &[&[u8]]) -> Hash {
    let mut context = digest::Context::new(&digest::SHA256);
    parts.iter().for_each(|part| context.update(part));
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    fn row() -> Sealable {
        Sealable {
            id: 7,
            table_name: "users".into(),
            operation: "UPDATE".into(),
            row_id: Some("a".into()),
            user_id: None,
            changed_data: "{}".into(),
            personal_hash: None,
            changed_at: datetime!(2026-01-02 03:04:05.678901 UTC),
            actor: Some("bc".into()),
            request_id: None,
            database_user: "postgres".into(),
        }
    }

    #[test]
    fn the_row_hash_covers_every_column_unambiguously() {
        let changes: [fn(&mut Sealable); 13] = [
            |_| {},
            |row| row.id = 8,
            |row| row.table_name = "user".into(),
            |row| row.operation = "sUPDATE".into(),
            |row| row.row_id = None,
            |row| row.row_id = Some(String::new()),
            |row| row.user_id = Some(uuid::Uuid::nil()),
            |row| row.changed_data = "{ }".into(),
            |row| row.personal_hash = Some(vec![0; 32]),
            |row| row.changed_at += time::Duration::microseconds(1),
            |row| (row.actor, row.request_id) = (Some("b".into()), Some("c".into())),
            |row| (row.actor, row.request_id) = (None, Some("bc".into())),
            |row| row.database_user = "postgre".into(),
        ];
        let hashes: HashSet<_> = changes
            .iter()
            .map(|change| {
                let mut row = row();
                change(&mut row);
                row_hash(&row)
            })
            .collect();
        assert_eq!(hashes.len(), changes.len());
    }

    #[test]
    fn a_seal_depends_on_its_predecessor_number_time_and_rows() {
        let previous = Previous { number: 1, hash: [1; 32], now: datetime!(2026-01-02 03:04:05.678901 UTC) };
        let later = previous.now + time::Duration::microseconds(1);
        let hashes: HashSet<_> = [
            next_seal(&previous, &[row()]),
            next_seal(&Previous { number: 2, ..previous }, &[row()]),
            next_seal(&Previous { hash: [2; 32], ..previous }, &[row()]),
            next_seal(&Previous { now: later, ..previous }, &[row()]),
            next_seal(&previous, &[row(), row()]),
        ]
        .map(|seal| seal.hash)
        .into();
        assert_eq!(hashes.len(), 5);
    }
}
