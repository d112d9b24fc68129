//! Copies between stores of both kinds: what arrives, what a cut leaves, and what is refused.

use std::{collections::BTreeMap, sync::Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::{
    clock::{self, ManualClock, RealClock},
    kv::{AccountId, WriteId, reserved},
    limits,
    store::{
        Agreed, Agreement, Replaced,
        cassandra::{CassandraSettings, CassandraStore},
        contract::shared::settings as ring_settings,
        keys::{Listed, Members, NamedWrite, agreed, meta},
        memory::MemoryStore,
    },
};

const LEASE: Duration = Duration::from_secs(10);
const SETTINGS: Settings = Settings { lease: LEASE, kept: Duration::from_secs(3600) };
const STARTS: u64 = 5;
const SECRET: [u8; 32] = [7; 32];
const REMOVED: NamespaceId = NamespaceId::from_u128(0xdead);

/// An entry of a source, beside its key.
#[derive(Clone, Debug)]
struct Given {
    value: Vec<u8>,
    metadata: Option<&'static str>,
    /// Seconds from now.
    expires_in: Option<i64>,
    deleted: bool,
}

type World = BTreeMap<(NamespaceId, String), Given>;

fn plain(value: impl Into<Vec<u8>>) -> Given {
    Given { value: value.into(), metadata: None, expires_in: None, deleted: false }
}

fn namespace(number: u128) -> NamespaceId {
    NamespaceId::from_u128(number)
}

fn memory(clock: &Arc<dyn Clock>, shared: bool) -> Arc<dyn Store> {
    if shared { Arc::new(MemoryStore::shared(Arc::clone(clock))) } else { Arc::new(MemoryStore::default()) }
}

fn manual() -> (Arc<ManualClock>, Arc<dyn Clock>) {
    let clock = ManualClock::shared();
    (Arc::clone(&clock), Arc::new(clock))
}

/// A store as an origin leaves it that has these entries, and the leftovers of a namespace that was removed.
async fn fill(store: &dyn Store, clock: &Arc<dyn Clock>, world: &World) {
    let now = clock.wall_millis();
    let mut version = Version::first_of(now, 3);
    let mut values = keys::first_value(STARTS).0;
    let mut batch = Batch::at(Version::first_of(now, 0));
    let mut all: Vec<(NamespaceId, String, Given)> =
        world.iter().map(|((namespace, key), given)| (*namespace, key.clone(), given.clone())).collect();
    let mut namespaces: Vec<NamespaceId> = world.keys().map(|(namespace, _)| *namespace).collect();
    namespaces.dedup();
    let account = AccountId::from_u128(1);
    for id in namespaces {
        let record = Namespace { id, title: id.to_string(), jurisdiction: None, mode: None };
        let record: &'static str = serde_json::to_string(&record).unwrap().leak();
        let key = reserved::namespace(account, id).as_str().to_owned();
        all.push((NamespaceId::RESERVED, key, Given { metadata: Some(record), ..plain("") }));
    }
    all.push((REMOVED, "left".into(), plain("over")));
    for (namespace, key, Given { value, metadata, expires_in, deleted }) in all {
        version = version.next(3).unwrap();
        let row = keys::entry(namespace, key.as_bytes());
        let named = vec![NamedWrite { id: WriteId(9), version }];
        let expiration = expires_in.map(|seconds| (now / 1000).checked_add_signed(seconds).unwrap());
        let place = match value.len() {
            _ if deleted => Place::Deleted,
            length if length <= limits::INLINE_BYTES_MAX => Place::Inline(value.clone().into()),
            _ => {
                values += 1;
                for (number, chunk) in (0..).zip(value.chunks(limits::CHUNK_BYTES)) {
                    batch.put(Table::Chunk, keys::chunk(ValueId(values), number), chunk.to_vec());
                }
                Place::Chunked(ValueId(values))
            }
        };
        let record = match deleted {
            true => Record { version, expiration: None, metadata: None, length: 0, place, named },
            false => {
                let length = value.len() as u64;
                Record { version, expiration, metadata: metadata.map(Bytes::from), length, place, named }
            }
        };
        batch.put(Table::Entry, row, record.encode());
    }
    match store.agreement() {
        None => {
            batch.put(Table::Meta, meta::STARTS, keys::encode_number(STARTS));
            batch.put(Table::Meta, meta::LAST_VERSION, keys::encode_number(version.as_u64()));
            batch.put(Table::Meta, meta::CURSOR_SECRET, SECRET.to_vec());
        }
        Some(agreement) => {
            let members = Members { starts: STARTS, floor: 9, ..Members::default() };
            agreement.replace(Members::NAME, 0, members.encode().unwrap()).await.unwrap();
            agreement.replace(agreed::CURSOR_SECRET, 0, SECRET.to_vec().into()).await.unwrap();
        }
    }
    store.commit(batch, Durability::Synced).await.unwrap();
}

async fn copied(source: &Arc<dyn Store>, target: &Arc<dyn Store>, clock: &Arc<dyn Clock>) -> Result<Export> {
    copy(Arc::clone(source), Arc::clone(target), Arc::clone(clock), SETTINGS, &mut |_| {}).await
}

async fn exported(store: &Arc<dyn Store>, clock: &Arc<dyn Clock>) -> Export {
    export(Arc::clone(store), Arc::clone(clock), SETTINGS, &mut |_| {}).await.unwrap()
}

async fn rows(store: &Arc<dyn Store>, table: Table, prefix: &[u8]) -> Vec<(Bytes, Bytes)> {
    store.scan(table, prefix, &keys::after_prefix(prefix), usize::MAX).await.unwrap()
}

/// What a target must be like, looked at row by row.
async fn check_target(source: &Arc<dyn Store>, target: &Arc<dyn Store>, clock: &Arc<dyn Clock>, world: &World) {
    let now = clock.wall_millis() / 1000;
    let shared = target.agreement().is_some();
    let facts = Facts::read(&**target).await.unwrap();
    assert_eq!(facts.cursor_secret.as_deref(), Some(&SECRET[..]));
    let mut expected: BTreeMap<NamespaceId, Vec<&String>> = BTreeMap::new();
    for ((namespace, key), given) in world {
        let of = expected.entry(*namespace).or_default();
        if !given.deleted && given.expires_in.is_none_or(|seconds| seconds > 0) {
            of.push(key);
        }
    }
    let (mut ids, mut expiries) = (Vec::new(), Vec::new());
    for (namespace, expected) in expected {
        let found = rows(target, Table::Entry, &namespace.to_bytes()).await;
        let names: Vec<String> =
            found.iter().map(|(row, _)| keys::parse_entry(row).unwrap().1.as_str().to_owned()).collect();
        assert_eq!(names.iter().collect::<Vec<_>>(), expected);
        for ((row, value), name) in found.iter().zip(names) {
            let given = &world[&(namespace, name.clone())];
            let record = Record::decode(row, value).unwrap();
            let was = source.get(Table::Entry, row).await.unwrap().unwrap();
            let was = Record::decode(row, &was).unwrap();
            assert_eq!(Record { place: was.place.clone(), ..record.clone() }, was);
            assert!(record.version <= facts.last);
            expiries.extend(record.expiration.map(|at| keys::expiry(at, namespace, name.as_bytes())));
            let read = match record.place {
                Place::Inline(value) => value.to_vec(),
                Place::Chunked(id) => {
                    ids.push(id.0);
                    let chunks = rows(target, Table::Chunk, &id.0.to_be_bytes()).await;
                    chunks.iter().flat_map(|(_, chunk)| chunk.to_vec()).collect()
                }
                Place::Deleted => panic!("a deletion was copied"),
            };
            assert_eq!(read, given.value);
        }
    }
    ids.sort_unstable();
    let first = keys::first_value(facts.starts).0;
    assert_eq!(
        ids,
        (first..first + ids.len() as u64).collect::<Vec<_>>(),
        "the ids of the start that the copy counted"
    );
    expiries.sort();
    let noted: Vec<Bytes> = rows(target, Table::Expiry, b"").await.into_iter().map(|(row, _)| row).collect();
    assert_eq!(noted, if shared { Vec::new() } else { expiries });
    assert!(rows(target, Table::Entry, &REMOVED.to_bytes()).await.is_empty());
    check_whole(&**target).await.unwrap();
    assert!(now > 0 && exported(source, clock).await == exported(target, clock).await);
}

fn given() -> impl Strategy<Value = Given> {
    let length = prop_oneof![
        6 => 0usize..600,
        2 => 600usize..70_000,
        1 => prop_oneof![Just(64 * 1024), Just(1024 * 1024), Just(1024 * 1024 + 1), Just(1_200_000)],
    ];
    let metadata = proptest::option::of(prop_oneof![Just("{}"), Just("{\"a\":1}")]);
    let expires_in = proptest::option::weighted(0.3, prop_oneof![Just(-5i64), Just(0), 1i64..100_000]);
    (length, any::<u8>(), metadata, expires_in, proptest::bool::weighted(0.1)).prop_map(
        |(length, seed, metadata, expires_in, deleted)| {
            let value = (0..length).map(|i| (i % 251) as u8 ^ seed).collect();
            Given { value, metadata, expires_in, deleted }
        },
    )
}

fn world() -> impl Strategy<Value = World> {
    let key = (1u128..4, "[a-zA-Z0-9]{1,6}").prop_map(|(number, key)| (namespace(number), key));
    proptest::collection::btree_map(key, given(), 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_a_store_holds_arrives_and_comes_back(world in world(), kinds in any::<[bool; 3]>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (_, clock) = manual();
            let [first, second, third] = kinds.map(|shared| memory(&clock, shared));
            fill(&*first, &clock, &world).await;
            let there = copied(&first, &second, &clock).await.unwrap();
            check_target(&first, &second, &clock, &world).await;
            let back = copied(&second, &third, &clock).await.unwrap();
            check_target(&first, &third, &clock, &world).await;
            assert_eq!(there, back);
        });
    }
}

/// Fails after so many effects, either before or after the next one.
struct Cut {
    store: Arc<dyn Store>,
    left: Mutex<usize>,
    takes_effect: bool,
}

impl Cut {
    /// Whether this effect is the last one, which fails.
    fn count(&self) -> Result<bool> {
        let mut left = self.left.lock().unwrap();
        match *left {
            0 => Err(Error::internal("cut before")),
            1 if self.takes_effect => {
                *left = 0;
                Ok(true)
            }
            _ => {
                *left -= 1;
                Ok(false)
            }
        }
    }
}

#[async_trait]
impl Store for Cut {
    async fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>> {
        self.store.get(table, key).await
    }

    async fn get_many(&self, table: Table, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>> {
        self.store.get_many(table, keys).await
    }

    async fn scan(&self, table: Table, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>> {
        self.store.scan(table, from, to, limit).await
    }

    async fn commit(&self, batch: Batch, durability: Durability) -> Result<()> {
        // Others come round.
        tokio::task::yield_now().await;
        let last = self.count()?;
        self.store.commit(batch, durability).await?;
        if last { Err(Error::internal("cut after")) } else { Ok(()) }
    }

    fn in_place(&self) -> Option<Arc<dyn Store>> {
        None
    }

    fn agreement(&self) -> Option<&dyn Agreement> {
        self.store.agreement().map(|_| self as &dyn Agreement)
    }
}

#[async_trait]
impl Agreement for Cut {
    async fn read(&self, name: &str) -> Result<Agreed> {
        self.store.agreement().unwrap().read(name).await
    }

    async fn replace(&self, name: &str, revision: u64, value: Bytes) -> Result<Replaced> {
        tokio::task::yield_now().await;
        let last = self.count()?;
        let replaced = self.store.agreement().unwrap().replace(name, revision, value).await?;
        if last { Err(Error::internal("cut after")) } else { Ok(replaced) }
    }
}

/// Enough for several notes, also within a namespace, with a value in each that lives apart.
fn long_world() -> World {
    let mut world = World::new();
    for number in 1..30 {
        world.insert((namespace(number), "large".into()), plain(vec![number as u8; 600]));
        world.insert((namespace(number), "short".into()), Given { expires_in: Some(100_000), ..plain("x") });
    }
    world.insert((namespace(2), "long".into()), plain(vec![1; 1_100_000]));
    for key in 0..2_200 {
        world.insert((namespace(15), format!("{key:05}")), plain("v"));
    }
    world
}

async fn survives_cuts(from_shared: bool, to_shared: bool, takes_effect: bool) {
    let (manual, clock) = manual();
    let world = long_world();
    let source = memory(&clock, from_shared);
    fill(&*source, &clock, &world).await;
    let mut cuts = 0;
    loop {
        let target = memory(&clock, to_shared);
        let left = Mutex::new(cuts);
        let cut: Arc<dyn Store> = Arc::new(Cut { store: Arc::clone(&target), left, takes_effect });
        let first = copied(&source, &cut, &clock).await;
        // Time goes by before somebody looks.
        manual.advance(Duration::from_millis(700));
        if let Ok(export) = first {
            assert_eq!(export.entries, copied(&source, &target, &clock).await.unwrap().entries);
            assert!(cuts > 40, "it was cut at all {cuts} effects");
            return;
        }
        if let (Some(position), _) = Position::read(&*target).await.unwrap()
            && position.phase != Phase::Done
        {
            check_whole(&*target).await.unwrap_err();
        }
        copied(&source, &target, &clock).await.unwrap();
        if cuts % 8 == 0 {
            check_target(&source, &target, &clock, &world).await;
        }
        let chunks = chunk_rows(&target).await;
        assert_eq!(chunks, 29 + 17, "nothing is left of what was done twice");
        cuts += 1;
    }
}

async fn chunk_rows(target: &Arc<dyn Store>) -> usize {
    let first = keys::first_value(Facts::read(&**target).await.unwrap().starts).0;
    let mut chunks = 0;
    for id in first..first + 100 {
        chunks += rows(target, Table::Chunk, &id.to_be_bytes()).await.len();
    }
    chunks
}

#[tokio::test]
async fn a_copy_into_an_embedded_store_goes_on_wherever_it_was_cut() {
    survives_cuts(true, false, false).await;
}

#[tokio::test]
async fn a_copy_into_a_shared_store_goes_on_wherever_it_was_cut() {
    survives_cuts(false, true, false).await;
}

#[tokio::test]
async fn what_took_effect_before_the_cut_does_no_harm() {
    survives_cuts(false, true, true).await;
    survives_cuts(false, false, true).await;
}

#[tokio::test]
async fn a_copy_that_goes_on_does_not_begin_again() {
    let (_, clock) = manual();
    let source = memory(&clock, false);
    fill(&*source, &clock, &long_world()).await;
    let target = memory(&clock, true);
    let cut: Arc<dyn Store> = Arc::new(Cut { store: Arc::clone(&target), left: Mutex::new(30), takes_effect: false });
    copied(&source, &cut, &clock).await.unwrap_err();
    let mut first = None;
    let mut told = |progress: Progress| _ = first.get_or_insert(progress);
    copy(Arc::clone(&source), Arc::clone(&target), Arc::clone(&clock), SETTINGS, &mut told).await.unwrap();
    let first = first.unwrap();
    assert!(first.entries > 30 && first.namespaces_done > 10 && first.phase == Phase::Copying, "{first:?}");
}

async fn refused(source: &Arc<dyn Store>, target: &Arc<dyn Store>, clock: &Arc<dyn Clock>, expected: &str) {
    let error = copied(source, target, clock).await.unwrap_err();
    assert!(error.message.contains(expected), "{error}");
}

fn small() -> World {
    World::from([((namespace(1), "a".into()), plain("1")), ((namespace(1), "b".into()), plain("2"))])
}

async fn put_entry(store: &Arc<dyn Store>, key: &str, value: &'static str, version: Version) {
    let record = Record {
        version,
        expiration: None,
        metadata: None,
        length: value.len() as u64,
        place: Place::Inline(value.into()),
        named: Vec::new(),
    };
    let mut batch = Batch::at(version);
    batch.put(Table::Entry, keys::entry(namespace(1), key.as_bytes()), record.encode());
    store.commit(batch, Durability::Synced).await.unwrap();
}

#[tokio::test]
async fn only_an_empty_target_is_copied_into_and_only_a_used_store_is_copied() {
    for shared in [false, true] {
        let (_, clock) = manual();
        let (source, target) = (memory(&clock, !shared), memory(&clock, shared));
        refused(&source, &target, &clock, "there is nothing to copy").await;
        fill(&*source, &clock, &small()).await;
        put_entry(&target, "a", "theirs", Version::first_of(1, 0)).await;
        refused(&source, &target, &clock, "has entries already").await;
        assert_eq!(Position::read(&*target).await.unwrap().0, None);
    }
}

#[tokio::test]
async fn a_target_of_another_copy_is_known() {
    for shared in [false, true] {
        let (_, clock) = manual();
        let (source, other, target) = (memory(&clock, true), memory(&clock, false), memory(&clock, shared));
        fill(&*source, &clock, &small()).await;
        fill(&*other, &clock, &small()).await;
        let cut: Arc<dyn Store> =
            Arc::new(Cut { store: Arc::clone(&target), left: Mutex::new(2), takes_effect: false });
        copied(&source, &cut, &clock).await.unwrap_err();
        refused(&other, &target, &clock, "another copy into the target was begun").await;
        refused(&target, &memory(&clock, false), &clock, "the copy into this store has not ended").await;
        let first = copied(&source, &target, &clock).await.unwrap();
        assert_eq!(copied(&source, &target, &clock).await.unwrap(), first, "a copy that has ended is known");
        refused(&other, &target, &clock, "from another copy").await;
    }
}

#[tokio::test]
async fn two_copies_into_one_shared_store_notice_each_other() {
    let (_, clock) = manual();
    let (source, target) = (memory(&clock, false), memory(&clock, true));
    fill(&*source, &clock, &long_world()).await;
    let cut = || -> Arc<dyn Store> {
        Arc::new(Cut { store: Arc::clone(&target), left: Mutex::new(usize::MAX), takes_effect: false })
    };
    let (one, other) = (cut(), cut());
    let (one, other) = tokio::join!(copied(&source, &one, &clock), copied(&source, &other, &clock));
    let errors: Vec<String> = [one, other].into_iter().filter_map(|copy| Some(copy.err()?.message)).collect();
    assert!(errors.len() == 1 && errors[0].contains("another copy into the same store is under way"), "{errors:?}");
}

#[tokio::test]
async fn what_is_not_the_same_in_both_is_found() {
    let newer = Version::first_of(1_800_000_000_000, 0);
    for shared in [false, true] {
        let check = async |key: &'static str, changed: Option<(&'static str, Version)>, expected: &str| {
            let (_, clock) = manual();
            let (source, target) = (memory(&clock, !shared), memory(&clock, shared));
            fill(&*source, &clock, &small()).await;
            let mut tampered = false;
            // Behind the last portion of what is copied.
            let mut at_last = |progress: Progress| {
                tampered |= progress.phase == Phase::Copying && progress.namespaces_done + 1 == progress.namespaces;
            };
            let cut: Arc<dyn Store> = Arc::new(Cut {
                store: Arc::clone(&target),
                // The claim, the count of the start, two portions, what is handed over and the turn to verifying.
                left: Mutex::new(if shared { 7 } else { 6 }),
                takes_effect: false,
            });
            copy(Arc::clone(&source), cut, Arc::clone(&clock), SETTINGS, &mut at_last).await.unwrap_err();
            assert!(tampered);
            let (position, _) = Position::read(&*target).await.unwrap();
            assert_eq!(position.unwrap().phase, Phase::Verifying);
            match changed {
                Some((value, version)) => put_entry(&target, key, value, version).await,
                None => {
                    let mut batch = Batch::at(newer);
                    batch.remove(Table::Entry, keys::entry(namespace(1), key.as_bytes()));
                    target.commit(batch, Durability::Synced).await.unwrap();
                }
            }
            refused(&source, &target, &clock, expected).await;
            refused(&source, &target, &clock, expected).await;
            check_whole(&*target).await.unwrap_err();
        };
        check("a", None, "the key \"a\" in the namespace").await;
        check("b", None, "\"b\" in the namespace 00000000000000000000000000000001 is not there").await;
        check(
            "c",
            Some(("3", newer)),
            "\"c\" in the namespace 00000000000000000000000000000001 is there, and not in the source",
        )
        .await;
        check("b", Some(("2", newer)), "has the version").await;
    }
    // The same version with another value.
    let (_, clock) = manual();
    let (one, other) = (memory(&clock, false), memory(&clock, false));
    fill(&*one, &clock, &small()).await;
    fill(
        &*other,
        &clock,
        &World::from([((namespace(1), "a".into()), plain("1")), ((namespace(1), "b".into()), plain("3"))]),
    )
    .await;
    let (one, other) = (exported(&one, &clock).await, exported(&other, &clock).await);
    assert!(one.hash != other.hash && (one.entries, one.bytes) == (other.entries, other.bytes));
}

#[tokio::test]
async fn a_value_that_is_not_whole_ends_the_copy() {
    for (length, lost) in [(70_000, 1), (2_000_000, 20)] {
        let (_, clock) = manual();
        let (source, target) = (memory(&clock, false), memory(&clock, true));
        fill(&*source, &clock, &World::from([((namespace(1), "a".into()), plain(vec![1; length]))])).await;
        let mut batch = Batch::default();
        batch.remove(Table::Chunk, keys::chunk(ValueId(keys::first_value(STARTS).0 + 1), lost));
        source.commit(batch, Durability::Synced).await.unwrap();
        let expected = format!(
            "the value of the key \"a\" in the namespace {} is damaged: its chunk {lost} is not there",
            namespace(1)
        );
        refused(&source, &target, &clock, &expected).await;
    }
}

/// Puts an origin on the list of a shared store.
async fn list(store: &Arc<dyn Store>, beat: u64) {
    let agreement = store.agreement().unwrap();
    let known = agreement.read(Members::NAME).await.unwrap();
    let mut members = Members::parse(&known).unwrap();
    members.members = vec![Listed { epoch: 4, id: 0, address: "one:7000".into(), beat, safe: 0, done: 0, heir: None }];
    agreement.replace(Members::NAME, known.revision, members.encode().unwrap()).await.unwrap();
}

#[tokio::test]
async fn a_shared_store_is_in_use_while_an_origin_refreshes_its_lease() {
    let (manual, clock) = manual();
    let (used, other) = (memory(&clock, true), memory(&clock, false));
    fill(&*used, &clock, &small()).await;
    list(&used, 1).await;
    // Someone is on the list, and gives a sign of life within the lease, or not.
    let looked_at = async |beats: bool| {
        let mut copying = Box::pin(copied(&used, &other, &clock));
        let waits = futures_util::poll!(&mut copying);
        assert!(waits.is_pending(), "it waits for a sign of life");
        manual.advance(LEASE);
        if beats {
            list(&used, 2).await;
        }
        assert!(futures_util::poll!(&mut copying).is_pending());
        manual.advance(LEASE / 5);
        copying.await
    };
    let error = looked_at(true).await.unwrap_err();
    assert_eq!(
        error.message,
        "the source is in use by the origin at one:7000: stop the origins on it, and run this again"
    );
    assert_eq!(looked_at(false).await.unwrap().entries, 3);

    let target = memory(&clock, true);
    list(&target, 1).await;
    let (source, manual) = (memory(&clock, false), &manual);
    fill(&*source, &clock, &small()).await;
    let mut copying = Box::pin(copied(&source, &target, &clock));
    assert!(futures_util::poll!(&mut copying).is_pending());
    manual.advance(LEASE * 2);
    assert!(copying.await.unwrap_err().message.contains("an origin died on the target"));
}

#[tokio::test]
async fn a_source_that_was_used_meanwhile_is_found_out() {
    let (_, clock) = manual();
    let (source, target) = (memory(&clock, true), memory(&clock, false));
    fill(&*source, &clock, &small()).await;
    let known = source.agreement().unwrap().read(Members::NAME).await.unwrap();
    let mut changed = false;
    let mut told = |_: Progress| {
        if !std::mem::replace(&mut changed, true) {
            let members = Members { starts: STARTS + 1, ..Members::parse(&known).unwrap() };
            let replaced =
                source.agreement().unwrap().replace(Members::NAME, known.revision, members.encode().unwrap());
            futures_util::FutureExt::now_or_never(replaced).unwrap().unwrap();
        }
    };
    let error =
        copy(Arc::clone(&source), Arc::clone(&target), Arc::clone(&clock), SETTINGS, &mut told).await.unwrap_err();
    assert!(error.message.contains("the source was used while it was copied"), "{error}");
    check_whole(&*target).await.unwrap_err();
}

#[tokio::test]
async fn an_outage_is_waited_out() {
    let (manual, clock) = manual();
    let (source, target) = (memory(&clock, false), Arc::new(MemoryStore::shared(Arc::clone(&clock))));
    fill(&*source, &clock, &small()).await;
    target.fail_after(0, crate::store::memory::FailedCommit::Lost);
    let shared: Arc<dyn Store> = Arc::clone(&target) as _;
    let mut copying = Box::pin(copied(&source, &shared, &clock));
    assert!(futures_util::poll!(&mut copying).is_pending(), "it tries again later");
    manual.advance(Duration::from_secs(1));
    assert_eq!(copying.await.unwrap().entries, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a ring of Cassandra, which ./test starts (tests/ring)"]
async fn a_store_in_cassandra_gets_what_one_on_disk_has_and_gives_it_back() {
    let clock = RealClock::shared();
    let (dir, back) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let disk = |dir: &tempfile::TempDir| -> Arc<dyn Store> {
        Arc::new(crate::store::disk::DiskStore::open(dir.path(), 1 << 20).unwrap())
    };
    let keyspace = format!("kvasar_copy_{:016x}", u64::from_be_bytes(clock::random_bytes(&*clock)));
    let settings = CassandraSettings { keyspace, ..ring_settings() };
    let (source, target) = (disk(&dir), disk(&back));
    let world = long_world();
    fill(&*source, &clock, &world).await;
    let ring: Arc<dyn Store> = Arc::new(CassandraStore::connect(settings, Arc::clone(&clock)).await.unwrap());
    let cut: Arc<dyn Store> = Arc::new(Cut { store: Arc::clone(&ring), left: Mutex::new(25), takes_effect: false });
    copied(&source, &cut, &clock).await.unwrap_err();
    let there = copied(&source, &ring, &clock).await.unwrap();
    assert_eq!(there.entries, 2_200 + 29 * 3 + 1);
    assert_eq!(copied(&ring, &target, &clock).await.unwrap().hash, there.hash);
    check_target(&source, &target, &clock, &world).await;
}
