//! What bulk writes share: batches in flight, and the tally of what became of each key. And the bulk delete, in both its forms (rest-api 4.2).

use std::{borrow::Cow, collections::BTreeSet, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde::Deserialize;

use super::{
    Answer, Call, Rest,
    element::{Elements, Piece},
    envelope::{BulkResult, Failure, success},
    upload::Upload,
};
use crate::{
    api::error::{BULK_TOO_MANY, MALFORMED, TOO_LARGE},
    clock::{Clock, Elapsed, Moment, within},
    error::{Error, Kind, Result},
    kv::{Change, Key, NamespaceId, Rights, Via, Written},
    limits,
};

/// Enough to keep the next ones on their way while one is being committed.
pub(super) const BATCHES_IN_FLIGHT: usize = 4;

/// What became of the keys of one request.
#[derive(Default)]
pub(super) struct Tally {
    written: usize,
    unsuccessful: Vec<Key>,
    /// The first that went wrong.
    error: Option<Error>,
}

impl Tally {
    pub(super) fn add(&mut self, key: Key, outcome: Result<Written>) {
        match outcome {
            Ok(_) => self.written += 1,
            Err(error) => {
                self.unsuccessful.push(key);
                self.error.get_or_insert(error);
            }
        }
    }

    /// What one call of the writer came to for its keys.
    pub(super) fn add_batch(&mut self, keys: Vec<Key>, outcomes: Result<Vec<Result<Written>>>) {
        let whole = outcomes.and_then(|outcomes| match outcomes.len() == keys.len() {
            true => Ok(outcomes),
            false => Err(Error::internal(format!("{} writes came to {} outcomes", keys.len(), outcomes.len()))),
        });
        match whole {
            Ok(outcomes) => keys.into_iter().zip(outcomes).for_each(|(key, outcome)| self.add(key, outcome)),
            Err(error) => keys.into_iter().for_each(|key| self.add(key, Err(error.copied()))),
        }
    }

    /// Some keys that were not written are part of a success, and named, to be tried again; if none was, it is an error.
    pub(super) fn answer(mut self) -> Answer {
        self.unsuccessful.sort();
        let unsuccessful_keys = self.unsuccessful.iter().map(|key| key.as_str().to_owned()).collect();
        let result = BulkResult { successful_key_count: self.written, unsuccessful_keys };
        match self.error {
            Some(error) if self.written == 0 => Err(Failure::from(error).with_result(result)),
            Some(error) => {
                tracing::warn!(%error, written = self.written, failed = self.unsuccessful.len(), "a bulk write was done in part");
                Ok(success(&result))
            }
            None => Ok(success(&result)),
        }
    }
}

/// A refusal of the whole request: nothing was written.
pub(super) fn nothing_written(failure: Failure) -> Failure {
    failure.with_result(BulkResult::default())
}

/// An error once more entries have come than one request may have.
pub(super) fn check_count(count: usize) -> Result<(), Failure> {
    if count > limits::BULK_WRITE_ENTRIES_MAX {
        let text = format!("You can send a maximum of {} entries", limits::BULK_WRITE_ENTRIES_MAX);
        return Err(Failure::new(BULK_TOO_MANY, text));
    }
    Ok(())
}

/// The body of a bulk write, in steps that are short however it arrives, so that what is made of each is small, and quickly made.
pub(super) struct Steps<'a> {
    upload: &'a mut Upload,
    chunk: Bytes,
    clock: &'a dyn Clock,
    begun: Moment,
}

const STEP_BYTES: usize = 64 * 1024;

/// A body of the largest size comes in this time at 1.4 Mbit/s. What comes slower would hold its room for hours, a byte now and then being enough
/// for those who wait for the next one.
const BODY_TIME_MAX: Duration = Duration::from_secs(600);

impl Steps<'_> {
    pub(super) fn of<'a>(upload: &'a mut Upload, clock: &'a dyn Clock) -> Result<Steps<'a>, Failure> {
        check_length(upload)?;
        Ok(Steps { upload, chunk: Bytes::new(), begun: clock.now(), clock })
    }

    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        if self.chunk.is_empty() {
            let left = BODY_TIME_MAX.saturating_sub(self.clock.now().since(self.begun));
            let late = |_| {
                let text = format!("the body did not come within {}s", BODY_TIME_MAX.as_secs());
                Error::new(Kind::RequestTimeout, text)
            };
            // `within` takes what is there already, however late it is.
            let chunk = match left.is_zero() {
                true => Err(Elapsed),
                false => within(self.clock, left, self.upload.chunk()).await,
            };
            let chunk = chunk.map_err(late)??;
            let Some(chunk) = chunk else { return Ok(None) };
            check_length(self.upload)?;
            self.chunk = chunk;
        }
        Ok(Some(self.chunk.split_to(STEP_BYTES.min(self.chunk.len()))))
    }
}

/// An error once more of the body has come, or is announced, than one request may have.
fn check_length(upload: &Upload) -> Result<(), Failure> {
    let length = upload.read().max(upload.announced().unwrap_or(0));
    if length > limits::BULK_WRITE_BYTES_MAX {
        let text = format!("Request body of {length} exceeds limit of {}.", limits::BULK_WRITE_BYTES_MAX);
        return Err(Failure::new(TOO_LARGE, text));
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(transparent)]
struct KeyText<'a>(#[serde(borrow)] Cow<'a, str>);

impl Rest {
    pub(super) async fn bulk_delete(&self, call: &Call<'_>, id: &str, upload: &mut Upload) -> Answer {
        let namespace = self.namespace(call, id, Rights::Write).await.map_err(nothing_written)?;
        let keys = self.keys(upload).await.map_err(nothing_written)?;
        self.delete_all(namespace, keys.into_iter().collect()).await.answer()
    }

    /// The keys to delete, each once.
    async fn keys(&self, upload: &mut Upload) -> Result<BTreeSet<Key>, Failure> {
        let mut keys = BTreeSet::new();
        let (mut count, mut bytes) = (0, 0);
        let mut elements = Elements::new();
        let mut room = self.bulk_buffers.try_take(0)?;
        let mut steps = Steps::of(upload, &*self.clock)?;
        while let Some(step) = steps.next().await? {
            // The keys in a step are shorter than it; how many they are shows behind it.
            room.resize(elements.to_be_held(step.len()) + bytes)?;
            elements.push(&step, |piece| {
                // Keys are no objects, and have no values.
                let Piece::Element(element) = piece else { return Ok(()) };
                count += 1;
                check_count(count)?;
                let KeyText(text) = serde_json::from_slice(element)
                    .map_err(|error| Failure::new(MALFORMED, format!("could not parse key {count}: {error}")))?;
                bytes += text.len() as u64 + KEY_OVERHEAD;
                keys.insert(Key::new(text.into_owned())?);
                Ok(())
            })?;
        }
        elements.finish()?;
        Ok(keys)
    }

    async fn delete_all(&self, namespace: NamespaceId, keys: Vec<Key>) -> Tally {
        let batches: Vec<Vec<Key>> = keys.chunks(limits::WRITE_BATCH_ENTRIES_MAX).map(<[Key]>::to_vec).collect();
        let batches = batches.into_iter().map(|batch| async move {
            let writes = batch.iter().map(|key| (key.clone(), Change::Delete)).collect();
            (batch, self.backend.write_many(namespace, writes, Via::default()).await)
        });
        let mut done = stream::iter(batches).buffer_unordered(BATCHES_IN_FLIGHT);
        let mut tally = Tally::default();
        while let Some((keys, outcomes)) = done.next().await {
            tally.add_batch(keys, outcomes);
        }
        tally
    }
}

/// What a key costs beside its bytes, about.
pub(super) const KEY_OVERHEAD: u64 = 128;
