//! Processes of the binary under measurement, and what the system says of them.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

/// The binary that `KVASAR_BIN` names, or what `cargo build --release` makes beside this package.
pub fn binary() -> String {
    let built = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/release/kvasar");
    let binary = std::env::var("KVASAR_BIN").unwrap_or_else(|_| built.to_owned());
    if !Path::new(&binary).is_file() {
        eprintln!("there is no {binary}: build it with cargo build --release, or name it with KVASAR_BIN");
        std::process::exit(2);
    }
    binary
}

/// A server at work. Dropping it ends it.
pub struct Server {
    child: Child,
    pub ready: Value,
}

impl Server {
    /// Runs the binary with these arguments until it has written its ready file; on these cores of the machine if some are given. What it logs goes to
    /// `server.log` in the folder, behind what an earlier run there has logged.
    pub fn start(folder: &Path, cores: Option<&str>, arguments: &[&str]) -> Server {
        Server::start_in(folder, cores, arguments, &[])
    }

    /// The same with these variables in its environment.
    pub fn start_in(folder: &Path, cores: Option<&str>, arguments: &[&str], environment: &[(&str, &str)]) -> Server {
        let ready_file = folder.join("ready.json");
        // A missing file is what it is to be.
        let _ = fs::remove_file(&ready_file);
        let log = fs::File::options().create(true).append(true).open(folder.join("server.log")).expect("a log is made");
        let mut command = match cores {
            Some(cores) => on_cores(cores, &binary()),
            None => ended_with_this(&[&binary()]),
        };
        command.args(arguments).arg("--ready-file").arg(&ready_file).envs(environment.iter().copied());
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file is shared")).stderr(log);
        let mut child = command.spawn().expect("the binary runs");
        let start = Instant::now();
        while !ready_file.exists() {
            let ended = child.try_wait().expect("a child is asked how it is");
            if ended.is_some() || start.elapsed() > Duration::from_secs(30) {
                let log = fs::read_to_string(folder.join("server.log")).unwrap_or_default();
                panic!("the server did not start ({ended:?}):\n{log}");
            }
            thread::sleep(Duration::from_millis(10));
        }
        let ready = fs::read(&ready_file).expect("a ready file is read");
        Server { child, ready: serde_json::from_slice(&ready).expect("a ready file is JSON") }
    }

    /// A text of the ready file.
    pub fn text(&self, pointer: &str) -> &str {
        let found = self.ready.pointer(pointer).and_then(Value::as_str);
        found.unwrap_or_else(|| panic!("{} has no {pointer}", self.ready))
    }

    /// What follows a text of the ready file that begins like a URL, as an address.
    pub fn address(&self, pointer: &str) -> SocketAddr {
        let text = self.text(pointer).trim_start_matches("http://");
        text.parse().unwrap_or_else(|e| panic!("{pointer} of {} is no address: {e}", self.ready))
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&mut self) {
        self.child.kill().and_then(|()| self.child.wait()).expect("the server is killed");
    }

    /// Waits until it has ended, once it was told to.
    pub fn wait(&mut self) {
        self.child.wait().expect("a child is waited for");
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself, which the measurement has noticed by then.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A line of `/proc/ID/status` in bytes: `VmRSS` is what a process holds in memory, `VmHWM` the most that it ever held.
pub fn memory(id: u32, line: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).expect("a process has a status");
    let kib = status.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(':')?.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.trim().parse::<u64>().ok()).unwrap_or_else(|| panic!("{status} has no {line}")) * 1024
}

/// Time on a core, in the process and in the kernel for it, of all its threads. The system counts in hundredths of a second.
pub fn core_time(id: u32) -> Duration {
    Stat::of(id).expect("a process has a stat").time()
}

/// The same of the process and all that it started and they started, also those that have ended.
pub fn tree_time(id: u32) -> Duration {
    let numbers = |entry: fs::DirEntry| entry.file_name().to_str()?.parse::<u32>().ok();
    let processes = fs::read_dir("/proc").expect("the system shows its processes").flatten().filter_map(numbers);
    // One that ends meanwhile is counted by its parent from then on.
    let stats: Vec<(u32, Stat)> = processes.filter_map(|id| Some((id, Stat::of(id)?))).collect();
    let mut tree = vec![id];
    let mut next = 0;
    while let Some(parent) = tree.get(next).copied() {
        tree.extend(stats.iter().filter(|(_, stat)| stat.number(4) == u64::from(parent)).map(|(id, _)| *id));
        next += 1;
    }
    let ours = stats.iter().filter(|(id, _)| tree.contains(id));
    ours.map(|(_, stat)| stat.time() + stat.time_of_ended_children()).sum()
}

/// `/proc/ID/stat` from its third field on; the name in brackets before it may hold anything.
struct Stat(Vec<String>);

impl Stat {
    fn of(id: u32) -> Option<Stat> {
        let text = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        Some(Stat(text.rsplit(')').next()?.split_whitespace().map(str::to_owned).collect()))
    }

    /// A field, counted from one as in proc(5).
    fn number(&self, field: usize) -> u64 {
        self.0[field - 3].parse().expect("a field of stat is a number")
    }

    fn time(&self) -> Duration {
        Duration::from_millis((self.number(14) + self.number(15)) * 10)
    }

    fn time_of_ended_children(&self) -> Duration {
        Duration::from_millis((self.number(16) + self.number(17)) * 10)
    }
}

/// Keeps this process, all of its threads, to these cores; `0,2-3` is such a list.
pub fn keep_to_cores(cores: &str) {
    let id = std::process::id().to_string();
    let status = Command::new("taskset").args(["-a", "-c", "-p", cores, &id]).stdout(Stdio::null()).status();
    assert!(status.expect("taskset runs").success());
}

/// A command that will keep to these cores.
pub fn on_cores(cores: &str, program: &str) -> Command {
    ended_with_this(&["taskset", "-c", cores, program])
}

/// A command that the system ends when this process ends without having done so.
fn ended_with_this(program: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM"]).args(program);
    command
}

/// The middle one of some figures.
pub fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) { (sorted[middle - 1] + sorted[middle]) / 2.0 } else { sorted[middle] }
}

/// The figure below which that share of them lies; sorts them.
pub fn quantile<T: Copy + PartialOrd>(figures: &mut [T], share: f64) -> T {
    figures.sort_by(|a, b| a.partial_cmp(b).expect("figures can be compared"));
    figures[((figures.len() - 1) as f64 * share).round() as usize]
}

/// How many processes run or wait for a core, on average over the last minute.
pub fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').next().unwrap_or("an unknown number").to_owned()
}

pub const MIB: f64 = 1024.0 * 1024.0;
