//! `kvasar store`: a look at the store that a configuration names, and what has to be done before it can be used.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{log, show};
use crate::{
    clock::RealClock,
    config::{self, Config},
    error::{Error, Result},
    roles::stores,
    store::cassandra::{self, CassandraSettings, Report},
};

/// Look at the store that several origins share, and prepare it
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  kvasar store check --config origin.toml      what is there, and what is wrong with it
  kvasar store migrate --config origin.toml    make what is missing; an origin does so at its start, too";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say which nodes can be reached, what is there and what is wrong with it. Changes nothing, and ends with 1 if something is wrong
    Check(Named),
    /// Make the keyspace and the tables that are missing, and bring them to the version of this program
    Migrate(Named),
}

#[derive(Debug, Args)]
pub struct Named {
    /// The file that names the store, in [origin.cassandra]
    #[arg(long, value_name = "FILE.toml")]
    pub config: PathBuf,
}

pub async fn run(arguments: Arguments) -> Result<()> {
    log::start(config::Log::Text, "error,kvasar=info")?;
    match arguments.command {
        Command::Check(named) => present(&cassandra::check(settings(&named)?, RealClock::shared()).await?),
        Command::Migrate(named) => present(&cassandra::migrate(settings(&named)?, RealClock::shared()).await?),
    }
}

fn settings(named: &Named) -> Result<CassandraSettings> {
    let config = Config::load(&named.config)?;
    let store = config.origin.as_ref().and_then(|origin| origin.cassandra.as_ref());
    store.map(stores::cassandra).ok_or_else(|| {
        let file = named.config.display();
        Error::bad_request(format!("{file} names no store that origins share: there is no [origin.cassandra] in it"))
    })
}

fn present(report: &Report) -> Result<()> {
    show(&report.to_string())?;
    match report.problems.len() {
        0 => Ok(()),
        1 => Err(Error::unavailable("the store has 1 problem")),
        count => Err(Error::unavailable(format!("the store has {count} problems"))),
    }
}
