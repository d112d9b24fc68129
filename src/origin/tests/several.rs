//! Several origins on one store: each has a clock of its own, and they know of each other by the store alone.

use std::sync::Arc;

use tokio::task::JoinHandle;

use super::*;
use crate::{
    clock::Clock as _,
    error::Kind,
    kv::{
        Taken, Version, WriteId,
        feed::{Follow, FollowerId, Frames, Member, Message},
    },
    store::{
        Batch, Durability, Store as _,
        keys::{Members, Record},
        memory::FailedCommit,
    },
    wire::feed::{Decoder, encode_ping},
};

const LEASE: Duration = Duration::from_secs(10);

/// One of several origins, with a clock that is moved together with the others'.
struct One {
    clock: Arc<ManualClock>,
    origin: Arc<Origin>,
    namespace: NamespaceId,
}

struct Several {
    store: Arc<MemoryStore>,
    time: Arc<ManualClock>,
    clocks: Vec<Arc<ManualClock>>,
    opened: usize,
    namespace: NamespaceId,
}

impl Several {
    /// A store with an account and a namespace, which an origin made that has left.
    async fn start() -> Several {
        let time = ManualClock::shared();
        let store = Arc::new(MemoryStore::shared(Arc::new(Arc::clone(&time))));
        let mut several = Several { store, time, clocks: Vec::new(), opened: 0, namespace: NamespaceId::from_u128(0) };
        let first = several.open(0).await;
        first.origin.ensure_account(&Account { id: ACCOUNT, name: "test".into() }).await.unwrap();
        several.namespace = create_namespace(&first.origin, "default").await.unwrap();
        several.close(&first).await;
        several
    }

    /// Another origin, whose wall clock is so many milliseconds off.
    async fn open(&mut self, skew: i64) -> One {
        self.opening(skew).await.unwrap()
    }

    fn opening(&mut self, skew: i64) -> JoinHandle<One> {
        let clock = ManualClock::shared();
        clock.step_wall(
            i64::try_from(self.time.wall_millis()).unwrap() - i64::try_from(clock.wall_millis()).unwrap() + skew,
        );
        // Each draws other numbers.
        self.opened += 1;
        for _ in 0..97 * self.opened {
            clock.random();
        }
        self.clocks.push(Arc::clone(&clock));
        let settings = OriginSettings { address: format!("origin-{}:7000", self.opened), ..OriginSettings::default() };
        let (store, namespace) = (Arc::clone(&self.store), self.namespace);
        tokio::spawn(async move {
            let origin = open(&clock, &store, settings).await;
            One { clock, origin, namespace }
        })
    }

    /// Two that both write.
    async fn two(&mut self, skews: [i64; 2]) -> (One, One) {
        let first = self.open(skews[0]).await;
        let second = self.open(skews[1]).await;
        self.pass(LEASE + LEASE / 5).await;
        (first, second)
    }

    /// Lets time pass for all, in steps in which their tasks come round.
    async fn pass(&self, duration: Duration) {
        let step = SECOND / 4;
        for _ in 0..duration.as_millis().div_ceil(step.as_millis()) {
            self.time.advance(step);
            self.clocks.iter().for_each(|clock| clock.advance(step));
            settle().await;
        }
    }

    async fn close(&self, one: &One) {
        let closing = tokio::spawn({
            let origin = Arc::clone(&one.origin);
            async move { origin.close().await }
        });
        while !closing.is_finished() {
            settle().await;
            one.clock.advance(Duration::from_millis(1));
        }
        closing.await.unwrap();
    }

    /// A write that the store has as an intent, and nothing of it yet.
    async fn intend(&self, one: &One, name: &'static str, value: &'static str) -> JoinHandle<Result<Written>> {
        self.write_failing(one, 1, FailedCommit::Lost, name, value).await
    }

    async fn write_failing(
        &self,
        one: &One,
        after: usize,
        outcome: FailedCommit,
        name: &'static str,
        value: &'static str,
    ) -> JoinHandle<Result<Written>> {
        self.store.fail_after(after, outcome);
        let (origin, namespace) = (Arc::clone(&one.origin), self.namespace);
        let change = Change::Put { value: Bytes::from(value).into(), metadata: None, expires: Expires::Never };
        let writing = tokio::spawn(async move { origin.write(namespace, &key(name), change, Via::default()).await });
        settle().await;
        writing
    }

    /// As `kill -9` does.
    fn kill(&mut self, one: One) {
        self.clocks.retain(|clock| !Arc::ptr_eq(clock, &one.clock));
        // Its tasks wait for a clock that nobody moves any more.
        std::mem::forget(one);
    }
}

async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

impl One {
    async fn put(&self, name: &str, value: impl Into<Bytes>) -> Result<Version> {
        self.put_named(name, value, None).await
    }

    async fn put_named(&self, name: &str, value: impl Into<Bytes>, id: Option<u64>) -> Result<Version> {
        let change = Change::Put { value: value.into().into(), metadata: None, expires: Expires::Never };
        let via = Via { id: id.map(WriteId), ..Via::default() };
        self.origin.write(self.namespace, &key(name), change, via).await.map(|written| written.version)
    }

    async fn delete(&self, name: &str) -> Version {
        self.origin.write(self.namespace, &key(name), Change::Delete, Via::default()).await.unwrap().version
    }

    async fn answer(&self, name: &str) -> Answer {
        self.origin.get(self.namespace, &key(name), &Read::latest()).await.unwrap()
    }

    async fn get(&self, name: &str) -> Option<Bytes> {
        match self.answer(name).await.state {
            State::Present(entry) => Some(entry.value.collect(u64::MAX).await.unwrap()),
            _ => None,
        }
    }

    async fn names(&self) -> Vec<String> {
        let list = List { prefix: Bytes::new(), limit: 1000, cursor: None };
        names(&self.origin.list(self.namespace, &list).await.unwrap())
    }

    /// What a follower that pinged once has heard by now.
    async fn heard(&self) -> Vec<Message> {
        let ping: Frames =
            futures_util::stream::iter([Ok(encode_ping(7))]).chain(futures_util::stream::pending()).boxed();
        let follow = Follow { follower: FollowerId(1), from: None, all_states: false };
        let mut frames = self.origin.follow(follow, ping).await.unwrap();
        let mut decoder = Decoder::default();
        let mut messages = Vec::new();
        loop {
            let next = tokio::select! {
                biased;
                piece = frames.next() => piece,
                () = settle() => None,
            };
            let Some(piece) = next else { return messages };
            decoder.add(&piece.unwrap());
            while let Some(message) = decoder.message().unwrap() {
                messages.push(message);
            }
        }
    }

    async fn members(&self) -> Vec<Member> {
        let messages = self.heard().await;
        messages
            .into_iter()
            .find_map(|message| if let Message::Members(members) = message { Some(members.list) } else { None })
            .unwrap()
    }

    async fn proves_something(&self) -> bool {
        self.heard().await.iter().any(|message| matches!(message, Message::Echo(echo) if echo.proof.is_some()))
    }
}

#[tokio::test]
async fn sequential_writes_through_alternating_origins_are_ordered_as_they_happened() {
    let mut several = Several::start().await;
    let (ahead, behind) = several.two([300, 0]).await;
    let mut last = Version::ZERO;
    for round in 0..10_000u32 {
        let (writer, reader) = if round % 2 == 0 { (&ahead, &behind) } else { (&behind, &ahead) };
        if round % 100 == 0 {
            several.time.advance(Duration::from_millis(1));
            several.clocks.iter().for_each(|clock| clock.advance(Duration::from_millis(1)));
        }
        let version = if round % 7 == 6 {
            writer.delete("k").await
        } else {
            writer.put("k", Bytes::from(round.to_string())).await.unwrap()
        };
        assert!(version > last, "round {round}: {version} after {last}");
        last = version;
        let expected = (round % 7 != 6).then(|| Bytes::from(round.to_string()));
        assert_eq!(reader.get("k").await, expected, "round {round}");
        assert!(reader.answer("k").await.version >= version);
    }
}

#[tokio::test]
async fn what_is_deleted_or_expired_is_remembered_for_a_while_and_listed_by_nobody() {
    let mut several = Several::start().await;
    let one = several.open(0).await;
    one.put("gone", "1").await.unwrap();
    one.put("there", "2").await.unwrap();
    let version = one.delete("gone").await;
    assert_eq!(one.names().await, ["there"]);
    assert!(one.answer("gone").await.version >= version);
    let rows = several.store.count(Table::Entry);
    several.pass(Duration::from_secs(3700)).await;
    one.get("gone").await;
    assert_eq!(several.store.count(Table::Entry), rows - 1);
    assert_eq!(one.names().await, ["there"]);
}

#[tokio::test]
async fn a_write_that_is_handed_in_again_takes_effect_once() {
    let mut several = Several::start().await;
    let (first, second) = several.two([0, 300]).await;
    let version = first.put_named("k", "mine", Some(76)).await.unwrap();
    assert_eq!(second.put_named("k", "mine", Some(76)).await.unwrap(), version);
    let other = second.put_named("k", "theirs", Some(78)).await.unwrap();
    assert_eq!(first.put_named("k", "mine", Some(76)).await.unwrap(), version);
    assert_eq!(first.get("k").await.unwrap(), "theirs");
    assert_eq!(first.answer("k").await.version, other);
    // Another write's name is another write.
    assert!(first.put_named("k", "mine again", Some(80)).await.unwrap() > other);
}

#[tokio::test]
async fn a_write_handed_in_again_is_refused_rather_than_taken_twice() {
    let mut several = Several::start().await;
    let (one, elsewhere) = several.two([0, 0]).await;
    let id = WriteId::drawn(76);
    let version = one.put_named("k", "mine", Some(id.0)).await.unwrap();
    let others = Record::NAMED_MAX as u64;
    for other in 1..others {
        one.put_named("k", "theirs", Some(1000 + 2 * other)).await.unwrap();
    }
    assert_eq!(one.put_named("k", "mine", Some(id.again().0)).await.unwrap(), version, "it is remembered still");
    one.put_named("k", "theirs", Some(2000)).await.unwrap();
    assert_eq!(one.put_named("k", "mine", Some(id.again().0)).await.unwrap(), version, "who took it knows it longer");
    let error = elsewhere.put_named("k", "mine", Some(id.again().0)).await.unwrap_err();
    assert!(error.kind == Kind::Unavailable && !error.untaken, "{error}");
    assert_eq!(one.get("k").await.unwrap(), "theirs");
    // What was not handed in before is a new write in any case; and what comes again to a key that nobody has written was not taken.
    one.put_named("k", "new", Some(3000)).await.unwrap();
    assert_eq!(one.get("k").await.unwrap(), "new");
    elsewhere.put_named("another", "mine", Some(id.again().0)).await.unwrap();
    several.pass(400 * SECOND).await;
    elsewhere.put_named("k", "long after", Some(WriteId::drawn(78).again().0)).await.unwrap();
    assert_eq!(one.get("k").await.unwrap(), "long after");
}

#[tokio::test]
async fn an_outcome_that_is_not_known_is_found_out_with_the_same_version() {
    for (outcome, commits) in
        [(FailedCommit::Lost, 0), (FailedCommit::Kept, 0), (FailedCommit::Lost, 1), (FailedCommit::Kept, 1)]
    {
        let mut several = Several::start().await;
        let one = several.open(0).await;
        // Either what is intended, or what is done.
        let writing = several.write_failing(&one, commits, outcome, "k", "v").await;
        assert!(!writing.is_finished(), "it waits until it knows");
        several.pass(SECOND).await;
        let version = writing.await.unwrap().unwrap().version;
        assert_eq!(one.answer("k").await.version, version);
        assert_eq!(one.get("k").await.unwrap(), "v");
    }
}

#[tokio::test]
async fn a_newcomer_waits_a_lease_before_it_writes_unless_it_is_alone() {
    let mut several = Several::start().await;
    let first = several.open(0).await;
    first.put("k", "1").await.unwrap();
    let second = several.open(0).await;
    several.pass(LEASE - SECOND).await;
    let error = second.put("k", "2").await.unwrap_err();
    assert!(error.message.contains("takes writes in"), "{error}");
    assert_eq!(error.kind, crate::error::Kind::Unavailable);
    assert_eq!(second.get("k").await.unwrap(), "1", "it reads from the start");
    several.pass(SECOND * 3).await;
    second.put("k", "2").await.unwrap();
}

#[tokio::test]
async fn a_follower_is_told_who_may_write_before_anything_is_proven_of_it() {
    let mut several = Several::start().await;
    let first = several.open(0).await;
    assert_eq!(first.members().await.len(), 1);
    let _second = several.open(0).await;
    several.pass(SECOND * 2).await;
    let addresses: Vec<String> = first.members().await.into_iter().map(|member| member.address).collect();
    assert_eq!(addresses, ["origin-2:7000", "origin-3:7000"]);
    let messages = first.heard().await;
    let at = |found: fn(&Message) -> bool| messages.iter().position(found).unwrap();
    assert!(at(|message| matches!(message, Message::Members(_))) < at(|message| matches!(message, Message::Echo(_))));
}

#[tokio::test]
async fn an_origin_that_can_not_refresh_its_lease_writes_and_proves_nothing_more() {
    let mut several = Several::start().await;
    let (first, second) = several.two([0, 0]).await;
    assert!(first.proves_something().await);
    // The database is away from one of them alone: its clock goes on, and nothing of it does.
    several.store.fail_reads(true);
    several.pass(LEASE / 2).await;
    several.store.fail_reads(false);
    assert!(first.proves_something().await && second.proves_something().await);
    several.store.fail_reads(true);
    several.pass(LEASE).await;
    assert!(first.put("k", "1").await.is_err());
    assert!(!first.proves_something().await);
    first.origin.failed().await;
    several.store.fail_reads(false);
    assert!(first.put("k", "1").await.is_err(), "it never comes back as the same");
}

#[tokio::test]
async fn what_an_origin_that_died_intended_is_carried_out_before_it_is_forgotten() {
    let mut several = Several::start().await;
    let (first, second) = several.two([0, 300]).await;
    several.intend(&first, "k", "mine").await;
    assert_eq!(second.get("k").await, None);
    let epoch = first.origin.feed().position().epoch;
    several.kill(first);
    several.pass(LEASE).await;
    assert!(second.members().await.iter().any(|member| member.epoch == epoch), "it may live");
    several.pass(SECOND * 4).await;
    assert_eq!(second.get("k").await.unwrap(), "mine");
    assert!(second.members().await.iter().all(|member| member.epoch != epoch));
    second.put("k", "theirs").await.unwrap();
    assert_eq!(second.get("k").await.unwrap(), "theirs");
}

/// As when each of them crashes soon after its start: none is there for long enough to find out about the others.
#[tokio::test]
async fn a_list_that_is_full_of_origins_that_died_keeps_no_newcomer_out() {
    let mut several = Several::start().await;
    let first = several.open(0).await;
    several.intend(&first, "k", "intended").await;
    several.kill(first);
    for _ in 1..Version::ORIGINS_MAX {
        let one = several.open(0).await;
        several.kill(one);
    }
    let opening = several.opening(0);
    several.pass(LEASE).await;
    assert!(!opening.is_finished(), "they may live");
    several.pass(SECOND * 3).await;
    assert!(opening.is_finished());
    let one = opening.await.unwrap();
    assert_eq!(one.get("k").await.unwrap(), "intended", "the dead one that made room");
    assert_eq!(one.members().await.len(), Version::ORIGINS_MAX as usize);
    several.pass(LEASE + LEASE / 2).await;
    assert_eq!(one.members().await.len(), 1);
    one.put("k", "new").await.unwrap();
}

#[tokio::test]
async fn one_that_died_while_it_finished_for_another_is_finished_for_as_well() {
    let mut several = Several::start().await;
    let (first, second) = several.two([0, 0]).await;
    let third = several.open(0).await;
    several.pass(LEASE + LEASE / 5).await;
    several.intend(&first, "k", "intended").await;
    several.kill(first);
    // One of the two says that it is the heir, and gets no further.
    let heirs = async || {
        let members = Members::parse(&several.store.agreement().unwrap().read(Members::NAME).await.unwrap()).unwrap();
        members.members.into_iter().filter_map(|member| member.heir).collect::<Vec<_>>()
    };
    let mut waited = Duration::ZERO;
    while heirs().await.is_empty() {
        several.store.fail_after(0, FailedCommit::Lost);
        several.pass(SECOND / 4).await;
        waited += SECOND / 4;
        assert!(waited < LEASE * 2);
    }
    let heir = heirs().await[0];
    let (heir, other) = if second.origin.feed().position().epoch == heir { (second, third) } else { (third, second) };
    several.kill(heir);
    several.pass(LEASE).await;
    assert_eq!(other.get("k").await, None, "the heir may still be at it");
    several.pass(LEASE).await;
    assert_eq!(other.get("k").await.unwrap(), "intended");
    assert_eq!(other.members().await.len(), 1);
}

/// Finishing takes as long as the store lets it; the lease does not wait for it, and the others that died no longer than for a lease each.
#[tokio::test]
async fn an_origin_that_can_not_be_finished_for_costs_nobody_else_a_lease() {
    let mut several = Several::start().await;
    let (first, survivor) = several.two([0, 0]).await;
    several.intend(&first, "k", "intended").await;
    let idle = several.open(0).await;
    several.kill(first);
    several.kill(idle);
    for _ in 0..4 * 4 * LEASE.as_secs() {
        several.store.fail_after(0, FailedCommit::Lost);
        several.pass(SECOND / 4).await;
        assert!(survivor.proves_something().await);
    }
    assert_eq!(survivor.members().await.len(), 2, "the idle one is off the list, the other one can't be");
    several.pass(LEASE * 2).await;
    assert_eq!(survivor.members().await.len(), 1);
    assert_eq!(survivor.get("k").await.unwrap(), "intended");
}

#[tokio::test]
async fn of_a_removed_namespace_what_says_that_entries_were_deleted_goes_as_well() {
    let mut several = Several::start().await;
    // What the first says of a deletion stays for ten minutes longer than the second would have it.
    let (ahead, other) = several.two([600_000, 0]).await;
    let rows = several.store.count(Table::Entry);
    for name in ["deleted", "never there"] {
        ahead.put(name, "v").await.unwrap();
        ahead.delete(name).await;
    }
    other.origin.control(ACCOUNT, Control::RemoveNamespace { id: several.namespace }).await.unwrap();
    several.pass(Duration::from_secs(2400)).await;
    assert!(several.store.count(Table::Entry) > rows, "somebody may be writing to it");
    several.pass(Duration::from_secs(1000)).await;
    assert_eq!(several.store.count(Table::Entry), rows);
    assert_eq!(several.store.count(Table::Reclaim), 0);
}

/// Nobody can say what it names.
#[tokio::test]
async fn what_a_garbled_entry_may_name_is_not_removed() {
    let mut several = Several::start().await;
    let one = several.open(0).await;
    one.put("large", pattern(200_000, 1)).await.unwrap();
    one.put("large", pattern(100_000, 2)).await.unwrap();
    let row = crate::store::keys::entry(several.namespace, b"large");
    let later = Version::first_of(several.time.wall_millis() + 10_000, 0);
    let mut garbled = Batch::at(later);
    garbled.put(Table::Entry, row, Bytes::from_static(b"\xffgarbled"));
    several.store.commit(garbled, Durability::Synced).await.unwrap();
    let chunks = several.store.count(Table::Chunk);
    several.pass(Duration::from_secs(7200)).await;
    assert_eq!(several.store.count(Table::Chunk), chunks);
    // And it holds up nothing else.
    one.put("other", pattern(100_000, 3)).await.unwrap();
    one.delete("other").await;
    several.pass(Duration::from_secs(7200)).await;
    assert_eq!(several.store.count(Table::Chunk), chunks);
}

#[tokio::test]
async fn one_that_leaves_says_so_behind_its_last_purge_and_is_waited_for_by_nobody() {
    let mut several = Several::start().await;
    let (first, second) = several.two([0, 0]).await;
    first.put("k", "1").await.unwrap();
    several.close(&first).await;
    assert!(first.heard().await.contains(&Message::End));
    assert!(first.put("k", "2").await.is_err());
    several.pass(SECOND * 2).await;
    assert_eq!(second.members().await.len(), 1);
    second.put("k", "2").await.unwrap();
    // The last one, too; who comes then is alone, and waits for nobody.
    several.close(&second).await;
    let third = several.open(-300).await;
    let before = second.answer("k").await.version;
    assert!(third.put("k", "3").await.unwrap() > before);
}

#[tokio::test]
async fn no_absence_is_dated_above_a_purge_that_is_still_to_come() {
    let mut several = Several::start().await;
    let (first, second) = several.two([0, 300]).await;
    // What the first is about to write is minted, and not in the store yet.
    let writing = several.intend(&first, "k", "v").await;
    let absent = second.answer("k").await;
    assert!(matches!(absent.state, State::Absent));
    let own = first.answer("k").await;
    several.pass(SECOND).await;
    let version = writing.await.unwrap().unwrap().version;
    assert!(absent.version < version && own.version < version, "{} {} {version}", absent.version, own.version);
    assert!(absent.version > Version::ZERO);
}

#[tokio::test]
async fn what_one_decides_the_others_know() {
    let mut several = Several::start().await;
    let (first, second) = several.two([0, 0]).await;
    let namespace = create_namespace(&first.origin, "new").await.unwrap();
    let change = Change::Put { value: Bytes::from("v").into(), metadata: None, expires: Expires::Never };
    second.origin.write(namespace, &key("k"), change, Via::default()).await.unwrap();
    let error = create_namespace(&second.origin, "new").await.unwrap_err();
    assert_eq!(error.kind, crate::error::Kind::NamespaceExists);
    second.origin.control(ACCOUNT, Control::RemoveNamespace { id: namespace }).await.unwrap();
    several.pass(SECOND * 2).await;
    assert!(first.origin.get(namespace, &key("k"), &Read::latest()).await.is_err());
}

#[tokio::test]
async fn two_that_decide_at_once_decide_one_after_the_other() {
    let mut several = Several::start().await;
    let (first, second) = several.two([0, 0]).await;
    let deciding: Vec<_> = [&first, &second, &first, &second]
        .into_iter()
        .map(|one| {
            let origin = Arc::clone(&one.origin);
            tokio::spawn(async move { create_namespace(&origin, "same").await.is_ok() })
        })
        .collect();
    several.pass(SECOND * 3).await;
    let mut made = 0;
    for decided in deciding {
        made += usize::from(decided.await.unwrap());
    }
    assert_eq!(made, 1);
}

#[tokio::test]
async fn one_that_is_off_the_list_keeps_nobody_from_deciding() {
    let mut several = Several::start().await;
    let (first, second) = several.two([0, 0]).await;
    several.close(&first).await;
    let error = create_namespace(&first.origin, "late").await.unwrap_err();
    assert!(error.untaken, "{error}");
    create_namespace(&second.origin, "new").await.unwrap();
    // Nor does one that was, when it decided.
    let agreement = several.store.agreement().unwrap();
    let agreed = agreement.read(Members::NAME).await.unwrap();
    let mut members = Members::parse(&agreed).unwrap();
    members.deciding = Some(first.origin.feed().position().epoch);
    agreement.replace(Members::NAME, agreed.revision, members.encode().unwrap()).await.unwrap();
    create_namespace(&second.origin, "newer").await.unwrap();
}

#[tokio::test]
async fn values_that_nobody_names_go_once_nobody_can_be_reading_them() {
    let mut several = Several::start().await;
    let one = several.open(0).await;
    one.put("large", pattern(200_000, 1)).await.unwrap();
    one.put("medium", pattern(5_000, 2)).await.unwrap();
    let chunks = several.store.count(Table::Chunk);
    assert_eq!(chunks, 5);
    one.put("large", pattern(100_000, 3)).await.unwrap();
    one.origin
        .write(
            several.namespace,
            &key("broken"),
            Change::Put { value: broken_stream(pattern(150_000, 4)), metadata: None, expires: Expires::Never },
            Via::default(),
        )
        .await
        .unwrap_err();
    assert!(several.store.count(Table::Chunk) > chunks + 2);
    several.pass(Duration::from_secs(1800)).await;
    assert!(several.store.count(Table::Chunk) > chunks + 2, "somebody may be reading them");
    several.pass(Duration::from_secs(3600)).await;
    assert_eq!(several.store.count(Table::Chunk), 3);
    assert_eq!(several.store.count(Table::Reclaim), 0);
    assert_eq!(one.get("large").await.unwrap(), pattern(100_000, 3));
    assert_eq!(one.get("medium").await.unwrap(), pattern(5_000, 2));
}

#[tokio::test]
async fn what_became_of_a_write_is_known_once_the_origin_that_may_have_taken_it_is_gone() {
    let mut several = Several::start().await;
    let (first, second) = several.two([0, 0]).await;
    let taken = first.put_named("k", "mine", Some(76)).await.unwrap();
    // So many others that the record has forgotten it.
    for other in 0..=Record::NAMED_MAX as u64 {
        second.put_named("k", "theirs", Some(1000 + 2 * other)).await.unwrap();
    }
    let epoch = first.origin.feed().position().epoch;
    let namespace = several.namespace;
    let again = async |id: u64, epoch: u64, ago: u64| {
        let value = Bytes::from("mine").into();
        let change = Change::Put { value, metadata: None, expires: Expires::Never };
        let taken = Some(Taken { epoch, ago: Duration::from_secs(ago) });
        let via = Via { id: Some(WriteId(id).again()), taken, ..Via::default() };
        second.origin.write(namespace, &key("k"), change, via).await.map(|written| written.version)
    };
    assert!(again(76, epoch, 1).await.is_err(), "it may take it still");
    several.kill(first);
    several.pass(LEASE + SECOND * 4).await;
    assert_eq!(again(76, epoch, 20).await.unwrap(), taken);
    assert_eq!(second.get("k").await.unwrap(), "theirs");
    assert!(again(78, epoch, 600).await.is_err(), "what it did is not known for so long");
    assert!(again(78, 12345, 20).await.is_err(), "nobody knows of that one");
    // That one the dead origin never took, and never will.
    assert!(again(78, epoch, 20).await.unwrap() > taken);
    assert_eq!(second.get("k").await.unwrap(), "mine");
}

#[tokio::test]
async fn a_write_that_was_meant_for_an_earlier_origin_is_not_taken() {
    let mut several = Several::start().await;
    let one = several.open(0).await;
    let put = |to: u64| {
        let change = Change::Put { value: Bytes::from("v").into(), metadata: None, expires: Expires::Never };
        let origin = Arc::clone(&one.origin);
        let namespace = several.namespace;
        async move { origin.write(namespace, &key("k"), change, Via { to: Some(to), ..Via::default() }).await }
    };
    let epoch = one.origin.feed().position().epoch;
    assert!(put(epoch ^ 1).await.unwrap_err().untaken);
    put(epoch).await.unwrap();
}
