//! The stream of torch.save before 1.6, and of `_use_new_zipfile_serialization=
//! False` since: five pickles (a magic number, a version, the writer's machine,
//! the object, the keys of its storages), then for each key a count of elements
//! and the elements (torch/serialization.py, `_legacy_save`; torch/csrc/
//! serialization.cpp). Counts and elements are little-endian on every machine.

use std::collections::HashMap;

use super::dtype::ElementType;
use super::refusal::{Cause, Refusal, shown};
use super::storage::{Storage, Table};
use super::stream::{self, Pickles};
use super::torch::{SavedStorage, StorageRef, Storages, Torch, saved_storage};
use super::{Checkpoint, Result, state_dict};
use crate::pickle::{Object, Pickle};
use crate::source::Source;

/// `0x1950A86A20F9469CFC6C`, as Python writes the number: little-endian.
const MAGIC: &[u8] = b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
const VERSION: i64 = 1001;

/// Reads the checkpoint in the legacy stream `source`, from `root_path` on.
pub fn read(source: &Source, root_path: Option<&str>) -> Result<Checkpoint> {
    let window = stream::window(source);
    let mut pickles = Pickles::new(source, &window, 0);
    check_start(&pickles.next()?, &pickles.next()?)?;
    let _machine = pickles.next()?;
    let object = pickles.next()?;
    let keys = pickles.next()?;
    let records = Records::find(source, &object, &keys, pickles.offset())?;
    let mut torch = Torch::new(&object, records);
    let contents = state_dict::read(&mut torch, root_path)?;
    Ok(contents.with(torch.into_storages()))
}

/// Checks the two pickles that every stream begins with.
pub fn check_start(magic: &Pickle, version: &Pickle) -> std::result::Result<(), Refusal> {
    if !matches!(magic.get(magic.root()), Object::BigInt(number) if **number == *MAGIC) {
        return Err(malformed("it does not begin with torch's magic number"));
    }
    match version.as_int(version.root()) {
        Some(VERSION) => Ok(()),
        _ => Err(Refusal::new(
            Cause::Unsupported,
            "its format has an unknown version",
        )),
    }
}

/// The storages of the stream, by key.
struct Records {
    by_key: HashMap<String, Record>,
    views: HashMap<String, SavedView>,
}

/// Elements of a storage that go by a key of their own. Only torch before 0.4
/// wrote any.
#[derive(Clone, PartialEq, Eq)]
struct SavedView {
    root: String,
    offset: u64,
    elements: u64,
}

struct Record {
    element: ElementType,
    elements: u64,
    /// Bytes from the start of the file, once known.
    data: Option<u64>,
    /// Its place in the table, once it is asked for.
    index: Option<u32>,
}

impl Records {
    /// Where each storage that `object` names lies: they follow each other from
    /// `offset` on, in the order of `keys`.
    fn find(source: &Source, object: &Pickle, keys: &Pickle, offset: u64) -> Result<Records> {
        let mut records = Records {
            by_key: HashMap::new(),
            views: HashMap::new(),
        };
        for id in object.ids() {
            if let Some(saved) = saved_storage(object, id, 6)? {
                records.add(saved)?;
            }
        }
        if let Some(key) = records
            .views
            .keys()
            .find(|key| records.by_key.contains_key(*key))
        {
            return Err(Refusal::new(
                Cause::Ambiguous,
                format!("`{}` is both a storage and a part of one", shown(key)),
            )
            .into());
        }
        let Object::List(list) = keys.get(keys.root()) else {
            return Err(malformed("the keys of its storages are no list").into());
        };
        let mut at = offset;
        for key in list {
            let key = keys
                .as_str(*key)
                .ok_or_else(|| malformed("a storage's key is no text"))?;
            let record = records
                .by_key
                .get_mut(key)
                .filter(|record| record.data.is_none());
            let record = record.ok_or_else(|| {
                malformed(format!(
                    "its list of storages has `{}` once too often",
                    shown(key)
                ))
            })?;
            let mut count = [0; 8];
            source
                .read_exact_at(&mut count, at)
                .map_err(|error| stream::cut_off(error, "before the last of its storages"))?;
            if u64::from_le_bytes(count) != record.elements {
                return Err(malformed(format!(
                    "storage `{}` has {} elements, but should have {}",
                    shown(key),
                    u64::from_le_bytes(count),
                    record.elements
                ))
                .into());
            }
            record.data = Some(at + 8);
            at = record
                .elements
                .checked_mul(record.element.size())
                .and_then(|len| len.checked_add(at + 8))
                .filter(|end| *end <= source.size())
                .ok_or_else(|| {
                    Refusal::new(
                        Cause::NotDownloaded,
                        format!(
                            "the file ends inside storage `{}`: it was cut off",
                            shown(key)
                        ),
                    )
                })?;
        }
        Ok(records)
    }

    fn add(&mut self, saved: SavedStorage) -> std::result::Result<(), Refusal> {
        let ambiguous = |key: &str| {
            Refusal::new(
                Cause::Ambiguous,
                format!("storage `{}` is described in two ways", shown(key)),
            )
        };
        if let Some((key, offset, elements)) = saved.view {
            let view = SavedView {
                root: saved.key.to_string(),
                offset,
                elements,
            };
            let known = self.views.entry(key.to_string()).or_insert(view.clone());
            if *known != view {
                return Err(ambiguous(key));
            }
        }
        let known = self.by_key.entry(saved.key.to_string()).or_insert(Record {
            element: saved.element,
            elements: saved.elements,
            data: None,
            index: None,
        });
        match (known.element, known.elements) == (saved.element, saved.elements) {
            true => Ok(()),
            false => Err(ambiguous(saved.key)),
        }
    }
}

impl Storages for Records {
    const PARTS: usize = 6;

    fn resolve(
        &mut self,
        table: &mut Table,
        saved: &SavedStorage,
    ) -> std::result::Result<StorageRef, Refusal> {
        let record = self.by_key.get_mut(saved.key);
        let missing = || {
            malformed(format!(
                "storage `{}` is missing in the file",
                shown(saved.key)
            ))
        };
        let record = record.ok_or_else(missing)?;
        let size = record.element.size();
        let len = record.elements * size;
        let index = match record.index {
            Some(index) => index,
            None => table.add(Storage::in_file(record.data.ok_or_else(missing)?, len))?,
        };
        record.index = Some(index);
        let (start, len) = match saved.view {
            None => (0, len),
            Some((key, offset, elements)) => {
                let span = offset.checked_mul(size).zip(elements.checked_mul(size));
                span.filter(|(start, part)| start.checked_add(*part).is_some_and(|end| end <= len))
                    .ok_or_else(|| {
                        malformed(format!("part `{}` reaches out of its storage", shown(key)))
                    })?
            }
        };
        Ok(StorageRef {
            index,
            start,
            len,
            swap: false,
        })
    }
}

fn malformed(what: impl Into<String>) -> Refusal {
    Refusal::new(Cause::Malformed, what)
}
