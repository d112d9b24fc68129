//! Stores from their settings.

use crate::{
    config,
    store::cassandra::{CassandraSettings, Consistency, Login, Password, Tls},
};

/// What the store that several origins share is told.
pub fn cassandra(settings: &config::Cassandra) -> CassandraSettings {
    let identity = settings.tls_identity.clone();
    CassandraSettings {
        nodes: settings.nodes.clone(),
        keyspace: settings.keyspace.clone(),
        replication: settings.replication,
        data_center: settings.data_center.clone(),
        consistency: match settings.consistency {
            config::Consistency::Quorum => Consistency::Quorum,
            config::Consistency::LocalQuorum => Consistency::LocalQuorum,
        },
        buckets: settings.buckets,
        tls: settings.tls_ca.clone().map(|authority| Tls { authority, identity }),
        login: settings.login.as_ref().map(|(username, password)| Login {
            username: username.clone(),
            password: Password::new(password.reveal()),
        }),
        deadline: settings.deadline,
    }
}
