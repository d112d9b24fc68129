//! The nouns of the purge feed: what a sender tells those who follow it, and how a follower says where it is.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;

use super::{Key, NamespaceId, Version};
use crate::error::Result;

/// Names who follows a feed, so that a sender knows what it asked for, too. Drawn anew by each process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FollowerId(pub u64);

/// A place in a feed: the sender's process, and the number of the last item applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Drawn anew by each process that sends.
    pub epoch: u64,
    pub sequence: u64,
}

/// How a follower wants its feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Follow {
    pub follower: FollowerId,
    /// After which item to go on; `None` for a follower that has applied none.
    pub from: Option<Position>,
    /// Whether each small state is to travel inside its purge, and not only those of keys that it asked for: one that asks several senders asks each for a part
    /// of its keys alone.
    pub all_states: bool,
}

/// The bytes of one direction of a feed, in pieces of any length (`wire/feed.rs` has their form). It ends with either side.
pub type Frames = BoxStream<'static, Result<Bytes>>;

/// What a sender says, numbered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    Purge(Purge),
    /// A namespace was removed: whatever is older than this version is nobody's.
    Namespace {
        namespace: NamespaceId,
        version: Version,
    },
    /// Something may be missing: what was verified before now is covered no more (F6).
    Gap,
}

/// A key changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Purge {
    pub namespace: NamespaceId,
    pub key: Key,
    pub version: Version,
    /// The new state, if it is small and of use to the follower (F5).
    pub state: Option<Pushed>,
}

/// A state that travels inside its purge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pushed {
    Absent,
    Present {
        value: Bytes,
        /// JSON text.
        metadata: Option<Bytes>,
        /// Absolute Unix seconds, to show to people.
        expiration: Option<u64>,
        /// Until it expires, from the moment at which the purge was queued.
        time_left: Option<Duration>,
    },
}

impl Pushed {
    /// Bytes of what is pushed.
    pub fn length(&self) -> usize {
        match self {
            Pushed::Absent => 0,
            Pushed::Present { value, metadata, .. } => value.len() + metadata.as_ref().map_or(0, Bytes::len),
        }
    }
}

/// All that a sender can say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// The first message, and again where the follower lost its place: what follows comes after this position. Unless it is `resumed`, items
    /// may be missing before it.
    Start { position: Position, resumed: bool },
    /// Items in order; the first has this number.
    Items { first: u64, items: Vec<Item> },
    /// The answer to a ping, behind every item queued before the ping was read.
    Echo(Echo),
    /// From one of several origins on one store: all that may have begun a write before any echo from here on, itself included (O4).
    Members(Members),
    /// From an origin that leaves: it has sent every change that it made, and makes no more.
    End,
}

/// The origins on one store, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members {
    /// How often an origin has joined so far. By this a follower knows that one came and went between two lists that it heard.
    pub joined: u64,
    pub list: Vec<Member>,
}

/// One of several origins on one store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Of its feed.
    pub epoch: u64,
    /// `host:port` at which tiers reach it.
    pub address: String,
}

/// What a follower learns from the answer to its ping (F4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo {
    /// As the ping had it.
    pub stamp: u64,
    /// `None` where the sender knows nothing itself: the link is alive, nothing more.
    pub proof: Option<Proof>,
}

/// Of everything that was not purged: it was current so long ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    pub age: Duration,
    /// The safe version: every write up to it has been purged.
    pub version: Version,
}
