//! How old covered answers say they are, over three million reads far away, and that none says it is younger than it is.
//!
//! A writer notes when each write was acknowledged. A read that shows what an acknowledged write had replaced before the question was asked is
//! stale for at least as long, and has to say so. All processes and this one share a machine, so that one clock tells.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    chain::{Chain, read, write},
    chance::Chance,
    process::load,
};
use tokio::time::Instant;

const TRIP: Duration = Duration::from_millis(80);
const READS: u64 = 3_000_000;
const READERS: u64 = 8;
/// Of these one in ten is written to, the others never change.
const KEYS: u64 = 1000;
const WRITTEN: u64 = KEYS / 10;
const HOLDERS: u64 = 50;
const WRITE_PAUSE: Duration = Duration::from_millis(20);
/// An interval for each tier, and what the ping and its echo travel.
const BOUND: Duration = Duration::from_millis(3 * 1000 + 2 * TRIP.as_millis() as u64);
/// Acknowledged writes to a key that are remembered: far more than a reader can be behind.
const REMEMBERED: usize = 4096;

/// For each key that is written to, when its writes were acknowledged, by their numbers: microseconds since the start, 0 before.
struct Truth {
    start: Instant,
    acknowledged: Vec<Vec<AtomicU64>>,
}

impl Truth {
    fn now(&self) -> u64 {
        self.start.elapsed().as_micros() as u64 + 1
    }
}

#[derive(Default)]
struct Seen {
    reads: u64,
    hits: u64,
    stale: u64,
    over: u64,
    /// Reads by their age in milliseconds.
    ages: Vec<u64>,
    /// The least by which an age exceeded what it had to, in microseconds.
    closest: Option<u64>,
}

pub async fn run() {
    let chain = Arc::new(Chain::start(TRIP).await);
    let acknowledged = || (0..REMEMBERED).map(|_| AtomicU64::new(0)).collect();
    let truth = Arc::new(Truth { start: Instant::now(), acknowledged: (0..WRITTEN).map(|_| acknowledged()).collect() });
    let mut centre = chain.line(&chain.centre).await;
    for key in 0..KEYS {
        write(&mut centre, &key.to_string(), b"0").await;
        if key < WRITTEN {
            truth.acknowledged[key as usize][0].store(truth.now(), Ordering::SeqCst);
        }
    }
    // At once, since each takes its trips.
    let holding = (0..HOLDERS).map(async |holder| {
        let mut away = chain.line(&chain.away).await;
        for key in (holder..KEYS).step_by(HOLDERS as usize) {
            read(&mut away, &key.to_string()).await;
        }
    });
    futures_util::future::join_all(holding).await;
    let start = Instant::now();
    let done = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn(keep_writing(centre, Arc::clone(&truth), Arc::clone(&done)));
    let readers: Vec<_> =
        (0..READERS).map(|reader| tokio::spawn(keep_reading(Arc::clone(&chain), Arc::clone(&truth), reader))).collect();
    let mut all = Seen::default();
    for reader in readers {
        let seen = reader.await.expect("a reader sees only right answers");
        all.add(&seen);
    }
    let took = start.elapsed();
    done.store(true, Ordering::SeqCst);
    let writes = writer.await.expect("every write is acknowledged");
    print(&all, writes, took);
    assert_eq!(all.over, 0, "covered answers that say they are older than {BOUND:?}");
}

/// Writes to one key after the other the number of the write.
async fn keep_writing(mut line: crate::line::Line, truth: Arc<Truth>, done: Arc<AtomicBool>) -> u64 {
    let mut writes = 0;
    for number in 1..REMEMBERED {
        for key in 0..WRITTEN {
            if done.load(Ordering::SeqCst) {
                return writes;
            }
            write(&mut line, &key.to_string(), number.to_string().as_bytes()).await;
            truth.acknowledged[key as usize][number].store(truth.now(), Ordering::SeqCst);
            writes += 1;
            tokio::time::sleep(WRITE_PAUSE).await;
        }
    }
    panic!("more writes than are remembered");
}

async fn keep_reading(chain: Arc<Chain>, truth: Arc<Truth>, reader: u64) -> Seen {
    let mut line = chain.line(&chain.away).await;
    let mut chance = Chance::new(reader);
    let mut seen = Seen { ages: vec![0; BOUND.as_millis() as usize * 10], ..Seen::default() };
    let mut last = vec![0; WRITTEN as usize];
    while seen.hits < READS / READERS {
        let drawn = chance.draw();
        // Every other read is of a key that is written to.
        let key = if drawn.is_multiple_of(2) { drawn / 2 % WRITTEN } else { drawn / 2 % KEYS };
        let asked_at = truth.now();
        let answer = read(&mut line, &key.to_string()).await;
        let age = answer.age.expect("an answer has an age");
        let number: usize =
            std::str::from_utf8(&answer.body).ok().and_then(|text| text.parse().ok()).expect("a number was written");
        seen.reads += 1;
        if answer.cache == "HIT" {
            seen.hits += 1;
            seen.over += u64::from(Duration::from_millis(age) > BOUND);
            let slot = (age as usize).min(seen.ages.len() - 1);
            seen.ages[slot] += 1;
        }
        if key >= WRITTEN {
            assert_eq!(number, 0, "{key} was never written to");
            continue;
        }
        let last = &mut last[key as usize];
        assert!(number >= *last, "{key} went back from {last} to {number}");
        *last = number;
        let overtaken_at = truth.acknowledged[key as usize][number + 1].load(Ordering::SeqCst);
        if overtaken_at != 0 && overtaken_at < asked_at {
            let least = asked_at - overtaken_at;
            assert!(age * 1000 >= least, "{key}: {number} was overtaken {least} us before: {answer:?}");
            seen.stale += 1;
            let room = age * 1000 - least;
            seen.closest = Some(seen.closest.map_or(room, |closest| closest.min(room)));
        }
    }
    seen
}

impl Seen {
    fn add(&mut self, other: &Seen) {
        self.reads += other.reads;
        self.hits += other.hits;
        self.stale += other.stale;
        self.over += other.over;
        self.ages.resize(other.ages.len(), 0);
        self.ages.iter_mut().zip(&other.ages).for_each(|(sum, more)| *sum += more);
        self.closest = self.closest.into_iter().chain(other.closest).min();
    }

    fn age(&self, share: f64) -> usize {
        let mut left = (self.hits as f64 * share).ceil() as u64;
        self.ages
            .iter()
            .position(|count| {
                left = left.saturating_sub(*count);
                left == 0
            })
            .unwrap_or_default()
    }
}

fn print(seen: &Seen, writes: u64, took: Duration) {
    println!("| | |\n|---|---|");
    println!(
        "| reads of covered entries | {} in {:.0} s, {} more asked upstream; load {} |",
        seen.hits,
        took.as_secs_f64(),
        seen.reads - seen.hits,
        load()
    );
    println!("| writes meanwhile | {writes} |");
    println!("| age, p50, p99, max | {} ms, {} ms, {} ms |", seen.age(0.5), seen.age(0.99), seen.age(1.0));
    println!("| over {} ms | {} |", BOUND.as_millis(), seen.over);
    println!("| reads of what an acknowledged write had replaced | {} |", seen.stale);
    println!(
        "| of them younger than the truth | 0; the closest by {:.1} ms |",
        seen.closest.unwrap_or_default() as f64 / 1000.0
    );
}
