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

/// Writes in one trip, see `POST /kvasar/write`.
const WRITES_MAX: u32 = 1000;

impl Kvasar {
    /// An edge in front of an origin, with room for all that is measured; `more` is added to its configuration.
    pub async fn start(cores: Option<&str>, folder: &Path, more: &str) -> Kvasar {
        let folder = folder.join("kvasar");
        std::fs::create_dir_all(&folder).expect("a folder is made");
        let config = format!(
            "[server]\nadmin = \"127.0.0.1:0\"\n[cluster]\nsecret = \"{SECRET}\"\n[origin]\ndata = \"data\"\n\
             [[tier]]\nrole = \"edge\"\nname = \"edge\"\nupstream = \"origin\"\nlisten = \"127.0.0.1:0\"\ncache = \"4GiB\"\n{more}"
        );
        let file = folder.join("server.toml");
        std::fs::write(&file, config).expect("a configuration is written");
        let server = Server::start(&folder, cores, &["serve", "--config", file.to_str().expect("a path in UTF-8")]);
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
        let client = self.client();
        // What is taken by many at once has a bound on each value.
        if values.length() > 64 * 1024 - 1024 {
            for key in 0..count {
                let url = format!("http://{}/{}?urlencoded=true", self.address, name(key));
                client.ask(Method::PUT, &url, values.of(key)).await;
            }
            return;
        }
        let control = Client::new(vec![
            ("authorization", format!("Bearer {SECRET}")),
            ("kvasar-namespace", self.namespace().to_owned()),
        ]);
        for first in (0..count).step_by(WRITES_MAX as usize) {
            let mut body = Vec::new();
            for key in first..count.min(first + WRITES_MAX) {
                let name = name(key);
                // A put that never expires, without metadata.
                body.push(1);
                body.extend_from_slice(&(name.len() as u16).to_be_bytes());
                body.extend_from_slice(name.as_bytes());
                body.push(0);
                body.extend_from_slice(&0u64.to_be_bytes());
                body.extend_from_slice(&u16::MAX.to_be_bytes());
                body.extend_from_slice(&(values.length() as u32).to_be_bytes());
                body.extend_from_slice(&values.of(key));
            }
            let answer = control.ask(Method::POST, &format!("http://{}/kvasar/write", self.address), body).await;
            let answer: serde_json::Value = serde_json::from_slice(&answer).expect("the answer is JSON");
            let written =
                answer.as_array().expect("an outcome for each").iter().filter(|outcome| outcome["written"].is_object());
            assert_eq!(written.count() as u32, count.min(first + WRITES_MAX) - first, "{answer}");
        }
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
