//! `KV.get` in a real Worker: through workerd on an edge of ours, on a back end that costs next to nothing, and in Miniflare.
//!
//! One get for each request to the Worker. What is measured is on the server's core: workerd, or Miniflare whose KV is part of it. What workerd asks is on the
//! load's core, which has time for both.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    ask::{Expected, KEY, Keys, Request, Values},
    kvasar::{Kvasar, More},
    load::{Round, Target, once},
    options::Options,
    peers::{self, Peer},
    process::{binary, keep_to_cores, median},
    report::bars,
    responder::Kind,
    tables::hot_read::{print, rounds},
};

const VALUE_BYTES: usize = 1024;

pub async fn run(options: &Options) {
    keep_to_cores(&options.load_core.to_string());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (cores, back_end) = (options.server_cores(), options.load_core.to_string());
    let values = Values::new(VALUE_BYTES);
    let kvasar = Kvasar::start(Some(&back_end), folder.path(), "kvasar", More::default()).await;
    kvasar.fill(1, &values).await;
    let ideal = peers::responder(&back_end, Kind::Epoll, &values);
    let token = kvasar.headers.lines().find_map(|line| line.strip_prefix("Authorization: Bearer "));
    let token = token.expect("the token is named");
    let on = |name: &str, location: &str| {
        let config = config(folder.path(), name, location, token, kvasar.namespace());
        peers::workerd(&cores, folder.path(), name, &config.0, config.1)
    };
    let on_kvasar = on("workerd-kvasar", &kvasar.address.to_string());
    let on_ideal = on("workerd-ideal", &ideal.address.to_string());
    let miniflare = peers::miniflare(&cores, folder.path(), &worker());
    let target = |name: &str, peer: &Peer| Target {
        name: name.to_owned(),
        address: peer.address,
        request: Request::get(peer.address, "/key-", "", ""),
        keys: Keys::One,
        expected: Expected::Value { values: values.clone(), head: "" },
        servers: vec![peer.id()],
    };
    let targets = [
        target("kvasar through workerd", &on_kvasar),
        target("ideal back end through workerd", &on_ideal),
        target("miniflare", &miniflare),
    ];
    let put = Request::with_value("PUT", miniflare.address, &format!("/key-{KEY}"), "", &values);
    once(&Target { request: put, expected: Expected::Status { status: 200, head: "" }, ..targets[2].clone() }, 1);
    println!("### KV.get in a Worker, 1 KiB\n");
    let rounds = rounds(&targets, options);
    print(&targets, &rounds);
    let of = |rounds: &[Round], figure: fn(&Round) -> f64| median(&rounds.iter().map(figure).collect::<Vec<_>>());
    let [ours, ideal, miniflare] = [0, 1, 2].map(|at| of(&rounds[at], Round::per_second));
    let [ours_cost, ideal_cost, miniflare_cost] = [0, 1, 2].map(|at| of(&rounds[at], Round::micros_per_request));
    println!(
        "KV.get a second through kvasar: {:.2} times Miniflare's, {:.2} times the ideal back end's.",
        ours / miniflare,
        ours / ideal
    );
    println!(
        "By CPU per get, which others on the machine don't change: {:.2} and {:.2}.\n",
        miniflare_cost / ours_cost,
        ideal_cost / ours_cost
    );
    if let Some(file) = options.chart("workerd") {
        let figures: Vec<_> = targets.iter().map(|target| target.name.clone()).zip([ours, ideal, miniflare]).collect();
        bars(&file, "KV.get in a Worker, 1 KiB", "gets per second, workerd or Miniflare on one core", &figures)
            .expect("a chart is drawn");
    }
}

fn worker() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/worker.js")
}

/// A configuration of workerd as `kvasar workerd-config` makes it, and the port that it names.
fn config(folder: &Path, name: &str, location: &str, token: &str, namespace: &str) -> (PathBuf, u16) {
    let copy = folder.join("worker.js");
    std::fs::copy(worker(), &copy).expect("the Worker is copied");
    let (file, port) = (folder.join(format!("{name}.capnp")), peers::free_port());
    let mut command = Command::new(binary());
    command.args(["workerd-config", "--location", location, "--token", token, "--binding", &format!("KV={namespace}")]);
    command.args(["--listen", &peers::loopback(port).to_string(), "--worker"]).arg(&copy).arg("--output").arg(&file);
    let output = command.output().expect("the binary runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    (file, port)
}
