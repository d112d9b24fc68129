//! Copies what a store holds into another one, of either kind, while nobody uses them.
//!
//! What arrives is what users see: each entry with its value, metadata, version and expiration, namespaces, accounts and tokens among them; and what the next
//! origin must know, so that versions and value ids go on above those that there are, and cursors stay valid. What stays behind is of no use elsewhere: expired
//! entries, the records of deletions, the garbage of removed namespaces, the purge log, what was intended and left undone.
//!
//! How far it has come is noted in the target, behind what has arrived. So after whatever end it goes on where it was, over the same source: what it does
//! again, it does with the same value ids. Until it has ended no origin starts on the target. At the end both stores are read and compared, entry by entry.
//!
//! It holds some portions of a few MiB at a time, whatever the stores hold, and 16 bytes for each namespace.

mod export;
mod facts;
mod patient;
mod reader;
#[cfg(test)]
mod tests;

use std::{cmp::Ordering, collections::VecDeque, sync::Arc, time::Duration};

use futures_util::stream::{BoxStream, StreamExt as _, TryStreamExt as _};

pub(crate) use self::facts::check_whole;
pub use self::{
    export::{Export, Hash},
    facts::Phase,
};
use self::{
    facts::{Facts, Position},
    patient::Patient,
    reader::{Entry, Portion, Reader},
};
use super::{
    Batch, Durability, Store, Table,
    keys::{self, Place, Record, ValueId},
};
use crate::{
    clock::Clock,
    error::{Error, Result},
    kv::{Key, Namespace, NamespaceId, Version},
};

/// Portions that are on their way into the target at a time, and that are hashed of each store.
const PORTIONS_WRITTEN_AT_ONCE: usize = 4;
const PORTIONS_HASHED_AT_ONCE: usize = 2;
/// How often it is noted how far the copy has come: so many are done again at most, and those on their way.
const PORTIONS_PER_NOTE: u64 = 16;

/// What is to be known of stores that origins share.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// After which an origin that is silent has died.
    pub lease: Duration,
    /// How long a shared target remembers what has expired.
    pub kept: Duration,
}

/// What a copy is at.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    pub phase: Phase,
    pub namespaces_done: usize,
    pub namespaces: usize,
    /// Of this phase, also from before an interruption.
    pub entries: u64,
    pub bytes: u64,
    /// How many there are, where that is known.
    pub of: Option<u64>,
}

/// Is told of each step.
pub type Told<'a> = &'a mut (dyn FnMut(Progress) + Send);

/// Copies one store into another, or goes on with that. The answer is what both hold then, as of when they were compared; that of a copy that had
/// ended before is what it was then.
pub async fn copy(
    source: Arc<dyn Store>,
    target: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    settings: Settings,
    told: Told<'_>,
) -> Result<Export> {
    let (source, target) = (Patient::shared(source, &clock), Patient::shared(target, &clock));
    check_whole(&*source).await?;
    let found = Facts::of_unused(&*source, &*clock, settings.lease, "the source").await?;
    let namespaces = namespaces(&source).await?;
    let (noted, revision) = Position::read(&*target).await?;
    let mut copy = Copy { source, target, clock, settings, namespaces, revision, portions: 0 };
    let mut position = match noted {
        Some(position) => {
            if position.source != found.identity() {
                return Err(Error::bad_request(match position.phase {
                    Phase::Done => {
                        "the target has entries already, from another copy: give a new folder, or a keyspace that is not there yet"
                    }
                    _ => {
                        "another copy into the target was begun, from another source or from this one before it was used again: let that one end, or give a new target"
                    }
                }));
            }
            if position.phase == Phase::Done {
                return Ok(position.export);
            }
            copy.check_target().await?;
            position
        }
        None => copy.begin(&found).await?,
    };
    facts::count_start(&*copy.target, position.starts).await?;
    if position.phase == Phase::Copying {
        copy.fill(&mut position, told).await?;
        let last = found.last.max(Version::from_u64(position.highest));
        facts::hand_over(&*copy.target, last, found.cursor_secret.as_ref()).await?;
        position.copied = Some(position.export.entries);
        position = copy.turn_to(position, Phase::Verifying, Export::default()).await?;
    }
    copy.verify(&mut position, told).await?;
    if Facts::read(&*copy.source).await? != found {
        return Err(Error::bad_request(
            "the source was used while it was copied: begin again, with a new target, and let no origin start meanwhile",
        ));
    }
    copy.check_target().await?;
    let export = position.export;
    copy.turn_to(position, Phase::Done, export).await?;
    Ok(export)
}

/// What a store holds that nobody uses.
pub async fn export(
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    settings: Settings,
    told: Told<'_>,
) -> Result<Export> {
    let store = Patient::shared(store, &clock);
    check_whole(&*store).await?;
    let found = Facts::of_unused(&*store, &*clock, settings.lease, "the store").await?;
    let namespaces = namespaces(&store).await?;
    let at = clock.wall_millis() / 1000;
    let mut export = Export::default();
    for (done, namespace) in namespaces.iter().enumerate() {
        let mut read = Hashed::of(&store, *namespace, None, at);
        while read.fill().await? {
            for seen in read.ahead.drain(..) {
                export.add(seen.length, &seen.digest);
            }
            told(Progress {
                phase: Phase::Verifying,
                namespaces_done: done,
                namespaces: namespaces.len(),
                entries: export.entries,
                bytes: export.bytes,
                of: None,
            });
        }
    }
    match Facts::read(&*store).await? {
        after if after == found => Ok(export),
        _ => {
            Err(Error::bad_request("the store was used while it was read: stop the origins on it, and run this again"))
        }
    }
}

/// All namespaces that exist, and last the reserved one: so the target says what it has only once it has it.
async fn namespaces(store: &Arc<dyn Store>) -> Result<Vec<NamespaceId>> {
    let mut namespaces = Vec::new();
    let mut portions = Reader::new(store, NamespaceId::RESERVED, None, 0).portions();
    while let Some(portion) = portions.try_next().await? {
        for entry in portion.entries.iter().filter(|entry| entry.key.as_bytes().starts_with(b"namespace/")) {
            let record = entry.record.metadata.as_deref().unwrap_or_default();
            let namespace: Namespace = serde_json::from_slice(record)
                .map_err(|e| Error::internal(format!("reading the record {:?}", entry.key)).with_source(e))?;
            namespaces.push(namespace.id);
        }
    }
    namespaces.sort_unstable();
    namespaces.dedup();
    namespaces.push(NamespaceId::RESERVED);
    Ok(namespaces)
}

struct Copy {
    source: Arc<dyn Store>,
    target: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    settings: Settings,
    namespaces: Vec<NamespaceId>,
    /// Of what is noted in the target.
    revision: u64,
    /// That this process has gone through.
    portions: u64,
}

impl Copy {
    async fn begin(&mut self, found: &Facts) -> Result<Position> {
        if found.starts == 0 {
            return Err(Error::bad_request("there is nothing to copy: no origin has ever used the source"));
        }
        let target = self.check_target().await?;
        facts::check_empty(&*self.target, &self.namespaces).await?;
        let position = Position {
            source: found.identity(),
            starts: target.starts + 1,
            phase: Phase::Copying,
            at: self.seconds(),
            namespace: None,
            after: None,
            values: 0,
            highest: 0,
            export: Export::default(),
            copied: None,
        };
        position.note(&*self.target, &mut self.revision, Durability::Synced).await?;
        Ok(position)
    }

    /// An error if anybody has the target in use, or may have left something undone in it.
    async fn check_target(&self) -> Result<Facts> {
        let found = Facts::of_unused(&*self.target, &*self.clock, self.settings.lease, "the target").await?;
        if found.has_members() {
            return Err(Error::bad_request(
                "an origin died on the target: start one there and stop it, which tidies up, or give a new target",
            ));
        }
        Ok(found)
    }

    async fn turn_to(&mut self, position: Position, phase: Phase, export: Export) -> Result<Position> {
        let position = Position { phase, at: self.seconds(), namespace: None, after: None, export, ..position };
        position.note(&*self.target, &mut self.revision, Durability::Synced).await?;
        Ok(position)
    }

    fn seconds(&self) -> u64 {
        self.clock.wall_millis() / 1000
    }

    /// The namespaces that are left, each with the key behind which to go on.
    fn left(&self, position: &Position) -> Result<Vec<(usize, NamespaceId, Option<String>)>> {
        let first = match position.namespace {
            None => 0,
            Some(namespace) => self.namespaces.iter().position(|one| *one == namespace).ok_or_else(|| {
                Error::internal(format!("the copy was in the namespace {namespace}, which the source no longer has"))
            })?,
        };
        let after = |at: usize| if at == first { position.after.clone() } else { None };
        Ok((first..self.namespaces.len()).map(|at| (at, self.namespaces[at], after(at))).collect())
    }

    /// Everything up to this row is done. Notes it now and then.
    async fn went_through(&mut self, position: &mut Position, at: usize, last: &Key, told: Told<'_>) -> Result<()> {
        position.namespace = Some(self.namespaces[at]);
        position.after = Some(last.as_str().to_owned());
        self.portions += 1;
        told(Progress {
            phase: position.phase,
            namespaces_done: at,
            namespaces: self.namespaces.len(),
            entries: position.export.entries,
            bytes: position.export.bytes,
            of: position.copied,
        });
        if self.portions.is_multiple_of(PORTIONS_PER_NOTE) {
            position.note(&*self.target, &mut self.revision, Durability::Buffered).await?;
        }
        Ok(())
    }

    /// Puts all entries of the source into the target, from the position on.
    async fn fill(&mut self, position: &mut Position, told: Told<'_>) -> Result<()> {
        let mut minted = position.values;
        let first = keys::first_value(position.starts).0;
        for (at, namespace, after) in self.left(position)? {
            let filling = Filling {
                source: Arc::clone(&self.source),
                target: Arc::clone(&self.target),
                namespace,
                // An embedded store ignores it.
                stamp: Version::first_of(self.clock.wall_millis(), 0),
                kept: self.target.agreement().map(|_| self.settings.kept),
            };
            // Ids are minted as portions are read, in their order: so whatever is done again gets the same.
            let portions = Reader::new(&self.source, namespace, after.as_deref(), position.at).portions();
            let mut filled = portions
                .map(|portion| {
                    let portion = portion.map(|portion| {
                        let ids = portion.entries.iter().map(|entry| match entry.record.place {
                            Place::Chunked(_) => {
                                minted += 1;
                                Some(ValueId(first + minted - 1))
                            }
                            _ => None,
                        });
                        (ids.collect::<Vec<_>>(), portion)
                    });
                    let (filling, minted) = (&filling, minted);
                    async move {
                        let (ids, portion) = portion?;
                        filling.put(&portion, &ids).await?;
                        Ok::<_, Error>((minted, portion))
                    }
                })
                .buffered(PORTIONS_WRITTEN_AT_ONCE);
            while let Some((minted, portion)) = filled.try_next().await? {
                position.values = minted;
                position.highest = position.highest.max(portion.highest.as_u64());
                position.export.entries += portion.entries.len() as u64;
                position.export.bytes += portion.entries.iter().map(|entry| entry.record.length).sum::<u64>();
                let (_, last) = keys::parse_entry(&portion.last)?;
                self.went_through(position, at, &last, &mut *told).await?;
            }
        }
        Ok(())
    }

    /// Reads both stores from the position on, and compares what they hold. An error names the first entry that they don't have in common.
    async fn verify(&mut self, position: &mut Position, told: Told<'_>) -> Result<()> {
        for (at, namespace, after) in self.left(position)? {
            let hashed = |store| Hashed::of(store, namespace, after.as_deref(), position.at);
            let (mut ours, mut theirs) = (hashed(&self.source), hashed(&self.target));
            loop {
                let (more, others) = futures_util::try_join!(ours.fill(), theirs.fill())?;
                if !more && !others {
                    break;
                }
                let mut last = None;
                while let Some(key) = self.compare(&mut ours, &mut theirs, namespace, &mut position.export)? {
                    last = Some(key);
                }
                if let Some(last) = last {
                    self.went_through(position, at, &last, &mut *told).await?;
                }
            }
        }
        Ok(())
    }

    /// Compares what comes next in both, as far as they have been read, and returns its key.
    fn compare(
        &self,
        source: &mut Hashed,
        target: &mut Hashed,
        namespace: NamespaceId,
        export: &mut Export,
    ) -> Result<Option<Key>> {
        let order = match (source.ahead.front(), target.ahead.front()) {
            (Some(one), Some(other)) => one.key.cmp(&other.key),
            (Some(_), None) if target.whole => Ordering::Less,
            (None, Some(_)) if source.whole => Ordering::Greater,
            _ => return Ok(None),
        };
        let differ = |key: &Key, how: &str| {
            Err(Error::internal(format!(
                "the copy is not what was copied: the key {key:?} in the namespace {namespace} {how}"
            )))
        };
        let (one, other) = match order {
            Ordering::Equal => (source.ahead.pop_front(), target.ahead.pop_front()),
            Ordering::Less => (source.ahead.pop_front(), None),
            Ordering::Greater => (None, target.ahead.pop_front()),
        };
        match (one, other) {
            (Some(one), Some(other)) if one.version != other.version => {
                differ(&one.key, &format!("has the version {} there, not {}", other.version, one.version))
            }
            (Some(one), Some(other)) if one.digest != other.digest => {
                differ(&one.key, "has another value, metadata or expiration there")
            }
            (Some(one), Some(_)) => {
                export.add(one.length, &one.digest);
                Ok(Some(one.key))
            }
            // A shared store drops by itself what has expired.
            (Some(seen), None) | (None, Some(seen)) if seen.expiration.is_some_and(|at| at <= self.seconds()) => {
                Ok(Some(seen.key))
            }
            (Some(one), None) => differ(&one.key, "is not there"),
            (None, Some(other)) => differ(&other.key, "is there, and not in the source"),
            (None, None) => Ok(None),
        }
    }
}

/// What puts the entries of a namespace into the target.
struct Filling {
    source: Arc<dyn Store>,
    target: Arc<dyn Store>,
    namespace: NamespaceId,
    /// The version of rows that have none of their own.
    stamp: Version,
    /// Of a shared target.
    kept: Option<Duration>,
}

impl Filling {
    /// Puts a portion's entries, with these ids for the values that live apart.
    async fn put(&self, portion: &Portion, ids: &[Option<ValueId>]) -> Result<()> {
        let mut batch = Batch::at(self.stamp);
        for (entry, id) in portion.entries.iter().zip(ids) {
            let Record { expiration, .. } = entry.record;
            let until = expiration.zip(self.kept).map(|(expiration, kept)| expiration.saturating_add(kept.as_secs()));
            let mut record = entry.record.clone();
            if let Some(id) = *id {
                record.place = Place::Chunked(id);
                self.put_long(entry, id, until).await?;
                for (number, chunk) in (0..).zip(&entry.chunks) {
                    batch.put_until(Table::Chunk, keys::chunk(id, number), chunk.clone(), until);
                }
            }
            if let Some(expiration) = expiration
                && self.kept.is_none()
            {
                batch.put(Table::Expiry, keys::expiry(expiration, self.namespace, entry.key.as_bytes()), "");
            }
            batch.version = record.version;
            batch.put_until(Table::Entry, entry.row.clone(), record.encode(), until);
            batch.version = self.stamp;
        }
        self.target.commit(batch, Durability::Buffered).await
    }

    async fn put_long(&self, entry: &Entry, id: ValueId, until: Option<u64>) -> Result<()> {
        let mut pieces = entry.pieces(&self.source, self.namespace);
        while let Some((first, piece)) = pieces.try_next().await? {
            let mut batch = Batch::at(self.stamp);
            for (number, chunk) in (first..).zip(piece) {
                batch.put_until(Table::Chunk, keys::chunk(id, number), chunk, until);
            }
            self.target.commit(batch, Durability::Buffered).await?;
        }
        Ok(())
    }
}

/// An entry as it is compared with another store's.
struct Seen {
    key: Key,
    version: Version,
    expiration: Option<u64>,
    length: u64,
    digest: [u8; 32],
}

/// The entries of a namespace, hashed.
struct Hashed {
    portions: BoxStream<'static, Result<Vec<Seen>>>,
    /// What has been read, and not been looked at.
    ahead: VecDeque<Seen>,
    /// Whether there are no more than those.
    whole: bool,
}

impl Hashed {
    fn of(store: &Arc<dyn Store>, namespace: NamespaceId, after: Option<&str>, at: u64) -> Hashed {
        let store = Arc::clone(store);
        let portions = Reader::new(&store, namespace, after, at).portions();
        let portions = portions.map(move |portion| {
            let store = Arc::clone(&store);
            async move {
                let mut all = Vec::new();
                for entry in portion?.entries {
                    let digest = entry.digest(&store, namespace).await?;
                    let Record { version, expiration, length, .. } = entry.record;
                    all.push(Seen { key: entry.key, version, expiration, length, digest });
                }
                Ok(all)
            }
        });
        let portions = portions.buffered(PORTIONS_HASHED_AT_ONCE).boxed();
        Hashed { portions, ahead: VecDeque::new(), whole: false }
    }

    /// Sees to it that something is ahead, unless there is nothing more.
    async fn fill(&mut self) -> Result<bool> {
        while self.ahead.is_empty() && !self.whole {
            match self.portions.try_next().await? {
                Some(portion) => self.ahead.extend(portion),
                None => self.whole = true,
            }
        }
        Ok(!self.ahead.is_empty())
    }
}
