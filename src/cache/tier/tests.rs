//! The tier's rules, each as a claim, against an upstream that does as it is told on a clock that stands still.

mod feed;
mod upstream;

use std::{
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use futures_util::StreamExt;
use tokio::sync::Notify;

use self::upstream::Upstream;
use super::*;
use crate::{clock::ManualClock, limits::CHUNK_BYTES};

const NAMESPACE: NamespaceId = NamespaceId::from_u128(7);
const TRIP: Duration = Duration::from_millis(80);
const SECOND: Duration = Duration::from_secs(1);

struct World {
    clock: Arc<ManualClock>,
    upstream: Arc<Upstream>,
    tier: Tier,
}

fn world() -> World {
    world_with(|_| {})
}

fn world_with(change: impl FnOnce(&mut TierSettings)) -> World {
    let clock = ManualClock::shared();
    let upstream = Upstream::new(&clock);
    let mut settings = TierSettings {
        name: "edge".into(),
        cache_bytes: 64 << 20,
        cache_share_max: 0.1,
        stale_if_unreachable: Duration::from_secs(24 * 3600),
        upstream_deadline: 5 * SECOND,
        stale_after: SECOND,
        refills: 32,
        feed_interval: SECOND,
        feed: FeedSettings::default(),
    };
    change(&mut settings);
    let tier =
        Tier::new(Arc::clone(&upstream) as Arc<dyn Backend>, "upstream".into(), Arc::new(Arc::clone(&clock)), settings);
    World { clock, upstream, tier }
}

fn key(text: &str) -> Key {
    Key::new(text.to_owned()).unwrap()
}

fn within_age(seconds: u64) -> Read {
    Read { max_age: Duration::from_secs(seconds), ..Read::default() }
}

/// Lets every task that can go on do so.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

impl World {
    async fn read(&self, name: &str, read: Read) -> (Option<Bytes>, CacheStatus, Duration) {
        self.try_read(name, read).await.expect("the read is answered")
    }

    async fn try_read(&self, name: &str, read: Read) -> Result<(Option<Bytes>, CacheStatus, Duration)> {
        let answer = self.tier.get(NAMESPACE, &key(name), &read).await?;
        let value = match answer.state {
            State::Present(entry) => Some(entry.value.collect(u64::MAX).await?),
            _ => None,
        };
        Ok((value, answer.status, answer.age))
    }

    /// A read in the background, out until upstream lets it go.
    fn reading(&self, name: &str, read: Read) -> tokio::task::JoinHandle<Result<(Option<Bytes>, CacheStatus)>> {
        let (tier, name) = (self.tier.clone(), key(name));
        tokio::spawn(async move {
            let answer = tier.get(NAMESPACE, &name, &read).await?;
            Ok(match answer.state {
                State::Present(entry) => (Some(entry.value.collect(u64::MAX).await?), answer.status),
                _ => (None, answer.status),
            })
        })
    }

    async fn put(&self, name: &str, value: &'static [u8]) -> Written {
        let change =
            Change::Put { value: Bytes::from_static(value).into(), metadata: None, expires: crate::kv::Expires::Never };
        self.tier.write(NAMESPACE, &key(name), change, Via::default()).await.expect("the write is taken")
    }
}

#[tokio::test]
async fn a_second_read_is_a_hit_with_the_age_of_the_first_ones_proof() {
    let w = world();
    w.upstream.set(&key("k"), Some(b"v"), None);
    *w.upstream.age.lock().unwrap() = 2 * SECOND;
    assert_eq!(w.read("k", within_age(60)).await, (Some("v".into()), CacheStatus::Miss, 2 * SECOND));
    w.clock.advance(3 * SECOND);
    assert_eq!(w.read("k", within_age(60)).await, (Some("v".into()), CacheStatus::Hit, 5 * SECOND));
    assert_eq!(w.upstream.asked(), 1);
}

#[tokio::test]
async fn an_answer_is_dated_from_when_its_question_was_sent() {
    let w = world();
    w.upstream.set(&key("k"), Some(b"v"), None);
    let gate = w.upstream.hold_up();
    let reading = w.reading("k", within_age(60));
    settle().await;
    w.clock.advance(TRIP);
    gate.notify_one();
    reading.await.unwrap().unwrap();
    assert_eq!(w.read("k", within_age(60)).await.2, TRIP);
}

#[tokio::test]
async fn an_absent_key_is_kept_like_a_present_one() {
    let w = world();
    assert_eq!(w.read("k", within_age(60)).await.1, CacheStatus::Miss);
    w.upstream.set(&key("k"), Some(b"v"), None);
    assert_eq!(w.read("k", within_age(60)).await.0, None);
    w.clock.advance(61 * SECOND);
    assert_eq!(w.read("k", within_age(60)).await.0, Some("v".into()));
}

#[tokio::test]
async fn max_age_belongs_to_the_read_and_not_to_the_entry() {
    let w = world();
    w.upstream.set(&key("k"), Some(b"1"), None);
    w.read("k", within_age(3600)).await;
    w.clock.advance(40 * SECOND);
    w.upstream.set(&key("k"), Some(b"2"), None);
    assert_eq!(w.read("k", within_age(3600)).await.0, Some("1".into()));
    assert_eq!(w.read("k", within_age(30)).await, (Some("2".into()), CacheStatus::Expired, Duration::ZERO));
}

#[tokio::test]
async fn an_unchanged_entry_is_renewed_without_its_value_travelling() {
    let w = world();
    let version = w.upstream.set(&key("k"), Some(b"v"), None);
    w.read("k", within_age(60)).await;
    w.clock.advance(61 * SECOND);
    assert_eq!(w.read("k", within_age(60)).await, (Some("v".into()), CacheStatus::Revalidated, Duration::ZERO));
    assert_eq!(w.upstream.questions.lock().unwrap()[1].held, Some(crate::kv::Held { version, present: true }));
    assert_eq!(w.read("k", within_age(60)).await.1, CacheStatus::Hit);
}

#[tokio::test]
async fn the_question_upstream_asks_for_a_share_of_the_reads_age() {
    let w = world();
    w.read("k", within_age(60)).await;
    assert_eq!(w.upstream.questions.lock().unwrap()[0].max_age, 30 * SECOND);
}

#[tokio::test]
async fn an_answer_too_old_for_its_reader_is_asked_for_again_as_the_latest() {
    let w = world();
    w.upstream.set(&key("k"), Some(b"v"), None);
    *w.upstream.age.lock().unwrap() = 100 * SECOND;
    w.read("k", within_age(60)).await;
    let asked = w.upstream.questions.lock().unwrap().clone();
    assert_eq!(asked.iter().map(|read| read.max_age).collect::<Vec<_>>(), [30 * SECOND, Duration::ZERO]);
}

#[tokio::test]
async fn the_latest_is_never_answered_from_memory_nor_shared_with_a_question_already_out() {
    let w = world();
    w.upstream.set(&key("k"), Some(b"1"), None);
    w.read("k", within_age(60)).await;
    let gate = w.upstream.hold_up();
    let first = w.reading("k", Read::latest());
    settle().await;
    w.upstream.set(&key("k"), Some(b"2"), None);
    let second = w.reading("k", Read::latest());
    settle().await;
    assert_eq!(w.upstream.waiting.load(Ordering::SeqCst), 2);
    gate.notify_waiters();
    *w.upstream.held_up.lock().unwrap() = None;
    first.await.unwrap().unwrap();
    assert_eq!(second.await.unwrap().unwrap().0, Some("2".into()));
}

#[tokio::test]
async fn many_readers_of_one_key_are_one_question() {
    let w = world();
    w.upstream.set(&key("k"), Some(b"v"), None);
    let gate = w.upstream.hold_up();
    let readers: Vec<_> = (0..20).map(|_| w.reading("k", within_age(60))).collect();
    settle().await;
    assert_eq!(w.upstream.asked(), 1);
    gate.notify_waiters();
    for reader in readers {
        assert_eq!(reader.await.unwrap().unwrap().0, Some("v".into()));
    }
}

#[tokio::test]
async fn a_stricter_reader_asks_for_itself() {
    let w = world();
    let gate = w.upstream.hold_up();
    let weak = w.reading("k", within_age(60));
    settle().await;
    let strict = w.reading("k", within_age(30));
    settle().await;
    assert_eq!(w.upstream.asked(), 2);
    gate.notify_waiters();
    weak.await.unwrap().unwrap();
    strict.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_asker_that_goes_away_leaves_the_others_their_answer() {
    let w = world();
    w.upstream.set(&key("k"), Some(b"v"), None);
    let gate = w.upstream.hold_up();
    let first = w.reading("k", within_age(60));
    settle().await;
    let second = w.reading("k", within_age(60));
    settle().await;
    first.abort();
    settle().await;
    gate.notify_waiters();
    assert_eq!(second.await.unwrap().unwrap().0, Some("v".into()));
    assert_eq!(w.upstream.asked(), 1);
}

#[tokio::test]
async fn a_hit_near_its_age_revalidates_in_the_background_once() {
    let w = world();
    w.upstream.set(&key("k"), Some(b"1"), None);
    w.read("k", within_age(60)).await;
    w.upstream.set(&key("k"), Some(b"2"), None);
    w.clock.advance(55 * SECOND);
    for _ in 0..5 {
        assert_eq!(w.read("k", within_age(60)).await.0, Some("1".into()));
    }
    settle().await;
    assert_eq!(w.upstream.asked(), 2);
    assert_eq!(w.read("k", within_age(60)).await, (Some("2".into()), CacheStatus::Hit, Duration::ZERO));
}

#[tokio::test]
async fn a_fill_that_a_write_overtook_is_not_kept_and_not_answered() {
    let w = world();
    w.upstream.set(&key("k"), Some(b"old"), None);
    let gate = w.upstream.hold_up();
    let reading = w.reading("k", within_age(60));
    settle().await;
    // The question is out, answered in substance with the old state; now a write passes.
    let written = w.put("k", b"new").await;
    *w.upstream.held_up.lock().unwrap() = None;
    gate.notify_waiters();
    assert_eq!(reading.await.unwrap().unwrap().0, Some("new".into()));
    let answer = w.tier.get(NAMESPACE, &key("k"), &within_age(60)).await.unwrap();
    assert_eq!(answer.version, written.version);
}

#[tokio::test]
async fn a_late_fill_is_refused_even_after_what_overtook_it_was_evicted() {
    let w = world();
    w.upstream.set(&key("k"), Some(b"old"), None);
    let gate = w.upstream.hold_up();
    let reading = w.reading("k", within_age(60));
    settle().await;
    w.put("k", b"new").await;
    w.tier.memory().remove(&EntryKey { namespace: NAMESPACE, key: key("k") });
    *w.upstream.held_up.lock().unwrap() = None;
    gate.notify_waiters();
    assert_eq!(reading.await.unwrap().unwrap().0, Some("new".into()));
}

#[tokio::test]
async fn an_absence_seen_before_a_write_does_not_hide_it() {
    let w = world();
    let gate = w.upstream.hold_up();
    let reading = w.reading("k", within_age(60));
    settle().await;
    w.put("k", b"new").await;
    *w.upstream.held_up.lock().unwrap() = None;
    gate.notify_waiters();
    assert_eq!(reading.await.unwrap().unwrap().0, Some("new".into()));
}

#[tokio::test]
async fn a_location_reads_its_own_writes_at_once() {
    let w = world();
    w.read("k", within_age(60)).await;
    w.put("k", b"mine").await;
    assert_eq!(w.read("k", within_age(60)).await, (Some("mine".into()), CacheStatus::Hit, Duration::ZERO));
    w.tier.write(NAMESPACE, &key("k"), Change::Delete, Via::default()).await.unwrap();
    assert_eq!(w.read("k", within_age(60)).await, (None, CacheStatus::Hit, Duration::ZERO));
    let put = Change::Put { value: Bytes::from("many").into(), metadata: None, expires: crate::kv::Expires::Never };
    w.tier.write_many(NAMESPACE, vec![(key("k"), put)], Via::default()).await.unwrap();
    assert_eq!(w.read("k", within_age(60)).await.0, Some("many".into()));
}

/// Upstream is cut off itself, and answers what it holds, marked.
#[tokio::test]
async fn what_upstream_answers_marked_is_passed_on_until_it_is_too_old() {
    let w = world_with(|settings| settings.stale_if_unreachable = 100 * SECOND);
    w.upstream.set(&key("k"), Some(b"v"), None);
    *w.upstream.status.lock().unwrap() = CacheStatus::Stale;
    *w.upstream.age.lock().unwrap() = 100 * SECOND;
    assert_eq!(w.read("k", within_age(60)).await, (Some("v".into()), CacheStatus::Stale, 100 * SECOND));
    *w.upstream.age.lock().unwrap() = 101 * SECOND;
    w.upstream.set(&key("k2"), Some(b"v"), None);
    assert_eq!(w.try_read("k2", within_age(60)).await.unwrap_err().kind, Kind::Unavailable);
}

#[tokio::test]
async fn a_write_too_large_to_keep_still_hides_what_was_held() {
    let w = world_with(|settings| settings.cache_bytes = 1 << 20);
    w.put("k", b"small").await;
    let large = Bytes::from(vec![b'x'; 300_000]);
    let chunks: Vec<_> = large.chunks(10_000).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
    let value = Value::Stream(ValueStream { length: None, chunks: futures_util::stream::iter(chunks).boxed() });
    let change = Change::Put { value, metadata: None, expires: crate::kv::Expires::Never };
    w.tier.write(NAMESPACE, &key("k"), change, Via::default()).await.unwrap();
    assert_eq!(w.read("k", within_age(60)).await, (Some(large), CacheStatus::Miss, Duration::ZERO));
}

#[tokio::test]
async fn a_version_demand_is_met_from_memory_or_asked_for() {
    let w = world();
    w.upstream.set(&key("k"), Some(b"1"), None);
    w.read("k", within_age(60)).await;
    let version = w.upstream.set(&key("k"), Some(b"2"), None);
    let demanding = Read { at_least: Some(version), ..within_age(60) };
    assert_eq!(w.read("k", demanding.clone()).await.0, Some("2".into()));
    assert_eq!(w.upstream.questions.lock().unwrap()[1].at_least, Some(version));
    assert_eq!(w.read("k", demanding).await.1, CacheStatus::Hit);
}

#[tokio::test]
async fn an_expired_entry_is_never_answered_not_even_in_an_outage() {
    let w = world();
    w.upstream.set(&key("k"), Some(b"v"), Some(90 * SECOND));
    w.read("k", within_age(3600)).await;
    w.clock.advance(90 * SECOND);
    w.upstream.fail(Some(Kind::Unreachable));
    let error = w.try_read("k", within_age(3600)).await.unwrap_err();
    assert_eq!(error.kind, Kind::Unavailable);
}

#[tokio::test]
async fn what_is_held_is_served_marked_and_with_its_age_while_upstream_is_away() {
    let w = world();
    w.upstream.set(&key("k"), Some(b"v"), None);
    w.read("k", within_age(60)).await;
    w.upstream.fail(Some(Kind::Unreachable));
    w.clock.advance(600 * SECOND);
    assert_eq!(w.read("k", within_age(60)).await, (Some("v".into()), CacheStatus::Stale, 600 * SECOND));
    // From here on upstream is known to be away, and is not asked by each read.
    let asked = w.upstream.asked();
    for _ in 0..10 {
        assert_eq!(w.read("k", within_age(60)).await.1, CacheStatus::Stale);
    }
    assert_eq!(w.upstream.asked(), asked);
    assert!(w.try_read("k", Read::latest()).await.is_err());
    assert!(w.try_read("cold", within_age(60)).await.unwrap_err().retry_after.is_some());
    w.clock.advance(Duration::from_secs(24 * 3600));
    assert!(w.try_read("k", within_age(60)).await.is_err());
}

#[tokio::test]
async fn an_upstream_that_returns_is_noticed_by_a_probe() {
    let w = world();
    w.upstream.set(&key("k"), Some(b"1"), None);
    w.read("k", within_age(60)).await;
    w.upstream.fail(Some(Kind::Unreachable));
    w.clock.advance(61 * SECOND);
    w.read("k", within_age(60)).await;
    w.upstream.fail(None);
    w.upstream.set(&key("k"), Some(b"2"), None);
    w.clock.advance(2 * SECOND);
    assert_eq!(w.read("k", within_age(60)).await.1, CacheStatus::Stale);
    settle().await;
    assert_eq!(w.read("k", within_age(60)).await.0, Some("2".into()));
}

#[tokio::test]
async fn an_upstream_that_hangs_is_given_up_at_the_deadline_but_the_stale_answer_comes_sooner() {
    let w = world();
    w.upstream.set(&key("k"), Some(b"v"), None);
    w.read("k", within_age(60)).await;
    w.clock.advance(61 * SECOND);
    w.upstream.hold_up();
    let (held, cold) = (w.reading("k", within_age(60)), w.reading("cold", within_age(60)));
    settle().await;
    w.clock.advance(SECOND);
    assert_eq!(held.await.unwrap().unwrap(), (Some("v".into()), CacheStatus::Stale));
    assert!(!cold.is_finished());
    w.clock.advance(4 * SECOND);
    assert_eq!(cold.await.unwrap().unwrap_err().kind, Kind::Unavailable);
}

#[tokio::test]
async fn a_read_whose_stale_answer_a_purge_took_away_waits_for_the_new_one() {
    let w = world();
    w.upstream.set(&key("k"), Some(b"old"), None);
    w.read("k", within_age(60)).await;
    w.clock.advance(61 * SECOND);
    w.upstream.set(&key("k"), Some(b"new"), None);
    let version = Version::from_u64(w.upstream.last.load(Ordering::SeqCst));
    let held_up = w.upstream.hold_up();
    let reading = w.reading("k", within_age(60));
    settle().await;
    w.tier.0.flights.purge(&EntryKey { namespace: NAMESPACE, key: key("k") }, version, None, |_| true);
    w.clock.advance(2 * SECOND);
    settle().await;
    assert!(!reading.is_finished(), "there is nothing to answer");
    held_up.notify_waiters();
    assert_eq!(reading.await.unwrap().unwrap().0, Some("new".into()));
}

#[tokio::test]
async fn an_error_is_never_kept_and_renews_nothing() {
    let w = world();
    w.upstream.set(&key("k"), Some(b"v"), None);
    w.upstream.fail(Some(Kind::NamespaceUnknown));
    assert_eq!(w.try_read("k", within_age(60)).await.unwrap_err().kind, Kind::NamespaceUnknown);
    w.upstream.fail(None);
    assert_eq!(w.read("k", within_age(60)).await.0, Some("v".into()));
    w.clock.advance(61 * SECOND);
    w.upstream.fail(Some(Kind::Internal));
    assert_eq!(w.read("k", within_age(60)).await.2, 61 * SECOND);
}

#[tokio::test]
async fn an_upstream_that_answers_errors_is_not_taken_for_silent() {
    let w = world();
    w.upstream.fail(Some(Kind::Unavailable));
    assert!(w.try_read("a", within_age(60)).await.is_err());
    w.upstream.fail(None);
    assert_eq!(w.read("b", within_age(60)).await.1, CacheStatus::Miss);
}

#[tokio::test]
async fn a_large_value_passes_through_once_for_each_reader_and_is_kept_if_it_fits() {
    let w = world();
    let large = vec![7u8; 3 << 20];
    w.upstream.set(&key("k"), Some(&large), None);
    *w.upstream.streaming.lock().unwrap() = true;
    assert_eq!(w.read("k", within_age(60)).await.0.unwrap(), large);
    let kept = w.read("k", within_age(60)).await;
    assert_eq!((kept.0.unwrap().len(), kept.1), (large.len(), CacheStatus::Hit));
    assert_eq!(w.upstream.asked(), 1);
}

#[tokio::test]
async fn readers_of_a_large_value_that_came_together_all_get_it() {
    let w = world_with(|settings| settings.cache_bytes = 2 << 20);
    let large = vec![7u8; 3 << 20];
    w.upstream.set(&key("k"), Some(&large), None);
    *w.upstream.streaming.lock().unwrap() = true;
    let gate = w.upstream.hold_up();
    let readers: Vec<_> = (0..8).map(|_| w.reading("k", within_age(60))).collect();
    settle().await;
    *w.upstream.held_up.lock().unwrap() = None;
    gate.notify_waiters();
    for reader in readers {
        assert_eq!(reader.await.unwrap().unwrap().0.unwrap().len(), large.len());
    }
}

#[tokio::test]
async fn a_large_fill_that_a_write_overtook_while_it_passed_is_not_kept() {
    let w = world();
    let large = vec![7u8; 3 << 20];
    w.upstream.set(&key("k"), Some(&large), None);
    *w.upstream.streaming.lock().unwrap() = true;
    let answer = w.tier.get(NAMESPACE, &key("k"), &within_age(60)).await.unwrap();
    let State::Present(entry) = answer.state else { panic!("present") };
    let written = w.put("k", b"new").await;
    w.tier.memory().remove(&EntryKey { namespace: NAMESPACE, key: key("k") });
    assert_eq!(entry.value.collect(u64::MAX).await.unwrap().len(), large.len());
    assert_eq!(w.tier.get(NAMESPACE, &key("k"), &within_age(60)).await.unwrap().version, written.version);
}

#[tokio::test]
async fn a_copy_is_laid_out_in_whole_pieces() {
    let w = world();
    let large: Vec<u8> = (0..3u32 << 20).map(|i| i as u8).collect();
    w.upstream.set(&key("k"), Some(&large), None);
    *w.upstream.streaming.lock().unwrap() = true;
    w.read("k", within_age(60)).await;
    let kept = w.tier.memory().get(&EntryKey { namespace: NAMESPACE, key: key("k") }).unwrap();
    let Some(KeptValue::Parts(parts)) = kept.large_value() else { panic!("in parts") };
    assert!(parts[..parts.len() - 1].iter().all(|part| part.len() == CHUNK_BYTES));
    assert_eq!(parts.concat(), large);
}

#[tokio::test]
async fn guessing_tokens_pushes_out_no_token_that_is_held() {
    let w = world();
    let token = key("token/good");
    w.upstream.set(&token, Some(b""), None);
    let read = within_age(3600);
    w.tier.get(NamespaceId::RESERVED, &token, &read).await.unwrap();
    for i in 0..20_000 {
        w.tier.get(NamespaceId::RESERVED, &key(&format!("token/{i}")), &read).await.unwrap();
    }
    assert!(w.tier.held(NamespaceId::RESERVED, token.as_bytes(), &read).is_some());
}

#[tokio::test]
async fn those_who_joined_a_question_that_could_not_go_out_are_told() {
    let w = world();
    w.upstream.fail(Some(Kind::Unreachable));
    assert!(w.try_read("a", within_age(60)).await.is_err());
    let readers: Vec<_> = (0..4).map(|_| w.reading("b", within_age(60))).collect();
    for reader in readers {
        assert_eq!(reader.await.unwrap().unwrap_err().kind, Kind::Unavailable);
    }
}

#[tokio::test]
async fn a_large_value_that_nobody_takes_frees_what_it_came_on() {
    let w = world();
    w.upstream.set(&key("k"), Some(&vec![7u8; 3 << 20]), None);
    *w.upstream.streaming.lock().unwrap() = true;
    let gate = w.upstream.hold_up();
    let reading = w.reading("k", within_age(60));
    settle().await;
    reading.abort();
    settle().await;
    gate.notify_waiters();
    settle().await;
    assert_eq!(Arc::strong_count(&w.upstream.streams), 1, "a stream is still held");
}

#[tokio::test]
async fn one_place_for_refills_is_enough_while_upstream_recovers() {
    let w = world_with(|settings| settings.refills = 1);
    w.upstream.set(&key("k"), Some(b"1"), None);
    w.read("k", within_age(60)).await;
    w.upstream.fail(Some(Kind::Unreachable));
    w.clock.advance(61 * SECOND);
    w.read("k", within_age(60)).await;
    w.upstream.fail(None);
    w.clock.advance(2 * SECOND);
    w.upstream.set(&key("k"), Some(b"2"), None);
    // The probe recovers upstream; from here on questions need a place, and each takes one only.
    w.read("k", within_age(60)).await;
    settle().await;
    for i in 0..50 {
        assert_eq!(w.read(&format!("cold {i}"), within_age(60)).await.1, CacheStatus::Miss);
    }
    w.clock.advance(8 * SECOND);
    for _ in 0..100 {
        w.read("k", within_age(10)).await;
        settle().await;
    }
    assert_eq!(w.read("cold again", within_age(60)).await.1, CacheStatus::Miss);
}

#[tokio::test]
async fn a_value_of_known_length_is_kept_though_nobody_asks_for_its_end() {
    let w = world();
    let large = vec![7u8; 3 << 20];
    w.upstream.set(&key("k"), Some(&large), None);
    *w.upstream.streaming.lock().unwrap() = true;
    let answer = w.tier.get(NAMESPACE, &key("k"), &within_age(60)).await.unwrap();
    let State::Present(entry) = answer.state else { panic!("present") };
    let (mut chunks, mut length) = (entry.value.into_stream(), 0);
    while length < large.len() {
        length += chunks.next().await.unwrap().unwrap().len();
    }
    drop(chunks);
    assert_eq!(w.read("k", within_age(60)).await.1, CacheStatus::Hit);
}
