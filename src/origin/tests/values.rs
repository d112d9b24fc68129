//! Values of every length: in whole, in chunks, broken off, read while they are overwritten.

use super::*;
use crate::{error::Kind, limits};

const CHUNK: usize = limits::CHUNK_BYTES;

#[tokio::test]
async fn values_of_every_length_are_read_as_written() {
    let world = World::start().await;
    let lengths = [
        0,
        1,
        limits::INLINE_BYTES_MAX,
        limits::INLINE_BYTES_MAX + 1,
        CHUNK - 1,
        CHUNK,
        CHUNK + 1,
        2 * CHUNK,
        5 * CHUNK + 7,
    ];
    for length in lengths {
        let value = pattern(length, 1);
        let known = Some(length as u64);
        for body in
            [Value::Whole(value.clone()), stream(value.clone(), 1000, known), stream(value.clone(), CHUNK * 3, None)]
        {
            world.put("k", body).await.unwrap();
            let State::Present(entry) = world.answer("k").await.state else { panic!("the entry is there") };
            assert_eq!(entry.value.length(), known);
            assert_eq!(matches!(entry.value, Value::Whole(_)), length <= CHUNK);
            assert_eq!(entry.value.collect(u64::MAX).await.unwrap(), value);
        }
    }
    world.delete("k").await.unwrap();
    world.until_rows(Table::Chunk, 0).await;
    world.until_rows(Table::Reclaim, 0).await;
}

#[tokio::test]
async fn small_values_need_no_chunk_however_they_arrive() {
    let world = World::start().await;
    world.put("a", stream(pattern(limits::INLINE_BYTES_MAX, 0), 10, None)).await.unwrap();
    world.put("b", pattern(limits::INLINE_BYTES_MAX, 0)).await.unwrap();
    assert_eq!(world.store.count(Table::Chunk), 0);
    world.put("c", stream(pattern(limits::INLINE_BYTES_MAX + 1, 0), 10, None)).await.unwrap();
    assert_eq!(world.store.count(Table::Chunk), 1);
}

#[tokio::test]
async fn the_longest_value_is_taken_and_one_byte_more_is_refused_with_its_length() {
    let world = World::start().await;
    let max = usize::try_from(limits::VALUE_BYTES_MAX).unwrap();
    let longest = pattern(max, 3);
    world.put("k", stream(longest.clone(), CHUNK, None)).await.unwrap();

    let longer = pattern(max + 10, 4);
    let announced = world.put("k", stream(longer.clone(), CHUNK, Some(longer.len() as u64))).await.unwrap_err();
    let counted = world.put("k", stream(longer, CHUNK, None)).await.unwrap_err();
    for error in [announced, counted] {
        assert_eq!(error.kind, Kind::ValueTooLarge);
        assert_eq!(error.message, "Value length of 26214410 exceeds limit of 26214400.");
    }
    assert_eq!(world.get("k").await.unwrap(), longest);
    world.until_rows(Table::Chunk, max / CHUNK).await;
}

#[tokio::test]
async fn a_body_that_breaks_off_leaves_the_old_value_and_no_chunks() {
    let world = World::start().await;
    world.put("k", Bytes::from("old")).await.unwrap();
    for length in [10, CHUNK, 3 * CHUNK + 5] {
        world.put("k", broken_stream(pattern(length, 0))).await.unwrap_err();
        assert_eq!(world.get("k").await.unwrap(), "old");
    }
    world.until_rows(Table::Chunk, 0).await;
    world.until_rows(Table::Reclaim, 0).await;
}

#[tokio::test]
async fn a_body_of_another_length_than_announced_is_refused() {
    let world = World::start().await;
    for (length, announced) in [(10, 11), (10, 9), (3 * CHUNK, 3 * CHUNK + 1), (3 * CHUNK, 2 * CHUNK)] {
        let body = stream(pattern(length, 0), 1000, Some(announced as u64));
        assert_eq!(world.put("k", body).await.unwrap_err().kind, Kind::BadRequest);
    }
    assert!(world.get("k").await.is_none());
    world.until_rows(Table::Chunk, 0).await;
}

#[tokio::test]
async fn an_upload_whose_client_goes_away_is_reclaimed() {
    let world = World::start().await;
    let parts = futures_util::stream::iter([Ok(pattern(3 * CHUNK, 0))]).chain(futures_util::stream::pending());
    let body = Value::Stream(ValueStream { length: None, chunks: parts.boxed() });
    let change = Change::Put { value: body, metadata: None, expires: Expires::Never };
    let upload = tokio::spawn({
        let (origin, namespace) = (Arc::clone(&world.origin), world.namespace);
        async move { origin.write(namespace, &key("k"), change, Via::default()).await }
    });
    world.until_rows(Table::Chunk, 2).await;
    assert_eq!(world.store.count(Table::Reclaim), 1);
    upload.abort();
    world.until_rows(Table::Chunk, 0).await;
    world.until_rows(Table::Reclaim, 0).await;
}

#[tokio::test]
async fn an_upload_under_way_at_a_crash_is_reclaimed_at_the_next_start() {
    let mut world = World::start().await;
    let parts = futures_util::stream::iter([Ok(pattern(3 * CHUNK, 0))]).chain(futures_util::stream::pending());
    let body = Value::Stream(ValueStream { length: None, chunks: parts.boxed() });
    let change = Change::Put { value: body, metadata: None, expires: Expires::Never };
    tokio::spawn({
        let (origin, namespace) = (Arc::clone(&world.origin), world.namespace);
        async move { origin.write(namespace, &key("k"), change, Via::default()).await }
    });
    world.until_rows(Table::Chunk, 2).await;
    // Another write's sync puts the chunks on disk.
    world.put("other", Bytes::from("v")).await.unwrap();
    world.crash().await;
    world.until_rows(Table::Chunk, 0).await;
    world.until_rows(Table::Reclaim, 0).await;
    assert_eq!(world.names().await, ["other"]);
}

#[tokio::test]
async fn a_reader_ends_with_the_old_bytes_when_its_value_is_overwritten() {
    let world = World::start().await;
    let (old, new) = (pattern(10 * CHUNK, 1), pattern(10 * CHUNK, 2));
    world.put("k", old.clone()).await.unwrap();
    let State::Present(entry) = world.answer("k").await.state else { panic!("the entry is there") };
    world.put("k", new.clone()).await.unwrap();
    world.put("other", pattern(2 * CHUNK, 0)).await.unwrap();
    world.delete("other").await.unwrap();
    // The other value is reclaimed, the one that is read is passed over.
    world.until_rows(Table::Chunk, 20).await;
    world.until_rows(Table::Reclaim, 1).await;
    assert_eq!(entry.value.collect(u64::MAX).await.unwrap(), old);
    world.until_rows(Table::Chunk, 10).await;
    world.until_rows(Table::Reclaim, 0).await;
    assert_eq!(world.get("k").await.unwrap(), new);
}

#[tokio::test]
async fn a_reader_that_goes_away_lets_its_value_be_reclaimed() {
    let world = World::start().await;
    world.put("k", pattern(4 * CHUNK, 1)).await.unwrap();
    let answer = world.answer("k").await;
    world.delete("k").await.unwrap();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.store.count(Table::Chunk), 4);
    drop(answer);
    world.until_rows(Table::Chunk, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_among_overwrites_always_get_one_whole_value() {
    let world = Arc::new(World::start().await);
    let length = 3 * CHUNK + 11;
    world.put("k", pattern(length, 0)).await.unwrap();
    let writer = tokio::spawn({
        let world = Arc::clone(&world);
        async move {
            for seed in 1..=100 {
                world.put("k", pattern(length, seed)).await.unwrap();
            }
        }
    });
    while !writer.is_finished() {
        let value = world.get("k").await.unwrap();
        assert_eq!(value, pattern(length, value[0]));
    }
    writer.await.unwrap();
    assert_eq!(world.get("k").await.unwrap(), pattern(length, 100));
    world.until_rows(Table::Chunk, 4).await;
}

#[tokio::test]
async fn a_missing_chunk_is_an_error_in_the_stream_and_not_a_short_value() {
    use crate::store::{Batch, Durability, Store as _};
    let world = World::start().await;
    world.put("k", pattern(4 * CHUNK, 1)).await.unwrap();
    let rows = world.store.scan(Table::Chunk, b"", b"", 10).await.unwrap();
    let mut batch = Batch::default();
    batch.remove(Table::Chunk, rows[2].0.clone());
    world.store.commit(batch, Durability::Synced).await.unwrap();
    let State::Present(entry) = world.answer("k").await.state else { panic!("the entry is there") };
    let error = entry.value.collect(u64::MAX).await.unwrap_err();
    assert_eq!(error.kind, Kind::Internal);
    assert!(error.message.contains("chunk 2 of value"), "{error}");
}
