//! Measurements of Kvasar beside what people would use in its place: one command for each table of docs/benchmarks.md.
//!
//! They run real processes, keep server and load on cores of their own, give each its turn in rounds, and check every answer: a measurement that finds a wrong
//! one panics, since a figure about wrong answers is none.

mod ask;
mod chain;
mod chance;
mod client;
mod kvasar;
mod line;
mod load;
mod machine;
mod options;
mod peers;
mod process;
mod report;
mod responder;
/// What the simulator's checker counts in.
mod clock {
    pub(crate) type Nanos = u64;
    pub(crate) const MICRO: Nanos = 1_000;
    pub(crate) const MILLI: Nanos = 1_000_000;
}

mod tables {
    pub mod absent;
    pub mod ages;
    pub mod bulk_load;
    pub mod cache_memory;
    pub mod cache_policy;
    pub mod cold_read;
    pub mod cores;
    pub mod followers;
    pub mod hot_read;
    pub mod kills;
    pub mod large_values;
    pub mod latency;
    pub mod list;
    pub mod memory;
    pub mod metrics;
    pub mod put;
    pub mod reads_under_writes;
    pub mod stale;
    pub mod start_up;
    pub mod visibility;
    pub mod workerd;
}

use std::{
    path::{Path, PathBuf},
    process::{Command as Process, Stdio, exit},
};

use clap::{Parser, Subcommand};

use options::Options;
use tables::*;

#[derive(Parser)]
#[command(name = "kvasar-bench", about = "Measures Kvasar beside its peers; each command prints a table")]
struct Arguments {
    #[command(subcommand)]
    table: Command,
    #[command(flatten)]
    options: Options,
}

#[derive(Subcommand)]
enum Command {
    /// A read from memory, beside the least servers, nginx, Varnish and Redis
    HotRead(hot_read::Arguments),
    /// A key that is known to be absent
    Absent,
    /// Hits on what is being renewed
    Stale,
    /// A hot read that is watched, or logged
    Metrics,
    /// A hot read on one core and on two
    Cores,
    /// Reads that no tier can answer
    ColdRead,
    /// Hot reads while much is written
    ReadsUnderWrites(reads_under_writes::Arguments),
    /// Time to ready with a million keys
    StartUp,
    /// How long a hot read takes at 70 % of capacity
    Latency,
    /// Durable puts beside Redis and etcd
    Put,
    /// Listing a million keys beside Redis' SCAN
    List,
    /// What a tier's memory holds, beside its budget
    Memory,
    /// KV.get in a real Worker, beside Miniflare
    Workerd,
    /// Loading much through REST, and listing it
    BulkLoad,
    /// Many clients with values of 25 MiB, and one stream of them
    LargeValues(large_values::Arguments),
    /// How soon a write is seen far away
    Visibility,
    /// How old covered answers say they are
    Ages,
    /// Many followers of one tier
    Followers {
        #[arg(default_value_t = 1000)]
        count: u64,
    },
    /// Killed processes under load
    Kills {
        // `rounds` by itself is the option that all share.
        #[arg(id = "kills", value_name = "ROUNDS", default_value_t = 50)]
        rounds: u64,
        #[arg(default_value_t = 1)]
        seed: u64,
    },
    /// Bytes beside each cached entry, and the process against its budget
    CacheMemory {
        #[command(subcommand)]
        part: Option<cache_memory::Part>,
    },
    /// Miss ratio, memory and time of caches
    CachePolicy {
        #[command(subcommand)]
        part: Option<cache_policy::Part>,
    },
    /// Many tables, one after the other, each in a process of its own
    All {
        /// These commands; those that say what reads, writes and what is held cost unless said
        #[arg(long, value_delimiter = ',')]
        tables: Vec<String>,
        /// Also put what each prints between its marks in this document
        #[arg(long, value_name = "FILE.md")]
        into: Option<PathBuf>,
    },
    /// One of the least servers, which others are measured against
    #[command(hide = true)]
    Respond { kind: responder::Kind, length: usize },
}

fn main() {
    let Arguments { table, options } = Arguments::parse();
    match &table {
        Command::Respond { kind, length } => return responder::run(*kind, *length),
        Command::CacheMemory { part } => return cache_memory::run(part.as_ref()),
        Command::CachePolicy { part } => return cache_policy::run(part.as_ref()),
        Command::All { tables, into } => return all(tables, into.as_deref(), &options),
        _ => {}
    }
    println!("{}\n", machine::describe());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime is made");
    runtime.block_on(async {
        match table {
            Command::HotRead(arguments) => hot_read::run(&arguments, &options).await,
            Command::Absent => absent::run(&options).await,
            Command::Stale => stale::run(&options).await,
            Command::Metrics => metrics::run(&options).await,
            Command::Cores => cores::run(&options).await,
            Command::ColdRead => cold_read::run(&options).await,
            Command::ReadsUnderWrites(arguments) => reads_under_writes::run(&arguments, &options).await,
            Command::StartUp => start_up::run(&options).await,
            Command::Latency => latency::run(&options).await,
            Command::Put => put::run(&options).await,
            Command::List => list::run(&options).await,
            Command::Memory => memory::run(&options).await,
            Command::Workerd => workerd::run(&options).await,
            Command::BulkLoad => bulk_load::run().await,
            Command::LargeValues(arguments) => large_values::run(&arguments, &options).await,
            Command::Visibility => visibility::run().await,
            Command::Ages => ages::run().await,
            Command::Followers { count } => followers::run(count).await,
            Command::Kills { rounds, seed } => kills::run(rounds, seed).await,
            Command::Respond { .. }
            | Command::CacheMemory { .. }
            | Command::CachePolicy { .. }
            | Command::All { .. } => {
                unreachable!("they ran above")
            }
        }
    });
}

/// Those that say what a read, a write and what is held cost; the others say what is right rather than what it costs.
const ALL: [&str; 17] = [
    "hot-read",
    "absent",
    "stale",
    "metrics",
    "latency",
    "cores",
    "cold-read",
    "workerd",
    "put",
    "reads-under-writes",
    "bulk-load",
    "list",
    "large-values",
    "memory",
    "start-up",
    "cache-memory",
    "cache-policy",
];

/// Runs this program again for each, with the same options: each begins with its own cores, memory and folders.
fn all(tables: &[String], into: Option<&Path>, options: &Options) {
    let this = std::env::current_exe().expect("this program is a file");
    let all: Vec<String> = if tables.is_empty() { ALL.map(str::to_owned).to_vec() } else { tables.to_vec() };
    let mut failed = Vec::new();
    for table in all {
        let mut command = Process::new(&this);
        command.arg(&table).args(options.arguments()).stderr(Stdio::inherit());
        let output = command.output().expect("this program runs");
        let printed = String::from_utf8_lossy(&output.stdout);
        println!("## {table}\n\n{printed}");
        match into {
            _ if !output.status.success() => failed.push(table),
            Some(document) => report::put_into(document, &table, &printed),
            None => {}
        }
    }
    if !failed.is_empty() {
        eprintln!("failed: {}", failed.join(", "));
        exit(1);
    }
}
