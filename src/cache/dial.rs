//! Connections to upstream, near or, for a world on one machine, as far away as it is told to be.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::Uri;
use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf},
    net::TcpStream,
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

use crate::clock::{self, Clock, Moment};

/// Dials one address, whatever the request says.
#[derive(Clone)]
pub struct Dialler {
    address: Arc<str>,
    /// Emulated one-way distance: everything arrives so much later, in both directions.
    delay: Duration,
    deadline: Duration,
    clock: Arc<dyn Clock>,
}

impl Dialler {
    pub fn new(address: &str, delay: Duration, deadline: Duration, clock: Arc<dyn Clock>) -> Dialler {
        Dialler { address: address.into(), delay, deadline, clock }
    }

    async fn dial(self) -> io::Result<Link> {
        let connecting = clock::within(&*self.clock, self.deadline, TcpStream::connect(&*self.address)).await;
        let stream = connecting.map_err(|_| {
            io::Error::new(
                io::ErrorKind::TimedOut,
                format!("connecting to {} took over {:?}", self.address, self.deadline),
            )
        })??;
        stream.set_nodelay(true)?;
        if self.delay.is_zero() {
            return Ok(Link::Near(stream));
        }
        // The greeting of the transport travels, too.
        self.clock.sleep(self.delay * 2).await;
        Ok(Link::Far(delayed(stream, self.delay, self.clock)))
    }
}

impl tower_service::Service<Uri> for Dialler {
    type Response = TokioIo<Link>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Link>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let dialler = self.clone();
        Box::pin(async move { dialler.dial().await.map(TokioIo::new) })
    }
}

/// A connection to upstream.
pub enum Link {
    Near(TcpStream),
    Far(DuplexStream),
}

impl Connection for Link {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Link {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Link::Near(stream) => Pin::new(stream).poll_read(cx, buf),
            Link::Far(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Link {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Link::Near(stream) => Pin::new(stream).poll_write(cx, bytes),
            Link::Far(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Link::Near(stream) => Pin::new(stream).poll_write_vectored(cx, bytes),
            Link::Far(stream) => Pin::new(stream).poll_write_vectored(cx, bytes),
        }
    }

    fn is_write_vectored(&self) -> bool {
        matches!(self, Link::Near(_))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Link::Near(stream) => Pin::new(stream).poll_flush(cx),
            Link::Far(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Link::Near(stream) => Pin::new(stream).poll_shutdown(cx),
            Link::Far(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Bytes under way at once, each direction: what the emulated line holds.
const LINE_PIECES: usize = 256;
const PIECE_BYTES: usize = 16 * 1024;

/// The near end of a line whose far end is the stream.
fn delayed(stream: TcpStream, delay: Duration, clock: Arc<dyn Clock>) -> DuplexStream {
    let (near, inner) = tokio::io::duplex(PIECE_BYTES * 4);
    let (from_inner, to_inner) = tokio::io::split(inner);
    let (from_stream, to_stream) = stream.into_split();
    // When the near end is let go, nobody is left to read what comes.
    let let_go = CancellationToken::new();
    let (sender, receiver) = mpsc::channel(LINE_PIECES);
    let up = enter(Box::new(from_inner), sender, delay, Arc::clone(&clock));
    let ended = let_go.clone().drop_guard();
    tokio::spawn(async move {
        let _ended = ended;
        up.await;
    });
    tokio::spawn(leave(receiver, Box::new(to_stream), Arc::clone(&clock)));
    let (sender, receiver) = mpsc::channel(LINE_PIECES);
    let down = enter(Box::new(from_stream), sender, delay, Arc::clone(&clock));
    tokio::spawn(let_go.run_until_cancelled_owned(down));
    tokio::spawn(leave(receiver, Box::new(to_inner), clock));
    near
}

/// Puts what arrives on the line, with the moment at which it may leave it. The line's end follows the last piece.
async fn enter(
    mut from: Box<dyn AsyncRead + Send + Unpin>,
    line: mpsc::Sender<(Moment, Bytes)>,
    delay: Duration,
    clock: Arc<dyn Clock>,
) {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(PIECE_BYTES);
        // A broken connection ends the line as a closed one does: the other end sees it break off.
        let ended = tokio::select! {
            read = from.read_buf(&mut buffer) => !matches!(read, Ok(1..)),
            () = line.closed() => true,
        };
        if ended || line.send((clock.now() + delay, buffer.split().freeze())).await.is_err() {
            return;
        }
    }
}

async fn leave(
    mut line: mpsc::Receiver<(Moment, Bytes)>,
    mut to: Box<dyn AsyncWrite + Send + Unpin>,
    clock: Arc<dyn Clock>,
) {
    while let Some((at, piece)) = line.recv().await {
        let wait = at.since(clock.now());
        if !wait.is_zero() {
            clock.sleep(wait).await;
        }
        if to.write_all(&piece).await.is_err() {
            return;
        }
    }
    // Whoever reads at the far end has seen all there is; that closing fails tells nobody anything more.
    let _ = to.shutdown().await;
}
