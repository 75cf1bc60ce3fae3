//! Zip archives as torch writes them and people zip them again.
//!
//! The central directory is the authority: torch's local headers carry neither
//! sizes nor checksums. What two readers could understand differently is refused
//! here: torch's own reader (miniz) ignores checksums and local names, looks
//! names up without regard to case, and picks among duplicates by their number.
//! Layout: PKWARE APPNOTE 4.3; what torch makes of it: caffe2/serialize.

use std::collections::HashMap;

use super::refusal::{Cause, Refusal};
use super::{Error, Result};
use crate::source::Source;

/// Entries are refused above this count.
const MAX_ENTRIES: u64 = 1 << 20;
/// A directory of more bytes is refused.
const MAX_DIRECTORY: u64 = 256 << 20;
/// The end record and the longest comment after it.
const TAIL: u64 = 22 + 0xFFFF;

const LOCAL: [u8; 4] = *b"PK\x03\x04";
const CENTRAL: [u8; 4] = *b"PK\x01\x02";
const END: [u8; 4] = *b"PK\x05\x06";
const END64: [u8; 4] = *b"PK\x06\x06";
const LOCATOR64: [u8; 4] = *b"PK\x06\x07";

/// How an entry's bytes are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// As they are.
    Stored,
    Deflated,
    /// Any other number of APPNOTE 4.4.5.
    Other(u16),
}

/// A file inside the archive.
#[derive(Debug)]
pub struct Entry {
    pub name: String,
    pub method: Method,
    /// Where the data begins, in bytes from the start of the archive.
    pub data: u64,
    /// Bytes in the archive.
    pub stored_size: u64,
    /// Bytes of the file.
    pub size: u64,
}

/// The entries of an archive, none of which shares a name or a byte with another.
#[derive(Debug)]
pub struct Archive {
    entries: Vec<Entry>,
    /// Lower-case name to entry.
    names: HashMap<String, usize>,
}

impl Archive {
    /// Reads the central directory and every local header of `source`.
    pub fn read(source: &Source) -> Result<Archive> {
        let directory = Directory::find(source)?;
        let bytes = source.read_at(directory.offset, directory.size)?;
        let mut fields = Fields(&bytes);
        let mut entries = Vec::new();
        let mut extents = Vec::new();
        for _ in 0..directory.count {
            let (entry, header) = central_entry(source, &mut fields, directory.offset)?;
            extents.push((header, entry.data + entry.stored_size));
            entries.push(entry);
        }
        if !fields.0.is_empty() {
            return Err(ambiguous(
                "the zip directory holds more than the entries it counts",
            ));
        }
        refuse_overlaps(extents)?;
        let names = unique_names(&entries)?;
        Ok(Archive { entries, names })
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The entry of this name, without regard to case, as torch looks it up.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        let index = *self.names.get(&name.to_ascii_lowercase())?;
        self.entries.get(index)
    }
}

/// Where the central directory lies.
struct Directory {
    offset: u64,
    size: u64,
    count: u64,
}

impl Directory {
    fn find(source: &Source) -> Result<Directory> {
        let tail_start = source.size().saturating_sub(TAIL);
        let tail = source.read_at(tail_start, source.size() - tail_start)?;
        let found = (0..tail.len().saturating_sub(21))
            .rev()
            .find(|&at| tail[at..].starts_with(&END));
        let Some(at) = found else {
            return Err(Refusal::new(
                Cause::NotDownloaded,
                "the zip archive has no end: the file was cut off",
            )
            .into());
        };
        let end_offset = tail_start + at as u64;
        let mut fields = Fields(&tail[at + 4..]);
        let disk = fields.u16()?;
        let directory_disk = fields.u16()?;
        let disk_count = fields.u16()?;
        let count = fields.u16()?;
        let size = fields.u32()?;
        let offset = fields.u32()?;
        let comment = fields.u16()?;
        if usize::from(comment) > fields.0.len() {
            return Err(ambiguous("the zip archive's comment is cut off"));
        }
        if (disk, directory_disk) != (0, 0) || disk_count != count {
            return Err(unsupported("the zip archive is split over several files"));
        }
        let mut directory = Directory {
            offset: offset.into(),
            size: size.into(),
            count: count.into(),
        };
        let mut directory_end = end_offset;
        if let Some(end64) = Directory::find64(source, end_offset)? {
            let (wide, position) = end64;
            let agrees = (count == u16::MAX || u64::from(count) == wide.count)
                && (size == u32::MAX || u64::from(size) == wide.size)
                && (offset == u32::MAX || u64::from(offset) == wide.offset);
            if !agrees {
                return Err(ambiguous("the two end records of the zip archive disagree"));
            }
            directory = wide;
            directory_end = position;
        }
        // An archive with something in front of it, two archives in a row, or an
        // end record faked inside a comment: offsets that some readers correct
        // and others take as they are.
        if directory.offset.checked_add(directory.size) != Some(directory_end) {
            return Err(ambiguous(
                "the zip directory is not where the end of the archive says it is",
            ));
        }
        if directory.count > MAX_ENTRIES || directory.size > MAX_DIRECTORY {
            return Err(Refusal::new(
                Cause::TooLarge,
                format!("the zip archive has {} entries", directory.count),
            )
            .into());
        }
        Ok(directory)
    }

    /// The 64-bit end record and where it begins, when a locator stands before
    /// the end record.
    fn find64(source: &Source, end_offset: u64) -> Result<Option<(Directory, u64)>> {
        let Some(locator_offset) = end_offset.checked_sub(20) else {
            return Ok(None);
        };
        let locator = source.read_at(locator_offset, 20)?;
        let mut fields = Fields(&locator);
        if fields.take(4)? != LOCATOR64 {
            return Ok(None);
        }
        fields.u32()?;
        let position = fields.u64()?;
        if position
            .checked_add(56)
            .is_none_or(|end| end > locator_offset)
        {
            return Err(ambiguous(
                "the zip archive's 64-bit end record is misplaced",
            ));
        }
        let record = source.read_at(position, 56)?;
        let mut fields = Fields(&record);
        if fields.take(4)? != END64 {
            return Err(ambiguous("the zip archive's 64-bit end record is missing"));
        }
        fields.take(8 + 2 + 2 + 4 + 4)?;
        let disk_count = fields.u64()?;
        let count = fields.u64()?;
        let size = fields.u64()?;
        let offset = fields.u64()?;
        if disk_count != count {
            return Err(unsupported("the zip archive is split over several files"));
        }
        let directory = Directory {
            offset,
            size,
            count,
        };
        Ok(Some((directory, position)))
    }
}

/// One entry of the central directory, with the offset of its local header.
/// Its data ends before `limit`, where the directory begins.
fn central_entry(source: &Source, fields: &mut Fields, limit: u64) -> Result<(Entry, u64)> {
    if fields.take(4)? != CENTRAL {
        return Err(malformed("the zip directory is damaged"));
    }
    fields.take(4)?;
    let flags = fields.u16()?;
    let method = match fields.u16()? {
        0 => Method::Stored,
        8 => Method::Deflated,
        other => Method::Other(other),
    };
    fields.take(4 + 4)?;
    let stored_size = fields.u32()?;
    let size = fields.u32()?;
    let name_len = fields.u16()?;
    let extra_len = fields.u16()?;
    let comment_len = fields.u16()?;
    fields.take(2 + 2 + 4)?;
    let header = fields.u32()?;
    let raw_name = fields.take(name_len.into())?;
    let extra = fields.take(extra_len.into())?;
    fields.take(comment_len.into())?;

    let name = std::str::from_utf8(raw_name)
        .map_err(|_| malformed("the zip archive has an entry whose name is not UTF-8"))?
        .to_string();
    let (stored_size, size, header) = widen(extra, stored_size, size, header)?;
    // Bit 0: encrypted; 5: patch data; 6: strong encryption; 13: masked header.
    if flags & 0x2061 != 0 {
        return Err(unsupported(format!(
            "entry {name:?} of the zip archive is encrypted or patched"
        )));
    }
    if method == Method::Stored && stored_size != size {
        return Err(ambiguous(format!(
            "entry {name:?} of the zip archive gives two sizes, {stored_size} and {size} bytes"
        )));
    }
    let data = local_data(source, header, raw_name, &name)?;
    if data.checked_add(stored_size).is_none_or(|end| end > limit) {
        return Err(malformed(format!(
            "entry {name:?} of the zip archive reaches past the end of its data"
        )));
    }
    let entry = Entry {
        name,
        method,
        data,
        stored_size,
        size,
    };
    Ok((entry, header))
}

/// Where the data of the entry with this local header begins.
fn local_data(source: &Source, header: u64, raw_name: &[u8], name: &str) -> Result<u64> {
    let broken = || {
        malformed(format!(
            "entry {name:?} of the zip archive has no local header"
        ))
    };
    let start = source
        .read_at(header, 30 + raw_name.len() as u64)
        .map_err(|_| broken())?;
    let mut fields = Fields(&start);
    if fields.take(4)? != LOCAL {
        return Err(broken());
    }
    fields.take(22)?;
    let name_len = fields.u16()?;
    let extra_len = fields.u16()?;
    if fields.0 != raw_name || usize::from(name_len) != raw_name.len() {
        return Err(ambiguous(format!(
            "entry {name:?} of the zip archive has another name in its local header"
        )));
    }
    Ok(header + 30 + u64::from(name_len) + u64::from(extra_len))
}

/// Sizes and offset with the 64-bit extra field (APPNOTE 4.5.3) put in where the
/// 32-bit fields say so.
fn widen(extra: &[u8], stored_size: u32, size: u32, header: u32) -> Result<(u64, u64, u64)> {
    let mut wide = None;
    let mut fields = Fields(extra);
    while fields.0.len() >= 4 {
        let id = fields.u16()?;
        let len = fields.u16()?;
        let body = fields.take(len.into())?;
        if id == 1 && wide.replace(body).is_some() {
            return Err(ambiguous(
                "an entry of the zip archive gives its 64-bit sizes twice",
            ));
        }
    }
    let mut wide = Fields(wide.unwrap_or_default());
    let mut pick = |narrow: u32| match narrow {
        u32::MAX => wide.u64(),
        _ => Ok(narrow.into()),
    };
    // The order of the field is size, stored size, offset.
    let size = pick(size)?;
    let stored_size = pick(stored_size)?;
    let header = pick(header)?;
    Ok((stored_size, size, header))
}

fn refuse_overlaps(mut extents: Vec<(u64, u64)>) -> Result<()> {
    extents.sort_unstable();
    match extents.windows(2).any(|pair| pair[0].1 > pair[1].0) {
        true => Err(ambiguous("entries of the zip archive overlap")),
        false => Ok(()),
    }
}

fn unique_names(entries: &[Entry]) -> Result<HashMap<String, usize>> {
    let mut names = HashMap::with_capacity(entries.len());
    for (index, entry) in entries.iter().enumerate() {
        if names
            .insert(entry.name.to_ascii_lowercase(), index)
            .is_some()
        {
            return Err(ambiguous(format!(
                "the zip archive has two entries {:?}, or two that differ in upper and lower case only",
                entry.name
            )));
        }
    }
    Ok(names)
}

fn ambiguous(what: impl Into<String>) -> Error {
    Refusal::new(Cause::Ambiguous, what).into()
}

fn malformed(what: impl Into<String>) -> Error {
    Refusal::new(Cause::Malformed, what).into()
}

fn unsupported(what: impl Into<String>) -> Error {
    Refusal::new(Cause::Unsupported, what).into()
}

/// Little-endian fields of a record, consumed from the front.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let (head, rest) = self
            .0
            .split_at_checked(len)
            .ok_or_else(|| malformed("a record of the zip archive is cut off"))?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (head, rest) = self
            .0
            .split_first_chunk()
            .ok_or_else(|| malformed("a record of the zip archive is cut off"))?;
        self.0 = rest;
        Ok(*head)
    }

    fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }
}
