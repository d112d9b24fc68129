//! What writes do to hot reads: how long a read takes with none, and while many are made durable.
//!
//! An open load of both: neither waits for the other, and each request's time counts from when it was due.

use crate::{
    ask::{Expected, KEY, Keys, Request, Values},
    kvasar::{Kvasar, More},
    load::{Part, Round, Target, once, open, warn_if_late},
    options::Options,
    process::{keep_to_cores, median},
    report::{Table, grouped, spread},
};

const WRITE_CONNECTIONS: usize = 256;

#[derive(clap::Args)]
pub struct Arguments {
    #[arg(long, default_value_t = 10_000.0)]
    reads_per_second: f64,
    #[arg(long, default_value_t = 20_000.0)]
    writes_per_second: f64,
}

pub async fn run(arguments: &Arguments, options: &Options) {
    keep_to_cores(&options.load_core.to_string());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let kvasar = Kvasar::start(Some(&options.server_cores()), folder.path(), "kvasar", More::default()).await;
    let (values, written) = (Values::new(1024), Values::new(100));
    kvasar.fill(1, &values).await;
    let read = kvasar.reads(Keys::One, Expected::Value { values: values.clone(), head: "cf-cache-status: HIT" });
    once(&Target { expected: Expected::Value { values, head: "" }, ..read.clone() }, 1);
    let path = format!("/written-{KEY}?urlencoded=true");
    let write = |first| Target {
        name: "kvasar, put".to_owned(),
        request: Request::with_value("PUT", kvasar.address, &path, &kvasar.headers, &written),
        keys: Keys::Counting(first),
        expected: Expected::Status { status: 200, head: "kvasar-version" },
        ..read.clone()
    };
    let reads = Part { target: &read, connections: options.connections, rate: arguments.reads_per_second };
    let (mut quiet, mut busy, mut writes) = (Vec::new(), Vec::new(), Vec::new());
    let mut first = 0;
    for _ in 0..options.rounds() {
        quiet.extend(open(&[Part { ..reads }], options.round()));
        let write = write(first);
        let part = Part { target: &write, connections: WRITE_CONNECTIONS, rate: arguments.writes_per_second };
        let mut both = open(&[Part { ..reads }, part], options.round());
        writes.push(both.remove(1));
        first += writes[writes.len() - 1].requests as u32;
        busy.append(&mut both);
    }
    println!(
        "### Hot reads under writes\n\n{} reads a second of 1 KiB; {} puts a second of 100 bytes.\n",
        grouped(arguments.reads_per_second, 0),
        grouped(arguments.writes_per_second, 0)
    );
    let mut table = Table::new(["", "a second", "p50 us", "p99 us", "p99.9 us", "the server's share of a core"]);
    for (name, rounds) in [("reads, no writes", &quiet), ("reads, under writes", &busy), ("the writes", &writes)] {
        let of = |figure: &dyn Fn(&Round) -> f64| rounds.iter().map(figure).collect::<Vec<_>>();
        let micros = |share: f64| spread(&of(&|round| round.latency.value_at_quantile(share) as f64 / 1000.0), 0);
        let share = median(&of(&|round| round.server_share)) * 100.0;
        table.row([
            name.to_owned(),
            spread(&of(&Round::per_second), 0),
            micros(0.5),
            micros(0.99),
            micros(0.999),
            format!("{share:.0} %"),
        ]);
    }
    table.print();
    warn_if_late(&quiet.iter().chain(&busy).collect::<Vec<_>>());
    let p99 = |rounds: &[Round]| {
        median(&rounds.iter().map(|round| round.latency.value_at_quantile(0.99) as f64).collect::<Vec<_>>())
    };
    println!("p99 of reads under writes: {:.2} times that without.\n", p99(&busy) / p99(&quiet));
}
