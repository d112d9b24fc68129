//! Simulated time: one thread, one order of events, no real clock.
//!
//! Tokio's single-threaded scheduler runs whatever can run, in a fixed order. When nothing can, it is about to park its thread: exactly then the next timer
//! is due, time jumps to it, and whoever slept is woken. One timer at a time, in the order of their moments and, at one moment, in that of their making.
//!
//! Machines have clocks of their own, which drift and jump; a process is a *life* on a machine. When a life ends, its sleeps never do, so that what is left of
//! its tasks does nothing more.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use kvasar::clock::{Clock, Moment, Sleep};
use tokio_util::sync::CancellationToken;

use crate::chance::mix;

/// Nanoseconds of simulated time since the world began.
pub(crate) type Nanos = u64;

pub(crate) const MICRO: Nanos = 1000;
pub(crate) const MILLI: Nanos = 1_000_000;
pub(crate) const SECOND: Nanos = 1_000_000_000;

/// The world's time, and who waits for it.
#[derive(Default)]
pub(crate) struct Time {
    now: AtomicU64,
    timers: Mutex<Timers>,
}

#[derive(Default)]
struct Timers {
    due: BinaryHeap<Reverse<(Nanos, u64, usize)>>,
    slots: Vec<Slot>,
    free: Vec<usize>,
    last_number: u64,
    root: Option<Waker>,
}

#[derive(Default)]
struct Slot {
    number: u64,
    waker: Option<Waker>,
}

impl Time {
    pub(crate) fn now(&self) -> Nanos {
        self.now.load(Ordering::Relaxed)
    }

    pub(crate) fn until(self: &Arc<Self>, at: Nanos) -> Timer {
        Timer { time: Arc::clone(self), at, place: None }
    }

    pub(crate) fn sleep(self: &Arc<Self>, nanos: Nanos) -> Timer {
        self.until(self.now().saturating_add(nanos))
    }

    /// Runs a world to its end. Nothing of it is left afterwards.
    pub(crate) fn run<T: Send + 'static>(self: &Arc<Self>, world: impl Future<Output = T> + Send + 'static) -> T {
        let time = Arc::clone(self);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .on_thread_park(move || time.advance())
            .build()
            .expect("a runtime without any driver can be made");
        let root = async {
            let mut world = tokio::spawn(world);
            std::future::poll_fn(|cx| {
                // Woken at each step: who slept may have ended otherwise, and then nothing else would keep the thread from parking for good.
                let earlier = self.lock().root.replace(cx.waker().clone());
                drop(earlier);
                Pin::new(&mut world).poll(cx)
            })
            .await
        };
        runtime.block_on(root).expect("the world's own task does not panic")
    }

    fn advance(&self) {
        let mut timers = self.lock();
        while let Some(Reverse((at, _, slot))) = timers.due.pop() {
            let waker = std::mem::take(&mut timers.slots[slot]).waker;
            timers.free.push(slot);
            if let Some(waker) = waker {
                self.now.store(at, Ordering::Relaxed);
                let root = timers.root.clone();
                drop(timers);
                waker.wake();
                root.into_iter().for_each(Waker::wake);
                return;
            }
        }
        drop(timers);
        panic!("the world stands still: nothing runs, and nobody waits for a moment");
    }

    fn lock(&self) -> MutexGuard<'_, Timers> {
        self.timers.lock().expect("no holder of this lock can panic")
    }
}

/// Ends at its moment.
pub(crate) struct Timer {
    time: Arc<Time>,
    at: Nanos,
    place: Option<(usize, u64)>,
}

impl Future for Timer {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.time.now() >= self.at {
            return Poll::Ready(());
        }
        let time = Arc::clone(&self.time);
        let mut timers = time.lock();
        match self.place {
            Some((slot, _)) => {
                let known = timers.slots[slot].waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
                if !known {
                    let earlier = timers.slots[slot].waker.replace(cx.waker().clone());
                    // What a waker drops may hold timers itself.
                    drop(timers);
                    drop(earlier);
                }
            }
            None => {
                timers.last_number += 1;
                let number = timers.last_number;
                let slot = timers.free.pop().unwrap_or_else(|| {
                    timers.slots.push(Slot::default());
                    timers.slots.len() - 1
                });
                timers.slots[slot] = Slot { number, waker: Some(cx.waker().clone()) };
                timers.due.push(Reverse((self.at, number, slot)));
                self.place = Some((slot, number));
            }
        }
        Poll::Pending
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let Some((slot, number)) = self.place else { return };
        let mut timers = self.time.lock();
        // The place itself is given back when its moment comes.
        if timers.slots[slot].number == number {
            let waker = timers.slots[slot].waker.take();
            drop(timers);
            drop(waker);
        }
    }
}

/// A machine: its clocks go on over the restarts of what runs on it.
pub(crate) struct Machine {
    pub(crate) time: Arc<Time>,
    /// How much too fast its clocks run, in millionths; negative when too slow.
    drift: i64,
    wall_start_millis: i64,
    wall_offset_millis: AtomicI64,
}

/// 2026-01-01T00:00:00Z.
const WALL_START_MILLIS: i64 = 1_767_225_600_000;

impl Machine {
    pub(crate) fn new(time: &Arc<Time>, drift: i64, wall_error_millis: i64) -> Machine {
        Machine {
            time: Arc::clone(time),
            drift,
            wall_start_millis: WALL_START_MILLIS + wall_error_millis,
            wall_offset_millis: AtomicI64::new(0),
        }
    }

    /// What the machine's clock counts while so much time passes.
    fn counted(&self, passed: Nanos) -> Nanos {
        (passed as i64 + passed as i64 / 1000 * self.drift / 1000) as Nanos
    }

    /// The least time in which the machine's clock counts so much.
    fn passing(&self, counted: Nanos) -> Nanos {
        let wide = i128::from(counted) * 1_000_000 / i128::from(1_000_000 + self.drift);
        // Rounded up by what the sum the other way around may round down.
        u64::try_from(wide).unwrap_or(u64::MAX / 4).saturating_add(2 * MICRO)
    }

    pub(crate) fn wall_millis(&self) -> u64 {
        let since = (self.counted(self.time.now()) / MILLI) as i64;
        (self.wall_start_millis + self.wall_offset_millis.load(Ordering::Relaxed) + since) as u64
    }

    /// When its wall clock, if nobody sets it, shows that time.
    pub(crate) fn when_wall_shows(&self, millis: u64) -> Nanos {
        let counted = millis as i64 - self.wall_start_millis - self.wall_offset_millis.load(Ordering::Relaxed);
        if counted <= 0 { 0 } else { self.passing((counted as u64).saturating_mul(MILLI)) }
    }

    pub(crate) fn step_wall(&self, millis: i64) {
        self.wall_offset_millis.fetch_add(millis, Ordering::Relaxed);
    }
}

/// The time between a process's start and its end. It may be paused meanwhile, as by SIGSTOP: its clocks and its connections stay, and nothing of it runs.
pub(crate) struct Life {
    time: Arc<Time>,
    ended: AtomicBool,
    /// Whether nobody is told of its end, as when the power goes, rather than a process.
    silent: AtomicBool,
    paused_until: AtomicU64,
    /// For how long its monotonic clock has stood still.
    frozen: AtomicU64,
    pub(crate) end: CancellationToken,
}

impl Life {
    pub(crate) fn begin(time: &Arc<Time>) -> Arc<Life> {
        Arc::new(Life {
            time: Arc::clone(time),
            ended: AtomicBool::new(false),
            silent: AtomicBool::new(false),
            paused_until: AtomicU64::new(0),
            frozen: AtomicU64::new(0),
            end: CancellationToken::new(),
        })
    }

    /// Nothing of the process runs for so long. A task runs only when something wakes it: a timer, a message, an answer of the store; each of those
    /// comes through [`Life::check`], and waits there.
    pub(crate) fn pause(&self, nanos: Nanos) {
        self.paused_until.fetch_max(self.time.now() + nanos, Ordering::Relaxed);
    }

    /// The same, as when the machine is suspended: meanwhile its monotonic clock stands still, which nothing that runs on it can see.
    pub(crate) fn suspend(&self, nanos: Nanos) {
        let before = self.paused_until.load(Ordering::Relaxed).max(self.time.now());
        self.pause(nanos);
        let lasts = self.paused_until.load(Ordering::Relaxed) - before;
        self.frozen.fetch_add(lasts, Ordering::Relaxed);
    }

    pub(crate) fn end(&self, silent: bool) {
        self.silent.store(silent, Ordering::Relaxed);
        self.ended.store(true, Ordering::Relaxed);
        self.end.cancel();
    }

    pub(crate) fn is_over(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    pub(crate) fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }

    /// Goes on only as long as the life does, and not while it is paused: what comes after its end is done by nobody.
    pub(crate) async fn check(&self) {
        loop {
            if self.is_over() {
                std::future::pending::<()>().await;
            }
            let until = self.paused_until.load(Ordering::Relaxed);
            if self.time.now() >= until {
                return;
            }
            self.time.until(until).await;
        }
    }
}

/// A process's clocks and its chance.
pub(crate) struct SimClock {
    machine: Arc<Machine>,
    life: Arc<Life>,
    started_at: Nanos,
    /// What its monotonic clock showed at its start: something else for each process, so that moments of two are never mixed up unnoticed.
    start: Nanos,
    seed: u64,
    drawn: AtomicU64,
}

impl SimClock {
    pub(crate) fn shared(machine: &Arc<Machine>, life: &Arc<Life>, seed: u64) -> Arc<dyn Clock> {
        let year = 365 * 24 * 3600 * SECOND;
        Arc::new(SimClock {
            machine: Arc::clone(machine),
            life: Arc::clone(life),
            started_at: machine.time.now(),
            start: 100 * year + mix(seed) % year,
            seed,
            drawn: AtomicU64::new(0),
        })
    }
}

/// For how long the process has not been suspended.
fn lived(life: &Life, since: Nanos) -> Nanos {
    // A suspension counts from its beginning: until its end nobody looks.
    (life.time.now() - since).saturating_sub(life.frozen.load(Ordering::Relaxed))
}

impl Clock for SimClock {
    fn now(&self) -> Moment {
        Moment::from_nanos(self.start + self.machine.counted(lived(&self.life, self.started_at)))
    }

    fn wall_millis(&self) -> u64 {
        self.machine.wall_millis()
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        let counted = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 4);
        let timer = (counted > 0).then(|| self.machine.time.sleep(self.machine.passing(counted)));
        let life = Arc::clone(&self.life);
        let frozen = life.frozen.load(Ordering::Relaxed);
        Box::pin(async move {
            if let Some(timer) = timer {
                timer.await;
            }
            life.check().await;
            let frozen = life.frozen.load(Ordering::Relaxed) - frozen;
            if frozen > 0 {
                life.time.sleep(frozen).await;
                life.check().await;
            }
        })
    }

    fn random(&self) -> u64 {
        let drawn = self.drawn.fetch_add(1, Ordering::Relaxed);
        mix(mix(self.seed).wrapping_add((drawn + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }
}
