//! What removed and expired rows leave behind: the database goes over them, one by one, until they are compacted away, and refuses a read that meets too many.
//!
//! A read that met many says so. Then the stretches between the live rows that it found are removed as a whole, as of an hour ago: what a removed stretch covers is
//! no longer counted. A read that was refused is made in pieces.
//!
//! **Invariant:** what is removed here is older than [`SETTLED`], and was not there for a read that sees whatever was acknowledged.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::Semaphore;

use super::{
    place::Partition,
    settings::Consistency,
    statements::{Asking, Database, ReadError, Rows, Stretch, Write, unexpected},
};
use crate::{
    clock::{Clock, Moment},
    error::{Error, Result},
};

/// Far above any error of a clock, and above how long a write may take to its end.
const SETTLED: Duration = Duration::from_secs(3600);
/// A stretch that was seen to is not looked at again before: its dead rows may be too new to be removed.
const PAUSE: Duration = Duration::from_secs(600);
/// Stretches that are remembered so.
const REMEMBERED_MAX: usize = 4096;
/// Removing a stretch is worth it where it stands for so many dead rows.
const DEAD_PER_STRETCH_MIN: u64 = 4;
/// Stretches removed with one statement.
const STRETCHES_PER_WRITE: usize = 100;
/// Partitions that are seen to at a time.
const AT_ONCE: usize = 2;
/// Of the reads that were refused or took too long, so many are made anew at a time.
const SLOW_READS: usize = 4;
/// Reads that a refused one is made of at most.
const PIECES_MAX: usize = 4096;
/// What is refused is cut into so many pieces. What keys have in common is most of the way to where the dead rows are, and each step of it costs one more
/// refusal, which takes the database long; pieces where nothing is cost next to nothing.
const PIECES: usize = 16;
const PIECES_DEADLINE: Duration = Duration::from_secs(60);
/// Places where a partition has to be read in pieces.
const CUTS_MAX: usize = 1024;

pub(super) struct Dead {
    seen: Mutex<HashMap<(Partition, Stretch), Moment>>,
    /// Partitions that were too much for one read.
    hard: Mutex<HashMap<Partition, Hard>>,
    working: Arc<Semaphore>,
    /// For reads that the database has to go over much for.
    slowly: Semaphore,
}

struct Hard {
    since: Moment,
    /// Where reads were cut.
    cuts: BTreeSet<Bytes>,
}

/// The first rows of a stretch, and whether they are all.
pub(super) struct Found {
    pub(super) rows: Vec<(Bytes, Bytes)>,
    pub(super) whole: bool,
}

impl Default for Dead {
    fn default() -> Dead {
        Dead {
            seen: Mutex::default(),
            hard: Mutex::default(),
            working: Arc::new(Semaphore::new(AT_ONCE)),
            slowly: Semaphore::new(SLOW_READS),
        }
    }
}

impl Dead {
    /// The first `limit` rows of a stretch, however many dead ones are among them.
    pub(super) async fn read(
        &self,
        database: &Arc<Database>,
        partition: &Partition,
        stretch: Stretch,
        limit: usize,
    ) -> Result<Found> {
        if self.was_hard(&*database.link.clock, partition) {
            return self.read_in_pieces(database, partition, stretch, limit).await;
        }
        match database.read(partition, &stretch, limit, Asking::Usually).await {
            Ok(read) => {
                let whole = read.rows.len() < limit;
                self.tidy_later(database, partition, &stretch, &read, whole);
                Ok(Found { rows: read.rows, whole })
            }
            // One after the other, what is too much at once is done.
            Err(ReadError::TooManyDead(_) | ReadError::TooSlow(_)) => {
                self.read_in_pieces(database, partition, stretch, limit).await
            }
            Err(ReadError::Other(error)) => Err(error),
        }
    }

    /// Cuts the stretch until each piece can be read, and removes what is dead in it.
    async fn read_in_pieces(
        &self,
        database: &Arc<Database>,
        partition: &Partition,
        stretch: Stretch,
        limit: usize,
    ) -> Result<Found> {
        let clock = &*database.link.clock;
        let began = clock.now();
        let mut rows = Vec::new();
        let mut pieces = self.pieces(clock, partition, &stretch);
        pieces.reverse();
        for at in 0..PIECES_MAX {
            let Some(piece) = pieces.pop() else { return Ok(Found { rows, whole: true }) };
            let wanted = limit - rows.len();
            let permit = self.slowly.acquire().await.expect("the semaphore is never closed");
            let read = database.read(partition, &piece, wanted, Asking::Patiently).await;
            drop(permit);
            match read {
                Ok(mut read) => {
                    let whole = read.rows.len() < wanted;
                    // Pieces of nothing need not be apart next time, but dead rows that were too few to be told of add up.
                    if !read.rows.is_empty() || read.dead.is_some() || at.is_multiple_of(PIECES) {
                        self.remember_cut(partition, &piece.from);
                    }
                    self.tidy_now(database, partition, &piece, &read, whole).await;
                    rows.append(&mut read.rows);
                    if !whole {
                        return Ok(Found { rows, whole: false });
                    }
                }
                Err(ReadError::Other(error) | ReadError::TooSlow(error)) => return Err(error),
                Err(ReadError::TooManyDead(error)) => {
                    if clock.now().since(began) > PIECES_DEADLINE {
                        return Err(error);
                    }
                    let cuts = cuts(&piece.from, piece.to.as_deref());
                    if cuts.is_empty() {
                        return Err(error);
                    }
                    pieces.extend(cut(piece, cuts).into_iter().rev());
                }
            }
        }
        Err(Error::unavailable(format!(
            "scanning the table {} in Cassandra: {PIECES_MAX} reads did not get past the rows that were removed there; compact the table",
            partition.family.name()
        )))
    }

    /// Whether the partition had to be read in pieces lately.
    fn was_hard(&self, clock: &dyn Clock, partition: &Partition) -> bool {
        let mut hard = self.hard.lock().expect("no holder of this lock can panic");
        let fresh = hard.get(partition).is_some_and(|known| clock.now().since(known.since) < PAUSE);
        if !fresh {
            hard.remove(partition);
        }
        fresh
    }

    /// The stretch, cut where the partition was cut before.
    fn pieces(&self, clock: &dyn Clock, partition: &Partition, stretch: &Stretch) -> Vec<Stretch> {
        let mut hard = self.hard.lock().expect("no holder of this lock can panic");
        if hard.len() >= REMEMBERED_MAX {
            hard.clear();
        }
        let known = hard.entry(partition.clone()).or_insert_with(|| Hard { since: clock.now(), cuts: BTreeSet::new() });
        let within = |at: &&Bytes| **at > stretch.from && stretch.to.as_ref().is_none_or(|to| *at < to);
        let cuts: Vec<Bytes> = known.cuts.iter().filter(within).cloned().collect();
        cut(stretch.clone(), cuts)
    }

    fn remember_cut(&self, partition: &Partition, at: &Bytes) {
        let mut hard = self.hard.lock().expect("no holder of this lock can panic");
        if let Some(known) = hard.get_mut(partition).filter(|known| known.cuts.len() < CUTS_MAX) {
            known.cuts.insert(at.clone());
        }
    }

    /// Removes what is dead between the rows that were read, in the background, if that is worth it.
    fn tidy_later(&self, database: &Arc<Database>, partition: &Partition, stretch: &Stretch, read: &Rows, whole: bool) {
        let Ok(permit) = Arc::clone(&self.working).try_acquire_owned() else { return };
        let Some(gaps) = self.worth(database, partition, stretch, read, whole) else { return };
        let (database, partition, stretch, limit) =
            (Arc::clone(database), partition.clone(), stretch.clone(), read.rows.len() + usize::from(whole));
        tokio::spawn(async move {
            tidy(&database, &partition, &stretch, limit, gaps).await;
            drop(permit);
        });
    }

    async fn tidy_now(
        &self,
        database: &Arc<Database>,
        partition: &Partition,
        stretch: &Stretch,
        read: &Rows,
        whole: bool,
    ) {
        if let Some(gaps) = self.worth(database, partition, stretch, read, whole) {
            tidy(database, partition, stretch, read.rows.len() + usize::from(whole), gaps).await;
        }
    }

    /// The gaps between the rows, if they hold enough that is dead and were not seen to lately.
    fn worth(
        &self,
        database: &Database,
        partition: &Partition,
        stretch: &Stretch,
        read: &Rows,
        whole: bool,
    ) -> Option<Vec<Stretch>> {
        let dead = read.dead?;
        let gaps = gaps(stretch, &read.rows, whole);
        let worth = !gaps.is_empty() && dead >= gaps.len() as u64 * DEAD_PER_STRETCH_MIN;
        (worth && self.first_in_a_while(&*database.link.clock, partition, stretch)).then_some(gaps)
    }

    fn first_in_a_while(&self, clock: &dyn Clock, partition: &Partition, stretch: &Stretch) -> bool {
        remember(
            &mut self.seen.lock().expect("no holder of this lock can panic"),
            (partition.clone(), stretch.clone()),
            clock.now(),
        )
    }
}

/// A stretch in pieces, cut at keys within it.
fn cut(stretch: Stretch, at: Vec<Bytes>) -> Vec<Stretch> {
    let ends = at.iter().cloned().map(Some).chain([stretch.to]);
    let starts = std::iter::once(stretch.from).chain(at.iter().cloned());
    starts.zip(ends).map(|(from, to)| Stretch { from, to }).collect()
}

/// Whether this is the first time in a while.
fn remember<K: Eq + Hash>(seen: &mut HashMap<K, Moment>, what: K, now: Moment) -> bool {
    if seen.get(&what).is_some_and(|last| now.since(*last) < PAUSE) {
        return false;
    }
    if seen.len() >= REMEMBERED_MAX {
        seen.retain(|_, last| now.since(*last) < PAUSE);
    }
    if seen.len() >= REMEMBERED_MAX {
        seen.clear();
    }
    seen.insert(what, now);
    true
}

/// Where nothing was between the first rows of a stretch; behind them only where they are all.
fn gaps(stretch: &Stretch, rows: &[(Bytes, Bytes)], whole: bool) -> Vec<Stretch> {
    let mut gaps = Vec::with_capacity(rows.len() + 1);
    let mut from = stretch.from.clone();
    for (key, _) in rows {
        if from < *key {
            gaps.push(Stretch { from, to: Some(key.clone()) });
        }
        from = after(key);
    }
    if whole && stretch.to.as_ref().is_none_or(|to| from < *to) {
        gaps.push(Stretch { from, to: stretch.to.clone() });
    }
    gaps
}

async fn tidy(database: &Database, partition: &Partition, stretch: &Stretch, limit: usize, mut gaps: Vec<Stretch>) {
    let done = async {
        // Taken before anything is read anew: what is put from now on is newer.
        let timestamp = settled(database).await?;
        if database.link.settings.consistency == Consistency::LocalQuorum {
            // What was acknowledged elsewhere may not have come here in an hour.
            let read = database.read(partition, stretch, limit, Asking::All).await.map_err(ReadError::into_error)?;
            gaps = self::gaps(stretch, &read.rows, read.rows.len() < limit);
        }
        let remove = |gap: &Stretch| Write::RemoveStretch { from: gap.from.clone(), to: gap.to.clone(), timestamp };
        for some in gaps.chunks(STRETCHES_PER_WRITE) {
            let writes: Vec<Write> = some.iter().map(remove).collect();
            database.write(partition, &writes).await?;
        }
        Ok::<_, Error>(())
    };
    match done.await {
        Ok(()) => tracing::debug!(
            table = partition.family.name(),
            stretches = gaps.len(),
            "removed dead stretches in Cassandra as a whole"
        ),
        Err(error) => {
            tracing::warn!(%error, "dead stretches in Cassandra stay for now; scans that meet them are slower")
        }
    }
}

/// [`SETTLED`] ago, in microseconds, by the slower of two clocks: ours and the database's.
async fn settled(database: &Database) -> Result<i64> {
    let doing = || "asking Cassandra for its time".to_owned();
    let theirs = database.link.session.query_unpaged("SELECT toUnixTimestamp(now()) FROM system.local", ()).await;
    let theirs = theirs.map_err(|e| Error::unavailable(doing()).with_source(e))?;
    let rows = theirs.into_rows_result().map_err(|e| unexpected(doing(), e))?;
    let (theirs,) = rows.single_row::<(i64,)>().map_err(|e| unexpected(doing(), e))?;
    let ours = i64::try_from(database.link.clock.wall_millis()).unwrap_or(0);
    let settled = i64::try_from(SETTLED.as_millis()).expect("an hour is short");
    Ok((ours.min(theirs) - settled) * 1000)
}

/// The first key after this one.
pub(super) fn after(key: &[u8]) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.put_slice(key);
    next.put_u8(0);
    next.freeze()
}

/// Keys that cut a stretch into [`PIECES`], as if keys were fractions, or fewer where there are no more between.
fn cuts(from: &[u8], to: Option<&[u8]>) -> Vec<Bytes> {
    let mut cuts = Vec::with_capacity(PIECES - 1);
    while cuts.len() + 1 < PIECES {
        let starts = std::iter::once(from).chain(cuts.iter().map(|cut: &Bytes| &cut[..]));
        let ends = cuts.iter().map(|cut| Some(&cut[..])).chain([to]);
        let between: Vec<Bytes> = starts.zip(ends).filter_map(|(from, to)| middle(from, to)).collect();
        if between.is_empty() {
            break;
        }
        cuts.extend(between);
        cuts.sort_unstable();
    }
    cuts
}

/// A key about halfway between two, as if they were fractions; `None` where there is none.
fn middle(from: &[u8], to: Option<&[u8]>) -> Option<Bytes> {
    let digits = from.len().max(to.map_or(0, <[u8]>::len)) + 1;
    let digit = |key: &[u8], at: usize| u16::from(key.get(at).copied().unwrap_or(0));
    // The sum, with the whole ones in front.
    let mut sum = vec![0u16; digits + 1];
    let mut carry = 0;
    for at in (0..digits).rev() {
        let digit = digit(from, at) + to.map_or(0, |to| digit(to, at)) + carry;
        sum[at + 1] = digit & 0xff;
        carry = digit >> 8;
    }
    sum[0] = carry + u16::from(to.is_none());
    let mut half = Vec::with_capacity(digits);
    let mut rest = sum[0] & 1;
    for digit in &sum[1..] {
        let both = rest << 8 | digit;
        half.push(u8::try_from(both >> 1 & 0xff).expect("it is one byte"));
        rest = both & 1;
    }
    while half.last() == Some(&0) {
        half.pop();
    }
    let between = half[..] > *from && to.is_none_or(|to| half[..] < *to);
    between.then(|| Bytes::from(half))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stretch(from: &'static str, to: Option<&'static str>) -> Stretch {
        Stretch { from: Bytes::from(from), to: to.map(Bytes::from) }
    }

    #[test]
    fn gaps_lie_between_the_rows_that_were_found() {
        let rows = |keys: &[&'static str]| keys.iter().map(|key| (Bytes::from(*key), Bytes::new())).collect::<Vec<_>>();
        let check = |of: Stretch, keys: &[&'static str], whole, expected: &[Stretch]| {
            assert_eq!(gaps(&of, &rows(keys), whole), expected);
        };
        check(stretch("a", Some("z")), &[], true, &[stretch("a", Some("z"))]);
        check(stretch("a", None), &["a", "b"], false, &[stretch("a\0", Some("b"))]);
        check(stretch("", None), &["b"], true, &[stretch("", Some("b")), stretch("b\0", None)]);
        check(stretch("a", Some("a\0\0")), &["a", "a\0"], true, &[]);
    }

    #[test]
    fn a_stretch_is_seen_to_once_in_a_while() {
        let mut seen = HashMap::new();
        let at = |seconds| Moment::ZERO + Duration::from_secs(seconds);
        assert!(remember(&mut seen, "a", at(0)));
        assert!(!remember(&mut seen, "a", at(599)));
        assert!(remember(&mut seen, "a", at(600)));
        let mut seen: HashMap<usize, Moment> = HashMap::new();
        (0..2 * REMEMBERED_MAX).for_each(|what| _ = remember(&mut seen, what, at(0)));
        assert!(seen.len() <= REMEMBERED_MAX);
    }

    proptest! {
        #[test]
        fn the_middle_is_between(one: Vec<u8>, other: Option<Vec<u8>>) {
            let (from, to) = match other {
                Some(other) if other < one => (other, Some(one)),
                other => (one, other),
            };
            if let Some(middle) = middle(&from, to.as_deref()) {
                prop_assert!(middle > from && to.is_none_or(|to| middle < to));
            } else {
                // Only where they differ in zeros alone.
                let to = to.expect("there is always something before the end");
                prop_assert!(to[from.len().min(to.len())..].iter().all(|byte| *byte == 0));
            }
        }
    }

    #[test]
    fn cutting_comes_down_to_any_key_in_two_steps_a_byte() {
        let wanted = b"user:0000001234";
        let (mut from, mut to) = (Bytes::new(), None);
        for _ in 0..2 * wanted.len() {
            let cuts = cuts(&from, to.as_deref());
            assert_eq!(cuts.len(), PIECES - 1);
            assert!(cuts.is_sorted());
            let at = cuts.partition_point(|cut| cut[..] <= wanted[..]);
            to = cuts.get(at).cloned().or(to);
            from = at.checked_sub(1).map_or(from, |before| cuts[before].clone());
        }
        assert_eq!((&from[..], to.as_deref()), (&wanted[..], Some(&b"user:0000001235"[..])));
        assert_eq!(cuts(b"a", Some(b"a\0")), [] as [Bytes; 0]);
    }
}
