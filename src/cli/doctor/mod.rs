//! `gatepass doctor`: what is wrong, and what to do about it.
//!
//! A check looks at one thing and adds what it finds; it never stops the others, and it changes nothing. To add a
//! check, write a function that returns [`Finding`]s, and call it from [`examine`] or, if it needs the database, in the
//! module `database`.

mod database;
mod hashes;
mod ring;
mod settings;

use std::{io, path::PathBuf};

use serde::Serialize;
use serde_json::json;

use self::{
    database::database,
    settings::{
        certificate, old_system, open_files, operators, passwords, registration, rotations_under_way,
        settings,
    },
};
use super::{Failure, open_files::OpenFiles, print, print_json, seconds, setup};
use crate::{chain::chain, config::Environment, telemetry, terminal::plain};

/// What to measure password hashes against, and how to print the findings.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit code: 0 when there is no problem, whatever the notes and warnings; 1 when there is one."
)]
pub(super) struct Args {
    /// How long a password hash may take on this machine with the recommended parameters
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 50,
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    hash_time: u32,
    /// How much memory a password hash may take, in MiB; if not given, what it takes now
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(7..=1024))]
    hash_memory: Option<u32>,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    /// Good to know.
    Note,
    /// Works, but will not always.
    Warning,
    /// Does not work.
    Problem,
}

impl Level {
    /// The level of a risk: a warning in production, good to know on a developer's machine.
    fn risk(environment: Environment) -> Self {
        match environment {
            Environment::Production => Self::Warning,
            Environment::Development => Self::Note,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }

    /// Green, cyan, yellow, bold red.
    fn colour(self) -> &'static str {
        match self {
            Self::Ok => "\x1b[32m",
            Self::Note => "\x1b[36m",
            Self::Warning => "\x1b[33m",
            Self::Problem => "\x1b[1;31m",
        }
    }
}

/// What one check found.
#[derive(Debug, Serialize)]
struct Finding {
    area: &'static str,
    level: Level,
    message: String,
    /// What to do about it.
    advice: Option<String>,
}

impl Finding {
    fn new(area: &'static str, level: Level, message: impl Into<String>) -> Self {
        Self { area, level, message: message.into(), advice: None }
    }

    fn ok(area: &'static str, message: impl Into<String>) -> Self {
        Self::new(area, Level::Ok, message)
    }

    fn note(area: &'static str, message: impl Into<String>) -> Self {
        Self::new(area, Level::Note, message)
    }

    fn warning(area: &'static str, message: impl Into<String>) -> Self {
        Self::new(area, Level::Warning, message)
    }

    fn problem(area: &'static str, message: impl Into<String>) -> Self {
        Self::new(area, Level::Problem, message)
    }

    fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }
}

pub(super) async fn run(config_file: Option<PathBuf>, args: &Args) -> Result<(), Failure> {
    telemetry::init(telemetry::LogFormat::Pretty, "error", None)?;
    let findings = examine(config_file, args).await;
    let problems = findings.iter().filter(|finding| finding.level == Level::Problem).count();
    if args.json {
        print_json(&json!({ "ok": problems == 0, "findings": findings }))?;
    } else {
        let colour = telemetry::is_coloured(&io::stdout());
        print(&findings.iter().map(|finding| line(finding, colour)).collect::<String>())?;
    }
    match problems {
        0 => Ok(()),
        1 => Err("there is a problem".into()),
        many => Err(format!("there are {many} problems").into()),
    }
}

fn line(finding: &Finding, colour: bool) -> String {
    let Finding { area, level, message, advice } = finding;
    let advice = advice.as_ref().map(|advice| format!(" -> {advice}")).unwrap_or_default();
    // Both may quote others: an error of the database, the name that a session has given itself.
    let (message, advice) = (plain(message), plain(&advice));
    let (paint, unpaint) = if colour { (level.colour(), "\x1b[0m") } else { ("", "") };
    format!("{paint}{:<7}{unpaint}  {area:<8}  {message}{advice}\n", level.name())
}

async fn examine(config_file: Option<PathBuf>, args: &Args) -> Vec<Finding> {
    let (settings, mut findings) = settings(config_file).await;
    let Some(settings) = settings else { return findings };
    findings.extend(registration(&settings));
    findings.extend(passwords(&settings, args).await);
    findings.extend(certificate(&settings));
    findings.push(operators(&settings));
    findings.push(open_files(&settings));
    findings.extend(old_system(&settings).await);
    match setup::present_key_policy(&settings) {
        Ok((policy, has_root)) => {
            if !has_root {
                findings.push(match setup::check_state_dir("TOKEN_SYMMETRIC_KEY") {
                    Ok(()) => Finding::note(
                        "settings",
                        "TOKEN_SYMMETRIC_KEY is not set: `gatepass serve` makes a key, and keeps it in .gatepass",
                    ),
                    Err(error) => failed("settings", &*error),
                });
            }
            findings.extend(rotations_under_way(&settings));
            findings.extend(database(&settings, &policy).await);
        }
        Err(error) => findings.push(failed("settings", &*error)),
    }
    findings
}

/// Reports a failure, with its whole chain of causes.
fn failed(area: &'static str, error: &(dyn std::error::Error + 'static)) -> Finding {
    Finding::problem(area, chain(error).replace('\n', " "))
}
