//! What leaves on a connection: heads of answers, and their bodies.

use std::{
    io::{self, IoSlice, Write as _},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::StatusCode;
use hyper::ext::ReasonPhrase;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::clock::{Clock, Moment, Sleep};

/// The writing half of a connection.
pub struct Writer<W> {
    half: W,
    clock: Arc<dyn Clock>,
    /// How long a client may read nothing.
    stall: Duration,
    timer: Option<Sleep>,
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    pub fn new(half: W, clock: Arc<dyn Clock>, stall: Duration) -> Writer<W> {
        Writer { half, clock, stall, timer: None }
    }

    /// Writes all of it, the parts one behind the other. A client that reads nothing for too long is an error: it must not hold what it was to read.
    pub async fn write<const N: usize>(&mut self, parts: [&[u8]; N]) -> io::Result<()> {
        let mut written = 0;
        let length: usize = parts.iter().map(|part| part.len()).sum();
        while written < length {
            written += std::future::poll_fn(|cx| self.poll_write(cx, &parts, written)).await?;
        }
        Ok(())
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, parts: &[&[u8]], written: usize) -> Poll<io::Result<usize>> {
        let polled = match parts {
            [whole] => Pin::new(&mut self.half).poll_write(cx, &whole[written..]),
            parts => {
                // No caller has more parts than a chunk has.
                let mut slices = [IoSlice::new(&[]); 3];
                let (mut skipped, mut count) = (written, 0);
                for part in parts {
                    let from = skipped.min(part.len());
                    skipped -= from;
                    if from < part.len() {
                        slices[count] = IoSlice::new(&part[from..]);
                        count += 1;
                    }
                }
                Pin::new(&mut self.half).poll_write_vectored(cx, &slices[..count])
            }
        };
        match polled {
            Poll::Ready(Ok(0)) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Poll::Ready(outcome) => {
                self.timer = None;
                Poll::Ready(outcome)
            }
            Poll::Pending => {
                let timer = self.timer.get_or_insert_with(|| self.clock.sleep(self.stall));
                ready!(timer.as_mut().poll(cx));
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")))
            }
        }
    }

    /// Tells the client that nothing more comes.
    pub async fn end(&mut self) -> io::Result<()> {
        self.half.shutdown().await
    }
}

/// Begins an answer's head.
pub fn status_line(out: &mut Vec<u8>, status: StatusCode, reason: Option<&ReasonPhrase>) {
    match (status, reason) {
        (StatusCode::OK, None) => out.extend_from_slice(b"HTTP/1.1 200 OK\r\n"),
        (status, reason) => {
            out.extend_from_slice(b"HTTP/1.1 ");
            out.extend_from_slice(status.as_str().as_bytes());
            out.push(b' ');
            match reason {
                Some(reason) => out.extend_from_slice(reason.as_bytes()),
                None => out.extend_from_slice(status.canonical_reason().unwrap_or("Unknown").as_bytes()),
            }
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// How the end of an answer's body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// By the status: there is none (304).
    None,
    Length(u64),
    Chunked,
    /// By the end of the connection, for HTTP/1.0.
    Close,
}

/// What of the connection an answer's head says.
#[derive(Clone, Copy, Debug)]
pub struct Ending {
    pub framing: Framing,
    /// The connection ends behind this answer.
    pub close: bool,
    pub http_10: bool,
}

/// Ends an answer's head.
pub fn end_head(out: &mut Vec<u8>, ending: Ending, date: &mut Date, clock: &dyn Clock, now: Moment) {
    match ending.framing {
        Framing::Length(length) => {
            out.extend_from_slice(b"content-length: ");
            out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        Framing::None | Framing::Close => {}
    }
    if ending.close {
        out.extend_from_slice(b"connection: close\r\n");
    } else if ending.http_10 {
        out.extend_from_slice(b"connection: keep-alive\r\n");
    }
    out.extend_from_slice(date.field(clock, now));
    out.extend_from_slice(b"\r\n");
}

/// The line that begins a chunk.
pub fn chunk_line(out: &mut Vec<u8>, length: usize) {
    write!(out, "{length:x}\r\n").expect("a vector takes all");
}

/// The `Date` field, made anew when it is a second old.
#[derive(Debug, Default)]
pub struct Date {
    line: Vec<u8>,
    made_at: Option<Moment>,
}

impl Date {
    fn field(&mut self, clock: &dyn Clock, now: Moment) -> &[u8] {
        if self.made_at.is_none_or(|made_at| now.since(made_at) >= Duration::from_secs(1)) {
            let wall = clock.wall_millis();
            self.line.clear();
            let date = httpdate::HttpDate::from(SystemTime::UNIX_EPOCH + Duration::from_millis(wall));
            write!(self.line, "date: {date}\r\n").expect("a vector takes all");
            // As of the beginning of the wall clock's second, so that it is never more than that one behind.
            self.made_at = Some(now - Duration::from_millis(wall % 1000));
        }
        &self.line
    }
}

/// A piece of an answer's body on its way.
pub async fn write_chunk<W: AsyncWrite + Unpin>(
    writer: &mut Writer<W>,
    out: &mut Vec<u8>,
    framing: Framing,
    chunk: &Bytes,
) -> io::Result<()> {
    match framing {
        // It would be the last one.
        Framing::Chunked if chunk.is_empty() => Ok(()),
        Framing::Chunked => {
            chunk_line(out, chunk.len());
            let written = writer.write([&out[..], chunk, b"\r\n"]).await;
            out.clear();
            written
        }
        _ => {
            let written = writer.write([&out[..], chunk]).await;
            out.clear();
            written
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::clock::ManualClock;

    #[tokio::test]
    async fn parts_arrive_whole_and_in_order_however_little_is_taken_at_once() {
        for room in [1, 3, 5, 1000] {
            let (client, mut server) = tokio::io::duplex(room);
            let clock = Arc::new(ManualClock::shared());
            let writing = tokio::spawn(async move {
                let mut writer = Writer::new(client, clock, Duration::from_secs(1));
                writer.write([b"head", b"", b"the body"]).await.unwrap();
                writer.write([b"!"]).await.unwrap();
                writer.end().await.unwrap();
            });
            let mut arrived = String::new();
            server.read_to_string(&mut arrived).await.unwrap();
            writing.await.unwrap();
            assert_eq!(arrived, "headthe body!");
        }
    }

    #[tokio::test]
    async fn a_client_that_reads_nothing_is_given_up_and_one_that_reads_slowly_is_not() {
        let clock = ManualClock::shared();
        let (client, mut server) = tokio::io::duplex(1);
        let stall = Duration::from_secs(10);
        let mut writer = Writer::new(client, Arc::new(Arc::clone(&clock)), stall);
        let writing = tokio::spawn(async move { writer.write([b"abcd"]).await });
        for _ in 0..2 {
            tokio::task::yield_now().await;
            clock.advance(stall - Duration::from_secs(1));
            server.read_u8().await.unwrap();
        }
        tokio::task::yield_now().await;
        assert!(!writing.is_finished());
        clock.advance(stall);
        assert_eq!(writing.await.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn the_date_is_that_of_the_wall_clocks_second() {
        let clock = ManualClock::shared();
        clock.step_wall(700);
        let mut date = Date::default();
        let mut says = |clock: &Arc<ManualClock>| String::from_utf8(date.field(clock, clock.now()).to_vec()).unwrap();
        assert_eq!(says(&clock), "date: Thu, 01 Jan 2026 00:00:00 GMT\r\n");
        clock.advance(Duration::from_millis(299));
        assert_eq!(says(&clock), "date: Thu, 01 Jan 2026 00:00:00 GMT\r\n");
        clock.advance(Duration::from_millis(1));
        assert_eq!(says(&clock), "date: Thu, 01 Jan 2026 00:00:01 GMT\r\n");
    }

    #[test]
    fn a_head_says_how_its_body_ends_and_whether_the_connection_does() {
        let clock = ManualClock::shared();
        let head = |framing, close, http_10| {
            let mut out = Vec::new();
            status_line(&mut out, StatusCode::OK, None);
            end_head(&mut out, Ending { framing, close, http_10 }, &mut Date::default(), &clock, clock.now());
            String::from_utf8(out).unwrap().replace("date: Thu, 01 Jan 2026 00:00:00 GMT\r\n\r\n", "")
        };
        assert_eq!(head(Framing::Length(12), false, false), "HTTP/1.1 200 OK\r\ncontent-length: 12\r\n");
        assert_eq!(
            head(Framing::Chunked, true, false),
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n"
        );
        assert_eq!(head(Framing::None, false, true), "HTTP/1.1 200 OK\r\nconnection: keep-alive\r\n");
    }
}
