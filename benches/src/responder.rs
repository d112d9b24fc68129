//! The least that a server can be: what any other one is measured against. Each answers every request with the same bytes.
//!
//! `epoll` is one thread, one loop, a read and a write for each request, and no look at what was asked but for where it ends. `hyper` is the same on the HTTP
//! implementation that the product stands on.

use std::{
    collections::HashMap,
    convert::Infallible,
    io::{self, Read, Write},
    net::SocketAddr,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use mio::{
    Events, Interest, Poll, Token,
    net::{TcpListener, TcpStream},
};

use crate::ask::Values;

#[derive(Clone, Copy, clap::ValueEnum)]
pub enum Kind {
    Epoll,
    Hyper,
}

/// Says its address on a line, and answers until it is ended.
pub fn run(kind: Kind, length: usize) {
    let body = Values::new(length).of(0);
    match kind {
        Kind::Epoll => epoll(body).expect("the system polls"),
        Kind::Hyper => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime is made").block_on(hyper(body.into()));
        }
    }
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

const LISTENER: Token = Token(usize::MAX);

/// What has come of a request, and what is left of an answer.
struct Connection {
    stream: TcpStream,
    request: Vec<u8>,
    left: usize,
}

fn epoll(body: Vec<u8>) -> io::Result<()> {
    let mut listener = TcpListener::bind(loopback())?;
    println!("{}", listener.local_addr()?);
    let mut answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len()).into_bytes();
    answer.extend(body);
    let mut poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut connections: HashMap<Token, Connection> = HashMap::new();
    let mut events = Events::with_capacity(1024);
    let mut buffer = vec![0; 16 * 1024];
    let mut next = 0;
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            if event.token() == LISTENER {
                while let Ok((mut stream, _)) = listener.accept() {
                    stream.set_nodelay(true)?;
                    let token = Token(next);
                    next += 1;
                    poll.registry().register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
                    connections.insert(token, Connection { stream, request: Vec::new(), left: 0 });
                }
                continue;
            }
            let Some(connection) = connections.get_mut(&event.token()) else { continue };
            if connection.proceed(&answer, &mut buffer).is_err() {
                connections.remove(&event.token());
            }
        }
    }
}

impl Connection {
    fn proceed(&mut self, answer: &[u8], buffer: &mut [u8]) -> io::Result<()> {
        self.send(answer)?;
        loop {
            match self.stream.read(buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) if self.request.is_empty() && buffer[..length].ends_with(b"\r\n\r\n") => {}
                Ok(length) => {
                    self.request.extend_from_slice(&buffer[..length]);
                    if !self.request.ends_with(b"\r\n\r\n") {
                        continue;
                    }
                    self.request.clear();
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            }
            self.left = answer.len();
            self.send(answer)?;
            // What is not there yet comes with an event of its own.
            return Ok(());
        }
    }

    fn send(&mut self, answer: &[u8]) -> io::Result<()> {
        while self.left > 0 {
            match self.stream.write(&answer[answer.len() - self.left..]) {
                Ok(length) => self.left -= length,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

async fn hyper(body: Bytes) {
    let listener = tokio::net::TcpListener::bind(loopback()).await.expect("a port is free");
    println!("{}", listener.local_addr().expect("a listener has an address"));
    loop {
        let (stream, _) = listener.accept().await.expect("a connection is accepted");
        stream.set_nodelay(true).expect("a socket takes an option");
        let body = body.clone();
        tokio::spawn(async move {
            let answer = service_fn(move |_: Request<Incoming>| {
                std::future::ready(Ok::<_, Infallible>(Response::new(Full::new(body.clone()))))
            });
            // The load ends its connections when a round is over.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}
