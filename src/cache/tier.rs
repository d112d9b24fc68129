//! A tier: looks in its cache, else asks its upstream, then keeps the answer.
//!
//! The rules have the names that ARCHITECTURE.md gives them: P1 to P4 for what an answer from above proves, R1 to R6 for what a read may be
//! answered. Ages are never compared across machines: an answer is dated from the moment at which the question was sent.

use std::{collections::HashSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    cache::{
        coverage::{Coverage, Seen},
        flight::{Demand, Flights, Joined, Passing, Promise, Settled, Ticket},
        health::Health,
        memory::Memory,
        tee::{Copy, CopyBudget, Passed, Tee},
    },
    clock::{self, Clock, Moment},
    error::{Error, Kind, Result},
    kv::{
        AccountId, Answer, Backend, CacheStatus, Change, Control, Controlled, Entry, Key, List, NamespaceId, Page,
        Read, Source, State, Value, ValueStream, Version, Via, Writer, Written,
        feed::{Follow, FollowerId, Frames},
        kept::{Content, EntryKey, Hit, Kept, KeptValue, Name, Verified},
        reserved,
    },
    limits,
    purge::feed::{Feed, FeedSettings},
};

/// What an operator may set of a tier; `config.rs` says what each does.
#[derive(Clone, Debug)]
pub struct TierSettings {
    pub name: String,
    pub cache_bytes: u64,
    pub cache_share_max: f64,
    pub stale_if_unreachable: Duration,
    pub upstream_deadline: Duration,
    /// How long a read that could be answered stale waits for something better.
    pub stale_after: Duration,
    pub refills: usize,
    /// How often the tier pings the feed that it follows (F9).
    pub feed_interval: Duration,
    /// Of the feed that it sends.
    pub feed: FeedSettings,
}

/// Cheap to clone; all clones are the one tier.
#[derive(Clone)]
pub struct Tier(Arc<Shared>);

struct Shared {
    clock: Arc<dyn Clock>,
    upstream: Arc<dyn Backend>,
    flights: Arc<Flights>,
    coverage: Coverage,
    /// What this tier tells those who follow it.
    feed: Feed,
    /// As which it asks and follows upstream.
    follower: FollowerId,
    health: Health,
    /// Background revalidations under way; while upstream recovers, all questions.
    refills: Arc<Semaphore>,
    copies: CopyBudget,
    settings: TierSettings,
}

/// The share of a read's `max_age` that its question upstream may be answered with, so that a copy is still of use after the trip (R4).
const UPSTREAM_SHARE: u32 = 2;
/// The share of a read's `max_age` past which a hit also revalidates (R2), in sixteenths; each entry has its own, so that what was filled together is
/// not refreshed together.
const REFRESH_SIXTEENTHS: std::ops::Range<u64> = 11..14;
/// How often a question is asked again because something overtook its answer.
const ATTEMPTS: usize = 4;
/// Values up to this length are collected and shared by all who asked; longer ones pass to the one who asked.
const COLLECT_BYTES_MAX: u64 = 1 << 20;
/// While upstream recovers, one in so many hits that would revalidate does.
const RECOVERY_SPARING: u64 = 8;
/// What was read within this time is asked for again when a purge took it away.
const USED_LATELY: Duration = Duration::from_secs(60);
/// Over which time all the locations that do so spread their questions.
const REFETCH_SPREAD: Duration = Duration::from_millis(50);

#[async_trait]
impl Source for Tier {
    fn held(&self, namespace: NamespaceId, key: &[u8], read: &Read) -> Option<Hit> {
        let hit = self.at_hand(Name { namespace, key }, read)?;
        if let Some(asker) = read.asker {
            self.0.feed.note(asker, namespace, key);
        }
        Some(hit)
    }

    fn control_changes(&self) -> Option<u64> {
        Some(self.memory().control_changes())
    }

    async fn get(&self, namespace: NamespaceId, key: &Key, read: &Read) -> Result<Answer> {
        if let Some(asker) = read.asker {
            self.0.feed.note(asker, namespace, key.as_bytes());
        }
        let key = EntryKey { namespace, key: key.clone() };
        if let Some(hit) = self.at_hand(Name::from(&key), read) {
            return Ok(hit.answer(read));
        }
        let mut demand = Demand { max_age: read.max_age / UPSTREAM_SHARE, at_least: read.at_least };
        let mut alone = false;
        for _ in 0..ATTEMPTS {
            let Some(settled) = self.ask(&key, demand, alone, read).await else {
                match self.stale(&key, read) {
                    Some(answer) => return Ok(answer),
                    // A purge took it away meanwhile. With nothing at hand, the answer is waited for to its end.
                    None => continue,
                }
            };
            let now = self.0.clock.now();
            let latest = demand.max_age.is_zero();
            let (answer, age) = match settled {
                Settled::Failed(error) if error.kind.is_outage() => {
                    return self.stale(&key, read).ok_or_else(|| outage(&error));
                }
                Settled::Failed(error) => return Err(error.copied()),
                Settled::Single(passing) => {
                    let passing = passing.lock().expect("no holder of this lock can panic").take();
                    let Some(passing) = passing else {
                        // Somebody else has it: a value this large is not shared.
                        alone = true;
                        continue;
                    };
                    let covered = self.0.coverage.seen().vouches_for(passing.verified);
                    let Some(answer) = passing.answer(now, covered) else {
                        demand.max_age = Duration::ZERO;
                        continue;
                    };
                    let age = answer.age;
                    (answer, age)
                }
                Settled::Shared { kept, .. } if kept.is_expired(now) => {
                    demand.max_age = Duration::ZERO;
                    continue;
                }
                // By its own proof: it may have been purged since it was filled in, and then the feed says nothing of it.
                Settled::Shared { kept, status } => {
                    kept.used(now);
                    let age = now.since(kept.verified_at());
                    let covered = self.0.coverage.seen().vouches_for(kept.verified());
                    (kept.answer(read, age, covered, now, status), age)
                }
            };
            if answer.status == CacheStatus::Stale && age > self.0.settings.stale_if_unreachable {
                // What upstream may still answer has grown too old on the way (R5).
                return Err(Error::unavailable("upstream is cut off, and what it holds is too old"));
            }
            if age <= read.max_age || latest || answer.status == CacheStatus::Stale {
                return Ok(answer);
            }
            // Too old for its reader after all (R4).
            demand.max_age = Duration::ZERO;
        }
        Err(Error::unavailable(format!("the key changed each of the {ATTEMPTS} times it was asked for")))
    }

    async fn list(&self, namespace: NamespaceId, list: &List) -> Result<Page> {
        self.0.health.check()?;
        let sent_at = self.0.clock.now();
        let page = self.0.upstream.list(namespace, list).await;
        self.0.health.observe(sent_at, &page);
        page.map_err(answered_below)
    }

    async fn follow(&self, follow: Follow, pings: Frames) -> Result<Frames> {
        Ok(self.0.feed.follow(follow, pings))
    }
}

#[async_trait]
impl Writer for Tier {
    async fn write(&self, namespace: NamespaceId, key: &Key, change: Change, via: Via) -> Result<Written> {
        self.0.health.check()?;
        let sent_at = self.0.clock.now();
        let (change, copy) = self.copying(change);
        let ticket = self.0.flights.write(&EntryKey { namespace, key: key.clone() });
        let written = self.0.upstream.write(namespace, key, change, self.sent_on(via)).await;
        self.0.health.observe(sent_at, &written);
        let written = written.map_err(answered_below)?;
        self.keep_written(&ticket, &written, copy, sent_at);
        if let Some(by) = via.follower {
            self.0.feed.note(by, namespace, key.as_bytes());
        }
        Ok(written)
    }

    async fn write_many(
        &self,
        namespace: NamespaceId,
        writes: Vec<(Key, Change)>,
        via: Via,
    ) -> Result<Vec<Result<Written>>> {
        self.0.health.check()?;
        let sent_at = self.0.clock.now();
        let mut copies = Vec::with_capacity(writes.len());
        let mut changes = Vec::with_capacity(writes.len());
        for (key, change) in writes {
            let (change, copy) = self.copying(change);
            copies.push((self.0.flights.write(&EntryKey { namespace, key: key.clone() }), copy));
            changes.push((key, change));
        }
        let outcomes = self.0.upstream.write_many(namespace, changes, self.sent_on(via)).await;
        self.0.health.observe(sent_at, &outcomes);
        let outcomes = outcomes.map_err(answered_below)?;
        if outcomes.len() != copies.len() {
            return Err(Error::internal(format!("upstream answered {} of {} writes", outcomes.len(), copies.len())));
        }
        // Of a key that is in it more than once the last state alone is kept: the others gave way to it at once, and may have got its version.
        let mut kept = HashSet::new();
        for ((ticket, copy), outcome) in copies.into_iter().zip(&outcomes).rev() {
            if let Ok(written) = outcome
                && kept.insert(ticket.key().clone())
            {
                self.keep_written(&ticket, written, copy, sent_at);
            }
        }
        Ok(outcomes)
    }

    async fn control(&self, account: AccountId, control: Control) -> Result<(Controlled, Version)> {
        self.0.health.check()?;
        let removed = match &control {
            Control::RemoveNamespace { id } => Some(*id),
            _ => None,
        };
        let sent_at = self.0.clock.now();
        let outcome = self.0.upstream.control(account, control).await;
        self.0.health.observe(sent_at, &outcome);
        let (controlled, version) = outcome.map_err(answered_below)?;
        let changed = match &controlled {
            Controlled::Namespace(namespace) => Some(reserved::namespace(account, namespace.id)),
            Controlled::Token(token) => Some(reserved::token(&token.hash)),
            Controlled::Done => removed.map(|id| reserved::namespace(account, id)),
        };
        if let Some(key) = changed {
            self.0.flights.raise_floor(&EntryKey { namespace: NamespaceId::RESERVED, key }, version);
        }
        Ok((controlled, version))
    }
}

impl Tier {
    pub fn new(
        upstream: Arc<dyn Backend>,
        upstream_name: String,
        clock: Arc<dyn Clock>,
        settings: TierSettings,
    ) -> Tier {
        let memory = Memory::new(settings.cache_bytes, settings.cache_share_max, &*clock);
        Tier(Arc::new(Shared {
            flights: Arc::new(Flights::new(memory, &*clock)),
            health: Health::new(Arc::clone(&clock), upstream_name, settings.upstream_deadline),
            refills: Arc::new(Semaphore::new(settings.refills)),
            copies: CopyBudget::new(settings.cache_bytes / 8),
            coverage: Coverage::new(),
            feed: Feed::new(Arc::clone(&clock), &settings.feed, None),
            follower: FollowerId(clock.random()),
            clock,
            upstream,
            settings,
        }))
    }

    pub fn name(&self) -> &str {
        &self.0.settings.name
    }

    pub fn memory(&self) -> &Memory {
        self.0.flights.memory()
    }

    /// What this tier tells those who follow it.
    pub fn feed(&self) -> &Feed {
        &self.0.feed
    }

    /// How long ago everything that is held and covered was current, once the feed has proven that.
    pub fn feed_age(&self) -> Option<Duration> {
        let (watermark, _) = self.0.coverage.watermark()?;
        Some(self.0.clock.now().since(watermark))
    }

    pub(super) fn settings(&self) -> &TierSettings {
        &self.0.settings
    }

    pub(super) fn clock(&self) -> &dyn Clock {
        &*self.0.clock
    }

    pub(super) fn upstream(&self) -> &dyn Backend {
        &*self.0.upstream
    }

    pub(super) fn flights(&self) -> &Flights {
        &self.0.flights
    }

    pub(super) fn health(&self) -> &Health {
        &self.0.health
    }

    pub(super) fn coverage(&self) -> &Coverage {
        &self.0.coverage
    }

    pub(super) fn follower(&self) -> FollowerId {
        self.0.follower
    }

    /// A write as it goes up: from this tier, under the name that it came with.
    fn sent_on(&self, via: Via) -> Via {
        Via { follower: Some(self.0.follower), ..via }
    }

    /// What can be answered from memory (R2), or has to be, since upstream is away (R5).
    fn at_hand(&self, key: Name<'_>, read: &Read) -> Option<Hit> {
        // Before the look: see `coverage.rs`.
        let seen = self.0.coverage.seen();
        let now = self.0.clock.now();
        let kept = self.look(key, now)?;
        let age = seen.age(&kept, now);
        let status = if age <= read.max_age && !read.max_age.is_zero() && seen.covers(&kept, read.at_least) {
            CacheStatus::Hit
        } else if self.0.health.is_down() && self.may_be_stale(&seen, &kept, read, now) {
            CacheStatus::Stale
        } else {
            return None;
        };
        kept.used(now);
        if status == CacheStatus::Stale || age > refresh_after(&kept, read.max_age) {
            self.refresh(&kept, read);
        }
        let covered = seen.vouches_for(kept.verified());
        Some(Hit { kept, age, covered, now, status })
    }

    /// What is held of a key and has not expired (P2).
    fn look<'a>(&self, key: impl Into<Name<'a>>, now: Moment) -> Option<Kept> {
        let kept = self.memory().get(key)?;
        if kept.is_expired(now) {
            self.0.flights.drop_expired(&kept, now);
            return None;
        }
        Some(kept)
    }

    /// Whether an entry may be answered although it is too old (R5).
    fn may_be_stale(&self, seen: &Seen<'_>, kept: &Kept, read: &Read, now: Moment) -> bool {
        !read.max_age.is_zero()
            && seen.covers(kept, read.at_least)
            && seen.age(kept, now) <= self.0.settings.stale_if_unreachable
    }

    /// The marked answer for when upstream has none (R5).
    fn stale(&self, key: &EntryKey, read: &Read) -> Option<Answer> {
        let seen = self.0.coverage.seen();
        let now = self.0.clock.now();
        let kept = self.look(key, now).filter(|kept| self.may_be_stale(&seen, kept, read, now))?;
        kept.used(now);
        Some(kept.answer(read, seen.age(&kept, now), seen.vouches_for(kept.verified()), now, CacheStatus::Stale))
    }

    /// Joins or starts a question, and waits for its end; `None` when something stale may be answered sooner.
    async fn ask(&self, key: &EntryKey, demand: Demand, alone: bool, read: &Read) -> Option<Settled> {
        let flight = match self.0.flights.join(key, demand, alone) {
            Joined::Following(flight) => flight,
            Joined::Leading(ticket, promise, flight) => {
                if let Err(error) = self.0.health.check() {
                    promise.settle(Settled::Failed(Arc::new(error)));
                } else {
                    // A task of its own: whoever asked may go away, others still wait for the answer.
                    tokio::spawn(self.clone().fly(ticket, promise, demand, None));
                }
                flight
            }
        };
        let seen = self.0.coverage.seen();
        let now = self.0.clock.now();
        if self.look(key, now).is_some_and(|kept| self.may_be_stale(&seen, &kept, read, now)) {
            return clock::within(&*self.0.clock, self.0.settings.stale_after, flight.settled()).await.ok();
        }
        Some(flight.settled().await)
    }

    /// Revalidates in the background, if nobody does so already and there is room for it (R2).
    fn refresh(&self, kept: &Kept, read: &Read) {
        let shared = &self.0;
        if shared.health.is_recovering() && !shared.clock.random().is_multiple_of(RECOVERY_SPARING) {
            return;
        }
        let Ok(place) = Arc::clone(&shared.refills).try_acquire_owned() else { return };
        let key = &kept.entry_key();
        if shared.flights.is_asking(key) || !shared.health.may_ask() {
            return;
        }
        let demand = Demand { max_age: read.max_age / UPSTREAM_SHARE, at_least: None };
        if let Joined::Leading(ticket, promise, _) = shared.flights.join(key, demand, false) {
            tokio::spawn(self.clone().fly(ticket, promise, demand, Some(place)));
        }
    }

    /// Asks for a state anew that a purge took away, if readers have use for it: once, in the background, and not all locations in the same moment.
    pub(super) fn refetch(&self, key: &EntryKey, version: Version, dropped: &Kept) {
        let shared = &self.0;
        if !dropped.was_used_within(USED_LATELY, shared.clock.now()) {
            return;
        }
        // Without a place nothing waits, either: the next reader asks.
        let Ok(place) = Arc::clone(&shared.refills).try_acquire_owned() else { return };
        let (tier, key) = (self.clone(), key.clone());
        tokio::spawn(async move {
            let shared = &tier.0;
            let spread = u64::try_from(REFETCH_SPREAD.as_nanos()).unwrap_or(u64::MAX);
            shared.clock.sleep(Duration::from_nanos(shared.clock.random() % spread)).await;
            if shared.flights.is_asking(&key) || tier.memory().peek(&key).is_some() || !shared.health.may_ask() {
                return;
            }
            let demand = Demand { max_age: limits::CACHE_TTL_DEFAULT / UPSTREAM_SHARE, at_least: Some(version) };
            if let Joined::Leading(ticket, promise, _) = shared.flights.join(&key, demand, false) {
                tier.clone().fly(ticket, promise, demand, Some(place)).await;
            }
        });
    }

    /// Asks upstream until there is an answer that nothing overtook, within the deadline, and keeps the promise.
    async fn fly(self, ticket: Ticket, promise: Promise, demand: Demand, place: Option<OwnedSemaphorePermit>) {
        let settled = self.question(ticket, demand, place).await;
        promise.settle(settled.unwrap_or_else(|error| Settled::Failed(Arc::new(error))));
    }

    async fn question(&self, ticket: Ticket, demand: Demand, place: Option<OwnedSemaphorePermit>) -> Result<Settled> {
        let shared = &self.0;
        let deadline = shared.settings.upstream_deadline;
        let _place = match place {
            None if shared.health.is_recovering() => Some(self.refill_place().await?),
            place => place,
        };
        let asked_at = shared.clock.now();
        let asking = clock::within(&*shared.clock, deadline, self.ask_upstream(ticket, demand)).await;
        asking.unwrap_or_else(|_| {
            let late = Err(Error::new(Kind::Unreachable, format!("upstream did not answer within {deadline:?}")));
            shared.health.observe(asked_at, &late);
            late
        })
    }

    /// A place among the questions that an upstream just back is asked at once (R5).
    async fn refill_place(&self) -> Result<OwnedSemaphorePermit> {
        let shared = &self.0;
        let waiting = Arc::clone(&shared.refills).acquire_owned();
        let place = clock::within(&*shared.clock, shared.settings.upstream_deadline, waiting).await;
        let busy = || Error::unavailable("upstream is just coming back, and others wait for it");
        place.map_err(|_| busy())?.map_err(|_| busy())
    }

    async fn ask_upstream(&self, ticket: Ticket, demand: Demand) -> Result<Settled> {
        let shared = &self.0;
        let mut ticket = ticket;
        let mut max_age = demand.max_age;
        for _ in 0..ATTEMPTS {
            let EntryKey { namespace, key } = ticket.key().clone();
            let held = self.look(ticket.key(), shared.clock.now());
            let held_state = held.as_ref().map(Kept::held);
            let asker = Some(shared.follower);
            let read = Read { max_age, at_least: demand.at_least, held: held_state, asker };
            // P1: an answer is dated from before the question.
            let sent_at = shared.clock.now();
            let answer = shared.upstream.get(namespace, &key, &read).await;
            shared.health.observe(sent_at, &answer);
            match self.take(ticket, answer?, held, sent_at).await? {
                Taken::Settled(settled) => return Ok(settled),
                Taken::Overtaken(again) => ticket = again,
            }
            // Whoever was overtaken asks past every cache.
            max_age = Duration::ZERO;
        }
        Err(Error::unavailable(format!("answers were overtaken by writes {ATTEMPTS} times")))
    }

    /// Keeps an answer from above, if nothing newer passed meanwhile.
    async fn take(&self, ticket: Ticket, answer: Answer, held: Option<Kept>, sent_at: Moment) -> Result<Taken> {
        let at = sent_at - answer.age;
        let verified = Verified { at, covered_from: if answer.covered { sent_at } else { at } };
        let expires_at = |left: Option<Duration>| left.map_or(Moment::MAX, |left| sent_at + left);
        let status = match (&answer.state, &held) {
            _ if answer.status == CacheStatus::Stale => CacheStatus::Stale,
            (State::Unchanged { .. }, _) => CacheStatus::Revalidated,
            (_, Some(_)) => CacheStatus::Expired,
            (_, None) => CacheStatus::Miss,
        };
        let absent = || Kept::new(ticket.key(), answer.version, Content::Absent, Moment::MAX, verified);
        let kept = match answer.state {
            State::Absent => absent(),
            State::Unchanged { time_left } => match held {
                Some(kept) if kept.is_present() && kept.version() == answer.version => {
                    kept.renew(verified, time_left.map(|left| sent_at + left));
                    kept
                }
                Some(kept) if !kept.is_present() => absent(),
                _ => {
                    return Err(Error::internal(
                        "upstream answered 'unchanged' to a question that named nothing like it",
                    ));
                }
            },
            State::Present(entry) => {
                let expires_at = expires_at(entry.time_left);
                let passing = Passing { entry, version: answer.version, verified, expires_at, status };
                match self.collect(ticket.key(), passing).await? {
                    Collected::Kept(kept) => kept,
                    Collected::Large(passing) => return Ok(self.pass(ticket, passing)),
                }
            }
        };
        if ticket.fill(&kept) {
            return Ok(Taken::Settled(Settled::Shared { kept, status }));
        }
        Ok(Taken::Overtaken(ticket))
    }

    /// A value short enough to be shared, whole.
    async fn collect(&self, key: &EntryKey, passing: Passing) -> Result<Collected> {
        let Entry { value, metadata, expiration, time_left } = passing.entry;
        let length = value.length();
        let value = match value {
            Value::Whole(bytes) => KeptValue::Whole(bytes),
            Value::Parts(parts) => KeptValue::Parts(parts),
            Value::Stream(stream) if length.is_none_or(|length| length > COLLECT_BYTES_MAX) => {
                let entry = Entry { value: Value::Stream(stream), metadata, expiration, time_left };
                return Ok(Collected::Large(Passing { entry, ..passing }));
            }
            Value::Stream(stream) => {
                let bytes = Value::Stream(stream).collect(COLLECT_BYTES_MAX).await?;
                if Some(bytes.len() as u64) != length {
                    return Err(Error::new(
                        Kind::Unreachable,
                        format!("upstream broke off after {} bytes of a value", bytes.len()),
                    ));
                }
                KeptValue::Whole(bytes)
            }
        };
        let content = Content::Present { value, metadata, expiration };
        Ok(Collected::Kept(Kept::new(key, passing.version, content, passing.expires_at, passing.verified)))
    }

    /// Hands a large value on as it arrives, with a copy made on the way if it may be kept.
    fn pass(&self, ticket: Ticket, passing: Passing) -> Taken {
        if !ticket.passes(passing.version) {
            return Taken::Overtaken(ticket);
        }
        let Entry { value, metadata, expiration, time_left } = passing.entry;
        let length = value.length();
        let length_max = self.memory().value_bytes_max();
        let value = if length.is_some_and(|length| length <= length_max) {
            let (version, expires_at, verified) = (passing.version, passing.expires_at, passing.verified);
            let metadata = metadata.clone();
            // The ticket lives as long as the copy is being made, so that what passes meanwhile raises its floor.
            let at_end = move |copy: Option<KeptValue>| {
                if let Some(value) = copy {
                    let content = Content::Present { value, metadata, expiration };
                    ticket.fill(&Kept::new(ticket.key(), version, content, expires_at, verified));
                }
            };
            let copy = Copy::new(length_max, &self.0.copies);
            let tee = Tee::new(value, copy, Box::new(at_end));
            Value::Stream(ValueStream { length, chunks: Box::pin(tee) })
        } else {
            value
        };
        let passing = Passing { entry: Entry { value, metadata, expiration, time_left }, ..passing };
        Taken::Settled(Settled::Single(Arc::new(std::sync::Mutex::new(Some(passing)))))
    }

    /// The change, and what will be known of its state once it is acknowledged.
    fn copying(&self, change: Change) -> (Change, WrittenCopy) {
        match change {
            Change::Delete => (Change::Delete, WrittenCopy::Absent),
            Change::Put { value: Value::Whole(bytes), metadata, expires } => {
                // It may be a slice of a batch, which is not to be kept with it.
                let copy = WrittenCopy::Whole { value: KeptValue::of_slice(&bytes), metadata: metadata.clone() };
                (Change::Put { value: Value::Whole(bytes), metadata, expires }, copy)
            }
            Change::Put { value, metadata, expires } => {
                let passed = Passed::default();
                let length = value.length();
                let copy = Copy::new(self.memory().value_bytes_max(), &self.0.copies);
                let at_end = passed.at_end(Arc::clone(&self.0.clock));
                let chunks = Box::pin(Tee::new(value, copy, at_end));
                let copy = WrittenCopy::Passed { passed, metadata: metadata.clone() };
                (Change::Put { value: Value::Stream(ValueStream { length, chunks }), metadata, expires }, copy)
            }
        }
    }

    /// The location that wrote reads its own write at once (R6): it keeps the state, or, when that was too large, the floor.
    fn keep_written(&self, ticket: &Ticket, written: &Written, copy: WrittenCopy, sent_at: Moment) {
        // The write took effect after the last of it was sent; so from there its state's age and time left can be dated.
        let (content, sent_at) = match copy {
            WrittenCopy::Absent => (Some(Content::Absent), sent_at),
            WrittenCopy::Whole { value, metadata } => {
                (Some(Content::Present { value, metadata, expiration: written.expiration }), sent_at)
            }
            WrittenCopy::Passed { passed, metadata } => match passed.take() {
                Some((Some(value), passed_at)) => {
                    (Some(Content::Present { value, metadata, expiration: written.expiration }), passed_at)
                }
                _ => (None, sent_at),
            },
        };
        match content {
            Some(content) => {
                let expires_at = written.time_left.map_or(Moment::MAX, |left| sent_at + left);
                // Unless something newer passed meanwhile.
                let verified = Verified::at(sent_at);
                ticket.fill(&Kept::new(ticket.key(), written.version, content, expires_at, verified));
            }
            None => self.0.flights.raise_floor(ticket.key(), written.version),
        }
    }
}

enum Taken {
    Settled(Settled),
    /// A write passed that the answer does not cover.
    Overtaken(Ticket),
}

enum Collected {
    Kept(Kept),
    Large(Passing),
}

enum WrittenCopy {
    Absent,
    Whole { value: KeptValue, metadata: Option<Bytes> },
    Passed { passed: Passed, metadata: Option<Bytes> },
}

/// Past which age a hit also revalidates: a share of the read's `max_age` that differs a little from entry to entry.
fn refresh_after(kept: &Kept, max_age: Duration) -> Duration {
    let spread = REFRESH_SIXTEENTHS.end - REFRESH_SIXTEENTHS.start + 1;
    let sixteenths = REFRESH_SIXTEENTHS.start + kept.verified_at().as_nanos() / 1024 % spread;
    max_age / 16 * sixteenths as u32
}

/// An outage seen from below: whoever asked us was answered, so to them we are there.
fn outage(error: &Error) -> Error {
    Error::unavailable(error.message.clone())
}

fn answered_below(error: Error) -> Error {
    if error.kind == Kind::Unreachable { outage(&error) } else { error }
}

#[cfg(test)]
mod tests;
