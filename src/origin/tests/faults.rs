//! Failing disks, crashes, and the end.

use super::*;
use crate::{
    error::Kind,
    store::{disk::DiskStore, memory::FailedCommit},
};

#[tokio::test]
async fn a_failed_commit_fails_its_writes_and_all_that_follow() {
    let mut world = World::start().await;
    world.put("before", Bytes::from("v")).await.unwrap();
    world.store.fail_after(0, FailedCommit::Lost);
    let error = world.put("k", Bytes::from("v")).await.unwrap_err();
    assert_eq!(error.kind, Kind::Internal);
    let later = world.put("later", Bytes::from("v")).await.unwrap_err();
    assert_eq!(later.kind, Kind::Internal);
    assert!(later.message.contains("the origin is read-only"), "{later}");
    assert_eq!(world.get("before").await.unwrap(), "v");
    assert_eq!(world.names().await, ["before"]);
    world.crash().await;
    assert_eq!(world.names().await, ["before"]);
    world.put("after", Bytes::from("v")).await.unwrap();
}

/// The disk took the batch, but nobody knew: after the restart it is there, whole.
#[tokio::test]
async fn a_commit_that_failed_but_was_kept_is_whole_after_the_restart() {
    let mut world = World::start().await;
    let value = pattern(300_000, 5);
    // Five chunks, then the entry.
    world.store.fail_after(5, FailedCommit::Kept);
    world.put("k", value.clone()).await.unwrap_err();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    world.crash().await;
    assert_eq!(world.get("k").await.unwrap(), value);
    world.until_rows(Table::Reclaim, 0).await;
    world.until_rows(Table::Chunk, 5).await;
    assert_eq!(world.get("k").await.unwrap(), value);
}

#[tokio::test]
async fn a_failed_write_of_a_chunk_turns_the_origin_read_only() {
    let world = World::start().await;
    world.store.fail_after(2, FailedCommit::Lost);
    assert_eq!(world.put("k", pattern(300_000, 5)).await.unwrap_err().kind, Kind::Internal);
    let later = world.put("later", Bytes::from("v")).await.unwrap_err();
    assert!(later.message.contains("the origin is read-only"), "{later}");
    assert!(world.get("k").await.is_none());
}

#[tokio::test]
async fn a_crash_loses_nothing_that_was_acknowledged() {
    let mut world = World::start().await;
    let mut expected = std::collections::BTreeMap::new();
    for round in 0..20u8 {
        for i in 0..10u8 {
            let name = format!("k{}", (round.wrapping_mul(7).wrapping_add(i)) % 30);
            if i % 4 == 3 {
                world.delete(&name).await.unwrap();
                expected.remove(&name);
            } else {
                let value = pattern(usize::from(i) * 40_000 + 1, round);
                world.put(&name, value.clone()).await.unwrap();
                expected.insert(name, value);
            }
        }
        world.crash().await;
        assert_eq!(world.names().await, expected.keys().cloned().collect::<Vec<_>>());
        for (name, value) in &expected {
            assert_eq!(world.get(name).await.as_ref(), Some(value));
        }
    }
    let chunks: usize = expected.values().filter(|v| v.len() > 512).map(|v| v.len().div_ceil(65_536)).sum();
    world.until_rows(Table::Chunk, chunks).await;
    world.until_rows(Table::Reclaim, 0).await;
}

#[tokio::test]
async fn value_ids_are_not_used_again_after_a_crash() {
    let mut world = World::start().await;
    world.put("a", pattern(1000, 1)).await.unwrap();
    world.crash().await;
    world.put("b", pattern(1000, 2)).await.unwrap();
    assert_eq!(world.get("a").await.unwrap(), pattern(1000, 1));
    assert_eq!(world.store.count(Table::Chunk), 2);
}

#[tokio::test]
async fn closing_finishes_what_was_handed_in_and_refuses_what_comes_after() {
    let world = Arc::new(World::start().await);
    let writing: Vec<_> = (0..50)
        .map(|i| {
            let world = Arc::clone(&world);
            tokio::spawn(async move { world.put(&format!("k{i}"), Bytes::from("v")).await })
        })
        .collect();
    tokio::task::yield_now().await;
    world.origin.close().await;
    let mut acknowledged = 0;
    for written in writing {
        acknowledged += usize::from(written.await.unwrap().is_ok());
    }
    assert_eq!(world.names().await.len(), acknowledged);
    let error = world.put("late", Bytes::from("v")).await.unwrap_err();
    assert_eq!(error.kind, Kind::Unavailable);
}

/// As of a board whose battery has died, until the network has set it right.
#[tokio::test]
async fn a_wall_clock_that_must_be_wrong_refuses_writes_and_harms_nothing() {
    const YEAR_MILLIS: i64 = 366 * 24 * 3600 * 1000;
    let mut world = World::start().await;
    let before = world.put_expiring("k", Bytes::from("v"), Expires::After(3600)).await.unwrap();
    let create = || Control::CreateNamespace { title: "new".into(), jurisdiction: None, mode: None };
    for years in [11, 100, 300] {
        world.clock.step_wall(years * YEAR_MILLIS);
        for restarted in [false, true] {
            if restarted {
                world.restart().await;
            }
            let error = world.put("other", Bytes::from("v")).await.unwrap_err();
            assert_eq!(error.kind, Kind::Internal);
            assert!(error.message.contains("the machine's clock"), "{error}");
            assert_eq!(world.delete("k").await.unwrap_err().kind, Kind::Internal);
            world.origin.control(ACCOUNT, create()).await.unwrap_err();
            world.origin.control(ACCOUNT, Control::RemoveNamespace { id: world.namespace }).await.unwrap_err();
            // The sweeper comes by, too.
            world.clock.advance(2 * SECOND);
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            assert_eq!(world.names().await, ["k"]);
            assert_eq!(world.store.count(Table::Expiry), 1);
            assert_eq!(world.answer("k").await.version, before.version);
        }
        world.clock.step_wall(-years * YEAR_MILLIS);
    }
    let after = world.put("other", Bytes::from("v")).await.unwrap();
    assert!(after.version > before.version);
    assert!(after.version.millis() < before.version.millis() + 60_000);
    create_namespace(&world.origin, "new").await.unwrap();
    world.clock.step_wall(9 * YEAR_MILLIS);
    world.put("after a long rest", Bytes::from("v")).await.unwrap();
}

#[tokio::test]
async fn a_store_that_is_new_takes_no_write_at_the_end_of_versions() {
    let (clock, store) = (ManualClock::shared(), Arc::new(MemoryStore::default()));
    clock.step_wall(i64::MAX / 4);
    let origin = open(&clock, &store, OriginSettings::default()).await;
    let error = origin.ensure_account(&Account { id: ACCOUNT, name: "test".into() }).await.unwrap_err();
    assert!(error.message.contains("the machine's clock"), "{error}");
    assert_eq!(store.count(Table::Entry), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_disk_all_of_it_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::shared();
    let open = async || {
        let store = Arc::new(DiskStore::open(dir.path(), 1 << 20).unwrap());
        let clock = Arc::new(Arc::clone(&clock));
        Origin::open(store, clock, OriginSettings::default(), Metrics::default().origin()).await.unwrap()
    };
    let origin = open().await;
    origin.ensure_account(&Account { id: ACCOUNT, name: "test".into() }).await.unwrap();
    let namespace = create_namespace(&origin, "default").await.unwrap();
    let lengths = [0, 100, 1000, 70_000, 1_000_000];
    let mut last = None;
    for length in lengths {
        let change = Change::Put { value: pattern(length, 9).into(), metadata: None, expires: Expires::After(3600) };
        last =
            Some(origin.write(namespace, &key(&format!("k{length}")), change, Via::default()).await.unwrap().version);
    }
    origin.close().await;
    drop(origin);

    let origin = open().await;
    for length in lengths {
        let answer = origin.get(namespace, &key(&format!("k{length}")), &Read::latest()).await.unwrap();
        let State::Present(entry) = answer.state else { panic!("the entry is there") };
        assert_eq!(entry.value.collect(u64::MAX).await.unwrap(), pattern(length, 9));
    }
    let written = origin.write(namespace, &key("new"), Change::Delete, Via::default()).await.unwrap();
    assert!(Some(written.version) > last);
}
