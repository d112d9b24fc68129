//! The bulk write (rest-api 4.1): up to 100 MB in one body, of which no more than one entry is ever in memory.
//!
//! Entries are checked as they come, and what they hold waits in a spool; only when the last one is known to be good is the first one written.

use std::{borrow::Cow, collections::BTreeMap, ops::Range, sync::Arc};

use base64::{
    DecodeError, Engine,
    alphabet::STANDARD,
    engine::{GeneralPurpose, GeneralPurposeConfig},
};
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::{
    Answer, Call, Rest,
    bulk::{BATCHES_IN_FLIGHT, KEY_OVERHEAD, Tally, check_count, check_length, nothing_written},
    element::Elements,
    envelope::Failure,
    metadata,
    spool::{Spool, Spooled},
    upload::Upload,
};
use crate::{
    api::{
        error::MALFORMED,
        query::{expires, whole_number},
    },
    error::Result,
    kv::{Change, Expires, Key, NamespaceId, Rights, Value, Written, too_large},
    limits,
};

/// An entry as it comes. Members that are not known are passed over.
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

/// An entry that is good. Its metadata and then its value lie in the spool.
struct Checked {
    key: Key,
    expires: Expires,
    at: u64,
    metadata_length: u64,
    value_length: u64,
}

impl Checked {
    fn metadata(&self) -> Range<u64> {
        self.at..self.at + self.metadata_length
    }

    fn value(&self) -> Range<u64> {
        self.metadata().end..self.metadata().end + self.value_length
    }

    fn end(&self) -> u64 {
        self.value().end
    }

    /// What it adds to a batch, about.
    fn weight(&self) -> u64 {
        self.key.as_bytes().len() as u64 + self.metadata_length + self.value_length + KEY_OVERHEAD
    }
}

/// The decoder of production, judging by its errors, is Go's: padding is required, ends of lines are passed over (rest-api 4.1).
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&STANDARD, GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));

struct Checker {
    now_seconds: u64,
    checked: Vec<Checked>,
    /// What each key's entry held, to tell repeated entries from contradicting ones.
    digests: BTreeMap<Key, [u8; 32]>,
    bytes: u64,
    count: usize,
    spool: Spool,
}

impl Checker {
    fn add(&mut self, element: &[u8]) -> Result<(), Failure> {
        self.count += 1;
        check_count(self.count)?;
        let entry: Entry<'_> = serde_json::from_slice(element)
            .map_err(|error| Failure::new(MALFORMED, format!("could not parse entry {}: {error}", self.count)))?;
        let key = Key::new(entry.key.as_bytes().to_vec())?;
        let text = |raw: Option<&'_ RawValue>| raw.map(|raw| raw.get().to_owned());
        let (ttl, expiration) = (text(entry.expiration_ttl), text(entry.expiration));
        let expires = expires(ttl.as_deref(), expiration.as_deref(), self.now_seconds, whole_number)?;
        let metadata = match entry.metadata {
            Some(raw) => metadata::checked(raw.get().as_bytes())?.unwrap_or_default(),
            None => Default::default(),
        };
        let value = match entry.base64 {
            Some(true) => Cow::Owned(decode_base64(&entry.key, &entry.value)?),
            _ => Cow::Borrowed(entry.value.as_bytes()),
        };
        if value.len() as u64 > limits::VALUE_BYTES_MAX {
            return Err(too_large(value.len() as u64, limits::VALUE_BYTES_MAX).into());
        }
        let digest = digest(expires, &metadata, &value);
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
        let (metadata_length, value_length) = (metadata.len() as u64, value.len() as u64);
        self.checked.push(Checked { key, expires, at: self.spool.length(), metadata_length, value_length });
        self.spool.push(&metadata);
        self.spool.push(&value);
        Ok(())
    }
}

fn digest(expires: Expires, metadata: &[u8], value: &[u8]) -> [u8; 32] {
    let (kind, seconds) = match expires {
        Expires::Never => (0u8, 0),
        Expires::At(seconds) => (1, seconds),
        Expires::After(seconds) => (2, seconds),
    };
    let mut digest = Sha256::new();
    digest.update([kind]);
    digest.update(seconds.to_be_bytes());
    digest.update((metadata.len() as u64).to_be_bytes());
    digest.update(metadata);
    digest.update(value);
    digest.finalize().into()
}

fn decode_base64(key: &str, text: &str) -> Result<Vec<u8>, Failure> {
    let decoded = match text.contains(['\r', '\n']) {
        true => BASE64.decode(text.replace(['\r', '\n'], "")),
        false => BASE64.decode(text),
    };
    decoded.map_err(|error| {
        let at = match error {
            DecodeError::InvalidByte(at, _) | DecodeError::InvalidLastSymbol { offset: at, .. } => at,
            _ => text.len(),
        };
        let reason = format!("illegal base64 data at input byte {at}");
        Failure::new(
            MALFORMED,
            format!("could not base64 decode value for key: \"{}\", err: '{reason}'", key.escape_debug()),
        )
    })
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
        let large = entry.value_length > limits::CHUNK_BYTES as u64;
        let full = weight + entry.weight() > limits::WRITE_BATCH_BYTES_MAX as u64
            || at - from == limits::WRITE_BATCH_ENTRIES_MAX;
        if (large || full) && from < at {
            portions.push(Portion::Batch(from..at));
            (from, weight) = (at, 0);
        }
        if large {
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
        let mut room = self.buffers.try_take(0)?;
        let checker = self.check_entries(upload, &mut room).await.map_err(nothing_written)?;
        let spooled = Arc::new(checker.spool.finish().await?);
        // Taken before the first write, so that a lack of room stops nothing halfway.
        let in_flight = (BATCHES_IN_FLIGHT * limits::WRITE_BATCH_BYTES_MAX) as u64;
        let _in_flight = self.buffers.try_take(in_flight.min(spooled.length()))?;
        self.write_all(namespace, &checker.checked, &spooled).await.answer()
    }

    async fn check_entries(
        &self,
        upload: &mut Upload,
        room: &mut crate::api::budget::Taken,
    ) -> Result<Checker, Failure> {
        let mut checker = Checker {
            now_seconds: self.clock.wall_millis() / 1000,
            checked: Vec::new(),
            digests: BTreeMap::new(),
            bytes: 0,
            count: 0,
            spool: self.spool_room.open()?,
        };
        let mut elements = Elements::new();
        check_length(upload)?;
        while let Some(chunk) = upload.chunk().await? {
            check_length(upload)?;
            elements.push(&chunk, |element| checker.add(element))?;
            room.resize(elements.held() + checker.bytes)?;
            checker.spool.settle().await?;
        }
        elements.finish()?;
        Ok(checker)
    }

    async fn write_all(&self, namespace: NamespaceId, checked: &[Checked], spooled: &Arc<Spooled>) -> Tally {
        let written = portions(checked).into_iter().map(|portion| async move {
            match portion {
                Portion::Batch(places) => {
                    let batch = &checked[places];
                    let keys = batch.iter().map(|entry| entry.key.clone()).collect();
                    (keys, self.write_batch(namespace, batch, spooled).await)
                }
                Portion::Large(at) => {
                    let entry = &checked[at];
                    (
                        vec![entry.key.clone()],
                        self.write_large(namespace, entry, spooled).await.map(|one| vec![Ok(one)]),
                    )
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

    /// Entries that stand one behind the other in the spool.
    async fn write_batch(
        &self,
        namespace: NamespaceId,
        batch: &[Checked],
        spooled: &Spooled,
    ) -> Result<Vec<Result<Written>>> {
        let (Some(first), Some(last)) = (batch.first(), batch.last()) else { return Ok(Vec::new()) };
        let bytes = spooled.read(first.at..last.end()).await?;
        let part = |range: Range<u64>| bytes.slice((range.start - first.at) as usize..(range.end - first.at) as usize);
        let writes = batch.iter().map(|entry| {
            let metadata = (entry.metadata_length > 0).then(|| part(entry.metadata()));
            let value = Value::Whole(part(entry.value()));
            (entry.key.clone(), Change::Put { value, metadata, expires: entry.expires })
        });
        self.backend.write_many(namespace, writes.collect()).await
    }

    async fn write_large(&self, namespace: NamespaceId, entry: &Checked, spooled: &Arc<Spooled>) -> Result<Written> {
        let metadata = match entry.metadata_length {
            0 => None,
            _ => Some(spooled.read(entry.metadata()).await?),
        };
        let value = spooled.value(entry.value());
        self.backend.write(namespace, &entry.key, Change::Put { value, metadata, expires: entry.expires }).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(value_length: u64, at: u64) -> Checked {
        Checked {
            key: Key::new("k").expect("it is a key"),
            expires: Expires::Never,
            at,
            metadata_length: 0,
            value_length,
        }
    }

    fn cut(lengths: &[u64]) -> Vec<Portion> {
        let mut at = 0;
        let entries: Vec<Checked> = lengths
            .iter()
            .map(|length| {
                let entry = entry(*length, at);
                at = entry.end();
                entry
            })
            .collect();
        portions(&entries)
    }

    #[test]
    fn portions_keep_to_what_a_batch_may_hold() {
        let large = limits::CHUNK_BYTES as u64 + 1;
        assert_eq!(cut(&[]), []);
        assert_eq!(cut(&[1, 2]), [Portion::Batch(0..2)]);
        assert_eq!(cut(&[large]), [Portion::Large(0)]);
        assert_eq!(
            cut(&[1, large, large, 1, 1]),
            [Portion::Batch(0..1), Portion::Large(1), Portion::Large(2), Portion::Batch(3..5)]
        );
        assert_eq!(cut(&[1; 2001]), [Portion::Batch(0..1000), Portion::Batch(1000..2000), Portion::Batch(2000..2001)]);
        let full = cut(&[limits::CHUNK_BYTES as u64; 100]);
        assert_eq!(full, [Portion::Batch(0..63), Portion::Batch(63..100)]);
    }

    #[test]
    fn base64_is_the_standard_alphabet_with_padding_and_any_ends_of_lines() {
        let check = |text, expected: Result<&[u8], usize>| match expected {
            Ok(bytes) => assert_eq!(decode_base64("k", text).expect("it is base64"), bytes),
            Err(at) => {
                let failure = format!("{:?}", decode_base64("k", text).expect_err("it is not base64"));
                assert!(failure.contains(&format!("input byte {at}'")), "{failure}");
            }
        };
        check("", Ok(b""));
        check("AAEC/+8=", Ok(&[0, 1, 2, 255, 239]));
        check("YQ==", Ok(b"a"));
        check("YW\r\nI=\n", Ok(b"ab"));
        check("YR==", Ok(b"a"));
        check("YQ", Err(2));
        check("YQ=", Err(3));
        check("Y Q=", Err(1));
        check("__8=", Err(0));
    }
}
