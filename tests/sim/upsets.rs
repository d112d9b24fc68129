//! What befalls the origins of a world that has several, and the store that they share, beside what befalls every world (`faults.rs`).

use std::sync::{Arc, atomic::Ordering};

use crate::{
    chance::Chance,
    clock::{MILLI, Nanos},
    cluster::Cluster,
    faults::{self, LASTING_MAX},
    net::{Way, Wire},
    quorum::REPLICAS,
    world::World,
};

#[derive(Clone, Copy, Debug)]
enum Upset {
    Kill,
    Pause,
    PauseBeforeCommit,
    Stop,
    CutFromStore,
    CutFromTiers,
    ReplicaDown,
    ReplicaPaused,
    ReplicaSlow,
    QuorumLost,
    Outage,
    WallStep,
    Overtaken,
    Newcomer,
}

const UPSETS: [(u32, Upset); 14] = [
    (10, Upset::Kill),
    (12, Upset::Pause),
    (8, Upset::PauseBeforeCommit),
    (6, Upset::Stop),
    (6, Upset::CutFromStore),
    (8, Upset::CutFromTiers),
    (8, Upset::ReplicaDown),
    (5, Upset::ReplicaPaused),
    (5, Upset::ReplicaSlow),
    (3, Upset::QuorumLost),
    (2, Upset::Outage),
    (3, Upset::WallStep),
    (5, Upset::Overtaken),
    (4, Upset::Newcomer),
];

/// At random moments, until the world is over.
pub(crate) fn start(world: &Arc<World>) {
    let pause = world.profile.several.as_ref().and_then(|several| several.upset_pause);
    faults::at_random(world, pause, &UPSETS, happen);
}

async fn happen(world: Arc<World>, upset: Upset, mut chance: Chance) {
    let (Some(cluster), Some(several)) = (world.several.as_ref(), world.profile.several.as_ref()) else { return };
    let lease = several.lease.as_nanos() as Nanos;
    // Some end before a lease does, some after it.
    let lasting = ((chance.exponential(1.2) * lease as f64) as Nanos + 50 * MILLI).min(LASTING_MAX);
    let running = cluster.running();
    let replica = chance.below(REPLICAS as u64) as usize;
    let any = chance.below(cluster.sites.len() as u64) as usize;
    let site = if running.is_empty() { any } else { *chance.pick(&running) };
    world
        .trace
        .line(world.time.now(), format_args!("origin {site} upset {upset:?}, for {:.3} s", lasting as f64 / 1e9));
    match upset {
        Upset::Kill | Upset::Stop | Upset::Pause | Upset::PauseBeforeCommit if running.is_empty() => {}
        Upset::Kill => {
            let silent = chance.happens(0.3);
            world.count(if silent { "upset: origin loses power" } else { "upset: origin killed" });
            cluster.kill(site, silent);
            world.time.sleep(if chance.happens(0.3) { 0 } else { lasting }).await;
            start_one(&world, cluster, site, &mut chance);
        }
        Upset::Stop => {
            world.count("upset: origin stopped");
            if chance.happens(0.5) {
                // The next one is there before.
                start_one(&world, cluster, site, &mut chance);
                world.time.sleep(lasting / 4).await;
            }
            cluster.stop(site).await;
            world.time.sleep(lasting / 4).await;
            start_one(&world, cluster, site, &mut chance);
        }
        Upset::Pause => {
            world.count(if lasting > lease { "upset: origin paused beyond its lease" } else { "upset: origin paused" });
            cluster.pause(site, lasting);
        }
        Upset::PauseBeforeCommit => {
            world.count(if lasting > lease {
                "upset: origin paused before a commit, beyond its lease"
            } else {
                "upset: origin paused before a commit"
            });
            cluster.ambush(site, lasting);
        }
        Upset::CutFromStore => {
            world.count("upset: origin cut off from the store");
            cluster.sites[site].cut.store(true, Ordering::Relaxed);
            world.time.sleep(lasting).await;
            cluster.sites[site].cut.store(false, Ordering::Relaxed);
        }
        Upset::CutFromTiers => {
            world.count("upset: origin cut off from tiers");
            let ways = *chance.pick(&[&[Way::Up, Way::Down][..], &[Way::Up], &[Way::Down]]);
            let wires = wires_to(&world, site);
            let wires = if chance.happens(0.5) { wires } else { vec![*chance.pick(&wires)] };
            block(&world, &wires, ways, lasting).await;
            if chance.happens(0.5) {
                wires.iter().for_each(|wire| wire.reset());
            }
        }
        // A commit takes its time, and meanwhile what another origin changes is heard by nobody.
        Upset::Overtaken => {
            let others: Vec<usize> = running.iter().copied().filter(|other| *other != site).collect();
            if others.is_empty() {
                return;
            }
            world.count("upset: purges lost while a commit is under way");
            let part = chance.between(lease / 16, lease / 5);
            cluster.sites[site].cut.store(true, Ordering::Relaxed);
            world.time.sleep(part).await;
            let wires = wires_to(&world, *chance.pick(&others));
            block(&world, &wires, &[Way::Down], part).await;
            wires.iter().for_each(|wire| wire.reset());
            world.time.sleep(2 * part).await;
            cluster.sites[site].cut.store(false, Ordering::Relaxed);
        }
        // Those that are there hear of it late, and so does a tier.
        Upset::Newcomer => {
            let idle = cluster.idle();
            if running.is_empty() || running.len() > several.origins || idle.is_empty() {
                return;
            }
            world.count("upset: newcomer that is heard of late");
            let newcomer = *chance.pick(&idle);
            running.iter().for_each(|site| cluster.sites[*site].cut.store(true, Ordering::Relaxed));
            cluster.start(newcomer);
            let wires = wires_to(&world, newcomer);
            block(&world, &[*chance.pick(&wires)], &[Way::Up, Way::Down], chance.between(lease / 4, 3 * lease / 4))
                .await;
            running.iter().for_each(|site| cluster.sites[*site].cut.store(false, Ordering::Relaxed));
        }
        Upset::ReplicaDown => {
            world.count("upset: replica down");
            cluster.ring.set_down(replica, true);
            world.time.sleep(lasting).await;
            cluster.ring.set_down(replica, false);
        }
        Upset::ReplicaPaused => {
            world.count("upset: replica paused");
            cluster.ring.pause(replica, lasting);
        }
        Upset::ReplicaSlow => {
            world.count("upset: replica slow");
            cluster.ring.set_slowness(replica, chance.between(10, 200) as f64);
            world.time.sleep(lasting).await;
            cluster.ring.set_slowness(replica, 1.0);
        }
        Upset::QuorumLost => {
            world.count("upset: two replicas down");
            let two = [replica, (replica + 1) % REPLICAS];
            two.iter().for_each(|replica| cluster.ring.set_down(*replica, true));
            world.time.sleep(lasting / 2).await;
            two.iter().for_each(|replica| cluster.ring.set_down(*replica, false));
        }
        Upset::Outage => {
            world.count("upset: store away");
            cluster.ring.set_outage(true);
            world.time.sleep(lasting / 2).await;
            cluster.ring.set_outage(false);
        }
        Upset::WallStep => {
            if world.profile.expiring {
                return;
            }
            world.count("upset: origin's clock set");
            let most = several.skew_millis as i64;
            cluster.sites[site].machine.step_wall(chance.between(0, 2 * most as u64) as i64 - most);
        }
    }
}

/// From the tiers that ask origins to a place of theirs.
fn wires_to(world: &World, site: usize) -> Vec<&Arc<Wire>> {
    world.tops().filter_map(|node| world.nodes[node].wires().nth(site)).collect()
}

/// Interrupts them for a while.
async fn block(world: &World, wires: &[&Arc<Wire>], ways: &[Way], lasting: Nanos) {
    let each = |blocked| wires.iter().for_each(|wire| ways.iter().for_each(|way| wire.block(*way, blocked)));
    each(true);
    world.time.sleep(lasting).await;
    each(false);
}

/// In the place of one that ended: there, or elsewhere.
fn start_one(world: &World, cluster: &Cluster, ended: usize, chance: &mut Chance) {
    let idle = cluster.idle();
    let there = idle.contains(&ended) && chance.happens(0.5);
    let several = world.profile.several.as_ref().expect("a world of several origins");
    // One more than at first while another leaves.
    if idle.is_empty() || cluster.running().len() > several.origins {
        return;
    }
    cluster.start(if there { ended } else { *chance.pick(&idle) });
}
