//! One connection on which a request follows the other: little work for each, so that what is measured is the server.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

pub struct Line {
    stream: TcpStream,
    /// What goes with each request, as lines.
    headers: String,
    buffer: Vec<u8>,
}

/// What a server answered.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    pub status: u16,
    /// Milliseconds.
    pub age: Option<u64>,
    pub version: Option<u64>,
    /// How it was come by.
    pub cache: String,
    pub body: Vec<u8>,
}

/// Longer than any server here takes to answer or to give up.
const PATIENCE: Duration = Duration::from_secs(30);

impl Line {
    pub async fn connect(to: SocketAddr, headers: &str) -> io::Result<Line> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(Line { stream, headers: format!("Host: {to}\r\n{headers}"), buffer: Vec::new() })
    }

    /// An answer, or an error when the server went away or says nothing that can be read.
    pub async fn ask(&mut self, method: &str, path: &str, headers: &str, body: &[u8]) -> io::Result<Answer> {
        let length = if body.is_empty() && method == "GET" {
            String::new()
        } else {
            format!("Content-Length: {}\r\n", body.len())
        };
        let mut request = format!("{method} {path} HTTP/1.1\r\n{}{headers}{length}\r\n", self.headers).into_bytes();
        request.extend_from_slice(body);
        let exchange = async {
            self.stream.write_all(&request).await?;
            self.answer().await
        };
        tokio::time::timeout(PATIENCE, exchange).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    async fn answer(&mut self) -> io::Result<Answer> {
        self.buffer.clear();
        let end = loop {
            if let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            self.more().await?;
        };
        let unreadable = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let head = std::str::from_utf8(&self.buffer[..end]).map_err(|_| unreadable("a head that is no text"))?;
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
        let mut answer = Answer { status: status.ok_or_else(|| unreadable(head))?, ..Answer::default() };
        let mut length = None;
        for line in lines {
            let Some((name, value)) = line.split_once(": ") else { continue };
            match name {
                "kvasar-age-ms" => answer.age = value.parse().ok(),
                "kvasar-version" => answer.version = u64::from_str_radix(value, 16).ok(),
                "cf-cache-status" => answer.cache = value.to_owned(),
                "content-length" => length = value.parse::<usize>().ok(),
                _ => {}
            }
        }
        let length = length.ok_or_else(|| unreadable("an answer without its length"))?;
        while self.buffer.len() < end + length {
            self.more().await?;
        }
        answer.body = self.buffer[end..end + length].to_vec();
        Ok(answer)
    }

    async fn more(&mut self) -> io::Result<()> {
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}
