//! Where the log goes: to the standard error output, as text for people or as JSON for machines.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use crate::{
    config::Log,
    error::{Error, Result},
};

/// What may say otherwise than the default level, in the words of tracing's filters: `debug`, `kvasar::cache=trace`.
const VARIABLE: &str = "KVASAR_LOG";

/// Starts the log, once for the process. `level` is what is shown unless the environment says otherwise.
pub fn start(form: Log, level: LevelFilter) -> Result<()> {
    let filter =
        EnvFilter::builder().with_default_directive(level.into()).with_env_var(VARIABLE).try_from_env().or_else(
            |error| match std::env::var_os(VARIABLE) {
                None => Ok(EnvFilter::default().add_directive(level.into())),
                Some(text) => {
                    let what = format!("reading the filter '{}' in {VARIABLE}", text.display());
                    Err(Error::bad_request(what).with_source(error))
                }
            },
        )?;
    let output = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match form {
        Log::Text => output.with_ansi(std::io::stderr().is_terminal()).with_target(false).try_init(),
        Log::Json => output.json().flatten_event(true).try_init(),
    };
    started.map_err(|e| Error::internal("starting the log").with_source(e))
}
