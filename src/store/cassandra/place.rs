//! Where each row lies in the database: which of its tables, which partition, under which clustering key.
//!
//! A row's key begins with what its prefix is ([`Table::prefix_bytes`]): the namespace, the value, the origin. A prefix' rows are spread over partitions, so that
//! none grows without bound, either by a hash (entries, and the small tables) or in order (chunks, and intents); a partition holds its rows in byte order. The
//! hash and the numbers here are part of the format: a change of one loses rows.

use bytes::{BufMut, Bytes, BytesMut};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    error::{Error, Result},
    store::Table,
};

/// The tables of the database. Each has the columns `space`, `bucket` (both are the partition), `key` and `value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Family {
    Entry,
    Chunk,
    /// All that is small, with the table's mark before each space.
    Other,
}

impl Family {
    pub(super) const ALL: [Family; 3] = [Family::Entry, Family::Chunk, Family::Other];

    pub(super) fn name(self) -> &'static str {
        match self {
            Family::Entry => "entry",
            Family::Chunk => "chunk",
            Family::Other => "other",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Partition {
    pub(super) family: Family,
    pub(super) space: Bytes,
    pub(super) bucket: i64,
}

/// How the rows of a prefix are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spread {
    /// Over so many partitions by a hash, so that all have to be asked for what is next.
    Hashed { buckets: u16 },
    /// In order: all rows of a partition come before those of the next one.
    Ordered,
}

/// A row's key, or the bound of a scan, in its two parts.
pub(super) fn split(table: Table, key: &[u8]) -> (&[u8], &[u8]) {
    key.split_at(table.prefix_bytes().min(key.len()))
}

/// Of the small tables, which have no prefix that could have a number of its own.
pub(super) const BUCKETS_OF_OTHERS: u16 = 16;
/// Chunks a partition: 4 MiB.
const CHUNKS_PER_PARTITION: u64 = 64;
/// Values have 400 chunks at most, which six partitions hold; whatever else there may be is in the last one.
pub(super) const CHUNK_PARTITION_LAST: i64 = 7;
/// One holds a batch of writes, so this is what a minute or less of writing leaves.
const INTENTS_PER_PARTITION: u64 = 64;

/// `None` where the prefix has a number of buckets of its own.
pub(super) fn spread(table: Table) -> Option<Spread> {
    match table {
        Table::Entry => None,
        Table::Chunk | Table::Intent => Some(Spread::Ordered),
        Table::Expiry | Table::Reclaim | Table::Meta | Table::Purge => {
            Some(Spread::Hashed { buckets: BUCKETS_OF_OTHERS })
        }
    }
}

pub(super) fn family(table: Table) -> Family {
    match table {
        Table::Entry => Family::Entry,
        Table::Chunk => Family::Chunk,
        Table::Expiry | Table::Reclaim | Table::Meta | Table::Purge | Table::Intent => Family::Other,
    }
}

pub(super) fn space(table: Table, prefix: &[u8]) -> Bytes {
    let mark = match table {
        Table::Entry | Table::Chunk => return Bytes::copy_from_slice(prefix),
        Table::Expiry => 1,
        Table::Reclaim => 2,
        Table::Meta => 3,
        Table::Purge => 4,
        Table::Intent => 5,
    };
    marked(mark, prefix)
}

/// Where the numbers of the partitions stand that an origin's intents have, each as a row: nobody could tell otherwise where they end.
pub(super) fn intent_partitions(prefix: &[u8]) -> Partition {
    Partition { family: Family::Other, space: marked(6, prefix), bucket: 0 }
}

fn marked(mark: u8, prefix: &[u8]) -> Bytes {
    let mut space = BytesMut::with_capacity(1 + prefix.len());
    space.put_u8(mark);
    space.put_slice(prefix);
    space.freeze()
}

/// The bucket of a row, by the part of its key behind the prefix.
pub(super) fn bucket(table: Table, spread: Spread, rest: &[u8]) -> i64 {
    match spread {
        Spread::Hashed { buckets } => {
            i64::try_from(xxh3_64(rest) % u64::from(buckets)).expect("it is less than 65,536")
        }
        Spread::Ordered => ordered_bucket(table, rest),
    }
}

/// Never less than that of a key that sorts before it.
fn ordered_bucket(table: Table, rest: &[u8]) -> i64 {
    match table {
        Table::Chunk => {
            let part = u64::from(u32::from_be_bytes(padded(rest))) / CHUNKS_PER_PARTITION;
            i64::try_from(part).map_or(CHUNK_PARTITION_LAST, |part| part.min(CHUNK_PARTITION_LAST))
        }
        _ => {
            let part = u64::from_be_bytes(padded(rest)) / INTENTS_PER_PARTITION;
            i64::try_from(part).expect("a sixty-fourth of 64 bits has 58")
        }
    }
}

fn padded<const N: usize>(bytes: &[u8]) -> [u8; N] {
    std::array::from_fn(|at| bytes.get(at).copied().unwrap_or(0))
}

/// What a scan is about: a prefix, and the bounds within it (`None` is its end).
pub(super) struct Span<'a> {
    pub(super) prefix: &'a [u8],
    pub(super) from: &'a [u8],
    pub(super) to: Option<&'a [u8]>,
}

/// `None` for a scan that can't find anything.
pub(super) fn span<'a>(table: Table, from: &'a [u8], to: &'a [u8]) -> Result<Option<Span<'a>>> {
    if !to.is_empty() && from >= to {
        return Ok(None);
    }
    let (prefix, from_rest) = split(table, from);
    if prefix.len() < table.prefix_bytes() {
        return Err(Error::internal(format!(
            "scanning the table {} from '{}': in a shared store that has {} bytes at least",
            table.name(),
            from.escape_ascii(),
            table.prefix_bytes()
        )));
    }
    // What comes after `from` without its prefix comes after all that have it.
    let to = to.strip_prefix(prefix).filter(|_| !to.is_empty());
    Ok(Some(Span { prefix, from: from_rest, to }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::keys::{self, ValueId};

    #[test]
    fn the_format_stays_as_it_is() {
        let hashed = |rest: &[u8]| bucket(Table::Entry, Spread::Hashed { buckets: 16 }, rest);
        assert_eq!([hashed(b""), hashed(b"a"), hashed(b"user:1"), hashed(&[0xff; 40])], [2, 15, 1, 0]);
        let chunk =
            |number| bucket(Table::Chunk, Spread::Ordered, split(Table::Chunk, &keys::chunk(ValueId(1), number)).1);
        assert_eq!([chunk(0), chunk(63), chunk(64), chunk(399), chunk(u32::MAX)], [0, 0, 1, 6, 7]);
        let intent = |number: u64| bucket(Table::Intent, Spread::Ordered, &number.to_be_bytes());
        assert_eq!([intent(63), intent(64), intent(u64::MAX)], [0, 1, (1 << 58) - 1]);
        assert_eq!(space(Table::Intent, b"epoch")[..], b"\x05epoch"[..]);
        assert_eq!(space(Table::Entry, b"namespace")[..], b"namespace"[..]);
    }

    #[test]
    fn a_scan_stays_in_its_prefix() {
        let namespace = [7; 16];
        let key = |rest: &[u8]| [&namespace[..], rest].concat();
        let check = |from: &[u8], to: &[u8], expected: Option<(&[u8], Option<&[u8]>)>| {
            let found =
                span(Table::Entry, from, to).unwrap().map(|span| (span.from.to_vec(), span.to.map(<[u8]>::to_vec)));
            assert_eq!(found, expected.map(|(from, to)| (from.to_vec(), to.map(<[u8]>::to_vec))));
        };
        check(&key(b"a"), &key(b"b"), Some((b"a", Some(b"b"))));
        check(&key(b"a"), b"", Some((b"a", None)));
        check(&key(b""), &keys::after_prefix(&namespace), Some((b"", None)));
        check(&key(b"b"), &key(b"a"), None);
        check(&key(b"a"), &[9], Some((b"a", None)));
        assert!(span(Table::Entry, b"", b"").is_err());
        assert_eq!(span(Table::Reclaim, b"", b"").unwrap().unwrap().to, None);
    }

    proptest! {
        #[test]
        fn ordered_buckets_follow_the_order_of_keys(one: Vec<u8>, other: Vec<u8>, table in prop_oneof![Just(Table::Chunk), Just(Table::Intent)]) {
            let (less, more) = if one <= other { (one, other) } else { (other, one) };
            prop_assert!(bucket(table, Spread::Ordered, &less) <= bucket(table, Spread::Ordered, &more));
        }
    }
}
