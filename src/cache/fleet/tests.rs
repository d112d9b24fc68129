//! The fleet over origins that do as they are told, on a clock that stands still: what its tier hears, and who is asked what.

mod asking;
mod origin;

use async_trait::async_trait;

use self::origin::{Mood, Origin, Store};
use super::*;
use crate::{
    cache::tier::{Tier, TierSettings},
    clock::ManualClock,
    error::{Error, Kind},
    kv::{
        AccountId, Answer, Change, Control, Controlled, Expires, Key, List, NamespaceId, Page, Read, Source, Value,
        Version, Via, WriteId, Writer, Written,
        feed::{FollowerId, Frames, Member},
        kept::Hit,
    },
    metrics::Metrics,
};

const NAMESPACE: NamespaceId = NamespaceId::from_u128(7);
const SECOND: Duration = Duration::from_secs(1);
const DEADLINE: Duration = Duration::from_secs(6);
const ADDRESSES: [&str; 4] = ["a:1", "b:1", "c:1", "d:1"];

fn key(text: &str) -> Key {
    Key::new(text.to_owned()).unwrap()
}

/// Lets every task that can go on do so.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// A fleet, and origins on one store at [`ADDRESSES`], the first of which it is configured with.
struct World {
    clock: Arc<ManualClock>,
    store: Arc<Store>,
    origins: Vec<Arc<Origin>>,
    fleet: Fleet,
    metrics: Metrics,
    stop: CancellationToken,
}

/// Of so many configured origins; nobody follows them yet.
fn world(configured: usize) -> World {
    let clock = ManualClock::shared();
    let store = Arc::<Store>::default();
    let origins: Vec<_> = (1..=4).map(|epoch| Origin::new(&clock, &store, epoch)).collect();
    let there = origins.clone();
    let dial: Dial = Arc::new(move |address| {
        let at = ADDRESSES.iter().position(|known| *known == address).expect("only origins are dialled");
        Arc::clone(&there[at]) as Arc<dyn Backend>
    });
    let settings = FleetSettings {
        name: "central".into(),
        deadline: DEADLINE,
        write_deadline: DEADLINE,
        feed_interval: SECOND,
        feed: FeedSettings::default(),
    };
    let addresses = ADDRESSES[..configured].iter().map(|address| (*address).to_owned()).collect();
    let metrics = Metrics::default();
    let fleet = Fleet::new(dial, addresses, Arc::new(Arc::clone(&clock)), settings, metrics.fleet("central"));
    World { clock, store, origins, fleet, metrics, stop: CancellationToken::new() }
}

/// A world whose first origins know each other, are followed, and have echoed.
async fn following(count: usize) -> World {
    let world = world(count);
    let list: Vec<_> = (1..).zip(ADDRESSES).take(count).collect();
    world.origins[..count].iter().for_each(|origin| origin.process().lists(count as u64, &list));
    tokio::spawn(world.fleet.clone().run(world.stop.clone()));
    settle().await;
    world.pass(SECOND).await;
    assert!(world.age() <= SECOND / 4, "{:?}", world.age());
    world
}

impl World {
    /// Time goes on, a little at a time, so that pings are answered when they are sent.
    async fn pass(&self, time: Duration) {
        for _ in 0..20 {
            self.clock.advance(time / 20);
            settle().await;
        }
    }

    fn now(&self) -> crate::clock::Moment {
        self.clock.now()
    }

    /// How old the fleet's watermark is; a century for none.
    fn age(&self) -> Duration {
        let watermark = self.fleet.roster().watermark();
        watermark.map_or(100 * 365 * 24 * 3600 * SECOND, |(moment, _)| self.now().since(moment))
    }

    fn gaps(&self) -> u64 {
        self.fleet.0.feed.counts().gaps
    }

    fn tier(&self) -> Tier {
        let settings = TierSettings {
            name: "central".into(),
            cache_bytes: 64 << 20,
            cache_share_max: 0.1,
            stale_if_unreachable: 3600 * SECOND,
            upstream_deadline: DEADLINE,
            stale_after: SECOND,
            refills: 32,
            feed_interval: SECOND,
            feed: FeedSettings::default(),
        };
        let tier =
            Tier::new(Arc::new(self.fleet.clone()), "the origins".into(), Arc::new(Arc::clone(&self.clock)), settings);
        tokio::spawn(tier.clone().follow(self.stop.clone()));
        tier
    }
}

fn within_age(seconds: u64) -> Read {
    Read { max_age: Duration::from_secs(seconds), ..Read::default() }
}

/// What a tier above the fleet reads, and its age.
async fn read(tier: &Tier, name: &str) -> (Option<Version>, Duration) {
    let answer = tier.get(NAMESPACE, &key(name), &within_age(60)).await.expect("the read is answered");
    (Some(answer.version).filter(|version| *version != Version::ZERO), answer.age)
}

#[tokio::test]
async fn a_tier_hears_the_purges_of_all_origins() {
    let world = following(2).await;
    let tier = world.tier();
    world.pass(2 * SECOND).await;
    for origin in &world.origins[..2] {
        for name in ["k", "l"] {
            read(&tier, name).await;
            let version = origin.change(name, "new");
            settle().await;
            assert_eq!(read(&tier, name).await.0, Some(version));
        }
    }
    let asked = world.origins.iter().map(|origin| origin.asked()).sum::<usize>();
    world.pass(30 * SECOND).await;
    for name in ["k", "l"] {
        let (_, age) = read(&tier, name).await;
        assert!(age <= SECOND + SECOND / 2, "{age:?}");
    }
    assert_eq!(world.origins.iter().map(|origin| origin.asked()).sum::<usize>(), asked);
}

#[tokio::test]
async fn the_watermark_stops_while_an_origin_is_away_and_goes_on_without_a_gap() {
    let world = following(2).await;
    let tier = world.tier();
    world.pass(2 * SECOND).await;
    read(&tier, "k").await;
    let gaps = world.gaps();
    world.origins[1].is(Mood::Gone);
    world.origins[1].process().break_links();
    let version = world.origins[1].change("k", "new");
    world.pass(10 * SECOND).await;
    assert!(world.age() >= 9 * SECOND && tier.feed_age().is_some_and(|age| age >= 9 * SECOND));
    world.origins[1].is(Mood::Well);
    world.pass(4 * SECOND).await;
    assert!(world.age() <= SECOND / 2 && tier.feed_age().is_some_and(|age| age <= 2 * SECOND));
    assert_eq!((read(&tier, "k").await.0, world.gaps()), (Some(version), gaps));
}

#[tokio::test]
async fn a_silent_origin_is_noticed_and_followed_again_from_where_it_was() {
    let world = following(2).await;
    let (gaps, member, process) = (world.gaps(), Arc::clone(&world.fleet.members()[1]), world.origins[1].process());
    assert!(member.is_up() && process.followed.lock().unwrap().len() == 1);
    process.silent.store(true, std::sync::atomic::Ordering::SeqCst);
    world.pass(SECOND).await;
    world.pass(SECOND / 2).await;
    assert!(member.is_up(), "it may be slow");
    world.pass(SECOND).await;
    assert!(!member.is_up() && world.age() >= 2 * SECOND);
    process.silent.store(false, std::sync::atomic::Ordering::SeqCst);
    process.lists(2, &[(1, ADDRESSES[0]), (2, ADDRESSES[1])]);
    world.pass(5 * SECOND).await;
    assert!(member.is_up() && world.age() <= SECOND / 2 && world.gaps() == gaps);
    let followed = process.followed.lock().unwrap();
    let from = followed.last().and_then(|follow| follow.from).map(|from| (from.epoch, from.sequence));
    assert!(followed.len() > 1 && from == Some((2, 0)), "{followed:?}");
}

#[tokio::test]
async fn origins_are_pinged_more_often_than_a_tier_pings() {
    let world = following(2).await;
    let before = world.origins[0].process().pings.load(std::sync::atomic::Ordering::SeqCst);
    for _ in 0..10 {
        world.pass(SECOND).await;
    }
    let pings = world.origins[0].process().pings.load(std::sync::atomic::Ordering::SeqCst) - before;
    assert!((36..=44).contains(&pings), "{pings} pings in ten intervals");
}

#[tokio::test]
async fn a_newcomer_is_found_followed_from_its_beginning_and_asked() {
    let world = following(2).await;
    let tier = world.tier();
    world.pass(2 * SECOND).await;
    read(&tier, "k").await;
    let gaps = world.gaps();
    let version = world.origins[2].change("k", "new");
    let list = [(1, ADDRESSES[0]), (2, ADDRESSES[1]), (3, ADDRESSES[2])];
    world.origins[..3].iter().for_each(|origin| origin.process().lists(3, &list));
    world.pass(2 * SECOND).await;
    assert_eq!((read(&tier, "k").await.0, world.gaps()), (Some(version), gaps));
    assert!(world.age() <= SECOND / 2, "{:?}", world.age());
    assert_eq!(world.fleet.members().len(), 3);
    for i in 0..60 {
        read(&tier, &format!("cold {i}")).await;
    }
    assert!(world.origins[2].asked() > 5);
    // It leaves again, and is forgotten.
    world.origins[2].process().ends();
    world.origins[..2].iter().for_each(|origin| origin.process().lists(3, &list[..2]));
    world.pass(2 * SECOND).await;
    assert_eq!((world.fleet.members().len(), world.gaps()), (2, gaps));
    assert!(world.age() <= SECOND / 2);
    assert!(!world.metrics.render().contains(ADDRESSES[2]));
}

#[tokio::test]
async fn origins_that_are_replaced_one_by_one_leave_no_gap() {
    let world = following(2).await;
    let tier = world.tier();
    world.pass(2 * SECOND).await;
    read(&tier, "k").await;
    let (gaps, asked) = (world.gaps(), world.origins.iter().map(|origin| origin.asked()).sum::<usize>());
    let (mut epochs, mut joined) = ([1, 2], 2);
    for round in 0..6 {
        let at = round % 2;
        world.origins[at].process().ends();
        settle().await;
        joined += 1;
        epochs[at] = joined;
        let list: Vec<_> = epochs.into_iter().zip(ADDRESSES).collect();
        let next = world.origins[at].restart(joined);
        next.lists(joined, &list);
        world.origins[1 - at].process().lists(joined, &list);
        world.pass(5 * SECOND).await;
        assert!(world.age() <= SECOND / 2, "{:?}", world.age());
    }
    assert!(read(&tier, "k").await.1 <= 2 * SECOND);
    assert_eq!(world.gaps(), gaps);
    assert_eq!(world.origins.iter().map(|origin| origin.asked()).sum::<usize>(), asked);
}

#[tokio::test]
async fn an_origin_that_died_is_a_gap_once_the_others_have_taken_it_off_the_list() {
    let world = following(2).await;
    let tier = world.tier();
    world.pass(2 * SECOND).await;
    let first = world.origins[0].change("k", "old");
    assert_eq!(read(&tier, "k").await.0, Some(first));
    let gaps = world.gaps();
    // Its last purge never comes.
    world.origins[1].is(Mood::Gone);
    let version = world.origins[1].store.last.load(std::sync::atomic::Ordering::SeqCst);
    world.origins[1].change("k", "new");
    world.origins[1].restart(9);
    world.pass(10 * SECOND).await;
    let (_, age) = read(&tier, "k").await;
    assert!(age >= 9 * SECOND && world.gaps() == gaps, "{age:?}");
    world.origins[0].process().lists(2, &[(1, ADDRESSES[0])]);
    world.pass(3 * SECOND).await;
    assert_eq!(world.gaps(), gaps + 1);
    let answer = tier.get(NAMESPACE, &key("k"), &within_age(8)).await.unwrap();
    assert!(answer.version.as_u64() > version && world.age() <= SECOND / 2);
}

#[tokio::test]
async fn a_tier_is_told_of_a_gap_before_anything_new_is_proven() {
    let world = following(2).await;
    let follow = Follow { follower: FollowerId(1), from: None, all_states: false };
    let (pings, unsent) = tokio::sync::mpsc::channel(4);
    let unsent = tokio_stream(unsent);
    let mut frames = world.fleet.follow(follow, unsent).await.unwrap();
    let mut decoder = crate::wire::feed::Decoder::default();
    world.origins[1].process().says(crate::kv::feed::Item::Gap);
    settle().await;
    pings.send(crate::wire::feed::encode_ping(1)).await.unwrap();
    let mut said = Vec::new();
    while said.len() < 3 {
        decoder.add(&futures_util::StreamExt::next(&mut frames).await.unwrap().unwrap());
        while let Some(message) = decoder.message().unwrap() {
            said.push(message);
        }
    }
    let gap = matches!(&said[1], Message::Items { items, .. } if items[..] == [crate::kv::feed::Item::Gap]);
    let nothing = matches!(&said[2], Message::Echo(echo) if echo.proof.is_none());
    assert!(gap && nothing, "{said:?}");
}

fn tokio_stream(mut receiver: tokio::sync::mpsc::Receiver<bytes::Bytes>) -> Frames {
    let polled = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx).map(|ping| ping.map(Ok)));
    futures_util::StreamExt::boxed(polled)
}

#[tokio::test]
async fn the_fleets_feed_ends_when_it_is_stopped() {
    let world = following(2).await;
    let pings = futures_util::StreamExt::boxed(futures_util::stream::pending());
    let mut frames =
        world.fleet.follow(Follow { follower: FollowerId(1), from: None, all_states: false }, pings).await.unwrap();
    futures_util::StreamExt::next(&mut frames).await.expect("its start").unwrap();
    world.stop.cancel();
    settle().await;
    assert!(futures_util::StreamExt::next(&mut frames).await.is_none());
    let pings = world.origins[0].process().pings.load(std::sync::atomic::Ordering::SeqCst);
    world.pass(5 * SECOND).await;
    assert_eq!(world.origins[0].process().pings.load(std::sync::atomic::Ordering::SeqCst), pings);
}
