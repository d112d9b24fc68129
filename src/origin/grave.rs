//! What an origin that has departed did last, as its intents say: so that a write which it may have taken is known, or known not to have been taken.

use std::collections::HashMap;

use bytes::Bytes;

use super::membership::STEP_INTENTS;
use crate::{
    error::Result,
    kv::{Version, WriteId},
    store::{
        Store, Table,
        keys::{self, Intent, Record},
    },
};

/// So much is looked through at most.
const LOOKED_UP_BYTES_MAX: usize = 64 << 20;

/// What an origin that has departed did last.
pub(super) struct Grave {
    pub(super) epoch: u64,
    /// `None` if they can't be looked through: there is too much of them, or one is garbled.
    pub(super) writes: Option<HashMap<(WriteId, Bytes), Version>>,
}

impl Grave {
    pub(super) async fn read(store: &dyn Store, epoch: u64, end: u64) -> Result<Grave> {
        let (mut from, to) = (keys::intent(epoch, 0), keys::intent(epoch, end));
        let (mut writes, mut bytes) = (HashMap::new(), 0);
        loop {
            let rows = store.scan(Table::Intent, &from, &to, STEP_INTENTS).await?;
            for (row, value) in &rows {
                bytes += value.len();
                if let Err(error) = gather(row, value, &mut writes) {
                    tracing::error!(%error, "an intent can't be read: what became of some writes will not be known");
                    return Ok(Grave { epoch, writes: None });
                }
            }
            if bytes > LOOKED_UP_BYTES_MAX {
                return Ok(Grave { epoch, writes: None });
            }
            match rows.last() {
                Some((last, _)) if rows.len() == STEP_INTENTS => from = keys::after(last),
                _ => return Ok(Grave { epoch, writes: Some(writes) }),
            }
        }
    }
}

/// The named writes of an intent.
fn gather(row: &Bytes, value: &Bytes, writes: &mut HashMap<(WriteId, Bytes), Version>) -> Result<()> {
    for change in Intent::decode(row, value)?.changes {
        let Some(value) = change.value.filter(|_| change.table == Table::Entry) else { continue };
        let record = Record::decode(&change.key, &value)?;
        if let Some(named) = record.named.first().filter(|named| named.version == record.version) {
            // A copy: the rest of the intent is not kept.
            writes.insert((named.id, Bytes::copy_from_slice(&change.key)), named.version);
        }
    }
    Ok(())
}
