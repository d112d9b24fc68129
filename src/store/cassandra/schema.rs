//! The keyspace and its tables: made where they are missing, by however many origins at once, and judged.
//!
//! Tables are few, and alike; what is kept in them is `place.rs`. The schema has a version, a record like those that origins agree on: a store refuses one that it
//! does not know.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use scylla::{
    errors::ExecutionError,
    policies::load_balancing::{NodeIdentifier, SingleTargetLoadBalancingPolicy},
    statement::unprepared::Statement,
};

use super::{
    agreed::{self, Control},
    place::Family,
    session,
    settings::CassandraSettings,
    statements::{Link, unexpected},
};
use crate::{
    clock::Clock,
    error::{Error, Kind, Result},
    store::Replaced,
};

/// What this store reads and writes. A change that older stores can't read raises it.
const VERSION: u32 = 1;
const VERSION_NAME: &str = "schema";
/// How often the schema is tried to be made: others may be at it.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(500);
/// A change of the schema takes the whole ring a second, more when it is busy.
const DEADLINE: Duration = Duration::from_secs(30);
/// How long a look at the ring waits for connections to its nodes.
const NODES_DEADLINE: Duration = Duration::from_secs(3);

fn tables(keyspace: &str) -> Vec<(&'static str, String)> {
    // A node that is slow to answer is not waited for longer than this; the rest are the database's defaults, which an operator may change.
    let with = "WITH speculative_retry = '50ms'";
    let rows = Family::ALL.map(|family| {
        let columns = "space blob, bucket bigint, key blob, value blob, PRIMARY KEY ((space, bucket), key)";
        (family.name(), format!("CREATE TABLE IF NOT EXISTS {keyspace}.{} ({columns}) {with}", family.name()))
    });
    let columns = "name text PRIMARY KEY, revision bigint, value blob, operation blob";
    let control =
        (agreed::TABLE, format!("CREATE TABLE IF NOT EXISTS {keyspace}.{} ({columns}) {with}", agreed::TABLE));
    rows.into_iter().chain([control]).collect()
}

/// Makes what is not there.
pub(super) async fn ensure(link: &Link) -> Result<()> {
    let mut tried = 0;
    loop {
        let made = make_missing(link, tried).await;
        tried += 1;
        match made {
            Err(error) if tried < TRIES && error.kind == Kind::Unavailable => {
                tracing::info!(%error, "making the tables in Cassandra is tried again");
            }
            made => return made,
        }
        link.clock.sleep(PAUSE * tried).await;
    }
}

async fn make_missing(link: &Link, tried: u32) -> Result<()> {
    let keyspace = &link.settings.keyspace;
    if replication(link).await?.is_none() {
        let text = create_keyspace(link)?;
        tracing::info!(keyspace, "making the keyspace in Cassandra");
        change(link, &text, tried).await?;
    }
    let there = tables_there(link).await?;
    for (table, text) in tables(keyspace) {
        if !there.iter().any(|name| name == table) {
            tracing::info!(keyspace, table, "making the table in Cassandra");
            change(link, &text, tried).await?;
        }
    }
    Ok(())
}

fn create_keyspace(link: &Link) -> Result<String> {
    let CassandraSettings { keyspace, replication, data_center, .. } = &link.settings;
    let state = link.session.get_cluster_state();
    let here = state.get_nodes_info().iter().filter(|node| data_center.is_none() || node.datacenter == *data_center);
    let nodes = here.count();
    if nodes < usize::from(*replication) {
        let at = data_center.as_ref().map(|name| format!(" in the data center {name}")).unwrap_or_default();
        return Err(Error::bad_request(format!(
            "making the keyspace {keyspace} with {replication} copies of each row, on {nodes} nodes{at}: start more of them, set 'replication', or make the keyspace yourself"
        )));
    }
    let of = data_center.as_deref().unwrap_or("replication_factor");
    Ok(format!(
        "CREATE KEYSPACE IF NOT EXISTS {keyspace} WITH replication = {{'class': 'NetworkTopologyStrategy', '{of}': {replication}}}"
    ))
}

/// Changes the schema, and waits until all nodes have it. All origins ask the same node first, so that it sees one change after the other: two nodes that make
/// the same table at the same moment may each make their own.
async fn change(link: &Link, text: &str, tried: u32) -> Result<()> {
    let failed =
        |e: ExecutionError| Error::unavailable(format!("changing the schema in Cassandra: {text}")).with_source(e);
    let state = link.session.get_cluster_state();
    let mut nodes: Vec<_> = state.get_nodes_info().iter().map(|node| node.host_id).collect();
    nodes.sort_unstable();
    let mut statement = Statement::new(text);
    statement.set_request_timeout(Some(DEADLINE));
    if let Some(node) = nodes.get(tried as usize % nodes.len().max(1)) {
        let first = SingleTargetLoadBalancingPolicy::new(NodeIdentifier::HostId(*node), None);
        statement.set_load_balancing_policy(Some(first));
    }
    link.session.query_unpaged(statement, ()).await.map_err(failed)?;
    // What is there already is answered at once, even if other nodes have yet to hear of it.
    link.session.await_schema_agreement().await.map(|_| ()).map_err(|e| failed(e.into()))
}

/// Refuses what a newer store has made.
pub(super) async fn ensure_version(control: &Control) -> Result<()> {
    let ours = Bytes::from(VERSION.to_string());
    let agreed = control.read(VERSION_NAME).await?;
    let found = match agreed.revision {
        0 => match control.replace(VERSION_NAME, 0, &ours).await? {
            Replaced::Done => ours,
            Replaced::Overtaken(agreed) => agreed.value,
        },
        _ => agreed.value,
    };
    check_version(&found)
}

fn check_version(found: &[u8]) -> Result<()> {
    let shown = found.escape_ascii();
    match std::str::from_utf8(found).ok().and_then(|text| text.parse::<u32>().ok()) {
        Some(VERSION) => Ok(()),
        Some(newer) if newer > VERSION => Err(Error::bad_request(format!(
            "the tables in Cassandra are of version {newer}, and this program knows version {VERSION}: use the newer one"
        ))),
        _ => Err(Error::internal(format!("the version of the tables in Cassandra is garbled: '{shown}'"))),
    }
}

/// How the keyspace is replicated, in the database's words; `None` if it is not there.
async fn replication(link: &Link) -> Result<Option<String>> {
    let text = "SELECT replication FROM system_schema.keyspaces WHERE keyspace_name = ?";
    let found = names::<std::collections::BTreeMap<String, String>>(link, text).await?;
    let shown = |(name, value): (String, String)| {
        format!("{}: {value}", name.trim_start_matches("org.apache.cassandra.locator."))
    };
    Ok(found.into_iter().next().map(|map| {
        map.into_iter().map(shown).collect::<Vec<_>>().join(", ").replace("org.apache.cassandra.locator.", "")
    }))
}

async fn tables_there(link: &Link) -> Result<Vec<String>> {
    names(link, "SELECT table_name FROM system_schema.tables WHERE keyspace_name = ?").await
}

async fn names<T>(link: &Link, text: &str) -> Result<Vec<T>>
where
    T: for<'f, 'm> scylla::deserialize::value::DeserializeValue<'f, 'm>,
{
    let doing = || "reading the schema of Cassandra".to_owned();
    let failed = |e: ExecutionError| Error::unavailable(doing()).with_source(e);
    let result = link.session.query_unpaged(text, (&link.settings.keyspace,)).await.map_err(failed)?;
    let rows = result.into_rows_result().map_err(|e| unexpected(doing(), e))?;
    let rows = rows.rows::<(T,)>().map_err(|e| unexpected(doing(), e))?;
    rows.map(|row| row.map(|(name,)| name).map_err(|e| unexpected(doing(), e))).collect()
}

/// What is there of a store, and whether it can be worked with.
#[derive(Debug)]
pub struct Report {
    pub nodes: Vec<NodeReport>,
    pub keyspace: String,
    /// How the keyspace is replicated; `None` if it is not there.
    pub replication: Option<String>,
    pub tables_missing: Vec<&'static str>,
    /// Of the tables, as it was recorded.
    pub version: Option<String>,
    /// What is wrong, each with what to do about it.
    pub problems: Vec<String>,
}

#[derive(Debug)]
pub struct NodeReport {
    pub address: String,
    pub data_center: String,
    pub rack: String,
    /// Whether there is a connection to it.
    pub up: bool,
}

/// Looks at a store, and changes nothing.
pub async fn check(settings: CassandraSettings, clock: Arc<dyn Clock>) -> Result<Report> {
    let link = Arc::new(Link::new(session::connect(&settings).await?, settings, clock));
    let there = tables_there(&link).await?;
    let tables = tables(&link.settings.keyspace).into_iter().map(|(table, _)| table);
    let mut report = Report {
        nodes: nodes(&link).await,
        keyspace: link.settings.keyspace.clone(),
        replication: replication(&link).await?,
        tables_missing: tables.filter(|table| !there.iter().any(|name| name == table)).collect(),
        version: None,
        problems: Vec::new(),
    };
    for node in report.nodes.iter().filter(|node| !node.up) {
        report.problems.push(format!("the node {} can't be reached", node.address));
    }
    if report.replication.is_none() {
        report.problems.push(format!("there is no keyspace {}: kvasar store migrate makes it", report.keyspace));
    } else if !report.tables_missing.is_empty() {
        let missing = report.tables_missing.join(", ");
        report.problems.push(format!("there is no table {missing}: kvasar store migrate makes what is missing"));
    } else {
        judge_contents(&link, &mut report).await;
    }
    Ok(report)
}

/// Whether what the tables hold can be read and agreed on.
async fn judge_contents(link: &Arc<Link>, report: &mut Report) {
    let consistency = link.settings.consistency;
    let control = match Control::prepare(Arc::clone(link)).await {
        Ok(control) => control,
        Err(error) => return report.problems.push(error.to_string()),
    };
    match control.read_settled(VERSION_NAME).await {
        Ok(agreed) if agreed.revision == 0 => {
            report.problems.push("the tables have no version: kvasar store migrate records it".to_owned());
        }
        Ok(agreed) => {
            report.version = Some(agreed.value.escape_ascii().to_string());
            report.problems.extend(check_version(&agreed.value).err().map(|e| e.to_string()));
        }
        Err(error) => report.problems.push(format!("the consistency {consistency} can't be reached: {error}")),
    }
    if let Err(error) = control.read(VERSION_NAME).await {
        report.problems.push(format!("nothing can be agreed on: {error}"));
    }
}

/// All nodes that the ring names. Connections to them are made in the background, so they are waited for a little.
async fn nodes(link: &Link) -> Vec<NodeReport> {
    let deadline = link.clock.now() + NODES_DEADLINE;
    loop {
        let state = link.session.get_cluster_state();
        let report = |node: &Arc<scylla::cluster::Node>| NodeReport {
            address: node.address.to_string(),
            data_center: node.datacenter.clone().unwrap_or_default(),
            rack: node.rack.clone().unwrap_or_default(),
            up: node.is_connected(),
        };
        let mut nodes: Vec<NodeReport> = state.get_nodes_info().iter().map(report).collect();
        if nodes.iter().all(|node| node.up) || link.clock.now() >= deadline {
            nodes.sort_by(|one, other| one.address.cmp(&other.address));
            return nodes;
        }
        link.clock.sleep(Duration::from_millis(100)).await;
    }
}

/// Makes what is missing of a store, brings it to the version of this program, and says how it is then.
pub async fn migrate(settings: CassandraSettings, clock: Arc<dyn Clock>) -> Result<Report> {
    let link = Arc::new(Link::new(session::connect(&settings).await?, settings.clone(), Arc::clone(&clock)));
    ensure(&link).await?;
    ensure_version(&Control::prepare(link).await?).await?;
    check(settings, clock).await
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for node in &self.nodes {
            let up = if node.up { "up" } else { "can't be reached" };
            writeln!(f, "node {} ({}, {}): {up}", node.address, node.data_center, node.rack)?;
        }
        let replication = self.replication.as_deref().unwrap_or("not there");
        writeln!(f, "keyspace {}: {replication}", self.keyspace)?;
        let version = self.version.as_deref().unwrap_or("none");
        writeln!(f, "tables: version {version}, this program's is {VERSION}")?;
        for problem in &self.problems {
            writeln!(f, "problem: {problem}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_another_version_are_refused() {
        assert!(check_version(b"1").is_ok());
        let newer = check_version(b"2").expect_err("it is newer");
        assert_eq!(newer.kind, Kind::BadRequest);
        assert!(newer.message.contains("of version 2") && newer.message.contains("use the newer one"), "{newer}");
        for garbled in [&b""[..], b"0", b"x", &[0xff]] {
            assert_eq!(check_version(garbled).expect_err("it is garbled").kind, Kind::Internal);
        }
    }
}
