//! The tier as a follower of a feed that says what it is told to.

use super::*;
use crate::kv::{
    Expires,
    feed::{Echo, Item, Member, Members, Message, Position, Proof, Purge, Pushed},
    kept::Hit,
};

/// A world whose tier follows, and has heard its first echo.
async fn following() -> World {
    let world = world();
    world.upstream.feed.knows_all(Version::from_u64(world.upstream.last.load(Ordering::SeqCst)));
    world.follow();
    settle().await;
    assert_eq!(world.tier.feed_age(), Some(Duration::ZERO));
    // What is asked for in the very instant of the continuity's start is not covered by it.
    world.clock.advance(Duration::from_nanos(1));
    world
}

impl World {
    fn follow(&self) {
        tokio::spawn(self.tier.clone().follow(Default::default()));
    }

    /// Time goes on, a little at a time, so that pings are answered when they are sent.
    async fn pass(&self, time: Duration) {
        for _ in 0..10 {
            self.clock.advance(time / 10);
            settle().await;
        }
    }

    /// A write elsewhere, and its purge.
    async fn change(&self, name: &str, value: Option<&'static [u8]>, state: bool) -> Version {
        self.upstream.feed.begin();
        let version = self.upstream.set(&key(name), value, None);
        let state = state.then(|| match value {
            None => Pushed::Absent,
            Some(value) => {
                Pushed::Present { value: Bytes::from_static(value), metadata: None, expiration: None, time_left: None }
            }
        });
        let purge = Purge { namespace: NAMESPACE, key: key(name), version, state };
        self.upstream.feed.publish(&[Item::Purge(purge)], version);
        settle().await;
        version
    }

    fn gap(&self) {
        self.upstream.feed.relay(&[Item::Gap]);
    }
}

fn value(text: &'static str) -> Option<Bytes> {
    Some(Bytes::from_static(text.as_bytes()))
}

#[tokio::test]
async fn what_is_not_purged_stays_fresh_without_a_question() {
    let world = following().await;
    world.upstream.set(&key("k"), Some(b"v"), None);
    world.read("k", within_age(30)).await;
    for _ in 0..100 {
        world.pass(SECOND).await;
        let (found, status, age) = world.read("k", within_age(5)).await;
        assert_eq!((found, status), (value("v"), CacheStatus::Hit));
        assert!(age <= SECOND, "{age:?}");
    }
    assert_eq!(world.upstream.asked(), 1);
}

#[tokio::test]
async fn a_purged_key_is_asked_for_anew() {
    let world = following().await;
    world.upstream.set(&key("k"), Some(b"old"), None);
    world.read("k", within_age(30)).await;
    world.change("k", Some(b"new"), false).await;
    assert_eq!(world.read("k", within_age(3600)).await.0, value("new"));
    world.change("k", None, false).await;
    assert_eq!(world.read("k", within_age(3600)).await.0, None);
}

#[tokio::test]
async fn what_was_read_lately_is_asked_for_again_when_a_purge_takes_it() {
    let world = following().await;
    world.upstream.set(&key("read"), Some(b"old"), None);
    world.upstream.set(&key("unread"), Some(b"old"), None);
    for name in ["read", "unread"] {
        world.read(name, within_age(30)).await;
    }
    world.pass(USED_LATELY + 3 * SECOND).await;
    world.read("read", within_age(30)).await;
    let asked = world.upstream.asked();
    for name in ["read", "unread"] {
        world.change(name, Some(b"new"), false).await;
    }
    world.pass(REFETCH_SPREAD * 2).await;
    assert_eq!(world.upstream.asked(), asked + 1);
    let (found, status, _) = world.read("read", within_age(30)).await;
    assert_eq!((found, status), (value("new"), CacheStatus::Hit));
    assert_eq!(world.read("unread", within_age(30)).await.1, CacheStatus::Miss);
}

#[tokio::test]
async fn a_state_that_came_along_replaces_what_is_held_and_makes_nothing() {
    let world = following().await;
    world.upstream.set(&key("held"), Some(b"old"), None);
    world.read("held", within_age(30)).await;
    world.change("held", Some(b"new"), true).await;
    world.change("other", Some(b"new"), true).await;
    let asked = world.upstream.asked();
    let (found, status, age) = world.read("held", within_age(30)).await;
    assert_eq!((found, status), (value("new"), CacheStatus::Hit));
    assert!(age <= SECOND, "{age:?}");
    assert_eq!(world.upstream.asked(), asked);
    assert_eq!(world.read("other", within_age(30)).await.1, CacheStatus::Miss);
    world.pass(5 * SECOND).await;
    let (_, status, age) = world.read("held", within_age(3)).await;
    assert!(status == CacheStatus::Hit && age <= SECOND, "{status:?} {age:?}");
}

#[tokio::test]
async fn a_state_that_came_along_is_dated_from_the_watermark_and_its_time_left_from_the_ping() {
    let world = following().await;
    world.upstream.set(&key("k"), Some(b"old"), None);
    world.read("k", within_age(30)).await;
    world.pass(SECOND).await;
    world.clock.advance(SECOND / 2);
    let version = world.upstream.set(&key("k"), Some(b"new"), Some(10 * SECOND));
    let state = Pushed::Present {
        value: Bytes::from_static(b"new"),
        metadata: None,
        expiration: None,
        time_left: Some(10 * SECOND),
    };
    let purge = Purge { namespace: NAMESPACE, key: key("k"), version, state: Some(state) };
    world.upstream.feed.publish(&[Item::Purge(purge)], version);
    settle().await;
    let answer = world.tier.get(NAMESPACE, &key("k"), &within_age(30)).await.unwrap();
    assert_eq!((answer.status, answer.age), (CacheStatus::Hit, SECOND / 2));
    let State::Present(entry) = answer.state else { panic!("it is there") };
    assert_eq!(entry.time_left, Some(10 * SECOND - SECOND / 2));
}

/// As upstream's answers are while it has heard no echo for a while.
#[tokio::test]
async fn what_was_current_before_the_continuity_is_covered_if_upstreams_feed_covers_it() {
    for covered in [true, false] {
        let world = following().await;
        world.upstream.set(&key("k"), Some(b"v"), None);
        *world.upstream.age.lock().unwrap() = 2 * SECOND;
        *world.upstream.covered.lock().unwrap() = covered;
        let answer = world.tier.get(NAMESPACE, &key("k"), &within_age(30)).await.unwrap();
        assert_eq!((answer.age, answer.covered), (2 * SECOND, covered));
        world.pass(5 * SECOND).await;
        let answer = world.tier.get(NAMESPACE, &key("k"), &within_age(30)).await.unwrap();
        let expected = if covered { Duration::ZERO..=SECOND } else { 7 * SECOND..=7 * SECOND };
        assert!(expected.contains(&answer.age) && answer.covered == covered, "{answer:?}");
        world.gap();
        settle().await;
        let answer = world.tier.get(NAMESPACE, &key("k"), &within_age(30)).await.unwrap();
        assert!(!answer.covered, "{answer:?}");
    }
}

#[tokio::test]
async fn an_answer_that_a_purge_overtook_is_neither_kept_nor_given_to_those_who_asked_after_it() {
    let world = following().await;
    world.upstream.set(&key("k"), Some(b"old"), None);
    let held_up = world.upstream.hold_up();
    let before = world.reading("k", within_age(30));
    settle().await;
    *world.upstream.held_up.lock().unwrap() = None;
    world.change("k", Some(b"new"), false).await;
    let after = world.reading("k", within_age(30));
    settle().await;
    held_up.notify_waiters();
    assert_eq!(before.await.unwrap().unwrap().0, value("new"));
    assert_eq!(after.await.unwrap().unwrap().0, value("new"));
    assert_eq!(world.read("k", within_age(3600)).await.0, value("new"));
}

/// The write's acknowledgement is on its way back when the purge of a later write passes it.
#[tokio::test]
async fn a_written_value_that_a_purge_overtook_is_not_kept() {
    let world = following().await;
    let ticket = world.tier.0.flights.write(&EntryKey { namespace: NAMESPACE, key: key("k") });
    let earlier = world.upstream.set(&key("k"), Some(b"mine"), None);
    world.change("k", Some(b"theirs"), false).await;
    let written = Written { version: earlier, expiration: None, time_left: None };
    let copy = WrittenCopy::Whole { value: KeptValue::Whole(Bytes::from_static(b"mine")), metadata: None };
    world.tier.keep_written(&ticket, &written, copy, world.clock.now());
    world.pass(3 * SECOND).await;
    assert_eq!(world.read("k", within_age(3600)).await.0, value("theirs"));
}

#[tokio::test]
async fn a_gap_ends_what_the_feed_covers_and_not_what_it_had_proven() {
    let world = following().await;
    world.upstream.set(&key("k"), Some(b"v"), None);
    world.read("k", within_age(30)).await;
    world.pass(10 * SECOND).await;
    world.gap();
    world.pass(3 * SECOND).await;
    let (_, status, age) = world.read("k", within_age(30)).await;
    assert_eq!(status, CacheStatus::Hit);
    assert!(age >= 3 * SECOND && age <= 4 * SECOND, "{age:?}");
    let asked = world.upstream.asked();
    world.pass(SECOND).await;
    assert_eq!(world.read("k", within_age(2)).await.1, CacheStatus::Revalidated);
    assert_eq!(world.upstream.asked(), asked + 1);
    world.pass(10 * SECOND).await;
    let (_, status, age) = world.read("k", within_age(2)).await;
    assert!(status == CacheStatus::Hit && age <= SECOND, "{status:?} {age:?}");
}

/// Both come in one frame, and no time passes in between.
#[tokio::test]
async fn a_state_that_came_along_just_before_a_gap_is_not_covered_after_it() {
    let world = following().await;
    world.upstream.set(&key("k"), Some(b"old"), None);
    world.read("k", within_age(30)).await;
    world.pass(SECOND).await;
    let version = world.upstream.set(&key("k"), Some(b"new"), None);
    let new = Bytes::from_static(b"new");
    let state = Some(Pushed::Present { value: new, metadata: None, expiration: None, time_left: None });
    let purge = Purge { namespace: NAMESPACE, key: key("k"), version, state };
    world.upstream.feed.publish(&[Item::Purge(purge), Item::Gap], version);
    settle().await;
    world.pass(10 * SECOND).await;
    let (found, _, age) = world.read("k", within_age(30)).await;
    assert_eq!(found, value("new"));
    assert!(age >= 10 * SECOND, "{age:?}");
}

#[tokio::test]
async fn a_lost_link_that_can_be_resumed_leaves_no_gap() {
    let world = following().await;
    world.upstream.set(&key("k"), Some(b"old"), None);
    world.upstream.set(&key("other"), Some(b"v"), None);
    for name in ["k", "other"] {
        world.read(name, within_age(30)).await;
    }
    world.upstream.fail(Some(Kind::Unreachable));
    // Another link of the same follower ends this one.
    let follow = Follow { follower: world.tier.follower(), from: None, all_states: false };
    drop(world.upstream.feed.follow(follow, futures_util::stream::pending().boxed()));
    settle().await;
    world.change("k", Some(b"new"), false).await;
    world.pass(10 * SECOND).await;
    world.upstream.fail(None);
    world.pass(5 * SECOND).await;
    let asked = world.upstream.asked();
    let (found, status, age) = world.read("other", within_age(30)).await;
    assert_eq!((found, status), (value("v"), CacheStatus::Hit));
    assert!(age <= SECOND, "{age:?}");
    assert_eq!(world.upstream.asked(), asked);
    assert_eq!(world.read("k", within_age(3600)).await.0, value("new"));
}

/// The feed says nothing, but its link is not known to be broken.
#[tokio::test]
async fn a_silent_link_is_given_up_within_three_intervals() {
    struct Mute(AtomicUsize);
    let mute = Arc::new(Mute(AtomicUsize::new(0)));

    #[async_trait]
    impl Source for Mute {
        fn held(&self, _: NamespaceId, _: &[u8], _: &Read) -> Option<Hit> {
            None
        }

        async fn get(&self, _: NamespaceId, _: &Key, _: &Read) -> Result<Answer> {
            Err(Error::unavailable("mute"))
        }

        async fn list(&self, _: NamespaceId, _: &List) -> Result<Page> {
            Err(Error::unavailable("mute"))
        }

        async fn follow(&self, _: Follow, _: Frames) -> Result<Frames> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Ok(futures_util::stream::pending().boxed())
        }
    }

    #[async_trait]
    impl Writer for Mute {
        async fn write(&self, _: NamespaceId, _: &Key, _: Change, _: Via) -> Result<Written> {
            Err(Error::unavailable("mute"))
        }

        async fn write_many(&self, _: NamespaceId, _: Vec<(Key, Change)>, _: Via) -> Result<Vec<Result<Written>>> {
            Err(Error::unavailable("mute"))
        }

        async fn control(&self, _: AccountId, _: Control) -> Result<(Controlled, Version)> {
            Err(Error::unavailable("mute"))
        }
    }

    let clock = ManualClock::shared();
    let settings = world().tier.settings().clone();
    let tier = Tier::new(Arc::clone(&mute) as _, "upstream".into(), Arc::new(Arc::clone(&clock)), settings);
    tokio::spawn(tier.follow(Default::default()));
    settle().await;
    assert_eq!(mute.0.load(Ordering::SeqCst), 1);
    for _ in 0..32 {
        clock.advance(SECOND / 10);
        settle().await;
    }
    assert_eq!(mute.0.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_version_that_the_feed_covers_needs_no_question() {
    let world = following().await;
    world.upstream.set(&key("k"), Some(b"v"), None);
    world.read("k", within_age(30)).await;
    let version = world.change("other", Some(b"x"), false).await;
    let read = Read { at_least: Some(version), ..within_age(30) };
    let asked = world.upstream.asked();
    assert_eq!(world.read("k", read.clone()).await.1, CacheStatus::Revalidated);
    let later = world.change("other", Some(b"y"), false).await;
    world.pass(2 * SECOND).await;
    let read = Read { at_least: Some(later), ..read };
    assert_eq!(world.read("k", read.clone()).await.1, CacheStatus::Hit);
    assert_eq!(world.upstream.asked(), asked + 1);
    world.gap();
    settle().await;
    assert_eq!(world.read("k", read).await.1, CacheStatus::Revalidated);
}

#[tokio::test]
async fn a_removed_namespace_is_held_no_more() {
    let world = following().await;
    world.upstream.set(&key("k"), Some(b"v"), None);
    world.read("k", within_age(30)).await;
    let version = world.upstream.set(&key("k"), None, None);
    let other = NamespaceId::from_u128(8);
    world.upstream.feed.relay(&[Item::Namespace { namespace: other, version }]);
    settle().await;
    assert_eq!(world.read("k", within_age(3600)).await.0, value("v"));
    world.upstream.feed.relay(&[Item::Namespace { namespace: NAMESPACE, version }]);
    settle().await;
    assert_eq!(world.read("k", within_age(3600)).await.0, None);
}

/// What a tier relays, as a follower of its own hears it.
#[tokio::test]
async fn a_purge_is_relayed_after_it_was_applied_and_a_gap_is_passed_on() {
    let world = following().await;
    world.upstream.set(&key("k"), Some(b"old"), None);
    world.read("k", within_age(30)).await;
    let below = Tier::new(
        Arc::new(world.tier.clone()),
        "edge".into(),
        Arc::new(Arc::clone(&world.clock)),
        world.tier.settings().clone(),
    );
    tokio::spawn(below.clone().follow(Default::default()));
    // What is learnt in the very moment of a feed's start is not covered by it.
    world.pass(SECOND).await;
    below.get(NAMESPACE, &key("k"), &within_age(30)).await.unwrap();
    world.pass(2 * SECOND).await;
    assert!(below.feed_age().unwrap() <= 2 * SECOND);
    let version = world.change("k", Some(b"new"), true).await;
    settle().await;
    let hit = below.held(NAMESPACE, b"k", &within_age(30)).expect("the new state came along");
    assert_eq!(hit.kept.version(), version);
    world.gap();
    settle().await;
    assert_eq!(below.feed_age(), None);
    world.pass(3 * SECOND).await;
    assert!(below.feed_age().is_some());
}

/// What a tier wrote it never asked for, and still has use for its next states; so have those above it, for its sake.
#[tokio::test]
async fn a_state_comes_along_to_those_that_wrote_an_earlier_one() {
    let world = following().await;
    let settings = world.tier.settings().clone();
    let below = Tier::new(Arc::new(world.tier.clone()), "edge".into(), Arc::new(Arc::clone(&world.clock)), settings);
    tokio::spawn(below.clone().follow(Default::default()));
    world.pass(SECOND).await;
    let mine = Value::Whole(Bytes::from_static(b"mine"));
    let put = Change::Put { value: mine, metadata: None, expires: Expires::Never };
    below.write(NAMESPACE, &key("k"), put, Via::default()).await.unwrap();
    world.pass(2 * SECOND).await;
    let version = world.change("k", Some(b"theirs"), true).await;
    settle().await;
    for tier in [&world.tier, &below] {
        let hit = tier.held(NAMESPACE, b"k", &within_age(30)).expect("the new state came along");
        assert_eq!(hit.kept.version(), version);
    }
    assert_eq!(world.upstream.asked(), 0);
}

/// What the others change is not in its feed.
#[tokio::test]
async fn the_feed_of_one_of_several_origins_proves_nothing() {
    let world = world();
    let mut place = crate::cache::follow::Place::default();
    let mut say = |message| world.tier.take_message(message, &mut place);
    let echo = || {
        let proof = Some(Proof { age: Duration::ZERO, version: Version::ZERO });
        Message::Echo(Echo { stamp: world.clock.now().as_nanos(), proof })
    };
    let members = |joined, count| {
        let list = (0..count).map(|epoch| Member { epoch, address: format!("origin-{epoch}:7000") }).collect();
        Message::Members(Members { joined, list })
    };
    let gaps = || world.tier.feed().counts().gaps;
    let start = |epoch, resumed| Message::Start { position: Position { epoch, sequence: 5 }, resumed };
    say(start(1, false));
    say(members(1, 1));
    say(echo());
    assert_eq!(world.tier.feed_age(), Some(Duration::ZERO));
    say(members(2, 2));
    world.clock.advance(5 * SECOND);
    say(echo());
    assert_eq!(world.tier.feed_age(), Some(5 * SECOND));
    // The other one has left; what it changed was not heard.
    let before = gaps();
    say(members(2, 1));
    assert_eq!((world.tier.feed_age(), gaps()), (None, before + 1));
    say(echo());
    assert_eq!(world.tier.feed_age(), Some(Duration::ZERO));
    // The link was lost, and somebody came and went; or nobody did.
    for (joined, missed) in [(2, 0), (3, 1)] {
        let before = gaps();
        say(start(1, true));
        say(members(joined, 1));
        assert_eq!((world.tier.feed_age().is_none(), gaps()), (missed == 1, before + missed));
    }
    // Another origin, alone on its store.
    say(members(5, 2));
    say(start(9, false));
    say(echo());
    assert_eq!(world.tier.feed_age(), Some(Duration::ZERO));
}
