//! The listing of keys (rest-api 3.1).

use super::*;

fn names(reply: &Reply) -> Vec<String> {
    let result = reply.result();
    result.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect()
}

async fn filled(keys: &[&str]) -> World {
    let world = World::start().await;
    let entries: Vec<Json> = keys.iter().map(|key| json!({"key": key, "value": "v"})).collect();
    world.send(Ask::new(Method::PUT, &world.path("bulk")).body(json!(entries).to_string())).await.result();
    world
}

#[tokio::test]
async fn names_come_in_byte_order_with_what_belongs_to_them() {
    let world = filled(&["b", "\u{10000}", "\u{ffff}", "a/b", "A"]).await;
    let at = world.now() + 100;
    let entry = json!([{"key": "m", "value": "", "metadata": {"n": [1, null]}, "expiration": at}]);
    world.put(&world.path("bulk"), entry.to_string()).await.result();
    let reply = world.get(&world.path("keys")).await;
    assert_eq!(names(&reply), ["A", "a/b", "b", "m", "\u{ffff}", "\u{10000}"]);
    assert_eq!(reply.result()[0], json!({"name": "A"}));
    assert_eq!(reply.result()[3], json!({"name": "m", "expiration": at, "metadata": {"n": [1, null]}}));
    // At the end the cursor is empty, and the other form of it gone.
    assert_eq!(reply.info(), json!({"count": 6, "cursor": ""}));
    world.clock.advance(Duration::from_secs(101));
    assert_eq!(names(&world.get(&world.path("keys")).await).len(), 5);
}

#[tokio::test]
async fn both_cursors_lead_through_all_pages() {
    let world = filled(&["a", "b", "c", "d", "e"]).await;
    let (mut found, mut pages, mut cursor) = (Vec::new(), 0, String::new());
    loop {
        let reply = world.get(&world.path(&format!("keys?limit=2&prefix=&cursor={cursor}"))).await;
        found.extend(names(&reply));
        pages += 1;
        let info = reply.info();
        assert_eq!(info["count"].as_u64().unwrap(), reply.result().as_array().unwrap().len() as u64);
        cursor = info["cursor"].as_str().unwrap().to_owned();
        if cursor.is_empty() {
            assert_eq!(info.get("cursors"), None);
            break;
        }
        assert_eq!(info["cursors"]["after"].as_str(), Some(cursor.as_str()));
        cursor = form_urlencoded::byte_serialize(cursor.as_bytes()).collect();
    }
    assert_eq!((found.concat().as_str(), pages), ("abcde", 3));
}

#[tokio::test]
async fn a_prefix_is_matched_by_decoded_bytes() {
    let world = filled(&["a", "a b", "a+b", "ab", "\u{e9}t\u{e9}", "%41"]).await;
    for (query, expected) in [
        ("prefix=a", &["a", "a b", "a+b", "ab"][..]),
        ("prefix=a+b", &["a b"]),
        ("prefix=a%20b", &["a b"]),
        ("prefix=a%2Bb", &["a+b"]),
        ("prefix=%C3%A9", &["\u{e9}t\u{e9}"]),
        ("prefix=%2541", &["%41"]),
        ("prefix=A", &[]),
        ("prefix=a%00", &[]),
    ] {
        assert_eq!(names(&world.get(&world.path(&format!("keys?{query}"))).await), expected, "{query}");
    }
    world.get(&world.path(&format!("keys?prefix={}", "x".repeat(513)))).await.fails(
        414,
        10030,
        "list keys: 'UTF-8 encoded length of 513 exceeds key length limit of 512.'",
    );
    for bad in ["prefix=%zz", "prefix=%ED%A0%80", "prefix=%"] {
        world.get(&world.path(&format!("keys?{bad}"))).await.fails_saying(400, 10012, "could not URL-decode");
    }
}

#[tokio::test]
async fn limits_and_cursors_are_checked() {
    let world = filled(&["a", "b", "c"]).await;
    assert_eq!(names(&world.get(&world.path("keys?limit=1")).await), ["a"]);
    assert_eq!(names(&world.get(&world.path("keys?limit=1000")).await).len(), 3);
    for bad in ["0", "1001", "-1", "x", "", "99999999999999999999"] {
        let text = format!("list keys: 'Invalid limit of {bad}. Please specify an integer from 1 to 1000.'");
        world.get(&world.path(&format!("keys?limit={bad}"))).await.fails(400, 10028, &text);
    }
    let cursor = world.get(&world.path("keys?limit=1")).await.info()["cursor"].as_str().unwrap().to_owned();
    let forged: String = cursor.chars().rev().collect();
    for bad in ["x", "%00", forged.as_str()] {
        world.get(&world.path(&format!("keys?cursor={bad}"))).await.fails_saying(400, 10041, "list keys: ");
    }
}
