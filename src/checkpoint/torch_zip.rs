//! The zip container of torch.save since 1.6: `ROOT/data.pkl`, and the bytes of
//! each storage as `ROOT/data/KEY` (caffe2/serialize/inline_container.h,
//! torch/serialization.py). TorchScript's archives are the same and hold more.

use std::collections::HashMap;
use std::io::Read;

use flate2::read::DeflateDecoder;

use super::dtype::ElementType;
use super::refusal::{Cause, Refusal, shown};
use super::storage::Table;
use super::torch::{SavedStorage, StorageRef, Storages, Torch};
use super::torchscript::{self, Classes, MAX_SOURCE};
use super::zip::{Archive, Entry};
use super::{Checkpoint, Place, Result, state_dict, stream};
use crate::pickle::{Import, Pickle, Window};
use crate::source::Span;

/// Longer compressed pickles are refused: 100,000 tensors take 15 MiB.
const MAX_PICKLE: u64 = 256 << 20;

/// The newest version that torch reads (caffe2/serialize/versions.h,
/// `kMaxSupportedFileFormatVersion`).
const MAX_VERSION: u32 = 10;

/// Reads the checkpoint in the torch zip archive `source`, from `root_path` on.
/// Places are given from the start of the span.
pub fn read(source: Span, root_path: Option<&str>) -> Result<Checkpoint> {
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
    let Some(entry) = in_root("data.pkl") else {
        return Err(unsupported("there is no data.pkl in this archive").into());
    };
    let pickles = Pickles::new(&source, entry)?;
    let pickle = pickles.pickle()?;
    let records = Records {
        archive: &archive,
        prefix: format!("{root}/data/"),
        swap,
        by_key: HashMap::new(),
    };
    let mut torch = Torch::new(&pickle, records);
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
    let constants = Pickles::new(&source, constants)?;
    if contents.tensors.is_empty() && constants.pickle()?.has_persistent() {
        return Err(torchscript::frozen().into());
    }
    let (storages, classes) = torch.into_parts();
    contents.others.extend(classes.into_left_out());
    Ok(contents.with(storages))
}

/// The pickle in an entry: read where it lies, or inflated.
enum Pickles<'a> {
    InFile(Window<'a, Span<'a>>, u64),
    Inflated(Vec<u8>),
}

impl<'a> Pickles<'a> {
    fn new(source: &'a Span<'a>, entry: &Entry) -> Result<Pickles<'a>> {
        Ok(match entry.storage()?.place {
            Place::File(offset) => {
                Pickles::InFile(Window::new(source, offset + entry.size), offset)
            }
            _ => Pickles::Inflated(bytes(*source, entry, MAX_PICKLE)?),
        })
    }

    /// The pickle, unless something in it is dangerous.
    fn pickle(&self) -> Result<Pickle<'_>> {
        match self {
            Pickles::InFile(window, offset) => stream::parse_at(window, *offset),
            Pickles::Inflated(bytes) => stream::parse(bytes),
        }
    }
}

/// The classes of a TorchScript archive that `imports` names.
fn classes<'a>(
    source: Span,
    imports: &[Import],
    in_root: impl Fn(&str) -> Option<&'a Entry>,
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
fn check_version<'a>(source: Span, in_root: impl Fn(&str) -> Option<&'a Entry>) -> Result<()> {
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
        name.eq_ignore_ascii_case("data.pkl").then_some(root)
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
fn bytes(source: Span, entry: &Entry, limit: u64) -> Result<Vec<u8>> {
    let storage = entry.storage()?;
    if entry.size > limit {
        return Err(Refusal::new(
            Cause::TooLarge,
            format!("entry `{}` has {} bytes", shown(&entry.name), entry.size),
        )
        .into());
    }
    let Place::Decoded(encoded) = storage.place else {
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

fn unsupported(what: impl Into<String>) -> Refusal {
    Refusal::new(Cause::Unsupported, what)
}

/// The storages of the archive, in the order they are asked for.
struct Records<'a> {
    archive: &'a Archive,
    prefix: String,
    swap: bool,
    by_key: HashMap<String, Record>,
}

/// A storage that was asked for.
#[derive(Clone, Copy)]
struct Record {
    index: u32,
    /// Bytes.
    len: u64,
    /// Bytes of its numbers, by the type it was first asked for with.
    number: u64,
}

impl Storages for Records<'_> {
    const PARTS: usize = 5;

    fn resolve(
        &mut self,
        table: &mut Table,
        saved: &SavedStorage,
    ) -> std::result::Result<StorageRef, Refusal> {
        let (key, element, elements) = (saved.key, saved.element, saved.elements);
        let record = match self.by_key.get(key) {
            Some(record) => *record,
            None => self.add(table, key, element)?,
        };
        let len = record.len;
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
        if self.swap && record.number != element.number_size() {
            return Err(Refusal::new(
                Cause::Ambiguous,
                format!(
                    "big-endian storage `{}` is said to have two types",
                    shown(key)
                ),
            ));
        }
        Ok(StorageRef {
            index: record.index,
            start: 0,
            len,
            swap: self.swap,
        })
    }
}

impl Records<'_> {
    fn add(
        &mut self,
        table: &mut Table,
        key: &str,
        element: ElementType,
    ) -> std::result::Result<Record, Refusal> {
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
        let record = Record {
            index: table.add(storage)?,
            len: entry.size,
            number: element.number_size(),
        };
        self.by_key.insert(key.to_string(), record);
        Ok(record)
    }
}
