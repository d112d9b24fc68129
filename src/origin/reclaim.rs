//! Removes in the background what no entry names any more: overwritten and deleted values, abandoned uploads, and the entries of removed
//! namespaces.
//!
//! All of it is written down in `Reclaim` by the commit that made it garbage, and crossed out with its removal. So it goes on after a restart
//! where it was, in steps of bounded size, and a step done twice does no harm.
//!
//! On a shared store a value may be garbage or not, until all who could be reading it, or about to name it, must have ended. Then whoever tidies for all origins
//! looks whether its entry names it.
//!
//! A store on disk keeps traces of removed rows for a while, and steps over them at each scan. So a scan goes on behind what was removed, and passes
//! are spaced.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use super::{
    commit::{Action, Change, Committer, Effect},
    garbled::Garbled,
    membership::Membership,
    values::Values,
    versions::Time,
};
use crate::{
    clock::Clock,
    error::{Error, Result},
    kv::NamespaceId,
    store::{
        Store, Table,
        keys::{self, Place, Reclaim, Record, ValueId},
    },
};

/// Rows that are looked at in one step.
const STEP_ROWS: usize = 256;
/// How long after a pass the next one may begin. Whatever becomes garbage meanwhile wakes it once.
const PASS_INTERVAL: Duration = Duration::from_millis(250);
/// How often a shared store is looked through.
const PASSES_PER_KEPT: u32 = 8;
const SHARED_INTERVAL_MIN: Duration = Duration::from_secs(5);
const SHARED_INTERVAL_MAX: Duration = Duration::from_secs(300);

pub(super) struct Reclaimer {
    pub(super) store: Arc<dyn Store>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) values: Arc<Values>,
    pub(super) committer: Arc<Committer>,
    pub(super) garbled: Garbled,
    pub(super) shared: Option<SharedGarbage>,
}

/// How a shared store's garbage is found.
pub(super) struct SharedGarbage {
    pub(super) membership: Arc<Membership>,
    pub(super) time: Arc<Time>,
    /// How long what is gone is remembered.
    pub(super) kept: Duration,
}

impl Reclaimer {
    /// Runs until it is dropped, or the origin turns read-only: once at the start, then whenever something has become garbage.
    pub(super) async fn run(self) {
        match &self.shared {
            None => self.run_alone().await,
            Some(shared) => self.run_shared(shared).await,
        }
    }

    /// From time to time, as nothing becomes garbage at once.
    async fn run_shared(&self, shared: &SharedGarbage) {
        while !self.committer.is_read_only() {
            self.clock.sleep((shared.kept / PASSES_PER_KEPT).clamp(SHARED_INTERVAL_MIN, SHARED_INTERVAL_MAX)).await;
            if !shared.membership.tidies() {
                continue;
            }
            match self.pass_shared(shared).await {
                Ok(0) => {}
                Ok(reclaimed) => tracing::debug!(reclaimed, "reclaimed what nobody names any more"),
                Err(error) => tracing::warn!(%error, "reclaiming stopped, and goes on later"),
            }
        }
    }

    /// Goes once through everything that has been doubtful for long enough. Returns how much of it was garbage.
    async fn pass_shared(&self, shared: &SharedGarbage) -> Result<u64> {
        let before = shared.time.millis().saturating_sub(u64::try_from(shared.kept.as_millis()).unwrap_or(u64::MAX));
        let end = Reclaim::doubtful_end(before);
        let mut reclaimed = 0;
        let mut from = Bytes::new();
        loop {
            let rows = self.store.scan(Table::Reclaim, &from, &end, STEP_ROWS).await?;
            for (row, value) in rows.iter().filter(|(row, _)| !self.garbled.holds(row)) {
                let parsed = Reclaim::parse(row).and_then(|garbage| match garbage {
                    Reclaim::Doubtful { id, .. } => Ok((garbage, Some((id, keys::decode_doubtful(row, value)?)), 0)),
                    Reclaim::Namespace(_) => Ok((garbage, None, keys::decode_number(row, value)?)),
                    Reclaim::Value(_) | Reclaim::Upload(_) => Ok((garbage, None, u64::MAX)),
                });
                reclaimed += u64::from(match parsed {
                    Ok((garbage, Some((id, (chunks, entry))), _)) => self.judge(garbage, id, chunks, &entry).await?,
                    Ok((Reclaim::Namespace(namespace), None, at)) if at <= before => {
                        self.reclaim_namespace(row, namespace).await?
                    }
                    Ok(_) => false,
                    Err(error) => {
                        self.garbled.pass_over(row, &error);
                        false
                    }
                });
            }
            match rows.last() {
                Some((last, _)) if rows.len() == STEP_ROWS => from = keys::after(last),
                _ => return Ok(reclaimed),
            }
        }
    }

    /// Removes a value unless its entry names it; either way it is no more in doubt.
    async fn judge(&self, garbage: Reclaim, id: ValueId, chunks: u32, entry: &Bytes) -> Result<bool> {
        let named = match self.store.get(Table::Entry, entry).await? {
            Some(record) => match Record::decode(entry, &record) {
                Ok(record) => record.place == Place::Chunked(id),
                Err(error) => {
                    self.garbled.pass_over(&garbage.row(), &error);
                    return Ok(false);
                }
            },
            None => false,
        };
        if !named {
            self.values.remove(id, chunks, garbage).await?;
            return Ok(true);
        }
        let mut batch = self.values.batch();
        batch.remove(Table::Reclaim, garbage.row());
        self.values.commit(batch).await?;
        Ok(false)
    }

    async fn run_alone(&self) {
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
            Reclaim::Namespace(_) | Reclaim::Doubtful { .. } => Ok((garbage, 0)),
            Reclaim::Value(_) | Reclaim::Upload(_) => Ok((garbage, keys::decode_chunks(row, value)?)),
        });
        match parsed {
            Ok((Reclaim::Value(id), chunks)) => self.values.reclaim_value(id, chunks).await,
            Ok((Reclaim::Upload(id), chunks)) => self.values.reclaim_upload(id, chunks).await,
            Ok((Reclaim::Namespace(namespace), _)) => self.reclaim_namespace(row, namespace).await,
            // Of a shared store.
            Ok((Reclaim::Doubtful { .. }, _)) => Ok(false),
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
                Ok((namespace, key)) => {
                    removals.push(Change { namespace, key, action: Action::Reclaim, id: None, own: false })
                }
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
