//! Passwords and what is stored of them: peppers are introduced, replaced and dropped; a hash that nobody can read
//! counts as a wrong password and is logged; breached passwords are refused in a way that a form can show; and `doctor`
//! measures hashes.

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    app::{App, KEY, PASSWORD, START},
    process::Home,
};

const ONE: &str = "1:RO1qnPi9qxt2iBVWLtBI7ODWHOmx5QBmCy0l1C0gp6s=";
const TWO: &str = "2:1i0T3ww4Q8p5f5Q1cJ0GZQ5vGJb4TnZ2vT7q0mXgk8s=";

/// The hash that is stored for a user.
pub async fn stored(app: &App, user: &Value) -> String {
    sqlx::query_scalar("SELECT password_hash FROM users WHERE id = $1::uuid")
        .bind(user["id"].as_str().unwrap())
        .fetch_one(&app.db)
        .await
        .unwrap()
}

async fn may_log_in(app: &App, password: &str) -> bool {
    let answer = app.try_login("alice", password).await;
    let status = answer.status.as_u16();
    if status != 200 {
        assert_eq!(answer.expect(401)["code"], "invalid_credentials");
    }
    status == 200
}

#[tokio::test]
async fn a_pepper_can_be_added_replaced_and_removed() {
    let plain = App::new().await;
    let alice = plain.register("alice").await;
    assert!(!stored(&plain, &alice).await.contains("keyid"));

    // A successful login adds the pepper; a failed one does not.
    let one = plain.replica(&[("PASSWORD_PEPPER", ONE)]).await;
    let before = stored(&one, &alice).await;
    assert!(!may_log_in(&one, "wrong-horse-battery-9").await);
    assert_eq!(stored(&one, &alice).await, before);
    assert!(may_log_in(&one, PASSWORD).await);
    assert!(stored(&one, &alice).await.contains("$m=8,t=1,p=1,keyid=MQ$"));
    let bob = one.register("bob").await;
    assert!(stored(&one, &bob).await.contains(",keyid=MQ$"));

    // The next pepper is listed before the former one.
    let both = plain.replica(&[("PASSWORD_PEPPER", &format!("{TWO},{ONE}"))]).await;
    assert!(may_log_in(&both, PASSWORD).await);
    assert!(stored(&both, &alice).await.contains(",keyid=Mg$"));
    assert!(stored(&both, &bob).await.contains(",keyid=MQ$"), "has not logged in");

    // Without the former one, only users whose hash has moved over can log in. A hash that cannot be read stays as it
    // is.
    let two = plain.replica(&[("PASSWORD_PEPPER", TWO)]).await;
    assert!(may_log_in(&two, PASSWORD).await);
    two.try_login("bob", PASSWORD).await.expect_problem(401, "invalid_credentials");
    assert!(stored(&two, &bob).await.contains(",keyid=MQ$"));
    // Without any pepper, nobody whose hash has moved over.
    assert!(!may_log_in(&plain, PASSWORD).await);
    both.login("bob").await;
}

#[tokio::test]
async fn an_unreadable_hash_is_a_wrong_password_and_a_log_line() {
    let app = App::new().await;
    let alice = app.register("alice").await;
    let good = stored(&app, &alice).await;
    let table = [
        ("nonsense".to_owned(), "malformed"),
        ("$".to_owned(), "unknown algorithm"),
        ("$y$j9T$saltsalt$abZLF3nn.SfKqkvXA/gnD9JPMo.8oZ4MoaCWQ5kcXV0".to_owned(), "unknown algorithm"),
        ("$2b$31$EixZaYVK1fsbw1ZfbX3OXePaWxn96p36WQoeG6Lruj3vjPGga31lW".to_owned(), "beyond the limit"),
        ("{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=".to_owned(), "not wrapped"),
        (good.replace("v=19", "v=20"), "unknown algorithm"),
        (good.replace("m=8", "m=4294967295"), "parameters beyond the limit"),
        (good.replace("t=1", "t=4294967295"), "parameters beyond the limit"),
        (good.replace("p=1", "p=0"), "malformed"),
        (good.replace("p=1", "p=1,keyid=MQ"), "PASSWORD_PEPPER"),
        (format!("$argon2id${}", "A".repeat(900)), "malformed"),
        ("\u{1f511}".repeat(200), "malformed"),
    ];
    let home = Home::new();
    let environment = [
        ("DB_SOURCE", &*app.database_url),
        ("TOKEN_SYMMETRIC_KEY", KEY),
        ("ARGON2_MEMORY_KIB", "8"),
        ("ARGON2_ITERATIONS", "1"),
        ("LOG_FORMAT", "json"),
    ];
    let (mut service, count) = (home.serve(&environment).await, table.len());
    for (hash, reason) in table {
        let change = "UPDATE users SET password_hash = $1, updated_at = $2 WHERE username = 'alice'";
        sqlx::query(change).bind(&hash).bind(START).execute(&app.db).await.unwrap();
        for password in [PASSWORD, ""] {
            let credentials = json!({"username": "alice", "password": password});
            let (status, problem) = service.post("/users/login", &credentials).await;
            assert_eq!((status, &problem["code"]), (401, &json!("invalid_credentials")), "{hash}");
        }
        assert_eq!(stored(&app, &alice).await, hash);
        service.logged(reason).await;
    }
    let log = service.stop(Signal::TERM).await.stderr;
    assert_eq!(log.matches("the stored password hash cannot be read").count(), 2 * count, "{log}");
    assert!(!log.contains("panicked"), "{log}");
}

#[tokio::test]
async fn breached_passwords_are_refused_so_that_a_form_can_show_it() {
    let home = Home::new();
    // `printf '%s' 'a quiet river at noon' | sha1sum`, shortened, with one hash before it and one after.
    let file =
        home.write("breached", &format!("{}\n{}\n{}\n", "0".repeat(16), "C6AA921350C3E0C2", "F".repeat(16)));
    let app = App::with(&[("PASSWORD_BREACHED_FILE", &file)]).await;
    let with = |password: &str| {
        let body = json!({"username": "alice", "email": "alice@example.com", "password": password});
        app.post("/users").json(&body).send()
    };
    let problem = with("a quiet river at noon").await.expect(422);
    assert_eq!(
        problem["errors"],
        json!([{
            "field": "password",
            "code": "breached",
            "message": "has appeared in a data breach, so attackers try it; use another one",
        }])
    );
    with("a quiet river at dusk").await.expect(201);

    // A file of another kind stops the start, and the error names the setting.
    let wrong = home.write("passwords", "123456\npassword\n");
    for (path, why) in [(&*wrong, "hexadecimal digits"), ("/nonexistent", "cannot be read")] {
        let run = home.gatepass(&["config"]).env("PASSWORD_BREACHED_FILE", path).run();
        run.await.fails(1, &["PASSWORD_BREACHED_FILE", why]);
    }
}

#[tokio::test]
async fn a_password_far_too_long_is_refused_like_any_other() {
    let app = App::new().await;
    app.register("alice").await;
    for length in [1024, 1025, 60_000] {
        let long = "x".repeat(length);
        assert!(!may_log_in(&app, &long).await);
        let body = json!({"username": "bob", "email": "bob@example.com", "password": long});
        let problem = app.post("/users").json(&body).send().await.expect(422);
        assert_eq!(problem["errors"][0]["code"], "too_long");
    }
}

#[tokio::test]
async fn doctor_measures_hashes_and_recommends() {
    let home = Home::new();
    let doctor = async |args: &[&str], settings: &[(&str, &str)]| {
        let ended = home.gatepass(args).envs(settings).env("TOKEN_SYMMETRIC_KEY", KEY).run().await.expect(0);
        let findings: Value = serde_json::from_str(&ended.stdout).unwrap();
        let findings = findings["findings"].as_array().unwrap().clone();
        findings.into_iter().filter(|finding| finding["area"] == "password").collect::<Vec<_>>()
    };
    // No machine hashes in a millisecond, so OWASP's minimum is recommended.
    let wish = ["doctor", "--json", "--hash-time", "1", "--hash-memory", "8"];
    let findings = doctor(&wish, &[]).await;
    let finding = findings[0].to_string();
    assert!(finding.contains("(m=19456,t=2,p=1)"), "{finding}");
    assert!(finding.contains("ARGON2_MEMORY_KIB=7168 ARGON2_ITERATIONS=5 ARGON2_PARALLELISM=1"), "{finding}");

    let peppers = format!("{TWO},{ONE}");
    let findings = doctor(&["doctor", "--json"], &[("PASSWORD_PEPPER", &peppers)]).await;
    assert!(findings[1].to_string().contains("a rotation is not finished"), "{findings:?}");
}
