//! The entries of a store as its users see them, in order, a portion at a time.
//!
//! What has been deleted or has expired is not among them. The value of one that lives apart is read with its entry, unless it is long: whoever wants that
//! one reads it piece by piece.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt as _, try_unfold};
use sha2::{Digest as _, Sha256};

use crate::{
    error::{Error, Result},
    kv::{Key, NamespaceId, Version},
    limits,
    store::{
        Store, Table,
        keys::{self, Place, Record, ValueId},
    },
};

/// Rows that are asked for at once.
const PAGE_ROWS: usize = 1000;
/// A portion has so many bytes at most, by an entry.
const PORTION_BYTES_MAX: u64 = 2 * 1024 * 1024;
/// Longer values are read piece by piece, of so many chunks.
const PIECE_CHUNKS: u32 = 16;
const LONG_BYTES: u64 = PIECE_CHUNKS as u64 * limits::CHUNK_BYTES as u64;
/// What an entry counts for beside its record and its value.
const ENTRY_OVERHEAD_BYTES: u64 = 256;

pub(super) struct Reader {
    store: Arc<dyn Store>,
    namespace: NamespaceId,
    /// Unix seconds: what has expired by then is passed over.
    at: u64,
    from: Bytes,
    end: Bytes,
    rows: VecDeque<(Bytes, Bytes)>,
    /// Whether there are no more rows than those.
    whole: bool,
}

#[derive(Default)]
pub(super) struct Portion {
    pub(super) entries: Vec<Entry>,
    /// The row that it ends with: the next portion begins behind it.
    pub(super) last: Bytes,
    /// The highest version in it, also of what was deleted.
    pub(super) highest: Version,
}

pub(super) struct Entry {
    pub(super) row: Bytes,
    pub(super) key: Key,
    pub(super) record: Record,
    /// Of a value that lives apart and isn't long.
    pub(super) chunks: Vec<Bytes>,
}

impl Reader {
    /// Of the entries of a namespace behind this key.
    pub(super) fn new(store: &Arc<dyn Store>, namespace: NamespaceId, after: Option<&str>, at: u64) -> Reader {
        let start = keys::entry(namespace, after.unwrap_or_default().as_bytes());
        Reader {
            store: Arc::clone(store),
            namespace,
            at,
            from: if after.is_some() { keys::after(&start) } else { start },
            end: keys::after_prefix(&namespace.to_bytes()),
            rows: VecDeque::new(),
            whole: false,
        }
    }

    pub(super) fn portions(self) -> BoxStream<'static, Result<Portion>> {
        try_unfold(self, async |mut reader| Ok(reader.next().await?.map(|portion| (portion, reader)))).boxed()
    }

    async fn next(&mut self) -> Result<Option<Portion>> {
        if self.rows.is_empty() && !self.whole {
            self.rows = self.store.scan(Table::Entry, &self.from, &self.end, PAGE_ROWS).await?.into();
            self.whole = self.rows.len() < PAGE_ROWS;
            self.from = self.rows.back().map(|(last, _)| keys::after(last)).unwrap_or_default();
        }
        if self.rows.is_empty() {
            return Ok(None);
        }
        let mut portion = Portion::default();
        let mut bytes = 0;
        while bytes < PORTION_BYTES_MAX
            && let Some((row, value)) = self.rows.pop_front()
        {
            let record = Record::decode(&row, &value)?;
            let (_, key) = keys::parse_entry(&row)?;
            portion.last = row.clone();
            portion.highest = portion.highest.max(record.version);
            let expired = record.expiration.is_some_and(|expiration| expiration <= self.at);
            if record.place == Place::Deleted || expired {
                continue;
            }
            let entry = Entry { row, key, record, chunks: Vec::new() };
            bytes += ENTRY_OVERHEAD_BYTES + value.len() as u64 + entry.apart().map_or(0, |_| entry.record.length);
            portion.entries.push(entry);
        }
        self.read_apart(&mut portion).await?;
        Ok(Some(portion))
    }

    /// Reads the values of a portion that live apart.
    async fn read_apart(&self, portion: &mut Portion) -> Result<()> {
        let wanted: Vec<Bytes> = portion.entries.iter().filter_map(Entry::apart).flatten().collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let mut found = self.store.get_many(Table::Chunk, &wanted).await?.into_iter();
        for entry in &mut portion.entries {
            let Some(chunks) = entry.apart() else { continue };
            let found = found.by_ref().take(chunks.len()).collect();
            entry.chunks = entry.checked(self.namespace, 0, found)?;
        }
        Ok(())
    }
}

impl Entry {
    /// The id of a value that is to be read piece by piece.
    pub(super) fn long(&self) -> Option<ValueId> {
        match self.record.place {
            Place::Chunked(id) if self.record.length > LONG_BYTES => Some(id),
            _ => None,
        }
    }

    /// The rows of a value that is read with its entry.
    fn apart(&self) -> Option<impl ExactSizeIterator<Item = Bytes> + use<>> {
        match self.record.place {
            Place::Chunked(id) if self.record.length <= LONG_BYTES => {
                let chunks = usize::try_from(keys::chunks_of(self.record.length)).expect("sixteen at most");
                Some((0..chunks).map(move |number| keys::chunk(id, u32::try_from(number).expect("sixteen at most"))))
            }
            _ => None,
        }
    }

    /// The pieces of a long value, in order, each with the number of its first chunk.
    pub(super) fn pieces(
        &self,
        store: &Arc<dyn Store>,
        namespace: NamespaceId,
    ) -> BoxStream<'_, Result<(u32, Vec<Bytes>)>> {
        let Some(id) = self.long() else { return futures_util::stream::empty().boxed() };
        let (chunks, store) = (keys::chunks_of(self.record.length), Arc::clone(store));
        try_unfold(0, move |first| {
            let store = Arc::clone(&store);
            async move {
                if first >= chunks {
                    return Ok(None);
                }
                let next = chunks.min(first + PIECE_CHUNKS);
                let wanted: Vec<Bytes> = (first..next).map(|number| keys::chunk(id, number)).collect();
                let found = store.get_many(Table::Chunk, &wanted).await?;
                let piece = self.checked(namespace, first, found)?;
                Ok(Some(((first, piece), next)))
            }
        })
        .boxed()
    }

    /// The chunks from the `first` one on, each as long as it has to be.
    fn checked(&self, namespace: NamespaceId, first: u32, found: Vec<Option<Bytes>>) -> Result<Vec<Bytes>> {
        let mut left = self.record.length.saturating_sub(u64::from(first) * limits::CHUNK_BYTES as u64);
        let damaged = |number: usize, what: String| {
            let (key, number) = (&self.key, number + first as usize);
            Error::internal(format!(
                "the value of the key {key:?} in the namespace {namespace} is damaged: its chunk {number} {what}"
            ))
        };
        let mut chunks = Vec::with_capacity(found.len());
        for (number, chunk) in found.into_iter().enumerate() {
            let expected = left.min(limits::CHUNK_BYTES as u64);
            left -= expected;
            let chunk = chunk.ok_or_else(|| damaged(number, "is not there".to_owned()))?;
            if chunk.len() as u64 != expected {
                return Err(damaged(number, format!("has {} bytes, not {expected}", chunk.len())));
            }
            chunks.push(chunk);
        }
        Ok(chunks)
    }

    /// A hash over all that a user sees of the entry.
    pub(super) async fn digest(&self, store: &Arc<dyn Store>, namespace: NamespaceId) -> Result<[u8; 32]> {
        let Record { version, expiration, metadata, length, place, .. } = &self.record;
        let mut hash = Sha256::new();
        let mut sized = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        sized(&namespace.to_bytes());
        sized(self.key.as_bytes());
        sized(&version.as_u64().to_be_bytes());
        sized(&expiration.map(u64::to_be_bytes).unwrap_or_default()[..expiration.map_or(0, |_| 8)]);
        // Metadata that is there has a byte more than metadata that isn't.
        hash.update([u8::from(metadata.is_some())]);
        hash.update((metadata.as_ref().map_or(0, Bytes::len) as u64).to_be_bytes());
        hash.update(metadata.as_deref().unwrap_or_default());
        hash.update(length.to_be_bytes());
        if let Place::Inline(value) = place {
            hash.update(value);
        }
        self.chunks.iter().for_each(|chunk| hash.update(chunk));
        let mut pieces = self.pieces(store, namespace);
        while let Some(piece) = pieces.next().await {
            piece?.1.iter().for_each(|chunk| hash.update(chunk));
        }
        Ok(hash.finalize().into())
    }
}
