//! Each role a process of its own, and what a location goes on answering while the tiers above it are stopped or killed.

mod support;

use std::{net::SocketAddr, path::Path, time::Duration};

use support::{Answer, Port, Server, ask, make_namespace, timed, wait_until};

const SECRET: &str = "a-secret-of-the-cluster-for-tests-only";

/// Origin, central tier, region and the edge `away`, far from its region, with deadlines that a test can wait for.
struct World {
    centre: Server,
    region: Server,
    away: Server,
    token: String,
    namespace: String,
    region_port: Port,
    /// The last to go: a failure shows the logs in it.
    folder: tempfile::TempDir,
}

/// How long `away` may take to give up: its own deadline, with four trips over the emulated distance, and as much again since the machine
/// may be busy.
const GIVES_UP: Duration = Duration::from_millis(2 * (1000 + 4 * 40));

fn common() -> String {
    format!("[server]\nadmin = \"127.0.0.1:0\"\n[cluster]\nsecret = \"{SECRET}\"\n")
}

fn region_config(listen: SocketAddr, centre: SocketAddr) -> String {
    let tier = "[[tier]]\nrole = \"regional\"\nname = \"region\"\nupstream_deadline = \"500ms\"\nwrite_deadline = \"500ms\"\ncontrol_max_age = \"1s\"";
    format!("{}{tier}\nlisten = \"{listen}\"\nupstream = \"{centre}\"\n", common())
}

impl World {
    fn start() -> World {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let centre = "[origin]\ndata = \"data\"\n[[tier]]\nrole = \"central\"\nname = \"centre\"\nupstream = \"origin\"\nlisten = \"127.0.0.1:0\"\n";
        let centre = Server::start(folder.path(), "centre", &format!("{}{centre}", common()));
        let region_port = Port::reserve();
        let region = Server::start(folder.path(), "region", &region_config(region_port.address, centre.tier()));
        let away = "[[tier]]\nrole = \"edge\"\nname = \"away\"\ndelay = \"40ms\"\nupstream_deadline = \"1s\"\nwrite_deadline = \"1s\"\ncontrol_max_age = \"1s\"";
        let away = format!("{}{away}\nlisten = \"127.0.0.1:0\"\nupstream = \"{}\"\n", common(), region.tier());
        let away = Server::start(folder.path(), "away", &away);
        let (account, token) = centre.account();
        let (token, namespace) = (token.to_owned(), make_namespace(centre.tier(), SECRET, account, "test"));
        World { centre, region, away, token, namespace, region_port, folder }
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn request(&self, at: SocketAddr, method: &str, key: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let bearer = format!("Bearer {}", self.token);
        let own = [("authorization", bearer.as_str()), ("kvasar-namespace", &self.namespace)];
        ask(at, method, &format!("/{key}?urlencoded=true"), &[&own, headers].concat(), body)
    }

    /// Writes where all writes end: at the centre.
    fn write(&self, key: &str, value: &str) {
        let written = self.request(self.centre.tier(), "PUT", key, &[], value.as_bytes());
        assert_eq!(written.status, 200, "{written:?}");
    }

    /// Reads at `away` what may be a minute old.
    fn read(&self, key: &str) -> Answer {
        self.request(self.away.tier(), "GET", key, &[], b"")
    }

    /// Reads at `away` what may be so many milliseconds old.
    fn read_within(&self, key: &str, max_age_ms: &str) -> Answer {
        self.request(self.away.tier(), "GET", key, &[("kvasar-max-age-ms", max_age_ms)], b"")
    }
}

fn assert_held(answer: &Answer, value: &str, status: &str) {
    let found = (answer.status, answer.cache_status(), String::from_utf8_lossy(&answer.body));
    assert_eq!(found, (200, status, value.into()));
    assert!(answer.header("kvasar-version").is_some_and(|version| version.len() == 16), "{answer:?}");
}

/// What is not held is refused in time, and the refusal says that it may be tried again.
fn assert_refused(ask: impl FnOnce() -> Answer) {
    let (answer, took) = timed(ask);
    assert_eq!(answer.status, 503, "{answer:?}");
    let wait: Option<u64> = answer.header("retry-after").and_then(|wait| wait.parse().ok());
    assert!(wait.is_some_and(|seconds| (1..=60).contains(&seconds)), "{answer:?}");
    assert!(took < GIVES_UP, "{took:?}");
}

#[test]
fn a_location_serves_what_it_holds_while_the_centre_stands_still_and_is_current_again_after() {
    let world = World::start();
    world.write("held", "first");
    assert_held(&world.read("held"), "first", "MISS");
    assert_held(&world.read("held"), "first", "HIT");
    assert_eq!(world.read("known-absent").status, 404);

    world.centre.signal("STOP");
    assert_held(&world.read("held"), "first", "HIT");

    wait_until("what is held to be older than the reads to come accept", || {
        world.read("held").age() > Duration::from_millis(1200)
    });
    let stale = world.read_within("held", "300");
    assert_held(&stale, "first", "STALE");
    assert!(stale.age() > Duration::from_millis(1200), "{stale:?}");
    wait_until("the age of what is stale to grow", || {
        let later = world.read_within("held", "300");
        assert_held(&later, "first", "STALE");
        later.age() > stale.age() + Duration::from_millis(500)
    });
    let absent = world.read_within("known-absent", "300");
    assert_eq!((absent.status, absent.cache_status()), (404, "STALE"));

    assert_refused(|| world.read("cold"));
    assert_refused(|| world.request(world.away.tier(), "PUT", "refused", &[], b"value"));
    // The latest is not to be had, and what is held is not passed off as it.
    assert_refused(|| world.read_within("held", "0"));

    world.centre.signal("CONT");
    world.write("held", "second");
    wait_until("the new value at the location", || {
        let answer = world.read_within("held", "300");
        let current = answer.body == b"second";
        assert!(current || answer.cache_status() == "STALE", "{answer:?}");
        current
    });
    wait_until("what is current to be answered as such", || world.read_within("held", "300").cache_status() != "STALE");
    wait_until("the cold key to be looked up", || world.read("cold").status == 404);
    wait_until("the location to write again", || {
        world.request(world.away.tier(), "PUT", "own", &[], b"value").status == 200
    });
    assert_held(&world.read("own"), "value", "HIT");
}

#[test]
fn a_killed_region_comes_back_empty_and_every_role_stops_cleanly() {
    let mut world = World::start();
    world.write("held", "value");
    assert_held(&world.read("held"), "value", "MISS");

    world.region.signal("KILL");
    assert_refused(|| world.read("cold"));
    assert_held(&world.read("held"), "value", "HIT");
    assert_held(&world.read_within("held", "1"), "value", "STALE");

    let config = region_config(world.region_port.address, world.centre.tier());
    world.region = Server::start(world.folder(), "region", &config);
    world.write("cold", "found");
    wait_until("the location to find its region again", || world.read("cold").body == b"found");
    let renewed = world.read_within("held", "1");
    assert_eq!((renewed.status, renewed.cache_status(), &*renewed.body), (200, "REVALIDATED", b"value".as_slice()));

    for (name, server) in [("away", world.away), ("region", world.region), ("centre", world.centre)] {
        assert_eq!(ask(server.admin(), "GET", "/readyz", &[], b"").status, 200, "{name}");
        let status = server.stop();
        assert!(status.success(), "{name} ended with {status}");
    }
}
