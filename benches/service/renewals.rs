//! Renewals compared with Postgres alone: `pgbench` runs the statements of a renewal with as many clients, each with
//! sessions of its own, and commits as durably as the service.

use std::{env, fs, process::Command};

use serde_json::Value;

use crate::{
    bench::{Bench, Goal::AtLeast, median},
    load::{self, Client, expect, post},
    process::{QUICK, Service, database, sql, text},
};

/// Clients that renew at the same time.
const CLIENTS: usize = 16;

/// To find out how many connections to Postgres are worth having, which no test and no other setting would tell.
const CONNECTIONS: [&str; 2] = ["8", "16"];

/// What tells the two statements of a renewal from the others in `.sqlx`.
const STATEMENTS: [&str; 2] =
    ["FROM sessions JOIN users ON users.id = user_id WHERE sessions.id = $1", "SET refresh_generation ="];

/// A session that is renewed again and again.
pub(crate) struct Renewing {
    refresh_token: String,
}

impl Renewing {
    pub(crate) fn of_new(service: &Service, username: &str) -> Self {
        service.register(username);
        Self { refresh_token: text(&service.log_in(username)["refresh_token"]) }
    }
}

impl Client for Renewing {
    fn ask(&mut self, buffer: &mut Vec<u8>) {
        let token = format!(r#"{{"refresh_token":"{}"}}"#, self.refresh_token);
        buffer.extend(post("/tokens/renew_access", "user-agent: bench\r\n", &token));
    }

    fn hear(&mut self, status: u16, body: &[u8]) {
        expect(200, status, body);
        let tokens: Value = serde_json::from_slice(body).expect("JSON");
        self.refresh_token = text(&tokens["refresh_token"]);
    }
}

/// Renewals per second, and how many Postgres alone does.
pub(crate) fn renewals(bench: &mut Bench) {
    let url = database();
    let service = Service::start(&url, &QUICK);
    let clients = |service: &Service, name: &str| -> Vec<_> {
        (0..CLIENTS).map(|number| Renewing::of_new(service, &format!("{name}{number}"))).collect()
    };
    let mut ours = clients(&service, "ours");
    // The sessions of pgbench, by its clients' numbers.
    drop(clients(&service, "pgbench"));
    sql(
        &url,
        "CREATE TABLE bench AS
         SELECT substr(username, 8)::int AS client, sessions.id, user_id FROM sessions JOIN users ON users.id = user_id
         WHERE username LIKE 'pgbench%'",
    );
    sql(&url, "VACUUM (ANALYZE)");
    let script = env::temp_dir().join(format!("gatepass-bench-{}.sql", std::process::id()));
    fs::write(&script, script_of_renewal()).expect("a place for files");

    let turn = bench.turn() * 2;
    let what = format!("renewals/s, {CLIENTS} at the same time");
    let mut others: Vec<_> = CONNECTIONS
        .iter()
        .map(|max| {
            let service = Service::start(&url, &[&QUICK[..], &[("DB_MAX_CONNECTIONS", max)]].concat());
            let clients = clients(&service, &format!("with{max}-"));
            (service, clients)
        })
        .collect();
    let [first, second] = &mut others[..] else { unreachable!("as many as CONNECTIONS") };
    load::run(service.address, turn / 4, &mut ours);
    let rate = |service: &Service, clients: &mut [Renewing]| load::run(service.address, turn, clients).rate;
    let [ours, limit, with_8, with_16] = bench.in_turns(
        &what,
        [
            &mut || rate(&service, &mut ours),
            &mut || pgbench(&url, &script, turn.as_secs().max(1)),
            &mut || rate(&first.0, &mut first.1),
            &mut || rate(&second.0, &mut second.1),
        ],
    );
    fs::remove_file(&script).expect("it is there");
    bench.ratio(&what, &ours, ("pgbench, the same SQL", &limit), AtLeast(0.4));
    for (max, rate) in CONNECTIONS.into_iter().zip([with_8, with_16]) {
        bench.note(&format!("{what}, DB_MAX_CONNECTIONS={max}"), median(rate));
    }
}

/// The statements of a renewal, with pgbench's variables. They come from where the service's build takes them.
fn script_of_renewal() -> String {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../.sqlx");
    let queries: Vec<_> = fs::read_dir(directory)
        .expect("part of the repository")
        .map(|file| {
            let text = fs::read_to_string(file.expect("a file").path()).expect("a file");
            text_of(&serde_json::from_str(&text).expect("JSON"))
        })
        .collect();
    let statement = |mark: &str| {
        let found = queries.iter().find(|query| query.contains(mark));
        found.unwrap_or_else(|| panic!("no query has {mark:?} in it")).clone()
    };
    let [read, write] = STATEMENTS.map(statement);
    let read = read.replace("$1", ":id");
    let mut write = write;
    for (number, variable) in [
        "id",
        "generation",
        "now",
        "refresh_expires_at",
        "user_agent",
        "client_ip",
        "access_expires_at",
        "user_id",
    ]
    .into_iter()
    .enumerate()
    {
        write = write.replace(&format!("${}", number + 1), &format!(":{variable}"));
    }
    format!(
        "\\if :is_first\n\
         SELECT id, sessions.user_id, refresh_generation AS generation\n\
           FROM bench JOIN sessions USING (id) WHERE client = :client_id \\gset\n\
         \\set is_first false\n\
         \\endif\n\
         {read};\n{write};\n\\set generation :generation + 1\n"
    )
}

fn text_of(query: &Value) -> String {
    text(&query["query"])
}

/// Transactions per second. No session expires meanwhile: `now` is always a moment at which the session is live.
fn pgbench(database: &str, script: &std::path::Path, seconds: u64) -> f64 {
    let times = sql(
        database,
        "SELECT created_at, refresh_expires_at, access_expires_at FROM sessions JOIN bench USING (id) LIMIT 1",
    );
    let times: Vec<_> = times.split('|').collect();
    let [now, refresh, access] = times[..] else { panic!("{times:?}") };
    let mut command = Command::new("pgbench");
    command.args(["-n", "-M", "prepared", "-j", "2", "-c", &CLIENTS.to_string(), "-T", &seconds.to_string()]);
    for (name, value) in [
        ("is_first", "true"),
        ("now", now),
        ("refresh_expires_at", refresh),
        ("access_expires_at", access),
        ("user_agent", "bench"),
        ("client_ip", "127.0.0.1"),
    ] {
        command.arg("-D").arg(format!("{name}={value}"));
    }
    let done = command.arg("-f").arg(script).arg(database).output().expect("pgbench is there");
    let said = String::from_utf8_lossy(&done.stdout);
    let rate = said.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    match rate {
        Some(rate) if done.status.success() => rate,
        _ => panic!("{said}{}", String::from_utf8_lossy(&done.stderr)),
    }
}
