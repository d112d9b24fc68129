//! One of several origins, as its process offers it: it comes when the database can be reached, and starts anew when it has lost its place among the others.
//!
//! Until there is one, and in between, whoever asks is told so, and asks another origin.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::Origin;
use crate::{
    clock::{self, Clock},
    error::{Error, Result},
    kv::{
        AccountId, Answer, Change, Control, Controlled, Key, List, NamespaceId, Page, Read, Source, Version, Via,
        Writer, Written,
        feed::{Follow, Frames},
        kept::Hit,
    },
    metrics::FeedCounts,
};

/// Opens the store and an origin on it.
pub type Open = Box<dyn Fn() -> BoxFuture<'static, Result<Arc<Origin>>> + Send + Sync>;

pub struct Host {
    open: Open,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    stop: CancellationToken,
    left: CancellationToken,
}

struct State {
    origin: Option<Arc<Origin>>,
    /// Why there is none.
    reason: String,
}

/// The pauses between attempts to open.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_LAST: Duration = Duration::from_secs(5);
/// How long those who follow have to take an origin's last words.
const FAREWELL: Duration = Duration::from_secs(1);

impl Host {
    pub fn new(open: Open, clock: Arc<dyn Clock>) -> Arc<Host> {
        let state = State { origin: None, reason: "the origin is starting".to_owned() };
        Arc::new(Host {
            open,
            clock,
            state: Mutex::new(state),
            stop: CancellationToken::new(),
            left: CancellationToken::new(),
        })
    }

    /// Keeps an origin open until [`Host::leave`].
    pub async fn run(self: Arc<Host>) {
        let _left = self.left.clone().drop_guard();
        let mut retry = RETRY_FIRST;
        while !self.stop.is_cancelled() {
            let opened = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                opened = (self.open)() => opened,
            };
            match opened {
                Ok(origin) => {
                    retry = RETRY_FIRST;
                    self.lock().origin = Some(Arc::clone(&origin));
                    tokio::select! {
                        biased;
                        () = self.stop.cancelled() => {}
                        () = origin.failed() => self.lose("the origin lost its place among the others, and starts anew"),
                    }
                    origin.close().await;
                }
                Err(error) => {
                    tracing::warn!(%error, "the origin can't start yet, and tries again: is the database up, and its address right?");
                    self.lose(&format!("the origin can't start yet: {error}"));
                    let pause = clock::jittered(&*self.clock, retry);
                    let _ = self.stop.run_until_cancelled(self.clock.sleep(pause)).await;
                    retry = (retry * 2).min(RETRY_LAST);
                }
            }
        }
        // What follows has been sent the end; it is given time to take it.
        self.clock.sleep(FAREWELL).await;
        self.lose("the origin is shutting down");
    }

    /// Lets the origin leave the others, and waits until those who follow it have been told.
    pub async fn leave(&self) {
        self.stop.cancel();
        self.left.cancelled().await;
    }

    /// The origin, or why there is none.
    pub fn origin(&self) -> Result<Arc<Origin>> {
        let state = self.lock();
        state.origin.clone().ok_or_else(|| Error::unavailable(state.reason.clone()).and_untaken())
    }

    pub fn feed_counts(&self) -> FeedCounts {
        self.lock().origin.as_ref().map(|origin| origin.feed().counts()).unwrap_or_default()
    }

    fn lose(&self, reason: &str) {
        let mut state = self.lock();
        if let Some(origin) = state.origin.take() {
            origin.feed().close();
        }
        state.reason = reason.to_owned();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock can panic")
    }
}

#[async_trait]
impl Source for Host {
    fn held(&self, _: NamespaceId, _: &[u8], _: &Read) -> Option<Hit> {
        None
    }

    async fn get(&self, namespace: NamespaceId, key: &Key, read: &Read) -> Result<Answer> {
        self.origin()?.get(namespace, key, read).await
    }

    async fn list(&self, namespace: NamespaceId, list: &List) -> Result<Page> {
        self.origin()?.list(namespace, list).await
    }

    async fn follow(&self, follow: Follow, pings: Frames) -> Result<Frames> {
        self.origin()?.follow(follow, pings).await
    }
}

#[async_trait]
impl Writer for Host {
    async fn write(&self, namespace: NamespaceId, key: &Key, change: Change, via: Via) -> Result<Written> {
        self.origin()?.write(namespace, key, change, via).await
    }

    async fn write_many(
        &self,
        namespace: NamespaceId,
        writes: Vec<(Key, Change)>,
        via: Via,
    ) -> Result<Vec<Result<Written>>> {
        self.origin()?.write_many(namespace, writes, via).await
    }

    async fn control(&self, account: AccountId, control: Control) -> Result<(Controlled, Version)> {
        self.origin()?.control(account, control).await
    }
}
