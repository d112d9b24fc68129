//! A queue of slot numbers, first in, first out, in blocks: at any length it takes little more than its numbers do.

use std::collections::VecDeque;

/// Numbers in a block: 2 KiB.
const BLOCK: usize = 512;

#[derive(Default)]
pub(super) struct Queue {
    /// Each full, but for the last. None is empty.
    blocks: VecDeque<Vec<u32>>,
    /// How many of the first block have gone.
    gone: usize,
}

impl Queue {
    pub(super) fn push(&mut self, slot: u32) {
        match self.blocks.back_mut() {
            Some(last) if last.len() < BLOCK => last.push(slot),
            _ => {
                let mut block = Vec::with_capacity(BLOCK);
                block.push(slot);
                self.blocks.push_back(block);
            }
        }
    }

    pub(super) fn pop(&mut self) -> Option<u32> {
        let first = self.blocks.front()?;
        let slot = first[self.gone];
        self.gone += 1;
        if self.gone == first.len() {
            self.blocks.pop_front();
            self.gone = 0;
        }
        Some(slot)
    }

    pub(super) fn len(&self) -> usize {
        let last = self.blocks.back().map_or(0, Vec::len);
        (self.blocks.len().max(1) - 1) * BLOCK + last - self.gone
    }

    /// Lets only those stay that are wanted, in their order.
    pub(super) fn retain(&mut self, mut wanted: impl FnMut(u32) -> bool) {
        let mut kept = Queue::default();
        while let Some(slot) = self.pop() {
            if wanted(slot) {
                kept.push(slot);
            }
        }
        *self = kept;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn it_does_what_a_plain_queue_does(steps in proptest::collection::vec(0u32..5, 0..4000), thin in 2u32..5) {
            let (mut queue, mut plain) = (Queue::default(), VecDeque::new());
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    0 => assert_eq!(queue.pop(), plain.pop_front()),
                    1 if number % 500 == 0 => {
                        queue.retain(|slot| slot % thin == 0);
                        plain.retain(|slot| slot % thin == 0);
                    }
                    _ => {
                        queue.push(number as u32);
                        plain.push_back(number as u32);
                    }
                }
                assert_eq!(queue.len(), plain.len());
            }
            while let Some(slot) = plain.pop_front() {
                assert_eq!(queue.pop(), Some(slot));
            }
            assert_eq!(queue.pop(), None);
        }
    }
}
