//! Reads what rustls does not expose of a certificate (X.509, RFC 5280): its validity period, issuer and subject.
//! Nothing is verified here: whether to trust the certificate is up to the clients that connect.

use time::{Date, Month, OffsetDateTime, Time};

const SEQUENCE: u8 = 0x30;
/// `[0] EXPLICIT`, before the version.
const VERSION: u8 = 0xa0;
const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// Fields of a `TBSCertificate`.
pub(super) struct Fields<'a> {
    /// The issuer's name, in DER.
    pub(super) issuer: &'a [u8],
    /// The subject's name, in DER.
    pub(super) subject: &'a [u8],
    pub(super) not_before: OffsetDateTime,
    pub(super) not_after: OffsetDateTime,
}

/// Reads a certificate in DER. `None` if it is not one.
pub(super) fn certificate(der: &[u8]) -> Option<Fields<'_>> {
    let mut certificate = Elements(der).expect(SEQUENCE)?;
    let mut fields = certificate.expect(SEQUENCE)?;
    // A version 1 certificate leaves out the version.
    if fields.0.first() == Some(&VERSION) {
        fields.expect(VERSION)?;
    }
    let _serial_number = fields.expect(INTEGER)?;
    let _signature_algorithm = fields.expect(SEQUENCE)?;
    let issuer = fields.expect(SEQUENCE)?.0;
    let mut validity = fields.expect(SEQUENCE)?;
    let (not_before, not_after) = (validity.time()?, validity.time()?);
    let subject = fields.expect(SEQUENCE)?.0;
    Some(Fields { issuer, subject, not_before, not_after })
}

/// A sequence of DER elements (X.690).
struct Elements<'a>(&'a [u8]);

impl<'a> Elements<'a> {
    /// Takes the next element: its tag and its contents.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let [tag, length, rest @ ..] = self.0 else { return None };
        // The length itself, or the number of bytes that encode it.
        let (length, rest) = match length {
            0..=0x7f => (usize::from(*length), rest),
            0x81..=0x83 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(length - 0x80))?;
                (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
            }
            _ => return None,
        };
        let (contents, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((*tag, contents))
    }

    /// Takes the next element and returns its contents, if it has this tag.
    fn expect(&mut self, tag: u8) -> Option<Self> {
        let (found, contents) = self.next()?;
        (found == tag).then_some(Self(contents))
    }

    /// Takes a `Time`, in UTC and to the second as RFC 5280 requires.
    fn time(&mut self) -> Option<OffsetDateTime> {
        let (tag, text) = self.next()?;
        let text = str::from_utf8(text).ok()?.strip_suffix('Z')?;
        let (year, rest) = match tag {
            UTC_TIME => {
                let (year, rest) = text.split_at_checked(2)?;
                let year = year.parse::<i32>().ok()?;
                (if year < 50 { 2000 + year } else { 1900 + year }, rest)
            }
            GENERALIZED_TIME => {
                let (year, rest) = text.split_at_checked(4)?;
                (year.parse().ok()?, rest)
            }
            _ => return None,
        };
        let digits = |at: usize| rest.get(at..at + 2)?.parse::<u8>().ok();
        if rest.len() != 10 {
            return None;
        }
        let date = Date::from_calendar_date(year, Month::try_from(digits(0)?).ok()?, digits(2)?).ok()?;
        let time = Time::from_hms(digits(4)?, digits(6)?, digits(8)?).ok()?;
        Some(OffsetDateTime::new_utc(date, time))
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    fn time(tag: u8, text: &str) -> Option<OffsetDateTime> {
        let mut der = vec![tag, u8::try_from(text.len()).unwrap()];
        der.extend_from_slice(text.as_bytes());
        Elements(&der).time()
    }

    #[test]
    fn both_forms_of_a_time() {
        assert_eq!(time(UTC_TIME, "260102030405Z"), Some(datetime!(2026-01-02 03:04:05 UTC)));
        assert_eq!(time(UTC_TIME, "491231235959Z"), Some(datetime!(2049-12-31 23:59:59 UTC)));
        assert_eq!(time(UTC_TIME, "500101000000Z"), Some(datetime!(1950-01-01 0:00 UTC)));
        assert_eq!(time(GENERALIZED_TIME, "20500101000000Z"), Some(datetime!(2050-01-01 0:00 UTC)));
        for (tag, text) in [
            (UTC_TIME, "2601020304Z"),
            (UTC_TIME, "260102030405"),
            (UTC_TIME, "260102030405+0100"),
            (UTC_TIME, "261302030405Z"),
            (UTC_TIME, "26010203040éZ"),
            (GENERALIZED_TIME, "20500101000000.5Z"),
            (INTEGER, "260102030405Z"),
        ] {
            assert_eq!(time(tag, text), None, "{text}");
        }
    }

    #[test]
    fn a_truncated_certificate_is_refused() {
        // Lengths beyond the end of the input, in each of their forms.
        for der in [&[][..], &[0x30], &[0x30, 1], &[0x30, 0x81], &[0x30, 0x81, 1], &[0x30, 0x84, 0, 0, 0, 0]]
        {
            assert!(certificate(der).is_none(), "{der:?}");
        }
    }
}
