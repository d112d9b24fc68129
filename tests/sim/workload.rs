//! What clients do: they read with all kinds of demands, write, delete, let expire, list, and learn versions in one place that they demand in another.
//!
//! A location's reads go to its tier as the binding port's do: first for what is held, at once, and only then with a wait.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use kvasar::{
    error::{Error, Kind},
    kv::{
        Answer, CacheStatus, Change, Expires, Key, List, Read, Source as _, State, Value, ValueStream, Version, Via,
        Writer as _, Written, kept::EntryKey,
    },
};

use crate::{
    chance::Chance,
    checker::{Answered, Demand, Floor, KeyIndex, Seen},
    clock::{MILLI, Nanos},
    store::key_index,
    world::{CENTRAL, Process, World, lock},
};

/// Reads of one location that wait for an answer at once: more say nothing new.
const WAITING_MAX: u64 = 12;
/// Versions that are remembered to be demanded.
const LEARNT_MAX: usize = 32;
/// Longer values travel in pieces, and are not shared.
const STREAMED_BYTES: u64 = 1 << 20;
/// Bytes of each piece of a written stream.
const PIECE_BYTES: u64 = 48 * 1024;

/// Which keys are asked for how often: by rank, to the power of the skew.
pub(crate) struct Popularity(Vec<f64>);

impl Popularity {
    pub(crate) fn new(keys: usize, skew: f64) -> Popularity {
        let mut sum = 0.0;
        let sums = (1..=keys).map(|rank| {
            sum += (rank as f64).powf(-skew);
            sum
        });
        Popularity(sums.collect())
    }

    pub(crate) fn draw(&self, chance: &mut Chance) -> KeyIndex {
        let at = chance.share() * self.0[self.0.len() - 1];
        self.0.partition_point(|sum| *sum <= at).min(self.0.len() - 1)
    }
}

/// The clients of all locations, and those who write.
pub(crate) fn start(world: &Arc<World>) {
    let popularity = Arc::new(Popularity::new(world.profile.keys, world.profile.skew));
    for node in CENTRAL..world.nodes.len() {
        // Some ask the tiers above, too: what is wrong there is wrong below.
        let (world, popularity, chance) = (Arc::clone(world), Arc::clone(&popularity), world.fork_chance());
        tokio::spawn(readers(world, node, popularity, chance));
    }
    let (world, chance) = (Arc::clone(world), world.fork_chance());
    tokio::spawn(writers(world, popularity, chance));
}

async fn readers(world: Arc<World>, node: usize, popularity: Arc<Popularity>, mut chance: Chance) {
    let Profile { think, burst } = Profile { think: world.profile.think as f64, burst: world.profile.burst };
    loop {
        world.time.sleep(chance.exponential(think) as Nanos).await;
        if world.is_over() {
            return;
        }
        let Some(process) = world.process(node) else { continue };
        for _ in 0..chance.between(1, burst) {
            let key = popularity.draw(&mut chance);
            read(&world, node, &process, key, a_read(&world, &mut chance));
        }
        if world.profile.lists && chance.happens(0.02) {
            tokio::spawn(list(Arc::clone(&world), node, process, chance.fork()));
        }
    }
}

struct Profile {
    think: f64,
    burst: u64,
}

fn a_read(world: &World, chance: &mut Chance) -> Read {
    let max_age = chance.weighted(&[
        (4, 0),
        (4, chance.clone().between(1, 100)),
        (12, chance.clone().between(100, 3000)),
        (20, 5000),
        (20, 30_000),
        (30, 60_000),
        (10, 3_600_000),
    ]);
    let at_least = if chance.happens(0.1) {
        let learnt = lock(&world.learnt);
        (!learnt.is_empty()).then(|| Version::from_u64(*chance.pick(&learnt)))
    } else {
        None
    };
    Read { max_age: Duration::from_millis(max_age), at_least, held: None, asker: None }
}

/// Asks a location for a key; what is not held is waited for by a task of its own.
pub(crate) fn read(world: &Arc<World>, node: usize, process: &Process, key: KeyIndex, read: Read) {
    let demand = demand(world, process, key, &read);
    match process.tier.held(world.namespace(), world.keys[key].as_bytes(), &read) {
        Some(hit) => {
            let answer = hit.answer(&read);
            if let Some(value) = check(world, node, process, key, &demand, answer) {
                tokio::spawn(consume(Arc::clone(world), node, process.clone(), key, value));
            }
        }
        None => {
            if process.waiting.load(Ordering::Relaxed) < WAITING_MAX {
                process.waiting.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(read_waiting(Arc::clone(world), node, process.clone(), key, read, demand));
            }
        }
    }
}

fn demand(world: &World, process: &Process, key: KeyIndex, read: &Read) -> Demand {
    Demand {
        asked_at: world.time.now(),
        max_age: read.max_age,
        at_least: read.at_least.map(Version::as_u64),
        floor: lock(&process.shown)[key],
    }
}

async fn read_waiting(world: Arc<World>, node: usize, process: Process, key: KeyIndex, read: Read, demand: Demand) {
    let answer = ask(&world, &process, key, &read).await;
    process.waiting.fetch_sub(1, Ordering::Relaxed);
    match answer {
        // The process ended, and its connection to the client with it.
        None => world.count("reads cut off"),
        Some(Ok(answer)) => {
            if let Some(value) = check(&world, node, &process, key, &demand, answer) {
                consume(world, node, process, key, value).await;
            }
        }
        Some(Err(error)) => refused(&world, node, key, &error, demand.at_least),
    }
}

/// A read that waits for its answer; `None` when the process ended before.
pub(crate) async fn ask(
    world: &World,
    process: &Process,
    key: KeyIndex,
    read: &Read,
) -> Option<kvasar::error::Result<Answer>> {
    tokio::select! {
        biased;
        () = process.life.end.cancelled() => None,
        answer = process.tier.get(world.namespace(), &world.keys[key], read) => Some(answer),
    }
}

fn refused(world: &World, node: usize, key: KeyIndex, error: &Error, at_least: Option<u64>) {
    let what = match error.kind {
        Kind::Unavailable | Kind::Unreachable => "reads refused, upstream being away",
        Kind::Internal => "reads refused, the origin being broken",
        _ => {
            return world.fail(node, Some(key), format!("a read (at least {at_least:x?}) is refused: {error}"));
        }
    };
    world.count(what);
    world.trace.line(world.time.now(), format_args!("node {node} key {key} read refused: {error}"));
}

/// How a read went that the finale asks for.
pub(crate) enum Verdict {
    Answered {
        seen: Seen,
        stale: bool,
    },
    Refused(Error),
    /// The location is not there.
    Gone,
}

/// Reads, and waits for the answer; it is checked like any.
pub(crate) async fn read_now(world: &Arc<World>, node: usize, key: KeyIndex, read: Read) -> Verdict {
    let Some(process) = world.process(node) else { return Verdict::Gone };
    let demand = demand(world, &process, key, &read);
    match ask(world, &process, key, &read).await {
        None => Verdict::Gone,
        Some(Err(error)) => Verdict::Refused(error),
        Some(Ok(answer)) => {
            let stale = answer.status == CacheStatus::Stale;
            let version = answer.version.as_u64();
            let seen = if matches!(answer.state, State::Absent) { Seen::Absent } else { Seen::Present { version } };
            if let Some(value) = check(world, node, &process, key, &demand, answer) {
                consume(Arc::clone(world), node, process, key, value).await;
            }
            Verdict::Answered { seen, stale }
        }
    }
}

/// The age of what is held and answered at once; it is checked like any.
pub(crate) fn read_held(
    world: &Arc<World>,
    node: usize,
    process: &Process,
    key: KeyIndex,
    read: Read,
) -> Option<Duration> {
    let demand = demand(world, process, key, &read);
    let answer = process.tier.held(world.namespace(), world.keys[key].as_bytes(), &read)?.answer(&read);
    let age = answer.age;
    // A value in pieces that are all here needs no reading.
    check(world, node, process, key, &demand, answer);
    Some(age)
}

/// A value that is still to be read to its end.
struct Unread {
    value: Value,
    version: u64,
}

/// Holds an answer against the truth. What of its value is not there yet is returned.
fn check(
    world: &World,
    node: usize,
    process: &Process,
    key: KeyIndex,
    demand: &Demand,
    answer: Answer,
) -> Option<Unread> {
    let (version, at) = (answer.version.as_u64(), world.time.now());
    let (seen, value) = match answer.state {
        State::Absent => (Seen::Absent, None),
        State::Present(entry) => (Seen::Present { version }, Some(entry.value)),
        State::Unchanged { .. } => {
            world.fail(node, Some(key), "'unchanged' to a client that holds nothing".into());
            return None;
        }
    };
    let stale = answer.status == CacheStatus::Stale;
    let stale_max = world.profile.stale_if_unreachable;
    let waited = answer.status != CacheStatus::Hit;
    let answered = Answered { at, seen, age: answer.age, stale, waited, stale_max };
    if stale {
        world.count("reads marked stale");
    }
    if world.trace.is_kept() {
        let (at_least, status) = (demand.at_least.unwrap_or(0), answer.status.name());
        let (age, max_age, asked) = (answer.age, demand.max_age, demand.asked_at as f64 / 1e9);
        world.trace.line(
            at,
            format_args!(
                "node {node} key {key} read {seen:x?} as of {version:x} age {age:?} {status}, asked {asked:.6} for {max_age:?} at least {at_least:x}"
            ),
        );
    }
    let mut checker = world.checker();
    let mut outcome = checker.check_read(key, demand, &answered);
    if outcome.is_ok() && checker.is_behind(key, &answered, lock(&world.nodes[node].shown_before)[key]) {
        checker.back_over_restart += 1;
    }
    let mut unread = None;
    match value {
        Some(Value::Whole(bytes)) => {
            if let Err(what) = checker.check_value(key, version, number_of(&bytes), bytes.len() as u64) {
                outcome = outcome.and(Err(what));
            }
        }
        Some(value) => unread = Some(Unread { value, version }),
        None => {}
    }
    drop(checker);
    match outcome {
        Ok(floor) => raise(process, key, floor),
        Err(what) => {
            let state = match seen {
                Seen::Present { version } => format!("{version:016x}"),
                Seen::Absent => format!("absent as of {version:016x}"),
            };
            let (status, age) = (answer.status.name(), answer.age);
            world.fail(node, Some(key), format!("answered {state}, age {age:?}, {status}: {what}"));
        }
    }
    unread
}

fn raise(process: &Process, key: KeyIndex, floor: Floor) {
    let mut shown = lock(&process.shown);
    shown[key] = shown[key].max(floor);
}

/// Reads a long value to its end.
async fn consume(world: Arc<World>, node: usize, process: Process, key: KeyIndex, unread: Unread) {
    let Unread { value, version } = unread;
    let mut pieces = value.into_stream();
    let (mut first, mut length) = (Vec::new(), 0);
    loop {
        let piece = tokio::select! {
            biased;
            () = process.life.end.cancelled() => return world.count("values cut off"),
            piece = pieces.next() => piece,
        };
        match piece {
            None => break,
            Some(Err(_)) => return world.count("values broken off"),
            Some(Ok(piece)) => {
                if first.len() < HEAD_BYTES {
                    first.extend_from_slice(&piece[..piece.len().min(HEAD_BYTES - first.len())]);
                }
                length += piece.len() as u64;
            }
        }
    }
    world.count("long values read");
    let outcome = world.checker().check_value(key, version, number_of(&first), length);
    if let Err(what) = outcome {
        world.fail(node, Some(key), what);
    }
}

const HEAD_BYTES: usize = 8;

fn number_of(value: &[u8]) -> Option<u64> {
    value.first_chunk::<HEAD_BYTES>().map(|number| u64::from_be_bytes(*number))
}

async fn writers(world: Arc<World>, popularity: Arc<Popularity>, mut chance: Chance) {
    let edges = world.edges();
    loop {
        world.time.sleep(chance.exponential(world.profile.write_pause as f64) as Nanos).await;
        if world.is_over() {
            return;
        }
        let node = edges.start + chance.below(edges.len() as u64) as usize;
        let Some(process) = world.process(node) else { continue };
        if chance.happens(0.02) {
            let key = popularity.draw(&mut chance);
            world.count("entries evicted");
            evict(&world, &process, key);
        }
        let draws = chance.fork();
        if chance.happens(0.05) {
            tokio::spawn(write_many(Arc::clone(&world), node, process, Arc::clone(&popularity), draws));
        } else {
            let key = popularity.draw(&mut chance);
            tokio::spawn(write(Arc::clone(&world), node, process, key, draws));
        }
    }
}

pub(crate) fn evict(world: &World, process: &Process, key: KeyIndex) {
    process.tier.memory().remove(&EntryKey { namespace: world.namespace(), key: world.keys[key].clone() });
}

/// A change, and the number of the attempt that its value carries.
fn change(world: &World, key: KeyIndex, chance: &mut Chance, small: bool) -> (Change, Option<u64>) {
    if chance.happens(0.2) {
        return (Change::Delete, None);
    }
    let sizes = [(70, (8, 200)), (20, (900, 4000)), (10, (5000, 60_000))];
    let (low, high) = if small {
        (8, 700)
    } else if world.profile.large_values && chance.happens(0.08) {
        (60_000, 3 << 20)
    } else {
        chance.weighted(&sizes)
    };
    let length = chance.between(low, high);
    let expires = if world.profile.expiring && chance.happens(0.2) { Expires::After(60) } else { Expires::Never };
    let number = world.checker().attempt(key, length);
    let metadata = Some(Bytes::from(number.to_string()));
    (Change::Put { value: value(number, length), metadata, expires }, Some(number))
}

/// Bytes that begin with their attempt's number.
pub(crate) fn value(number: u64, length: u64) -> Value {
    let piece = move |from: u64, to: u64| {
        let mut bytes = vec![number as u8; (to - from) as usize];
        if from == 0 {
            bytes[..HEAD_BYTES].copy_from_slice(&number.to_be_bytes());
        }
        Bytes::from(bytes)
    };
    if length <= STREAMED_BYTES / 16 {
        return Value::Whole(piece(0, length));
    }
    let starts = (0..length.div_ceil(PIECE_BYTES)).map(|at| at * PIECE_BYTES);
    let pieces = starts.map(move |from| Ok(piece(from, (from + PIECE_BYTES).min(length))));
    Value::Stream(ValueStream { length: Some(length), chunks: stream::iter(pieces).boxed() })
}

async fn write(world: Arc<World>, node: usize, process: Process, key: KeyIndex, mut chance: Chance) {
    let (change, attempt) = change(&world, key, &mut chance, false);
    let started = world.time.now();
    let written = tokio::select! {
        biased;
        () = process.life.end.cancelled() => return world.count("writes cut off"),
        written = process.tier.write(world.namespace(), &world.keys[key], change, Via::default()) => written,
    };
    acknowledged(&world, node, &process, key, attempt, written, started);
}

async fn write_many(world: Arc<World>, node: usize, process: Process, popularity: Arc<Popularity>, mut chance: Chance) {
    let mut writes = Vec::new();
    let mut attempts = Vec::new();
    for _ in 0..chance.between(2, 8) {
        let key = popularity.draw(&mut chance);
        let (change, attempt) = change(&world, key, &mut chance, true);
        writes.push((world.keys[key].clone(), change));
        attempts.push((key, attempt));
    }
    let started = world.time.now();
    let outcomes = tokio::select! {
        biased;
        () = process.life.end.cancelled() => return world.count("writes cut off"),
        outcomes = process.tier.write_many(world.namespace(), writes, Via::default()) => outcomes,
    };
    match outcomes {
        Ok(outcomes) => {
            world.count("writes in bulk");
            for ((key, attempt), written) in attempts.into_iter().zip(outcomes) {
                acknowledged(&world, node, &process, key, attempt, written, started);
            }
        }
        Err(error) => unacknowledged(&world, node, &error),
    }
}

fn acknowledged(
    world: &World,
    node: usize,
    process: &Process,
    key: KeyIndex,
    attempt: Option<u64>,
    written: Result<Written, Error>,
    started: Nanos,
) {
    let written = match written {
        Ok(written) => written,
        Err(error) => return unacknowledged(world, node, &error),
    };
    let version = written.version.as_u64();
    let what = if attempt.is_some() { "put" } else { "deletion" };
    world.count(if attempt.is_some() { "puts" } else { "deletions" });
    let begun = started as f64 / 1e9;
    world.trace.line(
        world.time.now(),
        format_args!("node {node} key {key} {what} {version:x} acknowledged, begun {begun:.6}"),
    );
    let outcome = world.checker().acknowledged(key, attempt, version, started);
    match outcome {
        // Its process is the one that was asked, or the client would not have been answered.
        Ok(floor) => raise(process, key, floor),
        Err(what) => return world.fail(node, Some(key), what),
    }
    let mut learnt = lock(&world.learnt);
    if learnt.len() == LEARNT_MAX {
        learnt.remove(0);
    }
    learnt.push(version);
}

fn unacknowledged(world: &World, node: usize, error: &Error) {
    match error.kind {
        Kind::Unavailable | Kind::Unreachable => world.count("writes refused or of unknown outcome"),
        Kind::Internal => world.count("writes refused, the origin being broken"),
        _ => world.fail(node, None, format!("a write is refused: {error}")),
    }
}

/// Lists everything, page by page.
pub(crate) async fn list(world: Arc<World>, node: usize, process: Process, mut chance: Chance) {
    let from = world.time.now();
    let limit = chance.between(1, 1000) as usize;
    let (mut names, mut cursor) = (Vec::new(), None);
    loop {
        let list = List { prefix: Bytes::new(), limit, cursor };
        let page = tokio::select! {
            biased;
            () = process.life.end.cancelled() => return,
            page = process.tier.list(world.namespace(), &list) => page,
        };
        let page = match page {
            Ok(page) => page,
            Err(error) if error.kind.is_outage() => return world.count("lists refused"),
            Err(error) => return world.fail(node, None, format!("a list is refused: {error}")),
        };
        names.extend(page.keys.iter().map(|listed| (index(&listed.key), attempt(listed.metadata.as_ref()))));
        cursor = page.cursor;
        if cursor.is_none() {
            break;
        }
    }
    let to = world.time.now();
    let outcome = world.checker().check_list(&names, from, to);
    if let Err(what) = outcome {
        world.fail(node, None, format!("a list begun at {:.6} s: {what}", from as f64 / 1e9));
    }
    // Lists of a world with large pages end soon; a breath between them keeps those of small ones apart.
    world.time.sleep(MILLI).await;
}

fn index(key: &Key) -> KeyIndex {
    key_index(key.as_bytes())
}

fn attempt(metadata: Option<&Bytes>) -> Option<u64> {
    metadata.and_then(|text| std::str::from_utf8(text).ok()).and_then(|text| text.parse().ok())
}
