//! Clients of a cluster: what they ask, what they write down, and whether it was right.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use kvasar::{
    cache::remote::{Remote, RemoteSettings},
    clock::{Clock, Moment},
    kv::{CacheStatus, Change, Expires, Key, NamespaceId, Read, Source, State, Value, Version, Via, Writer},
    metrics::Metrics,
};
use tokio::{sync::Semaphore, task::JoinHandle};

use crate::{
    checker::{Answered, Checker, Demand, Effect, Floor, Seen},
    clock::Nanos,
};

/// Keys that are written and read all the time.
const KEYS: usize = 200;
const WRITES_PER_SECOND: u64 = 200;
const READS_PER_SECOND: u64 = 2000;
const COLD_READS_PER_SECOND: u64 = 10;
/// Requests under way at a time.
const UNDER_WAY_MAX: usize = 2000;
const TICK: Duration = Duration::from_millis(10);
const VALUE_BYTES: usize = 100;
/// Longer than an edge takes to give up.
const PATIENCE: Duration = Duration::from_secs(60);

/// A location, as its clients reach it.
pub(crate) struct Edge {
    remote: Remote,
}

impl Edge {
    pub(crate) fn new(address: SocketAddr, secret: &str, clock: Arc<dyn Clock>) -> Edge {
        let settings = RemoteSettings {
            address: address.to_string(),
            secret: secret.to_owned(),
            deadline: PATIENCE,
            write_deadline: PATIENCE,
            concurrency: UNDER_WAY_MAX,
            delay: Duration::ZERO,
        };
        Edge { remote: Remote::new(settings, clock, Metrics::default().tier("client")).expect("a client") }
    }
}

#[derive(Clone, Copy)]
struct WriteRecord {
    key: usize,
    attempt: u64,
    edge: usize,
    from: Nanos,
    /// When it was acknowledged, and as what.
    done: Option<(Nanos, Version)>,
}

#[derive(Clone, Copy)]
struct ReadRecord {
    edge: usize,
    key: usize,
    from: Nanos,
    to: Nanos,
    max_age: Duration,
    at_least: Option<Version>,
    /// `None` for one that failed.
    answer: Option<AnswerRecord>,
}

#[derive(Clone, Copy)]
struct AnswerRecord {
    version: Version,
    /// Of which attempt it is, if there was a value.
    attempt: Option<u64>,
    age: Duration,
    status: CacheStatus,
}

#[derive(Default)]
struct Records {
    writes: Vec<WriteRecord>,
    reads: Vec<ReadRecord>,
    errors: Vec<String>,
    cold: u64,
    cold_failed: u64,
}

pub(crate) struct Traffic {
    edges: Vec<Edge>,
    namespace: NamespaceId,
    clock: Arc<dyn Clock>,
    began: Moment,
    records: Mutex<Records>,
    attempts: AtomicU64,
    cold_written: AtomicU64,
    cold_read: AtomicU64,
    /// The version that was acknowledged last.
    acknowledged: AtomicU64,
    stopping: AtomicBool,
}

pub(crate) struct Running {
    traffic: Arc<Traffic>,
    generator: JoinHandle<()>,
}

impl Running {
    /// Lets what is under way end.
    pub(crate) async fn stop(self) -> Arc<Traffic> {
        self.traffic.stopping.store(true, Ordering::SeqCst);
        self.generator.await.expect("the generator ends by itself");
        self.traffic
    }
}

fn key(index: usize) -> Key {
    Key::new(format!("key-{index:03}")).expect("a short key")
}

fn cold_key(index: u64) -> Key {
    Key::new(format!("cold-{index:06}")).expect("a short key")
}

fn value(attempt: u64) -> Bytes {
    let mut value = vec![0; VALUE_BYTES];
    value[..8].copy_from_slice(&attempt.to_be_bytes());
    value.into()
}

impl Traffic {
    pub(crate) fn new(edges: Vec<Edge>, namespace: NamespaceId, clock: Arc<dyn Clock>) -> Arc<Traffic> {
        let began = clock.now();
        Arc::new(Traffic {
            edges,
            namespace,
            clock,
            began,
            records: Mutex::default(),
            attempts: AtomicU64::new(0),
            cold_written: AtomicU64::new(0),
            cold_read: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
        })
    }

    fn now(&self) -> Nanos {
        u64::try_from(self.clock.now().since(self.began).as_nanos()).expect("a test takes no centuries")
    }

    fn records(&self) -> std::sync::MutexGuard<'_, Records> {
        self.records.lock().expect("nobody panics with it")
    }

    /// Lets both edges hold all keys, and the first alone the cold ones.
    pub(crate) async fn warm_up(&self) {
        for index in 0..KEYS {
            self.write(0, index).await;
        }
        for edge in 0..self.edges.len() {
            for index in 0..KEYS {
                self.read(edge, index, Duration::from_secs(60), None).await;
            }
        }
        assert_eq!(self.records().errors, Vec::<String>::new(), "nothing has died yet");
    }

    pub(crate) fn start(self: &Arc<Traffic>) -> Running {
        let traffic = Arc::clone(self);
        let generator = tokio::spawn(async move { traffic.generate().await });
        Running { traffic: Arc::clone(self), generator }
    }

    async fn generate(self: &Arc<Traffic>) {
        let places = Arc::new(Semaphore::new(UNDER_WAY_MAX));
        let (mut writes, mut reads, mut cold) = (0, 0, 0);
        let started = self.clock.now();
        while !self.stopping.load(Ordering::SeqCst) {
            self.clock.sleep(TICK).await;
            let passed = u64::try_from(self.clock.now().since(started).as_millis()).expect("a test takes no centuries");
            let due = |rate: u64, done: u64| (rate * passed / 1000).saturating_sub(done);
            for _ in 0..due(WRITES_PER_SECOND, writes) {
                writes += 1;
                let (edge, index) = (self.draw(self.edges.len()), self.draw(KEYS));
                self.spawn(&places, async move |traffic| traffic.write(edge, index).await).await;
            }
            for _ in 0..due(READS_PER_SECOND, reads) {
                reads += 1;
                let (edge, index) = (self.draw(self.edges.len()), self.draw(KEYS));
                let (max_age, at_least) = match self.draw(50) {
                    0 => (Duration::ZERO, None),
                    // What any client has written, a session takes elsewhere.
                    1 | 2 => {
                        let version = Version::from_u64(self.acknowledged.load(Ordering::SeqCst));
                        (Duration::from_secs(60), Some(version))
                    }
                    3..9 => (Duration::from_secs(10), None),
                    _ => (Duration::from_secs(60), None),
                };
                self.spawn(&places, async move |traffic| traffic.read(edge, index, max_age, at_least).await).await;
            }
            for _ in 0..due(COLD_READS_PER_SECOND, cold) {
                cold += 1;
                self.spawn(&places, async move |traffic| traffic.read_cold().await).await;
            }
        }
        let all = u32::try_from(UNDER_WAY_MAX).expect("a small number");
        drop(places.acquire_many(all).await.expect("it is never closed"));
    }

    async fn spawn<F: Future<Output = ()> + Send + 'static>(
        self: &Arc<Traffic>,
        places: &Arc<Semaphore>,
        work: impl FnOnce(Arc<Traffic>) -> F,
    ) {
        let place = Arc::clone(places).acquire_owned().await.expect("it is never closed");
        let work = work(Arc::clone(self));
        tokio::spawn(async move {
            work.await;
            drop(place);
        });
    }

    fn draw(&self, below: usize) -> usize {
        (self.clock.random() % below as u64) as usize
    }

    async fn write(&self, edge: usize, index: usize) {
        let attempt = self.attempts.fetch_add(1, Ordering::SeqCst);
        let change = Change::Put { value: Value::Whole(value(attempt)), metadata: None, expires: Expires::Never };
        let from = self.now();
        let written = self.edges[edge].remote.write(self.namespace, &key(index), change, Via::default()).await;
        let to = self.now();
        let done = match written {
            Ok(written) => {
                self.acknowledged.fetch_max(written.version.as_u64(), Ordering::SeqCst);
                Some((to, written.version))
            }
            Err(error) => {
                self.failed(from, to, format!("writing {index} at edge {edge}: {error:?}"));
                None
            }
        };
        self.records().writes.push(WriteRecord { key: index, attempt, edge, from, done });
    }

    async fn read(&self, edge: usize, index: usize, max_age: Duration, at_least: Option<Version>) {
        let read = Read { max_age, at_least, ..Read::default() };
        let from = self.now();
        let answer = self.edges[edge].remote.get(self.namespace, &key(index), &read).await;
        let answer = match answer {
            Ok(answer) => match answer.state {
                State::Present(entry) => match entry.value.collect(1 << 20).await {
                    Ok(found) => Ok((answer.version, Some(found), answer.age, answer.status)),
                    Err(error) => Err(error),
                },
                State::Absent => Ok((answer.version, None, answer.age, answer.status)),
                State::Unchanged { .. } => panic!("nothing was held"),
            },
            Err(error) => Err(error),
        };
        let to = self.now();
        let answer = match answer {
            Ok((version, found, age, status)) => {
                let attempt = found.map(|found| {
                    let number = found.first_chunk::<8>().map_or(u64::MAX, |number| u64::from_be_bytes(*number));
                    if found == value(number) { number } else { u64::MAX }
                });
                Some(AnswerRecord { version, attempt, age, status })
            }
            Err(error) => {
                self.failed(
                    from,
                    to,
                    format!("reading {index} at edge {edge}, max_age {max_age:?}, at least {at_least:?}: {error:?}"),
                );
                None
            }
        };
        self.records().reads.push(ReadRecord { edge, key: index, from, to, max_age, at_least, answer });
    }

    /// Writes a key at the first edge, and reads at the second one that was written there a while ago and that the second has never asked for.
    async fn read_cold(&self) {
        let new = self.cold_written.fetch_add(1, Ordering::SeqCst);
        let change = Change::Put { value: Value::Whole(value(new)), metadata: None, expires: Expires::Never };
        let (from, written) =
            (self.now(), self.edges[0].remote.write(self.namespace, &cold_key(new), change, Via::default()).await);
        if let Err(error) = written {
            self.failed(from, self.now(), format!("writing cold {new}: {error:?}"));
            self.records().cold_failed += 1;
            return;
        }
        self.cold_read.fetch_add(1, Ordering::SeqCst);
        let from = self.now();
        let read = self.edges[1].remote.get(self.namespace, &cold_key(new), &Read::default()).await;
        let found = match read.map(|answer| answer.state) {
            Ok(State::Present(entry)) => entry.value.collect(1 << 20).await.is_ok_and(|found| found == value(new)),
            Ok(state) => {
                // Nothing of it was ever held there, so nothing old can be.
                self.failed(from, self.now(), format!("reading cold {new} found {state:?}"));
                false
            }
            Err(error) => {
                self.failed(from, self.now(), format!("reading cold {new}: {error:?}"));
                false
            }
        };
        let mut records = self.records();
        records.cold += 1;
        records.cold_failed += u64::from(!found);
    }

    fn failed(&self, from: Nanos, to: Nanos, what: String) {
        self.records().errors.push(format!("{:.1}-{:.1} s: {what}", from as f64 / 1e9, to as f64 / 1e9));
    }

    /// Reads everything once more at each edge, past every cache, and holds all that was answered against what is then known.
    pub(crate) async fn finale(&self) -> Finale {
        let before = self.records().errors.len();
        for edge in 0..self.edges.len() {
            for index in 0..KEYS {
                self.read(edge, index, Duration::ZERO, None).await;
            }
        }
        let records = std::mem::take(&mut *self.records());
        Finale::of(records, before, self.attempts.load(Ordering::SeqCst), self.edges.len())
    }
}

/// What came of it all.
pub(crate) struct Finale {
    writes: usize,
    writes_failed: usize,
    reads: usize,
    /// Of what the edge held, by clients that made no demand.
    held_failed: usize,
    /// Of what somebody had changed since the edge answered it last.
    changed_failed: usize,
    demanding_failed: usize,
    stale: usize,
    cold: u64,
    cold_failed: u64,
    lost: Vec<String>,
    violations: Vec<String>,
    errors: Vec<String>,
    age_max: Duration,
    write_millis: [f64; 3],
}

impl Finale {
    fn of(records: Records, errors_in_run: usize, attempts: u64, edges: usize) -> Finale {
        let Records { writes, mut reads, errors, cold, cold_failed } = records;
        let mut checker = Checker::new(KEYS);
        let mut by_attempt: Vec<Option<WriteRecord>> = vec![None; usize::try_from(attempts).expect("they were made")];
        for write in &writes {
            by_attempt[write.attempt as usize] = Some(*write);
        }
        for write in &by_attempt {
            // Also one whose record is missing has its number.
            checker.attempt(write.map_or(usize::MAX, |write| write.key), VALUE_BYTES as u64);
        }
        let mut violations = Vec::new();
        tell_history(&mut checker, &writes, &reads, &by_attempt, &mut violations);
        let mut shown: Vec<Vec<Shown>> = (0..edges * KEYS).map(|_| Shown::none()).collect();
        for write in &writes {
            let Some((at, version)) = write.done else { continue };
            match checker.acknowledged(write.key, Some(write.attempt), version.as_u64(), write.from) {
                Ok(floor) => shown[write.edge * KEYS + write.key].push(Shown { at, floor }),
                Err(what) => violations.push(format!("write {} of key {}: {what}", write.attempt, write.key)),
            }
        }
        shown.iter_mut().for_each(|shown| Shown::sort(shown));
        reads.sort_by_key(|read| read.to);
        let (mut stale, mut age_max) = (0, Duration::ZERO);
        let last_latest = reads.len().saturating_sub(edges * KEYS);
        let mut lost = Vec::new();
        for (number, read) in reads.iter().enumerate() {
            let Some(answer) = read.answer else { continue };
            let trip = Duration::from_nanos(read.to - read.from);
            let seen = match answer.attempt {
                Some(_) => Seen::Present { version: answer.version.as_u64() },
                None => Seen::Absent,
            };
            let place = &mut shown[read.edge * KEYS + read.key];
            let demand = Demand {
                asked_at: read.from,
                // The age is of when it was answered; it is judged at its arrival.
                max_age: if read.max_age.is_zero() { Duration::ZERO } else { read.max_age + trip },
                at_least: read.at_least.map(Version::as_u64),
                floor: Shown::before(place, read.from),
            };
            let marked = answer.status == CacheStatus::Stale;
            stale += usize::from(marked);
            age_max = age_max.max(answer.age);
            let answered = Answered {
                at: read.to,
                seen,
                age: answer.age + trip,
                stale: marked,
                waited: answer.status != CacheStatus::Hit,
                stale_max: Duration::from_secs(24 * 3600),
            };
            let mut outcome = checker.check_read(read.key, &demand, &answered);
            if let Some(attempt) = answer.attempt {
                let value = checker.check_value(read.key, answer.version.as_u64(), Some(attempt), VALUE_BYTES as u64);
                outcome = outcome.and_then(|floor| value.map(|()| floor));
            }
            match outcome {
                Ok(floor) => Shown::add(place, read.to, floor),
                Err(what) => {
                    let described = format!(
                        "{:.3}-{:.3} s, edge {}, key {}: {} of attempt {:?}, age {:?}, {:?}, max_age {:?}: {what}\n{}",
                        read.from as f64 / 1e9,
                        read.to as f64 / 1e9,
                        read.edge,
                        read.key,
                        answer.version,
                        answer.attempt,
                        answer.age,
                        answer.status,
                        read.max_age,
                        checker.story(read.key)
                    );
                    if number >= last_latest { lost.push(described) } else { violations.push(described) }
                }
            }
        }
        let demands = |read: &ReadRecord| read.max_age.is_zero() || read.at_least.is_some();
        let failed: Vec<&ReadRecord> = reads.iter().filter(|read| read.answer.is_none()).collect();
        let demanding_failed = failed.iter().filter(|read| demands(read)).count();
        // An edge holds what it has answered, until somebody changes it: then it may have dropped it, and has to ask.
        let is_held = |failed: &ReadRecord| {
            let same = reads.iter().filter(|read| (read.edge, read.key) == (failed.edge, failed.key));
            let answered =
                same.filter(|read| read.answer.is_some() && read.to <= failed.from).map(|read| read.from).max();
            let changed = |since: Nanos| {
                writes.iter().any(|write| {
                    let done = write.done.map_or(Nanos::MAX, |(at, _)| at);
                    write.key == failed.key && done >= since && write.from <= failed.to
                })
            };
            answered.is_some_and(|since| !changed(since))
        };
        let held_failed = failed.iter().filter(|read| !demands(read) && is_held(read)).count();
        let changed_failed = failed.len() - demanding_failed - held_failed;
        let mut latencies: Vec<f64> =
            writes.iter().filter_map(|write| Some((write.done?.0 - write.from) as f64 / 1e6)).collect();
        latencies.sort_by(f64::total_cmp);
        let at = |share: f64| latencies.get((latencies.len() as f64 * share) as usize).copied().unwrap_or(0.0);
        Finale {
            writes_failed: writes.iter().filter(|write| write.done.is_none()).count(),
            held_failed,
            changed_failed,
            demanding_failed,
            writes: writes.len(),
            reads: reads.len(),
            stale,
            cold,
            cold_failed,
            lost,
            violations,
            errors: errors.into_iter().take(errors_in_run + 50).collect(),
            age_max,
            write_millis: [at(0.5), at(0.99), at(1.0 - f64::EPSILON)],
        }
    }

    /// Prints nothing; fails on what must never be.
    pub(crate) fn check(&self) {
        let first = |all: &[String]| all.iter().take(5).cloned().collect::<Vec<_>>().join("\n");
        assert!(self.lost.is_empty(), "{} keys lost an acknowledged write:\n{}", self.lost.len(), first(&self.lost));
        assert!(self.violations.is_empty(), "{} wrong answers:\n{}", self.violations.len(), first(&self.violations));
        assert_eq!(self.held_failed, 0, "reads of what an edge held failed:\n{}", first(&self.errors));
    }
}

impl fmt::Display for Finale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p99, max] = self.write_millis;
        writeln!(
            f,
            "{} writes, {} failed; p50 {p50:.0}, p99 {p99:.0}, max {max:.0} ms",
            self.writes, self.writes_failed
        )?;
        writeln!(
            f,
            "{} reads: {} of what was held failed, {} of what had just been changed, {} latest or at-least ones; {} marked STALE; greatest age {:?}",
            self.reads, self.held_failed, self.changed_failed, self.demanding_failed, self.stale, self.age_max
        )?;
        writeln!(f, "{} cold reads, {} failed", self.cold, self.cold_failed)?;
        writeln!(f, "{} acknowledged writes lost, {} wrong answers", self.lost.len(), self.violations.len())?;
        // Of each kind some.
        for kind in ["reading cold", "reading", "writing"] {
            let of_kind = |error: &&String| error.contains(kind) && (kind != "reading" || !error.contains("cold"));
            self.errors.iter().filter(of_kind).take(10).try_for_each(|error| writeln!(f, "  {error}"))?;
        }
        Ok(())
    }
}

/// Tells the checker what is known of the truth: of each version that anybody was shown, from when to when it may have been the state.
fn tell_history(
    checker: &mut Checker,
    writes: &[WriteRecord],
    reads: &[ReadRecord],
    by_attempt: &[Option<WriteRecord>],
    violations: &mut Vec<String>,
) {
    enum Event {
        Arrived,
        Reached,
    }
    let mut events = Vec::new();
    for write in writes {
        if let Some((at, version)) = write.done {
            events.push((write.from, write.key, version, Event::Arrived));
            events.push((at, write.key, version, Event::Reached));
        }
    }
    // What was not acknowledged, and was seen.
    for read in reads {
        let Some(AnswerRecord { version, attempt: Some(attempt), .. }) = read.answer else { continue };
        match usize::try_from(attempt).ok().and_then(|attempt| by_attempt.get(attempt).copied().flatten()) {
            Some(write) if write.key == read.key => {
                if write.done.is_none() {
                    events.push((write.from, write.key, version, Event::Arrived));
                }
            }
            _ => violations.push(format!("key {} had a value that no write of it wrote (attempt {attempt})", read.key)),
        }
    }
    events.sort_by_key(|(at, ..)| *at);
    for (at, key, version, event) in events {
        match event {
            Event::Arrived => {
                if let Err(what) = checker.arrived(at, key, version.as_u64(), Effect::Put { expires_at: None }) {
                    violations.push(format!("key {key}: {what}"));
                }
            }
            Event::Reached => checker.reached(at, key, version.as_u64()),
        }
    }
}

/// What a location had shown of a key from a moment on: the newest so far.
struct Shown {
    at: Nanos,
    floor: Floor,
}

impl Shown {
    fn none() -> Vec<Shown> {
        vec![Shown { at: 0, floor: Floor::default() }]
    }

    /// In the order of time, each with the newest up to it.
    fn sort(all: &mut [Shown]) {
        all.sort_by_key(|shown| shown.at);
        let mut newest = Floor::default();
        for shown in all {
            newest = newest.max(shown.floor);
            shown.floor = newest;
        }
    }

    fn before(all: &[Shown], at: Nanos) -> Floor {
        let after = all.partition_point(|shown| shown.at <= at);
        after.checked_sub(1).map_or(Floor::default(), |last| all[last].floor)
    }

    /// Of a read; they come in the order of their answers, among writes that are there already.
    fn add(all: &mut Vec<Shown>, at: Nanos, floor: Floor) {
        if floor <= Shown::before(all, at) {
            return;
        }
        let place = all.partition_point(|shown| shown.at <= at);
        all.insert(place, Shown { at, floor });
        all[place + 1..].iter_mut().for_each(|shown| shown.floor = shown.floor.max(floor));
    }
}
