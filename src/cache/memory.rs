//! Where entries are kept: in memory, within a budget of bytes.
//!
//! Tokens and namespaces have budgets of their own, and known absences of them another: so neither much data nor guessing pushes out what
//! opens the doors. Which of two states of a key is newer is not judged here, but in `flight.rs`, under the key's lock.

use std::hash::{Hash, Hasher};

use quick_cache::{
    Equivalent, OptionsBuilder, Weighter,
    sync::{Cache, DefaultLifecycle},
};

use crate::{
    clock::Clock,
    kv::{
        NamespaceId, Version,
        kept::{Kept, Name},
    },
};

pub struct Memory {
    data: Entries,
    control: Entries,
    control_absent: Entries,
    /// Longest value that is kept, in bytes.
    value_bytes_max: u64,
}

type Entries = Cache<Named, Kept, Cost, ahash::RandomState>;

/// A state under its own name.
#[derive(Clone)]
struct Named(Kept);

impl Hash for Named {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.name().hash(state);
    }
}

impl PartialEq for Named {
    fn eq(&self, other: &Named) -> bool {
        self.0.name() == other.0.name()
    }
}

impl Eq for Named {}

impl Equivalent<Named> for Name<'_> {
    fn equivalent(&self, named: &Named) -> bool {
        *self == named.0.name()
    }
}

/// What an entry costs: its bytes, and what keeping takes beside them (measured; see docs/decisions/0003-cache-policy.md).
#[derive(Clone)]
struct Cost;

const ENTRY_OVERHEAD_BYTES: usize = 376;

impl Weighter<Named, Kept> for Cost {
    fn weight(&self, _: &Named, kept: &Kept) -> u64 {
        (ENTRY_OVERHEAD_BYTES + kept.name().key.len() + kept.length()) as u64
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

    pub fn get<'a>(&self, key: impl Into<Name<'a>>) -> Option<Kept> {
        let key = &key.into();
        if key.namespace == NamespaceId::RESERVED {
            return self.control.get(key).or_else(|| self.control_absent.get(key));
        }
        self.data.get(key)
    }

    /// What is held, without counting as a use of it.
    pub fn peek<'a>(&self, key: impl Into<Name<'a>>) -> Option<Kept> {
        let key = &key.into();
        if key.namespace == NamespaceId::RESERVED {
            return self.control.peek(key).or_else(|| self.control_absent.peek(key));
        }
        self.data.peek(key)
    }

    pub fn insert(&self, kept: Kept) {
        if kept.name().namespace != NamespaceId::RESERVED {
            return self.data.insert(Named(kept.clone()), kept);
        }
        let (into, other) = if kept.is_present() {
            (&self.control, &self.control_absent)
        } else {
            (&self.control_absent, &self.control)
        };
        other.remove(&kept.name());
        into.insert(Named(kept.clone()), kept);
    }

    pub fn remove<'a>(&self, key: impl Into<Name<'a>>) {
        let key = &key.into();
        if key.namespace == NamespaceId::RESERVED {
            self.control.remove(key);
            self.control_absent.remove(key);
        } else {
            self.data.remove(key);
        }
    }

    /// Drops what is older than a namespace's removal. Looks through all that is held: namespaces are seldom removed.
    pub fn remove_namespace(&self, namespace: NamespaceId, version: Version) {
        self.data.retain(|_, kept| kept.name().namespace != namespace || kept.version() >= version);
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
