//! What was true, and whether what was answered agrees with it.
//!
//! The truth is written down where a write takes effect: at the store's one moment of it (`store.rs`), or, in a store of several replicas (`quorum.rs`), from when the
//! first of them has it, and a read may find it, to when a quorum has it, and each read must find it or a later one. Beside it stands what clients attempted and what they were acknowledged. Against it stands
//! every answer. It fails on: an age below the true staleness, or above what the read accepts and not marked; a latest read answered with what was not current
//! any more when it was asked; a version demand not met; a location that goes back; an expired state; a value no write wrote, or not whole; an acknowledged
//! write that never took effect, or had been overtaken before it was asked for. What has to be so after everything healed is asked for in `finale.rs`.
//!
//! So a state is current *from* the moment at which a read may find it *to* the first moment at which a read must find a later one. Spans of different writes
//! may overlap, and those of two writes under way at once may end in one moment: a write whose rows arrive only after a later one's have reached a quorum was never to be
//! seen in the store. It counts as having been current for the instant before that later one, as both were under way then. All that needs to hold for it is
//! that it began before that instant, which is checked when it is acknowledged. Of one key, spans end in the order of versions.
//!
//! Two tolerances, no more. [`DRIFT`]: ages are sums of what several machines' clocks counted, and those may be 200 millionths too slow. And
//! [`EXPIRY_SLACK`]: entries expire by an origin's wall clock, which it reads in whole milliseconds; to which comes by how much the clocks of several origins differ.

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

/// The newest state that a location has shown of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Floor {
    pub(crate) version: u64,
}

/// What a write made of its key, and from when to when that was so, unless it expired before.
#[derive(Clone, Copy, Debug)]
struct Span {
    /// A read may find it.
    start: Nanos,
    /// Each read must find something later.
    end: Nanos,
    version: u64,
    effect: Effect,
}

/// One of the states that a write makes: a value, or absence by its deletion or its expiry.
#[derive(Clone, Copy, Debug)]
struct Current {
    end: Nanos,
    version: u64,
    /// When it had to be gone, if it was a value that expires.
    expired: Option<Nanos>,
}

const OPEN: Nanos = u64::MAX;

/// How a write changed its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    Put { expires_at: Option<Nanos> },
    Delete,
}

/// All that was written to a key, by version, and how far reads must have come.
struct History {
    spans: Vec<Span>,
    /// From when on each read must find so late a version or a later one. Both rise.
    reached: Vec<(Nanos, u64)>,
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
    histories: Vec<History>,
    /// From when on each read had to find the write of this version, or a later one. Two keys' writes may have the same version where there are several
    /// origins, two of one key never: then it is the earlier.
    effects: HashMap<u64, Nanos>,
    attempts: Vec<Attempt>,
    /// By how much the wall clocks by which entries expire may differ.
    skew: Nanos,
    pub(crate) violation: Option<Violation>,
    pub(crate) reads: u64,
    pub(crate) lists: u64,
    pub(crate) effects_seen: u64,
    /// Acknowledged writes that nobody ever had to find, a later one having been there first.
    pub(crate) overtaken: u64,
    /// Locations that went back over a restart of theirs, which is no violation.
    pub(crate) back_over_restart: u64,
}

type Outcome<T = ()> = Result<T, String>;

impl Checker {
    pub(crate) fn new(keys: usize) -> Checker {
        Checker { histories: (0..keys).map(|_| History::new()).collect(), ..Checker::default() }
    }

    /// For a world in which several clocks judge when an entry expires.
    pub(crate) fn with_skew(self, skew: Nanos) -> Checker {
        Checker { skew, ..self }
    }

    pub(crate) fn fail(&mut self, violation: Violation) {
        self.violation.get_or_insert(violation);
    }

    /// A put is about to be sent; its number goes into its value.
    pub(crate) fn attempt(&mut self, key: KeyIndex, length: u64) -> u64 {
        self.attempts.push(Attempt { key, length, version: None });
        self.attempts.len() as u64 - 1
    }

    /// A write took effect in the store, where that is one moment, and in the order of versions.
    pub(crate) fn took_effect(&mut self, at: Nanos, key: KeyIndex, version: u64, effect: Effect) -> Outcome {
        let last = self.histories[key].reached.last().map_or(0, |(_, version)| *version);
        if last >= version {
            return Err(format!("version {version:016x} took effect after {last:016x}"));
        }
        if self.effects.contains_key(&version) {
            return Err(format!("version {version:016x} took effect twice"));
        }
        self.arrived(at, key, version, effect)?;
        self.reached(at, key, version);
        Ok(())
    }

    /// A write has come to a replica: from here on a read may find it, unless it must find a later one already.
    pub(crate) fn arrived(&mut self, at: Nanos, key: KeyIndex, version: u64, effect: Effect) -> Outcome {
        if self.histories[key].arrived(at, version, effect)? {
            self.effects_seen += 1;
        }
        Ok(())
    }

    /// A quorum of the replicas has this version or later ones: from here on each read must find one of them.
    pub(crate) fn reached(&mut self, at: Nanos, key: KeyIndex, version: u64) {
        self.effects.entry(version).or_insert(at);
        self.histories[key].reach(at, version);
    }

    /// A write that was begun at that moment was acknowledged: it has taken effect, no earlier than that, and its location shows nothing older from here on.
    pub(crate) fn acknowledged(
        &mut self,
        key: KeyIndex,
        attempt: Option<u64>,
        version: u64,
        begun: Nanos,
    ) -> Outcome<Floor> {
        let history = &self.histories[key];
        let Some(span) = history.span(version) else {
            return Err(format!(
                "version {version:016x} was acknowledged, and no write of this key has taken effect with it"
            ));
        };
        if history.reached.last().is_none_or(|(_, reached)| *reached < version) {
            return Err(format!("version {version:016x} was acknowledged, and not every read must find it"));
        }
        if span.end < begun {
            return Err(format!(
                "version {version:016x} was acknowledged, and had been overtaken at {:.6} s, before it was begun",
                seconds(span.end)
            ));
        }
        // What a later one overtook was to be found, or that one, from the same moment on.
        let at = history.reached.partition_point(|(_, reached)| *reached < version);
        self.effects.entry(version).or_insert(history.reached[at].0);
        if span.start >= span.end {
            self.overtaken += 1;
        }
        if let Some(attempt) = attempt {
            self.bind(key, attempt, version)?;
        }
        Ok(Floor { version })
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
            None if self.histories[key].span(version).is_some() => {
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
        if let Some(expired) = last.expired
            && at > expired
        {
            return Err(format!("expired, at {:.6} s at the latest", seconds(expired)));
        }
        if let Some(version) = demand.at_least {
            let effect = self.effects.get(&version).copied().ok_or("a demand for a version that was never written")?;
            // By versions, too: of another key's write, what the clocks of two origins say is all there is to go by.
            let next = self.histories[key].next(last.version);
            if last.end <= effect && next.is_some_and(|next| next <= version) {
                return Err(format!(
                    "the demand for version {version:016x}, of {:.6} s, is not met: ended at {:.6} s",
                    seconds(effect),
                    seconds(last.end)
                ));
            }
        }
        if last.version < demand.floor.version {
            return Err(format!(
                "behind version {:016x}, which this location had shown or written: ended at {:.6} s",
                demand.floor.version,
                seconds(last.end)
            ));
        }
        Ok(floor)
    }

    /// Whether an answer would have been behind this, were it not for a restart.
    pub(crate) fn is_behind(&self, key: KeyIndex, answered: &Answered, floor: Floor) -> bool {
        let found = self.current(key, answered.seen, 0, answered.at);
        found.is_some_and(|(last, _)| last.version < floor.version)
    }

    /// The last such state that was current at some moment from `from` to `until`, and what one may conclude to have been seen.
    fn current(&self, key: KeyIndex, seen: Seen, from: Nanos, until: Nanos) -> Option<(Current, Floor)> {
        let mut found: Option<(Current, Floor)> = None;
        for span in self.histories[key].spans.iter().rev() {
            if span.end < from {
                break;
            }
            let current = match seen {
                Seen::Present { version } if version == span.version => span.present(self.skew),
                Seen::Present { .. } => None,
                Seen::Absent => span.absent(self.skew),
            };
            if let Some((start, current)) = current
                && start <= until
                && current.end >= from
            {
                let floor = Floor { version: span.version };
                found = Some(found.map_or((current, floor), |(last, _)| (last, floor)));
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
                && self.current(*key, Seen::Present { version }, from, to).is_none()
            {
                return Err(format!("key {key} is listed with a state that was not current meanwhile"));
            }
        }
        for (key, listed) in listed.iter().enumerate() {
            if !self.could_be(key, *listed, from, to) {
                return Err(format!(
                    "key {key} is {}listed, and it was there {}",
                    if *listed { "" } else { "not " },
                    if *listed { "at no time" } else { "all the time" }
                ));
            }
        }
        Ok(())
    }

    /// Whether a key was there, or was not, at some moment of this time.
    fn could_be(&self, key: KeyIndex, present: bool, from: Nanos, to: Nanos) -> bool {
        let spans = self.histories[key].spans.iter().rev();
        let mut near = spans.take_while(|span| span.end >= from);
        near.any(|span| {
            let current = if present { span.present(self.skew) } else { span.absent(self.skew) };
            current.is_some_and(|(start, current)| start <= to && current.end >= from)
        })
    }

    /// Whether a key's state was this at some moment of this time.
    pub(crate) fn was(&self, key: KeyIndex, seen: Seen, from: Nanos, to: Nanos) -> bool {
        self.current(key, seen, from, to).is_some()
    }

    /// The last spans of a key, for a story.
    pub(crate) fn story(&self, key: KeyIndex) -> String {
        let spans = &self.histories[key].spans;
        let mut text = String::new();
        for span in &spans[spans.len().saturating_sub(8)..] {
            let state = match span.effect {
                Effect::Put { expires_at: None } => "put".to_owned(),
                Effect::Put { expires_at: Some(at) } => format!("put, until {:.6}", seconds(at)),
                Effect::Delete => "absent".to_owned(),
            };
            let end = if span.end == OPEN { "...".to_owned() } else { format!("{:.6}", seconds(span.end)) };
            text.push_str(&format!("  {:.6} to {end}: {:016x} {state}\n", seconds(span.start), span.version));
        }
        text
    }
}

fn seconds(nanos: Nanos) -> f64 {
    nanos as f64 / 1e9
}

impl History {
    /// At first a key is absent.
    fn new() -> History {
        let before = Span { start: 0, end: OPEN, version: 0, effect: Effect::Delete };
        History { spans: vec![before], reached: Vec::new() }
    }

    fn place(&self, version: u64) -> Result<usize, usize> {
        self.spans.binary_search_by_key(&version, |span| span.version)
    }

    fn span(&self, version: u64) -> Option<Span> {
        self.place(version).ok().map(|at| self.spans[at])
    }

    /// The version of the write that follows.
    fn next(&self, version: u64) -> Option<u64> {
        let after = self.spans.partition_point(|span| span.version <= version);
        self.spans.get(after).map(|span| span.version)
    }

    /// Whether it is the first that is heard of this write.
    fn arrived(&mut self, at: Nanos, version: u64, effect: Effect) -> Outcome<bool> {
        match self.place(version) {
            Ok(place) if self.spans[place].effect != effect => {
                Err(format!("version {version:016x} is {:?} here and {effect:?} there", self.spans[place].effect))
            }
            Ok(_) => Ok(false),
            Err(place) => {
                let overtaken = self.reached.partition_point(|(_, reached)| *reached <= version);
                let end = self.reached.get(overtaken).map_or(OPEN, |(at, _)| *at);
                self.spans.insert(place, Span { start: at.min(end), end, version, effect });
                Ok(true)
            }
        }
    }

    fn reach(&mut self, at: Nanos, version: u64) {
        if self.reached.last().is_some_and(|(_, reached)| *reached >= version) {
            return;
        }
        self.reached.push((at, version));
        // Ends rise with versions, so what is open is at the end.
        for span in self.spans.iter_mut().rev().skip_while(|span| span.version >= version) {
            if span.end != OPEN {
                break;
            }
            span.end = at;
            span.start = span.start.min(at);
        }
    }
}

impl Span {
    /// From when on there was a value.
    fn present(&self, skew: Nanos) -> Option<(Nanos, Current)> {
        let Effect::Put { expires_at } = self.effect else { return None };
        let current = Current { end: self.end, version: self.version, expired: None };
        let Some(expires_at) = expires_at else { return Some((self.start, current)) };
        // An expiry may be noticed a little before or after its moment; by a location later by as much as its own clock counts the time left too slowly.
        let counted = (expires_at.saturating_sub(self.start) as f64 * DRIFT_BETWEEN) as Nanos;
        let gone = expires_at.max(self.start) + skew + EXPIRY_SLACK + counted;
        Some((self.start, Current { end: self.end.min(gone), expired: Some(gone), ..current }))
    }

    /// From when on there was none.
    fn absent(&self, skew: Nanos) -> Option<(Nanos, Current)> {
        let current = Current { end: self.end, version: self.version, expired: None };
        match self.effect {
            Effect::Delete => Some((self.start, current)),
            Effect::Put { expires_at: None } => None,
            Effect::Put { expires_at: Some(at) } => {
                let start = at.saturating_sub(skew + EXPIRY_SLACK).max(self.start);
                // Replaced before it expired, it never was.
                (start <= self.end).then_some((start, current))
            }
        }
    }
}
