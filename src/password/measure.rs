//! Measures what a hash costs on this machine, and recommends the parameters that make the best of a given time.

use std::{
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use super::{Params, Password, Peppers, Pool, PoolError, PoolSettings, StartError};

/// OWASP's choices for Argon2id, as memory in KiB and passes. At least one of them has to be reached.
/// <https://cheatsheetseries.owasp.org/cheatsheets/Password_Storage_Cheat_Sheet.html#argon2id>
pub const OWASP_MINIMUM: &[(u32, u32)] = &[(47_104, 1), (19_456, 2), (12_288, 3), (9_216, 4), (7_168, 5)];

impl Params {
    /// Whether at least one of [`OWASP_MINIMUM`] is reached.
    pub fn reaches_owasp_minimum(&self) -> bool {
        OWASP_MINIMUM.iter().any(|&(memory, passes)| self.memory_kib >= memory && self.iterations >= passes)
    }
}

/// How many hashes are computed for one measurement. The fastest counts, since slower ones were disturbed.
const TRIES: u8 = 5;

/// The most passes that are recommended; more time is better spent on memory.
const MAX_ITERATIONS: u128 = 64;

/// Why nothing could be measured.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// The parameters are unusable, or there is not that much memory.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A hash failed.
    #[error(transparent)]
    Pool(#[from] PoolError),
}

/// Measures how long a hash with these parameters takes here, on a thread that has nothing else to do.
///
/// # Errors
///
/// When the machine cannot compute one.
pub async fn measure(params: Params) -> Result<Duration, MeasureError> {
    let pool = Pool::new(PoolSettings {
        threads: NonZeroUsize::MIN,
        queue: 1,
        params,
        peppers: Peppers::default(),
        deadline: Duration::MAX,
    })?;
    let password = Password::new("a quiet river at noon");
    let mut quickest = Duration::MAX;
    for attempt in 0..TRIES {
        let begun = Instant::now();
        pool.hash(&password, [attempt; 16]).await?;
        quickest = quickest.min(begun.elapsed());
    }
    Ok(quickest)
}

/// The parameters that come closest to `target` without exceeding it, with `memory_kib` at most, if a pass over that
/// much memory takes `pass`; never less than OWASP's minimum, even if that takes longer.
///
/// They use as much memory as allowed, since that is what attackers have to pay for, and then as many passes as there
/// is time for.
pub fn recommend(pass: Duration, memory_kib: u32, target: Duration) -> Params {
    let passes = |memory: u32| {
        let work = target.as_nanos() * u128::from(memory_kib) / pass.as_nanos().max(1);
        u32::try_from((work / u128::from(memory)).min(MAX_ITERATIONS)).unwrap_or(1)
    };
    let params = |(memory_kib, iterations)| Params { memory_kib, iterations, parallelism: 1 };
    let least = OWASP_MINIMUM.iter().map(|&(memory, _)| memory).filter(|&memory| memory <= memory_kib);
    let choices = std::iter::once(memory_kib).chain(least);
    choices
        .map(|memory| params((memory, passes(memory))))
        .find(Params::reaches_owasp_minimum)
        // Too little time for any: the largest of OWASP's choices that the memory allows, or the smallest of all.
        .or_else(|| OWASP_MINIMUM.iter().copied().find(|&(memory, _)| memory <= memory_kib).map(params))
        .or_else(|| OWASP_MINIMUM.last().copied().map(params))
        .expect("there is a last one")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recommendations() {
        let table = [
            // milliseconds for a pass over these KiB, target; memory, passes
            (10, 19_456, 50, (19_456, 5)),
            (10, 19_456, 20, (19_456, 2)),
            (25, 65_536, 50, (65_536, 2)),
            (25, 65_536, 49, (65_536, 1)),
            // No time for two passes over this much: less memory.
            (17, 32_768, 30, (19_456, 2)),
            // No time for anything: OWASP's minimum all the same.
            (10, 19_456, 1, (19_456, 2)),
            (10, 8_192, 1, (7_168, 5)),
            (10, 1_024, 1, (7_168, 5)),
            (0, 19_456, 1000, (19_456, 64)),
        ];
        for (pass, memory_kib, target, (memory, iterations)) in table {
            let choice = recommend(Duration::from_millis(pass), memory_kib, Duration::from_millis(target));
            let expected = Params { memory_kib: memory, iterations, parallelism: 1 };
            assert_eq!(choice, expected, "{pass} ms over {memory_kib} KiB, for {target} ms");
            assert!(choice.check().is_ok());
        }
    }

    #[tokio::test]
    async fn more_work_takes_longer() {
        let params = |iterations| Params { memory_kib: 256, iterations, parallelism: 1 };
        let (one, many) = (measure(params(1)).await.unwrap(), measure(params(100)).await.unwrap());
        assert!(many > one, "{one:?} {many:?}");
    }
}
