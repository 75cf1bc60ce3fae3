//! The checksums of an archive, held against the bytes that tensors are copied from.
//! torch does not look at them: what it would read is what is kept, and what does not
//! match is told.

use crc32fast::Hasher;

use crate::checkpoint::Checksum;
use crate::convert::Reader;
use crate::source::{Result, Source};

/// Bytes read at a time.
const PIECE: u64 = 4 << 20;

/// The entries of an archive whose bytes are not what they should be, by name.
pub type Mismatches = Vec<String>;

/// What is known of the entries so far. Bytes that pass by in order need not be read
/// again.
#[derive(Default)]
pub struct Checksums {
    /// In the order of their bytes.
    entries: Vec<Entry>,
}

struct Entry {
    name: String,
    companion: Option<u32>,
    offset: u64,
    /// Bytes.
    len: u64,
    crc32: u32,
    hasher: Hasher,
    /// Bytes that have passed by.
    seen: u64,
}

impl Checksums {
    pub fn of(reader: &Reader) -> Checksums {
        let mut entries: Vec<Entry> = reader.plan().checksums().map(Entry::new).collect();
        entries.sort_unstable_by_key(|entry| (entry.companion, entry.offset));
        Checksums { entries }
    }

    /// The bytes `bytes`, which lie in the file itself from `offset` on, pass by.
    pub fn pass(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset.saturating_add(bytes.len() as u64);
        let before = |entry: &Entry| {
            entry.companion.is_none() && entry.offset.saturating_add(entry.len) <= offset
        };
        let first = self.entries.partition_point(before);
        for entry in self.entries.iter_mut().skip(first) {
            if entry.companion.is_some() || entry.offset >= end {
                return;
            }
            entry.pass(offset, bytes);
        }
    }

    /// Reads what has not passed by, and tells what does not match.
    pub fn finish(self, reader: &Reader) -> Result<Mismatches> {
        let mut mismatches = Mismatches::new();
        for mut entry in self.entries {
            let file = match entry.companion {
                None => Some(reader.source()),
                Some(number) => reader.companion(number),
            };
            let Some(file) = file else { continue };
            if !entry.matches(file)? {
                mismatches.push(entry.name);
            }
        }
        Ok(mismatches)
    }
}

impl Entry {
    fn new(checksum: Checksum) -> Entry {
        Entry {
            name: checksum.name.to_string(),
            companion: checksum.companion,
            offset: checksum.offset,
            len: checksum.len,
            crc32: checksum.crc32,
            hasher: Hasher::new(),
            seen: 0,
        }
    }

    /// Takes in what comes next of the entry, if that is among `bytes`.
    fn pass(&mut self, offset: u64, bytes: &[u8]) {
        let next = self.offset.saturating_add(self.seen);
        let Some(skip) = next.checked_sub(offset).map(usize::try_from) else {
            return;
        };
        let left = self.len.saturating_sub(self.seen);
        let rest = skip.ok().and_then(|skip| bytes.get(skip..));
        let rest = rest.unwrap_or_default();
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
        self.hasher.update(&rest[..len]);
        self.seen += len as u64;
    }

    fn matches(&mut self, file: &Source) -> Result<bool> {
        while self.seen < self.len {
            let offset = self.offset.saturating_add(self.seen);
            let bytes = file.read_at(offset, PIECE.min(self.len - self.seen))?;
            self.pass(offset, &bytes);
        }
        Ok(self.hasher.clone().finalize() == self.crc32)
    }
}
