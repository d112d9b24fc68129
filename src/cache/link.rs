//! One link to whoever sends a feed: opened, kept alive by pings, given up when it falls silent, and opened again.
//!
//! What it hands on has been checked to be said in its order: a start first, items without a hole, echoes of pings that were sent. What it means is the
//! follower's to judge (`follow.rs` for one upstream, `fleet.rs` for several).

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;

use crate::{
    clock::{self, Clock, Moment},
    error::{Error, Kind, Result},
    kv::{
        Backend,
        feed::{Follow, Frames, Message},
    },
    wire::feed::{Decoder, encode_ping},
};

/// When a link does what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// How often it pings (F9).
    pub(super) interval: Duration,
    /// After so long, and a round trip, without a word, it is given up at the next ping.
    pub(super) silence: Duration,
    /// For the answer to the wish to follow.
    pub(super) deadline: Duration,
}

/// Pings that upstream has not taken yet; more would say nothing new.
const PINGS_MAX: usize = 4;

/// One link, to its end. Each message that comes is handed to `hear`.
pub(super) async fn session(
    clock: &dyn Clock,
    upstream: &dyn Backend,
    follow: Follow,
    times: Times,
    mut hear: impl FnMut(Message) -> Result<()>,
) -> Result<Infallible> {
    let (pings, unsent) = mpsc::channel(PINGS_MAX);
    let opened_at = clock.now();
    let opening = upstream.follow(follow, ping_stream(unsent));
    let opened = clock::within(clock, times.deadline, opening).await;
    let mut frames = opened.map_err(|_| silent("upstream did not answer to the wish to follow it"))??;
    let mut decoder = Decoder::default();
    let mut order = Order::new(opened_at);
    let mut heard_at = clock.now();
    // An answer takes as long; a link is not silent because it is long.
    let mut round_trip = heard_at.since(opened_at);
    let mut tick = clock.sleep(Duration::ZERO);
    loop {
        tokio::select! {
            biased;
            () = &mut tick => {
                let now = clock.now();
                if now.since(heard_at) >= times.silence + round_trip {
                    return Err(silent("upstream's feed went silent"));
                }
                // One that finds no room would tell nothing that those before it don't.
                let _ = pings.try_send(encode_ping(now.as_nanos()));
                tick = clock.sleep(times.interval);
            }
            piece = frames.next() => {
                decoder.add(&piece.ok_or_else(|| silent("upstream ended its feed"))??);
                heard_at = clock.now();
                while let Some(message) = decoder.message()? {
                    order.check(&message, heard_at)?;
                    if let Message::Echo(echo) = &message {
                        round_trip = heard_at.since(Moment::from_nanos(echo.stamp));
                    }
                    hear(message)?;
                }
            }
        }
    }
}

/// What may be said on a link, and when.
struct Order {
    opened_at: Moment,
    /// The number of the last item, once there was a start.
    sequence: Option<u64>,
}

impl Order {
    fn new(opened_at: Moment) -> Order {
        Order { opened_at, sequence: None }
    }

    fn check(&mut self, message: &Message, now: Moment) -> Result<()> {
        if let Message::Start { position, .. } = message {
            self.sequence = Some(position.sequence);
            return Ok(());
        }
        let last = self.sequence.as_mut().ok_or_else(|| garbled("before its start"))?;
        match message {
            Message::Items { first, items } => {
                if last.checked_add(1) != Some(*first) {
                    return Err(garbled("out of its order"));
                }
                *last = last.checked_add(items.len() as u64).ok_or_else(|| garbled("past the last number"))?;
            }
            Message::Echo(echo) => {
                let pinged_at = Moment::from_nanos(echo.stamp);
                if pinged_at < self.opened_at || pinged_at > now {
                    return Err(garbled("as the echo of a ping that was never sent"));
                }
            }
            Message::Start { .. } | Message::Members(_) | Message::End => {}
        }
        Ok(())
    }
}

/// How soon a lost link is tried again, at first and at last; jittered, so that not all come back at once.
const FIRST: Duration = Duration::from_millis(100);
const LAST: Duration = Duration::from_secs(2);

/// The pauses between links.
pub(super) struct Retry(Duration);

impl Retry {
    pub(super) fn new() -> Retry {
        Retry(FIRST)
    }

    /// A link is lost that was opened at that moment: whether it had been of use, and so the next one is tried sooner.
    pub(super) fn lost(&mut self, clock: &dyn Clock, opened_at: Moment) -> bool {
        let lasted = clock.now().since(opened_at) > LAST;
        if lasted {
            self.0 = FIRST;
        }
        lasted
    }

    pub(super) async fn pause(&mut self, clock: &dyn Clock) {
        clock.sleep(clock::jittered(clock, self.0)).await;
        self.0 = (self.0 * 2).min(LAST);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::feed::{Echo, Item, Members, Position};

    fn at(seconds: u64) -> Moment {
        Moment::ZERO + Duration::from_secs(seconds)
    }

    fn items(first: u64, count: usize) -> Message {
        Message::Items { first, items: vec![Item::Gap; count] }
    }

    fn echo(stamp: Moment) -> Message {
        Message::Echo(Echo { stamp: stamp.as_nanos(), proof: None })
    }

    fn check(said: &[Message], expected: bool) {
        let mut order = Order::new(at(10));
        let last = said.len() - 1;
        for (i, message) in said.iter().enumerate() {
            assert_eq!(order.check(message, at(20)).is_ok(), expected || i < last, "{message:?} of {said:?}");
        }
    }

    #[test]
    fn a_feed_that_speaks_out_of_its_order_is_given_up() {
        let start = |sequence| Message::Start { position: Position { epoch: 1, sequence }, resumed: false };
        let members = Message::Members(Members { joined: 1, list: Vec::new() });
        check(&[start(5), items(6, 2), items(8, 1), members.clone(), echo(at(10)), echo(at(20)), Message::End], true);
        check(&[start(5), items(6, 2), start(20), items(21, 1)], true);
        for first in [6, 8] {
            check(&[start(5), items(6, 1), items(first, 1)], false);
        }
        for before in [items(1, 1), echo(at(15)), members, Message::End] {
            check(&[before], false);
        }
        for never in [at(9), at(21), Moment::MAX] {
            check(&[start(5), echo(never)], false);
        }
        check(&[start(u64::MAX), items(0, 1)], false);
        check(&[start(u64::MAX - 1), items(u64::MAX, 2)], false);
    }
}
