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
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    announce::Announcer,
    control::Namespaces,
    draft::{Draft, Sharing, Standing, Target},
    failure::Failure,
    membership::{INTENTS_KEPT, Membership},
    passing::Passing,
    values::{Body, Values},
    versions::{Time, VersionClock},
};
use crate::{
    clock::{Clock, Moment},
    error::{Error, Result},
    kv::{
        Key, NamespaceId, Version, WriteId,
        feed::{Item, Purge, Pushed},
    },
    metrics::OriginMetrics,
    store::{
        Batch, Durability, Store, Table,
        keys::{self, Record, meta},
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
    /// By which it is known if it is handed in again.
    pub(super) id: Option<WriteId>,
    /// Whether it is handed in again, and nobody else may have taken it.
    pub(super) own: bool,
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

/// What a change became. What is no write (expiry, reclaiming) mints no version and has the last one.
pub(super) struct Outcome {
    pub(super) version: Version,
    pub(super) expiration: Option<u64>,
}

/// The outcome of each change, in order.
type Outcomes = Vec<Result<Outcome>>;

pub(super) struct Request {
    pub(super) changes: Vec<Change>,
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
    membership: Option<Arc<Membership>>,
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
    /// Of one of several origins on a shared store.
    pub(super) membership: Option<Arc<Membership>>,
    /// How long a shared store remembers what is gone.
    pub(super) kept: Duration,
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
            membership: parts.membership.clone(),
        };
        let time = Arc::clone(&parts.time);
        let versions = match &parts.membership {
            None => VersionClock::new(time, parts.last, parts.origin),
            Some(_) => VersionClock::of_several(time, parts.last, parts.origin),
        };
        let hashing = ahash::RandomState::new();
        let task = Task {
            parts,
            versions,
            committed,
            passing,
            requests: receiver,
            gathered: 0,
            hashing,
            recent: Recent::default(),
        };
        (committer, task.run(stop))
    }

    /// Up to which every write is in the store, and has been announced: what a look misses took effect after it.
    pub(super) fn safe(&self) -> Safe {
        // In this order: what begins or ends after the first is noticed after the look.
        let turns = self.passing.turns();
        let version = match &self.membership {
            None => Version::from_u64(self.committed.load(Ordering::Acquire)),
            Some(membership) => membership.safe(),
        };
        Safe { version, turns }
    }

    /// Whether a row that was looked for since, and not found, is absent as of the safe version. If not, the commit that leaves that open is waited for,
    /// and the look is to be repeated.
    pub(super) async fn is_absent_as_of(&self, safe: &Safe, row: &[u8]) -> bool {
        !self.passing.wait_for(row).await && self.passing.turns() == safe.turns
    }

    /// Whether a commit has failed, so that none will be taken any more.
    pub(super) fn is_read_only(&self) -> bool {
        self.failure.check().is_err()
    }

    /// Hands changes in and waits until they are on disk. They go into one batch together. The work goes on when the caller doesn't.
    pub(super) async fn commit(&self, changes: Vec<Change>, effect: Option<Effect>) -> Result<Outcomes> {
        self.failure.check().map_err(Error::and_untaken)?;
        if let Some(membership) = &self.membership {
            membership.check_writes()?;
        }
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
    Error::unavailable("the origin is shutting down").and_untaken()
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
    pub(super) fn record_bytes_max(&self) -> usize {
        let named = if self.id.is_some() { Record::NAMED_BYTES_MAX } else { 0 };
        match &self.action {
            Action::Put { body, metadata, .. } => {
                let inline = if let Body::Inline(value) = body { value.len() } else { 0 };
                Record::LENGTH_BESIDE_CONTENT_MAX + inline + named + metadata.as_ref().map_or(0, Bytes::len)
            }
            Action::Delete => named,
            Action::Expire { .. } | Action::Reclaim => 0,
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
    recent: Recent,
}

/// What became of named writes lately.
#[derive(Default)]
struct Recent {
    versions: HashMap<(WriteId, Bytes), Version>,
    order: VecDeque<(Moment, (WriteId, Bytes))>,
}

/// So many are remembered at most, of the last minute. While there are as many, one that isn't known may have been forgotten sooner.
const RECENT_MAX: usize = 1 << 18;

impl Recent {
    fn find(&self, id: Option<WriteId>, row: &Bytes) -> Option<Version> {
        self.versions.get(&(id?.name(), row.clone())).copied()
    }

    fn is_full(&self) -> bool {
        self.order.len() >= RECENT_MAX
    }

    fn add(&mut self, id: Option<WriteId>, row: &Bytes, version: Version, now: Moment) {
        while let Some((at, name)) = self.order.front()
            && (now.since(*at) > INTENTS_KEPT || self.is_full())
        {
            self.versions.remove(name);
            self.order.pop_front();
        }
        if let Some(id) = id {
            let name = (id.name(), Bytes::copy_from_slice(row));
            self.versions.insert(name.clone(), version);
            self.order.push_back((now, name));
        }
    }
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
            Err(error) => Err(error.and_untaken()),
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
            self.versions.check(writes as u64).map_err(Error::and_untaken)?;
        }
        // Nothing has been written yet, nor will be.
        let (targets, standing) = self.look_up(requests).await.map_err(Error::and_untaken)?;
        self.parts.membership.iter().for_each(|membership| membership.begin());
        let mut draft = Draft::with_room(requests, standing, self.sharing());
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
        if let Some(last) = draft.last
            && self.parts.membership.is_none()
        {
            draft.batch.put(Table::Meta, meta::LAST_VERSION, keys::encode_number(last.as_u64()));
        }
        if draft.batch.is_empty() {
            self.parts.membership.iter().for_each(|membership| membership.end());
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
        let committed = match (&self.parts.membership, draft.sharing) {
            (Some(membership), Some(sharing)) => membership.carry_out(batch, sharing.stamp).await,
            _ => self.parts.store.commit(batch, Durability::Synced).await,
        };
        if let Err(error) = committed {
            // Before the draft drops its uploads: nobody may reclaim what this batch may yet turn out to name.
            self.parts.failure.fail(&error);
            return Err(match self.parts.membership {
                None => Error::internal("the write failed, because the store could not commit it"),
                Some(_) => {
                    Error::unavailable("whether the write took effect is not known: the store did not say in time")
                }
            }
            .with_source(error));
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
            let safe = match &self.parts.membership {
                None => last,
                Some(membership) => membership.safe(),
            };
            self.parts.announcer.publish(draft.items, safe, &self.parts.time);
            self.committed.store(last.as_u64(), Ordering::Release);
        }
        self.parts.membership.iter().for_each(|membership| membership.end());
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

    fn sharing(&self) -> Option<Sharing> {
        let membership = self.parts.membership.as_ref()?;
        let now = self.parts.time.millis();
        Some(Sharing { now, stamp: Version::first_of(now, membership.id()), kept: self.parts.kept })
    }

    fn add(&mut self, draft: &mut Draft, change: Change, target: Target) -> Result<Outcome> {
        let Change { namespace, key, action, id, own } = change;
        let known = match &draft.standing[target.standing] {
            Standing::Known(known) => known,
            Standing::Garbled(error) => return Err(error.copied()),
        };
        if let Some(version) = known.outcome(id) {
            // It was handed in before. Of what has replaced it since nothing is to be kept.
            let current = known.version == version;
            let expiration = if current {
                known.replaced.and_then(|replaced| replaced.expiration)
            } else {
                Some(self.parts.time.seconds())
            };
            return Ok(Outcome { version, expiration });
        }
        if let Some(version) = self.recent.find(id, &target.row) {
            // Another origin's has taken its place at once, or a deletion that leaves no record, so that none names it.
            return Ok(Outcome { version, expiration: Some(self.parts.time.seconds()) });
        }
        let remembers_deletions = self.parts.membership.is_some();
        let own = own && !self.recent.is_full();
        if !own && known.may_have_forgotten(id, self.parts.time.millis(), remembers_deletions) {
            // Taken twice, it would take the place of what came after it.
            return Err(Error::unavailable(
                "whether the write took effect is not known: others of its key have come since it was handed in first",
            ));
        }
        let (replaced, above) = (known.replaced, known.version);
        if let Action::Put { .. } | Action::Delete = action {
            if draft.removed_namespaces.contains(&namespace) {
                return Err(super::namespace_unknown());
            }
            self.parts.namespaces.check(namespace)?;
        }
        match action {
            Action::Put { body, metadata, expiration } => {
                body.check_age(self.parts.clock.now(), self.parts.kept)?;
                let version = self.mint(draft, above)?;
                self.remember(id, &target, version);
                draft.clear(namespace, &key, &target, replaced);
                let state = self.parts.announcer.pushed(&body, metadata.as_ref(), expiration);
                draft.items.push(Item::Purge(Purge { namespace, key: key.clone(), version, state }));
                let (length, place) = draft.place(body);
                let record = Record { version, expiration, metadata, length, place, named: Vec::new() };
                draft.put(namespace, &key, target, record, id)?;
                Ok(Outcome { version, expiration })
            }
            Action::Delete => {
                // A missing key's deletion is a write as well: its version is above whatever anybody holds of the key.
                let version = self.mint(draft, above)?;
                self.remember(id, &target, version);
                draft.clear(namespace, &key, &target, replaced);
                draft.delete(target, replaced, version, id);
                draft.items.push(Item::Purge(Purge { namespace, key, version, state: Some(Pushed::Absent) }));
                Ok(Outcome { version, expiration: None })
            }
            Action::Expire { expiration } => {
                let due = expiration <= self.parts.time.seconds();
                let current = replaced.is_some_and(|replaced| replaced.expiration == Some(expiration));
                if due && current {
                    draft.clear(namespace, &key, &target, replaced);
                    draft.remove(target, replaced);
                } else if !current {
                    draft.batch.remove(Table::Expiry, keys::expiry(expiration, namespace, key.as_bytes()));
                }
                Ok(Outcome { version: self.versions.last(), expiration: None })
            }
            Action::Reclaim => {
                draft.clear(namespace, &key, &target, replaced);
                draft.remove(target, replaced);
                Ok(Outcome { version: self.versions.last(), expiration: None })
            }
        }
    }

    fn remember(&mut self, id: Option<WriteId>, target: &Target, version: Version) {
        if id.is_some() {
            self.recent.add(id, &target.row, version, self.parts.clock.now());
        }
    }

    /// Above what the entry has, whoever minted that (O1).
    fn mint(&mut self, draft: &mut Draft, above: Version) -> Result<Version> {
        let version = match draft.sharing {
            None => self.versions.mint(),
            Some(_) => self.versions.mint_above(above)?,
        };
        draft.last = draft.last.max(Some(version));
        draft.writes += 1;
        Ok(version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recent_writes_are_known_for_a_minute_or_until_there_are_too_many() {
        let mut recent = Recent::default();
        let (row, version) = (Bytes::from_static(b"row"), Version::from_u64(7));
        let id = |number: u64| Some(WriteId(2 * number));
        for number in 0..RECENT_MAX as u64 {
            assert!(!recent.is_full());
            recent.add(id(number), &row, version, Moment::ZERO);
        }
        assert!(recent.is_full());
        assert_eq!(recent.find(id(0), &row), Some(version));
        recent.add(id(RECENT_MAX as u64), &row, version, Moment::ZERO);
        assert_eq!((recent.find(id(0), &row), recent.find(id(1), &row)), (None, Some(version)));
        assert!(recent.is_full());
        let later = Moment::ZERO + INTENTS_KEPT + Duration::from_secs(1);
        recent.add(id(RECENT_MAX as u64 + 1), &row, version, later);
        assert_eq!((recent.order.len(), recent.versions.len()), (1, 1));
        assert!(!recent.is_full());
    }
}
