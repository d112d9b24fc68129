//! What a hot read on the binding port costs, beside a responder that does nothing but answer as many bytes.
//!
//! The server has core 0, the load core 1, and the two servers take turns, so that what else the machine does falls on both.

use std::{convert::Infallible, net::SocketAddr, process::Command, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use kvasar_benches::{
    client::Client,
    process::{Server, core_time, keep_to_core, median},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::Instant,
};

const SERVER_CORE: usize = 0;
const LOAD_CORE: usize = 1;
const CONNECTIONS: usize = 32;
const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_secs(5);
const VALUE_BYTES: usize = 1024;
const SECRET: &str = "a-secret-of-the-cluster-for-measurements";

fn main() {
    if std::env::args().nth(1).as_deref() == Some("responder") {
        return on_runtime(respond());
    }
    keep_to_core(LOAD_CORE);
    on_runtime(measure());
}

/// The runtime that the product uses, with a thread for each core that the process may use.
fn on_runtime(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.expect("a runtime is made").block_on(work);
}

/// Whom to ask for what.
struct Target {
    name: &'static str,
    address: SocketAddr,
    id: u32,
    request: Vec<u8>,
    /// What each head has to have in it.
    expected: &'static str,
}

/// What one round came to.
struct Round {
    per_second: f64,
    micros_per_request: f64,
}

async fn measure() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = format!(
        "[cluster]\nsecret = \"{SECRET}\"\n[origin]\ndata = \"data\"\n\
         [[tier]]\nrole = \"edge\"\nname = \"edge\"\nupstream = \"origin\"\nlisten = \"127.0.0.1:0\"\n"
    );
    let config_file = folder.path().join("server.toml");
    std::fs::write(&config_file, config).expect("a configuration is written");
    let config_file = config_file.to_str().expect("a path in UTF-8");
    let server = Server::start(folder.path(), Some(SERVER_CORE), &["serve", "--config", config_file]);
    let kvasar = kvasar(&server).await;

    let this = std::env::current_exe().expect("this program is a file");
    let mut responder = Command::new("taskset");
    responder.args(["-c", &SERVER_CORE.to_string()]).arg(this).arg("responder");
    let mut responder = responder.stdout(std::process::Stdio::piped()).spawn().expect("the responder runs");
    let minimal = minimal(&mut responder);

    let targets = [kvasar, minimal];
    let mut rounds: [Vec<Round>; 2] = Default::default();
    for target in &targets {
        round(target, Duration::from_secs(1)).await;
    }
    for _ in 0..ROUNDS {
        for (target, rounds) in targets.iter().zip(&mut rounds) {
            rounds.push(round(target, ROUND).await);
        }
    }
    responder.kill().and_then(|()| responder.wait()).expect("the responder is ended");
    print(&targets, &rounds);
}

/// A value of 1 KiB at the edge, and the request for it with a token, as a Worker's runtime sends it.
async fn kvasar(server: &Server) -> Target {
    let listen = server.text("/tiers/0/listen");
    let control = Client::new(vec![("authorization", format!("Bearer {SECRET}"))]);
    let change = serde_json::json!({
        "account": server.text("/accounts/0/account_id"), "change": "create-namespace", "title": "hot", "jurisdiction": null, "mode": null
    });
    let made = control.ask(Method::POST, &format!("http://{listen}/kvasar/control"), change.to_string()).await;
    let made: serde_json::Value = serde_json::from_slice(&made).expect("the answer is JSON");
    let namespace = made["controlled"]["namespace"]["id"].as_str().expect("a namespace has an id");
    let token = server.text("/accounts/0/token");
    let own = vec![("authorization", format!("Bearer {token}")), ("kvasar-namespace", namespace.to_owned())];
    let url = format!("http://{listen}/hot?urlencoded=true");
    Client::new(own).ask(Method::PUT, &url, vec![b'x'; VALUE_BYTES]).await;
    let request = format!(
        "GET /hot?urlencoded=true HTTP/1.1\r\nHost: {listen}\r\nAuthorization: Bearer {token}\r\nkvasar-namespace: {namespace}\r\n\r\n"
    );
    let address = listen.parse().expect("a ready file has addresses");
    Target {
        name: "kvasar, edge hit",
        address,
        id: server.id(),
        request: request.into(),
        expected: "cf-cache-status: HIT",
    }
}

fn minimal(responder: &mut std::process::Child) -> Target {
    let mut line = String::new();
    let output = responder.stdout.take().expect("its output is piped");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line)
        .expect("the responder says its address");
    let address: SocketAddr = line.trim().parse().expect("the responder says its address");
    let request = format!("GET /hot?urlencoded=true HTTP/1.1\r\nHost: {address}\r\n\r\n");
    // taskset becomes what it runs, so the id is the responder's.
    Target { name: "minimal hyper", address, id: responder.id(), request: request.into(), expected: "HTTP/1.1 200" }
}

async fn respond() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    println!("{}", listener.local_addr().expect("a listener has an address"));
    let body = Bytes::from(vec![b'x'; VALUE_BYTES]);
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

async fn round(target: &Target, length: Duration) -> Round {
    let start = Instant::now();
    let (before, until) = (core_time(target.id), start + length);
    let connections: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let (address, request, expected) = (target.address, target.request.clone(), target.expected);
            tokio::spawn(async move { connection(address, &request, expected, until).await })
        })
        .collect();
    let mut requests = 0;
    for connection in connections {
        requests += connection.await.expect("a connection sees only right answers");
    }
    let (took, busy) = (start.elapsed(), core_time(target.id) - before);
    Round {
        per_second: requests as f64 / took.as_secs_f64(),
        micros_per_request: busy.as_micros() as f64 / requests as f64,
    }
}

/// One request after the other on one connection; answers how many.
async fn connection(address: SocketAddr, request: &[u8], expected: &str, until: Instant) -> u64 {
    let mut stream = TcpStream::connect(address).await.expect("the server accepts");
    stream.set_nodelay(true).expect("a socket takes an option");
    let mut buffer = vec![0; 8192];
    let mut requests = 0;
    while Instant::now() < until {
        stream.write_all(request).await.expect("the server reads");
        let mut filled = 0;
        let end = loop {
            let read = stream.read(&mut buffer[filled..]).await.expect("the server answers");
            assert_ne!(read, 0, "the server closed the connection after {requests} requests");
            filled += read;
            if let Some(end) = buffer[..filled].windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
        };
        // Looking closer at each answer would measure the load: what an answer is shows at the first and then now and again.
        if requests % 1024 == 0 {
            let head = std::str::from_utf8(&buffer[..end]).expect("a head is text");
            assert!(head.contains(expected) && head.contains(&format!("content-length: {VALUE_BYTES}")), "{head}");
        }
        assert!(buffer.starts_with(b"HTTP/1.1 200"));
        while filled < end + VALUE_BYTES {
            let read = stream.read(&mut buffer[filled..]).await.expect("the server answers");
            assert_ne!(read, 0, "the server closed the connection in an answer");
            filled += read;
        }
        assert_eq!(filled, end + VALUE_BYTES);
        requests += 1;
    }
    requests
}

fn print(targets: &[Target; 2], rounds: &[Vec<Round>; 2]) {
    println!("| | requests/s | CPU us per request | each round, us |\n|---|---|---|---|");
    let mut medians = Vec::new();
    for (target, rounds) in targets.iter().zip(rounds) {
        let micros: Vec<f64> = rounds.iter().map(|round| round.micros_per_request).collect();
        let per_second = median(&rounds.iter().map(|round| round.per_second).collect::<Vec<_>>());
        let each: Vec<String> = micros.iter().map(|micros| format!("{micros:.1}")).collect();
        println!("| {} | {per_second:.0} | {:.1} | {} |", target.name, median(&micros), each.join(" "));
        medians.push((per_second, median(&micros)));
    }
    let [(kvasar, kvasar_micros), (minimal, minimal_micros)] = medians[..] else { panic!("there are two targets") };
    println!(
        "\nkvasar beside minimal: {:.2} of the requests/s, {:.2} times the CPU",
        kvasar / minimal,
        kvasar_micros / minimal_micros
    );
}
