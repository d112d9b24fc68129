//! A tier as a follower: it applies what its upstream's feed says to its own cache, and only then relays it downwards (F2).
//!
//! Each echo moves the watermark on (F4). What a lost link leaves behind goes on aging from the last watermark; if the feed can be resumed where it ended,
//! nothing was missed and all of it is covered again, else there is a gap and a new continuity begins (F6).

use tokio_util::sync::CancellationToken;

use super::{
    link::{self, Retry, Times},
    tier::Tier,
};
use crate::{
    clock::Moment,
    kv::{
        Version,
        feed::{Echo, Follow, Item, Members, Message, Position, Purge, Pushed},
        kept::{Content, EntryKey, Kept, KeptValue, Verified},
    },
};

/// How far the follower has got; it outlives a link.
#[derive(Default)]
pub(super) struct Place {
    position: Option<Position>,
    /// Of the last echo of this continuity that proved something.
    mark: Option<Mark>,
    /// Of the last list of upstream's, where it is one of several origins.
    several: Option<Several>,
}

#[derive(Clone, Copy)]
struct Several {
    joined: u64,
    /// Whether others beside upstream change what it answers: their purges are not in its feed.
    others: bool,
}

#[derive(Clone, Copy)]
struct Mark {
    watermark: Moment,
    pinged_at: Moment,
}

/// After so many intervals and a round trip without a word, at the next one a link is given up.
const SILENT_INTERVALS: u32 = 2;
/// An echo older than so many intervals shows that upstream is there, but not the tiers above it.
const AWAY_INTERVALS: u32 = 3;
/// In a line of the log.
const ADDRESSES_SHOWN: usize = 32;

impl Tier {
    /// Follows upstream's feed until it is stopped. Then its own feed ends.
    pub async fn follow(self, stop: CancellationToken) {
        let following = self.keep_following();
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = following => {}
        }
        self.feed().close();
    }

    async fn keep_following(&self) {
        let interval = self.settings().feed_interval;
        let silence = interval * SILENT_INTERVALS;
        let times = Times { interval, silence, deadline: self.settings().upstream_deadline };
        let mut place = Place::default();
        let mut retry = Retry::new();
        loop {
            let opened_at = self.clock().now();
            let follow = Follow { follower: self.follower(), from: place.position, all_states: false };
            let hear = |message| {
                self.take_message(message, &mut place);
                Ok(())
            };
            let Err(error) = link::session(self.clock(), self.upstream(), follow, times, hear).await;
            if retry.lost(self.clock(), opened_at) {
                tracing::warn!(tier = self.name(), %error, "the purge feed is lost: what is held ages until it is back");
            } else {
                tracing::debug!(tier = self.name(), %error, "the purge feed can't be followed");
            }
            retry.pause(self.clock()).await;
        }
    }

    /// What a link said, in its order.
    pub(super) fn take_message(&self, message: Message, place: &mut Place) {
        match message {
            Message::Start { position, resumed } => {
                let goes_on = place.position.is_some_and(|last| last.sequence == position.sequence);
                if !(resumed && goes_on) {
                    place.several = None;
                    self.miss(place);
                }
                tracing::info!(tier = self.name(), resumed, sequence = position.sequence, "following the purge feed");
                place.position = Some(position);
            }
            Message::Items { items, .. } => {
                // A change comes from the origin itself: whoever thought it away may ask again.
                self.health().heard();
                let position = place.position.as_mut().expect("a link begins with its start");
                position.sequence += items.len() as u64;
                // All of them are applied before any is relayed (F2): whoever asks after hearing of one finds nothing older here.
                let applied: Vec<Item> = items.into_iter().map(|item| self.apply(item, place)).collect();
                self.feed().relay(&applied);
            }
            Message::Echo(echo) => self.hear(echo, place),
            Message::Members(members) => self.hear_members(&members, place),
            // What comes next is another process, which can't go on where this one was.
            Message::End => {}
        }
    }

    /// F4: what the sender knew when it answered a ping holds here as of the moment of that ping.
    fn hear(&self, echo: Echo, place: &mut Place) {
        let pinged_at = Moment::from_nanos(echo.stamp);
        let Some(proof) = echo.proof else { return };
        if proof.age <= self.settings().feed_interval * AWAY_INTERVALS {
            self.health().heard();
        }
        if place.several.is_some_and(|several| several.others) {
            return;
        }
        let watermark = pinged_at - proof.age;
        self.coverage().advance(watermark, proof.version);
        self.feed().knows(self.coverage().watermark());
        place.mark = Some(Mark { watermark, pinged_at });
    }

    /// Upstream says which origins there are on its store (O4). What another one changes is purged in that one's feed, so that with others there this feed
    /// proves nothing; and neither does it prove anything of what is held once others may have been there.
    fn hear_members(&self, members: &Members, place: &mut Place) {
        let several = Several { joined: members.joined, others: members.list.len() > 1 };
        let earlier = place.several.replace(several);
        if several.others {
            if !earlier.is_some_and(|earlier| earlier.others) {
                let addresses: Vec<&str> =
                    members.list.iter().take(ADDRESSES_SHOWN).map(|member| &*member.address).collect();
                tracing::error!(
                    tier = self.name(),
                    "upstream is one of several origins on one store, and this tier hears of the changes of that one alone: what it holds ages until \
                     it is asked for again; name them all: upstream = {addresses:?}"
                );
            }
        } else if earlier.is_none_or(|earlier| earlier.others || earlier.joined != several.joined) {
            self.miss(place);
        }
    }

    fn miss(&self, place: &mut Place) {
        self.begin_continuity(place);
        self.feed().relay(&[Item::Gap]);
    }

    /// Something may have been missed (F6): what was verified before now is covered no more. Those below are to be told.
    fn begin_continuity(&self, place: &mut Place) {
        place.mark = None;
        self.coverage().begin(self.clock().now());
        self.feed().knows(None);
    }

    /// Applies an item to what is held, and answers it as it goes on to the tiers below.
    fn apply(&self, item: Item, place: &mut Place) -> Item {
        match item {
            Item::Gap => {
                self.begin_continuity(place);
                Item::Gap
            }
            Item::Namespace { namespace, version } => {
                self.flights().purge_namespace(namespace, version);
                Item::Namespace { namespace, version }
            }
            Item::Purge(Purge { namespace, key, version, state }) => {
                let key = EntryKey { namespace, key };
                let pushed =
                    state.and_then(|state| self.pushed(&key, &state, version, place).map(|kept| (state, kept)));
                let (state, kept) = pushed.unzip();
                let seen = self.coverage().seen();
                let vouches = |held: &Kept| seen.vouches_for(held.verified());
                if let Some(dropped) = self.flights().purge(&key, version, kept.as_ref(), vouches) {
                    self.refetch(&key, version, &dropped);
                }
                let state = state.map(|state| self.passed_on(state, kept.as_ref()));
                Item::Purge(Purge { namespace, key: key.key, version, state })
            }
        }
    }

    /// A state that came inside a purge, as an entry (F5): current at the watermark held when it came, its time left counted from that echo's ping.
    /// Before the first echo nothing is known of it, and it is a plain purge.
    fn pushed(&self, key: &EntryKey, state: &Pushed, version: Version, place: &Place) -> Option<Kept> {
        let mark = place.mark?;
        let (content, expires_at) = match state {
            Pushed::Absent => (Content::Absent, Moment::MAX),
            Pushed::Present { value, metadata, expiration, time_left } => {
                // Slices of a frame, which is not to be kept with them.
                let (value, metadata) = (KeptValue::of_slice(value), metadata.clone());
                let expires_at = time_left.map_or(Moment::MAX, |left| mark.pinged_at + left);
                (Content::Present { value, metadata, expiration: *expiration }, expires_at)
            }
        };
        // Its next change comes down this same feed.
        let verified = Verified { at: mark.watermark, covered_from: self.clock().now() };
        Some(Kept::new(key, version, content, expires_at, verified))
    }

    /// The state as it goes on to the tiers below: with the time left to it here.
    fn passed_on(&self, state: Pushed, kept: Option<&Kept>) -> Pushed {
        let left = kept.map(Kept::expires_at).filter(|expires_at| *expires_at != Moment::MAX);
        match state {
            Pushed::Present { value, metadata, expiration, time_left: Some(_) } => {
                let time_left = left.map(|expires_at| expires_at.since(self.clock().now()));
                Pushed::Present { value, metadata, expiration, time_left }
            }
            other => other,
        }
    }
}
