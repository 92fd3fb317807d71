//! `gatepass import`: reads users from a file.
//!
//! One thread reads the records and turns each, whatever its format, into a user that has passed every check
//! ([`reader`], with one file per format). The other end takes up to a thousand of them at a time. The pool
//! [wraps](crate::password::foreign) fast hashes. Then one transaction looks up which users exist, copies the new ones,
//! updates those who are newer in the file, notes the progress, and writes the refused records to their file. So the
//! database always matches the noted progress, and an import that was killed resumes from there when it is run again.
//!
//! [`Accounts::put`](super::Accounts::put) takes a single user from an administrator's request, by the same rules.

mod auth0;
mod compare;
mod django;
mod document;
mod draft;
mod firebase;
mod json;
mod keycloak;
mod merge;
mod object;
mod one;
mod own;
mod reader;
mod rejects;
mod run;
mod supabase;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read},
    ops::Range,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rand_core::CryptoRng;
use serde_json::{Map, Value};
use time::OffsetDateTime;

pub use self::{
    compare::{Comparison, FIELDS, compare},
    firebase::hash_config,
    one::Outcome,
    run::WRAPPED_CHUNK,
};
pub(super) use self::{draft::Checked, merge::new_user};
use self::{
    draft::Draft,
    json::Fields,
    merge::Made,
    object::Object,
    reader::Original,
    rejects::Rejects,
    run::{Records, Run},
};
use super::{Cause, Email, Error, FieldError, FullName, Roles, Username};
pub use crate::store::imports::{Progress, Source};
use crate::{
    password::{
        Params, Peppers, Pool,
        foreign::{BareKind, FirebaseProject, Imported, Refused as RefusedHash},
    },
    store::{self, PgConnection, imports},
    terminal::plain_start,
};

/// The format of the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The format of this service, one JSON object per line.
    Jsonl,
    /// The format of this service, as CSV with a header row.
    Csv,
    /// Auth0's export.
    Auth0,
    /// `firebase auth:export`.
    Firebase,
    /// A realm of Keycloak.
    Keycloak,
    /// Supabase's `auth.users`, as CSV or JSON.
    Supabase,
    /// Django's `auth_user`, as CSV or from `dumpdata`.
    Django,
    /// Rows of a Postgres database, one JSON object per line: with this service's names, or with those of the usual
    /// course.
    Database,
}

impl Format {
    /// Whether the hashes may be bare hexadecimal.
    pub fn may_be_bare(self) -> bool {
        !matches!(self, Self::Auth0 | Self::Firebase | Self::Keycloak)
    }

    /// All formats that a file may have, with their names.
    pub const FILES: [(&str, Self); 7] = [
        ("jsonl", Self::Jsonl),
        ("csv", Self::Csv),
        ("auth0", Self::Auth0),
        ("firebase", Self::Firebase),
        ("keycloak", Self::Keycloak),
        ("supabase", Self::Supabase),
        ("django", Self::Django),
    ];
}

/// How records are read and checked.
#[derive(Debug)]
pub struct Rules {
    /// Their format.
    pub format: Format,
    /// Whether a record may give the role `admin`.
    pub allow_admin: bool,
    /// Which kind of hash bare hexadecimal is.
    pub bare: Option<BareKind>,
    /// The parameters of Firebase's hashes.
    pub firebase: Option<FirebaseProject>,
    /// This service's peppers, for its own hashes on their way back.
    pub peppers: Peppers,
    /// The cost of this service's own hashes, which foreign ones of the same kind may have too. `None`: only the limits
    /// for any foreign hash apply.
    pub params: Option<Params>,
    /// The time of the import.
    pub now: OffsetDateTime,
    /// What was left out.
    pub left_out: LeftOut,
}

/// What was read and left out. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct LeftOut(Arc<Mutex<Others>>);

impl LeftOut {
    /// What was left out until now.
    pub fn lock(&self) -> MutexGuard<'_, Others> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The roles that no user here gets, and the records of which no user is made.
#[derive(Debug, Default)]
pub struct Others {
    roles: BTreeSet<String>,
    /// How many records there are of each model.
    models: BTreeMap<String, u64>,
}

impl Others {
    /// How many roles are named.
    const ROLES: usize = 10;
    /// How many models are named: all those of most projects, since it may be the users' that is among them.
    const MODELS: usize = 100;

    /// The roles whose names are not valid here, for people. `None` if there are none.
    pub fn roles(&self) -> Option<String> {
        listed(self.roles.iter().map(|role| format!("\"{}\"", shown_name(role))), Self::ROLES, ", ")
    }

    /// The models whose records are not users, and how many records that is, for people. `None` if there are none.
    pub fn models(&self) -> Option<String> {
        let told = self.models.iter().map(|(model, count)| format!("{} ({count})", shown_name(model)));
        listed(told, Self::MODELS, ", ")
    }
}

/// The first of some items, and how many more there are. `None` if there are none.
fn listed(
    mut items: impl ExactSizeIterator<Item = String>,
    at_most: usize,
    separator: &str,
) -> Option<String> {
    let mut told: Vec<_> = items.by_ref().take(at_most).collect();
    if items.len() > 0 {
        told.push(format!("and {} more", items.len()));
    }
    (!told.is_empty()).then(|| told.join(separator))
}

/// A name that a file gives, for people: longer ones than any that is known are cut.
fn shown_name(name: &str) -> String {
    plain_start(name, 64)
}

impl Rules {
    /// Rules for a single record of this service's own format.
    fn ours(peppers: Peppers, params: Option<Params>, allow_admin: bool, now: OffsetDateTime) -> Self {
        Self {
            format: Format::Jsonl,
            allow_admin,
            bare: None,
            firebase: None,
            peppers,
            params,
            now,
            left_out: LeftOut::default(),
        }
    }

    /// Reads a hash; `salt` is the record's salt.
    fn password(&self, text: &str, salt: &str) -> Result<Imported, RefusedHash> {
        Imported::of_kind(text, self.bare.as_ref(), salt, &self.peppers, self.params.as_ref())
    }
}

/// What to do besides reading.
#[derive(Debug)]
pub struct Wanted {
    /// What is imported, if it can be identified again. `None`: the import cannot be resumed.
    pub source: Option<Source>,
    /// Where rejected records go. `None`: nowhere.
    pub rejects: Option<PathBuf>,
    /// Whether to do everything but roll back each transaction.
    pub dry_run: bool,
}

/// Why an import stopped. What was reported as done until then is done.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The file of rejected records failed.
    #[error("the file of rejected records cannot be written; to start over, give another one with --rejects")]
    Rejects(#[source] io::Error),
    /// The file of differences failed.
    #[error("the file of differences cannot be written")]
    Differences(#[source] io::Error),
    /// Another process has taken over the same import.
    #[error("another process is importing the same file")]
    Overtaken,
    /// Concurrent changes to the same names kept getting in the way.
    #[error("concurrent changes to the same users kept getting in the way")]
    Contended,
    /// The database closed the connection in the middle, as it does to an import that stalls in a transaction, in which
    /// it could keep others waiting.
    #[error(
        "the connection to the database was closed, as happens when an import stalls for 15 s; only what was reported as \
         done is done: run the same command again, and an import of a file resumes where it stopped"
    )]
    CutOff(#[source] Error),
    /// A hash could not be wrapped, or the database failed.
    #[error(transparent)]
    Account(#[from] Error),
}

impl From<store::Error> for ImportError {
    fn from(error: store::Error) -> Self {
        if imports::is_cut_off(&error) { Self::CutOff(error.into()) } else { Self::Account(error.into()) }
    }
}

/// Why a file cannot be read any further.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// An error of the system, or of the database that the users come from.
    #[error("the users cannot be read")]
    Io(#[from] io::Error),
    /// Nothing at all, not even a heading or an empty list.
    #[error("the file is empty: has the export failed?")]
    Empty,
    /// Records, none of which is a user.
    #[error(
        "no record in the file is a user, only {0}: is the model that AUTH_USER_MODEL names in the dump?"
    )]
    NoUser(String),
    /// Not a JSON document, or not one with users.
    #[error("the file is not a valid document: {problem} at line {line} column {column}")]
    Document {
        /// What is wrong with it.
        problem: &'static str,
        /// Counted from 1.
        line: u64,
        /// In bytes, counted from 1.
        column: u64,
    },
    /// Not CSV.
    #[error("the file is not valid CSV: {0}")]
    Csv(#[from] csv::Error),
    /// A header row that names a column twice.
    #[error("the column \"{}\" occurs twice", shown_name(.0))]
    ColumnTwice(String),
    /// A column that is not a field of the format.
    #[error(
        "the column \"{column}\" is not a field of the format{hint}; the fields are {fields}",
        column = shown_name(.0),
        hint = separated(.0),
        fields = own::FIELDS.join(", ")
    )]
    UnknownColumn(String),
}

/// What to say of a heading that is separated by something else than commas, as spreadsheets of many countries do.
fn separated(column: &str) -> String {
    let by = [(';', "semicolons"), ('\t', "tabs"), ('|', "vertical bars")];
    let by = by.into_iter().find(|(delimiter, _)| column.contains(*delimiter));
    by.map(|(_, by)| format!(": it seems to be several, separated by {by}, and only commas separate columns"))
        .unwrap_or_default()
}

/// A rejected record.
#[derive(Debug)]
pub struct Rejection {
    /// The line, or in a JSON document the number of the record, counted from 1.
    pub number: u64,
    /// What is wrong with it.
    pub reason: String,
}

/// One record, read and checked.
pub(in crate::account) struct Record {
    number: u64,
    original: Original,
    /// The user's id in the system that the record comes from, if it has one.
    external_id: Option<String>,
    user: Examined,
}

/// A user that has passed every check, or what is wrong with it.
type Examined = Result<Box<Checked>, Vec<FieldError>>;

impl Record {
    fn unreadable(number: u64, original: Original, message: String) -> Self {
        let errors = vec![FieldError::new("record", "unreadable", message)];
        Self { number, original, external_id: None, user: Err(errors) }
    }

    /// `at` says where in the file the record is.
    fn not_json(number: u64, text: &[u8], error: &serde_json::Error, at: &str) -> Self {
        // The message ends with a position, which is one in this text and not in the file.
        let message = error.to_string();
        let message = message.split(" at line ").next().unwrap_or_default();
        let original = Original::Text(String::from_utf8_lossy(text).into_owned());
        Self::unreadable(number, original, format!("is not a JSON object: {message} {at}"))
    }

    /// `None` if the object is not about a user.
    fn of_object(number: u64, fields: Fields, rules: &Rules) -> Option<Self> {
        let Fields { fields, repeated } = fields;
        let (external_id, user) = check(&fields, false, rules)?;
        if repeated.is_empty() {
            return Some(Self { number, original: Original::Object(fields), external_id, user });
        }
        // Kept as text, which is refused again until someone mends it: there is no telling which of the values is
        // right.
        let original = Original::Text(Value::Object(fields).to_string());
        let errors = repeated.iter().map(json::is_repeated).chain(user.err().into_iter().flatten());
        Some(Self { number, original, external_id, user: Err(errors.collect()) })
    }

    /// `None` if the row is not about a user.
    fn of_row(number: u64, original: Original, fields: &Map<String, Value>, rules: &Rules) -> Option<Self> {
        let (external_id, user) = check(fields, true, rules)?;
        Some(Self { number, original, external_id, user })
    }
}

/// The external id that a record gives, if any, and its user. `None` if the record is not about a user.
fn check(fields: &Map<String, Value>, is_text: bool, rules: &Rules) -> Option<(Option<String>, Examined)> {
    match rules.format {
        Format::Supabase if !supabase::is_user(fields) => return None,
        Format::Django => {
            if let Some(model) = django::other_model(fields) {
                *rules.left_out.lock().models.entry(model.to_owned()).or_default() += 1;
                return None;
            }
        }
        _ => {}
    }
    let mut object = Object::new(fields, is_text);
    let draft: Draft = match rules.format {
        Format::Jsonl | Format::Csv => own::draft(&mut object, rules),
        Format::Auth0 => auth0::draft(&mut object, rules),
        Format::Firebase => firebase::draft(&mut object, rules),
        Format::Keycloak => keycloak::draft(&mut object, rules),
        Format::Supabase => supabase::draft(&mut object, rules),
        Format::Django => django::draft(&mut object, rules),
        Format::Database if own::is_course(fields) => own::course_draft(&mut object, rules),
        Format::Database => own::draft(&mut object, rules),
    };
    let external_id = draft.external_id.clone();
    Some((external_id, draft.check(object, rules).map(Box::new)))
}

/// Checks a user, in this service's own format, from a system that vouches for their password, so that a hash is
/// ignored. The error is meant for people. A username that is not valid here is replaced, as in an import of that
/// system's users.
pub(super) fn check_without_hash(
    mut fields: Map<String, Value>,
    now: OffsetDateTime,
) -> Result<Checked, String> {
    fields.retain(|name, _| name != "password_hash" && name != "salt");
    let rules = Rules::ours(Peppers::default(), None, false, now);
    let mut object = Object::new(&fields, false);
    let draft = own::draft(&mut object, &rules).with_username();
    draft.check(object, &rules).map_err(|errors| rejects::reason(&errors))
}

/// What an import needs.
#[derive(Debug)]
pub struct Importer<'a, R> {
    /// The database.
    pub conn: &'a mut PgConnection,
    /// Wraps hashes; its queue must have room for a chunk of them.
    pub passwords: &'a Pool,
    /// On whose behalf.
    pub cause: &'a Cause,
    /// For ids and salts.
    pub rng: &'a mut R,
}

impl<R: CryptoRng> Importer<'_, R> {
    /// How far an interrupted import of this source has come. Also whether there was one of another file in the same
    /// place, whose progress is now forgotten.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn former(&mut self, source: &Source) -> Result<(Option<Progress>, bool), Error> {
        let was_other = imports::forget_former(self.conn, source).await?;
        Ok((imports::progress(self.conn, source).await?, was_other))
    }

    /// Imports users, starting where `before` ends. Calls `seen` at the beginning and after each transaction, with the
    /// progress, the range of bytes of `input` that was imported, and what was rejected.
    ///
    /// # Errors
    ///
    /// [`ImportError`].
    pub async fn run(
        &mut self,
        input: impl Read + Send + 'static,
        rules: Rules,
        wanted: &Wanted,
        before: Progress,
        mut seen: impl FnMut(&Progress, &Range<u64>, &[Rejection]),
    ) -> Result<Progress, ImportError> {
        let rejects = wanted.rejects.clone().map(|path| Rejects::new(path, before.rejects_bytes));
        let now = rules.now;
        let mut records = Records::begin(input, rules, before.records());
        let layout = records.layout().await?;
        seen(&before, records.pass_over().await, &[]);
        let mut run = Run {
            wanted,
            layout,
            rejects,
            progress: before,
            made: wanted.dry_run.then(Made::default),
            now,
            passwords: self.passwords,
            cause: self.cause,
            rng: &mut *self.rng,
        };
        run.all(self.conn, &mut records, &mut seen).await?;
        if let Some(source) = wanted.source.as_ref().filter(|_| !wanted.dry_run) {
            imports::finish(self.conn, source).await?;
        }
        Ok(run.progress)
    }
}
