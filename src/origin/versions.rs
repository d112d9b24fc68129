//! Versions and the time by which entries expire: the only place that reads the wall clock for either.
//!
//! Versions come from a hybrid logical clock: the wall's milliseconds where those are ahead, else the last version's plus one. The committer
//! alone mints, and puts the last version into the store with each batch, so that a restart goes on above it however the wall was set since.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use crate::{clock::Clock, kv::Version};

/// Mints versions, each greater than all before it.
pub(super) struct VersionClock {
    time: Arc<Time>,
    last: Version,
    origin: u8,
}

impl VersionClock {
    /// Goes on above `last`.
    pub(super) fn new(time: Arc<Time>, last: Version, origin: u8) -> VersionClock {
        VersionClock { time, last, origin }
    }

    /// The version minted last.
    pub(super) fn last(&self) -> Version {
        self.last
    }

    pub(super) fn mint(&mut self) -> Version {
        let wall = Version::first_of(self.time.millis(), self.origin);
        let next = self.last.next(self.origin);
        self.last = wall.max(next);
        self.time.reach(self.last.millis());
        self.last
    }
}

/// The origin's time, in Unix milliseconds. It stands still while the wall clock is behind the highest time seen, so nothing that has
/// expired comes back.
pub(super) struct Time {
    clock: Arc<dyn Clock>,
    highest: AtomicU64,
}

impl Time {
    pub(super) fn new(clock: Arc<dyn Clock>, last: Version) -> Time {
        Time { clock, highest: AtomicU64::new(last.millis()) }
    }

    pub(super) fn millis(&self) -> u64 {
        self.reach(self.clock.wall_millis())
    }

    pub(super) fn seconds(&self) -> u64 {
        self.millis() / 1000
    }

    fn reach(&self, millis: u64) -> u64 {
        self.highest.fetch_max(millis, Ordering::AcqRel).max(millis)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::ManualClock;

    fn start(clock: &Arc<ManualClock>, last: Version) -> VersionClock {
        let time = Time::new(Arc::new(Arc::clone(clock)), last);
        VersionClock::new(Arc::new(time), last, 3)
    }

    #[test]
    fn a_version_carries_the_wall_clock_and_the_origin() {
        let clock = ManualClock::shared();
        let version = start(&clock, Version::ZERO).mint();
        assert_eq!(version.millis(), clock.wall_millis());
        assert_eq!(version.as_u64() & 0xff, 3);
    }

    #[test]
    fn versions_rise_whatever_the_wall_clock_does() {
        let clock = ManualClock::shared();
        let mut versions = start(&clock, Version::ZERO);
        let mut last = Version::ZERO;
        for step in [0, 5, -60_000, 1, -1, 3_600_000, -3_600_000] {
            clock.step_wall(step);
            for _ in 0..10_000 {
                let version = versions.mint();
                assert!(version > last);
                last = version;
            }
        }
    }

    #[test]
    fn a_restart_goes_on_above_the_last_version_though_the_wall_stepped_back() {
        let clock = ManualClock::shared();
        let last = start(&clock, Version::ZERO).mint();
        clock.step_wall(-86_400_000);
        assert!(start(&clock, last).mint() > last);
    }

    #[test]
    fn time_stands_still_while_the_wall_is_behind_it() {
        let clock = ManualClock::shared();
        let time = Time::new(Arc::new(Arc::clone(&clock)), Version::ZERO);
        let before = time.millis();
        clock.step_wall(-10_000);
        assert_eq!(time.millis(), before);
        clock.advance(Duration::from_millis(10_001));
        assert_eq!(time.millis(), before + 1);
    }
}
