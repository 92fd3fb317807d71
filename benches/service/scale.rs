//! What a request costs with a million users and five million sessions, compared with a thousand users.

use std::time::Instant;

use crate::{
    bench::{Bench, Goal::AtMost},
    load::{Connection, bearer, expect, get, percentile, post},
    process::{QUICK, Service, database, login, sql, text},
};

const MANY: usize = 1_000_000;
const FEW: usize = 1_000;
/// Sessions of each user.
const SESSIONS: usize = 5;
/// For how many users each turn makes requests, one after the other.
const ASKED: usize = 200;

/// A service with this many users, and which user comes next.
struct Site {
    service: Service,
    users: usize,
    next: usize,
    /// An administrator's access token.
    root: String,
}

/// Median times of one turn, in microseconds.
struct Times {
    login: f64,
    renewal: f64,
    sessions: f64,
    page: f64,
    search: f64,
}

impl Site {
    /// Passwords are checked with a hash of 8 KiB and one iteration, which takes some 20 µs, so a login takes the time
    /// of everything except its hash.
    fn new(bench: &Bench, users: usize) -> Self {
        bench.doing(&format!("{users} users with {SESSIONS} sessions each"));
        let url = database();
        let service = Service::start(&url, &QUICK);
        service.register("root");
        sql(&url, "UPDATE users SET roles = '{admin}' WHERE username = 'root'");
        sql(&url, &seed(users));
        sql(&url, "VACUUM (ANALYZE)");
        sql(&url, "CHECKPOINT");
        let root = text(&service.log_in("root")["access_token"]);
        Self { service, users, next: 0, root }
    }

    /// Makes the requests one after the other, so that none waits for another.
    fn turn(&mut self, asked: usize) -> Times {
        let mut connection = Connection::open(self.service.address);
        let mut times: [Vec<f64>; 5] = [const { Vec::new() }; 5];
        let mut ask = |which: usize, request: &[u8]| {
            let start = Instant::now();
            let (status, body) = connection.ask(request);
            times[which].push(start.elapsed().as_secs_f64() * 1e6);
            expect(200, status, body);
            serde_json::from_slice::<serde_json::Value>(body).expect("JSON")
        };
        let root = bearer(&self.root);
        for _ in 0..asked {
            // Spread all over the tables, and no user twice for as long as possible.
            self.next = (self.next + 617_369) % self.users;
            let username = format!("user{}", self.next + 1);
            let tokens = ask(0, &login(&username));
            let renewal = format!(r#"{{"refresh_token":"{}"}}"#, text(&tokens["refresh_token"]));
            let renewed = ask(1, &post("/tokens/renew_access", "", &renewal));
            let own = ask(2, &get("/sessions", &bearer(&text(&renewed["access_token"]))));
            assert!(own["sessions"].as_array().is_some_and(|all| all.len() > SESSIONS), "{own}");
            ask(3, &get("/admin/users", &root));
            ask(4, &get(&format!("/admin/users?query={username}"), &root));
        }
        let [login, renewal, sessions, page, search] = times.map(|mut times| {
            times.sort_by(f64::total_cmp);
            percentile(&times, 50.0)
        });
        Times { login, renewal, sessions, page, search }
    }
}

/// Users `user1`, `user2`, … with root's password, and their sessions. The triggers stay silent: these requests neither
/// read nor write the history of users.
fn seed(users: usize) -> String {
    let sessions = users * SESSIONS;
    format!(
        "SET session_replication_role = replica;
         INSERT INTO users
             (id, username, email, full_name, password_hash, roles, is_email_verified, disabled, password_changed_at,
              created_at, updated_at)
         SELECT ('01940000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'user' || n, 'user' || n || '@example.com',
             'User ' || n, password_hash, '{{}}', true, false, password_changed_at, now(), now()
         FROM users AS root, generate_series(1, {users}) AS n WHERE root.username = 'root';
         INSERT INTO sessions
             (id, user_id, refresh_generation, refresh_salt, user_agent, client_ip, created_at, last_used_at, renewed_at,
              is_confirmed, refresh_expires_at, expires_at, access_expires_at)
         SELECT ('01940000-0000-7000-9000-' || lpad(to_hex(n), 12, '0'))::uuid,
             ('01940000-0000-7000-8000-' || lpad(to_hex(1 + n % {users}), 12, '0'))::uuid, n % 10, sha256(int8send(n)),
             'Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0', '192.0.2.1', now(), now(), now(),
             true, now() + interval '1 day', now() + interval '30 days', now() + interval '15 minutes'
         FROM generate_series(1, {sessions}) AS n"
    )
}

/// Times of requests among many users, compared with those among few.
pub(crate) fn scale(bench: &mut Bench) {
    let many = bench.size(MANY, 2 * FEW);
    let [mut few, mut many] = [FEW, many].map(|users| Site::new(bench, users));
    let asked = bench.size(ASKED, 5);
    // So that what a turn touches is in memory for both, or for neither.
    few.turn(asked);
    many.turn(asked);
    let what = "times among a million users";
    let [ours, limits] = bench.in_turns(what, [&mut || many.turn(asked), &mut || few.turn(asked)]);
    for (name, which) in [
        ("a login without its hash", (|times| times.login) as fn(&Times) -> f64),
        ("a renewal", |times| times.renewal),
        ("a session list", |times| times.sessions),
        ("a page of users", |times| times.page),
        ("a search for users", |times| times.search),
    ] {
        let figures = |all: &[Times]| all.iter().map(which).collect::<Vec<_>>();
        let what = format!("{name}, µs, among 1 000 000 users");
        bench.ratio(&what, &figures(&ours), ("among 1 000", &figures(&limits)), AtMost(1.2));
    }
}
