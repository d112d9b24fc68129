//! What goes wrong, and how it is put right again: each fault heals by itself after a while, and all of them before the finale.

use std::sync::Arc;

use kvasar::store::memory::FailedCommit;

use crate::{
    chance::Chance,
    clock::{MILLI, Nanos, SECOND},
    net::Way,
    workload,
    world::{CENTRAL, Node, ORIGIN, World},
};

#[derive(Clone, Copy, Debug)]
enum Fault {
    Reset,
    Partition,
    OneWay,
    CutOffCentre,
    TierCrash,
    OriginCrash,
    FailingDisk,
    FailingReads,
    SlowDisk,
    WallJump,
    Eviction,
    SlowFollower,
    StalledFollower,
    Loss,
}

const FAULTS: [(u32, Fault); 14] = [
    (12, Fault::Reset),
    (8, Fault::Partition),
    (8, Fault::OneWay),
    (4, Fault::CutOffCentre),
    (10, Fault::TierCrash),
    (5, Fault::OriginCrash),
    (3, Fault::FailingDisk),
    (1, Fault::FailingReads),
    (5, Fault::SlowDisk),
    (3, Fault::WallJump),
    (16, Fault::Eviction),
    (5, Fault::SlowFollower),
    (4, Fault::StalledFollower),
    (4, Fault::Loss),
];

/// Faults at random moments, until the world is over.
pub(crate) fn start(world: &Arc<World>) {
    at_random(world, world.profile.fault_pause, &FAULTS, happen);
}

/// One of these things happens at random moments, so far apart on average, until the world is over.
pub(crate) fn at_random<T, F>(
    world: &Arc<World>,
    pause: Option<Nanos>,
    what: &'static [(u32, T)],
    happen: fn(Arc<World>, T, Chance) -> F,
) where
    T: Copy + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let Some(pause) = pause else { return };
    let (world, mut chance) = (Arc::clone(world), world.fork_chance());
    tokio::spawn(async move {
        loop {
            world.time.sleep(chance.exponential(pause as f64) as Nanos).await;
            if world.is_over() {
                return;
            }
            let drawn = chance.weighted(what);
            tokio::spawn(happen(Arc::clone(&world), drawn, chance.fork()));
        }
    });
}

/// So that with what follows it, it is over when [`heal`] has waited.
pub(crate) const LASTING_MAX: Nanos = 15 * SECOND;

async fn happen(world: Arc<World>, fault: Fault, mut chance: Chance) {
    // Any machine but the origin's: it has a wire to the one above, and a tier on it.
    let index = chance.between(CENTRAL as u64, world.nodes.len() as u64 - 1) as usize;
    let node = &world.nodes[index];
    let lasting = ((chance.exponential(3.0) * SECOND as f64) as Nanos + 50 * MILLI).min(LASTING_MAX);
    world.trace.line(world.time.now(), format_args!("node {index} fault {fault:?}, for {:.3} s", lasting as f64 / 1e9));
    match fault {
        Fault::Reset => {
            world.count("fault: connections reset");
            node.wires().for_each(|wire| wire.reset());
        }
        Fault::Partition => {
            world.count("fault: partition");
            cut(&world, &[index], &[Way::Up, Way::Down], lasting, &mut chance).await;
        }
        Fault::OneWay => {
            world.count("fault: one-way partition");
            let way = *chance.pick(&[Way::Up, Way::Down]);
            cut(&world, &[index], &[way], lasting, &mut chance).await;
        }
        Fault::CutOffCentre => {
            world.count("fault: centre cut off");
            let tops = world.tops();
            let below: Vec<usize> =
                (tops.end..world.nodes.len()).filter(|at| tops.contains(&world.nodes[*at].parent)).collect();
            let nodes = if chance.happens(0.5) { tops.collect() } else { below };
            cut(&world, &nodes, &[Way::Up, Way::Down], lasting, &mut chance).await;
        }
        Fault::TierCrash => {
            if world.process(index).is_none() {
                return;
            }
            let silent = chance.happens(0.3);
            world.count(if silent { "fault: tier loses power" } else { "fault: tier killed" });
            world.crash_tier(index, silent);
            world.time.sleep(lasting / 2).await;
            if world.process(index).is_none() {
                world.start_tier(index);
            }
        }
        // Of several origins other things go wrong (`upsets.rs`).
        Fault::OriginCrash | Fault::SlowDisk if world.several.is_some() => {}
        Fault::OriginCrash => {
            world.count("fault: origin crashes");
            restart_origin(&world, chance.happens(0.3), lasting / 2).await;
        }
        Fault::FailingDisk => {
            let Some(store) = world.store().filter(|_| world.origin_runs()) else { return };
            let outcome = *chance.pick(&[FailedCommit::Lost, FailedCommit::Kept]);
            world.count(if outcome == FailedCommit::Kept {
                "fault: commit fails, kept"
            } else {
                "fault: commit fails, lost"
            });
            world.disk().fail_next(&store, outcome);
            // Until somebody looks after it.
            world.time.sleep(lasting).await;
            restart_origin(&world, false, lasting / 4).await;
        }
        Fault::FailingReads => {
            let Some(store) = world.store().filter(|_| world.origin_runs()) else { return };
            world.count("fault: reads of the disk fail");
            store.fail_reads(true);
            world.time.sleep(lasting / 4).await;
            store.fail_reads(false);
        }
        Fault::SlowDisk => {
            world.count("fault: slow disk");
            world.disk().set_slowness(chance.between(5, 60) as f64);
            world.time.sleep(lasting).await;
            world.disk().set_slowness(1.0);
        }
        Fault::WallJump => {
            if world.profile.expiring {
                return;
            }
            world.count("fault: wall clock set");
            let millis = chance.between(0, 7_200_000) as i64 - 3_600_000;
            // In a world of several origins the first is nobody's: theirs are set among the upsets.
            let machine = *chance.pick(&[ORIGIN, ORIGIN, index]);
            world.nodes[machine].machine.step_wall(millis);
        }
        Fault::Eviction => {
            let Some(process) = world.process(index) else { return };
            world.count("fault: everything evicted");
            (0..world.keys.len()).for_each(|key| workload::evict(&world, &process, key));
        }
        Fault::SlowFollower | Fault::StalledFollower => {
            let stalled = matches!(fault, Fault::StalledFollower);
            world.count(if stalled { "fault: follower stalls" } else { "fault: slow follower" });
            let reluctance = if stalled { lasting } else { chance.between(20, 600) * MILLI };
            set_reluctance(node, reluctance);
            world.time.sleep(lasting).await;
            set_reluctance(node, 0);
        }
        Fault::Loss => {
            world.count("fault: many messages lost");
            node.wires().for_each(|wire| wire.set_loss(0.3));
            world.time.sleep(lasting).await;
            node.wires().for_each(|wire| wire.set_loss(if world.is_over() { 0.0 } else { world.profile.loss }));
        }
    }
}

/// Interrupts wires, and mends them. What was connected may find itself so again, or not.
async fn cut(world: &World, nodes: &[usize], ways: &[Way], lasting: Nanos, chance: &mut Chance) {
    let each = |blocked| {
        for node in nodes {
            world.nodes[*node].wires().for_each(|wire| ways.iter().for_each(|way| wire.block(*way, blocked)));
        }
    };
    each(true);
    world.time.sleep(lasting).await;
    each(false);
    if chance.happens(0.5) {
        nodes.iter().for_each(|node| world.nodes[*node].wires().for_each(|wire| wire.reset()));
    }
}

/// Ends the origin's process and starts another, unless somebody is at that already.
async fn restart_origin(world: &World, silent: bool, pause: Nanos) {
    if !world.origin_runs() {
        return;
    }
    world.crash_origin(silent);
    world.time.sleep(pause).await;
    world.start_origin().await;
}

/// Mends everything: from here on nothing goes wrong any more. What is being put right already is waited for.
pub(crate) async fn heal(world: &Arc<World>) {
    for node in &world.nodes {
        for wire in node.wires() {
            wire.block(Way::Up, false);
            wire.block(Way::Down, false);
            wire.set_loss(0.0);
        }
        set_reluctance(node, 0);
    }
    world.disk().set_slowness(1.0);
    // Longer than any fault lasts.
    world.time.sleep(20 * SECOND).await;
    for index in CENTRAL..world.nodes.len() {
        if world.process(index).is_none() {
            world.start_tier(index);
        }
    }
    match &world.several {
        Some(cluster) => cluster.heal().await,
        None if !world.origin_runs() => world.start_origin().await,
        None => {}
    }
}

fn set_reluctance(node: &Node, reluctance: Nanos) {
    node.wires().for_each(|wire| wire.reluctance.store(reluctance, std::sync::atomic::Ordering::Relaxed));
}
