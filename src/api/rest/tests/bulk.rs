//! The bulk calls (rest-api 4).

use super::*;

async fn bulk_put(world: &World, body: impl Into<Bytes>) -> Reply {
    world.put(&world.path("bulk"), body).await
}

async fn bulk_get(world: &World, body: Json) -> Reply {
    world.post(&world.path("bulk/get"), &body).await
}

fn nothing(reply: &Reply) {
    assert_eq!(reply.json()["result"], json!({"successful_key_count": 0, "unsuccessful_keys": []}));
}

#[tokio::test]
async fn entries_are_written_with_all_that_belongs_to_them() {
    let world = World::start().await;
    let now = world.now();
    let large = "x".repeat(300_000);
    let body = json!([
        {"key": "plain", "value": "v\u{e9}\"\\"},
        {"key": "bytes", "value": "AAEC/+8=", "base64": true},
        {"key": "text", "value": "AAEC", "base64": false, "metadata": null, "expiration": null, "expiration_ttl": null},
        {"key": "meta", "value": "", "metadata": {"a": [1, 2.50]}},
        {"key": "ttl", "value": "v", "expiration_ttl": 60, "expiration": "nonsense"},
        {"key": "at", "value": "v", "expiration": now + 100, "other": {"deep": [[[[]]]]}},
        {"key": "fraction", "value": "v", "expiration": now as f64 + 100.5},
        {"key": "large", "value": large, "metadata": "m"},
        {"key": "last/one", "value": "v"},
    ]);
    for pretty in [false, true] {
        let text = if pretty { serde_json::to_string_pretty(&body).unwrap() } else { body.to_string() };
        let chunks =
            text.as_bytes().chunks(if pretty { 7 } else { 100_000 }).map(|chunk| Ok(Bytes::copy_from_slice(chunk)));
        let ask = Ask::new(Method::PUT, &world.path("bulk")).chunks(chunks.collect());
        assert_eq!(world.send(ask).await.result(), json!({"successful_key_count": 9, "unsuccessful_keys": []}));
    }
    assert_eq!(world.value("plain").await.unwrap(), "v\u{e9}\"\\");
    assert_eq!(world.value("bytes").await.unwrap(), &[0, 1, 2, 255, 239][..]);
    assert_eq!(world.value("text").await.unwrap(), "AAEC");
    assert_eq!(world.value("large").await.unwrap(), large);
    assert_eq!(world.value("last%2Fone").await.unwrap(), "v");
    assert_eq!(world.metadata("meta").await, json!({"a": [1, 2.50]}));
    assert_eq!(world.metadata("large").await, json!("m"));
    assert_eq!(world.metadata("text").await, Json::Null);
    for (key, expiration) in [("ttl", now + 60), ("at", now + 100), ("fraction", now + 100)] {
        let reply = world.get(&world.path(&format!("values/{key}"))).await;
        assert_eq!(reply.headers["expiration"], expiration.to_string(), "{key}");
    }
    assert_eq!(world.get(&world.path("values/text")).await.headers.get("expiration"), None);
}

#[tokio::test]
async fn one_bad_entry_refuses_all() {
    let world = World::start().await;
    let now = world.now();
    let past = format!(
        "bulk put: 'Invalid expiration of {now}. Please specify integer greater than the current number of seconds since the UNIX epoch.'"
    );
    for (entry, status, code, text) in [
        (
            json!({"key": "k", "value": "YQ", "base64": true}),
            400,
            10012,
            "bulk put: 'could not base64 decode value for key: \"k\", err: 'illegal base64 data at input byte 2''",
        ),
        (
            json!({"key": "k", "value": "v", "expiration_ttl": 59}),
            400,
            10034,
            "bulk put: 'Invalid expiration_ttl of 59. Expiration TTL must be at least 60.'",
        ),
        (
            json!({"key": "k", "value": "v", "expiration_ttl": "60"}),
            400,
            10034,
            "bulk put: 'Invalid expiration_ttl of \"60\". Please specify integer greater than 0.'",
        ),
        (json!({"key": "k", "value": "v", "expiration": now}), 400, 10033, &past),
        (
            json!({"key": "k", "value": "v", "metadata": "x".repeat(1023)}),
            413,
            10024,
            "bulk put: 'Metadata length of 1025 exceeds limit of 1024.'",
        ),
        (json!({"key": "", "value": "v"}), 400, 10042, "bulk put: 'Key names must not be empty'"),
        (
            json!({"key": "..", "value": "v"}),
            400,
            10042,
            "bulk put: 'Illegal key name \"..\". Please use a different name.'",
        ),
        (
            json!({"key": "x".repeat(513), "value": "v"}),
            414,
            10030,
            "bulk put: 'UTF-8 encoded length of 513 exceeds key length limit of 512.'",
        ),
        (
            json!({"key": "first", "value": "other"}),
            400,
            10012,
            "bulk put: 'received duplicate key with different values or expiration parameters: \"first\"'",
        ),
        (
            json!({"key": "first", "value": "v", "metadata": 1}),
            400,
            10012,
            "bulk put: 'received duplicate key with different values or expiration parameters: \"first\"'",
        ),
        (
            json!({"key": "k", "value": "x".repeat(26_214_401)}),
            413,
            10024,
            "bulk put: 'Value length of 26214401 exceeds limit of 26214400.'",
        ),
    ] {
        let reply =
            bulk_put(&world, json!([{"key": "first", "value": "v"}, entry, {"key": "last", "value": "v"}]).to_string())
                .await;
        reply.fails(status, code, text);
        nothing(&reply);
        assert_eq!(world.get(&world.path("keys")).await.result(), json!([]));
    }
    for entry in [
        json!({"key": "k"}),
        json!({"value": "v"}),
        json!({"key": 1, "value": "v"}),
        json!({"key": "k", "value": 1}),
        json!({"key": "k", "value": null}),
        json!({"key": "k", "value": "v", "base64": "yes"}),
        json!("k"),
        json!(null),
        json!([]),
    ] {
        let reply = bulk_put(&world, json!([{"key": "first", "value": "v"}, entry]).to_string()).await;
        reply.fails_saying(400, 10012, "bulk put: 'could not parse entry 2: ");
        nothing(&reply);
    }
    for body in [
        "",
        "{}",
        "[",
        "[1",
        "[{\"key\":\"k\",\"value\":\"v\"}",
        "[{\"key\":\"k\",\"value\":\"v\"},]",
        "[{\"key\":\"\\ud800\",\"value\":\"v\"}]",
        "[{\"key\":\"k\",\"value\":\"v\"}] x",
        "nonsense",
    ] {
        bulk_put(&world, body).await.fails_saying(400, 10012, "could not parse");
    }
    assert_eq!(world.get(&world.path("keys")).await.result(), json!([]));
}

#[tokio::test]
async fn repeated_entries_are_merged() {
    let world = World::start().await;
    let body = r#"[{"key":"k","value":"a","metadata":{"n":1}},{"value":"\u0061","key":"k","metadata":{"n":1}},
        {"key":"k","value":"YQ==","base64":true,"metadata":{"n":1}}]"#;
    assert_eq!(bulk_put(&world, body).await.result()["successful_key_count"], 1);
    assert_eq!(world.value("k").await.unwrap(), "a");
    assert_eq!(bulk_put(&world, " [ ] ").await.result(), json!({"successful_key_count": 0, "unsuccessful_keys": []}));
}

#[tokio::test]
async fn keys_that_could_not_be_written_are_named() {
    let world = World::start().await;
    world.backend.broken.lock().unwrap().extend(["b", "d"]);
    let large = "x".repeat(100_000);
    let body = json!([{"key": "d", "value": large}, {"key": "a", "value": "v"}, {"key": "b", "value": "v"}, {"key": "c", "value": large}]);
    assert_eq!(
        bulk_put(&world, body.to_string()).await.result(),
        json!({"successful_key_count": 2, "unsuccessful_keys": ["b", "d"]})
    );
    assert_eq!((world.value("a").await.is_some(), world.value("b").await), (true, None));
    let reply = world.post(&world.path("bulk/delete"), &json!(["d", "c", "b", "a"])).await;
    assert_eq!(reply.result(), json!({"successful_key_count": 2, "unsuccessful_keys": ["b", "d"]}));

    let reply = bulk_put(&world, r#"[{"key":"b","value":"v"}]"#).await;
    reply.fails(503, 10001, "bulk put: 'the disk is away'");
    assert_eq!(reply.json()["result"], json!({"successful_key_count": 0, "unsuccessful_keys": ["b"]}));
    assert_eq!(reply.headers["retry-after"], "1");
}

#[tokio::test]
async fn as_many_entries_as_are_allowed_and_not_one_more() {
    let world = World::start().await;
    let entries = |count: usize| {
        let entries: Vec<Json> = (0..count).map(|n| json!({"key": format!("k{n}"), "value": n.to_string()})).collect();
        json!(entries).to_string()
    };
    assert_eq!(bulk_put(&world, entries(10_000)).await.result()["successful_key_count"], 10_000);
    assert_eq!(world.value("k9999").await.unwrap(), "9999");
    let reply = bulk_put(&world, entries(10_001)).await;
    reply.fails(400, 10020, "bulk put: 'You can send a maximum of 10000 entries'");
    nothing(&reply);
    let keys = |count: usize| json!((0..count).map(|n| format!("k{n}")).collect::<Vec<_>>());
    let reply = world.post(&world.path("bulk/delete"), &keys(10_001)).await;
    reply.fails(400, 10020, "bulk delete: 'You can send a maximum of 10000 entries'");
    assert_eq!(world.value("k1").await.unwrap(), "1");
    assert_eq!(world.post(&world.path("bulk/delete"), &keys(10_000)).await.result()["successful_key_count"], 10_000);
    assert_eq!(world.get(&world.path("keys")).await.result(), json!([]));
}

/// An array of entries of these value lengths, made as it is sent.
fn large_body(values: Vec<usize>) -> RequestBody {
    let parts = values.into_iter().enumerate().flat_map(|(at, length)| {
        let head = format!("{}{{\"key\":\"k{at}\",\"value\":\"", if at == 0 { "[" } else { "," });
        let chunk = Bytes::from(vec![b'a'; 100_000]);
        let value = (0..length).step_by(100_000).map(move |from| chunk.slice(..100_000.min(length - from)));
        std::iter::once(Bytes::from(head)).chain(value).chain([Bytes::from_static(b"\"}")])
    });
    stream::iter(parts.chain([Bytes::from_static(b"]")])).map(Ok).boxed()
}

#[tokio::test]
async fn a_body_of_100_mb_is_written_without_being_held() {
    let world = World::start().await;
    // All but two megabytes of the room is taken.
    let taken = world.buffers.try_take(BUFFERS - 2_000_000).unwrap();
    let body = large_body(vec![20_000_000, 26_214_400, 1000, 20_000_000, 20_000_000, 60_000]);
    let request =
        http::Request::builder().method("PUT").uri(world.path("bulk")).header("authorization", "Bearer Admin");
    let (parts, _) = world.rest.handle(request.body(body).unwrap()).await.into_parts();
    assert_eq!(parts.status, 200);
    drop(taken);
    assert_eq!(world.value("k1").await.unwrap().len(), 26_214_400);
    assert_eq!(world.value("k5").await.unwrap().len(), 60_000);
}

#[tokio::test]
async fn long_values_are_the_same_however_they_arrive() {
    let world = World::start().await;
    let text = "t\u{e9}\"\\\n\u{1f600}".repeat(20_000);
    let bytes: Vec<u8> = (0..300_001u32).map(|n| (n.wrapping_mul(n) >> 3) as u8).collect();
    let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &bytes);
    let body = json!([
        {"key": "text", "value": text, "metadata": {"n": 1}, "expiration_ttl": 100},
        {"key": "bytes", "base64": true, "value": encoded},
        {"key": "still text", "value": encoded, "base64": false},
        {"value": text, "key": "text", "metadata": {"n": 1}, "expiration_ttl": 100},
        {"key": "short", "value": "s"},
    ]);
    let text_of_body = body.to_string();
    for chunk_length in [997, 65_536, text_of_body.len()] {
        world.delete(&world.path("values/text")).await.result();
        let chunks = text_of_body.as_bytes().chunks(chunk_length).map(|chunk| Ok(Bytes::copy_from_slice(chunk)));
        let ask = Ask::new(Method::PUT, &world.path("bulk")).chunks(chunks.collect());
        assert_eq!(world.send(ask).await.result()["successful_key_count"], 4);
        assert!(world.value("text").await.unwrap() == text);
        assert!(world.value("bytes").await.unwrap() == bytes);
        assert!(world.value("still%20text").await.unwrap() == encoded);
        assert_eq!(world.value("short").await.unwrap(), "s");
        assert_eq!(world.metadata("text").await, json!({"n": 1}));
    }
    let long = "YWJj".repeat(50_000);
    for (value, base64, text) in [
        (
            format!("{long}*{long}"),
            true,
            "could not base64 decode value for key: \"k\", err: 'illegal base64 data at input byte 200000'",
        ),
        (format!("{long}YQ"), true, "could not base64 decode value for key: \"k\""),
        (format!("{long}YQ==YQ=="), true, "could not base64 decode value for key: \"k\""),
        (format!("{long}\\ud800"), false, "could not parse a long value"),
        (format!("{long}\u{1}"), false, "could not parse a long value"),
    ] {
        let body = format!(r#"[{{"key":"first","value":"v"}},{{"key":"k","value":"{value}","base64":{base64}}}]"#);
        let chunks = body.as_bytes().chunks(10_000).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
        let reply = world.send(Ask::new(Method::PUT, &world.path("bulk")).chunks(chunks)).await;
        reply.fails_saying(400, 10012, text);
        nothing(&reply);
        assert_eq!(world.value("first").await, None);
    }
    let ask = Ask::new(Method::PUT, &world.path("bulk")).stream(large_body(vec![26_214_401]));
    world.send(ask).await.fails(413, 10024, "bulk put: 'Value length of 26214401 exceeds limit of 26214400.'");
}

#[tokio::test]
async fn a_body_beyond_100_mb_is_read_on_and_refused() {
    let world = World::start().await;
    for announced in [true, false] {
        let (body, taken) = counted(1100, Bytes::from(vec![b' '; 100_000]));
        let mut ask = Ask::new(Method::PUT, &world.path("bulk")).stream(body);
        if announced {
            ask = ask.header("content-length", "110000000");
        }
        world.send(ask).await.fails_saying(413, 10024, "exceeds limit of 100000000.");
        assert_eq!(taken.load(Ordering::Relaxed), 110_000_000);
    }
    // What does not end is not read for ever.
    let (body, taken) = counted(1_000_000, Bytes::from(vec![b' '; 100_000]));
    world.send(Ask::new(Method::DELETE, &world.path("bulk")).stream(body)).await.fails_saying(413, 10024, "exceeds");
    assert_eq!(taken.load(Ordering::Relaxed), 200_000_000);
}

#[tokio::test]
async fn what_there_is_no_room_for_is_to_be_sent_again() {
    let world = World::start().await;
    let taken = world.buffers.try_take(BUFFERS - 100_000).unwrap();
    let ask = Ask::new(Method::PUT, &world.path("bulk")).stream(large_body(vec![5_000_000]));
    let (parts, body) = ask_parts(&world, ask).await;
    assert_eq!((parts.status.as_u16(), &parts.headers["retry-after"]), (503, &http::HeaderValue::from(1)));
    assert_eq!(body["errors"][0]["code"], 10001);
    drop(taken);
    let ask = Ask::new(Method::PUT, &world.path("bulk")).stream(large_body(vec![5_000_000]));
    assert_eq!(world.send(ask).await.result()["successful_key_count"], 1);
}

async fn ask_parts(world: &World, ask: Ask) -> (http::response::Parts, Json) {
    let request = http::Request::builder().method(ask.method).uri(&ask.path).header("authorization", "Bearer Admin");
    let (parts, body) = world.rest.handle(request.body(ask.body).unwrap()).await.into_parts();
    let ResponseBody::Whole(body) = body else { panic!("an envelope is whole") };
    (parts, serde_json::from_slice(&body).unwrap())
}

#[tokio::test]
async fn a_body_that_comes_too_slowly_is_a_408() {
    let world = World::start().await;
    for (method, path) in [(Method::PUT, "bulk"), (Method::POST, "bulk/delete")] {
        let clock = Arc::clone(&world.clock);
        let slow = stream::repeat(()).map(move |()| {
            clock.advance(Duration::from_secs(20));
            Ok(Bytes::from(vec![b' '; 100_000]))
        });
        let reply = world.send(Ask::new(method, &world.path(path)).stream(slow.boxed())).await;
        reply.fails_saying(408, 10012, "the body did not come within 600s");
    }
}

#[tokio::test]
async fn bulk_gets_read_slowly_leave_room_and_give_theirs_back_piece_by_piece() {
    let world = World::start().await;
    let length = 10_000_000;
    for key in ["a", "b"] {
        world.put(&world.path(&format!("values/{key}")), vec![b'1'; length]).await.result();
    }
    for kind in ["text", "json"] {
        let get = || {
            let body = json!({"keys": ["a", "b"], "type": kind}).to_string();
            let request = http::Request::builder().method("POST").uri(world.path("bulk/get"));
            let body = stream::iter([Ok(Bytes::from(body))]).boxed();
            world.rest.handle(request.header("authorization", "Bearer Admin").body(body).unwrap())
        };
        let (parts, body) = get().await.into_parts();
        assert_eq!((parts.status, world.buffers.taken() >= 2 * length as u64), (StatusCode::OK, true));
        assert_eq!(get().await.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(world.buffers.try_take(BUFFERS / 2).is_ok());
        let ResponseBody::Stream { mut chunks, .. } = body else { panic!("it is long") };
        let mut sent = 0;
        while sent < length + 200_000 {
            let chunk = chunks.next().await.unwrap().unwrap();
            assert!(chunk.len() <= 1_000_000, "{} bytes at once", chunk.len());
            sent += chunk.len();
        }
        let taken = world.buffers.taken();
        assert!(taken < length as u64 + 1000, "{taken} bytes are taken still");
    }
}

#[tokio::test]
async fn both_bulk_deletes_count_distinct_keys_missing_ones_too() {
    let world = World::start().await;
    for (method, path) in [(Method::POST, "bulk/delete"), (Method::DELETE, "bulk")] {
        world.put(&world.path("values/a"), "v").await.result();
        let body = json!(["a", "none", "a", "a/b"]).to_string();
        let ask = Ask::new(method.clone(), &world.path(path)).header("content-type", "application/json").body(body);
        assert_eq!(world.send(ask).await.result(), json!({"successful_key_count": 3, "unsuccessful_keys": []}));
        assert_eq!(world.value("a").await, None);
        let ask = Ask::new(method.clone(), &world.path(path)).body("[]");
        assert_eq!(world.send(ask).await.result()["successful_key_count"], 0);
        for (body, status, code) in [
            ("", 400, 10012),
            ("{}", 400, 10012),
            ("[1]", 400, 10012),
            ("[null]", 400, 10012),
            ("[\"\"]", 400, 10042),
            ("[\"a\",\"..\"]", 400, 10042),
        ] {
            world.send(Ask::new(method.clone(), &world.path(path)).body(body)).await.fails_saying(
                status,
                code,
                "bulk delete: ",
            );
        }
    }
}

#[tokio::test]
async fn bulk_get_answers_each_key_once() {
    let world = World::start().await;
    let at = world.now() + 100;
    let body = json!([
        {"key": "a", "value": "text \u{e9}\u{0}\""},
        {"key": "b", "value": "{\"deep\": [1, 2.50]}", "metadata": {"m": 1}, "expiration": at},
        {"key": "empty", "value": ""},
        {"key": "0", "value": "zero"},
    ]);
    bulk_put(&world, body.to_string()).await.result();
    let values = bulk_get(&world, json!({"keys": ["b", "a", "none", "empty", "a", "0"]})).await.result();
    assert_eq!(
        values,
        json!({"values": {"b": "{\"deep\": [1, 2.50]}", "a": "text \u{e9}\u{0}\"", "none": null, "empty": "", "0": "zero"}})
    );
    let values =
        bulk_get(&world, json!({"keys": ["a", "b", "none"], "type": "text", "withMetadata": true})).await.result();
    assert_eq!(
        values,
        json!({"values": {
            "a": {"value": "text \u{e9}\u{0}\"", "metadata": null},
            "b": {"value": "{\"deep\": [1, 2.50]}", "metadata": {"m": 1}, "expiration": at},
            "none": null,
        }})
    );
    let reply = bulk_get(&world, json!({"keys": ["b"], "type": "json", "withMetadata": false})).await;
    // Via through as it was written, not decoded.
    assert!(String::from_utf8(reply.body.to_vec()).unwrap().contains(r#"{"b":{"deep": [1, 2.50]}}"#));
}

#[tokio::test]
async fn bulk_get_passes_any_json_through() {
    let world = World::start().await;
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    for (value, shown) in [
        (deep.as_str(), deep.as_str()),
        ("\"\\ud800\"", "\"\\ud800\""),
        (" 1e999 ", "1e999"),
        ("null", "null"),
        ("false", "false"),
    ] {
        world.put(&world.path("values/k"), value.to_owned()).await.result();
        let reply = bulk_get(&world, json!({"keys": ["k"], "type": "json"})).await;
        assert_eq!(reply.status, 200);
        assert_eq!(
            reply.body,
            format!(r#"{{"success":true,"errors":[],"messages":[],"result":{{"values":{{"k":{shown}}}}}}}"#)
        );
    }
    world.put(&world.path("values/k"), "{a: 1}").await.result();
    let reply = bulk_get(&world, json!({"keys": ["k", "none"], "type": "json"})).await;
    reply.fails(400, 10029, "bulk get keys: 'At least one of the requested keys corresponds to a non-json value'");
    world.put(&world.path("values/k"), b"\xff".to_vec()).await.result();
    let reply = bulk_get(&world, json!({"keys": ["k"]})).await;
    reply.fails(400, 10029, "bulk get keys: 'At least one of the requested keys corresponds to a non-text value'");
}

#[tokio::test]
async fn bulk_get_checks_what_is_asked() {
    let world = World::start().await;
    let keys = |count: usize| json!({"keys": (0..count).map(|n| n.to_string()).collect::<Vec<_>>()});
    assert_eq!(bulk_get(&world, keys(100)).await.status, 200);
    bulk_get(&world, keys(101)).await.fails(400, 10029, "bulk get keys: 'You can request a maximum of 100 keys'");
    bulk_get(&world, keys(0)).await.fails(400, 10029, "bulk get keys: 'You must request a minimum of 1 key'");
    let reply = bulk_get(&world, json!({"keys": ["a"], "type": "stream"})).await;
    reply.fails(400, 10029, "bulk get keys: '\"stream\" is not a valid type. Use \"json\" or \"text\"'");
    bulk_get(&world, json!({"keys": ["a", ""]})).await.fails(
        400,
        10042,
        "bulk get keys: 'Key names must not be empty'",
    );
    let reply = bulk_get(&world, json!({"keys": ["x".repeat(513)]})).await;
    reply.fails_saying(414, 10030, "UTF-8 encoded length of 513");
    for body in [json!({}), json!({"keys": "a"}), json!({"keys": [1]}), json!(["a"]), json!({"keys": ["a"], "type": 1})]
    {
        bulk_get(&world, body).await.fails_saying(400, 10029, "could not parse the request body");
    }
}

#[tokio::test]
async fn bulk_get_answers_up_to_25_mib() {
    let world = World::start().await;
    // Control characters become six bytes each on their way out.
    let half = vec![1; 13_107_200];
    for key in ["a", "b"] {
        world.put(&world.path(&format!("values/{key}")), half.clone()).await.result();
    }
    let reply = bulk_get(&world, json!({"keys": ["a", "b"]})).await;
    let values = reply.result();
    assert!(
        values["values"]["a"].as_str().unwrap().as_bytes() == half
            && values["values"]["b"].as_str().unwrap().as_bytes() == half
    );
    world.put(&world.path("values/c"), "c").await.result();
    let reply = bulk_get(&world, json!({"keys": ["a", "b", "c"]})).await;
    reply.fails(413, 10024, "bulk get keys: 'Total size of request exceeds the limit of 25MB'");
}
