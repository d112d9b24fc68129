//! `kvasar serve`: the roles that a configuration file names, in one process.

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;
use serde::Serialize;

use crate::{
    cli::{
        log,
        process::{self, Signals},
    },
    clock::RealClock,
    config::Config,
    error::Result,
    kv::AccountId,
    roles::{self, Links, Running},
};

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
  kvasar serve --config edge.toml --ready-file /run/kvasar/ready.json
  KVASAR_LOG=info,kvasar::access=info kvasar serve --config edge.toml    also logs each request";

pub async fn run(arguments: Arguments) -> Result<()> {
    let config = Config::load(&arguments.config)?;
    log::start(config.server.log, "info,scylla=warn,kvasar::access=off")?;
    tracing::info!(location = config.server.location, "starting\n{config:#?}");
    let mut signals = Signals::take()?;
    let running = roles::start(&config, Links::Direct, RealClock::shared()).await?;
    for account in running.accounts.iter().filter(|account| account.new) {
        super::show(&format!(
            "account {} is made: its id is {}, its token {}\n",
            account.name, account.account_id, account.token
        ))?;
    }
    if let Some(file) = &arguments.ready_file {
        process::write_ready_file(file, &Ready::of(&running))?;
    }
    tracing::info!("ready");
    signals.told_to_stop().await;
    signals.stop(running).await
}

/// What the ready file says.
#[derive(Serialize)]
struct Ready<'a> {
    pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    rest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    admin: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<ReadyOrigin>,
    tiers: Vec<ReadyTier<'a>>,
    accounts: Vec<ReadyAccount<'a>>,
}

#[derive(Serialize)]
struct ReadyOrigin {
    listen: SocketAddr,
}

#[derive(Serialize)]
struct ReadyTier<'a> {
    name: &'a str,
    role: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    listen: Option<SocketAddr>,
}

#[derive(Serialize)]
struct ReadyAccount<'a> {
    name: &'a str,
    account_id: AccountId,
    token: &'a str,
}

impl<'a> Ready<'a> {
    fn of(running: &'a Running) -> Ready<'a> {
        let tiers = running.tiers.iter().map(|tier| ReadyTier {
            name: &tier.name,
            role: tier.role.name(),
            listen: tier.listen,
        });
        let accounts = running.accounts.iter().map(|account| ReadyAccount {
            name: &account.name,
            account_id: account.account_id,
            token: &account.token,
        });
        Ready {
            pid: std::process::id(),
            rest: running.rest.map(process::rest_url),
            admin: running.admin.map(|admin| format!("http://{admin}")),
            origin: running.origin_listen.map(|listen| ReadyOrigin { listen }),
            tiers: tiers.collect(),
            accounts: accounts.collect(),
        }
    }
}
