//! What cargo does not see by itself, and how the binary is linked.

use std::{env, fs};

fn main() {
    // Cargo sees when a file changes that `sqlx::migrate!` embeds, but not when one is added.
    println!("cargo::rerun-if-changed=migrations");
    pack_relocations();
}

/// Most of what the dynamic linker reads at the start are relocations that differ by little more than their place. Packed
/// (`DT_RELR`) they take a twentieth, of the file and of the memory of each process. The C library must know the format,
/// as glibc does from 2.36 on; what is built here may run with this one.
fn pack_relocations() {
    let here = env::var("TARGET") == env::var("HOST");
    if here && env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|env| env == "gnu") && libc_unpacks() {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// Whether the C library of this very process says that it does, with the version that a program then asks for.
fn libc_unpacks() -> bool {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let libc = maps
        .lines()
        .find_map(|line| line.find('/').map(|at| &line[at..]).filter(|path| path.ends_with("/libc.so.6")));
    let libc = libc.and_then(|path| fs::read(path).ok()).unwrap_or_default();
    let version = b"GLIBC_ABI_DT_RELR";
    libc.windows(version.len()).any(|window| window == version)
}
