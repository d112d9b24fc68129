//! One question per key at a time, and the order of everything that changes what a tier keeps of a key.
//!
//! Each key belongs to a shard with a lock, held for a few lines. Under it, and only under it, a flight starts or ends, its floor rises and the
//! cache changes. So a fill can't slip between a purge's look at the flights and its look at the cache.
//!
//! A flight's *floor* is the least state that its answer must be to be kept, by version and, of one version, absence after presence: every write, purge and fill of the key that passes while the
//! question is out raises it (P3, F3). But for absence after absence: as of which version a key is absent is what the origin that looked knew to be complete, and of several
//! origins one may know less than another. Two such answers are of one state, so that neither is overtaken by the other; what is held is then absent as of the
//! greater version, and was so at the later moment.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;

use crate::{
    cache::memory::Memory,
    clock::{Clock, Moment},
    error::Error,
    kv::{
        Answer, CacheStatus, Entry, NamespaceId, State, Version,
        kept::{EntryKey, Kept, Name, Verified},
    },
};

/// What a question asks for, as it travels up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    pub max_age: Duration,
    pub at_least: Option<Version>,
}

impl Demand {
    /// Whether the answer to this question is one to the other question, too. The latest can't be shared: a question already out may have been
    /// answered before the other was asked. Nor can a later version's: of several origins one whose clock is behind may have minted the earlier version since.
    fn satisfies(&self, other: &Demand) -> bool {
        let as_new = other.at_least.is_none() || self.at_least == other.at_least;
        !other.max_age.is_zero() && self.max_age <= other.max_age && as_new
    }
}

/// A question that is out, for those who wait for it. Its end may carry a value that still streams, and that ends with the last who waits.
#[derive(Default)]
pub struct Flight {
    settled: OnceLock<Settled>,
    /// Wakes who waits, in the order in which they came.
    done: Notify,
}

/// A question that is out, as its key's shard knows it.
struct Out {
    number: u64,
    demand: Demand,
    floors: Arc<Floors>,
    /// Who waits. Not owned: what streams owns a ticket, so owning it here would keep both for ever.
    flight: Weak<Flight>,
    /// Its answer was judged against the floor; whoever asks now may know of something newer.
    closed: bool,
}

/// What has passed since a question went out.
#[derive(Default)]
struct Floors {
    /// For an answer that is present.
    present: AtomicU64,
    /// For one that is absent: without what was absent itself.
    absent: AtomicU64,
}

/// How a question ended.
#[derive(Clone)]
pub enum Settled {
    /// A state, kept or not, that everyone who asked may have.
    Shared {
        kept: Kept,
        status: CacheStatus,
    },
    /// A value too large to be held for sharing: it goes to the first who takes it, the others ask for themselves.
    Single(Arc<Mutex<Option<Passing>>>),
    Failed(Arc<Error>),
}

/// A value on its way through, held by nobody.
pub struct Passing {
    pub entry: Entry,
    pub version: Version,
    pub verified: Verified,
    pub expires_at: Moment,
    pub status: CacheStatus,
}

impl Passing {
    /// The answer at this moment, if the entry has not expired.
    pub fn answer(self, now: Moment, covered: bool) -> Option<Answer> {
        if now >= self.expires_at {
            return None;
        }
        let time_left = (self.expires_at != Moment::MAX).then(|| self.expires_at.since(now));
        let state = State::Present(Entry { time_left, ..self.entry });
        let age = now.since(self.verified.at);
        Some(Answer { state, version: self.version, age, covered, status: self.status })
    }
}

impl Flight {
    fn settle(&self, settled: Settled) {
        // Only its promise settles a flight, and that once.
        let _ = self.settled.set(settled);
        self.done.notify_waiters();
    }

    /// Waits for the end of the question.
    pub async fn settled(&self) -> Settled {
        loop {
            // Before the look, so that the end is not missed between it and the wait.
            let done = self.done.notified();
            tokio::pin!(done);
            done.as_mut().enable();
            if let Some(settled) = self.settled.get() {
                return settled.clone();
            }
            done.await;
        }
    }
}

/// All keys' flights, beside the memory that they fill.
pub struct Flights {
    memory: Memory,
    hasher: ahash::RandomState,
    shards: Vec<Mutex<Shard>>,
}

#[derive(Default)]
struct Shard {
    flights: HashMap<EntryKey, Vec<Out>, ahash::RandomState>,
    last_number: u64,
}

const SHARDS: usize = 64;

/// Whether a caller has to ask upstream itself, or somebody already does.
pub enum Joined {
    /// The caller has to ask, and then to keep the promise; and may wait like any other.
    Leading(Ticket, Promise, Arc<Flight>),
    Following(Arc<Flight>),
}

/// A question's place among the flights of its key. As long as it lives, what passes raises the floor.
pub struct Ticket {
    flights: Arc<Flights>,
    key: EntryKey,
    number: u64,
    floors: Arc<Floors>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut shard = self.flights.shard(&self.key);
        if let Some(out) = shard.flights.get_mut(&self.key) {
            out.retain(|out| out.number != self.number);
            if out.is_empty() {
                shard.flights.remove(&self.key);
            }
        }
    }
}

/// What those who wait for a flight were promised: that it ends. Apart from the ticket, which may end before (nothing was kept) or after (a large
/// value still passes).
pub struct Promise(Arc<Flight>);

impl Promise {
    pub fn settle(self, settled: Settled) {
        self.0.settle(settled);
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        if self.0.is_open() {
            let error = Error::unavailable("the question to upstream was given up");
            self.0.settle(Settled::Failed(Arc::new(error)));
        }
    }
}

impl Ticket {
    pub fn key(&self) -> &EntryKey {
        &self.key
    }

    /// Keeps a fill, unless something passed meanwhile that is newer. Answers whether it may be given to those who asked.
    pub fn fill(&self, kept: &Kept) -> bool {
        self.flights.keep(&self.key, kept, self)
    }

    /// Whether a value of that version, which passes without being kept, may be given to those who asked: it is not older than what passed since, nor
    /// than what is held. What is older than it goes.
    pub fn passes(&self, version: Version) -> bool {
        let mut shard = self.flights.shard(&self.key);
        let state = order(version, true);
        let held = self.flights.memory.peek(&self.key).map(|held| order(held.version(), held.is_present()));
        if state < self.floor(true) || held.is_some_and(|held| held > state) {
            return false;
        }
        shard.close(self);
        shard.raise_floors(&self.key, state, true, Some(self));
        if held.is_some_and(|held| held < state) {
            self.flights.memory.remove(&self.key);
        }
        true
    }

    fn floor(&self, present: bool) -> u64 {
        let floor = if present { &self.floors.present } else { &self.floors.absent };
        floor.load(Ordering::Acquire)
    }
}

impl Flights {
    pub fn new(memory: Memory, clock: &dyn Clock) -> Flights {
        let hasher = ahash::RandomState::with_seeds(clock.random(), clock.random(), clock.random(), clock.random());
        let shard = || Mutex::new(Shard { flights: HashMap::with_hasher(hasher.clone()), last_number: 0 });
        let shards = (0..SHARDS).map(|_| shard()).collect();
        Flights { memory, hasher, shards }
    }

    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Joins a question that is out and asks for enough, or starts one; `alone`, always starts one.
    pub fn join(self: &Arc<Self>, key: &EntryKey, demand: Demand, alone: bool) -> Joined {
        let mut shard = self.shard(key);
        if !alone
            && let Some(out) = shard.flights.get(key)
            && let Some(flight) = out.iter().filter(|out| out.satisfies(&demand)).find_map(Out::open)
        {
            return Joined::Following(flight);
        }
        let flight = Arc::new(Flight::default());
        let ticket = self.ticket(&mut shard, key, demand, Arc::downgrade(&flight));
        Joined::Leading(ticket, Promise(Arc::clone(&flight)), flight)
    }

    /// A write goes up that nobody can join. What it wrote is kept on its way back by the rules of a fill (F3).
    pub fn write(self: &Arc<Self>, key: &EntryKey) -> Ticket {
        let demand = Demand { max_age: Duration::ZERO, at_least: None };
        self.ticket(&mut self.shard(key), key, demand, Weak::new())
    }

    fn ticket(self: &Arc<Self>, shard: &mut Shard, key: &EntryKey, demand: Demand, flight: Weak<Flight>) -> Ticket {
        shard.last_number += 1;
        let (number, floors) = (shard.last_number, Arc::<Floors>::default());
        let out = Out { number, demand, floors: Arc::clone(&floors), flight, closed: false };
        shard.flights.entry(key.clone()).or_default().push(out);
        Ticket { flights: Arc::clone(self), key: key.clone(), number, floors }
    }

    /// Whether any question about the key is out.
    pub fn is_asking(&self, key: &EntryKey) -> bool {
        self.shard(key).flights.get(key).is_some_and(|out| out.iter().any(|out| out.open().is_some()))
    }

    /// A purge: no older answer is kept, and what is held goes if it is older, or is replaced by the new state where that came along (F3, F5). Answers
    /// what was dropped without a replacement. Only what the feed vouches for is replaced: of anything else a purge may have been missed, and of a state that another
    /// origin's had overtaken by then nothing more would come.
    pub fn purge(
        &self,
        key: &EntryKey,
        version: Version,
        pushed: Option<&Kept>,
        vouches: impl Fn(&Kept) -> bool,
    ) -> Option<Kept> {
        let shard = self.shard(key);
        shard.raise_floors(key, order(version, true), true, None);
        self.changes(key);
        let held = self.memory.peek(key).filter(|held| held.version() < version)?;
        let fits = |pushed: &&Kept| pushed.length() as u64 <= self.memory.value_bytes_max();
        match pushed.filter(|pushed| fits(pushed) && vouches(&held)) {
            Some(pushed) => {
                pushed.used_as(&held);
                self.memory.insert(pushed.clone());
                None
            }
            None => {
                self.memory.remove(key);
                Some(held)
            }
        }
    }

    /// What is not held may still be remembered elsewhere (`Source::control_changes`); what is held changes with the memory.
    fn changes(&self, key: &EntryKey) {
        if key.namespace == NamespaceId::RESERVED {
            self.memory.control_changed();
        }
    }

    /// A namespace was removed: the same for all its keys.
    pub fn purge_namespace(&self, namespace: NamespaceId, version: Version) {
        for shard in &self.shards {
            let shard = shard.lock().expect("no holder of this lock can panic");
            for key in shard.flights.keys().filter(|key| key.namespace == namespace) {
                shard.raise_floors(key, order(version, true), true, None);
            }
        }
        // From here on nothing older is filled in.
        self.memory.remove_namespace(namespace, version);
    }

    /// A write passed whose state is not at hand: what is older goes, and no older answer is kept.
    pub fn raise_floor(&self, key: &EntryKey, version: Version) {
        let shard = self.shard(key);
        shard.raise_floors(key, order(version, true), true, None);
        self.changes(key);
        if self.memory.peek(key).is_some_and(|held| held.version() < version) {
            self.memory.remove(key);
        }
    }

    /// Drops an entry at its deadline, if it is still this one.
    pub fn drop_expired(&self, expired: &Kept, now: Moment) {
        let key = expired.name();
        let _shard = self.shard(key);
        if self.memory.peek(key).is_some_and(|held| held.is(expired) && held.is_expired(now)) {
            self.memory.remove(key);
        }
    }

    /// Whether the state may be given to those who asked: it is not older than what passed since the question went out, nor than what is held.
    fn keep(&self, key: &EntryKey, kept: &Kept, by: &Ticket) -> bool {
        debug_assert!(kept.name() == key.into(), "a state of another key");
        let mut shard = self.shard(key);
        let state = order(kept.version(), kept.is_present());
        if state < by.floor(kept.is_present()) {
            return false;
        }
        if let Some(held) = self.memory.peek(key) {
            let both_absent = !held.is_present() && !kept.is_present();
            let held_is_later = order(held.version(), held.is_present()) > state;
            if held_is_later && !both_absent {
                return false;
            }
            if held_is_later || (held.version() == kept.version() && held.is_present() == kept.is_present()) {
                held.renew(kept.verified(), Some(kept.expires_at()));
                shard.close(by);
                return true;
            }
        }
        shard.close(by);
        shard.raise_floors(key, state, kept.is_present(), Some(by));
        // The key was found absent as of a later version meanwhile, and that is held no more: of what comes in between this one would keep nothing out (P3).
        let overtaken = state < by.floor(true);
        if kept.length() as u64 <= self.memory.value_bytes_max() && !overtaken {
            self.memory.insert(kept.clone());
        } else {
            // Older than this one, as it was found above; it must not be answered again.
            self.memory.remove(key);
        }
        true
    }

    fn shard<'a>(&self, key: impl Into<Name<'a>>) -> MutexGuard<'_, Shard> {
        let at = self.hasher.hash_one(key.into()) as usize % SHARDS;
        self.shards[at].lock().expect("no holder of this lock can panic")
    }
}

impl Flight {
    fn is_open(&self) -> bool {
        self.settled.get().is_none()
    }
}

impl Out {
    fn satisfies(&self, demand: &Demand) -> bool {
        !self.closed && self.demand.satisfies(demand)
    }

    /// The question's flight, while it has not ended.
    fn open(&self) -> Option<Arc<Flight>> {
        self.flight.upgrade().filter(|flight| flight.is_open())
    }
}

/// Where a state stands among all states of its key. Of one version absence is the later one: it is what the version made, expired, or removed by a write that
/// nobody has been told of yet.
fn order(version: Version, present: bool) -> u64 {
    version.as_u64() << 1 | u64::from(!present)
}

impl Shard {
    /// To a state that passed; `present`, unless it is known to be an absence.
    fn raise_floors(&self, key: &EntryKey, state: u64, present: bool, but: Option<&Ticket>) {
        for out in self.flights.get(key).into_iter().flatten() {
            if but.is_none_or(|but| but.number != out.number) {
                out.floors.present.fetch_max(state, Ordering::AcqRel);
                if present {
                    out.floors.absent.fetch_max(state, Ordering::AcqRel);
                }
            }
        }
    }

    /// From here on nobody joins the question.
    fn close(&mut self, ticket: &Ticket) {
        let out = self.flights.get_mut(&ticket.key).into_iter().flatten();
        for out in out.filter(|out| out.number == ticket.number) {
            out.closed = true;
        }
    }
}

#[cfg(test)]
mod tests;
