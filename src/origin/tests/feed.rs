//! What an origin announces: each commit's purges, in its store and then in its feed.

use futures_util::{FutureExt, stream};

use super::*;
use crate::{
    kv::{
        Version,
        feed::{Follow, FollowerId, Frames, Item, Message, Position, Proof, Pushed},
    },
    purge::feed::FeedSettings,
    store::memory::FailedCommit,
    wire::feed::{Decoder, encode_ping},
};

/// A follower's end, that pings once at its start.
struct Reader {
    frames: Frames,
    decoder: Decoder,
}

impl Reader {
    async fn follow(world: &World, from: Option<Position>) -> Reader {
        let pings = stream::iter([Ok(encode_ping(1))]).chain(stream::pending()).boxed();
        let frames =
            world.origin.follow(Follow { follower: FollowerId(1), from, all_states: false }, pings).await.unwrap();
        Reader { frames, decoder: Decoder::default() }
    }

    /// All that is there without a wait.
    fn read(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        loop {
            while let Some(message) = self.decoder.message().unwrap() {
                messages.push(message);
            }
            match self.frames.next().now_or_never() {
                Some(Some(piece)) => self.decoder.add(&piece.unwrap()),
                _ => return messages,
            }
        }
    }

    fn items(&mut self) -> Vec<Item> {
        let items = self.read().into_iter().map(|message| match message {
            Message::Items { items, .. } => items,
            _ => Vec::new(),
        });
        items.flatten().collect()
    }
}

fn start(messages: &[Message]) -> (Position, bool) {
    match messages.first() {
        Some(Message::Start { position, resumed }) => (*position, *resumed),
        other => panic!("a feed begins with its start, not {other:?}"),
    }
}

fn echo(messages: &[Message]) -> Proof {
    let echo = messages.iter().find_map(|message| match message {
        Message::Echo(echo) => echo.proof,
        _ => None,
    });
    echo.expect("the ping was echoed, with a proof")
}

fn keys(items: &[Item]) -> Vec<(&str, Version)> {
    let purges = items.iter().map(|item| match item {
        Item::Purge(purge) => (purge.key.as_str(), purge.version),
        other => panic!("{other:?} is no purge"),
    });
    purges.collect()
}

#[tokio::test]
async fn a_write_is_announced_before_it_is_acknowledged() {
    let world = World::start().await;
    let mut reader = Reader::follow(&world, None).await;
    reader.read();
    let written = world.put("k", Bytes::from("v")).await.unwrap();
    assert_eq!(keys(&reader.items()), [("k", written.version)]);
    let deleted = world.delete("never-there").await.unwrap();
    assert_eq!(keys(&reader.items()), [("never-there", deleted.version)]);
}

#[tokio::test]
async fn small_states_come_along_with_the_time_left_and_large_ones_do_not() {
    let world = World::start().await;
    let mut reader = Reader::follow(&world, None).await;
    reader.read();
    for name in ["small", "large", "deleted", "expiring"] {
        let read = Read { asker: Some(FollowerId(1)), ..Read::latest() };
        world.origin.get(world.namespace, &key(name), &read).await.unwrap();
    }
    world.put("small", pattern(1024, 1)).await.unwrap();
    world.put("large", pattern(1025, 1)).await.unwrap();
    world.delete("deleted").await.unwrap();
    world.put_expiring("expiring", Bytes::from("v"), Expires::After(100)).await.unwrap();
    let states: Vec<Option<Pushed>> = reader
        .items()
        .into_iter()
        .map(|item| match item {
            Item::Purge(purge) => purge.state,
            other => panic!("{other:?} is no purge"),
        })
        .collect();
    let [Some(Pushed::Present { value, time_left: None, .. }), None, Some(Pushed::Absent), Some(expiring)] =
        &states[..]
    else {
        panic!("{states:?}")
    };
    assert_eq!(*value, pattern(1024, 1));
    let Pushed::Present { time_left: Some(left), expiration: Some(_), .. } = expiring else { panic!("{expiring:?}") };
    assert_eq!(*left, 100 * SECOND);
}

#[tokio::test]
async fn an_echo_proves_all_up_to_the_last_version() {
    let world = World::start().await;
    let written = world.put("k", Bytes::from("v")).await.unwrap();
    let messages = Reader::follow(&world, None).await.read();
    assert_eq!(echo(&messages), Proof { age: Duration::ZERO, version: written.version });
}

#[tokio::test]
async fn after_a_failed_commit_nothing_newer_is_proven() {
    let world = World::start().await;
    world.store.fail_after(0, FailedCommit::Kept);
    world.put("k", Bytes::from("v")).await.unwrap_err();
    world.clock.advance(7 * SECOND);
    assert_eq!(echo(&Reader::follow(&world, None).await.read()).age, 7 * SECOND);
}

#[tokio::test]
async fn over_a_restart_a_follower_is_sent_what_it_missed() {
    let mut world = World::start().await;
    let (position, _) = start(&Reader::follow(&world, None).await.read());
    let missed = world.put("missed", Bytes::from("v")).await.unwrap();
    world.store.fail_after(0, FailedCommit::Kept);
    world.put("unknown", Bytes::from("v")).await.unwrap_err();
    world.crash().await;
    let mut reader = Reader::follow(&world, Some(position)).await;
    let messages = reader.read();
    assert!(start(&messages).1, "it goes on");
    let Some(Message::Items { items, .. }) = messages.iter().find(|m| matches!(m, Message::Items { .. })) else {
        panic!("{messages:?} has no items")
    };
    let found = keys(items);
    assert_eq!(found[0], ("missed", missed.version));
    assert_eq!(found[1].0, "unknown", "what the disk took is announced, whoever knew of it");
    let later = world.put("later", Bytes::from("v")).await.unwrap();
    assert_eq!(keys(&reader.items()), [("later", later.version)]);
    let next = Reader::follow(&world, None).await.read();
    assert_ne!(start(&next).0.epoch, position.epoch);
}

#[tokio::test]
async fn what_a_crash_lost_is_resumed_by_nobody() {
    let mut world = World::start().await;
    world.put("k", Bytes::from("v")).await.unwrap();
    let (position, _) = start(&Reader::follow(&world, None).await.read());
    let beyond = Position { sequence: position.sequence + 1, ..position };
    world.crash().await;
    assert!(start(&Reader::follow(&world, Some(position)).await.read()).1);
    assert!(!start(&Reader::follow(&world, Some(beyond)).await.read()).1);
}

#[tokio::test]
async fn the_stored_log_is_bounded_in_bytes_and_in_time() {
    let feed = FeedSettings { log_bytes_max: 2000, log_age_max: 60 * SECOND };
    let world = World::start_with(OriginSettings { feed, ..OriginSettings::default() }).await;
    for i in 0..100 {
        world.put(&format!("key-{i:03}"), Bytes::from("v")).await.unwrap();
    }
    let rows = world.store.count(Table::Purge);
    assert!((10..60).contains(&rows), "{rows} rows");
    world.clock.advance(61 * SECOND);
    world.put("k", Bytes::from("v")).await.unwrap();
    assert_eq!(world.store.count(Table::Purge), 1);
}

#[tokio::test]
async fn a_removed_namespace_is_announced_after_its_record() {
    let world = World::start().await;
    let mut reader = Reader::follow(&world, None).await;
    reader.read();
    let (_, version) = world.origin.control(ACCOUNT, Control::RemoveNamespace { id: world.namespace }).await.unwrap();
    let items = reader.items();
    let [Item::Purge(record), Item::Namespace { namespace, version: removed }] = &items[..] else {
        panic!("{items:?}")
    };
    assert_eq!((record.namespace, record.version), (NamespaceId::RESERVED, version));
    assert_eq!((*namespace, *removed), (world.namespace, version));
}

#[tokio::test]
async fn what_expires_changes_nothing_that_a_follower_does_not_know() {
    let world = World::start().await;
    world.put_expiring("k", Bytes::from("v"), Expires::After(60)).await.unwrap();
    let mut reader = Reader::follow(&world, None).await;
    reader.read();
    world.clock.advance(61 * SECOND);
    world.until_rows(Table::Expiry, 0).await;
    assert!(reader.items().is_empty());
}

#[tokio::test]
async fn a_garbled_part_of_the_stored_log_is_a_gap_and_no_more() {
    let mut world = World::start().await;
    let (position, _) = start(&Reader::follow(&world, None).await.read());
    world.put("k", Bytes::from("v")).await.unwrap();
    let mut batch = crate::store::Batch::default();
    batch.put(Table::Purge, crate::store::keys::Purges::row(position.sequence + 1), Bytes::from_static(b"?"));
    crate::store::Store::commit(&*world.store, batch, crate::store::Durability::Synced).await.unwrap();
    world.crash().await;
    assert!(
        !start(&Reader::follow(&world, Some(Position { sequence: position.sequence + 1, ..position })).await.read()).1
    );
    world.put("k", Bytes::from("w")).await.unwrap();
}
