//! Time and chance, injected.
//!
//! Nothing else in the product reads a clock, sleeps or draws a random number, so that the same code runs on simulated time
//! from one seed. `clippy.toml` bans the ways around it.

use std::{
    future::Future,
    ops::{Add, Sub},
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// A point on one process's monotonic clock. Never compared with another process's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(u64);

impl Moment {
    pub const ZERO: Moment = Moment(0);
    pub const MAX: Moment = Moment(u64::MAX);

    pub const fn from_nanos(nanos: u64) -> Moment {
        Moment(nanos)
    }

    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// How long `self` is after `earlier`; zero when it is not.
    pub fn since(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Moment {
    type Output = Moment;

    fn add(self, duration: Duration) -> Moment {
        Moment(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// Saturates at zero. The real clock starts a century in, so that an age never meets the floor.
impl Sub<Duration> for Moment {
    type Output = Moment;

    fn sub(self, duration: Duration) -> Moment {
        Moment(self.0.saturating_sub(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

pub type Sleep = Pin<Box<dyn Future<Output = ()> + Send>>;

pub trait Clock: Send + Sync + 'static {
    /// The monotonic clock: for ages, deadlines and waits.
    fn now(&self) -> Moment;
    /// Milliseconds since the Unix epoch, by the machine's clock, which may jump either way. Only an origin's versions and the judging of
    /// absolute expirations rest on it.
    fn wall_millis(&self) -> u64;
    fn sleep(&self, duration: Duration) -> Sleep;
    /// Chance, for jitter and identifiers. Cryptographically strong in the real clock.
    fn random(&self) -> u64;
}

/// The work did not finish within its deadline.
#[derive(Debug, PartialEq, Eq)]
pub struct Elapsed;

/// `work`, unless `deadline` passes first; then it is dropped.
pub async fn within<T>(clock: &dyn Clock, deadline: Duration, work: impl Future<Output = T>) -> Result<T, Elapsed> {
    tokio::select! {
        biased;
        output = work => Ok(output),
        () = clock.sleep(deadline) => Err(Elapsed),
    }
}

/// `duration` moved by up to a quarter either way, so that what started together does not go on together.
pub fn jittered(clock: &dyn Clock, duration: Duration) -> Duration {
    let share = (clock.random() >> 11) as f64 / (1u64 << 53) as f64;
    duration.mul_f64(0.75 + share / 2.0)
}

/// `N` random bytes.
pub fn random_bytes<const N: usize>(clock: &dyn Clock) -> [u8; N] {
    let mut bytes = [0; N];
    for part in bytes.chunks_mut(8) {
        part.copy_from_slice(&clock.random().to_le_bytes()[..part.len()]);
    }
    bytes
}

/// The machine's clocks and the system's randomness.
pub struct RealClock {
    start: Instant,
}

/// A century, so that `now - age` has room below it.
const START: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

impl RealClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that may read the machine's clock")]
    pub fn shared() -> Arc<dyn Clock> {
        Arc::new(RealClock { start: Instant::now() })
    }
}

impl Clock for RealClock {
    fn now(&self) -> Moment {
        Moment::ZERO + START + self.start.elapsed()
    }

    #[expect(clippy::disallowed_methods, reason = "the one place that may read the machine's clock")]
    fn wall_millis(&self) -> u64 {
        // A clock before 1970 counts as 1970: versions then go on from the store's last one.
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
    }

    #[expect(clippy::disallowed_methods, reason = "the one place that may sleep")]
    fn sleep(&self, duration: Duration) -> Sleep {
        Box::pin(tokio::time::sleep(duration))
    }

    #[expect(clippy::disallowed_methods, reason = "the one place that may draw")]
    fn random(&self) -> u64 {
        rand::random()
    }
}

/// A clock for tests: it stands still until it is moved, and draws from a counter.
#[derive(Default)]
pub struct ManualClock {
    state: std::sync::Mutex<ManualState>,
    moved: Arc<tokio::sync::Notify>,
}

#[derive(Default)]
struct ManualState {
    monotonic: Duration,
    wall_offset_millis: i64,
    drawn: u64,
}

impl ManualClock {
    pub fn shared() -> Arc<ManualClock> {
        Arc::new(ManualClock::default())
    }

    /// Moves both clocks on, and wakes who slept until then.
    pub fn advance(&self, duration: Duration) {
        self.lock().monotonic += duration;
        self.moved.notify_waiters();
    }

    /// Steps the wall clock alone, either way.
    pub fn step_wall(&self, millis: i64) {
        self.lock().wall_offset_millis += millis;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, ManualState> {
        self.state.lock().expect("no holder of this lock can panic")
    }
}

/// The manual clock's day zero: 2026-01-01T00:00:00Z.
const MANUAL_WALL_START_MILLIS: i64 = 1_767_225_600_000;

impl Clock for Arc<ManualClock> {
    fn now(&self) -> Moment {
        Moment::ZERO + START + self.lock().monotonic
    }

    fn wall_millis(&self) -> u64 {
        let state = self.lock();
        let monotonic = i64::try_from(state.monotonic.as_millis()).unwrap_or(i64::MAX);
        u64::try_from(MANUAL_WALL_START_MILLIS + monotonic + state.wall_offset_millis).unwrap_or(0)
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        let until = self.now() + duration;
        let clock = Arc::clone(self);
        Box::pin(async move {
            loop {
                let moved = Arc::clone(&clock.moved).notified_owned();
                tokio::pin!(moved);
                moved.as_mut().enable();
                if clock.now() >= until {
                    return;
                }
                moved.await;
            }
        })
    }

    fn random(&self) -> u64 {
        // SplitMix64 over a counter: spread out, and the same each time.
        let mut state = self.lock();
        state.drawn = state.drawn.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state.drawn;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_sleeper_wakes_when_the_clock_is_moved_past_its_end() {
        let clock = ManualClock::shared();
        let sleeper = tokio::spawn(clock.sleep(Duration::from_secs(5)));
        clock.advance(Duration::from_secs(4));
        tokio::task::yield_now().await;
        assert!(!sleeper.is_finished());
        clock.advance(Duration::from_secs(1));
        sleeper.await.expect("the sleeper ends");
    }

    #[tokio::test]
    async fn work_past_its_deadline_is_given_up() {
        let clock = ManualClock::shared();
        let waiting = {
            let clock = Arc::clone(&clock);
            tokio::spawn(async move { within(&clock, Duration::from_secs(1), std::future::pending::<()>()).await })
        };
        tokio::task::yield_now().await;
        clock.advance(Duration::from_secs(1));
        assert_eq!(waiting.await.expect("the task ends"), Err(Elapsed));
        assert_eq!(within(&clock, Duration::ZERO, std::future::ready(7)).await, Ok(7));
    }

    #[test]
    fn jitter_stays_within_a_quarter() {
        let clock = ManualClock::shared();
        for _ in 0..1000 {
            let jittered = jittered(&clock, Duration::from_secs(4));
            assert!(jittered >= Duration::from_secs(3) && jittered <= Duration::from_secs(5));
        }
    }
}
