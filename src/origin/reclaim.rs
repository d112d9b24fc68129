//! Removes in the background what no entry names any more: overwritten and deleted values, abandoned uploads, and the entries of removed
//! namespaces.
//!
//! All of it is written down in `Reclaim` by the commit that made it garbage, and crossed out with its removal. So it goes on after a restart
//! where it was, in steps of bounded size, and a step done twice does no harm.
//!
//! A store on disk keeps traces of removed rows for a while, and steps over them at each scan. So a scan goes on behind what was removed, and passes
//! are spaced.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use super::{
    commit::{Action, Change, Committer, Effect},
    garbled::Garbled,
    values::Values,
};
use crate::{
    clock::Clock,
    error::{Error, Result},
    kv::NamespaceId,
    store::{
        Store, Table,
        keys::{self, Reclaim},
    },
};

/// Rows that are looked at in one step.
const STEP_ROWS: usize = 256;
/// How long after a pass the next one may begin. Whatever becomes garbage meanwhile wakes it once.
const PASS_INTERVAL: Duration = Duration::from_millis(250);

pub(super) struct Reclaimer {
    pub(super) store: Arc<dyn Store>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) values: Arc<Values>,
    pub(super) committer: Arc<Committer>,
    pub(super) garbled: Garbled,
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
            self.clock.sleep(PASS_INTERVAL).await;
            self.values.reclaimer_woken().await;
        }
    }

    /// Goes once through everything that is to be reclaimed. Returns how much of it was.
    pub(super) async fn pass(&self) -> Result<u64> {
        let mut reclaimed = 0;
        let mut from = Bytes::new();
        loop {
            let rows = self.store.scan(Table::Reclaim, &from, &[], STEP_ROWS).await?;
            for (row, value) in rows.iter().filter(|(row, _)| !self.garbled.holds(row)) {
                reclaimed += u64::from(self.reclaim(row, value).await?);
            }
            match rows.last() {
                Some((last, _)) if rows.len() == STEP_ROWS => from = keys::after(last),
                _ => return Ok(reclaimed),
            }
        }
    }

    async fn reclaim(&self, row: &Bytes, value: &Bytes) -> Result<bool> {
        let parsed = Reclaim::parse(row).and_then(|garbage| match garbage {
            Reclaim::Namespace(_) => Ok((garbage, 0)),
            Reclaim::Value(_) | Reclaim::Upload(_) => Ok((garbage, keys::decode_chunks(row, value)?)),
        });
        match parsed {
            Ok((Reclaim::Value(id), chunks)) => self.values.reclaim_value(id, chunks).await,
            Ok((Reclaim::Upload(id), chunks)) => self.values.reclaim_upload(id, chunks).await,
            Ok((Reclaim::Namespace(namespace), _)) => self.reclaim_namespace(row, namespace).await,
            Err(error) => {
                self.garbled.pass_over(row, &error);
                Ok(false)
            }
        }
    }

    /// Removes the entries of a namespace, which the committer lets no new ones into. Returns whether it could remove them all.
    async fn reclaim_namespace(&self, row: &Bytes, namespace: NamespaceId) -> Result<bool> {
        let (start, end) = (keys::entry(namespace, b""), keys::after_prefix(&namespace.to_bytes()));
        let mut from = start.clone();
        let (mut entries, mut garbled) = (0, 0);
        loop {
            let rows = self.store.scan(Table::Entry, &from, &end, STEP_ROWS).await?;
            if let Some((last, _)) = rows.last() {
                let removed = self.remove_entries(namespace, &rows).await?;
                entries += removed;
                garbled += rows.len() - removed;
                from = keys::after(last);
            } else if garbled > 0 {
                let error = Error::internal(format!(
                    "{garbled} entries of the removed namespace {namespace} can't be removed; {entries} were"
                ));
                self.garbled.pass_over(row, &error);
                return Ok(false);
            } else if from != start {
                // Once more from the start, to be sure that nothing is left.
                from = start.clone();
            } else {
                self.committer.commit(Vec::new(), Some(Effect::Reclaimed(namespace))).await?;
                tracing::info!(%namespace, entries, "reclaimed a removed namespace");
                return Ok(true);
            }
        }
    }

    /// Removes the entries of these rows, and returns how many it could.
    async fn remove_entries(&self, namespace: NamespaceId, rows: &[(Bytes, Bytes)]) -> Result<usize> {
        let report = |error: Error| {
            tracing::error!(%namespace, %error, "passing over an entry of a removed namespace that can't be removed");
        };
        let mut removals = Vec::with_capacity(rows.len());
        for (row, _) in rows {
            match keys::parse_entry(row) {
                Ok((namespace, key)) => removals.push(Change { namespace, key, action: Action::Reclaim }),
                Err(error) => report(error),
            }
        }
        let mut removed = 0;
        for outcome in self.committer.commit(removals, None).await? {
            match outcome {
                Ok(_) => removed += 1,
                Err(error) => report(error),
            }
        }
        Ok(removed)
    }
}
