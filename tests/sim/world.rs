//! A world: machines, wires, the shipped origin and tiers on them, and what holds them to the truth.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use kvasar::{
    cache::{
        fleet::{Dial, Fleet, FleetSettings},
        tier::{Tier, TierSettings},
    },
    clock::Clock,
    kv::{Account, AccountId, Backend, Control, Controlled, Key, NamespaceId, Writer as _},
    metrics::Metrics,
    origin::{Origin, OriginSettings},
    purge::feed::FeedSettings,
};
use tokio_util::sync::CancellationToken;

use crate::{
    chance::Chance,
    checker::{Checker, Floor, KeyIndex, Violation},
    clock::{Life, MICRO, MILLI, Machine, Nanos, SimClock, Time},
    cluster::{Cluster, Site},
    net::{Address, Link, Served, Wire},
    profile::Profile,
    regions::{REGIONS, ROUND_TRIP_MILLIS},
    store::{Disk, SimStore, key_name},
};

/// The number of the origin, and of the central tier, among the nodes.
pub(crate) const ORIGIN: usize = 0;
pub(crate) const CENTRAL: usize = 1;

const ACCOUNT: AccountId = AccountId::from_u128(0xacc);

pub(crate) struct World {
    pub(crate) time: Arc<Time>,
    pub(crate) profile: Profile,
    namespace: OnceLock<NamespaceId>,
    pub(crate) keys: Vec<Key>,
    pub(crate) nodes: Vec<Node>,
    origin: Mutex<OriginProcess>,
    disk: Arc<Disk>,
    /// In the place of the two, where there are several origins.
    pub(crate) several: Option<Cluster>,
    pub(crate) checker: Arc<Mutex<Checker>>,
    chance: Mutex<Chance>,
    /// Clients and faults stop once this is set.
    pub(crate) over: AtomicBool,
    pub(crate) counts: Mutex<BTreeMap<&'static str, u64>>,
    pub(crate) trace: Trace,
    metrics: Metrics,
    /// Versions that somebody has learnt, to be demanded elsewhere.
    pub(crate) learnt: Mutex<Vec<u64>>,
}

/// A machine and what runs on it. The first is the origin's, or stands for all of them; then come the central tiers', the regional ones' and the edge locations'.
pub(crate) struct Node {
    pub(crate) parent: usize,
    pub(crate) machine: Arc<Machine>,
    /// To the machine above; the origin's leads nowhere.
    pub(crate) wire: Arc<Wire>,
    /// To the other sites, where several origins are above.
    more_wires: Vec<Arc<Wire>>,
    pub(crate) address: Arc<Address>,
    process: Mutex<Option<Process>>,
    /// What the location had shown before its last restart.
    pub(crate) shown_before: Mutex<Vec<Floor>>,
}

/// A tier at work.
#[derive(Clone)]
pub(crate) struct Process {
    pub(crate) life: Arc<Life>,
    pub(crate) tier: Tier,
    /// Per key, what it has shown.
    pub(crate) shown: Arc<Mutex<Vec<Floor>>>,
    /// Reads that wait for an answer.
    pub(crate) waiting: Arc<AtomicU64>,
}

#[derive(Default)]
struct OriginProcess {
    life: Option<Arc<Life>>,
    store: Option<Arc<SimStore>>,
    /// Kept for as long as it runs: it stops when it is dropped.
    origin: Option<Arc<Origin>>,
}

impl World {
    /// A world with its origin at work and its tiers started, but nobody to use it.
    pub(crate) async fn start(time: &Arc<Time>, seed: u64, profile: Profile, trace: Trace) -> Arc<World> {
        let mut chance = Chance::new(seed ^ 0x77);
        let skew = profile.several.as_ref().map_or(0, |several| Cluster::skew(&profile, several));
        let checker = Arc::new(Mutex::new(Checker::new(profile.keys).with_skew(skew)));
        let metrics = Metrics::default();
        let several = profile
            .several
            .as_ref()
            .map(|several| Cluster::new(time, &profile, several, &checker, metrics.origin(), &trace, chance.fork()));
        let nodes = nodes(time, &profile, several.as_ref(), &mut chance);
        let disk = Disk::new(&nodes[ORIGIN].machine, &checker, profile.commit, chance.fork());
        let world = Arc::new(World {
            time: Arc::clone(time),
            namespace: OnceLock::new(),
            keys: (0..profile.keys).map(|key| Key::new(key_name(key)).expect("letters and digits")).collect(),
            profile,
            nodes,
            origin: Mutex::default(),
            disk,
            several,
            checker,
            chance: Mutex::new(chance),
            over: AtomicBool::new(false),
            counts: Mutex::default(),
            trace,
            metrics,
            learnt: Mutex::default(),
        });
        match &world.several {
            None => world.start_origin().await,
            Some(cluster) => cluster.start(0),
        }
        world.make_namespace().await;
        if let Some(cluster) = &world.several {
            cluster.start_missing();
            cluster.settle().await;
            cluster.ring.set_calm(false);
        }
        for node in CENTRAL..world.nodes.len() {
            world.start_tier(node);
        }
        world
    }

    pub(crate) fn fork_chance(&self) -> Chance {
        lock(&self.chance).fork()
    }

    pub(crate) fn checker(&self) -> MutexGuard<'_, Checker> {
        lock(&self.checker)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    pub(crate) fn fail(&self, node: usize, key: Option<KeyIndex>, what: String) {
        let at = self.time.now();
        self.trace.line(at, format_args!("node {node} VIOLATION {what}"));
        self.checker().fail(Violation { at, node, key, what });
        self.over.store(true, Ordering::Relaxed);
    }

    pub(crate) fn count(&self, what: &'static str) {
        *lock(&self.counts).entry(what).or_default() += 1;
    }

    pub(crate) fn edges(&self) -> std::ops::Range<usize> {
        1 + self.profile.centrals() + self.profile.regionals..self.nodes.len()
    }

    /// The tiers that have the origin above them, or all of them.
    pub(crate) fn tops(&self) -> std::ops::Range<usize> {
        CENTRAL..CENTRAL + self.profile.centrals()
    }

    /// Starts the origin on what its disk has.
    pub(crate) async fn start_origin(&self) {
        let life = Life::begin(&self.time);
        let node = &self.nodes[ORIGIN];
        let seed = lock(&self.chance).next();
        let clock = SimClock::shared(&node.machine, &life, seed);
        let store = {
            let mut process = lock(&self.origin);
            let store = Arc::new(self.disk.start(process.store.as_deref(), &life));
            process.life = Some(Arc::clone(&life));
            process.store = Some(Arc::clone(&store));
            store
        };
        let settings = OriginSettings {
            push_bytes_max: self.profile.push_bytes_max,
            feed: self.feed_settings(),
            ..OriginSettings::default()
        };
        match Origin::open(store, clock, settings, self.metrics.origin()).await {
            Ok(origin) => {
                lock(&self.origin).origin = Some(Arc::clone(&origin));
                node.address.serve(Some(Served { life, backend: origin }));
                self.trace.line(self.time.now(), format_args!("node 0 the origin runs"));
            }
            Err(error) => self.fail(ORIGIN, None, format!("the origin does not start: {error}")),
        }
    }

    async fn make_namespace(&self) {
        let origin = match &self.several {
            None => lock(&self.origin).origin.clone().expect("it was just started"),
            Some(cluster) => cluster.opened(0).await,
        };
        let account = Account { id: ACCOUNT, name: "everyone".into() };
        origin.ensure_account(&account).await.expect("a new store takes an account");
        let create = Control::CreateNamespace { title: "all".into(), jurisdiction: None, mode: None };
        let (created, _) = origin.control(ACCOUNT, create).await.expect("a new store takes a namespace");
        let Controlled::Namespace(namespace) = created else { panic!("a namespace was created") };
        match &self.several {
            None => self.disk.watch(namespace.id),
            Some(cluster) => cluster.watch(namespace.id),
        }
        self.namespace.set(namespace.id).expect("it is made once");
    }

    pub(crate) fn namespace(&self) -> NamespaceId {
        *self.namespace.get().expect("the world has started")
    }

    /// Ends the origin's process as a loss of power does.
    pub(crate) fn crash_origin(&self, silent: bool) {
        let mut process = lock(&self.origin);
        let Some(life) = process.life.take() else { return };
        self.trace.line(self.time.now(), format_args!("node 0 the origin crashes"));
        life.end(silent);
        self.nodes[ORIGIN].address.serve(None);
        let origin = process.origin.take();
        drop(process);
        drop(origin);
    }

    pub(crate) fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    pub(crate) fn store(&self) -> Option<Arc<SimStore>> {
        lock(&self.origin).store.clone()
    }

    fn feed_settings(&self) -> FeedSettings {
        FeedSettings { log_bytes_max: self.profile.feed_log_bytes, log_age_max: self.profile.feed_log_age }
    }

    pub(crate) fn start_tier(&self, index: usize) {
        let node = &self.nodes[index];
        let life = Life::begin(&self.time);
        let clock = SimClock::shared(&node.machine, &life, lock(&self.chance).next());
        let profile = &self.profile;
        let upstream: Arc<dyn Backend> = match &self.several {
            Some(cluster) if node.parent == ORIGIN => self.fleet(cluster, index, &life, &clock),
            _ => {
                let parent = &self.nodes[node.parent].address;
                Arc::new(Link::new(&self.time, &node.wire, &life, parent, profile.upstream_deadline))
            }
        };
        let settings = TierSettings {
            name: format!("node {index}"),
            cache_bytes: profile.cache_bytes,
            cache_share_max: profile.cache_share_max,
            stale_if_unreachable: profile.stale_if_unreachable,
            upstream_deadline: profile.upstream_deadline,
            stale_after: profile.stale_after,
            refills: profile.refills,
            feed_interval: profile.feed_interval,
            feed: self.feed_settings(),
        };
        let tier = Tier::new(upstream, format!("node {}", node.parent), clock, settings);
        tokio::spawn(tier.clone().follow(CancellationToken::new()));
        node.address.serve(Some(Served { life: Arc::clone(&life), backend: Arc::new(tier.clone()) }));
        let shown = Arc::new(Mutex::new(vec![Floor::default(); self.keys.len()]));
        *lock(&node.process) = Some(Process { life, tier, shown, waiting: Arc::default() });
        self.trace.line(self.time.now(), format_args!("node {index} starts"));
    }

    /// What a tier that follows all origins has above it.
    fn fleet(&self, cluster: &Cluster, index: usize, life: &Arc<Life>, clock: &Arc<dyn Clock>) -> Arc<dyn Backend> {
        let node = &self.nodes[index];
        let deadline = self.profile.upstream_deadline;
        let links = cluster.sites.iter().zip(node.wires()).map(|(site, wire)| {
            let link: Arc<dyn Backend> = Arc::new(Link::new(&self.time, wire, life, &site.address, deadline));
            (site.name.clone(), link)
        });
        let links: BTreeMap<String, Arc<dyn Backend>> = links.collect();
        let dial: Dial = Arc::new(move |address| Arc::clone(&links[address]));
        let settings = FleetSettings {
            name: format!("node {index}"),
            deadline,
            write_deadline: deadline.max(std::time::Duration::from_secs(30)),
            feed_interval: self.profile.feed_interval,
            feed: self.feed_settings(),
        };
        let metrics = self.metrics.fleet(&settings.name);
        let fleet = Fleet::new(dial, cluster.named(), Arc::clone(clock), settings, metrics);
        tokio::spawn(fleet.clone().run(CancellationToken::new()));
        Arc::new(fleet)
    }

    /// Ends a tier's process: with its connections, or, as when the power goes, without a word.
    pub(crate) fn crash_tier(&self, index: usize, silent: bool) {
        let node = &self.nodes[index];
        let Some(process) = lock(&node.process).take() else { return };
        self.trace.line(self.time.now(), format_args!("node {index} crashes"));
        node.address.serve(None);
        process.life.end(silent);
        let mut before = lock(&node.shown_before);
        for (before, shown) in before.iter_mut().zip(&*lock(&process.shown)) {
            *before = (*before).max(*shown);
        }
    }

    pub(crate) fn process(&self, index: usize) -> Option<Process> {
        lock(&self.nodes[index].process).clone()
    }

    pub(crate) fn origin_runs(&self) -> bool {
        lock(&self.origin).origin.is_some()
    }
}

impl Node {
    /// All wires to what is above.
    pub(crate) fn wires(&self) -> impl Iterator<Item = &Arc<Wire>> {
        std::iter::once(&self.wire).chain(&self.more_wires)
    }
}

/// The machines, and how far each is from the one above it, or from each site on which an origin may be.
fn nodes(time: &Arc<Time>, profile: &Profile, several: Option<&Cluster>, chance: &mut Chance) -> Vec<Node> {
    let centrals = profile.centrals();
    let tiers = 1 + centrals + profile.regionals;
    let count = tiers + profile.edges;
    let mut regions: Vec<usize> = Vec::with_capacity(count);
    let mut nodes = Vec::with_capacity(count);
    let central = |chance: &mut Chance| {
        if centrals == 1 { CENTRAL } else { CENTRAL + chance.below(centrals as u64) as usize }
    };
    for index in 0..count {
        let is_edge = index >= tiers;
        let (parent, region) = if index <= CENTRAL {
            // The origin and the central tier stand side by side, in the first region.
            (ORIGIN, 0)
        } else if index <= centrals {
            (ORIGIN, chance.below(REGIONS.len() as u64) as usize)
        } else if !is_edge {
            (central(chance), chance.below(REGIONS.len() as u64) as usize)
        } else if profile.regionals == 0 {
            (central(chance), index % REGIONS.len())
        } else {
            let parent = 1 + centrals + chance.below(profile.regionals as u64) as usize;
            (parent, regions[parent])
        };
        regions.push(region);
        // From the region's centre to the location itself.
        let last_mile = if is_edge { chance.between(200, 4000) * MICRO } else { 0 };
        let drift = chance.between(0, 2 * profile.drift_max as u64) as i64 - profile.drift_max;
        let wall_error = chance.between(0, 4000) as i64 - 2000;
        let wire = |above: usize, chance: &mut Chance| {
            let trip = ROUND_TRIP_MILLIS[region][above] * MILLI;
            Wire::new(time, trip / 2 + last_mile, profile.loss, chance.fork())
        };
        let sites: &[Site] = match several {
            Some(cluster) if parent == ORIGIN && index != ORIGIN => &cluster.sites,
            _ => &[],
        };
        let above = sites.first().map_or(regions[parent], |site| site.region);
        nodes.push(Node {
            parent,
            machine: Arc::new(Machine::new(time, drift, wall_error)),
            wire: wire(above, chance),
            more_wires: sites.iter().skip(1).map(|site| wire(site.region, chance)).collect(),
            address: Arc::default(),
            process: Mutex::default(),
            shown_before: Mutex::new(vec![Floor::default(); profile.keys]),
        });
    }
    nodes
}

/// What happened, line by line, if anyone wants to know.
#[derive(Clone, Default)]
pub(crate) struct Trace(Option<Arc<Mutex<String>>>);

impl Trace {
    pub(crate) fn kept() -> Trace {
        Trace(Some(Arc::default()))
    }

    pub(crate) fn is_kept(&self) -> bool {
        self.0.is_some()
    }

    pub(crate) fn line(&self, at: Nanos, what: fmt::Arguments<'_>) {
        if let Some(text) = &self.0 {
            let mut text = lock(text);
            writeln!(text, "{:14.6} {what}", at as f64 / 1e9).expect("a text takes what is written");
        }
    }

    /// As long as the guard lives, what the product itself logs on this thread goes into the trace, too.
    pub(crate) fn listen(&self, time: &Arc<Time>) -> Option<tracing::subscriber::DefaultGuard> {
        let text = Arc::clone(self.0.as_ref()?);
        let time = Arc::clone(time);
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || Logged { text: Arc::clone(&text), time: Arc::clone(&time) })
            .with_max_level(tracing::Level::INFO)
            .without_time()
            .with_ansi(false)
            .with_target(false)
            .finish();
        Some(tracing::subscriber::set_default(subscriber))
    }

    pub(crate) fn text(&self) -> String {
        self.0.as_ref().map(|text| lock(text).clone()).unwrap_or_default()
    }
}

/// A line of the product's log.
struct Logged {
    text: Arc<Mutex<String>>,
    time: Arc<Time>,
}

impl std::io::Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let at = self.time.now() as f64 / 1e9;
        lock(&self.text).push_str(&format!("{at:14.6} log {}", String::from_utf8_lossy(bytes).trim_start()));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder of this lock can panic")
}
