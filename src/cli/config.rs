//! `gatepass config`: the settings in force, and where each comes from.

use std::path::PathBuf;

use super::{Failure, print, print_json, say, setup};
use crate::config;

/// Show the settings in force and where each comes from.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print as JSON
    #[arg(long)]
    json: bool,
    /// Print app.env.example instead: every setting, with a line about it
    #[arg(long, conflicts_with = "json")]
    example: bool,
}

pub(super) async fn run(config_file: Option<PathBuf>, args: &Args) -> Result<(), Failure> {
    if args.example {
        return print(&config::app_env_example());
    }
    let loaded = setup::load(config_file).await?;
    for warning in &loaded.warnings {
        say(&format!("warning: {warning}"));
    }
    if args.json {
        return print_json(&loaded.report);
    }
    let lines: String = loaded.report.iter().map(|line| format!("{line}\n")).collect();
    print(&lines)
}
