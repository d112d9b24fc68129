//! What a commit under way leaves open to those who look meanwhile.

use std::{
    collections::HashSet,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use tokio::sync::Notify;

/// Rows that the commit under way both puts and removes. While it is under way, nobody can tell whether such a row is absent by its removal or not yet
/// there: so as of which version it is absent is not known either, and what was put must not seem to come after that absence.
#[derive(Default)]
pub(super) struct Passing {
    rows: Mutex<HashSet<Bytes>>,
    /// How often a commit with such rows has begun or ended.
    turns: AtomicU64,
    ended: Notify,
}

impl Passing {
    pub(super) fn begin(&self, rows: HashSet<Bytes>) {
        if !rows.is_empty() {
            *self.rows.lock().expect("no holder of this lock can panic") = rows;
            self.turns.fetch_add(1, Ordering::AcqRel);
        }
    }

    pub(super) fn end(&self) {
        let rows = std::mem::take(&mut *self.rows.lock().expect("no holder of this lock can panic"));
        if !rows.is_empty() {
            self.turns.fetch_add(1, Ordering::AcqRel);
            self.ended.notify_waiters();
        }
    }

    pub(super) fn turns(&self) -> u64 {
        self.turns.load(Ordering::Acquire)
    }

    /// Waits until the commit under way has ended if it has such a row, and answers whether it had.
    pub(super) async fn wait_for(&self, row: &[u8]) -> bool {
        // Before the look, so that the end is not missed between it and the wait.
        let ended = self.ended.notified();
        tokio::pin!(ended);
        ended.as_mut().enable();
        let passes = self.has(row);
        if passes {
            ended.await;
        }
        passes
    }

    fn has(&self, row: &[u8]) -> bool {
        self.rows.lock().expect("no holder of this lock can panic").contains(row)
    }
}
