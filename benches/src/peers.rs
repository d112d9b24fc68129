//! What Kvasar is measured beside, each a process of its own on ports that the system hands out, with its configuration from `configs/`.
//!
//! `peers` in this package installs them.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Resource, Signal, getrlimit, kill_process};

use crate::{ask::Values, process::on_cores, responder::Kind};

/// A process at work in a folder of its own. Dropping it ends it, and whatever it started.
pub struct Peer {
    child: Child,
    folder: PathBuf,
    pub address: SocketAddr,
}

/// Until a peer that has to start has started.
const PATIENCE: Duration = Duration::from_secs(30);

impl Peer {
    /// Starts it and waits until it listens. What it says goes to `output.log` in the folder.
    fn start(mut command: Command, folder: &Path, address: SocketAddr) -> Peer {
        let log = fs::File::create(folder.join("output.log")).expect("a log is made");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file is shared")).stderr(log);
        let child = command.spawn().unwrap_or_else(|e| panic!("running {command:?}: {e}"));
        let mut peer = Peer { child, folder: folder.to_owned(), address };
        let start = Instant::now();
        while TcpStream::connect(address).is_err() {
            let ended = peer.child.try_wait().expect("a child is asked how it is");
            assert!(ended.is_none() && start.elapsed() < PATIENCE, "{command:?} did not start: {}", peer.log());
            thread::sleep(Duration::from_millis(10));
        }
        peer
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("output.log")).unwrap_or_default()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Asked first, so that it ends what it started; those that take no notice are killed.
        if let Some(id) = Pid::from_raw(self.child.id() as i32) {
            _ = kill_process(id, Signal::TERM);
        }
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(5) {
            if let Ok(Some(_)) = self.child.try_wait() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that is free now. What is to have it is started at once.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.local_addr().expect("a listener has an address").port()
}

pub fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Writes a configuration into a folder, with what stands for its ports and folders replaced.
fn configure(folder: &Path, name: &str, text: &str, places: &[(&str, &str)]) -> PathBuf {
    let mut text = text.replace("{FOLDER}", &shown(folder));
    for (place, value) in places {
        text = text.replace(&format!("{{{place}}}"), value);
    }
    let file = folder.join(name);
    fs::write(&file, text).expect("a configuration is written");
    file
}

fn shown(path: &Path) -> String {
    path.to_str().expect("a path in UTF-8").to_owned()
}

fn made(folder: &Path, name: &str) -> PathBuf {
    let folder = folder.join(name);
    fs::create_dir_all(&folder).expect("a folder is made");
    folder
}

/// nginx that serves the files of a folder, and is a cache in front of itself on a second address.
pub fn nginx(cores: &str, folder: &Path, files: &Path, cache: &Path) -> (Peer, SocketAddr) {
    let folder = made(folder, "nginx");
    let (port, cache_port) = (free_port(), free_port());
    // Each of the two keeps as many files open as the system lets them, beside connections.
    let files_max = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX).clamp(4096, 262_144);
    let places = [
        ("PORT", port.to_string()),
        ("CACHE_PORT", cache_port.to_string()),
        ("FILES", shown(files)),
        ("CACHE", shown(cache)),
        ("FILES_MAX", files_max.to_string()),
        ("FILES_KEPT", ((files_max - 2048) / 2).to_string()),
    ];
    let places = places.each_ref().map(|(name, value)| (*name, value.as_str()));
    let file = configure(&folder, "nginx.conf", include_str!("../configs/nginx.conf"), &places);
    let mut command = on_cores(cores, "nginx");
    command.env("PATH", path()).arg("-c").arg(file).arg("-p").arg(&folder);
    (Peer::start(command, &folder, loopback(port)), loopback(cache_port))
}

/// Varnish in front of a server of files, with its values in memory.
pub fn varnish(cores: &str, folder: &Path, upstream: SocketAddr) -> Peer {
    let folder = made(folder, "varnish");
    let port = free_port();
    let places = [("UPSTREAM", &*upstream.port().to_string())];
    let file = configure(&folder, "values.vcl", include_str!("../configs/varnish.vcl"), &places);
    let mut command = on_cores(cores, "varnishd");
    command.env("PATH", path()).args(["-F", "-j", "none", "-n"]).arg(folder.join("work"));
    command.args(["-a", &loopback(port).to_string(), "-s", "malloc,4G", "-f"]).arg(file);
    // As many threads as there are connections, and more; a session stays as long as it is used.
    for parameter in ["thread_pools=1", "thread_pool_min=100", "thread_pool_max=1000", "timeout_idle=3600"] {
        command.args(["-p", parameter]);
    }
    Peer::start(command, &folder, loopback(port))
}

pub fn redis(cores: &str, folder: &Path, durable: bool) -> Peer {
    let (folder, text) = match durable {
        true => (made(folder, "redis-durable"), include_str!("../configs/redis-durable.conf")),
        false => (made(folder, "redis"), include_str!("../configs/redis.conf")),
    };
    let port = free_port();
    let file = configure(&folder, "redis.conf", text, &[("PORT", &port.to_string())]);
    let mut command = on_cores(cores, "redis-server");
    command.arg(file);
    Peer::start(command, &folder, loopback(port))
}

pub fn etcd(cores: &str, folder: &Path) -> Peer {
    let folder = made(folder, "etcd");
    let (port, peer_port) = (free_port(), free_port());
    let places = [("PORT", &*port.to_string()), ("PEER_PORT", &*peer_port.to_string())];
    let file = configure(&folder, "etcd.yaml", include_str!("../configs/etcd.yaml"), &places);
    let mut command = on_cores(cores, "etcd");
    command.arg("--config-file").arg(file);
    Peer::start(command, &folder, loopback(port))
}

/// workerd with a configuration that has it listen on this port.
pub fn workerd(cores: &str, folder: &Path, name: &str, config: &Path, port: u16) -> Peer {
    let mut command = on_cores(cores, &shown(&workerd_program()));
    command.arg("serve").arg(config);
    Peer::start(command, &made(folder, name), loopback(port))
}

/// Miniflare with this Worker and a namespace `KV`.
pub fn miniflare(cores: &str, folder: &Path, worker: &Path) -> Peer {
    let port = free_port();
    let mut command = on_cores(cores, "node");
    command.env("MINIFLARE_WORKERD_PATH", workerd_program()).env("NODE_OPTIONS", "--no-warnings");
    command.arg(configs().join("miniflare.mjs")).arg(port.to_string()).arg(worker);
    Peer::start(command, &made(folder, "miniflare"), loopback(port))
}

fn configs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("configs")
}

/// The program itself, which npm puts beside a script that runs it.
fn workerd_program() -> PathBuf {
    let packages = configs().join("node_modules/@cloudflare");
    let folders = fs::read_dir(&packages).unwrap_or_else(|e| panic!("{}: {e}; run ./peers", packages.display()));
    let mut programs = folders.flatten().map(|folder| folder.path().join("bin/workerd"));
    programs.find(|program| program.is_file()).expect("npm has installed workerd; else run ./peers")
}

/// Servers are where only the superuser looks.
fn path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

/// This program as one of the least servers, see `responder.rs`.
pub fn responder(cores: &str, kind: Kind, values: &Values) -> Peer {
    let this = std::env::current_exe().expect("this program is a file");
    let mut command = on_cores(cores, &shown(&this));
    let kind = clap::ValueEnum::to_possible_value(&kind).expect("each kind has a name").get_name().to_owned();
    command.args(["respond", &kind, &values.length().to_string()]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("the responder runs");
    let mut line = String::new();
    let output = child.stdout.take().expect("its output is piped");
    BufReader::new(output).read_line(&mut line).expect("the responder says its address");
    let address = line.trim().parse().expect("the responder says its address");
    Peer { child, folder: PathBuf::new(), address }
}

/// Where a cache keeps its files: in memory, where the system has such a folder.
pub fn memory_folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a temporary folder")
}
