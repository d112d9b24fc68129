//! The commands: what a person types, and what the terminal shows for it.
//!
//! Each command is a file with its arguments and a `run`. They wire and print; what a server does is `roles.rs`, what it is told to do
//! `config.rs`.

pub mod allocator;
pub mod check_config;
pub mod client;
pub mod dev;
pub mod log;
pub mod namespace;
mod process;
pub mod serve;
pub mod store;
pub mod token;
mod worker;
pub mod workerd;

use std::io::{ErrorKind, Write};

use clap::{Parser, Subcommand};

use crate::error::{Error, Result};

#[derive(Debug, Parser)]
#[command(
    name = "kvasar",
    version,
    about = "A global, low-latency, eventually consistent key-value store: an open, self-hosted Workers KV",
    after_help = EXAMPLES,
    max_term_width = 120
)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  kvasar dev                                        a whole world in one process, to build Workers against
  kvasar dev --worker worker.js                     the same, with a Worker running at each location
  kvasar check-config origin.toml                   everything that is wrong with a configuration, at once
  kvasar serve --config origin.toml                 the roles that the file names
  kvasar store check --config origin.toml           the database that several origins share
  kvasar namespace create sessions                  through the REST API of a running server
  kvasar token create reader --rights read          a credential for a Worker that only reads";

#[derive(Debug, Subcommand)]
pub enum Command {
    Dev(dev::Arguments),
    Serve(serve::Arguments),
    CheckConfig(check_config::Arguments),
    WorkerdConfig(workerd::Arguments),
    Store(store::Arguments),
    Namespace(namespace::Arguments),
    Token(token::Arguments),
}

impl Command {
    /// Whether it runs for long and holds much.
    pub fn is_server(&self) -> bool {
        matches!(self, Command::Dev(_) | Command::Serve(_))
    }

    pub async fn run(self) -> Result<()> {
        match self {
            Command::Dev(arguments) => dev::run(arguments).await,
            Command::Serve(arguments) => serve::run(arguments).await,
            Command::CheckConfig(arguments) => check_config::run(&arguments),
            Command::WorkerdConfig(arguments) => workerd::run(&arguments),
            Command::Store(arguments) => store::run(arguments).await,
            Command::Namespace(arguments) => namespace::run(arguments).await,
            Command::Token(arguments) => token::run(arguments).await,
        }
    }
}

/// Writes a command's result to the standard output. A reader that has gone away (`| head`) has had what it wanted.
pub(crate) fn show(text: &str) -> Result<()> {
    let mut output = std::io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            Err(Error::internal("writing to the standard output").with_source(e))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }
}
