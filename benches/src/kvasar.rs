//! One process with an origin and tiers, ready to be asked by the owner of an account.

use std::{net::SocketAddr, path::Path};

use hyper::Method;

use crate::{
    ask::{Expected, Keys, Request, Values, name},
    chain::{SECRET, owner},
    client::Client,
    load::Target,
    process::Server,
};

pub struct Kvasar {
    pub server: Server,
    /// Where the tier listens.
    pub address: SocketAddr,
    /// What goes with each request, as lines.
    pub headers: String,
}

/// Writes in one trip, see `POST /kvasar/write`, and how long each may be.
const WRITES_MAX: usize = 1000;
const WRITE_BYTES_MAX: usize = 64 * 1024;

/// What is added to the configuration: to the origin, to the tier, and behind both; and to the environment.
#[derive(Clone, Copy, Default)]
pub struct More<'a> {
    pub origin: &'a str,
    pub tier: &'a str,
    pub end: &'a str,
    pub environment: &'a [(&'a str, &'a str)],
}

impl Kvasar {
    /// An edge in front of an origin, with room for all that is measured, in a folder of that name.
    pub async fn start(cores: Option<&str>, folder: &Path, name: &str, more: More<'_>) -> Kvasar {
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder).expect("a folder is made");
        let More { origin, tier, end, environment } = more;
        let config = format!(
            "[server]\nadmin = \"127.0.0.1:0\"\n[cluster]\nsecret = \"{SECRET}\"\n[origin]\ndata = \"data\"\n{origin}\
             [[tier]]\nrole = \"edge\"\nname = \"edge\"\nupstream = \"origin\"\nlisten = \"127.0.0.1:0\"\ncache = \"4GiB\"\n{tier}{end}"
        );
        let file = folder.join("server.toml");
        std::fs::write(&file, config).expect("a configuration is written");
        let arguments = ["serve", "--config", file.to_str().expect("a path in UTF-8")];
        let server = Server::start_in(&folder, cores, &arguments, environment);
        let address = server.address("/tiers/0/listen");
        let headers = owner(&server, address).await;
        Kvasar { server, address, headers }
    }

    pub fn client(&self) -> Client {
        let lines = self.headers.lines().filter_map(|line| line.split_once(": "));
        let names = [("Authorization", "authorization"), ("kvasar-namespace", "kvasar-namespace")];
        let named = |name: &str| names.iter().find(|(line, _)| *line == name).map(|(_, header)| *header);
        Client::new(lines.filter_map(|(name, value)| Some((named(name)?, value.to_owned()))).collect())
    }

    /// Writes the values of keys from 0 on.
    pub async fn fill(&self, count: u32, values: &Values) {
        if values.length() > WRITE_BYTES_MAX {
            for key in 0..count {
                let url = format!("http://{}/{}?urlencoded=true", self.address, name(key));
                self.client().ask(Method::PUT, &url, values.of(key)).await;
            }
            return;
        }
        write_many(self.address, self.namespace(), count, name, values, None).await;
    }

    pub fn namespace(&self) -> &str {
        let line = self.headers.lines().find_map(|line| line.strip_prefix("kvasar-namespace: "));
        line.expect("the namespace is named")
    }

    /// Reads as a Worker's runtime sends them.
    pub fn reads(&self, keys: Keys, expected: Expected) -> Target {
        Target {
            name: "kvasar, edge hit".to_owned(),
            address: self.address,
            request: Request::get(self.address, "/key-", "?urlencoded=true", &self.headers),
            keys,
            expected,
            servers: vec![self.server.id()],
        }
    }
}

/// Writes the values of keys from 0 on, by what each is called, many in a trip; they never expire, or in so many seconds.
pub async fn write_many(
    to: SocketAddr,
    namespace: &str,
    count: u32,
    called: impl Fn(u32) -> String,
    values: &Values,
    expire: Option<u64>,
) {
    let control =
        Client::new(vec![("authorization", format!("Bearer {SECRET}")), ("kvasar-namespace", namespace.to_owned())]);
    let keys: Vec<u32> = (0..count).collect();
    for keys in keys.chunks(WRITES_MAX) {
        let mut body = Vec::new();
        for key in keys {
            let name = called(*key);
            body.push(1);
            body.extend_from_slice(&(name.len() as u16).to_be_bytes());
            body.extend_from_slice(name.as_bytes());
            body.push(if expire.is_some() { 2 } else { 0 });
            body.extend_from_slice(&expire.unwrap_or_default().to_be_bytes());
            // No metadata.
            body.extend_from_slice(&u16::MAX.to_be_bytes());
            body.extend_from_slice(&(values.length() as u32).to_be_bytes());
            body.extend_from_slice(&values.of(*key));
        }
        let answer = control.ask(Method::POST, &format!("http://{to}/kvasar/write"), body).await;
        let answer: serde_json::Value = serde_json::from_slice(&answer).expect("the answer is JSON");
        let outcomes = answer.as_array().expect("an outcome for each");
        let written = outcomes.iter().filter(|outcome| outcome["written"].is_object()).count();
        assert_eq!(written, keys.len(), "{answer}");
    }
}
