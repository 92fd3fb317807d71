//! `gatepass import`: imports users from a file, or from another Postgres.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs::{self, File},
    io::{self, IsTerminal, Read},
    ops::Range,
    path::{self, Path, PathBuf},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use aws_lc_rs::digest::{Context, SHA256, digest};
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use super::{Failure, WrongUse, database, print, print_json, say, setup};
use crate::{
    account::import::{
        self, Comparison, FIELDS, Format, Importer, LeftOut, Progress, Rejection, Rules, Source, Wanted,
        hash_config,
    },
    clock::Clock,
    config::Settings,
    password::{Pool, PoolSettings, foreign::BareKind},
    random, store,
};

/// How long a hash may wait for its turn: longer than all the hashes ahead of it can take.
const HASH_DEADLINE: Duration = Duration::from_secs(3600);
/// How often progress is reported where there is no terminal.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);
/// How many rejections are printed along the way. The file has all of them.
const TOLD: usize = 10;
/// What is read from another Postgres by default.
const COURSE_QUERY: &str = "SELECT * FROM users";

/// What to import, and how. `--help` describes the command with the text on the variant in `super::Command`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The file to import, `-` for standard input, or postgres://… for the table `users` of another Postgres
    #[arg(value_name = "FILE")]
    source: OsString,
    /// The file's format [default: its extension, jsonl or csv]
    #[arg(long, value_parser = Format::FILES.map(|(name, _)| name))]
    format: Option<String>,
    /// Report what would happen: import a thousand users at a time, and undo each batch
    #[arg(long)]
    dry_run: bool,
    /// Change nothing, and report whether the users here match the file. Exit code 1: they do not, or the comparison
    /// failed
    #[arg(long, conflicts_with_all = ["dry_run", "rejects"])]
    compare: bool,
    /// Where to write the differences, by id and field [default: FILE.differences]
    #[arg(long, value_name = "FILE", requires = "compare")]
    differences: Option<PathBuf>,
    /// Where to write rejected records, each with its reason [default: FILE.rejects; with --dry-run,
    /// FILE.dry-run.rejects]
    #[arg(long, value_name = "FILE")]
    rejects: Option<PathBuf>,
    /// The algorithm of password hashes in plain hexadecimal; not with --format auth0, firebase or keycloak, which have
    /// none of these
    #[arg(long, value_name = "ALGORITHM", value_parser = BareKind::NAMES)]
    hash: Option<String>,
    /// The text that was hashed, such as '{salt}{password}' [default: {password}]
    #[arg(long, value_name = "TEMPLATE", requires = "hash", value_parser = template)]
    hash_template: Option<String>,
    /// With --hash hmac-…: a file with the key of all hashes; without it, the key of each hash is its user's salt
    #[arg(long, value_name = "FILE", requires = "hash")]
    hash_key_file: Option<PathBuf>,
    /// With --format firebase: a file with the project's password hash parameters
    #[arg(long, value_name = "FILE")]
    hash_config: Option<PathBuf>,
    /// With postgres://…: a file with a SELECT whose columns are named like the fields of the format
    #[arg(long, value_name = "FILE")]
    mapping: Option<PathBuf>,
    /// Allow the file to make administrators
    #[arg(long)]
    allow_admin: bool,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

/// Where the records come from.
enum Origin {
    File(PathBuf),
    Stdin,
    Postgres { source: Box<store::Source>, query: String, what: String },
}

impl Args {
    fn is_url(&self) -> bool {
        let text = self.source.to_string_lossy();
        ["postgres://", "postgresql://"].iter().any(|scheme| text.starts_with(scheme))
    }

    fn origin(&self) -> Result<Origin, Failure> {
        if !self.is_url() {
            if self.mapping.is_some() {
                return Err(WrongUse("--mapping is for postgres://…".into()).into());
            }
            if self.source == "-" {
                return Ok(Origin::Stdin);
            }
            let path = Path::new(&self.source);
            // It is read twice: once for its identity, and once for the users.
            if !fs::metadata(path).map_err(|error| named(path, error))?.is_file() {
                let path = path.display();
                return Err(format!("{path} is not a regular file; to import from a pipe, use `-`").into());
            }
            return Ok(Origin::File(fs::canonicalize(path).map_err(|error| named(path, error))?));
        }
        let source = Box::new(store::Source::new(&self.source.to_string_lossy().into_owned().into())?);
        let (query, what) = match &self.mapping {
            Some(path) => {
                let query = fs::read_to_string(path).map_err(|error| named(path, error))?;
                (query, format!("what {} selects", path.display()))
            }
            None => (COURSE_QUERY.to_owned(), "the table users".to_owned()),
        };
        Ok(Origin::Postgres { source, query, what })
    }

    fn format(&self, origin: &Origin) -> Result<Format, Failure> {
        if matches!(origin, Origin::Postgres { .. }) {
            return Ok(Format::Database);
        }
        let name = match (&self.format, origin) {
            (Some(name), _) => Some(&**name),
            (None, Origin::File(path)) => extension(path),
            (None, _) => None,
        };
        let known = Format::FILES.into_iter().find(|(known, _)| Some(*known) == name);
        known.map(|(_, format)| format).ok_or_else(|| {
            let what = match (origin, name) {
                (Origin::File(_), Some(name)) => {
                    format!("{}: .{name} does not tell the format", self.source())
                }
                (Origin::File(_), None) => format!("{}: the name does not tell the format", self.source()),
                _ => "standard input has no name that tells the format".to_owned(),
            };
            let names = Format::FILES.map(|(name, _)| name).join(", ");
            WrongUse(format!("{what}: use --format with one of {names}")).into()
        })
    }

    /// The source, for messages; not for a URL, which may have a password.
    fn source(&self) -> path::Display<'_> {
        Path::new(&self.source).display()
    }

    fn rules(&self, settings: &Settings, format: Format) -> Result<Rules, Failure> {
        let firebase = match &self.hash_config {
            None => None,
            Some(path) => {
                let text = fs::read_to_string(path).map_err(|error| named(path, error))?;
                Some(hash_config(&text).map_err(|error| format!("{}: {error}", path.display()))?)
            }
        };
        Ok(Rules {
            format,
            allow_admin: self.allow_admin,
            bare: self.bare(format)?,
            firebase,
            peppers: settings.password_pepper.clone(),
            params: Some(settings.argon2),
            now: Clock::system().now(),
            left_out: LeftOut::default(),
        })
    }

    /// What a hash in plain hexadecimal is.
    fn bare(&self, format: Format) -> Result<Option<BareKind>, Failure> {
        let Some(kind) = self.hash.as_deref().and_then(BareKind::by_name) else { return Ok(None) };
        if !format.may_be_bare() {
            return Err(WrongUse("--hash: the hashes of this format say what they are".into()).into());
        }
        let mut kind = BareKind { template: self.hash_template.clone(), ..kind };
        if let Some(path) = &self.hash_key_file {
            let key = hash_key(path).map_err(|error| named(path, error))?;
            kind = kind.with_key(key).map_err(|refused| format!("--hash-key-file: {refused}"))?;
        }
        Ok(Some(kind))
    }

    /// Where to write the records that an import rejects, or in which a comparison finds a difference.
    fn beside(&self, origin: &Origin) -> Result<Option<PathBuf>, Failure> {
        let (option, given, ending) = match self {
            Self { compare: true, .. } => ("--differences", &self.differences, ".differences"),
            // A dry run has a file of its own: a killed import continues the other one.
            Self { dry_run: true, .. } => ("--rejects", &self.rejects, ".dry-run.rejects"),
            _ => ("--rejects", &self.rejects, ".rejects"),
        };
        let Origin::File(file) = origin else { return Ok(given.clone()) };
        let path = given.clone().unwrap_or_else(|| {
            let mut name = file.clone().into_os_string();
            name.push(ending);
            name.into()
        });
        if fs::canonicalize(&path).is_ok_and(|path| path == *file) {
            return Err(format!("{option} names the file itself").into());
        }
        Ok(Some(path))
    }

    /// What to do about records that were rejected, and were written to this file.
    fn advice(&self, rejects: Option<&Path>) -> String {
        let Some(rejects) = rejects.map(Path::display) else {
            return "use --rejects to keep them".to_owned();
        };
        let is_table = self.is_url() && self.mapping.is_none();
        // Nobody has been imported: the other users are only where these come from.
        let source = match self {
            _ if is_table => "the table".to_owned(),
            Self { dry_run: true, .. } if self.is_url() => "the other database".to_owned(),
            Self { dry_run: true, .. } if self.source == "-" => "the input".to_owned(),
            Self { dry_run: true, .. } => self.source().to_string(),
            // Rows are written as lines.
            _ if self.is_url() => {
                return format!("correct them in {rejects} and import that file with --format jsonl");
            }
            _ => {
                return format!(
                    "correct them in {rejects} and import that file with the same or corrected options"
                );
            }
        };
        format!("correct them in {source} and import it; {rejects} says what is wrong with each")
    }

    /// What distinguishes this import from others: the bytes of the file, and how they are read.
    fn identity(&self, file: &Path, format: Format, rejects: Option<&Path>) -> Result<Source, Failure> {
        let mut context = Context::new(&SHA256);
        let how =
            format!("{format:?} {} {:?} {:?} {rejects:?}\n", self.allow_admin, self.hash, self.hash_template);
        context.update(how.as_bytes());
        // The contents of the files that options name, not their paths.
        for option in [&self.hash_config, &self.hash_key_file] {
            let Some(path) = option else {
                context.update(&[0]);
                continue;
            };
            let content = fs::read(path).map_err(|error| named(path, error))?;
            context.update(&[1]);
            context.update(digest(&SHA256, &content).as_ref());
        }
        let read_error = |error| named(file, error);
        let mut file_read = File::open(file).map_err(read_error)?;
        let mut buffer = vec![0; 1 << 16];
        loop {
            match file_read.read(&mut buffer).map_err(read_error)? {
                0 => break,
                read => context.update(&buffer[..read]),
            }
        }
        let mut hash = [0; 32];
        hash.copy_from_slice(context.finish().as_ref());
        Ok(Source { hash, name: file.display().to_string() })
    }
}

fn template(text: &str) -> Result<String, &'static str> {
    let text = Some(text).filter(|text| BareKind::is_template(text));
    text.map(str::to_owned).ok_or("it needs {password} in it, and has at most 128 bytes")
}

/// The extension of a file; for a file of rejected records, that of the file that they come from.
fn extension(mut path: &Path) -> Option<&str> {
    while path.extension().is_some_and(|end| end == "rejects" || end == "dry-run") {
        path = Path::new(path.file_stem()?);
    }
    path.extension()?.to_str()
}

/// The bytes of the file, without the line break that editors add at its end.
fn hash_key(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut key = Zeroizing::new(fs::read(path)?);
    if key.pop_if(|last| *last == b'\n').is_some() {
        key.pop_if(|last| *last == b'\r');
    }
    Ok(key)
}

fn named(path: &Path, error: io::Error) -> Failure {
    format!("{}: {error}", path.display()).into()
}

pub(super) async fn run(config_file: Option<PathBuf>, args: Args) -> Result<(), Failure> {
    let origin = args.origin()?;
    let format = args.format(&origin)?;
    let settings = setup::begin(config_file).await?;
    let rules = args.rules(&settings, format)?;
    let left_out = LeftOut::clone(&rules.left_out);
    let rejects = args.beside(&origin)?;
    if args.compare {
        let compared = database::on_pool(&settings, async |db| {
            compare(&mut *db.acquire().await?, origin, rules, rejects.as_deref()).await
        });
        let compared = compared.await?;
        tell_left_out(&left_out);
        return report_comparison(&args, rejects.as_deref(), &compared);
    }
    let source = match &origin {
        Origin::File(file) => Some(args.identity(file, format, rejects.as_deref())?),
        _ => None,
    };
    let wanted = Wanted { source, rejects, dry_run: args.dry_run };
    let done = database::on_pool(&settings, async |db| {
        let passwords = Pool::new(PoolSettings {
            threads: settings.password_hash_threads,
            queue: import::WRAPPED_CHUNK,
            params: settings.argon2,
            peppers: settings.password_pepper.clone(),
            deadline: HASH_DEADLINE,
        })?;
        let mut conn = db.acquire().await?;
        let importer = Importer {
            conn: &mut conn,
            passwords: &passwords,
            cause: &setup::operator(),
            rng: &mut random::system(),
        };
        import(importer, origin, rules, &wanted).await
    })
    .await?;
    tell_left_out(&left_out);
    report(&args, &wanted, &done)
}

/// Reports what in the source was left out: roles that nobody was given, and records that are not users.
fn tell_left_out(left_out: &LeftOut) {
    let left_out = left_out.lock();
    if let Some(roles) = left_out.roles() {
        say(&format!("left out, since these are not valid role names here: {roles}"));
    }
    if let Some(models) = left_out.models() {
        say(&format!("left out, since these are not users: {models}"));
    }
}

async fn import(
    mut importer: Importer<'_, impl rand_core::CryptoRng>,
    origin: Origin,
    rules: Rules,
    wanted: &Wanted,
) -> Result<Progress, Failure> {
    let mut before = Progress::default();
    if let Some(source) = wanted.source.as_ref().filter(|_| !wanted.dry_run) {
        let (former, was_other) = importer.former(source).await?;
        if let Some(former) = former {
            say(&format!("continuing after the {} records that are done", former.records()));
            before = former;
        } else if was_other {
            say(
                "the file or the options have changed since an import of it was stopped: starting from the beginning",
            );
        }
    }
    let (input, mut display) = begin(origin, before.records())?;
    let seen = |progress: &Progress, bytes: &Range<u64>, rejected: &[Rejection]| {
        display.show(progress.records(), bytes, rejected);
    };
    let done = importer.run(input, rules, wanted, before, seen).await;
    display.end();
    Ok(done?)
}

async fn compare(
    conn: &mut store::PgConnection,
    origin: Origin,
    rules: Rules,
    differences: Option<&Path>,
) -> Result<Comparison, Failure> {
    let (input, mut display) = begin(origin, 0)?;
    let done =
        import::compare(conn, input, rules, differences, |records, bytes| display.show(records, bytes, &[]))
            .await;
    display.end();
    Ok(done?)
}

/// Opens the input, and a display of its progress.
fn begin(origin: Origin, skipped: u64) -> Result<(Box<dyn Read + Send>, Display), Failure> {
    let (input, total): (Box<dyn Read + Send>, _) = match origin {
        Origin::Stdin => (Box::new(io::stdin()), None),
        Origin::File(path) => {
            let file = File::open(&path).map_err(|error| named(&path, error))?;
            let total = file.metadata()?.len();
            (Box::new(file), Some(total))
        }
        Origin::Postgres { source, query, what } => (Box::new(Rows::begin(*source, query, what)), None),
    };
    Ok((input, Display::new(total, skipped)))
}

/// Prints only counts and names of fields: nobody's data appears on a terminal.
fn report_comparison(args: &Args, differences: Option<&Path>, found: &Comparison) -> Result<(), Failure> {
    let Comparison { same, newer, older, undated, missing, rejected, gone, fields } = found;
    let read = found.records();
    let fields = FIELDS.into_iter().zip(*fields);
    if args.json {
        print_json(&json!({
            "read": read, "same": same, "newer": newer, "older": older, "undated": undated, "missing": missing,
            "rejected": rejected, "gone": gone, "fields": fields.collect::<HashMap<_, _>>(),
        }))?;
    } else {
        print(&format!(
            "{read} read, {same} same, {newer} newer, {older} older, {undated} undated, {missing} missing, \
             {rejected} rejected; {gone} gone\n"
        ))?;
        for (field, count) in fields.filter(|(_, count)| *count > 0) {
            print(&format!("{field} differs in {count}\n"))?;
        }
    }
    match differences {
        _ if found.agrees() => Ok(()),
        Some(path) => Err(format!("the two differ: see {} for the users and fields", path.display()).into()),
        None => Err("the two differ: use --differences to write down the users and fields".into()),
    }
}

fn report(args: &Args, wanted: &Wanted, done: &Progress) -> Result<(), Failure> {
    let Progress { created, updated, unchanged, rejected, rejects_bytes: _ } = done;
    let read = done.records();
    if args.json {
        print_json(&json!({
            "read": read, "created": created, "updated": updated, "unchanged": unchanged, "rejected": rejected,
        }))?;
    } else {
        let what = if args.dry_run { "dry run, nothing imported: " } else { "" };
        print(&format!(
            "{what}{read} read, {created} created, {updated} updated, {unchanged} unchanged, {rejected} rejected\n"
        ))?;
    }
    if *rejected == 0 {
        return Ok(());
    }
    Err(format!("{rejected} of {read} were rejected: {}", args.advice(wanted.rejects.as_deref())).into())
}

/// Another database cannot be reached, or refuses the query.
#[derive(Debug, thiserror::Error)]
#[error("{what} cannot be read from the database {place}")]
struct Unreadable {
    what: String,
    place: String,
    source: sqlx::Error,
}

/// The rows of another database, read like a file of lines.
struct Rows {
    rows: mpsc::Receiver<Result<Vec<u8>, Unreadable>>,
    buffer: io::Cursor<Vec<u8>>,
    /// The thread that reads them, until it is known how it ended.
    thread: Option<JoinHandle<()>>,
}

impl Rows {
    /// `what` the query reads, for messages.
    fn begin(source: store::Source, query: String, what: String) -> Self {
        let (send, rows) = mpsc::channel(4);
        let runtime = tokio::runtime::Handle::current();
        let thread = thread::spawn(move || {
            runtime.block_on(async {
                let take = async |rows: Vec<String>| {
                    send.send(Ok((rows.join("\n") + "\n").into_bytes())).await.is_ok()
                };
                if let Err(error) = store::imports::foreign_rows(&source, &query, take).await {
                    drop(send.send(Err(Unreadable { what, place: source.place(), source: error })).await);
                }
            });
        });
        Self { rows, buffer: io::Cursor::default(), thread: Some(thread) }
    }
}

impl Read for Rows {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.buffer.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            match self.rows.blocking_recv() {
                Some(rows) => self.buffer = io::Cursor::new(rows.map_err(io::Error::other)?),
                None => {
                    let ended = self.thread.take().map_or(Ok(()), JoinHandle::join);
                    return ended.map(|()| 0).map_err(|_| io::Error::other("the thread that reads panicked"));
                }
            }
        }
    }
}

/// Shows progress: a bar at a terminal, a line now and then elsewhere.
struct Display {
    bar: Option<ProgressBar>,
    total: Option<u64>,
    skipped: u64,
    started: Instant,
    reported: Instant,
    told: usize,
}

impl Display {
    fn new(total: Option<u64>, skipped: u64) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total.unwrap_or_default());
            let template = if total.is_some() { "{bar:30} {percent:>3} %  {msg}" } else { "{spinner} {msg}" };
            bar.set_style(
                ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            bar
        });
        let now = Instant::now();
        Self { bar, total, skipped, started: now, reported: now, told: 0 }
    }

    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => say(text),
        }
    }

    /// `bytes` is the part of the file that this run has covered.
    fn show(&mut self, records: u64, bytes: &Range<u64>, rejected: &[Rejection]) {
        if bytes.is_empty() {
            // By now the records of the earlier run have been skipped.
            self.started = Instant::now();
            return;
        }
        for Rejection { number, reason } in rejected.iter().take(TOLD.saturating_sub(self.told)) {
            self.say(&format!("{number}: {reason}"));
        }
        if self.told < TOLD && self.told + rejected.len() > TOLD {
            self.say("more were rejected; they are not listed here");
        }
        self.told += rejected.len();
        let elapsed = self.started.elapsed();
        let rate = (records - self.skipped) as f64 / elapsed.as_secs_f64().max(0.001);
        let mut text = format!("{records} records, {rate:.0}/s");
        if let Some(left) = self.total.and_then(|total| time_left(elapsed, bytes, total)) {
            text.push_str(&format!(", {} left", HumanDuration(left)));
        }
        match &self.bar {
            Some(bar) => {
                bar.set_position(bytes.end);
                bar.set_message(text);
            }
            None if self.reported.elapsed() >= REPORT_INTERVAL => {
                self.reported = Instant::now();
                say(&text);
            }
            None => {}
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// How long the rest of a file will take, given the time that `bytes` of it took.
fn time_left(elapsed: Duration, bytes: &Range<u64>, total: u64) -> Option<Duration> {
    let (done, left) = (bytes.end - bytes.start, total.saturating_sub(bytes.end));
    Duration::try_from_secs_f64(elapsed.as_secs_f64() * left as f64 / done as f64).ok()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn the_time_left_is_estimated_from_the_current_run_alone() {
        let minute = Duration::from_secs(60);
        assert_eq!(time_left(minute, &(0..250), 1000), Some(3 * minute));
        assert_eq!(time_left(minute, &(900..910), 1000), Some(9 * minute));
        assert_eq!(time_left(minute, &(900..1000), 1000), Some(Duration::ZERO));
        assert_eq!(time_left(minute, &(7..7), 1000), None);
        assert_eq!(time_left(Duration::MAX, &(0..1), u64::MAX), None);
    }

    #[test]
    fn an_import_with_different_reading_options_is_a_different_import() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let identity = |options: &str| {
            let command = format!("import x --format firebase {options}");
            let args = Command::parse_from(command.split_whitespace()).args;
            args.identity(&path("users"), Format::Firebase, None).unwrap().hash
        };
        let (users, one, copy, other) = (path("users"), path("one"), path("copy"), path("other"));
        for (path, content) in [(&users, "users"), (&one, "1"), (&copy, "1"), (&other, "2")] {
            fs::write(path, content).unwrap();
        }
        let config = |path: &Path| identity(&format!("--hash-config {}", path.display()));
        assert_eq!(config(&one), config(&copy));
        let all = [
            identity(""),
            identity("--allow-admin"),
            identity("--hash md5"),
            identity("--hash md5 --hash-template {password}x"),
            config(&one),
            config(&other),
        ];
        for (i, hash) in all.iter().enumerate() {
            assert!(!all[..i].contains(hash), "{i}");
        }
        fs::write(&users, "others").unwrap();
        assert!(!all.contains(&identity("")));
    }
}
