//! From the cost of one request to the needs of a service for many users: the arithmetic of docs/capacity.md, and a
//! simulated machine to compare with a real one.

/// What a request of one kind takes, in seconds. For cores, these are processor time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    /// Of the service's cores, except for the hash.
    pub(crate) service: f64,
    /// Of the service's cores, for the password hash.
    pub(crate) hash: f64,
    /// Of Postgres's cores.
    pub(crate) postgres: f64,
    /// Of the clients' cores.
    pub(crate) client: f64,
    /// Time in which nobody computes: until the disk has the commit, and the one who waits for it is woken.
    pub(crate) wait: f64,
}

impl Cost {
    /// Processor time of everybody who works on the request.
    pub(crate) fn processor(&self) -> f64 {
        self.service + self.hash + self.postgres + self.client
    }
}

/// The resources of a machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Machine {
    pub(crate) cores: usize,
    /// Threads that compute password hashes.
    pub(crate) hash_threads: usize,
    /// Connections to the database, for requests.
    pub(crate) connections: usize,
    /// Threads of the clients.
    pub(crate) client_threads: usize,
}

/// How much a hashing thread counts compared with any other: `nice` 10 compared with 0, as Linux weighs them.
const NICE: f64 = 110.0 / 1024.0;

/// The resources with a bounded number of places, in the order in which a request needs them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Client,
    Service,
    HashThread,
    Connection,
}

const PLACES: [Place; 4] = [Place::Client, Place::Service, Place::HashThread, Place::Connection];

/// A client that asks again and again.
#[derive(Clone, Copy, Debug)]
struct Asker {
    kind: usize,
    /// Index of [`PLACES`].
    place: usize,
    state: State,
    /// When the request began.
    since: f64,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Waiting for its place, since this time.
    Queued(f64),
    /// Computing, with this many seconds of a core left.
    Computing(f64),
    /// Waiting until this time.
    Waiting(f64),
}

/// What became of the requests of one kind.
#[derive(Clone, Debug, Default)]
pub(crate) struct Simulated {
    /// Answers a second.
    pub(crate) rate: f64,
    /// How long they took in seconds, sorted.
    pub(crate) times: Vec<f64>,
}

/// Simulates clients that ask for `time` seconds, each one request after the other: so many for each of the costs.
///
/// Those that have something to compute share the cores by weight, and none gets more than one core. The places of a
/// bounded resource are given out first come, first served. Nothing changes between events, so every step is exact.
pub(crate) fn simulate(machine: Machine, kinds: &[(Cost, usize)], time: f64) -> Vec<Simulated> {
    let places = |place| match place {
        Place::Client => machine.client_threads,
        // All requests are served by as many threads as there are cores.
        Place::Service => machine.cores,
        Place::HashThread => machine.hash_threads,
        Place::Connection => machine.connections,
    };
    let mut askers: Vec<_> = kinds
        .iter()
        .enumerate()
        .flat_map(|(kind, &(_, count))| (0..count).map(move |_| kind))
        .map(|kind| Asker { kind, place: 0, state: State::Queued(0.0), since: 0.0 })
        .collect();
    let mut simulated = vec![Simulated::default(); kinds.len()];
    let mut now = 0.0;
    while now < time {
        for (index, &place) in PLACES.iter().enumerate() {
            admit(&mut askers, index, places(place), |kind| work(&kinds[kind].0, place));
        }
        let speeds = speeds(&askers, machine.cores as f64);
        let step = askers
            .iter()
            .zip(&speeds)
            .filter_map(|(asker, speed)| match asker.state {
                State::Queued(_) => None,
                State::Computing(left) => Some(left / speed),
                State::Waiting(until) => Some(until - now),
            })
            .fold(f64::INFINITY, f64::min)
            .max(0.0);
        now += step;
        for (asker, speed) in askers.iter_mut().zip(&speeds) {
            let is_done = match &mut asker.state {
                State::Queued(_) => false,
                State::Computing(left) => {
                    *left -= speed * step;
                    *left <= f64::EPSILON
                }
                State::Waiting(until) => *until <= now,
            };
            if !is_done {
                continue;
            }
            let cost = kinds[asker.kind].0;
            let is_computed = matches!(asker.state, State::Computing(_));
            if is_computed && PLACES[asker.place] == Place::Connection && cost.wait > 0.0 {
                asker.state = State::Waiting(now + cost.wait);
                continue;
            }
            asker.place += 1;
            if asker.place == PLACES.len() {
                simulated[asker.kind].times.push(now - asker.since);
                (asker.place, asker.since) = (0, now);
            }
            asker.state = State::Queued(now);
        }
    }
    for kind in &mut simulated {
        kind.rate = kind.times.len() as f64 / time;
        kind.times.sort_by(f64::total_cmp);
    }
    simulated
}

fn work(cost: &Cost, place: Place) -> f64 {
    match place {
        Place::Client => cost.client,
        Place::Service => cost.service,
        Place::HashThread => cost.hash,
        Place::Connection => cost.postgres,
    }
}

/// Gives the free places of a resource to those that have waited longest. An asker that needs nothing of it passes.
fn admit(askers: &mut [Asker], place: usize, places: usize, work: impl Fn(usize) -> f64) {
    let is_taken = |asker: &&Asker| asker.place == place && !matches!(asker.state, State::Queued(_));
    let mut free = places.saturating_sub(askers.iter().filter(is_taken).count());
    let mut queue: Vec<_> = askers
        .iter_mut()
        .filter(|asker| asker.place == place)
        .filter_map(|asker| match asker.state {
            State::Queued(since) => Some((since, asker)),
            State::Computing(_) | State::Waiting(_) => None,
        })
        .collect();
    queue.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    for (_, asker) in queue {
        let work = work(asker.kind);
        if work == 0.0 {
            asker.state = State::Computing(0.0);
        } else if free > 0 {
            asker.state = State::Computing(work);
            free -= 1;
        }
    }
}

/// The part of a core that each asker gets: by weight, none more than one, and the others share what one cannot use.
fn speeds(askers: &[Asker], cores: f64) -> Vec<f64> {
    let weights: Vec<_> = askers
        .iter()
        .map(|asker| match (asker.state, PLACES[asker.place]) {
            (State::Computing(_), Place::HashThread) => NICE,
            (State::Computing(_), _) => 1.0,
            (State::Queued(_) | State::Waiting(_), _) => 0.0,
        })
        .collect();
    let mut speeds = vec![0.0; askers.len()];
    let mut left = cores;
    loop {
        let open = |&(speed, weight): &(&f64, &f64)| *speed < 1.0 && *weight > 0.0;
        let sum: f64 = speeds.iter().zip(&weights).filter(open).map(|(_, weight)| weight).sum();
        if sum == 0.0 || left <= 0.0 {
            return speeds;
        }
        // Askers whose share is a whole core or more get one core, and the rest is shared out again.
        let share = left / sum;
        let full = |speed: f64, weight: f64| speed < 1.0 && weight * share >= 1.0;
        let is_any_full = speeds.iter().zip(&weights).any(|(&speed, &weight)| full(speed, weight));
        for (speed, &weight) in speeds.iter_mut().zip(&weights) {
            if weight == 0.0 || *speed >= 1.0 {
                continue;
            }
            if !is_any_full {
                *speed = weight * share;
            } else if weight * share >= 1.0 {
                *speed = 1.0;
                left -= 1.0;
            }
        }
        if !is_any_full {
            return speeds;
        }
    }
}

/// What people do in the busiest hour, per second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Demand {
    pub(crate) users: f64,
    pub(crate) logins: f64,
    pub(crate) renewals: f64,
    pub(crate) checks: f64,
}

/// What each kind of request costs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Costs {
    pub(crate) login: Cost,
    pub(crate) renewal: Cost,
    pub(crate) check: Cost,
}

/// What a demand needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need {
    /// Of all replicas, for password hashes.
    pub(crate) hash_cores: f64,
    /// Of all replicas, for the rest.
    pub(crate) other_cores: f64,
    /// With 2 cores each; at least three, to spread over the zones.
    pub(crate) replicas: f64,
    pub(crate) postgres_cores: f64,
    /// Commits per second that wait for the disk.
    pub(crate) commits: f64,
    /// Connections that the replicas keep open.
    pub(crate) connections: f64,
    /// For password hashes, when every user logs in within one hour.
    pub(crate) rush_cores: f64,
}

/// How busy cores may be in the busiest hour: the rest is for a busier minute, and for a replica that is gone.
pub(crate) const BUSY: f64 = 0.6;
/// Cores of a replica.
pub(crate) const REPLICA_CORES: f64 = 2.0;
/// Connections of a replica, all pools together.
pub(crate) const REPLICA_CONNECTIONS: f64 = 8.0;
/// Commits that wait for the disk: that of the session. That of a place in the throttle does not.
pub(crate) const LOGIN_COMMITS: f64 = 1.0;
pub(crate) const RENEWAL_COMMITS: f64 = 1.0;

/// The arithmetic of docs/capacity.md.
pub(crate) fn need(demand: &Demand, costs: &Costs) -> Need {
    let Demand { users, logins, renewals, checks } = *demand;
    let sum = |part: fn(&Cost) -> f64| {
        logins * part(&costs.login) + renewals * part(&costs.renewal) + checks * part(&costs.check)
    };
    let hash_cores = sum(|cost| cost.hash) / BUSY;
    let other_cores = sum(|cost| cost.service) / BUSY;
    let replicas = ((hash_cores + other_cores) / REPLICA_CORES).ceil().max(3.0);
    Need {
        hash_cores,
        other_cores,
        replicas,
        postgres_cores: sum(|cost| cost.postgres) / BUSY,
        commits: logins * LOGIN_COMMITS + renewals * RENEWAL_COMMITS,
        connections: replicas * REPLICA_CONNECTIONS,
        rush_cores: users / 3600.0 * costs.login.hash,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: Machine = Machine { cores: 2, hash_threads: 2, connections: 4, client_threads: 2 };

    fn near(value: f64, expected: f64) {
        assert!((value / expected - 1.0).abs() < 0.02, "{value} for {expected}");
    }

    #[test]
    fn what_only_computes_goes_as_fast_as_the_cores() {
        let cost = Cost { service: 0.001, ..Cost::default() };
        near(simulate(MACHINE, &[(cost, 1)], 10.0)[0].rate, 1000.0);
        near(simulate(MACHINE, &[(cost, 2)], 10.0)[0].rate, 2000.0);
        let many = &simulate(MACHINE, &[(cost, 8)], 10.0)[0];
        near(many.rate, 2000.0);
        near(many.times[many.times.len() / 2], 0.004);
    }

    #[test]
    fn what_waits_for_the_disk_goes_as_fast_as_the_connections() {
        let cost = Cost { postgres: 0.0001, wait: 0.0099, ..Cost::default() };
        near(simulate(MACHINE, &[(cost, 16)], 10.0)[0].rate, 400.0);
    }

    #[test]
    fn hashes_take_what_others_leave_and_give_way_to_them() {
        let login = Cost { hash: 0.02, ..Cost::default() };
        let check = Cost { service: 0.0001, ..Cost::default() };
        let both = simulate(MACHINE, &[(login, 8), (check, 1)], 10.0);
        // One check at a time takes a core but for the tenth of it that two hashes leave each other.
        assert!(both[1].rate > 9000.0, "{}", both[1].rate);
        near(both[0].rate * 0.02 + both[1].rate * 0.0001, 2.0);
    }

    #[test]
    fn a_service_needs_cores_by_its_requests_and_never_fewer_than_three_replicas() {
        let costs = Costs {
            login: Cost { hash: 0.02, service: 0.0002, postgres: 0.0002, ..Cost::default() },
            renewal: Cost { service: 0.0001, postgres: 0.0001, ..Cost::default() },
            check: Cost { service: 0.00002, ..Cost::default() },
        };
        let demand = Demand { users: 1e6, logins: 600.0, renewals: 0.0, checks: 0.0 };
        let need_of_many = need(&demand, &costs);
        near(need_of_many.hash_cores, 20.0);
        assert_eq!(need_of_many.replicas, 11.0);
        assert_eq!(need(&Demand { logins: 1.0, ..demand }, &costs).replicas, 3.0);
    }
}
