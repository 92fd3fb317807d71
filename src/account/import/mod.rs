//! Users come in by the file: `gatepass import`.
//!
//! One thread reads, and makes of each record a user that has passed every check, in whatever format it is
//! ([`reader`], one file for each format); the other end takes a thousand of them at a time. Fast hashes are
//! [wrapped](crate::password::foreign) by the pool; then one transaction looks who is there already, copies the new ones,
//! changes those who are newer in the file, notes how far it has come, and writes what was refused to its file. So at
//! every moment the database has what the note says, and an import that was killed goes on from there when it is run
//! again.
//!
//! [`Accounts::put`](super::Accounts::put) takes a single user by the same rules, from an administrator's request.

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
    collections::BTreeSet,
    io::{self, Read},
    ops::Range,
    path::PathBuf,
    sync::{Arc, Mutex},
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
};

/// What the records are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Ours, one JSON object a line.
    Jsonl,
    /// Ours, as CSV with a heading.
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
    /// Rows of a Postgres, one JSON object a line: with our names, or the usual course's.
    Database,
}

impl Format {
    /// Whether its hashes may be bare hexadecimal.
    pub fn may_be_bare(self) -> bool {
        !matches!(self, Self::Auth0 | Self::Firebase | Self::Keycloak)
    }

    /// All that a file may have, with their names.
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

/// How records are read and held against the rules.
#[derive(Debug)]
pub struct Rules {
    /// What they are.
    pub format: Format,
    /// Whether a record may give the role `admin`.
    pub allow_admin: bool,
    /// What bare hexadecimal is.
    pub bare: Option<BareKind>,
    /// The parameters of Firebase's hashes.
    pub firebase: Option<FirebaseProject>,
    /// Our own, for our own hashes on their way back.
    pub peppers: Peppers,
    /// What those cost, and foreign ones of their kind may cost, too; `None`: what any foreign one may.
    pub params: Option<Params>,
    /// The time of the import.
    pub now: OffsetDateTime,
    /// The roles that were left out on the way, since no role may be called that here.
    pub left_out: LeftOut,
}

/// Names of roles, each once.
pub type LeftOut = Arc<Mutex<BTreeSet<String>>>;

impl Rules {
    /// For a single record of our own format.
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

    /// Reads a hash; `salt` is what the record has for one.
    fn password(&self, text: &str, salt: &str) -> Result<Imported, RefusedHash> {
        Imported::of_kind(text, self.bare.as_ref(), salt, &self.peppers, self.params.as_ref())
    }
}

/// What is to be done, besides the reading.
#[derive(Debug)]
pub struct Wanted {
    /// What is imported, when it can be found again; `None`: it cannot be taken up where it stopped.
    pub source: Option<Source>,
    /// Where refused records go; `None`: nowhere.
    pub rejects: Option<PathBuf>,
    /// Do everything, and undo each transaction.
    pub dry_run: bool,
}

/// Why an import has stopped. What was reported as done until then is done.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The file of what was refused.
    #[error("the file of what was refused; to begin anew, name another one with --rejects")]
    Rejects(#[source] io::Error),
    /// The file of what differs.
    #[error("the file of the differences")]
    Differences(#[source] io::Error),
    /// Somebody else has taken it on.
    #[error("somebody else imports the same file")]
    Overtaken,
    /// Others register the same names all the time.
    #[error("others were changing the same users, again and again")]
    Contended,
    /// The database has given up in the middle, as it does with who has stopped while others wait.
    #[error(
        "the connection to the database has ended in the middle, as it does when an import stands still for 15 s; what was \
         not told as done is not done: run the same command again, and an import of a file goes on where it stopped"
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

/// Why a file cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The system.
    #[error("the file cannot be read")]
    Io(#[from] io::Error),
    /// Not a document of JSON, or not one with users.
    #[error("the file is no such document: {problem} at line {line} column {column}")]
    Document {
        /// What is wrong with it.
        problem: &'static str,
        /// From 1 on.
        line: u64,
        /// In bytes, from 1 on.
        column: u64,
    },
    /// Not CSV.
    #[error("the file is no CSV: {0}")]
    Csv(#[from] csv::Error),
    /// A heading that names a column twice.
    #[error("the column {0:?} is there twice")]
    ColumnTwice(String),
    /// A heading that is no field.
    #[error("the column {0:?} is no field of the format")]
    UnknownColumn(String),
}

/// What was refused.
#[derive(Debug)]
pub struct Rejection {
    /// The line; of a document the user, from 1 on.
    pub number: u64,
    /// What is wrong with it.
    pub reason: String,
}

/// One record, read and checked.
pub(in crate::account) struct Record {
    number: u64,
    original: Original,
    /// Whom it is about, in the system that it comes from, as far as it says.
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

    /// `at`: where in the file that is.
    fn not_json(number: u64, text: &[u8], error: &serde_json::Error, at: &str) -> Self {
        // Its message names a place in this text.
        let message = error.to_string();
        let message = message.split(" at line ").next().unwrap_or_default();
        let original = Original::Text(String::from_utf8_lossy(text).into_owned());
        Self::unreadable(number, original, format!("is no JSON object: {message} {at}"))
    }

    /// `None`: it is about no user.
    fn of_object(number: u64, fields: Fields, rules: &Rules) -> Option<Self> {
        let Fields { fields, repeated } = fields;
        let (external_id, user) = check(&fields, false, rules)?;
        if repeated.is_empty() {
            return Some(Self { number, original: Original::Object(fields), external_id, user });
        }
        // As a text, which is refused again as long as nobody has mended it: which of the values is right, nobody knows.
        let original = Original::Text(Value::Object(fields).to_string());
        let errors =
            repeated.iter().map(|key| json::is_repeated(key)).chain(user.err().into_iter().flatten());
        Some(Self { number, original, external_id, user: Err(errors.collect()) })
    }

    /// `None`: it is about no user.
    fn of_row(number: u64, original: Original, fields: &Map<String, Value>, rules: &Rules) -> Option<Self> {
        let (external_id, user) = check(fields, true, rules)?;
        Some(Self { number, original, external_id, user })
    }
}

/// Whom a record is about, in the system that it comes from, as far as it says, and the user. `None`: it is about no user.
fn check(fields: &Map<String, Value>, is_text: bool, rules: &Rules) -> Option<(Option<String>, Examined)> {
    let is_user = match rules.format {
        Format::Supabase => supabase::is_user(fields),
        Format::Django => django::is_user(fields),
        _ => true,
    };
    if !is_user {
        return None;
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

/// A user of our own format from a system that vouches for their password, so that a hash of it is passed over; or what is
/// wrong with them, for people. A username that can be none here is made one, as where that system's users are imported.
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

/// Who imports, and into what.
#[derive(Debug)]
pub struct Importer<'a, R> {
    /// The database.
    pub conn: &'a mut PgConnection,
    /// What wraps hashes: with room for a chunk of them in its queue.
    pub passwords: &'a Pool,
    /// In whose name.
    pub cause: &'a Cause,
    /// For ids and salts.
    pub rng: &'a mut R,
}

impl<R: CryptoRng> Importer<'_, R> {
    /// How far an import of this source has come that was killed, and whether there was one of another file in the same
    /// place, which is forgotten.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn former(&mut self, source: &Source) -> Result<(Option<Progress>, bool), Error> {
        let was_other = imports::forget_former(self.conn, source).await?;
        Ok((imports::progress(self.conn, source).await?, was_other))
    }

    /// Imports users, from where `before` ends. `seen` hears at the beginning and after each transaction how far it has
    /// come, from which byte of `input` to which that was, and of what was refused.
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
