//! A disk that takes its time, fails and loses what it was not made to sync; and that tells the checker when a write takes effect.
//!
//! A commit waits before its effect and after it, so that a crash may fall on either side. What a failing commit leaves behind is as `store/memory.rs` says:
//! nothing, or a batch that only the next start finds.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;
use kvasar::{
    error::{Error, Result},
    kv::NamespaceId,
    store::{
        Batch, Durability, Store, Table,
        keys::{self, PurgeItem, Purges, Record},
        memory::{FailedCommit, MemoryStore},
    },
};

use crate::{
    chance::Chance,
    checker::{Checker, Effect, KeyIndex, Violation},
    clock::{Life, MICRO, Machine, Nanos, Time},
};

/// The machine's disk; it outlives who uses it.
pub(crate) struct Disk {
    time: Arc<Time>,
    machine: Arc<Machine>,
    checker: Arc<Mutex<Checker>>,
    /// Whose keys the checker follows.
    namespace: OnceLock<NamespaceId>,
    state: Mutex<State>,
}

struct State {
    chance: Chance,
    /// How long a commit takes in the mean, before its effect and after it.
    commit: (f64, f64),
    /// How much slower everything is for now.
    slowness: f64,
    /// What the next commit will do instead of what it should.
    failing: Option<FailedCommit>,
    /// Whether one has failed, so that none is taken before the next start.
    failed: bool,
    /// What a failed commit left on the disk, to be found by the next start.
    kept: Vec<Change>,
}

/// A change of a key, as a batch says.
#[derive(Clone, Copy)]
struct Change {
    key: KeyIndex,
    version: u64,
    effect: Effect,
}

impl Disk {
    pub(crate) fn new(
        machine: &Arc<Machine>,
        checker: &Arc<Mutex<Checker>>,
        commit: (Nanos, Nanos),
        chance: Chance,
    ) -> Arc<Disk> {
        let commit = (commit.0 as f64, commit.1 as f64);
        let state = State { chance, commit, slowness: 1.0, failing: None, failed: false, kept: Vec::new() };
        Arc::new(Disk {
            time: Arc::clone(&machine.time),
            machine: Arc::clone(machine),
            checker: Arc::clone(checker),
            namespace: OnceLock::new(),
            state: Mutex::new(state),
        })
    }

    /// From here on the checker follows this namespace.
    pub(crate) fn watch(&self, namespace: NamespaceId) {
        self.namespace.set(namespace).expect("one namespace is watched");
    }

    /// What a start finds on the disk, after the one before it ended as if the power had gone.
    pub(crate) fn start(self: &Arc<Self>, before: Option<&SimStore>, life: &Arc<Life>) -> SimStore {
        let rows = before.map(|before| before.rows.crash()).unwrap_or_default();
        let kept = {
            let mut state = self.lock();
            state.failing = None;
            state.failed = false;
            std::mem::take(&mut state.kept)
        };
        self.note(&kept);
        SimStore { disk: Arc::clone(self), life: Arc::clone(life), rows }
    }

    pub(crate) fn set_slowness(&self, slowness: f64) {
        self.lock().slowness = slowness;
    }

    /// Lets the next commit of this store fail, and with it all after it.
    pub(crate) fn fail_next(&self, store: &SimStore, outcome: FailedCommit) {
        let mut state = self.lock();
        if !state.failed {
            state.failing = Some(outcome);
            store.rows.fail_after(0, outcome);
        }
    }

    /// Tells the checker what took effect just now.
    fn note(&self, changes: &[Change]) {
        if changes.is_empty() {
            return;
        }
        let at = self.time.now();
        let mut checker = self.checker.lock().expect("no holder of this lock can panic");
        for change in changes {
            if let Err(what) = checker.took_effect(at, change.key, change.version, change.effect) {
                checker.fail(Violation { at, node: 0, key: Some(change.key), what });
            }
        }
    }

    /// The changes of data that a batch makes, in their order: what its part of the purge log names, and its records' expirations.
    fn changes(&self, batch: &Batch) -> Vec<Change> {
        let mut changes = Vec::new();
        for row in batch.changes.iter().filter(|row| row.table == Table::Purge) {
            let Some(value) = &row.value else { continue };
            let purges = Purges::decode(&row.key, value).expect("the origin writes what it can read");
            for item in purges.items {
                let PurgeItem::Key { namespace, key, version } = item else { continue };
                if Some(&namespace) == self.namespace.get() {
                    let effect = self.effect(batch, &keys::entry(namespace, key.as_bytes()), version.as_u64());
                    changes.push(Change { key: key_index(key.as_bytes()), version: version.as_u64(), effect });
                }
            }
        }
        changes
    }

    fn effect(&self, batch: &Batch, row: &Bytes, version: u64) -> Effect {
        let records = batch.changes.iter().filter(|change| change.table == Table::Entry && change.key == *row);
        for record in records.filter_map(|change| change.value.as_ref()) {
            let record = Record::decode(row, record).expect("the origin writes what it can read");
            if record.version.as_u64() == version {
                let expires_at = record.expiration.map(|seconds| self.machine.when_wall_shows(seconds * 1000));
                return Effect::Put { expires_at };
            }
        }
        Effect::Delete
    }

    /// How long to wait before and after what is done.
    fn waits(&self, commit: bool) -> (Nanos, Nanos) {
        let mut state = self.lock();
        let slowness = state.slowness;
        let (before, after) = if commit { state.commit } else { (20.0 * MICRO as f64, 20.0 * MICRO as f64) };
        let mut wait = |mean: f64| (state.chance.exponential(mean) * slowness) as Nanos;
        (wait(before), wait(after))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock can panic")
    }
}

/// One process's use of the disk.
pub(crate) struct SimStore {
    disk: Arc<Disk>,
    life: Arc<Life>,
    rows: MemoryStore,
}

impl SimStore {
    pub(crate) fn fail_reads(&self, fail: bool) {
        self.rows.fail_reads(fail);
    }

    async fn wait(&self, nanos: Nanos) {
        if nanos > 0 {
            self.disk.time.sleep(nanos).await;
        }
        self.life.check().await;
    }

    async fn around<T>(&self, look: impl Future<Output = T>) -> T {
        let (before, after) = self.disk.waits(false);
        self.wait(before).await;
        let found = look.await;
        self.wait(after).await;
        found
    }
}

#[async_trait]
impl Store for SimStore {
    async fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>> {
        self.around(self.rows.get(table, key)).await
    }

    async fn get_many(&self, table: Table, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>> {
        self.around(self.rows.get_many(table, keys)).await
    }

    async fn scan(&self, table: Table, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>> {
        self.around(self.rows.scan(table, from, to, limit)).await
    }

    async fn commit(&self, batch: Batch, durability: Durability) -> Result<()> {
        let (before, after) = self.disk.waits(true);
        self.wait(before).await;
        let changes = self.disk.changes(&batch);
        let outcome: Result<(), Error> = self.rows.commit(batch, durability).await;
        match &outcome {
            Ok(()) => self.disk.note(&changes),
            Err(_) => {
                let mut state = self.disk.lock();
                state.failed = true;
                if state.failing.take() == Some(FailedCommit::Kept) {
                    state.kept = changes;
                }
            }
        }
        self.wait(after).await;
        outcome
    }

    fn in_place(&self) -> Option<Arc<dyn Store>> {
        None
    }

    fn agreement(&self) -> Option<&dyn kvasar::store::Agreement> {
        None
    }
}

/// Keys are named for their numbers.
pub(crate) fn key_name(index: KeyIndex) -> String {
    format!("key-{index:06}")
}

pub(crate) fn key_index(name: &[u8]) -> KeyIndex {
    let digits = name.strip_prefix(b"key-").and_then(|digits| std::str::from_utf8(digits).ok());
    digits.and_then(|digits| digits.parse().ok()).expect("every key of the world is named by key_name")
}
