//! What the store is told: which database, how it is reached, and how much it must have confirmed.

use std::{fmt, path::PathBuf, time::Duration};

use scylla::statement::{Consistency as DriverConsistency, SerialConsistency};

use crate::error::{Error, Result};

#[derive(Clone, Debug)]
pub struct CassandraSettings {
    /// Some nodes, as `host` or `host:port`. The others are learned from them.
    pub nodes: Vec<String>,
    /// Made if it is not there.
    pub keyspace: String,
    /// How many nodes keep each row, where the keyspace has yet to be made.
    pub replication: u8,
    /// The data center that is asked first, and whose quorum [`Consistency::LocalQuorum`] is.
    pub data_center: Option<String>,
    pub consistency: Consistency,
    /// Over how many partitions the entries of a namespace are spread, for namespaces that have none yet.
    pub buckets: u16,
    pub tls: Option<Tls>,
    pub login: Option<Login>,
    /// When a statement is given up, with all that the driver tries for it.
    pub deadline: Duration,
}

/// How many copies must have confirmed, of reads and writes alike: more than half, so that a read always sees what was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// Of all copies, in whatever data center.
    Quorum,
    /// Of those in the own data center. What was acknowledged elsewhere is seen here later.
    LocalQuorum,
}

#[derive(Clone, Debug)]
pub struct Tls {
    /// The certificates, in PEM, of who may vouch for the nodes.
    pub authority: PathBuf,
    /// Who we are: a certificate chain and its key, in PEM.
    pub identity: Option<(PathBuf, PathBuf)>,
}

#[derive(Clone, Debug)]
pub struct Login {
    pub username: String,
    pub password: Password,
}

/// A text that no log shows.
#[derive(Clone)]
pub struct Password(String);

impl Password {
    pub fn new(text: impl Into<String>) -> Password {
        Password(text.into())
    }

    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(hidden)")
    }
}

impl CassandraSettings {
    pub const REPLICATION_DEFAULT: u8 = 3;
    pub const BUCKETS_DEFAULT: u16 = 16;
    pub const BUCKETS_MAX: u16 = 1024;
    pub const DEADLINE_DEFAULT: Duration = Duration::from_secs(8);

    /// With the defaults for all that may be left out.
    pub fn new(nodes: Vec<String>, keyspace: impl Into<String>) -> CassandraSettings {
        CassandraSettings {
            nodes,
            keyspace: keyspace.into(),
            replication: CassandraSettings::REPLICATION_DEFAULT,
            data_center: None,
            consistency: Consistency::Quorum,
            buckets: CassandraSettings::BUCKETS_DEFAULT,
            tls: None,
            login: None,
            deadline: CassandraSettings::DEADLINE_DEFAULT,
        }
    }

    /// Names go into statements as they are.
    pub(super) fn check(&self) -> Result<()> {
        check_keyspace(&self.keyspace).map_err(Error::bad_request)?;
        if let Some(data_center) = &self.data_center {
            check_data_center(data_center).map_err(Error::bad_request)?;
        }
        if self.nodes.is_empty() {
            return Err(Error::bad_request("the store in Cassandra needs the address of a node"));
        }
        if !(1..=CassandraSettings::BUCKETS_MAX).contains(&self.buckets) {
            let max = CassandraSettings::BUCKETS_MAX;
            return Err(Error::bad_request(format!("a namespace has 1 to {max} buckets, not {}", self.buckets)));
        }
        Ok(())
    }
}

/// A keyspace's name as it is written without quotes.
fn check_keyspace(name: &str) -> Result<(), String> {
    let letters = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if (1..=48).contains(&name.len()) && letters && name.as_bytes()[0].is_ascii_lowercase() {
        return Ok(());
    }
    let name = name.escape_debug();
    Err(format!("a keyspace's name is 1 to 48 of a-z, 0-9 and '_', beginning with a letter, not '{name}'"))
}

fn check_data_center(name: &str) -> Result<(), String> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if (1..=64).contains(&name.len()) && name.bytes().all(fits) {
        return Ok(());
    }
    Err(format!("a data center's name is 1 to 64 of a-z, A-Z, 0-9, '-', '_' and '.', not '{}'", name.escape_debug()))
}

impl Consistency {
    pub(super) fn plain(self) -> DriverConsistency {
        match self {
            Consistency::Quorum => DriverConsistency::Quorum,
            Consistency::LocalQuorum => DriverConsistency::LocalQuorum,
        }
    }

    /// Of what is agreed on.
    pub(super) fn serial(self) -> SerialConsistency {
        match self {
            Consistency::Quorum => SerialConsistency::Serial,
            Consistency::LocalQuorum => SerialConsistency::LocalSerial,
        }
    }

    pub(super) fn serial_read(self) -> DriverConsistency {
        match self {
            Consistency::Quorum => DriverConsistency::Serial,
            Consistency::LocalQuorum => DriverConsistency::LocalSerial,
        }
    }
}

impl fmt::Display for Consistency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Consistency::Quorum => "QUORUM",
            Consistency::LocalQuorum => "LOCAL_QUORUM",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_need_quotes_are_refused() {
        for good in ["kvasar", "k", "kv_2"] {
            assert!(check_keyspace(good).is_ok(), "{good}");
        }
        for bad in ["", "Kvasar", "2kv", "kv-2", "kv;", "kv'", &"k".repeat(49)] {
            assert!(check_keyspace(bad).is_err(), "{bad}");
        }
        assert!(check_data_center("eu-west.1").is_ok() && check_data_center("eu'west").is_err());
    }

    #[test]
    fn no_log_shows_a_password() {
        let login = Login { username: "kvasar".to_owned(), password: Password::new("opensesame") };
        let shown = format!("{login:?}");
        assert!(shown.contains("Password(hidden)") && !shown.contains("opensesame"), "{shown}");
    }
}
