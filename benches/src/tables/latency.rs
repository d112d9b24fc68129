//! How long a hot read takes while the server has 70 % of what it can do: at moments that nothing it does can shift, counted from when each request was due.
//!
//! What it can do is measured just before, by a closed load.

use std::time::Duration;

use crate::{
    ask::Values,
    load::{Part, Round, open, round, warn_if_late},
    options::Options,
    process::{keep_to_cores, median},
    report::{Table, bars, grouped, spread},
    tables::hot_read::field,
};

const VALUE_BYTES: usize = 1024;
const SHARE: f64 = 0.7;
const TITLE: &str = "Latency at 70 % of capacity, 1 KiB";

pub async fn run(options: &Options) {
    keep_to_cores(&options.load_core.to_string());
    let field = field(1, &Values::new(VALUE_BYTES), options).await;
    let mut capacities: Vec<Vec<f64>> = field.targets.iter().map(|_| Vec::new()).collect();
    let mut rounds: Vec<Vec<Round>> = field.targets.iter().map(|_| Vec::new()).collect();
    for _ in 0..options.rounds() {
        for (number, target) in field.targets.iter().enumerate() {
            let capacity = round(target, options.connections, Duration::from_secs(1).min(options.round())).per_second();
            capacities[number].push(capacity);
            let part = Part { target, connections: options.connections, rate: capacity * SHARE };
            rounds[number].extend(open(&[part], options.round()));
        }
    }
    println!("### {TITLE}\n");
    let mut table =
        Table::new(["", "capacity, requests/s", "p50 us", "p99 us", "p99.9 us", "the load's own lateness, p99 us"]);
    let mut figures = Vec::new();
    for ((target, rounds), capacities) in field.targets.iter().zip(&rounds).zip(&capacities) {
        let micros = |share: f64| {
            rounds.iter().map(|round| round.latency.value_at_quantile(share) as f64 / 1000.0).collect::<Vec<_>>()
        };
        let late: Vec<f64> = rounds.iter().map(|round| round.late.value_at_quantile(0.99) as f64 / 1000.0).collect();
        table.row([
            target.name.clone(),
            grouped(median(capacities), 0),
            spread(&micros(0.5), 0),
            spread(&micros(0.99), 0),
            spread(&micros(0.999), 0),
            grouped(median(&late), 0),
        ]);
        figures.push((target.name.clone(), median(&micros(0.99))));
    }
    table.print();
    warn_if_late(&rounds.iter().flatten().collect::<Vec<_>>());
    if let Some(file) = options.chart("latency") {
        bars(&file, TITLE, "p99 in microseconds, from when each request was due", &figures).expect("a chart is drawn");
    }
}
