//! What the sections of a file say about each other.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
};

use super::{Config, Problem, RestOn, Role, Tier, Upstream, read::PlacedConfig, section::Placed};

/// Everything that is wrong between the sections, in no order.
pub(super) fn all(config: &PlacedConfig) -> Vec<Problem> {
    let mut problems = Problems(Vec::new());
    roles(config, &mut problems);
    names(config, &mut problems);
    upstreams(config, &mut problems);
    rest(config, &mut problems);
    listeners(config, &mut problems);
    reachable(config, &mut problems);
    secret(config, &mut problems);
    origins(config, &mut problems);
    problems.0
}

/// The checked settings, each tier after its upstream.
pub(super) fn in_order(config: PlacedConfig) -> Config {
    let mut waiting: Vec<Tier> = config.tiers.into_iter().map(|tier| tier.value).collect();
    let mut tiers: Vec<Tier> = Vec::with_capacity(waiting.len());
    while !waiting.is_empty() {
        let (ready, rest): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|tier| match &tier.upstream {
            Upstream::Tier(name) => tiers.iter().any(|done| done.name == *name),
            Upstream::Origin | Upstream::Remote(_) | Upstream::Origins(_) => true,
        });
        assert!(!ready.is_empty(), "a checked file has no circle of tiers");
        tiers.extend(ready);
        waiting = rest;
    }
    let named = config.accounts.into_iter().map(|account| account.value);
    let mut accounts: Vec<String> = named.collect();
    if accounts.is_empty() && config.origin.is_some() {
        accounts.push("default".to_owned());
    }
    Config {
        server: config.server,
        cluster_secret: config.cluster,
        origin: config.origin.map(|origin| origin.value),
        accounts,
        tiers,
        rest: config.rest.map(|rest| rest.value),
        limits: config.limits,
    }
}

struct Problems(Vec<Problem>);

impl Problems {
    fn add(&mut self, line: usize, what: impl Into<String>, instead: impl Into<String>) {
        self.0.push(Problem { line, what: what.into(), instead: instead.into() });
    }
}

fn roles(config: &PlacedConfig, problems: &mut Problems) {
    if config.origin.is_none() && config.tiers.is_empty() {
        problems.add(1, "the file names no role, so there is nothing to serve", "an [origin], a [[tier]], or both");
    }
    if let (None, Some(account)) = (&config.origin, config.accounts.first()) {
        let what = "an [[account]] is made by an origin, and this file has none";
        problems.add(account.line("name"), what, "no [[account]] here, but in the file with the [origin]");
    }
}

fn names(config: &PlacedConfig, problems: &mut Problems) {
    let mut seen = HashMap::new();
    for tier in config.tiers.iter().filter(|tier| tier.has("name")) {
        if let Some(first) = seen.insert(&tier.value.name, tier.line("name")) {
            let what = format!("the tier of line {first} is called '{}', too", tier.value.name);
            problems.add(tier.line("name"), what, "another name");
        }
    }
    let mut seen = HashMap::new();
    for account in config.accounts.iter().filter(|account| account.has("name")) {
        if let Some(first) = seen.insert(&account.value, account.line("name")) {
            let what = format!("the account of line {first} is called '{}', too", account.value);
            problems.add(account.line("name"), what, "another name");
        }
    }
}

fn find<'c>(config: &'c PlacedConfig, name: &str) -> Option<&'c Placed<Tier>> {
    config.tiers.iter().find(|tier| tier.value.name == name)
}

fn upstreams(config: &PlacedConfig, problems: &mut Problems) {
    for tier in config.tiers.iter().filter(|tier| tier.has("upstream")) {
        let line = tier.line("upstream");
        match &tier.value.upstream {
            Upstream::Origin if config.origin.is_none() => {
                problems.add(line, "this file has no [origin] to ask", "upstream = \"host:port\" of the server above");
            }
            Upstream::Tier(name) => match find(config, name) {
                None => {
                    let what = format!("this file has no tier '{name}' to ask");
                    problems.add(line, what, format!("upstream = {}", choices(config, &tier.value.name)));
                }
                Some(_) if goes_round(config, tier) => {
                    let what = format!("'{}' asks itself in the end, through '{name}'", tier.value.name);
                    problems.add(line, what, "a chain that ends at \"origin\" or at \"host:port\"");
                }
                Some(_) => {}
            },
            Upstream::Origin | Upstream::Remote(_) | Upstream::Origins(_) => {}
        }
        emulated_distance(config, tier, problems);
    }
}

/// A distance is emulated on a connection, so there has to be one.
fn emulated_distance(config: &PlacedConfig, tier: &Placed<Tier>, problems: &mut Problems) {
    if tier.value.delay.is_zero() {
        return;
    }
    let (whom, listens) = match &tier.value.upstream {
        Upstream::Origin => ("the [origin]", config.origin.as_ref().is_none_or(|origin| origin.value.listen.is_some())),
        Upstream::Tier(name) => (name.as_str(), find(config, name).is_none_or(|above| above.value.listen.is_some())),
        Upstream::Remote(address) => (address.as_str(), true),
        Upstream::Origins(_) => ("the origins", true),
    };
    if !listens {
        let what = format!("a 'delay' needs a connection, and {whom} does not listen");
        problems.add(tier.line("delay"), what, format!("listen = \"127.0.0.1:0\" for {whom}, or no 'delay'"));
    }
}

fn goes_round(config: &PlacedConfig, from: &Placed<Tier>) -> bool {
    let mut passed = HashSet::new();
    let mut at = from;
    while passed.insert(&at.value.name) {
        match &at.value.upstream {
            Upstream::Tier(name) => match find(config, name) {
                Some(above) => at = above,
                None => return false,
            },
            Upstream::Origin | Upstream::Remote(_) | Upstream::Origins(_) => return false,
        }
    }
    at.value.name == from.value.name
}

/// What a tier of this file could ask.
fn choices(config: &PlacedConfig, name: &str) -> String {
    let origin = config.origin.iter().map(|_| "\"origin\"".to_owned());
    let tiers = config.tiers.iter().filter(|tier| tier.has("name") && tier.value.name != name);
    let tiers = tiers.map(|tier| format!("\"{}\"", tier.value.name));
    let all: Vec<String> = origin.chain(tiers).chain(["\"host:port\"".to_owned()]).collect();
    all.join(" or ")
}

fn rest(config: &PlacedConfig, problems: &mut Problems) {
    let Some(rest) = config.rest.as_ref().filter(|rest| rest.has("on")) else { return };
    let line = rest.line("on");
    let central = config.tiers.iter().find(|tier| tier.value.role == Role::Central && tier.has("name"));
    let instead = match (&config.origin, central) {
        (_, Some(central)) => format!("on = \"{}\"", central.value.name),
        (Some(_), None) => "on = \"origin\"".to_owned(),
        (None, None) => "no [rest] here, but in the file with the [origin] or a central tier".to_owned(),
    };
    match &rest.value.on {
        RestOn::Origin if config.origin.is_none() => problems.add(line, "this file has no [origin]", instead),
        RestOn::Origin => {}
        RestOn::Tier(name) => match find(config, name) {
            None => problems.add(line, format!("this file has no tier '{name}'"), instead),
            Some(tier) if tier.value.role != Role::Central => {
                let role = tier.value.role.name();
                let what = format!("'{name}' is {role}, and REST works on an origin or a central tier");
                problems.add(line, what, instead);
            }
            Some(_) => {}
        },
    }
}

/// Who listens where: what, line, address.
fn listening(config: &PlacedConfig) -> Vec<(String, usize, SocketAddr)> {
    let mut all = Vec::new();
    if let Some(address) = config.server.admin {
        all.push(("[server] admin".to_owned(), config.admin_line, address));
    }
    if let Some(origin) = &config.origin
        && let Some(address) = origin.value.listen
    {
        all.push(("[origin]".to_owned(), origin.line("listen"), address));
    }
    for tier in &config.tiers {
        if let Some(address) = tier.value.listen {
            all.push((format!("tier '{}'", tier.value.name), tier.line("listen"), address));
        }
    }
    if let Some(rest) = config.rest.as_ref().filter(|rest| rest.has("listen")) {
        all.push(("[rest]".to_owned(), rest.line("listen"), rest.value.listen));
    }
    all
}

fn listeners(config: &PlacedConfig, problems: &mut Problems) {
    let all = listening(config);
    for (index, (_, line, address)) in all.iter().enumerate() {
        let clash = all[..index].iter().find(|(_, _, other)| {
            let same_host = other.ip() == address.ip() || other.ip().is_unspecified() || address.ip().is_unspecified();
            address.port() != 0 && other.port() == address.port() && same_host
        });
        if let Some((who, other_line, _)) = clash {
            let what = format!("{who} of line {other_line} listens on port {}, too", address.port());
            problems.add(*line, what, "another port, or 0 for a free one");
        }
    }
}

/// Whatever nobody can ask is a mistake of whoever wrote the file.
fn reachable(config: &PlacedConfig, problems: &mut Problems) {
    if let Some(origin) = &config.origin
        && !origin.is_there("listen")
        && !config.tiers.iter().any(|tier| tier.value.upstream == Upstream::Origin)
        && !config.rest.as_ref().is_some_and(|rest| rest.value.on == RestOn::Origin)
    {
        let what = "nobody can ask this origin: it does not listen, and neither a tier nor [rest] of this file uses it";
        problems.add(
            origin.line(""),
            what,
            "listen = \"127.0.0.1:7701\", a [rest], or a [[tier]] with upstream = \"origin\"",
        );
    }
    for tier in config.tiers.iter().filter(|tier| tier.has("name") && !tier.is_there("listen")) {
        let name = &tier.value.name;
        let asked = |other: &Placed<Tier>| matches!(&other.value.upstream, Upstream::Tier(above) if above == name);
        let rest = config.rest.as_ref().is_some_and(|rest| rest.value.on == RestOn::Tier(name.clone()));
        if !rest && !config.tiers.iter().any(asked) {
            let what = format!("nobody can ask '{name}': it does not listen, and nothing in this file uses it");
            problems.add(tier.line(""), what, "listen = \"127.0.0.1:7711\"");
        }
    }
}

/// Our own servers know each other by the secret, so whatever crosses from one process to another needs it.
fn secret(config: &PlacedConfig, problems: &mut Problems) {
    if config.has_cluster {
        return;
    }
    let instead = "[cluster] with secret_file = \"cluster.secret\", the same secret on each of our own servers";
    if let Some(origin) = config.origin.as_ref().filter(|origin| origin.value.listen.is_some()) {
        let what = "tiers elsewhere can't ask this origin without a [cluster] secret";
        problems.add(origin.line("listen"), what, instead);
    }
    for tier in &config.tiers {
        let name = &tier.value.name;
        let elsewhere = matches!(tier.value.upstream, Upstream::Remote(_) | Upstream::Origins(_));
        if elsewhere {
            let what = format!("{} will not answer '{name}' without a [cluster] secret", tier.value.upstream);
            problems.add(tier.line("upstream"), what, instead);
        }
        if tier.value.role != Role::Edge && tier.value.listen.is_some() {
            let what = format!("tiers elsewhere can't ask '{name}' without a [cluster] secret");
            problems.add(tier.line("listen"), what, instead);
        }
    }
}

/// Of an origin that is one of several, and of one that is alone.
fn origins(config: &PlacedConfig, problems: &mut Problems) {
    let Some(origin) = &config.origin else { return };
    if origin.value.cassandra.is_none() {
        for field in ["advertise", "lease"].into_iter().filter(|field| origin.is_there(field)) {
            let what = format!("'{field}' is about origins that share a store, and this one has its own");
            problems.add(origin.line(field), what, format!("no '{field}', or an [origin.cassandra]"));
        }
        return;
    }
    if origin.has("id") {
        let what = "an origin that shares its store is given its id by the others";
        problems.add(origin.line("id"), what, "no 'id'");
    }
    let nowhere = origin.value.listen.is_some_and(|listen| listen.ip().is_unspecified());
    if nowhere && !origin.is_there("advertise") {
        let what = "the tiers are told where each origin is, and nobody can ask this address";
        problems.add(origin.line("listen"), what, "advertise = \"origin-1.example:7701\" beside it");
    }
}
