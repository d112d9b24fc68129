//! What the Workers runtime sends for a KV binding, and what tiers ask of each other with the same words (docs/protocol.md).
//!
//! A Worker's author sees nothing of a failure but the reason phrase, and sees that only when the whole body was read before it was sent: so each
//! refused upload is read to its end, within a bound.

use std::{
    borrow::Cow,
    collections::HashSet,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use http::{HeaderMap, Method, StatusCode, header};
use serde::Deserialize;

use crate::{
    api::{
        auth::{Auth, Identity},
        body::{Request, RequestBody, Response, ResponseBody},
        budget::{Budget, Taken},
        connection::head::Head,
        error::binding_response,
        hot::{HotAnswer, Remembered},
        json,
        query::{Query, decode_key, expires, leading_integer},
        server::{Handler, told},
    },
    clock::{self, Clock},
    error::{Error, Kind, Result},
    kv::{
        Answer, Backend, CacheStatus, Change, Expires, Key, List, NamespaceId, Read, Rights, State, Value, ValueStream,
        too_large,
    },
    limits,
    metrics::{CacheAnswer, Operation, TierMetrics},
    wire::{self, Fields},
};

/// One tier's, or a lone origin's, binding port.
pub struct Binding {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) auth: Arc<Auth>,
    clock: Arc<dyn Clock>,
    buffers: Arc<Budget>,
    pub(super) metrics: Arc<TierMetrics>,
}

/// How much of a refused upload is read so that its sender gets to see why.
const DRAIN_BYTES_MAX: u64 = 4 * limits::VALUE_BYTES_MAX;
const DRAIN_DEADLINE: Duration = Duration::from_secs(60);
/// Longest body of a bulk get: 100 keys of 512 bytes, each byte escaped, with room to spare.
const BULK_GET_REQUEST_BYTES_MAX: u64 = 1 << 20;
/// Keys of one bulk get that are looked up at once.
const BULK_GET_CONCURRENCY: usize = 16;

impl Handler for Binding {
    async fn handle(&self, request: Request) -> Response {
        let (head, body) = request.into_parts();
        let route = route(&head.method, head.uri.path());
        let (operation, response) = match route {
            Route::Get(segment) => (Operation::Get, self.get(&head, segment).await),
            Route::Put(segment) => (Operation::Put, self.put(&head, segment, body).await),
            Route::Delete(segment) => (Operation::Delete, self.delete(&head, segment).await),
            Route::List => (Operation::List, self.list(&head).await),
            Route::BulkGet => (Operation::BulkGet, self.bulk_get(&head, body).await),
            Route::Write => (Operation::BulkPut, self.write_many(&head, body).await),
            Route::Control => (Operation::Control, self.control(&head, body).await),
            Route::Feed => (Operation::Feed, self.follow(&head, body).await),
            Route::None(status) => (Operation::Other, Ok(empty(status))),
        };
        told(response.unwrap_or_else(|error| binding_response(&error)), operation)
    }

    fn hot(&self, head: &Head<'_>, remembered: &mut Remembered, out: &mut Vec<u8>) -> Option<HotAnswer> {
        self.read_hot(head, remembered, out)
    }
}

enum Route<'a> {
    Get(&'a str),
    Put(&'a str),
    Delete(&'a str),
    List,
    BulkGet,
    Write,
    Control,
    Feed,
    None(StatusCode),
}

/// Matches the raw path: a decoded one could hold slashes of a key (worker-binding 4.1).
fn route<'a>(method: &Method, path: &'a str) -> Route<'a> {
    let segment = path.strip_prefix('/').unwrap_or(path);
    match (method.as_str(), path) {
        ("POST", "/bulk/get") => return Route::BulkGet,
        ("POST", wire::WRITE_PATH) => return Route::Write,
        ("POST", wire::CONTROL_PATH) => return Route::Control,
        ("POST", wire::FEED_PATH) => return Route::Feed,
        ("GET", "/" | "") => return Route::List,
        ("GET" | "PUT" | "DELETE" | "POST", _) => {}
        _ => return Route::None(StatusCode::METHOD_NOT_ALLOWED),
    }
    let segment = segment.strip_suffix('/').unwrap_or(segment);
    if segment.is_empty() || segment.contains('/') {
        return Route::None(StatusCode::NOT_FOUND);
    }
    match method.as_str() {
        "GET" => Route::Get(segment),
        "PUT" => Route::Put(segment),
        "DELETE" => Route::Delete(segment),
        _ => Route::None(StatusCode::NOT_FOUND),
    }
}

impl Binding {
    pub fn new(
        backend: Arc<dyn Backend>,
        auth: Arc<Auth>,
        clock: Arc<dyn Clock>,
        buffers: Arc<Budget>,
        metrics: Arc<TierMetrics>,
    ) -> Binding {
        Binding { backend, auth, clock, buffers, metrics }
    }

    async fn get(&self, head: &http::request::Parts, segment: &str) -> Result<Response> {
        let namespace = self.enter(&head.headers, Rights::Read).await?;
        let query = Query::parse(head.uri.query())?;
        let key = key(segment, &query)?;
        let read = wire::decode_read(&head.headers, cache_ttl(query.get("cache_ttl"))?)?;
        let answer = self.answer(namespace, &key, &read).await?;
        Ok(wire::encode_answer(answer, &read))
    }

    async fn put(&self, head: &http::request::Parts, segment: &str, body: RequestBody) -> Result<Response> {
        let length = content_length(&head.headers);
        let checked = self.check_put(head, segment, length).await;
        let (namespace, key, metadata, expires) = match checked {
            Ok(checked) => checked,
            Err(error) => {
                self.drain(body).await;
                return Err(error);
            }
        };
        let body = SharedBody(Arc::new(Mutex::new(body)));
        let value = match length {
            Some(length) if length <= limits::CHUNK_BYTES as u64 => {
                let stream = ValueStream { length: Some(length), chunks: body.clone().boxed() };
                Value::Whole(Value::Stream(stream).collect(length).await?)
            }
            _ => Value::Stream(ValueStream { length, chunks: limited(body.clone().boxed(), self.draining()).boxed() }),
        };
        let via = wire::decode_via(&head.headers);
        let written = self.backend.write(namespace, &key, Change::Put { value, metadata, expires }, via).await;
        match written {
            Ok(written) => Ok(wire::encode_written(&written)),
            Err(error) => {
                self.drain(body.boxed()).await;
                Err(error)
            }
        }
    }

    /// All that can be said of a put before its value is read.
    async fn check_put(
        &self,
        head: &http::request::Parts,
        segment: &str,
        length: Option<u64>,
    ) -> Result<(NamespaceId, Key, Option<Bytes>, Expires)> {
        let namespace = self.enter(&head.headers, Rights::Write).await?;
        let query = Query::parse(head.uri.query())?;
        let key = key(segment, &query)?;
        let now = self.clock.wall_millis() / 1000;
        let expires = expires(query.get("expiration_ttl"), query.get("expiration"), now, leading_integer)?;
        let metadata = metadata(&head.headers)?;
        match length {
            Some(length) if length > limits::VALUE_BYTES_MAX => Err(too_large(length, limits::VALUE_BYTES_MAX)),
            _ => Ok((namespace, key, metadata, expires)),
        }
    }

    fn draining(&self) -> Draining {
        Draining(Arc::clone(&self.clock))
    }

    async fn drain(&self, body: RequestBody) {
        self.draining().drain(body).await;
    }

    async fn delete(&self, head: &http::request::Parts, segment: &str) -> Result<Response> {
        let namespace = self.enter(&head.headers, Rights::Write).await?;
        let key = key(segment, &Query::parse(head.uri.query())?)?;
        let via = wire::decode_via(&head.headers);
        let written = self.backend.write(namespace, &key, Change::Delete, via).await?;
        Ok(wire::encode_written(&written))
    }

    async fn list(&self, head: &http::request::Parts) -> Result<Response> {
        let namespace = self.enter(&head.headers, Rights::Read).await?;
        let query = Query::parse(head.uri.query())?;
        let prefix = query.get("prefix").unwrap_or_default();
        Key::check_length(prefix.len())?;
        let list = List {
            prefix: Bytes::copy_from_slice(prefix.as_bytes()),
            limit: key_count_limit(query.get("key_count_limit"))?,
            cursor: query.get("cursor").filter(|cursor| !cursor.is_empty()).map(str::to_owned),
        };
        let page = self.backend.list(namespace, &list).await?;
        Ok(json_response(wire::encode_page(&page)?))
    }

    /// Worker-binding 2.7: one flat object, each key once, absent ones null.
    async fn bulk_get(&self, head: &http::request::Parts, body: RequestBody) -> Result<Response> {
        let namespace = self.enter(&head.headers, Rights::Read).await?;
        let body =
            Value::Stream(ValueStream { length: None, chunks: body }).collect(BULK_GET_REQUEST_BYTES_MAX).await?;
        let request: BulkGet = serde_json::from_slice(&body)
            .map_err(|e| Error::bad_request("Invalid JSON in the body of a bulk get").with_source(e))?;
        let (keys, as_json, read) = request.checked(&head.headers)?;
        let total = AtomicU64::new(0);
        let found: Vec<Option<Found>> = stream::iter(keys.clone())
            .map(|key| self.find(namespace, key, &read, as_json, &total))
            .buffered(BULK_GET_CONCURRENCY)
            .try_collect()
            .await?;
        let body = bulk_body(keys, found, as_json, request.with_metadata);
        let mut response = json_response(Bytes::new());
        *response.body_mut() = ResponseBody::Stream { length: None, chunks: body.boxed() };
        Ok(response)
    }

    /// A value of a bulk get, unless all of them together are then too long.
    async fn find(
        &self,
        namespace: NamespaceId,
        key: Key,
        read: &Read,
        as_json: bool,
        total: &AtomicU64,
    ) -> Result<Option<Found>> {
        let answer = self.answer(namespace, &key, read).await?;
        let State::Present(entry) = answer.state else { return Ok(None) };
        let length = entry.value.length().unwrap_or(limits::VALUE_BYTES_MAX);
        if total.fetch_add(length, Ordering::Relaxed) + length > limits::BULK_GET_BYTES_MAX {
            return Err(Error::new(Kind::ValueTooLarge, "Total size of request exceeds the limit of 25MB"));
        }
        let room = self.buffers.try_take(length)?;
        let value = entry.value.collect(limits::VALUE_BYTES_MAX).await?;
        let value = apart(value, as_json).await?;
        Ok(Some(Found { value, metadata: entry.metadata, room }))
    }

    async fn write_many(&self, head: &http::request::Parts, body: RequestBody) -> Result<Response> {
        self.enter_tier(&head.headers).await?;
        let namespace = namespace_of(&head.headers)?.ok_or_else(no_namespace)?;
        let _room = self.buffers.try_take(content_length(&head.headers).unwrap_or(WRITE_BODY_BYTES_MAX))?;
        let body = Value::Stream(ValueStream { length: None, chunks: body }).collect(WRITE_BODY_BYTES_MAX).await?;
        let via = wire::decode_via(&head.headers);
        let outcomes = self.backend.write_many(namespace, wire::decode_writes(body)?, via).await?;
        Ok(json_response(wire::encode_outcomes(&outcomes)?))
    }

    async fn control(&self, head: &http::request::Parts, body: RequestBody) -> Result<Response> {
        self.enter_tier(&head.headers).await?;
        let body = Value::Stream(ValueStream { length: None, chunks: body }).collect(CONTROL_BODY_BYTES_MAX).await?;
        let request = wire::decode_control(&body)?;
        let (controlled, version) = self.backend.control(request.account, request.control).await?;
        Ok(json_response(wire::encode_controlled(controlled, version)?))
    }

    /// The purge feed: the body has the follower's pings, for as long as it follows.
    async fn follow(&self, head: &http::request::Parts, pings: RequestBody) -> Result<Response> {
        self.enter_tier(&head.headers).await?;
        let follow = wire::feed::decode_follow(&head.headers, head.uri.query().unwrap_or_default())?;
        let chunks = self.backend.follow(follow, pings).await?;
        Ok(Response::new(ResponseBody::Stream { length: None, chunks }))
    }

    /// From memory if possible, without a wait.
    async fn answer(&self, namespace: NamespaceId, key: &Key, read: &Read) -> Result<Answer> {
        let answer = match self.backend.held(namespace, key.as_bytes(), read) {
            Some(hit) => hit.answer(read),
            None => self.backend.get(namespace, key, read).await?,
        };
        self.metrics.answered(counted(answer.status), answer.age);
        Ok(answer)
    }

    /// The namespace that the request is about, in which it may do this.
    async fn enter(&self, headers: &HeaderMap, right: Rights) -> Result<NamespaceId> {
        let identity = self.auth.identify(headers).await?;
        let namespace = match (namespace_of(headers)?, &identity) {
            (Some(namespace), _) => namespace,
            (None, Identity::Token(token)) => token.only_namespace().ok_or_else(no_namespace)?,
            (None, Identity::Tier) => return Err(no_namespace()),
        };
        self.auth.namespace(&identity, namespace, right).await?;
        Ok(namespace)
    }

    async fn enter_tier(&self, headers: &HeaderMap) -> Result<()> {
        match self.auth.identify(headers).await? {
            Identity::Tier => Ok(()),
            Identity::Token(_) => Err(Error::new(Kind::Forbidden, "Forbidden")),
        }
    }
}

/// How long a value may be for work on it to be done between two reads that wait for the same thread.
const AT_ONCE_BYTES_MAX: usize = 64 * 1024;

/// A value as text, or as JSON if it has to be. Other connections have their turn meanwhile: a bulk get of what memory holds would not wait for
/// anything by itself.
async fn apart(value: Bytes, as_json: bool) -> Result<Bytes> {
    if value.len() <= AT_ONCE_BYTES_MAX {
        tokio::task::yield_now().await;
        return text(value, as_json);
    }
    let working = tokio::task::spawn_blocking(move || text(value, as_json));
    working.await.map_err(|e| Error::internal("checking a value of a bulk get").with_source(e))?
}

fn text(value: Bytes, as_json: bool) -> Result<Bytes> {
    if as_json {
        return json::check(&value)
            .map(|text| value.slice_ref(text.as_bytes()))
            .ok_or_else(|| Error::bad_request("At least one of the requested keys corresponds to a non-json value"));
    }
    // What is not UTF-8 in it is replaced.
    Ok(match String::from_utf8_lossy(&value) {
        Cow::Borrowed(_) => value,
        Cow::Owned(text) => Bytes::from(text),
    })
}

/// Longest bodies of what tiers send each other: a batch with its framing, and a control change.
const WRITE_BODY_BYTES_MAX: u64 = limits::WRITE_BATCH_BYTES_MAX as u64 * 2;
const CONTROL_BODY_BYTES_MAX: u64 = 256 * 1024;

/// A value of a bulk get, and its room in the budget until it is sent.
struct Found {
    value: Bytes,
    metadata: Option<Bytes>,
    room: Taken,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BulkGet {
    keys: Vec<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    with_metadata: bool,
    /// A string of digits, as workerd sends it; a number is as clear.
    cache_ttl: Option<serde_json::Value>,
}

impl BulkGet {
    /// The checks of worker-binding 4.2, in their order.
    fn checked(&self, headers: &HeaderMap) -> Result<(Vec<Key>, bool, Read)> {
        let as_json = match self.kind.as_deref() {
            None | Some("text") => false,
            Some("json") => true,
            Some(other) => {
                return Err(Error::bad_request(format!("\"{other}\" is not a valid type. Use \"json\" or \"text\"")));
            }
        };
        if self.keys.len() > limits::BULK_GET_KEYS_MAX {
            return Err(Error::bad_request(format!("You can request a maximum of {} keys", limits::BULK_GET_KEYS_MAX)));
        }
        if self.keys.is_empty() {
            return Err(Error::bad_request("You must request a minimum of 1 key"));
        }
        let cache_ttl_text = self.cache_ttl.as_ref().map(|value| match value {
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        });
        let max_age = cache_ttl(cache_ttl_text.as_deref())?;
        let mut seen = HashSet::new();
        let mut keys = Vec::with_capacity(self.keys.len());
        for key in &self.keys {
            if seen.insert(key) {
                keys.push(Key::new(key.clone())?);
            }
        }
        let read = Read { held: None, ..wire::decode_read(headers, max_age)? };
        Ok((keys, as_json, read))
    }
}

/// The object, piece by piece, so that no second copy of the values is held.
fn bulk_body(
    keys: Vec<Key>,
    found: Vec<Option<Found>>,
    as_json: bool,
    with_metadata: bool,
) -> impl futures_util::Stream<Item = Result<Bytes>> + Send + 'static {
    let members = keys.into_iter().zip(found).enumerate().flat_map(move |(i, (key, found))| {
        let mut name = vec![if i == 0 { b'{' } else { b',' }];
        json::push_string(&mut name, key.as_str());
        name.push(b':');
        // A stored JSON null is a plain null, even with metadata (worker-binding 4.3).
        let found = found.filter(|found| !(as_json && found.value == b"null".as_slice()));
        let (value, metadata) = match found {
            None => (Pieces::Json { json: Some(Bytes::from_static(b"null")), _room: None }, None),
            Some(found) => {
                let metadata = found.metadata.unwrap_or_else(|| Bytes::from_static(b"null"));
                let value = match as_json {
                    true => Pieces::Json { json: Some(found.value), _room: Some(found.room) },
                    false => Pieces::Text { text: found.value, at: 0, _room: found.room },
                };
                (value, with_metadata.then_some(metadata))
            }
        };
        let before = metadata.is_some().then(|| Bytes::from_static(b"{\"value\":"));
        let after = metadata.map(|metadata| [&b",\"metadata\":"[..], &metadata, b"}"].concat().into());
        std::iter::once(Bytes::from(name)).chain(before).chain(value).chain(after)
    });
    stream::iter(members.chain(std::iter::once(Bytes::from_static(b"}"))).map(Ok))
}

/// A value as JSON, piece by piece: escaped it may be six times as long.
enum Pieces {
    /// JSON already, and its room.
    Json {
        json: Option<Bytes>,
        _room: Option<Taken>,
    },
    /// UTF-8 of which this much has been given out; its quotes are given out around it.
    Text {
        text: Bytes,
        at: usize,
        _room: Taken,
    },
    End,
}

/// How much of a text is escaped at once.
const PIECE_BYTES: usize = 32 * 1024;

impl Iterator for Pieces {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        match self {
            Pieces::End => None,
            Pieces::Json { json, .. } => json.take(),
            Pieces::Text { text, at, .. } => {
                let mut end = text.len().min(*at + PIECE_BYTES);
                // Not within a character.
                while text.get(end).is_some_and(|byte| byte & 0xc0 == 0x80) {
                    end -= 1;
                }
                let piece =
                    std::str::from_utf8(&text[*at..end]).expect("it was made text, and is cut between characters");
                let mut quoted = Vec::with_capacity(piece.len() + 2);
                json::push_string(&mut quoted, piece);
                let (first, last) = (*at == 0, end == text.len());
                *at = end;
                if last {
                    *self = Pieces::End;
                }
                let from = usize::from(!first);
                let to = quoted.len() - usize::from(!last);
                Some(Bytes::from(quoted).slice(from..to))
            }
        }
    }
}

/// The key that a segment of the path names: decoded only where the query says that it is encoded (worker-binding 4.1).
fn key(segment: &str, query: &Query) -> Result<Key> {
    match query.get("urlencoded") {
        Some(flag) if flag.eq_ignore_ascii_case("true") => decode_key(segment),
        _ => Key::new(segment.to_owned()),
    }
}

/// A body that is still there to be read to its end when what it was given to gave up.
#[derive(Clone)]
struct SharedBody(Arc<Mutex<RequestBody>>);

impl futures_util::Stream for SharedBody {
    type Item = Result<Bytes>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes>>> {
        self.0.lock().expect("no holder of this lock can panic").as_mut().poll_next(cx)
    }
}

/// The body up to the longest value; one that is longer is read to its end, so that the error can name its length.
fn limited(body: RequestBody, draining: Draining) -> impl futures_util::Stream<Item = Result<Bytes>> + Send + 'static {
    stream::try_unfold((body, 0u64), move |(mut body, before)| {
        let draining = draining.clone();
        async move {
            let Some(chunk) = body.next().await.transpose()? else { return Ok(None) };
            let length = before + chunk.len() as u64;
            if length <= limits::VALUE_BYTES_MAX {
                return Ok(Some((chunk, (body, length))));
            }
            Err(too_large(length + draining.drain(body).await, limits::VALUE_BYTES_MAX))
        }
    })
}

/// Reads what is refused to its end, or to a bound of bytes or of time.
#[derive(Clone)]
struct Draining(Arc<dyn Clock>);

impl Draining {
    /// Answers how long the body was.
    async fn drain(&self, mut body: RequestBody) -> u64 {
        let mut length = 0;
        let reading = async {
            while let Some(Ok(chunk)) = body.next().await {
                length += chunk.len() as u64;
                if length > DRAIN_BYTES_MAX {
                    break;
                }
            }
        };
        // Late or not, its sender has had its time.
        let _ = clock::within(&*self.0, DRAIN_DEADLINE, reading).await;
        length
    }
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

pub(super) fn namespace_of(headers: &impl Fields) -> Result<Option<NamespaceId>> {
    let Some(value) = headers.field(wire::NAMESPACE) else { return Ok(None) };
    let id = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    let what = || Error::bad_request(format!("{} is 32 hexadecimal digits", wire::NAMESPACE));
    id.map(Some).ok_or_else(what)
}

/// A parsed number as the reference's texts show it.
fn or_nan(number: Option<i64>) -> String {
    number.map_or_else(|| "NaN".to_owned(), |number| number.to_string())
}

fn no_namespace() -> Error {
    Error::bad_request(format!("name a namespace with the header {}", wire::NAMESPACE))
}

pub(super) fn cache_ttl(text: Option<&str>) -> Result<Duration> {
    let Some(text) = text else { return Ok(limits::CACHE_TTL_DEFAULT) };
    match leading_integer(text) {
        Some(seconds) if seconds >= limits::CACHE_TTL_SECONDS_MIN => Ok(Duration::from_secs(seconds.unsigned_abs())),
        found => Err(Error::bad_request(format!(
            "Invalid cache_ttl of {}. Cache TTL must be at least {}.",
            or_nan(found),
            limits::CACHE_TTL_SECONDS_MIN
        ))),
    }
}

fn key_count_limit(text: Option<&str>) -> Result<usize> {
    let Some(text) = text else { return Ok(limits::LIST_PAGE_MAX) };
    let invalid = |found, what| {
        let message = format!("Invalid key_count_limit of {}. Please specify an integer {what}.", or_nan(found));
        Err(Error::new(Kind::LimitInvalid, message))
    };
    match leading_integer(text) {
        Some(limit) if limit > limits::LIST_PAGE_MAX as i64 => invalid(Some(limit), "less than 1000"),
        Some(limit) if limit >= 1 => Ok(limit as usize),
        found => invalid(found, "greater than 0"),
    }
}

fn metadata(headers: &HeaderMap) -> Result<Option<Bytes>> {
    let Some(value) = headers.get(wire::METADATA) else { return Ok(None) };
    let text = value.as_bytes();
    if text.len() > limits::METADATA_BYTES_MAX {
        return Err(Error::new(
            Kind::MetadataTooLarge,
            format!("Metadata length of {} exceeds limit of {}.", text.len(), limits::METADATA_BYTES_MAX),
        ));
    }
    let text = json::check(text).ok_or_else(|| Error::new(Kind::MetadataInvalid, "metadata must be valid json"))?;
    Ok(Some(Bytes::copy_from_slice(text.as_bytes())))
}

fn json_response(body: Bytes) -> Response {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = status;
    response
}

pub(super) fn counted(status: CacheStatus) -> CacheAnswer {
    match status {
        CacheStatus::Hit => CacheAnswer::Hit,
        CacheStatus::Miss => CacheAnswer::Miss,
        CacheStatus::Expired => CacheAnswer::Expired,
        CacheStatus::Revalidated => CacheAnswer::Revalidated,
        CacheStatus::Stale => CacheAnswer::Stale,
        CacheStatus::Bypass => CacheAnswer::Bypass,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_match_the_raw_path() {
        let check = |method: &str, path: &str, expected: &str| {
            let found = match route(&method.parse().unwrap(), path) {
                Route::Get(segment) => format!("get {segment}"),
                Route::Put(segment) => format!("put {segment}"),
                Route::Delete(segment) => format!("delete {segment}"),
                Route::List => "list".into(),
                Route::BulkGet => "bulk get".into(),
                Route::Write => "write".into(),
                Route::Control => "control".into(),
                Route::Feed => "feed".into(),
                Route::None(status) => status.as_str().into(),
            };
            assert_eq!(found, expected, "{method} {path}");
        };
        check("GET", "/a", "get a");
        check("GET", "/a/", "get a");
        check("GET", "/bulk%2Fget", "get bulk%2Fget");
        check("POST", "/bulk/get", "bulk get");
        check("GET", "/bulk/get", "404");
        check("GET", "/", "list");
        check("GET", "", "list");
        check("PUT", "/", "404");
        check("PUT", "/k", "put k");
        check("DELETE", "/k", "delete k");
        check("POST", "/k", "404");
        check("PATCH", "/k", "405");
        check("POST", "/kvasar/write", "write");
        check("POST", "/kvasar/control", "control");
        check("POST", "/kvasar/feed", "feed");
    }

    #[test]
    fn times_to_live_have_the_reference_texts() {
        let ttl = |text| cache_ttl(Some(text)).map_err(|e| e.message);
        assert_eq!(ttl("30"), Ok(Duration::from_secs(30)));
        assert_eq!(ttl("60abc"), Ok(Duration::from_secs(60)));
        assert_eq!(ttl("29"), Err("Invalid cache_ttl of 29. Cache TTL must be at least 30.".into()));
        assert_eq!(ttl("x"), Err("Invalid cache_ttl of NaN. Cache TTL must be at least 30.".into()));

        let limit = |text| key_count_limit(Some(text)).map_err(|e| e.message);
        assert_eq!(limit("1000"), Ok(1000));
        assert_eq!(limit("0"), Err("Invalid key_count_limit of 0. Please specify an integer greater than 0.".into()));
        assert_eq!(limit("x"), Err("Invalid key_count_limit of NaN. Please specify an integer greater than 0.".into()));
        assert_eq!(
            limit("1001"),
            Err("Invalid key_count_limit of 1001. Please specify an integer less than 1000.".into())
        );
    }

    #[test]
    fn a_text_in_pieces_is_the_text_as_json() {
        let budget = Budget::new(1 << 30);
        for text in [
            "",
            "a",
            "\0\"\\\u{e9}",
            &"\u{1f600}x".repeat(20_000),
            &"\0".repeat(PIECE_BYTES),
            &"y".repeat(PIECE_BYTES * 3),
        ] {
            let value = super::text(Bytes::copy_from_slice(text.as_bytes()), false).unwrap();
            let pieces = Pieces::Text { text: value, at: 0, _room: budget.try_take(1).unwrap() };
            let json = pieces.collect::<Vec<_>>().concat();
            assert_eq!(serde_json::from_slice::<String>(&json).unwrap(), text);
        }
        assert_eq!(super::text(Bytes::from_static(b"a\xffb"), false).unwrap(), "a\u{fffd}b");
    }
}
