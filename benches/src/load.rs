//! The load: connections that are kept, one request at a time on each, on one thread that does little else than the system calls.
//!
//! *Closed*: each connection asks again as soon as it is answered, which shows what a server can do. *Open*: requests are due at moments that nothing the
//! server does can shift, and the latency of each counts from when it was due, also when it had to wait for a free connection; so a stall is seen by all the
//! requests that it delays, not by one (coordinated omission).

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use mio::{Events, Interest, Poll, Token, net::TcpStream};

use crate::{
    ask::{Expected, Keys, Request},
    process::{core_time, tree_time},
};

/// Whom to ask for what.
#[derive(Clone)]
pub struct Target {
    pub name: String,
    pub address: std::net::SocketAddr,
    pub request: Request,
    pub keys: Keys,
    pub expected: Expected,
    /// Processes whose time counts, with all that they started.
    pub servers: Vec<u32>,
}

/// What a stretch of load came to.
pub struct Round {
    pub requests: u64,
    pub took: Duration,
    pub server_time: Duration,
    /// In nanoseconds. Of an open load it counts from when each request was due.
    pub latency: Histogram<u64>,
    /// How much of the time the server and the load had a core. More than 1 when it had several.
    pub server_share: f64,
    pub load_share: f64,
    /// Of an open load: how late requests went out although a connection was free. What the load itself adds to latencies.
    pub late: Histogram<u64>,
}

impl Round {
    pub fn per_second(&self) -> f64 {
        self.requests as f64 / self.took.as_secs_f64()
    }

    pub fn micros_per_request(&self) -> f64 {
        self.server_time.as_secs_f64() * 1e6 / self.requests as f64
    }

    /// Whether the server could have answered more: then requests a second say nothing of it, while its time per request does.
    pub fn held_back(&self) -> Option<HeldBack> {
        match () {
            () if self.server_share >= BUSY => None,
            () if self.load_share >= BUSY => Some(HeldBack::Load),
            () => Some(HeldBack::Others),
        }
    }
}

/// Says so, if the load of some rounds was so late by itself that the latencies are more the machine's than the servers'.
pub fn warn_if_late(rounds: &[&Round]) {
    let late: Vec<f64> = rounds.iter().map(|round| round.late.value_at_quantile(0.99) as f64 / 1e6).collect();
    let most = late.iter().copied().fold(0.0, f64::max);
    if most > 0.5 {
        println!(
            "The load itself was late by up to {most:.1} ms (p99 of a round): others used its core, and these latencies are the machine's.\n"
        );
    }
}

/// What kept a server from answering more.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum HeldBack {
    /// The load had no time to ask more.
    Load,
    /// Neither used its core up: others did, or the disk.
    Others,
}

/// From here on a core is used up.
const BUSY: f64 = 0.95;

/// Asks for that long on that many connections, each as soon as it is answered.
pub fn round(target: &Target, connections: usize, length: Duration) -> Round {
    let mut load = Load::connect(&[(target, connections)]);
    load.measured(|load| load.closed(Instant::now() + length)).remove(0)
}

/// Part of an open load.
pub struct Part<'a> {
    pub target: &'a Target,
    pub connections: usize,
    /// Requests a second.
    pub rate: f64,
}

/// Asks for that long, all of the parts at once, each at its own rate whatever the servers do. A round for each.
pub fn open(parts: &[Part<'_>], length: Duration) -> Vec<Round> {
    let targets: Vec<_> = parts.iter().map(|part| (part.target, part.connections)).collect();
    let rates: Vec<f64> = parts.iter().map(|part| part.rate).collect();
    Load::connect(&targets).measured(|load| load.open(length, &rates))
}

/// Asks for each of the keys from 0 on once, to have a server hold them.
pub fn once(target: &Target, count: u32) {
    once_from(target, 0, count);
}

/// The same for so many keys from that one on.
pub fn once_from(target: &Target, first: u32, count: u32) {
    let warm = Target { keys: Keys::Counting(first), ..target.clone() };
    let mut load = Load::connect(&[(&warm, 32)]);
    load.parts[0].count = Some(u64::from(count));
    load.closed(Instant::now() + Duration::from_secs(600));
    assert_eq!(load.parts[0].answered, u64::from(count), "{} did not answer for all keys in time", target.name);
}

fn tree_times(servers: &[u32]) -> Duration {
    servers.iter().map(|id| tree_time(*id)).sum()
}

fn histogram() -> Histogram<u64> {
    // Up to a minute, to a thousandth.
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds of a histogram are in order")
}

struct Connection {
    stream: TcpStream,
    /// Which part it belongs to.
    part: usize,
    request: Vec<u8>,
    written: usize,
    buffer: Vec<u8>,
    filled: usize,
    key: u32,
    number: u64,
    /// When its request was sent, or was due.
    since: Instant,
    asking: bool,
}

/// What is asked of one target, and what came of it.
struct Asked<'a> {
    target: &'a Target,
    /// The number of the next request.
    next: u64,
    /// How many requests there are, if not as many as the time allows.
    count: Option<u64>,
    answered: u64,
    latency: Histogram<u64>,
    late: Histogram<u64>,
    /// Connections without a request, of an open load.
    idle: VecDeque<usize>,
    /// Whether a request that was due had to wait for a connection.
    waited: bool,
}

struct Load<'a> {
    poll: Poll,
    connections: Vec<Connection>,
    parts: Vec<Asked<'a>>,
}

/// Room for a head and a short value; it grows for longer ones.
const BUFFER_BYTES: usize = 8192;

impl<'a> Load<'a> {
    fn connect(targets: &[(&'a Target, usize)]) -> Load<'a> {
        let poll = Poll::new().expect("the system polls");
        let mut load = Load { poll, connections: Vec::new(), parts: Vec::new() };
        for (part, (target, count)) in targets.iter().enumerate() {
            let first = load.connections.len();
            for _ in 0..*count {
                load.add(part, target);
            }
            load.parts.push(Asked {
                target,
                next: 0,
                count: None,
                answered: 0,
                latency: histogram(),
                late: histogram(),
                idle: (first..load.connections.len()).collect(),
                waited: false,
            });
        }
        load
    }

    fn add(&mut self, part: usize, target: &Target) {
        let stream = std::net::TcpStream::connect(target.address)
            .unwrap_or_else(|e| panic!("connecting to {} at {}: {e}", target.name, target.address));
        stream.set_nodelay(true).and_then(|()| stream.set_nonblocking(true)).expect("a socket takes options");
        let mut stream = TcpStream::from_std(stream);
        let (token, interest) = (Token(self.connections.len()), Interest::READABLE | Interest::WRITABLE);
        self.poll.registry().register(&mut stream, token, interest).expect("a socket can be polled");
        self.connections.push(Connection {
            stream,
            part,
            request: Vec::new(),
            written: 0,
            buffer: vec![0; BUFFER_BYTES],
            filled: 0,
            key: 0,
            number: 0,
            since: Instant::now(),
            asking: false,
        });
    }

    /// Runs it, and says what came of each part. Parts with a server in common share its time.
    fn measured(&mut self, run: impl FnOnce(&mut Self)) -> Vec<Round> {
        let own = std::process::id();
        let times = |load: &Self| load.parts.iter().map(|part| tree_times(&part.target.servers)).collect::<Vec<_>>();
        let before = (core_time(own), times(self));
        let start = Instant::now();
        run(self);
        let took = start.elapsed();
        let load_share = (core_time(own) - before.0).as_secs_f64() / took.as_secs_f64();
        let spent = times(self).into_iter().zip(before.1).map(|(now, before)| now.saturating_sub(before));
        let spent: Vec<Duration> = spent.collect();
        let rounds = self.parts.drain(..).zip(spent).map(|(part, server_time)| Round {
            requests: part.answered,
            took,
            server_time,
            latency: part.latency,
            server_share: server_time.as_secs_f64() / took.as_secs_f64(),
            load_share,
            late: part.late,
        });
        rounds.collect()
    }

    fn closed(&mut self, until: Instant) {
        let mut events = Events::with_capacity(1024);
        let mut asking = 0;
        for index in 0..self.connections.len() {
            if self.parts[self.connections[index].part].has_more() {
                self.ask(index, Instant::now());
                asking += 1;
            }
        }
        let mut now = Instant::now();
        while asking > 0 {
            self.poll.poll(&mut events, Some(PATIENCE)).or_else(interrupted).expect("the system polls");
            assert!(!events.is_empty() || now.elapsed() < PATIENCE, "nothing is answered any more");
            for event in &events {
                let index = event.token().0;
                if !self.connections[index].asking || !self.proceed(index) {
                    continue;
                }
                now = Instant::now();
                let part = self.note(index, now);
                if now < until && self.parts[part].has_more() {
                    self.ask(index, now);
                } else {
                    asking -= 1;
                }
            }
        }
    }

    /// Never sleeps: the system's shortest sleep is longer than what is measured here.
    fn open(&mut self, length: Duration, rates: &[f64]) {
        let mut events = Events::with_capacity(1024);
        let start = Instant::now();
        for (part, rate) in self.parts.iter_mut().zip(rates) {
            part.count = Some((length.as_secs_f64() * rate) as u64);
        }
        while self.parts.iter().any(|part| Some(part.answered) < part.count) {
            let now = Instant::now();
            assert!(now < start + length + PATIENCE, "the server is far behind the load");
            for (part, rate) in rates.iter().enumerate() {
                self.ask_what_is_due(part, start, *rate, now);
            }
            self.poll.poll(&mut events, Some(Duration::ZERO)).or_else(interrupted).expect("the system polls");
            for event in &events {
                let index = event.token().0;
                if self.connections[index].asking && self.proceed(index) {
                    let part = self.note(index, Instant::now());
                    self.parts[part].idle.push_back(index);
                }
            }
        }
    }

    fn ask_what_is_due(&mut self, number: usize, start: Instant, rate: f64, now: Instant) {
        loop {
            let part = &mut self.parts[number];
            let due = start + Duration::from_secs_f64(part.next as f64 / rate);
            if !part.has_more() || due > now {
                part.waited = false;
                return;
            }
            let Some(index) = part.idle.pop_front() else {
                part.waited = true;
                return;
            };
            // One that waited for a connection is late for the server's sake, and so is each behind it.
            if !part.waited {
                part.late.saturating_record((now - due).as_nanos() as u64);
            }
            self.ask(index, due);
        }
    }

    /// Begins the next request on a connection.
    fn ask(&mut self, index: usize, since: Instant) {
        let connection = &mut self.connections[index];
        let part = &mut self.parts[connection.part];
        connection.number = part.next;
        connection.key = part.target.keys.at(part.next);
        part.next += 1;
        part.target.request.write(connection.key, &mut connection.request);
        (connection.written, connection.filled) = (0, 0);
        (connection.since, connection.asking) = (since, true);
        connection.send();
    }

    /// Sends and takes what it can; answers whether the answer is complete.
    fn proceed(&mut self, index: usize) -> bool {
        let connection = &mut self.connections[index];
        let target = self.parts[connection.part].target;
        connection.send();
        loop {
            if connection.filled == connection.buffer.len() {
                connection.buffer.resize(connection.buffer.len() * 4, 0);
            }
            match connection.stream.read(&mut connection.buffer[connection.filled..]) {
                Ok(0) => panic!("{} closed a connection", target.name),
                Ok(length) => connection.filled += length,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return false,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => panic!("{}: {e}", target.name),
            }
            let arrived = &connection.buffer[..connection.filled];
            if let Some(length) = target.expected.check(connection.key, connection.number, arrived) {
                assert_eq!(length, arrived.len(), "{} answered more than it was asked", target.name);
                connection.asking = false;
                return true;
            }
        }
    }

    /// Counts an answer; says for which part.
    fn note(&mut self, index: usize, now: Instant) -> usize {
        let connection = &self.connections[index];
        let part = &mut self.parts[connection.part];
        part.answered += 1;
        part.latency.saturating_record(now.saturating_duration_since(connection.since).as_nanos() as u64);
        connection.part
    }
}

impl Asked<'_> {
    fn has_more(&self) -> bool {
        self.count.is_none_or(|count| self.next < count)
    }
}

/// Longer than any server here takes to answer.
const PATIENCE: Duration = Duration::from_secs(60);

fn interrupted(e: io::Error) -> io::Result<()> {
    if e.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(e) }
}

impl Connection {
    fn send(&mut self) {
        while self.written < self.request.len() {
            match self.stream.write(&self.request[self.written..]) {
                Ok(length) => self.written += length,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => panic!("sending a request: {e}"),
            }
        }
    }
}
