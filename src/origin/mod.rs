//! The one place that decides order: it checks, numbers and commits writes, and answers reads from the store.
//!
//! A write goes from here through `values.rs` (its bytes) to `commit.rs` (its version, the disk) and `announce.rs` (what tiers are told). A read looks at one record and, for a larger
//! value, at its chunks. `expire.rs` and `reclaim.rs` tidy up behind both; `control.rs` decides what exists.
//!
//! Promises: an acknowledged write is on disk; versions rise; an expired entry is never answered; a reader sees the value of one write, whole.
//! Does not cache, and does not ask who is asking.

mod announce;
mod commit;
mod control;
mod draft;
mod expire;
mod failure;
mod garbled;
mod grave;
mod heir;
pub mod host;
mod list;
mod membership;
mod passing;
mod rate;
mod reclaim;
#[cfg(test)]
mod tests;
mod values;
mod versions;

use std::{collections::HashSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::sync::Semaphore;
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

use self::{
    announce::Announcer,
    commit::{Action, Committer, Outcome, Parts},
    control::{Namespaces, Registry},
    expire::Sweeper,
    failure::Failure,
    garbled::Garbled,
    list::{Cursors, Lister},
    membership::{Fate, Joined, Membership},
    rate::WriteRate,
    reclaim::{Reclaimer, SharedGarbage},
    values::{For, SharedValues, Values},
    versions::Time,
};
use crate::{
    clock::{Clock, random_bytes},
    error::{Error, Kind, Result},
    kv::{
        Account, AccountId, Answer, CacheStatus, Change, Control, Controlled, Entry, Key, List, NamespaceId, Page,
        Read, Source, State, Value, Version, Via, WriteId, Writer, Written,
        feed::{Follow, Frames},
        kept::Hit,
    },
    limits,
    metrics::OriginMetrics,
    purge::feed::{Feed, FeedSettings},
    store::{
        Batch, Durability, Replaced, Store, Table, copy,
        keys::{self, Place, Record, meta},
    },
};

#[derive(Clone)]
pub struct OriginSettings {
    /// Goes into every version. On a shared store each origin is given one.
    pub id: u8,
    /// `host:port` at which tiers reach this origin; on a shared store the others tell it to theirs.
    pub address: String,
    /// On a shared store: how long an origin that is silent counts as alive.
    pub lease: Duration,
    /// On a shared store: how long it is remembered that an entry was deleted or has expired, and how long values are kept that no entry names. Far above
    /// any error of a clock, any upload and any read.
    pub deletions_kept: Duration,
    pub namespaces_per_account: usize,
    /// Puts that a key takes in a second; `None` is no limit. Deletions are never refused.
    pub writes_per_key_per_second: Option<u32>,
    /// Longest state, value and metadata together, that travels inside its purge.
    pub push_bytes_max: usize,
    pub feed: FeedSettings,
}

impl Default for OriginSettings {
    fn default() -> OriginSettings {
        OriginSettings {
            id: 0,
            address: String::new(),
            lease: limits::LEASE_DEFAULT,
            deletions_kept: limits::DELETIONS_KEPT_DEFAULT,
            namespaces_per_account: 1000,
            writes_per_key_per_second: None,
            push_bytes_max: limits::PUSH_BYTES_DEFAULT,
            feed: FeedSettings::default(),
        }
    }
}

pub struct Origin {
    core: Arc<Core>,
    stop: CancellationToken,
    tasks: TaskTracker,
    failure: Arc<Failure>,
}

struct Core {
    store: Arc<dyn Store>,
    time: Arc<Time>,
    values: Arc<Values>,
    namespaces: Arc<Namespaces>,
    committer: Arc<Committer>,
    lister: Lister,
    registry: Registry,
    rate: Option<WriteRate>,
    feed: Feed,
    /// Of one of several origins.
    membership: Option<Arc<Membership>>,
}

/// How far another origin's clock may be ahead of ours; a version from further on was never written.
const CLOCKS_APART_MILLIS: u64 = 60_000;
/// How often a read may find that its value was overwritten and reclaimed between two looks, before it gives up.
const READ_ATTEMPTS: usize = 32;

impl Origin {
    /// Starts an origin on a store, with its background tasks. End it with [`Origin::close`].
    pub async fn open(
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        settings: OriginSettings,
        metrics: OriginMetrics,
    ) -> Result<Arc<Origin>> {
        let OriginSettings { push_bytes_max, feed, lease, deletions_kept: kept, .. } = settings;
        let shared = store.agreement().is_some();
        copy::check_whole(&*store).await?;
        let failure = Arc::new(Failure::new(shared, metrics.clone()));
        let (found, announcer, membership) = if shared {
            let announcer = Announcer::of_several(Arc::clone(&clock), feed, push_bytes_max);
            let cursor_secret = agreed_secret(&*store, &*clock).await?;
            let (feed, failure) = (announcer.feed().clone(), Arc::clone(&failure));
            let joining =
                Membership::join(Arc::clone(&store), Arc::clone(&clock), feed, failure, settings.address, lease);
            let Joined { members, starts, floor } = joining.await?;
            (Facts { last_version: floor, starts, cursor_secret }, announcer, Some(members))
        } else {
            let found = Facts::load(&*store, &*clock).await?;
            let (clock, last) = (Arc::clone(&clock), found.last_version);
            (found, Announcer::load(&*store, clock, feed, push_bytes_max, last).await?, None)
        };
        let id = membership.as_ref().map_or(settings.id, |membership| membership.id());
        let namespaces = Arc::new(Namespaces::load(&*store).await?);
        let time = Arc::new(Time::new(Arc::clone(&clock), found.last_version));
        membership.iter().for_each(|membership| membership.goes_by(Arc::clone(&time)));
        let shared_values = membership.as_ref().map(|_| SharedValues {
            clock: Arc::clone(&clock),
            time: Arc::clone(&time),
            origin: id,
            kept,
            places: Semaphore::new(values::PARTS_AT_ONCE),
        });
        let values = Values::new(Arc::clone(&store), Arc::clone(&failure), found.starts, shared_values);
        let feed = announcer.feed().clone();
        let own_thread = store.in_place();
        let parts = Parts {
            store: own_thread.clone().unwrap_or_else(|| Arc::clone(&store)),
            clock: Arc::clone(&clock),
            time: Arc::clone(&time),
            values: Arc::clone(&values),
            namespaces: Arc::clone(&namespaces),
            failure: Arc::clone(&failure),
            announcer,
            metrics,
            origin: id,
            membership: membership.clone(),
            kept,
            own_thread: own_thread.is_some(),
            last: found.last_version,
        };
        let stop_committer = CancellationToken::new();
        let (committer, committing) = Committer::new(parts, stop_committer.clone());
        // The last batch, too, stands under the lease.
        let committed = CancellationToken::new();
        let ends_lease = committed.clone().drop_guard();
        let committing = async move {
            let _ends_lease = ends_lease;
            committing.await;
        };
        let committer = Arc::new(committer);
        // What expires in a shared store goes by itself.
        let sweeper = membership.is_none().then(|| Sweeper {
            store: Arc::clone(&store),
            clock: Arc::clone(&clock),
            time: Arc::clone(&time),
            committer: Arc::clone(&committer),
            garbled: Garbled::of(Table::Expiry),
        });
        let shared_garbage =
            membership.clone().map(|membership| SharedGarbage { membership, time: Arc::clone(&time), kept });
        let reclaimer = Reclaimer {
            store: Arc::clone(&store),
            clock: Arc::clone(&clock),
            values: Arc::clone(&values),
            committer: Arc::clone(&committer),
            garbled: Garbled::of(Table::Reclaim),
            shared: shared_garbage,
        };
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        match own_thread {
            Some(_) => on_own_thread("committer", committing, tasks.token())?,
            None => {
                tasks.spawn(in_background("committer", committing));
            }
        }
        if let Some(membership) = &membership {
            let refreshing = Arc::clone(membership).run(Arc::clone(&namespaces));
            tasks.spawn(in_background("lease", committed.run_until_cancelled_owned(refreshing)));
        }
        tasks.spawn(tidy_until(stop.clone(), sweeper, reclaimer, stop_committer));
        tasks.close();
        let lister =
            Lister { store: Arc::clone(&store), time: Arc::clone(&time), cursors: Cursors::new(found.cursor_secret) };
        let registry = Registry {
            store: Arc::clone(&store),
            clock: Arc::clone(&clock),
            committer: Arc::clone(&committer),
            namespaces_per_account: settings.namespaces_per_account,
            deciding: tokio::sync::Mutex::default(),
            membership: membership.clone(),
        };
        let rate = settings.writes_per_key_per_second.map(|limit| WriteRate::new(clock, limit));
        tracing::info!(last_version = %found.last_version, starts = found.starts, "the origin has started");
        let core = Core { store, time, values, namespaces, committer, lister, registry, rate, feed, membership };
        Ok(Arc::new(Origin { core: Arc::new(core), stop, tasks, failure }))
    }

    /// Takes no more writes, finishes those handed in, syncs the store and ends the background tasks. One of several origins then leaves the others, and its
    /// feed ends with its last purge.
    pub async fn close(&self) {
        if self.core.membership.is_none() {
            self.core.feed.close();
        }
        self.stop.cancel();
        self.tasks.wait().await;
        if let Some(membership) = &self.core.membership
            && self.failure.check().is_ok()
        {
            // Whoever joins once this one is off the list need not wait for it.
            self.core.feed.knows(None);
            membership.leave().await;
            self.core.feed.end();
        } else {
            self.core.feed.close();
        }
    }

    /// Waits until this origin can't go on: one of several is then to start anew.
    pub async fn failed(&self) {
        self.failure.failed().await;
    }

    /// What the origin tells those who follow it.
    pub fn feed(&self) -> &Feed {
        &self.core.feed
    }

    /// Sees to it that an account exists, with this name. Not so, and the answer says it, where another origin has made another one of this name.
    pub async fn ensure_account(&self, account: &Account) -> Result<bool> {
        self.core.registry.ensure_account(account).await
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Runs the sweeper and the reclaimer until `stop`, then stops the committer, which they wait for.
async fn tidy_until(
    stop: CancellationToken,
    sweeper: Option<Sweeper>,
    reclaimer: Reclaimer,
    stop_committer: CancellationToken,
) {
    let sweeping = async move {
        if let Some(sweeper) = sweeper {
            sweeper.run().await;
        }
    };
    tokio::join!(
        in_background("sweeper", stop.clone().run_until_cancelled_owned(sweeping)),
        in_background("reclaimer", stop.clone().run_until_cancelled_owned(reclaimer.run())),
    );
    stop.cancelled().await;
    stop_committer.cancel();
}

/// Runs work that the origin is nothing without: if it panics, the process ends, as half a server is worse than a restart.
async fn in_background<T: Send + 'static>(what: &str, work: impl Future<Output = T> + Send + 'static) {
    if let Err(error) = tokio::spawn(work).await
        && error.is_panic()
    {
        tracing::error!(%error, what, "A BACKGROUND TASK OF THE ORIGIN PANICKED: the process ends");
        std::process::abort();
    }
}

/// The same for work that blocks, which has a thread to itself: what it waits for most is a disk, and a trip to another thread for each answer of
/// that would cost more than the work.
fn on_own_thread(
    what: &'static str,
    work: impl Future<Output = ()> + Send + 'static,
    running: TaskTrackerToken,
) -> Result<()> {
    struct EndsProcess(&'static str);
    impl Drop for EndsProcess {
        fn drop(&mut self) {
            if std::thread::panicking() {
                tracing::error!(what = self.0, "A THREAD OF THE ORIGIN PANICKED: the process ends");
                std::process::abort();
            }
        }
    }
    let runtime = tokio::runtime::Handle::current();
    let run = move || {
        let (_running, _ends) = (running, EndsProcess(what));
        runtime.block_on(work);
    };
    let started = std::thread::Builder::new().name(what.to_owned()).spawn(run);
    started.map(|_| ()).map_err(|e| Error::internal(format!("starting the thread of the {what}")).with_source(e))
}

/// What the store says about itself.
struct Facts {
    last_version: Version,
    starts: u64,
    cursor_secret: [u8; 32],
}

impl Facts {
    /// Reads the facts, counts this start, and makes the cursors' secret at the first one.
    async fn load(store: &dyn Store, clock: &dyn Clock) -> Result<Facts> {
        let number = async |name: &[u8]| match store.get(Table::Meta, name).await? {
            Some(value) => keys::decode_number(name, &value),
            None => Ok(0),
        };
        let last = number(meta::LAST_VERSION).await?;
        if last >> 63 != 0 {
            return Err(Error::internal(format!("the last version in the store is {last}, which is none")));
        }
        let starts = number(meta::STARTS).await? + 1;
        if starts >= keys::STARTS_MAX {
            return Err(Error::internal(format!("the store has been started {starts} times, the most that it can")));
        }
        let mut batch = Batch::default();
        batch.put(Table::Meta, meta::STARTS, keys::encode_number(starts));
        let cursor_secret = match store.get(Table::Meta, meta::CURSOR_SECRET).await? {
            Some(secret) => secret[..]
                .try_into()
                .map_err(|_| Error::internal("the secret of the cursors in the store has not 32 bytes"))?,
            None => {
                let secret = random_bytes::<32>(clock);
                batch.put(Table::Meta, meta::CURSOR_SECRET, secret.to_vec());
                secret
            }
        };
        store.commit(batch, Durability::Synced).await?;
        Ok(Facts { last_version: Version::from_u64(last), starts, cursor_secret })
    }
}

/// The key that authenticates cursors, of all origins on a shared store.
async fn agreed_secret(store: &dyn Store, clock: &dyn Clock) -> Result<[u8; 32]> {
    let name = keys::agreed::CURSOR_SECRET;
    let agreement = store.agreement().ok_or_else(|| Error::internal("this store is one origin's alone"))?;
    let mut agreed = agreement.read(name).await?;
    if agreed.revision == 0 {
        let secret = random_bytes::<32>(clock);
        match agreement.replace(name, 0, secret.to_vec().into()).await? {
            Replaced::Done => return Ok(secret),
            Replaced::Overtaken(theirs) => agreed = theirs,
        }
    }
    agreed.value[..].try_into().map_err(|_| Error::internal("the secret of the cursors in the store has not 32 bytes"))
}

fn namespace_unknown() -> Error {
    Error::new(Kind::NamespaceUnknown, "namespace not found")
}

#[async_trait]
impl Source for Origin {
    /// An origin holds nothing in memory.
    fn held(&self, _: NamespaceId, _: &[u8], _: &Read) -> Option<Hit> {
        None
    }

    async fn get(&self, namespace: NamespaceId, key: &Key, read: &Read) -> Result<Answer> {
        if let Some(asker) = read.asker {
            self.core.feed.note(asker, namespace, key.as_bytes());
        }
        self.core.get(namespace, key, read).await
    }

    async fn list(&self, namespace: NamespaceId, list: &List) -> Result<Page> {
        self.core.check_exists(namespace).await?;
        self.core.lister.list(namespace, list).await
    }

    async fn follow(&self, follow: Follow, pings: Frames) -> Result<Frames> {
        Ok(self.core.feed.follow(follow, pings))
    }
}

#[async_trait]
impl Writer for Origin {
    async fn write(&self, namespace: NamespaceId, key: &Key, change: Change, via: Via) -> Result<Written> {
        self.core.check_writable(namespace).await.map_err(Error::and_untaken)?;
        self.core.check_meant(via)?;
        if let (Change::Put { .. }, Some(rate)) = (&change, &self.core.rate) {
            rate.charge(namespace, key)?;
        }
        // As long as nothing is handed to the committer, nothing is taken.
        let fate = self.core.fate(namespace, key, via).await.map_err(Error::and_untaken)?;
        if let Fate::Became(version) = fate {
            return Ok(self.core.written_before(version));
        }
        let change = self.core.prepare(namespace, key.clone(), change, via, fate).await.map_err(Error::and_untaken)?;
        let mut outcomes = self.core.committer.commit(vec![change], None).await?;
        let outcome = outcomes.pop().ok_or_else(|| Error::internal("a write was committed without an outcome"))??;
        // After its own purge, whose state it has already.
        if let Some(follower) = via.follower {
            self.core.feed.note(follower, namespace, key.as_bytes());
        }
        Ok(self.core.written(outcome))
    }

    async fn write_many(
        &self,
        namespace: NamespaceId,
        writes: Vec<(Key, Change)>,
        via: Via,
    ) -> Result<Vec<Result<Written>>> {
        self.core.check_writable(namespace).await.map_err(Error::and_untaken)?;
        self.core.check_meant(via)?;
        let mut charged = HashSet::new();
        let mut prepared = Vec::with_capacity(writes.len());
        let mut changes = Vec::with_capacity(writes.len());
        for (key, change) in writes {
            // A key counts once per call, however often it is in it: the last one wins.
            let refused = match (&change, &self.core.rate) {
                (Change::Put { .. }, Some(rate)) if charged.insert(key.clone()) => rate.charge(namespace, &key).err(),
                _ => None,
            };
            if let Some(error) = refused {
                prepared.push(Err(error));
                continue;
            }
            prepared.push(match self.core.fate(namespace, &key, via).await.map_err(Error::and_untaken)? {
                Fate::Became(version) => Ok(Some(self.core.written_before(version))),
                fate => {
                    let change = self.core.prepare(namespace, key, change, via, fate).await;
                    change.map_err(Error::and_untaken).map(|change| {
                        changes.push(change);
                        None
                    })
                }
            });
        }
        let mut outcomes = self.core.committer.commit(changes, None).await?.into_iter();
        let outcome = |prepared: Result<Option<Written>>| {
            if let Some(written) = prepared? {
                return Ok(written);
            }
            let outcome =
                outcomes.next().ok_or_else(|| Error::internal("a write was committed without an outcome"))??;
            Ok(self.core.written(outcome))
        };
        Ok(prepared.into_iter().map(outcome).collect())
    }

    async fn control(&self, account: AccountId, control: Control) -> Result<(Controlled, Version)> {
        // A task of its own: a caller that goes away must not let the next decision begin before this one is in the store.
        let core = Arc::clone(&self.core);
        tokio::spawn(async move { core.registry.control(account, control).await })
            .await
            .map_err(|e| Error::internal("deciding about namespaces or tokens ended early").with_source(e))?
    }
}

impl Core {
    async fn get(&self, namespace: NamespaceId, key: &Key, read: &Read) -> Result<Answer> {
        self.check_exists(namespace).await?;
        let known = match self.membership {
            None => self.committer.safe().version,
            // Another origin's write is known here as soon as it is in the store; its clock may be ahead.
            Some(_) => Version::first_of(self.time.millis() + CLOCKS_APART_MILLIS, 0),
        };
        if let Some(demanded) = read.at_least
            && demanded > known
        {
            return Err(Error::new(
                Kind::VersionUnknown,
                format!("version {demanded} was never written: the last one is {known}"),
            ));
        }
        let row = keys::entry(namespace, key.as_bytes());
        for _ in 0..READ_ATTEMPTS {
            // Before the look: what the look misses took effect after this version.
            let safe = self.committer.safe();
            let Some(stored) = self.store.get(Table::Entry, &row).await? else {
                if self.committer.is_absent_as_of(&safe, &row).await {
                    return Ok(absent(read, safe.version));
                }
                continue;
            };
            let record = Record::decode(&row, &stored)?;
            let version = record.version;
            let time_left = match record.expiration {
                None => None,
                Some(expiration) => match expire::time_left(expiration, self.time.millis()) {
                    Some(left) => Some(left),
                    None if self.membership.is_some() => return Ok(absent(read, version.max(safe.version))),
                    None => return Ok(absent(read, safe.version)),
                },
            };
            if read.held.is_some_and(|held| held.present && held.version == version) {
                return Ok(answer(State::Unchanged { time_left }, version));
            }
            let value = match record.place {
                Place::Inline(value) => Value::Whole(value),
                Place::Chunked(id) => match self.values.open(id, record.length).await? {
                    Some(value) => value,
                    // Overwritten and reclaimed since the look: look again.
                    None => continue,
                },
                Place::Deleted => return Ok(absent(read, version.max(safe.version))),
            };
            let entry = Entry { value, metadata: record.metadata, expiration: record.expiration, time_left };
            return Ok(answer(State::Present(entry), version));
        }
        Err(Error::internal(format!(
            "the value of {key:?} in namespace {namespace} was gone at each of {READ_ATTEMPTS} looks"
        )))
    }

    async fn check_exists(&self, namespace: NamespaceId) -> Result<()> {
        match self.membership {
            None => self.namespaces.check(namespace),
            Some(_) => self.namespaces.check_anew(namespace, &*self.store).await,
        }
    }

    async fn check_writable(&self, namespace: NamespaceId) -> Result<()> {
        if namespace == NamespaceId::RESERVED {
            return Err(Error::new(Kind::Forbidden, "the reserved namespace changes only with what exists"));
        }
        // Before anything is taken in.
        self.membership.iter().try_for_each(|membership| membership.check_writes())?;
        self.check_exists(namespace).await
    }

    /// Checks a change and takes in its value.
    async fn prepare(
        &self,
        namespace: NamespaceId,
        key: Key,
        change: Change,
        via: Via,
        fate: Fate,
    ) -> Result<commit::Change> {
        let action = match change {
            Change::Put { value, metadata, expires } => {
                let expiration = expire::resolve(expires, self.time.seconds())?;
                let row = keys::entry(namespace, key.as_bytes());
                let body = self.values.receive(value, For { row: &row, expiration }).await?;
                Action::Put { body, metadata, expiration }
            }
            Change::Delete => Action::Delete,
        };
        let id = match fate {
            // As if it came for the first time.
            Fate::NotTaken => via.id.map(WriteId::name),
            _ => via.id,
        };
        Ok(commit::Change { namespace, key, action, id, own: fate == Fate::OurOwn })
    }

    /// What came late, to the successor of the origin that was meant, is refused: it may have been taken elsewhere since.
    fn check_meant(&self, via: Via) -> Result<()> {
        let epoch = self.feed.position().epoch;
        match via.to {
            Some(meant) if meant != epoch => {
                Err(Error::unavailable("this write was meant for the origin that was here before").and_untaken())
            }
            _ => Ok(()),
        }
    }

    /// What became of a write that is handed in again.
    async fn fate(&self, namespace: NamespaceId, key: &Key, via: Via) -> Result<Fate> {
        match via {
            Via { id: Some(id), taken: Some(taken), .. }
                if id.may_have_been_taken() && taken.ago <= membership::INTENTS_KNOWN =>
            {
                match &self.membership {
                    _ if taken.epoch == self.feed.position().epoch => Ok(Fate::OurOwn),
                    Some(membership) => membership.fate(taken, id, &keys::entry(namespace, key.as_bytes())).await,
                    None => Ok(Fate::Unknown),
                }
            }
            _ => Ok(Fate::Unknown),
        }
    }

    /// A write that took effect when it was handed in before. What became of its state since is not known, so nobody is to keep it.
    fn written_before(&self, version: Version) -> Written {
        self.written(Outcome { version, expiration: Some(self.time.seconds()) })
    }

    fn written(&self, outcome: Outcome) -> Written {
        let Outcome { version, expiration } = outcome;
        let time_left =
            expiration.map(|expiration| expire::time_left(expiration, self.time.millis()).unwrap_or(Duration::ZERO));
        Written { version, expiration, time_left }
    }
}

fn absent(read: &Read, safe: Version) -> Answer {
    let known = read.held.is_some_and(|held| !held.present);
    answer(if known { State::Unchanged { time_left: None } } else { State::Absent }, safe)
}

fn answer(state: State, version: Version) -> Answer {
    Answer { state, version, age: Duration::ZERO, covered: true, status: CacheStatus::Bypass }
}
