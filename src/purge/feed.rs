//! A feed: what its owner publishes, each follower is sent, from its own place, as fast as it takes it.
//!
//! Nobody has a queue: all followers read the one log, so that a thousand of them cost a thousand places in it. One that is too slow loses its
//! place and has a gap (F8). What is published goes out at once while the feed is idle; while it is busy, a follower is sent what gathered during a
//! short pause, which grows with the number of followers.
//!
//! An echo goes out behind every item that was queued when its ping was read, and proves how current all that was not purged is (F4).

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

pub use super::log::{Past, PastPart};
use super::{
    interest::{Interest, KeyHasher},
    log::Log,
};
use crate::{
    clock::{Clock, Moment},
    error::Result,
    kv::{
        NamespaceId, Version,
        feed::{Echo, Follow, FollowerId, Frames, Item, Members, Position, Proof},
    },
    metrics::FeedCounts,
    wire::feed::{self as wire, Decoder, EncodedItem, ItemsFrame},
};

/// How much of a feed is kept for those who come back or are slow. More of either lets them go on without a gap after longer absences; it takes that
/// much memory in each process that is followed, and that much room in an origin's store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedSettings {
    pub log_bytes_max: usize,
    pub log_age_max: Duration,
}

impl Default for FeedSettings {
    fn default() -> FeedSettings {
        FeedSettings { log_bytes_max: 32 << 20, log_age_max: Duration::from_secs(24 * 3600) }
    }
}

/// Cheap to clone; all clones are the one feed.
#[derive(Clone)]
pub struct Feed(Arc<Shared>);

struct Shared {
    clock: Arc<dyn Clock>,
    hasher: KeyHasher,
    state: Mutex<State>,
    /// Something was published, or the follower's session ended.
    changed: Notify,
    closed: CancellationToken,
}

struct State {
    log: Log,
    current: Current,
    safe: Version,
    followers: HashMap<FollowerId, Follower>,
    sessions: u64,
    /// Of an origin that is one of several.
    members: Option<KnownMembers>,
    /// Whether its owner has published its last, and says so.
    ended: bool,
    /// Whether anyone could want what is published: before the first follower, nobody.
    retains: bool,
    /// Items of this process, and the gaps among them.
    items: u64,
    gaps: u64,
}

/// All who may have begun a write, as far as the owner knows.
struct KnownMembers {
    members: Members,
    /// Counts the lists.
    number: u64,
    /// Past it somebody else may have, and nothing is proven.
    until: Moment,
}

/// As of when all that is not purged is known to be current.
#[derive(Clone, Copy)]
enum Current {
    Unknown,
    /// At an origin between commits: as of now.
    Now,
    Since(Moment),
}

struct Follower {
    session: u64,
    /// Whether it wants each state.
    all_states: bool,
    interest: Interest,
}

/// How much longer a busy feed gathers per follower, and how long at most. Below the least it is not worth a timer.
const PAUSE_PER_FOLLOWER: Duration = Duration::from_micros(10);
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(20);
/// Pings whose echo waits for items still to be sent; a follower that sends more is answered fewer.
const ECHOES_MAX: usize = 4;

impl Feed {
    /// A feed that nobody follows yet. An origin's goes on from its store's `past`, and may be resumed from there.
    pub fn new(clock: Arc<dyn Clock>, settings: &FeedSettings, past: Option<Past>) -> Feed {
        let retains = past.is_some();
        let FeedSettings { log_bytes_max, log_age_max } = *settings;
        let log = Log::new(clock.random(), past.unwrap_or_default(), log_bytes_max, log_age_max, clock.now());
        let state = State {
            log,
            current: Current::Unknown,
            safe: Version::ZERO,
            followers: HashMap::new(),
            sessions: 0,
            members: None,
            ended: false,
            retains,
            items: 0,
            gaps: 0,
        };
        Feed(Arc::new(Shared {
            hasher: KeyHasher::new(&*clock),
            clock,
            state: Mutex::new(state),
            changed: Notify::new(),
            closed: CancellationToken::new(),
        }))
    }

    /// Where the next item goes behind.
    pub fn position(&self) -> Position {
        self.lock().log.position()
    }

    pub fn followers(&self) -> usize {
        self.lock().followers.len()
    }

    pub fn counts(&self) -> FeedCounts {
        let state = self.lock();
        FeedCounts { followers: state.followers.len() as u64, items: state.items, gaps: state.gaps }
    }

    /// Ends all that follow, now and later.
    pub fn close(&self) {
        self.0.closed.cancel();
    }

    /// For an origin: from here on all up to this version is known, since nothing is under way.
    pub fn knows_all(&self, safe: Version) {
        let mut state = self.lock();
        state.current = Current::Now;
        state.safe = safe;
    }

    /// For an origin that is one of several (O4): these are all that may have begun a write, until then, and all their purges are queued up to this version.
    pub fn is_one_of(&self, members: Members, until: Moment, safe: Version) {
        let mut state = self.lock();
        state.safe = safe;
        match &mut state.members {
            Some(known) if known.members == members => known.until = until,
            known => {
                let number = known.as_ref().map_or(0, |known| known.number) + 1;
                *known = Some(KnownMembers { members, number, until });
                drop(state);
                self.0.changed.notify_waiters();
            }
        }
    }

    /// For an origin that leaves the others: nothing comes after what was published, and each follower is told so.
    pub fn end(&self) {
        self.lock().ended = true;
        self.0.changed.notify_waiters();
    }

    /// For an origin: writes may take effect from now on whose purges are not published yet. If they never are, nothing is proven any more.
    pub fn begin(&self) {
        let now = self.0.clock.now();
        let mut state = self.lock();
        if matches!(state.current, Current::Now) {
            state.current = Current::Since(now);
        }
    }

    /// For an origin: what [`Feed::begin`] began has taken effect; up to `safe` all is queued now.
    pub fn publish(&self, items: &[Item], safe: Version) {
        let mut state = self.lock();
        self.push(&mut state, items);
        state.current = Current::Now;
        state.safe = safe;
        drop(state);
        self.0.changed.notify_waiters();
    }

    /// For a tier: passes on what it has applied to its own cache (F2: in this order).
    pub fn relay(&self, items: &[Item]) {
        let mut state = self.lock();
        self.push(&mut state, items);
        drop(state);
        self.0.changed.notify_waiters();
    }

    /// For a tier: its own watermark, and the safe version at that point; `None` once it has none.
    pub fn knows(&self, watermark: Option<(Moment, Version)>) {
        let mut state = self.lock();
        state.current = watermark.map_or(Current::Unknown, |(moment, _)| Current::Since(moment));
        state.safe = watermark.map_or(Version::ZERO, |(_, version)| version);
    }

    /// A follower asks for a key.
    pub fn note(&self, follower: FollowerId, namespace: NamespaceId, key: &[u8]) {
        let hash = self.0.hasher.hash(namespace, key);
        if let Some(follower) = self.lock().followers.get_mut(&follower) {
            follower.interest.add(hash);
        }
    }

    /// What a follower is sent from here on. Its next call ends this one.
    pub fn follow(&self, follow: Follow, pings: Frames) -> Frames {
        let mut state = self.lock();
        state.retains = true;
        state.sessions += 1;
        let session = state.sessions;
        let resumed = follow.from.is_some_and(|from| state.log.can_resume(from));
        let sequence = match follow.from {
            Some(from) if resumed => from.sequence,
            _ => state.log.last(),
        };
        let interest = state.followers.remove(&follow.follower).map(|earlier| earlier.interest).unwrap_or_default();
        state.followers.insert(follow.follower, Follower { session, all_states: follow.all_states, interest });
        drop(state);
        self.0.changed.notify_waiters();
        let sending = Sending {
            feed: self.clone(),
            follower: follow.follower,
            session,
            pings: Some(pings),
            decoder: Decoder::default(),
            greeting: Some(resumed),
            members: 0,
            ended: false,
            sequence,
            echoes: VecDeque::new(),
            sent_at: None,
        };
        stream::try_unfold(sending, async |mut sending| Ok(sending.next().await?.map(|bytes| (bytes, sending)))).boxed()
    }

    fn push(&self, state: &mut State, items: &[Item]) {
        state.items += items.len() as u64;
        state.gaps += items.iter().filter(|item| **item == Item::Gap).count() as u64;
        if !state.retains {
            return state.log.skip(items.len() as u64);
        }
        let now = self.0.clock.now();
        for item in items {
            let hash = match item {
                Item::Purge(purge) if purge.state.is_some() => {
                    self.0.hasher.hash(purge.namespace, purge.key.as_bytes())
                }
                _ => 0,
            };
            state.log.push(EncodedItem::new(item), hash, now);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("no holder of this lock can panic")
    }
}

impl State {
    fn proof(&self, now: Moment) -> Option<Proof> {
        if self.members.as_ref().is_some_and(|known| now >= known.until) {
            return None;
        }
        let age = match self.current {
            Current::Unknown => return None,
            Current::Now => Duration::ZERO,
            Current::Since(moment) => now.since(moment),
        };
        Some(Proof { age, version: self.safe })
    }
}

/// One follower's side of the feed.
struct Sending {
    feed: Feed,
    follower: FollowerId,
    session: u64,
    /// `None` once the follower has ended.
    pings: Option<Frames>,
    decoder: Decoder,
    /// Whether the follower resumes, until it has been told.
    greeting: Option<bool>,
    /// The number of the list of members that the follower has; zero for none.
    members: u64,
    /// Whether it was told that nothing more comes.
    ended: bool,
    /// The number of the last item sent.
    sequence: u64,
    echoes: VecDeque<Waiting>,
    sent_at: Option<Moment>,
}

/// An echo, behind this item.
struct Waiting {
    behind: u64,
    echo: Echo,
}

impl Drop for Sending {
    fn drop(&mut self) {
        let mut state = self.feed.lock();
        if state.followers.get(&self.follower).is_some_and(|follower| follower.session == self.session) {
            state.followers.remove(&self.follower);
        }
    }
}

impl Sending {
    /// The next piece to send; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>> {
        self.pause().await;
        loop {
            // Before the look, so that nothing is missed between it and the wait.
            let feed = self.feed.clone();
            let changed = feed.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match self.gather() {
                None => return Ok(None),
                Some(piece) if !piece.is_empty() => {
                    self.sent_at = Some(feed.0.clock.now());
                    return Ok(Some(piece));
                }
                Some(_) => {}
            }
            if self.ended {
                return Ok(None);
            }
            let Some(pings) = &mut self.pings else { return Ok(None) };
            tokio::select! {
                biased;
                () = feed.0.closed.cancelled() => return Ok(None),
                piece = pings.next() => match piece {
                    Some(Ok(piece)) => self.read(&piece)?,
                    // A follower that went away needs no more.
                    Some(Err(_)) | None => self.pings = None,
                },
                () = changed => {}
            }
        }
    }

    /// Lets more gather while the feed is busy.
    async fn pause(&mut self) {
        let Some(sent_at) = self.sent_at else { return };
        let followers = u32::try_from(self.feed.followers()).unwrap_or(u32::MAX);
        let pause = PAUSE_PER_FOLLOWER.saturating_mul(followers).min(PAUSE_MAX);
        let clock = Arc::clone(&self.feed.0.clock);
        let left = (sent_at + pause).since(clock.now());
        if pause >= PAUSE_MIN && !left.is_zero() {
            clock.sleep(left).await;
        }
    }

    fn read(&mut self, piece: &[u8]) -> Result<()> {
        self.decoder.add(piece);
        while let Some(stamp) = self.decoder.ping()? {
            let state = self.feed.lock();
            if self.echoes.len() < ECHOES_MAX {
                let echo = Echo { stamp, proof: state.proof(self.feed.0.clock.now()) };
                self.echoes.push_back(Waiting { behind: state.log.last(), echo });
            }
        }
        Ok(())
    }

    /// What there is to send now, up to a frame of items; `None` if the follower has begun anew elsewhere.
    fn gather(&mut self) -> Option<Bytes> {
        let feed = self.feed.clone();
        let state = feed.lock();
        let follower = state.followers.get(&self.follower).filter(|follower| follower.session == self.session)?;
        let mut out = BytesMut::new();
        if !state.log.holds_after(self.sequence) {
            self.sequence = state.log.last();
            self.greeting = Some(false);
        }
        if let Some(resumed) = self.greeting.take() {
            let position = Position { sequence: self.sequence, ..state.log.position() };
            wire::put_start(&mut out, position, resumed);
        }
        // Before any echo: it holds of this list.
        if let Some(known) = state.members.as_ref().filter(|known| known.number != self.members) {
            wire::put_members(&mut out, &known.members);
            self.members = known.number;
        }
        let mut items = state.log.after(self.sequence).peekable();
        if items.peek().is_some() {
            let frame = ItemsFrame::begin(&mut out, self.sequence + 1);
            for logged in items {
                let with_state = logged.item.has_state() && (follower.all_states || follower.interest.has(logged.hash));
                logged.item.put(&mut out, with_state);
                self.sequence += 1;
                if out.len() >= wire::ITEMS_BYTES {
                    break;
                }
            }
            frame.end(&mut out);
        }
        while let Some(waiting) = self.echoes.front().filter(|waiting| waiting.behind <= self.sequence) {
            wire::put_echo(&mut out, waiting.echo);
            self.echoes.pop_front();
        }
        if state.ended && !self.ended && self.sequence == state.log.last() {
            wire::put_end(&mut out);
            self.ended = true;
        }
        Some(out.freeze())
    }
}

#[cfg(test)]
mod tests;
