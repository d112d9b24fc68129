//! Which keys a follower has asked for lately: a guess at what is in use below it.
//!
//! Two generations of bits; when the newer one is full enough, the older is forgotten. A wrong guess costs a state sent for nothing, or a question
//! that a state would have spared: never freshness.

use std::hash::Hash;

use crate::{clock::Clock, kv::NamespaceId};

/// Hashes keys for [`Interest`], in a way that nobody outside can foresee.
pub(super) struct KeyHasher(ahash::RandomState);

impl KeyHasher {
    pub(super) fn new(clock: &dyn Clock) -> KeyHasher {
        KeyHasher(ahash::RandomState::with_seeds(clock.random(), clock.random(), clock.random(), clock.random()))
    }

    pub(super) fn hash(&self, namespace: NamespaceId, key: &[u8]) -> u64 {
        self.0.hash_one(Keyed { namespace, key })
    }
}

#[derive(Hash)]
struct Keyed<'a> {
    namespace: NamespaceId,
    key: &'a [u8],
}

#[derive(Default)]
pub(super) struct Interest {
    newer: Bits,
    older: Bits,
    added: usize,
}

/// With this many keys in a generation of 65,536 bits, one in some 40 is guessed wrong.
const KEYS_PER_GENERATION: usize = 8192;
const WORDS: usize = 1024;

/// 8 KiB, from the first key on.
#[derive(Default)]
struct Bits(Option<Box<[u64; WORDS]>>);

impl Interest {
    pub(super) fn add(&mut self, hash: u64) {
        if self.newer.has(hash) {
            return;
        }
        if self.added == KEYS_PER_GENERATION {
            self.older = std::mem::take(&mut self.newer);
            self.added = 0;
        }
        self.newer.add(hash);
        self.added += 1;
    }

    pub(super) fn has(&self, hash: u64) -> bool {
        self.newer.has(hash) || self.older.has(hash)
    }
}

impl Bits {
    fn add(&mut self, hash: u64) {
        let words = self.0.get_or_insert_with(|| Box::new([0; WORDS]));
        for (word, bit) in probes(hash) {
            words[word] |= bit;
        }
    }

    fn has(&self, hash: u64) -> bool {
        self.0.as_ref().is_some_and(|words| probes(hash).all(|(word, bit)| words[word] & bit != 0))
    }
}

/// Four places, each from 16 bits of the hash.
fn probes(hash: u64) -> impl Iterator<Item = (usize, u64)> {
    (0..4).map(move |i| {
        let place = hash >> (16 * i) & 0xffff;
        ((place >> 6) as usize, 1 << (place & 63))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    #[test]
    fn what_was_asked_for_lately_is_of_interest_and_little_else() {
        let hasher = KeyHasher::new(&ManualClock::shared());
        let hash = |i: usize| hasher.hash(NamespaceId::from_u128(1), format!("key-{i}").as_bytes());
        let mut interest = Interest::default();
        assert!(!interest.has(hash(0)));
        for i in 0..20_000 {
            interest.add(hash(i));
            assert!(interest.has(hash(i)));
        }
        assert!((20_000 - KEYS_PER_GENERATION..20_000).all(|i| interest.has(hash(i))));
        let wrong = (20_000..40_000).filter(|i| interest.has(hash(*i))).count();
        assert!(wrong < 20_000 / 10, "{wrong} of 20,000 keys nobody asked for");
        assert!((0..1000).filter(|i| interest.has(hash(*i))).count() < 200, "the oldest are forgotten");
    }
}
