//! Entries of zip archives that tensors lie in: what there is to check of them when
//! their bytes are read.

use serde::{Deserialize, Serialize};

use super::formats::zip::{Method, ZipEntry, local};
use super::refusal::Refusal;
use crate::source::{self, Source};

/// An entry of a zip archive that a storage lies in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveEntry {
    pub name: Box<str>,
    /// The companion that the archive lies in, an index into
    /// [`Checkpoint::companions`](super::Checkpoint::companions); None for the file
    /// itself.
    pub companion: Option<u32>,
    /// Where its local header begins, in bytes from the start of that file.
    pub header: u64,
    /// Where its data begin.
    pub data: u64,
    /// Bytes of the data.
    pub len: u64,
    /// Of what the data are when they are inflated; 0 where none was written.
    pub crc32: u32,
    pub is_deflated: bool,
    /// Whether nobody has looked at the local header: the data should begin there.
    pub is_predicted: bool,
}

/// Bytes of a file, and what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum<'a> {
    /// What they are called in the archive, for messages.
    pub name: &'a str,
    /// As [`ArchiveEntry::companion`].
    pub companion: Option<u32>,
    /// Bytes from the start of that file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    pub crc32: u32,
}

impl ArchiveEntry {
    /// An entry of an archive that is the file itself.
    pub fn of(entry: &ZipEntry) -> ArchiveEntry {
        ArchiveEntry {
            name: entry.name.as_str().into(),
            companion: None,
            header: entry.header,
            data: entry.data,
            len: entry.stored_size,
            crc32: entry.crc32,
            is_deflated: entry.method == Method::Deflated,
            is_predicted: entry.is_predicted,
        }
    }

    /// The checksum of the bytes that the entry has in the file, if there is one.
    pub fn checksum(&self) -> Option<Checksum<'_>> {
        let is_known = !self.is_deflated && self.crc32 != 0;
        is_known.then_some(Checksum {
            name: &self.name,
            companion: self.companion,
            offset: self.data,
            len: self.len,
            crc32: self.crc32,
        })
    }

    fn method(&self) -> Method {
        match self.is_deflated {
            true => Method::Deflated,
            false => Method::Stored,
        }
    }
}

/// Looks at the local headers of the `entries` that lie in `file`, which is the
/// companion with the number `companion` or the file itself. The refusal if one of
/// them is not where, or what, it was taken to be.
pub fn check_headers(
    entries: &[ArchiveEntry],
    companion: Option<u32>,
    file: &Source,
) -> source::Result<Option<Refusal>> {
    let entries = entries.iter();
    let entries = entries.filter(|entry| entry.is_predicted && entry.companion == companion);
    let entries: Vec<_> = entries.collect();
    let ranges = entries.iter();
    let ranges = ranges.map(|entry| local::range(entry.header, &entry.name, file.size()));
    let ranges = match ranges.collect::<Result<Vec<_>, Refusal>>() {
        Ok(ranges) => ranges,
        Err(refusal) => return Ok(Some(refusal)),
    };
    let headers = file.read_ranges(&ranges)?;
    let mut checked = entries.iter().zip(&headers).map(|(entry, header)| {
        let predicted = entry.data.saturating_sub(entry.header);
        local::check(header, &entry.name, entry.method(), predicted)
    });
    Ok(checked.find_map(Result::err))
}
