//! Values as bytes in the store: in their record while small, else in chunks.
//!
//! A large value's chunks are written as they arrive, named by nobody. The commit of the entry makes them a value; without it they are an
//! abandoned upload, which its row in `Reclaim` lets the reclaimer find, also after a crash. A value of one chunk goes into the store
//! together with its entry.
//!
//! On a shared store nobody knows what the others read and write. So the row says which entry may name the value, it stays when the entry has been committed,
//! and the reclaimer looks once all who could be at it must have ended (`reclaim.rs`). There each value that is not in its record is such an upload.
//!
//! A reader pins the value that it reads. The reclaimer passes over what is pinned, so a read that began before an overwrite ends with
//! the old bytes. Memory per upload or read is a few chunks.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, BoxStream, StreamExt as _};
use tokio::sync::{Notify, Semaphore};

use super::{failure::Failure, versions::Time};
use crate::{
    clock::{self, Clock, Moment},
    error::{Error, Kind, Result},
    kv::{self, Value, ValueStream, Version},
    limits,
    store::{
        Batch, Durability, Store, Table,
        keys::{self, Reclaim, ValueId},
    },
};

/// Chunks that a reader fetches ahead of what it has handed on.
const READ_AHEAD_CHUNKS: usize = 2;
/// How often a shared store is asked to take a part of a value, and the pause in between.
const SHARED_ATTEMPTS: usize = 3;
const SHARED_PAUSE: Duration = Duration::from_millis(200);

pub(super) struct Values {
    store: Arc<dyn Store>,
    failure: Arc<Failure>,
    next_id: AtomicU64,
    /// On a shared store.
    shared: Option<SharedValues>,
    uses: Mutex<Uses>,
    reclaimer: Notify,
}

/// What the rows of values on a shared store are told with.
pub(super) struct SharedValues {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) time: Arc<Time>,
    pub(super) origin: u8,
    /// How long what is gone is remembered.
    pub(super) kept: Duration,
    /// Parts of values on their way into the store.
    pub(super) places: Semaphore,
}

/// So many are on their way at a time: more would not be faster, and keep the database from what can't wait, as an origin's lease.
pub(super) const PARTS_AT_ONCE: usize = 8;

impl SharedValues {
    fn stamp(&self) -> Version {
        Version::first_of(self.time.millis(), self.origin)
    }
}

/// The entry that a value is received for.
#[derive(Clone, Copy)]
pub(super) struct For<'a> {
    pub(super) row: &'a Bytes,
    pub(super) expiration: Option<u64>,
}

/// What is being done with values right now.
#[derive(Default)]
struct Uses {
    uploading: HashSet<ValueId>,
    pinned: HashMap<ValueId, Pinned>,
    reclaiming: HashSet<ValueId>,
}

#[derive(Default)]
struct Pinned {
    readers: usize,
    /// The reclaimer has passed over it, and is to be told of the last reader's end.
    to_reclaim: bool,
}

/// A value that was received, ready to be committed with its entry.
pub(super) enum Body {
    Inline(Bytes),
    /// One chunk, to be put by the same commit.
    Chunk(ValueId, Bytes),
    /// Chunks in the store.
    Uploaded(Upload),
}

impl Body {
    /// The bytes that wait for the commit in memory.
    /// An error if a value on a shared store was received for so long that it may be taken for garbage soon.
    pub(super) fn check_age(&self, now: Moment, kept: Duration) -> Result<()> {
        match self {
            Body::Uploaded(Upload { started_at: Some(started_at), .. }) if now.since(*started_at) > kept / 2 => {
                Err(Error::new(Kind::RequestTimeout, format!("the value took longer than {:?} to arrive", kept / 2)))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn waiting_bytes(&self) -> usize {
        match self {
            Body::Inline(value) | Body::Chunk(_, value) => value.len(),
            Body::Uploaded(_) => 0,
        }
    }
}

impl Values {
    /// `starts` is the number of this start of an origin on the store, below [`keys::STARTS_MAX`].
    pub(super) fn new(
        store: Arc<dyn Store>,
        failure: Arc<Failure>,
        starts: u64,
        shared: Option<SharedValues>,
    ) -> Arc<Values> {
        Arc::new(Values {
            shared,
            store,
            failure,
            next_id: AtomicU64::new(keys::first_value(starts).0),
            uses: Mutex::default(),
            reclaimer: Notify::new(),
        })
    }

    fn uses(&self) -> MutexGuard<'_, Uses> {
        self.uses.lock().expect("no holder of this lock can panic")
    }

    fn mint_id(&self) -> ValueId {
        // 2^40 values in one run are centuries of uploads.
        ValueId(self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) fn wake_reclaimer(&self) {
        self.reclaimer.notify_one();
    }

    /// Waits until there may be something to reclaim.
    pub(super) async fn reclaimer_woken(&self) {
        self.reclaimer.notified().await;
    }

    /// Takes a value in. An error leaves nothing behind but an abandoned upload.
    pub(super) async fn receive(self: &Arc<Values>, value: Value, entry: For<'_>) -> Result<Body> {
        if let Some(length) = value.length()
            && length > limits::VALUE_BYTES_MAX
        {
            return Err(kv::too_large(length, limits::VALUE_BYTES_MAX));
        }
        match value {
            Value::Whole(bytes) if bytes.len() <= limits::CHUNK_BYTES => self.small(bytes, entry).await,
            value => self.receive_stream(value.length(), value.into_stream(), entry).await,
        }
    }

    async fn small(self: &Arc<Values>, value: Bytes, entry: For<'_>) -> Result<Body> {
        if value.len() <= limits::INLINE_BYTES_MAX {
            return Ok(Body::Inline(value));
        }
        if self.shared.is_none() {
            return Ok(Body::Chunk(self.mint_id(), value));
        }
        let mut upload = Upload::start(self, Some(value.len() as u64));
        upload.small = Some(value.clone());
        upload.add(value, entry).await?;
        Ok(Body::Uploaded(upload))
    }

    async fn receive_stream(
        self: &Arc<Values>,
        expected: Option<u64>,
        mut body: BoxStream<'static, Result<Bytes>>,
        entry: For<'_>,
    ) -> Result<Body> {
        let mut upload: Option<Upload> = None;
        let mut chunk = BytesMut::new();
        let mut length = 0;
        while let Some(part) = body.next().await {
            let mut part = part?;
            length += part.len() as u64;
            if length > limits::VALUE_BYTES_MAX {
                drop(upload);
                return Err(kv::too_large(count(length, body).await?, limits::VALUE_BYTES_MAX));
            }
            while !part.is_empty() {
                if chunk.len() == limits::CHUNK_BYTES {
                    // One more byte than a chunk: from here on it is an upload.
                    let full = std::mem::take(&mut chunk).freeze();
                    upload.get_or_insert_with(|| Upload::start(self, expected)).add(full, entry).await?;
                }
                if chunk.is_empty() && (upload.is_some() || part.len() >= limits::CHUNK_BYTES) {
                    chunk.reserve(limits::CHUNK_BYTES);
                }
                let taken = part.split_to(part.len().min(limits::CHUNK_BYTES - chunk.len()));
                chunk.extend_from_slice(&taken);
            }
        }
        if let Some(expected) = expected
            && expected != length
        {
            return Err(Error::bad_request(format!("the value ended after {length} of {expected} bytes")));
        }
        match upload {
            None => self.small(chunk.freeze(), entry).await,
            Some(mut upload) => {
                upload.add(chunk.freeze(), entry).await?;
                Ok(Body::Uploaded(upload))
            }
        }
    }

    /// Opens a stored value for reading; `None` if it has been reclaimed since its record was read.
    pub(super) async fn open(self: &Arc<Values>, id: ValueId, length: u64) -> Result<Option<Value>> {
        let chunks = keys::chunks_of(length);
        if chunks == 1 {
            return Ok(self.chunk(id, 0, length).await?.map(Value::Whole));
        }
        let Some(pin) = Pin::take(self, id) else { return Ok(None) };
        // Chunks are removed only while their value is being reclaimed, and that is over or can't begin. So the first speaks for all.
        let Some(first) = self.chunk(id, 0, length).await? else { return Ok(None) };
        let values = Arc::clone(self);
        let rest = stream::iter(1..chunks)
            .map(move |number| {
                let values = Arc::clone(&values);
                async move {
                    let chunk = values.chunk(id, number, length).await?;
                    chunk
                        .ok_or_else(|| Error::internal(format!("chunk {number} of value {} is not in the store", id.0)))
                }
            })
            .buffered(READ_AHEAD_CHUNKS);
        let chunks = stream::once(std::future::ready(Ok(first))).chain(rest).inspect(move |_| {
            // The stream owns the pin until it is dropped.
            let _ = &pin;
        });
        Ok(Some(Value::Stream(ValueStream { length: Some(length), chunks: chunks.boxed() })))
    }

    async fn chunk(&self, id: ValueId, number: u32, length: u64) -> Result<Option<Bytes>> {
        let Some(bytes) = self.store.get(Table::Chunk, &keys::chunk(id, number)).await? else { return Ok(None) };
        let left = length - u64::from(number) * limits::CHUNK_BYTES as u64;
        let expected = left.min(limits::CHUNK_BYTES as u64);
        if bytes.len() as u64 != expected {
            let found = bytes.len();
            return Err(Error::internal(format!(
                "chunk {number} of value {} has {found} bytes in the store, not {expected}",
                id.0
            )));
        }
        Ok(Some(bytes))
    }

    /// Removes an overwritten or deleted value that nobody reads any more. Returns whether it did.
    pub(super) async fn reclaim_value(&self, id: ValueId, chunks: u32) -> Result<bool> {
        {
            let mut uses = self.uses();
            if let Some(pinned) = uses.pinned.get_mut(&id) {
                pinned.to_reclaim = true;
                return Ok(false);
            }
            uses.reclaiming.insert(id);
        }
        let removed = self.remove(id, chunks, Reclaim::Value(id)).await;
        self.uses().reclaiming.remove(&id);
        removed.map(|()| true)
    }

    /// Removes an upload if it has ended without its entry. Returns whether it did.
    pub(super) async fn reclaim_upload(&self, id: ValueId, chunks: u32) -> Result<bool> {
        if self.uses().uploading.contains(&id) {
            return Ok(false);
        }
        // An upload counts as under way from before its row is put until after its entry's commit has removed it. It isn't under way, so if the row
        // is there now, no commit will ever name the value.
        let marker = Reclaim::Upload(id);
        if self.store.get(Table::Reclaim, &marker.row()).await?.is_none() {
            return Ok(false);
        }
        self.remove(id, chunks, marker).await?;
        Ok(true)
    }

    /// Removes a value and what says that it may be garbage.
    pub(super) async fn remove(&self, id: ValueId, chunks: u32, marker: Reclaim) -> Result<()> {
        let mut batch = self.batch();
        for number in 0..chunks {
            batch.remove(Table::Chunk, keys::chunk(id, number));
        }
        batch.remove(Table::Reclaim, marker.row());
        // If a crash takes this back, it takes the marker's removal back with it.
        self.commit(batch).await
    }

    pub(super) fn batch(&self) -> Batch {
        Batch::at(self.shared.as_ref().map_or(Version::ZERO, SharedValues::stamp))
    }

    pub(super) async fn commit(&self, batch: Batch) -> Result<()> {
        self.failure.check()?;
        if let Some(shared) = &self.shared {
            let _place = shared.places.acquire().await.expect("it is never closed");
            // Nothing is built upon it before it is known, and it may be done twice.
            for _ in 1..SHARED_ATTEMPTS {
                match self.store.commit(batch.clone(), Durability::Synced).await {
                    Err(error) if error.kind.is_outage() => {
                        tracing::debug!(%error, "a part of a value could not be put into the store, and is tried again");
                        shared.clock.sleep(clock::jittered(&*shared.clock, SHARED_PAUSE)).await;
                    }
                    known => return known,
                }
            }
            return self.store.commit(batch, Durability::Synced).await;
        }
        self.store.commit(batch, Durability::Buffered).await.inspect_err(|error| self.failure.fail(error))
    }
}

/// The full length of a body that is too long already.
async fn count(mut length: u64, mut body: BoxStream<'static, Result<Bytes>>) -> Result<u64> {
    while let Some(part) = body.next().await {
        length += part?.len() as u64;
    }
    Ok(length)
}

/// Chunks of a value on their way into the store. Dropped without a commit of its entry, they are reclaimed.
pub(super) struct Upload {
    values: Arc<Values>,
    id: ValueId,
    /// An upper bound on the number of its chunks.
    chunks_max: u32,
    chunks: u32,
    length: u64,
    /// On a shared store.
    started_at: Option<Moment>,
    /// The whole value, if it is one chunk of which a purge may bring the state along.
    small: Option<Bytes>,
}

impl Upload {
    fn start(values: &Arc<Values>, expected: Option<u64>) -> Upload {
        let id = values.mint_id();
        values.uses().uploading.insert(id);
        let chunks_max = keys::chunks_of(expected.unwrap_or(limits::VALUE_BYTES_MAX));
        let started_at = values.shared.as_ref().map(|shared| shared.clock.now());
        Upload { values: Arc::clone(values), id, chunks_max, chunks: 0, length: 0, started_at, small: None }
    }

    async fn add(&mut self, chunk: Bytes, entry: For<'_>) -> Result<()> {
        assert!(chunk.len() <= limits::CHUNK_BYTES, "the receiver cuts the body into chunks");
        if self.chunks == self.chunks_max {
            return Err(Error::bad_request("the value is longer than it was said to be"));
        }
        self.length += chunk.len() as u64;
        let mut batch = self.values.batch();
        let mut until = None;
        match &self.values.shared {
            None if self.chunks == 0 => {
                batch.put(Table::Reclaim, Reclaim::Upload(self.id).row(), keys::encode_chunks(self.chunks_max));
            }
            None => {}
            Some(shared) => {
                until = entry.expiration.map(|expiration| expiration.saturating_add(shared.kept.as_secs()));
                if self.chunks == 0 {
                    // By itself, and first: chunks that nothing tells of would never be found.
                    let mut marker = self.values.batch();
                    let row = Reclaim::Doubtful { at: shared.time.millis(), id: self.id }.row();
                    marker.put(Table::Reclaim, row, keys::encode_doubtful(self.chunks_max, entry.row));
                    self.values.commit(marker).await?;
                }
            }
        }
        batch.put_until(Table::Chunk, keys::chunk(self.id, self.chunks), chunk, until);
        self.chunks += 1;
        self.values.commit(batch).await
    }

    /// The whole value, if it is in memory.
    pub(super) fn small(&self) -> Option<&Bytes> {
        self.small.as_ref()
    }

    pub(super) fn id(&self) -> ValueId {
        self.id
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.values.uses().uploading.remove(&self.id);
        self.values.wake_reclaimer();
    }
}

/// Keeps a value from being reclaimed while it is read.
struct Pin {
    values: Arc<Values>,
    id: ValueId,
}

impl Pin {
    /// `None` if it is too late.
    fn take(values: &Arc<Values>, id: ValueId) -> Option<Pin> {
        let mut uses = values.uses();
        if uses.reclaiming.contains(&id) {
            return None;
        }
        uses.pinned.entry(id).or_default().readers += 1;
        Some(Pin { values: Arc::clone(values), id })
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut uses = self.values.uses();
        let Some(pinned) = uses.pinned.get_mut(&self.id) else { return };
        pinned.readers -= 1;
        if pinned.readers == 0 {
            let to_reclaim = pinned.to_reclaim;
            uses.pinned.remove(&self.id);
            drop(uses);
            if to_reclaim {
                self.values.wake_reclaimer();
            }
        }
    }
}
