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

/// How a load goes about it.
#[derive(Clone, Copy)]
pub enum Pace {
    Closed,
    /// That many requests a second.
    Open(f64),
}

/// Asks for that long on that many connections.
pub fn round(target: &Target, connections: usize, length: Duration, pace: Pace) -> Round {
    let mut load = Load::connect(target, connections);
    let own = std::process::id();
    let before = (core_time(own), tree_times(&target.servers));
    let start = Instant::now();
    match pace {
        Pace::Closed => load.closed(start + length),
        Pace::Open(rate) => load.open(start, length, rate),
    }
    let took = start.elapsed();
    let server_time = tree_times(&target.servers).saturating_sub(before.1);
    let load_time = core_time(own) - before.0;
    Round {
        requests: load.answered,
        took,
        server_time,
        latency: load.latency,
        server_share: server_time.as_secs_f64() / took.as_secs_f64(),
        load_share: load_time.as_secs_f64() / took.as_secs_f64(),
        late: load.late,
    }
}

/// Asks for each of these keys once, in turn, to have a server hold them; any right status will do.
pub fn once(target: &Target, count: u32) {
    let warm = Target { keys: Keys::Counting(0), ..target.clone() };
    let mut load = Load::connect(&warm, 32);
    load.count = Some(u64::from(count));
    load.closed(Instant::now() + Duration::from_secs(600));
    assert_eq!(load.answered, u64::from(count), "{} did not answer for all keys in time", target.name);
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

struct Load<'a> {
    target: &'a Target,
    poll: Poll,
    connections: Vec<Connection>,
    /// The number of the next request.
    next: u64,
    /// How many requests there are, if not as many as the time allows.
    count: Option<u64>,
    answered: u64,
    latency: Histogram<u64>,
    late: Histogram<u64>,
}

/// Room for a head and a short value; it grows once for longer ones.
const BUFFER_BYTES: usize = 8192;

impl<'a> Load<'a> {
    fn connect(target: &'a Target, count: usize) -> Load<'a> {
        let poll = Poll::new().expect("the system polls");
        let connections = (0..count)
            .map(|index| {
                let stream = std::net::TcpStream::connect(target.address)
                    .unwrap_or_else(|e| panic!("connecting to {} at {}: {e}", target.name, target.address));
                stream.set_nodelay(true).and_then(|()| stream.set_nonblocking(true)).expect("a socket takes options");
                let mut stream = TcpStream::from_std(stream);
                let interest = Interest::READABLE | Interest::WRITABLE;
                poll.registry().register(&mut stream, Token(index), interest).expect("a socket can be polled");
                Connection {
                    stream,
                    request: Vec::new(),
                    written: 0,
                    buffer: vec![0; BUFFER_BYTES],
                    filled: 0,
                    key: 0,
                    number: 0,
                    since: Instant::now(),
                    asking: false,
                }
            })
            .collect();
        Load { target, poll, connections, next: 0, count: None, answered: 0, latency: histogram(), late: histogram() }
    }

    fn closed(&mut self, until: Instant) {
        let mut events = Events::with_capacity(1024);
        let mut asking = 0;
        for index in 0..self.connections.len() {
            if self.has_more() {
                self.ask(index, Instant::now());
                asking += 1;
            }
        }
        let mut now = Instant::now();
        while asking > 0 {
            self.poll.poll(&mut events, Some(PATIENCE)).or_else(interrupted).expect("the system polls");
            assert!(!events.is_empty() || now.elapsed() < PATIENCE, "{} has stopped answering", self.target.name);
            for event in &events {
                let index = event.token().0;
                if !self.connections[index].asking || !self.proceed(index) {
                    continue;
                }
                now = Instant::now();
                self.note(index, now);
                if now < until && self.has_more() {
                    self.ask(index, now);
                } else {
                    asking -= 1;
                }
            }
        }
    }

    fn has_more(&self) -> bool {
        self.count.is_none_or(|count| self.next < count)
    }

    /// Never sleeps: the system's shortest sleep is longer than what is measured here.
    fn open(&mut self, start: Instant, length: Duration, rate: f64) {
        let mut events = Events::with_capacity(1024);
        let total = (length.as_secs_f64() * rate) as u64;
        let due = |number: u64| start + Duration::from_secs_f64(number as f64 / rate);
        let mut idle: VecDeque<usize> = (0..self.connections.len()).collect();
        let mut waited = false;
        while self.answered < total {
            let now = Instant::now();
            assert!(now < start + length + PATIENCE, "{} is far behind the load", self.target.name);
            while self.next < total && due(self.next) <= now {
                let Some(index) = idle.pop_front() else {
                    waited = true;
                    break;
                };
                let since = due(self.next);
                if !waited {
                    _ = self.late.record((now - since).as_nanos() as u64);
                }
                self.ask(index, since);
                // A request that waited for a connection was late for the server's sake; so is each behind it until none waits.
                waited &= self.next < total && due(self.next) <= now;
            }
            self.poll.poll(&mut events, Some(Duration::ZERO)).or_else(interrupted).expect("the system polls");
            for event in &events {
                let index = event.token().0;
                if self.connections[index].asking && self.proceed(index) {
                    self.note(index, Instant::now());
                    idle.push_back(index);
                }
            }
        }
    }

    /// Begins the next request on a connection.
    fn ask(&mut self, index: usize, since: Instant) {
        let connection = &mut self.connections[index];
        connection.number = self.next;
        connection.key = self.target.keys.at(self.next);
        self.next += 1;
        self.target.request.write(connection.key, &mut connection.request);
        (connection.written, connection.filled) = (0, 0);
        (connection.since, connection.asking) = (since, true);
        connection.send();
    }

    /// Sends and takes what it can; answers whether the answer is complete.
    fn proceed(&mut self, index: usize) -> bool {
        let connection = &mut self.connections[index];
        connection.send();
        loop {
            if connection.filled == connection.buffer.len() {
                connection.buffer.resize(connection.buffer.len() * 4, 0);
            }
            match connection.stream.read(&mut connection.buffer[connection.filled..]) {
                Ok(0) => panic!("{} closed a connection", self.target.name),
                Ok(length) => connection.filled += length,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return false,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => panic!("{}: {e}", self.target.name),
            }
            let arrived = &connection.buffer[..connection.filled];
            if let Some(length) = self.target.expected.check(connection.key, connection.number, arrived) {
                assert_eq!(length, arrived.len(), "{} answered more than it was asked", self.target.name);
                connection.asking = false;
                return true;
            }
        }
    }

    fn note(&mut self, index: usize, now: Instant) {
        self.answered += 1;
        let took = now.saturating_duration_since(self.connections[index].since);
        self.latency.saturating_record(took.as_nanos() as u64);
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
