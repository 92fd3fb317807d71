//! Runs an import, one chunk of records at a time.

use std::{
    io::{self, Read},
    ops::Range,
    thread::{self, JoinHandle},
};

use rand_core::CryptoRng;
use time::OffsetDateTime;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};

use super::{
    FieldError, ImportError, Progress, ReadError, Record, Rejection, Rules, Wanted,
    merge::{MAX_CONFLICTS, Made, Ready, write},
    reader::{self, Layout, Original},
    rejects::{self, Rejects},
};
use crate::{
    account::{Cause, Error},
    password::{HashedPassword, Pool, foreign::Imported},
    random,
    store::{self, PgConnection, imports},
};

/// How many records one transaction takes: few enough that the users it changes do not wait long, for instance to log
/// in.
const CHUNK: usize = 1_000;

/// How many hashes one transaction wraps: some seconds of work, so that no more is lost when the import is killed.
pub const WRAPPED_CHUNK: usize = 256;

/// How many records the reading thread may read ahead.
const READ_AHEAD: usize = 2_000;

type Refused = (u64, Original, Vec<FieldError>);

/// An import in progress.
pub(super) struct Run<'a, R> {
    pub(super) wanted: &'a Wanted,
    pub(super) layout: Layout,
    pub(super) rejects: Option<Rejects>,
    pub(super) progress: Progress,
    /// Set in a dry run.
    pub(super) made: Option<Made>,
    pub(super) now: OffsetDateTime,
    pub(super) passwords: &'a Pool,
    pub(super) cause: &'a Cause,
    pub(super) rng: &'a mut R,
}

impl<R: CryptoRng> Run<'_, R> {
    /// Imports all records.
    pub(super) async fn all(
        &mut self,
        conn: &mut PgConnection,
        records: &mut Records,
        seen: &mut impl FnMut(&Progress, &Range<u64>, &[Rejection]),
    ) -> Result<(), ImportError> {
        let mut is_last = false;
        while !is_last {
            let mut chunk = Chunk::default();
            let end = chunk.fill(records, self.passwords, self.rng, self.wanted.dry_run).await?;
            if chunk.ready.is_empty() && chunk.refused.is_empty() {
                self.add_rejects(&[])?;
            } else {
                let refused = self.take(conn, chunk).await?;
                seen(&self.progress, records.bytes(), &refused);
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

    /// Imports a chunk of records in one transaction. Returns those that were refused.
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
        // After noting the progress, since only then is the file this import's alone. Before the commit, since a
        // resumed import cuts off any excess in the file.
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

/// The records that the reading thread hands over.
pub(super) struct Records {
    layout: Option<oneshot::Receiver<Layout>>,
    records: mpsc::Receiver<Result<(Record, Range<u64>), ReadError>>,
    /// The next record, if it has already been received.
    first: Option<Result<(Record, Range<u64>), ReadError>>,
    /// The range of bytes in which the records returned so far are.
    bytes: Range<u64>,
    /// The reading thread, until it is known how it ended.
    thread: Option<JoinHandle<()>>,
}

impl Records {
    /// Starts the thread, which skips the first `skip` records.
    pub(super) fn begin(input: impl Read + Send + 'static, rules: Rules, skip: u64) -> Self {
        let (layout, layout_read) = oneshot::channel();
        let (send, records) = mpsc::channel(READ_AHEAD);
        let thread = thread::spawn(move || {
            let mut layout = Some(layout);
            let mut begin = |found| {
                if let Some(layout) = layout.take() {
                    drop(layout.send(found));
                }
            };
            let mut skip = skip;
            // `false` when there is no receiver any more: the import has failed elsewhere.
            let mut take = |record, bytes| {
                if skip > 0 {
                    skip -= 1;
                    return true;
                }
                send.blocking_send(Ok((record, bytes))).is_ok()
            };
            if let Err(error) = reader::read(input, &rules, &mut begin, &mut take) {
                drop(send.blocking_send(Err(error)));
            }
        });
        Self { layout: Some(layout_read), records, first: None, bytes: 0..0, thread: Some(thread) }
    }

    /// The layout of the file.
    pub(super) async fn layout(&mut self) -> Result<Layout, ReadError> {
        let layout = match self.layout.take() {
            Some(layout) => layout.await.ok(),
            None => None,
        };
        match layout {
            Some(layout) => Ok(layout),
            // Reading failed before the layout was known.
            None => match self.records.recv().await {
                Some(Err(error)) => Err(error),
                _ => self.end().map(|()| Layout::Json),
            },
        }
    }

    /// Waits until the records to be skipped are skipped. Returns where they end.
    pub(super) async fn pass_over(&mut self) -> &Range<u64> {
        self.first = self.records.recv().await;
        if let Some(Ok((_, bytes))) = &self.first {
            self.bytes = bytes.start..bytes.start;
        }
        &self.bytes
    }

    pub(super) async fn next(&mut self) -> Result<Option<Record>, ReadError> {
        let next = match self.first.take() {
            Some(first) => Some(first),
            None => self.records.recv().await,
        };
        let Some((record, bytes)) = next.transpose()? else { return self.end().map(|()| None) };
        self.bytes.end = bytes.end;
        Ok(Some(record))
    }

    /// That no more records come means that there are no more only if the thread has not panicked.
    fn end(&mut self) -> Result<(), ReadError> {
        let ended = self.thread.take().map_or(Ok(()), JoinHandle::join);
        Ok(ended.map_err(|_| io::Error::other("the thread that reads them panicked"))?)
    }

    /// The range of the file, in bytes, in which the records returned so far are.
    pub(super) fn bytes(&self) -> &Range<u64> {
        &self.bytes
    }
}

/// What follows a chunk of records.
enum End {
    More,
    Last,
    /// The file cannot be read any further. The records before that point are good.
    Broken(ReadError),
}

/// The records of one transaction.
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
                // No one sees the result.
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

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::password::Peppers;

    #[tokio::test]
    async fn progress_counts_returned_records_not_skipped_or_prefetched_ones() {
        let rules = Rules::ours(Peppers::default(), None, false, datetime!(2026-01-02 03:04:05 UTC));
        let mut records = Records::begin(&b"{}\n{ }\n{  }\n"[..], rules, 1);
        assert_eq!(records.layout().await.unwrap(), Layout::Json);
        assert_eq!(records.pass_over().await, &(3..3));
        for (number, bytes) in [(2, 3..7), (3, 3..12)] {
            assert_eq!(records.next().await.unwrap().unwrap().number, number);
            assert_eq!(records.bytes(), &bytes);
        }
        assert!(records.next().await.unwrap().is_none());
        assert_eq!(records.bytes(), &(3..12));
    }

    #[tokio::test]
    async fn a_reader_that_panics_has_not_reached_the_end() {
        struct Panics;

        impl Read for Panics {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                panic!("as a test demands");
            }
        }

        for beginning in ["", "{}\n"] {
            let rules = Rules::ours(Peppers::default(), None, false, datetime!(2026-01-02 03:04:05 UTC));
            let mut records = Records::begin(beginning.as_bytes().chain(Panics), rules, 0);
            let ended = async {
                records.layout().await?;
                while records.next().await?.is_some() {}
                Ok::<_, ReadError>(())
            };
            assert!(matches!(ended.await, Err(ReadError::Io(_))));
        }
    }
}
