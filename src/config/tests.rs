//! What a configuration may say, and what is said about one that may not.

mod cassandra;

use std::path::Path;

use super::*;

fn parse(text: &str) -> Result<Config, Vec<Problem>> {
    Config::parse(text, Path::new("test.toml"))
}

/// Each expected problem as `line: what => instead`.
#[track_caller]
fn check(text: &str, expected: &[&str]) {
    let problems = parse(text).err().unwrap_or_default();
    let shown: Vec<String> = problems.iter().map(|p| format!("{}: {} => {}", p.line, p.what, p.instead)).collect();
    assert_eq!(shown, expected);
}

const ORIGIN: &str = "[origin]\ndata = \"data\"\n[rest]\nlisten = \"127.0.0.1:0\"\non = \"origin\"\n";

#[test]
fn what_is_left_out_has_its_default() {
    let config = parse(ORIGIN).expect("the file is good");
    let origin = config.origin.expect("there is an origin");
    assert_eq!((origin.id, origin.store_cache, origin.writes_per_key_per_second), (1, 64 * MIB, None));
    assert_eq!(config.accounts, ["default"]);
    assert_eq!(config.limits.connections, 10_000);
    assert_eq!(config.server.shutdown_deadline, Duration::from_secs(20));
}

#[test]
fn every_field_is_read() {
    let text = r#"
[server]
location = "ams"
log = "json"
admin = "127.0.0.1:7790"
shutdown_deadline = "5s"
[cluster]
secret = "0123456789abcdef0123456789abcdef"
[origin]
data = "/var/lib/kvasar"
id = 7
listen = "127.0.0.1:7701"
store_cache = "32MiB"
namespaces_per_account = 12
writes_per_key_per_second = 1
push_size_max = "4KiB"
[[account]]
name = "first"
[[account]]
name = "second"
[[tier]]
role = "edge"
name = "ams"
listen = "127.0.0.1:7711"
upstream = "eu"
delay = "80ms"
cache = "1GiB"
cache_share_max = 0.1
stale_if_unreachable = "1h"
control_max_age = "10s"
upstream_deadline = "2s"
upstream_concurrency = 100
refills = 10
feed_interval = "500ms"
[[tier]]
role = "regional"
name = "eu"
listen = "127.0.0.1:7712"
upstream = "centre.example:7701"
[rest]
listen = "127.0.0.1:7700"
on = "origin"
[limits]
connections = 1
requests_in_flight = 2
buffered = "3MiB"
head_deadline = "4s"
body_idle_deadline = "5s"
idle_deadline = "6s"
"#;
    let config = parse(text).unwrap_or_else(|problems| panic!("{problems:?}"));
    assert_eq!((config.server.location.as_str(), config.server.log), ("ams", Log::Json));
    assert_eq!(config.server.shutdown_deadline, Duration::from_secs(5));
    assert_eq!(config.cluster_secret.map(|s| s.reveal().len()), Some(32));
    let origin = config.origin.expect("there is an origin");
    assert_eq!((origin.id, origin.store_cache, origin.namespaces_per_account), (7, 32 * MIB, 12));
    assert_eq!((origin.writes_per_key_per_second, origin.push_size_max), (Some(1), 4096));
    assert_eq!(config.accounts, ["first", "second"]);
    // The tier comes after its upstream, whatever the file's order.
    assert_eq!(config.tiers.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["eu", "ams"]);
    let edge = &config.tiers[1];
    assert_eq!((edge.role, &edge.upstream), (Role::Edge, &Upstream::Tier("eu".to_owned())));
    assert_eq!((edge.delay.as_millis(), edge.cache, edge.cache_share_max), (80, 1024 * MIB, 0.1));
    assert_eq!((edge.stale_if_unreachable.as_secs(), edge.control_max_age.as_secs()), (3600, 10));
    assert_eq!(edge.feed_interval.as_millis(), 500);
    assert_eq!((edge.upstream_deadline.as_secs(), edge.upstream_concurrency, edge.refills), (2, 100, 10));
    let limits = config.limits;
    assert_eq!((limits.connections, limits.requests_in_flight, limits.buffered), (1, 2, 3 * MIB));
    assert_eq!(limits.head_deadline.as_secs(), 4);
    assert_eq!((limits.body_idle_deadline.as_secs(), limits.idle_deadline.as_secs()), (5, 6));
}

#[test]
fn an_account_has_no_more_namespaces_than_can_be_listed() {
    check(
        "[origin]\ndata = \"data\"\nlisten = \"127.0.0.1:0\"\nnamespaces_per_account = 20001\n[cluster]\nsecret = \"at-least-32-characters-that-nobody-can-guess\"\n",
        &[
            "4: [origin] namespaces_per_account: 20001 is not between 1 and 20000 => namespaces_per_account = 1 to 20000",
        ],
    );
}

#[test]
fn all_problems_come_at_once() {
    let text = "\
[server]
locaton = \"ams\"
log = \"xml\"
[origin]
id = 256
[[tier]]
role = \"edge\"
name = \"ams\"
listen = \"7711\"
upstream = \"regoinal\"
cache = \"256MB\"
cache_share_max = 2.0
[[tier]]
role = \"regional\"
name = \"ams\"
listen = \"127.0.0.1:7711\"
upstream = \"centre.example\"
delay = 80
";
    check(
        text,
        &[
            "2: [server] has no 'locaton' => location",
            "3: [server] log: 'xml' is no form of a log => log = \"text\" or \"json\"",
            "4: [origin] lacks 'data' => data = \"/var/lib/kvasar\"",
            "4: nobody can ask this origin: it does not listen, and neither a tier nor [rest] of this file uses it => \
             listen = \"127.0.0.1:7701\", a [rest], or a [[tier]] with upstream = \"origin\"",
            "5: [origin] id: 256 is not between 0 and 255 => id = 0 to 255",
            "9: [[tier]] listen: '7711' is not an address such as 127.0.0.1:7700 or [::1]:7700 => \
             listen = \"127.0.0.1:7711\"",
            "10: this file has no tier 'regoinal' to ask => upstream = \"origin\" or \"host:port\"",
            "11: [[tier]] cache: '256MB' is not a size such as 64KiB, 256MiB, 4GiB or 1TiB => \
             cache = \"1MiB\" to \"1TiB\"",
            "12: [[tier]] cache_share_max: 2 is not between 0.0001 and 1 => cache_share_max = 0.0001 to 1",
            "15: the tier of line 8 is called 'ams', too => another name",
            "16: tiers elsewhere can't ask 'ams' without a [cluster] secret => [cluster] with secret_file = \
             \"cluster.secret\", the same secret on each of our own servers",
            "17: this file has no tier 'centre.example' to ask => upstream = \"origin\" or \"host:port\"",
            "18: [[tier]] delay: it is a whole number, and has to be a text => delay = \"0ms\" to \"1m\"",
        ],
    );
}

#[test]
fn broken_syntax_is_reported_beside_what_is_wrong_on_other_lines() {
    check(
        "[server]\nlog = text\n[limits]\nconnections = 0\nconections = 1\n",
        &[
            "2: this is not TOML: invalid boolean, expected `true` => name = \"text\", name = 1, or the head \
             of a section such as [server]",
            "4: [limits] connections: 0 is not between 1 and 1000000 => connections = 1 to 1000000",
            "5: [limits] has no 'conections' => connections",
        ],
    );
}

#[test]
fn a_file_without_a_role_is_refused() {
    check("", &["1: the file names no role, so there is nothing to serve => an [origin], a [[tier]], or both"]);
    check(
        "[[account]]\nname = \"default\"\n[[tier]]\nrole = \"edge\"\nname = \"ams\"\nlisten = \"127.0.0.1:0\"\nupstream = \"origin\"",
        &[
            "2: an [[account]] is made by an origin, and this file has none => no [[account]] here, but in the file with the [origin]",
            "7: this file has no [origin] to ask => upstream = \"host:port\" of the server above",
        ],
    );
}

#[test]
fn what_takes_the_wrong_shape_is_refused() {
    check(
        &format!("server = 1\n[tier]\n{ORIGIN}[orgin]\n"),
        &[
            "1: the file server: it is a whole number, and has to be a section => [server]",
            "2: the file tier: it is a section, and there may be several => [[tier]]",
            "8: the file has no 'orgin' => origin",
        ],
    );
}

#[test]
fn a_chain_of_tiers_has_an_end() {
    let tier = |name: &str, upstream: &str| {
        format!("[[tier]]\nrole = \"edge\"\nname = \"{name}\"\nlisten = \"127.0.0.1:0\"\nupstream = \"{upstream}\"\n")
    };
    let instead = "a chain that ends at \"origin\" or at \"host:port\"";
    check(
        &format!("{}{}{}", tier("a", "b"), tier("b", "a"), tier("c", "a")),
        &[
            &format!("5: 'a' asks itself in the end, through 'b' => {instead}"),
            &format!("10: 'b' asks itself in the end, through 'a' => {instead}"),
        ],
    );
    check(&tier("a", "a"), &[&format!("5: 'a' asks itself in the end, through 'a' => {instead}")]);
}

#[test]
fn several_origins_on_one_store_are_one_upstream() {
    let text = |upstream: &str, rest: &str| {
        format!("[[tier]]\nrole = \"central\"\nname = \"c\"\nlisten = \"127.0.0.1:0\"\nupstream = {upstream}\n{rest}")
    };
    let cluster = "[cluster]\nsecret = \"0123456789abcdef0123456789abcdef\"\n";
    let config = parse(&text("[\"10.0.0.1:7701\", \"origin-2:7701\"]", cluster)).expect("the file is good");
    let expected = Upstream::Origins(vec!["10.0.0.1:7701".into(), "origin-2:7701".into()]);
    assert_eq!(config.tiers[0].upstream, expected);
    assert!(config.summary().contains("asks 10.0.0.1:7701 and origin-2:7701"), "{}", config.summary());
    let refused = |upstream: &str, what: &str| {
        let instead = "upstream = \"origin\", the name of a tier in this file, \"host:port\", or a list of those where several \
                       origins share a store";
        check(&text(upstream, cluster), &[&format!("5: [[tier]] upstream: {what} => {instead}")]);
    };
    refused("[]", "it holds 0 addresses, and may have 1 to 32");
    refused("[\"origin\"]", "'origin' is not host:port");
    refused("[\"a:1\", \"b:1\", \"a:1\"]", "it holds 'a:1' twice");
    refused("[\"a:1\", 2]", "it holds a whole number, and has to hold texts");
    refused("7", "it is a whole number, and has to be a text or a list of them");
    check(
        &text("[\"a:1\", \"b:1\"]", ""),
        &[
            "4: tiers elsewhere can't ask 'c' without a [cluster] secret => [cluster] with secret_file = \"cluster.secret\", \
             the same secret on each of our own servers",
            "5: a:1 and b:1 will not answer 'c' without a [cluster] secret => [cluster] with secret_file = \"cluster.secret\", \
             the same secret on each of our own servers",
        ],
    );
}

#[test]
fn two_listeners_need_two_ports_unless_the_system_gives_them_out() {
    let tiers = |first: &str, second: &str| {
        format!(
            "{ORIGIN}[[tier]]\nrole = \"edge\"\nname = \"a\"\nlisten = \"{first}\"\nupstream = \"origin\"\n\
             [[tier]]\nrole = \"edge\"\nname = \"b\"\nlisten = \"{second}\"\nupstream = \"origin\"\n"
        )
    };
    let clash = "14: tier 'a' of line 9 listens on port 7711, too => another port, or 0 for a free one";
    check(&tiers("127.0.0.1:7711", "127.0.0.1:7711"), &[clash]);
    check(&tiers("127.0.0.1:7711", "0.0.0.0:7711"), &[clash]);
    check(&tiers("127.0.0.1:7711", "127.0.0.2:7711"), &[]);
    check(&tiers("127.0.0.1:0", "127.0.0.1:0"), &[]);
}

#[test]
fn rest_works_on_an_origin_or_a_central_tier_only() {
    let text = "[origin]\ndata = \"d\"\n[[tier]]\nrole = \"edge\"\nname = \"ams\"\nlisten = \"127.0.0.1:0\"\nupstream = \"origin\"\n\
                [rest]\nlisten = \"127.0.0.1:0\"\non = \"ams\"\n";
    check(text, &["10: 'ams' is edge, and REST works on an origin or a central tier => on = \"origin\""]);
    let central = text.replace("edge", "central").replace("listen = \"127.0.0.1:0\"\nupstream", "upstream");
    check(&central, &[]);
    check(
        &central.replace("on = \"ams\"", "on = \"amsterdam\""),
        &[
            "3: nobody can ask 'ams': it does not listen, and nothing in this file uses it => listen = \"127.0.0.1:7711\"",
            "9: this file has no tier 'amsterdam' => on = \"ams\"",
        ],
    );
}

#[test]
fn a_distance_is_emulated_on_a_connection_only() {
    let text = format!(
        "{ORIGIN}[[tier]]\nrole = \"edge\"\nname = \"ams\"\nlisten = \"127.0.0.1:0\"\nupstream = \"origin\"\ndelay = \"80ms\"\n"
    );
    check(
        &text,
        &[
            "11: a 'delay' needs a connection, and the [origin] does not listen => listen = \"127.0.0.1:0\" for the [origin], or no \
           'delay'",
        ],
    );
}

#[test]
fn a_secret_is_long_and_given_once() {
    let text = |secret: &str| format!("{ORIGIN}[cluster]\n{secret}\n");
    check(
        &text("secret = \"short\""),
        &[
            "7: [cluster] secret: a secret of 5 characters can be guessed; it takes 32 => secret = \"at-least-32-characters-that-\
           nobody-can-guess\"",
        ],
    );
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("cluster.secret"), "0123456789abcdef0123456789abcdef\n").expect("a secret");
    let parse = |text: &str| Config::parse(text, &folder.path().join("test.toml"));
    let config = parse(&text("secret_file = \"cluster.secret\"")).expect("the file is good");
    assert_eq!(config.cluster_secret, Some(Secret::new("0123456789abcdef0123456789abcdef")));
    assert_eq!(parse(&text("")).map(|_| ()).map_err(|p| p[0].what.clone()), Err("[cluster] lacks a secret".to_owned()));
    let both = text("secret_file = \"cluster.secret\"\nsecret = \"0123456789abcdef0123456789abcdef\"");
    assert_eq!(
        parse(&both).map(|_| ()).map_err(|p| p[0].what.clone()),
        Err("[cluster] secret: there is a 'secret_file', too".to_owned())
    );
    let missing = parse(&text("secret_file = \"nowhere\"")).expect_err("there is no such file");
    assert!(missing[0].what.contains("nowhere: No such file"), "{missing:?}");
}

#[test]
fn no_log_shows_a_secret() {
    let config = parse(&format!("{ORIGIN}[cluster]\nsecret = \"0123456789abcdef0123456789abcdef\"")).expect("good");
    let shown = format!("{config:?}");
    assert!(shown.contains("Secret(hidden)") && !shown.contains("0123456789abcdef"), "{shown}");
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text: String) {
        let _ = parse(&text);
    }

    /// Cuts and changes of a good file reach further in than arbitrary text does.
    #[test]
    fn no_broken_file_makes_the_reader_panic(at in 0usize..200, length in 0usize..20, with in "[\\[\\]=\"#a0.\n -]{0,4}") {
        let mut text = format!("{ORIGIN}[[tier]]\nrole = \"edge\"\nname = \"b\"\nlisten = \"[::1]:0\"\nupstream = \"origin\"\ndelay = \"1s\"\n");
        let at = at.min(text.len());
        let end = (at + length).min(text.len());
        text.replace_range(at..end, &with);
        let _ = parse(&text);
    }
}

#[test]
fn the_shipped_examples_are_good_and_no_two_servers_share_a_port() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("cluster.secret"), "0123456789abcdef0123456789abcdef\n").expect("a secret");
    let example = |name: &str| {
        let text = std::fs::read_to_string(Path::new("examples/config").join(name)).expect("the example is there");
        let parsed = Config::parse(&text, &folder.path().join(name));
        parsed.unwrap_or_else(|problems| panic!("{name}: {problems:?}"))
    };
    let all_in_one = example("all-in-one.toml");
    assert!(all_in_one.origin.is_some() && all_in_one.rest.is_some() && all_in_one.tiers.len() == 2);
    let machines = [example("origin.toml"), example("region.toml"), example("edge.toml")];
    assert_eq!(machines.iter().map(|machine| machine.tiers[0].role).collect::<Vec<_>>(), Role::ALL);
    for (upper, lower) in machines.iter().zip(&machines[1..]) {
        let listens = upper.tiers[0].listen.expect("the upper one listens");
        assert_eq!(lower.tiers[0].upstream, Upstream::Remote(listens.to_string()));
    }
    let tiers = machines.iter().flat_map(|machine| &machine.tiers).filter_map(|tier| tier.listen);
    let admins = machines.iter().filter_map(|machine| machine.server.admin);
    let mut ports: Vec<u16> = tiers.chain(admins).map(|address| address.port()).collect();
    let count = ports.len();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), count);
}
