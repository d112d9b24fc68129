//! A tier as a follower: it applies what its upstream's feed says to its own cache, and only then relays it downwards (F2).
//!
//! It pings, and each echo moves the watermark on (F4). A link that is silent for three intervals is given up. What a lost link leaves behind
//! goes on aging from the last watermark; if the feed can be resumed where it ended, nothing was missed and all of it is covered again, else there is a
//! gap and a new continuity begins (F6).

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::tier::Tier;
use crate::{
    clock::{self, Moment},
    error::{Error, Kind, Result},
    kv::{
        Version,
        feed::{Echo, Follow, Frames, Item, Message, Position, Purge, Pushed},
        kept::{Content, EntryKey, Kept, KeptValue, Verified},
    },
    wire::feed::{Decoder, encode_ping},
};

/// How far the follower has got; it outlives a link.
#[derive(Default)]
pub(super) struct Place {
    position: Option<Position>,
    /// Of the last echo of this continuity that proved something.
    mark: Option<Mark>,
}

#[derive(Clone, Copy)]
struct Mark {
    watermark: Moment,
    pinged_at: Moment,
}

/// Pings that upstream has not taken yet; more would say nothing new.
const PINGS_MAX: usize = 4;
/// How soon a lost link is tried again, at first and at last; jittered, so that not all come back at once.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(2);
/// After so many intervals and a round trip without a word, at the next one a link is given up.
const SILENT_INTERVALS: u32 = 2;
/// An echo older than so many intervals shows that upstream is there, but not the tiers above it.
const AWAY_INTERVALS: u32 = 3;

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
        let mut place = Place::default();
        let mut retry = RETRY_FIRST;
        loop {
            let opened_at = self.clock().now();
            let Err(error) = self.session(&mut place).await;
            if self.clock().now().since(opened_at) > RETRY_LAST {
                retry = RETRY_FIRST;
                tracing::warn!(tier = self.name(), %error, "the purge feed is lost: what is held ages until it is back");
            } else {
                tracing::debug!(tier = self.name(), %error, "the purge feed can't be followed");
            }
            self.clock().sleep(clock::jittered(self.clock(), retry)).await;
            retry = (retry * 2).min(RETRY_LAST);
        }
    }

    /// One link, to its end.
    async fn session(&self, place: &mut Place) -> Result<std::convert::Infallible> {
        let interval = self.settings().feed_interval;
        let (pings, unsent) = mpsc::channel(PINGS_MAX);
        let opened_at = self.clock().now();
        let follow = Follow { follower: self.follower(), from: place.position };
        let opening = self.upstream().follow(follow, ping_stream(unsent));
        let opened = clock::within(self.clock(), self.settings().upstream_deadline, opening).await;
        let mut frames = opened.map_err(|_| silent("upstream did not answer to the wish to follow it"))??;
        let mut decoder = Decoder::default();
        let mut heard_at = self.clock().now();
        // An answer takes as long; a link is not silent because it is long.
        let mut round_trip = heard_at.since(opened_at);
        let mut tick = self.clock().sleep(Duration::ZERO);
        let mut started = false;
        loop {
            tokio::select! {
                biased;
                () = &mut tick => {
                    let now = self.clock().now();
                    if now.since(heard_at) >= interval * SILENT_INTERVALS + round_trip {
                        return Err(silent("upstream's feed went silent"));
                    }
                    // One that finds no room would tell nothing that those before it don't.
                    let _ = pings.try_send(encode_ping(now.as_nanos()));
                    tick = self.clock().sleep(interval);
                }
                piece = frames.next() => {
                    decoder.add(&piece.ok_or_else(|| silent("upstream ended its feed"))??);
                    heard_at = self.clock().now();
                    while let Some(message) = decoder.message()? {
                        if !started && !matches!(message, Message::Start { .. }) {
                            return Err(garbled("before its start"));
                        }
                        started = true;
                        if let Message::Echo(echo) = &message {
                            round_trip = heard_at.since(Moment::from_nanos(echo.stamp));
                        }
                        self.take_message(message, place, opened_at)?;
                    }
                }
            }
        }
    }

    pub(super) fn take_message(&self, message: Message, place: &mut Place, opened_at: Moment) -> Result<()> {
        match message {
            Message::Start { position, resumed } => {
                let goes_on = place.position.is_some_and(|last| last.sequence == position.sequence);
                if !(resumed && goes_on) {
                    self.begin_continuity(place);
                    self.feed().relay(&[Item::Gap]);
                }
                tracing::info!(tier = self.name(), resumed, sequence = position.sequence, "following the purge feed");
                place.position = Some(position);
            }
            Message::Items { first, items } => {
                let position = place.position.as_mut().ok_or_else(|| garbled("before its start"))?;
                if first != position.sequence + 1 {
                    return Err(garbled("out of its order"));
                }
                // A change comes from the origin itself: whoever thought it away may ask again.
                self.health().heard();
                position.sequence += items.len() as u64;
                // All of them are applied before any is relayed (F2): whoever asks after hearing of one finds nothing older here.
                let applied: Vec<Item> = items.into_iter().map(|item| self.apply(item, place)).collect();
                self.feed().relay(&applied);
            }
            Message::Echo(echo) => self.hear(echo, place, opened_at)?,
            // They say whom else to follow, which `fleet.rs` does.
            Message::Members(_) | Message::End => {}
        }
        Ok(())
    }

    /// F4: what the sender knew when it answered a ping holds here as of the moment of that ping.
    fn hear(&self, echo: Echo, place: &mut Place, opened_at: Moment) -> Result<()> {
        let pinged_at = Moment::from_nanos(echo.stamp);
        if pinged_at < opened_at || pinged_at > self.clock().now() {
            return Err(garbled("as the echo of a ping that was never sent"));
        }
        let Some(proof) = echo.proof else { return Ok(()) };
        if proof.age <= self.settings().feed_interval * AWAY_INTERVALS {
            self.health().heard();
        }
        let watermark = pinged_at - proof.age;
        self.coverage().advance(watermark, proof.version);
        self.feed().knows(self.coverage().watermark());
        place.mark = Some(Mark { watermark, pinged_at });
        Ok(())
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
                if let Some(dropped) = self.flights().purge(&key, version, kept.as_ref()) {
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

fn ping_stream(unsent: mpsc::Receiver<Bytes>) -> Frames {
    stream::unfold(unsent, async |mut unsent| unsent.recv().await.map(|ping| (Ok(ping), unsent))).boxed()
}

fn silent(what: &str) -> Error {
    Error::new(Kind::Unreachable, what)
}

fn garbled(what: &str) -> Error {
    Error::new(Kind::Unreachable, format!("upstream's feed sent something {what}"))
}
