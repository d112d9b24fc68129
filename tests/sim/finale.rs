//! After the faults: what must be so again once everything is mended, and what must still be answered when the centre is away.
//!
//! Everything converges; nothing acknowledged is missing; what is covered by the feed is seconds old at most; a write is everywhere within its trips; what a
//! location holds is served through an outage, marked, and nothing else is; and afterwards all is as before.

use std::{sync::Arc, time::Duration};

use kvasar::kv::{
    Change, Expires, Read, Via, Writer as _,
    kept::{EntryKey, Kept},
};

use crate::{
    chance::Chance,
    checker::{KeyIndex, Seen},
    clock::{MILLI, Nanos, SECOND},
    faults,
    net::Way,
    workload::{self, Verdict},
    world::{CENTRAL, ORIGIN, World},
};

/// Keys that are looked at, and locations.
const KEYS_MAX: usize = 12;
const NODES_MAX: usize = 40;

pub(crate) async fn run(world: &Arc<World>) {
    let mut chance = world.fork_chance();
    faults::heal(world).await;
    let keys = sample(&mut chance, 0..world.keys.len(), KEYS_MAX);
    let nodes = sample(&mut chance, CENTRAL..world.nodes.len(), NODES_MAX);
    converged(world, &nodes, &keys).await;
    covered(world, &nodes, &keys).await;
    pushed(world, &nodes, &mut chance).await;
    one_left(world, &nodes, &keys, &mut chance).await;
    away(world, &nodes, &keys, &mut chance).await;
    back(world, &nodes, &keys).await;
}

fn sample(chance: &mut Chance, of: std::ops::Range<usize>, most: usize) -> Vec<usize> {
    let mut all: Vec<usize> = of.collect();
    for at in (1..all.len()).rev() {
        all.swap(at, chance.below(at as u64 + 1) as usize);
    }
    all.truncate(most);
    all
}

fn read_within(max_age: Duration) -> Read {
    Read { max_age, at_least: None, held: None, asker: None }
}

fn nanos(duration: Duration) -> Nanos {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A location that follows its feed again knows within seconds of what changed before, and answers everything.
async fn converged(world: &Arc<World>, nodes: &[usize], keys: &[KeyIndex]) {
    for max_age in [Duration::from_secs(4), Duration::ZERO] {
        for node in nodes {
            for key in keys {
                let mut asked_at = world.time.now();
                let mut verdict = workload::read_now(world, *node, *key, read_within(max_age)).await;
                // Each tier asks again for what expired on its way up, and not each deadline leaves room for so many ways. Later it has expired for all.
                if let Verdict::Refused(error) = &verdict
                    && world.profile.expiring
                    && error.kind.is_outage()
                {
                    world.count("reads after all is mended that were repeated");
                    world.time.sleep(5 * SECOND).await;
                    asked_at = world.time.now();
                    verdict = workload::read_now(world, *node, *key, read_within(max_age)).await;
                }
                expect_truth(
                    world,
                    *node,
                    *key,
                    verdict,
                    asked_at.saturating_sub(nanos(max_age)),
                    "after all is mended",
                );
            }
        }
    }
}

/// The answer must be there, unmarked, and what has been true since `from`.
fn expect_truth(world: &Arc<World>, node: usize, key: KeyIndex, verdict: Verdict, from: Nanos, when: &str) {
    let at = world.time.now();
    match verdict {
        Verdict::Answered { seen, stale } => {
            let true_then = world.checker().was(key, seen, from, at);
            // With origins and replicas far away, an answer may take longer than a reader waits who could have something stale.
            let impatient = world.several.is_some() && stale && world.profile.stale_after < Duration::from_secs(1);
            if !true_then && !impatient {
                world.fail(node, Some(key), format!("not converged {when}: {seen:x?}"));
            }
            // Who waits for less than a long way takes what is stale may do so with upstream well.
            if stale && world.profile.stale_after >= Duration::from_secs(1) {
                world.fail(node, Some(key), format!("marked stale {when}"));
            }
        }
        Verdict::Refused(error) => world.fail(node, Some(key), format!("refused {when}: {error}")),
        Verdict::Gone => {}
    }
}

/// The sum of the trips from the origin down to a node.
fn trips(world: &World, node: usize) -> (Nanos, u32) {
    let (mut at, mut sum, mut tiers) = (node, 0, 0);
    while at != ORIGIN {
        sum += world.nodes[at].wires().map(|wire| wire.distance()).max().unwrap_or(0);
        tiers += 1;
        at = world.nodes[at].parent;
    }
    (sum, tiers)
}

/// What messages may take longer than their distance says: jitter, and the pauses in which a busy feed gathers.
const PATIENCE: Nanos = 400 * MILLI;

/// Whatever is held and covered is at most an interval and a trip there and back old, per tier.
async fn covered(world: &Arc<World>, nodes: &[usize], keys: &[KeyIndex]) {
    world.time.sleep(6 * SECOND).await;
    for node in nodes {
        let Some(process) = world.process(*node) else { continue };
        let (trips, tiers) = trips(world, *node);
        let interval = nanos(world.profile.feed_interval);
        // What follows several origins pings them on its own, four times as often.
        let fleet = if world.several.is_some() { interval / 4 } else { 0 };
        let most = interval * u64::from(tiers) + fleet + 2 * trips + PATIENCE;
        for key in keys {
            let entry = EntryKey { namespace: world.namespace(), key: world.keys[*key].clone() };
            if process.tier.memory().peek(&entry).is_none_or(|kept| kept.expires_at() != kvasar::clock::Moment::MAX) {
                continue;
            }
            if let Some(age) = workload::read_held(world, *node, &process, *key, read_within(Duration::from_secs(3600)))
                && nanos(age) > most
            {
                let most = Duration::from_nanos(most);
                world.fail(
                    *node,
                    Some(*key),
                    format!("{age:?} old, though the feed is whole: at most {most:?} are due"),
                );
            }
        }
    }
}

/// A write is known wherever its key is held, as soon as its purge has come down.
async fn pushed(world: &Arc<World>, nodes: &[usize], chance: &mut Chance) {
    let edges = world.edges();
    let node = edges.start + chance.below(edges.len() as u64) as usize;
    let key = chance.below(world.keys.len() as u64) as usize;
    let Some(process) = world.process(node) else { return };
    let number = world.checker().attempt(key, 100);
    let change = Change::Put { value: workload::value(number, 100), metadata: None, expires: Expires::Never };
    let written = process.tier.write(world.namespace(), &world.keys[key], change, Via::default()).await;
    let version = match written {
        Ok(written) => written.version.as_u64(),
        // Not each deadline leaves room for two trips around the world, and several between replicas.
        Err(error)
            if world.several.is_some()
                && error.kind.is_outage()
                && world.profile.upstream_deadline <= Duration::from_secs(2) =>
        {
            return world.count("writes after all is mended that took too long");
        }
        Err(error) => return world.fail(node, Some(key), format!("a write after all is mended: {error}")),
    };
    let farthest = nodes.iter().map(|node| trips(world, *node).0).max().unwrap_or(0);
    world.time.sleep(farthest + PATIENCE).await;
    for node in nodes {
        let verdict = workload::read_now(world, *node, key, read_within(Duration::from_secs(3600))).await;
        if let Verdict::Answered { seen, .. } = verdict
            && seen != (Seen::Present { version })
        {
            world.fail(
                *node,
                Some(key),
                format!("{seen:x?}, although the purge for {version:x} should be here by now"),
            );
        }
    }
}

/// All origins but one die, and do not come back: once their leases are over, everything is as before.
async fn one_left(world: &Arc<World>, nodes: &[usize], keys: &[KeyIndex], chance: &mut Chance) {
    let Some(cluster) = &world.several else { return };
    let running = cluster.running();
    let stays = *chance.pick(&running);
    for site in running {
        if site != stays {
            cluster.kill(site, chance.happens(0.5));
        }
    }
    cluster.settle().await;
    // Until each tier has looked again for those that it does not reach.
    world.time.sleep(20 * SECOND).await;
    let (nodes, keys) = (&nodes[..nodes.len().min(8)], &keys[..keys.len().min(3)]);
    converged(world, nodes, keys).await;
    covered(world, nodes, keys).await;
    pushed(world, nodes, chance).await;
    world.count("worlds that went on with one origin");
}

/// The centre is away: what is held is served, with its age; what is asked for as the latest is not.
async fn away(world: &Arc<World>, nodes: &[usize], keys: &[KeyIndex], chance: &mut Chance) {
    match (chance.below(3), &world.several) {
        (0, None) => world.crash_origin(chance.happens(0.5)),
        (0, Some(cluster)) => {
            if chance.happens(0.5) {
                cluster.ring.set_outage(true);
                world.time.sleep(4 * SECOND).await;
            } else {
                cluster.running().into_iter().for_each(|site| cluster.kill(site, chance.happens(0.5)));
            }
        }
        (1, _) => {
            for wire in world.tops().flat_map(|top| world.nodes[top].wires()) {
                wire.block(Way::Up, true);
                wire.block(Way::Down, true);
            }
        }
        _ => {
            for node in &world.nodes[CENTRAL..] {
                let way = *chance.pick(&[Way::Up, Way::Down]);
                node.wires().for_each(|wire| wire.block(way, true));
            }
        }
    }
    world.time.sleep(nanos(world.profile.feed_interval) * 4 + 2 * SECOND).await;
    for node in nodes {
        let Some(process) = world.process(*node) else { continue };
        for key in &keys[..keys.len().min(3)] {
            let entry = EntryKey { namespace: world.namespace(), key: world.keys[*key].clone() };
            let held = process.tier.memory().peek(&entry);
            let lasting = |kept: &Kept| kept.expires_at() == kvasar::clock::Moment::MAX;
            let Some(_) = held.filter(|kept| lasting(kept)) else { continue };
            let stale_max = world.profile.stale_if_unreachable;
            let verdict = workload::read_now(world, *node, *key, read_within(Duration::from_secs(1))).await;
            // Unless it is older by now than what is served at all.
            if let Verdict::Refused(error) = verdict
                && stale_max > Duration::from_secs(3600)
            {
                world.fail(*node, Some(*key), format!("held, and not served while upstream is away: {error}"));
            }
            if let Verdict::Answered { .. } = workload::read_now(world, *node, *key, read_within(Duration::ZERO)).await
            {
                world.fail(*node, Some(*key), "the latest, while the origin can't be asked".into());
            }
            world.count("reads through the last outage");
        }
    }
}

/// And when it is back, everything is as before.
async fn back(world: &Arc<World>, nodes: &[usize], keys: &[KeyIndex]) {
    faults::heal(world).await;
    for node in &nodes[..nodes.len().min(8)] {
        for key in keys {
            let asked_at = world.time.now();
            let verdict = workload::read_now(world, *node, *key, read_within(Duration::ZERO)).await;
            expect_truth(world, *node, *key, verdict, asked_at, "after the last outage");
        }
    }
}
