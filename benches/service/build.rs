//! How long the binary takes to build, and how large it is.

use std::{env, fs, process::Command, time::Instant};

use crate::{bench::Bench, process::binary};

pub(crate) fn size(bench: &mut Bench) {
    let bytes = fs::metadata(binary()).expect("it was built").len();
    bench.note("size of the binary, all features, MiB", bytes as f64 / f64::from(1 << 20));
}

/// Builds everything in a directory of its own, which takes some minutes. All downloads are there already.
pub(crate) fn time(bench: &mut Bench) {
    bench.doing("building from nothing");
    let target = env::temp_dir().join(format!("gatepass-bench-build-{}", std::process::id()));
    let start = Instant::now();
    let built = Command::new("cargo")
        .args(["build", "--release", "--locked", "--all-features", "--quiet", "--target-dir"])
        .arg(&target)
        .args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml")])
        .status()
        .expect("cargo is there");
    let took = start.elapsed();
    let _ = fs::remove_dir_all(target);
    assert!(built.success(), "the build fails");
    bench.note("release build from nothing, s", took.as_secs_f64());
}
