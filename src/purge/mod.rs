//! What a change tells the tiers: the purge feed, as whoever sends it keeps it.
//!
//! An origin and every tier have one [`feed::Feed`]. The origin publishes each commit in it, before it acknowledges; a tier relays in its own what
//! it has applied. `log.rs` numbers the items and keeps the last of them, `interest.rs` guesses which follower has use for a key's new state. The
//! other end is `cache/follow.rs`.

pub mod feed;
mod interest;
mod log;
