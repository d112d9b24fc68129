//! The hot read beside the general one: the same bytes for whatever is hot, and nothing hot that is not plain.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::{
    api::{
        auth,
        body::{Request, Response},
        budget::Budget,
        connection::Deadlines,
        server::{self, Handler, ServerContext, ServerLimits},
    },
    cache::tier::{Tier, TierSettings},
    clock::{Clock, ManualClock},
    kv::{
        Account, AccountId, Backend, Change, Control, Controlled, Expires, Key, NewToken, Read, Source, State, Value,
        Writer,
    },
    limits,
    metrics::{Door, Metrics},
    origin::{Origin, OriginSettings},
    purge::feed::FeedSettings,
    store::memory::MemoryStore,
};

const ACCOUNT: AccountId = AccountId::from_u128(7);
const CLUSTER: &str = "the cluster's secret";

/// A tier that holds some keys, in front of an origin.
struct World {
    clock: Arc<ManualClock>,
    origin: Arc<Origin>,
    tier: Tier,
    binding: Arc<Binding>,
    namespace: NamespaceId,
    context: ServerContext,
    metrics: Metrics,
}

/// The door as it is, counting what was hot; or without its short cut.
struct Watched {
    binding: Arc<Binding>,
    hot: bool,
    was_hot: Arc<std::sync::atomic::AtomicUsize>,
}

impl Handler for Watched {
    async fn handle(&self, request: Request) -> Response {
        self.binding.handle(request).await
    }

    fn hot(&self, head: &Head<'_>, remembered: &mut Remembered, out: &mut Vec<u8>) -> Option<HotAnswer> {
        let answer = self.hot.then(|| self.binding.hot(head, remembered, out))??;
        self.was_hot.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Some(answer)
    }
}

async fn world() -> World {
    let (clock, metrics) = (ManualClock::shared(), Metrics::default());
    let shared: Arc<dyn Clock> = Arc::new(Arc::clone(&clock));
    let store = Arc::new(MemoryStore::default());
    let origin = Origin::open(store, Arc::clone(&shared), OriginSettings::default(), metrics.origin()).await.unwrap();
    origin.ensure_account(&Account { id: ACCOUNT, name: "a".into() }).await.unwrap();
    let create = Control::CreateNamespace { title: "n".into(), jurisdiction: None, mode: None };
    let Ok((Controlled::Namespace(namespace), _)) = origin.control(ACCOUNT, create).await else {
        panic!("a namespace")
    };
    let namespace = namespace.id;
    let create = Control::CreateNamespace { title: "other".into(), jurisdiction: None, mode: None };
    let Ok((Controlled::Namespace(other), _)) = origin.control(ACCOUNT, create).await else { panic!("a namespace") };
    let settings = TierSettings {
        name: "t".into(),
        cache_bytes: 64 << 20,
        cache_share_max: 0.1,
        stale_if_unreachable: Duration::from_secs(3600),
        upstream_deadline: Duration::from_secs(5),
        stale_after: Duration::from_secs(1),
        refills: 8,
        feed_interval: Duration::from_secs(1),
        feed: FeedSettings::default(),
    };
    let upstream = Arc::clone(&origin) as Arc<dyn Backend>;
    let tier = Tier::new(upstream, "origin".into(), Arc::clone(&shared), settings);
    let backend: Arc<dyn Backend> = Arc::new(tier.clone());
    let source = Arc::clone(&backend) as Arc<dyn Source>;
    let auth = Auth::new(source, Arc::clone(&shared), Some(CLUSTER), Duration::from_secs(60));
    let binding = Binding::new(backend, Arc::new(auth), Arc::clone(&shared), Budget::new(1 << 30), metrics.tier("t"));
    let hour = Duration::from_secs(3600);
    let deadlines = Deadlines { head: hour, body_idle: hour, idle: hour };
    let limits = ServerLimits { connections: 9, requests_in_flight: 9, deadlines };
    let context = ServerContext::new(shared, limits);
    let world = World { clock, origin, tier, binding: Arc::new(binding), namespace, context, metrics };
    world.token("reads", Rights::Read, None, None).await;
    world.token("bound", Rights::Write, Some(vec![namespace]), None).await;
    world.token("elsewhere", Rights::Admin, Some(vec![other.id]), None).await;
    world.token("passing", Rights::Read, None, Some(world.clock.wall_millis() / 1000 + 60)).await;
    world.put("plain", b"value", None, Expires::Never).await;
    world.put("empty", b"", None, Expires::Never).await;
    world.put("told", b"value", Some(b"{\"a\":\t[1,\n2],\"b\":\"\x7f\xc3\xa9\"}"), Expires::After(300)).await;
    world.put("a b/\u{e9}%", b"odd", None, Expires::Never).await;
    world.put("long", &[b'x'; 70_000], None, Expires::Never).await;
    world.put("in-pieces", &[b'x'; 2 << 20], None, Expires::Never).await;
    for key in ["plain", "empty", "told", "a b/\u{e9}%", "long", "in-pieces", "absent"] {
        let key = Key::new(key).unwrap();
        let answer = world.tier.get(namespace, &key, &Read::default()).await.unwrap();
        // What comes in pieces is kept once it has all come.
        if let State::Present(entry) = answer.state {
            entry.value.collect(limits::VALUE_BYTES_MAX).await.unwrap();
        }
    }
    world
}

impl World {
    async fn token(&self, secret: &str, rights: Rights, namespaces: Option<Vec<NamespaceId>>, expires: Option<u64>) {
        let token = NewToken { name: secret.into(), rights, namespaces, expires };
        self.origin.control(ACCOUNT, Control::CreateToken { hash: auth::hash(secret), token }).await.unwrap();
    }

    async fn put(&self, key: &str, value: &[u8], metadata: Option<&[u8]>, expires: Expires) {
        let value = Value::Whole(Bytes::copy_from_slice(value));
        let put = Change::Put { value, metadata: metadata.map(Bytes::copy_from_slice), expires };
        self.origin
            .write(self.namespace, &Key::new(key.to_owned()).unwrap(), put, crate::kv::Via::default())
            .await
            .unwrap();
    }

    /// What one connection answers to requests, and how many of them were hot.
    async fn answers(&self, requests: &str, hot: bool) -> (String, usize) {
        let was_hot = Arc::default();
        let door = Watched { binding: Arc::clone(&self.binding), hot, was_hot: Arc::clone(&was_hot) };
        let (mut client, side) = tokio::io::duplex(1 << 20);
        client.write_all(requests.as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        let (read_half, write_half) = tokio::io::split(side);
        let metrics = self.metrics.door(Door::Binding, "here");
        let mut answers = Vec::new();
        let serving = server::serve(read_half, write_half, door, "here", &self.context, metrics);
        let (served, read) = tokio::join!(serving, client.read_to_end(&mut answers));
        served.and(read).unwrap();
        (String::from_utf8_lossy(&answers).into_owned(), was_hot.load(std::sync::atomic::Ordering::Relaxed))
    }

    fn get(&self, target: &str, headers: &str) -> String {
        let headers = headers.replace("NAMESPACE", &self.namespace.to_string());
        format!("GET {target} HTTP/1.1\r\nHost: h\r\n{headers}\r\n")
    }

    /// Both ways to the answer give the same bytes; answers how many of three requests alike were hot.
    async fn alike(&self, target: &str, headers: &str) -> usize {
        let requests = self.get(target, headers).repeat(3);
        let (general, none) = self.answers(&requests, false).await;
        let (answers, hot) = self.answers(&requests, true).await;
        assert_eq!(answers, general, "{target} {headers}");
        assert_eq!(none, 0);
        hot
    }
}

const READS: &str = "Authorization: Bearer reads\r\nkvasar-namespace: NAMESPACE\r\n";

#[tokio::test]
async fn a_hot_answer_is_the_general_one_byte_for_byte() {
    let world = world().await;
    world.alike("/plain", READS).await;
    world.clock.advance(Duration::from_micros(1_234_567));
    let others = |more: &str| format!("{READS}{more}\r\n");
    let version = world.tier.get(world.namespace, &Key::new("plain").unwrap(), &Read::default()).await.unwrap().version;
    let absent = world.tier.get(world.namespace, &Key::new("absent").unwrap(), &Read::default()).await.unwrap().version;
    for (target, headers) in [
        ("/plain", READS.to_owned()),
        ("/plain?urlencoded=true", READS.to_owned()),
        ("/plain?cache_ttl=30&urlencoded=true", READS.to_owned()),
        ("/empty", READS.to_owned()),
        ("/long", READS.to_owned()),
        ("/told", READS.to_owned()),
        ("/absent", READS.to_owned()),
        ("/a%20b%2f%C3%A9%25?urlencoded=true", READS.to_owned()),
        ("/plain", "authorization: bearer  reads \r\nKvasar-Namespace: NAMESPACE\r\n".to_owned()),
        ("/plain", "Authorization: Bearer bound\r\n".to_owned()),
        ("/plain", format!("Authorization: Bearer {CLUSTER}\r\nkvasar-namespace: NAMESPACE\r\n")),
        ("/plain", others("kvasar-max-age-ms: 2000")),
        ("/plain", others(&format!("kvasar-at-least: {version}"))),
        ("/plain", others(&format!("If-None-Match: \"{version}\""))),
        ("/absent", others(&format!("If-None-Match: W/\"{absent}-absent\""))),
        ("/plain", others("If-None-Match: \"something\"")),
        ("/plain", others("kvasar-follower: 00000000000000ab")),
        ("/plain", others("Connection: keep-alive")),
    ] {
        assert_eq!(world.alike(target, &headers).await, 3, "{target} {headers} is hot");
    }
    assert_eq!(world.alike("/plain", &others("Connection: close")).await, 1);
}

#[tokio::test]
async fn what_is_not_plain_walks_the_general_path() {
    let world = world().await;
    world.alike("/plain", READS).await;
    for (target, headers) in [
        ("/in-pieces", READS),
        ("/plain/", READS),
        ("/", READS),
        ("/a b", READS),
        ("/%zz?urlencoded=true", READS),
        ("/%ff?urlencoded=true", READS),
        ("/plain?cache_ttl=29", READS),
        ("/plain?cache_ttl=", READS),
        ("/plain?cache_ttl=x", READS),
        ("/plain?cache_ttl=30&cache_ttl=40", READS),
        ("/plain?urlencoded=TRUE", READS),
        ("/plain?&urlencoded=true", READS),
        ("/plain?urlencoded=trueish", READS),
        ("/plain?other=1", READS),
        ("http://h/plain", READS),
        ("/plain#x", READS),
        ("/plain", ""),
        ("/plain", "Authorization: Bearer reads\r\n"),
        ("/plain", "Authorization: Bearer reads\r\nkvasar-namespace: x\r\n"),
        ("/plain", "Authorization: Bearer bound\r\nkvasar-namespace: \r\n"),
        ("/plain", "Authorization: Bearer reads\u{a0}\r\nkvasar-namespace: NAMESPACE\r\n"),
        ("/plain", "Authorization: Bearer wrong\r\nkvasar-namespace: NAMESPACE\r\n"),
        ("/plain", "Authorization: Bearer elsewhere\r\nkvasar-namespace: NAMESPACE\r\n"),
        ("/plain", "Authorization: Bearer reads\r\nkvasar-namespace: 00000000000000000000000000000063\r\n"),
        ("/plain", "X-Auth-Key: reads\r\nX-Auth-Email: a@b\r\nkvasar-namespace: NAMESPACE\r\n"),
        ("/plain", &format!("{READS}kvasar-max-age-ms: x\r\n")),
        ("/plain", &format!("{READS}kvasar-at-least: x\r\n")),
        ("/plain", &format!("{READS}kvasar-max-age-ms: 0\r\n")),
    ] {
        assert_eq!(world.alike(target, headers).await, 0, "{target} {headers} is not hot");
    }
    for method in ["PUT", "DELETE", "POST", "HEAD"] {
        let request = world.get("/plain", READS).replacen("GET", method, 1);
        assert_eq!(world.answers(&request, true).await.1, 0);
    }
    let with_body = world.get("/plain", &format!("{READS}Content-Length: 1\r\n")) + "x";
    assert_eq!(world.answers(&with_body, true).await.1, 0);
}

#[tokio::test]
async fn another_callers_right_is_looked_into_anew() {
    let world = world().await;
    let get = |secret: &str| {
        world.get("/plain", &format!("Authorization: Bearer {secret}\r\nkvasar-namespace: NAMESPACE\r\n"))
    };
    let statuses = |answers: &str| -> Vec<String> {
        answers.split("HTTP/1.1 ").skip(1).map(|answer| answer[..3].to_owned()).collect()
    };
    for _ in 0..2 {
        let requests =
            [get("reads"), get("reads"), get("wrong"), get("elsewhere"), get("bound"), get("reads")].concat();
        let (answers, _) = world.answers(&requests, true).await;
        assert_eq!(statuses(&answers), ["200", "200", "401", "403", "200", "200"]);
    }
}

#[tokio::test]
async fn what_was_remembered_ends_with_the_token_and_with_the_namespace() {
    let world = world().await;
    let (mut client, side) = tokio::io::duplex(1 << 20);
    let was_hot = Arc::default();
    let door = Watched { binding: Arc::clone(&world.binding), hot: true, was_hot: Arc::clone(&was_hot) };
    let (context, metrics) = (world.context.clone(), world.metrics.door(Door::Binding, "here"));
    let _serving = tokio::spawn(async move {
        let (read_half, write_half) = tokio::io::split(side);
        server::serve(read_half, write_half, door, "here", &context, metrics).await
    });
    let mut ask = async |secret: &str| {
        let headers = format!("Authorization: Bearer {secret}\r\nkvasar-namespace: NAMESPACE\r\n");
        client.write_all(world.get("/plain", &headers).as_bytes()).await.unwrap();
        let mut answer = vec![0; 4096];
        let read = client.read(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer[9..read]).chars().take(3).collect::<String>()
    };
    for _ in 0..3 {
        assert_eq!(ask("passing").await, "200");
    }
    assert!(was_hot.load(std::sync::atomic::Ordering::Relaxed) > 0);
    world.clock.advance(Duration::from_secs(59));
    assert_eq!(ask("passing").await, "200");
    world.clock.advance(Duration::from_secs(1));
    assert_eq!(ask("passing").await, "401");
    for _ in 0..3 {
        assert_eq!(ask("reads").await, "200");
    }
    // A revocation counts once the tier has heard of it, or what it holds is too old.
    let listed = crate::kv::List { prefix: crate::kv::reserved::token_listings(ACCOUNT), limit: 10, cursor: None };
    let listed = world.origin.list(NamespaceId::RESERVED, &listed).await.unwrap();
    let ids = listed.keys.iter().map(|listed| {
        let token: crate::kv::Token = serde_json::from_slice(listed.metadata.as_ref().unwrap()).unwrap();
        (token.token.name, token.id)
    });
    let (_, id) = ids.into_iter().find(|(name, _)| name == "reads").unwrap();
    world.tier.control(ACCOUNT, Control::RevokeToken { id }).await.unwrap();
    assert_eq!(ask("reads").await, "401");
    for _ in 0..3 {
        assert_eq!(ask("bound").await, "200");
    }
    world.tier.control(ACCOUNT, Control::RemoveNamespace { id: world.namespace }).await.unwrap();
    assert_eq!(ask("bound").await, "400");
}
