//! One connection, from its first byte to its last: HTTP/1.1 as all doors speak it.
//!
//! A request's head is read whole, parsed once and checked (`connection/head.rs`). A read that memory answers is answered at once, without a request ever being
//! made of it (`hot.rs`); everything else goes to the door's handler, its body as a stream (`connection/incoming.rs`). Answers leave in the order of their
//! requests, each before the next request is looked at. Nothing is waited for without a deadline, and nothing is kept of a
//! connection that waits but small buffers.

pub mod head;
pub mod incoming;
pub mod outgoing;

use std::{
    io,
    mem::MaybeUninit,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::{Buf, Bytes};
use futures_util::{
    FutureExt, StreamExt,
    stream::{self, BoxStream},
};
use http::{Method, StatusCode};
use hyper::ext::ReasonPhrase;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::oneshot,
};
use tokio_util::sync::WaitForCancellationFutureOwned;

use self::{
    head::{HEADERS_MAX, Head, Refused, Search},
    incoming::{Incoming, Reader, Returned},
    outgoing::{Date, Ending, Framing, Writer, end_head, status_line, write_chunk},
};
use crate::{
    api::{
        body::{RequestBody, Response, ResponseBody},
        hot::{HotAnswer, Remembered},
        server::{Handler, Server, Watch},
    },
    clock::{self, Clock, Moment, Sleep},
    error::Result,
    wire::push_field,
};

/// How long a connection may take over its parts.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// From a head's first byte to its last.
    pub head: Duration,
    /// Between two pieces of a body, either way.
    pub body_idle: Duration,
    /// Between two requests.
    pub idle: Duration,
}

/// How much of what a client still sends is read before its connection is closed, so that it gets to see its answer: a socket that is closed with bytes
/// unread throws away what it had sent.
const LINGER_BYTES_MAX: usize = 1 << 20;
const LINGER: Duration = Duration::from_secs(2);

/// A value up to this length is copied behind its head: that costs less than what the system takes more for two parts than for one.
const COPIED_BYTES_MAX: usize = 4 * 1024;

/// Serves one connection until either side ends it.
pub(super) async fn serve<H, R, W>(server: Arc<Server<H>>, read_half: R, write_half: W) -> io::Result<()>
where
    H: Handler,
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send,
{
    let clock = Arc::clone(&server.context.clock);
    let deadlines = server.context.limits.deadlines;
    let mut connection = Connection {
        writer: Writer::new(write_half, Arc::clone(&clock), deadlines.body_idle),
        out: Vec::new(),
        date: Date::default(),
        remembered: Remembered::default(),
        waiting: Waiting::new(&server),
        clock,
        server,
    };
    connection.run(Reader::new(read_half)).await
}

struct Connection<H, W> {
    server: Arc<Server<H>>,
    clock: Arc<dyn Clock>,
    writer: Writer<W>,
    /// The head of the answer under way. Empty between two answers.
    out: Vec<u8>,
    date: Date,
    remembered: Remembered,
    waiting: Waiting,
}

/// What a head that arrived comes to.
enum Next {
    /// It is answered already, but for the end of its head and its value.
    Hot(HotAnswer, Asked),
    Handle(Box<http::Request<()>>, head::Framing, Asked),
}

/// What an answer has to know of its request.
#[derive(Clone, Copy)]
struct Asked {
    keep_alive: bool,
    http_10: bool,
    expects_continue: bool,
}

impl<H: Handler, W: AsyncWrite + Unpin + Send> Connection<H, W> {
    async fn run<R: AsyncRead + Unpin + Send + 'static>(&mut self, mut reader: Reader<R>) -> io::Result<()> {
        loop {
            let length = match self.head(&mut reader).await? {
                Some(Ok(length)) => length,
                Some(Err(refused)) => return self.refuse(reader, refused).await,
                None => return Ok(()),
            };
            match self.next(&reader.arrived[..length]) {
                Ok(Next::Hot(answer, asked)) => {
                    reader.arrived.advance(length);
                    self.answer_hot(answer, asked).await?;
                    if !asked.keep_alive {
                        return self.close(reader).await;
                    }
                }
                Ok(Next::Handle(request, framing, asked)) => {
                    reader.arrived.advance(length);
                    // In a box, so that a connection that waits, or reads what is hot, stays small.
                    match Box::pin(self.handle(reader, *request, framing, asked)).await? {
                        Some(next) => reader = next,
                        None => return Ok(()),
                    }
                    self.waiting.since = self.clock.now();
                }
                Err(refused) => return self.refuse(reader, refused).await,
            }
        }
    }

    /// The length of the next head, once it has arrived; `None` when the connection is over.
    async fn head<R: AsyncRead + Unpin>(
        &mut self,
        reader: &mut Reader<R>,
    ) -> io::Result<Option<Result<usize, Refused>>> {
        let mut search = Search::default();
        let mut timer: Option<Sleep> = None;
        loop {
            match search.end(&reader.arrived) {
                Ok(Some(length)) => return Ok(Some(Ok(length))),
                Err(refused) => return Ok(Some(Err(refused))),
                Ok(None) => {}
            }
            // Empty lines are no request that has begun.
            while !search.has_begun() && reader.arrived.starts_with(b"\r\n") {
                reader.arrived.advance(2);
                search = Search::default();
            }
            let begun = !reader.arrived.is_empty();
            if begun {
                let deadline = self.server.context.limits.deadlines.head;
                let timer = timer.get_or_insert_with(|| self.clock.sleep(deadline));
                let arrival = std::future::poll_fn(|cx| reader.poll_head(cx));
                tokio::select! {
                    biased;
                    arrived = arrival => if arrived? == 0 {
                        return Ok(Some(Err(Refused(StatusCode::BAD_REQUEST))));
                    },
                    () = timer => return Ok(Some(Err(Refused(StatusCode::REQUEST_TIMEOUT)))),
                }
                continue;
            }
            reader.shrink();
            let mut again = false;
            let arrived = std::future::poll_fn(|cx| match reader.poll_head(cx) {
                Poll::Ready(arrived) => Poll::Ready(Some(arrived)),
                Poll::Pending => {
                    let over = self.waiting.poll(cx, again, &*self.clock);
                    again = true;
                    over.map(|()| None)
                }
            });
            match arrived.await.transpose()? {
                None | Some(0) => return Ok(None),
                Some(_) => {}
            }
        }
    }

    /// Parses a head, and answers it if memory can.
    fn next(&mut self, bytes: &[u8]) -> Result<Next, Refused> {
        let bytes = head::escape_delete(bytes);
        let mut fields = [const { MaybeUninit::uninit() }; HEADERS_MAX];
        let head = Head::parse(&bytes, &mut fields)?;
        let asked = Asked {
            keep_alive: head.keep_alive && !self.server.context.is_stopping(),
            http_10: head.http_10,
            expects_continue: head.expects_continue,
        };
        if let Some(answer) = self.server.hot(&head, &mut self.remembered, &mut self.out) {
            return Ok(Next::Hot(answer, asked));
        }
        self.out.clear();
        Ok(Next::Handle(Box::new(head.to_request()?), head.framing, asked))
    }

    async fn answer_hot(&mut self, answer: HotAnswer, asked: Asked) -> io::Result<()> {
        let value = answer.value();
        let ending = Ending { framing: answer.framing(), close: !asked.keep_alive, http_10: asked.http_10 };
        end_head(&mut self.out, ending, &mut self.date, &*self.clock, answer.at);
        let written = self.send(value).await;
        let now = self.clock.now();
        self.server.finished_hot(&answer, written.is_ok(), now.since(answer.at));
        self.waiting.since = now;
        written
    }

    /// Sends the head that is ready, and all of a value behind it.
    async fn send(&mut self, value: &[u8]) -> io::Result<()> {
        let written = if value.len() <= COPIED_BYTES_MAX {
            self.out.extend_from_slice(value);
            self.writer.write([&self.out]).await
        } else {
            self.writer.write([&self.out, value]).await
        };
        self.out.clear();
        written
    }

    /// Has the door answer a request; gives the reader back if the connection goes on.
    async fn handle<R: AsyncRead + Unpin + Send + 'static>(
        &mut self,
        reader: Reader<R>,
        request: http::Request<()>,
        framing: head::Framing,
        asked: Asked,
    ) -> io::Result<Option<Reader<R>>> {
        let (at, is_head) = (self.clock.now(), request.method() == Method::HEAD);
        let server = Arc::clone(&self.server);
        if framing == head::Framing::Length(0) {
            let body: RequestBody = Box::pin(stream::empty());
            let (response, watch) = server.answer(request.map(|()| body), at).await;
            return match self.respond(response, watch, asked, asked.keep_alive, is_head).await? {
                true => Ok(Some(reader)),
                false => self.close(reader).await.map(|()| None),
            };
        }
        let (clock, idle) = (Arc::clone(&self.clock), server.context.limits.deadlines.body_idle);
        let (mut body, mut returning) = Incoming::new(reader, framing, clock, idle, Arc::clone(&server.metrics));
        let go_on = asked.expects_continue.then(|| body.on_first_look());
        let answering = server.answer(request.map(|()| body.boxed()), at);
        let (response, watch) = self.answer(answering, go_on).await?;
        // A body that was not read to its end stands between here and the next request.
        let returned = returning.try_recv().ok();
        let keep_alive = asked.keep_alive && returned.as_ref().is_none_or(|returned| returned.ended);
        let keep_alive = self.respond(response, watch, asked, keep_alive, is_head).await?;
        let returned = match returned {
            Some(returned) => returned,
            // Whoever still reads the body has the time that a body has.
            None => match clock::within(&*self.clock, idle, returning).await {
                Ok(Ok(returned)) => returned,
                _ => return Ok(None),
            },
        };
        let Returned { reader, ended } = returned;
        if keep_alive && ended {
            return Ok(Some(reader));
        }
        self.close(reader).await.map(|()| None)
    }

    /// The door's answer; meanwhile the client is told to send its body, if it waits for that.
    async fn answer(
        &mut self,
        answering: impl Future<Output = (Response, Watch)>,
        go_on: Option<oneshot::Receiver<()>>,
    ) -> io::Result<(Response, Watch)> {
        let Some(go_on) = go_on else { return Ok(answering.await) };
        tokio::pin!(answering);
        tokio::select! {
            biased;
            answered = &mut answering => return Ok(answered),
            // Not when the body was dropped without a look.
            Ok(()) = go_on => {}
        }
        self.writer.write([b"HTTP/1.1 100 Continue\r\n\r\n"]).await?;
        Ok(answering.await)
    }

    /// Sends an answer; says whether the connection goes on.
    async fn respond(
        &mut self,
        response: Response,
        mut watch: Watch,
        asked: Asked,
        keep_alive: bool,
        is_head: bool,
    ) -> io::Result<bool> {
        let (parts, body) = response.into_parts();
        // The process may have begun to end while the request was answered.
        let keep_alive = keep_alive && !self.server.context.is_stopping() && !ends_with_connection(&body, asked);
        let framing = match &body {
            _ if matches!(parts.status, StatusCode::NOT_MODIFIED | StatusCode::NO_CONTENT) => Framing::None,
            ResponseBody::Whole(bytes) => Framing::Length(bytes.len() as u64),
            ResponseBody::Stream { length: Some(length), .. } => Framing::Length(*length),
            _ if ends_with_connection(&body, asked) => Framing::Close,
            ResponseBody::Stream { length: None, .. } => Framing::Chunked,
        };
        status_line(&mut self.out, parts.status, parts.extensions.get::<ReasonPhrase>());
        for (name, value) in &parts.headers {
            push_field(&mut self.out, name.as_str(), value.as_bytes());
        }
        let ending = Ending { framing, close: !keep_alive, http_10: asked.http_10 };
        end_head(&mut self.out, ending, &mut self.date, &*self.clock, self.clock.now());
        if is_head || framing == Framing::None {
            let written = self.send(&[]).await;
            watch.ended(written.is_ok());
            return written.map(|()| keep_alive);
        }
        let written = match body {
            ResponseBody::Whole(bytes) => {
                let written = self.send(&bytes).await;
                if written.is_ok() {
                    watch.sent(bytes.len() as u64);
                }
                written
            }
            ResponseBody::Stream { chunks, .. } => self.stream(chunks, framing, &mut watch).await,
        };
        self.out.clear();
        watch.ended(written.is_ok());
        written.map(|()| keep_alive)
    }

    /// Sends a body as it comes, its head in front of the first piece. An error in it ends the connection short of the body's end, so that nobody takes
    /// what came for the whole.
    async fn stream(
        &mut self,
        mut chunks: BoxStream<'static, Result<Bytes>>,
        framing: Framing,
        watch: &mut Watch,
    ) -> io::Result<()> {
        let mut sent = 0;
        // The head doesn't wait for a first piece that is not there yet.
        let mut first = chunks.next().now_or_never();
        if first.is_none() {
            self.writer.write([&self.out]).await?;
            self.out.clear();
        }
        loop {
            let next = match first.take() {
                Some(next) => next,
                None => chunks.next().await,
            };
            let chunk = match next {
                None => break,
                Some(Ok(chunk)) => chunk,
                Some(Err(error)) => {
                    watch.broke();
                    tracing::warn!(%error, "an answer broke off");
                    return Err(io::Error::other(error));
                }
            };
            sent += chunk.len() as u64;
            if matches!(framing, Framing::Length(length) if sent > length) {
                watch.broke();
                return Err(io::Error::other(format!("an answer is longer than {framing:?}")));
            }
            write_chunk(&mut self.writer, &mut self.out, framing, &chunk).await?;
            watch.sent(chunk.len() as u64);
        }
        match framing {
            Framing::Length(length) if sent < length => {
                watch.broke();
                tracing::warn!(sent, length, "an answer ended before its length");
                Err(io::ErrorKind::UnexpectedEof.into())
            }
            Framing::Chunked => self.writer.write([&self.out, b"0\r\n\r\n"]).await,
            _ => self.writer.write([&self.out]).await,
        }
    }

    /// Answers what is no request, and ends the connection.
    async fn refuse<R: AsyncRead + Unpin>(&mut self, reader: Reader<R>, Refused(status): Refused) -> io::Result<()> {
        tracing::debug!(listener = self.server.name, %status, "what arrived is no request");
        status_line(&mut self.out, status, None);
        let ending = Ending { framing: Framing::Length(0), close: true, http_10: false };
        end_head(&mut self.out, ending, &mut self.date, &*self.clock, self.clock.now());
        self.writer.write([&self.out]).await?;
        self.close(reader).await
    }

    /// Ends the connection, so that the client gets to see what it was sent.
    async fn close<R: AsyncRead + Unpin>(&mut self, mut reader: Reader<R>) -> io::Result<()> {
        self.writer.end().await?;
        let mut left = LINGER_BYTES_MAX;
        let lingering = async {
            loop {
                reader.arrived.clear();
                match std::future::poll_fn(|cx| reader.poll_head(cx)).await {
                    Ok(read) if read > 0 && read <= left => left -= read,
                    _ => return,
                }
            }
        };
        // Late or not, the client has had its time.
        let _ = clock::within(&*self.clock, LINGER, lingering).await;
        Ok(())
    }
}

/// Whether nothing but the connection's end can tell the end of this body.
fn ends_with_connection(body: &ResponseBody, asked: Asked) -> bool {
    asked.http_10 && matches!(body, ResponseBody::Stream { length: None, .. })
}

/// Waits for the end of a connection on which nothing happens: its idle deadline, or the end of the process.
///
/// Both would cost more than a hot read's own work if they were polled between any two requests. So they are registered once, and looked at again only when
/// that registration is spent, or when the connection was woken and nothing had arrived.
struct Waiting {
    idle: Duration,
    /// When the last request was answered.
    since: Moment,
    timer: Sleep,
    /// When the timer fires.
    fires_at: Moment,
    stopping: Pin<Box<WaitForCancellationFutureOwned>>,
    is_stopping: Arc<AtomicBool>,
    /// Who is woken by them.
    waker: Option<Waker>,
}

impl Waiting {
    fn new<H>(server: &Server<H>) -> Waiting {
        let (context, idle) = (&server.context, server.context.limits.deadlines.idle);
        let now = context.clock.now();
        Waiting {
            idle,
            since: now,
            timer: context.clock.sleep(idle),
            fires_at: now + idle,
            stopping: Box::pin(context.stopped()),
            is_stopping: Arc::clone(&context.stopping),
            waker: None,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, again: bool, clock: &dyn Clock) -> Poll<()> {
        let registered = self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
        let spent = self.since >= self.fires_at || self.is_stopping.load(Ordering::Acquire);
        if registered && !spent && !again {
            return Poll::Pending;
        }
        self.waker = None;
        if self.stopping.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            let idle_until = self.since + self.idle;
            let now = clock.now();
            if now >= idle_until {
                return Poll::Ready(());
            }
            self.timer = clock.sleep(idle_until.since(now));
            self.fires_at = idle_until;
        }
        // A task that has used its turn up is told "pending" by a timer that has not even looked; then it is polled again next time.
        if tokio::task::coop::has_budget_remaining() {
            self.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests;
