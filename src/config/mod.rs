//! What one process is told to be: one TOML file, read whole and checked whole before anything starts.
//!
//! Settings are numbers and addresses; stores, clocks and listeners are made from them elsewhere (`roles.rs`). A field that is unknown, missing or
//! out of range is a [`Problem`] with its line and what to write instead, and all of them are reported at once. Each field's comment
//! says what gets better and what worse as it grows. What the product promises its users is not set here: see `limits.rs`.

mod cassandra;
mod check;
mod read;
mod section;
mod units;

#[cfg(test)]
mod tests;

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    error::{Error, Result},
    limits,
};

pub use cassandra::{Cassandra, Consistency};
pub use units::{address, check_name, duration, host_and_port, size};

const MIB: u64 = 1024 * 1024;

#[derive(Clone, Debug, Default)]
pub struct Config {
    pub server: Server,
    /// How our own servers know each other. Without it nobody is one of them, and nothing crosses from one process to another.
    pub cluster_secret: Option<Secret>,
    pub origin: Option<Origin>,
    /// Accounts that the origin makes at its first start, by name.
    pub accounts: Vec<String>,
    /// Each after its upstream.
    pub tiers: Vec<Tier>,
    pub rest: Option<Rest>,
    pub limits: Limits,
}

#[derive(Clone, Debug)]
pub struct Server {
    /// What this process is called in logs.
    pub location: String,
    pub log: Log,
    /// Where health and metrics listen. Not for the open network: it asks for no credential.
    pub admin: Option<SocketAddr>,
    /// How long requests under way may take to finish after a signal to stop. Longer loses fewer large transfers, and makes a restart wait
    /// longer for a stuck client.
    pub shutdown_deadline: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Log {
    Text,
    Json,
}

#[derive(Clone, Debug)]
pub struct Origin {
    /// The folder of the store, unless that is elsewhere, and of the credentials that are made at the first start. One process at a time may have it.
    pub data: PathBuf,
    /// The store that it shares with other origins, instead of one in the folder.
    pub cassandra: Option<Cassandra>,
    /// Goes into every version; two origins that share an id may mint the same one.
    pub id: u8,
    /// Where tiers of other processes ask.
    pub listen: Option<SocketAddr>,
    /// Where the others find this one of several origins, as `host:port`; where it listens, unless it is set.
    pub advertise: Option<String>,
    /// How long the other origins wait for one that is silent before they go on without it. Longer rides out longer pauses of a machine or of the database; after the
    /// death of an origin, what is held ages as long, and a new one waits as long before its first write.
    pub lease: Duration,
    /// Memory for the store's own blocks. More makes reads of what no tier holds faster, and leaves less for the tiers' caches, which
    /// answer more cheaply.
    pub store_cache: u64,
    /// Refuses to make more namespaces than this in an account. A higher figure protects less against a runaway script.
    pub namespaces_per_account: usize,
    /// Refuses faster writes to a single key, as the hosted product does at 1. Off unless it is set.
    pub writes_per_key_per_second: Option<u32>,
    /// The longest state, value and metadata together, that travels to the tiers inside the news of its change. Longer spares them more questions,
    /// and costs each change that many bytes for each location that uses the key.
    pub push_size_max: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    Central,
    Regional,
    Edge,
}

#[derive(Clone, Debug)]
pub struct Tier {
    pub role: Role,
    /// What it is called in logs and metrics, and by the tiers of this file that ask it.
    pub name: String,
    /// Where Workers, and tiers of other processes, ask. A tier that only others of this process ask needs none.
    pub listen: Option<SocketAddr>,
    pub upstream: Upstream,
    /// An emulated one-way distance to the upstream, to try things out; zero in production.
    pub delay: Duration,
    /// Memory for entries. More answers more reads without a trip, until the machine swaps: the process needs this much and about a
    /// fifth beside it, and the bytes in flight.
    pub cache: u64,
    /// The largest value that is kept, as a share of `cache`. A greater share spares trips for large values; one of them then pushes out more
    /// small ones.
    pub cache_share_max: f64,
    /// How old an answer may get while upstream is away. Longer rides out longer outages, with older answers; each says its age.
    pub stale_if_unreachable: Duration,
    /// How old an answer about a token or a namespace may be. Longer spares questions; a revoked token is then accepted for longer.
    pub control_max_age: Duration,
    /// When a question to upstream is given up. Longer rides out a slow upstream; a reader of what isn't held waits longer for
    /// its error.
    pub upstream_deadline: Duration,
    /// When a write is given up, with an outcome that is not known. What became of one whose origin died is known only when the others have waited out its lease: below
    /// that, such writes fail. Longer keeps a writer waiting for longer where nobody takes writes.
    pub write_deadline: Duration,
    /// Questions to upstream at a time. More makes cold reads wait less behind each other, and asks more of upstream at once.
    pub upstream_concurrency: usize,
    /// Of them, while upstream is just coming back. More recovers faster; too many push it over again.
    pub refills: usize,
    /// How often the tier asks for proof that it has missed no change. What it holds is at most this and a round trip older here than one tier up.
    /// Longer spares a small message; what is held is then older, and a silent link is noticed later (after three of them).
    pub feed_interval: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// The origin of this process.
    Origin,
    /// Another tier of this process, by name.
    Tier(String),
    /// `host:port` of a tier or an origin elsewhere.
    Remote(String),
    /// Several origins on one store, by address. Any of them may be missing, and others join: whom they list is followed and asked, too.
    Origins(Vec<String>),
}

#[derive(Clone, Debug)]
pub struct Rest {
    pub listen: SocketAddr,
    pub on: RestOn,
}

/// What the REST API reads from and writes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RestOn {
    Origin,
    /// A central tier of this process, by name.
    Tier(String),
}

/// What clients may take of the whole process.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections open at a time. Each costs some KiB; one more than this waits to be
    /// accepted.
    pub connections: usize,
    /// Requests being answered at a time. More lets slow upstreams hold more memory; one more than this is answered 503.
    pub requests_in_flight: usize,
    /// Bytes of bodies held in memory at a time. More lets more large values move at once. Bulk calls have half of it, so below 50 MiB the largest
    /// bulk get finds no room.
    pub buffered: u64,
    /// A request's head must be whole by then. Longer is kinder to slow links and to those who stall on purpose alike.
    pub head_deadline: Duration,
    /// The longest pause within a body, either way.
    pub body_idle_deadline: Duration,
    /// How long a connection without a request is kept. Longer spares handshakes, and holds more idle connections.
    pub idle_deadline: Duration,
}

/// A text that no log shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub const CHARS_MIN: usize = 32;

    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

/// One thing that is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    pub line: usize,
    pub what: String,
    /// What to write instead.
    pub instead: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}\n    instead: {}", self.line, self.what, self.instead)
    }
}

impl Config {
    /// Reads and checks the file at `path`.
    pub fn load(path: &Path) -> Result<Config> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Error::bad_request(format!("reading the configuration {}", path.display())).with_source(e))?;
        Config::parse(&text, path).map_err(|problems| {
            let count = match problems.len() {
                1 => "1 problem".to_owned(),
                count => format!("{count} problems"),
            };
            let list: String = problems.iter().map(|problem| format!("\n  {problem}")).collect();
            Error::bad_request(format!("{} has {count}:{list}", path.display()))
        })
    }

    /// Checks a configuration as a whole, and says everything that is wrong with it, by line. Relative paths in it start at the folder
    /// of `path`.
    pub fn parse(text: &str, path: &Path) -> Result<Config, Vec<Problem>> {
        Config::parse_in(text, path, &|variable| std::env::var(variable).ok())
    }

    /// The same, with the variables of an environment.
    fn parse_in(text: &str, path: &Path, environment: &dyn Fn(&str) -> Option<String>) -> Result<Config, Vec<Problem>> {
        let folder = path.parent().unwrap_or(Path::new(""));
        let (placed, mut problems, whole) = read::file(text, &read::Surroundings { folder, environment });
        // What a file with broken syntax does not say may well stand in the part that could not be read.
        if whole {
            problems.extend(check::all(&placed));
        }
        problems.sort();
        problems.dedup();
        if problems.is_empty() { Ok(check::in_order(placed)) } else { Err(problems) }
    }

    /// What this process will be, for people, a role a line.
    pub fn summary(&self) -> String {
        let mut lines = Vec::new();
        let listening = |listen: Option<SocketAddr>| match listen {
            Some(address) => format!("listens on {address}"),
            None => "asked within this process only".to_owned(),
        };
        if let Some(origin) = &self.origin {
            let store = match &origin.cassandra {
                // The others give it its id.
                Some(cassandra) => {
                    let nodes = cassandra.nodes.join(", ");
                    format!("origin: store in Cassandra, keyspace {}, at {nodes}; credentials", cassandra.keyspace)
                }
                None => format!("origin {}: data", origin.id),
            };
            lines.push(format!("{store} in {}, {}", origin.data.display(), listening(origin.listen)));
        }
        for tier in &self.tiers {
            let delay = match tier.delay {
                Duration::ZERO => String::new(),
                delay => format!(" at an emulated distance of {delay:?}"),
            };
            lines.push(format!(
                "{} tier {}: {}, asks {}{delay}, caches up to {}",
                tier.role.name(),
                tier.name,
                listening(tier.listen),
                tier.upstream,
                units::show_size(tier.cache)
            ));
        }
        if let Some(rest) = &self.rest {
            let on = match &rest.on {
                RestOn::Origin => "the origin",
                RestOn::Tier(name) => name,
            };
            lines.push(format!("REST: listens on {}, works on {on}", rest.listen));
        }
        if let Some(admin) = self.server.admin {
            lines.push(format!("health and metrics: listens on {admin}"));
        }
        lines.iter().map(|line| format!("{line}\n")).collect()
    }
}

impl Role {
    pub const ALL: [Role; 3] = [Role::Central, Role::Regional, Role::Edge];

    pub fn name(self) -> &'static str {
        match self {
            Role::Central => "central",
            Role::Regional => "regional",
            Role::Edge => "edge",
        }
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Upstream::Origin => f.write_str("the origin"),
            Upstream::Tier(name) => f.write_str(name),
            Upstream::Remote(address) => f.write_str(address),
            Upstream::Origins(addresses) => f.write_str(&addresses.join(" and ")),
        }
    }
}

impl Default for Server {
    fn default() -> Server {
        Server { location: "local".to_owned(), log: Log::Text, admin: None, shutdown_deadline: Duration::from_secs(20) }
    }
}

impl Origin {
    /// With the defaults for all but the folder.
    pub fn new(data: impl Into<PathBuf>) -> Origin {
        Origin {
            data: data.into(),
            cassandra: None,
            id: 1,
            listen: None,
            advertise: None,
            lease: Duration::from_secs(10),
            store_cache: 64 * MIB,
            namespaces_per_account: 1000,
            writes_per_key_per_second: None,
            push_size_max: limits::PUSH_BYTES_DEFAULT as u64,
        }
    }
}

impl Tier {
    /// With the defaults for all that may be left out.
    pub fn new(role: Role, name: impl Into<String>, upstream: Upstream) -> Tier {
        Tier {
            role,
            name: name.into(),
            listen: None,
            upstream,
            delay: Duration::ZERO,
            cache: 256 * MIB,
            cache_share_max: 0.05,
            stale_if_unreachable: Duration::from_secs(24 * 3600),
            control_max_age: Duration::from_secs(30),
            upstream_deadline: Duration::from_secs(5),
            write_deadline: Duration::from_secs(30),
            upstream_concurrency: 512,
            refills: 32,
            feed_interval: Duration::from_secs(1),
        }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 10_000,
            requests_in_flight: 4096,
            buffered: 256 * MIB,
            head_deadline: Duration::from_secs(10),
            body_idle_deadline: Duration::from_secs(30),
            idle_deadline: Duration::from_secs(75),
        }
    }
}
