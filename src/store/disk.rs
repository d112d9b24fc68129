//! The store on the local disk: an LSM tree per table (fjall), one journal for all of them.
//!
//! Promises what the contract does. A batch goes into the journal in one piece, is fsynced if it is to be, and only then becomes visible, so a
//! reader never sees a synced batch that a loss of power could still take back. Checksums cover the journal, each block of the tables and each
//! large value. A data folder belongs to one process at a time, and only its owner may look into it.
//!
//! Does not know what the rows mean. Does not compress: values are often compressed already, and the rest is small.
//!
//! The folder holds `format` (what wrote it), `lock` (who has it) and `tables/` (fjall's own files).

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File, OpenOptions, TryLockError},
    io::{ErrorKind, Write as _},
    ops::Bound,
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use fjall::{
    Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, OwnedWriteBatch as WriteBatch, PersistMode,
    Readable as _,
    compaction::Leveled,
    config::{BloomConstructionPolicy, FilterPolicy, FilterPolicyEntry, HashRatioPolicy},
};

use super::{Agreement, Batch, Durability, RowChange, Store, Table, barren::Barren, journal, keys};
use crate::error::{Error, Result};

const FORMAT_FILE: &str = "format";
const LOCK_FILE: &str = "lock";
const TABLES_FOLDER: &str = "tables";
/// The keyspace and the key of the mark of a synced batch. No table has a key like it.
const SYNCED: &str = "synced";
/// The only format so far. A change that older binaries can't read raises the number.
const FORMAT: &str = "kvasar-store 1";
/// How much is kept in memory of each table before it is written out as one sorted file. Up to four such may wait for the disk, then
/// writers wait, too: so this bounds the memory of a burst.
const MEMTABLE_BYTES: usize = 16 * 1024 * 1024;
/// Chunks at least this long live outside the tree, so that compactions don't copy them.
const SEPARATED_BYTES_MIN: u32 = 1024;
/// What a removed chunk counts for in memory. It takes far less, but then the removals of gigabytes would wait there, and the disk's space with
/// them: so, the table is written out for every 128 MiB removed.
const REMOVED_CHUNK_WEIGHT: usize = MEMTABLE_BYTES / 2048;

/// fjall's threads: one for tables to be written out, which must not wait behind a compaction, as writers would wait for it; and one to compact.
const BACKGROUND_THREADS: usize = 2;
/// How long a scan may take from one row to the next: some two thousand traces of what was removed.
const COSTLY: Duration = Duration::from_millis(1);
/// What a row takes in memory beside its bytes, roughly.
const ROW_OVERHEAD_BYTES: usize = 64;

pub struct DiskStore {
    shared: Arc<Shared>,
    /// Whether work is done on the caller's thread, which is for nothing else.
    in_place: bool,
}

struct Shared {
    /// What went wrong with the first commit that failed.
    failed: OnceLock<String>,
    /// By table. What each has in memory is counted here, as fjall asks a thread to write a table out that may be long busy with another.
    keyspaces: Vec<Keyspace>,
    in_memory: Vec<AtomicUsize>,
    /// One row, which every synced batch puts: it tells the journal's batches apart.
    synced: Keyspace,
    hashing: ahash::RandomState,
    barren: Barren,
    /// How long a scan may take to step over what is no row before it remembers where that was.
    costly: Duration,
    database: Database,
    /// Held until the database has closed: fields are dropped in this order.
    _lock: File,
}

impl DiskStore {
    /// Opens the store in a folder, or makes one there if it is empty or missing. Blocks; `cache_bytes` bounds the cache of blocks.
    pub fn open(dir: &Path, cache_bytes: u64) -> Result<DiskStore> {
        DiskStore::open_remembering(dir, cache_bytes, COSTLY)
    }

    /// Whether there is a store in the folder.
    pub fn is_in(dir: &Path) -> bool {
        dir.join(FORMAT_FILE).exists()
    }

    pub(super) fn open_remembering(dir: &Path, cache_bytes: u64, costly: Duration) -> Result<DiskStore> {
        let lock = claim(dir)?;
        let opening = |e: fjall::Error| {
            Error::internal(format!("opening the tables in the data folder {}", dir.display())).with_source(e)
        };
        let open = || {
            let database = Database::builder(dir.join(TABLES_FOLDER)).cache_size(cache_bytes);
            database.worker_threads(BACKGROUND_THREADS).open()
        };
        let database = match open() {
            Err(fjall::Error::JournalRecovery(refusal)) => {
                repair_journal(dir, refusal)?;
                open().map_err(opening)?
            }
            opened => opened.map_err(opening)?,
        };
        let keyspaces = Table::ALL
            .into_iter()
            .map(|table| database.keyspace(table.name(), || options(table)).map_err(opening))
            .collect::<Result<Vec<_>>>()?;
        let synced = database.keyspace(SYNCED, KeyspaceCreateOptions::default).map_err(opening)?;
        let in_memory = Table::ALL.into_iter().map(|_| AtomicUsize::new(0)).collect();
        let failed = OnceLock::new();
        let hashing = ahash::RandomState::new();
        let barren = Barren::default();
        let shared = Shared { failed, keyspaces, in_memory, synced, hashing, barren, costly, database, _lock: lock };
        Ok(DiskStore { shared: Arc::new(shared), in_place: false })
    }

    /// Runs a piece of blocking work where it holds up nobody.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&Shared) -> Result<T> + Send + 'static) -> Result<T> {
        if self.in_place {
            return work(&self.shared);
        }
        let shared = Arc::clone(&self.shared);
        tokio::task::spawn_blocking(move || work(&shared))
            .await
            .map_err(|e| Error::internal("a thread of the disk store ended early").with_source(e))?
    }
}

#[async_trait]
impl Store for DiskStore {
    async fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>> {
        let key = Bytes::copy_from_slice(key);
        self.blocking(move |shared| shared.get(table, &key)).await
    }

    async fn get_many(&self, table: Table, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>> {
        let keys = keys.to_vec();
        self.blocking(move |shared| keys.iter().map(|key| shared.get(table, key)).collect()).await
    }

    async fn scan(&self, table: Table, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>> {
        let (from, to) = (from.to_vec(), to.to_vec());
        self.blocking(move |shared| shared.scan(table, from, to, limit)).await
    }

    async fn commit(&self, batch: Batch, durability: Durability) -> Result<()> {
        self.blocking(move |shared| shared.commit(batch, durability)).await
    }

    fn in_place(&self) -> Option<Arc<dyn Store>> {
        Some(Arc::new(DiskStore { shared: Arc::clone(&self.shared), in_place: true }))
    }

    fn agreement(&self) -> Option<&dyn Agreement> {
        None
    }
}

impl Shared {
    fn keyspace(&self, table: Table) -> &Keyspace {
        &self.keyspaces[table as usize]
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>> {
        let found = self.keyspace(table).get(key).map_err(|e| reading(table, e))?;
        Ok(found.map(|value| owned(table, value)))
    }

    fn scan(&self, table: Table, from: Vec<u8>, to: Vec<u8>, limit: usize) -> Result<Vec<(Bytes, Bytes)>> {
        if !to.is_empty() && from >= to {
            return Ok(Vec::new());
        }
        let watch = self.barren.scan(table, (from.into(), to.into()));
        let snapshot = self.database.snapshot();
        let (mut rows, mut barren, mut copies) = (Vec::<(Bytes, Bytes)>::new(), Vec::new(), Copies(BytesMut::new()));
        'spans: for (start, end) in watch.spans() {
            let to = if end.is_empty() { Bound::Unbounded } else { Bound::Excluded(end.clone()) };
            let mut found = snapshot.range(self.keyspace(table), (Bound::Included(start.clone()), to));
            let mut last = None;
            while rows.len() < limit {
                let began = now();
                let next = found.next();
                let cost = began.elapsed();
                let mut remember = |end: &Bytes| {
                    if cost >= self.costly {
                        let start = last.as_deref().map_or_else(|| start.clone(), keys::after);
                        barren.push(((start, end.clone()), cost));
                    }
                };
                let Some(row) = next else {
                    remember(&end);
                    continue 'spans;
                };
                let (key, value) = row.into_inner().map_err(|e| reading(table, e))?;
                let key = copies.of(&key);
                remember(&key);
                last = Some(key.clone());
                rows.push((key, if table == Table::Chunk { value.into() } else { copies.of(&value) }));
            }
            break;
        }
        if !barren.is_empty() {
            watch.remember(barren);
        }
        Ok(rows)
    }

    fn commit(&self, batch: Batch, durability: Durability) -> Result<()> {
        if let Some(cause) = self.failed.get() {
            return Err(Error::internal(format!("the disk store is read-only since a commit failed: {cause}")));
        }
        self.write_batch(batch, durability).map_err(|e| {
            // Whoever failed first says why; of two at once either will do.
            let _ = self.failed.set(e.to_string());
            Error::internal("committing a batch to the disk").with_source(e)
        })
    }

    fn write_batch(&self, batch: Batch, durability: Durability) -> fjall::Result<()> {
        let overtaken = self.overtaken(&batch);
        let mode = match durability {
            // What the journal's data needs to be found again is synced with it; when it was last written matters to nobody.
            Durability::Synced => PersistMode::SyncData,
            Durability::Buffered => PersistMode::Buffer,
        };
        let writes = WriteBatch::with_capacity(self.database.clone(), batch.changes.len() + 1);
        let mut writes = writes.durability(Some(mode));
        if durability == Durability::Synced {
            writes.insert(&self.synced, SYNCED, Bytes::new());
        }
        let mut added = [0; Table::ALL.len()];
        let mut put = Vec::with_capacity(batch.changes.len());
        for (i, RowChange { table, key, value, .. }) in batch.changes.into_iter().enumerate() {
            if overtaken.contains(&i) {
                continue;
            }
            added[table as usize] += key.len() + value.as_ref().map_or(0, Bytes::len) + ROW_OVERHEAD_BYTES;
            match value {
                Some(value) => {
                    put.push((table, key.clone()));
                    writes.insert(self.keyspace(table), key, value);
                }
                None => {
                    added[table as usize] += if table == Table::Chunk { REMOVED_CHUNK_WEIGHT } else { 0 };
                    writes.remove(self.keyspace(table), key);
                }
            }
        }
        let putting = self.barren.put(put);
        writes.commit()?;
        drop(putting);
        // The mark counts with the facts about the store, of which every write changes one.
        added[Table::Meta as usize] += SYNCED.len() + ROW_OVERHEAD_BYTES;
        Table::ALL.into_iter().try_for_each(|table| self.write_out(table, added[table as usize]))
    }

    /// The places of changes that a later one of the same row overtakes. Within a batch all rows get one sequence number in fjall, so only the last
    /// change of a row may go in.
    fn overtaken(&self, batch: &Batch) -> HashSet<usize> {
        let mut last = HashMap::with_capacity_and_hasher(batch.changes.len(), self.hashing.clone());
        let places = batch.changes.iter().enumerate();
        places.filter_map(|(i, change)| last.insert((change.table, &change.key[..]), i)).collect()
    }

    /// Has a table written out once it has enough in memory. Another thread does the work.
    fn write_out(&self, table: Table, added: usize) -> fjall::Result<()> {
        let in_memory = &self.in_memory[table as usize];
        if in_memory.fetch_add(added, Ordering::Relaxed) + added >= MEMTABLE_BYTES {
            in_memory.store(0, Ordering::Relaxed);
            self.keyspace(table).rotate_memtable()?;
            if table == Table::Meta {
                self.synced.rotate_memtable()?;
            }
        }
        Ok(())
    }
}

/// Rows of small values are copied out of the block that they were read in, which they would otherwise keep in memory whole. A chunk has a
/// buffer of its own.
fn owned(table: Table, value: fjall::UserValue) -> Bytes {
    if table == Table::Chunk { value.into() } else { Bytes::copy_from_slice(&value) }
}

/// The rows of one answer, which are needed together, side by side: a copy of each apart would cost more than finding it.
struct Copies(BytesMut);

impl Copies {
    const BLOCK_BYTES: usize = 16 * 1024;

    fn of(&mut self, bytes: &[u8]) -> Bytes {
        if self.0.capacity() < bytes.len() {
            self.0 = BytesMut::with_capacity(Copies::BLOCK_BYTES.max(bytes.len()));
        }
        self.0.extend_from_slice(bytes);
        self.0.split().freeze()
    }
}

#[expect(clippy::disallowed_methods, reason = "nothing that is answered depends on what a step of a scan costs")]
fn now() -> Instant {
    Instant::now()
}

fn reading(table: Table, source: fjall::Error) -> Error {
    Error::internal(format!("reading the table '{}' on the disk", table.name())).with_source(source)
}

fn options(table: Table) -> KeyspaceCreateOptions {
    let options = KeyspaceCreateOptions::default();
    match table {
        // Most reads of keys that are not there stop at a filter; a hash index within blocks shortens those of keys that are.
        Table::Entry => options
            .filter_policy(FilterPolicy::all(FilterPolicyEntry::Bloom(BloomConstructionPolicy::BitsPerKey(10.0))))
            .data_block_hash_ratio_policy(HashRatioPolicy::all(0.75)),
        // The tree holds only where the chunks are, so compacting it early is cheap, and gives the space of removed chunks back.
        Table::Chunk => options
            .compaction_strategy(Arc::new(Leveled::default().with_l0_threshold(2)))
            .with_kv_separation(Some(KvSeparationOptions::default().separation_threshold(SEPARATED_BYTES_MIN))),
        Table::Expiry | Table::Reclaim | Table::Meta | Table::Purge | Table::Intent => options,
    }
}

/// Cuts off what a loss of power tore, which is the one damage that is nobody's to judge.
fn repair_journal(dir: &Path, refusal: fjall::JournalRecoveryError) -> Result<()> {
    let cut = journal::cut_torn_end(&dir.join(TABLES_FOLDER), SYNCED.as_bytes()).map_err(|e| {
        Error::internal(format!("repairing the journal in the data folder {}", dir.display())).with_source(e)
    })?;
    match cut {
        Some(bytes) => {
            let dir = dir.display();
            tracing::warn!(%dir, bytes, "cut off the end of the journal, which was torn before it had been synced");
            Ok(())
        }
        None => Err(Error::internal(format!(
            "the journal in the data folder {} is damaged within what had been synced; restore the folder from a backup",
            dir.display()
        ))
        .with_source(refusal)),
    }
}

/// Takes the folder for this process, checks that it is ours and readable by this version, and marks an empty one as ours.
fn claim(dir: &Path) -> Result<File> {
    let failed = |doing: &str, e: std::io::Error| {
        Error::internal(format!("{doing} the data folder {}", dir.display())).with_source(e)
    };
    create_private(dir).map_err(|e| failed("making", e))?;
    // The lock comes first, so that of two processes that start on an empty folder only one marks it. The check before it keeps
    // us from leaving a file in somebody else's folder.
    check_ours(dir)?;
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(dir.join(LOCK_FILE))
        .map_err(|e| failed("opening the lock of", e))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(Error::internal(format!(
                "the data folder {} is in use by another process; stop that one, or give this one a folder of its own",
                dir.display()
            )));
        }
        Err(TryLockError::Error(e)) => return Err(failed("locking", e)),
    }
    match fs::read(dir.join(FORMAT_FILE)) {
        Ok(found) => check_format(dir, &found)?,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            write_format(dir).map_err(|e| failed("writing the format of", e))?;
        }
        Err(e) => return Err(failed("reading the format of", e)),
    }
    Ok(lock)
}

/// A folder is ours if it says so, or holds nothing but the lock of a start that got no further.
fn check_ours(dir: &Path) -> Result<()> {
    let failed =
        |e: std::io::Error| Error::internal(format!("looking into the data folder {}", dir.display())).with_source(e);
    let mut foreign = None;
    for file in fs::read_dir(dir).map_err(failed)? {
        let name = file.map_err(failed)?.file_name();
        if name == FORMAT_FILE {
            return Ok(());
        }
        if name != LOCK_FILE && name != FORMAT_BEING_WRITTEN {
            foreign = Some(name);
        }
    }
    match foreign {
        None => Ok(()),
        Some(name) => Err(Error::internal(format!(
            "the data folder {} is not empty and was not made by kvasar: it holds '{}' but no '{FORMAT_FILE}' file; \
             give an empty or new folder",
            dir.display(),
            name.display()
        ))),
    }
}

fn check_format(dir: &Path, found: &[u8]) -> Result<()> {
    let found = String::from_utf8_lossy(found);
    let found = found.trim_end();
    if found == FORMAT {
        return Ok(());
    }
    let shown: String = found.chars().take(80).collect();
    let newer = found.strip_prefix("kvasar-store ").and_then(|number| number.parse::<u32>().ok());
    let advice = match newer {
        Some(_) => "run the version of kvasar that wrote it, or one newer than this",
        None => "the file is damaged or not kvasar's; restore the folder from a backup, or give another folder",
    };
    Err(Error::internal(format!(
        "the data folder {} has the format '{}', and this version knows only '{FORMAT}': {advice}",
        dir.display(),
        shown.escape_debug()
    )))
}

const FORMAT_BEING_WRITTEN: &str = "format.new";

/// Whole or not at all, whenever the machine stops.
fn write_format(dir: &Path) -> std::io::Result<()> {
    let being_written = dir.join(FORMAT_BEING_WRITTEN);
    let mut file = File::create(&being_written)?;
    file.write_all(format!("{FORMAT}\n").as_bytes())?;
    file.sync_all()?;
    fs::rename(&being_written, dir.join(FORMAT_FILE))?;
    File::open(dir)?.sync_all()
}

/// Makes the folder, readable by its owner alone; an existing one is made so too.
fn create_private(dir: &Path) -> std::io::Result<()> {
    fs::create_dir_all(dir)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mut permissions = fs::metadata(dir)?.permissions();
        if permissions.mode() & 0o077 != 0 {
            permissions.set_mode(0o700);
            fs::set_permissions(dir, permissions)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(dir: &Path) -> String {
        match DiskStore::open(dir, 1 << 20) {
            Ok(_) => panic!("the folder was accepted"),
            Err(error) => error.message,
        }
    }

    #[test]
    fn an_unknown_format_is_refused_and_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let check = |format: &str, expected: &str| {
            fs::write(dir.path().join(FORMAT_FILE), format).unwrap();
            let message = refusal(dir.path());
            assert!(message.contains(&format!("has the format '{}'", format.trim_end())), "{message}");
            assert!(message.contains("knows only 'kvasar-store 1'"), "{message}");
            assert!(message.contains(expected), "{message}");
        };
        check("kvasar-store 2\n", "run the version of kvasar that wrote it");
        check("kvasar-store", "restore the folder from a backup");
        check("", "restore the folder from a backup");
    }

    #[test]
    fn somebody_elses_folder_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.txt"), "years of work").unwrap();
        let message = refusal(dir.path());
        assert!(message.contains("it holds 'thesis.txt' but no 'format' file"), "{message}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_is_one_stores_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let store = DiskStore::open(dir.path(), 1 << 20).unwrap();
        let message = refusal(dir.path());
        assert!(message.contains("is in use by another process"), "{message}");
        assert!(message.contains(&dir.path().display().to_string()), "{message}");
        drop(store);
        DiskStore::open(dir.path(), 1 << 20).unwrap();
    }

    #[test]
    fn a_start_that_got_no_further_than_the_lock_is_taken_up() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(LOCK_FILE), "").unwrap();
        fs::write(dir.path().join(FORMAT_BEING_WRITTEN), "kvas").unwrap();
        DiskStore::open(dir.path(), 1 << 20).unwrap();
    }

    #[tokio::test]
    async fn the_space_of_removed_chunks_comes_back_though_nothing_is_put() {
        const PER_BATCH: u64 = 512;
        let dir = tempfile::tempdir().unwrap();
        let store = DiskStore::open(dir.path(), 1 << 20).unwrap();
        let space = || store.shared.keyspace(Table::Chunk).disk_space();
        let key = |batch: u64, i: u64| (batch << 32 | i).to_be_bytes().to_vec();
        for number in 0..64 {
            let mut batch = Batch::default();
            (0..PER_BATCH).for_each(|i| batch.put(Table::Chunk, key(number, i), vec![7; 2048]));
            store.commit(batch, Durability::Buffered).await.unwrap();
        }
        let written = 64 * PER_BATCH * 2048;
        // Files that compactions have emptied go with a later one, and compactions run in the background: so the same is removed again
        // until they have come round.
        for number in 0..2000 {
            let mut batch = Batch::default();
            (0..PER_BATCH).for_each(|i| batch.remove(Table::Chunk, key(number % 64, i)));
            store.commit(batch, Durability::Buffered).await.unwrap();
            if number > 64 && space() < written / 8 {
                return;
            }
        }
        panic!("{} of {written} bytes are still there", space());
    }

    const TORN: [u8; 4096] = [0; 4096];

    /// Commits batches with a value of a chunk each, then damages a page within the value of one as the folder would be found after a loss of
    /// power. Returns the names that are there when the store is opened again.
    async fn after_a_torn_page(batches: &[(&str, Durability)], torn: usize) -> Result<Vec<String>> {
        let (dir, left) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = DiskStore::open(dir.path(), 1 << 20).unwrap();
        for (i, (name, durability)) in batches.iter().enumerate() {
            let mut batch = Batch::default();
            batch.put(Table::Entry, name.as_bytes().to_vec(), vec![i as u8 + 1; 65_536]);
            store.commit(batch, *durability).await.unwrap();
        }
        // What is on disk while the store is open is what a machine that stops leaves.
        let journal = fs::read(dir.path().join("tables/0.jnl")).unwrap();
        drop(store);
        drop(DiskStore::open(left.path(), 1 << 20).unwrap());
        let value = journal.windows(4096).position(|bytes| bytes.iter().all(|byte| *byte == torn as u8 + 1)).unwrap();
        let mut journal = journal;
        journal[value + 10_000..value + 10_000 + TORN.len()].copy_from_slice(&TORN);
        fs::write(left.path().join("tables/0.jnl"), journal).unwrap();
        let store = DiskStore::open(left.path(), 1 << 20)?;
        let rows = store.scan(Table::Entry, b"", b"", 10).await.unwrap();
        Ok(rows.iter().map(|(key, _)| String::from_utf8(key.to_vec()).unwrap()).collect())
    }

    #[tokio::test]
    async fn a_page_torn_in_what_was_not_yet_synced_costs_only_that() {
        use Durability::{Buffered, Synced};
        let check = async |batches: &[(&str, Durability)], torn, expected: &[&str]| {
            assert_eq!(after_a_torn_page(batches, torn).await.unwrap(), expected);
        };
        check(&[("a", Synced), ("b", Buffered)], 1, &["a"]).await;
        check(&[("a", Synced), ("b", Buffered), ("c", Buffered)], 1, &["a"]).await;
        check(&[("a", Synced), ("b", Buffered), ("c", Buffered)], 2, &["a", "b"]).await;
        // The very batch whose sync was under way.
        check(&[("a", Synced), ("b", Synced)], 1, &["a"]).await;
    }

    #[tokio::test]
    async fn damage_to_what_was_synced_is_left_to_a_person() {
        use Durability::{Buffered, Synced};
        for batches in
            [[("a", Synced), ("b", Synced), ("c", Buffered)], [("a", Buffered), ("b", Buffered), ("c", Synced)]]
        {
            let error = after_a_torn_page(&batches, 0).await.unwrap_err();
            assert!(error.message.contains("restore the folder from a backup"), "{error}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_may_look_into_the_folder() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let _store = DiskStore::open(dir.path(), 1 << 20).unwrap();
        assert_eq!(fs::metadata(dir.path()).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
