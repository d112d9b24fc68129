//! Each role a process of its own: origin <- centre <- region <- `away`, the last an emulated distance from its region.
//!
//! Each can be killed and started again where it was. Copies are read as if they never timed out, so that what is seen to change was told by the feed.

use std::{net::SocketAddr, time::Duration};

use super::{Answer, Port, Server, ask, make_namespace, wait_until};

pub(crate) const SECRET: &str = "a-secret-of-the-cluster-for-tests-only";

/// How long what travels is under way between the region and `away`.
pub(crate) const TRIP: Duration = Duration::from_millis(40);

pub(crate) struct Chain {
    pub(crate) origin: Server,
    pub(crate) centre: Server,
    pub(crate) region: Server,
    pub(crate) away: Server,
    pub(crate) account: String,
    pub(crate) token: String,
    pub(crate) namespace: String,
    origin_port: Port,
    region_port: Port,
    /// The last to go: a failure shows the logs in it.
    folder: tempfile::TempDir,
}

const ANY_PORT: &str = "127.0.0.1:0";

fn common() -> String {
    // A process that waited for those who follow it would be noticed.
    format!("[server]\nadmin = \"{ANY_PORT}\"\nshutdown_deadline = \"60s\"\n[cluster]\nsecret = \"{SECRET}\"\n")
}

fn origin_config(listen: SocketAddr) -> String {
    format!("{}[origin]\ndata = \"data\"\nlisten = \"{listen}\"\n", common())
}

fn region_config(listen: SocketAddr, upstream: SocketAddr) -> String {
    tier_config("regional", "region", &listen.to_string(), upstream, "")
}

fn tier_config(role: &str, name: &str, listen: &str, upstream: SocketAddr, more: &str) -> String {
    let tier =
        format!("[[tier]]\nrole = \"{role}\"\nname = \"{name}\"\nlisten = \"{listen}\"\nupstream = \"{upstream}\"\n");
    format!("{}{tier}{more}\n", common())
}

impl Chain {
    /// Starts all of it, and waits until `away` knows what it holds to be fresh without asking.
    pub(crate) fn start() -> Chain {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path();
        let (origin_port, region_port) = (Port::reserve(), Port::reserve());
        let origin = Server::start(path, "origin", &origin_config(origin_port.address));
        let rest = format!("[rest]\nlisten = \"{ANY_PORT}\"\non = \"centre\"");
        let centre = tier_config("central", "centre", ANY_PORT, origin.origin(), &rest);
        let centre = Server::start(path, "centre", &centre);
        let region = Server::start(path, "region", &region_config(region_port.address, centre.tier()));
        let delay = format!("delay = \"{}ms\"", TRIP.as_millis());
        let away = Server::start(path, "away", &tier_config("edge", "away", ANY_PORT, region.tier(), &delay));
        let (account, token) = origin.account();
        let (account, token) = (account.to_owned(), token.to_owned());
        let namespace = String::new();
        let mut chain =
            Chain { origin, centre, region, away, account, token, namespace, origin_port, region_port, folder };
        chain.namespace = chain.make_namespace("test");
        chain.wait_for_cover();
        chain
    }

    /// Kills the origin, then runs `meanwhile`, and starts it again on the same data and port.
    pub(crate) fn restart_origin(&mut self, meanwhile: impl FnOnce(&Chain)) {
        self.origin.signal("KILL");
        meanwhile(self);
        self.origin = Server::start(self.folder.path(), "origin", &origin_config(self.origin_port.address));
    }

    /// The same with the region.
    pub(crate) fn restart_region(&mut self, meanwhile: impl FnOnce(&Chain)) {
        self.region.signal("KILL");
        meanwhile(self);
        let config = region_config(self.region_port.address, self.centre.tier());
        self.region = Server::start(self.folder.path(), "region", &config);
    }

    pub(crate) fn make_namespace(&self, title: &str) -> String {
        make_namespace(self.centre.tier(), SECRET, &self.account, title)
    }

    pub(crate) fn request(
        &self,
        at: SocketAddr,
        method: &str,
        key: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        let bearer = format!("Bearer {}", self.token);
        let own = [("authorization", bearer.as_str()), ("kvasar-namespace", &self.namespace)];
        ask(at, method, &format!("/{key}?urlencoded=true&cache_ttl=86400"), &[&own, headers].concat(), body)
    }

    /// Writes at the centre; answers the version.
    pub(crate) fn write(&self, key: &str, value: &[u8]) -> String {
        let written = self.request(self.centre.tier(), "PUT", key, &[], value);
        assert_eq!(written.status, 200, "{written:?}");
        written.version().to_owned()
    }

    pub(crate) fn delete(&self, key: &str) {
        let written = self.request(self.centre.tier(), "DELETE", key, &[], b"");
        assert_eq!(written.status, 200, "{written:?}");
    }

    /// Reads at `away` what may be a day old.
    pub(crate) fn read(&self, key: &str) -> Answer {
        self.read_with(key, &[])
    }

    pub(crate) fn read_with(&self, key: &str, headers: &[(&str, &str)]) -> Answer {
        self.request(self.away.tier(), "GET", key, headers, b"")
    }

    /// Has `away` hold what is current of a key.
    pub(crate) fn hold(&self, key: &str) -> Answer {
        let answer = self.read_with(key, &[("kvasar-max-age-ms", "0")]);
        assert!(matches!(answer.status, 200 | 404), "{answer:?}");
        assert_eq!(self.read(key).cache_status(), "HIT");
        answer
    }

    /// Waits until `away` proves what it holds by its feed: the age of something held falls without a question. What was filled in just after a start may
    /// have been verified before it, and is not covered; so each look holds something new.
    pub(crate) fn wait_for_cover(&self) {
        let mut ages: Vec<(String, Duration)> = Vec::new();
        wait_until("what is held away to be covered by the feed", || {
            let covered = ages.iter_mut().any(|(key, age)| {
                let answer = self.read(key);
                let before = std::mem::replace(age, answer.age());
                answer.cache_status() == "HIT" && answer.age() < before
            });
            if !covered && ages.len() < 50 {
                let key = format!("cover-{}", ages.len());
                let age = self.read(&key).age();
                ages.push((key, age));
            }
            covered
        });
    }
}
