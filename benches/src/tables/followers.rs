//! Many followers of one tier while much is written: what the tier needs for it, how soon the slowest hears of a write, and whether one that takes nothing
//! changes anything for the others.
//!
//! The followers are connections of this program that ping as a tier does and read whatever comes. All of it shares one machine, so the receivers' work is on the same cores as the sender's.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    chain::{Chain, SECRET},
    process::{MIB, core_time, load, memory, quantile},
};
use kvasar::{
    kv::feed::{Follow, FollowerId, Item, Message},
    wire::{self, feed::Decoder},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::Instant,
};

const WRITES_PER_SECOND: u64 = 1000;
const WRITERS: u64 = 16;
const PHASE: Duration = Duration::from_secs(20);
/// Until all who will hear of a write have.
const SETTLE: Duration = Duration::from_secs(3);
const VALUE_BYTES: usize = 100;

/// When each write was acknowledged, by its number: microseconds since the start, 0 before.
struct Writes {
    start: Instant,
    acknowledged: Vec<AtomicU64>,
}

impl Writes {
    fn now(&self) -> u64 {
        self.start.elapsed().as_micros() as u64 + 1
    }
}

/// What one follower has heard.
#[derive(Default)]
struct Heard {
    bytes: u64,
    pieces: u64,
    /// For each write, by its number, when its purge came; 0 for never.
    purged: Vec<u32>,
    twice: u64,
    gaps: u64,
    echoes: u64,
    /// The number of the next item.
    next: Option<u64>,
}

pub async fn run(count: u64) {
    let chain = Chain::start(Duration::ZERO).await;
    let tier = chain.region.server.id();
    let before = memory(tier, "VmRSS");
    println!(
        "{count} followers of one tier, {WRITES_PER_SECOND} writes/s of {VALUE_BYTES} bytes for {PHASE:?}; load {}.\n",
        load()
    );
    let idle = phase(&chain, count, 0, false).await;
    let busy = phase(&chain, count, WRITES_PER_SECOND, false).await;
    let stalled = phase(&chain, count, WRITES_PER_SECOND, true).await;
    println!(
        "| | no writes | {WRITES_PER_SECOND} writes/s | the same, and one more that reads nothing |\n|---|---|---|---|"
    );
    let row = |name: &str, of: &dyn Fn(&Phase) -> String| {
        println!("| {name} | {} | {} | {} |", of(&idle), of(&busy), of(&stalled))
    };
    row("writes acknowledged in a second", &|p| format!("{:.0}", p.writes as f64 / PHASE.as_secs_f64()));
    row("purges heard, of those due", &|p| format!("{} of {}", p.heard, p.writes * count));
    row("gaps", &|p| p.gaps.to_string());
    row("acknowledged to heard, p50", &|p| millis(p.p50));
    row("p99", &|p| millis(p.p99));
    row("max", &|p| millis(p.max));
    row("the slowest follower's p50, p99", &|p| format!("{}, {}", millis(p.slowest_p50), millis(p.slowest_p99)));
    row("bytes per purge and follower", &|p| {
        if p.heard == 0 { "-".into() } else { format!("{:.1}", p.bytes as f64 / p.heard as f64) }
    });
    row("bytes per follower and second", &|p| format!("{:.0}", p.bytes as f64 / count as f64 / PHASE.as_secs_f64()));
    row("pieces sent to a follower in a second", &|p| {
        format!("{:.0}", p.pieces as f64 / count as f64 / PHASE.as_secs_f64())
    });
    row("the tier's cores", &|p| format!("{:.2}", p.tier_cores));
    row("its time per purge and follower", &|p| {
        if p.heard == 0 {
            "-".into()
        } else {
            format!("{:.2} us", p.tier_cores * PHASE.as_secs_f64() * 1e6 / p.heard as f64)
        }
    });
    row("cores of the followers and writers", &|p| format!("{:.2}", p.own_cores));
    row("the tier's memory", &|p| format!("{:.1} MiB", p.memory as f64 / MIB));
    row("over what it had without followers, each", &|p| {
        format!("{:.1} KiB", p.memory.saturating_sub(before) as f64 / 1024.0 / count as f64)
    });
    assert!(busy.right(count) && stalled.right(count), "a follower has missed something");
}

fn millis(micros: u32) -> String {
    format!("{:.1} ms", f64::from(micros) / 1000.0)
}

struct Phase {
    writes: u64,
    heard: u64,
    gaps: u64,
    bytes: u64,
    pieces: u64,
    p50: u32,
    p99: u32,
    max: u32,
    slowest_p50: u32,
    slowest_p99: u32,
    tier_cores: f64,
    own_cores: f64,
    memory: u64,
}

impl Phase {
    /// Whether each follower has heard of each write, once.
    fn right(&self, count: u64) -> bool {
        self.gaps == 0 && self.heard == self.writes * count
    }
}

async fn phase(chain: &Chain, count: u64, per_second: u64, stalled: bool) -> Phase {
    let total = per_second * PHASE.as_secs();
    let tier = chain.region.server.id();
    let own = std::process::id();
    let writes =
        Arc::new(Writes { start: Instant::now(), acknowledged: (0..total).map(|_| AtomicU64::new(0)).collect() });
    let done = Arc::new(AtomicBool::new(false));
    let _stalled = match stalled {
        true => Some(stall(chain.region.address()).await.expect("a follower is accepted")),
        false => None,
    };
    let mut followers = Vec::new();
    for id in 0..count {
        let (address, writes, done) = (chain.region.address(), Arc::clone(&writes), Arc::clone(&done));
        followers.push(tokio::spawn(follow(address, 1 + id, writes, done)));
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = (core_time(tier), core_time(own), Instant::now());
    let acknowledged = write_all(chain, &writes, per_second).await;
    let took = before.2.elapsed().as_secs_f64();
    let cores = ((core_time(tier) - before.0).as_secs_f64() / took, (core_time(own) - before.1).as_secs_f64() / took);
    tokio::time::sleep(SETTLE).await;
    let memory = memory(tier, "VmRSS");
    done.store(true, Ordering::SeqCst);
    let mut phase = Phase {
        writes: acknowledged,
        heard: 0,
        gaps: 0,
        bytes: 0,
        pieces: 0,
        p50: 0,
        p99: 0,
        max: 0,
        slowest_p50: 0,
        slowest_p99: 0,
        tier_cores: cores.0,
        own_cores: cores.1,
        memory,
    };
    let mut all: Vec<u32> = Vec::new();
    for follower in followers {
        let heard = follower.await.expect("a follower ends well").expect("the feed goes on until it is left");
        assert!(heard.twice == 0 && heard.echoes > 0, "{} purges came twice, {} echoes", heard.twice, heard.echoes);
        phase.gaps += heard.gaps;
        phase.bytes += heard.bytes;
        phase.pieces += heard.pieces;
        let acknowledged = writes.acknowledged.iter().map(|at| at.load(Ordering::SeqCst) as u32);
        let mut delays: Vec<u32> = heard
            .purged
            .iter()
            .zip(acknowledged)
            .filter(|(at, _)| **at != 0)
            .map(|(at, acknowledged)| at.saturating_sub(acknowledged))
            .collect();
        phase.heard += delays.len() as u64;
        if !delays.is_empty() {
            phase.slowest_p50 = phase.slowest_p50.max(quantile(&mut delays, 0.5));
            phase.slowest_p99 = phase.slowest_p99.max(quantile(&mut delays, 0.99));
            all.append(&mut delays);
        }
    }
    if !all.is_empty() {
        // One in a hundred is enough for what is in the middle; the last is the last.
        all.sort_unstable();
        let at = |share: f64| all[((all.len() - 1) as f64 * share) as usize];
        (phase.p50, phase.p99, phase.max) = (at(0.5), at(0.99), at(1.0));
    }
    phase
}

/// Writes at the origin, evenly; answers how many were acknowledged.
async fn write_all(chain: &Chain, writes: &Arc<Writes>, per_second: u64) -> u64 {
    let start = Instant::now();
    if per_second == 0 {
        tokio::time::sleep(PHASE).await;
        return 0;
    }
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let (mut line, writes) = (chain.line(&chain.origin).await, Arc::clone(writes));
        writers.push(tokio::spawn(async move {
            for number in (writer..writes.acknowledged.len() as u64).step_by(WRITERS as usize) {
                tokio::time::sleep_until(start + Duration::from_secs(number) / per_second as u32).await;
                crate::chain::write(&mut line, &format!("write-{number}"), &[b'x'; VALUE_BYTES]).await;
                writes.acknowledged[number as usize].store(writes.now(), Ordering::SeqCst);
            }
        }));
    }
    for writer in writers {
        writer.await.expect("every write is acknowledged");
    }
    tokio::time::sleep_until(start + PHASE).await;
    writes.acknowledged.len() as u64
}

fn request(to: SocketAddr, id: u64) -> Vec<u8> {
    let (path, headers) = wire::feed::encode_follow(Follow { follower: FollowerId(id), from: None, all_states: false });
    let mut head = format!(
        "POST {path} HTTP/1.1\r\nHost: {to}\r\nAuthorization: Bearer {SECRET}\r\nTransfer-Encoding: chunked\r\n"
    );
    for (name, value) in &headers {
        head.push_str(&format!("{name}: {}\r\n", value.to_str().expect("a header of ours is text")));
    }
    format!("{head}\r\n").into_bytes()
}

/// A follower that asks for the feed, pings, and never reads.
async fn stall(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(4096)?;
    let mut stream = socket.connect(to).await?;
    stream.write_all(&request(to, u64::MAX)).await?;
    Ok(stream)
}

async fn follow(to: SocketAddr, id: u64, writes: Arc<Writes>, done: Arc<AtomicBool>) -> io::Result<Heard> {
    let mut stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    stream.write_all(&request(to, id)).await?;
    let (mut from, mut sink) = stream.split();
    let mut heard = Heard { purged: vec![0; writes.acknowledged.len()], ..Heard::default() };
    let mut buffer = Vec::new();
    let mut decoder = Decoder::default();
    read_head(&mut from, &mut buffer).await?;
    let mut chunks = Chunks::default();
    chunks.take(&buffer, &mut |bytes| decoder.add(bytes))?;
    // Spread over the interval, as those of many machines are.
    let mut ping = tokio::time::interval_at(Instant::now() + Duration::from_millis(id % 1000), Duration::from_secs(1));
    let mut piece = vec![0; 64 * 1024];
    while !done.load(Ordering::SeqCst) {
        tokio::select! {
            read = from.read(&mut piece) => {
                let length = read?;
                if length == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                heard.bytes += length as u64;
                chunks.take(&piece[..length], &mut |bytes| decoder.add(bytes))?;
                let now = writes.now();
                while let Some(message) = decoder.message().map_err(io::Error::other)? {
                    heard.take(message, now);
                }
            }
            _ = ping.tick() => {
                let ping = wire::feed::encode_ping(writes.now());
                sink.write_all(&[format!("{:x}\r\n", ping.len()).as_bytes(), &ping, b"\r\n"].concat()).await?;
            }
        }
    }
    heard.pieces = chunks.count;
    Ok(heard)
}

/// Reads the head of the answer; what came behind it is left in the buffer.
async fn read_head(from: &mut (impl AsyncReadExt + Unpin), buffer: &mut Vec<u8>) -> io::Result<()> {
    loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            let right = buffer.starts_with(b"HTTP/1.1 200");
            let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
            buffer.drain(..end + 4);
            return if right { Ok(()) } else { Err(io::Error::other(head)) };
        }
        if from.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Takes a chunked body apart.
#[derive(Default)]
struct Chunks {
    /// Of the chunk that has begun.
    left: usize,
    /// The line with the next one's length, as far as it has come.
    line: Vec<u8>,
    count: u64,
}

impl Chunks {
    fn take(&mut self, mut bytes: &[u8], to: &mut impl FnMut(&[u8])) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.left > 0 {
                let (now, later) = bytes.split_at(self.left.min(bytes.len()));
                to(now);
                self.left -= now.len();
                bytes = later;
                continue;
            }
            let (first, later) = bytes.split_first().expect("there is a byte");
            bytes = later;
            if *first != b'\n' {
                self.line.push(*first);
                continue;
            }
            let text = String::from_utf8_lossy(&self.line).trim().to_owned();
            self.line.clear();
            // The line end of the chunk before.
            if text.is_empty() {
                continue;
            }
            self.left = usize::from_str_radix(&text, 16).map_err(io::Error::other)?;
            self.count += 1;
            if self.left == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }
}

impl Heard {
    fn take(&mut self, message: Message, now: u64) {
        match message {
            Message::Start { position, .. } => {
                self.gaps += u64::from(self.next.is_some());
                self.next = Some(position.sequence + 1);
            }
            Message::Items { first, items } => {
                assert_eq!(Some(first), self.next, "the feed's numbers go on");
                self.next = Some(first + items.len() as u64);
                for item in items {
                    match item {
                        Item::Purge(purge) => self.purge(purge.key.as_str(), now),
                        Item::Gap => self.gaps += 1,
                        Item::Namespace { .. } => {}
                    }
                }
            }
            Message::Echo(_) => self.echoes += 1,
        }
    }

    fn purge(&mut self, key: &str, now: u64) {
        let Some(number) = key.strip_prefix("write-").and_then(|number| number.parse::<usize>().ok()) else { return };
        self.twice += u64::from(self.purged[number] != 0);
        self.purged[number] = now as u32;
    }
}
