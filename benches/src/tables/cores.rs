//! What a second core brings: the time of a hot read on one core and on two, and the capacity that follows from it.
//!
//! Requests a second would say it more plainly, but a machine of two cores has none left for the load. What a request costs can be told all the same: what
//! threads on two cores cost each other, in locks and in lines of cache that go back and forth, is in it.

use crate::{
    ask::{Expected, Keys, Values},
    kvasar::{Kvasar, More},
    load::{Round, Target, once},
    options::Options,
    process::{keep_to_cores, median},
    report::{Table, grouped, spread},
    tables::hot_read::rounds,
};

pub async fn run(options: &Options) {
    keep_to_cores(&options.load_core.to_string());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let there = std::thread::available_parallelism().map_or(1, usize::from);
    let free = (0..there.max(2)).find(|core| ![options.server_core, options.load_core].contains(core));
    let second = free.unwrap_or(options.load_core);
    let values = Values::new(1024);
    let (mut servers, mut targets) = (Vec::new(), Vec::new());
    for (name, cores) in
        [("one core", options.server_cores()), ("two cores", format!("{},{second}", options.server_core))]
    {
        let kvasar = Kvasar::start(Some(&cores), folder.path(), name, More::default()).await;
        kvasar.fill(1, &values).await;
        let hit = kvasar.reads(Keys::One, Expected::Value { values: values.clone(), head: "cf-cache-status: HIT" });
        once(&Target { expected: Expected::Value { values: values.clone(), head: "" }, ..hit.clone() }, 1);
        targets.push(Target { name: format!("kvasar on {name}"), ..hit });
        servers.push(kvasar);
    }
    let rounds = rounds(&targets, options);
    println!("### One core and two\n");
    if free.is_none() {
        println!("The load has the second core, too.\n");
    }
    let mut table = Table::new([
        "",
        "CPU us per request",
        "capacity that follows, requests/s",
        "in units of one core's",
        "requests/s seen",
    ]);
    let micros = |rounds: &[Round]| rounds.iter().map(Round::micros_per_request).collect::<Vec<_>>();
    let one = 1e6 / median(&micros(&rounds[0]));
    for ((target, rounds), cores) in targets.iter().zip(&rounds).zip([1.0, 2.0]) {
        let capacity = cores * 1e6 / median(&micros(rounds));
        table.row([
            target.name.clone(),
            spread(&micros(rounds), 2),
            grouped(capacity, 0),
            format!("{:.2}", capacity / one),
            spread(&rounds.iter().map(Round::per_second).collect::<Vec<_>>(), 0),
        ]);
    }
    table.print();
}
