//! The last items of a feed, by number: what a follower that comes back has missed, and what a slow one has yet to be sent.
//!
//! Bounded in bytes and in time. Whoever needs what is gone has a gap (F8); nobody else notices. Numbers go on over a restart of an origin, whose
//! store keeps its part of the log; so a position is one of this log if its epoch was a process of it, and its number not past that process's last.

use std::{collections::VecDeque, time::Duration};

use crate::{
    clock::Moment,
    kv::feed::{Item, Position},
    wire::feed::EncodedItem,
};

/// What of earlier processes' items an origin found in its store, in order.
#[derive(Debug, Default)]
pub struct Past {
    pub parts: Vec<PastPart>,
}

/// Items of one process, the first with this number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PastPart {
    pub epoch: u64,
    pub first: u64,
    pub items: Vec<Item>,
}

pub(super) struct Log {
    items: VecDeque<Logged>,
    /// The number of the last item; zero before the first.
    last: u64,
    /// The processes whose items these are, each with the number of its first; the last one is this.
    epochs: Vec<(u64, u64)>,
    bytes: usize,
    bytes_max: usize,
    age_max: Duration,
}

pub(super) struct Logged {
    pub(super) item: EncodedItem,
    /// Of the key, for purges.
    pub(super) hash: u64,
    at: Moment,
}

/// What an item takes beside its bytes.
const ITEM_OVERHEAD_BYTES: usize = 96;

impl Log {
    pub(super) fn new(epoch: u64, past: Past, bytes_max: usize, age_max: Duration, now: Moment) -> Log {
        let mut log = Log { items: VecDeque::new(), last: 0, epochs: Vec::new(), bytes: 0, bytes_max, age_max };
        for part in past.parts {
            // What lies between two parts is not there to be sent.
            if part.first != log.last + 1 {
                log.items.clear();
                log.epochs.clear();
                log.bytes = 0;
                log.last = part.first - 1;
            }
            if log.epochs.last().is_none_or(|(epoch, _)| *epoch != part.epoch) {
                log.epochs.push((part.epoch, part.first));
            }
            // A plain purge: no state is kept.
            part.items.iter().for_each(|item| log.push(EncodedItem::new(item), 0, now));
        }
        log.epochs.push((epoch, log.last + 1));
        log
    }

    /// Where the next item goes behind.
    pub(super) fn position(&self) -> Position {
        Position { epoch: self.epochs.last().map_or(0, |(epoch, _)| *epoch), sequence: self.last }
    }

    pub(super) fn push(&mut self, item: EncodedItem, hash: u64, now: Moment) {
        self.last += 1;
        self.bytes += ITEM_OVERHEAD_BYTES + item.length();
        self.items.push_back(Logged { item, hash, at: now });
        while let Some(oldest) = self.items.front()
            && (self.bytes > self.bytes_max || now.since(oldest.at) > self.age_max)
        {
            self.bytes -= ITEM_OVERHEAD_BYTES + oldest.item.length();
            self.items.pop_front();
        }
    }

    /// Counts items that nobody is there to be sent.
    pub(super) fn skip(&mut self, count: u64) {
        self.items.clear();
        self.bytes = 0;
        self.last += count;
    }

    /// Whether all that came after a position of this log is still here.
    pub(super) fn can_resume(&self, from: Position) -> bool {
        let Some(at) = self.epochs.iter().position(|(epoch, _)| *epoch == from.epoch) else { return false };
        let end = self.epochs.get(at + 1).map_or(self.last, |(_, next)| next - 1);
        from.sequence + 1 >= self.epochs[at].1 && from.sequence <= end && self.holds_after(from.sequence)
    }

    /// Whether every item after this number is still here.
    pub(super) fn holds_after(&self, sequence: u64) -> bool {
        sequence + 1 >= self.first()
    }

    /// The items after this number, in order.
    pub(super) fn after(&self, sequence: u64) -> impl Iterator<Item = &Logged> {
        let skipped = usize::try_from((sequence + 1).saturating_sub(self.first())).unwrap_or(usize::MAX);
        self.items.range(skipped.min(self.items.len())..)
    }

    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// The number of the first item that is still here, or will be.
    fn first(&self) -> u64 {
        self.last + 1 - self.items.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::{Key, NamespaceId, Version, feed::Purge};

    const AGE_MAX: Duration = Duration::from_secs(60);

    fn item(i: u64) -> Item {
        let key = Key::new(format!("key-{i:03}")).expect("letters and digits");
        Item::Purge(Purge { namespace: NamespaceId::from_u128(1), key, version: Version::from_u64(i), state: None })
    }

    /// A log of items 1 to `count`.
    fn log(count: u64, bytes_max: usize) -> Log {
        let mut log = Log::new(9, Past::default(), bytes_max, AGE_MAX, Moment::ZERO);
        (1..=count).for_each(|i| log.push(EncodedItem::new(&item(i)), 0, Moment::ZERO));
        log
    }

    fn at(epoch: u64, sequence: u64) -> Position {
        Position { epoch, sequence }
    }

    #[test]
    fn a_place_in_the_log_is_found_again_and_another_is_not() {
        let log = log(10, 1 << 20);
        assert_eq!(log.position(), at(9, 10));
        for (position, expected) in
            [(at(9, 0), true), (at(9, 4), true), (at(9, 10), true), (at(9, 11), false), (at(8, 4), false)]
        {
            assert_eq!(log.can_resume(position), expected, "{position:?}");
        }
        assert_eq!(log.after(4).count(), 6);
        assert_eq!(log.after(10).count(), 0);
    }

    #[test]
    fn the_oldest_go_first_by_bytes_and_by_time() {
        let mut log = log(100, 10 * 200);
        let kept = log.after(0).count() as u64;
        assert!((5..20).contains(&kept), "{kept} items kept");
        assert!(!log.can_resume(at(9, 100 - kept - 1)));
        assert!(log.can_resume(at(9, 100 - kept)));
        let later = Moment::ZERO + AGE_MAX + Duration::from_secs(1);
        log.push(EncodedItem::new(&item(101)), 0, later);
        assert_eq!(log.after(0).count(), 1);
        assert!(log.can_resume(at(9, 100)) && !log.can_resume(at(9, 99)));
    }

    #[test]
    fn a_restart_goes_on_where_the_store_says_and_knows_its_earlier_processes() {
        let part = |epoch, first, last| PastPart { epoch, first, items: (first..=last).map(item).collect() };
        let past = Past { parts: vec![part(1, 40, 45), part(1, 46, 50), part(2, 51, 60)] };
        let mut log = Log::new(3, past, 1 << 20, AGE_MAX, Moment::ZERO);
        assert_eq!(log.position(), at(3, 60));
        log.push(EncodedItem::new(&item(61)), 0, Moment::ZERO);
        for (position, expected) in [
            (at(1, 38), false),
            (at(1, 39), true),
            (at(1, 50), true),
            // Of a process that went on past what the store has: as after restoring a backup.
            (at(1, 51), false),
            (at(2, 50), true),
            (at(2, 60), true),
            (at(2, 61), false),
            (at(3, 59), false),
            (at(3, 60), true),
            (at(3, 61), true),
        ] {
            assert_eq!(log.can_resume(position), expected, "{position:?}");
        }
        assert_eq!(log.after(50).count(), 11);
    }

    #[test]
    fn over_a_hole_in_the_store_nobody_resumes() {
        let part = |epoch, first, last| PastPart { epoch, first, items: (first..=last).map(item).collect() };
        let past = Past { parts: vec![part(1, 1, 10), part(1, 12, 20)] };
        let log = Log::new(2, past, 1 << 20, AGE_MAX, Moment::ZERO);
        assert!(!log.can_resume(at(1, 10)));
        assert!(log.can_resume(at(1, 11)) && log.can_resume(at(1, 20)));
    }

    #[test]
    fn items_that_were_skipped_are_a_gap_to_those_who_missed_them() {
        let mut log = log(10, 1 << 20);
        log.skip(5);
        assert_eq!(log.position(), at(9, 15));
        assert!(!log.can_resume(at(9, 14)) && log.can_resume(at(9, 15)));
    }
}
