//! Who is asked what, and what becomes of it when that one does not answer.

use std::sync::atomic::Ordering;

use futures_util::{FutureExt, StreamExt, stream};
use tokio::task::JoinHandle;

use super::*;
use crate::{
    cache::fleet::member::{SPARED, Standing, Task},
    kv::ValueStream,
};

/// Two origins that take this long, so that time passes with each answer.
const TRIP: Duration = Duration::from_millis(10);

impl World {
    fn reading(&self, name: &str) -> JoinHandle<Result<Answer>> {
        let (fleet, key) = (self.fleet.clone(), key(name));
        tokio::spawn(async move { fleet.get(NAMESPACE, &key, &within_age(60)).await })
    }

    fn writing(&self, name: &str, via: Via) -> JoinHandle<Result<Written>> {
        let (fleet, key) = (self.fleet.clone(), key(name));
        tokio::spawn(async move { fleet.write(NAMESPACE, &key, put(), via).await })
    }

    /// Lets time pass until it is done, and says how much did.
    async fn until<T>(&self, task: JoinHandle<T>) -> (T, Duration) {
        let began_at = self.now();
        settle().await;
        while !task.is_finished() {
            self.clock.advance(TRIP / 5);
            settle().await;
            assert!(self.now().since(began_at) < 10 * DEADLINE, "it ends at all");
        }
        (task.await.unwrap(), self.now().since(began_at))
    }

    fn asked(&self) -> Vec<usize> {
        self.origins.iter().map(|origin| origin.asked()).collect()
    }

    fn handed_in(&self) -> usize {
        self.origins.iter().map(|origin| origin.handed_in()).sum()
    }

    fn written(&self) -> usize {
        self.store.written.lock().unwrap().len()
    }

    fn counted(&self, metric: &str) -> u64 {
        let text = self.metrics.render();
        let samples = text.lines().filter(|line| line.starts_with(&format!("kvasar_fleet_{metric}{{")));
        samples.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }
}

fn put() -> Change {
    Change::Put { value: Value::Whole("v".into()), metadata: None, expires: Expires::Never }
}

#[tokio::test]
async fn reads_and_lists_are_spread_over_the_origins_that_are_well() {
    let world = following(3).await;
    for i in 0..300 {
        world.reading(&format!("{i}")).await.unwrap().unwrap();
    }
    assert!(world.asked()[..3].iter().all(|asked| (50..150).contains(asked)), "{:?}", world.asked());
    let list = List { prefix: Default::default(), limit: 10, cursor: None };
    for _ in 0..30 {
        world.fleet.list(NAMESPACE, &list).await.unwrap();
    }
    assert_eq!(world.asked().iter().sum::<usize>(), 330);
    assert_eq!((world.counted("requests_total"), world.counted("retries_total")), (330, 0));
}

#[tokio::test]
async fn of_two_the_less_busy_one_is_asked() {
    let world = following(2).await;
    world.origins[0].is(Mood::Slow(3600 * SECOND));
    let busy: Vec<_> = (0..10).map(|i| world.reading(&format!("{i}"))).collect();
    settle().await;
    let before = world.origins[0].under_way.load(Ordering::SeqCst);
    assert!(before >= 1);
    for i in 0..20 {
        world.reading(&format!("later {i}")).await.unwrap().unwrap();
    }
    assert_eq!(world.origins[0].under_way.load(Ordering::SeqCst), before);
    busy.iter().for_each(JoinHandle::abort);
}

/// As which the fleet follows them, so that what changes can bring its new state along.
#[tokio::test]
async fn each_origin_is_asked_by_the_follower_that_it_knows() {
    let world = following(2).await;
    let follower = |at: usize| world.origins[at].process().followed.lock().unwrap()[0].follower;
    assert_ne!(follower(0), follower(1));
    for i in 0..20 {
        world.reading(&format!("{i}")).await.unwrap().unwrap();
        world.writing(&format!("{i}"), Via::default()).await.unwrap().unwrap();
    }
    for at in 0..2 {
        let (reads, writes) = (world.origins[at].reads.lock().unwrap(), world.origins[at].writes.lock().unwrap());
        assert!(!reads.is_empty() && reads.iter().all(|read| read.asker == Some(follower(at))));
        assert!(!writes.is_empty() && writes.iter().all(|via| via.follower == Some(follower(at))));
    }
}

#[tokio::test]
async fn a_read_that_one_origin_fails_is_asked_of_another() {
    for mood in [Mood::Gone, Mood::Refusing, Mood::Failing] {
        let world = following(2).await;
        *world.origins[0].reading.lock().unwrap() = mood;
        for i in 0..50 {
            world.reading(&format!("{i}")).await.unwrap().unwrap();
        }
        // It is left alone once it has failed.
        assert_eq!((world.origins[0].asked(), world.counted("retries_total")), (1, 1), "{mood:?}");
        *world.origins[0].reading.lock().unwrap() = Mood::Well;
        world.pass(5 * SECOND).await;
        for i in 0..50 {
            world.reading(&format!("{i}")).await.unwrap().unwrap();
        }
        assert!(world.origins[0].asked() > 10);
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_question_is_asked_of_nobody_else() {
    let world = following(2).await;
    world.origins.iter().for_each(|origin| origin.is(Mood::Rejecting));
    assert_eq!(world.reading("k").await.unwrap().unwrap_err().kind, Kind::BadRequest);
    assert_eq!(world.asked().iter().sum::<usize>(), 1);
    assert_eq!(world.writing("k", Via::default()).await.unwrap().unwrap_err().kind, Kind::BadRequest);
    assert_eq!(world.handed_in(), 1);
}

#[tokio::test]
async fn a_read_that_waits_longer_than_most_is_asked_of_a_second_origin_and_few_are() {
    let world = following(2).await;
    world.origins.iter().for_each(|origin| origin.is(Mood::Slow(TRIP)));
    for i in 0..100 {
        world.until(world.reading(&format!("{i}"))).await.0.unwrap();
    }
    assert_eq!(world.counted("hedges_total"), 0);
    *world.origins[0].reading.lock().unwrap() = Mood::Slow(SECOND);
    let mut slow = 0;
    for i in 0..100 {
        let hedged = world.counted("hedges_total");
        let (answer, took) = world.until(world.reading(&format!("{i}"))).await;
        answer.unwrap();
        if world.counted("hedges_total") > hedged {
            assert!(took <= 10 * TRIP, "{took:?}");
        } else if took >= SECOND {
            slow += 1;
        }
        world.clock.advance(2 * SPARED);
    }
    let hedges = world.counted("hedges_total");
    assert!((10..=30).contains(&hedges) && slow > 10, "{hedges} hedged, {slow} waited");
}

/// As a process that was stopped: its connections are there, and nothing comes on them.
#[tokio::test]
async fn an_origin_that_answers_nothing_while_others_do_is_left_alone() {
    let world = following(2).await;
    world.origins.iter().for_each(|origin| origin.is(Mood::Slow(TRIP)));
    for i in 0..100 {
        world.until(world.reading(&format!("{i}"))).await.0.unwrap();
    }
    world.origins[0].is(Mood::Mute);
    let (asked, handed_in) = (world.origins[0].asked(), world.origins[0].handed_in());
    for i in 0..20 {
        let (answer, took) = world.until(world.reading(&format!("{i}"))).await;
        answer.unwrap();
        assert!(took <= 4 * TRIP, "{took:?}");
    }
    for i in 0..10 {
        let (written, took) = world.until(world.writing(&format!("{i}"), Via::default())).await;
        written.unwrap();
        assert!(took <= 2 * TRIP, "{took:?}");
    }
    assert_eq!((world.origins[0].asked(), world.origins[0].handed_in()), (asked + 1, handed_in));
    // One that has answered something else meanwhile is only slow with this.
    let world = following(1).await;
    let (member, asked_at) = (Arc::clone(&world.fleet.members()[0]), world.now());
    world.clock.advance(TRIP);
    world.reading("k").await.unwrap().unwrap();
    member.overtaken(asked_at);
    assert_eq!(member.standing(Task::Read), Standing::Good);
    world.clock.advance(TRIP);
    member.overtaken(world.now());
    assert_eq!((member.standing(Task::Read), member.standing(Task::Write)), (Standing::Spared, Standing::Spared));
}

#[tokio::test]
async fn a_read_without_an_answer_is_asked_of_another_after_a_part_of_the_deadline() {
    let world = following(2).await;
    *world.origins[0].reading.lock().unwrap() = Mood::Mute;
    // As if too many had been hedged already.
    while world.fleet.0.pace.lock().unwrap().may_hedge() {}
    for i in 0..8 {
        let (answer, took) = world.until(world.reading(&format!("{i}"))).await;
        answer.unwrap();
        assert!(took <= DEADLINE / 3, "{took:?}");
        while world.fleet.0.pace.lock().unwrap().may_hedge() {}
    }
    assert!(world.origins[0].asked() <= 2);
}

#[tokio::test]
async fn nobody_waits_past_the_deadline_nor_for_those_who_are_not_there() {
    let world = following(2).await;
    world.origins.iter().for_each(|origin| *origin.reading.lock().unwrap() = Mood::Mute);
    let (answer, took) = world.until(world.reading("k")).await;
    assert_eq!(answer.unwrap_err().kind, Kind::Unreachable);
    assert!((DEADLINE..DEADLINE + TRIP).contains(&took), "{took:?}");
    let world = following(2).await;
    world.origins.iter().for_each(|origin| origin.is(Mood::Gone));
    for _ in 0..3 {
        let (answer, took) = world.until(world.reading("k")).await;
        assert_eq!((answer.unwrap_err().kind, took), (Kind::Unreachable, Duration::ZERO));
        let (written, took) = world.until(world.writing("k", Via::default())).await;
        assert!(written.unwrap_err().kind == Kind::Unreachable && took <= DEADLINE);
    }
    // Each was asked once, and is then left alone for a moment.
    assert_eq!(world.asked()[..2], [1, 1]);
}

/// Somebody answered: to those below, not all is away.
#[tokio::test]
async fn an_origin_that_answers_that_it_cannot_is_not_away() {
    for skipped in 0..8 {
        let world = following(2).await;
        // Chance has it either way round.
        (0..skipped).for_each(|_| _ = world.clock.random());
        *world.origins[0].reading.lock().unwrap() = Mood::Gone;
        *world.origins[1].reading.lock().unwrap() = Mood::Failing;
        let (answer, took) = world.until(world.reading("k")).await;
        let error = answer.unwrap_err();
        assert!(error.kind == Kind::Unavailable && error.answered && took <= SECOND, "{error:?} after {took:?}");
        assert!(world.origins[1].asked() > 1, "it may have been for a moment");
    }
}

#[tokio::test]
async fn a_write_is_handed_in_under_one_name_until_an_origin_takes_it() {
    for mood in [Mood::Gone, Mood::Refusing] {
        let world = following(2).await;
        *world.origins[0].writing.lock().unwrap() = mood;
        for i in 0..20 {
            let (written, took) = world.until(world.writing(&format!("{i}"), Via::default())).await;
            written.unwrap();
            assert!(took <= DEADLINE / 3, "{mood:?} took {took:?}");
        }
        assert_eq!(world.written(), 20, "{mood:?}");
        let mut names: Vec<u64> = Vec::new();
        for origin in &world.origins {
            names.extend(origin.writes.lock().unwrap().iter().map(|via| via.id.expect("each has a name").0));
        }
        let handed_in = names.len();
        names.sort_unstable();
        names.dedup();
        assert!(names.len() == 20 && handed_in > 20, "{mood:?}: {handed_in} handed in, {} names", names.len());
    }
}

/// The origin at which the write was first handed in.
async fn hand_in_to(world: &World, mood: Mood) -> (usize, JoinHandle<Result<Written>>) {
    world.origins[..2].iter().for_each(|origin| *origin.writing.lock().unwrap() = mood);
    let writing = world.writing("k", Via::default());
    settle().await;
    let first = world.origins.iter().position(|origin| origin.handed_in() > 0).expect("one of them is asked");
    *world.origins[1 - first].writing.lock().unwrap() = Mood::Well;
    (first, writing)
}

/// Else both might take it, each with a version of its own.
#[tokio::test]
async fn a_write_that_may_have_been_taken_stays_with_that_origin() {
    for mood in [Mood::Failing, Mood::FailingAfterwards, Mood::Mute, Mood::MuteAfterwards] {
        let world = following(2).await;
        let (first, writing) = hand_in_to(&world, mood).await;
        world.pass(DEADLINE / 2).await;
        assert!(!writing.is_finished(), "{mood:?}");
        *world.origins[first].writing.lock().unwrap() = Mood::Well;
        world.until(writing).await.0.unwrap();
        assert_eq!((world.origins[1 - first].handed_in(), world.written()), (0, 1), "{mood:?}");
        let ids: Vec<_> = world.origins[first].writes.lock().unwrap().iter().map(|via| via.id.unwrap()).collect();
        assert!(!ids[0].may_have_been_taken() && ids[1..].iter().all(|id| *id == ids[0].again()), "{mood:?}");
    }
    let world = following(2).await;
    let (first, writing) = hand_in_to(&world, Mood::Failing).await;
    let (outcome, took) = world.until(writing).await;
    assert_eq!((outcome.unwrap_err().kind, world.origins[1 - first].handed_in()), (Kind::Unavailable, 0));
    assert!(took <= DEADLINE);
}

#[tokio::test]
async fn a_write_that_may_have_been_taken_goes_to_another_origin_once_that_one_has_left() {
    let world = following(2).await;
    let (first, writing) = hand_in_to(&world, Mood::Failing).await;
    world.origins[first].is(Mood::Gone);
    world.origins[first].process().break_links();
    let other = 1 - first;
    let epoch = |at: usize| (at as u64 + 1, ADDRESSES[at]);
    world.pass(2 * SECOND).await;
    assert!(!writing.is_finished() && world.origins[other].handed_in() == 0);
    world.origins[other].process().lists(2, &[epoch(other)]);
    world.until(writing).await.0.unwrap();
    assert_eq!((world.origins[other].handed_in(), world.written()), (1, 1));
    assert!(world.origins[other].writes.lock().unwrap()[0].id.unwrap().may_have_been_taken());
}

/// It can't know yet what became of it, and would take it as well.
#[tokio::test]
async fn a_write_goes_to_nobody_who_took_the_place_of_the_one_that_may_have_taken_it_while_that_one_is_listed() {
    let world = following(2).await;
    let (first, writing) = hand_in_to(&world, Mood::Failing).await;
    let other = 1 - first;
    let epoch = |at: usize| (at as u64 + 1, ADDRESSES[at]);
    let successor = (77, ADDRESSES[first]);
    *world.origins[first].writing.lock().unwrap() = Mood::Well;
    let list = [epoch(first), epoch(other), successor];
    world.origins[first].restart(77).lists(3, &list);
    world.origins[other].process().lists(3, &list);
    world.pass(2 * SECOND).await;
    assert_eq!(world.fleet.roster().epoch(ADDRESSES[first]), Some(77));
    assert!(!writing.is_finished() && world.written() == 0);
    [first, other].iter().for_each(|at| world.origins[*at].process().lists(3, &list[1..]));
    world.until(writing).await.0.unwrap();
    assert_eq!(world.written(), 1);
    let handed_in: Vec<Via> = world.origins.iter().flat_map(|origin| origin.writes.lock().unwrap().clone()).collect();
    let last = handed_in.iter().find(|via| via.to == Some(77) || via.to == Some(epoch(other).0)).unwrap();
    assert_eq!(last.taken.unwrap().epoch, epoch(first).0, "whoever gets it can find out what became of it");
}

#[tokio::test]
async fn a_write_waits_until_an_origin_has_said_who_it_is() {
    let world = world(1);
    world.origins[0].process().silent.store(true, Ordering::SeqCst);
    tokio::spawn(world.fleet.clone().run(world.stop.clone()));
    let writing = world.writing("k", Via::default());
    world.pass(SECOND).await;
    assert!(!writing.is_finished() && world.handed_in() == 0);
    world.origins[0].process().silent.store(false, Ordering::SeqCst);
    world.origins[0].process().lists(1, &[(1, ADDRESSES[0])]);
    world.until(writing).await.0.unwrap();
    assert_eq!(world.origins[0].writes.lock().unwrap()[0].to, Some(1));
}

#[tokio::test]
async fn of_a_key_that_is_in_a_call_more_than_once_the_last_change_is_handed_in() {
    let world = following(2).await;
    let changes = vec![(key("a"), Change::Delete), (key("b"), put()), (key("a"), put())];
    let outcomes = world.fleet.write_many(NAMESPACE, changes, Via::default()).await.unwrap();
    let versions: Vec<_> = outcomes.into_iter().map(|outcome| outcome.unwrap().version).collect();
    assert_eq!((versions[0], world.written()), (versions[2], 2));
    assert!(versions[1] != versions[2]);
    assert!(world.store.values.lock().unwrap()[&key("a")].1.is_some());
}

#[tokio::test]
async fn a_write_keeps_the_name_that_it_came_with() {
    let world = following(2).await;
    let via = Via { id: Some(WriteId(77)), ..Via::default() };
    let first = world.writing("k", via).await.unwrap().unwrap();
    let again = world.writing("k", via).await.unwrap().unwrap();
    assert_eq!((first.version, world.written()), (again.version, 1));
}

#[tokio::test]
async fn an_origin_that_takes_no_writes_is_read_from_as_before() {
    let world = following(2).await;
    *world.origins[0].writing.lock().unwrap() = Mood::Refusing;
    for i in 0..20 {
        world.writing(&format!("{i}"), Via::default()).await.unwrap().unwrap();
        world.reading(&format!("{i}")).await.unwrap().unwrap();
    }
    // Left alone with writes for a while, and then tried again.
    assert_eq!(world.origins[0].handed_in(), 1);
    assert!(world.origins[0].asked() >= 5, "{:?}", world.asked());
    world.clock.advance(2 * SPARED);
    *world.origins[0].writing.lock().unwrap() = Mood::Well;
    for i in 0..20 {
        world.writing(&format!("{i}"), Via::default()).await.unwrap().unwrap();
    }
    assert!(world.origins[0].handed_in() > 5);
}

#[tokio::test]
async fn when_all_refuse_a_write_it_is_tried_again_within_the_deadline() {
    let world = following(2).await;
    world.origins.iter().for_each(|origin| *origin.writing.lock().unwrap() = Mood::Refusing);
    let writing = world.writing("k", Via::default());
    settle().await;
    assert_eq!(world.handed_in(), 2);
    for _ in 0..10 {
        world.clock.advance(TRIP);
        settle().await;
    }
    assert!(!writing.is_finished() && (4..=8).contains(&world.handed_in()), "{}", world.handed_in());
    *world.origins[0].writing.lock().unwrap() = Mood::Well;
    world.until(writing).await.0.unwrap();
    *world.origins[0].writing.lock().unwrap() = Mood::Refusing;
    let before = world.handed_in();
    let (refused, took) = world.until(world.writing("k", Via::default())).await;
    assert_eq!(refused.unwrap_err().kind, Kind::Unavailable);
    assert!(took <= DEADLINE && world.handed_in() - before <= 16, "{} in {took:?}", world.handed_in() - before);
}

#[tokio::test]
async fn a_value_that_is_still_arriving_is_handed_in_again_if_nothing_was_taken_of_it() {
    let stream = || {
        let chunks = stream::iter([Ok("some".into()), Ok("thing".into())]).boxed();
        let value = Value::Stream(ValueStream { length: Some(9), chunks });
        Change::Put { value, metadata: None, expires: Expires::Never }
    };
    let world = following(2).await;
    *world.origins[0].writing.lock().unwrap() = Mood::Gone;
    for i in 0..10 {
        world.fleet.write(NAMESPACE, &key(&format!("{i}")), stream(), Via::default()).await.unwrap();
    }
    assert_eq!((world.written(), world.origins[0].handed_in()), (10, 1));
    let world = following(2).await;
    world.origins.iter().for_each(|origin| *origin.writing.lock().unwrap() = Mood::FailingAfterwards);
    let (fleet, change) = (world.fleet.clone(), stream());
    let writing = tokio::spawn(async move { fleet.write(NAMESPACE, &key("k"), change, Via::default()).await });
    assert_eq!(world.until(writing).await.0.unwrap_err().kind, Kind::Unavailable);
    assert_eq!(world.handed_in(), 1);
}

#[tokio::test]
async fn a_sender_that_takes_its_time_is_waited_for() {
    let world = following(2).await;
    let (sender, mut arriving) = tokio::sync::mpsc::channel(4);
    let chunks = stream::poll_fn(move |cx| arriving.poll_recv(cx)).boxed();
    let value = Value::Stream(ValueStream { length: None, chunks });
    let change = Change::Put { value, metadata: None, expires: Expires::Never };
    let fleet = world.fleet.clone();
    let writing = tokio::spawn(async move { fleet.write(NAMESPACE, &key("k"), change, Via::default()).await });
    for _ in 0..10 {
        sender.send(Ok("more".into())).await.unwrap();
        world.pass(DEADLINE).await;
    }
    drop(sender);
    world.until(writing).await.0.unwrap();
    assert_eq!((world.handed_in(), world.written()), (1, 1));
}

#[tokio::test]
async fn of_many_writes_those_that_were_not_taken_are_handed_in_again() {
    let world = following(2).await;
    let changes = || (0..10).map(|i| (key(&format!("{i}")), put())).collect::<Vec<_>>();
    for origin in &world.origins[..2] {
        origin.busy_keys.lock().unwrap().extend([key("3"), key("7")]);
    }
    let fleet = world.fleet.clone();
    let writing = tokio::spawn(async move {
        fleet.write_many(NAMESPACE, changes(), Via { id: Some(WriteId(5)), ..Via::default() }).await
    });
    settle().await;
    assert_eq!((world.handed_in(), world.written()), (2, 8));
    world.origins[..2].iter().for_each(|origin| origin.busy_keys.lock().unwrap().clear());
    let (outcomes, _) = world.until(writing).await;
    let versions: Vec<_> = outcomes.unwrap().into_iter().map(|outcome| outcome.unwrap().version).collect();
    assert_eq!((versions.len(), world.written()), (10, 10));
    for (i, version) in versions.iter().enumerate() {
        assert_eq!(world.store.values.lock().unwrap()[&key(&format!("{i}"))].0, *version);
    }
    let ids = world.origins.iter().flat_map(|origin| origin.writes.lock().unwrap().clone());
    assert!(ids.into_iter().all(|via| via.id == Some(WriteId(5))));
}

#[tokio::test]
async fn what_is_known_of_many_writes_is_told_when_the_rest_was_not_taken() {
    let world = following(2).await;
    for origin in &world.origins[..2] {
        origin.busy_keys.lock().unwrap().insert(key("b"));
    }
    let fleet = world.fleet.clone();
    let changes = vec![(key("a"), put()), (key("b"), put())];
    let writing = tokio::spawn(async move { fleet.write_many(NAMESPACE, changes, Via::default()).await });
    let outcomes = world.until(writing).await.0.unwrap();
    assert!(outcomes[0].is_ok() && outcomes[1].as_ref().is_err_and(|error| error.kind == Kind::Unavailable));
    assert_eq!(world.written(), 1);
    world.origins.iter().for_each(|origin| origin.is(Mood::Gone));
    let fleet = world.fleet.clone();
    let writing =
        tokio::spawn(async move { fleet.write_many(NAMESPACE, vec![(key("a"), put())], Via::default()).await });
    assert_eq!(world.until(writing).await.0.unwrap_err().kind, Kind::Unreachable);
}

#[tokio::test]
async fn a_change_of_namespaces_is_asked_of_another_only_if_it_was_certainly_not_made() {
    for (mood, repeated) in
        [(Mood::Gone, true), (Mood::Refusing, true), (Mood::Failing, false), (Mood::FailingAfterwards, false)]
    {
        let world = following(2).await;
        *world.origins[0].writing.lock().unwrap() = mood;
        let mut failed = 0;
        for i in 0..20 {
            let control = Control::RevokeToken { id: i.to_string() };
            let fleet = world.fleet.clone();
            let deciding = tokio::spawn(async move { fleet.control(AccountId::from_u128(1), control).await });
            failed += usize::from(world.until(deciding).await.0.is_err());
        }
        assert_eq!(failed > 0, !repeated, "{mood:?}");
        let made = world.store.controlled.load(Ordering::SeqCst);
        let made_and_failed = if mood == Mood::FailingAfterwards { failed } else { 0 };
        assert_eq!(made, 20 - failed + made_and_failed, "{mood:?}");
    }
}

/// A state travels along to the tier that has use for it.
#[tokio::test]
async fn the_fleet_knows_what_its_tier_reads_and_writes() {
    let world = following(2).await;
    let tier = FollowerId(5);
    let pings = stream::pending().boxed();
    let mut frames = world.fleet.follow(Follow { follower: tier, from: None, all_states: false }, pings).await.unwrap();
    let read = Read { asker: Some(tier), ..within_age(60) };
    world.fleet.get(NAMESPACE, &key("read"), &read).await.unwrap();
    let via = Via { follower: Some(tier), ..Via::default() };
    world.fleet.write(NAMESPACE, &key("written"), put(), via).await.unwrap();
    world.fleet.write_many(NAMESPACE, vec![(key("one of many"), put())], via).await.unwrap();
    for name in ["read", "written", "one of many", "neither"] {
        let state = Some(crate::kv::feed::Pushed::Absent);
        let purge =
            crate::kv::feed::Purge { namespace: NAMESPACE, key: key(name), version: Version::from_u64(1), state };
        world.origins[0].process().says(crate::kv::feed::Item::Purge(purge));
    }
    settle().await;
    let mut decoder = crate::wire::feed::Decoder::default();
    while let Some(Some(Ok(piece))) = frames.next().now_or_never() {
        decoder.add(&piece);
    }
    let mut with_state = Vec::new();
    while let Some(message) = decoder.message().unwrap() {
        if let Message::Items { items, .. } = message {
            with_state.extend(items.into_iter().map(|item| {
                let crate::kv::feed::Item::Purge(purge) = item else { panic!("only purges were said") };
                purge.state.is_some()
            }));
        }
    }
    assert_eq!(with_state, [true, true, true, false]);
}

#[tokio::test]
async fn the_gauges_say_who_is_there_and_how_old_its_word_is() {
    let world = following(2).await;
    world.origins[1].is(Mood::Gone);
    world.origins[1].process().break_links();
    world.pass(5 * SECOND).await;
    world.fleet.measure();
    let text = world.metrics.render();
    for line in
        ["kvasar_fleet_up{tier=\"central\",origin=\"a:1\"} 1", "kvasar_fleet_up{tier=\"central\",origin=\"b:1\"} 0"]
    {
        assert!(text.contains(line), "{line} is not in {text}");
    }
    let age = |origin: &str| {
        let start = format!("kvasar_fleet_feed_age_seconds{{tier=\"central\",origin=\"{origin}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&start)).unwrap().parse::<f64>().unwrap()
    };
    assert!(age("a:1") < 0.5 && (4.0..6.0).contains(&age("b:1")), "{} {}", age("a:1"), age("b:1"));
}
