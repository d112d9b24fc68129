//! What both kinds of server do as processes: say that they are ready, and stop when told to.

use std::{io::Write, net::SocketAddr, path::Path};

use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use crate::error::{Error, Result};

/// Returns at SIGTERM or ctrl-C.
pub(crate) async fn until_told_to_stop() -> Result<()> {
    let failed = |e| Error::internal("waiting for signals").with_source(e);
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let name = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "ctrl-C",
    };
    tracing::info!(signal = name, "stopping: what is under way is finished, nothing new is accepted");
    Ok(())
}

/// Writes the file whole or not at all, for its owner alone: it holds credentials.
pub(crate) fn write_ready_file(file: &Path, ready: &impl Serialize) -> Result<()> {
    let failed = |e: Box<dyn std::error::Error + Send + Sync>| {
        Error::bad_request(format!("writing the ready file {}", file.display())).with_source(e)
    };
    let folder = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut temporary = tempfile::NamedTempFile::new_in(folder).map_err(|e| failed(e.into()))?;
    serde_json::to_writer(&mut temporary, ready).map_err(|e| failed(e.into()))?;
    temporary.write_all(b"\n").map_err(|e| failed(e.into()))?;
    temporary.persist(file).map_err(|e| failed(e.into()))?;
    Ok(())
}

pub(crate) fn rest_url(address: SocketAddr) -> String {
    format!("http://{address}/client/v4")
}
