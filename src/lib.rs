//! Token authentication for teams with a few services and a Postgres.
#![cfg_attr(
    feature = "server",
    doc = "
The modules are called rooms. These are the imports that are allowed, never upward:

- `main → cli → http → account → {token, password, store, revocation}`
- `account → legacy → password`
- `cli → devdata → {password, store, embedded}`
- `revocation → {token, store}`
- `http → {keys → {token, store}, bearer → token, password, revocation, tls}`
- `{cli, http} → telemetry`
- `aws → store`, to log in to the database, for `cli`.
- `store → password`, `metrics → token` and `config → {password, token, store, telemetry}`, only for types, so that a
  secret never travels as text and nothing is declared twice.

Every room may import `clock`, `random`, `chain`, `hex`, `loopback`, `path`, `terminal` and `metrics`.

| room | what happens there |
|---|---|
| [`token`] | what tokens say, and how they are made and checked; pure |
| [`bearer`] | the tower layer from `Authorization: Bearer` to claims, for gatepass and for other services |
| [`keys`] | the keys of this service: from the configuration and from Postgres, on every replica |
| [`revocation`] | the feed of revocations: from Postgres into memory, on every replica |
| [`password`] | the rules, the hash, and the pool that bounds what hashing may cost |
| [`store`] | the only room with SQL: one file per table, and the migrations |
| [`account`] | the use cases: register, log in, … |
| [`legacy`] | the system that users come from, asked over HTTP about users who are unknown here |
| [`devdata`] | data for developers: made up, or a masked sample of real data |
| [`http`] | the only room with axum: one file per resource |
| [`tls`] | the service's certificate: read, checked, and read again when its files change |
| [`config`] | settings from `app.env`, a secret, the environment and files, checked all at once |
| [`aws`] | the secret that holds settings, and the tokens that log in to RDS |
| [`embedded`] | an embedded Postgres, for development |
| [`cli`] | the command line: one file per subcommand |
| [`telemetry`] | logs and traces |
| [`metrics`] | what is counted, for Prometheus |
| [`clock`], [`random`] | where time and randomness come in, only at the edge |
| [`path`] | which paths may be shown in messages |
| [`chain`] | an error and its causes |
| [`hex`] | bytes in hexadecimal |
| [`loopback`] | which hosts are this machine |
| [`terminal`] | texts of others, as they may be shown on a terminal |

The path of one login: `http::users` reads the body and the caller's address → `account::login` asks the throttle
(`account::throttle`), reads the user (`store::users`), waits its turn in `password::Pool`, verifies the password,
writes the session (`store::sessions`) and has the token made (`token::Issuer`) → `http::users` shapes the answer.
"
)]
#![cfg_attr(
    all(feature = "verify", not(feature = "server")),
    doc = "
This is the crate without its server, for services that check access tokens: [`bearer`] is the tower layer from
`Authorization: Bearer` to claims, [`token`] does the checking behind it, and [`clock`] provides the time.
"
)]
//!
//! Cargo features:
//!
//! - `server` (default): the service.
//! - `verify`: only `token` and `bearer`, for services that check gatepass's tokens.
//! - `remote`: `verify`, and a client that follows the keys and the revocations of a running gatepass.
//! - `aws`: `server`, with settings and database logins from AWS.

#[cfg(feature = "server")]
pub mod account;
#[cfg(feature = "aws")]
pub mod aws;
#[cfg(all(feature = "server", not(feature = "aws")))]
#[path = "aws/absent.rs"]
pub mod aws;
#[cfg(feature = "verify")]
pub mod bearer;
#[cfg(any(feature = "server", feature = "remote"))]
mod chain;
#[cfg(feature = "server")]
pub mod cli;
#[cfg(feature = "verify")]
pub mod clock;
#[cfg(feature = "server")]
pub mod config;
#[cfg(feature = "server")]
pub mod devdata;
#[cfg(feature = "server")]
pub mod embedded;
#[cfg(feature = "server")]
mod hex;
#[cfg(feature = "server")]
pub mod http;
#[cfg(feature = "server")]
pub mod keys;
#[cfg(feature = "server")]
pub mod legacy;
#[cfg(any(feature = "server", feature = "remote"))]
mod loopback;
#[cfg(feature = "server")]
pub mod metrics;
// Not in one condition, in which clippy does not recognise tests.
#[cfg(feature = "server")]
#[cfg(test)]
#[path = "../tests/not_tested.rs"]
#[expect(dead_code, unreachable_pub, reason = "the tests of all that is outside use the rest")]
mod not_tested;
#[cfg(feature = "server")]
pub mod password;
#[cfg(feature = "server")]
mod path;
#[cfg(feature = "server")]
pub mod random;
#[cfg(feature = "server")]
pub mod revocation;
#[cfg(feature = "server")]
pub mod store;
#[cfg(feature = "server")]
pub mod telemetry;
#[cfg(feature = "server")]
mod terminal;
#[cfg(feature = "server")]
pub mod tls;
#[cfg(feature = "verify")]
pub mod token;
