//! What was true, and whether what was answered agrees with it.
//!
//! The truth is written down at the store's moment of effect (`store.rs`), beside what clients attempted and what they were acknowledged. Against it stands
//! every answer. It fails on: an age below the true staleness, or above what the read accepts and not marked; a latest read answered with what was not current
//! any more when it was asked; a version demand not met; a location that goes back; an expired state; a value no write wrote, or not whole; an acknowledged
//! write that never took effect. What has to be so after everything healed is asked for in `finale.rs`.
//!
//! Two tolerances, no more. [`DRIFT`]: ages are sums of what several machines' clocks counted, and those may be 200 millionths too slow. And
//! [`EXPIRY_SLACK`]: entries expire by the origin's wall clock, which it reads in whole milliseconds.

use std::{collections::HashMap, fmt, time::Duration};

use crate::clock::{MICRO, MILLI, Nanos};

/// What an age counted by clocks that slow may lack, as a share of it; a little more, as it is counted from what passed rather than from what was counted.
const DRIFT: f64 = 0.000_201;
/// Between the origin's clock, too fast, and a location's, too slow.
const DRIFT_BETWEEN: f64 = 0.000_402;
const EXPIRY_SLACK: Nanos = 2 * MILLI;
/// The rounding of our own sums.
const SUM_SLACK: Nanos = 5 * MICRO;

/// An edge, a regional and the central one.
const TIERS_MAX: Nanos = 3;

/// A key's number; its name is made of it.
pub(crate) type KeyIndex = usize;

/// What an answer says a key's state is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Present { version: u64 },
    Absent,
}

/// What a read demanded, and when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Demand {
    pub(crate) asked_at: Nanos,
    pub(crate) max_age: Duration,
    pub(crate) at_least: Option<u64>,
    /// What the location had shown before the read was asked.
    pub(crate) floor: Floor,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Answered {
    pub(crate) at: Nanos,
    pub(crate) seen: Seen,
    pub(crate) age: Duration,
    pub(crate) stale: bool,
    /// Whether the tier asked for it, rather than had it.
    pub(crate) waited: bool,
    /// The oldest that a marked answer may be.
    pub(crate) stale_max: Duration,
}

/// The newest state that a location has shown of a key: its version, and since when at the earliest it was current.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Floor {
    pub(crate) since: Nanos,
    pub(crate) version: u64,
}

/// From when to when a state was current.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: Nanos,
    end: Nanos,
    version: u64,
    present: bool,
    /// Whether it ended, or will, by expiring.
    expires: bool,
}

const OPEN: Nanos = u64::MAX;

/// How a write changed its key.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Effect {
    Put { expires_at: Option<Nanos> },
    Delete,
}

/// A put that a client tried.
struct Attempt {
    key: KeyIndex,
    length: u64,
    version: Option<u64>,
}

#[derive(Clone, Debug)]
pub(crate) struct Violation {
    pub(crate) at: Nanos,
    pub(crate) node: usize,
    pub(crate) key: Option<KeyIndex>,
    pub(crate) what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {:.6} s, node {}", self.at as f64 / 1e9, self.node)?;
        if let Some(key) = self.key {
            write!(f, ", key {key}")?;
        }
        write!(f, ": {}", self.what)
    }
}

#[derive(Default)]
pub(crate) struct Checker {
    histories: Vec<Vec<Span>>,
    effects: HashMap<u64, (KeyIndex, Nanos)>,
    attempts: Vec<Attempt>,
    pub(crate) violation: Option<Violation>,
    pub(crate) reads: u64,
    pub(crate) lists: u64,
    pub(crate) effects_seen: u64,
    /// Locations that went back over a restart of theirs, which is no violation.
    pub(crate) back_over_restart: u64,
}

type Outcome<T = ()> = Result<T, String>;

impl Checker {
    pub(crate) fn new(keys: usize) -> Checker {
        let before = Span { start: 0, end: OPEN, version: 0, present: false, expires: false };
        Checker { histories: vec![vec![before]; keys], ..Checker::default() }
    }

    pub(crate) fn fail(&mut self, violation: Violation) {
        self.violation.get_or_insert(violation);
    }

    /// A put is about to be sent; its number goes into its value.
    pub(crate) fn attempt(&mut self, key: KeyIndex, length: u64) -> u64 {
        self.attempts.push(Attempt { key, length, version: None });
        self.attempts.len() as u64 - 1
    }

    /// A write took effect in the store.
    pub(crate) fn took_effect(&mut self, at: Nanos, key: KeyIndex, version: u64, effect: Effect) -> Outcome {
        self.effects_seen += 1;
        self.effects.insert(version, (key, at));
        let history = &mut self.histories[key];
        // The absence that an expiry would have brought, if it has not come yet.
        while history.len() > 1 && history[history.len() - 1].start >= at && history[history.len() - 2].expires {
            history.pop();
        }
        let last = history.last_mut().expect("a history begins with absence");
        if last.version >= version {
            return Err(format!("version {version:016x} took effect after {:016x}", last.version));
        }
        if last.end > at {
            last.end = at;
            last.expires = false;
        }
        let present = matches!(effect, Effect::Put { .. });
        history.push(Span { start: at, end: OPEN, version, present, expires: false });
        if let Effect::Put { expires_at: Some(expires_at) } = effect {
            let last = history.last_mut().expect("it was just put there");
            last.end = expires_at.max(at);
            last.expires = true;
            let start = last.end;
            history.push(Span { start, end: OPEN, version, present: false, expires: false });
        }
        Ok(())
    }

    /// A write was acknowledged: it has taken effect, and its location shows nothing older from here on.
    pub(crate) fn acknowledged(&mut self, key: KeyIndex, attempt: Option<u64>, version: u64) -> Outcome<Floor> {
        let Some((of, at)) = self.effects.get(&version).copied() else {
            return Err(format!("version {version:016x} was acknowledged and has not taken effect"));
        };
        if of != key {
            return Err(format!("version {version:016x} was acknowledged, which is another key's"));
        }
        if let Some(attempt) = attempt {
            self.bind(key, attempt, version)?;
        }
        Ok(Floor { since: at, version })
    }

    /// A value says which attempt it is of, and its answer which version made it: they belong together, always.
    fn bind(&mut self, key: KeyIndex, attempt: u64, version: u64) -> Outcome {
        let attempt = usize::try_from(attempt).ok().and_then(|at| self.attempts.get_mut(at));
        let Some(attempt) = attempt.filter(|attempt| attempt.key == key) else {
            return Err("a value that no write of this key wrote".into());
        };
        match attempt.version {
            Some(bound) if bound != version => {
                Err(format!("one write's value with two versions: {bound:016x} and {version:016x}"))
            }
            Some(_) => Ok(()),
            None if self.effects.get(&version).is_some_and(|(of, _)| *of == key) => {
                attempt.version = Some(version);
                Ok(())
            }
            None => Err(format!("version {version:016x}, which no write of this key has")),
        }
    }

    /// What a value's bytes say must be what was written, whole.
    pub(crate) fn check_value(&mut self, key: KeyIndex, version: u64, value: Option<u64>, length: u64) -> Outcome {
        let attempt = value.ok_or("a value too short to be one")?;
        self.bind(key, attempt, version)?;
        let written = self.attempts[attempt as usize].length;
        if written != length {
            return Err(format!("a value of {length} bytes, of which {written} were written"));
        }
        Ok(())
    }

    /// Checks an answer; returns what the location has shown with it.
    pub(crate) fn check_read(&mut self, key: KeyIndex, demand: &Demand, answered: &Answered) -> Outcome<Floor> {
        self.reads += 1;
        let Answered { at, seen, age, .. } = *answered;
        let age_nanos = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
        let slack = (age_nanos as f64 * DRIFT) as Nanos + SUM_SLACK;
        let from = at.saturating_sub(age_nanos).saturating_sub(slack);
        let Some((last, floor)) = self.current(key, seen, from, at) else {
            return Err(format!("age below the true staleness: it was not current since {:.6} s", from as f64 / 1e9));
        };
        // What was asked for past every cache is the latest, and older than its trip only by what each tier counts twice: the time that the ones above it
        // took to answer (R4). Ages are rounded up to milliseconds between them.
        let asked_anew = (at - demand.asked_at.min(at)) * TIERS_MAX + 2 * TIERS_MAX * MILLI + slack;
        let accepted = age <= demand.max_age || (answered.waited && age_nanos <= asked_anew);
        if !accepted && !answered.stale {
            return Err(format!("older than the read accepts ({:?}), and not marked", demand.max_age));
        }
        if answered.stale && age > answered.stale_max {
            return Err(format!("marked, and older than {:?}", answered.stale_max));
        }
        if demand.max_age.is_zero() && last.end < demand.asked_at {
            return Err("not the latest: it had been replaced when it was asked for".into());
        }
        if let Seen::Present { .. } = seen
            && last.expires
            && at > last.end + expiry_slack(&last)
        {
            return Err(format!("expired at {:.6} s", last.end as f64 / 1e9));
        }
        if let Some(version) = demand.at_least {
            let (_, effect) =
                self.effects.get(&version).copied().ok_or("a demand for a version that was never written")?;
            if last.end <= effect && last.version < version {
                return Err(format!(
                    "the demand for version {version:016x}, of {:.6} s, is not met: ended at {:.6} s",
                    effect as f64 / 1e9,
                    last.end as f64 / 1e9
                ));
            }
        }
        if last.end <= demand.floor.since && last.version < demand.floor.version {
            return Err(format!(
                "behind version {:016x}, of {:.6} s, which this location had shown or written: ended at {:.6} s",
                demand.floor.version,
                demand.floor.since as f64 / 1e9,
                last.end as f64 / 1e9
            ));
        }
        Ok(floor)
    }

    /// Whether an answer would have been behind this, were it not for a restart.
    pub(crate) fn is_behind(&self, key: KeyIndex, answered: &Answered, floor: Floor) -> bool {
        let found = self.current(key, answered.seen, 0, answered.at);
        found.is_some_and(|(last, _)| last.end <= floor.since && last.version < floor.version)
    }

    /// The last span of that state which reaches to `from` or past it, and what one may conclude to have been seen.
    fn current(&self, key: KeyIndex, seen: Seen, from: Nanos, until: Nanos) -> Option<(Span, Floor)> {
        let mut found: Option<(Span, Floor)> = None;
        for span in self.histories[key].iter().rev() {
            // An expiry may be noticed a little before or after its moment.
            if span.start > until + EXPIRY_SLACK {
                continue;
            }
            if span.end.saturating_add(expiry_slack(span)) < from {
                break;
            }
            let matches = match seen {
                Seen::Present { version } => span.present && span.version == version,
                Seen::Absent => !span.present,
            };
            if matches {
                let floor = Floor { since: span.start, version: span.version };
                found = Some(found.map_or((*span, floor), |(last, _)| (last, floor)));
            }
        }
        found
    }

    /// Checks a listing that was under way from one moment to another: names, and of each the attempt that its metadata speaks of.
    pub(crate) fn check_list(&mut self, names: &[(KeyIndex, Option<u64>)], from: Nanos, to: Nanos) -> Outcome {
        self.lists += 1;
        let mut listed = vec![false; self.histories.len()];
        for (key, attempt) in names {
            if std::mem::replace(&mut listed[*key], true) {
                return Err(format!("key {key} is listed twice"));
            }
            let Some(attempt) = attempt else {
                return Err(format!("key {key} is listed without what was written with it"));
            };
            let Some(attempt) = self.attempts.get(*attempt as usize).filter(|attempt| attempt.key == *key) else {
                return Err(format!("key {key} is listed with another one's metadata"));
            };
            if let Some(version) = attempt.version
                && !self.overlapping(*key, from, to).any(|span| span.present && span.version == version)
            {
                return Err(format!("key {key} is listed with a state that was not current meanwhile"));
            }
        }
        for (key, listed) in listed.iter().enumerate() {
            let mut present = self.overlapping(key, from, to).map(|span| span.present);
            let always = present.next().unwrap_or(false);
            if present.all(|present| present == always) && always != *listed {
                return Err(format!(
                    "key {key} is {}listed, and it was there {}",
                    if *listed { "" } else { "not " },
                    if always { "all the time" } else { "at no time" }
                ));
            }
        }
        Ok(())
    }

    fn overlapping(&self, key: KeyIndex, from: Nanos, to: Nanos) -> impl Iterator<Item = &Span> {
        let spans = self.histories[key].iter();
        spans.filter(move |span| {
            let slack = if span.expires { EXPIRY_SLACK } else { 0 };
            span.end.saturating_add(slack) >= from
                && span.start <= to + EXPIRY_SLACK
                && (span.start < span.end || span.end >= from)
        })
    }

    /// What a key's state is now.
    pub(crate) fn now(&self, key: KeyIndex, at: Nanos) -> Seen {
        let span = self.histories[key].iter().rev().find(|span| span.start <= at);
        match span {
            Some(span) if span.present => Seen::Present { version: span.version },
            _ => Seen::Absent,
        }
    }

    /// Whether a key's state changed, or was about to, within this time.
    pub(crate) fn changed_within(&self, key: KeyIndex, from: Nanos, to: Nanos) -> bool {
        self.histories[key].iter().any(|span| span.start + EXPIRY_SLACK >= from && span.start <= to + EXPIRY_SLACK)
    }

    /// The last spans of a key, for a story.
    pub(crate) fn story(&self, key: KeyIndex) -> String {
        let spans = &self.histories[key];
        let mut text = String::new();
        for span in &spans[spans.len().saturating_sub(8)..] {
            let state = if span.present { "present" } else { "absent" };
            let end = if span.end == OPEN { "...".to_owned() } else { format!("{:.6}", span.end as f64 / 1e9) };
            text.push_str(&format!("  {:.6} to {end}: {state} {:016x}\n", span.start as f64 / 1e9, span.version));
        }
        text
    }
}

/// By how much a location may notice an expiry too late: its own clock counts the time left.
fn expiry_slack(span: &Span) -> Nanos {
    if !span.expires {
        return 0;
    }
    EXPIRY_SLACK + ((span.end - span.start) as f64 * DRIFT_BETWEEN) as Nanos
}
