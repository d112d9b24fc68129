//! A version as the timestamp that a database may go by.

use super::Version;

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
