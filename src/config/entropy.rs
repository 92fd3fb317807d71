//! Can a symmetric key be guessed? Four measures look for what people write in place of a random key. They cannot
//! prove that a key is random: they catch words, keyboard rows, repetitions and sequences.
//!
//! 1. **Repetition**: whether the key is mostly the same when shifted by 1 to 16 bytes.
//! 2. **Empirical entropy** (Shannon) of the bytes, and of the differences between neighbouring bytes. The differences
//!    reveal sequences: `abcdefgh…` has every letter once, but only one difference.
//! 3. For keys that are text, **what `zxcvbn` recognises** in windows of 16 characters, beyond which its count of
//!    guesses overflows: the mean number of guesses, and how many characters belong to words, dates, sequences and
//!    keyboard rows of at least 4 characters. The last count does not apply to hexadecimal text, since digits are full
//!    of dates.
//! 4. For keys that are text, **whether it reads like words**: how many bits likelier its pairs of neighbouring letters
//!    are in English than at random. `zxcvbn` misses words that are rare or foreign, and short ones between separators.
//!    Digits count against words, so random hexadecimal text does not come near.
//!
//! | key | bits per byte | per difference | guesses per window | recognised characters |
//! |---|---|---|---|---|
//! | threshold, text | 2.8 | 3.2 | 10^12 | 15 |
//! | worst of 4000 random: hexadecimal (128 bits) | 3.1 | 3.5 | 10^13.2 | – |
//! | worst of 4000 random: lower case, alphanumeric | 3.5 | 3.6 | 10^13.7 | 12 |
//! | threshold, any other bytes | 4.0 | 4.0 | – | – |
//! | worst of 200 000 random: bytes | 4.4 | 4.4 | – | – |
//!
//! Of 120 000 random keys (30 000 each in hexadecimal, lower case, alphanumeric and base32) the first three refused
//! one; in such a case the next one passes. The fourth refused 8 of 3 million random keys in base64url, 3 of as many in
//! lower case, and none of as many in hexadecimal, base64, base32, alphanumeric and visible characters. Loading
//! `zxcvbn`'s word lists takes some 30 ms, once; a PASERK's key does not need them.

use std::collections::{HashMap, HashSet};

use zxcvbn::{matching::patterns::MatchPattern, zxcvbn};

/// Why a key can be guessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weakness {
    /// It repeats its own beginning.
    Repetition,
    /// It has few different bytes, or few different steps between them.
    Regular,
    /// It consists of words, dates and the like.
    Words,
}

impl Weakness {
    /// The predicate of a sentence whose subject is the key.
    pub(super) fn describe(self) -> &'static str {
        match self {
            Self::Repetition => "repeats itself",
            Self::Regular => "is too regular to be random",
            Self::Words => "is made of words or other things that can be guessed",
        }
    }
}

/// Looks for a weakness in a key.
pub(super) fn weakness(key: &[u8; 32]) -> Option<Weakness> {
    if repeats(key) {
        return Some(Weakness::Repetition);
    }
    // Random bytes are hardly ever UTF-8, so this distinguishes a text from a PASERK's key, even if the text came as a
    // PASERK.
    let text = str::from_utf8(key).ok();
    let (of_bytes, of_steps) = if text.is_some() { (2.8, 3.2) } else { (4.0, 4.0) };
    let steps = key.windows(2).map(|pair| pair[1].wrapping_sub(pair[0]));
    if entropy(key.iter().copied()) < of_bytes || entropy(steps) < of_steps {
        return Some(Weakness::Regular);
    }
    text.filter(|text| wordiness(text) >= 8 || is_guessable(text)).map(|_| Weakness::Words)
}

/// Whether three quarters of the bytes are the same again some bytes later.
fn repeats(key: &[u8]) -> bool {
    (1..=16).any(|distance| {
        let same = key.iter().zip(&key[distance..]).filter(|(a, b)| a == b).count();
        4 * same >= 3 * (key.len() - distance)
    })
}

/// The Shannon entropy of the distribution of the bytes, in bits per byte.
fn entropy(bytes: impl Iterator<Item = u8>) -> f64 {
    let mut counts = HashMap::<u8, f64>::new();
    bytes.for_each(|byte| *counts.entry(byte).or_default() += 1.0);
    let total: f64 = counts.values().sum();
    counts.values().map(|count| -(count / total) * (count / total).log2()).sum()
}

/// Whether `zxcvbn` needs too few guesses, or recognises too much of the text.
fn is_guessable(text: &str) -> bool {
    let chars: Vec<_> = text.chars().collect();
    let window = chars.len().min(16);
    // The windows overlap, so that a word across the border of two windows is seen whole.
    let windows: Vec<_> = (0..=chars.len() - window).step_by(8).collect();
    let mut guesses_log10 = 0.0;
    let mut recognised = HashSet::new();
    for &start in &windows {
        let found = zxcvbn(&chars[start..start + window].iter().collect::<String>(), &[]);
        guesses_log10 += found.guesses_log10();
        for part in found.sequence() {
            if part.pattern != MatchPattern::BruteForce && part.j - part.i >= 3 {
                recognised.extend(start + part.i..=start + part.j);
            }
        }
    }
    let is_hexadecimal = chars.iter().all(char::is_ascii_hexdigit);
    guesses_log10 / (windows.len() as f64) < 12.0 || (!is_hexadecimal && recognised.len() >= 15)
}

/// How many bits likelier the text is as words than as random characters.
fn wordiness(text: &str) -> i32 {
    let mut bits = 0;
    let mut before = None::<usize>;
    for byte in text.bytes() {
        let written = byte.to_ascii_lowercase();
        let meant = match written {
            b'0' => b'o',
            b'1' => b'i',
            b'3' => b'e',
            b'4' | b'@' => b'a',
            b'5' | b'$' => b's',
            b'7' => b't',
            letter => letter,
        };
        let symbol = match meant {
            b'a'..=b'z' => Some(usize::from(meant - b'a')),
            b' ' | b'-' | b'_' | b'.' => Some(26),
            _ => None,
        };
        if let (Some(before), Some(symbol)) = (before, symbol) {
            bits += i32::from(FOLLOWS[before][symbol]) - i32::from(b'4');
        }
        // Digits and signs are rare in words, and also as the letters that they look like.
        if symbol.is_none() || meant != written {
            bits -= 2;
        }
        before = symbol;
    }
    bits
}

/// For each of `a` to `z` and a separator, a row; in it for each of these, by how many bits it follows more often in
/// English than at random, plus 4. Counted in `zxcvbn`'s lists of words of Wikipedia and of television, by rank.
const FOLLOWS: [&[u8; 27]; 27] = [
    b"044402424036460406563320414", // a
    b"630170015106006005425100403", // b
    b"603060065054006004254000204", // c
    b"400360206002114004404110308", // d
    b"514642202004451306541323206", // e
    b"500065006004006005245000205", // f
    b"500060355003135005314000207", // g
    b"610070026002216003144010306", // h
    b"425443400014475304550400023", // i
    b"622262224222226222227222223", // j
    b"510171136013154102513010307", // k
    b"610462006026205101434110506", // l
    b"640070006000415500304000305", // m
    b"504552605031134000562200306", // n
    b"334413313035564406445440204", // o
    b"600060045005106506444000205", // p
    b"322222223222222222228222223", // q
    b"613461306022335203543200406", // r
    b"403060045022214400464020207", // s
    b"502060056003105105444020406", // t
    b"444442414015461406650000203", // u
    b"600080007000005001101100202", // v
    b"610161066012056004311010106", // w
    b"525252246222223622263222326", // x
    b"322150104002324302431020008", // y
    b"622272236223225222223222445", // z
    b"555444444224544514653240200", // separator
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_written_by_people_are_recognised_as_weak() {
        for key in [
            "12345678901234567890123456789012",
            "00000000000000000000000000000000",
            "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            "aaaaaaaaaaaaaaaabbbbbbbbbbbbbbbb",
            "abcdefghijklmnopqrstuvwxyz123456",
            "nopqrstuvwxyzabcdefghijklmnopqrs",
            "0123456789abcdef0123456789abcdef",
            "fedcba9876543210fedcba9876543210",
            "00112233445566778899aabbccddeeff",
            "a1b2c3d4e5f6g7h8i9j0k1l2m3n4o5p6",
            "1a2b3c4d5e6f7a8b9c0d1e2f3a4b5c6d",
            "deadbeefdeadbeefdeadbeefdeadbeef",
            "deadbeefcafebabe0badf00dfeedface",
            "Kx7Kx7Kx7Kx7Kx7Kx7Kx7Kx7Kx7Kx7Kx",
            "9f3b7c21d04e8a659f3b7c21d04e8a65",
            "qwertyuiopasdfghjklzxcvbnm123456",
            "asdfasdfasdfasdfasdfasdfasdfasdf",
            "passwordpasswordpasswordpassword",
            "changemechangemechangemechangeme",
            "secretsecretsecretsecretsecret12",
            "YELLOW SUBMARINEYELLOW SUBMARINE",
            "correcthorsebatterystaplecorrect",
            "thequickbrownfoxjumpsoverthelazy",
            "this-is-a-very-secret-key-000001",
            "my_super_secret_symmetric_key_32",
            "replace-me-with-32-random-bytes!",
            "gatepass-production-signing-key!",
            "ThisIsMyVerySecureTokenKey2024!!",
            "Sup3rS3cr3tK3yF0rMyC0mp4ny!!2025",
            "tobeornottobethatisthequestionok",
            "éééééééééééééééé",
            "your-256-bit-secret-your-256-bit",
            "my-super-secret-key-for-gatepass",
            "my-jwt-secret-key-do-not-share-1",
            "dev-secret-do-not-use-in-prod-!!",
            "the-quick-brown-fox-jumps-over-1",
            "kubernetes-secret-for-gatepass!!",
            "a-string-secret-at-least-256-bit",
            "thisisasecretkeyfortheauthservic",
            "s3cr3t-k3y-f0r-th3-4uth-s3rv1c3!",
            "Lorem ipsum dolor sit amet, cons",
            "ceci-est-une-cle-secrete-de-prod",
        ] {
            assert!(weakness(key.as_bytes().try_into().unwrap()).is_some(), "{key}");
        }
    }

    #[test]
    fn generated_keys_are_not_weak() {
        for key in [
            "4f1c9e0b7a2d86355be0c83f19d7a64e",
            "e3b0c44298fc1c149afbf4c8996fb924",
            "Zk3vQ9xTb7LmR2wYc8HnJ5pDs6GfA4uE",
            "qhzvnkwtbxjrmdyfgplcsuaoeixqzkvw",
            "x7!Kd@2m#Qz9%Vb^4Lt&8Rw*1Ny(5Hc)",
            "MFRGGZDFMZTWQ2LKNNWG23TPOBYXE43U",
            "q-V7_tGm2LxZ0rEwYp9-kHsB_4dNcTjA",
            "9a3e0c15-7d42-4fb8-a16e-c05b83d2",
        ] {
            assert_eq!(weakness(key.as_bytes().try_into().unwrap()), None, "{key}");
        }
    }

    #[test]
    fn regular_bytes() {
        let regular: [[u8; 32]; 5] = [
            [0xff; 32],
            std::array::from_fn(|i| i as u8),
            std::array::from_fn(|i| 255 - 3 * i as u8),
            std::array::from_fn(|i| [0xde, 0xad, 0xbe, 0xef, 0x99][i % 5]),
            std::array::from_fn(|i| if i < 16 { 0x80 } else { (i * 37) as u8 }),
        ];
        for key in regular {
            assert!(weakness(&key).is_some(), "{key:?}");
        }
    }

    proptest! {
        // zxcvbn is slow when it is not optimised.
        #![proptest_config(ProptestConfig { cases: 20, rng_seed: proptest::test_runner::RngSeed::Fixed(1), ..ProptestConfig::default() })]

        #[test]
        fn random_text_passes(hex in "[0-9a-f]{32}", alphanumeric in "[0-9A-Za-z]{32}", visible in "[!-~]{32}") {
            for key in [hex, alphanumeric, visible] {
                prop_assert_eq!(weakness(key.as_bytes().try_into().unwrap()), None, "{}", key);
            }
        }

        #[test]
        fn random_bytes_pass(key: [u8; 32]) {
            prop_assert_eq!(weakness(&key), None);
        }
    }
}
