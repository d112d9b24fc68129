//! Durable bytes: ordered tables and atomic batches, nothing else.
//!
//! What the bytes mean is `keys.rs` (layout) and the origin's business. Every implementation passes `contract.rs`.

mod barren;
pub mod disk;
mod journal;
pub mod keys;
pub mod memory;

#[cfg(test)]
mod contract;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::Result;

/// The tables of a store. Keys sort by their bytes within each.
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
}

impl Table {
    pub const ALL: [Table; 6] = [Table::Entry, Table::Chunk, Table::Expiry, Table::Reclaim, Table::Meta, Table::Purge];

    pub fn name(self) -> &'static str {
        match self {
            Table::Entry => "entry",
            Table::Chunk => "chunk",
            Table::Expiry => "expiry",
            Table::Reclaim => "reclaim",
            Table::Meta => "meta",
            Table::Purge => "purge",
        }
    }
}

/// Changes that take effect together or not at all; a later one of the same row wins.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub changes: Vec<RowChange>,
}

#[derive(Clone, Debug)]
pub struct RowChange {
    pub table: Table,
    pub key: Bytes,
    /// `None` removes the row.
    pub value: Option<Bytes>,
}

impl Batch {
    pub fn put(&mut self, table: Table, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.changes.push(RowChange { table, key: key.into(), value: Some(value.into()) });
    }

    pub fn remove(&mut self, table: Table, key: impl Into<Bytes>) {
        self.changes.push(RowChange { table, key: key.into(), value: None });
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

#[async_trait]
pub trait Store: Send + Sync + 'static {
    async fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>>;

    /// The rows of these keys, in their order: one trip where so many [`Store::get`]s would be as many.
    async fn get_many(&self, table: Table, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>>;

    /// Rows with `from <= key < to`, in byte order, at most `limit`; an empty `to` is the table's end. All rows of one answer are of one moment.
    async fn scan(&self, table: Table, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>>;

    /// An error means that nothing of the batch may be acknowledged. Whether it took effect is then unknown, so the store takes no
    /// commit after it: what would be built upon it could be acknowledged and lost.
    async fn commit(&self, batch: Batch, durability: Durability) -> Result<()>;

    /// The same store for a thread of the caller's own: its calls do their work on that thread, and are done when they return. `None` where nothing
    /// blocks, so that a task needs no thread.
    fn in_place(&self) -> Option<Arc<dyn Store>>;
}
