//! `kvasar store copy` and `kvasar store export-hash`: what a store holds, moved to another one, and told apart from what another one holds.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::{settings_in, show};
use crate::{
    clock::{Clock, Moment, RealClock},
    config::Config,
    error::{Error, Result},
    limits,
    store::{
        Store,
        cassandra::{self, CassandraStore},
        copy::{self, Export, Phase, Progress, Settings},
        disk::DiskStore,
    },
};

/// Copy all that a store holds into another one, which has to be empty, and compare them
///
/// Stop the origins on both first. The same command goes on where it was broken off; no origin starts on the target before it has ended. Versions, expirations and
/// metadata are kept, and with them namespaces, accounts and tokens.
#[derive(Debug, Args)]
pub struct Arguments {
    /// disk:DIR is the folder that [origin] data names; cassandra:FILE.toml the configuration whose [origin.cassandra] names the store
    #[arg(long, value_name = "STORE")]
    from: Place,
    /// Likewise
    #[arg(long, value_name = "STORE")]
    to: Place,
}

/// Say how much a store holds, with a hash over all that users see of it
///
/// Stores with the same hash hold the same. Stop the origins on it first. What has expired does not count: so the hash of a store whose entries expire changes.
#[derive(Debug, Args)]
pub struct HashArguments {
    /// disk:DIR or cassandra:FILE.toml, as for copy
    #[arg(value_name = "STORE")]
    store: Place,
}

/// Where a store is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// The data folder of its origin.
    Disk(PathBuf),
    /// The file that names it. What opens it must not be on a command line, which others can see.
    Cassandra(PathBuf),
}

/// Within an origin's data folder.
const STORE_FOLDER: &str = "store";
/// Of blocks in memory. Everything is read once, in order, but for the chunks.
const CACHE_BYTES: u64 = 32 * 1024 * 1024;
/// How often the log says how far it is, where there is no terminal.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Place, String> {
        match text.split_once(':') {
            Some(("disk", dir)) if !dir.is_empty() => Ok(Place::Disk(dir.into())),
            Some(("cassandra", file)) if !file.is_empty() => Ok(Place::Cassandra(file.into())),
            _ => Err("a store is disk:DIR or cassandra:FILE.toml".to_owned()),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Disk(dir) => write!(f, "disk:{}", dir.display()),
            Place::Cassandra(file) => write!(f, "cassandra:{}", file.display()),
        }
    }
}

pub(super) async fn run(arguments: Arguments) -> Result<()> {
    let clock = RealClock::shared();
    let Arguments { from, to } = arguments;
    let (source, lease) = open_source(&from, &clock).await?;
    let (target, other_lease) = open(&to, &clock).await?;
    let settings = Settings { lease: lease.max(other_lease), kept: limits::DELETIONS_KEPT_DEFAULT };
    tracing::info!("copying {from} to {to}");
    let mut shown = Shown::start(&clock);
    let copied = copy::copy(source, target, Arc::clone(&clock), settings, &mut |progress| shown.tell(progress)).await;
    shown.bar.finish_and_clear();
    present("copied and compared", &copied?)
}

pub(super) async fn hash(arguments: HashArguments) -> Result<()> {
    let clock = RealClock::shared();
    let (store, lease) = open_source(&arguments.store, &clock).await?;
    let settings = Settings { lease, kept: limits::DELETIONS_KEPT_DEFAULT };
    let mut shown = Shown::start(&clock);
    let export = copy::export(store, Arc::clone(&clock), settings, &mut |progress| shown.tell(progress)).await;
    shown.bar.finish_and_clear();
    present("there are", &export?)
}

fn present(what: &str, export: &Export) -> Result<()> {
    let Export { entries, bytes, hash } = export;
    show(&format!("{what} {entries} entries, whose values have {bytes} bytes\nexport hash {hash}\n"))
}

/// A store that has to be there.
async fn open_source(place: &Place, clock: &Arc<dyn Clock>) -> Result<(Arc<dyn Store>, Duration)> {
    let none = || Error::bad_request(format!("there is no store at {place}"));
    match place {
        Place::Disk(dir) if !DiskStore::is_in(&dir.join(STORE_FOLDER)) => return Err(none()),
        Place::Disk(_) => {}
        Place::Cassandra(file) => {
            let settings = settings_in(&Config::load(file)?, file)?;
            if cassandra::check(settings, Arc::clone(clock)).await?.version.is_none() {
                return Err(none());
            }
        }
    }
    open(place, clock).await
}

/// The store, and the lease of the origins that may be on it.
async fn open(place: &Place, clock: &Arc<dyn Clock>) -> Result<(Arc<dyn Store>, Duration)> {
    match place {
        Place::Disk(dir) => {
            let store = open_disk(&dir.join(STORE_FOLDER)).await?;
            Ok((Arc::new(store), Duration::ZERO))
        }
        Place::Cassandra(file) => {
            let config = Config::load(file)?;
            let lease = config.origin.as_ref().map_or(limits::LEASE_DEFAULT, |origin| origin.lease);
            let store = CassandraStore::connect(settings_in(&config, file)?, Arc::clone(clock)).await?;
            Ok((Arc::new(store), lease))
        }
    }
}

async fn open_disk(dir: &Path) -> Result<DiskStore> {
    let dir = dir.to_owned();
    tokio::task::spawn_blocking(move || DiskStore::open(&dir, CACHE_BYTES))
        .await
        .map_err(|e| Error::internal("opening the store on the disk ended early").with_source(e))?
}

/// What a person sees meanwhile: a bar on a terminal, else a line in the log now and then.
struct Shown {
    bar: ProgressBar,
    clock: Arc<dyn Clock>,
    phase: Option<Phase>,
    logged_at: Moment,
    began: (Moment, u64),
}

impl Shown {
    fn start(clock: &Arc<dyn Clock>) -> Shown {
        let bar = ProgressBar::new_spinner();
        let now = clock.now();
        Shown { bar, clock: Arc::clone(clock), phase: None, logged_at: now, began: (now, 0) }
    }

    fn tell(&mut self, progress: Progress) {
        let Progress { phase, namespaces_done, namespaces, entries, bytes, of } = progress;
        let now = self.clock.now();
        if self.phase != Some(phase) {
            (self.phase, self.began) = (Some(phase), (now, entries));
            let template = match of {
                Some(_) => "{msg} {bar:30} {pos}/{len}",
                None => "{spinner} {msg}",
            };
            // Ours, which are right; were they not, the bar would look as it does without.
            if let Ok(style) = ProgressStyle::with_template(template) {
                self.bar.set_style(style);
            }
        }
        let doing = if phase == Phase::Copying { "copying" } else { "comparing" };
        let seconds = now.since(self.began.0).as_secs_f64().max(0.001);
        let rate = (entries - self.began.1) as f64 / seconds;
        let mebibytes = bytes / (1024 * 1024);
        let message = format!(
            "{doing}: {entries} entries, {mebibytes} MiB of values, {rate:.0} entries/s, namespace {} of {namespaces}",
            namespaces_done + 1
        );
        if self.bar.is_hidden() && now.since(self.logged_at) >= LOG_INTERVAL {
            self.logged_at = now;
            tracing::info!("{message}");
        }
        self.bar.set_message(message);
        if let Some(of) = of {
            self.bar.set_length(of);
            self.bar.set_position(entries);
        }
        self.bar.tick();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_named_by_its_kind_and_where_it_is() {
        for text in ["disk:data", "disk:/var/lib/kvasar:2", "cassandra:origin.toml"] {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), text);
        }
        for text in ["", "data", "disk:", "cassandra:", "scylla:origin.toml"] {
            assert!(text.parse::<Place>().is_err(), "{text}");
        }
    }
}
