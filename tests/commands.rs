//! The commands as a person types them: what they print, where, and with which exit code. Those that serve are tested where they are served.

mod support;

use std::{
    fs,
    process::{Command, Output},
};

use support::Server;

fn kvasar(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvasar"));
    // None of whoever runs the tests.
    for name in ["API_BASE_URL", "API_TOKEN", "API_KEY", "EMAIL", "API_EMAIL", "ACCOUNT_ID"] {
        command.env_remove(format!("CLOUDFLARE_{name}"));
    }
    command.args(arguments).envs(variables.iter().copied()).output().expect("the binary runs")
}

/// Exit code, standard output and standard error.
fn ended(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("commands print UTF-8");
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn the_version_is_the_packages() {
    let (code, out, _) = ended(&kvasar(&["--version"], &[]));
    assert_eq!((code, out.as_str()), (Some(0), concat!("kvasar ", env!("CARGO_PKG_VERSION"), "\n")));
}

#[test]
fn every_command_explains_itself_with_an_example() {
    for command in ["dev", "serve", "check-config", "workerd-config", "store", "namespace", "token"] {
        let (code, out, _) = ended(&kvasar(&[command, "--help"], &[]));
        assert_eq!(code, Some(0), "{command}");
        assert!(out.contains(&format!("kvasar {command}")) && out.contains("Example"), "{out}");
    }
}

#[test]
fn misuse_ends_with_2_and_failure_with_1() {
    assert_eq!(ended(&kvasar(&[], &[])).0, Some(2));
    assert_eq!(ended(&kvasar(&["serve"], &[])).0, Some(2));
    assert_eq!(ended(&kvasar(&["dev", "--location", "home"], &[])).0, Some(2));
    let (code, out, err) = ended(&kvasar(&["serve", "--config", "no-such-file.toml"], &[]));
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(err.starts_with("error: reading the configuration no-such-file.toml: No such file"), "{err}");
}

#[test]
fn a_configuration_is_checked_whole() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("test.toml");
    let path = file.to_str().expect("a path in UTF-8");
    fs::write(&file, "[server]\nlocaton = \"ams\"\n[origin]\nid = 300\n").expect("a file");
    let (code, out, err) = ended(&kvasar(&["check-config", path], &[]));
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(err.starts_with(&format!("error: {path} has 4 problems:\n  line 2: [server] has no 'locaton'")), "{err}");
    assert!(err.contains("    instead: location\n"), "{err}");

    let (code, out, err) = ended(&kvasar(&["check-config", "examples/config/all-in-one.toml"], &[]));
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert_eq!(out.lines().count(), 5, "{out}");
}

#[test]
fn a_workerd_configuration_is_printed_or_written_for_its_owner_alone() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let worker = folder.path().join("worker.js");
    fs::write(&worker, "export default {};\n").expect("a file");
    let output = folder.path().join("config.capnp");
    let (worker, written) = (worker.to_str().expect("UTF-8"), output.to_str().expect("UTF-8"));
    let common = ["workerd-config", "--binding", "KV=0f2ac74b498b48028cb68387c421e279"];
    let token = [("CLOUDFLARE_API_TOKEN", "a-token")];

    let (code, out, _) = ended(&kvasar(&common, &token));
    assert_eq!(code, Some(0));
    assert!(out.contains("\"Bearer a-token\"") && out.contains("0f2ac74b498b48028cb68387c421e279"), "{out}");

    let arguments = [&common[..], &["--worker", worker, "--output", written]].concat();
    assert_eq!(ended(&kvasar(&arguments, &token)), (Some(0), String::new(), String::new()));
    assert!(fs::read_to_string(&output).expect("it is written").contains("embed \"worker.js\""));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(&output).expect("it is there").permissions().mode() & 0o777, 0o600);
    }

    let (code, _, err) = ended(&kvasar(&common, &[]));
    assert_eq!(code, Some(2), "a configuration without a token would not run: {err}");
}

#[test]
fn what_needs_a_server_says_when_there_is_none_or_no_credential() {
    let (code, _, err) = ended(&kvasar(&["namespace", "list"], &[]));
    assert_eq!(code, Some(1));
    assert!(err.starts_with("error: no credential: set CLOUDFLARE_API_TOKEN"), "{err}");
    // A port that was free a moment ago, and that nobody listens on.
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let base = format!("http://{free}/client/v4");
    let variables = [("CLOUDFLARE_API_TOKEN", "t"), ("CLOUDFLARE_API_BASE_URL", base.as_str())];
    let (code, _, err) = ended(&kvasar(&["token", "list"], &variables));
    assert_eq!(code, Some(1));
    assert!(err.starts_with(&format!("error: finding the account: asking {base}/accounts: ")), "{err}");
    assert!(err.contains("Connection refused"), "{err}");
}

/// What a cache takes is only bounded by its budget if all threads share what is freed.
#[test]
fn a_server_has_one_arena_of_memory() {
    if !cfg!(all(target_os = "linux", target_env = "gnu")) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(
        folder.path(),
        "origin",
        "[origin]\ndata = \"data\"\n[rest]\nlisten = \"127.0.0.1:0\"\non = \"origin\"\n",
    );
    let environment = server.environment().expect("Linux tells");
    let told = environment.split('\0').filter(|variable| variable.starts_with("MALLOC_ARENA_MAX="));
    assert_eq!(told.collect::<Vec<_>>(), ["MALLOC_ARENA_MAX=1"]);
}

#[test]
fn namespaces_and_tokens_are_managed_through_a_running_server() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = "[origin]\ndata = \"data\"\n[rest]\nlisten = \"127.0.0.1:0\"\non = \"origin\"\n";
    let server = Server::start(folder.path(), "origin", config);
    let base = format!("http://{}/client/v4", server.rest());
    let command = |arguments: &[&str], token: &str| {
        let variables = [("CLOUDFLARE_API_BASE_URL", base.as_str()), ("CLOUDFLARE_API_TOKEN", token)];
        match ended(&kvasar(arguments, &variables)) {
            (Some(0), out, _) => Ok(out),
            (_, _, err) => Err(err),
        }
    };
    let admin = server.account().1;
    let run = |arguments: &[&str]| command(arguments, admin);

    let made = run(&["namespace", "create", "sessions", "--json"]).expect("it is made");
    let made: serde_json::Value = serde_json::from_str(&made).expect("it is JSON");
    let id = made[0]["id"].as_str().expect("it has an id").to_owned();
    let again = run(&["namespace", "create", "sessions"]).expect_err("the title is taken");
    assert!(
        again.starts_with("error: creating the namespace 'sessions': ") && again.contains("(code 10014)"),
        "{again}"
    );
    let renamed = run(&["namespace", "rename", "sessions", "old sessions"]).expect("it is renamed");
    assert_eq!(renamed, format!("{:32}  TITLE\n{id}  old sessions\n", "ID"));
    let listed = run(&["namespace", "list"]).expect("they are listed");
    assert_eq!(listed.lines().count(), 2, "{listed}");

    let reader = run(&["token", "create", "reader", "--rights", "read", "--namespace", &id, "--expires-in", "1h"]);
    let reader = reader.expect("it is made");
    let value = reader.lines().last().expect("its value comes last").to_owned();
    assert!(value.len() >= 40, "{reader}");
    let listed = run(&["token", "list"]).expect("they are listed");
    let row = listed.lines().find(|line| line.contains("reader")).expect("it is listed");
    let left = ["in 59 minutes", "in 60 minutes"].iter().any(|left| row.contains(left));
    assert!(row.contains("read") && left && row.ends_with(&id), "{row}");
    assert!(!listed.contains(&value), "no listing shows a secret");
    let refused = command(&["namespace", "create", "other"], &value).expect_err("a reader makes nothing");
    assert!(refused.starts_with("error: creating the namespace 'other': "), "{refused}");

    let token = row.split_whitespace().next().expect("its id comes first");
    assert_eq!(run(&["token", "revoke", token]), Ok(format!("revoked {token}\n")));
    assert!(!run(&["token", "list"]).expect("they are listed").contains("reader"));
    let refused = run(&["namespace", "delete", "old sessions"]).expect_err("without a terminal nobody can be asked");
    assert!(refused.contains("this needs --yes"), "{refused}");
    run(&["namespace", "delete", "old sessions", "--yes"]).expect("nobody is asked");
    let gone = run(&["namespace", "delete", &id]).expect_err("it is gone");
    assert!(gone.contains(&format!("no namespace with the id or title '{id}'")), "{gone}");
    assert_eq!(server.stop().code(), Some(0));
}

/// With a ring whose nodes the environment names, and a keyspace of this test.
#[test]
#[ignore = "needs a ring of Cassandra, which ./test starts (tests/ring)"]
fn a_store_in_cassandra_is_checked_and_made() {
    let nodes = std::env::var("KVASAR_TEST_CASSANDRA").expect("KVASAR_TEST_CASSANDRA names the nodes of a ring");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("origin.toml");
    let path = file.to_str().expect("a path in UTF-8");
    let keyspace = format!("kvasar_commands_{}", std::process::id());
    let quoted: Vec<String> = nodes.split(',').map(|node| format!("\"{node}\"")).collect();
    let configure = |replication: usize| {
        let text = format!(
            "[origin]\ndata = \"data\"\n[rest]\nlisten = \"127.0.0.1:0\"\non = \"origin\"\n[origin.cassandra]\nnodes = [{}]\nkeyspace = \"{keyspace}\"\nreplication = {replication}\nusername = \"cassandra\"\n",
            quoted.join(", ")
        );
        fs::write(&file, text).expect("a file");
    };
    let password = [("KVASAR_CASSANDRA_PASSWORD", "cassandra")];
    configure(16);
    let (code, out, err) = ended(&kvasar(&["store", "check", "--config", path], &password));
    assert_eq!(code, Some(1), "{out}{err}");
    assert!(out.contains(&format!("node {}:9042 (datacenter1, rack1): up\n", quoted[0].trim_matches('"'))), "{out}");
    assert!(
        out.contains(&format!("keyspace {keyspace}: not there\n")) && err.contains("the store has 1 problem"),
        "{out}{err}"
    );

    let (code, _, err) = ended(&kvasar(&["store", "migrate", "--config", path], &password));
    assert_eq!(code, Some(1));
    assert!(
        err.contains(&format!("making the keyspace {keyspace} with 16 copies of each row, on {} nodes", quoted.len())),
        "{err}"
    );

    configure(1);
    let (code, out, err) = ended(&kvasar(&["store", "migrate", "--config", path], &password));
    assert_eq!(code, Some(0), "{out}{err}");
    let (code, again, err) = ended(&kvasar(&["store", "check", "--config", path], &password));
    assert_eq!((code, &again), (Some(0), &out), "{err}");
    assert!(out.contains("NetworkTopologyStrategy") && out.contains("datacenter1: 1\n"), "{out}");
    assert!(out.contains("tables: version 1, this program's is 1\n"), "{out}");
}

#[test]
fn only_a_store_that_is_shared_is_checked() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("origin.toml");
    fs::write(&file, "[origin]\ndata = \"data\"\n[rest]\nlisten = \"127.0.0.1:0\"\non = \"origin\"\n").expect("a file");
    let (code, _, err) = ended(&kvasar(&["store", "check", "--config", file.to_str().expect("a path in UTF-8")], &[]));
    assert_eq!(code, Some(1));
    assert!(err.contains("names no store that origins share: there is no [origin.cassandra] in it"), "{err}");
}

#[test]
fn a_store_is_copied_once_nobody_uses_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = |data: &str| {
        format!(
            "[origin]\ndata = \"{data}\"\n[rest]\nlisten = \"127.0.0.1:0\"\non = \"origin\"\n[[account]]\nname = \"default\"\n"
        )
    };
    let place = |data: &str| format!("disk:{}", folder.path().join(data).display());
    let copy =
        |from: &str, to: &str| ended(&kvasar(&["store", "copy", "--from", &place(from), "--to", &place(to)], &[]));
    let list = |server: &Server| {
        let base = format!("http://{}/client/v4", server.rest());
        let variables = [("CLOUDFLARE_API_BASE_URL", base.as_str()), ("CLOUDFLARE_API_TOKEN", server.account().1)];
        ended(&kvasar(&["namespace", "list"], &variables))
    };
    let (code, _, err) = copy("one", "two");
    assert_eq!((code, err.contains(&format!("there is no store at {}", place("one")))), (Some(1), true), "{err}");
    assert!(!folder.path().join("one").exists());
    assert_eq!(ended(&kvasar(&["store", "copy", "--from", "one", "--to", "two"], &[])).0, Some(2));

    let server = Server::start(folder.path(), "one", &config("one"));
    let base = format!("http://{}/client/v4", server.rest());
    let variables = [("CLOUDFLARE_API_BASE_URL", base.as_str()), ("CLOUDFLARE_API_TOKEN", server.account().1)];
    let (code, _, err) = ended(&kvasar(&["namespace", "create", "sessions"], &variables));
    assert_eq!(code, Some(0), "{err}");
    let (_, listed, _) = list(&server);
    let (code, _, err) = copy("one", "two");
    assert_eq!((code, err.contains("is in use by another process; stop that one")), (Some(1), true), "{err}");
    assert_eq!(server.stop().code(), Some(0));

    // An account, a namespace, and a token that is found in two ways.
    let (code, out, err) = copy("one", "two");
    assert!(code == Some(0) && out.starts_with("copied and compared 4 entries, "), "{out}{err}");
    assert_eq!(copy("one", "two").1, out, "what has ended is known");
    let hash = |data: &str| ended(&kvasar(&["store", "export-hash", &place(data)], &[])).1;
    assert_eq!(hash("one").lines().last(), out.lines().last());
    assert_eq!(hash("one"), hash("two"));
    let (code, _, err) = copy("two", "one");
    assert_eq!((code, err.contains("the target has entries already")), (Some(1), true), "{err}");

    // The credentials lie beside the store.
    fs::create_dir(folder.path().join("two/accounts")).expect("a folder");
    fs::copy(folder.path().join("one/accounts/default.json"), folder.path().join("two/accounts/default.json"))
        .expect("a file");
    let server = Server::start(folder.path(), "two", &config("two"));
    assert_eq!(list(&server), (Some(0), listed, String::new()));
    assert_eq!(server.stop().code(), Some(0));
}
