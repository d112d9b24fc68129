//! The simulator by hand: `cargo run --release --example simulate -- --seeds 0..1000 --jobs 2`.
//!
//! Worlds of the shipped tiers and origin on simulated time and network, one for each seed; every answer is held against the truth. It prints what was checked,
//! how fast, and how often each fault happened, and ends with 1 if anything was wrong. `--trace SEED` prints all that happens in one.

#![expect(clippy::print_stdout, reason = "what it prints is what it is for")]

#[path = "../../tests/sim/agreement.rs"]
mod agreement;
#[path = "../../tests/sim/chance.rs"]
mod chance;
mod charts;
#[path = "../../tests/sim/checker.rs"]
mod checker;
#[path = "../../tests/sim/clock.rs"]
mod clock;
#[path = "../../tests/sim/cluster.rs"]
mod cluster;
#[path = "../../tests/sim/faults.rs"]
mod faults;
#[path = "../../tests/sim/finale.rs"]
mod finale;
mod measure;
#[path = "../../tests/sim/net.rs"]
mod net;
#[path = "../../tests/sim/profile.rs"]
mod profile;
#[path = "../../tests/sim/quorum.rs"]
mod quorum;
#[path = "../../tests/sim/regions.rs"]
mod regions;
#[path = "../../tests/sim/run.rs"]
mod run;
#[path = "../../tests/sim/store.rs"]
mod store;
#[path = "../../tests/sim/upsets.rs"]
mod upsets;
#[path = "../../tests/sim/workload.rs"]
mod workload;
#[path = "../../tests/sim/world.rs"]
mod world;

use std::{
    collections::BTreeMap,
    ops::Range,
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use clap::Parser;
use profile::{Profile, Worlds};
use run::Report;
use world::Trace;

/// Runs the shipped tiers and origin in simulated worlds, and holds every answer against the truth.
#[derive(Parser)]
struct Arguments {
    /// The seeds to run, as FIRST..END.
    #[arg(long, value_parser = seeds, default_value = "0..200")]
    seeds: Range<u64>,
    /// Worlds of several origins on a store that they share, rather than of one origin on a disk.
    #[arg(long)]
    several: bool,
    /// The same, but with machines that are suspended, clocks and all: shows what a lease can't protect from.
    #[arg(long, conflicts_with = "several")]
    suspending: bool,
    /// Print everything that happens in the world of this seed, and run no other.
    #[arg(long)]
    trace: Option<u64>,
    /// Worlds at once, each on a thread.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Go on after a violation, and count them.
    #[arg(long)]
    keep_going: bool,
    /// Stop at the first violation, and tell no story of it.
    #[arg(long, conflicts_with = "keep_going")]
    first: bool,
    /// Measure in worlds of hundreds of locations instead, print tables, and draw them into this folder.
    #[arg(long, value_name = "FOLDER")]
    measure: Option<PathBuf>,
    /// Of the measurements, this one alone.
    #[arg(long, requires = "measure")]
    only: Option<measure::What>,
}

fn seeds(text: &str) -> Result<Range<u64>, String> {
    let (first, end) = text.split_once("..").ok_or("seeds are given as FIRST..END")?;
    let number = |text: &str| text.parse::<u64>().map_err(|e| format!("'{text}': {e}"));
    Ok(number(first)?..number(end)?)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(seed) = arguments.trace {
        return trace(arguments.worlds(), seed);
    }
    if let Some(folder) = &arguments.measure {
        return match measure::run(folder, arguments.only) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: drawing into {}: {error}", folder.display());
                ExitCode::FAILURE
            }
        };
    }
    let total = run_all(&arguments);
    total.print();
    if total.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Arguments {
    fn worlds(&self) -> Worlds {
        match (self.several, self.suspending) {
            (_, true) => Worlds::Suspending,
            (true, false) => Worlds::Several,
            (false, false) => Worlds::One,
        }
    }
}

fn trace(worlds: Worlds, seed: u64) -> ExitCode {
    let report = run::seed(worlds, seed, Trace::kept());
    print!("{}", report.trace);
    match report.violation {
        None => {
            println!("{} reads, no violation; {:?}", report.reads, Profile::of(worlds, seed));
            ExitCode::SUCCESS
        }
        Some(violation) => {
            println!("{violation}\n{}{:?}", report.history, Profile::of(worlds, seed));
            ExitCode::FAILURE
        }
    }
}

/// All seeds' reports added up.
#[derive(Default)]
struct Total {
    seeds: u64,
    sum: Report,
    violations: Vec<u64>,
    /// Of all threads together.
    busy: Duration,
    /// Simulated time, and time at work, of the seeds with at least 300 locations.
    wide: (Duration, Duration),
}

/// How long this thread has been at work, as the system counts it: others that use the machine don't matter.
fn busy() -> Duration {
    let counted = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanos = counted.and_then(|text| text.split(' ').next().and_then(|nanos| nanos.parse().ok()));
    Duration::from_nanos(nanos.expect("Linux counts what a thread has run"))
}

fn run_all(arguments: &Arguments) -> Total {
    let next = Arc::new(AtomicU64::new(arguments.seeds.start));
    let total = Arc::new(Mutex::new(Total::default()));
    let stop = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= arguments.seeds.end || stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let started = busy();
                    let report = run::seed(arguments.worlds(), seed, Trace::default());
                    let took = busy().saturating_sub(started);
                    if let Some(violation) = &report.violation {
                        println!("violation: seed {seed}: {violation}");
                        let first = total.lock().expect("no thread panics").violations.is_empty();
                        if first && !arguments.first {
                            println!("{}", run::story(arguments.worlds(), seed, violation));
                        }
                        stop.store(!arguments.keep_going, Ordering::Relaxed);
                    }
                    total.lock().expect("no thread panics").add(seed, report, took);
                }
            });
        }
    });
    Arc::into_inner(total).expect("all threads have ended").into_inner().expect("no thread panics")
}

impl Total {
    fn add(&mut self, seed: u64, report: Report, took: Duration) {
        self.seeds += 1;
        self.busy += took;
        if report.locations >= 300 {
            self.wide.0 += Duration::from_nanos(report.simulated);
            self.wide.1 += took;
        }
        if report.violation.is_some() {
            self.violations.push(seed);
        }
        self.sum.add(report);
    }

    fn print(&self) {
        let Report { reads, lists, effects, overtaken, back_over_restart, simulated, counts, .. } = &self.sum;
        let busy = self.busy.as_secs_f64();
        println!("{} seeds, {reads} reads and {lists} lists checked, {} violations", self.seeds, self.violations.len());
        println!("{effects} writes took effect, and {overtaken} of those acknowledged gave way to a later one at once");
        println!("{back_over_restart} reads went back over a restart of their location");
        println!(
            "{:.0} reads per second of one core, {:.0} times real time",
            *reads as f64 / busy,
            *simulated as f64 / 1e9 / busy
        );
        let (simulated, took) = self.wide;
        if !took.is_zero() {
            println!("{:.1} times real time with 300 locations and more", simulated.as_secs_f64() / took.as_secs_f64());
        }
        let counts: &BTreeMap<&str, u64> = counts;
        for (what, count) in counts {
            println!("{count:>10}  {what}");
        }
        if !self.violations.is_empty() {
            println!("violations in seeds {:?}", self.violations);
        }
    }
}
