//! What the sweeper and the reclaimer do about a row that is garbled: name it in the log once and pass over it until the next start, so that it
//! holds up nothing behind it.
//!
//! The row stays where it is, for somebody to look at.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard},
};

use bytes::Bytes;

use crate::{error::Error, store::Table};

/// Rows that are remembered. Those past it are named in the log whenever they are met.
const ROWS_MAX: usize = 10_000;

/// The garbled rows of one table.
pub(super) struct Garbled {
    table: Table,
    rows: Mutex<HashSet<Bytes>>,
}

impl Garbled {
    pub(super) fn of(table: Table) -> Garbled {
        Garbled { table, rows: Mutex::default() }
    }

    pub(super) fn holds(&self, row: &Bytes) -> bool {
        self.rows().contains(row)
    }

    pub(super) fn pass_over(&self, row: &Bytes, error: &Error) {
        tracing::error!(table = self.table.name(), row = %row.escape_ascii(), %error, "passing over a row of the store that can't be tidied up");
        let mut rows = self.rows();
        if rows.len() < ROWS_MAX {
            rows.insert(Bytes::copy_from_slice(row));
        }
    }

    fn rows(&self) -> MutexGuard<'_, HashSet<Bytes>> {
        self.rows.lock().expect("no holder of this lock can panic")
    }
}
