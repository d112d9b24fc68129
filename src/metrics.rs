//! What the admin port counts, for Prometheus.
//!
//! Each part of the server asks once for its own handles ([`Metrics::door`], [`Metrics::tier`], [`Metrics::origin`]) and then only adds
//! to them: nothing is looked up by name while a request is served. This module names nothing else of ours; who counts converts into its enums.

mod fleet;
mod sharded;

use std::{
    fmt::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Metric, Registry},
};

pub use self::fleet::{FleetMetrics, MemberMetrics};

/// Where a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Door {
    Binding,
    Rest,
    Admin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    Get,
    Put,
    Delete,
    List,
    BulkGet,
    BulkPut,
    BulkDelete,
    /// Whatever concerns namespaces themselves.
    Namespace,
    Token,
    /// What tiers ask of each other beside entries.
    Control,
    Feed,
    /// Accounts, the user, and what no route matches.
    Other,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    Ok,
    /// A key or namespace that isn't there.
    Absent,
    /// The request was wrong.
    ClientError,
    /// No credential, or one without the right.
    Unauthorized,
    RateLimited,
    /// Upstream or the store is away.
    Unavailable,
    /// Our own fault.
    ServerError,
    /// The client went away before its answer was whole.
    Cancelled,
}

/// How a cache came by an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CacheAnswer {
    Hit,
    Miss,
    Expired,
    Revalidated,
    Stale,
    Bypass,
}

/// How a question to the next tier up ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UpstreamOutcome {
    Ok,
    /// What was held is still so.
    NotModified,
    /// Upstream answered that the request was wrong.
    Refused,
    /// Upstream was away, failing, or past its deadline.
    Failed,
}

macro_rules! label_values {
    ($name:ident { $($variant:ident = $text:literal),+ $(,)? }) => {
        impl $name {
            pub const ALL: &'static [$name] = &[$($name::$variant),+];

            pub fn name(self) -> &'static str {
                match self { $($name::$variant => $text),+ }
            }
        }

        impl EncodeLabelValue for $name {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
                encoder.write_str(self.name())
            }
        }
    };
}

label_values!(Door { Binding = "binding", Rest = "rest", Admin = "admin" });
label_values!(Operation {
    Get = "get",
    Put = "put",
    Delete = "delete",
    List = "list",
    BulkGet = "bulk_get",
    BulkPut = "bulk_put",
    BulkDelete = "bulk_delete",
    Namespace = "namespace",
    Token = "token",
    Control = "control",
    Feed = "feed",
    Other = "other",
});
label_values!(Outcome {
    Ok = "ok",
    Absent = "absent",
    ClientError = "client_error",
    Unauthorized = "unauthorized",
    RateLimited = "rate_limited",
    Unavailable = "unavailable",
    ServerError = "server_error",
    Cancelled = "cancelled",
});
label_values!(CacheAnswer {
    Hit = "hit",
    Miss = "miss",
    Expired = "expired",
    Revalidated = "revalidated",
    Stale = "stale",
    Bypass = "bypass",
});
label_values!(UpstreamOutcome { Ok = "ok", NotModified = "not_modified", Refused = "refused", Failed = "failed" });

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DoorLabels {
    door: Door,
    location: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    door: Door,
    location: String,
    operation: Operation,
    outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LatencyLabels {
    door: Door,
    location: String,
    operation: Operation,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TierLabels {
    tier: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CacheLabels {
    tier: String,
    answer: CacheAnswer,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UpstreamLabels {
    tier: String,
    outcome: UpstreamOutcome,
}

/// All that one process counts.
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, sharded::Counter>,
    request_duration: Family<LatencyLabels, sharded::Histogram, fn() -> sharded::Histogram>,
    received: Family<DoorLabels, sharded::Counter>,
    sent: Family<DoorLabels, sharded::Counter>,
    connections: Family<DoorLabels, Gauge>,
    in_flight: Family<DoorLabels, Gauge>,
    cache_answers: Family<CacheLabels, sharded::Counter>,
    answer_age: Family<TierLabels, sharded::Histogram, fn() -> sharded::Histogram>,
    cache_bytes: Family<TierLabels, Gauge>,
    cache_entries: Family<TierLabels, Gauge>,
    upstream_requests: Family<UpstreamLabels, sharded::Counter>,
    upstream_duration: Family<TierLabels, sharded::Histogram, fn() -> sharded::Histogram>,
    feed_age: Family<TierLabels, Gauge<f64, AtomicU64>>,
    feed_followers: Family<TierLabels, Gauge>,
    feed_items: Family<TierLabels, Counter>,
    feed_gaps: Family<TierLabels, Counter>,
    fleet: fleet::Families,
    origin: OriginMetrics,
}

/// From 50 microseconds, a hit in memory, to 26 seconds, past every deadline.
fn durations() -> impl Iterator<Item = Duration> {
    (0..20).map(|power| Duration::from_micros(50) * (1 << power))
}

/// From a push that has just come to the day that a copy may be served while upstream is away.
fn ages() -> impl Iterator<Item = Duration> {
    const MILLIS: [u64; 16] = [
        1, 10, 100, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000, 120_000, 300_000, 900_000, 3_600_000, 21_600_000,
        86_400_000,
    ];
    MILLIS.into_iter().map(Duration::from_millis)
}

impl Default for Metrics {
    fn default() -> Metrics {
        let mut registry = Registry::with_prefix("kvasar");
        let to = &mut registry;
        Metrics {
            requests: add(to, "requests", "Requests answered", Family::default()),
            request_duration: add(
                to,
                "request_duration_seconds",
                "From a request's head to the end of its answer",
                Family::new_with_constructor(|| sharded::Histogram::new(durations())),
            ),
            received: add(to, "received_bytes", "Bytes of request bodies", Family::default()),
            sent: add(to, "sent_bytes", "Bytes of answers' bodies", Family::default()),
            connections: add(to, "connections", "Connections open", Family::default()),
            in_flight: add(to, "requests_in_flight", "Requests being answered", Family::default()),
            cache_answers: add(to, "cache_answers", "Answers, by how the cache came by them", Family::default()),
            answer_age: add(
                to,
                "answer_age_seconds",
                "Upper bound on how long ago what was answered was known to be current",
                Family::new_with_constructor(|| sharded::Histogram::new(ages())),
            ),
            cache_bytes: add(to, "cache_held_bytes", "Bytes that the cache holds", Family::default()),
            cache_entries: add(to, "cache_entries", "Entries that the cache holds", Family::default()),
            upstream_requests: add(to, "upstream_requests", "Questions to the next tier up", Family::default()),
            upstream_duration: add(
                to,
                "upstream_duration_seconds",
                "From a question to the next tier up to the head of its answer",
                Family::new_with_constructor(|| sharded::Histogram::new(durations())),
            ),
            feed_age: add(
                to,
                "feed_age_seconds",
                "How long ago all that the feed covers was proven current; infinite while nothing is",
                Family::default(),
            ),
            feed_followers: add(to, "feed_followers", "Tiers that follow this one's feed", Family::default()),
            feed_items: add(to, "feed_items", "Items told to followers", Family::default()),
            feed_gaps: add(to, "feed_gaps", "Gaps told to followers", Family::default()),
            fleet: fleet::Families::register(to),
            origin: OriginMetrics::register(to),
            registry,
        }
    }
}

/// Registers a metric and gives it back. The unit is part of the name, and Prometheus adds `_total` to counters.
fn add<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

impl Metrics {
    /// The handles of one listener: a location's binding port, or REST.
    pub fn door(&self, door: Door, location: &str) -> Arc<DoorMetrics> {
        let labels = DoorLabels { door, location: location.to_owned() };
        let operations = Operation::ALL.iter().map(|&operation| {
            let location = || location.to_owned();
            let outcomes = Outcome::ALL.iter().map(|&outcome| {
                self.requests.get_or_create_owned(&RequestLabels { door, location: location(), operation, outcome })
            });
            let duration =
                self.request_duration.get_or_create_owned(&LatencyLabels { door, location: location(), operation });
            OperationMetrics { outcomes: outcomes.collect(), duration }
        });
        Arc::new(DoorMetrics {
            operations: operations.collect(),
            received: self.received.get_or_create_owned(&labels),
            sent: self.sent.get_or_create_owned(&labels),
            connections: self.connections.get_or_create_owned(&labels),
            in_flight: self.in_flight.get_or_create_owned(&labels),
        })
    }

    /// The handles of one tier, by its name.
    pub fn tier(&self, tier: &str) -> Arc<TierMetrics> {
        let labels = TierLabels { tier: tier.to_owned() };
        let answers = CacheAnswer::ALL
            .iter()
            .map(|&answer| self.cache_answers.get_or_create_owned(&CacheLabels { tier: tier.to_owned(), answer }));
        let upstream = UpstreamOutcome::ALL.iter().map(|&outcome| {
            self.upstream_requests.get_or_create_owned(&UpstreamLabels { tier: tier.to_owned(), outcome })
        });
        Arc::new(TierMetrics {
            answers: answers.collect(),
            upstream: upstream.collect(),
            age: self.answer_age.get_or_create_owned(&labels),
            upstream_duration: self.upstream_duration.get_or_create_owned(&labels),
            cache_bytes: self.cache_bytes.get_or_create_owned(&labels),
            cache_entries: self.cache_entries.get_or_create_owned(&labels),
            feed_age: self.feed_age.get_or_create_owned(&labels),
        })
    }

    /// The handles of one feed, by the name of the tier, or the origin, that sends it.
    pub fn feed(&self, sender: &str) -> FeedMetrics {
        let labels = TierLabels { tier: sender.to_owned() };
        FeedMetrics {
            followers: self.feed_followers.get_or_create_owned(&labels),
            items: self.feed_items.get_or_create_owned(&labels),
            gaps: self.feed_gaps.get_or_create_owned(&labels),
        }
    }

    /// The handles of the origins that one tier asks, where they are several.
    pub fn fleet(&self, tier: &str) -> FleetMetrics {
        self.fleet.of(tier)
    }

    /// The handles of the origin; a process has one at most.
    pub fn origin(&self) -> OriginMetrics {
        self.origin.clone()
    }

    /// The OpenMetrics text that Prometheus reads.
    pub fn render(&self) -> String {
        let mut text = String::new();
        text::encode(&mut text, &self.registry).expect("writing to a String does not fail");
        text
    }
}

/// What one listener counts.
pub struct DoorMetrics {
    operations: Box<[OperationMetrics]>,
    received: sharded::Counter,
    sent: sharded::Counter,
    connections: Gauge,
    in_flight: Gauge,
}

struct OperationMetrics {
    outcomes: Box<[sharded::Counter]>,
    duration: sharded::Histogram,
}

impl DoorMetrics {
    pub fn finished(&self, operation: Operation, outcome: Outcome, took: Duration) {
        let metrics = &self.operations[operation as usize];
        metrics.outcomes[outcome as usize].inc();
        metrics.duration.observe(took);
    }

    pub fn received(&self, bytes: u64) {
        self.received.inc_by(bytes);
    }

    pub fn sent(&self, bytes: u64) {
        self.sent.inc_by(bytes);
    }

    /// One more connection until the guard is dropped.
    pub fn connection(&self) -> GaugeGuard {
        GaugeGuard::new(&self.connections)
    }

    /// One more request under way until the guard is dropped.
    pub fn in_flight(&self) -> GaugeGuard {
        GaugeGuard::new(&self.in_flight)
    }
}

/// Counts one in a gauge while it lives.
pub struct GaugeGuard(Gauge);

impl GaugeGuard {
    fn new(gauge: &Gauge) -> GaugeGuard {
        gauge.inc();
        GaugeGuard(gauge.clone())
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// What one tier counts.
pub struct TierMetrics {
    answers: Box<[sharded::Counter]>,
    upstream: Box<[sharded::Counter]>,
    age: sharded::Histogram,
    upstream_duration: sharded::Histogram,
    cache_bytes: Gauge,
    cache_entries: Gauge,
    feed_age: Gauge<f64, AtomicU64>,
}

impl TierMetrics {
    pub fn answered(&self, answer: CacheAnswer, age: Duration) {
        self.answers[answer as usize].inc();
        self.age.observe(age);
    }

    pub fn asked_upstream(&self, outcome: UpstreamOutcome, took: Duration) {
        self.upstream[outcome as usize].inc();
        self.upstream_duration.observe(took);
    }

    /// How long ago what the feed covers was proven current.
    pub fn follows(&self, age: Option<Duration>) {
        self.feed_age.set(age.map_or(f64::INFINITY, |age| age.as_secs_f64()));
    }

    pub fn holds(&self, entries: u64, bytes: u64) {
        self.cache_entries.set(i64::try_from(entries).unwrap_or(i64::MAX));
        self.cache_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
}

/// What one feed counts.
pub struct FeedMetrics {
    followers: Gauge,
    items: Counter,
    gaps: Counter,
}

/// What a feed has counted since it began.
#[derive(Default, Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeedCounts {
    pub followers: u64,
    pub items: u64,
    pub gaps: u64,
}

impl FeedMetrics {
    /// Takes over what one feed, and no other, has counted.
    pub fn sends(&self, counts: FeedCounts) {
        self.followers.set(i64::try_from(counts.followers).unwrap_or(i64::MAX));
        self.items.inner().fetch_max(counts.items, Ordering::Relaxed);
        self.gaps.inner().fetch_max(counts.gaps, Ordering::Relaxed);
    }
}

/// What the origin counts.
#[derive(Clone)]
pub struct OriginMetrics {
    commits: Counter,
    writes: Counter,
    writes_per_commit: Histogram,
    commit_duration: Histogram,
    read_only: Gauge,
}

impl OriginMetrics {
    fn register(to: &mut Registry) -> OriginMetrics {
        let shares = Histogram::new((0..12).map(|power| f64::from(1 << power)));
        OriginMetrics {
            commits: add(to, "commits", "Batches committed to the store", Counter::default()),
            writes: add(to, "writes", "Writes committed to the store", Counter::default()),
            writes_per_commit: add(to, "writes_per_commit", "Writes that share one sync", shares),
            commit_duration: add(
                to,
                "commit_duration_seconds",
                "One commit, its sync included",
                Histogram::new(durations().map(|bound| bound.as_secs_f64())),
            ),
            read_only: add(to, "read_only", "1 once a disk write has failed and no more are taken", Gauge::default()),
        }
    }

    pub fn committed(&self, writes: u64, took: Duration) {
        self.commits.inc();
        self.writes.inc_by(writes);
        self.writes_per_commit.observe(writes as f64);
        self.commit_duration.observe(took.as_secs_f64());
    }

    pub fn turned_read_only(&self) {
        self.read_only.set(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str, start: &str) -> String {
        let found = text.lines().find(|line| line.starts_with(start));
        found.unwrap_or_else(|| panic!("no line starts with {start} in:\n{text}")).to_owned()
    }

    #[test]
    fn what_is_counted_is_rendered_under_its_labels() {
        let metrics = Metrics::default();
        let door = metrics.door(Door::Binding, "home");
        door.finished(Operation::BulkGet, Outcome::Absent, Duration::from_millis(3));
        door.received(5);
        door.sent(7);
        let tier = metrics.tier("home");
        tier.answered(CacheAnswer::Stale, Duration::from_secs(70));
        tier.asked_upstream(UpstreamOutcome::NotModified, Duration::from_millis(80));
        tier.holds(2, 300);
        tier.follows(Some(Duration::from_millis(1500)));
        metrics.feed("home").sends(FeedCounts { followers: 3, items: 20, gaps: 1 });
        let origin = metrics.origin();
        origin.committed(3, Duration::from_millis(2));
        origin.turned_read_only();

        let text = metrics.render();
        let check = |expected: &str| {
            let start = expected.rsplit_once(' ').expect("a sample has a value").0;
            assert_eq!(line(&text, start), expected);
        };
        check(r#"kvasar_requests_total{door="binding",location="home",operation="bulk_get",outcome="absent"} 1"#);
        check(r#"kvasar_requests_total{door="binding",location="home",operation="get",outcome="ok"} 0"#);
        check(r#"kvasar_request_duration_seconds_count{door="binding",location="home",operation="bulk_get"} 1"#);
        check(r#"kvasar_received_bytes_total{door="binding",location="home"} 5"#);
        check(r#"kvasar_sent_bytes_total{door="binding",location="home"} 7"#);
        check(r#"kvasar_cache_answers_total{tier="home",answer="stale"} 1"#);
        check(r#"kvasar_answer_age_seconds_bucket{le="60.0",tier="home"} 0"#);
        check(r#"kvasar_answer_age_seconds_bucket{le="120.0",tier="home"} 1"#);
        check(r#"kvasar_upstream_requests_total{tier="home",outcome="not_modified"} 1"#);
        check(r#"kvasar_cache_held_bytes{tier="home"} 300"#);
        check(r#"kvasar_feed_age_seconds{tier="home"} 1.5"#);
        check(r#"kvasar_feed_followers{tier="home"} 3"#);
        check(r#"kvasar_feed_items_total{tier="home"} 20"#);
        check(r#"kvasar_feed_gaps_total{tier="home"} 1"#);
        check("kvasar_commits_total 1");
        check("kvasar_writes_total 3");
        check("kvasar_read_only 1");
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn a_guard_counts_while_it_lives() {
        let metrics = Metrics::default();
        let door = metrics.door(Door::Rest, "home");
        let start = r#"kvasar_connections{door="rest",location="home"}"#;
        let first = door.connection();
        let second = door.connection();
        assert_eq!(line(&metrics.render(), start), format!("{start} 2"));
        drop((first, second));
        assert_eq!(line(&metrics.render(), start), format!("{start} 0"));
    }

    #[test]
    fn every_label_value_sits_at_its_own_index() {
        assert!(Operation::ALL.iter().enumerate().all(|(index, value)| *value as usize == index));
        assert!(Outcome::ALL.iter().enumerate().all(|(index, value)| *value as usize == index));
        assert!(CacheAnswer::ALL.iter().enumerate().all(|(index, value)| *value as usize == index));
        assert!(UpstreamOutcome::ALL.iter().enumerate().all(|(index, value)| *value as usize == index));
    }
}
