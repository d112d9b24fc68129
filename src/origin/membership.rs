//! How several origins on one store know of each other (O4), and what each of them intends (O3).
//!
//! One agreed record names them all. Each refreshes its part of it once a second, and by that learns who else is there. Three things rest on it:
//!
//! - **Lease.** Who has not refreshed for a lease is dead to the others. An origin stops writing before its own lease ends, by its own clock, counted from
//!   before it asked; the others wait it out by theirs, counted from when they saw it refreshed. No two clocks are compared.
//! - **Completeness.** Whoever joins waits a lease before its first write. So a list that is younger than a lease names all who may have begun a write,
//!   and an origin's echo may say so to those who follow it. With an older list it proves nothing.
//! - **Safe version.** Each publishes the version up to which all its own purges are queued. The least of all is what an absence is dated by.
//!
//! An origin puts what it is about to change into the store before it does so. When it dies, another commits its last intents once more, with the same
//! versions, before it takes it off the list: then no write of the dead takes effect later, unannounced. What remains is a process that is paused
//! between its last look at the lease and the database's receipt for longer than the lease and the finishing take: its changes are then those that were
//! finished already, and change nothing.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;

use super::{
    control::Namespaces,
    failure::Failure,
    grave::Grave,
    heir::{self, Heir, Others},
    versions::Time,
};
use crate::{
    clock::{self, Clock, Moment},
    error::{Error, Kind, Result},
    kv::{
        Taken, Version, WriteId,
        feed::{self, Member},
    },
    purge::feed::Feed,
    store::{
        Agreed, Agreement, Batch, Replaced, Store, Table,
        keys::{self, Intent, Listed, Members},
    },
};

/// How often an origin refreshes its lease; more often where the lease is short.
const REFRESH: Duration = Duration::from_secs(1);
/// The parts of a lease between its refreshments, and between the end of its holder's writing and the others' judgement.
const REFRESHES_PER_LEASE: u32 = 5;
pub(super) const MARGINS_PER_LEASE: u32 = 10;
/// How often a change of the record is tried again because somebody else was first.
const ATTEMPTS: usize = 64;
/// How long a newcomer looks for somebody dead whose place it can have.
const LEASES_TO_MAKE_ROOM: u32 = 3;
/// How long to wait for another origin that is deciding.
const DECIDING: Duration = Duration::from_secs(10);
/// After which an intent that nobody removed goes by itself.
const INTENT_SECONDS: u64 = 30 * 24 * 3600;
/// How long intents stay that are carried out, for those who ask what became of a write; and how old such a write may be.
pub(super) const INTENTS_KEPT: Duration = Duration::from_secs(60);
pub(super) const INTENTS_KNOWN: Duration = Duration::from_secs(50);
const FORGOTTEN_AT_ONCE: usize = 64;
/// Of how many that departed it is remembered what they did last, and how much that may be.
const GRAVES_MAX: usize = 4;
/// Intents that are read at once: each may have some megabytes.
pub(super) const STEP_INTENTS: usize = 4;

/// What an origin joins with, and learns when it has.
pub(super) struct Joined {
    pub(super) members: Arc<Membership>,
    /// How often an origin has started on the store.
    pub(super) starts: u64,
    /// Above which it mints.
    pub(super) floor: Version,
}

pub(super) struct Membership {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    feed: Feed,
    failure: Arc<Failure>,
    epoch: u64,
    id: u8,
    lease: Duration,
    /// Above which it mints.
    floor: Version,
    state: Mutex<State>,
    graves: tokio::sync::Mutex<VecDeque<Arc<Grave>>>,
}

struct State {
    agreed: Agreed,
    members: Members,
    time: Option<Arc<Time>>,
    /// Counted from before the last refreshment was asked for.
    lease_until: Moment,
    /// Before it a newcomer does not write.
    writes_from: Moment,
    /// Below the versions of the batch under way.
    under_way: Option<Version>,
    next_intent: u64,
    done: u64,
    /// Intents that are carried out and still in the store, the oldest first.
    carried_out: VecDeque<(u64, Moment)>,
    others: Others,
    deciding: bool,
}

/// What is known of a write that is handed in again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It took effect, with this version.
    Became(Version),
    /// It did not, and never will.
    NotTaken,
    /// If anybody took it, it was this origin.
    OurOwn,
    Unknown,
}

impl Membership {
    /// Puts an origin on the list, under the epoch of its feed.
    pub(super) async fn join(
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        feed: Feed,
        failure: Arc<Failure>,
        address: String,
        lease: Duration,
    ) -> Result<Joined> {
        let epoch = feed.position().epoch;
        let mut room = Room { store: &*store, clock: &*clock, epoch, lease, others: Others::default() };
        let until = clock.now() + lease * LEASES_TO_MAKE_ROOM;
        let (agreed, members, id, alone, asked_at) = loop {
            room.make(until).await?;
            let mut asked_at = clock.now();
            let (mut id, mut alone) = (None, false);
            let join = |members: &mut Members| {
                asked_at = clock.now();
                if members.of(epoch).is_some() {
                    // An earlier attempt whose outcome was not known.
                    return Ok(());
                }
                alone = members.members.is_empty();
                id = free_id(members);
                let Some(id) = id else { return Ok(()) };
                members.starts += 1;
                members.floor = members.highest();
                let (address, safe) = (address.clone(), members.floor);
                members.members.push(Listed { epoch, id, address, beat: 0, safe, done: 0, heir: None });
                Ok(())
            };
            let (agreed, members) = update(agreement(&*store)?, &*clock, Agreed::default(), join).await?;
            // Else another newcomer was first.
            if let Some(id) = id {
                break (agreed, members, id, alone, asked_at);
            }
        };
        let now = clock.now();
        let state = State {
            lease_until: asked_at + lease,
            // Who lists us not has asked before now, and proves nothing with that a lease later.
            writes_from: if alone { now } else { now + lease + lease / MARGINS_PER_LEASE },
            under_way: None,
            next_intent: 0,
            done: 0,
            carried_out: VecDeque::new(),
            others: Others::default(),
            deciding: false,
            time: None,
            agreed,
            members,
        };
        let (starts, floor) = (state.members.starts, Version::from_u64(state.members.floor));
        let others = state.members.members.len() - 1;
        tracing::info!(epoch, id, others, alone, "joined the origins on the store");
        // Nothing is under way; that all is known, also of the others, holds as long as the list does.
        feed.knows_all(floor);
        let members = Membership {
            store,
            clock,
            feed,
            failure,
            epoch,
            id,
            lease,
            floor,
            state: Mutex::new(state),
            graves: tokio::sync::Mutex::default(),
        };
        members.tell(asked_at);
        Ok(Joined { members: Arc::new(members), starts, floor })
    }

    /// By which it judges its own versions, once there is one.
    pub(super) fn goes_by(&self, time: Arc<Time>) {
        self.lock().time = Some(time);
    }

    pub(super) fn id(&self) -> u8 {
        self.id
    }

    /// Refreshes the lease until it is lost, and beside that watches the others and finishes for those that died: neither holds up the other.
    pub(super) async fn run(self: Arc<Membership>, namespaces: Arc<Namespaces>) {
        tokio::select! {
            biased;
            () = self.keep_lease() => {}
            () = self.watch(&namespaces) => {}
        }
    }

    async fn keep_lease(&self) {
        while self.failure.check().is_ok() {
            self.clock.sleep(REFRESH.min(self.lease / REFRESHES_PER_LEASE)).await;
            let left = self.lock().lease_until.since(self.clock.now());
            let refreshed = clock::within(&*self.clock, left, self.refresh()).await;
            let lost = self.lock().lease_until <= self.clock.now();
            match refreshed {
                Ok(Err(error)) if error.kind == Kind::Forbidden => return self.failure.fail(&error),
                _ if lost => {
                    let lease = self.lease;
                    let error =
                        Error::unavailable(format!("the store let no refreshment of its lease of {lease:?} through"));
                    return self.failure.fail(&error);
                }
                Ok(Err(error)) => tracing::warn!(%error, "the lease could not be refreshed, and is tried again"),
                Ok(Ok(())) | Err(_) => {}
            }
        }
    }

    async fn watch(&self, namespaces: &Namespaces) {
        let mut control = self.lock().members.control;
        loop {
            self.clock.sleep(REFRESH.min(self.lease / REFRESHES_PER_LEASE)).await;
            let now = self.lock().members.control;
            if now != control {
                match clock::within(&*self.clock, self.lease, namespaces.read(&*self.store)).await {
                    Ok(Ok(())) => control = now,
                    Ok(Err(error)) => {
                        tracing::warn!(%error, "reading which namespaces there are failed, and is tried again")
                    }
                    Err(_) => tracing::warn!("reading which namespaces there are takes too long, and is tried again"),
                }
            }
            let (known, dead) = {
                let mut state = self.lock();
                let State { agreed, members, others, .. } = &mut *state;
                (agreed.clone(), others.dead(members, self.epoch, self.clock.now(), self.lease))
            };
            let heir = Heir { store: &*self.store, clock: &*self.clock, epoch: self.epoch, lease: self.lease };
            for dead in dead {
                // One that can't be finished keeps no other waiting.
                match heir.finish(known.clone(), &dead).await {
                    Ok((agreed, members)) => self.learn(agreed, members),
                    Err(error) => {
                        tracing::warn!(%error, epoch = dead.epoch, "finishing for an origin that died failed, and is tried again");
                    }
                }
            }
        }
    }

    async fn refresh(&self) -> Result<()> {
        let (known, safe, done) = {
            let state = self.lock();
            (state.agreed.clone(), self.own_safe(&state), state.done)
        };
        let mut asked_at = self.clock.now();
        let refresh = |members: &mut Members| {
            asked_at = self.clock.now();
            let held = members.deciding == Some(self.epoch) && !self.lock().deciding;
            let own = members.of_mut(self.epoch).filter(|own| own.heir.is_none()).ok_or_else(|| {
                Error::new(Kind::Forbidden, "the other origins have taken this one for dead: it was silent for a lease")
            })?;
            own.beat += 1;
            own.safe = own.safe.max(safe.as_u64());
            own.done = done;
            if held {
                // What was decided may be in the store, and the others are to read it.
                members.deciding = None;
                members.control += 1;
            }
            Ok(())
        };
        let changed = update(self.agreement()?, &*self.clock, known, refresh).await;
        let (agreed, members) = match changed {
            Ok(changed) => changed,
            Err(error) => {
                // What is known of the record may be old.
                self.lock().agreed = Agreed::default();
                return Err(error);
            }
        };
        self.learn(agreed, members);
        self.lock().lease_until = asked_at + self.lease;
        self.tell(asked_at);
        Ok(())
    }

    fn learn(&self, agreed: Agreed, members: Members) {
        let mut state = self.lock();
        if agreed.revision > state.agreed.revision {
            (state.agreed, state.members) = (agreed, members);
        }
    }

    /// Tells those who follow who is on the list, which was asked for at that moment.
    fn tell(&self, asked_at: Moment) {
        let members = {
            let state = self.lock();
            let member = |listed: &Listed| Member { epoch: listed.epoch, address: listed.address.clone() };
            feed::Members { joined: state.members.starts, list: state.members.members.iter().map(member).collect() }
        };
        self.feed.is_one_of(members, asked_at + self.lease, self.safe());
    }

    /// Whether nobody on the list seems to have died, and this origin is to do what one of them has to.
    pub(super) fn tidies(&self) -> bool {
        let now = self.clock.now();
        let state = self.lock();
        let first = state.members.members.first().is_some_and(|first| first.epoch == self.epoch);
        first && state.others.all_seem_well(now, self.lease)
    }

    /// An error unless this origin may write now.
    pub(super) fn check_writes(&self) -> Result<()> {
        self.failure.check().map_err(Error::and_untaken)?;
        let now = self.clock.now();
        let state = self.lock();
        if now + self.lease / MARGINS_PER_LEASE >= state.lease_until {
            let error = Error::unavailable("this origin could not refresh its lease at the store, and takes no writes");
            return Err(error.and_untaken());
        }
        if now < state.writes_from {
            let left = state.writes_from.since(now).as_secs() + 1;
            let error = Error::unavailable(format!("this origin has just joined, and takes writes in {left} s"));
            return Err(error.and_untaken());
        }
        Ok(())
    }

    /// A batch is about to be given its versions: all are above what is safe until it ends. If its outcome stays unknown, it never does.
    pub(super) fn begin(&self) {
        let mut state = self.lock();
        state.under_way = Some(self.own_safe(&state));
    }

    /// All purges of the batch are queued, or it had none.
    pub(super) fn end(&self) {
        self.lock().under_way = None;
    }

    /// The version up to which every purge is queued, of every origin on the list. Of our own, too, no more than is in the record: whoever joins mints above what is
    /// there, and we may learn of it late, when a newcomer whose clock is behind writes already.
    pub(super) fn safe(&self) -> Version {
        let state = self.lock();
        let published = state.members.members.iter().map(|member| Version::from_u64(member.safe));
        published.fold(self.own_safe(&state), Version::min)
    }

    /// Commits changes so that they take effect whatever becomes of this process: first says that it will, then does, and tries until it is known that it has.
    pub(super) async fn carry_out(&self, mut batch: Batch, stamp: Version) -> Result<()> {
        let number = {
            let mut state = self.lock();
            state.next_intent += 1;
            state.next_intent - 1
        };
        let mut intended = Batch::at(stamp);
        let until = self.clock.wall_millis() / 1000 + INTENT_SECONDS;
        intended.put_until(
            Table::Intent,
            keys::intent(self.epoch, number),
            Intent::encode(&batch.changes),
            Some(until),
        );
        self.until_known(intended).await?;
        // From here on another may finish it.
        self.check_writes().map_err(|error| Error::unavailable(error.message))?;
        // Of one millisecond the removal comes after what it removes.
        batch.version = stamp.next(self.id).unwrap_or(stamp);
        for carried_out in self.forgotten() {
            batch.remove(Table::Intent, keys::intent(self.epoch, carried_out));
        }
        self.until_known(batch).await?;
        let mut state = self.lock();
        state.done = number + 1;
        state.carried_out.push_back((number, self.clock.now()));
        Ok(())
    }

    async fn until_known(&self, batch: Batch) -> Result<()> {
        // One batch that can't be known holds up all that wait behind it: whoever starts anew, and the others, can finish it as well.
        let end = self.clock.now() + self.lease;
        heir::until_known(&*self.store, &*self.clock, batch, || self.lock().lease_until.min(end)).await
    }

    /// Intents that nobody asks for any more: what became of a write is looked up in them for a while.
    fn forgotten(&self) -> Vec<u64> {
        let now = self.clock.now();
        let mut state = self.lock();
        let mut forgotten = Vec::new();
        while forgotten.len() < FORGOTTEN_AT_ONCE
            && let Some((number, at)) = state.carried_out.front()
            && now.since(*at) > INTENTS_KEPT
        {
            forgotten.push(*number);
            state.carried_out.pop_front();
        }
        forgotten
    }

    /// What became of a write that another origin may have taken, which has departed since; by its name and its entry's row.
    pub(super) async fn fate(&self, taken: Taken, id: WriteId, row: &Bytes) -> Result<Fate> {
        // One scan at a time.
        let mut graves = self.graves.lock().await;
        let grave = match graves.iter().find(|grave| grave.epoch == taken.epoch) {
            Some(grave) => Arc::clone(grave),
            None => {
                let Some(end) = self.departed(taken.epoch).await? else { return Ok(Fate::Unknown) };
                let grave = Arc::new(Grave::read(&*self.store, taken.epoch, end).await?);
                graves.push_front(Arc::clone(&grave));
                graves.truncate(GRAVES_MAX);
                grave
            }
        };
        let Some(writes) = &grave.writes else { return Ok(Fate::Unknown) };
        Ok(writes.get(&(id.name(), row.clone())).map_or(Fate::NotTaken, |version| Fate::Became(*version)))
    }

    /// Below which intents of an origin that has departed were carried out.
    async fn departed(&self, epoch: u64) -> Result<Option<u64>> {
        let find = |members: &Members| {
            members.departed.iter().find(|departed| departed.epoch == epoch).map(|departed| departed.end)
        };
        if let Some(end) = find(&self.lock().members) {
            return Ok(Some(end));
        }
        // Whoever asks may have heard of it before we did.
        Ok(find(&Members::parse(&self.agreement()?.read(Members::NAME).await?)?))
    }

    /// Waits until no other origin decides about namespaces and tokens, and keeps them from it.
    pub(super) async fn decide(&self) -> Result<()> {
        let deadline = self.clock.now() + DECIDING;
        loop {
            self.check_writes()?;
            let known = self.lock().agreed.clone();
            let mut taken = false;
            let take = |members: &mut Members| {
                // Who is not on the list would keep its turn for ever.
                members.of(self.epoch).filter(|own| own.heir.is_none()).ok_or_else(|| {
                    Error::unavailable("this origin is on the list of those that share the store no more").and_untaken()
                })?;
                let holder = members.deciding.filter(|holder| members.of(*holder).is_some());
                taken = holder.is_none_or(|holder| holder == self.epoch);
                if taken {
                    members.deciding = Some(self.epoch);
                }
                Ok(())
            };
            // Before it is taken, so that no refreshment in between gives it back.
            self.lock().deciding = true;
            let (agreed, members) = update(self.agreement()?, &*self.clock, known, take).await.inspect_err(|_| {
                self.lock().deciding = false;
            })?;
            self.learn(agreed, members);
            self.lock().deciding = taken;
            if taken {
                return Ok(());
            }
            if self.clock.now() >= deadline {
                return Err(Error::unavailable(format!(
                    "another origin has been deciding for {DECIDING:?}: try again"
                )));
            }
            self.clock.sleep(clock::jittered(&*self.clock, heir::PAUSE_FIRST)).await;
        }
    }

    /// What was decided is in the store: the others are to read it, and may decide.
    pub(super) async fn decided(&self) {
        let known = {
            let mut state = self.lock();
            // From here on a refreshment gives it back, if we can't.
            state.deciding = false;
            state.agreed.clone()
        };
        let give_back = |members: &mut Members| {
            members.control += 1;
            if members.deciding == Some(self.epoch) {
                members.deciding = None;
            }
            Ok(())
        };
        match self.agreement().map(|agreement| update(agreement, &*self.clock, known, give_back)) {
            Ok(giving_back) => {
                if let Err(error) = giving_back.await {
                    tracing::warn!(%error, "the other origins could not be told of a decision, and learn of it when they ask");
                }
            }
            Err(error) => tracing::error!(%error, "a store without agreed records"),
        }
    }

    /// Takes this origin off the list: it has written its last.
    pub(super) async fn leave(&self) {
        let known = self.lock().agreed.clone();
        let safe = self.own_safe(&self.lock());
        let done = self.lock().done;
        let leave = |members: &mut Members| {
            members.floor = members.highest().max(safe.as_u64());
            members.remove(self.epoch, done);
            Ok(())
        };
        let left = match self.agreement() {
            Ok(agreement) => {
                clock::within(&*self.clock, self.lease, update(agreement, &*self.clock, known, leave)).await
            }
            Err(error) => Ok(Err(error)),
        };
        match left {
            Ok(Ok(_)) => tracing::info!(epoch = self.epoch, "left the origins on the store"),
            Ok(Err(error)) => {
                tracing::warn!(%error, "the other origins could not be told that this one leaves; they find out in a lease")
            }
            Err(_) => tracing::warn!(
                "the other origins could not be told in time that this one leaves; they find out in a lease"
            ),
        }
    }

    /// The version up to which every purge of this origin is queued; what it mints later is above.
    fn own_safe(&self, state: &State) -> Version {
        state.under_way.unwrap_or_else(|| match &state.time {
            Some(time) => Version::first_of(time.millis(), 0).before().max(self.floor),
            None => self.floor,
        })
    }

    fn agreement(&self) -> Result<&dyn Agreement> {
        agreement(&*self.store)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock can panic")
    }
}

pub(super) fn agreement(store: &dyn Store) -> Result<&dyn Agreement> {
    store.agreement().ok_or_else(|| Error::internal("this store is one origin's alone"))
}

/// The id that nobody has, and that nobody had for longest: of one that died a write may still be under way.
fn free_id(members: &Members) -> Option<u8> {
    let most = u64::from(Version::ORIGINS_MAX);
    let ids = (0..most).map(|i| u8::try_from((members.starts + i) % most).expect("below the most origins"));
    ids.into_iter().find(|id| members.members.iter().all(|member| member.id != *id))
}

/// How a newcomer gets an id. If origins died one after the other before any of them was there for long enough to find that out, the list is full of them, and nobody
/// is there to take them off.
struct Room<'a> {
    store: &'a dyn Store,
    clock: &'a dyn Clock,
    epoch: u64,
    lease: Duration,
    others: Others,
}

impl Room<'_> {
    async fn make(&mut self, until: Moment) -> Result<()> {
        let Room { store, clock, epoch, lease, .. } = *self;
        loop {
            let agreed = agreement(store)?.read(Members::NAME).await?;
            let mut members = Members::parse(&agreed)?;
            let mut known = agreed;
            for dead in self.others.dead(&members, epoch, clock.now(), lease) {
                if free_id(&members).is_some() {
                    break;
                }
                match (Heir { store, clock, epoch, lease }).finish(known.clone(), &dead).await {
                    Ok(changed) => (known, members) = changed,
                    // The place of another one does as well.
                    Err(error) => {
                        tracing::warn!(%error, epoch = dead.epoch, "finishing for an origin that died failed")
                    }
                }
            }
            if free_id(&members).is_some() {
                return Ok(());
            }
            if clock.now() >= until {
                let most = Version::ORIGINS_MAX;
                let what = format!("{most} origins share the store already, the most that can");
                return Err(Error::unavailable(what));
            }
            clock.sleep(REFRESH.min(lease / REFRESHES_PER_LEASE)).await;
        }
    }
}

/// Changes the record, starting from what is known of it, until nobody else is first.
pub(super) async fn update(
    agreement: &dyn Agreement,
    clock: &dyn Clock,
    mut known: Agreed,
    mut change: impl FnMut(&mut Members) -> Result<()>,
) -> Result<(Agreed, Members)> {
    for attempt in 0..ATTEMPTS {
        if known.revision == 0 {
            known = agreement.read(Members::NAME).await?;
        }
        let mut members = Members::parse(&known)?;
        change(&mut members)?;
        let value = members.encode()?;
        match agreement.replace(Members::NAME, known.revision, value.clone()).await? {
            Replaced::Done => return Ok((Agreed { revision: known.revision + 1, value }, members)),
            Replaced::Overtaken(agreed) => known = agreed,
        }
        if attempt > 0 {
            clock.sleep(clock::jittered(clock, Duration::from_millis(5))).await;
        }
    }
    Err(Error::unavailable(format!("the list of origins was changed by others each of {ATTEMPTS} times")))
}
