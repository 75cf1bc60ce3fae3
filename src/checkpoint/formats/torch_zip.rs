//! The zip container of torch.save since 1.6: `ROOT/data.pkl`, and the bytes of
//! each storage as `ROOT/data/KEY` (caffe2/serialize/inline_container.h,
//! torch/serialization.py). TorchScript's archives are the same and hold more.

use std::collections::{HashMap, HashSet};

use sha2::{Digest, Sha256};

use super::candidate::{Candidate, Holds, Request, Zip};
use super::zip::{Archive, ZipEntry};
use crate::budget::Share;
use crate::checkpoint::archive::ArchiveEntry;
use crate::checkpoint::contents::{Checkpoint, Other};
use crate::checkpoint::dtype::ElementType;
use crate::checkpoint::error::{Error, Result};
use crate::checkpoint::layout::StorageRef;
use crate::checkpoint::ledger::{LeftOut, Rule};
use crate::checkpoint::objects::torchscript::{self, Classes, MAX_SOURCE};
use crate::checkpoint::objects::{SavedStorage, Storages, Torch, saved_storage};
use crate::checkpoint::refusal::{Cause, Refusal, malformed, shown, unsupported};
use crate::checkpoint::storage::{Backing, StorageTable};
use crate::checkpoint::tensor::Tensor;
use crate::checkpoint::weights::Wanted;
use crate::checkpoint::{stream, walk};
use crate::pickle::{Import, Pickle, Window};
use crate::source::{Source, Span};

/// Longer compressed pickles are refused: 100,000 tensors take 15 MiB.
const MAX_PICKLE: u64 = 256 << 20;

/// How much of a pickle is read at first: some 30,000 tensors take as much.
const FIRST_OF_PICKLE: u64 = 4 << 20;

/// The newest version that torch reads (caffe2/serialize/versions.h,
/// `kMaxSupportedFileFormatVersion`).
const MAX_VERSION: u32 = 10;

/// Records that nothing refers to and that are told of.
const MAX_UNREAD: usize = 10_000;

/// The entry with the object, in the folder that everything lies in.
const PICKLE: &str = "data.pkl";

/// A zip archive is a checkpoint when it has a `data.pkl`. One that cannot be read
/// in one way only is judged by its name, and by the entry that torch writes first.
pub fn sniff(file: &Candidate) -> Result<Option<Holds>> {
    let named = match file.zip()? {
        Zip::No => return Ok(None),
        Zip::Broken => None,
        Zip::Names(names) => match names.any(is_pickle) {
            Ok(named) => Some(named),
            Err(Error::Refused(_)) => None,
            Err(error) => return Err(error),
        },
    };
    let is_one = named.unwrap_or_else(|| {
        let mut starts = file.head.windows(PICKLE.len());
        file.promised || starts.any(|bytes| bytes.eq_ignore_ascii_case(PICKLE.as_bytes()))
    });
    Ok(is_one.then_some(Holds::Pickles))
}

/// Whether an entry of an archive is the pickle of a checkpoint.
fn is_pickle(name: &str) -> bool {
    let last = name.rsplit(['/', '\\']).next();
    last.is_some_and(|last| last.eq_ignore_ascii_case(PICKLE))
}

/// Whether a file would be a checkpoint if its first two bytes were those of a zip
/// archive.
pub fn is_headless(file: &Candidate) -> Result<bool> {
    match file.headless_zip()? {
        Zip::Names(names) => match names.any(is_pickle) {
            Err(Error::Refused(_)) => Ok(false),
            named => named,
        },
        Zip::No | Zip::Broken => Ok(false),
    }
}

/// Reads the checkpoint in a torch zip archive.
pub fn read(request: &Request) -> Result<Checkpoint> {
    read_span(request.source.span(), request.wanted, request.share)
}

/// Reads what is `wanted` of the torch zip archive `source`. Offsets are given from the
/// start of the span.
pub fn read_span(source: Span, wanted: Wanted, share: &Share) -> Result<Checkpoint> {
    let archive = Archive::read(source, share)?;
    let root = root(&archive)?;
    let in_root = |name: &str| archive.entry(&format!("{root}/{name}"));
    if in_root(".data/extern_modules").is_some() {
        return Err(unsupported("this is a torch.package archive").into());
    }
    let Some(pickle) = in_root(PICKLE) else {
        return Err(unsupported("there is no data.pkl in this archive").into());
    };
    // As it is in the file.
    share.take(pickle.stored_size.min(MAX_PICKLE))?;
    // torch writes these close together: they are read together.
    let version = in_root(".data/version").or_else(|| in_root("version"));
    let byte_order = in_root("byteorder");
    let mut first = vec![(pickle, first_of_pickle(pickle)?)];
    for entry in [version, byte_order].into_iter().flatten() {
        first.push((entry, entry.whole(16)?));
    }
    let mut fetched = archive.fetch(&first)?.into_iter();
    let pickle_bytes = fetched.next().unwrap_or_default();
    let mut text = |entry: Option<&ZipEntry>| {
        let text = entry.map(|entry| entry.inflate(fetched.next().unwrap_or_default(), share));
        text.transpose()
    };
    check_version(text(version)?)?;
    let swap = is_big_endian(text(byte_order)?)?;
    let pickle = PickleEntry::new(&source, pickle, pickle_bytes, share)?;
    let pickle = pickle.pickle(share)?;
    let storages = ZipStorages {
        archive: &archive,
        prefix: format!("{root}/data/"),
        swap,
        asked: vec![None; archive.entries().len()].into(),
        others: HashMap::new(),
        used: Vec::new(),
    };
    let mut torch = Torch::new(&pickle, storages);
    let constants = in_root("constants.pkl");
    if constants.is_some() {
        let classes = classes(&archive, pickle.imports(), in_root, share)?;
        if !classes.is_module(&pickle, pickle.root()) {
            return Err(torchscript::no_module().into());
        }
        torch.scripted(classes);
    }
    let mut contents = walk::read(&mut torch, wanted, share)?;
    let (storages, zip) = torch.into_parts();
    if let Some(constants) = constants {
        let bytes = constant_bytes(&archive, &source, constants, share)?;
        let served = contents.tensors.iter().map(Tensor::bytes);
        if bytes > 0 && bytes >= served.fold(0, u64::saturating_add) {
            return Err(torchscript::frozen().into());
        }
        contents.left_out.extend((bytes > 0).then(|| LeftOut {
            path: "constants".into(),
            rule: Rule::Constant,
            bytes,
        }));
    }
    contents.others.extend(zip.unread(&pickle)?);
    Ok(Checkpoint {
        entries: zip.used,
        ..contents.with(storages)
    })
}

/// The hash of the size, the central directory, which has a checksum of each entry,
/// and the pickle. None where the archive is refused, or has no checksums.
pub fn fingerprint(source: &Source, share: &Share) -> Result<Option<[u8; 32]>> {
    match hash(source.span(), share) {
        Err(Error::Refused(_)) => Ok(None),
        hash => hash,
    }
}

fn hash(source: Span, share: &Share) -> Result<Option<[u8; 32]>> {
    let archive = Archive::read(source, share)?;
    let name = format!("{}/{PICKLE}", root(&archive)?);
    let Some(pickle) = archive.entry(&name) else {
        return Ok(None);
    };
    let entries = archive.entries().iter();
    let mut others = entries.filter(|entry| entry.header != pickle.header);
    if others.any(|entry| entry.size > 0 && entry.crc32 == 0) {
        return Ok(None);
    }
    let directory = archive.directory()?;
    let mut hash = Sha256::new();
    hash.update(b"stfs: contents of a torch zip archive\0");
    hash.update(source.size().to_le_bytes());
    hash.update((directory.len() as u64).to_le_bytes());
    hash.update(directory);
    hash.update(pickle.stored_size.to_le_bytes());
    let first = archive.fetch(&[(pickle, FIRST_OF_PICKLE)])?;
    let mut at = pickle.data;
    let end = pickle.data + pickle.stored_size;
    for piece in first {
        at += piece.len() as u64;
        hash.update(piece);
    }
    while at < end {
        let piece = source.read_at(at, (end - at).min(FIRST_OF_PICKLE))?;
        at += piece.len() as u64;
        hash.update(piece);
    }
    Ok(Some(hash.finalize().into()))
}

/// How much of a pickle is fetched with its header.
fn first_of_pickle(entry: &ZipEntry) -> std::result::Result<u64, Refusal> {
    match entry.storage()?.backing {
        Backing::File(_) => Ok(FIRST_OF_PICKLE),
        _ => entry.whole(MAX_PICKLE),
    }
}

/// The pickle in an entry: read where it lies, or inflated.
enum PickleEntry<'a> {
    InFile(Window<'a, Span<'a>>, u64),
    Inflated(Vec<u8>),
}

impl<'a> PickleEntry<'a> {
    /// `first` are the first bytes of the entry, or all where it is deflated.
    fn new(
        source: &'a Span<'a>,
        entry: &ZipEntry,
        first: Vec<u8>,
        share: &Share,
    ) -> std::result::Result<PickleEntry<'a>, Refusal> {
        Ok(match entry.storage()?.backing {
            Backing::File(offset) => {
                let window = Window::new(source, offset + entry.size);
                PickleEntry::InFile(window.holding(offset, first), offset)
            }
            _ => PickleEntry::Inflated(entry.inflate(first, share)?),
        })
    }

    /// The pickle, unless something in it is dangerous.
    fn pickle(&self, share: &Share) -> Result<Pickle<'_>> {
        match self {
            PickleEntry::InFile(window, offset) => stream::parse_at(window, *offset, share),
            PickleEntry::Inflated(bytes) => stream::parse(bytes, share),
        }
    }
}

/// Bytes of the storages that the pickle in `entry` refers to.
fn constant_bytes(
    archive: &Archive,
    source: &Span,
    entry: &ZipEntry,
    share: &Share,
) -> Result<u64> {
    let first = archive.fetch(&[(entry, first_of_pickle(entry)?)])?.pop();
    let pickle = PickleEntry::new(source, entry, first.unwrap_or_default(), share)?;
    let pickle = pickle.pickle(share)?;
    let mut keys = HashSet::new();
    let mut bytes = 0_u64;
    for id in pickle.ids() {
        if let Some(saved) = saved_storage(&pickle, id, ZipStorages::PARTS)?
            && keys.insert(saved.key)
        {
            bytes = bytes.saturating_add(saved.elements.saturating_mul(saved.element.size()));
        }
    }
    Ok(bytes)
}

/// The classes of a TorchScript archive that `imports` names.
fn classes<'a>(
    archive: &Archive,
    imports: &[Import],
    in_root: impl Fn(&str) -> Option<&'a ZipEntry>,
    share: &Share,
) -> Result<Classes> {
    let mut left = MAX_SOURCE;
    let mut modules = Vec::new();
    let mut wanted = Vec::new();
    for module in Classes::modules(imports) {
        // Classes that are part of torch have no source.
        let Some(entry) = in_root(&Classes::entry(module)) else {
            continue;
        };
        wanted.push((entry, entry.whole(left)?));
        left -= entry.size;
        modules.push(module);
    }
    let mut classes = Classes::default();
    let fetched = archive.fetch(&wanted)?;
    for ((module, (entry, _)), text) in modules.into_iter().zip(wanted).zip(fetched) {
        classes.add(
            module,
            &String::from_utf8_lossy(&entry.inflate(text, share)?),
        );
    }
    Ok(classes)
}

/// Refuses a format that torch may lay out in another way one day. A missing
/// version says nothing about the layout.
fn check_version(text: Option<Vec<u8>>) -> std::result::Result<(), Refusal> {
    let Some(text) = text else { return Ok(()) };
    let number = std::str::from_utf8(text.trim_ascii()).ok();
    match number.and_then(|number| number.parse().ok()) {
        Some(1..=MAX_VERSION) => Ok(()),
        _ => Err(unsupported(format!(
            "its format has the unknown version `{}`",
            text.trim_ascii().escape_ascii()
        ))),
    }
}

fn is_big_endian(text: Option<Vec<u8>>) -> std::result::Result<bool, Refusal> {
    match text.as_deref() {
        None | Some(b"little") => Ok(false),
        Some(b"big") => Ok(true),
        Some(_) => Err(malformed("its byte order has no known name")),
    }
}

/// The folder that everything lies in: the only one with a `data.pkl`. torch
/// takes the folder of the first entry; where that is another one (`__MACOSX/`
/// of a file zipped again), torch finds nothing at all.
fn root<'a>(archive: &'a Archive) -> Result<&'a str> {
    let mut roots = archive.entries().iter().filter_map(|entry| {
        let (root, name) = entry.name.split_once('/')?;
        name.eq_ignore_ascii_case(PICKLE).then_some(root)
    });
    match (roots.next(), roots.next()) {
        (Some(root), None) => Ok(root),
        (Some(_), Some(_)) => Err(Refusal::new(
            Cause::Ambiguous,
            "the zip archive holds more than one checkpoint",
        )
        .into()),
        (None, _) => {
            let mut names = archive.entries().iter().map(|entry| entry.name.as_str());
            Err(match names.find(|name| name.contains('\\') && is_pickle(name)) {
                Some(name) => Refusal::new(
                    Cause::Backslashes,
                    format!(
                        "the names in the zip archive have backslashes in them (`{}`), where torch \
                         requires slashes",
                        shown(name).replace("\\\\", "\\")
                    ),
                ),
                None => unsupported(
                    "the zip archive has no folder with a data.pkl in it, which torch requires",
                ),
            }
            .into())
        }
    }
}

/// The storages of the archive, in the order they are asked for.
struct ZipStorages<'a> {
    archive: &'a Archive<'a>,
    prefix: String,
    swap: bool,
    /// What became of each entry of the archive, by its own name.
    asked: Box<[Option<ZipStorage>]>,
    /// And by names that differ from it in upper and lower case: to torch these are
    /// storages of their own.
    others: HashMap<String, ZipStorage>,
    /// The entries of those that were asked for.
    used: Vec<ArchiveEntry>,
}

/// A storage that was asked for.
#[derive(Clone, Copy)]
struct ZipStorage {
    index: u32,
    /// Bytes.
    len: u64,
    /// Bytes of its numbers, by the type it was first asked for with.
    number: u64,
}

impl Storages for ZipStorages<'_> {
    const PARTS: usize = 5;

    fn resolve(
        &mut self,
        table: &mut StorageTable,
        saved: &SavedStorage,
    ) -> std::result::Result<StorageRef, Refusal> {
        let (key, element, elements) = (saved.key, saved.element, saved.elements);
        let known = match self.known(key) {
            Some(known) => *known,
            None => self.add(table, key, element)?,
        };
        let len = known.len;
        if elements.checked_mul(element.size()) != Some(len) {
            return Err(Refusal::new(
                Cause::Malformed,
                format!(
                    "storage `{}` has {len} bytes, but should hold {elements} elements of {} bytes",
                    shown(key),
                    element.size()
                ),
            ));
        }
        // torch swaps a storage once, by the type it meets first.
        if self.swap && known.number != element.number_size() {
            return Err(Refusal::new(
                Cause::Ambiguous,
                format!(
                    "big-endian storage `{}` is said to have two types",
                    shown(key)
                ),
            ));
        }
        Ok(StorageRef {
            index: known.index,
            start: 0,
            len,
            swap: self.swap,
        })
    }
}

impl ZipStorages<'_> {
    /// The records that `pickle` never refers to.
    fn unread(&self, pickle: &Pickle) -> std::result::Result<Vec<Other>, Refusal> {
        let entries = self.archive.entries().iter();
        let records =
            entries.filter_map(|entry| Some((entry.name.strip_prefix(&self.prefix)?, entry)));
        if records.clone().count() <= self.used.len() {
            return Ok(Vec::new());
        }
        let mut keys = HashSet::new();
        for id in pickle.ids() {
            keys.extend(saved_storage(pickle, id, Self::PARTS)?.map(|saved| saved.key));
        }
        let unread = records.filter(|(key, _)| !keys.contains(key));
        let unread = unread.map(|(key, entry)| Other {
            path: shown(&format!("data/{key}")),
            kind: "record".into(),
            repr: format!("{} bytes that the pickle never refers to", entry.size),
            value: None,
        });
        Ok(unread.take(MAX_UNREAD).collect())
    }

    /// What became of the storage `key`, if it was asked for.
    fn known(&self, key: &str) -> Option<&ZipStorage> {
        let entry = self.archive.position(&format!("{}{key}", self.prefix))?;
        match self.is_called(entry, key) {
            true => self.asked.get(entry)?.as_ref(),
            false => self.others.get(key),
        }
    }

    /// Whether the entry has the name of the storage `key` to the letter.
    fn is_called(&self, entry: usize, key: &str) -> bool {
        let entry = self.archive.entries().get(entry);
        entry.is_some_and(|entry| entry.name.strip_prefix(&self.prefix) == Some(key))
    }

    fn add(
        &mut self,
        table: &mut StorageTable,
        key: &str,
        element: ElementType,
    ) -> std::result::Result<ZipStorage, Refusal> {
        let position = self.archive.position(&format!("{}{key}", self.prefix));
        let found = position.and_then(|at| Some((at, self.archive.entries().get(at)?)));
        let (position, entry) = found.ok_or_else(|| {
            Refusal::new(
                Cause::Malformed,
                format!("storage `{}` is missing in the zip archive", shown(key)),
            )
        })?;
        let storage = entry.storage()?;
        self.used.push(ArchiveEntry::of(entry));
        let known = ZipStorage {
            index: table.add(storage)?,
            len: entry.size,
            number: element.number_size(),
        };
        match self.is_called(position, key) {
            true => self.asked[position] = Some(known),
            false => drop(self.others.insert(key.to_string(), known)),
        }
        Ok(known)
    }
}
