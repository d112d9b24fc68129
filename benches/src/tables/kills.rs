//! `kill -9` of each role under load, again and again, and what the clients saw held against what was true by the simulator's own checker.
//!
//! A chain of processes with two edges; clients at each location read, write and delete through it while one role after the other, at times two at once, is
//! killed and started again where it was. Every client logs what it asked and what it was answered. Afterwards all of the logs are put together: a write took
//! effect no later than it was acknowledged or first seen, which is what can be known from outside; a write without an answer may have taken effect or not.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    chain::{Chain, Role},
    chance::Chance,
    line::{Answer, Line},
    process::{load, quantile},
};

#[allow(dead_code, reason = "it also checks what only the simulator does")]
#[path = "../../../tests/sim/checker.rs"]
mod checker;

use crate::clock::{self, Nanos};
use checker::{Answered, Checker, Demand, Effect, Floor, Seen, Violation};

const TRIP: Duration = Duration::from_millis(20);
const KEYS: usize = 60;
const READERS: usize = 3;
const WRITERS: usize = 2;
const READ_PAUSE: Duration = Duration::from_millis(2);
const WRITE_PAUSE: Duration = Duration::from_millis(10);
/// How long a killed process is missed, and how long there is peace after, at most; in milliseconds.
const MISSED_MAX: u64 = 1500;
const PEACE_MAX: u64 = 2500;
/// What a read accepts that says nothing: until then everything has to be seen everywhere, once all are back.
const CONVERGES: Duration = Duration::from_secs(70);
/// An edge, a regional and the central one; each counts the time that the ones above it took.
const TIERS: u32 = 3;
/// The oldest that a marked answer may be.
const STALE_MAX: Duration = Duration::from_secs(24 * 3600);

const LOCATIONS: [&str; 4] = ["centre", "region", "away", "near"];

/// What a client asked and was told; times since the start.
enum Event {
    Read { location: usize, key: usize, asked: Asked, asked_at: Nanos, at: Nanos, answer: Answer },
    Write { location: usize, key: usize, attempt: Option<u64>, started_at: Nanos, at: Nanos, version: Option<u64> },
}

#[derive(Clone, Copy)]
struct Asked {
    max_age: Duration,
    at_least: Option<u64>,
}

struct World {
    start: Instant,
    addresses: [SocketAddr; 4],
    headers: String,
    done: AtomicBool,
    /// Key and length of each put that was tried, by the number in its value.
    attempts: Mutex<Vec<(usize, u64)>>,
    /// The last version acknowledged to anyone, for reads that name it.
    last: Mutex<Option<u64>>,
}

impl World {
    fn now(&self) -> Nanos {
        self.start.elapsed().as_nanos() as Nanos
    }
}

pub async fn run(rounds: u64, seed: u64) {
    let mut chain = Chain::start(TRIP).await;
    let mut near = chain.add("edge", "near", &chain.region, Duration::ZERO);
    let world = Arc::new(World {
        start: Instant::now(),
        addresses: [&chain.centre, &chain.region, &chain.away, &near].map(Role::address),
        headers: chain.headers.clone(),
        done: AtomicBool::new(false),
        attempts: Mutex::default(),
        last: Mutex::default(),
    });
    let mut clients = Vec::new();
    for location in 0..LOCATIONS.len() {
        for reader in 0..READERS {
            let chance = Chance::new(seed << 32 | (location * 16 + reader) as u64);
            clients.push(tokio::spawn(keep_reading(Arc::clone(&world), location, chance)));
        }
        for writer in 0..WRITERS {
            let chance = Chance::new(seed << 32 | (location * 16 + 8 + writer) as u64);
            clients.push(tokio::spawn(keep_writing(Arc::clone(&world), location, chance)));
        }
    }
    let restarts = tokio::task::block_in_place(|| kill(&world, &mut chain, &mut near, rounds, seed));
    world.done.store(true, Ordering::SeqCst);
    let ended_at = world.now();
    let mut events = Vec::new();
    for client in clients {
        events.append(&mut client.await.expect("a client outlives its servers"));
    }
    let converged = converge(&world, &mut events).await;
    let found = check(&world, events, &restarts);
    print(&found, rounds, Duration::from_nanos(ended_at), &converged);
    assert!(found.violations.is_empty(), "seed {seed}: {} violations", found.violations.len());
}

/// When which location lost its process.
type Restarts = Vec<(usize, Nanos)>;

fn kill(world: &World, chain: &mut Chain, near: &mut Role, rounds: u64, seed: u64) -> Restarts {
    let mut chance = Chance::new(seed);
    let mut restarts = Vec::new();
    let pause = |millis: u64| std::thread::sleep(Duration::from_millis(millis));
    pause(2000);
    let mut killed = 0;
    while killed < rounds {
        // Each role as often as the others; every fourth time, the next one goes before it is back.
        let together = if killed % 4 == 3 && killed + 2 <= rounds { 2 } else { 1 };
        let mut down = Vec::new();
        for number in killed..killed + together {
            let (role, location) = part(chain, near, number);
            restarts.extend(location.map(|location| (location, world.now())));
            role.server.kill();
            down.push(number);
            pause(chance.draw() % MISSED_MAX / 2);
        }
        pause(chance.draw() % MISSED_MAX);
        // The one killed last comes back first, every other time.
        if chance.draw().is_multiple_of(2) {
            down.reverse();
        }
        for number in down {
            part(chain, near, number).0.start_again();
            pause(chance.draw() % 300);
        }
        killed += together;
        pause(300 + chance.draw() % PEACE_MAX);
    }
    restarts
}

/// Whose turn it is, and the location that it is.
fn part<'a>(chain: &'a mut Chain, near: &'a mut Role, number: u64) -> (&'a mut Role, Option<usize>) {
    match number % 5 {
        0 => (&mut chain.origin, None),
        1 => (&mut chain.centre, Some(0)),
        2 => (&mut chain.region, Some(1)),
        3 => (&mut chain.away, Some(2)),
        _ => (near, Some(3)),
    }
}

/// A connection, as soon as there can be one; `None` once nobody needs it.
async fn connected(world: &World, location: usize) -> Option<Line> {
    while !world.done.load(Ordering::SeqCst) {
        if let Ok(line) = Line::connect(world.addresses[location], &world.headers).await {
            return Some(line);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    None
}

fn path(key: usize) -> String {
    format!("/key-{key}?urlencoded=true")
}

/// Few keys are asked for often, the others seldom.
fn draw_key(chance: &mut Chance) -> usize {
    let drawn = chance.draw();
    let among = if drawn.is_multiple_of(3) { KEYS } else { KEYS / 10 };
    (drawn >> 8) as usize % among
}

async fn keep_reading(world: Arc<World>, location: usize, mut chance: Chance) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some(mut line) = connected(&world, location).await {
        while !world.done.load(Ordering::SeqCst) {
            let key = draw_key(&mut chance);
            let last = *world.last.lock().expect("nobody panics with it");
            let asked = match chance.draw() % 20 {
                0 => Asked { max_age: Duration::ZERO, at_least: None },
                1..4 => Asked { max_age: Duration::from_millis(500), at_least: None },
                4..7 => Asked { max_age: Duration::from_secs(60), at_least: last },
                7..9 => Asked { max_age: Duration::from_secs(3600), at_least: None },
                _ => Asked { max_age: Duration::from_secs(60), at_least: None },
            };
            let Ok(event) = read(&world, &mut line, location, key, asked).await else { break };
            events.push(event);
            tokio::time::sleep(READ_PAUSE).await;
        }
    }
    events
}

async fn read(world: &World, line: &mut Line, location: usize, key: usize, asked: Asked) -> std::io::Result<Event> {
    let at_least = asked.at_least.map(|version| format!("kvasar-at-least: {version:016x}\r\n")).unwrap_or_default();
    let headers = format!("kvasar-max-age-ms: {}\r\n{at_least}", asked.max_age.as_millis());
    let asked_at = world.now();
    let answer = line.ask("GET", &path(key), &headers, b"").await?;
    Ok(Event::Read { location, key, asked, asked_at, at: world.now(), answer })
}

async fn keep_writing(world: Arc<World>, location: usize, mut chance: Chance) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some(mut line) = connected(&world, location).await {
        while !world.done.load(Ordering::SeqCst) {
            let key = draw_key(&mut chance);
            let length = match chance.draw() % 16 {
                0 | 1 => None,
                2 => Some(10_240),
                3 => Some(100_000),
                _ => Some(16 + chance.draw() % 600),
            };
            let attempt = length.map(|length| {
                let mut attempts = world.attempts.lock().expect("nobody panics with it");
                attempts.push((key, length));
                attempts.len() as u64 - 1
            });
            let (method, body) = match (attempt, length) {
                (Some(attempt), Some(length)) => ("PUT", value(attempt, length)),
                _ => ("DELETE", Vec::new()),
            };
            let started_at = world.now();
            let answer = line.ask(method, &path(key), "", &body).await;
            let at = world.now();
            let version = answer.as_ref().ok().filter(|answer| answer.status == 200).map(|answer| answer.version);
            let version = version.map(|version| version.expect("an acknowledgement has a version"));
            if version.is_some() {
                *world.last.lock().expect("nobody panics with it") = version;
            }
            events.push(Event::Write { location, key, attempt, started_at, at, version });
            if answer.is_err() {
                break;
            }
            tokio::time::sleep(WRITE_PAUSE).await;
        }
    }
    events
}

/// A value that says which attempt it is of, in its first bytes and in all the others.
fn value(attempt: u64, length: u64) -> Vec<u8> {
    let mut value = attempt.to_be_bytes().to_vec();
    let mut chance = Chance::new(attempt);
    while (value.len() as u64) < length {
        value.extend_from_slice(&chance.draw().to_be_bytes());
    }
    value.truncate(length as usize);
    value
}

/// The attempt that a value is of, if it is whole.
fn attempt_of(found: &[u8]) -> Option<u64> {
    let (first, _) = found.split_first_chunk()?;
    let attempt = u64::from_be_bytes(*first);
    (found == value(attempt, found.len() as u64)).then_some(attempt)
}

/// Waits until every location answers what the origin does, with plain reads, and logs these, too. Answers how long each took.
async fn converge(world: &World, events: &mut Vec<Event>) -> Vec<Duration> {
    let mut centre = Line::connect(world.addresses[0], &world.headers).await.expect("all are back");
    let start = Instant::now();
    let mut current = Vec::new();
    for key in 0..KEYS {
        let event = read(world, &mut centre, 0, key, Asked { max_age: Duration::ZERO, at_least: None }).await;
        let event = event.expect("all are back");
        let Event::Read { answer, .. } = &event else { unreachable!("a read was asked") };
        assert!(matches!(answer.status, 200 | 404), "the latest of {key} after all healed: {answer:?}");
        current.push((answer.status, answer.body.clone()));
        events.push(event);
    }
    let mut took = Vec::new();
    for (location, address) in world.addresses.iter().enumerate() {
        let mut line = Line::connect(*address, &world.headers).await.expect("all are back");
        for (key, current) in current.iter().enumerate() {
            loop {
                let event =
                    read(world, &mut line, location, key, Asked { max_age: Duration::from_secs(60), at_least: None })
                        .await;
                let event = event.expect("all are back");
                let Event::Read { answer, .. } = &event else { unreachable!("a read was asked") };
                let same = (answer.status, &answer.body) == (current.0, &current.1);
                let late = start.elapsed() > CONVERGES;
                assert!(same || !late, "{} has not converged on key {key}: {answer:?}", LOCATIONS[location]);
                events.push(event);
                if same {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        took.push(start.elapsed());
    }
    took
}

/// What the logs came to.
#[derive(Default)]
struct Found {
    violations: Vec<Violation>,
    checked: u64,
    stale: u64,
    refused: u64,
    back_over_restart: u64,
    acknowledged: u64,
    unknown: u64,
    unknown_seen: u64,
    at_least: u64,
    overtaken: u64,
    ages: Vec<u64>,
}

fn check(world: &World, mut events: Vec<Event>, restarts: &Restarts) -> Found {
    let mut found = Found::default();
    let mut checker = Checker::new(KEYS);
    for (key, length) in world.attempts.lock().expect("nobody panics with it").iter() {
        checker.attempt(*key, *length);
    }
    events.sort_by_key(Event::at);
    let all = effects(&events, &mut found);
    for (version, key, effect, at) in all.iter().copied() {
        if let Err(what) = checker.took_effect(at, key, version, effect) {
            found.violations.push(Violation { at, node: 0, key: Some(key), what });
        }
    }
    let mut floors = Floors { shown: HashMap::new(), restarts };
    for event in &events {
        let (location, key, at) = (event.location(), event.key(), event.at());
        if let Err(what) = check_event(event, &mut checker, &mut floors, &mut found) {
            let what = format!("{what}\n{}", story(&events, &all, key, at));
            found.violations.push(Violation { at, node: location, key: Some(key), what });
        }
    }
    found.checked = checker.reads;
    found
}

/// How far a story goes back and on.
const STORY: Nanos = 400 * clock::MILLI;

/// What there is to tell of a key around a moment: what took effect, and what everyone was answered.
fn story(events: &[Event], effects: &[(u64, usize, Effect, Nanos)], key: usize, around: Nanos) -> String {
    let told = |at: Nanos| at + STORY > around && at < around + STORY / 4;
    let effects = effects.iter().filter(|(_, of, _, at)| *of == key && told(*at));
    let mut lines: Vec<(Nanos, String)> = effects
        .map(|(version, _, effect, at)| (*at, format!("by {at} ns {version:016x} took effect: {effect:?}")))
        .collect();
    let events = events.iter().filter(|event| event.key() == key && told(event.at()));
    lines.extend(events.map(|event| (event.at(), event.told())));
    lines.sort();
    lines.into_iter().map(|(_, line)| format!("  {line}\n")).collect()
}

/// What took effect, by key and then by version: each at the latest when it was acknowledged or first seen, and before whatever overwrote it.
fn effects(events: &[Event], found: &mut Found) -> Vec<(u64, usize, Effect, Nanos)> {
    let mut by_key: Vec<BTreeMap<u64, (Effect, Nanos)>> = vec![BTreeMap::new(); KEYS];
    let mut unknown_deletes: HashMap<usize, Nanos> = HashMap::new();
    for event in events {
        let Event::Write { key, attempt, started_at, at, version, .. } = event else { continue };
        let Some(version) = version else {
            found.unknown += 1;
            if attempt.is_none() {
                unknown_deletes
                    .entry(*key)
                    .and_modify(|first| *first = (*first).min(*started_at))
                    .or_insert(*started_at);
            }
            continue;
        };
        found.acknowledged += 1;
        let effect = if attempt.is_some() { Effect::Put { expires_at: None } } else { Effect::Delete };
        by_key[*key].insert(*version, (effect, *at));
    }
    for event in events {
        let Event::Read { key, at, answer, .. } = event else { continue };
        let Some(version) = answer.version else { continue };
        let effects = &mut by_key[*key];
        match answer.status {
            200 => {
                found.unknown_seen += u64::from(!effects.contains_key(&version));
                let effect = effects.entry(version).or_insert((Effect::Put { expires_at: None }, *at));
                effect.1 = effect.1.min(*at);
            }
            // It says as of when it is absent, by any write's version: so it was the last delete up to that, or one that was never answered. That one gets
            // a version which is nobody's.
            404 => match effects.range_mut(..=version + 1).next_back() {
                Some((_, (Effect::Delete, by))) => *by = (*by).min(*at),
                Some((_, (Effect::Put { .. }, _))) if unknown_deletes.get(key).is_some_and(|sent| sent < at) => {
                    effects.insert(version + 1, (Effect::Delete, *at));
                }
                _ => {}
            },
            _ => {}
        }
    }
    let mut all = Vec::new();
    for (key, effects) in by_key.into_iter().enumerate() {
        let first = all.len();
        let mut latest = Nanos::MAX;
        for (version, (effect, at)) in effects.into_iter().rev() {
            latest = latest.min(at);
            all.push((version, key, effect, latest));
        }
        all[first..].reverse();
    }
    all
}

/// What each location has shown of each key, and when.
struct Floors<'a> {
    shown: HashMap<(usize, usize), Vec<(Nanos, Floor)>>,
    restarts: &'a Restarts,
}

impl Floors<'_> {
    fn show(&mut self, location: usize, key: usize, at: Nanos, floor: Floor) {
        let shown = self.shown.entry((location, key)).or_default();
        let restarted = last_restart(self.restarts, location, at);
        let highest = shown.last().filter(|(earlier, _)| *earlier >= restarted).map(|(_, floor)| *floor);
        shown.push((at, highest.map_or(floor, |highest| highest.max(floor))));
    }

    /// The newest shown before this moment, since the last restart, and over all restarts.
    fn before(&self, location: usize, key: usize, asked_at: Nanos) -> (Floor, Floor) {
        let Some(shown) = self.shown.get(&(location, key)) else { return Default::default() };
        let before = &shown[..shown.partition_point(|(at, _)| *at <= asked_at)];
        let restarted = last_restart(self.restarts, location, asked_at);
        let since = before.last().filter(|(at, _)| *at >= restarted).map(|(_, floor)| *floor);
        let ever = before.iter().map(|(_, floor)| *floor).max();
        (since.unwrap_or_default(), ever.unwrap_or_default())
    }
}

fn last_restart(restarts: &Restarts, location: usize, before: Nanos) -> Nanos {
    restarts.iter().filter(|(of, at)| *of == location && *at <= before).map(|(_, at)| *at).max().unwrap_or_default()
}

fn check_event(event: &Event, checker: &mut Checker, floors: &mut Floors<'_>, found: &mut Found) -> Result<(), String> {
    let (asked, asked_at, answer) = match event {
        Event::Write { location, key, attempt, at, version: Some(version), .. } => {
            let floor = checker.acknowledged(*key, *attempt, *version)?;
            floors.show(*location, *key, *at, floor);
            return Ok(());
        }
        Event::Write { .. } => return Ok(()),
        Event::Read { asked, asked_at, answer, .. } => (asked, *asked_at, answer),
    };
    let (location, key, at) = (event.location(), event.key(), event.at());
    let seen = match answer.status {
        200 => Seen::Present { version: answer.version.ok_or("a value without a version")? },
        404 => Seen::Absent,
        503 => {
            found.refused += 1;
            return Ok(());
        }
        status => return Err(format!("a read was answered {status}")),
    };
    if let Seen::Present { version } = seen {
        checker.check_value(key, version, attempt_of(&answer.body), answer.body.len() as u64)?;
    }
    let (floor, ever) = floors.before(location, key, asked_at);
    let age = Duration::from_millis(answer.age.ok_or("an answer without its age")?);
    let stale = answer.cache == "STALE";
    found.stale += u64::from(stale);
    found.at_least += u64::from(asked.at_least.is_some());
    found.ages.push(answer.age.unwrap_or_default());
    // The answer was made at some moment after the question: its age says as of when, counted from no earlier than that.
    let under_way = Duration::from_nanos(at - asked_at);
    let asked_anew = under_way * TIERS + Duration::from_millis(2) * TIERS;
    if !stale && age > asked.max_age && (answer.cache == "HIT" || age > asked_anew) {
        return Err(format!("older than the read accepts ({:?}), and not marked", asked.max_age));
    }
    let demand = Demand { asked_at, max_age: asked.max_age, at_least: asked.at_least, floor };
    // Marked or not: that has been looked at.
    let answered = Answered { at, seen, age: age + under_way, stale: true, waited: true, stale_max: STALE_MAX };
    let floor = checker.check_read(key, &demand, &answered)?;
    found.back_over_restart += u64::from(checker.is_behind(key, &answered, ever));
    found.overtaken += u64::from(checker.now(key, asked_at) != seen);
    floors.show(location, key, at, floor);
    Ok(())
}

impl Event {
    fn location(&self) -> usize {
        match self {
            Event::Read { location, .. } | Event::Write { location, .. } => *location,
        }
    }

    fn key(&self) -> usize {
        match self {
            Event::Read { key, .. } | Event::Write { key, .. } => *key,
        }
    }

    fn at(&self) -> Nanos {
        match self {
            Event::Read { at, .. } | Event::Write { at, .. } => *at,
        }
    }

    fn told(&self) -> String {
        match self {
            Event::Write { location, key, started_at, at, version, .. } => {
                format!("written at {}: key {key}, {started_at} to {at} ns, {version:016x?}", LOCATIONS[*location])
            }
            Event::Read { location, key, asked, asked_at, at, answer } => format!(
                "read at {}: key {key}, {asked_at} to {at} ns, up to {:?} old, at least {:016x?}: {} {} of age {:?} ms, version {:016x?}",
                LOCATIONS[*location],
                asked.max_age,
                asked.at_least,
                answer.status,
                answer.cache,
                answer.age,
                answer.version
            ),
        }
    }
}

fn print(found: &Found, rounds: u64, took: Duration, converged: &[Duration]) {
    for violation in found.violations.iter().take(5) {
        println!("{violation}");
    }
    let mut ages = found.ages.clone();
    println!("| | |\n|---|---|");
    println!(
        "| processes killed | {rounds}, each role in turn, every fourth time two at once; {:.0} s; load {} |",
        took.as_secs_f64(),
        load()
    );
    println!(
        "| writes acknowledged, without an answer | {}, {} ({} of those were seen later) |",
        found.acknowledged, found.unknown, found.unknown_seen
    );
    println!("| reads checked, refused with 503 | {}, {} |", found.checked, found.refused);
    println!(
        "| of them marked STALE, naming a version, of what had been overwritten | {}, {}, {} |",
        found.stale, found.at_least, found.overtaken
    );
    let age = |share: f64, ages: &mut Vec<u64>| quantile(ages, share);
    println!(
        "| age, p50, p99, max | {} ms, {} ms, {} ms |",
        age(0.5, &mut ages),
        age(0.99, &mut ages),
        age(1.0, &mut ages)
    );
    println!("| behind what its location had shown before its own restart | {} |", found.back_over_restart);
    let slowest = converged.iter().max().copied().unwrap_or_default();
    println!("| all locations answer the same, after the load has ended | {:.1} s |", slowest.as_secs_f64());
    println!("| violations | {} |", found.violations.len());
}
