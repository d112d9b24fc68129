//! What a read may conclude while a commit is under way that puts an entry and removes it again.

use std::task::Poll;

use async_trait::async_trait;
use futures_util::poll;
use tokio::sync::Semaphore;

use super::*;
use crate::store::{Batch, Durability, Store};

/// A memory store whose commits take effect at once, and are answered when they are let go.
struct SlowStore {
    rows: Arc<MemoryStore>,
    answers: Semaphore,
}

#[async_trait]
impl Store for SlowStore {
    async fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>> {
        self.rows.get(table, key).await
    }

    async fn get_many(&self, table: Table, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>> {
        self.rows.get_many(table, keys).await
    }

    async fn scan(&self, table: Table, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>> {
        self.rows.scan(table, from, to, limit).await
    }

    async fn commit(&self, batch: Batch, durability: Durability) -> Result<()> {
        let committed = self.rows.commit(batch, durability).await;
        self.answers.acquire().await.expect("it is never closed").forget();
        committed
    }

    fn in_place(&self) -> Option<Arc<dyn Store>> {
        None
    }

    fn agreement(&self) -> Option<&dyn crate::store::Agreement> {
        None
    }
}

#[tokio::test]
async fn an_absence_is_as_of_no_earlier_than_the_removal_that_made_it() {
    let clock = ManualClock::shared();
    let rows = Arc::new(MemoryStore::default());
    let slow = Arc::new(SlowStore { rows, answers: Semaphore::new(100) });
    let shared = Arc::new(Arc::clone(&clock));
    let metrics = Metrics::default().origin();
    let origin = Origin::open(Arc::clone(&slow) as _, shared, OriginSettings::default(), metrics).await.unwrap();
    origin.ensure_account(&Account { id: ACCOUNT, name: "test".into() }).await.unwrap();
    let namespace = create_namespace(&origin, "default").await.unwrap();

    slow.answers.forget_permits(100);
    let put = Change::Put { value: Bytes::from_static(b"v").into(), metadata: None, expires: Expires::Never };
    let writes = vec![(key("k"), put), (key("k"), Change::Delete)];
    let writing = tokio::spawn({
        let origin = Arc::clone(&origin);
        async move { origin.write_many(namespace, writes, Via::default()).await }
    });
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let (k, other, latest) = (key("k"), key("other"), Read::latest());
    let mut reading = origin.get(namespace, &k, &latest);
    assert!(matches!(poll!(&mut reading), Poll::Pending), "as of when it is absent is not known yet");
    // Of any other key it is.
    assert!(matches!(origin.get(namespace, &other, &latest).await.unwrap().state, State::Absent));

    slow.answers.add_permits(100);
    let answer = reading.await.unwrap();
    let deleted = writing.await.unwrap().unwrap().pop().unwrap().unwrap();
    assert!(matches!(answer.state, State::Absent));
    assert!(answer.version >= deleted.version, "{} is before {}", answer.version, deleted.version);
}
