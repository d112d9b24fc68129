//! What both kinds of server do as processes: say that they are ready, and stop when told to.

use std::{io::Write, net::SocketAddr, path::Path};

use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    error::{Error, Result},
    roles::Running,
};

/// The signals that end a server; taken from the moment this is made.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(crate) fn take() -> Result<Signals> {
        let failed = |e| Error::internal("taking signals").with_source(e);
        Ok(Signals {
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
        })
    }

    /// Returns at SIGTERM or ctrl-C.
    pub(crate) async fn told_to_stop(&mut self) {
        let name = tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "ctrl-C",
        };
        tracing::info!(signal = name, "stopping: what is under way is finished, nothing new is accepted");
    }

    /// Stops the server; whoever asks a second time does not want to wait.
    pub(crate) async fn stop(mut self, running: Running) -> Result<()> {
        tokio::select! {
            () = running.stop() => Ok(()),
            () = self.told_to_stop() => Err(Error::unavailable("told to stop twice: what was under way is broken off")),
        }
    }
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
