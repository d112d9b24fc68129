//! A request's body, shared between a handler and whoever it hands the body on to.
//!
//! Whatever becomes of a request, its body is read on to the end, or to a bound, before the answer goes out: many clients look at an answer only
//! once they have sent everything, and take a connection closed before that for a failure of the network.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::{HeaderMap, header};

use super::envelope::Failure;
use crate::{
    api::{
        body::RequestBody,
        budget::Budget,
        error::{MALFORMED, TOO_LARGE},
        json,
    },
    error::{Error, Result},
};

/// The chunks of a body. All clones read from the same one.
#[derive(Clone)]
pub(super) struct Upload(Arc<Mutex<State>>);

struct State {
    chunks: RequestBody,
    ended: bool,
    read: u64,
    announced: Option<u64>,
    /// The error that the body ended with, once more than it was told to its reader.
    failure: Option<Error>,
}

impl Upload {
    pub(super) fn new(chunks: RequestBody, headers: &HeaderMap) -> Upload {
        let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        Upload(Arc::new(Mutex::new(State { chunks, ended: false, read: 0, announced, failure: None })))
    }

    /// What `Content-Length` says.
    pub(super) fn announced(&self) -> Option<u64> {
        self.lock().announced
    }

    /// How many bytes have come so far.
    pub(super) fn read(&self) -> u64 {
        self.lock().read
    }

    /// Why the body is not whole, if it ended in an error.
    pub(super) fn failure(&self) -> Option<Error> {
        self.lock().failure.as_ref().map(Error::copied)
    }

    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>> {
        self.next().await.transpose()
    }

    /// Reads on to the end, and no further than to `bytes_max` in all.
    pub(super) async fn drain(&mut self, bytes_max: u64) {
        // What is wrong with the rest of a body that nobody wants is nobody's concern.
        while self.read() < bytes_max && matches!(self.next().await, Some(Ok(_))) {}
    }

    /// The whole of a small JSON body, decoded.
    pub(super) async fn json<T: serde::de::DeserializeOwned>(&mut self, budget: &Arc<Budget>) -> Result<T, Failure> {
        let mut text = Vec::new();
        let mut room = budget.try_take(0)?;
        while let Some(chunk) = self.chunk().await? {
            let length = text.len() + chunk.len();
            if length > JSON_BYTES_MAX {
                return Err(Failure::new(TOO_LARGE, format!("Request body exceeds limit of {JSON_BYTES_MAX}.")));
            }
            room.resize(length as u64)?;
            text.extend_from_slice(&chunk);
        }
        json::object(&text)
            .map_err(|error| Failure::new(MALFORMED, format!("could not parse the request body: {error}")))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no holder of this lock can panic")
    }
}

/// Bodies of requests that concern few things: a namespace, a token, a hundred keys.
const JSON_BYTES_MAX: usize = 1024 * 1024;

impl Stream for Upload {
    type Item = Result<Bytes>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes>>> {
        let mut state = self.lock();
        if state.ended {
            return Poll::Ready(None);
        }
        let chunk = std::task::ready!(state.chunks.poll_next_unpin(cx));
        match &chunk {
            Some(Ok(chunk)) => state.read += chunk.len() as u64,
            Some(Err(error)) => {
                state.failure = Some(error.copied());
                state.ended = true;
            }
            None => state.ended = true,
        }
        Poll::Ready(chunk)
    }
}
