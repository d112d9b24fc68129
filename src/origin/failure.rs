//! Whether an origin can go on: once a commit has failed for good, it takes no more.
//!
//! On an embedded store it is then read-only until a restart has read what the disk has. One of several on a shared store has lost its place among them, and starts
//! anew as another (`host.rs`).

use std::sync::OnceLock;

use tokio_util::sync::CancellationToken;

use crate::{
    error::{Error, Result},
    metrics::OriginMetrics,
};

pub(super) struct Failure {
    cause: OnceLock<String>,
    failed: CancellationToken,
    /// Whether the store is shared.
    shared: bool,
    metrics: OriginMetrics,
}

impl Failure {
    pub(super) fn new(shared: bool, metrics: OriginMetrics) -> Failure {
        Failure { cause: OnceLock::new(), failed: CancellationToken::new(), shared, metrics }
    }

    pub(super) fn check(&self) -> Result<()> {
        match self.cause.get() {
            None => Ok(()),
            Some(cause) if self.shared => {
                Err(Error::unavailable(format!("this origin starts anew, because it lost its place: {cause}")))
            }
            Some(cause) => {
                Err(Error::internal(format!("the origin is read-only, because writing to its store failed: {cause}")))
            }
        }
    }

    pub(super) fn fail(&self, error: &Error) {
        if self.cause.set(error.to_string()).is_ok() {
            self.failed.cancel();
            if self.shared {
                tracing::error!(%error, "THIS ORIGIN HAS LOST ITS PLACE among those on the store: it starts anew");
            } else {
                self.metrics.turned_read_only();
                tracing::error!(%error, "WRITING TO THE STORE FAILED: the origin is read-only from now on; repair the disk and restart");
            }
        }
    }

    pub(super) async fn failed(&self) {
        self.failed.cancelled().await;
    }
}
