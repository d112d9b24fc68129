//! The driver's session: how the nodes are reached, and what is done about those that are slow or dead.
//!
//! Each statement of ours may be repeated: it carries its own timestamp. So the driver may ask a second node while the first one is silent, and ask
//! again after a connection broke. Measured: with these settings neither the death nor the pause of a node of three makes a statement fail.

use std::{fs::File, io::BufReader, path::Path, sync::Arc, time::Duration};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use scylla::{
    client::{execution_profile::ExecutionProfile, session::Session, session_builder::SessionBuilder},
    errors::{DbError, RequestAttemptError},
    policies::{
        load_balancing::DefaultPolicy,
        retry::{DefaultRetryPolicy, RequestInfo, RetryDecision, RetryPolicy, RetrySession},
        speculative_execution::SimpleSpeculativeExecutionPolicy,
    },
};

use super::settings::{CassandraSettings, Consistency, Tls};
use crate::error::{Error, Result};

/// After which a node that has not answered is not waited for alone.
const SPECULATION_AFTER: Duration = Duration::from_millis(100);
/// The same for scans: what takes them long is mostly work, which a second node would have to do as well.
pub(super) const SCAN_SPECULATION_AFTER: Duration = Duration::from_secs(1);
/// Nodes asked beside the first one.
const SPECULATIONS: usize = 2;
/// A connection is asked whether it lives, and given up when it has not answered. Less than a second would give up all of them when a machine is busy.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
const KEEPALIVE_DEADLINE: Duration = Duration::from_secs(5);
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

pub(super) async fn connect(settings: &CassandraSettings) -> Result<Session> {
    settings.check()?;
    let mut builder = SessionBuilder::new()
        .known_nodes(settings.nodes.iter().map(|node| with_port(node)))
        .default_execution_profile_handle(profile(settings).into_handle())
        .keepalive_interval(KEEPALIVE_INTERVAL)
        .keepalive_timeout(KEEPALIVE_DEADLINE)
        .connection_timeout(CONNECT_DEADLINE)
        .tcp_nodelay(true);
    if let Some(login) = &settings.login {
        builder = builder.user(&login.username, login.password.reveal());
    }
    if let Some(tls) = &settings.tls {
        builder = builder.tls_context(Some(Arc::new(tls_config(tls)?)));
    }
    let nodes = settings.nodes.join(", ");
    builder.build().await.map_err(|e| Error::unavailable(format!("connecting to Cassandra at {nodes}")).with_source(e))
}

fn with_port(node: &str) -> String {
    let has_port = match node.rsplit_once(':') {
        // An address of IPv6 without brackets has no port.
        Some((host, port)) => port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']')),
        None => false,
    };
    if has_port { node.to_owned() } else { format!("{node}:9042") }
}

fn profile(settings: &CassandraSettings) -> ExecutionProfile {
    asking_again_after(settings, Some(SPECULATION_AFTER))
}

/// How statements are executed, where a node that has not answered by then is not waited for alone; with `None` it is.
pub(super) fn asking_again_after(settings: &CassandraSettings, after: Option<Duration>) -> ExecutionProfile {
    let mut balancing = DefaultPolicy::builder().token_aware(true);
    if let Some(data_center) = &settings.data_center {
        // Nodes elsewhere would take their own quorum for the local one.
        balancing = balancing
            .prefer_datacenter(data_center.clone())
            .permit_dc_failover(settings.consistency != Consistency::LocalQuorum);
    }
    let speculation =
        |retry_interval| SimpleSpeculativeExecutionPolicy { max_retry_count: SPECULATIONS, retry_interval };
    ExecutionProfile::builder()
        .consistency(settings.consistency.plain())
        .serial_consistency(Some(settings.consistency.serial()))
        .request_timeout(Some(settings.deadline))
        .retry_policy(Arc::new(Retries))
        .speculative_execution_policy(after.map(|after| Arc::new(speculation(after)) as _))
        .load_balancing_policy(balancing.build())
        .build()
}

/// The driver's own policy, and once more on another node after a time-out: our statements may be repeated.
#[derive(Debug)]
struct Retries;

impl RetryPolicy for Retries {
    fn new_session(&self) -> Box<dyn RetrySession> {
        Box::new(Retrying { default: DefaultRetryPolicy::new().new_session(), again: true })
    }
}

struct Retrying {
    default: Box<dyn RetrySession>,
    again: bool,
}

impl RetrySession for Retrying {
    fn decide_should_retry(&mut self, request: RequestInfo<'_>) -> RetryDecision {
        use RequestAttemptError::DbError as Answered;
        let timed_out =
            matches!(request.error, Answered(DbError::ReadTimeout { .. } | DbError::WriteTimeout { .. }, _));
        let again = self.again && timed_out && request.is_idempotent && !request.consistency.is_serial();
        match self.default.decide_should_retry(request) {
            RetryDecision::DontRetry if again => {
                self.again = false;
                RetryDecision::RetryNextTarget(None)
            }
            decision => decision,
        }
    }

    fn reset(&mut self) {
        self.default.reset();
        self.again = true;
    }
}

fn tls_config(tls: &Tls) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&tls.authority)? {
        roots.add(certificate).map_err(|e| unusable(&tls.authority, e))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::internal("setting up TLS").with_source(e))?
        .with_root_certificates(roots);
    let Some((certificate, key)) = &tls.identity else { return Ok(builder.with_no_client_auth()) };
    let chain = certificates(certificate)?;
    let private = PrivateKeyDer::from_pem_reader(open(key)?).map_err(|e| unusable(key, e))?;
    builder.with_client_auth_cert(chain, private).map_err(|e| unusable(certificate, e))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let found: Vec<_> =
        CertificateDer::pem_reader_iter(open(file)?).collect::<Result<_, _>>().map_err(|e| unusable(file, e))?;
    if found.is_empty() {
        return Err(Error::bad_request(format!("{} holds no certificate in PEM", file.display())));
    }
    Ok(found)
}

fn open(file: &Path) -> Result<BufReader<File>> {
    let opened = File::open(file).map_err(|e| unusable(file, e))?;
    Ok(BufReader::new(opened))
}

fn unusable(file: &Path, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::bad_request(format!("reading {} for connections to Cassandra", file.display())).with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_without_a_port_has_cassandras() {
        for (node, expected) in [
            ("db1", "db1:9042"),
            ("db1:9043", "db1:9043"),
            ("10.0.0.1", "10.0.0.1:9042"),
            ("[::1]:9043", "[::1]:9043"),
            ("[::1]", "[::1]:9042"),
        ] {
            assert_eq!(with_port(node), expected);
        }
    }
}
