//! Writes: order, expiry, limits.

use super::*;
use crate::{
    error::Kind,
    kv::{Taken, WriteId},
};

#[tokio::test]
async fn a_written_entry_is_read_with_its_version_and_metadata() {
    let world = World::start().await;
    let change = Change::Put {
        value: Bytes::from("v").into(),
        metadata: Some(Bytes::from("{\"a\":1}")),
        expires: Expires::After(60),
    };
    let written = world.origin.write(world.namespace, &key("k"), change, Via::default()).await.unwrap();
    let answer = world.answer("k").await;
    assert_eq!(answer.version, written.version);
    assert_eq!(answer.age, Duration::ZERO);
    let State::Present(entry) = answer.state else { panic!("the entry is there") };
    assert_eq!(entry.metadata.unwrap(), "{\"a\":1}");
    assert_eq!(entry.expiration, written.expiration);
    assert_eq!(entry.time_left, Some(60 * SECOND));
    assert_eq!(entry.value.collect(10).await.unwrap(), "v");
}

#[tokio::test]
async fn an_overwrite_replaces_value_metadata_and_expiration() {
    let world = World::start().await;
    let change =
        Change::Put { value: Bytes::from("1").into(), metadata: Some(Bytes::from("1")), expires: Expires::After(60) };
    let first = world.origin.write(world.namespace, &key("k"), change, Via::default()).await.unwrap();
    let second = world.put("k", Bytes::from("2")).await.unwrap();
    assert!(second.version > first.version);
    let State::Present(entry) = world.answer("k").await.state else { panic!("the entry is there") };
    assert_eq!((entry.metadata, entry.expiration), (None, None));
    assert_eq!(world.store.count(Table::Expiry), 0);
}

#[tokio::test]
async fn every_write_has_a_version_of_its_own_also_within_a_batch() {
    let world = World::start().await;
    let writes = (0..100)
        .map(|i| {
            let put = Change::Put { value: Bytes::from(i.to_string()).into(), metadata: None, expires: Expires::Never };
            (key("same"), if i % 3 == 2 { Change::Delete } else { put })
        })
        .collect();
    let outcomes = world.origin.write_many(world.namespace, writes, Via::default()).await.unwrap();
    let versions: Vec<_> = outcomes.into_iter().map(|outcome| outcome.unwrap().version).collect();
    assert!(versions.is_sorted_by(|a, b| a < b));
    assert_eq!(world.get("same").await.unwrap(), "99");
}

#[tokio::test]
async fn writes_at_once_share_batches_and_none_is_lost() {
    let world = Arc::new(World::start().await);
    let writers: Vec<_> = (0..200)
        .map(|i| {
            let world = Arc::clone(&world);
            tokio::spawn(async move { world.put(&format!("k{i:03}"), Bytes::from(i.to_string())).await.unwrap() })
        })
        .collect();
    let mut versions = Vec::new();
    for writer in writers {
        versions.push(writer.await.unwrap().version);
    }
    versions.sort_unstable();
    versions.dedup();
    assert_eq!(versions.len(), 200);
    assert_eq!(world.names().await.len(), 200);
}

#[tokio::test]
async fn deleting_a_missing_key_is_a_write_that_the_next_read_covers() {
    let world = World::start().await;
    let written = world.delete("missing").await.unwrap();
    let answer = world.answer("missing").await;
    assert!(matches!(answer.state, State::Absent));
    assert!(answer.version >= written.version);
}

#[tokio::test]
async fn each_write_of_many_has_its_own_outcome() {
    let world = World::start().await;
    let put = |expires| Change::Put { value: Bytes::from("v").into(), metadata: None, expires };
    let writes = vec![
        (key("a"), put(Expires::Never)),
        (key("b"), put(Expires::After(59))),
        (key("c"), Change::Delete),
        (key("d"), put(Expires::At(5))),
        (key("e"), put(Expires::After(60))),
    ];
    let outcomes = world.origin.write_many(world.namespace, writes, Via::default()).await.unwrap();
    let kinds: Vec<_> = outcomes.iter().map(|outcome| outcome.as_ref().err().map(|error| error.kind)).collect();
    assert_eq!(kinds, [None, Some(Kind::ExpirationTtlInvalid), None, Some(Kind::ExpirationInvalid), None]);
    assert_eq!(outcomes[4].as_ref().unwrap().time_left, Some(60 * SECOND));
    assert_eq!(world.names().await, ["a", "e"]);
}

#[tokio::test]
async fn an_unknown_namespace_takes_no_write() {
    let world = World::start().await;
    let nowhere = NamespaceId::from_u128(77);
    let error = world.origin.write(nowhere, &key("k"), Change::Delete, Via::default()).await.unwrap_err();
    assert_eq!((error.kind, error.message.as_str()), (Kind::NamespaceUnknown, "namespace not found"));
    assert!(world.origin.write_many(nowhere, Vec::new(), Via::default()).await.is_err());
}

#[tokio::test]
async fn the_reserved_namespace_takes_no_direct_write() {
    let world = World::start().await;
    let error = world.origin.write(NamespaceId::RESERVED, &key("k"), Change::Delete, Via::default()).await.unwrap_err();
    assert_eq!(error.kind, Kind::Forbidden);
    let writes = vec![(key("k"), Change::Delete)];
    let error = world.origin.write_many(NamespaceId::RESERVED, writes, Via::default()).await.unwrap_err();
    assert_eq!(error.kind, Kind::Forbidden);
}

#[tokio::test]
async fn the_write_limit_slows_puts_and_never_deletions() {
    let settings = OriginSettings { writes_per_key_per_second: Some(1), ..OriginSettings::default() };
    let world = World::start_with(settings).await;
    world.put("k", Bytes::from("1")).await.unwrap();
    world.delete("k").await.unwrap();
    world.delete("k").await.unwrap();
    assert_eq!(world.put("k", Bytes::from("2")).await.unwrap_err().kind, Kind::RateLimited);
    world.put("other", Bytes::from("2")).await.unwrap();
    world.clock.advance(SECOND);
    world.put("k", Bytes::from("3")).await.unwrap();
}

#[tokio::test]
async fn an_entry_is_gone_everywhere_from_its_very_second_on() {
    let world = World::start().await;
    world.put_expiring("k", Bytes::from("v"), Expires::After(60)).await.unwrap();
    world.put("stays", Bytes::from("v")).await.unwrap();
    world.clock.advance(60 * SECOND - Duration::from_millis(1));
    assert!(world.get("k").await.is_some());
    world.clock.advance(Duration::from_millis(1));
    assert!(world.get("k").await.is_none());
    assert_eq!(world.names().await, ["stays"]);
}

#[tokio::test]
async fn an_expired_entry_does_not_come_back_when_the_wall_clock_steps_back() {
    let world = World::start().await;
    world.put_expiring("k", Bytes::from("v"), Expires::After(60)).await.unwrap();
    world.clock.step_wall(60_000);
    assert!(world.get("k").await.is_none());
    world.clock.step_wall(-60_000);
    assert!(world.get("k").await.is_none());
}

#[tokio::test]
async fn the_sweeper_gives_back_the_room_of_what_has_expired() {
    let world = World::start().await;
    let entries = world.store.count(Table::Entry);
    for i in 0..1500 {
        world.put_expiring(&format!("k{i}"), pattern(600, 0), Expires::After(60)).await.unwrap();
    }
    world.put_expiring("later", Bytes::from("v"), Expires::After(3600)).await.unwrap();
    world.clock.advance(61 * SECOND);
    world.until_rows(Table::Expiry, 1).await;
    world.until_rows(Table::Chunk, 0).await;
    world.until_rows(Table::Reclaim, 0).await;
    assert_eq!(world.store.count(Table::Entry), entries + 1);
    assert!(world.get("later").await.is_some());
}

#[tokio::test]
async fn an_entry_written_anew_outlives_its_former_expiration() {
    let world = World::start().await;
    world.put_expiring("k", Bytes::from("old"), Expires::After(60)).await.unwrap();
    world.put_expiring("k", Bytes::from("new"), Expires::After(90)).await.unwrap();
    world.clock.advance(61 * SECOND);
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.get("k").await.unwrap(), "new");
    world.clock.advance(30 * SECOND);
    world.until_rows(Table::Expiry, 0).await;
}

#[tokio::test]
async fn versions_rise_over_restarts_though_the_wall_clock_steps_back() {
    let mut world = World::start().await;
    let mut last = world.put("k", Bytes::from("1")).await.unwrap().version;
    for step in [-3_600_000, 10, -1] {
        world.clock.step_wall(step);
        world.restart().await;
        let version = world.put("k", Bytes::from("2")).await.unwrap().version;
        assert!(version > last);
        last = version;
    }
}

/// A deletion leaves no record, so that none says what was there before.
#[tokio::test]
async fn a_write_that_is_handed_in_again_after_a_deletion_is_not_taken_twice() {
    let mut world = World::start().await;
    let (first, epoch) = (WriteId(76), world.origin.feed().position().epoch);
    let taken = Some(Taken { epoch, ago: SECOND });
    let hand_in = async |world: &World, id: WriteId, taken: Option<Taken>| {
        let change = Change::Put { value: Bytes::from("v").into(), metadata: None, expires: Expires::Never };
        let via = Via { id: Some(id), taken, ..Via::default() };
        world.origin.write(world.namespace, &key("k"), change, via).await.map(|written| written.version)
    };
    let version = hand_in(&world, first, None).await.unwrap();
    assert_eq!(hand_in(&world, first.again(), taken).await.unwrap(), version);
    world.delete("k").await.unwrap();
    assert_eq!(hand_in(&world, first.again(), taken).await.unwrap(), version);
    assert_eq!(world.get("k").await, None);
    // One that this very process would know of.
    assert!(hand_in(&world, WriteId(78).again(), taken).await.unwrap() > version);
    world.delete("k").await.unwrap();
    world.restart().await;
    let error = hand_in(&world, first.again(), taken).await.unwrap_err();
    assert!(error.message.contains("not known") && !error.untaken, "{error}");
    hand_in(&world, WriteId(80), None).await.unwrap();
}
