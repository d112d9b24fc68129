//! `[origin.cassandra]`, and what an origin that is one of several may say.

use super::*;

const SHARED: &str = "[origin]\ndata = \"data\"\nlisten = \"10.0.0.7:7701\"\n[cluster]\nsecret = \"0123456789abcdef0123456789abcdef\"\n\
                      [origin.cassandra]\nnodes = [\"db1\", \"10.0.0.2:9043\"]\n";

fn cassandra(text: &str) -> Cassandra {
    let config = parse(text).unwrap_or_else(|problems| panic!("{problems:?}"));
    config.origin.and_then(|origin| origin.cassandra).expect("the store is shared")
}

#[test]
fn only_the_nodes_have_to_be_said() {
    let store = cassandra(SHARED);
    assert_eq!(store.nodes, ["db1", "10.0.0.2:9043"]);
    assert_eq!((store.keyspace.as_str(), store.replication, store.buckets), ("kvasar", 3, 16));
    assert_eq!((store.consistency, store.data_center, store.deadline.as_secs()), (Consistency::Quorum, None, 8));
    assert!(store.tls_ca.is_none() && store.tls_identity.is_none() && store.login.is_none());
    let origin = parse(SHARED).expect("the file is good").origin.expect("there is an origin");
    assert_eq!((origin.lease.as_secs(), origin.advertise), (10, None));
}

#[test]
fn every_field_of_it_is_read() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("password"), "open sesame\n").expect("a password");
    let text = format!(
        "{SHARED}keyspace = \"kv_2\"\nreplication = 5\ndata_center = \"eu-1\"\nconsistency = \"LOCAL_QUORUM\"\nbuckets = 64\ntls_ca = \"ca.pem\"\n\
         tls_certificate = \"own.pem\"\ntls_key = \"key.pem\"\nusername = \"kvasar\"\npassword_file = \"password\"\ndeadline = \"3s\"\n"
    );
    let text = text.replace("[cluster]", "advertise = \"origin.example:7701\"\nlease = \"30s\"\n[cluster]");
    let config =
        Config::parse(&text, &folder.path().join("test.toml")).unwrap_or_else(|problems| panic!("{problems:?}"));
    let shown = format!("{config:?}");
    let origin = config.origin.expect("there is an origin");
    assert_eq!((origin.advertise.as_deref(), origin.lease.as_secs()), (Some("origin.example:7701"), 30));
    let store = origin.cassandra.expect("the store is shared");
    assert_eq!((store.keyspace.as_str(), store.replication, store.buckets), ("kv_2", 5, 64));
    assert_eq!((store.consistency, store.data_center.as_deref()), (Consistency::LocalQuorum, Some("eu-1")));
    assert_eq!(store.tls_ca, Some(folder.path().join("ca.pem")));
    assert_eq!(store.tls_identity, Some((folder.path().join("own.pem"), folder.path().join("key.pem"))));
    assert_eq!(store.login, Some(("kvasar".to_owned(), Secret::new("open sesame"))));
    assert_eq!(store.deadline.as_secs(), 3);
    assert!(!shown.contains("sesame"), "{shown}");
}

#[test]
fn a_password_may_come_from_the_environment() {
    let text = format!("{SHARED}username = \"kvasar\"\n");
    let environment = |variable: &str| (variable == "KVASAR_CASSANDRA_PASSWORD").then(|| "sesame".to_owned());
    let config = Config::parse_in(&text, Path::new("test.toml"), &environment).expect("the file is good");
    let store = config.origin.and_then(|origin| origin.cassandra).expect("the store is shared");
    assert_eq!(store.login, Some(("kvasar".to_owned(), Secret::new("sesame"))));
    let problems = Config::parse_in(&text, Path::new("test.toml"), &|_| None).expect_err("there is no password");
    assert_eq!(problems[0].what, "[origin.cassandra] username: there is no password for it");
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let field = "[origin.cassandra]";
    check(
        &format!(
            "{SHARED}tls_key = \"key.pem\"\nconsistency = \"LOCAL_QUORUM\"\npassword_file = \"nowhere\"\nkeyspace = \"Kv\"\n"
        ),
        &[
            &format!("8: {field} tls_key: it is of no use without its certificate => 'tls_certificate' beside it"),
            &format!("9: {field} consistency: which data center is the own one? => 'data_center' beside it"),
            &format!(
                "10: {field} password_file: reading nowhere: No such file or directory (os error 2) => password_file = \"database.password\""
            ),
            &format!("10: {field} password_file: whose password is it? => 'username' beside it"),
            &format!(
                "11: {field} keyspace: a keyspace is called 1 to 48 of a-z, 0-9 and '_', beginning with a letter, not 'Kv' => keyspace = \"kvasar\""
            ),
        ],
    );
    check(
        &format!("{SHARED}tls_certificate = \"own.pem\"\ntls_key = \"key.pem\"\nconsistency = \"ONE\"\n"),
        &[
            &format!("8: {field} tls_certificate: without 'tls_ca' nothing is encrypted => 'tls_ca' beside it"),
            &format!(
                "10: {field} consistency: 'ONE' is no consistency that keeps what was acknowledged => consistency = \"QUORUM\" or \"LOCAL_QUORUM\""
            ),
        ],
    );
    let example = "nodes = [\"db1.example\", \"db2.example\"]";
    for (nodes, what) in [
        ("nodes = []", "7: [origin.cassandra] nodes: it is empty"),
        ("nodes = \"db1\"", "7: [origin.cassandra] nodes: it is a text, and has to be a list"),
        ("nodes = [1]", "7: [origin.cassandra] nodes: it holds a whole number, and has to hold texts"),
        ("nodes = [\"a b\"]", "7: [origin.cassandra] nodes: 'a b' is not a host such as 10.0.0.1 or db1.example:9042"),
        ("", "6: [origin.cassandra] lacks 'nodes'"),
    ] {
        let text = SHARED.replace("nodes = [\"db1\", \"10.0.0.2:9043\"]", nodes);
        check(&text, &[&format!("{what} => {example}")]);
    }
}

#[test]
fn one_of_several_origins_can_be_found_and_told_apart() {
    check(
        &SHARED.replace("10.0.0.7", "0.0.0.0").replace("[cluster]", "id = 3\n[cluster]"),
        &[
            "3: the tiers are told where each origin is, and nobody can ask this address => advertise = \"origin-1.example:7701\" beside it",
            "4: an origin that shares its store is given its id by the others => no 'id'",
        ],
    );
    check(&SHARED.replace("10.0.0.7:7701\"", "0.0.0.0:7701\"\nadvertise = \"origin.example:7701\""), &[]);
    check(
        &format!("{ORIGIN}[origin.cassandra]\nnodes = [\"db1\"]\n").replace("[rest]", "advertise = \"here\"\n[rest]"),
        &["3: [origin] advertise: 'here' is not host:port => advertise = \"origin-1.example:7701\""],
    );
}

#[test]
fn an_origin_that_is_alone_has_no_lease() {
    check(
        &ORIGIN.replace("[rest]", "lease = \"10s\"\nadvertise = \"a:1\"\n[rest]"),
        &[
            "3: 'lease' is about origins that share a store, and this one has its own => no 'lease', or an [origin.cassandra]",
            "4: 'advertise' is about origins that share a store, and this one has its own => no 'advertise', or an [origin.cassandra]",
        ],
    );
}

#[test]
fn a_summary_says_where_a_shared_store_is() {
    let summary = parse(SHARED).expect("the file is good").summary();
    let expected = "origin: store in Cassandra, keyspace kvasar, at db1, 10.0.0.2:9043; credentials in data, listens on 10.0.0.7:7701\n";
    assert_eq!(summary, expected);
}
