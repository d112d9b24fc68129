//! Hot reads and nothing else: so many requests for one key, on one connection that is no socket, so that all that is counted is our own.
//!
//! `hot-read COUNT` prints how many were answered, with how many bytes and allocations. `tests/hot/run` takes the difference of two counts, and with
//! callgrind that of their instructions.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use kvasar::{
    api::{
        auth::{self, Auth},
        binding::Binding,
        budget::Budget,
        connection::Deadlines,
        server::{self, ServerContext, ServerLimits},
    },
    cache::tier::{Tier, TierSettings},
    clock::RealClock,
    kv::{
        Account, AccountId, Backend, Change, Control, Controlled, Expires, Key, NewToken, Read, Rights, Source, Value,
        Writer,
    },
    metrics::{Door, Metrics},
    origin::{Origin, OriginSettings},
    purge::feed::FeedSettings,
    store::memory::MemoryStore,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const VALUE: &[u8] = &[b'x'; 1024];
const SECRET: &str = "kvs_a-token-as-long-as-those-that-are-given-out-here";

#[expect(clippy::print_stdout, reason = "what it prints is what it is for")]
fn main() {
    let count = std::env::args().nth(1).and_then(|count| count.parse().ok()).expect("usage: hot-read COUNT");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime is made");
    let (serving, sent) = runtime.block_on(prepare(count));
    let allocated = allocation_counter::measure(|| runtime.block_on(serving));
    let (answers, bytes) = (sent.answers.load(Ordering::Relaxed), sent.bytes.load(Ordering::Relaxed));
    assert_eq!(answers, count, "each request is answered by one write");
    println!("{answers} answers, {bytes} bytes, {} allocations", allocated.count_total);
}

/// A tier that holds the key, and the work of answering the requests.
async fn prepare(count: u64) -> (impl Future<Output = ()>, Arc<Sent>) {
    let (clock, metrics) = (RealClock::shared(), Metrics::default());
    let store = Arc::new(MemoryStore::default());
    let settings = OriginSettings::default();
    let origin = Origin::open(store, Arc::clone(&clock), settings, metrics.origin()).await.expect("an origin opens");
    let account = AccountId::from_u128(1);
    origin.ensure_account(&Account { id: account, name: "a".into() }).await.expect("an account is made");
    let token = NewToken { name: "t".into(), rights: Rights::Read, namespaces: None, expires: None };
    let create = Control::CreateToken { hash: auth::hash(SECRET), token };
    origin.control(account, create).await.expect("a token is made");
    let create = Control::CreateNamespace { title: "n".into(), jurisdiction: None, mode: None };
    let Ok((Controlled::Namespace(namespace), _)) = origin.control(account, create).await else {
        panic!("a namespace was to be made");
    };
    let key = Key::new("a-hot-key").expect("it is a key");
    let put =
        Change::Put { value: Value::Whole(bytes::Bytes::from_static(VALUE)), metadata: None, expires: Expires::Never };
    origin.write(namespace.id, &key, put, kvasar::kv::Via::default()).await.expect("a value is written");

    let settings = TierSettings {
        name: "edge".into(),
        cache_bytes: 64 << 20,
        cache_share_max: 0.25,
        stale_if_unreachable: Duration::from_secs(3600),
        upstream_deadline: Duration::from_secs(5),
        stale_after: Duration::from_secs(1),
        refills: 64,
        feed_interval: Duration::from_secs(1),
        feed: FeedSettings::default(),
    };
    let tier = Tier::new(origin, "origin".into(), Arc::clone(&clock), settings);
    tier.get(namespace.id, &key, &Read::default()).await.expect("the key is there");
    let backend: Arc<dyn Backend> = Arc::new(tier);
    let auth = Auth::new(Arc::clone(&backend) as Arc<dyn Source>, Arc::clone(&clock), None, Duration::from_secs(60));
    let binding = Binding::new(backend, Arc::new(auth), Arc::clone(&clock), Budget::new(1 << 30), metrics.tier("edge"));

    let minute = Duration::from_secs(60);
    let deadlines = Deadlines { head: minute, body_idle: minute, idle: minute };
    let context = ServerContext::new(clock, ServerLimits { connections: 1, requests_in_flight: 1, deadlines });
    // As workerd sends it with the headers that its configuration injects.
    let request = format!(
        "GET /a-hot-key?urlencoded=true HTTP/1.1\r\nHost: fake-host\r\nAuthorization: Bearer {SECRET}\r\nkvasar-namespace: {}\r\n\r\n",
        namespace.id
    );
    let sent = Arc::new(Sent::default());
    let (requests, answers) =
        (Requests { request: request.into_bytes().into(), left: count }, Answers(Arc::clone(&sent)));
    let door = metrics.door(Door::Binding, "edge");
    let serving = async move {
        server::serve(requests, answers, binding, "edge", &context, door).await.expect("the connection ends in order");
    };
    (serving, sent)
}

/// The same request, one each time something is read.
struct Requests {
    request: Box<[u8]>,
    left: u64,
}

impl AsyncRead for Requests {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(left) = self.left.checked_sub(1) {
            self.left = left;
            buf.put_slice(&self.request);
        }
        Poll::Ready(Ok(()))
    }
}

#[derive(Default)]
struct Sent {
    answers: AtomicU64,
    bytes: AtomicU64,
}

/// Counts answers, and throws them away.
struct Answers(Arc<Sent>);

impl AsyncWrite for Answers {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        // The first one comes along the general path, in two parts.
        if bytes != VALUE {
            assert!(bytes.starts_with(b"HTTP/1.1 200 OK\r\n"), "{}", bytes.escape_ascii());
            self.0.answers.fetch_add(1, Ordering::Relaxed);
        }
        self.0.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
