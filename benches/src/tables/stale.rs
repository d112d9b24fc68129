//! What a hit costs while what is held is being renewed: past three quarters of the age that its reader accepts, it is answered at once, and one question in the
//! background asks for it anew.
//!
//! The edge is far enough from its origin that such a question is under way for much of the time.

use std::time::Duration;

use crate::{
    ask::{Expected, Keys, Request, Values},
    kvasar::{Kvasar, More},
    line::Line,
    load::{Target, once},
    options::Options,
    process::keep_to_cores,
    tables::hot_read::{print, rounds},
};

const TRIP_MILLIS: u64 = 100;
const ACCEPTED_MILLIS: u64 = 1000;

pub async fn run(options: &Options) {
    keep_to_cores(&options.load_core.to_string());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let delay = format!("delay = \"{TRIP_MILLIS}ms\"\nfeed_interval = \"10s\"\n");
    let more = More { origin: "listen = \"127.0.0.1:0\"\n", tier: &delay, ..More::default() };
    let kvasar = Kvasar::start(Some(&options.server_cores()), folder.path(), "kvasar", more).await;
    let values = Values::new(1024);
    kvasar.fill(1, &values).await;
    let accepts = format!("{}kvasar-max-age-ms: {ACCEPTED_MILLIS}\r\n", kvasar.headers);
    let hit = kvasar.reads(Keys::One, Expected::Value { values: values.clone(), head: "cf-cache-status: HIT" });
    let stale = Target {
        name: "kvasar, stale-while-revalidate".to_owned(),
        request: Request::get(kvasar.address, "/key-", "?urlencoded=true", &accepts),
        ..hit.clone()
    };
    for target in [&hit, &stale] {
        once(&Target { expected: Expected::Value { values: values.clone(), head: "" }, ..target.clone() }, 1);
    }
    let (past, hits, asked) = past_three_quarters(&kvasar, &accepts).await;
    println!(
        "### Stale while revalidating\n\nOf {asked} reads one millisecond apart that accept {ACCEPTED_MILLIS} ms, {hits} were hits, and {past} of these past three quarters of it, with a question \
         under way that takes {} ms.\n",
        2 * TRIP_MILLIS
    );
    assert!(past > asked / 20, "too few reads are of what this is to measure");
    // While the others have their turn, somebody goes on reading; else the first reads of a round would have to ask.
    let (address, headers) = (kvasar.address, accepts.clone());
    let reader = tokio::spawn(async move {
        let mut line = Line::connect(address, &headers).await.expect("a server accepts");
        loop {
            line.ask("GET", PATH, "", b"").await.expect("an edge answers");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let any = Expected::Value { values, head: "" };
    let targets = [Target { expected: any, ..stale }, hit];
    let rounds = tokio::task::block_in_place(|| rounds(&targets, options));
    reader.abort();
    print(&targets, &rounds);
}

const PATH: &str = "/key-00000000?urlencoded=true";

async fn past_three_quarters(kvasar: &Kvasar, headers: &str) -> (usize, usize, usize) {
    let mut line = Line::connect(kvasar.address, headers).await.expect("a server accepts");
    let (mut past, mut hits, asked) = (0, 0, 3000);
    for _ in 0..asked {
        let answer = line.ask("GET", PATH, "", b"").await.expect("an edge answers");
        assert_eq!(answer.status, 200);
        let is_hit = answer.cache == "HIT";
        hits += usize::from(is_hit);
        past += usize::from(is_hit && answer.age.expect("an answer has an age") * 4 > ACCEPTED_MILLIS * 3);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    (past, hits, asked)
}
