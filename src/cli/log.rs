//! Where the log goes: to the standard error output, as text for people or as JSON for machines.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::{
    config::Log,
    error::{Error, Result},
};

/// What may say otherwise than the default level, in the words of tracing's filters: `debug`, `kvasar::cache=trace`.
const VARIABLE: &str = "KVASAR_LOG";

/// Starts the log, once for the process. `default` is the filter unless the environment says otherwise.
pub fn start(form: Log, default: &str) -> Result<()> {
    let filter = match std::env::var(VARIABLE) {
        Ok(text) => EnvFilter::try_new(&text)
            .map_err(|e| Error::bad_request(format!("reading the filter '{text}' in {VARIABLE}")).with_source(e))?,
        Err(std::env::VarError::NotPresent) => EnvFilter::new(default),
        Err(error) => return Err(Error::bad_request(format!("reading {VARIABLE}")).with_source(error)),
    };
    let output = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match form {
        Log::Text => output.with_ansi(std::io::stderr().is_terminal()).with_target(false).try_init(),
        Log::Json => output.json().flatten_event(true).try_init(),
    };
    started.map_err(|e| Error::internal("starting the log").with_source(e))
}
