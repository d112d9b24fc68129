//! What hyper is too lenient about, checked before hyper sees it; and deadlines on what it waits for.
//!
//! A request's head is held back until it is whole. One whose framing or target could be read in two ways is refused: both `Content-Length` and
//! `Transfer-Encoding`, another transfer coding than `chunked`, a bare line feed, a missing or doubled `Host`, a method of absurd length. In its place hyper is given a
//! byte that no request may begin with: it answers 400 and closes, in its own words and after what it was still sending. Everything else
//! that is wrong (lengths, sizes, chunks) hyper itself refuses.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::clock::{Clock, Sleep};

/// Longest head of a request. hyper's own buffer is as large, so that it refuses what is longer (414, 431).
pub const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Most headers of a request; hyper's own limit.
const HEADERS_MAX: usize = 100;
const METHOD_BYTES_MAX: usize = 32;

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

/// Requests of a connection that are being answered; meanwhile the connection is not idle.
pub type Busy = Arc<AtomicUsize>;

/// A connection whose requests are checked as they come in.
pub struct Guarded<T> {
    inner: T,
    reading: Reading,
    /// What arrived and is not checked yet.
    arrived: BytesMut,
    /// What is checked and not given on yet.
    checked: BytesMut,
    /// Nothing more is given on.
    closed: bool,
    busy: Busy,
    clock: Arc<dyn Clock>,
    deadlines: Deadlines,
    read_timer: Option<(Timed, Sleep)>,
    write_timer: Option<Sleep>,
}

/// Where in the stream of requests the next byte that arrives is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    Head,
    Body {
        left: u64,
    },
    ChunkSize,
    /// A chunk's data and the line end behind it.
    Chunk {
        left: u64,
    },
    Trailers,
    /// hyper will refuse what comes; it is given on unread.
    Refused,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Timed {
    Idle,
    Head,
}

impl<T> Guarded<T> {
    pub fn new(inner: T, busy: Busy, clock: Arc<dyn Clock>, deadlines: Deadlines) -> Guarded<T> {
        Guarded {
            inner,
            reading: Reading::Head,
            arrived: BytesMut::new(),
            checked: BytesMut::new(),
            closed: false,
            busy,
            clock,
            deadlines,
            read_timer: None,
            write_timer: None,
        }
    }

    /// Moves what arrived to what is checked, as far as it goes.
    fn check(&mut self) {
        while !self.arrived.is_empty() && !self.closed {
            let length = match self.reading {
                Reading::Head => match head(&self.arrived) {
                    Head::Partial => return,
                    Head::Refused => return self.refuse(),
                    Head::TooLong => {
                        self.reading = Reading::Refused;
                        self.arrived.len()
                    }
                    Head::Whole { length } => match self.framing(length) {
                        Some(then) => {
                            self.reading = then;
                            continue;
                        }
                        None => return self.refuse(),
                    },
                },
                Reading::Body { left } => {
                    let length = left.min(self.arrived.len() as u64);
                    self.reading = if length == left { Reading::Head } else { Reading::Body { left: left - length } };
                    length as usize
                }
                Reading::Chunk { left } => {
                    let length = left.min(self.arrived.len() as u64);
                    self.reading =
                        if length == left { Reading::ChunkSize } else { Reading::Chunk { left: left - length } };
                    length as usize
                }
                Reading::ChunkSize | Reading::Trailers => match self.line() {
                    Line::Whole { length, then } => {
                        self.reading = then;
                        length
                    }
                    Line::Partial => return,
                    // What it was the size of can't be told from the next request.
                    Line::Refused => return self.refuse(),
                },
                Reading::Refused => self.arrived.len(),
            };
            self.checked.extend_from_slice(&self.arrived[..length]);
            self.arrived.advance(length);
        }
    }

    /// Gives a whole head on; what follows it, or `None` when it is refused.
    fn framing(&mut self, length: usize) -> Option<Reading> {
        let head = self.arrived.split_to(length);
        let start = self.checked.len();
        match memchr::memchr(DELETE, &head) {
            None => self.checked.extend_from_slice(&head),
            Some(_) => escape_delete(&head, &mut self.checked),
        }
        let then = framing(&self.checked[start..]);
        if then.is_none() {
            self.checked.truncate(start);
        }
        then
    }

    /// The line of a chunked body that arrived.
    fn line(&self) -> Line {
        let Some(end) = memchr::memchr(b'\n', &self.arrived) else {
            return if self.arrived.len() > HEAD_BYTES_MAX { Line::Refused } else { Line::Partial };
        };
        let line = &self.arrived[..end];
        let then = match self.reading {
            Reading::Trailers if line == b"\r" => Reading::Head,
            Reading::Trailers => Reading::Trailers,
            _ => match chunk_size(line) {
                Some(0) => Reading::Trailers,
                // The chunk's own line end comes behind it.
                Some(size) => Reading::Chunk { left: size.saturating_add(2) },
                None => return Line::Refused,
            },
        };
        Line::Whole { length: end + 1, then }
    }

    fn refuse(&mut self) {
        self.arrived.clear();
        self.checked.extend_from_slice(b"\0");
        self.closed = true;
    }

    /// Whether the time for what is awaited is over. Sets the timer that it needs.
    fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        let timed = match self.reading {
            Reading::Head if self.arrived.is_empty() => Timed::Idle,
            Reading::Head => Timed::Head,
            // Bodies are timed where they are read.
            _ => return false,
        };
        if self.read_timer.as_ref().is_none_or(|(running, _)| *running != timed) {
            let duration = match timed {
                Timed::Idle => self.deadlines.idle,
                Timed::Head => self.deadlines.head,
            };
            self.read_timer = Some((timed, self.clock.sleep(duration)));
        }
        while let Some((_, timer)) = &mut self.read_timer {
            if timer.as_mut().poll(cx).is_pending() {
                return false;
            }
            if timed == Timed::Head || self.busy.load(Ordering::Acquire) == 0 {
                return true;
            }
            // A request is being answered: idleness begins behind it.
            self.read_timer = Some((timed, self.clock.sleep(self.deadlines.idle)));
        }
        false
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Guarded<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if !this.checked.is_empty() {
                let length = this.checked.len().min(buf.remaining());
                buf.put_slice(&this.checked[..length]);
                this.checked.advance(length);
                return Poll::Ready(Ok(()));
            }
            if this.closed {
                return Poll::Ready(Ok(()));
            }
            if let Reading::Body { left } = this.reading
                && this.arrived.is_empty()
            {
                return this.poll_body(left, cx, buf);
            }
            this.arrived.reserve(16 * 1024);
            let arrived = &mut this.arrived;
            match tokio_util::io::poll_read_buf(Pin::new(&mut this.inner), cx, arrived) {
                Poll::Ready(Ok(0)) => {
                    // What there is of a head is hyper's to judge: it was cut off.
                    this.checked.extend_from_slice(&this.arrived);
                    this.arrived.clear();
                    this.closed = true;
                }
                Poll::Ready(Ok(_)) => {
                    this.check();
                    if !this.checked.is_empty() {
                        this.read_timer = None;
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if this.is_late(cx) => match this.arrived.is_empty() {
                    true => this.closed = true,
                    false => this.refuse(),
                },
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl<T: AsyncRead + Unpin> Guarded<T> {
    /// Reads a body of known length without a copy, and not a byte past it.
    fn poll_body(&mut self, left: u64, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let fitting = usize::try_from(left).unwrap_or(usize::MAX).min(buf.remaining());
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(fitting));
        ready!(Pin::new(&mut self.inner).poll_read(cx, &mut part))?;
        let read = part.filled().len();
        buf.advance(read);
        let left = left - read as u64;
        self.reading = if left == 0 { Reading::Head } else { Reading::Body { left } };
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> Guarded<T> {
    /// A write that moved nothing for too long is an error: a client that does not read must not hold what it was to read.
    fn timed<R>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        if written.is_ready() {
            self.write_timer = None;
            return written;
        }
        let timer = self.write_timer.get_or_insert_with(|| self.clock.sleep(self.deadlines.body_idle));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Guarded<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.inner).poll_write(cx, bytes);
        this.timed(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.inner).poll_write_vectored(cx, bytes);
        this.timed(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

/// DEL, which no header may hold, but JSON may, and so the metadata of a Worker's put (worker-binding 5).
const DELETE: u8 = 0x7f;

/// A head whose metadata says DEL as JSON's escape says it. Anywhere else a DEL stays what it is: an error.
fn escape_delete(head: &[u8], out: &mut BytesMut) {
    for line in head.split_inclusive(|byte| *byte == b'\n') {
        let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
        if !name.eq_ignore_ascii_case(crate::wire::METADATA.as_bytes()) {
            out.extend_from_slice(line);
            continue;
        }
        for byte in line {
            match *byte {
                DELETE => out.extend_from_slice(b"\\u007f"),
                other => out.extend_from_slice(&[other]),
            }
        }
    }
}

enum Line {
    Partial,
    Whole { length: usize, then: Reading },
    Refused,
}

enum Head {
    Partial,
    Whole {
        length: usize,
    },
    /// hyper answers it by what is too long about it.
    TooLong,
    Refused,
}

/// The head at the beginning of what arrived, if it is whole.
fn head(arrived: &[u8]) -> Head {
    let mut line_start = 0;
    // Empty lines before a request are allowed (RFC 9112, 2.2).
    let mut any = false;
    for end in memchr::memchr_iter(b'\n', arrived) {
        if end == 0 || arrived[end - 1] != b'\r' {
            return Head::Refused;
        }
        let empty = end - line_start == 1;
        line_start = end + 1;
        if empty && any {
            return Head::Whole { length: line_start };
        }
        any |= !empty;
    }
    if arrived.len() > HEAD_BYTES_MAX {
        let long_method = arrived.iter().take(METHOD_BYTES_MAX + 1).all(|byte| *byte != b' ');
        return if long_method { Head::Refused } else { Head::TooLong };
    }
    Head::Partial
}

/// What follows a head; `None` when it can't be told for sure, or the head is refused.
fn framing(head: &[u8]) -> Option<Reading> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    // What does not parse here does not parse in hyper, which knows the right status for it.
    let Ok(httparse::Status::Complete(_)) = request.parse(head) else { return Some(Reading::Refused) };
    let named = |name: &'static str| {
        request.headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
    };
    let absolute = request.path.is_some_and(|path| !path.starts_with('/') && path.contains("://"));
    let hosts = named("host").count();
    let host_ok = hosts == 1 || hosts == 0 && (absolute || request.version == Some(0));
    if !host_ok || request.method.is_none_or(|method| method.len() > METHOD_BYTES_MAX) {
        return None;
    }
    let mut lengths = named("content-length");
    let mut codings = named("transfer-encoding");
    match (lengths.next(), codings.next()) {
        (None, None) => Some(Reading::Head),
        (Some(_), Some(_)) => None,
        (None, Some(coding)) => {
            let chunked = coding.trim_ascii().eq_ignore_ascii_case(b"chunked") && codings.next().is_none();
            (chunked && request.version == Some(1)).then_some(Reading::ChunkSize)
        }
        (Some(length), None) => {
            let digits = length.trim_ascii();
            let plain = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) && lengths.next().is_none();
            let left: u64 = plain.then(|| std::str::from_utf8(digits).ok()?.parse().ok()).flatten()?;
            Some(if left == 0 { Reading::Head } else { Reading::Body { left } })
        }
    }
}

/// The size in a chunk's first line, whatever extensions follow it.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let rest = line[digits..].trim_ascii_start();
    if !line.ends_with(b"\r") || digits > 15 || !(rest.is_empty() || rest[0] == b';') {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(&line[..digits]).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::clock::ManualClock;

    const DEADLINES: Deadlines =
        Deadlines { head: Duration::from_secs(1), body_idle: Duration::from_secs(1), idle: Duration::from_secs(5) };

    /// What hyper would see of bytes that arrive one after the other and then end.
    async fn seen(arriving: &[u8], piece: usize) -> Vec<u8> {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let mut guarded = Guarded::new(server, Busy::default(), Arc::new(ManualClock::shared()), DEADLINES);
        let mut seen = Vec::new();
        let reading = async { guarded.read_to_end(&mut seen).await.unwrap() };
        let writing = async {
            for piece in arriving.chunks(piece) {
                client.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            drop(client);
        };
        tokio::join!(reading, writing);
        seen
    }

    async fn passes(request: &str) {
        for piece in [1, 7, 4096] {
            assert_eq!(String::from_utf8_lossy(&seen(request.as_bytes(), piece).await), request);
        }
    }

    async fn is_refused(request: &str) {
        for piece in [1, 7, 4096] {
            let seen = seen(request.as_bytes(), piece).await;
            assert_eq!(seen.last(), Some(&0), "{request:?} was let through as {:?}", String::from_utf8_lossy(&seen));
        }
    }

    #[tokio::test]
    async fn ordinary_requests_pass_unchanged_one_behind_the_other() {
        passes("GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nhost: a\r\n\r\n").await;
        passes(
            "PUT /k HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nGET \n\r\nDELETE /k HTTP/1.1\r\nHost: a\r\n\r\n",
        )
        .await;
        passes("PUT /k HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\na\nb\r\n0\r\nT: v\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        passes("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    }

    #[tokio::test]
    async fn an_absolute_target_needs_no_host() {
        passes("GET http://fake-host/k HTTP/1.1\r\n\r\n").await;
    }

    #[tokio::test]
    async fn what_can_be_read_in_two_ways_is_refused() {
        is_refused("PUT /k HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
            .await;
        is_refused("PUT /k HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef").await;
        is_refused("PUT /k HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nabcde").await;
        is_refused("PUT /k HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n").await;
        is_refused("GET / HTTP/1.1\nHost: a\r\n\r\n").await;
        is_refused("GET / HTTP/1.1\r\n\r\n").await;
        is_refused("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n").await;
        is_refused(&format!("{} / HTTP/1.1\r\nHost: a\r\n\r\n", "G".repeat(40))).await;
        is_refused(&"G".repeat(HEAD_BYTES_MAX + 2)).await;
    }

    #[tokio::test]
    async fn a_delete_character_in_metadata_becomes_its_escape_and_elsewhere_stays_an_error() {
        let request = |header: &str| format!("PUT /k HTTP/1.1\r\nHost: a\r\n{header}\r\nContent-Length: 1\r\n\r\nx");
        for piece in [1, 7, 4096] {
            let seen = seen(request("CF-KV-Metadata: \"a\x7f\x7fb\"").as_bytes(), piece).await;
            assert_eq!(String::from_utf8_lossy(&seen), request("CF-KV-Metadata: \"a\\u007f\\u007fb\""));
        }
        passes(&request("X: a\x7fb")).await;
    }

    #[tokio::test]
    async fn a_second_request_is_checked_like_the_first() {
        is_refused("PUT /k HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nxGET / HTTP/1.1\r\n\r\n").await;
        is_refused(
            "PUT /k HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\nGET / HTTP/1.1\n\n",
        )
        .await;
    }

    #[tokio::test]
    async fn a_chunk_whose_size_is_not_plain_ends_the_connection() {
        let chunked = |line: &str| {
            format!(
                "PUT /k HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{line}\na\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n"
            )
        };
        for line in ["0000000000000001\r", "x\r", "1", "-1\r", "1 2\r"] {
            is_refused(&chunked(line)).await;
        }
    }

    #[tokio::test]
    async fn a_head_that_does_not_come_to_its_end_in_time_is_refused() {
        let clock = ManualClock::shared();
        let (mut client, server) = tokio::io::duplex(1024);
        let mut guarded = Guarded::new(server, Busy::default(), Arc::new(Arc::clone(&clock)), DEADLINES);
        client.write_all(b"GET / HT").await.unwrap();
        let reading = tokio::spawn(async move {
            let mut seen = Vec::new();
            guarded.read_to_end(&mut seen).await.map(|_| seen)
        });
        tokio::task::yield_now().await;
        clock.advance(DEADLINES.head);
        assert_eq!(reading.await.unwrap().unwrap(), b"\0");
    }

    #[tokio::test]
    async fn an_idle_connection_ends_but_not_while_a_request_is_answered() {
        let clock = ManualClock::shared();
        let busy = Busy::default();
        busy.store(1, Ordering::Release);
        let (client, server) = tokio::io::duplex(1024);
        let mut guarded = Guarded::new(server, Arc::clone(&busy), Arc::new(Arc::clone(&clock)), DEADLINES);
        let reading = tokio::spawn(async move {
            let mut seen = Vec::new();
            guarded.read_to_end(&mut seen).await.map(|_| seen)
        });
        for _ in 0..3 {
            tokio::task::yield_now().await;
            clock.advance(DEADLINES.idle);
        }
        tokio::task::yield_now().await;
        assert!(!reading.is_finished());
        busy.store(0, Ordering::Release);
        tokio::task::yield_now().await;
        clock.advance(DEADLINES.idle);
        assert_eq!(reading.await.unwrap().unwrap(), b"");
        drop(client);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_guard_panic_or_give_on_more_than_came(bytes: Vec<u8>) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let seen = runtime.block_on(seen(&bytes, 3));
            proptest::prop_assert!(seen.len() <= bytes.len() * 6 + 1);
        }
    }
}
