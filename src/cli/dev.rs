//! `kvasar dev`: a whole world in one process, for people who build Workers.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use clap::Args;
use indicatif::ProgressBar;
use serde::Serialize;

use crate::{
    api::auth,
    cli::{
        log,
        process::{self, Signals},
        worker::{self, Worker},
        workerd,
    },
    clock::RealClock,
    config::{self, Config, RestOn, Role, Upstream},
    error::{Error, Result},
    kv::{AccountId, NamespaceId},
    roles::{self, Links, Running},
};

/// Run a whole world in one process: origin, central and regional tiers, and edge locations
///
/// The first start makes an account, a token and a namespace `default`, and prints, ready to paste, what wrangler, curl and workerd need to know.
/// Everything is kept in the data folder; stop it with ctrl-C and start it again where it was.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Folder for everything that is kept
    #[arg(long, value_name = "DIR", default_value = ".kvasar")]
    pub data: PathBuf,
    /// Where the REST API listens; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7700")]
    pub rest: SocketAddr,
    /// An edge location: NAME=ADDR[,region=R][,delay=80ms]. May be given several times [default: two, `home` and `away`]
    ///
    /// `region` names the regional tier that it asks (its own name unless said otherwise), `delay` is the emulated one-way distance to it.
    #[arg(long = "location", value_name = "NAME=ADDR[,region=R][,delay=D]")]
    pub locations: Vec<Location>,
    /// Where health and metrics listen [default: a free port]
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0", hide_default_value = true)]
    pub admin: SocketAddr,
    /// Memory for each tier's cache
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = config::size)]
    pub cache: u64,
    /// Refuse what the hosted product refuses: more than one write a second to a key
    #[arg(long)]
    pub production_limits: bool,
    /// Also run this Worker under workerd, once per location, with the binding `KV` to the namespace `default`
    #[arg(long, value_name = "FILE.js")]
    pub worker: Option<PathBuf>,
    /// Write one JSON object with addresses and credentials to this file once everything listens
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
    /// Print nothing but warnings and errors
    #[arg(long, short)]
    pub quiet: bool,
}

const EXAMPLES: &str = "\
Examples:
  kvasar dev
  kvasar dev --data /tmp/world --rest 127.0.0.1:0 --ready-file ready.json
  kvasar dev --location ams=127.0.0.1:7711,region=eu --location nrt=127.0.0.1:7712,region=asia,delay=120ms
  kvasar dev --worker worker.js --production-limits";

/// One edge location of the world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    pub name: String,
    pub listen: SocketAddr,
    pub region: String,
    /// The emulated one-way distance to the region.
    pub delay: Duration,
}

impl Location {
    /// What is there when no `--location` is given: one near and one far, in two regions.
    pub fn defaults() -> Vec<Location> {
        let location = |name: &str, port, region: &str, delay| Location {
            name: name.to_owned(),
            listen: SocketAddr::from(([127, 0, 0, 1], port)),
            region: region.to_owned(),
            delay: Duration::from_millis(delay),
        };
        vec![location("home", 7711, "near", 0), location("away", 7712, "far", 80)]
    }
}

impl FromStr for Location {
    type Err = Error;

    fn from_str(text: &str) -> Result<Location> {
        let mut parts = text.split(',');
        let first = parts.next().unwrap_or_default();
        let (name, address) = first.split_once('=').ok_or_else(|| {
            Error::bad_request(format!("'{first}' is not NAME=ADDR, for example home=127.0.0.1:7711"))
        })?;
        config::check_name(name).map_err(Error::bad_request)?;
        let listen = config::address(address).map_err(Error::bad_request)?;
        let mut location = Location { name: name.to_owned(), listen, region: name.to_owned(), delay: Duration::ZERO };
        for part in parts {
            match part.split_once('=') {
                Some(("region", region)) => {
                    config::check_name(region).map_err(Error::bad_request)?;
                    location.region = region.to_owned();
                }
                Some(("delay", delay)) => location.delay = config::duration(delay).map_err(Error::bad_request)?,
                _ => {
                    return Err(Error::bad_request(format!("'{part}' is neither region=NAME nor delay=TIME")));
                }
            }
        }
        Ok(location)
    }
}

pub async fn run(arguments: Arguments) -> Result<()> {
    log::start(config::Log::Text, "warn")?;
    let clock = RealClock::shared();
    let secret = auth::new_secret(&*clock);
    let locations = if arguments.locations.is_empty() { Location::defaults() } else { arguments.locations.clone() };
    let config = world(&arguments, &locations, secret)?;
    let waiting = waiting(arguments.quiet);
    waiting.set_message(format!("opening the store in {}", arguments.data.display()));
    let mut signals = Signals::take()?;
    let running = roles::start(&config, Links::Sockets, clock).await?;
    let served = serve(&arguments, &locations, &running, &mut signals, waiting).await;
    let stopped = signals.stop(running).await;
    served.and(stopped)
}

/// What a person sees while a large store is opened, or workerd starts; nothing where there is no terminal.
fn waiting(quiet: bool) -> ProgressBar {
    if quiet {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// Tells everybody where everything is, and runs until it is told to stop.
async fn serve(
    arguments: &Arguments,
    locations: &[Location],
    running: &Running,
    signals: &mut Signals,
    waiting: ProgressBar,
) -> Result<()> {
    let ready = Ready::of(locations, running).await?;
    let mut workers = Vec::new();
    if let Some(worker) = &arguments.worker {
        let binding = workerd::Binding { name: "KV".to_owned(), namespace: ready.namespace.id };
        for location in &ready.locations {
            waiting.set_message(format!("starting workerd at {}", location.name));
            workers.push(Worker::start(worker, &location.name, &location.binding, &ready.token, &binding).await?);
        }
    }
    if let Some(file) = &arguments.ready_file {
        process::write_ready_file(file, &ready)?;
    }
    waiting.finish_and_clear();
    if !arguments.quiet {
        super::show(&introduction(&ready, running, &workers, &arguments.data))?;
    }
    let ended = tokio::select! {
        () = signals.told_to_stop() => Ok(()),
        ended = worker::any_ended(&mut workers) => ended,
    };
    worker::stop(workers).await;
    ended
}

/// The configuration of the world: every part listens, so that all of them talk over sockets as they would on machines of their own.
fn world(arguments: &Arguments, locations: &[Location], secret: String) -> Result<Config> {
    let anywhere = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    let mut tiers = vec![config::Tier {
        listen: anywhere,
        cache: arguments.cache,
        ..config::Tier::new(Role::Central, CENTRAL, Upstream::Origin)
    }];
    for location in locations {
        let region = format!("{}.region", location.region);
        if !tiers.iter().any(|tier| tier.name == region) {
            let upstream = Upstream::Tier(CENTRAL.to_owned());
            let tier = config::Tier::new(Role::Regional, region.clone(), upstream);
            tiers.push(config::Tier { listen: anywhere, cache: arguments.cache, ..tier });
        }
        if tiers.iter().any(|tier| tier.name == location.name) {
            return Err(Error::bad_request(format!("two parts of this world would be called {}", location.name)));
        }
        let tier = config::Tier::new(Role::Edge, location.name.clone(), Upstream::Tier(region));
        tiers.push(config::Tier {
            listen: Some(location.listen),
            delay: location.delay,
            cache: arguments.cache,
            ..tier
        });
    }
    Ok(Config {
        server: config::Server { location: "dev".to_owned(), admin: Some(arguments.admin), ..Default::default() },
        cluster_secret: Some(config::Secret::new(secret)),
        origin: Some(config::Origin {
            listen: anywhere,
            writes_per_key_per_second: arguments.production_limits.then_some(1),
            ..config::Origin::new(&arguments.data)
        }),
        accounts: vec![ACCOUNT.to_owned()],
        tiers,
        rest: Some(config::Rest { listen: arguments.rest, on: RestOn::Tier(CENTRAL.to_owned()) }),
        limits: config::Limits::default(),
    })
}

const CENTRAL: &str = "central";
const ACCOUNT: &str = "default";
/// The title of the namespace that is there from the first start on.
const NAMESPACE: &str = "default";

/// What the ready file says.
#[derive(Serialize)]
struct Ready {
    pid: u32,
    rest: String,
    admin: Option<String>,
    account_id: AccountId,
    token: String,
    namespace: ReadyNamespace,
    locations: Vec<ReadyLocation>,
}

#[derive(Serialize)]
struct ReadyNamespace {
    id: NamespaceId,
    title: String,
}

#[derive(Serialize)]
struct ReadyLocation {
    name: String,
    region: String,
    binding: String,
    delay_ms: u64,
}

impl Ready {
    async fn of(locations: &[Location], running: &Running) -> Result<Ready> {
        let missing = |what: &str| Error::internal(format!("the world started without its {what}"));
        let origin = running.origin.as_ref().ok_or_else(|| missing("origin"))?;
        let account = running.accounts.first().ok_or_else(|| missing("account"))?;
        let namespace = roles::ensure_namespace(origin, account.account_id, NAMESPACE).await?;
        let located = locations.iter().map(|location| {
            let tier = running.tiers.iter().find(|tier| tier.name == location.name);
            let listen = tier.and_then(|tier| tier.listen).ok_or_else(|| missing(&location.name))?;
            Ok(ReadyLocation {
                name: location.name.clone(),
                region: location.region.clone(),
                binding: listen.to_string(),
                delay_ms: u64::try_from(location.delay.as_millis()).unwrap_or(u64::MAX),
            })
        });
        Ok(Ready {
            pid: std::process::id(),
            rest: process::rest_url(running.rest.ok_or_else(|| missing("REST API"))?),
            admin: running.admin.map(|admin| format!("http://{admin}")),
            account_id: account.account_id,
            token: account.token.clone(),
            namespace: ReadyNamespace { id: namespace.id, title: namespace.title },
            locations: located.collect::<Result<_>>()?,
        })
    }
}

/// What a person needs to know, ready to paste. The token is shown once; later starts say where it is kept.
fn introduction(ready: &Ready, running: &Running, workers: &[Worker], data: &Path) -> String {
    let new = running.accounts.iter().any(|account| account.new);
    let kept = data.join("accounts").join(format!("{ACCOUNT}.json"));
    let (token, curl_token) = match new {
        true => (ready.token.clone(), ready.token.clone()),
        false => {
            let read = format!("$(sed -n 's/.*\"token\": \"\\(.*\\)\".*/\\1/p' {})", kept.display());
            (read, "$CLOUDFLARE_API_TOKEN".to_owned())
        }
    };
    let mut text = format!(
        "Kvasar is ready. Its data is in {data}, its token in {kept}.\n\n\
         For wrangler, the SDKs and Terraform:\n\n\
         \x20 export CLOUDFLARE_API_BASE_URL={rest}\n\
         \x20 export CLOUDFLARE_BASE_URL={rest}\n\
         \x20 export CLOUDFLARE_ACCOUNT_ID={account}\n\
         \x20 export CLOUDFLARE_API_TOKEN={token}\n\
         \x20 npx wrangler kv key put hello world --namespace-id {namespace} --remote\n\n\
         For curl, at each location:\n\n",
        data = data.display(),
        kept = kept.display(),
        rest = ready.rest,
        account = ready.account_id,
        namespace = ready.namespace.id,
    );
    for location in &ready.locations {
        text.push_str(&format!(
            "  curl -i http://{}/hello -H 'kvasar-namespace: {}' -H \"Authorization: Bearer {curl_token}\"   # {}, {} ms from its region\n",
            location.binding, ready.namespace.id, location.name, location.delay_ms
        ));
    }
    if let Some(location) = ready.locations.first() {
        text.push_str(&format!(
            "\nFor a Worker under workerd, at {}:\n\n  \
             kvasar workerd-config --location {} --binding KV={} --token \"{curl_token}\" > config.capnp && npx workerd serve config.capnp\n",
            location.name, location.binding, ready.namespace.id
        ));
    }
    for worker in workers {
        text.push_str(&format!("\nYour Worker at {} listens on http://{}\n", worker.location, worker.address));
    }
    if let Some(admin) = &ready.admin {
        text.push_str(&format!("\nHealth and metrics: {admin}/metrics\nStop with ctrl-C.\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<(&str, &str, &str, u64), &str>) {
        let parsed = text.parse::<Location>();
        let shown = parsed
            .as_ref()
            .map(|l| (l.name.as_str(), l.listen.to_string(), l.region.as_str(), l.delay.as_millis() as u64))
            .map_err(|e| e.message.as_str());
        let expected = expected.map(|(name, listen, region, delay)| (name, listen.to_owned(), region, delay));
        assert_eq!(shown, expected, "{text}");
    }

    #[test]
    fn a_location_is_a_name_an_address_and_what_differs_from_the_defaults() {
        check("home=127.0.0.1:7711", Ok(("home", "127.0.0.1:7711", "home", 0)));
        check("away=[::1]:0,region=far,delay=80ms", Ok(("away", "[::1]:0", "far", 80)));
        check("away=127.0.0.1:0,delay=1s,region=far", Ok(("away", "127.0.0.1:0", "far", 1000)));
    }

    #[test]
    fn a_bad_location_is_refused_with_what_is_wrong_with_it() {
        check("home", Err("'home' is not NAME=ADDR, for example home=127.0.0.1:7711"));
        check("=127.0.0.1:1", Err("a name is 1 to 64 of a-z, A-Z, 0-9, '-', '_' and '.', not ''"));
        check("a b=127.0.0.1:1", Err("a name is 1 to 64 of a-z, A-Z, 0-9, '-', '_' and '.', not 'a b'"));
        check("home=7711", Err("'7711' is not an address such as 127.0.0.1:7700 or [::1]:7700"));
        check("home=127.0.0.1:1,delay=80", Err("'80' is not a time such as 80ms, 10s, 5m, 24h or 7d"));
        check("home=127.0.0.1:1,zone=a", Err("'zone=a' is neither region=NAME nor delay=TIME"));
    }

    #[test]
    fn the_default_world_has_two_locations_in_two_regions() {
        let locations = Location::defaults();
        assert_eq!(locations.len(), 2);
        assert_ne!(locations[0].region, locations[1].region);
        assert!(locations[0].delay < locations[1].delay);
    }
}
