//! The end of an archive: its end records and its central directory, which is the
//! authority on what is in it.

use std::borrow::Cow;

use super::fields::Fields;
use crate::budget::Share;
use crate::checkpoint::error::Result;
use crate::checkpoint::refusal::{
    Cause, Refusal, ambiguous, malformed, shown, too_large, unsupported,
};
use crate::source::Span;

/// Entries are refused above this count.
const MAX_ENTRIES: u64 = 1 << 20;
/// A directory of more bytes is refused: torch's entries take about 70.
const MAX_DIRECTORY: u64 = 96 << 20;
/// Bytes of memory for each byte of a directory that is listed.
const ENTRIES: u64 = 6;
/// The end record and the longest comment after it.
const TAIL: u64 = 22 + 0xFFFF;
/// What is read before a directory that has to be read: torch writes a few small
/// entries last.
const LAST_ENTRIES: u64 = 4 << 10;
/// How much of a long directory is looked at first for a name: torch writes its
/// pickle first.
const FIRST_NAMES: u64 = 64 << 10;

const CENTRAL: [u8; 4] = *b"PK\x01\x02";
const END: [u8; 4] = *b"PK\x05\x06";
const END64: [u8; 4] = *b"PK\x06\x06";
const LOCATOR64: [u8; 4] = *b"PK\x06\x07";

/// The end of an archive, which is held in memory.
pub struct Tail<'a> {
    source: Span<'a>,
    /// Bytes from the start of the archive to those that are held.
    start: u64,
    bytes: Vec<u8>,
}

impl<'a> Tail<'a> {
    /// Reads as much as the end records may take.
    pub fn read(source: Span<'a>) -> Result<Tail<'a>> {
        let start = source.size().saturating_sub(TAIL);
        Ok(Tail {
            source,
            start,
            bytes: source.read_at(start, source.size() - start)?,
        })
    }

    /// Holds nothing any more: what is asked for is read again.
    pub fn forget(&mut self) {
        (self.start, self.bytes) = (self.source.size(), Vec::new());
    }

    /// The `len` bytes from `offset` on, if they are held.
    pub fn held(&self, offset: u64, len: u64) -> Option<&[u8]> {
        let start = usize::try_from(offset.checked_sub(self.start)?).ok()?;
        let end = start.checked_add(usize::try_from(len).ok()?)?;
        self.bytes.get(start..end)
    }

    /// The same, read if they are not.
    pub fn get(&self, offset: u64, len: u64) -> Result<Cow<'_, [u8]>> {
        Ok(match self.held(offset, len) {
            Some(bytes) => bytes.into(),
            None => self.source.read_at(offset, len)?.into(),
        })
    }

    /// Holds the directory, and the last entries before it.
    fn hold(&mut self, directory: &CentralDirectory) -> Result<()> {
        let start = directory.offset.saturating_sub(LAST_ENTRIES);
        if directory.offset < self.start {
            let mut bytes = self.source.read_at(start, self.start - start)?;
            bytes.append(&mut self.bytes);
            (self.start, self.bytes) = (start, bytes);
        }
        Ok(())
    }
}

/// Where the central directory lies.
pub struct CentralDirectory {
    /// Bytes from the start of the archive.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
    /// Entries.
    pub count: u64,
}

impl CentralDirectory {
    pub fn find(tail: &Tail) -> Result<CentralDirectory> {
        let bytes = tail.bytes.as_slice();
        let found = (0..bytes.len().saturating_sub(21))
            .rev()
            .find(|&at| bytes[at..].starts_with(&END));
        let Some(at) = found else {
            return Err(Refusal::new(
                Cause::NotDownloaded,
                "the zip archive has no end: the file was cut off",
            )
            .into());
        };
        let end_offset = tail.start + at as u64;
        let mut fields = Fields(&bytes[at + 4..]);
        let disk = fields.u16()?;
        let directory_disk = fields.u16()?;
        let disk_count = fields.u16()?;
        let count = fields.u16()?;
        let size = fields.u32()?;
        let offset = fields.u32()?;
        let comment = fields.u16()?;
        if usize::from(comment) > fields.0.len() {
            return Err(ambiguous("the zip archive's comment is cut off").into());
        }
        if (disk, directory_disk) != (0, 0) || disk_count != count {
            return Err(unsupported("the zip archive is split over several files").into());
        }
        let mut directory = CentralDirectory {
            offset: offset.into(),
            size: size.into(),
            count: count.into(),
        };
        let mut directory_end = end_offset;
        if let Some(end64) = CentralDirectory::find64(tail, end_offset)? {
            let (wide, position) = end64;
            let agrees = (count == u16::MAX || u64::from(count) == wide.count)
                && (size == u32::MAX || u64::from(size) == wide.size)
                && (offset == u32::MAX || u64::from(offset) == wide.offset);
            if !agrees {
                return Err(ambiguous("the two end records of the zip archive disagree").into());
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
            )
            .into());
        }
        if directory.count > MAX_ENTRIES || directory.size > MAX_DIRECTORY {
            return Err(too_large(format!(
                "the directory of the zip archive has {} entries in {} bytes",
                directory.count, directory.size
            ))
            .into());
        }
        Ok(directory)
    }

    /// The 64-bit end record and where it begins, when a locator stands before
    /// the end record.
    fn find64(tail: &Tail, end_offset: u64) -> Result<Option<(CentralDirectory, u64)>> {
        let Some(locator_offset) = end_offset.checked_sub(20) else {
            return Ok(None);
        };
        let locator = tail.get(locator_offset, 20)?;
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
            return Err(ambiguous("the zip archive's 64-bit end record is misplaced").into());
        }
        let record = tail.get(position, 56)?;
        let mut fields = Fields(&record);
        if fields.take(4)? != END64 {
            return Err(ambiguous("the zip archive's 64-bit end record is missing").into());
        }
        let rest = fields.u64()?;
        // Of two archives in a row, the second's locator points into the first.
        if position
            .checked_add(12)
            .and_then(|rest_start| rest_start.checked_add(rest))
            != Some(locator_offset)
        {
            return Err(ambiguous(
                "the zip archive's 64-bit end record is not where its locator is",
            )
            .into());
        }
        fields.take(2 + 2)?;
        let disks = (fields.u32()?, fields.u32()?);
        let disk_count = fields.u64()?;
        let count = fields.u64()?;
        let size = fields.u64()?;
        let offset = fields.u64()?;
        if disks != (0, 0) || disk_count != count {
            return Err(unsupported("the zip archive is split over several files").into());
        }
        let directory = CentralDirectory {
            offset,
            size,
            count,
        };
        Ok(Some((directory, position)))
    }

    /// What the directory lists, in its order. From then on `tail` holds it all.
    pub fn list(&self, tail: &mut Tail, share: &Share) -> Result<Vec<Listed>> {
        // Its bytes, and each entry several times with what is known of it.
        share.take(self.size.saturating_mul(ENTRIES))?;
        tail.hold(self)?;
        let bytes = tail.get(self.offset, self.size)?;
        let mut fields = Fields(&bytes);
        let mut listed = Vec::new();
        for _ in 0..self.count {
            listed.push(Listed::read(&mut fields)?);
        }
        self.refuse_more(&fields)?;
        Ok(listed)
    }

    /// Refuses a directory of which something is left after its last entry.
    fn refuse_more(&self, left: &Fields) -> std::result::Result<(), Refusal> {
        match left.0.is_empty() {
            true => Ok(()),
            false => Err(ambiguous(
                "the zip directory holds more than the entries it counts",
            )),
        }
    }

    /// Whether any of the names is one that `is_wanted`. No more is read and checked
    /// than it takes to find that out.
    pub fn any_name(&self, tail: &Tail, is_wanted: impl Fn(&str) -> bool) -> Result<bool> {
        for len in [self.size.min(FIRST_NAMES), self.size] {
            let bytes = tail.get(self.offset, len)?;
            let mut fields = Fields(&bytes);
            for _ in 0..self.count {
                let name = match Listed::read(&mut fields) {
                    Ok(listed) => listed.name,
                    // Cut off where the first part ends.
                    Err(_) if len < self.size => break,
                    Err(refusal) => return Err(refusal.into()),
                };
                if is_wanted(&name) {
                    return Ok(true);
                }
            }
            if len == self.size {
                self.refuse_more(&fields)?;
                break;
            }
        }
        Ok(false)
    }
}

/// How an entry's bytes are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// As they are.
    Stored,
    Deflated,
    /// Encrypted, or a patch to another archive.
    Encrypted,
    /// Any other number of APPNOTE 4.4.5.
    Other(u16),
}

impl Method {
    /// By the general purpose flags and the method of a header. Of the flags,
    /// bit 0 means encrypted; 5: patch data; 6: strong encryption; 13: masked
    /// header.
    pub fn of(flags: u16, method: u16) -> Method {
        match (flags & 0x2061, method) {
            (0, 0) => Method::Stored,
            (0, 8) => Method::Deflated,
            (0, other) => Method::Other(other),
            _ => Method::Encrypted,
        }
    }
}

/// One entry of the central directory.
pub struct Listed {
    pub name: String,
    pub method: Method,
    /// Sizes and checksum stand behind the data too.
    pub has_descriptor: bool,
    /// Of the file; 0 where none was written.
    pub crc32: u32,
    /// Bytes in the archive.
    pub stored_size: u64,
    /// Bytes of the file.
    pub size: u64,
    /// Where the local header begins, in bytes from the start of the archive.
    pub header: u64,
}

impl Listed {
    fn read(fields: &mut Fields) -> std::result::Result<Listed, Refusal> {
        if fields.take(4)? != CENTRAL {
            return Err(malformed("the zip directory is damaged"));
        }
        fields.take(4)?;
        let flags = fields.u16()?;
        let method = Method::of(flags, fields.u16()?);
        fields.take(4)?;
        let crc32 = fields.u32()?;
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

        // torch looks names up as C strings.
        let name = std::str::from_utf8(raw_name)
            .ok()
            .filter(|name| !name.contains('\0'))
            .ok_or_else(|| malformed("the zip archive has an entry whose name is no UTF-8 text"))?
            .to_string();
        let extra = Extra::read(extra)?;
        if extra.name.is_some_and(|other| other != raw_name) {
            return Err(ambiguous(format!(
                "entry `{}` of the zip archive has a second name",
                shown(&name)
            )));
        }
        let (stored_size, size, header) = extra.widen(stored_size, size, header)?;
        if method == Method::Stored && stored_size != size {
            return Err(ambiguous(format!(
                "entry `{}` of the zip archive gives two sizes, {stored_size} and {size} bytes",
                shown(&name)
            )));
        }
        Ok(Listed {
            name,
            method,
            has_descriptor: flags & 0x8 != 0,
            crc32,
            stored_size,
            size,
            header,
        })
    }
}

/// The extra fields of an entry that change what it is (APPNOTE 4.5.3, 4.6.9).
struct Extra<'a> {
    /// 64-bit sizes and offset.
    wide: Option<&'a [u8]>,
    /// The name in the Unicode-path field.
    name: Option<&'a [u8]>,
}

impl<'a> Extra<'a> {
    fn read(extra: &'a [u8]) -> std::result::Result<Extra<'a>, Refusal> {
        let mut found = Extra {
            wide: None,
            name: None,
        };
        let mut fields = Fields(extra);
        while fields.0.len() >= 4 {
            let id = fields.u16()?;
            let len = fields.u16()?;
            let body = fields.take(len.into())?;
            let twice = match id {
                0x0001 => found.wide.replace(body).is_some(),
                // A version byte and the checksum of the other name come first.
                0x7075 => found
                    .name
                    .replace(body.get(5..).unwrap_or_default())
                    .is_some(),
                _ => false,
            };
            if twice {
                return Err(ambiguous(
                    "an entry of the zip archive gives its sizes or its name twice",
                ));
            }
        }
        Ok(found)
    }

    /// Stored size, size and offset, from the 64-bit field where the 32-bit
    /// fields say so.
    fn widen(
        &self,
        stored_size: u32,
        size: u32,
        header: u32,
    ) -> std::result::Result<(u64, u64, u64), Refusal> {
        let mut wide = Fields(self.wide.unwrap_or_default());
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
}
