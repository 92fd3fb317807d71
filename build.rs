//! Tells cargo what it does not notice by itself, and how to link the binary.

use std::{env, fs};

fn main() {
    // Cargo notices when a file that `sqlx::migrate!` embeds changes, but not when one is added.
    println!("cargo::rerun-if-changed=migrations");
    pack_relocations();
}

/// Most of what the dynamic linker reads at startup is relocations that differ in little but their place. Packed
/// (`DT_RELR`), they take a twentieth of the space, both in the file and in the memory of each process. The C library
/// must know the format, as glibc does since 2.36; a binary built for this machine may run with this machine's C
/// library.
fn pack_relocations() {
    let here = env::var("TARGET") == env::var("HOST");
    if here && env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|env| env == "gnu") && libc_unpacks() {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// Whether the C library of this process knows the format: it then has the symbol version that such a program requires.
fn libc_unpacks() -> bool {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let libc = maps
        .lines()
        .find_map(|line| line.find('/').map(|at| &line[at..]).filter(|path| path.ends_with("/libc.so.6")));
    let libc = libc.and_then(|path| fs::read(path).ok()).unwrap_or_default();
    let version = b"GLIBC_ABI_DT_RELR";
    libc.windows(version.len()).any(|window| window == version)
}
