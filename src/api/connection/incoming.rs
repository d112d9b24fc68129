//! What arrives on a connection: bytes, and the body of the request under way.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::{io::AsyncRead, sync::oneshot};

use super::head::{Framing, HEAD_BYTES_MAX};
use crate::{
    clock::{Clock, Sleep},
    error::{Error, Kind, Result},
    metrics::DoorMetrics,
};

/// The reading half of a connection, with what arrived and was not used yet.
#[derive(Debug)]
pub struct Reader<R> {
    half: R,
    pub arrived: BytesMut,
    /// Whether the buffer is larger than heads mostly need.
    grew: bool,
}

/// How much is asked of the system at once: for a head, and for a body.
const HEAD_READ_BYTES: usize = 4 * 1024;
const BODY_READ_BYTES: usize = 64 * 1024;
/// Room that is not worth a call to the system.
const ROOM_BYTES_MIN: usize = 1024;
/// A piece of a body up to this length is copied, so that it does not hold on to the whole buffer that it arrived in.
const COPIED_BYTES_MAX: usize = 4 * 1024;

impl<R: AsyncRead + Unpin> Reader<R> {
    pub fn new(half: R) -> Reader<R> {
        Reader { half, arrived: BytesMut::new(), grew: false }
    }

    /// Reads what there is, into at least `room` bytes when the buffer has to grow. Zero is the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>, room: usize) -> Poll<io::Result<usize>> {
        if self.arrived.capacity() - self.arrived.len() < ROOM_BYTES_MIN {
            self.arrived.reserve(room);
            // Its capacity counts from where it is read, so it does not tell.
            self.grew |= room > HEAD_READ_BYTES || self.arrived.len() > HEAD_READ_BYTES;
        }
        tokio_util::io::poll_read_buf(Pin::new(&mut self.half), cx, &mut self.arrived)
    }

    pub fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.poll_fill(cx, HEAD_READ_BYTES)
    }

    /// Gives room back that only a body, or a long head, had use for.
    pub fn shrink(&mut self) {
        if self.arrived.is_empty() && self.grew {
            self.arrived = BytesMut::new();
            self.grew = false;
        }
    }
}

/// Where in a body the next byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// So many bytes to the body's end.
    Length(u64),
    ChunkSize,
    /// So many bytes to the chunk's end.
    Chunk(u64),
    ChunkEnd,
    /// So many bytes of trailers are still taken. They say nothing to us.
    Trailers(usize),
    End,
    /// The rest can't be told from the next request.
    Broken,
}

impl Reading {
    /// How much is asked of the system at once.
    fn room(self) -> usize {
        match self {
            Reading::Length(left) => {
                usize::try_from(left).unwrap_or(usize::MAX).clamp(HEAD_READ_BYTES, BODY_READ_BYTES)
            }
            _ => BODY_READ_BYTES,
        }
    }
}

/// Longest line of a chunked body: a size with extensions, or a trailer.
const LINE_BYTES_MAX: usize = 8 * 1024;

/// A request's body as it arrives. Every wait for the next piece has a deadline. Gives the reader back when it is dropped.
pub struct Incoming<R> {
    /// There until the drop.
    reader: Option<Reader<R>>,
    reading: Reading,
    give_back: Option<oneshot::Sender<Returned<R>>>,
    /// Tells the sender to go on, at the first look at the body.
    go_on: Option<oneshot::Sender<()>>,
    clock: Arc<dyn Clock>,
    idle: Duration,
    timer: Option<Sleep>,
    metrics: Arc<DoorMetrics>,
}

/// A connection's reader after a body.
pub struct Returned<R> {
    pub reader: Reader<R>,
    /// Whether the next byte is that of the next request.
    pub ended: bool,
}

impl<R: AsyncRead + Unpin> Incoming<R> {
    pub fn new(
        reader: Reader<R>,
        framing: Framing,
        clock: Arc<dyn Clock>,
        idle: Duration,
        metrics: Arc<DoorMetrics>,
    ) -> (Incoming<R>, oneshot::Receiver<Returned<R>>) {
        let (give_back, given_back) = oneshot::channel();
        let reading = match framing {
            Framing::Length(0) => Reading::End,
            Framing::Length(left) => Reading::Length(left),
            Framing::Chunked => Reading::ChunkSize,
        };
        let give_back = Some(give_back);
        let body =
            Incoming { reader: Some(reader), reading, give_back, go_on: None, clock, idle, timer: None, metrics };
        (body, given_back)
    }

    /// Is told when the body is first asked for.
    pub fn on_first_look(&mut self) -> oneshot::Receiver<()> {
        let (go_on, told) = oneshot::channel();
        self.go_on = Some(go_on);
        told
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes>>> {
        if let Some(go_on) = self.go_on.take() {
            // Nobody listens any more when the answer has begun.
            let _ = go_on.send(());
        }
        loop {
            let reader = self.reader.as_mut().expect("the reader is there until the drop");
            match step(&mut self.reading, &mut reader.arrived) {
                Step::Data(data) => {
                    self.timer = None;
                    self.metrics.received(data.len() as u64);
                    return Poll::Ready(Some(Ok(data)));
                }
                Step::End => return Poll::Ready(None),
                Step::Broken => return Poll::Ready(Some(Err(broken()))),
                Step::More => match reader.poll_fill(cx, self.reading.room()) {
                    Poll::Ready(Ok(0)) => self.reading = Reading::Broken,
                    Poll::Ready(Ok(_)) => self.timer = None,
                    Poll::Ready(Err(error)) => {
                        self.reading = Reading::Broken;
                        return Poll::Ready(Some(Err(broken().with_source(error))));
                    }
                    Poll::Pending => {
                        let timer = self.timer.get_or_insert_with(|| self.clock.sleep(self.idle));
                        ready!(timer.as_mut().poll(cx));
                        self.reading = Reading::Broken;
                        let late = format!("no more of the body came within {:?}", self.idle);
                        return Poll::Ready(Some(Err(Error::new(Kind::RequestTimeout, late))));
                    }
                },
            }
        }
    }
}

fn broken() -> Error {
    Error::bad_request("the body broke off or is badly chunked")
}

enum Step {
    Data(Bytes),
    More,
    End,
    Broken,
}

/// Takes the next piece of a body out of what arrived.
fn step(reading: &mut Reading, arrived: &mut BytesMut) -> Step {
    loop {
        *reading = match *reading {
            Reading::End => return Step::End,
            Reading::Broken => return Step::Broken,
            Reading::Length(left) | Reading::Chunk(left) => {
                if arrived.is_empty() {
                    return Step::More;
                }
                let length = usize::try_from(left).unwrap_or(usize::MAX).min(arrived.len());
                let left = left - length as u64;
                *reading = match (*reading, left) {
                    (Reading::Length(_), 0) => Reading::End,
                    (Reading::Length(_), left) => Reading::Length(left),
                    (_, 0) => Reading::ChunkEnd,
                    (_, left) => Reading::Chunk(left),
                };
                if length <= COPIED_BYTES_MAX {
                    let data = Bytes::copy_from_slice(&arrived[..length]);
                    arrived.advance(length);
                    return Step::Data(data);
                }
                return Step::Data(arrived.split_to(length).freeze());
            }
            Reading::ChunkSize | Reading::ChunkEnd | Reading::Trailers(_) => {
                let end = match memchr::memchr(b'\n', arrived) {
                    Some(end) if end < LINE_BYTES_MAX => end,
                    None if arrived.len() <= LINE_BYTES_MAX => return Step::More,
                    _ => {
                        *reading = Reading::Broken;
                        continue;
                    }
                };
                let line = &arrived[..=end];
                let then = match *reading {
                    Reading::ChunkEnd if line == b"\r\n" => Reading::ChunkSize,
                    Reading::Trailers(_) if line == b"\r\n" => Reading::End,
                    Reading::Trailers(left) => match left.checked_sub(line.len()) {
                        Some(left) if line.ends_with(b"\r\n") => Reading::Trailers(left),
                        _ => Reading::Broken,
                    },
                    Reading::ChunkSize => match chunk_size(line) {
                        Some(0) => Reading::Trailers(HEAD_BYTES_MAX),
                        Some(size) => Reading::Chunk(size),
                        None => Reading::Broken,
                    },
                    _ => Reading::Broken,
                };
                arrived.advance(end + 1);
                then
            }
        };
    }
}

/// The size in a chunk's first line, whatever extensions follow it.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let line = line.strip_suffix(b"\r\n")?;
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let rest = line[digits..].trim_ascii_start();
    if digits > 15 || !(rest.is_empty() || rest[0] == b';') || line.contains(&b'\r') {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(&line[..digits]).ok()?, 16).ok()
}

impl<R: AsyncRead + Unpin> futures_util::Stream for Incoming<R> {
    type Item = Result<Bytes>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes>>> {
        self.get_mut().poll_chunk(cx)
    }
}

impl<R> Drop for Incoming<R> {
    fn drop(&mut self) {
        if let (Some(reader), Some(give_back)) = (self.reader.take(), self.give_back.take()) {
            // Without a receiver the connection has ended.
            let _ = give_back.send(Returned { reader, ended: self.reading == Reading::End });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn room_that_a_body_or_a_long_head_took_is_given_back() {
        for (room, length) in [(BODY_READ_BYTES, 60_000), (HEAD_READ_BYTES, 60_000), (HEAD_READ_BYTES, 300)] {
            let sent = vec![b'x'; length];
            let mut reader = Reader::new(&sent[..]);
            while std::future::poll_fn(|cx| reader.poll_fill(cx, room)).await.unwrap() > 0 {}
            reader.arrived.advance(length);
            reader.shrink();
            reader.arrived.reserve(1);
            assert!(reader.arrived.capacity() <= 4 * HEAD_READ_BYTES, "{} are kept", reader.arrived.capacity());
        }
    }

    /// A body of bytes that arrive in pieces, and what is left behind its end; `None` when it is broken.
    fn read(framing: Reading, arriving: &[u8], piece: usize) -> Option<(Vec<u8>, Vec<u8>)> {
        let (mut reading, mut arrived, mut body) = (framing, BytesMut::new(), Vec::new());
        let mut pieces = arriving.chunks(piece);
        loop {
            match step(&mut reading, &mut arrived) {
                Step::Data(data) => body.extend_from_slice(&data),
                Step::End => {
                    arrived.extend_from_slice(&pieces.collect::<Vec<_>>().concat());
                    return Some((body, arrived.to_vec()));
                }
                Step::Broken => return None,
                Step::More => arrived.extend_from_slice(pieces.next()?),
            }
        }
    }

    fn check(framing: Reading, arriving: &str, expected: Option<(&str, &str)>) {
        for piece in [1, 2, 7, 100_000] {
            let read = read(framing, arriving.as_bytes(), piece);
            let expected = expected.map(|(body, rest)| (body.as_bytes().to_vec(), rest.as_bytes().to_vec()));
            assert_eq!(read, expected, "{arriving:?} in pieces of {piece}");
        }
    }

    #[test]
    fn a_body_ends_where_its_length_or_its_last_chunk_says() {
        check(Reading::Length(5), "GET \nGET / ", Some(("GET \n", "GET / ")));
        check(Reading::Length(5), "GET", None);
        check(
            Reading::ChunkSize,
            "3;x=y\r\na\nb\r\n00A \r\n0123456789\r\n0\r\nT: v\r\n\r\nGET",
            Some(("a\nb0123456789", "GET")),
        );
        check(Reading::ChunkSize, "0\r\n\r\n", Some(("", "")));
        let long = "x".repeat(20_000);
        check(Reading::ChunkSize, &format!("4e20\r\n{long}\r\n0\r\n\r\nG"), Some((&long, "G")));
    }

    #[test]
    fn chunks_that_are_not_plain_break_the_body() {
        for line in ["0000000000000001\r", "x\r", "1", "-1\r", "1 2\r", "1\r\r", "\r"] {
            check(Reading::ChunkSize, &format!("{line}\na\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n"), None);
        }
        check(Reading::ChunkSize, "1\r\nab\r\n0\r\n\r\n", None);
        check(Reading::ChunkSize, "1\r\na\n0\r\n\r\n", None);
        check(Reading::ChunkSize, &format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(2 * LINE_BYTES_MAX)), None);
        check(Reading::ChunkSize, &format!("0\r\n{}\r\n", "t: v\r\n".repeat(HEAD_BYTES_MAX)), None);
    }

    proptest::proptest! {
        #[test]
        fn a_chunked_body_is_read_back(pieces: Vec<Vec<u8>>, cut in 1usize..50) {
            let mut sent = Vec::new();
            for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
                sent.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                sent.extend_from_slice(piece);
                sent.extend_from_slice(b"\r\n");
            }
            sent.extend_from_slice(b"0\r\n\r\nrest");
            let (body, rest) = read(Reading::ChunkSize, &sent, cut).unwrap();
            proptest::prop_assert_eq!(body, pieces.concat());
            proptest::prop_assert_eq!(rest, b"rest".to_vec());
        }

        #[test]
        fn no_bytes_make_it_panic_or_give_more_than_came(bytes: Vec<u8>, cut in 1usize..50) {
            if let Some((body, rest)) = read(Reading::ChunkSize, &bytes, cut) {
                proptest::prop_assert!(body.len() + rest.len() <= bytes.len());
            }
        }
    }
}
