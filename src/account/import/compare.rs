//! Whether a file and the users here agree: `gatepass import --compare`.
//!
//! Each record is held against the user whom an import would find for it, in one snapshot that changes nothing and locks
//! nothing that others want. Of the users who were found only the ids are kept, 16 bytes each; those who come from
//! elsewhere and are not among them have gone there. What differs is written down by id and field, never by value.

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
    merge::{Denied, Place, is_no_later_password, place},
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
        imports::{self, Names, Present},
    },
};

/// How many records are looked up at once.
const CHUNK: usize = 1_000;

/// How many users are read at once, of those who may have gone.
const PAGE: i64 = 10_000;

/// What is compared. Times are not: they say who is newer.
pub const FIELDS: [&str; 7] =
    ["username", "email", "full_name", "password_hash", "roles", "is_email_verified", "disabled"];

/// What came of a comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Records whose user here is as they say.
    pub same: u64,
    /// Records whose user differs and is older here: an import changes that one.
    pub newer: u64,
    /// Records whose user differs and is as new here, or newer, or in the username alone, which never changes here: an
    /// import leaves that one as it is.
    pub older: u64,
    /// Records whose user differs, and that do not say how old they are: an import leaves that one as it is.
    pub undated: u64,
    /// Records of users who are not here.
    pub missing: u64,
    /// Records that an import refuses.
    pub refused: u64,
    /// Users here who have come from elsewhere and whom no record is about.
    pub gone: u64,
    /// How often each of [`FIELDS`] differs.
    pub fields: [u64; FIELDS.len()],
}

impl Comparison {
    /// How many records were read.
    pub fn records(&self) -> u64 {
        self.same + self.newer + self.older + self.undated + self.missing + self.refused
    }

    /// Whether both sides say the same.
    pub fn agrees(&self) -> bool {
        self.records() == self.same && self.gone == 0
    }
}

/// One difference, as it is written down.
#[derive(Debug, Default, Serialize)]
struct Difference<'a> {
    what: &'static str,
    #[serde(rename = "_line", skip_serializing_if = "Option::is_none")]
    number: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    external_id: Option<&'a str>,
    /// The user's, here.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Uuid>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fields: Vec<&'static str>,
    #[serde(rename = "_reason", skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// Where differences go, one JSON object a line. Nobody but its owner may read it.
struct Differences {
    path: Option<PathBuf>,
    /// Made when there is the first one.
    file: Option<BufWriter<NewFile>>,
}

impl Differences {
    /// Removes those of a former comparison, which would pass for this one's.
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

/// Holds records against the users. What differs goes to a file, if there is a place for it; `seen` hears now and then how
/// many records were read, and from which byte of `input` to which.
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

/// A comparison on its way.
struct Comparing {
    comparison: Comparison,
    differences: Differences,
    /// Users whom a record is about.
    found: Vec<Uuid>,
}

impl Comparing {
    fn note(&mut self, difference: &Difference<'_>) -> Result<(), ImportError> {
        self.differences.write(difference).map_err(ImportError::Differences)
    }

    async fn take(&mut self, conn: &mut PgConnection, chunk: Vec<Record>) -> Result<(), ImportError> {
        let (mut names, mut refused) = (Names::default(), Vec::new());
        for record in &chunk {
            match &record.user {
                Ok(user) => {
                    names.external_ids.push(user.external_id.clone());
                    names.usernames.push(user.username.as_str().to_owned());
                    names.emails.push(user.email.as_str().to_owned());
                }
                // Their users have not gone for that.
                Err(_) => refused.extend(record.external_id.clone()),
            }
        }
        self.found.extend(imports::ids(conn, &refused).await?);
        let mut places = Vec::with_capacity(names.usernames.len());
        let checked = chunk.iter().filter_map(|record| record.user.as_ref().ok());
        for (user, holders) in checked.zip(imports::holders(conn, &names).await?) {
            // The user of a record whose address is another's is here all the same.
            self.found.extend(holders.external_id);
            places.push(match place(user, &holders) {
                Place::New => Ok(None),
                Place::Known { id, is_email_taken } => Ok(Some((id, is_email_taken))),
                // Both names are this one's.
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
                (_, Err(errors)) => self.refuse(difference, &errors)?,
                (Some(user), Ok(Some((id, is_email_taken)))) if let Some(here) = users.get(&id) => {
                    // Where it is no newer, nobody wants the address.
                    if is_email_taken && user.updated_at.is_some_and(|at| at > here.updated_at) {
                        self.refuse(difference, &[Denied::EmailTaken.told()])?;
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

    fn refuse(&mut self, difference: Difference<'_>, errors: &[FieldError]) -> Result<(), ImportError> {
        self.comparison.refused += 1;
        let reason = Some(rejects::reason(errors));
        self.note(&Difference { what: "refused", reason, ..difference })
    }

    /// Holds a record against its user.
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
        // Who has no id there is never changed by an import.
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

    /// Counts those whom no record was about.
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

/// Which of [`FIELDS`] differ. What the record does not say does not.
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

/// Whether the record has another password than the user. One that it does not date later is none (as in the import); and
/// where it has no date, a hash that was wrapped, made anew at a login, or set here does not show it.
fn is_other_password(user: &Checked, present: &Present) -> bool {
    let Some(password) = &user.password else { return false };
    let likeness = present.password_hash.as_ref().map_or(Likeness::Other, |hash| password.likeness(hash));
    match likeness {
        Likeness::Same => false,
        Likeness::Other | Likeness::Possible if user.password_changed_at.is_some() => {
            !is_no_later_password(user, present)
        }
        Likeness::Other => true,
        // An import would take it for another one.
        Likeness::Possible => user.updated_at.is_some_and(|at| at > present.updated_at),
    }
}
