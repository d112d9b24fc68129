//! Which cache to keep entries in: miss ratio, bytes beside each entry, and time per call of the candidates.
//!
//! Memory and time are measured in a process of its own for each candidate, which is this
//! program again with arguments.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    hint::black_box,
    process::Command,
    sync::Arc,
    time::Instant,
};

use crate::{
    chance::{Chance, Zipf},
    process::memory,
};
use bytes::Bytes;
use kvasar::{
    cache::memory::Memory,
    clock::{Clock, Moment, RealClock},
    kv::{
        Key, NamespaceId, Version,
        kept::{Content, EntryKey, Kept, KeptValue, Verified},
    },
};

const KEYS: usize = 1_000_000;
const EXPONENT: f64 = 0.9;
const VALUE_BYTES: usize = 300;
const SHARES: [f64; 3] = [0.01, 0.1, 0.3];
/// Requests that only fill, and those that are counted.
const WARM_UP: usize = 3_000_000;
const COUNTED: usize = 5_000_000;
/// After so many requests a job reads so many keys in order that nobody else asks for.
const SCAN_EVERY: usize = 100_000;
const SCAN_KEYS: usize = 50_000;

type Value = Arc<[u8]>;

/// A candidate, with room for so many entries of [`VALUE_BYTES`].
trait Candidate {
    fn get(&mut self, key: u32) -> bool;
    fn insert(&mut self, key: u32, value: Value);
    fn entries(&mut self) -> usize;
}

const CANDIDATES: [&str; 5] = ["quick_cache", "moka", "foyer S3-FIFO", "foyer LFU", "kvasar"];
const REFERENCES: [&str; 2] = ["S3-FIFO", "LRU"];

fn candidate(name: &str, room: usize) -> Box<dyn Candidate> {
    match name {
        "quick_cache" => Box::new(Quick::new(room)),
        "moka" => Box::new(Moka::new(room)),
        "foyer S3-FIFO" => Box::new(Foyer::new(room, foyer_memory::S3FifoConfig::default())),
        "foyer LFU" => Box::new(Foyer::new(room, foyer_memory::LfuConfig::default())),
        "kvasar" => Box::new(Kvasar::new(room)),
        "S3-FIFO" => Box::new(S3Fifo::new(room)),
        "LRU" => Box::new(Lru::new(room)),
        other => panic!("there is no candidate {other}"),
    }
}

/// What is measured in a process of its own, for one cache.
#[derive(clap::Subcommand)]
pub enum Part {
    /// The first table for these alone
    Misses { names: Vec<String> },
    /// Bytes beside each entry
    Memory { name: String },
    /// Nanoseconds of a call
    Time { name: String },
}

pub fn run(part: Option<&Part>) {
    match part {
        None => tables(),
        Some(Part::Misses { names }) => misses(&names.iter().map(String::as_str).collect::<Vec<_>>()),
        Some(Part::Memory { name }) => println!("{:.0}", bytes_beside_each_entry(name)),
        Some(Part::Time { name }) => {
            let (get, insert) = nanos_per_call(name);
            println!("{get:.0} | {insert:.0}");
        }
    }
}

fn tables() {
    misses(&CANDIDATES.into_iter().chain(REFERENCES).collect::<Vec<_>>());
    println!("\n| | bytes beside an entry | get, ns | insert, ns |\n|---|---|---|---|");
    for name in CANDIDATES {
        println!("| {name} | {} | {} |", in_own_process("memory", name), in_own_process("time", name));
    }
}

fn misses(names: &[&str]) {
    println!("| | {} |", SHARES.map(|share| format!("{}% | with scans", share * 100.0)).join(" | "));
    println!("|---|{}", "---|".repeat(SHARES.len() * 2));
    let trace = trace();
    for name in names {
        let ratios = SHARES.iter().flat_map(|share| [false, true].map(|scans| miss_ratio(name, *share, &trace, scans)));
        let cells: Vec<String> = ratios.map(|ratio| format!("{:.1}%", ratio * 100.0)).collect();
        println!("| {name} | {} |", cells.join(" | "));
    }
}

fn in_own_process(what: &str, name: &str) -> String {
    let this = std::env::current_exe().expect("this program is a file");
    let output = Command::new(this).args(["cache-policy", what, name]).output().expect("this program runs");
    assert!(output.status.success(), "{what} {name}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn trace() -> Vec<u32> {
    let zipf = Zipf::new(KEYS, EXPONENT);
    let mut chance = Chance::new(1);
    (0..WARM_UP + COUNTED).map(|_| zipf.draw(&mut chance)).collect()
}

/// The share of the trace's requests that find nothing; the scans' own are not counted.
fn miss_ratio(name: &str, share: f64, trace: &[u32], scans: bool) -> f64 {
    let mut candidate = candidate(name, (KEYS as f64 * share) as usize);
    let value: Value = vec![0; VALUE_BYTES].into();
    let mut next_scanned = KEYS as u32;
    let mut misses = 0usize;
    for (at, key) in trace.iter().enumerate() {
        if !candidate.get(*key) {
            candidate.insert(*key, Arc::clone(&value));
            misses += usize::from(at >= WARM_UP);
        }
        if scans && at % SCAN_EVERY == SCAN_EVERY - 1 {
            for key in next_scanned..next_scanned + SCAN_KEYS as u32 {
                if !candidate.get(key) {
                    candidate.insert(key, Arc::clone(&value));
                }
            }
            next_scanned += SCAN_KEYS as u32;
        }
    }
    misses as f64 / COUNTED as f64
}

/// What the process grows by for each entry that it holds, beside the value itself: after twice as many inserts as there is room for, so that
/// what is remembered of evicted entries counts, too.
fn bytes_beside_each_entry(name: &str) -> f64 {
    const ROOM: usize = 500_000;
    let own = std::process::id();
    let before = memory(own, "VmRSS");
    let mut candidate = candidate(name, ROOM);
    for key in 0..2 * ROOM as u32 {
        candidate.get(key);
        candidate.insert(key, vec![key as u8; VALUE_BYTES].into());
    }
    let grown = memory(own, "VmRSS") - before;
    grown as f64 / candidate.entries() as f64 - VALUE_BYTES as f64
}

/// Time of a get that finds something, and of an insert of a new key into a full cache, both on one thread and without other work.
fn nanos_per_call(name: &str) -> (f64, f64) {
    const ROOM: usize = 100_000;
    const CALLS: usize = 2_000_000;
    let mut candidate = candidate(name, ROOM);
    let value: Value = vec![0; VALUE_BYTES].into();
    for key in 0..KEYS as u32 {
        candidate.insert(key, Arc::clone(&value));
    }
    let zipf = Zipf::new(KEYS, EXPONENT);
    let mut chance = Chance::new(2);
    let held: Vec<u32> = (0..KEYS as u32).filter(|key| candidate.get(*key)).collect();
    let asked: Vec<u32> = (0..CALLS).map(|_| held[zipf.draw(&mut chance) as usize % held.len()]).collect();
    let start = Instant::now();
    let found = asked.iter().filter(|key| black_box(candidate.get(**key))).count();
    let get = start.elapsed();
    assert_eq!(found, CALLS, "{name} lost what it held without an insert");
    let start = Instant::now();
    for key in 0..CALLS as u32 {
        candidate.insert(KEYS as u32 + key, Arc::clone(&value));
    }
    let insert = start.elapsed();
    (get.as_nanos() as f64 / CALLS as f64, insert.as_nanos() as f64 / CALLS as f64)
}

struct Quick(quick_cache::sync::Cache<u32, Value, ByLength>);

#[derive(Clone)]
struct ByLength;

impl quick_cache::Weighter<u32, Value> for ByLength {
    fn weight(&self, _: &u32, value: &Value) -> u64 {
        value.len() as u64
    }
}

impl Quick {
    fn new(room: usize) -> Quick {
        Quick(quick_cache::sync::Cache::with_weighter(room, (room * VALUE_BYTES) as u64, ByLength))
    }
}

impl Candidate for Quick {
    fn get(&mut self, key: u32) -> bool {
        self.0.get(&key).is_some()
    }

    fn insert(&mut self, key: u32, value: Value) {
        self.0.insert(key, value);
    }

    fn entries(&mut self) -> usize {
        self.0.len()
    }
}

struct Moka(moka::sync::Cache<u32, Value>);

impl Moka {
    fn new(room: usize) -> Moka {
        let builder = moka::sync::Cache::builder().max_capacity((room * VALUE_BYTES) as u64);
        Moka(builder.weigher(|_, value: &Value| value.len() as u32).build())
    }
}

impl Candidate for Moka {
    fn get(&mut self, key: u32) -> bool {
        self.0.get(&key).is_some()
    }

    fn insert(&mut self, key: u32, value: Value) {
        self.0.insert(key, value);
    }

    fn entries(&mut self) -> usize {
        self.0.run_pending_tasks();
        self.0.entry_count() as usize
    }
}

struct Foyer {
    cache: foyer_memory::Cache<u32, Value>,
}

impl Foyer {
    fn new(room: usize, eviction: impl Into<foyer_memory::EvictionConfig>) -> Foyer {
        let builder = foyer_memory::CacheBuilder::new(room * VALUE_BYTES).with_eviction_config(eviction);
        Foyer { cache: builder.with_weighter(|_: &u32, value: &Value| value.len()).build() }
    }
}

impl Candidate for Foyer {
    fn get(&mut self, key: u32) -> bool {
        self.cache.get(&key).is_some()
    }

    fn insert(&mut self, key: u32, value: Value) {
        self.cache.insert(key, value);
    }

    fn entries(&mut self) -> usize {
        self.cache.entries()
    }
}

/// The product's own memory: entries with their proofs, keys of 16 bytes, budget in bytes.
struct Kvasar {
    memory: Memory,
    clock: Arc<dyn Clock>,
}

const NAMESPACE: &str = "0f2ac74b498b48028cb68387c421e279";
const KEY_BYTES: usize = 16;

impl Kvasar {
    fn new(room: usize) -> Kvasar {
        let clock = RealClock::shared();
        // What an entry weighs, so that there is room for that many.
        let probe = Memory::new(1 << 20, 0.05, &*clock);
        let kvasar = Kvasar { memory: probe, clock: Arc::clone(&clock) };
        kvasar.memory.insert(kvasar.kept(&kvasar.key(0), vec![0; VALUE_BYTES].into()));
        let weight = kvasar.memory.bytes();
        Kvasar { memory: Memory::new(weight * room as u64, 0.05, &*clock), clock }
    }

    fn key(&self, key: u32) -> EntryKey {
        let namespace: NamespaceId = NAMESPACE.parse().expect("32 hexadecimal digits");
        EntryKey { namespace, key: Key::new(format!("{key:0width$}", width = KEY_BYTES)).expect("16 bytes") }
    }

    fn kept(&self, key: &EntryKey, value: Bytes) -> Kept {
        let content = Content::Present { value: KeptValue::Whole(value), metadata: None, expiration: None };
        Kept::new(key, Version::from_u64(1), content, Moment::MAX, Verified::at(self.clock.now()))
    }
}

impl Candidate for Kvasar {
    fn get(&mut self, key: u32) -> bool {
        self.memory.get(&self.key(key)).is_some()
    }

    /// As a tier inserts what it fetched: the key is shared with the question, the value with its first answer.
    fn insert(&mut self, key: u32, value: Value) {
        let key = self.key(key);
        let value = Bytes::from(value.to_vec());
        drop(value.clone());
        self.memory.insert(self.kept(&key, value));
    }

    fn entries(&mut self) -> usize {
        self.memory.entries()
    }
}

/// The reference of its paper: a small queue that filters, a main one that keeps, and the memory of what the small one let go.
struct S3Fifo {
    room: usize,
    uses: HashMap<u32, u8>,
    small: VecDeque<u32>,
    main: VecDeque<u32>,
    ghosts: VecDeque<u32>,
    is_ghost: HashSet<u32>,
}

impl S3Fifo {
    fn new(room: usize) -> S3Fifo {
        let (small, main, ghosts) = Default::default();
        S3Fifo { room, uses: HashMap::new(), small, main, ghosts, is_ghost: HashSet::new() }
    }

    fn evict(&mut self) {
        if self.small.len() > self.room / 10 || self.main.is_empty() {
            while let Some(key) = self.small.pop_front() {
                if self.uses[&key] > 1 {
                    self.uses.insert(key, 0);
                    self.main.push_back(key);
                    continue;
                }
                self.uses.remove(&key);
                self.remember(key);
                return;
            }
        }
        while let Some(key) = self.main.pop_front() {
            let uses = self.uses[&key];
            if uses == 0 {
                self.uses.remove(&key);
                return;
            }
            self.uses.insert(key, uses - 1);
            self.main.push_back(key);
        }
    }

    fn remember(&mut self, key: u32) {
        if self.is_ghost.insert(key) {
            self.ghosts.push_back(key);
        }
        // One that came back is left in the queue until its turn.
        while self.is_ghost.len() > self.room * 9 / 10 {
            let Some(oldest) = self.ghosts.pop_front() else { return };
            self.is_ghost.remove(&oldest);
        }
    }
}

impl Candidate for S3Fifo {
    fn get(&mut self, key: u32) -> bool {
        let Some(uses) = self.uses.get_mut(&key) else { return false };
        *uses = (*uses + 1).min(3);
        true
    }

    fn insert(&mut self, key: u32, _: Value) {
        while self.uses.len() >= self.room {
            self.evict();
        }
        self.uses.insert(key, 0);
        if self.is_ghost.remove(&key) {
            self.main.push_back(key);
        } else {
            self.small.push_back(key);
        }
    }

    fn entries(&mut self) -> usize {
        self.uses.len()
    }
}

/// The least recently used goes first. The queue holds each use; only the last one of a key counts.
struct Lru {
    room: usize,
    last_use: HashMap<u32, u64>,
    queue: VecDeque<(u32, u64)>,
    now: u64,
}

impl Lru {
    fn new(room: usize) -> Lru {
        Lru { room, last_use: HashMap::new(), queue: VecDeque::new(), now: 0 }
    }

    fn touch(&mut self, key: u32) {
        self.now += 1;
        self.last_use.insert(key, self.now);
        self.queue.push_back((key, self.now));
    }
}

impl Candidate for Lru {
    fn get(&mut self, key: u32) -> bool {
        let held = self.last_use.contains_key(&key);
        if held {
            self.touch(key);
        }
        held
    }

    fn insert(&mut self, key: u32, _: Value) {
        self.touch(key);
        while self.last_use.len() > self.room {
            let Some((oldest, at)) = self.queue.pop_front() else { return };
            if self.last_use.get(&oldest) == Some(&at) {
                self.last_use.remove(&oldest);
            }
        }
    }

    fn entries(&mut self) -> usize {
        self.last_use.len()
    }
}
