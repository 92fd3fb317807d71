//! Argon2 as people commonly use its crate, and as the service computes it.

use argon2::{Algorithm, Argon2, Block, Error, Params, Version};

// The service's own.
#[path = "../src/password/compute/mod.rs"]
mod compute;
#[expect(dead_code, reason = "only what computes is measured")]
#[path = "../src/password/memory.rs"]
mod memory;

/// The service's default parameters.
pub(crate) const MEMORY_KIB: u32 = 19456;
pub(crate) const ITERATIONS: u32 = 2;

pub(crate) type Hash = [u8; 32];
/// Takes the password, the salt, and memory to compute in.
pub(crate) type Compute = fn(&Argon2<'_>, &[u8], &[u8], &mut Hash, &mut [Block]) -> Result<(), Error>;
pub(crate) type Hasher = Box<dyn FnMut(&[u8], &[u8; 16]) -> Hash>;

pub(crate) fn argon2(memory_kib: u32, iterations: u32) -> Argon2<'static> {
    let params = Params::new(memory_kib, iterations, 1, None).expect("parameters within bounds");
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

/// What the crate's `hash_password` does: fresh memory for each hash.
pub(crate) fn plain(memory_kib: u32, iterations: u32) -> Hasher {
    let argon2 = argon2(memory_kib, iterations);
    Box::new(move |password, salt| {
        let mut hash = Hash::default();
        argon2.hash_password_into(password, salt, &mut hash).expect("inputs within bounds");
        hash
    })
}

/// What the service does.
pub(crate) fn gatepass(memory_kib: u32, iterations: u32) -> Hasher {
    in_own_memory(memory_kib, iterations, |argon2, password, salt, hash, blocks| {
        let (algorithm, version, params) = (Algorithm::Argon2id, Version::V0x13, argon2.params().clone());
        compute::Inputs { algorithm, version, params, secret: &[], password, salt }.hash_into(hash, blocks)
    })
}

/// Computes in memory of the service's kind.
pub(crate) fn in_own_memory(memory_kib: u32, iterations: u32, compute: Compute) -> Hasher {
    let argon2 = argon2(memory_kib, iterations);
    let count = argon2.params().block_count();
    let mut memory = memory::Memory::of_blocks(count).expect("enough memory");
    Box::new(move |password, salt| {
        let mut hash = Hash::default();
        memory
            .with(count, |blocks| compute(&argon2, password, salt, &mut hash, blocks))
            .expect("enough memory")
            .expect("inputs within bounds");
        hash
    })
}
