//! One shard of the entries, and what goes when there is no room: S3-FIFO (Yang and others, SOSP 2023).
//!
//! What is new waits in a *small* queue. What was used twice by its end goes over to the *main* one; what wasn't goes, and leaves its fingerprint: should
//! it come back while that is remembered, it goes to the main queue at once. At the end of the main queue, what was used goes around again, one use
//! poorer. So keys that are asked for once pass by and push nothing out, and a hit moves nothing: it counts a use, under a lock that others may share.
//!
//! Two figures are not the paper's, and miss a little less (docs/decisions/0003-cache-policy.md): the small queue has a twentieth of the bytes, not a tenth, and
//! seven uses are counted, not three.

use std::{
    hash::BuildHasher,
    sync::atomic::{AtomicU8, Ordering},
};

use hashbrown::HashTable;

use super::{cost, ghosts::Ghosts, queue::Queue};
use crate::kv::kept::{Kept, Name};

#[derive(Default)]
pub(super) struct Shard {
    /// The slots by the hashes of their names.
    table: HashTable<u32>,
    /// A removed entry leaves its slot empty until the queues come by it.
    slots: Vec<Option<Kept>>,
    marks: Vec<Mark>,
    /// Slots that are in no queue.
    free: Vec<u32>,
    small: Queue,
    main: Queue,
    small_bytes: u64,
    main_bytes: u64,
    ghosts: Ghosts,
    /// Empty slots that are still in a queue.
    removed: usize,
}

/// How often a slot's entry was used lately, and in which queue it is.
#[derive(Default)]
struct Mark(AtomicU8);

const USES: u8 = 7;
const USES_MAX: u8 = USES;
const MAIN: u8 = 8;
/// Uses in the small queue that make an entry go over to the main one.
const USES_TO_STAY: u8 = 2;
/// One part of so many of the bytes is the small queue's.
const SMALL_SHARE: u64 = 20;

/// Fingerprints that are worth remembering even where few entries are held.
const GHOSTS_MIN: usize = 64;

impl Mark {
    fn uses(&self) -> u8 {
        self.0.load(Ordering::Relaxed) & USES
    }

    fn is_main(&self) -> bool {
        self.0.load(Ordering::Relaxed) & MAIN != 0
    }

    /// Of two uses in one instant one may be lost.
    fn used(&self) {
        let mark = self.0.load(Ordering::Relaxed);
        if mark & USES < USES_MAX {
            self.0.store(mark + 1, Ordering::Relaxed);
        }
    }

    fn set(&mut self, uses: u8, main: bool) {
        *self.0.get_mut() = uses | if main { MAIN } else { 0 };
    }
}

/// What is remembered of a name that goes: bits that choose neither the shard nor the place in its table.
fn fingerprint(hash: u64) -> u32 {
    (hash >> 8) as u32
}

/// How many entries of the main queue are spared for their uses while one is looked for that goes.
const SPARED_MAX: usize = 256;

impl Shard {
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    pub(super) fn peek(&self, hash: u64, name: &Name<'_>) -> Option<&Kept> {
        self.slots[self.find(hash, name)? as usize].as_ref()
    }

    pub(super) fn get(&self, hash: u64, name: &Name<'_>) -> Option<&Kept> {
        let slot = self.find(hash, name)? as usize;
        self.marks[slot].used();
        self.slots[slot].as_ref()
    }

    fn find(&self, hash: u64, name: &Name<'_>) -> Option<u32> {
        let is_it = |slot: &u32| self.slots[*slot as usize].as_ref().is_some_and(|kept| kept.name() == *name);
        self.table.find(hash, is_it).copied()
    }

    /// Answers what it took the place of.
    pub(super) fn insert(&mut self, hash: u64, kept: Kept, hasher: &impl BuildHasher) -> Option<Kept> {
        if let Some(slot) = self.find(hash, &kept.name()) {
            let slot = slot as usize;
            let main = self.marks[slot].is_main();
            *self.bytes_of(main) += cost(&kept);
            let replaced = self.slots[slot].replace(kept).expect("it was found by its name");
            *self.bytes_of(main) -= cost(&replaced);
            return Some(replaced);
        }
        let main = self.ghosts.take(fingerprint(hash));
        *self.bytes_of(main) += cost(&kept);
        let slot = self.place(kept);
        self.marks[slot as usize].set(0, main);
        if main {
            self.main.push(slot)
        } else {
            self.small.push(slot)
        }
        let slots = &self.slots;
        self.table.insert_unique(hash, slot, |slot| {
            hasher.hash_one(slots[*slot as usize].as_ref().expect("empty slots are not in the table").name())
        });
        None
    }

    fn place(&mut self, kept: Kept) -> u32 {
        if let Some(slot) = self.free.pop() {
            self.slots[slot as usize] = Some(kept);
            return slot;
        }
        if self.slots.len() == self.slots.capacity() {
            // By an eighth: doubling would leave up to half of it unused for good.
            let more = (self.slots.len() / 8).max(16);
            self.slots.reserve_exact(more);
            self.marks.reserve_exact(more);
        }
        let slot = u32::try_from(self.slots.len()).expect("a shard's budget has room for fewer entries");
        self.slots.push(Some(kept));
        self.marks.push(Mark::default());
        slot
    }

    pub(super) fn remove(&mut self, hash: u64, name: &Name<'_>) -> Option<Kept> {
        let slot = self.find(hash, name)?;
        let kept = self.take(hash, slot);
        self.removed += 1;
        self.sweep();
        Some(kept)
    }

    /// Removes those that are not wanted any longer, and answers them.
    pub(super) fn retain(&mut self, wanted: impl Fn(&Kept) -> bool, hasher: &impl BuildHasher) -> Vec<Kept> {
        let mut gone = Vec::new();
        for slot in 0..self.slots.len() {
            if let Some(kept) = &self.slots[slot]
                && !wanted(kept)
            {
                let hash = hasher.hash_one(kept.name());
                gone.push(self.take(hash, slot as u32));
                self.removed += 1;
            }
        }
        self.sweep();
        gone
    }

    /// Lets one go: the first that has earned no further stay. `None` when nothing is here.
    pub(super) fn evict(&mut self, hasher: &impl BuildHasher) -> Option<Kept> {
        let mut spared = 0;
        loop {
            let from_small =
                self.small_bytes * SMALL_SHARE > self.small_bytes + self.main_bytes || self.main.len() == 0;
            let slot = if from_small { self.small.pop().or_else(|| self.main.pop())? } else { self.main.pop()? };
            let Some(kept) = &self.slots[slot as usize] else {
                self.free.push(slot);
                self.removed -= 1;
                continue;
            };
            let mark = &mut self.marks[slot as usize];
            let (uses, main) = (mark.uses(), mark.is_main());
            // Whoever reads here waits meanwhile: where all is in use, one that is goes, too.
            if main && uses > 0 && spared < SPARED_MAX {
                spared += 1;
                mark.set(uses - 1, true);
                self.main.push(slot);
                continue;
            }
            if !main && uses >= USES_TO_STAY {
                mark.set(0, true);
                self.small_bytes -= cost(kept);
                self.main_bytes += cost(kept);
                self.main.push(slot);
                continue;
            }
            let hash = hasher.hash_one(kept.name());
            if !main {
                self.ghosts.remember(fingerprint(hash), (self.len() * 4 / 5).max(GHOSTS_MIN));
            }
            let kept = self.take(hash, slot);
            self.free.push(slot);
            return Some(kept);
        }
    }

    /// Takes an entry out of everything but its queue.
    fn take(&mut self, hash: u64, slot: u32) -> Kept {
        let found = self.table.find_entry(hash, |other| *other == slot);
        found.expect("what is in a slot is in the table").remove();
        let kept = self.slots[slot as usize].take().expect("the caller has seen it");
        *self.bytes_of(self.marks[slot as usize].is_main()) -= cost(&kept);
        kept
    }

    /// Takes the empty slots out of the queues once they are many: where nothing is evicted, the queues never come by them.
    fn sweep(&mut self) {
        if self.removed <= 64 + self.len() / 8 {
            return;
        }
        let Shard { slots, free, small, main, .. } = self;
        for queue in [small, main] {
            queue.retain(|slot| {
                let holds = slots[slot as usize].is_some();
                if !holds {
                    free.push(slot);
                }
                holds
            });
        }
        self.removed = 0;
    }

    fn bytes_of(&mut self, main: bool) -> &mut u64 {
        if main { &mut self.main_bytes } else { &mut self.small_bytes }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::{
        clock::Moment,
        kv::{
            Key, NamespaceId, Version,
            kept::{Content, EntryKey, KeptValue, Verified},
        },
    };

    fn hasher() -> ahash::RandomState {
        ahash::RandomState::with_seeds(1, 2, 3, 4)
    }

    fn entry_key(number: u32) -> EntryKey {
        EntryKey { namespace: NamespaceId::from_u128(7), key: Key::new(format!("key-{number}")).unwrap() }
    }

    fn kept(number: u32, version: u64, length: usize) -> Kept {
        let value = KeptValue::Whole(vec![b'v'; length].into());
        let content = Content::Present { value, metadata: None, expiration: None };
        let version = Version::from_u64(version);
        Kept::new(&entry_key(number), version, content, Moment::MAX, Verified::at(Moment::ZERO))
    }

    /// A shard and the number of entries that it has room for.
    struct World {
        shard: Shard,
        room: usize,
    }

    impl World {
        fn new(room: usize) -> World {
            World { shard: Shard::default(), room }
        }

        fn get(&self, number: u32) -> bool {
            let (key, hasher) = (entry_key(number), hasher());
            let name = Name::from(&key);
            self.shard.get(hasher.hash_one(name), &name).is_some()
        }

        fn insert(&mut self, number: u32) {
            let kept = kept(number, 1, 10);
            self.shard.insert(hasher().hash_one(kept.name()), kept, &hasher());
            while self.shard.len() > self.room {
                self.shard.evict(&hasher()).expect("there are some");
            }
        }

        fn ask(&mut self, number: u32) -> bool {
            let held = self.get(number);
            if !held {
                self.insert(number);
            }
            held
        }
    }

    #[test]
    fn what_is_asked_for_once_pushes_nothing_out_that_is_in_use() {
        let mut world = World::new(1000);
        for _ in 0..5 {
            (0..500).for_each(|number| _ = world.ask(number));
        }
        (10_000..30_000).for_each(|number| _ = world.ask(number));
        assert_eq!((0..500).filter(|number| world.get(*number)).count(), 500);
    }

    #[test]
    fn what_is_used_no_longer_goes_at_last() {
        let mut world = World::new(1000);
        for round in 0..40 {
            for _ in 0..3 {
                (round * 1000..round * 1000 + 900).for_each(|number| _ = world.ask(number));
            }
        }
        assert_eq!((0..30_000).filter(|number| world.get(*number)).count(), 0);
        assert!((39_000..39_900).filter(|number| world.get(*number)).count() > 500);
    }

    #[test]
    fn what_comes_back_soon_stays() {
        let mut world = World::new(1000);
        (0..2000).for_each(|number| world.insert(number));
        // Let go a moment ago, and now again in use.
        let back: Vec<u32> = (0..2000).filter(|number| !world.get(*number)).rev().take(100).collect();
        back.iter().for_each(|number| world.insert(*number));
        (10_000..10_700).for_each(|number| world.insert(number));
        let held = back.iter().filter(|number| world.get(**number)).count();
        assert!(held > 80, "{held}");
    }

    /// Where nothing is evicted, what purges leave behind must not pile up.
    #[test]
    fn removed_and_made_anew_for_ever_takes_no_more_room() {
        let mut world = World::new(100);
        for round in 0..10_000 {
            let key = entry_key(round % 5);
            let name = Name::from(&key);
            world.insert(round % 5);
            assert!(world.shard.remove(hasher().hash_one(name), &name).is_some());
        }
        assert_eq!(world.shard.len(), 0);
        assert!(world.shard.slots.len() < 200 && world.shard.small.len() < 200);
        assert_eq!(world.shard.small_bytes + world.shard.main_bytes, 0);
        assert!(world.shard.evict(&hasher()).is_none());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Get(u32),
        Insert(u32, usize),
        Remove(u32),
        Evict,
        Retain(u32),
    }

    fn steps() -> impl proptest::strategy::Strategy<Value = Vec<Step>> {
        use proptest::prelude::*;
        let step = prop_oneof![
            8 => (0u32..80).prop_map(Step::Get),
            8 => ((0u32..80), (0usize..300)).prop_map(|(key, length)| Step::Insert(key, length)),
            4 => (0u32..80).prop_map(Step::Remove),
            4 => Just(Step::Evict),
            1 => (2u32..5).prop_map(Step::Retain),
        ];
        proptest::collection::vec(step, 0..1500)
    }

    proptest::proptest! {
        /// It holds what was inserted and neither removed nor evicted since, in the state inserted last; and its sums are right.
        #[test]
        fn it_holds_what_a_plain_map_holds(steps in steps()) {
            let (mut shard, hasher) = (Shard::default(), hasher());
            let mut plain: HashMap<u32, Kept> = HashMap::new();
            let number = |kept: &Kept| -> u32 {
                std::str::from_utf8(kept.name().key).unwrap().strip_prefix("key-").unwrap().parse().unwrap()
            };
            for (at, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Get(key) => {
                        let entry_key = entry_key(key);
                        let name = Name::from(&entry_key);
                        let found = shard.get(hasher.hash_one(name), &name);
                        assert_eq!(found.map(Kept::version), plain.get(&key).map(Kept::version));
                    }
                    Step::Insert(key, length) => {
                        let kept = kept(key, at as u64, length);
                        let replaced = shard.insert(hasher.hash_one(kept.name()), kept.clone(), &hasher);
                        assert_eq!(replaced.map(|kept| kept.version()), plain.insert(key, kept).map(|kept| kept.version()));
                    }
                    Step::Remove(key) => {
                        let entry_key = entry_key(key);
                        let name = Name::from(&entry_key);
                        let removed = shard.remove(hasher.hash_one(name), &name);
                        assert_eq!(removed.map(|kept| kept.version()), plain.remove(&key).map(|kept| kept.version()));
                    }
                    Step::Evict => {
                        let evicted = shard.evict(&hasher);
                        assert_eq!(evicted.is_some(), !plain.is_empty());
                        if let Some(kept) = evicted {
                            assert!(plain.remove(&number(&kept)).expect("it was held").is(&kept));
                        }
                    }
                    Step::Retain(of) => {
                        let gone = shard.retain(|kept| number(kept) % of == 0, &hasher);
                        let before = plain.len();
                        plain.retain(|key, _| key % of == 0);
                        assert_eq!(gone.len(), before - plain.len());
                    }
                }
                assert_eq!(shard.len(), plain.len());
                assert_eq!(shard.small_bytes + shard.main_bytes, plain.values().map(cost).sum::<u64>());
                assert_eq!(shard.small.len() + shard.main.len(), shard.len() + shard.removed);
                assert_eq!(shard.slots.len(), shard.small.len() + shard.main.len() + shard.free.len());
            }
        }
    }
}
