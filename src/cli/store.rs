//! `kvasar store`: a look at the store that a configuration names, what has to be done before it can be used, and moving to another one.

mod copy;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::{log, show};
use crate::{
    clock::RealClock,
    config::{self, Config},
    error::{Error, Result},
    roles::stores,
    store::cassandra::{self, CassandraSettings, Report},
};

/// Look at the store that several origins share, prepare it, and copy stores
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  kvasar store check --config origin.toml      what is there, and what is wrong with it
  kvasar store migrate --config origin.toml    make what is missing; an origin does so at its start, too
  kvasar store copy --from disk:/var/lib/kvasar --to cassandra:origin.toml
                                               all that a stopped origin holds, into the database that origin.toml names
  kvasar store export-hash disk:/var/lib/kvasar
                                               a hash over all that users see, which a copy has in common with what it was made of";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say which nodes can be reached, what is there and what is wrong with it. Changes nothing, and ends with 1 if something is wrong
    Check(Named),
    /// Make the keyspace and the tables that are missing, and bring them to the version of this program
    Migrate(Named),
    Copy(copy::Arguments),
    ExportHash(copy::HashArguments),
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
        Command::Copy(arguments) => copy::run(arguments).await,
        Command::ExportHash(arguments) => copy::hash(arguments).await,
    }
}

fn settings(named: &Named) -> Result<CassandraSettings> {
    let config = Config::load(&named.config)?;
    settings_in(&config, &named.config)
}

fn settings_in(config: &Config, file: &Path) -> Result<CassandraSettings> {
    let store = config.origin.as_ref().and_then(|origin| origin.cassandra.as_ref());
    store.map(stores::cassandra).ok_or_else(|| {
        let file = file.display();
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
