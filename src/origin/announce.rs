//! What each commit announces: its purges, in the log that the same batch puts into the store, and then in the feed.
//!
//! The stored log lets followers go on over a restart of the origin: they are sent what they missed, and stay covered. It is as bounded as the
//! feed's own (`purge/log.rs`).

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;

use super::{expire, values::Body, versions::Time};
use crate::{
    clock::{Clock, Moment},
    error::Result,
    kv::{
        Version,
        feed::{Item, Purge, Pushed},
    },
    purge::feed::{Feed, FeedSettings, Past, PastPart},
    store::{
        Batch, Store, Table,
        keys::{self, PurgeItem, Purges},
    },
};

pub(super) struct Announcer {
    feed: Feed,
    clock: Arc<dyn Clock>,
    settings: FeedSettings,
    push_bytes_max: usize,
    /// Where the store is this origin's alone.
    stored: Option<StoredLog>,
}

/// The log in the store.
#[derive(Default)]
struct StoredLog {
    rows: VecDeque<LogRow>,
    bytes: usize,
}

/// A row of the stored log.
struct LogRow {
    first: u64,
    bytes: usize,
    at: Moment,
}

/// Rows that are read at once.
const STEP_ROWS: usize = 256;

impl Announcer {
    /// Goes on from what the store's log has. The last version in the store is `last`.
    pub(super) async fn load(
        store: &dyn Store,
        clock: Arc<dyn Clock>,
        settings: FeedSettings,
        push_bytes_max: usize,
        last: Version,
    ) -> Result<Announcer> {
        let mut past = Past::default();
        let mut stored = StoredLog::default();
        let mut from = Bytes::new();
        loop {
            let found = store.scan(Table::Purge, &from, b"", STEP_ROWS).await?;
            for (row, value) in &found {
                let first = keys::decode_number(row, row)?;
                match Purges::decode(row, value) {
                    Ok(Purges { epoch, items }) => {
                        let items = items.into_iter().map(plain).collect();
                        past.parts.push(PastPart { epoch, first, items });
                    }
                    // The hole is a gap to those who would go on over it.
                    Err(error) => tracing::error!(%error, "a part of the purge log is passed over"),
                }
                stored.bytes += row.len() + value.len();
                stored.rows.push_back(LogRow { first, bytes: row.len() + value.len(), at: clock.now() });
            }
            match found.last() {
                Some((last, _)) if found.len() == STEP_ROWS => from = keys::after(last),
                _ => break,
            }
        }
        let feed = Feed::new(Arc::clone(&clock), &settings, Some(past));
        feed.knows_all(last);
        Ok(Announcer { feed, clock, settings, push_bytes_max, stored: Some(stored) })
    }

    /// For one of several origins on a shared store: its log ends with its process, and so does its place in what tiers follow.
    pub(super) fn of_several(clock: Arc<dyn Clock>, settings: FeedSettings, push_bytes_max: usize) -> Announcer {
        let feed = Feed::new(Arc::clone(&clock), &settings, Some(Past::default()));
        Announcer { feed, clock, settings, push_bytes_max, stored: None }
    }

    pub(super) fn feed(&self) -> &Feed {
        &self.feed
    }

    /// The state that a put makes, if it is small enough to travel inside its purge. Its time left is found out when it is published.
    pub(super) fn pushed(&self, body: &Body, metadata: Option<&Bytes>, expiration: Option<u64>) -> Option<Pushed> {
        let value = match body {
            Body::Inline(value) | Body::Chunk(_, value) => value,
            Body::Uploaded(upload) => upload.small()?,
        };
        let pushed = Pushed::Present { value: value.clone(), metadata: metadata.cloned(), expiration, time_left: None };
        (pushed.length() <= self.push_bytes_max).then_some(pushed)
    }

    /// Puts what a commit is about to announce into its batch. From here on a write may take effect.
    pub(super) fn begin(&mut self, items: &[Item], batch: &mut Batch) {
        let Some(stored) = &mut self.stored else { return self.feed.begin() };
        let now = self.clock.now();
        let position = self.feed.position();
        let first = position.sequence + 1;
        let row = Purges { epoch: position.epoch, items: items.iter().filter_map(as_stored).collect() }.encode();
        let bytes = 8 + row.len();
        batch.put(Table::Purge, Purges::row(first), row);
        stored.rows.push_back(LogRow { first, bytes, at: now });
        stored.bytes += bytes;
        // The last row stays: it says where the numbers go on.
        while stored.rows.len() > 1
            && let Some(oldest) = stored.rows.front()
            && (stored.bytes > self.settings.log_bytes_max || now.since(oldest.at) > self.settings.log_age_max)
        {
            batch.remove(Table::Purge, Purges::row(oldest.first));
            stored.bytes -= oldest.bytes;
            stored.rows.pop_front();
        }
        self.feed.begin();
    }

    /// What was begun is in the store; up to `safe` all is told now.
    pub(super) fn publish(&self, mut items: Vec<Item>, safe: Version, time: &Time) {
        for item in &mut items {
            if let Item::Purge(Purge { state, .. }) = item
                && let Some(Pushed::Present { expiration: Some(expiration), time_left, .. }) = state
            {
                *time_left = expire::time_left(*expiration, time.millis());
                if time_left.is_none() {
                    *state = None;
                }
            }
        }
        self.feed.publish(&items, safe);
    }
}

fn as_stored(item: &Item) -> Option<PurgeItem> {
    match item {
        Item::Purge(Purge { namespace, key, version, .. }) => {
            Some(PurgeItem::Key { namespace: *namespace, key: key.clone(), version: *version })
        }
        Item::Namespace { namespace, version } => {
            Some(PurgeItem::Namespace { namespace: *namespace, version: *version })
        }
        // An origin has none to announce.
        Item::Gap => None,
    }
}

fn plain(item: PurgeItem) -> Item {
    match item {
        PurgeItem::Key { namespace, key, version } => Item::Purge(Purge { namespace, key, version, state: None }),
        PurgeItem::Namespace { namespace, version } => Item::Namespace { namespace, version },
    }
}
