//! A bound on the bytes that handlers hold in memory, over all requests of a process.
//!
//! A handler takes from it before it keeps bytes of a body or of an answer, and gives back by dropping what it took. Nobody waits: who finds
//! it spent is told to come back.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::error::{Error, Kind, Result};

#[derive(Debug)]
pub struct Budget {
    limit: u64,
    taken: AtomicU64,
    /// The budget that this is a part of: what is taken here is taken there, too.
    whole: Option<Arc<Budget>>,
}

/// When to try again: long enough for an upload or two to finish.
const RETRY_AFTER: Duration = Duration::from_secs(1);

impl Budget {
    pub fn new(bytes: u64) -> Arc<Budget> {
        Arc::new(Budget { limit: bytes, taken: AtomicU64::new(0), whole: None })
    }

    /// At most half of it, for what may take much and hold it for long: the other half stays for everything else.
    pub fn half(self: &Arc<Budget>) -> Arc<Budget> {
        Arc::new(Budget { limit: self.limit / 2, taken: AtomicU64::new(0), whole: Some(Arc::clone(self)) })
    }

    /// Takes so many bytes until the answer is dropped.
    pub fn try_take(self: &Arc<Budget>, bytes: u64) -> Result<Taken> {
        self.charge(bytes)?;
        Ok(Taken { budget: Arc::clone(self), bytes })
    }

    /// How many bytes are taken now.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    fn charge(&self, bytes: u64) -> Result<()> {
        let more = |taken: u64| taken.checked_add(bytes).filter(|sum| *sum <= self.limit);
        match self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(_) => {
                let charged = self.whole.as_ref().map_or(Ok(()), |whole| whole.charge(bytes));
                charged.inspect_err(|_| {
                    self.taken.fetch_sub(bytes, Ordering::Relaxed);
                })
            }
            Err(taken) => {
                let text = format!("no room for {bytes} bytes: {taken} of {} are in use", self.limit);
                Err(Error::new(Kind::Unavailable, text).after(RETRY_AFTER))
            }
        }
    }

    fn give_back(&self, bytes: u64) {
        self.taken.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(whole) = &self.whole {
            whole.give_back(bytes);
        }
    }
}

/// A part of a budget, given back when dropped.
#[derive(Debug)]
pub struct Taken {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Taken {
    /// Makes it so many bytes. When there is no room to grow, it stays as it was.
    pub fn resize(&mut self, bytes: u64) -> Result<()> {
        if bytes > self.bytes {
            self.budget.charge(bytes - self.bytes)?;
        } else {
            self.shrink_to(bytes);
        }
        self.bytes = bytes;
        Ok(())
    }

    /// Gives back what is above so many bytes.
    pub fn shrink_to(&mut self, bytes: u64) {
        self.budget.give_back(self.bytes.saturating_sub(bytes));
        self.bytes = self.bytes.min(bytes);
    }

    pub fn grow(&mut self, bytes: u64) -> Result<()> {
        self.resize(self.bytes.saturating_add(bytes))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_can_be_taken_again() {
        let budget = Budget::new(100);
        let mut first = budget.try_take(60).expect("there is room");
        let refused = budget.try_take(41).expect_err("there is no room");
        assert_eq!((refused.kind, refused.retry_after), (Kind::Unavailable, Some(RETRY_AFTER)));
        first.grow(40).expect("there is room");
        first.grow(1).expect_err("there is no room");
        assert_eq!(budget.taken(), 100);
        first.resize(10).expect("shrinking always works");
        let second = budget.try_take(90).expect("there is room");
        drop(first);
        drop(second);
        assert_eq!(budget.taken(), 0);
    }

    #[test]
    fn a_half_leaves_the_other_half_and_has_no_more_than_there_is() {
        let whole = Budget::new(100);
        let half = whole.half();
        let mut taken = half.try_take(50).expect("there is room");
        half.try_take(1).expect_err("the half is spent");
        let rest = whole.try_take(50).expect("the other half is there");
        taken.shrink_to(20);
        taken.shrink_to(30);
        assert_eq!((half.taken(), whole.taken()), (20, 70));
        let more = whole.try_take(30).expect("there is room");
        half.try_take(1).expect_err("the whole is spent");
        assert_eq!((half.taken(), whole.taken()), (20, 100));
        drop((taken, rest, more));
        assert_eq!((half.taken(), whole.taken()), (0, 0));
    }

    #[test]
    fn absurd_amounts_are_refused() {
        let budget = Budget::new(100);
        let mut taken = budget.try_take(1).expect("there is room");
        taken.grow(u64::MAX).expect_err("there is no room");
        budget.try_take(u64::MAX).expect_err("there is no room");
        assert_eq!(budget.taken(), 1);
    }
}
