//! Kvasar: a global, low-latency, eventually consistent key-value store.
//!
//! A read goes down this list, and a write with it: a door (`api`) asks a tier (`cache`), which looks in its memory and else asks the next tier up,
//! over `wire` or directly, until an `origin` reads its `store`. A write is numbered and committed at the origin; each tier on the way back keeps
//! what was written. `kv` has the nouns and the traits by which they all know each other, `roles` joins them, `cli` is what a person types.
//!
//! The words: an entry *expires* (its owner said so) and *goes stale* (our copy is old); a *tier* asks a *source*; a *fill* is an answer from
//! above that is kept; a *floor* is the least *version* that a fill must have; an *age* is how long ago at most an answer was known to be current.

pub mod api;
pub mod cache;
pub mod cli;
pub mod clock;
pub mod config;
pub mod error;
pub mod kv;
pub mod limits;
pub mod metrics;
pub mod origin;
pub mod purge;
pub mod roles;
pub mod store;
pub mod wire;
