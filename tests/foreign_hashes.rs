//! Password hashes of other systems let their owners in: bcrypt, scrypt, PBKDF2, crypt(3), LDAP's, Django's,
//! Firebase's, Keycloak's and bare digests. A wrong password does not log in. The right one does, and leaves one of our
//! own hashes behind, which the next login uses.
//!
//! Those systems' own libraries made the hashes: once for `foreign_hashes/vectors.json`, and in every run for
//! `foreign_hashes/make.py`, of other passwords. `make test` installs the libraries for the latter
//! (`scripts/other-libraries`); without them that test fails in CI, and elsewhere reports that it has not run.

use std::{num::NonZeroUsize, process::Command, time::Duration};

use gatepass::password::{
    HashedPassword, Params, Password, Peppers, Pool, PoolSettings, Verdict,
    foreign::{Algorithm, BareKind, FirebaseProject, HmacKey, Imported},
};
use serde_json::{Value, json};

use crate::{
    app::{App, PASSWORD},
    not_tested::named_by,
    passwords::stored,
};

const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/foreign_hashes/make.py");

fn pool() -> Pool {
    Pool::new(PoolSettings {
        threads: NonZeroUsize::new(2).unwrap(),
        queue: 1000,
        params: Params { memory_kib: 8, iterations: 1, parallelism: 1 },
        peppers: Peppers::default(),
        deadline: Duration::from_secs(600),
    })
    .unwrap()
}

/// What is stored for one of the hashes that the program makes.
async fn import(pool: &Pool, made: &Value) -> HashedPassword {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let number = |value: &Value| value.as_u64().unwrap();
    let imported = if let Some(text) = made["text"].as_str() {
        Imported::parse(text, &Peppers::default())
    } else if let Some(hash) = made.get("firebase") {
        let (key, separator) = (text(&hash["signer_key"]), text(&hash["salt_separator"]));
        let (rounds, mem_cost) = (number(&hash["rounds"]), number(&hash["mem_cost"]));
        let project =
            FirebaseProject::new(&key, &separator, rounds.try_into().unwrap(), mem_cost.try_into().unwrap());
        Imported::firebase(&project.unwrap(), &text(&hash["hash"]), &text(&hash["salt"]))
    } else if let Some(hash) = made.get("keycloak") {
        Imported::keycloak(&text(&hash["credential_data"]), &text(&hash["secret_data"]))
    } else {
        let hash = &made["bare"];
        let kind = BareKind {
            algorithm: Algorithm::by_name(&text(&hash["algorithm"])).unwrap(),
            template: hash["template"].as_str().map(str::to_owned),
            key: hash["key"].as_str().map(|key| HmacKey::Shared(key.as_bytes().to_vec().into())),
        };
        Imported::of_kind(&text(&hash["hash"]), Some(&kind), &text(&hash["salt"]), &Peppers::default(), None)
    };
    match imported.unwrap_or_else(|refused| panic!("{made}: {refused}")) {
        Imported::Keep(hash) => hash,
        Imported::Wrap(fast) => pool.wrap(fast, [7; 16]).await.unwrap(),
    }
}

async fn set_hash(app: &App, user: &Value, hash: &str) {
    sqlx::query("UPDATE users SET password_hash = $2 WHERE id = $1::uuid")
        .bind(user["id"].as_str().unwrap())
        .bind(hash)
        .execute(&app.db)
        .await
        .unwrap();
}

async fn log_in(app: &App, password: &str) -> u16 {
    app.try_login("alice", password).await.status.as_u16()
}

#[tokio::test]
async fn every_foreign_hash_admits_its_owner_once_and_is_then_replaced() {
    let (app, pool) = (App::new().await, pool());
    let alice = app.register("alice").await;
    let vectors: Vec<Value> = serde_json::from_str(include_str!("foreign_hashes/vectors.json")).unwrap();
    for vector in &vectors {
        let (what, password) = (&vector["what"], vector["password"].as_str().unwrap());
        let hash = import(&pool, vector).await;
        set_hash(&app, &alice, hash.as_str()).await;
        // A new replica each time: one that has verified an expensive hash makes every later refusal take as long.
        let app = app.replica(&[]).await;
        assert_eq!(log_in(&app, PASSWORD).await, 401, "{what}");
        assert_eq!(stored(&app, &alice).await, hash.as_str(), "{what}");

        assert_eq!(log_in(&app, password).await, 200, "{what}");
        let replaced = stored(&app, &alice).await;
        assert!(replaced.starts_with("$argon2id$v=19$m=8,t=1,p=1$"), "{what}: {replaced}");
        assert_eq!(log_in(&app, password).await, 200, "{what}");
        assert_eq!(log_in(&app, PASSWORD).await, 401, "{what}");
        assert_eq!(stored(&app, &alice).await, replaced, "{what}");
    }
}

/// A wrapped hash gets the current pepper, and loses it like any other hash.
#[tokio::test]
async fn a_wrapped_hash_may_have_a_pepper() {
    let pepper = "1:RO1qnPi9qxt2iBVWLtBI7ODWHOmx5QBmCy0l1C0gp6s=";
    let app = App::with(&[("PASSWORD_PEPPER", pepper)]).await;
    let settings = PoolSettings {
        threads: NonZeroUsize::MIN,
        queue: 1,
        params: Params { memory_kib: 8, iterations: 1, parallelism: 1 },
        peppers: pepper.parse().unwrap(),
        deadline: Duration::from_secs(600),
    };
    let vector = json!({ "text": "{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=" });
    let hash = import(&Pool::new(settings).unwrap(), &vector).await;
    assert!(hash.as_str().starts_with("$wrapped$digest$") && hash.as_str().contains(",keyid=MQ$"));

    let alice = app.register("alice").await;
    set_hash(&app, &alice, hash.as_str()).await;
    let unpeppered = app.replica(&[]).await;
    assert_eq!(log_in(&unpeppered, "secret").await, 401);
    assert_eq!(log_in(&app, "secret").await, 200);
}

#[tokio::test]
async fn hashes_that_other_systems_make_now_are_verified() {
    let Some(python) = named_by("GATEPASS_TEST_PYTHON", "that we verify hashes made now") else { return };
    let output = Command::new(&python).arg(PROGRAM).output().unwrap();
    let (status, complaint) = (output.status, String::from_utf8_lossy(&output.stderr));
    assert!(status.success(), "{PROGRAM}: {status}: {complaint}");
    let made: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert!(made.len() > 45);

    for hash in &made {
        let pool = pool();
        let (password, stored) = (hash["password"].as_str().unwrap(), import(&pool, hash).await);
        let verdict = pool.verify(&Password::new(password), Some(&stored)).await.unwrap();
        assert_eq!(verdict, Verdict::Match { outdated: true }, "{hash}");
        let wrong = format!("x{password}");
        let verdict = pool.verify(&Password::new(&wrong), Some(&stored)).await.unwrap();
        assert_eq!(verdict, Verdict::NoMatch, "{hash}");
    }
}
