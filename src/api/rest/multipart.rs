//! A value and its metadata as a form (rest-api 8).
//!
//! Metadata may come behind the value, and a write needs it first: so the value waits in a spool.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use multer::{Field, Multipart};

use super::{
    envelope::Failure,
    metadata,
    spool::{SpoolRoom, Spooled},
    upload::Upload,
};
use crate::{
    api::error::MALFORMED,
    error::{Error, Result},
    kv::too_large,
    limits,
};

pub(super) struct Form {
    pub value: Arc<Spooled>,
    pub metadata: Option<Bytes>,
}

/// What else than the value and what surrounds it may be in a form. Past it nothing more is read, also of a form without a value.
const FORM_BYTES_MAX: u64 = 2 * limits::VALUE_BYTES_MAX;
/// Of a part's head, and of what may stand before the first part.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Of a form field's text that isn't the value: enough to hold what is allowed.
const FIELD_BYTES_MAX: usize = 16 * 1024;

pub(super) async fn read(upload: &Upload, boundary: String, room: &SpoolRoom) -> Result<Form, Failure> {
    let unread = Arc::new(AtomicUsize::new(0));
    let paced = Paced { upload: upload.clone(), unread: Arc::clone(&unread), yielded: false };
    let mut form = Multipart::new(paced, boundary);
    let mut value = None;
    let mut fields = metadata::Fields::default();
    while let Some(mut field) = form.next_field().await.map_err(|error| broken(upload, error))? {
        unread.store(0, Ordering::Relaxed);
        let mut part = Part { upload, unread: &unread, field: &mut field };
        let name = part.field.name().map(unescaped).unwrap_or_default();
        if name == "value" {
            if value.is_some() {
                return Err(Failure::new(MALFORMED, "the form field 'value' is given twice"));
            }
            value = Some(part.value(room).await?);
        } else if metadata::Fields::concerns(&name) {
            let text = part.text().await?;
            fields.add(&name, text)?;
        } else {
            while part.chunk().await?.is_some() {}
        }
    }
    let value = value.ok_or_else(|| Failure::new(MALFORMED, "Missing value field"))?;
    Ok(Form { value: Arc::new(value), metadata: fields.finish()? })
}

struct Part<'a> {
    upload: &'a Upload,
    unread: &'a AtomicUsize,
    field: &'a mut Field<'static>,
}

impl Part<'_> {
    async fn chunk(&mut self) -> Result<Option<Bytes>, Failure> {
        let chunk = self.field.chunk().await.map_err(|error| broken(self.upload, error))?;
        let length = chunk.as_ref().map_or(0, Bytes::len);
        let taken = |unread: usize| Some(unread.saturating_sub(length));
        let _ = self.unread.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken);
        Ok(chunk)
    }

    /// A value that is too long is read to its end, so that the error can name its length, and not kept.
    async fn value(&mut self, room: &SpoolRoom) -> Result<Spooled, Failure> {
        let mut spool = Some(room.open()?);
        let mut length = 0;
        while let Some(chunk) = self.chunk().await? {
            length += chunk.len() as u64;
            if length > limits::VALUE_BYTES_MAX {
                spool = None;
            }
            if let Some(spool) = &mut spool {
                spool.push(&chunk);
                spool.settle().await?;
            }
        }
        match spool {
            Some(spool) => Ok(spool.finish().await?),
            None => Err(too_large(length, limits::VALUE_BYTES_MAX).into()),
        }
    }

    async fn text(&mut self) -> Result<Bytes, Failure> {
        let mut text = BytesMut::new();
        let mut length = 0;
        while let Some(chunk) = self.chunk().await? {
            length += chunk.len();
            if length <= FIELD_BYTES_MAX {
                text.extend_from_slice(&chunk);
            }
        }
        if length > FIELD_BYTES_MAX {
            metadata::check_length(length)?;
        }
        Ok(text.freeze())
    }
}

/// What forms escape in names (the encoding of WHATWG's HTML, 4.10.21.8).
fn unescaped(name: &str) -> String {
    name.replace("%22", "\"").replace("%0D", "\r").replace("%0A", "\n")
}

fn broken(upload: &Upload, error: multer::Error) -> Failure {
    if let Some(failure) = upload.failure() {
        return failure.into();
    }
    if upload.read() > FORM_BYTES_MAX {
        return too_large(upload.read(), limits::VALUE_BYTES_MAX).into();
    }
    let text = match error {
        multer::Error::StreamReadFailed(inner) => inner.to_string(),
        other => other.to_string(),
    };
    Failure::new(MALFORMED, format!("could not read the form: {text}"))
}

/// An upload in the steps in which its form is read. The parser would else take in all that is there before it gives anything out.
struct Paced {
    upload: Upload,
    /// What the parser was given and has not given out.
    unread: Arc<AtomicUsize>,
    yielded: bool,
}

impl Stream for Paced {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes>>> {
        if std::mem::take(&mut self.yielded) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.unread.load(Ordering::Relaxed) > HEAD_BYTES_MAX {
            return Poll::Ready(Some(Err(Error::bad_request(format!("a part's head exceeds {HEAD_BYTES_MAX} bytes")))));
        }
        if self.upload.read() > FORM_BYTES_MAX {
            return Poll::Ready(Some(Err(Error::bad_request("the form is too large"))));
        }
        let chunk = std::task::ready!(self.upload.poll_next_unpin(cx));
        if let Some(Ok(chunk)) = &chunk {
            self.yielded = true;
            self.unread.fetch_add(chunk.len(), Ordering::Relaxed);
        }
        Poll::Ready(chunk)
    }
}
