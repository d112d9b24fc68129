//! The simulator as a test: fixed seeds, fresh ones, and the same one twice.
//!
//! `cargo run --release --example simulate` runs many more, and measures.

mod agreement;
mod alternating;
mod chance;
mod checker;
mod checking;
mod clock;
mod cluster;
mod faults;
mod finale;
mod net;
mod profile;
mod quorum;
mod regions;
mod register;
mod run;
mod store;
mod upsets;
mod workload;
mod world;

use std::io::Write as _;

use profile::Worlds;
use run::Report;
use world::Trace;

/// Runs these seeds, and tells the story of the first that fails.
fn all(worlds: Worlds, seeds: impl Iterator<Item = u64>) -> Report {
    let mut sum = Report::default();
    for seed in seeds {
        let report = run::seed(worlds, seed, Trace::default());
        if let Some(violation) = &report.violation {
            panic!("{}", run::story(worlds, seed, violation));
        }
        sum.add(report);
    }
    sum
}

/// Kinds of faults that are counted, and of upsets.
const FAULTS: usize = 16;
const UPSETS: usize = 17;

#[test]
fn fixed_seeds_find_nothing_wrong() {
    let sum = all(Worlds::One, 0..200);
    assert!(sum.reads > 500_000, "{} reads were checked: the clients have gone to sleep", sum.reads);
    assert!(sum.lists > 100 && sum.effects > 10_000, "{} lists, {} writes", sum.lists, sum.effects);
    let faults = sum.counts.iter().filter(|(what, count)| what.starts_with("fault: ") && **count > 0).count();
    assert_eq!(faults, FAULTS, "each kind of fault happens: {:?}", sum.counts);
}

/// Seeds of worlds with several origins: these take longer.
const SEVERAL: u64 = 40;

#[test]
fn fixed_seeds_with_several_origins_find_nothing_wrong() {
    let sum = all(Worlds::Several, 0..SEVERAL);
    assert!(sum.reads > 100_000, "{} reads were checked: the clients have gone to sleep", sum.reads);
    assert!(sum.effects > 2000, "{} writes", sum.effects);
    let upsets = sum.counts.iter().filter(|(what, count)| what.starts_with("upset: ") && **count > 0).count();
    assert_eq!(upsets, UPSETS, "each kind of upset happens: {:?}", sum.counts);
}

#[test]
fn fresh_seeds_find_nothing_wrong() {
    let first = match std::env::var("KVASAR_SIM_SEEDS") {
        Ok(first) => first.parse().expect("KVASAR_SIM_SEEDS is a number"),
        Err(_) => fresh(),
    };
    // Past the harness, which would show it only of a test that fails.
    writeln!(std::io::stderr(), "seeds {first} to {}: KVASAR_SIM_SEEDS={first} runs them again", first + 49)
        .expect("the tests have a place for messages");
    all(Worlds::Several, first..first + 10);
    let sum = all(Worlds::One, first..first + 50);
    println!(
        "{} reads, {:.0} s simulated, up to {} locations, {} reads behind one before a restart",
        sum.reads,
        sum.simulated as f64 / 1e9,
        sum.locations,
        sum.back_over_restart
    );
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place of the simulator that is not determined by a seed, and says what it drew"
)]
fn fresh() -> u64 {
    rand::random::<u64>() >> 20
}

#[test]
fn a_seed_has_one_story() {
    let one = [3, 17, 40].map(|seed| (Worlds::One, seed));
    for (worlds, seed) in one.into_iter().chain([(Worlds::Several, 5), (Worlds::Several, 6)]) {
        let (first, second) = (run::seed(worlds, seed, Trace::kept()), run::seed(worlds, seed, Trace::kept()));
        // But for the product's own log: whether a line of it is wanted is remembered for all threads together.
        let told = |report: &Report| -> Vec<String> {
            report.trace.lines().filter(|line| !line.contains(" log ")).map(str::to_owned).collect()
        };
        let (first, second) = (told(&first), told(&second));
        assert!(first.len() > 500, "seed {seed} tells {} lines", first.len());
        let differing = first.iter().zip(&second).find(|(first, second)| first != second);
        assert_eq!(differing, None, "seed {seed}");
        assert_eq!(first.len(), second.len(), "seed {seed}");
    }
}
