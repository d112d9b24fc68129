//! Values and metadata (rest-api 3.2 to 3.5, 6).

use super::*;

#[tokio::test]
async fn a_value_comes_back_as_its_bytes() {
    let world = World::start().await;
    let bytes: Vec<u8> = (0..=255).collect();
    for (content_type, value) in [
        (None, bytes.clone()),
        (Some("text/plain;charset=UTF-8"), b"text".to_vec()),
        (Some("application/octet-stream"), vec![0; 1000]),
        // What PyPI 4.3.1 sends is a value like any other.
        (Some("application/json"), br#"{"metadata": "{}", "value": "v"}"#.to_vec()),
        (Some("application/x-www-form-urlencoded"), b"a=b".to_vec()),
        (Some("multipart/mixed; boundary=x"), b"--x".to_vec()),
        (None, vec![]),
    ] {
        let mut ask = Ask::new(Method::PUT, &world.path("values/k")).body(value.clone());
        if let Some(content_type) = content_type {
            ask = ask.header("content-type", content_type);
        }
        let written = world.send(ask).await;
        assert_eq!(written.result(), Json::Null);
        let reply = world.get(&world.path("values/k")).await;
        assert_eq!((reply.status.as_u16(), reply.body.as_ref()), (200, value.as_slice()));
        assert_eq!(reply.headers["content-type"], "application/octet-stream");
        assert_eq!(reply.headers.get("expiration"), None);
        assert_eq!(reply.headers["kvasar-version"], written.headers["kvasar-version"]);
        assert_eq!(world.metadata("k").await, Json::Null);
    }
}

#[tokio::test]
async fn reads_ask_for_the_latest() {
    let world = World::start().await;
    world.put(&world.path("values/k"), "v").await.result();
    for path in ["values/k", "metadata/k"] {
        assert_eq!(world.get(&world.path(path)).await.status, 200);
        assert_eq!(world.backend.read_age.lock().unwrap().take(), Some(Duration::ZERO));
    }
    world.post(&world.path("bulk/get"), &json!({"keys": ["k"]})).await.result();
    assert_eq!(world.backend.read_age.lock().unwrap().take(), Some(Duration::ZERO));
}

#[tokio::test]
async fn what_is_not_there_is_not_found_and_deleted_all_the_same() {
    let world = World::start().await;
    world.get(&world.path("values/k")).await.fails(404, 10009, "get: 'key not found'");
    world.get(&world.path("metadata/k")).await.fails(404, 10009, "metadata: 'key not found'");
    assert_eq!(world.delete(&world.path("values/k")).await.result(), Json::Null);
    world.put(&world.path("values/k"), "v").await.result();
    for body in ["", "{}", "[]"] {
        let ask =
            Ask::new(Method::DELETE, &world.path("values/k")).header("content-type", "application/json").body(body);
        assert_eq!(world.send(ask).await.result(), Json::Null);
        assert_eq!(world.value("k").await, None);
    }
}

#[tokio::test]
async fn keys_are_decoded_once_and_matched_encoded() {
    let world = World::start().await;
    for (encoded, key) in [
        ("a%2Fb", "a/b"),
        ("a%2fb%2Fc", "a/b/c"),
        ("a+b", "a+b"),
        ("a%2Bb", "a+b"),
        ("%2525", "%25"),
        ("%3F%23", "?#"),
        ("%C3%A9", "\u{e9}"),
        ("bulk%2Fget", "bulk/get"),
        ("$&'()*+,;=:@!", "$&'()*+,;=:@!"),
        ("...", "..."),
        ("%00", "\0"),
    ] {
        world.put(&world.path(&format!("values/{encoded}")), encoded).await.result();
        let found = world.origin.get(world.namespace, &Key::new(key).unwrap(), &Read::latest()).await.unwrap();
        assert!(matches!(found.state, crate::kv::State::Present(_)), "{encoded}");
        assert_eq!(world.value(encoded).await.as_deref(), Some(encoded.as_bytes()));
        assert_eq!(world.metadata(encoded).await, Json::Null);
        world.delete(&world.path(&format!("values/{encoded}"))).await.result();
        assert_eq!(world.value(encoded).await, None);
    }
}

#[tokio::test]
async fn keys_that_cannot_be_are_refused() {
    let world = World::start().await;
    for method in [Method::GET, Method::PUT, Method::DELETE] {
        let operation = match method {
            Method::GET => "get",
            Method::PUT => "put",
            _ => "remove key",
        };
        for (encoded, status, code, text) in [
            ("%zz", 400, 10042, "Could not URL-decode key name".to_owned()),
            ("%", 400, 10042, "Could not URL-decode key name".to_owned()),
            ("%ED%A0%80", 400, 10042, "Could not URL-decode key name".to_owned()),
            ("", 400, 10042, "Key names must not be empty".to_owned()),
            ("%2E", 400, 10042, "Illegal key name \".\". Please use a different name.".to_owned()),
            ("%2e%2E", 400, 10042, "Illegal key name \"..\". Please use a different name.".to_owned()),
            (&"x".repeat(513), 414, 10030, "UTF-8 encoded length of 513 exceeds key length limit of 512.".to_owned()),
        ] {
            let ask = Ask::new(method.clone(), &world.path(&format!("values/{encoded}")));
            world.send(ask).await.fails(status, code, &format!("{operation}: '{text}'"));
        }
    }
    world.put(&world.path(&format!("values/{}", "%C3%A9".repeat(256))), "v").await.result();
    // A slash that was not encoded is one of the route.
    let path = world.path("values/a/b");
    let text = format!("Could not route to {path}, perhaps your object identifier is invalid?");
    world.put(&path, "v").await.fails(404, 7003, &text);
}

#[tokio::test]
async fn expiration_is_kept_shown_and_replaced() {
    let world = World::start().await;
    let at = world.now() + 3600;
    let put = async |query: &str| world.put(&world.path(&format!("values/k{query}")), "v").await.result();
    put(&format!("?expiration={at}")).await;
    let reply = world.get(&world.path("values/k")).await;
    assert_eq!(reply.headers["expiration"], at.to_string());
    // The TTL wins, and the other is then not even looked at.
    put("?expiration=nonsense&expiration_ttl=60").await;
    assert_eq!(world.get(&world.path("values/k")).await.headers["expiration"], (world.now() + 60).to_string());
    put(&format!("?expiration={at}.0")).await;
    assert_eq!(world.get(&world.path("values/k")).await.headers["expiration"], at.to_string());
    put("?expiration=4102444800123").await;
    assert_eq!(world.get(&world.path("values/k")).await.headers["expiration"], "4102444800123");
    put("?").await;
    assert_eq!(world.get(&world.path("values/k")).await.headers.get("expiration"), None);
    put("?expiration_ttl=60").await;
    world.clock.advance(Duration::from_secs(61));
    world.get(&world.path("values/k")).await.fails(404, 10009, "get: 'key not found'");
}

#[tokio::test]
async fn expirations_that_cannot_be_are_refused() {
    let world = World::start().await;
    let now = world.now();
    for (query, code, text) in [
        (
            "expiration_ttl=59".to_owned(),
            10034,
            "Invalid expiration_ttl of 59. Expiration TTL must be at least 60.".to_owned(),
        ),
        (
            "expiration_ttl=x".to_owned(),
            10034,
            "Invalid expiration_ttl of x. Please specify integer greater than 0.".to_owned(),
        ),
        (
            "expiration_ttl=-1".to_owned(),
            10034,
            "Invalid expiration_ttl of -1. Please specify integer greater than 0.".to_owned(),
        ),
        (
            format!("expiration={now}"),
            10033,
            format!(
                "Invalid expiration of {now}. Please specify integer greater than the current number of seconds since the UNIX epoch."
            ),
        ),
        (
            format!("expiration={}", now + 59),
            10033,
            format!("Invalid expiration of {}. Expiration times must be at least 60 seconds in the future.", now + 59),
        ),
    ] {
        let reply = world.put(&world.path(&format!("values/k?{query}")), "v").await;
        reply.fails(400, code, &format!("put: '{text}'"));
        assert_eq!(world.value("k").await, None);
    }
}

#[tokio::test]
async fn large_values_pass_through_in_pieces() {
    let world = World::start().await;
    for length in [64 * 1024, 64 * 1024 + 1, 26_214_400] {
        let chunk = Bytes::from(vec![7; 50_000]);
        let whole = vec![7; length];
        let chunks: Vec<_> = (0..length).step_by(50_000).map(|at| Ok(chunk.slice(..50_000.min(length - at)))).collect();
        for announced in [true, false] {
            let mut ask = Ask::new(Method::PUT, &world.path("values/k"));
            if announced {
                ask = ask.header("content-length", length.to_string());
            }
            let chunks = chunks.iter().map(|chunk: &Result<Bytes>| Ok(chunk.as_ref().unwrap().clone())).collect();
            world.send(ask.chunks(chunks)).await.result();
            assert!(world.value("k").await.unwrap() == whole);
        }
    }
}

#[tokio::test]
async fn a_value_that_is_too_large_is_read_to_its_end_and_not_written() {
    let world = World::start().await;
    world.put(&world.path("values/k"), "old").await.result();
    let length = 27_000_000u64;
    for announced in [true, false] {
        let (body, taken) = counted(270, Bytes::from(vec![7; 100_000]));
        let mut ask = Ask::new(Method::PUT, &world.path("values/k")).stream(body);
        if announced {
            ask = ask.header("content-length", length.to_string());
        }
        let text = format!("put: 'Value length of {length} exceeds limit of 26214400.'");
        world.send(ask).await.fails(413, 10024, &text);
        assert_eq!(taken.load(Ordering::Relaxed), length);
    }
    assert_eq!(world.value("k").await.as_deref(), Some(&b"old"[..]));
}
