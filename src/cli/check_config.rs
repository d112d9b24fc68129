//! `kvasar check-config`: everything that is wrong with a configuration, at once.

use std::path::PathBuf;

use clap::Args;

use crate::{config::Config, error::Result};

/// Say everything that is wrong with a configuration, with line and what to write instead
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kvasar check-config examples/config/edge.toml")]
pub struct Arguments {
    #[arg(value_name = "FILE.toml")]
    pub file: PathBuf,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let config = Config::load(&arguments.file)?;
    super::show(&config.summary())
}
