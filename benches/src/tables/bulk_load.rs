//! Loading much through REST, and listing it: many small values, then fewer long ones, as a migration would bring them.

use std::{
    fmt::Write,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    chance::Chance,
    client::Client,
    process::{MIB, Server, memory},
    report::{Table, grouped},
};
use hyper::Method;
use serde_json::Value;
use tokio::{sync::Semaphore, task::JoinSet};

const SMALL_KEYS: usize = 1_000_000;
const SMALL_BYTES: usize = 100;
const LARGE_KEYS: usize = 20_000;
const LARGE_BYTES: usize = 64 * 1024;
/// What the API takes in one request: entries, and bytes.
const ENTRIES_MAX: usize = 10_000;
const BODY_BYTES_MAX: usize = 100_000_000;
/// Requests at a time.
const CONCURRENCY: usize = 2;
const PAGE: usize = 1000;

pub async fn run() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = "[server]\nadmin = \"127.0.0.1:0\"\n[origin]\ndata = \"data\"\n\
                  [[tier]]\nrole = \"central\"\nname = \"centre\"\nupstream = \"origin\"\ncache = \"256MiB\"\n\
                  [rest]\nlisten = \"127.0.0.1:0\"\non = \"centre\"\n";
    let config_file = folder.path().join("server.toml");
    std::fs::write(&config_file, config).expect("a configuration is written");
    let server = Server::start(folder.path(), None, &["serve", "--config", config_file.to_str().expect("UTF-8")]);
    let headers = vec![
        ("authorization", format!("Bearer {}", server.text("/accounts/0/token"))),
        ("content-type", "application/json".to_owned()),
    ];
    let client = Client::new(headers);
    let account = format!("{}/accounts/{}", server.text("/rest"), server.text("/accounts/0/account_id"));
    let namespaces = format!("{account}/storage/kv/namespaces");
    let made = ask(&client, Method::POST, &namespaces, r#"{"title": "load"}"#.to_owned()).await;
    let namespace: Arc<str> = format!("{namespaces}/{}", made["result"]["id"].as_str().expect("an id")).into();

    let mut table = Table::new(["", "in all", "the slowest request", "memory: now, peak", "the tier's own count"]);
    for (kind, keys, length) in [("small", SMALL_KEYS, SMALL_BYTES), ("large", LARGE_KEYS, LARGE_BYTES)] {
        let mut row = load(&client, &namespace, kind, keys, length).await;
        row.extend(shown_memory(&server).await);
        table.row(row);
    }
    println!("### Loading through REST, {CONCURRENCY} requests at a time\n");
    table.print();
    let mut table = Table::new(["", "pages", "a page: p50, p99, max ms", "all of them"]);
    for turn in ["listed", "listed again"] {
        let mut row = vec![turn.to_owned()];
        row.extend(list(&client, &namespace).await);
        table.row(row);
    }
    table.print();
}

/// The answer of the API, which has to be a success.
async fn ask(client: &Client, method: Method, url: &str, body: String) -> Value {
    let answer = client.ask(method, url, body).await;
    let answer: Value = serde_json::from_slice(&answer).expect("the API answers JSON");
    assert_eq!(answer["success"], Value::Bool(true), "{url}: {answer}");
    answer
}

fn key(kind: &str, number: usize) -> String {
    format!("{kind}/{number:08}")
}

/// The cells of a row.
async fn load(client: &Client, namespace: &Arc<str>, kind: &'static str, keys: usize, length: usize) -> Vec<String> {
    // What JSON adds to each value: brackets, names, quotes, the key.
    let entry_bytes = length + 48;
    let per_request = ENTRIES_MAX.min(BODY_BYTES_MAX / entry_bytes);
    let places = Arc::new(Semaphore::new(CONCURRENCY));
    let mut requests = JoinSet::new();
    let mut longest = Duration::ZERO;
    let start = Instant::now();
    for first in (0..keys).step_by(per_request) {
        let place = Arc::clone(&places).acquire_owned().await.expect("it is never closed");
        let (client, namespace) = (client.clone(), Arc::clone(namespace));
        requests.spawn(async move {
            let _place = place;
            let numbers = first..keys.min(first + per_request);
            let body = body(kind, numbers.clone(), length);
            assert!(body.len() <= BODY_BYTES_MAX);
            let sent = Instant::now();
            let answer = ask(&client, Method::PUT, &format!("{namespace}/bulk"), body).await;
            assert_eq!(answer["result"]["successful_key_count"], numbers.len(), "{answer}");
            sent.elapsed()
        });
    }
    while let Some(took) = requests.join_next().await {
        longest = longest.max(took.expect("a request succeeds"));
    }
    let seconds = start.elapsed().as_secs_f64();
    vec![
        format!("{keys} keys of {length} bytes, {per_request} in a request"),
        format!(
            "{seconds:.1} s, {} keys/s, {:.0} MiB/s",
            grouped(keys as f64 / seconds, 0),
            (keys * length) as f64 / MIB / seconds
        ),
        format!("{:.2} s", longest.as_secs_f64()),
    ]
}

fn body(kind: &str, numbers: std::ops::Range<usize>, length: usize) -> String {
    let mut body = String::with_capacity(numbers.len() * (length + 48) + 2);
    let mut chance = Chance::new(numbers.start as u64);
    body.push('[');
    for number in numbers.clone() {
        let comma = if number == numbers.start { "" } else { "," };
        let (key, value) = (key(kind, number), chance.text(length));
        write!(body, r#"{comma}{{"key":"{key}","value":"{value}"}}"#).expect("a text takes all that is written");
    }
    body.push(']');
    body
}

async fn list(client: &Client, namespace: &str) -> [String; 3] {
    let mut times = Vec::new();
    let (mut cursor, mut names, mut last) = (String::new(), 0, String::new());
    let start = Instant::now();
    loop {
        let sent = Instant::now();
        let answer = client.ask(Method::GET, &format!("{namespace}/keys?limit={PAGE}&cursor={cursor}"), "").await;
        times.push(sent.elapsed());
        let answer: Value = serde_json::from_slice(&answer).expect("the API answers JSON");
        for name in answer["result"].as_array().expect("a page lists keys") {
            let name = name["name"].as_str().expect("a key has a name");
            assert!(*name > *last, "{name} is listed after {last}");
            name.clone_into(&mut last);
            names += 1;
        }
        answer["result_info"]["cursor"].as_str().unwrap_or_default().clone_into(&mut cursor);
        if cursor.is_empty() {
            break;
        }
    }
    let took = start.elapsed();
    assert_eq!(names, SMALL_KEYS + LARGE_KEYS);
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize].as_secs_f64() * 1000.0;
    [
        times.len().to_string(),
        format!("{:.2}, {:.2}, {:.2}", at(0.5), at(0.99), at(1.0)),
        format!("{} keys in {:.2} s", grouped(names as f64, 0), took.as_secs_f64()),
    ]
}

/// What the process takes beside what its cache says that it holds.
async fn shown_memory(server: &Server) -> [String; 2] {
    let url = format!("{}/metrics", server.text("/admin"));
    let metrics = Client::new(Vec::new()).ask(Method::GET, &url, "").await;
    let metrics = String::from_utf8(metrics.to_vec()).expect("metrics are text");
    let figure = |name: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix(&format!("{name}{{tier=\"centre\"}} ")));
        line.and_then(|figure| figure.parse::<f64>().ok())
            .unwrap_or_else(|| panic!("the metrics have no {name} of the centre"))
    };
    [
        format!(
            "{:.0} MiB, {:.0} MiB",
            memory(server.id(), "VmRSS") as f64 / MIB,
            memory(server.id(), "VmHWM") as f64 / MIB
        ),
        format!(
            "{} entries, {:.0} MiB",
            grouped(figure("kvasar_cache_entries"), 0),
            figure("kvasar_cache_held_bytes") / MIB
        ),
    ]
}
