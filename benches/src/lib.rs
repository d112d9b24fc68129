//! What the measurements share: real processes of the binary and what the system says of them, requests to them, and chance from a seed.
//!
//! A measurement that finds a wrong answer panics: a figure about wrong answers is none.

pub mod chain;
pub mod chance;
pub mod client;
pub mod line;
pub mod process;
