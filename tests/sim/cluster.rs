//! Several origins on one store: the machines on which one may run, each one's process, and what tells the checker of what they write.

use std::sync::{
    Arc, Mutex, OnceLock,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use crate::{
    chance::Chance,
    checker::{Checker, Effect, KeyIndex, Violation},
    clock::{Life, MILLI, Machine, Nanos, SECOND, SimClock, Time},
    net::{Address, Served},
    profile::{Profile, Several},
    quorum::{Ring, Witness},
    regions::REGIONS,
    store::key_index,
    world::{Trace, lock},
};
use bytes::Bytes;
use kvasar::{
    kv::{NamespaceId, Version},
    metrics::OriginMetrics,
    origin::{
        Origin, OriginSettings,
        host::{Host, Open},
    },
    purge::feed::FeedSettings,
    store::{
        RowChange, Table,
        keys::{self, Place, Record},
    },
};

pub(crate) struct Cluster {
    time: Arc<Time>,
    several: Several,
    settings: Settings,
    pub(crate) ring: Arc<Ring>,
    pub(crate) sites: Vec<Site>,
    truth: Arc<Truth>,
    trace: Trace,
    chance: Mutex<Chance>,
}

struct Settings {
    push_bytes_max: usize,
    feed_log_bytes: usize,
    feed_log_age: std::time::Duration,
    metrics: OriginMetrics,
}

/// A machine on which an origin may run.
pub(crate) struct Site {
    /// As the origins tell it to those who follow them.
    pub(crate) name: String,
    pub(crate) region: usize,
    pub(crate) machine: Arc<Machine>,
    pub(crate) address: Arc<Address>,
    /// Whether the store can't be reached from there.
    pub(crate) cut: Arc<AtomicBool>,
    process: Mutex<Option<Process>>,
}

struct Process {
    life: Arc<Life>,
    host: Arc<Host>,
    ambush: Arc<AtomicU64>,
    /// Whether somebody has told it to.
    stopping: bool,
}

/// How long a planned end may take.
const STOP_MAX: Nanos = 8 * SECOND;

impl Cluster {
    pub(crate) fn new(
        time: &Arc<Time>,
        profile: &Profile,
        several: &Several,
        checker: &Arc<Mutex<Checker>>,
        metrics: OriginMetrics,
        trace: &Trace,
        mut chance: Chance,
    ) -> Cluster {
        let truth = Arc::new(Truth {
            checker: Arc::clone(checker),
            namespace: OnceLock::new(),
            right: Machine::new(time, 0, 0),
            trace: trace.clone(),
        });
        let sites = (0..several.sites).map(|index| {
            let drift = chance.between(0, 2 * profile.drift_max as u64) as i64 - profile.drift_max;
            let error = chance.between(0, 2 * several.skew_millis) as i64 - several.skew_millis as i64;
            let region = if chance.happens(0.6) { 0 } else { chance.below(REGIONS.len() as u64) as usize };
            Site {
                name: format!("origin-{index}.example:7000"),
                region,
                machine: Arc::new(Machine::new(time, drift, error)),
                address: Arc::default(),
                cut: Arc::default(),
                process: Mutex::default(),
            }
        });
        let sites = sites.collect();
        let witness: Arc<dyn Witness> = Arc::clone(&truth) as Arc<dyn Witness>;
        let ring = Ring::new(time, several.store, witness, chance.fork());
        ring.set_calm(true);
        let settings = Settings {
            push_bytes_max: profile.push_bytes_max,
            feed_log_bytes: profile.feed_log_bytes,
            feed_log_age: profile.feed_log_age,
            metrics,
        };
        let (time, several, trace) = (Arc::clone(time), several.clone(), trace.clone());
        Cluster { time, several, settings, ring, sites, truth, trace, chance: Mutex::new(chance) }
    }

    /// From here on the checker follows this namespace.
    pub(crate) fn watch(&self, namespace: NamespaceId) {
        self.truth.namespace.set(namespace).expect("one namespace is watched");
    }

    /// By how much two origins may differ about when something expires.
    pub(crate) fn skew(profile: &Profile, several: &Several) -> Nanos {
        // Of a world's whole time, which is below this.
        let drifted = profile.drift_max as u64 * 900 * SECOND / 1_000_000;
        several.skew_millis * MILLI + drifted
    }

    pub(crate) fn start(&self, index: usize) {
        let site = &self.sites[index];
        let life = Life::begin(&self.time);
        let clock = SimClock::shared(&site.machine, &life, lock(&self.chance).next());
        let store = Arc::new(self.ring.store(&life, &site.cut));
        let ambush = Arc::clone(&store.ambush);
        let Settings { push_bytes_max, feed_log_bytes, feed_log_age, .. } = self.settings;
        let (address, lease, metrics) = (site.name.clone(), self.several.lease, self.settings.metrics.clone());
        let opening = Arc::clone(&clock);
        let open: Open = Box::new(move || {
            let settings = OriginSettings {
                address: address.clone(),
                lease,
                push_bytes_max,
                feed: FeedSettings { log_bytes_max: feed_log_bytes, log_age_max: feed_log_age },
                ..OriginSettings::default()
            };
            Box::pin(Origin::open(Arc::clone(&store) as _, Arc::clone(&opening), settings, metrics.clone()))
        });
        let host = Host::new(open, clock);
        tokio::spawn(Arc::clone(&host).run());
        site.address.serve(Some(Served { life: Arc::clone(&life), backend: Arc::clone(&host) as _ }));
        *lock(&site.process) = Some(Process { life, host, ambush, stopping: false });
        self.log(index, "starts");
    }

    /// The origin there, once it can be asked.
    pub(crate) async fn opened(&self, index: usize) -> Arc<Origin> {
        for _ in 0..1000 {
            let origin = lock(&self.sites[index].process).as_ref().and_then(|process| process.host.origin().ok());
            if let Some(origin) = origin {
                return origin;
            }
            self.time.sleep(100 * MILLI).await;
        }
        panic!("the first origin does not start");
    }

    /// Ends a process: with its connections, or, as when the power goes, without a word.
    pub(crate) fn kill(&self, index: usize, silent: bool) {
        let site = &self.sites[index];
        let Some(process) = lock(&site.process).take() else { return };
        self.log(index, "is killed");
        site.address.serve(None);
        process.life.end(silent);
    }

    /// Nothing of the process runs for so long.
    pub(crate) fn pause(&self, index: usize, nanos: Nanos) {
        if let Some(process) = &*lock(&self.sites[index].process) {
            self.log(index, "is paused");
            if self.several.suspends { process.life.suspend(nanos) } else { process.life.pause(nanos) }
        }
    }

    /// The same, from the moment at which it has decided on its next commit, and nothing of that has left it.
    pub(crate) fn ambush(&self, index: usize, nanos: Nanos) {
        if let Some(process) = &*lock(&self.sites[index].process) {
            self.log(index, "is to be paused before its next commit");
            process.ambush.store(nanos, Ordering::Relaxed);
        }
    }

    /// Lets an origin leave as planned, and ends its process then, or when that takes too long.
    pub(crate) async fn stop(&self, index: usize) {
        let site = &self.sites[index];
        let stopping = lock(&site.process).as_mut().and_then(|process| {
            let first = !std::mem::replace(&mut process.stopping, true);
            first.then(|| (Arc::clone(&process.life), Arc::clone(&process.host)))
        });
        let Some((life, host)) = stopping else { return };
        self.log(index, "is stopped");
        tokio::select! {
            biased;
            () = host.leave() => self.log(index, "has stopped"),
            () = self.time.sleep(STOP_MAX) => self.log(index, "is killed, as it does not stop"),
        }
        let is_there = lock(&site.process).as_ref().is_some_and(|process| Arc::ptr_eq(&process.life, &life));
        if is_there {
            self.kill(index, false);
        }
    }

    pub(crate) fn runs(&self, index: usize) -> bool {
        lock(&self.sites[index].process).is_some()
    }

    pub(crate) fn running(&self) -> Vec<usize> {
        (0..self.sites.len()).filter(|index| self.runs(*index)).collect()
    }

    pub(crate) fn idle(&self) -> Vec<usize> {
        (0..self.sites.len()).filter(|index| !self.runs(*index)).collect()
    }

    /// What the tiers' configuration says.
    pub(crate) fn named(&self) -> Vec<String> {
        self.sites[..self.count_named()].iter().map(|site| site.name.clone()).collect()
    }

    fn count_named(&self) -> usize {
        if self.several.names_all { self.several.sites } else { self.several.origins }
    }

    /// Starts so many that as many run as did at first, and one at least where the configuration says.
    pub(crate) fn start_missing(&self) {
        if self.running().iter().all(|index| *index >= self.count_named()) {
            self.start(0);
        }
        while self.running().len() < self.several.origins {
            let Some(index) = self.idle().first().copied() else { return };
            self.start(index);
        }
    }

    /// Everything is well again. What may still come from before is waited for, and whoever joins may write.
    pub(crate) async fn heal(&self) {
        self.ring.set_calm(true);
        self.ring.set_outage(false);
        for replica in 0..crate::quorum::REPLICAS {
            self.ring.set_down(replica, false);
            self.ring.set_slowness(replica, 1.0);
        }
        for site in &self.sites {
            site.cut.store(false, Ordering::Relaxed);
            if let Some(process) = &*lock(&site.process) {
                process.ambush.store(0, Ordering::Relaxed);
            }
        }
        self.start_missing();
        self.settle().await;
        while !self.ring.is_still() {
            self.time.sleep(SECOND).await;
        }
    }

    /// Until who has died is off the list, and who has joined writes.
    pub(crate) async fn settle(&self) {
        self.time.sleep(self.several.lease.as_nanos() as Nanos * 3 + 8 * SECOND).await;
    }

    fn log(&self, index: usize, what: &str) {
        self.trace.line(self.time.now(), format_args!("origin {index} {what}"));
    }
}

/// Tells the checker what comes to the replicas.
struct Truth {
    checker: Arc<Mutex<Checker>>,
    /// Whose keys the checker follows.
    namespace: OnceLock<NamespaceId>,
    /// With the right time.
    right: Machine,
    trace: Trace,
}

impl Truth {
    fn key(&self, table: Table, row: &Bytes) -> Option<KeyIndex> {
        if table != Table::Entry {
            return None;
        }
        let (namespace, key) = keys::parse_entry(row).expect("the origin writes what it can read");
        (Some(&namespace) == self.namespace.get()).then(|| key_index(key.as_bytes()))
    }

    fn effect(&self, change: &RowChange) -> Result<Effect, String> {
        let Some(value) = &change.value else { return Ok(Effect::Delete) };
        let record = Record::decode(&change.key, value).expect("the origin writes what it can read");
        if record.version != change.version {
            return Err(format!("a record of version {} in a change of version {}", record.version, change.version));
        }
        if record.place == Place::Deleted {
            return Ok(Effect::Delete);
        }
        let expires_at = record.expiration.map(|seconds| self.right.when_wall_shows(seconds * 1000));
        Ok(Effect::Put { expires_at })
    }

    fn fail(&self, at: Nanos, key: KeyIndex, what: String) {
        lock(&self.checker).fail(Violation { at, node: 0, key: Some(key), what });
    }
}

impl Witness for Truth {
    fn arrived(&self, at: Nanos, change: &RowChange) {
        let Some(key) = self.key(change.table, &change.key) else { return };
        let version = change.version.as_u64();
        let outcome = self.effect(change).and_then(|effect| lock(&self.checker).arrived(at, key, version, effect));
        match outcome {
            Ok(()) if self.trace.is_kept() => {
                let record = change.value.as_ref().and_then(|value| Record::decode(&change.key, value).ok());
                let name = record.and_then(|record| record.named.first().map(|named| named.id.0)).unwrap_or(0);
                self.trace.line(at, format_args!("store key {key} {version:x} at a replica, name {name:x}"));
            }
            Ok(()) => {}
            Err(what) => self.fail(at, key, what),
        }
    }

    fn reached(&self, at: Nanos, table: Table, row: &Bytes, version: Version) {
        let Some(key) = self.key(table, row) else { return };
        lock(&self.checker).reached(at, key, version.as_u64());
        self.trace.line(at, format_args!("store key {key} {:x} at a quorum", version.as_u64()));
    }

    fn differ(&self, at: Nanos, change: &RowChange) {
        let what =
            format!("two changes of version {:016x} differ, in table {}", change.version.as_u64(), change.table.name());
        lock(&self.checker).fail(Violation { at, node: 0, key: self.key(change.table, &change.key), what });
    }
}
