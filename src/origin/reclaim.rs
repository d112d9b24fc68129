//! Removes in the background what no entry names any more: overwritten and deleted values, abandoned uploads, and the entries of removed
//! namespaces.
//!
//! All of it is written down in `Reclaim` by the commit that made it garbage, and crossed out with its removal. So it goes on after a restart
//! where it was, in steps of bounded size, and a step done twice does no harm.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    commit::{Action, Change, Committer, Effect},
    values::Values,
};
use crate::{
    error::{Error, Result},
    kv::NamespaceId,
    store::{
        Store, Table,
        keys::{self, Reclaim},
    },
};

/// Rows that are looked at in one step.
const STEP_ROWS: usize = 256;

pub(super) struct Reclaimer {
    pub(super) store: Arc<dyn Store>,
    pub(super) values: Arc<Values>,
    pub(super) committer: Arc<Committer>,
}

impl Reclaimer {
    /// Runs until it is dropped, or the origin turns read-only: once at the start, then whenever something has become garbage.
    pub(super) async fn run(self) {
        while !self.committer.is_read_only() {
            match self.pass().await {
                Ok(0) => {}
                Ok(reclaimed) => tracing::debug!(reclaimed, "reclaimed what nobody names any more"),
                // What is left is found again at the next pass.
                Err(error) => tracing::warn!(%error, "reclaiming stopped, and goes on when there is more to reclaim"),
            }
            self.values.reclaimer_woken().await;
        }
    }

    /// Goes once through everything that is to be reclaimed. Returns how much of it was.
    pub(super) async fn pass(&self) -> Result<u64> {
        let mut reclaimed = 0;
        let mut from = Bytes::new();
        loop {
            let rows = self.store.scan(Table::Reclaim, &from, &[], STEP_ROWS).await?;
            for (row, value) in &rows {
                reclaimed += u64::from(self.reclaim(row, value).await?);
            }
            match rows.last() {
                Some((last, _)) if rows.len() == STEP_ROWS => from = [last, &b"\0"[..]].concat().into(),
                _ => return Ok(reclaimed),
            }
        }
    }

    async fn reclaim(&self, row: &Bytes, value: &Bytes) -> Result<bool> {
        match Reclaim::parse(row)? {
            Reclaim::Value(id) => self.values.reclaim_value(id, keys::decode_chunks(row, value)?).await,
            Reclaim::Upload(id) => self.values.reclaim_upload(id, keys::decode_chunks(row, value)?).await,
            Reclaim::Namespace(namespace) => self.reclaim_namespace(namespace).await.map(|()| true),
        }
    }

    /// Removes the entries of a namespace, which the committer lets no new ones into.
    async fn reclaim_namespace(&self, namespace: NamespaceId) -> Result<()> {
        let (from, to) = (keys::entry(namespace, b""), keys::after_prefix(&namespace.to_bytes()));
        let mut entries = 0;
        loop {
            let rows = self.store.scan(Table::Entry, &from, &to, STEP_ROWS).await?;
            if rows.is_empty() {
                self.committer.commit(Vec::new(), Some(Effect::Reclaimed(namespace))).await?;
                tracing::info!(%namespace, entries, "reclaimed a removed namespace");
                return Ok(());
            }
            entries += rows.len();
            let removals = rows
                .iter()
                .map(|(row, _)| {
                    let (namespace, key) = keys::parse_entry(row)?;
                    Ok(Change { namespace, key, action: Action::Reclaim })
                })
                .collect::<Result<Vec<_>>>()?;
            for outcome in self.committer.commit(removals, None).await? {
                outcome.map_err(|e| {
                    Error::internal(format!("removing an entry of the removed namespace {namespace}")).with_source(e)
                })?;
            }
        }
    }
}
