//! The simulated network: wires between machines, and the [`Link`] that a tier takes for its upstream.
//!
//! What a wire may do: take its time (distance, jitter, what is long takes longer), lose a message (which then comes after a retransmission's time-out), stop
//! either direction (a partition: silence, and what was sent during it comes late or never), and break every connection on it. Requests of one wire overtake
//! each other, each being a connection of its own; the pieces of a feed or of a long value do not. It never garbles and never duplicates, as TCP doesn't.
//! A request that has left is served, whoever waits for its answer still: a write that nobody heard of again may take effect.

use std::{
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, future::BoxFuture, stream};
use kvasar::{
    error::{Error, Kind, Result},
    kv::{
        AccountId, Answer, Backend, Change, Control, Controlled, Key, List, NamespaceId, Page, Read, Source, State,
        Value, ValueStream, Version, Via, Writer, Written,
        feed::{Follow, Frames},
        kept::Hit,
    },
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{
    chance::Chance,
    clock::{Life, MICRO, MILLI, Nanos, SECOND, Time},
};

/// From the asker to the asked, or back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Up,
    Down,
}

/// Between one machine and the one above it.
pub(crate) struct Wire {
    time: Arc<Time>,
    /// One way, without jitter.
    distance: Nanos,
    state: Mutex<Condition>,
    blocked: [AtomicBool; 2],
    /// By how much its lower end is too slow to take each piece of its feed.
    pub(crate) reluctance: AtomicU64,
    /// What went down it in feeds, for measurements.
    pub(crate) feed_bytes: AtomicU64,
    pub(crate) feed_pieces: AtomicU64,
}

struct Condition {
    chance: Chance,
    /// Share of messages that are lost, and come after a retransmission.
    loss: f64,
    connections: CancellationToken,
}

/// The least that a sender waits for an acknowledgement before it sends again.
const RETRANSMISSION_MIN: Nanos = 200 * MILLI;
const RETRANSMISSION_MAX: Nanos = 3 * SECOND;
/// Of a long value: a gigabit a second.
const BYTES_PER_MICRO: u64 = 125;
/// Pieces of one stream that are under way at once.
const WINDOW: usize = 64;
/// How long a request that its asker gave up may still arrive, when the network has kept it.
const LINGER: Nanos = 30 * SECOND;
/// How long the other end of a connection takes to notice a machine that went without a word.
const KEEPALIVE: Nanos = 60 * SECOND;

impl Wire {
    pub(crate) fn new(time: &Arc<Time>, distance: Nanos, loss: f64, chance: Chance) -> Arc<Wire> {
        Arc::new(Wire {
            time: Arc::clone(time),
            distance,
            state: Mutex::new(Condition { chance, loss, connections: CancellationToken::new() }),
            blocked: [AtomicBool::new(false), AtomicBool::new(false)],
            reluctance: AtomicU64::new(0),
            feed_bytes: AtomicU64::new(0),
            feed_pieces: AtomicU64::new(0),
        })
    }

    pub(crate) fn distance(&self) -> Nanos {
        self.distance
    }

    pub(crate) fn block(&self, way: Way, blocked: bool) {
        self.blocked[way as usize].store(blocked, Ordering::Relaxed);
    }

    pub(crate) fn set_loss(&self, loss: f64) {
        self.lock().loss = loss;
    }

    /// Breaks every connection that there is; later ones are not concerned.
    pub(crate) fn reset(&self) {
        let broken = std::mem::take(&mut self.lock().connections);
        broken.cancel();
    }

    fn connections(&self) -> CancellationToken {
        self.lock().connections.clone()
    }

    fn is_blocked(&self, way: Way) -> bool {
        self.blocked[way as usize].load(Ordering::Relaxed)
    }

    /// How long a message takes that leaves now, on a wire that is whole.
    fn delay(&self, bytes: u64) -> Nanos {
        let mut state = self.lock();
        // Jitter of a few in a hundred, and now and then much more.
        let jitter = self.distance as f64 * 0.02 + 20_000.0;
        let mut delay = self.distance + state.chance.exponential(jitter) as Nanos;
        if state.chance.happens(0.001) {
            delay += state.chance.exponential(30.0 * MILLI as f64) as Nanos;
        }
        let mut timeout = RETRANSMISSION_MIN.max(self.distance * 4);
        let loss = state.loss;
        while state.chance.happens(loss) && timeout < RETRANSMISSION_MAX {
            delay += timeout;
            timeout *= 2;
        }
        delay + bytes / BYTES_PER_MICRO * MICRO
    }

    /// Waits while this direction is interrupted, as a sender does: it tries again at growing distances.
    async fn open(&self, way: Way) {
        let mut timeout = RETRANSMISSION_MIN.max(self.distance * 4);
        while self.is_blocked(way) {
            self.time.sleep(timeout).await;
            timeout = (timeout * 2).min(RETRANSMISSION_MAX);
        }
    }

    async fn travel(&self, way: Way, bytes: u64) {
        self.open(way).await;
        let delay = self.delay(bytes);
        self.time.sleep(delay).await;
    }

    fn lock(&self) -> MutexGuard<'_, Condition> {
        self.state.lock().expect("no holder of this lock can panic")
    }
}

/// Where a process can be reached: whoever runs there now, if anyone does.
#[derive(Default)]
pub(crate) struct Address {
    served: Mutex<Option<Served>>,
    /// Requests that arrived, for measurements.
    pub(crate) asked: AtomicU64,
}

#[derive(Clone)]
pub(crate) struct Served {
    pub(crate) life: Arc<Life>,
    pub(crate) backend: Arc<dyn Backend>,
}

impl Address {
    pub(crate) fn serve(&self, served: Option<Served>) {
        let earlier = std::mem::replace(&mut *self.served.lock().expect("no holder of this lock can panic"), served);
        drop(earlier);
    }

    pub(crate) fn served(&self) -> Option<Served> {
        self.served.lock().expect("no holder of this lock can panic").clone()
    }
}

/// A process's upstream, as `cache/remote.rs` is one.
#[derive(Clone)]
pub(crate) struct Link(Arc<Ends>);

struct Ends {
    time: Arc<Time>,
    wire: Arc<Wire>,
    /// Whose link it is.
    life: Arc<Life>,
    upstream: Arc<Address>,
    /// How long an answer may take.
    deadline: Nanos,
}

impl Link {
    pub(crate) fn new(
        time: &Arc<Time>,
        wire: &Arc<Wire>,
        life: &Arc<Life>,
        upstream: &Arc<Address>,
        deadline: Duration,
    ) -> Link {
        let deadline = u64::try_from(deadline.as_nanos()).unwrap_or(u64::MAX / 4);
        let (time, wire) = (Arc::clone(time), Arc::clone(wire));
        Link(Arc::new(Ends { time, wire, life: Arc::clone(life), upstream: Arc::clone(upstream), deadline }))
    }

    /// Sends a request, has it served above, and waits for the answer.
    async fn ask<T: Send + 'static>(
        &self,
        bytes: u64,
        serve: impl FnOnce(Served, Connection) -> BoxFuture<'static, Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.0.life.check().await;
        let (mut answer, answered) = oneshot::channel();
        let broken = self.0.wire.connections();
        let ends = Arc::clone(&self.0);
        let reset = broken.clone();
        tokio::spawn(async move {
            let given_up = async {
                answer.closed().await;
                ends.time.sleep(LINGER).await;
            };
            tokio::select! {
                biased;
                () = ends.wire.travel(Way::Up, bytes) => {}
                // The connection of a request that nobody waits for is not kept for ever.
                () = given_up => return,
            }
            let outcome = match ends.upstream.served() {
                None => Err(unreachable("nobody listens upstream").and_untaken()),
                Some(served) => {
                    ends.upstream.asked.fetch_add(1, Ordering::Relaxed);
                    let life = Arc::clone(&served.life);
                    let connection = Connection { ends: Arc::clone(&ends), reset, upstream: Arc::clone(&life) };
                    tokio::select! {
                        biased;
                        () = life.end.cancelled() => {
                            if life.is_silent() {
                                std::future::pending::<()>().await;
                            }
                            Err(unreachable("upstream broke off"))
                        }
                        outcome = async {
                            life.check().await;
                            let outcome = serve(served, connection).await;
                            life.check().await;
                            outcome
                        } => outcome.map_err(Error::from_elsewhere),
                    }
                }
            };
            ends.wire.travel(Way::Down, 0).await;
            // Whoever asked may have gone away.
            let _ = answer.send(outcome);
        });
        let outcome = tokio::select! {
            biased;
            outcome = answered => outcome.unwrap_or_else(|_| Err(unreachable("the connection to upstream was lost"))),
            () = broken.cancelled() => Err(unreachable("the connection to upstream was reset")),
            () = self.0.time.sleep(self.0.deadline) => Err(unreachable("upstream did not answer in time")),
        };
        self.0.life.check().await;
        outcome
    }
}

fn unreachable(what: &str) -> Error {
    Error::new(Kind::Unreachable, what)
}

/// What may end a stream before its end.
#[derive(Clone)]
struct Connection {
    ends: Arc<Ends>,
    reset: CancellationToken,
    upstream: Arc<Life>,
}

impl Connection {
    /// Ends when one of the machines does, or the network breaks the connection.
    async fn broken(&self) {
        tokio::select! {
            biased;
            () = self.reset.cancelled() => {}
            () = self.gone(&self.upstream) => {}
            () = self.gone(&self.ends.life) => {}
        }
    }

    async fn gone(&self, life: &Life) {
        life.end.cancelled().await;
        let wire = &self.ends.wire;
        self.ends.time.sleep(if life.is_silent() { KEEPALIVE } else { wire.distance }).await;
    }

    /// Carries a stream over the wire: piece after piece, in order, no more under way than the window takes.
    fn carry(&self, way: Way, mut pieces: Frames, feed: bool) -> Frames {
        let (sender, receiver) = mpsc::channel::<(Nanos, Option<Result<Bytes>>)>(WINDOW);
        let connection = self.clone();
        tokio::spawn(async move {
            let Ends { time, wire, life, .. } = &*connection.ends;
            let speaker = if way == Way::Up { life } else { &connection.upstream };
            let mut last = 0;
            let sending = async {
                loop {
                    let piece = tokio::select! {
                        biased;
                        // What has ended says nothing more, also while nobody has noticed yet.
                        () = speaker.end.cancelled() => std::future::pending().await,
                        piece = pieces.next() => piece,
                        () = sender.closed() => break,
                    };
                    speaker.check().await;
                    wire.open(way).await;
                    let is_last = piece.is_none();
                    let bytes = piece.as_ref().map_or(0, |piece| piece.as_ref().map_or(0, |piece| piece.len() as u64));
                    if feed && way == Way::Down {
                        wire.feed_bytes.fetch_add(bytes, Ordering::Relaxed);
                        wire.feed_pieces.fetch_add(1, Ordering::Relaxed);
                    }
                    let arrives_at = (time.now() + wire.delay(bytes)).max(last);
                    last = arrives_at;
                    if sender.send((arrives_at, piece)).await.is_err() || is_last {
                        break;
                    }
                }
                if sender.is_closed() {
                    // That the other end has gone is news that travels, too.
                    wire.travel(if way == Way::Up { Way::Down } else { Way::Up }, 0).await;
                }
            };
            tokio::select! {
                biased;
                () = connection.broken() => {}
                () = sending => {}
            }
        });
        let connection = self.clone();
        let receiving = (connection, receiver, false);
        stream::unfold(receiving, move |(connection, mut receiver, ended)| async move {
            if ended {
                return None;
            }
            let arriving = async {
                // An end that nobody sent is none.
                let Some((arrives_at, piece)) = receiver.recv().await else {
                    return Some(Err(unreachable("the connection broke")));
                };
                connection.ends.time.until(arrives_at).await;
                let reluctance = connection.ends.wire.reluctance.load(Ordering::Relaxed);
                if feed && way == Way::Down && reluctance > 0 {
                    connection.ends.time.sleep(reluctance).await;
                }
                let listener = if way == Way::Up { &connection.upstream } else { &connection.ends.life };
                listener.check().await;
                piece
            };
            let piece = tokio::select! {
                biased;
                () = connection.broken() => Some(Err(unreachable("the connection broke"))),
                piece = arriving => piece,
            }?;
            let ended = piece.is_err();
            Some((piece, (connection, receiver, ended)))
        })
        .boxed()
    }

    /// A value that is longer than a message takes its way in pieces.
    fn carry_value(&self, way: Way, value: Value) -> Value {
        match value {
            Value::Whole(bytes) => Value::Whole(bytes),
            value => {
                let length = value.length();
                Value::Stream(ValueStream { length, chunks: self.carry(way, value.into_stream(), false) })
            }
        }
    }

    fn carry_change(&self, change: Change) -> Change {
        match change {
            Change::Put { value, metadata, expires } => {
                Change::Put { value: self.carry_value(Way::Up, value), metadata, expires }
            }
            Change::Delete => Change::Delete,
        }
    }

    /// An answer as it is on the wire: ages rounded up, time left rounded down, to milliseconds.
    fn carry_answer(&self, answer: Answer) -> Answer {
        let left = |left: Option<Duration>| {
            left.map(|left| Duration::from_millis(u64::try_from(left.as_millis()).unwrap_or(u64::MAX)))
        };
        let state = match answer.state {
            State::Present(mut entry) => {
                entry.time_left = left(entry.time_left);
                entry.value = self.carry_value(Way::Down, entry.value);
                State::Present(entry)
            }
            State::Unchanged { time_left } => State::Unchanged { time_left: left(time_left) },
            State::Absent => State::Absent,
        };
        let age = Duration::from_millis(u64::try_from(answer.age.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX));
        Answer { state, age, ..answer }
    }
}

fn length(change: &Change) -> u64 {
    match change {
        Change::Put { value: Value::Whole(bytes), .. } => bytes.len() as u64,
        _ => 0,
    }
}

#[async_trait]
impl Source for Link {
    fn held(&self, _: NamespaceId, _: &[u8], _: &Read) -> Option<Hit> {
        None
    }

    async fn get(&self, namespace: NamespaceId, key: &Key, read: &Read) -> Result<Answer> {
        let (key, read) = (key.clone(), read.clone());
        self.ask(0, move |served, connection| {
            Box::pin(async move {
                let answer = served.backend.get(namespace, &key, &read).await?;
                Ok(connection.carry_answer(answer))
            })
        })
        .await
    }

    async fn list(&self, namespace: NamespaceId, list: &List) -> Result<Page> {
        let list = list.clone();
        self.ask(0, move |served, _| Box::pin(async move { served.backend.list(namespace, &list).await })).await
    }

    async fn follow(&self, follow: Follow, pings: Frames) -> Result<Frames> {
        self.ask(0, move |served, connection| {
            Box::pin(async move {
                let pings = connection.carry(Way::Up, pings, true);
                let frames = served.backend.follow(follow, pings).await?;
                Ok(connection.carry(Way::Down, frames, true))
            })
        })
        .await
    }
}

#[async_trait]
impl Writer for Link {
    async fn write(&self, namespace: NamespaceId, key: &Key, change: Change, via: Via) -> Result<Written> {
        let key = key.clone();
        self.ask(length(&change), move |served, connection| {
            let change = connection.carry_change(change);
            Box::pin(async move {
                // What upstream was handed, it goes on with, also when nobody waits any more.
                served.backend.write(namespace, &key, change, via).await.map(on_wire)
            })
        })
        .await
    }

    async fn write_many(
        &self,
        namespace: NamespaceId,
        writes: Vec<(Key, Change)>,
        via: Via,
    ) -> Result<Vec<Result<Written>>> {
        let bytes = writes.iter().map(|(_, change)| length(change)).sum();
        self.ask(bytes, move |served, _| {
            Box::pin(async move {
                let outcomes = served.backend.write_many(namespace, writes, via).await?;
                Ok(outcomes.into_iter().map(|outcome| outcome.map(on_wire)).collect())
            })
        })
        .await
    }

    async fn control(&self, account: AccountId, control: Control) -> Result<(Controlled, Version)> {
        self.ask(0, move |served, _| Box::pin(async move { served.backend.control(account, control).await })).await
    }
}

/// Time left, rounded down to milliseconds as it travels.
fn on_wire(written: Written) -> Written {
    let time_left =
        written.time_left.map(|left| left - Duration::from_nanos(u64::from(left.subsec_nanos() % 1_000_000)));
    Written { time_left, ..written }
}
