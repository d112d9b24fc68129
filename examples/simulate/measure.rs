//! What hundreds of locations cost and give, measured in simulated worlds: how soon a write is seen everywhere, what a purge weighs, how many reads reach the
//! origin, and what an outage of the centre does to reads and, once it is over, to the centre.
//!
//! Worlds without faults but those that are measured. Regions are as far from each other as `tests/sim/regions.rs` says, each location some milliseconds from its region.

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use kvasar::{
    cache::tier::Tier,
    kv::{
        AccountId, CacheStatus, Change, Control, Controlled, Expires, Key, NamespaceId, Read, Source as _, State,
        Version, Via, Writer as _, kept::EntryKey,
    },
    purge::feed::FeedSettings,
};

use crate::{
    chance::Chance,
    charts,
    clock::{MICRO, MILLI, Nanos, SECOND, Time},
    net::Way,
    profile::Profile,
    world::{CENTRAL, ORIGIN, Trace, World},
};

const MIB: u64 = 1 << 20;

/// A world of so many locations, each tier with room for `cache_bytes`, on wires that lose so many messages.
fn profile(edges: usize, loss: f64, cache_bytes: u64) -> Profile {
    Profile {
        edges,
        regionals: edges / 20,
        keys: 1,
        skew: 0.0,
        duration: SECOND,
        think: SECOND,
        burst: 1,
        write_pause: SECOND,
        expiring: false,
        large_values: false,
        lists: false,
        fault_pause: None,
        loss,
        commit: (MILLI, 100 * MICRO),
        drift_max: 20,
        cache_bytes,
        cache_share_max: 0.05,
        feed_interval: Duration::from_secs(1),
        feed_log_bytes: FeedSettings::default().log_bytes_max,
        feed_log_age: FeedSettings::default().log_age_max,
        upstream_deadline: Duration::from_secs(5),
        stale_after: Duration::from_secs(1),
        stale_if_unreachable: Duration::from_secs(24 * 3600),
        refills: 32,
        push_bytes_max: 1024,
        several: None,
    }
}

/// What can be measured.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum What {
    Visibility,
    OriginReads,
    Outage,
}

/// Makes the measurements asked for, or all, prints them as tables, and draws them into a folder.
pub(crate) fn run(folder: &Path, only: Option<What>) -> Result<(), Box<dyn std::error::Error>> {
    std::fs::create_dir_all(folder)?;
    let wanted = |what: What| only.is_none_or(|only| only == what);
    if wanted(What::Visibility) {
        charts::visibility(&folder.join("visibility.svg"), &all_visibility())?;
    }
    if wanted(What::OriginReads) {
        let reads = in_world(profile(330, 0.0, 64 * MIB), origin_reads);
        print_reads(&reads);
        charts::reads(&folder.join("origin-reads.svg"), &reads)?;
    }
    if wanted(What::Outage) {
        let outages: Vec<Outage> = [How::CutOff, How::CutOffWritten, How::Restarted]
            .into_iter()
            .map(|how| in_world(profile(300, 0.0, 64 * MIB), move |world| outage(world, how)))
            .collect();
        print_outages(&outages);
        charts::outages(&folder.join("outage.svg"), &outages)?;
    }
    Ok(())
}

/// Runs a program in a world of its own.
fn in_world<T: Send + 'static, F>(profile: Profile, program: impl FnOnce(Arc<World>) -> F + Send + 'static) -> T
where
    F: Future<Output = T> + Send + 'static,
{
    let time = Arc::new(Time::default());
    let worlds = Arc::clone(&time);
    time.run(async move {
        let world = World::start(&worlds, 1, profile, Trace::default()).await;
        program(world).await
    })
}

/// A namespace that no checker follows.
async fn namespace(world: &World) -> NamespaceId {
    let create = Control::CreateNamespace { title: "measured".into(), jurisdiction: None, mode: None };
    let (created, _) = centre(world).control(AccountId::from_u128(0xacc), create).await.expect("the centre is there");
    match created {
        Controlled::Namespace(namespace) => namespace.id,
        other => panic!("a namespace was asked for, not {other:?}"),
    }
}

fn centre(world: &World) -> Tier {
    world.process(CENTRAL).expect("the centre runs").tier
}

fn key(index: usize) -> Key {
    Key::new(format!("key-{index:07}")).expect("letters and digits")
}

fn put(length: usize) -> Change {
    Change::Put { value: Bytes::from(vec![b'v'; length]).into(), metadata: None, expires: Expires::Never }
}

fn within(seconds: u64) -> Read {
    Read { max_age: Duration::from_secs(seconds), ..Read::default() }
}

/// How soon what was acknowledged at the centre is seen, over all locations and writes.
pub(crate) struct Visibility {
    pub(crate) rate: u64,
    pub(crate) loss: f64,
    /// In order.
    pub(crate) delays: Vec<Nanos>,
    bytes: f64,
    pieces: f64,
}

const RATES: [u64; 3] = [1, 100, 10_000];

fn all_visibility() -> Vec<Visibility> {
    println!(
        "| writes/s | lost messages | p50 | p95 | p99 | most | bytes per purge and follower | messages per purge and follower |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let mut rows = Vec::new();
    for loss in [0.0, 0.01] {
        for rate in RATES {
            let row = in_world(profile(300, loss, 64 * MIB), move |world| visibility(world, rate, loss));
            let at = |share: f64| shown_millis(quantile(&row.delays, share));
            println!(
                "| {rate} | {:.0} % | {} | {} | {} | {} | {:.1} | {:.3} |",
                loss * 100.0,
                at(0.5),
                at(0.95),
                at(0.99),
                at(1.0),
                row.bytes,
                row.pieces,
            );
            rows.push(row);
        }
    }
    println!();
    rows
}

fn shown_millis(nanos: Nanos) -> String {
    format!("{:.0} ms", nanos as f64 / MILLI as f64)
}

pub(crate) fn quantile(sorted: &[Nanos], share: f64) -> Nanos {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share).round() as usize).copied().unwrap_or_default()
}

/// Keys that every location holds, one of which is written at a time, and looked for everywhere each millisecond.
const PROBES: usize = 20;
const PROBE_BYTES: usize = 100;

async fn visibility(world: Arc<World>, rate: u64, loss: f64) -> Visibility {
    let namespace = namespace(&world).await;
    let centre = centre(&world);
    for probe in 0..PROBES {
        centre.write(namespace, &key(probe), put(PROBE_BYTES), Via::default()).await.expect("the centre takes writes");
    }
    world.time.sleep(3 * SECOND).await;
    let tiers: Vec<Tier> = world.edges().map(|node| world.process(node).expect("it runs").tier).collect();
    for probe in 0..PROBES {
        let asking: Vec<_> = tiers
            .iter()
            .map(|tier| {
                let tier = tier.clone();
                tokio::spawn(async move { tier.get(namespace, &key(probe), &within(60)).await.map(|_| ()) })
            })
            .collect();
        for asked in asking {
            asked.await.expect("no panic").expect("the probe is there");
        }
    }
    world.time.sleep(3 * SECOND).await;
    let (sent, writes) = (Sent::of(&world), Arc::new(AtomicU64::new(0)));
    let over = Arc::new(AtomicBool::new(false));
    let writing =
        tokio::spawn(others_write(Arc::clone(&world), namespace, rate, Arc::clone(&over), Arc::clone(&writes)));
    let samples = if rate > 1000 { 60 } else { 200 };
    let mut delays = Vec::new();
    for sample in 0..samples {
        let probe = key(sample % PROBES);
        let written =
            centre.write(namespace, &probe, put(PROBE_BYTES), Via::default()).await.expect("the centre takes writes");
        writes.fetch_add(1, Ordering::Relaxed);
        let acknowledged = world.time.now();
        let mut waiting: Vec<&Tier> = tiers.iter().collect();
        while !waiting.is_empty() {
            let now = world.time.now();
            assert!(
                now < acknowledged + 60 * SECOND,
                "a write is not seen at {} locations after a minute",
                waiting.len()
            );
            waiting.retain(|tier| {
                let seen = tier
                    .held(namespace, probe.as_bytes(), &within(3600))
                    .is_some_and(|hit| hit.kept.version() >= written.version);
                if seen {
                    delays.push(now - acknowledged);
                }
                !seen
            });
            world.time.sleep(MILLI).await;
        }
        if rate == 1 {
            world.time.until(acknowledged + SECOND).await;
        }
    }
    over.store(true, Ordering::Relaxed);
    writing.await.expect("no panic");
    world.time.sleep(2 * SECOND).await;
    let followers = world.nodes.len() - 1;
    let shares = followers as f64 * writes.load(Ordering::Relaxed) as f64;
    let sent = Sent::of(&world).since(&sent);
    delays.sort_unstable();
    Visibility { rate, loss, delays, bytes: sent.bytes as f64 / shares, pieces: sent.pieces as f64 / shares }
}

/// All the other writes of the world, to keys that nobody holds.
async fn others_write(
    world: Arc<World>,
    namespace: NamespaceId,
    rate: u64,
    over: Arc<AtomicBool>,
    writes: Arc<AtomicU64>,
) {
    if rate == 1 {
        return;
    }
    let centre = centre(&world);
    let mut chance = Chance::new(rate);
    let pause = (SECOND / rate).max(10 * MILLI);
    let each = (rate * pause / SECOND) as usize;
    while !over.load(Ordering::Relaxed) {
        let batch = (0..each).map(|_| (key(1000 + chance.below(100_000) as usize), put(PROBE_BYTES))).collect();
        let next = world.time.now() + pause;
        centre.write_many(namespace, batch, Via::default()).await.expect("the centre takes writes");
        writes.fetch_add(each as u64, Ordering::Relaxed);
        world.time.until(next).await;
    }
}

/// What went down all feeds.
struct Sent {
    bytes: u64,
    pieces: u64,
}

impl Sent {
    fn of(world: &World) -> Sent {
        let sum = |count: fn(&crate::net::Wire) -> &AtomicU64| {
            world.nodes[CENTRAL..].iter().map(|node| count(&node.wire).load(Ordering::Relaxed)).sum()
        };
        Sent { bytes: sum(|wire| &wire.feed_bytes), pieces: sum(|wire| &wire.feed_pieces) }
    }

    fn since(&self, earlier: &Sent) -> Sent {
        Sent { bytes: self.bytes - earlier.bytes, pieces: self.pieces - earlier.pieces }
    }
}

/// Draws keys by Zipf's law.
struct Zipf(Vec<f64>);

impl Zipf {
    fn new(keys: usize, exponent: f64) -> Zipf {
        let mut sum = 0.0;
        let sums = (1..=keys).map(|rank| {
            sum += 1.0 / (rank as f64).powf(exponent);
            sum
        });
        Zipf(sums.collect())
    }

    fn draw(&self, chance: &mut Chance) -> usize {
        let at = chance.share() * self.0.last().copied().unwrap_or_default();
        self.0.partition_point(|sum| *sum <= at).min(self.0.len() - 1)
    }
}

/// Client reads and what of them went how far, in tenths of the whole.
pub(crate) struct Reads {
    pub(crate) tenths: Vec<Tenth>,
}

#[derive(Clone, Copy, Default)]
pub(crate) struct Tenth {
    pub(crate) client: u64,
    pub(crate) regional: u64,
    pub(crate) central: u64,
    pub(crate) origin: u64,
}

const READ_KEYS: usize = 1_000_000;
const READS_PER_EDGE: u64 = 20_000;
const READ_RATE: u64 = 100;

async fn origin_reads(world: Arc<World>) -> Reads {
    let namespace = namespace(&world).await;
    let origin = world.nodes[ORIGIN].address.served().expect("the origin runs").backend;
    // Loaded where no tier sees it, so that all caches are empty.
    for batch in 0..READ_KEYS / 1000 {
        let writes = (0..1000).map(|at| (key(batch * 1000 + at), put(100))).collect();
        origin.write_many(namespace, writes, Via::default()).await.expect("the origin takes writes");
    }
    world.time.sleep(5 * SECOND).await;
    let zipf = Arc::new(Zipf::new(READ_KEYS, 0.99));
    let client = Arc::new(AtomicU64::new(0));
    let mut clients = tokio::task::JoinSet::new();
    for node in world.edges() {
        let (world, zipf, client) = (Arc::clone(&world), Arc::clone(&zipf), Arc::clone(&client));
        clients.spawn(async move {
            let mut chance = Chance::new(node as u64);
            let tier = world.process(node).expect("it runs").tier;
            for read in 0..READS_PER_EDGE {
                if read % 10 == 0 {
                    world.time.sleep(chance.exponential(10.0 * SECOND as f64 / READ_RATE as f64) as Nanos).await;
                }
                let key = key(zipf.draw(&mut chance));
                if tier.held(namespace, key.as_bytes(), &within(60)).is_none() {
                    tier.get(namespace, &key, &within(60)).await.expect("the world is whole");
                }
                client.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let total = world.edges().len() as u64 * READS_PER_EDGE;
    let mut tenths = Vec::new();
    let mut before = Tenth::of(&world, 0);
    for tenth in 1..=10 {
        while client.load(Ordering::Relaxed) < total * tenth / 10 {
            world.time.sleep(100 * MILLI).await;
        }
        let now = Tenth::of(&world, client.load(Ordering::Relaxed));
        tenths.push(now.since(&before));
        before = now;
    }
    while clients.join_next().await.is_some() {}
    Reads { tenths }
}

impl Tenth {
    fn of(world: &World, client: u64) -> Tenth {
        let asked = |nodes: std::ops::Range<usize>| {
            world.nodes[nodes].iter().map(|node| node.address.asked.load(Ordering::Relaxed)).sum()
        };
        Tenth {
            client,
            regional: asked(CENTRAL + 1..world.edges().start),
            central: asked(CENTRAL..CENTRAL + 1),
            origin: asked(ORIGIN..ORIGIN + 1),
        }
    }

    fn since(&self, earlier: &Tenth) -> Tenth {
        Tenth {
            client: self.client - earlier.client,
            regional: self.regional - earlier.regional,
            central: self.central - earlier.central,
            origin: self.origin - earlier.origin,
        }
    }
}

fn print_reads(reads: &Reads) {
    println!("| client reads, of 330 locations | regional reads per client read | central | origin |");
    println!("|---|---|---|---|");
    let mut sum = 0;
    for tenth in &reads.tenths {
        let share = |asked: u64| asked as f64 / tenth.client as f64;
        println!(
            "| {sum} to {} | {:.4} | {:.4} | {:.4} |",
            sum + tenth.client,
            share(tenth.regional),
            share(tenth.central),
            share(tenth.origin)
        );
        sum += tenth.client;
    }
    println!();
}

/// What happens to the centre.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// Nobody reaches it, and so nobody writes.
    CutOff,
    /// Nobody reaches it but those who write.
    CutOffWritten,
    /// Its processes end, and start again afterwards: the central tier with nothing in its cache.
    Restarted,
}

impl How {
    pub(crate) fn name(self) -> &'static str {
        match self {
            How::CutOff => "cut off",
            How::CutOffWritten => "cut off, but written to",
            How::Restarted => "ended and started again",
        }
    }
}

pub(crate) struct Outage {
    pub(crate) how: How,
    /// Requests that reached the centre, in windows of [`WINDOW`].
    pub(crate) load: Vec<u64>,
    /// Reads of what the location held when the outage began.
    held: Served,
    /// Reads of what it held no more, since it had changed and nobody had read it again.
    dropped: Served,
    stale: u64,
    /// Of the oldest answer.
    age_max: Duration,
}

pub(crate) const WINDOW: Nanos = 10 * SECOND;
pub(crate) const BEFORE: Nanos = 1800 * SECOND;
/// As in the outage of 12 June 2025.
pub(crate) const AWAY: Nanos = (2 * 60 + 28) * 60 * SECOND;
pub(crate) const AFTER: Nanos = 1800 * SECOND;
const OUTAGE_KEYS: usize = 100_000;

async fn outage(world: Arc<World>, how: How) -> Outage {
    let namespace = namespace(&world).await;
    let origin = world.nodes[ORIGIN].address.served().expect("the origin runs").backend;
    for batch in 0..OUTAGE_KEYS / 1000 {
        let writes = (0..1000).map(|at| (key(batch * 1000 + at), put(100))).collect();
        origin.write_many(namespace, writes, Via::default()).await.expect("the origin takes writes");
    }
    drop(origin);
    world.time.sleep(5 * SECOND).await;
    let started = world.time.now();
    let (from, to) = (started + BEFORE, started + BEFORE + AWAY);
    let tally = Arc::new(Mutex::new(Tally::default()));
    let zipf = Arc::new(Zipf::new(OUTAGE_KEYS, 0.99));
    for node in world.edges() {
        tokio::spawn(reads(Arc::clone(&world), node, namespace, Arc::clone(&zipf), (from, to), Arc::clone(&tally)));
    }
    let pause = if how == How::CutOff { (from, to) } else { (to, to) };
    tokio::spawn(writes(Arc::clone(&world), namespace, pause));
    let mut load = Vec::new();
    let mut asked = world.nodes[CENTRAL].address.asked.load(Ordering::Relaxed);
    for window in 0..(BEFORE + AWAY + AFTER) / WINDOW {
        let at = started + window * WINDOW;
        if at == from {
            away(&world, how);
        } else if at == to {
            back(&world, how).await;
        }
        world.time.until(at + WINDOW).await;
        let now = world.nodes[CENTRAL].address.asked.load(Ordering::Relaxed);
        load.push(now - asked);
        asked = now;
    }
    world.over.store(true, Ordering::Relaxed);
    world.time.sleep(20 * SECOND).await;
    let Tally { held, dropped, stale, age_max } = *tally.lock().expect("no holder of this lock can panic");
    Outage { how, load, held, dropped, stale, age_max }
}

fn away(world: &World, how: How) {
    match how {
        How::CutOff | How::CutOffWritten => block(world, true),
        How::Restarted => {
            world.crash_tier(CENTRAL, false);
            world.crash_origin(false);
        }
    }
}

async fn back(world: &Arc<World>, how: How) {
    match how {
        How::CutOff | How::CutOffWritten => block(world, false),
        How::Restarted => {
            world.start_origin().await;
            world.start_tier(CENTRAL);
        }
    }
}

fn block(world: &World, blocked: bool) {
    for node in world.nodes[CENTRAL + 1..].iter().filter(|node| node.parent == CENTRAL) {
        node.wire.block(Way::Up, blocked);
        node.wire.block(Way::Down, blocked);
    }
}

/// How reads ended.
#[derive(Clone, Copy, Default)]
struct Served {
    yes: u64,
    no: u64,
}

/// Of the reads, during the outage, of what their location had read before.
#[derive(Clone, Copy, Default)]
struct Tally {
    held: Served,
    dropped: Served,
    stale: u64,
    age_max: Duration,
}

/// One location's readers: a read a second.
async fn reads(
    world: Arc<World>,
    node: usize,
    namespace: NamespaceId,
    zipf: Arc<Zipf>,
    (from, to): (Nanos, Nanos),
    tally: Arc<Mutex<Tally>>,
) {
    let mut chance = Chance::new(node as u64);
    let mut known = vec![false; OUTAGE_KEYS];
    // What it holds when the outage begins.
    let mut held: Option<Vec<bool>> = None;
    let tier = world.process(node).expect("it runs").tier;
    while !world.is_over() {
        world.time.sleep(chance.exponential(SECOND as f64) as Nanos).await;
        let index = zipf.draw(&mut chance);
        let asked_at = world.time.now();
        if asked_at > from && held.is_none() {
            let holds = |index| tier.memory().peek(&EntryKey { namespace, key: key(index) }).is_some();
            held = Some((0..OUTAGE_KEYS).map(|index| known[index] && holds(index)).collect());
        }
        let answer = match tier.held(namespace, key(index).as_bytes(), &within(60)) {
            Some(hit) => Ok(hit.answer(&within(60))),
            None => tier.get(namespace, &key(index), &within(60)).await,
        };
        if known[index] && asked_at > from && world.time.now() < to {
            let mut tally = tally.lock().expect("no holder of this lock can panic");
            let was_held = held.as_ref().is_some_and(|held| held[index]);
            let served = if was_held { &mut tally.held } else { &mut tally.dropped };
            match &answer {
                Ok(answer) => {
                    served.yes += 1;
                    tally.stale += u64::from(answer.status == CacheStatus::Stale);
                    tally.age_max = tally.age_max.max(answer.age);
                }
                Err(_) => served.no += 1,
            }
        }
        known[index] |= matches!(&answer, Ok(answer) if matches!(answer.state, State::Present(_)) && answer.version > Version::ZERO);
    }
}

/// Somebody's writes, at the centre while it is there: ten a second.
async fn writes(world: Arc<World>, namespace: NamespaceId, (from, to): (Nanos, Nanos)) {
    let mut chance = Chance::new(7);
    while !world.is_over() {
        world.time.sleep(chance.exponential(SECOND as f64 / 10.0) as Nanos).await;
        let key = key(chance.below(OUTAGE_KEYS as u64) as usize);
        if (from..to).contains(&world.time.now()) {
            continue;
        }
        if let Some(process) = world.process(CENTRAL) {
            // While its origin is just starting, a write is refused; nobody waits for it.
            let _ = process.tier.write(namespace, &key, put(100), Via::default()).await;
        }
    }
}

impl Outage {
    fn windows(&self, from: Nanos, to: Nanos) -> &[u64] {
        &self.load[(from / WINDOW) as usize..(to / WINDOW) as usize]
    }

    /// Requests a second that reach the centre: in the mean of the last ten minutes before the outage, and at most in a window after it.
    pub(crate) fn steady_and_peak(&self) -> (f64, f64) {
        let steady = self.windows(BEFORE - 600 * SECOND, BEFORE);
        let after = self.windows(BEFORE + AWAY, BEFORE + AWAY + AFTER);
        let seconds = (WINDOW / SECOND) as f64;
        let mean = steady.iter().sum::<u64>() as f64 / steady.len() as f64 / seconds;
        (mean, after.iter().max().copied().unwrap_or_default() as f64 / seconds)
    }
}

fn print_outages(outages: &[Outage]) {
    println!(
        "| the centre was | reads served meanwhile of what the location held | of what it had read, but a change had taken | marked stale | oldest answer | requests/s at the centre before | peak after | ratio |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for outage in outages {
        let (steady, peak) = outage.steady_and_peak();
        let share = |served: &Served| format!("{} of {}", served.yes, served.yes + served.no);
        println!(
            "| {} | {} | {} | {} | {:.0} s | {steady:.1} | {peak:.1} | {:.2} |",
            outage.how.name(),
            share(&outage.held),
            share(&outage.dropped),
            outage.stale,
            outage.age_max.as_secs_f64(),
            peak / steady
        );
    }
    println!();
}
