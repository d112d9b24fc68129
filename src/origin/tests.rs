//! What an origin promises, on a store that fails and crashes on demand and a clock that stands still until it is moved.

mod control;
mod copying;
mod faults;
mod feed;
#[cfg(feature = "figures")]
mod figures;
mod lists;
mod passing;
mod reads;
mod several;
mod tidying;
mod values;
mod writes;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::StreamExt as _;

use super::{Origin, OriginSettings};
use crate::{
    clock::ManualClock,
    error::{Error, Result},
    kv::{
        Account, AccountId, Answer, Change, Control, Controlled, Expires, Key, List, NamespaceId, Page, Read,
        Source as _, State, Value, ValueStream, Via, Writer as _, Written,
    },
    metrics::Metrics,
    store::{Table, memory::MemoryStore},
};

const ACCOUNT: AccountId = AccountId::from_u128(0xacc);

/// An origin on a memory store, with one account and one namespace.
struct World {
    clock: Arc<ManualClock>,
    store: Arc<MemoryStore>,
    origin: Arc<Origin>,
    namespace: NamespaceId,
}

impl World {
    async fn start() -> World {
        World::start_with(OriginSettings::default()).await
    }

    async fn start_with(settings: OriginSettings) -> World {
        let (clock, store) = (ManualClock::shared(), Arc::new(MemoryStore::default()));
        let origin = open(&clock, &store, settings).await;
        origin.ensure_account(&Account { id: ACCOUNT, name: "test".into() }).await.unwrap();
        let namespace = create_namespace(&origin, "default").await.unwrap();
        World { clock, store, origin, namespace }
    }

    /// The power goes out and comes back.
    async fn crash(&mut self) {
        self.store = Arc::new(self.store.crash());
        self.origin = open(&self.clock, &self.store, OriginSettings::default()).await;
    }

    /// An orderly restart.
    async fn restart(&mut self) {
        self.origin.close().await;
        self.crash().await;
    }

    async fn put(&self, name: &str, value: impl Into<Value>) -> Result<Written> {
        self.put_expiring(name, value, Expires::Never).await
    }

    async fn put_expiring(&self, name: &str, value: impl Into<Value>, expires: Expires) -> Result<Written> {
        let change = Change::Put { value: value.into(), metadata: None, expires };
        self.origin.write(self.namespace, &key(name), change, Via::default()).await
    }

    async fn delete(&self, name: &str) -> Result<Written> {
        self.origin.write(self.namespace, &key(name), Change::Delete, Via::default()).await
    }

    async fn answer(&self, name: &str) -> Answer {
        self.origin.get(self.namespace, &key(name), &Read::latest()).await.unwrap()
    }

    /// The value, whole; `None` when absent.
    async fn get(&self, name: &str) -> Option<Bytes> {
        match self.answer(name).await.state {
            State::Present(entry) => Some(entry.value.collect(u64::MAX).await.unwrap()),
            State::Absent => None,
            State::Unchanged { .. } => panic!("nothing was held"),
        }
    }

    async fn list(&self, prefix: &'static str, limit: usize, cursor: Option<String>) -> Result<Page> {
        let list = List { prefix: Bytes::from_static(prefix.as_bytes()), limit, cursor };
        self.origin.list(self.namespace, &list).await
    }

    async fn names(&self) -> Vec<String> {
        names(&self.list("", 1000, None).await.unwrap())
    }

    /// Lets the background tasks go on until a table has so many rows, and a little time pass now and then, for which they wait.
    async fn until_rows(&self, table: Table, rows: usize) {
        for look in 1..=10_000 {
            if self.store.count(table) == rows {
                return;
            }
            if look % 100 == 0 {
                self.clock.advance(SECOND / 4);
            }
            tokio::task::yield_now().await;
        }
        panic!("{} has {} rows and not {rows}", table.name(), self.store.count(table));
    }
}

async fn open(clock: &Arc<ManualClock>, store: &Arc<MemoryStore>, settings: OriginSettings) -> Arc<Origin> {
    let clock = Arc::new(Arc::clone(clock));
    Origin::open(Arc::clone(store) as _, clock, settings, Metrics::default().origin()).await.unwrap()
}

async fn create_namespace(origin: &Origin, title: &str) -> Result<NamespaceId> {
    let create = Control::CreateNamespace { title: title.into(), jurisdiction: None, mode: None };
    match origin.control(ACCOUNT, create).await?.0 {
        Controlled::Namespace(namespace) => Ok(namespace.id),
        other => panic!("creating a namespace answered {other:?}"),
    }
}

fn key(name: &str) -> Key {
    Key::new(name.to_owned()).unwrap()
}

fn names(page: &Page) -> Vec<String> {
    page.keys.iter().map(|listed| listed.key.as_str().to_owned()).collect()
}

/// Bytes that differ from place to place, and by seed.
fn pattern(length: usize, seed: u8) -> Bytes {
    (0..length).map(|i| (i % 251) as u8 ^ seed ^ (i >> 16) as u8).collect()
}

/// A body in parts of a length, as from a socket.
fn stream(bytes: Bytes, part: usize, length: Option<u64>) -> Value {
    let parts: Vec<Result<Bytes>> = bytes.chunks(part).map(|part| Ok(Bytes::copy_from_slice(part))).collect();
    Value::Stream(ValueStream { length, chunks: futures_util::stream::iter(parts).boxed() })
}

/// A body that breaks off after some bytes.
fn broken_stream(bytes: Bytes) -> Value {
    let parts = [Ok(bytes), Err(Error::bad_request("the client went away"))];
    Value::Stream(ValueStream { length: None, chunks: futures_util::stream::iter(parts).boxed() })
}

const SECOND: Duration = Duration::from_secs(1);
