//! Which texts may become passwords (NIST SP 800-63B-4 section 3.1.1, OWASP ASVS 5 chapter 6.2).
//!
//! A password must be long enough and hard to guess. There are no rules about capitals, digits and symbols, which make
//! passwords harder to remember and no harder to guess. Only *new* passwords are checked; a login takes whatever was
//! once accepted.
//!
//! Two lists of the most common passwords are in the binary, and every password on either is refused:
//!
//! - zxcvbn's 30 000 (from its crate, MIT licence), in addition to its words from English, film and television, and its
//!   names. Most variations that people make of one of these are refused with it.
//! - Django 5.2's 20 000, collected by Royce Williams from breaches (BSD licence, in `common/LICENSE`): the 8 354 of at
//!   least eight characters, since no shorter one is ever accepted. It has passwords that zxcvbn takes for random.

use std::sync::Arc;

use unicode_normalization::UnicodeNormalization;
use zeroize::Zeroizing;
use zxcvbn::{
    matching::{Match, patterns::MatchPattern},
    zxcvbn,
};

use super::{
    Password,
    breached::{BreachedFile, BreachedFileError},
};

/// The most characters that a password may have, after normalisation.
pub const MAX_LENGTH: usize = 256;

/// How many guesses a password must withstand, by zxcvbn's estimate.
///
/// It separates what is common, which is below it with most of the variations that people make, from what is only
/// short: nothing else is demanded than the length. At the shortest length that is allowed by default, of 2000 random
/// passwords none of lower-case letters is below it, 14 of hexadecimal digits are, and 288 of decimal digits, most of
/// which look like dates. At 10⁸, where zxcvbn's score 3 begins, these were 186, 459 and 1822. Against a login
/// throttled to ten attempts in 15 minutes it lasts for years.
const ENOUGH_GUESSES: u64 = 1_000_000;

/// Django's list: one password per line, in lower case, normalised.
const COMMON: &str = include_str!("common/passwords.txt");

/// How many characters zxcvbn sees at most, and how much work they may cause it; see [`affordable_start`].
const JUDGED_LENGTH: usize = 40;
const JUDGED_WORK: usize = 6_000;

/// The user's own data, if shorter than this, is found in too many good passwords by chance.
const MIN_OWN_LENGTH: usize = 4;

/// What the operator may set.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The fewest Unicode characters that a password may have, after normalisation (`PASSWORD_MIN_LENGTH`).
    pub min_length: usize,
    /// Passwords that have been seen in breaches (`PASSWORD_BREACHED_FILE`).
    pub breached: Option<Arc<BreachedFile>>,
}

/// Why a password was refused. `Display` completes a sentence that begins with "the password".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Fewer characters than [`Rules::min_length`].
    #[error("needs at least {min} characters")]
    TooShort {
        /// The fewest that would do.
        min: usize,
    },
    /// More characters than [`MAX_LENGTH`].
    #[error("may have at most {max} characters")]
    TooLong {
        /// The most that would do.
        max: usize,
    },
    /// It is a word or password from the lists that attackers try first.
    #[error("is one of the most common passwords; use several unrelated words, or a password manager")]
    Common,
    /// It is made of patterns that attackers try: words, names, dates, repetitions, rows of keys.
    #[error("is easy to guess; add a few unrelated words, or use a password manager")]
    Guessable,
    /// It has been seen in a breach.
    #[error("has appeared in a data breach, so attackers try it; use another one")]
    Breached,
    /// It is made of the user's own name or address.
    #[error("is made of your own name or address; use something that has nothing to do with you")]
    OwnData,
}

impl Refusal {
    /// The stable word that programs match on.
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooShort { .. } => "too_short",
            Self::TooLong { .. } => "too_long",
            Self::Common => "too_common",
            Self::Guessable => "too_guessable",
            Self::Breached => "breached",
            Self::OwnData => "contains_own_data",
        }
    }

    /// What a form can show after the name of its field.
    pub fn message(&self) -> String {
        self.to_string()
    }
}

/// Whether this may become the password of the user who has this `own` data: username, e-mail address, full name, in
/// any order; what is missing is left out or empty.
///
/// It takes a millisecond or two at worst, whatever the password is, and reads the file of breached passwords if there
/// is one, so it does not belong on an async thread.
///
/// # Errors
///
/// When that file cannot be read. The inner error is the first reason that applies.
///
/// ```
/// use gatepass::password::{Password, rules::{Refusal, Rules, check}};
///
/// let rules = Rules { min_length: 8, breached: None };
/// let own = ["ada", "ada@example.org", "Ada Lovelace"];
/// assert_eq!(check(&Password::new("a quiet river at noon"), &rules, &own)?, Ok(()));
/// assert_eq!(check(&Password::new("lovelace1815"), &rules, &own)?, Err(Refusal::OwnData));
/// assert_eq!(check(&Password::new("qwertyuiop"), &rules, &own)?, Err(Refusal::Common));
/// # Ok::<(), gatepass::password::breached::BreachedFileError>(())
/// ```
pub fn check(
    password: &Password,
    rules: &Rules,
    own: &[&str],
) -> Result<Result<(), Refusal>, BreachedFileError> {
    if let Err(refusal) = check_by_itself(password, rules.min_length, own) {
        return Ok(Err(refusal));
    }
    match &rules.breached {
        Some(file) if file.contains(password)? => Ok(Err(Refusal::Breached)),
        _ => Ok(Ok(())),
    }
}

fn check_by_itself(password: &Password, min_length: usize, own: &[&str]) -> Result<(), Refusal> {
    let length = password.length();
    if length < min_length {
        return Err(Refusal::TooShort { min: min_length });
    }
    if length > MAX_LENGTH {
        return Err(Refusal::TooLong { max: MAX_LENGTH });
    }
    // The list is short enough for a linear search, which takes about a hundredth of a millisecond.
    let lower = Zeroizing::new(password.expose().to_lowercase());
    if COMMON.lines().any(|common| common == *lower) {
        return Err(Refusal::Common);
    }
    let own = own_parts(own);
    if is_mostly(password.expose(), &own) {
        return Err(Refusal::OwnData);
    }
    // Parts longer than what zxcvbn judges cannot be found in it.
    let known: Vec<&str> =
        own.iter().map(String::as_str).filter(|part| part.chars().count() <= JUDGED_LENGTH).collect();
    let estimate = zxcvbn(affordable_start(password.expose()), &known);
    if estimate.guesses() >= ENOUGH_GUESSES {
        return Ok(());
    }
    let words: Vec<Option<&str>> = estimate.sequence().iter().map(dictionary_word).collect();
    Err(if words.iter().flatten().any(|word| known.contains(word)) {
        Refusal::OwnData
    } else if matches!(words[..], [Some(_)]) {
        Refusal::Common
    } else {
        Refusal::Guessable
    })
}

/// The parts of the user's own data that must not make up a password: each item as a whole, the part before the `@`,
/// and each word. In lower case, longest first.
fn own_parts(own: &[&str]) -> Vec<String> {
    let mut parts = Vec::new();
    for whole in own {
        let whole = whole.nfkc().collect::<String>().to_lowercase();
        parts.extend(whole.split(|c: char| !c.is_alphanumeric()).map(str::to_owned));
        parts.extend(whole.split_once('@').map(|(local, _)| local.to_owned()));
        parts.push(whole);
    }
    parts.retain(|part| part.chars().count() >= MIN_OWN_LENGTH);
    parts.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
    parts.dedup();
    parts
}

/// Whether at least half of the text consists of these parts (lower case, longest first), ignoring case.
fn is_mostly(text: &str, parts: &[String]) -> bool {
    let mut rest = text.to_lowercase();
    let length = rest.chars().count();
    let mut covered = 0;
    for part in parts {
        covered += rest.matches(part.as_str()).count() * part.chars().count();
        // Cut out what was counted, so that a word within a whole address does not count twice.
        rest = rest.replace(part.as_str(), "\0");
    }
    covered > 0 && covered * 2 >= length
}

/// The word from zxcvbn's lists (or the user's own data) that this part of a password is, if any.
fn dictionary_word(part: &Match) -> Option<&str> {
    match &part.pattern {
        MatchPattern::Dictionary(found) => Some(&found.matched_word),
        _ => None,
    }
}

/// The start of the text that zxcvbn can judge in about a millisecond.
///
/// zxcvbn looks up every substring in its lists, and does so again for every way of reading the text's symbols and
/// digits as letters (`4` and `@` for `a`, …), of which there are up to a thousand. A hundred characters of such
/// symbols, or of any good password generator, take it a second.
///
/// The start is enough: whoever guesses the whole also guesses the start, so a password is good enough if its start is.
/// What is lost is the credit for a strong end after dozens of characters of pattern. At worst, with a different symbol
/// at every place, 9 characters are judged.
fn affordable_start(text: &str) -> &str {
    // What zxcvbn reads as a, b, c, e, g, i, l, o, s, t, x, z.
    const READINGS: [&str; 12] = ["4@", "8", "({[<", "3", "69", "1!|", "1|7", "0", "$5", "+7", "%", "2"];
    let mut seen = [0; READINGS.len()];
    for (count, (end, c)) in text.char_indices().enumerate() {
        if !text[..end].contains(c) {
            for (signs, seen) in READINGS.iter().zip(&mut seen) {
                *seen += usize::from(signs.contains(c));
            }
        }
        // As written, reversed, and in every other reading.
        let readings = 2 + seen.iter().map(|&signs: &usize| signs.max(1)).product::<usize>();
        let length = count + 1;
        if length > JUDGED_LENGTH || readings * length * length > JUDGED_WORK {
            return &text[..end];
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refusal(password: &str, own: &[&str]) -> Option<Refusal> {
        check_by_itself(&Password::new(password), 8, own).err()
    }

    #[test]
    fn lengths() {
        let strong = "vR7#kQ2v";
        let long = strong.repeat(MAX_LENGTH / 8);
        let table = [
            (String::new(), Some(Refusal::TooShort { min: 8 })),
            ("vR7#kQ2".into(), Some(Refusal::TooShort { min: 8 })),
            (strong.into(), None),
            // Seven characters, however many bytes or code points were sent.
            ("жгидлёю".into(), Some(Refusal::TooShort { min: 8 })),
            ("he\u{301}lqa\u{301}vo".into(), Some(Refusal::TooShort { min: 8 })),
            // Eight after normalisation, seven before.
            ("\u{fb01}vkq7xw".into(), None),
            (format!("{strong} {}", &long[9..]), None),
            (format!("{long}x"), Some(Refusal::TooLong { max: 256 })),
        ];
        for (password, expected) in table {
            assert_eq!(refusal(&password, &[]), expected, "{password:?}");
        }
        let password = Password::new("fourteen signs");
        assert_eq!(check_by_itself(&password, 15, &[]), Err(Refusal::TooShort { min: 15 }));
    }

    #[test]
    fn guessable_ones() {
        let common = [
            "password",
            "12345678",
            "qwertyuiop",
            "iloveyou2",
            "PASSWORD",
            "drowssap",
            "abcd1234",
            "P@ssword",
        ];
        for password in common {
            assert_eq!(refusal(password, &[]), Some(Refusal::Common), "{password}");
        }
        let guessable = [
            "letmein456",
            "Passw0rd77!",
            "P@ssw0rd123",
            "Sommer2025",
            "aaaaaaaaaaaa",
            "abcabcabcabc",
            "hunter2hunter2",
            "jessica1990",
            "12/05/1987",
            "passwordpassword1",
            "zxcvbnm,./",
            "abcdefghijklmnop",
            "密碼密碼密碼密碼",
        ];
        for password in guessable {
            assert_eq!(refusal(password, &[]), Some(Refusal::Guessable), "{password}");
        }
    }

    #[test]
    fn good_ones() {
        let table = [
            "correct horse battery staple",
            "secret-horse-battery-9",
            "Tr0ub4dor&3x",
            "a quiet river at noon",
            "vR7#kQ2v",
            "kdjfhqwe",
            // Random ones in which zxcvbn sees patterns.
            "ffjkgrvu",
            "sqvnjtry",
            "d5VwJhaD",
            "mein hund heißt otto",
            "тихая река в полдень",
            "静かな川の昼下がり",
            "4@8({[<3691!|70$5+%2",
        ];
        for password in table {
            assert_eq!(refusal(password, &[]), None, "{password}");
        }
    }

    #[test]
    fn the_embedded_list() {
        assert_eq!(COMMON.lines().count(), 8354);
        for common in COMMON.lines() {
            assert!(common.chars().count() >= 8, "{common}");
            assert_eq!(Password::new(&common.to_lowercase()).expose(), common);
        }
        for common in ["telechargement", "Megaparol12345", "FQRG7CS493", "password"] {
            assert_eq!(refusal(common, &[]), Some(Refusal::Common), "{common}");
        }
    }

    /// Passwords from all over zxcvbn's list; the last one is the list's last of eight characters.
    #[test]
    fn zxcvbns_whole_list_is_refused() {
        let listed = [
            "password",
            "starfish",
            "eastwood",
            "screamer",
            "natedogg",
            "homebrew",
            "bignasty",
            "dragon88",
            "bocephus",
            "ferrari2",
            "iqzzt580",
            "sprewell",
            "lovehurts",
            "timewarp",
            "cjxb2014",
            "7ertu3ds",
            "8928190a",
            "shockers",
            "msconfig",
            "moonrake",
            "tdfyutkbjy",
            "hammer11",
            "borracho",
            "thesims3",
            "11234567",
        ];
        for password in listed {
            assert!(
                matches!(refusal(password, &[]), Some(Refusal::Common | Refusal::Guessable)),
                "{password}"
            );
        }
    }

    #[test]
    fn breached_ones() {
        let file = tempfile::NamedTempFile::new().unwrap();
        // "a quiet river at noon"
        std::fs::write(file.path(), "C6AA921350C3E0C23659F615F7EDEA09A0480653:3\n").unwrap();
        let rules = |breached| Rules { min_length: 8, breached };
        let breached = rules(Some(Arc::new(BreachedFile::open(file.path()).unwrap())));
        let table = [
            ("a quiet river at noon", &breached, Err(Refusal::Breached)),
            ("a quiet river at dusk", &breached, Ok(())),
            ("a quiet river at noon", &rules(None), Ok(())),
            // What needs no file is reported first.
            ("password", &breached, Err(Refusal::Common)),
        ];
        for (password, rules, expected) in table {
            assert_eq!(check(&Password::new(password), rules, &[]).unwrap(), expected, "{password}");
        }
    }

    #[test]
    fn own_data() {
        let own = ["wonder.land", "alice_l@example-mail.org", "Álice Pleasance Liddell", ""];
        let table = [
            ("wonder.land", true),
            ("WonderLand99", true),
            ("alice_l@example-mail.org", true),
            ("Alice_L!", true),
            ("liddell1852", true),
            ("a\u{301}licea\u{301}lice", true),
            ("pleasance liddell", true),
            ("examplemail", true),
            // Reversed, or with symbols for letters: found by zxcvbn.
            ("llEddil1", true),
            ("ple4$4nce", true),
            // A password may contain the user's own words if it is not made of them.
            ("liddell plays the loud trombone", false),
            ("vR7#kQ2v", false),
        ];
        for (password, is_own) in table {
            let refusal = refusal(password, &own);
            assert_eq!(refusal == Some(Refusal::OwnData), is_own, "{password}: {refusal:?}");
        }
        // Short names are in everything.
        assert_eq!(refusal("ana bakes bananas at dawn", &["ana", "ana@b.co", "Ana B"]), None);
    }

    #[test]
    fn codes_and_messages() {
        let table = [
            (Refusal::TooShort { min: 8 }, "too_short", "needs at least 8 characters"),
            (Refusal::TooLong { max: 256 }, "too_long", "at most 256 characters"),
            (Refusal::Common, "too_common", "most common"),
            (Refusal::Guessable, "too_guessable", "easy to guess"),
            (Refusal::Breached, "breached", "data breach"),
            (Refusal::OwnData, "contains_own_data", "your own name"),
        ];
        for (refusal, code, message) in table {
            assert_eq!(refusal.code(), code);
            assert!(refusal.message().contains(message), "{refusal:?}");
        }
    }

    #[test]
    fn only_a_bounded_start_of_a_password_is_judged() {
        let signs = "({[<1!|74@69$5+8302%";
        let table = [
            ("", 0),
            ("correct horse battery staple", 28),
            (&"x".repeat(256), 40),
            (&"é".repeat(256), 40),
            (&signs.repeat(9), 9),
            (&"h(e{l[l<o1w!o|r7l4d@".repeat(9), 15),
        ];
        for (text, judged) in table {
            assert_eq!(affordable_start(text).chars().count(), judged, "{text}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn never_panics(
            text in any::<String>(),
            long in prop::collection::vec(any::<char>(), 0..300),
            own in any::<String>(),
        ) {
            let long: String = long.into_iter().collect();
            for password in [&text, &long] {
                let _ = refusal(password, &[&own, "user@example.org"]);
            }
        }

        // What zxcvbn has most to say about: words of one letter, symbols for letters, years, rows of keys; and own
        // data that is only a small part of the password, so that the password is judged at all.
        #[test]
        fn never_panics_on_patterns(parts in prop::collection::vec(prop::sample::select(PARTS), 0..80)) {
            let password = parts.concat();
            let own = parts[..parts.len() / 3].concat();
            let _ = refusal(&password, &[&own, &own.to_uppercase(), "aAaA@example.org"]);
        }
    }

    const PARTS: &[&str] = &[
        "a", "i", "A", "I", "x", "o", " ", "4", "@", "8", "(", "{", "1", "!", "|", "7", "0", "$", "5", "+",
        "%", "2", "1999", "20", "11/", "qwe", "ASD", "pass", "word", "é", "İ", "ß", "密", "\n", "\0", "😀",
    ];
}
