//! What the store does on a ring, in figures. Not a test: nothing is asserted but that all of it works.
//!
//! `KVASAR_TEST_CASSANDRA=$(tests/ring start 3 DIR) cargo test --release --features figures --lib cassandra::tests::figures -- --ignored --nocapture --test-threads 1`

use std::time::Instant;

use super::*;
use crate::{
    clock::{self, RealClock},
    store::contract::shared::settings,
};

const KEYS: usize = 200_000;
const PAGE: usize = 1000;

#[expect(clippy::disallowed_methods, reason = "figures are of real time")]
fn now() -> Instant {
    Instant::now()
}

fn percentiles(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    format!("p50 {:?}, p99 {:?}, max {:?} of {}", at(0.5), at(0.99), at(1.0), times.len())
}

struct Bench {
    store: Arc<CassandraStore>,
    clock: Arc<dyn Clock>,
    namespace: [u8; 16],
}

async fn bench() -> Bench {
    let clock = RealClock::shared();
    let store = CassandraStore::connect(settings(), Arc::clone(&clock)).await.unwrap();
    let store = Arc::new(store.dropping_after(Duration::from_secs(1)));
    let namespace = clock::random_bytes(&*clock);
    Bench { store, clock, namespace }
}

impl Bench {
    fn key(&self, number: usize) -> Bytes {
        [&self.namespace[..], format!("customers/{number:08}").as_bytes()].concat().into()
    }

    fn version(&self, ago: Duration) -> Version {
        Version::first_of(self.clock.wall_millis() - ago.as_millis() as u64, 1)
    }

    /// Changes rows by the thousand, four thousand at a time.
    async fn change(&self, numbers: impl Iterator<Item = usize>, version: Version, change: impl Fn(&mut Batch, Bytes)) {
        let numbers: Vec<usize> = numbers.collect();
        for some in numbers.chunks(4000) {
            let batches = some.chunks(1000).map(|numbers| {
                let mut batch = Batch::at(version);
                numbers.iter().for_each(|number| change(&mut batch, self.key(*number)));
                self.store.commit(batch, Durability::Synced)
            });
            futures_util::future::try_join_all(batches).await.unwrap();
        }
    }

    /// Lists all of the namespace, page by page.
    async fn list(&self, what: &str) {
        let mut times = Vec::new();
        let (mut listed, mut from) = (0, Bytes::copy_from_slice(&self.namespace));
        loop {
            let start = now();
            let rows = self.store.scan(Table::Entry, &from, b"", PAGE).await.unwrap();
            times.push(start.elapsed());
            listed += rows.len();
            match rows.last() {
                Some((key, _)) if rows.len() == PAGE => from = keys::after(key),
                _ => break,
            }
        }
        assert_eq!(listed, KEYS, "{what}");
        println!("{what}: pages of {PAGE}, {}", percentiles(times));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures, on a ring of Cassandra: see the head of this file"]
async fn listing() {
    let bench = bench().await;
    let old = bench.version(Duration::from_secs(7200));
    let put = |batch: &mut Batch, key: Bytes| batch.put(Table::Entry, key, vec![7; 100]);
    let start = now();
    bench.change((0..2 * KEYS).step_by(2), old, put).await;
    println!("{KEYS} rows of 100 bytes put in {:?}, by the thousand", start.elapsed());
    bench.list("nothing dead").await;
    bench.change((1..2 * KEYS).step_by(4), old, put).await;
    let later = bench.version(Duration::from_secs(7100));
    bench.change((1..2 * KEYS).step_by(4), later, |batch, key| batch.remove(Table::Entry, key)).await;
    let expired = |batch: &mut Batch, key: Bytes| batch.put_until(Table::Entry, key, vec![7; 100], Some(0));
    bench.change((3..2 * KEYS).step_by(4), old, expired).await;
    bench.clock.sleep(Duration::from_secs(3)).await;
    bench.list("100,000 removed and 100,000 expired in between, first time").await;
    bench.clock.sleep(Duration::from_secs(3)).await;
    bench.list("the same, once more").await;
    // All at one place, and of one partition: what a queue leaves behind.
    bench
        .change((0..2 * KEYS).step_by(2), bench.version(Duration::from_secs(7000)), |batch, key| {
            batch.remove(Table::Entry, key)
        })
        .await;
    for time in ["first", "second", "third"] {
        let start = now();
        let rows = bench.store.scan(Table::Entry, &bench.namespace, b"", PAGE).await.unwrap();
        assert_eq!(rows, []);
        println!("a page of a namespace with 400,000 dead rows and no other, {time} time: {:?}", start.elapsed());
        bench.clock.sleep(Duration::from_secs(3)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures, on a ring of Cassandra: see the head of this file"]
async fn commits() {
    const AT_ONCE: usize = 64;
    const SECONDS: u64 = 10;
    let bench = Arc::new(bench().await);
    for rows in [1, 16, 128] {
        let start = now();
        let writers = (0..AT_ONCE.min(1024 / rows)).map(|writer| {
            let bench = Arc::clone(&bench);
            tokio::spawn(async move {
                let mut times = Vec::new();
                while start.elapsed() < Duration::from_secs(SECONDS) {
                    let mut batch = Batch::at(bench.version(Duration::ZERO));
                    (0..rows).for_each(|row| {
                        batch.put(
                            Table::Entry,
                            bench.key(writer << 16 | (times.len() & 0xff) << 8 | row),
                            vec![7; 1024],
                        );
                    });
                    let began = now();
                    bench.store.commit(batch, Durability::Synced).await.unwrap();
                    times.push(began.elapsed());
                }
                times
            })
        });
        let writers: Vec<_> = writers.collect();
        let at_once = writers.len();
        let mut times = Vec::new();
        for writer in writers {
            times.extend(writer.await.unwrap());
        }
        let rate = (times.len() * rows) as f64 / start.elapsed().as_secs_f64();
        println!("{at_once} commits of {rows} rows of 1 KiB at once: {rate:.0} rows/s, {}", percentiles(times));
    }
}
