//! Stretches of a table where nothing is, remembered so that scans step over them at once.
//!
//! What is removed leaves a trace in the tree until compactions have come round, and a scan has to look at each: 70 ms for 100,000 of them, each time
//! that somebody lists from before them. So a scan that met such a stretch says where it was, and later ones leave it out.
//!
//! No row of a scan's snapshot is ever left out. Whoever puts rows says so before they can be seen: that takes them out of the stretches, and as long as
//! it lasts no scan may call a stretch what has one of them. A scan is watched from before its snapshot on, and what was put meanwhile is no stretch of
//! it. It leaves out only what was a stretch before its snapshot and still is one behind it: so what was in neither is not in the snapshot. Forgetting a
//! stretch costs time alone.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;

use super::{Table, keys};

/// Stretches that are remembered; past it the cheapest is forgotten.
const STRETCHES_MAX: usize = 64;
/// Puts that a scan under way keeps track of; when there are more, it has nothing to remember.
const PUTS_MAX: usize = 4096;

/// From the first key on, to before the second; an empty second one is the table's end.
pub(super) type Span = (Bytes, Bytes);
pub(super) type Row = (Table, Bytes);

#[derive(Default)]
pub(super) struct Barren {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By their beginning. No two overlap or touch.
    stretches: BTreeMap<Row, Stretch>,
    scans: Vec<Scan>,
    /// The rows of puts under way.
    puts: Vec<(u64, Vec<Row>)>,
    /// How many scans and puts have begun.
    begun: u64,
    /// How often a stretch has been split.
    splits: u64,
}

struct Stretch {
    end: Bytes,
    /// What it took to step over it.
    cost: Duration,
}

/// A scan under way, and what was put into its table since it began.
struct Scan {
    number: u64,
    table: Table,
    put: Vec<Bytes>,
}

/// Ends its scan when it is dropped.
pub(super) struct Watch<'a> {
    barren: &'a Barren,
    number: u64,
    table: Table,
    span: Span,
    /// What of it is in no stretch, as of so many splits.
    outside: Vec<Span>,
    splits: u64,
}

/// Ends its put when it is dropped.
pub(super) struct Putting<'a> {
    barren: &'a Barren,
    number: u64,
}

impl Barren {
    /// For a scan that takes its snapshot next.
    pub(super) fn scan(&self, table: Table, span: Span) -> Watch<'_> {
        let mut state = self.lock();
        let number = state.begin();
        state.scans.push(Scan { number, table, put: Vec::new() });
        let outside = state.outside(table, span.clone());
        Watch { barren: self, number, table, span, outside, splits: state.splits }
    }

    /// These rows are about to be put, and may be seen from now on.
    pub(super) fn put(&self, rows: Vec<Row>) -> Putting<'_> {
        let mut state = self.lock();
        let number = state.begin();
        if !state.stretches.is_empty() {
            rows.iter().for_each(|(table, key)| state.split(*table, key));
        }
        state.puts.push((number, rows));
        Putting { barren: self, number }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock can panic")
    }
}

impl Watch<'_> {
    /// For a scan that has its snapshot: what of its span it has to look at, in order.
    pub(super) fn spans(&self) -> Vec<Span> {
        if self.barren.lock().splits == self.splits { self.outside.clone() } else { vec![self.span.clone()] }
    }

    /// The scan found nothing in these spans, and what that took.
    pub(super) fn remember(&self, spans: Vec<(Span, Duration)>) {
        let mut state = self.barren.lock();
        let Some(scan) = state.scans.iter_mut().find(|scan| scan.number == self.number) else { return };
        let mut put = std::mem::take(&mut scan.put);
        if put.len() > PUTS_MAX {
            return;
        }
        let under_way = state.puts.iter().flat_map(|(_, rows)| rows);
        put.extend(under_way.filter(|(table, _)| *table == self.table).map(|(_, key)| key.clone()));
        for (span, cost) in spans {
            if !put.iter().any(|key| contains(&span, key)) {
                state.remember(self.table, span, cost);
            }
        }
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.barren.lock().scans.retain(|scan| scan.number != self.number);
    }
}

impl Drop for Putting<'_> {
    fn drop(&mut self) {
        let mut state = self.barren.lock();
        let Some(at) = state.puts.iter().position(|(number, _)| *number == self.number) else { return };
        let (_, rows) = state.puts.swap_remove(at);
        for scan in &mut state.scans {
            let room = (PUTS_MAX + 1).saturating_sub(scan.put.len());
            scan.put
                .extend(rows.iter().filter(|(table, _)| *table == scan.table).map(|(_, key)| key.clone()).take(room));
        }
    }
}

impl State {
    fn begin(&mut self) -> u64 {
        self.begun += 1;
        self.begun
    }

    /// The parts of a span that lie in no stretch.
    fn outside(&self, table: Table, (from, to): Span) -> Vec<Span> {
        let mut spans = Vec::new();
        // `None` is past the table's end.
        let mut at = Some(from.clone());
        let before = self.at_or_before(table, &from);
        let behind = self.stretches.range((table, keys::after(&from))..);
        let behind = behind.take_while(|((of, begin), _)| *of == table && is_before(begin, &to));
        for (begin, stretch) in before.into_iter().chain(behind.map(|((_, begin), stretch)| (begin, stretch))) {
            let Some(start) = at else { break };
            if start < *begin {
                spans.push((start.clone(), begin.clone()));
            }
            at = (!stretch.end.is_empty()).then(|| stretch.end.clone().max(start));
        }
        if let Some(start) = at
            && is_before(&start, &to)
        {
            spans.push((start, to));
        }
        spans
    }

    /// The last stretch that begins at a key or before it.
    fn at_or_before(&self, table: Table, key: &Bytes) -> Option<(&Bytes, &Stretch)> {
        let ((of, begin), stretch) = self.stretches.range(..=(table, key.clone())).next_back()?;
        (*of == table).then_some((begin, stretch))
    }

    fn split(&mut self, table: Table, key: &Bytes) {
        let Some((begin, stretch)) = self.at_or_before(table, key) else { return };
        if !is_before(key, &stretch.end) {
            return;
        }
        let (begin, end, cost) = (begin.clone(), stretch.end.clone(), stretch.cost / 2);
        self.splits += 1;
        self.stretches.remove(&(table, begin.clone()));
        if begin < *key {
            self.stretches.insert((table, begin), Stretch { end: Bytes::copy_from_slice(key), cost });
        }
        let behind = keys::after(key);
        if is_before(&behind, &end) {
            self.stretches.insert((table, behind), Stretch { end, cost });
        }
        self.forget_cheapest();
    }

    /// Adds a stretch, as one with those that it overlaps or touches.
    fn remember(&mut self, table: Table, (mut from, mut to): Span, mut cost: Duration) {
        if let Some((begin, stretch)) = self.at_or_before(table, &from)
            && (stretch.end.is_empty() || from <= stretch.end)
        {
            from = begin.clone();
        }
        while let Some(((of, begin), stretch)) = self.stretches.range((table, from.clone())..).next()
            && *of == table
            && (to.is_empty() || *begin <= to)
        {
            let key = (table, begin.clone());
            cost += stretch.cost;
            if stretch.end.is_empty() || is_before(&to, &stretch.end) {
                to = stretch.end.clone();
            }
            self.stretches.remove(&key);
        }
        let [from, to] = [from, to].map(|key| Bytes::copy_from_slice(&key));
        self.stretches.insert((table, from), Stretch { end: to, cost });
        self.forget_cheapest();
    }

    fn forget_cheapest(&mut self) {
        while self.stretches.len() > STRETCHES_MAX
            && let Some(key) = self.stretches.iter().min_by_key(|(_, stretch)| stretch.cost).map(|(key, _)| key.clone())
        {
            self.stretches.remove(&key);
        }
    }
}

/// Whether a key lies before an end.
fn is_before(key: &[u8], end: &[u8]) -> bool {
    end.is_empty() || key < end
}

fn contains((from, to): &Span, key: &[u8]) -> bool {
    *from <= *key && is_before(key, to)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const COST: Duration = Duration::from_millis(10);

    fn span(from: &'static str, to: &'static str) -> Span {
        (Bytes::from(from), Bytes::from(to))
    }

    /// Scans a span in which nothing is.
    fn remember(barren: &Barren, from: &'static str, to: &'static str) {
        barren.scan(Table::Entry, span(from, to)).remember(vec![(span(from, to), COST)]);
    }

    fn put(barren: &Barren, keys: &[&'static str]) {
        drop(barren.put(keys.iter().map(|key| (Table::Entry, Bytes::from(*key))).collect()));
    }

    fn looked_at(barren: &Barren, from: &'static str, to: &'static str) -> Vec<(String, String)> {
        let text = |key: Bytes| String::from_utf8(key.to_vec()).unwrap();
        let spans = barren.scan(Table::Entry, span(from, to)).spans();
        spans.into_iter().map(|(from, to)| (text(from), text(to))).collect()
    }

    fn check(barren: &Barren, (from, to): (&'static str, &'static str), expected: &[(&str, &str)]) {
        let expected: Vec<_> = expected.iter().map(|(from, to)| (from.to_string(), to.to_string())).collect();
        assert_eq!(looked_at(barren, from, to), expected, "from {from:?} to {to:?}");
    }

    #[test]
    fn what_was_found_barren_is_not_looked_at_again() {
        let barren = Barren::default();
        remember(&barren, "c", "f");
        check(&barren, ("", ""), &[("", "c"), ("f", "")]);
        check(&barren, ("d", "z"), &[("f", "z")]);
        check(&barren, ("d", "e"), &[]);
        check(&barren, ("a", "c"), &[("a", "c")]);
        check(&barren, ("f", ""), &[("f", "")]);
        remember(&barren, "x", "");
        check(&barren, ("", ""), &[("", "c"), ("f", "x")]);
        check(&barren, ("y", ""), &[]);
        assert_eq!(barren.scan(Table::Expiry, span("", "")).spans(), [span("", "")]);
    }

    #[test]
    fn a_row_that_is_put_is_looked_at() {
        let barren = Barren::default();
        remember(&barren, "c", "f");
        drop(barren.put(vec![(Table::Expiry, Bytes::from("e"))]));
        put(&barren, &["d"]);
        check(&barren, ("", ""), &[("", "c"), ("d", "d\0"), ("f", "")]);
        put(&barren, &["c", "f"]);
        check(&barren, ("", ""), &[("", "c\0"), ("d", "d\0"), ("f", "")]);
    }

    #[test]
    fn a_row_that_is_put_while_a_scan_is_under_way_is_in_no_stretch_of_it() {
        let barren = Barren::default();
        let scan = barren.scan(Table::Entry, span("", ""));
        put(&barren, &["d"]);
        let putting = barren.put(vec![(Table::Entry, Bytes::from("m"))]);
        scan.remember(vec![(span("c", "f"), COST), (span("g", "h"), COST), (span("l", "n"), COST)]);
        drop(putting);
        check(&barren, ("", ""), &[("", "g"), ("h", "")]);

        // One that began before the scan.
        let putting = barren.put(vec![(Table::Entry, Bytes::from("m"))]);
        let scan = barren.scan(Table::Entry, span("", ""));
        drop(putting);
        scan.remember(vec![(span("l", "n"), COST)]);
        check(&barren, ("", ""), &[("", "g"), ("h", "")]);

        let scan = barren.scan(Table::Entry, span("", ""));
        put(&barren, &vec!["a"; PUTS_MAX + 1]);
        scan.remember(vec![(span("l", "m"), COST)]);
        check(&barren, ("", ""), &[("", "g"), ("h", "")]);
    }

    #[test]
    fn a_scan_leaves_out_what_was_a_stretch_before_and_behind_its_snapshot() {
        let barren = Barren::default();
        remember(&barren, "c", "f");
        let scan = barren.scan(Table::Entry, span("", ""));
        remember(&barren, "k", "l");
        assert_eq!(scan.spans(), [span("", "c"), span("f", "")]);
        put(&barren, &["d"]);
        assert_eq!(scan.spans(), [span("", "")]);
    }

    #[test]
    fn no_more_than_so_many_are_remembered_and_the_dearest_stay() {
        let barren = Barren::default();
        remember(&barren, "a", "b");
        for i in 0..1000u32 {
            let scan = barren.scan(Table::Entry, span("", ""));
            let [from, to] = [2 * i, 2 * i + 1].map(|key| Bytes::from(format!("k{key:06}")));
            scan.remember(vec![((from, to), Duration::from_millis(1))]);
        }
        let state = barren.lock();
        assert_eq!((state.stretches.len(), state.scans.len()), (STRETCHES_MAX, 0));
        assert!(state.stretches.contains_key(&(Table::Entry, Bytes::from("a"))));
    }

    proptest! {
        /// Among the keys of one byte each, with a set of those that are not barren.
        #[test]
        fn what_is_looked_at_is_what_is_in_no_stretch(steps in proptest::collection::vec((any::<bool>(), 0u8..30, 1u8..12), 1..60)) {
            let barren = Barren::default();
            let mut fertile = [true; 64];
            for (put, at, length) in steps {
                if put {
                    drop(barren.put(vec![(Table::Entry, Bytes::copy_from_slice(&[at]))]));
                    fertile[usize::from(at)] = true;
                } else {
                    let scan = barren.scan(Table::Entry, span("", ""));
                    scan.remember(vec![((Bytes::copy_from_slice(&[at]), Bytes::copy_from_slice(&[at + length])), COST)]);
                    fertile[usize::from(at)..usize::from(at + length)].fill(false);
                }
                let spans = barren.scan(Table::Entry, span("", "")).spans();
                for key in 0u8..64 {
                    let looked_at = spans.iter().any(|span| contains(span, &[key]));
                    prop_assert_eq!(looked_at, fertile[usize::from(key)], "key {}", key);
                }
            }
        }
    }
}
