//! Requests and responses, as the doors see them.

use bytes::Bytes;
use futures_util::stream::BoxStream;

use crate::error::Result;

pub use crate::wire::Body as ResponseBody;

/// A request's body: its chunks as they arrive. Deadlines and transport errors are already errors of ours in it, and it is the only
/// place from which a door reads.
pub type RequestBody = BoxStream<'static, Result<Bytes>>;

pub type Request = http::Request<RequestBody>;
pub type Response = http::Response<ResponseBody>;
