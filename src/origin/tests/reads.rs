//! Reads: versions of what is there and of what is not, and what the asker holds.

use super::*;
use crate::{
    error::Kind,
    kv::{Held, Version},
};

async fn ask(world: &World, name: &str, read: Read) -> Result<Answer> {
    world.origin.get(world.namespace, &key(name), &read).await
}

#[tokio::test]
async fn what_is_absent_is_so_as_of_the_last_write() {
    let world = World::start().await;
    let written = world.put("a", Bytes::from("v")).await.unwrap();
    let answer = world.answer("missing").await;
    assert!(matches!(answer.state, State::Absent));
    assert_eq!(answer.version, written.version);
}

#[tokio::test]
async fn a_held_version_that_is_still_current_is_unchanged() {
    let world = World::start().await;
    let written = world.put_expiring("k", pattern(100_000, 0), Expires::After(60)).await.unwrap();
    world.clock.advance(SECOND);
    let held = Some(Held { version: written.version, present: true });
    let answer = ask(&world, "k", Read { held, ..Read::latest() }).await.unwrap();
    assert!(matches!(answer.state, State::Unchanged { time_left: Some(left) } if left == 59 * SECOND));
    assert_eq!(answer.version, written.version);

    let overwritten = world.put("k", Bytes::from("new")).await.unwrap();
    let answer = ask(&world, "k", Read { held, ..Read::latest() }).await.unwrap();
    assert!(matches!(answer.state, State::Present(_)));
    assert_eq!(answer.version, overwritten.version);
}

#[tokio::test]
async fn a_held_absence_is_renewed_with_a_newer_version() {
    let world = World::start().await;
    let absent = world.answer("k").await.version;
    let other = world.put("other", Bytes::from("v")).await.unwrap().version;
    let held = Some(Held { version: absent, present: false });
    let answer = ask(&world, "k", Read { held, ..Read::latest() }).await.unwrap();
    assert!(matches!(answer.state, State::Unchanged { time_left: None }));
    assert_eq!(answer.version, other);

    world.put("k", Bytes::from("v")).await.unwrap();
    let answer = ask(&world, "k", Read { held, ..Read::latest() }).await.unwrap();
    assert!(matches!(answer.state, State::Present(_)));
}

#[tokio::test]
async fn a_held_entry_that_was_deleted_or_has_expired_is_absent() {
    let world = World::start().await;
    let version = world.put_expiring("k", Bytes::from("v"), Expires::After(60)).await.unwrap().version;
    world.clock.advance(60 * SECOND);
    let read = Read { held: Some(Held { version, present: true }), ..Read::latest() };
    assert!(matches!(ask(&world, "k", read.clone()).await.unwrap().state, State::Absent));
    world.delete("k").await.unwrap();
    let answer = ask(&world, "k", read).await.unwrap();
    assert!(matches!(answer.state, State::Absent) && answer.version > version);
}

#[tokio::test]
async fn a_version_that_nobody_wrote_is_an_error_and_one_that_was_is_met() {
    let world = World::start().await;
    let version = world.put("k", Bytes::from("v")).await.unwrap().version;
    let answer = ask(&world, "k", Read { at_least: Some(version), ..Read::latest() }).await.unwrap();
    assert_eq!(answer.version, version);
    let unknown = Version::from_u64(version.as_u64() + 1);
    let error = ask(&world, "k", Read { at_least: Some(unknown), ..Read::latest() }).await.unwrap_err();
    assert_eq!(error.kind, Kind::VersionUnknown);
}

#[tokio::test]
async fn an_unknown_namespace_answers_no_read() {
    let world = World::start().await;
    let nowhere = NamespaceId::from_u128(77);
    let error = world.origin.get(nowhere, &key("k"), &Read::latest()).await.unwrap_err();
    assert_eq!((error.kind, error.message.as_str()), (Kind::NamespaceUnknown, "namespace not found"));
    let list = List { prefix: Bytes::new(), limit: 1, cursor: None };
    assert_eq!(world.origin.list(nowhere, &list).await.unwrap_err().kind, Kind::NamespaceUnknown);
}

#[tokio::test]
async fn a_store_that_cannot_be_read_is_an_error_and_not_an_absence() {
    let world = World::start().await;
    world.put("k", Bytes::from("v")).await.unwrap();
    world.store.fail_reads(true);
    assert_eq!(ask(&world, "k", Read::latest()).await.unwrap_err().kind, Kind::Internal);
    assert_eq!(world.list("", 10, None).await.unwrap_err().kind, Kind::Internal);
    assert_eq!(world.put("k", Bytes::from("w")).await.unwrap_err().kind, Kind::Internal);
    world.store.fail_reads(false);
    assert_eq!(world.get("k").await.unwrap(), "v");
    world.put("k", Bytes::from("w")).await.unwrap();
}
