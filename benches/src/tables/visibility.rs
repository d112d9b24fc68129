//! How soon a write is visible far away: from its acknowledgement at the centre to the first read at `away` that shows it.
//!
//! Four processes, the last at an emulated distance. A *trip* is the one-way travel time from the centre to `away`. The reads accept what is a day old, so
//! nothing but the feed makes the write visible.

use std::time::Duration;

use crate::{
    chain::{Chain, SECRET, read, write},
    chance::Chance,
    client::Client,
    line::Line,
    process::{load, quantile},
};
use hyper::Method;
use kvasar::api::auth::hash;
use tokio::time::Instant;

const TRIP: Duration = Duration::from_millis(80);
const SAMPLES: usize = 300;
const REVOKED: usize = 50;
/// How often `away` is asked. A read that finds the write in the meantime is that much late.
const POLL: Duration = Duration::from_millis(1);
/// What was never seen by then is lost.
const LOST: Duration = Duration::from_secs(30);

struct Case {
    name: &'static str,
    before: Option<usize>,
    /// The length of what is written; `None` deletes.
    after: Option<usize>,
    /// How many trips it takes: one when the state comes along, and two more when it has to be asked for.
    trips: f64,
}

const CASES: [Case; 5] = [
    Case { name: "100 bytes over a value held", before: Some(100), after: Some(100), trips: 1.0 },
    Case { name: "100 bytes over absence held", before: None, after: Some(100), trips: 1.0 },
    Case { name: "a deletion of a value held", before: Some(100), after: None, trips: 1.0 },
    Case { name: "10 KiB over a value held", before: Some(10240), after: Some(10240), trips: 3.0 },
    Case { name: "10 KiB over absence held", before: None, after: Some(10240), trips: 3.0 },
];

pub async fn run() {
    let chain = Chain::start(TRIP).await;
    let mut chance = Chance::new(1);
    println!("A trip takes {TRIP:?}; {SAMPLES} writes a row, one at a time; load {}.\n", load());
    println!("| | p50 | p99 | max | came along |\n|---|---|---|---|---|");
    let mut late = Vec::new();
    for (number, case) in CASES.iter().enumerate() {
        let (mut took, came_along) = measure(&chain, number, case, &mut chance).await;
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| quantile(&mut took, share));
        println!(
            "| {} | {:.1} ms, {:.2} trips | {:.1} ms | {:.1} ms | {came_along} of {SAMPLES} |",
            case.name,
            millis(p50),
            p50.as_secs_f64() / TRIP.as_secs_f64(),
            millis(p99),
            millis(max)
        );
        // Two tenths of a trip beyond what has to be travelled, and 20 ms more for the slowest.
        let bound = TRIP.mul_f64(case.trips + 0.2);
        if p50 > bound || p99 > bound + Duration::from_millis(20) {
            late.push(case.name);
        }
    }
    let (mut took, accepted) = revoke(&chain).await;
    let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| quantile(&mut took, share));
    println!(
        "| a revoked token is refused, {REVOKED} samples | {:.1} ms, {:.2} trips | {:.1} ms | {:.1} ms | accepted {accepted} times in between |",
        millis(p50),
        p50.as_secs_f64() / TRIP.as_secs_f64(),
        millis(p99),
        millis(max)
    );
    if p99 > TRIP * 2 + Duration::from_millis(100) {
        late.push("a revoked token");
    }
    assert!(late.is_empty(), "later than promised: {late:?}");
}

/// Revokes tokens at the centre that are in use at `away`; answers how long after the acknowledgement each was refused there.
async fn revoke(chain: &Chain) -> (Vec<Duration>, usize) {
    let control = Client::new(vec![("authorization", format!("Bearer {SECRET}"))]);
    let url = format!("http://{}/kvasar/control", chain.centre.address());
    let account = chain.origin.server.text("/accounts/0/account_id");
    let namespace = chain.headers.lines().find(|line| line.starts_with("kvasar-namespace")).expect("it is named");
    let (mut took, mut accepted) = (Vec::new(), 0);
    for i in 0..REVOKED {
        let token = format!("kvs_to-be-revoked-{i}");
        let created = serde_json::json!({
            "account": account, "change": "create-token", "hash": hash(&token),
            "token": { "name": "reader", "rights": "read", "namespaces": null, "expires": null }
        });
        let created = control.ask(Method::POST, &url, created.to_string()).await;
        let created: serde_json::Value = serde_json::from_slice(&created).expect("the answer is JSON");
        let id = created["controlled"]["token"]["id"].as_str().expect("a token has an id");
        let headers = format!("Authorization: Bearer {token}\r\n{namespace}\r\n");
        let mut away = Line::connect(chain.away.address(), &headers).await.expect("a server accepts");
        for _ in 0..2 {
            read(&mut away, "of-the-token").await;
        }
        let revoke = serde_json::json!({ "account": account, "change": "revoke-token", "id": id });
        control.ask(Method::POST, &url, revoke.to_string()).await;
        let acknowledged = Instant::now();
        loop {
            let path = crate::chain::path("of-the-token");
            let answer = away.ask("GET", &path, "", b"").await.expect("away answers");
            if answer.status == 401 {
                break;
            }
            assert_eq!(answer.status, 404, "{answer:?}");
            assert!(acknowledged.elapsed() < LOST, "the token goes on being accepted");
            accepted += 1;
            tokio::time::sleep(POLL).await;
        }
        took.push(acknowledged.elapsed());
    }
    (took, accepted)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

async fn measure(chain: &Chain, number: usize, case: &Case, chance: &mut Chance) -> (Vec<Duration>, usize) {
    let (mut centre, mut away) = (chain.line(&chain.centre).await, chain.line(&chain.away).await);
    let keys: Vec<String> = (0..SAMPLES).map(|sample| format!("{number}-{sample}")).collect();
    let mut states: Vec<Option<String>> = Vec::new();
    for key in &keys {
        let before = case.before.map(|length| chance.text(length));
        if let Some(value) = &before {
            write(&mut centre, key, value.as_bytes()).await;
        }
        states.push(before);
    }
    hold(chain, &keys, &states).await;
    let (mut took, mut came_along) = (Vec::new(), 0);
    for (key, before) in keys.iter().zip(states) {
        let after = case.after.map(|length| chance.text(length));
        match &after {
            Some(value) => write(&mut centre, key, value.as_bytes()).await,
            None => {
                let path = crate::chain::path(key);
                centre.ask("DELETE", &path, "", b"").await.expect("the centre answers")
            }
        };
        let acknowledged = Instant::now();
        loop {
            let answer = read(&mut away, key).await;
            if shows(&answer, &after) {
                took.push(acknowledged.elapsed());
                came_along += usize::from(answer.cache == "HIT");
                break;
            }
            assert!(shows(&answer, &before), "{key} is neither what it was nor what it became: {answer:?}");
            assert!(acknowledged.elapsed() < LOST, "{key} was never seen: {answer:?}");
            tokio::time::sleep(POLL).await;
        }
        // What was seen stays.
        assert!(shows(&read(&mut away, key).await, &after), "{key} went back");
    }
    (took, came_along)
}

fn shows(answer: &crate::line::Answer, state: &Option<String>) -> bool {
    match state {
        Some(value) => answer.status == 200 && answer.body == value.as_bytes(),
        None => answer.status == 404,
    }
}

/// Has `away` hold the keys as they are.
async fn hold(chain: &Chain, keys: &[String], states: &[Option<String>]) {
    let mut lines: Vec<Line> = Vec::new();
    for _ in 0..32 {
        lines.push(chain.line(&chain.away).await);
    }
    for (keys, states) in keys.chunks(lines.len()).zip(states.chunks(lines.len())) {
        let reads = lines.iter_mut().zip(keys).zip(states).map(async |((line, key), state)| {
            let first = read(line, key).await;
            let second = read(line, key).await;
            assert!(shows(&first, state) && shows(&second, state), "{key}: {first:?} {second:?}");
            assert_eq!(second.cache, "HIT", "{key} is not held");
        });
        futures_util::future::join_all(reads).await;
    }
}
