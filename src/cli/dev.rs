//! `kvasar dev`: a whole world in one process, for people who build Workers.

use std::{net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::Args;

use crate::{
    config,
    error::{Error, Result},
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

pub async fn run(_arguments: Arguments) -> Result<()> {
    Err(Error::internal("'dev' is not wired yet"))
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
