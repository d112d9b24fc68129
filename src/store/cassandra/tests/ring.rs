//! What only a database does: dead rows in the way of scans, certificates and passwords, several who make the same tables.
//!
//! These need a ring whose nodes refuse to go over more than 1,000 dead rows and say so from 100 on, ask for a password, and speak TLS:
//! `SECURE=1 CASS_YAML=... tests/ring start 1 DIR`, as `./test` does.

use std::path::PathBuf;

use super::*;
use crate::{
    clock::{self, RealClock},
    error::Kind,
    store::contract::shared::settings,
};

const HOUR: u64 = 3600 * 1000;

struct World {
    store: CassandraStore,
    clock: Arc<dyn Clock>,
    namespace: [u8; 16],
}

/// A store whose namespaces have one partition, and a namespace of its own.
async fn world() -> World {
    let clock = RealClock::shared();
    let settings = CassandraSettings { buckets: 1, ..settings() };
    let store = CassandraStore::connect(settings, Arc::clone(&clock)).await.unwrap();
    let namespace = clock::random_bytes(&*clock);
    World { store, clock, namespace }
}

impl World {
    fn key(&self, number: usize) -> Bytes {
        [&self.namespace[..], format!("user:{number:06}").as_bytes()].concat().into()
    }

    /// Puts so many rows and removes all but each hundredth, so many milliseconds ago.
    async fn left_dead(&self, rows: usize, ago: u64) {
        let version = |later| Version::first_of(self.clock.wall_millis() - ago + later, 1);
        let (mut puts, mut removals) = (Batch::at(version(0)), Batch::at(version(1)));
        for number in 0..rows {
            puts.put(Table::Entry, self.key(number), "value");
            if !number.is_multiple_of(100) {
                removals.remove(Table::Entry, self.key(number));
            }
        }
        self.store.commit(puts, Durability::Synced).await.unwrap();
        self.store.commit(removals, Durability::Synced).await.unwrap();
    }

    async fn scan(&self, limit: usize) -> Vec<Bytes> {
        let rows = self.store.scan(Table::Entry, &self.namespace, b"", limit).await.unwrap();
        rows.into_iter().map(|(key, _)| key).collect()
    }

    fn each_hundredth(&self, rows: usize) -> Vec<Bytes> {
        (0..rows).step_by(100).map(|number| self.key(number)).collect()
    }

    /// What the database says of the whole namespace, asked for it at once.
    async fn read(&self) -> Result<statements::Rows, statements::ReadError> {
        let space = Bytes::copy_from_slice(&self.namespace);
        let partition = Partition { family: place::Family::Entry, space, bucket: 0 };
        let all = Stretch { from: Bytes::new(), to: None };
        self.store.database.read(&partition, &all, 10_000, statements::Asking::Patiently).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a ring of Cassandra, which ./test starts (tests/ring)"]
async fn a_scan_that_was_refused_is_made_in_pieces_and_clears_the_way() {
    let world = world().await;
    world.left_dead(3000, 2 * HOUR).await;
    assert!(matches!(world.read().await, Err(statements::ReadError::TooManyDead(_))), "the ring is to refuse this");
    assert_eq!(world.scan(10_000).await, world.each_hundredth(3000));
    let read = world.read().await.unwrap_or_else(|e| panic!("{}", e.into_error()));
    assert_eq!(read.rows.len(), 30);
    // Pages and bounds are as they would be without any dead row.
    assert_eq!(world.scan(7).await, world.each_hundredth(700));
    let some = world.store.scan(Table::Entry, &world.key(150), &world.key(350), 10).await.unwrap();
    assert_eq!(some.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a ring of Cassandra, which ./test starts (tests/ring)"]
async fn what_was_removed_lately_is_left_alone_and_gone_around() {
    let world = world().await;
    world.left_dead(3000, 0).await;
    for _ in 0..2 {
        assert_eq!(world.scan(10_000).await, world.each_hundredth(3000));
    }
    assert!(matches!(world.read().await, Err(statements::ReadError::TooManyDead(_))), "nothing of it is old enough");
    // A write whose version is a little older than the scan stands.
    let mut late = Batch::at(Version::first_of(world.clock.wall_millis() + 2, 1));
    late.put(Table::Entry, world.key(150), "late");
    world.store.commit(late, Durability::Synced).await.unwrap();
    assert_eq!(world.store.get(Table::Entry, &world.key(150)).await.unwrap().unwrap(), "late");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a ring of Cassandra, which ./test starts (tests/ring)"]
async fn a_scan_that_met_many_dead_rows_has_them_cleared_away() {
    let world = world().await;
    world.left_dead(700, 2 * HOUR).await;
    assert!(world.read().await.is_ok_and(|read| read.dead == Some(693)), "the ring is to say so");
    assert_eq!(world.scan(10_000).await, world.each_hundredth(700));
    let deadline = world.clock.now() + Duration::from_secs(30);
    while !world.read().await.is_ok_and(|read| read.dead.is_none()) {
        assert!(world.clock.now() < deadline, "what is dead is still there");
        world.clock.sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(world.scan(10_000).await, world.each_hundredth(700));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a ring of Cassandra, which ./test starts (tests/ring)"]
async fn a_large_value_goes_with_one_removal_per_partition() {
    let world = world().await;
    let id = ValueId(world.clock.random());
    let mut puts = Batch::at(Version::first_of(world.clock.wall_millis() - 1000, 1));
    (0..400).for_each(|number| puts.put(Table::Chunk, keys::chunk(id, number), vec![7; 1000]));
    world.store.commit(puts, Durability::Synced).await.unwrap();
    let from = keys::chunk(id, 0);
    assert_eq!(world.store.scan(Table::Chunk, &from, b"", 1000).await.unwrap().len(), 400);
    let mut removals = Batch::at(Version::first_of(world.clock.wall_millis(), 1));
    (0..400).for_each(|number| removals.remove(Table::Chunk, keys::chunk(id, number)));
    let writes = world.store.writes(removals.clone()).await.unwrap();
    assert_eq!(writes.values().map(Vec::len).collect::<Vec<_>>(), [1; 7]);
    world.store.commit(removals, Durability::Synced).await.unwrap();
    assert_eq!(world.store.scan(Table::Chunk, &from, b"", 1000).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a ring of Cassandra, which ./test starts (tests/ring)"]
async fn many_who_start_at_once_make_one_schema() {
    let clock = RealClock::shared();
    let keyspace = format!("kvasar_test_{:x}", clock.random());
    let start = || {
        let settings = CassandraSettings { keyspace: keyspace.clone(), ..settings() };
        let clock = Arc::clone(&clock);
        tokio::spawn(async move { CassandraStore::connect(settings, clock).await.unwrap() })
    };
    let mut stores = Vec::new();
    for starting in [start(), start(), start(), start()] {
        stores.push(starting.await.unwrap());
    }
    let namespace: [u8; 16] = clock::random_bytes(&*clock);
    for (number, store) in stores.iter().enumerate() {
        let mut batch = Batch::at(Version::first_of(clock.wall_millis(), number as u8));
        batch.put(Table::Entry, [&namespace[..], &[number as u8]].concat(), "");
        store.commit(batch, Durability::Synced).await.unwrap();
    }
    for store in &stores {
        assert_eq!(store.scan(Table::Entry, &namespace, b"", 10).await.unwrap().len(), 4);
    }
    // Tables of a newer program are not touched.
    let control = &stores[0].control;
    assert_eq!(control.replace("schema", 1, &Bytes::from("2")).await.unwrap(), Replaced::Done);
    let refused =
        CassandraStore::connect(CassandraSettings { keyspace: keyspace.clone(), ..settings() }, Arc::clone(&clock));
    let error = refused.await.err().expect("it does not know version 2");
    assert!(error.to_string().contains("are of version 2, and this program knows version 1"), "{error}");
    let session = &stores[0].database.link.session;
    session.query_unpaged(format!("DROP KEYSPACE {keyspace}"), ()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a ring of Cassandra, which ./test starts (tests/ring)"]
async fn a_change_whose_outcome_was_unknown_is_known_by_the_record() {
    let world = world().await;
    let (control, name) = (&world.store.control, format!("test/{:x}", world.clock.random()));
    let (ours, never) = ([7; 16], [8; 16]);
    let overtaken = |revision, value: &'static str| Replaced::Overtaken(Agreed { revision, value: value.into() });
    assert!(control.try_once(&name, 0, &Bytes::from("ours"), &[ours]).await.unwrap());
    assert!(!control.try_once(&name, 0, &Bytes::from("ours"), &[ours]).await.unwrap(), "it has taken effect already");
    assert_eq!(control.refused(&name, 0, &ours, true).await.unwrap(), Replaced::Done);
    assert_eq!(control.refused(&name, 0, &never, true).await.unwrap(), overtaken(1, "ours"));
    for revision in 1..16 {
        assert_eq!(control.replace(&name, revision, &Bytes::from("theirs")).await.unwrap(), Replaced::Done);
        assert_eq!(control.refused(&name, 0, &ours, true).await.unwrap(), Replaced::Done);
        assert_eq!(control.refused(&name, 0, &never, true).await.unwrap(), overtaken(revision + 1, "theirs"));
    }
    assert_eq!(control.replace(&name, 16, &Bytes::from("theirs")).await.unwrap(), Replaced::Done);
    let error = control.refused(&name, 0, &ours, true).await.expect_err("nobody knows any more");
    assert!(
        error.kind == Kind::Unavailable
            && error.message.ends_with("may have been changed, and has been 16 times since"),
        "{error}"
    );
    assert_eq!(control.refused(&name, 0, &never, false).await.unwrap(), overtaken(17, "theirs"));
}

/// Beside the ring's nodes: what it made for who has a certificate.
fn tls() -> PathBuf {
    let folder = std::env::var_os("KVASAR_TEST_CASSANDRA_TLS")
        .expect("KVASAR_TEST_CASSANDRA_TLS names the folder tls of the ring's");
    PathBuf::from(folder)
}

async fn connect(change: impl FnOnce(&mut CassandraSettings)) -> Result<CassandraStore> {
    let mut settings = settings();
    change(&mut settings);
    CassandraStore::connect(settings, RealClock::shared()).await
}

fn identity(authority: &str) -> Option<Tls> {
    let identity = Some((tls().join("client.pem"), tls().join("client-key.pem")));
    Some(Tls { authority: tls().join(authority), identity })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a ring of Cassandra, which ./test starts (tests/ring)"]
async fn a_node_and_an_origin_know_each_other_by_certificate() {
    let store = connect(|settings| settings.tls = identity("ca.pem")).await.unwrap();
    assert_eq!(store.get(Table::Meta, b"nothing").await.unwrap(), None);
    let error = connect(|settings| settings.tls = identity("stranger.pem"))
        .await
        .err()
        .expect("nobody known vouches for the node");
    assert_eq!(error.kind, Kind::Unavailable);
    assert!(error.to_string().contains("certificate"), "{error}");
    let unknown =
        |settings: &mut CassandraSettings| settings.tls = Some(Tls { authority: tls().join("ca.pem"), identity: None });
    let error = connect(unknown).await.err().expect("nobody knows who asks");
    // Told only after the connection was made, so that the driver may see no more than its end.
    assert!(error.to_string().starts_with("connecting to Cassandra at "), "{error}");
    let error =
        connect(|settings| settings.tls = identity("client-key.pem")).await.err().expect("a key is no certificate");
    assert_eq!(error.kind, Kind::BadRequest);
    assert!(error.message.ends_with("client-key.pem holds no certificate in PEM"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a ring of Cassandra, which ./test starts (tests/ring)"]
async fn a_password_is_checked_and_never_shown() {
    let login = |password: &str| Some(Login { username: "cassandra".to_owned(), password: Password::new(password) });
    connect(|settings| settings.login = login("cassandra")).await.unwrap();
    let error = connect(|settings| settings.login = login("opensesame")).await.err().expect("the password is wrong");
    assert_eq!(error.kind, Kind::Unavailable);
    let shown = format!("{error} {error:?}");
    assert!(shown.contains("credentials") && !shown.contains("opensesame"), "{shown}");
    let error = connect(|settings| settings.login = None).await.err().expect("there is no password");
    assert!(error.to_string().contains("uthentication"), "{error}");
}

#[tokio::test]
async fn a_database_that_is_not_there_is_unavailable() {
    // The port of "discard": nothing of a database listens there.
    let settings = CassandraSettings::new(vec!["127.0.0.1:9".to_owned()], "kvasar_test");
    let error = CassandraStore::connect(settings, RealClock::shared()).await.err().expect("nobody is there");
    assert_eq!(error.kind, Kind::Unavailable);
    assert!(error.to_string().starts_with("connecting to Cassandra at 127.0.0.1:9: "), "{error}");
}
