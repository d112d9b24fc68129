//! Where entries are kept: in memory, within a budget of bytes.
//!
//! Tokens and namespaces have budgets of their own, and known absences of them another: so neither much data nor guessing pushes out what
//! opens the doors. Which of two states of a key is newer is not judged here, but in `flight.rs`, under the key's lock.

use std::sync::Arc;

use quick_cache::{
    OptionsBuilder, Weighter,
    sync::{Cache, DefaultLifecycle},
};

use crate::{
    cache::entry::{EntryKey, Kept},
    clock::Clock,
    kv::{NamespaceId, Version},
};

pub struct Memory {
    data: Entries,
    control: Entries,
    control_absent: Entries,
    /// Longest value that is kept, in bytes.
    value_bytes_max: u64,
}

type Entries = Cache<EntryKey, Arc<Kept>, Cost, ahash::RandomState>;

/// What an entry costs: its bytes, and what keeping takes beside them (measured; see docs/decisions/0003-cache-policy.md).
#[derive(Clone)]
struct Cost;

const ENTRY_OVERHEAD_BYTES: usize = 376;

impl Weighter<EntryKey, Arc<Kept>> for Cost {
    fn weight(&self, key: &EntryKey, kept: &Arc<Kept>) -> u64 {
        (ENTRY_OVERHEAD_BYTES + key.key.as_bytes().len() + kept.length()) as u64
    }
}

/// Room for some tens of thousands of tokens and namespaces.
const CONTROL_BYTES: u64 = 16 << 20;
/// Room for some thousands of guesses.
const CONTROL_ABSENT_BYTES: u64 = 2 << 20;

impl Memory {
    /// A share of the budget is the longest value that is kept, so that one value can't push out all others.
    pub fn new(budget_bytes: u64, share_max: f64, clock: &dyn Clock) -> Memory {
        let value_bytes_max = (budget_bytes as f64 * share_max) as u64;
        Memory {
            data: entries(budget_bytes, value_bytes_max, clock),
            control: entries(CONTROL_BYTES, CONTROL_BYTES / 8, clock),
            control_absent: entries(CONTROL_ABSENT_BYTES, CONTROL_ABSENT_BYTES / 8, clock),
            value_bytes_max,
        }
    }

    pub fn value_bytes_max(&self) -> u64 {
        self.value_bytes_max
    }

    pub fn get(&self, key: &EntryKey) -> Option<Arc<Kept>> {
        if key.namespace == NamespaceId::RESERVED {
            return self.control.get(key).or_else(|| self.control_absent.get(key));
        }
        self.data.get(key)
    }

    /// What is held, without counting as a use of it.
    pub fn peek(&self, key: &EntryKey) -> Option<Arc<Kept>> {
        if key.namespace == NamespaceId::RESERVED {
            return self.control.peek(key).or_else(|| self.control_absent.peek(key));
        }
        self.data.peek(key)
    }

    pub fn insert(&self, key: EntryKey, kept: Arc<Kept>) {
        if key.namespace != NamespaceId::RESERVED {
            return self.data.insert(key, kept);
        }
        let (into, other) = if kept.is_present() {
            (&self.control, &self.control_absent)
        } else {
            (&self.control_absent, &self.control)
        };
        other.remove(&key);
        into.insert(key, kept);
    }

    pub fn remove(&self, key: &EntryKey) {
        if key.namespace == NamespaceId::RESERVED {
            self.control.remove(key);
            self.control_absent.remove(key);
        } else {
            self.data.remove(key);
        }
    }

    /// Drops what is older than a namespace's removal. Looks through all that is held: namespaces are seldom removed.
    pub fn remove_namespace(&self, namespace: NamespaceId, version: Version) {
        self.data.retain(|key, kept| key.namespace != namespace || kept.version >= version);
    }

    pub fn entries(&self) -> usize {
        self.data.len()
    }

    pub fn bytes(&self) -> u64 {
        self.data.weight()
    }
}

/// A cache whose shards each have room for several of the largest values.
fn entries(budget_bytes: u64, value_bytes_max: u64, clock: &dyn Clock) -> Entries {
    let shards = (budget_bytes / (value_bytes_max * 4).max(1 << 20)).clamp(1, 16).next_power_of_two();
    let options = OptionsBuilder::new()
        .estimated_items_capacity(usize::try_from(budget_bytes / 1024).unwrap_or(usize::MAX).clamp(64, 1 << 20))
        .weight_capacity(budget_bytes)
        .shards(usize::try_from(shards).unwrap_or(1))
        .build()
        .expect("capacity and weight are given");
    let hasher = ahash::RandomState::with_seeds(clock.random(), clock.random(), clock.random(), clock.random());
    Cache::with_options(options, Cost, hasher, DefaultLifecycle::default())
}
