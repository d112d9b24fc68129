//! Where entries are kept: in memory, within a budget of bytes.
//!
//! Tokens and namespaces have budgets of their own, and known absences of them another: so neither much data nor guessing pushes out what
//! opens the doors. Which of two states of a key is newer is not judged here, but in `flight.rs`, under the key's lock. What goes when there is no
//! room is decided in `memory/shard.rs`.

mod ghosts;
mod queue;
mod shard;

use std::sync::{
    RwLock, RwLockReadGuard, RwLockWriteGuard,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use self::shard::Shard;
use crate::{
    clock::Clock,
    kv::{
        NamespaceId, Version,
        kept::{Kept, Name},
    },
};

pub struct Memory {
    data: Entries,
    control: Entries,
    control_absent: Entries,
    /// Counts what may have changed what is known of tokens and namespaces.
    control_changes: AtomicU64,
    /// Longest value that is kept, in bytes.
    value_bytes_max: u64,
}

/// What an entry takes beside the bytes of its key, value and metadata (measured; see docs/decisions/0003-cache-policy.md).
const ENTRY_OVERHEAD_BYTES: usize = 108;

fn cost(kept: &Kept) -> u64 {
    (ENTRY_OVERHEAD_BYTES + kept.name().key.len() + kept.length()) as u64
}

/// Room for some tens of thousands of tokens and namespaces.
const CONTROL_BYTES: u64 = 16 << 20;
/// Room for some thousands of guesses.
const CONTROL_ABSENT_BYTES: u64 = 2 << 20;

impl Memory {
    /// A share of the budget is the longest value that is kept, so that one value can't push out all others.
    pub fn new(budget_bytes: u64, share_max: f64, clock: &dyn Clock) -> Memory {
        Memory {
            data: Entries::new(budget_bytes, clock),
            control: Entries::new(CONTROL_BYTES, clock),
            control_absent: Entries::new(CONTROL_ABSENT_BYTES, clock),
            control_changes: AtomicU64::new(0),
            value_bytes_max: (budget_bytes as f64 * share_max) as u64,
        }
    }

    pub fn value_bytes_max(&self) -> u64 {
        self.value_bytes_max
    }

    pub fn get<'a>(&self, key: impl Into<Name<'a>>) -> Option<Kept> {
        let key = &key.into();
        if key.namespace == NamespaceId::RESERVED {
            return self.control.get(key).or_else(|| self.control_absent.get(key));
        }
        self.data.get(key)
    }

    /// What is held, without counting as a use of it.
    pub fn peek<'a>(&self, key: impl Into<Name<'a>>) -> Option<Kept> {
        let key = &key.into();
        if key.namespace == NamespaceId::RESERVED {
            return self.control.peek(key).or_else(|| self.control_absent.peek(key));
        }
        self.data.peek(key)
    }

    pub fn insert(&self, kept: Kept) {
        if kept.name().namespace != NamespaceId::RESERVED {
            return self.data.insert(kept);
        }
        let (into, other) = if kept.is_present() {
            (&self.control, &self.control_absent)
        } else {
            (&self.control_absent, &self.control)
        };
        other.remove(&kept.name());
        into.insert(kept);
        self.control_changed();
    }

    pub fn remove<'a>(&self, key: impl Into<Name<'a>>) {
        let key = &key.into();
        if key.namespace == NamespaceId::RESERVED {
            self.control.remove(key);
            self.control_absent.remove(key);
            self.control_changed();
        } else {
            self.data.remove(key);
        }
    }

    /// Drops what is older than a namespace's removal. Looks through all that is held: namespaces are seldom removed.
    pub fn remove_namespace(&self, namespace: NamespaceId, version: Version) {
        self.data.retain(|kept| kept.name().namespace != namespace || kept.version() >= version);
    }

    /// Tokens or namespaces have changed, whether they are held or not. To be called when the change has taken effect here.
    pub fn control_changed(&self) {
        self.control_changes.fetch_add(1, Ordering::Release);
    }

    /// As long as this stays the same, nothing that was found of tokens and namespaces has changed here; it only grows older.
    pub fn control_changes(&self) -> u64 {
        self.control_changes.load(Ordering::Acquire)
    }

    pub fn entries(&self) -> usize {
        self.data.len()
    }

    pub fn bytes(&self) -> u64 {
        self.data.bytes()
    }
}

/// Entries in shards, each with a lock of its own. They share one budget, so that a long value needs no shard that has room for it.
struct Entries {
    shards: Box<[RwLock<Shard>]>,
    hasher: ahash::RandomState,
    budget_bytes: u64,
    bytes: AtomicU64,
    /// Where the next one goes from when there is no room: from each shard in turn.
    hand: AtomicUsize,
}

/// Small enough that nobody waits long while a shard's table grows, large enough that each knows what is popular.
const SHARD_BYTES: u64 = 4 << 20;
const SHARDS_MAX: u64 = 256;

impl Entries {
    fn new(budget_bytes: u64, clock: &dyn Clock) -> Entries {
        let shards = (budget_bytes / SHARD_BYTES).clamp(1, SHARDS_MAX).next_power_of_two();
        Entries {
            shards: (0..shards).map(|_| RwLock::default()).collect(),
            hasher: ahash::RandomState::with_seeds(clock.random(), clock.random(), clock.random(), clock.random()),
            budget_bytes,
            bytes: AtomicU64::new(0),
            hand: AtomicUsize::new(0),
        }
    }

    fn get(&self, name: &Name<'_>) -> Option<Kept> {
        let hash = self.hasher.hash_one(name);
        read(self.shard(hash)).get(hash, name).cloned()
    }

    fn peek(&self, name: &Name<'_>) -> Option<Kept> {
        let hash = self.hasher.hash_one(name);
        read(self.shard(hash)).peek(hash, name).cloned()
    }

    fn insert(&self, kept: Kept) {
        let hash = self.hasher.hash_one(kept.name());
        self.bytes.fetch_add(cost(&kept), Ordering::Relaxed);
        let replaced = write(self.shard(hash)).insert(hash, kept, &self.hasher);
        self.gone(replaced);
        self.make_room();
    }

    fn remove(&self, name: &Name<'_>) {
        let hash = self.hasher.hash_one(name);
        let removed = write(self.shard(hash)).remove(hash, name);
        self.gone(removed);
    }

    fn retain(&self, wanted: impl Fn(&Kept) -> bool) {
        for shard in &self.shards {
            let removed = write(shard).retain(&wanted, &self.hasher);
            self.gone(removed);
        }
    }

    fn len(&self) -> usize {
        self.shards.iter().map(|shard| read(shard).len()).sum()
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn make_room(&self) {
        let mut empty = 0;
        while self.bytes() > self.budget_bytes && empty < self.shards.len() {
            let at = self.hand.fetch_add(1, Ordering::Relaxed) % self.shards.len();
            // Dropped after the lock is given back.
            let evicted = write(&self.shards[at]).evict(&self.hasher);
            empty = if evicted.is_none() { empty + 1 } else { 0 };
            self.gone(evicted);
        }
    }

    fn gone(&self, gone: impl IntoIterator<Item = Kept>) {
        for kept in gone {
            self.bytes.fetch_sub(cost(&kept), Ordering::Relaxed);
        }
    }

    fn shard(&self, hash: u64) -> &RwLock<Shard> {
        // By bits that neither the table nor the fingerprint goes by.
        &self.shards[(hash >> 40) as usize & (self.shards.len() - 1)]
    }
}

fn read(shard: &RwLock<Shard>) -> RwLockReadGuard<'_, Shard> {
    shard.read().expect("no holder of this lock can panic")
}

fn write(shard: &RwLock<Shard>) -> RwLockWriteGuard<'_, Shard> {
    shard.write().expect("no holder of this lock can panic")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::{ManualClock, Moment},
        kv::{
            Key,
            kept::{Content, EntryKey, KeptValue, Verified},
        },
    };

    fn key(namespace: NamespaceId, number: usize) -> EntryKey {
        EntryKey { namespace, key: Key::new(format!("key-{number}")).unwrap() }
    }

    fn kept(key: &EntryKey, version: u64, length: usize) -> Kept {
        let value = KeptValue::Whole(vec![b'v'; length].into());
        let content = Content::Present { value, metadata: None, expiration: None };
        Kept::new(key, Version::from_u64(version), content, Moment::MAX, Verified::at(Moment::ZERO))
    }

    const NAMESPACE: NamespaceId = NamespaceId::from_u128(7);

    #[test]
    fn it_stays_within_its_budget_whatever_the_lengths() {
        let budget = 64 << 20;
        let memory = Memory::new(budget, 0.1, &ManualClock::shared());
        let mut held_most = 0;
        for number in 0..5000 {
            // Longer than a shard's share of the budget, some of them.
            memory.insert(kept(&key(NAMESPACE, number), 1, if number % 10 == 0 { 6 << 20 } else { number }));
            assert!(memory.bytes() <= budget);
            held_most = held_most.max(memory.bytes());
        }
        assert!(held_most > budget - (7 << 20), "most of it is used: {held_most}");
        let held = (0..5000).filter_map(|number| memory.peek(&key(NAMESPACE, number)));
        assert_eq!(held.map(|kept| cost(&kept)).sum::<u64>(), memory.bytes());
    }

    #[test]
    fn what_many_threads_do_at_once_adds_up() {
        let memory = Memory::new(4 << 20, 0.1, &ManualClock::shared());
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let memory = &memory;
                scope.spawn(move || {
                    for step in 0..20_000 {
                        // Each thread walks the same keys in an order of its own.
                        let key = key(NAMESPACE, (step * (2 * thread + 1) * 7919) % 9973);
                        match step % 4 {
                            0 => memory.remove(&key),
                            1 => _ = memory.get(&key).map(|kept| assert!(kept.name() == (&key).into())),
                            _ => memory.insert(kept(&key, 1, 100 + step % 900)),
                        }
                    }
                });
            }
        });
        let held: Vec<Kept> = (0..9973).filter_map(|number| memory.peek(&key(NAMESPACE, number))).collect();
        assert_eq!(memory.entries(), held.len());
        assert_eq!(memory.bytes(), held.iter().map(cost).sum::<u64>());
        assert!(memory.bytes() <= 4 << 20);
    }

    #[test]
    fn a_value_longer_than_the_budget_leaves_nothing_and_breaks_nothing() {
        let memory = Memory::new(1 << 20, 0.1, &ManualClock::shared());
        memory.insert(kept(&key(NAMESPACE, 1), 1, 2 << 20));
        assert_eq!((memory.entries(), memory.bytes()), (0, 0));
        memory.insert(kept(&key(NAMESPACE, 1), 1, 10));
        assert_eq!(memory.entries(), 1);
    }

    #[test]
    fn a_removed_namespace_takes_its_older_entries_with_it() {
        let memory = Memory::new(16 << 20, 0.1, &ManualClock::shared());
        let other = NamespaceId::from_u128(8);
        for number in 0..100 {
            memory.insert(kept(&key(NAMESPACE, number), number as u64, 10));
            memory.insert(kept(&key(other, number), number as u64, 10));
        }
        memory.remove_namespace(NAMESPACE, Version::from_u64(90));
        let held = |namespace| (0..100).filter(|number| memory.peek(&key(namespace, *number)).is_some()).count();
        assert_eq!((held(NAMESPACE), held(other), memory.entries()), (10, 100, 110));
    }

    #[test]
    fn guesses_push_out_no_token_and_data_neither() {
        let memory = Memory::new(1 << 20, 0.1, &ManualClock::shared());
        let token = key(NamespaceId::RESERVED, 0);
        memory.insert(kept(&token, 1, 100));
        for number in 1..100_000 {
            let guess = key(NamespaceId::RESERVED, number);
            let absent = Content::Absent;
            memory.insert(Kept::new(&guess, Version::ZERO, absent, Moment::MAX, Verified::at(Moment::ZERO)));
            memory.insert(kept(&key(NAMESPACE, number), 1, 100));
        }
        assert!(memory.get(&token).is_some());
        assert!(memory.control_absent.bytes() <= CONTROL_ABSENT_BYTES && memory.bytes() <= 1 << 20);
    }

    #[test]
    fn changes_of_tokens_and_namespaces_are_counted_and_others_are_not() {
        let memory = Memory::new(1 << 20, 0.1, &ManualClock::shared());
        let (reserved, other) = (key(NamespaceId::RESERVED, 1), key(NamespaceId::from_u128(5), 1));
        memory.insert(kept(&other, 1, 10));
        memory.remove(&other);
        assert_eq!(memory.control_changes(), 0);
        memory.insert(kept(&reserved, 1, 10));
        let before = memory.control_changes();
        assert!(memory.get(&reserved).is_some());
        assert_eq!(memory.control_changes(), before);
        memory.remove(&reserved);
        assert_ne!(memory.control_changes(), before);
    }

    #[test]
    fn a_reserved_key_is_held_present_or_absent_and_never_both() {
        let memory = Memory::new(1 << 20, 0.1, &ManualClock::shared());
        let token = key(NamespaceId::RESERVED, 0);
        let absent = || Kept::new(&token, Version::ZERO, Content::Absent, Moment::MAX, Verified::at(Moment::ZERO));
        memory.insert(absent());
        memory.insert(kept(&token, 1, 100));
        assert!(memory.get(&token).is_some_and(|kept| kept.is_present()) && memory.control_absent.len() == 0);
        memory.insert(absent());
        assert!(memory.get(&token).is_some_and(|kept| !kept.is_present()) && memory.control.len() == 0);
        memory.remove(&token);
        assert!(memory.get(&token).is_none());
    }
}
