//! A whole cluster of real processes (a ring of three database nodes, two origins, two edges), and what it promises while any of them dies.
//!
//! Clients write and read at both edges all the time. Every now and then a database node is killed or paused, and an origin. What was asked and answered is written
//! down and held, at the end, against what the clients know of the truth, by the checker of the simulator: a state is current at the earliest from
//! when its write was asked for, and at the latest until a later one of the key was acknowledged.
//!
//! Needs a ring: `tests/ring start 3 DIR`, then `KVASAR_TEST_RING=DIR`; `./test` does so. `KVASAR_TEST_SECONDS` says for how long (60).

#[path = "../sim/checker.rs"]
#[allow(dead_code, reason = "it serves the simulator first")]
mod checker;
mod figures;
#[path = "../support/mod.rs"]
mod support;
mod traffic;

/// The units in which the checker counts time.
mod clock {
    pub(crate) type Nanos = u64;
    pub(crate) const MICRO: Nanos = 1_000;
    pub(crate) const MILLI: Nanos = 1_000_000;
}

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use kvasar::clock::{Clock, RealClock};

use self::{
    support::{Port, Server, ask, wait_until},
    traffic::{Edge, Traffic},
};

const SECRET: &str = "a-secret-of-the-cluster-for-tests-only";
/// Short enough for an origin's death to be seen to its end here.
const LEASE: Duration = Duration::from_secs(8);

/// The ring that somebody started for us.
struct Ring {
    folder: PathBuf,
    nodes: Vec<String>,
}

impl Ring {
    fn found() -> Ring {
        let folder =
            std::env::var("KVASAR_TEST_RING").expect("KVASAR_TEST_RING names the folder of a ring of three nodes");
        let folder = PathBuf::from(folder);
        let nodes = fs::read_to_string(folder.join("hosts")).expect("tests/ring wrote who its nodes are");
        let nodes: Vec<String> = nodes.trim().split(',').map(str::to_owned).collect();
        assert_eq!(nodes.len(), 3, "{nodes:?}");
        Ring { folder, nodes }
    }

    fn tell(&self, what: &str, node: usize) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ring");
        let told = Command::new(script).args([what, &(node + 1).to_string()]).arg(&self.folder).output();
        let told = told.expect("bash runs it");
        assert!(told.status.success(), "tests/ring {what} {}: {}", node + 1, String::from_utf8_lossy(&told.stderr));
    }
}

/// One of the origins; its process comes and goes.
struct OriginSeat {
    name: String,
    config: String,
    port: Port,
    server: Option<Server>,
}

struct Cluster {
    ring: Ring,
    origins: Vec<OriginSeat>,
    edges: Vec<Server>,
    account: String,
    folder: tempfile::TempDir,
}

impl Cluster {
    fn start(keyspace: &str, origins: usize) -> Cluster {
        let (ring, folder) = (Ring::found(), tempfile::tempdir().expect("a temporary folder"));
        let nodes = ring.nodes.iter().map(|node| format!("\"{node}\"")).collect::<Vec<_>>().join(", ");
        let common = format!("[server]\nadmin = \"127.0.0.1:0\"\n[cluster]\nsecret = \"{SECRET}\"\n");
        let mut origins: Vec<OriginSeat> = (0..origins)
            .map(|i| {
                let (name, port) = (format!("origin-{i}"), Port::reserve());
                let config = format!(
                    "{common}[origin]\ndata = \"data-{i}\"\nlisten = \"{}\"\nlease = \"{}s\"\n[origin.cassandra]\nnodes = [{nodes}]\nkeyspace = \"{keyspace}\"\n\
                     [[account]]\nname = \"default\"\n",
                    port.address,
                    LEASE.as_secs()
                );
                OriginSeat { name, config, port, server: None }
            })
            .collect();
        // The first alone makes the account; the second finds it.
        origins[0].start(folder.path());
        let file = folder.path().join("data-0/accounts/default.json");
        let mut account = String::new();
        wait_longer("the account", || {
            let made = fs::read(&file).ok().and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok());
            account = made.and_then(|made| Some(made["account_id"].as_str()?.to_owned())).unwrap_or_default();
            !account.is_empty()
        });
        origins[1..].iter_mut().for_each(|origin| origin.start(folder.path()));
        let upstream =
            origins.iter().map(|origin| format!("\"{}\"", origin.port.address)).collect::<Vec<_>>().join(", ");
        let edges = (0..2).map(|i| {
            let tier = format!(
                "[[tier]]\nrole = \"edge\"\nname = \"edge-{i}\"\nlisten = \"127.0.0.1:0\"\nupstream = [{upstream}]\n"
            );
            Server::start(folder.path(), &format!("edge-{i}"), &format!("{common}{tier}"))
        });
        let edges = edges.collect();
        Cluster { ring, origins, edges, account, folder }
    }

    /// Makes a namespace, as soon as an origin takes writes.
    fn make_namespace(&self) -> String {
        let bearer = format!("Bearer {SECRET}");
        let change = serde_json::json!({
            "account": self.account, "change": "create-namespace", "title": "test", "jurisdiction": null, "mode": null
        });
        let mut namespace = None;
        wait_longer("a namespace", || {
            let headers = [("authorization", bearer.as_str())];
            let answer = ask(self.edges[0].tier(), "POST", "/kvasar/control", &headers, change.to_string().as_bytes());
            if answer.status == 200 {
                namespace = answer.json()["controlled"]["namespace"]["id"].as_str().map(str::to_owned);
            }
            namespace.is_some()
        });
        namespace.expect("it was waited for")
    }

    /// Waits until every origin takes writes: then each sees all others.
    async fn wait_for_origins(&self, clock: &dyn Clock) {
        clock.sleep(LEASE + LEASE / 2).await;
        for origin in &self.origins {
            let server = origin.server.as_ref().expect("it was started");
            wait_longer(&format!("{} to be ready", origin.name), || {
                ask(server.admin(), "GET", "/readyz", &[], b"").status == 200
            });
        }
    }
}

impl OriginSeat {
    fn start(&mut self, folder: &Path) {
        self.server = Some(Server::start(folder, &self.name, &self.config));
    }

    fn signal(&self, signal: &str) {
        self.server.as_ref().expect("it was started").signal(signal);
    }
}

/// The database takes its time on a busy machine.
fn wait_longer(what: &str, mut become_so: impl FnMut() -> bool) {
    let mut patience = 0;
    loop {
        let so = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| wait_until(what, &mut become_so)));
        match so {
            Ok(()) => return,
            Err(panic) if patience == 3 => std::panic::resume_unwind(panic),
            Err(_) => patience += 1,
        }
    }
}

fn seconds() -> u64 {
    let text = std::env::var("KVASAR_TEST_SECONDS").unwrap_or_else(|_| "60".to_owned());
    text.parse().expect("KVASAR_TEST_SECONDS is a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a ring of three nodes: see the head of this file"]
async fn whatever_dies_nothing_acknowledged_is_lost_and_what_is_held_is_answered() {
    let clock = RealClock::shared();
    let run = seconds();
    let mut cluster = Cluster::start(&format!("cluster_{:08x}", clock.random() as u32), 2);
    let namespace = cluster.make_namespace().parse().expect("a namespace's id");
    cluster.wait_for_origins(&*clock).await;
    let edges: Vec<SocketAddr> = cluster.edges.iter().map(Server::tier).collect();
    let edges = edges.iter().map(|edge| Edge::new(*edge, SECRET, Arc::clone(&clock))).collect();
    let traffic = Traffic::new(edges, namespace, Arc::clone(&clock));
    traffic.warm_up().await;
    let running = traffic.start();

    // A node and an origin at a time; each is back before the next one goes.
    let (each_node, each_origin) = if run >= 300 { (40, 60) } else { (20, 25) };
    let (mut node_at, mut origin_at) = (5, 10);
    let mut nodes_back: Vec<(u64, usize, &str)> = Vec::new();
    let mut origin_back: Option<(u64, usize, bool)> = None;
    let mut faults = Vec::new();
    for second in 0..run {
        clock.sleep(Duration::from_secs(1)).await;
        if let Some(due) = nodes_back.iter().position(|(at, ..)| *at <= second) {
            let (_, node, how) = nodes_back.remove(due);
            let ring = Ring { folder: cluster.ring.folder.clone(), nodes: Vec::new() };
            let back = move || ring.tell(how, node);
            // A start waits until the node takes requests; faults of origins go on meanwhile.
            drop(tokio::task::spawn_blocking(back));
        }
        if let Some((at, origin, killed)) = origin_back
            && at <= second
        {
            origin_back = None;
            match killed {
                true => cluster.origins[origin].start(cluster.folder.path()),
                false => cluster.origins[origin].signal("CONT"),
            }
        }
        let left = run - second;
        if second == node_at && left > 12 {
            node_at += each_node;
            let (node, kill) = ((clock.random() % 3) as usize, clock.random().is_multiple_of(2));
            cluster.ring.tell(if kill { "kill" } else { "pause" }, node);
            nodes_back.push((second + 9, node, if kill { "node" } else { "resume" }));
            faults.push(format!("{second} s: node {} {}", node + 1, if kill { "killed" } else { "paused" }));
        }
        if second == origin_at && left > 12 {
            origin_at += each_origin;
            let (origin, kill) = ((clock.random() % 2) as usize, clock.random().is_multiple_of(2));
            cluster.origins[origin].signal(if kill { "KILL" } else { "STOP" });
            // A pause goes beyond the lease, as often as not.
            let pause = if kill { 4 } else { 4 + clock.random() % 12 };
            origin_back = Some((second + pause, origin, kill));
            faults
                .push(format!("{second} s: origin {origin} {} for {pause} s", if kill { "killed" } else { "paused" }));
        }
    }
    if let Some((_, origin, killed)) = origin_back {
        match killed {
            true => cluster.origins[origin].start(cluster.folder.path()),
            false => cluster.origins[origin].signal("CONT"),
        }
    }
    for (_, node, how) in nodes_back {
        cluster.ring.tell(how, node);
    }
    let traffic = running.stop().await;
    // What was paused, too, has found its place again.
    clock.sleep(LEASE * 2).await;
    let finale = traffic.finale().await;
    println!("faults: {}", faults.join("; "));
    println!("{finale}");
    finale.check();
}

/// As it is shipped, but for its ports and the database's nodes.
#[test]
#[ignore = "needs a ring of three nodes: see the head of this file"]
fn the_shipped_cluster_serves_as_a_whole() {
    let (ring, folder) = (Ring::found(), tempfile::tempdir().expect("a temporary folder"));
    fs::write(folder.path().join("cluster.secret"), SECRET).expect("a secret is written");
    restrict(&folder.path().join("cluster.secret"));
    let ports: Vec<Port> = (0..7).map(|_| Port::reserve()).collect();
    let keyspace = format!("shipped_{:08x}", RealClock::shared().random() as u32);
    let start = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("examples/config/cluster/{name}.toml"));
        let mut config = fs::read_to_string(&path).unwrap_or_else(|e| panic!("reading {}: {e}", path.display()));
        for (number, port) in ports.iter().enumerate() {
            config = config.replace(&format!("127.0.0.1:770{}", number + 1), &port.address.to_string());
            config = config.replace(&format!("127.0.0.1:779{}", number + 1), "127.0.0.1:0");
            config = config.replace(&format!("127.0.0.1:780{}", number + 1), "127.0.0.1:0");
        }
        for (number, node) in ring.nodes.iter().enumerate() {
            config = config.replace(&format!("127.0.77.{}", number + 1), node);
        }
        config = config.replace("keyspace = \"kvasar\"", &format!("keyspace = \"{keyspace}\""));
        Server::start(folder.path(), name, &config)
    };
    let first = start("origin-1");
    let file = folder.path().join("origin-1/accounts/default.json");
    let mut credentials = serde_json::Value::Null;
    wait_longer("the account", || {
        let made = fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok());
        credentials = made.unwrap_or_default();
        credentials.is_object()
    });
    let all: Vec<Server> =
        ["origin-2", "region-eu", "region-us", "edge-paris", "edge-berlin", "edge-boston"].map(start).into();
    let text = |field: &str| credentials[field].as_str().expect("credentials name it").to_owned();
    let bearer = format!("Bearer {}", text("token"));
    let path = format!("/client/v4/accounts/{}/storage/kv/namespaces", text("account_id"));
    let mut namespace = String::new();
    wait_longer("a namespace, through a region's REST", || {
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        let made = ask(all[1].rest(), "POST", &path, &headers, b"{\"title\": \"examples\"}");
        if made.status == 200 {
            namespace = made.json()["result"]["id"].as_str().map(str::to_owned).expect("a namespace has an id");
        }
        !namespace.is_empty()
    });
    let headers = [("authorization", bearer.as_str()), ("kvasar-namespace", namespace.as_str())];
    let written = ask(all[3].tier(), "PUT", "/key?urlencoded=true", &headers, b"value");
    assert_eq!(written.status, 200, "{written:?}");
    let version = written.version().to_owned();
    for edge in &all[3..] {
        let headers = [headers[0], headers[1], ("kvasar-at-least", version.as_str())];
        let read = ask(edge.tier(), "GET", "/key?urlencoded=true", &headers, b"");
        assert_eq!((read.status, read.body.as_slice()), (200, b"value".as_slice()), "{read:?}");
    }
    // In order: each leaves those above it.
    for server in all.into_iter().rev().chain([first]) {
        assert!(server.stop().success());
    }
}

fn restrict(file: &Path) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(file, fs::Permissions::from_mode(0o600)).expect("the secret is for its owner alone");
    }
}
