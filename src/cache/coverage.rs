//! What the purge feed proves of entries that nobody asked about: everything held that was not purged was current at the watermark.
//!
//! A *continuity* is an unbroken stretch of the feed, from its start on. It covers an entry that was current at some moment of it, and one that was asked
//! for in it and is covered by upstream's own feed: either way each change of it since is, or will be, in the feed (`covered_from >= start`). When one
//! ends, its entries keep what it had proven of them: they go on aging from its last watermark.
//!
//! Read by every read of a tier, so without a lock. **The order matters**: whoever judges an entry takes a [`Seen`] first and looks the entry up
//! after. The other way around, a purge and then an echo could be applied in between, and the watermark would vouch for the entry that was purged.

use std::{
    collections::VecDeque,
    sync::{
        RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    clock::Moment,
    kv::{
        Version,
        kept::{Kept, Verified},
    },
};

pub(super) struct Coverage {
    /// When the continuity began; [`Moment::MAX`] before the first.
    start: AtomicU64,
    /// [`Moment::ZERO`] for none.
    watermark: AtomicU64,
    /// The safe version at the watermark.
    version: AtomicU64,
    /// Continuities that have ended, the last one first.
    past: RwLock<VecDeque<Past>>,
}

struct Past {
    start: Moment,
    watermark: Moment,
}

/// How many ended continuities are remembered. Entries of older ones live on their own verification alone.
const PAST_MAX: usize = 8;

/// The coverage at one moment, to judge what is looked up after it.
pub(super) struct Seen<'a> {
    coverage: &'a Coverage,
    version: Version,
    watermark: Moment,
    start: Moment,
}

impl Coverage {
    pub(super) fn new() -> Coverage {
        Coverage {
            start: AtomicU64::new(Moment::MAX.as_nanos()),
            watermark: AtomicU64::new(Moment::ZERO.as_nanos()),
            version: AtomicU64::new(Version::ZERO.as_u64()),
            past: RwLock::default(),
        }
    }

    pub(super) fn seen(&self) -> Seen<'_> {
        // The start last: a new continuity's watermark is only there once its start is.
        let version = Version::from_u64(self.version.load(Ordering::Acquire));
        let watermark = Moment::from_nanos(self.watermark.load(Ordering::Acquire));
        let start = Moment::from_nanos(self.start.load(Ordering::Acquire));
        Seen { coverage: self, version, watermark, start }
    }

    /// The watermark and the safe version at it, once the continuity has one.
    pub(super) fn watermark(&self) -> Option<(Moment, Version)> {
        let Seen { version, watermark, .. } = self.seen();
        (watermark != Moment::ZERO).then_some((watermark, version))
    }

    /// A new continuity begins (F6). Only the follower calls this, and [`Coverage::advance`].
    pub(super) fn begin(&self, now: Moment) {
        let ended = self.seen();
        if ended.watermark != Moment::ZERO {
            let mut past = self.past.write().expect("no holder of this lock can panic");
            past.push_front(Past { start: ended.start, watermark: ended.watermark });
            past.truncate(PAST_MAX);
        }
        self.watermark.store(Moment::ZERO.as_nanos(), Ordering::Release);
        self.version.store(Version::ZERO.as_u64(), Ordering::Release);
        // Of what was learnt in this very instant nobody can tell whether it was before the gap; and no two continuities begin at one moment.
        let earlier = if ended.start == Moment::MAX { Moment::ZERO } else { ended.start };
        let start = now.max(earlier) + Duration::from_nanos(1);
        self.start.store(start.as_nanos(), Ordering::Release);
    }

    /// All that is held and not purged was current at this moment, and covers this version (F4).
    pub(super) fn advance(&self, watermark: Moment, version: Version) {
        self.watermark.fetch_max(watermark.as_nanos(), Ordering::AcqRel);
        self.version.fetch_max(version.as_u64(), Ordering::AcqRel);
    }
}

impl Seen<'_> {
    /// Whether the continuity covers what is known of an entry.
    pub(super) fn vouches_for(&self, verified: Verified) -> bool {
        verified.covered_from >= self.start
    }

    /// A moment at which an entry, looked up after this was taken, is known to have been current.
    pub(super) fn verified_at(&self, kept: &Kept) -> Moment {
        let verified = kept.verified();
        if self.vouches_for(verified) {
            return verified.at.max(self.watermark);
        }
        let past = self.coverage.past.read().expect("no holder of this lock can panic");
        let vouched = past.iter().find(|past| verified.covered_from >= past.start);
        vouched.map_or(verified.at, |past| verified.at.max(past.watermark))
    }

    pub(super) fn age(&self, kept: &Kept, now: Moment) -> Duration {
        now.since(self.verified_at(kept))
    }

    /// Whether a demand for a version is met, by the entry itself or by the feed (R3).
    pub(super) fn covers(&self, kept: &Kept, at_least: Option<Version>) -> bool {
        at_least.is_none_or(|demanded| {
            kept.version() >= demanded || (self.vouches_for(kept.verified()) && self.version >= demanded)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::{
        Key, NamespaceId,
        kept::{Content, EntryKey},
    };

    fn at(seconds: u64) -> Moment {
        Moment::ZERO + Duration::from_secs(seconds)
    }

    fn verified(seconds: u64) -> Kept {
        verified_at(at(seconds))
    }

    fn verified_at(moment: Moment) -> Kept {
        let key = EntryKey { namespace: NamespaceId::from_u128(1), key: Key::new("k").unwrap() };
        Kept::new(&key, Version::from_u64(5), Content::Absent, Moment::MAX, Verified::at(moment))
    }

    fn check(coverage: &Coverage, verified_at: u64, expected: u64) {
        assert_eq!(coverage.seen().verified_at(&verified(verified_at)), at(expected), "verified at {verified_at}");
    }

    #[test]
    fn the_watermark_vouches_for_what_was_verified_in_its_continuity() {
        let coverage = Coverage::new();
        check(&coverage, 10, 10);
        coverage.begin(at(20));
        check(&coverage, 25, 25);
        coverage.advance(at(30), Version::from_u64(8));
        check(&coverage, 19, 19);
        check(&coverage, 20, 20);
        check(&coverage, 21, 30);
        check(&coverage, 31, 31);
        coverage.advance(at(29), Version::from_u64(7));
        check(&coverage, 21, 30);
    }

    #[test]
    fn a_continuity_that_ended_proves_what_it_had_proven_and_no_more() {
        let coverage = Coverage::new();
        coverage.begin(at(20));
        coverage.advance(at(30), Version::from_u64(8));
        coverage.begin(at(40));
        assert_eq!(coverage.watermark(), None);
        check(&coverage, 25, 30);
        coverage.advance(at(50), Version::from_u64(9));
        check(&coverage, 19, 19);
        check(&coverage, 25, 30);
        check(&coverage, 35, 35);
        check(&coverage, 41, 50);
        for gap in 0..20 {
            coverage.begin(at(60 + gap));
        }
        check(&coverage, 41, 50);
        check(&coverage, 25, 30);
        for gap in 0..8 {
            coverage.begin(at(100 + 10 * gap));
            coverage.advance(at(105 + 10 * gap), Version::from_u64(9));
        }
        coverage.begin(at(300));
        check(&coverage, 41, 41);
        check(&coverage, 112, 115);
    }

    #[test]
    fn two_gaps_in_one_instant_are_two() {
        let coverage = Coverage::new();
        coverage.begin(at(20));
        let kept = verified_at(coverage.seen().start);
        assert!(coverage.seen().vouches_for(kept.verified()));
        coverage.begin(at(20));
        assert!(!coverage.seen().vouches_for(kept.verified()));
    }

    #[test]
    fn a_version_is_covered_by_the_entry_or_by_the_feed_and_by_no_earlier_feed() {
        let coverage = Coverage::new();
        coverage.begin(at(20));
        coverage.advance(at(30), Version::from_u64(8));
        let covers =
            |verified_at, version| coverage.seen().covers(&verified(verified_at), Some(Version::from_u64(version)));
        assert!(covers(10, 5) && !covers(10, 6));
        assert!(covers(21, 8) && !covers(21, 9));
        coverage.begin(at(40));
        assert!(covers(21, 5) && !covers(21, 6) && !covers(41, 6));
    }
}
