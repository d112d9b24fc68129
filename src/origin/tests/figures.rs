//! What the origin does on a real disk, in figures. Not a test: nothing is asserted but that all of it works.
//!
//! `cargo test --release --features figures --lib origin::tests::figures -- --nocapture`, in the folder `KVASAR_FIGURES` if that is set.

use std::time::Instant;

use super::*;
use crate::{clock::RealClock, store::disk::DiskStore};

const CACHE_BYTES: u64 = 64 << 20;
const KEYS: usize = 1_000_000;

struct Bench {
    dir: tempfile::TempDir,
    origin: Arc<Origin>,
    namespace: NamespaceId,
}

async fn bench() -> Bench {
    let dir = match std::env::var_os("KVASAR_FIGURES") {
        Some(folder) => tempfile::tempdir_in(folder).unwrap(),
        None => tempfile::tempdir().unwrap(),
    };
    let store = Arc::new(DiskStore::open(dir.path(), CACHE_BYTES).unwrap());
    let metrics = Metrics::default().origin();
    let origin = Origin::open(store, RealClock::shared(), OriginSettings::default(), metrics).await.unwrap();
    origin.ensure_account(&Account { id: ACCOUNT, name: "figures".into() }).await.unwrap();
    let namespace = create_namespace(&origin, "figures").await.unwrap();
    Bench { dir, origin, namespace }
}

#[expect(clippy::disallowed_methods, reason = "figures are of real time")]
fn now() -> Instant {
    Instant::now()
}

fn put(value: Bytes) -> Change {
    Change::Put { value: value.into(), metadata: None, expires: Expires::Never }
}

fn percentiles(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    format!("p50 {:?}, p99 {:?}, max {:?}", at(0.5), at(0.99), at(1.0))
}

fn rate(count: usize, start: Instant) -> f64 {
    count as f64 / start.elapsed().as_secs_f64()
}

/// The most memory that the process has had, in MiB; 0 where the system doesn't say.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) / 1024
}

fn disk_bytes(dir: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => disk_bytes(&entry.path()),
            Ok(metadata) => metadata.len(),
            // Removed by a compaction in between.
            Err(_) => 0,
        })
        .sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_keys() {
    let bench = bench().await;
    single_puts(&bench).await;
    puts_at_once(&bench).await;
    bulk_load(&bench).await;
    point_reads(&bench).await;
    listing(&bench).await;
    println!("peak memory {} MiB, on disk {} MiB", peak_memory(), disk_bytes(bench.dir.path()) >> 20);
    bench.origin.close().await;
}

async fn single_puts(bench: &Bench) {
    let start = now();
    let mut times = Vec::new();
    for i in 0..500 {
        let start = now();
        bench
            .origin
            .write(bench.namespace, &key(&format!("single/{i}")), put(pattern(100, 0)), Via::default())
            .await
            .unwrap();
        times.push(start.elapsed());
    }
    println!("one put after the other: {:.0} puts/s, {}", rate(500, start), percentiles(times));
}

async fn puts_at_once(bench: &Bench) {
    for clients in [16, 256] {
        let start = now();
        let each = 20_000 / clients;
        let writing: Vec<_> = (0..clients)
            .map(|client| {
                let (origin, namespace) = (Arc::clone(&bench.origin), bench.namespace);
                tokio::spawn(async move {
                    for i in 0..each {
                        let name = format!("at-once/{client}/{i}");
                        origin.write(namespace, &key(&name), put(pattern(100, 0)), Via::default()).await.unwrap();
                    }
                })
            })
            .collect();
        for client in writing {
            client.await.unwrap();
        }
        println!("{clients} clients putting: {:.0} puts/s", rate(clients * each, start));
    }
}

/// Keys in an order that no tree likes.
fn scattered(i: usize) -> Key {
    key(&format!("load/{:016x}", (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

async fn bulk_load(bench: &Bench) {
    for callers in [1, 4] {
        let start = now();
        let half = KEYS / 2;
        let offset = if callers == 1 { 0 } else { half };
        let loading: Vec<_> = (0..callers)
            .map(|caller| {
                let (origin, namespace) = (Arc::clone(&bench.origin), bench.namespace);
                tokio::spawn(async move {
                    for batch in (caller..half / 1000).step_by(callers) {
                        let keys = (0..1000).map(|i| scattered(offset + batch * 1000 + i));
                        let writes = keys.map(|key| (key, put(pattern(100, 0)))).collect();
                        for outcome in origin.write_many(namespace, writes, Via::default()).await.unwrap() {
                            outcome.unwrap();
                        }
                    }
                })
            })
            .collect();
        for caller in loading {
            caller.await.unwrap();
        }
        println!("bulk load of {half} keys by {callers}: {:.0} keys/s", rate(half, start));
    }
}

async fn point_reads(bench: &Bench) {
    for (what, shift) in [("present", 0), ("absent", KEYS)] {
        let (start, mut times) = (now(), Vec::new());
        for i in 0..20_000 {
            let key = scattered(shift + i * 49_999 % KEYS);
            let start = now();
            let answer = bench.origin.get(bench.namespace, &key, &Read::latest()).await.unwrap();
            times.push(start.elapsed());
            assert_eq!(matches!(answer.state, State::Present(_)), shift == 0);
        }
        println!("reads of {what} keys: {:.0}/s, {}", rate(20_000, start), percentiles(times));
    }
}

async fn listing(bench: &Bench) {
    for round in ["first", "second"] {
        let (start, mut times, mut keys, mut cursor) = (now(), Vec::new(), 0, None);
        loop {
            let list = List { prefix: Bytes::from("load/"), limit: 1000, cursor };
            let start = now();
            let page = bench.origin.list(bench.namespace, &list).await.unwrap();
            times.push(start.elapsed());
            keys += page.keys.len();
            cursor = page.cursor;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(keys, KEYS);
        let took = start.elapsed();
        println!("{round} listing of {keys} keys by 1,000: {took:?}, pages {}", percentiles(times));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_values() {
    let bench = bench().await;
    chunk_sized(&bench).await;
    at_once(&bench).await;
    overwriting(&bench).await;
    bench.origin.close().await;
}

async fn chunk_sized(bench: &Bench) {
    let start = now();
    let value = pattern(65_536, 0);
    for batch in 0..20_000 / 50 {
        let writes = (0..50).map(|i| (key(&format!("chunk/{batch}/{i}")), put(value.clone()))).collect();
        for outcome in bench.origin.write_many(bench.namespace, writes, Via::default()).await.unwrap() {
            outcome.unwrap();
        }
    }
    println!("20,000 values of 64 KiB: {:.0} MiB/s", rate(20_000, start) / 16.0);
}

async fn at_once(bench: &Bench) {
    const LENGTH: usize = 25 << 20;
    let before = peak_memory();
    let start = now();
    let clients: Vec<_> = (0..64u8)
        .map(|client| {
            let (origin, namespace) = (Arc::clone(&bench.origin), bench.namespace);
            tokio::spawn(async move {
                let key = key(&format!("large/{client}"));
                let parts = (0..LENGTH / 65_536).map(move |_| Ok(pattern(65_536, client)));
                let chunks = futures_util::stream::iter(parts).boxed();
                let value = Value::Stream(ValueStream { length: Some(LENGTH as u64), chunks });
                let change = Change::Put { value, metadata: None, expires: Expires::Never };
                origin.write(namespace, &key, change, Via::default()).await.unwrap();
                let answer = origin.get(namespace, &key, &Read::latest()).await.unwrap();
                let State::Present(entry) = answer.state else { panic!("the entry is there") };
                let (expected, mut read) = (pattern(65_536, client), 0);
                let mut chunks = entry.value.into_stream();
                while let Some(chunk) = chunks.next().await {
                    let chunk = chunk.unwrap();
                    assert_eq!(chunk, expected);
                    read += chunk.len();
                }
                assert_eq!(read, LENGTH);
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    let took = start.elapsed();
    println!(
        "64 clients each writing and reading 25 MiB: {took:?}, peak memory {} MiB (before {before} MiB)",
        peak_memory()
    );
}

async fn overwriting(bench: &Bench) {
    let start = now();
    let before = disk_bytes(bench.dir.path()) >> 20;
    for round in 0..100u8 {
        bench.origin.write(bench.namespace, &key("over"), put(pattern(25 << 20, round)), Via::default()).await.unwrap();
    }
    let after = disk_bytes(bench.dir.path()) >> 20;
    let took = start.elapsed();
    println!("100 times 25 MiB over one key: {took:?}; on disk {before} MiB before, {after} MiB after");
    for i in 0..64 {
        bench.origin.write(bench.namespace, &key(&format!("large/{i}")), Change::Delete, Via::default()).await.unwrap();
    }
    RealClock::shared().sleep(SECOND * 5).await;
    println!("64 times 25 MiB deleted, 5 s later: {} MiB on disk", disk_bytes(bench.dir.path()) >> 20);
    for round in 0..20u8 {
        bench.origin.write(bench.namespace, &key("over"), put(pattern(25 << 20, round)), Via::default()).await.unwrap();
    }
    RealClock::shared().sleep(SECOND * 5).await;
    println!("20 times 25 MiB over one key more, 5 s later: {} MiB on disk", disk_bytes(bench.dir.path()) >> 20);
}
