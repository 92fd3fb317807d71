//! From a password to what is stored, and from there to a verdict, for hashes of every family.

use std::time::Instant;

use argon2::{Error, password_hash::phc::Output};

use super::{
    HashedPassword, Params, Password, Peppers, Unreadable,
    argon::{PREFIX, SALT_BYTES, Stored},
    foreign::{self, FastHash, Wrapped},
    memory::Memory,
};

/// The result of checking a password against a stored hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The password is wrong, or there is no such user.
    NoMatch,
    /// The password is right.
    Match {
        /// Whether the hash has another algorithm or other parameters than new ones get: make a new one while the
        /// password is at hand.
        outdated: bool,
    },
    /// Nobody can log in with what is stored. Clients should see this as [`Verdict::NoMatch`]; the operator should hear
    /// of it.
    Unreadable(Unreadable),
}

/// What a verification will take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Demand {
    /// Bytes of memory beyond the thread's own.
    pub(super) borrowed: u64,
    /// Whether it takes as long as for a user who does not exist.
    pub(super) is_usual: bool,
}

/// How new hashes are made.
#[derive(Clone, Debug)]
pub(super) struct Recipe {
    pub(super) params: Params,
    pub(super) peppers: Peppers,
}

impl Recipe {
    /// Memory for one hash at a time.
    pub(super) fn memory(&self) -> Result<Memory, Error> {
        Memory::of_blocks(self.params.for_argon2().map_err(|_| Error::MemoryTooMuch)?.block_count())
    }

    /// Hashes a new password with Argon2id.
    pub(super) fn hash(
        &self,
        password: &Password,
        salt: [u8; SALT_BYTES],
        memory: &mut Memory,
    ) -> Result<HashedPassword, Error> {
        Ok(HashedPassword(self.make(password.expose().as_bytes(), salt, memory)?.to_string()))
    }

    /// Hashes the digest of a fast hash with Argon2id.
    pub(super) fn wrap(
        &self,
        fast: &FastHash,
        salt: [u8; SALT_BYTES],
        memory: &mut Memory,
    ) -> Result<HashedPassword, Error> {
        let (text, input) = fast.to_wrapped();
        Ok(HashedPassword(format!("{text}{}", self.make(&input, salt, memory)?)))
    }

    fn make(&self, input: &[u8], salt: [u8; SALT_BYTES], memory: &mut Memory) -> Result<Stored<'_>, Error> {
        let mut new = Stored::blank(&self.params, self.peppers.newest(), salt);
        new.output = new.compute(input, memory)?;
        Ok(new)
    }

    /// Checks a password against what is stored for the user. The work is the same if there is no such user (`None`),
    /// or if what is stored cannot be read, is a hash from before the parameters were raised, or a cheaper one of
    /// another system, so the time of the answer reveals nothing. Only a hash that costs more than new ones takes
    /// longer.
    ///
    /// The same work takes the same time if the parameters are the same. The work that older hashes leave to be made up
    /// for is counted in memory times passes, which predicts the time to within a tenth (measured from 8 KiB up to the
    /// default). The work that hashes of other systems leave is derived from the time that they took.
    ///
    /// A password that normalisation changes is tried both ways, whatever is stored, since other systems have hashed
    /// what was typed, and an Argon2 hash does not say whose it is. That is twice the work for everybody who types such
    /// a password.
    ///
    /// The empty password matches nothing, even if another system has stored a hash of it.
    pub(super) fn verify(
        &self,
        password: &Password,
        stored: Option<&HashedPassword>,
        memory: &mut Memory,
    ) -> Result<Verdict, Error> {
        let stored = stored.map(|stored| Readable::parse(&stored.0, &self.peppers)).transpose();
        let verdict = self.verify_spelling(password.expose().as_bytes(), &stored, memory)?;
        if password.expose().is_empty() && matches!(verdict, Verdict::Match { .. }) {
            return Ok(Verdict::NoMatch);
        }
        let (Some(typed), false) = (password.typed(), matches!(verdict, Verdict::Match { .. })) else {
            return Ok(verdict);
        };
        match (verdict, self.verify_spelling(typed.as_bytes(), &stored, memory)?) {
            (Verdict::NoMatch, Verdict::Match { .. }) => Ok(Verdict::Match { outdated: true }),
            _ => Ok(verdict),
        }
    }

    /// What [`verify`](Self::verify) will take.
    pub(super) fn demand(&self, stored: Option<&HashedPassword>) -> Demand {
        let beside = |argon2: &Stored<'_>| {
            let kib = argon2.params.memory_kib;
            if kib > self.params.memory_kib { u64::from(kib) << 10 } else { 0 }
        };
        match stored.map(|stored| Readable::parse(&stored.0, &self.peppers)) {
            None | Some(Err(_)) => Demand { borrowed: 0, is_usual: true },
            Some(Ok(Readable::Own(argon2))) => {
                Demand { borrowed: beside(&argon2), is_usual: argon2.params.work() <= self.params.work() }
            }
            // The two are computed one after the other, not at once.
            Some(Ok(Readable::Wrapped(wrapped, argon2))) => {
                Demand { borrowed: wrapped.memory().max(beside(&argon2)), is_usual: false }
            }
            Some(Ok(Readable::Foreign(hash))) => Demand { borrowed: hash.memory(), is_usual: false },
        }
    }

    fn verify_spelling(
        &self,
        input: &[u8],
        stored: &Result<Option<Readable<'_>>, Unreadable>,
        memory: &mut Memory,
    ) -> Result<Verdict, Error> {
        match stored {
            Ok(Some(Readable::Own(stored))) => {
                let is_match = stored.output == self.compute_at_least(stored, input, memory)?;
                Ok(Verdict::of(is_match, !stored.is_like_new(&self.params, &self.peppers)))
            }
            Ok(Some(Readable::Wrapped(wrapped, stored))) => {
                let is_match =
                    stored.output == self.compute_at_least(stored, &wrapped.input(input), memory)?;
                Ok(Verdict::of(is_match, true))
            }
            Ok(Some(Readable::Foreign(hash))) => {
                let begun = Instant::now();
                let is_match = hash.verify(input);
                self.make_up_for(memory.pace.work_kib(begun.elapsed()), memory)?;
                Ok(Verdict::of(is_match, true))
            }
            Ok(None) => self.make_up_for(0, memory).map(|()| Verdict::NoMatch),
            Err(reason) => self.make_up_for(0, memory).map(|()| Verdict::Unreadable(*reason)),
        }
    }

    /// Computes the output for this input, with at least the work of a new hash.
    fn compute_at_least(
        &self,
        stored: &Stored<'_>,
        input: &[u8],
        memory: &mut Memory,
    ) -> Result<Output, Error> {
        let output = stored.compute(input, memory)?;
        self.make_up_for(stored.params.work(), memory)?;
        Ok(output)
    }

    /// Does the rest of the work of a new hash, if this much of it is done, in KiB times passes.
    fn make_up_for(&self, done: u64, memory: &mut Memory) -> Result<(), Error> {
        let missing = if done == 0 { Some(self.params) } else { self.params.less(done) };
        if let Some(missing) = missing {
            Stored::blank(&missing, None, [0; SALT_BYTES]).compute(&[], memory)?;
        }
        Ok(())
    }
}

impl Verdict {
    fn of(is_match: bool, outdated: bool) -> Self {
        if is_match { Self::Match { outdated } } else { Self::NoMatch }
    }
}

/// Whether a stored text can be verified against.
pub(super) fn check(text: &str, peppers: &Peppers) -> Result<(), Unreadable> {
    Readable::parse(text, peppers).map(drop)
}

/// What a stored text holds.
enum Readable<'a> {
    Own(Stored<'a>),
    Wrapped(Wrapped<'a>, Stored<'a>),
    Foreign(foreign::Hash),
}

impl<'a> Readable<'a> {
    fn parse(text: &'a str, peppers: &'a Peppers) -> Result<Self, Unreadable> {
        if text.starts_with(PREFIX) {
            return Stored::parse(text, peppers).map(Self::Own);
        }
        match Wrapped::parse(text) {
            Some(wrapped) => {
                let (wrapped, argon2) = wrapped?;
                Ok(Self::Wrapped(wrapped, Stored::parse(argon2, peppers)?))
            }
            None => foreign::Hash::stored(text).map(Self::Foreign),
        }
    }
}

#[cfg(test)]
mod tests {
    use argon2::{
        Algorithm, Argon2, PasswordHasher, PasswordVerifier, Version, password_hash::phc::PasswordHash,
    };
    use proptest::prelude::*;

    use super::*;
    use crate::password::foreign::Imported;

    const TINY: Params = Params { memory_kib: 8, iterations: 1, parallelism: 1 };

    fn recipe(params: &Params) -> Recipe {
        Recipe { params: *params, peppers: Peppers::default() }
    }

    fn peppered(params: &Params, peppers: &str) -> Recipe {
        Recipe { params: *params, peppers: peppers.parse().unwrap() }
    }

    fn memory() -> Memory {
        recipe(&TINY).memory().unwrap()
    }

    fn hash(password: &str, recipe: &Recipe) -> HashedPassword {
        recipe.hash(&Password::new(password), [7; 16], &mut memory()).unwrap()
    }

    /// Plain use of the argon2 crate.
    fn plain(algorithm: Algorithm, version: Version, params: &Params, password: &str, salt: &[u8]) -> String {
        let argon2 = Argon2::new(algorithm, version, params.for_argon2().unwrap());
        argon2.hash_password_with_salt(password.as_bytes(), salt).unwrap().to_string()
    }

    fn verdict(password: &str, stored: &str) -> Verdict {
        let stored = HashedPassword::from_stored(stored);
        recipe(&TINY).verify(&Password::new(password), Some(&stored), &mut memory()).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// The text is the same as the argon2 crate's, both from fresh memory and from what another hash has left
        /// behind; and each verifies the other's.
        #[test]
        fn agrees_with_plain_argon2(
            typed in any::<String>(),
            other in any::<String>(),
            salt in any::<[u8; 16]>(),
            memory_kib in 8u32..200,
            iterations in 1u32..4,
            parallelism in 1u32..4,
        ) {
            let memory_kib = memory_kib.max(8 * parallelism);
            let params = Params { memory_kib, iterations, parallelism };
            let password = Password::new(&typed);
            let expected = plain(Algorithm::Argon2id, Version::V0x13, &params, password.expose(), &salt);

            let recipe = recipe(&params);
            let mut memory = recipe.memory().unwrap();
            for _ in 0..2 {
                let ours = recipe.hash(&password, salt, &mut memory).unwrap();
                prop_assert_eq!(ours.as_str(), &expected);
            }
            let stored = HashedPassword::from_stored(expected.clone());
            let verdict = |typed: &str, memory: &mut Memory| {
                recipe.verify(&Password::new(typed), Some(&stored), memory).unwrap()
            };
            let is_one = !password.expose().is_empty();
            let right = if is_one { Verdict::Match { outdated: false } } else { Verdict::NoMatch };
            prop_assert_eq!(verdict(&typed, &mut memory), right);
            let is_same = is_one && Password::new(&other).expose() == password.expose();
            prop_assert_eq!(verdict(&other, &mut memory) != Verdict::NoMatch, is_same);

            let phc = PasswordHash::new(&expected).unwrap();
            prop_assert!(Argon2::default().verify_password(password.expose().as_bytes(), &phc).is_ok());
        }

        #[test]
        fn any_stored_text_gives_a_verdict_without_a_panic(text in any::<String>()) {
            let verdict = verdict("secret", &text);
            prop_assert!(matches!(verdict, Verdict::Unreadable(_)), "{:?}", verdict);
        }

        /// Nearly right text, which gets further into parsing, always results in a verdict within the limits of cost.
        #[test]
        fn nearly_valid_text_gives_a_verdict_without_a_panic(
            algorithm in "argon2(i|d|id|x)",
            version in "(\\$v=(16|19|[0-9]{1,11}))?",
            numbers in prop::array::uniform3(prop_oneof![0u32..40, any::<u32>()]),
            more in "(,keyid=[A-Za-z0-9+/]{0,12}|,data=[A-Za-z0-9]{0,4}|,[a-z]{0,3}=?)?",
            salt in "[A-Za-z0-9+/]{0,70}",
            output in "[A-Za-z0-9+/]{0,90}",
        ) {
            let [m, t, p] = numbers;
            let text = format!("${algorithm}{version}$m={m},t={t},p={p}{more}${salt}${output}");
            let mut memory = memory();
            let stored = HashedPassword::from_stored(&text);
            let recipe = peppered(&TINY, ONE);
            let parsed = Stored::parse(&text, &recipe.peppers).map(|stored| stored.params);
            // Hashes within the limits may still take seconds each.
            prop_assume!(parsed.is_err() || parsed.is_ok_and(|params| params.work() < 1 << 12));
            let verdict = recipe.verify(&Password::new("secret"), Some(&stored), &mut memory).unwrap();
            prop_assert!(!matches!(verdict, Verdict::Match { .. }), "{}", text);
            prop_assert!(parsed.is_ok() || memory.computed == TINY.work(), "{}", text);
        }
    }

    #[test]
    fn an_empty_password_never_matches_and_costs_as_much_as_any_other() {
        let (recipe, mut memory) = (recipe(&TINY), memory());
        let Ok(Imported::Wrap(fast)) =
            Imported::parse("{SHA}2jmj7l5rSw0yVb/vlWAYkK/YBwk=", &Peppers::default())
        else {
            panic!()
        };
        let slow = "$6$saltsalt$qkTgsCrWMTAS9gBGcf9W60sFfH.hU0oTCAOJjhbz5tSp/sU3/xXZK4OFwCtq8lIIdpJ6CatVdOTSHKp97TPkt/";
        assert!(foreign::Hash::stored(slow).unwrap().verify(b""));
        let table = [
            ("ours", hash("", &recipe)),
            ("wrapped", recipe.wrap(&fast, [7; 16], &mut memory).unwrap()),
            ("kept", HashedPassword::from_stored(slow)),
        ];
        for (what, stored) in table {
            let mut cost = |typed| {
                let before = memory.computed;
                let verdict = recipe.verify(&Password::new(typed), Some(&stored), &mut memory).unwrap();
                assert_eq!(verdict, Verdict::NoMatch, "{what}: {typed:?}");
                memory.computed - before
            };
            // How much is made up for a kept hash depends on its time.
            let (empty, other) = (cost(""), cost("x"));
            assert!(what == "kept" || empty == other, "{what}: {empty}, {other}");
        }
    }

    #[test]
    fn a_hash_is_outdated_if_a_new_one_would_be_made_differently() {
        let current = Params { memory_kib: 32, iterations: 2, parallelism: 1 };
        let (id, v19, salt) = (Algorithm::Argon2id, Version::V0x13, &[7; 16][..]);
        let table = [
            ("current", plain(id, v19, &current, "secret", salt), false),
            ("less memory", plain(id, v19, &Params { memory_kib: 16, ..current }, "secret", salt), true),
            ("more memory", plain(id, v19, &Params { memory_kib: 300, ..current }, "secret", salt), true),
            ("iterations", plain(id, v19, &Params { iterations: 1, ..current }, "secret", salt), true),
            ("lanes", plain(id, v19, &Params { parallelism: 3, ..current }, "secret", salt), true),
            ("argon2i", plain(Algorithm::Argon2i, v19, &current, "secret", salt), true),
            ("argon2d", plain(Algorithm::Argon2d, v19, &current, "secret", salt), true),
            ("version 16", plain(id, Version::V0x10, &current, "secret", salt), true),
            ("no version", plain(id, Version::V0x10, &current, "secret", salt).replace("v=16$", ""), true),
            ("salt", plain(id, v19, &current, "secret", &[7; 12]), true),
        ];
        // One memory for all, as on a thread: each hash finds what the one before has left.
        let recipe = recipe(&current);
        let mut memory = recipe.memory().unwrap();
        for (what, stored, outdated) in table {
            let stored = HashedPassword::from_stored(stored);
            let mut verdict =
                |password| recipe.verify(&Password::new(password), Some(&stored), &mut memory).unwrap();
            assert_eq!(verdict("secret"), Verdict::Match { outdated }, "{what}");
            assert_eq!(verdict("Secret"), Verdict::NoMatch, "{what}");
        }
    }

    #[test]
    fn unreadable_hashes() {
        use Unreadable::{Algorithm, Format, Pepper, TooCostly, Unwrapped};

        let good = hash("secret", &recipe(&TINY));
        let good = good.as_str();
        assert_eq!(verdict("secret", good), Verdict::Match { outdated: false });
        let parts: Vec<&str> = good.split('$').collect();
        let [_, _, _, _, salt, output] = parts[..] else { panic!("{good}") };
        let with = |params: &str| format!("$argon2id$v=19${params}${salt}${output}");
        let table = [
            (String::new(), Format),
            ("secret".into(), Format),
            ("*".into(), Format),
            ("5f4dcc3b5aa765d61d8327deb882cf99".into(), Format),
            ("{SSHA}aGVsbG8gd29ybGQgaGVsbG8gd29ybGQ=".into(), Unwrapped),
            ("pbkdf2_sha256$260000$salt$aGFzaA==".into(), Format),
            ("$".into(), Algorithm),
            ("$y$j9T$saltsalt$abZLF3nn.SfKqkvXA/gnD9JPMo.8oZ4MoaCWQ5kcXV0".into(), Algorithm),
            ("$6$rounds=5000$usesomesillystring$abc".into(), Format),
            ("$scrypt$ln=16,r=8,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNo".into(), Format),
            (good.replace("argon2id", "argon2x"), Algorithm),
            (good.replace("argon2id", "Argon2id"), Algorithm),
            (good.replace("v=19", "v=18"), Algorithm),
            (good.replace("v=19", "v=019"), Format),
            (good.replace("v=19", "v=-19"), Format),
            (good.replace("v=19", "v="), Format),
            (good[1..].into(), Format),
            (format!(" {good}"), Format),
            (format!("{good}\n"), Format),
            (format!("{good}$"), Format),
            (format!("{good}="), Format),
            (format!("$argon2id$v=19$m=8,t=1,p=1${salt}"), Format),
            (format!("$argon2id$v=19$m=8,t=1,p=1${salt}$"), Format),
            ("$argon2id$v=19$m=8,t=1,p=1$$".into(), Format),
            (format!("$argon2id$v=19$m=8,t=1,p=1${salt}${}", &output[..8]), Format),
            (format!("$argon2id$v=19$m=8,t=1,p=1${salt}${}", "A".repeat(200)), Format),
            (format!("$argon2id$v=19$m=8,t=1,p=1${}${output}", &salt[..8]), Format),
            (format!("$argon2id$v=19$m=8,t=1,p=1$sa*t{salt}${output}"), Format),
            // The last character holds bits beyond the last byte.
            (format!("{}B", &good[..good.len() - 1]), Format),
            (format!("$argon2id$v=19${salt}${output}"), Format),
            (with(""), Format),
            (with("m=8"), Format),
            (with("t=1,m=8,p=1"), Format),
            (with("m=8,t=1,p=1,p=1"), Format),
            (with("m=8,m=8,t=1,p=1"), Format),
            (with("m=8,t=1,p=1,data=AAAA"), Format),
            (with("m=8,t=1,p=1,keyid="), Format),
            (with("m=8,t=1,p=1,keyid"), Format),
            (with("m=8,t=1,p=1,keyid=M"), Format),
            (with("m=8,t=1,p=1,keyid=AAAA"), Format),
            (with("m=8,t=1,p=1,keyid=YWJjZGVmZ2hp"), Format),
            (with("m=8,t=1,p=1,keyid=MQ,data=AAAA"), Format),
            (with("keyid=MQ,m=8,t=1,p=1"), Format),
            (with("m=8,t=1,p=1,keyid=MQ"), Pepper),
            (with("m=08,t=1,p=1"), Format),
            (with("m=+8,t=1,p=1"), Format),
            (with("m=-8,t=1,p=1"), Format),
            (with("m=8,t=1,p=x"), Format),
            (with("m=0,t=1,p=1"), Format),
            (with("m=7,t=1,p=1"), Format),
            (with("m=15,t=1,p=2"), Format),
            (with("m=8,t=0,p=1"), Format),
            (with("m=8,t=1,p=0"), Format),
            (with("m=4294967296,t=1,p=1"), Format),
            (with("m=4294967295,t=4294967295,p=1"), TooCostly),
            (with("m=1048577,t=1,p=1"), TooCostly),
            (with("m=1048576,t=5,p=1"), TooCostly),
            (with("m=8,t=4294967295,p=1"), TooCostly),
            (with("m=1024,t=1,p=65"), TooCostly),
            (with("m=1024,t=1,p=16777216"), TooCostly),
        ];
        for (text, reason) in table {
            assert_eq!(verdict("secret", &text), Verdict::Unreadable(reason), "{text}");
        }
    }

    #[test]
    fn verifying_without_a_usable_hash_costs_the_same() {
        let current = Params { memory_kib: 64, iterations: 3, parallelism: 2 };
        let recipe = recipe(&current);
        let mut memory = recipe.memory().unwrap();
        let stored = recipe.hash(&Password::new("secret"), [7; 16], &mut memory).unwrap();
        let costly = HashedPassword::from_stored(stored.0.replace("m=64", "m=4194304"));
        let unwrapped = HashedPassword::from_stored("{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=");
        let malformed = HashedPassword::from_stored("");
        let foreign = HashedPassword::from_stored(stored.0.replace("p=2", "p=2,keyid=MQ"));
        let older = |memory_kib, iterations| {
            let params = Params { memory_kib, iterations, parallelism: 1 };
            HashedPassword::from_stored(plain(
                Algorithm::Argon2id,
                Version::V0x13,
                &params,
                "secret",
                &[7; 16],
            ))
        };
        let (outdated, work) = (Verdict::Match { outdated: true }, current.work());
        let table = [
            (Some(stored.clone()), "secret", Verdict::Match { outdated: false }, work),
            (Some(stored.clone()), "wrong", Verdict::NoMatch, work),
            (None, "secret", Verdict::NoMatch, work),
            (Some(malformed), "secret", Verdict::Unreadable(Unreadable::Format), work),
            (Some(foreign), "secret", Verdict::Unreadable(Unreadable::Pepper), work),
            (Some(costly), "secret", Verdict::Unreadable(Unreadable::TooCostly), work),
            (Some(unwrapped), "secret", Verdict::Unreadable(Unreadable::Unwrapped), work),
            // From before the parameters were raised, or turned from memory to passes.
            (Some(older(8, 1)), "secret", outdated, work),
            (Some(older(8, 1)), "wrong", Verdict::NoMatch, work),
            (Some(older(64, 2)), "wrong", Verdict::NoMatch, work),
            (Some(older(16, 12)), "wrong", Verdict::NoMatch, work),
            (Some(older(160, 1)), "wrong", Verdict::NoMatch, work),
            // From before they were lowered: others do not pay for these.
            (Some(older(64, 4)), "wrong", Verdict::NoMatch, 256),
        ];
        for (stored, password, expected, work) in table {
            let before = memory.computed;
            let verdict = recipe.verify(&Password::new(password), stored.as_ref(), &mut memory).unwrap();
            assert_eq!(verdict, expected);
            let took = memory.computed - before;
            assert!(took.abs_diff(work) < 4, "{stored:?}: {took} and {work} KiB");
        }
    }

    #[test]
    fn the_demands_of_a_verification_are_predicted() {
        let recipe = recipe(&Params { memory_kib: 64, iterations: 2, parallelism: 1 });
        let argon2 = |params: &str| format!("$argon2id$v=19${params}$c2FsdHNhbHQ$c2FsdHNhbHRzYWx0");
        let wrapped = |function: &str, params: &str| format!("$wrapped{function}{}", argon2(params));
        let digest = "c2FsdHNhbHRzYWx0c2FsdHNhbHRzYWx0c2FsdHNhbHRzYWx0";
        // 128 r (N + p + 1)
        let mib_16 = (16 << 20) + 2048;
        let table = [
            (argon2("m=64,t=2,p=1"), 0, true),
            (argon2("m=8,t=1,p=1"), 0, true),
            (argon2("m=8,t=16,p=1"), 0, true),
            (argon2("m=64,t=3,p=1"), 0, false),
            (argon2("m=102400,t=2,p=8"), 100 << 20, false),
            (argon2("m=1048576,t=4,p=1"), 1 << 30, false),
            ("x".to_owned(), 0, true),
            (argon2("m=1048577,t=4,p=1"), 0, true),
            ("{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=".into(), 0, true),
            ("$2b$12$EixZaYVK1fsbw1ZfbX3OXePaWxn96p36WQoeG6Lruj3vjPGga31lW".into(), 0, false),
            (format!("$scrypt$ln=14,r=8,p=1$c2FsdA${digest}"), mib_16, false),
            (format!("$firebase-scrypt$ln=14,r=8,p=1$c2FsdA${digest}"), mib_16, false),
            (wrapped("$scrypt$ln=9,r=8,p=1$c2FsdA", "m=64,t=2,p=1"), 514 << 10, false),
            (wrapped("$scrypt$ln=9,r=8,p=1$c2FsdA", "m=1024,t=2,p=1"), 1 << 20, false),
            (wrapped("$digest$of=md5,template=e3Bhc3N3b3JkfQ$", "m=64,t=2,p=1"), 0, false),
        ];
        assert_eq!(recipe.demand(None), Demand { borrowed: 0, is_usual: true });
        for (stored, borrowed, is_usual) in table {
            let demand = recipe.demand(Some(&HashedPassword::from_stored(&*stored)));
            assert_eq!(demand, Demand { borrowed, is_usual }, "{stored}");
        }
    }

    /// A hash in fresh memory causes a fault for each of its pages, of which there are thousands. So does a hash here
    /// after a fork, such as that of another test that starts a program as another user: it has to copy the pages to
    /// which it writes. Hence it is repeated until no fork has come between.
    #[cfg(target_os = "linux")]
    #[test]
    fn hashing_reuses_memory_without_page_faults() {
        let faults = || -> u64 {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            // The tenth field, the eighth after the name in brackets (proc_pid_stat(5)).
            let (_, fields) = stat.rsplit_once(") ").unwrap();
            fields.split(' ').nth(7).unwrap().parse().unwrap()
        };
        let recipe = recipe(&Params { memory_kib: 19456, iterations: 1, parallelism: 1 });
        let mut memory = recipe.memory().unwrap();
        let mut hash = || recipe.hash(&Password::new("secret"), [7; 16], &mut memory).unwrap();
        hash();
        let mut counts = (0..200).map(|_| {
            let before = faults();
            hash();
            faults() - before
        });
        assert!(counts.any(|count| count < 200), "each time hundreds of page faults");
    }

    const ONE: &str = "1:MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE";
    const TWO: &str = "2:MjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjI";

    #[test]
    fn peppers_come_and_go() {
        let unpeppered = recipe(&TINY);
        let (one, two) = (peppered(&TINY, ONE), peppered(&TINY, &format!("{TWO},{ONE}")));
        let only_two = peppered(&TINY, TWO);
        let none_yet = peppered(&TINY, &format!("none,{ONE}"));
        let impostor = peppered(&TINY, &TWO.replacen('2', "1", 1));
        let table = [
            (&unpeppered, &one, Verdict::Match { outdated: true }),
            (&one, &one, Verdict::Match { outdated: false }),
            (&unpeppered, &none_yet, Verdict::Match { outdated: false }),
            (&one, &none_yet, Verdict::Match { outdated: true }),
            (&none_yet, &unpeppered, Verdict::Match { outdated: false }),
            (&one, &two, Verdict::Match { outdated: true }),
            (&two, &two, Verdict::Match { outdated: false }),
            (&two, &only_two, Verdict::Match { outdated: false }),
            (&one, &only_two, Verdict::Unreadable(Unreadable::Pepper)),
            (&one, &unpeppered, Verdict::Unreadable(Unreadable::Pepper)),
            (&one, &impostor, Verdict::NoMatch),
        ];
        for (then, now, expected) in table {
            let stored = hash("secret", then);
            let verify =
                |password| now.verify(&Password::new(password), Some(&stored), &mut memory()).unwrap();
            assert_eq!(verify("secret"), expected, "{then:?}, {now:?}");
            let is_readable = !matches!(expected, Verdict::Unreadable(_));
            assert_eq!(verify("Secret") == Verdict::NoMatch, is_readable, "{then:?}, {now:?}");
        }
    }

    #[test]
    fn the_pepper_is_argons_own_secret() {
        let secret = [b'1'; 32];
        let params = TINY.for_argon2().unwrap();
        let argon2 = Argon2::new_with_secret(&secret, Algorithm::Argon2id, Version::V0x13, params).unwrap();
        let theirs = argon2.hash_password_with_salt(b"secret", &[7; 16]).unwrap().to_string();
        let ours = hash("secret", &peppered(&TINY, ONE));
        assert_eq!(ours.as_str(), theirs.replace("p=1$", "p=1,keyid=MQ$"));
    }

    #[test]
    fn one_password_in_two_spellings() {
        let stored = hash("cafe\u{301} \u{fb01}ve", &recipe(&TINY));
        assert_eq!(verdict("caf\u{e9} five", stored.as_str()), Verdict::Match { outdated: false });
    }

    /// An Argon2 hash of another system is a hash of what was typed.
    #[test]
    fn a_password_that_normalisation_changes_is_tried_both_ways() {
        let typed = "cafe\u{301} \u{fb01}ve";
        let theirs = plain(Algorithm::Argon2id, Version::V0x13, &TINY, typed, &[7; 16]);
        let ours = hash(typed, &recipe(&TINY));
        let [theirs, ours] = [theirs.as_str(), ours.as_str()].map(HashedPassword::from_stored);
        let table = [
            (typed, Some(&theirs), Verdict::Match { outdated: true }, 2),
            ("caf\u{e9} five", Some(&theirs), Verdict::NoMatch, 1),
            (typed, Some(&ours), Verdict::Match { outdated: false }, 1),
            ("caf\u{e9} five", Some(&ours), Verdict::Match { outdated: false }, 1),
            ("\u{fb01}", Some(&ours), Verdict::NoMatch, 2),
            ("\u{fb01}", None, Verdict::NoMatch, 2),
        ];
        for (typed, stored, expected, hashes) in table {
            let mut memory = memory();
            assert_eq!(recipe(&TINY).verify(&Password::new(typed), stored, &mut memory).unwrap(), expected);
            assert_eq!(memory.computed, hashes * TINY.work(), "{typed}");
        }
    }

    #[test]
    fn known_answer() {
        // From argon2-cffi 25.1: `low_level.hash_secret(b"secret", bytes(range(16)), 2, 64, 1, 32, Type.ID)`.
        let params = Params { memory_kib: 64, iterations: 2, parallelism: 1 };
        let salt = std::array::from_fn(|i| u8::try_from(i).unwrap());
        let ours = recipe(&params).hash(&Password::new("secret"), salt, &mut memory()).unwrap();
        assert_eq!(
            ours.as_str(),
            "$argon2id$v=19$m=64,t=2,p=1$AAECAwQFBgcICQoLDA0ODw$fQXnu2lcRVW87PU7wSxCyjf7dkJaCTH9lUUs2L+PJMw"
        );
    }
}
