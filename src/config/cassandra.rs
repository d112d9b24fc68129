//! `[origin.cassandra]`: the store that several origins share, where it is and how it is entered.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Secret,
    read::{MINUTE, SECOND, Surroundings, millis},
    section::Section,
    units,
};

#[derive(Clone, Debug)]
pub struct Cassandra {
    /// Some nodes of the database, as `host` or `host:port`; the others are learned from them. More of them make a start possible while some are down.
    pub nodes: Vec<String>,
    /// Where the store is. It is made if it is not there.
    pub keyspace: String,
    /// How many nodes keep each row, where the keyspace has yet to be made. More survive more deaths, and cost as much more disk and work.
    pub replication: u8,
    /// Whose nodes are asked first, if the database spans several data centers.
    pub data_center: Option<String>,
    pub consistency: Consistency,
    /// Over how many partitions the entries of a namespace are spread, for those that are made from now on. More hold more keys (some millions each), and make listings slower.
    pub buckets: u16,
    /// The certificates, in PEM, of who vouches for the nodes; with it connections are encrypted.
    pub tls_ca: Option<PathBuf>,
    /// The certificate and the key, in PEM, that say who this origin is.
    pub tls_identity: Option<(PathBuf, PathBuf)>,
    pub login: Option<(String, Secret)>,
    /// When a question to the database is given up. Longer rides out slower nodes; a client waits longer for its error.
    pub deadline: Duration,
}

/// How many copies must have confirmed a read, and a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// More than half of all.
    Quorum,
    /// More than half of those in the own data center, which all origins must then share: spares the trip to the others, which have what was acknowledged a moment
    /// later. Origins in two of them would not know of each other, and no age would tell what is missing (`docs/cluster.md`).
    LocalQuorum,
}

/// Holds the password of the database, where no file does.
pub(super) const PASSWORD_VARIABLE: &str = "KVASAR_CASSANDRA_PASSWORD";

pub(super) fn read(mut section: Section<'_, '_>, around: &Surroundings<'_>) -> Cassandra {
    let path = |text: &str| if text.is_empty() { Err("it is empty".to_owned()) } else { Ok(around.folder.join(text)) };
    let consistency = |text: &str| match text {
        "QUORUM" => Ok(Consistency::Quorum),
        "LOCAL_QUORUM" => Ok(Consistency::LocalQuorum),
        other => Err(format!("'{}' is no consistency that keeps what was acknowledged", other.escape_debug())),
    };
    let nodes = section.needed_texts("nodes", "[\"db1.example\", \"db2.example\"]", units::host).unwrap_or_default();
    let keyspace = section.text("keyspace", "\"kvasar\"", keyspace).unwrap_or_else(|| "kvasar".to_owned());
    let replication = section.number("replication", 1..=16).unwrap_or(3);
    let data_center = section.text("data_center", "\"dc1\"", name);
    let consistency =
        section.text("consistency", "\"QUORUM\" or \"LOCAL_QUORUM\"", consistency).unwrap_or(Consistency::Quorum);
    let buckets = section.number("buckets", 1..=1024).unwrap_or(16);
    let tls_ca = section.text("tls_ca", "\"database-ca.pem\"", path);
    let certificate = section.text("tls_certificate", "\"origin.pem\"", path);
    let key = section.text("tls_key", "\"origin-key.pem\"", path);
    let username = section.text("username", "\"kvasar\"", not_empty);
    let password = password(&mut section, around);
    let deadline = section.duration("deadline", millis(SECOND, MINUTE)).unwrap_or(Duration::from_secs(8));
    let tls_identity = match (section.is_there("tls_certificate"), section.is_there("tls_key")) {
        (true, false) => {
            section.refuse("tls_certificate", "it is of no use without its key", "'tls_key' beside it");
            None
        }
        (false, true) => {
            section.refuse("tls_key", "it is of no use without its certificate", "'tls_certificate' beside it");
            None
        }
        _ => certificate.zip(key),
    };
    if tls_identity.is_some() && !section.is_there("tls_ca") {
        section.refuse("tls_certificate", "without 'tls_ca' nothing is encrypted", "'tls_ca' beside it");
    }
    if consistency == Consistency::LocalQuorum && !section.is_there("data_center") {
        section.refuse("consistency", "which data center is the own one?", "'data_center' beside it");
    }
    let login = match (username, password) {
        (Some(username), Some(password)) => Some((username, password)),
        (Some(_), None) if !section.is_there("password_file") => {
            let instead = format!("password_file = \"database.password\", or {PASSWORD_VARIABLE} in the environment");
            section.refuse("username", "there is no password for it", instead);
            None
        }
        _ => None,
    };
    if section.is_there("password_file") && !section.is_there("username") {
        section.refuse("password_file", "whose password is it?", "'username' beside it");
    }
    section.finish(());
    Cassandra { nodes, keyspace, replication, data_center, consistency, buckets, tls_ca, tls_identity, login, deadline }
}

/// From the file, or else from the environment.
fn password(section: &mut Section<'_, '_>, around: &Surroundings<'_>) -> Option<Secret> {
    let from_file =
        section.text("password_file", "\"database.password\"", |text| read_password(&around.folder.join(text)));
    let in_environment = || (around.environment)(PASSWORD_VARIABLE).filter(|text| !text.is_empty()).map(Secret::new);
    if section.is_there("password_file") { from_file } else { in_environment() }
}

fn read_password(path: &Path) -> Result<Secret, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("reading {}: {e}", path.display()))?;
    let password = text.trim_end_matches(['\r', '\n']);
    if password.is_empty() { Err(format!("{} is empty", path.display())) } else { Ok(Secret::new(password)) }
}

/// It goes into statements as it is, without quotes.
fn keyspace(text: &str) -> Result<String, String> {
    let letters = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if (1..=48).contains(&text.len()) && letters && text.as_bytes()[0].is_ascii_lowercase() {
        return Ok(text.to_owned());
    }
    let shown = text.escape_debug();
    Err(format!("a keyspace is called 1 to 48 of a-z, 0-9 and '_', beginning with a letter, not '{shown}'"))
}

fn name(text: &str) -> Result<String, String> {
    units::check_name(text).map(|()| text.to_owned())
}

fn not_empty(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("it is empty".to_owned()) } else { Ok(text.to_owned()) }
}
