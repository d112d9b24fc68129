//! How long a read waits for one origin before it is asked of another one, too.
//!
//! About as long as one in twenty of the last answers took, so that few are asked twice; and so few that an origin that has become slow as a whole is not
//! asked twice as much on top.

use std::time::Duration;

pub(super) struct Pace {
    /// How long the last answers took, the oldest overwritten first.
    took: Vec<Duration>,
    next: usize,
    wait: Duration,
    /// What hedges are paid from: each read adds one, each hedge takes [`PRICE`].
    credit: u32,
}

const WINDOW: usize = 256;
/// After so many answers the wait is reckoned anew.
const STEP: usize = 16;
/// While too little is known, and at least.
const WAIT_FIRST: Duration = Duration::from_millis(100);
const WAIT_MIN: Duration = Duration::from_millis(5);
/// One read in so many may be hedged.
const PRICE: u32 = 10;
const CREDIT_MAX: u32 = 10 * PRICE;

impl Pace {
    pub(super) fn new() -> Pace {
        Pace { took: Vec::with_capacity(WINDOW), next: 0, wait: WAIT_FIRST, credit: CREDIT_MAX }
    }

    /// A read begins: how long it waits before it may be hedged.
    pub(super) fn begin(&mut self) -> Duration {
        self.credit = (self.credit + 1).min(CREDIT_MAX);
        self.wait
    }

    /// Whether a read that has waited may be hedged.
    pub(super) fn may_hedge(&mut self) -> bool {
        let may = self.credit >= PRICE;
        if may {
            self.credit -= PRICE;
        }
        may
    }

    /// A read was answered, by whomever, so long after it began.
    pub(super) fn answered(&mut self, took: Duration) {
        if self.took.len() < WINDOW {
            self.took.push(took);
        } else {
            self.took[self.next] = took;
        }
        self.next = (self.next + 1) % WINDOW;
        if self.next.is_multiple_of(STEP) {
            let mut sorted = self.took.clone();
            let at = sorted.len() * 95 / 100;
            self.wait = (*sorted.select_nth_unstable(at).1).max(WAIT_MIN);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn the_wait_is_what_one_in_twenty_of_the_last_answers_took() {
        let mut pace = Pace::new();
        assert_eq!(pace.begin(), WAIT_FIRST);
        (0..WINDOW as u64).for_each(|i| pace.answered(millis(if i % 25 == 0 { 900 } else { 10 + i % 20 })));
        assert!((millis(28)..=millis(29)).contains(&pace.begin()), "{:?}", pace.begin());
        (0..WINDOW).for_each(|_| pace.answered(millis(1)));
        assert_eq!(pace.begin(), WAIT_MIN);
        (0..WINDOW).for_each(|_| pace.answered(millis(70)));
        assert_eq!(pace.begin(), millis(70));
    }

    #[test]
    fn one_read_in_ten_may_be_hedged_and_a_few_more_at_once() {
        let mut pace = Pace::new();
        let hedged = (0..1000).filter(|_| {
            pace.begin();
            pace.may_hedge()
        });
        let hedged = hedged.count();
        assert!((100..=100 + (CREDIT_MAX / PRICE) as usize).contains(&hedged), "{hedged} hedges");
    }
}
