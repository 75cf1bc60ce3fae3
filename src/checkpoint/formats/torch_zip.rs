//! The zip container of torch.save since 1.6: `ROOT/data.pkl`, and the bytes of
//! each storage as `ROOT/data/KEY` (caffe2/serialize/inline_container.h,
//! torch/serialization.py). TorchScript's archives are the same and hold more.

use std::collections::HashMap;
use std::io::Read;

use flate2::read::DeflateDecoder;

use super::candidate::{Candidate, Holds, Request, ZipNames};
use super::zip::{Archive, ZipEntry};
use crate::checkpoint::contents::Checkpoint;
use crate::checkpoint::dtype::ElementType;
use crate::checkpoint::error::Result;
use crate::checkpoint::layout::StorageRef;
use crate::checkpoint::objects::torchscript::{self, Classes, MAX_SOURCE};
use crate::checkpoint::objects::{SavedStorage, Storages, Torch};
use crate::checkpoint::refusal::{Cause, Refusal, shown, unsupported};
use crate::checkpoint::storage::{Backing, StorageTable};
use crate::checkpoint::{state_dict, stream};
use crate::pickle::{Import, Pickle, Window};
use crate::source::Span;

/// Longer compressed pickles are refused: 100,000 tensors take 15 MiB.
const MAX_PICKLE: u64 = 256 << 20;

/// The newest version that torch reads (caffe2/serialize/versions.h,
/// `kMaxSupportedFileFormatVersion`).
const MAX_VERSION: u32 = 10;

/// The entry with the object, in the folder that everything lies in.
const PICKLE: &str = "data.pkl";

/// A zip archive is a checkpoint when it has a `data.pkl`. One that cannot be read
/// in one way only is judged by its name, and by the entry that torch writes first.
pub fn sniff(file: &Candidate) -> Result<Option<Holds>> {
    let is_pickle = |name: &String| {
        let last = name.rsplit(['/', '\\']).next();
        last.is_some_and(|last| last.eq_ignore_ascii_case(PICKLE))
    };
    let is_one = match file.zip_names()? {
        ZipNames::NoZip => false,
        ZipNames::Broken => {
            let mut starts = file.head.windows(PICKLE.len());
            file.promised || starts.any(|bytes| bytes.eq_ignore_ascii_case(PICKLE.as_bytes()))
        }
        ZipNames::Names(names) => names.iter().any(is_pickle),
    };
    Ok(is_one.then_some(Holds::Pickles))
}

/// Reads the checkpoint in a torch zip archive.
pub fn read(request: &Request) -> Result<Checkpoint> {
    read_span(request.source.span(), request.root)
}

/// Reads the checkpoint in the torch zip archive `source`, from `root_path` on.
/// Offsets are given from the start of the span.
pub fn read_span(source: Span, root_path: Option<&str>) -> Result<Checkpoint> {
    let archive = Archive::read(source)?;
    let root = root(&archive)?;
    let in_root = |name: &str| archive.entry(&format!("{root}/{name}"));
    if in_root(".data/extern_modules").is_some() {
        return Err(unsupported("this is a torch.package archive").into());
    }
    check_version(source, in_root)?;
    let swap = match in_root("byteorder") {
        None => false,
        Some(entry) => match bytes(source, entry, 16)?.as_slice() {
            b"little" => false,
            b"big" => true,
            _ => {
                return Err(
                    Refusal::new(Cause::Malformed, "its byte order has no known name").into(),
                );
            }
        },
    };
    let Some(entry) = in_root(PICKLE) else {
        return Err(unsupported("there is no data.pkl in this archive").into());
    };
    let pickles = PickleEntry::new(&source, entry)?;
    let pickle = pickles.pickle()?;
    let storages = ZipStorages {
        archive: &archive,
        prefix: format!("{root}/data/"),
        swap,
        by_key: HashMap::new(),
    };
    let mut torch = Torch::new(&pickle, storages);
    let Some(constants) = in_root("constants.pkl") else {
        let contents = state_dict::read(&mut torch, root_path)?;
        return Ok(contents.with(torch.into_storages()));
    };
    let classes = classes(source, pickle.imports(), in_root)?;
    if !classes.is_module(&pickle, pickle.root()) {
        return Err(torchscript::no_module().into());
    }
    torch.scripted(classes);
    let mut contents = state_dict::read(&mut torch, root_path)?;
    let constants = PickleEntry::new(&source, constants)?;
    if contents.tensors.is_empty() && constants.pickle()?.has_persistent() {
        return Err(torchscript::frozen().into());
    }
    let (storages, classes) = torch.into_parts();
    contents.others.extend(classes.into_left_out());
    Ok(contents.with(storages))
}

/// The pickle in an entry: read where it lies, or inflated.
enum PickleEntry<'a> {
    InFile(Window<'a, Span<'a>>, u64),
    Inflated(Vec<u8>),
}

impl<'a> PickleEntry<'a> {
    fn new(source: &'a Span<'a>, entry: &ZipEntry) -> Result<PickleEntry<'a>> {
        Ok(match entry.storage()?.backing {
            Backing::File(offset) => {
                PickleEntry::InFile(Window::new(source, offset + entry.size), offset)
            }
            _ => PickleEntry::Inflated(bytes(*source, entry, MAX_PICKLE)?),
        })
    }

    /// The pickle, unless something in it is dangerous.
    fn pickle(&self) -> Result<Pickle<'_>> {
        match self {
            PickleEntry::InFile(window, offset) => stream::parse_at(window, *offset),
            PickleEntry::Inflated(bytes) => stream::parse(bytes),
        }
    }
}

/// The classes of a TorchScript archive that `imports` names.
fn classes<'a>(
    source: Span,
    imports: &[Import],
    in_root: impl Fn(&str) -> Option<&'a ZipEntry>,
) -> Result<Classes> {
    let mut classes = Classes::default();
    let mut left = MAX_SOURCE;
    for module in Classes::modules(imports) {
        // Classes that are part of torch have no source.
        let Some(entry) = in_root(&Classes::entry(module)) else {
            continue;
        };
        let text = bytes(source, entry, left)?;
        left -= text.len() as u64;
        classes.add(module, &String::from_utf8_lossy(&text));
    }
    Ok(classes)
}

/// Refuses a format that torch may lay out in another way one day. A missing
/// version says nothing about the layout.
fn check_version<'a>(source: Span, in_root: impl Fn(&str) -> Option<&'a ZipEntry>) -> Result<()> {
    let Some(entry) = in_root(".data/version").or_else(|| in_root("version")) else {
        return Ok(());
    };
    let text = bytes(source, entry, 16)?;
    let number = std::str::from_utf8(text.trim_ascii()).ok();
    match number.and_then(|number| number.parse().ok()) {
        Some(1..=MAX_VERSION) => Ok(()),
        _ => Err(unsupported(format!(
            "its format has the unknown version `{}`",
            text.trim_ascii().escape_ascii()
        ))
        .into()),
    }
}

/// The folder that everything lies in: the only one with a `data.pkl`. torch
/// takes the folder of the first entry; where that is another one (`__MACOSX/`
/// of a file zipped again), torch finds nothing at all.
fn root(archive: &Archive) -> Result<&str> {
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
        (None, _) => Err(unsupported(
            "the zip archive has no folder with a data.pkl in it, which torch requires",
        )
        .into()),
    }
}

/// The bytes of a small entry.
fn bytes(source: Span, entry: &ZipEntry, limit: u64) -> Result<Vec<u8>> {
    let storage = entry.storage()?;
    if entry.size > limit {
        return Err(Refusal::new(
            Cause::TooLarge,
            format!("entry `{}` has {} bytes", shown(&entry.name), entry.size),
        )
        .into());
    }
    let Backing::Decoded(encoded) = storage.backing else {
        return Ok(source.read_at(entry.data, entry.size)?);
    };
    let deflated = source.read_at(encoded.offset, encoded.len)?;
    let mut bytes = Vec::new();
    let inflated = DeflateDecoder::new(deflated.as_slice())
        .take(entry.size + 1)
        .read_to_end(&mut bytes);
    match inflated {
        Ok(len) if len as u64 == entry.size => Ok(bytes),
        _ => Err(Refusal::new(
            Cause::Malformed,
            format!(
                "entry `{}` of the zip archive is damaged",
                shown(&entry.name)
            ),
        )
        .into()),
    }
}

/// The storages of the archive, in the order they are asked for.
struct ZipStorages<'a> {
    archive: &'a Archive,
    prefix: String,
    swap: bool,
    by_key: HashMap<String, ZipStorage>,
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
        let known = match self.by_key.get(key) {
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
    fn add(
        &mut self,
        table: &mut StorageTable,
        key: &str,
        element: ElementType,
    ) -> std::result::Result<ZipStorage, Refusal> {
        let entry = self
            .archive
            .entry(&format!("{}{key}", self.prefix))
            .ok_or_else(|| {
                Refusal::new(
                    Cause::Malformed,
                    format!("storage `{}` is missing in the zip archive", shown(key)),
                )
            })?;
        let storage = entry.storage()?;
        let known = ZipStorage {
            index: table.add(storage)?,
            len: entry.size,
            number: element.number_size(),
        };
        self.by_key.insert(key.to_string(), known);
        Ok(known)
    }
}
