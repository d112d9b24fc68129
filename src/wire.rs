//! Both halves of every message between tiers, so that what one writes the other reads.
//!
//! A tier speaks the Workers KV binding protocol with a few more headers; `docs/protocol.md` is this file in prose. What only tiers say
//! to each other are batches of small writes and control changes.

pub mod feed;

use std::{
    borrow::Cow,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::{Stream, stream::BoxStream};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body::{Frame, SizeHint};
use hyper::ext::ReasonPhrase;
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Kind, Result},
    kv::{
        AccountId, Answer, CacheStatus, Change, Control, Controlled, Entry, Expires, Held, Key, Listed, Page, Read,
        State, Taken, Value, Version, Via, WriteId, Written, feed::FollowerId,
    },
    limits,
};

pub const NAMESPACE: &str = "kvasar-namespace";
pub const VERSION: &str = "kvasar-version";
pub const AGE_MILLIS: &str = "kvasar-age-ms";
pub const AT_LEAST: &str = "kvasar-at-least";
pub const MAX_AGE_MILLIS: &str = "kvasar-max-age-ms";
pub const EXPIRES_IN_MILLIS: &str = "kvasar-expires-in-ms";
/// Sixteen hexadecimal digits: the follower that asks, writes, or follows.
pub const FOLLOWER: &str = "kvasar-follower";
/// Names a write that may be handed in again: 16 hexadecimal digits. What the store has of it already is then answered, and not written once more.
pub const WRITE_ID: &str = "kvasar-write-id";
/// With a write to one of several origins: which one is meant, by the epoch of its feed.
pub const WRITE_TO: &str = "kvasar-write-to";
/// With a write that is handed in again: the origin that may have taken it, by the epoch of its feed, and how long ago it was handed in first.
pub const WRITE_TAKEN: &str = "kvasar-write-taken-by";
pub const WRITE_MILLIS: &str = "kvasar-write-ms";
/// There when the answering tier's feed covers the state.
pub const COVERED: &str = "kvasar-covered";
pub const ERROR: &str = "kvasar-error";
/// There with an error when nothing was done, nor will be, of what was asked for.
pub const UNTAKEN: &str = "kvasar-untaken";
pub const METADATA: &str = "cf-kv-metadata";
pub const EXPIRATION: &str = "cf-expiration";
pub const CACHE_STATUS: &str = "cf-cache-status";

/// Where tiers send batches of small writes, and control changes. Two segments, so that no key collides.
pub const WRITE_PATH: &str = "/kvasar/write";
pub const CONTROL_PATH: &str = "/kvasar/control";
/// Where a tier follows the purge feed: the request's body has its pings, the answer's what it is told (`wire/feed.rs`).
pub const FEED_PATH: &str = "/kvasar/feed";

/// A body on its way out, of a request or of a response.
pub enum Body {
    Whole(Bytes),
    /// A length that is known goes out as `Content-Length`, else the body is chunked. An error in the stream closes the connection
    /// short of the end, so that nobody takes what came for the whole.
    Stream {
        length: Option<u64>,
        chunks: BoxStream<'static, Result<Bytes>>,
    },
}

impl Body {
    pub fn empty() -> Body {
        Body::Whole(Bytes::new())
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Body {
        Body::Whole(bytes)
    }
}

impl From<Value> for Body {
    fn from(value: Value) -> Body {
        match value {
            Value::Whole(bytes) => Body::Whole(bytes),
            other => Body::Stream { length: other.length(), chunks: other.into_stream() },
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match self.get_mut() {
            Body::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Body::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Body::Stream { length, chunks } => match Pin::new(chunks).poll_next(cx) {
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
        match self {
            Body::Whole(bytes) => bytes.is_empty(),
            Body::Stream { length, .. } => *length == Some(0),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Body::Stream { length: Some(left), .. } => SizeHint::with_exact(*left),
            Body::Stream { length: None, .. } => SizeHint::default(),
        }
    }
}

/// The fields of a head that is read: of a request that a door was given, or of bytes that just arrived.
pub trait Fields {
    /// The value of the first field of that name, which is in lower case.
    fn field(&self, name: &str) -> Option<&[u8]>;
}

impl Fields for HeaderMap {
    fn field(&self, name: &str) -> Option<&[u8]> {
        self.get(name).map(HeaderValue::as_bytes)
    }
}

/// Where the fields of a head are written to.
pub trait FieldsMut {
    fn put(&mut self, name: &'static str, value: &[u8]);
}

impl FieldsMut for HeaderMap {
    fn put(&mut self, name: &'static str, value: &[u8]) {
        self.insert(name, HeaderValue::from_bytes(value).expect("it was made fit for a header"));
    }
}

/// The text of a head.
impl FieldsMut for Vec<u8> {
    fn put(&mut self, name: &'static str, value: &[u8]) {
        push_field(self, name, value);
    }
}

/// A field as a head's text has it.
pub fn push_field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    // Once, not for each part.
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Puts a present state's or an absent one's entity tag, of a version in digits.
fn put_etag(fields: &mut impl FieldsMut, name: &'static str, version: &[u8; Version::DIGITS], present: bool) {
    const ABSENT: &[u8] = b"-absent";
    let mut text = [b'"'; 2 + Version::DIGITS + ABSENT.len()];
    text[1..=Version::DIGITS].copy_from_slice(version);
    if present {
        return fields.put(name, &text[..2 + Version::DIGITS]);
    }
    text[1 + Version::DIGITS..][..ABSENT.len()].copy_from_slice(ABSENT);
    fields.put(name, &text);
}

/// What an `If-None-Match` of ours names; anything else in it names nothing that we gave out.
pub fn parse_etag(value: &[u8]) -> Option<Held> {
    let text = std::str::from_utf8(value).ok()?.trim().trim_start_matches("W/").strip_prefix('"')?.strip_suffix('"')?;
    let (version, present) = match text.strip_suffix("-absent") {
        Some(version) => (version, false),
        None => (text, true),
    };
    Some(Held { version: version.parse().ok()?, present })
}

/// Asks for what a read accepts. The other half is [`decode_read`].
pub fn encode_read(read: &Read, headers: &mut HeaderMap) {
    headers.insert(MAX_AGE_MILLIS, number(millis(read.max_age)));
    if let Some(version) = read.at_least {
        headers.insert(AT_LEAST, ascii(&version.to_string()));
    }
    if let Some(held) = read.held {
        put_etag(headers, "if-none-match", &held.version.digits(), held.present);
    }
    encode_follower(read.asker, headers);
}

/// What a read accepts by its headers, over a `max_age` that was found elsewhere (`cache_ttl`).
pub fn decode_read(headers: &impl Fields, max_age: Duration) -> Result<Read> {
    let max_age = match headers.field(MAX_AGE_MILLIS) {
        Some(value) => Duration::from_millis(decimal(value, MAX_AGE_MILLIS)?),
        None => max_age,
    };
    let at_least = headers.field(AT_LEAST).map(|value| parse_version(value, AT_LEAST)).transpose()?;
    let held = headers.field("if-none-match").and_then(parse_etag);
    Ok(Read { max_age, at_least, held, asker: decode_follower(headers) })
}

/// How a write comes up. The other half is [`decode_via`].
pub fn encode_via(via: Via, headers: &mut HeaderMap) {
    encode_follower(via.follower, headers);
    if let Some(WriteId(id)) = via.id {
        headers.insert(WRITE_ID, ascii(&format!("{id:016x}")));
    }
    if let Some(epoch) = via.to {
        headers.insert(WRITE_TO, ascii(&format!("{epoch:016x}")));
    }
    if let Some(Taken { epoch, ago }) = via.taken {
        headers.insert(WRITE_TAKEN, ascii(&format!("{epoch:016x}")));
        headers.insert(WRITE_MILLIS, number(millis(ago + Duration::from_millis(1))));
    }
}

pub fn decode_via(headers: &impl Fields) -> Via {
    let ago = headers.field(WRITE_MILLIS).and_then(|ago| decimal(ago, WRITE_MILLIS).ok()).map(Duration::from_millis);
    let taken = decode_id(headers, WRITE_TAKEN).zip(ago).map(|(epoch, ago)| Taken { epoch, ago });
    let id = decode_id(headers, WRITE_ID).map(WriteId);
    Via { follower: decode_follower(headers), id, to: decode_id(headers, WRITE_TO), taken }
}

/// Says who asks or writes. The other half is [`decode_follower`].
pub fn encode_follower(follower: Option<FollowerId>, headers: &mut HeaderMap) {
    if let Some(follower) = follower {
        headers.insert(FOLLOWER, ascii(&format!("{:016x}", follower.0)));
    }
}

/// Who asks or writes, if it is one of our own that follows; anything else names nobody.
pub fn decode_follower(headers: &impl Fields) -> Option<FollowerId> {
    decode_id(headers, FOLLOWER).map(FollowerId)
}

fn decode_id(headers: &impl Fields, name: &str) -> Option<u64> {
    let text = std::str::from_utf8(headers.field(name)?).ok().filter(|text| text.len() == 16)?;
    u64::from_str_radix(text, 16).ok()
}

/// What an answer's head says of it.
#[derive(Clone, Copy, Debug)]
pub struct AnswerHead<'a> {
    pub version: Version,
    pub age: Duration,
    pub covered: bool,
    pub status: CacheStatus,
    pub state: StateHead<'a>,
}

#[derive(Clone, Copy, Debug)]
pub enum StateHead<'a> {
    Present { metadata: Option<&'a [u8]>, expiration: Option<u64>, time_left: Option<Duration> },
    Absent,
    Unchanged { present: bool, time_left: Option<Duration> },
}

impl AnswerHead<'_> {
    /// Writes all fields of the head, but for those of the connection; answers the status.
    pub fn encode(&self, read: &Read, fields: &mut impl FieldsMut) -> StatusCode {
        let present = match self.state {
            StateHead::Present { .. } => true,
            StateHead::Absent => false,
            StateHead::Unchanged { present, .. } => present,
        };
        let version = self.version.digits();
        fields.put(VERSION, &version);
        // Rounded up: an age may be too large, never too small.
        put_number(fields, AGE_MILLIS, millis_up(self.age));
        fields.put(CACHE_STATUS, self.status.name().as_bytes());
        // Of use to those alone who follow.
        if self.covered && read.asker.is_some() {
            fields.put(COVERED, b"1");
        }
        put_etag(fields, "etag", &version, present);
        match self.state {
            StateHead::Present { metadata, expiration, time_left } => {
                fields.put("content-type", b"application/octet-stream");
                put_expiration(fields, expiration, time_left);
                if let Some(metadata) = metadata {
                    fields.put(METADATA, &header_text(metadata));
                }
                StatusCode::OK
            }
            StateHead::Absent => StatusCode::NOT_FOUND,
            StateHead::Unchanged { time_left, .. } => {
                put_expiration(fields, None, time_left);
                StatusCode::NOT_MODIFIED
            }
        }
    }
}

/// An answer as status, headers and body. The other half is [`decode_answer`].
pub fn encode_answer(answer: Answer, read: &Read) -> http::Response<Body> {
    let state = match &answer.state {
        State::Present(entry) => StateHead::Present {
            metadata: entry.metadata.as_deref(),
            expiration: entry.expiration,
            time_left: entry.time_left,
        },
        State::Absent => StateHead::Absent,
        State::Unchanged { time_left } => {
            StateHead::Unchanged { present: read.held.is_some_and(|held| held.present), time_left: *time_left }
        }
    };
    let Answer { version, age, covered, status, .. } = answer;
    let mut response = http::Response::new(Body::empty());
    let head = AnswerHead { version, age, covered, status, state };
    *response.status_mut() = head.encode(read, response.headers_mut());
    if let State::Present(entry) = answer.state {
        *response.body_mut() = entry.value.into();
    }
    response
}

/// JSON text fit for a header: control characters, which JSON allows between its parts, become spaces.
pub fn header_text(text: &[u8]) -> Cow<'_, [u8]> {
    let fits = |byte: u8| !matches!(byte, 0x7f | 0..=0x1f) || byte == b'\t';
    if text.iter().all(|byte| fits(*byte)) {
        return Cow::Borrowed(text);
    }
    let mut fitting = Vec::with_capacity(text.len() + 16);
    for &byte in text {
        match byte {
            // Inside a JSON string DEL stands raw, and no header may hold it.
            0x7f => fitting.extend_from_slice(b"\\u007f"),
            0..=0x1f => fitting.push(b' '),
            _ => fitting.push(byte),
        }
    }
    Cow::Owned(fitting)
}

fn put_number(fields: &mut impl FieldsMut, name: &'static str, number: u64) {
    fields.put(name, itoa::Buffer::new().format(number).as_bytes());
}

fn put_expiration(fields: &mut impl FieldsMut, expiration: Option<u64>, time_left: Option<Duration>) {
    if let Some(expiration) = expiration {
        put_number(fields, EXPIRATION, expiration);
    }
    if let Some(left) = time_left {
        // Rounded down: it may fall early, never late.
        put_number(fields, EXPIRES_IN_MILLIS, millis(left));
    }
}

/// Reads an answer from its status, headers and body; an error that upstream answered becomes one of ours.
pub fn decode_answer(status: StatusCode, headers: &HeaderMap, value: Value) -> Result<Answer> {
    let version = parse_version(required(headers, VERSION)?, VERSION)?;
    let age = Duration::from_millis(decimal(required(headers, AGE_MILLIS)?, AGE_MILLIS)?);
    let status_text = headers.get(CACHE_STATUS).and_then(|value| value.to_str().ok());
    let cache_status = CacheStatus::ALL.into_iter().find(|known| Some(known.name()) == status_text);
    let time_left = duration(headers, EXPIRES_IN_MILLIS)?;
    let state = match status {
        StatusCode::OK => State::Present(Entry {
            value,
            metadata: headers.get(METADATA).map(|value| Bytes::copy_from_slice(value.as_bytes())),
            expiration: headers.field(EXPIRATION).map(|value| decimal(value, EXPIRATION)).transpose()?,
            time_left,
        }),
        StatusCode::NOT_FOUND => State::Absent,
        StatusCode::NOT_MODIFIED => State::Unchanged { time_left },
        other => return Err(unexpected(format!("status {other} for a read"))),
    };
    let covered = headers.contains_key(COVERED);
    Ok(Answer { state, version, age, covered, status: cache_status.unwrap_or(CacheStatus::Miss) })
}

pub fn encode_written(written: &Written) -> http::Response<Body> {
    let mut response = http::Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.put(VERSION, &written.version.digits());
    put_expiration(headers, written.expiration, written.time_left);
    response
}

pub fn decode_written(headers: &HeaderMap) -> Result<Written> {
    Ok(Written {
        version: parse_version(required(headers, VERSION)?, VERSION)?,
        expiration: headers.field(EXPIRATION).map(|value| decimal(value, EXPIRATION)).transpose()?,
        time_left: duration(headers, EXPIRES_IN_MILLIS)?,
    })
}

/// The error that a refused request was answered with. A kind that is not named is one of the status's.
pub fn decode_error(status: StatusCode, headers: &HeaderMap, reason: Option<&ReasonPhrase>) -> Error {
    let named = headers.get(ERROR).and_then(|value| value.to_str().ok()).and_then(Kind::from_name);
    let kind = match named {
        // That upstream could not reach whom it asked doesn't make upstream unreachable.
        Some(Kind::Unreachable) => Kind::Unavailable,
        Some(kind) => kind,
        None if status.is_server_error() => Kind::Unavailable,
        None => Kind::Internal,
    };
    let message = match reason {
        Some(reason) => String::from_utf8_lossy(reason.as_bytes()).into_owned(),
        None => status.canonical_reason().unwrap_or("unexplained").to_string(),
    };
    let mut error = Error::new(kind, message).from_elsewhere();
    error.untaken = headers.contains_key(UNTAKEN);
    let seconds = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    error.retry_after = seconds.map(Duration::from_secs);
    error
}

/// A list page in the form of worker-binding 2.6: metadata is a JSON string that holds JSON.
#[derive(Serialize, Deserialize)]
struct PageJson {
    keys: Vec<ListedJson>,
    list_complete: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cursor: Option<String>,
    #[serde(default, rename = "cacheStatus")]
    cache_status: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct ListedJson {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expiration: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    metadata: Option<String>,
}

pub fn encode_page(page: &Page) -> Result<Bytes> {
    let keys = page.keys.iter().map(|listed| ListedJson {
        name: listed.key.as_str().to_string(),
        expiration: listed.expiration,
        metadata: listed.metadata.as_ref().map(|metadata| String::from_utf8_lossy(metadata).into_owned()),
    });
    let page = PageJson {
        keys: keys.collect(),
        list_complete: page.cursor.is_none(),
        cursor: page.cursor.clone(),
        cache_status: None,
    };
    let json = serde_json::to_vec(&page).map_err(|e| Error::internal("writing a list page as JSON").with_source(e))?;
    Ok(json.into())
}

pub fn decode_page(json: &[u8]) -> Result<Page> {
    let page: PageJson = serde_json::from_slice(json)
        .map_err(|e| unexpected("a list page that is not JSON of its form").with_source(e))?;
    let keys = page.keys.into_iter().map(|listed| {
        Ok(Listed {
            key: Key::new(listed.name)?,
            expiration: listed.expiration,
            metadata: listed.metadata.map(Bytes::from),
        })
    });
    Ok(Page { keys: keys.collect::<Result<_>>()?, cursor: page.cursor })
}

/// A control change with its account, as JSON.
#[derive(Serialize, Deserialize)]
pub struct ControlRequest {
    pub account: AccountId,
    #[serde(flatten)]
    pub control: Control,
}

pub fn encode_control(request: &ControlRequest) -> Result<Bytes> {
    let json =
        serde_json::to_vec(request).map_err(|e| Error::internal("writing a control change as JSON").with_source(e))?;
    Ok(json.into())
}

pub fn decode_control(json: &[u8]) -> Result<ControlRequest> {
    serde_json::from_slice(json)
        .map_err(|e| Error::bad_request("a control change that is not JSON of its form").with_source(e))
}

/// The outcome of a control change, as JSON.
#[derive(Serialize, Deserialize)]
struct ControlledJson {
    version: String,
    controlled: Controlled,
}

pub fn encode_controlled(controlled: Controlled, version: Version) -> Result<Bytes> {
    let json = serde_json::to_vec(&ControlledJson { version: version.to_string(), controlled })
        .map_err(|e| Error::internal("writing the outcome of a control change as JSON").with_source(e))?;
    Ok(json.into())
}

pub fn decode_controlled(json: &[u8]) -> Result<(Controlled, Version)> {
    let json: ControlledJson = serde_json::from_slice(json)
        .map_err(|e| unexpected("the outcome of a control change that is not JSON of its form").with_source(e))?;
    Ok((json.controlled, json.version.parse()?))
}

const PUT: u8 = 1;
const DELETE: u8 = 2;

/// A batch of small writes: for each, `kind u8, key length u16, key`, and for a put `expires kind u8, expires u64, metadata length u16 (0xffff
/// for none), metadata, value length u32, value`. Numbers are big-endian. The other half is [`decode_writes`].
pub fn encode_writes(writes: &[(Key, Change)]) -> Bytes {
    let mut out = BytesMut::new();
    for (key, change) in writes {
        out.put_u8(if matches!(change, Change::Delete) { DELETE } else { PUT });
        out.put_u16(u16::try_from(key.as_bytes().len()).expect("a key has at most 512 bytes"));
        out.put_slice(key.as_bytes());
        let Change::Put { value, metadata, expires } = change else { continue };
        let (kind, number) = match expires {
            Expires::Never => (0, 0),
            Expires::At(seconds) => (1, *seconds),
            Expires::After(seconds) => (2, *seconds),
        };
        out.put_u8(kind);
        out.put_u64(number);
        match metadata {
            Some(metadata) => {
                out.put_u16(u16::try_from(metadata.len()).expect("metadata has at most 1,024 bytes"));
                out.put_slice(metadata);
            }
            None => out.put_u16(u16::MAX),
        }
        let Value::Whole(value) = value else { unreachable!("a batch holds whole values only") };
        out.put_u32(u32::try_from(value.len()).expect("a value in a batch has at most 64 KiB"));
        out.put_slice(value);
    }
    out.freeze()
}

pub fn decode_writes(mut bytes: Bytes) -> Result<Vec<(Key, Change)>> {
    let mut writes = Vec::new();
    while bytes.has_remaining() {
        if writes.len() == limits::WRITE_BATCH_ENTRIES_MAX {
            return Err(Error::bad_request(format!(
                "a batch holds more than {} writes",
                limits::WRITE_BATCH_ENTRIES_MAX
            )));
        }
        writes.push(decode_write(&mut bytes)?);
    }
    Ok(writes)
}

fn decode_write(bytes: &mut Bytes) -> Result<(Key, Change)> {
    let kind = take_u8(bytes)?;
    let length = take_u16(bytes)?;
    let key = Key::new(take(bytes, length.into())?)?;
    match kind {
        DELETE => Ok((key, Change::Delete)),
        PUT => {
            let expires_kind = take_u8(bytes)?;
            let number = take(bytes, 8)?.get_u64();
            let expires = match expires_kind {
                0 => Expires::Never,
                1 => Expires::At(number),
                2 => Expires::After(number),
                other => return Err(Error::bad_request(format!("a write in a batch expires in unknown way {other}"))),
            };
            let metadata = match take_u16(bytes)? {
                u16::MAX => None,
                length if usize::from(length) > limits::METADATA_BYTES_MAX => {
                    return Err(Error::bad_request(format!("a write in a batch has {length} bytes of metadata")));
                }
                length => Some(take(bytes, length.into())?),
            };
            let length = take(bytes, 4)?.get_u32() as usize;
            if length > limits::CHUNK_BYTES {
                return Err(Error::bad_request(format!("a write in a batch has a value of {length} bytes")));
            }
            Ok((key, Change::Put { value: Value::Whole(take(bytes, length)?), metadata, expires }))
        }
        other => Err(Error::bad_request(format!("a batch holds a write of unknown kind {other}"))),
    }
}

fn take_u8(bytes: &mut Bytes) -> Result<u8> {
    Ok(take(bytes, 1)?.get_u8())
}

fn take_u16(bytes: &mut Bytes) -> Result<u16> {
    Ok(take(bytes, 2)?.get_u16())
}

fn take(bytes: &mut Bytes, length: usize) -> Result<Bytes> {
    if bytes.len() < length {
        return Err(Error::bad_request(format!("a batch ends {} bytes short", length - bytes.len())));
    }
    Ok(bytes.split_to(length))
}

/// One write's outcome in the answer to a batch.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum OutcomeJson {
    Written { version: String, expiration: Option<u64>, expires_in_ms: Option<u64> },
    Refused { kind: String, message: String },
}

pub fn encode_outcomes(outcomes: &[Result<Written>]) -> Result<Bytes> {
    let outcomes: Vec<OutcomeJson> = outcomes
        .iter()
        .map(|outcome| match outcome {
            Ok(written) => OutcomeJson::Written {
                version: written.version.to_string(),
                expiration: written.expiration,
                expires_in_ms: written.time_left.map(millis),
            },
            Err(error) => OutcomeJson::Refused { kind: error.kind.name().to_string(), message: error.message.clone() },
        })
        .collect();
    let json = serde_json::to_vec(&outcomes)
        .map_err(|e| Error::internal("writing a batch's outcomes as JSON").with_source(e))?;
    Ok(json.into())
}

pub fn decode_outcomes(json: &[u8]) -> Result<Vec<Result<Written>>> {
    let outcomes: Vec<OutcomeJson> = serde_json::from_slice(json)
        .map_err(|e| unexpected("outcomes of a batch that are not JSON of their form").with_source(e))?;
    let decode = |outcome| match outcome {
        OutcomeJson::Written { version, expiration, expires_in_ms } => Ok(Ok(Written {
            version: version.parse::<Version>()?,
            expiration,
            time_left: expires_in_ms.map(Duration::from_millis),
        })),
        OutcomeJson::Refused { kind, message } => {
            Ok(Err(Error::new(Kind::from_name(&kind).unwrap_or(Kind::Internal), message)))
        }
    };
    outcomes.into_iter().map(decode).collect()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn millis_up(duration: Duration) -> u64 {
    let whole = duration.as_secs().saturating_mul(1000);
    whole.saturating_add(duration.subsec_nanos().div_ceil(1_000_000).into())
}

fn ascii(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("made of digits, letters and quotes")
}

fn number(number: u64) -> HeaderValue {
    HeaderValue::from(number)
}

fn required<'a>(headers: &'a HeaderMap, name: &str) -> Result<&'a [u8]> {
    headers.field(name).ok_or_else(|| unexpected(format!("no header {name}")))
}

fn decimal(value: &[u8], name: &str) -> Result<u64> {
    let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    number.ok_or_else(|| Error::bad_request(format!("{name} is a whole number, not \"{}\"", value.escape_ascii())))
}

fn duration(headers: &HeaderMap, name: &str) -> Result<Option<Duration>> {
    headers.field(name).map(|value| decimal(value, name).map(Duration::from_millis)).transpose()
}

fn parse_version(value: &[u8], name: &str) -> Result<Version> {
    let version = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    version.ok_or_else(|| {
        Error::bad_request(format!("{name} is a version of 16 hexadecimal digits, not \"{}\"", value.escape_ascii()))
    })
}

fn unexpected(what: impl std::fmt::Display) -> Error {
    Error::new(Kind::Unreachable, format!("upstream does not speak our protocol: it answered {what}"))
}

#[cfg(test)]
mod tests;
