//! What a password hash costs in each implementation and kind of memory, and what it costs everybody else.
//!
//! Run with `make bench-password`. Everything is measured in turns in one run, because machines are noisy: compare only
//! ratios, and only those of the same run. The parameters are the service's defaults.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    num::NonZeroUsize,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use argon2::Block;

mod hashing;

use hashing::{Hash, Hasher, ITERATIONS, MEMORY_KIB, argon2, gatepass, in_own_memory, plain};

/// How long each candidate is measured at a time, and how often.
const TURN: Duration = Duration::from_millis(500);
const TURNS: usize = 7;

/// An implementation of the hash. Each thread makes its own hasher.
struct Candidate {
    name: &'static str,
    hasher: fn(memory_kib: u32, iterations: u32) -> Hasher,
}

/// The others are compared with the first.
const CANDIDATES: &[Candidate] = &[
    Candidate { name: "argon2 crate, plain use (fresh memory)", hasher: plain },
    Candidate { name: "argon2 crate, reused memory", hasher: reused },
    Candidate { name: "argon2 crate, reused huge pages", hasher: huge },
    Candidate { name: "gatepass: AVX2, reused huge pages", hasher: gatepass },
    Candidate { name: "libsodium (fresh memory, takes no other)", hasher: libsodium },
    Candidate { name: "rust-argon2 crate (fresh memory)", hasher: rust_argon2 },
];

fn reused(memory_kib: u32, iterations: u32) -> Hasher {
    let argon2 = argon2(memory_kib, iterations);
    let mut blocks = vec![Block::new(); memory_kib as usize];
    Box::new(move |password, salt| {
        let mut hash = Hash::default();
        argon2
            .hash_password_into_with_memory(password, salt, &mut hash, &mut blocks[..])
            .expect("inputs within bounds");
        hash
    })
}

fn huge(memory_kib: u32, iterations: u32) -> Hasher {
    in_own_memory(memory_kib, iterations, |argon2, password, salt, hash, blocks| {
        argon2.hash_password_into_with_memory(password, salt, hash, blocks)
    })
}

fn libsodium(memory_kib: u32, iterations: u32) -> Hasher {
    use libsodium_rs::crypto_pwhash::{ALG_ARGON2ID13, pwhash};

    let (iterations, bytes) = (u64::from(iterations), memory_kib as usize * 1024);
    Box::new(move |password, salt| {
        let hash =
            pwhash(32, password, salt, iterations, bytes, ALG_ARGON2ID13).expect("inputs within bounds");
        hash.try_into().expect("as long as was asked for")
    })
}

fn rust_argon2(memory_kib: u32, iterations: u32) -> Hasher {
    let config = reference::Config {
        mem_cost: memory_kib,
        time_cost: iterations,
        lanes: 1,
        hash_length: 32,
        variant: reference::Variant::Argon2id,
        version: reference::Version::Version13,
        ..reference::Config::default()
    };
    Box::new(move |password, salt| {
        let hash = reference::hash_raw(password, salt, &config).expect("inputs within bounds");
        hash.try_into().expect("as long as was asked for")
    })
}

fn main() {
    libsodium_rs::ensure_init().expect("libsodium can be used");
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let inputs = agree();
    println!("Argon2id, m={MEMORY_KIB}, t={ITERATIONS}, p=1. All agree on {inputs} inputs.\n");
    println!("{:<46}{:>8}{:>11}{:>8}", "", "threads", "hashes/s", "ratio");
    for threads in [1, cores] {
        throughput(threads);
    }
    if cfg!(target_os = "linux") {
        println!("\nA request over loopback, in microseconds, while {cores} threads hash:\n");
        println!("{:<46}{:>8}{:>11}{:>8}{:>9}", "", "median", "99 of 100", "ratio", "hashes/s");
        latency(cores);
    }
}

/// Checks that all candidates agree on inputs of many kinds; how many inputs there were.
fn agree() -> usize {
    let mut count = 0;
    for memory_kib in [8, 9, 16, 31, 64, 100, 1000, 1024] {
        for iterations in 1..=4 {
            let mut hashers: Vec<_> =
                CANDIDATES.iter().map(|candidate| (candidate.hasher)(memory_kib, iterations)).collect();
            for length in [0, 1, 8, 63, 64, 65, 127, 128, 129, 1000] {
                let mix =
                    |i: usize| (i * 151 + length * 31 + iterations as usize * 7 + memory_kib as usize) as u8;
                let password: Vec<u8> = (0..length).map(mix).collect();
                let salt = std::array::from_fn(|i| mix(i + 5000));
                let hashes: Vec<_> = hashers.iter_mut().map(|hash| hash(&password, &salt)).collect();
                for (candidate, hash) in CANDIDATES.iter().zip(&hashes) {
                    assert_eq!(hash, &hashes[0], "{}: m={memory_kib}, t={iterations}", candidate.name);
                }
                count += 1;
            }
        }
    }
    count
}

/// Prints a line for each candidate, with the median of its turns.
fn throughput(threads: usize) {
    let mut rates = vec![Vec::new(); CANDIDATES.len()];
    for _ in 0..TURNS {
        for (candidate, rates) in CANDIDATES.iter().zip(&mut rates) {
            rates.push(rate(candidate, threads));
        }
    }
    let medians: Vec<f64> = rates.iter_mut().map(|rates| percentile(rates, 50)).collect();
    for (candidate, median) in CANDIDATES.iter().zip(&medians) {
        println!("{:<46}{threads:>8}{median:>11.1}{:>8.2}", candidate.name, median / medians[0]);
    }
}

fn rate(candidate: &Candidate, threads: usize) -> f64 {
    let on_one_thread = || {
        let mut hash = (candidate.hasher)(MEMORY_KIB, ITERATIONS);
        hash(b"warm", &[0; 16]);
        let (start, mut count) = (Instant::now(), 0);
        while start.elapsed() < TURN {
            hash(b"a quiet river at noon", &[7; 16]);
            count += 1;
        }
        f64::from(count) / start.elapsed().as_secs_f64()
    };
    thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(on_one_thread)).collect();
        all.into_iter().map(|one| one.join().expect("no panic")).sum()
    })
}

/// Prints how long a request takes while nothing is hashed, and while all cores hash: at normal priority, and at that
/// of the service's hashing threads.
fn latency(cores: usize) {
    let mut idle = 0.0;
    for (name, niceness) in
        [("idle", None), ("hashing at nice 0", Some(0)), ("hashing at nice 10: gatepass", Some(10))]
    {
        let is_over = AtomicBool::new(false);
        let (mut times, hashes) = thread::scope(|scope| {
            let hashing: Vec<_> = niceness
                .into_iter()
                .flat_map(|niceness| (0..cores).map(move |_| niceness))
                .map(|niceness| {
                    let is_over = &is_over;
                    scope.spawn(move || {
                        rustix::process::setpriority_process(None, niceness).expect("may be nice");
                        let mut hash = gatepass(MEMORY_KIB, ITERATIONS);
                        let mut count = 0;
                        while !is_over.load(Ordering::Relaxed) {
                            hash(b"a quiet river at noon", &[7; 16]);
                            count += 1;
                        }
                        count
                    })
                })
                .collect();
            let start = Instant::now();
            let times = requests();
            is_over.store(true, Ordering::Relaxed);
            let took = start.elapsed().as_secs_f64();
            let hashes: u32 = hashing.into_iter().map(|one| one.join().expect("no panic")).sum();
            (times, f64::from(hashes) / took)
        });
        let (median, worst) = (percentile(&mut times, 50), percentile(&mut times, 99));
        if niceness.is_none() {
            idle = worst;
        }
        println!("{name:<46}{median:>8.0}{worst:>11.0}{:>8.1}{hashes:>9.1}", worst / idle);
    }
}

/// The microseconds that requests take, one after the other, between a client and a server that does some work.
fn requests() -> Vec<f64> {
    const BYTES: usize = 1024;
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    thread::scope(|scope| {
        scope.spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut bytes = [0; BYTES];
            while stream.read_exact(&mut bytes).is_ok() {
                work();
                stream.write_all(&bytes).expect("the client listens");
            }
        });
        let mut stream = TcpStream::connect(address).expect("a server");
        stream.set_nodelay(true).expect("a socket");
        let mut bytes = [0; BYTES];
        (0..2000)
            .map(|_| {
                thread::sleep(Duration::from_millis(2));
                let start = Instant::now();
                stream.write_all(&bytes).expect("the server listens");
                stream.read_exact(&mut bytes).expect("the server answers");
                start.elapsed().as_secs_f64() * 1e6
            })
            .collect()
    })
}

/// Uses a core for about as long as a bearer check does.
fn work() {
    let start = Instant::now();
    while start.elapsed() < Duration::from_micros(30) {
        std::hint::spin_loop();
    }
}

fn percentile(values: &mut [f64], percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() - 1) * percent / 100]
}
