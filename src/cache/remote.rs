//! The next tier up, over HTTP: what it is asked and what it answers is `wire.rs`.
//!
//! Connections are pooled and bounded, every wait has a deadline. A failure to get an answer is [`Kind::Unreachable`]; an error that was
//! answered keeps its kind.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Poll,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::{body::Incoming, ext::ReasonPhrase};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioTimer},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    cache::dial::Dialler,
    clock::{self, Clock, Moment},
    error::{Error, Kind, Result},
    kv::{
        AccountId, Answer, Change, Control, Controlled, Expires, Key, List, NamespaceId, Page, Read, Source, Value,
        ValueStream, Version, Via, Writer, Written,
        feed::{Follow, Frames},
        kept::Hit,
    },
    metrics::{TierMetrics, UpstreamOutcome},
    wire::{self, Body, ControlRequest},
};

pub struct Remote {
    client: Client<Dialler, Body>,
    address: String,
    authorization: HeaderValue,
    clock: Arc<dyn Clock>,
    /// Requests out at once, each with a connection of its own.
    places: Arc<Semaphore>,
    /// Longest wait for a place, for the head of an answer, and for the next piece of a body.
    deadline: Duration,
    /// Longest wait for the answer to a write.
    write_deadline: Duration,
    metrics: Arc<TierMetrics>,
}

#[derive(Clone)]
pub struct RemoteSettings {
    /// `host:port`.
    pub address: String,
    /// The secret by which our own servers know each other.
    pub secret: String,
    pub deadline: Duration,
    /// The same for the outcome of a write.
    pub write_deadline: Duration,
    pub concurrency: usize,
    /// Emulated one-way distance.
    pub delay: Duration,
}

/// Longest answer that is read whole: a list page of 1,000 keys with metadata, or the outcomes of a batch.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

impl Remote {
    pub fn new(settings: RemoteSettings, clock: Arc<dyn Clock>, metrics: Arc<TierMetrics>) -> Result<Remote> {
        let authorization = HeaderValue::from_str(&format!("Bearer {}", settings.secret)).map_err(|e| {
            Error::bad_request("the cluster's secret has characters that no header can hold").with_source(e)
        })?;
        let dialler = Dialler::new(&settings.address, settings.delay, settings.deadline, Arc::clone(&clock));
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(settings.concurrency)
            .pool_timer(TokioTimer::new())
            .http1_max_buf_size(128 * 1024)
            .build(dialler);
        Ok(Remote {
            client,
            address: settings.address,
            authorization,
            clock,
            places: Arc::new(Semaphore::new(settings.concurrency)),
            // An answer that travels takes its trips beside what upstream needs.
            deadline: settings.deadline + settings.delay * 4,
            write_deadline: settings.write_deadline + settings.delay * 4,
            metrics,
        })
    }

    /// A place among the requests out, or an error that says that there are too many.
    async fn place(&self) -> Result<OwnedSemaphorePermit> {
        let place = clock::within(&*self.clock, self.deadline, Arc::clone(&self.places).acquire_owned()).await;
        let busy = || Error::unavailable(format!("too many requests to {} are under way", self.address)).and_untaken();
        place.map_err(|_| busy())?.map_err(|_| busy())
    }

    fn request(
        &self,
        method: Method,
        path_and_query: &str,
        namespace: Option<NamespaceId>,
        body: Body,
    ) -> Result<Request<Body>> {
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = format!("http://{}{path_and_query}", self.address)
            .parse()
            .map_err(|e| Error::internal(format!("asking {} for {path_and_query}", self.address)).with_source(e))?;
        request.headers_mut().insert(header::AUTHORIZATION, self.authorization.clone());
        if let Some(namespace) = namespace {
            let text = HeaderValue::from_str(&namespace.to_string()).expect("hexadecimal digits");
            request.headers_mut().insert(wire::NAMESPACE, text);
        }
        Ok(request)
    }

    /// Sends a request, waits for the head of its answer, and counts how that went.
    async fn send(&self, request: Request<Body>, progress: &Progress) -> Result<Response<Incoming>> {
        let sent_at = self.clock.now();
        let answer = self.exchange(request, progress).await;
        let outcome = match &answer {
            Ok(response) if response.status() == StatusCode::NOT_MODIFIED => UpstreamOutcome::NotModified,
            Ok(_) => UpstreamOutcome::Ok,
            Err(error) if error.kind.is_outage() => UpstreamOutcome::Failed,
            Err(_) => UpstreamOutcome::Refused,
        };
        self.metrics.asked_upstream(outcome, self.clock.now().since(sent_at));
        answer
    }

    /// Sends a request, and waits for the head of its answer as long as something moves. An answered error is an error.
    async fn exchange(&self, request: Request<Body>, progress: &Progress) -> Result<Response<Incoming>> {
        let answering = self.client.request(request);
        tokio::pin!(answering);
        let answer = loop {
            let until = progress.answer_until();
            let left = match progress.waits_for_sender() {
                true => self.deadline,
                false => until.since(self.clock.now()),
            };
            match clock::within(&*self.clock, left, &mut answering).await {
                Ok(answer) => break answer,
                // Something moved meanwhile, or it is the sender of the body who is waited for; that has a deadline of its own.
                Err(_) if progress.answer_until() > until || progress.waits_for_sender() => {}
                Err(_) => return Err(progress.failed(format!("{} did not answer in time", self.address))),
            }
        };
        let response = answer.map_err(|error| match progress.failure() {
            // Not upstream failed, but the body that was being sent to it.
            Some(failure) => failure,
            None if error.is_connect() => {
                let error =
                    Error::new(Kind::Unreachable, format!("{} can't be reached", self.address)).with_source(error);
                error.and_untaken()
            }
            None => progress.failed(format!("{} broke off", self.address)).with_source(error),
        })?;
        let status = response.status();
        if status.is_success() || response.headers().contains_key(wire::VERSION) {
            return Ok(response);
        }
        let reason = response.extensions().get::<ReasonPhrase>();
        let error = wire::decode_error(status, response.headers(), reason);
        if matches!(error.kind, Kind::Unauthenticated | Kind::Forbidden) {
            // Not our client's credential was refused, but ours.
            tracing::error!(upstream = self.address, %status, "upstream refuses this server's cluster secret");
            return Err(Error::unavailable("this location and its upstream do not know each other").from_elsewhere());
        }
        Err(error)
    }

    /// Asks for something that is answered whole.
    async fn ask_whole(&self, request: Request<Body>, deadline: Duration) -> Result<Bytes> {
        let place = self.place().await?;
        let response = self.send(request, &Progress::new(&self.clock, deadline)).await?;
        let value =
            Value::Stream(ValueStream { length: None, chunks: self.chunks(response.into_body(), place).boxed() });
        value.collect(ANSWER_BYTES_MAX).await
    }

    /// A body as it arrives; the place is held until its end.
    fn chunks(
        &self,
        body: Incoming,
        place: OwnedSemaphorePermit,
    ) -> impl Stream<Item = Result<Bytes>> + Send + 'static {
        let (clock, deadline, address) = (Arc::clone(&self.clock), self.deadline, self.address.clone());
        stream::try_unfold((body, place), move |(mut body, place)| {
            let (clock, address) = (Arc::clone(&clock), address.clone());
            async move {
                loop {
                    let frame = clock::within(&*clock, deadline, body.frame()).await.map_err(|_| {
                        Error::new(Kind::Unreachable, format!("{address} stopped in the middle of an answer"))
                    })?;
                    match frame {
                        None => return Ok(None),
                        Some(Err(error)) => {
                            let what = format!("{address} broke off in the middle of an answer");
                            return Err(Error::new(Kind::Unreachable, what).with_source(error));
                        }
                        Some(Ok(frame)) => {
                            if let Ok(data) = frame.into_data() {
                                return Ok(Some((data, (body, place))));
                            }
                        }
                    }
                }
            }
        })
    }
}

#[async_trait]
impl Source for Remote {
    fn held(&self, _: NamespaceId, _: &[u8], _: &Read) -> Option<Hit> {
        None
    }

    async fn get(&self, namespace: NamespaceId, key: &Key, read: &Read) -> Result<Answer> {
        let mut request = self.request(Method::GET, &key_path(key, &[]), Some(namespace), Body::empty())?;
        wire::encode_read(read, request.headers_mut());
        let place = self.place().await?;
        let response = self.send(request, &Progress::new(&self.clock, self.deadline)).await?;
        let (head, body) = response.into_parts();
        let length = content_length(&head.headers);
        let chunks = self.chunks(body, place).boxed();
        wire::decode_answer(head.status, &head.headers, Value::Stream(ValueStream { length, chunks }))
    }

    async fn list(&self, namespace: NamespaceId, list: &List) -> Result<Page> {
        let query = list_query(list);
        let request = self.request(Method::GET, &format!("/?{}", query), Some(namespace), Body::empty())?;
        wire::decode_page(&self.ask_whole(request, self.deadline).await?)
    }

    /// On a connection of its own, which no value delays, and beside the places for requests.
    async fn follow(&self, follow: Follow, pings: Frames) -> Result<Frames> {
        let (path, headers) = wire::feed::encode_follow(follow);
        let body = Body::Stream { length: None, chunks: pings };
        let mut request = self.request(Method::POST, &path, None, body)?;
        request.headers_mut().extend(headers);
        let response = self.send(request, &Progress::new(&self.clock, self.deadline)).await?;
        let address = self.address.clone();
        let frames = response.into_body().into_data_stream().map(move |piece| {
            piece.map_err(|e| {
                Error::new(Kind::Unreachable, format!("the purge feed of {address} broke off")).with_source(e)
            })
        });
        Ok(frames.boxed())
    }
}

#[async_trait]
impl Writer for Remote {
    async fn write(&self, namespace: NamespaceId, key: &Key, change: Change, via: Via) -> Result<Written> {
        let progress = Progress::new(&self.clock, self.write_deadline);
        let mut request = match change {
            Change::Delete => self.request(Method::DELETE, &key_path(key, &[]), Some(namespace), Body::empty())?,
            Change::Put { value, metadata, expires } => {
                let query = match expires {
                    Expires::Never => None,
                    Expires::At(seconds) => Some(("expiration", seconds)),
                    Expires::After(seconds) => Some(("expiration_ttl", seconds)),
                };
                let path = key_path(key, query.as_slice());
                let mut request = self.request(Method::PUT, &path, Some(namespace), progress.watched(value))?;
                if let Some(metadata) = metadata {
                    let metadata = HeaderValue::from_bytes(&wire::header_text(&metadata)).map_err(|e| {
                        Error::new(Kind::MetadataInvalid, "metadata that no header can hold").with_source(e)
                    })?;
                    request.headers_mut().insert(wire::METADATA, metadata);
                }
                request
            }
        };
        wire::encode_via(via, request.headers_mut());
        let _place = self.place().await?;
        let response = self.send(request, &progress).await?;
        wire::decode_written(response.headers())
    }

    async fn write_many(
        &self,
        namespace: NamespaceId,
        writes: Vec<(Key, Change)>,
        via: Via,
    ) -> Result<Vec<Result<Written>>> {
        let body = Body::Whole(wire::encode_writes(&writes));
        let mut request = self.request(Method::POST, wire::WRITE_PATH, Some(namespace), body)?;
        wire::encode_via(via, request.headers_mut());
        wire::decode_outcomes(&self.ask_whole(request, self.write_deadline).await?)
    }

    async fn control(&self, account: AccountId, control: Control) -> Result<(Controlled, Version)> {
        let body = Body::Whole(wire::encode_control(&ControlRequest { account, control })?);
        let request = self.request(Method::POST, wire::CONTROL_PATH, None, body)?;
        wire::decode_controlled(&self.ask_whole(request, self.write_deadline).await?)
    }
}

/// How far a request being sent has got, and why its body failed if it did.
#[derive(Clone)]
struct Progress(Arc<Sending>);

struct Sending {
    clock: Arc<dyn Clock>,
    deadline: Duration,
    /// When something last moved.
    last: AtomicU64,
    sent: AtomicU64,
    /// The next piece of the body has not come yet.
    waiting: AtomicBool,
    failure: Mutex<Option<Error>>,
}

/// The slowest at which a body may pass on to the store. What was sent may stand in the buffers of sockets all the way there, behind that of
/// other writers.
const PASSING_BYTES_PER_SECOND: u64 = 1 << 20;

impl Progress {
    /// The answer may take so long from when something last moved.
    fn new(clock: &Arc<dyn Clock>, deadline: Duration) -> Progress {
        Progress(Arc::new(Sending {
            clock: Arc::clone(clock),
            deadline,
            last: AtomicU64::new(clock.now().as_nanos()),
            sent: AtomicU64::new(0),
            waiting: AtomicBool::new(false),
            failure: Mutex::default(),
        }))
    }

    /// Until when the answer may come, as far as is known now.
    fn answer_until(&self) -> Moment {
        let sent = self.0.sent.load(Ordering::Acquire);
        let passing = Duration::from_secs(sent / PASSING_BYTES_PER_SECOND);
        Moment::from_nanos(self.0.last.load(Ordering::Acquire)) + self.0.deadline + passing
    }

    fn waits_for_sender(&self) -> bool {
        self.0.waiting.load(Ordering::Acquire)
    }

    /// No answer came. While a body was on its way, that says less of upstream than of the body: it may be too much for it.
    fn failed(&self, what: String) -> Error {
        match self.0.sent.load(Ordering::Acquire) {
            0 => Error::new(Kind::Unreachable, what),
            _ => Error::unavailable(what),
        }
    }

    fn failure(&self) -> Option<Error> {
        self.0.failure.lock().expect("no holder of this lock can panic").take()
    }

    /// A value as a request's body, watched.
    fn watched(&self, value: Value) -> Body {
        if let Value::Whole(bytes) = value {
            return Body::Whole(bytes);
        }
        let length = value.length();
        let sending = Arc::clone(&self.0);
        let mut chunks = value.into_stream();
        let watched = stream::poll_fn(move |cx| {
            let polled = chunks.as_mut().poll_next(cx);
            sending.waiting.store(polled.is_pending(), Ordering::Release);
            match &polled {
                Poll::Ready(Some(Ok(chunk))) => {
                    sending.last.store(sending.clock.now().as_nanos(), Ordering::Release);
                    sending.sent.fetch_add(chunk.len() as u64, Ordering::AcqRel);
                }
                Poll::Ready(Some(Err(error))) => {
                    *sending.failure.lock().expect("no holder of this lock can panic") = Some(error.copied());
                }
                Poll::Ready(None) | Poll::Pending => {}
            }
            polled
        });
        Body::Stream { length, chunks: watched.boxed() }
    }
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn list_query(list: &List) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("key_count_limit", &list.limit.to_string());
    // A prefix is the beginning of a key as a client wrote it, and so text.
    query.append_pair("prefix", &String::from_utf8_lossy(&list.prefix));
    if let Some(cursor) = &list.cursor {
        query.append_pair("cursor", cursor);
    }
    query.finish()
}

/// A key as one segment of a path, everything but letters and digits encoded, with what a write says in its query.
fn key_path(key: &Key, query: &[(&str, u64)]) -> String {
    let encoded = percent_encoding::percent_encode(key.as_bytes(), percent_encoding::NON_ALPHANUMERIC);
    let mut path = format!("/{encoded}?urlencoded=true");
    for (name, value) in query {
        path.push_str(&format!("&{name}={value}"));
    }
    path
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::{io::AsyncReadExt, net::TcpListener};

    use super::*;
    use crate::{clock::ManualClock, metrics::Metrics};

    const DEADLINE: Duration = Duration::from_secs(5);
    const NAMESPACE: NamespaceId = NamespaceId::from_u128(1);

    /// A remote whose upstream takes connections, reads what comes and never answers.
    async fn silent(clock: &Arc<ManualClock>) -> Remote {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move { while matches!(stream.read(&mut [0; 4096]).await, Ok(1..)) {} });
            }
        });
        let secret = "a secret".to_owned();
        let settings = RemoteSettings {
            address,
            secret,
            deadline: DEADLINE,
            write_deadline: DEADLINE,
            concurrency: 4,
            delay: Duration::ZERO,
        };
        Remote::new(settings, Arc::new(Arc::clone(clock)), Metrics::default().tier("t")).unwrap()
    }

    #[tokio::test]
    async fn a_sender_that_pauses_is_not_taken_for_upstreams_silence() {
        let clock = ManualClock::shared();
        let remote = silent(&clock).await;
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let pausing = async move {
            let _ = ended.await;
            Err(Error::new(Kind::RequestTimeout, "no more of the body came"))
        };
        let chunks =
            stream::once(std::future::ready(Ok(Bytes::from_static(b"abc")))).chain(stream::once(pausing)).boxed();
        let value = Value::Stream(ValueStream { length: Some(200_000), chunks });
        let change = Change::Put { value, metadata: None, expires: Expires::Never };
        let key = Key::new("k").unwrap();
        let mut writing = tokio::spawn(async move { remote.write(NAMESPACE, &key, change, Via::default()).await });
        for _ in 0..10 {
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            clock.advance(DEADLINE);
        }
        assert!((&mut writing).now_or_never().is_none(), "the sender still has time");
        end.send(()).unwrap();
        assert_eq!(writing.await.unwrap().unwrap_err().kind, Kind::RequestTimeout);
    }

    #[tokio::test]
    async fn an_upstream_that_does_not_answer_is_given_up_at_the_deadline() {
        let clock = ManualClock::shared();
        let remote = silent(&clock).await;
        let key = Key::new("k").unwrap();
        let asking = tokio::spawn(async move { remote.get(NAMESPACE, &key, &Read::default()).await });
        while !asking.is_finished() {
            clock.advance(DEADLINE / 10);
            tokio::task::yield_now().await;
        }
        assert_eq!(asking.await.unwrap().unwrap_err().kind, Kind::Unreachable);
    }
}
