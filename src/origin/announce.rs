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
        let mut rows = VecDeque::new();
        let mut bytes = 0;
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
                bytes += row.len() + value.len();
                rows.push_back(LogRow { first, bytes: row.len() + value.len(), at: clock.now() });
            }
            match found.last() {
                Some((last, _)) if found.len() == STEP_ROWS => from = keys::after(last),
                _ => break,
            }
        }
        let feed = Feed::new(Arc::clone(&clock), &settings, Some(past));
        feed.knows_all(last);
        Ok(Announcer { feed, clock, settings, push_bytes_max, rows, bytes })
    }

    pub(super) fn feed(&self) -> &Feed {
        &self.feed
    }

    /// The state that a put makes, if it is small enough to travel inside its purge. Its time left is found out when it is published.
    pub(super) fn pushed(&self, body: &Body, metadata: Option<&Bytes>, expiration: Option<u64>) -> Option<Pushed> {
        let (Body::Inline(value) | Body::Chunk(_, value)) = body else { return None };
        let pushed = Pushed::Present { value: value.clone(), metadata: metadata.cloned(), expiration, time_left: None };
        (pushed.length() <= self.push_bytes_max).then_some(pushed)
    }

    /// Puts what a commit is about to announce into its batch. From here on a write may take effect.
    pub(super) fn begin(&mut self, items: &[Item], batch: &mut Batch) {
        let now = self.clock.now();
        let position = self.feed.position();
        let first = position.sequence + 1;
        let row = Purges { epoch: position.epoch, items: items.iter().filter_map(stored).collect() }.encode();
        let bytes = 8 + row.len();
        batch.put(Table::Purge, Purges::row(first), row);
        self.rows.push_back(LogRow { first, bytes, at: now });
        self.bytes += bytes;
        // The last row stays: it says where the numbers go on.
        while self.rows.len() > 1
            && let Some(oldest) = self.rows.front()
            && (self.bytes > self.settings.log_bytes_max || now.since(oldest.at) > self.settings.log_age_max)
        {
            batch.remove(Table::Purge, Purges::row(oldest.first));
            self.bytes -= oldest.bytes;
            self.rows.pop_front();
        }
        self.feed.begin();
    }

    /// What was begun is on disk.
    pub(super) fn publish(&self, mut items: Vec<Item>, last: Version, time: &Time) {
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
        self.feed.publish(&items, last);
    }
}

fn stored(item: &Item) -> Option<PurgeItem> {
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
