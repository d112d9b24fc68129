//! The bulk write (rest-api 4.1): up to 100 MB in one body, of which no more than a small part is ever in memory.
//!
//! Entries are checked as they come, and what they hold waits in a spool; only when the last one is known to be good is the first one written.

use std::{borrow::Cow, collections::BTreeMap, ops::Range, sync::Arc};

use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::{
    Answer, Call, Rest,
    bulk::{BATCHES_IN_FLIGHT, KEY_OVERHEAD, Steps, Tally, check_count, nothing_written},
    element::{Elements, Piece},
    envelope::Failure,
    long_value::{BadBase64, LongValue, decode_base64},
    metadata,
    spool::{Spool, Spooled},
    upload::Upload,
};
use crate::{
    api::{
        budget::Taken,
        error::MALFORMED,
        json,
        query::{expires, whole_number},
    },
    error::Result,
    kv::{Change, Expires, Key, NamespaceId, Rights, Value, Via, Written, too_large},
    limits,
};

/// An entry as it comes; a long value was taken out of it. Members that are not known are passed over.
#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(borrow)]
    key: Cow<'a, str>,
    #[serde(borrow)]
    value: Cow<'a, str>,
    base64: Option<bool>,
    #[serde(borrow)]
    expiration: Option<&'a RawValue>,
    #[serde(borrow)]
    expiration_ttl: Option<&'a RawValue>,
    #[serde(borrow)]
    metadata: Option<&'a RawValue>,
}

/// An entry that is good. Its metadata lies among the entries, and so does its value, right behind it, unless it was long.
struct Checked {
    key: Key,
    expires: Expires,
    metadata: Range<u64>,
    value: Range<u64>,
    place: Place,
}

/// In which spool a value lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Entries,
    LongTexts,
    LongDecoded,
}

impl Checked {
    /// It goes alone, its value as a stream.
    fn is_large(&self) -> bool {
        self.place != Place::Entries || self.value.end - self.value.start > limits::CHUNK_BYTES as u64
    }

    /// What it adds to a batch, about, if it is not large.
    fn weight(&self) -> u64 {
        if self.is_large() {
            // Its value may lie in another spool than its metadata.
            return 0;
        }
        self.key.as_bytes().len() as u64 + (self.value.end - self.metadata.start) + KEY_OVERHEAD
    }
}

/// What lies on the way from the body to the writer.
struct Spools<S> {
    entries: S,
    long_texts: S,
    long_decoded: S,
}

impl Spools<Spool> {
    async fn settle(&mut self) -> Result<()> {
        self.entries.settle().await?;
        self.long_texts.settle().await?;
        self.long_decoded.settle().await
    }

    async fn finish(self) -> Result<Spools<Arc<Spooled>>> {
        Ok(Spools {
            entries: Arc::new(self.entries.finish().await?),
            long_texts: Arc::new(self.long_texts.finish().await?),
            long_decoded: Arc::new(self.long_decoded.finish().await?),
        })
    }
}

impl Spools<Arc<Spooled>> {
    fn value(&self, entry: &Checked) -> Value {
        let spooled = match entry.place {
            Place::Entries => &self.entries,
            Place::LongTexts => &self.long_texts,
            Place::LongDecoded => &self.long_decoded,
        };
        spooled.value(entry.value.clone())
    }
}

pub(super) struct Checker {
    now_seconds: u64,
    checked: Vec<Checked>,
    /// What each key's entry held, to tell repeated entries from contradicting ones.
    digests: BTreeMap<Key, [u8; 32]>,
    bytes: u64,
    count: usize,
    spools: Spools<Spool>,
    /// The long value of the entry under way.
    long: Option<LongValue>,
}

/// A value that is good, before it is known that its entry is.
enum Found<'a> {
    Here(Cow<'a, [u8]>),
    Spooled(Place, Range<u64>),
}

impl Checker {
    fn take(&mut self, piece: Piece<'_>) -> Result<(), Failure> {
        match piece {
            Piece::Element(element) => self.add(element),
            Piece::LongValue(raw) => {
                let Spools { long_texts, long_decoded, .. } = &mut self.spools;
                let long = self.long.get_or_insert_with(|| LongValue::new(long_texts, long_decoded));
                long.push(raw, long_texts, long_decoded)
            }
        }
    }

    fn add(&mut self, element: &[u8]) -> Result<(), Failure> {
        self.count += 1;
        check_count(self.count)?;
        let entry: Entry<'_> = json::object(element)
            .map_err(|error| Failure::new(MALFORMED, format!("could not parse entry {}: {error}", self.count)))?;
        let key = Key::new(entry.key.as_bytes().to_vec())?;
        let ttl = entry.expiration_ttl.map(RawValue::get);
        let expires = expires(ttl, entry.expiration.map(RawValue::get), self.now_seconds, whole_number)?;
        let metadata = match entry.metadata {
            Some(raw) => metadata::checked(raw.get().as_bytes())?.unwrap_or_default(),
            None => Default::default(),
        };
        let (value, length, value_digest) = self.value(&entry)?;
        if length > limits::VALUE_BYTES_MAX {
            return Err(too_large(length, limits::VALUE_BYTES_MAX).into());
        }
        let digest = digest(expires, &metadata, value_digest);
        match self.digests.get(&key) {
            Some(same) if *same == digest => return Ok(()),
            Some(_) => {
                let key = entry.key.escape_debug();
                let text = format!("received duplicate key with different values or expiration parameters: \"{key}\"");
                return Err(Failure::new(MALFORMED, text));
            }
            None => self.digests.insert(key.clone(), digest),
        };
        // Twice for the key, which stands in both collections.
        self.bytes += 2 * (key.as_bytes().len() as u64 + KEY_OVERHEAD);
        let metadata = append(&mut self.spools.entries, &metadata);
        let (place, value) = match value {
            Found::Here(bytes) => (Place::Entries, append(&mut self.spools.entries, &bytes)),
            Found::Spooled(place, range) => (place, range),
        };
        self.checked.push(Checked { key, expires, metadata, value, place });
        Ok(())
    }

    /// The value of an entry, with its length and digest.
    fn value<'a>(&mut self, entry: &'a Entry<'_>) -> Result<(Found<'a>, u64, [u8; 32]), Failure> {
        let is_base64 = entry.base64 == Some(true);
        if let Some(long) = self.long.take() {
            let (text, decoded) = long.finish(&mut self.spools.long_texts, &mut self.spools.long_decoded)?;
            let (place, span) = match is_base64 {
                true => (Place::LongDecoded, decoded.map_err(|bad| not_base64(&entry.key, bad))?),
                false => (Place::LongTexts, text),
            };
            return Ok((Found::Spooled(place, span.at..span.at + span.length), span.length, span.digest));
        }
        let bytes = match is_base64 {
            true => Cow::Owned(decode_base64(&entry.value).map_err(|bad| not_base64(&entry.key, bad))?),
            false => Cow::Borrowed(entry.value.as_bytes()),
        };
        let (length, digest) = (bytes.len() as u64, Sha256::digest(&bytes).into());
        Ok((Found::Here(bytes), length, digest))
    }
}

fn append(spool: &mut Spool, bytes: &[u8]) -> Range<u64> {
    let at = spool.length();
    spool.push(bytes);
    at..spool.length()
}

fn digest(expires: Expires, metadata: &[u8], value_digest: [u8; 32]) -> [u8; 32] {
    let (kind, seconds) = match expires {
        Expires::Never => (0u8, 0),
        Expires::At(seconds) => (1, seconds),
        Expires::After(seconds) => (2, seconds),
    };
    let mut digest = Sha256::new();
    digest.update([kind]);
    digest.update(seconds.to_be_bytes());
    digest.update(value_digest);
    digest.update(metadata);
    digest.finalize().into()
}

fn not_base64(key: &str, BadBase64(at): BadBase64) -> Failure {
    let reason = format!("illegal base64 data at input byte {at}");
    let key = key.escape_debug();
    Failure::new(MALFORMED, format!("could not base64 decode value for key: \"{key}\", err: '{reason}'"))
}

/// What goes to the writer in one call.
#[derive(Debug, PartialEq, Eq)]
enum Portion {
    /// Small entries, by their places.
    Batch(Range<usize>),
    /// One that goes alone, its value as a stream.
    Large(usize),
}

fn portions(checked: &[Checked]) -> Vec<Portion> {
    let mut portions = Vec::new();
    let (mut from, mut weight) = (0, 0);
    for (at, entry) in checked.iter().enumerate() {
        let full = weight + entry.weight() > limits::WRITE_BATCH_BYTES_MAX as u64
            || at - from == limits::WRITE_BATCH_ENTRIES_MAX;
        if (entry.is_large() || full) && from < at {
            portions.push(Portion::Batch(from..at));
            (from, weight) = (at, 0);
        }
        if entry.is_large() {
            portions.push(Portion::Large(at));
            from = at + 1;
        } else {
            weight += entry.weight();
        }
    }
    if from < checked.len() {
        portions.push(Portion::Batch(from..checked.len()));
    }
    portions
}

impl Rest {
    pub(super) async fn bulk_put(&self, call: &Call<'_>, id: &str, upload: &mut Upload) -> Answer {
        let namespace = self.namespace(call, id, Rights::Write).await.map_err(nothing_written)?;
        let mut room = self.bulk_buffers.try_take(0)?;
        let checker = self.check_entries(upload, &mut room).await.map_err(nothing_written)?;
        let spools = checker.spools.finish().await?;
        // Taken before the first write, so that a lack of room stops nothing halfway.
        let in_flight = (BATCHES_IN_FLIGHT * limits::WRITE_BATCH_BYTES_MAX) as u64;
        let _in_flight = self.bulk_buffers.try_take(in_flight.min(spools.entries.length()))?;
        self.write_all(namespace, &checker.checked, &spools).await.answer()
    }

    pub(super) async fn check_entries(&self, upload: &mut Upload, room: &mut Taken) -> Result<Checker, Failure> {
        let open = || self.bulk_spool_room.open();
        let mut checker = Checker {
            now_seconds: self.clock.wall_millis() / 1000,
            checked: Vec::new(),
            digests: BTreeMap::new(),
            bytes: 0,
            count: 0,
            spools: Spools { entries: open()?, long_texts: open()?, long_decoded: open()? },
            long: None,
        };
        let mut elements = Elements::new();
        let mut steps = Steps::of(upload, &*self.clock)?;
        while let Some(step) = steps.next().await? {
            // Before anything is made of it; what its keys cost beside their bytes shows behind it.
            room.resize(elements.to_be_held(step.len()) + checker.bytes)?;
            elements.push(&step, |piece| checker.take(piece))?;
            checker.spools.settle().await?;
        }
        elements.finish()?;
        room.resize(checker.bytes)?;
        Ok(checker)
    }

    async fn write_all(&self, namespace: NamespaceId, checked: &[Checked], spools: &Spools<Arc<Spooled>>) -> Tally {
        let written = portions(checked).into_iter().map(|portion| async move {
            match portion {
                Portion::Batch(places) => {
                    let batch = &checked[places];
                    let keys = batch.iter().map(|entry| entry.key.clone()).collect();
                    (keys, self.write_batch(namespace, batch, &spools.entries).await)
                }
                Portion::Large(at) => {
                    let entry = &checked[at];
                    (vec![entry.key.clone()], self.write_large(namespace, entry, spools).await.map(|one| vec![Ok(one)]))
                }
            }
        });
        let mut done = stream::iter(written).buffer_unordered(BATCHES_IN_FLIGHT);
        let mut tally = Tally::default();
        while let Some((keys, outcomes)) = done.next().await {
            tally.add_batch(keys, outcomes);
        }
        tally
    }

    /// Entries that stand one behind the other.
    async fn write_batch(
        &self,
        namespace: NamespaceId,
        batch: &[Checked],
        entries: &Spooled,
    ) -> Result<Vec<Result<Written>>> {
        let (Some(first), Some(last)) = (batch.first(), batch.last()) else { return Ok(Vec::new()) };
        let start = first.metadata.start;
        let bytes = entries.read(start..last.value.end).await?;
        let part = |range: &Range<u64>| bytes.slice((range.start - start) as usize..(range.end - start) as usize);
        let writes = batch.iter().map(|entry| {
            let metadata = (!entry.metadata.is_empty()).then(|| part(&entry.metadata));
            let value = Value::Whole(part(&entry.value));
            (entry.key.clone(), Change::Put { value, metadata, expires: entry.expires })
        });
        self.backend.write_many(namespace, writes.collect(), Via::default()).await
    }

    async fn write_large(
        &self,
        namespace: NamespaceId,
        entry: &Checked,
        spools: &Spools<Arc<Spooled>>,
    ) -> Result<Written> {
        let metadata = match entry.metadata.is_empty() {
            true => None,
            false => Some(spools.entries.read(entry.metadata.clone()).await?),
        };
        let change = Change::Put { value: spools.value(entry), metadata, expires: entry.expires };
        self.backend.write(namespace, &entry.key, change, Via::default()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(lengths: &[u64]) -> Vec<Portion> {
        let mut at = 0;
        let entry = |length: &u64| {
            let value = at..at + length;
            at = value.end;
            let key = Key::new("k").expect("it is a key");
            Checked { key, expires: Expires::Never, metadata: value.start..value.start, value, place: Place::Entries }
        };
        portions(&lengths.iter().map(entry).collect::<Vec<_>>())
    }

    #[test]
    fn portions_keep_to_what_a_batch_may_hold() {
        let large = limits::CHUNK_BYTES as u64 + 1;
        assert_eq!(cut(&[]), []);
        assert_eq!(cut(&[1, 2]), [Portion::Batch(0..2)]);
        assert_eq!(cut(&[large]), [Portion::Large(0)]);
        let key = Key::new("k").expect("it is a key");
        let apart = Checked { key, expires: Expires::Never, metadata: 9..9, value: 0..3, place: Place::LongTexts };
        assert_eq!(portions(&[apart]), [Portion::Large(0)]);
        assert_eq!(
            cut(&[1, large, large, 1, 1]),
            [Portion::Batch(0..1), Portion::Large(1), Portion::Large(2), Portion::Batch(3..5)]
        );
        assert_eq!(cut(&[1; 2001]), [Portion::Batch(0..1000), Portion::Batch(1000..2000), Portion::Batch(2000..2001)]);
        let full = cut(&[limits::CHUNK_BYTES as u64; 100]);
        assert_eq!(full, [Portion::Batch(0..63), Portion::Batch(63..100)]);
    }
}
