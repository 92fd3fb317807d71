//! Cargo sees when a file changes that `sqlx::migrate!` embeds, but not when one is added.
fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
