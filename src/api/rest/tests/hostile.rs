//! Whatever arrives is answered with an envelope, and its body read on.

use super::*;

#[tokio::test]
async fn bodies_nobody_asked_for_are_read_to_a_bound() {
    let world = World::start().await;
    let chunk = Bytes::from(vec![0; 100_000]);
    for (method, path, token) in [
        (Method::GET, world.path("keys"), Some("Admin")),
        (Method::DELETE, world.path("values/k"), Some("Admin")),
        (Method::PUT, world.path("values/k"), None),
        (Method::PUT, world.path("values/k"), Some("Read")),
        (Method::PUT, world.path("values/k?expiration_ttl=1"), Some("Admin")),
        (Method::PUT, world.path("values/a/b"), Some("Admin")),
        (Method::POST, world.path("bulk/get"), Some("Admin")),
    ] {
        let (body, taken) = counted(30, chunk.clone());
        let reply = world.send(Ask::new(method, &path).token(token).stream(body)).await;
        assert!(reply.status.as_u16() >= 200);
        assert_eq!(taken.load(Ordering::Relaxed), 3_000_000, "{path}");
    }
    let (body, taken) = counted(1_000_000, chunk);
    world.send(Ask::new(Method::GET, &world.path("keys")).stream(body)).await.result();
    assert_eq!(taken.load(Ordering::Relaxed), 200_000_000);
}

#[tokio::test]
async fn a_stalled_body_is_a_408_and_writes_nothing() {
    let world = World::start().await;
    for path in ["values/k", "bulk", "bulk/delete", "bulk/get"] {
        let method = match path {
            "bulk/delete" | "bulk/get" => Method::POST,
            _ => Method::PUT,
        };
        let stalled = Error::new(crate::error::Kind::RequestTimeout, "no more of the body came within 30s");
        let chunks = vec![Ok(Bytes::from_static(b"[")), Err(stalled)];
        let reply = world.send(Ask::new(method, &world.path(path)).chunks(chunks)).await;
        reply.fails_saying(408, 10012, "no more of the body came within 30s");
    }
    assert_eq!(world.value("k").await, None);
}

#[tokio::test]
async fn small_bodies_are_bounded() {
    let world = World::start().await;
    let body = format!(r#"{{"keys": ["a"], "padding": "{}"}}"#, "x".repeat(1024 * 1024));
    let ask = Ask::new(Method::POST, &world.path("bulk/get")).body(body);
    world.send(ask).await.fails(413, 10024, "bulk get keys: 'Request body exceeds limit of 1048576.'");
    let deep = format!(r#"{{"title": {}1{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    let namespaces = format!("/client/v4/accounts/{ACCOUNT}/storage/kv/namespaces");
    let ask = Ask::new(Method::POST, &namespaces).body(deep);
    world.send(ask).await.fails_saying(400, 10012, "could not parse the request body");
    let deep = format!(r#"[{{"key": "k", "value": "v", "x": {}1{}}}]"#, "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(world.put(&world.path("bulk"), deep).await.result()["successful_key_count"], 1);
    let deep = format!(r#"[{{"key": "k", "value": {}1{}}}]"#, "[".repeat(100_000), "]".repeat(100_000));
    world.put(&world.path("bulk"), deep).await.fails_saying(400, 10012, "could not parse entry 1");
}

#[tokio::test]
async fn an_error_repeats_little_of_what_a_client_sent() {
    let world = World::start().await;
    let long = "7".repeat(900_000);
    for value in [json!(long), json!({ "x": long })] {
        for member in ["expiration", "expiration_ttl", "base64", "key", "value", "metadata"] {
            let mut entry = json!({ "key": "k", "value": "v" });
            entry[member] = value.clone();
            let reply = world.put(&world.path("bulk"), json!([entry]).to_string()).await;
            if reply.status != 200 {
                assert!(reply.body.len() < 2000, "{member}: {} bytes", reply.body.len());
            }
        }
    }
    let query = format!("values/k?expiration={}x", "9".repeat(40));
    let reply = world.put(&world.path(&query), "v").await;
    reply.fails_saying(400, 10033, &format!("Invalid expiration of {}... Please", "9".repeat(32)));
    let ask =
        Ask::new(Method::PUT, &world.path("values/k")).header("content-type", format!("multipart/form-data; {long}"));
    assert!(world.send(ask).await.body.len() < 2000);
    let namespaces = format!("/client/v4/accounts/{ACCOUNT}/storage/kv/namespaces");
    let reply = world.post(&namespaces, &json!({ "title": "t", "mode": "\u{1f600}".repeat(100_000) })).await;
    assert!(reply.body.len() < 4000, "{} bytes", reply.body.len());
}

#[tokio::test]
async fn an_array_is_no_object() {
    let world = World::start().await;
    let namespaces = format!("/client/v4/accounts/{ACCOUNT}/storage/kv/namespaces");
    world.post(&namespaces, &json!(["t", null, null])).await.fails_saying(400, 10012, "an object is expected");
    let reply = world.put(&world.path("bulk"), r#"[["k","v",null,null,null,null]]"#).await;
    reply.fails_saying(400, 10012, "could not parse entry 1: an object is expected");
    let reply = world.post(&world.path("bulk/get"), &json!([["k"], null, null])).await;
    reply.fails_saying(400, 10029, "an object is expected");
    assert_eq!(world.value("k").await, None);
}

#[tokio::test]
async fn an_entry_is_held_to_a_bound_beside_its_value() {
    let world = World::start().await;
    let body = json!([{ "key": "k", "value": "v", "other": "x".repeat(2_000_000) }]).to_string();
    world.put(&world.path("bulk"), body).await.fails_saying(413, 10024, "an element of the JSON array exceeds");
    // A name in escapes is one of those that are held.
    let body = format!(r#"[{{"key":"k","\u0076alue":"{}"}}]"#, "x".repeat(2_000_000));
    world.put(&world.path("bulk"), body).await.fails_saying(413, 10024, "an element of the JSON array exceeds");
    let body = format!("[\"{}\"]", "x".repeat(2_000_000));
    let ask = Ask::new(Method::POST, &world.path("bulk/delete")).body(body);
    world.send(ask).await.fails_saying(413, 10024, "an element of the JSON array exceeds");
    assert_eq!(world.value("k").await, None);
}

#[tokio::test]
async fn guessing_tokens_is_slowed() {
    let world = World::start().await;
    let mut last = 401;
    for guess in 0..3000 {
        let ask = Ask::new(Method::GET, &world.path("keys")).token(Some(&format!("guess-{guess}")));
        last = world.send(ask).await.status.as_u16();
        if last != 401 {
            break;
        }
    }
    assert_eq!(last, 429);
    let reply = world.send(Ask::new(Method::GET, &world.path("keys")).token(Some("again"))).await;
    reply.fails_saying(429, 971, "");
    assert_eq!(reply.headers["retry-after"], "1");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(200))]

    #[test]
    fn any_request_is_answered(
        method in "(GET|PUT|POST|DELETE|PATCH|X)",
        tail in "(values/|metadata/|keys|bulk|bulk/get|bulk/delete|)[a-z%0-9/?&=.+-]{0,12}",
        content_type in "(multipart/form-data; boundary=b|application/json|text/plain)",
        body in "(\\[|\\{|--b\r\n|)[\\[\\]{}\":,a-z0-9\r\n-]{0,40}",
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let world = World::start().await;
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let ask = Ask::new(method, &world.path(&tail)).header("content-type", content_type).body(body);
            let reply = world.send(ask).await;
            assert!(reply.status.as_u16() < 500, "{}", reply.status);
            if reply.status != 200 {
                assert_eq!(reply.json()["success"], json!(false));
            }
        });
    }
}
