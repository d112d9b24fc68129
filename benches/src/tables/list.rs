//! Listing a million keys through REST, beside Redis' SCAN: a page, all of them, what begins with a prefix, and a first page behind many keys that have expired.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use hyper::Method;
use serde_json::Value;

use crate::{
    ask::{Expected, KEY, Keys, Request, Values, name},
    client::Client,
    kvasar::{Kvasar, More, write_many},
    load::{Target, once},
    options::Options,
    peers::{self, Peer},
    process::{keep_to_cores, quantile},
    report::{Table, grouped, spread},
};

const PAGE: u32 = 1000;
/// Of the keys `key-00123...`, as many as there are in a page.
const PREFIX_DIGITS: usize = 5;
const PREFIXES: u32 = 200;
const EXPIRED: u32 = 100_000;
const EXPIRE_AFTER: Duration = Duration::from_secs(60);

pub async fn run(options: &Options) {
    keep_to_cores(&options.load_core.to_string());
    let keys: u32 = if options.quick { 200_000 } else { 1_000_000 };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let rest = More { end: "[rest]\nlisten = \"127.0.0.1:0\"\non = \"origin\"\n", ..More::default() };
    let kvasar = Kvasar::start(Some(&options.server_cores()), folder.path(), "kvasar", rest).await;
    let values = Values::new(100);
    kvasar.fill(keys, &values).await;
    let redis = peers::redis(&options.server_cores(), folder.path(), false);
    let set = Target {
        name: "redis".to_owned(),
        address: redis.address,
        request: Request::redis_set(&values),
        keys: Keys::One,
        expected: Expected::RedisOk,
        servers: vec![redis.id()],
    };
    once(&set, keys);
    let listing = Listing::new(&kvasar);
    let mut scan = Scan::connect(&redis);

    let (mut pages, mut whole) = (Vec::new(), Vec::new());
    let (mut redis_pages, mut redis_whole) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds() {
        let start = Instant::now();
        assert_eq!(listing.all("", &mut pages).await, keys);
        whole.push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        assert!(scan.all("", &mut redis_pages) >= keys, "SCAN leaves nothing out");
        redis_whole.push(start.elapsed().as_secs_f64());
    }
    let (mut prefixed, mut redis_prefixed) = (Vec::new(), Vec::new());
    for number in 0..PREFIXES.min(keys / PAGE) {
        let prefix = &name(number * PAGE)[..4 + PREFIX_DIGITS];
        assert_eq!(listing.all(prefix, &mut prefixed).await, PAGE);
        if number < 3 {
            let start = Instant::now();
            assert!(scan.all(&format!(" MATCH {prefix}*"), &mut Vec::new()) >= PAGE);
            redis_prefixed.push(start.elapsed().as_secs_f64() * 1000.0);
        }
    }
    println!("### Listing {} keys, {PAGE} a page\n", grouped(f64::from(keys), 0));
    let mut table = Table::new(["", "a page: p50, p99, max ms", "all of them, s", "1,000 of them by prefix, ms"]);
    let millis =
        |times: &mut Vec<f64>| [0.5, 0.99, 1.0].map(|share| format!("{:.2}", quantile(times, share))).join(", ");
    table.row(["kvasar, REST".to_owned(), millis(&mut pages), spread(&whole, 2), millis(&mut prefixed)]);
    table.row([
        "redis, SCAN (in no order)".to_owned(),
        millis(&mut redis_pages),
        spread(&redis_whole, 2),
        format!("{} (goes through all)", spread(&redis_prefixed, 0)),
    ]);
    table.print();
    expired(&kvasar, &listing).await;
}

/// Has many keys expire that sort before all others, and lists the first page again and again until well after.
async fn expired(kvasar: &Kvasar, listing: &Listing) {
    let values = Values::new(100);
    let called = |key| format!("expired-{key:08}");
    let written = Instant::now();
    let after = EXPIRE_AFTER.as_secs();
    write_many(kvasar.address, kvasar.namespace(), EXPIRED, called, &values, Some(after)).await;
    tokio::time::sleep((EXPIRE_AFTER + Duration::from_secs(1)).saturating_sub(written.elapsed())).await;
    let (mut pages, mut short, mut reached) = (Vec::new(), 0, Vec::new());
    while written.elapsed() < EXPIRE_AFTER + Duration::from_secs(40) {
        let start = Instant::now();
        let mut cursor = String::new();
        // On to the first page with a live key.
        loop {
            let asked = Instant::now();
            let page = listing.page("", &cursor).await;
            pages.push(asked.elapsed().as_secs_f64() * 1000.0);
            let (count, next) = read(&page);
            short += u32::from(count < PAGE);
            cursor = next;
            if contains(&page, "\"key-") {
                break;
            }
        }
        reached.push(start.elapsed().as_secs_f64() * 1000.0);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!("### {} keys that expire in front of the first live one\n", grouped(f64::from(EXPIRED), 0));
    let first = reached[0];
    let shown =
        |times: &mut Vec<f64>| [0.5, 0.99, 1.0].map(|share| format!("{:.2}", quantile(times, share))).join(", ");
    let mut table = Table::new(["", "from when all have expired, for 40 s"]);
    table.row(["a page: p50, p99, max ms".to_owned(), shown(&mut pages)]);
    table.row(["short pages, of all".to_owned(), format!("{short} of {}", pages.len())]);
    table.row(["to the first live key: p50, p99, max ms".to_owned(), shown(&mut reached)]);
    table.row(["to the first live key, the first time, ms".to_owned(), format!("{first:.2}")]);
    table.print();
}

struct Listing {
    client: Client,
    /// Up to the parameters.
    url: String,
}

impl Listing {
    fn new(kvasar: &Kvasar) -> Listing {
        let account =
            format!("{}/accounts/{}", kvasar.server.text("/rest"), kvasar.server.text("/accounts/0/account_id"));
        let url = format!("{account}/storage/kv/namespaces/{}/keys?limit={PAGE}", kvasar.namespace());
        Listing { client: kvasar.client(), url }
    }

    async fn page(&self, prefix: &str, cursor: &str) -> bytes::Bytes {
        let url = format!("{}&prefix={prefix}&cursor={cursor}", self.url);
        self.client.ask(Method::GET, &url, "").await
    }

    /// How many keys begin with that; notes how many milliseconds each page took.
    async fn all(&self, prefix: &str, took: &mut Vec<f64>) -> u32 {
        let (mut cursor, mut count) = (String::new(), 0);
        let mut last = String::new();
        loop {
            let start = Instant::now();
            let page = self.page(prefix, &cursor).await;
            took.push(start.elapsed().as_secs_f64() * 1000.0);
            let (found, next) = read(&page);
            // One page in so many is looked at closer, since all of it takes the time of this one thread.
            if took.len().is_multiple_of(32) {
                check(&page, prefix, &mut last);
            }
            count += found;
            cursor = next;
            if cursor.is_empty() {
                return count;
            }
        }
    }
}

/// How many names are on a page, and where it goes on.
fn read(page: &[u8]) -> (u32, String) {
    let names = memchr::memmem::find_iter(page, b"{\"name\":").count() as u32;
    let before = b"\"cursor\":\"";
    let cursor = memchr::memmem::rfind(page, before).map(|at| {
        let rest = &page[at + before.len()..];
        let end = memchr::memchr(b'"', rest).expect("a text ends");
        String::from_utf8_lossy(&rest[..end]).into_owned()
    });
    (names, cursor.unwrap_or_default())
}

fn contains(page: &[u8], text: &str) -> bool {
    memchr::memmem::find(page, text.as_bytes()).is_some()
}

/// Names are in order, behind those of the pages before, and begin as they were asked to.
fn check(page: &[u8], prefix: &str, last: &mut String) {
    let page: Value = serde_json::from_slice(page).expect("the API answers JSON");
    for key in page["result"].as_array().expect("a page lists keys") {
        let name = key["name"].as_str().expect("a key has a name");
        assert!(name > last.as_str() && name.starts_with(prefix), "{name} is listed after {last} for '{prefix}'");
        name.clone_into(last);
    }
}

/// A connection to Redis on which keys are scanned.
struct Scan {
    stream: BufReader<TcpStream>,
}

impl Scan {
    fn connect(redis: &Peer) -> Scan {
        let stream = TcpStream::connect(redis.address).expect("redis accepts");
        stream.set_nodelay(true).expect("a socket takes an option");
        Scan { stream: BufReader::new(stream) }
    }

    /// How many keys come, with `more` in each command; notes how many milliseconds each took.
    fn all(&mut self, more: &str, took: &mut Vec<f64>) -> u32 {
        let (mut cursor, mut count) = ("0".to_owned(), 0);
        loop {
            let start = Instant::now();
            let command = format!("SCAN {cursor}{more} COUNT {PAGE}\r\n");
            self.stream.get_mut().write_all(command.as_bytes()).expect("redis reads");
            assert_eq!(self.line(), "*2");
            cursor = self.text();
            let names: u32 = self.line().strip_prefix('*').and_then(|n| n.parse().ok()).expect("SCAN lists names");
            for _ in 0..names {
                let name = self.text();
                assert!(name.starts_with("key-") && name.len() == 4 + KEY.len(), "{name}");
            }
            took.push(start.elapsed().as_secs_f64() * 1000.0);
            count += names;
            if cursor == "0" {
                return count;
            }
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("redis answers");
        line.trim_end().to_owned()
    }

    fn text(&mut self) -> String {
        let length: usize = self.line().strip_prefix('$').and_then(|n| n.parse().ok()).expect("a text has a length");
        let mut text = vec![0; length + 2];
        self.stream.read_exact(&mut text).expect("redis answers");
        text.truncate(length);
        String::from_utf8(text).expect("a name is text")
    }
}
