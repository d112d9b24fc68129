//! The purge feed over real processes and sockets: what changes at the centre is seen far away, nothing is answered as younger than it is, and whatever is
//! killed comes back.
//!
//! Reads accept what is a day old, so nothing is seen to change because it timed out. The bounds are those that a busy machine keeps, too; what was
//! measured is printed. What the feed promises in milliseconds is measured by programs in `benches/`.

mod support;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use support::{
    Answer, Server, ask,
    chain::{Chain, SECRET, TRIP},
    now, sleep, timed, wait_until,
};

/// What a feed that works is far below, and a time-out far above.
const SOON: Duration = Duration::from_secs(10);

/// What is to be the state of a key; `None` for its absence.
type Expected<'a> = Option<&'a [u8]>;

fn is(answer: &Answer, expected: Expected<'_>) -> bool {
    match expected {
        Some(value) => answer.status == 200 && answer.body == value,
        None => answer.status == 404,
    }
}

/// Has `away` hold the first state of a key, writes the second at the centre, and waits for it at `away`. Answers the first answer that has it, and how
/// long after the acknowledgement it came.
fn change(chain: &Chain, key: &str, from: Expected<'_>, to: Expected<'_>) -> (Answer, Duration) {
    if let Some(value) = from {
        chain.write(key, value);
    }
    let held = chain.hold(key);
    assert!(is(&held, from), "{held:?}");
    match to {
        Some(value) => drop(chain.write(key, value)),
        None => chain.delete(key),
    }
    let written_at = now();
    loop {
        let answer = chain.read(key);
        if is(&answer, to) {
            return (answer, written_at.elapsed());
        }
        assert!(is(&answer, from), "neither the state before nor the one after: {answer:?}");
        assert!(written_at.elapsed() < SOON, "{key}: {answer:?}");
    }
}

#[test]
fn changes_are_seen_far_away_though_nothing_times_out() {
    let chain = Chain::start();
    let (small, large) = ([b's'; 100], vec![b'l'; 10 * 1024]);
    let cases: [(&str, Expected<'_>, Expected<'_>); 5] = [
        ("small-over-value", Some(b"old"), Some(&small)),
        ("small-over-absence", None, Some(&small)),
        ("large-over-value", Some(b"old"), Some(&large)),
        ("large-over-absence", None, Some(&large)),
        ("deleted", Some(b"old"), None),
    ];
    for (name, from, to) in cases {
        let mut came_along = 0;
        for round in 0..4 {
            let (answer, took) = change(&chain, &format!("{name}-{round}"), from, to);
            println!("{name}: seen {took:?} after the acknowledgement, a trip takes {TRIP:?}");
            came_along += usize::from(answer.cache_status() == "HIT");
        }
        // A small state travels with the news of it, so nobody had to ask.
        assert!(came_along > 0 || to.is_some_and(|value| value.len() > 1024), "{name} was always asked for");
    }
}

#[test]
fn a_reader_far_away_that_names_a_write_reads_it_or_a_later_one() {
    let chain = Chain::start();
    chain.write("k", b"0");
    chain.write("still", b"as it was");
    chain.hold("k");
    chain.hold("still");
    let mut version = String::new();
    for round in 1..=20u32 {
        version = chain.write("k", round.to_string().as_bytes());
        let answer = chain.read_with("k", &[("kvasar-at-least", &version)]);
        let found: u32 = String::from_utf8_lossy(&answer.body).parse().unwrap_or_else(|e| panic!("{answer:?}: {e}"));
        assert!(found >= round && answer.version() >= version.as_str(), "{answer:?} after {version}");
    }
    // What did not change is covered by the feed, once that has passed the write: its own version stays the old one.
    let mut answer = chain.read_with("still", &[("kvasar-at-least", &version)]);
    wait_until("the feed to cover the write", || {
        version = chain.write("other", b"x");
        sleep(Duration::from_secs(3));
        answer = chain.read_with("still", &[("kvasar-at-least", &version)]);
        answer.cache_status() == "HIT"
    });
    assert!(answer.body == b"as it was" && answer.version() < version.as_str(), "{answer:?}");
    let never = chain.read_with("k", &[("kvasar-at-least", "7fffffffffffffff")]);
    assert_eq!(never.status, 412, "{never:?}");
}

/// A write of a number, and when it took effect: somewhere between the two.
struct Numbered {
    acknowledged_at: Instant,
}

#[test]
fn ages_stay_small_and_are_never_below_the_truth() {
    let chain = Chain::start();
    let written: Mutex<Vec<Numbered>> = Mutex::default();
    let put = |number: usize| {
        chain.write("counter", number.to_string().as_bytes());
        written.lock().expect("nobody panics with it").push(Numbered { acknowledged_at: now() });
    };
    put(0);
    chain.hold("counter");
    chain.write("untouched", b"v");
    chain.hold("untouched");
    let done = AtomicBool::new(false);
    let (mut reads, mut stale, mut oldest, mut longest_pause) = (0, 0, Duration::ZERO, Duration::ZERO);
    thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1.. {
                if done.load(Ordering::SeqCst) {
                    return;
                }
                put(number);
                sleep(Duration::from_millis(70));
            }
        });
        let start = now();
        while start.elapsed() < Duration::from_secs(6) {
            let asked_at = now();
            let answer = chain.read("counter");
            let number: usize = String::from_utf8_lossy(&answer.body).parse().expect("a number was written");
            let next = written.lock().expect("nobody panics with it").get(number + 1).map(|next| next.acknowledged_at);
            if let Some(overtaken_at) = next.filter(|acknowledged_at| *acknowledged_at < asked_at) {
                let truth = asked_at - overtaken_at;
                assert!(answer.age() >= truth, "{number} was overtaken {truth:?} before: {answer:?}");
                stale += 1;
            }
            let untouched = chain.read("untouched");
            assert_eq!(untouched.cache_status(), "HIT");
            oldest = oldest.max(untouched.age());
            longest_pause = longest_pause.max(asked_at.elapsed());
            reads += 1;
        }
        done.store(true, Ordering::SeqCst);
    });
    // An interval for each tier, and the trips; what the machine held up us, it may have held up them, too.
    let bound = 3 * Duration::from_secs(1) + 4 * TRIP;
    println!(
        "{reads} reads, {stale} of them stale; the oldest {oldest:?} of {bound:?}, the longest pause {longest_pause:?}"
    );
    assert!(stale > 0, "nothing stale was ever read");
    assert!(oldest < SOON, "{oldest:?}");
}

/// A call of the REST API at the centre, as the account's owner; answers its result.
fn rest(chain: &Chain, method: &str, path: &str, body: &str) -> Value {
    let bearer = format!("Bearer {}", chain.token);
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let path = format!("/client/v4/accounts/{}{path}", chain.account);
    let answer = ask(chain.centre.rest(), method, &path, &headers, body.as_bytes());
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["result"].clone()
}

/// Waits until `away` refuses with that status, and sees to it that it goes on to. Answers how long it took.
fn refused(what: &str, status: u16, mut asking: impl FnMut() -> Answer) -> Duration {
    let (mut answer, took) = timed(|| {
        let start = now();
        loop {
            let answer = asking();
            if answer.status == status || start.elapsed() > SOON {
                return answer;
            }
        }
    });
    for _ in 0..5 {
        assert_eq!(answer.status, status, "{what}: {answer:?}");
        answer = asking();
    }
    took
}

#[test]
fn a_revoked_token_and_a_removed_namespace_are_refused_far_away() {
    let mut chain = Chain::start();
    for round in 0..3 {
        let made = rest(&chain, "POST", "/tokens", r#"{"name": "reader", "rights": "read"}"#);
        let text = |field: &str| made[field].as_str().unwrap_or_else(|| panic!("{made} has no {field}")).to_owned();
        let (id, bearer) = (text("id"), format!("Bearer {}", text("value")));
        let reading = || {
            let headers = [("authorization", bearer.as_str()), ("kvasar-namespace", &chain.namespace)];
            ask(chain.away.tier(), "GET", "/k?urlencoded=true", &headers, b"")
        };
        assert_eq!((reading().status, reading().status), (404, 404));
        rest(&chain, "DELETE", &format!("/tokens/{id}"), "");
        let took = refused("a revoked token", 401, reading);
        println!("revoked token {round} is refused after {took:?}, a trip takes {TRIP:?}");
    }
    chain.namespace = chain.make_namespace("to be removed");
    chain.write("k", b"v");
    chain.hold("k");
    rest(&chain, "DELETE", &format!("/storage/kv/namespaces/{}", chain.namespace), "");
    let took = refused("a removed namespace", 400, || chain.read("k"));
    println!("a removed namespace is refused after {took:?}");
}

/// How often a process began to follow, and how often it could go on where it was.
fn followed(server: &Server) -> (usize, usize) {
    let log = server.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("following the purge feed")).collect();
    (lines.len(), lines.iter().filter(|line| line.contains("resumed=true")).count())
}

#[test]
fn a_killed_origin_is_followed_again_without_a_gap() {
    let mut chain = Chain::start();
    for key in ["untouched", "counter"] {
        chain.write(key, b"0");
        chain.hold(key);
    }
    let killed = AtomicBool::new(false);
    let mut acknowledged = 0;
    let (centre, bearer, namespace) = (chain.centre.tier(), format!("Bearer {}", chain.token), chain.namespace.clone());
    let mut killed_at = now();
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for number in 1u32.. {
                let headers = [("authorization", bearer.as_str()), ("kvasar-namespace", namespace.as_str())];
                let written = ask(centre, "PUT", "/counter?urlencoded=true", &headers, number.to_string().as_bytes());
                if written.status != 200 {
                    assert!(killed.load(Ordering::SeqCst), "{written:?}");
                    return number - 1;
                }
            }
            0
        });
        sleep(Duration::from_millis(300));
        killed.store(true, Ordering::SeqCst);
        killed_at = now();
        chain.restart_origin(|_| acknowledged = writer.join().expect("the writer ends when its origin is gone"));
    });
    assert!(acknowledged > 0);
    wait_until("the last write before the crash to be seen away", || {
        let answer = chain.read("counter");
        let found: u32 = String::from_utf8_lossy(&answer.body).parse().expect("a number was written");
        found >= acknowledged
    });
    // Held since before, never asked for again, and known to be fresh as of after the crash.
    wait_until("what is held away to be covered again", || {
        let answer = chain.read("untouched");
        assert_eq!(answer.cache_status(), "HIT");
        answer.age() < killed_at.elapsed()
    });
    println!("{acknowledged} writes, and covered again {:?} after the kill", killed_at.elapsed());
    assert_eq!(followed(&chain.centre), (2, 1));
    assert_eq!((followed(&chain.region), followed(&chain.away)), ((1, 0), (1, 0)));
    let (_, took) = change(&chain, "after", Some(b"old"), Some(b"new"));
    println!("afterwards a write is seen after {took:?}");
}

#[test]
fn a_killed_region_leaves_a_gap_that_heals() {
    let mut chain = Chain::start();
    for key in ["untouched", "overwritten"] {
        chain.write(key, b"old");
        chain.hold(key);
    }
    let mut written_at = now();
    chain.restart_region(|chain| {
        chain.write("overwritten", b"new");
        written_at = now();
    });
    wait_until("the edge to follow its region again", || {
        // Until it is asked for, nobody away knows of the write that the gap has swallowed, and the age admits it.
        let asked_at = now();
        let answer = chain.read("overwritten");
        assert!(is(&answer, Some(b"old")) && answer.age() >= asked_at - written_at, "{answer:?}");
        followed(&chain.away) == (2, 0)
    });
    wait_until("a read that accepts little to find the write", || {
        let asked_at = now();
        let answer = chain.read_with("overwritten", &[("kvasar-max-age-ms", "1")]);
        let missed = answer.cache_status() == "STALE" && answer.age() >= asked_at - written_at;
        assert!(is(&answer, Some(b"new")) || missed, "{answer:?}");
        is(&answer, Some(b"new"))
    });
    chain.wait_for_cover();
    // What has been verified since is covered by the new continuity, also what was held before.
    chain.hold("untouched");
    let held_at = now();
    wait_until("what was held before the gap to be covered again", || {
        let answer = chain.read("untouched");
        answer.cache_status() == "HIT" && answer.age() < held_at.elapsed()
    });
    let (_, took) = change(&chain, "after", Some(b"old"), Some(b"new"));
    println!("afterwards a write is seen after {took:?}");
}

#[test]
fn a_role_that_others_follow_ends_at_once() {
    let Chain { origin, centre, region, away, .. } = Chain::start();
    for (name, server) in [("origin", origin), ("centre", centre), ("region", region), ("away", away)] {
        let (status, took) = timed(|| server.stop());
        println!("{name} ended after {took:?}");
        assert!(status.success() && took < SOON, "{name} ended with {status} after {took:?}");
    }
}

/// A request to follow, up to its body.
fn following(to: SocketAddr, bearer: &str, version: u64, more: &str) -> String {
    format!(
        "POST /kvasar/feed?version={version} HTTP/1.1\r\nHost: {to}\r\nAuthorization: Bearer {bearer}\r\n{more}\
         Transfer-Encoding: chunked\r\n\r\n"
    )
}

const FOLLOWER: &str = "kvasar-follower: 00000000000000ab\r\n";

/// Sends bytes over a connection of their own; answers it, with a bound on each wait.
fn send(to: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(to).expect("the server accepts");
    stream.set_read_timeout(Some(SOON)).expect("a socket takes an option");
    stream.write_all(bytes).expect("the server reads");
    stream
}

/// What comes until the server closes.
fn rest_of(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        // It did not read all that it was sent.
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("the server neither answers nor closes: {error}"),
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// A frame of a follower in a chunk of a body.
fn chunk(kind: u8, length: u32, payload: &[u8]) -> Vec<u8> {
    let frame = [&[kind][..], &length.to_be_bytes(), payload].concat();
    [format!("{:x}\r\n", frame.len()).as_bytes(), &frame, b"\r\n"].concat()
}

/// The sender's start, of a follower that named no place.
const START: &[u8] = &[1, 0, 0, 0, 17];

#[test]
fn a_feed_is_for_our_own_servers_and_survives_what_is_odd() {
    let chain = Chain::start();
    let region = chain.region.tier();
    let refusal = |head: &str| {
        let answer = rest_of(send(
            region,
            format!("{}0\r\n\r\n", head.replace("HTTP/1.1\r\n", "HTTP/1.1\r\nConnection: close\r\n")).as_bytes(),
        ));
        answer.lines().next().unwrap_or_default().to_owned()
    };
    assert_eq!(refusal(&following(region, &chain.token, 1, FOLLOWER)), "HTTP/1.1 403 Forbidden");
    assert_eq!(refusal(&following(region, "kvs_nobodys", 1, FOLLOWER)), "HTTP/1.1 401 Unauthorized");
    assert_eq!(
        refusal(&following(region, SECRET, 2, FOLLOWER)),
        "HTTP/1.1 400 the purge feed is spoken in version 1 here"
    );
    let nameless = refusal(&following(region, SECRET, 1, ""));
    assert_eq!(nameless, "HTTP/1.1 400 name the follower with the header kvasar-follower: 16 hexadecimal digits");

    let follow = following(region, SECRET, 1, FOLLOWER);
    let garbled =
        [chunk(9, 8, &[0; 8]), chunk(4, 3, &[0; 3]), chunk(4, u32::MAX, &[]), b"2\r\n\xff\xff\r\nzz\r\n".to_vec()];
    for (i, garbled) in garbled.iter().enumerate() {
        // Each is closed soon. One that speaks something else is broken off; one whose body ends in the middle of nothing has just gone away.
        let answer = rest_of(send(region, &[follow.as_bytes(), garbled].concat()));
        assert_eq!(answer.ends_with("0\r\n\r\n"), i == 3, "{answer:?}");
    }

    // Some follow and are never heard of again; others come and go, with whatever they say.
    let before = chain.region.memory("VmRSS");
    let idle: Vec<TcpStream> = (0..500u64)
        .map(|i| send(region, following(region, SECRET, 1, &format!("kvasar-follower: {i:016x}\r\n")).as_bytes()))
        .collect();
    thread::scope(|scope| {
        for worker in 0..4u64 {
            let (follow, garbled, chain) = (&follow, &garbled, &chain);
            scope.spawn(move || {
                for i in 0..2375u64 {
                    let chance = i.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17) ^ worker;
                    let name = format!("kvasar-follower: {chance:016x}\r\n");
                    let stream = match i % 6 {
                        0 => send(region, &[follow.as_bytes(), &garbled[(i / 6 % 4) as usize]].concat()),
                        1 => send(region, &follow.as_bytes()[..(chance % follow.len() as u64) as usize]),
                        2 => send(region, following(region, SECRET, chance, &name).as_bytes()),
                        3 => send(region, following(region, &chain.token, 1, &name).as_bytes()),
                        4 => send(region, &[follow.as_bytes(), &chance.to_be_bytes(), b"\r\n"].concat()),
                        _ => {
                            let mut stream = send(region, following(region, SECRET, 1, &name).as_bytes());
                            let mut answer = Vec::new();
                            while !answer.windows(START.len()).any(|window| window == START) {
                                let mut piece = [0; 1024];
                                let length = stream.read(&mut piece).expect("a follower is answered");
                                assert_ne!(length, 0, "{:?}", String::from_utf8_lossy(&answer));
                                answer.extend_from_slice(&piece[..length]);
                            }
                            stream
                        }
                    };
                    drop(stream);
                }
            });
        }
    });
    let (_, took) = change(&chain, "meanwhile", Some(b"old"), Some(b"new"));
    let after = chain.region.memory("VmRSS");
    println!("a write is seen after {took:?} among 500 idle followers; memory {before:?} before, {after:?} after");
    if let (Some(before), Some(after)) = (before, after) {
        assert!(after < before + (128 << 20), "{before} bytes before, {after} after");
    }
    drop(idle);
    wait_until("those that went away to be forgotten", || {
        let metrics = ask(chain.region.admin(), "GET", "/metrics", &[], b"");
        String::from_utf8_lossy(&metrics.body).lines().any(|line| line == "kvasar_feed_followers{tier=\"region\"} 1")
    });
    assert_eq!(followed(&chain.away), (1, 0));
}

#[test]
fn a_slow_transfer_holds_up_no_purge() {
    const LENGTH: usize = 25 << 20;
    let chain = Chain::start();
    chain.write("large", &vec![b'x'; LENGTH]);
    let head = format!(
        "GET /large?urlencoded=true HTTP/1.1\r\nHost: {0}\r\nAuthorization: Bearer {1}\r\nkvasar-namespace: {2}\r\n\r\n",
        chain.away.tier(),
        chain.token,
        chain.namespace
    );
    // Readers who have begun to take it, and take little at a time; so what upstream sends of it fills the line between the two.
    let mut slow: Vec<TcpStream> = (0..4).map(|_| send(chain.away.tier(), head.as_bytes())).collect();
    let mut piece = vec![0; 64 * 1024];
    let mut taken = vec![0; slow.len()];
    let mut take = |slow: &mut Vec<TcpStream>| {
        for (stream, taken) in slow.iter_mut().zip(&mut taken) {
            *taken += stream.read(&mut piece).expect("the value is on its way");
        }
        taken.iter().copied().max().unwrap_or_default()
    };
    take(&mut slow);
    for round in 0..5 {
        let (_, took) = change(&chain, &format!("k-{round}"), Some(b"old"), Some(b"new"));
        let taken = take(&mut slow);
        println!("seen {took:?} after the acknowledgement, while {taken} of {LENGTH} bytes were taken");
        assert!(taken > 0 && taken < LENGTH / 2, "{taken}");
    }
}
