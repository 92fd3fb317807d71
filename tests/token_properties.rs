//! What holds for every token of every format, whatever it says: it verifies with the claims that it was made with, and
//! no longer does when any byte of it is changed.

use std::sync::{Arc, LazyLock};

use gatepass::token::{
    Format, Issuer, KeyPair, Lifetime, Party, SigningKey, Subject, SymmetricKey, Verifier, VerifyingKey,
};
use proptest::{collection::vec, prelude::*, sample::Index};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

/// One key for each format, made once, since an RSA key takes its time.
static KEYS: LazyLock<Vec<SigningKey>> = LazyLock::new(|| {
    let root = SymmetricKey::from_bytes([1; 32]);
    let key = |format| match format {
        Format::Shared(format) => SigningKey::shared(format, &root),
        Format::KeyPair(format) => Arc::new(KeyPair::generate(format).unwrap()).into(),
    };
    Format::ALL.into_iter().map(key).collect()
});

/// Everything that a token says.
#[derive(Clone, Debug)]
struct Content {
    party: Party,
    subject: Subject,
    token_id: Uuid,
    lifetime: Lifetime,
}

/// Any Unicode, control characters and quotes included; six bytes of JSON each at most.
fn text(max: usize) -> impl Strategy<Value = String> {
    vec(prop_oneof![any::<char>(), Just('"'), Just('\\'), Just('\0'), Just('\u{202e}')], 0..max)
        .prop_map(String::from_iter)
}

fn uuid() -> impl Strategy<Value = Uuid> {
    any::<u128>().prop_map(Uuid::from_u128)
}

fn content() -> impl Strategy<Value = Content> {
    let subject = (uuid(), uuid(), text(64), vec(text(24), 0..6))
        .prop_map(|(user_id, session_id, username, roles)| Subject { user_id, session_id, username, roles });
    let party = (text(64), text(64)).prop_map(|(issuer, audience)| Party { issuer, audience });
    // Issued between 1970 and 2100, for one second to ten years.
    let lifetime =
        (0..4_102_444_800_i64, 0..1_000_000_000_u32, 1..315_360_000_i64).prop_map(|(at, nanos, seconds)| {
            let now = OffsetDateTime::from_unix_timestamp(at).unwrap() + Duration::nanoseconds(nanos.into());
            Lifetime { now, expires_at: now + Duration::seconds(seconds) }
        });
    (party, subject, uuid(), lifetime).prop_map(|(party, subject, token_id, lifetime)| Content {
        party,
        subject,
        token_id,
        lifetime,
    })
}

impl Content {
    fn issue(&self, key: &SigningKey) -> String {
        let issuer = Issuer::new(key.clone(), self.party.clone());
        issuer.issue(self.subject.clone(), self.token_id, self.lifetime).unwrap().expose().to_owned()
    }

    fn verifier(&self, key: &SigningKey) -> Verifier {
        Verifier::new([VerifyingKey::from(key.clone())], self.party.clone())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_issued_verifies_with_the_same_claims(content in content()) {
        let Content { party, subject, token_id, lifetime } = &content;
        for key in &*KEYS {
            let (token, verifier) = (content.issue(key), content.verifier(key));
            // The second time from the verifier's cache.
            for _ in 0..2 {
                let claims = verifier.verify(&token, lifetime.now).unwrap();
                prop_assert_eq!((&claims.issuer, &claims.audience), (&party.issuer, &party.audience));
                let found = Subject {
                    user_id: claims.user_id,
                    session_id: claims.session_id,
                    username: claims.username.clone(),
                    roles: claims.roles.clone(),
                };
                prop_assert_eq!(&found, subject);
                prop_assert_eq!(claims.token_id, *token_id);
                let begin = lifetime.now.truncate_to_second();
                prop_assert_eq!((claims.issued_at, claims.not_before), (begin, begin));
                prop_assert_eq!(claims.expires_at, lifetime.expires_at.truncate_to_second());
            }
            prop_assert!(verifier.verify(&token, lifetime.expires_at).is_err());
            prop_assert!(verifier.verify(&token, lifetime.now - Duration::seconds(32)).is_err());
        }
    }

    /// An ECDSA signature (r, s) has a twin (r, n - s) that anybody can compute: it signs the same, and differs in many
    /// bytes.
    #[test]
    fn any_change_to_a_token_makes_it_invalid(
        content in content(),
        changes in vec((any::<Index>(), any::<char>(), any::<bool>()), 8),
    ) {
        for key in &*KEYS {
            let (token, verifier) = (content.issue(key), content.verifier(key));
            for (at, other, is_flip) in &changes {
                let at = at.index(token.len());
                let (before, after) = (&token[..at], &token[at + 1..]);
                let here = char::from(token.as_bytes()[at]);
                // Flip the lowest bit, or put any character in its place.
                let other = if *is_flip { char::from(token.as_bytes()[at] ^ 1) } else { *other };
                if other != here {
                    let altered = format!("{before}{other}{after}");
                    prop_assert!(verifier.verify(&altered, content.lifetime.now).is_err(), "{}", altered);
                }
                let removed = format!("{before}{after}");
                prop_assert!(verifier.verify(&removed, content.lifetime.now).is_err(), "{}", removed);
                let inserted = format!("{before}{other}{here}{after}");
                prop_assert!(verifier.verify(&inserted, content.lifetime.now).is_err(), "{}", inserted);
            }
            prop_assert!(verifier.verify(&token, content.lifetime.now).is_ok());
        }
    }

    #[test]
    fn arbitrary_text_is_refused_without_a_panic(
        text in text(400),
        head in prop_oneof![Just(""), Just("v4.local."), Just("v4.public."), Just("eyJ")],
        cut in any::<Index>(),
    ) {
        for key in &*KEYS {
            let content = Content {
                party: Party { issuer: "https://id.example".into(), audience: "api".into() },
                subject: Subject {
                    user_id: Uuid::nil(), session_id: Uuid::nil(), username: "a".into(), roles: vec![],
                },
                token_id: Uuid::nil(),
                lifetime: Lifetime {
                    now: OffsetDateTime::UNIX_EPOCH, expires_at: OffsetDateTime::UNIX_EPOCH + Duration::DAY,
                },
            };
            let (token, verifier) = (content.issue(key), content.verifier(key));
            let cut = cut.index(token.len());
            for text in [format!("{head}{text}"), format!("{}{text}", &token[..cut]), format!("{text}{}", &token[cut..])] {
                if text != token {
                    prop_assert!(verifier.verify(&text, content.lifetime.now).is_err(), "{}", text);
                    verifier.inspect(&text, content.lifetime.now);
                }
            }
        }
    }
}
