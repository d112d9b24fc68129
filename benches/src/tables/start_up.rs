//! How long a server takes to be ready again with a million keys: after it was asked to stop, and after it was killed.

use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    ask::{Values, name},
    chain::owner,
    kvasar::write_many,
    line::Line,
    options::Options,
    process::Server,
    report::{Table, grouped, spread},
};

pub async fn run(options: &Options) {
    let keys = if options.quick { 100_000 } else { 1_000_000 };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = format!(
        "[cluster]\nsecret = \"{}\"\n[origin]\ndata = \"data\"\n[[tier]]\nrole = \"edge\"\nname = \"edge\"\nupstream = \"origin\"\nlisten = \"127.0.0.1:0\"\n",
        crate::chain::SECRET
    );
    let file = folder.path().join("server.toml");
    std::fs::write(&file, config).expect("a configuration is written");
    let arguments = ["serve", "--config", file.to_str().expect("a path in UTF-8")];
    let mut server = Server::start(folder.path(), None, &arguments);
    let headers = owner(&server, server.address("/tiers/0/listen")).await;
    let namespace = headers.lines().find_map(|line| line.strip_prefix("kvasar-namespace: ")).expect("it is named");
    let values = Values::new(100);
    write_many(server.address("/tiers/0/listen"), namespace, keys, name, &values, None).await;
    let mut table = Table::new(["", "ready after, ms", "first read answered after, ms"]);
    for (title, signal) in [("asked to stop", Signal::TERM), ("killed", Signal::KILL)] {
        let (mut ready, mut answered) = (Vec::new(), Vec::new());
        for turn in 0..options.rounds() as u32 {
            let id = Pid::from_raw(server.id() as i32).expect("a process has an id");
            kill_process(id, signal).expect("it is ours to end");
            server.wait();
            let start = Instant::now();
            server = Server::start(folder.path(), None, &arguments);
            ready.push(start.elapsed().as_secs_f64() * 1000.0);
            let mut line = Line::connect(server.address("/tiers/0/listen"), &headers).await.expect("a server accepts");
            let key = turn * 7919 % keys;
            let answer =
                line.ask("GET", &format!("/{}?urlencoded=true", name(key)), "", b"").await.expect("it answers");
            assert_eq!((answer.status, answer.body), (200, values.of(key)));
            answered.push(start.elapsed().as_secs_f64() * 1000.0);
        }
        table.row([title.to_owned(), spread(&ready, 0), spread(&answered, 0)]);
    }
    println!("### Start-up with {} keys of 100 bytes\n", grouped(f64::from(keys), 0));
    table.print();
}
