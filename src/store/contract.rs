//! What every store must do, checked for each of them; then what embedded ones alone promise, and what shared ones do.
//!
//! A check gets a store and, to look at what a restart finds, a way to close and open it again. Those of a store in Cassandra need a ring: they are ignored
//! unless asked for, and then fail without one (`tests/ring`, whose nodes `KVASAR_TEST_CASSANDRA` names; `./test` does both).

pub(super) mod shared;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use proptest::{prelude::*, strategy::ValueTree as _, test_runner::TestRunner};

use super::{Batch, Durability, Store, Table, disk::DiskStore, memory::MemoryStore};

/// A store under test, with what is needed to open it again.
trait Bench: Send {
    fn store(&self) -> Arc<dyn Store>;
    /// Closes the store and opens what it left.
    fn reopen(&mut self);
}

struct Disk {
    dir: tempfile::TempDir,
    /// Above what scans remember where nothing was.
    costly: Duration,
    store: Option<Arc<DiskStore>>,
}

impl Disk {
    fn start() -> Disk {
        Disk::remembering(Duration::from_millis(1))
    }

    fn remembering(costly: Duration) -> Disk {
        let mut disk = Disk { dir: tempfile::tempdir().unwrap(), costly, store: None };
        disk.reopen();
        disk
    }
}

impl Bench for Disk {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone().unwrap()
    }

    fn reopen(&mut self) {
        if let Some(store) = self.store.take() {
            assert!(Arc::into_inner(store).is_some(), "a check still holds the store that it reopens");
        }
        self.store = Some(Arc::new(DiskStore::open_remembering(self.dir.path(), 1 << 20, self.costly).unwrap()));
    }
}

/// The disk store as a thread of its own uses it, and with scans that remember each place where nothing was.
struct InPlace(Disk);

impl InPlace {
    fn start() -> InPlace {
        InPlace(Disk::remembering(Duration::ZERO))
    }
}

impl Bench for InPlace {
    fn store(&self) -> Arc<dyn Store> {
        self.0.store().in_place().expect("a disk blocks")
    }

    fn reopen(&mut self) {
        self.0.reopen();
    }
}

struct Memory {
    store: Arc<MemoryStore>,
}

impl Memory {
    fn start() -> Memory {
        Memory { store: Arc::new(MemoryStore::default()) }
    }
}

impl Bench for Memory {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    /// The harsher way: nothing is flushed on the way down.
    fn reopen(&mut self) {
        self.store = Arc::new(self.store.crash());
    }
}

/// The checks as tests of one store, made by `$start`.
macro_rules! checked {
    ($start:expr => $($check:ident),* $(,)?) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $check() {
            super::super::$check(&mut $start).await;
        })*
    };
}

macro_rules! checked_on_a_ring {
    ($($check:ident),* $(,)?) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        #[ignore = "needs a ring of Cassandra, which ./test starts (tests/ring)"]
        async fn $check() {
            super::super::$check(&mut super::super::shared::Cassandra::start().await).await;
        })*
    };
}

/// `all` are the checks of every store. What stands behind them holds for some.
macro_rules! contract {
    (all { $($all:ident),* $(,)? } embedded { $($embedded:ident),* $(,)? } shared { $($shared:ident),* $(,)? }) => {
        mod disk {
            mod all { checked! { crate::store::contract::Disk::start() => $($all),* } }
            mod embedded { checked! { crate::store::contract::Disk::start() => $($embedded),* } }
        }

        mod in_place {
            mod all { checked! { crate::store::contract::InPlace::start() => $($all),* } }
            mod embedded { checked! { crate::store::contract::InPlace::start() => $($embedded),* } }
        }

        mod memory {
            mod all { checked! { crate::store::contract::Memory::start() => $($all),* } }
            mod embedded { checked! { crate::store::contract::Memory::start() => $($embedded),* } }
        }

        mod memory_shared {
            mod all { checked! { crate::store::contract::shared::Memory::start() => $($all),* } }
            mod shared { checked! { crate::store::contract::shared::Memory::start() => $($shared),* } }
        }

        mod cassandra {
            mod all { checked_on_a_ring! { $($all),* } }
            mod shared { checked_on_a_ring! { $($shared),* } }
        }
    };
}

contract! { all {
    a_row_is_read_as_it_was_put,
    a_missing_row_is_none,
    a_removed_row_is_gone,
    removing_a_missing_row_is_fine,
    tables_are_apart,
    the_last_change_of_a_row_in_a_batch_wins,
    many_rows_are_read_in_the_order_asked,
    keys_and_values_are_any_bytes,
    a_large_value_is_read_whole,
    a_scan_is_in_byte_order_within_its_bounds,
    a_scan_stops_at_its_limit,
    a_scan_to_nowhere_reaches_the_tables_end,
    a_scan_of_an_empty_range_is_empty,
    a_scan_of_each_table_is_in_byte_order,
    a_scan_finds_what_was_put_before_it_and_nothing_removed,
    synced_rows_survive_a_restart,
    a_synced_batch_covers_the_buffered_ones_before_it,
    an_empty_synced_batch_covers_the_buffered_ones_before_it,
    overwrites_and_removals_survive_a_restart,
    writers_at_once_lose_nothing,
    any_history_reads_like_the_model,
} embedded {
    // Rows of a shared store change one by one, and lie on different machines, so nobody sees all of them at one moment.
    a_scan_is_of_one_moment,
    a_batch_is_seen_whole_or_not_at_all,
} shared {
    the_greatest_version_stands_in_any_order_of_arrival,
    a_commit_may_be_repeated,
    a_row_goes_by_itself_after_it_expires,
    the_change_that_stands_says_when_a_row_expires,
    a_scan_stays_within_its_prefix,
    what_was_never_agreed_on_is_empty,
    a_record_is_replaced_at_its_revision_only,
    of_contenders_exactly_one_wins_each_revision,
    records_are_apart_and_outlive_a_restart,
} }

use shared::{
    a_commit_may_be_repeated, a_record_is_replaced_at_its_revision_only, a_row_goes_by_itself_after_it_expires,
    a_scan_stays_within_its_prefix, of_contenders_exactly_one_wins_each_revision,
    records_are_apart_and_outlive_a_restart, the_change_that_stands_says_when_a_row_expires,
    the_greatest_version_stands_in_any_order_of_arrival, what_was_never_agreed_on_is_empty,
};

fn put(table: Table, key: &[u8], value: &[u8]) -> Batch {
    let mut batch = Batch::default();
    batch.put(table, key.to_vec(), value.to_vec());
    batch
}

async fn commit(store: &Arc<dyn Store>, batch: Batch) {
    store.commit(batch, Durability::Synced).await.unwrap();
}

async fn get(store: &Arc<dyn Store>, table: Table, key: &[u8]) -> Option<Vec<u8>> {
    store.get(table, key).await.unwrap().map(|value| value.to_vec())
}

async fn names(store: &Arc<dyn Store>, from: &[u8], to: &[u8], limit: usize) -> Vec<String> {
    let rows = store.scan(Table::Entry, from, to, limit).await.unwrap();
    rows.into_iter().map(|(key, _)| String::from_utf8(key.to_vec()).unwrap()).collect()
}

async fn with_entries(bench: &mut impl Bench, keys: &[&str]) -> Arc<dyn Store> {
    let store = bench.store();
    let mut batch = Batch::default();
    for key in keys {
        batch.put(Table::Entry, key.as_bytes().to_vec(), key.as_bytes().to_vec());
    }
    commit(&store, batch).await;
    store
}

async fn a_row_is_read_as_it_was_put(bench: &mut impl Bench) {
    let store = bench.store();
    for table in Table::ALL {
        commit(&store, put(table, b"k", table.name().as_bytes())).await;
        assert_eq!(get(&store, table, b"k").await.unwrap(), table.name().as_bytes());
    }
}

async fn a_missing_row_is_none(bench: &mut impl Bench) {
    let store = with_entries(bench, &["ab"]).await;
    for key in [&b"a"[..], b"abc", b"", b"b"] {
        assert_eq!(get(&store, Table::Entry, key).await, None);
    }
}

async fn a_removed_row_is_gone(bench: &mut impl Bench) {
    let store = with_entries(bench, &["a", "b"]).await;
    let mut batch = Batch::default();
    batch.remove(Table::Entry, "a");
    commit(&store, batch).await;
    assert_eq!(get(&store, Table::Entry, b"a").await, None);
    assert_eq!(names(&store, b"", b"", 10).await, ["b"]);
}

async fn removing_a_missing_row_is_fine(bench: &mut impl Bench) {
    let store = bench.store();
    let mut batch = Batch::default();
    batch.remove(Table::Entry, "a");
    commit(&store, batch).await;
    assert_eq!(get(&store, Table::Entry, b"a").await, None);
}

async fn tables_are_apart(bench: &mut impl Bench) {
    let store = bench.store();
    commit(&store, put(Table::Expiry, b"k", b"v")).await;
    assert_eq!(get(&store, Table::Entry, b"k").await, None);
    assert!(store.scan(Table::Reclaim, b"", b"", 10).await.unwrap().is_empty());
    assert!(store.scan(Table::Chunk, b"", b"", 10).await.unwrap().is_empty());
}

async fn the_last_change_of_a_row_in_a_batch_wins(bench: &mut impl Bench) {
    let store = with_entries(bench, &["removed", "put", "twice"]).await;
    let mut batch = Batch::default();
    batch.put(Table::Entry, "removed", "1");
    batch.remove(Table::Entry, "removed");
    batch.remove(Table::Entry, "put");
    batch.put(Table::Entry, "put", "2");
    batch.put(Table::Entry, "twice", "1");
    batch.put(Table::Entry, "twice", "2");
    // The same key in another table is another row.
    batch.put(Table::Meta, "removed", "kept");
    commit(&store, batch).await;
    assert_eq!(get(&store, Table::Entry, b"removed").await, None);
    assert_eq!(get(&store, Table::Entry, b"put").await.unwrap(), b"2");
    assert_eq!(get(&store, Table::Entry, b"twice").await.unwrap(), b"2");
    assert_eq!(get(&store, Table::Meta, b"removed").await.unwrap(), b"kept");
    assert_eq!(names(&store, b"", b"", 10).await, ["put", "twice"]);
}

async fn many_rows_are_read_in_the_order_asked(bench: &mut impl Bench) {
    let store = with_entries(bench, &["a", "b"]).await;
    let asked = ["b", "missing", "a", "b"].map(Bytes::from).to_vec();
    let found = store.get_many(Table::Entry, &asked).await.unwrap();
    let found: Vec<_> = found.iter().map(|row| row.as_deref()).collect();
    assert_eq!(found, [Some(&b"b"[..]), None, Some(b"a"), Some(b"b")]);
}

async fn keys_and_values_are_any_bytes(bench: &mut impl Bench) {
    let store = bench.store();
    let key: Vec<u8> = (0..=255).collect();
    let mut batch = Batch::default();
    batch.put(Table::Entry, key.clone(), key.clone());
    batch.put(Table::Entry, vec![0], Bytes::new());
    batch.put(Table::Entry, vec![0xff, 0xff], vec![0xff]);
    commit(&store, batch).await;
    assert_eq!(get(&store, Table::Entry, &key).await.unwrap(), key);
    assert_eq!(get(&store, Table::Entry, &[0]).await.unwrap(), b"");
    let rows = store.scan(Table::Entry, &[], &[], 10).await.unwrap();
    let found: Vec<&[u8]> = rows.iter().map(|(key, _)| &key[..]).collect();
    assert_eq!(found, [&[0][..], &key, &[0xff, 0xff]]);
}

async fn a_large_value_is_read_whole(bench: &mut impl Bench) {
    let value: Vec<u8> = (0..64 * 1024).map(|i: u32| (i % 251) as u8).collect();
    for table in [Table::Entry, Table::Chunk] {
        let store = bench.store();
        commit(&store, put(table, b"large", &value)).await;
        assert_eq!(get(&store, table, b"large").await.unwrap(), value);
        drop(store);
        bench.reopen();
        let store = bench.store();
        assert_eq!(get(&store, table, b"large").await.unwrap(), value);
        assert_eq!(store.scan(table, b"", b"", 2).await.unwrap()[0].1, value);
    }
}

async fn a_scan_is_in_byte_order_within_its_bounds(bench: &mut impl Bench) {
    let store = with_entries(bench, &["b", "a", "ab", "aa", "c"]).await;
    assert_eq!(names(&store, b"", b"", 10).await, ["a", "aa", "ab", "b", "c"]);
    assert_eq!(names(&store, b"aa", b"b", 10).await, ["aa", "ab"]);
    assert_eq!(names(&store, b"a\0", b"ab\0", 10).await, ["aa", "ab"]);
}

async fn a_scan_stops_at_its_limit(bench: &mut impl Bench) {
    let store = with_entries(bench, &["a", "b", "c"]).await;
    assert_eq!(names(&store, b"a", b"", 2).await, ["a", "b"]);
    assert_eq!(names(&store, b"a", b"", 0).await, [""; 0]);
}

async fn a_scan_to_nowhere_reaches_the_tables_end(bench: &mut impl Bench) {
    let store = with_entries(bench, &["a"]).await;
    commit(&store, put(Table::Entry, &[0xff; 40], b"")).await;
    // Of the table's, not of the next table.
    commit(&store, put(Table::Chunk, b"z", b"")).await;
    assert_eq!(store.scan(Table::Entry, b"a", b"", 10).await.unwrap().len(), 2);
}

async fn a_scan_of_an_empty_range_is_empty(bench: &mut impl Bench) {
    let store = with_entries(bench, &["a", "b", "c"]).await;
    assert_eq!(names(&store, b"b", b"b", 10).await, [""; 0]);
    assert_eq!(names(&store, b"c", b"a", 10).await, [""; 0]);
    assert_eq!(names(&store, b"d", b"", 10).await, [""; 0]);
}

/// Also where a store spreads the rows of a prefix by the numbers that their keys are.
async fn a_scan_of_each_table_is_in_byte_order(bench: &mut impl Bench) {
    let store = bench.store();
    let short = (0..40u32).map(|i| (i * 37 % 500).to_be_bytes().to_vec());
    let long = (0..40u64).map(|i| (i * 97 % 2000).to_be_bytes().to_vec());
    let others = [&b""[..], b"a", b"abc", &[0], &[0xff; 9], b"\0\0\0\x07x"].map(<[u8]>::to_vec);
    let keys: BTreeMap<Vec<u8>, ()> = short.chain(long).chain(others).map(|key| (key, ())).collect();
    let keys: Vec<Vec<u8>> = keys.into_keys().collect();
    for table in Table::ALL {
        let mut batch = Batch::default();
        // An embedded store is not asked for the empty key.
        let keys: Vec<_> = keys.iter().filter(|key| !key.is_empty()).collect();
        keys.iter().for_each(|key| batch.put(table, (*key).clone(), (*key).clone()));
        commit(&store, batch).await;
        for (from, to, limit) in
            [(0, keys.len(), 1000), (0, keys.len(), 7), (3, 60, 1000), (30, 31, 5), (50, keys.len(), 20)]
        {
            let end = keys.get(to).map_or(&[][..], |key| key);
            let found = store.scan(table, keys[from], end, limit).await.unwrap();
            let found: Vec<&[u8]> = found.iter().map(|(key, _)| &key[..]).collect();
            let expected: Vec<&[u8]> = keys[from..to].iter().take(limit).map(|key| &key[..]).collect();
            assert_eq!(found, expected, "{} from {from} to {to}, {limit}", table.name());
        }
    }
}

/// A writer moves one row back and forth among many: whoever scans sees it exactly once.
async fn a_scan_is_of_one_moment(bench: &mut impl Bench) {
    let store = bench.store();
    let mut batch = Batch::default();
    for i in 0..200 {
        batch.put(Table::Entry, format!("k{i:03}"), "");
    }
    batch.put(Table::Entry, "a", "");
    commit(&store, batch).await;
    let writer = tokio::spawn({
        let store = store.clone();
        async move {
            for i in 0..200 {
                let (from, to) = if i % 2 == 0 { ("a", "z") } else { ("z", "a") };
                let mut batch = Batch::default();
                batch.remove(Table::Entry, from);
                batch.put(Table::Entry, to, "");
                store.commit(batch, Durability::Buffered).await.unwrap();
            }
        }
    });
    while !writer.is_finished() {
        assert_eq!(store.scan(Table::Entry, b"", b"", 1000).await.unwrap().len(), 201);
    }
    writer.await.unwrap();
}

async fn a_scan_finds_what_was_put_before_it_and_nothing_removed(bench: &mut impl Bench) {
    let store = bench.store();
    let writers: Vec<_> = (0..6)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for i in 0..60 {
                    let key = format!("{:02}/{writer}", i * 7 % 20);
                    let mut batch = Batch::default();
                    batch.put(Table::Entry, key.clone(), "");
                    store.commit(batch, Durability::Buffered).await.unwrap();
                    assert!(names(&store, b"", b"", 1000).await.contains(&key));
                    let mut batch = Batch::default();
                    batch.remove(Table::Entry, key.clone());
                    store.commit(batch, Durability::Buffered).await.unwrap();
                    assert!(!names(&store, b"", b"", 1000).await.contains(&key));
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    assert!(names(&store, b"", b"", 1000).await.is_empty());
}

async fn a_batch_is_seen_whole_or_not_at_all(bench: &mut impl Bench) {
    let store = bench.store();
    let writer = tokio::spawn({
        let store = store.clone();
        async move {
            for i in 0..200 {
                let mut batch = Batch::default();
                batch.put(Table::Entry, "x", i.to_string());
                batch.put(Table::Entry, "y", i.to_string());
                store.commit(batch, Durability::Buffered).await.unwrap();
            }
        }
    });
    while !writer.is_finished() {
        let rows = store.scan(Table::Entry, b"", b"", 10).await.unwrap();
        assert!(rows.is_empty() || (rows.len() == 2 && rows[0].1 == rows[1].1), "{rows:?}");
    }
    writer.await.unwrap();
}

async fn synced_rows_survive_a_restart(bench: &mut impl Bench) {
    let store = bench.store();
    for table in Table::ALL {
        commit(&store, put(table, b"k", table.name().as_bytes())).await;
    }
    drop(store);
    bench.reopen();
    for table in Table::ALL {
        assert_eq!(get(&bench.store(), table, b"k").await.unwrap(), table.name().as_bytes());
    }
}

async fn a_synced_batch_covers_the_buffered_ones_before_it(bench: &mut impl Bench) {
    let store = bench.store();
    store.commit(put(Table::Chunk, b"chunk", b"c"), Durability::Buffered).await.unwrap();
    commit(&store, put(Table::Entry, b"entry", b"e")).await;
    drop(store);
    bench.reopen();
    assert_eq!(get(&bench.store(), Table::Chunk, b"chunk").await.unwrap(), b"c");
}

async fn an_empty_synced_batch_covers_the_buffered_ones_before_it(bench: &mut impl Bench) {
    let store = bench.store();
    store.commit(put(Table::Chunk, b"chunk", b"c"), Durability::Buffered).await.unwrap();
    commit(&store, Batch::default()).await;
    drop(store);
    bench.reopen();
    assert_eq!(get(&bench.store(), Table::Chunk, b"chunk").await.unwrap(), b"c");
}

async fn overwrites_and_removals_survive_a_restart(bench: &mut impl Bench) {
    let store = with_entries(bench, &["kept", "overwritten", "removed"]).await;
    drop(store);
    bench.reopen();
    let store = bench.store();
    let mut batch = Batch::default();
    batch.put(Table::Entry, "overwritten", "new");
    batch.remove(Table::Entry, "removed");
    commit(&store, batch).await;
    drop(store);
    bench.reopen();
    let store = bench.store();
    assert_eq!(names(&store, b"", b"", 10).await, ["kept", "overwritten"]);
    assert_eq!(get(&store, Table::Entry, b"overwritten").await.unwrap(), b"new");
}

async fn writers_at_once_lose_nothing(bench: &mut impl Bench) {
    let store = bench.store();
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for i in 0..25 {
                    let key = format!("{writer}/{i:02}");
                    commit(&store, put(Table::Entry, key.as_bytes(), key.as_bytes())).await;
                    assert_eq!(get(&store, Table::Entry, key.as_bytes()).await.unwrap(), key.as_bytes());
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    drop(store);
    bench.reopen();
    assert_eq!(bench.store().scan(Table::Entry, b"", b"", 1000).await.unwrap().len(), 200);
}

#[derive(Clone, Debug)]
enum Step {
    Commit(Vec<(u8, Option<Vec<u8>>)>, bool),
    Scan(u8, u8, usize),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let changes =
        proptest::collection::vec((0u8..12, proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40))), 0..6);
    prop_oneof![
        6 => (changes, any::<bool>()).prop_map(|(changes, synced)| Step::Commit(changes, synced)),
        3 => (0u8..12, 0u8..12, 0usize..8).prop_map(|(from, to, limit)| Step::Scan(from, to, limit)),
        1 => Just(Step::Reopen),
    ]
}

/// Histories are drawn here and run one after the other against a map. Before a restart there is a sync, as a store may lose what is
/// only buffered.
async fn any_history_reads_like_the_model(bench: &mut impl Bench) {
    let mut runner = TestRunner::deterministic();
    let histories = proptest::collection::vec(step(), 1..40);
    let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    for _ in 0..12 {
        let history = histories.new_tree(&mut runner).unwrap().current();
        for step in history {
            run_step(bench, &mut model, step).await;
        }
    }
}

async fn run_step(bench: &mut impl Bench, model: &mut BTreeMap<Vec<u8>, Vec<u8>>, step: Step) {
    match step {
        Step::Commit(changes, synced) => {
            let mut batch = Batch::default();
            for (key, value) in changes {
                match &value {
                    Some(value) => batch.put(Table::Entry, vec![key], value.clone()),
                    None => batch.remove(Table::Entry, vec![key]),
                }
                match value {
                    Some(value) => model.insert(vec![key], value),
                    None => model.remove(&[key][..]),
                };
            }
            let durability = if synced { Durability::Synced } else { Durability::Buffered };
            bench.store().commit(batch, durability).await.unwrap();
        }
        Step::Scan(from, to, limit) => {
            let rows = bench.store().scan(Table::Entry, &[from], &[to], limit).await.unwrap();
            let expected: Vec<_> = model.iter().filter(|(key, _)| (from..to).contains(&key[0])).take(limit).collect();
            assert_eq!(rows.len(), expected.len());
            for ((key, value), (expected_key, expected_value)) in rows.iter().zip(expected) {
                assert_eq!((key, value), (&Bytes::from(expected_key.clone()), &Bytes::from(expected_value.clone())));
            }
        }
        Step::Reopen => {
            commit(&bench.store(), Batch::default()).await;
            bench.reopen();
        }
    }
    for key in 0..12 {
        let found = get(&bench.store(), Table::Entry, &[key]).await;
        assert_eq!(found.as_ref(), model.get(&[key][..]));
    }
}
