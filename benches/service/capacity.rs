//! What a request costs each part that works on it, whether a simulated machine with these costs does what the real one
//! does, and what follows for services of other sizes: docs/capacity.md.

use std::{fs, thread, time::Duration};

use rustix::time::{ClockId, clock_gettime};

use crate::{
    bench::{Bench, Goal::Between, figure, median},
    hashing,
    load::{self, Client, Same, bearer, get},
    logins::hashes,
    model::{
        Cost, Costs, Demand, LOGIN_COMMITS, Machine, Need, RENEWAL_COMMITS, REPLICA_CONNECTIONS, need,
        simulate,
    },
    process::{QUICK, Service, database, login, sql, text},
    renewals::Renewing,
};

/// The pool's size by default.
const CONNECTIONS: usize = 4;
/// How many clients ask at once.
const ASKERS: usize = 8;

/// What to plan for. In a day, a tenth of all users are there, each for an hour in which they log in once, renew four
/// times and make 200 requests that are checked. Of all this, 15 per cent falls into the busiest hour.
const PLANS: [(&str, f64); 3] = [("10 thousand", 1e4), ("1 million", 1e6), ("100 million", 1e8)];

fn demand(users: f64) -> Demand {
    let a_second = users * 0.1 * 0.15 / 3600.0;
    Demand { users, logins: a_second, renewals: 4.0 * a_second, checks: 200.0 * a_second }
}

pub(crate) fn measure(bench: &mut Bench) {
    let costs = costs(bench);
    hold_against_paper(bench, &costs);
    count(bench);
    bench.capacity = format!("{}\n{}", table_of_costs(&costs), table_of_needs(&costs));
    bench.say(&bench.capacity.clone());
}

/// A line for each kind of request.
fn table_of_costs(costs: &Costs) -> String {
    let kinds = [("login", costs.login), ("renewal", costs.renewal), ("bearer check", costs.check)];
    let line = |(name, cost): (&str, Cost)| {
        let [hash, service, postgres] =
            [cost.hash, cost.service, cost.postgres].map(|seconds| figure(seconds * 1e6));
        format!("| {name} | {hash} | {service} | {postgres} |\n")
    };
    let lines: String = kinds.into_iter().map(line).collect();
    format!("| µs of a core | the hash | the service besides | Postgres |\n|---|--:|--:|--:|\n{lines}",)
}

/// A column for each size.
fn table_of_needs(costs: &Costs) -> String {
    let plans = PLANS.map(|(_, users)| (demand(users), need(&demand(users), costs)));
    let line = |what: &str, value: fn(&Demand, &Need) -> f64| {
        let values: String =
            plans.iter().map(|(demand, need)| format!(" {} |", figure(value(demand, need)))).collect();
        format!("| {what} |{values}\n")
    };
    let names: String = PLANS.iter().map(|(name, _)| format!(" {name} |")).collect();
    [
        format!("| users |{names}\n|---|--:|--:|--:|\n"),
        line("logins/s", |demand, _| demand.logins),
        line("renewals/s", |demand, _| demand.renewals),
        line("checks/s", |demand, _| demand.checks),
        line("cores for hashes", |_, need| need.hash_cores),
        line("cores for the rest", |_, need| need.other_cores),
        line("replicas of two cores", |_, need| need.replicas),
        line("cores of Postgres", |_, need| need.postgres_cores),
        line("commits/s that wait for the disk", |_, need| need.commits),
        line("connections to Postgres", |_, need| need.connections),
        line("cores for hashes when all log in within an hour", |_, need| need.rush_cores),
    ]
    .concat()
}

/// Compares the machine with the same one simulated: each kind of request alone, as fast as it goes; and all kinds at
/// once, when the costs must account for every core.
fn hold_against_paper(bench: &mut Bench, costs: &Costs) {
    let service = Service::start(&database(), &[]);
    let names = register(&service);
    let logins: Vec<_> = names.iter().map(|name| login(name)).collect();
    let check = get("/auth/verify", &bearer(&text(&service.log_in(&names[0])["access_token"])));
    let mut logins: Vec<_> = logins.iter().map(|request| Same(request)).collect();
    let mut renewals = renewing(&service);
    let mut checks = vec![Same(&check); ASKERS];
    let (address, turn) = (service.address, bench.turn() * 2);

    let cores = thread::available_parallelism().map_or(1, usize::from);
    let machine =
        Machine { cores, hash_threads: cores, connections: CONNECTIONS, client_threads: cores.div_ceil(4) };
    let alone = bench.in_turns(
        "each kind of request alone",
        [
            &mut || load::run(address, turn, &mut logins).rate,
            &mut || load::run(address, turn, &mut renewals).rate,
            &mut || load::run(address, turn, &mut checks).rate,
        ],
    );
    let kinds = [("logins/s", costs.login), ("renewals/s", costs.renewal), ("checks/s", costs.check)];
    for ((what, cost), measured) in kinds.into_iter().zip(alone) {
        let paper = simulate(machine, &[(cost, ASKERS)], turn.as_secs_f64())[0].rate;
        bench.ratio(
            &format!("{what} of {ASKERS} who ask"),
            &measured,
            ("the same on paper", &vec![paper; measured.len()]),
            // With costs twice or half as high, the simulation would do half or twice as much.
            Between(0.7, 1.4),
        );
    }

    let mut at_once = || {
        thread::scope(|scope| {
            let logins = scope.spawn(|| load::run(address, turn, &mut logins).rate);
            let renewals = scope.spawn(|| load::run(address, turn, &mut renewals).rate);
            let checks = load::run(address, turn, &mut checks).rate;
            let join = |thread: thread::ScopedJoinHandle<'_, f64>| thread.join().expect("no panic");
            let rates = [join(logins), join(renewals), checks];
            rates.iter().zip(kinds).map(|(rate, (_, cost))| rate * cost.processor()).sum()
        })
    };
    let [accounted] = bench.in_turns("a mix of logins, renewals and checks", [&mut at_once]);
    let limit = ("cores there are", &*vec![cores as f64; accounted.len()]);
    bench.ratio("cores that a mix of all takes by its costs", &accounted, limit, Between(0.9, 1.3));
}

/// Checks what the arithmetic takes for granted against Postgres's own counts: the commits of a request that wait for
/// the disk, and the connections of a busy replica.
fn count(bench: &mut Bench) {
    bench.doing("commits and connections, as Postgres counts them");
    let database = database();
    let requests = bench.size(400, 40);
    let start = || Service::start(&database, &QUICK);
    let service = start();
    let names = register(&service);
    let mut renewing = Renewing::of_new(&service, "renewing");
    let logins: Vec<_> = names.iter().map(|name| login(name)).collect();
    let mut logins: Vec<_> = logins.iter().map(|request| Same(request)).collect();
    load::run(service.address, bench.turn(), &mut logins);
    let open = connections(&database);
    assert!(open <= REPLICA_CONNECTIONS, "a replica has {open} connections, more than were assumed");
    let reckoned = ("as assumed", &[REPLICA_CONNECTIONS][..]);
    bench.ratio("connections of a busy replica", &[open], reckoned, Between(0.75, 1.0));

    let mut syncs = syncs_after(&database, service);
    let mut lone = logins[0];
    let kinds: [(&str, f64, &mut dyn Client); 2] =
        [("a login", LOGIN_COMMITS, &mut lone), ("a renewal", RENEWAL_COMMITS, &mut renewing)];
    for (what, reckoned, client) in kinds {
        let service = start();
        // One after the other: the commits of many at once share their waits.
        for _ in 0..requests {
            let mut request = Vec::new();
            client.ask(&mut request);
            client.hear(200, service.call(&request, 200).to_string().as_bytes());
        }
        let after = syncs_after(&database, service);
        let what = format!("commits that wait for the disk, {what}");
        let found = (after - syncs) / requests as f64;
        // This is a count, so even one from a short run means something. The start of the service, and what it writes
        // in the background, add a few.
        assert!((0.9..1.5).contains(&(found / reckoned)), "{what}: {found}");
        bench.ratio(&what, &[found], ("as assumed", &[reckoned]), Between(0.9, 1.3));
        syncs = after;
    }
}

/// How many connections a service has to its database.
fn connections(database: &str) -> f64 {
    let count = "SELECT count(*) FROM pg_stat_activity
                 WHERE datname = current_database() AND application_name = 'gatepass'";
    sql(database, count).parse().expect("a number")
}

/// How often Postgres had waited for the disk to have the log by the time the service had ended. Only then has each of
/// its processes reported its counts.
fn syncs_after(database: &str, service: Service) -> f64 {
    drop(service);
    while connections(database) > 0.0 {
        thread::sleep(Duration::from_millis(10));
    }
    let has_moved = sql(database, "SHOW server_version_num").parse::<u32>().expect("a number") >= 180_000;
    let counted = if has_moved {
        "SELECT sum(fsyncs) FROM pg_stat_io WHERE object = 'wal'"
    } else {
        "SELECT wal_sync FROM pg_stat_wal"
    };
    sql(database, counted).parse().expect("a number")
}

fn register(service: &Service) -> Vec<String> {
    let names: Vec<_> = (0..ASKERS).map(|number| format!("user{number}")).collect();
    for name in &names {
        service.register(name);
    }
    names
}

fn renewing(service: &Service) -> Vec<Renewing> {
    (0..ASKERS).map(|number| Renewing::of_new(service, &format!("renewing{number}"))).collect()
}

/// Measures each kind of request by itself. The hash is measured separately and left out of the logins: it costs so
/// much more than the rest that a difference would be noise.
fn costs(bench: &Bench) -> Costs {
    let database = database();
    let service = Service::start(&database, &QUICK);
    let names = register(&service);
    let logins: Vec<_> = names.iter().map(|name| login(name)).collect();
    let check = get("/auth/verify", &bearer(&text(&service.log_in(&names[0])["access_token"])));
    let mut logins: Vec<_> = logins.iter().map(|request| Same(request)).collect();
    let mut renewals = renewing(&service);
    let mut checks = vec![Same(&check); ASKERS];

    let meter = Meter { service: &service, postmaster: postmaster(&database), turn: bench.turn() };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let [login, renewal, check] = bench
        .in_turns(
            "what a request costs",
            [&mut || meter.cost(&mut logins), &mut || meter.cost(&mut renewals), &mut || {
                meter.cost(&mut checks)
            }],
        )
        .map(|costs| median_cost(&costs));
    let [rates] =
        bench.in_turns("what a hash costs", [&mut || hashes(hashing::gatepass, cores, bench.turn())]);
    Costs {
        login: Cost { hash: cores as f64 / median(rates), ..login },
        renewal,
        // A check does not use Postgres; what Postgres did meanwhile was not for it.
        check: Cost { postgres: 0.0, wait: 0.0, ..check },
    }
}

fn median_cost(costs: &[Cost]) -> Cost {
    let median = |part: fn(&Cost) -> f64| median(costs.iter().map(part));
    Cost {
        service: median(|cost| cost.service),
        hash: 0.0,
        postgres: median(|cost| cost.postgres),
        client: median(|cost| cost.client),
        wait: median(|cost| cost.wait),
    }
}

/// Measures what requests cost.
struct Meter<'a> {
    service: &'a Service,
    postmaster: u32,
    turn: Duration,
}

impl Meter<'_> {
    /// What one request costs: the processor time when all clients ask, and the idle part of a lone request's time.
    fn cost<C: Client>(&self, clients: &mut [C]) -> Cost {
        let before = self.used();
        let answers = load::run(self.service.address, self.turn, clients).answers as f64;
        let after = self.used();
        let [service, postgres, client] =
            std::array::from_fn(|index| (after[index] - before[index]).as_secs_f64() / answers);
        let alone = load::run(self.service.address, self.turn / 2, &mut clients[..1]).percentile(50.0) / 1e6;
        Cost { service, hash: 0.0, postgres, client, wait: (alone - service - postgres - client).max(0.0) }
    }

    /// The processor time used by the service, by Postgres and by this process.
    fn used(&self) -> [Duration; 3] {
        let postgres = children(self.postmaster).map(processor_time_of).sum();
        let own = clock_gettime(ClockId::ProcessCPUTime);
        let own =
            Duration::new(own.tv_sec.cast_unsigned(), u32::try_from(own.tv_nsec).expect("below a second"));
        [self.service.processor_time(), postgres, own]
    }
}

/// The process that is the parent of all the database's processes.
fn postmaster(database: &str) -> u32 {
    let place = sql(database, "SHOW data_directory");
    let file =
        fs::read_to_string(format!("{place}/postmaster.pid")).expect("the server runs on this machine");
    file.lines().next().and_then(|line| line.trim().parse().ok()).expect("a process")
}

fn children(of: u32) -> impl Iterator<Item = u32> {
    let all = fs::read_dir("/proc").expect("Linux").flatten();
    let processes = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    processes.filter(move |process| {
        // After the name, which may contain any character: the state and the parent.
        let text = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        let parent = text.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        parent == Some(of)
    })
}

/// Zero if the process is gone.
fn processor_time_of(process: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let nanoseconds = threads.filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanoseconds.sum())
}
