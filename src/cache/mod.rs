//! Tiers: edge, regional and central are three instances of one [`Tier`].
//!
//! `tier.rs` is the walk of a read and of a write; `memory.rs` where entries are kept, `flight.rs` the order of all that changes it;
//! `follow.rs` applies the purge feed that comes over a link (`link.rs`), `coverage.rs` knows what that proves; `remote.rs` asks a tier on another machine,
//! over the connections that `dial.rs` makes. `fleet.rs` is several origins on one store as one upstream.

mod coverage;
pub mod dial;
pub mod fleet;
pub mod flight;
mod follow;
pub mod health;
mod link;
pub mod memory;
pub mod remote;
pub mod tee;
pub mod tier;
