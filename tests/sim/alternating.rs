//! Two origins whose clocks are 300 ms apart, and one who writes a key through both in turn: nothing is lost, and nothing comes out of order.

use std::sync::{Arc, Mutex};

use kvasar::{
    kv::{Account, AccountId, Change, Control, Controlled, Expires, Key, Read, Source as _, State, Via, Writer as _},
    metrics::Metrics,
};

use crate::{
    chance::Chance,
    checker::Checker,
    clock::{MILLI, SECOND, Time},
    cluster::Cluster,
    profile::{Profile, Several, Worlds},
    quorum::Manner,
    store::key_name,
    workload,
    world::{Trace, lock},
};

const WRITES: u64 = 10_000;
const ACCOUNT: AccountId = AccountId::from_u128(0xacc);

#[test]
fn sequential_writes_through_alternating_origins_are_neither_lost_nor_out_of_order() {
    let time = Arc::new(Time::default());
    let worlds_time = Arc::clone(&time);
    time.run(alternate(worlds_time));
}

async fn alternate(time: Arc<Time>) {
    let mut profile = Profile::of(Worlds::Several, 0);
    let store = Manner { trip: MILLI / 2, late: 0.0, unknown: 0.0, hints: true, repairs: true, deadline: SECOND };
    let several = profile.several.take().expect("a world of several origins");
    let several = Several { origins: 2, sites: 2, skew_millis: 0, store, ..several };
    let checker = Arc::new(Mutex::new(Checker::new(1)));
    let metrics = Metrics::default().origin();
    let cluster = Cluster::new(&time, &profile, &several, &checker, metrics, &Trace::default(), Chance::new(7));
    cluster.sites[0].machine.step_wall(150);
    cluster.sites[1].machine.step_wall(-150);
    cluster.start(0);
    let first = cluster.opened(0).await;
    first
        .ensure_account(&Account { id: ACCOUNT, name: "everyone".into() })
        .await
        .expect("a new store takes an account");
    let create = Control::CreateNamespace { title: "all".into(), jurisdiction: None, mode: None };
    let (created, _) = first.control(ACCOUNT, create).await.expect("a new store takes a namespace");
    let Controlled::Namespace(namespace) = created else { panic!("a namespace was created") };
    cluster.watch(namespace.id);
    cluster.start(1);
    let origins = [first, cluster.opened(1).await];
    cluster.settle().await;
    let key = Key::new(key_name(0)).expect("letters and digits");
    let mut last = 0;
    for write in 0..WRITES {
        let turn = (write % 2) as usize;
        let (begun, deletes) = (time.now(), write % 5 == 3);
        let attempt = (!deletes).then(|| lock(&checker).attempt(0, 20));
        let change = match attempt {
            Some(number) => Change::Put { value: workload::value(number, 20), metadata: None, expires: Expires::Never },
            None => Change::Delete,
        };
        let written = origins[turn].write(namespace.id, &key, change, Via::default()).await;
        let version = written.expect("the store answers").version.as_u64();
        assert!(version > last, "write {write}: version {version:x} after {last:x}");
        last = version;
        lock(&checker).acknowledged(0, attempt, version, begun).expect("it was not overtaken before it began");
        let answer = origins[1 - turn].get(namespace.id, &key, &Read::latest()).await.expect("the store answers");
        match answer.state {
            State::Present(_) => assert!(!deletes && answer.version.as_u64() == version, "write {write}: {answer:?}"),
            _ => assert!(deletes, "write {write} is lost: {answer:?}"),
        }
    }
    assert_eq!(lock(&checker).overtaken, 0);
    let violation = lock(&checker).violation.clone();
    assert!(violation.is_none(), "{violation:?}");
}
