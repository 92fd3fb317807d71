//! Everything that is tested from the outside, against a real Postgres: the real router, and the real binary where the
//! binary is what counts. One file for each capability; each opens with what it proves.
//!
//! `make test` runs them; by hand: `scripts/with-postgres cargo test --test gatepass`.

#![allow(missing_docs, unreachable_pub, reason = "nobody else sees them")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_macros, reason = "a test may panic where nobody listens")]
#![allow(clippy::disallowed_methods, reason = "tests look into the database with queries of their own")]

mod account_export;
mod admin;
mod app;
#[cfg(feature = "aws")]
mod aws;
mod backup;
mod bad_input;
mod binary;
mod certificate;
mod clean_up;
mod clients;
mod command_line;
mod connections;
mod deploy;
mod devdata;
mod doctor;
mod embedded_default;
mod export;
mod external_id;
mod failover;
mod foreign_hashes;
mod forge;
mod forgeries;
mod forward_auth;
mod fuzzing;
mod history;
mod import;
mod isolation;
mod key_commands;
mod keys;
mod kill;
mod legacy_login;
mod login;
mod logs;
mod manners;
mod migrations;
mod monitoring;
mod nginx;
mod not_tested;
mod open_files;
mod other_libraries;
mod passwords;
mod plans;
mod pooler;
mod postgres;
mod process;
mod published_revocations;
mod readme;
mod released;
#[cfg(feature = "remote")]
mod remote_keys;
#[cfg(feature = "remote")]
mod remote_revocations;
mod renewal;
mod revocations;
mod roles;
mod rolling_update;
mod rotation_drill;
mod round_trips;
mod session_model;
mod session_races;
mod soak;
mod storm;
mod throttle;
mod timing;
mod tls;
mod token_properties;
mod traces;
mod users;
