//! **Intent**, in a shared store: what an origin is about to change, so that another can finish what it left undone.
//!
//! Key: epoch of the origin's feed (8 bytes), number of the batch (8). Value: format (1 byte, 1), then for each change its table (1), flags (1), version (8),
//! expires (8, with flag 1), length of its key (4), the key, and with flag 2 the length of its value (4) and the value.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{garbled, take};
use crate::{
    error::Result,
    kv::Version,
    store::{Batch, RowChange, Table},
};

/// The changes of one batch, as they are to be committed: each with its version, so that to do so twice is to do so once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Intent {
    pub changes: Vec<RowChange>,
}

const FORMAT: u8 = 1;
const FLAG_EXPIRES: u8 = 1;
const FLAG_VALUE: u8 = 2;

pub fn intent(epoch: u64, number: u64) -> Bytes {
    let mut row = BytesMut::with_capacity(16);
    row.put_u64(epoch);
    row.put_u64(number);
    row.freeze()
}

/// The bounds of all intents of an origin from this number on.
pub fn intents_from(epoch: u64, number: u64) -> (Bytes, Bytes) {
    (intent(epoch, number), super::after_prefix(&epoch.to_be_bytes()))
}

pub fn intent_number(row: &[u8]) -> Result<u64> {
    let number = row.split_first_chunk::<8>().and_then(|(_, number)| number.try_into().ok());
    number.map(u64::from_be_bytes).ok_or_else(|| garbled("the key of an intent", row))
}

impl Intent {
    pub fn encode(changes: &[RowChange]) -> Bytes {
        let length = |change: &RowChange| 26 + change.key.len() + change.value.as_ref().map_or(0, Bytes::len);
        let mut row = BytesMut::with_capacity(1 + changes.iter().map(length).sum::<usize>());
        row.put_u8(FORMAT);
        for RowChange { table, key, value, version, expires } in changes {
            row.put_u8(number_of(*table));
            row.put_u8(if expires.is_some() { FLAG_EXPIRES } else { 0 } | if value.is_some() { FLAG_VALUE } else { 0 });
            row.put_u64(version.as_u64());
            expires.iter().for_each(|expires| row.put_u64(*expires));
            put(&mut row, key);
            value.iter().for_each(|value| put(&mut row, value));
        }
        row.freeze()
    }

    /// Reads the value of the row `key`.
    pub fn decode(key: &[u8], value: &Bytes) -> Result<Intent> {
        Intent::decode_parts(value).ok_or_else(|| garbled("what an origin intended", key))
    }

    fn decode_parts(row: &Bytes) -> Option<Intent> {
        let mut rest = row.clone();
        if rest.try_get_u8().ok()? != FORMAT {
            return None;
        }
        let mut changes = Vec::new();
        while rest.has_remaining() {
            let table = table_of(rest.try_get_u8().ok()?)?;
            let flags = rest.try_get_u8().ok()?;
            let version = rest.try_get_u64().ok()?;
            if flags & !(FLAG_EXPIRES | FLAG_VALUE) != 0 || version >> 63 != 0 {
                return None;
            }
            let expires = if flags & FLAG_EXPIRES != 0 { Some(rest.try_get_u64().ok()?) } else { None };
            let key = get(&mut rest)?;
            let value = if flags & FLAG_VALUE != 0 { Some(get(&mut rest)?) } else { None };
            changes.push(RowChange { table, key, value, version: Version::from_u64(version), expires });
        }
        Some(Intent { changes })
    }

    pub fn into_batch(self) -> Batch {
        Batch { changes: self.changes, version: Version::ZERO }
    }
}

fn put(row: &mut BytesMut, bytes: &[u8]) {
    row.put_u32(u32::try_from(bytes.len()).expect("a row is far shorter than 4 GiB"));
    row.put_slice(bytes);
}

fn get(rest: &mut Bytes) -> Option<Bytes> {
    let mut head = &rest[..];
    let length = u32::from_be_bytes(take(&mut head)?) as usize;
    if head.len() < length {
        return None;
    }
    rest.advance(4);
    Some(rest.split_to(length))
}

/// As it is written; never another's.
fn number_of(table: Table) -> u8 {
    match table {
        Table::Entry => 1,
        Table::Chunk => 2,
        Table::Expiry => 3,
        Table::Reclaim => 4,
        Table::Meta => 5,
        Table::Purge => 6,
        Table::Intent => 7,
    }
}

fn table_of(number: u8) -> Option<Table> {
    Table::ALL.into_iter().find(|table| number_of(*table) == number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn change() -> impl Strategy<Value = RowChange> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from);
        let table = proptest::sample::select(&Table::ALL[..]);
        (table, bytes(), proptest::option::of(bytes()), 0u64..1 << 63, any::<Option<u64>>()).prop_map(
            |(table, key, value, version, expires)| RowChange {
                table,
                key,
                value,
                version: Version::from_u64(version),
                expires,
            },
        )
    }

    proptest! {
        #[test]
        fn intents_survive_their_rows(changes in proptest::collection::vec(change(), 0..6), epoch: u64, number: u64) {
            let row = intent(epoch, number);
            prop_assert_eq!(intent_number(&row).unwrap(), number);
            prop_assert_eq!(Intent::decode(&row, &Intent::encode(&changes)).unwrap().changes, changes);
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(row in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Intent::decode(b"k", &row.clone().into());
            let _ = intent_number(&row);
        }
    }

    #[test]
    fn the_intents_of_an_origin_are_one_range() {
        let (from, to) = intents_from(7, 3);
        assert!(from <= intent(7, 3) && intent(7, u64::MAX) < to);
        assert!(intent(7, 2) < from && intent(8, 0) >= to && intent(6, u64::MAX) < from);
        let (_, to) = intents_from(u64::MAX, 0);
        assert!(to.is_empty());
    }
}
