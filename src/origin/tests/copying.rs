//! What an origin finds on a store that another one's was copied into.

use super::*;
use crate::{
    clock::Clock,
    kv::reserved,
    store::{
        Durability, Store,
        copy::{Settings, copy},
        keys::{self, Record},
    },
};

const SETTINGS: Settings = Settings { lease: Duration::from_secs(10), kept: Duration::from_secs(3600) };

async fn copied(world: &World, target: &Arc<MemoryStore>) -> Result<()> {
    let clock: Arc<dyn Clock> = Arc::new(Arc::clone(&world.clock));
    copy(Arc::clone(&world.store) as _, Arc::clone(target) as _, clock, SETTINGS, &mut |_| {}).await.map(|_| ())
}

/// The store to which a world moves: shared if it was not.
fn another(world: &World) -> Arc<MemoryStore> {
    let clock = Arc::clone(&world.clock);
    match world.store.agreement() {
        Some(_) => Arc::default(),
        None => Arc::new(MemoryStore::shared(Arc::new(clock))),
    }
}

#[tokio::test]
async fn an_origin_goes_on_where_the_one_on_the_copied_store_ended() {
    let mut world = World::start().await;
    let (large, longer) = (pattern(70_000, 1), pattern(2_000_000, 2));
    world.put("large", large.clone()).await.unwrap();
    world.put("longer", stream(longer.clone(), 50_000, None)).await.unwrap();
    for name in ["a", "b", "c"] {
        world.put(name, Bytes::from("small")).await.unwrap();
    }
    let expires = Expires::After(600);
    world.put_expiring("passing", Bytes::from("soon gone"), expires).await.unwrap();
    let deleted = world.delete("c").await.unwrap().version;
    // To the shared store and back.
    for round in 0..2 {
        let before = world.answer("a").await.version;
        let first = world.list("", 2, None).await.unwrap();
        world.origin.close().await;
        let target = another(&world);
        copied(&world, &target).await.unwrap();
        let origin = open(&world.clock, &target, OriginSettings::default()).await;
        world = World { store: target, origin, ..world };
        assert_eq!(world.answer("a").await.version, before);
        assert_eq!(world.get("large").await.unwrap(), large);
        assert_eq!(world.get("longer").await.unwrap(), longer);
        let rest = world.list("", 10, first.cursor.clone()).await.unwrap();
        assert_eq!([names(&first), names(&rest)].concat(), ["a", "b", "large", "longer", "passing"], "round {round}");
        let absent = world.answer("c").await;
        assert!(matches!(absent.state, State::Absent) && absent.version >= deleted, "{absent:?}");
        // A clock that is behind does not lead to lesser versions, nor new values over those that came along.
        world.clock.step_wall(-60_000);
        let written = world.put("b", pattern(3_000, 3)).await.unwrap().version;
        assert!(written > deleted && written > before);
        assert_eq!(world.get("large").await.unwrap(), large);
        world.clock.step_wall(60_000);
    }
    world.clock.advance(Duration::from_secs(601));
    assert_eq!(world.get("passing").await, None);
    world.until_rows(Table::Expiry, 0).await;
}

#[tokio::test]
async fn an_origin_does_not_start_on_a_half_of_a_copy() {
    for shared in [false, true] {
        let world = World::start().await;
        world.origin.close().await;
        let clock: Arc<dyn Clock> = Arc::new(Arc::clone(&world.clock));
        let target = Arc::new(if shared { MemoryStore::shared(Arc::clone(&clock)) } else { MemoryStore::default() });
        // An entry that can't be read is in the way.
        let row = keys::entry(NamespaceId::RESERVED, reserved::account(ACCOUNT).as_bytes());
        let whole = world.store.get(Table::Entry, &row).await.unwrap().unwrap();
        Record::decode(&row, &whole).unwrap();
        let put = async |value: Bytes| {
            let mut batch = crate::store::Batch::default();
            batch.put(Table::Entry, keys::entry(world.namespace, b"garbled"), value);
            world.store.commit(batch, Durability::Synced).await.unwrap();
        };
        put("garbled".into()).await;
        assert!(copied(&world, &target).await.unwrap_err().message.contains("is garbled in the store"));
        let opening = Origin::open(
            Arc::clone(&target) as _,
            Arc::clone(&clock),
            OriginSettings::default(),
            Metrics::default().origin(),
        );
        let error = opening.await.err().expect("it has a half of what it should have");
        assert!(error.message.contains("the copy into this store has not ended"), "{error}");
        put(whole).await;
        copied(&world, &target).await.unwrap();
        open(&world.clock, &target, OriginSettings::default()).await.close().await;
    }
}
