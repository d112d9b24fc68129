//! Bodies, as the doors see them.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::{Stream, stream::BoxStream};
use http_body::{Frame, SizeHint};

use crate::{
    error::{Error, Result},
    kv::Value,
};

/// A request's body: its chunks as they arrive. Deadlines and transport errors are already errors of ours in it, and it is the only
/// place from which a door reads.
pub type RequestBody = BoxStream<'static, Result<Bytes>>;

pub type Request = http::Request<RequestBody>;
pub type Response = http::Response<ResponseBody>;

/// A response's body.
pub enum ResponseBody {
    Whole(Bytes),
    /// A length that is known goes out as `Content-Length`, else the body is chunked. An error in the stream closes the connection
    /// short of the end, so that nobody takes what came for the whole.
    Stream {
        length: Option<u64>,
        chunks: BoxStream<'static, Result<Bytes>>,
    },
}

impl ResponseBody {
    pub fn empty() -> ResponseBody {
        ResponseBody::Whole(Bytes::new())
    }
}

impl From<Bytes> for ResponseBody {
    fn from(bytes: Bytes) -> ResponseBody {
        ResponseBody::Whole(bytes)
    }
}

impl From<Value> for ResponseBody {
    fn from(value: Value) -> ResponseBody {
        match value {
            Value::Whole(bytes) => ResponseBody::Whole(bytes),
            other => ResponseBody::Stream { length: other.length(), chunks: other.into_stream() },
        }
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match self.get_mut() {
            ResponseBody::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            ResponseBody::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            ResponseBody::Stream { length, chunks } => match Pin::new(chunks).poll_next(cx) {
                Poll::Ready(Some(Ok(chunk))) => {
                    if let Some(left) = length {
                        *left = left.saturating_sub(chunk.len() as u64);
                    }
                    Poll::Ready(Some(Ok(Frame::data(chunk))))
                }
                Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error))),
                Poll::Ready(None) => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, ResponseBody::Whole(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ResponseBody::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            ResponseBody::Stream { length: Some(left), .. } => SizeHint::with_exact(*left),
            ResponseBody::Stream { length: None, .. } => SizeHint::default(),
        }
    }
}
