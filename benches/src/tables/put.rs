//! What a durable put costs: each is answered when it is on disk. Beside it Redis and etcd that do the same, and the disk by itself.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use hdrhistogram::Histogram;

use crate::{
    ask::{Expected, KEY, Keys, Request, Values, name},
    kvasar::{Kvasar, More},
    load::{Round, Target, round},
    options::Options,
    peers::{self, Peer},
    process::{keep_to_cores, median},
    report::{Table, bars, grouped, spread},
};

const LENGTHS: [usize; 2] = [100, 1024];
const CLIENTS: [usize; 3] = [1, 64, 256];
/// What is written to see what the disk takes.
const PAGE_BYTES: usize = 4096;

pub async fn run(options: &Options) {
    keep_to_cores(&options.load_core.to_string());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let sync = fsync(folder.path(), options.round());
    println!("### The disk\n");
    let micros = |share: f64| sync.value_at_quantile(share) as f64 / 1000.0;
    println!(
        "A write of {PAGE_BYTES} bytes and `fdatasync`, one after the other: p50 {} us, p99 {} us, {} a second.\n",
        grouped(micros(0.5), 0),
        grouped(micros(0.99), 0),
        grouped(1e9 / sync.mean(), 0)
    );
    for length in LENGTHS {
        let values = Values::new(length);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (kvasar, peers, targets) = start(folder.path(), &values, options).await;
        for clients in CLIENTS {
            let rounds = rounds(&targets, clients, options);
            print(length, clients, &targets, &rounds, options);
        }
        drop((kvasar, peers));
    }
}

/// How long the disk takes to keep a page.
fn fsync(folder: &std::path::Path, length: Duration) -> Histogram<u64> {
    let mut file = std::fs::File::create(folder.join("page")).expect("a file is made");
    let mut took = Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds of a histogram are in order");
    let until = Instant::now() + length;
    while Instant::now() < until {
        let start = Instant::now();
        file.write_all(&[b'x'; PAGE_BYTES]).and_then(|()| file.sync_data()).expect("the disk keeps a page");
        took.saturating_record(start.elapsed().as_nanos() as u64);
    }
    took
}

async fn start(
    folder: &std::path::Path,
    values: &Values,
    options: &Options,
) -> (Option<Kvasar>, Vec<Peer>, Vec<Target>) {
    let cores = options.server_cores();
    let (mut peers, mut targets) = (Vec::new(), Vec::new());
    let mut kvasar = None;
    if options.wants("kvasar, put") {
        let started = Kvasar::start(Some(&cores), folder, "kvasar", More::default()).await;
        let path = format!("/key-{KEY}?urlencoded=true");
        targets.push(Target {
            name: "kvasar, put".to_owned(),
            address: started.address,
            request: Request::with_value("PUT", started.address, &path, &started.headers, values),
            keys: Keys::One,
            expected: Expected::Status { status: 200, head: "kvasar-version" },
            servers: vec![started.server.id()],
        });
        kvasar = Some(started);
    }
    if options.wants("redis, appendfsync always") {
        let peer = peers::redis(&cores, folder, true);
        targets.push(Target {
            name: "redis, appendfsync always".to_owned(),
            address: peer.address,
            request: Request::redis_set(values),
            keys: Keys::One,
            expected: Expected::RedisOk,
            servers: vec![peer.id()],
        });
        peers.push(peer);
    }
    if options.wants("etcd") {
        let peer = peers::etcd(&cores, folder);
        let (address, values) = (peer.address, values.clone());
        // Its gateway takes keys and values in an encoding in which no number shows.
        let made = move |key: u32| {
            let body =
                format!(r#"{{"key":"{}","value":"{}"}}"#, BASE64.encode(name(key)), BASE64.encode(values.of(key)));
            format!("POST /v3/kv/put HTTP/1.1\r\nHost: {address}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
                .into_bytes()
        };
        targets.push(Target {
            name: "etcd".to_owned(),
            address,
            request: Request::Made(std::sync::Arc::new(made)),
            keys: Keys::One,
            expected: Expected::Status { status: 200, head: "application/json" },
            servers: vec![peer.id()],
        });
        peers.push(peer);
    }
    (kvasar, peers, targets)
}

/// Each round writes keys that were never written before.
fn rounds(targets: &[Target], clients: usize, options: &Options) -> Vec<Vec<Round>> {
    let mut rounds: Vec<Vec<Round>> = targets.iter().map(|_| Vec::new()).collect();
    let mut written = vec![clients as u32 * 10_000; targets.len()];
    for turn in 0..=options.rounds() {
        for (number, target) in targets.iter().enumerate() {
            let target = Target { keys: Keys::Counting(written[number]), ..target.clone() };
            let length = if turn == 0 { options.round().min(Duration::from_secs(1)) } else { options.round() };
            let round = round(&target, clients, length);
            written[number] += round.requests as u32;
            if turn > 0 {
                rounds[number].push(round);
            }
        }
    }
    rounds
}

fn print(length: usize, clients: usize, targets: &[Target], rounds: &[Vec<Round>], options: &Options) {
    let title = format!(
        "Durable put, {} bytes, {clients} {}",
        grouped(length as f64, 0),
        if clients == 1 { "client" } else { "clients" }
    );
    println!("### {title}\n");
    let mut table = Table::new(["", "puts/s", "p50 ms", "p99 ms", "CPU us per put", "share of a core: server, load"]);
    let mut figures = Vec::new();
    for (target, rounds) in targets.iter().zip(rounds) {
        let of = |figure: &dyn Fn(&Round) -> f64| rounds.iter().map(figure).collect::<Vec<_>>();
        let millis = |share: f64| spread(&of(&|round| round.latency.value_at_quantile(share) as f64 / 1e6), 2);
        table.row([
            target.name.clone(),
            spread(&of(&Round::per_second), 0),
            millis(0.5),
            millis(0.99),
            spread(&of(&Round::micros_per_request), 1),
            format!(
                "{:.0} %, {:.0} %",
                median(&of(&|r| r.server_share)) * 100.0,
                median(&of(&|r| r.load_share)) * 100.0
            ),
        ]);
        figures.push((target.name.clone(), median(&of(&Round::per_second))));
    }
    table.print();
    if let Some(file) = options.chart(&format!("put-{length}-{clients}")) {
        bars(&file, &title, "puts per second, each on disk", &figures).expect("a chart is drawn");
    }
}
