//! Workers that `kvasar dev --worker` runs: one workerd process for each location, ended with the world.

use std::{net::SocketAddr, path::Path, process::Stdio, time::Duration};

use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

use crate::{
    cli::workerd::{self, Binding, Setup},
    clock::{self, RealClock},
    error::{Error, Result},
};

/// A Worker at a location.
pub(crate) struct Worker {
    pub(crate) location: String,
    pub(crate) address: SocketAddr,
    child: Child,
    /// The configuration's file, which holds a token.
    _config: tempfile::NamedTempFile,
}

/// How long workerd may take to listen.
const START_DEADLINE: Duration = Duration::from_secs(20);

impl Worker {
    pub(crate) async fn start(
        worker: &Path,
        location: &str,
        location_address: &str,
        token: &str,
        binding: &Binding,
    ) -> Result<Worker> {
        let failed = |what: &str, e: std::io::Error| {
            Error::internal(format!("{what} for the Worker {} at {location}", worker.display())).with_source(e)
        };
        let config = tempfile::Builder::new()
            .suffix(".capnp")
            .tempfile()
            .map_err(|e| failed("writing a workerd configuration", e))?;
        let file = workerd::path_from(&std::env::temp_dir(), worker)?;
        let text = workerd::config(&Setup {
            location: location_address,
            token,
            bindings: std::slice::from_ref(binding),
            worker: Some(&file),
            listen: "127.0.0.1:0",
            compatibility_date: workerd::COMPATIBILITY_DATE,
        });
        std::fs::write(config.path(), text).map_err(|e| failed("writing a workerd configuration", e))?;
        let mut child = Command::new(workerd::find_workerd()?)
            .arg("serve")
            .arg(config.path())
            // It then says on its standard output which port it was given.
            .arg("--control-fd=1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| failed("starting workerd", e))?;
        let stdout = child.stdout.take().ok_or_else(|| Error::internal("workerd was started without an output"))?;
        let mut lines = BufReader::new(stdout).lines();
        let clock = RealClock::shared();
        let port = clock::within(&*clock, START_DEADLINE, listening(&mut lines)).await;
        let port = port.ok().flatten().ok_or_else(|| {
            Error::bad_request(format!(
                "workerd did not start the Worker {} at {location}; it says why above",
                worker.display()
            ))
        })?;
        tokio::spawn(pass_on(lines));
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        Ok(Worker { location: location.to_owned(), address, child, _config: config })
    }
}

/// Waits until a Worker ends by itself, which is an error; for ever when there is none.
pub(crate) async fn any_ended(workers: &mut [Worker]) -> Result<()> {
    if workers.is_empty() {
        return std::future::pending().await;
    }
    let ends = workers.iter_mut().map(|worker| {
        let location = worker.location.clone();
        Box::pin(async move { (location, worker.child.wait().await) })
    });
    let ((location, status), _, _) = futures_util::future::select_all(ends).await;
    let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
    Err(Error::internal(format!("the Worker at {location} ended: {status}")))
}

/// Ends the Workers and waits for their ends.
pub(crate) async fn stop(workers: Vec<Worker>) {
    for mut worker in workers {
        if let Err(error) = worker.child.kill().await {
            tracing::warn!(location = worker.location, %error, "a Worker could not be ended");
        }
    }
}

/// The port that workerd says it listens on.
async fn listening(lines: &mut Lines<BufReader<ChildStdout>>) -> Option<u16> {
    #[derive(Deserialize)]
    struct Listen {
        event: String,
        port: u16,
    }
    while let Ok(Some(line)) = lines.next_line().await {
        match serde_json::from_str::<Listen>(&line) {
            Ok(listen) if listen.event == "listen" => return Some(listen.port),
            _ => eprintln!("{line}"),
        }
    }
    None
}

/// What a Worker prints is its author's to read.
async fn pass_on(mut lines: Lines<BufReader<ChildStdout>>) {
    while let Ok(Some(line)) = lines.next_line().await {
        eprintln!("{line}");
    }
}
