//! The sweeper and the reclaimer: that they are thrifty, and that what is garbled holds up nothing behind it.

use std::sync::Mutex;

use async_trait::async_trait;

use super::*;
use crate::store::{Batch, Durability, Store, keys};

/// A memory store that knows from where it was scanned.
#[derive(Default)]
struct ScannedStore {
    rows: Arc<MemoryStore>,
    scans: Mutex<Vec<(Table, Bytes)>>,
}

impl ScannedStore {
    /// The beginnings of a table's scans since this was asked last, in their order.
    fn take_scans(&self, table: Table) -> Vec<Bytes> {
        let scans = std::mem::take(&mut *self.scans.lock().unwrap());
        scans.into_iter().filter(|(of, _)| *of == table).map(|(_, from)| from).collect()
    }
}

#[async_trait]
impl Store for ScannedStore {
    async fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>> {
        self.rows.get(table, key).await
    }

    async fn get_many(&self, table: Table, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>> {
        self.rows.get_many(table, keys).await
    }

    async fn scan(&self, table: Table, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>> {
        self.scans.lock().unwrap().push((table, Bytes::copy_from_slice(from)));
        self.rows.scan(table, from, to, limit).await
    }

    async fn commit(&self, batch: Batch, durability: Durability) -> Result<()> {
        self.rows.commit(batch, durability).await
    }

    fn in_place(&self) -> Option<Arc<dyn Store>> {
        None
    }

    fn agreement(&self) -> Option<&dyn crate::store::Agreement> {
        None
    }
}

/// A world whose store knows its scans.
async fn start() -> (World, Arc<ScannedStore>) {
    let (clock, scanned) = (ManualClock::shared(), Arc::new(ScannedStore::default()));
    let metrics = Metrics::default().origin();
    let shared = Arc::new(Arc::clone(&clock));
    let origin = Origin::open(Arc::clone(&scanned) as _, shared, OriginSettings::default(), metrics).await.unwrap();
    origin.ensure_account(&Account { id: ACCOUNT, name: "test".into() }).await.unwrap();
    let namespace = create_namespace(&origin, "default").await.unwrap();
    (World { clock, store: Arc::clone(&scanned.rows), origin, namespace }, scanned)
}

async fn let_tasks_go_on() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// Puts rows into the store behind the origin's back.
async fn plant(world: &World, rows: impl IntoIterator<Item = (Table, Bytes, Bytes)>) {
    let mut batch = Batch::default();
    for (table, key, value) in rows {
        batch.put(table, key, value);
    }
    world.store.commit(batch, Durability::Synced).await.unwrap();
}

/// A store on disk keeps traces of what was removed, and steps over them at each scan that begins before them.
#[tokio::test]
async fn a_removed_namespace_is_gone_through_once_and_looked_at_once_more() {
    let (world, scanned) = start().await;
    for i in 0..1000 {
        world.put(&format!("k{i}"), Bytes::from("v")).await.unwrap();
    }
    let_tasks_go_on().await;
    scanned.take_scans(Table::Entry);
    world.origin.control(ACCOUNT, Control::RemoveNamespace { id: world.namespace }).await.unwrap();
    world.until_rows(Table::Reclaim, 0).await;
    let scans = scanned.take_scans(Table::Entry);
    let start = keys::entry(world.namespace, b"");
    let scans: Vec<_> = scans.into_iter().filter(|from| from.starts_with(&start)).collect();
    let (last, steps) = scans.split_last().unwrap();
    assert_eq!(*last, start);
    assert!(steps.len() >= 4 && steps.is_sorted_by(|a, b| a < b), "{steps:?}");
}

#[tokio::test]
async fn a_sweep_goes_once_through_what_has_expired() {
    let (world, scanned) = start().await;
    for i in 0..2500 {
        world.put_expiring(&format!("k{i}"), Bytes::from("v"), Expires::After(60)).await.unwrap();
    }
    let_tasks_go_on().await;
    scanned.take_scans(Table::Expiry);
    world.clock.advance(61 * SECOND);
    let_tasks_go_on().await;
    assert_eq!(world.store.count(Table::Expiry), 0);
    let scans = scanned.take_scans(Table::Expiry);
    assert!(scans.len() == 3 && scans.is_sorted_by(|a, b| a < b), "{scans:?}");
}

#[tokio::test]
async fn passes_of_the_reclaimer_are_spaced_however_much_is_overwritten() {
    let (world, scanned) = start().await;
    let_tasks_go_on().await;
    // Time for a pass at once.
    world.clock.advance(SECOND);
    let_tasks_go_on().await;
    scanned.take_scans(Table::Reclaim);
    for seed in 0..100 {
        world.put("k", pattern(600, seed)).await.unwrap();
        let_tasks_go_on().await;
    }
    assert_eq!(scanned.take_scans(Table::Reclaim).len(), 1);
    assert!(world.store.count(Table::Chunk) > 90);
    world.clock.advance(SECOND / 4);
    let_tasks_go_on().await;
    assert_eq!(scanned.take_scans(Table::Reclaim).len(), 1);
    assert_eq!(world.store.count(Table::Chunk), 1);
}

#[tokio::test]
async fn a_garbled_row_does_not_hold_up_the_sweeper() {
    let world = World::start().await;
    world.put_expiring("a", Bytes::from("v"), Expires::After(60)).await.unwrap();
    world.put_expiring("b", Bytes::from("v"), Expires::After(60)).await.unwrap();
    plant(
        &world,
        [
            (Table::Expiry, Bytes::from_static(b"\0\0\0"), Bytes::new()),
            (Table::Entry, keys::entry(world.namespace, b"a"), Bytes::from_static(b"garbled")),
        ],
    )
    .await;
    world.clock.advance(61 * SECOND);
    // What is garbled stays, and is what stays.
    world.until_rows(Table::Expiry, 2).await;
    world.put_expiring("c", Bytes::from("v"), Expires::After(60)).await.unwrap();
    world.clock.advance(61 * SECOND);
    world.until_rows(Table::Expiry, 2).await;
    assert_eq!(world.store.get(Table::Entry, &keys::entry(world.namespace, b"c")).await.unwrap(), None);
}

#[tokio::test]
async fn a_garbled_row_does_not_hold_up_the_reclaimer() {
    let world = World::start().await;
    let broken = create_namespace(&world.origin, "broken").await.unwrap();
    for name in ["a", "b", "c"] {
        let put = Change::Put { value: pattern(600, 1).into(), metadata: None, expires: Expires::Never };
        world.origin.write(broken, &key(name), put, Via::default()).await.unwrap();
    }
    plant(
        &world,
        [
            (Table::Reclaim, Bytes::from_static(b"\0"), Bytes::new()),
            (Table::Reclaim, keys::Reclaim::Value(keys::ValueId(1)).row(), Bytes::from_static(b"garbled")),
            (Table::Entry, keys::entry(broken, b"b"), Bytes::from_static(b"garbled")),
        ],
    )
    .await;
    let entries = world.store.count(Table::Entry);
    world.origin.control(ACCOUNT, Control::RemoveNamespace { id: broken }).await.unwrap();
    // The namespace's own record, and its entries but for the garbled one, whose chunk nobody can find.
    world.until_rows(Table::Entry, entries - 3).await;
    world.until_rows(Table::Chunk, 1).await;
    world.until_rows(Table::Reclaim, 3).await;
    world.put("k", pattern(600, 1)).await.unwrap();
    world.delete("k").await.unwrap();
    world.until_rows(Table::Chunk, 1).await;
    world.until_rows(Table::Reclaim, 3).await;
}
