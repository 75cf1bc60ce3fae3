//! The zip container of torch.save since 1.6: `ROOT/data.pkl`, and the bytes of
//! each storage as `ROOT/data/KEY` (caffe2/serialize/inline_container.h,
//! torch/serialization.py).

use std::collections::HashMap;

use super::dtype::ElementType;
use super::refusal::{Cause, Refusal};
use super::torch::{StorageRef, Storages, Torch};
use super::zip::{Archive, Entry, Method};
use super::{Checkpoint, Result, Storage, danger, state_dict};
use crate::pickle::{self, Limits};
use crate::source::Source;

/// Longer pickles are refused: 100,000 tensors take 15 MiB.
const MAX_PICKLE: u64 = 256 << 20;

/// Reads the checkpoint in the torch zip archive `source`.
pub fn read(source: &Source) -> Result<Checkpoint> {
    let archive = Archive::read(source)?;
    let root = root(&archive)?;
    let in_root = |name: &str| archive.entry(&format!("{root}/{name}"));
    if in_root("constants.pkl").is_some() {
        return Err(unsupported("this is a TorchScript archive, which is not read yet").into());
    }
    if in_root(".data/extern_modules").is_some() {
        return Err(unsupported("this is a torch.package archive").into());
    }
    let swap = match in_root("byteorder") {
        None => false,
        Some(entry) => match stored(source, entry, 16)?.as_slice() {
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
    let bytes = stored(source, entry, MAX_PICKLE)?;
    let pickle = match pickle::parse(&bytes, &Limits::default()) {
        Ok(pickle) => pickle,
        Err(error) => {
            let attack = danger::find(&error.imports);
            let broken =
                || Refusal::new(Cause::Malformed, format!("its pickle is broken: {error}"));
            return Err(attack.unwrap_or_else(broken).into());
        }
    };
    if let Some(attack) = danger::find(pickle.imports()) {
        return Err(attack.into());
    }
    let records = Records {
        archive: &archive,
        prefix: format!("{root}/data/"),
        swap,
        storages: Vec::new(),
        by_key: HashMap::new(),
    };
    let mut torch = Torch::new(&pickle, records);
    let contents = state_dict::read(&mut torch)?;
    Ok(Checkpoint {
        tensors: contents.tensors,
        others: contents.others,
        storages: torch.into_storages().storages,
    })
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
fn stored(source: &Source, entry: &Entry, limit: u64) -> Result<Vec<u8>> {
    check_stored(entry)?;
    if entry.size > limit {
        return Err(Refusal::new(
            Cause::TooLarge,
            format!("entry {:?} has {} bytes", entry.name, entry.size),
        )
        .into());
    }
    Ok(source.read_at(entry.data, entry.size)?)
}

fn check_stored(entry: &Entry) -> std::result::Result<(), Refusal> {
    let how = match entry.method {
        Method::Stored => return Ok(()),
        Method::Deflated => "compressed (deflated)".to_string(),
        Method::Other(method) => format!("compressed by method {method}"),
    };
    Err(unsupported(format!(
        "entry {:?} of the zip archive is {how}, which is not read yet",
        entry.name
    )))
}

fn unsupported(what: impl Into<String>) -> Refusal {
    Refusal::new(Cause::Unsupported, what)
}

/// The storages of the archive, in the order they are asked for.
struct Records<'a> {
    archive: &'a Archive,
    prefix: String,
    swap: bool,
    storages: Vec<Storage>,
    by_key: HashMap<String, u32>,
}

impl Storages for Records<'_> {
    fn resolve(
        &mut self,
        key: &str,
        elements: u64,
        element: ElementType,
    ) -> std::result::Result<StorageRef, Refusal> {
        let index = match self.by_key.get(key) {
            Some(index) => *index,
            None => self.add(key)?,
        };
        let malformed = |what| Refusal::new(Cause::Malformed, what);
        let span = self
            .storages
            .get(index as usize)
            .copied()
            .ok_or_else(|| malformed(format!("storage {key:?} is missing")))?;
        if elements.checked_mul(element.size()) != Some(span.len) {
            return Err(malformed(format!(
                "storage {key:?} has {} bytes, but should hold {elements} elements of {} bytes",
                span.len,
                element.size()
            )));
        }
        Ok(StorageRef {
            index,
            span,
            swap: self.swap,
        })
    }
}

impl Records<'_> {
    fn add(&mut self, key: &str) -> std::result::Result<u32, Refusal> {
        let entry = self
            .archive
            .entry(&format!("{}{key}", self.prefix))
            .ok_or_else(|| {
                Refusal::new(
                    Cause::Malformed,
                    format!("storage {key:?} is missing in the zip archive"),
                )
            })?;
        check_stored(entry)?;
        let index = u32::try_from(self.storages.len())
            .map_err(|_| Refusal::new(Cause::TooLarge, "it has too many storages"))?;
        self.storages.push(Storage {
            offset: entry.data,
            len: entry.size,
        });
        self.by_key.insert(key.to_string(), index);
        Ok(index)
    }
}
