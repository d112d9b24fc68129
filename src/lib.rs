//! Kvasar: a global, low-latency, eventually consistent key-value store.

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
pub mod roles;
pub mod store;
pub mod wire;
