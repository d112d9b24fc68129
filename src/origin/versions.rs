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
    /// Versions that it may mint in a millisecond.
    per_millisecond: u64,
}

impl VersionClock {
    /// Goes on above `last`.
    pub(super) fn new(time: Arc<Time>, last: Version, origin: u8) -> VersionClock {
        VersionClock { time, last, origin, per_millisecond: Version::PER_MILLISECOND }
    }

    /// The same for one of several origins on a store. Its versions are few enough that each has a microsecond of its own ([`Version::micros`]).
    pub(super) fn of_several(time: Arc<Time>, last: Version, origin: u8) -> VersionClock {
        VersionClock { per_millisecond: Version::PER_MILLISECOND_SHARED, ..VersionClock::new(time, last, origin) }
    }

    /// The version minted last.
    pub(super) fn last(&self) -> Version {
        self.last
    }

    /// An error if so many versions can't be minted now, or should not be.
    pub(super) fn check(&self, count: u64) -> Result<()> {
        self.time.check()?;
        // Where a millisecond has fewer versions, as many steps lead further.
        let steps = count * (Version::PER_MILLISECOND / self.per_millisecond);
        self.last.max(self.of_now()).after(steps, self.origin).map(|_| ()).ok_or_else(|| {
            Error::internal(format!(
                "the store's last version is {}, which leaves none for {count} more writes",
                self.last
            ))
        })
    }

    /// [`VersionClock::check`] has found room for it.
    pub(super) fn mint(&mut self) -> Version {
        let next = self
            .next(self.last)
            .expect("checked for this batch, and the wall clock is believed only up to a day before the last version");
        self.last = self.of_now().max(next);
        self.time.reach(self.last.millis());
        self.last
    }

    /// One above what another origin has minted (O1). Its clock may be ahead; ours goes on by itself.
    pub(super) fn mint_above(&mut self, other: Version) -> Result<Version> {
        let minted = self.mint();
        if minted > other {
            return Ok(minted);
        }
        self.next(other).ok_or_else(|| Error::internal(format!("there is no version above {other}")))
    }

    /// The next one in order; in the next millisecond where this one's have been used up.
    fn next(&self, version: Version) -> Option<Version> {
        if version.counter() + 1 < self.per_millisecond {
            return version.next(self.origin);
        }
        let millis = version.millis() + 1;
        (millis <= Version::MILLIS_MAX).then(|| Version::first_of(millis, self.origin))
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
    fn one_of_several_mints_above_the_others_and_each_version_has_its_own_microsecond() {
        let clock = ManualClock::shared();
        let time = Time::new(Arc::new(Arc::clone(&clock)), Version::ZERO);
        let mut versions = VersionClock::of_several(Arc::new(time), Version::ZERO, 31);
        let mut last = Version::ZERO;
        for _ in 0..100 {
            let version = versions.mint();
            assert!(version > last && version.micros() > last.micros(), "{last} {version}");
            last = version;
        }
        let ahead = Version::first_of(clock.wall_millis() + 5_000, 3);
        let above = versions.mint_above(ahead).unwrap();
        assert!(above > ahead && above.micros() > ahead.micros());
        assert!(versions.mint() < ahead, "its own clock goes on where it was");
        // Of an embedded store, where a millisecond has thousands.
        let dense = ahead.after(5_000, 200).unwrap();
        let above = versions.mint_above(dense).unwrap();
        assert!(above > dense && above.micros() > dense.micros());
        let end = Version::first_of(Version::MILLIS_MAX, 3).after(30, 3).unwrap();
        assert!(versions.mint_above(end).is_err());
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
