//! The store in Apache Cassandra, shared by all origins that name the same keyspace.
//!
//! Promises what the contract does of a shared store: of all changes of a row the one with the greatest version stands, since the version is the timestamp of the
//! row's one cell; rows go by themselves a minute after they expire; a commit may be repeated. Distribution, replication and repair are the database's.
//!
//! Does not know what the rows mean, but for how they are spread (`cassandra/place.rs`). Each read and each write is confirmed by more than half of the copies, so
//! that what was acknowledged is seen, whatever single node dies.

mod agreed;
mod dead;
mod place;
mod scan;
mod schema;
mod session;
mod settings;
mod statements;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{
    StreamExt as _,
    stream::{FuturesOrdered, FuturesUnordered},
};

use self::{
    agreed::Control,
    dead::Dead,
    place::{Partition, Spread},
    statements::{Database, Link, Stretch, Write},
};
use super::{Agreed, Agreement, Batch, Durability, Replaced, RowChange, Store, Table};
use crate::{
    clock::Clock,
    error::{Error, Result},
};

pub use schema::{Report, check, migrate};
pub use settings::{CassandraSettings, Consistency, Login, Password, Tls};

/// How long a row outlives its expiration: more than clocks differ by.
const EXPIRY_MARGIN: Duration = Duration::from_secs(60);
/// The longest that a database of whatever version lets a row live.
const LIFE_MAX: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
/// The last moment (Unix seconds) at which a cell may expire in databases before Cassandra 5: they count in 31 bits. What expires later stays.
const EXPIRY_MAX: u64 = (1 << 31) - 1 - 24 * 3600;
/// Rows of one partition that are written together have so many bytes at most, unless one alone has more.
const WRITE_BYTES_MAX: usize = 96 * 1024;
/// And so many rows.
const WRITE_ROWS_MAX: usize = 100;
/// Partitions that one commit writes to at a time, and rows that one `get_many` reads.
const AT_ONCE: usize = 64;
/// Namespaces whose number of buckets is remembered.
const BUCKETS_REMEMBERED_MAX: usize = 100_000;
/// Origins whose last partition of intents is remembered.
const INTENTS_REMEMBERED_MAX: usize = 1000;
/// How long the note on a partition of intents outlives what it is about, so that it need not be renewed with each of them.
const NOTE_MARGIN: u64 = 3600;

pub struct CassandraStore {
    database: Arc<Database>,
    control: Control,
    dead: Dead,
    /// The number of buckets of each namespace that was asked for.
    buckets: Mutex<HashMap<Bytes, u16>>,
    /// The last partition of intents that was noted, for each origin.
    noted: Mutex<HashMap<Bytes, Noted>>,
    expiry_margin: Duration,
}

#[derive(Clone, Copy)]
struct Noted {
    bucket: i64,
    /// Unix seconds; `None` for ever.
    until: Option<u64>,
}

impl CassandraStore {
    /// Reaches the database, and makes keyspace and tables that are not there.
    pub async fn connect(settings: CassandraSettings, clock: Arc<dyn Clock>) -> Result<CassandraStore> {
        let link = Arc::new(Link::new(session::connect(&settings).await?, settings, clock));
        schema::ensure(&link).await?;
        let control = Control::prepare(Arc::clone(&link)).await?;
        schema::ensure_version(&control).await?;
        let database = Arc::new(Database::prepare(link).await?);
        Ok(CassandraStore {
            database,
            control,
            dead: Dead::default(),
            buckets: Mutex::default(),
            noted: Mutex::default(),
            expiry_margin: EXPIRY_MARGIN,
        })
    }

    #[cfg(test)]
    pub(super) fn dropping_after(self, expiry_margin: Duration) -> CassandraStore {
        CassandraStore { expiry_margin, ..self }
    }

    /// How a prefix' rows are spread; `None` where it can't have any yet.
    async fn spread(&self, table: Table, prefix: &[u8]) -> Result<Option<Spread>> {
        if let Some(spread) = place::spread(table) {
            return Ok(Some(spread));
        }
        if let Some(buckets) = self.remembered(prefix) {
            return Ok(Some(Spread::Hashed { buckets }));
        }
        let agreed = self.control.read_settled(&buckets_name(prefix)).await?;
        match agreed.revision {
            0 => Ok(None),
            _ => self.remember(prefix, &agreed.value).map(Some),
        }
    }

    /// How a prefix' rows are spread, which is agreed on with its first change.
    async fn spread_for_change(&self, table: Table, prefix: &[u8]) -> Result<Spread> {
        if let Some(spread) = self.spread(table, prefix).await? {
            return Ok(spread);
        }
        let name = buckets_name(prefix);
        let wanted = Bytes::from(self.database.link.settings.buckets.to_string());
        let value = match self.control.replace(&name, 0, &wanted).await? {
            Replaced::Done => wanted,
            Replaced::Overtaken(agreed) => agreed.value,
        };
        self.remember(prefix, &value)
    }

    fn remembered(&self, prefix: &[u8]) -> Option<u16> {
        self.buckets.lock().expect("no holder of this lock can panic").get(prefix).copied()
    }

    fn remember(&self, prefix: &[u8], value: &Bytes) -> Result<Spread> {
        let number = std::str::from_utf8(value).ok().and_then(|text| text.parse::<u16>().ok());
        let buckets =
            number.filter(|buckets| (1..=CassandraSettings::BUCKETS_MAX).contains(buckets)).ok_or_else(|| {
                let (name, value) = (buckets_name(prefix), value.escape_ascii());
                Error::internal(format!(
                    "what is agreed on as '{name}' in Cassandra is no number of buckets: '{value}'"
                ))
            })?;
        let mut remembered = self.buckets.lock().expect("no holder of this lock can panic");
        if remembered.len() >= BUCKETS_REMEMBERED_MAX {
            remembered.clear();
        }
        remembered.insert(Bytes::copy_from_slice(prefix), buckets);
        Ok(Spread::Hashed { buckets })
    }

    async fn get_row(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>> {
        let (prefix, rest) = place::split(table, key);
        let Some(spread) = self.spread(table, prefix).await? else { return Ok(None) };
        self.database.get(&partition(table, prefix, spread, rest), rest).await
    }

    async fn scan_rows(&self, table: Table, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>> {
        let Some(span) = place::span(table, from, to)?.filter(|_| limit > 0) else { return Ok(Vec::new()) };
        let Some(spread) = self.spread(table, span.prefix).await? else { return Ok(Vec::new()) };
        let stretch = Stretch { from: Bytes::copy_from_slice(span.from), to: span.to.map(Bytes::copy_from_slice) };
        let space = place::space(table, span.prefix);
        let of_bucket = |bucket| Partition { family: place::family(table), space: space.clone(), bucket };
        let rows = match spread {
            Spread::Hashed { buckets } => {
                let partitions = (0..i64::from(buckets)).map(of_bucket).collect();
                scan::merged(&self.database, &self.dead, partitions, stretch, limit).await?
            }
            Spread::Ordered => {
                let mut rows = Vec::new();
                for bucket in self.ordered_buckets(table, &span).await? {
                    if rows.len() < limit {
                        let (partition, wanted) = (of_bucket(bucket), limit - rows.len());
                        let found = scan::in_turn(&self.database, &self.dead, &partition, &stretch, wanted).await?;
                        rows.extend(found);
                    }
                }
                rows
            }
        };
        let whole = |rest: Bytes| match span.prefix {
            [] => rest,
            prefix => [prefix, &rest].concat().into(),
        };
        Ok(rows.into_iter().map(|(key, value)| (whole(key), value)).collect())
    }

    /// The partitions that a scan has to go through, in order.
    async fn ordered_buckets(&self, table: Table, span: &place::Span<'_>) -> Result<Vec<i64>> {
        let of = |rest: &[u8]| place::bucket(table, Spread::Ordered, rest);
        let (first, last) = (of(span.from), span.to.map(of));
        if table == Table::Chunk {
            return Ok((first..=last.unwrap_or(place::CHUNK_PARTITION_LAST)).collect());
        }
        let notes = Stretch { from: note(first), to: last.map(|last| note(last + 1)) };
        let partition = place::intent_partitions(span.prefix);
        let found = scan::in_turn(&self.database, &self.dead, &partition, &notes, usize::MAX).await?;
        found.iter().map(|(key, _)| parse_note(&partition, key)).collect()
    }

    /// Before an intent is put into a partition that has none yet: a scan finds only what is noted.
    async fn note_intents(&self, batch: &Batch) -> Result<()> {
        for change in batch.changes.iter().filter(|change| change.table == Table::Intent && change.value.is_some()) {
            let (prefix, rest) = place::split(change.table, &change.key);
            let bucket = place::bucket(change.table, Spread::Ordered, rest);
            let enough = |noted: &Noted| {
                noted.bucket == bucket
                    && noted.until.is_none_or(|until| change.expires.is_some_and(|expires| expires <= until))
            };
            if self.noted.lock().expect("no holder of this lock can panic").get(prefix).is_some_and(enough) {
                continue;
            }
            let until = change.expires.map(|expires| expires.saturating_add(NOTE_MARGIN));
            let now = self.database.link.clock.wall_millis();
            let timestamp = i64::try_from(now * 1000).unwrap_or(i64::MAX);
            let put = Write::Put {
                key: note(bucket),
                value: Bytes::new(),
                timestamp,
                ttl: time_to_live(until, now / 1000, self.expiry_margin),
            };
            self.database.write(&place::intent_partitions(prefix), &[put]).await?;
            let mut noted = self.noted.lock().expect("no holder of this lock can panic");
            if noted.len() >= INTENTS_REMEMBERED_MAX {
                noted.clear();
            }
            noted.insert(Bytes::copy_from_slice(prefix), Noted { bucket, until });
        }
        Ok(())
    }

    /// What is to be written to each partition, each row once.
    async fn writes(&self, batch: Batch) -> Result<BTreeMap<Partition, Vec<Write>>> {
        let now = self.database.link.clock.wall_millis() / 1000;
        let mut writes: BTreeMap<Partition, Vec<Write>> = BTreeMap::new();
        for change in last_of_each_row(batch) {
            let (prefix, rest) = place::split(change.table, &change.key);
            let spread = self.spread_for_change(change.table, prefix).await?;
            let of = partition(change.table, prefix, spread, rest);
            let (key, timestamp) = (change.key.slice_ref(rest), change.version.micros());
            writes.entry(of).or_default().push(match change.value {
                Some(value) => {
                    Write::Put { key, value, timestamp, ttl: time_to_live(change.expires, now, self.expiry_margin) }
                }
                None => Write::Remove { key, timestamp },
            });
        }
        for (_, writes) in writes.iter_mut().filter(|(partition, _)| partition.family == place::Family::Chunk) {
            remove_runs(writes);
        }
        Ok(writes)
    }

    async fn write_all(&self, writes: Vec<(Partition, Vec<Write>)>) -> Result<()> {
        let mut all = Vec::new();
        for (partition, writes) in &writes {
            for piece in pieces(writes) {
                all.push((partition, piece));
            }
        }
        let mut pieces = all.into_iter();
        let mut under_way = FuturesUnordered::new();
        loop {
            while under_way.len() < AT_ONCE
                && let Some((partition, piece)) = pieces.next()
            {
                under_way.push(self.database.write(partition, piece));
            }
            match under_way.next().await {
                Some(done) => done?,
                None => return Ok(()),
            }
        }
    }
}

fn partition(table: Table, prefix: &[u8], spread: Spread, rest: &[u8]) -> Partition {
    let bucket = place::bucket(table, spread, rest);
    Partition { family: place::family(table), space: place::space(table, prefix), bucket }
}

fn buckets_name(prefix: &[u8]) -> String {
    let digits: String = prefix.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("buckets/{digits}")
}

/// The key under which a partition of intents is noted; they sort by their numbers.
fn note(bucket: i64) -> Bytes {
    let mut key = BytesMut::with_capacity(8);
    key.put_i64(bucket);
    key.freeze()
}

fn parse_note(partition: &Partition, key: &Bytes) -> Result<i64> {
    <[u8; 8]>::try_from(&key[..]).map(i64::from_be_bytes).map_err(|_| {
        let (space, key) = (partition.space.escape_ascii(), key.escape_ascii());
        Error::internal(format!("the note on a partition of intents in the space '{space}' is garbled: '{key}'"))
    })
}

/// The change of each row that stands: the greatest version's, of one version the last.
fn last_of_each_row(batch: Batch) -> impl Iterator<Item = RowChange> {
    let mut last: HashMap<(Table, Bytes), usize> = HashMap::with_capacity(batch.changes.len());
    for (at, change) in batch.changes.iter().enumerate() {
        let standing = last.entry((change.table, change.key.clone())).or_insert(at);
        if batch.changes[*standing].version <= change.version {
            *standing = at;
        }
    }
    let mut stands = vec![false; batch.changes.len()];
    last.into_values().for_each(|at| stands[at] = true);
    batch.changes.into_iter().zip(stands).filter_map(|(change, stands)| stands.then_some(change))
}

/// Seconds until the database drops a row that is of no use from `expires` on; zero for never.
fn time_to_live(expires: Option<u64>, now: u64, margin: Duration) -> i32 {
    let margin = margin.as_secs();
    match expires {
        Some(expires) if expires.saturating_add(margin) < EXPIRY_MAX => {
            let left = expires.saturating_sub(now).saturating_add(margin);
            if left > LIFE_MAX.as_secs() { 0 } else { i32::try_from(left).expect("twenty years have 30 bits") }
        }
        _ => 0,
    }
}

/// Chunks have numbers for keys: the removals of numbers that follow each other become one, of all between the first and the last.
fn remove_runs(writes: &mut Vec<Write>) {
    let number = |write: &Write| match write {
        Write::Remove { key, timestamp } => {
            Some((<[u8; 4]>::try_from(&key[..]).ok().map(u32::from_be_bytes)?, *timestamp))
        }
        _ => None,
    };
    let (mut numbered, mut kept): (Vec<_>, Vec<_>) = writes.drain(..).partition(|write| number(write).is_some());
    numbered.sort_by_key(number);
    let runs = numbered.chunk_by(|one, next| {
        let (one, next) = (number(one), number(next));
        matches!((one, next), (Some((one, at)), Some((next, then))) if one.checked_add(1) == Some(next) && at == then)
    });
    for run in runs {
        match (run.first(), run.last()) {
            (Some(Write::Remove { key: from, timestamp }), Some(Write::Remove { key: last, .. })) if run.len() > 1 => {
                let (from, to, timestamp) = (from.clone(), Some(dead::after(last)), *timestamp);
                kept.push(Write::RemoveStretch { from, to, timestamp });
            }
            _ => kept.extend_from_slice(run),
        }
    }
    *writes = kept;
}

/// The changes of a partition as they are written together.
fn pieces(mut writes: &[Write]) -> Vec<&[Write]> {
    let mut pieces = Vec::new();
    while !writes.is_empty() {
        let mut bytes = 0;
        let fits = writes.iter().take(WRITE_ROWS_MAX).take_while(|write| {
            bytes += write.length();
            bytes <= WRITE_BYTES_MAX
        });
        let (piece, rest) = writes.split_at(fits.count().max(1));
        pieces.push(piece);
        writes = rest;
    }
    pieces
}

#[async_trait]
impl Store for CassandraStore {
    async fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>> {
        self.get_row(table, key).await
    }

    async fn get_many(&self, table: Table, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>> {
        let mut found = Vec::with_capacity(keys.len());
        let mut under_way = FuturesOrdered::new();
        let mut keys = keys.iter();
        loop {
            while under_way.len() < AT_ONCE
                && let Some(key) = keys.next()
            {
                under_way.push_back(self.get_row(table, key));
            }
            match under_way.next().await {
                Some(row) => found.push(row?),
                None => return Ok(found),
            }
        }
    }

    async fn scan(&self, table: Table, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>> {
        self.scan_rows(table, from, to, limit).await
    }

    /// What more than half of the copies have is not lost with a node; when it is on their disks, the database's own setting says (`commitlog_sync`).
    async fn commit(&self, batch: Batch, _: Durability) -> Result<()> {
        self.note_intents(&batch).await?;
        let (chunks, others): (Vec<_>, Vec<_>) =
            self.writes(batch).await?.into_iter().partition(|(partition, _)| partition.family == place::Family::Chunk);
        self.write_all(chunks).await?;
        self.write_all(others).await
    }

    fn in_place(&self) -> Option<Arc<dyn Store>> {
        None
    }

    fn agreement(&self) -> Option<&dyn Agreement> {
        Some(self)
    }
}

#[async_trait]
impl Agreement for CassandraStore {
    async fn read(&self, name: &str) -> Result<Agreed> {
        self.control.read(&agreed_name(name)).await
    }

    async fn replace(&self, name: &str, revision: u64, value: Bytes) -> Result<Replaced> {
        self.control.replace(&agreed_name(name), revision, &value).await
    }
}

/// Apart from what the store itself agrees on.
fn agreed_name(name: &str) -> String {
    format!("agreed/{name}")
}

#[cfg(test)]
mod tests;
