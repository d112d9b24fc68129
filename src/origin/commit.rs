//! The committer: one task that numbers all changes and makes them durable, many at once. On a store that blocks it has a thread to itself, which looks,
//! writes and syncs in place.
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

use bytes::{Bytes, BytesMut};
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
        let hashing = ahash::RandomState::new();
        let task = Task { parts, versions, committed, passing, requests: receiver, gathered: 0, hashing };
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

    /// Room for its record, if it puts one.
    fn record_bytes_max(&self) -> usize {
        match &self.action {
            Action::Put { body, metadata, .. } => {
                let inline = if let Body::Inline(value) = body { value.len() } else { 0 };
                Record::LENGTH_BESIDE_CONTENT_MAX + inline + metadata.as_ref().map_or(0, Bytes::len)
            }
            Action::Delete | Action::Expire { .. } | Action::Reclaim => 0,
        }
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
    /// How many requests the last batch answered.
    gathered: usize,
    hashing: ahash::RandomState,
}

fn acknowledge(requests: Vec<Request>, outcome: Result<Vec<Outcomes>>) {
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

/// A batch being built.
#[derive(Default)]
struct Draft {
    batch: Batch,
    /// The entries that it changes, as they stand after the changes added so far.
    standing: Vec<Standing>,
    /// Where records are written: one piece of memory for all of them, as they go into the store together, and leave its memory together.
    records: BytesMut,
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
}

/// Where a change is about to happen.
struct Target {
    row: Bytes,
    /// The place of its entry in [`Draft::standing`]: changes of one entry share it.
    standing: usize,
}

/// An entry between two changes.
enum Standing {
    Known {
        replaced: Option<Replaced>,
        /// Whether this batch has put it.
        put: bool,
    },
    /// The store has a record that nobody can read.
    Garbled(Box<Error>),
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
            if self.parts.own_thread && self.gathered > 1 {
                // Several write at a time: those whom the last batch answered may be about to write again. Whatever task is ready now goes first, so that
                // what it hands in shares this batch's sync. Where a core is free that takes no time.
                let _ = tokio::spawn(tokio::task::yield_now()).await;
            }
            let requests = self.gather(first);
            self.gathered = requests.len();
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
        if self.parts.own_thread {
            // Woken from here one by one, those who wait might each take the core in turn; from a task of their runtime they are woken all at once.
            tokio::spawn(async move { acknowledge(requests, outcome) });
        } else {
            acknowledge(requests, outcome);
        }
    }

    async fn commit(&mut self, requests: &mut [Request]) -> Result<Vec<Outcomes>> {
        // For all of them before any is added: a decision of several changes, and what happens with it, is taken whole or not at all.
        let mints = |change: &&Change| matches!(change.action, Action::Put { .. } | Action::Delete);
        let writes = requests.iter().flat_map(|request| &request.changes).filter(mints).count();
        if writes > 0 {
            self.versions.check(writes as u64)?;
        }
        let (targets, standing) = self.look_up(requests).await?;
        let mut draft = Draft::with_room(requests, standing);
        let mut targets = targets.into_iter();
        let mut outcomes = Vec::with_capacity(requests.len());
        for request in requests {
            let changes = std::mem::take(&mut request.changes);
            let added =
                changes.into_iter().zip(&mut targets).map(|(change, target)| self.add(&mut draft, change, target));
            outcomes.push(added.collect());
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

    /// The entries that the requests are about, all in one trip to the store: a target for each change, and how each entry stands.
    async fn look_up(&self, requests: &[Request]) -> Result<(Vec<Target>, Vec<Standing>)> {
        let changes = || requests.iter().flat_map(|request| &request.changes);
        let (mut count, mut bytes) = (0, 0);
        for change in changes() {
            (count, bytes) = (count + 1, bytes + keys::entry_length(change.key.as_bytes()));
        }
        let mut buffer = BytesMut::with_capacity(bytes);
        let mut rows = Vec::with_capacity(count);
        rows.extend(changes().map(|change| keys::put_entry(&mut buffer, change.namespace, change.key.as_bytes())));
        let found = self.parts.store.get_many(Table::Entry, &rows).await?;
        let mut standing: Vec<Standing> = Vec::with_capacity(count);
        let mut places = HashMap::with_capacity_and_hasher(count, self.hashing.clone());
        let targets = rows.into_iter().zip(found).map(|(row, found)| {
            let place = *places.entry(row.clone()).or_insert_with(|| {
                standing.push(Standing::read(&row, found));
                standing.len() - 1
            });
            Target { row, standing: place }
        });
        let targets = targets.collect();
        Ok((targets, standing))
    }

    fn add(&mut self, draft: &mut Draft, change: Change, target: Target) -> Result<Version> {
        let Change { namespace, key, action } = change;
        let replaced = match &draft.standing[target.standing] {
            Standing::Known { replaced, .. } => *replaced,
            Standing::Garbled(error) => return Err(error.copied()),
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
                draft.put(namespace, &key, target, &Record { version, expiration, metadata, length, place });
                Ok(version)
            }
            Action::Delete => {
                if !exists {
                    return Err(super::namespace_unknown());
                }
                self.parts.namespaces.check(namespace)?;
                draft.clear(namespace, &key, replaced);
                draft.remove(target, replaced);
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
                    draft.remove(target, replaced);
                } else if !current {
                    draft.batch.remove(Table::Expiry, keys::expiry(expiration, namespace, key.as_bytes()));
                }
                Ok(self.versions.last())
            }
            Action::Reclaim => {
                draft.clear(namespace, &key, replaced);
                draft.remove(target, replaced);
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

impl Standing {
    fn read(row: &[u8], found: Option<Bytes>) -> Standing {
        match found.map(|value| Record::decode(row, &value)) {
            None => Standing::Known { replaced: None, put: false },
            Some(Ok(record)) => Standing::Known { replaced: Some(Replaced::from(&record)), put: false },
            Some(Err(error)) => Standing::Garbled(Box::new(error)),
        }
    }
}

impl Draft {
    fn with_room(requests: &[Request], standing: Vec<Standing>) -> Draft {
        let changes = requests.iter().map(|request| request.changes.len()).sum();
        let records = requests.iter().flat_map(|request| &request.changes).map(Change::record_bytes_max).sum();
        Draft {
            // Beside the entries a few rows of the commit's own.
            batch: Batch { changes: Vec::with_capacity(changes + 4), version: Version::ZERO },
            standing,
            records: BytesMut::with_capacity(records),
            items: Vec::with_capacity(changes),
            ..Draft::default()
        }
    }

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

    fn remove(&mut self, Target { row, standing }: Target, replaced: Option<Replaced>) {
        if let Standing::Known { put: true, .. } = self.standing[standing] {
            self.passing.insert(row.clone());
        }
        if replaced.is_some() {
            self.batch.remove(Table::Entry, row);
        }
        self.standing[standing] = Standing::Known { replaced: None, put: false };
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

    fn put(&mut self, namespace: NamespaceId, key: &Key, target: Target, record: &Record) {
        if let Some(expiration) = record.expiration {
            self.batch.put(Table::Expiry, keys::expiry(expiration, namespace, key.as_bytes()), Bytes::new());
        }
        self.batch.put(Table::Entry, target.row, record.encode_into(&mut self.records));
        self.standing[target.standing] = Standing::Known { replaced: Some(Replaced::from(record)), put: true };
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
