//! The threads that compute hashes, and the queue in front of them.
//!
//! A hash takes tens of milliseconds of one core and megabytes of memory, and anyone may ask for one. So hashes are
//! computed by a fixed number of threads, each with memory of its own, behind a queue of fixed length. Whatever the
//! load, the async threads stay free, memory stays within bounds, and a caller who cannot be served soon is told so at
//! once.
//!
//! Memory is bounded by `threads × memory`, plus [`MAX_BORROWED`] for all stored hashes together that take memory
//! beyond their thread's: imported ones, and those from before our own parameters were lowered. A hash that would take
//! more than is left waits until others have returned theirs.
//!
//! Where threads can have priorities of their own (Linux), the hashing threads run at `nice` 10; otherwise they would
//! take the cores that requests need for microseconds. On two cores, with both hashing and sixty callers storming, the
//! median bearer check took 1.2 times as long as without the storm; with hashing threads at the same priority as the
//! others, it took 3 to 4 times as long. While nobody else wants the cores, hashes take the same time either way.
//! (`tests/storm.rs`; `make bench-password` measures the same without the service.)
//!
//! Jobs are served first come, first served, except that jobs that need no extra memory overtake those that wait for
//! it. A job whose caller has hung up is dropped before it starts, and so is one that has waited longer than the
//! deadline: work that nobody waits for any more would delay everyone behind it.

use std::{
    collections::VecDeque,
    fmt, io, mem,
    num::NonZeroUsize,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;
use tracing::{Span, info_span};

use super::{
    HashedPassword, MAX_BORROWED, Params, ParamsError, Password, Peppers, Refusal, Rules, Verdict,
    foreign::FastHash,
    memory::Memory,
    recipe::{Demand, Recipe},
    rules,
};

/// The niceness of the hashing threads.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;

/// The longest time for which a refusal is held back. The most expensive imported hashes take about as long.
const MAX_DELAY: Duration = Duration::from_secs(2);

/// The settings of a [`Pool`].
#[derive(Clone, Debug)]
pub struct PoolSettings {
    /// How many hashes are computed at once (`PASSWORD_HASH_THREADS`).
    pub threads: NonZeroUsize,
    /// How many more may wait (`PASSWORD_HASH_QUEUE`).
    pub queue: usize,
    /// What a new hash costs (`ARGON2_*`).
    pub params: Params,
    /// The secrets that go into the hashes (`PASSWORD_PEPPER`).
    pub peppers: Peppers,
    /// How long a job may wait for its turn.
    pub deadline: Duration,
}

/// Why a [`Pool`] could not be made.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No hash can be made with these parameters.
    #[error(transparent)]
    Params(#[from] ParamsError),
    /// The system has too little memory for the threads.
    #[error("no memory for {threads} hashing threads of {memory_kib} KiB each")]
    Memory {
        /// How many threads were asked for.
        threads: NonZeroUsize,
        /// What each of them needs.
        memory_kib: u32,
    },
    /// The system refused to start a thread.
    #[error("could not start a hashing thread")]
    Thread(#[from] io::Error),
}

/// Why there is no hash or verdict.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// Too many jobs are waiting, or this one has waited longer than the deadline. Nothing was computed.
    #[error("too many passwords are waiting to be hashed")]
    Overloaded {
        /// When it may be worth trying again: in whole seconds, at least one, judged by what the queue holds now.
        retry_after: Duration,
    },
    /// A failure of ours or of the machine: the work panicked (the panic hook has said where), a stored hash needs more
    /// memory than there is, or the file of breached passwords can no longer be read.
    #[error("hashing failed: a panic, no memory, or no file of breached passwords")]
    Failed,
}

/// Threads that hash and verify passwords. Cheap to clone; the threads end when the last clone is dropped.
///
/// ```
/// use std::{num::NonZeroUsize, time::Duration};
/// use gatepass::password::{Params, Password, Peppers, Pool, PoolSettings, Verdict};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pool = Pool::new(PoolSettings {
///     threads: NonZeroUsize::MIN,
///     queue: 16,
///     params: Params { memory_kib: 19456, iterations: 2, parallelism: 1 },
///     peppers: Peppers::default(),
///     deadline: Duration::from_secs(5),
/// })?;
/// let password = Password::new("a quiet river at noon");
/// let salt = [7; 16]; // 16 random bytes, for each password its own
/// let stored = pool.hash(&password, salt).await?;
/// assert_eq!(pool.verify(&password, Some(&stored)).await?, Verdict::Match { outdated: false });
/// assert_eq!(pool.verify(&password, None).await?, Verdict::NoMatch);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Pool(Arc<Handle>);

/// What the clones share. When it is dropped, the threads end.
struct Handle {
    queue: Arc<Queue>,
    recipe: Arc<Recipe>,
    /// The longest time, in microseconds, taken by a verification that can be told by its time from one for a user who
    /// does not exist.
    longest: AtomicU64,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.queue.lock().is_closed = true;
        self.queue.changed.notify_all();
    }
}

impl Pool {
    /// Starts the threads, each with its memory.
    ///
    /// # Errors
    ///
    /// When the parameters are out of bounds, or the system cannot provide that many threads or that much memory.
    pub fn new(settings: PoolSettings) -> Result<Self, StartError> {
        let PoolSettings { threads, queue, params, peppers, deadline } = settings;
        params.check()?;
        let recipe = Arc::new(Recipe { params, peppers });
        // Made first: if a later thread cannot be started, dropping the pool ends the earlier ones.
        let queue = Arc::new(Queue::new(threads, queue, deadline));
        let pool = Self(Arc::new(Handle { queue, recipe, longest: AtomicU64::new(0) }));
        for number in 0..threads.get() {
            let mut memory = pool
                .0
                .recipe
                .memory()
                .map_err(|_| StartError::Memory { threads, memory_kib: params.memory_kib })?;
            let queue = Arc::clone(&pool.0.queue);
            thread::Builder::new().name(format!("gatepass-hash-{number}")).spawn(move || {
                yield_to_others();
                // Here, in parallel with the rest of the start and with the other threads.
                memory.fill();
                while queue.run_next(&mut memory) {}
            })?;
        }
        Ok(pool)
    }

    /// Hashes a new password with Argon2id and the pool's parameters. The salt must be random and used for nothing
    /// else.
    ///
    /// # Errors
    ///
    /// [`PoolError::Overloaded`], at once if the queue is full, or when this job's turn comes too late;
    /// [`PoolError::Failed`] if the work fails.
    pub async fn hash(&self, password: &Password, salt: [u8; 16]) -> Result<HashedPassword, PoolError> {
        let (password, recipe) = (password.clone(), Arc::clone(&self.0.recipe));
        self.run(move |memory| recipe.hash(&password, salt, memory)).await
    }

    /// Makes what to store in place of a fast hash of another system: Argon2id over its digest, with the pool's
    /// parameters. The salt must be random and used for nothing else.
    ///
    /// # Errors
    ///
    /// As for [`Pool::hash`].
    pub async fn wrap(&self, fast: FastHash, salt: [u8; 16]) -> Result<HashedPassword, PoolError> {
        let recipe = Arc::clone(&self.0.recipe);
        self.run(move |memory| recipe.wrap(&fast, salt, memory)).await
    }

    /// Checks a password against what is stored for the user.
    ///
    /// `None` stands for a user who does not exist: the work is the same, and the verdict always [`Verdict::NoMatch`].
    /// The work is also the same if what is stored cannot be read and, to within a tenth, if it is a hash that costs
    /// less than new ones.
    ///
    /// A hash that costs more takes longer. Once one has, every answer except a match is held back until as much time
    /// has passed since its work began, up to two seconds. That occupies no thread, and the caller cannot tell one case
    /// from another.
    ///
    /// # Errors
    ///
    /// As for [`Pool::hash`].
    pub async fn verify(
        &self,
        password: &Password,
        stored: Option<&HashedPassword>,
    ) -> Result<Verdict, PoolError> {
        Ok(self.verify_with(password, stored, None).await?.0)
    }

    /// Like [`Pool::verify`]; if the password is right and what is stored is outdated, also returns what to store in
    /// its place, hashed with this salt in the same turn of the same thread. The salt must be random and used for
    /// nothing else.
    ///
    /// # Errors
    ///
    /// As for [`Pool::hash`].
    pub async fn verify_and_renew(
        &self,
        password: &Password,
        stored: Option<&HashedPassword>,
        salt: [u8; 16],
    ) -> Result<(Verdict, Option<HashedPassword>), PoolError> {
        self.verify_with(password, stored, Some(salt)).await
    }

    async fn verify_with(
        &self,
        password: &Password,
        stored: Option<&HashedPassword>,
        salt: Option<[u8; 16]>,
    ) -> Result<(Verdict, Option<HashedPassword>), PoolError> {
        let (password, stored, recipe) = (password.clone(), stored.cloned(), Arc::clone(&self.0.recipe));
        let Demand { borrowed, is_usual } = recipe.demand(stored.as_ref());
        let verify = move |memory: &mut Memory| {
            let begun = Instant::now();
            let verdict = recipe.verify(&password, stored.as_ref(), memory)?;
            let took = begun.elapsed();
            let is_outdated = matches!(verdict, Verdict::Match { outdated: true });
            // The verdict stands even if this fails.
            let renewed =
                salt.filter(|_| is_outdated).and_then(|salt| recipe.hash(&password, salt, memory).ok());
            Ok((verdict, renewed, took))
        };
        let (verdict, renewed, took) = self.run_with(borrowed, verify).await?;
        if !is_usual {
            let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            self.0.longest.fetch_max(micros, Ordering::Relaxed);
        }
        if !matches!(verdict, Verdict::Match { .. }) {
            // Counted from when a thread took the job. Several attempts at once for one user still wait for each
            // other's hashes, while attempts for a user who does not exist do not: see docs/foreign-hashes.md.
            tokio::time::sleep(self.shortest_refusal().saturating_sub(took)).await;
        }
        Ok((verdict, renewed))
    }

    /// The shortest time in which a refusal may be answered.
    fn shortest_refusal(&self) -> Duration {
        Duration::from_micros(self.0.longest.load(Ordering::Relaxed)).min(MAX_DELAY)
    }

    /// Runs [`rules::check`] on a hashing thread, since it takes milliseconds or reads a file.
    ///
    /// # Errors
    ///
    /// As for [`Pool::hash`]. The inner error is the first rule that the password breaks.
    pub async fn check(
        &self,
        password: &Password,
        rules: &Rules,
        own: &[&str],
    ) -> Result<Result<(), Refusal>, PoolError> {
        let (password, rules) = (password.clone(), rules.clone());
        let own: Vec<String> = own.iter().map(|&text| text.to_owned()).collect();
        self.run(move |_| {
            let own: Vec<&str> = own.iter().map(String::as_str).collect();
            Ok(rules::check(&password, &rules, &own))
        })
        .await?
        .map_err(|error| {
            tracing::error!(%error, "a new password cannot be checked");
            PoolError::Failed
        })
    }

    /// Checks whether a job begun now would find a place, for a caller who would otherwise do other work in vain first.
    /// This reserves no place.
    ///
    /// # Errors
    ///
    /// [`PoolError::Overloaded`] when the queue is full.
    pub fn check_room(&self) -> Result<(), PoolError> {
        self.0.queue.lock_with_room().map(drop)
    }

    /// The peppers that go into its hashes.
    pub fn peppers(&self) -> &Peppers {
        &self.0.recipe.peppers
    }

    /// What its hashes cost.
    pub fn params(&self) -> &Params {
        &self.0.recipe.params
    }

    /// How many jobs wait for a thread.
    pub fn queued(&self) -> usize {
        self.0.queue.lock().jobs.len()
    }

    /// How many jobs are being computed.
    pub fn running(&self) -> usize {
        self.0.queue.lock().running
    }

    /// How many jobs may be waiting and running altogether.
    pub fn capacity(&self) -> usize {
        self.0.queue.capacity
    }

    /// Calls `watcher` for each finished job with how long it waited and how long it took. Only the first watcher is
    /// used.
    pub fn watch(&self, watcher: impl Fn(Duration, Duration) + Send + Sync + 'static) {
        // Nobody wants a second one, and nothing depends on it.
        let _ = self.0.queue.watcher.set(Box::new(watcher));
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Memory) -> Result<T, argon2::Error> + Send + 'static,
    ) -> Result<T, PoolError> {
        self.run_with(0, work).await
    }

    /// Runs work that takes `borrowed` bytes beyond its thread's memory.
    async fn run_with<T: Send + 'static>(
        &self,
        borrowed: u64,
        work: impl FnOnce(&mut Memory) -> Result<T, argon2::Error> + Send + 'static,
    ) -> Result<T, PoolError> {
        let (answer, answered) = oneshot::channel();
        self.0.queue.push(borrowed, Box::new(Task { work, answer }))?;
        answered.await.unwrap_or(Err(PoolError::Failed))
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("recipe", &self.0.recipe)
            .field("queued", &self.queued())
            .field("running", &self.running())
            .finish_non_exhaustive()
    }
}

/// Lets every other thread that has something to do go first. A hash takes all of a core for as long as it runs; an
/// async thread needs little, but at once.
#[cfg(target_os = "linux")]
fn yield_to_others() {
    // On Linux this applies to the calling thread alone, and anybody may lower their own priority.
    if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
        tracing::debug!(%error, "hashing threads keep the priority of the others");
    }
}

#[cfg(not(target_os = "linux"))]
fn yield_to_others() {}

/// Something to compute for a caller who waits for it.
trait Job: Send {
    /// Whether the caller has gone.
    fn is_abandoned(&self) -> bool;
    /// Does the work, and returns the function that answers the caller.
    fn run(self: Box<Self>, memory: &mut Memory) -> Box<dyn FnOnce()>;
    fn refuse(self: Box<Self>, error: PoolError);
}

struct Task<W, T> {
    work: W,
    answer: oneshot::Sender<Result<T, PoolError>>,
}

impl<W, T> Job for Task<W, T>
where
    W: FnOnce(&mut Memory) -> Result<T, argon2::Error> + Send,
    T: Send + 'static,
{
    fn is_abandoned(&self) -> bool {
        self.answer.is_closed()
    }

    fn run(self: Box<Self>, memory: &mut Memory) -> Box<dyn FnOnce()> {
        let Self { work, answer } = *self;
        // A panic ends the job, not the thread. The memory holds plain numbers, and any will do for the next hash.
        let result = match catch_unwind(AssertUnwindSafe(|| work(memory))) {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => {
                tracing::error!(%error, "a password cannot be hashed");
                Err(PoolError::Failed)
            }
            // The panic hook has said where.
            Err(_) => Err(PoolError::Failed),
        };
        // The caller may have gone meanwhile.
        Box::new(move || drop(answer.send(result)))
    }

    fn refuse(self: Box<Self>, error: PoolError) {
        drop(self.answer.send(Err(error)));
    }
}

/// The jobs between the callers and the threads.
struct Queue {
    state: Mutex<State>,
    /// A job has arrived, or the pool is gone.
    changed: Condvar,
    threads: usize,
    /// How many jobs may be waiting and running altogether.
    capacity: usize,
    deadline: Duration,
    watcher: OnceLock<Watcher>,
}

/// Called with how long a job waited and how long it took.
type Watcher = Box<dyn Fn(Duration, Duration) + Send + Sync>;

#[derive(Default)]
struct State {
    jobs: VecDeque<Waiting>,
    running: usize,
    /// How many bytes the running jobs take beyond their threads' memory.
    borrowed: u64,
    /// How long a job takes: a moving average.
    typical: Duration,
    is_closed: bool,
}

struct Waiting {
    job: Box<dyn Job>,
    /// How many bytes it takes beyond its thread's memory.
    borrowed: u64,
    since: Instant,
    /// The caller's span and, below it, that of the wait.
    caller: Span,
    wait: Span,
}

impl State {
    /// Takes the first job for which there is memory. Jobs that borrow memory do not overtake one another, so that a
    /// stream of small ones cannot keep a large one waiting. A single one is always served: how much it may take was
    /// decided when its hash was read.
    fn take_first(&mut self) -> Option<Waiting> {
        let mut may_borrow = true;
        let at = self.jobs.iter().position(|waiting| {
            waiting.borrowed == 0
                || mem::take(&mut may_borrow)
                    && (self.borrowed == 0 || self.borrowed + waiting.borrowed <= MAX_BORROWED)
        })?;
        self.jobs.remove(at)
    }
}

impl Queue {
    fn new(threads: NonZeroUsize, length: usize, deadline: Duration) -> Self {
        Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            threads: threads.get(),
            capacity: threads.get().saturating_add(length),
            deadline,
            watcher: OnceLock::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No job runs while the state is locked, so a panic has left nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the state, with a place for one more job.
    fn lock_with_room(&self) -> Result<MutexGuard<'_, State>, PoolError> {
        let mut state = self.lock();
        let is_full = |state: &State| state.jobs.len() + state.running >= self.capacity;
        if is_full(&state) {
            // A caller who has hung up holds no place.
            state.jobs.retain(|waiting| !waiting.job.is_abandoned());
        }
        if is_full(&state) { Err(self.overloaded(&state)) } else { Ok(state) }
    }

    fn push(&self, borrowed: u64, job: Box<dyn Job>) -> Result<(), PoolError> {
        let mut state = self.lock_with_room()?;
        let (caller, wait) = (Span::current(), info_span!("wait for a hashing thread"));
        state.jobs.push_back(Waiting { job, borrowed, since: Instant::now(), caller, wait });
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    /// Waits for the next job and does it. Returns false if the pool is gone.
    fn run_next(&self, memory: &mut Memory) -> bool {
        let Some(Waiting { job, borrowed, since, caller, wait }) = self.next(memory) else { return false };
        drop(wait);
        let start = Instant::now();
        let answer = info_span!(parent: &caller, "hash a password").in_scope(|| job.run(memory));
        let took = start.elapsed();
        {
            let mut state = self.lock();
            state.running -= 1;
            state.borrowed -= borrowed;
            state.typical = if state.typical.is_zero() { took } else { (state.typical * 7 + took) / 8 };
        }
        if borrowed > 0 {
            // This thread may take a job that has waited for the memory, and there may be room for more.
            self.changed.notify_all();
        }
        if let Some(watcher) = self.watcher.get() {
            watcher(start - since, took);
        }
        drop(caller);
        // Only now: a caller who has an answer finds the place free again, and nobody else still holds their span.
        answer();
        true
    }

    fn next(&self, memory: &mut Memory) -> Option<Waiting> {
        let mut state = self.lock();
        while !state.is_closed {
            if let Some(waiting) = state.take_first() {
                if waiting.job.is_abandoned() {
                    continue;
                }
                if waiting.since.elapsed() >= self.deadline {
                    waiting.job.refuse(self.overloaded(&state));
                    continue;
                }
                state.running += 1;
                state.borrowed += waiting.borrowed;
                return Some(waiting);
            }
            if memory.is_dirty() {
                // Only when idle: under load the next hash overwrites it anyway.
                drop(state);
                memory.wipe();
                state = self.lock();
            } else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
        None
    }

    /// The refusal, with the time after which the current jobs will be done or given up.
    fn overloaded(&self, state: &State) -> PoolError {
        let jobs = state.jobs.len() + state.running;
        let rounds = u32::try_from(jobs / self.threads).unwrap_or(u32::MAX).saturating_add(1);
        let wait = state.typical.saturating_mul(rounds).min(self.deadline);
        let seconds = wait.as_millis().div_ceil(1000).max(1);
        PoolError::Overloaded { retry_after: Duration::from_secs(u64::try_from(seconds).unwrap_or(u64::MAX)) }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future,
        pin::pin,
        sync::{
            atomic::{AtomicUsize, Ordering},
            mpsc,
        },
        task::{Context, Waker},
    };

    use super::*;
    use crate::password::Unreadable;

    const TINY: Params = Params { memory_kib: 8, iterations: 1, parallelism: 1 };

    fn pool(threads: usize, queue: usize, deadline: Duration) -> Pool {
        let threads = NonZeroUsize::new(threads).unwrap();
        Pool::new(PoolSettings { threads, queue, params: TINY, peppers: Peppers::default(), deadline })
            .unwrap()
    }

    const LONG: Duration = Duration::from_secs(600);

    /// Starts a future and lets it wait.
    fn begin<F: Future>(future: std::pin::Pin<&mut F>) {
        assert!(future.poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }

    /// Work that holds its thread until the sender is dropped, and says when it has begun.
    fn blocker()
    -> (impl FnOnce(&mut Memory) -> Result<(), argon2::Error>, mpsc::Receiver<()>, mpsc::Sender<()>) {
        let (begun, has_begun) = mpsc::channel();
        let (release, released) = mpsc::channel();
        let work = move |_: &mut Memory| {
            begun.send(()).unwrap();
            let _: Result<(), _> = released.recv();
            Ok(())
        };
        (work, has_begun, release)
    }

    #[tokio::test]
    async fn hashes_and_verifies() {
        let pool = pool(2, 8, LONG);
        let password = Password::new("secret");
        let stored = pool.hash(&password, [7; 16]).await.unwrap();
        assert!(stored.as_str().starts_with("$argon2id$v=19$m=8,t=1,p=1$"));
        assert_ne!(stored, pool.hash(&password, [8; 16]).await.unwrap());
        let table = [
            (Some(stored.clone()), "secret", Verdict::Match { outdated: false }),
            (Some(stored.clone()), "wrong", Verdict::NoMatch),
            (None, "secret", Verdict::NoMatch),
            (Some(HashedPassword::from_stored("x")), "secret", Verdict::Unreadable(Unreadable::Format)),
        ];
        for (stored, password, verdict) in table {
            assert_eq!(pool.verify(&Password::new(password), stored.as_ref()).await.unwrap(), verdict);
        }
        assert_eq!((pool.queued(), pool.running()), (0, 0));
    }

    #[tokio::test]
    async fn many_at_once_on_few_threads() {
        let pool = pool(2, 200, LONG);
        let tasks: Vec<_> = (0..200u8)
            .map(|i| {
                let pool = pool.clone();
                tokio::spawn(async move { pool.hash(&Password::new("secret"), [i; 16]).await.unwrap() })
            })
            .collect();
        let mut hashes = Vec::new();
        for task in tasks {
            hashes.push(task.await.unwrap().as_str().to_owned());
        }
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), 200);
    }

    #[tokio::test]
    async fn full_queue_refuses_at_once() {
        let pool = pool(1, 2, LONG);
        let (work, has_begun, release) = blocker();
        let mut running = pin!(pool.run(work));
        begin(running.as_mut());
        has_begun.recv().unwrap();
        let password = Password::new("secret");
        let (mut first, mut second) =
            (pin!(pool.verify(&password, None)), pin!(pool.verify(&password, None)));
        begin(first.as_mut());
        begin(second.as_mut());
        assert_eq!((pool.queued(), pool.running()), (2, 1));

        let refused = pool.verify(&password, None).await.unwrap_err();
        let PoolError::Overloaded { retry_after } = refused else { panic!("{refused}") };
        assert_eq!(retry_after, Duration::from_secs(1));

        drop(release);
        running.await.unwrap();
        assert_eq!(first.await.unwrap(), Verdict::NoMatch);
        assert_eq!(second.await.unwrap(), Verdict::NoMatch);
        pool.verify(&password, None).await.unwrap();
    }

    #[tokio::test]
    async fn no_queue_still_serves_an_idle_thread() {
        let pool = pool(1, 0, LONG);
        let password = Password::new("secret");
        pool.hash(&password, [7; 16]).await.unwrap();

        let (work, _has_begun, release) = blocker();
        let mut running = pin!(pool.run(work));
        begin(running.as_mut());
        assert!(matches!(pool.hash(&password, [7; 16]).await, Err(PoolError::Overloaded { .. })));
        drop(release);
        running.await.unwrap();
    }

    #[tokio::test]
    async fn abandoned_work_is_dropped_and_holds_no_place() {
        let pool = pool(1, 2, LONG);
        let (work, has_begun, release) = blocker();
        let mut running = pin!(pool.run(work));
        begin(running.as_mut());
        has_begun.recv().unwrap();

        let ran = Arc::new(AtomicUsize::new(0));
        let counted = || {
            let ran = Arc::clone(&ran);
            move |_: &mut Memory| Ok(ran.fetch_add(1, Ordering::SeqCst))
        };
        {
            let (mut first, mut second) = (pin!(pool.run(counted())), pin!(pool.run(counted())));
            begin(first.as_mut());
            begin(second.as_mut());
            assert!(matches!(pool.run(counted()).await, Err(PoolError::Overloaded { .. })));
        }
        // Both callers have gone: there is room again, and only what is requested from now on will run.
        let mut third = pin!(pool.run(counted()));
        begin(third.as_mut());
        assert_eq!(pool.queued(), 1);
        let mut fourth = Box::pin(pool.run(counted()));
        begin(fourth.as_mut());
        drop(fourth);

        drop(release);
        running.await.unwrap();
        third.await.unwrap();
        pool.run(counted()).await.unwrap();
        assert_eq!(ran.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn first_come_first_served() {
        let pool = pool(1, 10, LONG);
        let (work, has_begun, release) = blocker();
        let mut running = pin!(pool.run(work));
        begin(running.as_mut());
        has_begun.recv().unwrap();
        let served = Arc::new(Mutex::new(Vec::new()));
        let mut jobs: Vec<_> = (0..10)
            .map(|number| {
                let served = Arc::clone(&served);
                Box::pin(pool.run(move |_: &mut Memory| {
                    served.lock().unwrap().push(number);
                    Ok(())
                }))
            })
            .collect();
        for job in &mut jobs {
            begin(job.as_mut());
        }
        drop(release);
        for job in jobs {
            job.await.unwrap();
        }
        assert_eq!(*served.lock().unwrap(), (0..10).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn no_more_memory_is_borrowed_than_there_is() {
        let pool = pool(4, 10, LONG);
        let (work, has_begun, release) = blocker();
        let mut first = pin!(pool.run_with(MAX_BORROWED / 2 + 1, work));
        begin(first.as_mut());
        has_begun.recv().unwrap();

        let (work, second_has_begun, release_second) = blocker();
        let mut second = pin!(pool.run_with(MAX_BORROWED / 2, work));
        begin(second.as_mut());
        // There is memory for this one, but it must not overtake one that came earlier.
        let (work, third_has_begun, release_third) = blocker();
        let mut third = pin!(pool.run_with(1, work));
        begin(third.as_mut());
        // A job that needs no memory does not wait for it.
        pool.run(|_| Ok(())).await.unwrap();
        assert_eq!((pool.queued(), pool.running()), (2, 1));

        drop(release);
        first.await.unwrap();
        second_has_begun.recv().unwrap();
        third_has_begun.recv().unwrap();
        drop((release_second, release_third));
        second.await.unwrap();
        third.await.unwrap();
        assert_eq!(pool.0.queue.lock().borrowed, 0);
        // A hash from before our own parameters were lowered may take this much.
        pool.run_with(8 * MAX_BORROWED, |_| Ok(())).await.unwrap();
    }

    #[tokio::test]
    async fn expensive_hashes_run_one_at_a_time() {
        let pool = pool(2, 8, LONG);
        let scrypt = "$scrypt$ln=17,r=8,p=1$c2FsdA$c2FsdHNhbHRzYWx0c2FsdHNhbHRzYWx0c2FsdHNhbHRzYWx0";
        let scrypt = HashedPassword::from_stored(scrypt);
        let (work, has_begun, release) = blocker();
        let mut running = pin!(pool.run_with(MAX_BORROWED, work));
        begin(running.as_mut());
        has_begun.recv().unwrap();
        let password = Password::new("secret");
        let mut waits = Box::pin(pool.verify(&password, Some(&scrypt)));
        begin(waits.as_mut());
        pool.run(|_| Ok(())).await.unwrap();
        assert_eq!((pool.queued(), pool.running()), (1, 1));
        // Not computed: nobody waits for it any more.
        drop(waits);
        drop(release);
        running.await.unwrap();
    }

    /// Tokio's clock advances only by its own sleeps, which are what this measures.
    #[tokio::test(start_paused = true)]
    async fn all_refusals_take_as_long_as_the_slowest_kind() {
        let pool = pool(1, 8, LONG);
        let password = Password::new("secret");
        let own = pool.hash(&password, [7; 16]).await.unwrap();
        let none = Duration::ZERO;
        let waits = async |typed: &str, stored: Option<&HashedPassword>| {
            let begun = tokio::time::Instant::now();
            pool.verify(&Password::new(typed), stored).await.unwrap();
            begun.elapsed()
        };
        for (typed, stored) in [("secret", Some(&own)), ("wrong", Some(&own)), ("secret", None)] {
            assert_eq!(waits(typed, stored).await, none);
        }
        let bcrypt = "$2b$08$EixZaYVK1fsbw1ZfbX3OXePaWxn96p36WQoeG6Lruj3vjPGga31lW";
        waits("wrong", Some(&HashedPassword::from_stored(bcrypt))).await;
        assert!(pool.shortest_refusal() > none);

        let second = Duration::from_secs(1);
        pool.0.longest.store(1_000_000, Ordering::Relaxed);
        let refused = [("wrong", Some(&own)), ("secret", None), ("x", Some(&HashedPassword("x".into())))];
        for (typed, stored) in refused {
            let waited = waits(typed, stored).await;
            assert!((second / 2..=second + second / 100).contains(&waited), "{waited:?}");
        }
        assert_eq!(waits("secret", Some(&own)).await, none);

        pool.0.longest.store(u64::MAX, Ordering::Relaxed);
        assert_eq!(pool.shortest_refusal(), MAX_DELAY);
    }

    #[tokio::test]
    async fn past_the_deadline_nothing_is_computed() {
        // Whenever a thread takes it, it is too late.
        let pool = pool(1, 8, Duration::ZERO);
        let error = pool.run(|_| -> Result<(), _> { panic!("ran") }).await.unwrap_err();
        let PoolError::Overloaded { retry_after } = error else { panic!("{error}") };
        assert_eq!(retry_after, Duration::from_secs(1));
    }

    #[test]
    fn retry_after_is_true_to_the_queue() {
        let queue = Queue::new(NonZeroUsize::new(2).unwrap(), 100, Duration::from_secs(5));
        let table = [
            // milliseconds per job, running, seconds
            (0, 0, 1),
            (30, 2, 1),
            (30, 102, 2),
            (100, 60, 4),
            (1000, 102, 5),
        ];
        for (typical, running, seconds) in table {
            let typical = Duration::from_millis(typical);
            let error = queue.overloaded(&State { running, typical, ..State::default() });
            let PoolError::Overloaded { retry_after } = error else { panic!("{error}") };
            assert_eq!(retry_after, Duration::from_secs(seconds), "{typical:?} {running}");
        }
    }

    #[tokio::test]
    async fn a_panic_costs_one_job_and_no_thread() {
        let pool = pool(1, 8, LONG);
        for _ in 0..3 {
            let error = pool.run(|_| -> Result<(), _> { panic!("on purpose") }).await.unwrap_err();
            assert!(matches!(error, PoolError::Failed), "{error}");
        }
        let password = Password::new("secret");
        let stored = pool.hash(&password, [7; 16]).await.unwrap();
        assert_eq!(pool.verify(&password, Some(&stored)).await.unwrap(), Verdict::Match { outdated: false });
        let error = pool.run(|_| Err::<(), _>(argon2::Error::OutOfMemory)).await.unwrap_err();
        assert!(matches!(error, PoolError::Failed), "{error}");
    }

    #[tokio::test]
    async fn idle_threads_have_wiped_their_memory() {
        let pool = pool(1, 8, LONG);
        pool.hash(&Password::new("secret"), [7; 16]).await.unwrap();
        // The next job finds the memory dirty only if it came before the thread was idle.
        let mut is_dirty = true;
        for _ in 0..1000 {
            if !is_dirty {
                break;
            }
            thread::sleep(Duration::from_millis(1));
            is_dirty = pool.run(|memory| Ok(memory.is_dirty())).await.unwrap();
        }
        assert!(!is_dirty);
    }

    #[test]
    fn threads_end_with_the_last_pool() {
        let pool = pool(3, 8, LONG);
        let queue = Arc::downgrade(&pool.0.queue);
        let other = pool.clone();
        drop(pool);
        assert_eq!(queue.strong_count(), 4);
        drop(other);
        for _ in 0..10_000 {
            if queue.strong_count() == 0 {
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
        panic!("a thread lives on");
    }

    #[test]
    fn a_pool_with_impossible_parameters_is_an_error() {
        let settings = |memory_kib| PoolSettings {
            threads: NonZeroUsize::MIN,
            queue: 1,
            params: Params { memory_kib, iterations: 1, parallelism: 1 },
            peppers: Peppers::default(),
            deadline: LONG,
        };
        assert!(matches!(Pool::new(settings(7)), Err(StartError::Params(ParamsError::TooLittle))));
        assert!(matches!(Pool::new(settings(u32::MAX)), Err(StartError::Params(ParamsError::TooMuch))));
    }

    #[test]
    fn futures_can_be_spawned() {
        fn is_send<T: Send>(_: &T) {}
        let pool = pool(1, 1, LONG);
        let password = Password::new("secret");
        is_send(&pool.hash(&password, [7; 16]));
        is_send(&pool.verify(&password, None));
    }
}
