//! A store whose calls are made again while it can't be reached: a copy takes hours, and one node that starts anew is no reason to end it.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{
    clock::{self, Clock},
    error::{Kind, Result},
    store::{Agreement, Batch, Durability, Store, Table},
};

/// How often a call is made, with pauses that double: half a minute, and what the store itself takes to give up.
const ATTEMPTS: u32 = 8;
const PAUSE_FIRST: Duration = Duration::from_millis(250);

pub(super) struct Patient {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
}

impl Patient {
    pub(super) fn shared(store: Arc<dyn Store>, clock: &Arc<dyn Clock>) -> Arc<dyn Store> {
        Arc::new(Patient { store, clock: Arc::clone(clock) })
    }

    async fn patiently<T, F: Future<Output = Result<T>>>(&self, call: impl Fn() -> F) -> Result<T> {
        let mut pause = PAUSE_FIRST;
        for _ in 1..ATTEMPTS {
            match call().await {
                Err(error) if error.kind == Kind::Unavailable => {
                    tracing::warn!(%error, "the store can't be reached, and is tried again");
                }
                answered => return answered,
            }
            self.clock.sleep(clock::jittered(&*self.clock, pause)).await;
            pause *= 2;
        }
        call().await
    }
}

#[async_trait]
impl Store for Patient {
    async fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>> {
        self.patiently(|| self.store.get(table, key)).await
    }

    async fn get_many(&self, table: Table, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>> {
        self.patiently(|| self.store.get_many(table, keys)).await
    }

    async fn scan(&self, table: Table, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>> {
        self.patiently(|| self.store.scan(table, from, to, limit)).await
    }

    /// Only a shared store says that it can't be reached, and there the same batch may be committed again.
    async fn commit(&self, batch: Batch, durability: Durability) -> Result<()> {
        self.patiently(|| self.store.commit(batch.clone(), durability)).await
    }

    fn in_place(&self) -> Option<Arc<dyn Store>> {
        self.store.in_place()
    }

    fn agreement(&self) -> Option<&dyn Agreement> {
        self.store.agreement()
    }
}
