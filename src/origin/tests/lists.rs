//! Listings: order, pages, cursors, expired entries.

use super::*;
use crate::{error::Kind, limits};

async fn fill(world: &World, names: &[&str]) {
    for name in names {
        world.put(name, Bytes::from("v")).await.unwrap();
    }
}

/// All names under a prefix, by pages of a limit; and the number of pages.
async fn walk(world: &World, prefix: &'static str, limit: usize) -> (Vec<String>, usize) {
    let (mut found, mut cursor, mut pages) = (Vec::new(), None, 0);
    loop {
        let page = world.list(prefix, limit, cursor).await.unwrap();
        assert!(page.keys.len() <= limit);
        found.extend(names(&page));
        pages += 1;
        cursor = page.cursor;
        if cursor.is_none() {
            return (found, pages);
        }
    }
}

#[tokio::test]
async fn names_come_in_byte_order_within_their_prefix_and_namespace() {
    let world = World::start().await;
    fill(&world, &["b", "a/2", "a/1", "a", "\u{fffd}", "Z", "a/\u{10ffff}"]).await;
    let other = create_namespace(&world.origin, "other").await.unwrap();
    let put = Change::Put { value: Bytes::new().into(), metadata: None, expires: Expires::Never };
    world.origin.write(other, &key("a/foreign"), put, Via::default()).await.unwrap();
    assert_eq!(world.names().await, ["Z", "a", "a/1", "a/2", "a/\u{10ffff}", "b", "\u{fffd}"]);
    let page = world.list("a/", 1000, None).await.unwrap();
    assert_eq!(names(&page), ["a/1", "a/2", "a/\u{10ffff}"]);
    assert_eq!(names(&world.list("c", 1000, None).await.unwrap()), [""; 0]);
}

#[tokio::test]
async fn a_listing_carries_metadata_and_expiration() {
    let world = World::start().await;
    let change = Change::Put {
        value: pattern(100_000, 0).into(),
        metadata: Some(Bytes::from("[1]")),
        expires: Expires::After(100),
    };
    let written = world.origin.write(world.namespace, &key("k"), change, Via::default()).await.unwrap();
    let page = world.list("", 10, None).await.unwrap();
    assert_eq!(page.keys[0].metadata.as_deref(), Some(&b"[1]"[..]));
    assert_eq!(page.keys[0].expiration, written.expiration);
    assert_eq!(page.cursor, None);
}

#[tokio::test]
async fn pages_follow_each_other_without_gap_or_repetition_and_the_last_has_no_cursor() {
    let world = World::start().await;
    let all: Vec<String> = (0..10).map(|i| format!("k{i}")).collect();
    for name in &all {
        world.put(name, Bytes::from("v")).await.unwrap();
    }
    for (limit, pages) in [(1, 10), (3, 4), (5, 2), (9, 2), (10, 1), (1000, 1)] {
        assert_eq!(walk(&world, "", limit).await, (all.clone(), pages));
        assert_eq!(walk(&world, "k", limit).await, (all.clone(), pages));
    }
}

#[tokio::test]
async fn expired_entries_take_no_place_on_a_page() {
    let world = World::start().await;
    for i in 0..20 {
        let expires = if i % 2 == 0 { Expires::After(60) } else { Expires::Never };
        world.put_expiring(&format!("k{i:02}"), Bytes::from("v"), expires).await.unwrap();
    }
    world.clock.step_wall(60_000);
    let page = world.list("", 4, None).await.unwrap();
    assert_eq!(names(&page), ["k01", "k03", "k05", "k07"]);
    assert_eq!(walk(&world, "", 5).await.1, 2);
    // The only entry after the page has expired: then it is the last.
    let page = world.list("", 10, None).await.unwrap();
    assert_eq!((page.keys.len(), page.cursor), (10, None));
}

#[tokio::test]
async fn a_page_steps_over_a_bounded_number_of_expired_entries() {
    let world = World::start().await;
    let rows = 100_000;
    let writes: Vec<_> = (0..rows)
        .map(|i| {
            let put = Change::Put { value: Bytes::new().into(), metadata: None, expires: Expires::After(60) };
            (key(&format!("k{i:06}")), put)
        })
        .collect();
    world.origin.write_many(world.namespace, writes, Via::default()).await.unwrap();
    world.put("z", Bytes::from("v")).await.unwrap();
    // The sweeper sleeps by the monotonic clock, so it doesn't help.
    world.clock.step_wall(60_000);
    let page = world.list("", 10, None).await.unwrap();
    assert!(page.keys.is_empty() && page.cursor.is_some());
    assert_eq!(walk(&world, "", 10).await, (vec!["z".to_owned()], rows / limits::LIST_ROWS_SCANNED_MAX));
}

#[tokio::test]
async fn a_cursor_goes_on_after_a_restart_and_sees_what_was_added_behind_it() {
    let mut world = World::start().await;
    fill(&world, &["a", "b", "d"]).await;
    let page = world.list("", 2, None).await.unwrap();
    world.restart().await;
    fill(&world, &["aa", "c"]).await;
    world.delete("b").await.unwrap();
    let page = world.list("", 1000, page.cursor).await.unwrap();
    assert_eq!(names(&page), ["c", "d"]);
}

#[tokio::test]
async fn a_cursor_of_another_listing_or_of_nobody_is_refused() {
    let world = World::start().await;
    fill(&world, &["a1", "a2", "a3"]).await;
    let cursor = world.list("a", 1, None).await.unwrap().cursor.unwrap();
    let other = create_namespace(&world.origin, "other").await.unwrap();
    let list = List { prefix: Bytes::from("a"), limit: 1, cursor: Some(cursor.clone()) };
    assert_eq!(world.origin.list(other, &list).await.unwrap_err().kind, Kind::CursorInvalid);
    assert_eq!(world.list("", 1, Some(cursor)).await.unwrap_err().kind, Kind::CursorInvalid);
    for forged in ["", "AQ", "not base64!", "YTE"] {
        let error = world.list("a", 1, Some(forged.into())).await.unwrap_err();
        assert_eq!(error.kind, Kind::CursorInvalid);
    }
}
