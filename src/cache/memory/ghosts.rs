//! What was let go lately, by fingerprint: who comes back soon is worth more than who is new.
//!
//! Four bytes each, in sets of a few in which the oldest gives way: nearly first in, first out, without a queue or a second table.

/// Fingerprints that share a set.
const WAYS: usize = 8;
/// Of an empty place.
const NONE: u32 = 0;

#[derive(Default)]
pub(super) struct Ghosts {
    /// In each the youngest first.
    sets: Vec<[u32; WAYS]>,
}

impl Ghosts {
    /// Remembers one, in a memory for so many.
    pub(super) fn remember(&mut self, fingerprint: u32, room: usize) {
        if room > self.sets.len() * WAYS {
            self.grow(room);
        }
        self.add(fingerprint.max(1));
    }

    /// Whether it was let go lately. It is not remembered any longer: it is back.
    pub(super) fn take(&mut self, fingerprint: u32) -> bool {
        let fingerprint = fingerprint.max(1);
        if self.sets.is_empty() {
            return false;
        }
        let set = self.set(fingerprint);
        let Some(at) = set.iter().position(|ghost| *ghost == fingerprint) else { return false };
        set.copy_within(at + 1.., at);
        set[WAYS - 1] = NONE;
        true
    }

    fn add(&mut self, fingerprint: u32) {
        let set = self.set(fingerprint);
        set.copy_within(..WAYS - 1, 1);
        set[0] = fingerprint;
    }

    /// By the fingerprint alone, so that one can be put in its place again in a larger memory.
    fn set(&mut self, fingerprint: u32) -> &mut [u32; WAYS] {
        let at = (u64::from(fingerprint) * self.sets.len() as u64) >> 32;
        &mut self.sets[at as usize]
    }

    fn grow(&mut self, room: usize) {
        let sets = (room + room / 4).div_ceil(WAYS);
        let earlier = std::mem::replace(&mut self.sets, vec![[NONE; WAYS]; sets]);
        for ghost in earlier.iter().flat_map(|set| set.iter().rev()).filter(|ghost| **ghost != NONE) {
            self.add(*ghost);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fingerprint(number: u32) -> u32 {
        number.wrapping_mul(0x9e37_79b9)
    }

    #[test]
    fn one_that_was_let_go_is_known_once() {
        let mut ghosts = Ghosts::default();
        assert!(!ghosts.take(fingerprint(1)));
        for number in [0, 1] {
            ghosts.remember(fingerprint(number), 100);
            assert!(ghosts.take(fingerprint(number)) && !ghosts.take(fingerprint(number)));
        }
    }

    #[test]
    fn the_youngest_are_remembered_about_as_many_as_there_is_room_for() {
        const ROOM: u32 = 10_000;
        let mut ghosts = Ghosts::default();
        for number in 0..5 * ROOM {
            ghosts.remember(fingerprint(number), ROOM as usize);
        }
        let mut known = |range: std::ops::Range<u32>| {
            let length = range.len();
            range.filter(|number| ghosts.take(fingerprint(*number))).count() * 100 / length
        };
        assert!(known(5 * ROOM - ROOM / 2..5 * ROOM) > 90);
        assert!(known(0..3 * ROOM) < 5);
    }

    #[test]
    fn a_larger_memory_still_knows_those_of_the_smaller_one() {
        let mut ghosts = Ghosts::default();
        for number in 0..50 {
            ghosts.remember(fingerprint(number), 100);
        }
        ghosts.remember(fingerprint(50), 10_000);
        let known = (0..=50).filter(|number| ghosts.take(fingerprint(*number))).count();
        assert!(known > 45, "{known}");
    }
}
