//! What it costs to be watched: a hot read with nobody reading the metrics, with somebody who reads them twice a second, and with every request logged.

use std::time::Duration;

use hyper::Method;

use crate::{
    ask::{Expected, Keys, Values},
    client::Client,
    kvasar::{Kvasar, More},
    load::{Target, once},
    options::Options,
    process::keep_to_cores,
    tables::hot_read::{print, rounds},
};

const PAUSE: Duration = Duration::from_millis(500);

pub async fn run(options: &Options) {
    keep_to_cores(&options.load_core.to_string());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let logged = [("KVASAR_LOG", "info,kvasar::access=info")];
    let cases: [(&str, &[(&str, &str)]); 3] = [
        ("kvasar, as it comes", &[]),
        ("kvasar, metrics read twice a second", &[]),
        ("kvasar, access log on", &logged),
    ];
    let (mut servers, mut targets) = (Vec::new(), Vec::new());
    let values = Values::new(1024);
    for (name, environment) in cases {
        let more = More { environment, ..More::default() };
        let kvasar = Kvasar::start(Some(&options.server_cores()), folder.path(), name, more).await;
        kvasar.fill(1, &values).await;
        let hit = kvasar.reads(Keys::One, Expected::Value { values: values.clone(), head: "cf-cache-status: HIT" });
        once(&Target { expected: Expected::Value { values: values.clone(), head: "" }, ..hit.clone() }, 1);
        targets.push(Target { name: name.to_owned(), ..hit });
        servers.push(kvasar);
    }
    let metrics = format!("{}/metrics", servers[1].server.text("/admin"));
    let reader = tokio::spawn(async move {
        let client = Client::new(Vec::new());
        loop {
            let metrics = client.ask(Method::GET, &metrics, "").await;
            assert!(metrics.starts_with(b"# "), "metrics are text");
            tokio::time::sleep(PAUSE).await;
        }
    });
    println!("### A hot read that is watched\n");
    // The load keeps this thread; the reader has another.
    let rounds = tokio::task::block_in_place(|| rounds(&targets, options));
    assert!(!reader.is_finished(), "the metrics could not be read");
    reader.abort();
    print(&targets, &rounds);
}
