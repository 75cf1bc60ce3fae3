//! Zip archives as torch writes them and people zip them again.
//!
//! The central directory is the authority: torch's local headers carry neither
//! sizes nor checksums. What two readers could understand differently is refused
//! here: torch's own reader (miniz) ignores checksums and local names, looks
//! names up without regard to case, and picks among duplicates by their number.
//! Layout: PKWARE APPNOTE 4.3; what torch makes of it: caffe2/serialize.

mod directory;
mod fields;
pub mod local;

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Read;
use std::ops::Range;

use flate2::read::DeflateDecoder;

use crate::budget::Share;
use crate::checkpoint::error::Result;
use crate::checkpoint::refusal::{Cause, Refusal, ambiguous, malformed, shown, too_large};
use crate::checkpoint::storage::{Backing, Codec, Encoded, Storage};
use crate::source::{self, Span};
use directory::Listed;

pub use directory::{CentralDirectory, Method, Tail};

/// All deflated entries together may be so many times as large as the archive ...
const MAX_RATIO: u64 = 100;
/// ... but at least this many bytes, and at most that many.
const FREE_INFLATED: u64 = 1 << 20;
const MAX_INFLATED: u64 = 64 << 30;
/// A file inside the archive.
#[derive(Debug)]
pub struct ZipEntry {
    pub name: String,
    pub method: Method,
    /// Where the local header begins, in bytes from the start of the archive.
    pub header: u64,
    /// Where the data begins, in bytes from the start of the archive.
    pub data: u64,
    /// Whether that is so by the layout of torch's archives; else the local header
    /// says it.
    pub is_predicted: bool,
    /// Bytes, once inflated where it is compressed.
    pub size: u64,
    /// Bytes in the archive.
    pub stored_size: u64,
    /// Of the file; 0 where none was written.
    pub crc32: u32,
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

    /// Bytes in the archive of a small file, which has `limit` at most.
    pub fn whole(&self, limit: u64) -> std::result::Result<u64, Refusal> {
        /// What deflating may add to bytes that it cannot make fewer, and more.
        const SLACK: u64 = 1 << 10;
        self.storage()?;
        if self.size > limit || self.stored_size > limit + limit / 8 + SLACK {
            return Err(too_large(format!(
                "entry `{}` has {} bytes",
                shown(&self.name),
                self.size
            )));
        }
        Ok(self.stored_size)
    }

    /// The file, whose bytes in the archive are `stored`.
    pub fn inflate(&self, stored: Vec<u8>, share: &Share) -> std::result::Result<Vec<u8>, Refusal> {
        if self.method != Method::Deflated {
            return Ok(stored);
        }
        share.take(self.size)?;
        // The size may be a lie: no more is allocated than there is.
        let mut bytes = Vec::new();
        let inflated = DeflateDecoder::new(stored.as_slice())
            .take(self.size.saturating_add(1))
            .read_to_end(&mut bytes);
        match inflated {
            Ok(len) if len as u64 == self.size => Ok(bytes),
            _ => Err(malformed(format!(
                "entry `{}` of the zip archive is damaged",
                shown(&self.name)
            ))),
        }
    }
}

/// The entries of an archive, none of which shares a name or a byte with another.
pub struct Archive<'a> {
    source: Span<'a>,
    tail: Tail<'a>,
    directory: CentralDirectory,
    entries: Vec<ZipEntry>,
    /// [`key`] of the name to entry. There are not so many.
    names: HashMap<Box<str>, u32>,
}

impl<'a> Archive<'a> {
    /// Reads the central directory of `source`, and the local headers of those
    /// entries whose data are not where torch would have put them. Where that costs
    /// little, those of all.
    pub fn read(source: Span<'a>, share: &Share) -> Result<Archive<'a>> {
        let (mut tail, directory, entries) = entries(source, share, !source.is_near())?;
        if source.is_near() {
            tail.forget();
        }
        let names = unique_names(&entries)?;
        Ok(Archive {
            source,
            tail,
            directory,
            entries,
            names,
        })
    }

    /// The central directory, byte for byte.
    pub fn directory(&self) -> Result<Cow<'_, [u8]>> {
        self.tail.get(self.directory.offset, self.directory.size)
    }

    pub fn entries(&self) -> &[ZipEntry] {
        &self.entries
    }

    /// The entry of this name, without regard to case, as torch looks it up;
    /// of the sources below `ROOT/code/`, the one that has it to the letter.
    pub fn entry(&self, name: &str) -> Option<&ZipEntry> {
        self.entries.get(self.position(name)?)
    }

    /// Its place among the entries.
    pub fn position(&self, name: &str) -> Option<usize> {
        Some(*self.names.get(key(name).as_str())? as usize)
    }

    /// The first bytes of the data of each of these entries, as they are in the
    /// archive: so many at most. Where predicted, the header is checked too.
    pub fn fetch(&self, wanted: &[(&ZipEntry, u64)]) -> Result<Vec<Vec<u8>>> {
        let ranges = wanted.iter().map(|(entry, most)| {
            let start = match entry.is_predicted {
                true => entry.header,
                false => entry.data,
            };
            start..entry.data + entry.stored_size.min(*most)
        });
        let ranges: Vec<Range<u64>> = ranges.collect();
        let read = |range: &Range<u64>| self.tail.held(range.start, range.end - range.start);
        let far = ranges.iter().filter(|range| read(range).is_none()).cloned();
        let far: Vec<_> = far.collect();
        let far = self.source.read_ranges(&far)?;
        let mut far = far.into_iter();
        let found = ranges.iter().zip(wanted).map(|(range, (entry, _))| {
            let mut bytes = match read(range) {
                Some(bytes) => bytes.to_vec(),
                None => far.next().unwrap_or_default(),
            };
            if entry.is_predicted {
                local::check(&bytes, &entry.name, entry.method, entry.data - entry.header)?;
            }
            // The range begins with the header, or with the data.
            let before = (entry.data - range.start).min(bytes.len() as u64);
            bytes.drain(..before as usize);
            Ok(bytes)
        });
        found.collect()
    }
}

/// The entries of `source`, none of which shares a byte with another, by all local
/// headers. Two may have one name.
pub fn list(source: Span, share: &Share) -> Result<Vec<ZipEntry>> {
    let (_, _, entries) = entries(source, share, false)?;
    Ok(entries)
}

/// Reads the central directory, and the local headers of all entries or, if the others
/// are predicted, of those alone that cannot be.
fn entries<'a>(
    source: Span<'a>,
    share: &Share,
    predicts: bool,
) -> Result<(Tail<'a>, CentralDirectory, Vec<ZipEntry>)> {
    let mut tail = Tail::read(source)?;
    let directory = CentralDirectory::find(&tail)?;
    let listed = directory.list(&mut tail, share)?;
    let data = data(source, &tail, &directory, &listed, predicts)?;
    let mut entries = Vec::with_capacity(listed.len());
    let mut extents = Vec::with_capacity(listed.len());
    for (entry, (data, is_predicted)) in listed.into_iter().zip(data) {
        let end = data
            .checked_add(entry.stored_size)
            .filter(|end| *end <= directory.offset);
        let Some(end) = end else {
            return Err(malformed(format!(
                "entry `{}` of the zip archive reaches past the end of its data",
                shown(&entry.name)
            ))
            .into());
        };
        extents.push((entry.header, end));
        entries.push(ZipEntry {
            name: entry.name,
            method: entry.method,
            header: entry.header,
            data,
            is_predicted,
            stored_size: entry.stored_size,
            size: entry.size,
            crc32: entry.crc32,
        });
    }
    refuse_bomb(&entries, source.size())?;
    refuse_overlaps(extents)?;
    Ok((tail, directory, entries))
}

/// Where the data of each entry begin, and whether that is predicted.
fn data(
    source: Span,
    tail: &Tail,
    directory: &CentralDirectory,
    listed: &[Listed],
    predicts: bool,
) -> Result<Vec<(u64, bool)>> {
    let mut order: Vec<usize> = (0..listed.len()).collect();
    order.sort_unstable_by_key(|number| listed[*number].header);
    let mut data = vec![(0, true); listed.len()];
    let mut others = Vec::new();
    for (at, &number) in order.iter().enumerate() {
        let next = order.get(at + 1);
        let next = next.map_or(directory.offset, |next| listed[*next].header);
        match local::predict(&listed[number], next) {
            Some(start) if predicts => data[number].0 = start,
            _ => others.push(number),
        }
    }
    let ranges = others.iter().map(|number| {
        let entry = &listed[*number];
        local::range(entry.header, &entry.name, source.size())
    });
    let ranges = ranges.collect::<std::result::Result<Vec<_>, Refusal>>()?;
    let headers = source::read_many(&ranges, |offset, len| match tail.held(offset, len) {
        Some(bytes) => Ok(bytes.to_vec()),
        None => source.read_at(offset, len),
    })?;
    for (&number, header) in others.iter().zip(headers) {
        let entry = &listed[number];
        let len = local::len(&header, &entry.name, entry.method)?;
        data[number] = (entry.header + len, false);
    }
    Ok(data)
}

/// Deflate turns a byte into a thousand at most. Weights never do, on the whole.
fn refuse_bomb(entries: &[ZipEntry], archive_size: u64) -> std::result::Result<(), Refusal> {
    let deflated = entries
        .iter()
        .filter(|entry| entry.method == Method::Deflated);
    let inflated = deflated.fold(0_u64, |sum, entry| sum.saturating_add(entry.size));
    let most = archive_size
        .saturating_mul(MAX_RATIO)
        .clamp(FREE_INFLATED, MAX_INFLATED);
    match inflated <= most {
        true => Ok(()),
        false => Err(too_large(format!(
            "the zip archive of {archive_size} bytes inflates to {inflated}"
        ))),
    }
}

fn refuse_overlaps(mut extents: Vec<(u64, u64)>) -> std::result::Result<(), Refusal> {
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

fn unique_names(entries: &[ZipEntry]) -> std::result::Result<HashMap<Box<str>, u32>, Refusal> {
    let mut names = HashMap::with_capacity(entries.len());
    for (index, entry) in (0_u32..).zip(entries) {
        if names.insert(key(&entry.name).into(), index).is_some() {
            return Err(ambiguous(format!(
                "the zip archive has two entries `{}`, or two that differ in upper and lower case only",
                shown(&entry.name)
            )));
        }
    }
    Ok(names)
}
