//! Figures of a cluster, printed by tests that are run by hand: `KVASAR_TEST_RING=DIR cargo test --release --test cluster -- --ignored --nocapture figures`.

#![allow(clippy::print_stdout, reason = "figures are for people to read")]

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::StreamExt as _;
use kvasar::{
    cache::remote::{Remote, RemoteSettings},
    clock::{Clock, RealClock},
    kv::{Change, Expires, Key, NamespaceId, Read, Source, State, Value, ValueStream, Via, Writer},
    metrics::Metrics,
};

use crate::{
    Cluster, SECRET,
    support::{Server, ask},
};

fn remote(address: std::net::SocketAddr, concurrency: usize, clock: &Arc<dyn Clock>) -> Remote {
    let settings = RemoteSettings {
        address: address.to_string(),
        secret: SECRET.to_owned(),
        deadline: Duration::from_secs(120),
        write_deadline: Duration::from_secs(120),
        concurrency,
        delay: Duration::ZERO,
    };
    Remote::new(settings, Arc::clone(clock), Metrics::default().tier("client")).expect("a client")
}

fn key(index: usize) -> Key {
    Key::new(format!("key-{index:03}")).expect("a short key")
}

fn put(value: Bytes) -> Change {
    Change::Put { value: Value::Whole(value), metadata: None, expires: Expires::Never }
}

/// From the acknowledgement of a write at one edge until the other answers it from its cache.
async fn visibility(name: &str, edges: [&Server; 2], namespace: NamespaceId, clock: &Arc<dyn Clock>) {
    const WRITES: usize = 1000;
    let [here, there] = edges.map(|edge| remote(edge.tier(), 8, clock));
    let (mut seen, mut taken) = (Vec::new(), Vec::new());
    for write in 0..WRITES + 50 {
        let key = key(write % 50);
        let began = clock.now();
        let value = Bytes::from(format!("value {write}"));
        let written = here.write(namespace, &key, put(value), Via::default()).await.expect("nothing has died");
        let acknowledged = clock.now();
        loop {
            let answer = there.get(namespace, &key, &Read::default()).await.expect("nothing has died");
            if answer.version >= written.version {
                break;
            }
        }
        // The first time, the other edge does not hold it yet.
        if write >= 50 {
            seen.push(clock.now().since(acknowledged).as_secs_f64() * 1e3);
            taken.push(acknowledged.since(began).as_secs_f64() * 1e3);
        }
    }
    let at = |all: &mut Vec<f64>, share: f64| {
        all.sort_by(f64::total_cmp);
        all[(all.len() as f64 * share) as usize]
    };
    println!(
        "{name}: visible after p50 {:.2} ms, p99 {:.2} ms; written in p50 {:.2} ms, p99 {:.2} ms",
        at(&mut seen, 0.5),
        at(&mut seen, 0.99),
        at(&mut taken, 0.5),
        at(&mut taken, 0.99)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures, and needs a ring of three nodes"]
async fn figures_of_visibility() {
    let clock = RealClock::shared();
    let cluster = Cluster::start(&format!("visibility_{:08x}", clock.random() as u32), 2);
    let namespace = cluster.make_namespace().parse().expect("a namespace's id");
    cluster.wait_for_origins(&*clock).await;
    visibility("two origins on a ring", [&cluster.edges[0], &cluster.edges[1]], namespace, &clock).await;
    drop(cluster);
    let cluster = Cluster::start(&format!("visibility_{:08x}", clock.random() as u32), 1);
    let namespace = cluster.make_namespace().parse().expect("a namespace's id");
    visibility("one origin on a ring", [&cluster.edges[0], &cluster.edges[1]], namespace, &clock).await;
    drop(cluster);

    let folder = tempfile::tempdir().expect("a temporary folder");
    let common = format!("[server]\nadmin = \"127.0.0.1:0\"\n[cluster]\nsecret = \"{SECRET}\"\n");
    let origin =
        format!("{common}[origin]\ndata = \"data\"\nlisten = \"127.0.0.1:0\"\n[[account]]\nname = \"default\"\n");
    let origin = Server::start(folder.path(), "origin", &origin);
    let edges = [0, 1].map(|i| {
        let tier = format!(
            "[[tier]]\nrole = \"edge\"\nname = \"edge-{i}\"\nlisten = \"127.0.0.1:0\"\nupstream = \"{}\"\n",
            origin.origin()
        );
        Server::start(folder.path(), &format!("edge-{i}"), &format!("{common}{tier}"))
    });
    let namespace = crate::support::make_namespace(origin.origin(), SECRET, origin.account().0, "test");
    clock.sleep(Duration::from_secs(2)).await;
    let namespace = namespace.parse().expect("a namespace's id");
    visibility("one origin on its disk", [&edges[0], &edges[1]], namespace, &clock).await;
}

const LARGE: usize = 25 << 20;
const PIECE: usize = 64 << 10;

/// Bytes that differ from value to value, made as they are sent.
fn large(number: u64) -> Value {
    let pieces = (0..LARGE / PIECE).map(move |piece| Ok(large_piece(number, piece)));
    Value::Stream(ValueStream { length: Some(LARGE as u64), chunks: futures_util::stream::iter(pieces).boxed() })
}

fn large_piece(number: u64, piece: usize) -> Bytes {
    let mut bytes = vec![number as u8; PIECE];
    bytes[..8].copy_from_slice(&(number << 32 | piece as u64).to_be_bytes());
    bytes.into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures, and needs a ring of three nodes"]
async fn figures_of_large_values() {
    const CLIENTS: u64 = 64;
    let clock = RealClock::shared();
    let cluster = Cluster::start(&format!("large_{:08x}", clock.random() as u32), 1);
    let namespace: NamespaceId = cluster.make_namespace().parse().expect("a namespace's id");
    let origin = cluster.origins[0].server.as_ref().expect("it was started");
    let client = Arc::new(remote(origin.origin(), 128, &clock));
    let before = origin.memory("VmRSS").unwrap_or(0);
    let began = clock.now();
    let writing = (0..CLIENTS).map(|number| {
        let client = Arc::clone(&client);
        async move {
            client
                .write(
                    namespace,
                    &key(number as usize),
                    Change::Put { value: large(number), metadata: None, expires: Expires::Never },
                    Via::default(),
                )
                .await
        }
    });
    let written = futures_util::future::join_all(writing).await;
    let failed: Vec<String> = written.iter().filter_map(|written| Some(written.as_ref().err()?.to_string())).collect();
    let wrote = clock.now().since(began);
    let began = clock.now();
    let reading = (0..CLIENTS).map(|number| {
        let client = Arc::clone(&client);
        async move {
            let answer = client.get(namespace, &key(number as usize), &Read::latest()).await.ok()?;
            let State::Present(entry) = answer.state else { return None };
            let (mut found, mut right) = (Vec::new(), 0);
            let mut chunks = entry.value.into_stream();
            while let Some(chunk) = chunks.next().await {
                found.extend_from_slice(&chunk.ok()?);
                while found.len() >= PIECE {
                    if found[..PIECE] != large_piece(number, right)[..] {
                        return None;
                    }
                    found.drain(..PIECE);
                    right += 1;
                }
            }
            (found.is_empty() && right == LARGE / PIECE).then_some(())
        }
    });
    let right = futures_util::future::join_all(reading).await.into_iter().flatten().count();
    let read = clock.now().since(began);
    let peak = origin.memory("VmHWM").unwrap_or(0);
    println!(
        "{CLIENTS} x 25 MiB at once: written in {wrote:.1?} ({} failed), read in {read:.1?} ({right} right); the origin held {} MiB before and {} MiB at most",
        failed.len(),
        before >> 20,
        peak >> 20
    );
    println!("{}", failed.first().cloned().unwrap_or_default());
    assert_eq!((failed.len(), right), (0, CLIENTS as usize));
    assert_eq!(ask(origin.admin(), "GET", "/readyz", &[], b"").status, 200);
}
