//! The store in memory, for tests and simulations: it keeps the contract, and breaks on demand.
//!
//! What it may do: fail all commits from a given one on, with the failing batch lost or kept; fail reads; and crash, which loses
//! what no synced commit has covered. It never tears a batch and never reorders commits: the contract rules both out.
//!
//! [`MemoryStore::shared`] is one that several origins share: of all changes of a row the greatest version stands, rows go when they expire, and a commit
//! that fails is not the last one.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard},
};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Agreed, Agreement, Batch, Durability, Replaced, RowChange, Store, Table, keys};
use crate::{
    clock::Clock,
    error::{Error, Result},
    kv::Version,
};

type Rows = BTreeMap<(Table, Bytes), Bytes>;

#[derive(Default)]
pub struct MemoryStore {
    state: Mutex<State>,
    /// Of a shared store, by which its rows expire.
    clock: Option<Arc<dyn Clock>>,
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
    /// Of a shared store: the change that stands of each row, also of those that it removed.
    standing: HashMap<(Table, Bytes), Standing>,
    agreed: HashMap<String, Agreed>,
}

#[derive(Clone, Copy)]
struct Standing {
    version: Version,
    expires: Option<u64>,
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
    pub fn shared(clock: Arc<dyn Clock>) -> MemoryStore {
        MemoryStore { clock: Some(clock), ..MemoryStore::default() }
    }

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
        let left = State { rows: durable.clone(), durable, ..State::default() };
        MemoryStore { state: Mutex::new(left), clock: None }
    }

    /// How many rows a table has.
    pub fn count(&self, table: Table) -> usize {
        self.lock().rows.keys().filter(|(of, _)| *of == table).count()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock can panic")
    }

    fn read<T>(&self, read: impl FnOnce(&Rows) -> T) -> Result<T> {
        let mut state = self.lock();
        if state.reads_fail {
            return Err(match self.clock {
                Some(_) => Error::unavailable("the memory store was told to fail reads"),
                None => Error::internal("the memory store was told to fail reads"),
            });
        }
        if let Some(clock) = &self.clock {
            state.drop_expired(clock.wall_millis() / 1000);
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
        let prefix = from.get(..table.prefix_bytes()).filter(|_| self.clock.is_some());
        let prefix_end = prefix.map(keys::after_prefix).filter(|end| !end.is_empty() && (to.is_empty() || to > end));
        let to = prefix_end.as_deref().unwrap_or(to);
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
        match self.clock {
            Some(_) => self.lock().commit_shared(&batch),
            None => self.lock().commit(batch, durability),
        }
    }

    fn in_place(&self) -> Option<Arc<dyn Store>> {
        None
    }

    fn agreement(&self) -> Option<&dyn Agreement> {
        self.clock.is_some().then_some(self)
    }
}

#[async_trait]
impl Agreement for MemoryStore {
    async fn read(&self, name: &str) -> Result<Agreed> {
        let state = self.lock();
        if state.reads_fail {
            return Err(Error::unavailable("the memory store was told to fail reads"));
        }
        Ok(state.agreed.get(name).cloned().unwrap_or_default())
    }

    async fn replace(&self, name: &str, revision: u64, value: Bytes) -> Result<Replaced> {
        let mut state = self.lock();
        if state.reads_fail {
            return Err(Error::unavailable("the memory store was told to fail reads"));
        }
        let agreed = state.agreed.entry(name.to_owned()).or_default();
        if agreed.revision != revision {
            return Ok(Replaced::Overtaken(agreed.clone()));
        }
        *agreed = Agreed { revision: revision + 1, value };
        Ok(Replaced::Done)
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

    fn commit_shared(&mut self, batch: &Batch) -> Result<()> {
        let failing = match &mut self.failing {
            Some(Failing { commits_left: 0, outcome }) => Some(*outcome),
            Some(failing) => {
                failing.commits_left -= 1;
                None
            }
            None => None,
        };
        if failing != Some(FailedCommit::Lost) {
            batch.changes.iter().for_each(|change| self.change(change));
        }
        if failing.is_some() {
            self.failing = None;
            return Err(Error::unavailable("the memory store was told to fail this commit"));
        }
        Ok(())
    }

    fn change(&mut self, change: &RowChange) {
        let RowChange { table, key, value, version, expires } = change;
        let row = (*table, key.clone());
        if self.standing.get(&row).is_some_and(|standing| standing.version > *version) {
            return;
        }
        self.standing.insert(row.clone(), Standing { version: *version, expires: *expires });
        match value {
            Some(value) => self.rows.insert(row, value.clone()),
            None => self.rows.remove(&row),
        };
    }

    /// Rows that have expired leave no trace: whatever is put next stands.
    fn drop_expired(&mut self, now: u64) {
        let rows = &mut self.rows;
        self.standing.retain(|row, standing| {
            let stays = standing.expires.is_none_or(|expires| expires > now);
            if !stays {
                rows.remove(row);
            }
            stays
        });
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
