//! One listener: accepts connections, bounds them, hands each request to a door, and counts and logs how it ended.

use std::{
    future::Future,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFutureOwned},
    task::TaskTracker,
};

use crate::{
    api::{
        body::{Request, Response, ResponseBody},
        connection::{self, Deadlines, head::Head},
        hot::{HotAnswer, Remembered},
        threads::Threads,
    },
    clock::{Clock, Moment},
    metrics::{DoorMetrics, GaugeGuard, Operation, Outcome},
};

/// A door: answers every request, also those that it refuses.
pub trait Handler: Send + Sync + 'static {
    fn handle(&self, request: Request) -> impl Future<Output = Response> + Send;

    /// Answers a read that needs no wait: writes all of the head but for its end into `out`. `None`, with whatever in `out`, says nothing but "call
    /// [`Handler::handle`]", which answers the same.
    fn hot(&self, _head: &Head<'_>, _remembered: &mut Remembered, _out: &mut Vec<u8>) -> Option<HotAnswer> {
        None
    }
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
    /// Cancelled when the process should end: nothing new is accepted, what is under way is finished. See [`ServerContext::stop`].
    pub shutdown: CancellationToken,
    /// Set just before: what can be asked between any two requests.
    pub(super) stopping: Arc<AtomicBool>,
    pub tasks: TaskTracker,
    pub in_flight: Arc<Semaphore>,
    pub connections: Arc<Semaphore>,
    /// Where connections are served; by the runtime that accepted them if not here.
    threads: Option<Arc<Threads>>,
}

impl ServerContext {
    pub fn new(clock: Arc<dyn Clock>, limits: ServerLimits) -> ServerContext {
        ServerContext {
            clock,
            shutdown: CancellationToken::new(),
            stopping: Arc::default(),
            tasks: TaskTracker::new(),
            in_flight: Arc::new(Semaphore::new(limits.requests_in_flight)),
            connections: Arc::new(Semaphore::new(limits.connections)),
            threads: None,
            limits,
        }
    }

    /// Has all listeners and connections end.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.shutdown.cancel();
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub(super) fn stopped(&self) -> WaitForCancellationFutureOwned {
        self.shutdown.clone().cancelled_owned()
    }

    /// The same, with connections on threads of their own.
    pub fn on(&self, threads: &Arc<Threads>) -> ServerContext {
        ServerContext { threads: Some(Arc::clone(threads)), ..self.clone() }
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

pub(super) struct Server<H> {
    handler: H,
    /// The location or door, for the log.
    pub(super) name: String,
    pub(super) context: ServerContext,
    pub(super) metrics: Arc<DoorMetrics>,
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
    context.tasks.spawn(accept(listener, Arc::new(Server::new(handler, name, context, metrics))));
}

/// Serves one connection of whatever kind until either side ends it.
pub async fn serve<H, R, W>(
    read_half: R,
    write_half: W,
    handler: H,
    name: &str,
    context: &ServerContext,
    metrics: Arc<DoorMetrics>,
) -> io::Result<()>
where
    H: Handler,
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send,
{
    connection::serve(Arc::new(Server::new(handler, name, context, metrics)), read_half, write_half).await
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
                let Some(threads) = &context.threads else {
                    context.tasks.spawn(connection(stream, place, Arc::clone(&server)));
                    continue;
                };
                if let Err(error) = hand_over(stream, place, &server, threads) {
                    tracing::warn!(listener = server.name, %error, "a connection could not be handed to its thread");
                }
            }
            Err(error) => {
                tracing::warn!(listener = server.name, %error, "a connection could not be accepted");
                context.clock.sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Has another thread serve a connection: its runtime takes it over from this one's.
fn hand_over<H: Handler>(
    stream: TcpStream,
    place: OwnedSemaphorePermit,
    server: &Arc<Server<H>>,
    threads: &Threads,
) -> io::Result<()> {
    let (stream, server) = (stream.into_std()?, Arc::clone(server));
    threads.spawn(&server.context.tasks.clone(), async move {
        match TcpStream::from_std(stream) {
            Ok(stream) => connection(stream, place, server).await,
            Err(error) => tracing::warn!(listener = server.name, %error, "a connection could not be taken over"),
        }
    });
    Ok(())
}

async fn connection<H: Handler>(stream: TcpStream, _place: OwnedSemaphorePermit, server: Arc<Server<H>>) {
    let _counted = server.metrics.connection();
    let (read_half, write_half) = stream.into_split();
    if let Err(error) = connection::serve(Arc::clone(&server), read_half, write_half).await {
        // Clients break off; that is theirs to decide.
        tracing::debug!(listener = server.name, %error, "a connection ended early");
    }
}

impl<H: Handler> Server<H> {
    fn new(handler: H, name: &str, context: &ServerContext, metrics: Arc<DoorMetrics>) -> Server<H> {
        Server { handler, name: name.to_owned(), context: context.clone(), metrics, requests: AtomicU64::new(0) }
    }

    /// See [`Handler::hot`]. What is logged is not hot. It takes no place among the requests in flight, which it would leave before anybody saw it there.
    pub(super) fn hot(&self, head: &Head<'_>, remembered: &mut Remembered, out: &mut Vec<u8>) -> Option<HotAnswer> {
        if is_logged() {
            return None;
        }
        self.handler.hot(head, remembered, out)
    }

    /// Counts a hot answer that was sent, or was cut off.
    pub(super) fn finished_hot(&self, answer: &HotAnswer, sent: bool, took: Duration) {
        let outcome = if sent { outcome(answer.status) } else { Outcome::Cancelled };
        if sent {
            self.metrics.sent(answer.value().len() as u64);
        }
        self.metrics.finished(Operation::Get, outcome, took);
    }

    /// Has the handler answer a request whose head had arrived at `started`.
    pub(super) async fn answer(&self, request: Request, started: Moment) -> (Response, Watch) {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let in_flight = self.metrics.in_flight();
        let method = request.method().clone();
        let logged = is_logged();
        let (path, namespace) = if logged { logged_parts(&request) } else { Default::default() };
        let place = Arc::clone(&self.context.in_flight).try_acquire_owned();
        let response = match &place {
            Ok(_) => self.handler.handle(request).await,
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
            ended: false,
            _in_flight: in_flight,
            // Who follows a feed does so for as long as it lives, and is no request under way; connections are bounded.
            _place: place.ok().filter(|_| operation != Operation::Feed),
        };
        (response, watch)
    }
}

fn is_logged() -> bool {
    tracing::enabled!(target: "kvasar::access", tracing::Level::INFO)
}

fn logged_parts(request: &Request) -> (String, String) {
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

/// An answer on its way: counts it when it has been sent, or was dropped before.
pub(super) struct Watch {
    metrics: Arc<DoorMetrics>,
    clock: Arc<dyn Clock>,
    started: Moment,
    operation: Operation,
    outcome: Outcome,
    ended: bool,
    _in_flight: GaugeGuard,
    _place: Option<OwnedSemaphorePermit>,
}

impl Watch {
    pub(super) fn sent(&self, bytes: u64) {
        self.metrics.sent(bytes);
    }

    /// The answer ended by our own fault.
    pub(super) fn broke(&mut self) {
        self.outcome = Outcome::ServerError;
        self.ended = true;
    }

    /// The answer is whole, or its client went away.
    pub(super) fn ended(mut self, whole: bool) {
        self.ended |= whole;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let outcome = if self.ended { self.outcome } else { Outcome::Cancelled };
        self.metrics.finished(self.operation, outcome, self.clock.now().since(self.started));
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

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
        context.stop();
        context.tasks.close();
        context.tasks.wait().await;
        for gauge in ["kvasar_requests_in_flight", "kvasar_connections"] {
            assert!(metrics.render().contains(&format!("{gauge}{labels} 0\n")), "{}", metrics.render());
        }
    }
}
