//! The shipped configurations, each started for real: only ports and what they chain to are replaced, so that tests run beside each other.

mod support;

use std::{fs, net::SocketAddr, path::Path};

use support::{Server, ask};

/// Where `region.toml` asks `origin.toml`, and where `edge.toml` asks `region.toml`.
const CENTRE: &str = "127.0.0.1:7702";
const REGION: &str = "127.0.0.1:7703";

fn shipped(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/config").join(format!("{name}.toml"));
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("reading {}: {e}", path.display()))
}

/// Starts a shipped configuration in a folder of its own, with free ports, asking what is given in place of the address that it names.
fn start(folder: &Path, name: &str, upstream: Option<(&str, SocketAddr)>) -> Server {
    let mut config = String::new();
    for line in shipped(name).lines() {
        let field = line.split_once(" = ").map(|(field, _)| field);
        let line = match (field, upstream) {
            (Some(field @ ("listen" | "admin")), _) => format!("{field} = \"127.0.0.1:0\""),
            (Some("upstream"), Some((from, to))) => {
                assert!(line.contains(from), "{name}.toml does not ask {from}: {line}");
                line.replace(from, &to.to_string())
            }
            _ => line.to_owned(),
        };
        config.push_str(&line);
        config.push('\n');
    }
    let own = folder.join(name);
    fs::create_dir(&own).expect("a folder is made");
    fs::write(own.join("cluster.secret"), "a-secret-of-the-cluster-for-tests-only\n").expect("a secret is written");
    let server = Server::start(&own, name, &config);
    let ready = ask(server.admin(), "GET", "/readyz", &[], b"");
    assert_eq!((ready.status, ready.body.as_slice()), (200, b"ready\n".as_slice()), "{name}");
    server
}

/// Makes a namespace through REST, as a person would, and answers how to get into it.
fn enter_new_namespace(origin: &Server) -> [(&'static str, String); 2] {
    let (account, token) = origin.account();
    let path = format!("/client/v4/accounts/{account}/storage/kv/namespaces");
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let made = ask(origin.rest(), "POST", &path, &headers, b"{\"title\": \"examples\"}");
    assert_eq!(made.status, 200, "{made:?}");
    let id = made.json()["result"]["id"].as_str().map(str::to_owned).expect("a namespace has an id");
    [("authorization", bearer), ("kvasar-namespace", id)]
}

/// Writes at one location, and reads it there and at the others.
fn assert_serves(headers: &[(&'static str, String); 2], writes: SocketAddr, reads: &[SocketAddr]) {
    let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
    let written = ask(writes, "PUT", "/key?urlencoded=true", &headers, b"value");
    assert_eq!(written.status, 200, "{written:?}");
    for at in [&[writes], reads].concat() {
        let found = ask(at, "GET", "/key?urlencoded=true", &headers, b"");
        assert_eq!((found.status, found.body.as_slice()), (200, b"value".as_slice()), "{at}: {found:?}");
    }
}

fn assert_stops(name: &str, server: Server) {
    let status = server.stop();
    assert!(status.success(), "{name} ended with {status}");
}

#[test]
fn all_in_one_serves_workers_and_rest() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let server = start(folder.path(), "all-in-one", None);
    assert_serves(&enter_new_namespace(&server), server.tier(), &[]);
    assert_stops("all-in-one", server);
}

#[test]
fn origin_region_and_edge_are_a_chain() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let origin = start(folder.path(), "origin", None);
    let region = start(folder.path(), "region", Some((CENTRE, origin.tier())));
    let edge = start(folder.path(), "edge", Some((REGION, region.tier())));
    assert_serves(&enter_new_namespace(&origin), edge.tier(), &[region.tier(), origin.tier()]);
    for (name, server) in [("edge", edge), ("region", region), ("origin", origin)] {
        assert_stops(name, server);
    }
}

#[test]
fn the_chain_fits_together_as_shipped() {
    for (name, address) in [("origin", CENTRE), ("region", REGION)] {
        let listens = format!("listen = \"{address}\"");
        assert!(shipped(name).lines().any(|line| line.starts_with(&listens)), "{name}.toml has no {listens}");
    }
}
