//! That the checker can fail: each kind of wrong answer, by hand.

use std::time::Duration;

use crate::{
    checker::{Answered, Checker, Demand, Effect, Floor, Seen},
    clock::{Nanos, SECOND},
};

const KEY: usize = 0;
const MINUTE: Duration = Duration::from_secs(60);

/// Key 0 is absent until 10 s, then of version 1, from 20 s on of version 2, from 30 s on deleted, and from 40 s on of version 4, which expires at 100 s.
fn checker() -> Checker {
    let mut checker = Checker::new(2);
    for (at, version, effect) in [
        (10, 1, Effect::Put { expires_at: None }),
        (20, 2, Effect::Put { expires_at: None }),
        (30, 3, Effect::Delete),
        (40, 4, Effect::Put { expires_at: Some(100 * SECOND) }),
    ] {
        checker.took_effect(at * SECOND, KEY, version, effect).expect("versions rise");
    }
    checker
}

fn demand(asked_at: Nanos) -> Demand {
    Demand { asked_at: asked_at * SECOND, max_age: MINUTE, at_least: None, floor: Floor::default() }
}

/// An answer from memory.
fn answer(at: Nanos, seen: Seen, age: u64) -> Answered {
    let (age, stale_max) = (Duration::from_secs(age), Duration::from_secs(3600));
    Answered { at: at * SECOND, seen, age, stale: false, waited: false, stale_max }
}

fn present(version: u64) -> Seen {
    Seen::Present { version }
}

fn check(demand: Demand, answer: Answered, expected: Result<(), &str>) {
    match (checker().check_read(KEY, &demand, &answer), expected) {
        (Ok(_), Ok(())) => {}
        (Err(what), Err(expected)) => assert!(what.contains(expected), "'{what}' rather than '{expected}'"),
        (outcome, expected) => panic!("{outcome:?} rather than {expected:?}, of {answer:?} to {demand:?}"),
    }
}

#[test]
fn an_age_below_the_true_staleness() {
    check(demand(25), answer(25, present(2), 0), Ok(()));
    check(demand(25), answer(25, present(1), 5), Ok(()));
    check(demand(25), answer(25, present(1), 4), Err("true staleness"));
    check(demand(25), answer(25, Seen::Absent, 14), Err("true staleness"));
    check(demand(25), answer(25, Seen::Absent, 15), Ok(()));
    check(demand(25), answer(25, present(4), 50), Err("true staleness"));
}

#[test]
fn an_age_beyond_what_the_read_accepts() {
    let impatient = Demand { max_age: Duration::from_secs(1), ..demand(25) };
    check(impatient, answer(25, present(2), 2), Err("not marked"));
    check(impatient, Answered { stale: true, ..answer(25, present(2), 2) }, Ok(()));
    check(impatient, Answered { waited: true, ..answer(25, present(2), 2) }, Err("not marked"));
    let asked_before = Demand { asked_at: 24 * SECOND, ..impatient };
    check(asked_before, Answered { waited: true, ..answer(25, present(2), 2) }, Ok(()));
    check(demand(25), Answered { stale: true, ..answer(25, present(2), 3700) }, Err("marked, and older"));
}

#[test]
fn the_latest_that_is_not() {
    let latest = Demand { max_age: Duration::ZERO, ..demand(21) };
    check(latest, Answered { waited: true, ..answer(22, present(2), 1) }, Ok(()));
    check(latest, Answered { waited: true, ..answer(22, present(1), 2) }, Err("not the latest"));
    // Also when it is marked.
    check(latest, Answered { stale: true, ..answer(22, present(1), 2) }, Err("not the latest"));
}

#[test]
fn a_version_demanded_and_not_covered() {
    let at_least = Demand { at_least: Some(2), ..demand(25) };
    check(at_least, answer(25, present(2), 1), Ok(()));
    check(at_least, answer(25, present(1), 6), Err("is not met"));
    check(at_least, answer(35, Seen::Absent, 1), Ok(()));
    check(at_least, answer(25, Seen::Absent, 20), Err("is not met"));
}

#[test]
fn a_location_that_goes_back() {
    let shown = Floor { version: 2 };
    let after = Demand { floor: shown, ..demand(25) };
    check(after, answer(25, present(2), 5), Ok(()));
    check(after, answer(25, present(1), 6), Err("behind version"));
    check(after, answer(35, Seen::Absent, 1), Ok(()));
    check(after, answer(25, Seen::Absent, 20), Err("behind version"));
}

#[test]
fn an_expired_state() {
    check(demand(99), answer(99, present(4), 1), Ok(()));
    check(demand(101), answer(101, present(4), 2), Err("expired"));
    check(demand(101), answer(101, Seen::Absent, 0), Ok(()));
    check(demand(99), answer(99, Seen::Absent, 0), Err("true staleness"));
}

#[test]
fn a_value_that_no_write_wrote() {
    let mut checker = checker();
    let (mine, others) = (checker.attempt(KEY, 100), checker.attempt(1, 100));
    assert!(checker.check_value(KEY, 2, Some(mine), 100).is_ok());
    assert!(checker.check_value(KEY, 2, Some(mine), 99).is_err(), "not whole");
    assert!(checker.check_value(KEY, 1, Some(mine), 100).is_err(), "one write, two versions");
    assert!(checker.check_value(KEY, 2, Some(others), 100).is_err(), "another key's value");
    assert!(checker.check_value(KEY, 2, Some(77), 100).is_err(), "nobody's value");
    assert!(checker.check_value(KEY, 2, None, 3).is_err(), "no value at all");
}

#[test]
fn an_acknowledged_write_that_never_took_effect() {
    let mut checker = checker();
    assert!(checker.acknowledged(KEY, None, 3, 29 * SECOND).is_ok());
    assert!(checker.acknowledged(KEY, None, 5, 29 * SECOND).is_err());
    assert!(checker.acknowledged(1, None, 3, 29 * SECOND).is_err());
    assert!(checker.took_effect(50 * SECOND, KEY, 3, Effect::Delete).is_err(), "versions fell");
}

#[test]
fn a_listing_that_is_not_what_was_there() {
    let mut checker = checker();
    let attempt = checker.attempt(KEY, 100);
    checker.acknowledged(KEY, Some(attempt), 2, 19 * SECOND).expect("version 2 took effect");
    let mut check =
        |names: &[(usize, Option<u64>)], from: Nanos, to: Nanos| checker.check_list(names, from * SECOND, to * SECOND);
    assert!(check(&[(KEY, Some(attempt))], 21, 22).is_ok());
    assert!(check(&[], 21, 22).is_err(), "it was there all the time");
    assert!(check(&[(KEY, Some(attempt))], 31, 32).is_err(), "it was deleted all the time");
    assert!(check(&[], 29, 31).is_ok() && check(&[(KEY, Some(attempt))], 29, 31).is_ok(), "either, while it changed");
    assert!(check(&[(KEY, Some(attempt)), (KEY, Some(attempt))], 21, 22).is_err(), "twice");
    assert!(check(&[(KEY, None)], 21, 22).is_err(), "without its metadata");
    assert!(check(&[(KEY, Some(attempt))], 11, 12).is_err(), "with metadata of another time");
}

/// Writes whose rows come to the replicas one by one.
fn replicated() -> Checker {
    let mut checker = Checker::new(1);
    let put = Effect::Put { expires_at: None };
    let mut arrived = |at: Nanos, version| checker.arrived(at * SECOND, KEY, version, put).expect("versions differ");
    // Versions 2 and 3 are under way at once; 3 is the first to have a quorum, at 14 s, and 2 is to be found from 12 to 14 s. Version 1 comes after both.
    arrived(11, 3);
    arrived(12, 2);
    checker.reached(14 * SECOND, KEY, 3);
    checker.arrived(16 * SECOND, KEY, 1, put).expect("versions differ");
    // Nobody has to find version 4 yet.
    checker.arrived(20 * SECOND, KEY, 4, put).expect("versions differ");
    checker
}

#[test]
fn states_that_overlap() {
    let check = |answer: Answered, expected: Result<(), &str>| match (
        replicated().check_read(KEY, &Demand { floor: Floor::default(), ..demand(10) }, &answer),
        expected,
    ) {
        (Ok(_), Ok(())) => {}
        (Err(what), Err(expected)) => assert!(what.contains(expected), "'{what}' rather than '{expected}'"),
        (outcome, expected) => panic!("{outcome:?} rather than {expected:?}, of {answer:?}"),
    };
    for (at, seen, age) in
        [(13, present(3), 0), (13, present(2), 0), (13, Seen::Absent, 0), (30, present(3), 0), (30, present(4), 0)]
    {
        check(answer(at, seen, age), Ok(()));
    }
    check(answer(10, present(3), 0), Err("true staleness"));
    check(answer(19, present(4), 0), Err("true staleness"));
    // Of an age that reaches back to when something later had to be found.
    check(answer(20, present(2), 6), Ok(()));
    check(answer(20, present(2), 5), Err("true staleness"));
    check(answer(20, Seen::Absent, 5), Err("true staleness"));
    // It stood for the instant before version 3.
    check(answer(20, present(1), 6), Ok(()));
    check(answer(20, present(1), 5), Err("true staleness"));
}

#[test]
fn a_write_that_was_overtaken_before_it_began() {
    let mut checker = replicated();
    assert!(checker.acknowledged(KEY, None, 3, 10 * SECOND).is_ok());
    assert!(checker.acknowledged(KEY, None, 1, 13 * SECOND).is_ok(), "both were under way at 14 s");
    assert!(checker.acknowledged(KEY, None, 1, 15 * SECOND).is_err(), "version 3 had to be found by then");
    assert!(checker.acknowledged(KEY, None, 4, 19 * SECOND).is_err(), "no quorum has it");
    checker.reached(25 * SECOND, KEY, 4);
    assert!(checker.acknowledged(KEY, None, 4, 19 * SECOND).is_ok());
    let overtaken = Demand { at_least: Some(1), ..demand(26) };
    assert!(checker.check_read(KEY, &overtaken, &answer(26, present(3), 1)).is_ok(), "a later one was there");
    let at_least = Demand { at_least: Some(4), ..demand(26) };
    assert!(checker.check_read(KEY, &at_least, &answer(26, present(4), 0)).is_ok());
    assert!(checker.check_read(KEY, &at_least, &answer(26, present(3), 1)).is_err(), "that version is not covered");
}

#[test]
fn versions_that_are_not_one_writes() {
    let mut checker = replicated();
    assert!(checker.arrived(30 * SECOND, KEY, 3, Effect::Delete).is_err(), "one version, two effects");
    assert!(checker.arrived(30 * SECOND, KEY, 3, Effect::Put { expires_at: None }).is_ok());
}

#[test]
fn clocks_that_disagree_about_an_expiry() {
    let mut checker = Checker::new(1).with_skew(SECOND / 2);
    checker
        .took_effect(40 * SECOND, KEY, 4, Effect::Put { expires_at: Some(100 * SECOND) })
        .expect("it is the first version");
    let mut read = |at: u64, seen| {
        let at = at * SECOND / 10;
        let demand = Demand { asked_at: at, ..demand(0) };
        checker.check_read(KEY, &demand, &Answered { at, ..answer(0, seen, 0) })
    };
    assert!(read(1004, present(4)).is_ok() && read(1006, present(4)).is_err());
    assert!(read(996, Seen::Absent).is_ok() && read(994, Seen::Absent).is_err());
}
