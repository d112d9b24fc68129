//! How long a read takes that no tier can answer: edge, region, centre and origin, each an emulated distance from the next.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    ask::{Values, name},
    chain::{Chain, read},
    kvasar::write_many,
    options::Options,
    process::quantile,
    report::Table,
};

/// One way from the centre to the origin, from the region to the centre, from the edge to the region.
const TRIPS_MILLIS: [u64; 3] = [2, 20, 8];
const READERS: usize = 4;

pub async fn run(options: &Options) {
    let keys = if options.quick { 200 } else { 2000 };
    println!("### Cold read through three tiers\n\n{keys} keys that no tier holds, {READERS} at a time.\n");
    let mut table =
        Table::new(["", "there and back", "p50", "p99", "max", "p50 beyond the trips", "p99 beyond the trips"]);
    // Without distances it shows what is the tiers' own: a timer that emulates one is late by up to a millisecond, each way and for each tier.
    for trips in [TRIPS_MILLIS, [0; 3]] {
        measure(trips, keys, &mut table).await;
    }
    table.print();
    println!(
        "A distance is emulated by a timer each way, which fires late by itself: together by {:.1} ms at the median, as measured here without any server.\n",
        lateness().await.as_secs_f64() * 1000.0
    );
}

/// How much later than asked timers of the same kind fire, each way through all tiers.
async fn lateness() -> Duration {
    let mut late = Duration::ZERO;
    for trip in TRIPS_MILLIS.map(Duration::from_millis) {
        let mut samples = Vec::new();
        for _ in 0..100 {
            let start = Instant::now();
            tokio::time::sleep(trip).await;
            samples.push(start.elapsed() - trip);
        }
        late += quantile(&mut samples, 0.5) * 2;
    }
    late
}

async fn measure(trips: [u64; 3], keys: u32, table: &mut Table) {
    let chain = Chain::start_at(trips.map(Duration::from_millis)).await;
    let namespace = chain.headers.lines().find_map(|line| line.strip_prefix("kvasar-namespace: "));
    let values = Values::new(1024);
    write_many(chain.origin.address(), namespace.expect("it is named"), keys, name, &values, None).await;
    let travelled = Duration::from_millis(2 * trips.iter().sum::<u64>());
    for (title, prefix) in [("a value of 1 KiB", "key"), ("an absent key", "none")] {
        let mut lines = Vec::new();
        for _ in 0..READERS {
            lines.push(chain.line(&chain.away).await);
        }
        // Connections between the tiers, as many as are needed at once, and the credential are no part of it.
        let first = lines.iter_mut().enumerate().map(async |(reader, line)| {
            for turn in 0..5 {
                read(line, &format!("first-{prefix}-{reader}-{turn}")).await;
            }
        });
        futures_util::future::join_all(first).await;
        let reads = lines.iter_mut().enumerate().map(async |(reader, line)| {
            let mut took = Vec::new();
            for key in (reader as u32..keys).step_by(READERS) {
                let start = Instant::now();
                let answer = read(line, &format!("{prefix}-{key:08}")).await;
                took.push(start.elapsed());
                assert_eq!(answer.cache, "MISS", "{prefix}-{key:08} was held");
                match prefix {
                    "key" => assert_eq!(answer.body, values.of(key)),
                    _ => assert_eq!(answer.status, 404),
                }
            }
            took
        });
        let mut took: Vec<Duration> = futures_util::future::join_all(reads).await.concat();
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| quantile(&mut took, share));
        let millis = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1000.0);
        table.row([
            title.to_owned(),
            format!("{trips:?} ms each way, {travelled:?}"),
            millis(p50),
            millis(p99),
            millis(max),
            millis(p50.saturating_sub(travelled)),
            millis(p99.saturating_sub(travelled)),
        ]);
    }
}
