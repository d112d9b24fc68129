//! A batch being built: what each change puts and removes, beside the entry's record.
//!
//! On an embedded store a deleted entry leaves nothing, and what nobody names any more is written down as garbage. On a shared one a deletion is a record, too (O2),
//! so that the next write is minted above it; what expires goes by itself; and of a value nobody can say at once that it is garbage, so it is
//! written down as doubtful.

use std::{collections::HashSet, time::Duration};

use bytes::{Bytes, BytesMut};

use super::{
    commit::{Change, Effect, Request},
    values::{Body, Upload},
};
use crate::{
    error::{Error, Result},
    kv::{Key, NamespaceId, Version, WriteId, feed::Item},
    store::{
        Batch, Table,
        keys::{self, NamedWrite, Place, Reclaim, Record, ValueId},
    },
};

/// What a shared store needs to be told with each change.
#[derive(Clone, Copy)]
pub(super) struct Sharing {
    /// Unix milliseconds.
    pub(super) now: u64,
    /// Of rows that have no version of their own.
    pub(super) stamp: Version,
    /// How long what is gone is remembered.
    pub(super) kept: Duration,
}

impl Sharing {
    /// When the store may drop a row that is of no use from then on, in Unix seconds.
    pub(super) fn until(&self, expiration: u64) -> u64 {
        expiration.saturating_add(self.kept.as_secs())
    }
}

#[derive(Default)]
pub(super) struct Draft {
    pub(super) batch: Batch,
    pub(super) sharing: Option<Sharing>,
    /// The entries that it changes, as they stand after the changes added so far.
    pub(super) standing: Vec<Standing>,
    /// Where records are written: one piece of memory for all of them, as they go into the store together, and leave its memory together.
    records: BytesMut,
    pub(super) removed_namespaces: HashSet<NamespaceId>,
    pub(super) effects: Vec<Effect>,
    pub(super) last: Option<Version>,
    /// Kept until the batch is on disk, so that nobody takes them for abandoned.
    uploads: Vec<Upload>,
    pub(super) leaves_garbage: bool,
    pub(super) writes: u64,
    /// What the changes tell the tiers, in their order.
    pub(super) items: Vec<Item>,
    /// Rows that are put and then removed.
    pub(super) passing: HashSet<Bytes>,
}

/// Where a change is about to happen.
pub(super) struct Target {
    pub(super) row: Bytes,
    /// The place of its entry in [`Draft::standing`]: changes of one entry share it.
    pub(super) standing: usize,
}

/// An entry between two changes.
pub(super) enum Standing {
    Known(Known),
    /// The store has a record that nobody can read.
    Garbled(Box<Error>),
}

#[derive(Default)]
pub(super) struct Known {
    pub(super) replaced: Option<Replaced>,
    /// Of its record, also of one that says that it was deleted.
    pub(super) version: Version,
    pub(super) named: Vec<NamedWrite>,
    /// Whether this batch has put it.
    put: bool,
}

/// What of an entry matters to the change that takes its place.
#[derive(Clone, Copy)]
pub(super) struct Replaced {
    pub(super) expiration: Option<u64>,
    chunked: Option<(ValueId, u32)>,
}

impl Standing {
    pub(super) fn read(row: &[u8], found: Option<Bytes>) -> Standing {
        match found.map(|value| Record::decode(row, &value)) {
            None => Standing::Known(Known::default()),
            Some(Ok(record)) => Standing::Known(Known {
                replaced: Replaced::of(&record),
                version: record.version,
                named: record.named,
                put: false,
            }),
            Some(Err(error)) => Standing::Garbled(Box::new(error)),
        }
    }
}

impl Replaced {
    fn of(record: &Record) -> Option<Replaced> {
        let chunked = match record.place {
            Place::Deleted => return None,
            Place::Inline(_) => None,
            Place::Chunked(id) => Some((id, keys::chunks_of(record.length))),
        };
        Some(Replaced { expiration: record.expiration, chunked })
    }
}

/// How long a record remembers a named write: far longer than anybody goes on handing it in, and than origins' clocks are apart.
const NAMED_MILLIS: u64 = 5 * 60 * 1000;

impl Known {
    /// What a write became that was handed in before.
    pub(super) fn outcome(&self, id: Option<WriteId>) -> Option<Version> {
        let id = id?.name();
        self.named.iter().find(|named| named.id == id).map(|named| named.version)
    }

    /// Whether a write that is not remembered may have been taken nevertheless. It may have been forgotten, by too many others or by one that another origin took
    /// at the same time, and knew nothing of it; but not if nobody has written the key for longer than anybody goes on handing a write in. Where deletions leave no
    /// record, nobody can tell that of a key that is not there.
    pub(super) fn may_have_forgotten(&self, id: Option<WriteId>, now_millis: u64, remembers_deletions: bool) -> bool {
        let lately = self.version.millis() + NAMED_MILLIS > now_millis;
        let gone = !remembers_deletions && self.version == Version::ZERO;
        id.is_some_and(WriteId::may_have_been_taken) && (lately || gone)
    }

    /// The named writes of the record that takes its place.
    fn named_after(&self, id: Option<WriteId>, version: Version) -> Vec<NamedWrite> {
        let new = id.map(|id| NamedWrite { id: id.name(), version });
        let lately = |named: &&NamedWrite| named.version.millis() + NAMED_MILLIS > version.millis();
        let known = self.named.iter().filter(lately).copied();
        new.into_iter().chain(known).take(Record::NAMED_MAX).collect()
    }
}

impl Draft {
    pub(super) fn with_room(requests: &[Request], standing: Vec<Standing>, sharing: Option<Sharing>) -> Draft {
        let changes = requests.iter().map(|request| request.changes.len()).sum();
        let records = requests.iter().flat_map(|request| &request.changes).map(Change::record_bytes_max).sum();
        let version = sharing.map_or(Version::ZERO, |sharing| sharing.stamp);
        Draft {
            // Beside the entries a few rows of the commit's own.
            batch: Batch { changes: Vec::with_capacity(changes + 4), version },
            sharing,
            standing,
            records: BytesMut::with_capacity(records),
            items: Vec::with_capacity(changes),
            ..Draft::default()
        }
    }

    /// The entry of a target, which was found to be readable.
    fn known(&mut self, target: &Target) -> Option<&mut Known> {
        match &mut self.standing[target.standing] {
            Standing::Known(known) => Some(known),
            Standing::Garbled(_) => None,
        }
    }

    /// Removes what belongs to an entry beside its record, which is about to be replaced or removed.
    pub(super) fn clear(&mut self, namespace: NamespaceId, key: &Key, target: &Target, replaced: Option<Replaced>) {
        let Some(replaced) = replaced else { return };
        if let Some(expiration) = replaced.expiration
            && self.sharing.is_none()
        {
            self.batch.remove(Table::Expiry, keys::expiry(expiration, namespace, key.as_bytes()));
        }
        if let Some((id, chunks)) = replaced.chunked {
            match self.sharing {
                None => self.batch.put(Table::Reclaim, Reclaim::Value(id).row(), keys::encode_chunks(chunks)),
                Some(Sharing { now, .. }) => {
                    let row = Reclaim::Doubtful { at: now, id }.row();
                    self.batch.put(Table::Reclaim, row, keys::encode_doubtful(chunks, &target.row));
                }
            }
            self.leaves_garbage = true;
        }
    }

    /// Removes an entry and leaves no record of it.
    pub(super) fn remove(&mut self, target: Target, replaced: Option<Replaced>) {
        let Some(known) = self.known(&target) else { return };
        let (put, version) = (known.put, known.version);
        *known = Known::default();
        if put {
            self.passing.insert(target.row.clone());
        }
        // Of a shared store also the record that says that it was deleted.
        if replaced.is_some() || (self.sharing.is_some() && version > Version::ZERO) {
            self.at(version, |batch| batch.remove(Table::Entry, target.row));
        }
    }

    /// Removes an entry by a deletion, which has a version.
    pub(super) fn delete(&mut self, target: Target, replaced: Option<Replaced>, version: Version, id: Option<WriteId>) {
        let Some(sharing) = self.sharing else { return self.remove(target, replaced) };
        let Some(known) = self.known(&target) else { return };
        let named = known.named_after(id, version);
        *known = Known { replaced: None, version, named: named.clone(), put: true };
        let record = Record { version, expiration: None, metadata: None, length: 0, place: Place::Deleted, named };
        let record = record.encode_into(&mut self.records);
        let until = Some(sharing.until(sharing.now / 1000));
        self.at(version, |batch| batch.put_until(Table::Entry, target.row, record, until));
    }

    /// Adds what a received value still needs to be one, and returns its length and its place.
    pub(super) fn place(&mut self, body: Body) -> (u64, Place) {
        match body {
            Body::Inline(value) => (value.len() as u64, Place::Inline(value)),
            Body::Chunk(id, value) => {
                let length = value.len() as u64;
                self.batch.put(Table::Chunk, keys::chunk(id, 0), value);
                (length, Place::Chunked(id))
            }
            Body::Uploaded(upload) => {
                if self.sharing.is_none() {
                    self.batch.remove(Table::Reclaim, Reclaim::Upload(upload.id()).row());
                }
                let place = (upload.length(), Place::Chunked(upload.id()));
                self.uploads.push(upload);
                place
            }
        }
    }

    pub(super) fn put(
        &mut self,
        namespace: NamespaceId,
        key: &Key,
        target: Target,
        mut record: Record,
        id: Option<WriteId>,
    ) -> Result<()> {
        let known = match &mut self.standing[target.standing] {
            Standing::Known(known) => known,
            Standing::Garbled(error) => return Err(error.copied()),
        };
        record.named = known.named_after(id, record.version);
        let replaced = Replaced::of(&record);
        *known = Known { replaced, version: record.version, named: record.named.clone(), put: true };
        let until = match (record.expiration, self.sharing) {
            (Some(expiration), Some(sharing)) => Some(sharing.until(expiration)),
            (Some(expiration), None) => {
                self.batch.put(Table::Expiry, keys::expiry(expiration, namespace, key.as_bytes()), Bytes::new());
                None
            }
            (None, _) => None,
        };
        let encoded = record.encode_into(&mut self.records);
        self.at(record.version, |batch| batch.put_until(Table::Entry, target.row, encoded, until));
        Ok(())
    }

    /// Changes the batch with a version of its own.
    fn at(&mut self, version: Version, change: impl FnOnce(&mut Batch)) {
        let stamp = std::mem::replace(&mut self.batch.version, version);
        change(&mut self.batch);
        self.batch.version = stamp;
    }

    pub(super) fn add_effect(&mut self, effect: Effect) {
        match effect {
            Effect::Create(_) => {}
            Effect::Remove(namespace) => {
                let at = self.sharing.map_or(Bytes::new(), |sharing| keys::encode_number(sharing.now));
                self.batch.put(Table::Reclaim, Reclaim::Namespace(namespace).row(), at);
                self.removed_namespaces.insert(namespace);
                self.leaves_garbage = true;
                // With its record's deletion, which has a version.
                self.items.extend(self.last.map(|version| Item::Namespace { namespace, version }));
            }
            Effect::Reclaimed(namespace) => self.batch.remove(Table::Reclaim, Reclaim::Namespace(namespace).row()),
        }
        self.effects.push(effect);
    }
}
