//! A connection as its client sees it: bytes in, bytes out, on a clock that the test moves.

use bytes::Bytes;
use futures_util::stream;
use http::{StatusCode, header};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;
use crate::{
    api::{
        body::Request,
        server::{self, ServerContext, ServerLimits},
    },
    clock::ManualClock,
    error::Error,
    kv::{Value, ValueStream},
    metrics::{Door, Metrics},
};

const DEADLINES: Deadlines =
    Deadlines { head: Duration::from_secs(1), body_idle: Duration::from_secs(2), idle: Duration::from_secs(5) };

/// Answers with what it was asked, or as the path says.
#[derive(Default)]
struct Echo {
    /// Requests to `/wait` wait for it.
    go: Arc<tokio::sync::Notify>,
}

impl Handler for Echo {
    async fn handle(&self, request: Request) -> Response {
        let (head, body) = request.into_parts();
        let pieces = |pieces: &'static [Result<&'static [u8], ()>]| {
            let pieces = pieces.iter().map(|piece| match piece {
                Ok(piece) => Ok(Bytes::from_static(piece)),
                Err(()) => Err(Error::unavailable("told to break")),
            });
            stream::iter(pieces).boxed()
        };
        let streamed = |length, chunks| Response::new(ResponseBody::Stream { length, chunks });
        match head.uri.path() {
            "/ignore" => Response::new(ResponseBody::Whole(Bytes::from_static(b"ignored"))),
            "/wait" => {
                self.go.notified().await;
                Response::new(ResponseBody::Whole(Bytes::from_static(b"waited")))
            }
            "/chunked" => streamed(None, pieces(&[Ok(b"one"), Ok(b""), Ok(b"two")])),
            "/streamed" => streamed(Some(6), pieces(&[Ok(b"one"), Ok(b"two")])),
            "/short" => streamed(Some(6), pieces(&[Ok(b"one")])),
            "/long" => streamed(Some(5), pieces(&[Ok(b"one"), Ok(b"two")])),
            "/broken" => streamed(None, pieces(&[Ok(b"one"), Err(())])),
            "/unchanged" => {
                let mut response = Response::new(ResponseBody::empty());
                *response.status_mut() = StatusCode::NOT_MODIFIED;
                response
            }
            path => {
                let body = Value::Stream(ValueStream { length: None, chunks: body }).collect(1 << 20).await;
                let text = match body {
                    Ok(body) => format!("{} {path} {}", head.method, String::from_utf8_lossy(&body)),
                    Err(error) => format!("{} {path} failed: {}", head.method, error.message),
                };
                let mut response = Response::new(ResponseBody::Whole(text.into()));
                response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain"));
                response
            }
        }
    }
}

struct World {
    clock: Arc<ManualClock>,
    context: ServerContext,
    go: Arc<tokio::sync::Notify>,
    client: DuplexStream,
    serving: tokio::task::JoinHandle<io::Result<()>>,
}

/// Sleeps as the real clock does: a task that has used its turn up is told that it is not over yet.
struct Cooperative(Arc<ManualClock>);

impl Clock for Cooperative {
    fn now(&self) -> Moment {
        self.0.now()
    }

    fn wall_millis(&self) -> u64 {
        self.0.wall_millis()
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        Box::pin(tokio::task::coop::cooperative(self.0.sleep(duration)))
    }

    fn random(&self) -> u64 {
        self.0.random()
    }
}

fn connect() -> World {
    let clock = ManualClock::shared();
    let limits = ServerLimits { connections: 1, requests_in_flight: 1, deadlines: DEADLINES };
    let context = ServerContext::new(Arc::new(Cooperative(Arc::clone(&clock))), limits);
    let (client, side) = tokio::io::duplex(1 << 20);
    let echo = Echo::default();
    let go = Arc::clone(&echo.go);
    let serving = {
        let context = context.clone();
        tokio::spawn(async move {
            let (read_half, write_half) = tokio::io::split(side);
            let metrics = Metrics::default().door(Door::Binding, "here");
            server::serve(read_half, write_half, echo, "here", &context, metrics).await
        })
    };
    World { clock, context, go, client, serving }
}

impl World {
    async fn send(&mut self, bytes: &str) {
        self.client.write_all(bytes.as_bytes()).await.unwrap();
        self.settle().await;
    }

    async fn settle(&self) {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    async fn pass(&self, duration: Duration) {
        self.settle().await;
        self.clock.advance(duration);
        self.settle().await;
    }

    /// All that is sent until the connection ends, without the date.
    async fn rest(mut self) -> String {
        let mut rest = Vec::new();
        self.client.read_to_end(&mut rest).await.unwrap();
        without_date(&rest)
    }

    /// What has been sent by now.
    async fn sent(&mut self) -> String {
        self.settle().await;
        let mut bytes = vec![0; 1 << 16];
        let read = futures_util::FutureExt::now_or_never(self.client.read(&mut bytes));
        without_date(&bytes[..read.unwrap_or(Ok(0)).unwrap()])
    }
}

fn without_date(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.split_inclusive("\r\n").filter(|line| !line.starts_with("date: ")).collect()
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// What is answered to all of this, sent in pieces; the last request has to close the connection.
async fn answers(requests: &str, piece: usize) -> String {
    let mut world = connect();
    for piece in requests.as_bytes().chunks(piece) {
        world.client.write_all(piece).await.unwrap();
        tokio::task::yield_now().await;
    }
    world.settle().await;
    // The end of lingering.
    world.pass(LINGER).await;
    world.rest().await
}

const CLOSE: &str = "GET /end HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

#[tokio::test]
async fn requests_are_answered_one_behind_the_other_however_they_are_cut() {
    let requests = "\r\nGET /a HTTP/1.1\r\nHost: a\r\n\r\nPUT /b HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\nGET \n\r\n\r\
        DELETE /c HTTP/1.1\r\nHost: a\r\n\r\nPUT /d HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\na\nb\r\n0\r\nT: v\r\n\r\n";
    let ended = ok("GET /end ").replace("content-length: 9\r\n", "content-length: 9\r\nconnection: close\r\n");
    let expected = [ok("GET /a "), ok("PUT /b GET \n\r\n\r"), ok("DELETE /c "), ok("PUT /d a\nb"), ended].concat();
    for piece in [1, 7, 4096] {
        assert_eq!(answers(&format!("{requests}{CLOSE}"), piece).await, expected);
    }
}

#[tokio::test]
async fn what_is_refused_ends_the_connection_whatever_came_before_it_or_comes_behind() {
    let refused = |status: &str| format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    for (request, status) in [
        (
            "PUT /k HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "400 Bad Request",
        ),
        ("GET / HTTP/1.1\nHost: a\r\n\r\n", "400 Bad Request"),
        ("GET / HTTP/1.1\r\n\r\n", "400 Bad Request"),
        ("nonsense\r\n\r\n", "400 Bad Request"),
        (&format!("GET /{} HTTP/1.1\r\n", "x".repeat(100_000)), "414 URI Too Long"),
    ] {
        for piece in [3, 4096] {
            assert_eq!(answers(&format!("{request}{CLOSE}"), piece).await, refused(status), "{request}");
            let second = format!("PUT /k HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx{request}{CLOSE}");
            assert_eq!(answers(&second, piece).await, ok("PUT /k x") + &refused(status), "{request}");
        }
    }
}

#[tokio::test]
async fn a_body_that_is_badly_chunked_fails_and_ends_the_connection() {
    let request = "PUT /k HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx\r\na\r\n0\r\n\r\n";
    let answer = answers(&format!("{request}{CLOSE}"), 4096).await;
    assert!(answer.contains("\r\nconnection: close\r\n") && answer.contains("PUT /k failed: "), "{answer}");
    assert!(!answer.contains("/end"), "{answer}");
}

#[tokio::test]
async fn a_body_that_nobody_read_ends_the_connection_and_the_answer_says_so() {
    let request = "PUT /ignore HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
    let expected = "HTTP/1.1 200 OK\r\ncontent-length: 7\r\nconnection: close\r\n\r\nignored";
    assert_eq!(answers(&format!("{request}{CLOSE}"), 4096).await, expected);
}

#[tokio::test]
async fn who_waits_to_go_on_is_told_so_when_the_body_is_wanted_and_only_then() {
    let mut world = connect();
    world.send("PUT /k HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n").await;
    assert_eq!(world.sent().await, "HTTP/1.1 100 Continue\r\n\r\n");
    world.send("hello").await;
    assert_eq!(world.sent().await, ok("PUT /k hello"));
    world.send("PUT /ignore HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n").await;
    assert_eq!(world.sent().await, "HTTP/1.1 200 OK\r\ncontent-length: 7\r\nconnection: close\r\n\r\nignored");
}

#[tokio::test]
async fn bodies_are_framed_as_their_length_and_the_clients_version_allow() {
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let close = "connection: close\r\n\r\n";
    let chunked = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n{close}3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n");
    assert_eq!(answers(&get("/chunked"), 4096).await, chunked);
    assert_eq!(
        answers(&get("/streamed"), 4096).await,
        format!("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n{close}onetwo")
    );
    assert_eq!(answers(&get("/unchanged"), 4096).await, format!("HTTP/1.1 304 Not Modified\r\n{close}"));
    let old = "GET /chunked HTTP/1.0\r\nConnection: keep-alive\r\n\r\n";
    assert_eq!(answers(old, 4096).await, format!("HTTP/1.1 200 OK\r\n{close}onetwo"));
    let kept = format!("HEAD /streamed HTTP/1.0\r\nConnection: keep-alive\r\n\r\n{CLOSE}");
    let answer = answers(&kept, 4096).await;
    assert!(
        answer.starts_with("HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: keep-alive\r\n\r\nHTTP/1.1 200"),
        "{answer}"
    );
}

#[tokio::test]
async fn an_answer_that_breaks_never_looks_whole() {
    for (path, expected) in [("/short", "one"), ("/long", "one"), ("/broken", "3\r\none\r\n")] {
        let mut world = connect();
        world.send(&format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n{CLOSE}")).await;
        let serving = &mut world.serving;
        assert!(serving.await.unwrap().is_err());
        let rest = world.rest().await;
        let (_, body) = rest.split_once("\r\n\r\n").unwrap();
        assert_eq!(body, expected, "{path}");
    }
}

#[tokio::test]
async fn a_head_has_its_deadline_however_its_bytes_come() {
    let mut world = connect();
    for _ in 0..3 {
        world.send("GET / HT").await;
        world.pass(DEADLINES.head / 4).await;
    }
    assert_eq!(world.sent().await, "");
    world.pass(DEADLINES.head / 4).await;
    assert!(world.sent().await.starts_with("HTTP/1.1 408 Request Timeout\r\n"));
    world.pass(LINGER).await;
    assert!(world.serving.is_finished());
}

#[tokio::test]
async fn a_body_that_stalls_fails() {
    let mut world = connect();
    world.send("PUT /k HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe").await;
    world.pass(DEADLINES.body_idle - Duration::from_millis(1)).await;
    world.send("l").await;
    world.pass(DEADLINES.body_idle - Duration::from_millis(1)).await;
    assert_eq!(world.sent().await, "");
    world.pass(Duration::from_millis(1)).await;
    assert!(world.sent().await.contains("PUT /k failed: no more of the body came within 2s"));
}

#[tokio::test]
async fn an_idle_connection_ends_but_not_while_a_request_is_answered() {
    let mut world = connect();
    world.send("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n").await;
    world.pass(3 * DEADLINES.idle).await;
    world.go.notify_one();
    assert!(world.sent().await.ends_with("waited"));
    for _ in 0..3 {
        world.pass(DEADLINES.idle - Duration::from_millis(1)).await;
        world.send("GET /a HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(world.sent().await, ok("GET /a "));
    }
    world.pass(DEADLINES.idle - Duration::from_millis(1)).await;
    assert!(!world.serving.is_finished());
    world.pass(Duration::from_millis(1)).await;
    assert!(world.serving.is_finished());
}

#[tokio::test]
async fn a_connection_that_used_its_turns_up_is_idle_like_any_other() {
    // Each task may do so much before others have their turn; then timers say "pending" without having looked.
    for requests in [3, 7, 15, 31] {
        let mut world = connect();
        // As many as are read at once.
        let first = "GET /a HTTP/1.1\r\nHost: a\r\n\r\n".repeat(requests - 1);
        let last = "GET /a HTTP/1.1\r\nHost: a\r\nx: \r\n\r\n";
        let filling = "x".repeat(4096 - first.len() - last.len());
        let block = first + &last.replace("x: ", &format!("x: {filling}"));
        assert_eq!(block.len(), 4096);
        world.client.write_all(block.repeat(9).as_bytes()).await.unwrap();
        for _ in 0..9 * requests {
            world.settle().await;
            if !world.sent().await.is_empty() && world.client.read(&mut []).now_or_never().is_none() {
                break;
            }
        }
        world.pass(DEADLINES.idle).await;
        world.pass(DEADLINES.idle).await;
        assert!(world.serving.is_finished(), "after 9 x {requests} requests");
    }
}

#[tokio::test]
async fn empty_lines_behind_a_request_begin_no_other() {
    let mut world = connect();
    world.send("GET /a HTTP/1.1\r\nHost: a\r\n\r\n\r\n\r\n").await;
    assert_eq!(world.sent().await, ok("GET /a "));
    world.pass(DEADLINES.head).await;
    assert_eq!(world.sent().await, "");
    world.send("GET /b HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(world.sent().await, ok("GET /b "));
    world.pass(DEADLINES.idle).await;
    assert!(world.serving.is_finished());
}

#[tokio::test]
async fn a_connection_ends_when_the_process_does_after_the_request_under_way() {
    let mut idle = connect();
    idle.send("GET /a HTTP/1.1\r\nHost: a\r\n\r\n").await;
    idle.context.stop();
    idle.settle().await;
    assert!(idle.serving.is_finished());
    let mut busy = connect();
    busy.send("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n").await;
    busy.context.stop();
    busy.settle().await;
    assert!(!busy.serving.is_finished());
    busy.go.notify_one();
    let answer = busy.sent().await;
    assert!(answer.ends_with("waited") && answer.contains("\r\nconnection: close\r\n"), "{answer}");
    busy.pass(LINGER).await;
    assert!(busy.serving.is_finished());
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_a_connection_panic(bytes: Vec<u8>, piece in 1usize..50) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut world = connect();
            for piece in bytes.chunks(piece) {
                // It may have ended already.
                let _ = world.client.write_all(piece).await;
                tokio::task::yield_now().await;
            }
            world.client.shutdown().await.unwrap();
            world.pass(LINGER).await;
            world.pass(DEADLINES.idle).await;
            let _ = world.serving.await.expect("no panic");
        });
    }
}
