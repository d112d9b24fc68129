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

/// The binary that `KVASAR_BIN` names.
pub fn binary() -> String {
    std::env::var("KVASAR_BIN").unwrap_or_else(|_| {
        eprintln!("KVASAR_BIN has to name the binary to measure: KVASAR_BIN=../target/release/kvasar");
        std::process::exit(2)
    })
}

/// A server at work. Dropping it ends it.
pub struct Server {
    child: Child,
    pub ready: Value,
}

impl Server {
    /// Runs the binary with these arguments until it has written its ready file; on one core of the machine if one is given. What it logs goes to
    /// `server.log` in the folder, behind what an earlier run there has logged.
    pub fn start(folder: &Path, core: Option<usize>, arguments: &[&str]) -> Server {
        let ready_file = folder.join("ready.json");
        // A missing file is what it is to be.
        let _ = fs::remove_file(&ready_file);
        let log = fs::File::options().create(true).append(true).open(folder.join("server.log")).expect("a log is made");
        let mut command = match core {
            Some(core) => {
                let mut command = Command::new("taskset");
                command.args(["-c", &core.to_string(), &binary()]);
                command
            }
            None => Command::new(binary()),
        };
        command.args(arguments).arg("--ready-file").arg(&ready_file);
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

/// Time on a core, in the process and in the kernel for it. The system counts in hundredths of a second.
pub fn core_time(id: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).expect("a process has a stat");
    // The name in brackets may hold anything; what follows it is the third field and on.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |field: usize| fields[field - 3].parse::<u64>().expect("a field of stat is a number");
    Duration::from_millis((ticks(14) + ticks(15)) * 10)
}

/// Keeps this process to one core.
pub fn keep_to_core(core: usize) {
    let id = std::process::id().to_string();
    let status =
        Command::new("taskset").args(["-a", "-c", "-p", &core.to_string(), &id]).stdout(Stdio::null()).status();
    assert!(status.expect("taskset runs").success());
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
