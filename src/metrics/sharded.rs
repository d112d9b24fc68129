//! Counters that many cores count in at once without waiting for each other: each thread has a place of its own, and whoever reads takes the sum.

use std::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::{MetricType, TypedMetric},
};

/// Threads beyond these share a place: they count as rightly, but may wait for each other.
const PLACES: usize = 16;

static NEXT_PLACE: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static PLACE: Cell<usize> = Cell::new(NEXT_PLACE.fetch_add(1, Ordering::Relaxed) % PLACES);
}

fn place() -> usize {
    PLACE.get()
}

/// On a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Line<T>(T);

#[derive(Clone, Debug)]
pub(super) struct Counter(Arc<[Line<AtomicU64>; PLACES]>);

impl Default for Counter {
    fn default() -> Counter {
        Counter(Arc::new(std::array::from_fn(|_| Line::default())))
    }
}

impl Counter {
    pub(super) fn inc(&self) {
        self.inc_by(1);
    }

    pub(super) fn inc_by(&self, count: u64) {
        self.0[place()].0.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.iter().map(|line| line.0.load(Ordering::Relaxed)).sum()
    }
}

impl TypedMetric for Counter {
    const TYPE: MetricType = MetricType::Counter;
}

impl EncodeMetric for Counter {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        encoder.encode_counter::<NoLabelSet, _, u64>(&self.get(), None)
    }

    fn metric_type(&self) -> MetricType {
        Counter::TYPE
    }
}

/// A histogram of durations.
#[derive(Clone, Debug)]
pub(super) struct Histogram(Arc<Shape>);

#[derive(Debug)]
struct Shape {
    /// Upper bounds, in nanoseconds, in order; a bucket for what is beyond them stands behind.
    bounds: Box<[u64]>,
    places: [Line<Buckets>; PLACES],
}

#[derive(Debug)]
struct Buckets {
    counts: Box<[AtomicU64]>,
    nanos: AtomicU64,
}

impl Histogram {
    /// Upper bounds in order.
    pub(super) fn new(bounds: impl IntoIterator<Item = Duration>) -> Histogram {
        let bounds: Box<[u64]> = bounds.into_iter().map(nanos).collect();
        let places = std::array::from_fn(|_| {
            let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
            Line(Buckets { counts, nanos: AtomicU64::new(0) })
        });
        Histogram(Arc::new(Shape { bounds, places }))
    }

    pub(super) fn observe(&self, duration: Duration) {
        let nanos = nanos(duration);
        // What is hot is short, and found at once.
        let bucket = self.0.bounds.iter().position(|bound| nanos <= *bound).unwrap_or(self.0.bounds.len());
        let Line(buckets) = &self.0.places[place()];
        buckets.counts[bucket].fetch_add(1, Ordering::Relaxed);
        buckets.nanos.fetch_add(nanos, Ordering::Relaxed);
    }
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Shape { bounds, places } = &*self.0;
        let bounds = bounds.iter().map(|bound| Duration::from_nanos(*bound).as_secs_f64()).chain([f64::INFINITY]);
        let sum =
            |bucket: usize| places.iter().map(|Line(buckets)| buckets.counts[bucket].load(Ordering::Relaxed)).sum();
        let buckets: Vec<(f64, u64)> = bounds.enumerate().map(|(bucket, bound)| (bound, sum(bucket))).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let seconds = places
            .iter()
            .map(|Line(buckets)| Duration::from_nanos(buckets.nanos.load(Ordering::Relaxed)).as_secs_f64());
        encoder.encode_histogram::<NoLabelSet>(seconds.sum(), count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Histogram::TYPE
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::text, registry::Registry};

    use super::*;

    #[test]
    fn what_many_threads_counted_is_all_there() {
        let (counter, histogram) = (Counter::default(), Histogram::new([1, 10].map(Duration::from_secs)));
        std::thread::scope(|scope| {
            for thread in 0..2 * PLACES as u64 {
                let (counter, histogram) = (&counter, &histogram);
                scope.spawn(move || {
                    for _ in 0..100 {
                        counter.inc_by(thread);
                        histogram.observe(Duration::from_secs(thread));
                    }
                });
            }
        });
        let mut registry = Registry::default();
        registry.register("c", "C", counter);
        registry.register("h", "H", histogram);
        let mut text = String::new();
        text::encode(&mut text, &registry).unwrap();
        for line in [
            "c_total 49600",
            "h_sum 49600.0",
            "h_count 3200",
            "h_bucket{le=\"1.0\"} 200",
            "h_bucket{le=\"10.0\"} 1100",
            "h_bucket{le=\"+Inf\"} 3200",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
    }
}
