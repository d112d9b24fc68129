//! Questions on their way, and what of their answers is kept.

use super::*;
use crate::{
    clock::ManualClock,
    kv::{
        Key, NamespaceId,
        kept::{Content, KeptValue},
    },
};

const DEMAND: Demand = Demand { max_age: Duration::from_secs(30), at_least: None };

fn flights() -> (Arc<Flights>, EntryKey) {
    let clock = ManualClock::shared();
    let flights = Arc::new(Flights::new(Memory::new(1 << 20, 0.1, &clock), &clock));
    (flights, key_in(1))
}

fn key_in(namespace: u128) -> EntryKey {
    EntryKey { namespace: NamespaceId::from_u128(namespace), key: Key::new("k").unwrap() }
}

fn state(key: &EntryKey, version: u64, content: Content) -> Kept {
    Kept::new(key, Version::from_u64(version), content, Moment::MAX, Verified::at(Moment::ZERO))
}

fn absent(version: u64) -> Kept {
    state(&key_in(1), version, Content::Absent)
}

fn present(version: u64) -> Kept {
    let value = KeptValue::Whole(bytes::Bytes::from_static(b"v"));
    state(&key_in(1), version, Content::Present { value, metadata: None, expiration: None })
}

fn lead(flights: &Arc<Flights>, key: &EntryKey) -> (Ticket, Promise, Arc<Flight>) {
    match flights.join(key, DEMAND, false) {
        Joined::Leading(ticket, promise, flight) => (ticket, promise, flight),
        Joined::Following(_) => panic!("nobody else asks"),
    }
}

#[tokio::test]
async fn the_end_of_a_ticket_is_not_the_end_of_its_question() {
    let (flights, key) = flights();
    let (ticket, promise, flight) = lead(&flights, &key);
    drop(ticket);
    assert!(flight.is_open());
    promise.settle(Settled::Shared { kept: absent(5), status: CacheStatus::Miss });
    assert!(matches!(flight.settled().await, Settled::Shared { .. }));
}

#[tokio::test]
async fn a_broken_promise_is_told_to_those_who_wait() {
    let (flights, key) = flights();
    let (ticket, promise, flight) = lead(&flights, &key);
    drop((ticket, promise));
    assert!(matches!(flight.settled().await, Settled::Failed(_)));
}

#[test]
fn a_question_that_ended_is_joined_by_nobody() {
    let (flights, key) = flights();
    let (ticket, promise, _flight) = lead(&flights, &key);
    assert!(matches!(flights.join(&key, DEMAND, false), Joined::Following(_)));
    assert!(matches!(flights.join(&key, DEMAND, true), Joined::Leading(..)));
    assert!(flights.is_asking(&key));
    promise.settle(Settled::Shared { kept: absent(5), status: CacheStatus::Miss });
    assert!(!flights.is_asking(&key));
    assert!(matches!(flights.join(&key, DEMAND, false), Joined::Leading(..)));
    drop(ticket);
}

/// Version 4 may have been minted behind version 5, by another origin, when this question was answered already.
/// A write of a version in between may still be heard of, whose state takes the place of what is older.
#[test]
fn an_absence_does_not_take_the_place_of_a_later_one_that_was_dropped() {
    let (flights, key) = flights();
    let (late, _late, _) = lead(&flights, &key);
    let Joined::Leading(early, _early, _) = flights.join(&key, DEMAND, true) else { panic!("it asks alone") };
    assert!(early.fill(&absent(8)));
    flights.memory().remove(&key);
    assert!(late.fill(&absent(6)), "whoever asked may have it");
    flights.purge(&key, Version::from_u64(7), Some(&present(7)), |_| true);
    assert!(flights.memory().peek(&key).is_none());
}

#[test]
fn a_question_for_a_version_is_joined_by_those_who_want_that_one_or_none() {
    let (flights, key) = flights();
    let at_least = |version| Demand { at_least: Some(Version::from_u64(version)), ..DEMAND };
    let Joined::Leading(_ticket, _promise, _flight) = flights.join(&key, at_least(5), false) else {
        panic!("nobody else asks")
    };
    assert!(matches!(flights.join(&key, at_least(5), false), Joined::Following(_)));
    assert!(matches!(flights.join(&key, DEMAND, false), Joined::Following(_)));
    for other in [4, 6] {
        assert!(matches!(flights.join(&key, at_least(other), false), Joined::Leading(..)));
    }
}

#[test]
fn a_question_whose_answer_was_judged_is_joined_by_nobody() {
    let (flights, key) = flights();
    let (ticket, _promise, _flight) = lead(&flights, &key);
    assert!(ticket.fill(&absent(5)));
    assert!(matches!(flights.join(&key, DEMAND, false), Joined::Leading(..)));
}

#[test]
fn a_fill_raises_the_floor_of_the_keys_other_questions() {
    let (flights, key) = flights();
    let (late, _late, _) = lead(&flights, &key);
    let Joined::Leading(early, _early, _) = flights.join(&key, DEMAND, true) else { panic!("it asks alone") };
    assert!(early.fill(&present(7)));
    flights.memory().remove(&key);
    assert!(!late.fill(&present(6)) && !late.fill(&absent(6)));
    assert!(late.fill(&absent(7)));
}

/// As from two origins, the second of which does not know yet that what the first dates it by is complete.
#[test]
fn an_absence_is_not_overtaken_by_another_of_a_greater_version() {
    let (flights, key) = flights();
    let (late, _late, _) = lead(&flights, &key);
    let Joined::Leading(early, _early, _) = flights.join(&key, DEMAND, true) else { panic!("it asks alone") };
    assert!(early.fill(&absent(7)));
    assert!(!late.fill(&present(6)), "what was there before");
    let at = Moment::ZERO + Duration::from_secs(9);
    let looked_later = Kept::new(&key, Version::from_u64(6), Content::Absent, Moment::MAX, Verified::at(at));
    assert!(late.fill(&looked_later));
    let held = flights.memory().peek(&key).unwrap();
    assert_eq!((held.version(), held.verified().at), (Version::from_u64(7), at));
    // A write in between ends that.
    let Joined::Leading(third, _third, _) = flights.join(&key, DEMAND, true) else { panic!("it asks alone") };
    flights.purge(&key, Version::from_u64(8), None, |_| true);
    assert!(!third.fill(&absent(7)) && third.fill(&absent(8)));
}

/// As when the look above came after a removal that was not announced yet, and the entry was evicted since.
#[test]
fn presence_does_not_come_back_after_absence_of_its_version_was_filled_in_and_evicted() {
    let (flights, key) = flights();
    let (late, _late, _) = lead(&flights, &key);
    assert!(flights.write(&key).fill(&absent(5)));
    flights.memory().remove(&key);
    assert!(!late.fill(&present(5)) && !late.passes(Version::from_u64(5)));
    assert!(late.fill(&absent(5)));
}

#[test]
fn of_one_version_absence_is_the_later_state() {
    let (flights, key) = flights();
    flights.write(&key).fill(&present(5));
    flights.write(&key).fill(&absent(5));
    flights.write(&key).fill(&present(5));
    assert!(!flights.memory().peek(&key).unwrap().is_present());
    flights.write(&key).fill(&present(6));
    flights.write(&key).fill(&absent(5));
    assert!(flights.memory().peek(&key).unwrap().is_present());
}

#[test]
fn a_question_that_ended_leaves_nothing_behind_and_no_other_with_it() {
    let (flights, key) = flights();
    let (first, _first, _) = lead(&flights, &key);
    let second = flights.write(&key);
    drop(first);
    assert_eq!(flights.shard(&key).flights[&key].len(), 1);
    flights.raise_floor(&key, Version::from_u64(7));
    assert!(!second.fill(&absent(6)));
    drop(second);
    assert!(flights.shard(&key).flights.is_empty());
}

#[test]
fn a_value_that_passes_takes_what_is_older_with_it_and_is_refused_if_it_is_older_itself() {
    let (flights, key) = flights();
    flights.write(&key).fill(&absent(5));
    let (late, _late, _) = lead(&flights, &key);
    let Joined::Leading(early, _early, _) = flights.join(&key, DEMAND, true) else { panic!("it asks alone") };
    assert!(!early.passes(Version::from_u64(4)));
    assert!(flights.memory().peek(&key).is_some());
    assert!(early.passes(Version::from_u64(6)));
    assert!(flights.memory().peek(&key).is_none());
    assert!(!late.passes(Version::from_u64(5)) && !late.fill(&absent(5)));
    assert!(late.fill(&absent(6)));
    assert!(!early.passes(Version::from_u64(6)), "of one version absence is the later state");
    assert!(flights.memory().peek(&key).is_some());
}

#[test]
fn a_value_that_passes_expires_when_its_time_has_come() {
    let passing = || {
        let entry = Entry { value: bytes::Bytes::new().into(), metadata: None, expiration: None, time_left: None };
        let (at, expires_at) = (Moment::ZERO + Duration::from_secs(1), Moment::ZERO + Duration::from_secs(9));
        let (verified, status) = (Verified::at(at), CacheStatus::Miss);
        Passing { entry, version: Version::from_u64(5), verified, expires_at, status }
    };
    let time_left = |answer: Answer| match answer.state {
        State::Present(entry) => entry.time_left,
        other => panic!("{other:?}"),
    };
    let answer = passing().answer(Moment::ZERO + Duration::from_secs(4), true).expect("it has not expired");
    assert_eq!((answer.age, answer.covered), (Duration::from_secs(3), true));
    assert_eq!(time_left(answer), Some(Duration::from_secs(5)));
    assert!(passing().answer(Moment::ZERO + Duration::from_secs(9), true).is_none());
    let never = Passing { expires_at: Moment::MAX, ..passing() };
    assert_eq!(time_left(never.answer(Moment::ZERO + Duration::from_secs(9), true).expect("it never expires")), None);
}

#[test]
fn a_purge_replaces_what_is_older_and_makes_nothing() {
    let (flights, key) = flights();
    assert!(flights.purge(&key, Version::from_u64(5), Some(&absent(5)), |_| true).is_none());
    assert!(flights.memory().peek(&key).is_none(), "nothing was held");
    flights.write(&key).fill(&absent(5));
    for version in [4, 5] {
        assert!(flights.purge(&key, Version::from_u64(version), None, |_| true).is_none());
        assert!(flights.memory().peek(&key).is_some(), "what is held is no older than {version}");
    }
    assert!(flights.purge(&key, Version::from_u64(6), Some(&absent(6)), |_| true).is_none());
    assert_eq!(flights.memory().peek(&key).unwrap().version(), Version::from_u64(6));
    assert_eq!(flights.purge(&key, Version::from_u64(7), None, |_| true).unwrap().version(), Version::from_u64(6));
    assert!(flights.memory().peek(&key).is_none());
}

/// Its own purge, or that of what had overtaken the state that comes now, may have been missed.
#[test]
fn a_purge_replaces_nothing_that_the_feed_does_not_vouch_for() {
    let (flights, key) = flights();
    flights.write(&key).fill(&absent(5));
    let dropped = flights.purge(&key, Version::from_u64(6), Some(&present(6)), |_| false);
    assert_eq!(dropped.unwrap().version(), Version::from_u64(5));
    assert!(flights.memory().peek(&key).is_none());
}

#[test]
fn a_removed_namespace_raises_the_floor_of_its_keys_and_of_no_others() {
    let (flights, key) = flights();
    let other = key_in(2);
    let (gone, stays) = (flights.write(&key), flights.write(&other));
    flights.write(&key).fill(&absent(5));
    flights.write(&other).fill(&state(&other, 5, Content::Absent));
    flights.purge_namespace(key.namespace, Version::from_u64(6));
    assert!(flights.memory().peek(&key).is_none() && flights.memory().peek(&other).is_some());
    assert!(!gone.fill(&absent(5)) && stays.fill(&state(&other, 5, Content::Absent)));
    assert!(gone.fill(&absent(6)));
}

#[test]
fn a_floor_takes_what_is_older_with_it_and_nothing_else() {
    let (flights, key) = flights();
    flights.write(&key).fill(&absent(5));
    for version in [4, 5] {
        flights.raise_floor(&key, Version::from_u64(version));
        assert!(flights.memory().peek(&key).is_some(), "what is held is no older than {version}");
    }
    flights.raise_floor(&key, Version::from_u64(6));
    assert!(flights.memory().peek(&key).is_none());
}

#[test]
fn at_its_deadline_an_entry_is_dropped_unless_it_was_renewed_or_replaced() {
    let (flights, key) = flights();
    let at = |seconds| Moment::ZERO + Duration::from_secs(seconds);
    let expiring = || Kept::new(&key, Version::from_u64(5), Content::Absent, at(10), Verified::at(Moment::ZERO));
    let (first, another) = (expiring(), expiring());
    flights.write(&key).fill(&first);
    flights.drop_expired(&another, at(20));
    assert!(flights.memory().peek(&key).is_some(), "it is another one");
    first.renew(Verified::at(at(5)), Some(at(30)));
    flights.drop_expired(&first, at(20));
    assert!(flights.memory().peek(&key).is_some(), "it was renewed");
    flights.drop_expired(&first, at(30));
    assert!(flights.memory().peek(&key).is_none());
}
