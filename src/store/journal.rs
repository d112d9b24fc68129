//! Cuts off the end of fjall's journal where a loss of power has torn it.
//!
//! fjall goes on from a journal that ends early, but refuses one with a batch whose bytes don't match its checksum. A loss of power leaves just
//! that when some pages of the last, not yet synced batches reached the disk and others before them did not; nobody was told that those
//! batches were kept. So, when fjall has refused, the journal is cut before the first such batch; unless a batch behind it had been
//! synced, for then the damage is older than the loss of power and hides what was acknowledged: that is left to a person.
//!
//! Knows the framing of fjall's journal, format 3: start (tag 1, number of items u32, sequence number u64), items (tag 2, type u8,
//! compression u8, keyspace u64, length of the key u16, of the value u32, as stored u32, key, value), end (tag 3, XXH3 of all the items' bytes
//! u64, `FJL` 3), all little-endian.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufReader, ErrorKind, Read},
    path::{Path, PathBuf},
};

use xxhash_rust::xxh3::Xxh3;

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const TRAILER: [u8; 4] = *b"FJL\x03";

/// Cuts the journal in fjall's folder before its first torn batch, and says how many bytes that took. `None` if there is no torn batch, or
/// damage that must not be cut off. `synced` is the key that every synced batch changes.
pub(super) fn cut_torn_end(folder: &Path, synced: &[u8]) -> io::Result<Option<u64>> {
    let Some(journal) = active_journal(folder)? else { return Ok(None) };
    let file = OpenOptions::new().read(true).write(true).open(journal)?;
    let mut reader = JournalReader { reader: BufReader::new(&file), position: 0 };
    let mut torn = None;
    while let Some(batch) = reader.batch(synced)? {
        match torn {
            None if !batch.whole => torn = Some(batch.start),
            Some(_) if batch.whole && batch.synced => return Ok(None),
            _ => {}
        }
    }
    let Some(start) = torn else { return Ok(None) };
    let cut = file.metadata()?.len() - start;
    file.set_len(start)?;
    file.sync_all()?;
    Ok(Some(cut))
}

/// The one with the highest number: those before it were synced before it was begun.
fn active_journal(folder: &Path) -> io::Result<Option<PathBuf>> {
    let mut active: Option<(u64, PathBuf)> = None;
    for file in fs::read_dir(folder)? {
        let path = file?.path();
        let number = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_suffix(".jnl"))
            .and_then(|number| number.parse().ok());
        if let Some(number) = number
            && active.as_ref().is_none_or(|(highest, _)| number > *highest)
        {
            active = Some((number, path));
        }
    }
    Ok(active.map(|(_, path)| path))
}

struct JournalReader<'a> {
    reader: BufReader<&'a File>,
    position: u64,
}

struct FoundBatch {
    start: u64,
    whole: bool,
    synced: bool,
}

impl JournalReader<'_> {
    /// The next batch; `None` where the framing ends, at which fjall cuts by itself.
    fn batch(&mut self, synced: &[u8]) -> io::Result<Option<FoundBatch>> {
        match self.framed_batch(synced) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
            found => found,
        }
    }

    fn framed_batch(&mut self, synced: &[u8]) -> io::Result<Option<FoundBatch>> {
        let start = self.position;
        if self.take::<1>()? != [START] {
            return Ok(None);
        }
        let expected = u32::from_le_bytes(self.take()?);
        self.take::<8>()?;
        let (mut items, mut hash, mut found_synced) = (0, Xxh3::new(), false);
        loop {
            match self.take::<1>()? {
                [ITEM] => {
                    hash.update(&[ITEM]);
                    found_synced |= self.item(&mut hash)? == synced;
                    items += 1;
                }
                [END] => {
                    let checksum = u64::from_le_bytes(self.take()?);
                    if self.take()? != TRAILER {
                        return Ok(None);
                    }
                    let whole = items == expected && hash.digest() == checksum;
                    return Ok(Some(FoundBatch { start, whole, synced: found_synced }));
                }
                _ => return Ok(None),
            }
        }
    }

    /// Reads an item behind its tag, and returns its key.
    fn item(&mut self, hash: &mut Xxh3) -> io::Result<Vec<u8>> {
        let header: [u8; 20] = self.take()?;
        hash.update(&header);
        let [.., k0, k1, _, _, _, _, v0, v1, v2, v3] = header;
        let key = self.hashed(usize::from(u16::from_le_bytes([k0, k1])), hash)?;
        // Longer than any of ours, the length itself is torn: then the rest makes no sense either.
        let length = u32::from_le_bytes([v0, v1, v2, v3]) as usize;
        if length > VALUE_BYTES_MAX {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.hashed(length, hash)?;
        Ok(key)
    }

    fn hashed(&mut self, length: usize, hash: &mut Xxh3) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.reader.read_exact(&mut bytes)?;
        self.position += length as u64;
        hash.update(&bytes);
        Ok(bytes)
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes)?;
        self.position += N as u64;
        Ok(bytes)
    }
}

/// No row of ours has a value as long as this.
const VALUE_BYTES_MAX: usize = 16 * 1024 * 1024;
