//! `kill -9` while writes are under way, 200 times over: each acknowledged write is there afterwards, whole.
//!
//! A real server is started on one data folder, written to over HTTP, killed at a random moment and started again. A write that was
//! under way when it was killed may have taken effect or not, but never by half, and once seen it stays. Says nothing about the loss of power: the
//! system's page cache survives the process.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use kvasar::{
    cache::remote::{Remote, RemoteSettings},
    clock::{Clock, RealClock},
    kv::{AccountId, Change, Control, Controlled, Expires, Key, NamespaceId, Read, Source, State, Value, Writer},
    metrics::Metrics,
};

const ROUNDS: u64 = 200;
/// Writers at once, each with keys of its own.
const WRITERS: usize = 8;
const KEYS_PER_WRITER: usize = 4;
/// A server that takes longer than this to start is as good as lost.
const START_DEADLINE: Duration = Duration::from_secs(30);
const SECRET: &str = "a-secret-of-forty-characters-and-no-more";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_or_torn_when_the_process_is_killed() {
    let clock = RealClock::shared();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = configure(folder.path());
    let server = Server::start(folder.path(), &config, &*clock).await;
    let namespace = server.create_namespace().await;
    drop(server);

    let mut writers: Vec<Ledger> = (0..WRITERS).map(Ledger::new).collect();
    let mut acknowledged = 0;
    for _ in 0..ROUNDS {
        let server = Server::start(folder.path(), &config, &*clock).await;
        for writer in &mut writers {
            writer.check(&server.remote, namespace).await;
        }
        writers = write_until_killed(server, writers, namespace, &*clock).await;
        acknowledged += writers.iter().flat_map(|writer| &writer.keys).map(|key| key.acknowledged).sum::<usize>();
    }
    let server = Server::start(folder.path(), &config, &*clock).await;
    for writer in &mut writers {
        writer.check(&server.remote, namespace).await;
    }
    let lost: Vec<String> = writers.iter_mut().flat_map(|writer| std::mem::take(&mut writer.lost)).collect();
    let torn: Vec<String> = writers.iter_mut().flat_map(|writer| std::mem::take(&mut writer.torn)).collect();
    println!(
        "kill -9: {ROUNDS} of {ROUNDS} rounds, {acknowledged} acknowledged writes, {} lost, {} torn",
        lost.len(),
        torn.len()
    );
    assert!(acknowledged > ROUNDS as usize, "the server was killed before it could do anything");
    assert!(lost.is_empty() && torn.is_empty(), "lost: {lost:#?}\ntorn: {torn:#?}");
}

/// Lets all writers write, kills the server at a random moment and waits until they have noticed.
async fn write_until_killed(
    server: Server,
    writers: Vec<Ledger>,
    namespace: NamespaceId,
    clock: &dyn Clock,
) -> Vec<Ledger> {
    let killed = Arc::new(AtomicBool::new(false));
    let writing: Vec<_> = writers
        .into_iter()
        .map(|mut writer| {
            let (remote, killed, random) = (Arc::clone(&server.remote), Arc::clone(&killed), clock.random());
            tokio::spawn(async move {
                writer.write_until(&remote, namespace, random, &killed).await;
                writer
            })
        })
        .collect();
    clock.sleep(Duration::from_micros(1_000 + clock.random() % 80_000)).await;
    killed.store(true, Ordering::SeqCst);
    drop(server);
    let mut writers = Vec::new();
    for writer in writing {
        writers.push(writer.await.expect("a writer ends when its server is gone"));
    }
    writers
}

/// What one writer has done to its keys.
struct Ledger {
    keys: Vec<KeyLedger>,
    /// What was found instead, and where.
    lost: Vec<String>,
    torn: Vec<String>,
}

struct KeyLedger {
    key: Key,
    /// What may be there: the state acknowledged last, and behind it those attempted since.
    possible: Vec<Attempt>,
    /// Since the last check.
    acknowledged: usize,
}

/// A state that a write made or would have made: absent, or a value that says which it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attempt {
    Absent,
    Present { number: u64, length: usize },
}

impl Ledger {
    fn new(writer: usize) -> Ledger {
        let key = |i| Key::new(format!("writer-{writer}/key-{i}")).expect("a short key");
        let keys = (0..KEYS_PER_WRITER)
            .map(|i| KeyLedger { key: key(i), possible: vec![Attempt::Absent], acknowledged: 0 })
            .collect();
        Ledger { keys, lost: Vec::new(), torn: Vec::new() }
    }

    /// Compares what is there with what may be, which it then is.
    async fn check(&mut self, remote: &Remote, namespace: NamespaceId) {
        for ledger in &mut self.keys {
            let answer = remote.get(namespace, &ledger.key, &Read::latest()).await.expect("a started server answers");
            let found = match answer.state {
                State::Absent => Attempt::Absent,
                State::Present(entry) => {
                    let value = entry.value.collect(u64::MAX).await.expect("a value arrives whole");
                    let Some(found) = recognise(&value) else {
                        self.torn.push(format!("{:?} has {} bytes of no write", ledger.key, value.len()));
                        continue;
                    };
                    found
                }
                State::Unchanged { .. } => panic!("nothing was held"),
            };
            if !ledger.possible.contains(&found) {
                self.lost.push(format!("{:?} is {found:?} and may be one of {:?}", ledger.key, ledger.possible));
            }
            ledger.possible = vec![found];
            ledger.acknowledged = 0;
        }
    }

    async fn write_until(&mut self, remote: &Remote, namespace: NamespaceId, random: u64, killed: &AtomicBool) {
        for step in 0.. {
            let chance = mix(random.wrapping_add(step));
            let ledger = &mut self.keys[(chance % KEYS_PER_WRITER as u64) as usize];
            let attempt = match (chance >> 8) % 8 {
                0 => Attempt::Absent,
                1 | 2 => Attempt::Present { number: chance, length: 200_000 },
                3 => Attempt::Present { number: chance, length: 3_000 },
                _ => Attempt::Present { number: chance, length: 100 },
            };
            let change = match attempt {
                Attempt::Absent => Change::Delete,
                Attempt::Present { number, length } => {
                    Change::Put { value: Value::Whole(value(number, length)), metadata: None, expires: Expires::Never }
                }
            };
            ledger.possible.push(attempt);
            match remote.write(namespace, &ledger.key, change, kvasar::kv::Via::default()).await {
                Ok(_) => {
                    ledger.possible = vec![attempt];
                    ledger.acknowledged += 1;
                }
                Err(_) if killed.load(Ordering::SeqCst) => return,
                Err(error) => panic!("writing {:?} to a server that was not killed: {error}", ledger.key),
            }
        }
    }
}

/// A value that says which write it is of in its first 16 bytes, and in all the others.
fn value(number: u64, length: usize) -> Bytes {
    let mut value = Vec::with_capacity(length + 8);
    value.extend_from_slice(&number.to_be_bytes());
    value.extend_from_slice(&(length as u64).to_be_bytes());
    for word in 0.. {
        if value.len() >= length {
            break;
        }
        value.extend_from_slice(&mix(number ^ word).to_be_bytes());
    }
    value.truncate(length);
    value.into()
}

fn recognise(found: &[u8]) -> Option<Attempt> {
    let (number, rest) = found.split_first_chunk()?;
    let (length, _) = rest.split_first_chunk()?;
    let number = u64::from_be_bytes(*number);
    let length = usize::try_from(u64::from_be_bytes(*length)).ok()?;
    (found.len() == length && found == value(number, length)).then_some(Attempt::Present { number, length })
}

/// SplitMix64: spread out, and the same each time.
fn mix(state: u64) -> u64 {
    let mut z = state.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn configure(folder: &Path) -> PathBuf {
    let secret = folder.join("cluster.secret");
    fs::write(&secret, SECRET).expect("the secret is written");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("the secret is for its owner alone");
    }
    let config = folder.join("origin.toml");
    let text = "[server]\nlocation = \"crash\"\n[cluster]\nsecret_file = \"cluster.secret\"\n\
                [origin]\ndata = \"data\"\nid = 1\nlisten = \"127.0.0.1:0\"\nstore_cache = \"8MiB\"\n\
                [[account]]\nname = \"default\"\n";
    fs::write(&config, text).expect("the configuration is written");
    config
}

/// A server, killed when it is dropped.
struct Server {
    child: Mutex<Child>,
    remote: Arc<Remote>,
    account: AccountId,
}

impl Server {
    async fn start(folder: &Path, config: &Path, clock: &dyn Clock) -> Server {
        let ready_file = folder.join("ready.json");
        // A missing file is what it is to be.
        let _ = fs::remove_file(&ready_file);
        let log = fs::File::create(folder.join("server.log")).expect("a log is made");
        let child = Command::new(env!("CARGO_BIN_EXE_kvasar"))
            .args(["serve", "--config"])
            .arg(config)
            .arg("--ready-file")
            .arg(&ready_file)
            .stdout(log.try_clone().expect("the log is opened twice"))
            .stderr(log)
            .spawn()
            .expect("the server is started");
        let child = Mutex::new(child);
        let started = clock.now();
        let ready = loop {
            if let Ok(text) = fs::read(&ready_file)
                && let Ok(ready) = serde_json::from_slice::<serde_json::Value>(&text)
            {
                break ready;
            }
            let ended = child.lock().expect("nobody panics with it").try_wait().expect("the server is ours");
            let late = clock.now().since(started) > START_DEADLINE;
            if ended.is_some() || late {
                let log = fs::read_to_string(folder.join("server.log")).unwrap_or_default();
                panic!("the server did not start ({ended:?}):\n{log}");
            }
            clock.sleep(Duration::from_millis(2)).await;
        };
        let settings = RemoteSettings {
            address: text(&ready["origin"]["listen"]).to_owned(),
            secret: SECRET.to_owned(),
            deadline: Duration::from_secs(10),
            write_deadline: Duration::from_secs(10),
            concurrency: WRITERS,
            delay: Duration::ZERO,
        };
        let remote = Remote::new(settings, RealClock::shared(), Metrics::default().tier("crash")).expect("a client");
        let account = text(&ready["accounts"][0]["account_id"]).parse().expect("an account's id");
        Server { child, remote: Arc::new(remote), account }
    }

    async fn create_namespace(&self) -> NamespaceId {
        let create = Control::CreateNamespace { title: "crash".into(), jurisdiction: None, mode: None };
        match self.remote.control(self.account, create).await.expect("a namespace is made") {
            (Controlled::Namespace(namespace), _) => namespace.id,
            (other, _) => panic!("making a namespace was answered with {other:?}"),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let child = self.child.get_mut().expect("nobody panics with it");
        child.kill().expect("the server is killed with SIGKILL");
        child.wait().expect("the server has ended");
    }
}

fn text(value: &serde_json::Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is not a text"))
}
