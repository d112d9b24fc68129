//! One listener: accepts connections, bounds them, hands each request to a door, and counts and logs how it ended.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderValue, StatusCode, header};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    api::{
        body::{Request, RequestBody, Response, ResponseBody},
        guard::{Busy, Deadlines, Guarded, HEAD_BYTES_MAX},
    },
    clock::{self, Clock, Moment},
    error::{Error, Kind},
    metrics::{DoorMetrics, GaugeGuard, Operation, Outcome},
};

/// A door: answers every request, also those that it refuses.
pub trait Handler: Send + Sync + 'static {
    fn handle(&self, request: Request) -> impl Future<Output = Response> + Send;
}

/// What a door says of its answer for the counters: put it into the response's extensions.
pub fn told(mut response: Response, operation: Operation) -> Response {
    response.extensions_mut().insert(operation);
    response
}

/// What bounds a listener.
#[derive(Clone, Debug)]
pub struct ServerLimits {
    pub connections: usize,
    pub requests_in_flight: usize,
    pub deadlines: Deadlines,
}

/// Shared by all listeners of a process: its clock, the end of its life, and the count of its requests in flight.
#[derive(Clone)]
pub struct ServerContext {
    pub clock: Arc<dyn Clock>,
    pub limits: ServerLimits,
    /// Cancelled when the process should end: nothing new is accepted, what is under way is finished.
    pub shutdown: CancellationToken,
    pub tasks: TaskTracker,
    pub in_flight: Arc<Semaphore>,
    pub connections: Arc<Semaphore>,
}

impl ServerContext {
    pub fn new(clock: Arc<dyn Clock>, limits: ServerLimits) -> ServerContext {
        ServerContext {
            clock,
            shutdown: CancellationToken::new(),
            tasks: TaskTracker::new(),
            in_flight: Arc::new(Semaphore::new(limits.requests_in_flight)),
            connections: Arc::new(Semaphore::new(limits.connections)),
            limits,
        }
    }

    /// The same, with places for connections and requests of its own.
    pub fn with_own_places(&self) -> ServerContext {
        ServerContext {
            in_flight: Arc::new(Semaphore::new(OWN_PLACES)),
            connections: Arc::new(Semaphore::new(OWN_PLACES)),
            ..self.clone()
        }
    }
}

const OWN_PLACES: usize = 64;

struct Server<H> {
    handler: H,
    /// The location or door, for the log.
    name: String,
    context: ServerContext,
    metrics: Arc<DoorMetrics>,
    /// Numbers requests for the log.
    requests: AtomicU64,
}

/// Serves a listener until the context's shutdown, as a task among the context's.
pub fn spawn<H: Handler>(
    listener: TcpListener,
    handler: H,
    name: &str,
    context: &ServerContext,
    metrics: Arc<DoorMetrics>,
) {
    let server =
        Server { handler, name: name.to_string(), context: context.clone(), metrics, requests: AtomicU64::new(0) };
    context.tasks.spawn(accept(listener, Arc::new(server)));
}

/// How long to leave a listener alone that can't accept, mostly for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

async fn accept<H: Handler>(listener: TcpListener, server: Arc<Server<H>>) {
    let context = &server.context;
    loop {
        let next = async {
            // Past the limit, connections wait in the system's own bounded queue.
            let place = Arc::clone(&context.connections).acquire_owned().await.map_err(io::Error::other)?;
            listener.accept().await.map(|(stream, _)| (stream, place))
        };
        let accepted = tokio::select! {
            accepted = next => accepted,
            () = context.shutdown.cancelled() => return,
        };
        match accepted {
            Ok((stream, place)) => {
                // Without it answers are only later, not wrong.
                let _ = stream.set_nodelay(true);
                let connection = connection(stream, place, Arc::clone(&server));
                context.tasks.spawn(connection);
            }
            Err(error) => {
                tracing::warn!(listener = server.name, %error, "a connection could not be accepted");
                context.clock.sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection<H: Handler>(stream: tokio::net::TcpStream, _place: OwnedSemaphorePermit, server: Arc<Server<H>>) {
    let context = &server.context;
    let _counted = server.metrics.connection();
    let busy = Busy::default();
    let guarded = Guarded::new(stream, Arc::clone(&busy), Arc::clone(&context.clock), context.limits.deadlines);
    let service = {
        let server = Arc::clone(&server);
        service_fn(move |request| {
            let (server, busy) = (Arc::clone(&server), Arc::clone(&busy));
            async move { Ok::<_, Error>(server.answer(request, busy).await) }
        })
    };
    let serving = http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        // The guard times heads itself.
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(guarded), service);
    tokio::pin!(serving);
    let ended = tokio::select! {
        ended = &mut serving => ended,
        () = context.shutdown.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        // Clients break off; that is theirs to decide.
        tracing::debug!(listener = server.name, %error, "a connection ended early");
    }
}

impl<H: Handler> Server<H> {
    async fn answer(&self, request: hyper::Request<Incoming>, busy: Busy) -> http::Response<Watched> {
        let started = self.context.clock.now();
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let busy = BusyGuard::new(busy);
        let in_flight = self.metrics.in_flight();
        let method = request.method().clone();
        let logged = tracing::enabled!(target: "kvasar::access", tracing::Level::INFO);
        let (path, namespace) = if logged { logged_parts(&request) } else { Default::default() };
        let place = Arc::clone(&self.context.in_flight).try_acquire_owned();
        let response = match &place {
            Ok(_) => self.handler.handle(self.timed(request)).await,
            Err(_) => overloaded(),
        };
        let operation = response.extensions().get::<Operation>().copied().unwrap_or(Operation::Other);
        let status = response.status();
        if logged {
            let text = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("-");
            tracing::info!(
                target: "kvasar::access",
                request = number,
                location = self.name,
                %method,
                path,
                namespace,
                operation = operation.name(),
                status = status.as_u16(),
                cache = text("cf-cache-status"),
                age_ms = text("kvasar-age-ms"),
                error = text("kvasar-error"),
                micros = self.context.clock.now().since(started).as_micros() as u64,
                "request"
            );
        }
        let watch = Watch {
            metrics: Arc::clone(&self.metrics),
            clock: Arc::clone(&self.context.clock),
            started,
            operation,
            outcome: outcome(status),
            // A body without bytes is never asked for them.
            ended: response.body().is_end_stream(),
            _in_flight: in_flight,
            _busy: busy,
            // Who follows a feed does so for as long as it lives, and is no request under way; connections are bounded.
            _place: place.ok().filter(|_| operation != Operation::Feed),
        };
        response.map(|body| Watched { body, watch })
    }

    /// The request with its body as a stream of ours: every wait for the next piece has a deadline.
    fn timed(&self, request: hyper::Request<Incoming>) -> Request {
        request.map(|body| -> RequestBody {
            if body.is_end_stream() {
                return Box::pin(stream::empty());
            }
            let (clock, idle) = (Arc::clone(&self.context.clock), self.context.limits.deadlines.body_idle);
            let metrics = Arc::clone(&self.metrics);
            let chunks = stream::try_unfold(body, move |mut body| {
                let (clock, metrics) = (Arc::clone(&clock), Arc::clone(&metrics));
                async move {
                    let Some(chunk) = next_chunk(&mut body, &*clock, idle).await? else { return Ok(None) };
                    metrics.received(chunk.len() as u64);
                    Ok(Some((chunk, body)))
                }
            });
            chunks.boxed()
        })
    }
}

async fn next_chunk(body: &mut Incoming, clock: &dyn Clock, idle: Duration) -> Result<Option<Bytes>, Error> {
    loop {
        let frame = clock::within(clock, idle, body.frame()).await;
        let frame =
            frame.map_err(|_| Error::new(Kind::RequestTimeout, format!("no more of the body came within {idle:?}")))?;
        match frame {
            None => return Ok(None),
            Some(Err(error)) => {
                return Err(Error::bad_request("the body broke off or is badly chunked").with_source(error));
            }
            Some(Ok(frame)) => {
                // Trailers say nothing to us.
                if let Ok(data) = frame.into_data()
                    && !data.is_empty()
                {
                    return Ok(Some(data));
                }
            }
        }
    }
}

fn logged_parts(request: &hyper::Request<Incoming>) -> (String, String) {
    let namespace = request.headers().get(crate::wire::NAMESPACE).and_then(|value| value.to_str().ok());
    (request.uri().path().to_string(), namespace.unwrap_or("-").to_string())
}

fn overloaded() -> Response {
    let mut response = Response::new(ResponseBody::Whole(Bytes::from_static(b"too many requests are being answered")));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response.headers_mut().insert(crate::wire::ERROR, HeaderValue::from_static("unavailable"));
    response
}

fn outcome(status: StatusCode) -> Outcome {
    match status.as_u16() {
        200..=399 => Outcome::Ok,
        404 => Outcome::Absent,
        401 | 403 => Outcome::Unauthorized,
        429 => Outcome::RateLimited,
        502..=504 => Outcome::Unavailable,
        500.. => Outcome::ServerError,
        _ => Outcome::ClientError,
    }
}

/// Keeps its connection from counting as idle.
struct BusyGuard(Busy);

impl BusyGuard {
    fn new(busy: Busy) -> BusyGuard {
        busy.fetch_add(1, Ordering::AcqRel);
        BusyGuard(busy)
    }
}

impl Drop for BusyGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A response's body that tells the counters when it has been sent, or was dropped before.
struct Watched {
    body: ResponseBody,
    watch: Watch,
}

struct Watch {
    metrics: Arc<DoorMetrics>,
    clock: Arc<dyn Clock>,
    started: Moment,
    operation: Operation,
    outcome: Outcome,
    ended: bool,
    _in_flight: GaugeGuard,
    _busy: BusyGuard,
    _place: Option<OwnedSemaphorePermit>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        let outcome = if self.ended { self.outcome } else { Outcome::Cancelled };
        self.metrics.finished(self.operation, outcome, self.clock.now().since(self.started));
    }
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        let frame = std::task::ready!(Pin::new(&mut this.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => this.watch.metrics.sent(frame.data_ref().map_or(0, |data| data.len() as u64)),
            Some(Err(error)) => {
                this.watch.outcome = Outcome::ServerError;
                this.watch.ended = true;
                tracing::warn!(%error, "an answer broke off");
            }
            None => {}
        }
        this.watch.ended |= this.body.is_end_stream() || frame.is_none();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;
    use crate::{
        clock::RealClock,
        metrics::{Door, Metrics},
    };

    /// Answers with what is counted while it answers.
    struct Counting(Arc<Metrics>);

    impl Handler for Counting {
        async fn handle(&self, _: Request) -> Response {
            Response::new(ResponseBody::Whole(self.0.render().into()))
        }
    }

    #[tokio::test]
    async fn a_request_is_in_flight_from_its_head_on() {
        let deadline = Duration::from_secs(10);
        let deadlines = Deadlines { head: deadline, body_idle: deadline, idle: deadline };
        let limits = ServerLimits { connections: 1, requests_in_flight: 1, deadlines };
        let context = ServerContext::new(RealClock::shared(), limits);
        let metrics = Arc::new(Metrics::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        spawn(listener, Counting(Arc::clone(&metrics)), "home", &context, metrics.door(Door::Binding, "home"));

        let mut stream = TcpStream::connect(address).await.expect("a connection");
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        let labels = r#"{door="binding",location="home"}"#;
        for gauge in ["kvasar_requests_in_flight", "kvasar_connections"] {
            assert!(answer.contains(&format!("{gauge}{labels} 1\n")), "{answer}");
        }
        context.shutdown.cancel();
        context.tasks.close();
        context.tasks.wait().await;
        for gauge in ["kvasar_requests_in_flight", "kvasar_connections"] {
            assert!(metrics.render().contains(&format!("{gauge}{labels} 0\n")), "{}", metrics.render());
        }
    }
}
