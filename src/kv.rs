//! The nouns of the product, and its two seams: [`Source`] answers reads, [`Writer`] takes writes.
//!
//! An origin is both; a tier is both, in front of another; `cache/remote.rs` is both, for what runs on another machine. So the same doors
//! (`api/`) serve every role, and a chain is only wiring (`roles.rs`).
//!
//! What has rules is made by one checking constructor here, and is not checked again further in.

pub mod feed;
pub mod kept;
mod version;

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt};
use serde::{Deserialize, Serialize};

pub use self::version::Version;
use self::{
    feed::{Follow, FollowerId, Frames},
    kept::Hit,
};
use crate::{
    error::{Error, Kind, Result},
    limits,
};

/// Answers reads, and says of each answer how current it is.
#[async_trait]
pub trait Source: Send + Sync + 'static {
    /// What can be answered at once from memory, without a wait, an allocation or a question to anyone; `None` says nothing but "call
    /// [`Source::get`]". The key's bytes are not checked: what is no legal key is held by nobody.
    fn held(&self, namespace: NamespaceId, key: &[u8], read: &Read) -> Option<Hit>;

    /// A count that stays the same while nothing of the reserved namespace changes, as far as this source has heard: what was
    /// [held](Source::held) of it is then still so, and only older. `None` from one that can't tell.
    fn control_changes(&self) -> Option<u64> {
        None
    }

    async fn get(&self, namespace: NamespaceId, key: &Key, read: &Read) -> Result<Answer>;

    /// One page of names in byte order, always answered by an origin.
    async fn list(&self, namespace: NamespaceId, list: &List) -> Result<Page>;

    /// Tells a follower what changes from here on: `pings` are the follower's bytes, the answer is the sender's. It ends with either.
    async fn follow(&self, follow: Follow, pings: Frames) -> Result<Frames>;
}

/// Takes writes. A write that is answered `Ok` is on disk at an origin.
#[async_trait]
pub trait Writer: Send + Sync + 'static {
    async fn write(&self, namespace: NamespaceId, key: &Key, change: Change, via: Via) -> Result<Written>;

    /// Many small writes in one trip, each with its own outcome, in the order given. At most [`limits::WRITE_BATCH_ENTRIES_MAX`] of them, and
    /// every value a [`Value::Whole`] of at most [`limits::CHUNK_BYTES`]; the caller sees to that.
    async fn write_many(
        &self,
        namespace: NamespaceId,
        writes: Vec<(Key, Change)>,
        via: Via,
    ) -> Result<Vec<Result<Written>>>;

    /// Changes what exists: namespaces and tokens. Decided by an origin alone, one at a time. Answers also the version of the last record written.
    async fn control(&self, account: AccountId, control: Control) -> Result<(Controlled, Version)>;
}

/// How a write comes up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Via {
    /// The tier that passes it up, if it follows: it keeps what it wrote, so it has use for the key's next states.
    pub follower: Option<FollowerId>,
    /// Names the write where it may be handed in again, to whichever origin: it takes effect once.
    pub id: Option<WriteId>,
    /// The origin that is meant, by the epoch of its feed. Another one that is found in its place is not to take it: it could be taken twice.
    pub to: Option<u64>,
    /// Who may have taken it, where it is handed in again and that is known.
    pub taken: Option<Taken>,
}

/// The one origin that may have taken a write that is handed in again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Of its feed.
    pub epoch: u64,
    /// How long ago the write was handed in first.
    pub ago: Duration,
}

/// Names one write, or the writes of one call. Drawn at random by whoever might hand it in twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WriteId(pub u64);

impl WriteId {
    const AGAIN: u64 = 1;

    /// For a write that is handed in for the first time, out of a random number.
    pub fn drawn(random: u64) -> WriteId {
        WriteId(random & !WriteId::AGAIN)
    }

    /// The same, of a write that may have been taken before: one bit says so.
    pub fn again(self) -> WriteId {
        WriteId(self.0 | WriteId::AGAIN)
    }

    pub fn may_have_been_taken(self) -> bool {
        self.0 & WriteId::AGAIN != 0
    }

    /// As what it is remembered, the first time or again.
    pub fn name(self) -> WriteId {
        WriteId(self.0 & !WriteId::AGAIN)
    }
}

/// Both seams: what a tier has above it.
pub trait Backend: Source + Writer {}

impl<T: Source + Writer> Backend for T {}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u128);

        impl $name {
            pub const fn from_u128(id: u128) -> $name {
                $name(id)
            }

            pub fn to_bytes(self) -> [u8; 16] {
                self.0.to_be_bytes()
            }

            pub fn from_bytes(bytes: [u8; 16]) -> $name {
                $name(u128::from_be_bytes(bytes))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = Error;

            /// Exactly 32 hexadecimal digits, in either case.
            fn from_str(text: &str) -> Result<$name> {
                if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return Err(Error::bad_request(format!("an id is 32 hexadecimal digits, not '{}'", text.escape_debug())));
                }
                u128::from_str_radix(text, 16).map($name).map_err(|e| Error::bad_request("not an id").with_source(e))
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

identifier! {
    /// Names a namespace: 32 hexadecimal digits outside.
    NamespaceId
}

identifier! {
    /// Names an account: 32 hexadecimal digits outside.
    AccountId
}

impl NamespaceId {
    /// Where accounts, namespaces and tokens live as entries like any other. Only tiers may name it; see [`reserved`].
    pub const RESERVED: NamespaceId = NamespaceId(0);
}

/// A key: 1 to 512 bytes of UTF-8, and neither `.` nor `..`. Compared and ordered by its bytes. Cheap to copy.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Bytes);

impl Key {
    /// The texts are those of worker-binding 4.2, where they are part of compatibility.
    pub fn new(bytes: impl Into<Bytes>) -> Result<Key> {
        let bytes = bytes.into();
        if bytes.is_empty() {
            return Err(Error::new(Kind::KeyIllegal, "Key names must not be empty"));
        }
        let Ok(text) = std::str::from_utf8(&bytes) else {
            return Err(Error::new(Kind::KeyIllegal, "Could not URL-decode key name"));
        };
        if text == "." || text == ".." {
            return Err(Error::new(
                Kind::KeyIllegal,
                format!("Illegal key name \"{text}\". Please use a different name."),
            ));
        }
        Key::check_length(bytes.len())?;
        Ok(Key(bytes))
    }

    /// The length rule alone, which list prefixes share.
    pub fn check_length(length: usize) -> Result<()> {
        if length > limits::KEY_BYTES_MAX {
            return Err(Error::new(
                Kind::KeyTooLong,
                format!("UTF-8 encoded length of {length} exceeds key length limit of {}.", limits::KEY_BYTES_MAX),
            ));
        }
        Ok(())
    }

    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("checked when the key was made")
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// What a read accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// The oldest answer that is good enough: `cacheTtl`. Zero asks for the latest.
    pub max_age: Duration,
    /// The answer must cover this write.
    pub at_least: Option<Version>,
    /// What the asker holds: "unchanged" is then an answer.
    pub held: Option<Held>,
    /// The follower that asks, so that a change of what it asks for can bring its new state along.
    pub asker: Option<FollowerId>,
}

impl Default for Read {
    fn default() -> Read {
        Read { max_age: limits::CACHE_TTL_DEFAULT, at_least: None, held: None, asker: None }
    }
}

impl Read {
    pub fn latest() -> Read {
        Read { max_age: Duration::ZERO, at_least: None, held: None, asker: None }
    }
}

/// The state an asker holds, as `If-None-Match` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub version: Version,
    pub present: bool,
}

/// An answer with its proof.
#[derive(Debug)]
pub struct Answer {
    pub state: State,
    /// The write that made a present state; as of which an absent one is absent.
    pub version: Version,
    /// An upper bound on how long ago the state was last known to be current.
    pub age: Duration,
    /// Whether the feed of whoever answered covers it: who follows that feed is told when it changes.
    pub covered: bool,
    pub status: CacheStatus,
}

#[derive(Debug)]
pub enum State {
    Present(Entry),
    Absent,
    /// What the asker holds ([`Read::held`]) is still so. For a present entry, with the time left to it.
    Unchanged {
        time_left: Option<Duration>,
    },
}

#[derive(Debug)]
pub struct Entry {
    pub value: Value,
    /// JSON text, exactly as it was written.
    pub metadata: Option<Bytes>,
    /// Absolute Unix seconds, to show to people. A tier goes by `time_left`.
    pub expiration: Option<u64>,
    /// Time left until it expires, at the moment of answering.
    pub time_left: Option<Duration>,
}

/// Bytes of a value: all here, or still arriving.
pub enum Value {
    Whole(Bytes),
    /// A large value that a cache holds, in the pieces in which it arrived.
    Parts(Arc<[Bytes]>),
    Stream(ValueStream),
}

pub struct ValueStream {
    /// Known for everything that is read; an upload may not say.
    pub length: Option<u64>,
    /// An error in it means that the value is not whole; whoever consumes it must not keep or acknowledge what came before.
    pub chunks: BoxStream<'static, Result<Bytes>>,
}

impl Value {
    pub fn length(&self) -> Option<u64> {
        match self {
            Value::Whole(bytes) => Some(bytes.len() as u64),
            Value::Parts(parts) => Some(parts.iter().map(|part| part.len() as u64).sum()),
            Value::Stream(stream) => stream.length,
        }
    }

    pub fn into_stream(self) -> BoxStream<'static, Result<Bytes>> {
        match self {
            Value::Whole(bytes) => futures_util::stream::once(std::future::ready(Ok(bytes))).boxed(),
            Value::Parts(parts) => {
                futures_util::stream::iter((0..parts.len()).map(move |i| Ok(parts[i].clone()))).boxed()
            }
            Value::Stream(stream) => stream.chunks,
        }
    }

    /// The whole value in one piece, refused once it is longer than `max`.
    pub async fn collect(self, max: u64) -> Result<Bytes> {
        if let Value::Whole(bytes) = self {
            return if bytes.len() as u64 <= max { Ok(bytes) } else { Err(too_large(bytes.len() as u64, max)) };
        }
        let expected = self.length().unwrap_or(0).min(max);
        let mut chunks = self.into_stream();
        let mut whole = Vec::with_capacity(usize::try_from(expected).unwrap_or(0));
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk?;
            let length = (whole.len() + chunk.len()) as u64;
            if length > max {
                return Err(too_large(length, max));
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(whole.into())
    }
}

/// The text of worker-binding 4.2.
pub fn too_large(length: u64, max: u64) -> Error {
    Error::new(Kind::ValueTooLarge, format!("Value length of {length} exceeds limit of {max}."))
}

impl From<Bytes> for Value {
    fn from(bytes: Bytes) -> Value {
        Value::Whole(bytes)
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.length() {
            Some(length) => write!(f, "Value({length} bytes)"),
            None => f.write_str("Value(length unknown)"),
        }
    }
}

/// How the tier that was asked came by its answer; `cf-cache-status` outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CacheStatus {
    /// Held, and fresh enough.
    Hit,
    /// Not held; asked upstream.
    Miss,
    /// Held, but too old for this read; upstream had another state.
    Expired,
    /// Held, but too old for this read; upstream said that it is still so.
    Revalidated,
    /// Held and older than the read accepts, and answered because upstream is away.
    Stale,
    /// No cache was asked: an origin's own answer, or a state too large to keep.
    Bypass,
}

impl CacheStatus {
    pub const ALL: [CacheStatus; 6] = [
        CacheStatus::Hit,
        CacheStatus::Miss,
        CacheStatus::Expired,
        CacheStatus::Revalidated,
        CacheStatus::Stale,
        CacheStatus::Bypass,
    ];

    pub fn name(self) -> &'static str {
        match self {
            CacheStatus::Hit => "HIT",
            CacheStatus::Miss => "MISS",
            CacheStatus::Expired => "EXPIRED",
            CacheStatus::Revalidated => "REVALIDATED",
            CacheStatus::Stale => "STALE",
            CacheStatus::Bypass => "BYPASS",
        }
    }
}

/// Which names to list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List {
    pub prefix: Bytes,
    /// 1 to [`limits::LIST_PAGE_MAX`]; the door checks it.
    pub limit: usize,
    /// Where the last page ended, as that page said.
    pub cursor: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub keys: Vec<Listed>,
    /// Where to go on; `None` when the listing is done.
    pub cursor: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub key: Key,
    /// Absolute Unix seconds.
    pub expiration: Option<u64>,
    /// JSON text.
    pub metadata: Option<Bytes>,
}

#[derive(Debug)]
pub enum Change {
    Put {
        value: Value,
        /// JSON text; whoever made the change has checked that it is, and its length.
        metadata: Option<Bytes>,
        expires: Expires,
    },
    Delete,
}

/// When a written entry expires. The origin judges it, by its own clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expires {
    Never,
    /// Absolute Unix seconds.
    At(u64),
    /// Seconds from when the origin takes the write.
    After(u64),
}

/// The acknowledgement of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    pub version: Version,
    /// Absolute Unix seconds.
    pub expiration: Option<u64>,
    /// Time left until it expires, at the moment of acknowledging.
    pub time_left: Option<Duration>,
}

/// A change of what exists, within one account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Control {
    CreateNamespace {
        title: String,
        jurisdiction: Option<String>,
        mode: Option<String>,
    },
    RenameNamespace {
        id: NamespaceId,
        title: String,
    },
    /// Hides the namespace at once; its data is reclaimed in the background.
    RemoveNamespace {
        id: NamespaceId,
    },
    /// The token itself is made at the door and never leaves it; only its hash travels.
    CreateToken {
        hash: TokenHash,
        token: NewToken,
    },
    /// Answers the token that it was: by its hash, each tier on the way knows which record it must ask for anew.
    RevokeToken {
        id: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Controlled {
    Namespace(Namespace),
    Token(Token),
    Done,
}

/// A namespace's record, in the reserved namespace under [`reserved::namespace`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    pub id: NamespaceId,
    pub title: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jurisdiction: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
}

/// An account's record, in the reserved namespace under [`reserved::account`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    pub id: AccountId,
    pub name: String,
}

/// What a token may do. Each right includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rights {
    Read,
    /// Also create, rename and remove namespaces, unless the token covers some only (rest-api 1).
    Write,
    /// Also list, make and revoke tokens.
    Admin,
}

/// What a token is asked to be, before it is one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewToken {
    pub name: String,
    pub rights: Rights,
    /// The namespaces it covers; `None` is all of the account's, also those to come.
    pub namespaces: Option<Vec<NamespaceId>>,
    /// Absolute Unix seconds after which it is not accepted.
    pub expires: Option<u64>,
}

/// A token's record, in the reserved namespace under [`reserved::token`] and, to be listed, under [`reserved::token_listing`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Names the token to people; no secret.
    pub id: String,
    pub account: AccountId,
    /// Of the secret text. The secret itself is shown once and kept nowhere.
    pub hash: TokenHash,
    #[serde(flatten)]
    pub token: NewToken,
}

/// SHA-256 of a token's text, as 64 hexadecimal digits.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TokenHash(String);

impl TokenHash {
    pub fn from_digest(digest: [u8; 32]) -> TokenHash {
        let mut text = String::with_capacity(64);
        for byte in digest {
            text.push(char::from_digit(u32::from(byte >> 4), 16).expect("a nibble is a digit"));
            text.push(char::from_digit(u32::from(byte & 15), 16).expect("a nibble is a digit"));
        }
        TokenHash(text)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for TokenHash {
    type Error = Error;

    fn try_from(text: String) -> Result<TokenHash> {
        if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Ok(TokenHash(text));
        }
        Err(Error::bad_request("a token's hash is 64 lower-case hexadecimal digits"))
    }
}

impl From<TokenHash> for String {
    fn from(hash: TokenHash) -> String {
        hash.0
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(..)")
    }
}

/// Keys of the reserved namespace. Each entry has an empty value and its record, as JSON, in its metadata, so that a listing carries the records.
pub mod reserved {
    use super::*;

    /// `account/<account>`: [`Account`].
    pub fn account(account: AccountId) -> Key {
        key(format!("account/{account}"))
    }

    /// `namespace/<account>/<namespace>`: [`Namespace`]. The account comes from the asker's token, so another account's namespace is simply not
    /// there.
    pub fn namespace(account: AccountId, namespace: NamespaceId) -> Key {
        key(format!("namespace/{account}/{namespace}"))
    }

    pub fn namespaces(account: AccountId) -> Bytes {
        format!("namespace/{account}/").into()
    }

    /// `token/<hash>`: [`Token`].
    pub fn token(hash: &TokenHash) -> Key {
        key(format!("token/{}", hash.as_str()))
    }

    /// `token-listing/<account>/<id>`: [`Token`] once more, to be found by account.
    pub fn token_listing(account: AccountId, id: &str) -> Key {
        key(format!("token-listing/{account}/{id}"))
    }

    pub fn token_listings(account: AccountId) -> Bytes {
        format!("token-listing/{account}/").into()
    }

    fn key(text: String) -> Key {
        Key::new(text).expect("reserved keys are short and not dots")
    }
}

#[cfg(test)]
mod tests;
