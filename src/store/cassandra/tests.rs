//! How changes become what is written; on a ring what only a database does (`ring.rs`).

#[cfg(feature = "figures")]
mod figures;
mod ring;

use super::*;
use crate::{
    kv::Version,
    store::keys::{self, ValueId},
};

#[test]
fn a_row_outlives_its_expiration_by_the_margin_within_what_databases_allow() {
    let margin = Duration::from_secs(60);
    let now = 1_800_000_000;
    assert_eq!(time_to_live(None, now, margin), 0);
    assert_eq!(time_to_live(Some(now + 100), now, margin), 160);
    assert_eq!(time_to_live(Some(now - 100), now, margin), 60);
    assert_eq!(time_to_live(Some(EXPIRY_MAX - 61), now, margin), i32::try_from(EXPIRY_MAX - 1 - now).unwrap());
    assert_eq!(time_to_live(Some(EXPIRY_MAX - 60), now, margin), 0);
    assert_eq!(time_to_live(Some(u64::MAX), now, margin), 0);
    assert_eq!(time_to_live(Some(1_400_000_000), 0, margin), 0, "more than twenty years");
}

fn chunk(number: u32) -> Write {
    Write::Remove { key: keys::chunk(ValueId(1), number).slice(8..), timestamp: 7 }
}

#[test]
fn removals_of_chunks_that_follow_each_other_are_one() {
    let put = Write::Put { key: Bytes::from_static(&[0, 0, 0, 9]), value: Bytes::new(), timestamp: 7, ttl: 0 };
    let other = Write::Remove { key: Bytes::from_static(b"no number"), timestamp: 7 };
    let newer = Write::Remove { key: Bytes::from_static(&[0, 0, 0, 4]), timestamp: 8 };
    let mut writes = vec![chunk(3), chunk(1), put.clone(), chunk(2), chunk(7), newer.clone(), other.clone()];
    remove_runs(&mut writes);
    let run = Write::RemoveStretch {
        from: Bytes::from_static(&[0, 0, 0, 1]),
        to: Some(Bytes::from_static(&[0, 0, 0, 3, 0])),
        timestamp: 7,
    };
    assert_eq!(writes, [put, other, run, newer, chunk(7)]);
}

#[test]
fn what_is_written_together_is_bounded_in_bytes_and_rows() {
    let put = |bytes| Write::Put { key: Bytes::new(), value: vec![0; bytes].into(), timestamp: 1, ttl: 0 };
    let lengths = |sizes: &[usize]| {
        let writes: Vec<Write> = sizes.iter().map(|bytes| put(*bytes)).collect();
        pieces(&writes).iter().map(|piece| piece.len()).collect::<Vec<_>>()
    };
    assert_eq!(lengths(&[]), [0; 0]);
    assert_eq!(lengths(&[64 * 1024, 32 * 1024, 1]), [2, 1]);
    assert_eq!(lengths(&[1 << 20, 1 << 20, 1]), [1, 1, 1]);
    assert_eq!(lengths(&[1; 250]), [100, 100, 50]);
}

#[test]
fn of_the_changes_of_a_row_the_greatest_version_is_written() {
    let mut batch = Batch::default();
    let mut put = |key: &'static str, value: &'static str, version| {
        batch.version = Version::from_u64(version);
        batch.put(Table::Meta, key, value);
    };
    put("a", "1", 5);
    put("b", "1", 5);
    put("a", "2", 5);
    put("b", "2", 4);
    let written: Vec<_> = last_of_each_row(batch).map(|change| (change.key, change.value.unwrap())).collect();
    assert_eq!(written, [("b".into(), "1".into()), ("a".into(), Bytes::from("2"))]);
}
