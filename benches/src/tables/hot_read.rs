//! What a hot read on the binding port costs, beside what else could answer it: the least that a server can be, caches, a file server, Redis.
//!
//! All of them hold the same values in memory and run at once, on one core; the load, on another, gives each its turn, so that what else the machine does falls
//! on all. Kvasar is asked as a Worker's runtime asks, with a token.

use std::{path::Path, time::Duration};

use crate::{
    ask::{Expected, KEY, Keys, Request, Values, name},
    kvasar::{Kvasar, More},
    load::{HeldBack, Round, Target, once, round},
    options::Options,
    peers::{self, Peer},
    process::{keep_to_cores, median, tree_time},
    report::{Table, bars, grouped, spread},
    responder::Kind,
};

const KEYS: u32 = 100_000;
const EXPONENT: f64 = 0.99;

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Case {
    /// 100 bytes, one key
    Short,
    /// 1 KiB, one key
    Kib,
    /// 64 KiB, one key
    Long,
    /// 100 bytes, 100,000 keys
    ShortMany,
    /// 1 KiB, 100,000 keys
    KibMany,
}

impl Case {
    pub const ALL: [Case; 5] = [Case::Short, Case::Kib, Case::Long, Case::ShortMany, Case::KibMany];

    fn bytes(self) -> usize {
        match self {
            Case::Short | Case::ShortMany => 100,
            Case::Kib | Case::KibMany => 1024,
            Case::Long => 64 * 1024,
        }
    }

    fn keys(self) -> u32 {
        if matches!(self, Case::ShortMany | Case::KibMany) { KEYS } else { 1 }
    }

    fn title(self) -> String {
        let keys = match self.keys() {
            1 => "one key".to_owned(),
            keys => format!("{} keys by Zipf's law ({EXPONENT})", grouped(f64::from(keys), 0)),
        };
        format!("Hot read, {} bytes, {keys}", grouped(self.bytes() as f64, 0))
    }

    fn slug(self) -> &'static str {
        match self {
            Case::Short => "hot-read-100",
            Case::Kib => "hot-read-1k",
            Case::Long => "hot-read-64k",
            Case::ShortMany => "hot-read-100-many",
            Case::KibMany => "hot-read-1k-many",
        }
    }
}

#[derive(clap::Args)]
pub struct Arguments {
    /// All of them unless said
    #[arg(long, value_delimiter = ',')]
    cases: Vec<Case>,
    /// Ask once more with wrk, to see whether our own load tells the truth
    #[arg(long)]
    wrk: bool,
}

pub async fn run(arguments: &Arguments, options: &Options) {
    keep_to_cores(&options.load_core.to_string());
    let cases = if arguments.cases.is_empty() { &Case::ALL[..] } else { &arguments.cases };
    for case in cases {
        measure(*case, arguments.wrk, options).await;
    }
}

/// All that answer reads, with the processes behind them.
pub struct Field {
    pub targets: Vec<Target>,
    /// Which of them was started, for as long as it is asked.
    _kvasar: Option<Kvasar>,
    _peers: Vec<Peer>,
    _folders: Vec<tempfile::TempDir>,
}

/// Starts all that the options want, fills them, and has each hold all keys.
pub async fn field(keys: u32, values: &Values, options: &Options) -> Field {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cache = peers::memory_folder();
    let cores = options.server_cores();
    let asked = if keys == 1 { Keys::One } else { Keys::zipf(keys as usize, EXPONENT) };
    let mut field = Field { targets: Vec::new(), _kvasar: None, _peers: Vec::new(), _folders: Vec::new() };
    if options.wants("kvasar, edge hit") {
        let kvasar = Kvasar::start(Some(&cores), folder.path(), "kvasar", More::default()).await;
        kvasar.fill(keys, values).await;
        let hit = kvasar.reads(asked.clone(), Expected::Value { values: values.clone(), head: "cf-cache-status: HIT" });
        // The first reads may have to ask the origin.
        once(&Target { expected: Expected::Value { values: values.clone(), head: "" }, ..hit.clone() }, keys);
        field.targets.push(hit);
        field._kvasar = Some(kvasar);
    }
    for (name, kind) in [("epoll responder", Kind::Epoll), ("minimal hyper", Kind::Hyper)] {
        if options.wants(name) {
            let peer = peers::responder(&cores, kind, values);
            let request = Request::get(peer.address, "/key-", "?urlencoded=true", "");
            field.add(name, peer, request, &asked, Expected::FirstValue { values: values.clone() });
        }
    }
    let files = ["nginx static", "nginx proxy_cache", "varnish"];
    if files.iter().any(|name| options.wants(name)) {
        add_file_servers(&mut field, keys, values, &asked, folder.path(), cache.path(), options);
    }
    if options.wants("redis GET") {
        let peer = peers::redis(&cores, folder.path(), false);
        let get = Request::template(format!("*2\r\n$3\r\nGET\r\n$12\r\nkey-{KEY}\r\n"));
        field.add("redis GET", peer, get, &asked, Expected::RedisValue { values: values.clone() });
        let target = field.targets.last().expect("it was added");
        once(&Target { request: Request::redis_set(values), expected: Expected::RedisOk, ..target.clone() }, keys);
    }
    field._folders = vec![folder, cache];
    field
}

fn add_file_servers(
    field: &mut Field,
    keys: u32,
    values: &Values,
    asked: &Keys,
    folder: &Path,
    cache: &Path,
    options: &Options,
) {
    let cores = options.server_cores();
    let files = folder.join("files");
    std::fs::create_dir(&files).expect("a folder is made");
    for key in 0..keys {
        std::fs::write(files.join(name(key)), values.of(key)).expect("a file is written");
    }
    let (nginx, nginx_cache) = peers::nginx(&cores, folder, &files, cache);
    let varnish = options.wants("varnish").then(|| peers::varnish(&cores, folder, nginx.address));
    let expected = |head| Expected::Value { values: values.clone(), head };
    let target = |name: &str, peer: &Peer, address, head| Target {
        name: name.to_owned(),
        address,
        request: Request::get(address, "/key-", "", ""),
        keys: asked.clone(),
        expected: expected(head),
        servers: vec![peer.id()],
    };
    let mut targets = vec![
        target("nginx static", &nginx, nginx.address, ""),
        target("nginx proxy_cache", &nginx, nginx_cache, "X-Cache: HIT"),
    ];
    targets.extend(varnish.as_ref().map(|varnish| target("varnish", varnish, varnish.address, "X-Cache: HIT")));
    targets.retain(|target| options.wants(&target.name));
    for target in targets {
        once(&Target { expected: expected(""), ..target.clone() }, keys);
        field.targets.push(target);
    }
    field._peers.push(nginx);
    field._peers.extend(varnish);
}

impl Field {
    fn add(&mut self, name: &str, peer: Peer, request: Request, keys: &Keys, expected: Expected) {
        let servers = vec![peer.id()];
        let (address, keys) = (peer.address, keys.clone());
        self.targets.push(Target { name: name.to_owned(), address, request, keys, expected, servers });
        self._peers.push(peer);
    }
}

async fn measure(case: Case, wrk: bool, options: &Options) {
    let values = Values::new(case.bytes());
    let field = field(case.keys(), &values, options).await;
    println!("### {}\n", case.title());
    let rounds = rounds(&field.targets, options);
    print(&field.targets, &rounds);
    if wrk {
        println!("The same as wrk sees it:\n");
        let mut table = Table::new(["", "CPU us per request", "requests/s"]);
        for target in field.targets.iter().filter(|target| !matches!(target.expected, Expected::RedisValue { .. })) {
            let (micros, per_second) = as_wrk_sees(target, options);
            table.row([target.name.clone(), grouped(micros, 2), grouped(per_second, 0)]);
        }
        table.print();
    }
    if let Some(file) = options.chart(case.slug()) {
        let figures = field.targets.iter().zip(&rounds).map(|(target, rounds)| (target.name.clone(), micros(rounds)));
        let figures: Vec<_> = figures.collect();
        bars(&file, &case.title(), "CPU microseconds per request, user and system", &figures)
            .expect("a chart is drawn");
    }
}

/// wrk's requests for one key, on as many connections from the load's core: time per request and requests a second.
fn as_wrk_sees(target: &Target, options: &Options) -> (f64, f64) {
    let mut request = Vec::new();
    target.request.write(0, &mut request);
    let request = String::from_utf8(request).expect("a request for a value is text");
    let mut lines = request.lines();
    let path = lines.next().and_then(|line| line.split(' ').nth(1)).expect("a request has a path");
    let mut command = std::process::Command::new("wrk");
    command.args(["-t1", &format!("-c{}", options.connections), &format!("-d{}s", options.round().as_secs().max(1))]);
    for header in lines.filter(|line| !line.is_empty() && !line.starts_with("Host:")) {
        command.args(["-H", header]);
    }
    let times = || target.servers.iter().map(|id| tree_time(*id)).sum::<Duration>();
    let before = times();
    let output = command.arg(format!("http://{}{path}", target.address)).output().expect("wrk runs; else run ./peers");
    let spent = times().saturating_sub(before);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!text.contains("Non-2xx") && !text.contains("Socket errors"), "{text}");
    let count = text.lines().find_map(|line| line.trim().split_once(" requests in ")?.0.parse::<f64>().ok());
    let rate = text.lines().find_map(|line| line.strip_prefix("Requests/sec:")?.trim().parse().ok());
    let (count, rate) = count.zip(rate).unwrap_or_else(|| panic!("wrk said no figures: {text}"));
    (spent.as_secs_f64() * 1e6 / count, rate)
}

/// Gives each its turn, again and again.
pub fn rounds(targets: &[Target], options: &Options) -> Vec<Vec<Round>> {
    let mut rounds: Vec<Vec<Round>> = targets.iter().map(|_| Vec::new()).collect();
    let mut turn = |length: Duration, keep: bool| {
        for (target, rounds) in targets.iter().zip(&mut rounds) {
            let round = round(target, options.connections, length);
            if keep {
                rounds.push(round);
            }
        }
    };
    turn(options.round().min(Duration::from_secs(1)), false);
    for _ in 0..options.rounds() {
        turn(options.round(), true);
    }
    rounds
}

fn micros(rounds: &[Round]) -> f64 {
    median(&rounds.iter().map(Round::micros_per_request).collect::<Vec<_>>())
}

/// A row for each, and how the first one's cost compares with the others'.
pub fn print(targets: &[Target], rounds: &[Vec<Round>]) {
    let mut table = Table::new([
        "",
        "CPU us per request",
        "the first in units of this",
        "requests/s",
        "p50 us",
        "p99 us",
        "share of a core: server, load",
    ]);
    let first = micros(&rounds[0]);
    let mut notes = Vec::new();
    for (target, rounds) in targets.iter().zip(rounds) {
        let of = |figure: &dyn Fn(&Round) -> f64| rounds.iter().map(figure).collect::<Vec<_>>();
        let latency = |share: f64| median(&of(&|round| round.latency.value_at_quantile(share) as f64 / 1000.0));
        let held_back = |by| rounds.iter().filter(|round| round.held_back() == Some(by)).count() * 2 > rounds.len();
        let mark = match () {
            () if held_back(HeldBack::Load) => "\\*",
            () if held_back(HeldBack::Others) => "\\*\\*",
            () => "",
        };
        notes.push(mark);
        table.row([
            target.name.clone(),
            spread(&of(&Round::micros_per_request), 2),
            format!("{:.2}", first / micros(rounds)),
            spread(&of(&Round::per_second), 0) + mark,
            grouped(latency(0.5), 0),
            grouped(latency(0.99), 0),
            format!(
                "{:.0} %, {:.0} %",
                median(&of(&|r| r.server_share)) * 100.0,
                median(&of(&|r| r.load_share)) * 100.0
            ),
        ]);
    }
    table.print();
    if notes.contains(&"\\*") {
        println!("\\* The load was the bottleneck: the server could have answered more than that a second.\n");
    }
    if notes.contains(&"\\*\\*") {
        println!(
            "\\*\\* Neither server nor load had a core for all of the time: others used them, so requests a second and latency say little.\n"
        );
    }
}
