//! The store in memory, for tests and simulations: it keeps the contract, and breaks on demand.
//!
//! What it may do: fail all commits from a given one on, with the failing batch lost or kept; fail reads; and crash, which loses
//! what no synced commit has covered. It never tears a batch and never reorders commits: the contract rules both out.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard},
};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Batch, Durability, Store, Table};
use crate::error::{Error, Result};

type Rows = BTreeMap<(Table, Bytes), Bytes>;

#[derive(Default)]
pub struct MemoryStore {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What readers see.
    rows: Rows,
    /// What a crash leaves.
    durable: Rows,
    /// Visible, but not yet covered by a synced commit.
    buffered: Vec<Batch>,
    failing: Option<Failing>,
    failed: bool,
    reads_fail: bool,
}

struct Failing {
    commits_left: usize,
    outcome: FailedCommit,
}

/// What becomes of the batch of a commit that fails. Its caller can't know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailedCommit {
    Lost,
    /// On disk all the same, as when the machine stops between the write and the answer.
    Kept,
}

impl MemoryStore {
    /// Lets `commits` more commits pass and fails the next one, and with it all that follow.
    pub fn fail_after(&self, commits: usize, outcome: FailedCommit) {
        self.lock().failing = Some(Failing { commits_left: commits, outcome });
    }

    pub fn fail_reads(&self, fail: bool) {
        self.lock().reads_fail = fail;
    }

    /// Stops as a machine that loses power would: this store works no more, and the one returned is what the next start finds.
    pub fn crash(&self) -> MemoryStore {
        let mut state = self.lock();
        state.failed = true;
        state.reads_fail = true;
        let durable = state.durable.clone();
        MemoryStore { state: Mutex::new(State { rows: durable.clone(), durable, ..State::default() }) }
    }

    /// How many rows a table has.
    pub fn count(&self, table: Table) -> usize {
        self.lock().rows.keys().filter(|(of, _)| *of == table).count()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock can panic")
    }

    fn read<T>(&self, read: impl FnOnce(&Rows) -> T) -> Result<T> {
        let state = self.lock();
        if state.reads_fail {
            return Err(Error::internal("the memory store was told to fail reads"));
        }
        Ok(read(&state.rows))
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>> {
        self.read(|rows| rows.get(&(table, Bytes::copy_from_slice(key))).cloned())
    }

    async fn get_many(&self, table: Table, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>> {
        self.read(|rows| keys.iter().map(|key| rows.get(&(table, key.clone())).cloned()).collect())
    }

    async fn scan(&self, table: Table, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>> {
        if !to.is_empty() && from >= to {
            return Ok(Vec::new());
        }
        let from = Bound::Included((table, Bytes::copy_from_slice(from)));
        let to = if to.is_empty() { Bound::Unbounded } else { Bound::Excluded((table, Bytes::copy_from_slice(to))) };
        self.read(|rows| {
            rows.range((from, to))
                .take_while(|((of, _), _)| *of == table)
                .take(limit)
                .map(|((_, key), value)| (key.clone(), value.clone()))
                .collect()
        })
    }

    async fn commit(&self, batch: Batch, durability: Durability) -> Result<()> {
        self.lock().commit(batch, durability)
    }

    fn in_place(&self) -> Option<Arc<dyn Store>> {
        None
    }
}

impl State {
    fn commit(&mut self, batch: Batch, durability: Durability) -> Result<()> {
        if self.failed {
            return Err(Error::internal("the memory store is read-only since a commit failed"));
        }
        if let Some(failing) = &mut self.failing {
            if failing.commits_left == 0 {
                self.failed = true;
                if failing.outcome == FailedCommit::Kept {
                    self.buffered.push(batch);
                    self.sync();
                }
                return Err(Error::internal("the memory store was told to fail this commit"));
            }
            failing.commits_left -= 1;
        }
        apply(&mut self.rows, &batch);
        self.buffered.push(batch);
        if durability == Durability::Synced {
            self.sync();
        }
        Ok(())
    }

    fn sync(&mut self) {
        for batch in self.buffered.drain(..) {
            apply(&mut self.durable, &batch);
        }
    }
}

fn apply(rows: &mut Rows, batch: &Batch) {
    for change in &batch.changes {
        let key = (change.table, change.key.clone());
        match &change.value {
            Some(value) => rows.insert(key, value.clone()),
            None => rows.remove(&key),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &'static str) -> Batch {
        let mut batch = Batch::default();
        batch.put(Table::Entry, key, "v");
        batch
    }

    #[tokio::test]
    async fn a_crash_loses_what_no_synced_commit_covered() {
        let store = MemoryStore::default();
        store.commit(put("a"), Durability::Buffered).await.unwrap();
        store.commit(put("b"), Durability::Synced).await.unwrap();
        store.commit(put("c"), Durability::Buffered).await.unwrap();
        assert_eq!(store.count(Table::Entry), 3);

        let restarted = store.crash();
        assert!(restarted.get(Table::Entry, b"a").await.unwrap().is_some());
        assert!(restarted.get(Table::Entry, b"b").await.unwrap().is_some());
        assert!(restarted.get(Table::Entry, b"c").await.unwrap().is_none());
        assert!(store.get(Table::Entry, b"a").await.is_err());
        assert!(store.commit(put("d"), Durability::Synced).await.is_err());
    }

    #[tokio::test]
    async fn a_failed_commit_is_followed_by_none() {
        for (outcome, kept) in [(FailedCommit::Lost, false), (FailedCommit::Kept, true)] {
            let store = MemoryStore::default();
            store.fail_after(1, outcome);
            store.commit(put("a"), Durability::Synced).await.unwrap();
            assert!(store.commit(put("b"), Durability::Synced).await.is_err());
            assert!(store.commit(put("c"), Durability::Synced).await.is_err());
            let restarted = store.crash();
            assert!(restarted.get(Table::Entry, b"a").await.unwrap().is_some());
            assert_eq!(restarted.get(Table::Entry, b"b").await.unwrap().is_some(), kept);
            assert!(restarted.get(Table::Entry, b"c").await.unwrap().is_none());
        }
    }

    #[tokio::test]
    async fn reads_fail_while_they_are_told_to() {
        let store = MemoryStore::default();
        store.fail_reads(true);
        assert!(store.get(Table::Entry, b"a").await.is_err());
        assert!(store.scan(Table::Entry, b"", b"", 1).await.is_err());
        store.fail_reads(false);
        assert!(store.get(Table::Entry, b"a").await.unwrap().is_none());
    }
}
