//! What a feed promises each of its followers, on a clock that stands still.

use futures_util::FutureExt;
use tokio::sync::mpsc;

use super::*;
use crate::{
    clock::ManualClock,
    kv::{
        Key,
        feed::{Message, Purge, Pushed},
    },
    wire::feed::encode_ping,
};

const NAMESPACE: NamespaceId = NamespaceId::from_u128(1);

/// A follower's end.
struct Reader {
    frames: Frames,
    pings: mpsc::UnboundedSender<Result<Bytes>>,
    decoder: Decoder,
}

impl Reader {
    fn follow(feed: &Feed, follower: u64, from: Option<Position>) -> Reader {
        Reader::follow_as(feed, Follow { follower: FollowerId(follower), from, all_states: false })
    }

    fn follow_as(feed: &Feed, follow: Follow) -> Reader {
        let (pings, mut unsent) = mpsc::unbounded_channel();
        let pings_stream = stream::poll_fn(move |cx| unsent.poll_recv(cx)).boxed();
        let frames = feed.follow(follow, pings_stream);
        Reader { frames, pings, decoder: Decoder::default() }
    }

    /// All messages that are there without a wait; and whether the feed has ended.
    fn read(&mut self) -> (Vec<Message>, bool) {
        let mut messages = Vec::new();
        loop {
            while let Some(message) = self.decoder.message().unwrap() {
                messages.push(message);
            }
            match self.frames.next().now_or_never() {
                Some(Some(piece)) => self.decoder.add(&piece.unwrap()),
                Some(None) => return (messages, true),
                None => return (messages, false),
            }
        }
    }

    fn ping(&self, stamp: u64) {
        self.pings.send(Ok(encode_ping(stamp))).unwrap();
    }
}

fn key(i: u64) -> Key {
    Key::new(format!("key-{i}")).unwrap()
}

fn purge(i: u64) -> Item {
    Item::Purge(Purge { namespace: NAMESPACE, key: key(i), version: Version::from_u64(i), state: None })
}

fn with_state(i: u64) -> Item {
    let state = Some(Pushed::Absent);
    Item::Purge(Purge { namespace: NAMESPACE, key: key(i), version: Version::from_u64(i), state })
}

/// An origin's feed that knows all.
fn feed_with(settings: &FeedSettings) -> (Feed, Arc<ManualClock>) {
    let clock = ManualClock::shared();
    let feed = Feed::new(Arc::new(Arc::clone(&clock)), settings, Some(Past::default()));
    feed.knows_all(Version::ZERO);
    (feed, clock)
}

fn feed() -> (Feed, Arc<ManualClock>) {
    feed_with(&FeedSettings::default())
}

fn start(messages: &[Message]) -> (Position, bool) {
    match messages.first() {
        Some(Message::Start { position, resumed }) => (*position, *resumed),
        other => panic!("a feed begins with its start, not {other:?}"),
    }
}

fn items(messages: &[Message]) -> Vec<Item> {
    let items = messages.iter().filter_map(|message| match message {
        Message::Items { items, .. } => Some(items.clone()),
        _ => None,
    });
    items.flatten().collect()
}

fn echoes(messages: &[Message]) -> Vec<Echo> {
    messages.iter().filter_map(|message| if let Message::Echo(echo) = message { Some(*echo) } else { None }).collect()
}

#[test]
fn a_new_follower_is_told_what_comes_after_its_start() {
    let (feed, _) = feed();
    feed.publish(&[purge(1)], Version::from_u64(1));
    let mut reader = Reader::follow(&feed, 1, None);
    let (messages, _) = reader.read();
    assert_eq!(start(&messages), (feed.position(), false));
    assert!(items(&messages).is_empty());
    feed.publish(&[purge(2), purge(3)], Version::from_u64(3));
    let (messages, ended) = reader.read();
    assert_eq!(messages, [Message::Items { first: 2, items: vec![purge(2), purge(3)] }]);
    assert!(!ended);
}

#[test]
fn a_follower_that_comes_back_is_sent_what_it_missed() {
    let (feed, _) = feed();
    let mut reader = Reader::follow(&feed, 1, None);
    let (position, _) = start(&reader.read().0);
    drop(reader);
    assert_eq!(feed.followers(), 0);
    feed.publish(&[purge(1), purge(2)], Version::from_u64(2));
    let mut reader = Reader::follow(&feed, 1, Some(position));
    let (messages, _) = reader.read();
    assert_eq!(start(&messages), (position, true));
    assert_eq!(items(&messages), [purge(1), purge(2)]);
    let elsewhere = Position { epoch: position.epoch + 1, ..position };
    assert!(!start(&Reader::follow(&feed, 2, Some(elsewhere)).read().0).1);
}

#[test]
fn a_follower_that_fell_too_far_behind_has_a_gap_and_holds_up_nobody() {
    let (feed, _) = feed_with(&FeedSettings { log_bytes_max: 10_000, ..FeedSettings::default() });
    let (mut slow, mut quick) = (Reader::follow(&feed, 1, None), Reader::follow(&feed, 2, None));
    slow.read();
    quick.read();
    for i in 1..=1000 {
        feed.publish(&[purge(i)], Version::from_u64(i));
        assert_eq!(items(&quick.read().0), [purge(i)]);
    }
    let (messages, _) = slow.read();
    assert_eq!(start(&messages), (feed.position(), false));
    assert!(items(&messages).is_empty());
    feed.publish(&[purge(1001)], Version::from_u64(1001));
    assert_eq!(items(&slow.read().0), [purge(1001)]);
}

#[test]
fn an_echo_comes_behind_what_was_queued_before_its_ping() {
    let (feed, _) = feed();
    let mut reader = Reader::follow(&feed, 1, None);
    reader.read();
    // More than one frame takes.
    let many: Vec<Item> = (1..=5000).map(purge).collect();
    feed.publish(&many, Version::from_u64(5000));
    reader.ping(77);
    let (messages, _) = reader.read();
    assert_eq!(items(&messages), many);
    let proof = Proof { age: Duration::ZERO, version: Version::from_u64(5000) };
    assert_eq!(messages.last(), Some(&Message::Echo(Echo { stamp: 77, proof: Some(proof) })));
}

#[test]
fn an_echo_counts_from_the_oldest_write_whose_purge_is_not_out() {
    let (feed, clock) = feed();
    let mut reader = Reader::follow(&feed, 1, None);
    reader.read();
    let age = |reader: &mut Reader| {
        reader.ping(1);
        echoes(&reader.read().0)[0].proof.unwrap().age
    };
    assert_eq!(age(&mut reader), Duration::ZERO);
    feed.begin();
    clock.advance(Duration::from_secs(2));
    assert_eq!(age(&mut reader), Duration::from_secs(2));
    feed.publish(&[purge(1)], Version::from_u64(1));
    assert_eq!(age(&mut reader), Duration::ZERO);
    // One that is never published, since its commit failed, is never forgotten.
    feed.begin();
    clock.advance(Duration::from_secs(1));
    feed.begin();
    clock.advance(Duration::from_secs(4));
    assert_eq!(age(&mut reader), Duration::from_secs(5));
}

#[test]
fn a_tiers_echo_counts_from_its_own_watermark_and_proves_nothing_without_one() {
    let clock = ManualClock::shared();
    let feed = Feed::new(Arc::new(Arc::clone(&clock)), &FeedSettings::default(), None);
    let mut reader = Reader::follow(&feed, 1, None);
    reader.read();
    let proof = |reader: &mut Reader| {
        reader.ping(1);
        echoes(&reader.read().0)[0].proof
    };
    assert_eq!(proof(&mut reader), None);
    feed.knows(Some((clock.now(), Version::from_u64(9))));
    clock.advance(Duration::from_secs(3));
    let expected = Proof { age: Duration::from_secs(3), version: Version::from_u64(9) };
    assert_eq!(proof(&mut reader), Some(expected));
    feed.knows(None);
    assert_eq!(proof(&mut reader), None);
}

#[test]
fn whoever_wants_all_states_gets_each() {
    let (feed, _) = feed();
    let mut reader = Reader::follow_as(&feed, Follow { follower: FollowerId(7), from: None, all_states: true });
    reader.read();
    feed.publish(&[with_state(5), with_state(6)], Version::from_u64(6));
    assert_eq!(items(&reader.read().0), [with_state(5), with_state(6)]);
}

#[test]
fn a_state_goes_to_those_who_asked_for_its_key_alone() {
    let (feed, _) = feed();
    let (mut asks, mut does_not) = (Reader::follow(&feed, 1, None), Reader::follow(&feed, 2, None));
    asks.read();
    does_not.read();
    feed.note(FollowerId(1), NAMESPACE, key(5).as_bytes());
    feed.publish(&[with_state(5), with_state(6)], Version::from_u64(6));
    assert_eq!(items(&asks.read().0), [with_state(5), purge(6)]);
    assert_eq!(items(&does_not.read().0), [purge(5), purge(6)]);
}

#[test]
fn what_a_follower_asked_for_is_remembered_over_its_next_link() {
    let (feed, _) = feed();
    let first = Reader::follow(&feed, 1, None);
    feed.note(FollowerId(1), NAMESPACE, key(5).as_bytes());
    let mut second = Reader::follow(&feed, 1, None);
    drop(first);
    second.read();
    feed.publish(&[with_state(5)], Version::from_u64(5));
    assert_eq!(items(&second.read().0), [with_state(5)]);
}

#[test]
fn a_followers_next_link_ends_the_one_before() {
    let (feed, _) = feed();
    let mut first = Reader::follow(&feed, 1, None);
    first.read();
    let mut second = Reader::follow(&feed, 1, None);
    assert!(first.read().1);
    drop(first);
    assert_eq!(feed.followers(), 1);
    second.read();
    feed.publish(&[purge(1)], Version::from_u64(1));
    assert_eq!(items(&second.read().0), [purge(1)]);
}

#[test]
fn a_busy_feed_gathers_while_it_pauses() {
    let (feed, clock) = feed();
    let mut others: Vec<Reader> = (1..500).map(|i| Reader::follow(&feed, i, None)).collect();
    others.iter_mut().for_each(|reader| _ = reader.read());
    let mut reader = Reader::follow(&feed, 0, None);
    reader.read();
    clock.advance(PAUSE_MAX);
    feed.publish(&[purge(1)], Version::from_u64(1));
    assert_eq!(items(&reader.read().0), [purge(1)], "an idle feed sends at once");
    feed.publish(&[purge(2)], Version::from_u64(2));
    feed.publish(&[purge(3)], Version::from_u64(3));
    assert!(reader.read().0.is_empty());
    clock.advance(PAUSE_MAX);
    assert_eq!(reader.read().0, [Message::Items { first: 2, items: vec![purge(2), purge(3)] }]);
}

#[test]
fn what_is_no_ping_ends_the_feed_with_an_error() {
    let (feed, _) = feed();
    let mut reader = Reader::follow(&feed, 1, None);
    reader.read();
    reader.pings.send(Ok(Bytes::from_static(&[1, 0, 0, 0, 0]))).unwrap();
    assert!(reader.frames.next().now_or_never().unwrap().unwrap().is_err());
}

#[test]
fn a_closed_feed_ends_for_all() {
    let (feed, _) = feed();
    let mut reader = Reader::follow(&feed, 1, None);
    reader.read();
    feed.close();
    assert!(reader.read().1);
    assert!(Reader::follow(&feed, 2, None).read().1);
}

#[test]
fn before_the_first_follower_nothing_is_kept() {
    let clock = ManualClock::shared();
    let feed = Feed::new(Arc::new(Arc::clone(&clock)), &FeedSettings::default(), None);
    let before = feed.position();
    feed.relay(&[purge(1), purge(2)]);
    assert_eq!(feed.position().sequence, before.sequence + 2);
    assert!(!start(&Reader::follow(&feed, 1, Some(before)).read().0).1);
}
