//! Versions and the time by which entries expire: the only place that reads the wall clock for either.
//!
//! Versions come from a hybrid logical clock: the wall's milliseconds where those are ahead, else the last version's plus one. The committer
//! alone mints, and puts the last version into the store with each batch, so that a restart goes on above it however the wall was set since.
//!
//! A wall clock that must be wrong, as of a machine without a battery, would do lasting harm: versions that leave no room above them, and
//! entries that expire. So it is not believed: time stands still, nothing is minted, and all goes on once the clock is set right.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use crate::{
    clock::Clock,
    error::{Error, Result},
    kv::Version,
};

/// How far the wall clock may jump ahead and still be believed: an origin may have been asleep for years, but not for ten.
const LEAP_MILLIS_MAX: u64 = 10 * 366 * 24 * 3600 * 1000;
/// Up to when the wall clock is believed: a day before the last millisecond of versions, room for those that borrow from the next one.
const WALL_MILLIS_MAX: u64 = Version::MILLIS_MAX - 24 * 3600 * 1000;

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

    /// An error if so many versions can't be minted now, or should not be.
    pub(super) fn check(&self, count: u64) -> Result<()> {
        self.time.check()?;
        self.last.max(self.of_now()).after(count, self.origin).map(|_| ()).ok_or_else(|| {
            Error::internal(format!(
                "the store's last version is {}, which leaves none for {count} more writes",
                self.last
            ))
        })
    }

    /// [`VersionClock::check`] has found room for it.
    pub(super) fn mint(&mut self) -> Version {
        let next = self
            .last
            .next(self.origin)
            .expect("checked for this batch, and the wall clock is believed only up to a day before the last version");
        self.last = self.of_now().max(next);
        self.time.reach(self.last.millis());
        self.last
    }

    fn of_now(&self) -> Version {
        Version::first_of(self.time.millis(), self.origin)
    }
}

/// The origin's time, in Unix milliseconds. It stands still while the wall clock is behind the highest time seen, so nothing that has
/// expired comes back, and while the wall clock is so far ahead that it must be wrong.
pub(super) struct Time {
    clock: Arc<dyn Clock>,
    highest: AtomicU64,
    /// Whether the wall clock was not believed when it was last read.
    disbelieved: AtomicBool,
}

impl Time {
    pub(super) fn new(clock: Arc<dyn Clock>, last: Version) -> Time {
        Time { clock, highest: AtomicU64::new(last.millis()), disbelieved: AtomicBool::new(false) }
    }

    pub(super) fn millis(&self) -> u64 {
        let wall = self.clock.wall_millis();
        match self.believe(wall) {
            Ok(()) => {
                if self.disbelieved.swap(false, Ordering::Relaxed) {
                    tracing::info!("the machine's clock is believed again");
                }
                self.reach(wall)
            }
            Err(error) => {
                if !self.disbelieved.swap(true, Ordering::Relaxed) {
                    tracing::error!(%error, "THE MACHINE'S CLOCK MUST BE WRONG: nothing is written and nothing expires until it is set");
                }
                self.highest.load(Ordering::Acquire)
            }
        }
    }

    pub(super) fn seconds(&self) -> u64 {
        self.millis() / 1000
    }

    /// An error while the wall clock must be wrong.
    fn check(&self) -> Result<()> {
        self.believe(self.clock.wall_millis())
    }

    fn believe(&self, wall: u64) -> Result<()> {
        // Zero at a store that has no version yet.
        let highest = self.highest.load(Ordering::Acquire);
        let leaps = highest > 0 && wall > highest.saturating_add(LEAP_MILLIS_MAX);
        if leaps || wall > WALL_MILLIS_MAX {
            return Err(Error::internal(format!(
                "the machine's clock says {wall} Unix milliseconds, the origin's time so far is {highest}: this must be wrong; set the clock"
            )));
        }
        Ok(())
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
    fn a_wall_clock_far_ahead_is_not_believed_until_it_is_set_right() {
        let clock = ManualClock::shared();
        let mut versions = start(&clock, Version::ZERO);
        let last = versions.mint();
        let far = i64::try_from(LEAP_MILLIS_MAX).unwrap() + 1;
        clock.step_wall(far);
        let error = versions.check(1).unwrap_err();
        assert!(error.message.contains("the machine's clock says"), "{error}");
        assert_eq!(versions.time.millis(), last.millis());
        clock.step_wall(-1);
        versions.check(1).unwrap();
        clock.step_wall(1 - far);
        versions.check(1).unwrap();
        assert!(versions.mint() > last);
    }

    #[test]
    fn where_versions_end_writes_are_refused() {
        let clock = ManualClock::shared();
        // Room for 8,191 more in the last millisecond.
        let mut versions = start(&clock, Version::first_of(Version::MILLIS_MAX, 3));
        assert!(versions.check(8192).is_err());
        versions.check(8191).unwrap();
        for _ in 0..8191 {
            versions.mint();
        }
        assert!(versions.check(1).is_err());
        assert_eq!(versions.last().as_u64() >> 63, 0);
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
