//! What a tier's memory comes to: beside each entry that it holds, and in all when its cache is full.
//!
//! A central tier in a process of its own, with the cache that it has unless told (256 MiB), is asked for more and more keys until what it holds is far less than
//! what it was asked for.

use crate::{
    ask::{Expected, Keys, Request, Values, name},
    chain::Chain,
    client::Client,
    kvasar::write_many,
    load::{Target, once_from},
    options::Options,
    process::{MIB, keep_to_cores, memory},
    report::{Table, grouped},
};

const VALUE_BYTES: usize = 100;
const STEP: u32 = 250_000;
const STEPS: u32 = 8;
/// What a tier may cache unless it is told otherwise.
const BUDGET_MIB: f64 = 256.0;

pub async fn run(options: &Options) {
    keep_to_cores(&options.load_core.to_string());
    let steps = if options.quick { 2 } else { STEPS };
    let chain = Chain::start(std::time::Duration::ZERO).await;
    let namespace = chain.headers.lines().find_map(|line| line.strip_prefix("kvasar-namespace: "));
    let values = Values::new(VALUE_BYTES);
    write_many(chain.origin.address(), namespace.expect("it is named"), steps * STEP, name, &values, None).await;
    let (centre, id) = (chain.centre.address(), chain.centre.server.id());
    let target = Target {
        name: "the centre".to_owned(),
        address: centre,
        request: Request::get(centre, "/key-", "?urlencoded=true&cache_ttl=86400", &chain.headers),
        keys: Keys::One,
        expected: Expected::Value { values, head: "" },
        servers: vec![id],
    };
    // What was told of the writes is in its memory by now, too; so what an entry takes is read off the growth from one row to the next.
    let (mut held_before, mut resident_before) = (0.0, memory(id, "VmRSS") as f64);
    let idle = resident_before;
    let payload = (name(0).len() + VALUE_BYTES) as f64;
    println!(
        "### Memory of a tier with a cache of {BUDGET_MIB} MiB, {VALUE_BYTES} bytes a value, {} a key\n",
        name(0).len()
    );
    let mut table = Table::new([
        "keys asked for",
        "held",
        "its own count, MiB",
        "resident, MiB",
        "most ever, MiB",
        "beside key and value, bytes an entry added",
    ]);
    for step in 1..=steps {
        once_from(&target, (step - 1) * STEP, STEP);
        let metrics = Client::new(Vec::new());
        let url = format!("{}/metrics", chain.centre.server.text("/admin"));
        let text = metrics.ask(hyper::Method::GET, &url, "").await;
        let text = String::from_utf8(text.to_vec()).expect("metrics are text");
        let figure = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name}{{tier=\"centre\"}} ")));
            line.and_then(|figure| figure.parse().ok()).unwrap_or_else(|| panic!("the metrics have no {name}"))
        };
        let (held, resident) = (figure("kvasar_cache_entries"), memory(id, "VmRSS") as f64);
        table.row([
            grouped(f64::from(step * STEP), 0),
            grouped(held, 0),
            grouped(figure("kvasar_cache_held_bytes") / MIB, 0),
            grouped(resident / MIB, 0),
            grouped(memory(id, "VmHWM") as f64 / MIB, 0),
            if held - held_before < f64::from(STEP) / 2.0 {
                "-".to_owned()
            } else {
                grouped((resident - resident_before) / (held - held_before) - payload, 0)
            },
        ]);
        (held_before, resident_before) = (held, resident);
    }
    table.print();
    let most = memory(id, "VmHWM") as f64 / MIB;
    println!(
        "Before, it had {:.0} MiB. The most it ever had is {:.2} times its budget and 64 MiB.\n",
        idle / MIB,
        most / (BUDGET_MIB + 64.0)
    );
}
