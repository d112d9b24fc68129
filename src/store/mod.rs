//! Durable bytes: ordered tables, batches of changes, and a few agreed records; nothing else.
//!
//! What the bytes mean is `keys.rs` (layout) and the origin's business. Every implementation passes `contract.rs`.
//!
//! A store is either *embedded*, one process's alone, or *shared* by several origins. A shared one promises less (no batch is atomic, no scan of one moment)
//! and one thing more: records that are changed by comparing and setting ([`Agreement`]), on which origins agree about each other.

mod barren;
pub mod cassandra;
pub mod copy;
pub mod disk;
mod journal;
pub mod keys;
pub mod memory;

#[cfg(test)]
mod contract;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{error::Result, kv::Version};

/// The tables of a store. Keys sort by their bytes within each, or, in a shared store, within each prefix ([`Table::prefix_bytes`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Records of entries, with small values inside.
    Entry,
    /// Larger values, in chunks.
    Chunk,
    /// Which entries expire when, to find them without looking at all.
    Expiry,
    /// What is to be reclaimed: values nobody names any more, uploads that never finished, removed namespaces.
    Reclaim,
    /// A handful of facts about the store itself.
    Meta,
    /// The purge log: what the last commits changed.
    Purge,
    /// In a shared store: what each origin is about to change, so that another can finish what it left undone.
    Intent,
}

impl Table {
    pub const ALL: [Table; 7] =
        [Table::Entry, Table::Chunk, Table::Expiry, Table::Reclaim, Table::Meta, Table::Purge, Table::Intent];

    pub fn name(self) -> &'static str {
        match self {
            Table::Entry => "entry",
            Table::Chunk => "chunk",
            Table::Expiry => "expiry",
            Table::Reclaim => "reclaim",
            Table::Meta => "meta",
            Table::Purge => "purge",
            Table::Intent => "intent",
        }
    }

    /// A scan stays among the rows that share so many first bytes with its `from`: those of a namespace, of a value, of an origin. Its `to` may lie where
    /// they end, or past that. So a shared store may keep rows of different prefixes on different machines.
    pub fn prefix_bytes(self) -> usize {
        match self {
            Table::Entry => 16,
            Table::Chunk | Table::Intent => 8,
            Table::Expiry | Table::Reclaim | Table::Meta | Table::Purge => 0,
        }
    }
}

/// Changes that are committed together; a later one of the same row wins. In an embedded store they take effect together or not at all.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub changes: Vec<RowChange>,
    /// Of the changes to come.
    pub version: Version,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowChange {
    pub table: Table,
    pub key: Bytes,
    /// `None` removes the row.
    pub value: Option<Bytes>,
    /// In a shared store, of all changes of a row the one with the greatest version stands, in whatever order they arrive; of one version, they are the same.
    /// An embedded store goes by the order of its commits, and ignores it.
    pub version: Version,
    /// From when on (Unix seconds) a shared store is to drop the row by itself, a little later at most. An embedded store keeps it.
    pub expires: Option<u64>,
}

impl Batch {
    /// One whose changes have this version.
    pub fn at(version: Version) -> Batch {
        Batch { changes: Vec::new(), version }
    }

    pub fn put(&mut self, table: Table, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.put_until(table, key, value, None);
    }

    /// A row that is of no use from `expires` on.
    pub fn put_until(&mut self, table: Table, key: impl Into<Bytes>, value: impl Into<Bytes>, expires: Option<u64>) {
        let (key, value) = (key.into(), Some(value.into()));
        self.changes.push(RowChange { table, key, value, version: self.version, expires });
    }

    pub fn remove(&mut self, table: Table, key: impl Into<Bytes>) {
        self.changes.push(RowChange { table, key: key.into(), value: None, version: self.version, expires: None });
    }

    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

/// How far a batch must have got before [`Store::commit`] answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// On disk: it survives the loss of power.
    Synced,
    /// Visible to readers, and on disk no later than the next synced batch. May be lost with the machine.
    Buffered,
}

/// Calls of a shared store fail with [`Kind::Unavailable`](crate::error::Kind::Unavailable) while it can't be reached.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The row as the last change left it of those whose commit had been answered, or a later one.
    async fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>>;

    /// The rows of these keys, in their order: one trip where so many [`Store::get`]s would be as many.
    async fn get_many(&self, table: Table, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>>;

    /// Rows with `from <= key < to`, in byte order, at most `limit`, and fewer only where there are no more; an empty `to` is the end of the prefix
    /// ([`Table::prefix_bytes`]). In an embedded store all rows of one answer are of one moment; in a shared one each is of some moment of the call.
    async fn scan(&self, table: Table, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>>;

    /// An error means that nothing of the batch may be acknowledged; whether it took effect, or still will, is then unknown. An embedded store takes no
    /// commit after it: what would be built upon it could be acknowledged and lost. At a shared one the same batch may be committed again, until it is known.
    ///
    /// In a shared store each row changes by itself, chunks before all others, and all have changed when the commit is answered.
    async fn commit(&self, batch: Batch, durability: Durability) -> Result<()>;

    /// The same store for a thread of the caller's own: its calls do their work on that thread, and are done when they return. `None` where nothing
    /// blocks, so that a task needs no thread.
    fn in_place(&self) -> Option<Arc<dyn Store>>;

    /// The agreed records of a shared store; `None` for an embedded one.
    fn agreement(&self) -> Option<&dyn Agreement>;
}

/// Small records that whoever shares the store changes one after the other, each on what the last one left.
#[async_trait]
pub trait Agreement: Send + Sync {
    /// The record as the last change left it.
    async fn read(&self, name: &str) -> Result<Agreed>;

    /// Changes the record if it still has this revision. After an error it may have been changed, or still be; [`Agreement::read`] finishes that.
    async fn replace(&self, name: &str, revision: u64, value: Bytes) -> Result<Replaced>;
}

/// A record that was agreed on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    /// How often it was changed; zero before the first time, when it is empty.
    pub revision: u64,
    pub value: Bytes,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replaced {
    /// It has the next revision now.
    Done,
    /// Somebody else was first.
    Overtaken(Agreed),
}
