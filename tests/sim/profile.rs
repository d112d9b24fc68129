//! What kind of world a seed makes: how many locations and keys, what clients do, what goes wrong.
//!
//! Most worlds are tiny, with a few keys that everyone wants: there rules meet. Some have hundreds of locations.

use std::time::Duration;

use crate::{
    chance::Chance,
    clock::{MICRO, MILLI, Nanos, SECOND},
    quorum::Manner,
};

/// The families of worlds: a seed makes one of each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Worlds {
    /// One origin on a disk.
    #[default]
    One,
    /// Several on a store that they share.
    Several,
    /// The same, but machines are suspended where else a process would be paused. Leases are no protection against that.
    Suspending,
}

#[derive(Clone, Debug)]
pub(crate) struct Profile {
    pub(crate) edges: usize,
    pub(crate) regionals: usize,
    pub(crate) keys: usize,
    /// How much the first keys are preferred.
    pub(crate) skew: f64,
    /// Of the main part; the finale comes after it.
    pub(crate) duration: Nanos,
    /// Between two bursts of a location's reads, in the mean.
    pub(crate) think: Nanos,
    pub(crate) burst: u64,
    /// Between two writes in the whole world, in the mean.
    pub(crate) write_pause: Nanos,
    /// Whether some writes expire. Then no wall clock is set.
    pub(crate) expiring: bool,
    pub(crate) large_values: bool,
    pub(crate) lists: bool,
    /// Between two faults, in the mean; none when `None`.
    pub(crate) fault_pause: Option<Nanos>,
    pub(crate) loss: f64,
    pub(crate) commit: (Nanos, Nanos),
    pub(crate) drift_max: i64,
    pub(crate) cache_bytes: u64,
    pub(crate) cache_share_max: f64,
    pub(crate) feed_interval: Duration,
    pub(crate) feed_log_bytes: usize,
    pub(crate) feed_log_age: Duration,
    pub(crate) upstream_deadline: Duration,
    pub(crate) stale_after: Duration,
    pub(crate) stale_if_unreachable: Duration,
    pub(crate) refills: usize,
    pub(crate) push_bytes_max: usize,
    pub(crate) several: Option<Several>,
}

/// Several origins on one store, rather than one on a disk.
#[derive(Clone, Debug)]
pub(crate) struct Several {
    /// That run at first, and again in the end.
    pub(crate) origins: usize,
    /// Machines on which one may run.
    pub(crate) sites: usize,
    /// Whether the tiers' configuration names all of those machines, or those alone on which origins run at first.
    pub(crate) names_all: bool,
    /// Tiers that follow the origins.
    pub(crate) centrals: usize,
    /// How wrong a site's wall clock may be, either way.
    pub(crate) skew_millis: u64,
    pub(crate) lease: Duration,
    pub(crate) store: Manner,
    /// Between two things that befall origins or the store, in the mean.
    pub(crate) upset_pause: Option<Nanos>,
    /// Whether a process's monotonic clock stands still while it is paused.
    pub(crate) suspends: bool,
}

impl Several {
    fn draw(chance: &mut Chance) -> Several {
        let origins = chance.weighted(&[(1, 1), (5, 2), (3, 3), (1, 4)]);
        let trip = *chance.pick(&[500 * MICRO, 2 * MILLI, 15 * MILLI]);
        Several {
            origins,
            sites: origins + chance.below(3) as usize,
            names_all: chance.happens(0.6),
            centrals: chance.weighted(&[(3, 1), (2, 2)]),
            skew_millis: chance.weighted(&[(1, 0), (6, 300), (1, 5000)]),
            lease: *chance.pick(&[2, 3, 5]) * 1000 * MS,
            store: Manner {
                trip,
                late: *chance.pick(&[0.0, 0.0, 0.003, 0.02]),
                unknown: *chance.pick(&[0.0, 0.01, 0.01, 0.1]),
                hints: chance.happens(0.5),
                repairs: true,
                deadline: *chance.pick(&[500, 1000, 2000]) * MILLI,
            },
            suspends: false,
            upset_pause: chance.happens(0.9).then_some(()).map(|()| chance.between(500, 6000) * MILLI),
        }
    }
}

impl Profile {
    pub(crate) fn of(worlds: Worlds, seed: u64) -> Profile {
        let mut chance = Chance::new(seed);
        match worlds {
            Worlds::One => {
                let kinds = [(70, Kind::Tiny), (24, Kind::Small), (5, Kind::Wide), (1, Kind::World)];
                let kind = chance.weighted(&kinds);
                Profile::draw(kind, &mut chance)
            }
            Worlds::Several | Worlds::Suspending => {
                let kind = chance.weighted(&[(80, Kind::Tiny), (19, Kind::Small), (1, Kind::Wide)]);
                let several = Several { suspends: worlds == Worlds::Suspending, ..Several::draw(&mut chance) };
                let profile = Profile::draw(kind, &mut chance);
                // Where clocks disagree by seconds, so do origins about what has expired.
                let expiring = profile.expiring && several.skew_millis <= 1000;
                let duration = profile.duration + 4 * several.lease.as_nanos() as Nanos;
                Profile { expiring, duration, several: Some(several), ..profile }
            }
        }
    }

    /// How many tiers follow the origin, or all of them.
    pub(crate) fn centrals(&self) -> usize {
        self.several.as_ref().map_or(1, |several| several.centrals)
    }

    fn draw(kind: Kind, chance: &mut Chance) -> Profile {
        let (edges, regionals, keys, duration, think, burst) = match kind {
            Kind::Tiny => {
                let (edges, regionals) = (chance.between(1, 4), chance.below(3));
                (edges, regionals, chance.between(1, 4), chance.between(20, 60), chance.between(20, 300) * MILLI, 48)
            }
            Kind::Small => {
                let (edges, regionals) = (chance.between(3, 12), chance.below(4));
                (edges, regionals, chance.between(3, 40), chance.between(20, 60), chance.between(50, 400) * MILLI, 64)
            }
            Kind::Wide => {
                let (edges, regionals) = (chance.between(20, 60), chance.below(6));
                (
                    edges,
                    regionals,
                    chance.between(20, 400),
                    chance.between(15, 30),
                    chance.between(300, 900) * MILLI,
                    32,
                )
            }
            Kind::World => (chance.between(300, 330), chance.between(0, 17), 300, 12, 1500 * MILLI, 96),
        };
        let cache_bytes = *chance.pick(&[900, 1500, 4000, 20_000, 200_000, 16 << 20, 16 << 20]);
        Profile {
            edges: edges as usize,
            regionals: regionals as usize,
            keys: keys as usize,
            skew: *chance.pick(&[0.0, 0.6, 0.99]),
            duration: duration * SECOND,
            think,
            burst,
            write_pause: *chance.pick(&[20, 60, 60, 200, 200, 500, 2000]) * MILLI,
            expiring: chance.happens(0.5),
            large_values: chance.happens(0.15),
            lists: chance.happens(0.3),
            fault_pause: chance.happens(0.9).then_some(()).map(|()| chance.between(300, 6000) * MILLI),
            loss: *chance.pick(&[0.0, 0.0, 0.001, 0.01, 0.05]),
            commit: *chance.pick(&[(100 * MICRO, 200 * MICRO), (MILLI, 4 * MILLI), (20 * MILLI, 60 * MILLI)]),
            drift_max: *chance.pick(&[0, 20, 200]),
            cache_bytes,
            cache_share_max: *chance.pick(&[0.05, 0.5, 1.0]),
            feed_interval: *chance.pick(&[200, 500, 1000, 1000, 1000, 2000]) * MS,
            feed_log_bytes: *chance.pick(&[300, 2000, 20_000, 1 << 20]),
            feed_log_age: *chance.pick(&[2000, 20_000, 600_000]) * MS,
            upstream_deadline: *chance.pick(&[1000, 2000, 5000]) * MS,
            stale_after: *chance.pick(&[300, 1000, 1000]) * MS,
            stale_if_unreachable: *chance.pick(&[8_000, 30_000, 24 * 3_600_000]) * MS,
            refills: *chance.pick(&[1, 4, 32]),
            push_bytes_max: *chance.pick(&[0, 64, 1024, 1024]),
            several: None,
        }
    }
}

#[derive(Clone, Copy)]
enum Kind {
    /// A few locations, a few keys, all at once.
    Tiny,
    Small,
    Wide,
    /// Hundreds of locations.
    World,
}

const MS: Duration = Duration::from_millis(1);
