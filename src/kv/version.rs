//! Versions: which write, in the order of writes; and as the timestamp that a database may go by.

use std::{fmt, str::FromStr};

use crate::error::{Error, Result};

/// Which write: 63 bits of milliseconds, counter and origin id, minted by an origin alone. A later write has the greater version.
///
/// Outside it is 16 hexadecimal digits, so that versions compare as texts, too.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(u64);

impl Version {
    /// Below every write.
    pub const ZERO: Version = Version(0);

    const COUNTER_BITS: u32 = 13;
    const ORIGIN_BITS: u32 = 8;
    /// 42 bits: until the year 2109.
    pub const MILLIS_MAX: u64 = (1 << 42) - 1;

    pub const fn from_u64(bits: u64) -> Version {
        assert!(bits < 1 << 63, "a version has 63 bits");
        Version(bits)
    }

    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The first version of a millisecond at an origin. Milliseconds past 2109 count as its last.
    pub fn first_of(millis: u64, origin: u8) -> Version {
        let millis = millis.min(Version::MILLIS_MAX);
        Version(millis << (Version::COUNTER_BITS + Version::ORIGIN_BITS) | u64::from(origin))
    }

    /// The next version above this one at an origin; it borrows from the next millisecond when the counter is full. `None` if there is none
    /// of 63 bits.
    pub fn next(self, origin: u8) -> Option<Version> {
        self.after(1, origin)
    }

    /// The version that `count` times [`Version::next`] leads to.
    pub fn after(self, count: u64, origin: u8) -> Option<Version> {
        let steps = (self.0 >> Version::ORIGIN_BITS).checked_add(count)?;
        (steps < 1 << (63 - Version::ORIGIN_BITS)).then(|| Version(steps << Version::ORIGIN_BITS | u64::from(origin)))
    }

    pub fn millis(self) -> u64 {
        self.0 >> (Version::COUNTER_BITS + Version::ORIGIN_BITS)
    }

    /// Versions that an origin alone on its store may mint in a millisecond, and one of several.
    pub const PER_MILLISECOND: u64 = 1 << Version::COUNTER_BITS;
    pub const PER_MILLISECOND_SHARED: u64 = 31;
    /// Origins that may be on one store at a time; their ids are below this.
    pub const ORIGINS_MAX: u8 = 32;

    /// Of the version within its millisecond.
    pub fn counter(self) -> u64 {
        self.0 >> Version::ORIGIN_BITS & ((1 << Version::COUNTER_BITS) - 1)
    }

    /// The version just below this one; zero has none.
    pub fn before(self) -> Version {
        Version(self.0.saturating_sub(1))
    }
}

impl Version {
    pub const DIGITS: usize = 16;

    /// The version as text.
    pub fn digits(self) -> [u8; Version::DIGITS] {
        std::array::from_fn(|place| b"0123456789abcdef"[(self.0 >> (60 - 4 * place) & 15) as usize])
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.digits()).expect("digits are ASCII"))
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Version {
    type Err = Error;

    fn from_str(text: &str) -> Result<Version> {
        let bits = (text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit()))
            .then(|| u64::from_str_radix(text, 16).ok())
            .flatten()
            .filter(|bits| bits >> 63 == 0);
        bits.map(Version).ok_or_else(|| {
            Error::bad_request(format!("a version is 16 hexadecimal digits, not '{}'", text.escape_debug()))
        })
    }
}

impl Version {
    /// Microseconds since the Unix epoch, in the order of versions and never past the version's own millisecond. One to one for those whose counter is
    /// at most 30 and whose origin id is at most 31; what is beyond is the last of its millisecond.
    pub fn micros(self) -> i64 {
        let counter = self.0 >> Version::ORIGIN_BITS & ((1 << Version::COUNTER_BITS) - 1);
        let origin = self.0 & ((1 << Version::ORIGIN_BITS) - 1);
        let within = (counter * 32 + origin).min(999);
        i64::try_from(self.millis() * 1000 + within).expect("a thousand times 42 bits has 52")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_that_shared_origins_mint_have_a_microsecond_of_their_own() {
        let mut last = Version::first_of(1_800_000_000_000, 0).micros() - 1;
        for counter in 0..=30 {
            for origin in 0..=31 {
                let version =
                    Version::first_of(1_800_000_000_000, 0).after(counter, origin).expect("it is far from the last");
                assert!(version.micros() > last && version.micros() < 1_800_000_000_001_000);
                last = version.micros();
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn a_greater_version_never_has_a_lesser_timestamp(millis in 0u64..5, one in 0u64..8192, other in 0u64..8192, later in 0u64..2) {
            let version = |millis, counter| Version::first_of(millis, 0).after(counter, 7).expect("it is far from the last");
            let (one, other) = (version(millis, one), version(millis + later, other));
            let (less, more) = if one <= other { (one, other) } else { (other, one) };
            // Counters beside ids of more than 31 could be out of order; here both ids are the same.
            proptest::prop_assert!(less.micros() <= more.micros());
        }
    }

    #[test]
    fn what_can_not_be_told_apart_is_the_last_of_its_millisecond() {
        assert_eq!(Version::ZERO.micros(), 0);
        assert_eq!(Version::first_of(7, 40).after(40, 40).expect("far from the last").micros(), 7999);
        assert_eq!(Version::first_of(8, 0).micros(), 8000);
    }
}
