//! That the simulated store shared by several origins is what it says: a register over it that is written as O1 demands is atomic, whatever its replicas do; and it is not
//! without O1, nor if reads repaired nothing. So both the store and the checker's idea of when a write takes effect stand on something.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use kvasar::{
    error::{Error, Kind},
    kv::Version,
    store::{Batch, Durability, Replaced, RowChange, Store as _, Table},
};

use crate::{
    chance::Chance,
    checker::{Answered, Checker, Demand, Effect, Floor, Seen},
    clock::{Life, MILLI, Nanos, SECOND, Time},
    quorum::{Manner, REPLICAS, Ring, RingStore, Witness},
    world::lock,
};

const KEY: &[u8] = b"the only key of this test";

fn is_unknown(error: &Error) -> bool {
    error.kind == Kind::Unavailable
}

/// What is left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Without {
    Nothing,
    /// It mints by its own clock alone.
    O1,
    Repairs,
}

/// The register's truth, and what any client has learnt of it.
struct Register {
    time: Arc<Time>,
    checker: Mutex<Checker>,
    /// What every later operation must not be behind: it was read, or acknowledged.
    floor: AtomicU64,
    wrong: Mutex<Option<String>>,
    reads: AtomicU64,
    writes: AtomicU64,
    unknown: AtomicU64,
    over: AtomicBool,
}

impl Register {
    fn outcome<T>(&self, outcome: Result<T, String>) {
        if let Err(what) = outcome {
            let at = self.time.now() as f64 / 1e9;
            lock(&self.wrong).get_or_insert(format!("at {at:.6} s: {what}"));
            self.over.store(true, Ordering::Relaxed);
        }
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }
}

impl Witness for Register {
    fn arrived(&self, at: Nanos, change: &RowChange) {
        let put = Effect::Put { expires_at: None };
        let outcome = lock(&self.checker).arrived(at, 0, change.version.as_u64(), put);
        self.outcome(outcome);
    }

    fn reached(&self, at: Nanos, _: Table, _: &Bytes, version: Version) {
        lock(&self.checker).reached(at, 0, version.as_u64());
    }

    fn differ(&self, _: Nanos, change: &RowChange) {
        self.outcome::<()>(Err(format!("two changes of version {:016x}", change.version.as_u64())));
    }
}

/// One of those who read and write it.
struct Client {
    register: Arc<Register>,
    store: RingStore,
    chance: Chance,
    /// Goes into its versions.
    id: u64,
    skew: i64,
    last: u64,
    without: Without,
}

impl Client {
    async fn run(mut self) {
        while !self.register.is_over() {
            let pause = self.chance.exponential(60.0 * MILLI as f64) as Nanos;
            self.register.time.sleep(pause).await;
            if self.chance.happens(0.5) {
                self.write().await;
            } else {
                self.read().await;
            }
        }
    }

    async fn look(&self) -> Option<u64> {
        let found = self.store.get(Table::Entry, KEY).await.ok()?;
        // The row is its version.
        Some(found.map_or(0, |row| row.first_chunk().map_or(0, |version| u64::from_be_bytes(*version))))
    }

    fn mint(&mut self, above: u64) -> u64 {
        let wall = (self.register.time.now() / MILLI) as i64 + 10_000 + self.skew;
        self.last =
            (self.last + 256).max((wall as u64) << 20).max(if self.without == Without::O1 { 0 } else { above + 256 });
        self.last = self.last / 256 * 256 + self.id;
        self.last
    }

    async fn write(&mut self) {
        let (begun, register) = (self.register.time.now(), Arc::clone(&self.register));
        let Some(above) = self.look().await else { return };
        let version = self.mint(above);
        let mut batch = Batch::at(Version::from_u64(version));
        batch.put(Table::Entry, KEY, Bytes::copy_from_slice(&version.to_be_bytes()));
        loop {
            match self.store.commit(batch.clone(), Durability::Synced).await {
                Ok(()) => break,
                // O3, mostly.
                Err(error) if is_unknown(&error) && self.chance.happens(0.9) => {
                    register.unknown.fetch_add(1, Ordering::Relaxed);
                }
                Err(_) => return,
            }
        }
        register.writes.fetch_add(1, Ordering::Relaxed);
        let acknowledged = lock(&register.checker).acknowledged(0, None, version, begun);
        register.outcome(acknowledged);
        register.floor.fetch_max(version, Ordering::Relaxed);
    }

    async fn read(&mut self) {
        let (asked_at, register) = (self.register.time.now(), &self.register);
        let floor = Floor { version: register.floor.load(Ordering::Relaxed) };
        let Some(version) = self.look().await else { return };
        register.reads.fetch_add(1, Ordering::Relaxed);
        let (at, stale_max) = (register.time.now(), Duration::ZERO);
        let seen = if version == 0 { Seen::Absent } else { Seen::Present { version } };
        let age = Duration::from_nanos(at - asked_at);
        let demand = Demand { asked_at, max_age: age, at_least: None, floor };
        let answered = Answered { at, seen, age, stale: false, waited: true, stale_max };
        let outcome = lock(&register.checker).check_read(0, &demand, &answered);
        register.outcome(outcome);
        register.floor.fetch_max(version, Ordering::Relaxed);
    }
}

/// Replicas that fail in turn or together, and clients that are paused.
async fn faults(ring: Arc<Ring>, lives: Vec<(Arc<Life>, Arc<AtomicU64>)>, register: Arc<Register>, mut chance: Chance) {
    while !register.is_over() {
        ring.time.sleep(chance.exponential(2.0 * SECOND as f64) as Nanos).await;
        let replica = chance.below(REPLICAS as u64) as usize;
        let lasting = chance.exponential(2.0 * SECOND as f64) as Nanos;
        match chance.below(5) {
            0 => {
                ring.set_down(replica, true);
                ring.time.sleep(lasting).await;
                ring.set_down(replica, false);
            }
            1 => ring.pause(replica, lasting),
            3 => {
                let (life, ambush) = chance.pick(&lives);
                if chance.clone().happens(0.5) { life.pause(lasting) } else { ambush.store(lasting, Ordering::Relaxed) }
            }
            2 => {
                ring.set_slowness(replica, 60.0);
                ring.time.sleep(lasting).await;
                ring.set_slowness(replica, 1.0);
            }
            _ => {
                ring.set_outage(true);
                ring.time.sleep(lasting / 4).await;
                ring.set_outage(false);
            }
        }
    }
}

fn manner(chance: &mut Chance, without: Without) -> Manner {
    Manner {
        trip: *chance.pick(&[MILLI, 10 * MILLI]),
        late: *chance.pick(&[0.0, 0.02]),
        unknown: *chance.pick(&[0.0, 0.1]),
        hints: chance.happens(0.5),
        repairs: without != Without::Repairs,
        deadline: 2 * SECOND,
    }
}

/// What was found wrong with a register in a world of this seed, and how much was done: reads, writes, and commits of unknown outcome.
fn run(seed: u64, without: Without) -> (Option<String>, [u64; 3]) {
    let time = Arc::new(Time::default());
    let worlds_time = Arc::clone(&time);
    time.run(async move {
        let mut chance = Chance::new(seed);
        let register = Arc::new(Register {
            time: Arc::clone(&worlds_time),
            checker: Mutex::new(Checker::new(1)),
            floor: AtomicU64::new(0),
            wrong: Mutex::default(),
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
            over: AtomicBool::new(false),
        });
        let manner = manner(&mut chance, without);
        let witness: Arc<dyn Witness> = Arc::clone(&register) as Arc<dyn Witness>;
        let ring = Ring::new(&worlds_time, manner, witness, chance.fork());
        let mut lives = Vec::new();
        for id in 0..3 {
            let skew = chance.between(0, 600) as i64 - 300;
            let life = Life::begin(&worlds_time);
            let (register, store) = (Arc::clone(&register), ring.store(&life, &Arc::default()));
            lives.push((life, Arc::clone(&store.ambush)));
            let client = Client { register, store, chance: chance.fork(), id, skew, last: 0, without };
            tokio::spawn(client.run());
        }
        tokio::spawn(faults(Arc::clone(&ring), lives, Arc::clone(&register), chance.fork()));
        worlds_time.sleep(25 * SECOND).await;
        ring.set_calm(true);
        worlds_time.sleep(5 * SECOND).await;
        register.over.store(true, Ordering::Relaxed);
        let done = [&register.reads, &register.writes, &register.unknown].map(|count| count.load(Ordering::Relaxed));
        let wrong = lock(&register.wrong).clone();
        (wrong, done)
    })
}

#[test]
fn a_register_written_above_what_a_quorum_has_is_atomic() {
    let mut sum = [0; 3];
    for seed in 0..100 {
        let (wrong, done) = run(seed, Without::Nothing);
        assert_eq!(wrong, None, "seed {seed}");
        sum.iter_mut().zip(done).for_each(|(sum, done)| *sum += done);
    }
    let [reads, writes, unknown] = sum;
    assert!(reads > 20_000 && writes > 10_000 && unknown > 200, "{reads} reads, {writes} writes, {unknown} unknown");
}

#[test]
fn a_register_written_by_clocks_alone_loses_writes() {
    let found = (0..20).filter_map(|seed| run(seed, Without::O1).0).find(|what| what.contains("overtaken"));
    assert!(found.is_some());
}

#[test]
fn a_register_whose_reads_repair_nothing_goes_back() {
    let found: BTreeSet<_> = (0..40).filter_map(|seed| run(seed, Without::Repairs).0).collect();
    assert!(found.iter().any(|what| what.contains("behind version")), "{found:?}");
}

/// Takes no notice.
struct Nobody;

impl Witness for Nobody {
    fn arrived(&self, _: Nanos, _: &RowChange) {}
    fn reached(&self, _: Nanos, _: Table, _: &Bytes, _: Version) {}
    fn differ(&self, _: Nanos, _: &RowChange) {}
}

/// A ring with nothing wrong but what `unknown` says, and how to get a store on it.
fn ring(time: &Arc<Time>, seed: u64, unknown: f64, hints: bool) -> (Arc<Ring>, impl Fn() -> RingStore + Send + use<>) {
    let manner = Manner { trip: MILLI, late: 0.0, unknown, hints, repairs: true, deadline: 2 * SECOND };
    let ring = Ring::new(time, manner, Arc::new(Nobody), Chance::new(seed));
    let of = (Arc::clone(&ring), Arc::clone(time));
    (ring, move || of.0.store(&Life::begin(&of.1), &Arc::default()))
}

fn put(version: u64, value: &'static str) -> Batch {
    let mut batch = Batch::at(Version::from_u64(version));
    batch.put(Table::Entry, KEY, value);
    batch
}

async fn get(store: &RingStore) -> Option<Bytes> {
    store.get(Table::Entry, KEY).await.expect("the ring answers")
}

#[test]
fn the_greatest_version_stands_whatever_comes_last() {
    let time = Arc::new(Time::default());
    let worlds_time = Arc::clone(&time);
    time.run(async move {
        let (_ring, store) = ring(&worlds_time, 1, 0.0, false);
        let store = store();
        for (version, value) in [(5, "five"), (3, "three"), (4, "four")] {
            store.commit(put(version, value), Durability::Synced).await.expect("the ring answers");
            assert_eq!(get(&store).await.as_deref(), Some(&b"five"[..]));
        }
        let mut removal = Batch::at(Version::from_u64(7));
        removal.remove(Table::Entry, KEY);
        store.commit(removal, Durability::Synced).await.expect("the ring answers");
        store.commit(put(6, "six"), Durability::Synced).await.expect("the ring answers");
        assert_eq!(get(&store).await, None);
        store.commit(put(8, "eight"), Durability::Synced).await.expect("the ring answers");
        assert_eq!(store.scan(Table::Entry, KEY, b"", 10).await.expect("the ring answers").len(), 1);
    });
}

/// One replica may be away, and two may not; and what was away is brought up by reads, or by what was kept for it.
#[test]
fn a_replica_that_comes_back_has_what_it_had() {
    for hints in [false, true] {
        let time = Arc::new(Time::default());
        let worlds_time = Arc::clone(&time);
        time.run(async move {
            let (ring, store) = ring(&worlds_time, 2, 0.0, hints);
            let store = store();
            store.commit(put(1, "one"), Durability::Synced).await.expect("the ring answers");
            ring.set_down(0, true);
            store.commit(put(2, "two"), Durability::Synced).await.expect("two replicas answer");
            ring.set_down(1, true);
            assert!(store.commit(put(3, "three"), Durability::Synced).await.is_err_and(|error| is_unknown(&error)));
            assert!(store.get(Table::Entry, KEY).await.is_err_and(|error| is_unknown(&error)));
            // With the third gone, what it alone has is not known, and the first has what is older.
            ring.set_down(0, false);
            ring.set_down(1, false);
            ring.set_down(2, true);
            worlds_time.sleep(20 * SECOND).await;
            let expected = if hints { "three" } else { "two" };
            assert_eq!(get(&store).await.as_deref(), Some(expected.as_bytes()));
            ring.set_down(2, false);
            // Once a read has found it, each later one does.
            let mut found = false;
            for _ in 0..40 {
                let three = get(&store).await.as_deref() == Some(b"three");
                assert!(three || !found, "a read went back");
                found = three;
            }
            assert!(found);
        });
    }
}

#[test]
fn what_was_answered_with_an_error_may_come_later_or_never() {
    let (mut at_once, mut later, mut never) = (0, 0, 0);
    for seed in 0..60 {
        let time = Arc::new(Time::default());
        let worlds_time = Arc::clone(&time);
        let [first, last] = time.run(async move {
            let (ring, store) = ring(&worlds_time, seed, 1.0, false);
            let store = store();
            assert!(store.commit(put(1, "one"), Durability::Synced).await.is_err_and(|error| is_unknown(&error)));
            let first = get(&store).await.is_some();
            while !ring.is_still() {
                worlds_time.sleep(SECOND).await;
            }
            [first, get(&store).await.is_some()]
        });
        assert!(last || !first, "a read went back");
        match (first, last) {
            (true, _) => at_once += 1,
            (_, true) => later += 1,
            _ => never += 1,
        }
    }
    assert!(at_once > 5 && later > 5 && never > 5, "{at_once} at once, {later} later, {never} never");
}

/// Each adds numbers of its own to a record, and looks again after an error: none is there twice, and none is missing that was said to be there.
#[test]
fn agreed_records_are_changed_one_after_the_other() {
    let mut undecided = 0;
    for seed in 0..30 {
        let time = Arc::new(Time::default());
        let worlds_time = Arc::clone(&time);
        undecided += time.run(async move {
            let (_ring, store) = ring(&worlds_time, seed, 0.3, false);
            let adders: Vec<_> = (0..4u8).map(|adder| tokio::spawn(add(store(), adder))).collect();
            let (mut said, mut undecided) = (BTreeSet::new(), 0);
            for adder in adders {
                let (added, errors) = adder.await.expect("an adder does not panic");
                said.extend(added);
                undecided += errors;
            }
            worlds_time.sleep(10 * SECOND).await;
            let agreed = loop {
                if let Ok(agreed) = store().agreement().expect("the ring has agreed records").read("numbers").await {
                    break agreed;
                }
            };
            let there: BTreeSet<_> = agreed.value.chunks(2).map(<[u8]>::to_vec).collect();
            assert_eq!(there.len() * 2, agreed.value.len(), "a change was made twice");
            assert_eq!(there.len() as u64, agreed.revision, "a change was made on what another had replaced");
            assert!(there.is_superset(&said), "a change that was said to be made is not");
            undecided
        });
    }
    assert!(undecided > 100, "{undecided}");
}

async fn add(store: RingStore, adder: u8) -> (Vec<Vec<u8>>, u64) {
    let agreement = store.agreement().expect("the ring has agreed records");
    let (mut added, mut undecided) = (Vec::new(), 0);
    for number in 0..10 {
        let mine = vec![adder, number];
        loop {
            let Ok(agreed) = agreement.read("numbers").await else { continue };
            if agreed.value.chunks(2).any(|there| there == mine) {
                break;
            }
            let value = [&agreed.value[..], &mine].concat().into();
            match agreement.replace("numbers", agreed.revision, value).await {
                Ok(Replaced::Done) => break,
                Ok(Replaced::Overtaken(_)) => {}
                Err(_) => undecided += 1,
            }
        }
        added.push(mine);
    }
    (added, undecided)
}
