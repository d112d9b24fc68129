//! Every number the product promises, in one place.
//!
//! What a user may rely on (sizes, minimums, page lengths) is a constant here; what an operator may tune
//! is a setting in `config.rs`, with its default beside it there.

use std::time::Duration;

/// Longest key, and longest list prefix, in bytes of UTF-8.
pub const KEY_BYTES_MAX: usize = 512;
/// Longest value: 25 MiB.
pub const VALUE_BYTES_MAX: u64 = 26_214_400;
/// Longest metadata, in bytes of the JSON text as sent.
pub const METADATA_BYTES_MAX: usize = 1024;

/// How old an answer may be when the read does not say: `cacheTtl`'s default.
pub const CACHE_TTL_DEFAULT: Duration = Duration::from_secs(60);
/// Smallest `cacheTtl` that a read may ask for.
pub const CACHE_TTL_SECONDS_MIN: i64 = 30;
/// Smallest `expirationTtl`, and smallest distance of `expiration` from now.
pub const EXPIRATION_TTL_SECONDS_MIN: i64 = 60;

/// Keys on a list page: default and maximum.
pub const LIST_PAGE_MAX: usize = 1000;
/// Rows that one list page may step over (expired ones); past it the page ends early, with a cursor.
pub const LIST_ROWS_SCANNED_MAX: usize = 20_000;

/// Keys in one bulk get.
pub const BULK_GET_KEYS_MAX: usize = 100;
/// Total length of the values that one bulk get answers.
pub const BULK_GET_BYTES_MAX: u64 = 26_214_400;
/// Entries in one bulk write or bulk delete.
pub const BULK_WRITE_ENTRIES_MAX: usize = 10_000;
/// Body of one bulk write or bulk delete: 100 MB, decimal.
pub const BULK_WRITE_BYTES_MAX: u64 = 100_000_000;

/// Namespaces that an account may be allowed to have: a listing looks through them all.
pub const NAMESPACES_PER_ACCOUNT_MAX: usize = 20_000;
/// Longest namespace title, in characters.
pub const TITLE_CHARS_MAX: usize = 512;
/// Namespaces on one page of the listing: default and maximum.
pub const NAMESPACES_PAGE_DEFAULT: usize = 20;
pub const NAMESPACES_PAGE_MAX: usize = 1000;
/// Tokens of one account, also those that have expired and were not revoked.
pub const TOKENS_PER_ACCOUNT_MAX: usize = 1000;

/// Values longer than this are stored and moved in chunks of this size.
pub const CHUNK_BYTES: usize = 64 * 1024;
/// Values up to this length live inside their entry's record, no larger than its metadata may be; longer ones live apart, so that a
/// listing does not read them.
pub const INLINE_BYTES_MAX: usize = 512;

/// Writes that travel in one message between tiers, and their total length.
pub const WRITE_BATCH_ENTRIES_MAX: usize = 1000;
pub const WRITE_BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Longest state, value and metadata together, that travels inside its purge unless it is set.
pub const PUSH_BYTES_DEFAULT: usize = 1024;
/// The most that it may be set to.
pub const PUSH_BYTES_MAX: usize = CHUNK_BYTES;

/// How long an origin that is silent counts as alive to the others on its store, unless it is set; and the least that may be set.
pub const LEASE_DEFAULT: Duration = Duration::from_secs(10);
pub const LEASE_MIN: Duration = Duration::from_secs(2);
/// How long a store that several origins share remembers that an entry was deleted, unless it is set; and the least that may be set.
pub const DELETIONS_KEPT_DEFAULT: Duration = Duration::from_secs(3600);
pub const DELETIONS_KEPT_MIN: Duration = Duration::from_secs(600);

const _: () = assert!(INLINE_BYTES_MAX < CHUNK_BYTES);
const _: () = assert!(WRITE_BATCH_BYTES_MAX > CHUNK_BYTES);
const _: () = assert!(NAMESPACES_PAGE_DEFAULT <= NAMESPACES_PAGE_MAX);
