//! The memory in which a thread computes its hashes.

use std::time::Duration;

use argon2::{Block, Error};
use zeroize::Zeroize;

/// The memory in which one thread computes its hashes, one after the other. It is allocated once, so that a hash
/// neither asks the system for pages nor waits for them, and lies on huge pages where the system grants them, which
/// spares the processor most of its address lookups.
///
/// What a hash leaves behind would let anybody who reads it try passwords without paying for the memory, so it is
/// wiped: by the next hash, whose first pass overwrites all of it, or by [`Memory::wipe`] if there is no next one.
/// (Wiping takes about a thirtieth of a hash's time at the default parameters, and nothing under load.)
#[derive(Debug)]
pub(super) struct Memory {
    /// Either none of them or all.
    blocks: Vec<Block>,
    count: usize,
    /// How many of the blocks, from the first, have been written since the last wipe.
    dirty: usize,
    pub(super) pace: Pace,
    #[cfg(test)]
    pub(super) computed: u64,
}

/// How fast a thread computes Argon2, to convert time into work. A moving average, since others want the cores too.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// The time for 1 MiB of memory times passes; zero if nothing is known yet.
    mebibyte: Duration,
}

impl Pace {
    /// Records how long some work, in KiB times passes, took.
    pub(super) fn note(&mut self, work_kib: u64, took: Duration) {
        let nanoseconds = took.as_nanos() * 1024 / u128::from(work_kib.max(1));
        let mebibyte = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        self.mebibyte = if self.mebibyte.is_zero() {
            mebibyte
        } else {
            (self.mebibyte.saturating_mul(7).saturating_add(mebibyte)) / 8
        };
    }

    /// The work that would have taken this long: none, as long as nothing is known.
    pub(super) fn work_kib(&self, took: Duration) -> u64 {
        let work = (took.as_nanos() * 1024).checked_div(self.mebibyte.as_nanos()).unwrap_or(0);
        u64::try_from(work).unwrap_or(u64::MAX)
    }
}

impl Memory {
    /// Memory of `count` blocks of 1 KiB, which the system has promised, but need not provide before [`Memory::fill`].
    pub(super) fn of_blocks(count: usize) -> Result<Self, Error> {
        let mut blocks = Vec::new();
        blocks.try_reserve_exact(count).map_err(|_| Error::OutOfMemory)?;
        // Before anything is written, since the first write makes the system choose the page.
        ask_for_huge_pages(&mut blocks);
        Ok(Self {
            blocks,
            count,
            dirty: 0,
            pace: Pace::default(),
            #[cfg(test)]
            computed: 0,
        })
    }

    /// Makes the system provide all of it, which takes about half as long as a hash. Otherwise the first hash does so.
    pub(super) fn fill(&mut self) {
        self.blocks.resize(self.count, Block::new());
    }

    /// Lends `count` blocks. If there are fewer, as for a stored hash with larger parameters, they are allocated for
    /// this call alone, then wiped and freed.
    pub(super) fn with<T>(&mut self, count: usize, work: impl FnOnce(&mut [Block]) -> T) -> Result<T, Error> {
        self.fill();
        match self.blocks.get_mut(..count) {
            Some(blocks) => {
                self.dirty = self.dirty.max(count);
                Ok(work(blocks))
            }
            None => Self::of_blocks(count)?.with(count, work),
        }
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.dirty > 0
    }

    pub(super) fn wipe(&mut self) {
        self.blocks[..self.dirty].iter_mut().for_each(Block::zeroize);
        self.dirty = 0;
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.wipe();
    }
}

/// Asks the system to put the spare capacity on huge pages. It need not: small pages are only a little slower.
#[cfg(target_os = "linux")]
#[expect(
    unsafe_code,
    reason = "no crate asks for huge pages under a vector; it is one call, without consequences"
)]
fn ask_for_huge_pages(blocks: &mut Vec<Block>) {
    let spare = blocks.spare_capacity_mut();
    let page = rustix::param::page_size();
    let start = spare.as_mut_ptr().cast::<u8>();
    let skipped = start.align_offset(page);
    let Some(length) = size_of_val(spare).checked_sub(skipped) else { return };
    let whole_pages = length - length % page;
    if whole_pages == 0 {
        return;
    }
    // SAFETY: the whole pages from the first page boundary on lie within the spare capacity, which we have borrowed
    // exclusively, and this advice changes only on which pages memory lies, never its contents.
    let granted = unsafe {
        rustix::mm::madvise(start.add(skipped).cast(), whole_pages, rustix::mm::Advice::LinuxHugepage)
    };
    if let Err(error) = granted {
        tracing::debug!(%error, "no huge pages for password hashes");
    }
}

#[cfg(not(target_os = "linux"))]
fn ask_for_huge_pages(_: &mut Vec<Block>) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_converted_into_work_at_the_measured_pace() {
        let (ms, mut pace) = (Duration::from_millis, Pace::default());
        assert_eq!(pace.work_kib(ms(5)), 0, "nothing is known");
        pace.note(2048, ms(2));
        assert_eq!(pace.work_kib(ms(5)), 5120);
        // A disturbed measurement counts for an eighth.
        pace.note(1024, ms(9));
        assert_eq!(pace.work_kib(ms(4)), 2048);
        pace.note(0, Duration::MAX);
        assert_eq!(pace.work_kib(Duration::ZERO), 0);
    }

    fn is_zero(memory: &Memory) -> bool {
        memory.blocks.iter().flat_map(AsRef::as_ref).all(|&word| word == 0)
    }

    #[test]
    fn wiped_memory_is_zero() {
        let mut memory = Memory::of_blocks(64).unwrap();
        memory.fill();
        assert!(is_zero(&memory) && !memory.is_dirty());
        let fill = |blocks: &mut [Block]| blocks.iter_mut().for_each(|block| block.as_mut().fill(7));
        memory.with(64, fill).unwrap();
        // A smaller hash after it does not hide what is left.
        memory.with(8, fill).unwrap();
        assert!(!is_zero(&memory) && memory.is_dirty());
        memory.wipe();
        assert!(is_zero(&memory) && !memory.is_dirty());
    }

    #[test]
    fn greater_memory_is_given_back() {
        let mut memory = Memory::of_blocks(8).unwrap();
        assert_eq!(memory.with(300, |blocks| blocks.len()).unwrap(), 300);
        assert_eq!((memory.blocks.len(), memory.is_dirty()), (8, false));
    }

    #[test]
    fn asking_for_more_memory_than_there_is_is_an_error() {
        assert!(matches!(Memory::of_blocks(usize::MAX / 1024), Err(Error::OutOfMemory)));
    }

    /// Memory of all sizes, on page boundaries or not.
    #[test]
    fn huge_pages_change_nothing() {
        for count in [1, 3, 4, 8, 100, 19456] {
            let mut memory = Memory::of_blocks(count).unwrap();
            memory.fill();
            assert!(memory.blocks.len() == count && is_zero(&memory), "{count}");
        }
    }

    /// On Linux, some of any memory larger than a huge page lies on huge pages, unless the machine never grants any.
    #[cfg(target_os = "linux")]
    #[test]
    fn huge_pages_where_granted() {
        let policy =
            std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
        let memory = Memory::of_blocks(32 << 10).unwrap();
        let at = memory.blocks.as_ptr().addr() + (16 << 20);
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        // The entry of the mapping that `at` lies in begins with its range and ends with its flags; `hg` is our advice.
        let mut is_ours = false;
        let flags = maps.lines().find_map(|line| {
            let range = line.split_whitespace().next().and_then(|range| range.split_once('-'));
            let bounds =
                range.map(|(start, end)| (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16)));
            if let Some((Ok(start), Ok(end))) = bounds {
                is_ours = (start..end).contains(&at);
            }
            line.strip_prefix("VmFlags:").filter(|_| is_ours)
        });
        let has_advice = flags.is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "hg"));
        // A kernel without huge pages has no such file and refuses the advice.
        assert!(has_advice || policy.is_empty(), "{flags:?}, the policy is {policy}");
    }
}
