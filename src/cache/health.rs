//! Whether upstream answers, so that nobody waits for one that does not.
//!
//! A question that nobody answered marks upstream as down for about a second. Meanwhile what is held is answered at once, marked, and what is not
//! is refused at once; then one question goes through as a probe. Only silence counts: an error that upstream answered proves that it is there, and
//! so does any answer that came after the question was asked that found none.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    clock::{self, Clock, Moment},
    error::{Error, Kind, Result},
};

pub struct Health {
    clock: Arc<dyn Clock>,
    /// Whom it is about, for the log.
    upstream: String,
    /// Until when upstream counts as down; zero while it is up.
    down_until: AtomicU64,
    /// When upstream last answered anything.
    answered_at: AtomicU64,
    /// Until when it counts as recovering, and is refilled from gently.
    recovering_until: AtomicU64,
    /// How long a probe may take.
    deadline: Duration,
}

/// How long to leave upstream alone after silence.
const DOWN: Duration = Duration::from_secs(1);
/// How long after the end of that it is no longer held against upstream.
const FORGOTTEN: Duration = Duration::from_secs(3);
/// How long after silence upstream is spared.
const RECOVERY: Duration = Duration::from_secs(10);

impl Health {
    pub fn new(clock: Arc<dyn Clock>, upstream: String, deadline: Duration) -> Health {
        Health {
            clock,
            upstream,
            down_until: AtomicU64::new(0),
            answered_at: AtomicU64::new(0),
            recovering_until: AtomicU64::new(0),
            deadline,
        }
    }

    pub fn is_down(&self) -> bool {
        let until = self.down_until.load(Ordering::Acquire);
        until != 0 && self.clock.now() < Moment::from_nanos(until) + FORGOTTEN
    }

    pub fn is_recovering(&self) -> bool {
        self.clock.now().as_nanos() < self.recovering_until.load(Ordering::Acquire)
    }

    /// Whether a question may go out now: always while upstream is up, else for one probe at a time. That it was silent is forgotten when
    /// nobody has asked for a while.
    pub fn may_ask(&self) -> bool {
        let until = self.down_until.load(Ordering::Acquire);
        let now = self.clock.now();
        if until == 0 || now >= Moment::from_nanos(until) + FORGOTTEN {
            return true;
        }
        let next = (now + self.deadline).as_nanos();
        now.as_nanos() >= until
            && self.down_until.compare_exchange(until, next, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    pub fn check(&self) -> Result<()> {
        if self.may_ask() {
            return Ok(());
        }
        Err(Error::unavailable(format!("{} does not answer", self.upstream)))
    }

    /// Learns from how a question ended that was asked at that moment.
    pub fn observe<T>(&self, asked_at: Moment, result: &Result<T>) {
        let now = self.clock.now();
        match result {
            Err(error) if error.kind == Kind::Unreachable => {
                if self.answered_at.load(Ordering::Acquire) > asked_at.as_nanos() {
                    return;
                }
                let until = now + clock::jittered(&*self.clock, DOWN);
                if self.down_until.swap(until.as_nanos(), Ordering::AcqRel) == 0 {
                    tracing::warn!(upstream = self.upstream, %error, "upstream does not answer; what is held is served, marked STALE");
                }
            }
            // An error of our own side says nothing of upstream.
            Err(error) if !error.answered => {}
            _ => self.heard(),
        }
    }

    /// Upstream said something, in an answer or in its feed.
    pub fn heard(&self) {
        let now = self.clock.now();
        self.answered_at.fetch_max(now.as_nanos(), Ordering::AcqRel);
        if self.down_until.load(Ordering::Acquire) != 0 && self.down_until.swap(0, Ordering::AcqRel) != 0 {
            let until = now + RECOVERY;
            self.recovering_until.store(until.as_nanos(), Ordering::Release);
            tracing::info!(upstream = self.upstream, "upstream answers again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    const DEADLINE: Duration = Duration::from_secs(5);

    fn health(clock: &Arc<ManualClock>) -> Health {
        Health::new(Arc::new(Arc::clone(clock)), "upstream".into(), DEADLINE)
    }

    fn silence() -> Result<()> {
        Err(Error::new(Kind::Unreachable, "no answer"))
    }

    #[test]
    fn silence_stops_questions_but_for_one_probe_at_a_time() {
        let clock = ManualClock::shared();
        let health = health(&clock);
        assert!(health.may_ask());
        health.observe(clock.now(), &silence());
        assert!(health.is_down() && !health.may_ask());
        clock.advance(DOWN * 2);
        assert!(health.may_ask());
        assert!(!health.may_ask());
        clock.advance(DEADLINE);
        assert!(health.may_ask());
        health.observe(clock.now(), &Ok(()));
        assert!(!health.is_down() && health.may_ask() && health.is_recovering());
        clock.advance(RECOVERY);
        assert!(!health.is_recovering());
    }

    #[test]
    fn an_answer_since_the_question_shows_that_upstream_is_there() {
        let clock = ManualClock::shared();
        let health = health(&clock);
        let asked_at = clock.now();
        clock.advance(DEADLINE);
        health.observe(clock.now(), &Ok(()));
        health.observe(asked_at, &silence());
        assert!(!health.is_down());
    }

    #[test]
    fn an_answered_error_is_an_answer() {
        let clock = ManualClock::shared();
        let health = health(&clock);
        health.observe(clock.now(), &silence());
        health.observe(clock.now(), &Err::<(), _>(Error::unavailable("too many requests of ours")));
        assert!(health.is_down());
        health.observe(clock.now(), &Err::<(), _>(Error::unavailable("busy").from_elsewhere()));
        assert!(!health.is_down());
    }

    #[test]
    fn silence_long_ago_is_not_held_against_upstream() {
        let clock = ManualClock::shared();
        let health = health(&clock);
        health.observe(clock.now(), &silence());
        clock.advance(DOWN * 2 + FORGOTTEN);
        assert!(!health.is_down());
        assert!(health.may_ask() && health.may_ask());
    }
}
