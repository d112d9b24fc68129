//! `kvasar serve`: the roles that a configuration file names, in one process.

use std::path::PathBuf;

use clap::Args;

use crate::error::{Error, Result};

/// Run the roles that a configuration file names: origin, central, regional and edge tiers, REST
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// The configuration; `kvasar check-config FILE` says what is wrong with it
    #[arg(long, value_name = "FILE.toml")]
    pub config: PathBuf,
    /// Write one JSON object with the addresses to this file once everything listens
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  kvasar serve --config examples/config/all-in-one.toml
  kvasar serve --config edge.toml --ready-file /run/kvasar/ready.json";

pub async fn run(_arguments: Arguments) -> Result<()> {
    Err(Error::internal("'serve' is not wired yet"))
}
