//! Runs worlds: one seed, or many, and reports.

use std::{
    cell::Cell,
    collections::BTreeMap,
    panic,
    sync::{Arc, Once},
};

use crate::{
    checker::Violation,
    clock::{Nanos, Time},
    faults, finale,
    profile::{Profile, Worlds},
    upsets, workload,
    world::{Trace, World, lock},
};

/// What became of a seed.
#[derive(Default)]
pub(crate) struct Report {
    pub(crate) reads: u64,
    pub(crate) lists: u64,
    pub(crate) effects: u64,
    pub(crate) overtaken: u64,
    pub(crate) back_over_restart: u64,
    pub(crate) simulated: Nanos,
    pub(crate) locations: u64,
    pub(crate) counts: BTreeMap<&'static str, u64>,
    pub(crate) violation: Option<Violation>,
    /// How the key of the violation came to be so.
    pub(crate) history: String,
    pub(crate) trace: String,
}

impl Report {
    /// Adds what another counted.
    pub(crate) fn add(&mut self, other: Report) {
        self.reads += other.reads;
        self.lists += other.lists;
        self.effects += other.effects;
        self.overtaken += other.overtaken;
        self.back_over_restart += other.back_over_restart;
        self.simulated += other.simulated;
        self.locations = self.locations.max(other.locations);
        for (what, count) in other.counts {
            *self.counts.entry(what).or_default() += count;
        }
    }
}

/// Runs one seed to its end, or to its first violation.
pub(crate) fn seed(worlds: Worlds, seed: u64, trace: Trace) -> Report {
    world(seed, Profile::of(worlds, seed), trace)
}

pub(crate) fn world(seed: u64, profile: Profile, trace: Trace) -> Report {
    count_panics();
    PANICS.set(0);
    let time = Arc::new(Time::default());
    let worlds_time = Arc::clone(&time);
    let listening = trace.listen(&time);
    let ran = panic::catch_unwind(move || {
        worlds_time.run({
            let time = Arc::clone(&worlds_time);
            async move {
                let world = World::start(&time, seed, profile, trace).await;
                live(&world).await;
                report(&world)
            }
        })
    });
    drop(listening);
    let mut report = ran.unwrap_or_default();
    if PANICS.get() > 0 {
        let what = "something panicked".into();
        report.violation.get_or_insert(Violation { at: time.now(), node: 0, key: None, what });
    }
    report
}

async fn live(world: &Arc<World>) {
    workload::start(world);
    faults::start(world);
    upsets::start(world);
    let end = world.time.now() + world.profile.duration;
    while world.time.now() < end && !world.is_over() {
        world.time.sleep((end - world.time.now()).min(100_000_000)).await;
    }
    world.over.store(true, std::sync::atomic::Ordering::Relaxed);
    if world.checker().violation.is_none() {
        finale::run(world).await;
    }
}

fn report(world: &World) -> Report {
    let checker = world.checker();
    let violation = checker.violation.clone();
    let history = violation.as_ref().and_then(|violation| violation.key).map(|key| checker.story(key));
    Report {
        reads: checker.reads,
        lists: checker.lists,
        effects: checker.effects_seen,
        overtaken: checker.overtaken,
        back_over_restart: checker.back_over_restart,
        simulated: world.time.now(),
        locations: world.edges().len() as u64,
        counts: lock(&world.counts).clone(),
        history: history.unwrap_or_default(),
        violation,
        trace: world.trace.text(),
    }
}

thread_local! {
    /// Of this thread: a world is on one. A task that panics takes only itself down, and must not go unnoticed.
    static PANICS: Cell<u64> = const { Cell::new(0) };
}

fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            PANICS.set(PANICS.get() + 1);
            usual(info);
        }));
    });
}

/// How many lines of a story are told, before its end.
const STORY_LINES: usize = 60;

/// A violation as one wants to read it: how to run it again, and what happened to the key, at that location and above it.
pub(crate) fn story(worlds: Worlds, seed: u64, violation: &Violation) -> String {
    let report = self::seed(worlds, seed, Trace::kept());
    let mut text = format!("seed {seed}: {violation}\n{:?}\n", Profile::of(worlds, seed));
    let family = match worlds {
        Worlds::One => "",
        Worlds::Several => "--several ",
        Worlds::Suspending => "--suspending ",
    };
    text.push_str(&format!("  again: cargo run --release --example simulate -- {family}--trace {seed}\n"));
    if report.violation.as_ref().map(ToString::to_string) != Some(violation.to_string()) {
        text.push_str("  RUN AGAIN, IT DIFFERS: something is not determined by the seed\n");
    }
    if !report.history.is_empty() {
        text.push_str("what was true of the key:\n");
        text.push_str(&report.history);
    }
    let key = violation.key.map(|key| format!(" key {key} "));
    let node = format!("node {} ", violation.node);
    let concerns = |line: &&str| {
        key.as_ref().is_none_or(|key| line.contains(key.as_str())) || (line.contains(&node) && !line.contains(" key "))
    };
    let lines: Vec<&str> = report.trace.lines().filter(concerns).collect();
    text.push_str("what happened:\n");
    for line in &lines[lines.len().saturating_sub(STORY_LINES)..] {
        text.push_str(&format!("  {line}\n"));
    }
    text
}
