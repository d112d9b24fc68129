//! Copies of values that are kept while they pass.
//!
//! What arrives from a connection are slices of its buffers; a copy is laid out anew in pieces of one size, so that what is kept costs what it
//! is long. All copies under way share a budget: one that finds no room is given up, and the value passes without being kept.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, stream::BoxStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    clock::{Clock, Moment},
    error::Result,
    kv::{Value, kept::KeptValue},
    limits::CHUNK_BYTES,
};

/// Room for the copies under way, in pieces of [`CHUNK_BYTES`].
#[derive(Clone)]
pub struct CopyBudget(Arc<Semaphore>);

impl CopyBudget {
    pub fn new(bytes: u64) -> CopyBudget {
        let pieces = usize::try_from(bytes / CHUNK_BYTES as u64).unwrap_or(usize::MAX);
        CopyBudget(Arc::new(Semaphore::new(pieces.clamp(16, Semaphore::MAX_PERMITS))))
    }
}

/// A copy being made of a value that passes. `None` inside once it was given up.
pub struct Copy {
    making: Option<Making>,
    length_max: u64,
    budget: CopyBudget,
}

#[derive(Default)]
struct Making {
    parts: Vec<Bytes>,
    last: BytesMut,
    length: u64,
    room: Vec<OwnedSemaphorePermit>,
}

impl Copy {
    pub fn new(length_max: u64, budget: &CopyBudget) -> Copy {
        Copy { making: Some(Making::default()), length_max, budget: budget.clone() }
    }

    fn add(&mut self, mut chunk: &[u8]) {
        let Some(making) = &mut self.making else { return };
        making.length += chunk.len() as u64;
        if making.length > self.length_max {
            self.making = None;
            return;
        }
        while !chunk.is_empty() {
            if making.last.capacity() == 0 {
                let Ok(room) = Arc::clone(&self.budget.0).try_acquire_owned() else {
                    self.making = None;
                    return;
                };
                making.room.push(room);
                making.last = BytesMut::with_capacity(CHUNK_BYTES);
            }
            let fitting = chunk.len().min(CHUNK_BYTES - making.last.len());
            let (now, later) = chunk.split_at(fitting);
            making.last.extend_from_slice(now);
            chunk = later;
            if making.last.len() == CHUNK_BYTES {
                making.parts.push(std::mem::take(&mut making.last).freeze());
            }
        }
    }

    /// The whole copy, if it was not given up.
    fn finish(&mut self) -> Option<KeptValue> {
        let mut making = self.making.take()?;
        if !making.last.is_empty() {
            // The last piece is as long as it needs to be.
            making.parts.push(Bytes::copy_from_slice(&making.last));
        }
        Some(match making.parts.len() {
            0 => KeptValue::Whole(Bytes::new()),
            1 => KeptValue::Whole(making.parts.remove(0)),
            _ => KeptValue::Parts(making.parts.into()),
        })
    }
}

/// A value's stream that copies what passes, and says when it has passed to its end.
pub struct Tee {
    chunks: BoxStream<'static, Result<Bytes>>,
    /// The value's length, where it is known. Whoever sends it asks for nothing past it, not even for the end.
    length: Option<u64>,
    passed: u64,
    copy: Copy,
    at_end: Option<AtEnd>,
}

type AtEnd = Box<dyn FnOnce(Option<KeptValue>) + Send>;

impl Tee {
    /// `at_end` is called once the value has passed whole, and never when it breaks off.
    pub fn new(value: Value, copy: Copy, at_end: AtEnd) -> Tee {
        Tee { length: value.length(), chunks: value.into_stream(), passed: 0, copy, at_end: Some(at_end) }
    }

    fn end(&mut self) {
        if let Some(at_end) = self.at_end.take() {
            at_end(self.copy.finish());
        }
    }
}

impl Stream for Tee {
    type Item = Result<Bytes>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes>>> {
        let tee = self.get_mut();
        let next = std::task::ready!(tee.chunks.as_mut().poll_next(cx));
        match &next {
            Some(Ok(chunk)) => {
                tee.copy.add(chunk);
                tee.passed += chunk.len() as u64;
                if tee.length == Some(tee.passed) {
                    tee.end();
                }
            }
            Some(Err(_)) => tee.at_end = None,
            // Shorter than it was said to be: not whole.
            None if tee.length.is_some_and(|length| length != tee.passed) => tee.at_end = None,
            None => tee.end(),
        }
        Poll::Ready(next)
    }
}

/// What a write's tee leaves behind, for when the write is acknowledged: the copy, and when the value had passed.
#[derive(Clone, Default)]
pub struct Passed(Arc<Mutex<Option<CopyAtEnd>>>);

/// The copy, if it was not given up, and when the value had passed.
type CopyAtEnd = (Option<KeptValue>, Moment);

impl Passed {
    pub fn at_end(&self, clock: Arc<dyn Clock>) -> AtEnd {
        let passed = self.clone();
        Box::new(move |copy| {
            *passed.0.lock().expect("no holder of this lock can panic") = Some((copy, clock.now()));
        })
    }

    pub fn take(&self) -> Option<CopyAtEnd> {
        self.0.lock().expect("no holder of this lock can panic").take()
    }
}
