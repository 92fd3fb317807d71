use std::time::Duration;

use proptest::prelude::*;
use serde::Deserialize;

use super::{super::recipe::Recipe, *};
use crate::password::{Params, Password, Verdict};

const TINY: Params = Params { memory_kib: 8, iterations: 1, parallelism: 1 };

/// What `tests/foreign_hashes/make.py` prints.
#[derive(Deserialize)]
struct Vector {
    what: String,
    password: String,
    #[serde(flatten)]
    made: Made,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Made {
    Text(String),
    Firebase {
        signer_key: String,
        salt_separator: String,
        rounds: u32,
        mem_cost: u8,
        hash: String,
        salt: String,
    },
    Keycloak {
        credential_data: String,
        secret_data: String,
    },
    Bare {
        algorithm: String,
        hash: String,
        template: Option<String>,
        salt: Option<String>,
        key: Option<String>,
    },
}

impl Made {
    fn import(&self) -> Result<Imported, Refused> {
        match self {
            Self::Text(text) => Imported::parse(text, &Peppers::default()),
            Self::Firebase { signer_key, salt_separator, rounds, mem_cost, hash, salt } => {
                let project = FirebaseProject::new(signer_key, salt_separator, *rounds, *mem_cost)?;
                Imported::firebase(&project, hash, salt)
            }
            Self::Keycloak { credential_data, secret_data } => {
                Imported::keycloak(credential_data, secret_data)
            }
            Self::Bare { algorithm, hash, template, salt, key } => {
                let key = key.as_deref().map(|key| HmacKey::Shared(Zeroizing::new(key.as_bytes().to_vec())));
                let algorithm = Algorithm::by_name(algorithm).unwrap();
                let kind = BareKind { algorithm, template: template.clone(), key };
                let salt = salt.as_deref().unwrap_or_default();
                Imported::of_kind(hash, Some(&kind), salt, &Peppers::default(), None)
            }
        }
    }
}

fn vectors() -> Vec<Vector> {
    serde_json::from_str(include_str!("../../../tests/foreign_hashes/vectors.json")).unwrap()
}

fn recipe() -> Recipe {
    Recipe { params: TINY, peppers: Peppers::default() }
}

fn store(imported: Imported) -> HashedPassword {
    let recipe = recipe();
    match imported {
        Imported::Keep(hash) => hash,
        Imported::Wrap(fast) => recipe.wrap(&fast, [7; 16], &mut recipe.memory().unwrap()).unwrap(),
    }
}

fn read(text: &str) -> Result<Imported, Refused> {
    Imported::parse(text, &Peppers::default())
}

fn verdict(password: &str, stored: &str) -> Verdict {
    let (recipe, stored) = (recipe(), HashedPassword::from_stored(stored));
    recipe.verify(&Password::new(password), Some(&stored), &mut recipe.memory().unwrap()).unwrap()
}

fn bare(hash: &str, template: Option<&str>, salt: &str) -> Result<Imported, Refused> {
    let kind = BareKind { algorithm: Algorithm::Md5, template: template.map(str::to_owned), key: None };
    Imported::of_kind(hash, Some(&kind), salt, &Peppers::default(), None)
}

#[test]
fn hashes_made_by_other_libraries_are_verified() {
    let vectors = vectors();
    assert!(vectors.len() > 55);
    for Vector { what, password, made } in &vectors {
        let stored = store(made.import().unwrap_or_else(|refused| panic!("{what}: {refused}")));
        assert!(stored.as_str().len() <= 1024, "{what}");
        assert_eq!(verdict(password, stored.as_str()), Verdict::Match { outdated: true }, "{what}");
        assert_eq!(verdict(&format!("x{password}"), stored.as_str()), Verdict::NoMatch, "{what}");
    }
}

/// Fast hashes are wrapped, and nothing of their digest is left in the text; slow ones are kept as they came.
#[test]
fn fast_hashes_are_wrapped_and_slow_ones_are_kept() {
    let fast = [
        "md5",
        "sha1",
        "sha256",
        "sha384",
        "sha512",
        "hmac-md5",
        "hmac-sha1",
        "hmac-sha256",
        "hmac-sha512",
        "md5-crypt",
        "apr1",
        "phpass",
        "phpBB",
        "django md5",
        "django sha1",
        "$1$ (libxcrypt)",
    ];
    for Vector { what, made, .. } in vectors() {
        let is_ldap = what.starts_with('{') && !what.starts_with("{CRYPT}");
        let is_fast = is_ldap || what.contains("low cost") || fast.contains(&what.as_str());
        match (made.import().unwrap(), &made) {
            (Imported::Wrap(fast), _) => {
                assert!(is_fast, "{what}");
                let digest = fast.0.digest.clone();
                let stored = store(Imported::Wrap(fast));
                let text = stored.as_str();
                let is_wrapped =
                    text.starts_with("$wrapped$") && text.contains("$argon2id$v=19$m=8,t=1,p=1$");
                assert!(is_wrapped, "{what}: {text}");
                assert!(!text.contains(&phc::encode(&digest)), "{what}");
                if let Made::Text(original) = &made {
                    let end = original.trim_end_matches('=').rsplit(['$', '}']).next().unwrap();
                    assert!(!text.contains(end), "{what}: {text}");
                }
            }
            (Imported::Keep(kept), Made::Text(text)) => {
                assert!(!is_fast, "{what}");
                assert!(text.ends_with(kept.as_str()), "{what}");
            }
            (Imported::Keep(kept), _) => {
                assert!(!is_fast, "{what}");
                // It can be read back.
                assert_eq!(store(read(kept.as_str()).unwrap()), kept, "{what}");
            }
        }
    }
}

#[test]
fn a_hash_function_is_read_back_from_its_own_text() {
    for Vector { what, made, .. } in vectors() {
        let hash = match made.import().unwrap() {
            Imported::Wrap(fast) => fast.0,
            Imported::Keep(kept) if kept.as_str().starts_with("$argon2") => continue,
            Imported::Keep(kept) => Hash::parse(kept.as_str()).unwrap(),
        };
        let text = hash.function.to_string();
        assert_eq!(function(&text).unwrap().to_string(), text, "{what}");
        assert_eq!(
            Hash::parse(&hash.to_string()).map(|hash| hash.to_string()),
            Ok(hash.to_string()),
            "{what}"
        );
    }
}

/// Made with Python's `hmac`, of "correct horse": with the key "a-key-of-all", and with the salt "sälz-17" as the key.
#[test]
fn hmacs_are_read_with_either_a_common_key_or_the_salt_as_key() {
    let table = [
        ("hmac-md5", "ec1b6d978ae0e019e6639881f8d3e982", "e1f32773c30b0ef2b566f876270d2047"),
        ("hmac-sha1", "80e63a10baf349b0cf5e231dc4a08460123a8342", "d7275fc418a63d02b58bf027696cfcf2b02455e1"),
        (
            "hmac-sha256",
            "a1bd22970f2b5ae8657ffb901afd8ef3b0ae8e5a65bdbb83258a68639a4bfaf4",
            "34ab5a1f43020ae01247e72ed32f82886753c79235b72a3a6a3557979e13ce6d",
        ),
        (
            "hmac-sha384",
            "e460754ed0be6dd0454a0998d5e7658fa548308f0745df2f0d5b893d0aca824d7f6fed009a3d076965bf35d135fb7715",
            "b4ef09cc25b7b5ce21238b4fc80fc854fb2213733327d4cadef3aea6fbcd0bab09e163e3aede59ae8994c40d5eaa9414",
        ),
        (
            "hmac-sha512",
            "8b4578eb1f818338c3e94ce9e72d28d427a11e7b92956d6fa4f26334c1b8e29026a2ea2d6d3eeefdbd49a1ce2d0eede8776aa886e6fbd43da861d5d8cd60d2ba",
            "da269ea7b429b7b9ab754d358df99c33b0fddd50ef0821d24b5075e31ea5738576c4e3bbcee50b517012301ae5ecee520e834eabe6d6fea8a573cc4a57120c7d",
        ),
    ];
    let kind = |name| BareKind::by_name(name).unwrap();
    let shared = |name| kind(name).with_key(b"a-key-of-all".to_vec().into()).unwrap();
    let import = |text: &str, kind: &BareKind, salt: &str| {
        Imported::of_kind(text, Some(kind), salt, &Peppers::default(), None)
    };
    let is_right = |imported: Result<Imported, Refused>| {
        let stored = store(imported.unwrap());
        assert!(stored.as_str().starts_with("$wrapped$digest$"));
        assert_eq!(verdict("wrong horse", stored.as_str()), Verdict::NoMatch);
        verdict("correct horse", stored.as_str()) == Verdict::Match { outdated: true }
    };
    for (name, with_key, with_salt) in table {
        assert!(is_right(import(with_key, &shared(name), "")), "{name}");
        assert!(is_right(import(with_salt, &kind(name), "sälz-17")), "{name}");
        assert!(!is_right(import(with_salt, &kind(name), "sälz-18")), "{name}");
        assert_eq!(import(with_salt, &kind(name), "").unwrap_err(), Refused::Key, "{name}");
    }
    // Of "sälz-17:correct horse", with the shared key.
    let salted = "927be35d62eb6e8f3fa8f5ed66cd38845fc35873af864e7f3f8bc4ba73a029c7";
    let template = Some("{salt}:{password}".to_owned());
    let with_template = BareKind { template, ..shared("hmac-sha256") };
    assert!(is_right(import(salted, &with_template, "sälz-17")));

    assert!(BareKind::NAMES.iter().all(|name| BareKind::by_name(name).is_some()));
    assert_eq!(kind("md5").with_key(b"key".to_vec().into()).unwrap_err(), Refused::Key);
    assert_eq!(kind("hmac-md5").with_key(vec![0; 129].into()).unwrap_err(), Refused::Key);
    assert!(!format!("{:?}", shared("hmac-md5")).contains("a-key"));
}

#[test]
fn a_wrapped_hash_is_good_for_nothing_else() {
    // MD5 of "secret", as leaked elsewhere.
    let leaked = "5ebe2294ecd0e0f08eab7690d2a6ee69";
    let wrapped = store(bare(leaked, None, "").unwrap());
    let wrapped = wrapped.as_str();
    assert_eq!(verdict("secret", wrapped), Verdict::Match { outdated: true });
    assert_eq!(verdict(leaked, wrapped), Verdict::NoMatch);

    let (prefix, argon2) = wrapped.split_at(wrapped.find("$argon2id").unwrap());
    let other = store(bare(leaked, Some("{password}{salt}"), "x").unwrap());
    let (other_prefix, _) = other.as_str().split_at(other.as_str().find("$argon2id").unwrap());
    let recipe = recipe();
    let ours = recipe.hash(&Password::new(leaked), [7; 16], &mut recipe.memory().unwrap()).unwrap();
    let table = [
        ("without its function", argon2.to_owned()),
        ("with another", format!("{other_prefix}{argon2}")),
        ("one of ours with a function", format!("{prefix}{}", ours.as_str())),
    ];
    for (what, stored) in table {
        for typed in ["secret", leaked, "^\u{be}\"\u{94}"] {
            assert_eq!(verdict(typed, &stored), Verdict::NoMatch, "{what}: {typed}");
        }
    }
}

#[test]
fn stored_texts_that_cannot_be_used() {
    use crate::password::Unreadable::{Algorithm, Format, Pepper, TooCostly, Unwrapped};

    let wrapped = store(bare("5ebe2294ecd0e0f08eab7690d2a6ee69", None, "").unwrap());
    let wrapped = wrapped.as_str();
    let table = [
        ("{MD5}Xr4ilOzQ4PCOq3aQ0qbuaQ==".to_owned(), Unwrapped),
        ("$1$saltsalt$0igFOpVoA6On/bCN2QCaK/".into(), Unwrapped),
        ("$2b$05$EixZaYVK1fsbw1ZfbX3OXePaWxn96p36WQoeG6Lruj3vjPGga31lW".into(), Unwrapped),
        ("$2b$15$EixZaYVK1fsbw1ZfbX3OXePaWxn96p36WQoeG6Lruj3vjPGga31lW".into(), TooCostly),
        ("$2b$12$EixZaYVK1fsbw1ZfbX3OXePaWxn96p36WQoeG6Lruj3vjPGga31l".into(), Format),
        ("$wrapped$".into(), Format),
        ("$wrapped".into(), Format),
        (wrapped.replace("$digest", "$unknown"), Format),
        (wrapped.replace("of=md5", "of=md4"), Format),
        (wrapped.replace("$argon2id$v=19$m=8", "$argon2id$v=19$m=99999999"), TooCostly),
        (wrapped.replace(",p=1$", ",p=1,keyid=MQ$"), Pepper),
        (wrapped.replace("$argon2id", "$argon3id"), Format),
        (format!("$wrapped{wrapped}"), Format),
        ("$y$j9T$saltsalt$abZLF3nn.SfKqkvXA/gnD9JPMo.8oZ4MoaCWQ5kcXV0".into(), Algorithm),
    ];
    for (stored, reason) in table {
        assert_eq!(verdict("secret", &stored), Verdict::Unreadable(reason), "{stored}");
    }
}

#[test]
fn refused() {
    use Refused::{Malformed, NoPassword, TooCostly, Unknown};

    let bcrypt = "EixZaYVK1fsbw1ZfbX3OXePaWxn96p36WQoeG6Lruj3vjPGga31lW";
    let sha = "a".repeat(86);
    let digest = "c2FsdHNhbHRzYWx0c2FsdHNhbHRzYWx0c2FsdHNhbHRzYWx0";
    let table = [
        ("".to_owned(), NoPassword),
        ("secret".into(), Unknown),
        ("пароль".into(), Unknown),
        ("5f4dcc3b5aa765d61d8327deb882cf99".into(), Refused::Bare),
        ("$".into(), Unknown),
        ("$$$$".into(), Unknown),
        ("U$".into(), Unknown),
        ("{".into(), Unknown),
        ("{SSHA".into(), Unknown),
        ("{CLEARTEXT}secret".into(), Unknown),
        ("{CRYPT}".into(), Unknown),
        // DES, crypt's original form.
        ("rl.3StKT.4T8M".into(), Unknown),
        ("{CRYPT}rl.3StKT.4T8M".into(), Unknown),
        ("$y$j9T$saltsalt$abZLF3nn.SfKqkvXA/gnD9JPMo.8oZ4MoaCWQ5kcXV0".into(), Unknown),
        ("!".into(), NoPassword),
        ("!sYwP3bnmzM0QzhzmMGFAOEyfIcmaXThEZVcAnKFP".into(), NoPassword),
        ("*".into(), NoPassword),
        (format!("$2b$12${}", &bcrypt[1..]), Malformed("bcrypt")),
        (format!("$2b$12${bcrypt}a"), Malformed("bcrypt")),
        (format!("$2b$3${bcrypt}"), Malformed("bcrypt")),
        (format!("$2b$03${bcrypt}"), Malformed("bcrypt")),
        (format!("$2b$+8${bcrypt}"), Malformed("bcrypt")),
        (format!("$2b$15${bcrypt}"), TooCostly("bcrypt")),
        (format!("$2b$99${bcrypt}"), TooCostly("bcrypt")),
        (format!("bcrypt_sha256$$2x$12${bcrypt}"), Malformed("bcrypt")),
        (format!("U$2b$12${bcrypt}"), Malformed("bcrypt")),
        (format!("$6$rounds=700001$salt${sha}"), TooCostly("sha-crypt")),
        (format!("$6$rounds=999$salt${sha}"), Malformed("sha-crypt")),
        (format!("$6$rounds=5000$seventeen.letters${sha}"), Malformed("sha-crypt")),
        (format!("$6$salt${}", &sha[1..]), Malformed("sha-crypt")),
        ("$6$salt$".into(), Malformed("sha-crypt")),
        ("$P$S12345678aaaaaaaaaaaaaaaaaaaaaa".into(), TooCostly("phpass")),
        ("$P$412345678aaaaaaaaaaaaaaaaaaaaaa".into(), Malformed("phpass")),
        ("$P$B12345678".into(), Malformed("phpass")),
        ("$P$".into(), Malformed("phpass")),
        ("$1$ninechars$0igFOpVoA6On/bCN2QCaK/".into(), Malformed("md5-crypt")),
        (format!("$scrypt$ln=18,r=8,p=1$c2FsdA${digest}"), TooCostly("scrypt")),
        (format!("$scrypt$ln=14,r=8,p=17$c2FsdA${digest}"), TooCostly("scrypt")),
        (format!("$scrypt$ln=31,r=4294967295,p=4294967295$c2FsdA${digest}"), TooCostly("scrypt")),
        // 128 MiB for N alone, and as much for the rest.
        (format!("$scrypt$ln=1,r=524288,p=1$c2FsdA${digest}"), TooCostly("scrypt")),
        (format!("$scrypt$ln=64,r=8,p=1$c2FsdA${digest}"), Malformed("scrypt")),
        (format!("$scrypt$ln=0,r=8,p=1$c2FsdA${digest}"), Malformed("scrypt")),
        (format!("$scrypt$ln=14,r=0,p=1$c2FsdA${digest}"), Malformed("scrypt")),
        ("$scrypt$ln=14,r=8,p=1$c2FsdA$c2FsdA".into(), Malformed("scrypt")),
        ("$7$CU..../".into(), Malformed("scrypt")),
        (format!("scrypt$16383$salt$8$1${digest}"), Malformed("scrypt")),
        (format!("$pbkdf2-sha256$i=2000001$c2FsdA${digest}"), TooCostly("PBKDF2")),
        (format!("$pbkdf2-sha256$i=0$c2FsdA${digest}"), Malformed("PBKDF2")),
        ("$pbkdf2-sha256$i=100000$c2FsdA$c2FsdA".into(), Malformed("PBKDF2")),
        (format!("$pbkdf2-md5$i=100000$c2FsdA${digest}"), Unknown),
        (format!("pbkdf2_sha256$100000$salt${digest}$"), Malformed("Django")),
        (format!("pbkdf2_sha256$4294967296$salt${digest}"), Malformed("Django")),
        ("sha1$salt$12".into(), Malformed("digest")),
        ("{SSHA}aGVsbG8=".into(), Malformed("LDAP")),
        ("{SSHA}qvTGHdzF6KLavt4PO0gs2a6pQ00=".into(), Malformed("LDAP")),
        ("{SHA}VWbG6s3jSVi5IHhYR0Ihgc9ccFY0UVZz".into(), Malformed("LDAP")),
        ("$argon2id$v=19$m=131073,t=1,p=1$AAECAwQFBgcICQoLDA0ODw$fQXnu2lcRVW87PU7wSxCyjf7dkJaCTH9lUUs2L+PJMw".into(), TooCostly("Argon2")),
        ("$argon2id$v=19$m=131072,t=9,p=1$AAECAwQFBgcICQoLDA0ODw$fQXnu2lcRVW87PU7wSxCyjf7dkJaCTH9lUUs2L+PJMw".into(), TooCostly("Argon2")),
        ("$argon2id$v=19$m=64,t=5,p=1,keyid=MQ$AAECAwQFBgcICQoLDA0ODw$fQXnu2lcRVW87PU7wSxCyjf7dkJaCTH9lUUs2L+PJMw".into(), Refused::Pepper),
        ("$argon2id$v=19$m=64,t=5,p=1$AAECAwQFBgcICQoLDA0ODw".into(), Malformed("Argon2")),
        // A wrapped hash is accepted as it is, or not at all.
        ("$wrapped$digest$of=md5,template=e3Bhc3N3b3JkfQ$$argon2id$v=19$m=8,t=1,p=1$BwcHBwcHBwcHBwcHBwcHBw$AAAA".into(), Malformed("Argon2")),
        ("$wrapped$digest$of=md5".into(), Malformed("wrapped")),
        (format!("{{SSHA}}{}", "a".repeat(4000)), Unknown),
    ];
    for (text, expected) in table {
        match read(&text) {
            Err(refused) => assert_eq!(refused, expected, "{text}"),
            Ok(imported) => panic!("{text}: {imported:?}"),
        }
        let message = expected.to_string();
        assert!(text.len() < 4 || !message.contains(&text), "{message}");
    }
}

#[test]
fn argon2_may_cost_what_our_own_hashes_do() {
    let text = |memory_kib: u32, iterations: u32| {
        format!(
            "$argon2id$v=19$m={memory_kib},t={iterations},p=1$AAECAwQFBgcICQoLDA0ODw$fQXnu2lcRVW87PU7wSxCyjf7dkJaCTH9lUUs2L+PJMw"
        )
    };
    let read = |text: &str, memory_kib, iterations| {
        let own = Params { memory_kib, iterations, parallelism: 1 };
        Imported::of_kind(text, None, "", &Peppers::default(), Some(&own)).map(|_| ())
    };
    let costly = Err(Refused::TooCostly("Argon2"));
    for (memory_kib, iterations) in [(1 << 20, 4), (131_073, 1), (8192, 129)] {
        let (usual, wrapped) = (text(memory_kib, iterations), text(memory_kib, iterations));
        let wrapped = format!("$wrapped$digest$of=md5,template=e3Bhc3N3b3JkfQ${wrapped}");
        for text in [&usual, &wrapped] {
            assert_eq!(read(text, 19456, 2), costly, "{text}");
            assert_eq!(read(text, memory_kib, iterations), Ok(()), "{text}");
        }
        assert_eq!(read(&text(memory_kib + 1, iterations), memory_kib, iterations), costly);
    }
    // Cheap parameters of ours do not lower the limit for other systems' hashes.
    assert_eq!(read(&text(131_072, 8), 8, 1), Ok(()));
}

#[test]
fn invalid_parts_of_a_foreign_hash_are_refused() {
    let md5 = "5ebe2294ecd0e0f08eab7690d2a6ee69";
    let long = "x".repeat(129);
    let table = [
        (bare(&md5[1..], None, ""), Refused::Malformed("digest")),
        (bare(&md5[2..], None, ""), Refused::Malformed("digest")),
        // Not hexadecimal, so not one of the file's digests, whatever it is.
        (bare("5ebe2294ecd0e0f08eab7690d2a6eexx", None, ""), Refused::Unknown),
        (bare(md5, Some("{salt}"), "x"), Refused::Template),
        (bare(md5, Some("{salt}{password}"), ""), Refused::Template),
        (bare(md5, None, "x"), Refused::Template),
        (bare(md5, Some(&format!("{long}{{password}}")), ""), Refused::Template),
        (bare(md5, Some("{salt}{password}"), &long), Refused::Malformed("digest")),
        (Imported::keycloak("{}", "{}"), Refused::Malformed("Keycloak")),
        (
            Imported::keycloak(r#"{"hashIterations":1,"algorithm":"hmac"}"#, r#"{"value":"","salt":""}"#),
            Refused::Unknown,
        ),
        (
            Imported::keycloak(r#"{"hashIterations":1,"algorithm":"argon2"}"#, r#"{"value":"","salt":""}"#),
            Refused::Malformed("Keycloak"),
        ),
        (
            Imported::keycloak(
                r#"{"hashIterations":9999999,"algorithm":"pbkdf2"}"#,
                r#"{"value":"","salt":""}"#,
            ),
            Refused::TooCostly("PBKDF2"),
        ),
    ];
    for (imported, expected) in table {
        assert_eq!(imported.map(|_| ()).unwrap_err(), expected);
    }
    let key = phc::encode(&[7; 64]);
    let project =
        |key: &str, rounds, mem_cost| FirebaseProject::new(key, "Bw==", rounds, mem_cost).map(|_| ());
    assert_eq!(project(&key, 8, 14), Ok(()));
    assert_eq!(project(&key, 8, 18), Err(Refused::TooCostly("Firebase scrypt")));
    assert_eq!(project(&key, 0, 14), Err(Refused::Malformed("Firebase scrypt")));
    assert_eq!(project("AAAA", 8, 14), Err(Refused::Malformed("Firebase scrypt")));
    assert_eq!(project("!", 8, 14), Err(Refused::Malformed("Firebase scrypt")));
}

/// `$6$` hashes the password again in each of its rounds, and normalisation may make two long passwords of one.
#[test]
fn a_long_password_costs_no_more_than_one_of_256_bytes() {
    let recipes = [
        ("sha-crypt", "$sha-crypt$v=6,rounds=5000$c2FsdA"),
        ("wrapped", "$phpass$drupal=0,md5=0,ln=7$c2FsdHNhbHQ"),
    ];
    for (what, recipe) in recipes {
        let function = function(recipe).unwrap();
        for (password, expected) in [
            ("x".repeat(256), Verdict::Match { outdated: true }),
            ("x".repeat(257), Verdict::NoMatch),
            ("\u{d55c}".repeat(256), Verdict::NoMatch),
            // Also 256 characters, once normalised.
            ("\u{1112}\u{1161}\u{11ab}".repeat(256), Verdict::NoMatch),
        ] {
            let digest = function.compute(password.as_bytes()).unwrap();
            let hash = Hash::new(super::function(recipe).unwrap(), digest.to_vec()).unwrap();
            let stored = store(Imported::of(hash));
            assert_eq!(verdict(&password, stored.as_str()), expected, "{what}, {} bytes", password.len());
        }
    }
}

/// The rest is derived from the time it took, at the pace of what the thread has computed before.
#[test]
fn cheaper_foreign_hashes_are_topped_up_to_the_cost_of_ours() {
    let params = Params { memory_kib: 64, iterations: 4, parallelism: 1 };
    let recipe = Recipe { params, peppers: Peppers::default() };
    let stored = HashedPassword::from_stored("$5$saltstring$WrC1hcf1PVPqPUdxMT5a657Ry/ClgPqJoAWPsiHFyM0");
    let password = Password::new("secret");
    let table = [
        ("nothing is known", None, 256..=256),
        ("Argon2 is slow: no time was spent", Some((1, Duration::from_secs(1000))), 250..=256),
        (
            "Argon2 is quick: more was spent than a hash of ours takes",
            Some((1 << 20, Duration::from_millis(1))),
            0..=0,
        ),
    ];
    for (what, pace, expected) in table {
        let mut memory = recipe.memory().unwrap();
        if let Some((work, took)) = pace {
            memory.pace.note(work, took);
        }
        assert_eq!(recipe.verify(&password, Some(&stored), &mut memory).unwrap(), Verdict::NoMatch);
        assert!(expected.contains(&memory.computed), "{what}: {}", memory.computed);
    }
}

/// The signer key is a secret of the whole project.
#[test]
fn firebases_signer_key_is_not_kept() {
    for Vector { made, .. } in vectors() {
        let Made::Firebase { signer_key, hash, .. } = &made else { continue };
        let stored = store(made.import().unwrap());
        for secret in [signer_key, hash] {
            assert!(!stored.as_str().contains(&secret[..20]));
        }
    }
}

/// bcrypt sees 72 bytes, and does not stop at an earlier one.
#[test]
fn bcrypt_reads_72_bytes_and_refuses_a_nul_byte() {
    let long = "x".repeat(80);
    let function = |key| function(&format!("$bcrypt$k={key},c=4$AAECAwQFBgcICQoLDA0ODw")).unwrap();
    let plain = function("plain");
    let of = |typed: &str| plain.compute(typed.as_bytes());
    assert_eq!(of(&long), of(&long[..72]));
    assert_ne!(of(&long), of(&long[..71]));
    assert_eq!(of("a\0a"), None);
    assert!(of("").is_some());
    // Both give the same for ASCII.
    assert_eq!(of("secret"), function("signed").compute(b"secret"));
    assert_ne!(of("sécret"), function("signed").compute("sécret".as_bytes()));
    let hashed = function("sha256");
    assert_ne!(hashed.compute(long.as_bytes()), hashed.compute(&long.as_bytes()[..72]));
    assert!(hashed.compute(b"a\0a").is_some());
}

/// From crypt_blowfish's own tests (`wrapper.c`).
#[test]
fn known_answers_of_signed_bcrypt() {
    let hash = Hash::parse("$2x$05$/OK.fbVrR/bpIqNJ5ianF.CE5elHaaO4EbggVDjb8P19RukzXSM3e").unwrap();
    for password in [&b"\xa3"[..], b"\xff\xff\xa3"] {
        assert_eq!(hash.function.compute(password).as_ref(), Some(&hash.digest), "{password:?}");
    }
}

#[test]
fn nothing_shows_in_debug() {
    let digest = "5ebe2294ecd0e0f08eab7690d2a6ee69";
    let shown = format!(
        "{:?} {:?}",
        bare(digest, None, ""),
        read("$5$saltstring$WrC1hcf1PVPqPUdxMT5a657Ry/ClgPqJoAWPsiHFyM0")
    );
    assert_eq!(shown, "Ok(Wrap(FastHash([redacted]))) Ok(Keep(HashedPassword([redacted])))");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_text_is_read_or_refused(text in any::<String>(), other in any::<String>(), salt in any::<String>()) {
        let _ = (read(&text), Hash::stored(&text).is_ok(), Wrapped::parse(&format!("$wrapped{text}")).is_some());
        let _ = Imported::keycloak(&text, &other);
        let _ = bare(&text, Some(&other), &salt);
        let project = FirebaseProject::new(&phc::encode(&[7; 64]), "Bw==", 8, 14).unwrap();
        prop_assert!(Imported::firebase(&project, &text, &other).is_err());
    }

    /// Nearly right text, which gets further into parsing.
    #[test]
    fn any_change_is_read_or_refused(
        which in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        change in "[$,={}./A-Za-z0-9é]{0,3}",
        cut in 0_usize..4,
    ) {
        let vectors = vectors();
        let texts: Vec<&String> = vectors
            .iter()
            .filter_map(|vector| match &vector.made { Made::Text(text) => Some(text), _ => None })
            .collect();
        let text = which.get(&texts);
        let at = at.index(text.len());
        let changed = format!("{}{change}{}", &text[..at], &text[text.len().min(at + cut)..]);
        let stored = match read(&changed) {
            Ok(Imported::Wrap(fast)) => {
                prop_assert!(!fast.0.function.is_slow());
                fast.to_wrapped().0
            }
            Ok(Imported::Keep(kept)) => kept.as_str().to_owned(),
            Err(_) => return Ok(()),
        };
        prop_assert!(stored.len() <= 900, "{}", stored);
    }

    #[test]
    fn decoding_the_base64_of_crypt_never_panics(text in any::<String>(), ours in "[./0-9A-Za-z]{0,90}") {
        let _ = (crypt::decode(&text), crypt::number(&text));
        let decoded = crypt::decode(&ours);
        prop_assert_eq!(decoded.map(|bytes| bytes.len()), (ours.len() % 4 != 1).then_some(ours.len() * 3 / 4));
    }
}
