//! The REST surface as its clients see it, in front of an origin on a memory store; the HTTP around it is the listener's business.

mod accounts;
mod bulk;
#[cfg(feature = "figures")]
mod figures;
mod forms;
mod hostile;
mod keys;
mod namespaces;
mod values;

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Value as Json, json};

use super::Rest;
use crate::{
    api::{
        auth::{self, Auth},
        body::{Request, RequestBody, ResponseBody},
        budget::Budget,
        server::Handler,
    },
    clock::{Clock, ManualClock},
    error::{Error, Result},
    kv::{
        Account, AccountId, Answer, Change, Control, Controlled, Key, List, NamespaceId, NewToken, Page, Read, Rights,
        Source, Version, Via, Writer, Written,
        feed::{Follow, Frames},
        kept::Hit,
    },
    metrics::Metrics,
    origin::{Origin, OriginSettings},
    store::memory::MemoryStore,
};

const ACCOUNT: AccountId = AccountId::from_u128(0xacc);
const OTHER_ACCOUNT: AccountId = AccountId::from_u128(0xbcc);
const BUFFERS: u64 = 64 * 1024 * 1024;

/// A server with one account and one namespace, and a token for each right.
struct World {
    clock: Arc<ManualClock>,
    origin: Arc<Origin>,
    backend: Arc<Faulty>,
    buffers: Arc<Budget>,
    rest: Rest,
    namespace: NamespaceId,
}

impl World {
    async fn start() -> World {
        let clock = ManualClock::shared();
        let shared: Arc<dyn Clock> = Arc::new(Arc::clone(&clock));
        let store = Arc::new(MemoryStore::default());
        let settings = OriginSettings::default();
        let origin = Origin::open(store, Arc::clone(&shared), settings, Metrics::default().origin()).await.unwrap();
        for (account, prefix) in [(ACCOUNT, ""), (OTHER_ACCOUNT, "other-")] {
            origin.ensure_account(&Account { id: account, name: format!("{prefix}account") }).await.unwrap();
            for rights in [Rights::Read, Rights::Write, Rights::Admin] {
                let token = NewToken { name: format!("{rights:?}"), rights, namespaces: None, expires: None };
                let secret = format!("{prefix}{rights:?}");
                let hash = auth::hash(&secret);
                origin.control(account, Control::CreateToken { hash, token }).await.unwrap();
            }
        }
        let control = Control::CreateNamespace { title: "default".into(), jurisdiction: None, mode: None };
        let (Controlled::Namespace(namespace), _) = origin.control(ACCOUNT, control).await.unwrap() else {
            panic!("a namespace was to be made");
        };
        let backend =
            Arc::new(Faulty { origin: Arc::clone(&origin), broken: Mutex::default(), read_age: Mutex::default() });
        let (source, buffers) = (Arc::clone(&origin), Budget::new(BUFFERS));
        let auth = Arc::new(Auth::new(source, Arc::clone(&shared), Some("a secret among tiers"), Duration::ZERO));
        let rest = Rest::new(Arc::clone(&backend) as _, auth, shared, Arc::clone(&buffers));
        World { clock, origin, backend, buffers, rest, namespace: namespace.id }
    }

    /// A path within the namespace.
    fn path(&self, rest: &str) -> String {
        format!("/client/v4/accounts/{ACCOUNT}/storage/kv/namespaces/{}/{rest}", self.namespace)
    }

    fn now(&self) -> u64 {
        self.clock.wall_millis() / 1000
    }

    async fn get(&self, path: &str) -> Reply {
        self.send(Ask::new(Method::GET, path)).await
    }

    async fn put(&self, path: &str, body: impl Into<Bytes>) -> Reply {
        self.send(Ask::new(Method::PUT, path).body(body)).await
    }

    async fn post(&self, path: &str, body: &Json) -> Reply {
        self.send(Ask::new(Method::POST, path).body(body.to_string())).await
    }

    async fn delete(&self, path: &str) -> Reply {
        self.send(Ask::new(Method::DELETE, path)).await
    }

    async fn send(&self, ask: Ask) -> Reply {
        let mut request = http::Request::builder().method(ask.method).uri(&ask.path);
        for (name, value) in &ask.headers {
            request = request.header(*name, value);
        }
        if let Some(token) = &ask.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request: Request = request.body(ask.body).unwrap();
        let response = self.rest.handle(request).await;
        let (parts, body) = response.into_parts();
        let body = match body {
            ResponseBody::Whole(bytes) => bytes,
            ResponseBody::Stream { chunks, .. } => {
                chunks.map(|chunk| chunk.unwrap().to_vec()).collect::<Vec<_>>().await.concat().into()
            }
        };
        assert_eq!(self.buffers.taken(), 0, "what was taken is given back");
        Reply { status: parts.status, headers: parts.headers, body }
    }

    /// A value, as raw bytes; `None` when there is none.
    async fn value(&self, key: &str) -> Option<Bytes> {
        let reply = self.get(&self.path(&format!("values/{key}"))).await;
        match reply.status {
            StatusCode::OK => Some(reply.body),
            StatusCode::NOT_FOUND => None,
            other => panic!("{other}"),
        }
    }

    async fn metadata(&self, key: &str) -> Json {
        self.get(&self.path(&format!("metadata/{key}"))).await.result()
    }
}

/// A request in the making, with the admin token unless it is told otherwise.
struct Ask {
    method: Method,
    path: String,
    token: Option<String>,
    headers: Vec<(&'static str, String)>,
    body: RequestBody,
}

impl Ask {
    fn new(method: Method, path: &str) -> Ask {
        let token = Some("Admin".to_owned());
        Ask { method, path: path.to_owned(), token, headers: Vec::new(), body: stream::empty().boxed() }
    }

    fn token(self, token: Option<&str>) -> Ask {
        Ask { token: token.map(str::to_owned), ..self }
    }

    fn header(mut self, name: &'static str, value: impl Into<String>) -> Ask {
        self.headers.push((name, value.into()));
        self
    }

    fn body(self, body: impl Into<Bytes>) -> Ask {
        self.chunks(vec![Ok(body.into())])
    }

    fn chunks(self, chunks: Vec<Result<Bytes>>) -> Ask {
        self.stream(stream::iter(chunks).boxed())
    }

    fn stream(self, body: RequestBody) -> Ask {
        Ask { body, ..self }
    }
}

struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Reply {
    fn json(&self) -> Json {
        assert_eq!(self.headers["content-type"], "application/json");
        let json: Json = serde_json::from_slice(&self.body).unwrap();
        assert!(json["messages"].is_array());
        json
    }

    /// The result of a success.
    #[track_caller]
    fn result(&self) -> Json {
        let json = self.json();
        assert_eq!(
            (self.status, &json["success"], &json["errors"]),
            (StatusCode::OK, &json!(true), &json!([])),
            "{json}"
        );
        assert!(json.as_object().unwrap().contains_key("result"));
        json["result"].clone()
    }

    #[track_caller]
    fn info(&self) -> Json {
        self.result();
        self.json()["result_info"].clone()
    }

    /// It is a failure with exactly one error.
    #[track_caller]
    fn fails(&self, status: u16, code: u16, message: &str) {
        let json = self.json();
        assert_eq!(json["success"], json!(false));
        assert!(json.as_object().unwrap().contains_key("result"));
        let expected = json!([{ "code": code, "message": message }]);
        assert_eq!((self.status.as_u16(), &json["errors"]), (status, &expected));
    }

    /// It is a failure, with a message that says this among other things.
    #[track_caller]
    fn fails_saying(&self, status: u16, code: u16, part: &str) {
        let json = self.json();
        let message = json["errors"][0]["message"].as_str().unwrap_or_default();
        assert!(message.contains(part), "{message}");
        self.fails(status, code, message);
    }
}

/// Whole chunks of a body and how much of it was taken.
fn counted(chunks: usize, chunk: Bytes) -> (RequestBody, Arc<AtomicU64>) {
    let taken = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&taken);
    let body = stream::iter(0..chunks).map(move |_| {
        counter.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        Ok(chunk.clone())
    });
    (body.boxed(), taken)
}

/// An origin that refuses writes of some keys, and remembers how old an answer the last read would have taken.
struct Faulty {
    origin: Arc<Origin>,
    broken: Mutex<BTreeSet<&'static str>>,
    read_age: Mutex<Option<Duration>>,
}

impl Faulty {
    fn refused(&self, key: &Key) -> Option<Error> {
        let broken = self.broken.lock().unwrap().contains(key.as_str());
        broken.then(|| Error::unavailable("the disk is away"))
    }
}

#[async_trait]
impl Source for Faulty {
    fn held(&self, namespace: NamespaceId, key: &[u8], read: &Read) -> Option<Hit> {
        self.origin.held(namespace, key, read)
    }

    async fn get(&self, namespace: NamespaceId, key: &Key, read: &Read) -> Result<Answer> {
        *self.read_age.lock().unwrap() = Some(read.max_age);
        self.origin.get(namespace, key, read).await
    }

    async fn list(&self, namespace: NamespaceId, list: &List) -> Result<Page> {
        self.origin.list(namespace, list).await
    }

    async fn follow(&self, follow: Follow, pings: Frames) -> Result<Frames> {
        self.origin.follow(follow, pings).await
    }
}

#[async_trait]
impl Writer for Faulty {
    async fn write(&self, namespace: NamespaceId, key: &Key, change: Change, via: Via) -> Result<Written> {
        match self.refused(key) {
            Some(error) => Err(error),
            None => self.origin.write(namespace, key, change, via).await,
        }
    }

    async fn write_many(
        &self,
        namespace: NamespaceId,
        writes: Vec<(Key, Change)>,
        via: Via,
    ) -> Result<Vec<Result<Written>>> {
        let mut outcomes = Vec::new();
        for (key, change) in writes {
            outcomes.push(self.write(namespace, &key, change, via).await);
        }
        Ok(outcomes)
    }

    async fn control(&self, account: AccountId, control: Control) -> Result<(Controlled, Version)> {
        self.origin.control(account, control).await
    }
}
