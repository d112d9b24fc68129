//! Bytes that have to wait until something behind them is known: a little in memory, more in a file without a name.
//!
//! The file lies in the system's folder for temporary files (`TMPDIR`), and is gone with the last who holds it, whatever becomes of the process.

use std::{fs::File, io::Write, ops::Range, os::unix::fs::FileExt, sync::Arc};

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use crate::{
    api::budget::{Budget, Taken},
    error::{Error, Kind, Result},
    kv::{Value, ValueStream},
    limits,
};

/// What all spools of a process may take.
pub(super) struct SpoolRoom {
    memory: Arc<Budget>,
    disk: Arc<Budget>,
}

/// More waits in memory no longer.
const MEMORY_BYTES_MAX: usize = 256 * 1024;
/// Some hundred bulk writes of the largest size at a time.
const DISK_BYTES_MAX: u64 = 16 * 1024 * 1024 * 1024;

impl SpoolRoom {
    pub(super) fn new(memory: Arc<Budget>) -> SpoolRoom {
        SpoolRoom { memory, disk: Budget::new(DISK_BYTES_MAX) }
    }

    /// The same room on disk, and at most half of it for these; memory from another budget.
    pub(super) fn half(&self, memory: Arc<Budget>) -> SpoolRoom {
        SpoolRoom { memory, disk: self.disk.half() }
    }

    pub(super) fn open(&self) -> Result<Spool> {
        let (memory, disk) = (self.memory.try_take(0)?, self.disk.try_take(0)?);
        Ok(Spool { buffer: Vec::new(), file: None, written: 0, memory, disk })
    }
}

/// A spool that is being filled.
pub(super) struct Spool {
    buffer: Vec<u8>,
    file: Option<Arc<File>>,
    /// How much is in the file.
    written: u64,
    memory: Taken,
    disk: Taken,
}

impl Spool {
    /// Appends bytes, in memory; [`Spool::settle`] is to follow before much more does.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    pub(super) fn length(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    /// Counts what was appended, and moves it out of memory when it is much.
    pub(super) async fn settle(&mut self) -> Result<()> {
        self.memory.resize(self.buffer.capacity() as u64)?;
        if self.buffer.len() > MEMORY_BYTES_MAX {
            self.flush().await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<()> {
        let (mut buffer, file) = (std::mem::take(&mut self.buffer), self.file.take());
        let length = buffer.len() as u64;
        self.disk.grow(length)?;
        let writing = tokio::task::spawn_blocking(move || {
            let file = match file {
                Some(file) => file,
                None => Arc::new(tempfile::tempfile()?),
            };
            (&*file).write_all(&buffer)?;
            buffer.clear();
            buffer.shrink_to(MEMORY_BYTES_MAX);
            Ok((file, buffer))
        });
        let (file, buffer) = finished(writing.await, || format!("writing {length} bytes to a temporary file"))?;
        self.buffer = buffer;
        self.file = Some(file);
        self.written += length;
        self.memory.resize(self.buffer.capacity() as u64)
    }

    pub(super) async fn finish(mut self) -> Result<Spooled> {
        let length = self.length();
        if self.file.is_some() && !self.buffer.is_empty() {
            self.flush().await?;
        }
        let kept = match self.file {
            Some(file) => {
                self.memory.resize(0)?;
                Kept::File(file)
            }
            None => Kept::Memory(self.buffer.into()),
        };
        Ok(Spooled { kept, length, _memory: self.memory, _disk: self.disk })
    }
}

/// A spool that is full, and read from.
pub(super) struct Spooled {
    kept: Kept,
    length: u64,
    _memory: Taken,
    _disk: Taken,
}

enum Kept {
    Memory(Bytes),
    File(Arc<File>),
}

impl Spooled {
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Some of the bytes, in one piece.
    pub(super) async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        assert!(range.start <= range.end && range.end <= self.length, "only what was spooled is read");
        let length = usize::try_from(range.end - range.start)
            .map_err(|e| Error::internal("reading more than fits into memory").with_source(e))?;
        match &self.kept {
            Kept::Memory(bytes) => {
                // What is in memory is shorter than any address.
                let from = range.start as usize;
                Ok(bytes.slice(from..from + length))
            }
            Kept::File(file) => {
                let file = Arc::clone(file);
                let reading = tokio::task::spawn_blocking(move || {
                    let mut bytes = vec![0; length];
                    file.read_exact_at(&mut bytes, range.start)?;
                    Ok(Bytes::from(bytes))
                });
                finished(reading.await, || format!("reading {length} bytes from a temporary file"))
            }
        }
    }

    /// Some of the bytes as a value: what is in memory or short in one piece, the rest as it is asked for.
    pub(super) fn value(self: &Arc<Spooled>, range: Range<u64>) -> Value {
        if let Kept::Memory(bytes) = &self.kept {
            return Value::Whole(bytes.slice(range.start as usize..range.end as usize));
        }
        let length = range.end - range.start;
        let chunks = stream::try_unfold((Arc::clone(self), range), |(spooled, range)| async move {
            if range.is_empty() {
                return Ok(None);
            }
            let end = range.end.min(range.start + PIECE_BYTES);
            let piece = spooled.read(range.start..end).await?;
            Ok(Some((piece, (spooled, end..range.end))))
        });
        Value::Stream(ValueStream { length: Some(length), chunks: chunks.boxed() })
    }
}

/// How much is read from a file at a time.
const PIECE_BYTES: u64 = 4 * limits::CHUNK_BYTES as u64;

fn finished<T>(done: Result<std::io::Result<T>, tokio::task::JoinError>, doing: impl Fn() -> String) -> Result<T> {
    let failed = |e: Box<dyn std::error::Error + Send + Sync>| Error::new(Kind::Unavailable, doing()).with_source(e);
    done.map_err(|e| failed(e.into()))?.map_err(|e| failed(e.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(length: usize, seed: usize) -> Vec<u8> {
        (0..length).map(|at| ((at * 31 + seed) % 251) as u8).collect()
    }

    #[tokio::test]
    async fn what_was_spooled_is_read_back_from_memory_and_from_a_file() {
        for lengths in [vec![], vec![0], vec![1, 2, 3], vec![200_000; 4], vec![1_000_000, 1, 700_000]] {
            let room = SpoolRoom::new(Budget::new(10_000_000));
            let mut spool = room.open().expect("there is room");
            let mut whole = Vec::new();
            for (seed, length) in lengths.into_iter().enumerate() {
                spool.push(&bytes(length, seed));
                spool.settle().await.expect("there is room");
                whole.extend(bytes(length, seed));
            }
            let spooled = Arc::new(spool.finish().await.expect("there is room"));
            assert_eq!(spooled.length(), whole.len() as u64);
            let length = whole.len() as u64;
            assert_eq!(spooled.read(0..length).await.expect("it is there"), whole);
            let (from, to) = (length / 3, length / 2);
            assert_eq!(spooled.read(from..to).await.expect("it is there"), whole[from as usize..to as usize]);
            let value = spooled.value(from..length);
            assert_eq!(value.length(), Some(length - from));
            assert_eq!(value.collect(length).await.expect("it is there"), whole[from as usize..]);
            if length > MEMORY_BYTES_MAX as u64 {
                assert_eq!((room.memory.taken(), room.disk.taken()), (0, length));
            }
            drop(spooled);
            assert_eq!((room.memory.taken(), room.disk.taken()), (0, 0));
        }
    }

    #[tokio::test]
    async fn no_more_is_held_than_there_is_room_for() {
        let room = SpoolRoom { memory: Budget::new(1000), disk: Budget::new(MEMORY_BYTES_MAX as u64) };
        let mut spool = room.open().expect("there is room");
        spool.push(&bytes(2000, 0));
        assert_eq!(spool.settle().await.expect_err("memory is full").kind, Kind::Unavailable);
        let room = SpoolRoom { memory: Budget::new(u64::MAX), ..room };
        let mut spool = room.open().expect("there is room");
        spool.push(&bytes(MEMORY_BYTES_MAX + 1, 0));
        assert_eq!(spool.settle().await.expect_err("the disk is full").kind, Kind::Unavailable);
    }
}
