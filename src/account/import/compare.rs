//! `gatepass import --compare`: whether a file and the users here agree.
//!
//! Each record is compared with the user whom an import would find for it, in one snapshot that changes nothing and
//! locks nothing that others want. Only the ids of the users found are kept, 16 bytes each. A user who came from
//! elsewhere and is not among them is gone there. Differences are written by id and field, never by value.

use std::{
    collections::HashMap,
    io::{self, BufWriter, IntoInnerError, Read, Write},
    ops::Range,
    path::{Path, PathBuf},
};

use serde::Serialize;
use uuid::Uuid;

use super::{
    Checked, FieldError, ImportError, Record, Rules,
    merge::{Denied, Place, is_no_later_password, names, place},
    rejects,
    run::Records,
};
use crate::{
    account::{
        FullName, Roles,
        private_file::{self, NewFile},
    },
    password::foreign::Likeness,
    store::{
        self, PgConnection,
        imports::{self, Present},
    },
};

/// How many records are looked up at once.
const CHUNK: usize = 1_000;

/// How many users are read at once when looking for those who may be gone.
const PAGE: i64 = 10_000;

/// The fields that are compared. Times are not among them: they say which side is newer.
pub const FIELDS: [&str; 7] =
    ["username", "email", "full_name", "password_hash", "roles", "is_email_verified", "disabled"];

/// The result of a comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Records that match the user here.
    pub same: u64,
    /// Records that differ from a user who is older here: an import changes the user.
    pub newer: u64,
    /// Records that differ from a user who is as new here, or newer, or that differ only in the username, which never
    /// changes here: an import leaves the user as they are.
    pub older: u64,
    /// Records that differ from the user here and have no date: an import leaves the user as they are.
    pub undated: u64,
    /// Records of users who are not here.
    pub missing: u64,
    /// Records that an import rejects.
    pub rejected: u64,
    /// Users here who came from elsewhere and have no record.
    pub gone: u64,
    /// How often each of [`FIELDS`] differs.
    pub fields: [u64; FIELDS.len()],
}

impl Comparison {
    /// How many records were read.
    pub fn records(&self) -> u64 {
        self.same + self.newer + self.older + self.undated + self.missing + self.rejected
    }

    /// Whether both sides agree.
    pub fn agrees(&self) -> bool {
        self.records() == self.same && self.gone == 0
    }
}

/// One difference, as it is written to the file.
#[derive(Debug, Default, Serialize)]
struct Difference<'a> {
    what: &'static str,
    #[serde(rename = "_line", skip_serializing_if = "Option::is_none")]
    number: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    external_id: Option<&'a str>,
    /// The user's id here.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Uuid>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fields: Vec<&'static str>,
    #[serde(rename = "_reason", skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// The file of differences, one JSON object per line. Only its owner may read it.
struct Differences {
    path: Option<PathBuf>,
    /// Created for the first difference.
    file: Option<BufWriter<NewFile>>,
}

impl Differences {
    /// Removes the differences of an earlier comparison, which would pass for those of this one.
    fn begin(path: Option<&Path>) -> io::Result<Self> {
        path.map(private_file::remove).transpose()?;
        Ok(Self { path: path.map(Path::to_owned), file: None })
    }

    fn write(&mut self, difference: &Difference<'_>) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(BufWriter::new(NewFile::begin(path)?)),
        };
        serde_json::to_writer(&mut *file, difference)?;
        file.write_all(b"\n")
    }

    fn end(self) -> io::Result<()> {
        let Some(file) = self.file else { return Ok(()) };
        file.into_inner().map_err(IntoInnerError::into_error)?.finish()
    }
}

/// Compares records with the users. Differences go to a file, if one is given. Calls `seen` now and then with the
/// number of records read and their range of bytes of `input`.
///
/// # Errors
///
/// [`ImportError`].
pub async fn compare(
    conn: &mut PgConnection,
    input: impl Read + Send + 'static,
    rules: Rules,
    differences: Option<&Path>,
    mut seen: impl FnMut(u64, &Range<u64>),
) -> Result<Comparison, ImportError> {
    let mut records = Records::begin(input, rules, 0);
    let mut comparing = Comparing {
        comparison: Comparison::default(),
        differences: Differences::begin(differences).map_err(ImportError::Differences)?,
        found: Vec::new(),
    };
    let mut snapshot = store::snapshot(conn).await?;
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        while chunk.len() < CHUNK
            && let Some(record) = records.next().await?
        {
            chunk.push(record);
        }
        if chunk.is_empty() {
            break;
        }
        comparing.take(&mut snapshot, chunk).await?;
        seen(comparing.comparison.records(), records.bytes());
    }
    comparing.gone(&mut snapshot).await?;
    imports::end(snapshot, false).await?;
    comparing.differences.end().map_err(ImportError::Differences)?;
    Ok(comparing.comparison)
}

/// A comparison in progress.
struct Comparing {
    comparison: Comparison,
    differences: Differences,
    /// The users that have a record.
    found: Vec<Uuid>,
}

impl Comparing {
    fn note(&mut self, difference: &Difference<'_>) -> Result<(), ImportError> {
        self.differences.write(difference).map_err(ImportError::Differences)
    }

    async fn take(&mut self, conn: &mut PgConnection, chunk: Vec<Record>) -> Result<(), ImportError> {
        // A refused record still shows that its user is not gone.
        let refused = chunk.iter().filter(|record| record.user.is_err());
        let refused: Vec<_> = refused.filter_map(|record| record.external_id.clone()).collect();
        self.found.extend(imports::ids(conn, &refused).await?);
        let checked = chunk.iter().filter_map(|record| record.user.as_deref().ok());
        let mut places = Vec::new();
        for (user, holders) in checked.clone().zip(imports::holders(conn, &names(checked)).await?) {
            // The user is here even if the record's address is another user's.
            self.found.extend(holders.external_id);
            places.push(match place(user, &holders) {
                Place::New => Ok(None),
                Place::Known { id, is_email_taken } => Ok(Some((id, is_email_taken))),
                // This user has both names.
                Place::Same => {
                    self.found.extend(holders.username);
                    Ok(holders.username.map(|id| (id, false)))
                }
                Place::Taken(denied) => Err(vec![denied.told()]),
            });
        }
        let known: Vec<_> =
            places.iter().filter_map(|place| place.as_ref().ok()?.map(|(id, _)| id)).collect();
        let users = imports::present(conn, &known).await?;
        let users: HashMap<_, _> = users.iter().map(|user| (user.id, user)).collect();
        let mut places = places.into_iter();
        for Record { number, external_id, user, .. } in &chunk {
            let (number, external_id) = (Some(*number), external_id.as_deref());
            let difference = Difference { number, external_id, ..Difference::default() };
            let (user, place) = match user {
                Ok(user) => (Some(user), places.next().unwrap_or(Ok(None))),
                Err(errors) => (None, Err(errors.clone())),
            };
            match (user, place) {
                (_, Err(errors)) => self.reject(difference, &errors)?,
                (Some(user), Ok(Some((id, is_email_taken)))) if let Some(here) = users.get(&id) => {
                    // An import takes the address only from a newer record.
                    if is_email_taken && user.updated_at.is_some_and(|at| at > here.updated_at) {
                        self.reject(difference, &[Denied::EmailTaken.told()])?;
                    } else {
                        self.hold(difference, user, here)?;
                    }
                }
                (_, Ok(_)) => {
                    self.comparison.missing += 1;
                    self.note(&Difference { what: "missing", ..difference })?;
                }
            }
        }
        Ok(())
    }

    fn reject(&mut self, difference: Difference<'_>, errors: &[FieldError]) -> Result<(), ImportError> {
        self.comparison.rejected += 1;
        let reason = Some(rejects::reason(errors));
        self.note(&Difference { what: "rejected", reason, ..difference })
    }

    /// Compares a record with its user.
    fn hold(
        &mut self,
        difference: Difference<'_>,
        user: &Checked,
        here: &Present,
    ) -> Result<(), ImportError> {
        let differs = differing(user, here);
        let comparison = &mut self.comparison;
        if !differs.contains(&true) {
            comparison.same += 1;
            return Ok(());
        }
        for (count, differs) in comparison.fields.iter_mut().zip(differs) {
            *count += u64::from(differs);
        }
        let ([_username, others @ ..], [.., roles, _, disabled]) = (differs, differs);
        let is_newer = |at| {
            at > here.updated_at && others.contains(&true) || at > here.administered_at && (roles || disabled)
        };
        // An import never changes a user whose record has no external id.
        let (what, count) = match user.updated_at.filter(|_| user.external_id.is_some()) {
            None => ("undated", &mut comparison.undated),
            Some(at) if is_newer(at) => ("newer", &mut comparison.newer),
            Some(_) => ("older", &mut comparison.older),
        };
        *count += 1;
        let fields = FIELDS.into_iter().zip(differs).filter(|(_, differs)| *differs);
        let fields = fields.map(|(name, _)| name).collect();
        let id = Some(here.id);
        self.note(&Difference { what, id, fields, ..difference })
    }

    /// Counts the users who came from elsewhere and had no record.
    async fn gone(&mut self, conn: &mut PgConnection) -> Result<(), ImportError> {
        self.found.sort_unstable();
        let mut after = Uuid::nil();
        loop {
            let users = imports::foreign(conn, after, PAGE).await?;
            let Some((last, _)) = users.last() else { return Ok(()) };
            after = *last;
            for (id, external_id) in &users {
                if self.found.binary_search(id).is_err() {
                    self.comparison.gone += 1;
                    let (id, external_id) = (Some(*id), Some(&**external_id));
                    self.note(&Difference { what: "gone", external_id, id, ..Difference::default() })?;
                }
            }
        }
    }
}

/// Which of [`FIELDS`] differ. A field that the record does not have does not differ.
fn differing(user: &Checked, present: &Present) -> [bool; FIELDS.len()] {
    [
        !user.is_username_made && user.username.as_str() != present.username,
        user.email.as_str() != present.email,
        user.full_name
            .as_ref()
            .map(FullName::as_str)
            .is_some_and(|name| present.full_name.as_deref() != Some(name)),
        is_other_password(user, present),
        user.roles.as_ref().map(Roles::as_slice).is_some_and(|roles| roles != present.roles),
        user.is_email_verified.is_some_and(|flag| flag != present.is_email_verified),
        user.disabled.is_some_and(|flag| flag != present.disabled),
    ]
}

/// Whether the record has a different password than the user. As in the import, one that the record dates no later than
/// the user's does not count. If the record does not date it, a hash that was wrapped, replaced at a login, or set here
/// cannot show whether it differs.
fn is_other_password(user: &Checked, present: &Present) -> bool {
    let Some(password) = &user.password else { return false };
    let likeness = present.password_hash.as_ref().map_or(Likeness::Other, |hash| password.likeness(hash));
    match likeness {
        Likeness::Same => false,
        Likeness::Other | Likeness::Possible if user.password_changed_at.is_some() => {
            !is_no_later_password(user, present)
        }
        Likeness::Other => true,
        // An import would take it for a different password.
        Likeness::Possible => user.updated_at.is_some_and(|at| at > present.updated_at),
    }
}
