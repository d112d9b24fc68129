//! What it costs to know that a key is not there.

use crate::{
    ask::{Expected, KEY, Keys, Request, Values},
    kvasar::{Kvasar, More},
    load::{Target, once},
    options::Options,
    peers,
    process::keep_to_cores,
    tables::hot_read::{print, rounds},
};

pub async fn run(options: &Options) {
    keep_to_cores(&options.load_core.to_string());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cache = peers::memory_folder();
    let cores = options.server_cores();
    let values = Values::new(1024);
    let kvasar = Kvasar::start(Some(&cores), folder.path(), "kvasar", More::default()).await;
    kvasar.fill(1, &values).await;
    let files = folder.path().join("files");
    std::fs::create_dir(&files).expect("a folder is made");
    let (nginx, nginx_cache) = peers::nginx(&cores, folder.path(), &files, cache.path());
    let redis = peers::redis(&cores, folder.path(), false);

    let absent = |head| Expected::Status { status: 404, head };
    let target = |name: &str, address, request, expected, server| Target {
        name: name.to_owned(),
        address,
        request,
        keys: Keys::One,
        expected,
        servers: vec![server],
    };
    let targets = [
        Target {
            name: "kvasar, absent, edge hit".to_owned(),
            request: Request::get(kvasar.address, "/absent-", "?urlencoded=true", &kvasar.headers),
            ..kvasar.reads(Keys::One, absent("cf-cache-status: HIT"))
        },
        kvasar.reads(Keys::One, Expected::Value { values, head: "cf-cache-status: HIT" }),
        target(
            "nginx proxy_cache, 404",
            nginx_cache,
            Request::get(nginx_cache, "/absent-", "", ""),
            absent("X-Cache: HIT"),
            nginx.id(),
        ),
        target(
            "redis GET, nil",
            redis.address,
            Request::template(format!("*2\r\n$3\r\nGET\r\n$15\r\nabsent-{KEY}\r\n")),
            Expected::RedisNone,
            redis.id(),
        ),
    ];
    for http in [0, 2] {
        once(&Target { expected: absent(""), ..targets[http].clone() }, 1);
    }
    println!("### A key that is known to be absent\n");
    let wanted: Vec<Target> = targets.into_iter().filter(|target| options.wants(&target.name)).collect();
    print(&wanted, &rounds(&wanted, options));
}
