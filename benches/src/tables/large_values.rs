//! Many clients that each write and read a value of the greatest length at once: whether every byte is right, and what memory it takes.
//!
//! `kvasar dev` with its two locations: clients of even number write at `home` and read at `away`, the others the other way around. What a client
//! writes follows from its number, so that it checks what it reads without holding it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    ask::{Expected, Keys, Request, Values, name},
    chance::Chance,
    client::{Body, Client, whole},
    kvasar::{Kvasar, More},
    load::{Round, Target, once},
    options::Options,
    peers,
    process::{MIB, Server, keep_to_cores, median, memory},
    report::{Table, spread},
    tables::hot_read::rounds,
};
use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::{Method, body::Frame};
use tokio::{sync::Barrier, task::JoinSet};

const VALUE_BYTES: usize = 26_214_400;
const PIECE_BYTES: usize = 64 * 1024;
/// What each tier of `kvasar dev` may keep: the centre, two regions, two locations.
const CACHE: &str = "64MiB";
const TIERS: f64 = 5.0;
const CACHE_MIB: f64 = 64.0;
/// What the store of `kvasar dev` may keep of what it read.
const STORE_CACHE_MIB: f64 = 64.0;

#[derive(clap::Args)]
pub struct Arguments {
    /// How many write and read at once; none leaves out that part
    #[arg(long, default_value_t = 200)]
    clients: u64,
}

pub async fn run(arguments: &Arguments, options: &Options) {
    if arguments.clients > 0 {
        at_once(arguments.clients).await;
    }
    one_stream(options).await;
}

/// One value read again and again on one connection: from an edge's memory, past an edge that may not keep it, and as a file.
async fn one_stream(options: &Options) {
    keep_to_cores(&options.load_core.to_string());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cores = options.server_cores();
    let values = Values::new(VALUE_BYTES);
    let (mut servers, mut targets) = (Vec::new(), Vec::new());
    for (name, tier, head) in [
        ("kvasar, held by an edge", "", "cf-cache-status: HIT"),
        ("kvasar, from the store", "cache_share_max = 0.001\n", "cf-cache-status: MISS"),
    ] {
        let more = More { tier, ..More::default() };
        let kvasar = Kvasar::start(Some(&cores), folder.path(), name, more).await;
        kvasar.fill(1, &values).await;
        let read = kvasar.reads(Keys::One, Expected::Value { values: values.clone(), head });
        once(&Target { expected: Expected::Value { values: values.clone(), head: "" }, ..read.clone() }, 1);
        targets.push(Target { name: name.to_owned(), ..read });
        servers.push(kvasar);
    }
    let files = folder.path().join("files");
    std::fs::create_dir(&files).expect("a folder is made");
    std::fs::write(files.join(name(0)), values.of(0)).expect("a file is written");
    let cache = peers::memory_folder();
    let (nginx, _) = peers::nginx(&cores, folder.path(), &files, cache.path());
    targets.push(Target {
        name: "nginx static".to_owned(),
        address: nginx.address,
        request: Request::get(nginx.address, "/key-", "", ""),
        keys: Keys::One,
        expected: Expected::Value { values, head: "" },
        servers: vec![nginx.id()],
    });
    let rounds = rounds(&targets, &Options { connections: 1, ..options.clone() });
    println!("### One stream of 25 MiB\n");
    let mut table = Table::new(["", "MiB/s", "CPU ms per value", "share of a core: server, load"]);
    for (target, rounds) in targets.iter().zip(&rounds) {
        let of = |figure: &dyn Fn(&Round) -> f64| rounds.iter().map(figure).collect::<Vec<_>>();
        let share = |figure: &dyn Fn(&Round) -> f64| median(&of(figure)) * 100.0;
        table.row([
            target.name.clone(),
            spread(&of(&|round| round.per_second() * VALUE_BYTES as f64 / MIB), 0),
            spread(&of(&|round| round.micros_per_request() / 1000.0), 2),
            format!("{:.0} %, {:.0} %", share(&|round| round.server_share), share(&|round| round.load_share)),
        ]);
    }
    table.print();
}

async fn at_once(count: u64) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = folder.path().join("data");
    let data = data.to_str().expect("a path in UTF-8");
    let locations = ["home=127.0.0.1:0,region=near", "away=127.0.0.1:0,region=far,delay=80ms"];
    let arguments = [
        "dev",
        "--quiet",
        "--data",
        data,
        "--rest",
        "127.0.0.1:0",
        "--cache",
        CACHE,
        "--location",
        locations[0],
        "--location",
        locations[1],
    ];
    let server = Server::start(folder.path(), None, &arguments);
    let binding = |at: usize| Arc::<str>::from(format!("http://{}", server.text(&format!("/locations/{at}/binding"))));
    let (home, away) = (binding(0), binding(1));
    let headers = vec![
        ("authorization", format!("Bearer {}", server.text("/token"))),
        ("kvasar-namespace", server.text("/namespace/id").to_owned()),
    ];
    let client = Client::new(headers);
    let idle = memory(server.id(), "VmRSS");

    let together = Arc::new(Barrier::new(count as usize));
    let start = Instant::now();
    let mut clients = JoinSet::new();
    for number in 0..count {
        let (writes, reads) = if number % 2 == 0 { (&home, &away) } else { (&away, &home) };
        clients.spawn(one(number, client.clone(), Arc::clone(writes), Arc::clone(reads), Arc::clone(&together)));
    }
    let mut times = Vec::new();
    // The first that fails ends the measurement: the others would wait for it.
    while let Some(client) = clients.join_next().await {
        times.push(client.expect("a client reads what it wrote"));
    }
    let took = start.elapsed();
    let peak = memory(server.id(), "VmHWM") as f64 / MIB;
    let budgets = CACHE_MIB * TIERS + STORE_CACHE_MIB;
    let seconds = |times: Vec<Duration>| median(&times.iter().map(Duration::as_secs_f64).collect::<Vec<_>>());
    println!("### {count} clients, each with 25 MiB\n");
    let mut table = Table::new(["", ""]);
    let mut row = |name: &str, figure: String| table.row([name.to_owned(), figure]);
    row("all bytes right", format!("{} of {count}", times.len()));
    row("median write", format!("{:.1} s", seconds(times.iter().map(|(write, _)| *write).collect())));
    row("median read", format!("{:.1} s", seconds(times.iter().map(|(_, read)| *read).collect())));
    row("all of it", format!("{:.1} s", took.as_secs_f64()));
    row("memory, idle and peak", format!("{:.0} MiB, {peak:.0} MiB", idle as f64 / MIB));
    row("budgets: five tiers' caches and the store's", format!("{budgets} MiB"));
    row("peak beyond the budgets, were they full", format!("{:.0} MiB", (peak - budgets).max(0.0)));
    table.print();
}

/// Writes, waits until all have written, and reads; answers how long each took.
async fn one(
    number: u64,
    client: Client,
    writes: Arc<str>,
    reads: Arc<str>,
    together: Arc<Barrier>,
) -> (Duration, Duration) {
    together.wait().await;
    let start = Instant::now();
    let path = format!("large-{number}?urlencoded=true");
    let answer = client.send(Method::PUT, &format!("{writes}/{path}"), content_body(number)).await;
    let version = answer.headers().get("kvasar-version").expect("a write is answered with its version").clone();
    let wrote = start.elapsed();
    together.wait().await;
    let start = Instant::now();
    let answer = client.send(Method::GET, &format!("{reads}/{path}"), whole("")).await;
    assert_eq!(answer.headers().get("kvasar-version"), Some(&version), "client {number}");
    let mut body = answer.into_body();
    let mut checked = Checked::new(number);
    while let Some(frame) = body.frame().await {
        let frame =
            frame.unwrap_or_else(|e| panic!("client {number}: its value broke off after {}: {e}", checked.passed));
        if let Some(data) = frame.data_ref() {
            checked.check(data);
        }
    }
    assert_eq!(checked.passed, VALUE_BYTES, "client {number}");
    (wrote, start.elapsed())
}

fn content_body(number: u64) -> Body {
    let content = Content::new(number).take(VALUE_BYTES / PIECE_BYTES);
    BodyExt::boxed(StreamBody::new(stream::iter(content.map(|piece| Ok(Frame::data(piece))))))
}

/// The bytes of a client's value, piece by piece, without an end of its own.
struct Content(Chance);

const _: () = assert!(VALUE_BYTES.is_multiple_of(PIECE_BYTES));

impl Content {
    fn new(number: u64) -> Content {
        Content(Chance::new(number))
    }
}

impl Iterator for Content {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        while piece.len() < PIECE_BYTES {
            piece.extend_from_slice(&self.0.draw().to_le_bytes());
        }
        Some(piece.into())
    }
}

/// Compares what arrives, in whatever pieces, with what a client wrote.
struct Checked {
    content: Content,
    /// What is left of the piece of the content that has begun.
    piece: Bytes,
    passed: usize,
}

impl Checked {
    fn new(number: u64) -> Checked {
        Checked { content: Content::new(number), piece: Bytes::new(), passed: 0 }
    }

    fn check(&mut self, mut arrived: &[u8]) {
        while !arrived.is_empty() {
            if self.piece.is_empty() {
                self.piece = self.content.next().expect("it has no end");
            }
            let length = arrived.len().min(self.piece.len());
            let (now, later) = arrived.split_at(length);
            assert!(
                now == self.piece.split_to(length),
                "wrong bytes between {} and {}",
                self.passed,
                self.passed + length
            );
            self.passed += length;
            arrived = later;
        }
    }
}
