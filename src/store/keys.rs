//! The layout of every row: what its key and its value are made of.
//!
//! Numbers are big-endian, so that rows sort by them. A value that may change its shape begins with a format byte. Decoders take any bytes: what is
//! not a row of ours is an error that names the row, never a panic.

mod intent;
mod members;

use bytes::{BufMut, Bytes, BytesMut};

pub use self::{
    intent::{Intent, intent, intent_number, intents_from},
    members::{Listed, Members},
};

use crate::{
    error::{Error, Result},
    kv::{Key, NamespaceId, Version, WriteId},
    limits,
};

/// Names the chunks of one value. Minted by the origin, never used twice in a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValueId(pub u64);

/// **Entry**: one per entry that exists. A deleted one leaves no row, or in a shared store, for a while, one that says so (O2).
///
/// Key: namespace (16 bytes), key (1 to 512 bytes). So a namespace is one range, in the order of its keys.
///
/// Value: format (1 byte, 1), version (8), flags (1), expiration (8, with flag 1), length of the metadata (4) and the metadata (both with
/// flag 2), number of the last writes that had a name (1) and of each its name (8) and version (8) (all with flag 16), length of the value (8), then with
/// flag 4 the id of its chunks (8), else the value itself to the row's end. With flag 8 it is deleted, and has no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub version: Version,
    /// Absolute Unix seconds.
    pub expiration: Option<u64>,
    pub metadata: Option<Bytes>,
    /// Of the value, in bytes.
    pub length: u64,
    pub place: Place,
    /// The last writes of the key that had a name, the latest first: one that is handed in again is known by it.
    pub named: Vec<NamedWrite>,
}

/// A write that may be handed in again, and what it became.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamedWrite {
    pub id: WriteId,
    pub version: Version,
}

/// Where an entry's value is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Inline(Bytes),
    Chunked(ValueId),
    /// Nowhere: the entry was deleted.
    Deleted,
}

const RECORD_FORMAT: u8 = 1;
const FLAG_EXPIRATION: u8 = 1;
const FLAG_METADATA: u8 = 2;
const FLAG_CHUNKED: u8 = 4;
const FLAG_DELETED: u8 = 8;
const FLAG_NAMED: u8 = 16;
const FLAGS: u8 = FLAG_EXPIRATION | FLAG_METADATA | FLAG_CHUNKED | FLAG_DELETED | FLAG_NAMED;

pub fn entry(namespace: NamespaceId, key: &[u8]) -> Bytes {
    let mut row = BytesMut::with_capacity(entry_length(key));
    row.put_slice(&namespace.to_bytes());
    row.put_slice(key);
    row.freeze()
}

pub fn entry_length(key: &[u8]) -> usize {
    16 + key.len()
}

/// The same, cut off the end of a buffer that it shares with others.
pub fn put_entry(buffer: &mut BytesMut, namespace: NamespaceId, key: &[u8]) -> Bytes {
    debug_assert!(buffer.is_empty(), "what was put before has been cut off");
    buffer.reserve(entry_length(key));
    buffer.put_slice(&namespace.to_bytes());
    buffer.put_slice(key);
    buffer.split().freeze()
}

/// The namespace and the key of an entry's row.
pub fn parse_entry(row: &Bytes) -> Result<(NamespaceId, Key)> {
    let Some((namespace, key)) = row.split_first_chunk::<16>() else {
        return Err(garbled("the key of an entry", row));
    };
    let key = Key::new(row.slice_ref(key)).map_err(|e| garbled("the key of an entry", row).with_source(e))?;
    Ok((NamespaceId::from_bytes(*namespace), key))
}

impl Record {
    /// Of a record's bytes at most so many are neither metadata nor value nor named writes.
    pub const LENGTH_BESIDE_CONTENT_MAX: usize = 38;
    /// Named writes that a record remembers, at most.
    pub const NAMED_MAX: usize = 8;
    pub const NAMED_BYTES_MAX: usize = 1 + 16 * Record::NAMED_MAX;

    pub fn encode(&self) -> Bytes {
        self.encode_into(&mut BytesMut::new())
    }

    /// The same, cut off the end of a buffer that it shares with others.
    pub fn encode_into(&self, row: &mut BytesMut) -> Bytes {
        debug_assert!(row.is_empty(), "what was put before has been cut off");
        let inline = if let Place::Inline(value) = &self.place { value.len() } else { 0 };
        let metadata_length = self.metadata.as_ref().map_or(0, Bytes::len);
        let named = if self.named.is_empty() { 0 } else { Record::NAMED_BYTES_MAX };
        let length_max = Record::LENGTH_BESIDE_CONTENT_MAX + metadata_length + inline + named;
        row.reserve(length_max);
        row.put_u8(RECORD_FORMAT);
        row.put_u64(self.version.as_u64());
        let place = match self.place {
            Place::Inline(_) => 0,
            Place::Chunked(_) => FLAG_CHUNKED,
            Place::Deleted => FLAG_DELETED,
        };
        row.put_u8(
            (if self.expiration.is_some() { FLAG_EXPIRATION } else { 0 })
                | (if self.metadata.is_some() { FLAG_METADATA } else { 0 })
                | (if self.named.is_empty() { 0 } else { FLAG_NAMED })
                | place,
        );
        if let Some(expiration) = self.expiration {
            row.put_u64(expiration);
        }
        if let Some(metadata) = &self.metadata {
            row.put_u32(u32::try_from(metadata.len()).expect("metadata is far shorter than 4 GiB"));
            row.put_slice(metadata);
        }
        if !self.named.is_empty() {
            assert!(self.named.len() <= Record::NAMED_MAX, "only the last writes are remembered");
            row.put_u8(self.named.len() as u8);
            for NamedWrite { id, version } in &self.named {
                row.put_u64(id.0);
                row.put_u64(version.as_u64());
            }
        }
        row.put_u64(self.length);
        match &self.place {
            Place::Inline(value) => {
                assert_eq!(value.len() as u64, self.length, "an inline value has the length that its record says");
                row.put_slice(value);
            }
            Place::Chunked(id) => row.put_u64(id.0),
            Place::Deleted => {}
        }
        debug_assert!(row.len() <= length_max, "a record is as long as was reckoned");
        row.split().freeze()
    }

    /// Reads the value of the entry's row `key`, without copying metadata or value.
    pub fn decode(key: &[u8], value: &Bytes) -> Result<Record> {
        Record::decode_parts(value).ok_or_else(|| garbled("the record of an entry", key))
    }

    fn decode_parts(row: &Bytes) -> Option<Record> {
        let mut rest = &row[..];
        if take::<1>(&mut rest)? != [RECORD_FORMAT] {
            return None;
        }
        let version = u64::from_be_bytes(take(&mut rest)?);
        let [flags] = take::<1>(&mut rest)?;
        if version >> 63 != 0 || flags & !FLAGS != 0 {
            return None;
        }
        let expiration = if flags & FLAG_EXPIRATION != 0 { Some(u64::from_be_bytes(take(&mut rest)?)) } else { None };
        let metadata = if flags & FLAG_METADATA != 0 {
            let length = u32::from_be_bytes(take(&mut rest)?) as usize;
            let (metadata, after) = rest.split_at_checked(length)?;
            rest = after;
            Some(row.slice_ref(metadata))
        } else {
            None
        };
        let mut named = Vec::new();
        if flags & FLAG_NAMED != 0 {
            let [count] = take::<1>(&mut rest)?;
            if !(1..=Record::NAMED_MAX).contains(&usize::from(count)) {
                return None;
            }
            for _ in 0..count {
                let id = WriteId(u64::from_be_bytes(take(&mut rest)?));
                let version = u64::from_be_bytes(take(&mut rest)?);
                if version >> 63 != 0 {
                    return None;
                }
                named.push(NamedWrite { id, version: Version::from_u64(version) });
            }
        }
        let length = u64::from_be_bytes(take(&mut rest)?);
        let place = if flags & FLAG_DELETED != 0 {
            if !rest.is_empty() || length != 0 || flags & (FLAG_CHUNKED | FLAG_METADATA | FLAG_EXPIRATION) != 0 {
                return None;
            }
            Place::Deleted
        } else if flags & FLAG_CHUNKED != 0 {
            let id = ValueId(u64::from_be_bytes(take(&mut rest)?));
            if !rest.is_empty() || length > limits::VALUE_BYTES_MAX {
                return None;
            }
            Place::Chunked(id)
        } else {
            if rest.len() as u64 != length {
                return None;
            }
            Place::Inline(row.slice_ref(rest))
        };
        Some(Record { version: Version::from_u64(version), expiration, metadata, length, place, named })
    }
}

/// **Chunk**: the bytes of a value, [`limits::CHUNK_BYTES`] in each row but the last. Written before the entry that names them, removed
/// after it has gone.
///
/// Key: value id (8 bytes), number of the chunk from 0 (4). Value: the bytes.
pub fn chunk(id: ValueId, number: u32) -> Bytes {
    let mut row = BytesMut::with_capacity(12);
    row.put_u64(id.0);
    row.put_u32(number);
    row.freeze()
}

/// How many chunks a value has.
pub fn chunks_of(length: u64) -> u32 {
    u32::try_from(length.div_ceil(limits::CHUNK_BYTES as u64)).unwrap_or(u32::MAX)
}

/// **Expiry**: one per entry that expires, as long as it has that expiration.
///
/// Key: expiration in Unix seconds (8 bytes), namespace (16), key. Value: empty.
pub fn expiry(expiration: u64, namespace: NamespaceId, key: &[u8]) -> Bytes {
    let mut row = BytesMut::with_capacity(24 + key.len());
    row.put_u64(expiration);
    row.put_slice(&namespace.to_bytes());
    row.put_slice(key);
    row.freeze()
}

pub fn parse_expiry(row: &Bytes) -> Result<(u64, NamespaceId, Key)> {
    let Some((expiration, rest)) = row.split_first_chunk::<8>() else {
        return Err(garbled("the key of an expiry", row));
    };
    let (namespace, key) =
        parse_entry(&row.slice_ref(rest)).map_err(|e| garbled("the key of an expiry", row).with_source(e))?;
    Ok((u64::from_be_bytes(*expiration), namespace, key))
}

/// Before which all rows of entries that have expired at `now` (Unix seconds) sort.
pub fn expiry_end(now: u64) -> Bytes {
    Bytes::copy_from_slice(&now.saturating_add(1).to_be_bytes())
}

/// **Reclaim**: what is to be removed in the background, and what would have to be after a crash.
///
/// Key: kind (1 byte), then a value id (8) or a namespace (16). Value: for a value, the number of its chunks at most (4); for a namespace empty.
///
/// In a shared store nobody knows who reads a value, or whether a write that names it is still under way. So there both kinds of values are one: a value that
/// may be garbage, which is looked at a while later (kind 4; its key has before the id when it was put, in milliseconds (8), and its value after the number the
/// row of the entry that might name it).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reclaim {
    /// A value that no entry names any more. Put with the change that took its entry away, removed with its chunks.
    Value(ValueId),
    /// A value that is arriving. Put before its first chunk; removed by the commit of its entry, or with its chunks when it is abandoned.
    Upload(ValueId),
    /// A namespace that was removed, and may still have entries. Put with its removal, removed once it has none.
    Namespace(NamespaceId),
    /// A value that an entry may name or not, put in this millisecond.
    Doubtful { at: u64, id: ValueId },
}

const RECLAIM_VALUE: u8 = 1;
const RECLAIM_UPLOAD: u8 = 2;
const RECLAIM_NAMESPACE: u8 = 3;
const RECLAIM_DOUBTFUL: u8 = 4;

impl Reclaim {
    pub fn row(self) -> Bytes {
        let mut row = BytesMut::with_capacity(17);
        match self {
            Reclaim::Value(id) => {
                row.put_u8(RECLAIM_VALUE);
                row.put_u64(id.0);
            }
            Reclaim::Upload(id) => {
                row.put_u8(RECLAIM_UPLOAD);
                row.put_u64(id.0);
            }
            Reclaim::Namespace(namespace) => {
                row.put_u8(RECLAIM_NAMESPACE);
                row.put_slice(&namespace.to_bytes());
            }
            Reclaim::Doubtful { at, id } => {
                row.put_u8(RECLAIM_DOUBTFUL);
                row.put_u64(at);
                row.put_u64(id.0);
            }
        }
        row.freeze()
    }

    /// Before which all rows of doubtful values sort that were put before this millisecond.
    pub fn doubtful_end(at: u64) -> Bytes {
        let mut row = BytesMut::with_capacity(9);
        row.put_u8(RECLAIM_DOUBTFUL);
        row.put_u64(at);
        row.freeze()
    }

    pub fn parse(row: &[u8]) -> Result<Reclaim> {
        let parsed = match row.split_first() {
            Some((&RECLAIM_VALUE, id)) => id.try_into().ok().map(|id| Reclaim::Value(ValueId(u64::from_be_bytes(id)))),
            Some((&RECLAIM_UPLOAD, id)) => {
                id.try_into().ok().map(|id| Reclaim::Upload(ValueId(u64::from_be_bytes(id))))
            }
            Some((&RECLAIM_NAMESPACE, id)) => {
                id.try_into().ok().map(|id| Reclaim::Namespace(NamespaceId::from_bytes(id)))
            }
            Some((&RECLAIM_DOUBTFUL, rest)) => <&[u8; 16]>::try_from(rest).ok().map(|rest| {
                let (at, id) = rest.split_at(8);
                let number = |bytes: &[u8]| bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
                Reclaim::Doubtful { at: number(at), id: ValueId(number(id)) }
            }),
            _ => None,
        };
        parsed.ok_or_else(|| garbled("the key of what to reclaim", row))
    }
}

/// The number of chunks in the row of a value to reclaim.
pub fn encode_chunks(chunks: u32) -> Bytes {
    Bytes::copy_from_slice(&chunks.to_be_bytes())
}

pub fn decode_chunks(key: &[u8], value: &[u8]) -> Result<u32> {
    let chunks = value.try_into().ok().map(u32::from_be_bytes);
    chunks
        .filter(|chunks| *chunks <= chunks_of(limits::VALUE_BYTES_MAX))
        .ok_or_else(|| garbled("a value to reclaim", key))
}

/// The value of a doubtful value's row: the number of its chunks at most, and the row of the entry that may name it.
pub fn encode_doubtful(chunks: u32, entry: &[u8]) -> Bytes {
    let mut value = BytesMut::with_capacity(4 + entry.len());
    value.put_u32(chunks);
    value.put_slice(entry);
    value.freeze()
}

pub fn decode_doubtful(key: &[u8], value: &Bytes) -> Result<(u32, Bytes)> {
    let mut rest = &value[..];
    let chunks = take::<4>(&mut rest).ok_or_else(|| garbled("a value to reclaim", key))?;
    Ok((decode_chunks(key, &chunks)?, value.slice_ref(rest)))
}

/// **Purge**: one per commit that changed something, for as long as the purge log goes back.
///
/// Key: number of its first item (8 bytes). Value: format (1 byte, 1), epoch of the process that committed (8), then the items in order: kind (1),
/// namespace (16), version (8), and for kind 1, a key's change, length of the key (2) and key; kind 2 is a namespace's removal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Purges {
    pub epoch: u64,
    pub items: Vec<PurgeItem>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PurgeItem {
    Key { namespace: NamespaceId, key: Key, version: Version },
    Namespace { namespace: NamespaceId, version: Version },
}

const PURGES_FORMAT: u8 = 1;
const PURGE_KEY: u8 = 1;
const PURGE_NAMESPACE: u8 = 2;

impl Purges {
    pub fn row(first: u64) -> Bytes {
        encode_number(first)
    }

    pub fn encode(&self) -> Bytes {
        let length_max =
            |item: &PurgeItem| 27 + if let PurgeItem::Key { key, .. } = item { key.as_bytes().len() } else { 0 };
        let mut row = BytesMut::with_capacity(9 + self.items.iter().map(length_max).sum::<usize>());
        row.put_u8(PURGES_FORMAT);
        row.put_u64(self.epoch);
        for item in &self.items {
            let (kind, namespace, version) = match item {
                PurgeItem::Key { namespace, version, .. } => (PURGE_KEY, namespace, version),
                PurgeItem::Namespace { namespace, version } => (PURGE_NAMESPACE, namespace, version),
            };
            row.put_u8(kind);
            row.put_slice(&namespace.to_bytes());
            row.put_u64(version.as_u64());
            if let PurgeItem::Key { key, .. } = item {
                row.put_u16(u16::try_from(key.as_bytes().len()).expect("a key has at most 512 bytes"));
                row.put_slice(key.as_bytes());
            }
        }
        row.freeze()
    }

    /// Reads the value of the row `key`.
    pub fn decode(key: &[u8], value: &Bytes) -> Result<Purges> {
        Purges::decode_parts(value).ok_or_else(|| garbled("a part of the purge log", key))
    }

    fn decode_parts(row: &Bytes) -> Option<Purges> {
        let mut rest = &row[..];
        if take::<1>(&mut rest)? != [PURGES_FORMAT] {
            return None;
        }
        let epoch = u64::from_be_bytes(take(&mut rest)?);
        let mut items = Vec::new();
        while !rest.is_empty() {
            let [kind] = take::<1>(&mut rest)?;
            let namespace = NamespaceId::from_bytes(take(&mut rest)?);
            let version = u64::from_be_bytes(take(&mut rest)?);
            if version >> 63 != 0 {
                return None;
            }
            let version = Version::from_u64(version);
            items.push(match kind {
                PURGE_KEY => {
                    let length = u16::from_be_bytes(take(&mut rest)?);
                    let (key, after) = rest.split_at_checked(length.into())?;
                    rest = after;
                    PurgeItem::Key { namespace, key: Key::new(row.slice_ref(key)).ok()?, version }
                }
                PURGE_NAMESPACE => PurgeItem::Namespace { namespace, version },
                _ => return None,
            });
        }
        Some(Purges { epoch, items })
    }
}

/// **Meta**: one row per fact about the store, under its name.
///
/// `last-version`: the highest version in the store (8 bytes), put with every batch that mints one.
/// `starts`: how often an origin has started on the store (8 bytes).
/// `cursor-secret`: the key that authenticates cursors (32 bytes), put once.
/// `copy`: how far the copy has come that made the store, if one did (`copy.rs`).
pub mod meta {
    pub const LAST_VERSION: &[u8] = b"last-version";
    pub const STARTS: &[u8] = b"starts";
    pub const CURSOR_SECRET: &[u8] = b"cursor-secret";
    pub const COPY: &[u8] = b"copy";
}

/// The agreed records of a shared store, beside [`Members`].
///
/// `cursor-secret`: as in an embedded store's **Meta**.
/// `copy`: likewise.
pub mod agreed {
    pub const CURSOR_SECRET: &str = "cursor-secret";
    pub const COPY: &str = "copy";
}

/// Value ids are the number of the start that minted them, and a counter below it. So no two starts on a store mint the same.
pub const VALUE_COUNTER_BITS: u32 = 40;
/// The number of a start is below this.
pub const STARTS_MAX: u64 = 1 << (64 - VALUE_COUNTER_BITS);

/// The first id that a start mints.
pub fn first_value(starts: u64) -> ValueId {
    debug_assert!(starts < STARTS_MAX, "whoever starts looks at that");
    ValueId(starts << VALUE_COUNTER_BITS)
}

pub fn encode_number(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

pub fn decode_number(key: &[u8], value: &[u8]) -> Result<u64> {
    value.try_into().map(u64::from_be_bytes).map_err(|_| garbled("a fact about the store", key))
}

/// The first key after this one: where a scan goes on.
pub fn after(key: &[u8]) -> Bytes {
    [key, &b"\0"[..]].concat().into()
}

/// The first key after all that begin with `prefix`; empty, which is a scan's "to the end", if there is none.
pub fn after_prefix(prefix: &[u8]) -> Bytes {
    match prefix.iter().rposition(|byte| *byte != 0xff) {
        Some(last) => {
            let mut end = prefix[..=last].to_vec();
            end[last] += 1;
            end.into()
        }
        None => Bytes::new(),
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*taken)
}

fn garbled(what: &str, key: &[u8]) -> Error {
    Error::internal(format!("{what} is garbled in the store, in the row '{}'", key.escape_ascii()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::Kind;

    fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
        proptest::collection::vec(any::<u8>(), 0..max).prop_map(Bytes::from)
    }

    fn purge_item() -> impl Strategy<Value = PurgeItem> {
        (any::<u128>(), 0u64..1 << 63, proptest::option::of("[a-z]{1,20}")).prop_map(|(namespace, version, key)| {
            let (namespace, version) = (NamespaceId::from_u128(namespace), Version::from_u64(version));
            match key {
                Some(key) => PurgeItem::Key { namespace, key: Key::new(key).expect("letters make a key"), version },
                None => PurgeItem::Namespace { namespace, version },
            }
        })
    }

    fn record() -> impl Strategy<Value = Record> {
        let place = prop_oneof![
            bytes(600).prop_map(|value| (value.len() as u64, Place::Inline(value))),
            (0..=limits::VALUE_BYTES_MAX, any::<u64>()).prop_map(|(length, id)| (length, Place::Chunked(ValueId(id)))),
        ];
        let named = (any::<u64>(), 0u64..1 << 63)
            .prop_map(|(id, version)| NamedWrite { id: WriteId(id), version: Version::from_u64(version) });
        let named = proptest::collection::vec(named, 0..=Record::NAMED_MAX);
        let kept = (any::<Option<u64>>(), proptest::option::of(bytes(1100)), place);
        let kept = prop_oneof![9 => kept, 1 => Just((None, None, (0, Place::Deleted)))];
        (0u64..1 << 63, named, kept).prop_map(|(version, named, (expiration, metadata, (length, place)))| Record {
            version: Version::from_u64(version),
            expiration,
            metadata,
            length,
            place,
            named,
        })
    }

    proptest! {
        #[test]
        fn records_survive_their_bytes(record in record()) {
            prop_assert_eq!(Record::decode(b"k", &record.encode()).unwrap(), record);
        }

        #[test]
        fn a_cut_record_is_garbled(record in record(), cut in 1usize..40) {
            let encoded = record.encode();
            if cut < encoded.len() {
                prop_assert!(Record::decode(b"k", &encoded.slice(..encoded.len() - cut)).is_err());
            }
        }

        #[test]
        fn keys_survive_their_rows(namespace: u128, key in "\\PC{1,40}", expiration: u64) {
            prop_assume!(key != "." && key != "..");
            let namespace = NamespaceId::from_u128(namespace);
            let key = Key::new(key).unwrap();
            let row = entry(namespace, key.as_bytes());
            prop_assert_eq!(parse_entry(&row).unwrap(), (namespace, key.clone()));
            let row = expiry(expiration, namespace, key.as_bytes());
            prop_assert_eq!(parse_expiry(&row).unwrap(), (expiration, namespace, key));
        }

        #[test]
        fn what_to_reclaim_survives_its_row(id: u64, namespace: u128, chunks in 0u32..=400) {
            let namespace = NamespaceId::from_u128(namespace);
            let doubtful = Reclaim::Doubtful { at: id.rotate_left(17), id: ValueId(id) };
            for reclaim in [Reclaim::Value(ValueId(id)), Reclaim::Upload(ValueId(id)), Reclaim::Namespace(namespace), doubtful] {
                prop_assert_eq!(Reclaim::parse(&reclaim.row()).unwrap(), reclaim);
            }
            prop_assert_eq!(decode_chunks(b"k", &encode_chunks(chunks)).unwrap(), chunks);
            let entry = Bytes::copy_from_slice(&namespace.to_bytes());
            prop_assert_eq!(decode_doubtful(b"k", &encode_doubtful(chunks, &entry)).unwrap(), (chunks, entry));
            prop_assert_eq!(decode_number(b"k", &encode_number(id)).unwrap(), id);
        }

        #[test]
        fn the_purge_log_survives_its_rows(epoch: u64, items in proptest::collection::vec(purge_item(), 0..5)) {
            let purges = Purges { epoch, items };
            prop_assert_eq!(Purges::decode(b"k", &purges.encode()).unwrap(), purges);
        }

        #[test]
        fn no_bytes_make_a_decoder_panic(row in bytes(80)) {
            let errors = [
                Purges::decode(&row, &row).err(),
                Record::decode(&row, &row).err(),
                parse_entry(&row).err(),
                parse_expiry(&row).err(),
                Reclaim::parse(&row).err(),
                decode_chunks(&row, &row).err(),
                decode_number(&row, &row).err(),
            ];
            for error in errors.into_iter().flatten() {
                prop_assert_eq!(error.kind, Kind::Internal);
                prop_assert!(error.message.contains(&row.escape_ascii().to_string()));
            }
        }

        #[test]
        fn no_change_to_a_record_makes_its_decoder_panic(record in record(), at: prop::sample::Index, to: u8) {
            let mut encoded = record.encode().to_vec();
            let at = at.index(encoded.len());
            encoded[at] = to;
            if let Ok(decoded) = Record::decode(b"k", &encoded.clone().into()) {
                prop_assert_eq!(decoded.encode(), encoded);
            }
        }

        #[test]
        fn a_prefix_ends_before_the_first_key_after_it(prefix in bytes(6), key in bytes(6)) {
            let end = after_prefix(&prefix);
            let within = key >= prefix && (end.is_empty() || key < end);
            prop_assert_eq!(within, key.starts_with(&prefix));
        }
    }

    #[test]
    fn entries_sort_by_namespace_then_key_and_expiries_by_time() {
        let (low, high) = (NamespaceId::from_u128(1), NamespaceId::from_u128(2));
        assert!(entry(low, b"z") < entry(high, b"a"));
        assert!(entry(low, b"a") < entry(low, b"aa"));
        assert!(expiry(9, high, b"z") < expiry(10, low, b"a"));
        assert!(expiry(10, high, &[0xff; 512]) < expiry_end(10));
        assert!(expiry(11, low, b"a") >= expiry_end(10));
        assert!(chunk(ValueId(1), 400) < chunk(ValueId(2), 0));
        assert!(chunk(ValueId(1), 2) < chunk(ValueId(1), 10));
    }

    #[test]
    fn a_full_value_has_four_hundred_chunks() {
        assert_eq!(chunks_of(limits::VALUE_BYTES_MAX), 400);
        assert_eq!(chunks_of(limits::CHUNK_BYTES as u64), 1);
        assert_eq!(chunks_of(limits::CHUNK_BYTES as u64 + 1), 2);
        assert_eq!(chunks_of(0), 0);
    }
}
