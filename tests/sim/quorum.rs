//! A store shared by several origins: three replicas, each with rows of its own, and no moment at which a write takes effect.
//!
//! What it may do, as Apache Cassandra does at consistency QUORUM: a change goes to all replicas, and reaches each when it does; it is acknowledged once two have it. A
//! read asks two, a third where one of them is slow, and repairs what is older at one of them before it answers. Replicas are slow, pause, go down and come back with what they
//! had, and with what was kept for them meanwhile or without it. A commit may fail with nothing, a part or all of it done, at all replicas or at one, at once or minutes later.
//! A row's greatest version stands at each replica, whatever comes when; removals and what has expired are versions like others, for longer than a world lasts.
//!
//! Agreed records are in `agreement.rs`. Whoever is told of each change's coming ([`Witness`]) knows from when on a read may see it, and from when on it must.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{
    future::{join_all, try_join_all},
    stream::{FuturesUnordered, StreamExt},
};
use kvasar::{
    error::{Error, Result},
    kv::Version,
    store::{Agreement, Batch, Durability, RowChange, Store, Table},
};
use tokio::sync::mpsc;

use crate::{
    agreement::Agreed,
    chance::Chance,
    clock::{Life, MICRO, MILLI, Machine, Nanos, SECOND, Time},
};

pub(crate) const REPLICAS: usize = 3;
pub(crate) const QUORUM: usize = 2;

/// After which another replica is asked, too.
const SPECULATION: Nanos = 50 * MILLI;

/// Is told what comes to the replicas, at the moment at which it does.
pub(crate) trait Witness: Send + Sync {
    /// A replica has been handed a change; it may have later ones of this row.
    fn arrived(&self, at: Nanos, change: &RowChange);
    /// From here on each read finds this version of a row or a later one.
    fn reached(&self, at: Nanos, table: Table, key: &Bytes, version: Version);
    /// Two changes of a row with one version differ.
    fn differ(&self, at: Nanos, change: &RowChange);
}

/// How the replicas do their work, all in all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    /// Of one message, in the mean.
    pub(crate) trip: Nanos,
    /// Share of the messages to a replica that come seconds to a minute late.
    pub(crate) late: f64,
    /// Share of the commits whose outcome their caller is not told.
    pub(crate) unknown: f64,
    /// Whether what a replica missed while it was down is kept for it.
    pub(crate) hints: bool,
    /// Whether reads repair what they find differing. Only a test that can fail does without.
    pub(crate) repairs: bool,
    /// How long a caller waits.
    pub(crate) deadline: Nanos,
}

pub(crate) struct Ring {
    pub(crate) time: Arc<Time>,
    /// By whose wall clock rows expire.
    machine: Machine,
    pub(crate) manner: Manner,
    witness: Arc<dyn Witness>,
    state: Mutex<State>,
}

pub(crate) struct State {
    pub(crate) chance: Chance,
    replicas: [Replica; REPLICAS],
    pub(crate) outage: bool,
    /// Whether no message is late and no outcome unknown but by what replicas do.
    pub(crate) calm: bool,
    /// Messages that may still change something.
    pub(crate) under_way: u64,
    pub(crate) agreed: BTreeMap<String, Agreed>,
}

struct Replica {
    rows: BTreeMap<Row, Cell>,
    down: bool,
    paused_until: Nanos,
    slowness: f64,
    /// What it missed and is to get once it is back.
    kept: Vec<Arc<[RowChange]>>,
}

type Row = (Table, Bytes);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Cell {
    version: Version,
    value: Option<Bytes>,
    expires: Option<u64>,
}

/// What becomes of a commit.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Done,
    /// Nothing leaves.
    Lost,
    /// One replica alone gets it.
    OnOne,
    /// Some of its rows leave.
    InPart,
    /// All comes, and nobody says so.
    Unsaid,
    /// All comes, seconds to minutes after the caller gave up.
    Late,
}

impl Ring {
    pub(crate) fn new(time: &Arc<Time>, manner: Manner, witness: Arc<dyn Witness>, chance: Chance) -> Arc<Ring> {
        let replica =
            || Replica { rows: BTreeMap::new(), down: false, paused_until: 0, slowness: 1.0, kept: Vec::new() };
        let state = State {
            chance,
            replicas: std::array::from_fn(|_| replica()),
            outage: false,
            calm: false,
            under_way: 0,
            agreed: BTreeMap::new(),
        };
        let machine = Machine::new(time, 0, 0);
        Arc::new(Ring { time: Arc::clone(time), machine, manner, witness, state: Mutex::new(state) })
    }

    /// The store as a process sees it, as long as its site is not cut off.
    pub(crate) fn store(self: &Arc<Self>, life: &Arc<Life>, cut: &Arc<AtomicBool>) -> RingStore {
        RingStore { ring: Arc::clone(self), life: Arc::clone(life), cut: Arc::clone(cut), ambush: Arc::default() }
    }

    pub(crate) fn set_down(self: &Arc<Self>, replica: usize, down: bool) {
        let mut state = self.lock();
        state.replicas[replica].down = down;
        if down {
            return;
        }
        for changes in std::mem::take(&mut state.replicas[replica].kept) {
            let delay = state.chance.exponential(2.0 * SECOND as f64) as Nanos;
            self.send(&mut state, replica, changes, delay, None);
        }
    }

    pub(crate) fn pause(&self, replica: usize, nanos: Nanos) {
        let until = self.time.now() + nanos;
        let paused_until = &mut self.lock().replicas[replica].paused_until;
        *paused_until = (*paused_until).max(until);
    }

    pub(crate) fn set_slowness(&self, replica: usize, slowness: f64) {
        self.lock().replicas[replica].slowness = slowness;
    }

    /// Nobody is answered any more, until it is over.
    pub(crate) fn set_outage(&self, outage: bool) {
        self.lock().outage = outage;
    }

    pub(crate) fn set_calm(&self, calm: bool) {
        self.lock().calm = calm;
    }

    /// Whether nothing is on its way that may still change something.
    pub(crate) fn is_still(&self) -> bool {
        self.lock().under_way == 0
    }

    /// Whether enough replicas do something.
    pub(crate) fn has_quorum(&self) -> bool {
        let now = self.time.now();
        let state = self.lock();
        let up = state.replicas.iter().filter(|replica| !replica.down && replica.paused_until <= now).count();
        !state.outage && up >= QUORUM
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock can panic")
    }

    fn trip(&self, state: &mut State, replica: usize) -> Nanos {
        let mean = self.manner.trip as f64 * state.replicas[replica].slowness;
        (mean / 2.0 + state.chance.exponential(mean / 2.0)) as Nanos
    }

    /// Sends changes to a replica, whoever asked for it going on or not. Who hears of their arrival learns which replica has them.
    fn send(
        self: &Arc<Self>,
        state: &mut State,
        replica: usize,
        changes: Arc<[RowChange]>,
        delay: Nanos,
        heard: Option<mpsc::UnboundedSender<usize>>,
    ) {
        state.under_way += 1;
        let ring = Arc::clone(self);
        tokio::spawn(async move {
            ring.time.sleep(delay).await;
            let applied = ring.deliver(replica, changes).await;
            ring.lock().under_way -= 1;
            if let Some(heard) = heard.filter(|_| applied) {
                let back = ring.trip(&mut ring.lock(), replica);
                ring.time.sleep(back).await;
                // Whoever asked may have gone away.
                let _ = heard.send(replica);
            }
        });
    }

    /// Whether the replica has applied them; one that is down gets them later, or never.
    async fn deliver(&self, replica: usize, changes: Arc<[RowChange]>) -> bool {
        loop {
            let paused_until = {
                let mut state = self.lock();
                let to = &mut state.replicas[replica];
                if to.down {
                    if self.manner.hints {
                        to.kept.push(changes);
                    }
                    return false;
                }
                if to.paused_until <= self.time.now() {
                    changes.iter().for_each(|change| self.apply(&mut state, replica, change));
                    return true;
                }
                to.paused_until
            };
            self.time.until(paused_until).await;
        }
    }

    fn apply(&self, state: &mut State, replica: usize, change: &RowChange) {
        let RowChange { table, key, value, version, expires } = change;
        let (at, row) = (self.time.now(), (*table, key.clone()));
        self.witness.arrived(at, change);
        let before = state.reached(&row);
        let rows = &mut state.replicas[replica].rows;
        let cell = Cell { version: *version, value: value.clone(), expires: *expires };
        match rows.get(&row) {
            Some(standing) if standing.version > *version => return,
            Some(standing) if standing.version == *version => {
                if *standing != cell {
                    self.witness.differ(at, change);
                }
                return;
            }
            _ => {}
        }
        rows.insert(row.clone(), cell);
        let after = state.reached(&row);
        if let Some(version) = after.filter(|_| after > before) {
            self.witness.reached(at, *table, key, version);
        }
    }

    /// Changes rows, each by itself; done when a quorum has each of them.
    async fn write(self: &Arc<Self>, rows: Vec<RowChange>, fate: Fate) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let deadline = self.time.sleep(self.manner.deadline);
        let mut groups = Vec::new();
        {
            let mut state = self.lock();
            // What is of one batch mostly travels together.
            let together = state.chance.happens(0.8);
            let pieces = if together { vec![rows] } else { rows.into_iter().map(|row| vec![row]).collect() };
            let one = state.chance.below(REPLICAS as u64) as usize;
            for piece in pieces {
                let (heard, hearing) = mpsc::unbounded_channel();
                groups.push(hearing);
                if matches!(fate, Fate::InPart) && (together || state.chance.happens(0.5)) {
                    continue;
                }
                let changes: Arc<[RowChange]> = piece.into();
                for replica in 0..REPLICAS {
                    if matches!(fate, Fate::OnOne) && replica != one {
                        continue;
                    }
                    let mut delay = self.trip(&mut state, replica);
                    if state.chance.happens(self.manner.late) && !state.calm {
                        delay += late(&mut state.chance);
                    }
                    if matches!(fate, Fate::Late) {
                        delay += self.manner.deadline + late(&mut state.chance);
                    }
                    self.send(&mut state, replica, Arc::clone(&changes), delay, Some(heard.clone()));
                }
            }
        }
        let all_heard = join_all(groups.into_iter().map(async |mut hearing: mpsc::UnboundedReceiver<usize>| {
            for _ in 0..QUORUM {
                if hearing.recv().await.is_none() {
                    // Whoever is down says nothing.
                    std::future::pending::<()>().await;
                }
            }
        }));
        tokio::select! {
            biased;
            _ = all_heard, if matches!(fate, Fate::Done) => Ok(()),
            () = deadline => Err(Error::unavailable("too few replicas have acknowledged the write in time")),
        }
    }

    /// What a quorum has of these rows, the removed ones among them; of what differed, each has the last before this answers.
    async fn read(self: &Arc<Self>, query: Query) -> Result<BTreeMap<Row, Cell>> {
        let reading = async {
            let (order, third_at_once) = {
                let mut state = self.lock();
                let first = state.chance.below(REPLICAS as u64) as usize;
                let turn = if state.chance.happens(0.5) { 1 } else { 2 };
                (
                    std::array::from_fn::<usize, REPLICAS, _>(|at| (first + at * turn) % REPLICAS),
                    state.chance.happens(0.1),
                )
            };
            let mut asked = FuturesUnordered::new();
            let at_once = if third_at_once { REPLICAS } else { QUORUM };
            order[..at_once].iter().for_each(|replica| asked.push(self.look(*replica, &query)));
            let mut found = Vec::new();
            let speculation = self.time.sleep(SPECULATION);
            tokio::pin!(speculation);
            let mut speculated = third_at_once;
            while found.len() < QUORUM {
                tokio::select! {
                    biased;
                    Some(answer) = asked.next() => found.push(answer),
                    () = &mut speculation, if !speculated => {
                        speculated = true;
                        asked.push(self.look(order[QUORUM], &query));
                    }
                }
            }
            let merged = merge(&found);
            if self.manner.repairs {
                self.repair(&found, &merged).await;
            }
            merged
        };
        tokio::select! {
            biased;
            merged = reading => Ok(merged),
            () = self.time.sleep(self.manner.deadline) => Err(Error::unavailable("too few replicas have answered the read in time")),
        }
    }

    async fn look(&self, replica: usize, query: &Query) -> (usize, BTreeMap<Row, Cell>) {
        let there = self.trip(&mut self.lock(), replica);
        self.time.sleep(there).await;
        let found = loop {
            let paused_until = {
                let state = self.lock();
                let asked = &state.replicas[replica];
                if !asked.down && asked.paused_until <= self.time.now() {
                    break query.find(&asked.rows);
                }
                if asked.down { None } else { Some(asked.paused_until) }
            };
            match paused_until {
                Some(until) => self.time.until(until).await,
                None => std::future::pending().await,
            }
        };
        let back = self.trip(&mut self.lock(), replica);
        self.time.sleep(back).await;
        (replica, found)
    }

    /// Brings what answered with something older up to what was merged, or another replica in its place.
    async fn repair(self: &Arc<Self>, found: &[(usize, BTreeMap<Row, Cell>)], merged: &BTreeMap<Row, Cell>) {
        let (heard, mut hearing) = mpsc::unbounded_channel();
        let mut behind = Vec::new();
        for (replica, rows) in found {
            let older = |row: &Row, cell: &Cell| rows.get(row).is_none_or(|found| found.version < cell.version);
            let changes: Vec<_> =
                merged.iter().filter(|(row, cell)| older(row, cell)).map(|(row, cell)| cell.change(row)).collect();
            if !changes.is_empty() {
                behind.push(*replica);
                let mut state = self.lock();
                let delay = self.trip(&mut state, *replica);
                self.send(&mut state, *replica, changes.into(), delay, Some(heard.clone()));
            }
        }
        if behind.is_empty() {
            return;
        }
        let speculation = self.time.sleep(SPECULATION);
        tokio::pin!(speculation);
        let mut speculated = false;
        while !behind.is_empty() {
            tokio::select! {
                biased;
                Some(replica) = hearing.recv() => {
                    // With another that has all of it, each row has its quorum.
                    let is_other = found.iter().all(|(asked, _)| *asked != replica);
                    behind.retain(|at| *at != replica && !is_other);
                }
                () = &mut speculation, if !speculated => {
                    speculated = true;
                    let all: Arc<[RowChange]> = merged.iter().map(|(row, cell)| cell.change(row)).collect();
                    let other = (0..REPLICAS).find(|at| found.iter().all(|(asked, _)| asked != at));
                    if let Some(other) = other {
                        let mut state = self.lock();
                        let delay = self.trip(&mut state, other);
                        self.send(&mut state, other, all, delay, Some(heard.clone()));
                    }
                }
            }
        }
    }

    fn fate(&self) -> Fate {
        let mut state = self.lock();
        if !state.chance.happens(self.manner.unknown) || state.calm {
            return Fate::Done;
        }
        *state.chance.pick(&[Fate::Lost, Fate::OnOne, Fate::OnOne, Fate::InPart, Fate::Unsaid, Fate::Late])
    }
}

/// Mostly seconds, at times more than a minute.
fn late(chance: &mut Chance) -> Nanos {
    let mean = if chance.happens(0.2) { 30.0 } else { 3.0 };
    ((chance.exponential(mean) * SECOND as f64) as Nanos).min(90 * SECOND)
}

fn merge(found: &[(usize, BTreeMap<Row, Cell>)]) -> BTreeMap<Row, Cell> {
    let mut merged: BTreeMap<Row, Cell> = BTreeMap::new();
    for (row, cell) in found.iter().flat_map(|(_, rows)| rows) {
        match merged.get(row) {
            Some(known) if known.version >= cell.version => {}
            _ => {
                merged.insert(row.clone(), cell.clone());
            }
        }
    }
    merged
}

impl State {
    /// The version that each read of this row finds, or a later one.
    fn reached(&self, row: &Row) -> Option<Version> {
        let mut versions: Vec<Version> =
            self.replicas.iter().filter_map(|replica| Some(replica.rows.get(row)?.version)).collect();
        versions.sort_unstable();
        (versions.len() >= QUORUM).then(|| versions[versions.len() - QUORUM])
    }
}

impl Cell {
    fn change(&self, (table, key): &Row) -> RowChange {
        let Cell { version, value, expires } = self.clone();
        RowChange { table: *table, key: key.clone(), value, version, expires }
    }
}

enum Query {
    Row(Row),
    Range { table: Table, from: Bytes, to: Bytes },
}

impl Query {
    fn find(&self, rows: &BTreeMap<Row, Cell>) -> BTreeMap<Row, Cell> {
        match self {
            Query::Row(row) => rows.get(row).map(|cell| (row.clone(), cell.clone())).into_iter().collect(),
            Query::Range { table, from, to } => {
                let prefix = &from[..from.len().min(table.prefix_bytes())];
                let start = Bound::Included((*table, from.clone()));
                let end = if to.is_empty() { Bound::Unbounded } else { Bound::Excluded((*table, to.clone())) };
                let range =
                    rows.range((start, end)).take_while(|((of, key), _)| of == table && key.starts_with(prefix));
                range.map(|(row, cell)| (row.clone(), cell.clone())).collect()
            }
        }
    }
}

/// One process's use of the ring.
pub(crate) struct RingStore {
    pub(crate) ring: Arc<Ring>,
    life: Arc<Life>,
    /// Whether nothing gets from its machine to any replica, or back.
    cut: Arc<AtomicBool>,
    /// How long the process is to be paused just when it has decided on its next commit, and nothing of that has left it.
    pub(crate) ambush: Arc<AtomicU64>,
}

impl RingStore {
    /// A request leaves the process, which may be paused before it has; an error when it gets nowhere.
    pub(crate) async fn leave(&self) -> Result<()> {
        self.life.check().await;
        let inside = self.ring.lock().chance.exponential(20.0 * MICRO as f64) as Nanos;
        self.ring.time.sleep(inside).await;
        self.life.check().await;
        if self.is_cut() {
            return Err(self.unanswered().await);
        }
        Ok(())
    }

    /// An answer comes back.
    pub(crate) async fn come_back(&self) -> Result<()> {
        if self.is_cut() {
            return Err(self.unanswered().await);
        }
        self.life.check().await;
        Ok(())
    }

    fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Relaxed) || self.ring.lock().outage
    }

    /// Refused at once, or only at the deadline.
    pub(crate) async fn unanswered(&self) -> Error {
        let patient = self.ring.lock().chance.happens(0.7);
        self.ring.time.sleep(if patient { self.ring.manner.deadline } else { MILLI }).await;
        self.life.check().await;
        Error::unavailable("the database can't be reached")
    }

    async fn read(&self, query: Query) -> Result<BTreeMap<Row, Cell>> {
        self.leave().await?;
        let found = self.ring.read(query).await;
        self.come_back().await?;
        found
    }

    fn live(&self, cell: Cell) -> Option<Bytes> {
        let now = self.ring.machine.wall_millis() / 1000;
        cell.value.filter(|_| cell.expires.is_none_or(|expires| expires > now))
    }
}

#[async_trait]
impl Store for RingStore {
    async fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>> {
        let row = (table, Bytes::copy_from_slice(key));
        let mut found = self.read(Query::Row(row.clone())).await?;
        Ok(found.remove(&row).and_then(|cell| self.live(cell)))
    }

    async fn get_many(&self, table: Table, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>> {
        try_join_all(keys.iter().map(|key| self.get(table, key))).await
    }

    async fn scan(&self, table: Table, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>> {
        if !to.is_empty() && from >= to {
            return Ok(Vec::new());
        }
        let (from, to) = (Bytes::copy_from_slice(from), Bytes::copy_from_slice(to));
        let found = self.read(Query::Range { table, from, to }).await?;
        let live = found.into_iter().filter_map(|((_, key), cell)| Some((key, self.live(cell)?)));
        Ok(live.take(limit).collect())
    }

    async fn commit(&self, batch: Batch, _: Durability) -> Result<()> {
        let (chunks, rows): (Vec<_>, Vec<_>) =
            batch.changes.into_iter().partition(|change| change.table == Table::Chunk);
        let fate = self.ring.fate();
        let ambush = self.ambush.swap(0, Ordering::Relaxed);
        if ambush > 0 {
            self.life.pause(ambush);
        }
        if let Err(error) = self.leave().await {
            // What the network has kept may come when it lets things through again.
            if matches!(fate, Fate::Late | Fate::Unsaid) || self.ring.lock().chance.happens(0.3) {
                self.keep(chunks, rows);
            }
            return Err(error);
        }
        if matches!(fate, Fate::Lost) {
            return Err(self.unanswered().await);
        }
        let written = async {
            self.ring.write(chunks, fate).await?;
            self.ring.write(rows, fate).await
        };
        let written = written.await;
        self.come_back().await?;
        written
    }

    fn in_place(&self) -> Option<Arc<dyn Store>> {
        None
    }

    fn agreement(&self) -> Option<&dyn Agreement> {
        Some(self)
    }
}

/// How long the network keeps what it can't deliver.
const KEPT_MAX: Nanos = 30 * SECOND;

impl RingStore {
    fn keep(&self, chunks: Vec<RowChange>, rows: Vec<RowChange>) {
        let (ring, cut) = (Arc::clone(&self.ring), Arc::clone(&self.cut));
        ring.lock().under_way += 1;
        tokio::spawn(async move {
            let until = ring.time.now() + KEPT_MAX;
            let is_cut = || cut.load(Ordering::Relaxed) || ring.lock().outage;
            while is_cut() && ring.time.now() < until {
                ring.time.sleep(200 * MILLI).await;
            }
            if !is_cut() {
                // Nobody waits for it any more.
                if ring.write(chunks, Fate::Done).await.is_ok() {
                    let _ = ring.write(rows, Fate::Done).await;
                }
            }
            ring.lock().under_way -= 1;
        });
    }
}
