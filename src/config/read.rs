//! From TOML to settings, section by section, with every problem on the way. What sections say about each other is `check.rs`.

use std::{path::Path, time::Duration};

use toml::de::DeTable;

use super::{
    Limits, Log, MIB, Origin, Problem, Rest, RestOn, Role, Secret, Server, Tier, Upstream, cassandra,
    section::{Findings, Placed, Section},
    units,
};
use crate::limits;

/// A whole file, before its sections are checked against each other. What had a problem holds a default.
pub(super) struct PlacedConfig {
    pub(super) server: Server,
    pub(super) admin_line: usize,
    pub(super) cluster: Option<Secret>,
    pub(super) has_cluster: bool,
    pub(super) origin: Option<Placed<Origin>>,
    pub(super) accounts: Vec<Placed<String>>,
    pub(super) tiers: Vec<Placed<Tier>>,
    pub(super) rest: Option<Placed<Rest>>,
    pub(super) limits: Limits,
}

/// What a file stands in: relative paths start at its folder.
pub(super) struct Surroundings<'a> {
    pub(super) folder: &'a Path,
    pub(super) environment: &'a dyn Fn(&str) -> Option<String>,
}

const SECRET_EXAMPLE: &str =
    "secret_file = \"cluster.secret\", made by: head -c 32 /dev/urandom | base64 > cluster.secret";

/// The file's settings, what is wrong with them one by one, and whether it could be read to its end.
pub(super) fn file(text: &str, around: &Surroundings<'_>) -> (PlacedConfig, Vec<Problem>, bool) {
    let (table, errors) = DeTable::parse_recoverable(text);
    let findings = Findings::new(text);
    let mut problems: Vec<Problem> = errors
        .iter()
        .map(|error| Problem {
            line: error.span().map_or(1, |span| findings.line(span.start)),
            what: format!("this is not TOML: {}", error.message()),
            instead: "name = \"text\", name = 1, or the head of a section such as [server]".to_owned(),
        })
        .collect();
    let config = sections(Section::new(&findings, "the file", 1, table.into_inner()), around);
    // After an error of syntax only what is there, and stands on other lines, can be judged.
    let broken: Vec<usize> = problems.iter().map(|problem| problem.line).collect();
    let whole = broken.is_empty();
    let found = findings.into_found().into_iter();
    let judged = found.filter(|found| whole || !(found.missing || broken.contains(&found.problem.line)));
    problems.extend(judged.map(|found| found.problem));
    (config, problems, whole)
}

fn sections(mut file: Section<'_, '_>, around: &Surroundings<'_>) -> PlacedConfig {
    let server = file.section("server", "[server]").map(server);
    let cluster = file.section("cluster", "[cluster]").map(|section| cluster(section, around.folder));
    let origin = file.section("origin", "[origin]").map(|section| origin(section, around));
    let accounts = file.sections("account", "[[account]]").into_iter().map(account).collect();
    let tiers = file.sections("tier", "[[tier]]").into_iter().map(tier).collect();
    let rest = file.section("rest", "[rest]").map(rest);
    let limits = file.section("limits", "[limits]").map(limits);
    let config = PlacedConfig {
        admin_line: server.as_ref().map_or(1, |server| server.line("admin")),
        server: server.map(|server| server.value).unwrap_or_default(),
        has_cluster: cluster.is_some(),
        cluster: cluster.flatten(),
        origin,
        accounts,
        tiers,
        rest,
        limits: limits.unwrap_or_default(),
    };
    file.finish(config).value
}

pub(super) fn millis(from: u64, to: u64) -> std::ops::RangeInclusive<Duration> {
    Duration::from_millis(from)..=Duration::from_millis(to)
}

pub(super) const SECOND: u64 = 1000;
pub(super) const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const TIB: u64 = MIB * MIB;
/// Origins that a tier is told of; those that it isn't, it finds.
const ORIGINS_MAX: usize = 32;

fn server(mut section: Section<'_, '_>) -> Placed<Server> {
    let default = Server::default();
    let log = |text: &str| match text {
        "text" => Ok(Log::Text),
        "json" => Ok(Log::Json),
        other => Err(format!("'{}' is no form of a log", other.escape_debug())),
    };
    let server = Server {
        location: section.text("location", "\"ams\"", name).unwrap_or(default.location),
        log: section.text("log", "\"text\" or \"json\"", log).unwrap_or(default.log),
        admin: section.text("admin", "\"127.0.0.1:7790\"", units::address),
        shutdown_deadline: section.duration("shutdown_deadline", millis(0, HOUR)).unwrap_or(default.shutdown_deadline),
    };
    section.finish(server)
}

fn cluster(mut section: Section<'_, '_>, folder: &Path) -> Option<Secret> {
    let given = section.text("secret", "\"at-least-32-characters-that-nobody-can-guess\"", secret);
    let from_file = section.text("secret_file", "\"cluster.secret\"", |path| {
        let path = folder.join(path);
        let text = std::fs::read_to_string(&path).map_err(|e| format!("reading {}: {e}", path.display()))?;
        secret(text.trim()).map_err(|what| format!("{}: {what}", path.display()))
    });
    match (section.is_there("secret"), section.is_there("secret_file")) {
        (true, true) => section.refuse("secret", "there is a 'secret_file', too", "one of them"),
        (false, false) => section.lacks("a secret", SECRET_EXAMPLE),
        _ => {}
    }
    section.finish(given.or(from_file)).value
}

fn secret(text: &str) -> Result<Secret, String> {
    let chars = text.chars().count();
    if chars < Secret::CHARS_MIN {
        return Err(format!("a secret of {chars} characters can be guessed; it takes {}", Secret::CHARS_MIN));
    }
    // It travels in a header.
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("a secret is letters, digits and signs of ASCII, without spaces".to_owned());
    }
    Ok(Secret::new(text))
}

fn origin(mut section: Section<'_, '_>, around: &Surroundings<'_>) -> Placed<Origin> {
    let path = |text: &str| if text.is_empty() { Err("it is empty".to_owned()) } else { Ok(around.folder.join(text)) };
    let advertise = |text: &str| {
        let wrong = || format!("'{}' is not host:port", text.escape_debug());
        units::host_and_port(text).then(|| text.to_owned()).ok_or_else(wrong)
    };
    let data = section.needed("data", "\"/var/lib/kvasar\"", path);
    let default = Origin::new(data.unwrap_or_default());
    let cassandra = section.section("cassandra", "[origin.cassandra]");
    let origin = Origin {
        cassandra: cassandra.map(|section| cassandra::read(section, around)),
        id: section.number("id", 0..=255).unwrap_or(default.id),
        listen: section.text("listen", "\"127.0.0.1:7701\"", units::address),
        advertise: section.text("advertise", "\"origin-1.example:7701\"", advertise),
        lease: section.duration("lease", millis(2 * SECOND, 5 * MINUTE)).unwrap_or(default.lease),
        store_cache: section.size("store_cache", MIB..=TIB).unwrap_or(default.store_cache),
        namespaces_per_account: section
            .number("namespaces_per_account", 1..=limits::NAMESPACES_PER_ACCOUNT_MAX as u64)
            .unwrap_or(default.namespaces_per_account),
        writes_per_key_per_second: section.number("writes_per_key_per_second", 1..=1_000_000),
        push_size_max: section
            .size("push_size_max", 0..=limits::PUSH_BYTES_MAX as u64)
            .unwrap_or(default.push_size_max),
        ..default
    };
    section.finish(origin)
}

fn account(mut section: Section<'_, '_>) -> Placed<String> {
    let name = section.needed("name", "\"default\"", name);
    section.finish(name.unwrap_or_default())
}

fn tier(mut section: Section<'_, '_>) -> Placed<Tier> {
    let role = |text: &str| {
        let found = Role::ALL.into_iter().find(|role| role.name() == text);
        found.ok_or_else(|| format!("'{}' is no role of a tier", text.escape_debug()))
    };
    let tier_name = |text: &str| match text {
        "origin" => Err("'origin' always means the origin".to_owned()),
        text => name(text),
    };
    let role = section.needed("role", "\"central\", \"regional\" or \"edge\"", role).unwrap_or(Role::Edge);
    let name = section.needed("name", "\"ams\"", tier_name).unwrap_or_default();
    let upstream = section.needed_or_list(
        "upstream",
        "\"origin\", the name of a tier in this file, \"host:port\", or a list of those where several origins share a store",
        upstream,
        origins,
    );
    let default = Tier::new(role, name, upstream.unwrap_or(Upstream::Origin));
    let tier = Tier {
        listen: section.text("listen", "\"127.0.0.1:7711\"", units::address),
        delay: section.duration("delay", millis(0, MINUTE)).unwrap_or(default.delay),
        cache: section.size("cache", MIB..=TIB).unwrap_or(default.cache),
        cache_share_max: section.share("cache_share_max", 0.0001..=1.0).unwrap_or(default.cache_share_max),
        stale_if_unreachable: section
            .duration("stale_if_unreachable", millis(0, 365 * 24 * HOUR))
            .unwrap_or(default.stale_if_unreachable),
        control_max_age: section.duration("control_max_age", millis(0, 24 * HOUR)).unwrap_or(default.control_max_age),
        upstream_deadline: section
            .duration("upstream_deadline", millis(10, 10 * MINUTE))
            .unwrap_or(default.upstream_deadline),
        write_deadline: section.duration("write_deadline", millis(10, 2 * MINUTE)).unwrap_or(default.write_deadline),
        upstream_concurrency: section
            .number("upstream_concurrency", 1..=100_000)
            .unwrap_or(default.upstream_concurrency),
        refills: section.number("refills", 1..=100_000).unwrap_or(default.refills),
        feed_interval: section.duration("feed_interval", millis(10, 10 * SECOND)).unwrap_or(default.feed_interval),
        ..default
    };
    section.finish(tier)
}

fn upstream(text: &str) -> Result<Upstream, String> {
    match text {
        "origin" => Ok(Upstream::Origin),
        text if units::host_and_port(text) => Ok(Upstream::Remote(text.to_owned())),
        text if text.contains(':') => Err(format!("'{}' is not host:port", text.escape_debug())),
        text => name(text).map(Upstream::Tier),
    }
}

/// The addresses of several origins on one store.
fn origins(texts: Vec<&str>) -> Result<Upstream, String> {
    if !(1..=ORIGINS_MAX).contains(&texts.len()) {
        return Err(format!("it holds {} addresses, and may have 1 to {ORIGINS_MAX}", texts.len()));
    }
    for (index, text) in texts.iter().enumerate() {
        if !units::host_and_port(text) {
            return Err(format!("'{}' is not host:port", text.escape_debug()));
        }
        if texts[..index].contains(text) {
            return Err(format!("it holds '{text}' twice"));
        }
    }
    Ok(Upstream::Origins(texts.into_iter().map(str::to_owned).collect()))
}

fn rest(mut section: Section<'_, '_>) -> Placed<Rest> {
    let on = |text: &str| match text {
        "origin" => Ok(RestOn::Origin),
        text => name(text).map(RestOn::Tier),
    };
    let listen = section.needed("listen", "\"127.0.0.1:7700\"", units::address);
    let on = section.needed("on", "\"origin\" or the name of a central tier in this file", on);
    let nowhere = ([127, 0, 0, 1], 0).into();
    section.finish(Rest { listen: listen.unwrap_or(nowhere), on: on.unwrap_or(RestOn::Origin) })
}

fn limits(mut section: Section<'_, '_>) -> Limits {
    let default = Limits::default();
    let limits = Limits {
        connections: section.number("connections", 1..=1_000_000).unwrap_or(default.connections),
        requests_in_flight: section.number("requests_in_flight", 1..=1_000_000).unwrap_or(default.requests_in_flight),
        buffered: section.size("buffered", MIB..=TIB).unwrap_or(default.buffered),
        head_deadline: section.duration("head_deadline", millis(100, HOUR)).unwrap_or(default.head_deadline),
        body_idle_deadline: section
            .duration("body_idle_deadline", millis(100, HOUR))
            .unwrap_or(default.body_idle_deadline),
        idle_deadline: section.duration("idle_deadline", millis(100, 24 * HOUR)).unwrap_or(default.idle_deadline),
    };
    section.finish(limits).value
}

fn name(text: &str) -> Result<String, String> {
    units::check_name(text).map(|()| text.to_owned())
}
