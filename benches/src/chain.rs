//! Each role a process of its own: origin <- centre <- region <- `away`, the last an emulated distance from its region.

use std::{fs, net::SocketAddr, path::PathBuf, time::Duration};

use hyper::Method;
use tokio::net::TcpSocket;

use crate::{
    client::Client,
    line::{Answer, Line},
    process::Server,
};

pub const SECRET: &str = "a-secret-of-the-cluster-for-measurements";

/// A role, from its folder, where it can be started again.
pub struct Role {
    pub server: Server,
    folder: PathBuf,
    config: String,
    /// Bound to its port and not listening, so that the system gives the port to nobody else while it is down.
    _port: TcpSocket,
}

impl Role {
    /// Makes the folder `name` and starts it there, with a configuration in which `LISTEN` stands for where it listens.
    fn start(folder: &std::path::Path, name: &str, config: &str) -> Role {
        let folder = folder.join(name);
        fs::create_dir(&folder).expect("a folder is made");
        let port = reserve().expect("a port is free");
        let address = port.local_addr().expect("what is bound has an address").to_string();
        let config = config.replace("LISTEN", &address);
        let config = format!(
            "[server]\nlocation = \"{name}\"\nadmin = \"127.0.0.1:0\"\n[cluster]\nsecret = \"{SECRET}\"\n{config}"
        );
        let server = run(&folder, &config);
        Role { server, folder, config, _port: port }
    }

    /// Where its clients ask.
    pub fn address(&self) -> SocketAddr {
        let pointer = if self.config.contains("[origin]") { "/origin/listen" } else { "/tiers/0/listen" };
        self.server.address(pointer)
    }

    /// Starts it again where it was, once it has been killed.
    pub fn start_again(&mut self) {
        self.server = run(&self.folder, &self.config);
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("server.log")).expect("a log is read")
    }
}

fn reserve() -> std::io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    Ok(socket)
}

fn run(folder: &std::path::Path, config: &str) -> Server {
    let file = folder.join("server.toml");
    fs::write(&file, config).expect("a configuration is written");
    Server::start(folder, None, &["serve", "--config", file.to_str().expect("a path in UTF-8")])
}

pub struct Chain {
    pub origin: Role,
    pub centre: Role,
    pub region: Role,
    pub away: Role,
    /// What goes with the requests of the account's owner.
    pub headers: String,
    /// The last to go.
    folder: tempfile::TempDir,
}

impl Chain {
    /// Starts all of it, with `away` this far from its region, and waits until it knows what it holds to be fresh without asking.
    pub async fn start(trip: Duration) -> Chain {
        Chain::start_at([Duration::ZERO, Duration::ZERO, trip]).await
    }

    /// The same with the centre, the region and `away` each this far from what it asks.
    pub async fn start_at(trips: [Duration; 3]) -> Chain {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path();
        let origin = Role::start(path, "origin", "[origin]\ndata = \"data\"\nlisten = \"LISTEN\"\n");
        let centre = Role::start(path, "centre", &tier("central", "centre", origin.address(), trips[0]));
        let region = Role::start(path, "region", &tier("regional", "region", centre.address(), trips[1]));
        let away = Role::start(path, "away", &tier("edge", "away", region.address(), trips[2]));
        let headers = owner(&origin.server, origin.address()).await;
        let chain = Chain { origin, centre, region, away, headers, folder };
        chain.wait_for_cover().await;
        chain
    }

    /// Another tier of these processes, in front of `upstream`.
    pub fn add(&self, role: &str, name: &str, upstream: &Role, trip: Duration) -> Role {
        Role::start(self.folder.path(), name, &tier(role, name, upstream.address(), trip))
    }

    /// A connection of the account's owner.
    pub async fn line(&self, role: &Role) -> Line {
        Line::connect(role.address(), &self.headers).await.expect("a server accepts")
    }

    /// Waits until the age of something held away falls without a question.
    pub async fn wait_for_cover(&self) {
        let mut line = self.line(&self.away).await;
        let mut last = u64::MAX;
        for _ in 0..600 {
            let answer = read(&mut line, "cover").await;
            let age = answer.age.expect("an answer has an age");
            if answer.cache == "HIT" && age < last {
                return;
            }
            last = age;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("what is held away is not covered by the feed:\n{}", self.away.log());
    }
}

fn tier(role: &str, name: &str, upstream: SocketAddr, delay: Duration) -> String {
    let delay = delay.as_millis();
    format!(
        "[[tier]]\nrole = \"{role}\"\nname = \"{name}\"\nupstream = \"{upstream}\"\nlisten = \"LISTEN\"\ndelay = \"{delay}ms\"\n"
    )
}

/// Makes a namespace; answers the headers of the account's owner in it.
pub async fn owner(origin: &Server, at: SocketAddr) -> String {
    let control = Client::new(vec![("authorization", format!("Bearer {SECRET}"))]);
    let change = serde_json::json!({
        "account": origin.text("/accounts/0/account_id"), "change": "create-namespace", "title": "bench", "jurisdiction": null, "mode": null
    });
    let made = control.ask(Method::POST, &format!("http://{at}/kvasar/control"), change.to_string()).await;
    let made: serde_json::Value = serde_json::from_slice(&made).expect("the answer is JSON");
    let namespace = made["controlled"]["namespace"]["id"].as_str().expect("a namespace has an id");
    format!("Authorization: Bearer {}\r\nkvasar-namespace: {namespace}\r\n", origin.text("/accounts/0/token"))
}

pub fn path(key: &str) -> String {
    // What is held never times out, so that whatever changes was told by the feed.
    format!("/{key}?urlencoded=true&cache_ttl=86400")
}

/// Reads what may be a day old. It is there, or it is not; all else panics.
pub async fn read(line: &mut Line, key: &str) -> Answer {
    let answer = line.ask("GET", &path(key), "", b"").await.unwrap_or_else(|e| panic!("reading {key}: {e}"));
    assert!(matches!(answer.status, 200 | 404), "reading {key}: {answer:?}");
    answer
}

pub async fn write(line: &mut Line, key: &str, value: &[u8]) -> Answer {
    let answer = line.ask("PUT", &path(key), "", value).await.unwrap_or_else(|e| panic!("writing {key}: {e}"));
    assert_eq!(answer.status, 200, "writing {key}: {answer:?}");
    answer
}
