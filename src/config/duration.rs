//! Durations as people write them (`90s`, `15m`, `24h`, `30d`, `1h30m`), and rates over them (`10/15m`).

use std::{num::NonZeroU32, time::Duration};

use crate::store::login_attempts::Rate;

/// Longest first, which is also the order in which they must appear.
const UNITS: &[(char, u64)] = &[('d', 24 * 60 * 60), ('h', 60 * 60), ('m', 60), ('s', 1)];

/// Ten years. Anything longer is a mistake, and would take some later sum of times out of range.
const LONGEST: u64 = 10 * 365 * 24 * 60 * 60;

/// Reads a duration, or says what is expected.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let seconds = seconds(text).ok_or("expected a time as numbers with the units s, m, h or d")?;
    match seconds {
        0 => Err("expected a time longer than zero".into()),
        1..=LONGEST => Ok(Duration::from_secs(seconds)),
        _ => Err("expected a time of at most ten years".into()),
    }
}

/// Reads a rate, or says what is expected.
pub(super) fn rate(text: &str) -> Result<Rate, String> {
    let (count, per) = text.split_once('/').ok_or("expected a number, a slash and a time")?;
    let count = whole(count).and_then(|count| u32::try_from(count).ok()).and_then(NonZeroU32::new);
    let count = count.ok_or("expected a whole number of at least 1 before the slash")?;
    Ok(Rate { count, per: duration(per).map_err(|expected| format!("{expected} after the slash"))? })
}

/// The sum of all parts, saturating; `None` if the text is not a duration.
fn seconds(mut text: &str) -> Option<u64> {
    let mut units = UNITS.iter();
    let mut sum = 0_u64;
    while !text.is_empty() {
        let at = text.find(|c: char| !c.is_ascii_digit())?;
        let (number, rest) = text.split_at(at);
        let unit = rest.chars().next()?;
        // The iterator continues after the previous unit, so each unit appears at most once, and longer ones first.
        let (_, length) = units.find(|(letter, _)| *letter == unit)?;
        sum = sum.saturating_add(whole(number)?.saturating_mul(*length));
        text = &rest[unit.len_utf8()..];
    }
    (units.len() < UNITS.len()).then_some(sum)
}

/// Reads a number of digits only, saturating.
fn whole(digits: &str) -> Option<u64> {
    let is_whole = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_whole.then(|| digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, seconds) in [
            ("1s", 1),
            ("90s", 90),
            ("15m", 900),
            ("24h", 86_400),
            ("30d", 2_592_000),
            ("1h30m", 5_400),
            ("1d2h3m4s", 93_784),
            ("24h0m0s", 86_400),
            ("007s", 7),
            ("3650d", LONGEST),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
    }

    #[test]
    fn invalid_durations_are_refused() {
        for text in [
            "", "15", "m", "15 m", " 15m", "15m ", "-15m", "+15m", "1.5h", "15M", "500ms", "15min", "1w",
            "1y", "1m1h", "1m1m", "15m3", "１m", "1é", "15m,", "∞",
        ] {
            let message = duration(text).unwrap_err();
            assert!(message.contains("s, m, h or d"), "{text}: {message}");
        }
        for text in ["0s", "0d0h"] {
            assert!(duration(text).unwrap_err().contains("longer than zero"), "{text}");
        }
        for text in ["3651d", "99999999999999999999999999d", "18446744073709551615d", "3650d1s"] {
            assert!(duration(text).unwrap_err().contains("ten years"), "{text}");
        }
    }

    #[test]
    fn rates() {
        let per = Duration::from_secs(900);
        assert_eq!(rate("10/15m"), Ok(Rate { count: NonZeroU32::new(10).unwrap(), per }));
        assert_eq!(
            rate("1/10m5m"),
            Err("expected a time as numbers with the units s, m, h or d after the slash".into())
        );
        for text in [
            "",
            "10",
            "/",
            "10/",
            "/15m",
            "0/15m",
            "-1/15m",
            "1.5/15m",
            "10/0s",
            "10/15m/1",
            "10 / 15m",
            "4294967296/1s",
        ] {
            assert!(rate(text).is_err(), "{text}");
        }
    }
}
