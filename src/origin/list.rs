//! Listings: names in byte order, a page at a time, and the cursors between pages.
//!
//! A page is one range of records; values that live apart are never read. A cursor says after which name to go on. It is tied to its
//! namespace and prefix and authenticated by a secret of the store, so that nobody can make one that starts a scan elsewhere, and it stays valid
//! after a restart.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use super::{expire, versions::Time};
use crate::{
    error::{Error, Kind, Result},
    kv::{List, Listed, NamespaceId, Page},
    limits,
    store::{
        Store, Table,
        keys::{self, Place, Record},
    },
};

/// Rows that a further scan asks for, once the first has found too few that are not expired.
const FURTHER_SCAN_ROWS: usize = 1024;

pub(super) struct Lister {
    pub(super) store: Arc<dyn Store>,
    pub(super) time: Arc<Time>,
    pub(super) cursors: Cursors,
}

impl Lister {
    pub(super) async fn list(&self, namespace: NamespaceId, list: &List) -> Result<Page> {
        let start = keys::entry(namespace, &list.prefix);
        let end = keys::after_prefix(&start);
        let mut from = match &list.cursor {
            Some(cursor) => after(&keys::entry(namespace, &self.cursors.open(cursor, namespace, &list.prefix)?)),
            None => start,
        };
        let now = self.time.millis();
        let mut keys_found: Vec<Listed> = Vec::new();
        let mut scanned = 0;
        // One key more than the page takes says whether there is another page.
        let mut rows_wanted = list.limit + 1;
        loop {
            let rows = self.store.scan(Table::Entry, &from, &end, rows_wanted).await?;
            let exhausted = rows.len() < rows_wanted;
            scanned += rows.len();
            if let Some((last, _)) = rows.last() {
                from = after(last);
            }
            for (row, value) in &rows {
                keys_found.extend(listed(row, value, now)?);
            }
            if keys_found.len() > list.limit {
                keys_found.truncate(list.limit);
                let last = keys_found.last().map(|listed| listed.key.as_bytes().clone()).unwrap_or_default();
                let cursor = self.cursors.seal(namespace, &list.prefix, &last);
                return Ok(Page { keys: keys_found, cursor: Some(cursor) });
            }
            if exhausted {
                return Ok(Page { keys: keys_found, cursor: None });
            }
            if scanned >= limits::LIST_ROWS_SCANNED_MAX
                && let Some((last, _)) = rows.last()
            {
                let (_, last) = keys::parse_entry(last)?;
                let cursor = self.cursors.seal(namespace, &list.prefix, last.as_bytes());
                return Ok(Page { keys: keys_found, cursor: Some(cursor) });
            }
            rows_wanted = FURTHER_SCAN_ROWS;
        }
    }
}

/// What a row shows in a listing; nothing once it has expired, or was deleted.
fn listed(row: &Bytes, value: &Bytes, now: u64) -> Result<Option<Listed>> {
    let record = Record::decode(row, value)?;
    if record.place == Place::Deleted {
        return Ok(None);
    }
    if record.expiration.is_some_and(|expiration| expire::time_left(expiration, now).is_none()) {
        return Ok(None);
    }
    let (_, key) = keys::parse_entry(row)?;
    Ok(Some(Listed { key, expiration: record.expiration, metadata: record.metadata }))
}

/// The first possible row after this one.
fn after(row: &[u8]) -> Bytes {
    [row, &[0]].concat().into()
}

const CURSOR_FORMAT: u8 = 1;
const TAG_BYTES: usize = 16;

/// Makes cursors and reads them: format (1 byte), tag (16), last key, all in base64url.
pub(super) struct Cursors {
    secret: [u8; 32],
}

impl Cursors {
    pub(super) fn new(secret: [u8; 32]) -> Cursors {
        Cursors { secret }
    }

    fn seal(&self, namespace: NamespaceId, prefix: &[u8], last: &[u8]) -> String {
        let tag = self.mac(namespace, prefix, last).finalize().into_bytes();
        URL_SAFE_NO_PAD.encode([&[CURSOR_FORMAT], &tag[..TAG_BYTES], last].concat())
    }

    /// The key after which the listing goes on.
    fn open(&self, cursor: &str, namespace: NamespaceId, prefix: &[u8]) -> Result<Bytes> {
        let invalid = || Error::new(Kind::CursorInvalid, "invalid cursor");
        // Anything longer can't be ours and isn't worth decoding.
        if cursor.len() > (1 + TAG_BYTES + limits::KEY_BYTES_MAX) * 2 {
            return Err(invalid());
        }
        let decoded = URL_SAFE_NO_PAD.decode(cursor).map_err(|e| invalid().with_source(e))?;
        let (&format, rest) = decoded.split_first().ok_or_else(invalid)?;
        let (tag, last) = rest.split_at_checked(TAG_BYTES).ok_or_else(invalid)?;
        if format != CURSOR_FORMAT || self.mac(namespace, prefix, last).verify_truncated_left(tag).is_err() {
            return Err(invalid());
        }
        Ok(Bytes::copy_from_slice(last))
    }

    fn mac(&self, namespace: NamespaceId, prefix: &[u8], last: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.secret).expect("a key of any length will do");
        mac.update(&namespace.to_bytes());
        mac.update(&(prefix.len() as u64).to_be_bytes());
        mac.update(prefix);
        mac.update(last);
        mac
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NAMESPACE: NamespaceId = NamespaceId::from_u128(1);

    proptest! {
        #[test]
        fn a_cursor_opens_to_what_it_was_made_of(secret: [u8; 32], prefix: Vec<u8>, last: Vec<u8>) {
            let cursors = Cursors::new(secret);
            let last = &last[..last.len().min(limits::KEY_BYTES_MAX)];
            let cursor = cursors.seal(NAMESPACE, &prefix, last);
            prop_assert_eq!(cursors.open(&cursor, NAMESPACE, &prefix).unwrap(), last);
        }

        #[test]
        fn a_changed_cursor_is_refused(at: prop::sample::Index, to in "[A-Za-z0-9_-]") {
            let cursors = Cursors::new([7; 32]);
            let cursor = cursors.seal(NAMESPACE, b"p", b"pq");
            let at = at.index(cursor.len());
            let mut changed = cursor.clone();
            changed.replace_range(at..=at, &to);
            let opened = cursors.open(&changed, NAMESPACE, b"p").map_err(|e| e.kind);
            prop_assert_eq!(opened.is_ok(), changed == cursor);
        }

        #[test]
        fn no_text_makes_a_cursor_panic(text: String) {
            let opened = Cursors::new([0; 32]).open(&text, NAMESPACE, b"");
            prop_assert_eq!(opened.unwrap_err().kind, Kind::CursorInvalid);
        }
    }

    #[test]
    fn a_cursor_is_good_for_its_namespace_prefix_and_store_alone() {
        let cursors = Cursors::new([7; 32]);
        let cursor = cursors.seal(NAMESPACE, b"p", b"pq");
        let refused = |cursors: &Cursors, namespace, prefix: &[u8]| {
            assert_eq!(cursors.open(&cursor, namespace, prefix).unwrap_err().kind, Kind::CursorInvalid);
        };
        refused(&cursors, NamespaceId::from_u128(2), b"p");
        refused(&cursors, NAMESPACE, b"");
        refused(&cursors, NAMESPACE, b"pq");
        refused(&Cursors::new([8; 32]), NAMESPACE, b"p");
    }
}
