//! The committer: one task that numbers all changes and makes them durable, many at once.
//!
//! It takes whatever is waiting, reads what the changes replace, builds one batch with the new versions, commits it synced, and only then
//! acknowledges. While one batch is on its way to the disk, the next gathers. So versions take effect in their order, and an acknowledged write is on
//! disk. After a failed commit it takes no more: what the disk has is then unknown, until a restart has read it.
//!
//! It does not check what a change says; whoever asks has done so. It checks only what may have changed while the request waited: that the
//! namespace still exists, and that an entry still expires when the sweeper says so.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    announce::Announcer,
    control::Namespaces,
    values::{Body, Upload, Values},
    versions::{Time, VersionClock},
};
use crate::{
    clock::{Clock, Moment},
    error::{Error, Result},
    kv::{
        Key, NamespaceId, Version,
        feed::{Item, Purge, Pushed},
    },
    metrics::OriginMetrics,
    store::{
        Batch, Durability, Store, Table,
        keys::{self, Place, Reclaim, Record, ValueId, meta},
    },
};

/// Requests that may wait, and the bytes of their changes.
const WAITING_REQUESTS_MAX: usize = 4096;
const WAITING_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Where a batch is full. One request is never split, so a batch may be longer by a request.
const BATCH_CHANGES_MAX: usize = 8192;
const BATCH_BYTES_MAX: usize = 8 * 1024 * 1024;
/// What a change counts for beside its own bytes.
const CHANGE_OVERHEAD_BYTES: usize = 128;

pub(super) struct Change {
    pub(super) namespace: NamespaceId,
    pub(super) key: Key,
    pub(super) action: Action,
}

pub(super) enum Action {
    Put {
        body: Body,
        metadata: Option<Bytes>,
        expiration: Option<u64>,
    },
    Delete,
    /// Removes the entry if it has expired and still has this expiration.
    Expire {
        expiration: u64,
    },
    /// Removes an entry of a namespace that was removed.
    Reclaim,
}

/// What happens to a namespace in the same batch.
#[derive(Clone, Copy)]
pub(super) enum Effect {
    Create(NamespaceId),
    /// From here on its entries are nobody's, and it takes no more.
    Remove(NamespaceId),
    /// Its last entry has gone.
    Reclaimed(NamespaceId),
}

/// The outcome of each change, in order. What is no write (expiry, reclaiming) mints no version and has the last one.
type Outcomes = Vec<Result<Version>>;

struct Request {
    changes: Vec<Change>,
    effect: Option<Effect>,
    bytes: usize,
    answer: oneshot::Sender<Result<Outcomes>>,
    _room: OwnedSemaphorePermit,
}

/// Where changes are handed in.
pub(super) struct Committer {
    requests: mpsc::Sender<Request>,
    room: Arc<Semaphore>,
    failure: Arc<Failure>,
    committed: Arc<AtomicU64>,
    passing: Arc<Passing>,
}

/// Rows that the commit under way both puts and removes. While it is under way, nobody can tell whether such a row is absent by its removal or not yet
/// there: so as of which version it is absent is not known either, and what was put must not seem to come after that absence.
#[derive(Default)]
struct Passing {
    rows: Mutex<HashSet<Bytes>>,
    /// How often a commit with such rows has begun or ended.
    turns: AtomicU64,
    ended: Notify,
}

impl Passing {
    fn begin(&self, rows: HashSet<Bytes>) {
        if !rows.is_empty() {
            *self.rows.lock().expect("no holder of this lock can panic") = rows;
            self.turns.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn end(&self) {
        let rows = std::mem::take(&mut *self.rows.lock().expect("no holder of this lock can panic"));
        if !rows.is_empty() {
            self.turns.fetch_add(1, Ordering::AcqRel);
            self.ended.notify_waiters();
        }
    }

    fn has(&self, row: &[u8]) -> bool {
        self.rows.lock().expect("no holder of this lock can panic").contains(row)
    }
}

/// The safe version, taken before a look at the store.
pub(super) struct Safe {
    pub(super) version: Version,
    turns: u64,
}

/// What the committer's task works with.
pub(super) struct Parts {
    pub(super) store: Arc<dyn Store>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) time: Arc<Time>,
    pub(super) values: Arc<Values>,
    pub(super) namespaces: Arc<Namespaces>,
    pub(super) failure: Arc<Failure>,
    pub(super) announcer: Announcer,
    pub(super) metrics: OriginMetrics,
    pub(super) origin: u8,
    /// Whether the work runs on a thread of its own, and may block it.
    pub(super) own_thread: bool,
    /// The last version that the store has.
    pub(super) last: Version,
}

impl Committer {
    /// The handle, and the task's work: it ends when `stop` is cancelled and all that waits is done, or when the handle is gone.
    pub(super) fn new(parts: Parts, stop: CancellationToken) -> (Committer, impl Future<Output = ()> + Send) {
        let (sender, receiver) = mpsc::channel(WAITING_REQUESTS_MAX);
        let committed = Arc::new(AtomicU64::new(parts.last.as_u64()));
        let passing = Arc::<Passing>::default();
        let committer = Committer {
            requests: sender,
            room: Arc::new(Semaphore::new(WAITING_BYTES_MAX)),
            failure: Arc::clone(&parts.failure),
            committed: Arc::clone(&committed),
            passing: Arc::clone(&passing),
        };
        let versions = VersionClock::new(Arc::clone(&parts.time), parts.last, parts.origin);
        let task = Task { parts, versions, committed, passing, requests: receiver };
        (committer, task.run(stop))
    }

    /// Up to which every write is in the store, and has been announced: what a look misses took effect after it.
    pub(super) fn safe(&self) -> Safe {
        // In this order: what begins or ends after the first is noticed after the look.
        let turns = self.passing.turns.load(Ordering::Acquire);
        Safe { version: Version::from_u64(self.committed.load(Ordering::Acquire)), turns }
    }

    /// Whether a row that was looked for since, and not found, is absent as of the safe version. If not, the commit that leaves that open is waited for,
    /// and the look is to be repeated.
    pub(super) async fn is_absent_as_of(&self, safe: &Safe, row: &[u8]) -> bool {
        // Before the look, so that the end is not missed between it and the wait.
        let ended = self.passing.ended.notified();
        tokio::pin!(ended);
        ended.as_mut().enable();
        if self.passing.has(row) {
            ended.await;
            return false;
        }
        self.passing.turns.load(Ordering::Acquire) == safe.turns
    }

    /// Whether a commit has failed, so that none will be taken any more.
    pub(super) fn is_read_only(&self) -> bool {
        self.failure.check().is_err()
    }

    /// Hands changes in and waits until they are on disk. They go into one batch together. The work goes on when the caller doesn't.
    pub(super) async fn commit(&self, changes: Vec<Change>, effect: Option<Effect>) -> Result<Outcomes> {
        self.failure.check()?;
        let bytes = changes.iter().map(Change::bytes).sum::<usize>() + CHANGE_OVERHEAD_BYTES;
        let permits = u32::try_from(bytes.min(WAITING_BYTES_MAX)).expect("the bound on waiting bytes fits");
        let room = Arc::clone(&self.room).acquire_many_owned(permits).await.map_err(|_| closed())?;
        let (answer, answered) = oneshot::channel();
        let request = Request { changes, effect, bytes, answer, _room: room };
        self.requests.send(request).await.map_err(|_| closed())?;
        answered.await.map_err(|_| Error::internal("the committer ended before it answered"))?
    }
}

fn closed() -> Error {
    Error::unavailable("the origin is shutting down")
}

impl Change {
    fn bytes(&self) -> usize {
        let value = match &self.action {
            Action::Put { body, metadata, .. } => body.waiting_bytes() + metadata.as_ref().map_or(0, Bytes::len),
            Action::Delete | Action::Expire { .. } | Action::Reclaim => 0,
        };
        CHANGE_OVERHEAD_BYTES + self.key.as_bytes().len() + value
    }
}

/// Whether a commit has failed, and why. From then on the origin is read-only.
pub(super) struct Failure {
    cause: OnceLock<String>,
    metrics: OriginMetrics,
}

impl Failure {
    pub(super) fn new(metrics: OriginMetrics) -> Failure {
        Failure { cause: OnceLock::new(), metrics }
    }

    pub(super) fn check(&self) -> Result<()> {
        match self.cause.get() {
            None => Ok(()),
            Some(cause) => {
                Err(Error::internal(format!("the origin is read-only, because writing to its store failed: {cause}")))
            }
        }
    }

    pub(super) fn fail(&self, error: &Error) {
        if self.cause.set(error.to_string()).is_ok() {
            self.metrics.turned_read_only();
            tracing::error!(%error, "WRITING TO THE STORE FAILED: the origin is read-only from now on; repair the disk and restart");
        }
    }
}

struct Task {
    parts: Parts,
    versions: VersionClock,
    committed: Arc<AtomicU64>,
    passing: Arc<Passing>,
    requests: mpsc::Receiver<Request>,
}

/// A batch being built.
#[derive(Default)]
struct Draft {
    batch: Batch,
    /// What the changed entries replace, by their row; kept up to date as changes are added.
    replaced: HashMap<Bytes, Result<Option<Replaced>>>,
    removed_namespaces: HashSet<NamespaceId>,
    effects: Vec<Effect>,
    last: Option<Version>,
    /// Kept until the batch is on disk, so that nobody takes them for abandoned.
    uploads: Vec<Upload>,
    leaves_garbage: bool,
    writes: u64,
    /// What the changes tell the tiers, in their order.
    items: Vec<Item>,
    /// Rows that are put and then removed.
    passing: HashSet<Bytes>,
    put: HashSet<Bytes>,
}

/// What of an entry matters to the change that takes its place.
#[derive(Clone, Copy)]
struct Replaced {
    expiration: Option<u64>,
    chunked: Option<(ValueId, u32)>,
}

impl Task {
    async fn run(mut self, stop: CancellationToken) {
        loop {
            let first = tokio::select! {
                biased;
                request = self.requests.recv() => request,
                () = stop.cancelled() => {
                    self.requests.close();
                    self.requests.recv().await
                }
            };
            let Some(first) = first else { break };
            if self.parts.own_thread {
                // Whoever is ready to run on this core goes first: what it hands in shares this batch's sync. Nobody there, nothing lost.
                std::thread::yield_now();
            }
            let requests = self.gather(first);
            self.serve(requests).await;
        }
        if self.parts.failure.check().is_ok()
            && let Err(error) = self.parts.store.commit(Batch::default(), Durability::Synced).await
        {
            self.parts.failure.fail(&error);
        }
    }

    /// What is waiting, up to a full batch.
    fn gather(&mut self, first: Request) -> Vec<Request> {
        let (mut changes, mut bytes) = (first.changes.len(), first.bytes);
        let mut requests = vec![first];
        while changes < BATCH_CHANGES_MAX
            && bytes < BATCH_BYTES_MAX
            && let Ok(request) = self.requests.try_recv()
        {
            changes += request.changes.len();
            bytes += request.bytes;
            requests.push(request);
        }
        requests
    }

    async fn serve(&mut self, mut requests: Vec<Request>) {
        let outcome = match self.parts.failure.check() {
            Ok(()) => self.commit(&mut requests).await,
            Err(error) => Err(error),
        };
        // Whoever has gone away learns nothing, and needs to.
        match outcome {
            Ok(outcomes) => {
                for (request, outcomes) in requests.into_iter().zip(outcomes) {
                    let _ = request.answer.send(Ok(outcomes));
                }
            }
            Err(error) => {
                for request in requests {
                    let _ = request.answer.send(Err(error.copied()));
                }
            }
        }
    }

    async fn commit(&mut self, requests: &mut [Request]) -> Result<Vec<Outcomes>> {
        // For all of them before any is added: a decision of several changes, and what happens with it, is taken whole or not at all.
        let mints = |change: &&Change| matches!(change.action, Action::Put { .. } | Action::Delete);
        let writes = requests.iter().flat_map(|request| &request.changes).filter(mints).count();
        if writes > 0 {
            self.versions.check(writes as u64)?;
        }
        let mut draft = Draft { replaced: self.read_replaced(requests).await?, ..Draft::default() };
        let mut outcomes = Vec::with_capacity(requests.len());
        for request in requests {
            let changes = std::mem::take(&mut request.changes);
            outcomes.push(changes.into_iter().map(|change| self.add(&mut draft, change)).collect());
            if let Some(effect) = request.effect {
                draft.add_effect(effect);
            }
        }
        if let Some(last) = draft.last {
            draft.batch.put(Table::Meta, meta::LAST_VERSION, keys::encode_number(last.as_u64()));
        }
        if draft.batch.is_empty() {
            return Ok(outcomes);
        }
        let started = self.parts.clock.now();
        self.passing.begin(std::mem::take(&mut draft.passing));
        let committed = self.commit_draft(draft, started).await;
        self.passing.end();
        committed.map(|()| outcomes)
    }

    async fn commit_draft(&mut self, mut draft: Draft, started: Moment) -> Result<()> {
        let mut batch = std::mem::take(&mut draft.batch);
        if !draft.items.is_empty() {
            self.parts.announcer.begin(&draft.items, &mut batch);
        }
        if let Err(error) = self.parts.store.commit(batch, Durability::Synced).await {
            // Before the draft drops its uploads: nobody may reclaim what this batch may yet turn out to name.
            self.parts.failure.fail(&error);
            return Err(Error::internal("the write failed, because the store could not commit it").with_source(error));
        }
        self.parts.metrics.committed(draft.writes, self.parts.clock.now().since(started));
        self.took_effect(draft);
        Ok(())
    }

    /// What a batch on disk means to everybody else. It runs after the commit and before any acknowledgement.
    fn took_effect(&self, draft: Draft) {
        for effect in &draft.effects {
            self.parts.namespaces.apply(*effect);
        }
        if let Some(last) = draft.last {
            self.parts.announcer.publish(draft.items, last, &self.parts.time);
            self.committed.store(last.as_u64(), Ordering::Release);
        }
        if draft.leaves_garbage {
            self.parts.values.wake_reclaimer();
        }
    }

    /// The entries that the requests are about, all in one trip to the store.
    async fn read_replaced(&self, requests: &[Request]) -> Result<HashMap<Bytes, Result<Option<Replaced>>>> {
        let changes = requests.iter().flat_map(|request| &request.changes);
        let rows: HashSet<Bytes> = changes.map(|change| keys::entry(change.namespace, change.key.as_bytes())).collect();
        if rows.is_empty() {
            return Ok(HashMap::new());
        }
        let rows: Vec<Bytes> = rows.into_iter().collect();
        let found = self.parts.store.get_many(Table::Entry, &rows).await?;
        let decode = |(row, found): (Bytes, Option<Bytes>)| {
            let replaced = match found {
                Some(value) => Record::decode(&row, &value).map(|record| Some(Replaced::from(&record))),
                None => Ok(None),
            };
            (row, replaced)
        };
        Ok(rows.into_iter().zip(found).map(decode).collect())
    }

    fn add(&mut self, draft: &mut Draft, change: Change) -> Result<Version> {
        let Change { namespace, key, action } = change;
        let row = keys::entry(namespace, key.as_bytes());
        let replaced = match draft.replaced.get(&row) {
            Some(Ok(replaced)) => *replaced,
            Some(Err(error)) => return Err(error.copied()),
            None => return Err(Error::internal(format!("the entry {key:?} was not read before it was changed"))),
        };
        let exists = !draft.removed_namespaces.contains(&namespace);
        match action {
            Action::Put { body, metadata, expiration } => {
                if !exists {
                    return Err(super::namespace_unknown());
                }
                self.parts.namespaces.check(namespace)?;
                draft.clear(namespace, &key, replaced);
                let version = self.mint(draft);
                let state = self.parts.announcer.pushed(&body, metadata.as_ref(), expiration);
                draft.items.push(Item::Purge(Purge { namespace, key: key.clone(), version, state }));
                let (length, place) = draft.place(body);
                draft.put(namespace, &key, row, &Record { version, expiration, metadata, length, place });
                Ok(version)
            }
            Action::Delete => {
                if !exists {
                    return Err(super::namespace_unknown());
                }
                self.parts.namespaces.check(namespace)?;
                draft.clear(namespace, &key, replaced);
                draft.remove(row, replaced);
                // A missing key's deletion is a write as well: its version is above whatever anybody holds of the key.
                let version = self.mint(draft);
                draft.items.push(Item::Purge(Purge { namespace, key, version, state: Some(Pushed::Absent) }));
                Ok(version)
            }
            Action::Expire { expiration } => {
                let due = expiration <= self.parts.time.seconds();
                let current = replaced.is_some_and(|replaced| replaced.expiration == Some(expiration));
                if due && current {
                    draft.clear(namespace, &key, replaced);
                    draft.remove(row, replaced);
                } else if !current {
                    draft.batch.remove(Table::Expiry, keys::expiry(expiration, namespace, key.as_bytes()));
                }
                Ok(self.versions.last())
            }
            Action::Reclaim => {
                draft.clear(namespace, &key, replaced);
                draft.remove(row, replaced);
                Ok(self.versions.last())
            }
        }
    }

    fn mint(&mut self, draft: &mut Draft) -> Version {
        let version = self.versions.mint();
        draft.last = Some(version);
        draft.writes += 1;
        version
    }
}

impl Draft {
    /// Removes what belongs to an entry beside its record, which is about to be replaced or removed.
    fn clear(&mut self, namespace: NamespaceId, key: &Key, replaced: Option<Replaced>) {
        let Some(replaced) = replaced else { return };
        if let Some(expiration) = replaced.expiration {
            self.batch.remove(Table::Expiry, keys::expiry(expiration, namespace, key.as_bytes()));
        }
        if let Some((id, chunks)) = replaced.chunked {
            self.batch.put(Table::Reclaim, Reclaim::Value(id).row(), keys::encode_chunks(chunks));
            self.leaves_garbage = true;
        }
    }

    fn remove(&mut self, row: Bytes, replaced: Option<Replaced>) {
        if replaced.is_some() {
            self.batch.remove(Table::Entry, row.clone());
        }
        if self.put.contains(&row) {
            self.passing.insert(row.clone());
        }
        self.replaced.insert(row, Ok(None));
    }

    /// Adds what a received value still needs to be one, and returns its length and its place.
    fn place(&mut self, body: Body) -> (u64, Place) {
        match body {
            Body::Inline(value) => (value.len() as u64, Place::Inline(value)),
            Body::Chunk(id, value) => {
                let length = value.len() as u64;
                self.batch.put(Table::Chunk, keys::chunk(id, 0), value);
                (length, Place::Chunked(id))
            }
            Body::Uploaded(upload) => {
                self.batch.remove(Table::Reclaim, Reclaim::Upload(upload.id()).row());
                let place = (upload.length(), Place::Chunked(upload.id()));
                self.uploads.push(upload);
                place
            }
        }
    }

    fn put(&mut self, namespace: NamespaceId, key: &Key, row: Bytes, record: &Record) {
        if let Some(expiration) = record.expiration {
            self.batch.put(Table::Expiry, keys::expiry(expiration, namespace, key.as_bytes()), Bytes::new());
        }
        self.batch.put(Table::Entry, row.clone(), record.encode());
        self.put.insert(row.clone());
        self.replaced.insert(row, Ok(Some(Replaced::from(record))));
    }

    fn add_effect(&mut self, effect: Effect) {
        match effect {
            Effect::Create(_) => {}
            Effect::Remove(namespace) => {
                self.batch.put(Table::Reclaim, Reclaim::Namespace(namespace).row(), Bytes::new());
                self.removed_namespaces.insert(namespace);
                self.leaves_garbage = true;
                // With its record's deletion, which has a version.
                self.items.extend(self.last.map(|version| Item::Namespace { namespace, version }));
            }
            Effect::Reclaimed(namespace) => self.batch.remove(Table::Reclaim, Reclaim::Namespace(namespace).row()),
        }
        self.effects.push(effect);
    }
}

impl From<&Record> for Replaced {
    fn from(record: &Record) -> Replaced {
        let chunked = match record.place {
            Place::Inline(_) => None,
            Place::Chunked(id) => Some((id, keys::chunks_of(record.length))),
        };
        Replaced { expiration: record.expiration, chunked }
    }
}
