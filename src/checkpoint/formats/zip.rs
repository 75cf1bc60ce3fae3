//! Zip archives as torch writes them and people zip them again.
//!
//! The central directory is the authority: torch's local headers carry neither
//! sizes nor checksums. What two readers could understand differently is refused
//! here: torch's own reader (miniz) ignores checksums and local names, looks
//! names up without regard to case, and picks among duplicates by their number.
//! Layout: PKWARE APPNOTE 4.3; what torch makes of it: caffe2/serialize.

use std::collections::HashMap;

use crate::checkpoint::error::{Error, Result};
use crate::checkpoint::refusal::{Cause, Refusal, shown};
use crate::checkpoint::storage::{Backing, Codec, Encoded, Storage};
use crate::source::{self, Span};

/// Entries are refused above this count.
const MAX_ENTRIES: u64 = 1 << 20;
/// A directory of more bytes is refused: torch's entries take about 70.
const MAX_DIRECTORY: u64 = 96 << 20;
/// All deflated entries together may be so many times as large as the archive ...
const MAX_RATIO: u64 = 100;
/// ... but at least this many bytes, and at most that many.
const FREE_INFLATED: u64 = 1 << 20;
const MAX_INFLATED: u64 = 64 << 30;
/// The end record and the longest comment after it.
const TAIL: u64 = 22 + 0xFFFF;

pub const LOCAL: [u8; 4] = *b"PK\x03\x04";
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
    /// Encrypted, or a patch to another archive.
    Encrypted,
    /// Any other number of APPNOTE 4.4.5.
    Other(u16),
}

impl Method {
    /// By the general purpose flags and the method of a header. Of the flags,
    /// bit 0 means encrypted; 5: patch data; 6: strong encryption; 13: masked
    /// header.
    fn of(flags: u16, method: u16) -> Method {
        match (flags & 0x2061, method) {
            (0, 0) => Method::Stored,
            (0, 8) => Method::Deflated,
            (0, other) => Method::Other(other),
            _ => Method::Encrypted,
        }
    }
}

/// A file inside the archive.
#[derive(Debug)]
pub struct ZipEntry {
    pub name: String,
    pub method: Method,
    /// Where the data begins, in bytes from the start of the archive.
    pub data: u64,
    /// Bytes, once inflated where it is compressed.
    pub size: u64,
    /// Bytes in the archive.
    stored_size: u64,
}

impl ZipEntry {
    /// The bytes of the file, where they can be had.
    pub fn storage(&self) -> std::result::Result<Storage, Refusal> {
        let how = match self.method {
            Method::Stored => return Ok(Storage::in_file(self.data, self.size)),
            Method::Deflated => {
                let encoded = Encoded {
                    offset: self.data,
                    len: self.stored_size,
                    codec: Codec::Deflate,
                };
                return Ok(Storage {
                    backing: Backing::Decoded(encoded),
                    len: self.size,
                });
            }
            Method::Encrypted => "encrypted or patched".to_string(),
            Method::Other(method) => format!("compressed by the unusual method {method}"),
        };
        Err(Refusal::new(
            Cause::Unsupported,
            format!("entry `{}` of the zip archive is {how}", shown(&self.name)),
        ))
    }
}

/// The entries of an archive, none of which shares a name or a byte with another.
#[derive(Debug)]
pub struct Archive {
    entries: Vec<ZipEntry>,
    /// [`key`] of the name to entry.
    names: HashMap<String, usize>,
}

impl Archive {
    /// Reads the central directory and every local header of `source`.
    pub fn read(source: Span) -> Result<Archive> {
        let entries = Archive::list(source)?;
        let names = unique_names(&entries)?;
        Ok(Archive { entries, names })
    }

    /// The entries of `source`, none of which shares a byte with another. Two may
    /// have one name.
    pub fn list(source: Span) -> Result<Vec<ZipEntry>> {
        let directory = CentralDirectory::find(source)?;
        let listed = directory.entries(source)?;
        let mut entries = Vec::with_capacity(listed.len());
        let mut extents = Vec::with_capacity(listed.len());
        for entry in listed {
            let data = entry.data(source)?;
            let end = data
                .checked_add(entry.stored_size)
                .filter(|end| *end <= directory.offset);
            let Some(end) = end else {
                return Err(malformed(format!(
                    "entry `{}` of the zip archive reaches past the end of its data",
                    shown(&entry.name)
                )));
            };
            extents.push((entry.header, end));
            entries.push(ZipEntry {
                name: entry.name,
                method: entry.method,
                data,
                stored_size: entry.stored_size,
                size: entry.size,
            });
        }
        refuse_bomb(&entries, source.size())?;
        refuse_overlaps(extents)?;
        Ok(entries)
    }

    /// The names in the central directory of `source`, without a look at the
    /// entries themselves.
    pub fn names(source: Span) -> Result<Vec<String>> {
        let listed = CentralDirectory::find(source)?.entries(source)?;
        Ok(listed.into_iter().map(|entry| entry.name).collect())
    }

    pub fn entries(&self) -> &[ZipEntry] {
        &self.entries
    }

    /// The entry of this name, without regard to case, as torch looks it up;
    /// of the sources below `ROOT/code/`, the one that has it to the letter.
    pub fn entry(&self, name: &str) -> Option<&ZipEntry> {
        let index = *self.names.get(&key(name))?;
        self.entries.get(index)
    }
}

/// Where the central directory lies.
struct CentralDirectory {
    offset: u64,
    size: u64,
    count: u64,
}

impl CentralDirectory {
    fn find(source: Span) -> Result<CentralDirectory> {
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
        let mut directory = CentralDirectory {
            offset: offset.into(),
            size: size.into(),
            count: count.into(),
        };
        let mut directory_end = end_offset;
        if let Some(end64) = CentralDirectory::find64(source, end_offset)? {
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
                format!(
                    "the directory of the zip archive has {} entries in {} bytes",
                    directory.count, directory.size
                ),
            )
            .into());
        }
        Ok(directory)
    }

    /// The 64-bit end record and where it begins, when a locator stands before
    /// the end record.
    fn find64(source: Span, end_offset: u64) -> Result<Option<(CentralDirectory, u64)>> {
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
        let rest = fields.u64()?;
        // Of two archives in a row, the second's locator points into the first.
        if position
            .checked_add(12)
            .and_then(|rest_start| rest_start.checked_add(rest))
            != Some(locator_offset)
        {
            return Err(ambiguous(
                "the zip archive's 64-bit end record is not where its locator is",
            ));
        }
        fields.take(2 + 2)?;
        let disks = (fields.u32()?, fields.u32()?);
        let disk_count = fields.u64()?;
        let count = fields.u64()?;
        let size = fields.u64()?;
        let offset = fields.u64()?;
        if disks != (0, 0) || disk_count != count {
            return Err(unsupported("the zip archive is split over several files"));
        }
        let directory = CentralDirectory {
            offset,
            size,
            count,
        };
        Ok(Some((directory, position)))
    }

    /// What the directory lists.
    fn entries(&self, source: Span) -> Result<Vec<Listed>> {
        let bytes = source.read_at(self.offset, self.size)?;
        let mut fields = Fields(&bytes);
        let mut listed = Vec::new();
        for _ in 0..self.count {
            listed.push(Listed::read(&mut fields)?);
        }
        match fields.0.is_empty() {
            true => Ok(listed),
            false => Err(ambiguous(
                "the zip directory holds more than the entries it counts",
            )),
        }
    }
}

/// One entry of the central directory.
struct Listed {
    name: String,
    method: Method,
    /// Bytes in the archive.
    stored_size: u64,
    /// Bytes of the file.
    size: u64,
    /// Where the local header begins, in bytes from the start of the archive.
    header: u64,
}

impl Listed {
    fn read(fields: &mut Fields) -> Result<Listed> {
        if fields.take(4)? != CENTRAL {
            return Err(malformed("the zip directory is damaged"));
        }
        fields.take(4)?;
        let method = Method::of(fields.u16()?, fields.u16()?);
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
            stored_size,
            size,
            header,
        })
    }

    /// Where the data begins, by the local header, which has to agree on what
    /// is there.
    fn data(&self, source: Span) -> Result<u64> {
        let broken = || {
            malformed(format!(
                "entry `{}` of the zip archive has no local header",
                shown(&self.name)
            ))
        };
        let start = match source.read_at(self.header, 30 + self.name.len() as u64) {
            Err(source::Error::PastEnd { .. }) => return Err(broken()),
            start => start?,
        };
        let mut fields = Fields(&start);
        if fields.take(4)? != LOCAL {
            return Err(broken());
        }
        fields.take(2)?;
        let method = Method::of(fields.u16()?, fields.u16()?);
        fields.take(16)?;
        let name_len = fields.u16()?;
        let extra_len = fields.u16()?;
        if method != self.method
            || fields.0 != self.name.as_bytes()
            || usize::from(name_len) != self.name.len()
        {
            return Err(ambiguous(format!(
                "entry `{}` of the zip archive has another name or method in its local header",
                shown(&self.name)
            )));
        }
        Ok(self.header + 30 + u64::from(name_len) + u64::from(extra_len))
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
    fn read(extra: &'a [u8]) -> Result<Extra<'a>> {
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
    fn widen(&self, stored_size: u32, size: u32, header: u32) -> Result<(u64, u64, u64)> {
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

/// Deflate turns a byte into a thousand at most. Weights never do, on the whole.
fn refuse_bomb(entries: &[ZipEntry], archive_size: u64) -> Result<()> {
    let deflated = entries
        .iter()
        .filter(|entry| entry.method == Method::Deflated);
    let inflated = deflated.fold(0_u64, |sum, entry| sum.saturating_add(entry.size));
    let most = archive_size
        .saturating_mul(MAX_RATIO)
        .clamp(FREE_INFLATED, MAX_INFLATED);
    match inflated <= most {
        true => Ok(()),
        false => Err(Refusal::new(
            Cause::TooLarge,
            format!("the zip archive of {archive_size} bytes inflates to {inflated}"),
        )
        .into()),
    }
}

fn refuse_overlaps(mut extents: Vec<(u64, u64)>) -> Result<()> {
    extents.sort_unstable();
    match extents.windows(2).any(|pair| pair[0].1 > pair[1].0) {
        true => Err(ambiguous("entries of the zip archive overlap")),
        false => Ok(()),
    }
}

/// What a name is looked up by: without regard to case, for so torch does. Sources
/// of TorchScript are called after Python modules, which may well be `linear` and
/// `Linear`.
fn key(name: &str) -> String {
    match name.split_once('/') {
        Some((root, rest)) if rest.starts_with("code/") => {
            format!("{}/{rest}", root.to_ascii_lowercase())
        }
        _ => name.to_ascii_lowercase(),
    }
}

fn unique_names(entries: &[ZipEntry]) -> Result<HashMap<String, usize>> {
    let mut names = HashMap::with_capacity(entries.len());
    for (index, entry) in entries.iter().enumerate() {
        if names.insert(key(&entry.name), index).is_some() {
            return Err(ambiguous(format!(
                "the zip archive has two entries `{}`, or two that differ in upper and lower case only",
                shown(&entry.name)
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
