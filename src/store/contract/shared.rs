//! Stores that several origins share, as benches, and the checks of what only they do.
//!
//! A check's keys get a prefix that no other check has, so that all may have the same tables; its changes get versions, each above the last.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Bench, commit, get, names};
use crate::{
    clock::{self, Clock, ManualClock, RealClock},
    error::Result,
    kv::Version,
    store::{
        Agreed, Agreement, Batch, Durability, Replaced, Store, Table,
        cassandra::{CassandraSettings, CassandraStore, Login, Password},
        keys,
        memory::MemoryStore,
    },
};

/// A store as one check sees it.
struct Apart {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    salt: [u8; 8],
    last: Mutex<Version>,
}

impl Apart {
    fn new(store: Arc<dyn Store>, clock: &Arc<dyn Clock>, salt: [u8; 8]) -> Arc<Apart> {
        Arc::new(Apart { store, clock: Arc::clone(clock), salt, last: Mutex::default() })
    }

    fn key(&self, table: Table, key: &[u8]) -> Bytes {
        [&self.prefix(table), key].concat().into()
    }

    fn prefix(&self, table: Table) -> Vec<u8> {
        self.salt.repeat(table.prefix_bytes().max(8) / 8)
    }

    /// The next version that an origin could have minted.
    fn mint(&self) -> Version {
        let mut last = self.last.lock().unwrap();
        let now = Version::first_of(self.clock.wall_millis(), 1);
        let next = last.next(1).unwrap();
        let full = next.micros() <= last.micros();
        *last = now.max(if full { Version::first_of(last.millis() + 1, 1) } else { next });
        *last
    }
}

#[async_trait]
impl Store for Apart {
    async fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>> {
        self.store.get(table, &self.key(table, key)).await
    }

    async fn get_many(&self, table: Table, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>> {
        let keys: Vec<Bytes> = keys.iter().map(|key| self.key(table, key)).collect();
        self.store.get_many(table, &keys).await
    }

    async fn scan(&self, table: Table, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>> {
        let to = match (to, table.prefix_bytes()) {
            ([], 0) => keys::after_prefix(&self.prefix(table)),
            // Where a scan has to end on its own: at the end of its prefix, or past it.
            ([], _) => match limit % 3 {
                0 => keys::after_prefix(&self.prefix(table)),
                1 => Bytes::new(),
                _ => Bytes::from_static(&[0xff; 24]),
            },
            (to, _) => self.key(table, to),
        };
        let rows = self.store.scan(table, &self.key(table, from), &to, limit).await?;
        let prefix = self.prefix(table);
        Ok(rows
            .into_iter()
            .map(|(key, value)| (key.slice_ref(key.strip_prefix(&prefix[..]).unwrap()), value))
            .collect())
    }

    async fn commit(&self, mut batch: Batch, durability: Durability) -> Result<()> {
        let version = self.mint();
        for change in &mut batch.changes {
            change.key = self.key(change.table, &change.key);
            if change.version == Version::ZERO {
                change.version = version;
            }
        }
        self.store.commit(batch, durability).await
    }

    fn in_place(&self) -> Option<Arc<dyn Store>> {
        None
    }

    fn agreement(&self) -> Option<&dyn Agreement> {
        Some(self)
    }
}

#[async_trait]
impl Agreement for Apart {
    async fn read(&self, name: &str) -> Result<Agreed> {
        self.store.agreement().unwrap().read(&format!("{:?}/{name}", self.salt)).await
    }

    async fn replace(&self, name: &str, revision: u64, value: Bytes) -> Result<Replaced> {
        self.store.agreement().unwrap().replace(&format!("{:?}/{name}", self.salt), revision, value).await
    }
}

/// What the checks of shared stores need beside.
pub(super) trait SharedBench: Bench {
    /// The same store with the prefixes that come right after those of [`Bench::store`].
    fn beside(&self) -> Arc<dyn Store>;
    /// What the store's rows expire by, in Unix seconds.
    fn now(&self) -> u64;
    /// Lets so much time pass for the store.
    async fn pass(&self, time: Duration);
}

pub(super) struct Memory {
    store: Arc<Apart>,
    clock: Arc<ManualClock>,
}

impl Memory {
    pub(super) fn start() -> Memory {
        let manual = ManualClock::shared();
        let clock: Arc<dyn Clock> = Arc::new(Arc::clone(&manual));
        let store = Apart::new(Arc::new(MemoryStore::shared(Arc::clone(&clock))), &clock, [7; 8]);
        Memory { store, clock: manual }
    }
}

impl Bench for Memory {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    /// Whoever comes later finds the same store.
    fn reopen(&mut self) {}
}

impl SharedBench for Memory {
    fn beside(&self) -> Arc<dyn Store> {
        beside(&self.store)
    }

    fn now(&self) -> u64 {
        self.clock.wall_millis() / 1000
    }

    async fn pass(&self, time: Duration) {
        self.clock.advance(time);
    }
}

fn beside(store: &Apart) -> Arc<dyn Store> {
    let salt = (u64::from_be_bytes(store.salt) + 1).to_be_bytes();
    Apart::new(Arc::clone(&store.store), &store.clock, salt)
}

pub(super) struct Cassandra {
    store: Arc<Apart>,
}

impl Cassandra {
    pub(super) async fn start() -> Cassandra {
        let clock = RealClock::shared();
        let salt = clock::random_bytes::<8>(&*clock).map(|byte| byte & 0x7f);
        Cassandra { store: Apart::new(connect(&clock).await, &clock, salt) }
    }
}

async fn connect(clock: &Arc<dyn Clock>) -> Arc<dyn Store> {
    let store = CassandraStore::connect(settings(), Arc::clone(clock)).await.unwrap();
    Arc::new(store.dropping_after(Duration::from_secs(1)))
}

/// Of the ring that the environment names.
pub(in crate::store) fn settings() -> CassandraSettings {
    let nodes = std::env::var("KVASAR_TEST_CASSANDRA")
        .expect("KVASAR_TEST_CASSANDRA names the nodes of a ring: KVASAR_TEST_CASSANDRA=$(tests/ring start 1 DIR)");
    let nodes: Vec<String> = nodes.split(',').map(str::to_owned).collect();
    let replication = u8::try_from(nodes.len().min(3)).unwrap();
    // Many tests at once keep a ring busy that shares two cores with them.
    let deadline = Duration::from_secs(30);
    // What nodes that ask for no password don't look at.
    let login = Some(Login { username: "cassandra".to_owned(), password: Password::new("cassandra") });
    CassandraSettings { replication, deadline, login, ..CassandraSettings::new(nodes, "kvasar_test") }
}

impl Bench for Cassandra {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    fn reopen(&mut self) {
        let clock = Arc::clone(&self.store.clock);
        let store = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(connect(&clock)));
        let last = *self.store.last.lock().unwrap();
        self.store = Apart::new(store, &clock, self.store.salt);
        *self.store.last.lock().unwrap() = last;
    }
}

impl SharedBench for Cassandra {
    fn beside(&self) -> Arc<dyn Store> {
        beside(&self.store)
    }

    fn now(&self) -> u64 {
        self.store.clock.wall_millis() / 1000
    }

    async fn pass(&self, time: Duration) {
        self.store.clock.sleep(time).await;
    }
}

/// A change of one row of a table, with a version of its own.
fn change(table: Table, value: Option<&str>, millis: u64) -> Batch {
    let mut batch = Batch::at(Version::first_of(1_800_000_000_000 + millis, 3));
    match value {
        Some(value) => batch.put(table, "row", value.to_owned()),
        None => batch.remove(table, "row"),
    }
    batch
}

pub(super) async fn the_greatest_version_stands_in_any_order_of_arrival(bench: &mut impl SharedBench) {
    let orders = [[1, 2, 3], [1, 3, 2], [2, 1, 3], [2, 3, 1], [3, 1, 2], [3, 2, 1]];
    let mut millis = 0;
    for table in Table::ALL {
        let store = bench.store();
        for order in orders {
            for removed in 1..=3u64 {
                millis += 10;
                let value = |at: u64| (at != removed).then(|| format!("{at}"));
                for at in order {
                    commit(&store, change(table, value(at).as_deref(), millis + at)).await;
                }
                let found = get(&store, table, b"row").await;
                assert_eq!(found, value(3).map(String::into_bytes), "{order:?}, {removed} removed");
                let rows = store.scan(table, b"", b"", 10).await.unwrap();
                assert_eq!(rows.len(), usize::from(removed != 3));
            }
        }
    }
}

pub(super) async fn a_commit_may_be_repeated(bench: &mut impl SharedBench) {
    let store = bench.store();
    let first = change(Table::Entry, Some("first"), 1);
    commit(&store, first.clone()).await;
    commit(&store, first.clone()).await;
    assert_eq!(get(&store, Table::Entry, b"row").await.unwrap(), b"first");
    let removal = change(Table::Entry, None, 2);
    commit(&store, removal.clone()).await;
    commit(&store, first.clone()).await;
    assert_eq!(get(&store, Table::Entry, b"row").await, None);
    commit(&store, change(Table::Entry, Some("second"), 3)).await;
    commit(&store, removal).await;
    commit(&store, first).await;
    assert_eq!(get(&store, Table::Entry, b"row").await.unwrap(), b"second");
}

/// A row that a test waits for is gone within a minute, or the test has failed.
async fn until_gone(bench: &impl SharedBench, table: Table, key: &[u8]) {
    let store = bench.store();
    let deadline = bench.now() + 60;
    while get(&store, table, key).await.is_some() {
        assert!(bench.now() < deadline, "the row in {} is still there", table.name());
        bench.pass(Duration::from_millis(100)).await;
    }
}

pub(super) async fn a_row_goes_by_itself_after_it_expires(bench: &mut impl SharedBench) {
    let store = bench.store();
    let now = bench.now();
    let mut batch = Batch::default();
    for table in Table::ALL {
        batch.put_until(table, "soon", "s", Some(now + 1));
        batch.put_until(table, "long ago", "a", Some(now - 1000));
        batch.put_until(table, "later", "l", Some(now + 3600));
        batch.put_until(table, "in a century", "c", Some(now + 100 * 365 * 24 * 3600));
        batch.put(table, "never", "n");
    }
    commit(&store, batch).await;
    for table in Table::ALL {
        until_gone(bench, table, b"soon").await;
        until_gone(bench, table, b"long ago").await;
        let rows = store.scan(table, b"", b"", 10).await.unwrap();
        let left: Vec<&[u8]> = rows.iter().map(|(key, _)| &key[..]).collect();
        assert_eq!(left, [&b"in a century"[..], b"later", b"never"], "{}", table.name());
    }
}

pub(super) async fn the_change_that_stands_says_when_a_row_expires(bench: &mut impl SharedBench) {
    let store = bench.store();
    let now = bench.now();
    let until = |value: &'static str, millis: u64, expires| {
        let mut batch = Batch::at(Version::first_of(1_800_000_000_000 + millis, 3));
        batch.put_until(Table::Entry, value, value, expires);
        batch
    };
    // The later change takes the expiration away, or brings it; the other one comes after it in one of the cases.
    commit(&store, until("kept", 1, Some(now + 1))).await;
    commit(&store, until("kept", 2, None)).await;
    commit(&store, until("kept", 1, Some(now + 1))).await;
    commit(&store, until("dropped", 2, Some(now + 1))).await;
    commit(&store, until("dropped", 1, None)).await;
    until_gone(bench, Table::Entry, b"dropped").await;
    bench.pass(Duration::from_secs(2)).await;
    assert_eq!(names(&store, b"", b"", 10).await, ["kept"]);
}

pub(super) async fn a_scan_stays_within_its_prefix(bench: &mut impl SharedBench) {
    let (store, beside) = (bench.store(), bench.beside());
    for table in Table::ALL {
        commit(&store, super::put(table, b"here", b"")).await;
        commit(&beside, super::put(table, b"there", b"")).await;
        for (store, expected) in [(&store, "here"), (&beside, "there")] {
            for limit in 10..13 {
                let rows = store.scan(table, b"", b"", limit).await.unwrap();
                let found: Vec<&[u8]> = rows.iter().map(|(key, _)| &key[..]).collect();
                assert_eq!(found, [expected.as_bytes()], "{}", table.name());
            }
        }
    }
}

fn agreement(store: &Arc<dyn Store>) -> &dyn Agreement {
    store.agreement().expect("it is a shared store")
}

fn agreed(revision: u64, value: &'static str) -> Agreed {
    Agreed { revision, value: Bytes::from(value) }
}

pub(super) async fn what_was_never_agreed_on_is_empty(bench: &mut impl SharedBench) {
    assert_eq!(agreement(&bench.store()).read("nothing").await.unwrap(), Agreed::default());
}

pub(super) async fn a_record_is_replaced_at_its_revision_only(bench: &mut impl SharedBench) {
    let store = bench.store();
    let records = agreement(&store);
    assert_eq!(records.replace("r", 1, "early".into()).await.unwrap(), Replaced::Overtaken(Agreed::default()));
    assert_eq!(records.replace("r", 0, "one".into()).await.unwrap(), Replaced::Done);
    assert_eq!(records.read("r").await.unwrap(), agreed(1, "one"));
    assert_eq!(records.replace("r", 0, "late".into()).await.unwrap(), Replaced::Overtaken(agreed(1, "one")));
    assert_eq!(records.replace("r", 1, "".into()).await.unwrap(), Replaced::Done);
    assert_eq!(records.read("r").await.unwrap(), agreed(2, ""));
    assert_eq!(records.replace("r", 1, "late".into()).await.unwrap(), Replaced::Overtaken(agreed(2, "")));
    assert_eq!(records.replace("r", 3, "early".into()).await.unwrap(), Replaced::Overtaken(agreed(2, "")));
    assert_eq!(records.read("r").await.unwrap(), agreed(2, ""));
}

pub(super) async fn of_contenders_exactly_one_wins_each_revision(bench: &mut impl SharedBench) {
    const CONTENDERS: u64 = 4;
    const WINS: u64 = 5;
    let store = bench.store();
    let contenders: Vec<_> = (0..CONTENDERS)
        .map(|contender| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut won = Vec::new();
                while (won.len() as u64) < WINS {
                    let seen = agreement(&store).read("r").await.unwrap();
                    let mine = Bytes::from(format!("{contender}/{}", won.len()));
                    match agreement(&store).replace("r", seen.revision, mine).await.unwrap() {
                        Replaced::Done => won.push(seen.revision + 1),
                        Replaced::Overtaken(by) => assert!(by.revision > seen.revision, "{by:?} after {seen:?}"),
                    }
                }
                won
            })
        })
        .collect();
    let mut won = Vec::new();
    for contender in contenders {
        won.extend(contender.await.unwrap());
    }
    won.sort_unstable();
    assert_eq!(won, (1..=CONTENDERS * WINS).collect::<Vec<_>>());
    assert_eq!(agreement(&store).read("r").await.unwrap().revision, CONTENDERS * WINS);
}

pub(super) async fn records_are_apart_and_outlive_a_restart(bench: &mut impl SharedBench) {
    let store = bench.store();
    assert_eq!(agreement(&store).replace("one", 0, "1".into()).await.unwrap(), Replaced::Done);
    assert_eq!(agreement(&store).replace("other", 0, "2".into()).await.unwrap(), Replaced::Done);
    // A record is no row.
    assert_eq!(get(&store, Table::Meta, b"one").await, None);
    drop(store);
    bench.reopen();
    assert_eq!(agreement(&bench.store()).read("one").await.unwrap(), agreed(1, "1"));
    assert_eq!(agreement(&bench.store()).read("other").await.unwrap(), agreed(1, "2"));
}
