//! Real processes of the binary, and requests to them over real sockets.
//!
//! A server listens on ports that the system hands out and says in its ready file which. Whoever drops a [`Server`] ends its process, also
//! when a test fails halfway, and a failure shows the server's log. Waiting is polling with a deadline; nothing else sleeps.

#![allow(dead_code, reason = "each test file takes of it what it needs")]

pub(crate) mod chain;

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

/// Longest wait for a process to start, to end, or to become what is waited for. Generous: the machine may be busy with other tests.
const PATIENCE: Duration = Duration::from_secs(20);

/// A port that the system gives to nobody else, also while the server that it is for is down: it is bound here too, and not listened on.
pub(crate) struct Port {
    _socket: tokio::net::TcpSocket,
    pub(crate) address: SocketAddr,
}

impl Port {
    pub(crate) fn reserve() -> Port {
        let reserve = || {
            let socket = tokio::net::TcpSocket::new_v4()?;
            socket.set_reuseaddr(true)?;
            socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
            let address = socket.local_addr()?;
            std::io::Result::Ok(Port { _socket: socket, address })
        };
        reserve().expect("a port is free")
    }
}

/// A `kvasar serve` at work.
pub(crate) struct Server {
    child: Child,
    log: PathBuf,
    /// What its ready file says.
    ready: Value,
}

impl Server {
    /// Runs `kvasar serve` with this configuration, which is written to `NAME.toml` in the folder, until it is ready.
    pub(crate) fn start(folder: &Path, name: &str, config: &str) -> Server {
        let path = |ending: &str| folder.join(format!("{name}.{ending}"));
        let (config_file, ready_file, log) = (path("toml"), path("ready.json"), path("log"));
        fs::write(&config_file, config).expect("a configuration is written");
        if ready_file.exists() {
            fs::remove_file(&ready_file).expect("an earlier run's ready file is removed");
        }
        let output = File::options().create(true).append(true).open(&log).expect("a log is opened");
        let child = Command::new(env!("CARGO_BIN_EXE_kvasar"))
            .args(["serve", "--config"])
            .arg(&config_file)
            .arg("--ready-file")
            .arg(&ready_file)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a file is shared"))
            .stderr(output)
            .spawn()
            .expect("the binary runs");
        let mut server = Server { child, log, ready: Value::Null };
        wait_until(&format!("{name} to be ready"), || {
            if let Some(status) = server.child.try_wait().expect("a child is asked how it is") {
                panic!("{name} ended with {status} instead of starting:\n{}", server.log());
            }
            ready_file.exists()
        });
        // It is moved into its place whole.
        let ready = fs::read(&ready_file).expect("a ready file is read");
        server.ready = serde_json::from_slice(&ready).expect("a ready file is JSON");
        server
    }

    fn address(&self, pointer: &str) -> SocketAddr {
        let text = self.ready.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let host = text.trim_start_matches("http://").split('/').next().unwrap_or_default();
        host.parse().unwrap_or_else(|e| panic!("{pointer} of {} is no address: {e}", self.ready))
    }

    pub(crate) fn admin(&self) -> SocketAddr {
        self.address("/admin")
    }

    pub(crate) fn rest(&self) -> SocketAddr {
        self.address("/rest")
    }

    /// The binding port of its only tier that listens.
    pub(crate) fn tier(&self) -> SocketAddr {
        let tiers = self.ready["tiers"].as_array().expect("a ready file lists tiers");
        let listening: Vec<usize> = (0..tiers.len()).filter(|i| tiers[*i]["listen"].is_string()).collect();
        assert_eq!(listening.len(), 1, "{}", self.ready);
        self.address(&format!("/tiers/{}/listen", listening[0]))
    }

    /// Where its origin listens.
    pub(crate) fn origin(&self) -> SocketAddr {
        self.address("/origin/listen")
    }

    /// Id and token of the account that its origin made.
    pub(crate) fn account(&self) -> (&str, &str) {
        let text = |field: &str| self.ready["accounts"][0][field].as_str().expect("a ready file has an account");
        (text("account_id"), text("token"))
    }

    /// Sends a signal by the command that every system has.
    pub(crate) fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([&format!("-{signal}"), &self.child.id().to_string()]).status();
        assert!(status.expect("kill runs").success(), "sending {signal} to {}", self.child.id());
    }

    /// Tells it to stop, and waits for its end.
    pub(crate) fn stop(mut self) -> ExitStatus {
        self.signal("TERM");
        let mut ended = None;
        wait_until(&format!("the end of the process of {}", self.log.display()), || {
            ended = self.child.try_wait().expect("a child is asked how it is");
            ended.is_some()
        });
        ended.expect("it was waited for")
    }

    /// What it was started with, where the system tells.
    pub(crate) fn environment(&self) -> Option<String> {
        fs::read_to_string(format!("/proc/{}/environ", self.child.id())).ok()
    }

    /// A line of the system's status of the process, in bytes: `VmRSS` is what it holds in memory. `None` where the system has no such file.
    pub(crate) fn memory(&self, line: &str) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let kib =
            status.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(':')?.trim().strip_suffix(" kB"));
        kib?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_else(|e| format!("({} can't be read: {e})", self.log.display()))
    }
}

impl Drop for Server {
    /// Ends it at once, as a crash would.
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- {}\n{}", self.log.display(), self.log());
        }
        // It may have ended by itself; then there is nothing to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a server answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// How it was come by.
    pub(crate) fn cache_status(&self) -> &str {
        self.header("cf-cache-status").unwrap_or_else(|| panic!("{self:?} does not say how it was come by"))
    }

    pub(crate) fn age(&self) -> Duration {
        let age = self.header("kvasar-age-ms").and_then(|age| age.parse().ok());
        Duration::from_millis(age.unwrap_or_else(|| panic!("{self:?} has no age")))
    }

    pub(crate) fn version(&self) -> &str {
        self.header("kvasar-version").unwrap_or_else(|| panic!("{self:?} has no version"))
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{self:?} is not JSON: {e}"))
    }
}

/// One request over a connection of its own.
pub(crate) fn ask(to: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
    let exchange = || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(&[head.as_bytes(), body].concat())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer = exchange().unwrap_or_else(|e| panic!("{method} {path} at {to}: {e}"));
    parse(&answer).unwrap_or_else(|| panic!("{method} {path} at {to}: {}", String::from_utf8_lossy(&answer)))
}

/// Makes a namespace as one of our own servers does.
pub(crate) fn make_namespace(at: SocketAddr, secret: &str, account: &str, title: &str) -> String {
    let bearer = format!("Bearer {secret}");
    let change = serde_json::json!({
        "account": account, "change": "create-namespace", "title": title, "jurisdiction": null, "mode": null
    });
    let headers = [("authorization", bearer.as_str())];
    let answer = ask(at, "POST", "/kvasar/control", &headers, change.to_string().as_bytes());
    assert_eq!(answer.status, 200, "{answer:?}");
    let id = answer.json()["controlled"]["namespace"]["id"].as_str().map(str::to_owned);
    id.unwrap_or_else(|| panic!("{answer:?} names no namespace"))
}

fn parse(answer: &[u8]) -> Option<Answer> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let (head, body) = (std::str::from_utf8(&answer[..end]).ok()?, &answer[end + 4..]);
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let mut headers = Vec::new();
    for line in lines {
        let (name, value) = line.split_once(':')?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let answer = Answer { status, headers, body: Vec::new() };
    let body = match answer.header("transfer-encoding") {
        Some(_) => joined(body)?,
        None => body.to_vec(),
    };
    let length: Option<usize> = answer.header("content-length").map(str::parse).transpose().ok()?;
    length.is_none_or(|length| length == body.len()).then_some(Answer { body, ..answer })
}

/// The body of a chunked answer that came to its end.
fn joined(mut chunked: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = chunked.windows(2).position(|window| window == b"\r\n")?;
        let length = usize::from_str_radix(std::str::from_utf8(&chunked[..line]).ok()?, 16).ok()?;
        let (chunk, rest) = chunked[line + 2..].split_at_checked(length)?;
        body.extend_from_slice(chunk);
        chunked = rest.strip_prefix(b"\r\n")?;
        if length == 0 {
            return Some(body);
        }
    }
}

/// Looks again and again until it holds.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let mut waited = Duration::ZERO;
    let pause = Duration::from_millis(20);
    while !holds() {
        assert!(waited < PATIENCE, "waited {waited:?} for {what}");
        sleep(pause);
        waited += pause;
    }
}

/// Lets the processes go on.
#[expect(clippy::disallowed_methods, reason = "other processes do not live by this test's clock")]
pub(crate) fn sleep(time: Duration) {
    thread::sleep(time);
}

#[expect(clippy::disallowed_methods, reason = "other processes do not live by this test's clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// What it came to, and how long it took.
pub(crate) fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = now();
    let output = work();
    (output, start.elapsed())
}
