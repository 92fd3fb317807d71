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
mod draft;
mod firebase;
mod json;
mod keycloak;
mod object;
mod one;
mod own;
mod reader;
mod rejects;
mod supabase;

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    hash::{BuildHasher, RandomState},
    io::{self, Read},
    path::PathBuf,
    sync::{Arc, Mutex},
    thread,
};

use rand_core::CryptoRng;
use serde_json::{Map, Value};
use time::OffsetDateTime;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use uuid::Uuid;

pub use self::compare::{Comparison, FIELDS, compare};
pub(super) use self::draft::Checked;
use self::{
    draft::Draft,
    json::Fields,
    object::Object,
    reader::{Layout, Original},
    rejects::Rejects,
};
pub use self::{firebase::hash_config, one::Outcome};
use super::{ADMIN_ROLE, Cause, Email, Error, FieldError, FullName, Roles, Username, fields::normalised};
pub use crate::store::imports::{Progress, Source};
use crate::{
    password::{
        HashedPassword, Peppers, Pool,
        foreign::{BareKind, FirebaseProject, Imported, Refused as RefusedHash},
    },
    random,
    store::{
        self, PgConnection, Transaction,
        imports::{self, Holders, Names, Present, Row},
    },
};

/// How many records one transaction takes: so few that nobody waits for long whom it changes, to log in for instance.
const CHUNK: usize = 1_000;

/// How many hashes to wrap one transaction takes: some seconds of them, so that no more is lost when the import is killed.
pub const WRAPPED_CHUNK: usize = 256;

/// How many records the reading thread may be ahead.
const READ_AHEAD: usize = 2_000;

/// How often a transaction is tried again when others have changed the same users meanwhile.
const MAX_CONFLICTS: usize = 8;

/// As of when a user is who was made of a record that does not say: whatever has a date is newer.
const UNDATED: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

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
    /// The time of the import.
    pub now: OffsetDateTime,
    /// The roles that were left out on the way, since no role may be called that here.
    pub left_out: LeftOut,
}

/// Names of roles, each once.
pub type LeftOut = Arc<Mutex<BTreeSet<String>>>;

impl Rules {
    /// Reads a hash; `salt` is what the record has for one.
    fn password(&self, text: &str, salt: &str) -> Result<Imported, RefusedHash> {
        Imported::of_kind(text, self.bare.as_ref(), salt, &self.peppers)
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
    /// A hash could not be wrapped, or the database failed.
    #[error(transparent)]
    Account(#[from] Error),
}

impl From<store::Error> for ImportError {
    fn from(error: store::Error) -> Self {
        Self::Account(error.into())
    }
}

/// Why a file cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The system.
    #[error("the file cannot be read")]
    Io(#[from] io::Error),
    /// Not a document of JSON, or not one with users.
    #[error("the file is no such document: {0}")]
    Json(#[from] serde_json::Error),
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
/// wrong with them, for people.
pub(super) fn check_without_hash(
    mut fields: Map<String, Value>,
    now: OffsetDateTime,
) -> Result<Checked, String> {
    fields.retain(|name, _| name != "password_hash" && name != "salt");
    let rules = Rules {
        format: Format::Jsonl,
        allow_admin: false,
        bare: None,
        firebase: None,
        peppers: Peppers::default(),
        now,
        left_out: LeftOut::default(),
    };
    let mut object = Object::new(&fields, false);
    let draft = own::draft(&mut object, &rules);
    draft.check(object, &rules).map_err(|errors| rejects::reason(&errors))
}

/// A user that has passed every check and has a hash to store.
struct Ready {
    /// For a user who is new.
    id: Uuid,
    number: u64,
    original: Original,
    user: Box<Checked>,
    password: Option<HashedPassword>,
}

type Refused = (u64, Original, Vec<FieldError>);

/// What comes of some records.
#[derive(Default)]
struct Done {
    created: Vec<usize>,
    updated: u64,
    unchanged: u64,
    refused: Vec<(usize, Denied)>,
}

/// Why a user who has passed every check cannot be as the record says.
#[derive(Clone, Copy)]
enum Denied {
    UsernameTaken,
    EmailTaken,
    LastAdmin,
}

impl Denied {
    fn told(self) -> FieldError {
        match self {
            Self::UsernameTaken => FieldError::new("username", "username_taken", "is another user's"),
            Self::EmailTaken => FieldError::new("email", "email_taken", "is another user's"),
            Self::LastAdmin => {
                FieldError::new("roles", "last_admin", "would leave nobody who administers users")
            }
        }
    }
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

    /// Imports users, from where `before` ends. `seen` hears after each transaction how far it has come, and of what was
    /// refused.
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
        mut seen: impl FnMut(&Progress, &[Rejection]),
    ) -> Result<Progress, ImportError> {
        let rejects = wanted.rejects.clone().map(|path| Rejects::new(path, before.rejects_bytes));
        let now = rules.now;
        let mut records = Records::begin(input, rules, before.records());
        let layout = records.layout().await?;
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

/// An import on its way.
struct Run<'a, R> {
    wanted: &'a Wanted,
    layout: Layout,
    rejects: Option<Rejects>,
    progress: Progress,
    /// In a dry run.
    made: Option<Made>,
    now: OffsetDateTime,
    passwords: &'a Pool,
    cause: &'a Cause,
    rng: &'a mut R,
}

impl<R: CryptoRng> Run<'_, R> {
    /// Takes all records.
    async fn all(
        &mut self,
        conn: &mut PgConnection,
        records: &mut Records,
        seen: &mut impl FnMut(&Progress, &[Rejection]),
    ) -> Result<(), ImportError> {
        let mut is_last = false;
        while !is_last {
            let mut chunk = Chunk::default();
            let end = chunk.fill(records, self.passwords, self.rng, self.wanted.dry_run).await?;
            if chunk.ready.is_empty() && chunk.refused.is_empty() {
                self.add_rejects(&[])?;
            } else {
                let refused = self.take(conn, chunk).await?;
                seen(&self.progress, &refused);
            }
            is_last = match end {
                End::More => false,
                End::Last => true,
                End::Broken(error) => return Err(error.into()),
            };
        }
        Ok(())
    }

    fn add_rejects(&mut self, lines: &[u8]) -> Result<(), ImportError> {
        self.rejects.as_mut().map_or(Ok(()), |rejects| rejects.add(lines)).map_err(ImportError::Rejects)
    }

    /// Takes some records, in one transaction; what was refused of them.
    async fn take(&mut self, conn: &mut PgConnection, chunk: Chunk) -> Result<Vec<Rejection>, ImportError> {
        let Chunk { ready, mut refused } = chunk;
        let mut attempts = 0;
        let (mut transaction, done) = loop {
            let mut transaction = imports::begin(conn).await?;
            match write(&mut transaction, &ready, self.made.as_ref(), self.now, self.cause).await {
                Ok(done) => break (transaction, done),
                Err(store::Error::Taken(_) | store::Error::Conflict(_)) if attempts < MAX_CONFLICTS => {
                    attempts += 1;
                    imports::end(transaction, false).await?;
                }
                Err(store::Error::Taken(_) | store::Error::Conflict(_)) => {
                    return Err(ImportError::Contended);
                }
                Err(error) => return Err(error.into()),
            }
        };
        for (i, denied) in done.refused {
            refused.push((ready[i].number, ready[i].original.clone(), vec![denied.told()]));
        }
        refused.sort_by_key(|(number, ..)| *number);
        let lines = self.rejects.as_ref().map(|rejects| rejects.lines(&self.layout, &refused)).transpose();
        let lines = lines.map_err(ImportError::Rejects)?.unwrap_or_default();
        let progress = Progress {
            created: self.progress.created + done.created.len() as u64,
            updated: self.progress.updated + done.updated,
            unchanged: self.progress.unchanged + done.unchanged,
            rejected: self.progress.rejected + refused.len() as u64,
            rejects_bytes: self.rejects.as_ref().map_or(0, Rejects::bytes) + lines.len() as u64,
        };
        if let Some(source) = self.wanted.source.as_ref().filter(|_| !self.wanted.dry_run)
            && !imports::note_progress(&mut transaction, source, &self.progress, &progress, self.now).await?
        {
            return Err(ImportError::Overtaken);
        }
        // Only now is the file nobody else's. And before it is committed: what is in the file too much is cut off when the
        // import goes on.
        self.add_rejects(&lines)?;
        imports::end(transaction, !self.wanted.dry_run).await?;
        if let Some(made) = &mut self.made {
            done.created.iter().for_each(|&i| made.note(&ready[i]));
        }
        self.progress = progress;
        let told =
            |(number, _, errors): &Refused| Rejection { number: *number, reason: rejects::reason(errors) };
        Ok(refused.iter().map(told).collect())
    }
}

/// Whom a dry run has made, and undone, so that it finds what is twice in the file: some 200 bytes each. To keep them in the
/// database until the end would keep everybody waiting who registers with one of their names.
#[derive(Default)]
struct Made {
    /// By a hash of each name.
    ids: HashMap<u64, Uuid>,
    updated_at: HashMap<Uuid, OffsetDateTime>,
    hasher: RandomState,
}

impl Made {
    fn note(&mut self, Ready { id, user, .. }: &Ready) {
        self.ids.extend(self.names(user).into_iter().flatten().map(|name| (name, *id)));
        self.updated_at.insert(*id, user.updated_at.unwrap_or(UNDATED));
    }

    /// Names those of them who have a name that is nobody's in the database.
    fn complete(&self, user: &Checked, holders: &mut Holders) {
        let [external_id, username, email] = self.names(user).map(|name| self.ids.get(&name?).copied());
        holders.external_id = holders.external_id.or(external_id);
        holders.username = holders.username.or(username);
        holders.email = holders.email.or(email);
    }

    fn names(&self, user: &Checked) -> [Option<u64>; 3] {
        let hash = |kind: &str, name: &str| self.hasher.hash_one((kind, name));
        [
            user.external_id.as_deref().map(|id| hash("external_id", id)),
            Some(hash("username", &normalised(user.username.as_str()))),
            Some(hash("email", &normalised(user.email.as_str()))),
        ]
    }
}

/// What the reading thread hands over.
struct Records {
    layout: Option<oneshot::Receiver<Layout>>,
    records: mpsc::Receiver<Result<Record, ReadError>>,
}

impl Records {
    /// Starts the thread, which passes over the first `skip` records.
    fn begin(input: impl Read + Send + 'static, rules: Rules, skip: u64) -> Self {
        let (layout, layout_read) = oneshot::channel();
        let (send, records) = mpsc::channel(READ_AHEAD);
        thread::spawn(move || {
            let mut layout = Some(layout);
            let mut begin = |found| {
                if let Some(layout) = layout.take() {
                    drop(layout.send(found));
                }
            };
            let mut skip = skip;
            // Nobody takes any more: the import has failed elsewhere.
            let mut take = |record| {
                if skip > 0 {
                    skip -= 1;
                    return true;
                }
                send.blocking_send(Ok(record)).is_ok()
            };
            if let Err(error) = reader::read(input, &rules, &mut begin, &mut take) {
                drop(send.blocking_send(Err(error)));
            }
        });
        Self { layout: Some(layout_read), records }
    }

    /// How the records stand in the file.
    async fn layout(&mut self) -> Result<Layout, ReadError> {
        let layout = match self.layout.take() {
            Some(layout) => layout.await.ok(),
            None => None,
        };
        match layout {
            Some(layout) => Ok(layout),
            // It has failed before it knew.
            None => match self.records.recv().await {
                Some(Err(error)) => Err(error),
                _ => Ok(Layout::Json),
            },
        }
    }

    async fn next(&mut self) -> Result<Option<Record>, ReadError> {
        self.records.recv().await.transpose()
    }
}

/// What comes after some records.
enum End {
    More,
    Last,
    /// The file cannot be read on. What stands before that is good.
    Broken(ReadError),
}

/// Some records that go together.
#[derive(Default)]
struct Chunk {
    ready: Vec<Ready>,
    refused: Vec<Refused>,
}

impl Chunk {
    /// Takes the next records.
    async fn fill(
        &mut self,
        records: &mut Records,
        passwords: &Pool,
        rng: &mut impl CryptoRng,
        dry_run: bool,
    ) -> Result<End, ImportError> {
        let mut wrapping = JoinSet::new();
        let mut end = End::More;
        while self.ready.len() + self.refused.len() < CHUNK && wrapping.len() < WRAPPED_CHUNK {
            let Record { number, original, external_id: _, user } = match records.next().await {
                Ok(Some(record)) => record,
                Ok(None) => {
                    end = End::Last;
                    break;
                }
                Err(error) => {
                    end = End::Broken(error);
                    break;
                }
            };
            let mut user = match user {
                Ok(user) => user,
                Err(errors) => {
                    self.refused.push((number, original, errors));
                    continue;
                }
            };
            let password = match user.password.take() {
                Some(Imported::Keep(hash)) => Some(hash),
                // What comes of it nobody sees.
                Some(Imported::Wrap(_)) if dry_run => Some(HashedPassword::from_stored("$wrapped")),
                Some(Imported::Wrap(fast)) => {
                    let (place, passwords, salt) = (self.ready.len(), passwords.clone(), random::bytes(rng));
                    wrapping.spawn(async move { (place, passwords.wrap(fast, salt).await) });
                    None
                }
                None => None,
            };
            let id = random::uuid_v7(user.created_at, rng);
            self.ready.push(Ready { id, number, original, user, password });
        }
        while let Some(wrapped) = wrapping.join_next().await {
            let (place, hash) = wrapped.map_err(|_| Error::Hasher)?;
            self.ready[place].password = Some(hash.map_err(Error::from)?);
        }
        Ok(end)
    }
}

/// Writes some users, in one transaction. Those who share a name with another one before them come after that one, when it
/// is clear what has become of it. Those who are `made` are there, too.
async fn write(
    transaction: &mut Transaction<'_>,
    chunk: &[Ready],
    made: Option<&Made>,
    now: OffsetDateTime,
    cause: &Cause,
) -> Result<Done, store::Error> {
    let mut done = Done::default();
    let mut waiting: Vec<usize> = (0..chunk.len()).collect();
    while !waiting.is_empty() {
        let mut names = Names::default();
        for &i in &waiting {
            names.external_ids.push(chunk[i].user.external_id.clone());
            names.usernames.push(chunk[i].user.username.as_str().to_owned());
            names.emails.push(chunk[i].user.email.as_str().to_owned());
        }
        let mut holders = imports::holders(transaction, &names).await?;
        if let Some(made) = made {
            waiting.iter().zip(&mut holders).for_each(|(&i, holders)| made.complete(&chunk[i].user, holders));
        }
        let (mut new, mut later) = (Vec::new(), Vec::new());
        let (mut known, mut held_back) = (HashMap::<_, Vec<_>>::new(), HashSet::new());
        for (i, holders) in waiting.into_iter().zip(holders) {
            match place(&chunk[i].user, &holders) {
                Place::New if holders.is_repeated || holders.is_claimed => later.push(i),
                Place::New => new.push(i),
                Place::Known(id) if let Some(at) = made.and_then(|made| made.updated_at.get(&id)) => {
                    let is_newer = chunk[i].user.updated_at.is_some_and(|newer| newer > *at);
                    *(if is_newer { &mut done.updated } else { &mut done.unchanged }) += 1;
                }
                // What comes after one that waits has to wait as well.
                Place::Known(id) if holders.is_claimed || held_back.contains(&id) => {
                    held_back.insert(id);
                    later.push(i);
                }
                Place::Known(id) => known.entry(id).or_default().push(i),
                Place::Same => done.unchanged += 1,
                // Whoever has the address may be about to give it up.
                Place::Taken(Denied::EmailTaken)
                    if holders.email.is_some_and(|id| known.contains_key(&id) || held_back.contains(&id)) =>
                {
                    held_back.extend(holders.external_id);
                    later.push(i);
                }
                Place::Taken(denied) => done.refused.push((i, denied)),
            }
        }
        let rows = new
            .iter()
            .map(|&i| &chunk[i])
            .map(|new| new_row(new.id, &new.user, new.password.as_ref(), UNDATED));
        match new.len() {
            0 => {}
            // Also for the sake of who puts one in a request.
            1 => {
                for row in rows {
                    imports::insert(transaction, &row, cause).await?;
                }
            }
            _ => imports::copy(transaction, rows, cause).await?,
        }
        done.created.extend(new);
        let present = imports::lock(transaction, &known.keys().copied().collect::<Vec<_>>()).await?;
        for present in present {
            let Some(records) = known.remove(&present.id) else { continue };
            change(transaction, chunk, &records, present, now, cause, &mut done).await?;
        }
        // Who has been deleted meanwhile is new.
        later.extend(known.into_values().flatten());
        later.sort_unstable();
        waiting = later;
    }
    Ok(done)
}

/// Makes of a user who is there what these records of a chunk say, in their order and all at once. When that would take the
/// last administrator, half of them at once, and so on down to the one that is refused.
async fn change(
    transaction: &mut Transaction<'_>,
    chunk: &[Ready],
    records: &[usize],
    mut present: Present,
    now: OffsetDateTime,
    cause: &Cause,
    done: &mut Done,
) -> Result<(), store::Error> {
    let mut parts = VecDeque::from([records]);
    while let Some(part) = parts.pop_front() {
        let Folded { user, is_other_password, updated, unchanged } = fold(chunk, part, &present);
        if (user.updated_at, user.administered_at) != (present.updated_at, present.administered_at) {
            let demotes = is_admin(&present) && !is_admin(&user);
            match imports::change(transaction, &user, is_other_password, demotes, now, cause).await {
                Ok(()) => {}
                Err(store::Error::LastAdmin) => {
                    if let &[i] = part {
                        done.refused.push((i, Denied::LastAdmin));
                    } else {
                        let (first, rest) = part.split_at(part.len() / 2);
                        parts.push_front(rest);
                        parts.push_front(first);
                    }
                    continue;
                }
                Err(error) => return Err(error),
            }
            present = user;
        }
        done.updated += updated;
        done.unchanged += unchanged;
    }
    Ok(())
}

/// What records make of a user, one after the other.
struct Folded {
    user: Present,
    is_other_password: bool,
    /// How many of them change something.
    updated: u64,
    unchanged: u64,
}

fn fold(chunk: &[Ready], records: &[usize], present: &Present) -> Folded {
    let mut folded = Folded { user: present.clone(), is_other_password: false, updated: 0, unchanged: 0 };
    for ready in records.iter().map(|&i| &chunk[i]) {
        let newer = ready.user.updated_at.filter(|at| folded.user.is_older_than(*at));
        let Some(at) = newer else {
            folded.unchanged += 1;
            continue;
        };
        let (user, is_other_password) = changed(ready, &folded.user, at);
        let count = if is_same(&user, &folded.user) { &mut folded.unchanged } else { &mut folded.updated };
        *count += 1;
        folded.is_other_password |= is_other_password;
        // What is the same but newer is noted, too: something in between may come later.
        folded.user = user;
    }
    folded
}

/// What a record is to the users who are there.
enum Place {
    New,
    /// The user of this id.
    Known(Uuid),
    /// Made by an earlier import, or by themselves, and has no name in another system: nothing of it is taken over.
    Same,
    Taken(Denied),
}

fn place(user: &Checked, holders: &Holders) -> Place {
    match (holders.external_id, holders.username, holders.email) {
        // The username stays as it is, whosever this one is.
        (Some(id), _, email) if email.is_none_or(|holder| holder == id) => Place::Known(id),
        (Some(_), ..) => Place::Taken(Denied::EmailTaken),
        (None, None, None) => Place::New,
        (None, Some(one), Some(other)) if one == other && user.external_id.is_none() => Place::Same,
        (None, Some(_), _) => Place::Taken(Denied::UsernameTaken),
        (None, None, Some(_)) => Place::Taken(Denied::EmailTaken),
    }
}

/// A user to be made; `undated`: as of when, if the record does not say.
pub(super) fn new_row<'a>(
    id: Uuid,
    user: &'a Checked,
    password: Option<&'a HashedPassword>,
    undated: OffsetDateTime,
) -> Row<'a> {
    Row {
        id,
        external_id: user.external_id.as_deref(),
        username: user.username.as_str(),
        email: user.email.as_str(),
        full_name: user.full_name.as_ref().map(FullName::as_str),
        password_hash: password,
        roles: user.roles.as_ref().map_or(&[], Roles::as_slice),
        is_email_verified: user.is_email_verified.unwrap_or(false),
        disabled: user.disabled.unwrap_or(false),
        password_changed_at: user.password_changed_at.unwrap_or(user.created_at),
        created_at: user.created_at,
        updated_at: user.updated_at.unwrap_or(undated),
    }
}

/// The user as the record has them, and where it says nothing, or has been overtaken, as they are; and whether the password
/// is another one. What the user may change themselves does not overtake what they may not.
fn changed(ready: &Ready, present: &Present, at: OffsetDateTime) -> (Present, bool) {
    let (user, mut changed) = (&ready.user, present.clone());
    if at > present.administered_at {
        if let Some(roles) = &user.roles {
            changed.roles = roles.as_slice().to_vec();
        }
        changed.disabled = user.disabled.unwrap_or(present.disabled);
        changed.administered_at = at;
    }
    if at <= present.updated_at {
        return (changed, false);
    }
    let is_other_password =
        ready.password.as_ref().is_some_and(|hash| present.password_hash.as_ref() != Some(hash))
            && !is_no_later_password(user, present);
    if is_other_password {
        changed.password_hash.clone_from(&ready.password);
        changed.password_changed_at = user.password_changed_at.unwrap_or(at);
    }
    let is_other_address = normalised(&present.email) != normalised(user.email.as_str());
    changed.email = user.email.as_str().to_owned();
    changed.is_email_verified =
        user.is_email_verified.unwrap_or(present.is_email_verified && !is_other_address);
    if let Some(name) = &user.full_name {
        changed.full_name = Some(name.as_str().to_owned());
    }
    changed.updated_at = at;
    (changed, is_other_password)
}

/// Whether the record dates its password no later than the user's, which then stays: a login here makes the hash anew, and
/// the old one would log the user out, or undo a password that was set here.
fn is_no_later_password(user: &Checked, present: &Present) -> bool {
    present.password_hash.is_some()
        && user.password_changed_at.is_some_and(|at| at <= present.password_changed_at)
}

/// Whether somebody has to be left who is one, too.
fn is_admin(user: &Present) -> bool {
    !user.disabled && user.roles.iter().any(|role| role == ADMIN_ROLE)
}

/// Whether nothing has changed but the time.
fn is_same(user: &Present, present: &Present) -> bool {
    user.email == present.email
        && user.full_name == present.full_name
        && user.password_hash == present.password_hash
        && user.roles == present.roles
        && user.is_email_verified == present.is_email_verified
        && user.disabled == present.disabled
}
