//! What a tier counts of each of several origins that are its upstream.

use std::{sync::atomic::AtomicU64, time::Duration};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::add;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MemberLabels {
    tier: String,
    origin: String,
}

#[derive(Clone)]
pub(super) struct Families {
    requests: Family<MemberLabels, Counter>,
    hedges: Family<MemberLabels, Counter>,
    retries: Family<MemberLabels, Counter>,
    up: Family<MemberLabels, Gauge>,
    feed_age: Family<MemberLabels, Gauge<f64, AtomicU64>>,
}

impl Families {
    pub(super) fn register(to: &mut Registry) -> Families {
        Families {
            requests: add(
                to,
                "fleet_requests",
                "Questions and writes, by the origin that was asked",
                Family::default(),
            ),
            hedges: add(
                to,
                "fleet_hedges",
                "Reads that another origin took its time with, asked here as well",
                Family::default(),
            ),
            retries: add(
                to,
                "fleet_retries",
                "Questions and writes that failed at another origin, asked here",
                Family::default(),
            ),
            up: add(to, "fleet_up", "1 while the origin's feed is heard and it answers", Family::default()),
            feed_age: add(
                to,
                "fleet_feed_age_seconds",
                "How long ago all that this origin changed was known; infinite while nothing is",
                Family::default(),
            ),
        }
    }

    pub(super) fn of(&self, tier: &str) -> FleetMetrics {
        FleetMetrics { families: self.clone(), tier: tier.to_owned() }
    }
}

/// What is counted of the origins that one tier asks.
pub struct FleetMetrics {
    families: Families,
    tier: String,
}

impl FleetMetrics {
    fn labels(&self, origin: &str) -> MemberLabels {
        MemberLabels { tier: self.tier.clone(), origin: origin.to_owned() }
    }

    pub fn member(&self, origin: &str) -> MemberMetrics {
        let labels = self.labels(origin);
        MemberMetrics {
            requests: self.families.requests.get_or_create_owned(&labels),
            hedges: self.families.hedges.get_or_create_owned(&labels),
            retries: self.families.retries.get_or_create_owned(&labels),
            up: self.families.up.get_or_create_owned(&labels),
            feed_age: self.families.feed_age.get_or_create_owned(&labels),
        }
    }

    /// Shows nothing more of an origin that is gone.
    pub fn forget(&self, origin: &str) {
        let labels = self.labels(origin);
        self.families.requests.remove(&labels);
        self.families.hedges.remove(&labels);
        self.families.retries.remove(&labels);
        self.families.up.remove(&labels);
        self.families.feed_age.remove(&labels);
    }
}

/// What is counted of one of them.
pub struct MemberMetrics {
    requests: Counter,
    hedges: Counter,
    retries: Counter,
    up: Gauge,
    feed_age: Gauge<f64, AtomicU64>,
}

impl MemberMetrics {
    pub fn asked(&self) {
        self.requests.inc();
    }

    pub fn hedged(&self) {
        self.hedges.inc();
    }

    pub fn retried(&self) {
        self.retries.inc();
    }

    pub fn is(&self, up: bool, feed_age: Option<Duration>) {
        self.up.set(up.into());
        self.feed_age.set(feed_age.map_or(f64::INFINITY, |age| age.as_secs_f64()));
    }
}
