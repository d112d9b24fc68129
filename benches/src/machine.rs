//! The machine under it all, as a line that says what figures are worth.

use std::fs;

use crate::process::load;

/// CPU, cores, memory, kernel, and how many processes wait for them now.
pub fn describe() -> String {
    let field = |file: &str, name: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let found = text
            .lines()
            .find_map(|line| line.strip_prefix(name).map(|rest| rest.trim_start_matches([':', ' ', '\t']).to_owned()));
        found.unwrap_or_else(|| "unknown".to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = field("/proc/meminfo", "MemTotal").trim_end_matches(" kB").parse::<f64>().unwrap_or_default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "{}, {cores} cores, {:.0} GiB, Linux {}; load average {}",
        field("/proc/cpuinfo", "model name"),
        memory / 1024.0 / 1024.0,
        kernel.trim(),
        load()
    )
}
